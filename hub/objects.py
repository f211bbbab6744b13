"""Objects: immutable bytes by SHA-256, each as a pack and its manifest, two files named by the digest.

    objects/ab/abcd....pack        the stored chunks end to end
    objects/ab/abcd....manifest    40 bytes a chunk, then the seal: SHA-256 over the object's digest and those bytes

A file is written under a temporary name, synced, renamed and its folder synced, the manifest last: an object whose
manifest exists is whole. A manifest of an older hub has no seal (its length says so) and gets one when it is checked.
Manifests of objects in use are shared, so that many targets cost one.

Nothing leaves a pack unchecked. The first time a chunk is read from an open pack it is restored and its SHA-256
compared; after that the CRC-32 of its stored bytes, which notices a bit that flips later and costs little. What does
not fit is set aside (`....pack.damaged`), named in the log and never served; publishing the same file again mends it.
"""

import contextlib
import errno
import filecmp
import hashlib
import logging
import os
import re
import shutil
import tempfile
import threading
import weakref
import zlib
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final, cast

from hub.records import StoredObject
from protocol import limits
from protocol.chunks import Entry, Manifest, chunking_for, cut, pack_chunk, restore
from protocol.errors import BadDataError, BadFileError, RefusedError, TransferError, UnavailableError
from protocol.messages import Run

log: Final = logging.getLogger("lockstep.hub")

DAMAGED_SUFFIX: Final = ".damaged"
ROWS_RESERVE_BYTES: Final = 64 * limits.MIB
_READ_AHEAD_BYTES: Final = 4 * limits.FRAME_BYTES
_WHOLE_READ_BYTES: Final = limits.MIB
_TEMPORARY_PREFIX: Final = ".incoming-"
_SEAL_BYTES: Final = 32
_UNCHECKED: Final = -1
_NAME: Final = re.compile("[0-9a-f]{64}")
DISK_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


class Pack:
    """An object open for sending: its manifest, and checked reads of stored bytes. Shared by all who send it.

    `on_damage` is called once, when the pack turns out to be damaged.
    """

    def __init__(
        self, digest: bytes, manifest: Manifest, descriptor: int, on_damage: Callable[["Pack"], None] | None = None
    ) -> None:
        self.digest = digest
        self.manifest = manifest
        self.descriptor = descriptor
        self._on_damage = on_damage
        self._damage = ""
        self._checksums = array("q", [_UNCHECKED]) * manifest.count
        weakref.finalize(self, os.close, descriptor)

    def read(self, run: Run) -> bytes:
        """Return the stored bytes of a run of chunks, checked. Raises BadDataError when they are damaged."""
        data = self.read_stored(run)
        try:
            for index, stored in self.split(run, data):
                self._check(index, stored)
        except TransferError as error:
            raise self.damaged(f"is damaged at chunks {run.first} to {run.first + run.count - 1}", error) from None
        return data

    def read_stored(self, run: Run) -> bytes:
        """Return the bytes of a run as they lie on the disk. Raises BadDataError when they cannot be read."""
        if self._damage:
            raise _damaged(self.digest, self._damage)
        offsets = self.manifest.stored_offsets
        start, end = offsets[run.first], offsets[run.first + run.count]
        try:
            data = os.pread(self.descriptor, end - start, start)
            # The kernel reads on while this frame travels, so the next read finds its bytes in memory.
            os.posix_fadvise(self.descriptor, end, _READ_AHEAD_BYTES, os.POSIX_FADV_WILLNEED)
        except OSError as error:
            raise self.damaged(f"cannot be read: {error.strerror}") from None
        if len(data) != end - start:
            raise self.damaged("is truncated")
        return data

    def split(self, run: Run, data: bytes) -> Iterator[tuple[int, memoryview]]:
        """Yield the chunks of what was read: index and stored bytes."""
        offsets = self.manifest.stored_offsets
        view = memoryview(data)
        for index in range(run.first, run.first + run.count):
            yield index, view[offsets[index] - offsets[run.first] : offsets[index + 1] - offsets[run.first]]

    def damaged(self, what: str, why: TransferError | None = None) -> BadDataError:
        """Have the pack set aside, so that every read fails from now on; return the error."""
        self._damage = f"{what}: {why.message}" if why else what
        if self._on_damage is not None:
            self._on_damage(self)
        return _damaged(self.digest, self._damage)

    def _check(self, index: int, stored: memoryview) -> None:
        checksum = zlib.crc32(stored)
        if self._checksums[index] == _UNCHECKED:
            restore(stored, self.manifest[index])
            self._checksums[index] = checksum
        elif self._checksums[index] != checksum:
            raise TransferError("It has changed since it was read before.")


def _damaged(digest: bytes, what: str) -> BadDataError:
    what = what.rstrip(".")
    return BadDataError(
        f"Object {digest.hex()} {what}.", hint="Publish the same file again to mend it.", code="damaged-object"
    )


class Objects:
    """The object folder of one hub.

    `reserve_bytes` of the disk are kept free (0: none), and objects take at most `store_bytes`. `on_disk_failure` is
    told when the disk could not keep what was written; it may be called from any thread.
    """

    def __init__(
        self,
        folder: Path,
        *,
        reserve_bytes: int,
        store_bytes: int = 100 * limits.GIB,
        on_disk_failure: Callable[[str], object] = log.error,
    ) -> None:
        self._folder = folder
        self._reserve_bytes = reserve_bytes
        self._store_bytes = store_bytes
        self._on_disk_failure = on_disk_failure
        self._open: weakref.WeakValueDictionary[bytes, Pack] = weakref.WeakValueDictionary()
        self._taken_bytes: int | None = None  # not read yet
        self._names = threading.Lock()  # held while a file gets or loses its name
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for leftover in folder.glob(f"{_TEMPORARY_PREFIX}*"):
            leftover.unlink()

    def add(self, source: Path, digest: bytes = b"") -> StoredObject:
        """Cut, compress and store the file `source`; return what is stored. Blocking: call it in a thread.

        Raises BadFileError for an empty or unreadable file, or one that has not the SHA-256 `digest` where that is
        given, RefusedError for one too large or a disk too full, UnavailableError when the disk could not keep it. The
        same bytes twice are stored once.
        """
        try:
            size = source.stat().st_size
            self.check_room(source.name, size, digest)
            return self._pack(source, size, digest)
        except OSError as error:
            if error.errno in DISK_FULL:
                raise RefusedError(
                    f"The hub's disk has no room for {source.name}.", hint="Free some space.", code="disk-full"
                ) from None
            raise BadFileError(f"{source} could not be stored: {error.strerror}.") from None

    def open(self, digest: bytes) -> Pack:
        """Return the object's pack. Raises BadDataError when it is missing or damaged."""
        if found := self._open.get(digest):
            return found
        opened = self._open_files(digest)
        self._open[digest] = opened
        return opened

    def read_whole(self, digest: bytes) -> Iterator[bytes]:
        """Yield the whole pack in pieces of about 1 MiB, read from the disk, every chunk and the whole SHA-256 checked.

        Blocking. Raises BadDataError when it is missing or damaged, at the latest after the last piece.
        """
        pack = self._open_files(digest)
        # What memory holds of it says nothing about the disk.
        os.posix_fadvise(pack.descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        whole = hashlib.sha256()
        for run in _runs(pack.manifest):
            data = pack.read_stored(run)
            try:
                for index, stored in pack.split(run, data):
                    whole.update(restore(stored, pack.manifest[index]))
            except TransferError as error:
                raise pack.damaged(f"is damaged at chunk {index}", error) from None
            yield data
        if whole.digest() != digest:
            raise pack.damaged("does not have its digest as a whole")
        self._seal(digest, pack.manifest)

    @contextmanager
    def whole_copy(self, digest: bytes) -> Iterator[BinaryIO]:
        """Give an object's bytes as a private file without a name, every chunk checked. Blocking.

        It can only be read, and leaves on the disk what rows need. Raises BadDataError when it is missing or damaged,
        UnavailableError when the disk has no room for the copy.
        """
        pack = self._open_files(digest)
        free = shutil.disk_usage(self._folder).free
        if free - pack.manifest.size < min(self._reserve_bytes, ROWS_RESERVE_BYTES):
            raise UnavailableError(f"The hub's disk has no room for a copy ({free} bytes are free).")
        try:
            with self._incoming() as incoming:
                for run in _runs(pack.manifest):
                    for index, stored in pack.split(run, pack.read_stored(run)):
                        incoming.write(restore(stored, pack.manifest[index]))
                incoming.flush()
                file = open(incoming.name, "rb")  # noqa: SIM115, PTH123
        except TransferError as error:
            raise pack.damaged("is damaged", error) from None
        except OSError as error:
            raise UnavailableError(f"The hub's disk has no room for a copy ({error.strerror}).") from None
        with file:
            yield file

    def remove(self, digest: bytes) -> None:
        """Remove an object that no row names. Blocking; what of it is open stays readable to whoever reads it."""
        self._open.pop(digest, None)
        for part in ("manifest", "pack"):  # in this order: one that has a manifest is whole
            self._remove(self._path(digest, part))

    def digests(self) -> set[bytes]:
        """Return the objects that are there, by their manifests."""
        return {bytes.fromhex(path.stem) for path in self._folder.glob("??/*.manifest") if _NAME.fullmatch(path.stem)}

    def is_there(self, digest: bytes) -> bool:
        """Return whether both files of an object exist."""
        return self._path(digest, "manifest").exists() and self._path(digest, "pack").exists()

    def file_names(self) -> list[str]:
        """Return every file under the folder, relative to it, sorted."""
        return sorted(str(path.relative_to(self._folder)) for path in self._folder.rglob("*") if path.is_file())

    def taken_bytes(self) -> int:
        """Return the bytes of all files of objects, what is set aside too. Counted once, then kept up to date."""
        with self._names:
            if self._taken_bytes is None:
                self._taken_bytes = sum(path.stat().st_size for path in self._folder.glob("??/*"))
            return self._taken_bytes

    def check_room_for_rows(self) -> None:
        """Make sure the disk has room for what the database will write. Raises RefusedError, code `disk-full`."""
        least = min(self._reserve_bytes, ROWS_RESERVE_BYTES)
        free = shutil.disk_usage(self._folder).free
        if free < least:
            raise RefusedError(
                f"The hub's disk has {free} bytes free, and {least} are kept for what it owes already.",
                hint="The hub's owner has to free some space.",
                code="disk-full",
            )

    # --- reading --------------------------------------------------------------------------------------------------

    def _open_files(self, digest: bytes) -> Pack:
        manifest = self.manifest(digest)
        try:
            descriptor = os.open(self._path(digest, "pack"), os.O_RDONLY)
        except OSError as error:
            raise _damaged(digest, f"cannot be read: {error.strerror}") from None
        opened = Pack(digest, manifest, descriptor, self._set_pack_aside)
        if os.fstat(descriptor).st_size != manifest.stored_size:
            raise opened.damaged("is truncated")
        return opened

    def manifest(self, digest: bytes) -> Manifest:
        """Return an object's manifest. Raises BadDataError when it is missing or damaged."""
        path = self._path(digest, "manifest")
        try:
            data = path.read_bytes()
            return Manifest(_unsealed(digest, data))
        except OSError as error:
            raise _damaged(digest, f"cannot be read: {error.strerror}") from None
        except TransferError as error:
            self._set_aside(path)
            raise _damaged(digest, f"has a damaged manifest: {error.message}") from None

    def _set_pack_aside(self, pack: Pack) -> None:
        if self._open.get(pack.digest) is pack:
            del self._open[pack.digest]
        path = self._path(pack.digest, "pack")
        try:
            is_same = os.path.samestat(path.stat(), os.fstat(pack.descriptor))
        except OSError:
            return
        if is_same:  # else it was mended meanwhile, and this was the file before
            self._set_aside(path)

    def _set_aside(self, path: Path) -> None:
        aside = path.with_name(path.name + DAMAGED_SUFFIX)
        try:
            self._rename(path, aside)
            self._sync_folder(path.parent)
        except (OSError, UnavailableError) as error:
            log.error("%s is damaged and could not be set aside: %s", path, error)
        else:
            log.error("%s is damaged and was set aside as %s; publish the same file again", path, aside.name)

    def _seal(self, digest: bytes, manifest: Manifest) -> None:
        """Give a manifest that was just found right its seal, if it has none."""
        path = self._path(digest, "manifest")
        with contextlib.suppress(OSError, UnavailableError):
            if path.stat().st_size == len(manifest.data):
                self._write(path, sealed_manifest(digest, manifest.data))

    # --- writing --------------------------------------------------------------------------------------------------

    def check_room(self, name: str, size: int, digest: bytes = b"") -> None:
        """Make sure that a file of `size` bytes may be stored. Raises as `add` does for one that may not.

        One that is there, by its `digest`, takes no more of what objects may take.
        """
        if size == 0:
            raise BadFileError(f"{name} is empty.")
        if size > limits.OBJECT_BYTES:
            raise RefusedError(f"{name} has {size} bytes; the limit is {limits.OBJECT_BYTES}.", code="too-large")
        free = shutil.disk_usage(self._folder).free
        if free - size < self._reserve_bytes:
            raise RefusedError(
                f"{name} has {size} bytes, and the hub's disk has {free} free of which {self._reserve_bytes} are kept.",
                hint="Free some space, or set disk_reserve_bytes lower.",
                code="disk-full",
            )
        taken = self.taken_bytes()
        if taken + size > self._store_bytes and not (digest and self.is_there(digest)):
            raise RefusedError(
                f"{name} has {size} bytes, and the hub's objects take {taken} of the {self._store_bytes} they may.",
                hint="Set store_bytes higher.",
                code="store-full",
            )

    def _pack(self, source: Path, size: int, expected: bytes) -> StoredObject:
        whole = hashlib.sha256()
        entries: list[Entry] = []
        with source.open("rb") as stream, self._incoming() as incoming:
            for raw in cut(stream, chunking_for(size)):
                whole.update(raw)
                entry, stored = pack_chunk(raw)
                entries.append(entry)
                incoming.write(stored)
            incoming.flush()
            digest = whole.digest()
            if expected and digest != expected:
                raise BadFileError(f"{source.name} was changed while it was read.", hint="Publish it once it is whole.")
            manifest = Manifest.of(entries)
            sealed = sealed_manifest(digest, manifest.data)
            if not self._is_whole(digest, sealed, Path(incoming.name)):
                self._keep(incoming, self._path(digest, "pack"))
                self._write(self._path(digest, "manifest"), sealed)
                self._is_mended(digest)
        return StoredObject(digest=digest, size=manifest.size, stored_size=manifest.stored_size, chunks=manifest.count)

    def _is_whole(self, digest: bytes, sealed: bytes, incoming: Path) -> bool:
        """Whether both files are there, byte for byte; publishing again mends an object that is not."""
        try:
            there = self._path(digest, "manifest").read_bytes() == sealed
            return there and filecmp.cmp(self._path(digest, "pack"), incoming, shallow=False)
        except OSError:
            return False

    def _is_mended(self, digest: bytes) -> None:
        """Nobody opens the older file any more, and what was set aside is no longer needed."""
        self._open.pop(digest, None)
        for part in ("pack", "manifest"):
            self._remove(self._path(digest, f"{part}{DAMAGED_SUFFIX}"))

    def _rename(self, path: Path, name: Path) -> None:
        """Give a file its name among the objects; the file that had it is gone."""
        with self._names:
            change = path.stat().st_size * (path.parent != name.parent) - _size_of(name)
            path.replace(name)
            self._count(change)

    def _remove(self, path: Path) -> None:
        with self._names:
            change = -_size_of(path)
            path.unlink(missing_ok=True)
            self._count(change)

    def _count(self, change: int) -> None:
        if self._taken_bytes is not None:
            self._taken_bytes += change

    def _path(self, digest: bytes, part: str) -> Path:
        name = digest.hex()
        return self._folder / name[:2] / f"{name}.{part}"

    @contextmanager
    def _incoming(self) -> Iterator[BinaryIO]:
        """Give a temporary file that is gone afterwards unless it was kept."""
        with tempfile.NamedTemporaryFile(dir=self._folder, prefix=_TEMPORARY_PREFIX, delete=False) as stream:
            try:
                yield cast(BinaryIO, stream)
            finally:
                Path(stream.name).unlink(missing_ok=True)

    def _write(self, path: Path, data: bytes) -> None:
        with self._incoming() as incoming:
            incoming.write(data)
            self._keep(incoming, path)

    def _keep(self, incoming: BinaryIO, path: Path) -> None:
        """Give a temporary file its final name, durably."""
        incoming.flush()
        self._sync(incoming.fileno(), path)
        path.parent.mkdir(mode=0o700, exist_ok=True)
        self._rename(Path(incoming.name), path)
        for folder in (path.parent, self._folder):
            self._sync_folder(folder)

    def _sync_folder(self, folder: Path) -> None:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            self._sync(descriptor, folder)
        finally:
            os.close(descriptor)

    def _sync(self, descriptor: int, path: Path) -> None:
        """Wait until the disk has it. Raises UnavailableError when it says that it could not keep it.

        Then the kernel has dropped what it held, and a second fsync that succeeds means nothing ("fsyncgate": Rebello
        et al., "Can Applications Recover from fsync Failures?", USENIX ATC 2020). So it is not tried again.
        """
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno in DISK_FULL:
                raise
            what = f"{path.name}: {error.strerror}"
            self._on_disk_failure(what)
            raise UnavailableError(f"The hub's disk could not keep {what}.", code="disk-failed") from None


def _size_of(path: Path) -> int:
    """Return the bytes of a file, 0 when it is not there."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def sealed_manifest(digest: bytes, manifest: bytes) -> bytes:
    """Return what lies on the disk: a manifest's bytes and their seal, 32 bytes."""
    return manifest + hashlib.sha256(digest + manifest).digest()


def _unsealed(digest: bytes, data: bytes) -> bytes:
    """Return the manifest's entries. Raises TransferError when the seal does not fit; an older manifest has none."""
    if len(data) % limits.MANIFEST_ENTRY_BYTES != _SEAL_BYTES:
        return data
    entries = data[:-_SEAL_BYTES]
    if sealed_manifest(digest, entries) != data:
        raise TransferError("Its seal does not fit.")
    return entries


def _runs(manifest: Manifest) -> Iterator[Run]:
    """Yield the chunks in runs of about 1 MiB of stored bytes, few enough that their raw bytes stay bounded too."""
    offsets, raw_offsets = manifest.stored_offsets, manifest.raw_offsets
    first = 0
    for index in range(1, manifest.count + 1):
        is_large = max(offsets[index] - offsets[first], raw_offsets[index] - raw_offsets[first]) >= _WHOLE_READ_BYTES
        if is_large or index == manifest.count:
            yield Run(first, index - first)
            first = index
