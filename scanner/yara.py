"""YARA-X at arm's length: rules are compiled and files scanned in a process with next to no rights.

`scanner/worker.py` is the other half. Nothing here imports the engine. Compiled rules are machine code: they go from
one worker to another through here, and are read in no other place.
"""

import os
import tempfile
import threading
from importlib.metadata import version
from math import ceil
from typing import BinaryIO, Final, TypeVar

import msgspec
from msgspec import structs

from protocol.errors import UnavailableError, UsageError
from protocol.limits import KIB, MIB, RULES_BYTES
from scanner import Compiled, Scanned
from scanner.child import ChildFailure, ask_child, python_command

ENGINE: Final = f"yara-x {version('yara-x')}"
NOT_SCANNED: Final = "not-scanned"
COMPILE_SECONDS: Final = 60.0
COMPILED_BYTES: Final = 256 * MIB
ANSWER_BYTES: Final = 256 * KIB
_WRONG_CHARACTERS: Final = 1_000

T = TypeVar("T")


def compile_rules(source: bytes, gone: threading.Event | None = None) -> bytes:
    """Check and compile a rule set and return what `scan` takes. Blocking; raises as `compile_counted` does."""
    return compile_counted(source, gone).content


def compile_counted(source: bytes, gone: threading.Event | None = None) -> Compiled:
    """Check and compile a rule set, and count its rules. Blocking.

    Raises UsageError, with the compiler's words and line, for rules that are wrong or too much; UnavailableError, code
    `not-scanned`, where the engine does not work here or `gone` is set; OSError where there is no room for them.
    """
    if len(source) > RULES_BYTES:
        raise UsageError(f"The rules have {len(source)} bytes, and at most {RULES_BYTES} are taken.", code="bad-rules")
    with tempfile.TemporaryFile() as file:
        file.write(source)
        file.flush()
        try:
            answer = _ask(file, "", seconds=COMPILE_SECONDS, answer_bytes=COMPILED_BYTES, gone=gone)
        except ChildFailure as failure:
            if gone is not None and gone.is_set():
                raise _failed("nobody waits for these rules any more") from None
            raise UsageError(
                f"The rules could not be compiled: {_words(failure, COMPILE_SECONDS)}.",
                hint="Take fewer or simpler rules.",
                code="bad-rules",
            ) from None
    compiled = _decode(answer, Compiled)
    if compiled.wrong:
        wrong = compiled.wrong[:_WRONG_CHARACTERS]
        raise UsageError(f"The rules are wrong: {wrong}", hint="Mend or remove that rule.", code="bad-rules")
    return compiled


def scan(
    file: BinaryIO, name: str, compiled: bytes, *, levels: int, seconds: float, gone: threading.Event | None = None
) -> Scanned:
    """Scan an open file, which is called `name`, and what is inside it, down to `levels` of archives. Blocking.

    Takes at most `seconds` on the clock and of processor time. Raises UnavailableError, code `not-scanned`, with the
    reason in words, when the engine does not end well, takes longer, or `gone` is set; OSError where there is no room
    for the rules as a temporary file.
    """
    with tempfile.TemporaryFile() as rules:
        rules.write(compiled)
        file.flush()
        rules.flush()
        try:
            descriptor = str(rules.fileno())
            answer = _ask(file, descriptor, levels, seconds=seconds, answer_bytes=ANSWER_BYTES, gone=gone)
        except ChildFailure as failure:
            raise _failed(_words(failure, seconds)) from None
    scanned = _decode(answer, Scanned)
    if scanned.bytes < (size := os.fstat(file.fileno()).st_size):
        raise _failed(f"it saw {scanned.bytes} of {size} bytes")
    findings = tuple(structs.replace(one, where=_where(name, one.where)) for one in scanned.findings)
    return structs.replace(scanned, findings=findings)


def _ask(
    file: BinaryIO,
    rules: str,
    levels: int = 0,
    *,
    seconds: float,
    answer_bytes: int,
    gone: threading.Event | None = None,
) -> bytes:
    return ask_child(
        python_command("scanner.worker", str(ceil(seconds)), str(levels), rules),
        file.fileno(),
        (int(rules),) if rules else (),
        seconds=seconds,
        answer_bytes=answer_bytes,
        gone=gone,
    )


def _decode(answer: bytes, kind: type[T]) -> T:
    """Return the worker's answer, which is as little to be trusted as what it has read."""
    try:
        return msgspec.msgpack.decode(answer, type=kind)
    except msgspec.DecodeError:
        raise _failed("its answer makes no sense") from None


def _words(failure: ChildFailure, seconds: float) -> str:
    """Say what became of a worker that did not end well."""
    match failure.why:
        case "time" | "processor":
            return f"it was not done within {seconds:g} s"
        case "answer":
            return "its answer is too long"
        case "signal":
            return f"it crashed ({failure.signal_name})"
    return f"it failed (exit code {failure.status}), as it does when it needs more memory than it may have"


def _failed(words: str) -> UnavailableError:
    return UnavailableError(f"{ENGINE}: {words}.", hint="It is tried again.", code=NOT_SCANNED)


def _where(name: str, inside: str) -> str:
    return f"{name}: {inside}" if inside else name
