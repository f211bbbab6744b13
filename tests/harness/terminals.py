"""Terminals for tests as processes of their own, `lockstep-terminal run`, that can be killed."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

STOP_SECONDS = 20.0


class TerminalProcess:
    """The agent of the state folder `state` as a process; a context manager that stops it. Its log is `state`.log.

    `module` is what `python -m` runs, with its first arguments.
    """

    def __init__(self, state: Path, *, module: Sequence[str] = ("terminal",)) -> None:
        self._state = state
        self._module = module
        self._process: asyncio.subprocess.Process | None = None

    @property
    def log(self) -> Path:
        """What it said."""
        return self._state.with_suffix(".log")

    @property
    def pid(self) -> int:
        """The process."""
        assert self._process is not None
        return self._process.pid

    @property
    def has_ended(self) -> bool:
        """Whether it runs no more though nobody stopped it."""
        return self._process is not None and self._process.returncode is not None

    async def start(self) -> None:
        """Start it; it connects by itself."""
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", *self._module, "run", "--state", str(self._state), "--json",
                stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip

    async def kill(self, *, with_installers: bool = False) -> None:
        """Kill it with SIGKILL, as a power cut would; what it runs lives on unless it is killed as well."""
        assert self._process is not None
        groups = _children(self._process.pid) if with_installers else []
        await self._end(signal.SIGKILL)
        for group in groups:  # each child program leads a group of its own
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)

    async def stop(self) -> None:
        """Stop it in good order."""
        await self._end(signal.SIGTERM)

    async def _end(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, number)  # `send_signal` may reap it before asyncio does
            async with asyncio.timeout(STOP_SECONDS):
                await process.wait()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()


def _children(pid: int) -> list[int]:
    """Return the processes that `pid` has started and that run still (proc(5), the fourth field of `stat`)."""
    children: list[int] = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # ended meanwhile
            if int(stat.read_text().rpartition(")")[2].split()[1]) == pid:
                children.append(int(stat.parent.name))
    return children
