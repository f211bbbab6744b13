"""Tracing: what a program did to its files and said on its sockets, in order, as strace(1) saw it.

A command is started under strace with `traced`; `read_trace` turns the record into steps. Only files under one folder
count. A shared writable mapping of any file but SQLite's `-shm` would be a change no system call shows, and is refused:
the `-shm` file is built anew by the first process that opens the database (sqlite.org/walformat.html, section 2).
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

CALLS: Final = (
    "openat,open,creat,lseek,write,writev,pwrite64,pwritev,pwritev2,ftruncate,truncate,fallocate,copy_file_range,"
    "sendfile,fsync,fdatasync,sync_file_range,rename,renameat,renameat2,unlink,unlinkat,rmdir,link,linkat,symlink,"
    "symlinkat,mkdir,mkdirat,mmap,sendto,sendmsg,recvfrom"
)
_STRING_BYTES: Final = 64 * 1024 * 1024
_FULL: Final = re.compile(r"^(\d+) +(\w+)\((.*)\) += (-?\d+|0x[0-9a-f]+|\?)")
_BEGUN: Final = re.compile(r"^(\d+) +(\w+)\((.*) <unfinished \.\.\.>$")
_RESUMED: Final = re.compile(r"^(\d+) +<\.\.\. (\w+) resumed>(.*)$")
_STRING: Final = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')
_DESCRIPTOR: Final = re.compile(r"(AT_FDCWD|\d+)<((?:\\x[0-9a-f]{2})*)>(\(deleted\))?")
_NOT_FOLLOWED: Final = frozenset({"copy_file_range", "sendfile", "fallocate", "link", "linkat", "symlink", "symlinkat"})


@dataclass(frozen=True, slots=True)
class Create:
    """A file or folder that was not there has a name now."""

    path: str
    is_folder: bool


@dataclass(frozen=True, slots=True)
class Write:
    """Bytes were written; they are in memory only."""

    path: str
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Truncate:
    """A file has this size now."""

    path: str
    size: int


@dataclass(frozen=True, slots=True)
class Sync:
    """A file's bytes, or a folder's names, as they were when step number `began` began, are on the disk."""

    path: str
    began: int


@dataclass(frozen=True, slots=True)
class Rename:
    """A name was moved, over another one perhaps."""

    before: str
    after: str


@dataclass(frozen=True, slots=True)
class Unlink:
    """A name is gone."""

    path: str


@dataclass(frozen=True, slots=True)
class Said:
    """Bytes went out on a socket or on standard output ("stdout"): what they promise counts from here."""

    where: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Heard:
    """Bytes came in on a socket."""

    where: str
    data: bytes


Change = Create | Write | Truncate | Sync | Rename | Unlink
Step = Change | Said | Heard | None


def traced(record: Path, *, calls: str = CALLS, extra: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Return what goes before a command to have it traced; its process id stays the command's own (`-D`)."""
    return (
        "strace", "-D", "-f", "--seccomp-bpf", "-qq", "-y", "-xx", "-s", str(_STRING_BYTES),
        "-o", str(record), "-e", f"trace={calls}", "-e", "signal=none", *extra,
    )  # fmt: skip


def read_traces(records: Iterable[Path], root: Path) -> list[Step]:
    """Return the steps that concern `root`, sockets and standard output; None where a call changed nothing.

    The records are those of processes that ran one after the other.

    What is sent counts from the beginning of its call, everything else from the end of its.
    """
    reader = _Reader(str(root.resolve()))
    for record in records:
        reader.read(record)
    return reader.steps


class _Reader:
    def __init__(self, root: str) -> None:
        self._root = root
        self.steps: list[Step] = []
        self._there = {root}
        self._positions: dict[tuple[str, str], int] = {}

    def read(self, record: Path) -> None:
        begun: dict[str, tuple[str, int]] = {}
        with record.open() as lines:
            for line in lines:
                if found := _BEGUN.match(line):
                    begun[found[1]] = (found[3], len(self.steps))
                    self.steps.append(None)  # the place of what counts from its beginning
                elif found := _RESUMED.match(line):
                    arguments, began = begun.pop(found[1])
                    self._take(f"{found[1]} {found[2]}({arguments}{found[3]}", began)
                else:
                    self._take(line, None)

    def _take(self, line: str, began: int | None) -> None:
        found = _FULL.match(line)
        if found is None or found[4] == "?" or found[4].startswith("-"):
            return
        name, arguments, result = found[2], found[3], int(found[4], 0)
        if name in ("sendto", "sendmsg", "recvfrom") or (name == "write" and arguments.startswith("1<")):
            step = self._traffic(name, arguments, result)
            if began is not None and isinstance(step, Said):
                self.steps[began] = step
            elif step is not None:
                self.steps.append(step)
            return
        number = len(self.steps) if began is None else began
        self.steps.extend(self._changes(name, arguments, result, number, line))

    def _traffic(self, name: str, arguments: str, result: int) -> Said | Heard | None:
        _, where = _descriptor(arguments)
        data = b"".join(_strings(arguments))[:result]
        if not data:
            return None
        return Heard(where, data) if name == "recvfrom" else Said("stdout" if name == "write" else where, data)

    def _changes(self, name: str, arguments: str, result: int, number: int, line: str) -> Iterator[Change]:
        if name in ("open", "openat", "creat"):
            yield from self._opened(name, arguments, result, line)
        elif name in ("mkdir", "mkdirat"):
            yield from self._created(_path(arguments), is_folder=True)
        elif name in ("rename", "renameat", "renameat2"):
            yield from self._renamed(arguments)
        elif name in ("unlink", "unlinkat", "rmdir"):
            yield from self._unlinked(_path(arguments))
        else:
            yield from self._changed_file(name, arguments, result, number)

    def _opened(self, name: str, arguments: str, result: int, line: str) -> Iterator[Change]:
        descriptor, path = _descriptor(line.rpartition(" = ")[2])
        self._positions[descriptor, path] = 0
        if not self._mine(path):
            return
        if "O_CREAT" in arguments or name == "creat":
            yield from self._created(path, is_folder=False)
        if "O_TRUNC" in arguments or name == "creat":
            yield Truncate(path, 0)

    def _created(self, path: str, *, is_folder: bool) -> Iterator[Change]:
        if self._mine(path) and path not in self._there:
            self._there.add(path)
            yield Create(path, is_folder)

    def _renamed(self, arguments: str) -> Iterator[Change]:
        before, after = _paths(arguments)
        if self._mine(before) != self._mine(after):
            raise ValueError(f"{before} was moved into or out of the folder that is recorded")
        if self._mine(before):
            moved = {path for path in self._there if path == before or path.startswith(f"{before}/")}
            self._there -= moved
            self._there |= {after + path.removeprefix(before) for path in moved}
            yield Rename(before, after)

    def _unlinked(self, path: str) -> Iterator[Change]:
        if path in self._there:  # a socket's name, which bind(2) made, is nothing a disk keeps
            self._there.discard(path)
            yield Unlink(path)

    def _changed_file(self, name: str, arguments: str, result: int, number: int) -> Iterator[Change]:
        descriptor, path = _descriptor(arguments)
        if not self._mine(path) or path not in self._there:
            return  # elsewhere, or unlinked and gone when it is closed
        match name:
            case "lseek":
                self._positions[descriptor, path] = result
            case "write" | "writev":
                offset = self._positions[descriptor, path]
                self._positions[descriptor, path] = offset + result
                yield Write(path, offset, b"".join(_strings(arguments))[:result])
            case "pwrite64" | "pwritev" | "pwritev2":
                yield Write(path, _offset(name, arguments), b"".join(_strings(arguments))[:result])
            case "ftruncate":
                yield Truncate(path, int(arguments.rpartition(", ")[2]))
            case "fsync" | "fdatasync":
                yield Sync(path, number)
            case "mmap" if "MAP_SHARED" in arguments and "PROT_WRITE" in arguments and not path.endswith("-shm"):
                raise ValueError(f"{path} is mapped for writing: its changes cannot be seen")
            case _ if name in _NOT_FOLLOWED or name == "truncate":
                raise ValueError(f"{name} of {path} is not followed here")

    def _mine(self, path: str) -> bool:
        return path == self._root or path.startswith(f"{self._root}/")


def _bytes(escaped: str) -> bytes:
    return bytes.fromhex(escaped.replace("\\x", ""))


def _strings(arguments: str) -> list[bytes]:
    return [_bytes(found) for found in _STRING.findall(arguments)]


def _descriptor(arguments: str) -> tuple[str, str]:
    found = _DESCRIPTOR.search(arguments)
    return (found[1], _bytes(found[2]).decode() + (found[3] or "")) if found else ("", "")


def _path(arguments: str) -> str:
    return _paths(arguments)[0]


def _paths(arguments: str) -> list[str]:
    """Return the paths a call names; relative ones are relative to the descriptor before them."""
    folders = [_bytes(found[1]).decode() for found in _DESCRIPTOR.findall(arguments)] or [""]
    names = [name.decode() for name in _strings(arguments)]
    folders += folders[-1:] * (len(names) - len(folders))
    return [str(Path(folder) / name) for folder, name in zip(folders, names, strict=False)]


def _offset(name: str, arguments: str) -> int:
    numbers = arguments.rsplit(", ", 2)
    return int(numbers[1] if name == "pwritev2" else numbers[2])
