"""Slow and stalled peers cost only themselves. `python -m tests.chaos.slow --seed N --rounds N`.

A hub in a limit of 512 MiB; light terminals (tests.chaos.light) of one account: some that read 1 Mbit/s each and take a
large object all the time, one that stops reading, and the others, which are sent a small program one after the other,
ten times a second. Rounds with and without the slow ones alternate, so that what else the machine does falls on both;
compared is the time from the request to the word that it is done. The slow ones are a process of their own.
"""

import argparse
import asyncio
import contextlib
import math
import multiprocessing
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final

from protocol import messages
from protocol.keys import SigningKey
from protocol.limits import MIB
from tests.chaos.light import LightTerminal, allow_files, prepare, settled, share_online
from tests.chaos.outcome import Options, Outcome
from tests.harness.hubs import HubProcess

MEMORY_BYTES: Final = 512 * MIB
LINK_BYTES_PER_SECOND: Final = 125_000
SMALL_BYTES: Final = 1 * MIB
LARGE_BYTES: Final = 64 * MIB
FIRST_BYTES: Final = 200_000  # what the one that stalls has taken before
CUT_WITHIN_SECONDS: Final = 22.0
CHANGE_AT_MOST: Final = 0.10
CHANGE_AT_MOST_SECONDS: Final = 0.010  # less than this two shared processors cannot tell from nothing
WITHIN_SECONDS: Final = 60.0
SETTLE_SECONDS: Final = 10.0  # until the logins are told to all and the windows are full, or all is queued again
PACE_SECONDS: Final = 0.1  # between two deliveries: the hub is busy with them, not overrun by them
_GROUPS: Final = Path("/sys/fs/cgroup/memory")


@dataclass(frozen=True, slots=True)
class Size:
    """How much: terminals in all, slow ones among them, rounds of each sort, deliveries in a round."""

    terminals: int = 500
    slow: int = 200
    rounds: int = 6
    deliveries: int = 60


@dataclass(frozen=True, slots=True)
class Result:
    """Seconds of each delivery without and with the slow ones; what became of the stalled one; the hub's memory.

    `busy_...` is the share of a processor the hub used meanwhile, which other work on the machine changes less.
    """

    alone: list[float]
    beside: list[float]
    slow_bytes_per_second: float
    stalled_seconds: float
    peak_bytes: int
    limited_by: str
    busy_alone: float
    busy_beside: float

    @property
    def change(self) -> float:
        """How much larger the p99 is beside the slow ones."""
        return p99(self.beside) / p99(self.alone) - 1

    @property
    def passed(self) -> bool:
        """Whether slow and stalled ones have cost only themselves."""
        fair = self.change < CHANGE_AT_MOST or p99(self.beside) - p99(self.alone) < CHANGE_AT_MOST_SECONDS
        return fair and self.stalled_seconds <= CUT_WITHIN_SECONDS and self.peak_bytes < MEMORY_BYTES

    def __str__(self) -> str:
        return (
            f"p99 {p99(self.alone) * 1e3:.0f} -> {p99(self.beside) * 1e3:.0f} ms ({self.change:+.1%}), median "
            f"{statistics.median(self.alone) * 1e3:.0f} -> {statistics.median(self.beside) * 1e3:.0f} ms of "
            f"{len(self.alone)} and {len(self.beside)} deliveries; the slow ones took "
            f"{self.slow_bytes_per_second / 1e6:.1f} MB/s; the stalled one was cut after {self.stalled_seconds:.1f} s; "
            f"the hub's peak was {self.peak_bytes / MIB:.0f} MiB (limited by {self.limited_by}), and it used "
            f"{self.busy_alone:.0%} -> {self.busy_beside:.0%} of a processor; the machine's load is "
            f"{os.getloadavg()[0]:.1f}"
        )


def p99(times: list[float]) -> float:
    """Return the 99th percentile."""
    return sorted(times)[math.ceil(len(times) * 0.99) - 1]


@contextmanager
def memory_limit(pid: int) -> Iterator[str]:
    """Limit the memory of a process: by a control group where they can be made, else its data by RLIMIT_DATA."""
    group = _GROUPS / f"lockstep-{pid}"
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(MEMORY_BYTES))
        (group / "cgroup.procs").write_text(str(pid))
    except OSError:
        resource.prlimit(pid, resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
        yield "RLIMIT_DATA"
        return
    try:
        yield "a memory control group"
    finally:
        with contextlib.suppress(OSError):  # the hub is in it until it has ended
            (_GROUPS / "cgroup.procs").write_text(str(pid))
        with contextlib.suppress(OSError):
            group.rmdir()


def _set_priority(pid: int, nice: int) -> None:
    """Let what is measured come before what else this machine does, where that is allowed."""
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, pid, nice)


# --- the slow side, a process of its own ----------------------------------------------------------------------------


def _slow_side(pipe: Connection, terminals: list[tuple[str, bytes, str]]) -> None:
    _set_priority(0, 5)  # it stands for other machines: it must not take the hub's processor
    allow_files(4 * len(terminals))
    *slow_ones, stalled = terminals
    made = [
        LightTerminal(name, SigningKey(seed), one, bytes_per_second=LINK_BYTES_PER_SECOND)
        for name, seed, one in slow_ones
    ]
    name, seed, one = stalled
    asyncio.run(_serve_slow(pipe, [*made, LightTerminal(name, SigningKey(seed), one)]))


async def _serve_slow(pipe: Connection, terminals: list[LightTerminal]) -> None:
    """Answer each command; the last terminal is not slow, and is the one to be stalled.

    A URL is the hub's; "on" and "off" connect and disconnect the slow ones; "bytes" is what they have taken;
    "stall" connects and stalls the last and answers after how many seconds it was cut.
    """
    loop = asyncio.get_running_loop()
    tasks: list[asyncio.Task[None]] = []
    url = ""
    while (command := await loop.run_in_executor(None, pipe.recv)) != "end":
        answer = 0.0
        if command == "on":
            tasks = [asyncio.create_task(one.stay(url)) for one in terminals[:-1]]
            await share_online(terminals, len(tasks), WITHIN_SECONDS)
        elif command == "off":
            await settled(tasks)
        elif command == "bytes":
            answer = float(sum(one.heard_bytes for one in terminals[:-1]))
        elif command == "stall":
            tasks.append(asyncio.create_task(terminals[-1].stay(url)))
            answer = await _stalled(terminals[-1])
        else:
            url = command
        pipe.send(answer)
    await settled(tasks)


async def _stalled(terminal: LightTerminal) -> float:
    """Read nothing more while frames come; return after how many seconds the hub's kernel says that it hung up."""
    while terminal.heard_bytes < FIRST_BYTES:  # noqa: ASYNC110 - no event tells of bytes
        await asyncio.sleep(0.002)
    assert terminal.raw is not None
    transport = terminal.raw.socket.transport
    transport.pause_reading()
    port = transport.get_extra_info("sockname")[1]
    began = time.monotonic()
    while _is_held(port) and time.monotonic() - began < 2 * CUT_WITHIN_SECONDS:  # noqa: ASYNC110 - another process
        await asyncio.sleep(0.1)
    return time.monotonic() - began


def _is_held(port: int) -> bool:
    """Whether the hub holds its end of the connection from `port` (proc(5), /proc/net/tcp: established is 01)."""
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    return any(fields[2].endswith(f":{port:04X}") and fields[3] == "01" for fields in map(str.split, lines))


class SlowSide:
    """The process of the slow ones, asked over a pipe."""

    def __init__(self, terminals: list[LightTerminal]) -> None:
        spawning = multiprocessing.get_context("spawn")
        self._pipe, theirs = spawning.Pipe()
        keys = [(one.name, one.signing_key.seed, one.terminal) for one in terminals]
        self._process = spawning.Process(target=_slow_side, args=(theirs, keys), daemon=True)
        self._process.start()

    async def ask(self, command: str) -> float:
        """Send a command and return the answer."""
        self._pipe.send(command)
        return float(await asyncio.get_running_loop().run_in_executor(None, self._pipe.recv))

    def end(self) -> None:
        """End it."""
        self._pipe.send("end")
        self._process.join(10)
        self._process.kill()


# --- the others -----------------------------------------------------------------------------------------------------


class Others:
    """Terminals with good links. The first asks for syncs; `deliver` sends the small program to the others in turn."""

    def __init__(self, terminals: list[LightTerminal]) -> None:
        self._asks, *self._targets = terminals
        self._next = 0
        self._requests = 0
        self._done = asyncio.Event()
        for one in self._targets:
            one.done = lambda _delivery: self._done.set()

    async def deliver(self, count: int) -> list[float]:
        """Return the seconds of each delivery, from the request to the end."""
        times = []
        for _ in range(count):
            await asyncio.sleep(PACE_SECONDS)
            times.append(await self._deliver())
        return times

    async def _deliver(self) -> float:
        target = self._targets[self._next % len(self._targets)]
        self._next += 1
        self._done.clear()
        began = time.perf_counter()
        await self.ask("small", (target,))
        async with asyncio.timeout(WITHIN_SECONDS):
            await self._done.wait()
        return time.perf_counter() - began

    async def ask(self, program: str, targets: Sequence[LightTerminal]) -> None:
        """Ask for a sync."""
        self._requests += 1
        number = self._requests
        assert self._asks.raw is not None
        terminals = tuple(one.terminal for one in targets)
        await self._asks.raw.say(messages.Sync(id=number, request_key=f"{number}", program=program, targets=terminals))


async def slow(folder: Path, size: Size) -> Result:
    """Run it all."""
    [terminals] = await prepare(folder, 1, size.terminals, {"small": SMALL_BYTES, "large": LARGE_BYTES})
    allow_files(len(terminals))
    good, slow_ones = terminals[: -size.slow - 1], terminals[-size.slow - 1 :]
    side = SlowSide(slow_ones)
    try:
        async with HubProcess(folder / "hub") as hub:
            await side.ask(hub.url)
            for process in (0, hub.pid):
                _set_priority(process, -10)
            with memory_limit(hub.pid) as limited_by:
                tasks = [asyncio.create_task(one.stay(hub.url, gate=asyncio.Semaphore(64))) for one in good]
                await share_online(good, len(good), WITHIN_SECONDS)
                result = await _rounds(hub, side, Others(good), slow_ones, size, limited_by)
                await settled(tasks)
        return result
    finally:
        side.end()


async def _rounds(
    hub: HubProcess, side: SlowSide, others: Others, slow_ones: list[LightTerminal], size: Size, limited_by: str
) -> Result:
    alone: list[float] = []
    beside: list[float] = []
    rates: list[float] = []
    busy_alone: list[float] = []
    busy_beside: list[float] = []
    await others.ask("large", slow_ones)
    await others.deliver(10)  # to warm up
    stalled_seconds = math.inf
    for number in range(size.rounds):
        alone += await _busy(hub, busy_alone, others.deliver(size.deliveries))
        await side.ask("on")
        await asyncio.sleep(SETTLE_SECONDS)
        before, began = await side.ask("bytes"), time.monotonic()
        beside += await _busy(hub, busy_beside, others.deliver(size.deliveries))
        rates.append((await side.ask("bytes") - before) / (time.monotonic() - began))
        if number == size.rounds - 1:
            stalled_seconds = await side.ask("stall")
        await side.ask("off")
        await asyncio.sleep(SETTLE_SECONDS)
    return Result(
        alone, beside, statistics.mean(rates), stalled_seconds, hub.largest_memory_bytes(), limited_by,
        statistics.mean(busy_alone), statistics.mean(busy_beside),
    )  # fmt: skip


async def _busy(hub: HubProcess, shares: list[float], work: Awaitable[list[float]]) -> list[float]:
    """Do `work`, and add the share of a processor that the hub used meanwhile to `shares`."""
    used, began = hub.cpu_seconds(), time.monotonic()
    result = await work
    shares.append((hub.cpu_seconds() - used) / (time.monotonic() - began))
    return result


def run(options: Options) -> Outcome:
    """Run it as a part of the chaos run."""
    result = asyncio.run(slow(options.folder, Size(rounds=max(1, min(6, options.kills // 200)))))
    return Outcome(passed=result.passed, line=str(result))


def main(arguments: list[str]) -> int:
    """Print what was measured; 1 when somebody else paid for a slow one."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.slow")
    parser.add_argument("--seed", type=int, default=1, help="named in the output; this part draws nothing from it")
    for name, default in (("terminals", 500), ("slow", 200), ("rounds", 6), ("deliveries", 60)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args(arguments)
    size = Size(given.terminals, given.slow, given.rounds, given.deliveries)
    with tempfile.TemporaryDirectory(prefix="lockstep-slow-") as folder:
        result = asyncio.run(slow(Path(folder), size))
    print(f"slow: seed {given.seed}, {size}: {result}: {'passed' if result.passed else 'FAILED'}")
    return 0 if result.passed else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
