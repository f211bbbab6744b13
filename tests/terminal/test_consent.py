"""Consent: the rules by themselves, the inbox on a real disk, and people who decide while a real hub waits."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path

import pytest
from msgspec import structs

from protocol import limits, messages
from protocol.errors import ConflictError, UnknownNameError, UsageError
from protocol.messages import Decide, InboxResult
from terminal import consent, inbox
from terminal.client import SyncWatch
from terminal.consent import InboxEntry, Preferences
from terminal.simulated import DEFAULT_MIX, SimulatedDevice
from terminal.state import Mark, StateFolder
from tests.harness import TestFleet, devices, ended, make_installer, running_hub, until
from tests.terminal.scripted import thing

OFFER = structs.replace(thing(5_000).offer(), initiator="Phone")
NOW = 1_700_000_000.0
ENTRY = consent.entry_of(OFFER, NOW)
ASK = Preferences(consent="ask")
NIGHT = Preferences(quiet_hours="22:00-06:00")


@pytest.fixture
def folder(tmp_path: Path) -> StateFolder:
    return StateFolder(tmp_path / "state")


def decided(decision: consent.Decision, seconds: float = 0.0, at: float = NOW) -> InboxEntry:
    row = structs.replace(ENTRY.row, seconds=seconds)
    return InboxEntry(row=row, decision=decision, decided_at=at)


def answer(
    preferences: Preferences, entry: InboxEntry | None = None, *, now: float = NOW, hour: float = 12
) -> tuple[str, str, float]:
    said = consent.answer_to(OFFER, preferences, entry, now=now, minute_of_day=hour * 60)
    return (said.state, said.reason, said.seconds) if said else ("taken", "", 0.0)


# --- the rules --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("preferences", "entry", "said"),
    [
        (Preferences(), None, ("taken", "", 0)),
        (Preferences(consent="never"), None, ("declined", "by-policy", 0)),
        (Preferences(consent="never"), decided("accept"), ("declined", "by-policy", 0)),
        (ASK, None, ("asking", "", 0)),
        (ASK, ENTRY, ("asking", "", 0)),
        (ASK, decided("accept"), ("taken", "", 0)),
        (ASK, decided("later", 600), ("postponed", "by-person", 600)),
        (Preferences(consent="never", programs={"hello": "auto"}), None, ("taken", "", 0)),
        (Preferences(programs={"hello": "ask"}), None, ("asking", "", 0)),
        (Preferences(consent="ask", programs={"other": "auto"}), None, ("asking", "", 0)),
    ],
)
def test_an_offer_is_answered_as_its_owner_wants(
    preferences: Preferences, entry: InboxEntry | None, said: tuple[str, str, float]
) -> None:
    assert answer(preferences, entry) == said


@pytest.mark.parametrize(
    ("hour", "entry", "said"),
    [
        (23, None, ("postponed", "quiet-hours", 7 * 3600)),
        (5.5, None, ("postponed", "quiet-hours", 1800)),
        (6, None, ("taken", "", 0)),
        (23, decided("accept"), ("taken", "", 0)),
        (12, decided("later", 600), ("postponed", "by-person", 600)),
    ],
)
def test_nothing_begins_in_quiet_hours_unless_a_person_accepted_it(
    hour: float, entry: InboxEntry | None, said: tuple[str, str, float]
) -> None:
    assert answer(NIGHT, entry, hour=hour) == said


@pytest.mark.parametrize(
    ("clock", "left"),
    [(0, 600), (1, 599), (599.5, 0), (600, 0), (400 * 86_400, 0), (-1, 0), (-3_600, 0), (-400 * 86_400, 0)],
)
def test_what_is_put_off_never_waits_longer_than_was_asked_whatever_the_clock_does(clock: float, left: float) -> None:
    assert decided("later", 600).seconds_left(NOW + clock) == left


@pytest.mark.parametrize(("day", "hours"), [("03-28", 5.5), ("03-29", 4.5), ("10-25", 6.5), ("10-26", 5.5)])
def test_quiet_hours_end_at_their_time_of_the_day_when_summer_time_begins_or_ends(
    monkeypatch: pytest.MonkeyPatch, day: str, hours: float
) -> None:
    monkeypatch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
    time.tzset()
    try:
        now = datetime.fromisoformat(f"2026-{day}T01:00").timestamp()
        said = inbox.until_the_time_of_day(consent.postponed("d-1", 5.5 * 3_600, "quiet-hours"), now)
    finally:
        monkeypatch.undo()
        time.tzset()
    assert said.seconds == hours * 3_600


# --- the inbox on the disk --------------------------------------------------------------------------------------------


def offered(folder: StateFolder, number: int = 1, program: str = "hello") -> str:
    """Offer something; return the state that is said, or "taken"."""
    installer = structs.replace(OFFER.installer, program=program)
    offer = structs.replace(OFFER, delivery=f"d-{number}", installer=installer)
    said = inbox.consider(folder, offer, lambda _kind, _sentence: None)
    return said.state if said else "taken"


def decide(folder: StateFolder, decision: str, seconds: float = 0.0, delivery: str = "d-1") -> messages.State:
    request = Decide(id=1, delivery=delivery, decision=decision, seconds=seconds)  # type: ignore[arg-type]
    said = inbox.decide(folder, request, inbox.nothing_is_under_way)
    assert said is not None
    return said


def test_what_asks_is_in_the_inbox_until_it_is_accepted_and_then_taken_each_time(folder: StateFolder) -> None:
    folder.save_preferences(ASK)
    assert offered(folder) == "asking"
    [row] = inbox.rows(StateFolder(folder.path))
    assert (row.delivery, row.program, row.initiator, row.seconds) == ("d-1", "hello", "Phone", 0)
    assert decide(folder, "accept") == consent.accepted("d-1")
    assert inbox.rows(folder) == ()
    assert [offered(folder), offered(folder)] == ["taken", "taken"], "the first try may break off"
    inbox.forget(folder, "d-1")
    assert offered(folder) == "asking"


def test_what_is_declined_is_a_report_that_is_kept_and_waits_no_longer(folder: StateFolder) -> None:
    folder.save_preferences(ASK)
    offered(folder)
    report = decide(folder, "decline")
    assert folder.reports() == (report,)
    assert (report.state, report.reason) == ("declined", "by-person")
    assert folder.inbox() == ()


def test_what_is_put_off_stays_in_the_inbox_and_can_be_accepted_before_its_time(folder: StateFolder) -> None:
    folder.save_preferences(ASK)
    offered(folder)
    said = decide(folder, "later", 7_200)
    assert (said.state, said.seconds) == ("postponed", 7_200)
    assert offered(folder) == "postponed"
    [row] = inbox.rows(folder)
    assert 7_000 < row.seconds <= 7_200
    decide(folder, "accept")
    assert inbox.decided_unheard(folder.inbox()) == (consent.accepted("d-1"),), "the hub would wait two hours"
    assert offered(folder) == "taken"


def test_what_is_put_off_for_less_while_the_hub_is_away_is_said_after_the_login(folder: StateFolder) -> None:
    folder.save_preferences(ASK)
    offered(folder)
    decide(folder, "later", 7_200)
    decide(folder, "later", 600)
    [said] = inbox.decided_unheard(folder.inbox())
    assert said.state == "postponed"
    assert 500 < said.seconds <= 600


def test_a_calendar_that_is_stepped_takes_nothing_out_of_the_inbox_that_a_person_can_see(folder: StateFolder) -> None:
    folder.save_preferences(ASK)
    offered(folder)
    [entry] = folder.inbox()
    at_first = structs.replace(entry, row=structs.replace(entry.row, since=0.0))  # a clock without a battery
    folder.save_inbox((at_first,))
    offered(folder, 2, "video")
    assert [row.delivery for row in inbox.rows(folder)] == ["d-1", "d-2"]
    folder.save_inbox((structs.replace(at_first, decision="accept"),))
    offered(folder, 2, "video")
    assert [entry.row.delivery for entry in folder.inbox()] == ["d-2"]


def test_what_was_put_off_asks_again_when_its_time_is_over(folder: StateFolder) -> None:
    folder.save_preferences(ASK)
    offered(folder)
    decide(folder, "later", 600)
    [entry] = folder.inbox()
    folder.save_inbox((structs.replace(entry, decided_at=time.time() - 601),))
    assert offered(folder) == "asking"
    assert [row.seconds for row in inbox.rows(folder)] == [0]


@pytest.mark.parametrize("wish", ["auto", "never"])
def test_what_the_preferences_decide_waits_for_nobody_any_more(folder: StateFolder, wish: consent.Wish) -> None:
    folder.save_preferences(ASK)
    offered(folder)
    folder.save_preferences(Preferences(consent=wish))
    assert offered(folder) == {"auto": "taken", "never": "declined"}[wish]
    assert folder.inbox() == ()


@pytest.mark.parametrize("is_told", [True, False])
def test_what_was_installed_without_a_connection_cannot_be_declined_any_more(
    folder: StateFolder, is_told: bool
) -> None:
    folder.save_preferences(ASK)
    offered(folder)
    decide(folder, "accept")
    done = messages.State(delivery="d-1", state="done", version="1.0")
    if is_told:
        folder.add_report(done)
    else:
        folder.put_mark(Mark(offer=OFFER, starts=1))
    for decision in ("decline", "later"):
        with pytest.raises(ConflictError, match=r"It is too late: hello 1\.0 is"):
            decide(folder, decision)
    assert folder.reports() == ((done,) if is_told else ()), "what the hub is to hear is not overwritten"
    again = Decide(id=1, delivery="d-1", decision="accept")
    assert inbox.decide(folder, again, inbox.nothing_is_under_way) is None


def test_a_delivery_nobody_knows_is_refused_with_those_that_are_near(folder: StateFolder) -> None:
    folder.save_preferences(ASK)
    offered(folder)
    with pytest.raises(UnknownNameError) as caught:
        decide(folder, "accept", delivery="d-2")
    assert (caught.value.code, caught.value.near) == ("unknown-delivery", ("d-1",))


def test_a_newer_delivery_of_a_program_takes_the_place_of_an_older_one(folder: StateFolder) -> None:
    folder.save_preferences(ASK)
    for number in (1, 2):
        offered(folder, number)
    assert [row.delivery for row in inbox.rows(folder)] == ["d-2"]


def test_the_inbox_is_bounded_and_the_oldest_goes(folder: StateFolder) -> None:
    folder.save_preferences(ASK)
    entries = [structs.replace(ENTRY.row, delivery=f"o-{n}", program=f"p-{n}", since=time.time()) for n in range(256)]
    folder.save_inbox(tuple(InboxEntry(row=row) for row in entries))
    offered(folder)
    kept = [row.delivery for row in inbox.rows(folder)]
    assert (len(kept), kept[0], kept[-1]) == (limits.INBOX_ROWS, "o-1", "d-1")


def test_quiet_hours_that_are_none_are_named_not_ignored(folder: StateFolder) -> None:
    folder.save_preferences(Preferences(quiet_hours="at night"))
    with pytest.raises(UsageError, match="at night"):
        offered(folder)


# --- with a real hub --------------------------------------------------------------------------------------------------


@asynccontextmanager
async def two_devices(tmp_path: Path) -> AsyncIterator[tuple[TestFleet, SimulatedDevice]]:
    """A hub with one program, and two PCs: one asks for syncs, the other is the target."""
    async with running_hub(tmp_path) as hub:
        await hub.add_account("alice")
        await hub.publish(make_installer(tmp_path, "deb", version="1.0", size=300_000), program="hello")
        made = [(f"PC {number}", DEFAULT_MIX[-1].device) for number in range(2)]
        async with devices(hub, "alice", made) as fleet:
            yield fleet, fleet["PC 1"]


async def rows_of(device: SimulatedDevice) -> tuple[messages.InboxRow, ...]:
    result = await device.answer(messages.Inbox(id=1))
    assert isinstance(result, InboxResult)
    return result.rows


async def asked(fleet: TestFleet, device: SimulatedDevice) -> tuple[SyncWatch, str]:
    """Sync to a device that asks; return the sync and the delivery that waits for its person."""
    device.folder.save_preferences(ASK)
    watch = await fleet.initiator.sync("hello", targets=(device.terminal,))
    await until(lambda: len(device.folder.inbox()) == 1)
    [row] = await rows_of(device)
    assert row.initiator == "PC 0"
    return watch, row.delivery


async def state_of(fleet: TestFleet, watch: SyncWatch) -> tuple[str, str]:
    [row] = await fleet.initiator.sync_result(watch.sync)
    return row.state, row.reason


async def test_what_a_person_accepts_is_installed_and_waits_no_longer(tmp_path: Path) -> None:
    async with two_devices(tmp_path) as (fleet, device):
        watch, delivery = await asked(fleet, device)
        assert (await state_of(fleet, watch))[0] == "asking"
        await device.answer(Decide(id=1, delivery=delivery, decision="accept"))
        assert await ended(watch) == "done"
        await until(lambda: device.folder.inbox() == ())

        with pytest.raises(UnknownNameError):
            await device.answer(Decide(id=1, delivery=delivery, decision="decline"))


async def test_a_declined_delivery_ends_and_says_by_whom(tmp_path: Path) -> None:
    async with two_devices(tmp_path) as (fleet, device):
        watch, delivery = await asked(fleet, device)
        await device.answer(Decide(id=1, delivery=delivery, decision="decline"))
        assert await ended(watch) == "failed"
        assert await state_of(fleet, watch) == ("declined", "by-person")
        assert device.folder.inventory() == ()


async def test_what_was_decided_without_a_connection_is_acted_on_after_the_next_login(tmp_path: Path) -> None:
    async with two_devices(tmp_path) as (fleet, device):
        watch, delivery = await asked(fleet, device)
        await device.answer(Decide(id=1, delivery=delivery, decision="later", seconds=3_600))
        assert await state_of(fleet, watch) == ("postponed", "by-person")
        await fleet.go_offline("PC 1")
        await device.answer(Decide(id=1, delivery=delivery, decision="accept"))
        await fleet.go_online("PC 1")
        assert await ended(watch) == "done"


async def test_what_is_put_off_asks_again_when_its_time_is_over_at_the_hub(tmp_path: Path) -> None:
    async with two_devices(tmp_path) as (fleet, device):
        watch, delivery = await asked(fleet, device)
        await device.answer(Decide(id=1, delivery=delivery, decision="later", seconds=1.5))
        await until(lambda: [entry.decision for entry in device.folder.inbox()] == [""])
        assert (await state_of(fleet, watch))[0] == "asking"


async def test_a_delivery_that_is_cancelled_while_it_asks_leaves_the_inbox(tmp_path: Path) -> None:
    async with two_devices(tmp_path) as (fleet, device):
        watch, _ = await asked(fleet, device)
        await fleet.initiator.cancel(watch.sync)
        await until(lambda: device.folder.inbox() == ())


@pytest.mark.parametrize("decision", ["", "accept", "later"])
async def test_what_was_cancelled_while_the_device_was_away_leaves_its_inbox_when_it_is_back(
    decision: consent.Decision, tmp_path: Path
) -> None:
    async with two_devices(tmp_path) as (fleet, device):
        watch, delivery = await asked(fleet, device)
        await fleet.go_offline("PC 1")
        if decision:
            request = Decide(id=1, delivery=delivery, decision=decision, seconds=3_600.0)
            await inbox.answer_alone(device.folder, request)
        await fleet.initiator.cancel(watch.sync)
        await fleet.go_online("PC 1")
        await until(lambda: device.folder.inbox() == ())
        assert fleet.digest("PC 1", "hello") == ""


async def test_accepting_what_was_cancelled_this_moment_says_that_it_is_not_wanted_any_more(tmp_path: Path) -> None:
    async with two_devices(tmp_path) as (fleet, device):
        watch, delivery = await asked(fleet, device)
        entries = device.folder.inbox()
        await fleet.initiator.cancel(watch.sync)
        await until(lambda: device.folder.inbox() == ())
        device.folder.save_inbox(entries)  # as if the withdrawal were on its way still
        with pytest.raises(ConflictError, match="not wanted any more") as caught:
            await device.answer(Decide(id=1, delivery=delivery, decision="accept"))
        assert caught.value.code == "withdrawn"
        assert device.folder.inbox() == ()


async def test_a_device_in_its_quiet_hours_takes_what_a_person_accepts(tmp_path: Path) -> None:
    async with two_devices(tmp_path) as (fleet, device):
        # Two halves of the day: one of them is quiet now, and for longer than this test takes.
        begins = (time.localtime().tm_hour - 1) % 24
        device.folder.save_preferences(Preferences(quiet_hours=f"{begins:02}:00-{(begins + 12) % 24:02}:00"))
        watch = await fleet.initiator.sync("hello", targets=(device.terminal,))
        await until(lambda: len(device.folder.inbox()) == 1)
        [row] = await rows_of(device)
        assert row.seconds > 3_600
        await device.answer(Decide(id=1, delivery=row.delivery, decision="accept"))
        assert await ended(watch) == "done"


async def test_undo_brings_the_version_before_back_without_sending_it_again(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as hub:
        await hub.add_account("alice")
        made = [(f"PC {number}", DEFAULT_MIX[-1].device) for number in range(2)]
        async with devices(hub, "alice", made) as fleet:
            syncs = []
            for version in ("1.0", "2.0"):
                await hub.publish(make_installer(tmp_path, "deb", version=version, size=300_000), program="hello")
                watch = await fleet.initiator.sync("hello", targets=(fleet["PC 1"].terminal,))
                assert await ended(watch) == "done"
                syncs.append(watch.sync)
            undo = await fleet.initiator.undo(syncs[-1])
            assert await ended(undo) == "done"
            assert [one.version for one in fleet["PC 1"].folder.inventory()] == ["1.0"]
            [row] = await fleet.initiator.sync_result(undo.sync)
            assert (row.state, row.version, row.sent) == ("done", "1.0", 0)
