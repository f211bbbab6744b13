"""Thousands of drip-fed handshakes against a real hub: every real login gets in meanwhile, and the hub stays small.

The drips come from a process of their own, half of them from the very address of the real terminals. DRIPS=5000, as
`make test-safety` has it, is the full number; `make test` opens fewer before a hub with less room.
"""

import asyncio
import contextlib
import gc
import os
import re
import statistics
import sys
import time
import weakref
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.typing import Subprotocol

from hub.reception import Reception, TerminalConnection
from hub.terminalsocket import TerminalSocket
from tests.chaos.light import LightTerminal, settled
from tests.harness.certificates import make_certificate
from tests.harness.fleets import until
from tests.harness.hubs import HubProcess, running_hub
from tests.harness.raw import RawTerminal, raw_terminal
from tests.safety import dripping as drips
from tests.safety import ledger

DRIPS = int(os.environ.get("DRIPS", "300"))
IS_FULL = DRIPS >= 5_000
PER_SECOND = 125 if IS_FULL else 100  # a hub that shares two cores with all the rest has to keep up
ROOM = 256 if IS_FULL else 64
LOGINS = 50 if IS_FULL else 30
WITHIN_SECONDS = 60.0
# Measured on a busy machine with two cores, with 600 drips: 15 MiB, and 58 MiB with TLS, whose handshake has 256 KiB of
# buffer each; with 5,000: 15 and 99 MiB.
GROWTH_BYTES = (64 if IS_FULL else 32) * 2**20
GROWTH_WITH_TLS_BYTES = (192 if IS_FULL else 96) * 2**20
STALL_SECONDS = 0.3


@dataclass
class Result:
    """What came of it: `late` had not logged in when the drips ended."""

    late: int = LOGINS
    growth_bytes: int = 0
    stall_seconds: float = 0.0
    drips: str = ""
    tries: Counter[str] = field(default_factory=Counter)
    login_seconds: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


async def enrolled(folder: Path) -> list[LightTerminal]:
    """Make a hub's data with one account and its terminals."""
    terminals = []
    async with running_hub(folder) as hub:
        await hub.add_account("ada")
        for number in range(LOGINS):
            async with raw_terminal(hub) as raw:
                await raw.enrol("ada", name=f"Real {number}")
                terminals.append(LightTerminal(f"Real {number}", raw.signing_key, raw.terminal))
    return terminals


@asynccontextmanager
async def dripping(port: int, *arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run the drips until the block is left."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.safety.dripping", str(port), str(DRIPS), str(PER_SECOND), *arguments,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def attack(
    folder: Path, module: str = "tests.safety.probed_hub", *, tls: bool = False, wait_for_all: bool = True
) -> Result:
    """Log in `LOGINS` terminals while the drips come; these go on until all have logged in, or only for as long."""
    terminals = await enrolled(folder)
    settings = {"sockets_before_login": str(ROOM)}
    if tls:
        certificate = make_certificate(folder)
        os.environ["SSL_CERT_FILE"] = str(certificate.certificate)
        settings |= {"tls_cert": str(certificate.certificate), "tls_key": str(certificate.key)}
    stalls, result = folder / "stalls", Result()
    async with HubProcess(folder / "hub", module=(module, str(stalls), "paced"), settings=settings) as hub:
        url = hub.url.replace("ws://", "wss://") if tls else hub.url
        await warm_up(terminals, url)
        before = hub.memory_bytes()
        began = time.monotonic()
        async with dripping(hub.port, *(["tls"] if tls else [])) as drips:
            stays = await log_in(terminals, url, result)
            try:
                await asyncio.wait_for(_line(drips), WITHIN_SECONDS)  # as many as were asked for have been opened
                if wait_for_all:
                    with contextlib.suppress(TimeoutError):  # told with all that was measured
                        await until(lambda: len(result.login_seconds) == LOGINS, within_seconds=WITHIN_SECONDS)
                result.late = LOGINS - len(result.login_seconds)
                result.growth_bytes = hub.largest_memory_bytes() - before
                assert drips.stdin is not None
                drips.stdin.close()
                result.drips = await asyncio.wait_for(_line(drips), WITHIN_SECONDS)
            finally:
                await settled(stays)
    result.tries = sum((one.tries for one in terminals), Counter())
    result.errors = [error for one in terminals for error in one.errors]
    result.stall_seconds = max((took for at, took in _stalls(stalls) if at > began), default=0.0)
    return result


async def _line(process: asyncio.subprocess.Process) -> str:
    assert process.stdout is not None
    return (await process.stdout.readline()).decode().strip()


async def warm_up(terminals: Sequence[LightTerminal], url: str) -> None:
    """Have the hub's memory grow to what as many terminals need without any drips."""
    stays = [asyncio.create_task(one.stay(url)) for one in terminals]
    await until(lambda: all(one.online.is_set() for one in terminals), within_seconds=WITHIN_SECONDS)
    await settled(stays)
    for one in terminals:
        one.tries.clear()


async def log_in(terminals: Sequence[LightTerminal], url: str, result: Result) -> list[asyncio.Task[None]]:
    """Begin the logins evenly over the first two thirds of the drips; each goes on as an agent does."""
    stays = []
    for one in terminals:
        await asyncio.sleep(DRIPS / PER_SECOND * 2 / 3 / LOGINS)
        stays.append(asyncio.create_task(one.stay(url)))
        stays.append(asyncio.create_task(_timed(one, result)))
    return stays


async def _timed(one: LightTerminal, result: Result) -> None:
    began = time.monotonic()
    await one.online.wait()
    result.login_seconds.append(time.monotonic() - began)


def _stalls(file: Path) -> list[tuple[float, float]]:
    return [(float(at), float(took)) for at, took in (line.split() for line in file.read_text().splitlines())]


def tell(what: str, result: Result) -> None:
    """Print what was measured, and count it for the end of the run."""
    slowest, median = max(result.login_seconds), statistics.median(result.login_seconds)
    print(
        f"\n{what}: {result.drips}; median login {median:.2f} s, slowest {slowest:.2f} s, tries {dict(result.tries)}, "
        f"growth {result.growth_bytes / 2**20:.1f} MiB, stall {result.stall_seconds * 1_000:.0f} ms"
    )
    opened = re.match(r"opened (\d+)", result.drips)
    assert opened is not None and int(opened[1]) >= DRIPS
    ledger.count("handshakes", "drip-fed", int(opened[1]))
    ledger.count("handshakes", "logins tried", LOGINS)
    ledger.count("handshakes", "logins lost", LOGINS - len(result.login_seconds))
    ledger.note_worst(f"slowest login beside drip-fed handshakes{what}, s", slowest)
    ledger.note_worst(f"growth by drip-fed handshakes{what}, MiB", result.growth_bytes / 2**20)


@pytest.mark.slow
@pytest.mark.parametrize("tls", [False, True], ids=["in the clear", "with TLS"])
async def test_drip_fed_handshakes_cost_no_real_login_and_little_memory(
    tls: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", "")
    result = await attack(tmp_path, tls=tls)
    tell(" with TLS" if tls else "", result)
    assert (result.errors, len(result.login_seconds)) == ([], LOGINS), "logins were lost"
    assert result.growth_bytes < (GROWTH_WITH_TLS_BYTES if tls else GROWTH_BYTES)
    assert result.stall_seconds < STALL_SECONDS


async def test_without_a_fair_doorway_real_logins_would_have_to_wait_for_the_end(tmp_path: Path) -> None:
    result = await attack(tmp_path, "tests.safety.unfair_hub", wait_for_all=False)
    assert result.late > 0


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> weakref.WeakSet[Any]:
    """What hubs of this process make for their connections, as long as it is there; no garbage is looked for."""
    things: weakref.WeakSet[Any] = weakref.WeakSet()
    accept, run = Reception.accept, TerminalSocket.run

    def accepted(self: Reception, connection: TerminalConnection) -> bool:
        things.update((connection, connection._raw, connection.protocol))
        return accept(self, connection)

    async def ran(self: TerminalSocket) -> None:
        things.update((self, self._session))
        await run(self)

    monkeypatch.setattr(Reception, "accept", accepted)
    monkeypatch.setattr(TerminalSocket, "run", ran)
    return things


@pytest.mark.parametrize("tls", [False, True], ids=["in the clear", "with TLS"])
async def test_a_connection_that_is_over_leaves_no_circle_of_references_behind(
    tls: bool, tmp_path: Path, made: weakref.WeakSet[Any]
) -> None:
    certificate = make_certificate(tmp_path)
    files = {"tls_cert": str(certificate.certificate), "tls_key": str(certificate.key)} if tls else {}
    async with running_hub(tmp_path, **files) as hub:
        await hub.add_account("ada")
        url = hub.url.replace("ws:", "wss:") if tls else hub.url
        gc.collect()
        gc.disable()
        try:
            for say in (*drips.kinds(tls=False), *drips.kinds(tls=True), drips.open_socket(b"no frame at all")):
                holding = asyncio.create_task(drips.one(hub.server.port, "127.0.0.1", say, Counter()))
                await asyncio.wait([holding], timeout=0.1)  # as far as it gets
                holding.cancel()
                await asyncio.wait([holding])
            async with connect(
                url, ssl=certificate.trusting() if tls else None, subprotocols=[Subprotocol("lockstep.v1")],
                compression=None, ping_interval=None, proxy=None,
            ) as socket:  # fmt: skip
                await RawTerminal(socket, "127.0.0.1", hub.server.port).enrol("ada")
                assert len(made) >= 5
            with contextlib.suppress(TimeoutError):
                await until(lambda: not made, within_seconds=3)
            assert sorted(type(one).__name__ for one in made) == []
        finally:
            gc.enable()
