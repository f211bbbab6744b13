"""A TCP proxy in this process that makes a link slow, cuts it, freezes it or loses what it carries, and counts bytes.

async with SlowProxy(hub_port, down_bytes_per_second=125_000) as proxy:
    ...dial proxy.url; the hub has to know the name "127.0.0.1:{proxy.port}"...
    proxy.cut()

"Up" is from who dialled to the target (terminal to hub), "down" is back. Rates hold for each connection and direction
by itself and may be changed while it runs, as may everything else.
"""

import asyncio
import contextlib
import socket
import struct
from collections.abc import Coroutine
from types import TracebackType
from typing import Final, Self

PIECE_BYTES: Final = 64 * 1024
SLICES_PER_SECOND: Final = 40  # a slow direction moves so often at least, so that it flows and does not burst
LARGEST_DELAY_SECONDS: Final = 1.0  # after which a changed rate is looked at again
DIAL_SECONDS: Final = 5.0
_ABORT_AT_CLOSE: Final = struct.pack("ii", 1, 0)  # SO_LINGER on, 0 s: close sends RST (socket(7))


class Flow:
    """One direction of one connection; `carried_bytes` have been written to its receiver."""

    def __init__(self, bytes_per_second: float | None) -> None:
        self.bytes_per_second = bytes_per_second
        self.carried_bytes = 0
        self.swallowed_bytes = 0
        self.swallows = False  # what comes is read and lost: the other side looks alive and says nothing
        self._moving = asyncio.Event()
        self._moving.set()
        self._due_at = 0.0

    def freeze(self) -> None:
        """Read and write nothing until `thaw`: the sender's buffers fill up, as with a stalled receiver."""
        self._moving.clear()

    def thaw(self) -> None:
        """Move again."""
        self._moving.set()

    async def run(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry what comes until the sender ends, then end the receiver's side."""
        while data := await self._read(reader):
            await self._moving.wait()
            if self.swallows:
                self.swallowed_bytes += len(data)
                continue
            writer.write(data)
            await writer.drain()
            self.carried_bytes += len(data)
            await self._pace(len(data))
        writer.write_eof()

    async def _read(self, reader: asyncio.StreamReader) -> bytes:
        await self._moving.wait()
        rate = self.bytes_per_second
        return await reader.read(
            PIECE_BYTES if rate is None else max(1, min(PIECE_BYTES, int(rate / SLICES_PER_SECOND)))
        )

    async def _pace(self, size: int) -> None:
        if self.bytes_per_second is None:
            return
        loop = asyncio.get_running_loop()
        self._due_at = max(self._due_at, loop.time()) + size / self.bytes_per_second
        delay_seconds = self._due_at - loop.time()
        if delay_seconds > LARGEST_DELAY_SECONDS:
            self._due_at, delay_seconds = 0.0, LARGEST_DELAY_SECONDS
        await asyncio.sleep(delay_seconds)


class ProxiedConnection:
    """One connection through the proxy; its two flows and its end."""

    def __init__(self, up: Flow, down: Flow, writers: tuple[asyncio.StreamWriter, asyncio.StreamWriter]) -> None:
        self.up = up
        self.down = down
        self._writers: tuple[asyncio.StreamWriter, ...] = writers
        self.is_open = True

    def cut(self) -> None:
        """End it now on both sides with a reset; what is under way is lost."""
        self.is_open = False
        for writer in self._writers:
            raw = writer.get_extra_info("socket")
            with contextlib.suppress(OSError):  # it may be closed already
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT_AT_CLOSE)
            writer.transport.abort()
        self._writers = ()
        self.thaw()  # so that what waits sees the end; it writes nothing more

    def freeze(self) -> None:
        """Stop both directions without ending anything: a cable pulled."""
        self.up.freeze()
        self.down.freeze()

    def thaw(self) -> None:
        """Let both directions move again."""
        self.up.thaw()
        self.down.thaw()

    def swallow(self) -> None:
        """Lose what either side sends from now on."""
        self.up.swallows = self.down.swallows = True


class SlowProxy:
    """Listens on loopback and carries each connection to `target_port`, which may be changed for later connections.

    `up_bytes_per_second` and `down_bytes_per_second` (None: as fast as it goes) hold for connections made from then on;
    `buffer_bytes` is what each socket's kernel buffer may hold (the kernel doubles it).
    """

    def __init__(
        self,
        target_port: int = 0,
        *,
        up_bytes_per_second: float | None = None,
        down_bytes_per_second: float | None = None,
        buffer_bytes: int = 16 * 1024,
    ) -> None:
        self.target_port = target_port
        self.up_bytes_per_second = up_bytes_per_second
        self.down_bytes_per_second = down_bytes_per_second
        self.connections: list[ProxiedConnection] = []  # every one there was, the newest last
        self._open: list[ProxiedConnection] = []
        self._ended_bytes = (0, 0)
        self.refuses = False  # cut each new connection at once
        self.port = 0
        self._buffer_bytes = buffer_bytes
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        """Where terminals dial."""
        return f"ws://127.0.0.1:{self.port}"

    @property
    def name(self) -> str:
        """What the hub has to be called as well (`lockstep-hub serve --name`)."""
        return f"127.0.0.1:{self.port}"

    @property
    def up_bytes(self) -> int:
        """Carried to the target, all connections together."""
        return self._ended_bytes[0] + sum(connection.up.carried_bytes for connection in self._open)

    @property
    def down_bytes(self) -> int:
        """Carried back from the target, all connections together."""
        return self._ended_bytes[1] + sum(connection.down.carried_bytes for connection in self._open)

    def open_connections(self) -> list[ProxiedConnection]:
        """Return those that have not ended."""
        return [connection for connection in self._open if connection.is_open]

    def cut(self) -> None:
        """Cut every open connection now."""
        for connection in self.open_connections():
            connection.cut()

    async def start(self) -> None:
        """Listen on a free port."""
        listener = self._socket()
        listener.bind(("127.0.0.1", 0))
        self.port = listener.getsockname()[1]
        self._server = await asyncio.start_server(self._take, sock=listener, limit=self._buffer_bytes, backlog=1024)

    async def stop(self) -> None:
        """Cut everything and listen no more."""
        assert self._server is not None
        self._server.close()
        self.cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()

    def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._carry(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            target_reader, target_writer = await self._dial()
        except (OSError, TimeoutError):
            writer.transport.abort()
            return
        for one in (writer, target_writer):
            one.transport.set_write_buffer_limits(high=0)  # drain waits until all is the kernel's
        up, down = Flow(self.up_bytes_per_second), Flow(self.down_bytes_per_second)
        connection = ProxiedConnection(up, down, (writer, target_writer))
        self.connections.append(connection)
        self._open.append(connection)
        try:
            await _both(up.run(reader, target_writer), down.run(target_reader, writer))
        finally:
            connection.cut()
            self._open.remove(connection)
            self._ended_bytes = (self._ended_bytes[0] + up.carried_bytes, self._ended_bytes[1] + down.carried_bytes)

    async def _dial(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self.refuses:
            raise ConnectionRefusedError
        target = self._socket()
        target.setblocking(False)
        try:
            async with asyncio.timeout(DIAL_SECONDS):
                await asyncio.get_running_loop().sock_connect(target, ("127.0.0.1", self.target_port))
            if target.getsockname() == target.getpeername():  # nobody listens, and TCP has met itself on that port
                raise ConnectionRefusedError
        except BaseException:
            target.close()
            raise
        return await asyncio.open_connection(sock=target, limit=self._buffer_bytes)

    def _socket(self) -> socket.socket:
        """Return a socket with small buffers, set before it connects or listens so that they bound the window."""
        made = socket.socket()
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._buffer_bytes)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self._buffer_bytes)
        return made


async def _both(up: Coroutine[None, None, None], down: Coroutine[None, None, None]) -> None:
    """Run both directions until both have ended or one has failed: either side may go at any moment."""
    tasks = [asyncio.create_task(up), asyncio.create_task(down)]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
    finally:
        for task in tasks:
            task.cancel()
        for ended in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(ended, BaseException) and not isinstance(ended, (OSError, asyncio.CancelledError)):
                raise ended
