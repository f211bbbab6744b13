"""Reading one foreign installer safely: the file goes to a process with next to no rights, its facts come back.

Whatever that process does (crash, fill its memory, loop, answer nonsense, never end) is a refusal with its own sentence
here, and the hub goes on. It is always killed and reaped, also when whoever asked has gone (`scanner/child.py`).
`hub/inspectors/worker.py` is the other half. It gets no path, only the file itself, open for reading.
"""

import asyncio
import errno
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import BinaryIO, Final, TypeVar

import msgspec

from hub.inspectors import INSPECTION_FAILED, Inspected, check_facts, open_installer, told_of
from hub.inspectors.sidecar import SUFFIX
from hub.inspectors.worker import MEMORY_BYTES, PROCESSOR_SECONDS, Answer
from protocol.errors import BadFileError, ConflictError
from protocol.limits import KIB, MIB
from scanner.child import ChildFailure, ask_child, python_command

WORKERS: Final = 2
WALL_SECONDS: Final = 10.0
ANSWER_BYTES: Final = 256 * KIB
_NO_SUCH_FILE: Final = (errno.ENOENT, errno.ENAMETOOLONG)  # a name may have no room for what is put behind it

# Threads of their own, each with one worker: asyncio's own child processes never end when their start is cancelled.
_THREADS: Final = ThreadPoolExecutor(WORKERS, thread_name_prefix="inspection")

T = TypeVar("T")


async def inspect_safely(path: Path, name: str = "") -> Inspected:
    """Return what is known of the installer at `path` and of its sidecar beside it, read in a process of its own.

    `name` is the file's original name where `path` is a stored copy; the sidecar is the file called as `path` is, with
    `.lockstep.toml` behind. At most WORKERS run at once; further callers wait.

    Raises BadFileError for a file that cannot be read, is damaged or of an unknown format, with the code
    `inspection-failed` where its reader crashed or exceeded a limit; ConflictError where the sidecar contradicts the
    file; UnavailableError when this machine cannot start the process.
    """
    return await in_turn(lambda gone: _inspect(path, (name or path.name or str(path)).replace("\0", ""), gone))


async def in_turn(work: Callable[[threading.Event], T]) -> T:
    """Return what `work` does in one of the WORKERS threads; the event is set when whoever asked has gone."""
    gone = threading.Event()
    try:
        return await asyncio.get_running_loop().run_in_executor(_THREADS, work, gone)
    finally:
        gone.set()


def _inspect(path: Path, name: str, gone: threading.Event) -> Inspected:
    shown = name.encode(errors="replace").decode()  # a name may be bytes that are no text
    with told_of(shown), open_installer(path) as file, _sidecar(path) as beside:
        if shown != name:
            raise BadFileError("its name is not UTF-8 text.", hint="Rename it.")
        descriptor = beside.fileno() if beside else None
        return found_in(ask_worker(worker_command(name, descriptor), file.fileno(), descriptor, gone=gone))


def worker_command(name: str, sidecar: int | None = None) -> list[str]:
    """Return the command that reads an installer called `name` from its standard input, its sidecar from `sidecar`."""
    return python_command("hub.inspectors.worker", "" if sidecar is None else str(sidecar), name)


def ask_worker(
    command: Sequence[str],
    installer: int,
    sidecar: int | None = None,
    *,
    seconds: float = WALL_SECONDS,
    gone: threading.Event | None = None,
) -> bytes:
    """Run `command` with the descriptor `installer` as its standard input and return what it writes.

    Raises BadFileError, code `inspection-failed`, when it does not end well within `seconds` or `gone` is set.
    """
    beside = () if sidecar is None else (sidecar,)
    try:
        return ask_child(command, installer, beside, seconds=seconds, answer_bytes=ANSWER_BYTES, gone=gone)
    except ChildFailure as failure:
        raise _failed(_words(failure, seconds)) from None


def _sidecar(path: Path) -> AbstractContextManager[BinaryIO | None]:
    """Open the sidecar beside the installer at `path`, if there is one."""
    beside = path.with_name(path.name + SUFFIX)
    with told_of(beside.name):
        try:
            return open_installer(beside)
        except OSError as error:
            if error.errno in _NO_SUCH_FILE:
                return nullcontext()
            raise


def found_in(answer: bytes) -> Inspected:
    """Return what the worker found. What it wrote is as little to be trusted as the file it has read."""
    try:
        told = msgspec.json.decode(answer, type=Answer)
    except msgspec.DecodeError as error:
        raise _failed("its reader's answer makes no sense.") from error
    if told.found is None:
        error_class = ConflictError if told.code == ConflictError.default_code else BadFileError
        raise error_class(told.message, hint=told.hint, code=told.code)
    check_facts(told.found.facts)
    return told.found


def _words(failure: ChildFailure, seconds: float) -> str:
    """Say what became of a worker that did not end well."""
    match failure.why:
        case "time":
            return f"it was not read within {seconds:g} s."
        case "processor":
            return f"it cannot be read within {PROCESSOR_SECONDS} s of processor time."
        case "answer":
            return f"its reader's answer has more than {ANSWER_BYTES} bytes."
        case "signal":
            return f"its reader crashed ({failure.signal_name})."
    return f"its reader failed (exit code {failure.status}; {MEMORY_BYTES // MIB} MiB of memory were allowed)."


def _failed(message: str) -> BadFileError:
    return BadFileError(message, code=INSPECTION_FAILED)
