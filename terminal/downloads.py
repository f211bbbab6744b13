"""Downloads: the file of one offer or rule set while it comes, from what is on disk already to a verified whole.

The partial file is named by the object's digest and written in place, a frame at a time. There is no journal: what is
there is read again and compared with the manifest (`prepare`), so nothing a crash leaves behind can mislead. Chunks of
an older file of the same program are taken from it instead of being asked for.

`prepare` and `verify` read whole files: call them in a thread, never two at once for one object.
"""

import contextlib
import errno
import hashlib
import os
import threading
import time
from collections.abc import Container, Iterable
from pathlib import Path
from typing import Final

from protocol import chunks, limits
from protocol.errors import TransferError
from protocol.messages import Chunks, ManifestPage, ObjectMessage, Run
from protocol.transfer import Receiver
from terminal.state import StateFolder, flush_folder

RESERVE_BYTES: Final = 16 * limits.MIB
KEPT_FILES: Final = 128
KEPT_PARTIAL_FILES: Final = 8
KEPT_PARTIAL_SECONDS: Final = 30 * 24 * 3600.0
_READ_BYTES: Final = limits.MIB
_WRITE_PIECES: Final = 1_024  # IOV_MAX of Linux; POSIX promises 16


class Download:
    """One object's file. Raises TransferError (code `no-space`, `disk`) when the disk has no room or cannot be asked.

    `place` is the folder it ends in (default: that of installers); `reserve_bytes` stay free on the disk.
    """

    def __init__(
        self,
        offer: ObjectMessage,
        folder: StateFolder,
        *,
        place: Path | None = None,
        reserve_bytes: int = RESERVE_BYTES,
    ) -> None:
        self.offer = offer
        self.partial = folder.downloads / offer.object.hex()
        self.file = (place or folder.installed) / offer.object.hex()
        self._receiver = Receiver(offer)
        self._descriptor = -1
        self.abandoned = threading.Event()
        self._check_space(reserve_bytes)

    @property
    def frames(self) -> int:
        """Frames written since the offer."""
        return self._receiver.frames

    @property
    def done_bytes(self) -> int:
        """Bytes of the object that are on disk and right."""
        return self._receiver.done_bytes

    @property
    def complete(self) -> bool:
        """Whether every chunk is there."""
        return self._receiver.complete

    def add_page(self, page: ManifestPage) -> bool:
        """Take the next manifest page; return whether it was the last. Raises TransferError for a wrong one."""
        return self._receiver.add_page(page)

    def next_want(self) -> tuple[Run, ...]:
        """Return the runs to ask for now."""
        return self._receiver.next_want()

    def prepare(self, older: Iterable[Path] = ()) -> None:
        """Open the file, find the chunks it holds, and take what the `older` files have. Raises TransferError."""
        try:
            if self.file.exists() and not self.partial.exists():
                self.file.replace(self.partial)  # verified once, and its installation did not end
            self._descriptor = os.open(self.partial, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            held = self._find_chunks()
            for file in older:
                if not self.complete:
                    with contextlib.suppress(OSError):  # it cannot be read, so what it holds is asked for
                        self._take_from(file, held)
        except OSError as error:
            raise self._disk_failure(error) from None

    def write(self, frame: Chunks) -> None:
        """Check a frame and write it, with one call as a rule. Raises TransferError."""
        offset, pieces = self._receiver.accept(frame)
        self._write_all(pieces, offset)

    def verify(self) -> None:
        """Flush and read the whole file, then put it in place. Raises TransferError (code `wrong-digest`)."""
        try:
            os.fsync(self._descriptor)
            size, digest = self._measure()
            if (size, digest) != (self.offer.size, self.offer.object):
                raise self._wrong_file(size)
            self.partial.replace(self.file)
            flush_folder(self.file.parent)
            flush_folder(self.partial.parent)
        except OSError as error:
            raise self._disk_failure(error) from None
        self.close()

    def abandon(self) -> None:
        """Make a `prepare` or `verify` that runs in a thread end soon; `close` follows when it has."""
        self.abandoned.set()

    def close(self, *, discard: bool = False) -> None:
        """Close the file, which stays for another try unless its content was wrong (`discard`). Safe to repeat."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        if discard:
            with contextlib.suppress(OSError):  # it is compared with the manifest before it is used again
                self.partial.unlink()

    def _disk_failure(self, error: OSError) -> TransferError:
        if error.errno == errno.EIO:  # what is read again may be right in memory and not on the disk, or never be read
            self.close(discard=True)
        return _disk_error(error, self.partial)

    def _wrong_file(self, size: int) -> TransferError:
        """Return why the file is wrong: damaged since its chunks were written, or never what was offered."""
        manifest = self._receiver.manifest
        damaged = manifest.count - len(self._find_chunks())
        if damaged:
            return TransferError(
                f"{damaged} of {manifest.count} chunks of {self.partial.name} were damaged on the disk.",
                hint="They are asked for again at the next try.",
                code="disk",
            )
        return TransferError(
            f"The file of {size} bytes does not have the digest or the size ({self.offer.size} bytes) offered.",
            code="wrong-digest",
        )

    def _check_space(self, reserve_bytes: int) -> None:
        try:
            have_bytes = _allocated_bytes(self.partial) + _allocated_bytes(self.file)
            disk = os.statvfs(self.partial.parent)
        except OSError as error:
            raise _disk_error(error, self.partial) from None
        need_bytes = max(self.offer.size - have_bytes, 0) + reserve_bytes
        free_bytes = disk.f_bavail * disk.f_frsize
        if free_bytes < need_bytes:
            raise TransferError(
                f"{self.offer.size} bytes do not fit: {need_bytes} bytes must be free, {free_bytes} are.",
                hint="Make room on the device and sync again.",
                code="no-space",
            )

    def _find_chunks(self) -> set[int]:
        """Return the chunks the file holds."""
        held: set[int] = set()
        manifest = self._receiver.manifest
        size = os.fstat(self._descriptor).st_size
        if size > manifest.size:
            os.ftruncate(self._descriptor, manifest.size)
        for index in range(manifest.count):
            if manifest.raw_offsets[index + 1] > size:
                break
            self._check_wanted()
            entry = manifest[index]
            raw = os.pread(self._descriptor, entry.raw_size, manifest.raw_offsets[index])
            if hashlib.sha256(raw).digest() == entry.digest:
                self._receiver.have(index)
                held.add(index)
        return held

    def _take_from(self, older: Path, held: set[int]) -> None:
        """Cut `older` as the object was cut, and copy the chunks both have."""
        manifest = self._receiver.manifest
        if self.offer.chunking != chunks.chunking_for(self.offer.size) or not older.is_file():
            return  # cut in a way this side does not know: everything is asked for
        places: dict[bytes, list[int]] = {}
        for index in range(manifest.count):
            if index not in held:
                places.setdefault(manifest[index].digest, []).append(index)
        with older.open("rb") as stream:
            for raw in chunks.cut(stream, self.offer.chunking):
                self._check_wanted()
                for index in places.pop(hashlib.sha256(raw).digest(), ()):
                    self._write_all([raw], manifest.raw_offsets[index])
                    self._receiver.have(index)
                    held.add(index)

    def _measure(self) -> tuple[int, bytes]:
        digest, size = hashlib.sha256(), 0
        while block := os.pread(self._descriptor, _READ_BYTES, size):
            self._check_wanted()
            digest.update(block)
            size += len(block)
        return size, digest.digest()

    def _check_wanted(self) -> None:
        if self.abandoned.is_set():
            raise TransferError("The download was abandoned.", code="abandoned")

    def _write_all(self, pieces: list[bytes], offset: int) -> None:
        try:
            for start in range(0, len(pieces), _WRITE_PIECES):
                batch = pieces[start : start + _WRITE_PIECES]
                total = sum(map(len, batch))
                written = os.pwritev(self._descriptor, batch, offset)
                if written < total:  # the disk is full, or nearly: say so, or finish piece by piece
                    self._write_rest(b"".join(batch)[written:], offset + written)
                offset += total
        except OSError as error:
            raise _disk_error(error, self.partial) from None

    def _write_rest(self, data: bytes, offset: int) -> None:
        while data:
            written = os.pwrite(self._descriptor, data, offset)
            data, offset = data[written:], offset + written


def tidy(folder: StateFolder, keep: Iterable[str], in_use: Container[str] = ()) -> None:
    """Delete installers that `keep` (digests in hex, dearest last) does not name, and partial files nobody resumes.

    Nothing that is `in_use` (digests in hex) is touched.
    """
    kept = set(list(keep)[-KEPT_FILES:])
    for file in folder.installed.iterdir():
        if file.name not in kept and file.name not in in_use:
            file.unlink(missing_ok=True)
    partial = sorted(folder.downloads.iterdir(), key=lambda file: file.stat().st_mtime)
    oldest = time.time() - KEPT_PARTIAL_SECONDS
    for place, file in enumerate(reversed(partial)):
        if (place >= KEPT_PARTIAL_FILES or file.stat().st_mtime < oldest) and file.name not in in_use:
            file.unlink(missing_ok=True)


def set_aside_uninstalled(folder: StateFolder, keep: Container[str]) -> None:
    """Put installers that `keep` (digests in hex) does not name with the partial files.

    They came whole, but their installation was not begun before the connection or the process ended; the next offer
    finds them there.
    """
    for file in folder.installed.iterdir():
        if file.name not in keep:
            file.replace(folder.downloads / file.name)


def _allocated_bytes(file: Path) -> int:
    """Return what `file` takes on the disk; a partial file has holes."""
    try:
        return file.stat().st_blocks * 512
    except FileNotFoundError:
        return 0


def _disk_error(error: OSError, file: Path) -> TransferError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return TransferError(f"The disk is full; {file.name} could not be written.", code="no-space")
    return TransferError(f"{file} cannot be used: {error.strerror}.", code="disk")
