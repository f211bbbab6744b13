"""Windows app packages (.msix, .appx) and bundles of them: AppxManifest.xml -> facts.

A bundle holds the same app for several processors; what is read of it is its own manifest and those of the app packages
in it, each where it lies in the bundle. XML that declares types or entities is refused: no packaging tool writes any,
and they make a small document large. So do namespaces, whose names a parser puts before each element's, so they are not
resolved: what is read here has no prefix in any manifest. The signer is read, not verified.

Sources: "App package manifest" and "Bundle manifest" schemas and "Device families overview" of Microsoft's Windows
documentation; `AppxSignature.p7x` is a PKCS#7 message behind the four letters PKCX.
"""

import re
from collections.abc import Iterator
from typing import Final
from urllib.parse import quote
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from msgspec.structs import replace

from hub.inspectors.signer import pkcs7_signer_digest
from hub.inspectors.source import Source
from hub.inspectors.zips import Archive
from hub.matching import Selector
from hub.records import InstallerFacts
from protocol.device import FORM_FACTORS, Architecture, FormFactor
from protocol.errors import BadFileError
from protocol.limits import KIB, MIB

MANIFEST: Final = "AppxManifest.xml"
BUNDLE_MANIFEST: Final = "AppxMetadata/AppxBundleManifest.xml"
SIGNATURE: Final = "AppxSignature.p7x"
MANIFEST_BYTES: Final = 1 * MIB
BUNDLED_MANIFEST_BYTES: Final = 256 * KIB
BUNDLED_APPS: Final = 8
BUNDLED_FILES: Final = 100_000  # in all packages that are read together
PACKED_APP_BYTES: Final = 8 * MIB  # of a package that is not merely stored in its bundle, as it should be
SIGNATURE_BYTES: Final = 1 * MIB

ARCHITECTURES: Final[dict[str, tuple[Architecture, ...]]] = {
    "neutral": (),
    "x86": ("x86",),
    "x64": ("x86_64",),
    "arm": ("armv7",),
    "arm64": ("arm64",),
}
# What a package may be for: form factors, none for all. A desktop family covers tablets with Windows as well.
FAMILIES: Final[dict[str, tuple[FormFactor, ...]]] = {
    "Windows.Universal": (),
    "Windows.Desktop": (),
    "Windows.Server": (),
    "MSIXCore.Desktop": (),
    "Platform.All": (),
    "Windows.Mobile": ("phone",),
    "Windows.Xbox": ("other",),
    "Windows.Team": ("other",),
    "Windows.Holographic": ("other",),
    "Windows.IoT": ("other",),
}
RESOURCE_PREFIX: Final = "ms-resource:"

_NAME = re.compile(r"[A-Za-z0-9.-]{1,64}")
_PACKAGE_VERSION = re.compile(r"[0-9]{1,5}(?:\.[0-9]{1,5}){3}")
_VERSION = re.compile(r"[0-9]{1,5}(?:\.[0-9]{1,5}){1,3}")
_SCALE = re.compile(r"\.scale-([0-9]{2,3})\.")
_SIGNATURE_MARK: Final = b"PKCX"


def recognises(source: Source) -> bool:
    """Whether the file is a zip archive with the manifest of a package or of a bundle."""
    return source.is_zip and (MANIFEST in source.archive.members or BUNDLE_MANIFEST in source.archive.members)


def read_facts(source: Source) -> InstallerFacts:
    """Return what the manifest of an app package says, or those of a bundle together.

    Raises BadFileError for a damaged file, for a package of mere resources, for a bundle whose packages lie elsewhere,
    and for a device family or processor that is not known.
    """
    archive = source.archive
    facts = _bundle_facts(archive) if BUNDLE_MANIFEST in archive.members else _package_facts(archive, MANIFEST_BYTES)
    return replace(facts, signer_digest=_signer_digest(archive))


def _package_facts(archive: Archive, limit: int) -> InstallerFacts:
    root = _parse(archive.read(MANIFEST, limit), "Package")
    name, version = _identity(root)
    if _text(root, "Properties", "ResourcePackage") == "true":
        raise BadFileError("it holds only resources for an app.", hint="Publish the app's own package or its bundle.")
    title = _text(root, "Properties", "DisplayName")
    return InstallerFacts(
        package_name=name,
        title=title if title and not title.startswith(RESOURCE_PREFIX) else name,
        version=version,
        release=version,
        kind="msix",
        selector=_selector(root),
        icon=_icon(archive, _text(root, "Properties", "Logo")),
    )


def _bundle_facts(archive: Archive) -> InstallerFacts:
    root = _parse(archive.read(BUNDLE_MANIFEST, MANIFEST_BYTES), "Bundle")
    name, version = _identity(root)
    listed = [one for one in root.iterfind("Packages/Package") if one.get("Type") == "application"]
    if not 0 < len(listed) <= BUNDLED_APPS:
        raise BadFileError(f"its bundle manifest lists {len(listed)} apps, and 1 to {BUNDLED_APPS} are read.")
    apps = list(_bundled(archive, [one.get("FileName", "") for one in listed]))
    if any(app.package_name != name for app in apps):
        raise BadFileError("it bundles packages of different apps.", hint="Make the bundle again.")
    selectors = [app.selector for app in apps]
    every = any(not selector.architectures for selector in selectors)
    selector = replace(
        selectors[0],
        os_version_minimum=min((selector.os_version_minimum for selector in selectors), key=_numbers),
        architectures=() if every else tuple(sorted({one for selector in selectors for one in selector.architectures})),
    )
    return replace(apps[0], version=version, release=version, selector=selector, icon="")


def _bundled(archive: Archive, file_names: list[str]) -> Iterator[InstallerFacts]:
    """Yield the facts of the packages, within a bound on the files in all of them together."""
    files = BUNDLED_FILES
    for file_name in file_names:
        member = _member(archive, file_name)
        if not member:
            raise BadFileError(
                f"its package {file_name[:60]!r} is not in the bundle.",
                hint="Publish each package by itself, or make one bundle of them with `makeappx bundle`.",
            )
        try:
            package = archive.nested(member, PACKED_APP_BYTES)
            files -= len(package.members)
            if files < 0:
                raise BadFileError(f"it and those before it hold more than {BUNDLED_FILES} files together.")
            yield _package_facts(package, BUNDLED_MANIFEST_BYTES)
        except BadFileError as error:
            raise BadFileError(f"{member} inside it: {error.message}", hint=error.hint) from error


def _parse(data: bytes, root_name: str) -> Element:
    """Return the root of an XML document without declarations; names keep their prefixes. Raises BadFileError."""
    builder, parser = TreeBuilder(), expat.ParserCreate()
    parser.StartDoctypeDeclHandler = _refuse_declarations
    parser.StartElementHandler, parser.EndElementHandler = builder.start, builder.end
    parser.CharacterDataHandler = builder.data
    try:
        parser.Parse(data, True)
        root = builder.close()
    except (expat.ExpatError, LookupError, ValueError) as error:  # the latter two for an encoding Python lacks
        raise BadFileError("its manifest is damaged.") from error
    if root is None or root.tag != root_name:
        raise BadFileError(f"its manifest is no {root_name}.")
    return root


def _refuse_declarations(*_: object) -> None:
    raise BadFileError("its manifest declares types or entities, which no packaging tool writes.")


def _text(root: Element, *path: str) -> str:
    found = root.findtext("/".join(path))
    return " ".join((found or "").split())


def _identity(root: Element) -> tuple[str, str]:
    """Return name and version, which both kinds of manifest give in the same element."""
    identity = root.find("Identity")
    name, version = ("", "") if identity is None else (identity.get("Name", ""), identity.get("Version", ""))
    if not _NAME.fullmatch(name) or not _PACKAGE_VERSION.fullmatch(version):
        raise BadFileError(f"its manifest gives the name {name[:60]!r} and the version {version[:60]!r}.")
    return name, version


def _selector(root: Element) -> Selector:
    families = {
        family.get("Name", ""): family.get("MinVersion", "")
        for family in root.iterfind("Dependencies/TargetDeviceFamily")
    } or {"Windows.Desktop": _text(root, "Prerequisites", "OSMinVersion")}  # so Windows 8 said it
    known = {name: version for name, version in families.items() if name in FAMILIES}
    if not known:
        raise BadFileError(f"it is for {', '.join(families)[:60]}, and Lockstep knows {', '.join(FAMILIES)}.")
    forms = {form for name in known for form in FAMILIES[name]} if all(map(FAMILIES.__getitem__, known)) else set()
    minimum = min(known.values(), key=_numbers)
    return Selector(
        os_types=("windows",),
        os_version_minimum=minimum if any(_numbers(minimum)) else "",
        architectures=_architectures(root),
        form_factors=tuple(form for form in FORM_FACTORS if form in forms),
    )


def _numbers(version: str) -> tuple[int, ...]:
    """Return the parts of a version to compare by, none of one that is not a version."""
    return tuple(map(int, version.split("."))) if _VERSION.fullmatch(version) else ()


def _architectures(root: Element) -> tuple[Architecture, ...]:
    identity = root.find("Identity")
    name = "neutral" if identity is None else identity.get("ProcessorArchitecture", "neutral")
    if name.lower() not in ARCHITECTURES:
        raise BadFileError(
            f"it is built for the processor {name[:60]!r}, which Lockstep does not know.",
            hint=f"Known are: {', '.join(ARCHITECTURES)}.",
        )
    return ARCHITECTURES[name.lower()]


def _icon(archive: Archive, logo: str) -> str:
    """Return the file of the logo; where there is only one for each scale, the largest scale's."""
    exact = _member(archive, logo)
    stem, _, suffix = _encoded(logo).rpartition(".")
    if exact or not stem:
        return exact
    scaled = [name for name in archive.members if name.startswith(f"{stem}.scale-") and name.endswith(f".{suffix}")]
    scales = {name: int(match[1]) for name in scaled if (match := _SCALE.fullmatch(name[len(stem) : -len(suffix)]))}
    return max(scales, key=lambda name: scales[name], default="")


def _member(archive: Archive, path: str) -> str:
    """Return the archive's name for a path of the manifest, "" when it has none."""
    names = (path.replace("\\", "/"), _encoded(path))
    return next((name for name in names if name in archive.members), "")


def _encoded(path: str) -> str:
    """Return a path of the manifest as the packaging tools name it in the archive."""
    return quote(path.replace("\\", "/"), safe="/")


def _signer_digest(archive: Archive) -> str:
    if SIGNATURE not in archive.members:
        return ""
    signature = archive.read(SIGNATURE, SIGNATURE_BYTES)
    if not signature.startswith(_SIGNATURE_MARK):
        raise BadFileError("its signature is damaged.")
    return pkcs7_signer_digest(signature[len(_SIGNATURE_MARK) :])
