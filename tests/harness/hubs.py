"""Hubs for tests: in this process, or as a process of its own that can be killed and measured."""

import asyncio
import contextlib
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from hub.app import Hub, open_hub, serve_hub
from hub.catalogue import PublishOptions
from hub.config import Settings
from hub.records import Published
from hub.server import HubServer
from hub.terminalsocket import TerminalSocket

PASSWORD = "correct horse battery"
START_SECONDS = 20.0


def hub_settings(folder: Path, port: int = 0, **settings: Any) -> Settings:
    """Return settings for a hub on loopback with its data in `folder`."""
    values: dict[str, Any] = {"data": str(folder), "listen": f"127.0.0.1:{port}", "disk_reserve_bytes": 0}
    return Settings(**values | settings)


class RunningHub:
    """A hub in this process. After `stop`, `start` opens the same data on the same port again."""

    hub: Hub
    server: HubServer

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.folder = folder
        self._settings = settings
        self._stack = AsyncExitStack()
        self._port = 0

    @property
    def url(self) -> str:
        """Where terminals dial."""
        return f"ws://127.0.0.1:{self._port}"

    async def start(self) -> None:
        """Open the data folder and serve."""
        self.hub = await self._stack.enter_async_context(
            open_hub(hub_settings(self.folder, self._port, **self._settings))
        )
        self.server = await self._stack.enter_async_context(serve_hub(self.hub))
        self._port = self.server.port

    async def stop(self) -> None:
        """Stop in good order."""
        await self._stack.aclose()

    def socket_of(self, terminal: str) -> TerminalSocket:
        """Return the hub's end of a terminal's connection."""
        number = self.hub.presence.socket_of(terminal)
        assert number is not None, f"{terminal} is not connected"
        return self.server._services.sockets[number]

    async def add_account(self, name: str, password: str = PASSWORD) -> None:
        """Add an account."""
        await self.hub.accounts.add(name, password)

    async def publish(self, path: Path, *, program: str = "", title: str = "", **given: Any) -> Published:
        """Publish an installer; `given` are fields of a Selector."""
        options = PublishOptions(program=program, title=title, given=given)
        return await self.hub.catalogue.publish(path, options)


@asynccontextmanager
async def running_hub(tmp_path: Path, **settings: Any) -> AsyncIterator[RunningHub]:
    """Run a hub in this process until the block is left; `settings` are fields of `hub.config.Settings`."""
    hub = RunningHub(tmp_path / "hub", **settings)
    await hub.start()
    try:
        yield hub
    finally:
        await hub.stop()


class HubProcess:
    """A hub as a process of its own on the data of `folder`; a context manager that stops it.

    `names` are further "HOST:PORT" by which it is dialled; `module` is what `python -m` runs, with its first arguments;
    `settings` are given in the environment, written as there.
    """

    def __init__(
        self,
        folder: Path,
        *,
        names: Sequence[str] = (),
        module: Sequence[str] = ("hub",),
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self._folder = folder
        self._settings = {f"LOCKSTEP_HUB_{name.upper()}": text for name, text in (settings or {}).items()}
        self._module = module
        self._names = [option for name in names for option in ("--name", name)]
        self._process: asyncio.subprocess.Process | None = None
        self._port = 0

    @property
    def url(self) -> str:
        """Where terminals dial."""
        return f"ws://127.0.0.1:{self._port}"

    @property
    def port(self) -> int:
        """Where it listens."""
        return self._port

    @property
    def log(self) -> Path:
        """What it said on standard error."""
        return self._folder.parent / "hub.log"

    @property
    def pid(self) -> int:
        """The process."""
        assert self._process is not None
        return self._process.pid

    async def start(self) -> None:
        """Start it and wait until it listens; the first start chooses the port."""
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", *self._module, "serve",
                "--data", str(self._folder), "--listen", f"127.0.0.1:{self._port}", *self._names,
                stdout=asyncio.subprocess.PIPE, stderr=log,
                env={**os.environ, "LOCKSTEP_HUB_DISK_RESERVE_BYTES": "0", **self._settings},
            )  # fmt: skip
        assert self._process.stdout is not None
        async with asyncio.timeout(START_SECONDS):
            line = (await self._process.stdout.readline()).decode()
        found = re.search(r"://[^ ]*:(\d+)", line)
        assert found, f"the hub said {line!r}; see {self.log}"
        self._port = int(found[1])

    @property
    def has_ended(self) -> bool:
        """Whether it runs no more though nobody stopped it."""
        return self._process is not None and self._process.returncode is not None

    def kill_now(self) -> None:
        """Send SIGKILL without waiting; call `kill` next."""
        os.kill(self.pid, signal.SIGKILL)

    async def kill(self) -> None:
        """Kill it with SIGKILL, as a power cut would."""
        await self._end(signal.SIGKILL)

    async def stop(self) -> None:
        """Stop it in good order."""
        await self._end(signal.SIGTERM)

    async def _end(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, number)  # `send_signal` may reap it before asyncio does
            async with asyncio.timeout(START_SECONDS):
                await process.communicate()

    def memory_bytes(self) -> int:
        """What it holds in memory now (VmRSS, proc(5))."""
        return self._status("VmRSS")

    def largest_memory_bytes(self) -> int:
        """The most it has held in memory (VmHWM, proc(5))."""
        return self._status("VmHWM")

    def cpu_seconds(self) -> float:
        """Processor time it has used, in user and system mode (utime, stime; proc(5))."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def _status(self, field: str) -> int:
        found = re.search(rf"{field}:\s+(\d+) kB", Path(f"/proc/{self.pid}/status").read_text())
        assert found
        return int(found[1]) * 1024

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()
