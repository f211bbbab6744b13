"""Scanning again: what turns infected is withdrawn everywhere, what could not be scanned becomes clean by itself."""

import asyncio
import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from hub.admin import perform
from hub.app import Hub
from hub.catalogue import PublishOptions
from hub.cli import main
from hub.records import Published, Terminal
from hub.rescans import FAILED_AGAIN_SECONDS
from hub.store import Row, Transaction
from protocol import messages
from protocol.messages import Sync, Undo
from tests.harness.fleets import until
from tests.harness.hubs import running_hub
from tests.harness.installers import make_installer
from tests.harness.raw import RawTerminal, raw_terminal
from tests.hub.rooms import add_account, add_terminal, open_rooms, publish, say_inventory

FOX = 'rule Fox { strings: $a = "quick brown fox" condition: $a }\n'
NOTHING = "rule Nothing { condition: false }\n"


class Rules:
    """A rules folder of the owner's."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "rules"
        self.folder.mkdir()
        self.write(NOTHING)

    def write(self, text: str) -> None:
        (self.folder / "mine.yar").write_text(text)

    @property
    def settings(self) -> dict[str, Any]:
        return {"scan_rules": str(self.folder)}


async def publish_text(hub: Hub, folder: Path, version: str = "1.0") -> Published:
    path = make_installer(folder, "deb", version=version, size=3_000, content="text")
    return await hub.catalogue.publish(path, PublishOptions(program="hello"))


async def reload(hub: Hub) -> None:
    """What SIGHUP brings about, waited for."""
    await hub.scanning.reload()
    await hub.rescans.look(resting=False)


async def verdict_of(hub: Hub, published: Published) -> tuple[str, str]:
    row = (await rows(hub, "installer", digest=bytes.fromhex(published.digest)))[0]
    return row["verdict"], row["finding"]


async def rows(hub: Hub, query: str, **parameters: object) -> list[Row]:
    async def body(transaction: Transaction) -> list[Row]:
        return await transaction.rows(query, **parameters)

    return await hub.store.transaction(body)


async def actions(hub: Hub) -> list[str]:
    return [row["action"].decode() for row in await rows(hub, "audit_page", after=0, count=1000)]


async def ask(hub: Hub, terminal: Terminal, key: str = "k", *, version: str = "") -> Any:
    request = Sync(id=1, request_key=key, program="hello", targets=(terminal.terminal_id,), version=version)
    accepted = await hub.syncs.accept(terminal, request)
    [row] = await hub.syncs.targets(terminal, accepted.sync)
    return accepted, row


# --- a rule change --------------------------------------------------------------------------------------------------


async def test_a_rule_change_turns_an_installer_infected_and_what_is_queued_is_denied(tmp_path: Path) -> None:
    rules = Rules(tmp_path)
    async with open_rooms(tmp_path, **rules.settings) as hub:
        published = await publish_text(hub, tmp_path)
        terminal = await add_terminal(hub, await add_account(hub))
        accepted, row = await ask(hub, terminal)
        assert row.state == "queued"
        rules.write(FOX)
        await reload(hub)
        verdict, finding = await verdict_of(hub, published)
        assert verdict == "infected"
        assert "Fox in hello_1.0_all.deb" in finding
        [row] = await hub.syncs.targets(terminal, accepted.sync)
        assert (row.state, row.reason) == ("denied", "infected")
        assert "Fox in hello_1.0_all.deb" in row.detail
        assert await hub.deliveries.claim(terminal.terminal_id, terminal.connection) is None
        assert (await actions(hub))[-1] == "verdict.change"


async def test_a_rule_change_that_finds_nothing_leaves_everything_as_it_is(tmp_path: Path) -> None:
    rules = Rules(tmp_path)
    async with open_rooms(tmp_path, **rules.settings) as hub:
        published = await publish_text(hub, tmp_path)
        terminal = await add_terminal(hub, await add_account(hub))
        accepted, _ = await ask(hub, terminal)
        rules.write(NOTHING + "rule Other { condition: false }")
        await reload(hub)
        assert await verdict_of(hub, published) == ("clean", "")
        [row] = await hub.syncs.targets(terminal, accepted.sync)
        assert row.state == "queued"
        assert "verdict.change" not in await actions(hub)


async def test_nothing_is_scanned_twice_by_the_same_rules(tmp_path: Path) -> None:
    rules = Rules(tmp_path)
    async with open_rooms(tmp_path, **rules.settings) as hub:
        await publish_text(hub, tmp_path)
        assert await hub.rescans.look(resting=False) == 0
        rules.write(FOX)
        await hub.scanning.reload()
        assert await hub.rescans.look(resting=False) == 1
        assert await hub.rescans.look(resting=False) == 0
        assert await hub.rescans.again() == 1
        assert await hub.rescans.look(resting=False) == 1


async def test_wrong_rules_change_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rules = Rules(tmp_path)
    async with open_rooms(tmp_path, **rules.settings) as hub:
        published = await publish_text(hub, tmp_path)
        rules.write("rule broken { condition: }")
        await reload(hub)
        assert await verdict_of(hub, published) == ("clean", "")
        assert "the rules are kept as they were" in caplog.text


async def test_what_is_withdrawn_is_chosen_no_more_and_the_words_say_why(tmp_path: Path) -> None:
    rules = Rules(tmp_path)
    async with open_rooms(tmp_path, **rules.settings) as hub:
        await publish_text(hub, tmp_path)
        terminal = await add_terminal(hub, await add_account(hub))
        rules.write(FOX)
        await reload(hub)
        _, row = await ask(hub, terminal)
        assert (row.state, row.reason) == ("no_match", "infected")
        assert row.detail.startswith("Its installers are withdrawn: hello 1.0 (hello_1.0_all.deb) is infected:")
        [listed], _ = await hub.syncs.programs(terminal, messages.Programs(id=1))
        assert (listed.newest, listed.installer_kinds) == ("", ())
        await publish(hub, tmp_path, "0.9")
        [listed], _ = await hub.syncs.programs(terminal, messages.Programs(id=1))
        assert (listed.newest, listed.installer_kinds) == ("0.9", ("deb",))
        assert await hub.syncs.programs(terminal, messages.Programs(id=2, query="hello")) == ([listed], False)
        _, row = await ask(hub, terminal, "other")
        assert (row.state, row.version) == ("queued", "0.9")
        assert "hello 1.0 is not sent: it is infected." in row.detail
        _, row = await ask(hub, terminal, "pinned", version="1.0")
        assert (row.state, row.reason) == ("no_match", "infected")


async def test_an_undo_does_not_bring_back_what_was_withdrawn(tmp_path: Path) -> None:
    rules = Rules(tmp_path)
    async with open_rooms(tmp_path, **rules.settings) as hub:
        old = await publish_text(hub, tmp_path, "1.0")
        new = await publish(hub, tmp_path, "2.0")
        terminal = await add_terminal(hub, await add_account(hub))
        await say_inventory(hub, terminal, old)
        accepted, _ = await ask(hub, terminal)
        owed = await hub.deliveries.claim(terminal.terminal_id, terminal.connection)
        assert owed is not None
        for state in ("downloading", "verifying", "installing", "done"):
            report = messages.State(delivery=owed.delivery, state=state)
            await hub.deliveries.report(terminal.terminal_id, terminal.connection, report)
        await say_inventory(hub, terminal, new, first=False)
        rules.write(FOX)
        await reload(hub)
        undone = await hub.syncs.undo(terminal, Undo(id=2, request_key="u", sync=accepted.sync, targets=()))
        [row] = await hub.syncs.targets(terminal, undone.sync)
        assert (row.state, row.reason) == ("no_match", "infected")


async def test_the_terminals_that_have_it_are_named_and_those_that_do_not_are_not(tmp_path: Path) -> None:
    rules = Rules(tmp_path)
    async with open_rooms(tmp_path, **rules.settings) as hub:
        published = await publish_text(hub, tmp_path)
        clean = await publish(hub, tmp_path, "0.9")
        account = await add_account(hub)
        has, other = [await add_terminal(hub, account, name) for name in ("Has it", "Has not")]
        await say_inventory(hub, has, published)
        await say_inventory(hub, other, clean)
        rules.write(FOX)
        await reload(hub)
        page = await perform(hub, "verdicts", {"infected": True})
        [one] = page["installers"]
        assert (one["digest"], one["verdict"]) == (published.digest, "infected")
        assert [terminal["name"] for terminal in one["terminals"]] == ["Has it"]
        assert "Fox in hello_1.0_all.deb: data.tar/usr/share/hello/payload" in one["engines"][0]["findings"]
        whole = await perform(hub, "verdicts", {})
        assert {one["verdict"] for one in whole["installers"]} == {"infected", "clean"}
        last = max(one["digest"] for one in whole["installers"])
        assert (await perform(hub, "verdicts", {"after": last}))["installers"] == []


# --- engines that come, go and fail ---------------------------------------------------------------------------------


async def test_installers_of_an_older_hub_are_held_until_they_are_scanned(tmp_path: Path) -> None:
    async with open_rooms(tmp_path) as hub:
        published = await publish_text(hub, tmp_path)
    with sqlite3.connect(tmp_path / "hub" / "hub.db") as database:  # as upgrade_4.sql leaves them
        database.execute("DELETE FROM verdicts")
        database.execute("UPDATE installers SET verdict = 'not-scanned', finding = ''")
    database.close()
    async with open_rooms(tmp_path) as hub:
        terminal = await add_terminal(hub, await add_account(hub))
        _, row = await ask(hub, terminal)
        assert (row.state, row.reason) == ("no_match", "not-scanned")
        assert await hub.rescans.look(resting=False) == 1
        assert await verdict_of(hub, published) == ("clean", "")
        _, row = await ask(hub, terminal, "again")
        assert row.state == "queued"


async def test_what_is_queued_waits_while_its_installer_is_held_and_goes_when_it_is_clean(tmp_path: Path) -> None:
    async with open_rooms(tmp_path) as hub:
        await publish_text(hub, tmp_path)
        terminal = await add_terminal(hub, await add_account(hub))
        await ask(hub, terminal)
    async with open_rooms(tmp_path, scan_command="/nowhere/check") as hub:
        await hub.rescans.settle_all()
        [installer] = await hub.catalogue.listing()
        assert installer.verdict == "not-scanned"
        assert "command: it has not scanned it yet" in installer.finding
        assert await hub.deliveries.claim(terminal.terminal_id, terminal.connection) is None
    async with open_rooms(tmp_path, scan_command="/bin/true") as hub:
        hub.pokes._topics.clear()
        assert await hub.rescans.look(resting=False) == 1
        assert ("owed", terminal.terminal_id) in await hub.pokes.take()
        assert await hub.deliveries.claim(terminal.terminal_id, terminal.connection) is not None


async def test_an_engine_that_is_off_now_holds_nothing(tmp_path: Path) -> None:
    async with open_rooms(tmp_path, scan_command="/nowhere/check") as hub:
        published = await publish_text(hub, tmp_path)
        assert published.verdict == "not-scanned"
    async with open_rooms(tmp_path) as hub:
        await hub.rescans.settle_all()
        assert await verdict_of(hub, published) == ("clean", "")


async def test_a_file_an_engine_failed_at_is_tried_again_an_hour_later(tmp_path: Path) -> None:
    async with open_rooms(tmp_path, scan_command="/bin/sh -c 'exit 9'") as hub:
        await publish_text(hub, tmp_path)
        assert await hub.rescans.look(resting=False) == 0
    with sqlite3.connect(tmp_path / "hub" / "hub.db") as database:
        database.execute("UPDATE verdicts SET scanned_at = ?", (time.time() - FAILED_AGAIN_SECONDS - 1,))
    database.close()
    async with open_rooms(tmp_path, scan_command="/bin/sh -c 'exit 9'") as hub:
        assert await hub.rescans.look(resting=False) == 1


async def test_a_damaged_object_is_not_scanned_and_its_installer_held(tmp_path: Path) -> None:
    async with open_rooms(tmp_path) as hub:
        published = await publish_text(hub, tmp_path)
        (pack,) = (tmp_path / "hub" / "objects").glob("??/*.pack")
        pack.write_bytes(pack.read_bytes()[:-1])
        await hub.rescans.again()
        await hub.rescans.look(resting=False)
        verdict, finding = await verdict_of(hub, published)
        assert verdict == "not-scanned"
        assert "truncated" in finding


async def test_an_object_that_cannot_be_read_keeps_no_other_from_being_scanned(tmp_path: Path) -> None:
    rules = Rules(tmp_path)
    async with open_rooms(tmp_path, **rules.settings) as hub:
        first, second = sorted([await publish_text(hub, tmp_path, one) for one in "12"], key=lambda one: one.digest)
        pack = tmp_path / "hub" / "objects" / first.digest[:2] / f"{first.digest}.pack"
        pack.write_bytes(pack.read_bytes()[:-1])
        rules.write(FOX)
        await reload(hub)
        assert (await verdict_of(hub, first))[0] == "not-scanned"
        assert (await verdict_of(hub, second))[0] == "infected"


async def test_what_an_engine_said_stands_when_it_goes_down_while_it_scans_again(tmp_path: Path) -> None:
    command = tmp_path / "check"
    command.write_text("#!/bin/sh\nexit 0\n")
    command.chmod(0o700)
    async with open_rooms(tmp_path, scan_command=str(command)) as hub:
        published = await publish_text(hub, tmp_path)
        await hub.rescans.again()
        scan = hub.scanning.scan

        async def scan_without(digest: bytes, name: str, engines: Any = None) -> Any:
            command.unlink(missing_ok=True)
            return await scan(digest, name, engines)

        hub.scanning.scan = scan_without  # type: ignore[method-assign]
        assert await hub.rescans.look(resting=False) == 1  # by the other engine
        assert (await perform(hub, "verdicts", {}))["engines"][1]["detail"].startswith("command: ")
        assert await verdict_of(hub, published) == ("clean", "")


async def test_what_nobody_gets_is_scanned_first_and_new_rules_are_not_kept_waiting(tmp_path: Path) -> None:
    async with open_rooms(tmp_path) as hub:
        order = sorted([(await publish_text(hub, tmp_path, one)).digest for one in "123"])
        await hub.rescans.again()
        scan, scanned = hub.scanning.scan, []

        async def note(digest: bytes, name: str, engines: Any = None) -> Any:
            scanned.append(digest.hex())
            if len(scanned) == 2:
                hub.rescans.reload()
            return await scan(digest, name, engines)

        hub.scanning.scan = note  # type: ignore[method-assign]
        with sqlite3.connect(tmp_path / "hub" / "hub.db") as database:
            held = bytes.fromhex(order[-1])
            database.execute("UPDATE installers SET verdict = 'not-scanned' WHERE digest = ?", (held,))
        database.close()
        assert await hub.rescans.look(resting=False) == 2
        assert scanned == [order[-1], order[0]]


async def test_what_is_queued_says_while_its_installer_is_held_that_it_is(tmp_path: Path) -> None:
    async with open_rooms(tmp_path) as hub:
        published = await publish_text(hub, tmp_path)
        terminal = await add_terminal(hub, await add_account(hub))
        accepted, row = await ask(hub, terminal)
        before = row.reason
    async with open_rooms(tmp_path, scan_command="/nowhere/check") as hub:
        await hub.rescans.settle_all()
        [row] = await hub.syncs.targets(terminal, accepted.sync)
        assert (row.state, row.reason) == ("queued", "not-scanned")
        assert "command: it has not scanned it yet" in row.detail
        await say_inventory(hub, terminal)
        [row] = await hub.syncs.targets(terminal, accepted.sync)
        assert row.reason == "not-scanned"
    async with open_rooms(tmp_path) as hub:
        await hub.rescans.settle_all()
        assert (await verdict_of(hub, published))[0] == "clean"
        [row] = await hub.syncs.targets(terminal, accepted.sync)
        assert (row.state, row.reason, row.detail) == ("queued", before, "")


# --- over real sockets ----------------------------------------------------------------------------------------------


async def hear_until(terminal: RawTerminal, kind: type[messages.Message]) -> Any:
    async with asyncio.timeout(10):
        while not isinstance(heard := await terminal.hear_any(), kind):
            pass
    return heard


async def test_a_transfer_under_way_is_withdrawn_when_its_object_turns_infected(tmp_path: Path) -> None:
    rules = Rules(tmp_path)
    async with running_hub(tmp_path, **rules.settings) as hub:
        await hub.add_account("ada")
        await publish_text(hub.hub, tmp_path)
        async with raw_terminal(hub) as enrolling:
            await enrolling.enrol("ada", name="Target")
        async with raw_terminal(hub, like=enrolling) as terminal:
            await terminal.login()
            await terminal.say(Sync(id=1, request_key="k", program="hello", targets=(terminal.terminal,)))
            offer = await hear_until(terminal, messages.Offer)
            page = await hear_until(terminal, messages.ManifestPage)
            assert page.object == offer.object
            rules.write(FOX)
            hub.hub.rescans.reload()  # as SIGHUP does
            withdrawn = await hear_until(terminal, messages.Withdraw)
            assert withdrawn.delivery == offer.delivery
            done = await hear_until(terminal, messages.SyncDone)
            assert done.outcome != "done"


async def test_a_hub_that_runs_scans_by_itself_what_nobody_has_scanned(tmp_path: Path) -> None:
    async with open_rooms(tmp_path, scan_command="/nowhere/check") as rooms:
        published = await publish_text(rooms, tmp_path)
    async with running_hub(tmp_path, scan_command="/bin/true") as hub:
        async with asyncio.timeout(20):
            while (await verdict_of(hub.hub, published))[0] != "clean":  # noqa: ASYNC110 - the hub does it by itself
                await asyncio.sleep(0.02)


async def test_a_command_that_is_not_there_is_in_the_log_as_an_engine_that_is_down(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with running_hub(tmp_path, scan_command="/nope {file}"):
        await until(lambda: "the scan engine is down, so nothing new is clean: command: /nope" in caplog.text)


async def test_what_becomes_clean_is_told_by_its_name_and_is_no_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    async with open_rooms(tmp_path, scan_command="/nowhere/check") as rooms:
        await publish_text(rooms, tmp_path)
    async with open_rooms(tmp_path, scan_command="/bin/true") as hub:
        await hub.rescans.look(resting=False)
    (told,) = [one for one in caplog.records if "is clean" in one.getMessage()]
    assert told.getMessage() == "hello 1.0 (hello_1.0_all.deb) was not-scanned and is clean"
    assert told.levelname == "INFO"


# --- the command line -----------------------------------------------------------------------------------------------


def operator(folder: Path, *arguments: str) -> str:
    result = CliRunner().invoke(main, [*arguments, "--data", str(folder / "hub")])
    assert result.exit_code == 0, result.output
    return result.output


def test_the_command_line_shows_verdicts_and_has_everything_scanned_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rules = Rules(tmp_path)
    monkeypatch.setenv("LOCKSTEP_HUB_SCAN_RULES", str(rules.folder))
    path = make_installer(tmp_path, "deb", size=3_000, content="text")
    operator(tmp_path, "publish", str(path))
    assert "Nothing was found" in operator(tmp_path, "verdicts", "--infected")
    assert "clean" in operator(tmp_path, "verdicts")
    rules.write(FOX)
    assert "1 installers were scanned again" in operator(tmp_path, "verdicts", "rescan")
    shown = operator(tmp_path, "verdicts", "--infected")
    assert "INFECTED: hello 1.0 (hello_1.0_all.deb): yara-x: Fox in hello_1.0_all.deb" in shown
    withdrawn = CliRunner().invoke(main, ["publish", str(path), "--data", str(tmp_path / "hub")])
    assert "infected, so nobody gets it" in withdrawn.output
    assert withdrawn.exit_code == 1
    assert '"verdict": "infected"' in operator(tmp_path, "verdicts", "--json")


def test_the_command_line_says_that_nobody_scans_and_that_an_engine_is_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_installer(tmp_path, "deb", size=3_000)
    monkeypatch.setenv("LOCKSTEP_HUB_SCAN_YARA", "false")
    operator(tmp_path, "publish", str(path))
    assert "Nobody scans" in operator(tmp_path, "verdicts")
    monkeypatch.setenv("LOCKSTEP_HUB_SCAN_CLAMD", "unix:/nowhere/clamd.sock")
    assert "clamd: DOWN: clamd: unix:/nowhere/clamd.sock cannot be reached" in operator(tmp_path, "verdicts")
    second = make_installer(tmp_path, "deb", version="2.0", size=3_000)
    shown = operator(tmp_path, "publish", str(second))
    assert "It is not scanned, so nobody gets it yet: clamd:" in shown
    assert "tried again by itself" in shown
    monkeypatch.setenv("LOCKSTEP_HUB_SCAN_COMMAND", "/nope {file}")
    assert "command: DOWN: command: /nope is not there, or may not be started" in operator(tmp_path, "verdicts")
