"""The resource table of an APK, `resources.arsc`: resource id -> its text in the default language, or its files.

An APK seldom spells out its title and never its icon; the manifest names resources. Of the table only what leads to
them is decoded. What is left out: every value that is neither a string nor another resource, and styles. Title and icon
are a courtesy, so a table that cannot be read holds nothing, and is no fault of the installer.

Layout: `ResourceTypes.h` of the Android Open Source Project (ResTable_package, ResTable_type, ResTable_sparseTypeEntry,
ResTable_entry with its compact form, Res_value, ResTable_config).
"""

import struct
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple, Self

from hub.inspectors.axml import STRING_POOL, TYPE_REFERENCE, TYPE_STRING, Strings, chunks, string_pool
from hub.inspectors.zips import Archive
from protocol.errors import BadFileError
from protocol.limits import MIB

TABLE: Final = "resources.arsc"
TABLE_BYTES: Final = 32 * MIB
CHUNKS: Final = 16_384  # Android's own table, the largest there is, has 4,000
FILES: Final = 64  # of one icon; there are six usual densities
HOPS: Final = 4  # a resource may only name another one, and in a hostile table itself

_PACKAGE_CHUNK, _TYPE_CHUNK = 0x0200, 0x0201
_SPARSE, _OFFSET16, _COMPLEX, _COMPACT = 0x01, 0x02, 0x0001, 0x0008
_NO_ENTRY, _NO_ENTRY16 = 0xFFFFFFFF, 0xFFFF
_RASTER: Final = (".png", ".webp", ".jpg")
_DENSITIES: Final = range(1, 0xFFFE)  # above stand "any" and "none"
_HEADER = struct.Struct("<HHI")
_TYPE = struct.Struct("<HHIBBHIII")  # chunk, type id, flags, 0, entries, entries start, size of the configuration
_ENTRY = struct.Struct("<HHIHBBI")  # size, flags, key, then the value: size, 0, type, value
_COMPACT_ENTRY = struct.Struct("<HHI")  # key, flags with the type above them, value
_SPARSE_ENTRY = struct.Struct("<HH")  # entry, a quarter of its offset
_DENSITY_AT: Final = 14  # bytes into the configuration


class Found(NamedTuple):
    """The value of a resource in one configuration: is that the default one, its density in dpi, type and data."""

    is_default: bool
    density: int
    kind: int
    data: int


@dataclass(frozen=True, slots=True)
class Table:
    """The table's strings, and per package and type the chunks with its values, one for each configuration."""

    strings: Strings | None = None
    types: dict[tuple[int, int], list[memoryview]] = field(default_factory=dict)

    @classmethod
    def of(cls, archive: Archive) -> Self:
        """Return the table of an APK, an empty one when there is none or none that can be read."""
        if TABLE not in archive.members:
            return cls()
        try:
            return cls._of(memoryview(archive.read(TABLE, TABLE_BYTES)))
        except (BadFileError, struct.error):
            return cls()

    @classmethod
    def _of(cls, table: memoryview) -> Self:
        _, header_bytes, size = _HEADER.unpack_from(table)
        strings: Strings | None = None
        types: dict[tuple[int, int], list[memoryview]] = {}
        package_id = 0
        for count, (kind, chunk) in enumerate(_all_chunks(table[header_bytes:size])):
            if count > CHUNKS:
                raise BadFileError(f"the resource table has more than {CHUNKS} parts.")
            if kind == STRING_POOL and strings is None:
                strings = string_pool(chunk)
            elif kind == _PACKAGE_CHUNK:
                (package_id,) = struct.unpack_from("<I", chunk, _HEADER.size)
            elif kind == _TYPE_CHUNK:
                types.setdefault((package_id, _TYPE.unpack_from(chunk)[3]), []).append(chunk)
        return cls(strings, types)

    def text(self, resource_id: int) -> str:
        """Return the text of resource `resource_id` in the default language, "" when there is none."""
        return next(iter(self._strings(self._found(resource_id)[:1])), "")

    def files(self, resource_id: int) -> list[str]:
        """Return the files of resource `resource_id`: pictures before drawings in XML, the densest first."""
        found = sorted(self._found(resource_id), key=lambda one: -one.density * (one.density in _DENSITIES))
        names = self._strings(found[:FILES])
        return sorted(names, key=lambda name: not name.endswith(_RASTER))

    def _found(self, resource_id: int) -> list[Found]:
        """Return the strings of a resource, the default configuration's first; a reference is followed."""
        try:
            for _ in range(HOPS):
                found = sorted(self._values(resource_id), key=lambda one: not one.is_default)
                if not found or found[0].kind != TYPE_REFERENCE:
                    return [one for one in found if one.kind == TYPE_STRING]
                resource_id = found[0].data
        except (BadFileError, struct.error):
            return []
        return []

    def _strings(self, found: list[Found]) -> list[str]:
        try:
            return [self.strings.get(one.data) for one in found] if self.strings else []
        except (BadFileError, struct.error, UnicodeDecodeError):
            return []

    def _values(self, resource_id: int) -> Iterator[Found]:
        """Yield the value per configuration that has one. A resource id is 0xPPTTEEEE: package, type, entry."""
        for chunk in self.types.get((resource_id >> 24, resource_id >> 16 & 0xFF), ()):
            if value := _value(chunk, resource_id & 0xFFFF):
                yield value


def _all_chunks(table: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Yield the chunks of the table, each package's own directly after it."""
    for kind, chunk in chunks(table):
        yield kind, chunk
        if kind == _PACKAGE_CHUNK:
            for inner, part in chunks(chunk[_HEADER.unpack_from(chunk)[1] :]):
                yield inner if inner == _TYPE_CHUNK else 0, part  # a package's string tables hold names, not values


def _value(chunk: memoryview, index: int) -> Found | None:
    _, header_bytes, _, _, flags, _, count, start, configuration_bytes = _TYPE.unpack_from(chunk)
    offset = _offset(chunk, header_bytes, flags, count, index)
    if offset is None:
        return None
    kind_and_data = _entry(chunk, start + offset)
    if kind_and_data is None:
        return None
    configuration = chunk[_TYPE.size - 4 : _TYPE.size - 4 + configuration_bytes]
    density = struct.unpack_from("<H", configuration, _DENSITY_AT)[0] if configuration_bytes > _DENSITY_AT + 1 else 0
    return Found(not any(configuration[4:]), density, *kind_and_data)


def _offset(chunk: memoryview, header_bytes: int, flags: int, count: int, index: int) -> int | None:
    """Return where entry `index` lies behind the start of the entries, None when this configuration lacks it."""
    if flags & _SPARSE:

        def listed(place: int) -> tuple[int, int]:
            entry, quarter = _SPARSE_ENTRY.unpack_from(chunk, header_bytes + 4 * place)
            return entry, 4 * quarter

        place = bisect_left(range(count), index, key=lambda place: listed(place)[0])
        return listed(place)[1] if place < count and listed(place)[0] == index else None
    if index >= count:
        return None
    if flags & _OFFSET16:
        (quarter,) = struct.unpack_from("<H", chunk, header_bytes + 2 * index)
        return None if quarter == _NO_ENTRY16 else 4 * quarter
    (offset,) = struct.unpack_from("<I", chunk, header_bytes + 4 * index)
    return None if offset == _NO_ENTRY else offset


def _entry(chunk: memoryview, at: int) -> tuple[int, int] | None:
    """Return type and data of the entry at `at`, None for a style or another value of several parts."""
    _, flags, data = _COMPACT_ENTRY.unpack_from(chunk, at)
    if flags & _COMPACT:
        return flags >> 8, data
    if flags & _COMPLEX:
        return None
    *_, kind, data = _ENTRY.unpack_from(chunk, at)
    return kind, data
