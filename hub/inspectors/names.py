"""Files that are recognised and have no header reader: what to call them, and the sidecar that serves them.

Each is known by its first bytes, its last ones or its members, never by its file's name. Sources: AppImage
specification (magic of type 1 and 2); `flatpak build-bundle`, whose superblock begins with the key "flatpak"; the xar
archive format of macOS packages; the Android App Bundle format (BundleConfig.pb); Apple UDIF (the "koly" trailer);
SquashFS 4.0; POSIX.1-2017 pax (ustar); the magic numbers of gzip, bzip2, xz and zstd.
"""

from collections.abc import Callable
from typing import Final, Literal, NamedTuple

from hub.inspectors.sidecar import SUFFIX, example
from hub.inspectors.source import Source
from protocol.device import InstallerKind
from protocol.errors import BadFileError

_DISK_IMAGE_TRAILER_BYTES: Final = 512


class Known(NamedTuple):
    """One format: its words, the kind its files are published as, the system its sample sidecar names."""

    words: str
    kind: InstallerKind
    os: str
    recognises: Callable[[Source], bool]


def kind_of(source: Source) -> InstallerKind | Literal[""]:
    """Return the kind of a file without a header reader, "" when its content is not known here either."""
    found = _find(source)
    return found.kind if found else ""


def refusal(source: Source) -> BadFileError:
    """Return the refusal of a file that needs a sidecar; its hint is a complete one. The border adds the name."""
    found = _find(source)
    if found is None:
        what = "a zip archive but no installer" if source.is_zip else "of no installer format known here"
        fault, os = f"it is {what}, and nothing in it says what it installs.", "linux"
    else:
        fault, os = f"it is {found.words}, whose header is not read here.", found.os
    hint = f"Say what it is in a file {source.name}{SUFFIX} beside it, for instance:\n{example(source.name, os)}"
    return BadFileError(fault, hint=hint)


def _find(source: Source) -> Known | None:
    return next((known for known in KNOWN if known.recognises(source)), None)


def _is_app_bundle(source: Source) -> bool:
    return source.is_zip and "BundleConfig.pb" in source.archive.members


def _is_xapk(source: Source) -> bool:
    """Whether a manifest.json lies beside APKs: what some stores call an XAPK."""
    if not source.is_zip:
        return False
    members = source.archive.members
    return "manifest.json" in members and any(name.endswith(".apk") for name in members)


def _is_appimage(source: Source) -> bool:
    return source.start.startswith(b"\x7fELF") and source.start[8:11] in (b"AI\x01", b"AI\x02")


def _is_flatpak(source: Source) -> bool:
    return source.start.startswith(b"flatpak\0")


def _is_macos_package(source: Source) -> bool:
    return source.start.startswith(b"xar!")


def _is_disk_image(source: Source) -> bool:
    """Whether a UDIF image's trailer, which begins with "koly", ends the file."""
    if source.size < _DISK_IMAGE_TRAILER_BYTES:
        return False
    source.file.seek(source.size - _DISK_IMAGE_TRAILER_BYTES)
    return source.file.read(4) == b"koly"


def _is_squashfs(source: Source) -> bool:
    return source.start.startswith(b"hsqs")


def _is_tar(source: Source) -> bool:
    return source.start[257:262] == b"ustar"


def _is_packed(source: Source) -> bool:
    return source.start.startswith((b"\x1f\x8b\x08", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd"))


KNOWN: Final = (
    Known("an Android App Bundle", "aab", "android", _is_app_bundle),
    Known("a set of APKs with a manifest.json (XAPK)", "other", "android", _is_xapk),
    Known("an AppImage", "appimage", "linux", _is_appimage),
    Known("a flatpak bundle", "flatpak", "linux", _is_flatpak),
    Known("a macOS package", "pkg", "macos", _is_macos_package),
    Known("a macOS disk image", "other", "macos", _is_disk_image),
    Known("a SquashFS image, as snaps are", "other", "linux", _is_squashfs),
    Known("a tar archive", "other", "linux", _is_tar),
    Known("a packed archive (a .tar.gz or the like)", "other", "linux", _is_packed),
)
