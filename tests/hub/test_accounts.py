"""Accounts and terminals: enrolling twice is once, names stay apart, passwords are right or wrong."""

import asyncio
import json
from contextlib import nullcontext
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner, Result

from hub.cli import main
from hub.store import Transaction
from protocol import keys
from protocol.errors import ConflictError, RefusedError, UnknownNameError, UsageError
from tests.hub.rooms import PASSWORD, PC, add_account, add_terminal, enrol_message, open_rooms


async def test_a_password_is_right_or_wrong_and_nobody_has_none(tmp_path: Path) -> None:
    async with open_rooms(tmp_path) as hub:
        account = await add_account(hub)
        assert await hub.accounts.check_password("ada", PASSWORD) == account
        assert await hub.accounts.check_password("ada", PASSWORD + "x") is None
        assert await hub.accounts.check_password("nobody", PASSWORD) is None
        assert await hub.accounts.check_password("nobody", PASSWORD) is None


async def test_a_fleet_that_comes_at_once_with_one_right_password_costs_one_evaluation(tmp_path: Path) -> None:
    async with open_rooms(tmp_path) as hub:
        await hub.accounts.add("ada", PASSWORD)
        before = hub.passwords.evaluations
        answers = await asyncio.gather(*(hub.accounts.check_password("ada", PASSWORD, "192.0.2.1") for _ in range(200)))
        assert len(set(answers)) == 1 and answers[0] is not None
        assert hub.passwords.evaluations - before == 1


@pytest.mark.parametrize("name", ["", " ada", "a\nb", "x" * 65])
async def test_an_account_name_is_one_printable_word_or_line(name: str, tmp_path: Path) -> None:
    async with open_rooms(tmp_path) as hub:
        with pytest.raises(UsageError, match="not an account name"):
            await hub.accounts.add(name, PASSWORD)


async def test_an_account_is_the_same_however_its_accents_are_composed(tmp_path: Path) -> None:
    composed, decomposed = "\u00e1", "a\u0301"
    async with open_rooms(tmp_path) as hub:
        await hub.accounts.add(decomposed, PASSWORD)
        assert [row.name for row in await hub.accounts.listing()] == [composed]
        with pytest.raises(ConflictError):
            await hub.accounts.add(composed, PASSWORD)
        found = [await hub.accounts.check_password(name, PASSWORD) for name in (composed, decomposed)]
        assert found[0] is not None and found[0] == found[1]
        await hub.accounts.allow(decomposed, "publish", allowed=True)
        assert "publish" in (await hub.accounts.listing())[0].rights
        assert (await hub.join_keys.add(decomposed, uses=1, seconds=1.0))[0].account == composed
        assert await hub.revocation.listing(decomposed) == []


async def test_an_account_that_an_older_hub_kept_decomposed_is_found_by_either_name(tmp_path: Path) -> None:
    composed, decomposed = "\u00e1", "a\u0301"
    async with open_rooms(tmp_path) as hub:
        stored = await hub.accounts.hash_password(PASSWORD)

        async def body(transaction: Transaction) -> None:
            await transaction.row("add_account", account_id="a-1", name=decomposed, password_hash=stored, now=0.0)

        await hub.store.transaction(body)
        assert [await hub.accounts.check_password(name, PASSWORD) for name in (composed, decomposed)] == ["a-1"] * 2
        with pytest.raises(ConflictError):
            await hub.accounts.add(composed, PASSWORD)


async def test_a_short_password_and_a_second_account_of_one_name_are_refused(tmp_path: Path) -> None:
    async with open_rooms(tmp_path) as hub:
        await add_account(hub)
        with pytest.raises(ConflictError, match="already"):
            await hub.accounts.add("ada", PASSWORD)
        with pytest.raises(UsageError, match="at least 8"):
            await hub.accounts.add("eve", "seven77")


async def test_the_same_device_key_is_the_same_terminal_and_of_one_account(tmp_path: Path) -> None:
    async with open_rooms(tmp_path) as hub:
        ada, eve = await add_account(hub), await add_account(hub, "eve")
        key = keys.SigningKey.generate()
        first = await hub.accounts.enrol(ada, enrol_message("PC", key=key), "")
        again = await hub.accounts.enrol(ada, enrol_message("Laptop", key=key), "")
        assert (again.terminal_id, again.name) == (first.terminal_id, "Laptop")
        with pytest.raises(ConflictError, match="another account"):
            await hub.accounts.enrol(eve, enrol_message("PC", key=key), "")


async def test_two_devices_of_one_name_get_a_number_and_a_name_is_one_line(tmp_path: Path) -> None:
    async with open_rooms(tmp_path) as hub:
        account = await add_account(hub)
        names = [(await add_terminal(hub, account, name)).name for name in ("TV", "TV", "TV", "a\nb", "\t")]
        assert names == ["TV", "TV-2", "TV-3", "a b", "device"]


async def test_a_taken_name_is_refused_on_renaming(tmp_path: Path) -> None:
    async with open_rooms(tmp_path) as hub:
        account = await add_account(hub)
        await add_terminal(hub, account, "TV")
        phone = await add_terminal(hub, account, "Phone")
        with pytest.raises(ConflictError) as caught:
            await hub.accounts.update(phone, "TV", None)
        assert caught.value.code == "name-taken"
        assert (await hub.accounts.update(phone, "Cell", None)).name == "Cell"


async def test_an_account_takes_as_many_terminals_as_it_may_and_no_more(tmp_path: Path) -> None:
    async with open_rooms(tmp_path, terminals_per_account=2) as hub:
        account = await add_account(hub)
        await add_terminal(hub, account, "A")
        await add_terminal(hub, account, "B")
        with pytest.raises(RefusedError) as caught:
            await add_terminal(hub, account, "C")
        assert caught.value.code == "account-full"


async def test_each_login_has_the_next_connection_number(tmp_path: Path) -> None:
    async with open_rooms(tmp_path) as hub:
        terminal = await add_terminal(hub, await add_account(hub))
        again = await hub.accounts.count_login(terminal.terminal_id, PC, "", receives=False)
        assert again.connection == terminal.connection + 1
        assert not again.receives


@pytest.mark.parametrize("name", ["all", "ALL", "t-58abcdefgh", "tag:hall", " Tag:hall"])
async def test_a_name_that_means_something_else_is_refused(name: str, tmp_path: Path) -> None:
    async with open_rooms(tmp_path) as hub:
        account = await add_account(hub)
        terminal = await add_terminal(hub, account, "TV")
        with pytest.raises(UsageError, match="cannot be called"):
            await hub.accounts.enrol(account, enrol_message(name), "")
        with pytest.raises(UsageError, match="cannot be called"):
            await hub.accounts.update(terminal, name, None)


async def test_a_device_that_an_older_hub_let_have_such_a_name_logs_in_and_can_be_revoked(tmp_path: Path) -> None:
    async with open_rooms(tmp_path) as hub:
        terminal = await add_terminal(hub, await add_account(hub), "TV")

        async def body(transaction: Transaction) -> None:
            columns = {"name": "tag:hall", "device": msgspec.json.encode(PC)}
            await transaction.rows("update_terminal", terminal_id=terminal.terminal_id, **columns)

        await hub.store.transaction(body)
        again = await hub.accounts.count_login(terminal.terminal_id, PC, "", receives=True)
        assert (await hub.accounts.update(again, None, PC)).name == "tag:hall"
        revoked, _ = await hub.revocation.revoke("ada", "tag:hall")
        assert revoked.terminal_id == terminal.terminal_id


async def test_nobody_may_publish_until_the_account_has_the_right_and_it_can_be_taken_back(tmp_path: Path) -> None:
    async with open_rooms(tmp_path) as hub:
        ada = await add_account(hub)
        terminal = await hub.accounts.enrol(ada, enrol_message(), "")
        await hub.accounts.add("eve", PASSWORD, may_publish=True)
        assert ["publish" in row.rights for row in await hub.accounts.listing()] == [False, True]
        for allowed in (True, False):
            await hub.accounts.allow("ada", "publish", allowed=allowed)
            with nullcontext() if allowed else pytest.raises(RefusedError, match="may not publish"):
                await hub.accounts.check_right(terminal.terminal_id, "publish")
        with pytest.raises(RefusedError):
            await hub.accounts.check_right("t-nobody", "publish")
        with pytest.raises(UnknownNameError) as caught:
            await hub.accounts.allow("nobody", "publish", allowed=True)
        assert caught.value.code == "unknown-account"


def test_the_operator_gives_and_takes_the_right_and_sees_who_has_it(tmp_path: Path) -> None:
    def hub(*arguments: str) -> Result:
        return CliRunner().invoke(main, [*arguments, "--data", str(tmp_path / "hub")], input=f"{PASSWORD}\n")

    assert hub("account", "add", "ada", "--password-stdin", "--may-publish").exit_code == 0
    assert json.loads(hub("account", "deny", "ada", "publish", "--json").stdout) == {
        "account": "ada", "right": "publish", "allowed": False,
    }  # fmt: skip
    assert hub("account", "list").stdout.split() == [
        "ACCOUNT", "TERMINALS", "MAY", "ada", "0", "approve", "initiate", "receive",
    ]  # fmt: skip
    assert "may publish now" in hub("account", "allow", "ada", "publish").stdout
    assert "publish" in hub("account", "list").stdout.split()
    assert hub("account", "allow", "ada", "fly").exit_code == 2
    assert hub("account", "allow", "nobody", "publish").exit_code == 2
