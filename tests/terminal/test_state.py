"""The state folder on a real disk, with another real process at the lock."""

import errno
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from protocol.errors import BadFileError, NotLoggedInError, RefusedError, UsageError
from protocol.messages import DeviceRow, InstalledProgram, State
from terminal.state import Identity, Mark, StateFolder, default_state_path
from tests.terminal.scripted import DEVICE, thing

IDENTITY = Identity(
    url="wss://hub.example",
    account="ada",
    terminal="t-1",
    name="TV",
    hub_key=b"\x00\xff" * 16,
    device_seed=b"d" * 32,
    sealing_seed=b"s" * 32,
)
HOLD = """
import sys
from pathlib import Path
from terminal.state import StateFolder
with StateFolder(Path(sys.argv[1])).lock():
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def folder(tmp_path: Path) -> StateFolder:
    return StateFolder(tmp_path / "state")


def program(name: str, version: str = "1", digest: bytes = b"x" * 32) -> InstalledProgram:
    return InstalledProgram(program=name, package_name=name, version=version, installer_kind="deb", digest=digest)


@contextmanager
def another_process_holding(folder: StateFolder) -> Iterator[None]:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        yield
        process.stdin.close()


def test_a_lock_that_cannot_be_opened_is_said_in_one_sentence(tmp_path: Path) -> None:
    folder = StateFolder(tmp_path / "state")
    (folder.path / "lock").mkdir()
    with pytest.raises(RefusedError, match="cannot be written") as caught, folder.lock():
        pytest.fail("locked")
    assert caught.value.code == "state-folder"


def test_everything_kept_comes_back_from_a_fresh_folder_object(folder: StateFolder) -> None:
    row = DeviceRow(terminal="t-2", name="Car", online=False, device=DEVICE)
    offer = thing(5_000).offer()
    folder.save_identity(IDENTITY)
    folder.save_device(DEVICE)
    folder.save_devices("e1", 7, (row,))
    folder.put_mark(Mark(offer=offer, starts=2, before="0.9"))
    again = StateFolder(folder.path)
    saved = again.devices()
    assert saved is not None
    assert (again.identity(), again.device(), again.mark("d-1")) == (
        IDENTITY,
        DEVICE,
        Mark(offer=offer, starts=2, before="0.9"),
    )
    assert (saved.epoch, saved.revision, saved.rows) == ("e1", 7, (row,))
    again.drop_mark("d-1")
    assert (again.marks(), again.mark("d-1")) == ((), None)


def test_the_mark_of_version_0_1_0_is_taken_over_once(folder: StateFolder) -> None:
    offer = thing(5_000).offer()
    (folder.path / "installing.json").write_bytes(msgspec.json.encode(offer))
    assert folder.marks() == (Mark(offer=offer, starts=1),)
    assert not (folder.path / "installing.json").exists()
    folder.drop_mark("d-1")
    assert StateFolder(folder.path).marks() == ()


def test_marks_of_what_did_not_happen_go_when_they_are_as_old_as_a_delivery_can_be(folder: StateFolder) -> None:
    for number, running in enumerate((False, True, False)):
        folder.put_mark(Mark(offer=thing(5_000).offer(f"d-{number}"), starts=1, running=running))
    old = time.time() - 31 * 86_400
    for file in sorted((folder.path / "installing").glob("*.json"), key=lambda file: file.stat().st_mtime_ns)[:2]:
        os.utime(file, (old, old))
    folder.drop_old_marks()
    assert {mark.offer.delivery for mark in folder.marks()} == {"d-1", "d-2"}


def test_a_delivery_with_any_name_has_a_mark_of_its_own(folder: StateFolder) -> None:
    offers = [thing(5_000).offer(delivery) for delivery in ("../identity", "d/1", "x" * 128, "d-1")]
    for offer in offers:
        folder.put_mark(Mark(offer=offer, starts=1))
    assert [mark.offer for mark in folder.marks()] == offers
    assert not folder.has_identity()


def test_the_program_before_is_remembered_when_another_file_takes_its_place(folder: StateFolder) -> None:
    first, second, third = (program("hello", f"{number}.0", bytes([number]) * 32) for number in (1, 2, 3))
    folder.record_installed(first)
    folder.record_installed(first)
    assert folder.previous() == ()
    folder.record_installed(second)
    folder.record_installed(program("other"))
    assert folder.previous() == (first,)
    folder.record_installed(third)
    assert folder.previous() == (second,)


def test_what_a_killed_writer_left_is_removed_by_the_next_holder_of_the_lock(folder: StateFolder) -> None:
    left = [folder.path / ".reports.json.a1b2", folder.path / "installing" / ".0a.json.c3"]
    in_use = folder.path / ".preferences.json.x9"  # written by commands that do not hold the lock
    for file in (*left, in_use):
        file.write_bytes(b"{")
    with folder.lock():
        assert [file.exists() for file in (*left, in_use)] == [False, False, True]


@pytest.mark.parametrize(("number", "code"), [(errno.EIO, "disk-failed"), (errno.ENOSPC, "state-folder")])
def test_a_disk_that_fails_is_told_from_one_that_is_full(
    folder: StateFolder, monkeypatch: pytest.MonkeyPatch, number: int, code: str
) -> None:
    def fails(_descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(RefusedError) as caught:
        folder.add_report(State(delivery="d-1", state="done"))
    assert caught.value.code == code


def test_only_the_owner_can_read_the_folder_and_its_files(folder: StateFolder) -> None:
    folder.save_identity(IDENTITY)
    assert folder.path.stat().st_mode & 0o777 == 0o700
    assert (folder.path / "identity.json").stat().st_mode & 0o777 == 0o600


def test_before_the_first_login_it_says_what_to_run(folder: StateFolder) -> None:
    assert not folder.has_identity()
    with pytest.raises(NotLoggedInError, match="lockstep-terminal login"):
        folder.identity()


def test_private_keys_do_not_show_in_a_repr() -> None:
    assert "ddd" not in repr(IDENTITY)


def test_the_keys_of_an_interrupted_enrolment_are_used_again(folder: StateFolder) -> None:
    first = folder.seeds("ada")
    assert StateFolder(folder.path).seeds("ada") == first
    assert folder.seeds("grace").device_seed != first.device_seed


@pytest.mark.parametrize("content", [b"", b"{", b'{"url": 1}', b"\xff\xfe", b"[" * 5_000])
def test_a_damaged_file_is_named_and_never_a_traceback(folder: StateFolder, content: bytes) -> None:
    (folder.path / "identity.json").write_bytes(content)
    with pytest.raises(BadFileError, match=r"identity\.json is damaged"):
        folder.identity()


@pytest.mark.parametrize("name", ["standing", "posture"])
def test_what_is_told_again_needs_no_copy_and_no_login(folder: StateFolder, name: str) -> None:
    (folder.path / f"{name}.json").write_bytes(b"{")
    with pytest.raises(BadFileError, match=rf"{name}\.json is damaged") as caught:
        getattr(folder, name)()
    assert "log in" not in caught.value.hint and caught.value.hint.startswith("Remove it")
    (folder.path / f"{name}.json").unlink()
    assert getattr(folder, name)() is None


def test_damaged_files_this_device_can_do_without_are_set_aside_and_no_others(folder: StateFolder) -> None:
    for name in ("inbox", "previous", "devices", "device", "inventory", "preferences", "reports"):
        (folder.path / f"{name}.json").write_bytes(b"{")
    aside = folder.set_aside_damaged()
    assert [file.name for file in aside] == [
        f"{name}.json.damaged" for name in ("inbox", "previous", "devices", "device")
    ]
    assert (folder.inbox(), folder.previous(), folder.devices(), folder.device()) == ((), (), None, None)
    for read in (folder.inventory, folder.preferences, folder.reports):
        with pytest.raises(BadFileError):
            read()
    assert folder.set_aside_damaged() == ()


def test_a_program_installed_again_replaces_its_record(folder: StateFolder) -> None:
    for one in (program("a"), program("b"), program("a", "2")):
        folder.record_installed(one)
    assert {one.program: one.version for one in folder.inventory()} == {"a": "2", "b": "1"}
    folder.forget_installed("a")
    assert folder.inventory() == (program("b"),)


def test_reports_stay_in_order_until_the_very_state_is_noted(folder: StateFolder) -> None:
    first, second = (State(delivery=f"d-{number}", state="done") for number in (1, 2))
    folder.add_report(first)
    folder.add_report(second)
    folder.drop_report("d-1", "failed")
    assert folder.reports() == (first, second)
    folder.drop_report("d-1", "done")
    assert folder.reports() == (second,)


def test_no_report_is_lost_however_many_wait_to_be_noted(folder: StateFolder) -> None:
    many = tuple(State(delivery=f"d-{number}", state="done") for number in range(1_000))
    (folder.path / "reports.json").write_bytes(msgspec.json.encode(many))
    folder.add_report(State(delivery="d-new", state="done"))
    assert [one.delivery for one in folder.reports()] == [*(one.delivery for one in many), "d-new"]


def test_a_write_that_cannot_be_finished_leaves_the_old_file_and_no_rubbish(
    folder: StateFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.save_identity(IDENTITY)

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    before = sorted(folder.path.iterdir())
    monkeypatch.setattr(os, "fsync", full)  # no disk here can be filled without filling the machine's
    with pytest.raises(RefusedError, match="No space left") as caught:
        folder.save_identity(msgspec.structs.replace(IDENTITY, name="Other"))
    assert caught.value.code == "state-folder"
    assert folder.identity() == IDENTITY
    assert sorted(folder.path.iterdir()) == before


def test_a_lock_held_by_another_process_is_refused_until_that_ends(folder: StateFolder) -> None:
    with another_process_holding(folder):
        assert folder.is_locked()
        with pytest.raises(RefusedError, match="Another process") as caught, folder.lock():
            pytest.fail("two processes hold the lock")
        assert caught.value.code == "in-use"
    with folder.lock():
        assert folder.is_locked()
    assert not folder.is_locked()


def test_a_folder_that_cannot_be_made_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UsageError, match="cannot be created"):
        StateFolder(tmp_path / "file" / "state")


def test_the_default_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/tmp/xdg")
    monkeypatch.delenv("LOCKSTEP_STATE", raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    assert default_state_path() == Path("/tmp/xdg/lockstep")
    monkeypatch.setenv("LOCKSTEP_STATE", "/tmp/mine")
    assert default_state_path() == Path("/tmp/mine")
