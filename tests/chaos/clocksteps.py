"""`python -m tests.chaos.clocksteps`: the clocks of a hub and of a terminal jump by an hour and by 400 days, both ways.

Both run under libfaketime, which reads the offset anew every second; the machine's own clock is not touched.
CLOCK_MONOTONIC is left alone, as on a real system, where no step ever moves it (clock_gettime(2)). After each step a
sync has to come through, the device list has to follow who comes and goes, a hub that is started anew has to
get its terminal back, and what waits for a device that is away has to wait still. TLS certificates are out of scope.
"""

import asyncio
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from protocol import life, limits
from terminal.client import enrol, open_client
from terminal.state import StateFolder
from tests.chaos.alone import FULL_KILLS, run_alone
from tests.chaos.outcome import Options, Outcome
from tests.chaos.processes import ChaosHub, ChaosTerminal
from tests.harness.fleets import DeviceEvents, TestFleet, devices, ended
from tests.harness.hubs import PASSWORD
from tests.harness.installers import make_installer
from tests.harness.raw import DEVICE, raw_terminal

HOUR: Final = 3_600
DAY: Final = 24 * HOUR
STEPS_SECONDS: Final = (HOUR, -HOUR, 400 * DAY, -400 * DAY)
WHO: Final = ("hub", "terminal", "both")
CONTROL: Final = [("hub", 400 * DAY)]
RESTARTS: Final = 4
DEAD_LOOKED_FOR: Final = 2
LOOKS_EVERY_SECONDS: Final = 1
LOOKS: Final = 10
HUNG_SECONDS: Final = 60.0
DEAD_SECONDS: Final = limits.PING_EVERY_SECONDS + limits.HEARD_WITHIN_SECONDS + limits.PRESENCE_GRACE_SECONDS + 10


def library() -> Path | None:
    """Return where Debian's libfaketime is, or None."""
    return next(iter(sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))), None)


class Clock:
    """The wall clock of one process: seconds it is wrong by, in a file that libfaketime reads."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.step(0)

    def step(self, seconds: int) -> None:
        """Let it be wrong by so much from now on."""
        new = self._file.with_suffix(".new")
        new.write_text(f"{seconds:+d}\n")
        new.replace(self._file)

    @property
    def environment(self) -> dict[str, str]:
        """What a process runs under it with."""
        return {
            "LD_PRELOAD": str(library()),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_CACHE_DURATION": str(LOOKS_EVERY_SECONDS),
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }


@dataclass
class World:
    """A hub and a terminal under clocks of their own, and two devices under the machine's."""

    folder: Path
    hub: ChaosHub
    terminal: ChaosTerminal
    clocks: dict[str, Clock]
    fleet: TestFleet
    asking: StateFolder
    target: str
    waiting: str = ""
    version: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    async def check(self, what: str, work: Awaitable[object], within_seconds: float = HUNG_SECONDS) -> None:
        """Wait for what a timer has to bring about."""
        self.counts["timers"] += 1
        try:
            async with asyncio.timeout(within_seconds):
                await work
        except TimeoutError:
            self.counts["hung"] += 1
            self.wrong.append(f"{what} did not happen within {within_seconds:g} s")

    async def after_step(self, step: str, *, restarts: bool, looks_dead: bool) -> None:
        """Look whether everything that runs by time goes on."""
        await self.check(f"{step}: a sync", self.sync())
        await self.check(f"{step}: the device list", self.come_and_go())
        if looks_dead:
            await self.check(f"{step}: finding a dead device", self.go_silent(), DEAD_SECONDS)
        if restarts:
            await self.hub.stop()
            await self.hub.start()
            # Who was connected for less than a minute waits longer each time before it dials again.
            within_seconds = HUNG_SECONDS + limits.RECONNECT_LARGEST_SECONDS
            await self.check(f"{step}: a sync after a restart", self.sync(), within_seconds)
            await self.check(
                f"{step}: connecting again", self.fleet.fleet.all_online(self.fleet.devices), within_seconds
            )
        await self.check(f"{step}: looking up what waits", self.still_waits(step))

    async def see_clock(self, number: int, seconds: int) -> None:
        """Wait until the hub's clock is wrong by so much; without that nothing would be tried here."""
        off_seconds = float("inf")
        for attempt in range(LOOKS):
            name = f"clock-{number}-{attempt}"
            await self.hub.ask("account add", name=name, password=PASSWORD)
            made_at = next(row["created_at"] for row in await self.hub.ask("account list") if row["name"] == name)
            off_seconds = made_at - time.time()
            if abs(off_seconds - seconds) < HUNG_SECONDS:
                return
            await asyncio.sleep(LOOKS_EVERY_SECONDS)
        self.wrong.append(f"the hub's clock is wrong by {off_seconds:.0f} s, not by {seconds} s")

    async def sync(self) -> None:
        """Publish a new version, bring it to the terminal, and see the watch end."""
        self.version += 1
        file = await asyncio.to_thread(
            make_installer, self.folder, "deb", version=f"1.{self.version}", size=60_000, seed=self.version
        )
        await self.hub.ask("publish", file=str(file), options={})
        async with open_client(self.asking) as client:
            watch = await client.sync("hello", targets=(self.target,))
            outcome = await ended(watch)
        if outcome != "done":
            rows = [(row.state, row.reason, row.detail) for row in watch.targets.values()]
            self.wrong.append(f"sync {watch.sync} ended {outcome}: {rows}")

    async def come_and_go(self) -> None:
        """See a device go offline and come back in the list another one is told."""
        watcher, other = self.fleet.devices
        with DeviceEvents.of(watcher) as events:
            await self.fleet.go_offline(other.name)
            await events.row(lambda row: row.name == other.name and not row.online)
            events.rows.clear()
            await self.fleet.go_online(other.name)
            await events.row(lambda row: row.name == other.name and row.online)

    async def go_silent(self) -> None:
        """See a device found dead whose link takes everything and answers nothing, no ping either."""
        async with raw_terminal(self.hub) as first, raw_terminal(self.hub, like=first) as raw:
            await first.enrol("ada", name="Silent")
            raw.terminal = first.terminal
            with DeviceEvents.of(self.fleet.devices[0]) as events:
                await raw.login()
                await events.row(lambda row: row.terminal == raw.terminal and row.online)
                raw.socket.transport.pause_reading()
                events.rows.clear()
                await events.row(lambda row: row.terminal == raw.terminal and not row.online)
            raw.socket.transport.abort()

    async def still_waits(self, step: str) -> None:
        """What is owed to a device that is away has to be queued still."""
        async with open_client(self.asking) as client:
            rows = await client.sync_result(self.waiting)
        self.counts["waiting looked up"] += 1
        for row in rows:
            if row.state != life.State.QUEUED:
                self.counts["expired"] += 1
                self.wrong.append(f"{step}: what waited for {row.name} is {row.state} ({row.reason})")


async def step_clocks(
    folder: Path, steps: Sequence[tuple[str, int]], *, looks_dead: int, restarts: int, module: str = "hub"
) -> World:
    """Step the clocks of ("hub", "terminal" or "both", seconds) and look after each; return what was counted.

    After the first `looks_dead` steps a dead device is waited for, after the first `restarts` the hub is started anew.
    """
    folder.mkdir(parents=True, exist_ok=True)
    clocks = {name: Clock(folder / f"clock-{name}") for name in ("hub", "terminal")}
    hub = ChaosHub(folder / "hub", module=(module,), environment=clocks["hub"].environment)
    terminal = ChaosTerminal(folder / "terminal", environment=clocks["terminal"].environment)
    await hub.start()
    try:
        await hub.ask("account add", name="ada", password=PASSWORD)
        await terminal.login(hub.url, "ada", "TV")
        agent = await terminal.start("run")
        try:
            async with devices(hub, "ada", 2, folder=folder / "devices") as fleet:
                world = await _settle(folder, hub, terminal, clocks, fleet)
                for number, (who, seconds) in enumerate(steps):
                    for name in clocks if who == "both" else (who,):
                        clocks[name].step(seconds)
                    await asyncio.sleep(LOOKS_EVERY_SECONDS + 0.1)  # nothing tells when the file has been read
                    await world.see_clock(number, seconds if who != "terminal" else 0)
                    await world.after_step(
                        f"{who} {seconds:+d} s", restarts=number < restarts, looks_dead=number < looks_dead
                    )
                    world.counts["steps"] += 1
                return world
        finally:
            with suppress(ProcessLookupError):
                agent.terminate()
            await agent.wait()
    finally:
        await hub.stop()


async def _settle(
    folder: Path, hub: ChaosHub, terminal: ChaosTerminal, clocks: dict[str, Clock], fleet: TestFleet
) -> World:
    """Log in the one who asks, and let a delivery wait for a device that is away."""
    asking = StateFolder(folder / "asking")
    await enrol(asking, hub.url, account="ada", password=PASSWORD, name="PC", device=DEVICE)
    target = StateFolder(terminal.disk / "state").identity().terminal
    world = World(folder, hub, terminal, clocks, fleet, asking, target)
    async with raw_terminal(hub) as raw:
        await raw.enrol("ada", name="Away")
    await world.sync()
    async with open_client(asking) as client:
        world.waiting = (await client.sync("hello", targets=(raw.terminal,))).sync
    return world


def run(options: Options) -> Outcome:
    """Step each clock by each step, back to right in between."""
    if library() is None:
        return Outcome(passed=False, line="libfaketime is not installed: sudo apt-get install faketime")
    steps = [(who, seconds) for who in WHO for size in STEPS_SECONDS for seconds in (size, 0)]
    steps = steps[: max(4, len(steps) * options.kills // FULL_KILLS)]
    world = asyncio.run(step_clocks(options.folder / "steps", steps, looks_dead=DEAD_LOOKED_FOR, restarts=RESTARTS))
    wall = step_clocks(options.folder / "wall", CONTROL, looks_dead=0, restarts=0, module="tests.chaos.wall_hub")
    control = asyncio.run(wall).counts["expired"]
    for sentence in world.wrong:
        print(f"  {sentence}", flush=True)
    line = (
        f"steps={world.counts['steps']} timers={world.counts['timers']} hung={world.counts['hung']} "
        f"waiting_looked_up={world.counts['waiting looked up']} wrong_expiries={world.counts['expired']} "
        f"wrong={len(world.wrong)}; control (hub time from the wall clock) that must expire: {control}"
    )
    return Outcome(
        passed=not world.wrong and control > 0, line=line, lost=world.counts["expired"], wrong=len(world.wrong)
    )


if __name__ == "__main__":
    sys.exit(run_alone(run, __doc__))
