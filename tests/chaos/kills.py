"""SIGKILL at seeded moments: the hub, a terminal, both at once, most of them while an object flows.

Out of 1,700 kills 1,000 are the hub's, 500 a terminal's, 200 both. Two worlds run side by side, each with a hub, three
terminals behind 1.5 MiB/s links and an initiator. A kill counts as mid-transfer when at its moment an object was
flowing to a device (to the killed one, for a terminal's kill; to any, for the hub's) over an open connection and the
link had carried fewer bytes since the request than the object has, so that it cannot have been whole there.

Accepted is what was answered with `sync_accepted`, as written down outside of Lockstep. Lost: unknown afterwards, not
ended within two minutes, or ended otherwise than well. Doubled: the installer's command ran again though what it
installs was in place. Wrong: said to be done, and the file in place has another SHA-256.

A resume is a further connection of the same sync on which the object went on flowing. What the links carried beyond the
object's stored size holds frames sent twice, the manifest again, the logins' chatter and what a killed terminal had not
read yet; what lay in the hub's or the proxy's buffers when a link ended never came over it. It may be one window of
frames for each resume (16 of 256 KiB) and 128 KiB for each connection.

Which moments are chosen follows from the seed; what the processes were doing then does not, so a seed that failed once
may have to be run more than once.
"""

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from tests.chaos.devices import Device
from tests.chaos.ledger import Ledger
from tests.chaos.outcome import Options, Outcome
from tests.chaos.world import Faults, World, opened_world

Kind = Literal["hub", "terminal", "both"]
Moment = Literal["flowing", "whole", "installing", "accepted", "any"]

SHARES: Final[dict[Kind, int]] = {"hub": 1_000, "terminal": 500, "both": 200}
MOMENTS: Final[dict[Moment, int]] = {"flowing": 60, "whole": 10, "installing": 16, "accepted": 6, "any": 8}
WORLDS: Final = 2
LEAST_MID_TRANSFER: Final = 0.6
SAY_EVERY_KILLS: Final = 25
MOMENT_WITHIN_SECONDS: Final = 20.0
ANY_WITHIN_SECONDS: Final = 1.5
ACCEPTED_WITHIN_SECONDS: Final = 0.05
WHOLE_WITHIN_SECONDS: Final = 0.2
INSTALLING_WITHIN_SECONDS: Final = 0.3
GIVE_UP_AT_LOST: Final = 20
EARLY_SHARE: Final = 0.05  # of the hub's starts that are killed as well, before it listens; not counted as kills
EARLY_WITHIN_SECONDS: Final = 0.8
DAMAGE_SHARE: Final = 0.25  # of the terminal's kills after which its partial file is damaged
SILENT_SHARE: Final = 0.2  # of the terminal's kills of which the hub is not told by an end of the connection
CUT_SHARE: Final = 0.1  # of the kills that come with a link cut
WATCH_EVERY_SECONDS: Final = 0.005
LAST_PART: Final = 0.95  # of what is still to come, so that the kill meets the object before it is whole


@dataclass(slots=True)
class Tally:
    """What the killers of all worlds did."""

    goal: int
    kills: int = 0
    mid_transfer: int = 0
    damaged: int = 0
    cuts: int = 0
    missed: list[str] = field(default_factory=list)
    say_at: int = SAY_EVERY_KILLS

    @property
    def line(self) -> str:
        """For people."""
        return (
            f"{self.kills} kills, {self.mid_transfer} mid-transfer, {self.cuts} links cut, "
            f"{self.damaged} partial files damaged, {len(self.missed)} moments that did not come"
        )


class Killer:
    """Kills in one world, by its own chance."""

    def __init__(self, world: World, chance: random.Random, tally: Tally, moments: dict[Moment, int]) -> None:
        self._world = world
        self._chance = chance
        self._tally = tally
        self._moments = moments

    async def kill(self, kind: Kind) -> None:
        """Wait for a moment, kill, start again."""
        (moment,) = self._chance.choices([*self._moments], [*self._moments.values()])
        device = await self._wait_for(moment)
        self._world.note_deaths()
        hit = [device] if kind == "terminal" else self._world.devices
        self._tally.mid_transfer += any(one.is_mid_transfer() for one in hit)
        self._tally.kills += 1
        await self._kill(kind, device)

    async def _kill(self, kind: Kind, device: Device) -> None:
        if self._chance.random() < CUT_SHARE:
            self._chance.choice(self._world.devices).proxy.cut()
            self._tally.cuts += 1
        with_installers = self._chance.random() < 0.5
        for one in self._world.devices:
            one.end_silence()
        if kind == "terminal" and self._chance.random() < SILENT_SHARE:
            device.go_silent()
        if kind != "terminal":
            self._world.hub.kill_now()
        if kind != "hub":
            await device.process.kill(with_installers=with_installers)
            if self._chance.random() < DAMAGE_SHARE:
                self._tally.damaged += device.damage(self._chance)
            await device.process.start()
        if kind != "terminal":
            await self._world.hub.kill()
            if self._chance.random() < EARLY_SHARE:
                await self._world.kill_early(self._chance.uniform(0, EARLY_WITHIN_SECONDS))
            await self._world.start_hub()

    async def _wait_for(self, moment: Moment) -> Device:
        """Wait for the moment and return the device that it came at."""
        device = self._chance.choice(self._world.devices)
        try:
            async with asyncio.timeout(MOMENT_WITHIN_SECONDS):
                match moment:
                    case "flowing":
                        return await self._flowing()
                    case "whole":
                        return await self._whole()
                    case "installing":
                        return await self._installing()
                    case "accepted":
                        self._world.accepted.clear()
                        await self._world.accepted.wait()
                        await asyncio.sleep(self._chance.uniform(0, ACCEPTED_WITHIN_SECONDS))
                    case "any":
                        await asyncio.sleep(self._chance.uniform(0, ANY_WITHIN_SECONDS))
        except TimeoutError:
            self._tally.missed.append(moment)  # it did not come: then the kill falls now
        return device

    async def _flowing(self) -> Device:
        """Wait until a part of what is still to come of an object has come."""
        part = self._chance.uniform(0, LAST_PART)
        while True:
            device = self._chance.choice(await self._where(Device.is_mid_transfer))
            job, left_bytes = device.job, device.left_bytes() * (1 - part)
            await _until(lambda: not device.is_mid_transfer() or device.left_bytes() <= left_bytes)  # noqa: B023
            if device.job is job and device.is_mid_transfer():
                return device

    async def _whole(self) -> Device:
        """Wait until the last of an object has come, and then some: it is verified, and asks whether it may install."""
        device = min(await self._where(Device.is_mid_transfer), key=Device.left_bytes)
        await _until(lambda: not device.is_mid_transfer())
        await asyncio.sleep(self._chance.uniform(0, WHOLE_WITHIN_SECONDS))
        return device

    async def _installing(self) -> Device:
        """Wait until an installer has begun, and then some."""
        logs_bytes = {device.name: device.place.log_bytes() for device in self._world.devices}
        devices = await self._where(lambda one: one.place.log_bytes() > logs_bytes[one.name])
        await asyncio.sleep(self._chance.uniform(0, INSTALLING_WITHIN_SECONDS))
        return devices[0]

    async def _where(self, true: Callable[[Device], bool]) -> list[Device]:
        """Wait until it is so at a device; return where it is."""
        found: list[Device] = []
        while not found:
            await asyncio.sleep(WATCH_EVERY_SECONDS)
            found = [device for device in self._world.devices if true(device)]
        return found


async def _until(true: Callable[[], bool]) -> None:
    while not true():  # noqa: ASYNC110 - what is waited for lies in other processes and on links
        await asyncio.sleep(WATCH_EVERY_SECONDS)


def plan(kills: int, chance: random.Random) -> list[Kind]:
    """Return the kinds of `kills` kills in a random order, in the shares of the full run."""
    whole = sum(SHARES.values())
    kinds: list[Kind] = [kind for kind, share in SHARES.items() for _ in range(round(kills * share / whole))]
    kinds = (kinds + ["hub"] * kills)[:kills]
    chance.shuffle(kinds)
    return kinds


async def chaos(
    folder: Path,
    seed: int,
    kinds: list[Kind],
    tally: Tally,
    *,
    devices: int = 3,
    faults: Faults | None = None,
    moments: dict[Moment, int] | None = None,
    enough: Callable[[World], bool] = lambda world: False,
) -> World:
    """Kill as `kinds` say in one world, then let everything that was accepted end; return the world with its ledger.

    `enough` may end the killing sooner.
    """
    chance = random.Random(seed)
    async with opened_world(folder, seed, devices=devices, faults=faults) as world:
        stop = asyncio.Event()
        syncing = [
            asyncio.create_task(world.keep_syncing(device, random.Random(chance.getrandbits(64)), stop))
            for device in world.devices
        ]
        killer = Killer(world, chance, tally, moments or MOMENTS)
        try:
            for kind in kinds:
                await killer.kill(kind)
                if tally.kills >= tally.say_at:
                    tally.say_at += SAY_EVERY_KILLS
                    _say(tally, world)
                if enough(world) or len(world.ledger.lost) >= GIVE_UP_AT_LOST:
                    break
        finally:
            stop.set()
            await asyncio.gather(*syncing)
        world.note_deaths()
        await world.audit()
    return world


def _say(tally: Tally, world: World) -> None:
    ledger = world.ledger
    print(
        f"kills: {tally.kills} of {tally.goal}, {tally.mid_transfer} mid-transfer; {world.folder.name}: "
        f"{len(ledger.accepted)} accepted, {len(ledger.ended)} ended well, {ledger.resumes} resumes, "
        f"{len(ledger.lost)} lost, {len(world.doubled())} doubled, {len(ledger.wrong)} wrong",
        flush=True,
    )


async def _all_worlds(options: Options, tally: Tally) -> list[World]:
    chance = random.Random(options.seed)
    kinds = plan(options.kills, chance)
    worlds = [kinds[number::WORLDS] for number in range(WORLDS)]
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(chaos(options.folder / f"world{number}", options.seed + number * 7_919, part, tally))
            for number, part in enumerate(worlds)
            if part
        ]
    return [task.result() for task in tasks]


def run(options: Options) -> Outcome:
    """Kill `options.kills` times and sum up."""
    tally = Tally(options.kills)
    worlds = asyncio.run(_all_worlds(options, tally))
    return outcome_of(worlds, tally)


def outcome_of(worlds: list[World], tally: Tally) -> Outcome:
    """Print every breach and return the sum of what the worlds' ledgers hold."""
    total = Ledger.sum([world.ledger for world in worlds])
    doubled = [one for world in worlds for one in world.doubled()]
    breaches = {
        "lost": total.lost,
        "doubled": doubled,
        "wrong": total.wrong,
        "over one window": total.over_window,
        "died by itself": total.died,
    }
    errors = [one for world in worlds for one in world.errors()]
    for word, found in [*breaches.items(), ("an internal error that was survived", errors)]:
        for one in found:
            print(f"  {word}: {one}", flush=True)
    enough = tally.kills == tally.goal and tally.mid_transfer >= LEAST_MID_TRANSFER * tally.kills
    return Outcome(
        passed=enough and not any(breaches.values()),
        line="; ".join([tally.line, total.line, *(f"{len(found)} {word}" for word, found in breaches.items())])
        + f"; {len(errors)} internal errors in the logs",
        kills=tally.kills,
        mid_transfer=tally.mid_transfer,
        resumes=total.resumes,
        lost=len(total.lost),
        doubled=len(doubled),
        wrong=len(total.wrong),
    )
