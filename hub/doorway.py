"""Doorway: room for so many connections that have not logged in, and who makes way when it is full. Pure.

A real login keeps the hub waiting for one round trip at each step; a drip-fed handshake for as long as it may. So who
has kept the hub waiting for longer than such a step takes makes way for a newcomer: first of those whose address holds
most, then who has waited longest. Whoever is let in has that long for each step, also beside others of its own address.
Where nobody has waited so long, an address that holds more than others gives one up to an address that holds fewer;
from its own a newcomer is turned away, and comes again. While the hub itself works on a proof nobody is kept waiting.

Of IPv6 the first 64 bits count as one address, which is what one customer has.
"""

import ipaddress
import itertools
from collections import Counter
from typing import Final

from msgspec import Struct

PATIENCE_SECONDS: Final = 0.3  # for one step: a message there and its answer back
_LOOKED_AT: Final = 32  # of those who have waited longest, so that a flood costs little for each of its connections
_NETWORK_BITS: Final = 64


class Arrival(Struct, frozen=True):
    """Whether a newcomer is let in, and the connection that makes way for it, if one has to."""

    is_let_in: bool
    makes_way: int | None = None


class Doorway:
    """Who is in the doorway. Connections are numbers, times seconds of one monotonic clock."""

    def __init__(self, room: int) -> None:
        self._room = room
        self._share_of: dict[int, str] = {}
        self._held: Counter[str] = Counter()  # connections of each share
        self._waiting: dict[int, float] = {}  # since when each keeps the hub waiting, the longest first

    @property
    def count(self) -> int:
        """How many are in it."""
        return len(self._share_of)

    def arrive(self, number: int, address: str, now: float) -> Arrival:
        """Let a connection in if there is room, or somebody who makes way."""
        share = share_name(address)
        makes_way = None
        if self.count >= self._room:
            makes_way = self._who_makes_way(share, now)
            if makes_way is None:
                return Arrival(is_let_in=False)
            self.leave(makes_way)
        self._share_of[number] = share
        self._held[share] += 1
        self._waiting[number] = now
        return Arrival(is_let_in=True, makes_way=makes_way)

    def begin_work(self, number: int) -> None:
        """The hub works on what this connection said: it keeps nobody waiting."""
        self._waiting.pop(number, None)

    def took_a_step(self, number: int, now: float) -> None:
        """It is a connection's turn, and its clock begins anew: it said what was due, or the hub has done its work."""
        if number in self._share_of:
            self._waiting.pop(number, None)
            self._waiting[number] = now

    def leave(self, number: int) -> None:
        """Let go of a connection that has logged in or is gone; nothing happens when it is in no doorway."""
        share = self._share_of.pop(number, None)
        if share is None:
            return
        self._waiting.pop(number, None)
        self._held[share] -= 1
        if not self._held[share]:
            del self._held[share]

    def _who_makes_way(self, newcomer: str, now: float) -> int | None:
        longest = itertools.islice(self._waiting.items(), _LOOKED_AT)
        slow = [number for number, since in longest if now - since >= PATIENCE_SECONDS]
        if slow:
            return max(slow, key=lambda number: self._held[self._share_of[number]])  # of several the first
        fullest = max(self._held, key=self._held.__getitem__)
        if self._held[fullest] <= self._held[newcomer] + 1:
            return None
        return next((number for number in self._waiting if self._share_of[number] == fullest), None)


def share_name(address: str) -> str:
    """Return what `address` is counted under: itself, or of IPv6 the network of its first 64 bits."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.ip_network((parsed, _NETWORK_BITS), strict=False))
    return str(parsed)
