"""The runner for APKs on a simulated device: a folder of applications and a package list, as Android keeps them.

No APK runs here. The file is copied to `PACKAGE/base.apk`, and `packages.json` (package -> version, digest) is what is
asked for confirmation. Both are replaced whole, the list last, so after a crash the list never names a file that is not
there. On a real Android device an owner's command (`pm install`) takes this place. A device that is simulated
altogether (`simulated.py`) uses this runner for every kind of installer.
"""

import asyncio
import hashlib
import os
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from protocol.device import InstallerKind
from protocol.errors import BadFileError, UnavailableError
from terminal.installers.programs import runner_lock
from terminal.installers.tasks import InstallResult, InstallTask, RunnerSettings, check_package_name, confirm, settle

LIST_BYTES: Final = 4 * 1024 * 1024
COPY_BYTES: Final = 1024 * 1024


class InstalledPackage(Struct, frozen=True):
    """One row of the package list; `digest` is the SHA-256 of its file in hex."""

    version: str
    digest: str


class SimulatedRunner:
    """Installs one kind into `folder/"apk-apps"` (another kind: its name), or the folder the settings name."""

    def __init__(self, folder: Path, settings: RunnerSettings, kind: InstallerKind = "apk") -> None:
        self._applications = Path(folder, settings.root or f"{kind}-apps").resolve()
        self._seconds = settings.timeout_seconds
        self._lock_file = folder / f"{kind}.lock"
        self._kind = kind
        self._file_name = f"base.{kind}"

    @property
    def private_root(self) -> Path:
        """The folder of applications."""
        return self._applications

    def files_of(self, package_name: str) -> tuple[Path, ...]:
        """Return the one file of an application."""
        check_package_name(self._kind, package_name)
        return (self._applications / package_name / self._file_name,)

    async def install(self, task: InstallTask) -> InstallResult:
        """Copy the file, write the list, and confirm by reading it again."""
        return await settle(self._install(task))

    async def installed_version(self, package_name: str) -> str | None:
        """Return the version the package list gives."""
        check_package_name(self._kind, package_name)
        async with runner_lock(self._lock_file, self._seconds):
            return await self._ask(package_name)

    async def _install(self, task: InstallTask) -> InstallResult:
        check_package_name(self._kind, task.package_name)
        async with runner_lock(self._lock_file, self._seconds):
            await asyncio.to_thread(self._place, task)
            return await confirm(task, self._ask)

    def _place(self, task: InstallTask) -> None:
        folder = self._applications / task.package_name
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary = folder / f"{self._file_name}.new"
        digest = _copy(task.file, temporary)
        if digest != task.digest_hex:
            temporary.unlink()
            raise BadFileError(
                f"The file has the SHA-256 {digest}, not {task.digest_hex}.",
                hint="It changed after it was downloaded; sync the program again.",
            )
        _replace(temporary, folder / self._file_name)
        packages = {**self._packages(), task.package_name: InstalledPackage(task.version, digest)}
        self._write_list(packages)

    def _write_list(self, packages: dict[str, InstalledPackage]) -> None:
        temporary = self._applications / "packages.json.new"
        with temporary.open("wb") as file:
            file.write(msgspec.json.format(msgspec.json.encode(packages, order="sorted"), indent=2))
            file.flush()
            os.fsync(file.fileno())
        _replace(temporary, self._list_file)

    @property
    def _list_file(self) -> Path:
        return self._applications / "packages.json"

    def _packages(self) -> dict[str, InstalledPackage]:
        try:
            with self._list_file.open("rb") as file:
                return msgspec.json.decode(file.read(LIST_BYTES), type=dict[str, InstalledPackage])
        except FileNotFoundError:
            return {}
        except msgspec.MsgspecError as error:
            raise UnavailableError(
                f"The package list {self._list_file} is damaged: {error}",
                hint="Remove it; the applications are then installed again.",
                code="outcome-unknown",
            ) from error

    async def _ask(self, package_name: str) -> str | None:
        found = self._packages().get(package_name)
        is_there = (self._applications / package_name / self._file_name).is_file()
        return found.version if found and is_there else None


def _copy(source: Path, destination: Path) -> str:
    """Copy, flush to the disk and return the SHA-256 of what was written, in hex."""
    digest = hashlib.sha256()
    with source.open("rb") as reader, destination.open("wb") as writer:
        while data := reader.read(COPY_BYTES):
            digest.update(data)
            writer.write(data)
        writer.flush()
        os.fsync(writer.fileno())
    return digest.hexdigest()


def _replace(temporary: Path, destination: Path) -> None:
    temporary.replace(destination)
    folder = os.open(destination.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
