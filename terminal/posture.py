"""Posture: this terminal scans the files of its own programs with the hub's rule set, and reports what it has found.

The engine runs in processes with next to no rights (`scanner/`), one at a time, at low priority, at a pace and within a
budget. Small files go to it by the batch, because each process takes a while to start; what it finds something in, or
cannot answer for, is scanned by itself.

One scan runs at a time and the newest request counts: it is answered by the scan that runs, where that has the same
rules; one with other rules is stopped. What was found is asked for again within a minute: the same result goes out.
"""

import asyncio
import contextlib
import functools
import hashlib
import io
import os
import sys
import tarfile
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Container, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, Final, TypeAlias

from msgspec import Struct, structs

from protocol import codec, keys, limits, messages
from protocol.device import InstallerKind
from protocol.errors import LockstepError, RefusedError, TransferError, UnavailableError, UsageError
from protocol.limits import GIB, MIB
from protocol.messages import FindingRow, InstalledProgram, PostureReport, PostureRequest
from scanner import FINDINGS, PLACES, TERMINAL_LEVELS, Scanned, yara
from terminal.installers import Runner
from terminal.programfiles import Places, Unlisted, files_of, open_regular
from terminal.state import SavedPosture, StateFolder, despite_full_disk

AGAIN_SECONDS: Final = 60.0  # so long a result answers requests that follow
STOP_SECONDS: Final = 10.0
NICENESS: Final = 15
SMALL_FILE_BYTES: Final = 256 * 1024
BATCH_BYTES: Final = 16 * MIB
BATCH_FILES: Final = 512
NO_NONCE: Final = bytes(limits.NONCE_BYTES)
# What may be an archive is scanned by itself, so that the engine looks into it: zip, deb, rpm, gzip, xz, lzma, zstd,
# bzip2; and a zip behind a program, by the mark at its end.
_ARCHIVES: Final = (
    b"PK", b"!<arch>\n", b"\xed\xab\xee\xdb", b"\x1f\x8b", b"\xfd7zXZ", b"\x5d\0\0", b"\x28\xb5\x2f\xfd", b"BZh",
)  # fmt: skip
_ZIP_END: Final = b"PK\x05\x06"
_BATCH_NAME: Final = "batch"

OnEvent: TypeAlias = Callable[[str, str], None]


@dataclass(frozen=True, slots=True)
class Budget:
    """How fast, for how long and how much is scanned: per second, in all, and of one file."""

    bytes_per_second: int = 16 * MIB
    seconds: float = 1_800.0
    bytes: int = 8 * GIB
    file_bytes: int = 512 * MIB
    file_seconds: float = 60.0


BUDGET: Final = Budget()


class Looked(Struct, frozen=True, kw_only=True):
    """What a scan has found, as in PostureReport; `file` is relative to the state folder, or absolute."""

    rules: bytes
    began_at: float
    seconds: float = 0.0
    programs: int = 0
    files: int = 0
    bytes: int = 0
    skipped: int = 0
    complete: bool = True
    findings: tuple[FindingRow, ...] = ()
    findings_in_all: int = 0


class StoppedError(Exception):
    """Whoever asked for the scan wants it no more."""


# --- one scan: blocking, in a thread ------------------------------------------------------------------------------


class Scan:
    """One scan of `places` with compiled rules; `gone` stops it. `base` is what files are named relative to."""

    def __init__(self, rules: bytes, base: Path, budget: Budget, gone: threading.Event) -> None:
        self._rules = rules
        self._base = base
        self._budget = budget
        self._gone = gone
        self._began_at = time.monotonic()
        self._batch: list[tuple[str, str, bytes]] = []  # name, program, content
        self._batch_bytes = 0
        self._rows: list[FindingRow] = []
        self._findings = self._files = self._bytes = self._skipped = 0
        self._complete = True

    def look(self, places: Places, digest: bytes) -> Looked:
        """Scan every file. Raises StoppedError, and UnavailableError when the engine cannot be started."""
        began_at = time.time()
        for found in files_of(places):
            if self._is_over():
                self._complete = False
                break
            if isinstance(found, Unlisted):
                self._skipped += 1
            else:
                self._take(found.path, found.program)
            self._keep_pace()
        self._end_batch()
        return Looked(
            rules=digest,
            began_at=max(began_at, 0.0),
            seconds=time.monotonic() - self._began_at,
            programs=len(places.programs),
            files=self._files,
            bytes=self._bytes,
            skipped=self._skipped,
            complete=self._complete and (self._files > 0 or self._skipped == 0),
            findings=tuple(self._rows),
            findings_in_all=self._findings,
        )

    def _is_over(self) -> bool:
        taken_seconds = time.monotonic() - self._began_at
        return taken_seconds > self._budget.seconds or self._bytes + self._batch_bytes >= self._budget.bytes

    def _keep_pace(self) -> None:
        """Wait until so much may have been read, or the time is over; then see whether anybody wants this still."""
        seconds = (self._bytes + self._batch_bytes) / self._budget.bytes_per_second
        due_at = self._began_at + min(seconds, self._budget.seconds)
        self._gone.wait(max(0.0, due_at - time.monotonic()))
        if self._gone.is_set():
            raise StoppedError

    def _take(self, path: Path, program: str) -> None:
        try:
            file = open_regular(path)
            if file is None:
                return
            with file:
                self._take_open(file, self._name(path), program)
        except OSError:  # it has vanished, or cannot be read
            self._skipped += 1

    def _name(self, path: Path) -> str:
        name = str(path.relative_to(self._base)) if path.is_relative_to(self._base) else str(path)
        return name.encode(errors="backslashreplace").decode()

    def _take_open(self, file: BinaryIO, name: str, program: str) -> None:
        size = os.fstat(file.fileno()).st_size
        if size > self._budget.file_bytes:
            self._skipped += 1
            return
        content = file.read(SMALL_FILE_BYTES + 1) if size <= SMALL_FILE_BYTES else b""
        if size > SMALL_FILE_BYTES or len(content) > SMALL_FILE_BYTES or _may_be_archive(content):
            self._scan_one(file, name, program, size)
            return
        self._batch.append((name, program, content))
        self._batch_bytes += len(content)
        if len(self._batch) >= BATCH_FILES or self._batch_bytes >= BATCH_BYTES:
            self._end_batch()

    def _end_batch(self) -> None:
        batch, self._batch, self._batch_bytes = self._batch, [], 0
        doubtful = self._doubtful([content for _, _, content in batch]) if len(batch) > 1 else range(len(batch))
        for number, (name, program, content) in enumerate(batch):
            if number not in doubtful:
                self._files += 1
                self._bytes += len(content)
                continue
            self._keep_pace()
            if self._is_over():
                self._complete = False
                return
            try:
                with tempfile.TemporaryFile() as file:
                    file.write(content)
                    file.flush()
                    self._scan_one(file, name, program, len(content))
            except OSError:  # there is no room for it
                self._skipped += 1

    def _doubtful(self, contents: Sequence[bytes]) -> Container[int]:
        """Return the places of those in which the engine finds something; all, unless it says that it saw each."""
        try:
            scanned = self._ask_of_all(contents)
        except OSError:
            scanned = None
        if scanned is None or scanned.skipped or scanned.files <= len(contents):
            return range(len(contents))
        of_each_rule = Counter(one.rule for one in scanned.findings)
        if len(scanned.findings) >= FINDINGS or max(of_each_rule.values(), default=0) >= PLACES:  # there may be more
            return range(len(contents))
        found = {one.where.removeprefix(f"{_BATCH_NAME}: ") for one in scanned.findings} - {_BATCH_NAME}
        return {number for number in range(len(contents)) if str(number) in found}

    def _ask_of_all(self, contents: Sequence[bytes]) -> Scanned | None:
        with tempfile.TemporaryFile() as file:
            with tarfile.open(fileobj=file, mode="w") as archive:
                for number, content in enumerate(contents):
                    member = tarfile.TarInfo(str(number))
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
            file.flush()
            return self._ask(file, _BATCH_NAME)

    def _scan_one(self, file: BinaryIO, name: str, program: str, size: int) -> None:
        scanned = self._ask(file, name)
        if scanned is None:
            self._skipped += 1
            return
        self._files += 1
        self._bytes += size
        self._skipped += len(scanned.skipped)
        self._findings += len(scanned.findings)
        for finding in scanned.findings[: limits.POSTURE_FINDINGS - len(self._rows)]:
            self._rows.append(
                FindingRow(
                    program=program,
                    file=finding.where[: limits.TEXT_CHARACTERS],
                    rule=finding.rule[: limits.NAME_CHARACTERS],
                )
            )

    def _ask(self, file: BinaryIO, name: str) -> Scanned | None:
        """Return what the engine says, None where it fails at this file. Raises UnavailableError and StoppedError."""
        try:
            return yara.scan(
                file, name, self._rules, levels=TERMINAL_LEVELS, seconds=self._budget.file_seconds, gone=self._gone
            )
        except UnavailableError as error:
            if self._gone.is_set():
                raise StoppedError from None
            if error.code != yara.NOT_SCANNED:
                raise
            return None


def _may_be_archive(content: bytes) -> bool:
    if content.startswith(_ARCHIVES) or _ZIP_END in content:
        return True
    try:
        tarfile.TarInfo.frombuf(content[: tarfile.BLOCKSIZE], "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


def scan_programs(folder: StateFolder, rules: bytes, places: Places, budget: Budget, gone: threading.Event) -> Looked:
    """Scan `places` with the rule set `rules` (its SHA-256) of the state folder. Blocking.

    Raises RefusedError (`not-scanned`) where that rule set is not there, UsageError for rules that do not compile (they
    are gone then), UnavailableError when the engine does not work, StoppedError when `gone` is set.
    """
    source = read_rules(folder, rules)
    if source is None:
        raise _no_rules()
    try:
        compiled = _compiled(source, gone)
    except UsageError:  # killed before `settle_rules`, or another engine: sent anew, they are refused in words
        (folder.rules / rules.hex()).unlink(missing_ok=True)
        raise
    return Scan(compiled, folder.path, budget, gone).look(places, rules)


def _compiled(source: bytes, gone: threading.Event) -> bytes:
    try:
        return yara.compile_rules(source, gone)
    except UnavailableError:
        if gone.is_set():
            raise StoppedError from None
        raise


# --- rule sets ----------------------------------------------------------------------------------------------------


def read_rules(folder: StateFolder, digest: bytes) -> bytes | None:
    """Return a rule set, None when it is not there; one that was damaged on the disk is removed."""
    file = folder.rules / digest.hex()
    try:
        if file.stat().st_size <= limits.RULES_BYTES:
            content = file.read_bytes()
            if hashlib.sha256(content).digest() == digest:
                return content
        file.unlink()
    except OSError:
        pass
    return None


def settle_rules(folder: StateFolder, digest: bytes, gone: threading.Event) -> None:
    """Take a rule set that has just come whole into use, in place of all others; not when `gone` is set. Blocking.

    Raises TransferError, after which it is gone: code `bad-rules` for one that does not compile, `no-space` where there
    is no room to compile it, or what the engine says.
    """
    source = read_rules(folder, digest)
    try:
        if source is None:
            raise TransferError("The rule set was damaged on the disk.", code="disk")
        yara.compile_rules(source, gone)
    except (LockstepError, OSError) as error:
        (folder.rules / digest.hex()).unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise TransferError(f"The rule set cannot be compiled: {error.strerror}.", code="no-space") from None
        raise TransferError(error.message, hint=error.hint, code=error.code) from None
    for file in folder.rules.iterdir():
        if file.name != digest.hex():
            with contextlib.suppress(OSError):
                file.unlink()


def newest_rules(folder: StateFolder) -> bytes | None:
    """Return the digest of the rule set that is in use, or None."""
    names = sorted(folder.rules.glob("[0-9a-f]" * 64), key=lambda file: file.stat().st_mtime_ns)
    return bytes.fromhex(names[-1].name) if names else None


def _no_rules() -> RefusedError:
    return RefusedError(
        "There is no rule set on this device to scan with.",
        hint="A hub that looks at postures sends one when `lockstep-terminal run` connects.",
        code=yara.NOT_SCANNED,
    )


# --- all scans of a terminal --------------------------------------------------------------------------------------


class Postures:
    """The scans of one terminal, for as long as its process holds the state folder."""

    def __init__(
        self,
        folder: StateFolder,
        runners: Mapping[InstallerKind, Runner],
        on_event: OnEvent,
        *,
        budget: Budget = BUDGET,
    ) -> None:
        self._folder = folder
        self._runners = runners
        self._on_event = on_event
        self._budget = budget
        self._said: Callable[[messages.Posture], None] | None = None
        self._request: PostureRequest | None = None  # the newest of this connection
        self._is_due = False
        self._rules = b""  # what a scan that runs has
        self._gone = threading.Event()
        self._last: tuple[Looked, tuple[InstalledProgram, ...], float] | None = None
        self._waiting: list[asyncio.Future[None]] = []
        self._task: asyncio.Task[None] | None = None
        # One thread of its own, which keeps its low priority and hands it on to the processes it starts.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="posture", initializer=_lower_priority)

    def listen(self, said: Callable[[messages.Posture], None] | None) -> None:
        """Tell `said` of each report from now on: a new connection, or None for its end."""
        self._said = said
        self._request = None

    def ask(self, request: PostureRequest) -> None:
        """The hub wants a report: by the scan that runs, the last one if it is young, or a new one."""
        self._request = request
        if self._rules == request.rules and not self._gone.is_set():
            return
        if self._rules:
            self._gone.set()
        elif (young := self._young(request.rules)) is not None:
            self._report(young, is_new=False)
            return
        self._begin()

    def settle(self, rules: bytes, gone: threading.Event) -> None:
        """Take a rule set that has just come whole into use. Blocking; raises as `settle_rules` does."""
        settle_rules(self._folder, rules, gone)

    async def look(self, rules: bytes, places: Places, gone: threading.Event) -> Looked:
        """Scan once, in the thread. Raises as `scan_programs` does."""
        budget = self._wished_budget()
        work = functools.partial(scan_programs, self._folder, rules, places, budget, gone)
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def scan_now(self) -> None:
        """Scan, beginning after this was called, and tell the hub if it has asked for reports.

        Raises what a scan does; UnavailableError when it is stopped.
        """
        waiting = asyncio.get_running_loop().create_future()
        self._waiting.append(waiting)
        self._begin()
        await waiting

    async def stop(self) -> None:
        """Stop scanning, within moments."""
        self._gone.set()
        self._is_due = False
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,), timeout=STOP_SECONDS)
        self._let_go(self._waiting, UnavailableError("This terminal is stopping."))
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _begin(self) -> None:
        self._is_due = True
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._work())

    async def _work(self) -> None:
        while self._is_due:
            self._is_due = False
            waiting, self._waiting = self._waiting, []
            error: LockstepError | None = None
            try:
                self._report(await self._scan(), is_new=True)
            except StoppedError:  # by a request with other rules
                self._waiting = waiting + self._waiting
                self._is_due = True
                continue
            except asyncio.CancelledError:
                self._waiting = waiting + self._waiting
                raise
            except LockstepError as failure:
                error = failure
                self._on_event("posture", f"The programs here were not scanned: {failure}")
            except Exception as failure:  # a fault of this program must not leave whoever waits to wait for ever
                error = LockstepError(f"The scan broke off: {type(failure).__name__}: {failure}")
                self._on_event("posture", error.message)
            self._let_go(waiting, error)

    def _let_go(self, waiting: list[asyncio.Future[None]], error: LockstepError | None) -> None:
        for one in waiting:
            if one.done():
                continue
            if error is None:
                one.set_result(None)
            else:
                one.set_exception(error)

    async def _scan(self) -> Looked:
        rules = self._request.rules if self._request else newest_rules(self._folder)
        if rules is None:
            raise _no_rules()
        self._rules, self._gone = rules, threading.Event()
        inventory = self._folder.inventory()
        kept = (*self._folder.previous(), *inventory)
        self._on_event("posture", f"Scanning the files of {_counted(len(inventory), 'program')}.")
        places = Places(self._folder.installed, kept, inventory, self._runners)
        try:
            looked = await self.look(rules, places, self._gone)
        finally:
            self._gone.set()
            self._rules = b""
        self._last = looked, inventory, time.monotonic()
        return looked

    def _wished_budget(self) -> Budget:
        pace = self._folder.preferences().scan_bytes_per_second
        return replace(self._budget, bytes_per_second=pace) if pace else self._budget

    def _young(self, rules: bytes) -> Looked | None:
        if self._last is None:
            return None
        looked, inventory, ended_at = self._last
        is_young = time.monotonic() - ended_at < AGAIN_SECONDS
        return looked if is_young and looked.rules == rules and inventory == self._folder.inventory() else None

    def _report(self, looked: Looked, *, is_new: bool) -> None:
        """Keep the report of a scan, and say it if the hub has asked."""
        request = self._request if self._request and self._request.rules == looked.rules else None
        said = self._said if request else None
        report = fitting(report_of(looked, request.nonce if request else NO_NONCE))
        if is_new:
            with despite_full_disk():  # it is for people to look at
                self._folder.save_posture(SavedPosture(report=report, told=said is not None))
            self._on_event("posture", words_of(report))
        if said is not None:
            said(signed(self._folder, report))


def report_of(looked: Looked, nonce: bytes) -> PostureReport:
    """Return the report of a scan, for the request with this nonce."""
    return PostureReport(nonce=nonce, engine=yara.ENGINE, **structs.asdict(looked))


def fitting(report: PostureReport) -> PostureReport:
    """Return `report` with as many findings as a report may hold bytes for; the rest is counted."""
    while report.findings and len(codec.encode_report(report)) > limits.POSTURE_BYTES:
        report = structs.replace(report, findings=report.findings[:-1])
    return report


def signed(folder: StateFolder, report: PostureReport) -> messages.Posture:
    """Return `report` as this terminal says it to its hub."""
    identity = folder.identity()
    data = codec.encode_report(report)
    to_sign = keys.posture_bytes(hub_key=identity.hub_key, terminal=identity.terminal, report=data)
    return messages.Posture(report=data, signature=keys.SigningKey(identity.device_seed).sign(to_sign))


def words_of(report: PostureReport) -> str:
    """Return one sentence on a report."""
    found = _counted(report.findings_in_all, "finding") if report.findings_in_all else "nothing found"
    passed_over = f", {report.skipped} passed over" if report.skipped else ""
    ended = "" if report.complete else "; the budget ended it before its end"
    files, programs = _counted(report.files, "file"), _counted(report.programs, "program")
    return f"Scanned {files} of {programs}: {found}{passed_over}{ended}."


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' if number != 1 else ''}"


def _lower_priority() -> None:
    """Let everything else go first. Linux counts priority by thread; elsewhere it would be all of this process."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
