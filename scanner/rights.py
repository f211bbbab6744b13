"""Giving up rights: what a process that reads foreign files does before the first byte of them.

Afterwards it can open no file and no socket, start no process, write to no file, and has bounded memory and processor
time; where the system permits it stands in a network of its own that leads nowhere. What remains is arithmetic on bytes
and the answer. It imports everything before, because afterwards it cannot.

What this is not: a virtual machine. Code that took over the interpreter could still signal, and where the system lets
it trace, processes of the user it runs as, and rename, empty or remove that user's files; started by root that is
nobody, otherwise the user that started it.
"""

import codecs
import ctypes
import encodings
import os
import pwd
import resource
import signal
import sys
from contextlib import suppress
from typing import Final

_KILLED_LATER_SECONDS: Final = 1  # of processor time, where the first signal was not enough
_LIMITS: Final = (
    (resource.RLIMIT_CORE, 0, 0),
    (resource.RLIMIT_FSIZE, 0, 0),
    (resource.RLIMIT_NOFILE, 0, 0),  # a socket, a pipe and a folder are files too
    (resource.RLIMIT_NPROC, 0, 0),
)
# Python loads a codec when it is first asked for, which is too late here: those the readers use, and `zipfile`.
_CODECS: Final = ("ascii", "cp437", "cp1252", "latin-1", "utf-8-sig", "utf-16", "utf-16-be", "utf-16-le")
_SET_SIGNAL_OF_PARENTS_DEATH: Final = 1  # prctl(2): a parent that is killed takes its workers with it
_SET_NO_NEW_PRIVILEGES: Final = 38  # prctl(2): from here on no program started gains rights
_NEW_NETWORK: Final = 0x40000000  # unshare(2), CLONE_NEWNET
_NOBODY: Final = 65_534


def give_up_rights(*, memory_bytes: int, processor_seconds: int) -> None:
    """Set every limit, the hard ones too, leave the network, and become nobody where this process is root."""
    for codec in _CODECS:
        codecs.lookup(codec)
    encodings.__path__.clear()  # any other is unknown from here on, not a file that cannot be opened
    _limit_memory(memory_bytes)
    nobody = _nobody()
    _leave_network()
    _limit(resource.RLIMIT_CPU, processor_seconds, processor_seconds + _KILLED_LATER_SECONDS)
    for which, soft, hard in _LIMITS:
        _limit(which, soft, hard)
    if os.geteuid() == 0:
        with suppress(PermissionError):  # a container's root without the right to be someone else has few others
            os.setgroups([])
            os.setgid(nobody[1])
            os.setuid(nobody[0])
    if sys.platform == "linux":  # last, for who becomes someone else is no longer told of the parent's end
        control = ctypes.CDLL(None).prctl
        control(_SET_SIGNAL_OF_PARENTS_DEATH, signal.SIGKILL, 0, 0, 0)
        control(_SET_NO_NEW_PRIVILEGES, 1, 0, 0, 0)


def _leave_network() -> None:
    """Go where there is no network. Only root may; without it the missing descriptors have to do."""
    if sys.platform == "linux":
        ctypes.CDLL(None).unshare(_NEW_NETWORK)


def _limit_memory(memory_bytes: int) -> None:
    """Bound the address space. macOS knows the limit and may refuse it; there the time limits have to do."""
    try:
        _limit(resource.RLIMIT_AS, memory_bytes, memory_bytes)
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
