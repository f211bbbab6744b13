"""Asking and delivering, against a real database: plan, accept, claim, report, cancel, and what a restart finds."""

import asyncio
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import structs

from hub.app import Hub
from hub.records import Owed, Terminal
from hub.syncs import SYNCS_TOLD_AT_ONCE
from protocol import life
from protocol.errors import UnknownNameError, UsageError
from protocol.life import Mover, State
from protocol.messages import Plan, Sync, TargetRow
from protocol.messages import State as Report
from tests.hub.rooms import PHONE, add_account, add_terminal, open_rooms, publish, say_inventory


def sync_to(*targets: Terminal, key: str = "k", version: str = "", program: str = "hello") -> Sync:
    names = tuple(target.terminal_id for target in targets)
    return Sync(id=1, request_key=key, program=program, targets=names, version=version)


async def claim(hub: Hub, terminal: Terminal) -> Owed | None:
    return await hub.deliveries.claim(terminal.terminal_id, terminal.connection)


async def report(hub: Hub, terminal: Terminal, delivery: str, state: str) -> str:
    said = Report(delivery=delivery, state=state)
    return await hub.deliveries.report(terminal.terminal_id, terminal.connection, said)


async def begin_installing(hub: Hub, terminal: Terminal) -> Owed:
    owed = await claim(hub, terminal)
    assert owed is not None
    for state in ("downloading", "verifying", "installing"):
        await report(hub, terminal, owed.delivery, state)
    return owed


async def row_of(hub: Hub, terminal: Terminal, sync: str) -> TargetRow:
    [row] = await hub.syncs.targets(terminal, sync)
    return row


async def test_a_plan_says_exactly_what_the_same_sync_then_does(tmp_path: Path) -> None:
    async with open_rooms(tmp_path) as hub:
        account = await add_account(hub)
        asks = await add_terminal(hub, account, "Asks")
        await add_terminal(hub, account, "Phone", device=PHONE)
        has = await add_terminal(hub, account, "Has")
        published = await publish(hub, tmp_path)
        await say_inventory(hub, has, published)
        planned = await hub.syncs.plan(asks, Plan(id=1, program="hello", everyone=True))
        accepted = await hub.syncs.accept(asks, Sync(id=1, request_key="k", program="hello", everyone=True))
        assert {row.name: row.state for row in planned} == {"Has": "same", "Phone": "no_match"}
        assert all(row.delivery for row in accepted.targets)
        assert planned == tuple(structs.replace(row, delivery="") for row in accepted.targets)


async def test_everyone_is_every_receiving_terminal_but_the_initiator(tmp_path: Path) -> None:
    async with open_rooms(tmp_path) as hub:
        account = await add_account(hub)
        asks = await add_terminal(hub, account, "Asks")
        await add_terminal(hub, account, "Receives")
        await add_terminal(hub, account, "Only asks", receives=False)
        await publish(hub, tmp_path)
        rows = await hub.syncs.plan(asks, Plan(id=1, program="hello", everyone=True))
        assert [row.name for row in rows] == ["Receives"]


async def test_a_sync_to_nobody_and_to_an_unknown_program_or_version_is_refused_in_words(tmp_path: Path) -> None:
    async with open_rooms(tmp_path) as hub:
        asks = await add_terminal(hub, await add_account(hub))
        await publish(hub, tmp_path)
        with pytest.raises(UsageError, match="no target"):
            await hub.syncs.accept(asks, Sync(id=1, request_key="k", program="hello"))
        with pytest.raises(UnknownNameError, match="helo") as caught:
            await hub.syncs.accept(asks, Sync(id=1, request_key="k", program="helo", targets=(asks.terminal_id,)))
        assert caught.value.near == ("hello",)
        with pytest.raises(UnknownNameError, match=r"'9\.9'") as caught:
            await hub.syncs.accept(asks, sync_to(asks, version="9.9"))
        assert caught.value.code == "unknown-version"


async def test_the_same_request_key_is_the_same_sync_even_when_both_come_at_once(tmp_path: Path) -> None:
    async with open_rooms(tmp_path) as hub:
        asks = await add_terminal(hub, await add_account(hub))
        await publish(hub, tmp_path)
        first, second = await asyncio.gather(
            hub.syncs.accept(asks, sync_to(asks)), hub.syncs.accept(asks, sync_to(asks))
        )
        assert first.sync == second.sync
        assert [row.delivery for row in first.targets] == [row.delivery for row in second.targets]
        assert len((await hub.syncs.history(asks, ""))[0]) == 1


async def test_another_accounts_terminals_and_syncs_are_as_if_they_did_not_exist(tmp_path: Path) -> None:
    async with open_rooms(tmp_path) as hub:
        ada = await add_terminal(hub, await add_account(hub, "ada"))
        eve = await add_terminal(hub, await add_account(hub, "eve"))
        await publish(hub, tmp_path)
        accepted = await hub.syncs.accept(ada, sync_to(ada))
        for asked in (hub.syncs.targets, hub.syncs.cancel, hub.syncs.history):
            with pytest.raises(UnknownNameError, match="no sync"):
                await asked(eve, accepted.sync)
        with pytest.raises(UnknownNameError, match="no terminal"):
            await hub.syncs.accept(eve, sync_to(ada))
        assert await hub.deliveries.report(
            eve.terminal_id, eve.connection, Report(delivery=accepted.targets[0].delivery, state="failed")
        ) == "refused"  # fmt: skip
        assert await claim(hub, eve) is None
        assert (await hub.syncs.history(eve, ""))[0] == []
        assert (await row_of(hub, ada, accepted.sync)).state == "queued"


async def test_deliveries_are_claimed_in_the_order_in_which_they_were_asked_for(tmp_path: Path) -> None:
    async with open_rooms(tmp_path) as hub:
        asks = await add_terminal(hub, await add_account(hub))
        expected = []
        for program in ("hello", "world", "alpha", "zulu"):
            await publish(hub, tmp_path, program=program)
            accepted = await hub.syncs.accept(asks, sync_to(asks, key=program, program=program))
            expected.append(accepted.targets[0].delivery)
        claimed = []
        while owed := await claim(hub, asks):
            claimed.append(owed.delivery)
            assert await report(hub, asks, owed.delivery, "failed") == "noted"
        assert claimed == expected


async def test_an_older_connection_claims_nothing_and_its_reports_change_nothing(tmp_path: Path) -> None:
    async with open_rooms(tmp_path) as hub:
        older = await add_terminal(hub, await add_account(hub))
        await publish(hub, tmp_path)
        accepted = await hub.syncs.accept(older, sync_to(older))
        owed = await claim(hub, older)
        assert owed is not None
        newer = await hub.accounts.count_login(older.terminal_id, older.device, "b", receives=True)
        assert await claim(hub, older) is None
        assert await report(hub, older, owed.delivery, "failed") == "stale"
        await hub.deliveries.terminal_left(older.terminal_id, older.connection)
        await say_inventory(hub, older)
        assert (await row_of(hub, newer, accepted.sync)).state == "offered"
        assert await report(hub, newer, owed.delivery, "done") == "noted"


@pytest.mark.parametrize("restart", [False, True])
async def test_what_was_under_way_is_put_back_when_the_terminal_leaves_or_the_hub_starts(
    restart: bool, tmp_path: Path
) -> None:
    async with open_rooms(tmp_path) as hub:
        asks = await add_terminal(hub, await add_account(hub))
        await publish(hub, tmp_path)
        accepted = await hub.syncs.accept(asks, sync_to(asks))
        owed = await claim(hub, asks)
        assert owed is not None
        await report(hub, asks, owed.delivery, "downloading")
        if not restart:
            await hub.deliveries.add_sent(owed.delivery, 77)
            await hub.deliveries.terminal_left(asks.terminal_id, asks.connection)
            row = await row_of(hub, asks, accepted.sync)
            assert (row.state, row.reason, row.sent) == ("queued", "offline", 77)
    async with open_rooms(tmp_path) as hub:
        assert (await row_of(hub, asks, accepted.sync)).state == "queued"
        again = await claim(hub, asks)
        assert again is not None and again.delivery == owed.delivery


async def test_an_installation_is_not_put_back_until_the_terminal_has_said_what_it_has(tmp_path: Path) -> None:
    async with open_rooms(tmp_path) as hub:
        asks = await add_terminal(hub, await add_account(hub))
        published = await publish(hub, tmp_path)
        accepted = await hub.syncs.accept(asks, sync_to(asks))
        owed = await claim(hub, asks)
        assert owed is not None
        for state in ("verifying", "installing"):
            assert await report(hub, asks, owed.delivery, state) == "noted"
        await hub.deliveries.terminal_left(asks.terminal_id, asks.connection)
        assert (await row_of(hub, asks, accepted.sync)).state == "installing"
        assert await hub.syncs.cancel(asks, accepted.sync) == (0, 1), "too late to cancel"
        await say_inventory(hub, asks, published)
        assert await claim(hub, asks) is None
        assert (await row_of(hub, asks, accepted.sync)).state == "done"


async def test_what_the_inventory_has_ends_as_same_without_a_byte_sent(tmp_path: Path) -> None:
    async with open_rooms(tmp_path) as hub:
        asks = await add_terminal(hub, await add_account(hub))
        published = await publish(hub, tmp_path)
        accepted = await hub.syncs.accept(asks, sync_to(asks))
        await say_inventory(hub, asks, published)
        assert await claim(hub, asks) is None
        assert (await row_of(hub, asks, accepted.sync)).state == "same"
        assert (await hub.syncs.history(asks, ""))[0][0].outcome == "done"


async def test_a_newer_installed_version_is_not_gone_back_from_unless_the_version_is_named(tmp_path: Path) -> None:
    async with open_rooms(tmp_path) as hub:
        asks = await add_terminal(hub, await add_account(hub))
        await publish(hub, tmp_path, "1.0")
        newer = structs.replace(await publish(hub, tmp_path, "2.0"), version="3.0", digest="ab" * 32)
        await say_inventory(hub, asks, newer)
        names = (asks.terminal_id,)
        [row] = await hub.syncs.plan(asks, Plan(id=1, program="hello", targets=names))
        assert (row.state, row.reason) == ("no_match", "downgrade")
        [row] = await hub.syncs.plan(asks, Plan(id=1, program="hello", targets=names, version="1.0"))
        assert (row.state, row.version) == ("queued", "1.0")


async def test_the_newest_release_is_chosen_unless_an_older_one_is_named(tmp_path: Path) -> None:
    async with open_rooms(tmp_path) as hub:
        asks = await add_terminal(hub, await add_account(hub))
        for version in ("1.9", "1.10", "1.2"):
            await publish(hub, tmp_path, version)
        for wanted, chosen in (("", "1.10"), ("1.2", "1.2")):
            [row] = await hub.syncs.plan(asks, Plan(id=1, program="hello", targets=(asks.terminal_id,), version=wanted))
            assert row.version == chosen


async def test_a_sync_ends_with_its_last_target_and_is_told_until_it_is_noted(tmp_path: Path) -> None:
    async with open_rooms(tmp_path) as hub:
        account = await add_account(hub)
        asks, other = await add_terminal(hub, account, "A"), await add_terminal(hub, account, "B")
        await publish(hub, tmp_path)
        accepted = await hub.syncs.accept(asks, sync_to(asks, other))
        for terminal, state in ((asks, "done"), (other, "failed")):
            assert (await hub.syncs.changes(asks.terminal_id, 0)).ended == ()
            owed = await claim(hub, terminal)
            assert owed is not None
            await report(hub, terminal, owed.delivery, state)
        [ended] = (await hub.syncs.changes(asks.terminal_id, 0)).ended
        assert (ended.sync, ended.outcome, ended.counts) == (accepted.sync, "partly", {"done": 1, "failed": 1})
        await hub.syncs.note(other.terminal_id, accepted.sync)
        assert (await hub.syncs.changes(asks.terminal_id, 0)).ended, "only the initiator may note it"
        await hub.syncs.note(asks.terminal_id, accepted.sync)
        assert (await hub.syncs.changes(asks.terminal_id, 0)).ended == ()


async def test_changes_come_a_few_syncs_at_a_time_and_none_is_left_out(tmp_path: Path) -> None:
    async with open_rooms(tmp_path) as hub:
        asks = await add_terminal(hub, await add_account(hub))
        await publish(hub, tmp_path)
        expected = {(await hub.syncs.accept(asks, sync_to(asks, key=str(n)))).sync for n in range(21)}
        told: set[str] = set()
        since, more = 0, True
        while more:
            changes = await hub.syncs.changes(asks.terminal_id, since)
            assert len(changes.targets) <= 8
            told |= set(changes.targets)
            since, more = changes.revision, changes.more
        assert told == expected


async def test_a_device_that_comes_or_goes_is_told_of_for_every_sync_however_many(tmp_path: Path) -> None:
    async with open_rooms(tmp_path) as hub:
        account = await add_account(hub)
        asks, away = await add_terminal(hub, account, "Asks"), await add_terminal(hub, account, "Away")
        syncs = SYNCS_TOLD_AT_ONCE + 3
        for number in range(syncs):
            await publish(hub, tmp_path, program=f"p{number}")
            await hub.syncs.accept(asks, sync_to(away, key=f"k{number}", program=f"p{number}"))

        async def told(since: int) -> tuple[list[str], int]:
            reasons, more = [], True
            while more:
                changes = await hub.syncs.changes(asks.terminal_id, since)
                reasons += [row.reason for rows in changes.targets.values() for row in rows]
                since, more = changes.revision, changes.more
            return reasons, since

        _, since = await told(0)
        await say_inventory(hub, away)
        reasons, since = await told(since)
        assert reasons == ["waiting"] * syncs
        await hub.deliveries.start()  # as after a restart of the hub
        reasons, _ = await told(since)
        assert reasons == ["offline"] * syncs


STATES = [state.value for state in State] + ["nonsense"]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(reports=st.lists(st.sampled_from(STATES), min_size=1, max_size=12))
async def test_whatever_a_terminal_reports_only_legal_moves_happen_and_a_final_state_never_changes(
    reports: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("rooms")
    async with open_rooms(folder) as hub:
        asks = await add_terminal(hub, await add_account(hub))
        await publish(hub, folder)
        accepted = await hub.syncs.accept(asks, sync_to(asks))
        owed = await claim(hub, asks)
        assert owed is not None
        for said in reports:
            before = State((await row_of(hub, asks, accepted.sync)).state)
            answer = await report(hub, asks, owed.delivery, said)
            after = State((await row_of(hub, asks, accepted.sync)).state)
            legal = said != "nonsense" and life.may_move(before, State(said), Mover.TERMINAL)
            assert after == (State(said) if legal else before)
            assert answer == ("noted" if legal or said == before else "refused")


async def test_a_newer_request_supersedes_what_has_not_begun_to_install(tmp_path: Path) -> None:
    async with open_rooms(tmp_path) as hub:
        asks = await add_terminal(hub, await add_account(hub))
        await publish(hub, tmp_path)
        await publish(hub, tmp_path, "1.1")
        older = await hub.syncs.accept(asks, sync_to(asks, key="older", version="1.0"))
        newer = await hub.syncs.accept(asks, sync_to(asks, key="newer"))
        assert ((await row_of(hub, asks, older.sync)).state, (await row_of(hub, asks, newer.sync)).state) == (
            "superseded",
            "queued",
        )
        [ended] = (await hub.syncs.changes(asks.terminal_id, 0)).ended
        assert (ended.sync, ended.outcome) == (older.sync, "failed")


async def test_what_has_begun_to_install_is_not_superseded_and_the_same_installer_is_not_either(tmp_path: Path) -> None:
    async with open_rooms(tmp_path) as hub:
        asks = await add_terminal(hub, await add_account(hub))
        await publish(hub, tmp_path)
        first = await hub.syncs.accept(asks, sync_to(asks, key="first"))
        again = await hub.syncs.accept(asks, sync_to(asks, key="again"))
        assert (await row_of(hub, asks, first.sync)).state == "queued"
        await begin_installing(hub, asks)
        await publish(hub, tmp_path, "1.1")
        await hub.syncs.accept(asks, sync_to(asks, key="newer"))
        assert (await row_of(hub, asks, first.sync)).state == "installing"
        assert (await row_of(hub, asks, again.sync)).state == "installing", "it goes as the first one goes"


async def test_cancelling_counts_every_target_and_again_answers_the_same(tmp_path: Path) -> None:
    async with open_rooms(tmp_path) as hub:
        account = await add_account(hub)
        asks = await add_terminal(hub, account, "Asks")
        begun = await add_terminal(hub, account, "Begun")
        phone = await add_terminal(hub, account, "Phone", device=PHONE)
        await publish(hub, tmp_path)
        accepted = await hub.syncs.accept(asks, sync_to(asks, begun, phone))
        await begin_installing(hub, begun)
        assert await hub.syncs.cancel(asks, accepted.sync) == (1, 2)
        assert await hub.syncs.cancel(asks, accepted.sync) == (1, 2)


async def test_bytes_sent_are_counted_however_the_delivery_ends(tmp_path: Path) -> None:
    async with open_rooms(tmp_path) as hub:
        asks = await add_terminal(hub, await add_account(hub))
        await publish(hub, tmp_path)
        accepted = await hub.syncs.accept(asks, sync_to(asks))
        owed = await claim(hub, asks)
        assert owed is not None
        await hub.syncs.cancel(asks, accepted.sync)
        await hub.deliveries.add_sent(owed.delivery, 88)
        row = await row_of(hub, asks, accepted.sync)
        assert (row.state, row.sent) == ("cancelled", 88)


async def test_a_command_that_only_asks_does_not_take_a_receiver_out_of_all(tmp_path: Path) -> None:
    async with open_rooms(tmp_path) as hub:
        account = await add_account(hub)
        asks = await add_terminal(hub, account, "Asks")
        receiver = await add_terminal(hub, account, "Receiver")
        again = await hub.accounts.count_login(receiver.terminal_id, receiver.device, "b", receives=False)
        assert not again.receives
        await publish(hub, tmp_path)
        rows = await hub.syncs.plan(asks, Plan(id=1, program="hello", everyone=True))
        assert [row.name for row in rows] == ["Receiver"]


@pytest.mark.parametrize("restart", [False, True])
async def test_an_installation_whose_terminal_has_gone_says_so_until_it_is_back(restart: bool, tmp_path: Path) -> None:
    async with open_rooms(tmp_path) as hub:
        asks = await add_terminal(hub, await add_account(hub))
        await publish(hub, tmp_path)
        accepted = await hub.syncs.accept(asks, sync_to(asks))
        await begin_installing(hub, asks)
        if not restart:
            await hub.deliveries.terminal_left(asks.terminal_id, asks.connection)
    async with open_rooms(tmp_path) as hub:
        row = await row_of(hub, asks, accepted.sync)
        assert (row.state, row.reason) == ("installing", "offline")
        await say_inventory(hub, asks, installing=(row.delivery,))
        row = await row_of(hub, asks, accepted.sync)
        assert (row.state, row.reason) == ("installing", "")
