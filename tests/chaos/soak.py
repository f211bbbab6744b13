"""Soak: many terminals and random faults for minutes; nothing may grow. `python -m tests.chaos.soak --minutes N`.

Light terminals (tests.chaos.light) behind proxies whose rates change; at random connections are cut, frozen or made to
lose what they carry, and syncs are asked for all the time. The hub runs in this process, so that its tasks can be
counted with `asyncio.all_tasks`; the terminals and proxies are a process of their own. Memory is VmRSS and descriptors
are /proc/self/fd (proc(5)), both once a second; the slope is that of the least squares over the second half.
"""

import argparse
import asyncio
import contextlib
import multiprocessing
import random
import sys
import tempfile
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final

from websockets.exceptions import ConnectionClosed

from protocol import messages
from protocol.keys import SigningKey
from protocol.limits import MIB
from tests.chaos.light import LightTerminal, allow_files, prepare, settled, share_online
from tests.chaos.outcome import Options, Outcome
from tests.harness.hubs import RunningHub
from tests.harness.proxy import SlowProxy

FAULTS_PER_SECOND: Final = 5.0
SYNCS_PER_SECOND: Final = 1.0
TARGETS: Final = 20
SAMPLE_SECONDS: Final = 1.0
PROXY_RATES: Final = (None, None, 1_000_000.0, 125_000.0)
FROZEN_SECONDS: Final = 45.0
# What may be added over the second half, as a share of the level: how many are connected swings by about a hundredth.
GROWTH_AT_MOST: Final = 0.03


@dataclass(frozen=True, slots=True)
class Sample:
    """One look at the hub's process."""

    at: float
    memory_bytes: int
    descriptors: int
    tasks: int


@dataclass(frozen=True, slots=True)
class Result:
    """All samples, and what happened meanwhile."""

    samples: list[Sample]
    faults: int
    logins: int
    delivered: int
    errors: int

    @property
    def _half(self) -> list[Sample]:
        return self.samples[len(self.samples) // 2 :]

    def slope(self, field: str) -> float:
        """Return the growth per hour over the second half."""
        return 3600 * least_squares([(one.at, float(getattr(one, field))) for one in self._half])

    def growth(self, field: str) -> float:
        """Return the growth over the second half as a share of the level there."""
        half = self._half
        level = sum(float(getattr(one, field)) for one in half) / len(half)
        return self.slope(field) / 3600 * (half[-1].at - half[0].at) / level

    @property
    def passed(self) -> bool:
        """Whether nothing grew and there was no error."""
        flat = all(self.growth(field) < GROWTH_AT_MOST for field in ("memory_bytes", "descriptors", "tasks"))
        return flat and not self.errors and self.delivered > 0

    def __str__(self) -> str:
        last = self.samples[-1]
        return (
            f"{self.samples[-1].at - self.samples[0].at:.0f} s, faults={self.faults} logins={self.logins} "
            f"delivered={self.delivered} errors={self.errors}; an hour would add "
            f"{self.slope('memory_bytes') / MIB:+.1f} MiB, {self.slope('descriptors'):+.0f} descriptors, "
            f"{self.slope('tasks'):+.0f} tasks; at the end {last.memory_bytes / MIB:.0f} MiB, "
            f"{last.descriptors} descriptors, {last.tasks} tasks"
        )


def least_squares(points: list[tuple[float, float]]) -> float:
    """Return the slope of the line through the points."""
    count = len(points)
    middle_x, middle_y = sum(x for x, _ in points) / count, sum(y for _, y in points) / count
    spread = sum((x - middle_x) ** 2 for x, _ in points)
    return sum((x - middle_x) * (y - middle_y) for x, y in points) / spread if spread else 0.0


def _sample() -> Sample:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    descriptors = sum(1 for _ in Path("/proc/self/fd").iterdir())
    return Sample(time.monotonic(), pages * 4096, descriptors, len(asyncio.all_tasks()))


# --- the terminals, a process of their own --------------------------------------------------------------------------


def _terminals(pipe: Connection, keys: list[tuple[str, bytes, str]], seed: int) -> None:
    allow_files(6 * len(keys))
    asyncio.run(_live(pipe, [LightTerminal(name, SigningKey(key), one) for name, key, one in keys], seed))


async def _live(pipe: Connection, terminals: list[LightTerminal], seed: int) -> None:
    """Say the proxies' names, hear the hub's port, live until told to end, and say what happened."""
    loop, chance = asyncio.get_running_loop(), random.Random(seed)
    async with contextlib.AsyncExitStack() as stack:
        proxies = [await stack.enter_async_context(SlowProxy(down_bytes_per_second=rate)) for rate in PROXY_RATES]
        pipe.send([proxy.name for proxy in proxies])
        port = await loop.run_in_executor(None, pipe.recv)
        for proxy in proxies:
            proxy.target_port = port
        gate = asyncio.Semaphore(64)
        counts = {"faults": 0, "delivered": 0}

        def count(_delivery: str) -> None:
            counts["delivered"] += 1

        tasks = []
        for number, one in enumerate(terminals):
            one.done = count
            tasks.append(asyncio.create_task(one.stay(proxies[number % len(proxies)].url, gate=gate)))
        await share_online(terminals, len(terminals), 120.0)
        pipe.send("online")
        work = [asyncio.create_task(_break(proxies, counts, chance)), asyncio.create_task(_ask(terminals, chance))]
        await loop.run_in_executor(None, pipe.recv)
        failed = [f"{task.exception()}" for task in work if task.done()]
        await settled([*work, *tasks])
    errors = [*failed, *(error for one in terminals for error in one.errors)]
    pipe.send((counts["faults"], sum(one.logins for one in terminals), counts["delivered"], errors))


async def _break(proxies: list[SlowProxy], counts: dict[str, int], chance: random.Random) -> None:
    """Cut, freeze or make lossy one connection after the other, at random."""
    loop = asyncio.get_running_loop()
    while True:
        await asyncio.sleep(chance.expovariate(FAULTS_PER_SECOND))
        proxy = chance.choice(proxies)
        proxy.connections = found = proxy.open_connections()
        if not found:
            continue
        connection = chance.choice(found)
        counts["faults"] += 1
        match chance.randrange(4):
            case 0 | 1:
                connection.cut()
            case 2:
                connection.freeze()
                loop.call_later(FROZEN_SECONDS, connection.cut)
            case 3:
                connection.swallow()
                loop.call_later(FROZEN_SECONDS, connection.cut)


async def _ask(terminals: list[LightTerminal], chance: random.Random) -> None:
    """Ask for one sync after the other, each time from another terminal to some others."""
    number = 0
    while True:
        await asyncio.sleep(1 / SYNCS_PER_SECOND)
        number += 1
        asks = chance.choice(terminals)
        if asks.raw is not None:
            targets = tuple(one.terminal for one in chance.sample(terminals, min(TARGETS, len(terminals))))
            program = chance.choice(("small", "large"))
            sync = messages.Sync(id=number, request_key=f"{number}", program=program, targets=targets)
            with contextlib.suppress(ConnectionClosed):
                await asks.raw.say(sync)


# --- the hub --------------------------------------------------------------------------------------------------------


async def soak(folder: Path, terminals: int, seconds: float, seed: int) -> Result:
    """Run the hub for so long and look at it once a second."""
    [made] = await prepare(folder, 1, terminals, {"small": 100_000, "large": 4 * MIB})
    allow_files(2 * terminals)
    spawning = multiprocessing.get_context("spawn")
    pipe, theirs = spawning.Pipe()
    keys = [(one.name, one.signing_key.seed, one.terminal) for one in made]
    process = spawning.Process(target=_terminals, args=(theirs, keys, seed), daemon=True)
    process.start()
    loop = asyncio.get_running_loop()
    try:
        names = tuple(await loop.run_in_executor(None, pipe.recv))
        hub = RunningHub(folder / "hub", names=names)
        await hub.start()
        try:
            pipe.send(hub.server.port)
            await loop.run_in_executor(None, pipe.recv)
            samples = await _watch(seconds)
            pipe.send("end")
            faults, logins, delivered, errors = await loop.run_in_executor(None, pipe.recv)
        finally:
            await hub.stop()
    finally:
        process.kill()
    for error in errors[:10]:
        print(f"soak: {error}", file=sys.stderr)
    return Result(samples, faults, logins, delivered, len(errors))


async def _watch(seconds: float) -> list[Sample]:
    samples = [_sample()]
    while samples[-1].at - samples[0].at < seconds:
        await asyncio.sleep(SAMPLE_SECONDS)
        samples.append(_sample())
    return samples


def run(options: Options) -> Outcome:
    """Run it as a part of the chaos run: ten minutes for the whole run, less for a smaller one."""
    seconds = max(60.0, min(600.0, options.kills * 0.4))
    result = asyncio.run(soak(options.folder, 500, seconds, options.seed))
    return Outcome(passed=result.passed, line=str(result))


def main(arguments: list[str]) -> int:
    """Print the slopes; 1 when something grew."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.soak")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--terminals", type=int, default=500)
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="lockstep-soak-") as folder:
        result = asyncio.run(soak(Path(folder), given.terminals, given.minutes * 60, given.seed))
    print(f"soak: seed {given.seed}: {result}: {'passed' if result.passed else 'FAILED'}")
    return 0 if result.passed else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
