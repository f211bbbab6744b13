"""Revoking, disabling, a new password, a copied key and a bad posture, over real sockets against a real hub.

Everything is to have come about within 5 s of the command; the tests wait no longer than that.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from hub.admin import ask
from protocol import codec, keys, limits, messages
from protocol.messages import AnyMessage
from tests.harness.fleets import until
from tests.harness.hubs import PASSWORD, RunningHub, hub_settings, running_hub
from tests.harness.installers import make_installer
from tests.harness.raw import RawTerminal, raw_terminal
from tests.harness.uploads import PackedFile

WITHIN_SECONDS = 5.0
FINDING = messages.FindingRow(program="hello", file="bin/hello", rule="eicar")


async def two_logged_in(hub: RunningHub, stack: AsyncExitStack) -> tuple[RawTerminal, RawTerminal]:
    """Two terminals of ada's, "Asks" and "Target", that are logged in and receive until the stack is left."""
    both = []
    for name in ("Asks", "Target"):
        async with raw_terminal(hub) as enrolling:
            await enrolling.enrol("ada", name=name)
        terminal = await stack.enter_async_context(raw_terminal(hub, like=enrolling))
        await terminal.login()
        both.append(terminal)
    return both[0], both[1]


@asynccontextmanager
async def account_of_two(tmp_path: Path, **settings: Any) -> AsyncIterator[tuple[RunningHub, RawTerminal, RawTerminal]]:
    """A hub, and an account with two terminals that are logged in and receive: "Asks" and "Target"."""
    async with running_hub(tmp_path, **settings) as hub, AsyncExitStack() as stack:
        await hub.add_account("ada")
        asks, target = await two_logged_in(hub, stack)
        yield hub, asks, target


async def command(hub: RunningHub, words: str, **arguments: Any) -> Any:
    """Have the operator's command carried out as its process would, over the admin socket where one listens."""
    from hub.admin import perform

    return await perform(hub.hub, words, arguments)


async def ended_with(terminal: RawTerminal) -> tuple[int, list[str]]:
    """How the hub ended the socket, at once: close code, and the codes of the errors before it."""
    async with asyncio.timeout(WITHIN_SECONDS):
        code, _, heard = await terminal.closed()
    return code, [one.code for one in heard if isinstance(one, messages.Error)]


async def login_refused(hub: RunningHub, like: RawTerminal, *, key: keys.SigningKey | None = None) -> list[str]:
    async with raw_terminal(hub, like=like) as again:
        again.signing_key = key or like.signing_key
        await again.hello()
        await again.say(again.login_message())
        code, errors = await ended_with(again)
    assert code == 1008
    return errors


async def heard_of(terminal: RawTerminal, wanted: Callable[[AnyMessage], bool]) -> AnyMessage:
    async with asyncio.timeout(WITHIN_SECONDS):
        while True:
            message = await terminal.hear_any()
            if wanted(message):
                return message


def is_gone(terminal: str) -> Callable[[AnyMessage], bool]:
    return lambda message: isinstance(message, messages.DeviceChanges) and terminal in message.gone


def stands(terminal: str, standing: str) -> Callable[[AnyMessage], bool]:
    def is_shown(message: AnyMessage) -> bool:
        rows = message.changed if isinstance(message, messages.DeviceChanges) else ()
        return any((row.terminal, row.standing) == (terminal, standing) for row in rows)

    return is_shown


async def synced(hub: RunningHub, asks: RawTerminal, tmp_path: Path, key: str = "k-1") -> messages.SyncAccepted:
    path = await asyncio.to_thread(make_installer, tmp_path, "deb")
    published = await hub.publish(path)
    await asks.say(messages.Sync(id=5, request_key=key, program=published.program, everyone=True))
    return await asks.hear(messages.SyncAccepted)


async def state_of(asks: RawTerminal, sync: str) -> tuple[str, str]:
    await asks.say(messages.SyncRequest(id=6, sync=sync))
    (target,) = (await asks.hear(messages.SyncResult)).targets
    return target.state, target.reason


async def waits_because(asks: RawTerminal, sync: str, reason: str) -> None:
    """Hear that the one target of a sync stays queued, and why."""

    def is_told(message: AnyMessage) -> bool:
        rows = message.targets if isinstance(message, messages.SyncUpdate) and message.sync == sync else ()
        return any((row.state, row.reason) == ("queued", reason) for row in rows)

    await heard_of(asks, is_told)


# --- revoked ------------------------------------------------------------------------------------------------------


async def test_a_revoked_device_is_closed_out_its_deliveries_end_and_the_others_see_it_gone(tmp_path: Path) -> None:
    async with account_of_two(tmp_path) as (hub, asks, target):
        accepted = await synced(hub, asks, tmp_path)
        await target.hear(messages.Offer)
        await command(hub, "device revoke", account="ada", device="Target")
        assert await ended_with(target) == (4003, ["revoked"])
        await heard_of(asks, is_gone(target.terminal))
        assert await state_of(asks, accepted.sync) == ("denied", "revoked")
        assert await login_refused(hub, target) == ["revoked"]
        assert await login_refused(hub, target, key=keys.SigningKey.generate()) == ["unknown-terminal"]
        async with raw_terminal(hub, like=target) as enrolling:
            await enrolling.hello()
            await enrolling.say(enrolling.enrol_message("ada"))
            assert await ended_with(enrolling) == (1008, ["revoked"])
        async with raw_terminal(hub) as anew:
            assert (await anew.enrol("ada", name="Target")).name == "Target"


async def test_what_a_revoked_device_asked_of_others_ends_and_what_others_asked_goes_on(tmp_path: Path) -> None:
    async with account_of_two(tmp_path) as (hub, asks, target), raw_terminal(hub) as other:
        await other.enrol("ada", name="Other")
        asked = await synced(hub, asks, tmp_path)
        request = messages.Sync(id=5, request_key="the-same", program=asked.program, targets=(target.terminal,))
        await other.say(request)
        follows = await other.hear(messages.SyncAccepted)
        await command(hub, "device revoke", account="ada", device="Asks")
        assert await ended_with(asks) == (4003, ["revoked"])
        assert await state_of(other, asked.sync) == ("denied", "revoked")
        assert (await state_of(other, follows.sync))[0] in ("queued", "offered")


async def test_a_terminal_revokes_another_and_without_the_right_it_does_not(tmp_path: Path) -> None:
    async with account_of_two(tmp_path) as (hub, asks, target):
        await command(hub, "device right", account="ada", device="Asks", right="approve", allowed=False)
        await asks.say(messages.Revoke(id=9, terminal=target.terminal))
        assert (await asks.hear(messages.Error)).code == "not-allowed"
        await command(hub, "device right", account="ada", device="Asks", right="approve", allowed=True)
        await asks.say(messages.Revoke(id=10, terminal=target.terminal))
        assert (await asks.hear(messages.Done)).re == 10
        assert await ended_with(target) == (4003, ["revoked"])
        await asks.say(messages.Revoke(id=11, terminal=target.terminal))  # the answer to the first was lost
        assert (await asks.hear(messages.Done)).re == 11
        assert len([row for row in await command(hub, "audit") if row["action"] == "device.revoke"]) == 1


async def test_one_that_takes_nothing_more_from_its_socket_is_cut_as_soon(tmp_path: Path) -> None:
    async with account_of_two(tmp_path) as (hub, _, target):
        target.socket.transport.pause_reading()
        for _ in range(limits.OUTBOUND_CONTROL_MESSAGES // 2):  # more than the kernel takes
            hub.socket_of(target.terminal).queue(bytes(limits.MESSAGE_BYTES))
        await command(hub, "device revoke", account="ada", device="Target")
        await until(lambda: hub.hub.presence.socket_of(target.terminal) is None, within_seconds=WITHIN_SECONDS)


async def test_an_upload_under_way_ends_with_its_terminal(tmp_path: Path) -> None:
    async with account_of_two(tmp_path) as (hub, _, target):
        await command(hub, "account right", name="ada", right="publish", allowed=True)
        request = messages.Publish(
            id=3, upload="u-1", file_name="x.deb", object=bytes(32), size=100_000, chunks=2, stored_size=100_000,
            pages=1, manifest=bytes(32), chunking=messages.Chunking(algorithm="x", minimum=1, average=2, maximum=3),
        )  # fmt: skip
        await target.say(request)
        await target.hear(messages.PublishAccepted)
        assert len(hub.hub.uploads._running) == 1
        await command(hub, "device revoke", account="ada", device="Target")
        assert await ended_with(target) == (4003, ["revoked"])
        await until(lambda: not hub.hub.uploads._running, within_seconds=WITHIN_SECONDS)


async def test_what_is_being_published_when_its_terminal_is_revoked_is_not_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with account_of_two(tmp_path) as (hub, _, target):
        await command(hub, "account right", name="ada", right="publish", allowed=True)
        scan = hub.hub.scanning.scan

        async def revoked_meanwhile(*arguments: Any) -> Any:
            await command(hub, "device revoke", account="ada", device="Target")
            return await scan(*arguments)

        monkeypatch.setattr(hub.hub.scanning, "scan", revoked_meanwhile)
        file = PackedFile(await asyncio.to_thread(make_installer, tmp_path, "deb"))
        await target.say(file.publish())
        await target.hear(messages.PublishAccepted)
        await target.say(*file.pages())
        for run in (await target.hear(messages.Want)).runs:
            await target.say(file.frame(run))
        assert await ended_with(target) == (4003, ["revoked"])
        await until(lambda: not hub.hub.uploads._running, within_seconds=WITHIN_SECONDS)
        assert await hub.hub.catalogue.listing() == []
        assert not hub.hub.objects.is_there(file.digest)


async def test_a_command_given_while_the_hub_is_down_counts_at_the_next_start(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as hub:
        await hub.add_account("ada")
        async with raw_terminal(hub) as terminal, raw_terminal(hub) as other:
            await terminal.enrol("ada", name="Target")
            await other.enrol("ada", name="Other")
        await hub.stop()
        settings = hub_settings(tmp_path / "hub")
        await ask(settings, "device revoke", {"account": "ada", "device": "Target"})
        await ask(settings, "account disable", {"name": "ada"})
        await hub.start()
        assert await login_refused(hub, terminal) == ["revoked"]
        assert await login_refused(hub, other) == ["account-disabled"]


async def test_a_poke_that_is_lost_is_made_up_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with account_of_two(tmp_path) as (hub, _, target):
        with monkeypatch.context() as losing:
            losing.setattr(hub.hub.pokes, "poke", lambda concern, terminal: None)
            await command(hub, "device revoke", account="ada", device="Target")
        assert await ended_with(target) == (4003, ["revoked"])


async def test_what_is_revoked_between_its_look_up_and_its_admission_is_not_admitted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with account_of_two(tmp_path) as (hub, asks, target):
        find = hub.hub.accounts.find

        async def revoked_just_after(terminal: str) -> Any:
            found = await find(terminal)
            monkeypatch.undo()
            await command(hub, "device revoke", account="ada", device="Target")
            return found

        monkeypatch.setattr(hub.hub.accounts, "find", revoked_just_after)
        assert await login_refused(hub, target) == ["revoked"]
        assert await ended_with(target) == (4003, ["revoked"])
        await heard_of(asks, is_gone(target.terminal))


async def test_what_is_revoked_just_after_it_was_counted_is_closed_out_and_stays_off_the_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with account_of_two(tmp_path) as (hub, _, target):
        count_login = hub.hub.accounts.count_login

        async def revoked_just_after(*arguments: Any, **named: Any) -> Any:
            terminal = await count_login(*arguments, **named)
            monkeypatch.undo()
            await command(hub, "device revoke", account="ada", device="Target")
            return terminal

        monkeypatch.setattr(hub.hub.accounts, "count_login", revoked_just_after)
        async with raw_terminal(hub, like=target) as again:
            await again.login(inventory=False)
            assert await ended_with(again) == (4003, ["revoked"])
        roster = hub.hub.presence.rosters[next(iter(hub.hub.presence.rosters))]
        assert [row.name for row in roster.rows()] == ["Asks"]


async def test_a_target_revoked_while_a_sync_is_accepted_is_refused_or_denied_and_never_owed(tmp_path: Path) -> None:
    async with account_of_two(tmp_path) as (hub, asks, target):
        path = await asyncio.to_thread(make_installer, tmp_path, "deb")
        program = (await hub.publish(path)).program
        sync = messages.Sync(id=5, request_key="k", program=program, targets=(target.terminal,))
        await asyncio.gather(asks.say(sync), command(hub, "device revoke", account="ada", device="Target"))
        answer = await heard_of(asks, lambda one: isinstance(one, (messages.SyncAccepted, messages.Error)))
        if isinstance(answer, messages.SyncAccepted):
            assert await state_of(asks, answer.sync) == ("denied", "revoked")
        else:
            assert isinstance(answer, messages.Error) and answer.code == "unknown-terminal"


async def test_what_is_on_its_way_to_a_device_that_may_not_receive_any_more_is_held_and_comes_later(
    tmp_path: Path,
) -> None:
    async with account_of_two(tmp_path) as (hub, asks, target):
        accepted = await synced(hub, asks, tmp_path)
        offer = await target.hear(messages.Offer)
        await target.say(messages.Want(delivery=offer.delivery, runs=(messages.Run(0, offer.chunks),)))
        await target.hear(messages.Chunks)
        await command(hub, "device right", account="ada", device="Target", right="receive", allowed=False)
        assert (await target.hear(messages.Withdraw)).delivery == offer.delivery
        await waits_because(asks, accepted.sync, "not-allowed")
        await target.say(messages.State(delivery=offer.delivery, state="installing"))
        assert (await target.hear(messages.Withdraw)).delivery == offer.delivery
        await command(hub, "device right", account="ada", device="Target", right="receive", allowed=True)
        assert (await target.hear(messages.Offer)).attempt == offer.attempt


# --- whole accounts -----------------------------------------------------------------------------------------------


async def test_a_disabled_account_is_closed_out_and_comes_back_with_its_keys(tmp_path: Path) -> None:
    async with account_of_two(tmp_path) as (hub, asks, target):
        async with raw_terminal(hub) as bystander:
            await hub.add_account("bob")
            await bystander.enrol("bob")
            await command(hub, "account disable", name="ada")
            for one in (asks, target):
                assert await ended_with(one) == (4003, ["account-disabled"])
                assert await login_refused(hub, one) == ["account-disabled"]
            async with raw_terminal(hub) as enrolling:
                await enrolling.hello()
                await enrolling.say(enrolling.enrol_message("ada"))
                code, errors = await ended_with(enrolling)
                assert (code, len(errors)) == (1008, 1)
            await bystander.say(messages.DevicesRequest(id=3))
            assert (await bystander.hear(messages.Devices)).devices
        await command(hub, "account enable", name="ada")
        async with raw_terminal(hub, like=target) as again:
            assert (await again.login()).terminal == target.terminal


async def test_a_new_password_closes_everything_out_and_the_old_one_is_worth_nothing(tmp_path: Path) -> None:
    async with account_of_two(tmp_path) as (hub, asks, target):
        await command(hub, "account password", name="ada", password="another good one")
        for one in (asks, target):
            assert await ended_with(one) == (4003, ["revoked"])
        async with raw_terminal(hub) as enrolling:
            await enrolling.hello()
            await enrolling.say(enrolling.enrol_message("ada", password=PASSWORD))
            assert await ended_with(enrolling) == (1008, ["not-authorised"])
        async with raw_terminal(hub) as enrolling:
            assert (await enrolling.enrol("ada", password="another good one", name="Target")).name == "Target"


async def test_a_password_that_is_changed_while_it_is_evaluated_lets_nobody_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with account_of_two(tmp_path) as (hub, _, _):
        check_password = hub.hub.accounts.check_password

        async def changed_just_after(*arguments: Any) -> Any:
            account = await check_password(*arguments)
            await command(hub, "account password", name="ada", password="another good one")
            return account

        monkeypatch.setattr(hub.hub.accounts, "check_password", changed_just_after)
        async with raw_terminal(hub) as enrolling:
            await enrolling.hello()
            await enrolling.say(enrolling.enrol_message("ada"))
            assert await ended_with(enrolling) == (1008, ["not-authorised"])


async def test_a_right_that_is_taken_away_is_told_at_once_and_counts_at_once(tmp_path: Path) -> None:
    async with account_of_two(tmp_path) as (hub, asks, target):
        await command(hub, "account right", name="ada", right="receive", allowed=False)
        standing = await heard_of(target, lambda one: isinstance(one, messages.Standing))
        assert isinstance(standing, messages.Standing)
        assert (standing.may_receive, standing.may_initiate, standing.reason) == (False, True, "not-allowed")
        accepted = await synced(hub, asks, tmp_path)
        await waits_because(asks, accepted.sync, "not-allowed")
        await command(hub, "account right", name="ada", right="receive", allowed=True)
        await target.hear(messages.Offer)


# --- the clone alarm ----------------------------------------------------------------------------------------------


async def login_as_run(terminal: RawTerminal, run: bytes) -> None:
    await terminal.hello()
    await terminal.say(structs.replace(terminal.login_message(), run=run))
    await terminal.hear(messages.Welcome)


async def test_a_run_that_comes_back_after_it_was_replaced_raises_the_alarm_until_the_owner_clears_it(
    tmp_path: Path,
) -> None:
    async with account_of_two(tmp_path) as (hub, asks, target), AsyncExitStack() as stack:
        for run in (b"1" * 16, b"2" * 16, b"1" * 16):
            copy = await stack.enter_async_context(raw_terminal(hub, like=target))
            await login_as_run(copy, run)
        await heard_of(asks, stands(target.terminal, "cloned"))
        (entry,) = [one for one in await command(hub, "device list", account="ada") if one["name"] == "Target"]
        assert (entry["standing"], entry["cloned_at"] > time.time() - 60) == ("cloned", True)
        assert (await command(hub, "device clear", account="ada", device="Target"))["cleared"]
        await heard_of(asks, stands(target.terminal, ""))
        again = await stack.enter_async_context(raw_terminal(hub, like=target))
        await login_as_run(again, b"1" * 16)  # the one copy that is left reconnects
        await again.say(messages.DevicesRequest(id=4))
        devices = await heard_of(again, lambda one: isinstance(one, messages.Devices) and one.re == 4)
        assert isinstance(devices, messages.Devices)
        assert {row.standing for row in devices.devices} == {""}


# --- posture ------------------------------------------------------------------------------------------------------


async def rules_of(terminal: RawTerminal) -> messages.PostureRequest:
    """Take the rules as a terminal that has them already, and hear what is asked of it."""
    rules = await terminal.hear(messages.Rules)
    await terminal.say(messages.Received(delivery=rules.delivery))
    request = await terminal.hear(messages.PostureRequest)
    assert request.rules == rules.object
    return request


def posture_of(
    terminal: RawTerminal, request: messages.PostureRequest, *, key: keys.SigningKey | None = None, **fields: Any
) -> messages.Posture:
    assert terminal.challenge is not None
    given: dict[str, Any] = {
        "rules": request.rules, "nonce": request.nonce, "engine": "test", "began_at": time.time(), "seconds": 1.0,
        "programs": 1, "files": 1, "bytes": 1,
    }  # fmt: skip
    report = codec.encode_report(messages.PostureReport(**given | fields))
    signed = keys.posture_bytes(hub_key=terminal.challenge.hub_key, terminal=terminal.terminal, report=report)
    return messages.Posture(report=report, signature=(key or terminal.signing_key).sign(signed))


@asynccontextmanager
async def hub_that_requires(tmp_path: Path) -> AsyncIterator[tuple[RunningHub, RawTerminal, RawTerminal]]:
    """Both roles require a posture; the rules are out, and nobody has reported."""
    demands = {"posture_targets": "require", "posture_initiators": "require"}
    async with running_hub(tmp_path, **demands) as hub, AsyncExitStack() as stack:
        await hub.add_account("ada")
        await until(lambda: hub.hub.handed_rules.current is not None)
        asks, target = await two_logged_in(hub, stack)
        yield hub, asks, target


async def test_a_terminal_gets_the_rules_whole_reports_and_then_it_may(tmp_path: Path) -> None:
    async with hub_that_requires(tmp_path) as (hub, asks, target):
        standing = await asks.hear(messages.Standing)
        assert (standing.may_receive, standing.may_initiate, standing.reason) == (False, False, "posture-failed")
        rules = await asks.hear(messages.Rules)
        assert rules.size <= limits.RULES_BYTES
        for _ in range(rules.pages):
            assert (await asks.hear(messages.ManifestPage)).object == rules.object
        await asks.say(messages.Want(delivery=rules.delivery, runs=(messages.Run(0, rules.chunks),)))
        frames = 0
        came = 0
        while came < rules.chunks:
            frame = await asks.hear(messages.Chunks)
            came, frames = came + frame.count, frames + 1
            await asks.say(messages.Progress(delivery=rules.delivery, frames=frames, done=0))
        await asks.say(messages.Received(delivery=rules.delivery))
        request = await asks.hear(messages.PostureRequest)
        await asks.say(posture_of(asks, request))
        assert await asks.hear(messages.Standing) == messages.Standing(may_receive=True, may_initiate=True)
        accepted = await synced(hub, asks, tmp_path)
        await target.say(posture_of(target, await rules_of(target)))
        await target.hear(messages.Offer)
        assert accepted.targets[0].state == "queued"


async def test_one_with_findings_is_quarantined_for_all_to_see_and_a_clean_report_lets_it_out(tmp_path: Path) -> None:
    async with hub_that_requires(tmp_path) as (hub, asks, target):
        await asks.say(posture_of(asks, await rules_of(asks)))
        request = await rules_of(target)
        await target.say(posture_of(target, request, findings=(FINDING,), findings_in_all=1))
        standing = await target.hear(messages.Standing)
        assert standing.quarantined and standing.hint
        await heard_of(asks, stands(target.terminal, "quarantined"))
        accepted = await synced(hub, asks, tmp_path)
        await waits_because(asks, accepted.sync, "posture-failed")
        await target.say(messages.Sync(id=8, request_key="q", program="hello", everyone=True))
        assert (await target.hear(messages.Error)).code == "posture-failed"
        await target.say(messages.Revoke(id=9, terminal=asks.terminal))
        assert (await target.hear(messages.Error)).code == "posture-failed"
        await target.say(posture_of(target, request))
        await target.hear(messages.Offer)
        await heard_of(asks, stands(target.terminal, ""))


Wrong = Callable[[RawTerminal, RawTerminal, messages.PostureRequest], Awaitable[None]]


async def forged(target: RawTerminal, _: RawTerminal, request: messages.PostureRequest) -> None:
    await target.say(posture_of(target, request, key=keys.SigningKey.generate()))


async def of_another_terminal(target: RawTerminal, other: RawTerminal, request: messages.PostureRequest) -> None:
    await target.say(posture_of(other, request))


async def malformed(target: RawTerminal, _: RawTerminal, request: messages.PostureRequest) -> None:
    posture = posture_of(target, request)
    signed = keys.posture_bytes(hub_key=target.challenge.hub_key, terminal=target.terminal, report=b"\xc1")  # type: ignore[union-attr]
    await target.say(structs.replace(posture, report=b"\xc1", signature=target.signing_key.sign(signed)))


async def oversized(target: RawTerminal, _: RawTerminal, request: messages.PostureRequest) -> None:
    too_long = bytes(limits.POSTURE_BYTES + 1)
    await target.say(structs.replace(posture_of(target, request), report=too_long))


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        (forged, "not-authorised"),
        (of_another_terminal, "not-authorised"),
        (malformed, "bad-msgpack"),
        (oversized, "bad-field"),
    ],
)
async def test_a_wrong_posture_ends_its_own_connection_and_harms_nobody(
    wrong: Wrong, code: str, tmp_path: Path
) -> None:
    async with hub_that_requires(tmp_path) as (hub, asks, target):
        await wrong(target, asks, await rules_of(target))
        assert await ended_with(target) == (4001, [code])
        async with raw_terminal(hub, like=target) as again:
            await again.login()
            assert not (await again.hear(messages.Standing)).may_receive
            await again.say(posture_of(again, await rules_of(again)))
            assert (await again.hear(messages.Standing)).may_receive


async def test_a_report_of_an_earlier_connection_is_passed_over(tmp_path: Path) -> None:
    async with hub_that_requires(tmp_path) as (hub, _, target):
        old = posture_of(target, await rules_of(target))
        async with raw_terminal(hub, like=target) as again:
            await again.login()
            assert not (await again.hear(messages.Standing)).may_receive
            request = await rules_of(again)
            await again.say(old, messages.DevicesRequest(id=7))
            heard = await heard_of(again, lambda one: isinstance(one, (messages.Devices, messages.Standing)))
            assert isinstance(heard, messages.Devices)
            await again.say(posture_of(again, request))
            assert (await again.hear(messages.Standing)).may_receive
