"""The local socket: how other commands on this device speak through the one process that has the connection.

It is a WebSocket over a Unix socket (0600) in the state folder, with the hub's own messages: the holder says `welcome`,
passes requests on under ids of its own, and relays what comes unasked. Local requests it answers itself. Whoever can
open the folder is this terminal, so there is no login.

An upload goes through part by part: what comes from the client that publishes waits in a bounded queue and goes up when
nothing else does; what the hub says of it goes to that client alone. A client that goes away gives its upload up.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final, TypeAlias

from msgspec import structs
from websockets.asyncio.client import unix_connect
from websockets.asyncio.server import ServerConnection, unix_serve

from protocol import limits, messages
from protocol.errors import LockstepError, ProtocolError, UnavailableError
from protocol.messages import AnyMessage, LocalRequest, Message, Request
from terminal.link import CLOSE_SECONDS, Link, unix_path
from terminal.state import StateFolder

LOCAL_CLIENTS: Final = 32
# Pages come all at once, frames by the Sender's window.
PARTS_WAITING: Final = limits.MANIFEST_ENTRIES // limits.MANIFEST_PAGE_ENTRIES + 1 + limits.WINDOW_LARGEST_FRAMES
Part: TypeAlias = messages.ManifestPage | messages.Chunks | messages.Withdraw


class _Relay:
    """One client's upload on its way through; `stream` takes a part up when nothing else waits.

    `tasks` holds what works on it.
    """

    def __init__(
        self, upload: str, stream: Callable[[Message], Awaitable[None]], tasks: set[asyncio.Task[None]]
    ) -> None:
        self.upload = upload
        self._stream = stream
        self._waiting: deque[Part] = deque()
        self._tasks = tasks
        self._task: asyncio.Task[None] | None = None

    def take(self, part: Part) -> None:
        """Queue a part. Raises ProtocolError when the client does not keep the window."""
        if len(self._waiting) >= PARTS_WAITING:
            raise ProtocolError("A local client sends more of an upload than was asked for.", code="too-large")
        self._waiting.append(part)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._pass_on())
            self._tasks.add(self._task)
            self._task.add_done_callback(self._tasks.discard)

    def give_up(self) -> None:
        """The client is gone: so is what waits, and the hub is told."""
        self._waiting.clear()
        self.take(messages.Withdraw(delivery=self.upload))

    def stop(self) -> None:
        """The hub has said its last word, or is away."""
        self._waiting.clear()

    async def _pass_on(self) -> None:
        while self._waiting:
            try:
                await self._stream(self._waiting.popleft())
            except LockstepError:  # the connection ended, and whoever listens to it is told why
                self._waiting.clear()


class LocalSocket:
    """The local clients that share a connection. `welcome` greets each; `ask` passes a request on to the hub.

    `answer` answers a local request; `stream` takes a part of an upload to the hub when nothing else waits.
    """

    def __init__(
        self,
        folder: StateFolder,
        welcome: Callable[[], messages.Welcome],
        ask: Callable[[Request], Awaitable[list[AnyMessage]]],
        answer: Callable[[LocalRequest], Awaitable[AnyMessage]],
        stream: Callable[[Message], Awaitable[None]],
    ) -> None:
        self._folder = folder
        self._welcome = welcome
        self._ask = ask
        self._answer_here = answer
        self._stream = stream
        self._clients: dict[Link, set[asyncio.Task[None]]] = {}
        self._relays: dict[Link, _Relay] = {}
        self._relaying: set[asyncio.Task[None]] = set()

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
            for task in self._relaying:
                task.cancel()
            path.unlink(missing_ok=True)

    def put(self, message: AnyMessage) -> None:
        """Relay what the hub said unasked; a local client that does not read is cut by its own bounded queue."""
        match message:
            case messages.Want(delivery=upload) | messages.Progress(delivery=upload):
                self._tell_uploader(upload, message)
            case messages.Refused(delivery=upload) | messages.Published(upload=upload):
                self._tell_uploader(upload, message, is_last=True)
            case _:
                for link in self._clients:
                    link.say(message)

    def end(self, error: LockstepError) -> None:
        """The hub is away; whoever asks is told so by `ask`, and whoever uploads now."""
        for relay in tuple(self._relays.values()):
            away = messages.Refused(
                delivery=relay.upload, reason="unavailable", detail=error.message[: limits.TEXT_CHARACTERS]
            )
            self._tell_uploader(relay.upload, away, is_last=True)

    def _tell_uploader(self, upload: str, message: Message, *, is_last: bool = False) -> None:
        for link, relay in tuple(self._relays.items()):
            if relay.upload == upload:
                link.say(message)
                if is_last:
                    relay.stop()
                    del self._relays[link]

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
            if relay := self._relays.pop(link, None):
                relay.give_up()

    def _pass_on(self, link: Link, message: AnyMessage, tasks: set[asyncio.Task[None]]) -> None:
        if isinstance(message, Part):
            if relay := self._relays.get(link):  # else it crossed with the end of its upload
                relay.take(message)
            return
        if not isinstance(message, Request | LocalRequest):
            raise ProtocolError(f"A local client may not say {messages.kind_of(message)!r}.", code="wrong-order")
        if len(tasks) >= limits.REQUESTS_UNDER_WAY:
            busy = UnavailableError("Too many requests are under way.", hint="Wait for some answers.", code="busy")
            link.say(_error_message(busy, message.id))
            return
        if isinstance(message, messages.Publish):
            if link in self._relays:
                busy = UnavailableError("This client uploads a file already.", hint="One after the other.", code="busy")
                link.say(_error_message(busy, message.id))
                return
            self._relays[link] = _Relay(message.upload, self._stream, self._relaying)
        task = asyncio.create_task(self._answer(link, message))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    async def _answer(self, link: Link, request: Request | LocalRequest) -> None:
        try:
            if isinstance(request, LocalRequest):
                pages = [await self._answer_here(request)]
            else:
                pages = await self._ask(request)
        except LockstepError as error:
            if isinstance(request, messages.Publish):
                self._relays.pop(link, None)
            link.say(_error_message(error, request.id))
            return
        for page in pages:
            link.say(structs.replace(page, re=request.id))


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
