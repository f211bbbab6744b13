"""A watched folder: which of its files are whole and have not been taken yet.

Looked at again and again, because no notification reaches every file system. A file is taken when it, and the sidecar
beside it, are the same in two looks; a new version of either has it taken again. Nothing is kept on the disk: what was
published before is known by its bytes.
"""

import stat
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias

from hub.inspectors.sidecar import SUFFIX

PASSED_OVER: Final = (".part", ".tmp", ".crdownload", "~", SUFFIX)  # names that end so are no whole installers
LONGEST_WAIT_LOOKS: Final = 64

# Size in bytes, time in nanoseconds and inode.
Stamp: TypeAlias = tuple[int, int, int]
Version: TypeAlias = tuple[Stamp, Stamp | None]


class _Waiting(NamedTuple):
    """A file that is to come again: after so many looks, which wait, and why it did not go in."""

    version: Version
    looks: int
    wait: int
    why: str


class WatchedFolder:
    """The files of one folder, by name; folders in it are passed over."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._seen: dict[str, Version] = {}
        self._taken: dict[str, Version] = {}
        self._waiting: dict[str, _Waiting] = {}

    def look(self) -> list[Path]:
        """Return the files that did not change since the last look and were not returned in this version.

        Blocking. Raises OSError when the folder cannot be read.
        """
        now = self._versions()
        still = [name for name, version in now.items() if self._seen.get(name) == version]
        self._seen = now
        self._taken = {name: version for name, version in self._taken.items() if name in now}
        self._waiting = {name: one for name, one in self._waiting.items() if now.get(name) == one.version}
        ready = [name for name in still if self._taken.get(name) != now[name] and self._is_its_turn(name)]
        self._taken |= {name: now[name] for name in ready}
        return [self._folder / name for name in ready]

    def try_again(self, path: Path, why: str) -> bool:
        """Have a file come again, later each time; return whether `why` is news of this version of it."""
        version = self._taken.pop(path.name)
        before = self._waiting.get(path.name)
        looks = min(2 * before.looks, LONGEST_WAIT_LOOKS) if before else 1
        self._waiting[path.name] = _Waiting(version, looks, looks, why)
        return before is None or before.why != why

    def _is_its_turn(self, name: str) -> bool:
        waiting = self._waiting.get(name)
        if waiting is None or waiting.wait <= 1:
            return True
        self._waiting[name] = waiting._replace(wait=waiting.wait - 1)
        return False

    def _versions(self) -> dict[str, Version]:
        stamps = {path.name: stamp for path in sorted(self._folder.iterdir()) if (stamp := _stamp(path))}
        return {
            name: (stamp, stamps.get(name + SUFFIX))
            for name, stamp in stamps.items()
            if not name.startswith(".") and not name.lower().endswith(PASSED_OVER)
        }


def _stamp(path: Path) -> Stamp | None:
    """Return what changes with a file's content, or None when it is no plain file or gone."""
    try:
        found = path.stat()
    except OSError:
        return None
    return (found.st_size, found.st_mtime_ns, found.st_ino) if stat.S_ISREG(found.st_mode) else None
