"""One world under chaos: a hub's process, terminals behind slow links, and an initiator that writes down its answers.

The world keeps its state through the whole run. Each device gets one sync after the other; whatever was answered with
`sync_accepted` has to end as done, with the right file in place, whatever is killed meanwhile.
"""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from protocol import life, limits
from protocol.errors import BadDataError, LockstepError, UnavailableError
from protocol.messages import TargetRow
from terminal.client import Client, enrol, open_client
from terminal.place import local_device
from terminal.state import StateFolder
from tests.chaos.devices import Device, Installer, Job
from tests.chaos.ledger import Ledger
from tests.harness import PASSWORD, HubProcess, SlowProxy, make_installer, running_hub

PROGRAM: Final = "thing"
VERSIONS: Final = 8
RATE_BYTES_PER_SECOND: Final = 1.5 * limits.MIB
SMALLEST_BYTES: Final = int(1.5 * limits.MIB)
LARGEST_BYTES: Final = 3 * limits.MIB
LONG_BYTES: Final = 6 * limits.MIB  # one version is so large that more than one window of frames is under way in it
PAUSE_SECONDS: Final = 0.2  # that an installer goes on after it has put its file in place
CANCELLED_SHARE: Final = 0.08  # of the syncs are cancelled soon after they were accepted
OVERTAKEN_SHARE: Final = 0.08  # are asked for while another one to the same device is under way
LOST_AFTER_SECONDS: Final = 120.0
LOOK_EVERY_SECONDS: Final = 0.2
AGAIN_SECONDS: Final = 0.05
ASK_SECONDS: Final = 60.0
START_TRIES: Final = 20
HUB_STARTS_AGAIN_SECONDS: Final = 0.2
WINDOW_BYTES: Final = limits.WINDOW_LARGEST_FRAMES * limits.FRAME_BYTES
CHATTER_BYTES: Final = 128 * 1024  # a login's messages, the manifest again, and what lay in kernel buffers

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Faults:
    """What is broken on purpose at the hub and at the terminals; names of `tests/chaos/launch.py`."""

    hub: str = "none"
    terminal: str = "none"


class Initiator:
    """The terminal that asks; a client in this process that comes back whenever its hub does."""

    def __init__(self, state: Path) -> None:
        self.folder = StateFolder(state)
        self._client: Client | None = None
        self._changed = asyncio.Event()
        self._lost = asyncio.Event()

    async def keep_connected(self) -> None:
        """Stay connected until cancelled."""
        while True:
            with contextlib.suppress(LockstepError, OSError, TimeoutError):
                async with open_client(self.folder) as client:
                    self._lost.clear()
                    self._client = client
                    self._changed.set()
                    await self._lost.wait()
            self._client = None
            self._changed.clear()
            await asyncio.sleep(AGAIN_SECONDS)

    async def ask(self, call: Callable[[Client], Awaitable[Answer]]) -> Answer:
        """Ask until the hub answers; raises what the answer says, TimeoutError when none comes for a minute."""
        async with asyncio.timeout(ASK_SECONDS):
            while True:
                await self._changed.wait()
                client = self._client
                try:
                    assert client is not None
                    return await call(client)
                except (UnavailableError, BadDataError, AssertionError):
                    if client is self._client:
                        self._lost.set()
                        self._changed.clear()
                    await asyncio.sleep(AGAIN_SECONDS)


class World:
    """One hub, its devices and its initiator. Use `opened_world`."""

    def __init__(self, folder: Path, seed: int, *, devices: int, faults: Faults) -> None:
        self.folder = folder
        self.ledger = Ledger()
        self.accepted = asyncio.Event()  # set at each acceptance; whoever waits for one clears it first
        self.installers: list[Installer] = []
        self.devices = [
            Device(folder, f"pc{n}", rate=RATE_BYTES_PER_SECOND, pause_seconds=PAUSE_SECONDS, fault=faults.terminal)
            for n in range(devices)
        ]
        self._seed = seed
        self._faults = faults
        self._gate = SlowProxy()  # the initiator's link, as fast as it goes
        self._initiator = Initiator(folder / "initiator")
        self._hub: HubProcess | None = None

    @property
    def hub(self) -> HubProcess:
        """The hub's process."""
        assert self._hub is not None
        return self._hub

    # --- putting it together ------------------------------------------------------------------------------------------

    async def publish(self) -> None:
        """Make and publish all versions: bytes that cannot be compressed and have nothing in common."""
        chance = random.Random(self._seed)
        async with running_hub(self.folder) as hub:
            await hub.add_account("alice")
            for number in range(1, VERSIONS + 1):
                size = LONG_BYTES if number == VERSIONS else chance.randint(SMALLEST_BYTES, LARGEST_BYTES)
                path = make_installer(
                    self.folder, "deb", PROGRAM, f"{number}.0", size=size, seed=self._seed * 1_000 + number
                )
                published = await hub.publish(path)
                digest = published.digest
                stored = (self.folder / "hub" / "objects" / digest[:2] / f"{digest}.pack").stat().st_size
                self.installers.append(Installer(f"{number}.0", digest, stored))
                path.unlink()

    async def start(self, stack: AsyncExitStack) -> None:
        """Start the hub and enrol everyone; everything ends with `stack`."""
        proxies = [self._gate, *(device.proxy for device in self.devices)]
        for proxy in proxies:
            await stack.enter_async_context(proxy)
        module = ("tests.chaos.launch", self._faults.hub, "hub")
        self._hub = HubProcess(self.folder / "hub", names=[proxy.name for proxy in proxies], module=module)
        await stack.enter_async_context(self._hub)
        for proxy in proxies:
            proxy.target_port = self._hub.port
        await _enrol(self._initiator.folder, self._gate, "initiator")
        keeping = asyncio.create_task(self._initiator.keep_connected())
        stack.push_async_callback(_ended, keeping)
        for device in self.devices:
            device.state.save_device_file(device.place.device_file.encode())
            device.terminal = await _enrol(device.state, device.proxy, device.name)
            await stack.enter_async_context(device.process)

    # --- delivering ---------------------------------------------------------------------------------------------------

    async def deliver(
        self,
        device: Device,
        installer: Installer,
        request_key: str,
        *,
        cancel_after_seconds: float | None = None,
        counted: bool = True,
    ) -> None:
        """Sync `installer` to `device`, wait for its end and look whether what was said is true.

        Breaches go to the ledger. It may be cancelled meanwhile: then it ends as the answer to that says. Its bytes are
        not `counted` where another object may flow as well.
        """
        job = device.begin(installer)
        try:
            job.sync = await self._request(device, installer, request_key)
            cancelled = cancel_after_seconds is not None and await self._cancel(job.sync, cancel_after_seconds)
            row = await self._final_row(job.sync)
            self._check(device, job, row, may_cancel=cancel_after_seconds is not None)
            if cancelled and row.state != life.State.CANCELLED:
                self.ledger.wrong.append(f"{device.name}: sync {job.sync} was said to be cancelled, and is {row.state}")
            if row.state in life.GOOD and counted:
                self._count_bytes(device, job)
        except (LockstepError, TimeoutError) as error:
            what = f"sync {job.sync}" if job.sync else "a request"
            self.ledger.lost.append(f"{device.name}: {what} for {installer.version}: {type(error).__name__}: {error}")
        finally:
            device.job = None

    async def overtake(
        self, device: Device, first: Installer, second: Installer, key: str, after_seconds: float
    ) -> None:
        """Sync `first` and soon after `second`: the first ends as done or superseded, and the second is what is there.

        Breaches go to the ledger.
        """
        try:
            sync = await self._request(device, first, f"{key}-overtaken")
            await asyncio.sleep(after_seconds)
            await self.deliver(device, second, key, counted=False)
            row = await self._final_row(sync)
            self.ledger.overtaken += 1
            if row.state not in (*life.GOOD, life.State.SUPERSEDED):
                self.ledger.lost.append(f"{device.name}: overtaken sync {sync} ended {row.state}: {row.detail}")
        except (LockstepError, TimeoutError) as error:
            self.ledger.lost.append(f"{device.name}: an overtaken sync: {type(error).__name__}: {error}")

    async def _request(self, device: Device, installer: Installer, request_key: str) -> str:
        """Ask for a sync until it is accepted, write that down outside of Lockstep and return its id."""
        watch = await self._initiator.ask(
            lambda client: client.sync(
                PROGRAM, targets=(device.terminal,), version=installer.version, request_key=request_key
            )
        )
        self.ledger.accepted.append(watch.sync)
        with (self.folder / "accepted.txt").open("a") as file:
            file.write(f"{watch.sync} {device.name} {installer.version} {installer.digest}\n")
        self.accepted.set()
        return watch.sync

    async def _cancel(self, sync: str, after_seconds: float) -> bool:
        """Ask for the end of a sync; return whether the hub says that it is cancelled."""
        await asyncio.sleep(after_seconds)
        result = await self._initiator.ask(lambda client: client.cancel(sync))
        self.ledger.cancels += 1
        return result.cancelled == 1

    async def _final_row(self, sync: str) -> TargetRow:
        """Wait for the end of an accepted sync. Raises TimeoutError when it hangs, UnknownNameError when it is gone."""
        async with asyncio.timeout(LOST_AFTER_SECONDS):
            while True:
                row = await self._row(sync)
                if row.state in life.FINAL:
                    return row
                await asyncio.sleep(LOOK_EVERY_SECONDS)

    def _check(self, device: Device, job: Job, row: TargetRow, *, may_cancel: bool) -> None:
        """Hold the last words about a sync against what is in place on the device."""
        there = device.place.digest()
        words = f"{device.name}: sync {job.sync} of {job.installer.digest} is {row.state}, in place is {there or '-'}"
        if row.state in life.GOOD:
            self.ledger.ended.append(job.sync)
            if there != job.installer.digest:
                self.ledger.wrong.append(words)
        elif row.state == life.State.CANCELLED and may_cancel:
            if there == job.installer.digest:
                self.ledger.wrong.append(words)
        else:
            self.ledger.lost.append(f"{words}: {row.reason}: {row.detail}")

    async def _row(self, sync: str) -> TargetRow:
        """Return how the one target of a sync stands, as its initiator is told. Raises UnknownNameError."""
        (row,) = await self._initiator.ask(lambda client: client.sync_result(sync))
        return row

    def _count_bytes(self, device: Device, job: Job) -> None:
        """Count what the link carried beyond the object: sent twice, a login's chatter and the manifest among it."""
        resumes = max(len(device.flows()) - 1, 0)
        if not resumes:
            return
        twice_bytes = max(device.carried_bytes() - job.installer.stored_size, 0)
        self.ledger.resumes += resumes
        self.ledger.twice_bytes += twice_bytes
        self.ledger.largest_twice_bytes = max(self.ledger.largest_twice_bytes, twice_bytes // resumes)
        connections = len(device.proxy.connections) - job.connections_before
        if twice_bytes > resumes * WINDOW_BYTES + connections * CHATTER_BYTES:
            self.ledger.over_window.append(
                f"{device.name}: {twice_bytes} bytes more in {resumes} resumes of {job.sync}"
            )

    async def keep_syncing(self, device: Device, chance: random.Random, stop: asyncio.Event) -> None:
        """Bring one version after the other to `device` until told to stop, one at least; each last used long ago."""
        waiting = list(self.installers)
        chance.shuffle(waiting)
        while True:
            await self._bring(device, chance, waiting)
            if stop.is_set():
                return

    async def _bring(self, device: Device, chance: random.Random, waiting: list[Installer]) -> None:
        """Bring a version in one of three ways, as chance has it."""
        installer, other = (waiting.pop(chance.randrange(len(waiting) // 2)) for _ in range(2))
        key, after_seconds, way = f"{device.name}-{chance.getrandbits(64):016x}", chance.uniform(0, 2), chance.random()
        if self._faults != Faults():  # a control looks for one kind of damage
            way = 1.0
        if way < CANCELLED_SHARE:
            await self.deliver(device, installer, key, cancel_after_seconds=after_seconds)
        elif way < CANCELLED_SHARE + OVERTAKEN_SHARE:
            await self.overtake(device, other, installer, key, after_seconds)
        else:
            await self.deliver(device, installer, key, counted=not device.has_tail)
        device.has_tail = way < CANCELLED_SHARE + OVERTAKEN_SHARE
        waiting += [other, installer]

    # --- killing ------------------------------------------------------------------------------------------------------

    async def start_hub(self) -> None:
        """Start the hub again on its port, which another process may have for a moment."""
        for _ in range(START_TRIES):
            try:
                await self.hub.start()
                return
            except AssertionError as error:
                last = error
                await self.hub.kill()
                await asyncio.sleep(HUB_STARTS_AGAIN_SECONDS)
        raise last

    async def kill_early(self, seconds: float) -> None:
        """Start the hub and kill it after `seconds`, however far it has come."""
        with contextlib.suppress(TimeoutError, AssertionError):
            await asyncio.wait_for(self.hub.start(), seconds)
        await self.hub.kill()

    def note_deaths(self) -> None:
        """Write down which processes have ended though nobody killed them."""
        if self.hub.has_ended:
            self.ledger.died.append(f"the hub; see {self.folder / 'hub.log'}")
        self.ledger.died.extend(
            f"{device.name}; see {device.process.log}" for device in self.devices if device.process.has_ended
        )

    async def audit(self) -> None:
        """Kill the hub once more and ask for every sync that ended well: it has to say the same again."""
        await self.hub.kill()
        await self.start_hub()
        for sync in self.ledger.ended:
            try:
                row = await self._row(sync)
            except (LockstepError, TimeoutError) as error:
                self.ledger.lost.append(f"sync {sync} had ended well, and now: {error}")
            else:
                if row.state not in life.GOOD:
                    self.ledger.wrong.append(f"sync {sync} had ended well, and now it is {row.state}")

    def errors(self) -> list[str]:
        """Return every place where a log of a process tells of a fault in the code."""
        logs = [self.folder / "hub.log", *(device.process.log for device in self.devices)]
        return [
            f"{log}: line {number}"
            for log in logs
            for number, line in enumerate(log.read_text(errors="replace").splitlines(), 1)
            if line.lstrip(" |+-").startswith("Traceback")
        ]

    def doubled(self) -> list[str]:
        """Return every installation that ran again although it was in place."""
        return [
            f"{device.name}: delivery {run.delivery} installed {run.version} again"
            for device in self.devices
            for run in device.place.doubled()
        ]


@asynccontextmanager
async def opened_world(
    folder: Path, seed: int, *, devices: int = 3, faults: Faults | None = None
) -> AsyncIterator[World]:
    """Make a world in `folder` and run it until the block is left."""
    folder.mkdir(parents=True)
    world = World(folder, seed, devices=devices, faults=faults or Faults())
    await world.publish()
    async with AsyncExitStack() as stack:
        await world.start(stack)
        yield world


async def _enrol(folder: StateFolder, proxy: SlowProxy, name: str) -> str:
    info, _ = local_device(folder)
    identity = await enrol(folder, proxy.url, account="alice", password=PASSWORD, name=name, device=info)
    return identity.terminal


async def _ended(task: "asyncio.Task[None]") -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
