"""Debian packages: the control file inside a .deb -> facts.

Sources: deb(5) for the archive, deb-control(5) for the fields, Debian policy 5.6.1 (package names), 5.6.8
(architecture) and 5.6.12 (versions), dpkg-architecture(1), RFC 8878 (zstd). The control archive's tar is walked here
rather than with `tarfile`, which in some of the Python releases supported can be made to loop or to backtrack without
end by a crafted header (CVE-2025-8194, CVE-2024-6232).
"""

import lzma
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO, Final

import zstandard

from hub.inspectors.source import Source
from hub.matching import Selector
from hub.records import InstallerFacts
from protocol.device import Architecture
from protocol.errors import BadFileError
from protocol.limits import MIB, NAME_CHARACTERS

SIGNATURE: Final = b"!<arch>\n"
CONTROL_ARCHIVE_BYTES: Final = 4 * MIB  # as it lies in the file
CONTROL_UNPACKED_BYTES: Final = 16 * MIB
CONTROL_FILE_BYTES: Final = 1 * MIB
DECOMPRESSOR_MEMORY_BYTES: Final = 128 * MIB  # xz -9 needs 65 MiB; the window of zstd --ultra -22 is as large as this
ZSTD_STEP_BYTES: Final = 256  # a block of 4 bytes gives 128 KiB, so one step gives at most 8 MiB
MEMBERS: Final = 16
_TAR_BLOCK_BYTES: Final = 512

# Debian's names of the processors Lockstep knows. `all` is any.
ARCHITECTURES: Final[dict[str, tuple[Architecture, ...]]] = {
    "all": (),
    "amd64": ("x86_64",),
    "i386": ("x86",),
    "arm64": ("arm64",),
    "armhf": ("armv7",),
    "riscv64": ("riscv64",),
    "ppc64el": ("ppc64le",),
    "s390x": ("s390x",),
    "mips64el": ("mips64",),
}

_MEMBER = struct.Struct("16s12s6s6s8s10s2s")  # name, time, owner, group, mode, size, end mark
_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]+")
_VERSION = re.compile(r"(?:[0-9]+:)?(?P<upstream>[0-9A-Za-z][0-9A-Za-z.+~:-]*?)(?:-[0-9A-Za-z.+~]+)?")


def recognises(source: Source) -> bool:
    """Whether the file is an ar archive, as every Debian package is."""
    return source.start.startswith(SIGNATURE)


def read_facts(source: Source) -> InstallerFacts:
    """Return what the control file of a .deb says.

    `version` is the whole version, `release` the upstream part. Raises BadFileError for a damaged file and for an
    architecture without a counterpart here.
    """
    fields = _paragraph(_control_file(_control_tar(source.file, source.size)))
    package, version = _field(fields, "package"), _field(fields, "version")
    if not _PACKAGE.fullmatch(package):
        raise BadFileError(f"{package[:60]!r} is not a Debian package name.")
    match = _VERSION.fullmatch(version[: NAME_CHARACTERS + 1])  # longer ones are refused later, and cost nothing here
    if match is None:
        raise BadFileError(f"{version[:60]!r} is not a Debian version.")
    return InstallerFacts(
        package_name=package,
        title=fields.get("description", "").partition("\n")[0].strip() or package,
        version=version,
        release=match["upstream"],
        kind="deb",
        sortable_version=version,
        selector=Selector(os_types=("linux",), architectures=_architectures(_field(fields, "architecture"))),
    )


def _architectures(name: str) -> tuple[Architecture, ...]:
    if name in ARCHITECTURES:
        return ARCHITECTURES[name]
    known = f"Known are: {', '.join(ARCHITECTURES)}."
    if name == "source" or "any" in name.split("-"):
        raise BadFileError(
            f"its architecture {name[:60]!r} is one for sources; a package has one of its own.", hint=known
        )
    if name.startswith("musl-"):
        raise BadFileError(
            f"it is built for musl ({name[:60]!r}), and Debian packages are served for glibc.", hint=known
        )
    raise BadFileError(f"it is built for the architecture {name[:60]!r}, which Lockstep does not know.", hint=known)


def _control_tar(file: BinaryIO, size: int) -> bytes:
    """Walk every member to the end of the file, so that a file cut anywhere is noticed, and unpack the control one."""
    members = list(_members(file, size))
    names = [name for name, _, _ in members]
    if not names or names[0] != "debian-binary":
        raise BadFileError("it is an ar archive but not a Debian package: its first member is not debian-binary.")
    control = [member for member in members if member[0].startswith("control.tar")]
    if len(control) != 1 or sum(name.startswith("data.tar") for name in names) != 1:
        raise BadFileError("it does not hold one control and one data archive, so it is cut off or damaged.")
    _require_format_two(file, members[0])
    name, offset, length = control[0]
    if length > CONTROL_ARCHIVE_BYTES:
        raise BadFileError(f"its {name} has {length} bytes, and at most {CONTROL_ARCHIVE_BYTES} are read.")
    file.seek(offset)
    return _unpack(name, file.read(length))


def _members(file: BinaryIO, size: int) -> Iterator[tuple[str, int, int]]:
    """Yield name, offset and length in bytes of each ar member, all of them wholly inside the file."""
    at = len(SIGNATURE)
    for _ in range(MEMBERS):
        if at == size:
            return
        file.seek(at)
        header = file.read(_MEMBER.size)
        if len(header) < _MEMBER.size:
            raise BadFileError("it is cut off inside a member header.")
        raw_name, *_, raw_length, mark = _MEMBER.unpack(header)
        if mark != b"`\n" or not raw_length.strip().isdigit():
            raise BadFileError("a member header is damaged.")
        name, length, at = raw_name.decode("ascii", "replace").rstrip(" /"), int(raw_length), at + _MEMBER.size
        if at + length + length % 2 > size:
            raise BadFileError(
                f"its {name} is cut off: {length} bytes were promised and {max(0, size - at)} are there."
            )
        yield name, at, length
        at += length + length % 2
    if at != size:
        raise BadFileError(f"it has more than {MEMBERS} members, and a Debian package has three.")


def _require_format_two(file: BinaryIO, member: tuple[str, int, int]) -> None:
    file.seek(member[1])
    if not file.read(min(member[2], 16)).startswith(b"2."):
        raise BadFileError("it is not of the Debian package format 2.")


def _unpack(name: str, packed: bytes) -> bytes:
    suffix = name.removeprefix("control.tar")
    if suffix not in UNPACKERS:
        raise BadFileError(f"its control archive is packed as {suffix[:20]!r}; deb(5) knows gz, xz and zst.")
    return UNPACKERS[suffix](packed)


def _gunzip(packed: bytes) -> bytes:
    stream = zlib.decompressobj(zlib.MAX_WBITS | 16)
    try:
        return _whole(stream.decompress(packed, CONTROL_UNPACKED_BYTES + 1), stream.eof, stream.unused_data)
    except zlib.error as error:
        raise BadFileError("its control archive cannot be unpacked.") from error


def _unxz(packed: bytes) -> bytes:
    stream = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=DECOMPRESSOR_MEMORY_BYTES)
    try:
        return _whole(stream.decompress(packed, CONTROL_UNPACKED_BYTES + 1), stream.eof, stream.unused_data)
    except lzma.LZMAError as error:
        raise BadFileError("its control archive cannot be unpacked.") from error


def _unzstd(packed: bytes) -> bytes:
    """Feed small pieces: this stream gives all it can at once, and only a small piece keeps that small."""
    stream = zstandard.ZstdDecompressor(max_window_size=DECOMPRESSOR_MEMORY_BYTES).decompressobj()
    content, at = bytearray(), 0
    try:
        for at in range(0, len(packed), ZSTD_STEP_BYTES):
            content += stream.decompress(packed[at : at + ZSTD_STEP_BYTES])
            if stream.eof or len(content) > CONTROL_UNPACKED_BYTES:
                break
    except zstandard.ZstdError as error:
        raise BadFileError("its control archive cannot be unpacked.") from error
    return _whole(bytes(content), stream.eof, stream.unused_data + packed[at + ZSTD_STEP_BYTES :])


def _whole(content: bytes, ended: bool, rest: bytes) -> bytes:
    """Return `content`. Readers differ in what they make of a second stream, so behind the first is only padding."""
    if len(content) > CONTROL_UNPACKED_BYTES:
        raise BadFileError(f"its control archive unpacks to more than {CONTROL_UNPACKED_BYTES} bytes.")
    if not ended:
        raise BadFileError("its control archive is cut off.")
    if rest.strip(b"\0"):
        raise BadFileError("its control archive goes on behind its end.", hint="Build it again with dpkg-deb.")
    return content


UNPACKERS: Final[dict[str, Callable[[bytes], bytes]]] = {
    "": lambda packed: _whole(packed, ended=True, rest=b""),
    ".gz": _gunzip,
    ".xz": _unxz,
    ".zst": _unzstd,
}


def _control_file(tar: bytes) -> str:
    found = [(at, length) for name, at, length in _files(tar) if name == "control"]
    if len(found) != 1:  # of two, the one read here need not be the one that is installed
        raise BadFileError(f"its control archive holds {len(found)} control files where there has to be one.")
    at, length = found[0]
    if length > min(CONTROL_FILE_BYTES, len(tar) - at):
        raise BadFileError(f"its control file claims {length} bytes.")
    return _text(tar[at : at + length])


def _files(tar: bytes) -> Iterator[tuple[str, int, int]]:
    """Yield name, offset and length in bytes of each plain file; a name is what is left of it without "./"."""
    at = 0
    while at + _TAR_BLOCK_BYTES <= len(tar) and tar[at]:
        header = tar[at : at + _TAR_BLOCK_BYTES]
        _require_checksum(header)
        length, at = _octal(header[124:136]), at + _TAR_BLOCK_BYTES
        if header[156:157] in (b"0", b"\0"):
            parts = header[:100].partition(b"\0")[0].decode("utf-8", "replace").split("/")
            yield "/".join(part for part in parts if part not in ("", ".")), at, length
        at += -(-length // _TAR_BLOCK_BYTES) * _TAR_BLOCK_BYTES


def _require_checksum(header: bytes) -> None:
    """The checksum counts its own eight bytes as spaces (POSIX.1-2017, pax, ustar interchange format)."""
    if sum(header[:148]) + 8 * ord(" ") + sum(header[156:]) != _octal(header[148:156]):
        raise BadFileError("its control archive is damaged.")


def _octal(field: bytes) -> int:
    digits = field.strip(b"\0 ")
    if not re.fullmatch(rb"[0-7]+", digits):
        raise BadFileError("its control archive is damaged.")
    return int(digits, 8)


def _text(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise BadFileError("its control file is not UTF-8 text.") from error


def _paragraph(text: str) -> dict[str, str]:
    """Return the fields of the first paragraph by lower-case name; continuation lines are kept, one per line."""
    fields: dict[str, list[str]] = {}
    current: list[str] = []
    for line in text.lstrip("\n").split("\n"):
        if not line.strip():
            break
        if line[0] in " \t":
            current.append(line)
            continue
        name, colon, value = line.partition(":")
        if not colon or name.lower() in fields:
            raise BadFileError(f"its control file is damaged at the line {line[:60]!r}.")
        fields[name.lower()] = current = [value]
    return {name: "\n".join(lines).strip() for name, lines in fields.items()}


def _field(fields: dict[str, str], name: str) -> str:
    if not fields.get(name):
        raise BadFileError(f"its control file has no {name.capitalize()} field.")
    return fields[name]
