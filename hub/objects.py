"""Objects: immutable bytes by SHA-256, each as a pack and its manifest, two files named by the digest.

    objects/ab/abcd....pack        the stored chunks end to end
    objects/ab/abcd....manifest    40 bytes a chunk

A file is written under a temporary name, synced, renamed and its folder synced, the manifest last: an object whose
manifest exists is whole. Manifests of objects in use are shared, so that many targets cost one.
"""

import errno
import hashlib
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final, cast

from hub.records import StoredObject
from protocol import limits
from protocol.chunks import Entry, Manifest, chunking_for, cut, pack_chunk
from protocol.errors import BadDataError, BadFileError, RefusedError, TransferError
from protocol.messages import Run

_READ_AHEAD_BYTES: Final = 4 * limits.FRAME_BYTES
_TEMPORARY_PREFIX: Final = ".incoming-"


class Pack:
    """An object open for sending: its manifest, and reads of stored bytes. Shared by all who send it."""

    def __init__(self, digest: bytes, manifest: Manifest, descriptor: int) -> None:
        self.digest = digest
        self.manifest = manifest
        self._descriptor = descriptor
        weakref.finalize(self, os.close, descriptor)

    def read(self, run: Run) -> bytes:
        """Return the stored bytes of a run of chunks. Raises BadDataError when the pack is too short."""
        offsets = self.manifest.stored_offsets
        start, end = offsets[run.first], offsets[run.first + run.count]
        try:
            data = os.pread(self._descriptor, end - start, start)
            # The kernel reads on while this frame travels, so the next read finds its bytes in memory.
            os.posix_fadvise(self._descriptor, end, _READ_AHEAD_BYTES, os.POSIX_FADV_WILLNEED)
        except OSError as error:
            raise _damaged(self.digest, f"cannot be read: {error.strerror}") from None
        if len(data) != end - start:
            raise _damaged(self.digest, "is truncated")
        return data


def _damaged(digest: bytes, what: str) -> BadDataError:
    return BadDataError(
        f"Object {digest.hex()} {what}.", hint="Publish the same file again to mend it.", code="damaged-object"
    )


class Objects:
    """The object folder of one hub."""

    def __init__(self, folder: Path, *, reserve_bytes: int) -> None:
        self._folder = folder
        self._reserve_bytes = reserve_bytes
        self._open: weakref.WeakValueDictionary[bytes, Pack] = weakref.WeakValueDictionary()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for leftover in folder.glob(f"{_TEMPORARY_PREFIX}*"):
            leftover.unlink()

    def add(self, source: Path) -> StoredObject:
        """Cut, compress and store the file `source`; return what is stored. Blocking: call it in a thread.

        Raises BadFileError for an empty or unreadable file, RefusedError for one too large or a disk too full. The same
        bytes twice are stored once.
        """
        try:
            size = source.stat().st_size
            self._check_room(source.name, size)
            return self._pack(source, size)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise RefusedError(
                    f"The hub's disk has no room for {source.name}.", hint="Free some space.", code="disk-full"
                ) from None
            raise BadFileError(f"{source} could not be stored: {error.strerror}.") from None

    def open(self, digest: bytes) -> Pack:
        """Return the object's pack. Raises BadDataError when it is missing or damaged."""
        if found := self._open.get(digest):
            return found
        try:
            manifest = Manifest(self._path(digest, "manifest").read_bytes())
            descriptor = os.open(self._path(digest, "pack"), os.O_RDONLY)
        except OSError as error:
            raise _damaged(digest, f"cannot be read: {error.strerror}") from None
        except TransferError as error:
            raise _damaged(digest, f"has a damaged manifest: {error.message}") from None
        opened = Pack(digest, manifest, descriptor)
        if os.fstat(descriptor).st_size != manifest.stored_size:
            raise _damaged(digest, "is truncated")
        self._open[digest] = opened
        return opened

    def _check_room(self, name: str, size: int) -> None:
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

    def _pack(self, source: Path, size: int) -> StoredObject:
        whole = hashlib.sha256()
        entries: list[Entry] = []
        with source.open("rb") as stream, self._incoming() as incoming:
            for raw in cut(stream, chunking_for(size)):
                whole.update(raw)
                entry, stored = pack_chunk(raw)
                entries.append(entry)
                incoming.write(stored)
            digest = whole.digest()
            manifest = Manifest.of(entries)
            if not self._is_whole(digest, manifest):
                self._keep(incoming, self._path(digest, "pack"))
                with self._incoming() as incoming_manifest:
                    incoming_manifest.write(manifest.data)
                    self._keep(incoming_manifest, self._path(digest, "manifest"))
        return StoredObject(digest=digest, size=manifest.size, stored_size=manifest.stored_size, chunks=manifest.count)

    def _is_whole(self, digest: bytes, manifest: Manifest) -> bool:
        """Whether both files are there and as long as they should be; publishing again mends an object that is not."""
        try:
            there = self._path(digest, "manifest").read_bytes() == manifest.data
            return there and self._path(digest, "pack").stat().st_size == manifest.stored_size
        except OSError:
            return False

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

    def _keep(self, incoming: BinaryIO, path: Path) -> None:
        """Give a temporary file its final name, durably."""
        incoming.flush()
        os.fsync(incoming.fileno())
        path.parent.mkdir(mode=0o700, exist_ok=True)
        Path(incoming.name).replace(path)
        for folder in (path.parent, self._folder):
            _sync_folder(folder)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
