"""Guesses: how many passwords are evaluated for one account, whoever asks, and for one address. Pure.

A token bucket for each account's name, known or not: 5 at once, then one in 12 minutes, so at most 10 in any hour. One
for each address, larger, since many people may share it: it slows who tries many names.

A name has its bucket by a keyed hash. So the memory is bounded, names nobody has cost no more than others, and no
flood of names makes a bucket forgotten. Two names with the same bucket share it.
"""

import hashlib
import ipaddress
import secrets
from typing import Final

ACCOUNT_AT_ONCE: Final = 5
ACCOUNT_EVERY_SECONDS: Final = 720.0
ADDRESS_AT_ONCE: Final = 20
ADDRESS_EVERY_SECONDS: Final = 180.0
_BUCKETS: Final = 65_536
_IPV6_PREFIX_BITS: Final = 64  # what one line of a provider has as a rule (RFC 6177)


class _Buckets:
    """A bounded number of token buckets, each kept as the time at which it is full again; a full one is not kept."""

    def __init__(self, at_once: int, every_seconds: float) -> None:
        self._at_once = at_once
        self._every_seconds = every_seconds
        self._key = secrets.token_bytes(32)
        self._full_at: dict[int, float] = {}

    def wait(self, name: str, now: float) -> float:
        """Return in how many seconds there is a token, 0.0 for now."""
        full_in = self._full_at.get(self._slot(name), now) - now
        return max(0.0, full_in - (self._at_once - 1) * self._every_seconds)

    def take(self, name: str, now: float) -> None:
        """Take a token."""
        slot = self._slot(name)
        self._full_at[slot] = max(self._full_at.get(slot, now), now) + self._every_seconds

    def give_back(self, name: str, now: float) -> None:
        """Put one back."""
        slot = self._slot(name)
        full_at = self._full_at.pop(slot, now) - self._every_seconds
        if full_at > now:
            self._full_at[slot] = full_at

    def _slot(self, name: str) -> int:
        digest = hashlib.blake2b(name.encode(), key=self._key, digest_size=8).digest()
        return int.from_bytes(digest, "big") % _BUCKETS


class Guesses:
    """The guesses that this hub has evaluated since it started."""

    def __init__(self) -> None:
        self._accounts = _Buckets(ACCOUNT_AT_ONCE, ACCOUNT_EVERY_SECONDS)
        self._addresses = _Buckets(ADDRESS_AT_ONCE, ADDRESS_EVERY_SECONDS)

    def take(self, account: str, host: str, now: float) -> float:
        """Take a guess; return 0.0, or in how many seconds to come again, and nothing is taken."""
        place = network_of(host)
        wait = max(self._accounts.wait(account, now), self._addresses.wait(place, now))
        if wait == 0.0:
            self._accounts.take(account, now)
            self._addresses.take(place, now)
        return wait

    def give_back(self, account: str, host: str, now: float) -> None:
        """It was right, or was not evaluated: it counts as no guess."""
        self._accounts.give_back(account, now)
        self._addresses.give_back(network_of(host), now)


def network_of(host: str) -> str:
    """Return what one asker can be told by: an IPv4 address, the network of an IPv6 address, else the text itself."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if address.version == 4:
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((address, _IPV6_PREFIX_BITS), strict=False))


def in_words(seconds: float) -> str:
    """Return a time to wait, rounded up, as people say it."""
    minutes = int(-(-seconds // 60))
    return "a minute" if minutes <= 1 else f"{minutes} minutes"
