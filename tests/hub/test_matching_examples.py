"""The patent's own examples by name, and vendors' tables: which of several real-looking installers each device gets.

Patent CN104092715A names phones and systems in its own spelling ("Iphone5S, IOS7", "Sumsung9100, Android4.01"). Its
installers are described here by sidecars, where a bare OS version is a minimum within its major. "4.01" is 4.0.1: an
alias of this test's device data, which no comparer knows of.
"""

from itertools import permutations
from typing import Any, Final

import msgspec
import pytest
from msgspec import structs

from hub.inspectors.sidecar import parse
from hub.matching import Candidate, Selector, match
from protocol.device import DeviceInfo

OS_VERSIONS_AS_WRITTEN: Final = {"IOS7": ("ios", "7"), "Android4.01": ("android", "4.0.1"), "Android": ("android", "")}


def device_of_patent(model: str, system: str, **more: Any) -> DeviceInfo:
    os_type, os_version = OS_VERSIONS_AS_WRITTEN[system]
    return DeviceInfo(model=model, os_type=os_type, os_version=os_version, **more)  # type: ignore[arg-type]


def beside(name: str, **said: str) -> Candidate:
    """An installer as its sidecar describes it: every line is one of the file's."""
    lines = "\n".join(f'{key} = "{value}"' for key, value in said.items())
    sidecar = parse(lines.encode(), name)
    return Candidate(
        digest=name.encode(),
        version=sidecar.version,
        kind="other",
        size=1_000,
        selector=msgspec.convert(sidecar.given, Selector),
        file_name=name,
    )


IPHONE: Final = device_of_patent("Iphone5S", "IOS7")
SAMSUNG: Final = device_of_patent("Sumsung9100", "Android4.01")
AA_BB: Final = device_of_patent("AA-BB", "Android", screen_inches=5.0, resolution=(800, 480))

WEIXIN: Final = (
    beside("weixin-iphone", version="5.2", os="ios 7", model="Iphone5S"),
    beside("weixin-sumsung", version="5.2", os="android 4.0.1", model="Sumsung9100"),
    beside("weixin-any-android", version="5.2", os="android 4.0.1"),
    beside("weixin-android-2", version="5.2", os="android 2.3"),
)
QQ: Final = (
    beside("qq-ios-7", version="4.6", os="ios 7", model="iPhone 5*"),
    beside("qq-ios-6", version="4.6", os="ios 6", model="iPhone *"),
    beside("qq-ios-7-pad", version="4.7", os="ios 7", model="iPad *"),
    beside("qq-android", version="4.6", os="android"),
)
FOR_SCREENS: Final = (
    beside("large", version="1", os="android", screen_inches="7-13", resolution="1280x720-2560x1600"),
    beside("5-inches", version="1", os="android", screen_inches="4.5-5.5", resolution="800x480"),
    beside("small", version="1", os="android", screen_inches="2-4"),
    beside("other-model", version="2", os="android", model="AA-BC"),
)
# What it is, the device, the installers, which of them it gets ("" for none).
PATENT: Final[list[tuple[str, DeviceInfo, tuple[Candidate, ...], str]]] = [
    ('"weixin" with "Iphone5S, IOS7"', IPHONE, WEIXIN, "weixin-iphone"),
    ('"weixin" with "Sumsung9100, Android4.01"', SAMSUNG, WEIXIN, "weixin-sumsung"),
    ("weixin, a Sumsung9100 with Android 4.4", structs.replace(SAMSUNG, os_version="4.4"), WEIXIN, "weixin-sumsung"),
    ("weixin, a Sumsung9100 with Android 4.0", structs.replace(SAMSUNG, os_version="4.0"), WEIXIN, ""),
    ("weixin, a Sumsung9100 with Android 5", structs.replace(SAMSUNG, os_version="5.0"), WEIXIN, ""),
    ("weixin, an Iphone5S with IOS 7.1.2", structs.replace(IPHONE, os_version="7.1.2"), WEIXIN, "weixin-iphone"),
    ("weixin, an Iphone5S with IOS 8", structs.replace(IPHONE, os_version="8.0"), WEIXIN, ""),
    ("weixin, an Iphone5S with IOS 6.1", structs.replace(IPHONE, os_version="6.1"), WEIXIN, ""),
    ("weixin, another phone", structs.replace(SAMSUNG, model="AA-BB"), WEIXIN, "weixin-any-android"),
    ("weixin, Android 2.3.7", structs.replace(SAMSUNG, os_version="2.3.7"), WEIXIN, "weixin-android-2"),
    ('"QQ" on an iPhone 5S with iOS 7', structs.replace(IPHONE, model="iPhone 5S"), QQ, "qq-ios-7"),
    ("QQ on an iPhone 4 with iOS 6", structs.replace(IPHONE, model="iPhone 4", os_version="6"), QQ, "qq-ios-6"),
    ("QQ on an iPad with iOS 7", structs.replace(IPHONE, model="iPad Air"), QQ, "qq-ios-7-pad"),
    ("model AA-BB, 5 inches, 800*480, Android", AA_BB, FOR_SCREENS, "5-inches"),
    ("AA-BB held upright", structs.replace(AA_BB, resolution=(480, 800)), FOR_SCREENS, "5-inches"),
    ("AA-BB with 10 inches", structs.replace(AA_BB, screen_inches=10.0, resolution=(1280, 800)), FOR_SCREENS, "large"),
    ("AA-BB with 6 inches", structs.replace(AA_BB, screen_inches=6.0), FOR_SCREENS, ""),
]


def name_of(device: DeviceInfo, pool: tuple[Candidate, ...], **more: Any) -> str:
    chosen = match(device, pool, **more).chosen
    return chosen.file_name if chosen else ""


@pytest.mark.parametrize(("device", "pool", "name"), [row[1:] for row in PATENT], ids=[row[0] for row in PATENT])
def test_the_patents_example(device: DeviceInfo, pool: tuple[Candidate, ...], name: str) -> None:
    assert {name_of(device, order) for order in permutations(pool)} == {name}


def test_the_sentence_for_a_device_of_the_patent_that_has_to_wait_for_another_release() -> None:
    newer = structs.replace(IPHONE, os_version="8.0")
    assert match(newer, WEIXIN).sentence == "Nearest: 5.2 for iOS 7.x; this device has iOS 8.0."


# --- vendors' tables ----------------------------------------------------------------------------------------------


def files(os_type: str, kind: str, wanted: dict[str, dict[str, Any]]) -> tuple[Candidate, ...]:
    """One release in several files, each for other devices; all else is equal."""
    return tuple(
        Candidate(
            digest=name.encode(),
            version="1.0",
            kind=kind,  # type: ignore[arg-type]
            size=1_000,
            selector=Selector(os_types=(os_type,), **selector),  # type: ignore[arg-type]
            file_name=name,
        )
        for name, selector in wanted.items()
    )


def android(*architectures: Any, **more: Any) -> DeviceInfo:
    values = {"model": "M", "os_type": "android", "installer_kinds": ("apk",), "architectures": architectures}
    return DeviceInfo(**{**values, **more})


def linux(*architectures: Any, **more: Any) -> DeviceInfo:
    values = {"model": "M", "os_type": "linux", "installer_kinds": ("deb",), "architectures": architectures}
    return DeviceInfo(**{**values, **more})


def windows(version: str, *architectures: Any) -> DeviceInfo:
    return DeviceInfo(model="M", os_type="windows", os_version=version, architectures=architectures)


def mac(version: str, *architectures: Any, **more: Any) -> DeviceInfo:
    return DeviceInfo(model="M", os_type="macos", os_version=version, architectures=architectures, **more)


# developer.android.com/ndk/guides/abis: a device lists its ABIs, the primary one first.
ABIS: Final = files(
    "android",
    "apk",
    {abi: {"architectures": (abi,)} for abi in ("arm64", "armv7", "x86", "x86_64")},
)
UNIVERSAL: Final = files("android", "apk", {"universal": {"architectures": ("arm64", "armv7", "x86", "x86_64")}})
# developer.android.com/training/multiscreen/screendensities
DENSITIES: Final = files(
    "android",
    "apk",
    {
        "ldpi": {"density_dpi_maximum": 159},
        "mdpi": {"density_dpi_minimum": 160, "density_dpi_maximum": 239},
        "hdpi": {"density_dpi_minimum": 240, "density_dpi_maximum": 319},
        "xhdpi": {"density_dpi_minimum": 320, "density_dpi_maximum": 479},
        "xxhdpi": {"density_dpi_minimum": 480, "density_dpi_maximum": 639},
        "xxxhdpi": {"density_dpi_minimum": 640},
        "nodpi": {},
    },
)
DENSITY_OF: Final = {
    120: "ldpi",
    160: "mdpi",
    213: "mdpi",
    240: "hdpi",
    320: "xhdpi",
    420: "xhdpi",
    480: "xxhdpi",
    560: "xxhdpi",
    640: "xxxhdpi",
}
# developer.android.com/google/play/publishing/multiple-apks: of several that fit, the one for the higher level.
LEVELS: Final = files("android", "apk", {f"api{level}": {"api_level_minimum": level} for level in (21, 24, 28, 34)})
LEVEL_OF: Final = {20: "", 21: "api21", 23: "api21", 24: "api24", 33: "api28", 34: "api34", 36: "api34"}
# Debian policy 5.6.8: an architecture, or `all`.
DEBS: Final = files(
    "linux", "deb", {"amd64": {"architectures": ("x86_64",)}, "armhf": {"architectures": ("armv7",)}, "all": {}}
)
# learn.microsoft.com: "Windows 11 release information", "How emulation works on Arm".
WINDOWS_FILES: Final = files(
    "windows",
    "msix",
    {
        "x86": {"architectures": ("x86",), "os_version_minimum": "10.0.17763.0"},
        "x64": {"architectures": ("x86_64",), "os_version_minimum": "10.0.17763.0"},
        "arm64": {"architectures": ("arm64",), "os_version_minimum": "10.0.22000.0"},
    },
)
WINDOWS_X64_ONLY: Final = WINDOWS_FILES[1:2]
# developer.apple.com/documentation/apple-silicon: universal binaries, Rosetta.
MAC_FILES: Final = files(
    "macos",
    "pkg",
    {
        "intel": {"architectures": ("x86_64",), "os_version_minimum": "10.13"},
        "silicon": {"architectures": ("arm64",), "os_version_minimum": "11"},
        "universal": {"architectures": ("arm64", "x86_64"), "os_version_minimum": "10.13"},
    },
)
MAC_INTEL: Final = MAC_FILES[:1]
MAC_UNIVERSAL: Final = MAC_FILES[2:]


def wheels(*names: str) -> tuple[Candidate, ...]:
    """The wheels of one release by the tags of their names, as `hub/inspectors/wheel.py` keeps them."""
    return tuple(
        Candidate(
            digest=name.encode(),
            version="1.0",
            kind="wheel",
            size=1_000,
            selector=Selector(
                os_types=("linux", "macos", "windows"), wheel_tags=() if name == "py3-none-any" else (name,)
            ),
            file_name=name,
        )
        for name in names
    )


# The tags of real releases on PyPI (msgspec 0.22, cryptography 45 with abi3).
WHEELS: Final = wheels(
    "cp311-cp311-manylinux2014_x86_64.manylinux_2_17_x86_64",
    "cp311-cp311-manylinux2014_aarch64.manylinux_2_17_aarch64",
    "cp311-cp311-musllinux_1_2_x86_64",
    "cp311-cp311-macosx_11_0_arm64",
    "cp311-cp311-win_amd64",
    "cp312-cp312-manylinux2014_x86_64.manylinux_2_17_x86_64",
    "cp37-abi3-manylinux_2_34_x86_64",
)
WHEELS_AND_PURE: Final = (*WHEELS, *wheels("py3-none-any"))
PYTHON: Final = {"installer_kinds": ("wheel",), "python_version": "3.11"}
GLIBC: Final = {**PYTHON, "libc": "glibc 2.36"}

# Device, the files of one release, which it gets ("" for none).
VENDORS: Final[list[tuple[DeviceInfo, tuple[Candidate, ...], str]]] = [
    (android("arm64", "armv7"), ABIS, "arm64"),
    (android("armv7"), ABIS, "armv7"),
    (android("armv7", "arm64"), ABIS, "armv7"),  # the device's order counts
    (android("x86_64", "x86", "arm64", "armv7"), ABIS, "x86_64"),
    (android("x86", "armv7"), ABIS, "x86"),
    (android("arm64", "armv7"), ABIS[1:], "armv7"),
    (android("riscv64"), ABIS, ""),
    (android("riscv64"), UNIVERSAL, ""),
    (android("armv7"), UNIVERSAL, "universal"),
    (android("arm64", "armv7"), (*ABIS[1:], *UNIVERSAL), "universal"),  # it holds the preferred one
    *((android("arm64", density_dpi=dpi), DENSITIES, name) for dpi, name in DENSITY_OF.items()),
    (android("arm64"), DENSITIES, "nodpi"),  # of a density nobody knows none is promised
    *((android("arm64", api_level=level), LEVELS, name) for level, name in LEVEL_OF.items()),
    (linux("x86_64"), DEBS, "amd64"),
    (linux("armv7"), DEBS, "armhf"),
    (linux("s390x"), DEBS, "all"),
    (linux("arm64", "armv7"), DEBS, "armhf"),  # a foreign architecture that is set up counts before `all`
    (linux("s390x"), DEBS[:2], ""),
    (linux(), DEBS, "all"),
    (linux(), DEBS[:2], ""),
    (linux("x86_64", installer_kinds=("rpm",)), DEBS, ""),
    (windows("10.0.22631.1", "arm64", "x86_64", "x86"), WINDOWS_FILES, "arm64"),
    (windows("10.0.19045.1", "arm64", "x86"), WINDOWS_FILES, "x86"),
    (windows("10.0.22631.1", "arm64", "x86_64", "x86"), WINDOWS_X64_ONLY, "x64"),
    (windows("10.0.19045.1", "arm64", "x86"), WINDOWS_X64_ONLY, ""),
    (windows("10.0.22631.1", "x86_64", "x86"), WINDOWS_FILES, "x64"),
    (windows("10.0.17763.0", "x86_64", "x86"), WINDOWS_FILES, "x64"),
    (windows("10.0.17134.1", "x86_64", "x86"), WINDOWS_FILES, ""),
    (windows("10.0.9600", "x86"), WINDOWS_FILES, ""),
    (mac("14.5", "arm64", "x86_64"), MAC_FILES, "silicon"),  # a preferred architecture, and the higher minimum
    (mac("14.5", "x86_64"), MAC_FILES, "intel"),
    (mac("14.5", "arm64", "x86_64"), MAC_INTEL, "intel"),  # through Rosetta
    (mac("14.5", "arm64"), MAC_INTEL, ""),
    (mac("14.5", "arm64"), MAC_UNIVERSAL, "universal"),
    (mac("10.14", "x86_64"), MAC_UNIVERSAL, "universal"),
    (mac("10.12.6", "x86_64"), MAC_FILES, ""),
    (linux("x86_64", **GLIBC), WHEELS, WHEELS[0].file_name),
    (linux("arm64", **GLIBC), WHEELS, WHEELS[1].file_name),
    (linux("x86_64", **PYTHON, libc="musl 1.2"), WHEELS, WHEELS[2].file_name),
    (mac("14.5", "arm64", **PYTHON), WHEELS, WHEELS[3].file_name),
    (structs.replace(windows("10.0.19045", "x86_64"), python_version="3.11"), WHEELS, WHEELS[4].file_name),
    (linux("x86_64", **{**GLIBC, "python_version": "3.12"}), WHEELS, WHEELS[5].file_name),
    (linux("x86_64", **{**GLIBC, "python_version": "3.13"}), WHEELS, WHEELS[6].file_name),
    (linux("x86_64", **{**GLIBC, "python_version": "3.13", "libc": "glibc 2.31"}), WHEELS, ""),
    (linux("x86_64", **{**GLIBC, "python_version": "3.13", "libc": "glibc 2.31"}), WHEELS_AND_PURE, "py3-none-any"),
    (linux("riscv64", **GLIBC), WHEELS, ""),
    (linux("riscv64", **GLIBC), WHEELS_AND_PURE, "py3-none-any"),
    (linux("x86_64", **GLIBC), WHEELS_AND_PURE, WHEELS[0].file_name),
    (linux("x86_64", installer_kinds=("wheel",)), WHEELS_AND_PURE, "py3-none-any"),  # of no other it is sure
]


@pytest.mark.parametrize(("device", "pool", "name"), VENDORS)
def test_a_device_gets_the_file_its_vendors_table_names(
    device: DeviceInfo, pool: tuple[Candidate, ...], name: str
) -> None:
    assert name_of(device, pool) == name_of(device, pool[::-1]) == name


def test_a_device_of_unknown_python_is_refused_no_wheel() -> None:
    device = linux("x86_64", installer_kinds=("wheel",))
    for wheel in WHEELS:
        assert match(device, (wheel,)).unknown == ("wheel_tags",)
        assert "The device does not report its Python" in match(device, (wheel,)).sentence
