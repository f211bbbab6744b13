"""Android's binary XML, as `AndroidManifest.xml` inside an APK: bytes -> start elements, every step bounded.

Strings are decoded only when asked for, and only short ones, because many entries of a string table may point at one
long string: a table decoded at once can be made to fill any memory. Attributes of the `android:` namespace are known by
resource id, as the platform itself does, since build tools may blank their names. What is left out: text nodes, styles
and values held in `resources.arsc`, which come back as `Reference` (see `resources`).

Layout: `ResourceTypes.h` of the Android Open Source Project (ResChunk_header, ResStringPool_header,
ResXMLTree_attrExt, Res_value).
"""

import codecs
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, TypeAlias

from protocol.errors import BadFileError

ELEMENTS: Final = 20_000
STRING_BYTES: Final = 4_096  # of one name or value that is asked for

_XML, STRING_POOL, _RESOURCE_MAP, _START_ELEMENT, _END_ELEMENT = 0x0003, 0x0001, 0x0180, 0x0102, 0x0103
TYPE_REFERENCE, TYPE_STRING, _TYPE_BOOLEAN = 0x01, 0x03, 0x12
_TYPES_INTEGER: Final = range(0x10, 0x12)  # decimal, hexadecimal
_NO_STRING: Final = 0xFFFFFFFF
_UTF8_FLAG: Final = 1 << 8

codecs.lookup("utf-16-le")  # imported now, since an inspector may open no file later

_CHUNK = struct.Struct("<HHI")  # type, header size, whole size
_POOL = struct.Struct("<HHIIIIII")  # chunk, strings, styles, flags, strings start, styles start
_ELEMENT = struct.Struct("<IIHHH")  # namespace, name, attributes start, attribute size, attribute count
_ATTRIBUTE = struct.Struct("<IIIHBBI")  # namespace, name, raw value, value size, 0, value type, value


@dataclass(frozen=True, slots=True)
class Reference:
    """A value kept elsewhere: the resource with this id."""

    resource_id: int


Value: TypeAlias = str | int | bool | Reference | None


@dataclass(frozen=True, slots=True)
class Strings:
    """A string table, decoded one string at a time."""

    chunk: memoryview
    count: int
    offsets_at: int
    start: int
    utf8: bool

    def get(self, index: int) -> str:
        """Return string `index`; raises BadFileError when there is none or it is longer than STRING_BYTES."""
        try:
            return self._get(index)
        except (struct.error, UnicodeDecodeError) as error:
            raise BadFileError("a string of the manifest is damaged.") from error

    def _get(self, index: int) -> str:
        if index >= self.count:
            raise BadFileError("the manifest names a string it does not hold.")
        at = self.start + struct.unpack_from("<I", self.chunk, self.offsets_at + 4 * index)[0]
        if self.utf8:
            _, at = self._length(at, "B", 0x80, 8)  # first the length in UTF-16 units, then in bytes
            length, at = self._length(at, "B", 0x80, 8)
        else:
            length, at = self._length(at, "<H", 0x8000, 16)
            length *= 2
        if length > STRING_BYTES or at + length > len(self.chunk):
            raise BadFileError("a string of the manifest is too long or runs past its end.")
        return str(self.chunk[at : at + length], "utf-8" if self.utf8 else "utf-16-le")

    def _length(self, at: int, unit: str, more: int, shift: int) -> tuple[int, int]:
        width = struct.calcsize(unit)
        (length,) = struct.unpack_from(unit, self.chunk, at)
        if not length & more:
            return length, at + width
        (low,) = struct.unpack_from(unit, self.chunk, at + width)
        return (length & (more - 1)) << shift | low, at + 2 * width


@dataclass(frozen=True, slots=True)
class Element:
    """One start tag: its depth (the root has 1), its name, and where its attributes lie in the manifest."""

    depth: int
    name: str
    _strings: Strings
    _resource_ids: tuple[int, ...]
    _attributes: tuple[tuple[int, ...], ...]

    def get(self, wanted: int | str) -> Value:
        """Return the attribute with resource id (or, for one without, plain name) `wanted`, None when absent."""
        for _, name, raw, _, _, kind, data in self._attributes:
            resource_id = self._resource_ids[name] if name < len(self._resource_ids) else 0
            if resource_id == wanted or (
                not resource_id and isinstance(wanted, str) and self._strings.get(name) == wanted
            ):
                return self._value(raw, kind, data)
        return None

    def _value(self, raw: int, kind: int, data: int) -> Value:
        if kind == TYPE_REFERENCE:
            return Reference(data)
        if kind == TYPE_STRING:
            return self._strings.get(data)
        if kind == _TYPE_BOOLEAN:
            return data != 0
        if kind in _TYPES_INTEGER:
            return data
        return None if raw == _NO_STRING else self._strings.get(raw)


def elements(data: bytes) -> Iterator[Element]:
    """Yield the start tags of binary XML `data` in document order. Raises BadFileError when it is damaged."""
    try:
        yield from _elements(data)
    except (struct.error, UnicodeDecodeError) as error:
        raise BadFileError("AndroidManifest.xml is damaged.") from error


def _elements(data: bytes) -> Iterator[Element]:
    kind, header_bytes, size = _CHUNK.unpack_from(data)
    if kind != _XML or size > len(data):
        raise BadFileError("AndroidManifest.xml is not binary XML, so it was never compiled.")
    strings: Strings | None = None
    resource_ids: tuple[int, ...] = ()
    depth = count = 0
    for kind, chunk in chunks(memoryview(data)[header_bytes:size]):
        if kind == STRING_POOL:
            if strings is not None:  # which one counts would be up to each reader
                raise BadFileError("AndroidManifest.xml is damaged: it holds two string tables.")
            strings = string_pool(chunk)
        elif kind == _RESOURCE_MAP:
            resource_ids = _resource_map(chunk)
        elif kind == _END_ELEMENT:
            depth -= 1
        elif kind == _START_ELEMENT and strings is not None:
            depth, count = depth + 1, count + 1
            if count > ELEMENTS:
                raise BadFileError(f"AndroidManifest.xml has more than {ELEMENTS} elements.")
            yield _element(chunk, depth, strings, resource_ids)
    if depth != 0 or count == 0:
        raise BadFileError("AndroidManifest.xml is cut off.")


def chunks(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Yield type and bytes of each chunk; each is at least a header long, so this ends."""
    at = 0
    while at < len(data):
        kind, header_bytes, size = _CHUNK.unpack_from(data, at)
        if not _CHUNK.size <= header_bytes <= size <= len(data) - at:
            raise BadFileError("a part of its binary XML or resource table runs past the end.")
        yield kind, data[at : at + size]
        at += size


def string_pool(chunk: memoryview) -> Strings:
    """Return the string table in `chunk`, which is wholly checked only as strings are asked for."""
    _, header_bytes, _, count, _, flags, start, _ = _POOL.unpack_from(chunk)
    return Strings(chunk, count, header_bytes, start, bool(flags & _UTF8_FLAG))


def _resource_map(chunk: memoryview) -> tuple[int, ...]:
    _, header_bytes, size = _CHUNK.unpack_from(chunk)
    return struct.unpack_from(f"<{(size - header_bytes) // 4}I", chunk, header_bytes)


def _element(chunk: memoryview, depth: int, strings: Strings, resource_ids: tuple[int, ...]) -> Element:
    _, header_bytes, _ = _CHUNK.unpack_from(chunk)
    _, name, start, width, count = _ELEMENT.unpack_from(chunk, header_bytes)
    if width < _ATTRIBUTE.size:  # attributes may then overlap, and a small file hold very many
        raise BadFileError("AndroidManifest.xml is damaged: an element has impossibly small attributes.")
    attributes = tuple(_ATTRIBUTE.unpack_from(chunk, header_bytes + start + index * width) for index in range(count))
    return Element(depth, strings.get(name), strings, resource_ids, attributes)
