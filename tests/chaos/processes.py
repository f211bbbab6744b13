"""A hub and a terminal as processes under strace or faketime, each started with something before its command."""

import asyncio
import os
import re
import signal
import sys
from asyncio.subprocess import Process
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from hub.admin import ask
from protocol.errors import UnavailableError
from tests.chaos.tracing import traced
from tests.harness.hubs import PASSWORD, hub_settings

START_SECONDS: Final = 30.0
END_SECONDS: Final = 30.0
DEVICE: Final = """
model = "Chaos TV"
os_type = "linux"
installer_kinds = ["deb"]
[installers.deb]
command = ["/bin/sh", "{script}"]
check_command = ["/bin/cat", "{version}"]
"""
SCRIPT: Final = """
echo "ran $LOCKSTEP_DELIVERY"
echo "ran $LOCKSTEP_DELIVERY" >> "{ran}"
while [ -e "{slow}" ]; do sleep 0.05; done
echo "$LOCKSTEP_VERSION" > "{version}"
"""


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


class ChaosTerminal:
    """The command line of one terminal with its state in `folder`/disk/state; an owner's command is its runner.

    The command prints "ran DELIVERY", also into the file `ran`, and does not end while the file `slow` is there.
    """

    def __init__(self, folder: Path, *, environment: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        self.disk = folder / "disk"
        self.ran, self.slow, self.version = folder / "ran", folder / "slow", folder / "version"
        self.log = folder / "terminal.log"
        self.before: tuple[str, ...] = ()
        self.records: list[Path] = []
        self._environment = dict(environment or {})
        self.disk.mkdir(parents=True)
        script = folder / "install.sh"
        script.write_text(SCRIPT.format(ran=self.ran, slow=self.slow, version=self.version))
        (folder / "device.toml").write_text(DEVICE.format(script=script, version=self.version))

    def trace(self) -> tuple[str, ...]:
        """Return what has the next command traced, into a record of its own."""
        self.records.append(self.folder / f"trace-{len(self.records)}")
        return traced(self.records[-1])

    async def login(self, url: str, account: str, name: str) -> None:
        """Log in to the hub at `url`."""
        process = await self.start(
            "login", url, "--account", account, "--name", name, "--password-stdin",
            "--device", str(self.folder / "device.toml"), answer=f"{PASSWORD}\n".encode(),
        )  # fmt: skip
        async with asyncio.timeout(END_SECONDS):
            assert await process.wait() == 0, self.log.read_text()

    async def start(self, *arguments: str, answer: bytes = b"") -> Process:
        """Start a command; its output goes to the log."""
        with self.log.open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                *self.before, sys.executable, "-m", "terminal", *arguments, "--state", str(self.disk / "state"),
                stdin=asyncio.subprocess.PIPE, stdout=log, stderr=log,
                env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "HOME": str(self.folder), **self._environment},
            )  # fmt: skip
        assert process.stdin is not None
        process.stdin.write(answer)
        process.stdin.close()
        return process

    def runs(self) -> int:
        """How often the owner's command was started."""
        return len(self.ran.read_text().splitlines()) if self.ran.exists() else 0
