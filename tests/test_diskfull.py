"""Disks that are full or fail: nothing acknowledged is lost, all are told. The short form of `tests.chaos.diskfull`."""

import shutil
from pathlib import Path

import pytest

from tests.chaos.diskfull import faults, run_faults
from tests.chaos.smalldisk import hub_on_a_disk_that_fills, may_mount, terminal_on_a_disk_that_fills

needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")


@pytest.fixture
def small_disks(tmp_path: Path) -> Path:
    if not may_mount(tmp_path):
        pytest.skip("a small disk needs root")
    return tmp_path


@needs_strace
async def test_a_write_or_an_fsync_that_fails_loses_nothing_acknowledged_and_is_told_in_words(tmp_path: Path) -> None:
    full, failing, synced = faults(60, 7)[20], faults(60, 7)[60 + 39], faults(60, 7)[120 + 4]
    counts, wrong = await run_faults(tmp_path / "faults", [full, failing, synced])
    assert wrong == []
    assert (counts["hits"], counts["lost"], counts["silent"]) == (3, 0, 0)
    assert counts["refused"] > 0
    assert counts["ended itself"] > 0


async def test_a_hub_on_a_full_disk_refuses_in_words_and_goes_on_when_there_is_room(small_disks: Path) -> None:
    assert await hub_on_a_disk_that_fills(small_disks / "run", 1) == []


async def test_a_terminal_on_a_full_disk_says_so_and_installs_when_there_is_room(small_disks: Path) -> None:
    assert await terminal_on_a_disk_that_fills(small_disks / "run") == []
