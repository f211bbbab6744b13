"""`python -m tests.chaos.diskfull`: the n-th write of the hub fails, for n from 1 on, and so does the n-th fsync.

strace(1) makes the calls fail: once, or from then on, with ENOSPC or EIO. The hub is asked for everything it writes
for; each request has to be answered or refused in words, what it acknowledged has to be there when it is opened again,
undamaged, and then everything has to work.
"""

import asyncio
import random
import shutil
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from hub.admin import perform
from hub.app import open_hub, serve_hub
from protocol.errors import LockstepError
from tests.chaos.alone import FULL_KILLS, run_alone
from tests.chaos.load import Load
from tests.chaos.outcome import Options, Outcome
from tests.chaos.powercut import losses
from tests.chaos.processes import ChaosHub
from tests.chaos.smalldisk import hub_on_a_disk_that_fills, may_mount, terminal_on_a_disk_that_fills
from tests.chaos.tracing import traced
from tests.harness.hubs import PASSWORD, hub_settings
from tests.harness.installers import make_installer

WRITES: Final = 200
SYNCS: Final = 50
AT_ONCE: Final = 2
DATA_WRITES: Final = "write,writev,pwrite64,pwritev,pwritev2,ftruncate,fallocate"
SYNC_CALLS: Final = "fsync,fdatasync"


@dataclass(frozen=True, slots=True)
class Fault:
    """The n-th of `calls` in each thread fails with `error`; from then on every one, when it `lasts`."""

    calls: str
    error: str
    number: int
    lasts: bool

    @property
    def option(self) -> tuple[str, str]:
        """What tells strace."""
        return "-e", f"inject={self.calls}:error={self.error}:when={self.number}{'+' if self.lasts else ''}"

    def __str__(self) -> str:
        what = "fsync" if self.calls == SYNC_CALLS else "write"
        return f"{self.error} at {what} {self.number}{' and after' if self.lasts else ''}"


def faults(writes: int, syncs: int, chance: random.Random) -> list[Fault]:
    """Return so many faults of each kind, at numbers from 1 to 200 (syncs: to 50); half of them last."""
    at_writes = sorted(chance.sample(range(1, WRITES + 1), writes))
    at_syncs = sorted(chance.sample(range(1, SYNCS + 1), syncs))
    return [
        *(Fault(DATA_WRITES, "ENOSPC", n, n % 2 == 0) for n in at_writes),
        *(Fault(DATA_WRITES, "EIO", n, n % 2 == 1) for n in at_writes),
        *(Fault(SYNC_CALLS, "EIO", n, n % 2 == 0) for n in at_syncs),
    ]


@dataclass
class Bench:
    """What every trial begins with: a data folder as a hub leaves it, and files to publish."""

    folder: Path
    files: tuple[Path, ...] = ()

    async def prepare(self) -> None:
        """Make the folder and the files."""
        async with open_hub(hub_settings(self.folder / "template")) as hub, serve_hub(hub):
            await hub.accounts.add("first", PASSWORD)
        self.files = tuple(
            make_installer(self.folder, "deb", f"app{number}", size=60_000 + 50_000 * number) for number in range(3)
        )

    async def trial(self, fault: Fault, counts: Counter[str]) -> list[str]:
        """Put a hub through the load with the fault, then without; return what was wrong."""
        folder = self.folder / str(fault).replace(" ", "-")
        shutil.copytree(self.folder / "template", folder / "hub")
        try:
            load = await self._with_fault(fault, folder, counts)
            promised, wrong = load.promised, load.faults
            promised.accounts.add("first")
            counts.update(load.answers)
            counts.update({f"told {code}": number for code, number in load.refusals.items()})
            lost = await losses(folder / "hub", promised)
            counts["lost"] += len(lost)
            counts["promises"] += promised.count
            wrong += lost + await self._without_fault(folder)
        finally:
            shutil.rmtree(folder)
        return [f"{fault}: {sentence}" for sentence in wrong]

    async def _with_fault(self, fault: Fault, folder: Path, counts: Counter[str]) -> Load:
        record = folder / "trace"
        hub = ChaosHub(folder / "hub", before=traced(record, calls=fault.calls, extra=fault.option))
        try:
            try:
                await hub.start()
            except LockstepError as error:  # its words may be among what could not be written; its exit code is not
                counts["did not start"] += 1
                return Load(hub.ask, "", folder, faults=[str(error)] if error.code == "0" else [])
            load = Load(hub.ask, hub.url, folder)
            await load.run("ada", self.files)
            if any(refusal.endswith(": disk-failed") for refusal in load.refusals):
                await _ends_itself(hub, load, counts)
            return load
        finally:
            await hub.stop()
            counts["hits"] += "(INJECTED)" in record.read_text()

    async def _without_fault(self, folder: Path) -> list[str]:
        async with open_hub(hub_settings(folder / "hub")) as hub, serve_hub(hub) as server:

            async def ask(command: str, **arguments: object) -> Any:
                return await perform(hub, command, dict(arguments))

            load = Load(ask, f"ws://127.0.0.1:{server.port}", folder)
            await load.run("grace", self.files)
        refused = [f"afterwards {code}" for code in load.refusals]
        return [*load.faults, *refused, *await losses(folder / "hub", load.promised)]


async def _ends_itself(hub: ChaosHub, load: Load, counts: Counter[str]) -> None:
    """A hub that has said that its disk failed has to end, with an exit code and a line that say so."""
    try:
        code = await hub.ended()
    except TimeoutError:
        load.faults.append("the hub said that its disk had failed, and went on")
        return
    counts["ended itself"] += 1
    if code == 0 or "disk" not in hub.log.read_text():
        load.faults.append(f"the hub ended with exit code {code}: {hub.last_words()}")


async def run_faults(folder: Path, chosen: list[Fault]) -> tuple[Counter[str], list[str]]:
    """Try every fault, a few at once; return the counts and what was wrong."""
    bench = Bench(folder)
    folder.mkdir(parents=True, exist_ok=True)
    await bench.prepare()
    counts: Counter[str] = Counter()
    wrong: list[str] = []
    room = asyncio.Semaphore(AT_ONCE)

    async def one(fault: Fault) -> None:
        async with room:
            found = await bench.trial(fault, counts)
        for sentence in found:
            print(f"  {sentence}", flush=True)
        wrong.extend(found)

    async with asyncio.TaskGroup() as group:
        for fault in chosen:
            group.create_task(one(fault))
    return counts, wrong


async def _fill_disks(options: Options) -> list[str]:
    wrong = await hub_on_a_disk_that_fills(options.folder / "hub", options.seed)
    wrong += await terminal_on_a_disk_that_fills(options.folder / "terminal")
    for sentence in wrong:
        print(f"  {sentence}", flush=True)
    return wrong


def run(options: Options) -> Outcome:
    """Let every write and fsync fail in turn."""
    writes = min(WRITES, max(5, WRITES * options.kills // FULL_KILLS))
    syncs = min(SYNCS, max(5, SYNCS * options.kills // FULL_KILLS))
    counts, wrong = asyncio.run(
        run_faults(options.folder / "faults", faults(writes, syncs, random.Random(options.seed)))
    )
    disks = "not tried (needs root)"
    if may_mount(options.folder):
        found = asyncio.run(_fill_disks(options))
        disks, wrong = f"hub and terminal, wrong={len(found)}", wrong + found
    told = ", ".join(f"{key[5:]} {count}" for key, count in sorted(counts.items()) if key.startswith("told "))
    line = (
        f"faults={2 * writes + syncs} hits={counts['hits']} promises={counts['promises']} lost={counts['lost']} "
        f"answered={counts['answered']} refused={counts['refused']} silent={counts['silent']} "
        f"did_not_start={counts['did not start']} ended_itself={counts['ended itself']} wrong={len(wrong)} ({told}); "
        f"small disks filled: {disks}"
    )
    return Outcome(passed=not wrong, line=line, lost=counts["lost"], wrong=len(wrong) - counts["lost"])


if __name__ == "__main__":
    sys.exit(run_alone(run, __doc__))
