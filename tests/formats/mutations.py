"""Seeded damage: a sound installer -> a file that is cut off, flipped, spliced, or says absurd numbers.

Damage to a packed file mostly ends at a checksum. So the second half of the cases mends what stands around the damage:
the members of a zip archive and the control file of a .deb are damaged inside and packed again, soundly.
"""

import gzip
import io
import lzma
import random
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Sequence
from typing import Final

EXTREMES: Final = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFE, 0xFFFF_FFFF)
EDGE_BYTES: Final = 4096  # where headers and directories lie: at the start and at the end
MEMBER_BYTES: Final = 1 << 20  # of what inspectors read
KIB: Final = 1024  # other members only stand for themselves: small ones do

Mutation = Callable[[random.Random, bytes, Sequence[bytes]], bytes]


def mutate(chance: random.Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """Return damaged `content`; splices take from `others`, sound files of the same format."""
    if chance.random() < 0.5:
        mended = _inside(chance, content, others)
        if mended is not None:
            return mended
    return _damage(chance, content, others)


def _damage(chance: random.Random, content: bytes, others: Sequence[bytes]) -> bytes:
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        content = chance.choice(MUTATIONS)(chance, content, others)
    return content


def _place(chance: random.Random, content: bytes) -> int:
    """Somewhere in the file, more often near its start or its end."""
    size = max(1, len(content))
    near = chance.randrange(min(EDGE_BYTES, size))
    return chance.choice((near, near, size - 1 - near, chance.randrange(size)))


def flip_bits(chance: random.Random, content: bytes, others: Sequence[bytes]) -> bytes:
    changed = bytearray(content)
    for _ in range(chance.choice((1, 1, 2, 8, 64))):
        if changed:
            changed[_place(chance, content)] ^= 1 << chance.randrange(8)
    return bytes(changed)


def cut_off(chance: random.Random, content: bytes, others: Sequence[bytes]) -> bytes:
    return content[: _place(chance, content)]


def cut_out(chance: random.Random, content: bytes, others: Sequence[bytes]) -> bytes:
    at = _place(chance, content)
    return content[:at] + content[at + chance.choice((1, 4, 64, 1024)) :]


def repeat(chance: random.Random, content: bytes, others: Sequence[bytes]) -> bytes:
    at, length = _place(chance, content), chance.choice((1, 8, 64, 1024, 16_384))
    return content[:at] + content[at : at + length] * chance.choice((2, 2, 16)) + content[at + length :]


def splice(chance: random.Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """The start of this one and the end of another, as a transfer that mixed two files up."""
    return content[: _place(chance, content)] + (other := chance.choice(others))[_place(chance, other) :]


def overwrite_number(chance: random.Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """An extreme value, or the file's size and next to it, where a length, a count or an offset may stand."""
    at = _place(chance, content) & ~3 if chance.random() < 0.7 else _place(chance, content)
    value = chance.choice((*EXTREMES, len(content), len(content) - 1, len(content) + 1, at))
    form = chance.choice(["<H", ">H", "<I", ">I", "<Q", ">Q", "B"])
    packed = struct.pack(form, value & ((1 << 8 * struct.calcsize(form)) - 1))
    return content[:at] + packed + content[at + len(packed) :]


def overwrite_digits(chance: random.Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """Another number where one is written in digits, as in ar and tar headers and in texts."""
    places = [at for at in range(min(len(content), EDGE_BYTES)) if chr(content[at]).isdigit()]
    if not places:
        return content
    at = chance.choice(places)
    return content[:at] + chance.choice((b"9", b"0", b"-", b"99999999999999", b"\xb2", b" ")) + content[at + 1 :]


def fill(chance: random.Random, content: bytes, others: Sequence[bytes]) -> bytes:
    at, length = _place(chance, content), chance.choice((1, 16, 512, 65_536))
    return content[:at] + chance.choice((b"\0", b"\xff", b"A", b"<", b"[")) * length + content[at + length :]


MUTATIONS: Final[tuple[Mutation, ...]] = (
    flip_bits, cut_off, cut_out, repeat, splice, overwrite_number, overwrite_number, overwrite_digits, fill,
)  # fmt: skip


# --- damage inside of a sound container ---------------------------------------------------------------------------


def _inside(chance: random.Random, content: bytes, others: Sequence[bytes]) -> bytes | None:
    if content.startswith(b"PK\3\4"):
        return _inside_zip(chance, content)
    if content.startswith(b"!<arch>\n"):
        return _inside_deb(chance, content)
    return None


def _inside_zip(chance: random.Random, content: bytes) -> bytes | None:
    """Damage one small member, or a member's name, and write the archive anew."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        small = [
            info for info in archive.infolist() if info.file_size <= (MEMBER_BYTES if _tells(info.filename) else KIB)
        ]
        members = [(info.filename, archive.read(info)) for info in small]
    if not members:
        return None
    chosen = chance.randrange(len(members))
    telling = [index for index, (name, _) in enumerate(members) if _tells(name)]
    if telling and chance.random() < 0.8:
        chosen = chance.choice(telling)
    name, body = members[chosen]
    if chance.random() < 0.1:
        name = _damage(chance, name.encode(), [name.encode()]).decode("utf-8", "replace").replace("\0", "") or "x"
    elif body.startswith(b"PK\3\4"):
        body = _inside_zip(chance, body) or body
    else:
        body = _damage(chance, body, [body for _, body in members])
    members[chosen] = (name, body)
    return _zip(members, zipfile.ZIP_STORED if chance.random() < 0.5 else zipfile.ZIP_DEFLATED)


def _tells(name: str) -> bool:
    """Whether a member is one that inspectors read."""
    ends = (".xml", ".plist", "METADATA", "WHEEL", "resources.arsc", ".RSA", ".EC", ".p7x", ".mobileprovision", ".apk")
    return name.endswith(ends) and not name.startswith("res/")


def _zip(members: list[tuple[str, bytes]], method: int) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method, compresslevel=1) as archive:
        for name, body in members:
            archive.writestr(zipfile.ZipInfo(name[:10_000]), body, method)
    return buffer.getvalue()


def _inside_deb(chance: random.Random, content: bytes) -> bytes | None:
    """Damage the control file or the tar around it, pack it again and mend the ar archive."""
    at = 8
    while at + 60 <= len(content):
        name, length = content[at : at + 16].decode("latin-1").strip(" /"), int(content[at + 48 : at + 58])
        end = at + 60 + length
        if name.startswith("control.tar"):
            tar = _unpacked(content[at + 60 : end])
            if tar is None:
                return None
            body = gzip.compress(_damaged_control(chance, tar), 1)
            header = f"{'control.tar.gz':<16}{content[at + 16 : at + 48].decode()}{len(body):<10}`\n".encode()
            return content[:at] + header + body + b"\n" * (len(body) % 2) + content[end + length % 2 :]
        at = end + length % 2
    return None


def _unpacked(packed: bytes) -> bytes | None:
    try:
        if packed.startswith(b"\x1f\x8b"):
            return zlib.decompress(packed, 31)
        if packed.startswith(b"\xfd7zXZ"):
            return lzma.decompress(packed)
    except (zlib.error, lzma.LZMAError):
        return None
    return packed if packed[257:262] == b"ustar" else None


def _damaged_control(chance: random.Random, tar: bytes) -> bytes:
    if chance.random() < 0.5:
        return _damage(chance, tar, [tar])
    buffer = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(tar)) as old, tarfile.open(fileobj=buffer, mode="w") as new:
        for info in old:
            file = old.extractfile(info) if info.isfile() else None
            body = file.read() if file else b""
            if info.name.endswith("control"):
                body = _damage(chance, body, [body])
                info.size = len(body)
            new.addfile(info, io.BytesIO(body))
    return buffer.getvalue()
