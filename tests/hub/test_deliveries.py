"""What survives at the hub, against a real database: deadlines, other tries, consent, joining, superseding, undo."""

import asyncio
import shutil
import sqlite3
from pathlib import Path

import pytest

from hub.app import Hub
from hub.reaper import Reaper
from hub.records import Owed, Published, Terminal
from hub.store import Store
from hub.syncs import Accepted
from protocol import life
from protocol.errors import RefusedError, UnknownNameError, UsageError
from protocol.life import State
from protocol.messages import Plan, Sync, TargetRow, Undo
from protocol.messages import State as Report
from tests.hub.rooms import add_account, add_terminal, open_rooms, publish, say_inventory

DAY = life.DAY


async def ask(
    hub: Hub, terminal: Terminal, key: str, *targets: Terminal, program: str = "hello", version: str = ""
) -> Accepted:
    names = tuple(target.terminal_id for target in targets or (terminal,))
    return await hub.syncs.accept(
        terminal, Sync(id=1, request_key=key, program=program, targets=names, version=version)
    )


async def undo(hub: Hub, terminal: Terminal, sync: str, *targets: Terminal, key: str = "undo") -> Accepted:
    names = tuple(target.terminal_id for target in targets)
    return await hub.syncs.undo(terminal, Undo(id=1, request_key=key, sync=sync, targets=names))


async def claim(hub: Hub, terminal: Terminal) -> Owed | None:
    return await hub.deliveries.claim(terminal.terminal_id, terminal.connection)


async def claimed(hub: Hub, terminal: Terminal) -> Owed:
    owed = await claim(hub, terminal)
    assert owed is not None
    return owed


async def say(hub: Hub, terminal: Terminal, delivery: str, *states: str, **fields: float | str) -> str:
    answer = ""
    for state in states:
        said = Report(delivery=delivery, state=state, **fields)  # type: ignore[arg-type]
        answer = await hub.deliveries.report(terminal.terminal_id, terminal.connection, said)
    return answer


async def row_of(hub: Hub, terminal: Terminal, accepted: Accepted) -> TargetRow:
    [row] = await hub.syncs.targets(terminal, accepted.sync)
    return row


async def install(hub: Hub, terminal: Terminal, published: Published, key: str) -> Accepted:
    """Bring one installer to its end on the terminal that asks for it, its inventory included."""
    accepted = await ask(hub, terminal, key, version=published.version)
    owed = await claimed(hub, terminal)
    await say(hub, terminal, owed.delivery, "downloading", "verifying", "installing", "done")
    await say_inventory(hub, terminal, published, first=False)
    return accepted


async def pass_time(hub: Hub, seconds: float) -> None:
    hub.clock.start(hub.clock.now() + seconds)
    await Reaper(hub.deliveries, hub.pokes, hub.presence).look()


# --- deadlines ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("states", "seconds", "ends_as", "reason"),
    [
        ((), 30 * DAY, "expired", "too-old"),
        (("asking",), 7 * DAY, "expired", "nobody-answered"),
        (("verifying", "installing"), 2 * DAY, "failed", "outcome-unknown"),
        (("downloading",), 30 * DAY, "expired", "too-old"),
    ],
)
async def test_a_delivery_that_does_not_go_on_ends_at_its_deadline_and_not_before(
    states: tuple[str, ...], seconds: float, ends_as: str, reason: str, tmp_path: Path
) -> None:
    async with open_rooms(tmp_path) as hub:
        asks = await add_terminal(hub, await add_account(hub))
        await publish(hub, tmp_path)
        accepted = await ask(hub, asks, "k")
        if states:
            await say(hub, asks, (await claimed(hub, asks)).delivery, *states)
        await pass_time(hub, seconds - 60)
        assert (await row_of(hub, asks, accepted)).state == (states[-1] if states else "queued")
        await pass_time(hub, 61)
        row = await row_of(hub, asks, accepted)
        assert (row.state, row.reason) == (ends_as, reason)
        assert row.detail
        assert (await hub.syncs.changes(asks.terminal_id, 0)).ended


async def test_a_delivery_as_a_whole_has_its_days_however_often_it_is_tried(tmp_path: Path) -> None:
    async with open_rooms(tmp_path, delivery_seconds=1_000) as hub:
        asks = await add_terminal(hub, await add_account(hub))
        await publish(hub, tmp_path)
        accepted = await ask(hub, asks, "k")
        await pass_time(hub, 900)
        await say(hub, asks, (await claimed(hub, asks)).delivery, "postponed", seconds=800.0)
        await pass_time(hub, 99)
        assert (await row_of(hub, asks, accepted)).state == "postponed"
        await pass_time(hub, 2)
        assert (await row_of(hub, asks, accepted)).state == "expired"


@pytest.mark.parametrize("said", ["", "postponed"])
async def test_a_hub_that_gives_deliveries_longer_gives_it_to_what_was_begun_too(said: str, tmp_path: Path) -> None:
    async with open_rooms(tmp_path, delivery_seconds=90 * int(DAY)) as hub:
        asks = await add_terminal(hub, await add_account(hub))
        await publish(hub, tmp_path)
        accepted = await ask(hub, asks, "k")
        owed = await claimed(hub, asks)
        if said:
            await say(hub, asks, owed.delivery, said, seconds=30 * DAY)
        await hub.deliveries.terminal_left(asks.terminal_id, asks.connection)
        await pass_time(hub, 31 * DAY)
        assert (await row_of(hub, asks, accepted)).state == "queued"
        await pass_time(hub, 59 * DAY)
        assert (await row_of(hub, asks, accepted)).state == "expired"


async def test_time_the_hub_was_down_does_not_count_and_what_it_ran_does(tmp_path: Path) -> None:
    async with open_rooms(tmp_path) as hub:
        asks = await add_terminal(hub, await add_account(hub))
        await publish(hub, tmp_path)
        await ask(hub, asks, "k")
        hub.clock.start(5_000.0)
        await hub.deliveries.keep_clock()
    async with open_rooms(tmp_path) as hub:
        assert 5_000.0 <= hub.clock.now() < 5_060.0


async def test_hub_time_never_goes_back_on_disk(tmp_path: Path) -> None:
    async with open_rooms(tmp_path) as hub:
        hub.clock.start(5_000.0)
        await hub.deliveries.keep_clock()
        hub.clock.start(10.0)
        await hub.deliveries.keep_clock()
    async with open_rooms(tmp_path) as hub:
        assert hub.clock.now() >= 5_000.0


async def test_an_installation_that_has_begun_outlives_its_delivery(tmp_path: Path) -> None:
    async with open_rooms(tmp_path, delivery_seconds=1_000) as hub:
        asks = await add_terminal(hub, await add_account(hub))
        await publish(hub, tmp_path)
        accepted = await ask(hub, asks, "k")
        await pass_time(hub, 990)
        await say(hub, asks, (await claimed(hub, asks)).delivery, "verifying", "installing")
        await pass_time(hub, 2 * DAY - 60)
        assert (await row_of(hub, asks, accepted)).state == "installing"


async def test_however_much_is_overdue_at_once_one_look_ends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hub.deliveries.ROWS_AT_ONCE", 2)
    async with open_rooms(tmp_path) as hub:
        asks = await add_terminal(hub, await add_account(hub))
        syncs = []
        for program in ("hello", "world", "alpha", "zulu", "other"):
            await publish(hub, tmp_path, program=program)
            syncs.append(await ask(hub, asks, program, program=program))
        await pass_time(hub, 30 * DAY + 1)
        assert {(await row_of(hub, asks, sync)).state for sync in syncs} == {"expired"}


async def test_whoever_a_change_concerns_is_poked(tmp_path: Path) -> None:
    async with open_rooms(tmp_path) as hub:
        account = await add_account(hub)
        asks, target = await add_terminal(hub, account, "Asks"), await add_terminal(hub, account, "Target")
        await publish(hub, tmp_path)
        both = {("owed", target.terminal_id), ("asked", asks.terminal_id)}
        first = await ask(hub, asks, "1", target)
        assert await hub.pokes.take() == both
        delivery = (await claimed(hub, target)).delivery
        assert await hub.pokes.take() == {("asked", asks.terminal_id)}
        await ask(hub, asks, "2", target)
        await hub.pokes.take()
        await hub.syncs.cancel(asks, first.sync)  # the second leads now, and is to be claimed
        assert await hub.pokes.take() == both
        again = (await claimed(hub, target)).delivery
        assert again != delivery
        await say(hub, target, again, "postponed", seconds=60.0)
        await hub.pokes.take()
        await pass_time(hub, 61)
        assert await hub.pokes.take() == both
        await pass_time(hub, 30 * DAY)
        assert await hub.pokes.take() == both


async def test_when_quiet_hours_end_everybody_who_is_there_is_looked_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_rooms(tmp_path) as hub:
        quiet = [60.0]
        monkeypatch.setattr(hub.deliveries, "quiet_seconds", lambda: quiet[0])
        monkeypatch.setattr(hub.presence, "receiving", lambda: frozenset({"t-1", "t-2"}))
        reaper = Reaper(hub.deliveries, hub.pokes, hub.presence)
        await reaper.look()
        quiet[0] = 0.0
        await reaper.look()
        assert await hub.pokes.take() == {("owed", "t-1"), ("owed", "t-2")}
        hub.pokes.poke("asked", "t-3")
        await reaper.look()
        assert await hub.pokes.take() == {("asked", "t-3")}


async def test_a_look_that_breaks_is_not_the_reapers_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_rooms(tmp_path) as hub:
        looks: list[bool] = []
        goes_on = asyncio.Event()

        async def reap() -> bool:
            looks.append(True)
            if len(looks) == 1:
                raise KeyError("a row nobody expected")
            goes_on.set()
            return False

        monkeypatch.setattr(hub.deliveries, "reap", reap)
        monkeypatch.setattr("hub.reaper.LOOK_EVERY_SECONDS", 0.01)
        async with Reaper(hub.deliveries, hub.pokes, hub.presence).running(), asyncio.timeout(5):
            await goes_on.wait()
        assert "internal error of the reaper" in caplog.text


# --- another try --------------------------------------------------------------------------------------------------


async def test_a_cause_that_may_pass_is_tried_again_later_each_time_and_not_for_ever(tmp_path: Path) -> None:
    async with open_rooms(tmp_path) as hub:
        asks = await add_terminal(hub, await add_account(hub))
        await publish(hub, tmp_path)
        accepted = await ask(hub, asks, "k")
        for attempt, seconds in enumerate(life.RETRY_SECONDS, start=1):
            owed = await claimed(hub, asks)
            assert owed.attempt == attempt
            said = await say(hub, asks, owed.delivery, "failed", reason="no-space", detail="Full.", attempt=attempt)
            assert said == "noted"
            row = await row_of(hub, asks, accepted)
            assert (row.state, row.reason) == ("queued", "no-space")
            assert f"Try {attempt + 1} of 5" in row.detail
            await pass_time(hub, seconds - 5)
            assert await claim(hub, asks) is None
            await pass_time(hub, 6)
        owed = await claimed(hub, asks)
        await say(hub, asks, owed.delivery, "failed", reason="no-space", detail="Full.", attempt=owed.attempt)
        row = await row_of(hub, asks, accepted)
        assert (row.state, row.reason, row.detail) == ("failed", "no-space", "Full.")


async def test_a_cause_that_stays_ends_the_delivery_at_once(tmp_path: Path) -> None:
    async with open_rooms(tmp_path) as hub:
        asks = await add_terminal(hub, await add_account(hub))
        await publish(hub, tmp_path)
        accepted = await ask(hub, asks, "k")
        await say(hub, asks, (await claimed(hub, asks)).delivery, "failed", reason="maintainer-scripts")
        assert (await row_of(hub, asks, accepted)).state == "failed"


async def test_a_report_of_a_failure_that_comes_twice_counts_once(tmp_path: Path) -> None:
    async with open_rooms(tmp_path) as hub:
        asks = await add_terminal(hub, await add_account(hub))
        await publish(hub, tmp_path)
        accepted = await ask(hub, asks, "k")
        delivery = (await claimed(hub, asks)).delivery
        for answer in ("noted", "refused"):
            assert await say(hub, asks, delivery, "failed", reason="no-space", attempt=1) == answer
        assert "Try 2 of 5" in (await row_of(hub, asks, accepted)).detail


async def test_a_reason_to_wait_outlasts_a_reconnect(tmp_path: Path) -> None:
    async with open_rooms(tmp_path) as hub:
        asks = await add_terminal(hub, await add_account(hub))
        await publish(hub, tmp_path)
        accepted = await ask(hub, asks, "k")
        await say(hub, asks, (await claimed(hub, asks)).delivery, "failed", reason="no-space")
        await hub.deliveries.terminal_left(asks.terminal_id, asks.connection)
        await say_inventory(hub, asks)
        assert (await row_of(hub, asks, accepted)).reason == "no-space"
        assert await claim(hub, asks) is None


# --- installing ---------------------------------------------------------------------------------------------------


async def test_nothing_is_installed_once_it_is_cancelled_and_nothing_is_cancelled_once_it_installs(
    tmp_path: Path,
) -> None:
    async with open_rooms(tmp_path) as hub:
        asks = await add_terminal(hub, await add_account(hub))
        await publish(hub, tmp_path)
        for number, (first, second) in enumerate((("cancel", "install"), ("install", "cancel"))):
            accepted = await ask(hub, asks, str(number))
            delivery = (await claimed(hub, asks)).delivery
            await say(hub, asks, delivery, "verifying")
            answers = {}
            for step in (first, second):
                if step == "cancel":
                    answers[step] = await hub.syncs.cancel(asks, accepted.sync) == (1, 0)
                else:
                    answers[step] = await say(hub, asks, delivery, "installing") == "noted"
            assert answers == {first: True, second: False}
            await say(hub, asks, delivery, "done")


async def test_an_installation_that_was_never_run_is_queued_again_when_its_terminal_says_so(tmp_path: Path) -> None:
    async with open_rooms(tmp_path) as hub:
        asks = await add_terminal(hub, await add_account(hub))
        await publish(hub, tmp_path)
        accepted = await ask(hub, asks, "k")
        delivery = (await claimed(hub, asks)).delivery
        await say(hub, asks, delivery, "verifying", "installing")
        await say_inventory(hub, asks, installing=(delivery,), first=False)
        assert (await row_of(hub, asks, accepted)).state == "installing"
        assert await claim(hub, asks) is None
        await say_inventory(hub, asks)
        assert (await row_of(hub, asks, accepted)).state == "queued"
        assert (await claimed(hub, asks)).delivery == delivery


async def test_a_hung_installation_blocks_nothing_but_its_own_program(tmp_path: Path) -> None:
    async with open_rooms(tmp_path) as hub:
        asks = await add_terminal(hub, await add_account(hub))
        await publish(hub, tmp_path)
        await publish(hub, tmp_path, "2.0")
        await publish(hub, tmp_path, program="other")
        await ask(hub, asks, "1", version="1.0")
        hung = (await claimed(hub, asks)).delivery
        await say(hub, asks, hung, "verifying", "installing")
        newer = await ask(hub, asks, "2")
        other = await ask(hub, asks, "3", program="other")
        assert (await claimed(hub, asks)).delivery == other.targets[0].delivery
        await say(hub, asks, other.targets[0].delivery, "failed")
        assert await claim(hub, asks) is None
        await say(hub, asks, hung, "failed")
        assert (await claimed(hub, asks)).delivery == newer.targets[0].delivery


# --- consent ------------------------------------------------------------------------------------------------------


async def test_what_a_person_agreed_to_is_offered_again_and_what_was_declined_ends(tmp_path: Path) -> None:
    async with open_rooms(tmp_path) as hub:
        asks = await add_terminal(hub, await add_account(hub))
        await publish(hub, tmp_path)
        accepted = await ask(hub, asks, "k")
        delivery = (await claimed(hub, asks)).delivery
        assert await say(hub, asks, delivery, "asking") == "noted"
        assert await claim(hub, asks) is None
        assert await say(hub, asks, delivery, "queued", reason="accepted") == "noted"
        assert (await claimed(hub, asks)).delivery == delivery
        await say(hub, asks, delivery, "asking")
        await say(hub, asks, delivery, "declined", reason="by-person")
        assert (await row_of(hub, asks, accepted)).state == "declined"


async def test_what_is_put_off_is_offered_again_when_its_time_has_come(tmp_path: Path) -> None:
    async with open_rooms(tmp_path) as hub:
        asks = await add_terminal(hub, await add_account(hub))
        await publish(hub, tmp_path)
        accepted = await ask(hub, asks, "k")
        delivery = (await claimed(hub, asks)).delivery
        await say(hub, asks, delivery, "postponed", seconds=3_600.0)
        await pass_time(hub, 3_590)
        assert (await row_of(hub, asks, accepted)).state == "postponed"
        await say(hub, asks, delivery, "postponed", seconds=3_600.0)
        await pass_time(hub, 3_590)
        assert await claim(hub, asks) is None
        await pass_time(hub, 11)
        assert (await claimed(hub, asks)).delivery == delivery


async def test_what_waits_its_turn_to_be_offered_again_can_be_put_off(tmp_path: Path) -> None:
    async with open_rooms(tmp_path) as hub:
        asks = await add_terminal(hub, await add_account(hub))
        await publish(hub, tmp_path)
        accepted = await ask(hub, asks, "k")
        delivery = (await claimed(hub, asks)).delivery
        await say(hub, asks, delivery, "asking")
        await say_inventory(hub, asks)  # it came back, and something else comes first
        assert (await row_of(hub, asks, accepted)).state == "queued"
        assert await say(hub, asks, delivery, "postponed", seconds=60.0) == "noted"
        assert await claim(hub, asks) is None
        await pass_time(hub, 61)
        assert (await claimed(hub, asks)).delivery == delivery


async def test_what_waits_for_a_person_is_offered_again_at_each_login(tmp_path: Path) -> None:
    async with open_rooms(tmp_path) as hub:
        asks = await add_terminal(hub, await add_account(hub))
        await publish(hub, tmp_path)
        accepted = await ask(hub, asks, "k")
        delivery = (await claimed(hub, asks)).delivery
        await say(hub, asks, delivery, "asking")
        await say_inventory(hub, asks, first=False)
        assert (await row_of(hub, asks, accepted)).state == "asking"
        await say_inventory(hub, asks)
        assert (await claimed(hub, asks)).delivery == delivery


async def test_who_asks_about_held_deliveries_is_told_which_are_gone(tmp_path: Path) -> None:
    async with open_rooms(tmp_path) as hub:
        asks = await add_terminal(hub, await add_account(hub))
        await publish(hub, tmp_path)
        accepted = await ask(hub, asks, "k")
        delivery = (await claimed(hub, asks)).delivery
        await say(hub, asks, delivery, "asking")
        assert await hub.deliveries.gone_of((delivery, "d-none"), asks.terminal_id) == ("d-none",)
        await hub.syncs.cancel(asks, accepted.sync)
        assert await hub.deliveries.gone_of((delivery,), asks.terminal_id) == (delivery,)


async def test_in_quiet_hours_nothing_is_offered_and_what_is_there_already_ends_all_the_same(tmp_path: Path) -> None:
    async with open_rooms(tmp_path, quiet_hours="00:00-23:59") as hub:
        if hub.deliveries.quiet_seconds() == 0:
            pytest.skip("it is 23:59 on this machine, the one minute of the day that is not quiet here")
        account = await add_account(hub)
        asks, initiator = await add_terminal(hub, account), await add_terminal(hub, account, "Initiator")
        published = await publish(hub, tmp_path)
        accepted = await ask(hub, initiator, "k", asks)
        await say_inventory(hub, asks)
        await hub.pokes.take()
        assert await claim(hub, asks) is None
        assert (await row_of(hub, asks, accepted)).reason == "quiet-hours"
        assert await hub.pokes.take() == {("asked", initiator.terminal_id)}
        await say_inventory(hub, asks, published)
        assert await claim(hub, asks) is None
        assert (await row_of(hub, asks, accepted)).state == "same"


# --- superseding ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("comes_back_as", ["failed", "never run"])
async def test_an_installation_that_comes_back_gives_way_to_the_newer_request_behind_it(
    comes_back_as: str, tmp_path: Path
) -> None:
    async with open_rooms(tmp_path) as hub:
        asks = await add_terminal(hub, await add_account(hub))
        await publish(hub, tmp_path)
        newer = await publish(hub, tmp_path, "2.0")
        older = await ask(hub, asks, "1", version="1.0")
        follows = await ask(hub, asks, "2", version="1.0")
        owed = await claimed(hub, asks)
        await say(hub, asks, owed.delivery, "verifying", "installing")
        await ask(hub, asks, "3", version="2.0")
        if comes_back_as == "failed":
            assert await say(hub, asks, owed.delivery, "failed", reason="disk", attempt=1) == "noted"
        else:
            await say_inventory(hub, asks)
        assert [(await row_of(hub, asks, one)).state for one in (older, follows)] == ["superseded", "superseded"]
        owed = await claimed(hub, asks)
        assert owed.digest.hex() == newer.digest
        await say(hub, asks, owed.delivery, "verifying", "installing", "done")
        await pass_time(hub, life.HOUR)
        assert await claim(hub, asks) is None


async def test_a_request_for_what_is_there_ends_an_older_one_for_something_else(tmp_path: Path) -> None:
    async with open_rooms(tmp_path) as hub:
        asks = await add_terminal(hub, await add_account(hub))
        await publish(hub, tmp_path)
        await install(hub, asks, await publish(hub, tmp_path, "2.0"), "0")
        older = await ask(hub, asks, "1", version="1.0")
        assert [row.state for row in (await ask(hub, asks, "2", version="2.0")).targets] == ["same"]
        row = await row_of(hub, asks, older)
        assert (row.state, row.reason) == ("superseded", "newer-request")
        assert await claim(hub, asks) is None


@pytest.mark.parametrize("older_ends_as", ["done", "failed"])
async def test_what_is_there_is_queued_behind_an_installation_that_replaces_it(
    older_ends_as: str, tmp_path: Path
) -> None:
    async with open_rooms(tmp_path) as hub:
        asks = await add_terminal(hub, await add_account(hub))
        older = await publish(hub, tmp_path)
        await install(hub, asks, await publish(hub, tmp_path, "2.0"), "0")
        await ask(hub, asks, "1", version="1.0")
        delivery = (await claimed(hub, asks)).delivery
        await say(hub, asks, delivery, "verifying", "installing")
        plan = await hub.syncs.plan(asks, Plan(id=1, program="hello", targets=(asks.terminal_id,), version="2.0"))
        accepted = await ask(hub, asks, "2", version="2.0")
        assert [row.state for row in (*plan, *accepted.targets)] == ["queued", "queued"]
        if older_ends_as == "done":
            await say_inventory(hub, asks, older, first=False)
        await say(hub, asks, delivery, older_ends_as, reason="wrong-digest")
        owed = await claim(hub, asks)
        assert (owed is not None) == (older_ends_as == "done")
        assert (await row_of(hub, asks, accepted)).state == ("offered" if older_ends_as == "done" else "same")


# --- joining ------------------------------------------------------------------------------------------------------


async def test_the_same_object_asked_for_twice_is_sent_once_and_both_end_with_it(tmp_path: Path) -> None:
    async with open_rooms(tmp_path) as hub:
        account = await add_account(hub)
        asks, other = await add_terminal(hub, account, "A"), await add_terminal(hub, account, "B")
        await publish(hub, tmp_path)
        first = await ask(hub, asks, "first")
        delivery = (await claimed(hub, asks)).delivery
        await say(hub, asks, delivery, "downloading")
        second = await ask(hub, other, "second", asks)
        assert second.targets[0].state == "downloading"
        for state in ("verifying", "installing", "done"):
            await say(hub, asks, delivery, state)
            assert (await row_of(hub, asks, first)).state == (await row_of(hub, asks, second)).state == state
        assert await claim(hub, asks) is None
        for initiator in (asks, other):
            assert [ended.outcome for ended in (await hub.syncs.changes(initiator.terminal_id, 0)).ended] == ["done"]


async def test_asking_again_for_what_waits_for_another_try_tries_at_once(tmp_path: Path) -> None:
    async with open_rooms(tmp_path) as hub:
        asks = await add_terminal(hub, await add_account(hub))
        await publish(hub, tmp_path)
        first = await ask(hub, asks, "1")
        await say(hub, asks, (await claimed(hub, asks)).delivery, "failed", reason="no-space")
        assert await claim(hub, asks) is None
        second = await ask(hub, asks, "2")
        assert (second.targets[0].state, second.targets[0].reason) == ("queued", "offline")
        owed = await claimed(hub, asks)
        assert (owed.delivery, owed.attempt) == (first.targets[0].delivery, 2)
        await say(hub, asks, owed.delivery, "verifying", "installing", "done")
        assert [(await row_of(hub, asks, one)).state for one in (first, second)] == ["done", "done"]


async def test_who_cancels_ends_only_their_own_sync_and_the_next_in_line_goes_on(tmp_path: Path) -> None:
    async with open_rooms(tmp_path) as hub:
        asks = await add_terminal(hub, await add_account(hub))
        await publish(hub, tmp_path)
        first, second, third = [await ask(hub, asks, key) for key in "123"]
        delivery = (await claimed(hub, asks)).delivery
        await say(hub, asks, delivery, "downloading")
        assert await hub.syncs.cancel(asks, first.sync) == (1, 0)
        assert (await row_of(hub, asks, first)).state == "cancelled"
        again = await claimed(hub, asks)
        assert again.delivery == second.targets[0].delivery
        assert (await row_of(hub, asks, third)).state == "offered"
        await say(hub, asks, again.delivery, "verifying", "installing", "done")
        assert (await row_of(hub, asks, second)).state == (await row_of(hub, asks, third)).state == "done"


async def test_what_follows_is_never_sent_itself(tmp_path: Path) -> None:
    async with open_rooms(tmp_path) as hub:
        asks = await add_terminal(hub, await add_account(hub))
        await publish(hub, tmp_path)
        first = await ask(hub, asks, "1")
        await ask(hub, asks, "2")
        delivery = (await claimed(hub, asks)).delivery
        assert delivery == first.targets[0].delivery
        await say(hub, asks, delivery, "asking")
        assert await claim(hub, asks) is None
        await say(hub, asks, delivery, "queued")
        await say(hub, asks, (await claimed(hub, asks)).delivery, "failed", reason="no-space")
        assert await claim(hub, asks) is None


async def test_what_followed_can_be_undone_too(tmp_path: Path) -> None:
    async with open_rooms(tmp_path) as hub:
        asks = await add_terminal(hub, await add_account(hub))
        older, newer = await publish(hub, tmp_path), await publish(hub, tmp_path, "2.0")
        await install(hub, asks, older, "1")
        await ask(hub, asks, "leads")
        follows = await ask(hub, asks, "follows")
        await say(hub, asks, (await claimed(hub, asks)).delivery, "verifying", "installing", "done")
        await say_inventory(hub, asks, newer, first=False)
        assert [row.version for row in (await undo(hub, asks, follows.sync)).targets] == ["1.0"]


async def test_what_joins_a_transfer_under_way_can_be_undone_too(tmp_path: Path) -> None:
    async with open_rooms(tmp_path) as hub:
        asks = await add_terminal(hub, await add_account(hub))
        older, newer = await publish(hub, tmp_path), await publish(hub, tmp_path, "2.0")
        await install(hub, asks, older, "1")
        await ask(hub, asks, "leads")
        owed = await claimed(hub, asks)
        joins = await ask(hub, asks, "joins")
        await say(hub, asks, owed.delivery, "verifying", "installing", "done")
        await say_inventory(hub, asks, newer, first=False)
        assert [row.version for row in (await undo(hub, asks, joins.sync)).targets] == ["1.0"]


async def test_what_joins_an_installation_may_outlive_its_delivery_as_that_one_may(tmp_path: Path) -> None:
    async with open_rooms(tmp_path, delivery_seconds=1_000) as hub:
        asks = await add_terminal(hub, await add_account(hub))
        await publish(hub, tmp_path)
        await ask(hub, asks, "leads")
        delivery = (await claimed(hub, asks)).delivery
        await say(hub, asks, delivery, "verifying", "installing")
        joins = await ask(hub, asks, "joins")
        await pass_time(hub, 1_500)
        assert (await row_of(hub, asks, joins)).state == "installing"
        await say(hub, asks, delivery, "done")
        assert (await row_of(hub, asks, joins)).state == "done"


async def test_a_follower_can_be_cancelled_by_itself(tmp_path: Path) -> None:
    async with open_rooms(tmp_path) as hub:
        asks = await add_terminal(hub, await add_account(hub))
        await publish(hub, tmp_path)
        first, second = [await ask(hub, asks, key) for key in "12"]
        await hub.syncs.cancel(asks, second.sync)
        delivery = (await claimed(hub, asks)).delivery
        await say(hub, asks, delivery, "verifying", "installing", "done")
        assert [(await row_of(hub, asks, one)).state for one in (first, second)] == ["done", "cancelled"]


async def test_a_newer_version_supersedes_a_delivery_and_all_that_follow_it(tmp_path: Path) -> None:
    async with open_rooms(tmp_path) as hub:
        asks = await add_terminal(hub, await add_account(hub))
        await publish(hub, tmp_path)
        await publish(hub, tmp_path, "2.0")
        older = [await ask(hub, asks, key, version="1.0") for key in "12"]
        newer = await ask(hub, asks, "3")
        assert [(await row_of(hub, asks, one)).state for one in (*older, newer)] == [
            "superseded",
            "superseded",
            "queued",
        ]
        assert (await claimed(hub, asks)).delivery == newer.targets[0].delivery


async def test_what_follows_survives_a_restart_with_what_it_follows(tmp_path: Path) -> None:
    async with open_rooms(tmp_path) as hub:
        asks = await add_terminal(hub, await add_account(hub))
        await publish(hub, tmp_path)
        both = [await ask(hub, asks, key) for key in "12"]
        await say(hub, asks, (await claimed(hub, asks)).delivery, "downloading")
    async with open_rooms(tmp_path) as hub:
        assert [(await row_of(hub, asks, one)).state for one in both] == ["queued", "queued"]
        await say(hub, asks, (await claimed(hub, asks)).delivery, "verifying", "installing", "done")
        assert [(await row_of(hub, asks, one)).state for one in both] == ["done", "done"]


# --- undo ---------------------------------------------------------------------------------------------------------


async def test_undo_brings_the_version_before_back_as_an_ordinary_delivery(tmp_path: Path) -> None:
    async with open_rooms(tmp_path) as hub:
        asks = await add_terminal(hub, await add_account(hub))
        older, newer = await publish(hub, tmp_path), await publish(hub, tmp_path, "2.0")
        await install(hub, asks, older, "1")
        sync = await install(hub, asks, newer, "2")
        undone = await undo(hub, asks, sync.sync)
        assert await undo(hub, asks, sync.sync) == undone, "the same request key is the same sync"
        assert [(row.state, row.version) for row in undone.targets] == [("queued", "1.0")]
        owed = await claimed(hub, asks)
        assert owed.digest.hex() == older.digest
        await say(hub, asks, owed.delivery, "verifying", "installing", "done")
        await say_inventory(hub, asks, older, first=False)
        newest = (await hub.syncs.history(asks, ""))[0][0]
        assert (newest.sync, newest.undoes, newest.outcome) == (undone.sync, sync.sync, "done")
        again = await undo(hub, asks, undone.sync, key="redo")
        assert [(row.state, row.version) for row in again.targets] == [("queued", "2.0")]


async def test_undo_says_why_a_target_stays_as_it_is(tmp_path: Path) -> None:
    async with open_rooms(tmp_path) as hub:
        account = await add_account(hub)
        asks, offline = await add_terminal(hub, account, "A"), await add_terminal(hub, account, "B")
        older, newer = await publish(hub, tmp_path), await publish(hub, tmp_path, "2.0")
        first = await install(hub, asks, older, "1")
        assert [row.reason for row in (await undo(hub, asks, first.sync, key="a")).targets] == ["nothing-before"]
        second = await ask(hub, asks, "2", asks, offline)
        with pytest.raises(UsageError, match="put nothing on any device") as caught:
            await undo(hub, asks, second.sync, key="b")
        assert caught.value.code == "nothing-to-undo"
        owed = await claimed(hub, asks)
        await say(hub, asks, owed.delivery, "verifying", "installing", "done")
        await say_inventory(hub, asks, older, first=False)
        both = await undo(hub, asks, second.sync, asks, offline, key="c")
        assert {row.name: row.reason for row in both.targets} == {"A": "installed", "B": "nothing-to-undo"}
        await say_inventory(hub, asks, first=False)
        assert [row.reason for row in (await undo(hub, asks, second.sync, asks, key="d")).targets] == ["changed-since"]
        assert newer.version == "2.0"


async def test_undo_is_of_ones_own_account_and_of_targets_there_were(tmp_path: Path) -> None:
    async with open_rooms(tmp_path) as hub:
        ada = await add_terminal(hub, await add_account(hub, "ada"))
        eve = await add_terminal(hub, await add_account(hub, "eve"))
        sync = await install(hub, ada, await publish(hub, tmp_path), "1")
        with pytest.raises(UnknownNameError, match="no sync"):
            await undo(hub, eve, sync.sync)
        with pytest.raises(UnknownNameError, match="no target"):
            await undo(hub, ada, sync.sync, eve)


# --- a full disk --------------------------------------------------------------------------------------------------


async def test_a_nearly_full_disk_refuses_a_new_request_in_words_and_still_knows_an_older_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_rooms(tmp_path, disk_reserve_bytes=2**30) as hub:
        asks = await add_terminal(hub, await add_account(hub))
        await publish(hub, tmp_path)
        accepted = await ask(hub, asks, "before")
        usage = shutil.disk_usage(tmp_path)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1_000_000))
        with pytest.raises(RefusedError, match="1000000 bytes free") as caught:
            await ask(hub, asks, "after")
        assert caught.value.code == "disk-full"
        assert (await ask(hub, asks, "before")).sync == accepted.sync


# --- a database of an older hub -----------------------------------------------------------------------------------


def columns(path: Path) -> dict[str, list[tuple[object, ...]]]:
    database = sqlite3.connect(path)
    try:
        tables = [
            name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type IN ('table', 'index')")
        ]
        return {name: sorted(row[1:] for row in database.execute(f"PRAGMA table_xinfo({name})")) for name in tables}
    finally:
        database.close()


async def test_a_database_of_version_1_becomes_what_a_new_one_is_and_keeps_what_is_owed(tmp_path: Path) -> None:
    async with open_rooms(tmp_path) as hub:
        asks = await add_terminal(hub, await add_account(hub))
        await publish(hub, tmp_path)
        accepted = await ask(hub, asks, "k")
    new = tmp_path / "hub" / "hub.db"
    old = tmp_path / "old.db"
    source, target = sqlite3.connect(new), sqlite3.connect(old)
    target.executescript((Path(__file__).parent / "schema_1.sql").read_text())
    for (table,) in target.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
        names = [row[1] for row in target.execute(f"PRAGMA table_info({table})")]
        rows = source.execute(f"SELECT {', '.join(names)} FROM {table}").fetchall()
        target.executemany(f"INSERT INTO {table} VALUES ({', '.join('?' * len(names))})", rows)
    target.execute("PRAGMA user_version = 1")
    target.commit()
    source.close()
    target.close()
    expected = columns(new)
    await (await Store.open(old)).close()
    assert {name: [column[:2] for column in rows] for name, rows in columns(old).items()} == {
        name: [column[:2] for column in rows] for name, rows in expected.items()
    }
    shutil.copy(old, new)
    for beside in ("-wal", "-shm"):
        Path(f"{new}{beside}").unlink(missing_ok=True)
    async with open_rooms(tmp_path) as hub:
        await pass_time(hub, 1.0)
        assert (await row_of(hub, asks, accepted)).state == "queued"
        assert await claim(hub, asks) is None  # nobody has scanned it yet
        assert await hub.rescans.look(resting=False) == 1
        assert (await claimed(hub, asks)).delivery == accepted.targets[0].delivery


def test_every_state_that_is_not_final_has_a_deadline_a_reason_and_words() -> None:
    assert set(life.DEADLINES) == set(State) - life.FINAL
    for state, deadline in life.DEADLINES.items():
        assert deadline.reason and deadline.detail
        assert life.may_move(state, deadline.then, life.Mover.HUB)
