"""Reception: from an accepted TCP connection to a WebSocket. TLS, room, trusted proxies, web pages turned away.

A connection takes its room in the doorway before its TLS handshake begins, since that is what costs most memory (256
KiB of buffer each, CPython's `sslproto.py`); behind a trusted proxy, which sends whole requests only, when its request
has come and says who asks. It gives the room back when it has logged in, or ends.
"""

import asyncio
import logging
import os
import random
import socket
import ssl
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Any, Final, cast

from websockets.asyncio.server import ServerConnection
from websockets.http11 import Request, Response

from hub.config import Settings
from hub.doorway import Doorway
from hub.paced import PacedConnection
from hub.proxies import TrustedProxies, came_in_the_clear
from protocol import limits
from protocol.errors import UnavailableError
from protocol.liveness import Liveness

log: Final = logging.getLogger("lockstep.hub")

CLOSE_SECONDS: Final = 2.0
_BACKLOG: Final = 4_096
_LINES_PER_SECOND: Final = 50  # a flood must not fill the log's disk
_WELCOME: Final = (
    "This is a Lockstep hub. It speaks with terminals:\n\n    lockstep-terminal login ADDRESS --account NAME\n\n"
    "with this address, wss:// in place of https:// (or ws:// in place of http://).\n"
)
# Nothing of the request is repeated in it: whoever has the code may not make this page say anything.
_PAIR: Final = (
    "A device waits to be approved. On one that is logged in already, run:\n\n    lockstep-terminal approve CODE\n\n"
    "with the code that the new device shows, or the address of this page. It shows what asks: compare it with the\n"
    "device before you, and turn away what you do not know.\n"
)
_WEB_PAGE: Final = "This hub speaks with Lockstep terminals, not with web pages: a request with an Origin is refused.\n"
_NOT_PROXY: Final = (
    "This hub is reached through its proxy only. Whoever runs it can list further proxies in trusted_proxies.\n"
)
_IN_THE_CLEAR: Final = "The way to this hub's proxy was not encrypted. Use wss:// and the proxy's TLS port.\n"


class Reception:
    """What the connections of one hub share before they have logged in."""

    def __init__(self, settings: Settings) -> None:
        """Raises UnavailableError for TLS files that cannot be used, UsageError for proxies that are none."""
        self._settings = settings
        self._proxies = TrustedProxies(settings.trusted_proxies)
        self._context = tls_context(settings)
        self._doorway = Doorway(settings.sockets_before_login)
        self._connections: dict[int, TerminalConnection] = {}
        self._turned_away: set[int] = set()
        self._next_number = 0
        self._told_since = 0.0
        self._told = 0

    @property
    def count(self) -> int:
        """How many connections have not logged in."""
        return self._doorway.count

    @property
    def context(self) -> ssl.SSLContext | None:
        """What the next connection's TLS is made with, or None without TLS."""
        return self._context

    def reload(self) -> None:
        """Read the TLS files again, for connections from now on. Raises UnavailableError and keeps what it had."""
        if self._context is not None:
            self._context = tls_context(self._settings)
            log.info("the TLS certificate is read again from %s", self._settings.tls_cert)

    def accept(self, connection: "TerminalConnection") -> bool:
        """Take a new connection in; return False when it is to be dropped without a word."""
        connection.number = self._next_number
        self._next_number += 1
        if self._proxies.trusts(connection.client_host) or self._let_in(connection):
            return True
        # Told so when its request has come; a word before that would be lost with the connection (RFC 1122, 4.2.2.13).
        if self._context is not None or len(self._turned_away) >= self._settings.sockets_before_login:
            return False
        self._turned_away.add(connection.number)
        return True

    def leave(self, connection: "TerminalConnection") -> None:
        """The connection has logged in, waits for something else than a login, or is gone."""
        self._doorway.leave(connection.number)
        self._turned_away.discard(connection.number)
        self._connections.pop(connection.number, None)

    def tell(self, line: str, now: float) -> None:
        """Log a line that anybody can cause: of many in one second only so many, and how many more."""
        if now - self._told_since >= 1.0:
            if self._told > _LINES_PER_SECOND:
                log.info("%d more lines like these were left out", self._told - _LINES_PER_SECOND)
            self._told_since, self._told = now, 0
        self._told += 1
        if self._told <= _LINES_PER_SECOND:
            log.info("%s", line)

    def close(self) -> None:
        """Drop those who have opened no WebSocket yet: the hub stops."""
        for connection in list(self._connections.values()):
            if not connection.is_served:
                connection.drop("the hub is stopping")

    def begin_work(self, connection: "TerminalConnection") -> None:
        """The hub works on the connection's proof, which may take its time."""
        self._doorway.begin_work(connection.number)

    def end_work(self, connection: "TerminalConnection") -> None:
        """It is the terminal's turn again."""
        self.took_a_step(connection)

    def took_a_step(self, connection: "TerminalConnection") -> None:
        """The connection has come one step nearer to its login, or the hub has done its part."""
        self._doorway.took_a_step(connection.number, connection.loop.time())

    def answer(self, connection: ServerConnection, request: Request) -> Response | None:
        """Return the answer to a request that opens no WebSocket, or None for one that does."""
        assert isinstance(connection, TerminalConnection)
        refusal = self._check_way(connection, request) or _check_page(request)
        if refusal is not None:
            return _respond(connection, HTTPStatus.FORBIDDEN, refusal)
        if "Upgrade" not in request.headers:
            return _page(connection, request)
        if connection.number in self._turned_away:
            return _busy(connection)
        self.took_a_step(connection)
        is_passed_on = self._proxies.trusts(connection.peer_host)
        return None if not is_passed_on or self._let_in(connection) else _busy(connection)

    def _let_in(self, connection: "TerminalConnection") -> bool:
        arrival = self._doorway.arrive(connection.number, connection.client_host, connection.loop.time())
        if arrival.makes_way is not None:
            self._connections[arrival.makes_way].drop("made way for another")
        if arrival.is_let_in:
            self._connections[connection.number] = connection
        return arrival.is_let_in

    def _check_way(self, connection: "TerminalConnection", request: Request) -> str | None:
        """Return what is wrong with the way a request came, and note who it comes from."""
        if not self._proxies:
            return None
        if not self._proxies.trusts(connection.peer_host):
            return None if self._settings.encrypted else _NOT_PROXY
        headers = request.headers
        client = self._proxies.client_of(connection.peer_host, headers.get_all("X-Forwarded-For"))
        connection.client_host = connection.client_address = client
        in_the_clear = came_in_the_clear(headers.get_all("X-Forwarded-Proto"))
        return _IN_THE_CLEAR if in_the_clear and not self._settings.insecure_lan else None


class TerminalConnection(PacedConnection):
    """A websockets connection that begins TLS itself, knows who is behind a proxy, and when any byte was heard.

    `client_host` is the address it comes from, `client_address` the same as people see it, with the port if known.
    """

    def __init__(self, *args: Any, reception: Reception, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.liveness = Liveness(self.loop.time())
        self.is_served = False
        self.number = -1
        self.peer_host = self.client_host = "?"
        self.client_address = "?"
        self._reception = reception
        self._raw: asyncio.Transport | None = None
        self._opening: asyncio.Task[None] | None = None
        self._is_made = False
        self._early: list[bytes] = []  # what TLS brought before `connection_made` could be told of it
        self._is_lost = False
        self._why = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The TCP connection is there; TLS is still to come."""
        self._raw = cast(asyncio.Transport, transport)
        peer = transport.get_extra_info("peername")
        if peer:
            self.peer_host = self.client_host = peer[0]
            self.client_address = f"{peer[0]}:{peer[1]}"
        if not self._reception.accept(self):
            self.drop("too many logins at once")
        elif self._reception.context is None:
            self._open(transport)
        else:
            self._opening = self.loop.create_task(self._begin_tls(self._raw, self._reception.context))

    def data_received(self, data: bytes) -> None:
        """Take bytes from the transport."""
        self.liveness.heard(self.loop.time())
        if self._is_made:
            super().data_received(data)
        else:
            self._early.append(data)

    def eof_received(self) -> None:
        """Nothing more comes."""
        if self._is_made:
            super().eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        """The transport is closed. Half a handshake, which the library passes over in silence, gets its line here."""
        if self._is_lost:  # an attempt at TLS that failed may tell of it twice
            return
        self._is_lost = True
        self._reception.leave(self)
        if not self.is_served:
            answer = f" (HTTP {self.response.status_code})" if self._is_made and self.response else self._why
            self._reception.tell(f"{self.client_address} opened no WebSocket{answer}", self.loop.time())
        if self._is_made:
            super().connection_lost(exc)
        # What the library keeps leads back to the connection. Python looks for such circles seldom here (`hub.cli`):
        # a look holds all terminals up, and a flood would pile up a gigabyte of them. So none is left.
        self.protocol.parser.close()
        self.protocol.handshake_exc = self.protocol.parser_exc = None
        vars(self._raw).pop("_read_ready_cb", None)  # asyncio's own (CPython, `selector_events.py`)

    def tell(self, line: str) -> None:
        """Log a line that whoever is at the other end can cause as often as they like."""
        self._reception.tell(line, self.loop.time())

    def leave_doorway(self) -> None:
        """Count no more as one that has not logged in."""
        self._reception.leave(self)

    def begin_work(self) -> None:
        """The hub works on what the terminal said; it makes way for nobody meanwhile."""
        self._reception.begin_work(self)

    def end_work(self) -> None:
        """The hub has answered."""
        self._reception.end_work(self)

    def took_a_step(self) -> None:
        """What was due was said."""
        self._reception.took_a_step(self)

    def drop(self, why: str) -> None:
        """Drop the connection without a word."""
        self._why = f" ({why})"
        if self.is_served:
            self._reception.tell(f"{self.client_address} is dropped before its login: {why}", self.loop.time())
        assert self._raw is not None
        self._raw.abort()

    def _open(self, transport: asyncio.BaseTransport) -> None:
        self._is_made = True
        super().connection_made(transport)
        early, self._early = self._early, []
        for data in early:
            super().data_received(data)

    async def _begin_tls(self, transport: asyncio.Transport, context: ssl.SSLContext) -> None:
        encrypted = None
        try:
            encrypted = await self.loop.start_tls(
                transport, self, context, server_side=True,
                ssl_handshake_timeout=limits.OPENING_SECONDS, ssl_shutdown_timeout=CLOSE_SECONDS,
            )  # fmt: skip
        except OSError as error:  # ssl.SSLError and TimeoutError among them
            self._why = self._why or f" (TLS: {getattr(error, 'reason', None) or error})"
            error.__traceback__ = (
                None  # a circle: it leads through `start_tls`, which holds what it waited for, and that it
            )
        if encrypted is not None and not self._is_lost:
            self.took_a_step()
            self._open(encrypted)
            # With a limit of 0 asyncio's TLS (CPython 3.11, `sslproto._control_app_writing`) takes "no more than 0
            # waits" for "full" and lets nothing be sent until something has been read. So 1, and what waits below it 0.
            encrypted.set_write_buffer_limits(1)
            transport.set_write_buffer_limits(0)
        else:  # of a connection that ends in the middle of its handshake nobody else tells
            transport.abort()
            self.connection_lost(None)


def let_wait(sockets: Iterable[socket.socket]) -> None:
    """Have the kernel keep more connections waiting than the loop accepts at a time: asyncio has one number for both.

    `listen` may be called again to change it (listen(2) as Linux has it, `inet_listen`).
    """
    for one in sockets:
        with socket.socket(fileno=os.dup(one.fileno())) as same:
            same.listen(_BACKLOG)


def tls_context(settings: Settings) -> ssl.SSLContext | None:
    """Return what TLS is served with, None without a certificate. Raises UnavailableError for files of no use."""
    if not settings.encrypted:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        # With a key that has a passphrase the library would ask the screen for it, and wait.
        context.load_cert_chain(settings.tls_cert, settings.tls_key, password=lambda: b"")
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise UnavailableError(f"The TLS certificate or key cannot be used: {error}.") from None
    return context


def _check_page(request: Request) -> str | None:
    """Return a refusal for a request that a web page makes: browsers name the page's Origin, terminals have none.

    Of a WebSocket they say so in Sec-Fetch-Mode as well (Fetch Standard, WHATWG).
    """
    is_pages = "Origin" in request.headers or _header(request.headers, "Sec-Fetch-Mode") == "websocket"
    return _WEB_PAGE if is_pages else None


def _header(headers: Mapping[str, str], name: str) -> str:
    """Return a header's value in lower case, "" when there is none or more than one."""
    try:
        return headers.get(name, "").lower()
    except LookupError:  # several
        return ""


def _page(connection: ServerConnection, request: Request) -> Response:
    """Answer a person's browser."""
    if request.path == "/":
        return _respond(connection, HTTPStatus.OK, _WELCOME)
    if request.path.startswith("/pair/"):  # what a new device shows as a QR code
        return _respond(connection, HTTPStatus.OK, _PAIR)
    return _respond(connection, HTTPStatus.NOT_FOUND, "There is nothing here.\n")


def _busy(connection: ServerConnection) -> Response:
    response = _respond(connection, HTTPStatus.SERVICE_UNAVAILABLE, "busy: too many logins at once\n")
    # At random, so that those who came together do not come again together.
    seconds = random.uniform(limits.RETRY_AFTER_SMALLEST_SECONDS, limits.RETRY_AFTER_LARGEST_SECONDS)  # noqa: S311
    response.headers["Retry-After"] = str(round(seconds))
    return response


def _respond(connection: ServerConnection, status: HTTPStatus, text: str) -> Response:
    """Answer in plain text that no browser takes for anything else, frames or keeps."""
    response = connection.respond(status, text)
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["Content-Security-Policy"] = "default-src 'none'; frame-ancestors 'none'"
    response.headers["Cache-Control"] = "no-store"
    return response
