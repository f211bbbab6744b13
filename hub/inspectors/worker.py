"""The process in which a foreign installer is read: rights given up first, then the reader, then one JSON document.

`hub/inspection.py` starts it with the file as standard input. `scanner/rights.py` says what it can no longer do by the
time the first byte is read. It imports everything before the limits hold, because afterwards it cannot.
"""

import os
import sys
from collections.abc import Callable
from typing import BinaryIO, Final, NoReturn

import msgspec
from msgspec import Struct

from hub.inspectors import Inspected, read_installer
from hub.inspectors.sidecar import SIDECAR_BYTES
from protocol.errors import LockstepError
from protocol.limits import MIB
from scanner.rights import give_up_rights

MEMORY_BYTES: Final = 512 * MIB
PROCESSOR_SECONDS: Final = 2


class Answer(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the worker writes: what is known of the installer, or why nothing is."""

    found: Inspected | None = None
    message: str = ""
    hint: str = ""
    code: str = ""


def main() -> NoReturn:
    """Read the installer on standard input; write the answer and end at once.

    The last two arguments are the descriptor of its sidecar, empty when it has none, and its name.
    """
    *_, sidecar, name = sys.argv
    sys.stdout.buffer.write(run_limited(lambda: read_installer(_open(0), name, _content(sidecar))))
    sys.stdout.buffer.flush()
    os._exit(0)


def run_limited(read: Callable[[], Inspected]) -> bytes:
    """Give up this process's rights for good, then return what `read` finds as an encoded Answer."""
    give_up_rights(memory_bytes=MEMORY_BYTES, processor_seconds=PROCESSOR_SECONDS)
    try:
        return msgspec.json.encode(Answer(found=read()))
    except LockstepError as error:
        return msgspec.json.encode(Answer(message=error.message, hint=error.hint, code=error.code))


def _open(descriptor: int) -> BinaryIO:
    return os.fdopen(descriptor, "rb", closefd=False)


def _content(sidecar: str) -> bytes | None:
    return _open(int(sidecar)).read(SIDECAR_BYTES + 1) if sidecar else None
