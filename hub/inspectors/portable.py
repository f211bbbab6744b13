"""Windows program files (PE): headers, sections, one resource and the signature, each read bounded.

Nothing is trusted but what lies inside the file: every offset is checked against the file or against its section, every
count and length against a limit. The resource tree has three levels and is walked exactly three deep, so that one which
points back at itself ends. Source: "PE Format" of Microsoft's documentation.
"""

import struct
from dataclasses import dataclass
from typing import BinaryIO, Final, Self

from protocol.errors import BadFileError
from protocol.limits import KIB, MIB

SECTIONS: Final = 96  # what the loader of Windows takes
RESOURCE_ENTRIES: Final = 4096  # in one directory
RESOURCE_BYTES: Final = 64 * KIB
SIGNATURE_BYTES: Final = 4 * MIB

RESOURCES: Final = 2
SECURITY: Final = 4
RUNTIME: Final = 14  # the header of the .NET runtime
_DIRECTORIES: Final = 16

_PE32: Final = 0x10B
_PE32_PLUS: Final = 0x20B
_SUBDIRECTORY: Final = 0x8000_0000
_FIRST_NAME: Final = 1
_LANGUAGES: Final = (0, 0x409)  # neutral, then English of the USA: what Windows falls back to
_PKCS_SIGNED_DATA: Final = 2

_COFF = struct.Struct("<4sHHIIIHH")  # signature, machine, sections, -, -, -, bytes of the optional header, flags
_OPTIONAL = struct.Struct("<H46x2H16xH")  # magic, version of the subsystem, subsystem
_SECTION = struct.Struct("<8x4I16x")  # bytes in memory, address, bytes in the file, offset
_CERTIFICATE = struct.Struct("<IHH")  # bytes, revision, type


@dataclass(frozen=True, slots=True)
class Section:
    """Where a section's bytes lie: its address in memory, its offset in the file, its bytes there."""

    address: int
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Program:
    """The headers of a PE file, and the file. `directories` are (address, bytes) by their number."""

    file: BinaryIO
    size: int
    machine: int
    flags: int
    subsystem: int
    subsystem_version: tuple[int, int]
    is_wide: bool
    directories: tuple[tuple[int, int], ...]
    sections: tuple[Section, ...]

    @classmethod
    def open(cls, file: BinaryIO, size: int) -> Self:
        """Read the headers of the program in `file`, which is `size` bytes long. Raises BadFileError."""
        (start,) = struct.unpack("<I", _read(file, size, 0x3C, 4))
        if start + _COFF.size > size or _read(file, size, start, 4) != b"PE\0\0":
            raise BadFileError("it is a program for DOS or 16-bit Windows, or it is cut off.")
        _, machine, count, _, _, _, optional_bytes, flags = _COFF.unpack(_read(file, size, start, _COFF.size))
        optional = _read(file, size, start + _COFF.size, optional_bytes)
        if len(optional) < _OPTIONAL.size:
            raise BadFileError("its header is damaged.")
        magic, major, minor, subsystem = _OPTIONAL.unpack_from(optional)
        if magic not in (_PE32, _PE32_PLUS) or count > SECTIONS:
            raise BadFileError("its header is damaged.")
        return cls(
            file=file,
            size=size,
            machine=machine,
            flags=flags,
            subsystem=subsystem,
            subsystem_version=(major, minor),
            is_wide=magic == _PE32_PLUS,
            directories=_directories(optional, 112 if magic == _PE32_PLUS else 96),
            sections=_sections(_read(file, size, start + _COFF.size + optional_bytes, count * _SECTION.size), size),
        )

    @property
    def end(self) -> int:
        """Where the last section ends in the file."""
        return max((section.offset + section.size for section in self.sections), default=0)

    def directory(self, number: int) -> tuple[int, int]:
        """Return (address, bytes) of a data directory, (0, 0) for one that is not there."""
        return self.directories[number] if number < len(self.directories) else (0, 0)

    def read(self, address: int, length: int) -> bytes:
        """Return `length` bytes from `address` in memory. Raises BadFileError where no section holds them."""
        for section in self.sections:
            if section.address <= address and address + length <= section.address + section.size:
                return _read(self.file, self.size, section.offset + address - section.address, length)
        raise BadFileError("its header points to bytes that are not there.")

    def resource(self, kind: int) -> bytes:
        """Return the resource of the numbered `kind`, b"" when there is none. Raises BadFileError."""
        root, _ = self.directory(RESOURCES)
        if not root:
            return b""
        names = self._choose(root, 0, (kind,), anything=False)
        if names is None:
            return b""
        languages = self._choose(root, names, (_FIRST_NAME,), anything=True)
        entry = None if languages is None else self._choose(root, languages, _LANGUAGES, anything=True, last=True)
        if entry is None:
            raise BadFileError("its resources are damaged.")
        address, length = struct.unpack("<2I", self.read(root + entry, 8))
        if length > RESOURCE_BYTES:
            raise BadFileError(f"a resource claims {length} bytes, and at most {RESOURCE_BYTES} are read.")
        return self.read(address, length)

    def _choose(self, root: int, at: int, wanted: tuple[int, ...], *, anything: bool, last: bool = False) -> int | None:
        """Return where the entry of the first id of `wanted` leads in the directory `at`, or any entry's."""
        named, numbered = struct.unpack("<12x2H", self.read(root + at, 16))
        if named + numbered > RESOURCE_ENTRIES:
            raise BadFileError(f"its resources have more than {RESOURCE_ENTRIES} entries in one place.")
        entries = list(struct.iter_unpack("<2I", self.read(root + at + 16, 8 * (named + numbered))))
        known = dict(reversed(entries))  # of entries with one id the first counts
        found = next((known[number] for number in wanted if number in known), None)
        if found is None and anything and entries:
            found = entries[0][1]
        if found is not None and bool(found & _SUBDIRECTORY) == last:
            raise BadFileError("its resources are damaged.")
        return None if found is None else found & ~_SUBDIRECTORY

    def signature(self) -> bytes:
        """Return the PKCS#7 message a signed program carries, b"" for an unsigned one. Raises BadFileError."""
        offset, length = self.directory(SECURITY)  # the one directory that gives an offset in the file
        if not length:
            return b""
        size, _, kind = _CERTIFICATE.unpack(_read(self.file, self.size, offset, _CERTIFICATE.size))
        if not _CERTIFICATE.size <= size <= length or kind != _PKCS_SIGNED_DATA:
            raise BadFileError("its signature is damaged.")
        if size > SIGNATURE_BYTES:
            raise BadFileError(f"its signature has {size} bytes, and at most {SIGNATURE_BYTES} are read.")
        _require_inside(offset, length, self.size)
        return _read(self.file, self.size, offset + _CERTIFICATE.size, size - _CERTIFICATE.size)


def _directories(optional: bytes, start: int) -> tuple[tuple[int, int], ...]:
    if len(optional) < start:
        raise BadFileError("its header is damaged.")
    (claimed,) = struct.unpack_from("<I", optional, start - 4)
    count = min(claimed, _DIRECTORIES, (len(optional) - start) // 8)
    found = struct.iter_unpack("<2I", optional[start : start + 8 * count])
    return tuple((address, length) for address, length in found)


def _sections(table: bytes, size: int) -> tuple[Section, ...]:
    """Return the sections that have bytes in the file, all of which has to be there."""
    found = []
    for _, address, length, offset in _SECTION.iter_unpack(table):
        if length and offset:
            _require_inside(offset, length, size)
            found.append(Section(address, offset, length))
    return tuple(found)


def _require_inside(offset: int, length: int, size: int) -> None:
    if offset + length > size:
        raise BadFileError(f"it is cut off: it should have {offset + length} bytes at least and has {size}.")


def _read(file: BinaryIO, size: int, offset: int, length: int) -> bytes:
    _require_inside(offset, length, size)
    file.seek(offset)
    return file.read(length)
