"""Reading members of a foreign zip archive, each step bounded: what the APK and the wheel inspector stand on.

`zipfile` lists the archive; this file decides beforehand whether the directory is small and sound enough to be listed,
and unpacks single members itself, so that neither a declared nor an actual size can run away. Source: PKWARE APPNOTE
6.3.10, sections 4.3.7 (local header), 4.3.12 (central directory) and 4.3.16 (end record).
"""

import struct
import zipfile
import zlib
from dataclasses import dataclass
from typing import BinaryIO, Final, Self

from protocol.errors import BadFileError
from protocol.limits import KIB, MIB

DIRECTORY_BYTES: Final = 8 * MIB
DIRECTORY_ENTRIES: Final = 65_535  # what the end record can count without zip64
LARGEST_COMMENT_BYTES: Final = 64 * KIB - 1

LOCAL_SIGNATURE: Final = b"PK\x03\x04"
_ENTRY_SIGNATURE: Final = b"PK\x01\x02"
_END_SIGNATURE: Final = b"PK\x05\x06"
_ZIP64_LOCATOR_SIGNATURE: Final = b"PK\x06\x07"
_END = struct.Struct("<4s4H2LH")
_LOCAL = struct.Struct("<4s5H3L2H")
_ZIP64_LOCATOR_BYTES: Final = 20
_ENCRYPTED: Final = 0x1


@dataclass(frozen=True, slots=True)
class Archive:
    """An open zip archive: its file, where its central directory begins (bytes), and its members by name."""

    file: BinaryIO
    directory_offset: int
    members: dict[str, zipfile.ZipInfo]

    @classmethod
    def open(cls, file: BinaryIO, size: int) -> Self:
        """List the archive in `file`, which is `size` bytes long. Raises BadFileError."""
        offset, length = _directory(file, size)
        file.seek(offset)
        if file.read(length).count(_ENTRY_SIGNATURE) > DIRECTORY_ENTRIES:
            raise BadFileError(f"the zip directory lists more than {DIRECTORY_ENTRIES} files.")
        infos = zipfile.ZipFile(file).infolist()
        members = {info.filename: info for info in infos}
        if len(members) != len(infos):
            # Readers differ in which one they take, which is how a checked file and an installed file come apart.
            raise BadFileError("the zip directory lists one name twice.", hint="Build the installer again.")
        return cls(file, offset, members)

    def read(self, name: str, limit: int) -> bytes:
        """Return member `name`, at most `limit` bytes. Raises BadFileError when it is missing, larger or damaged."""
        info = self.members.get(name)
        if info is None:
            raise BadFileError(f"{name} is missing from the archive.")
        if max(info.file_size, info.compress_size) > limit:
            raise BadFileError(f"{name} claims {info.file_size} bytes, and at most {limit} are read.")
        content = _unpack(self._stored_bytes(info), info, limit)
        if len(content) != info.file_size or zlib.crc32(content) != info.CRC:
            raise BadFileError(f"{name} does not match the size and checksum the zip directory gives.")
        return content

    def _stored_bytes(self, info: zipfile.ZipInfo) -> bytes:
        self.file.seek(info.header_offset)
        signature, *_, name_bytes, extra_bytes = _LOCAL.unpack(self.file.read(_LOCAL.size))
        start = info.header_offset + _LOCAL.size + name_bytes + extra_bytes
        if signature != LOCAL_SIGNATURE or start + info.compress_size > self.directory_offset:
            raise BadFileError(f"{info.filename} lies outside the archive.")
        self.file.seek(start)
        return self.file.read(info.compress_size)


def _directory(file: BinaryIO, size: int) -> tuple[int, int]:
    """Return offset and length in bytes of the central directory, which has to end where the end record begins."""
    tail_bytes = min(size, _END.size + LARGEST_COMMENT_BYTES + _ZIP64_LOCATOR_BYTES)
    file.seek(size - tail_bytes)
    tail = file.read(tail_bytes)
    at = tail.rfind(_END_SIGNATURE)
    if at < 0 or at + _END.size > len(tail):
        raise BadFileError("the zip archive has no end record, so the file is cut off.")
    _, disk, directory_disk, here, total, length, offset, comment_bytes = _END.unpack_from(tail, at)
    if at + _END.size + comment_bytes != len(tail):
        raise BadFileError("the zip archive does not end where its end record says.")
    if tail[max(0, at - _ZIP64_LOCATOR_BYTES) : at].startswith(_ZIP64_LOCATOR_SIGNATURE) or (disk, directory_disk) != (
        0,
        0,
    ):
        raise BadFileError("the archive is a zip64 or split archive, which no installer read here is.")
    if here != total or offset + length != size - tail_bytes + at:
        raise BadFileError("the zip directory is not where the end record says.")
    if length > DIRECTORY_BYTES:
        raise BadFileError(f"the zip directory has {length} bytes, and at most {DIRECTORY_BYTES} are read.")
    return offset, length


def _unpack(stored: bytes, info: zipfile.ZipInfo, limit: int) -> bytes:
    if info.flag_bits & _ENCRYPTED:
        raise BadFileError(f"{info.filename} is encrypted.")
    if info.compress_type == zipfile.ZIP_STORED:
        return stored
    if info.compress_type != zipfile.ZIP_DEFLATED:
        raise BadFileError(f"{info.filename} is packed by zip method {info.compress_type}; only deflate is read.")
    try:
        content = zlib.decompressobj(-zlib.MAX_WBITS).decompress(stored, limit + 1)
    except zlib.error as error:
        raise BadFileError(f"{info.filename} cannot be unpacked.") from error
    if len(content) > limit:
        raise BadFileError(f"{info.filename} unpacks to more than {limit} bytes.")
    return content
