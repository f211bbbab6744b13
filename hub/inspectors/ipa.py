"""iOS packages: not read yet."""

import re

from hub.inspectors.source import Source
from hub.records import InstallerFacts
from protocol.errors import BadFileError

_INFORMATION = re.compile(r"Payload/[^/]+\.app/Info\.plist")


def recognises(source: Source) -> bool:
    """Whether the file is one of these."""
    return source.is_zip and any(map(_INFORMATION.fullmatch, source.archive.members))


def read_facts(source: Source) -> InstallerFacts:
    """Return what the header says. Raises BadFileError."""
    raise BadFileError("iOS packages are not read yet.")
