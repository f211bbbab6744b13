"""Android packages: the compiled manifest of an APK -> facts.

Only what the manifest says outright becomes a constraint: a number kept in the resource table, a feature a device may
lack and a screen the platform would scale to are none. Sources: "App manifest file" and "Filters on Google Play" of the
Android developers' guide. The signer's digest is read, not verified (see `signer`).
"""

import math
import re
from typing import Final, TypeAlias

from hub.inspectors import axml
from hub.inspectors.resources import Table
from hub.inspectors.signer import signer_digest
from hub.inspectors.source import Source
from hub.inspectors.zips import Archive
from hub.matching import Selector
from hub.records import InstallerFacts
from protocol.device import ARCHITECTURE_NAMES, FORM_FACTORS, Architecture, FormFactor
from protocol.errors import BadFileError
from protocol.limits import MIB, NAME_CHARACTERS

MANIFEST: Final = "AndroidManifest.xml"
MANIFEST_BYTES: Final = 4 * MIB
FEATURES: Final = 64

# Resource ids of the attributes read (android.R.attr); they never change once published.
LABEL: Final = 0x01010001
ICON: Final = 0x01010002
NAME: Final = 0x01010003
VALUE: Final = 0x01010024
MIN_SDK: Final = 0x0101020C
VERSION_CODE: Final = 0x0101021B
VERSION_NAME: Final = 0x0101021C
TARGET_SDK: Final = 0x01010270
MAX_SDK: Final = 0x01010271
SMALL_SCREENS: Final = 0x01010284
NORMAL_SCREENS: Final = 0x01010285
LARGE_SCREENS: Final = 0x01010286
REQUIRED: Final = 0x0101028E
XLARGE_SCREENS: Final = 0x010102BF
SCREEN_SIZE: Final = 0x010102CA
SCREEN_DENSITY: Final = 0x010102CB
SMALLEST_WIDTH: Final = 0x01010364
VERSION_CODE_MAJOR: Final = 0x01010576
SPLIT_REQUIRED: Final = 0x01010591
SPLITS_REQUIRED_NAME: Final = "com.android.vending.splits.required"  # the same as meta-data, for Android before 10

# The diagonal in inches every screen of a size class has at least, from the classes' least size in dp (1/160 inch).
SCREEN_CLASSES: Final = (
    (SMALL_SCREENS, 200, 0.0),
    (NORMAL_SCREENS, 300, 3.5),  # 470 x 320 dp
    (LARGE_SCREENS, 400, 5.0),  # 640 x 480 dp
    (XLARGE_SCREENS, 500, 7.5),  # 960 x 720 dp
)
DP_PER_INCH: Final = 160
FORM_FACTOR_FEATURES: Final[dict[str, FormFactor]] = {
    "android.software.leanback": "tv",
    "android.hardware.type.watch": "watch",
    "android.hardware.type.automotive": "car",
}
# An ABI of the first ARM Android devices, which every armv7 device still runs.
ABI_NAMES: Final[dict[str, Architecture]] = {**ARCHITECTURE_NAMES, "armeabi": "armv7"}

Manifest: TypeAlias = tuple[axml.Element, ...]

_PACKAGE = re.compile(r"[A-Za-z][A-Za-z0-9_]*(?:\.[A-Za-z][A-Za-z0-9_]*)+")
_LIBRARY = re.compile(r"lib/([^/]+)/[^/]+\.so")


def recognises(source: Source) -> bool:
    """Whether the file is a zip archive with a manifest at its root."""
    return source.is_zip and MANIFEST in source.archive.members


def read_facts(source: Source) -> InstallerFacts:
    """Return what the manifest and the library folders of an APK say.

    `version` is the version name, or the version code where there is no name. Raises BadFileError for a damaged file, a
    part of a split program, a preview platform and an ABI without a counterpart here.
    """
    if source.archive.is_zip64:
        raise BadFileError("it is a zip64 archive, which Android does not install.", hint="Build the APK again.")
    manifest = read_manifest(source.archive)
    _require_whole(manifest)
    return manifest_facts(source.archive, manifest)


def read_manifest(archive: Archive, limit: int = MANIFEST_BYTES) -> Manifest:
    """Return the elements of a manifest of at most `limit` bytes. Raises BadFileError, also if it names no package."""
    manifest = tuple(axml.elements(archive.read(MANIFEST, limit)))
    package = manifest[0].get("package")
    if manifest[0].name != "manifest" or not isinstance(package, str) or not _PACKAGE.fullmatch(package):
        raise BadFileError("its manifest names no package of two words or more, such as org.example.app.")
    return manifest


def manifest_facts(archive: Archive, manifest: Manifest) -> InstallerFacts:
    """Return what an APK says, whole or the base of a split program. Raises BadFileError."""
    root, table = manifest[0], Table.of(archive)
    package, code = str(root.get("package")), version_code(manifest)
    version = _text(table, root.get(VERSION_NAME)) or str(code & 0xFFFFFFFF)
    return InstallerFacts(
        package_name=package,
        title=_text(table, _of_application(manifest, LABEL)) or package,
        version=version,
        release=version,
        kind="apk",
        selector=_selector(archive, manifest),
        api_level_target=_number(_uses_sdk(manifest, TARGET_SDK)) or None,
        package_version_code=code,
        sortable_version=str(code),
        signer_digest=signer_digest(archive),
        icon=_icon(archive, table, _of_application(manifest, ICON)),
    )


def version_code(manifest: Manifest) -> int:
    """Return the number Android orders builds by, `versionCodeMajor` above `versionCode`, each of 32 bits."""
    major, minor = (_number(manifest[0].get(attribute)) or 0 for attribute in (VERSION_CODE_MAJOR, VERSION_CODE))
    return (major << 32) + minor


def _require_whole(manifest: Manifest) -> None:
    root = manifest[0]
    required = any(
        element.get(SPLIT_REQUIRED) is True
        or (element.name == "meta-data" and element.get(NAME) == SPLITS_REQUIRED_NAME and element.get(VALUE) is True)
        for element in manifest
    )
    if root.get("split") is not None or required:
        raise BadFileError(
            "it is one part of a split program and cannot be installed alone.",
            hint="Publish the whole set, an .apks file as `bundletool build-apks` makes it, or one universal APK from "
            "`bundletool build-apks --mode=universal`.",
        )


def _of_application(manifest: Manifest, attribute: int) -> axml.Value:
    applications = (element for element in manifest if (element.depth, element.name) == (2, "application"))
    return next((element.get(attribute) for element in applications), None)


def _text(table: Table, value: axml.Value) -> str:
    if isinstance(value, axml.Reference):
        return table.text(value.resource_id)
    return value if isinstance(value, str) else ""


def _icon(archive: Archive, table: Table, value: axml.Value) -> str:
    """Return the icon's file in the archive: the densest picture, a drawing in XML where there is no picture."""
    files = table.files(value.resource_id) if isinstance(value, axml.Reference) else [value]
    return next((name for name in files if isinstance(name, str) and name in archive.members), "")


def _selector(archive: Archive, elements: Manifest) -> Selector:
    minimum, maximum = api_levels(elements)
    features = _features(elements)
    densities = _compatible(elements, SCREEN_DENSITY)
    form_factors = {FORM_FACTOR_FEATURES[feature] for feature in features if feature in FORM_FACTOR_FEATURES}
    return Selector(
        os_types=("android",),
        api_level_minimum=minimum,
        api_level_maximum=maximum,
        architectures=architectures(abis(archive)),
        form_factors=tuple(form_factor for form_factor in FORM_FACTORS if form_factor in form_factors),
        screen_inches_minimum=_inches_minimum(elements),
        density_dpi_minimum=min(densities, default=None),
        density_dpi_maximum=max(densities, default=None),
        features_required=features,
    )


def api_levels(elements: Manifest) -> tuple[int | None, int | None]:
    """Return the least and the greatest API level it installs on. Raises BadFileError for a preview platform."""
    minimum = _uses_sdk(elements, MIN_SDK)
    if isinstance(minimum, str) and not minimum.isdecimal():
        raise BadFileError(
            f"it is built for the preview platform {minimum!r}.", hint="Build it for a released API level."
        )
    return _number(minimum) or None, _number(_uses_sdk(elements, MAX_SDK)) or None


def _uses_sdk(elements: Manifest, attribute: int) -> axml.Value:
    found = (element for element in elements if (element.depth, element.name) == (2, "uses-sdk"))
    return next((element.get(attribute) for element in found), None)


def _features(elements: Manifest) -> tuple[str, ...]:
    """Return the names of the features required; a `required` that is not spelt out means true."""
    found = {
        element.get(NAME)
        for element in elements
        if (element.depth, element.name) == (2, "uses-feature") and element.get(REQUIRED) is not False
    }
    names = sorted(name for name in found if isinstance(name, str) and name)
    if len(names) > FEATURES or any(len(name) > NAME_CHARACTERS for name in names):
        raise BadFileError(
            f"it requires more than {FEATURES} features, or one with an overlong name.",
            hint="Declare fewer of them in the manifest, or mark those it can do without `android:required=false`.",
        )
    return tuple(names)


def abis(archive: Archive) -> set[str]:
    """Return the ABIs in whose folders the archive keeps libraries."""
    return {match[1] for match in map(_LIBRARY.fullmatch, archive.members) if match}


def architectures(abis: set[str]) -> tuple[Architecture, ...]:
    """Return the architectures of `abis`, none when there are no native libraries. Raises BadFileError."""
    known = {ABI_NAMES[abi] for abi in abis if abi in ABI_NAMES}
    if abis and not known:
        raise BadFileError(
            f"its libraries are for {', '.join(sorted(abis))[:60]}, which Lockstep does not know.",
            hint="Build it for arm64-v8a, armeabi-v7a, x86 or x86_64 as well.",
        )
    return tuple(sorted(known))


def _inches_minimum(elements: Manifest) -> float | None:
    """Return the diagonal in inches below which the manifest excludes a device, None where it excludes none.

    A larger screen than declared is never excluded: the platform scales up, and only up.
    """
    supports = [element for element in elements if (element.depth, element.name) == (2, "supports-screens")]
    bounds = [_smallest_class(element) for element in supports]
    bounds += [_smallest_width_inches(_number(element.get(SMALLEST_WIDTH)) or 0) for element in supports]
    sizes = _compatible(elements, SCREEN_SIZE)
    bounds += [inches for _, size, inches in SCREEN_CLASSES if size == min(sizes, default=0)]
    return max(bounds, default=0.0) or None


def _smallest_class(supports: axml.Element) -> float:
    kept = (inches for attribute, _, inches in SCREEN_CLASSES if supports.get(attribute) is not False)
    return next(kept, 0.0)  # excluding every class excludes none: the platform then takes the manifest as silent


def _smallest_width_inches(width_dp: int) -> float:
    """Return the diagonal of a 4:3 screen, the squarest sold, whose short side is `width_dp`; tenths, rounded down."""
    return min(1_000.0, math.floor(width_dp * 5 / 3 / DP_PER_INCH * 10) / 10)


def _compatible(elements: Manifest, attribute: int) -> tuple[int, ...]:
    """Return the sizes or densities `compatible-screens` lists, none when one of them is not definite."""
    screens = [element.get(attribute) for element in elements if (element.depth, element.name) == (3, "screen")]
    numbers = [number for value in screens if (number := _number(value))]
    return tuple(numbers) if len(numbers) == len(screens) else ()


def _number(value: axml.Value) -> int | None:
    if isinstance(value, str) and value.isdecimal() and len(value) <= 10:
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None
