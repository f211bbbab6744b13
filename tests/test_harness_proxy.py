"""The proxy the chaos tests slow and break links with: it does what it says, and counts right."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from tests.harness import SlowProxy, until

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def served(handler: Handler) -> AsyncIterator[int]:
    """Serve `handler` on loopback; give its port."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await handler(reader, writer)
        except OSError:
            pass
        finally:
            writer.transport.abort()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65_536):
        writer.write(data)
        await writer.drain()
    writer.write_eof()
    await reader.read()


async def pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(b"x" * 65_536)
        await writer.drain()


async def test_what_goes_through_comes_out_the_same_and_is_counted_in_both_directions() -> None:
    async with served(echo) as port, SlowProxy(port) as proxy:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        sent = bytes(range(256)) * 1_000
        writer.write(sent)
        writer.write_eof()
        assert await reader.read(-1) == sent
        writer.close()
        await until(lambda: not proxy.open_connections())
        assert (proxy.up_bytes, proxy.down_bytes) == (len(sent), len(sent))


async def test_a_slow_direction_carries_no_more_than_its_rate() -> None:
    loop = asyncio.get_running_loop()
    async with served(pour) as port, SlowProxy(port, down_bytes_per_second=400_000) as proxy:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        began_at = loop.time()
        await reader.readexactly(200_000)
        assert loop.time() - began_at > 0.4  # 0.5 s at the rate, less one piece at once at each end
        assert proxy.down_bytes <= (loop.time() - began_at + 0.1) * 400_000
        writer.close()


async def test_a_frozen_link_stops_its_sender_and_goes_on_when_thawed() -> None:
    async with served(pour) as port, SlowProxy(port) as proxy:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        await reader.readexactly(1)
        (connection,) = proxy.open_connections()
        connection.freeze()
        carried_bytes = -1
        while carried_bytes != connection.down.carried_bytes:  # the piece that was being written still comes
            carried_bytes = connection.down.carried_bytes
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    while True:
                        await reader.read(65_536)
        connection.thaw()
        await reader.readexactly(1_000_000)
        writer.close()


async def test_a_swallowed_link_takes_everything_and_answers_nothing() -> None:
    async with served(echo) as port, SlowProxy(port) as proxy:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        writer.write(b"one")
        assert await reader.readexactly(3) == b"one"
        (connection,) = proxy.open_connections()
        connection.swallow()
        writer.write(b"two")
        await until(lambda: connection.up.swallowed_bytes == 3)
        assert connection.is_open
        assert connection.down.carried_bytes == 3
        writer.close()


async def test_a_cut_ends_both_sides_even_while_frozen() -> None:
    async with served(pour) as port, SlowProxy(port) as proxy:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        await reader.readexactly(1)
        (connection,) = proxy.open_connections()
        connection.freeze()
        proxy.cut()
        async with asyncio.timeout(5):
            while not await ended(reader):
                pass
        assert not proxy.open_connections()
        writer.close()


async def test_a_target_that_is_away_ends_the_connection_and_another_port_serves_the_next() -> None:
    async with served(echo) as port, SlowProxy(1) as proxy:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        assert await ended(reader)
        writer.close()
        proxy.target_port = port
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        writer.write(b"there")
        assert await reader.readexactly(5) == b"there"
        proxy.refuses = True
        refused, other = await asyncio.open_connection("127.0.0.1", proxy.port)
        assert await ended(refused)
        other.close()
        writer.close()


async def ended(reader: asyncio.StreamReader) -> bool:
    """Whether the connection has ended with nothing said."""
    try:
        return await reader.read(1) == b""
    except ConnectionError:
        return True
