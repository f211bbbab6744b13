"""The runner that is the owner's own command, for a kind of device Lockstep does not know.

The command is told what to install by its environment: LOCKSTEP_FILE, LOCKSTEP_PROGRAM, LOCKSTEP_PACKAGE,
LOCKSTEP_VERSION, LOCKSTEP_KIND, LOCKSTEP_SHA256, LOCKSTEP_DELIVERY, and LOCKSTEP_FACT_NAME for each fact. Nothing of it
reaches the command line. The check command gets LOCKSTEP_PACKAGE and LOCKSTEP_KIND and answers with its exit code: 0
and the version on its output, or 1 when the package is not installed; anything else means "cannot say".
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from protocol import limits
from protocol.device import InstallerKind
from protocol.errors import UnavailableError
from terminal.installers.listing import listed_files
from terminal.installers.programs import ASK_SECONDS, ENVIRONMENT, require_success, run_program, runner_lock
from terminal.installers.tasks import InstallResult, InstallTask, RunnerSettings, check_package_name, confirm, settle

NOT_INSTALLED: Final = 1
INHERITED: Final = ("HOME", "TMPDIR")  # an owner's command may need its files


class CommandRunner:
    """Installs by `settings.command`, which must not be empty, run in `folder`."""

    def __init__(self, folder: Path, kind: InstallerKind, settings: RunnerSettings) -> None:
        self._folder = folder
        self._kind = kind
        self._settings = settings
        self._lock_file = folder / f"{kind}.lock"

    @property
    def private_root(self) -> None:
        """Nobody but the owner knows where the command puts things."""
        return None

    def files_of(self, package_name: str) -> tuple[Path, ...]:
        """Return what dpkg or rpm lists for a package of theirs, else nothing. Raises UnavailableError."""
        return listed_files(self._kind, package_name)

    async def install(self, task: InstallTask) -> InstallResult:
        """Run the command, then the check command if there is one."""
        return await settle(self._install(task))

    async def installed_version(self, package_name: str) -> str | None:
        """Return what the check command prints; UnavailableError when there is none or it cannot say."""
        check_package_name(self._kind, package_name)
        async with runner_lock(self._lock_file, self._settings.timeout_seconds):
            return await self._ask(package_name)

    async def _install(self, task: InstallTask) -> InstallResult:
        check_package_name(self._kind, task.package_name)
        seconds = self._settings.timeout_seconds
        async with runner_lock(self._lock_file, seconds) as lock:
            outcome = await run_program(
                self._settings.command,
                seconds=seconds,
                environment=environment(task_values(task)),
                folder=self._folder,
                lock=lock,
            )
            require_success(outcome, "The owner's command", seconds)
            if not self._settings.check_command:
                detail = f"The command for {task.package_name} ended well; not confirmed: no check command."
                return InstallResult(ok=True, reason="installed", detail=detail, installed_version="")
            return await confirm(task, self._ask)

    async def _ask(self, package_name: str) -> str | None:
        if not self._settings.check_command:
            raise UnavailableError(
                f"Nobody can say which {package_name} is installed: there is no check command.",
                hint=f"Set check_command in [installers.{self._kind}].",
                code="outcome-unknown",
            )
        outcome = await run_program(
            self._settings.check_command,
            seconds=min(ASK_SECONDS, self._settings.timeout_seconds),
            environment=environment({"PACKAGE": package_name, "KIND": self._kind}),
            folder=self._folder,
        )
        if outcome.exit_code == NOT_INSTALLED:
            return None
        if outcome.exit_code:
            raise UnavailableError(
                f"The check command ended with exit code {outcome.exit_code}: {outcome.words or 'it said nothing'}",
                hint="It should print the version and end with 0, or end with 1 when the package is not installed.",
                code="outcome-unknown",
            )
        return outcome.output.strip() or None


def task_values(task: InstallTask) -> dict[str, str]:
    """Return what the command is told of `task`, by the names it has after LOCKSTEP_."""
    facts = {f"FACT_{re.sub('[^A-Z0-9]+', '_', name.upper())}": value for name, value in task.facts.items()}
    return facts | {
        "FILE": str(task.file.resolve()),
        "PROGRAM": task.program,
        "PACKAGE": task.package_name,
        "VERSION": task.version,
        "KIND": task.kind,
        "SHA256": task.digest_hex,
        "DELIVERY": task.delivery,
    }


def environment(values: Mapping[str, str]) -> dict[str, str]:
    """Return the whole environment of an owner's command. A NUL, which no environment can hold, is dropped."""
    inherited = {name: os.environ[name] for name in INHERITED if name in os.environ}
    told = {f"LOCKSTEP_{name}": value.replace("\0", "")[: limits.STRING_BYTES] for name, value in values.items()}
    return {**ENVIRONMENT, **inherited, **told}
