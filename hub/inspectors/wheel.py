"""Python wheels: METADATA, WHEEL and the file name -> facts.

A wheel is the one format here whose file name is part of the format: its tags have to agree with the WHEEL file, or the
file has been renamed or repacked. A wheel for any Python 3 on any platform goes without `wheel_tags`; every other keeps
its compressed tag set, with which the resolver tells Pythons, glibc and musl apart. What METADATA says in
Requires-Python is left to the device's pip.

Sources: PyPA "Binary distribution format", "Platform compatibility tags", "Core metadata"; PEP 503 (normalised names).
"""

import math
import re
from email.message import Message
from email.parser import BytesHeaderParser
from typing import Final

from msgspec import structs
from packaging.tags import Tag, parse_tag
from packaging.utils import canonicalize_name, parse_wheel_filename
from packaging.version import InvalidVersion, Version

from hub.inspectors.source import Source
from hub.inspectors.zips import Archive
from hub.matching import Selector
from hub.records import InstallerFacts
from protocol.device import ARCHITECTURE_NAMES, Architecture, OsType
from protocol.errors import BadFileError
from protocol.limits import IDENTIFIER_CHARACTERS, KIB, MIB

METADATA_BYTES: Final = 1 * MIB  # the header parser takes a second and 60 MiB for one of nothing but headers
WHEEL_BYTES: Final = 64 * KIB
FILE_NAME_CHARACTERS: Final = 255
TAGS: Final = 4_096  # after expanding compressed sets, whose product grows with the cube of the text

_ANYWHERE: Final = Tag("py3", "none", "any")

EVERY_OS: Final[tuple[OsType, ...]] = ("linux", "macos", "windows")
WINDOWS_ARCHITECTURES: Final[dict[str, Architecture]] = {"win32": "x86", "win_amd64": "x86_64", "win_arm64": "arm64"}
MACOS_BUNDLES: Final[dict[str, tuple[Architecture, ...]]] = {
    "universal2": ("arm64", "x86_64"),
    "intel": ("x86", "x86_64"),
}

_DISTRIBUTION_FOLDER = re.compile(r"([^/]+)\.dist-info/WHEEL")
_LINUX = re.compile(r"(?:manylinux(?:1|2010|2014|_\d+_\d+)|musllinux_\d+_\d+|linux)_(\w+)")
_MACOS = re.compile(r"macosx_(\d+)_(\d+)_(\w+)")
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?")
_PYTHON_3 = re.compile(r"[a-z]+3\d*")


def recognises(source: Source) -> bool:
    """Whether the file is a zip archive with the WHEEL file every wheel has."""
    return source.is_zip and any(map(_DISTRIBUTION_FOLDER.fullmatch, source.archive.members))


def read_facts(source: Source) -> InstallerFacts:
    """Return what a wheel says of itself.

    Raises BadFileError for a damaged wheel, for one whose parts contradict each other, and for a platform or Python
    that Lockstep does not serve.
    """
    archive = source.archive
    folder = _folder(archive)
    metadata = _headers(archive.read(f"{folder}.dist-info/METADATA", METADATA_BYTES))
    name, version = _single(metadata, "Name"), _single(metadata, "Version")
    if not _NAME.fullmatch(name):
        raise BadFileError(f"its METADATA gives the name {name[:60]!r}, which is not one for a Python project.")
    tags = _tags_of_file_name(source.name, name, _version(version))
    if tags != _tags_of_wheel_file(_headers(archive.read(f"{folder}.dist-info/WHEEL", WHEEL_BYTES))):
        raise BadFileError(
            "the tags in its file name are not the tags in its WHEEL file.",
            hint="Give the file its first name again, or change its tags with `wheel tags`.",
        )
    return InstallerFacts(
        package_name=canonicalize_name(name),
        title=name,
        version=version,
        release=version,
        kind="wheel",
        sortable_version=str(_version(version)),
        selector=structs.replace(_selector(tags), wheel_tags=_wheel_tags(source.name, tags)),
    )


def _wheel_tags(file_name: str, tags: frozenset[Tag]) -> tuple[str, ...]:
    if _ANYWHERE in tags:
        return ()
    return ("-".join(file_name.removesuffix(".whl").split("-")[-3:]).lower(),)


def _folder(archive: Archive) -> str:
    found = [match[1] for match in map(_DISTRIBUTION_FOLDER.fullmatch, archive.members) if match]
    if len(found) != 1:
        raise BadFileError("it has more than one .dist-info folder.")
    return found[0]


def _headers(raw: bytes) -> Message:
    return BytesHeaderParser().parsebytes(raw)


def _single(headers: Message, name: str) -> str:
    values = headers.get_all(name, [])
    if len(values) != 1:
        raise BadFileError(f"its METADATA gives {len(values)} values for {name} where there has to be one.")
    value = str(values[0]).strip()
    if len(value) > IDENTIFIER_CHARACTERS:
        raise BadFileError(f"its METADATA gives a {name} of more than {IDENTIFIER_CHARACTERS} characters.")
    return value


def _version(text: str) -> Version:
    try:
        return Version(text)
    except InvalidVersion as error:
        raise BadFileError(
            f"its METADATA gives the version {text[:60]!r}, which is not one for a Python project."
        ) from error


def _tags_of_file_name(file_name: str, name: str, version: Version) -> frozenset[Tag]:
    hint = "Publish it under the name it was built with, such as hello-1.0-py3-none-any.whl."
    if len(file_name) > FILE_NAME_CHARACTERS or _product(file_name.removesuffix(".whl").split("-")[-3:]) > TAGS:
        raise BadFileError("its file name is too long for a wheel.", hint=hint)
    try:
        named, named_version, _, tags = parse_wheel_filename(file_name)
    except ValueError as error:
        raise BadFileError(
            "its file name is not one for a wheel, and a wheel's file name is part of it.", hint=hint
        ) from error
    if (named, named_version) != (canonicalize_name(name), version):
        raise BadFileError(f"its file name says {named} {named_version} and its METADATA {name} {version}.", hint=hint)
    return tags


def _tags_of_wheel_file(headers: Message) -> frozenset[Tag]:
    lines = [str(line).strip() for line in headers.get_all("Tag", [])]
    if sum(_product(line.split("-")) for line in lines) > TAGS:
        raise BadFileError(f"its WHEEL file lists more than {TAGS} tags.")
    if not lines or any(line.count("-") != 2 for line in lines):
        raise BadFileError("its WHEEL file lists no tags, or one that is none.")
    try:
        return frozenset(tag for line in lines for tag in parse_tag(line))
    except ValueError as error:
        raise BadFileError("its WHEEL file lists no tags, or one that is none.") from error


def _product(parts: list[str]) -> int:
    return math.prod(part.count(".") + 1 for part in parts)


def _selector(tags: frozenset[Tag]) -> Selector:
    platforms = sorted({tag.platform for tag in tags if _PYTHON_3.fullmatch(tag.interpreter)})
    if not platforms:
        interpreters = ", ".join(sorted({tag.interpreter for tag in tags}))
        raise BadFileError(f"it is built for {interpreters[:60]}, not for Python 3.", hint="Build it with Python 3.")
    if "any" in platforms:
        return Selector(os_types=EVERY_OS)
    fits: dict[OsType, set[Architecture]] = {}
    for os_type, architectures in map(_platform, platforms):
        fits.setdefault(os_type, set()).update(architectures)
    if len({frozenset(architectures) for architectures in fits.values()}) > 1:
        raise BadFileError(
            "it is for several systems, each on other architectures.", hint="Publish one wheel for each."
        )
    return Selector(
        os_types=tuple(os_type for os_type in EVERY_OS if os_type in fits),
        os_version_minimum=_macos_minimum(platforms) if set(fits) == {"macos"} else "",
        architectures=tuple(sorted(set().union(*fits.values()))),
    )


def _platform(tag: str) -> tuple[OsType, tuple[Architecture, ...]]:
    if tag in WINDOWS_ARCHITECTURES:
        return "windows", (WINDOWS_ARCHITECTURES[tag],)
    linux, macos = _LINUX.fullmatch(tag), _MACOS.fullmatch(tag)
    if macos and macos[3] in MACOS_BUNDLES:
        return "macos", MACOS_BUNDLES[macos[3]]
    architecture = macos[3] if macos else linux[1] if linux else ""
    if architecture not in ARCHITECTURE_NAMES:
        raise BadFileError(
            f"it is built for the platform {tag[:60]!r}, which Lockstep does not know.",
            hint="Known are: any, manylinux, musllinux, linux, macosx and win tags of the usual architectures.",
        )
    return "macos" if macos else "linux", (ARCHITECTURE_NAMES[architecture],)


def _macos_minimum(platforms: list[str]) -> str:
    versions = [(int(match[1]), int(match[2])) for match in map(_MACOS.fullmatch, platforms) if match]
    return ".".join(map(str, min(versions)))
