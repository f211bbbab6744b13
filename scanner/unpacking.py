"""One level of archives: the files inside a zip, tar, deb, rpm or packed file, one after the other, as streams.

Runs only in the scan worker, whose limits bound what a hostile archive can cost; here are the bounds that a large
honest one meets. What cannot be looked into is told as Unseen, never passed over: an encrypted member, a packing nobody
here knows, damage, and whatever is beyond the bounds. An archive inside an archive is a file like any other, apart from
what is one thing to whoever installs it: a deb's or rpm's payload, a packed tar, an APK in an `.apks`.

Sources: PKWARE APPNOTE 6.3.10 and POSIX pax by way of Python's `zipfile` and `tarfile`; deb(5); cpio(5) "newc"; the RPM
file format (rpm.org, "RPM V4 Package format"): lead, signature, header, payload.
"""

import bz2
import copy
import gzip
import io
import lzma
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from typing import BinaryIO, Final, NamedTuple, Protocol, Self, TypeAlias

import zstandard

from protocol.limits import GIB, MIB

FILES: Final = 100_000
BYTES: Final = 8 * GIB  # unpacked, of one file that is scanned
DECOMPRESSOR_MEMORY_BYTES: Final = 128 * MIB
NESTED_BYTES: Final = 96 * MIB  # of a packed APK inside an `.apks`, which is unpacked into memory
AR_MEMBERS: Final = 64
# What the readers raise for input that is damaged, encrypted or packed in a way they do not know.
UNREADABLE: Final = (
    zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, zstandard.ZstdError, struct.error,
    EOFError, OSError, RuntimeError, ValueError, LookupError, OverflowError,
)  # fmt: skip

_ZIP: Final = b"PK\x03\x04"
_AR: Final = b"!<arch>\n"
_RPM: Final = b"\xed\xab\xee\xdb"
_RPM_HEADER: Final = b"\x8e\xad\xe8\x01"
_RPM_LEAD_BYTES: Final = 96
_AR_MEMBER = struct.Struct("16s32x10s2s")  # name, (time, owner, group, mode), size, end mark
_CPIO: Final = (b"070701", b"070702")
_CPIO_HEADER_BYTES: Final = 110
_TAR_BLOCK_BYTES: Final = 512
_DRAIN_BYTES: Final = MIB
_ENCRYPTED: Final = 0x1


class Stream(Protocol):
    """A file that is read from its start to its end."""

    def read(self, size: int, /) -> bytes:
        """Return the next bytes, at most `size`; nothing at the end."""


class Unseen(NamedTuple):
    """A part that could not be looked into, and why."""

    where: str
    why: str


Part: TypeAlias = "tuple[str, Stream] | Unseen"


def files_inside(file: BinaryIO) -> Iterator[Part]:
    """Yield the files inside `file` with their paths, each to be read before the next is asked for.

    A file that is no archive yields nothing. Never raises for what the file holds; reading a stream may raise one of
    UNREADABLE, and the next one is then asked for as usual.
    """
    try:
        yield from _parts(file)
    except UNREADABLE as error:
        yield Unseen("", reason(error))


def reason(error: Exception) -> str:
    """Say what one of UNREADABLE means, without what the file itself put into its text."""
    if isinstance(error, NotImplementedError):
        return "packed in a way that is not known here"
    return f"damaged ({type(error).__name__})"


def _parts(file: BinaryIO) -> Iterator[Part]:
    file.seek(0)
    start = file.read(_TAR_BLOCK_BYTES)
    file.seek(0)
    if start.startswith(_AR):
        yield from _ar(file)
    elif start.startswith(_RPM):
        yield from _rpm(file)
    elif start.startswith(_ZIP):
        yield from _zip(zipfile.ZipFile(file), file)
        return
    elif _unpacker(start) is not None or _is_tar(start):
        yield from _packed("", file)
    if zipfile.is_zipfile(file):  # a zip is read from its end: it may be behind a program, or behind any other archive
        yield from _appended_zip(file)


# --- zip ----------------------------------------------------------------------------------------------------------


def _appended_zip(file: BinaryIO) -> Iterator[Part]:
    try:
        archive = zipfile.ZipFile(file)
    except UNREADABLE:  # a program may hold the mark of an end record, and be no archive
        return
    yield from _zip(archive, file)


def _zip(archive: zipfile.ZipFile, file: BinaryIO, within: str = "") -> Iterator[Part]:
    for info in archive.infolist():
        where = within + info.filename
        if info.is_dir() and not info.compress_size and not info.file_size:
            continue
        if info.flag_bits & _ENCRYPTED:
            yield Unseen(where, "encrypted")
            continue
        whole = copy.copy(info)
        whole.file_size, whole.CRC = BYTES, None  # type: ignore[assignment] # read to its end, whatever is said of it
        try:
            yield where, _Checked(archive.open(whole), info)
        except UNREADABLE as error:
            yield Unseen(where, reason(error))
            continue
        if not within and info.filename.endswith(".apk"):
            yield from _nested(archive, info, file)


class _Checked:
    """A member of a zip; at its end it raises BadZipFile where the directory says something else of it."""

    def __init__(self, stream: Stream, info: zipfile.ZipInfo) -> None:
        self._stream, self._said = stream, (info.file_size, info.CRC)
        self._size = self._checksum = 0

    def read(self, size: int, /) -> bytes:
        content = self._stream.read(size)
        self._size += len(content)
        self._checksum = zlib.crc32(content, self._checksum)
        if size and not content and (self._size, self._checksum) != self._said:
            raise zipfile.BadZipFile
        return content


def _nested(archive: zipfile.ZipFile, info: zipfile.ZipInfo, file: BinaryIO) -> Iterator[Part]:
    """Yield what is in an APK inside an `.apks`: in place where it is stored, otherwise from memory."""
    try:
        if info.compress_type == zipfile.ZIP_STORED:
            inner: BinaryIO = io.BufferedReader(_Slice(file, _content_offset(info, file), info.file_size))
        elif info.file_size <= NESTED_BYTES:
            inner = io.BytesIO(archive.read(info))
        else:
            yield Unseen(info.filename, f"packed and of more than {NESTED_BYTES // MIB} MiB")
            return
        yield from _zip(zipfile.ZipFile(inner), inner, f"{info.filename}/")
    except UNREADABLE as error:
        yield Unseen(info.filename, reason(error))


def _content_offset(info: zipfile.ZipInfo, file: BinaryIO) -> int:
    file.seek(info.header_offset + 26)
    name_bytes, extra_bytes = struct.unpack("<HH", file.read(4))
    return info.header_offset + 30 + int(name_bytes) + int(extra_bytes)


# --- packed files and tar -----------------------------------------------------------------------------------------


def _unpacker(start: bytes) -> "type[_Unpacker] | None":
    return next((one for one in _UNPACKERS if start.startswith(one.signature)), None)


class _Unpacker:
    signature: bytes

    @staticmethod
    def open(file: BinaryIO) -> BinaryIO:
        raise NotImplementedError


class _Gzip(_Unpacker):
    signature = b"\x1f\x8b"

    @staticmethod
    def open(file: BinaryIO) -> BinaryIO:
        return io.BufferedReader(gzip.GzipFile(fileobj=file))


class _Xz(_Unpacker):
    signature = b"\xfd7zXZ\0"

    @staticmethod
    def open(file: BinaryIO) -> BinaryIO:
        return io.BufferedReader(lzma.LZMAFile(file))


class _Lzma(_Xz):
    signature = b"\x5d\0\0"


class _Bzip2(_Unpacker):
    signature = b"BZh"

    @staticmethod
    def open(file: BinaryIO) -> BinaryIO:
        return io.BufferedReader(bz2.BZ2File(file))


class _Zstd(_Unpacker):
    signature = b"\x28\xb5\x2f\xfd"

    @staticmethod
    def open(file: BinaryIO) -> BinaryIO:
        decompressor = zstandard.ZstdDecompressor(max_window_size=DECOMPRESSOR_MEMORY_BYTES)
        return io.BufferedReader(decompressor.stream_reader(file, read_across_frames=True, closefd=False))


_UNPACKERS: Final = (_Gzip, _Xz, _Lzma, _Bzip2, _Zstd)


def _packed(where: str, file: BinaryIO, *, must_be_tar: bool = False) -> Iterator[Part]:
    """Yield the files of a tar, packed or not, or what a packed file unpacks to."""
    start = file.read(_TAR_BLOCK_BYTES)
    file.seek(0)
    unpacker = _unpacker(start)
    stream = file if unpacker is None else unpacker.open(file)
    if _is_tar(stream.peek(_TAR_BLOCK_BYTES)[:_TAR_BLOCK_BYTES]):  # type: ignore[attr-defined]
        yield from _tar(where, stream)
        return
    if must_be_tar:
        yield Unseen(where, "packed in a way that is not known here")
    if unpacker is not None:
        yield where or "what it unpacks to", stream


def _is_tar(start: bytes) -> bool:
    if len(start) == _TAR_BLOCK_BYTES and not start.strip(b"\0"):
        return True  # one without files
    try:
        tarfile.TarInfo.frombuf(start, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


class _Member(tarfile.TarInfo):
    """A member whose header is right. `tarfile` takes a wrong one for the end of the archive; who installs may not."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(archive)
        except (tarfile.InvalidHeaderError, tarfile.TruncatedHeaderError) as error:  # type: ignore[attr-defined]
            raise tarfile.ReadError(str(error)) from None


def _tar(where: str, stream: BinaryIO) -> Iterator[Part]:
    try:
        with tarfile.open(fileobj=stream, mode="r|", tarinfo=_Member) as archive:
            for member in archive:
                is_file = member.isreg() or member.type not in tarfile.SUPPORTED_TYPES  # of an unknown type, says POSIX
                content = archive.extractfile(member) if is_file else None
                if content is not None:
                    yield _joined(where, member.name), content
                archive.members = []  # type: ignore[attr-defined] # it would keep them all
    except UNREADABLE as error:
        yield Unseen(where, f"the rest of it is {reason(error)}")


def _joined(where: str, name: str) -> str:
    return f"{where}/{name.removeprefix('./')}" if where else name.removeprefix("./")


# --- deb and rpm --------------------------------------------------------------------------------------------------


def _ar(file: BinaryIO) -> Iterator[Part]:
    size, at = file.seek(0, io.SEEK_END), len(_AR)
    for _ in range(AR_MEMBERS):
        if at >= size:
            return
        file.seek(at)
        raw_name, raw_size, mark = _AR_MEMBER.unpack(file.read(_AR_MEMBER.size))
        length, at = int(raw_size), at + _AR_MEMBER.size
        if mark != b"`\n" or length < 0 or at + length > size:
            yield Unseen("", "damaged (a member of the ar archive)")
            return
        name = raw_name.decode("ascii", "replace").rstrip(" /")
        try:
            member = io.BufferedReader(_Slice(file, at, length))
            is_tar = name.startswith(("control.tar", "data.tar"))
            yield from _packed(name, member, must_be_tar=is_tar)
        except UNREADABLE as error:
            yield Unseen(name, reason(error))
        at += length + length % 2
    if at < size:
        yield Unseen("", f"it has more than {AR_MEMBERS} members")


def _rpm(file: BinaryIO) -> Iterator[Part]:
    at = _RPM_LEAD_BYTES
    for is_signature in (True, False):
        file.seek(at)
        mark, entries, store_bytes = struct.unpack(">4s4xII", file.read(16))
        if mark != _RPM_HEADER:
            yield Unseen("", "damaged (no rpm header where it has to be)")
            return
        at += 16 + 16 * entries + store_bytes
        at += -at % 8 if is_signature else 0
    payload = io.BufferedReader(_Slice(file, at, max(0, file.seek(0, io.SEEK_END) - at)))
    start = payload.read(6)
    payload.seek(0)
    if not start:
        return
    unpacker = _unpacker(start)
    try:
        yield from _cpio(payload if unpacker is None else unpacker.open(payload))
    except UNREADABLE as error:
        yield Unseen("payload", f"the rest of it is {reason(error)}")


def _cpio(stream: BinaryIO) -> Iterator[Part]:
    while True:
        header = stream.read(_CPIO_HEADER_BYTES)
        if header[:6] not in _CPIO:
            yield Unseen("payload", "packed in a way that is not known here")
            return
        size, name_bytes = int(header[54:62], 16), int(header[94:102], 16)
        name = stream.read(name_bytes + -(_CPIO_HEADER_BYTES + name_bytes) % 4).partition(b"\0")[0]
        if name == b"TRAILER!!!":
            return
        content = _Counted(stream, size)
        if size:
            yield name.decode("utf-8", "replace").removeprefix("./"), content
        while content.read(_DRAIN_BYTES):
            pass
        if content.left:
            yield Unseen("payload", "cut off")
            return
        stream.read(-size % 4)


class _Counted:
    """The next `left` bytes of a stream."""

    def __init__(self, stream: Stream, left: int) -> None:
        self._stream = stream
        self.left = left

    def read(self, size: int, /) -> bytes:
        content = self._stream.read(min(size, self.left))
        self.left -= len(content)
        return content


class _Slice(io.RawIOBase):
    """`size` bytes of a file from `start` on, as a file of their own."""

    def __init__(self, file: BinaryIO, start: int, size: int) -> None:
        self._file, self._start, self._size, self._at = file, start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + (0, self._at, self._size)[whence]
        if self._at < 0:
            raise ValueError(offset)
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        self._file.seek(self._start + self._at)
        content = self._file.read(max(0, min(len(buffer), self._size - self._at)))
        buffer[: len(content)] = content
        self._at += len(content)
        return len(content)
