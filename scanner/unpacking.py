"""The files inside a zip, tar, deb, rpm or packed file, and in archives in those, one after the other, as streams.

Runs only in the scan worker, whose limits bound what a hostile archive can cost; here are the bounds that a large
honest one meets. What cannot be looked into is told as Unseen, never passed over: an encrypted member, a packing nobody
here knows, damage, and whatever is beyond the bounds. How many levels of archives are opened is the caller's to say;
below them an archive is a file like any other. One level is what is one thing to whoever installs it: a deb's or rpm's
payload, a packed tar, an APK in an `.apks` and what is in that.

Sources: PKWARE APPNOTE 6.3.10 and POSIX pax by way of Python's `zipfile` and `tarfile`; deb(5); cpio(5) "newc"; the RPM
file format (rpm.org, "RPM V4 Package format"): lead, signature, header, payload.
"""

import bz2
import copy
import errno
import gzip
import io
import lzma
import os
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
NESTED_BYTES: Final = 96 * MIB  # of packed archives inside archives, which are held in memory, of all levels together
AR_MEMBERS: Final = 10_000  # a library of object files is one too
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
_END_BYTES: Final = 65_557  # in which a zip's end record is, with the longest comment
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


def files_inside(file: BinaryIO, levels: int) -> Iterator[Part]:
    """Yield the files inside `file` with their paths, each to be read before the next is asked for.

    What is in an archive comes right behind it, down to `levels` of them (1: only what is in `file` itself). A file
    that is no archive yields nothing. Never raises for what the file holds; reading a stream may raise one of
    UNREADABLE, and the next one is then asked for as usual.
    """
    yield from _files_inside(file, "", levels, NESTED_BYTES)


def _files_inside(file: BinaryIO, within: str, levels: int, room_bytes: int) -> Iterator[Part]:
    try:
        for part in _parts(file):
            where = _joined(within, part[0])
            if isinstance(part, Unseen):
                yield Unseen(where, part.why)
                continue
            left = levels if _is_split(part) and not within else levels - 1
            if not left:
                yield where, part[1]
                continue
            member = _Kept(part[1], room_bytes)
            yield where, member
            yield from _inside_member(member, where, left, room_bytes)
    except UNREADABLE as error:
        yield Unseen(within, reason(error))


def _is_split(part: "tuple[str, Stream]") -> bool:
    """Whether it is an APK in an `.apks`, which are one installer."""
    return isinstance(part[1], _Checked) and part[0].endswith(".apk")


def _inside_member(member: "_Kept", where: str, levels: int, room_bytes: int) -> Iterator[Part]:
    """Yield what is inside a member that was read: in place where it lies there unpacked, otherwise from memory."""
    if (in_place := member.in_place) is not None:
        yield from _files_inside(in_place, where, levels, room_bytes)
    elif (content := member.content) is not None:
        yield from _files_inside(content, where, levels, room_bytes - member.size)
    elif member.may_be_archive:
        yield Unseen(where, f"packed and, with what it is in, of more than {NESTED_BYTES // MIB} MiB")


class _Kept:
    """A member of an archive that is kept while it is read, for what may be inside it; at most `room_bytes` of it."""

    def __init__(self, stream: Stream, room_bytes: int) -> None:
        self._stream, self._room_bytes = stream, room_bytes
        self._content: io.BytesIO | None = io.BytesIO()
        self._start = self._end = b""
        self._is_whole = False
        self.size = 0

    def read(self, size: int, /) -> bytes:
        content = self._stream.read(size)
        self._is_whole = bool(size) and not content
        self._start += content[: _TAR_BLOCK_BYTES - len(self._start)]
        self._end = (self._end + content[-_END_BYTES:])[-_END_BYTES:]
        self.size += len(content)
        if self.size > self._room_bytes or self.in_place is not None:
            self._content = None
        elif self._content is not None:
            self._content.write(content)
        return content

    @property
    def in_place(self) -> BinaryIO | None:
        """The member as a file, where it lies unpacked in one."""
        return self._stream.in_place if isinstance(self._stream, _Checked) else None

    @property
    def content(self) -> BinaryIO | None:
        """The member as a file, where there was room for all of it; empty where it was not read to its end."""
        if self._content is None:
            return None
        content = self._content if self._is_whole else io.BytesIO()
        content.seek(0)
        return io.BufferedReader(content)  # which peeks

    @property
    def may_be_archive(self) -> bool:
        """Whether it starts or ends as an archive does."""
        is_archive = self._start.startswith((_AR, _RPM, _ZIP)) or _unpacker(self._start) is not None
        return is_archive or _is_tar(self._start) or zipfile.is_zipfile(io.BytesIO(self._end))


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


def _zip(archive: zipfile.ZipFile, file: BinaryIO) -> Iterator[Part]:
    for info in archive.infolist():
        where = info.filename
        if info.is_dir() and not info.compress_size and not info.file_size:
            continue
        if info.flag_bits & _ENCRYPTED:
            yield Unseen(where, "encrypted")
            continue
        whole = copy.copy(info)
        whole.file_size, whole.CRC = BYTES, None  # type: ignore[assignment] # read to its end, whatever is said of it
        try:
            yield where, _Checked(archive.open(whole), info, file)
        except UNREADABLE as error:
            yield Unseen(where, reason(error))


class _Checked:
    """A member of a zip; at its end it raises BadZipFile where the directory says something else of it."""

    def __init__(self, stream: Stream, info: zipfile.ZipInfo, file: BinaryIO) -> None:
        self._stream, self._said = stream, (info.file_size, info.CRC)
        self._size = self._checksum = 0
        self.in_place = _in_place(info, file)

    def read(self, size: int, /) -> bytes:
        content = self._stream.read(size)
        self._size += len(content)
        self._checksum = zlib.crc32(content, self._checksum)
        if size and not content and (self._size, self._checksum) != self._said:
            raise zipfile.BadZipFile
        return content


def _in_place(info: zipfile.ZipInfo, file: BinaryIO) -> BinaryIO | None:
    """Return a member as a file where it lies unpacked in the zip."""
    if info.compress_type != zipfile.ZIP_STORED:
        return None
    file.seek(info.header_offset + 26)
    name_bytes, extra_bytes = struct.unpack("<HH", file.read(4))
    start = info.header_offset + 30 + int(name_bytes) + int(extra_bytes)
    return io.BufferedReader(_Slice(file, start, info.compress_size))


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
    return "/".join(part for part in (where, name.removeprefix("./")) if part)


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
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))  # as a file does, which `zipfile` counts on
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        self._file.seek(self._start + self._at)
        content = self._file.read(max(0, min(len(buffer), self._size - self._at)))
        buffer[: len(content)] = content
        self._at += len(content)
        return len(content)
