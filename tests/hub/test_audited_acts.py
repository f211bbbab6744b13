"""Every act has its row, written in the act's own transaction: a fault before the commit leaves neither."""

import asyncio
import re
import secrets
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final, TypeAlias

import msgspec
import pytest

from hub.admin import perform
from hub.app import Hub
from hub.audit import OPERATOR
from hub.catalogue import PublishOptions
from hub.records import Published, Terminal
from hub.store import Transaction
from protocol import messages
from protocol.errors import LockstepError, RefusedError, UnavailableError
from protocol.life import State
from tests.harness.installers import make_installer
from tests.hub.rooms import PASSWORD, add_account, add_terminal, enrol_message, open_rooms, say_inventory

HUB: Final = Path(__file__).parents[2] / "hub"
PASSED_OVER: Final = frozenset({"hub_clock", "sqlite_sequence"})  # what changes without an act


class Stage:
    """A hub with what the acts need, which come one after the other."""

    def __init__(self, hub: Hub, folder: Path) -> None:
        self.hub = hub
        self.folder = folder
        self.account = ""
        self.pc: Terminal
        self.tv: Terminal
        self.hello: Published
        self.before: Published
        self.join_key = ""
        self.sync = ""

    async def set_up(self) -> None:
        self.scanner("exit 0")
        self.account = await add_account(self.hub)
        self.pc = await add_terminal(self.hub, self.account, "PC")
        self.tv = await add_terminal(self.hub, self.account, "TV")
        self.before = await self.publish("0.9")
        await say_inventory(self.hub, self.tv, self.before)
        await self.report()

    def scanner(self, text: str) -> None:
        """Have the owner's engine say something else from now on."""
        path = self.folder / "check"
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)

    async def file(self, version: str, name: str = "hello") -> str:
        path = await asyncio.to_thread(make_installer, self.folder, "deb", name=name, version=version, size=5_000)
        return str(path)

    async def publish(self, version: str, **options: Any) -> Published:
        arguments = {"file": await self.file(version), "options": {"program": "hello"} | options}
        return msgspec.convert(await perform(self.hub, "publish", arguments), Published)

    async def ask(self) -> None:
        """Sync the newest to the TV, where it is done."""
        asked = messages.Sync(id=1, request_key=secrets.token_hex(4), program="hello", targets=(self.tv.terminal_id,))
        self.sync = (await self.hub.syncs.accept(self.pc, asked)).sync

    async def has_come(self, *has: Published) -> None:
        """What the TV is owed is offered to it and done; then it says what it has."""
        owed = await self.hub.deliveries.claim(self.tv.terminal_id, self.tv.connection)
        assert owed is not None
        done = messages.State(delivery=owed.delivery, state=State.DONE, version=owed.installer.version)
        assert await self.hub.deliveries.report(self.tv.terminal_id, self.tv.connection, done) == "noted"
        await say_inventory(self.hub, self.tv, *has, first=False)

    async def command(self, command: str, **arguments: Any) -> Any:
        return await perform(self.hub, command, arguments)

    async def paired(self, *, accept: bool) -> None:
        """A device asks to be paired; the PC decides."""
        asks = msgspec.structs.replace(enrol_message("Frame"), account="", password="", pair=True)
        pairing = await self.hub.enrolling.enrol(asks, "192.0.2.7:1", "192.0.2.7", lambda outcome: None)
        assert not isinstance(pairing, Terminal)
        approve = messages.Approve(id=1, code=pairing.code, device_key=asks.device_key, accept=accept)
        await self.hub.enrolling.approve(self.pc, approve)

    async def refuse(self) -> None:
        self.scanner("echo Bad.Thing; exit 1")
        try:
            with pytest.raises(RefusedError, match="was not published"):
                await self.command("publish", file=await self.file("6.6"), options={"program": "hello"})
        finally:
            self.scanner("exit 0")

    async def turn_infected(self) -> None:
        self.scanner("echo Bad.Thing; exit 1")
        await self.command("verdicts rescan")

    async def report(self, *findings: messages.FindingRow) -> None:
        one = messages.PostureReport(
            rules=bytes(32), nonce=bytes(32), engine="test", began_at=1.0, seconds=1.0, programs=1, files=1, bytes=1,
            findings=findings, findings_in_all=len(findings),
        )  # fmt: skip
        posture = messages.Posture(report=msgspec.msgpack.encode(one), signature=bytes(64))
        await self.hub.postures.save(self.tv.terminal_id, self.tv.connection, posture, one)


Do: TypeAlias = Callable[[Stage], Awaitable[Any]]
ADA: Final = {"name": "ada"}
DEVICE: Final = {"account": "ada", "device": "TV"}


async def publish(stage: Stage) -> None:
    stage.hello = await stage.publish("1.0")


async def undo(stage: Stage) -> None:
    asked = messages.Undo(id=1, request_key=secrets.token_hex(4), sync=stage.sync)
    await stage.hub.syncs.undo(stage.pc, asked)


async def cancel(stage: Stage) -> None:
    await stage.hub.syncs.cancel(stage.pc, stage.sync)


async def add_join_key(stage: Stage) -> None:
    stage.join_key = (await stage.command("joinkey add", account="ada", uses=2, seconds=60.0))["join_key"]


# (action, who, how): in this order, each by the very command or request that does it; "-" is no act.
ACTS: Final[list[tuple[str, str, Do]]] = [
    ("account.add", OPERATOR, lambda stage: stage.command("account add", name="eve", password=PASSWORD)),
    ("account.deny", OPERATOR, lambda stage: stage.command("account right", **ADA, right="approve", allowed=False)),
    ("account.allow", OPERATOR, lambda stage: stage.command("account right", **ADA, right="approve", allowed=True)),
    ("account.link", OPERATOR, lambda stage: stage.command("account link", **ADA, subject="https://id.example 7")),
    ("account.disable", OPERATOR, lambda stage: stage.command("account disable", name="eve")),
    ("account.enable", OPERATOR, lambda stage: stage.command("account enable", name="eve")),
    ("account.password", OPERATOR, lambda stage: stage.command("account password", name="eve", password=PASSWORD)),
    ("catalogue.publish", OPERATOR, publish),
    ("catalogue.correct", OPERATOR, lambda stage: stage.publish("1.0", title="Hello", correct=True)),
    ("catalogue.refuse", OPERATOR, lambda stage: stage.refuse()),
    ("catalogue.yank", OPERATOR, lambda stage: stage.command("catalogue yank", program="hello", version="1.0")),
    ("catalogue.restore", OPERATOR, lambda stage: stage.command("catalogue restore", program="hello", version="1.0")),
    ("catalogue.retire", OPERATOR, lambda stage: stage.command("catalogue retire", program="hello")),
    ("catalogue.restore", OPERATOR, lambda stage: stage.command("catalogue restore", program="hello")),
    (
        "catalogue.channel",
        OPERATOR,
        lambda stage: stage.command("catalogue channel", program="hello", version="0.9", channel="beta"),
    ),
    (
        "catalogue.alias",
        OPERATOR,
        lambda stage: stage.command("catalogue alias", program="hello", package="x.y", os_types=["linux"]),
    ),
    ("sync.ask", "pc", lambda stage: stage.ask()),
    ("-", "", lambda stage: stage.has_come(stage.hello)),
    ("sync.undo", "pc", undo),
    ("-", "", lambda stage: stage.has_come(stage.before)),
    ("sync.ask", "pc", lambda stage: stage.ask()),
    ("sync.cancel", "pc", cancel),
    ("device.enrol", "new", lambda stage: stage.hub.accounts.enrol(stage.account, enrol_message("New"), "192.0.2.1:5")),
    ("device.approve", "pc", lambda stage: stage.paired(accept=True)),
    ("device.turn-away", "pc", lambda stage: stage.paired(accept=False)),
    ("device.deny", OPERATOR, lambda stage: stage.command("device right", **DEVICE, right="initiate", allowed=False)),
    ("device.allow", OPERATOR, lambda stage: stage.command("device right", **DEVICE, right="initiate", allowed=True)),
    ("device.cloned", "hub", lambda stage: stage.hub.revocation.mark_cloned(stage.tv.terminal_id, "192.0.2.1", "::1")),
    ("device.clear", OPERATOR, lambda stage: stage.command("device clear", **DEVICE)),
    ("joinkey.add", OPERATOR, add_join_key),
    ("joinkey.revoke", OPERATOR, lambda stage: stage.command("joinkey revoke", join_key=stage.join_key)),
    ("sync.ask", "pc", lambda stage: stage.ask()),
    ("-", "", lambda stage: stage.hub.rescans.again()),  # that it is to be scanned again changes nothing yet
    ("verdict.change", "hub", lambda stage: stage.turn_infected()),
    ("posture.quarantine", "hub", lambda stage: stage.report(messages.FindingRow(file="f", rule="r"))),
    ("posture.release", "hub", lambda stage: stage.report()),
    ("device.revoke", "pc", lambda stage: stage.hub.revocation.revoke_by(stage.pc, stage.tv.terminal_id)),
    ("device.revoke", OPERATOR, lambda stage: stage.command("device revoke", account="ada", device="New")),
]


class Fault:
    """Raises in the transaction of an act, once the row of that act is written."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.action = ""
        self.struck = 0
        rows = Transaction.rows

        async def struck(transaction: Transaction, query: str, /, **parameters: object) -> list[Any]:
            found = await rows(transaction, query, **parameters)
            if query == "add_audit" and parameters["action"] == self.action:
                self.struck += 1
                raise UnavailableError("The fault.")
            return found

        monkeypatch.setattr(Transaction, "rows", struck)


async def everything(hub: Hub) -> dict[str, list[str]]:
    """Every row of every table."""

    async def body(transaction: Transaction) -> dict[str, list[str]]:
        execute = transaction._connection.execute_fetchall
        names = [row[0] for row in await execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {
            name: sorted(repr(tuple(row)) for row in await execute(f"SELECT * FROM {name}"))
            for name in names
            if name not in PASSED_OVER
        }

    return await hub.store.transaction(body)


async def test_every_act_has_its_row_and_a_fault_before_the_commit_leaves_neither(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = str(tmp_path / "check")
    async with open_rooms(tmp_path, scan_yara=False, scan_command=check, posture_targets="require") as hub:
        stage = Stage(hub, tmp_path)
        await stage.set_up()
        fault = Fault(monkeypatch)
        for action, actor, do in ACTS:
            if action == "-":
                await do(stage)
                continue
            before = await everything(hub)
            fault.action, fault.struck = action, 0
            with pytest.raises(LockstepError, match="The fault"):
                await do(stage)
            assert fault.struck, action
            assert await everything(hub) == before, f"{action}: the fault left something"
            fault.action = ""
            last = len(before["audit"])
            await do(stage)
            rows = [row for row in await hub.audit.page(last) if row.action == action]
            assert rows, f"{action} has no row"
            assert rows[0].subject
            who = {"pc": stage.pc.terminal_id, "new": rows[0].subject}.get(actor, actor)
            assert rows[0].actor == who, action
            assert {name for name, after in (await everything(hub)).items() if after != before[name]} - {"audit"} or (
                action in ("catalogue.refuse", "device.turn-away")  # what is refused leaves nothing but its row
            ), f"{action} has a row and did nothing"
        assert (await hub.audit.verify()).is_whole


def test_every_action_that_the_hub_writes_is_walked_above() -> None:
    prefixes = "account|device|joinkey|catalogue|sync|verdict|posture"
    written = {
        action
        for path in HUB.glob("*.py")
        for action in re.findall(rf'"((?:{prefixes})\.[a-z-]+)"', path.read_text())
        if path.name not in ("auditing.py", "cli.py")
    }
    assert written == {action for action, _, _ in ACTS if action != "-"}
    assert {
        "account.add", "account.disable", "account.enable", "account.password", "account.allow", "account.deny",
        "account.link", "device.enrol", "device.revoke", "device.allow", "device.deny", "device.clear",
        "device.approve", "device.turn-away", "device.cloned", "joinkey.add", "joinkey.revoke", "catalogue.publish",
        "catalogue.correct", "catalogue.refuse", "catalogue.yank", "catalogue.restore", "catalogue.retire",
        "catalogue.channel", "catalogue.alias", "sync.ask", "sync.undo", "sync.cancel", "verdict.change",
        "posture.quarantine", "posture.release",
    } == written  # fmt: skip


async def test_a_publish_from_a_terminal_names_that_terminal(tmp_path: Path) -> None:
    async with open_rooms(tmp_path, scan_yara=False) as hub:
        stage = Stage(hub, tmp_path)
        path = Path(await stage.file("1.0"))
        await hub.catalogue.publish(path, PublishOptions(), actor="t-2222222222")
        (row,) = await hub.audit.page(0)
        assert (row.action, row.actor, row.subject) == ("catalogue.publish", "t-2222222222", "hello")


async def test_a_sync_to_very_many_names_a_few_of_them_and_says_how_many_there_are(tmp_path: Path) -> None:
    async with open_rooms(tmp_path, scan_yara=False) as hub:
        account = await add_account(hub)
        asks = await add_terminal(hub, account, "Asks")
        for number in range(20):
            await add_terminal(hub, account, f"D{number}")
        path = Path(await Stage(hub, tmp_path).file("1.0"))
        await perform(hub, "publish", {"file": str(path), "options": {"program": "hello"}})
        await hub.syncs.accept(asks, messages.Sync(id=1, request_key="k", program="hello", everyone=True))
        row = (await hub.audit.page(0))[-1]
        assert (len(row.detail["targets"]), row.detail["targets_in_all"]) == (16, 20)


async def test_a_wrong_guess_and_what_is_refused_are_no_rows(tmp_path: Path) -> None:
    async with open_rooms(tmp_path, scan_yara=False) as hub:
        await add_account(hub)
        before = await hub.audit.page(0)
        for request in (
            msgspec.structs.replace(enrol_message("New"), password="wrong"),
            msgspec.structs.replace(enrol_message("New"), account="", password="", join_key="lsk-" + "2" * 32),
        ):
            with pytest.raises(LockstepError):
                await hub.enrolling.enrol(request, "192.0.2.1:5", "192.0.2.1", lambda outcome: None)
        assert await hub.audit.page(0) == before
