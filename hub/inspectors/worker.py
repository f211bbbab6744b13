"""The process in which a foreign installer is read: rights given up first, then the reader, then one JSON document.

`hub/inspection.py` starts it with the file as standard input. By the time the first byte is read it can open no file
and no socket, start no process, write to no file, and has bounded memory and processor time. What remains is arithmetic
on bytes and the answer. It imports everything before the limits hold, because afterwards it cannot.

What this is not: a virtual machine. Code that took over the interpreter could still signal, and where the system lets
it trace, processes of the user it runs as, and rename, empty or remove that user's files; started by root that is
nobody, otherwise the hub's own user.
"""

import codecs
import ctypes
import encodings
import os
import pwd
import resource
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import BinaryIO, Final, NoReturn

import msgspec
from msgspec import Struct

from hub.inspectors import Inspected, read_installer
from hub.inspectors.sidecar import SIDECAR_BYTES
from protocol.errors import LockstepError
from protocol.limits import MIB

MEMORY_BYTES: Final = 512 * MIB
PROCESSOR_SECONDS: Final = 2
KILLED_AFTER_PROCESSOR_SECONDS: Final = 3  # where the first signal was not enough

_LIMITS: Final = (
    (resource.RLIMIT_CPU, PROCESSOR_SECONDS, KILLED_AFTER_PROCESSOR_SECONDS),
    (resource.RLIMIT_CORE, 0, 0),
    (resource.RLIMIT_FSIZE, 0, 0),
    (resource.RLIMIT_NOFILE, 0, 0),  # a socket, a pipe and a folder are files too
    (resource.RLIMIT_NPROC, 0, 0),
)
# Python loads a codec when it is first asked for, which is too late here: those the readers use, and `zipfile`.
_CODECS: Final = ("ascii", "cp437", "cp1252", "latin-1", "utf-8-sig", "utf-16", "utf-16-be", "utf-16-le")
_SET_SIGNAL_OF_PARENTS_DEATH: Final = 1  # prctl(2): a hub that is killed takes its workers with it
_SET_NO_NEW_PRIVILEGES: Final = 38  # prctl(2): from here on no program started gains rights
_NOBODY: Final = 65_534


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
    give_up_rights()
    try:
        return msgspec.json.encode(Answer(found=read()))
    except LockstepError as error:
        return msgspec.json.encode(Answer(message=error.message, hint=error.hint, code=error.code))


def _open(descriptor: int) -> BinaryIO:
    return os.fdopen(descriptor, "rb", closefd=False)


def _content(sidecar: str) -> bytes | None:
    return _open(int(sidecar)).read(SIDECAR_BYTES + 1) if sidecar else None


def give_up_rights() -> None:
    """Set every limit, the hard ones too, and become nobody where this process is root."""
    for codec in _CODECS:
        codecs.lookup(codec)
    encodings.__path__.clear()  # any other is unknown from here on, not a file that cannot be opened
    _limit_memory()
    nobody = _nobody()
    for which, soft, hard in _LIMITS:
        _limit(which, soft, hard)
    if os.geteuid() == 0:
        with suppress(PermissionError):  # a container's root without the right to be someone else has few others
            os.setgroups([])
            os.setgid(nobody[1])
            os.setuid(nobody[0])
    if sys.platform == "linux":  # last, for who becomes someone else is no longer told of the hub's end
        control = ctypes.CDLL(None).prctl
        control(_SET_SIGNAL_OF_PARENTS_DEATH, signal.SIGKILL, 0, 0, 0)
        control(_SET_NO_NEW_PRIVILEGES, 1, 0, 0, 0)


def _limit_memory() -> None:
    """Bound the address space. macOS knows the limit and may refuse it; there the time limits have to do."""
    try:
        _limit(resource.RLIMIT_AS, MEMORY_BYTES, MEMORY_BYTES)
    except (ValueError, OSError):
        if sys.platform != "darwin":
            raise


def _limit(which: int, soft: int, hard: int) -> None:
    _, highest = resource.getrlimit(which)
    if highest != resource.RLIM_INFINITY:
        soft, hard = min(soft, highest), min(hard, highest)
    resource.setrlimit(which, (soft, hard))


def _nobody() -> tuple[int, int]:
    try:
        entry = pwd.getpwnam("nobody")
    except KeyError:
        return _NOBODY, _NOBODY
    return entry.pw_uid, entry.pw_gid
