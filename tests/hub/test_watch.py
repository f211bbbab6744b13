"""A watched folder: what is taken when, and `publish --watch` as a process, with a hub and without."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from hub.watch import LONGEST_WAIT_LOOKS, WatchedFolder
from tests.harness.installers import make_installer
from tests.hub.rooms import open_rooms
from tests.hub.test_admin import served

ROOT = Path(__file__).parent.parent.parent
WATCHING_SECONDS = 20.0


def taken(watched: WatchedFolder) -> list[str]:
    return [path.name for path in watched.look()]


def written(path: Path, content: str, *, at: int) -> Path:
    """Write a file whose time is `at`: two writes in one tick of the clock differ all the same."""
    path.write_text(content)
    os.utime(path, (at, at))
    return path


def test_a_file_is_taken_once_it_stays_as_it_is_and_once_only(tmp_path: Path) -> None:
    watched = WatchedFolder(tmp_path)
    written(tmp_path / "a.deb", "half", at=1)
    assert taken(watched) == []
    written(tmp_path / "a.deb", "whole file", at=2)
    assert taken(watched) == [], "it grew since the last look"
    assert taken(watched) == ["a.deb"]
    assert taken(watched) == []
    written(tmp_path / "a.deb", "another one", at=3)
    assert [taken(watched), taken(watched), taken(watched)] == [[], ["a.deb"], []]
    (tmp_path / "a.deb").unlink()
    assert taken(watched) == []
    written(tmp_path / "a.deb", "another one", at=3)
    assert [taken(watched), taken(watched)] == [[], ["a.deb"]], "it came back"


def test_what_is_still_being_written_hidden_or_no_file_is_passed_over(tmp_path: Path) -> None:
    for name in (".a.deb", "a.deb.part", "a.tmp", "a.crdownload", "A.PART", "a.deb~", "a.deb.lockstep.toml"):
        (tmp_path / name).write_text("x")
    (tmp_path / "folder.deb").mkdir()
    os.mkfifo(tmp_path / "pipe.deb")
    (tmp_path / "nowhere.deb").symlink_to(tmp_path / "none")
    watched = WatchedFolder(tmp_path)
    assert [taken(watched), taken(watched)] == [[], []]
    (tmp_path / "a.deb.part").rename(tmp_path / "a.deb")
    assert [taken(watched), taken(watched)] == [[], ["a.deb"]]


def test_a_sidecar_that_comes_or_changes_later_has_its_file_taken_again(tmp_path: Path) -> None:
    watched = WatchedFolder(tmp_path)
    written(tmp_path / "a.pkg", "x", at=1)
    assert [taken(watched), taken(watched)] == [[], ["a.pkg"]]
    written(tmp_path / "a.pkg.lockstep.toml", 'program = "a"', at=2)
    assert [taken(watched), taken(watched), taken(watched)] == [[], ["a.pkg"], []]
    written(tmp_path / "a.pkg.lockstep.toml", 'program = "b"', at=3)
    assert [taken(watched), taken(watched), taken(watched)] == [[], ["a.pkg"], []]


def test_what_is_to_be_tried_again_comes_later_each_time_and_its_reason_is_news_once(tmp_path: Path) -> None:
    watched = WatchedFolder(tmp_path)
    path = written(tmp_path / "a.deb", "x", at=1)
    other = written(tmp_path / "b.deb", "x", at=1)
    watched.look()
    assert watched.look() == [path, other]
    gaps, looks = [], 0
    assert watched.try_again(path, "disk-full") is True
    for _ in range(8 * LONGEST_WAIT_LOOKS):
        looks += 1
        if watched.look() == [path]:
            gaps.append(looks)
            looks = 0
            assert watched.try_again(path, "disk-full") is False
    assert gaps[:8] == [1, 2, 4, 8, 16, 32, 64, 64]
    written(path, "y", at=2)
    assert [taken(watched), taken(watched)] == [[], ["a.deb"]], "a new version does not wait"
    assert watched.try_again(path, "disk-full") is True


# --- as a process ---------------------------------------------------------------------------------------------------


class Watcher:
    """A `lockstep-hub publish --watch` that prints JSON."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def says(self) -> dict[str, Any]:
        """The next document it prints."""
        assert self.process.stdout is not None
        async with asyncio.timeout(WATCHING_SECONDS):
            line = await self.process.stdout.readline()
        assert line, "it ended"
        said: dict[str, Any] = json.loads(line)
        return said

    async def ends(self, number: signal.Signals) -> tuple[int, str]:
        self.process.send_signal(number)
        async with asyncio.timeout(WATCHING_SECONDS):
            rest, errors = await self.process.communicate()
        assert rest == b"", "each file was told of once"
        assert self.process.returncode is not None
        return self.process.returncode, errors.decode()


@asynccontextmanager
async def watching(folder: Path, data: Path, *arguments: str) -> AsyncIterator[Watcher]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "hub", "publish", "--watch", str(folder), "--data", str(data), "--json", *arguments,
        cwd=ROOT, env={**os.environ, "LOCKSTEP_HUB_DISK_RESERVE_BYTES": "0"},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        yield Watcher(process)
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def test_what_is_there_and_what_comes_is_published_with_a_hub_and_without_until_a_signal_ends_it(
    tmp_path: Path,
) -> None:
    for name in ("alone", "hub"):
        (tmp_path / name / "new").mkdir(parents=True)
    async with asyncio.TaskGroup() as group:  # both wait for looks that are a second apart
        group.create_task(without_a_hub(tmp_path / "alone"))
        group.create_task(through_a_running_hub(tmp_path / "hub"))


async def without_a_hub(folder: Path) -> None:
    """At first another process has the data."""
    file = make_installer(folder / "new", "deb", size=2_000)
    async with watching(folder / "new", folder / "hub", "--program", "greet") as watcher:
        async with open_rooms(folder):
            refused = await watcher.says()
            assert (refused["file"], refused["error"]["code"]) == (str(file), "in-use")
        (folder / "new" / "notes.txt").write_text("no installer")
        said = [await watcher.says(), await watcher.says()]
        assert {one.get("program", one.get("error", {}).get("code")) for one in said} == {"greet", "bad-file"}
        assert await watcher.ends(signal.SIGINT) == (0, "")


async def through_a_running_hub(folder: Path) -> None:
    """The sidecar of a file comes later."""
    image = folder / "new" / "notes-2.1.AppImage"
    image.write_bytes(b"\x7fELF\x02\x01\x01\0AI\x02" + bytes(1_000))
    async with served(folder) as (hub, _), watching(folder / "new", folder / "hub") as watcher:
        assert "lockstep.toml" in (await watcher.says())["error"]["hint"]
        beside = image.with_name(f"{image.name}.lockstep.toml")
        beside.write_text('program = "notes"\nversion = "2.1"\nos = "linux"\n')
        assert (await watcher.says())["program"] == "notes"
        assert [row.program for row in await hub.catalogue.listing()] == ["notes"]
        assert await watcher.ends(signal.SIGTERM) == (0, "")
