"""iOS packages: the Info.plist of the one app inside an IPA -> facts.

`CFBundleShortVersionString` is the version people know, `CFBundleVersion` counts builds, from 1 again with each version
if one likes; the two in this order are how the App Store orders builds, so that is the sortable version. The signer is
the first certificate of the provisioning profile: read, not verified, and absent from what the App Store delivers.

Sources: "Information Property List" (Core Foundation keys, iOS keys) and "Required device capabilities" of Apple's
documentation; `mach-o/loader.h` and `mach-o/fat.h` of Apple's cctools for the executable's architectures.
"""

import hashlib
import re
import struct
from collections.abc import Iterable
from typing import Any, Final

from hub.inspectors.plist import PLIST_BYTES, read_plist
from hub.inspectors.source import Source
from hub.inspectors.zips import Archive
from hub.matching import Selector
from hub.records import InstallerFacts
from protocol.device import FORM_FACTORS, Architecture, FormFactor
from protocol.errors import BadFileError
from protocol.limits import KIB, MIB, NAME_CHARACTERS

PROFILE_BYTES: Final = 1 * MIB
CAPABILITIES: Final = 64
EXECUTABLE_START_BYTES: Final = 4 * KIB
EXECUTABLE_PARTS: Final = 16

# An app for the iPhone runs on the iPad as well, in a frame; other families are other systems.
FAMILIES: Final[dict[int, tuple[FormFactor, ...]]] = {1: ("phone", "tablet"), 2: ("tablet",)}
# A device of 64 bits has the older capability too.
CAPABILITY_ARCHITECTURES: Final[dict[str, tuple[Architecture, ...]]] = {
    "arm64": ("arm64",),
    "armv7": ("arm64", "armv7"),
}
PROCESSORS: Final[dict[int, Architecture]] = {12: "armv7", 0x0100_000C: "arm64"}  # CPU_TYPE_ARM, CPU_TYPE_ARM64
ARCHITECTURES: Final[tuple[Architecture, ...]] = ("arm64", "armv7")
DEVICE_PLATFORM: Final = "iPhoneOS"

_INFORMATION = re.compile(r"Payload/[^/]+\.app/Info\.plist")
_IDENTIFIER = re.compile(r"[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*")
_NUMBERS = re.compile(r"[0-9]{1,18}(?:\.[0-9]{1,18}){0,8}")
_SHORT_VERSION_PARTS: Final = 3
_FAT_MAGIC, _THIN_MAGICS = 0xCAFEBABE, (0xCEFAEDFE, 0xCFFAEDFE)  # read as big endian
_WORDS = struct.Struct(">II")  # magic, and of a file for several processors the number of its parts
_FAT_PART = struct.Struct(">5I")  # processor, its variant, and where the part lies


def recognises(source: Source) -> bool:
    """Whether the file is a zip archive with an app in its Payload folder."""
    return source.is_zip and any(map(_INFORMATION.fullmatch, source.archive.members))


def read_facts(source: Source) -> InstallerFacts:
    """Return what the Info.plist of the app says.

    Raises BadFileError for a damaged file, for several apps in one, and for an app of a simulator or another system.
    """
    archive = source.archive
    found = [name for name in archive.members if _INFORMATION.fullmatch(name)]
    if len(found) > 1:
        raise BadFileError("it holds more than one app.", hint="Export one app from Xcode and publish that.")
    folder = found[0].rpartition("/")[0]
    info = read_plist(archive.read(found[0], PLIST_BYTES))
    identifier = _text(info, "CFBundleIdentifier")
    if not _IDENTIFIER.fullmatch(identifier):
        raise BadFileError(f"its Info.plist gives the bundle identifier {identifier[:60]!r}, which is none.")
    _require_ios(info)
    version = _text(info, "CFBundleShortVersionString") or _text(info, "CFBundleVersion")
    if not version:
        raise BadFileError("its Info.plist gives no version.")
    return InstallerFacts(
        package_name=identifier,
        title=_text(info, "CFBundleDisplayName") or _text(info, "CFBundleName") or identifier,
        version=version,
        release=version,
        kind="ipa",
        selector=_selector(info, archive, folder),
        sortable_version=_sortable(info),
        signer_digest=_signer_digest(archive, f"{folder}/embedded.mobileprovision"),
        icon=_icon(info, archive, folder),
    )


def _text(info: dict[str, Any], key: str) -> str:
    value = info.get(key)
    return value.strip() if isinstance(value, str) else ""


def _texts(value: object) -> list[str]:
    return [one for one in value if isinstance(one, str)] if isinstance(value, list) else []


def _require_ios(info: dict[str, Any]) -> None:
    platforms = _texts(info.get("CFBundleSupportedPlatforms")) or [_text(info, "DTPlatformName")]
    if any(platform.lower() in (DEVICE_PLATFORM.lower(), "") for platform in platforms):
        return  # packages of before 2010 name no platform
    named = ", ".join(platforms)[:60]
    if any(platform.lower().endswith("simulator") for platform in platforms):
        raise BadFileError(
            f"it is built for a simulator ({named}), and no device can install it.",
            hint="Archive the app for a device: `xcodebuild -destination generic/platform=iOS archive`.",
        )
    raise BadFileError(f"it is built for {named}, and only packages for iOS and iPadOS are read.")


def _sortable(info: dict[str, Any]) -> str:
    """Return short version and build as one row of numbers, or the build alone where the version is no numbers."""
    short, build = _text(info, "CFBundleShortVersionString"), _text(info, "CFBundleVersion")
    if not build or len(build) > NAME_CHARACTERS or not build.isprintable():
        raise BadFileError(f"its Info.plist gives the build {build[:60]!r}, which is no version.")
    parts = short.split(".")
    if not _NUMBERS.fullmatch(short) or not _NUMBERS.fullmatch(build) or len(parts) > _SHORT_VERSION_PARTS:
        return build
    whole = ".".join([*parts, *["0"] * (_SHORT_VERSION_PARTS - len(parts)), build])
    return whole if len(whole) <= NAME_CHARACTERS else build


def _selector(info: dict[str, Any], archive: Archive, folder: str) -> Selector:
    capabilities = _capabilities(info.get("UIRequiredDeviceCapabilities"))
    required = sorted(name for name, wanted in capabilities.items() if wanted and name not in CAPABILITY_ARCHITECTURES)
    forbidden = sorted(name for name, wanted in capabilities.items() if not wanted)
    minimum = _text(info, "MinimumOSVersion")
    return Selector(
        os_types=("ios",),
        os_version_minimum=minimum if _NUMBERS.fullmatch(minimum) and len(minimum) <= NAME_CHARACTERS else "",
        architectures=_architectures(capabilities, _processors(info, archive, folder)),
        form_factors=_form_factors(info.get("UIDeviceFamily", [1])),
        features_required=tuple(required),
        features_forbidden=tuple(forbidden),
    )


def _capabilities(value: object) -> dict[str, bool]:
    """Return what a device must have (True) or must not have (False): Apple allows a list and a dictionary of them."""
    items: Iterable[tuple[object, object]] = value.items() if isinstance(value, dict) else ()
    found = {name: wanted for name, wanted in items if isinstance(name, str) and isinstance(wanted, bool)}
    found |= dict.fromkeys(_texts(value), True)
    if len(found) > CAPABILITIES or any(not 0 < len(name) <= NAME_CHARACTERS for name in found):
        raise BadFileError(f"it names more than {CAPABILITIES} device capabilities, or one with an overlong name.")
    return found


def _form_factors(value: object) -> tuple[FormFactor, ...]:
    listed = value if isinstance(value, list) else [value]
    numbers = [int(one) for one in listed if isinstance(one, int) or (isinstance(one, str) and one in "1234567")]
    found = {form for number in numbers for form in FAMILIES.get(number, ())}
    if not found:
        raise BadFileError(f"it is for the device families {str(listed)[:60]}, and only iPhone and iPad are known.")
    return tuple(form for form in FORM_FACTORS if form in found)


def _architectures(capabilities: dict[str, bool], processors: set[Architecture]) -> tuple[Architecture, ...]:
    """Return what the executable holds code for, less what the capabilities exclude; none where neither tells."""
    allowed = [fitting for name, fitting in CAPABILITY_ARCHITECTURES.items() if capabilities.get(name)]
    kept = set(ARCHITECTURES).intersection(*allowed, *([processors] if processors else []))
    if not kept:
        raise BadFileError("its Info.plist asks for a device its executable holds no code for.")
    return tuple(sorted(kept)) if allowed or processors else ()


def _processors(info: dict[str, Any], archive: Archive, folder: str) -> set[Architecture]:
    """Return the processors the app's executable holds code for, none when there is no such file or it is not one."""
    name = f"{folder}/{_text(info, 'CFBundleExecutable')}"
    if name not in archive.members:
        return set()
    start = archive.read_start(name, EXECUTABLE_START_BYTES)
    if len(start) < EXECUTABLE_START_BYTES:
        return set()  # no program is that small
    magic, count = _WORDS.unpack_from(start)
    if magic == _FAT_MAGIC:
        parts = start[_WORDS.size :][: min(count, EXECUTABLE_PARTS) * _FAT_PART.size]
        types = [part[0] for part in _FAT_PART.iter_unpack(parts)]
    else:
        types = [int.from_bytes(start[4:8], "little")] if magic in _THIN_MAGICS else []
    return {PROCESSORS[processor] for processor in types if processor in PROCESSORS}


def _icon(info: dict[str, Any], archive: Archive, folder: str) -> str:
    """Return the file of the primary icon, the last and finest of those listed."""
    icons = info.get("CFBundleIcons")
    primary = icons.get("CFBundlePrimaryIcon") if isinstance(icons, dict) else None
    listed = _texts(primary.get("CFBundleIconFiles")) if isinstance(primary, dict) else []
    listed = listed or _texts(info.get("CFBundleIconFiles")) or [_text(info, "CFBundleIconFile")]
    names = [f"{folder}/{base}{size}" for base in reversed(listed) for size in ("@3x.png", "@2x.png", ".png", "")]
    return next((name for name in names if name in archive.members), "")


def _signer_digest(archive: Archive, profile: str) -> str:
    """Return the SHA-256 in hex of the profile's first certificate, "" without one.

    A profile is a property list inside a PKCS#7 message, in one piece and in clear; the XML is found by its ends.
    """
    if profile not in archive.members:
        return ""
    message = archive.read(profile, PROFILE_BYTES)
    start, end = message.find(b"<?xml"), message.rfind(b"</plist>")
    if not 0 <= start < end:
        raise BadFileError("its provisioning profile is damaged.")
    certificates = read_plist(message[start : end + len(b"</plist>")]).get("DeveloperCertificates")
    first = certificates[0] if isinstance(certificates, list) and certificates else None
    return hashlib.sha256(first).hexdigest() if isinstance(first, bytes) else ""
