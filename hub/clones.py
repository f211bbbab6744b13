"""The clone alarm: tells from its logins that one key is in two places. Pure: time is an argument.

A terminal that is replaced by a newer login ends and does not come back by itself (close 4000), so two copies of a key
that both run show in one of two ways, within an hour:

- a run (random, the same for all logins of one process) that was replaced by another comes back;
- where something starts the copies again and again, logins come from A, B and A, each another run in place of a socket
  that was there still.

Neither happens to a device that roams, sleeps or restarts: its socket is gone, or its run is the same.
"""

from collections import OrderedDict, deque
from itertools import pairwise
from typing import Final

from msgspec import Struct

WINDOW_SECONDS: Final = 3_600.0
LOGINS_REMEMBERED: Final = 8  # of one terminal
TERMINALS_REMEMBERED: Final = 16_384


class _Login(Struct, frozen=True):
    run: bytes
    host: str
    replaced: bool  # a socket that was there
    at: float


class Clones:
    """The last logins of terminals. `host` is an address without its port; `run` is empty where it is not told."""

    def __init__(self) -> None:
        self._logins: OrderedDict[str, deque[_Login]] = OrderedDict()

    def login(self, terminal: str, run: bytes, host: str, *, replaced: bool, now: float) -> str:
        """Count a login in; return from where the other copy came if there are two, or nothing."""
        logins = self._logins.setdefault(terminal, deque(maxlen=LOGINS_REMEMBERED))
        self._logins.move_to_end(terminal)
        while logins and logins[0].at <= now - WINDOW_SECONDS:
            logins.popleft()
        logins.append(_Login(run, host, replaced, now))
        if len(self._logins) > TERMINALS_REMEMBERED:
            self._logins.popitem(last=False)
        return _other_of_run(list(logins)) or _other_of_hosts(list(logins))

    def forget(self, terminal: str) -> None:
        """Begin anew with a terminal: somebody has looked into it."""
        self._logins.pop(terminal, None)


def _other_of_run(logins: list[_Login]) -> str:
    """Return who replaced the run that comes back now."""
    last = logins[-1]
    for before, after in pairwise(logins[:-1]):
        if last.run and before.run == last.run != after.run and after.replaced:
            return after.host
    return ""


def _other_of_hosts(logins: list[_Login]) -> str:
    """Return the host between two logins from another, all of them other runs in place of one that was there."""
    if len(logins) < 3:
        return ""
    first, second, third = logins[-3:]
    if not (second.replaced and third.replaced) or first.host != third.host or first.host == second.host:
        return ""
    return second.host if first.run != second.run != third.run else ""
