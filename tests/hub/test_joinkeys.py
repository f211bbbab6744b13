"""Join keys: a secret shown once, so many uses, an end, tags; whatever is wrong with one has the same answer."""

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from hub.app import Hub
from hub.cli import main
from hub.records import Terminal
from protocol import keys, messages
from protocol.errors import LockstepError, UsageError
from tests.hub.rooms import PASSWORD, PC, add_account, open_rooms

DAY = 86_400.0


def join_message(secret: str, name: str = "PC", key: keys.SigningKey | None = None) -> messages.Enrol:
    return messages.Enrol(
        join_key=secret, name=name, device=PC, device_key=(key or keys.SigningKey.generate()).public,
        sealing_key=bytes(32), host="hub", port=1, signature=bytes(64),
    )  # fmt: skip


async def join(hub: Hub, secret: str, key: keys.SigningKey | None = None) -> Terminal:
    outcome = await hub.enrolling.enrol(join_message(secret, key=key), "192.0.2.1:5", "192.0.2.1", lambda outcome: None)
    assert isinstance(outcome, Terminal)
    return outcome


async def refusal(hub: Hub, secret: str) -> tuple[str, str, str]:
    with pytest.raises(LockstepError) as caught:
        await join(hub, secret)
    return caught.value.code, caught.value.message, caught.value.hint


async def test_a_key_makes_as_many_devices_as_it_has_uses_each_with_its_tags(tmp_path: Path) -> None:
    async with open_rooms(tmp_path) as hub:
        account = await add_account(hub)
        _, secret = await hub.join_keys.add("ada", uses=2, seconds=DAY, tags=("lab", "floor 2", "lab"))
        made = [await join(hub, secret), await join(hub, secret)]
        assert {terminal.account_id for terminal in made} == {account}
        assert [terminal.tags for terminal in made] == [("lab", "floor 2")] * 2
        assert (await refusal(hub, secret))[0] == "not-authorised"
        assert [(key.uses, key.uses_left) for key in await hub.join_keys.listing()] == [(2, 0)]


async def test_the_same_device_key_again_uses_none_and_keeps_its_tags_even_when_the_key_is_used_up(
    tmp_path: Path,
) -> None:
    async with open_rooms(tmp_path) as hub:
        await add_account(hub)
        _, secret = await hub.join_keys.add("ada", uses=1, seconds=DAY, tags=("lab",))
        device = keys.SigningKey.generate()
        first = await join(hub, secret, device)
        again = await join(hub, secret, device)
        assert (again.terminal_id, again.tags) == (first.terminal_id, ("lab",))


async def test_a_key_that_never_was_is_used_up_expired_or_revoked_gets_one_answer(tmp_path: Path) -> None:
    async with open_rooms(tmp_path) as hub:
        await add_account(hub)
        _, used_up = await hub.join_keys.add("ada", uses=1, seconds=DAY)
        _, expired = await hub.join_keys.add("ada", uses=1, seconds=0.000_001)
        key, revoked = await hub.join_keys.add("ada", uses=1, seconds=DAY)
        await join(hub, used_up)
        await hub.join_keys.revoke(key.join_key)
        answers = {
            await refusal(hub, secret) for secret in ("lsk-" + "a" * 32, "", used_up, expired, revoked) if secret
        }
        assert len(answers) == 1
        assert answers.pop()[0] == "not-authorised"


async def test_a_use_is_not_counted_when_the_device_does_not_become_a_terminal(tmp_path: Path) -> None:
    async with open_rooms(tmp_path, terminals_per_account=1) as hub:
        await add_account(hub)
        _, secret = await hub.join_keys.add("ada", uses=5, seconds=DAY)
        await join(hub, secret)
        assert (await refusal(hub, secret))[0] == "account-full"
        assert [key.uses_left for key in await hub.join_keys.listing()] == [4]


async def test_only_the_digest_is_kept_and_the_audit_log_has_no_secret(tmp_path: Path) -> None:
    async with open_rooms(tmp_path) as hub:
        await add_account(hub)
        _, secret = await hub.join_keys.add("ada", uses=1, seconds=DAY)
        await join(hub, secret)
    kept = b"".join(file.read_bytes() for file in (tmp_path / "hub").glob("hub.db*"))
    assert secret.encode() not in kept and secret.removeprefix("lsk-").encode() not in kept


async def test_what_a_key_does_is_in_the_audit_log(tmp_path: Path) -> None:
    async with open_rooms(tmp_path) as hub:
        await add_account(hub)
        key, secret = await hub.join_keys.add("ada", uses=1, seconds=DAY)
        made = await join(hub, secret)
        await hub.join_keys.revoke(key.join_key)
    with closing(sqlite3.connect(tmp_path / "hub" / "hub.db")) as database:
        rows = database.execute("SELECT actor, action, subject, detail FROM audit ORDER BY sequence").fetchall()
    told = [(actor, action, subject) for actor, action, subject, _ in rows]
    assert told[-3:] == [
        ("operator", "joinkey.add", key.join_key),
        (made.terminal_id, "device.enrol", made.terminal_id),
        ("operator", "joinkey.revoke", key.join_key),
    ]
    assert json.loads(rows[-2][3]) == {
        "account": "ada", "name": "PC", "how": "join-key", "again": False, "by": key.join_key,
    }  # fmt: skip


@pytest.mark.parametrize(
    "wrong",
    [{"uses": 0}, {"uses": 100_001}, {"seconds": 0.0}, {"seconds": 400 * DAY}, {"tags": ("",)}, {"tags": ("a\nb",)},
     {"tags": tuple(map(str, range(17)))}],
    ids=str,
)  # fmt: skip
async def test_numbers_and_tags_that_cannot_be_are_refused(wrong: dict[str, Any], tmp_path: Path) -> None:
    async with open_rooms(tmp_path) as hub:
        await add_account(hub)
        with pytest.raises(UsageError):
            await hub.join_keys.add("ada", **{"uses": 1, "seconds": DAY} | wrong)


def commands(folder: Path) -> Callable[..., Result]:
    def hub(*arguments: str) -> Result:
        return CliRunner().invoke(main, [*arguments, "--data", str(folder / "hub")], input=f"{PASSWORD}\n")

    return hub


def test_the_operator_makes_lists_and_revokes_keys(tmp_path: Path) -> None:
    hub = commands(tmp_path)
    assert hub("account", "add", "ada", "--password-stdin").exit_code == 0
    made = hub("joinkey", "add", "ada", "--uses", "3", "--expires", "7d", "--tag", "lab")
    assert made.exit_code == 0 and made.stdout.startswith("lsk-") and len(made.stdout.strip()) == 36
    [row] = json.loads(hub("joinkey", "list", "--json").stdout)
    assert (row["account"], row["uses_left"], row["tags"]) == ("ada", 3, ["lab"])
    assert made.stdout.strip() not in json.dumps(row)
    assert "3 of 3" in hub("joinkey", "list").stdout
    assert hub("joinkey", "revoke", row["join_key"]).exit_code == 0
    assert "revoked" in hub("joinkey", "list").stdout
    assert hub("joinkey", "revoke", "k-nobody").exit_code == 2
    assert hub("joinkey", "add", "nobody").exit_code == 2
    assert hub("joinkey", "add", "ada", "--expires", "soon").exit_code == 2
    assert "good for 1 device until" in hub("joinkey", "add", "ada").stderr
    assert "good for 3 devices until" in made.stderr
    said = json.loads(hub("joinkey", "add", "ada", "--json").stdout)
    assert set(said) == {*row, "secret"}, "docs/operations.md names them"


def test_the_operator_reads_the_fingerprint_of_the_hubs_key(tmp_path: Path) -> None:
    hub = commands(tmp_path)
    assert hub("key").exit_code == 1, "there is no hub yet, and asking makes none"
    assert not (tmp_path / "hub").exists()
    hub("account", "add", "ada", "--password-stdin")
    seed = (tmp_path / "hub" / "hub.key").read_bytes()
    assert hub("key").stdout == keys.fingerprint(keys.SigningKey(seed).public) + "\n"
