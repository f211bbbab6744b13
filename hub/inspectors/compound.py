"""Compound files (what OLE calls structured storage): the streams at the top of one, each read bounded.

A compound file is a small file system: sectors of 512 or 4096 bytes, chained through a table (the FAT), a directory,
and streams; small streams lie in one stream of their own, in sectors of 64 bytes with a table of their own. A chain is
followed for as many steps as the length wanted needs and no further, and the FAT is read as it is needed, so a chain
that runs in a circle ends and a large file costs no more than a small one. Only streams right below the root are
listed; what lies in folders belongs to another document that is kept inside this one.

Source: [MS-CFB] Compound File Binary File Format.
"""

import codecs
import struct
from dataclasses import dataclass
from typing import BinaryIO, Final, NamedTuple, Self

from protocol.errors import BadFileError
from protocol.limits import MIB

SIGNATURE: Final = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
DIRECTORY_BYTES: Final = 4 * MIB  # 32,768 entries
SMALL_STREAMS_BYTES: Final = 16 * MIB

_HEADER = struct.Struct("<8s18x4H10x2I4x5I")
_HEADER_BYTES: Final = 512
_HEADER_LIST = struct.Struct("<109I")  # the list of the FAT's sectors begins in the header
_ENTRY = struct.Struct("<64sHBx3I16s20xIQ")
_NUMBER = struct.Struct("<I")
_STREAM, _ROOT = 2, 5
_SECTOR_SHIFTS: Final = {3: 9, 4: 12}  # by the version of the format
_SMALL_BYTES: Final = 64
_SMALL_BELOW_BYTES: Final = 4096
_CODEC: Final = codecs.lookup("utf-16-le")  # at once: a codec is a file, and later none can be opened
_END_OF_CHAIN: Final = 0xFFFF_FFFE
_FREE: Final = 0xFFFF_FFFF
_SPARE_TABLES: Final = 16  # sectors a FAT may have beyond a quarter more than the file needs


class _Header(NamedTuple):
    """The numbers of the header; sectors are given by their number."""

    signature: bytes
    version: int
    byte_order: int
    sector_shift: int
    small_shift: int
    fat_count: int
    directory: int
    small_below: int
    small_fat: int
    small_fat_count: int
    list: int
    list_count: int


class _Entry(NamedTuple):
    """One entry of the directory: its stream's first sector and bytes, its neighbours by their numbers."""

    name: bytes
    name_bytes: int
    type: int
    left: int
    right: int
    child: int
    class_id: bytes
    start: int
    size: int


class _Sectors:
    """The sectors of a compound file and the table that chains them."""

    def __init__(self, file: BinaryIO, size: int, sector_bytes: int) -> None:
        self._file = file
        self.bytes = sector_bytes
        self.count = size // sector_bytes - 1  # the header takes the room of one
        self.per_table = sector_bytes // _NUMBER.size
        self._fat: tuple[int, ...] = ()
        self._table: tuple[int, bytes] = (-1, b"")  # the part of the FAT read last

    def read_fat(self, header: _Header, first: tuple[int, ...]) -> None:
        """Collect where the FAT lies: `first` and what the list goes on with. Raises BadFileError."""
        if header.fat_count > self.count // self.per_table * 5 // 4 + _SPARE_TABLES:
            raise BadFileError("it is cut off, or its header is damaged.")
        numbers, at = list(first), header.list
        while len(numbers) < header.fat_count:
            *more, at = struct.unpack(f"<{self.per_table}I", self.part(at))
            numbers += more
        self._fat = tuple(numbers[: header.fat_count])

    def require_whole(self) -> None:
        """Refuse a file whose table speaks of sectors beyond its end. Raises BadFileError."""
        first = self.count // self.per_table
        for number, sector in enumerate(self._fat[first:], first):
            begin = max(0, self.count - number * self.per_table) * _NUMBER.size
            rest = self.part(sector)[begin:]
            if rest.strip(b"\xff"):
                raise BadFileError("it is cut off: its table speaks of sectors that are not there.")

    def part(self, sector: int, length: int | None = None, skip: int = 0) -> bytes:
        """Return one sector, or `length` bytes of it after the first `skip`. Raises BadFileError."""
        if sector >= self.count:
            raise BadFileError("it is cut off, or a chain of its sectors leads nowhere.")
        self._file.seek((sector + 1) * self.bytes + skip)
        return self._file.read(self.bytes if length is None else length)

    def next(self, sector: int) -> int:
        """Return the sector that follows in the chain. Raises BadFileError."""
        number, place = divmod(sector, self.per_table)
        if self._table[0] != number:
            if number >= len(self._fat):
                raise BadFileError("a chain of its sectors leads nowhere.")
            self._table = number, self.part(self._fat[number])
        following: int = _NUMBER.unpack_from(self._table[1], place * _NUMBER.size)[0]
        return following

    def chain(self, start: int, length: int) -> list[int]:
        """Return the sectors that hold the first `length` bytes from `start`. Raises BadFileError."""
        sectors = []
        for _ in range(-(-length // self.bytes)):
            sectors.append(start)
            start = self.next(start)
        return sectors

    def read(self, start: int, length: int) -> bytes:
        """Return the first `length` bytes of the chain that begins at `start`. Raises BadFileError."""
        return b"".join(map(self.part, self.chain(start, length)))[:length]

    def read_to_end(self, start: int, limit: int) -> bytes:
        """Return a whole chain, which may have `limit` bytes. Raises BadFileError."""
        parts: list[bytes] = []
        while start != _END_OF_CHAIN:
            if len(parts) * self.bytes >= limit:
                raise BadFileError(f"its directory has more than {limit} bytes or runs in a circle.")
            parts.append(self.part(start))
            start = self.next(start)
        return b"".join(parts)


@dataclass(frozen=True, slots=True)
class CompoundFile:
    """An open compound file. `class_id` says whose document it is, as the 16 bytes of a GUID lie in a file.

    `streams` are (first sector, bytes) by name. Small streams lie in `small_sectors`, chained by `small_fat`.
    """

    sectors: _Sectors
    class_id: bytes
    streams: dict[str, tuple[int, int]]
    small_sectors: tuple[int, ...]
    small_fat: bytes

    @classmethod
    def open(cls, file: BinaryIO, size: int) -> Self:
        """List the compound file in `file`, which is `size` bytes long. Raises BadFileError."""
        header, first = _header(file)
        sectors = _Sectors(file, size, 1 << header.sector_shift)
        if size % sectors.bytes:
            raise BadFileError("it is cut off: its last sector is not whole.")
        sectors.read_fat(header, first)
        sectors.require_whole()
        directory = sectors.read_to_end(header.directory, DIRECTORY_BYTES)
        root = _entry(directory, 0)
        if root.type != _ROOT:
            raise BadFileError("its directory is damaged.")
        small_bytes = _size(root, header.version)
        if max(small_bytes, header.small_fat_count * sectors.bytes * _SMALL_BYTES // 4) > SMALL_STREAMS_BYTES:
            raise BadFileError(f"its small streams have more than {SMALL_STREAMS_BYTES} bytes.")
        return cls(
            sectors=sectors,
            class_id=root.class_id,
            streams=_streams(directory, root.child, header.version),
            small_sectors=tuple(sectors.chain(root.start, small_bytes)),
            small_fat=sectors.read(header.small_fat, header.small_fat_count * sectors.bytes),
        )

    def read(self, name: str, limit: int) -> bytes:
        """Return a stream, b"" for one that is not there. Raises BadFileError for more than `limit` bytes."""
        start, size = self.streams.get(name, (0, 0))
        if size > limit:
            raise BadFileError(f"a stream has {size} bytes, and at most {limit} are read.")
        return self._read_small(start, size) if size < _SMALL_BELOW_BYTES else self.sectors.read(start, size)

    def _read_small(self, start: int, size: int) -> bytes:
        parts = []
        for _ in range(-(-size // _SMALL_BYTES)):
            number, skip = divmod(start * _SMALL_BYTES, self.sectors.bytes)
            if number >= len(self.small_sectors) or (start + 1) * _NUMBER.size > len(self.small_fat):
                raise BadFileError("a chain of its small sectors leads nowhere.")
            parts.append(self.sectors.part(self.small_sectors[number], _SMALL_BYTES, skip))
            (start,) = _NUMBER.unpack_from(self.small_fat, start * _NUMBER.size)
        return b"".join(parts)[:size]


def _header(file: BinaryIO) -> tuple[_Header, tuple[int, ...]]:
    """Return the header and the beginning of the list of the FAT's sectors."""
    file.seek(0)
    content = file.read(_HEADER_BYTES)
    if len(content) < _HEADER_BYTES:
        raise BadFileError("it is cut off inside its header.")
    header = _Header(*_HEADER.unpack_from(content))
    shift = _SECTOR_SHIFTS.get(header.version)
    known = (SIGNATURE, 0xFFFE, shift, 6, _SMALL_BELOW_BYTES)
    if header[0:1] + header[2:5] + (header.small_below,) != known:
        raise BadFileError("its header is damaged.")
    return header, tuple(_HEADER_LIST.unpack_from(content, _HEADER.size))


def _entry(directory: bytes, number: int) -> _Entry:
    if (number + 1) * _ENTRY.size > len(directory):
        raise BadFileError("its directory is damaged.")
    return _Entry(*_ENTRY.unpack_from(directory, number * _ENTRY.size))


def _streams(directory: bytes, top: int, version: int) -> dict[str, tuple[int, int]]:
    """Return (first sector, bytes) of the streams in the tree below `top`, by name."""
    streams: dict[str, tuple[int, int]] = {}
    waiting, seen = [top], {_FREE}
    while waiting:
        number = waiting.pop()
        if number in seen:
            continue
        seen.add(number)
        entry = _entry(directory, number)
        waiting += (entry.left, entry.right)
        if entry.type == _STREAM:
            name, _ = _CODEC.decode(entry.name[: max(0, entry.name_bytes - 2)], "replace")
            streams.setdefault(name, (entry.start, _size(entry, version)))
    return streams


def _size(entry: _Entry, version: int) -> int:
    """Return a stream's bytes; in version 3 the upper half of the number means nothing."""
    return entry.size & 0xFFFF_FFFF if version == 3 else entry.size
