"""A disk that fails under a real hub: an fsync that returns EIO, injected with strace, ends it with a sentence.

What was acknowledged before is there after the next start, and who asked when it happened is told.
"""

import asyncio
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from hub.admin import SOCKET_NAME, ask
from hub.config import Settings
from protocol.errors import LockstepError
from tests.harness import PASSWORD, make_installer, until

pytestmark = pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
ROOT = Path(__file__).parent.parent.parent


async def start_hub(folder: Path, call: str, when: int) -> asyncio.subprocess.Process:
    """Start a hub whose `when`-th call of `call` fails with EIO, once; every retry would succeed."""
    process = await asyncio.create_subprocess_exec(
        "strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={call}", "-e", f"inject={call}:error=EIO:when={when}",
        sys.executable, "-m", "hub", "serve", "--listen", "127.0.0.1:0", "--data", str(folder), cwd=ROOT,
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "LOCKSTEP_HUB_DISK_RESERVE_BYTES": "0"},
    )  # fmt: skip
    await until((folder / SOCKET_NAME).exists)
    return process


async def end_of(process: asyncio.subprocess.Process) -> tuple[int | None, str]:
    async with asyncio.timeout(30):
        _, errors = await process.communicate()
    return process.returncode, errors.decode()


async def accounts_acknowledged(settings: Settings) -> list[str]:
    """Add accounts until the hub says no; return those it has acknowledged."""
    acknowledged: list[str] = []
    with pytest.raises(LockstepError) as told:
        for number in range(40):
            await ask(settings, "account add", {"name": f"account-{number:02}", "password": PASSWORD})
            acknowledged.append(f"account-{number:02}")
    assert told.value.code in ("disk-failed", "unavailable", "in-use"), "in use: by the hub that is ending"
    return acknowledged


@pytest.mark.parametrize("after", [1, 4])
async def test_a_commit_that_cannot_be_synced_ends_the_hub_and_loses_nothing_acknowledged(
    after: int, tmp_path: Path
) -> None:
    settings = Settings(data=str(tmp_path / "hub"), disk_reserve_bytes=0)
    await ask(settings, "account add", {"name": "account-before", "password": PASSWORD})
    hub = await start_hub(tmp_path / "hub", "fdatasync", after + 4)
    acknowledged = await accounts_acknowledged(settings)
    code, said = await end_of(hub)
    assert code == 1
    assert "Error: The hub's disk could not keep what was written" in said and "Traceback" not in said
    rows = await ask(settings, "account list", {})
    assert [row["name"] for row in rows] == [*acknowledged, "account-before"]


async def test_an_object_that_cannot_be_synced_ends_the_hub_and_is_not_in_the_catalogue(tmp_path: Path) -> None:
    settings = Settings(data=str(tmp_path / "hub"), disk_reserve_bytes=0)
    files = [make_installer(tmp_path, "deb", version=f"1.{number}") for number in range(4)]
    published: list[Any] = [await ask(settings, "publish", {"file": str(files[0])})]
    hub = await start_hub(tmp_path / "hub", "fsync", 8)
    with pytest.raises(LockstepError) as told:
        for file in files[1:]:
            published.append(await ask(settings, "publish", {"file": str(file)}))
    assert told.value.code in ("disk-failed", "unavailable", "in-use"), "in use: by the hub that is ending"
    code, said = await end_of(hub)
    assert code == 1 and "The hub's disk could not keep what was written" in said and "Traceback" not in said
    listed = await ask(settings, "catalogue", {})
    assert sorted(row["digest"] for row in listed) == sorted(row["digest"] for row in published)
