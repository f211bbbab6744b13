"""RPM packages: lead, signature header and main header -> facts. The payload is not read.

Of the headers only the index and the few values wanted are read. Size and digest that the signature header gives are
compared with the file, so that a package cut off anywhere or changed in its header is refused; the signature itself is
NOT verified, that is the device's part. Which distribution a package is for stands nowhere in it that could be relied
on, so nothing is said of it.

Sources: rpm.org "RPM V4 Package format" and "RPM tags"; Linux Standard Base Core 5.0, chapter 25.2 (the same in older
words); lib/header.c and lib/rpmtag.h of rpm 4.18; RFC 9580 section 5.2 for the signature packet.
"""

import base64
import hashlib
import re
import struct
from dataclasses import dataclass
from typing import BinaryIO, Final, Self

from hub.inspectors.source import Source
from hub.matching import Selector
from hub.records import InstallerFacts
from protocol.device import Architecture
from protocol.errors import BadFileError
from protocol.limits import KIB, MIB, TEXT_CHARACTERS

SIGNATURE: Final = b"\xed\xab\xee\xdb"
INDEX_ENTRIES: Final = 65_535  # rpm's own limit
STORE_BYTES: Final = 64 * MIB  # rpm's own is 256 MiB; the largest headers met have about 20
TEXT_BYTES: Final = 4 * KIB
SIGNATURE_PACKET_BYTES: Final = 16 * KIB

# What rpm calls the processors (rpmrc), as far as Lockstep knows them. `noarch` is any.
ARCHITECTURES: Final[dict[str, tuple[Architecture, ...]]] = {
    "noarch": (),
    "x86_64": ("x86_64",),
    "amd64": ("x86_64",),
    "ia32e": ("x86_64",),
    "i386": ("x86",),
    "i486": ("x86",),
    "i586": ("x86",),
    "i686": ("x86",),
    "athlon": ("x86",),
    "geode": ("x86",),
    "pentium3": ("x86",),
    "pentium4": ("x86",),
    "aarch64": ("arm64",),
    "armv7l": ("armv7",),
    "armv7hl": ("armv7",),
    "armv7hnl": ("armv7",),
    "riscv64": ("riscv64",),
    "ppc64le": ("ppc64le",),
    "s390x": ("s390x",),
    "mips64el": ("mips64",),
}

_LEAD = struct.Struct(">4sBBHH66sHH16s")  # magic, major, minor, type, processor, name, system, signature type
_INTRODUCTION = struct.Struct(">4s4sII")  # magic and version, reserved, index entries, store bytes
_ENTRY = struct.Struct(">IIII")  # tag, type, offset into the store, count
_HEADER_MAGIC: Final = b"\x8e\xad\xe8\x01"
_HEADER_SIGNATURE_TYPE: Final = 5
_SOURCE_PACKAGE: Final = 1

_INT32, _INT64, _STRING, _BINARY, _STRINGS, _TRANSLATED = 4, 5, 6, 7, 8, 9
_NAME_TAG, _VERSION_TAG, _RELEASE_TAG, _EPOCH_TAG, _SUMMARY_TAG = 1000, 1001, 1002, 1003, 1004
_SYSTEM_TAG, _ARCHITECTURE_TAG, _BUILT_FROM_TAG, _SOURCE_TAG = 1021, 1022, 1044, 1106
_MAIN_TAGS: Final = frozenset(
    (
        *(_NAME_TAG, _VERSION_TAG, _RELEASE_TAG, _EPOCH_TAG, _SUMMARY_TAG),
        *(_SYSTEM_TAG, _ARCHITECTURE_TAG, _BUILT_FROM_TAG, _SOURCE_TAG),
    )
)
# Of the signature header, which counts its tags anew. Sizes are of main header and payload together.
_DSA_TAG, _RSA_TAG, _SHA1_TAG, _LONG_SIZE_TAG, _SHA256_TAG, _OPENPGP_TAG = 267, 268, 269, 270, 273, 278
_SIZE_TAG, _PGP_TAG, _GPG_TAG = 1000, 1002, 1005
_DIGESTS: Final = {_SHA256_TAG: "sha256", _SHA1_TAG: "sha1"}
_SIGNATURES: Final = (_RSA_TAG, _DSA_TAG, _PGP_TAG, _GPG_TAG)
_SIGNATURE_TAGS: Final = frozenset((*_DIGESTS, *_SIGNATURES, _OPENPGP_TAG, _LONG_SIZE_TAG, _SIZE_TAG))

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+%{}-]*")
_VERSION = re.compile(r"[A-Za-z0-9._+%{}~^]+")


def recognises(source: Source) -> bool:
    """Whether the file begins with the lead of an RPM package."""
    return source.start.startswith(SIGNATURE)


def read_facts(source: Source) -> InstallerFacts:
    """Return what the headers of an .rpm say.

    `version` is epoch, version and release as `rpm --qf %{EVR}` writes them, `release` the version alone.
    `signer_digest` is no digest here: it is what the signature says of its key, the fingerprint or else the key id in
    hex. Raises BadFileError for a damaged file, a source package, and a system or processor not served here.
    """
    _check_lead(source)
    signatures = _Header.read(source.file, _LEAD.size, source.size, _SIGNATURE_TAGS)
    main = _Header.read(source.file, signatures.end + -signatures.end % 8, source.size, _MAIN_TAGS)
    _check_whole(source, signatures, main)
    if main.has(_SOURCE_TAG) or not main.has(_BUILT_FROM_TAG):
        raise _source_package()
    name, version, release = (main.text(tag) for tag in (_NAME_TAG, _VERSION_TAG, _RELEASE_TAG))
    if not _NAME.fullmatch(name):
        raise BadFileError(f"{name[:60]!r} is not a name of an RPM package.")
    for part in (version, release):
        if not _VERSION.fullmatch(part):
            raise BadFileError(f"{part[:60]!r} is not a version or release of an RPM package.")
    whole = (f"{main.number(_EPOCH_TAG)}:" if main.has(_EPOCH_TAG) else "") + f"{version}-{release}"
    return InstallerFacts(
        package_name=name,
        title=_title(main) or name,
        version=whole,
        release=version,
        kind="rpm",
        signer_digest=_signer(signatures),
        sortable_version=whole,
        selector=Selector(os_types=("linux",), architectures=_architectures(main)),
    )


def _check_lead(source: Source) -> None:
    if source.size < _LEAD.size:
        raise BadFileError("it is cut off inside its lead.")
    _, major, _, kind, _, _, _, signature_type, _ = _LEAD.unpack_from(source.start)
    if major not in (3, 4) or signature_type != _HEADER_SIGNATURE_TYPE:
        raise BadFileError(
            f"it is of the RPM format {major} with signatures of type {signature_type}, and formats 3 and 4 are read.",
            hint="Build it again with a current rpmbuild.",
        )
    if kind == _SOURCE_PACKAGE:
        raise _source_package()


def _source_package() -> BadFileError:
    return BadFileError(
        "it is a source package, which no device installs.",
        hint="Build it with `rpmbuild --rebuild` and publish the .rpm that comes of it.",
    )


def _check_whole(source: Source, signatures: "_Header", main: "_Header") -> None:
    """Compare what the signature header says of the rest: its size, and the digest of the main header."""
    size_tag = next((tag for tag in (_LONG_SIZE_TAG, _SIZE_TAG) if signatures.has(tag)), None)
    there = source.size - main.start
    if size_tag is not None and (promised := signatures.number(size_tag)) != there:
        raise BadFileError(f"{promised} bytes were promised after its signature, and {there} are there.")
    for tag, name in _DIGESTS.items():
        if signatures.has(tag) and signatures.text(tag).lower() != main.digest(name):
            raise BadFileError(f"its header does not match its {name.upper()}.")


def _title(main: "_Header") -> str:
    text = main.text(_SUMMARY_TAG) if main.has(_SUMMARY_TAG) else ""
    return " ".join(text.split())[:TEXT_CHARACTERS]


def _architectures(main: "_Header") -> tuple[Architecture, ...]:
    system, name = main.text(_SYSTEM_TAG).lower(), main.text(_ARCHITECTURE_TAG)
    if system != "linux":
        raise BadFileError(f"it is built for the system {system[:60]!r}, and RPM packages are served on Linux.")
    if name not in ARCHITECTURES:
        raise BadFileError(
            f"it is built for the architecture {name[:60]!r}, which Lockstep does not know.",
            hint=f"Known are: {', '.join(ARCHITECTURES)}.",
        )
    return ARCHITECTURES[name]


# --- header structures ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Header:
    """One header structure: where it and its store begin and end (bytes), and the entries asked for, by tag."""

    file: BinaryIO
    start: int
    store: int
    end: int
    entries: dict[int, tuple[int, int, int]]  # type, offset, count

    @classmethod
    def read(cls, file: BinaryIO, start: int, size: int, wanted: frozenset[int]) -> Self:
        file.seek(start)
        introduction = file.read(_INTRODUCTION.size)
        if len(introduction) < _INTRODUCTION.size:
            raise BadFileError("it is cut off before its header.")
        magic, _, count, store_bytes = _INTRODUCTION.unpack(introduction)
        if magic != _HEADER_MAGIC:
            raise BadFileError("a header of it does not begin as one.")
        if count > INDEX_ENTRIES or store_bytes > STORE_BYTES:
            raise BadFileError(f"a header of it claims {count} entries and {store_bytes} bytes, more than is read.")
        store = start + _INTRODUCTION.size + count * _ENTRY.size
        if store + store_bytes > size:
            raise BadFileError("it is cut off inside its header.")
        entries = _entries(file.read(count * _ENTRY.size), store_bytes, wanted)
        return cls(file, start, store, store + store_bytes, entries)

    def has(self, tag: int) -> bool:
        return tag in self.entries

    def number(self, tag: int) -> int:
        kind, offset, _ = self._entry(tag, _INT32, _INT64)
        width = 4 if kind == _INT32 else 8
        return int.from_bytes(self._bytes(offset, width), "big")

    def text(self, tag: int) -> str:
        """Return the string, of a list the first, which is the untranslated one."""
        _, offset, _ = self._entry(tag, _STRING, _STRINGS, _TRANSLATED)
        text, end, _ = self._bytes(offset, min(TEXT_BYTES, self.end - self.store - offset)).partition(b"\0")
        if not end:
            raise BadFileError(f"the text of its tag {tag} does not end within {TEXT_BYTES} bytes.")
        return text.decode(errors="replace")

    def binary(self, tag: int) -> bytes:
        _, offset, count = self._entry(tag, _BINARY)
        if count > SIGNATURE_PACKET_BYTES:
            raise BadFileError(f"its signature claims {count} bytes.")
        return self._bytes(offset, count)

    def digest(self, name: str) -> str:
        """Return the digest of the whole structure in hex, read piece by piece."""
        digest = hashlib.new(name, usedforsecurity=False)
        self.file.seek(self.start)
        for at in range(self.start, self.end, MIB):
            digest.update(self.file.read(min(MIB, self.end - at)))
        return digest.hexdigest()

    def _entry(self, tag: int, *kinds: int) -> tuple[int, int, int]:
        if tag not in self.entries:
            raise BadFileError(f"its header lacks the tag {tag}.")
        if self.entries[tag][0] not in kinds:
            raise BadFileError(f"its tag {tag} is of another type than it has to be.")
        return self.entries[tag]

    def _bytes(self, offset: int, count: int) -> bytes:
        if offset + count > self.end - self.store:
            raise BadFileError("a value of it lies outside its header.")
        self.file.seek(self.store + offset)
        return self.file.read(count)


def _entries(index: bytes, store_bytes: int, wanted: frozenset[int]) -> dict[int, tuple[int, int, int]]:
    entries: dict[int, tuple[int, int, int]] = {}
    for tag, kind, offset, count in _ENTRY.iter_unpack(index):
        if tag not in wanted:
            continue
        if tag in entries:
            raise BadFileError(f"its header gives the tag {tag} twice.")
        if offset >= store_bytes or count < 1:
            raise BadFileError("a value of it lies outside its header.")
        entries[tag] = (kind, offset, count)
    return entries


# --- who signed -----------------------------------------------------------------------------------------------------

_KEY_ID, _FINGERPRINT = 16, 33  # types of subpackets


def _signer(signatures: _Header) -> str:
    """Return fingerprint or key id of the first signature's key in hex, "" for an unsigned package."""
    packets = [signatures.binary(tag) for tag in _SIGNATURES if signatures.has(tag)]
    if not packets and signatures.has(_OPENPGP_TAG):  # RPM 6 keeps them in base64
        packets = [base64.b64decode(signatures.text(_OPENPGP_TAG))]
    if not packets:
        return ""
    try:
        return _issuer(packets[0])
    except (struct.error, IndexError) as error:
        raise BadFileError("its signature is damaged.") from error


def _issuer(packet: bytes) -> str:
    """Read the issuer out of one OpenPGP signature packet of version 3, 4 or 6."""
    body = _signature_body(packet)
    if body[0] not in (3, 4, 6):
        raise BadFileError(f"its signature is of the OpenPGP version {body[0]}, and 3, 4 and 6 are read.")
    issuer = body[7:15] if body[0] == 3 else _issuer_among_subpackets(body)  # after length, type and time
    if len(issuer) not in (8, 20, 32):
        raise BadFileError("its signature does not say which key made it.")
    return issuer.hex()


def _issuer_among_subpackets(body: bytes) -> bytes:
    width = 2 if body[0] == 4 else 4
    hashed, at = _prefixed(body, 4, width)
    unhashed, _ = _prefixed(body, at, width)
    found = {**_issuers(unhashed), **_issuers(hashed)}
    return found.get(_FINGERPRINT, b"")[1:] or found.get(_KEY_ID, b"")


def _signature_body(packet: bytes) -> bytes:
    """Return what follows the packet's header, in the old form of lengths or the new (RFC 9580 section 4.2)."""
    head = packet[0]
    if head & 0xC0 == 0xC0 and head & 0x3F == 2:
        return packet[1 + (1 if packet[1] < 192 else 2 if packet[1] < 255 else 5) :]
    if head & 0xFC == 0x88 and head & 3 < 3:
        return packet[1 + (1 << (head & 3)) :]
    raise BadFileError("its signature is damaged.")


def _issuers(area: bytes) -> dict[int, bytes]:
    """Return the subpackets that name the key by their type; each begins with a length of 1, 2 or 5 bytes."""
    found: dict[int, bytes] = {}
    at = 0
    while at < len(area):
        first = area[at]
        if first < 192:
            length, at = first, at + 1
        elif first < 255:
            length, at = ((first - 192) << 8) + area[at + 1] + 192, at + 2
        else:
            length, at = int.from_bytes(area[at + 1 : at + 5], "big"), at + 5
        if not 1 <= length <= len(area) - at:
            raise BadFileError("its signature is damaged.")
        kind = area[at] & 0x7F  # the highest bit says "critical"
        if kind in (_KEY_ID, _FINGERPRINT):
            found[kind] = area[at + 1 : at + length]
        at += length
    return found


def _prefixed(data: bytes, at: int, width: int) -> tuple[bytes, int]:
    length = int.from_bytes(data[at : at + width], "big")
    if at + width + length > len(data):
        raise BadFileError("its signature is damaged.")
    return data[at + width : at + width + length], at + width + length
