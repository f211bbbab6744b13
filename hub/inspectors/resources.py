"""The resource table of an APK, `resources.arsc`: resource id -> its text in the default language.

An APK seldom spells out its title; the manifest names a resource. Of the table only what leads to one string is
decoded. What is left out: every other type of value, styles, compact and sparse entries of unusual build tools (they
read as "no text"). Layout: `ResourceTypes.h` of the Android Open Source Project (ResTable_package, ResTable_type,
ResTable_entry, Res_value).
"""

import struct
from collections.abc import Iterator
from typing import Final

from hub.inspectors.axml import STRING_POOL, TYPE_REFERENCE, TYPE_STRING, chunks, string_pool
from hub.inspectors.zips import Archive
from protocol.errors import BadFileError
from protocol.limits import MIB

TABLE: Final = "resources.arsc"
TABLE_BYTES: Final = 32 * MIB
HOPS: Final = 4  # a resource may only name another one, and in a hostile table itself

_PACKAGE_CHUNK, _TYPE_CHUNK = 0x0200, 0x0201
_SPARSE, _OFFSET16, _COMPLEX, _COMPACT = 0x01, 0x02, 0x0001, 0x0008
_NO_ENTRY: Final = 0xFFFFFFFF
_HEADER = struct.Struct("<HHI")
_TYPE = struct.Struct("<HHIBBHIII")  # chunk, type id, flags, 0, entries, entries start, size of the configuration
_ENTRY = struct.Struct("<HHIHBBI")  # size, flags, key, then the value: size, 0, type, value


def text(archive: Archive, resource_id: int) -> str:
    """Return the text of resource `resource_id`, "" when the table does not give one that can be read."""
    if TABLE not in archive.members:
        return ""
    try:
        return _text(memoryview(archive.read(TABLE, TABLE_BYTES)), resource_id)
    except (BadFileError, struct.error, UnicodeDecodeError):
        return ""  # a title is a courtesy: a table the device reads and this file does not is no fault of the installer


def _text(table: memoryview, resource_id: int) -> str:
    _, header_bytes, size = _HEADER.unpack_from(table)
    parts = list(chunks(table[header_bytes:size]))
    strings = string_pool(next((chunk for kind, chunk in parts if kind == STRING_POOL), memoryview(b"")))
    for _ in range(HOPS):
        values = [value for kind, chunk in parts if kind == _PACKAGE_CHUNK for value in _values(chunk, resource_id)]
        if not values:
            return ""
        kind, data = next(((kind, data) for default, kind, data in values if default), values[0][1:])
        if kind == TYPE_STRING:
            return strings.get(data)
        if kind != TYPE_REFERENCE:
            return ""
        resource_id = data
    return ""


def _values(package: memoryview, resource_id: int) -> Iterator[tuple[bool, int, int]]:
    """Yield, per configuration that has the resource, whether it is the default one, and its value as type and data.

    A resource id is 0xPPTTEEEE: package, type, entry.
    """
    _, header_bytes, _, package_id = struct.unpack_from("<HHII", package)
    if package_id != resource_id >> 24:
        return
    for kind, chunk in chunks(package[header_bytes:]):
        if kind == _TYPE_CHUNK and (value := _value(chunk, resource_id >> 16 & 0xFF, resource_id & 0xFFFF)):
            yield value


def _value(chunk: memoryview, type_id: int, index: int) -> tuple[bool, int, int] | None:
    _, header_bytes, _, found_id, flags, _, count, start, configuration_bytes = _TYPE.unpack_from(chunk)
    if found_id != type_id or index >= count or flags & (_SPARSE | _OFFSET16):
        return None
    (offset,) = struct.unpack_from("<I", chunk, header_bytes + 4 * index)
    if offset == _NO_ENTRY:
        return None
    _, entry_flags, _, _, _, kind, data = _ENTRY.unpack_from(chunk, start + offset)
    if entry_flags & (_COMPLEX | _COMPACT):
        return None
    configuration = chunk[_TYPE.size : _TYPE.size - 4 + configuration_bytes]
    return not any(configuration), kind, data
