"""Archives with one file in them that matters, made by hand or by the formats' own tools."""

import bz2
import gzip
import io
import lzma
import shutil
import subprocess
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

import zstandard


def zipped(name: str, content: bytes, *, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """Return a zip of one file."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        archive.writestr(name, content)
    return buffer.getvalue()


def zipped_all(contents: list[bytes]) -> bytes:
    """Return a zip of files called by their numbers."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for number, content in enumerate(contents):
            archive.writestr(str(number), content)
    return buffer.getvalue()


def tarred(name: str, content: bytes) -> bytes:
    """Return a tar of one file."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        info = tarfile.TarInfo(name)
        info.size = len(content)
        archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


PACKERS: Final[dict[str, Callable[[bytes], bytes]]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".lzma": lambda content: lzma.compress(content, format=lzma.FORMAT_ALONE),
    ".bz2": bz2.compress,
    ".zst": zstandard.compress,
}


def deb(suffix: str, name: str, content: bytes, *, data: bytes = b"") -> bytes:
    """Return a Debian package whose data archive is packed so and holds one file, or is `data`."""
    members = (
        ("debian-binary", b"2.0\n"),
        ("control.tar", tarred("./control", b"Package: x\nVersion: 1\nArchitecture: all\n")),
        (f"data.tar{suffix}", PACKERS[suffix](data or tarred(name, content))),
    )
    return b"!<arch>\n" + b"".join(_ar_member(*member) for member in members)


def _ar_member(name: str, body: bytes) -> bytes:
    header = f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(body):<10}`\n".encode()
    return header + body + b"\n" * (len(body) % 2)


def rpm(folder: Path, content: bytes, compressor: str) -> bytes:
    """Return an RPM with one file in it, built by rpmbuild with this payload compressor (`w9.gzdio` and so on)."""
    assert shutil.which("rpmbuild")
    (folder / "payload").write_bytes(content)
    spec = folder / "x.spec"
    spec.write_text(
        "Name: x\nVersion: 1\nRelease: 1\nSummary: x\nLicense: none\nBuildArch: noarch\n%description\nx\n"
        f"%install\nmkdir -p %{{buildroot}}/opt\ncp {folder}/payload %{{buildroot}}/opt/payload\n%files\n/opt/payload\n"
    )
    defines = (f"_topdir {folder}", f"_binary_payload {compressor}", "_build_id_links none")
    command = ["rpmbuild", "-bb", "--quiet", *(word for define in defines for word in ("--define", define)), str(spec)]
    subprocess.run(command, check=True, capture_output=True)
    (built,) = folder.glob("RPMS/noarch/*.rpm")
    return built.read_bytes()
