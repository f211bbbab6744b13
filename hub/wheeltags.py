"""Which wheels a device's Python takes: its tags, the most specific first, and the place of a wheel among them.

Pure: nothing is asked of the machine this runs on, so the platforms are listed here and `packaging` combines them. The
tags are those of CPython, built for the first of the device's architectures; for another one, or where the device does
not report its Python, libc or system version, the answer is "unknown".

Sources: PyPA "Platform compatibility tags"; PEP 600 (manylinux_x_y), 656 (musllinux_x_y), 599, 571 and 513 (the older
names); packaging/_manylinux.py for the oldest glibc that each architecture has.
"""

import re
from collections.abc import Iterator
from functools import lru_cache
from itertools import product
from math import prod
from typing import Final, Literal, TypeAlias

from packaging.tags import compatible_tags, cpython_tags, mac_platforms

from protocol.device import Architecture, DeviceInfo, OsType

# Where a wheel stands: the place of its best tag (0 is the most specific), None where the device does not take it.
Place: TypeAlias = int | Literal["unknown"] | None

ANY_PYTHON: Final = "py3-none-any"
PLACE_OF_ANY: Final = 1_000_000  # behind every tag that says more

_NUMBERS: Final = re.compile(r"([0-9]{1,3})(?:\.([0-9]{1,3}))?")
_LINUX_NAMES: Final[dict[Architecture, str]] = {"x86": "i686", "arm64": "aarch64", "armv7": "armv7l"}
_WINDOWS_NAMES: Final[dict[Architecture, str]] = {"x86_64": "win_amd64", "x86": "win32", "arm64": "win_arm64"}
_MACOS_ARCHITECTURES: Final = ("x86_64", "arm64")
_OLD_NAMES: Final = {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}
_OLDEST_GLIBC: Final = 17
_OLDEST_GLIBC_OF_X86: Final = 5
# Upper ends of what is listed, for a device that says nonsense; where nothing is known, all up to them may be.
_NEWEST_GLIBC: Final = 60
_NEWEST_MUSL: Final = 5
_NEWEST_PYTHON: Final = 40
_NEWEST_MACOS: Final = 40
_TAGS: Final = 4_096


def wheel_place(device: DeviceInfo, tags: tuple[str, ...]) -> Place:
    """Return where a wheel with these tags stands for the device; a tag may be a compressed set. Never raises."""
    own = _expanded(tags)
    python = _numbers(device.python_version)
    if python is None or python[0] != 3:
        return PLACE_OF_ANY if ANY_PYTHON in own else "unknown"
    certain, possible = _tables(
        min(python[1], _NEWEST_PYTHON), device.os_type, device.os_version, device.libc, device.architectures
    )
    places = [certain[tag] for tag in own if tag in certain]
    if places:
        return min(places)
    return "unknown" if any(tag in possible for tag in own) else None


@lru_cache(maxsize=4_096)
def _expanded(tags: tuple[str, ...]) -> frozenset[str]:
    """Return the single tags in `tags`; what is no tag, or a set of thousands, stands for none."""
    parted = (tuple(part.split(".") for part in tag.lower().split("-")) for tag in tags)
    return frozenset(
        "-".join(single)
        for parts in parted
        if len(parts) == 3 and prod(map(len, parts)) <= _TAGS
        for single in product(*parts)
    )


@lru_cache(maxsize=256)
def _tables(
    minor: int, os_type: OsType, os_version: str, libc: str, architectures: tuple[Architecture, ...]
) -> tuple[dict[str, int], frozenset[str]]:
    """Return each tag that surely fits with its place, and the tags that may fit."""
    certain = [name for one in architectures[:1] for name in _platforms(os_type, os_version, libc, one, surely=True)]
    possible = [name for one in architectures for name in _platforms(os_type, os_version, libc, one, surely=False)]
    places: dict[str, int] = {}
    for tag in _tags(minor, certain):
        places.setdefault(tag, len(places))
    return places, frozenset(_tags(minor, possible))


def _tags(minor: int, platforms: list[str]) -> Iterator[str]:
    """Yield the tags of CPython 3.`minor`. An empty list would have `packaging` look at this machine."""
    abi = f"cp3{minor}m" if minor < 8 else f"cp3{minor}"  # PEP 3149's flag for pymalloc went with 3.8
    listed = platforms or ["any"]
    for tag in cpython_tags((3, minor), [abi], listed):
        yield str(tag)
    for tag in compatible_tags((3, minor), f"cp3{minor}", listed):
        yield str(tag)


def _platforms(os_type: OsType, os_version: str, libc: str, architecture: Architecture, *, surely: bool) -> list[str]:
    """Return the platform tags of a system; where it is not known which, those that surely fit or all that may."""
    if os_type == "linux":
        name = _LINUX_NAMES.get(architecture, architecture)
        return [f"linux_{name}", *_libc_platforms(libc, name, surely=surely)]
    if os_type == "windows":
        return [_WINDOWS_NAMES[architecture]] if architecture in _WINDOWS_NAMES else []
    if os_type == "macos" and architecture in _MACOS_ARCHITECTURES:
        version = _numbers(os_version)
        if version is None:
            return [] if surely else list(mac_platforms((_NEWEST_MACOS, 0), architecture))
        return list(mac_platforms((min(version[0], _NEWEST_MACOS), min(version[1], 16)), architecture))
    return []


def _libc_platforms(libc: str, name: str, *, surely: bool) -> Iterator[str]:
    family, _, text = libc.partition(" ")
    version = _numbers(text)
    if version is None or family not in ("glibc", "musl"):
        if not surely:
            yield from _glibc_platforms(_NEWEST_GLIBC, name)
            yield from (f"musllinux_1_{minor}_{name}" for minor in range(_NEWEST_MUSL, -1, -1))
    elif family == "glibc":
        yield from _glibc_platforms(min(version[1], _NEWEST_GLIBC) if version[0] == 2 else 0, name)
    else:
        newest = min(version[1], _NEWEST_MUSL)
        yield from (f"musllinux_{version[0]}_{minor}_{name}" for minor in range(newest, -1, -1))


def _glibc_platforms(newest: int, name: str) -> Iterator[str]:
    oldest = _OLDEST_GLIBC_OF_X86 if name in ("x86_64", "i686") else _OLDEST_GLIBC
    for minor in range(newest, oldest - 1, -1):
        yield f"manylinux_2_{minor}_{name}"
        if minor in _OLD_NAMES:
            yield f"{_OLD_NAMES[minor]}_{name}"


def _numbers(text: str) -> tuple[int, int] | None:
    found = _NUMBERS.match(text)
    return (int(found[1]), int(found[2] or 0)) if found else None
