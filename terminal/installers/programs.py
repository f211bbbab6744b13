"""Running a child program: own process group, deadline, bounded output, nothing of our environment; and the lock.

A child runs in a session of its own, so that the deadline, or the cancelling of the task that waits for it, kills it
together with everything it started. Its output is drained all the time and only the tail is kept. POSIX only.

The lock of a runner is an advisory lock on a file that the child inherits: it lives as long as the child does, even
when the terminal is killed, so the next terminal waits for the orphan before it asks or installs. While the terminal
lives it releases the lock itself, so a daemon that an installer left behind cannot keep it.
"""

import asyncio
import contextlib
import fcntl
import os
import signal
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from protocol.errors import LockstepError, UnavailableError

OUTPUT_BYTES: Final = 8 * 1024
READ_BYTES: Final = 64 * 1024  # what a Linux pipe holds
ASK_SECONDS: Final = 30.0
KILLED_WITHIN_SECONDS: Final = 5.0
LOCK_AGAIN_SECONDS: Final = 0.05
CANNOT_START: Final = 127  # as a shell says it

# dpkg refuses to run when it finds no ldconfig, which lives in sbin, so that is in here for ordinary users too.
ENVIRONMENT: Final[Mapping[str, str]] = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LC_ALL": "C.UTF-8",
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a child program ended: exit code (negative: the signal), and the last 8 KiB of each of its outputs."""

    exit_code: int
    timed_out: bool
    output: str
    errors: str

    @property
    def words(self) -> str:
        """What the program said, for people; errors last."""
        return " ".join(f"{self.output}\n{self.errors}".split())


class Tail:
    """A pipe that is drained all the time and of which the last 8 KiB are kept."""

    def __init__(self) -> None:
        self.outlet, self.inlet = os.pipe()
        self._kept = b""
        os.set_blocking(self.outlet, False)
        asyncio.get_running_loop().add_reader(self.outlet, self._read)

    def _read(self) -> bool:
        """Read once; return whether there may be more."""
        try:
            data = os.read(self.outlet, READ_BYTES)
        except BlockingIOError:
            return False
        if not data:
            asyncio.get_running_loop().remove_reader(self.outlet)
        self._kept = (self._kept + data)[-OUTPUT_BYTES:]
        return bool(data)

    def close(self) -> str:
        """Take what the ended child left in the pipe, close it and return the tail.

        The end of the pipe is not waited for: a daemon the child left behind may hold it open for ever. Two reads are
        more than a pipe can hold, so such a daemon cannot keep us reading either.
        """
        for _ in range(2):
            if not self._read():
                break
        asyncio.get_running_loop().remove_reader(self.outlet)
        os.close(self.outlet)
        return self._kept.decode(errors="replace")


async def run_program(
    command: Sequence[str],
    *,
    seconds: float,
    environment: Mapping[str, str] = ENVIRONMENT,
    folder: Path | None = None,
    lock: int | None = None,
    output: int | None = None,
) -> Outcome:
    """Run `command` for at most `seconds`, then kill its whole group. Cancelling kills the group as well.

    `folder` is where it runs (default "/"); `lock` is a file descriptor it inherits; `output`, if given, is a file
    descriptor that takes its standard output instead of the tail, and is closed here.
    """
    tails = Tail(), Tail()
    inlets = [tail.inlet for tail in tails]
    # The child keeps the other ends too: one that outlives this process can still write some more.
    kept = (*(tail.outlet for tail in tails), *(() if lock is None else (lock,)))
    if output is not None:
        os.close(inlets[0])
        inlets[0] = output
    try:
        exit_code, timed_out, trouble = await _run(command, inlets, seconds, environment, folder or Path("/"), kept)
    finally:
        said = [tail.close() for tail in tails]
    return Outcome(exit_code, timed_out, output=said[0], errors=trouble or said[1])


async def _run(
    command: Sequence[str],
    inlets: list[int],
    seconds: float,
    environment: Mapping[str, str],
    folder: Path,
    kept: tuple[int, ...],
) -> tuple[int, bool, str]:
    """Return the exit code, whether the deadline passed, and why the program could not start, if so."""
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=inlets[0],
            stderr=inlets[1],
            env=dict(environment),
            cwd=folder,
            start_new_session=True,
            pass_fds=kept,
        )
    except (OSError, ValueError) as error:
        return CANNOT_START, False, f"{command[0]} cannot be started: {error}"
    finally:
        for inlet in inlets:
            os.close(inlet)
    try:
        async with asyncio.timeout(seconds):
            return await process.wait(), False, ""
    except TimeoutError:
        return -signal.SIGKILL, True, ""
    finally:
        if process.returncode is None:
            await _kill_group(process)


async def _kill_group(process: asyncio.subprocess.Process) -> None:
    """Kill the child and everything it started, and reap it. One stuck in the kernel is not waited for for ever."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(process.wait(), KILLED_WITHIN_SECONDS)


def require_success(outcome: Outcome, tool: str, seconds: float) -> Outcome:
    """Return `outcome` if it is a success, else raise with code `runner-timeout` or `runner-failed`."""
    if outcome.timed_out:
        raise LockstepError(
            f"{tool} did not end within {seconds:g} s and was stopped: {outcome.words or 'it said nothing'}",
            code="runner-timeout",
        )
    if outcome.exit_code:
        raise LockstepError(
            f"{tool} ended with exit code {outcome.exit_code}: {outcome.words or 'it said nothing'}",
            code="runner-failed",
        )
    return outcome


@contextlib.asynccontextmanager
async def runner_lock(file: Path, seconds: float) -> AsyncIterator[int]:
    """Hold the lock on `file` and yield its descriptor; UnavailableError `runner-busy` when not free in `seconds`."""
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _opened(file) as descriptor:
        try:
            async with asyncio.timeout(seconds):
                while not _try_lock(descriptor):  # noqa: ASYNC110 - the holder may be another process
                    await asyncio.sleep(LOCK_AGAIN_SECONDS)
        except TimeoutError:
            raise UnavailableError(
                f"Another installation still held {file} after {seconds:g} s.",
                hint="Try again when it has ended.",
                code="runner-busy",
            ) from None
        try:
            yield descriptor
        finally:
            # Unlocking, not just closing: a daemon the installer left behind has the same descriptor.
            fcntl.flock(descriptor, fcntl.LOCK_UN)


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[int]:
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
