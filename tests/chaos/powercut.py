"""`python -m tests.chaos.powercut`: cut the power of a hub at many points, and count what it had promised and lost.

A hub runs under strace through a load: accounts, publishing, enrolments, syncs with their deliveries, a stop and a
second start. Its record has every change of its data folder and every byte it sent. Then, for each of many cut points,
a disk is built as a power cut there would leave it (`crashdisk`, in four ways), the hub is opened on it, and everything
it had said to anyone before that point has to be there. The same load with SQLite's `synchronous=NORMAL` is the
control: there the loss has to show.
"""

import asyncio
import hashlib
import json
import random
import shutil
import sqlite3
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from hub.app import Hub, open_hub, serve_hub
from protocol import life, messages
from protocol.chunks import restore
from protocol.errors import LockstepError
from protocol.messages import AnyMessage, Run
from tests.chaos.alone import FULL_KILLS, run_alone
from tests.chaos.crashdisk import ALL_SURVIVORS, CrashDisk, cut_points
from tests.chaos.frames import FrameReader
from tests.chaos.outcome import Options, Outcome
from tests.chaos.processes import ChaosHub
from tests.chaos.terminalcut import cut_terminal, record_terminal
from tests.chaos.tracing import Heard, Said, Step, read_traces, traced
from tests.harness.fleets import devices, ended
from tests.harness.hubs import PASSWORD, hub_settings
from tests.harness.installers import make_installer

CUTS: Final = 200
MINIMUM_CUTS: Final = 10


# --- the load -----------------------------------------------------------------------------------------------------


async def record_hub(folder: Path, *, seed: int, rounds: int = 8, starts: int = 2, level: str = "FULL") -> list[Step]:
    """Run the load on a hub with its data in `folder`/disk/hub, and return what it did and said.

    It is started `starts` times, stopped in between and killed at the end.
    """
    module = ("hub",) if level == "FULL" else ("tests.chaos.weak_hub", level)
    (folder / "disk").mkdir(parents=True)
    hub = ChaosHub(folder / "disk" / "hub", module=module)
    hub.log = folder / "hub.log"
    records = [folder / f"trace-{start}" for start in range(starts)]
    for start, record in enumerate(records):
        hub.before = traced(record)
        await hub.start()
        try:
            await _load(hub, folder, start, rounds, seed)
        finally:
            await (hub.kill() if start == starts - 1 else hub.stop())
    return read_traces(records, folder / "disk")


async def _load(hub: ChaosHub, folder: Path, start: int, rounds: int, seed: int) -> None:
    chance = random.Random(f"{seed} {start}")
    account = f"account-{start}"
    await hub.ask("account add", name=account, password=PASSWORD)
    async with devices(hub, account, 6, folder=folder / f"devices-{start}", seed=seed) as fleet:
        for number in range(rounds):
            for kind in ("deb", "apk", "wheel"):
                file = make_installer(
                    folder, kind, f"app{start}", f"1.{number}", size=chance.randrange(5_000, 120_000), seed=seed
                )
                await hub.ask("publish", file=str(file), options={"program": f"app{start}"})
            watch = await fleet.initiator.sync(f"app{start}", everyone=True)
            assert await ended(watch) in ("done", "partly")
        await fleet.go_offline(*[device.name for device in fleet.devices[1:]])
        await fleet.initiator.sync(f"app{start}", everyone=True)


# --- what was promised --------------------------------------------------------------------------------------------


@dataclass
class Promised:
    """Everything the hub has said so far that must still be true after its power went."""

    hub_keys: set[bytes] = field(default_factory=set)
    accounts: set[str] = field(default_factory=set)
    published: set[str] = field(default_factory=set)
    terminals: dict[str, int] = field(default_factory=dict)
    syncs: dict[str, str] = field(default_factory=dict)
    deliveries: dict[str, set[str]] = field(default_factory=dict)
    permitted: set[str] = field(default_factory=set)
    noted: set[str] = field(default_factory=set)
    outcomes: dict[str, str] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """How many single promises these are."""
        named = len(self.hub_keys) + len(self.accounts) + len(self.published) + len(self.terminals) + len(self.syncs)
        return (
            named + len(self.permitted) + len(self.noted) + len(self.outcomes) + sum(map(len, self.deliveries.values()))
        )


class Listener:
    """Hears everything the hub says, and keeps what it promises."""

    def __init__(self) -> None:
        self.promised = Promised()
        self._readers: dict[str, FrameReader] = {}
        self._terminals: dict[str, str] = {}
        self._offered_key: dict[str, bytes] = {}

    def hear(self, said: Said) -> None:
        """Take what was said."""
        if said.data.startswith(b'{"result"'):
            self._hear_operator(json.loads(said.data)["result"])
        elif said.where != "stdout" and not said.data.startswith(b"{"):
            if said.data.startswith(b"HTTP/1.1"):
                self._readers[said.where] = FrameReader()
            if said.where in self._readers:
                for message in self._readers[said.where].feed(said.data):
                    self._hear_terminal(said.where, message)

    def _hear_operator(self, result: Any) -> None:
        if isinstance(result, dict) and "account" in result:
            self.promised.accounts.add(result["account"])
        elif isinstance(result, dict) and "digest" in result:
            self.promised.published.add(result["digest"])

    def _hear_terminal(self, where: str, message: AnyMessage) -> None:
        promised = self.promised
        match message:
            case messages.Challenge():
                self._offered_key[where] = message.hub_key
            case messages.Welcome():
                promised.hub_keys.add(self._offered_key[where])
                promised.terminals[message.terminal] = message.connection
                self._terminals[where] = message.terminal
            case messages.SyncAccepted():
                promised.syncs[message.sync] = self._terminals[where]
                promised.deliveries.setdefault(message.sync, set()).update(row.delivery for row in message.targets)
            case messages.Noted(state=life.State.INSTALLING):
                promised.permitted.add(message.of)
            case messages.Noted(state=life.State.DONE):
                promised.noted.add(message.of)
            case messages.SyncDone():
                promised.outcomes[message.sync] = message.outcome


# --- what is there ------------------------------------------------------------------------------------------------


async def losses(folder: Path, promised: Promised) -> list[str]:
    """Open the hub's data in `folder` and return what of `promised` is not there, or is damaged."""
    lost: list[str] = []
    try:
        async with open_hub(hub_settings(folder)) as hub, serve_hub(hub):
            lost += [sentence async for sentence in _lost(hub, promised)]
            lost += _damaged_objects(hub, folder)
    except LockstepError as error:
        return [f"integrity: the hub does not start: {error}"]
    return [*lost, *_unsound(folder / "hub.db")]


def _unsound(database: Path) -> list[str]:
    connection = sqlite3.connect(database)
    try:
        found = str(connection.execute("PRAGMA integrity_check").fetchone()[0])
    except sqlite3.DatabaseError as error:
        found = str(error)
    finally:
        connection.close()
    return [] if found == "ok" else [f"integrity: {found}"]


async def _lost(hub: Hub, promised: Promised) -> Any:
    for key in promised.hub_keys - {hub.hub_key.public}:
        yield f"lost: the hub key {key.hex()[:8]} that terminals have pinned"
    for account in promised.accounts - {row.name for row in await hub.accounts.listing()}:
        yield f"lost: account {account}"
    for digest in promised.published - {row.digest for row in await hub.catalogue.listing()}:
        yield f"lost: published object {digest}"
    for terminal, connection in promised.terminals.items():
        found = await hub.accounts.find(terminal)
        if found is None or found.connection < connection:
            yield f"lost: terminal {terminal}, login {connection}"
    for sync, initiator in promised.syncs.items():
        for sentence in await _lost_of_sync(hub, promised, sync, initiator):
            yield sentence


async def _lost_of_sync(hub: Hub, promised: Promised, sync: str, initiator: str) -> list[str]:
    terminal = await hub.accounts.find(initiator)
    try:
        assert terminal is not None
        rows = {row.delivery: row for row in await hub.syncs.targets(terminal, sync)}
    except (LockstepError, AssertionError):
        return [f"lost: sync {sync}"]
    lost = [f"lost: delivery {delivery}" for delivery in promised.deliveries[sync] - set(rows)]
    undone = [row for row in rows.values() if row.delivery in promised.noted and row.state != life.State.DONE]
    lost += [f"lost: delivery {row.delivery} was noted done and is {row.state}" for row in undone]
    begun = {life.State.INSTALLING, *life.FINAL}
    undone = [row for row in rows.values() if row.delivery in promised.permitted and row.state not in begun]
    lost += [f"lost: delivery {row.delivery} was permitted to install and is {row.state}" for row in undone]
    still_open = [row.delivery for row in rows.values() if row.state not in life.FINAL]
    if sync in promised.outcomes and still_open:
        lost.append(f"lost: sync {sync} had ended and {still_open} are open")
    return lost


def _damaged_objects(hub: Hub, folder: Path) -> list[str]:
    """Read every object that has a manifest: it must be whole."""
    damaged = []
    for file in sorted((folder / "objects").rglob("*.manifest")):
        try:
            pack = hub.objects.open(bytes.fromhex(file.stem))
            entries = [(pack.manifest[index], pack.read(Run(index, 1))) for index in range(pack.manifest.count)]
            whole = hashlib.sha256(b"".join(restore(stored, entry) for entry, stored in entries)).hexdigest()
            damaged += [] if whole == file.stem else [f"integrity: object {file.stem} is another one"]
        except LockstepError as error:
            damaged.append(f"integrity: {error}")
    return damaged


# --- cutting ------------------------------------------------------------------------------------------------------


def cut_disks(steps: list[Step], root: Path, points: list[int]) -> Iterator[tuple[int, CrashDisk, Promised]]:
    """Go through `steps` and stop at each of `points` with the disk and the promises as they are there."""
    disk, listener = CrashDisk(root), Listener()
    for number, step in enumerate([*steps, None]):
        for _ in range(points.count(number)):
            yield number, disk, listener.promised
        if isinstance(step, Said):
            listener.hear(step)
        elif step is not None and not isinstance(step, Heard):
            disk.change(number, step)


async def cut_hub(steps: list[Step], root: Path, *, seed: int, cuts: int, show: bool = True) -> Counter[str]:
    """Cut the power at `cuts` points in every way and return the counts; what was lost is printed."""
    chance = random.Random(seed)
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as scratch:
        for point, disk, promised in cut_disks(steps, root, cut_points(steps, cuts, chance)):
            counts["cuts"] += 1
            counts["promises"] += promised.count
            for survivors in ALL_SURVIVORS:
                image = Path(scratch) / "image"
                disk.image(image, survivors, random.Random(f"{seed} {point} {survivors}"))
                for sentence in await losses(image / "hub", promised):
                    counts[sentence.partition(":")[0]] += 1
                    if show:
                        print(f"  cut {point} ({survivors}): {sentence}")
                counts["disks"] += 1
                shutil.rmtree(image)
    return counts


def run(options: Options) -> Outcome:
    """Cut the power of the hub, of a terminal, and of the controls, which must lose."""
    cuts = max(MINIMUM_CUTS, CUTS * options.kills // FULL_KILLS)
    return asyncio.run(_run(options.folder, options.seed, cuts))


async def _run(folder: Path, seed: int, cuts: int) -> Outcome:
    steps = await record_hub(folder / "FULL", seed=seed)
    hub = await cut_hub(steps, folder / "FULL" / "disk", seed=seed, cuts=cuts)
    steps = await record_terminal(folder / "terminal")
    terminal = await cut_terminal(steps, folder / "terminal" / "disk", seed=seed, cuts=cuts)
    controls = {}
    for level in ("NORMAL", "OFF"):
        steps = await record_hub(folder / level, seed=seed, level=level, rounds=2, starts=1)
        control = await cut_hub(steps, folder / level / "disk", seed=seed, cuts=MINIMUM_CUTS, show=False)
        controls[level] = control["lost"] + control["integrity"]
    both = hub + terminal
    lost, damaged = both["lost"], both["integrity"]
    line = (
        f"hub cuts={hub['cuts']} disks={hub['disks']} promises={hub['promises']}, terminal cuts={terminal['cuts']} "
        f"disks={terminal['disks']} promises={terminal['promises']}: lost={lost} integrity_failures={damaged}; "
        f"controls that must lose: {', '.join(f'{level}={count}' for level, count in controls.items())}"
    )
    return Outcome(passed=not lost + damaged and all(controls.values()), line=line, lost=lost, wrong=damaged)


if __name__ == "__main__":
    sys.exit(run_alone(run, __doc__))
