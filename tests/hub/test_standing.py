"""Who may do what, in the rooms without sockets: rights, revoking, disabling, each with its row in the audit log."""

from pathlib import Path

import pytest

from hub.app import Hub, open_hub
from hub.records import Terminal
from protocol import keys, messages
from protocol.errors import LockstepError, NotLoggedInError, UnknownNameError
from tests.hub.rooms import PASSWORD, PC, add_account, add_terminal, enrol_message, open_rooms, publish, say_inventory


async def audit(hub: Hub) -> list[tuple[str, str, str]]:
    """(actor, action, subject) of each row, oldest first."""
    rows = await hub.store.transaction(lambda transaction: transaction.rows("audit_page", after=0, count=1_000))
    return [(row["actor"].decode(), row["action"].decode(), row["subject"].decode()) for row in rows]


async def acts(hub: Hub, *prefixes: str) -> list[str]:
    return [f"{actor} {action} {subject}" for actor, action, subject in await audit(hub) if action.startswith(prefixes)]


async def code_of(work: object) -> str:
    with pytest.raises(LockstepError) as refused:
        await work  # type: ignore[misc]
    return refused.value.code


def ask(*targets: Terminal, key: str = "k-1") -> messages.Sync:
    return messages.Sync(
        id=1, request_key=key, program="hello", targets=tuple(target.terminal_id for target in targets)
    )


async def state_of(hub: Hub, asker: Terminal, sync: str) -> tuple[str, str]:
    (target,) = await hub.syncs.targets(asker, sync)
    return target.state, target.reason


async def test_a_revoked_terminal_is_owed_nothing_its_name_is_free_and_its_key_dead(tmp_path: Path) -> None:
    async with open_rooms(tmp_path) as hub:
        account = await add_account(hub)
        asks, target = await add_terminal(hub, account, "Asks"), await add_terminal(hub, account, "Phone")
        await publish(hub, tmp_path)
        accepted = await hub.syncs.accept(asks, ask(target))
        _, denied = await hub.revocation.revoke("ada", "Phone")
        assert denied == 1
        assert await state_of(hub, asks, accepted.sync) == ("denied", "revoked")
        assert await hub.deliveries.claim(target.terminal_id, target.connection) is None
        assert await code_of(hub.accounts.count_login(target.terminal_id, PC, "", receives=True)) == "revoked"
        assert (await hub.accounts.find(target.terminal_id)).is_revoked  # type: ignore[union-attr]
        assert [row.name for row in await hub.accounts.device_rows(account)] == ["Asks"]
        assert (await add_terminal(hub, account, "Phone")).name == "Phone"
        assert await acts(hub, "device.revoke") == [f"operator device.revoke {target.terminal_id}"]


async def test_a_device_whose_name_somebody_has_taken_for_after_its_revoking_is_revoked_all_the_same(
    tmp_path: Path,
) -> None:
    async with open_rooms(tmp_path) as hub:
        account = await add_account(hub)
        target = await add_terminal(hub, account, "P" * 64)
        taken = ("P" * 41 + f" (revoked {target.terminal_id})")[:64]
        await add_terminal(hub, account, taken)
        await hub.revocation.revoke("ada", target.terminal_id)
        assert [row.name for row in await hub.accounts.device_rows(account)] == [taken]


async def test_a_terminal_with_the_right_revokes_another_of_its_account_and_of_no_other(tmp_path: Path) -> None:
    async with open_rooms(tmp_path) as hub:
        ada, bob = await add_account(hub), await add_account(hub, "bob")
        me, phone, foreign = [
            await add_terminal(hub, account, name) for account, name in ((ada, "PC"), (ada, "Phone"), (bob, "PC"))
        ]
        assert await code_of(hub.revocation.revoke_by(me, foreign.terminal_id)) == "unknown-terminal"
        assert await code_of(hub.revocation.revoke_by(me, "t-2222222222")) == "unknown-terminal"
        await hub.revocation.allow_device("ada", "PC", "approve", allowed=False)
        assert await code_of(hub.revocation.revoke_by(me, phone.terminal_id)) == "not-allowed"
        await hub.revocation.allow_device("ada", "PC", "approve", allowed=True)
        await hub.revocation.revoke_by(me, phone.terminal_id)
        assert await code_of(hub.revocation.revoke_by(phone, me.terminal_id)) == "revoked"
        await hub.revocation.revoke_by(me, phone.terminal_id)  # it is done already
        assert await acts(hub, "device.revoke") == [f"{me.terminal_id} device.revoke {phone.terminal_id}"]


async def test_what_a_revoked_terminal_still_says_changes_nothing(tmp_path: Path) -> None:
    async with open_rooms(tmp_path) as hub:
        account = await add_account(hub)
        asks, target = await add_terminal(hub, account, "Asks"), await add_terminal(hub, account, "Phone")
        published = await publish(hub, tmp_path)
        await say_inventory(hub, target)
        accepted = await hub.syncs.accept(asks, ask(target))
        owed = await hub.deliveries.claim(target.terminal_id, target.connection)
        assert owed is not None
        await hub.revocation.revoke("ada", "Phone")
        done = messages.State(delivery=owed.delivery, state="done", version="1.0")
        assert await hub.deliveries.report(target.terminal_id, target.connection, done) == "stale"
        await say_inventory(hub, target, published)
        assert await code_of(hub.accounts.update(target, "Asks too", None)) == "revoked"
        for request in (hub.syncs.accept(target, ask(asks)), hub.syncs.cancel(target, accepted.sync)):
            assert await code_of(request) == "revoked"
        assert await state_of(hub, asks, accepted.sync) == ("denied", "revoked")
        rows = await hub.store.transaction(
            lambda transaction: transaction.row("installed_digest", terminal_id=target.terminal_id, program_id="hello")
        )
        assert rows is None


async def test_a_revoked_terminal_is_no_target_any_more_and_an_undo_passes_it_over(tmp_path: Path) -> None:
    async with open_rooms(tmp_path) as hub:
        account = await add_account(hub)
        asks, target = await add_terminal(hub, account, "Asks"), await add_terminal(hub, account, "Phone")
        older = await publish(hub, tmp_path)
        await say_inventory(hub, target, older)
        await publish(hub, tmp_path, "2.0")
        accepted = await hub.syncs.accept(asks, ask(target))
        owed = await hub.deliveries.claim(target.terminal_id, target.connection)
        assert owed is not None
        for state in ("downloading", "verifying", "installing", "done"):
            report = messages.State(delivery=owed.delivery, state=state)
            assert await hub.deliveries.report(target.terminal_id, target.connection, report) == "noted"
        await hub.revocation.revoke("ada", "Phone")
        undo = messages.Undo(id=2, request_key="u-1", sync=accepted.sync)
        (row,) = (await hub.syncs.undo(asks, undo)).targets
        assert (row.state, row.reason) == ("denied", "revoked")
        assert await code_of(hub.syncs.accept(asks, ask(target, key="k-2"))) == "unknown-terminal"


async def test_a_disabled_account_does_nothing_and_the_same_keys_work_once_it_is_enabled(tmp_path: Path) -> None:
    async with open_rooms(tmp_path) as hub:
        account = await add_account(hub)
        asks, target = await add_terminal(hub, account, "Asks"), await add_terminal(hub, account, "Phone")
        await publish(hub, tmp_path)
        accepted = await hub.syncs.accept(asks, ask(target))
        assert await hub.revocation.disable("ada") == 1
        assert await hub.revocation.disable("ada") == 0
        assert await state_of(hub, asks, accepted.sync) == ("denied", "account-disabled")
        assert await code_of(hub.syncs.accept(asks, ask(target, key="k-2"))) == "account-disabled"
        assert await code_of(hub.accounts.count_login(asks.terminal_id, PC, "", receives=True)) == "account-disabled"
        await hub.revocation.enable("ada")
        await hub.revocation.enable("ada")
        assert await hub.deliveries.claim(target.terminal_id, target.connection) is None
        again = await hub.accounts.count_login(asks.terminal_id, PC, "", receives=True)
        assert (await hub.syncs.accept(again, ask(target, key="k-3"))).targets[0].state == "queued"
        # A socket that did not look while the account was disabled goes on as if nothing had been.
        assert await hub.deliveries.claim(target.terminal_id, target.connection) is not None
        assert await acts(hub, "account.disable", "account.enable") == [
            "operator account.disable ada",
            "operator account.enable ada",
        ]


@pytest.mark.parametrize("keep_devices", [True, False])
async def test_a_new_password_revokes_the_devices_unless_they_are_kept(keep_devices: bool, tmp_path: Path) -> None:
    async with open_rooms(tmp_path) as hub:
        account = await add_account(hub)
        terminal = await add_terminal(hub, account)
        revoked = await hub.revocation.set_password("ada", "another good one", keep_devices=keep_devices)
        assert revoked == (0 if keep_devices else 1)
        assert (await hub.accounts.find(terminal.terminal_id)).is_revoked is not keep_devices  # type: ignore[union-attr]
        assert await hub.accounts.check_password("ada", PASSWORD) is None
        assert await hub.accounts.check_password("ada", "another good one") == account
        assert "operator account.password ada" in await acts(hub, "account.password")


async def test_each_right_is_needed_by_the_account_and_by_the_terminal(tmp_path: Path) -> None:
    async with open_rooms(tmp_path) as hub:
        account = await add_account(hub)
        asks, target = await add_terminal(hub, account, "Asks"), await add_terminal(hub, account, "Phone")
        await publish(hub, tmp_path)
        await hub.revocation.allow_device("ada", "Asks", "initiate", allowed=False)
        assert await code_of(hub.syncs.accept(asks, ask(target))) == "not-allowed"
        assert await code_of(hub.syncs.cancel(asks, "s-2222222222")) == "not-allowed"
        await hub.syncs.plan(asks, messages.Plan(id=1, program="hello", everyone=True))  # to look is everybody's
        await hub.revocation.allow_device("ada", "Asks", "initiate", allowed=True)
        await hub.revocation.allow_account("ada", "initiate", allowed=False)
        assert await code_of(hub.syncs.accept(asks, ask(target))) == "not-allowed"
        await hub.revocation.allow_account("ada", "initiate", allowed=True)
        assert (await hub.syncs.accept(asks, ask(target))).targets[0].state == "queued"
        assert await acts(hub, "device.", "account.allow", "account.deny") == [
            f"{terminal.terminal_id} device.enrol {terminal.terminal_id}" for terminal in (asks, target)
        ] + [
            f"operator device.deny {asks.terminal_id}",
            f"operator device.allow {asks.terminal_id}",
            "operator account.deny ada",
            "operator account.allow ada",
        ]


async def test_what_a_terminal_may_not_receive_waits_and_says_why(tmp_path: Path) -> None:
    async with open_rooms(tmp_path) as hub:
        account = await add_account(hub)
        asks, target = await add_terminal(hub, account, "Asks"), await add_terminal(hub, account, "Phone")
        await publish(hub, tmp_path)
        await hub.revocation.allow_device("ada", "Phone", "receive", allowed=False)
        accepted = await hub.syncs.accept(asks, ask(target))
        assert await hub.deliveries.claim(target.terminal_id, target.connection) is None
        assert await state_of(hub, asks, accepted.sync) == ("queued", "not-allowed")
        await hub.revocation.allow_device("ada", "Phone", "receive", allowed=True)
        assert await hub.deliveries.claim(target.terminal_id, target.connection) is not None


async def test_nothing_is_permitted_to_install_where_the_right_was_taken_away_just_before(tmp_path: Path) -> None:
    async with open_rooms(tmp_path) as hub:
        account = await add_account(hub)
        asks, target = await add_terminal(hub, account, "Asks"), await add_terminal(hub, account, "Phone")
        await publish(hub, tmp_path)
        accepted = await hub.syncs.accept(asks, ask(target))
        owed = await hub.deliveries.claim(target.terminal_id, target.connection)
        assert owed is not None

        async def report(state: str) -> str:
            said = messages.State(delivery=owed.delivery, state=state)
            return await hub.deliveries.report(target.terminal_id, target.connection, said)

        assert [await report("downloading"), await report("verifying")] == ["noted", "noted"]
        await hub.revocation.allow_device("ada", "Phone", "receive", allowed=False)
        assert await report("installing") == "refused"
        await hub.deliveries.hold(target.terminal_id, target.connection, "not-allowed")
        assert await state_of(hub, asks, accepted.sync) == ("queued", "not-allowed")


async def test_a_device_or_account_that_is_not_there_is_named(tmp_path: Path) -> None:
    async with open_rooms(tmp_path) as hub:
        await add_account(hub)
        for work in (hub.revocation.disable("eve"), hub.revocation.listing("eve"), hub.revocation.revoke("eve", "PC")):
            with pytest.raises(UnknownNameError, match="'eve'"):
                await work
        with pytest.raises(UnknownNameError, match="no device 'PC'"):
            await hub.revocation.revoke("ada", "PC")


async def test_the_list_shows_the_owner_every_device_and_how_it_stands(tmp_path: Path) -> None:
    async with open_rooms(tmp_path) as hub:
        account = await add_account(hub)
        for name in ("A", "B", "C"):
            await add_terminal(hub, account, name)
        copied = (await hub.accounts.device_rows(account))[1].terminal
        assert await hub.revocation.mark_cloned(copied, "192.0.2.1", "198.51.100.2")
        assert not await hub.revocation.mark_cloned(copied, "192.0.2.1", "198.51.100.2")
        await hub.revocation.revoke("ada", "C")
        entries = await hub.revocation.listing("ada")
        assert [(entry.name.partition(" ")[0], entry.standing) for entry in entries] == [
            ("A", ""),
            ("B", "cloned"),
            ("C", "revoked"),
        ]
        assert entries[0].rights == ("approve", "initiate", "receive")
        assert entries[2].rights == ()
        assert await hub.revocation.clear("ada", "B")
        assert not await hub.revocation.clear("ada", "B")
        assert [row.standing for row in await hub.accounts.device_rows(account)] == ["", ""]
        assert (await acts(hub, "device.c"))[-2:] == [f"hub device.cloned {copied}", f"operator device.clear {copied}"]


async def test_a_command_to_a_hub_that_is_down_moves_deliveries_on_from_where_they_stand(tmp_path: Path) -> None:
    async with open_rooms(tmp_path) as hub:
        account = await add_account(hub)
        asks, target = await add_terminal(hub, account, "Asks"), await add_terminal(hub, account, "Phone")
        await publish(hub, tmp_path)
        accepted = await hub.syncs.accept(asks, ask(target))
        seen = (await hub.syncs.changes(asks.terminal_id, 0)).revision
        settings = hub.settings
    from hub.admin import ask as ask_hub

    answer = await ask_hub(settings, "device revoke", {"account": "ada", "device": "Phone"})
    assert answer["denied"] == 1
    async with open_hub(settings) as hub:
        await hub.deliveries.start()
        changes = await hub.syncs.changes(asks.terminal_id, seen)
        assert [row.reason for row in changes.targets[accepted.sync]] == ["revoked"]
        assert [ended.outcome for ended in changes.ended] == ["failed"]


async def test_enrolling_with_a_revoked_key_says_that_it_is_dead(tmp_path: Path) -> None:
    async with open_rooms(tmp_path) as hub:
        account = await add_account(hub)
        request = enrol_message(key=keys.SigningKey.generate())
        terminal = await hub.accounts.enrol(account, request, "192.0.2.1:5")
        await hub.revocation.revoke("ada", terminal.terminal_id)
        with pytest.raises(NotLoggedInError) as refused:
            await hub.accounts.enrol(account, request, "192.0.2.1:5")
        assert refused.value.code == "revoked"
