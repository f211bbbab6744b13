"""Engines: the real clamd, YARA-X and an owner's command, and whatever else they may do: only clean is ever clean."""

import asyncio
import os
import random
import shutil
import signal
import socket
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hub.admin import ask
from hub.catalogue import PublishOptions
from hub.config import Settings, load_settings
from hub.records import StoredObject
from hub.scanning import ClamdEngine, CommandEngine, Engine, EngineVerdict, YaraEngine, worst
from hub.store import Row, Transaction
from protocol import messages
from protocol.errors import RefusedError, UnavailableError, UsageError
from scanner import yara
from tests.harness.fleets import until
from tests.harness.hubs import HubProcess, running_hub
from tests.harness.installers import make_installer
from tests.harness.raw import raw_terminal
from tests.harness.uploads import PackedFile, Upload
from tests.hub.clamds import NEEDED, SIGNATURE, STREAM_BYTES, Clamd, running_clamd
from tests.hub.rooms import open_rooms
from tests.scanner import archives
from tests.scanner.patterns import EICAR, GTUBE


@pytest.fixture(scope="module")
def clamd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clamd]:
    with running_clamd(tmp_path_factory.mktemp("clamd") / "clamd") as one:
        yield one


def scan(engine: Engine, content: bytes, folder: Path, seconds: float = 20.0) -> EngineVerdict:
    path = folder / "scanned"
    path.write_bytes(content)
    with path.open("rb") as file:
        return engine.scan(file, "hello.deb", seconds, threading.Event())


# --- clamd: the real one ------------------------------------------------------------------------------------------


@NEEDED
@pytest.mark.parametrize("which", ["unix", "tcp"])
def test_clamd_finds_its_signature_and_calls_the_rest_clean(which: str, clamd: Clamd, tmp_path: Path) -> None:
    engine = ClamdEngine(getattr(clamd, which))
    found = scan(engine, b"before" + EICAR, tmp_path)
    assert (found.verdict, found.findings) == ("infected", (f"{SIGNATURE}.UNOFFICIAL in hello.deb",))
    assert scan(engine, archives.zipped("a", EICAR), tmp_path).verdict == "infected"
    clean = scan(engine, b"nothing", tmp_path)
    assert (clean.verdict, clean.findings, clean.rules) == ("clean", (), found.rules)
    assert found.rules.startswith("ClamAV ")


@NEEDED
def test_behind_an_ignored_signature_clamd_has_seen_nothing(clamd: Clamd, tmp_path: Path) -> None:
    told = scan(ClamdEngine(clamd.unix, [SIGNATURE]), EICAR, tmp_path)
    assert told.verdict == "not-scanned"
    assert "saw no further" in told.detail
    assert scan(ClamdEngine(clamd.unix, [SIGNATURE, "unseen"]), EICAR, tmp_path).verdict == "clean"
    assert scan(ClamdEngine(clamd.unix, ["Another"]), EICAR, tmp_path).verdict == "infected"


@NEEDED
@pytest.mark.parametrize("size", [STREAM_BYTES + 1, 8 * STREAM_BYTES])
def test_a_file_beyond_clamds_stream_limit_is_not_scanned(size: int, clamd: Clamd, tmp_path: Path) -> None:
    for address in (clamd.unix, clamd.tcp):
        assert scan(ClamdEngine(address), os.urandom(size), tmp_path).verdict == "not-scanned"


@NEEDED
def test_a_file_beyond_clamds_own_limits_is_not_scanned(clamd: Clamd, tmp_path: Path) -> None:
    told = scan(ClamdEngine(clamd.unix), os.urandom(STREAM_BYTES - 4096), tmp_path)
    assert told.verdict == "not-scanned"
    assert "Heuristics.Limits.Exceeded" in told.detail


@NEEDED
async def test_each_engine_sees_the_whole_file_after_the_others_have_read_it(clamd: Clamd, tmp_path: Path) -> None:
    path = make_installer(tmp_path, "deb", size=99, content="text")
    check = script(tmp_path, "grep -q 'quick brown fox' && exit 1; exit 0")
    async with open_rooms(tmp_path, scan_clamd=clamd.tcp, scan_command=check) as hub:
        with pytest.raises(RefusedError, match=r"command: hello_1\.0_all\.deb"):
            await hub.catalogue.publish(path, PublishOptions())


@NEEDED
async def test_a_clamd_that_goes_down_holds_what_is_published(tmp_path: Path) -> None:
    with running_clamd(tmp_path / "clamd") as clamd:
        async with open_rooms(tmp_path, scan_clamd=clamd.unix) as hub:
            first = await hub.catalogue.publish(make_installer(tmp_path, "deb", size=99), PublishOptions())
            clamd.stop()
            installer = make_installer(tmp_path, "deb", version="2.0", size=99)
            second = await hub.catalogue.publish(installer, PublishOptions())
            assert (first.verdict, first.finding) == ("clean", "")
            assert second.verdict == "not-scanned"
            assert "clamd" in second.finding and "cannot be reached" in second.finding
            assert "yara" not in second.finding
            clamd.start()
            assert await hub.rescans.look(resting=False) == 1
            assert [one.verdict for one in await hub.catalogue.listing()] == ["clean", "clean"]


# --- something else where clamd should be ---------------------------------------------------------------------------


@contextmanager
def false_clamd(folder: Path, behave: Callable[[socket.socket], object]) -> Iterator[str]:
    """Something that answers VERSION rightly and then behaves so."""
    path = folder / "false.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        stop = threading.Event()

        def serve() -> None:
            while not stop.is_set():
                connection, _ = listener.accept()
                with connection:
                    if connection.recv(10, socket.MSG_PEEK).startswith(b"zVERSION"):
                        connection.recv(9)
                        connection.sendall(b"ClamAV 1.0\0")
                    elif not stop.is_set():
                        behave(connection)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"unix:{path}"
        finally:
            stop.set()
            with socket.socket(socket.AF_UNIX) as last:
                last.connect(str(path))
                last.sendall(b"end of test")
            thread.join(10)


def reply(text: bytes) -> Callable[[socket.socket], None]:
    def behave(connection: socket.socket) -> None:
        received = b""
        while not received.endswith(bytes(4)):
            received += connection.recv(65_536)
        connection.sendall(text)

    return behave


@pytest.mark.parametrize(
    "text",
    [
        b"stream: OK", b"OK\0", b"stream: OK \0", b"stream: ok\0", b"stream:  FOUND\0", b"\0", b"", b"stream: OK\0\0",
        b"stream: OK\n\0", b"stream: OK\0stream: X FOUND\0", b"INSTREAM size limit exceeded. ERROR\0",
        b"stream: a b FOUND\0", b"stream: OK" + bytes(9_999), b"x" * 100_000 + b"\0",
    ],
)  # fmt: skip
def test_only_the_very_words_mean_clean(text: bytes, tmp_path: Path) -> None:
    with false_clamd(tmp_path, reply(text)) as address:
        assert scan(ClamdEngine(address), b"x", tmp_path, seconds=1.0).verdict == "not-scanned"


def test_the_very_words_do_mean_clean(tmp_path: Path) -> None:
    with false_clamd(tmp_path, reply(b"stream: OK\0")) as address:
        assert scan(ClamdEngine(address), b"x", tmp_path).verdict == "clean"


def test_what_clamd_is_not_sure_of_is_suspicious(tmp_path: Path) -> None:
    with false_clamd(tmp_path, reply(b"stream: PUA.Win.Tool FOUND\0")) as address:
        assert scan(ClamdEngine(address), b"x", tmp_path).verdict == "suspicious"


def test_a_clamd_that_dies_in_the_middle_has_not_scanned(tmp_path: Path) -> None:
    with false_clamd(tmp_path, lambda connection: connection.close()) as address:
        assert scan(ClamdEngine(address), bytes(4 << 20), tmp_path).verdict == "not-scanned"


def test_a_clamd_that_never_answers_has_not_scanned_when_its_time_is_over(tmp_path: Path) -> None:
    release = threading.Event()
    with false_clamd(tmp_path, lambda _: release.wait(20)) as address:
        started = time.monotonic()
        told = scan(ClamdEngine(address), b"x", tmp_path, seconds=0.5)
        release.set()
        assert (told.verdict, told.detail) == ("not-scanned", "it was not done within 0.5 s.")
        assert time.monotonic() - started < 5.0


def test_a_clamd_that_takes_no_more_has_not_scanned_when_its_time_is_over(tmp_path: Path) -> None:
    release = threading.Event()
    with false_clamd(tmp_path, lambda _: release.wait(20)) as address:
        assert scan(ClamdEngine(address), bytes(8 << 20), tmp_path, seconds=0.5).verdict == "not-scanned"
        release.set()


async def test_a_scan_that_nobody_waits_for_any_more_ends_soon_whatever_clamd_does(tmp_path: Path) -> None:
    release, asked = threading.Event(), threading.Event()

    def behave(connection: socket.socket) -> None:
        asked.set()
        release.wait(30)

    with false_clamd(tmp_path, behave) as address:
        async with open_rooms(tmp_path, scan_yara=False, scan_clamd=address, scan_seconds=30) as hub:
            publishing = asyncio.create_task(hub.catalogue.publish(make_installer(tmp_path, "deb"), PublishOptions()))
            assert await asyncio.to_thread(asked.wait, 20)
            publishing.cancel()
            started = time.monotonic()
            await asyncio.to_thread(hub.scanning._threads.shutdown)
            assert time.monotonic() - started < 5.0
        release.set()


# --- the owner's command --------------------------------------------------------------------------------------------


def script(folder: Path, text: str) -> str:
    path = folder / "check"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


@pytest.mark.parametrize(
    ("text", "verdict", "findings"),
    [
        ("exit 0", "clean", ()),
        ("cat >/dev/null; echo Bad.Thing; echo; echo Other; exit 1", "infected", ("Bad.Thing", "Other")),
        ("exit 1", "infected", ("hello.deb",)),
        ("printf 'a\\033[31mb\\n'; exit 1", "infected", ("a?[31mb",)),
        ("exit 2", "not-scanned", ()),
        ("echo fine; exit 77", "not-scanned", ()),
        ("kill -9 $$", "not-scanned", ()),
        ("kill -11 $$", "not-scanned", ()),
        ("sleep 60", "not-scanned", ()),
        ("sleep 60 & sleep 60 & wait", "not-scanned", ()),
        ("yes", "not-scanned", ()),
        ("yes | head -c 100000; exit 0", "not-scanned", ()),
    ],
)
def test_what_a_command_does_becomes_a_verdict(
    text: str, verdict: str, findings: tuple[str, ...], tmp_path: Path
) -> None:
    told = scan(CommandEngine(script(tmp_path, text)), b"x", tmp_path, seconds=1.0)
    assert (told.verdict, told.findings) == (verdict, findings)
    assert told.detail or verdict != "not-scanned"


def test_a_command_gets_the_file_on_standard_input_and_by_path(tmp_path: Path) -> None:
    by_input = script(tmp_path, "grep -q needle && exit 1; exit 0")
    assert scan(CommandEngine(by_input), b"a needle", tmp_path).verdict == "infected"
    assert scan(CommandEngine(by_input), b"hay", tmp_path).verdict == "clean"
    by_path = script(tmp_path, 'grep -q needle "$1" && exit 1; exit 0') + " {file}"
    assert scan(CommandEngine(by_path), b"a needle", tmp_path).verdict == "infected"
    assert scan(CommandEngine(by_path), b"hay", tmp_path).verdict == "clean"


async def test_a_command_that_is_not_there_has_not_scanned(tmp_path: Path) -> None:
    async with open_rooms(tmp_path, scan_command="/nowhere/check {file}") as hub:
        published = await hub.catalogue.publish(make_installer(tmp_path, "deb"), PublishOptions())
        assert published.verdict == "not-scanned"
        assert published.finding.startswith("command: check cannot be started")


# --- YARA-X ---------------------------------------------------------------------------------------------------------


def test_what_yara_could_not_look_into_is_not_scanned_unless_that_is_ignored(tmp_path: Path) -> None:
    data = bytearray(archives.zipped("a", b"x" * 99))
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(signature) + offset] |= 1
    told = scan(YaraEngine(), bytes(data), tmp_path)
    assert (told.verdict, told.findings) == ("not-scanned", ("unseen: a: encrypted",))
    assert scan(YaraEngine(ignored=["unseen"]), bytes(data), tmp_path).verdict == "clean"


def test_suspicious_and_ignored_rules_of_yara(tmp_path: Path) -> None:
    assert scan(YaraEngine(), GTUBE, tmp_path).verdict == "suspicious"
    assert scan(YaraEngine(), GTUBE + EICAR, tmp_path).verdict == "infected"
    assert scan(YaraEngine(ignored=["EICAR_test_file"]), GTUBE + EICAR, tmp_path).verdict == "suspicious"
    assert YaraEngine(ignored=["x"]).rules_version() != YaraEngine().rules_version()


async def test_wrong_rules_hold_what_is_published_and_say_where(tmp_path: Path) -> None:
    (tmp_path / "rules").mkdir()
    (tmp_path / "rules" / "mine.yar").write_text("rule x { condition: nonsense }")
    async with open_rooms(tmp_path, scan_rules=str(tmp_path / "rules")) as hub:
        published = await hub.catalogue.publish(make_installer(tmp_path, "deb"), PublishOptions())
        assert published.verdict == "not-scanned"
        assert "mine.yar:1:" in published.finding


# --- all together ---------------------------------------------------------------------------------------------------


def said(engine: str, verdict: str) -> EngineVerdict:
    return EngineVerdict(engine=engine, verdict=verdict, findings=(f"by {engine}",))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("verdicts", "together"),
    [
        (("clean", "clean"), "clean"),
        (("clean", "not-scanned"), "not-scanned"),
        (("suspicious", "not-scanned"), "suspicious"),
        (("infected", "suspicious"), "infected"),
        (("clean",), "not-scanned"),
        ((), "not-scanned"),
    ],
)
def test_only_what_every_engine_calls_clean_is_clean(verdicts: tuple[str, ...], together: str) -> None:
    rows = [said(engine, verdict) for engine, verdict in zip("ab", verdicts, strict=False)]
    assert worst(rows, ("a", "b"))[0] == together
    assert worst(reversed(rows), ("a", "b"))[0] == together


def test_what_an_engine_said_that_is_off_now_does_not_count_and_without_engines_all_is_clean() -> None:
    assert worst([said("a", "clean"), said("b", "infected")], ("a",)) == ("clean", "")
    assert worst([said("a", "infected")], ()) == ("clean", "")


# --- at publish -----------------------------------------------------------------------------------------------------


def infected(folder: Path, kind: str = "deb", version: str = "1.0") -> Path:
    """An installer that is right in every way, and has the test pattern in its payload."""
    path = make_installer(folder, kind, version=version, size=len(EICAR))  # type: ignore[arg-type]
    payload = random.Random(1).randbytes(len(EICAR))
    assert payload in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(payload, EICAR))
    return path


async def rows(hub: object, query: str, **parameters: object) -> list[Row]:
    async def body(transaction: Transaction) -> list[Row]:
        return await transaction.rows(query, **parameters)

    return await hub.store.transaction(body)  # type: ignore[attr-defined,no-any-return]


async def test_an_infected_file_is_refused_and_leaves_nothing_but_a_row_in_the_audit_log(tmp_path: Path) -> None:
    path = infected(tmp_path)
    async with open_rooms(tmp_path) as hub:
        with pytest.raises(RefusedError) as caught:
            await hub.catalogue.publish(path, PublishOptions())
        assert caught.value.code == "infected"
        assert "EICAR_test_file in hello_1.0_all.deb" in caught.value.message
        assert await hub.catalogue.listing() == []
        assert hub.objects.file_names() == []
        (row,) = await rows(hub, "audit_page", after=0, count=10)
        assert (row["action"], row["subject"], row["actor"]) == (b"catalogue.refuse", b"hello", b"operator")


async def test_an_engine_that_is_off_refuses_nothing(tmp_path: Path) -> None:
    async with open_rooms(tmp_path, scan_yara=False) as hub:
        published = await hub.catalogue.publish(infected(tmp_path), PublishOptions())
        assert published.verdict == "clean"
        assert await rows(hub, "verdicts_of", digest=bytes.fromhex(published.digest)) == []


async def test_a_clean_file_has_a_row_of_each_engine_with_its_rules_and_time(tmp_path: Path) -> None:
    async with open_rooms(tmp_path, scan_command=script(tmp_path, "exit 0")) as hub:
        published = await hub.catalogue.publish(make_installer(tmp_path, "deb"), PublishOptions())
        found = await rows(hub, "verdicts_of", digest=bytes.fromhex(published.digest))
        assert [(row["engine"], row["verdict"]) for row in found] == [("command", "clean"), ("yara-x", "clean")]
        assert all(row["rules"] and abs(row["scanned_at"] - time.time()) < 60 for row in found)


async def test_the_same_infected_file_published_twice_at_once_is_refused_twice_and_leaves_nothing(
    tmp_path: Path,
) -> None:
    path = infected(tmp_path)
    async with open_rooms(tmp_path) as hub:
        work = [hub.catalogue.publish(path, PublishOptions()) for _ in range(3)]
        ended = await asyncio.gather(*work, return_exceptions=True)
        assert [getattr(one, "code", one) for one in ended] == ["infected"] * 3
        assert hub.objects.file_names() == []


async def test_a_publish_that_is_given_up_while_its_file_is_scanned_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "started").mkdir()
    started = tmp_path / "started" / "here"
    async with open_rooms(tmp_path, scan_command=script(tmp_path, f"touch {started}; sleep 30")) as hub:
        task = asyncio.create_task(hub.catalogue.publish(make_installer(tmp_path, "deb"), PublishOptions()))
        await until(started.exists)
        assert len(hub.objects.digests()) == 1
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert hub.objects.digests() == set()


async def test_a_publish_that_is_given_up_while_its_file_is_stored_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, release = threading.Event(), threading.Event()
    async with open_rooms(tmp_path) as hub:
        add = hub.objects.add

        def slow(path: Path, digest: bytes) -> StoredObject:
            begun.set()
            assert release.wait(20)
            return add(path, digest)

        monkeypatch.setattr(hub.objects, "add", slow)
        task = asyncio.create_task(hub.catalogue.publish(make_installer(tmp_path, "deb"), PublishOptions()))
        assert await asyncio.to_thread(begun.wait, 20)
        task.cancel()
        await asyncio.sleep(0)  # the thread is told of it, and only then goes on
        release.set()
        assert isinstance((await asyncio.gather(task, return_exceptions=True))[0], asyncio.CancelledError)
        assert hub.objects.file_names() == []


async def test_rules_that_are_being_compiled_are_not_waited_for_when_a_hub_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(yara, "python_command", lambda *_: ["/bin/sleep", "60"])
    async with open_rooms(tmp_path) as hub:
        assert hub.scanning.yara is not None
        reading = asyncio.create_task(hub.scanning.rules_version(hub.scanning.yara))
        await until(hub.scanning.yara._reading.locked)
        hub.scanning.close()
        started = time.monotonic()
        with pytest.raises(UnavailableError, match="nobody waits"):
            await reading
        assert time.monotonic() - started < 10.0


async def test_rules_for_which_the_disk_has_no_room_are_an_engine_that_is_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_rooms(tmp_path) as hub:
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
        [engine] = await hub.rescans.engines()
        assert "could not be written to the temporary folder" in engine["detail"]
        assert await hub.rescans.look(resting=False) == 0


async def test_no_copy_that_was_scanned_stays_behind(tmp_path: Path) -> None:
    async with open_rooms(tmp_path) as hub:
        published = await hub.catalogue.publish(make_installer(tmp_path, "deb"), PublishOptions())
        assert sorted(Path(name).suffix for name in hub.objects.file_names()) == [".manifest", ".pack"]
        with hub.objects.whole_copy(bytes.fromhex(published.digest)) as file:
            assert file.read() == (tmp_path / "hello_1.0_all.deb").read_bytes()
            with pytest.raises(OSError, match="Invalid argument"):  # one engine changes nothing for the next
                os.ftruncate(file.fileno(), 0)


async def test_a_copy_to_scan_leaves_the_room_that_rows_need(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_rooms(tmp_path, disk_reserve_bytes=1_000_000) as hub:
        published = await hub.catalogue.publish(make_installer(tmp_path, "deb"), PublishOptions())
        usage = shutil.disk_usage(tmp_path)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1_000_000 + published.size - 1))
        [said] = await hub.scanning.scan(bytes.fromhex(published.digest), "hello")
        assert said.verdict == "not-scanned"
        assert "no room for a copy" in said.detail


@pytest.mark.parametrize("address", ["clamd", "unix:relative", "host:0", "host:70000", "host:"])
def test_a_wrong_address_of_clamd_is_a_wrong_setting(address: str) -> None:
    with pytest.raises(UsageError, match="scan_clamd"):
        load_settings(None, {"scan_clamd": address}, {})


def test_a_wrong_command_line_is_a_wrong_setting() -> None:
    with pytest.raises(UsageError, match="scan_command"):
        load_settings(None, {"scan_command": "check 'open"}, {})
    assert load_settings(None, {"scan_command": "check 'a b'"}, {}) == Settings(scan_command="check 'a b'")


def test_a_command_by_a_relative_path_is_a_wrong_setting_as_it_runs_in_another_folder() -> None:
    with pytest.raises(UsageError, match=r"'\./check' is no absolute path"):
        load_settings(None, {"scan_command": "./check {file}"}, {})


async def test_an_infected_upload_is_refused_with_the_finding_and_leaves_nothing(tmp_path: Path) -> None:
    file = PackedFile(infected(tmp_path))
    async with running_hub(tmp_path) as hub:
        await hub.hub.accounts.add("ada", "correct horse battery", may_publish=True)
        async with raw_terminal(hub) as terminal:
            await terminal.enrol("ada", name="Builder")
            said = await Upload(terminal, file).run()
            assert isinstance(said, messages.Refused)
            assert said.reason == "infected"
            assert "EICAR_test_file in hello_1.0_all.deb" in said.detail
            await until(lambda: not list((hub.folder / "uploads").iterdir()))
            assert hub.hub.objects.file_names() == []
            page = await rows(hub.hub, "audit_page", after=0, count=100)
            [row] = [row for row in page if row["action"] == b"catalogue.refuse"]
            assert row["actor"] == terminal.terminal.encode()


async def test_who_publishes_from_afar_is_told_that_nobody_gets_it_yet(tmp_path: Path) -> None:
    file = PackedFile(make_installer(tmp_path, "deb"))
    async with running_hub(tmp_path, scan_clamd="unix:/nowhere/clamd.sock") as hub:
        await hub.hub.accounts.add("ada", "correct horse battery", may_publish=True)
        async with raw_terminal(hub) as terminal:
            await terminal.enrol("ada", name="Builder")
            said = await Upload(terminal, file).run()
            assert isinstance(said, messages.Published)
            assert said.verdict == "not-scanned"
            assert "clamd: unix:/nowhere/clamd.sock cannot be reached" in said.finding


async def test_sighup_has_a_hub_read_its_rules_again_and_withdraw_what_they_find(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "rules"
    folder.mkdir()
    (folder / "mine.yar").write_text("rule Nothing { condition: false }")
    monkeypatch.setenv("LOCKSTEP_HUB_SCAN_RULES", str(folder))
    path = make_installer(tmp_path, "deb", content="text")
    settings = Settings(data=str(tmp_path / "hub"))
    async with HubProcess(tmp_path / "hub") as hub:
        published = await ask(settings, "publish", {"file": str(path), "options": {}})
        assert published["verdict"] == "clean"
        (folder / "mine.yar").write_text('rule Fox { strings: $a = "quick brown fox" condition: $a }')
        os.kill(hub.pid, signal.SIGHUP)
        async with asyncio.timeout(20):
            while not (found := (await ask(settings, "verdicts", {"infected": True}))["installers"]):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        assert found[0]["finding"].startswith("yara-x: Fox in hello_1.0_all.deb")
