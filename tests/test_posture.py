"""Posture from end to end: a real hub that requires it, real terminals, the starter rules and the EICAR test file."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from protocol.errors import RefusedError
from protocol.messages import Standing
from terminal.client import Client, enrol, open_client
from terminal.consent import Preferences
from terminal.detection import detect_device
from terminal.simulated import DEFAULT_MIX, make_devices
from terminal.state import StateFolder
from tests.harness import PASSWORD, RunningHub, devices, ended, make_installer, running_hub, until
from tests.harness.terminals import TerminalProcess

# https://www.eicar.org: every engine finds it, and none may find it in this file.
EICAR = rb"X5O!P%@AP[4\PZX54(P^)7CC)7}$EICAR-" + b"STANDARD-ANTIVIRUS-TEST-FILE!$H+H*"
REQUIRED = {"posture_targets": "require", "posture_initiators": "require"}
WAIT_SECONDS = 40.0


@asynccontextmanager
async def requiring_hub(tmp_path: Path, **settings: Any) -> AsyncIterator[RunningHub]:
    async with running_hub(tmp_path, **(settings or REQUIRED)) as hub:
        await hub.add_account("ada")
        yield hub


async def enrolled(hub: RunningHub, path: Path) -> StateFolder:
    folder = StateFolder(path)
    device = detect_device(path)
    await enrol(folder, hub.url, account="ada", password=PASSWORD, name=path.name, device=device)
    return folder


async def posture(folder: StateFolder, *options: str) -> tuple[int, dict[str, Any]]:
    """Run `lockstep-terminal posture`; return its exit code and its answer."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "terminal", "posture", *options, "--json", "--state", str(folder.path),
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    async with asyncio.timeout(WAIT_SECONDS):
        output, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, json.loads(output)


async def seen(client: Client, name: str, *, standing: str) -> None:
    """Wait until a device is seen with this standing in the list."""
    async with asyncio.timeout(WAIT_SECONDS):
        while True:
            [row] = [one for one in await client.devices() if one.name == name]
            if row.standing == standing:
                return
            await asyncio.sleep(0.05)


async def may_all(folder: StateFolder) -> None:
    """Wait until the hub has this terminal's good report."""
    await until(lambda: has_told(folder) and is_fine(folder.standing()))


def has_told(folder: StateFolder) -> bool:
    saved = folder.posture()
    return saved is not None and saved.told


def is_fine(standing: Standing | None) -> bool:
    return standing is None or (standing.may_receive and standing.may_initiate)


async def test_a_terminal_with_something_bad_in_a_programs_folder_is_quarantined_until_it_is_gone(
    tmp_path: Path,
) -> None:
    async with requiring_hub(tmp_path) as hub:
        tv, pc = await enrolled(hub, tmp_path / "TV"), await enrolled(hub, tmp_path / "PC")
        await hub.publish(make_installer(tmp_path, "deb", "hello", "1.0"))
        async with TerminalProcess(tv.path), TerminalProcess(pc.path):
            await asyncio.gather(may_all(tv), may_all(pc))
            async with open_client(pc) as on_pc, open_client(tv) as on_tv:
                target = (tv.identity().terminal,)
                assert await ended(await on_pc.sync("hello", targets=target)) == "done"

                root = tv.path / "programs/deb-root"
                assert root.is_dir()
                (root / "crept-in.com").write_bytes(EICAR)
                code, answer = await posture(tv, "--now")
                assert code == 1
                assert [row["rule"] for row in answer["posture"]["findings"]] == ["EICAR_test_file"]
                assert answer["posture"]["findings"][0]["file"] == "programs/deb-root/crept-in.com"
                assert answer["told"]
                assert answer["standing"]["quarantined"]
                assert "posture --now" in answer["standing"]["hint"], "it says how to get out"

                await seen(on_pc, "TV", standing="quarantined")
                with pytest.raises(RefusedError) as refused:
                    await on_tv.sync("hello", targets=(pc.identity().terminal,))
                assert refused.value.code == "posture-failed"
                assert "posture --now" in refused.value.hint

                await hub.publish(make_installer(tmp_path, "deb", "hello", "2.0", seed=2))
                watch = await on_pc.sync("hello", targets=target)
                [row] = await on_pc.sync_result(watch.sync)
                assert (row.state, row.reason) == ("queued", "posture-failed")
                assert [one.version for one in tv.inventory()] == ["1.0"], "nothing is delivered"
                assert not await nothing_comes(on_pc, watch.sync)

                (root / "crept-in.com").unlink()
                code, answer = await posture(tv, "--now")
                assert code == 0
                assert is_fine(Standing(**answer["standing"]) if answer["standing"] else None)
                assert await ended(watch) == "done"
                assert [one.version for one in tv.inventory()] == ["2.0"]
                await seen(on_pc, "TV", standing="")


async def nothing_comes(client: Client, sync: str) -> bool:
    """Return whether a delivery has moved after a look or two of the hub at what is owed."""
    for _ in range(20):
        [row] = await client.sync_result(sync)
        if row.state != "queued":
            return True
        await asyncio.sleep(0.05)
    return False


async def test_a_terminal_that_is_killed_in_the_middle_of_a_scan_is_asked_again(
    tmp_path: Path,
) -> None:
    async with requiring_hub(tmp_path) as hub:
        tv = await enrolled(hub, tmp_path / "TV")
        root = tv.path / "programs/deb-root"
        root.mkdir(parents=True)
        for number in range(2):
            (root / str(number)).write_bytes(bytes(300_000))
        tv.save_preferences(Preferences(scan_bytes_per_second=8_000))  # for 75 s
        async with TerminalProcess(tv.path) as process:
            await until(lambda: "Scanning" in process.log.read_text())
            await process.kill()
            assert tv.posture() is None
            tv.save_preferences(Preferences())
            await process.start()
            await may_all(tv)
        saved = tv.posture()
        assert saved is not None
        assert (saved.report.files, saved.report.complete) == (2, True)


async def test_a_simulated_fleet_answers_as_it_is_told_to(tmp_path: Path) -> None:
    async with requiring_hub(tmp_path) as hub:
        await hub.publish(make_installer(tmp_path, "deb", "hello"))
        made = make_devices([one for one in DEFAULT_MIX if "deb" in one.device.installer_kinds], 4, seed=1)
        async with devices(hub, "ada", made, connect=False) as fleet:
            good, other, bad, silent = fleet.devices
            bad.posture, silent.posture = "finding", "never"
            await fleet.go_online()
            await asyncio.gather(may_all(good.folder), may_all(other.folder))
            await seen(good.client, bad.name, standing="quarantined")
            watch = await good.client.sync("hello", everyone=True)
            await until(lambda: other.installed_file("hello") is not None)
            rows = {row.terminal: row for row in await good.client.sync_result(watch.sync)}
            for held in (bad, silent):
                assert (rows[held.terminal].state, rows[held.terminal].reason) == ("queued", "posture-failed")
                with pytest.raises(RefusedError) as refused:
                    await held.client.sync("hello", targets=(good.terminal,))
                assert refused.value.code == "posture-failed"
            silent.posture = "clean"
            await until(lambda: silent.installed_file("hello") is not None)
            assert not bad.installed_file("hello")
            bad.posture = "clean"
            await bad.postures.scan_now()
            await until(lambda: bad.installed_file("hello") is not None)


async def test_where_a_posture_is_only_reported_it_decides_nothing(tmp_path: Path) -> None:
    async with requiring_hub(tmp_path, posture_targets="report") as hub:
        await hub.publish(make_installer(tmp_path, "deb", "hello"))
        made = make_devices([one for one in DEFAULT_MIX if "deb" in one.device.installer_kinds], 2, seed=1)
        async with devices(hub, "ada", made, connect=False) as fleet:
            good, bad = fleet.devices
            bad.posture = "finding"
            await fleet.go_online()
            await until(lambda: has_told(bad.folder))
            assert await ended(await good.client.sync("hello", targets=(bad.terminal,))) == "done"


async def test_new_rules_go_to_the_terminals_which_scan_again_with_them(tmp_path: Path) -> None:
    rules = tmp_path / "rules"
    rules.mkdir()
    (rules / "first.yar").write_text('rule first { strings: $a = "no file has this" condition: $a }')
    async with requiring_hub(tmp_path, scan_rules=str(rules), **REQUIRED) as hub:
        tv, pc = await enrolled(hub, tmp_path / "TV"), await enrolled(hub, tmp_path / "PC")
        (tv.path / "programs/deb-root").mkdir(parents=True)
        (tv.path / "programs/deb-root/program").write_bytes(b"it is known by now that this is bad")
        async with TerminalProcess(tv.path), TerminalProcess(pc.path):
            await asyncio.gather(may_all(tv), may_all(pc))
            before = rule_set_of(tv)
            (rules / "second.yar").write_text('rule second { strings: $a = "that this is bad" condition: $a }')
            await hand_out_anew(hub)
            async with open_client(pc) as on_pc:
                await seen(on_pc, "TV", standing="quarantined")
        saved = tv.posture()
        assert saved is not None
        assert [row.rule for row in saved.report.findings] == ["second"]
        assert saved.report.rules.hex() == rule_set_of(tv) != before, "and the old rules are gone from the disk"


async def hand_out_anew(hub: RunningHub) -> None:
    """Have the hub read its rules again, and do now what it else does once a minute."""
    handed = hub.hub.handed_rules
    before = handed.current
    for reload in hub.hub.reload:
        reload()
    async with asyncio.timeout(WAIT_SECONDS):
        while handed.current == before:
            await handed.look()
            await asyncio.sleep(0.05)
    await hub.hub.revocation.look_at_postures()


def rule_set_of(folder: StateFolder) -> str:
    [file] = folder.rules.iterdir()
    return file.name
