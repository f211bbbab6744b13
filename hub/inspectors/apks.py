"""sets of split APKs: not read yet."""

from typing import Final

from hub.inspectors.source import Source
from hub.records import InstallerFacts
from protocol.errors import BadFileError

TABLE_OF_CONTENTS: Final = "toc.pb"


def recognises(source: Source) -> bool:
    """Whether the file is one of these."""
    return source.is_zip and TABLE_OF_CONTENTS in source.archive.members


def read_facts(source: Source) -> InstallerFacts:
    """Return what the header says. Raises BadFileError."""
    raise BadFileError("sets of split APKs are not read yet.")
