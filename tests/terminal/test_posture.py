"""Scans of this terminal's programs: what is looked at, at what pace, and what becomes of requests for it."""

import asyncio
import errno
import io
import json
import os
import re
import socket
import subprocess
import tarfile
import threading
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from msgspec import structs

from protocol import codec, keys, limits, messages
from protocol.errors import RefusedError, TransferError, UsageError
from protocol.messages import FindingRow, InstalledProgram, Posture, PostureReport, PostureRequest
from scanner import yara
from terminal import cli
from terminal import posture as posture_module
from terminal.consent import Preferences
from terminal.installers import RunnerSettings, build_runners
from terminal.posture import BUDGET, Budget, Looked, Postures, Scan, StoppedError, fitting, report_of, settle_rules
from terminal.programfiles import Places, ProgramFile, Unlisted, files_of, open_regular
from terminal.state import SavedPosture, StateFolder
from tests.terminal.scripted import DEVICE_KEY, HUB_KEY, Peer, Thing, hub, thing_of
from tests.terminal.test_connection import hang_up, identity_at, running
from tests.terminal.test_installers import build_deb, build_wheel, task_for, wheel_task

EVIL = b"this is " + b"PLANTED evil, in a file"
RULES = thing_of(b'rule planted { strings: $a = "PLANTED ' + b'evil" condition: $a }')
OTHER_RULES = thing_of(b'rule other { strings: $a = "something ' + b'else" condition: $a }')
FAST = replace(BUDGET, bytes_per_second=10**12)
HELLO = InstalledProgram(
    program="hello", package_name="hello-lockstep", version="1.0", installer_kind="deb", digest=b"h" * 32
)


@pytest.fixture
def folder(tmp_path: Path) -> StateFolder:
    folder = StateFolder(tmp_path / "state")
    folder.save_identity(identity_at("ws://127.0.0.1:1"))
    return folder


@pytest.fixture(scope="module")
def compiled() -> bytes:
    return yara.compile_rules(RULES.content)


def keep_rules(folder: StateFolder, rules: Thing = RULES) -> None:
    (folder.rules / rules.digest.hex()).write_bytes(rules.content)


def look(compiled: bytes, root: Path, budget: Budget = FAST, gone: threading.Event | None = None) -> Looked:
    """Scan the files below `root`."""
    scan = Scan(compiled, root, budget, gone or threading.Event())
    return scan.look(Places(root, (), (), {}), RULES.digest)


def found_in(looked: Looked) -> list[str]:
    return sorted(row.file for row in looked.findings)


# --- which files --------------------------------------------------------------------------------------------------


async def test_a_private_root_is_looked_at_whole_and_each_file_belongs_to_its_program(tmp_path: Path) -> None:
    deb = build_deb(tmp_path, "1.0", files={"opt/hello/bin": "x", "usr/share/hello/a/b": "y"})
    runners = build_runners(tmp_path / "programs", ("deb",), {})
    assert (await runners["deb"].install(task_for("deb", deb))).ok
    root = tmp_path / "programs/deb-root"
    (root / "opt/hello/crept-in").write_bytes(b"z")
    (root / "opt/crept-in").write_bytes(b"z")
    (root / "elsewhere").write_bytes(b"z")
    (tmp_path / "installed").mkdir()
    (tmp_path / "installed" / HELLO.digest.hex()).write_bytes(b"installer")
    found = list(files_of(Places(tmp_path / "installed", (HELLO,), (HELLO,), runners)))
    files = {one.path: one.program for one in found if isinstance(one, ProgramFile)}
    assert len(files) == len(found), "everything could be listed, and each file is there once"
    assert files[root / "opt/hello/bin"] == files[root / "usr/share/hello/a/b"] == "hello"
    assert files[tmp_path / "installed" / HELLO.digest.hex()] == "hello"
    assert files[root / "opt/hello/crept-in"] == files[root / "opt/crept-in"] == "hello"
    assert files[root / "elsewhere"] == ""


async def test_the_files_of_a_wheel_are_those_of_its_environment(tmp_path: Path) -> None:
    runners = build_runners(tmp_path / "programs", ("wheel",), {})
    wheel = build_wheel(tmp_path, "1.0")
    assert (await runners["wheel"].install(wheel_task(wheel, "1.0"))).ok
    program = structs.replace(HELLO, installer_kind="wheel", package_name="Hello.Lockstep")
    found = files_of(Places(tmp_path / "nothing", (), (program,), runners))
    files = {one.path.name: one.program for one in found if isinstance(one, ProgramFile)}
    assert files["hello_lockstep.py"] == files["METADATA"] == "hello"
    assert files["pyvenv.cfg"] == ""


def test_a_program_among_the_systems_files_is_looked_at_by_dpkgs_own_list() -> None:
    runners = build_runners(Path("/nowhere"), ("deb",), {"deb": RunnerSettings(command=["true"])})
    program = structs.replace(HELLO, package_name="dpkg")
    found = list(files_of(Places(Path("/nowhere"), (), (program,), runners)))
    assert ProgramFile(Path("/usr/bin/dpkg"), "hello") in found
    assert not any(isinstance(one, ProgramFile) and one.path.is_dir() for one in found)
    unknown = structs.replace(HELLO, package_name="no-such-package-here")
    assert [type(one) for one in files_of(Places(Path("/nowhere"), (), (unknown,), runners))] == [Unlisted]


def test_links_are_not_followed_and_what_is_no_file_is_not_opened(tmp_path: Path, compiled: bytes) -> None:
    outside, inside = tmp_path / "outside", tmp_path / "inside"
    outside.mkdir()
    inside.mkdir()
    (outside / "evil").write_bytes(EVIL)
    (inside / "link").symlink_to(outside / "evil")
    (inside / "folder").symlink_to(outside)
    (inside / "fine").write_bytes(b"fine")
    os.mkfifo(inside / "pipe")
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(inside / "socket"))
    looked = look(compiled, inside)
    assert (looked.files, looked.skipped, looked.findings) == (1, 0, ())
    assert open_regular(inside / "pipe") is None, "put in the place of a file, it does not make the scan wait"
    with pytest.raises(OSError, match="symbolic links"):
        open_regular(inside / "link")


def test_folders_nested_deeper_than_calls_are_looked_at(tmp_path: Path, compiled: bytes) -> None:
    deep = tmp_path.joinpath(*["d"] * 1_500)
    descriptor = os.open(tmp_path, os.O_RDONLY)
    for _ in range(1_500):
        os.mkdir("d", dir_fd=descriptor)
        inner = os.open("d", os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = inner
    evil = os.open("evil", os.O_WRONLY | os.O_CREAT, dir_fd=descriptor)
    os.write(evil, EVIL)
    os.close(evil)
    os.close(descriptor)
    try:
        assert len(str(deep)) < 4_096
        assert len(look(compiled, tmp_path).findings) == 1
    finally:  # Python's own rmtree, with which pytest tidies up, calls itself for each level
        subprocess.run(["rm", "-rf", tmp_path / "d"], check=True)


# --- one scan -----------------------------------------------------------------------------------------------------


def test_what_the_rules_find_is_named_with_its_file_however_many_clean_ones_are_around(
    tmp_path: Path, compiled: bytes
) -> None:
    for number in range(700):
        (tmp_path / f"f{number}").write_bytes(b"%d" % number)
    (tmp_path / "f350").write_bytes(EVIL)
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "large").write_bytes(bytes(3_000_000) + EVIL)
    looked = look(compiled, tmp_path)
    assert found_in(looked) == ["f350", "large"]
    assert {row.rule for row in looked.findings} == {"planted"}
    assert (looked.files, looked.skipped, looked.complete) == (702, 0, True)
    assert looked.bytes == sum(file.stat().st_size for file in tmp_path.iterdir())


def archives() -> dict[str, bytes]:
    zipped, tarred = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(zipped, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("inner", EVIL)
    with tarfile.open(fileobj=tarred, mode="w:gz") as packed:
        member = tarfile.TarInfo("inner")
        member.size = len(EVIL)
        packed.addfile(member, io.BytesIO(EVIL))
    return {"zip": zipped.getvalue(), "tar.gz": tarred.getvalue(), "appended": b"#!/bin/sh\n" + zipped.getvalue()}


@pytest.mark.parametrize("kind", ["zip", "tar.gz", "appended"])
def test_a_small_archive_among_others_is_looked_into(tmp_path: Path, compiled: bytes, kind: str) -> None:
    (tmp_path / "fine").write_bytes(b"fine")
    (tmp_path / "archive").write_bytes(archives()[kind])
    assert found_in(look(compiled, tmp_path)) == ["archive: inner"]


def test_what_cannot_be_read_or_is_too_large_is_counted_as_passed_over(tmp_path: Path, compiled: bytes) -> None:
    (tmp_path / "fine").write_bytes(b"fine")
    (tmp_path / "large").write_bytes(bytes(1_001))
    looked = look(compiled, tmp_path, replace(FAST, file_bytes=1_000))
    assert (looked.files, looked.skipped, looked.complete) == (1, 1, True)


def test_a_file_that_vanishes_is_passed_over_and_counted(
    tmp_path: Path, compiled: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "fine").write_bytes(b"fine")
    gone = ProgramFile(tmp_path / "gone", "")
    monkeypatch.setattr(posture_module, "files_of", lambda _places: iter([gone, ProgramFile(tmp_path / "fine", "")]))
    looked = look(compiled, tmp_path)
    assert (looked.files, looked.skipped) == (1, 1)


def test_a_scan_that_could_look_at_nothing_is_not_complete(tmp_path: Path, compiled: bytes) -> None:
    (tmp_path / "large").write_bytes(bytes(1_001))
    assert not look(compiled, tmp_path, replace(FAST, file_bytes=1_000)).complete
    assert look(compiled, tmp_path / "empty").complete, "where there is nothing, all of it was looked at"


@pytest.mark.parametrize("budget", [replace(FAST, bytes=30_000), replace(FAST, seconds=0.0)])
def test_past_its_budget_a_scan_is_not_complete(tmp_path: Path, compiled: bytes, budget: Budget) -> None:
    for number in range(10):
        (tmp_path / f"f{number}").write_bytes(bytes(10_000))
    looked = look(compiled, tmp_path, budget)
    assert not looked.complete
    assert looked.files < 10
    assert look(compiled, tmp_path).complete


def test_a_scan_keeps_its_pace(tmp_path: Path, compiled: bytes) -> None:
    for number in range(8):
        (tmp_path / f"f{number}").write_bytes(bytes(100_000))
    began_at = time.monotonic()
    looked = look(compiled, tmp_path, replace(FAST, bytes_per_second=800_000))
    assert looked.files == 8
    assert time.monotonic() - began_at >= 1.0
    assert looked.seconds >= 1.0


def test_a_scan_that_waits_for_its_pace_ends_with_its_time(tmp_path: Path, compiled: bytes) -> None:
    for number in range(3):
        (tmp_path / f"f{number}").write_bytes(bytes(100_000))
    began_at = time.monotonic()
    looked = look(compiled, tmp_path, replace(FAST, bytes_per_second=1, seconds=0.3))
    assert time.monotonic() - began_at < 15.0
    assert not looked.complete


def test_files_there_is_no_room_to_hand_over_are_passed_over_and_counted(
    tmp_path: Path, compiled: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        (tmp_path / f"f{number}").write_bytes(b"%d" % number)

    def full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("terminal.posture.tempfile.TemporaryFile", full)
    looked = look(compiled, tmp_path)
    assert (looked.files, looked.skipped, looked.complete) == (0, 3, False)


def test_a_scan_nobody_wants_any_more_stops_while_it_waits(tmp_path: Path, compiled: bytes) -> None:
    (tmp_path / "f").write_bytes(bytes(100_000))
    gone = threading.Event()
    threading.Timer(0.2, gone.set).start()
    began_at = time.monotonic()
    with pytest.raises(StoppedError):
        look(compiled, tmp_path, replace(FAST, bytes_per_second=1), gone)
    assert time.monotonic() - began_at < 15.0


def test_a_report_holds_as_many_findings_as_fit_and_counts_the_rest() -> None:
    rows = tuple(
        FindingRow(program="p" * 128, file=f"{number:02}" + "\N{SNOWMAN}" * 1_000, rule="r" * 64)
        for number in range(limits.POSTURE_FINDINGS)
    )
    looked = Looked(rules=RULES.digest, began_at=0.0, findings=rows, findings_in_all=1_000)
    report = fitting(report_of(looked, b"n" * 32))
    data = codec.encode_report(report)
    assert len(data) <= limits.POSTURE_BYTES < len(codec.encode_report(report_of(looked, b"n" * 32)))
    assert 0 < len(report.findings) < len(rows)
    assert codec.decode_report(data) == report
    assert report.findings_in_all == 1_000


# --- rule sets ----------------------------------------------------------------------------------------------------


def test_a_new_rule_set_takes_the_place_of_all_others(folder: StateFolder) -> None:
    keep_rules(folder)
    keep_rules(folder, OTHER_RULES)
    settle_rules(folder, OTHER_RULES.digest, threading.Event())
    assert [file.name for file in folder.rules.iterdir()] == [OTHER_RULES.digest.hex()]


def test_rules_that_do_not_compile_are_refused_with_the_compilers_words_and_the_old_ones_stay(
    folder: StateFolder,
) -> None:
    wrong = thing_of(b"rule wrong { condition: nonsense }")
    keep_rules(folder)
    keep_rules(folder, wrong)
    with pytest.raises(TransferError, match="nonsense") as refused:
        settle_rules(folder, wrong.digest, threading.Event())
    assert refused.value.code == "bad-rules"
    assert [file.name for file in folder.rules.iterdir()] == [RULES.digest.hex()]


def test_rules_that_a_kill_left_uncompiled_go_when_they_do_not_compile_and_are_sent_anew(folder: StateFolder) -> None:
    wrong = thing_of(b"rule wrong { condition: nonsense }")
    keep_rules(folder, wrong)  # in its place, and killed before `settle_rules` had looked at it
    places = Places(folder.installed, (), (), {})
    with pytest.raises(UsageError, match="nonsense"):
        posture_module.scan_programs(folder, wrong.digest, places, BUDGET, threading.Event())
    assert not list(folder.rules.iterdir())


def test_rules_there_is_no_room_to_compile_are_refused(folder: StateFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    keep_rules(folder)
    keep_rules(folder, OTHER_RULES)
    monkeypatch.setattr("scanner.yara.tempfile.TemporaryFile", full)
    with pytest.raises(TransferError, match="No space left") as refused:
        settle_rules(folder, OTHER_RULES.digest, threading.Event())
    assert refused.value.code == "no-space"
    assert [file.name for file in folder.rules.iterdir()] == [RULES.digest.hex()]


def test_a_rule_set_that_was_damaged_on_the_disk_is_as_good_as_none(folder: StateFolder) -> None:
    keep_rules(folder)
    assert posture_module.read_rules(folder, RULES.digest) == RULES.content
    (folder.rules / RULES.digest.hex()).write_bytes(b"damaged")
    assert posture_module.read_rules(folder, RULES.digest) is None
    assert not list(folder.rules.iterdir())


# --- requests -----------------------------------------------------------------------------------------------------


class HeldPostures(Postures):
    """Scans that end when the test says so."""

    def __init__(self, folder: StateFolder) -> None:
        super().__init__(folder, {}, lambda _kind, _sentence: None)
        self.scans: list[tuple[bytes, asyncio.Future[None]]] = []
        self.begun = asyncio.Event()
        self.said: list[PostureReport] = []
        self.news = asyncio.Event()
        self.listen(self.take)

    def take(self, posture: Posture) -> None:
        self.said.append(codec.decode_report(posture.report))
        self.news.set()

    async def look(self, rules: bytes, places: Places, gone: threading.Event) -> Looked:
        ends: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.scans.append((rules, ends))
        self.begun.set()
        while not ends.done():
            if gone.is_set():
                raise StoppedError
            await asyncio.wait([ends], timeout=0.01)
        return Looked(rules=rules, began_at=float(len(self.scans)))

    async def scan(self, number: int) -> asyncio.Future[None]:
        """Wait for the scan with this number, from 1."""
        async with asyncio.timeout(10):
            while len(self.scans) < number:
                self.begun.clear()
                await self.begun.wait()
        return self.scans[number - 1][1]

    async def report(self, number: int) -> PostureReport:
        """Wait for the report with this number, from 1."""
        async with asyncio.timeout(10):
            while len(self.said) < number:
                self.news.clear()
                await self.news.wait()
        return self.said[number - 1]


def request(nonce: bytes, rules: Thing = RULES) -> PostureRequest:
    return PostureRequest(rules=rules.digest, nonce=nonce * 32)


async def test_a_hub_that_asks_again_and_again_gets_one_scan_with_its_newest_nonce(folder: StateFolder) -> None:
    postures = HeldPostures(folder)
    for nonce in (b"1", b"2", b"3"):
        postures.ask(request(nonce))
    ends = await postures.scan(1)
    postures.ask(request(b"4"))
    ends.set_result(None)
    assert (await postures.report(1)).nonce == b"4" * 32
    postures.ask(request(b"5"))
    again = await postures.report(2)
    assert (again.nonce, again.began_at) == (b"5" * 32, 1.0), "what was found a moment ago is said once more"
    assert len(postures.scans) == 1
    await postures.stop()


async def test_after_an_installation_a_request_is_answered_by_a_new_scan(folder: StateFolder) -> None:
    postures = HeldPostures(folder)
    postures.ask(request(b"1"))
    (await postures.scan(1)).set_result(None)
    await postures.report(1)
    folder.record_installed(HELLO)
    postures.ask(request(b"2"))
    (await postures.scan(2)).set_result(None)
    assert (await postures.report(2)).began_at == 2.0
    await postures.stop()


async def test_a_request_with_other_rules_stops_the_scan_that_runs(folder: StateFolder) -> None:
    postures = HeldPostures(folder)
    postures.ask(request(b"1"))
    await postures.scan(1)
    postures.ask(request(b"2", OTHER_RULES))
    (await postures.scan(2)).set_result(None)
    report = await postures.report(1)
    assert (report.rules, report.nonce) == (OTHER_RULES.digest, b"2" * 32)
    assert len(postures.said) == 1
    await postures.stop()


async def test_a_scan_a_person_asks_for_begins_after_that_and_is_said_to_the_hub(folder: StateFolder) -> None:
    postures = HeldPostures(folder)
    postures.ask(request(b"1"))
    first = await postures.scan(1)
    now = asyncio.create_task(postures.scan_now())
    await asyncio.sleep(0)
    first.set_result(None)
    second = await postures.scan(2)
    assert not now.done(), "the first scan had begun before"
    second.set_result(None)
    await now
    assert [report.began_at for report in postures.said] == [1.0, 2.0]
    assert {report.nonce for report in postures.said} == {b"1" * 32}
    await postures.stop()


async def test_a_new_connection_is_not_told_what_another_one_asked_for(folder: StateFolder) -> None:
    postures = HeldPostures(folder)
    keep_rules(folder)
    postures.ask(request(b"1"))
    ends = await postures.scan(1)
    postures.listen(postures.take)
    waits = asyncio.create_task(postures.scan_now())
    await asyncio.sleep(0)
    ends.set_result(None)
    (await postures.scan(2)).set_result(None)
    await waits
    assert postures.said == []
    saved = folder.posture()
    assert saved is not None
    assert not saved.told
    await postures.stop()


async def test_whoever_waits_for_a_scan_is_told_when_this_terminal_stops(folder: StateFolder) -> None:
    postures = HeldPostures(folder)
    keep_rules(folder)
    waits = asyncio.create_task(postures.scan_now())
    await postures.scan(1)
    await postures.stop()
    with pytest.raises(Exception, match="stopping"):
        await waits


async def test_the_engine_runs_at_low_priority_and_this_process_does_not(
    folder: StateFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = os.nice(0)
    seen: list[int] = []

    def look_on(_folder: StateFolder, rules: bytes, *_: object) -> Looked:
        seen.append(int(subprocess.run(["nice"], check=True, capture_output=True).stdout))
        return Looked(rules=rules, began_at=0.0)

    monkeypatch.setattr(posture_module, "scan_programs", look_on)
    keep_rules(folder)
    postures = Postures(folder, {}, lambda _kind, _sentence: None)
    await postures.scan_now()
    await postures.stop()
    assert seen == [max(posture_module.NICENESS, ours)]
    assert os.nice(0) == ours


def test_rules_nobody_waits_for_any_more_are_not_taken(folder: StateFolder) -> None:
    gone = threading.Event()
    gone.set()
    keep_rules(folder)
    keep_rules(folder, OTHER_RULES)
    with pytest.raises(TransferError):
        settle_rules(folder, OTHER_RULES.digest, gone)
    assert [file.name for file in folder.rules.iterdir()] == [RULES.digest.hex()]


async def test_without_a_rule_set_there_is_no_scan(folder: StateFolder) -> None:
    postures = Postures(folder, {}, lambda _kind, _sentence: None)
    with pytest.raises(RefusedError) as refused:
        await postures.scan_now()
    assert refused.value.code == "not-scanned"
    await postures.stop()


async def test_the_owner_sets_the_pace_of_scans(folder: StateFolder, tmp_path: Path) -> None:
    keep_rules(folder)
    (folder.installed / "file").write_bytes(bytes(100_000))
    folder.save_preferences(Preferences(scan_bytes_per_second=200_000))
    postures = Postures(folder, {}, lambda _kind, _sentence: None)
    await postures.scan_now()
    await postures.stop()
    saved = folder.posture()
    assert saved is not None
    assert saved.report.seconds >= 0.5


# --- with a hub ---------------------------------------------------------------------------------------------------


async def send_rules(peer: Peer, what: Thing, delivery: str = "rules-1") -> messages.AnyMessage:
    """Send a rule set; return the last word on it."""
    await peer.say(what.rules(delivery), what.page())
    while True:
        match await peer.hear_any():
            case messages.Want(runs=runs):
                await peer.say(*(what.frame(run) for run in runs))
            case messages.Progress():
                pass
            case other:
                return other


def report_in(said: messages.AnyMessage) -> PostureReport:
    """Return the report, whose signature has to be right."""
    assert isinstance(said, Posture), said
    signed = keys.posture_bytes(hub_key=HUB_KEY.public, terminal="t-1", report=said.report)
    assert keys.verifies(DEVICE_KEY.public, said.signature, signed)
    return codec.decode_report(said.report)


async def test_rules_come_the_programs_are_scanned_and_a_signed_report_goes_back(folder: StateFolder) -> None:
    reports: list[PostureReport] = []
    heard: list[messages.AnyMessage] = []

    async def script(peer: Peer) -> None:
        await peer.open()
        await peer.hear(messages.Inventory)
        heard.append(await send_rules(peer, RULES))
        await peer.say(RULES.rules("rules-2"))
        heard.append(await peer.hear_any())
        await peer.say(request(b"1"))
        reports.append(report_in(await peer.hear_any()))
        await peer.socket.close()

    (folder.installed / HELLO.digest.hex()).write_bytes(EVIL)
    folder.record_installed(HELLO)
    async with hub(script, hang_up) as url, running(folder, url) as agent:
        await agent.until("posture", 3)
        await agent.until("reconnecting")
    assert heard == [messages.Received(delivery="rules-1"), messages.Received(delivery="rules-2")]
    [report] = reports
    assert (report.rules, report.nonce) == (RULES.digest, b"1" * 32)
    row = FindingRow(program="hello", file=f"installed/{HELLO.digest.hex()}", rule="planted")
    assert (report.findings, report.findings_in_all, report.programs) == ((row,), 1, 1)
    assert folder.posture() == SavedPosture(report=report, told=True)
    assert (folder.rules / RULES.digest.hex()).read_bytes() == RULES.content


async def test_rules_that_do_not_compile_are_refused_in_words_and_the_next_ones_are_taken(folder: StateFolder) -> None:
    heard: list[messages.AnyMessage] = []

    async def script(peer: Peer) -> None:
        await peer.open()
        await peer.hear(messages.Inventory)
        heard.append(await send_rules(peer, thing_of(b"rule wrong { condition: nonsense }")))
        heard.append(await send_rules(peer, RULES, "rules-2"))
        await peer.socket.close()

    async with hub(script, hang_up) as url, running(folder, url) as agent:
        await agent.until("reconnecting")
    refused, received = heard
    assert isinstance(refused, messages.Refused)
    assert (refused.delivery, refused.reason) == ("rules-1", "bad-rules")
    assert "nonsense" in refused.detail
    assert received == messages.Received(delivery="rules-2")
    assert [file.name for file in folder.rules.iterdir()] == [RULES.digest.hex()]


async def test_rules_without_room_on_the_disk_are_refused_and_nothing_of_them_is_kept(
    folder: StateFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    kwdefaults = {"place": None, "reserve_bytes": 2**60}
    monkeypatch.setattr("terminal.downloads.Download.__init__.__kwdefaults__", kwdefaults)
    heard: list[messages.AnyMessage] = []

    async def script(peer: Peer) -> None:
        await peer.open()
        await peer.hear(messages.Inventory)
        heard.append(await send_rules(peer, RULES))
        await peer.socket.close()

    async with hub(script, hang_up) as url, running(folder, url) as agent:
        await agent.until("reconnecting")
    [refused] = heard
    assert isinstance(refused, messages.Refused)
    assert refused.reason == "no-space"
    assert not list(folder.rules.iterdir())
    assert not list(folder.downloads.iterdir())


async def test_an_agent_stops_at_once_in_the_middle_of_a_scan(folder: StateFolder) -> None:
    asked = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.open()
        await peer.hear(messages.Inventory)
        await send_rules(peer, RULES)
        await peer.say(request(b"1"))
        asked.set()
        await hang_up(peer)

    folder.save_preferences(Preferences(scan_bytes_per_second=1))
    for number in range(3):
        (folder.installed / str(number)).write_bytes(bytes(300_000))
    async with hub(script) as url, running(folder, url) as agent:
        await asyncio.wait_for(asked.wait(), 10)
        began_at = time.monotonic()
        agent.stop.set()
        assert await asyncio.wait_for(agent.task, 10) == "stopped"
    assert time.monotonic() - began_at < 15.0
    assert folder.posture() is None


# --- the command --------------------------------------------------------------------------------------------------


def command(folder: StateFolder, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    code = cli.run_command([*arguments, "--state", str(folder.path)])
    printed = capsys.readouterr()
    return code, printed.out + printed.err


def test_the_command_says_that_nothing_was_scanned_and_why_nothing_can_be(
    folder: StateFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    code, shown = command(folder, capsys, "posture")
    assert code == 0
    assert re.search(r"scanned +never", shown)
    code, shown = command(folder, capsys, "posture", "--now", "--json")
    assert code == 1
    assert json.loads(shown)["error"]["code"] == "not-scanned"


def test_without_an_agent_the_command_scans_by_itself_and_names_what_it_finds(
    folder: StateFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    keep_rules(folder)
    folder.record_installed(HELLO)
    file = folder.path / "programs/deb-root/opt/bad\x1bfile"
    file.parent.mkdir(parents=True)
    file.write_bytes(EVIL)
    code, shown = command(folder, capsys, "posture", "--now")
    assert code == 1
    assert "planted in programs/deb-root/opt/bad" in shown
    assert "\x1b" not in shown
    assert re.search(r"told the hub +no", shown)
    file.unlink()
    code, shown = command(folder, capsys, "posture", "--now", "--json")
    assert (code, json.loads(shown)["posture"]["findings"]) == (0, [])


def test_the_pace_of_scans_is_a_setting(folder: StateFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert "2.0 MB a second" in command(folder, capsys, "settings", "scan-pace", "2MB")[1]
    assert folder.preferences().scan_bytes_per_second == 2_000_000
    command(folder, capsys, "settings", "scan-pace", "default")
    assert folder.preferences() == Preferences()
    assert command(folder, capsys, "settings", "scan-pace", "1")[0] == 2
