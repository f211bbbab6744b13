"""Backups: one whole file of a hub that runs, verified to the last bit, restored at once or not at all."""

import hashlib
import io
import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import tarfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from hub.backup import restore_backup, verify_backup, write_backup
from hub.scrub import scrub
from protocol.device import DeviceInfo
from protocol.errors import BadFileError, ConflictError, LockstepError, NotLoggedInError, RefusedError, UsageError
from terminal.client import enrol
from tests.harness import PASSWORD, DeviceEvents, TestFleet, devices, ended, make_installer, running_hub, until
from tests.harness.hubs import RunningHub
from tests.hub.rooms import add_account, open_rooms, publish, small_disk
from tests.hub.test_objects import flip_bit

ROOT = Path(__file__).parent.parent.parent
PC = DeviceInfo(model="PC", form_factor="pc", os_type="linux", architectures=("x86_64",), installer_kinds=("deb",))


def run(*command: str | Path) -> int:
    return subprocess.run(command, check=False, cwd=ROOT, timeout=30).returncode


async def backup_of(folder: Path, versions: tuple[str, ...] = ("1.0", "2.0")) -> Path:
    """Return a backup of a hub with an account and these releases; its data is in `folder`/hub."""
    async with open_rooms(folder) as hub:
        await add_account(hub)
        for version in versions:
            await publish(hub, folder, version)
        done = await write_backup(hub.store, hub.objects, hub.settings.data_folder, folder / "backup")
        assert (done.objects, done.missing) == (len(versions), ())
    return folder / "backup"


def members_of(file: Path) -> dict[str, bytes]:
    with tarfile.open(file) as archive:
        return {member.name: archive.extractfile(member).read() for member in archive}  # type: ignore[union-attr]


def write_tar(file: Path, members: dict[str, bytes], *, sums: bool = True) -> Path:
    """Write a tar as the backup has it, with right sums."""
    text = "".join(f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in members.items())
    with tarfile.open(file, "w") as archive:
        for name, data in [*members.items(), *([("SHA256SUMS", text.encode())] if sums else [])]:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return file


async def test_a_backup_is_one_private_file_that_sha256sum_agrees_with(tmp_path: Path) -> None:
    file = await backup_of(tmp_path)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    (tmp_path / "out").mkdir()
    assert run("tar", "-xf", file, "-C", tmp_path / "out") == 0
    assert run("sh", "-c", f"cd {tmp_path / 'out'} && sha256sum --check --quiet --strict SHA256SUMS") == 0
    assert verify_backup(file).objects == 2


async def test_a_restored_folder_holds_the_same_hub_and_is_sound(tmp_path: Path) -> None:
    file = await backup_of(tmp_path)
    assert restore_backup(file, tmp_path / "other" / "hub").objects == 2
    async with open_rooms(tmp_path) as before, open_rooms(tmp_path / "other") as after:
        assert await after.catalogue.listing() == await before.catalogue.listing()
        assert await after.accounts.listing() == await before.accounts.listing()
        assert after.hub_key.public == before.hub_key.public
        report = await scrub(after.store, after.objects, after.settings.data_folder)
        assert (report.is_sound, report.objects, report.findings) == (True, 2, ())
    assert stat.S_IMODE((tmp_path / "other" / "hub").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "other" / "hub" / "hub.key").stat().st_mode) == 0o600


async def test_a_file_that_is_there_is_replaced_only_by_force_and_a_folder_with_something_in_it_never(
    tmp_path: Path,
) -> None:
    file = await backup_of(tmp_path)
    before = file.read_bytes()
    async with open_rooms(tmp_path) as hub:
        folder = hub.settings.data_folder
        with pytest.raises(ConflictError):
            await write_backup(hub.store, hub.objects, folder, file)
        assert file.read_bytes() == before
        with pytest.raises(UsageError):
            await write_backup(hub.store, hub.objects, folder, tmp_path / "nowhere" / "file")
        await publish(hub, tmp_path, "3.0")
        assert (await write_backup(hub.store, hub.objects, folder, file, force=True)).objects == 3
    with pytest.raises(ConflictError, match="not empty"):
        restore_backup(file, tmp_path / "hub")
    (tmp_path / "empty").mkdir()
    assert restore_backup(file, tmp_path / "empty").objects == 3


async def test_a_damaged_object_is_left_out_and_named_and_the_rest_is_whole(tmp_path: Path) -> None:
    async with open_rooms(tmp_path) as hub:
        rows = [await publish(hub, tmp_path, version) for version in ("1.0", "2.0", "3.0")]
        digest = rows[1].digest
        flip_bit(hub.settings.data_folder / "objects" / digest[:2] / f"{digest}.pack", 40)
        done = await write_backup(hub.store, hub.objects, hub.settings.data_folder, tmp_path / "backup")
    assert (done.objects, done.missing) == (2, (digest,))
    assert verify_backup(tmp_path / "backup").missing == (digest,)
    restore_backup(tmp_path / "backup", tmp_path / "other" / "hub")
    async with open_rooms(tmp_path / "other") as hub:
        await publish(hub, tmp_path, "2.0")
        assert (await scrub(hub.store, hub.objects, hub.settings.data_folder)).findings == ()


async def test_a_bit_flipped_anywhere_in_what_counts_is_found_and_nothing_is_restored(tmp_path: Path) -> None:
    file = await backup_of(tmp_path, ("1.0",))
    with tarfile.open(file) as archive:
        spans = [(member.offset_data, member.size) for member in archive]
    for start, size in spans:
        for at in range(start, start + size, max(1, size // 6)):
            flip_bit(file, at * 8 + at % 8)
            with pytest.raises(BadFileError):
                restore_backup(file, tmp_path / "other" / "hub")
            flip_bit(file, at * 8 + at % 8)
    assert list((tmp_path / "other").iterdir()) == []
    assert verify_backup(file).objects == 1


async def test_a_backup_cut_off_anywhere_is_not_whole(tmp_path: Path) -> None:
    file = await backup_of(tmp_path, ("1.0",))
    with tarfile.open(file) as archive:
        last = archive.getmember("SHA256SUMS")
    whole = file.read_bytes()
    for length in (0, 100, 512, len(whole) // 2, last.offset, last.offset + 512, last.offset_data + last.size - 1):
        file.write_bytes(whole[:length])
        with pytest.raises(BadFileError):
            verify_backup(file)


HOSTILE: dict[str, Callable[[dict[str, bytes]], dict[str, bytes]]] = {
    "a path upwards": lambda members: members | {"../evil": b"x"},
    "an absolute path": lambda members: members | {"/tmp/evil": b"x"},
    "a file no backup has": lambda members: members | {"admin.sock": b"x"},
    "no key": lambda members: {name: data for name, data in members.items() if name != "hub.key"},
    "a database that is none": lambda members: members | {"hub.db": b"nonsense" * 1_000},
}


@pytest.mark.parametrize("what", HOSTILE)
async def test_a_made_up_backup_is_refused_and_nothing_is_written(what: str, tmp_path: Path) -> None:
    members = members_of(await backup_of(tmp_path, ("1.0",)))
    del members["SHA256SUMS"]
    file = write_tar(tmp_path / "hostile", HOSTILE[what](members))
    with pytest.raises(BadFileError):
        restore_backup(file, tmp_path / "other" / "hub")
    assert list((tmp_path / "other").iterdir()) == []
    with pytest.raises(BadFileError, match="not whole"):
        verify_backup(write_tar(tmp_path / "no sums", members, sums=False))
    assert verify_backup(write_tar(tmp_path / "as it was", members)).objects == 1


def test_a_link_in_a_backup_and_what_is_no_tar_are_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "link", "w") as archive:
        link = tarfile.TarInfo("hub.key")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    (tmp_path / "text").write_bytes(b"not a tar\n" * 200)
    for name in ("link", "text", "missing"):
        with pytest.raises(BadFileError):
            verify_backup(tmp_path / name)


KILLED_AT = """
import os, signal, sys, tarfile
from pathlib import Path
from hub import backup
count = 0
def kill(*_):
    global count
    count += 1
    if count == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
backup.restore_backup(Path(sys.argv[1]), Path(sys.argv[2]), kill)
"""


async def test_a_restore_killed_anywhere_leaves_no_half_folder_and_the_next_one_succeeds(tmp_path: Path) -> None:
    file = await backup_of(tmp_path)
    folder = tmp_path / "other" / "hub"
    for step in (1, 3, 6, 7):
        killed = run(sys.executable, "-c", KILLED_AT, file, folder, str(step))
        assert killed == -signal.SIGKILL
        assert not folder.exists()
    restore_backup(file, folder)
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["hub"], "what the killed ones left is gone"


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
async def test_no_room_for_a_backup_is_said_and_leaves_nothing(tmp_path: Path) -> None:
    file = await backup_of(tmp_path)
    with small_disk(tmp_path / "disk", 100_000) as disk, small_disk(tmp_path / "least", 40_000) as least:
        async with open_rooms(tmp_path) as hub:
            for place in (disk, least):
                with pytest.raises(LockstepError) as told:
                    await write_backup(hub.store, hub.objects, hub.settings.data_folder, place / "backup")
                assert "room" in str(told.value) or "free" in str(told.value) or "full" in str(told.value)
                assert list(place.iterdir()) == []
        with pytest.raises(RefusedError, match="no room"):
            restore_backup(file, least / "hub")
        assert list(least.iterdir()) == []


def undecided(database: Path) -> int:
    with closing(sqlite3.connect(database)) as connection:
        [(count,)] = connection.execute("SELECT COUNT(*) FROM restored")
    return int(count)


# --- a restored hub and terminals that went on ---------------------------------------------------------------------


async def sync_all(fleet: TestFleet, version: str = "") -> str:
    return await ended(await fleet.initiator.sync("hello", version=version, everyone=True))


async def back_to(hub: RunningHub, file: Path) -> None:
    """Put a hub back to a backup, at the same address."""
    await hub.stop()
    shutil.rmtree(hub.folder)
    restore_backup(file, hub.folder)
    await hub.start()


async def test_after_a_restore_terminals_and_hub_agree_and_nothing_is_wrongly_called_installed(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as hub:
        await hub.add_account("ada")
        first, second = (make_installer(tmp_path, "deb", version=version) for version in ("1.0", "2.0"))
        one = await hub.publish(first, program="hello")
        async with devices(hub, "ada", [("asks", PC), ("has", PC), ("away", PC)]) as fleet:
            assert await sync_all(fleet, "1.0") == "done"
            data = hub.folder
            await write_backup(hub.hub.store, hub.hub.objects, data, tmp_path / "backup")
            two = await hub.publish(second, program="hello")
            assert await sync_all(fleet) == "done"
            await fleet.go_offline()
            await back_to(hub, tmp_path / "backup")
            await fleet.go_online("asks", "has")
            # The backup says that "away" has 1.0, and it has 2.0: nobody may be told that 1.0 is there already.
            watch = await fleet.initiator.sync("hello", version="1.0", everyone=True)
            waiting = {row.name: row.state for row in watch.targets.values()}
            assert waiting["away"] == "queued"
            await fleet.go_online("away")
            assert await ended(watch) == "done"
            assert {row.name: row.state for row in watch.targets.values()} == {"has": "done", "away": "done"}
            assert {fleet.digest(name, "hello") for name in ("has", "away")} == {one.digest}
            # What the hub has lost is published again, and goes its way.
            assert (await hub.publish(second, program="hello")).digest == two.digest
            assert await sync_all(fleet) == "done"
            assert {fleet.digest(name, "hello") for name in ("has", "away")} == {two.digest}
            again = await fleet.initiator.sync("hello", everyone=True)
            assert await ended(again) == "done"
            assert {row.state for row in again.targets.values()} == {"same"}, "and now it is true"


async def test_what_the_backup_owed_is_delivered_where_nothing_changed_since_and_never_takes_a_device_back(
    tmp_path: Path,
) -> None:
    async with running_hub(tmp_path) as hub:
        await hub.add_account("ada")
        one = await hub.publish(make_installer(tmp_path, "deb", version="1.0"), program="hello")
        names = ("asks", "went on", "has it", "waits")
        async with devices(hub, "ada", [(name, PC) for name in names]) as fleet:
            await fleet.go_offline("went on", "has it", "waits")
            owed = await fleet.initiator.sync("hello", everyone=True)
            await write_backup(hub.hub.store, hub.hub.objects, hub.folder, tmp_path / "backup")
            await fleet.go_online("has it")
            await until(lambda: fleet.digest("has it", "hello") == one.digest)
            two = await hub.publish(make_installer(tmp_path, "deb", version="2.0"), program="hello")
            newer = await fleet.initiator.sync("hello", targets=(fleet["went on"].terminal,))
            await fleet.go_online("went on")
            assert await ended(newer) == "done"
            await fleet.go_offline()
            await back_to(hub, tmp_path / "backup")
            with DeviceEvents.of(fleet["asks"]) as told:
                await fleet.go_online()
                assert (await told.done(owed.sync)).outcome == "partly"
            rows = await fleet.initiator.sync_result(owed.sync)
            states = {row.name: (row.state, row.reason) for row in rows}
            assert states["went on"] == ("superseded", "newer-request")
            assert states["has it"][0] in ("same", "done")
            assert states["waits"][0] == "done"
            assert fleet.digest("went on", "hello") == two.digest, "it was not taken back"
            assert fleet.digest("has it", "hello") == fleet.digest("waits", "hello") == one.digest
            assert undecided(hub.folder / "hub.db") == 0


async def test_a_terminal_that_enrolled_after_the_backup_is_told_to_log_in_again(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as hub:
        await hub.add_account("ada")
        await write_backup(hub.hub.store, hub.hub.objects, hub.folder, tmp_path / "backup")
        async with devices(hub, "ada", [("new", PC)]) as fleet:
            await fleet.go_offline()
            await back_to(hub, tmp_path / "backup")
            device = fleet["new"]
            fleet.fleet.connect(device)
            await until(lambda: device.error is not None)
            assert isinstance(device.error, NotLoggedInError)
            await enrol(device.folder, hub.url, account="ada", password=PASSWORD, name="new", device=PC)
            await fleet.go_offline()
            device.error = None
            await fleet.go_online()
            assert [row.name for row in await fleet.initiator.devices()] == ["new"]
