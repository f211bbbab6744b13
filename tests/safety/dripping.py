"""`python -m tests.safety.dripping PORT COUNT PER_SECOND [tls]`: drip-fed connections to a hub on loopback.

COUNT connections, so many a second, of four kinds in turn: TCP that says nothing, HTTP (or a TLS handshake) a byte at a
time, WebSockets that never say hello, and hellos without a login. Half of them come from 127.0.0.1, where the real
terminals are, half from addresses of their own. Each is held for as long as the hub lets it. Prints how many were
opened and how each ended when its standard input is closed, or prints "COUNT" once that many were opened.
"""

import asyncio
import contextlib
import itertools
import os
import resource
import sys
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any, Final

from protocol import codec, keys, messages
from tests.safety.bombs import frame

DRIP_SECONDS: Final = 0.25
HANDSHAKE: Final = (
    b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: lockstep.v1\r\n\r\n"
)
# A TLS record that promises a ClientHello of 512 bytes (RFC 8446 section 5.1).
CLIENT_HELLO: Final = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500)

Drip = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, str]]


async def say_nothing(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> str:
    """Hold the connection and say nothing."""
    return "dropped" if not await reader.read(1) else "answered"


def drip(data: bytes) -> Drip:
    """Return what says `data` a byte at a time."""

    async def say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
        for byte in data:
            writer.write(bytes([byte]))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(DRIP_SECONDS):
                    return "dropped" if not await reader.read(1) else "answered"
        return "said it all"

    return say


def open_socket(*more: bytes) -> Drip:
    """Return what opens a WebSocket, says `more`, and then nothing."""

    async def say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
        writer.write(HANDSHAKE)
        status = (await reader.readuntil(b"\r\n\r\n")).split()[1].decode()
        writer.write(b"".join(more))
        while status == "101" and await reader.read(4_096):
            pass
        return f"HTTP {status}"

    return say


def kinds(tls: bool) -> tuple[Drip, ...]:
    """The four ways to keep a hub waiting; of one with TLS those that come before it."""
    if tls:
        return say_nothing, drip(CLIENT_HELLO)
    hello = codec.encode(messages.Hello(nonce=keys.new_nonce(), versions=("lockstep.v1",)))
    return say_nothing, drip(HANDSHAKE), open_socket(), open_socket(frame(hello))


async def one(port: int, source: str, say: Drip, ends: Counter[str]) -> None:
    """Open one connection and hold it to its end."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(source, 0))
    except OSError as error:
        ends[type(error).__name__] += 1
        return
    try:
        ends[await say(reader, writer)] += 1
    except (OSError, asyncio.IncompleteReadError):
        ends["dropped"] += 1
    finally:
        writer.transport.abort()


def source_of(number: int) -> str:
    """127.0.0.1 for every second one, of the others each has its own."""
    return "127.0.0.1" if number % 2 else f"127.{1 + number // 60_000}.{number // 240 % 250}.{1 + number % 240}"


async def main(port: int, count: int, per_second: int, *, tls: bool) -> None:
    """Open them at an even pace and tell how they ended."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    loop = asyncio.get_running_loop()
    ends: Counter[str] = Counter()
    began, held = loop.time(), set[asyncio.Task[None]]()
    ended = loop.run_in_executor(None, sys.stdin.read)
    ways = kinds(tls)
    for number in itertools.count():
        if ended.done():
            break
        if number == count:
            print("COUNT", flush=True)
        held.add(task := asyncio.create_task(one(port, source_of(number), ways[number // 2 % len(ways)], ends)))
        task.add_done_callback(held.discard)
        await asyncio.sleep(max(0.0, began + number / per_second - loop.time()))
    print(f"opened {number}, held {len(held)}, ends {dict(ends)}", flush=True)
    os._exit(0)  # thousands of tasks have nothing to tell


if __name__ == "__main__":
    asyncio.run(main(*map(int, sys.argv[1:4]), tls=sys.argv[4:] == ["tls"]))
