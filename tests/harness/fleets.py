"""Fleets of simulated devices for tests, and waiting for what they bring about."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Protocol

from protocol.device import DeviceInfo
from protocol.errors import LockstepError
from protocol.messages import AnyMessage, DeviceChanges, DeviceRow, Devices, SyncDone
from terminal.client import Client, SyncWatch
from terminal.simulated import DEFAULT_MIX, Fleet, SimulatedDevice, make_devices, make_fleet
from tests.harness.hubs import PASSWORD

WAIT_SECONDS = 60.0
LOOK_EVERY_SECONDS = 0.01


class HasUrl(Protocol):
    """A hub that can be dialled."""

    @property
    def url(self) -> str:
        """Where."""


class TestFleet:
    """Simulated devices by name; the first is the initiator."""

    __test__ = False

    def __init__(self, fleet: Fleet, folder: Path) -> None:
        self.fleet = fleet
        self.folder = folder

    def __getitem__(self, name: str) -> SimulatedDevice:
        return next(device for device in self.fleet.devices if device.name == name)

    @property
    def devices(self) -> Sequence[SimulatedDevice]:
        """All of them."""
        return self.fleet.devices

    @property
    def initiator(self) -> Client:
        """What the first device may ask."""
        return self.fleet.devices[0].client

    async def go_online(self, *names: str) -> None:
        """Connect these devices (default: all) and wait until they are welcomed."""
        chosen = [self[name] for name in names] or list(self.devices)
        self.fleet.connect(*chosen)
        async with asyncio.timeout(WAIT_SECONDS):
            await self.fleet.all_online(chosen)

    async def go_offline(self, *names: str) -> None:
        """Close the connections of these devices (default: all)."""
        await self.fleet.disconnect(*[self[name] for name in names])

    def digest(self, name: str, package_name: str) -> str:
        """Return the SHA-256 in hex of the file the device has installed, "" when it has none."""
        file = self[name].installed_file(package_name)
        return hashlib.sha256(file.read_bytes()).hexdigest() if file else ""


@asynccontextmanager
async def devices(
    hub: HasUrl,
    account: str,
    which: int | Sequence[tuple[str, DeviceInfo]] | Sequence[DeviceInfo],
    *,
    folder: Path | None = None,
    seed: int = 1,
    connect: bool = True,
) -> AsyncIterator[TestFleet]:
    """Enrol and connect simulated devices: so many of the usual mix, or these (a DeviceInfo is called by its model).

    Their state is kept in `folder` (default: beside the hub's).
    """
    made = make_devices(DEFAULT_MIX, which, seed) if isinstance(which, int) else [_named(one) for one in which]
    place = folder or _beside(hub)
    fleet = TestFleet(make_fleet(made, place, hub.url, account, seed=seed), place)
    await fleet.fleet.enrol(PASSWORD)
    try:
        if connect:
            await fleet.go_online()
        yield fleet
    finally:
        await fleet.go_offline()


def _named(one: tuple[str, DeviceInfo] | DeviceInfo) -> tuple[str, DeviceInfo]:
    return (one.model, one) if isinstance(one, DeviceInfo) else one


def _beside(hub: HasUrl) -> Path:
    folder = getattr(hub, "folder", None)
    assert isinstance(folder, Path), "say where the devices' state goes"
    return folder.parent / "devices"


async def ended(watch: SyncWatch, *, within_seconds: float = WAIT_SECONDS) -> str:
    """Wait for the end of a sync and return its outcome."""
    async with asyncio.timeout(within_seconds):
        async for _ in watch.changes():
            pass
    return watch.outcome


async def until(true: Callable[[], bool], *, within_seconds: float = WAIT_SECONDS) -> None:
    """Wait until `true()`, looking a hundred times a second; for what no event tells of."""
    async with asyncio.timeout(within_seconds):
        while not true():  # noqa: ASYNC110 - what is waited for lies in another process or on the disk
            await asyncio.sleep(LOOK_EVERY_SECONDS)


class DeviceEvents:
    """What one device was told unasked: every row of another device as it came, and the ends of its syncs."""

    def __init__(self) -> None:
        self.rows: list[DeviceRow] = []
        self.dones: list[SyncDone] = []
        self._changed = asyncio.Event()

    @classmethod
    @contextmanager
    def of(cls, device: SimulatedDevice) -> Iterator["DeviceEvents"]:
        """Listen to `device` while the block runs: over the connection it has now, and from the start of later ones."""
        events = cls()
        device.listeners.append(events)
        if device.connection is not None:
            device.connection.link.listen(events)
        try:
            yield events
        finally:
            device.listeners.remove(events)
            if device.connection is not None:
                device.connection.link.leave(events)

    def put(self, message: AnyMessage) -> None:
        """Take a message."""
        if isinstance(message, DeviceChanges):
            self.rows.extend(message.changed)
        elif isinstance(message, Devices):
            self.rows.extend(message.devices)
        elif isinstance(message, SyncDone):
            self.dones.append(message)
        self._changed.set()

    def end(self, error: LockstepError) -> None:
        """The connection has ended."""
        self._changed.set()

    async def row(self, fits: Callable[[DeviceRow], bool], *, within_seconds: float = WAIT_SECONDS) -> DeviceRow:
        """Wait for the first row that fits, from the beginning of listening."""
        async with asyncio.timeout(within_seconds):
            while True:
                for row in self.rows:
                    if fits(row):
                        return row
                self._changed.clear()
                await self._changed.wait()

    async def done(self, sync: str, *, within_seconds: float = WAIT_SECONDS) -> SyncDone:
        """Wait for the end of this sync, from the beginning of listening."""
        async with asyncio.timeout(within_seconds):
            while True:
                for done in self.dones:
                    if done.sync == sync:
                        return done
                self._changed.clear()
                await self._changed.wait()
