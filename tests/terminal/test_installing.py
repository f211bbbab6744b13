"""Installing: each outcome is kept whatever dies around it, nothing runs twice, nothing blocks what it need not."""

import asyncio
import errno
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from protocol import messages
from protocol.errors import ConflictError, RefusedError, UnavailableError
from terminal import inbox, session
from terminal.consent import Preferences
from terminal.downloads import Download, tidy
from terminal.installing import STARTS, Installations
from terminal.session import InstallEnded
from terminal.state import Mark, StateFolder
from tests.terminal.scripted import NoteTaker, thing

THING = thing(5_000)
OFFER = THING.offer()
HELLO = messages.InstalledProgram(
    program="hello", package_name="hello", version="1.0", installer_kind="deb", digest=THING.digest
)
WRITES_ON_ITS_OWN = """
import asyncio, os, sys
from terminal.installers.programs import run_program
begun, ended = sys.argv[1:]
script = f"touch {begun}; sleep 0.5; echo one; echo two >&2; echo three; touch {ended}"
async def main():
    work = asyncio.create_task(run_program(["sh", "-c", script], seconds=60))
    while not os.path.exists(begun):
        await asyncio.sleep(0.01)
    os._exit(0)
asyncio.run(main())
"""


@pytest.fixture
def folder(tmp_path: Path) -> StateFolder:
    folder = StateFolder(tmp_path / "state")
    (folder.installed / THING.digest.hex()).write_bytes(THING.content)
    return folder


class Desk:
    """Installations of one folder, and what a connection would have heard of them."""

    def __init__(self, folder: StateFolder, runner: NoteTaker | None = None) -> None:
        self.runner = runner or NoteTaker()
        self.news: list[InstallEnded] = []
        self.installations = Installations(folder, {"deb": self.runner}, lambda _kind, _sentence: None)
        self.installations.ended = self.news.append

    async def settle(self) -> list[InstallEnded]:
        self.installations.settle()
        while self.installations._settling:
            await asyncio.wait(self.installations._settling)
        return self.news

    async def install(self, offer: messages.Offer = OFFER) -> list[InstallEnded]:
        self.installations.install(offer)
        assert await self.installations.wait(10)
        return self.news


# --- what a crash leaves ----------------------------------------------------------------------------------------------


async def test_the_mark_is_on_the_disk_before_the_runner_starts_and_gone_after_the_report(folder: StateFolder) -> None:
    class Looks(NoteTaker):
        async def install(self, task: Any) -> Any:
            seen.append((folder.marks(), folder.reports()))
            return await super().install(task)

    seen: list[Any] = []
    await Desk(folder, Looks(version="0.9")).install()
    assert seen == [((Mark(offer=OFFER, starts=1, before="0.9"),), ())]
    assert (folder.marks(), [report.state for report in folder.reports()]) == ((), ["done"])


@pytest.mark.parametrize(
    ("before", "there", "said"),
    [
        (None, "1.0", ("done", "")),
        ("0.9", "1.0", ("done", "")),
        ("1.0", "1.0", ("failed", "outcome-unknown")),
        ("1.0", None, None),
        ("0.9", "0.9", None),
        (None, None, None),
    ],
)
async def test_the_system_says_how_an_interrupted_installation_ended_if_it_can(
    folder: StateFolder, before: str | None, there: str | None, said: tuple[str, str] | None
) -> None:
    folder.put_mark(Mark(offer=OFFER, starts=1, before=before))
    desk = Desk(folder, NoteTaker(version=there))
    [ended] = await desk.settle()
    assert (ended.report and (ended.report.state, ended.report.reason)) == said
    assert folder.reports() == ((ended.report,) if ended.report else ())
    assert [mark.running for mark in folder.marks()] == ([] if said else [False])
    assert bool(folder.inventory()) == (said == ("done", ""))
    assert desk.installations.offers == ()
    assert desk.runner.tasks == [], "asking is not installing"


async def test_what_was_interrupted_each_time_is_given_up_after_three_starts(folder: StateFolder) -> None:
    desk = Desk(folder)
    for start in range(1, STARTS):
        folder.put_mark(Mark(offer=OFFER, starts=start))
        [ended] = await Desk(folder).settle()
        assert ended.report is None
        assert [(mark.starts, mark.running) for mark in folder.marks()] == [(start, False)]
    folder.put_mark(Mark(offer=OFFER, starts=STARTS))
    [ended] = await desk.settle()
    assert ended.report is not None
    assert (ended.report.state, ended.report.reason) == ("failed", "install-interrupted")
    assert "3 times" in ended.report.detail
    assert folder.marks() == ()


async def test_the_starts_of_one_delivery_are_counted_over_its_offers(folder: StateFolder) -> None:
    class Looks(NoteTaker):
        async def install(self, task: Any) -> Any:
            starts.extend(mark.starts for mark in folder.marks())
            return await super().install(task)

    starts: list[int] = []
    folder.put_mark(Mark(offer=OFFER, starts=2, running=False))
    await Desk(folder, Looks()).install()
    assert starts == [3]
    assert folder.marks() == ()


async def test_what_runs_for_all_the_disk_knows_is_asked_for_and_not_run_again(folder: StateFolder) -> None:
    """A full disk kept no report, and the hub offered again before that was settled."""
    folder.put_mark(Mark(offer=OFFER, starts=1, before="0.9"))
    desk = Desk(folder, NoteTaker(version="1.0"))
    [ended] = await desk.install()
    assert ended.report is not None
    assert ended.report.state == "done"
    assert desk.runner.tasks == []


async def test_what_the_inventory_has_is_done_although_nobody_could_tell_by_its_version(folder: StateFolder) -> None:
    folder.put_mark(Mark(offer=OFFER, starts=1, before="1.0"))
    folder.record_installed(HELLO)  # and then the power went
    [ended] = await Desk(folder, NoteTaker(version="1.0")).settle()
    assert ended.report == messages.State(delivery="d-1", state="done", version="1.0")


async def test_nothing_is_settled_twice_at_once(folder: StateFolder) -> None:
    class Slow(NoteTaker):
        async def installed_version(self, package_name: str) -> str | None:
            asked.append(package_name)
            await goes_on.wait()
            return "1.0"

    asked: list[str] = []
    goes_on = asyncio.Event()
    folder.put_mark(Mark(offer=OFFER, starts=1))
    desk = Desk(folder, Slow())
    desk.installations.settle()
    await asyncio.sleep(0)
    desk.installations.settle()
    await asyncio.sleep(0)
    assert desk.installations.offers == (OFFER,), "the hub is told that it may run still"
    goes_on.set()
    await desk.settle()
    assert asked == ["hello"]


async def test_a_disk_that_cannot_keep_the_mark_starts_no_runner(
    folder: StateFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    desk = Desk(folder)
    failed: list[Any] = []
    desk.installations.fail = failed.append
    monkeypatch.setattr("os.fsync", fails)
    await desk.install()
    assert desk.runner.tasks == []
    [error] = failed
    assert isinstance(error, RefusedError)
    assert error.code == "disk-failed"
    assert desk.installations.take_error() is error
    assert desk.installations.offers == ()


async def test_a_full_disk_that_cannot_keep_the_mark_is_said_to_the_hub(
    folder: StateFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_path: Path, _data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    desk = Desk(folder)
    monkeypatch.setattr("terminal.state._replace", full)
    [ended] = await desk.install()
    assert ended.report is not None
    assert (ended.report.reason, desk.runner.tasks) == ("no-space", [])


async def test_what_is_about_to_be_installed_cannot_be_declined_without_a_connection(folder: StateFolder) -> None:
    class Waits(NoteTaker):
        async def installed_version(self, package_name: str) -> str | None:
            await goes_on.wait()  # for another installation: there is no mark yet
            return None

    goes_on = asyncio.Event()
    desk = Desk(folder, Waits())
    folder.save_preferences(Preferences(consent="ask"))
    assert inbox.consider(folder, OFFER, lambda _kind, _sentence: None)
    desk.installations.install(OFFER)
    await asyncio.sleep(0)
    assert folder.marks() == ()
    decline = messages.Decide(id=1, delivery="d-1", decision="decline")
    with pytest.raises(ConflictError, match="being received"):
        await inbox.answer_alone(folder, decline, desk.installations.is_under_way)
    goes_on.set()
    assert await desk.installations.wait(10)


async def test_a_tool_that_is_busy_for_too_long_fails_only_this_try(folder: StateFolder) -> None:
    class Busy(NoteTaker):
        async def installed_version(self, package_name: str) -> str | None:
            raise UnavailableError("Another installation still held the lock.", code="runner-busy")

    desk = Desk(folder, Busy())
    [ended] = await desk.install()
    assert ended.report is not None
    assert ended.report.reason == "runner-busy"
    assert desk.runner.tasks == []
    assert folder.marks() == ()


async def test_a_runner_that_raises_what_nobody_foresaw_ends_as_failed_with_the_reason(folder: StateFolder) -> None:
    """It raised before the mark: no start was counted, and the hub offered the same again without end."""

    class Raises(NoteTaker):
        async def install(self, task: Any) -> Any:
            raise KeyError("exe")

        async def installed_version(self, package_name: str) -> str | None:
            raise KeyError("exe")

    desk = Desk(folder, Raises())
    failed: list[Any] = []
    desk.installations.fail = failed.append
    [ended] = await desk.install()
    assert ended.report is not None
    assert (ended.report.state, ended.report.reason) == ("failed", "runner-failed")
    assert ended.report.detail == "The runner for deb broke off: KeyError: 'exe'"
    assert (failed, desk.installations.take_error(), folder.marks()) == ([], None, ())
    folder.put_mark(Mark(offer=OFFER, starts=1))
    [ended] = await Desk(folder, Raises()).settle()
    assert ended.report is not None
    assert (ended.report.reason, folder.marks()) == ("outcome-unknown", ())


# --- beside each other ------------------------------------------------------------------------------------------------


async def test_an_installer_that_hangs_holds_up_no_other(folder: StateFolder) -> None:
    class Hangs(NoteTaker):
        async def install(self, task: Any) -> Any:
            await asyncio.Event().wait()

    other = structs.replace(OFFER, delivery="d-2", installer=structs.replace(OFFER.installer, installer_kind="wheel"))
    news: list[InstallEnded] = []
    runners = {"deb": Hangs(), "wheel": NoteTaker()}
    installations = Installations(folder, runners, lambda _kind, _sentence: None)  # type: ignore[arg-type]
    ended = asyncio.Event()

    def hears(end: InstallEnded) -> None:
        news.append(end)
        ended.set()

    installations.ended = hears
    installations.install(OFFER)
    installations.install(other)
    await asyncio.wait_for(ended.wait(), 5)
    assert [end.delivery for end in news] == ["d-2"]
    assert installations.offers == (OFFER,)
    await installations.cancel()
    assert [mark.offer for mark in folder.marks()] == [OFFER]


async def test_what_came_whole_and_was_not_begun_is_not_tidied_away_before_it_is_offered_again(
    folder: StateFolder,
) -> None:
    """The connection was lost while it waited for the permission, and the report of another is noted first."""
    other = thing(5_000, seed=2)
    (folder.installed / other.digest.hex()).write_bytes(other.content)
    folder.record_installed(HELLO)
    Desk(folder).installations.settle()
    tidy(folder, (HELLO.digest.hex(),))
    assert [file.name for file in folder.installed.iterdir()] == [HELLO.digest.hex()]
    again = Download(other.offer("d-2"), folder)
    again.add_page(other.page())
    again.prepare()
    assert again.complete


async def test_the_file_of_what_installs_is_not_tidied_away(folder: StateFolder) -> None:
    tidy(folder, (), {THING.digest.hex()})
    assert (folder.installed / THING.digest.hex()).exists()
    tidy(folder, ())
    assert list(folder.installed.iterdir()) == []


# --- a child that is left alone ---------------------------------------------------------------------------------------


def test_an_installer_whose_terminal_has_gone_can_go_on_writing_to_its_outputs(tmp_path: Path) -> None:
    mark = tmp_path / "ended"
    subprocess.run(
        [sys.executable, "-c", WRITES_ON_ITS_OWN, str(tmp_path / "begun"), str(mark)], check=True, timeout=30
    )
    give_up_at = time.monotonic() + 10
    while not mark.exists() and time.monotonic() < give_up_at:
        time.sleep(0.02)
    assert mark.exists(), "a closed pipe would have killed it at its first word"


def test_a_report_is_cut_to_what_a_message_can_hold() -> None:
    report = session.failure(OFFER, "r" * 100, "d" * 5_000)
    assert (len(report.reason), len(report.detail)) == (64, 1_024)
