"""Reading one foreign installer safely: the file goes to a process with next to no rights, its facts come back.

Whatever that process does (crash, fill its memory, loop, answer nonsense, never end) is a refusal with its own sentence
here, and the hub goes on. It is always killed and reaped, also when whoever asked has gone. `hub/inspectors/worker.py`
is the other half and says what it may not do. It gets no path, only the file itself, open for reading.
"""

import asyncio
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import BinaryIO, Final
from weakref import WeakKeyDictionary

import msgspec

from hub.inspectors import Inspected, check_facts, open_installer, told_of
from hub.inspectors.sidecar import SUFFIX
from hub.inspectors.worker import MEMORY_BYTES, PROCESSOR_SECONDS, Answer
from protocol.errors import BadFileError, ConflictError, UnavailableError
from protocol.limits import KIB, MIB

WORKERS: Final = 2
WALL_SECONDS: Final = 10.0
ANSWER_BYTES: Final = 256 * KIB
_END_SECONDS: Final = 5.0
FAILED: Final = "inspection-failed"

# `site` is left out and the paths are handed over: that halves the start, and the worker imports what the hub imports.
_PROGRAM: Final = (
    "import gc, sys; gc.disable(); sys.path[:] = sys.argv[1:-2]; from hub.inspectors.worker import main; main()"
)
_ROOM: Final[WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore]] = WeakKeyDictionary()


async def inspect_safely(path: Path, name: str = "") -> Inspected:
    """Return what is known of the installer at `path` and of its sidecar beside it, read in a process of its own.

    `name` is the file's original name where `path` is a stored copy; the sidecar is the file called as `path` is, with
    `.lockstep.toml` behind. At most WORKERS run at once on one event loop; further callers wait.

    Raises BadFileError for a file that cannot be read, is damaged or of an unknown format, with the code
    `inspection-failed` where its reader crashed or exceeded a limit; ConflictError where the sidecar contradicts the
    file; UnavailableError when this machine cannot start the process.
    """
    shown = (name or path.name or str(path)).replace("\0", "")
    with told_of(shown), open_installer(path) as file, _sidecar(path) as beside:
        descriptor = beside.fileno() if beside else None
        async with _room():
            answer = await ask_worker(worker_command(shown, descriptor), file.fileno(), descriptor)
        return found_in(answer)


def worker_command(name: str, sidecar: int | None = None) -> list[str]:
    """Return the command that reads an installer called `name` from its standard input, its sidecar from `sidecar`."""
    paths = [str(Path(entry).absolute()) for entry in sys.path]
    beside = "" if sidecar is None else str(sidecar)
    return [sys.executable, "-I", "-S", "-X", "utf8", "-c", _PROGRAM, *paths, beside, name]


async def ask_worker(
    command: Sequence[str], installer: int, sidecar: int | None = None, seconds: float = WALL_SECONDS
) -> bytes:
    """Run `command` with the descriptor `installer` as its standard input and return what it writes.

    Raises BadFileError, code `inspection-failed`, when it does not end well within `seconds`.
    """
    process = await _start(command, installer, () if sidecar is None else (sidecar,))
    try:
        async with asyncio.timeout(seconds):
            answer = await _read(process)
            status = await process.wait()
    except TimeoutError:
        raise _failed(f"it was not read within {seconds:g} s.") from None
    finally:
        await _end(process)
    if status != 0:
        raise _failed(_words(status))
    return answer


async def _start(command: Sequence[str], installer: int, descriptors: tuple[int, ...]) -> Process:
    try:
        return await asyncio.create_subprocess_exec(
            *command,
            stdin=installer,
            stdout=PIPE,
            stderr=DEVNULL,
            pass_fds=descriptors,
            cwd="/",
            env={},
            start_new_session=True,
        )
    except OSError as error:
        raise UnavailableError(
            f"The process that reads installers cannot be started ({error.strerror}).", hint="Try again later."
        ) from error


def _sidecar(path: Path) -> AbstractContextManager[BinaryIO | None]:
    """Open the sidecar beside the installer at `path`, if there is one."""
    beside = path.with_name(path.name + SUFFIX)
    if not beside.exists():
        return nullcontext()
    with told_of(beside.name):
        return open_installer(beside)


def _room() -> asyncio.Semaphore:
    """The places for workers on this event loop; a hub runs on one."""
    return _ROOM.setdefault(asyncio.get_running_loop(), asyncio.Semaphore(WORKERS))


async def _read(process: Process) -> bytes:
    assert process.stdout is not None
    received = bytearray()
    while part := await process.stdout.read(64 * KIB):
        received += part
        if len(received) > ANSWER_BYTES:
            raise _failed(f"its reader's answer has more than {ANSWER_BYTES} bytes.")
    return bytes(received)


async def _end(process: Process) -> None:
    """Kill the worker and all it may have started, and see it off; also when the caller is cancelled meanwhile."""
    if process.returncode is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        with suppress(TimeoutError):  # one that waits for a broken disk ends when the disk answers
            async with asyncio.timeout(_END_SECONDS):
                await asyncio.shield(asyncio.ensure_future(process.communicate()))


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


def _words(status: int) -> str:
    """Say what became of a worker that did not end with exit code 0."""
    if status == -signal.SIGXCPU:
        return f"it cannot be read within {PROCESSOR_SECONDS} s of processor time."
    if status < 0:
        return f"its reader crashed ({signal.Signals(-status).name})."
    return f"its reader failed (exit code {status}; {MEMORY_BYTES // MIB} MiB of memory were allowed)."


def _failed(message: str) -> BadFileError:
    return BadFileError(message, code=FAILED)
