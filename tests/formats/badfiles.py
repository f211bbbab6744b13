"""Hostile and broken installers, each made for one fault; what the hub has to say of it.

`QUICK` are made in milliseconds and read in every run of the tests; all of them are by `make test-formats`.
"""

import io
import lzma
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from tests.formats.standins import PLIST, appx_manifest

DEMO: Final = Path(__file__).parents[2] / "hub" / "demo" / "installers"
DEB: Final = DEMO / "hello-lockstep_1.0.0-1_all.deb"
APK: Final = DEMO / "hello-lockstep-1.0.0.apk"
WHEEL: Final = DEMO / "hello_lockstep-1.0.0-py3-none-any.whl"
GIB: Final = 1 << 30
HUNDRED_MB: Final = 100 * 1000 * 1000


class BadFile(msgspec.Struct, frozen=True, kw_only=True):
    """`says` is a pattern of the refusal; where it is empty the file has to be read as `kind`."""

    make: Callable[[], bytes]
    file_name: str
    says: str = ""
    kind: str = ""


def members_of(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def a_zip(members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, body in members.items():
            archive.writestr(zipfile.ZipInfo(name), body, method)
    return buffer.getvalue()


def ar(*members: tuple[str, bytes], claimed: int | None = None) -> bytes:
    """An ar archive; the last member claims `claimed` bytes."""
    parts = [b"!<arch>\n"]
    for index, (name, body) in enumerate(members):
        size = len(body) if claimed is None or index + 1 < len(members) else claimed
        parts.append(
            f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{size:<10}`\n".encode() + body + b"\n" * (len(body) % 2)
        )
    return b"".join(parts)


def tar_member(name: str, size: int, body: bytes = b"") -> bytes:
    """One header of a tar that claims `size` bytes, with its checksum right."""
    number = f"{size:011o}\0".encode() if size < 8**11 else b"\x80" + size.to_bytes(11, "big")
    header = bytearray(name.encode().ljust(100, b"\0") + b"0000644\0" + b"0000000\0" * 2 + number + b"00000000000\0")
    header += b" " * 8 + b"0" + b"\0" * 100 + b"ustar\x0000" + b"\0" * 247
    header[148:156] = f"{sum(header):06o}\0 ".encode()
    return bytes(header) + body + b"\0" * (-len(body) % 512)


def deflated_zeros(count: int) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    step = bytes(1 << 20)
    packed = [packer.compress(step) for _ in range(count >> 20)]
    return b"".join(packed) + packer.compress(bytes(count & 0xFFFFF)) + packer.flush()


def zip_entry(
    name: bytes, *, packed: bytes, size: int, method: int, offset: int, packed_size: int | None = None
) -> bytes:
    """One entry of a central directory, whatever it claims; sizes beyond 32 bits go into a zip64 field."""
    length = len(packed) if packed_size is None else packed_size
    extra = struct.pack("<HHQ", 1, 8, size) if size >= 1 << 32 else b""
    shown = min(size, 0xFFFF_FFFF)
    head = struct.pack(
        "<4s6H3L5H2L", b"PK\1\2", 45, 45, 0, method, 0, 33, 0, length, shown, len(name), len(extra), 0, 0, 0, 0, offset
    )
    return head + name + extra


def hand_zip(entries: list[tuple[bytes, bytes, int, int]]) -> bytes:
    """A zip archive of (name, packed, method, claimed size), whose checksums are all 0."""
    body, directory = b"", b""
    for name, packed, method, size in entries:
        shown = min(size, 0xFFFF_FFFF)
        directory += zip_entry(name, packed=packed, size=size, method=method, offset=len(body))
        body += (
            struct.pack("<4s5H3L2H", b"PK\3\4", 45, 0, method, 0, 33, 0, len(packed), shown, len(name), 0)
            + name
            + packed
        )
    return body + directory + zip_end(len(entries), len(directory), len(body))


def zip_end(count: int, length: int, offset: int) -> bytes:
    return struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, count, count, length, offset, 0)


# --- the files ------------------------------------------------------------------------------------------------------


def overlapping() -> bytes:
    """Two names over one and the same content, as bombs of overlapping entries are made."""
    name, packed = b"AndroidManifest.xml", b"x" * 100
    local = (
        struct.pack("<4s5H3L2H", b"PK\3\4", 20, 0, 0, 0, 33, zlib.crc32(packed), 100, 100, len(name), 0) + name + packed
    )
    directory = b"".join(
        zip_entry(one, packed=packed, size=100, method=0, offset=0) for one in (name, b"AndroidManifest.xm1")
    )
    return local + directory + zip_end(2, len(directory), len(local))


def directory_of_many() -> bytes:
    """A directory of a million entries, all of no content."""
    entry = zip_entry(b"a", packed=b"", size=0, method=0, offset=0)
    directory = entry * 150_000
    return b"PK\3\4" + b"\0" * 27 + directory + zip_end(0xFFFF, len(directory), 31)


def with_member(path: Path, name: str, body: bytes = b"x") -> bytes:
    return a_zip(members_of(path) | {name: body})


def without_member(path: Path, name: str) -> bytes:
    return a_zip({one: body for one, body in members_of(path).items() if one != name})


def declared(path: Path, name: str, size: int) -> bytes:
    """An archive whose member `name` claims to unpack to `size` bytes."""
    entries = [(one.encode(), body, 0, len(body)) for one, body in members_of(path).items() if one != name]
    return hand_zip([*entries, (name.encode(), deflated_zeros(1000), 8, size)])


def deb_with_control(tar: bytes, packed: bool = True) -> bytes:
    control = ("control.tar.xz", lzma.compress(tar, preset=0)) if packed else ("control.tar", tar)
    return ar(("debian-binary", b"2.0\n"), control, ("data.tar", b""))


def long_control() -> bytes:
    text = b"Package: hello\nVersion: 1\nArchitecture: all\nDescription: " + b"x" * HUNDRED_MB + b"\n"
    return deb_with_control(tar_member("./control", len(text), text) + bytes(1024))


def rpm_with_store(entries: int, store: int) -> bytes:
    lead = struct.pack(">4sBBHH66sHH16s", b"\xed\xab\xee\xdb", 3, 0, 0, 1, b"hello-1-1", 1, 5, b"")
    return lead + struct.pack(">4s4sII", b"\x8e\xad\xe8\x01", b"", entries, store) + bytes(4096)


def pe_with_resource(size: int) -> bytes:
    """A program one of whose sections claims `size` bytes."""
    dos = b"MZ".ljust(0x3C, b"\0") + struct.pack("<I", 0x40)
    coff = struct.pack("<4sHHIIIHH", b"PE\0\0", 0x8664, 1, 0, 0, 0, 112, 0x0002)
    optional = struct.pack("<H46xHH16xH", 0x20B, 6, 0, 3).ljust(112, b"\0")
    return dos + coff + optional + struct.pack("<8s8I", b".rsrc", size, 0x1000, size, 0x200, 0, 0, 0, 0) + bytes(1024)


def compound_with_sectors(count: int) -> bytes:
    """A compound file that claims `count` sectors of table."""
    header = (
        b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
        + bytes(16)
        + struct.pack("<HHHHH6xIIIIIIIII", 0x3E, 3, 0xFFFE, 9, 6, 0, count, 0, 0, 4096, 0, count, 0, count)
    )
    return header.ljust(512, b"\0") + bytes(4096)


def ipa_with(plist: bytes, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    return a_zip({"Payload/A.app/Info.plist": plist}, method)


XML_PLIST: Final = b'<?xml version="1.0"?><plist version="1.0">%s</plist>'
DEEP: Final = 20_000
LAUGHS: Final = (
    b'<?xml version="1.0"?><!DOCTYPE p [<!ENTITY a "ha">'
    + b"".join(f'<!ENTITY {chr(98 + n)} "{f"&{chr(97 + n)};" * 10}">'.encode() for n in range(12))
    + b"]><Package>&m;</Package>"
)
PLIST_IPA: Final = a_zip({"Payload/Built.app/Info.plist": PLIST.encode()})
MSIX: Final = {"AppxManifest.xml": appx_manifest("x64").encode()}

QUICK: Final[dict[str, BadFile]] = {
    "zip bomb: a manifest of 64 MiB that claims 1000 bytes": BadFile(
        make=lambda: hand_zip([(b"AndroidManifest.xml", deflated_zeros(64 << 20), 8, 1000)]),
        file_name="a.apk",
        says="unpacks to more|does not match the size",
    ),
    "zip bomb: a directory of 150,000 entries": BadFile(
        make=directory_of_many, file_name="a.apk", says="at most|more than|promises"
    ),
    "overlapping zip entries": BadFile(make=overlapping, file_name="a.apk", says="lie over each other"),
    "a path with .. in an apk": BadFile(
        make=lambda: with_member(APK, "../../etc/passwd"), file_name="a.apk", says="lead out of it"
    ),
    "an absolute path in a wheel": BadFile(
        make=lambda: with_member(WHEEL, "/etc/passwd"), file_name=WHEEL.name, says="lead out of it"
    ),
    "a path with a drive in an msix": BadFile(
        make=lambda: a_zip({**MSIX, "C:/Windows/a": b"x"}), file_name="a.msix", says="lead out of it"
    ),
    "10 GB declared by a zip member": BadFile(
        make=lambda: declared(APK, "AndroidManifest.xml", 10 * GIB), file_name="a.apk", says="claims 10737418240 bytes"
    ),
    "10 GB declared by an ar member": BadFile(
        make=lambda: ar(("debian-binary", b"2.0\n"), ("control.tar", b"x" * 100), claimed=9_999_999_999),
        file_name="a.deb",
        says="9999999999 bytes were promised",
    ),
    "10 GB declared by a tar member": BadFile(
        make=lambda: deb_with_control(tar_member("./control", 10 * GIB, b"Package: a\n") + bytes(1024)),
        file_name="a.deb",
        says="control",
    ),
    "4 GB declared by an rpm header": BadFile(
        make=lambda: rpm_with_store(10, 0xFFFF_FFFF), file_name="a.rpm", says="header|store|bytes"
    ),
    "4 billion entries declared by an rpm header": BadFile(
        make=lambda: rpm_with_store(0xFFFF_FFFF, 100), file_name="a.rpm", says="entries"
    ),
    "4 GB declared by a section of a program": BadFile(
        make=lambda: pe_with_resource(0xFFFF_FFF0), file_name="a.exe", says="cut off"
    ),
    "4 billion sectors declared by a compound file": BadFile(
        make=lambda: compound_with_sectors(0xFFFF_FFF0), file_name="a.msi", says="sector|cut off|damaged|table"
    ),
    "a resource table that is missing": BadFile(
        make=lambda: without_member(APK, "resources.arsc"), file_name="a.apk", kind="apk"
    ),
    "a resource table of nothing but ones": BadFile(
        make=lambda: a_zip(members_of(APK) | {"resources.arsc": b"\xff" * 4096}), file_name="a.apk", kind="apk"
    ),
    "a wheel without its METADATA": BadFile(
        make=lambda: without_member(WHEEL, "hello_lockstep-1.0.0.dist-info/METADATA"),
        file_name=WHEEL.name,
        says="METADATA is missing",
    ),
    "a property list nested 20,000 deep": BadFile(
        make=lambda: ipa_with(
            XML_PLIST % (b"<dict><key>a</key>" + b"<array>" * DEEP + b"</array>" * DEEP + b"</dict>")
        ),
        file_name="a.ipa",
        says="gives the bundle identifier",
    ),
    "a billion laughs in a manifest": BadFile(
        make=lambda: a_zip({"AppxManifest.xml": LAUGHS}), file_name="a.msix", says="declares types or entities"
    ),
    "a deb under the name of an apk": BadFile(make=DEB.read_bytes, file_name="a.apk", kind="deb"),
    "an apk under the name of an exe": BadFile(make=APK.read_bytes, file_name="setup.exe", kind="apk"),
    "an apk that is also a DEX file": BadFile(
        make=lambda: b"dex\n035\0" + bytes(104) + APK.read_bytes(), file_name="a.apk", says="no installer format"
    ),
    "an apk with a program before it": BadFile(
        make=lambda: pe_with_resource(512) + APK.read_bytes(), file_name="a.apk", says="does not say what it is called"
    ),
    "an apk that is also a wheel": BadFile(
        make=lambda: a_zip(members_of(APK) | members_of(WHEEL)), file_name=WHEEL.name, says="at once"
    ),
    "an ipa that is also an msix": BadFile(
        make=lambda: a_zip({**MSIX, "Payload/A.app/Info.plist": b"x"}), file_name="a.ipa", says="at once"
    ),
    "a zip archive of nothing to install": BadFile(
        make=lambda: a_zip({"readme": b"x"}), file_name="a.apk", says="no installer"
    ),
}

LARGE: Final[dict[str, BadFile]] = {
    "a manifest of 100 MB in an apk": BadFile(
        make=lambda: a_zip(members_of(APK) | {"AndroidManifest.xml": bytes(HUNDRED_MB)}),
        file_name="a.apk",
        says="claims 100000000 bytes",
    ),
    "a resource table of 100 MB in an apk": BadFile(
        make=lambda: a_zip(members_of(APK) | {"resources.arsc": bytes(HUNDRED_MB)}, zipfile.ZIP_DEFLATED),
        file_name="a.apk",
        kind="apk",
    ),
    "a manifest of 100 MB, packed, in an msix": BadFile(
        make=lambda: a_zip({"AppxManifest.xml": b" " * HUNDRED_MB}, zipfile.ZIP_DEFLATED),
        file_name="a.msix",
        says="claims 100000000 bytes",
    ),
    "a property list of 100 MB": BadFile(
        make=lambda: ipa_with(XML_PLIST % (b"<!-- -->" * (HUNDRED_MB // 8))), file_name="a.ipa", says="claims"
    ),
    "METADATA of 100 MB": BadFile(
        make=lambda: a_zip(
            members_of(WHEEL) | {"hello_lockstep-1.0.0.dist-info/METADATA": b"A: b\n" * (HUNDRED_MB // 5)},
            zipfile.ZIP_DEFLATED,
        ),
        file_name=WHEEL.name,
        says="claims 100000000 bytes",
    ),
    "a control file of 100 MB, packed to kilobytes": BadFile(
        make=long_control, file_name="a.deb", says="unpacks|at most|more than"
    ),
    "a zip bomb of one gibibyte that says so": BadFile(
        make=lambda: hand_zip([(b"AndroidManifest.xml", deflated_zeros(GIB), 8, GIB)]),
        file_name="a.apk",
        says="claims 1073741824 bytes",
    ),
    "a zip bomb of one gibibyte that says it is small": BadFile(
        make=lambda: hand_zip([(b"AndroidManifest.xml", deflated_zeros(GIB), 8, 4 << 20)]),
        file_name="a.apk",
        says="unpacks to more|does not match",
    ),
    "a zip bomb within a set of APKs": BadFile(
        make=lambda: a_zip(
            {
                "toc.pb": b"",
                "universal.apk": a_zip({"AndroidManifest.xml": bytes(HUNDRED_MB)}, zipfile.ZIP_DEFLATED),
            }
        ),
        file_name="a.apks",
        says="claims 100000000 bytes",
    ),
}
