"""Scan engines behind one seam: YARA-X in a worker process, ClamAV's clamd, and a command of the owner's.

Every engine says of a file that it is clean, infected, suspicious, or that it could not scan it; and of itself which
version of its rules it has. Only what every engine that is set up calls clean is clean. An engine that is down, takes
too long, fails or talks nonsense has not scanned: that is never clean, and its row says why.

What is scanned is what the hub has stored: a private copy of those bytes without a name, so that nobody can change it
between the scan and the delivery.

Source of clamd's protocol: clamd(8), INSTREAM and VERSION, commands with the prefix "z" and ended by a zero byte.
"""

import asyncio
import functools
import logging
import os
import re
import shlex
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Final, Literal, Protocol, TypeAlias, TypeVar, get_args

from msgspec import Struct, structs

from hub.objects import Objects
from protocol.errors import LockstepError, UnavailableError, UsageError
from protocol.limits import KIB
from scanner import HUB_LEVELS, Scanned
from scanner.child import ChildFailure, hear_child, start_child
from scanner.rules import STARTER_SET, RuleSet, read_rules
from scanner.yara import ENGINE, NOT_SCANNED, scan

log: Final = logging.getLogger("lockstep.hub")

Verdict: TypeAlias = Literal["clean", "not-scanned", "suspicious", "infected"]
VERDICTS: Final[tuple[Verdict, ...]] = get_args(Verdict)  # the worst last
UNSEEN: Final = "unseen"  # the name under which `scan_ignore` lets parts pass that could not be looked into
SCANS_AT_ONCE: Final = 2
FINDINGS: Final = 16  # of one engine that are kept
FINDING_CHARACTERS: Final = 300
VERSION_SECONDS: Final = 5.0
_LOOK_EVERY_SECONDS: Final = 0.25  # whether whoever asked has gone
_CHUNK_BYTES: Final = 256 * KIB
_REPLY_BYTES: Final = 4 * KIB
_OUTPUT_BYTES: Final = 64 * KIB
_COMMAND_FILE: Final = "{file}"
_OVER_CLAMDS_LIMITS: Final = "Heuristics.Limits.Exceeded"
_IGN2: Final = "(a line in an .ign2 file of clamd's own has it go on)"
_NOT_SURE: Final = ("PUA.", "Heuristics.")  # what ClamAV names what may be meant well

T = TypeVar("T")


class EngineVerdict(Struct, frozen=True, kw_only=True):
    """What one engine says of a file, by which `rules`, empty where it could not even say that.

    `findings` are lines for people; `detail` says why it is `not-scanned`.
    """

    engine: str
    verdict: Verdict
    rules: str = ""
    findings: tuple[str, ...] = ()
    detail: str = ""

    @property
    def words(self) -> str:
        """What there is to say of it."""
        return f"{self.engine}: {'; '.join(self.findings) or self.detail}"


class Engine(Protocol):
    """What scans. Both methods block and may raise UnavailableError, which is then the reason for `not-scanned`."""

    name: str

    def rules_version(self) -> str:
        """Return what its rules are known by; a verdict under another version is done again."""

    def scan(self, file: BinaryIO, name: str, seconds: float, gone: threading.Event) -> EngineVerdict:
        """Scan an open file."""


class YaraEngine:
    """YARA-X with the rules of a folder, which are read when they are first needed and after `reload`."""

    name = "yara-x"

    def __init__(self, folder: Path = STARTER_SET, ignored: Iterable[str] = ()) -> None:
        self._folder = folder
        self._ignored = frozenset(ignored)
        self._reading = threading.Lock()
        self._rules: RuleSet | None = None
        self._gone = threading.Event()

    def rules(self) -> RuleSet:
        """Return the rule set. Blocking; raises UnavailableError where there is none that works."""
        with self._reading:
            if self._rules is None:
                self._rules = _read(self._folder, self._gone)
            return self._rules

    def close(self) -> None:
        """Have rules that are being compiled waited for no more."""
        self._gone.set()

    def reload(self) -> bool:
        """Read the rules anew and return whether they changed; wrong ones are told and change nothing. Blocking."""
        with self._reading:
            before = self._rules
            try:
                self._rules = _read(self._folder, self._gone)
            except UnavailableError as error:
                log.error("the rules are kept as they were: %s", error)
                return False
            return before is None or before.digest != self._rules.digest

    def rules_version(self) -> str:
        """Return the rule set's digest and the engine's own version."""
        return f"{self.rules().digest.hex()[:16]} {ENGINE}{_ignoring(self._ignored)}"

    def scan(self, file: BinaryIO, name: str, seconds: float, gone: threading.Event) -> EngineVerdict:
        """Scan an open file in a worker process."""
        version = self.rules_version()
        try:
            scanned = scan(file, name, self.rules().compiled, levels=HUB_LEVELS, seconds=seconds, gone=gone)
        except UnavailableError as error:
            return EngineVerdict(engine=self.name, verdict=NOT_SCANNED, rules=version, detail=error.message)
        except OSError as error:
            raise _no_room(error) from None
        return _yara_verdict(scanned, version, self._ignored)


def _read(folder: Path, gone: threading.Event) -> RuleSet:
    try:
        return read_rules(folder, gone)
    except UsageError as error:
        raise UnavailableError(error.message, hint=error.hint, code=NOT_SCANNED) from None
    except OSError as error:
        raise _no_room(error) from None


def _yara_verdict(scanned: Scanned, version: str, ignored: frozenset[str]) -> EngineVerdict:
    findings = [one for one in scanned.findings if one.rule not in ignored]
    unseen = () if UNSEEN in ignored else scanned.skipped
    verdict = EngineVerdict(engine=YaraEngine.name, verdict="clean", rules=version)
    if findings:
        worst: Verdict = "infected" if any(one.severity == "infected" for one in findings) else "suspicious"
        lines = [f"{one.rule} in {one.where}" for one in findings]
        return structs.replace(verdict, verdict=worst, findings=_bounded(lines))
    if unseen:
        lines = [f"{UNSEEN}: {one}" for one in unseen]
        return structs.replace(verdict, verdict=NOT_SCANNED, findings=_bounded(lines))
    return verdict


class ClamdEngine:
    """ClamAV's daemon at `unix:PATH` or `HOST:PORT`; nothing of the file's is written anywhere for it."""

    name = "clamd"

    def __init__(self, address: str, ignored: Iterable[str] = ()) -> None:
        self._address = address
        self._ignored = frozenset(ignored)

    def rules_version(self) -> str:
        """Return what clamd calls itself and its signatures. Raises UnavailableError."""
        with self._connect(time.monotonic() + VERSION_SECONDS) as connection:
            try:
                line = _Line(connection, time.monotonic() + VERSION_SECONDS, threading.Event())
                line.send(b"zVERSION\0")
                reply = line.reply()
            except OSError as error:
                raise _failed(self.name, _why(error)) from None
        if not re.fullmatch(r"ClamAV [ -~]{1,200}", reply):
            raise _failed(self.name, f"it answered {reply[:80]!r}")
        return reply + _ignoring(self._ignored)

    def scan(self, file: BinaryIO, name: str, seconds: float, gone: threading.Event) -> EngineVerdict:
        """Send an open file by INSTREAM."""
        version, deadline = self.rules_version(), time.monotonic() + seconds
        with self._connect(deadline) as connection:
            line = _Line(connection, deadline, gone)
            try:
                _send_file(line, file)
                reply = line.reply()
            except TimeoutError:
                return self._not_scanned(version, f"it was not done within {seconds:g} s")
            except OSError as error:  # it may have said why before it hung up
                reply = _last_reply(connection)
                if not reply:
                    return self._not_scanned(version, _why(error))
        return self._replied(reply, name, version)

    def _replied(self, reply: str, name: str, version: str) -> EngineVerdict:
        if reply == "stream: OK":
            return EngineVerdict(engine=self.name, verdict="clean", rules=version)
        found = re.fullmatch(r"stream: ([!-~]{1,200}) FOUND", reply)
        if found is None:
            return self._not_scanned(version, f"it answered {reply[:120]!r}")
        if found[1].startswith(_OVER_CLAMDS_LIMITS):
            return self._not_scanned(version, f"the file is beyond its limits ({found[1]})")
        if found[1].removesuffix(".UNOFFICIAL") in self._ignored or found[1] in self._ignored:
            if UNSEEN in self._ignored:
                return EngineVerdict(engine=self.name, verdict="clean", rules=version)
            return self._not_scanned(version, f"it stopped at {found[1]}, which is ignored, and saw no further {_IGN2}")
        verdict: Verdict = "suspicious" if found[1].startswith(_NOT_SURE) else "infected"
        findings = _bounded([f"{found[1]} in {name}"])
        return EngineVerdict(engine=self.name, verdict=verdict, rules=version, findings=findings)

    def _not_scanned(self, version: str, why: str) -> EngineVerdict:
        return EngineVerdict(engine=self.name, verdict=NOT_SCANNED, rules=version, detail=f"{why}.")

    def _connect(self, deadline: float) -> socket.socket:
        seconds = min(VERSION_SECONDS, max(deadline - time.monotonic(), 0.01))
        try:
            if self._address.startswith("unix:"):
                connection = socket.socket(socket.AF_UNIX)
                try:
                    connection.settimeout(seconds)
                    connection.connect(self._address.removeprefix("unix:"))
                except OSError:
                    connection.close()
                    raise
                return connection
            host, _, port = self._address.removeprefix("tcp:").rpartition(":")
            return socket.create_connection((host.strip("[]"), int(port)), seconds)
        except OSError as error:
            raise _failed(self.name, f"{self._address} cannot be reached ({_why(error)})") from None


class _Line:
    """One connection to clamd: whatever waits on it ends at the deadline, or soon after whoever asked has gone."""

    def __init__(self, connection: socket.socket, deadline: float, gone: threading.Event) -> None:
        self._connection = connection
        self._deadline = deadline
        self._gone = gone

    def send(self, data: bytes) -> None:
        """Send all of it. Raises OSError, of which TimeoutError is one."""
        left = memoryview(data)
        while left:
            left = left[self._patiently(functools.partial(self._connection.send, left)) :]

    def reply(self) -> str:
        """Return one reply without its zero byte. Raises OSError."""
        reply = b""
        while not reply.endswith(b"\0"):
            part = self._patiently(lambda: self._connection.recv(_REPLY_BYTES))
            reply += part
            if not part:
                raise ConnectionError("it hung up")
            if len(reply) > _REPLY_BYTES:
                raise ConnectionError("its answer is too long")
        return reply[:-1].decode("ascii", "replace")

    def _patiently(self, work: Callable[[], T]) -> T:
        while (left := self._deadline - time.monotonic()) > 0 and not self._gone.is_set():
            self._connection.settimeout(min(left, _LOOK_EVERY_SECONDS))
            with suppress(TimeoutError):
                return work()
        raise TimeoutError


def _send_file(line: _Line, file: BinaryIO) -> None:
    file.seek(0)
    line.send(b"zINSTREAM\0")
    while chunk := file.read(_CHUNK_BYTES):
        line.send(len(chunk).to_bytes(4, "big") + chunk)
    line.send(bytes(4))


def _last_reply(connection: socket.socket) -> str:
    """Return what clamd said before it hung up, if anything."""
    try:
        return _Line(connection, time.monotonic() + 1.0, threading.Event()).reply()
    except OSError:
        return ""


def _why(error: OSError) -> str:
    return error.strerror or str(error) or "no answer in time"


class CommandEngine:
    """A command of the owner's: exit code 0 is clean, 1 infected with a finding a line; anything else is not scanned.

    It gets the file as standard input, and as a path wherever its arguments say `{file}`.
    """

    name = "command"

    def __init__(self, command: str, ignored: Iterable[str] = ()) -> None:
        self._words = ["/dev/fd/0" if word == _COMMAND_FILE else word for word in shlex.split(command)]
        self._ignored = frozenset(ignored)

    def rules_version(self) -> str:
        """Return the command: what it scans by is its own business, and `verdicts rescan` asks it again.

        Raises UnavailableError where there is no such program.
        """
        if shutil.which(self._words[0]) is None:
            raise _failed(self.name, f"{self._words[0]} is not there, or may not be started")
        return shlex.join(self._words)[:FINDING_CHARACTERS] + _ignoring(self._ignored)

    def scan(self, file: BinaryIO, name: str, seconds: float, gone: threading.Event) -> EngineVerdict:
        """Run it over an open file."""
        os.lseek(file.fileno(), 0, os.SEEK_SET)  # `file.seek` may only move within what Python has read ahead
        known = ("PATH", "HOME", "LANG", "TMPDIR")
        surroundings = {key: os.environ[key] for key in known if key in os.environ}
        process = start_child(self._words, file.fileno(), environment=surroundings)
        try:
            status, output = hear_child(process, seconds=seconds, answer_bytes=_OUTPUT_BYTES, gone=gone)
        except ChildFailure as failure:
            return self._not_scanned(_command_words(failure, seconds))
        if status == 0:
            return EngineVerdict(engine=self.name, verdict="clean", rules=self.rules_version())
        if status != 1:
            return self._not_scanned(f"it ended with exit code {status}.")
        lines = [line.strip() for line in output.decode(errors="replace").splitlines() if line.strip()] or [name]
        found = [line for line in lines if line not in self._ignored]
        return EngineVerdict(
            engine=self.name,
            verdict="infected" if found else "clean",
            rules=self.rules_version(),
            findings=_bounded(found),
        )

    def _not_scanned(self, why: str) -> EngineVerdict:
        return EngineVerdict(engine=self.name, verdict=NOT_SCANNED, rules=self.rules_version(), detail=why)


def _command_words(failure: ChildFailure, seconds: float) -> str:
    match failure.why:
        case "time" | "processor":
            return f"it was not done within {seconds:g} s."
        case "answer":
            return f"it wrote more than {_OUTPUT_BYTES} bytes."
    return f"it crashed ({failure.signal_name})."


def _bounded(lines: Sequence[str]) -> tuple[str, ...]:
    """Return findings as they may be kept and shown, each one line."""
    shown = ("".join(one if one.isprintable() else "?" for one in line)[:FINDING_CHARACTERS] for line in lines)
    return tuple(shown)[:FINDINGS]


def _ignoring(ignored: frozenset[str]) -> str:
    return f", ignoring {' '.join(sorted(ignored))}" if ignored else ""


def _no_room(error: OSError) -> UnavailableError:
    return _failed(YaraEngine.name, f"its rules could not be written to the temporary folder ({error.strerror})")


def _failed(engine: str, why: str) -> UnavailableError:
    return UnavailableError(f"{engine}: {why}.", hint="It is tried again.", code=NOT_SCANNED)


# --- all engines together -----------------------------------------------------------------------------------------


def worst(verdicts: Iterable[EngineVerdict], engines: Iterable[str]) -> tuple[Verdict, str]:
    """Return what these engines together say of a file and why: the worst, and clean only where each has scanned it."""
    by_engine = {one.engine: one for one in verdicts}
    said = [
        by_engine.get(name) or EngineVerdict(engine=name, verdict=NOT_SCANNED, detail="it has not scanned it yet.")
        for name in engines
    ]
    if not said:
        return "clean", ""
    verdict = max((one.verdict for one in said), key=VERDICTS.index)
    return verdict, "" if verdict == "clean" else " ".join(one.words for one in said if one.verdict == verdict)


class Scanning:
    """The engines of one hub and the threads they are asked in. `seconds` is what one engine may take for a file."""

    def __init__(self, objects: Objects, engines: Sequence[Engine], *, seconds: float) -> None:
        self._objects = objects
        self.engines = tuple(engines)
        self.names = tuple(engine.name for engine in engines)
        self._seconds = seconds
        self._threads = ThreadPoolExecutor(SCANS_AT_ONCE, "scan")

    @property
    def yara(self) -> YaraEngine | None:
        """The engine whose rules terminals are handed."""
        return next((engine for engine in self.engines if isinstance(engine, YaraEngine)), None)

    async def scan(self, digest: bytes, name: str, engines: Sequence[Engine] | None = None) -> list[EngineVerdict]:
        """Have engines (all of them where none are given) scan a stored object that is called `name`.

        Never raises for what an engine, the file or the disk does: that is `not-scanned`.
        """
        asked = self.engines if engines is None else engines
        if not asked:
            return []
        gone = threading.Event()
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._threads, self._scan, digest, name, asked, gone)
        finally:
            gone.set()

    async def rules_version(self, engine: Engine) -> str:
        """Return the version of an engine's rules, behind no scan. Raises UnavailableError where it is down."""
        return await asyncio.to_thread(engine.rules_version)

    async def reload(self) -> bool:
        """Read YARA rules anew and return whether they changed."""
        return self.yara is not None and await asyncio.to_thread(self.yara.reload)

    def close(self) -> None:
        """Let go of the threads; what is being scanned or compiled is not waited for."""
        if self.yara is not None:
            self.yara.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _scan(self, digest: bytes, name: str, engines: Sequence[Engine], gone: threading.Event) -> list[EngineVerdict]:
        try:
            with self._objects.whole_copy(digest) as file:
                return [_asked(engine, file, name, self._seconds, gone) for engine in engines]
        except LockstepError as error:
            log.debug("%s could not be scanned: %s", digest.hex(), error)  # its verdict says so too, once
            return [EngineVerdict(engine=engine.name, verdict=NOT_SCANNED, detail=error.message) for engine in engines]


def _asked(engine: Engine, file: BinaryIO, name: str, seconds: float, gone: threading.Event) -> EngineVerdict:
    try:
        return engine.scan(file, name, seconds, gone)
    except LockstepError as error:
        words = error.message.removeprefix(f"{engine.name}: ")
    except Exception as error:  # an engine that fails in a way nobody thought of has not scanned either
        log.exception("the engine %s failed", engine.name)
        words = f"it failed ({type(error).__name__})."
    return EngineVerdict(engine=engine.name, verdict=NOT_SCANNED, detail=words)
