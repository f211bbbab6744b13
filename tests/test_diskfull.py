"""Disks that are full or fail: nothing acknowledged is lost, all are told. The short form of `tests.chaos.diskfull`."""

import asyncio
import shutil
from pathlib import Path

import pytest

from protocol.errors import UnavailableError
from terminal.agent import run_agent
from terminal.client import enrol
from terminal.state import StateFolder
from tests.chaos.diskfull import DATA_WRITES, SYNC_CALLS, Fault, run_faults
from tests.chaos.processes import ChaosHub
from tests.chaos.smalldisk import hub_on_a_disk_that_fills, may_mount, terminal_on_a_disk_that_fills
from tests.harness.fleets import until
from tests.harness.hubs import PASSWORD, running_hub
from tests.harness.raw import DEVICE

needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")


@pytest.fixture
def small_disks(tmp_path: Path) -> Path:
    if not may_mount(tmp_path):
        pytest.skip("a small disk needs root")
    return tmp_path


@needs_strace
async def test_a_write_or_an_fsync_that_fails_loses_nothing_acknowledged_and_is_told_in_words(tmp_path: Path) -> None:
    full, failing = Fault(DATA_WRITES, "ENOSPC", 21, lasts=False), Fault(DATA_WRITES, "EIO", 40, lasts=False)
    synced = Fault(SYNC_CALLS, "EIO", 5, lasts=False)
    counts, wrong = await run_faults(tmp_path / "faults", [full, failing, synced])
    assert wrong == []
    assert (counts["hits"], counts["lost"], counts["silent"]) == (3, 0, 0)
    assert counts["refused"] > 0
    assert counts["ended itself"] > 0


async def test_a_hub_on_a_full_disk_refuses_in_words_and_goes_on_when_there_is_room(small_disks: Path) -> None:
    assert await hub_on_a_disk_that_fills(small_disks / "run", 1) == []


async def test_a_terminal_on_a_full_disk_says_so_and_installs_when_there_is_room(small_disks: Path) -> None:
    assert await terminal_on_a_disk_that_fills(small_disks / "run") == []


async def test_an_agent_outlives_a_hub_whose_disk_has_failed(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as hub:
        await hub.add_account("ada")
        folder = StateFolder(tmp_path / "tv")
        await enrol(folder, hub.url, account="ada", password=PASSWORD, name="TV", device=DEVICE)
        hub.hub.store.fail("its database: disk I/O error")
        stop, told = asyncio.Event(), list[str]()
        agent = asyncio.create_task(
            run_agent(folder, DEVICE, {}, on_event=lambda kind, _: told.append(kind), stop=stop)
        )
        await until(lambda: "reconnecting" in told or agent.done())
        stop.set()
        assert await agent == "stopped"


async def test_a_hub_that_cannot_use_its_key_ends_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "hub.key").write_bytes(b"short")
    hub = ChaosHub(tmp_path / "hub")
    with pytest.raises(UnavailableError, match="5 bytes instead of 32") as caught:
        await hub.start()
    assert caught.value.code == "1", "its exit code"
