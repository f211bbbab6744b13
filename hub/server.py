"""The server: listens, runs a TerminalSocket for each connection, passes pokes on and ticks."""

import asyncio
import functools
import logging
from typing import Any, Final, cast

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.typing import Subprotocol

from hub import session as brain
from hub.config import Settings, is_loopback
from hub.pokes import Concern
from hub.reception import CLOSE_SECONDS, Reception, TerminalConnection, let_wait
from hub.terminalsocket import Services, TerminalSocket
from protocol import limits
from protocol.errors import UnavailableError

_ACCEPTED_AT_ONCE: Final = 32  # then the loop looks after the others; each costs it about 0.1 ms
_STOP_SECONDS: Final = 5.0


_POKED: Final[dict[Concern, type[brain.Owing | brain.Changed | brain.StandingChanged]]] = {
    "owed": brain.Owing,
    "asked": brain.Changed,
    "standing": brain.StandingChanged,
}


class HubServer:
    """Listens, and runs a TerminalSocket for each connection."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self.reception = Reception(services.settings)
        self._server: Server | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._names: frozenset[str] = frozenset()
        self._serving: set[asyncio.Task[Any]] = set()
        self._next_number = 0
        self.port = 0

    async def start(self) -> None:
        """Listen. Raises UnavailableError when the address cannot be had."""
        settings = self._services.settings
        host, port = settings.address
        try:
            self._server = await serve(
                self._handle,
                host,
                port,
                create_connection=cast(
                    type[ServerConnection], functools.partial(TerminalConnection, reception=self.reception)
                ),
                process_request=self.reception.answer,
                origins=[None],
                subprotocols=[Subprotocol(brain.VERSION)],
                compression=None,
                ping_interval=None,
                open_timeout=limits.OPENING_SECONDS,
                close_timeout=CLOSE_SECONDS,
                max_size=limits.MESSAGE_BEFORE_LOGIN_BYTES,
                max_queue=limits.INBOUND_MESSAGES,
                write_limit=0,  # a send ends when the kernel has it all: no frame is left here while the next is read
                backlog=_ACCEPTED_AT_ONCE,
                logger=_quiet_logger(),
                server_header="lockstep-hub",
            )
        except OSError as error:
            raise UnavailableError(
                f"Cannot listen on {settings.listen}: {error.strerror or error}.", hint="Is a hub running already?"
            ) from None
        let_wait(self._server.sockets)
        self.port = next(iter(self._server.sockets)).getsockname()[1]
        self._names = _names_of(settings, self.port)
        self._tasks = [asyncio.create_task(self._pass_pokes_on()), asyncio.create_task(self._tick())]

    async def stop(self) -> None:
        """Tell every terminal, close, and wait for the sockets to end."""
        if self._server is None:
            return
        self._server.close(close_connections=False)
        self.reception.close()
        for socket in list(self._services.sockets.values()):
            socket.tell(brain.Stopping())
        if self._serving:
            await asyncio.wait(self._serving, timeout=_STOP_SECONDS)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._server.close()
        await self._server.wait_closed()

    async def _handle(self, connection: ServerConnection) -> None:
        assert isinstance(connection, TerminalConnection)
        connection.is_served = True
        services = self._services
        self._next_number += 1
        local = connection.local_address
        names = self._names | {f"{local[0]}:{local[1]}"} if local else self._names
        socket = TerminalSocket(services, connection, self._next_number, names)
        services.sockets[socket.number] = socket
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        try:
            await socket.run()
        finally:
            del services.sockets[socket.number]
            self._serving.discard(task)

    async def _pass_pokes_on(self) -> None:
        services = self._services
        while True:
            for concern, terminal in await services.pokes.take():
                number = services.presence.socket_of(terminal)
                socket = services.sockets.get(number) if number is not None else None
                if socket is not None:
                    socket.tell(_POKED[concern]())

    async def _tick(self) -> None:
        """Tell each account's terminals what changed in its device list, at most four times a second."""
        while True:
            await asyncio.sleep(limits.DEVICE_CHANGES_EVERY_SECONDS)
            self._services.presence.tick(asyncio.get_running_loop().time())
            self._tell_of_devices()

    def _tell_of_devices(self) -> None:
        changed = self._services.devices.changed_accounts()
        for socket in self._services.sockets.values():
            if socket.terminal is not None and socket.terminal.account_id in changed:
                socket.devices_changed()


def _names_of(settings: Settings, port: int) -> frozenset[str]:
    """Return every "host:port" by which a terminal may mean this hub; the address it reached is added per socket."""
    host, _ = settings.address
    names = {name if ":" in name else f"{name}:{port}" for name in settings.names}
    names.add(f"{host}:{port}")
    if is_loopback(host) or host in ("0.0.0.0", "::"):  # noqa: S104
        names |= {f"{loopback}:{port}" for loopback in ("localhost", "127.0.0.1", "::1")}
    return frozenset(name.lower() for name in names)


class _OneLine(logging.Filter):
    """Turns the library's tracebacks (half a handshake, a port scan) into one line each."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Keep the line, drop the traceback."""
        if record.exc_info and record.exc_info[1] is not None:
            record.msg, record.args = "%s: %s", (record.getMessage(), record.exc_info[1])
            record.exc_info = None
            record.levelno, record.levelname = logging.INFO, "INFO"
        return True


def _quiet_logger() -> logging.Logger:
    logger = logging.getLogger("lockstep.hub.sockets")
    if not logger.filters:
        logger.addFilter(_OneLine())
    logger.setLevel(logging.WARNING)  # what is refused is told in one line by TerminalConnection
    return logger
