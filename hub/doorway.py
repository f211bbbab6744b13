"""Doorway: room for so many connections that have not logged in, and who makes way when it is full. Pure.

Each connection counts for the address it came from; of IPv6 its first 64 bits count, which is what one customer has.
When the room is full, the address that holds most of it gives up the connection that has kept the hub waiting longest.
Where all hold about the same, that one has to have kept it waiting for a second, so that whoever is let in has that
long; until then a newcomer is turned away and comes again. A real login keeps the hub waiting for a few milliseconds,
and while the hub works on a proof it keeps nobody waiting, so a drip-fed handshake makes way for it and not the other
way round, also where both come from one address.
"""

import ipaddress
from typing import Final

from msgspec import Struct

PATIENCE_SECONDS: Final = 1.0
_NETWORK_BITS: Final = 64


class Arrival(Struct, frozen=True):
    """Whether a newcomer is let in, and the connection that makes way for it, if one has to."""

    is_let_in: bool
    makes_way: int | None = None


class Doorway:
    """Who is in the doorway. Connections are numbers, times seconds of one monotonic clock."""

    def __init__(self, room: int) -> None:
        self._room = room
        self._shares: dict[str, dict[int, float]] = {}  # of each address: since when each keeps the hub waiting
        self._share_of: dict[int, str] = {}
        self._at_work: set[int] = set()

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
        self._shares.setdefault(share, {})[number] = now
        return Arrival(is_let_in=True, makes_way=makes_way)

    def begin_work(self, number: int) -> None:
        """The hub works on what this connection said: it keeps nobody waiting."""
        if number in self._share_of:
            self._at_work.add(number)

    def end_work(self, number: int, now: float) -> None:
        """It is the other side's turn again."""
        if number in self._at_work:
            self._at_work.remove(number)
            self._shares[self._share_of[number]][number] = now

    def leave(self, number: int) -> None:
        """Let go of a connection that has logged in or is gone; nothing happens when it is in no doorway."""
        share = self._share_of.pop(number, None)
        if share is None:
            return
        self._at_work.discard(number)
        del self._shares[share][number]
        if not self._shares[share]:
            del self._shares[share]

    def _who_makes_way(self, newcomer: str, now: float) -> int | None:
        idle = {share: self._longest_waiting(share) for share in self._shares}
        counts = {share: len(self._shares[share]) for share, longest in idle.items() if longest}
        if not counts:
            return None
        # Of addresses that hold the same the one whose connection has waited longest.
        fullest = min(counts, key=lambda share: (-counts[share], (idle[share] or (0.0, 0))[0]))
        since, number = idle[fullest] or (now, 0)
        holds_more = counts[fullest] > len(self._shares.get(newcomer, ())) + 1
        return number if holds_more or now - since >= PATIENCE_SECONDS else None

    def _longest_waiting(self, share: str) -> tuple[float, int] | None:
        waiting = [(since, number) for number, since in self._shares[share].items() if number not in self._at_work]
        return min(waiting, default=None)


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
