"""The runner for Python wheels: pip into one private environment of the terminal.

The environment is made without pip of its own; the terminal's pip works on it (`--python`). Nothing is fetched: no
index, no dependencies; the result says so when the wheel asks for some. Modules are not compiled beforehand: Python
does it when they are first used, and a small wheel is in place within a second.
"""

import asyncio
import csv
import importlib.util
import os
import shutil
import sys
import sysconfig
import tempfile
from importlib.metadata import PathDistribution
from pathlib import Path
from typing import Final

from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename

from protocol.errors import BadFileError, UnavailableError
from terminal.installers.programs import ENVIRONMENT, require_success, run_program, runner_lock
from terminal.installers.tasks import InstallResult, InstallTask, RunnerSettings, check_package_name, confirm, settle

# PIP_CONFIG_FILE=os.devnull makes pip read no configuration file at all; `--isolated` alone still reads the system's.
PIP_ENVIRONMENT: Final = {**ENVIRONMENT, "PIP_CONFIG_FILE": os.devnull}
PIP_OPTIONS: Final = ("--isolated", "--disable-pip-version-check", "--no-input", "--no-cache-dir", "--no-color")
WORK_PREFIX: Final = ".install-"
INSTALL_OPTIONS: Final = ("--no-index", "--no-deps", "--force-reinstall", "--no-compile", "--only-binary=:all:")


class WheelRunner:
    """Installs wheels into the environment `folder/"wheel-environment"`, or the one the settings name."""

    def __init__(self, folder: Path, settings: RunnerSettings) -> None:
        self._environment = Path(folder, settings.root or "wheel-environment").resolve()
        self._seconds = settings.timeout_seconds
        self._lock_file = folder / "wheel.lock"

    @property
    def private_root(self) -> Path:
        """The environment."""
        return self._environment

    def files_of(self, package_name: str) -> tuple[Path, ...]:
        """Return what the wheel's RECORD in the environment lists. Raises OSError and UnavailableError."""
        found = self._find(package_name)
        try:
            listed = (found.files if found else None) or ()
            return tuple(Path(os.path.normpath(str(file.locate()))) for file in listed)
        except (ValueError, csv.Error) as error:
            raise UnavailableError(f"The files of {package_name} cannot be listed: {error}.") from None

    async def install(self, task: InstallTask) -> InstallResult:
        """Install one wheel and confirm it by the metadata the environment then has."""
        return await settle(self._install(task))

    async def installed_version(self, package_name: str) -> str | None:
        """Return the version in the environment's own metadata."""
        check_package_name("wheel", package_name)
        async with runner_lock(self._lock_file, self._seconds):
            return await self._ask(package_name)

    async def _install(self, task: InstallTask) -> InstallResult:
        check_package_name("wheel", task.package_name)
        name = wheel_file_name(task)
        _require_pip()
        async with runner_lock(self._lock_file, self._seconds) as lock:
            await self._create_environment(lock)
            for left in self._environment.glob(f"{WORK_PREFIX}*"):  # by a terminal that was killed: this has the lock
                shutil.rmtree(left, ignore_errors=True)
            with tempfile.TemporaryDirectory(dir=self._environment, prefix=WORK_PREFIX) as folder:
                file = Path(folder, name)
                await asyncio.to_thread(_link_or_copy, task.file, file)
                await self._pip(file, lock)
            return await confirm(task, self._ask, self._dependencies_note(task.package_name))

    async def _create_environment(self, lock: int) -> None:
        if self._python.exists():
            return
        self._environment.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        command = [sys.executable, "-I", "-m", "venv", "--without-pip", str(self._environment)]
        outcome = await run_program(command, seconds=self._seconds, environment=PIP_ENVIRONMENT, lock=lock)
        require_success(outcome, "python -m venv", self._seconds)

    async def _pip(self, file: Path, lock: int) -> None:
        pip = [sys.executable, "-I", "-m", "pip", *PIP_OPTIONS, "--python", str(self._python)]
        command = [*pip, "install", *INSTALL_OPTIONS, str(file)]
        outcome = await run_program(command, seconds=self._seconds, environment=PIP_ENVIRONMENT, lock=lock)
        require_success(outcome, "pip", self._seconds)

    @property
    def _python(self) -> Path:
        return self._environment / "bin/python"

    async def _ask(self, package_name: str) -> str | None:
        found = self._find(package_name)
        try:
            return found.version if found else None
        except (KeyError, OSError, ValueError) as error:
            raise UnavailableError(
                f"The metadata of {package_name} cannot be read: {error}", code="outcome-unknown"
            ) from error

    def _dependencies_note(self, package_name: str) -> str:
        found = self._find(package_name)
        required = found.requires if found else None
        return f"dependencies not installed ({', '.join(required)})" if required else ""

    def _find(self, package_name: str) -> PathDistribution | None:
        """Look the package up on disk each time: importlib.metadata's own look-up caches folders by their time."""
        packages = Path(sysconfig.get_path("purelib", "venv", {"base": str(self._environment)}))
        wanted = canonicalize_name(package_name)
        for folder in packages.glob("*.dist-info"):
            if canonicalize_name(folder.name.partition("-")[0]) == wanted and (folder / "METADATA").exists():
                return PathDistribution(folder)
        return None


def wheel_file_name(task: InstallTask) -> str:
    """Return the name pip needs the file to have: the `file_name` fact, else the file's own. Raises BadFileError."""
    name = task.facts.get("file_name") or task.file.name
    try:
        named = parse_wheel_filename(name)[0]
    except InvalidWheelFilename as error:
        raise BadFileError(
            f"{name[:200]!r} is not the file name of a wheel.",
            hint="Publish the wheel under the name its build gave it (name-version-tags.whl).",
        ) from error
    if "/" in name or "\0" in name or named != canonicalize_name(task.package_name):
        raise BadFileError(
            f"The file name {name[:200]!r} is not one of the package {task.package_name}.",
            hint="Publish the wheel under the name its build gave it.",
        )
    return name


def _link_or_copy(source: Path, destination: Path) -> None:
    try:
        os.link(source, destination)
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(source, destination)


def _require_pip() -> None:
    if importlib.util.find_spec("pip") is None:
        raise UnavailableError(
            f"pip is not installed for {sys.executable}.", hint="Install pip, or leave wheel out.", code="pip-missing"
        )
