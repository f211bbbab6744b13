"""Windows programs (PE): not read yet."""

from typing import Final

from hub.inspectors.source import Source
from hub.records import InstallerFacts
from protocol.errors import BadFileError

SIGNATURE: Final = b"MZ"


def recognises(source: Source) -> bool:
    """Whether the file is one of these."""
    return source.start.startswith(SIGNATURE)


def read_facts(source: Source) -> InstallerFacts:
    """Return what the header says. Raises BadFileError."""
    raise BadFileError("Windows programs (PE) are not read yet.")
