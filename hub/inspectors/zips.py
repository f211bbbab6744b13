"""Reading members of a foreign zip archive, each step bounded: what the APK, IPA, MSIX and wheel inspectors stand on.

The central directory is read whole and held to more than readers usually ask: every name once and leading nowhere else,
no two files over the same bytes, everything where the end record says. Whatever unpacks the installer later may then
read it in its own way and finds the same. Members are unpacked one at a time, so that neither a declared nor an actual
size can run away. Zip64 records are read because every MSIX package has them.

Source: PKWARE APPNOTE 6.3.10, sections 4.3.7 (local header), 4.3.12 (central directory), 4.3.14 to 4.3.16 (end records)
and 4.5.3 (zip64 extra field).
"""

import codecs
import io
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, NamedTuple, Protocol, Self

from protocol.errors import BadFileError
from protocol.limits import KIB, MIB

DIRECTORY_BYTES: Final = 8 * MIB
DIRECTORY_ENTRIES: Final = 65_535  # what the end record can count without zip64, and enough for any installer
LARGEST_COMMENT_BYTES: Final = 64 * KIB - 1

LOCAL_SIGNATURE: Final = b"PK\x03\x04"
_ENTRY_SIGNATURE: Final = b"PK\x01\x02"
_END_SIGNATURE: Final = b"PK\x05\x06"
_ZIP64_END_SIGNATURE: Final = b"PK\x06\x06"
_ZIP64_LOCATOR_SIGNATURE: Final = b"PK\x06\x07"
_LOCAL = struct.Struct("<4s5H3L2H")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_END = struct.Struct("<4s4H2LH")
_ZIP64_END = struct.Struct("<4sQ2H2L4Q")
_ZIP64_LOCATOR = struct.Struct("<4sLQL")
_EXTRA = struct.Struct("<HH")
_ZIP64_EXTRA: Final = 0x0001
_FULL_16, _FULL_32 = 0xFFFF, 0xFFFFFFFF  # in a field: see the zip64 record instead
_STORED, _DEFLATED = 0, 8
_ENCRYPTED, _UTF8_NAME = 0x1, 0x800

codecs.lookup("cp437")  # imported now, since an inspector may open no file later
PATH_HINT: Final = "Build the installer again, with nothing but relative paths inside."


class Readable(Protocol):
    """The part of a file that is needed here; positions are counted from its start."""

    def seek(self, offset: int, /) -> int:
        """Go to `offset`."""

    def read(self, size: int, /) -> bytes:
        """Return the next bytes, at most `size`."""


@dataclass(slots=True)
class Window:
    """`size` bytes of a file from `start` on, as a file of their own."""

    file: Readable
    start: int
    size: int
    _at: int = 0

    def seek(self, offset: int, /) -> int:
        """Go to `offset`."""
        self._at = min(offset, self.size)
        return self._at

    def read(self, size: int, /) -> bytes:
        """Return the next bytes, at most `size`."""
        self.file.seek(self.start + self._at)
        content = self.file.read(min(size, self.size - self._at))
        self._at += len(content)
        return content


class Member(NamedTuple):
    """One file of an archive as the central directory gives it: sizes and offsets in bytes.

    Its local header and its content lie between `offset` and `end`, where the next file begins.
    """

    raw_name: bytes
    flags: int
    method: int
    checksum: int
    packed_size: int
    file_size: int
    offset: int
    end: int = 0

    @property
    def name(self) -> str:
        """Return the path of the file inside the archive. Raises BadFileError."""
        try:
            return self.raw_name.decode("utf-8" if self.flags & _UTF8_NAME or self.raw_name.isascii() else "cp437")
        except UnicodeDecodeError as error:
            raise BadFileError("the zip directory holds a path that is no text.", hint=PATH_HINT) from error


@dataclass(frozen=True, slots=True)
class Archive:
    """An open zip archive: its file, where its central directory begins (bytes), and its members by name."""

    file: Readable
    directory_offset: int
    members: dict[str, Member]
    is_zip64: bool = False

    @classmethod
    def open(cls, file: Readable, size: int) -> Self:
        """List the archive in `file`, which is `size` bytes long. Raises BadFileError."""
        end = _end(file, size)
        file.seek(end.offset)
        try:
            listed = list(_entries(file.read(end.length)))
        except struct.error as error:
            raise BadFileError("the zip directory is damaged.") from error
        if len(listed) != end.entries:
            raise BadFileError(f"the zip directory lists {len(listed)} files where it promises {end.entries}.")
        members = {member.name: member for member in _apart(listed, end.offset)}
        if len(members) != len(listed):
            # Readers differ in which one they take, which is how a checked file and an installed file come apart.
            raise BadFileError("the zip directory lists one name twice.", hint="Build the installer again.")
        for name in members:
            _require_inside(name)
        return cls(file, end.offset, members, end.is_zip64)

    def read(self, name: str, limit: int) -> bytes:
        """Return member `name`, at most `limit` bytes. Raises BadFileError when it is missing, larger or damaged."""
        member = self._member(name)
        if max(member.file_size, member.packed_size) > limit:
            raise BadFileError(f"{name} claims {member.file_size} bytes, and at most {limit} are read.")
        content = self._unpack(name, limit + 1, member.packed_size)
        if len(content) > limit:
            raise BadFileError(f"{name} unpacks to more than {limit} bytes.")
        if len(content) != member.file_size or zlib.crc32(content) != member.checksum:
            raise BadFileError(f"{name} does not match the size and checksum the zip directory gives.")
        return content

    def read_start(self, name: str, length: int) -> bytes:
        """Return the first bytes of member `name`, at most `length`. Raises BadFileError; no checksum is compared."""
        return self._unpack(name, length, length + KIB)[:length]

    def nested(self, name: str, limit: int) -> "Archive":
        """List the zip archive that member `name` is. Raises BadFileError.

        It is read in place when it is stored, and unpacked into memory when it is packed and has at most `limit` bytes.
        """
        member = self._member(name)
        if self.is_stored(name):
            return Archive.open(Window(self.file, self._start(name), member.file_size), member.file_size)
        return Archive.open(io.BytesIO(self.read(name, limit)), member.file_size)

    def is_stored(self, name: str) -> bool:
        """Whether member `name` lies in the file as it is. Raises BadFileError when it is missing."""
        member = self._member(name)
        return member.method == _STORED and not member.flags & _ENCRYPTED and member.packed_size == member.file_size

    def _member(self, name: str) -> Member:
        if name not in self.members:
            raise BadFileError(f"{name} is missing from the archive.")
        return self.members[name]

    def _start(self, name: str) -> int:
        """Return where the content of member `name` begins, which only its local header tells."""
        member = self._member(name)
        self.file.seek(member.offset)
        header = self.file.read(_LOCAL.size)
        if len(header) < _LOCAL.size:
            raise BadFileError(f"{name} lies outside its place in the archive.")
        signature, *_, name_bytes, extra_bytes = _LOCAL.unpack(header)
        start: int = member.offset + _LOCAL.size + name_bytes + extra_bytes
        if signature != LOCAL_SIGNATURE or start + member.packed_size > member.end:
            raise BadFileError(f"{name} lies outside its place in the archive.")
        if self.file.read(name_bytes) != member.raw_name:
            raise BadFileError(f"{name} has another name in its own header.")
        return start

    def _unpack(self, name: str, length: int, packed_length: int) -> bytes:
        """Return at most `length` bytes, made from at most `packed_length`."""
        member, start = self._member(name), self._start(name)
        if member.flags & _ENCRYPTED:
            raise BadFileError(f"{name} is encrypted.")
        self.file.seek(start)
        packed = self.file.read(min(member.packed_size, packed_length))
        if member.method == _STORED:
            return packed[:length]
        if member.method != _DEFLATED:
            raise BadFileError(f"{name} is packed by zip method {member.method}; only deflate is read.")
        try:
            return zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, length)
        except zlib.error as error:
            raise BadFileError(f"{name} cannot be unpacked.") from error


class _End(NamedTuple):
    """What the end records say of the central directory; offset and length in bytes."""

    offset: int
    length: int
    entries: int
    is_zip64: bool


def _end(file: Readable, size: int) -> _End:
    """Find the central directory, which has to end where the end records begin."""
    tail_bytes = min(size, _END.size + LARGEST_COMMENT_BYTES)
    file.seek(size - tail_bytes)
    tail = file.read(tail_bytes)
    at = tail.rfind(_END_SIGNATURE)
    if at < 0 or at + _END.size > len(tail):
        raise BadFileError("the zip archive has no end record, so the file is cut off.")
    _, disk, directory_disk, here, total, length, offset, comment_bytes = _END.unpack_from(tail, at)
    if at + _END.size + comment_bytes != len(tail):
        raise BadFileError("the zip archive does not end where its end record says.")
    at += size - tail_bytes
    plain = (disk, directory_disk, here, total, length, offset)
    large = _zip64_end(file, at)
    if large is not None:
        at, *numbers = large
        full = (_FULL_16, _FULL_16, _FULL_16, _FULL_16, _FULL_32, _FULL_32)
        if any(small not in (number, mark) for small, number, mark in zip(plain, numbers, full, strict=True)):
            raise BadFileError("the two end records of the zip archive contradict each other.")
        disk, directory_disk, here, total, length, offset = numbers
    if disk or directory_disk or here != total:
        raise BadFileError("it is one part of a split zip archive.")
    if offset + length != at:
        raise BadFileError("the zip directory is not where the end record says.")
    if length > DIRECTORY_BYTES:
        raise BadFileError(f"the zip directory has {length} bytes, and at most {DIRECTORY_BYTES} are read.")
    return _End(offset, length, total, large is not None)


def _zip64_end(file: Readable, end_at: int) -> tuple[int, ...] | None:
    """Return where the zip64 end record lies and its six numbers, None when there is no such record."""
    locator_at = end_at - _ZIP64_LOCATOR.size
    if locator_at < _ZIP64_END.size:
        return None
    file.seek(locator_at)
    signature, _, at, _ = _ZIP64_LOCATOR.unpack(file.read(_ZIP64_LOCATOR.size))
    if signature != _ZIP64_LOCATOR_SIGNATURE:
        return None
    if at > locator_at - _ZIP64_END.size:
        raise BadFileError("the zip64 end record is not where its locator says.")
    file.seek(at)
    signature, size, _, _, *numbers = _ZIP64_END.unpack(file.read(_ZIP64_END.size))
    if signature != _ZIP64_END_SIGNATURE or at + 12 + size != locator_at:  # 12: what comes before the size counts
        raise BadFileError("the zip64 end record is not where its locator says.")
    return at, *numbers


def _entries(directory: bytes) -> Iterator[Member]:
    at = count = 0
    while at < len(directory):
        count += 1
        if count > DIRECTORY_ENTRIES:
            raise BadFileError(f"the zip directory lists more than {DIRECTORY_ENTRIES} files.")
        signature, *_, offset = entry = _ENTRY.unpack_from(directory, at)
        flags, method, checksum, packed_size, file_size, name_bytes, extra_bytes, comment_bytes = (
            *entry[3:5], *entry[7:13],
        )  # fmt: skip
        name_at = at + _ENTRY.size
        extra_at = name_at + name_bytes
        at = extra_at + extra_bytes + comment_bytes
        if signature != _ENTRY_SIGNATURE or at > len(directory):
            raise BadFileError("the zip directory is damaged.")
        if _FULL_32 in (file_size, packed_size, offset):
            extra = directory[extra_at : extra_at + extra_bytes]
            file_size, packed_size, offset = _zip64_sizes(extra, [file_size, packed_size, offset])
        raw_name = directory[name_at:extra_at]
        yield Member(raw_name, flags, method, checksum, packed_size, file_size, offset)


def _zip64_sizes(extra: bytes, numbers: list[int]) -> list[int]:
    """Replace those of `numbers` (size, packed size, offset) that are full, in this order, from the zip64 field."""
    at = 0
    while at + _EXTRA.size <= len(extra):
        kind, length = _EXTRA.unpack_from(extra, at)
        at += _EXTRA.size
        if kind == _ZIP64_EXTRA:
            content = extra[at : at + length]
            large = (number for (number,) in struct.iter_unpack("<Q", content[: len(content) // 8 * 8]))
            return [next(large, number) if number == _FULL_32 else number for number in numbers]
        at += length
    return numbers


def _apart(members: list[Member], directory_offset: int) -> Iterator[Member]:
    """Yield the members in the order they lie in, each with its end; refuse two that share bytes."""
    ordered = sorted(members, key=lambda member: member.offset)
    ends = [following.offset for _, following in pairwise(ordered)] + [directory_offset]
    for member, end in zip(ordered, ends, strict=False):
        if member.offset + _LOCAL.size + len(member.raw_name) + member.packed_size > end:
            raise BadFileError(
                "two files of the zip archive lie over each other, or one outside it.",
                hint="Build the installer again.",
            )
        yield member._replace(end=end)


def _require_inside(name: str) -> None:
    """Refuse a path that leads out of the folder it is unpacked to: nothing is unpacked here, but on a device it is."""
    leads_out = not name or name[0] == "/" or name[1:2] == ":" or "\\" in name or "\0" in name
    if leads_out or (".." in name and ".." in name.split("/")):
        raise BadFileError(f"the zip directory holds the path {name[:60]!r}, which may lead out of it.", hint=PATH_HINT)
