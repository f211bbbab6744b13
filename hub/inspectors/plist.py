"""Property lists, binary or XML: bytes -> the dictionary at their root, for files that nobody vouches for.

`plistlib` reads both forms, refuses entities in XML and survives a list that holds itself. Both need a look first. The
objects of the binary form are found by offset, and many of them may claim the same bytes, so that a small file fills
any memory; in an honest one no two objects share a byte, and that is what is asked of it here. XML may declare
attributes that every element then has, so that a small file takes a minute; an honest one only names Apple's
declarations.

Source: `CFBinaryPList.c` of Apple's Core Foundation (CFBinaryPlistTrailer, the object table).
"""

import codecs
import plistlib
import struct
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Final
from xml.parsers.expat import ExpatError, ParserCreate

from protocol.errors import BadFileError

PLIST_BYTES: Final = 1 << 20
OBJECTS: Final = 100_000

_BINARY: Final = b"bplist00"
_TRAILER = struct.Struct(">6xBBQQQ")  # size of an offset, size of a reference, objects, root, where the offsets lie
_DATA, _ASCII, _UTF16, _ARRAY, _DICTIONARY = 0x4, 0x5, 0x6, 0xA, 0xD  # the upper half of an object's first byte
_LONG: Final = 0xF  # in its lower half: the length follows as an integer

codecs.lookup("utf-16be")  # imported now, since an inspector may open no file later


def read_plist(data: bytes) -> dict[str, Any]:
    """Return the dictionary that `data` is, at most PLIST_BYTES of it. Raises BadFileError."""
    if len(data) > PLIST_BYTES:
        raise BadFileError(f"a property list has {len(data)} bytes, and at most {PLIST_BYTES} are read.")
    try:
        if data.startswith(_BINARY):
            _require_apart(data)
        else:
            _require_plain(data)
        found = plistlib.loads(data)
    except (plistlib.InvalidFileException, ExpatError, struct.error, IndexError, RecursionError) as error:
        raise BadFileError("a property list is damaged.") from error
    except (ValueError, TypeError, KeyError, AttributeError, LookupError) as error:  # what `plistlib` lets through
        raise BadFileError("a property list is damaged.") from error
    if not isinstance(found, dict):
        raise BadFileError("a property list holds no dictionary.")
    return found


class _PrologRead(Exception):  # noqa: N818 - it is no error
    """The first element has begun, so nothing can be declared any more."""


def _require_plain(data: bytes) -> None:
    """Refuse XML that declares anything itself."""

    def look(name: str, system: str | None, public: str | None, declares: int) -> None:
        if declares:
            raise BadFileError("a property list declares types or attributes, which no tool of Apple's writes.")

    def stop(*_: object) -> None:
        raise _PrologRead

    parser = ParserCreate()
    parser.StartDoctypeDeclHandler, parser.StartElementHandler = look, stop
    with suppress(_PrologRead):
        parser.Parse(data, True)


def _require_apart(data: bytes) -> None:
    """Refuse a binary list whose objects claim more bytes together than there are."""
    offset_bytes, reference_bytes, count, _, table_at = _TRAILER.unpack_from(data, len(data) - _TRAILER.size)
    if not 1 <= offset_bytes <= 8 or not 1 <= reference_bytes <= 8:
        raise BadFileError("a property list is damaged.")
    if count > OBJECTS or table_at + count * offset_bytes > len(data):
        raise BadFileError(f"a property list claims {count} objects, and at most {OBJECTS} are read.")
    table = data[table_at : table_at + count * offset_bytes]
    offsets = (int.from_bytes(table[at : at + offset_bytes], "big") for at in range(0, len(table), offset_bytes))
    if sum(_lengths(data, offsets, reference_bytes)) > len(data):
        raise BadFileError("a property list holds objects that lie over each other.")


def _lengths(data: bytes, offsets: Iterator[int], reference_bytes: int) -> Iterator[int]:
    """Yield how many bytes each object takes behind its head; numbers and their like do not matter."""
    widths = {_DATA: 1, _ASCII: 1, _UTF16: 2, _ARRAY: reference_bytes, _DICTIONARY: 2 * reference_bytes}
    for offset in offsets:
        kind, length = divmod(data[offset], 16)
        if kind not in widths:
            continue
        if length == _LONG:
            width = 1 << (data[offset + 1] & 0x3)
            length = int.from_bytes(data[offset + 2 : offset + 2 + width], "big")
        yield widths[kind] * length + 1
