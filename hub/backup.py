"""Backups: the whole hub in one file, written while it runs; verified; and restored into an empty folder.

A backup is an uncompressed tar of `hub.key`, `hub.db`, the packs and manifests of every object the database names, and
last `SHA256SUMS` (as sha256sum writes it), which makes it whole. The database is copied first; objects never change, so
they may be read afterwards, each checked as it is read. It holds the hub's private key: mode 0600.

After a restore the hub knows what it knew then. What terminals had installed is forgotten, because they say it anew at
their next login; which deliveries were open and what their targets had is kept (table `restored`) until then.
"""

import asyncio
import contextlib
import errno
import hashlib
import os
import re
import shutil
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Final

from msgspec import Struct

from hub.objects import Objects, sealed_manifest
from hub.scrub import Tell, tell_nobody
from hub.steps import in_thread, sync_folder
from hub.store import Store
from hub.store.copies import faults_in, forget_what_time_changes, objects_in
from protocol import limits
from protocol.errors import BadDataError, BadFileError, ConflictError, LockstepError, RefusedError, UsageError

SUMS_NAME: Final = "SHA256SUMS"
KEY_NAME: Final = "hub.key"
DATABASE_NAME: Final = "hub.db"
_ALLOWED: Final = re.compile(r"hub\.key|hub\.db|objects/([0-9a-f]{2})/\1[0-9a-f]{62}\.(pack|manifest)")
_PIECE_BYTES: Final = limits.MIB
_SPARE_BYTES: Final = 16 * limits.MIB  # headers, padding and SHA256SUMS
_SUMS_BYTES: Final = 256 * limits.MIB


class Backup(Struct, frozen=True):
    """A backup: its file, its bytes, how many objects it holds, and which it lacks (digests in hex)."""

    file: str
    bytes: int
    objects: int
    missing: tuple[str, ...]


# --- writing --------------------------------------------------------------------------------------------------------


async def write_backup(
    store: Store, objects: Objects, folder: Path, target: Path, *, force: bool = False, tell: Tell = tell_nobody
) -> Backup:
    """Write a backup of the hub with its data in `folder` to `target`, durably.

    An object that is damaged or gone is left out and named in `missing`. Raises ConflictError when there is such a file
    and not `force`, UsageError for a place that is none, RefusedError when it has no room.
    """
    if target.is_dir() or not target.parent.is_dir():
        raise UsageError(f"{target} is no place for a file.", hint="Name a file in a folder that exists.")
    if target.exists() and not force:
        raise ConflictError(f"There is a file {target} already.", hint="Name another one, or say --force.")
    try:
        for leftover in target.parent.glob(f".{target.name}.backup-*"):
            shutil.rmtree(leftover)  # of a hub that was killed
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.backup-") as temporary:
            place = Path(temporary)
            await store.copy_to(place / DATABASE_NAME)
            missing, count = await _fill(place, objects, folder / KEY_NAME, tell)
            await asyncio.to_thread((place / "backup").replace, target)
        await asyncio.to_thread(sync_folder, target.parent)
    except OSError as error:
        raise _could_not_write(target, error) from None
    return Backup(str(target), target.stat().st_size, count, tuple(missing))


async def _fill(place: Path, objects: Objects, key: Path, tell: Tell) -> tuple[list[str], int]:
    """Write the archive in `place`; return the objects left out and how many are in it."""
    named = await asyncio.to_thread(objects_in, place / DATABASE_NAME)
    _check_room(place, sum(named.values()) + (place / DATABASE_NAME).stat().st_size)
    missing: list[str] = []
    with _created(place / "backup") as stream:
        archive = _Archive(stream)
        for path in (key, place / DATABASE_NAME):
            async for _ in in_thread(archive.add(path.name, path.stat().st_size, _pieces_of(path))):
                pass
        for number, digest in enumerate(named):
            tell("objects", number, len(named))
            try:
                async for _ in in_thread(archive.add_object(objects, digest)):
                    pass
            except BadDataError:
                missing.append(digest.hex())
        await asyncio.to_thread(archive.finish)
    return missing, len(named) - len(missing)


class _Archive:
    """A tar under way. What each method yields are steps: it has written about 1 MiB more."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._sums: list[str] = []

    def add(self, name: str, size: int, pieces: Iterator[bytes]) -> Iterator[None]:
        """Add a file. Raises BadDataError when `pieces` does or has another size; then nothing of it is in the tar."""
        began_at = self._stream.tell()
        whole = hashlib.sha256()
        written = 0
        self._stream.write(_header(name, size))
        try:
            for piece in pieces:
                whole.update(piece)
                written += self._stream.write(piece)
                yield
            if written != size:
                raise BadDataError(f"{name} has {written} bytes instead of {size}.")
        except BadDataError:
            self._stream.seek(began_at)
            self._stream.truncate()
            raise
        self._stream.write(bytes(-size % tarfile.BLOCKSIZE))
        self._sums.append(f"{whole.hexdigest()}  {name}\n")

    def add_object(self, objects: Objects, digest: bytes) -> Iterator[None]:
        """Add an object's pack and manifest."""
        name = f"objects/{digest.hex()[:2]}/{digest.hex()}"
        manifest = objects.manifest(digest)
        sealed = sealed_manifest(digest, manifest.data)
        yield from self.add(f"{name}.pack", manifest.stored_size, objects.read_whole(digest))
        yield from self.add(f"{name}.manifest", len(sealed), iter((sealed,)))

    def finish(self) -> None:
        """Write the sums and the end, and wait until it is on the disk."""
        sums = "".join(self._sums).encode()
        for _ in self.add(SUMS_NAME, len(sums), iter((sums,))):
            pass
        self._stream.write(bytes(2 * tarfile.BLOCKSIZE))
        self._stream.flush()
        os.fsync(self._stream.fileno())


def _header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = size
    info.mode = 0o600
    info.mtime = int(time.time())
    return info.tobuf(tarfile.GNU_FORMAT)


def _pieces_of(path: Path) -> Iterator[bytes]:
    with path.open("rb") as stream:
        while piece := stream.read(_PIECE_BYTES):
            yield piece


def _created(path: Path) -> BinaryIO:
    """Create a file that only its owner may read."""
    return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600), "wb")


def _check_room(place: Path, size: int) -> None:
    free = shutil.disk_usage(place).free
    if free < size + _SPARE_BYTES:
        raise RefusedError(
            f"The backup needs about {size + _SPARE_BYTES} bytes of room, and {free} are free in {place.parent}.",
            hint="Name a file on another disk.",
            code="disk-full",
        )


def _could_not_write(path: Path, error: OSError) -> LockstepError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return RefusedError(f"There is no room for {path}.", hint="Name another disk.", code="disk-full")
    return BadFileError(f"{path} could not be written: {error.strerror or error}.")


# --- reading --------------------------------------------------------------------------------------------------------


def verify_backup(file: Path, tell: Tell = tell_nobody) -> Backup:
    """Read a whole backup and check every SHA-256, the database, and that every object it names is there.

    Raises BadFileError for one that is not whole or was changed.
    """
    with tempfile.TemporaryDirectory(prefix="lockstep-verify-") as temporary:
        return _unpack(file, Path(temporary), lambda name: name == DATABASE_NAME, tell)


def restore_backup(file: Path, folder: Path, tell: Tell = tell_nobody) -> Backup:
    """Restore a backup into the new or empty folder `folder`: checked first, then in place in one step.

    Raises ConflictError when something is in the folder, BadFileError for a backup that is not whole or was changed,
    RefusedError when there is no room.
    """
    folder = folder.resolve()
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise ConflictError(f"{folder} is not empty.", hint="Restore into a new folder: nothing is ever overwritten.")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        for leftover in folder.parent.glob(f".{folder.name}.restoring-*"):
            shutil.rmtree(leftover)  # of a restore that was killed
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.restoring-") as temporary:
            place = Path(temporary) / folder.name
            place.mkdir(mode=0o700)
            restored = _unpack(file, place, lambda name: True, tell)
            forget_what_time_changes(place / DATABASE_NAME)
            for inner in (*(path for path in place.rglob("*") if path.is_dir()), place):
                sync_folder(inner)
            place.rename(folder)  # over an empty folder too: rename(2)
        sync_folder(folder.parent)
    except OSError as error:
        raise _could_not_write(folder, error) from None
    return restored


def _unpack(file: Path, place: Path, is_wanted: Callable[[str], bool], tell: Tell) -> Backup:
    """Check a backup and put the files that are wanted under `place`, durably."""
    found: dict[str, str] = {}
    sums = ""
    try:
        size = file.stat().st_size
        with tarfile.open(file, "r:") as archive:
            for member in archive:
                tell("bytes", member.offset, size)
                if sums:
                    raise BadFileError(f"{file} goes on after its end.")
                if member.name == SUMS_NAME and member.size <= _SUMS_BYTES:
                    sums = _bytes_of(archive, member).decode("ascii")
                else:
                    _check_member(file, member, found)
                    found[member.name] = _take(archive, member, place if is_wanted(member.name) else None)
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise BadFileError(f"{file} is no backup, or a damaged one: {error}.") from None
    except FileNotFoundError:
        raise BadFileError(f"There is no file {file}.") from None
    _check_sums(file, found, sums)
    return Backup(str(file), size, *_check_objects(file, place / DATABASE_NAME, set(found)))


def _check_member(file: Path, member: tarfile.TarInfo, found: dict[str, str]) -> None:
    is_plain = member.type == tarfile.REGTYPE and _ALLOWED.fullmatch(member.name) is not None
    if not is_plain or member.name in found:
        raise BadFileError(f"{file} holds {member.name!r}, which no backup does.")


def _bytes_of(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    stream = archive.extractfile(member)
    return stream.read() if stream is not None else b""


def _take(archive: tarfile.TarFile, member: tarfile.TarInfo, place: Path | None) -> str:
    """Read a member; return its SHA-256 in hex. Its name was checked: it stays within `place`."""
    stream = archive.extractfile(member)
    assert stream is not None, "it is a plain file"
    path = None if place is None else place / member.name
    if path is not None:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    whole = hashlib.sha256()
    with contextlib.nullcontext() if path is None else _created(path) as target:
        while piece := stream.read(_PIECE_BYTES):
            whole.update(piece)
            if target is not None:
                target.write(piece)
        if target is not None:
            target.flush()
            os.fsync(target.fileno())
    return whole.hexdigest()


def _check_sums(file: Path, found: dict[str, str], sums: str) -> None:
    if not sums:
        raise BadFileError(f"{file} is not whole: it ends before its {SUMS_NAME}.")
    said = {name: digest for digest, _, name in (line.partition("  ") for line in sums.splitlines())}
    if wrong := sorted(name for name in said.keys() | found.keys() if said.get(name) != found.get(name)):
        raise BadFileError(f"{file} is damaged: {wrong[0]} is not as it was written ({len(wrong)} in all).")
    if absent := {KEY_NAME, DATABASE_NAME} - found.keys():
        raise BadFileError(f"{file} is no backup of a hub: it has no {' and no '.join(sorted(absent))}.")


def _check_objects(file: Path, database: Path, found: set[str]) -> tuple[int, tuple[str, ...]]:
    """Return how many objects are there, and which of those that the database names are not."""
    if faults := faults_in(database):
        raise BadFileError(f"The database in {file} is damaged: {faults[0]}.")
    names = [digest.hex() for digest in objects_in(database)]
    missing = tuple(
        name for name in names if not {f"objects/{name[:2]}/{name}.{part}" for part in ("pack", "manifest")} <= found
    )
    return len(names) - len(missing), missing
