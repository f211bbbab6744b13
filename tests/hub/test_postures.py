"""Postures as the hub keeps and judges them: in the session what is refused, in the store what follows."""

import asyncio
from pathlib import Path
from typing import Any, Final

import msgpack
import pytest

from hub import session as brain
from hub.app import Hub
from hub.records import ENDED, RulesObject, StandingFound, Terminal
from hub.session import Close, Session
from protocol import codec, keys, limits, messages
from protocol.errors import BadDataError, RefusedError
from tests.harness.fleets import until
from tests.harness.hubs import running_hub
from tests.harness.raw import raw_terminal
from tests.hub.rooms import add_account, add_terminal, open_rooms, publish
from tests.hub.test_objects import flip_bit
from tests.hub.test_scrub import file_of
from tests.hub.test_session import DEVICE_KEY, HUB_KEY, challenged, feed, hear, login, opened, said, serving, terminal

RULES: Final = RulesObject(digest=b"R" * 32)
OTHER_RULES: Final = RulesObject(digest=b"S" * 32)
WELL: Final = messages.Standing(may_receive=True, may_initiate=True)
HOUR_SECONDS: Final = 3_600.0


def found(scan: RulesObject | None = RULES, standing: messages.Standing = WELL) -> brain.StandingRead:
    return brain.StandingRead(StandingFound(standing=standing, scan=scan))


def report(nonce: bytes, **fields: Any) -> messages.PostureReport:
    given: dict[str, Any] = {
        "rules": RULES.digest, "nonce": nonce, "engine": "test", "began_at": 1.0, "seconds": 1.0, "programs": 1,
        "files": 1, "bytes": 1,
    }  # fmt: skip
    return messages.PostureReport(**given | fields)


FINDING: Final = messages.FindingRow(program="hello", file="bin/hello", rule="eicar")


def signed(
    data: bytes, *, key: keys.SigningKey = DEVICE_KEY, hub_key: bytes = HUB_KEY.public, terminal_id: str = "t-1"
) -> messages.Posture:
    signature = key.sign(keys.posture_bytes(hub_key=hub_key, terminal=terminal_id, report=data))
    return messages.Posture(report=data, signature=signature)


def asked() -> tuple[Session, messages.PostureRequest]:
    """A session whose terminal has the rules and was asked for a report."""
    session = opened()
    hear(session, messages.Inventory(programs=()))
    feed(session, found())
    feed(session, brain.InventorySaved(), brain.RulesStarted("rules-1"))
    actions = hear(session, messages.Received(delivery="rules-1"))
    (request,) = (one for one in said(actions) if isinstance(one, messages.PostureRequest))
    return session, request


# --- the session --------------------------------------------------------------------------------------------------


def test_the_rules_go_before_any_installer_and_the_report_is_asked_for_once_they_are_there() -> None:
    session = opened()
    hear(session, messages.Inventory(programs=()))
    assert feed(session, found()) == []
    assert feed(session, brain.InventorySaved()) == [brain.StartRules("rules-1", RULES)]
    assert feed(session, brain.RulesStarted("rules-1")) == []
    want = messages.Want(delivery="rules-1", runs=(messages.Run(0, 1),))
    assert hear(session, want) == [brain.FeedWant(want)]
    assert feed(session, brain.Owing()) == []
    stop, request, claim = hear(session, messages.Received(delivery="rules-1"))
    assert (stop, claim) == (brain.StopTransfer(), brain.Claim())
    assert isinstance(request, brain.Send) and isinstance(request.message, messages.PostureRequest)
    assert (request.message.rules, len(request.message.nonce)) == (RULES.digest, limits.NONCE_BYTES)


def test_a_terminal_that_does_not_receive_is_sent_no_rules() -> None:
    session = opened(receives=False)
    assert feed(session, found(), brain.Owing()) == []


REFUSED_RULES: Final = brain.Received(messages.Refused(delivery="rules-1", reason="too-large"))
BROKEN_RULES: Final = brain.TransferBroken("rules-1", "damaged-object", "damaged", offered=False)


@pytest.mark.parametrize("end", [REFUSED_RULES, BROKEN_RULES, brain.Ticked(0.0)], ids=lambda end: type(end).__name__)
def test_rules_that_are_refused_broken_or_never_taken_hold_nothing_up(end: brain.Event) -> None:
    session = opened()
    hear(session, messages.Inventory(programs=()))
    feed(session, found(), brain.InventorySaved(), brain.RulesStarted("rules-1"))
    actions = feed(session, end, now=10_000.0)
    assert actions[-1] == brain.Claim()
    assert not [one for one in said(actions) if isinstance(one, messages.PostureRequest)]
    assert not [one for one in actions if isinstance(one, brain.Report)]


async def test_rules_that_a_terminal_does_not_take_are_a_line_of_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with asyncio.timeout(10), running_hub(tmp_path, posture_targets="report") as hub:
        await hub.add_account("ada")
        await until(lambda: hub.hub.handed_rules.current is not None)
        async with raw_terminal(hub) as enrolled:
            await enrolled.enrol("ada")
        async with raw_terminal(hub, like=enrolled) as one:
            await one.login()
            rules = await one.hear(messages.Rules)
            await one.say(messages.Refused(delivery=rules.delivery, reason="bad-rules", detail="line 1\nis wrong"))
            await until(lambda: "does not take the rules" in caplog.text)
    assert "('bad-rules'): 'line 1\\nis wrong'" in caplog.text


def test_a_good_report_is_kept_and_another_answer_to_the_same_request_too() -> None:
    session, request = asked()
    first = report(request.nonce, findings=(FINDING,), findings_in_all=1)
    for one in (first, report(request.nonce)):
        posture = signed(codec.encode_report(one))
        assert hear(session, posture) == [brain.SavePosture(posture, one)]


def test_a_report_that_answers_an_older_request_or_none_changes_nothing() -> None:
    session, request = asked()
    assert hear(session, signed(codec.encode_report(report(b"n" * 32)))) == []
    assert hear(session, signed(codec.encode_report(report(request.nonce, rules=OTHER_RULES.digest)))) == []
    fresh = opened()
    assert hear(fresh, signed(codec.encode_report(report(request.nonce)))) == []
    assert hear(opened(), signed(codec.encode_report(report(bytes(32))))) == []


def wrong_postures(nonce: bytes) -> dict[str, tuple[messages.Posture, str]]:
    good = codec.encode_report(report(nonce))
    changed = messages.Posture(report=good + b"\0", signature=signed(good).signature)
    deep: Any = 1
    for _ in range(20):
        deep = [deep]
    return {
        "forged": (signed(good, key=keys.SigningKey.generate()), "not-authorised"),
        "another terminal's": (signed(good, terminal_id="t-2"), "not-authorised"),
        "for another hub": (signed(good, hub_key=bytes(32)), "not-authorised"),
        "changed after signing": (changed, "not-authorised"),
        "not msgpack": (signed(b"\xc1"), "bad-msgpack"),
        "no map": (signed(msgpack.packb([1])), "bad-msgpack"),
        "too deep": (signed(msgpack.packb({"rules": deep})), "bad-msgpack"),
        "a field too few": (signed(msgpack.packb({"nonce": nonce})), "bad-field"),
        "a wrong type": (signed(msgpack.packb(msgpack.unpackb(good) | {"files": "many"})), "bad-field"),
        "too many findings": (
            signed(msgpack.packb(msgpack.unpackb(good) | {"findings": [{"file": "f", "rule": "r"}] * 65})), "bad-field"
        ),
    }  # fmt: skip


@pytest.mark.parametrize("name", wrong_postures(bytes(32)))
def test_a_wrong_report_ends_the_connection_and_nothing_of_it_is_kept(name: str) -> None:
    session, request = asked()
    posture, code = wrong_postures(request.nonce)[name]
    *told, close = hear(session, posture)
    assert [one.code for one in said(told) if isinstance(one, messages.Error)] == [code]
    assert close == Close(brain.CLOSE_VIOLATION, code)


def test_it_is_asked_again_when_rules_change_and_otherwise_an_hour_later_at_the_earliest() -> None:
    session, _ = asked()
    feed(session, brain.Claimed(None))
    assert feed(session, found(), now=HOUR_SECONDS - 1) == [brain.Claim()]
    feed(session, brain.Claimed(None))
    assert feed(session, found(OTHER_RULES), now=HOUR_SECONDS - 1) == [brain.StartRules("rules-2", OTHER_RULES)]
    hear(session, messages.Received(delivery="rules-2"))
    feed(session, brain.Claimed(None))
    assert feed(session, found(OTHER_RULES), now=3 * HOUR_SECONDS) == [brain.StartRules("rules-3", OTHER_RULES)]


def test_standing_is_told_when_it_changes_and_only_then() -> None:
    session = opened()
    assert feed(session, found(None)) == []
    bad = messages.Standing(may_receive=False, may_initiate=True, reason="not-allowed", detail="d", hint="h")
    assert said(feed(session, found(None, bad))) == [bad]
    assert feed(session, found(None, bad)) == []
    assert said(feed(session, found(None))) == [WELL]


def test_what_is_under_way_is_held_when_the_terminal_may_not_receive_any_more() -> None:
    session = serving()
    bad = messages.Standing(may_receive=False, may_initiate=True, reason="not-allowed", detail="d", hint="h")
    *told, hold, claim = feed(session, found(None, bad))
    assert said(told) == [bad, messages.Withdraw(delivery="d-1")]
    assert brain.StopTransfer() in told
    assert (hold, claim) == (brain.Hold("not-allowed"), brain.Claim())


@pytest.mark.parametrize("code", ENDED)
def test_one_that_is_to_leave_hears_why_and_is_closed_with_4003(code: str) -> None:
    session = opened()
    assert feed(session, brain.StandingChanged()) == [brain.ReadStanding()]
    error, close = feed(session, brain.StandingRead(StandingFound(standing=WELL, ended=code)))
    assert said([error])[0].code == code  # type: ignore[attr-defined]
    assert close == Close(4003, code)
    assert hear(session, messages.History(id=1)) == []


def test_standing_is_read_after_the_welcome_whatever_was_poked_before() -> None:
    session, challenge = challenged()
    hear(session, login(challenge))
    assert feed(session, brain.StandingChanged()) == []
    feed(session, brain.TerminalFound(terminal()))
    assert feed(session, brain.Admitted(terminal()))[-1] == brain.ReadStanding()


# --- the store ----------------------------------------------------------------------------------------------------


async def save(hub: Hub, me: Terminal, *, connection: int | None = None, **fields: Any) -> str:
    one = report(bytes(32), **fields)
    posture = messages.Posture(report=codec.encode_report(one), signature=bytes(64))
    return await hub.postures.save(me.terminal_id, me.connection if connection is None else connection, posture, one)


async def actions(hub: Hub) -> list[str]:
    rows = await hub.store.transaction(lambda transaction: transaction.rows("audit_page", after=0, count=1_000))
    return [row["action"].decode() for row in rows if row["action"].startswith(b"posture.")]


async def test_findings_quarantine_a_terminal_and_a_clean_report_releases_it(tmp_path: Path) -> None:
    async with open_rooms(tmp_path, posture_targets="require") as hub:
        account = await add_account(hub)
        asks, target = await add_terminal(hub, account, "Asks"), await add_terminal(hub, account, "Phone")
        await save(hub, asks)
        assert await save(hub, target, findings=(FINDING,), findings_in_all=1)
        assert not await save(hub, target, findings=(FINDING,), findings_in_all=1)
        await publish(hub, tmp_path)
        sync = messages.Sync(id=1, request_key="k-1", program="hello", targets=(target.terminal_id,))
        accepted = await hub.syncs.accept(asks, sync)
        assert await hub.deliveries.claim(target.terminal_id, target.connection) is None
        (row,) = await hub.syncs.targets(asks, accepted.sync)
        assert (row.state, row.reason) == ("queued", "posture-failed")
        with pytest.raises(RefusedError) as refused:
            await hub.syncs.accept(target, sync)
        assert refused.value.code == "posture-failed"
        assert [row.standing for row in await hub.accounts.device_rows(account)] == ["", "quarantined"]
        assert await save(hub, target)
        assert await hub.deliveries.claim(target.terminal_id, target.connection) is not None
        assert [row.standing for row in await hub.accounts.device_rows(account)] == ["", ""]
        assert await actions(hub) == ["posture.quarantine", "posture.release"]


async def test_a_report_that_is_not_complete_quarantines_and_lets_nobody_out(tmp_path: Path) -> None:
    async with open_rooms(tmp_path, posture_targets="require") as hub:
        target = await add_terminal(hub, await add_account(hub))
        assert await save(hub, target, findings=(FINDING,), complete=False)
        assert not await save(hub, target, complete=False)  # it may have ended before it came to the finding
        assert (await hub.accounts.standing(target.terminal_id)).standing.quarantined
        assert await save(hub, target) == "posture.release"
        assert not (await hub.accounts.standing(target.terminal_id)).standing.quarantined


async def test_findings_of_rules_that_do_not_count_at_this_hub_quarantine_nobody(tmp_path: Path) -> None:
    async with open_rooms(tmp_path, posture_targets="require", scan_ignore=("eicar",)) as hub:
        target = await add_terminal(hub, await add_account(hub))
        assert not await save(hub, target, findings=(FINDING, FINDING), findings_in_all=2)
        assert (await hub.accounts.standing(target.terminal_id)).standing == WELL
        assert await save(hub, target, findings=(FINDING,), findings_in_all=2) == "posture.quarantine"  # one unseen
        other = messages.FindingRow(program="hello", file="bin/hello", rule="other")
        assert not await save(hub, target, findings=(FINDING, other), findings_in_all=2)
        assert await save(hub, target, findings=(FINDING,)) == "posture.release"


async def test_under_report_findings_are_kept_and_decide_nothing(tmp_path: Path) -> None:
    async with open_rooms(tmp_path, posture_targets="report", posture_initiators="report") as hub:
        account = await add_account(hub)
        target = await add_terminal(hub, account)
        assert not await save(hub, target, findings=(FINDING,), findings_in_all=1)
        standing = (await hub.accounts.standing(target.terminal_id)).standing
        assert standing == WELL
        assert [row.standing for row in await hub.accounts.device_rows(account)] == [""]
        (entry,) = await hub.revocation.listing("ada")
        assert (entry.posture_findings, entry.posture_complete, entry.posture_at > 0) == (1, True, True)
        assert await actions(hub) == []


async def test_findings_beyond_the_rows_count_and_so_do_rows_that_are_not_counted(tmp_path: Path) -> None:
    async with open_rooms(tmp_path, posture_initiators="require") as hub:
        account = await add_account(hub)
        said_so: tuple[dict[str, Any], ...] = ({"findings_in_all": 500}, {"findings": (FINDING,)})
        for number, fields in enumerate(said_so):
            target = await add_terminal(hub, account, f"PC {number}")
            assert await save(hub, target, **fields)
            assert (await hub.accounts.standing(target.terminal_id)).standing.quarantined


async def test_a_report_from_an_older_connection_or_of_a_revoked_terminal_changes_nothing(tmp_path: Path) -> None:
    async with open_rooms(tmp_path, posture_targets="require") as hub:
        account = await add_account(hub)
        target = await add_terminal(hub, account)
        assert not await save(hub, target, connection=target.connection - 1, findings_in_all=1)
        await hub.revocation.revoke("ada", target.terminal_id)
        assert not await save(hub, target, findings_in_all=1)
        row = await hub.store.transaction(
            lambda transaction: transaction.row("posture", terminal_id=target.terminal_id)
        )
        assert row is None


async def test_without_the_report_a_hub_requires_a_role_is_refused_and_the_rules_are_stored_to_scan_with(
    tmp_path: Path,
) -> None:
    async with open_rooms(tmp_path, posture_targets="require") as hub:
        account = await add_account(hub)
        target = await add_terminal(hub, account)
        found_first = await hub.accounts.standing(target.terminal_id)
        assert (found_first.standing.may_receive, found_first.standing.may_initiate) == (False, True)
        assert found_first.scan is None  # there are no rules yet
        await hub.handed_rules.look()
        scan = (await hub.accounts.standing(target.terminal_id)).scan
        assert scan is not None
        assert hub.objects.is_there(scan.digest)
        flip_bit(file_of(hub, scan.digest.hex(), "pack"), 80)
        with pytest.raises(BadDataError):
            b"".join(hub.objects.read_whole(scan.digest))
        await hub.handed_rules.look()
        assert b"".join(hub.objects.read_whole(scan.digest)), "what was damaged is stored again without a restart"
        await save(hub, target, rules=scan.digest)
        found_then = await hub.accounts.standing(target.terminal_id)
        assert (found_then.standing, found_then.scan) == (WELL, None)
