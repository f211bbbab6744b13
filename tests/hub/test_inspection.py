"""The worker: whatever a reader does, it can reach nothing, and the hub is told in one sentence and goes on.

The deeds are in `hostile.py`; each runs behind the limits of the product's own worker.
"""

import asyncio
import contextlib
import os
import resource
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import msgspec
import pytest

from hub.inspection import WORKERS, ask_worker, found_in, in_turn, inspect_safely
from hub.inspectors import inspect
from hub.inspectors.sidecar import SUFFIX
from protocol.errors import BadFileError, ConflictError, UnavailableError
from tests.harness.fleets import until
from tests.harness.installers import make_installer
from tests.hub.hostile import FACTS

DEMO = Path(__file__).parents[2] / "hub" / "demo" / "installers"
INSTALLERS = sorted(file for file in DEMO.iterdir() if file.suffix in (".apk", ".deb", ".whl"))
ON_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="the system does not say, or does not limit it")


def answer_to(deed: str, tmp_path: Path, seconds: float = 60.0, gone: threading.Event | None = None) -> object:
    """What the hub makes of a worker that does `deed`."""
    file = tmp_path / "installer"
    file.write_bytes(b"content")
    descriptor = os.open(file, os.O_RDWR)  # writable, which the product's own never is
    try:
        command = [sys.executable, "-m", "tests.hub.hostile", deed]
        return found_in(ask_worker(command, descriptor, seconds=seconds, gone=gone))
    finally:
        os.close(descriptor)


def refusal(deed: str, tmp_path: Path, seconds: float = 60.0) -> BadFileError:
    with pytest.raises(BadFileError) as caught:
        answer_to(deed, tmp_path, seconds)
    return caught.value


def windows_program() -> bytes:
    """The headers of a 64-bit console program without sections: enough to be known, and no name in it."""
    dos = b"MZ".ljust(0x3C, b"\0") + struct.pack("<I", 0x40)
    coff = struct.pack("<4sHHIIIHH", b"PE\0\0", 0x8664, 0, 0, 0, 0, 112, 0x0002)
    optional = struct.pack("<H46xHH16xH", 0x20B, 6, 0, 3).ljust(112, b"\0")
    return dos + coff + optional


def children() -> set[int]:
    """The processes this one has started and not yet seen off; none where the system does not say."""
    return children_of(os.getpid())


def children_of(pid: int) -> set[int]:
    tasks = Path(f"/proc/{pid}/task")
    if not tasks.exists():
        return set()
    return {int(child) for task in tasks.iterdir() for child in (task / "children").read_text().split()}


def statuses(pid: int) -> list[str]:
    return [Path(f"/proc/{child}/status").read_text() for child in children_of(pid)]


def test_the_deeds_run_at_all(tmp_path: Path) -> None:
    found = answer_to("got_away", tmp_path)
    assert msgspec.structs.asdict(found)["facts"] == FACTS  # type: ignore[arg-type]


@pytest.mark.parametrize("deed", ["open_file", "open_socket", "make_pipe", "start_program"])
def test_no_file_no_socket_no_pipe_and_no_program_can_be_opened(deed: str, tmp_path: Path) -> None:
    assert "Too many open files" in (refusal(deed, tmp_path)).message


@ON_LINUX
def test_no_process_can_be_made(tmp_path: Path) -> None:
    assert "Resource temporarily unavailable" in (refusal("fork", tmp_path)).message


def test_not_even_a_file_that_is_open_can_be_written(tmp_path: Path) -> None:
    assert "File too large" in (refusal("write_file", tmp_path)).message
    assert (tmp_path / "installer").read_bytes() == b"content"


@pytest.mark.parametrize("deed", ["raise_limits", "become_root"])
def test_what_was_given_up_cannot_be_taken_back(deed: str, tmp_path: Path) -> None:
    error = refusal(deed, tmp_path)
    assert error.message in ("file: it is damaged (ValueError).", "file: it cannot be read (Operation not permitted).")


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become nobody")
def test_a_worker_started_by_root_is_nobody_and_in_no_group(tmp_path: Path) -> None:
    assert "makes no sense" in (refusal("say_who", tmp_path)).message  # it ends with 0, having said nothing


@ON_LINUX
@pytest.mark.parametrize("deed", ["memory", "many_lists"])
def test_more_memory_than_allowed_is_a_refusal(deed: str, tmp_path: Path) -> None:
    error = refusal(deed, tmp_path)
    assert error.code == "inspection-failed"
    assert "more memory than is allowed" in error.message


def test_an_endless_loop_is_a_refusal_after_two_seconds_of_processor_time(tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    error = refusal("endless_loop", tmp_path)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert error.code == "inspection-failed"
    assert "within 2 s of processor time" in error.message
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 3.0


def test_a_reader_that_waits_for_ever_is_a_refusal_after_the_time_allowed(tmp_path: Path) -> None:
    before = children()
    error = refusal("long_sleep", tmp_path, seconds=0.5)
    assert (error.code, error.message) == ("inspection-failed", "it was not read within 0.5 s.")
    assert children() == before


@pytest.mark.parametrize(
    ("deed", "sentence"),
    [
        ("crash", "its reader crashed (SIGSEGV)."),
        ("babble", "its reader's answer has more than 262144 bytes."),
        ("nonsense", "its reader's answer makes no sense."),
        ("silence", "its reader's answer makes no sense."),
    ],
)
def test_a_crash_and_a_senseless_answer_are_refusals(deed: str, sentence: str, tmp_path: Path) -> None:
    before = children()
    error = refusal(deed, tmp_path)
    assert (error.code, error.message) == ("inspection-failed", sentence)
    assert children() == before


def test_a_recursion_without_end_is_a_damaged_file(tmp_path: Path) -> None:
    assert "it is damaged (RecursionError)" in (refusal("deep_recursion", tmp_path)).message


def test_a_codec_that_was_not_loaded_beforehand_is_unknown_and_no_file_that_cannot_be_opened(tmp_path: Path) -> None:
    assert refusal("rare_codec", tmp_path).message == "file: it is damaged (LookupError)."


def test_facts_are_checked_once_more_where_the_worker_cannot_reach(tmp_path: Path) -> None:
    assert "its title '\\n' is no line" in (refusal("absurd_facts", tmp_path)).message


async def test_a_program_that_cannot_be_started_is_no_fault_of_the_file() -> None:
    with pytest.raises(UnavailableError, match="cannot be started"):
        ask_worker(["/nowhere/python"], 0)


@ON_LINUX
async def test_a_worker_is_killed_and_seen_off_when_whoever_asked_goes(tmp_path: Path) -> None:
    before = children()
    asking = asyncio.create_task(in_turn(lambda gone: answer_to("long_sleep", tmp_path, gone=gone)))
    await until(lambda: children() != before)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await until(lambda: children() == before)


@ON_LINUX
async def test_a_worker_does_not_outlive_a_hub_that_is_killed() -> None:
    program = (
        "import sys; from hub.inspection import ask_worker; "
        "ask_worker([sys.executable, '-m', 'tests.hub.hostile', 'long_sleep'], 0, seconds=600)"
    )
    hub = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.DEVNULL)  # noqa: ASYNC220 - it is killed
    try:
        await until(lambda: any("NoNewPrivs:\t1" in status for status in statuses(hub.pid)))
        (worker,) = children_of(hub.pid)
    finally:
        hub.kill()
        hub.wait()
    status = Path(f"/proc/{worker}/status")
    await until(lambda: not status.exists() or "State:\tZ" in status.read_text())


async def test_readings_given_up_at_any_moment_leave_no_process_and_nothing_that_waits(tmp_path: Path) -> None:
    before = children()
    installer = make_installer(tmp_path, "deb")
    for moment in range(12):
        asking = [asyncio.create_task(inspect_safely(installer)) for _ in range(WORKERS + 1)]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(moment / 100):
                await asyncio.wait(asking)
        for task in asking:
            task.cancel()
        await asyncio.wait_for(asyncio.gather(*asking, return_exceptions=True), 5)
    await until(lambda: children() == before)
    assert (await inspect_safely(installer)).facts.kind == "deb"


@pytest.mark.parametrize("installer", INSTALLERS, ids=lambda path: path.suffix)
async def test_the_worker_finds_what_is_found_without_it(installer: Path) -> None:
    assert (await inspect_safely(installer)).facts == inspect(installer)


async def test_the_worker_refuses_in_the_words_used_without_it(tmp_path: Path) -> None:
    cut = tmp_path / "cut.deb"
    cut.write_bytes(make_installer(tmp_path, "deb").read_bytes()[:1000])
    with pytest.raises(BadFileError) as here:
        inspect(cut)
    with pytest.raises(BadFileError) as there:
        await inspect_safely(cut)
    assert (there.value.code, str(there.value)) == ("bad-file", str(here.value))


async def test_a_file_stored_under_another_name_is_read_and_refused_under_its_own(tmp_path: Path) -> None:
    wheel = make_installer(tmp_path, "wheel")
    stored = wheel.rename(tmp_path / "stored")
    assert (await inspect_safely(stored, "hello-1.0-py3-none-any.whl")).facts.kind == "wheel"
    with pytest.raises(BadFileError, match=r"^other\.whl: its file name is not one for a wheel"):
        await inspect_safely(stored, "other.whl")


@pytest.mark.parametrize("name", ["missing", "folder", "pipe", "empty"])
async def test_what_is_no_file_with_content_is_refused_and_hangs_nothing(name: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "empty").touch()
    with pytest.raises(BadFileError, match=f"^{name}: "):
        await inspect_safely(tmp_path / name)


async def test_a_file_whose_name_leaves_no_room_for_a_sidecar_is_read_without_one(tmp_path: Path) -> None:
    longest = make_installer(tmp_path, "deb").rename(tmp_path / f"{'n' * 251}.deb")
    assert (await inspect_safely(longest)).facts.kind == "deb"


async def test_a_name_that_is_no_text_is_refused(tmp_path: Path) -> None:
    file = make_installer(tmp_path, "deb").rename(os.fsdecode(bytes(tmp_path) + b"/hello\xff.deb"))
    with pytest.raises(BadFileError, match=r"^hello\?\.deb: its name is not UTF-8 text\. Rename it"):
        await inspect_safely(file)


@ON_LINUX
async def test_no_more_workers_than_allowed_run_at_once(tmp_path: Path) -> None:
    installer = make_installer(tmp_path, "deb")
    before = children()
    asking = asyncio.gather(*(inspect_safely(installer) for _ in range(2 * WORKERS)))
    most = 0

    def done() -> bool:
        nonlocal most
        most = max(most, len(children() - before))
        return asking.done()

    await until(done)
    assert most == WORKERS
    assert len(await asking) == 2 * WORKERS


# --- sidecars -------------------------------------------------------------------------------------------------------


async def test_a_file_without_a_header_is_what_its_sidecar_says(tmp_path: Path) -> None:
    (tmp_path / "notes.run").write_bytes(b"#!/bin/sh\n")
    (tmp_path / f"notes.run{SUFFIX}").write_text('program = "notes"\nversion = "2.1"\nos = "linux"\nchannel = "beta"\n')
    found = await inspect_safely(tmp_path / "notes.run")
    assert (found.facts.package_name, found.facts.version, found.facts.kind) == ("notes", "2.1", "other")
    assert (found.sidecar.program, found.sidecar.channel) == ("notes", "beta")


async def test_a_sidecar_that_contradicts_the_header_is_a_conflict(tmp_path: Path) -> None:
    deb = make_installer(tmp_path, "deb")
    (tmp_path / f"{deb.name}{SUFFIX}").write_text('version = "9"\n')
    with pytest.raises(ConflictError, match=r"says version 9, and .* itself says 1\.0"):
        await inspect_safely(deb)


async def test_a_damaged_sidecar_is_named(tmp_path: Path) -> None:
    deb = make_installer(tmp_path, "deb")
    (tmp_path / f"{deb.name}{SUFFIX}").write_text("version = \n")
    with pytest.raises(BadFileError, match=rf"^{deb.name}{SUFFIX}: it is not TOML"):
        await inspect_safely(deb)


async def test_a_fault_of_the_installer_is_not_put_on_its_sidecar(tmp_path: Path) -> None:
    (tmp_path / "cut.deb").write_bytes(b"!<arch>\n")
    (tmp_path / f"cut.deb{SUFFIX}").write_text('program = "cut"\n')
    with pytest.raises(BadFileError, match=r"^cut\.deb: it "):
        await inspect_safely(tmp_path / "cut.deb")


async def test_what_a_windows_program_does_not_say_its_sidecar_says(tmp_path: Path) -> None:
    program = tmp_path / "tool.exe"
    program.write_bytes(windows_program())
    with pytest.raises(BadFileError, match="does not say what it is called and which version it is") as caught:
        await inspect_safely(program)
    assert caught.value.hint.endswith('program = "tool"\nversion = "1.0"')
    (tmp_path / f"tool.exe{SUFFIX}").write_text('program = "tool"\nversion = "1.2"\n')
    found = await inspect_safely(program)
    assert (found.facts.package_name, found.facts.version, found.facts.kind) == ("tool", "1.2", "exe")


async def test_reading_a_file_takes_a_fraction_of_a_second(tmp_path: Path) -> None:
    installer = make_installer(tmp_path, "deb")
    taken = []
    for _ in range(3):
        begun = time.perf_counter()
        await inspect_safely(installer)
        taken.append(time.perf_counter() - begun)
    assert min(taken) < 1.0  # 0.1 s where this was written
