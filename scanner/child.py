"""One process for one foreign file: started with no surroundings, heard out within bounds, always killed and reaped.

Whatever it does (crash, fill its memory, loop, answer too much, never end) is a ChildFailure here and its parent goes
on, also when whoever asked has gone. It gets no path, only descriptors. `scanner/rights.py` is what it does first.
"""

import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, Literal

from protocol.errors import UnavailableError
from protocol.limits import KIB

LOOK_EVERY_SECONDS: Final = 0.1  # whether whoever asked has gone
_LOOK_AGAIN_SECONDS: Final = 0.002  # whether a worker that has said all has ended: it does so at once
_END_SECONDS: Final = 5.0  # one that waits for a broken disk ends when the disk answers


class ChildFailure(Exception):  # noqa: N818 - an end like others, which each caller puts in its own words
    """A child that did not end well. `why` is what it exceeded or how it ended; `status` is its exit status.

    "time": the time on the clock, or whoever asked has gone; "processor": its processor time; "answer": its answer's
    size; "signal" and "status": it was killed, or ended with an exit code other than 0.
    """

    def __init__(self, why: Literal["time", "processor", "answer", "signal", "status"], status: int = 0) -> None:
        super().__init__(why)
        self.why = why
        self.status = status

    @property
    def signal_name(self) -> str:
        """The name of the signal that ended it."""
        return signal.Signals(-self.status).name


def python_command(module: str, *arguments: str) -> list[str]:
    """Return the command that runs `main()` of `module`; its arguments are the last ones of `sys.argv`.

    `site` is left out and the paths are handed over: that halves the start, and it imports what its parent imports.
    """
    paths = [str(Path(entry).absolute()) for entry in sys.path]
    program = (
        f"import gc, sys; gc.disable(); sys.path[:] = sys.argv[1:{len(paths) + 1}]; from {module} import main; main()"
    )
    return [sys.executable, "-I", "-S", "-X", "utf8", "-c", program, *paths, *arguments]


def ask_child(
    command: Sequence[str],
    standard_input: int,
    descriptors: tuple[int, ...] = (),
    *,
    seconds: float,
    answer_bytes: int,
    gone: threading.Event | None = None,
) -> bytes:
    """Run `command` with a descriptor as its standard input, `descriptors` open, and return what it writes.

    Blocking. Raises ChildFailure when it does not end well within `seconds` and `answer_bytes`, or `gone` is set;
    UnavailableError when it cannot be started.
    """
    process = start_child(command, standard_input, descriptors)
    status, answer = hear_child(process, seconds=seconds, answer_bytes=answer_bytes, gone=gone)
    if status != 0:
        raise ChildFailure("status", status)
    return answer


def hear_child(
    process: subprocess.Popen[bytes], *, seconds: float, answer_bytes: int, gone: threading.Event | None = None
) -> tuple[int, bytes]:
    """Return a started child's exit code and what it has written, and see it off. Blocking; raises ChildFailure."""
    deadline = time.monotonic() + seconds
    try:
        answer = _read(process, deadline, answer_bytes, gone or threading.Event())
        status = _wait(process, deadline)
    finally:
        _end(process)
    if status == -signal.SIGXCPU:
        raise ChildFailure("processor", status)
    if status < 0:
        raise ChildFailure("signal", status)
    return status, answer


def start_child(
    command: Sequence[str],
    standard_input: int,
    descriptors: tuple[int, ...] = (),
    environment: Mapping[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """Start a child with nothing but these. Raises UnavailableError."""
    try:
        return subprocess.Popen(
            command,
            bufsize=0,
            stdin=standard_input,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            pass_fds=descriptors,
            cwd="/",
            env=environment or {},
            start_new_session=True,
        )
    except OSError as error:
        raise UnavailableError(
            f"{Path(command[0]).name} cannot be started ({error.strerror}).", hint="Try again later."
        ) from error


def _read(process: subprocess.Popen[bytes], deadline: float, answer_bytes: int, gone: threading.Event) -> bytes:
    """Return all the child writes until it closes its output. Raises ChildFailure."""
    assert process.stdout is not None
    received = bytearray()
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while time.monotonic() < deadline and not gone.is_set():
            if not selector.select(LOOK_EVERY_SECONDS):
                continue
            part = os.read(process.stdout.fileno(), 64 * KIB)
            received += part
            if not part:
                return bytes(received)
            if len(received) > answer_bytes:
                raise ChildFailure("answer")
    raise ChildFailure("time")


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill the child and all it may have started, and see it off."""
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        with suppress(ChildFailure):
            _wait(process, time.monotonic() + _END_SECONDS)
    if process.stdout is not None:
        process.stdout.close()


def _wait(process: subprocess.Popen[bytes], deadline: float) -> int:
    """Return the exit status. Raises ChildFailure.

    Not `Popen.wait`: it sleeps until a moment it has reckoned, which fails where the clock steps meanwhile.
    """
    with selectors.DefaultSelector() as pause:
        while (status := process.poll()) is None:
            if time.monotonic() >= deadline:
                raise ChildFailure("time")
            pause.select(_LOOK_AGAIN_SECONDS)
    return status
