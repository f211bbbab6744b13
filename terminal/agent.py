"""Agent: keeps a terminal connected and receiving, and lets other commands on this device speak through it.

The local socket is a WebSocket over a Unix socket (0600) in the state folder, with the hub's own messages: the agent
says `welcome`, passes requests on under ids of its own, and relays what comes unasked. Whoever can open the folder is
this terminal, so there is no login.
"""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from msgspec import structs
from websockets.asyncio.server import ServerConnection, unix_serve

from protocol import limits, messages
from protocol.device import DeviceInfo, InstallerKind
from protocol.errors import BadDataError, BadFileError, LockstepError, ProtocolError, UnavailableError
from protocol.messages import AnyMessage, Message, Request
from terminal.connection import Connection, address_of, connected, login_of
from terminal.installers import Runner
from terminal.link import CLOSE_SECONDS, Link, unix_path
from terminal.receiving import OnEvent, settle_interrupted
from terminal.state import StateFolder

LOCAL_CLIENTS: Final = 32
STEADY_SECONDS: Final = 60.0


async def run_agent(
    folder: StateFolder,
    device: DeviceInfo,
    runners: Mapping[InstallerKind, Runner],
    *,
    on_event: OnEvent,
    stop: asyncio.Event,
    insecure_lan: bool = False,
    ca_file: Path | None = None,
) -> str:
    """Be the terminal of `folder` until `stop` is set; return "stopped".

    `on_event(kind, sentence)` tells what happens; kinds are "connected", "reconnecting" and "delivery". Raises
    RefusedError when the hub will not have this terminal (`replaced`, `hub-key-changed`, ...) or another process holds
    the folder, NotLoggedInError before the first login, UsageError and BadFileError. A lost connection is made again.
    """
    with folder.lock():
        agent = Agent(folder, device, runners, on_event)
        agent.use(insecure_lan=insecure_lan, ca_file=ca_file)
        await settle_interrupted(folder, runners)
        async with agent.serve():
            await agent.keep_connected(stop)
    return "stopped"


class Agent:
    """The terminal's one live connection, and the local clients that share it."""

    def __init__(
        self,
        folder: StateFolder,
        device: DeviceInfo,
        runners: Mapping[InstallerKind, Runner],
        on_event: OnEvent,
    ) -> None:
        self._folder = folder
        self._device = device
        self._runners = runners
        self._on_event = on_event
        self._identity = folder.identity()
        self._connection: Connection | None = None  # while requests can be passed on
        self._held: Connection | None = None  # until it is closed and its installation has ended
        self._why_away: LockstepError = UnavailableError("This terminal is not connected to its hub yet.")
        self._locals: dict[Link, set[asyncio.Task[None]]] = {}

    def use(self, *, insecure_lan: bool, ca_file: Path | None) -> None:
        """Dial as these say, where they say more than the login did."""
        self._identity = structs.replace(
            self._identity,
            insecure_lan=insecure_lan or self._identity.insecure_lan,
            ca_file=str(ca_file) if ca_file else self._identity.ca_file,
        )

    # --- the hub ------------------------------------------------------------------------------------------------------

    async def keep_connected(self, stop: asyncio.Event) -> None:
        """Stay connected until `stop`; back off between tries. Raises what trying again cannot mend."""
        loop = asyncio.get_running_loop()
        delays = back_off()
        while not stop.is_set():
            began_at = loop.time()
            error = await self._connect_once(stop)
            if error is None:
                return
            if not isinstance(error, (UnavailableError, BadDataError)) or isinstance(error, BadFileError):
                raise error
            if loop.time() - began_at > STEADY_SECONDS:
                delays = back_off()
            await self._wait(next(delays), error, stop)

    async def _connect_once(self, stop: asyncio.Event) -> LockstepError | None:
        """Hold a connection until it ends; return why, or None when `stop` ended it."""
        work = asyncio.create_task(self._hold(stop))
        stopped = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait((work, stopped), return_when=asyncio.FIRST_COMPLETED)
            if stop.is_set():
                self._let_go(work)
            await asyncio.wait((work,))
            return None if work.cancelled() else work.result()
        finally:
            for task in (work, stopped):
                task.cancel()
            await asyncio.wait((work, stopped))

    def _let_go(self, work: asyncio.Task[LockstepError | None]) -> None:
        """Make `work` end soon: an installation is not waited for, its mark on the disk tells of it."""
        if self._held is None:
            work.cancel()
        else:
            self._held.receiving.cancel()

    async def _hold(self, stop: asyncio.Event) -> LockstepError | None:
        try:
            address = address_of(self._identity)
            opening = login_of(self._identity, address, self._device, receives=True)
            async with connected(
                address, opening, self._folder, runners=self._runners, on_event=self._on_event
            ) as connection:
                self._connection = self._held = connection
                await self._until_ended(connection, stop)
                self._connection = None
                return None if stop.is_set() else connection.link.error
        except LockstepError as error:
            return error
        finally:
            self._connection = self._held = None

    async def _until_ended(self, connection: Connection, stop: asyncio.Event) -> None:
        connection.link.listen(self)
        self._remember(connection.welcome)
        self._on_event(
            "connected",
            f"Connected to {self._identity.url} as {self._identity.name} ({self._identity.terminal}).",
        )
        waits = (asyncio.create_task(connection.link.ended()), asyncio.create_task(stop.wait()))
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waits:
                task.cancel()

    def _remember(self, welcome: messages.Welcome) -> None:
        renamed = structs.replace(self._folder.identity(), name=welcome.name)
        if renamed != self._folder.identity():
            self._folder.save_identity(renamed)
        self._identity = structs.replace(self._identity, name=welcome.name)
        if self._device != self._folder.device():
            self._folder.save_device(self._device)

    async def _wait(self, delay_seconds: float, error: LockstepError, stop: asyncio.Event) -> None:
        self._why_away = error
        self._on_event("reconnecting", f"{error.message} Trying again in {delay_seconds:.1f} s.")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(delay_seconds):
                await stop.wait()

    # --- unasked messages, as a listener of the hub's link ------------------------------------------------------------

    def put(self, message: AnyMessage) -> None:
        """Relay what the hub said unasked; a local client that does not read is cut by its own bounded queue."""
        for link in self._locals:
            link.say(message)

    def end(self, error: LockstepError) -> None:
        """The hub is away; requests are refused until it is back."""
        self._connection, self._why_away = None, error

    # --- local clients ------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[None]:
        """Serve the local socket. Raises UsageError when there can be none at this path."""
        path = self._folder.agent_socket
        path.unlink(missing_ok=True)  # of an agent that was killed: this one holds the lock
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

    async def _serve_one(self, socket: ServerConnection) -> None:
        if len(self._locals) >= LOCAL_CLIENTS:
            await socket.close(1013, "too many local clients")
            return
        tasks: set[asyncio.Task[None]] = set()

        def heard(message: AnyMessage) -> None:
            self._pass_on(link, message, tasks)

        link = Link(socket, "a local client", heard=heard)
        self._locals[link] = tasks
        link.say(self._welcome())
        try:
            await link.run()
        finally:
            del self._locals[link]
            for task in tasks:
                task.cancel()

    def _welcome(self) -> messages.Welcome:
        return messages.Welcome(
            terminal=self._identity.terminal,
            name=self._identity.name,
            account=self._identity.account,
            connection=self._connection.welcome.connection if self._connection else 0,
            message_bytes=limits.MESSAGE_BYTES,
            frame_bytes=limits.FRAME_BYTES,
        )

    def _pass_on(self, link: Link, message: AnyMessage, tasks: set[asyncio.Task[None]]) -> None:
        if not isinstance(message, Request):
            raise ProtocolError(f"A local client may not say {messages.kind_of(message)!r}.", code="wrong-order")
        if len(tasks) >= limits.REQUESTS_UNDER_WAY:
            busy = UnavailableError("Too many requests are under way.", hint="Wait for some answers.", code="busy")
            link.say(_error_message(busy, message.id))
            return
        task = asyncio.create_task(self._answer(link.say, message))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    async def _answer(self, say: Callable[[Message], None], request: Request) -> None:
        try:
            if self._connection is None:
                raise UnavailableError(f"The hub is away: {self._why_away.message}")
            pages = await self._connection.link.request(request)
        except LockstepError as error:
            say(_error_message(error, request.id))
            return
        for page in pages:
            say(structs.replace(page, re=request.id))


def back_off() -> Iterator[float]:
    """Yield how long to wait before each next try, in seconds: full jitter under a bound that doubles from 1 to 60."""
    bound_seconds = limits.RECONNECT_FIRST_SECONDS
    while True:
        yield random.uniform(0.0, bound_seconds)  # noqa: S311 - only spreads the load
        bound_seconds = min(bound_seconds * 2, limits.RECONNECT_LARGEST_SECONDS)


def _error_message(error: LockstepError, number: int) -> messages.Error:
    return messages.Error(
        code=error.code,
        message=error.message[: limits.TEXT_CHARACTERS],
        hint=error.hint[: limits.TEXT_CHARACTERS],
        near=tuple(getattr(error, "near", ())),
        re=number,
    )
