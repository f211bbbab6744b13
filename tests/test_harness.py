"""Hub and devices together, over real sockets: what a person sees when devices come, go, break and disagree."""

import asyncio
import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from protocol import limits, messages
from protocol.device import DeviceInfo
from protocol.errors import ConflictError, RefusedError
from protocol.keys import SigningKey
from protocol.limits import MIB
from terminal.simulated import SimulatedDevice
from tests.harness import (
    DeviceEvents,
    HubProcess,
    RunningHub,
    TestFleet,
    devices,
    ended,
    make_installer,
    raw_terminal,
    running_hub,
    until,
)
from tests.harness.fleets import WAIT_SECONDS

PHONE = DeviceInfo(
    model="Pixel 8", form_factor="phone", os_type="android", os_version="14", api_level=34, architectures=("arm64",),
    installer_kinds=("apk",),
)  # fmt: skip
TV = DeviceInfo(
    model="BRAVIA", form_factor="tv", os_type="android", os_version="12", api_level=31, architectures=("armv7",),
    features=("android.software.leanback",), installer_kinds=("apk",),
)  # fmt: skip
CAR = DeviceInfo(
    model="Pi 4", form_factor="car", os_type="linux", os_version="12", architectures=("arm64",),
    installer_kinds=("wheel",),
)  # fmt: skip
PC = DeviceInfo(
    model="ThinkPad", form_factor="pc", os_type="linux", os_version="12", architectures=("x86_64",),
    installer_kinds=("deb",),
)  # fmt: skip
IPHONE = DeviceInfo(model="iPhone 15", form_factor="phone", os_type="ios", os_version="17", architectures=("arm64",))
PACKAGES = {"Phone": "org.example.hello", "TV": "org.example.hello", "Car": "hello", "PC": "hello"}


async def hub_with_hello(hub: RunningHub, folder: Path, *, size: int = 200_000, version: str = "1.0") -> dict[str, str]:
    """Publish one program for four sorts of device; return the digest each is to get."""
    files = {
        "Phone": make_installer(folder, "apk", version=version, size=size, seed=1),
        "TV": make_installer(folder, "apk", version=version, size=size, seed=2, features=["android.software.leanback"]),
        "Car": make_installer(folder, "wheel", version=version, size=size, seed=3),
        "PC": make_installer(folder, "deb", version=version, size=size, seed=4),
    }
    for file in files.values():
        await hub.publish(file, program="hello")
    return {name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in files.items()}


def states(watch_targets: dict[str, messages.TargetRow]) -> dict[str, str]:
    return {row.name: row.state for row in watch_targets.values()}


async def test_the_five_lines_of_the_harness_bring_a_program_to_three_devices(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as hub:
        await hub.add_account("alice")
        await hub.publish(make_installer(tmp_path, "deb"), program="hello")
        async with devices(hub, "alice", [("Desk", PC), ("Left", PC), ("Right", PC)], seed=1) as fleet:
            watch = await fleet.initiator.sync("hello", everyone=True)
            assert await ended(watch) == "done"
            assert states(watch.targets) == {"Left": "done", "Right": "done"}


async def test_each_device_holds_the_file_that_was_built_for_it(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as hub:
        await hub.add_account("alice")
        digests = await hub_with_hello(hub, tmp_path)
        async with devices(hub, "alice", [("Phone", PHONE), ("TV", TV), ("Car", CAR), ("PC", PC)]) as fleet:
            watch = await fleet.initiator.sync("hello", everyone=True)
            assert await ended(watch) == "done"
            for name in ("TV", "Car", "PC"):
                assert fleet.digest(name, PACKAGES[name]) == digests[name]
            assert fleet.digest("Phone", PACKAGES["Phone"]) == ""
    assert len(set(digests.values())) == 4


async def test_an_offline_target_is_queued_and_served_when_it_connects(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as hub:
        await hub.add_account("alice")
        digests = await hub_with_hello(hub, tmp_path)
        async with devices(hub, "alice", [("Phone", PHONE), ("PC", PC)], connect=False) as fleet:
            await fleet.go_online("Phone")
            watch = await fleet.initiator.sync("hello", targets=(fleet["PC"].terminal,))
            assert states(watch.targets) == {"PC": "queued"}
            await fleet.go_online("PC")
            assert await ended(watch) == "done"
            assert fleet.digest("PC", "hello") == digests["PC"]


async def test_a_device_nothing_fits_is_told_apart_with_a_reason_and_holds_up_nobody(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as hub:
        await hub.add_account("alice")
        await hub_with_hello(hub, tmp_path)
        async with devices(hub, "alice", [("Phone", PHONE), ("iPhone", IPHONE), ("PC", PC)]) as fleet:
            watch = await fleet.initiator.sync("hello", everyone=True)
            assert await ended(watch) == "partly"
            assert states(watch.targets) == {"iPhone": "no_match", "PC": "done"}
            row = watch.targets[fleet["iPhone"].terminal]
            assert "iOS" in row.detail
            assert row.reason == "no-installer"


async def test_others_never_wait_for_a_device_that_stops_reading(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as hub:
        await hub.add_account("alice")
        digests = await hub_with_hello(hub, tmp_path, size=4 * MIB)
        async with (
            devices(hub, "alice", [("Phone", PHONE), ("PC", PC)]) as fleet,
            raw_terminal(hub) as enrolling,
        ):
            await enrolling.enrol("alice", name="Stuck")
            async with raw_terminal(hub, like=enrolling) as stuck:
                await stuck.login()
                watch = await fleet.initiator.sync("hello", everyone=True)
                offer = await stuck.hear(messages.Offer)  # and then it says and reads nothing any more
                await until(lambda: states(watch.targets)["PC"] == "done", within_seconds=20)
                assert fleet.digest("PC", "hello") == digests["PC"]
                rows = {row.name: row.state for row in await fleet.initiator.sync_result(watch.sync)}
                assert rows == {"PC": "done", "Stuck": "offered"}
                assert offer.object.hex() == digests["PC"]


async def test_what_a_device_already_has_costs_no_bytes(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as hub:
        await hub.add_account("alice")
        await hub_with_hello(hub, tmp_path)
        async with devices(hub, "alice", [("Phone", PHONE), ("PC", PC)]) as fleet:
            assert await ended(await fleet.initiator.sync("hello", everyone=True)) == "done"
            heard_bytes = fleet["PC"].heard_bytes
            again = await fleet.initiator.sync("hello", everyone=True)
            assert await ended(again) == "done"
            assert states(again.targets) == {"PC": "same"}
            assert fleet["PC"].heard_bytes - heard_bytes < 2_000


async def test_an_initiator_that_was_away_gets_the_result_when_it_is_back(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as hub:
        await hub.add_account("alice")
        digests = await hub_with_hello(hub, tmp_path)
        async with devices(hub, "alice", [("Phone", PHONE), ("PC", PC)], connect=False) as fleet:
            await fleet.go_online("Phone")
            watch = await fleet.initiator.sync("hello", targets=(fleet["PC"].terminal,))
            await fleet.go_offline("Phone")
            await fleet.go_online("PC")
            await until(lambda: fleet.digest("PC", "hello") == digests["PC"])
            await until(lambda: fleet["PC"].folder.reports() == ())  # the hub has noted its last report
            with DeviceEvents.of(fleet["Phone"]) as events:
                await fleet.go_online("Phone")
                done = await events.done(watch.sync)
            assert (done.outcome, done.counts) == ("done", {"done": 1})


async def test_a_second_login_replaces_the_first_which_is_told_why(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as hub:
        await hub.add_account("alice")
        async with devices(hub, "alice", [("PC", PC)]) as fleet, raw_terminal(hub) as second:
            identity = fleet["PC"].folder.identity()
            second.signing_key = SigningKey(identity.device_seed)
            second.terminal = identity.terminal
            await second.login()
            await until(lambda: fleet["PC"].error is not None)
            error = fleet["PC"].error
            assert isinstance(error, RefusedError)
            assert error.code == "replaced"
            assert fleet["PC"].logins == 1  # it does not fight for its place


async def test_presence_does_not_flicker_on_a_reconnect_within_the_grace(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as hub:
        await hub.add_account("alice")
        async with devices(hub, "alice", [("Phone", PHONE), ("PC", PC)]) as fleet:
            with DeviceEvents.of(fleet["Phone"]) as events:
                await fleet.go_offline("PC")
                await fleet.go_online("PC")
                await fleet["PC"].client.rename("Desk")  # comes after whatever the reconnect brought
                await events.row(lambda row: row.name == "Desk")
            assert all(row.online for row in events.rows if row.terminal == fleet["PC"].terminal)


async def test_a_device_that_stays_away_is_shown_offline_after_the_grace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "PRESENCE_GRACE_SECONDS", 0.3)
    async with running_hub(tmp_path) as hub:
        await hub.add_account("alice")
        async with devices(hub, "alice", [("Phone", PHONE), ("PC", PC)]) as fleet:
            with DeviceEvents.of(fleet["Phone"]) as events:
                await fleet.go_offline("PC")
                row = await events.row(lambda row: row.name == "PC" and not row.online)
            assert row.last_seen > 0


async def test_a_new_name_and_new_device_info_reach_the_others(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as hub:
        await hub.add_account("alice")
        async with devices(hub, "alice", [("Phone", PHONE), ("PC", PC)]) as fleet:
            with DeviceEvents.of(fleet["Phone"]) as events:
                await fleet["PC"].client.rename("Desk")
                await events.row(lambda row: row.name == "Desk")
                await fleet["PC"].client.update_device(DeviceInfo(model="ThinkPad", os_version="13"))
                await events.row(lambda row: row.device.os_version == "13")
            with pytest.raises(ConflictError):
                await fleet["PC"].client.rename("Phone")


async def test_a_gap_in_the_changes_brings_the_whole_list_again(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as hub:
        await hub.add_account("alice")
        async with devices(hub, "alice", [("Phone", PHONE), ("PC", PC)]) as fleet:
            connection = fleet["Phone"].connection
            assert connection is not None
            shown = connection._session.devices
            await until(lambda: len(shown.rows) == 2)
            hub.socket_of(fleet["Phone"].terminal).devices_revision += 1  # as if the next change were lost on the way
            await fleet["PC"].client.rename("Desk")
            await fleet["PC"].client.update_device(DeviceInfo(model="ThinkPad", os_version="13"))
            await until(lambda: {(row.name, row.device.os_version) for row in shown.rows} >= {("Desk", "13")})
            assert {row.name for row in shown.rows} == {"Phone", "Desk"}


async def test_a_cancelled_sync_ends_for_those_who_have_not_begun(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as hub:
        await hub.add_account("alice")
        await hub_with_hello(hub, tmp_path)
        async with devices(hub, "alice", [("Phone", PHONE), ("PC", PC)], connect=False) as fleet:
            await fleet.go_online("Phone")
            watch = await fleet.initiator.sync("hello", targets=(fleet["PC"].terminal,))
            result = await fleet.initiator.cancel(watch.sync)
            assert (result.cancelled, result.too_late) == (1, 0)
            assert await ended(watch) == "failed"
            assert states(watch.targets) == {"PC": "cancelled"}
            await fleet.go_online("PC")
            assert fleet["PC"].folder.inventory() == ()


async def test_what_is_owed_survives_a_hub_that_is_stopped_and_started(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as hub:
        await hub.add_account("alice")
        digests = await hub_with_hello(hub, tmp_path)
        async with devices(hub, "alice", [("Phone", PHONE), ("PC", PC)], connect=False) as fleet:
            await fleet.go_online("Phone")
            watch = await fleet.initiator.sync("hello", targets=(fleet["PC"].terminal,))
            with DeviceEvents.of(fleet["Phone"]) as events:
                await hub.stop()
                await until(lambda: not fleet["Phone"].online.is_set())
                await hub.start()
                await fleet.go_online("PC")
                assert (await events.done(watch.sync)).outcome == "done"
            assert fleet.digest("PC", "hello") == digests["PC"]


async def test_a_hub_killed_in_the_middle_of_a_transfer_delivers_after_its_restart(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as prepared:
        await prepared.add_account("alice")
        digests = await hub_with_hello(prepared, tmp_path, size=24 * MIB)
    async with (
        HubProcess(tmp_path / "hub") as hub,
        devices(hub, "alice", [("Phone", PHONE), ("PC", PC)], folder=tmp_path / "devices") as fleet,
    ):
        killed = when_heard(fleet["PC"], 4 * MIB, hub.kill_now)
        await fleet.initiator.sync("hello", everyone=True)
        await asyncio.wait_for(killed.wait(), WAIT_SECONDS)
        await hub.kill()
        assert fleet.digest("PC", "hello") == ""
        await until(lambda: not fleet["PC"].online.is_set())
        held_bytes = partial_bytes(fleet, digests["PC"])
        await hub.start()
        heard_bytes = fleet["PC"].heard_bytes
        await until(lambda: fleet.digest("PC", "hello") == digests["PC"])
        assert held_bytes > 0
        assert fleet["PC"].heard_bytes - heard_bytes < 25 * MIB - held_bytes // 2  # it went on, not began again
        await asyncio.gather(*(device.online.wait() for device in fleet.devices))


def when_heard(device: SimulatedDevice, count_bytes: int, act: Callable[[], None]) -> asyncio.Event:
    """Call `act` as soon as the device has heard so many bytes, before it hears more; the event says that it did."""
    done = asyncio.Event()
    socket = device._socket
    assert socket is not None
    hear = socket.data_received

    def data_received(data: bytes) -> None:
        if not done.is_set() and device.heard_bytes >= count_bytes:
            act()
            done.set()
        hear(data)

    socket.data_received = data_received  # type: ignore[method-assign]
    return done


def partial_bytes(fleet: TestFleet, digest: str) -> int:
    file = fleet["PC"].folder.downloads / digest
    try:
        return file.stat().st_blocks * 512
    except FileNotFoundError:
        return 0
