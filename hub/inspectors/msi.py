"""Windows Installer packages: not read yet."""

from typing import Final

from hub.inspectors.source import Source
from hub.records import InstallerFacts
from protocol.errors import BadFileError

SIGNATURE: Final = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"


def recognises(source: Source) -> bool:
    """Whether the file is one of these."""
    return source.start.startswith(SIGNATURE)


def read_facts(source: Source) -> InstallerFacts:
    """Return what the header says. Raises BadFileError."""
    raise BadFileError("Windows Installer packages are not read yet.")
