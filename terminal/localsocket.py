"""The local socket: how other commands on this device speak through the one process that has the connection.

It is a WebSocket over a Unix socket (0600) in the state folder, with the hub's own messages: the holder says `welcome`,
passes requests on under ids of its own, and relays what comes unasked. Local requests it answers itself. Whoever can
open the folder is this terminal, so there is no login.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final

from msgspec import structs
from websockets.asyncio.client import unix_connect
from websockets.asyncio.server import ServerConnection, unix_serve

from protocol import limits, messages
from protocol.errors import LockstepError, ProtocolError, UnavailableError
from protocol.messages import AnyMessage, LocalRequest, Message, Request
from terminal.link import CLOSE_SECONDS, Link, unix_path
from terminal.state import StateFolder

LOCAL_CLIENTS: Final = 32


class LocalSocket:
    """The local clients that share a connection. `welcome` greets each; `ask` passes a request on to the hub.

    `answer` answers a local request.
    """

    def __init__(
        self,
        folder: StateFolder,
        welcome: Callable[[], messages.Welcome],
        ask: Callable[[Request], Awaitable[list[AnyMessage]]],
        answer: Callable[[LocalRequest], Awaitable[AnyMessage]],
    ) -> None:
        self._folder = folder
        self._welcome = welcome
        self._ask = ask
        self._answer_here = answer
        self._clients: dict[Link, set[asyncio.Task[None]]] = {}

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[None]:
        """Serve until the block is left. The caller holds the lock. Raises UsageError where there can be no socket."""
        path = self._folder.agent_socket
        path.unlink(missing_ok=True)  # of a process that was killed: this one holds the lock
        with unix_path(path) as name:
            server = await unix_serve(
                self._serve_one,
                name,
                compression=None,
                max_size=limits.MESSAGE_BYTES,
                max_queue=limits.INBOUND_MESSAGES,
                ping_interval=None,
                open_timeout=limits.OPENING_SECONDS,
                close_timeout=CLOSE_SECONDS,
                server_header=None,
            )
        path.chmod(0o600)
        try:
            yield
        finally:
            server.close()
            await server.wait_closed()
            path.unlink(missing_ok=True)

    def put(self, message: AnyMessage) -> None:
        """Relay what the hub said unasked; a local client that does not read is cut by its own bounded queue."""
        for link in self._clients:
            link.say(message)

    def end(self, error: LockstepError) -> None:
        """The hub is away; whoever asks is told so by `ask`."""

    async def _serve_one(self, socket: ServerConnection) -> None:
        if len(self._clients) >= LOCAL_CLIENTS:
            await socket.close(1013, "too many local clients")
            return
        tasks: set[asyncio.Task[None]] = set()

        def heard(message: AnyMessage) -> None:
            self._pass_on(link, message, tasks)

        link = Link(socket, "a local client", heard=heard)
        self._clients[link] = tasks
        link.say(self._welcome())
        try:
            await link.run()
        finally:
            del self._clients[link]
            for task in tasks:
                task.cancel()

    def _pass_on(self, link: Link, message: AnyMessage, tasks: set[asyncio.Task[None]]) -> None:
        if not isinstance(message, Request | LocalRequest):
            raise ProtocolError(f"A local client may not say {messages.kind_of(message)!r}.", code="wrong-order")
        if len(tasks) >= limits.REQUESTS_UNDER_WAY:
            busy = UnavailableError("Too many requests are under way.", hint="Wait for some answers.", code="busy")
            link.say(_error_message(busy, message.id))
            return
        task = asyncio.create_task(self._answer(link.say, message))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    async def _answer(self, say: Callable[[Message], None], request: Request | LocalRequest) -> None:
        try:
            if isinstance(request, LocalRequest):
                pages = [await self._answer_here(request)]
            else:
                pages = await self._ask(request)
        except LockstepError as error:
            say(_error_message(error, request.id))
            return
        for page in pages:
            say(structs.replace(page, re=request.id))


@asynccontextmanager
async def local_link(folder: StateFolder) -> AsyncIterator[Link]:
    """Speak through the process that has the connection. Raises OSError and WebSocketException where none serves."""
    with unix_path(folder.agent_socket) as path:
        socket = await unix_connect(
            path,
            compression=None,
            max_size=limits.MESSAGE_BYTES,
            max_queue=limits.INBOUND_MESSAGES,
            ping_interval=None,
            open_timeout=limits.OPENING_SECONDS,
            close_timeout=CLOSE_SECONDS,
        )
    link = Link(socket, "the agent of this terminal")
    running = asyncio.create_task(link.run())
    try:
        yield link
    finally:
        await link.close()
        await asyncio.wait([running])


def _error_message(error: LockstepError, number: int) -> messages.Error:
    return messages.Error(
        code=error.code,
        message=error.message[: limits.TEXT_CHARACTERS],
        hint=error.hint[: limits.TEXT_CHARACTERS],
        near=tuple(getattr(error, "near", ())),
        re=number,
    )
