"""Scanning: what is found, inside which archives, what is told as unseen, and what a worker that misbehaves costs."""

import io
import os
import re
import resource
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
import zlib
from functools import cache
from pathlib import Path

import pytest

from protocol.errors import UnavailableError, UsageError
from protocol.limits import MIB, RULES_BYTES
from scanner import FINDINGS, HUB_LEVELS, PLACES, TERMINAL_LEVELS, TOO_MANY, Finding, Scanned, yara
from scanner.child import ChildFailure, ask_child
from scanner.rules import STARTER_SET, RuleSet, read_rules
from scanner.unpacking import FILES, NESTED_BYTES, UNREADABLE, Unseen, files_inside
from scanner.worker import OVERLAP_BYTES, WINDOW_BYTES
from tests.harness.installers import make_installer
from tests.scanner import archives
from tests.scanner.patterns import EICAR, GTUBE, METASPLOIT, MIRAI, WANNACRY

ROOT = Path(__file__).parents[2]
SAMPLES = ROOT / "samples"
ON_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="the system does not limit it")


@cache
def starter_set() -> RuleSet:
    return read_rules()


@cache
def compiled(source: str) -> bytes:
    return yara.compile_rules(source.encode())


def scan(
    content: bytes, name: str = "file", rules: bytes | None = None, seconds: float = 30.0, levels: int = HUB_LEVELS
) -> Scanned:
    with tempfile.TemporaryFile() as file:
        file.write(content)
        return yara.scan(file, name, rules or starter_set().compiled, levels=levels, seconds=seconds)


def found(content: bytes, name: str = "file") -> list[tuple[str, str]]:
    return [(one.rule, one.where) for one in scan(content, name).findings]


# --- what is found --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "rule", "severity"),
    [
        (EICAR, "EICAR_test_file", "infected"),
        (b"before" + EICAR + b"behind", "EICAR_test_file", "infected"),
        (GTUBE, "GTUBE_test_text", "suspicious"),
        (METASPLOIT, "Metasploit_Android_payload", "infected"),
        (MIRAI, "Mirai_bot", "infected"),
        (WANNACRY, "WannaCry_kill_switch", "infected"),
    ],
    ids=("eicar", "inside", "gtube", "metasploit", "mirai", "wannacry"),  # not the patterns: they would be in the cache
)
def test_the_starter_set_finds_each_public_test_pattern(content: bytes, rule: str, severity: str) -> None:
    assert scan(content, "x").findings == (Finding(rule, "x", severity),)  # type: ignore[arg-type]


@pytest.mark.parametrize("content", [EICAR[:-1], GTUBE[1:], METASPLOIT[4:], MIRAI[1:], WANNACRY[2:], b""], ids=range(6))
def test_what_is_not_quite_a_pattern_is_clean(content: bytes) -> None:
    assert scan(content) == Scanned((), 1, len(content))


def test_no_starter_rule_finds_anything_in_the_rules_themselves() -> None:
    assert scan(starter_set().source).findings == ()


def test_every_starter_rule_says_where_it_is_from() -> None:
    source = starter_set().source.decode()
    assert (
        source.count("\nrule ") == starter_set().rules == source.count("source = ") == source.count("severity = ") == 5
    )


@pytest.mark.parametrize("kind", ["deb", "apk", "wheel"])
def test_no_starter_rule_fires_on_installers_of_the_tests(kind: str, tmp_path: Path) -> None:
    scanned = scan(make_installer(tmp_path, kind).read_bytes())  # type: ignore[arg-type]
    assert (scanned.findings, scanned.skipped) == ((), ())
    assert scanned.files > 1


@pytest.mark.formats
@pytest.mark.skipif(not SAMPLES.exists(), reason="`make samples` brings them")
def test_no_starter_rule_fires_on_any_real_installer_and_all_of_each_is_seen() -> None:
    told = {}
    for file in sorted(SAMPLES.rglob("*")):
        if file.is_file():
            with file.open("rb") as stream:
                scanned = yara.scan(stream, file.name, starter_set().compiled, levels=HUB_LEVELS, seconds=60)
            if scanned.findings or scanned.skipped:
                told[file.name] = (scanned.findings, scanned.skipped)
    assert told == {}


def test_a_pattern_across_the_border_of_two_windows_is_found() -> None:
    before = bytes(WINDOW_BYTES - 20)
    assert found(before + EICAR) == [("EICAR_test_file", "file")]
    assert found(before + bytes(OVERLAP_BYTES) + EICAR) == [("EICAR_test_file", "file")]


# --- inside archives ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_file_in_a_zip_is_found_by_its_path(method: int) -> None:
    archive = archives.zipped("assets/a", b"x" * 1000 + EICAR, method=method)
    assert ("EICAR_test_file", "a.apk: assets/a") in found(archive, "a.apk")


@pytest.mark.parametrize("suffix", archives.PACKERS)
def test_a_file_in_a_debs_data_is_found_however_it_is_packed(suffix: str) -> None:
    where = f"x.deb: data.tar{suffix}/usr/share/x"
    assert ("EICAR_test_file", where) in found(archives.deb(suffix, "./usr/share/x", EICAR), "x.deb")


@pytest.mark.parametrize("suffix", archives.PACKERS)
def test_a_file_in_a_tar_is_found_however_it_is_packed(suffix: str) -> None:
    archive = archives.PACKERS[suffix](archives.tarred("./bin/x", EICAR))
    assert ("EICAR_test_file", "x: bin/x") in found(archive, "x")


@pytest.mark.parametrize("suffix", [suffix for suffix in archives.PACKERS if suffix])
def test_what_a_packed_file_unpacks_to_is_seen(suffix: str) -> None:
    assert ("EICAR_test_file", "x: what it unpacks to") in found(archives.PACKERS[suffix](b"some text " + EICAR), "x")


@pytest.mark.parametrize("compressor", ["w0.ufdio", "w9.gzdio", "w2.xzdio", "w3.zstdio", "w9.bzdio"])
def test_a_file_in_an_rpm_is_found_however_its_payload_is_packed(compressor: str, tmp_path: Path) -> None:
    scanned = scan(archives.rpm(tmp_path, EICAR, compressor), "x.rpm")
    assert Finding("EICAR_test_file", "x.rpm: opt/payload") in scanned.findings
    assert scanned.skipped == ()


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_an_apk_in_a_set_of_apks_is_looked_into(method: int) -> None:
    apk = archives.zipped("assets/a", EICAR)
    assert found(archives.zipped("splits/base.apk", apk, method=method), "x.apks") == [
        ("EICAR_test_file", "x.apks: splits/base.apk/assets/a")
    ]


def test_a_zip_behind_a_program_is_looked_into() -> None:
    archive = b"MZ" + bytes(500) + archives.zipped("a", EICAR)
    assert found(archive, "setup.exe") == [("EICAR_test_file", "setup.exe: a")]


@pytest.mark.parametrize("suffix", ["", ".xz", ".bz2"])
def test_a_zip_behind_another_archive_is_looked_into(suffix: str) -> None:
    whole = archives.PACKERS[suffix](archives.tarred("a", b"x")) + archives.zipped("b", b"y" * 1000 + EICAR)
    assert ("EICAR_test_file", "file: b") in found(whole)


def test_a_member_of_a_data_archive_with_a_header_that_readers_differ_about_is_never_passed_over() -> None:
    content = bytearray(archives.tarred("a", b"x") + archives.tarred("b", EICAR))
    second = len(archives.tarred("a", b"x"))
    del content[1024:second]  # the end of the first archive
    content[1024 + 108 : 1024 + 116] = b"0 x     "  # an owner that is a number to dpkg, which stops at the space
    content[1024 + 148 : 1024 + 156] = b" " * 8
    content[1024 + 148 : 1024 + 155] = b"%06o\0" % sum(content[1024 : 1024 + 512])
    whole = archives.deb(".gz", "a", b"x", data=bytes(content))
    assert any("data.tar.gz: the rest of it is damaged" in one for one in scan(whole).skipped)


def test_a_member_of_a_tar_of_an_unknown_type_is_a_file() -> None:
    content = bytearray(archives.tarred("a", EICAR))
    content[156:157] = b"Z"
    content[148:156] = b" " * 8
    content[148:155] = b"%06o\0" % sum(content[:512])
    assert found(archives.PACKERS[".gz"](bytes(content))) == [("EICAR_test_file", "file: a")]


def test_a_rule_found_everywhere_leaves_room_for_what_else_is_found() -> None:
    names = [one.rule for one in scan(archives.zipped_all([*[GTUBE] * 100, EICAR])).findings]
    assert names.count("GTUBE_test_text") == PLACES
    assert "EICAR_test_file" in names


def test_what_there_is_no_room_for_is_told_under_a_name_of_its_own() -> None:
    many = "".join(f"rule Rule{number} {{ condition: true }}\n" for number in range(FINDINGS + 1))
    findings = scan(b"x", rules=compiled(many)).findings
    assert len(findings) == FINDINGS + 1
    assert findings[-1] == Finding(TOO_MANY, "file", "suspicious")
    assert not any(
        one.rule == TOO_MANY for one in scan(b"x", rules=compiled(many.partition("rule Rule1 ")[0])).findings
    )


NESTINGS = {
    "zip": lambda content: archives.zipped("in.zip", content),
    "stored zip": lambda content: archives.zipped("in.zip", content, method=zipfile.ZIP_STORED),
    "tar": lambda content: archives.tarred("in.tar", content),
    "tar.xz": lambda content: archives.PACKERS[".xz"](archives.tarred("in.tar", content)),
    "deb": lambda content: archives.deb(".gz", "in.deb", content),
    "gzip": archives.PACKERS[".gz"],
}


@pytest.mark.parametrize("outer", NESTINGS)
@pytest.mark.parametrize("inner", NESTINGS)
def test_an_archive_inside_an_archive_is_opened_down_to_the_levels_asked_for(outer: str, inner: str) -> None:
    packed = NESTINGS[outer](NESTINGS[inner](NESTINGS["gzip"](EICAR)))
    assert seen(packed, 3) == (True, ())
    assert seen(NESTINGS["gzip"](archives.zipped("a", EICAR)), 1) == (False, ())


def seen(content: bytes, levels: int) -> tuple[bool, tuple[str, ...]]:
    """Whether EICAR is seen in an archive, and what is unseen; read here, as a worker for each case takes its time."""
    is_seen, unseen = False, []
    for part in files_inside(io.BufferedReader(io.BytesIO(content)), levels):
        if isinstance(part, Unseen):
            unseen.append(part.why)
            continue
        whole = bytearray()
        while read := part[1].read(MIB):
            whole += read
        is_seen = is_seen or EICAR in whole
    return is_seen, tuple(unseen)


def test_a_worker_finds_what_is_in_an_archive_inside_an_archive_and_says_where() -> None:
    wheel = archives.zipped("x/n.zip", archives.zipped("deep/a", EICAR))
    assert found(wheel, "x.whl") == [("EICAR_test_file", "x.whl: x/n.zip/deep/a")]


@pytest.mark.parametrize("inner", NESTINGS)
def test_what_a_terminal_finds_in_what_was_unpacked_the_hub_finds_in_the_installer(inner: str) -> None:
    unpacked = EICAR
    for _ in range(TERMINAL_LEVELS):
        unpacked = NESTINGS[inner](unpacked)
    assert seen(unpacked, TERMINAL_LEVELS) == (True, ())
    for outer in NESTINGS.values():
        assert seen(outer(unpacked), HUB_LEVELS) == (True, ())


def test_an_archive_below_the_last_level_is_a_file_like_any_other() -> None:
    content = EICAR
    for _ in range(HUB_LEVELS + 1):
        content = archives.zipped("inner.zip", content)
    scanned = scan(content)
    assert (scanned.findings, scanned.files, scanned.skipped) == ((), HUB_LEVELS + 1, ())


def test_the_files_of_all_levels_count_together_and_what_is_beyond_is_told_as_unseen() -> None:
    level = archives.zipped_all([b""] * 400)
    level = archives.zipped_all([level] * 400)
    told = scan(level, rules=compiled("rule never { condition: false }"), seconds=60.0)
    assert any("beyond" in one for one in told.skipped)
    assert told.files == FILES + 1


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_large_archive_inside_an_archive_is_opened_where_it_lies_and_unseen_where_it_is_packed(method: int) -> None:
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("filling", bytes(NESTED_BYTES))
        archive.writestr("a", archives.zipped("b", EICAR))
    whole = archives.zipped("large.zip", inner.getvalue(), method=method)
    stored = method == zipfile.ZIP_STORED
    limit = f"packed and, with what it is in, of more than {NESTED_BYTES // MIB} MiB"
    assert seen(whole, HUB_LEVELS) == ((True, ()) if stored else (False, (limit,)))
    if not stored:
        assert scan(whole, seconds=60.0).skipped == (f"large.zip: {limit}",)


def test_a_damaged_or_encrypted_archive_inside_an_archive_is_told_as_unseen() -> None:
    locked = with_flag(archives.zipped("a", b"x" * 99), 1)
    assert scan(archives.zipped("n.zip", locked)).skipped == ("n.zip/a: encrypted",)
    cut = archives.PACKERS[".xz"](os.urandom(5000))[:2500]
    assert scan(archives.zipped("n.xz", cut)).skipped == ("n.xz: damaged (EOFError)",)


# --- what cannot be seen --------------------------------------------------------------------------------------------


def with_flag(archive: bytes, flag: int) -> bytes:
    """Set a flag of a zip's one member, in both its headers."""
    data = bytearray(archive)
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = data.index(signature) + offset
        struct.pack_into("<H", data, at, struct.unpack_from("<H", data, at)[0] | flag)
    return bytes(data)


def test_an_encrypted_member_is_told_as_unseen() -> None:
    assert scan(with_flag(archives.zipped("a", b"x" * 99), 1)).skipped == ("a: encrypted",)


def test_a_member_packed_in_an_unknown_way_is_told_as_unseen() -> None:
    data = bytearray(archives.zipped("a", b"x" * 99))
    struct.pack_into("<H", data, data.index(b"PK\x03\x04") + 8, 93)
    struct.pack_into("<H", data, data.index(b"PK\x01\x02") + 10, 93)
    assert scan(bytes(data)).skipped == ("a: packed in a way that is not known here",)


def test_a_member_that_is_larger_than_it_says_is_told_as_unseen() -> None:
    data = bytearray(archives.zipped("a", b"x" * 99))
    struct.pack_into("<L", data, data.index(b"PK\x01\x02") + 24, 50)
    assert scan(bytes(data)).skipped == ("a: damaged (BadZipFile)",)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_member_of_which_the_directory_names_only_the_start_is_read_to_its_end(method: int) -> None:
    data = bytearray(archives.zipped("a", b"start" + bytes(1000) + EICAR, method=method))
    for signature, offset in ((b"PK\x03\x04", 14), (b"PK\x01\x02", 16)):
        at = data.index(signature) + offset
        data[at : at + 4] = struct.pack("<L", zlib.crc32(b"start"))
        data[at + 8 : at + 12] = struct.pack("<L", len(b"start"))
    scanned = scan(bytes(data))
    assert ("EICAR_test_file", "file: a") in [(one.rule, one.where) for one in scanned.findings]
    assert scanned.skipped == ("a: damaged (BadZipFile)",)


def test_a_zip_without_its_directory_is_told_as_unseen() -> None:
    assert scan(archives.zipped("a", os.urandom(999))[:700]).skipped == ("damaged (BadZipFile)",)


@pytest.mark.parametrize("suffix", [".gz", ".xz", ".zst", ".bz2"])
def test_the_rest_of_a_data_archive_that_is_cut_off_is_told_as_unseen(suffix: str) -> None:
    packed = archives.PACKERS[suffix](archives.tarred("a", os.urandom(200_000)))
    told = scan(packed[:100_000]).skipped
    assert told and all("damaged" in one for one in told)


def test_a_data_archive_that_is_no_tar_is_told_as_unseen() -> None:
    data = archives.deb("", "x", b"y").replace(b"data.tar        ", b"data.tar.new    ")
    assert scan(data.replace(archives.tarred("x", b"y"), b"?" * len(archives.tarred("x", b"y")))).skipped == (
        "data.tar.new: packed in a way that is not known here",
    )


@pytest.mark.parametrize("make", [lambda: archives.zipped("a", EICAR), lambda: archives.deb(".xz", "a", EICAR)])
def test_an_archive_cut_or_with_a_byte_changed_all_over_it_ends_in_an_answer(make: object) -> None:
    """The reader itself, where thousands of cases take a moment: it yields and tells, and raises nothing."""
    whole = make()  # type: ignore[operator]
    for at in range(0, len(whole), 3):
        for damaged in (whole[:at], whole[:at] + bytes([whole[at] ^ 0x41]) + whole[at + 1 :]):
            for part in files_inside(io.BytesIO(damaged), HUB_LEVELS):
                if not isinstance(part, Unseen):
                    try:
                        while part[1].read(MIB):
                            pass
                    except UNREADABLE:
                        pass


# --- rules ----------------------------------------------------------------------------------------------------------


def test_wrong_rules_are_told_by_file_and_line(tmp_path: Path) -> None:
    (tmp_path / "a.yar").write_text("rule fine { condition: true }\n\n\n")
    (tmp_path / "b.yar").write_text("// one\nrule broken { condition: nothing }\n")
    with pytest.raises(UsageError, match=r"b\.yar:2:26") as caught:
        read_rules(tmp_path)
    assert caught.value.code == "bad-rules"


def test_the_lines_shown_beside_the_source_are_those_of_its_file(tmp_path: Path) -> None:
    (tmp_path / "a.yar").write_text("\n" * 60 + "rule fine { condition: true }\n")
    (tmp_path / "own.yar").write_text("rule broken { condition: nothing }\n")
    with pytest.raises(UsageError, match=r"own\.yar:1:26\n +\|\n +1 \| rule broken"):
        read_rules(tmp_path)
    (tmp_path / "own.yar").write_text("\nrule fine { condition: true }\n")
    with pytest.raises(UsageError) as caught:
        read_rules(tmp_path)
    assert re.findall(r"^ *(\d+) \| rule", caught.value.message, re.MULTILINE) == ["61", "2"]


def test_a_folder_that_is_not_there_or_without_rules_is_wrong_usage(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(UsageError) as caught:
            read_rules(folder)
        assert caught.value.code == "bad-rules"


def test_rules_of_exactly_the_limit_are_taken_and_one_byte_more_is_not(tmp_path: Path) -> None:
    rule, line = "rule a { condition: true }\n", "// file: a.yar\n"
    filling = "/" * (RULES_BYTES - len(line) - len(rule) - 1)
    (tmp_path / "a.yar").write_text(f"{filling}\n{rule}")
    assert len(read_rules(tmp_path).source) == RULES_BYTES
    (tmp_path / "a.yar").write_text(f"/{filling}\n{rule}")
    with pytest.raises(UsageError, match=str(RULES_BYTES)):
        read_rules(tmp_path)


def test_equal_folders_have_equal_digests_and_a_changed_rule_another(tmp_path: Path) -> None:
    (tmp_path / "a.yar").write_text("rule a { condition: true }")
    first = read_rules(tmp_path)
    assert read_rules(tmp_path).digest == first.digest
    (tmp_path / "a.yar").write_text("rule a { condition: false }")
    assert read_rules(tmp_path).digest != first.digest


def test_rules_may_not_include_other_files(tmp_path: Path) -> None:
    (tmp_path / "a.yar").write_text('include "/etc/passwd"\nrule a { condition: true }')
    with pytest.raises(UsageError):
        read_rules(tmp_path)


def test_the_wheel_of_lockstep_has_the_starter_set_in_it(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=60)
    (wheel,) = tmp_path.glob("*.whl")
    expected = {f"scanner/rules/{file.name}" for file in STARTER_SET.glob("*.yar")}
    with zipfile.ZipFile(wheel) as archive:
        assert expected and expected <= set(archive.namelist())


# --- a worker that misbehaves ---------------------------------------------------------------------------------------


def test_a_rule_that_loops_ends_as_not_scanned() -> None:
    rules = compiled("rule loop { condition: for all i in (0..100000000000): (i >= 0) }")
    started = time.monotonic()
    with pytest.raises(UnavailableError, match="not done within 1 s") as caught:
        scan(b"x", rules=rules, seconds=1.0)
    assert caught.value.code == "not-scanned"
    assert time.monotonic() - started < 5.0


@ON_LINUX
def test_a_scan_that_needs_more_memory_than_allowed_ends_as_not_scanned() -> None:
    with pytest.raises(UnavailableError, match="more memory") as caught, tempfile.TemporaryFile() as file:
        file.write(lzma_bomb())
        yara.scan(file, "x", starter_set().compiled, levels=HUB_LEVELS, seconds=30)
    assert caught.value.code == "not-scanned"


def lzma_bomb() -> bytes:
    """A header of an .lzma file that asks for a dictionary of 3 GiB."""
    return b"\x5d" + struct.pack("<LQ", 3 << 30, 1 << 30) + bytes(600)


def test_a_file_that_unpacks_without_end_ends_as_not_scanned_in_time() -> None:
    bomb = archives.zipped_all([bytes(64 * MIB)] * 4)
    with pytest.raises(UnavailableError, match=r"not done within 0\.5 s"):
        scan(bomb, rules=compiled("rule slow { strings: $a = /(a|\\x00){1,200}x/ condition: $a }"), seconds=0.5)


@pytest.mark.parametrize(
    ("program", "why"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "it crashed (SIGSEGV)"),
        ("import time; time.sleep(60)", "not done within 1 s"),
        ("print('nonsense')", "makes no sense"),
        ("", "makes no sense"),
        ("import os\nwhile True: os.write(1, bytes(65536))", "too long"),
        ("raise SystemExit(3)", "exit code 3"),
    ],
)
def test_a_worker_that_is_killed_hangs_or_talks_nonsense_has_not_scanned(
    program: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(yara, "python_command", lambda *_: [sys.executable, "-c", program])
    with pytest.raises(UnavailableError) as caught:
        scan(b"x", rules=b"x", seconds=1.0)
    assert why in caught.value.message
    assert caught.value.code == "not-scanned"


def test_a_scan_nobody_waits_for_ends_at_once() -> None:
    gone = threading.Event()
    gone.set()
    started = time.monotonic()
    with pytest.raises(UnavailableError), tempfile.TemporaryFile() as file:
        yara.scan(file, "x", starter_set().compiled, levels=HUB_LEVELS, seconds=30, gone=gone)
    assert time.monotonic() - started < 5.0


# --- what a worker may not --------------------------------------------------------------------------------------------


def limited(program: str) -> str:
    """What a program says that has given up its rights."""
    start = (
        "import os, sys, ctypes, socket\nfrom scanner.rights import give_up_rights\n"
        "links = lambda: sorted(name for _, name in socket.if_nameindex())\n"
        "give_up_rights(memory_bytes=512 << 20, processor_seconds=5)\n"
    )
    command = [sys.executable, "-c", f"{start}{program}"]
    with Path(os.devnull).open("rb") as nothing:
        process = subprocess.run(command, cwd=ROOT, stdin=nothing, capture_output=True, timeout=20, text=True)
    return process.stdout.strip() or process.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize(
    "program",
    [
        "open('/etc/hostname')",
        "socket.socket()",
        "os.pipe()",
        "socket.socketpair()",
        "os.open('/dev/null', os.O_RDONLY)",
    ],
)
def test_it_can_open_no_file_and_no_socket(program: str) -> None:
    assert "Too many open files" in limited(program)


@pytest.mark.skipif(os.getuid() != 0 or sys.platform != "linux", reason="only root may leave the network")
def test_a_worker_of_root_is_nobody_and_stands_in_a_network_of_its_own() -> None:
    program = "print(os.readlink('/proc/self/ns/net'), 0 in (os.getuid(), os.getgid(), *os.getgroups()))"
    namespace, is_root = limited(program).split()
    assert is_root == "False"
    assert namespace != str(Path("/proc/self/ns/net").readlink())


def test_what_it_answers_is_bounded_where_it_is_heard() -> None:
    program = "import os; os.write(1, bytes(2000))"
    with Path(os.devnull).open("rb") as nothing:
        command = [sys.executable, "-c", program]
        assert len(ask_child(command, nothing.fileno(), seconds=20, answer_bytes=2000)) == 2000
        with pytest.raises(ChildFailure) as caught:
            ask_child(command, nothing.fileno(), seconds=20, answer_bytes=1999)
    assert caught.value.why == "answer"


def test_names_out_of_archives_are_shown_as_one_line_of_text() -> None:
    (one,) = scan(archives.zipped("a\x1b[31m\nb", EICAR)).findings
    assert one.where == "file: a?[31m?b"


@ON_LINUX
def test_scanning_leaves_the_parents_memory_alone() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    scan(archives.zipped("a", bytes(60 * MIB)))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 40 * 1024
