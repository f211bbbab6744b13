"""Dialling: a hub's address -> an open WebSocket, or one sentence that says why there is none."""

import asyncio
import errno
import ipaddress
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidHandshake, InvalidStatus, WebSocketException
from websockets.typing import Subprotocol

from protocol import limits
from protocol.errors import LockstepError, UnavailableError, UsageError
from terminal.link import CLOSE_SECONDS
from terminal.session import VERSION

_DEFAULT_PORTS: Final = {"ws": 80, "wss": 443}


@dataclass(frozen=True, slots=True)
class Address:
    """Where a hub is: `host` in lower case and `port` as dialled; `context` is set for wss."""

    url: str
    host: str
    port: int
    context: ssl.SSLContext | None


def parse_address(url: str, *, insecure_lan: bool = False, ca_file: Path | None = None) -> Address:
    """Return the address `url` names. Raises UsageError for one that names no hub or may not be dialled.

    `ws://` carries everything in the clear, so it is for this machine alone unless `insecure_lan` allows it.
    """
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").lower(), parts.port
        host.encode("idna")  # what looking the name up does; UnicodeError is a ValueError
    except ValueError as error:
        raise _bad_url(url, str(error)) from None
    if parts.scheme not in _DEFAULT_PORTS or not host:
        raise _bad_url(url, "it does not begin with ws:// or wss:// and a host")
    if parts.path not in ("", "/") or parts.query or parts.fragment or parts.username is not None:
        raise _bad_url(url, "it has more than a host and a port")
    if parts.scheme == "ws" and not insecure_lan and not _is_loopback(host):
        raise UsageError(
            f"{url} would send everything in the clear over the network.",
            hint="Use wss://, or --insecure-lan if you trust everyone on the way.",
            code="insecure",
        )
    if port == 0:
        raise _bad_url(url, "there is no port 0")
    return Address(
        url, host, port or _DEFAULT_PORTS[parts.scheme], _context(ca_file) if parts.scheme == "wss" else None
    )


def show_url(url: str) -> str:
    """Return `url` as people see it: one that carries everything in the clear over a network says so."""
    parts = urlsplit(url)
    in_the_clear = parts.scheme == "ws" and not _is_loopback((parts.hostname or "").lower())
    return f"{url} (not encrypted)" if in_the_clear else url


class HubSocket(ClientConnection):
    """A WebSocket that knows when it last heard any byte, on the loop's clock."""

    heard_at = 0.0

    def data_received(self, data: bytes) -> None:
        """Note the time, also of a part of a message."""
        self.heard_at = self.loop.time()
        super().data_received(data)


Socket = TypeVar("Socket", bound=HubSocket)


class _Connect(connect):
    """Follows no redirect: what is signed at login names the host that was dialled."""

    def process_redirect(self, exc: Exception) -> Exception | str:
        return exc


async def dial(address: Address, socket_class: type[Socket] = HubSocket) -> Socket:  # type: ignore[assignment]
    """Open a WebSocket to the hub at `address` within 5 s. Raises UnavailableError naming the URL and the reason."""
    try:
        opened = await _Connect(address.url, **_options(address), create_connection=socket_class)
    except (OSError, WebSocketException, EOFError) as error:
        raise _dial_error(address.url, error) from None
    assert isinstance(opened, socket_class)
    if opened.subprotocol != VERSION:
        opened.transport.abort()
        raise _not_a_hub(address.url)
    return opened


def _options(address: Address) -> dict[str, Any]:
    options: dict[str, Any] = {
        "subprotocols": [Subprotocol(VERSION)],
        "compression": None,
        "max_size": limits.MESSAGE_BYTES,
        "max_queue": limits.INBOUND_MESSAGES,
        "ping_interval": None,
        "open_timeout": limits.OPENING_SECONDS,
        "close_timeout": CLOSE_SECONDS,
        "user_agent_header": None,
        "proxy": None,
    }
    return options | ({"ssl": address.context} if address.context else {})


def _context(ca_file: Path | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_file)
    except (OSError, ssl.SSLError) as error:
        raise UsageError(f"The certificate file {ca_file} cannot be used: {error.strerror or error}.") from None


def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):  # RFC 6761 section 6.3
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _bad_url(url: str, why: str) -> UsageError:
    return UsageError(f"{url!r} is not a hub's address: {why}.", hint="For example: wss://hub.example:8765")


def _not_a_hub(url: str) -> UnavailableError:
    return UnavailableError(
        f"What answers at {url} is not a Lockstep hub.", hint="Check the address and the port.", code="not-a-hub"
    )


def _dial_error(url: str, error: Exception) -> LockstepError:
    if isinstance(error, InvalidStatus) and error.response.status_code == 503:
        return UnavailableError(
            f"The hub at {url} is busy.",
            hint="Try again in a few seconds.",
            code="busy",
            retry_after_seconds=_retry_after_seconds(error.response.headers.get("Retry-After", "")),
        )
    if isinstance(error, (InvalidHandshake, WebSocketException, EOFError)):
        return _not_a_hub(url)
    if isinstance(error, ssl.SSLCertVerificationError):
        return UnavailableError(
            f"The certificate of {url} is not trusted: {error.verify_message}.",
            hint="Name the authority that signed it with --ca-file.",
            code="untrusted-certificate",
        )
    return UnavailableError(f"{url} cannot be reached: {_reason(error)}.", hint="Is the hub running, and reachable?")


def _retry_after_seconds(text: str) -> float:
    """What a Retry-After header asks for (RFC 9110 section 10.2.3), a minute at most; 0 for a date or nonsense."""
    return min(float(text), limits.RECONNECT_LARGEST_SECONDS) if text.isascii() and text.isdigit() else 0.0


def _reason(error: Exception) -> str:
    if isinstance(error, (TimeoutError, asyncio.TimeoutError)):
        return f"no answer within {limits.OPENING_SECONDS:g} s"
    if isinstance(error, socket.gaierror):
        return "no machine of that name is known"
    if isinstance(error, ssl.SSLError):
        return f"it does not speak TLS as expected ({error.reason or error})"
    if getattr(error, "errno", None) == errno.ECONNREFUSED or f"[Errno {errno.ECONNREFUSED}]" in str(error):
        return "the connection was refused"
    return str(getattr(error, "strerror", None) or error) or "the connection was closed while it was being opened"
