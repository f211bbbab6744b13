"""Trusted proxies: whose word counts on where a request comes from, and what it says. Pure.

A proxy adds the address it was reached from at the end of X-Forwarded-For, so what stands to the left of the last
address that is no trusted proxy's is the sender's own invention. X-Forwarded-Proto says whether the way to the proxy
was encrypted. Both are the proxies' habit rather than a standard (RFC 7239 section 7.4).
"""

import ipaddress
from collections.abc import Iterable, Sequence
from typing import TypeAlias

from protocol.errors import UsageError

_Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
_Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network


class TrustedProxies:
    """The addresses and networks in the setting `trusted_proxies`. False when there are none."""

    def __init__(self, names: Iterable[str]) -> None:
        """Raises UsageError for what is no address and no network."""
        self._networks = tuple(_parse_network(name) for name in names)

    def __bool__(self) -> bool:
        return bool(self._networks)

    def trusts(self, address: str) -> bool:
        """Whether `address` is that of a trusted proxy."""
        parsed = _parse_address(address)
        return parsed is not None and self._holds(parsed)

    def client_of(self, peer: str, forwarded_for: Sequence[str]) -> str:
        """Return the address a request comes from that the trusted proxy `peer` passed on.

        `forwarded_for` are the values of all X-Forwarded-For headers, in order. What is no address ends the list: the
        proxy that wrote it is the last that is known.
        """
        client = peer
        for text in reversed(",".join(forwarded_for).split(",")):
            parsed = _parse_address(text)
            if parsed is None:
                break
            client = str(parsed)
            if not self._holds(parsed):
                break
        return client

    def _holds(self, address: _Address) -> bool:
        return any(address in network for network in self._networks)


def came_in_the_clear(forwarded_proto: Sequence[str]) -> bool:
    """Whether the proxy says that the way to it was not encrypted; the last word is the nearest proxy's own."""
    last = ",".join(forwarded_proto).split(",")[-1].strip().lower()
    return last not in ("", "https", "wss")


def _parse_network(name: str) -> _Network:
    try:
        network = ipaddress.ip_network(name.strip())
    except ValueError as error:
        raise UsageError(
            f"{name!r} in trusted_proxies is no address and no network: {error}.",
            hint="For example 127.0.0.1, ::1 or 10.0.0.0/8.",
        ) from None
    if network.prefixlen == 0:
        raise UsageError(f"{name!r} in trusted_proxies would trust everybody.", hint="Name the proxies' own addresses.")
    return network


def _parse_address(text: str) -> _Address | None:
    """Return the address in "A", "A:PORT", "[A]" or "[A]:PORT", an IPv4 one that is wrapped in IPv6 as itself."""
    text = text.strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        parsed = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    return mapped or parsed
