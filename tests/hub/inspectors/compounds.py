"""Compound files and Windows Installer packages made by hand, for what no tool at hand makes; msiinfo reads them too.

Written after [MS-CFB] and Wine's `dlls/msi/string.c` and `table.c`.
"""

import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Final
from uuid import UUID

from hub.inspectors.compound import SIGNATURE
from hub.inspectors.msi import PACKAGE

ALPHABET: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz._"
END, FAT, LIST, FREE = 0xFFFFFFFE, 0xFFFFFFFD, 0xFFFFFFFC, 0xFFFFFFFF
PROPERTIES: Final = {"ProductName": "Hand-made", "ProductVersion": "1.2"}


class CompoundWriter:
    """Collects streams and writes them out; `version` 3 has sectors of 512 bytes, 4 of 4096."""

    def __init__(self, class_id: UUID = PACKAGE, version: int = 3) -> None:
        self._version = version
        self._sector = 512 if version == 3 else 4096
        self._sectors = bytearray()
        self._fat: list[int] = []
        self._small = bytearray()
        self._small_fat: list[int] = []
        self._entries: list[tuple[str, int, int, int]] = []  # name, type, first sector, bytes
        self._class_id = class_id

    def add(self, name: str, content: bytes) -> None:
        """Add a stream right below the root."""
        if len(content) >= 4096:
            start = self._chain(content)
        else:
            start = len(self._small_fat) if content else END
            count = -(-len(content) // 64)
            self._small += content.ljust(count * 64, b"\0")
            self._small_fat += [*range(start + 1, start + count), END] if count else []
        self._entries.append((name, 2, start, len(content)))

    def add_folder(self, name: str) -> None:
        """Move all streams added so far into a folder; what is added later lies beside it."""
        self._entries = [(name, 1, len(self._entries), 0), *self._entries]

    def build(self) -> bytes:
        """Return the whole file."""
        small = self._chain(bytes(self._small))
        small_fat = self._chain(self._numbers(self._small_fat, 1))
        small_fat_count = -(-len(self._small_fat) * 4 // self._sector)
        directory = self._chain(self._directory(small))
        fat_start, fat_count, lists = self._table()
        header = struct.pack(
            "<8s16x5H6x9I", SIGNATURE, 62, self._version, 0xFFFE, 9 if self._version == 3 else 12, 6,
            0, fat_count, directory, 0, 4096, small_fat, small_fat_count, lists[0] if lists else END, len(lists),
        )  # fmt: skip
        places = [*range(fat_start, fat_start + fat_count)][:109]
        header += struct.pack("<109I", *places, *[FREE] * (109 - len(places)))
        return header.ljust(self._sector, b"\0") + bytes(self._sectors)

    def _directory(self, small: int) -> bytes:
        inside = self._entries[0][2] if self._entries and self._entries[0][1] == 1 else 0
        entries = [self._entry("Root Entry", 5, small, len(self._small), child=1)]
        for number, (name, kind, start, size) in enumerate(self._entries, 1):
            after_folder = number == 1 and inside
            right = number + 1 + (inside if after_folder else 0)
            last = number == len(self._entries) or (inside and number == inside + 1)
            chained = FREE if (last and not after_folder) or right > len(self._entries) else right
            child = 2 if kind == 1 else FREE
            entries.append(self._entry(name, kind, 0 if kind == 1 else start, size, child=child, right=chained))
        content = b"".join(entries)
        return content.ljust(-(-len(content) // self._sector) * self._sector, b"\0")

    def _entry(self, name: str, kind: int, start: int, size: int, *, child: int = FREE, right: int = FREE) -> bytes:
        raw = name.encode("utf-16-le") + b"\0\0"
        class_id = self._class_id.bytes_le if kind == 5 else bytes(16)
        return struct.pack("<64sHBB3I16s20xIQ", raw, len(raw), kind, 1, FREE, right, child, class_id, start, size)

    def _chain(self, content: bytes) -> int:
        count = -(-len(content) // self._sector)
        start = len(self._fat)
        self._sectors += content.ljust(count * self._sector, b"\0")
        self._fat += [*range(start + 1, start + count), END] if count else []
        return start if count else END

    def _table(self) -> tuple[int, int, list[int]]:
        """Append the FAT and what its list goes on with; return its first sector, its sectors, those of the list."""
        per_sector, used = self._sector // 4, len(self._fat)
        count = lists = 0
        while used + count + lists > count * per_sector:
            count += 1
            lists = -(-max(0, count - 109) // (per_sector - 1))
        self._sectors += self._numbers([*self._fat, *[FAT] * count, *[LIST] * lists], count)
        places = [*range(used, used + count)][109:]
        numbers = [*range(used + count, used + count + lists)]
        for index, number in enumerate(numbers):
            part = places[index * (per_sector - 1) : (index + 1) * (per_sector - 1)]
            part += [FREE] * (per_sector - 1 - len(part))
            following = number + 1 if number + 1 in numbers else END
            self._sectors += struct.pack(f"<{per_sector}I", *part, following)
        return used, count, numbers

    def _numbers(self, values: list[int], sectors: int) -> bytes:
        count = max(sectors, -(-len(values) * 4 // self._sector)) * self._sector // 4
        return struct.pack(f"<{count}I", *values, *[FREE] * (count - len(values)))


def table_name(name: str) -> str:
    """Return the name of the stream of a table, two characters packed into one."""
    packed, rest = "\u4840", name
    while len(rest) > 1:
        packed += chr(0x3800 + ALPHABET.index(rest[0]) + (ALPHABET.index(rest[1]) << 6))
        rest = rest[2:]
    return packed + "".join(chr(0x4800 + ALPHABET.index(letter)) for letter in rest)


def summary(template: str) -> bytes:
    """Return a summary with a template."""
    text = template.encode() + b"\0"
    text = struct.pack("<2I", 30, len(text)) + text.ljust(-(-len(text) // 4) * 4, b"\0")
    section = struct.pack("<4I", 16 + len(text), 1, 7, 16) + text
    return struct.pack("<2HI16xI16xI", 0xFFFE, 0, 2, 1, 48) + section


def _columns(tables: list[str], column: Callable[[Sequence[str]], bytes]) -> bytes:
    """Return the table of columns: table, number, name and type; each number has its highest bit turned over."""
    names = {"Property": ("Property", "Value"), "LaunchCondition": ("Condition", "Description")}
    count = len(tables)
    numbers = struct.pack("<2H", 0x8001, 0x8002) * count
    types = struct.pack("<2H", 0xAD48, 0x8F00) * count  # a key of 72 characters, then a text of any length
    return (
        column([table for table in tables for _ in range(2)])
        + numbers
        + column([name for table in tables for name in names[table]])
        + types
    )


def add_package(
    writer: CompoundWriter,
    properties: Mapping[str, str] = PROPERTIES,
    conditions: tuple[str, ...] = (),
    *,
    template: str = "x64;1033",
    code_page: int = 1252,
    encoding: str = "cp1252",
    wide: bool = False,
    before: tuple[bytes, ...] = (),
) -> None:
    """Add the streams of a package. `wide` numbers strings with three bytes; `before` are strings nothing refers to."""
    pool, strings = [struct.pack("<I", code_page | (0x8000_0000 if wide else 0))], list(before)

    def number(text: str) -> int:
        if (raw := text.encode(encoding)) not in strings:
            strings.append(raw)
        return strings.index(raw) + 1

    def column(texts: Sequence[str]) -> bytes:
        return b"".join(number(text).to_bytes(3 if wide else 2, "little") for text in texts)

    tables = {"Property": column([*properties]) + column([*properties.values()])}
    if conditions:
        tables["LaunchCondition"] = column(conditions) + column(["No."] * len(conditions))
    tables |= {"_Tables": column([*tables]), "_Columns": _columns([*tables], column)}
    for text in strings:
        long = struct.pack("<2HI", 0, 1, len(text))
        pool.append(long if len(text) > 0xFFFF else struct.pack("<2H", len(text), 1 if text else 0))
    for name, content in tables.items():
        writer.add(table_name(name), content)
    writer.add(table_name("_StringPool"), b"".join(pool))
    writer.add(table_name("_StringData"), b"".join(strings))
    writer.add("\x05SummaryInformation", summary(template))
