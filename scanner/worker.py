"""The process in which YARA-X runs: rights given up first, then the rules and the file, then one answer.

`scanner/yara.py` starts it. YARA-X holds the interpreter's lock as long as it scans, runs what it compiled of the rules
as machine code, and reads formats of its own; none of that belongs into a hub or an agent. The rules are handed over in
a descriptor, the file that is scanned is standard input.

Everything is scanned in windows of WINDOW_BYTES that overlap: YARA-X takes only bytes in memory.
"""

import io
import os
import sys
from collections import Counter
from collections.abc import Iterator
from typing import BinaryIO, Final, NoReturn

import msgspec
import yara_x

from protocol.limits import MIB
from scanner import FINDINGS, PLACES, TOO_MANY, Compiled, Finding, Scanned, Severity
from scanner.rights import give_up_rights
from scanner.unpacking import BYTES, FILES, UNREADABLE, Stream, Unseen, files_inside, reason

SCAN_MEMORY_BYTES: Final = 512 * MIB  # of address space, of which YARA-X takes 125 MiB before it begins
COMPILE_MEMORY_BYTES: Final = 1024 * MIB
WINDOW_BYTES: Final = 64 * MIB
OVERLAP_BYTES: Final = MIB
UNSEEN: Final = 64
PATH_CHARACTERS: Final = 200


def main() -> NoReturn:
    """Compile the rules on standard input, or scan the file there; write the answer and end at once.

    The last three arguments are how many seconds of processor time that may take, how many levels of archives are
    opened, and the descriptor of the compiled rules, empty where some are to be compiled.
    """
    *_, seconds, levels, rules = sys.argv
    _warm_up()
    memory_bytes = SCAN_MEMORY_BYTES if rules else COMPILE_MEMORY_BYTES
    give_up_rights(memory_bytes=memory_bytes, processor_seconds=int(seconds))
    answer = _scan(_opened(0), _opened(int(rules)).read(), int(levels)) if rules else _compile(_opened(0).read())
    sys.stdout.buffer.write(msgspec.msgpack.encode(answer))
    sys.stdout.buffer.flush()
    os._exit(0)


def _warm_up() -> None:
    """Have YARA-X load now what it loads when first used, which is too late where no file can be opened."""
    kept = io.BytesIO()
    yara_x.compile("rule warm_up { condition: false }").serialize_into(kept)
    yara_x.Scanner(yara_x.Rules.deserialize_from(io.BytesIO(kept.getvalue()))).scan(b"")


def _opened(descriptor: int) -> BinaryIO:
    os.lseek(descriptor, 0, os.SEEK_SET)  # shared with the parent, which may have read it
    return os.fdopen(descriptor, "rb", closefd=False)


def _compile(source: bytes) -> Compiled:
    compiler = yara_x.Compiler()
    compiler.enable_includes(False)  # a rule set is whole by itself
    try:
        compiler.add_source(source.decode())
        rules = compiler.build()
    except (yara_x.CompileError, UnicodeDecodeError) as error:
        return Compiled(wrong=str(error))
    kept = io.BytesIO()
    rules.serialize_into(kept)
    return Compiled(content=kept.getvalue(), rules=sum(1 for _ in rules))


def _scan(file: BinaryIO, rules: bytes, levels: int) -> Scanned:
    scan = _Scan(yara_x.Scanner(yara_x.Rules.deserialize_from(io.BytesIO(rules))))
    scan.look_at("", file)
    for part in files_inside(file, levels):
        if isinstance(part, Unseen):
            scan.note_unseen(*part)
        else:
            scan.look_at(*part)
        if scan.files > FILES or scan.bytes > BYTES:
            scan.note_unseen("", f"the rest of it is beyond {FILES} files or {BYTES} bytes")
            break
    return scan.result()


class _Scan:
    """What was found so far."""

    def __init__(self, scanner: yara_x.Scanner) -> None:
        self._scanner = scanner
        self._findings: dict[tuple[str, str], Finding] = {}
        self._places: Counter[str] = Counter()
        self._unseen: list[str] = []
        self.files = 0
        self.bytes = 0

    def look_at(self, where: str, stream: Stream) -> None:
        self.files += 1
        try:
            for window, is_new in _windows(stream):
                self.bytes += is_new
                self._match(where, window)
                if self.bytes > BYTES:
                    return
        except UNREADABLE as error:
            self.note_unseen(where, reason(error))

    def note_unseen(self, where: str, why: str) -> None:
        if len(self._unseen) < UNSEEN:
            self._unseen.append(f"{_shown(where)}: {why}" if where else why)

    def result(self) -> Scanned:
        return Scanned(tuple(self._findings.values()), self.files, self.bytes, tuple(self._unseen))

    def _match(self, where: str, window: bytes) -> None:
        for rule in self._scanner.scan(window).matching_rules:
            name = rule.identifier[:PATH_CHARACTERS]
            if (name, where) in self._findings or self._places[name] == PLACES:
                continue
            if len(self._findings) >= FINDINGS:
                self._findings[TOO_MANY, ""] = Finding(TOO_MANY, "", "suspicious")
                return
            self._places[name] += 1
            self._findings[name, where] = Finding(name, _shown(where), _severity(rule))


def _windows(stream: Stream) -> Iterator[tuple[bytes, int]]:
    """Yield overlapping windows of a stream, each with how many bytes of it are new.

    Raises one of UNREADABLE behind all that could be read.
    """
    kept = b""
    while True:
        wanted = WINDOW_BYTES - len(kept)
        new, error = _read(stream, wanted)
        if new or not kept:
            yield kept + new, len(new)
        if error is not None:
            raise error
        if len(new) < wanted:
            return
        kept = new[-OVERLAP_BYTES:]


def _read(stream: Stream, size: int) -> tuple[bytes, Exception | None]:
    """Return the next `size` bytes, fewer where they end, and what there was to read them no further."""
    parts, left = [], size
    try:
        while left and (part := stream.read(min(left, MIB))):
            parts.append(part)
            left -= len(part)
    except UNREADABLE as error:
        return b"".join(parts), error
    return b"".join(parts), None


def _severity(rule: yara_x.Rule) -> Severity:
    return "suspicious" if dict(rule.metadata).get("severity") == "suspicious" else "infected"


def _shown(where: str) -> str:
    """Return a path that came out of a foreign archive as it may be shown."""
    printable = "".join(one if one.isprintable() else "?" for one in where.encode(errors="replace").decode())
    return printable if len(printable) <= PATH_CHARACTERS else f"{printable[: PATH_CHARACTERS - 3]}..."
