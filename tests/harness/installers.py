"""Real installers of any size, made by hand: what a hub's inspectors, dpkg and pip would take.

Formats: deb(5); the binary distribution format of wheels (PEP 427); Android's binary XML (`ResourceTypes.h`).
"""

import base64
import hashlib
import io
import random
import struct
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from protocol.device import InstallerKind

Content = Literal["random", "text"]
EPOCH = (1980, 1, 1, 0, 0, 0)  # the first moment a zip can hold


def make_installer(
    folder: Path,
    kind: InstallerKind,
    name: str = "hello",
    version: str = "1.0",
    *,
    size: int = 100_000,
    seed: int = 1,
    content: Content = "random",
    tags: str = "py3-none-any",
    architecture: str = "all",
    features: Sequence[str] = (),
) -> Path:
    """Write an installer of `name` with a payload of `size` bytes into `folder` and return its path.

    `content` "random" cannot be compressed, "text" can; the same arguments give the same bytes. An apk's package is
    `org.example.NAME`; `features` are what it requires.
    """
    payload = _payload(size, seed, content)
    match kind:
        case "deb":
            path, data = folder / f"{name}_{version}_{architecture}.deb", _deb(name, version, architecture, payload)
        case "wheel":
            path, data = folder / f"{name}-{version}-{tags}.whl", _wheel(name, version, tags, payload)
        case "apk":
            mark = "".join(f"-{feature.rpartition('.')[2]}" for feature in features)
            path = folder / f"{name}{mark}-{version}.apk"
            data = _apk(f"org.example.{name}", version, features, payload)
    path.write_bytes(data)
    return path


def _payload(size: int, seed: int, content: Content) -> bytes:
    chance = random.Random(seed)
    if content == "random":
        return chance.randbytes(size)
    line = f"{chance.random()} the quick brown fox jumps over the lazy dog\n".encode()
    return (line * (size // len(line) + 1))[:size]


# --- deb ----------------------------------------------------------------------------------------------------------


def _deb(name: str, version: str, architecture: str, payload: bytes) -> bytes:
    control = (
        f"Package: {name}\nVersion: {version}\nArchitecture: {architecture}\nMaintainer: Tests <tests@example.org>\n"
        f"Description: {name} for tests\n"
    ).encode()
    members = (
        ("debian-binary", b"2.0\n"),
        ("control.tar", _tar({"./control": control})),
        ("data.tar", _tar({f"./usr/share/{name}/payload": payload})),
    )
    return b"!<arch>\n" + b"".join(_ar_member(*member) for member in members)


def _ar_member(name: str, body: bytes) -> bytes:
    header = f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(body):<10}`\n".encode()
    return header + body + b"\n" * (len(body) % 2)


def _tar(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
        folders = {str(parent) for file in files for parent in Path(file).parents}
        for folder in sorted(folders):
            info = tarfile.TarInfo("./" if folder == "." else f"./{folder}/")
            info.type, info.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(info)
        for file, body in files.items():
            info = tarfile.TarInfo(file)
            info.size = len(body)
            archive.addfile(info, io.BytesIO(body))
    return buffer.getvalue()


# --- wheel --------------------------------------------------------------------------------------------------------


def _wheel(name: str, version: str, tags: str, payload: bytes) -> bytes:
    info = f"{name}-{version}.dist-info"
    files = {
        f"{name}/__init__.py": f'VERSION = "{version}"\n'.encode(),
        f"{name}/payload": payload,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode(),
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: {tags}\n".encode(),
    }
    record = "".join(f"{file},sha256={_digest(body)},{len(body)}\n" for file, body in files.items())
    return _zip({**files, f"{info}/RECORD": f"{record}{info}/RECORD,,\n".encode()})


def _digest(body: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(body).digest()).rstrip(b"=").decode()


def _zip(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for file, body in files.items():
            archive.writestr(zipfile.ZipInfo(file, EPOCH), body)
    return buffer.getvalue()


# --- apk ----------------------------------------------------------------------------------------------------------

NO_STRING = 0xFFFFFFFF
NAME_ID, MIN_SDK_ID, VERSION_CODE_ID, VERSION_NAME_ID = 0x01010003, 0x0101020C, 0x0101021B, 0x0101021C
TYPE_STRING, TYPE_INTEGER = 0x03, 0x10
Attribute = tuple[str, str | int]


def _apk(package: str, version: str, features: Sequence[str], payload: bytes) -> bytes:
    return _zip({"AndroidManifest.xml": _manifest(package, version, features), "assets/payload": payload})


class _BinaryXml:
    """Start and end tags over one table of strings; the first names in it have resource ids."""

    def __init__(self, resources: dict[str, int]) -> None:
        self._strings = list(resources)
        self._resource_ids = list(resources.values())
        self._body = b""

    def start(self, tag: str, *attributes: Attribute) -> None:
        body = struct.pack("<IIHHHHHH", NO_STRING, self._index(tag), 20, 20, len(attributes), 0, 0, 0)
        for name, value in attributes:
            text = isinstance(value, str)
            data = self._index(value) if isinstance(value, str) else value
            kind = TYPE_STRING if text else TYPE_INTEGER
            raw = data if text else NO_STRING
            body += struct.pack("<IIIHBBI", NO_STRING, self._index(name), raw, 8, 0, kind, data)
        self._body += _chunk(0x0102, struct.pack("<II", 0, NO_STRING), body)

    def end(self, tag: str) -> None:
        body = struct.pack("<II", NO_STRING, self._index(tag))
        self._body += _chunk(0x0103, struct.pack("<II", 0, NO_STRING), body)

    def build(self) -> bytes:
        ids = _chunk(0x0180, b"", struct.pack(f"<{len(self._resource_ids)}I", *self._resource_ids))
        return _chunk(0x0003, b"", self._pool() + ids + self._body)

    def _pool(self) -> bytes:
        texts = [struct.pack("<H", len(text)) + text.encode("utf-16-le") + b"\0\0" for text in self._strings]
        offsets = [sum(map(len, texts[:index])) for index in range(len(texts))]
        data = b"".join(texts)
        data += b"\0" * (-len(data) % 4)
        header = struct.pack("<IIIII", len(texts), 0, 0, 28 + 4 * len(texts), 0)
        return _chunk(0x0001, header, struct.pack(f"<{len(texts)}I", *offsets) + data)

    def _index(self, text: str) -> int:
        if text not in self._strings:
            self._strings.append(text)
        return self._strings.index(text)


def _chunk(kind: int, header: bytes, body: bytes) -> bytes:
    return struct.pack("<HHI", kind, 8 + len(header), 8 + len(header) + len(body)) + header + body


def _manifest(package: str, version: str, features: Sequence[str]) -> bytes:
    xml = _BinaryXml(
        {
            "name": NAME_ID,
            "minSdkVersion": MIN_SDK_ID,
            "versionCode": VERSION_CODE_ID,
            "versionName": VERSION_NAME_ID,
        }
    )
    code = int.from_bytes(hashlib.sha256(version.encode()).digest()[:2])
    xml.start("manifest", ("package", package), ("versionCode", code), ("versionName", version))
    xml.start("uses-sdk", ("minSdkVersion", 24))
    xml.end("uses-sdk")
    for feature in features:
        xml.start("uses-feature", ("name", feature))
        xml.end("uses-feature")
    xml.end("manifest")
    return xml.build()
