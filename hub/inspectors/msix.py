"""Windows app packages: not read yet."""

from typing import Final

from hub.inspectors.source import Source
from hub.records import InstallerFacts
from protocol.errors import BadFileError

MANIFEST: Final = "AppxManifest.xml"


def recognises(source: Source) -> bool:
    """Whether the file is one of these."""
    return source.is_zip and MANIFEST in source.archive.members


def read_facts(source: Source) -> InstallerFacts:
    """Return what the header says. Raises BadFileError."""
    raise BadFileError("Windows app packages are not read yet.")
