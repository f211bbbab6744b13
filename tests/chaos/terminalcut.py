"""Cut the power of a terminal at many points: what it had told its hub, or begun to install, has to be on its disk.

A terminal (the command line, an owner's command as its runner) logs in, receives three syncs, is killed in the middle
of the third installation and started again, all under strace. For each cut point its state folder is built as a power
cut there would leave it, and opened: no file of it may be damaged, who it is and the keys it showed the hub are there,
so is what it said it has, each report the hub had not noted, and an installation whose runner had started is noticed by
the agent that starts next.
"""

import asyncio
import random
import re
import shutil
import tempfile
from asyncio.subprocess import Process
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from msgspec import structs

from protocol import keys, life, messages
from protocol.errors import LockstepError
from protocol.messages import AnyMessage
from terminal.agent import run_agent
from terminal.installers import InstallResult, InstallTask
from terminal.state import StateFolder
from tests.chaos.crashdisk import ALL_SURVIVORS, CrashDisk, cut_points
from tests.chaos.frames import FrameReader
from tests.chaos.processes import ChaosTerminal
from tests.chaos.tracing import Heard, Said, Step, read_traces
from tests.harness.fleets import devices, ended, until
from tests.harness.hubs import RunningHub, running_hub
from tests.harness.installers import make_installer

NOWHERE: Final = "ws://127.0.0.1:9"  # the discard port: nobody listens, and the agent settles before it dials


# --- the load -----------------------------------------------------------------------------------------------------


async def record_terminal(folder: Path) -> list[Step]:
    """Run the load on a terminal with its state in `folder`/disk/state, and return what it did, said and heard."""
    terminal = ChaosTerminal(folder)
    async with running_hub(folder / "beside") as hub:
        await hub.add_account("ada")
        terminal.before = terminal.trace()
        await terminal.login(hub.url, "ada", "TV")
        terminal.before = terminal.trace()
        process = await terminal.start("run")
        try:
            process = await _load(hub, terminal, process)
        finally:
            terminal.slow.unlink(missing_ok=True)
            with suppress(ProcessLookupError):
                process.terminate()
            await process.wait()
    await _recorded(terminal)
    return read_traces(terminal.records, terminal.disk)


async def _load(hub: RunningHub, terminal: ChaosTerminal, process: Process) -> Process:
    async with devices(hub, "ada", 1, folder=terminal.folder / "initiator") as fleet:
        await until(lambda: (terminal.disk / "state" / "devices.json").exists())
        target = next(row.terminal for row in await fleet.initiator.devices() if row.name == "TV")
        for number in range(3):
            file = make_installer(terminal.folder, "deb", version=f"1.{number}", size=150_000)
            await hub.publish(file)
            if number == 2:
                terminal.slow.touch()
            watch = await fleet.initiator.sync("hello", targets=(target,))
            if number == 2:
                await until(lambda: terminal.runs() == 3)
                process.kill()
                await process.wait()
                terminal.slow.unlink()
                terminal.before = terminal.trace()
                process = await terminal.start("run")
            assert await ended(watch) == "done", watch.targets
    return process


async def _recorded(terminal: ChaosTerminal) -> None:
    """Wait until strace has written its last line."""
    await until(lambda: not _writers(terminal.records))


def _writers(records: list[Path]) -> list[str]:
    """Return the processes that have one of the files open."""
    wanted = {str(record) for record in records}
    found = []
    for descriptor in Path("/proc").glob("[0-9]*/fd/*"):
        with suppress(OSError):
            if str(descriptor.readlink()) in wanted:
                found.append(descriptor.parts[2])
    return found


# --- what was promised --------------------------------------------------------------------------------------------


@dataclass
class Told:
    """What the terminal has said and begun so far."""

    terminal: str = ""
    device_key: bytes = b""
    programs: tuple[messages.InstalledProgram, ...] = ()
    reported: dict[str, str] = field(default_factory=dict)
    noted: set[str] = field(default_factory=set)
    started: list[str] = field(default_factory=list)

    @property
    def count(self) -> int:
        """How many single promises these are."""
        return bool(self.terminal) + bool(self.device_key) + len(self.programs) + len(self.reported) + len(self.started)


class Listener:
    """Hears both directions of the terminal's sockets, and its children."""

    def __init__(self) -> None:
        self.told = Told()
        self._said: dict[str, FrameReader] = {}
        self._heard: dict[str, FrameReader] = {}

    def hear(self, step: Said | Heard) -> None:
        """Take what was said or heard."""
        if isinstance(step, Said) and step.where == "stdout":
            self._printed(step.data.decode(errors="replace"))
            return
        readers = self._said if isinstance(step, Said) else self._heard
        if step.data.startswith((b"GET / ", b"HTTP/1.1 101")):
            readers[step.where] = FrameReader()
        if step.where in readers:
            for message in readers[step.where].feed(step.data):
                self._message(message, isinstance(step, Said))

    def _printed(self, text: str) -> None:
        if found := re.search(r"Logged in to .* terminal (t-\w+)", text):
            self.told.terminal = found[1]
        if found := re.match(r"ran (\S+)\n", text):
            self.told.started += [] if found[1] in self.told.started else [found[1]]

    def _message(self, message: AnyMessage, is_said: bool) -> None:
        told = self.told
        match message:
            case messages.Enrol():
                told.device_key = message.device_key
            case messages.Inventory() if is_said:
                told.programs = message.programs
            case messages.State(state=life.State.DONE | life.State.FAILED) if is_said:
                told.reported[message.delivery] = message.state
            case messages.Noted(state=life.State.DONE | life.State.FAILED) if not is_said:
                told.noted.add(message.of)


# --- what is there ------------------------------------------------------------------------------------------------


class _HasIt:
    """A runner that says the system has `version`, and never installs."""

    def __init__(self, version: str) -> None:
        self._version = version

    async def install(self, task: InstallTask) -> InstallResult:
        raise AssertionError(f"{task.delivery} would be installed again")

    async def installed_version(self, package_name: str) -> str | None:
        return self._version


async def losses(path: Path, told: Told) -> list[str]:
    """Open the state folder `path` and return what the terminal had told and does not know any more."""
    try:
        folder = StateFolder(path)
        folder.device()
        folder.devices()
        has = {program.program for program in folder.inventory()}
        reports = {report.delivery for report in folder.reports()}
        if told.device_key and keys.SigningKey(folder.seeds("ada").device_seed).public != told.device_key:
            return ["lost: the keys that were shown to the hub"]
        if told.terminal and folder.identity().terminal != told.terminal:
            return [f"lost: terminal {told.terminal}"]
        noticed = await _noticed(folder, told)
    except (LockstepError, OSError) as error:
        return [f"integrity: {error}"]
    lost = [f"lost: {one.program} in the inventory" for one in told.programs if one.program not in has]
    lost += [f"lost: the report of {one}" for one in set(told.reported) - told.noted - reports]
    return [*lost, *(f"lost: the start of {one}" for one in set(told.started) - set(told.reported) - noticed)]


async def _noticed(folder: StateFolder, told: Told) -> set[str]:
    """Start the agent with no hub to be reached; return the deliveries it has a report of once it has settled."""
    if not set(told.started) - set(told.reported):
        return set()
    folder.save_identity(structs.replace(folder.identity(), url=NOWHERE))
    device = folder.device()
    assert device is not None
    stop, dialled = asyncio.Event(), asyncio.Event()
    runners = {"deb": _HasIt(f"1.{len(told.started) - 1}")}
    agent = asyncio.create_task(
        run_agent(folder, device, runners, on_event=lambda *_: dialled.set(), stop=stop)  # type: ignore[arg-type]
    )
    with suppress(TimeoutError):
        async with asyncio.timeout(10):
            await dialled.wait()
            while not folder.reports():  # noqa: ASYNC110 - settling runs beside dialling
                await asyncio.sleep(0.01)
    stop.set()
    await agent
    return {report.delivery for report in folder.reports()}


# --- cutting ------------------------------------------------------------------------------------------------------


def _cut_disks(steps: list[Step], root: Path, points: list[int]) -> Iterator[tuple[int, CrashDisk, Told]]:
    disk, listener = CrashDisk(root), Listener()
    for number, step in enumerate([*steps, None]):
        for _ in range(points.count(number)):
            yield number, disk, listener.told
        if isinstance(step, (Said, Heard)):
            listener.hear(step)
        elif step is not None:
            disk.change(number, step)


async def cut_terminal(steps: list[Step], root: Path, *, seed: int, cuts: int) -> Counter[str]:
    """Cut the power at `cuts` points in every way and return the counts; what was lost is printed."""
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as scratch:
        for point, disk, told in _cut_disks(steps, root, cut_points(steps, cuts, random.Random(seed))):
            counts["cuts"] += 1
            counts["promises"] += told.count
            for survivors in ALL_SURVIVORS:
                image = Path(scratch) / "image"
                disk.image(image, survivors, random.Random(f"{seed} {point} {survivors}"))
                for sentence in await losses(image / "state", told):
                    counts[sentence.partition(":")[0]] += 1
                    print(f"  terminal, cut {point} ({survivors}): {sentence}")
                counts["disks"] += 1
                shutil.rmtree(image)
    return counts
