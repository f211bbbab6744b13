"""A hub as a process under strace or faketime: started with a prefix, asked over its admin socket."""

import asyncio
import os
import re
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from hub.admin import ask
from protocol.errors import UnavailableError
from tests.harness.hubs import hub_settings

START_SECONDS: Final = 30.0
END_SECONDS: Final = 30.0


class ChaosHub:
    """A hub on the data of `folder`; its log is beside that. `before` goes before its command, `module` runs."""

    def __init__(
        self,
        folder: Path,
        *,
        before: tuple[str, ...] = (),
        module: tuple[str, ...] = ("hub",),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = folder
        self.log = folder.parent / "hub.log"
        self.before = before
        self._module = module
        self._environment = dict(environment or {})
        self._process: asyncio.subprocess.Process | None = None
        self._port = 0

    @property
    def url(self) -> str:
        """Where terminals dial."""
        return f"ws://127.0.0.1:{self._port}"

    @property
    def pid(self) -> int:
        """The hub's process."""
        assert self._process is not None
        return self._process.pid

    async def start(self) -> None:
        """Start it and wait until it listens. Raises UnavailableError with its last words when it ends instead."""
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self.before, sys.executable, "-m", *self._module, "serve",
                "--data", str(self.folder), "--listen", f"127.0.0.1:{self._port}",
                stdout=asyncio.subprocess.PIPE, stderr=log,
                env={
                    **os.environ, "PYTHONDONTWRITEBYTECODE": "1", "LOCKSTEP_HUB_DISK_RESERVE_BYTES": "0",
                    **self._environment,
                },
            )  # fmt: skip
        assert self._process.stdout is not None
        async with asyncio.timeout(START_SECONDS):
            line = (await self._process.stdout.readline()).decode()
        found = re.search(r"://[^ ]*:(\d+)", line)
        if found is None:
            code = await self.ended()
            raise UnavailableError(
                f"The hub did not start, exit code {code}: {line} {self.last_words()}", code=str(code)
            )
        self._port = int(found[1])

    def last_words(self) -> str:
        """Return the last line of its log."""
        lines = self.log.read_text(errors="replace").splitlines()
        return lines[-1] if lines else ""

    async def ask(self, command: str, **arguments: object) -> Any:
        """Have the hub perform an operator's command. Raises LockstepError as the command line would."""
        return await ask(hub_settings(self.folder), command, arguments)

    async def stop(self) -> int:
        """Stop it in good order, if it runs still, and return its exit code."""
        return await self._end(signal.SIGTERM)

    async def kill(self) -> int:
        """Kill it."""
        return await self._end(signal.SIGKILL)

    async def ended(self) -> int:
        """Wait for its end, and that of whatever traces it; return its exit code."""
        assert self._process is not None
        async with asyncio.timeout(END_SECONDS):
            await self._process.communicate()
        code = self._process.returncode
        assert code is not None
        return code

    @property
    def has_ended(self) -> bool:
        """Whether it runs no more."""
        return self._process is not None and self._process.returncode is not None

    async def _end(self, number: signal.Signals) -> int:
        assert self._process is not None
        if self._process.returncode is None:
            self._process.send_signal(number)
        return await self.ended()
