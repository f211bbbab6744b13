"""The runner for Debian packages: dpkg into a private root, or into the system where the owner says so.

By default a package goes into a folder of the terminal with a dpkg database of its own. That works as root and as an
ordinary user, needs no dependency to be there (the result says they were not checked) and never runs a maintainer
script: without a system around them they cannot run, and on the host they must not. With `root = "/"`, as root, dpkg
installs into the system as it always does, scripts and dependency check included.
"""

import asyncio
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Final, TypeVar

from protocol.errors import BadDataError, RefusedError, UnavailableError, UsageError
from terminal.installers import debarchive, programs
from terminal.installers.listing import listed_files
from terminal.installers.programs import ASK_SECONDS, ENVIRONMENT, require_success, run_program, runner_lock
from terminal.installers.tasks import InstallResult, InstallTask, RunnerSettings, check_package_name, confirm, settle

ReadResult = TypeVar("ReadResult")

# A configuration file the owner has changed is kept, as an unattended upgrade does; nobody is there to be asked.
OPTIONS: Final = ("--force-confdef", "--force-confold")
DEB_ENVIRONMENT: Final = {**ENVIRONMENT, "DEBIAN_FRONTEND": "noninteractive"}
PRIVATE_OPTIONS: Final = ("--force-not-root", "--force-depends")
NOT_INSTALLED: Final = 1  # dpkg-query(1): the package is not known


class DebRunner:
    """Installs debs. `folder` is the terminal's private folder, where the default root and the lock lie.

    Raises UsageError when the settings ask for the system and the terminal does not run as root.
    """

    def __init__(self, folder: Path, settings: RunnerSettings) -> None:
        self._root = Path(folder, settings.root or "deb-root").resolve()
        self._seconds = settings.timeout_seconds
        self._lock_file = folder / "deb.lock"
        if self._is_system and os.geteuid() != 0:
            raise UsageError(
                f'installers.deb says root = "/", but this terminal runs as user {os.geteuid()}.',
                hint="Run it as root, or leave root out to install into a private folder.",
            )

    @property
    def _is_system(self) -> bool:
        return self._root == Path("/")

    @property
    def private_root(self) -> Path | None:
        """The private root; None where debs go into the system."""
        return None if self._is_system else self._root

    def files_of(self, package_name: str) -> tuple[Path, ...]:
        """Return what dpkg-query lists. Raises UnavailableError."""
        return listed_files("deb", package_name, self._root)

    async def install(self, task: InstallTask) -> InstallResult:
        """Install one deb and confirm it with dpkg-query."""
        return await settle(self._install(task))

    async def installed_version(self, package_name: str) -> str | None:
        """Return what dpkg-query says of this root."""
        check_package_name("deb", package_name)
        async with runner_lock(self._lock_file, self._seconds):
            return await self._ask(package_name)

    async def _install(self, task: InstallTask) -> InstallResult:
        check_package_name("deb", task.package_name)
        _require_dpkg()
        async with runner_lock(self._lock_file, self._seconds) as lock:
            note = "" if self._is_system else await self._prepare(task)
            command = ["dpkg", *self._options(), "--install", str(task.file.resolve())]
            outcome = await run_program(command, seconds=self._seconds, environment=DEB_ENVIRONMENT, lock=lock)
            require_success(outcome, "dpkg", self._seconds)
            return await confirm(task, self._ask, note)

    def _options(self) -> tuple[str, ...]:
        if self._is_system:
            return OPTIONS
        return (*OPTIONS, *PRIVATE_OPTIONS, f"--root={self._root}", f"--log={self._root}/var/log/dpkg.log")

    async def _prepare(self, task: InstallTask) -> str:
        """Make the private root, refuse what must not go there, and return the note for people."""
        create_root(self._root)
        control = await self._inspect(["--ctrl-tarfile", str(task.file)], debarchive.read_control)
        if control.scripts:
            scripts = ", ".join(control.scripts)
            raise RefusedError(
                f"The package has maintainer scripts ({scripts}), which do not run in a private root.",
                hint='Install it into the system (root = "/", as root) or by an owner\'s command.',
                code="maintainer-scripts",
            )
        free_bytes = shutil.disk_usage(self._root).free
        await self._inspect(
            ["--fsys-tarfile", str(task.file)],
            lambda stream: debarchive.check_paths(stream, self._root, free_bytes, control.configuration_files),
        )
        return f"dependencies not checked ({control.depends})" if control.depends else ""

    async def _inspect(self, arguments: list[str], read: Callable[[BinaryIO], ReadResult]) -> ReadResult:
        """Let `read` read, in a thread, what dpkg-deb writes. When dpkg-deb fails, its words say more than ours."""
        outlet, inlet = os.pipe()
        reading = asyncio.create_task(asyncio.to_thread(_read_and_close, outlet, read))
        try:
            outcome = await run_program(["dpkg-deb", *arguments], seconds=self._seconds, output=inlet)
        finally:
            # The child is gone, so the thread meets the end of the pipe and ends.
            await asyncio.wait([reading])
            reading.exception()  # looked at, so that a cancelled installation logs nothing
        require_success(outcome, "dpkg-deb", self._seconds)
        return reading.result()

    async def _ask(self, package_name: str) -> str | None:
        if not self._is_system and not (self._root / "var/lib/dpkg/status").exists():
            return None
        command = ["dpkg-query", f"--admindir={self._root / 'var/lib/dpkg'}", "--show"]
        outcome = await run_program(
            [*command, "--showformat=${db:Status-Status} ${Version}\n", package_name], seconds=ASK_SECONDS
        )
        if outcome.exit_code == NOT_INSTALLED:
            return None
        if outcome.exit_code:
            raise UnavailableError(f"dpkg-query gave no answer: {outcome.words}", code="outcome-unknown")
        status, _, version = outcome.output.splitlines()[0].partition(" ")
        return version if status == "installed" else None


def create_root(root: Path) -> None:
    """Create the dpkg database of a private root, if it is not there. Only the terminal's own user may look inside."""
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name in ("info", "updates", "triggers", "parts"):
        (root / "var/lib/dpkg" / name).mkdir(parents=True, exist_ok=True)
    (root / "var/log").mkdir(parents=True, exist_ok=True)
    for name in ("status", "available"):
        (root / "var/lib/dpkg" / name).touch()


def _read_and_close(descriptor: int, read: Callable[[BinaryIO], ReadResult]) -> ReadResult:
    with open(descriptor, "rb") as stream:
        try:
            return read(stream)
        finally:
            # A pipe closed early would make dpkg-deb fail too, and hide why `read` stopped.
            while stream.read(debarchive.SKIP_BYTES):
                pass


def _require_dpkg() -> None:
    for tool in ("dpkg", "dpkg-deb", "dpkg-query"):
        if shutil.which(tool, path=programs.ENVIRONMENT["PATH"]) is None:
            raise BadDataError(
                f"{tool} is not installed on this device.", hint="Install dpkg, or leave deb out.", code="dpkg-missing"
            )
