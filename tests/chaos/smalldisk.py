"""A small disk that really fills (a tmpfs of a few MiB; root only), under a hub and under a terminal.

Everything is refused in words while it is full, nothing acknowledged is lost, and once there is room again it goes on
without a restart.
"""

import asyncio
import errno
import os
import random
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final
from unittest.mock import patch

from protocol import life, limits
from protocol.errors import LockstepError
from terminal.agent import run_agent
from terminal.client import enrol, open_client
from terminal.installers import InstallResult, InstallTask
from terminal.state import StateFolder
from tests.chaos.powercut import Promised, losses
from tests.harness.fleets import ended, until
from tests.harness.hubs import PASSWORD, RunningHub, running_hub
from tests.harness.installers import make_installer
from tests.harness.raw import DEVICE

HUB_DISK_BYTES: Final = 8 * limits.MIB
TERMINAL_DISK_BYTES: Final = 40 * limits.MIB
_RETRY_SECONDS: Final = (0.3,) * (life.TRIES - 1)
_FILLER_BYTES: Final = 64 * limits.KIB


@contextmanager
def small_disk(folder: Path, size_bytes: int) -> Iterator[Path]:
    """Give a disk of this size at `folder`. Raises OSError where that may not be mounted."""
    folder.mkdir(parents=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", folder], check=False, capture_output=True
    )
    if mounted.returncode:
        raise OSError(errno.EPERM, mounted.stderr.decode().strip())
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def may_mount(folder: Path) -> bool:
    """Return whether a small disk can be had here."""
    try:
        with small_disk(folder / "tried", limits.MIB):
            return True
    except OSError:
        return False


def fill(folder: Path) -> Path:
    """Take all room that is left on the disk of `folder`; return the file that has it."""
    filler = folder / "filler"
    descriptor = os.open(filler, os.O_WRONLY | os.O_CREAT, 0o600)
    with suppress(OSError):
        while True:
            os.write(descriptor, bytes(_FILLER_BYTES))
    os.close(descriptor)
    return filler


async def hub_on_a_disk_that_fills(folder: Path, seed: int) -> list[str]:
    """Fill a hub's disk with what it is asked to keep, and then to the last byte; return what was wrong."""
    chance = random.Random(seed)
    wrong: list[str] = []
    with small_disk(folder / "disk", HUB_DISK_BYTES) as disk:
        async with running_hub(disk) as hub:
            promised = Promised(hub_keys={hub.hub.hub_key.public})
            await hub.add_account("ada")
            promised.accounts.add("ada")
            refused = await _publish_until_full(hub, folder, promised, chance)
            filler = fill(disk)
            for name in ("grace", "joan"):
                refused.append(await _refused(hub.add_account(name)))
            filler.unlink()
            if any(code != "disk-full" for code in refused):
                wrong.append(f"a full disk was told as {refused}")
            for name in ("grace", "joan"):
                await hub.add_account(name)
                promised.accounts.add(name)
        wrong += await losses(disk / "hub", promised)
    return wrong


async def _publish_until_full(hub: RunningHub, folder: Path, promised: Promised, chance: random.Random) -> list[str]:
    for number in range(100):
        file = make_installer(folder, "deb", f"app{number}", size=chance.randrange(200_000, 1_500_000), seed=number)
        try:
            promised.published.add((await hub.publish(file)).digest)
        except LockstepError as error:
            return [error.code]
    return ["never full"]


async def _refused(work: object) -> str:
    try:
        await work  # type: ignore[misc]
    except LockstepError as error:
        return error.code
    return "accepted"


class _Keeps:
    """A runner that notes what it was told to install."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.version: str | None = None

    async def install(self, task: InstallTask) -> InstallResult:
        self.ran.append(task.delivery)
        self.version = task.version
        return InstallResult(ok=True, reason="installed", detail="", installed_version=task.version)

    async def installed_version(self, package_name: str) -> str | None:
        return self.version


async def terminal_on_a_disk_that_fills(folder: Path) -> list[str]:
    """Take all room from a terminal as it begins to receive, give it back later; return what was wrong.

    The hub's waits between tries, half a minute and more, are cut short.
    """
    with patch.object(life, "RETRY_SECONDS", _RETRY_SECONDS), small_disk(folder / "disk", TERMINAL_DISK_BYTES) as disk:
        async with running_hub(folder) as hub:
            await hub.add_account("ada")
            await hub.publish(make_installer(folder, "deb", size=8 * limits.MIB))
            state = StateFolder(disk / "state")
            target = await enrol(state, hub.url, account="ada", password=PASSWORD, name="TV", device=DEVICE)
            asking = StateFolder(folder / "asking")
            await enrol(asking, hub.url, account="ada", password=PASSWORD, name="PC", device=DEVICE)
            return await _receive_on_full_disk(disk, state, asking, target.terminal)


async def _receive_on_full_disk(disk: Path, state: StateFolder, asking: StateFolder, target: str) -> list[str]:
    runner, stop, events = _Keeps(), asyncio.Event(), list[str]()

    def on_event(kind: str, sentence: str) -> None:
        events.append(sentence)
        if sentence.startswith("Receiving") and len([one for one in events if one.startswith("Receiving")]) == 1:
            fill(disk)

    agent = asyncio.create_task(run_agent(state, DEVICE, {"deb": runner}, on_event=on_event, stop=stop))
    try:
        async with open_client(asking) as client:
            await until(lambda: any(one.startswith("Connected") for one in events))
            watch = await client.sync("hello", targets=(target,))
            said: list[str] = []
            async with asyncio.timeout(60):
                async for _ in watch.changes():
                    row = watch.targets[target]
                    if row.reason == "no-space" and not said:
                        said.append(row.detail)
                        (disk / "filler").unlink()
            outcome = await ended(watch)
    finally:
        stop.set()
        await agent
    wrong = [] if said and said[0].strip() else [f"a full disk was never told in words: {events}"]
    wrong += [] if outcome == "done" else [f"the sync ended {outcome} although there was room again"]
    return wrong + ([] if len(runner.ran) == 1 else [f"the installer ran {len(runner.ran)} times"])
