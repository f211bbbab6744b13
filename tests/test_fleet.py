"""A thousand devices on one hub: everyone is listed, one sync reaches all, and the hub's memory stays bounded."""

import hashlib
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from hub.records import Published
from protocol.device import DeviceInfo, InstallerKind
from protocol.limits import KIB, MIB
from terminal.simulated import DEFAULT_MIX, make_devices
from tests.harness import HubProcess, TestFleet, devices, ended, make_installer, running_hub

DEVICES: Final = 1_000
INSTALLERS: Final[tuple[InstallerKind, ...]] = ("deb", "wheel", "apk")
# A socket of the hub costs about 70 KiB with its session, tasks and buffers; the rest is room for noise.
MEMORY_FOR_EACH_BYTES: Final = 128 * KIB


@contextmanager
def timed(what: str, figures: dict[str, str]) -> Iterator[None]:
    began_at = time.monotonic()
    yield
    figures[what] = f"{time.monotonic() - began_at:.1f} s"


def a_thousand_that_fit() -> list[tuple[str, DeviceInfo]]:
    return make_devices([template for template in DEFAULT_MIX if template.device.installer_kinds], DEVICES, seed=1)


def digests_on_disk(fleet: TestFleet) -> Counter[str]:
    return Counter(
        fleet.digest(device.name, package) for device in fleet.devices for package in packages_on(device.folder.path)
    )


def packages_on(state: Path) -> list[str]:
    return [folder.name for folder in (state / "apps").glob("*/")]


async def published(folder: Path) -> dict[str, Published]:
    async with running_hub(folder) as hub:
        await hub.add_account("fleet")
        files = [make_installer(folder, kind, size=64 * KIB) for kind in INSTALLERS]
        rows = [await hub.publish(file, program="hello") for file in files]
    assert [row.digest for row in rows] == [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    return {row.kind: row for row in rows}


@pytest.mark.slow
async def test_a_thousand_devices_are_listed_and_one_sync_reaches_all_of_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures: dict[str, str] = {}
    rows = await published(tmp_path)
    made = a_thousand_that_fit()
    async with HubProcess(tmp_path / "hub") as hub:
        before_bytes = hub.memory_bytes()
        async with devices(hub, "fleet", made, folder=tmp_path / "devices", connect=False) as fleet:
            with timed("log in", figures):
                await fleet.go_online()
            with timed("device list", figures):
                listed = await fleet.initiator.devices()
            online_bytes = hub.memory_bytes()
            with timed("sync", figures):
                watch = await fleet.initiator.sync("hello", everyone=True)
                outcome = await ended(watch)
            largest_bytes = hub.largest_memory_bytes()
            on_disk = digests_on_disk(fleet)
            tally = fleet.fleet.tally()
        figures["hub's processor time"] = f"{hub.cpu_seconds():.1f} s"
    figures["hub's memory"] = ", ".join(
        f"{name} {size / MIB:.0f} MiB"
        for name, size in (("before", before_bytes), ("all online", online_bytes), ("largest", largest_bytes))
    )
    with capsys.disabled():
        sys.stdout.write(
            f"\n{DEVICES} devices: " + "; ".join(f"{what} {figure}" for what, figure in figures.items()) + "\n"
        )

    assert {row.name for row in listed if row.online} == {name for name, _ in made}
    assert outcome == "done"
    assert Counter(row.state for row in watch.targets.values()) == {"done": DEVICES - 1}
    assert (tally.online, tally.delivered, tally.failed) == (DEVICES, DEVICES - 1, 0)
    fitting = Counter(row.installer_kind for row in watch.targets.values())
    assert on_disk == {rows[kind].digest: count for kind, count in fitting.items()}
    assert largest_bytes - before_bytes < DEVICES * MEMORY_FOR_EACH_BYTES
