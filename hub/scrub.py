"""The scrub: read everything the hub has stored, and say what is damaged, missing or not named by any row.

A damaged object is set aside as it is found. The database is checked in a copy, so that nobody waits for it. A running
hub scrubs itself once a week, gently; when it last did is kept in `scrub.json`. Between two scrubs of one run the
monotonic clock counts; the calendar is only asked at the start, and a date in the future counts as never.
"""

import asyncio
import contextlib
import logging
import os
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, Literal

import msgspec
from msgspec import Struct

from hub.audit import AuditLog
from hub.objects import DAMAGED_SUFFIX, Objects
from hub.steps import in_thread
from hub.store import Store
from hub.store.copies import faults_in, objects_in
from protocol import limits
from protocol.errors import LockstepError

log: Final = logging.getLogger("lockstep.hub")

EVERY_SECONDS: Final = 7 * 86_400.0
AFTER_START_SECONDS: Final = 3_600.0
GENTLE_BYTES_PER_SECOND: Final = 16 * limits.MIB
RECORD_NAME: Final = "scrub.json"

Tell = Callable[[str, int, int], None]


class Finding(Struct, frozen=True):
    """One thing that is not as it should be. `unnamed` and `set-aside` are no damage: nothing that is owed lacks it."""

    kind: Literal["damaged", "missing", "database", "audit", "unnamed", "set-aside"]
    name: str
    detail: str

    @property
    def is_damage(self) -> bool:
        """Whether something is lost until it is mended, or was tampered with."""
        return self.kind in ("damaged", "missing", "database", "audit")


class ScrubReport(Struct, frozen=True):
    """What a scrub has read, in objects and stored bytes, and what it found."""

    objects: int
    bytes: int
    findings: tuple[Finding, ...]

    @property
    def is_sound(self) -> bool:
        """Whether nothing is damaged."""
        return not any(finding.is_damage for finding in self.findings)


def tell_nobody(what: str, done: int, total: int) -> None:
    """Take progress that nobody waits for."""


async def scrub(
    store: Store,
    objects: Objects,
    folder: Path,
    audit: AuditLog | None = None,
    *,
    bytes_per_second: float = 0.0,
    tell: Tell = tell_nobody,
) -> ScrubReport:
    """Check every object, the database, and the audit log where one is given.

    `tell` gets a word, how many are done and all; 0 bytes a second: no brake.

    Raises UnavailableError when the database cannot be asked.
    """
    names = await asyncio.to_thread(objects.file_names)
    findings: list[Finding] = []
    read_bytes = 0
    digests = sorted(objects.digests())
    for number, digest in enumerate(digests):
        tell("objects", number, len(digests))
        try:
            async for piece in in_thread(objects.read_whole(digest)):
                read_bytes += len(piece)
                if bytes_per_second:
                    await asyncio.sleep(len(piece) / bytes_per_second)
        except LockstepError as error:
            findings.append(Finding("damaged", digest.hex(), error.message))
    tell("database", len(digests), len(digests))
    findings += await _check_database(store, objects, folder, names, {finding.name for finding in findings})
    if audit is not None and (fault := (await audit.verify(tell=tell)).fault) is not None:
        findings.append(Finding("audit", f"row {fault.sequence}", fault.detail))
    return ScrubReport(len(digests), read_bytes, tuple(findings))


async def _check_database(
    store: Store, objects: Objects, folder: Path, names: list[str], damaged: set[str]
) -> list[Finding]:
    """Check a copy of the database, and hold what it names against the files there were before."""
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".check-") as temporary:
            copy = Path(temporary) / "hub.db"
            await store.copy_to(copy)
            faults = await asyncio.to_thread(faults_in, copy)
            named = {digest.hex() for digest in await asyncio.to_thread(objects_in, copy)}
    except LockstepError as error:
        return [Finding("database", "hub.db", error.message)]
    except OSError as error:  # a full disk: nothing is known of the database then
        return [Finding("database", "hub.db", f"It could not be copied to be checked: {error.strerror or error}.")]
    findings = [Finding("database", "hub.db", fault) for fault in faults]
    findings += [
        Finding("missing", name, "The catalogue names it; publish the same file again.")
        for name in sorted(named - damaged)
        if not objects.is_there(bytes.fromhex(name))
    ]
    for name in names:
        if name.endswith(DAMAGED_SUFFIX):
            findings.append(Finding("set-aside", name, "It was damaged; publishing the same file again removes it."))
        elif Path(name).stem not in named and not Path(name).name.startswith("."):
            findings.append(Finding("unnamed", name, "No row names it; publishing that file again uses it."))
    return findings


@asynccontextmanager
async def scrubbing_weekly(store: Store, objects: Objects, folder: Path, audit: AuditLog) -> AsyncIterator[None]:
    """Scrub once a week while the block runs."""
    for leftover in folder.glob(".check-*"):
        shutil.rmtree(leftover, ignore_errors=True)  # of a hub that was killed
    task = asyncio.create_task(_scrub_weekly(store, objects, folder, audit), name="scrub")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _scrub_weekly(store: Store, objects: Objects, folder: Path, audit: AuditLog) -> None:
    wait_seconds = seconds_until_due(folder, time.time())
    while True:
        await asyncio.sleep(wait_seconds)
        try:
            report = await scrub(store, objects, folder, audit, bytes_per_second=GENTLE_BYTES_PER_SECOND)
            log_report(report)
            await asyncio.to_thread(keep_report, folder, report, time.time())
        except (LockstepError, OSError) as error:
            log.error("the weekly check could not be made: %s", error)
        wait_seconds = EVERY_SECONDS


def seconds_until_due(folder: Path, now: float) -> float:
    """Return how long a hub that starts at `now` (Unix seconds) waits: an hour at least, a week at most."""
    with contextlib.suppress(OSError, msgspec.DecodeError):
        ended_at = msgspec.json.decode((folder / RECORD_NAME).read_bytes(), type=_Record).ended_at
        if ended_at <= now:
            return max(AFTER_START_SECONDS, ended_at + EVERY_SECONDS - now)
    return AFTER_START_SECONDS


class _Record(Struct, frozen=True):
    """The last scrub: when it ended (Unix seconds), and what it said."""

    ended_at: float
    report: ScrubReport


def keep_report(folder: Path, report: ScrubReport, now: float) -> None:
    """Keep when a scrub ended. A record that is lost costs one more scrub."""
    temporary = folder / f"{RECORD_NAME}.new"
    with open(temporary, "wb", opener=_private) as stream:
        stream.write(msgspec.json.encode(_Record(now, report)))
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(folder / RECORD_NAME)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)  # as everything in the data folder


def log_report(report: ScrubReport) -> None:
    """Say in the log what a scrub found."""
    for finding in report.findings:
        log.log(logging.ERROR if finding.is_damage else logging.INFO, "%s: %s: %s", *_words(finding))
    log.info(
        "checked %d objects, %d bytes: %s", report.objects, report.bytes, "sound" if report.is_sound else "DAMAGED"
    )


def _words(finding: Finding) -> tuple[str, str, str]:
    return finding.kind, finding.name, finding.detail
