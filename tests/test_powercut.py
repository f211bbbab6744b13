"""The power goes: what was synced is there, what was promised is kept. The short form of `tests.chaos.powercut`."""

import random
import shutil
from pathlib import Path

import pytest

from tests.chaos.crashdisk import ALL_SURVIVORS, CrashDisk, Survivors
from tests.chaos.powercut import cut_hub, record_hub
from tests.chaos.terminalcut import cut_terminal, record_terminal
from tests.chaos.tracing import Change, Create, Rename, Sync, Write

needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
ROOT = Path("/disk")


def left(tmp_path: Path, survivors: Survivors, *changes: Change) -> dict[str, bytes]:
    disk = CrashDisk(ROOT)
    for step, change in enumerate(changes):
        disk.change(step, change)
    disk.image(tmp_path / "image", survivors, random.Random(1))
    files = (path for path in (tmp_path / "image").rglob("*") if path.is_file())
    return {str(path.relative_to(tmp_path / "image")): path.read_bytes() for path in files}


def test_a_new_file_needs_both_its_bytes_and_its_name_synced(tmp_path: Path) -> None:
    made = (Create("/disk/a", False), Write("/disk/a", 0, b"new"))
    assert left(tmp_path / "1", "nothing", *made, Sync("/disk/a", 9)) == {}
    assert left(tmp_path / "2", "nothing", *made, Sync("/disk", 9)) == {"a": b""}
    assert left(tmp_path / "3", "nothing", *made, Sync("/disk/a", 9), Sync("/disk", 9)) == {"a": b"new"}
    assert left(tmp_path / "4", "everything", *made) == {"a": b"new"}


def test_a_rename_that_is_not_synced_leaves_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    changes = (
        Create("/disk/a", False), Write("/disk/a", 0, b"old"), Sync("/disk/a", 9), Sync("/disk", 9),
        Create("/disk/b", False), Write("/disk/b", 0, b"new"), Sync("/disk/b", 9), Rename("/disk/b", "/disk/a"),
    )  # fmt: skip
    assert left(tmp_path / "1", "nothing", *changes) == {"a": b"old"}
    assert left(tmp_path / "2", "names", *changes) == {"a": b"new"}


def test_a_write_is_torn_at_the_pieces_of_a_disk_and_nowhere_else(tmp_path: Path) -> None:
    changes = (Create("/disk/a", False), Sync("/disk", 9), Write("/disk/a", 100, b"x" * 20_000))
    data = left(tmp_path, "chance", *changes)["a"]
    borders = [at for at in range(101, len(data)) if data[at] != data[at - 1]]
    assert borders
    assert all(at % 512 == 0 for at in borders)


@needs_strace
async def test_a_hub_whose_power_goes_has_what_it_promised_and_the_control_has_not(tmp_path: Path) -> None:
    steps = await record_hub(tmp_path / "full", seed=1, rounds=1, starts=1)
    counts = await cut_hub(steps, tmp_path / "full" / "disk", seed=1, cuts=8)
    assert (counts["cuts"], counts["disks"], counts["lost"], counts["integrity"]) == (8, 8 * len(ALL_SURVIVORS), 0, 0)
    assert counts["promises"] > 50
    steps = await record_hub(tmp_path / "normal", seed=1, rounds=1, starts=1, level="NORMAL")
    control = await cut_hub(steps, tmp_path / "normal" / "disk", seed=1, cuts=2, show=False)
    assert control["lost"] > 0


@needs_strace
async def test_a_terminal_whose_power_goes_has_what_it_told_and_knows_what_it_began(tmp_path: Path) -> None:
    steps = await record_terminal(tmp_path)
    counts = await cut_terminal(steps, tmp_path / "disk", seed=1, cuts=12)
    assert (counts["cuts"], counts["lost"], counts["integrity"]) == (12, 0, 0)
    assert counts["promises"] > 25
