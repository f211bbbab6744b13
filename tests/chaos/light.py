"""Light terminals: thousands in one process. They log in, take what is offered and acknowledge it, and verify nothing.

What they leave out costs only the device: hashing, the disk, the installer, the device list. To the hub they are
terminals like any other: the same handshake, signatures, window and reports.
"""

import asyncio
import random
import resource
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from socket import SO_RCVBUF, SOL_SOCKET
from typing import Final

from websockets.exceptions import ConnectionClosed

from protocol import codec, messages
from protocol.errors import LockstepError
from protocol.keys import SigningKey
from terminal.agent import back_off, wait_seconds
from terminal.dialling import HubSocket, dial, parse_address
from terminal.link import closing_error
from tests.harness.hubs import PASSWORD, RunningHub, running_hub
from tests.harness.installers import make_installer
from tests.harness.raw import DEVICE, RawTerminal

_WANTED: Final = tuple(
    b"\xa4kind" + bytes([0xA0 + len(kind)]) + kind
    for kind in (b"offer", b"manifest", b"chunks", b"noted", b"sync_done")
)
ENROLLED_AT_ONCE: Final = 64
FILES_BESIDE: Final = 512
SLOW_BUFFER_BYTES: Final = 32 * 1024


def allow_files(count: int) -> None:
    """Raise the soft limit of open files of this process to what `count` sockets need."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, count + FILES_BESIDE), hard))


class LightTerminal:
    """One terminal. `done` is called with each delivery whose end the hub has noted; `tries` are ends by their code.

    With `bytes_per_second` it reads no faster than that, from a small buffer: the hub's kernel finds the window shut as
    it does before a slow link, and no proxy takes processor time from what is measured.
    """

    def __init__(self, name: str, signing_key: SigningKey, terminal: str, *, bytes_per_second: int = 0) -> None:
        self._bytes_per_second = bytes_per_second
        self.name = name
        self.terminal = terminal
        self.logins = 0
        self.heard_bytes = 0
        self.online = asyncio.Event()
        self.tries: Counter[str] = Counter()
        self.errors: list[str] = []
        self.done: Callable[[str], None] = lambda delivery: None
        self.raw: RawTerminal | None = None
        self.signing_key = signing_key
        self._offer: messages.Offer | None = None
        self._frames = self._chunks = 0

    async def stay(self, url: str, *, gate: asyncio.Semaphore | None = None) -> None:
        """Connect and stay connected as an agent does, until cancelled."""
        delays = back_off()
        while True:
            logins = self.logins
            error = await self._once(url, gate or asyncio.Semaphore(1))
            if self.logins > logins:
                delays = back_off()
            self.tries[error.code] += 1
            await asyncio.sleep(wait_seconds(error, delays))

    async def _once(self, url: str, gate: asyncio.Semaphore) -> LockstepError:
        socket: HubSocket | None = None
        try:
            async with gate:
                socket = await dial(parse_address(url))
                await self._login(socket, url)
            if self._bytes_per_second:
                socket.transport.get_extra_info("socket").setsockopt(SOL_SOCKET, SO_RCVBUF, SLOW_BUFFER_BYTES)
            async for data in socket:
                assert isinstance(data, bytes)
                self.heard_bytes += len(data)
                if self._bytes_per_second:
                    # No two links are alike: in step they would all acknowledge at the same instant.
                    jitter = random.uniform(0.5, 1.5)
                    await asyncio.sleep(jitter * len(data) / self._bytes_per_second)
                if data[1:].startswith(_WANTED):
                    await self._hear(codec.decode(data))
            raise LockstepError("The hub closed the connection.", code="closed")
        except TimeoutError:
            return LockstepError("The hub did not finish the login in time.", code="timeout")
        except ConnectionClosed as closed:
            return closing_error(closed, "the hub")
        except LockstepError as error:
            return error
        except Exception as error:
            self.errors.append(f"{self.name}: {type(error).__name__}: {error}")
            return LockstepError(str(error))
        finally:
            self.online.clear()
            self.raw = None
            if socket is not None:
                socket.transport.abort()

    async def _login(self, socket: HubSocket, url: str) -> None:
        host, _, port = url.rpartition("/")[2].rpartition(":")
        raw = RawTerminal(socket, host, int(port))
        raw.signing_key, raw.terminal = self.signing_key, self.terminal
        async with asyncio.timeout(10):
            await raw.login()
        self.raw = raw
        self.logins += 1
        self.online.set()

    async def _hear(self, message: object) -> None:
        assert self.raw is not None
        match message:
            case messages.Offer():
                self._offer, self._frames, self._chunks = message, 0, 0
            case messages.ManifestPage(page=page) if self._offer is not None and page + 1 == self._offer.pages:
                run = messages.Run(0, self._offer.chunks)
                await self.raw.say(messages.Want(delivery=self._offer.delivery, runs=(run,)))
            case messages.Chunks(count=count) if self._offer is not None:
                await self._take(count, self._offer)
            case messages.Noted(of=delivery, state="installing") if self._offer is not None:
                version = self._offer.installer.version
                await self.raw.say(messages.State(delivery=delivery, state="done", version=version))
            case messages.Noted(of=delivery, state="done"):
                self.done(delivery)

    async def _take(self, count: int, offer: messages.Offer) -> None:
        assert self.raw is not None
        self._frames, self._chunks = self._frames + 1, self._chunks + count
        done = offer.size * self._chunks // offer.chunks
        await self.raw.say(messages.Progress(delivery=offer.delivery, frames=self._frames, done=done))
        if self._chunks == offer.chunks:
            of = offer.delivery
            await self.raw.say(
                messages.State(delivery=of, state="verifying"),
                messages.Received(delivery=of),
                messages.State(delivery=of, state="installing"),
            )


async def prepare(folder: Path, accounts: int, each: int, programs: dict[str, int]) -> list[list[LightTerminal]]:
    """Make a hub's data in `folder`/hub: programs by size in bytes, accounts with `each` terminals; return those."""
    async with running_hub(folder) as hub:
        for program, size in programs.items():
            file = make_installer(folder, "deb", program, size=size)
            await hub.publish(file)
            file.unlink()
        return [await _account(hub, f"account{number}", each) for number in range(accounts)]


async def _account(hub: RunningHub, name: str, count: int) -> list[LightTerminal]:
    await hub.add_account(name)
    account_id = await hub.hub.accounts.check_password(name, PASSWORD)
    assert account_id is not None
    room = asyncio.Semaphore(ENROLLED_AT_ONCE)

    async def one(number: int) -> LightTerminal:
        key = SigningKey.generate()
        request = messages.Enrol(
            account=name, password=PASSWORD, name=f"{name}-{number}", device=DEVICE, device_key=key.public,
            sealing_key=bytes(32), host="x", port=1, signature=bytes(64),
        )  # fmt: skip
        async with room:
            terminal = await hub.hub.accounts.enrol(account_id, request, "127.0.0.1")
        return LightTerminal(f"{name}-{number}", key, terminal.terminal_id)

    return list(await asyncio.gather(*(one(number) for number in range(count))))


async def share_online(terminals: list[LightTerminal], count: int, within_seconds: float) -> float:
    """Wait until `count` of the terminals are online; return the seconds. Raises TimeoutError."""
    began = time.monotonic()
    async with asyncio.timeout(within_seconds):
        while sum(one.online.is_set() for one in terminals) < count:  # noqa: ASYNC110 - of thousands, any
            await asyncio.sleep(0.05)
    return time.monotonic() - began


async def settled(tasks: list[asyncio.Task[None]]) -> None:
    """End what runs."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
