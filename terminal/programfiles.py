"""The files of the programs this terminal has installed, for their scan: where they lie and whose they are. Blocking.

Three places: the installers that are kept; the folders that belong to a runner alone, whole, since what has crept in is
looked for too; and for programs among the system's files what the package system lists. No symbolic link is followed,
and nothing is opened that is not a regular file.
"""

import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from protocol.device import InstallerKind
from protocol.errors import LockstepError
from protocol.messages import InstalledProgram
from terminal.installers import KnowsFiles, Runner


@dataclass(frozen=True, slots=True)
class ProgramFile:
    """A file to scan, and the id of the program it belongs to; empty where nobody can say."""

    path: Path
    program: str


@dataclass(frozen=True, slots=True)
class Unlisted:
    """A folder or a list of files that could not be read: whatever is there is passed over."""

    path: Path


@dataclass(frozen=True, slots=True)
class Places:
    """Where to look: the folder of kept installers, what they are of, what is installed, and each kind's runner."""

    kept: Path
    installers: tuple[InstalledProgram, ...]
    programs: tuple[InstalledProgram, ...]
    runners: Mapping[InstallerKind, Runner]


def files_of(places: Places) -> Iterator[ProgramFile | Unlisted]:
    """Yield every file once, as it is at that moment."""
    by_digest = {one.digest.hex(): one.program for one in places.installers}
    for found in _walk(places.kept):
        yield found if isinstance(found, Unlisted) else ProgramFile(found, by_digest.get(found.name, ""))
    for kind, runner in places.runners.items():
        if isinstance(runner, KnowsFiles):
            yield from _files_of_runner(runner, [one for one in places.programs if one.installer_kind == kind])


def _files_of_runner(runner: KnowsFiles, programs: Iterable[InstalledProgram]) -> Iterator[ProgramFile | Unlisted]:
    root = runner.private_root
    owners: dict[Path, set[str]] = {}
    for program in programs:
        try:
            listed = runner.files_of(program.package_name)
        except (LockstepError, OSError):
            listed = ()
            if root is None:
                yield Unlisted(Path(program.package_name))
        if root is None:
            yield from (ProgramFile(path, program.program) for path in listed if not _is_folder(path))
        else:
            _own(owners, listed, root, program.program)
    for found in _walk(root) if root is not None else ():
        yield found if isinstance(found, Unlisted) else ProgramFile(found, _owner(owners, found))


def _own(owners: dict[Path, set[str]], listed: Iterable[Path], root: Path, program: str) -> None:
    for path in listed:
        for place in (path, *path.parents):
            if place == root or program in owners.setdefault(place, set()):
                break
            owners[place].add(program)


def _owner(owners: Mapping[Path, set[str]], path: Path) -> str:
    """Return the program that has this file, or else everything there is in the nearest folder any of them has."""
    for place in (path, *path.parents):
        if found := owners.get(place):
            return next(iter(found)) if len(found) == 1 else ""
    return ""


def _walk(root: Path) -> Iterator[Path | Unlisted]:
    """Yield the regular files below `root`; a stack, for folders may be nested deeper than calls."""
    folders = [str(root)]
    while folders:
        folder = folders.pop()
        try:
            with os.scandir(folder) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except FileNotFoundError:
            continue
        except OSError:
            yield Unlisted(Path(folder))
            continue
        for entry in found:
            if entry.is_dir(follow_symlinks=False):
                folders.append(entry.path)
            elif entry.is_file(follow_symlinks=False):
                yield Path(entry.path)


def _is_folder(path: Path) -> bool:
    """A list of dpkg's names folders too, and links to folders."""
    try:
        return not stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False  # gone, or hidden: opening it says so


def open_regular(path: Path) -> BinaryIO | None:
    """Open a regular file, or return None for what is none: a link, a pipe, a device. Raises OSError.

    It may have been put in the place of a file since that was found, and opening a pipe must not wait.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        return None
    return os.fdopen(descriptor, "rb")
