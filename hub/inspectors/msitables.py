"""The database inside a Windows Installer package: its two-column tables and its summary, read bounded.

A table is a stream of numbers, column after column; each number is a place in the string pool, which is two more
streams: the lengths, and the strings one after the other. A summary is a property set. Only tables of two columns of
text are read here, which those of interest are. The format of the tables is published nowhere by Microsoft.

Sources: `dlls/msi/string.c` and `table.c` of Wine; [MS-OLEPS] for the summary; "Summary Information Stream Property
Set" of Microsoft's documentation for what it holds.
"""

import codecs
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Self

from hub.inspectors.compound import CompoundFile
from protocol.errors import BadFileError
from protocol.limits import KIB, MIB

POOL_BYTES: Final = 2 * MIB  # 524,288 strings
STRINGS_BYTES: Final = 16 * MIB
TABLE_BYTES: Final = 64 * KIB  # 16,384 rows
SUMMARY_BYTES: Final = 64 * KIB
SUMMARY_PROPERTIES: Final = 64
TEXT_BYTES: Final = 4096

_ALPHABET: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz._"
_LONG_REFERENCES: Final = 0x8000_0000
_PAIR = struct.Struct("<HH")
_TEXT_TYPE: Final = 30  # VT_LPSTR
# By Windows code page. Looked up at once, since a codec is a file and later none can be opened.
_CODECS: Final = {
    page: codecs.lookup(f"cp{page}")
    for page in (437, 850, 852, 866, 874, 932, 936, 949, 950, 1250, 1251, 1252, 1253, 1254, 1255, 1256, 1257, 1258)
} | {0: codecs.lookup("latin-1"), 28591: codecs.lookup("latin-1"), 65001: codecs.lookup("utf-8")}


@dataclass(frozen=True, slots=True)
class Database:
    """The string pool of a package: where each string lies in `strings`, by its number, and how numbers are kept."""

    file: CompoundFile
    names: dict[str, str]  # of streams, plain name -> the name the file has for it
    strings: bytes
    places: list[tuple[int, int]]
    reference_bytes: int
    codec: codecs.CodecInfo
    texts: dict[bytes, str]  # those read so far, by their reference: no string is decoded twice

    @classmethod
    def open(cls, file: CompoundFile) -> Self:
        """Read the string pool. Raises BadFileError."""
        names = {plain_name(name): name for name in file.streams}
        pool = file.read(names.get("!_StringPool", ""), POOL_BYTES)
        strings = file.read(names.get("!_StringData", ""), STRINGS_BYTES)
        if len(pool) < _PAIR.size:
            raise BadFileError("it holds no tables, so it is damaged.")
        (head,) = struct.unpack_from("<I", pool)
        places = list(_places(pool, len(strings)))
        codec = _CODECS.get(head & 0xFFFF, _CODECS[0])
        return cls(file, names, strings, places, 3 if head & _LONG_REFERENCES else 2, codec, {})

    def has_table(self, name: str) -> bool:
        """Whether there is a table called `name` and anything in it."""
        return f"!{name}" in self.names

    def rows(self, name: str) -> Iterator[tuple[str, str]]:
        """Yield the rows of a table of two columns of text. Raises BadFileError."""
        table = self.file.read(self.names.get(f"!{name}", ""), TABLE_BYTES)
        width = self.reference_bytes
        count, rest = divmod(len(table), 2 * width)
        if rest:
            raise BadFileError(f"its table {name} is damaged.")
        for row in range(count):
            left, right = row * width, (count + row) * width
            yield self._text(table[left : left + width]), self._text(table[right : right + width])

    def _text(self, reference: bytes) -> str:
        """Return a string by its number, of a long one the beginning; number 0 is no text."""
        if reference not in self.texts:
            self.texts[reference] = self._decoded(reference)
        return self.texts[reference]

    def _decoded(self, reference: bytes) -> str:
        number = int.from_bytes(reference, "little")
        if number > len(self.places):
            raise BadFileError("its tables refer to strings that are not there.")
        begin, length = self.places[number - 1] if number else (0, 0)
        raw = self.strings[begin : begin + min(length, TEXT_BYTES)]
        return self.codec.decode(raw, "replace")[0]


def plain_name(name: str) -> str:
    """Return the name of a stream as people write it; that of a table begins with an exclamation mark.

    The file packs two characters of an alphabet of 64 into one.
    """
    return "".join(map(_plain, name))


def _plain(letter: str) -> str:
    code = ord(letter)
    if 0x3800 <= code < 0x4800:
        return _ALPHABET[code & 0x3F] + _ALPHABET[(code - 0x3800) >> 6]
    if 0x4800 <= code < 0x4840:
        return _ALPHABET[code - 0x4800]
    return "!" if code == 0x4840 else letter


def _places(pool: bytes, size: int) -> Iterator[tuple[int, int]]:
    """Yield where each string begins and its bytes. One longer than 64 KiB has its length in the next pair."""
    at = 0
    pairs = _PAIR.iter_unpack(pool[_PAIR.size : len(pool) // _PAIR.size * _PAIR.size])
    for length, references in pairs:
        if not length and references:
            low, high = next(pairs, (0, 0))
            length = low + (high << 16)
        if at + length > size:
            raise BadFileError("its strings are cut off.")
        yield at, length
        at += length


def summary(file: CompoundFile) -> dict[int, str]:
    """Return the texts of the summary by their numbers. Raises BadFileError."""
    content = file.read("\x05SummaryInformation", SUMMARY_BYTES)
    if len(content) < 48:
        return {}
    (start,) = struct.unpack_from("<I", content, 44)
    if start + 8 > len(content):
        raise BadFileError("its summary is damaged.")
    (count,) = struct.unpack_from("<I", content, start + 4)
    if count > SUMMARY_PROPERTIES or start + 8 + 8 * count > len(content):
        raise BadFileError("its summary is damaged.")
    properties = struct.iter_unpack("<2I", content[start + 8 : start + 8 + 8 * count])
    texts = ((number, _summary_text(content, start + offset)) for number, offset in properties)
    return {number: text for number, text in texts if text}


def _summary_text(content: bytes, at: int) -> str:
    """Return the text at `at`, "" for a number or a time; the one that is read is in ASCII."""
    if at + 8 > len(content):
        return ""
    kind, length = struct.unpack_from("<2I", content, at)
    raw = content[at + 8 : at + 8 + min(length, TEXT_BYTES)]
    return raw.partition(b"\0")[0].decode("ascii", "replace") if kind == _TEXT_TYPE else ""
