"""Windows Installer packages (.msi): two tables and the summary of their database -> facts.

A package has three names beside its title, and none is both stable and typed: the ProductCode is another in each
version, the package code in each build, and the UpgradeCode, which stays, is a GUID. The program id is therefore made
of the product's name, as for programs (see `products`).

A condition for the installation restricts the OS version only where it is the plain comparison with VersionNT that most
packages have. Sources: "Property Table", "ProductVersion", "Template Summary", "LaunchCondition Table" and "VersionNT"
of Microsoft's Windows Installer documentation. The signer's digest is read, not verified (see `signer`).
"""

import re
from collections.abc import Iterable
from typing import Final
from uuid import UUID

from hub.inspectors import products
from hub.inspectors.compound import SIGNATURE, CompoundFile
from hub.inspectors.msitables import Database, summary
from hub.inspectors.signer import pkcs7_signer_digest
from hub.inspectors.source import Source
from hub.matching import Selector
from hub.records import InstallerFacts
from protocol.device import Architecture
from protocol.errors import BadFileError
from protocol.limits import MIB

SIGNATURE_BYTES: Final = 1 * MIB

PACKAGE: Final = UUID("000c1084-0000-0000-c000-000000000046")
OTHER_DOCUMENTS: Final = {
    UUID(
        "000c1086-0000-0000-c000-000000000046"
    ): "a Windows Installer patch (.msp), which changes an installed program",
    UUID("000c1082-0000-0000-c000-000000000046"): "a Windows Installer transform (.mst), which changes a package",
}
# By the first part of the template, in lower case; a package that names none is for Intel.
PLATFORMS: Final[dict[str, Architecture]] = {
    "": "x86",
    "intel": "x86",
    "x64": "x86_64",
    "amd64": "x86_64",
    "arm": "armv7",
    "arm64": "arm64",
}

_TEMPLATE: Final = 7
_WANTED: Final = ("ProductName", "ProductVersion")
_VERSION: Final = re.compile(r"[0-9]{1,10}(?:\.[0-9]{1,10}){0,3}")
_MINIMUM: Final = re.compile(
    r"\(?(?:Installed OR )?\(?VersionNT(?:64)? ?>= ?v?([0-9]{3,4})\)?(?: OR Installed)?\)?", re.IGNORECASE
)


def recognises(source: Source) -> bool:
    """Whether the file is a compound file, as packages and old Office documents are."""
    return source.start.startswith(SIGNATURE)


def read_facts(source: Source) -> InstallerFacts:
    """Return what the database of a package says.

    `version` and `release` are the ProductVersion, `sortable_version` the same in four parts. Raises BadFileError for a
    damaged or cut off file, for a patch, a transform or a merge module, and for a platform without a counterpart here.
    """
    file = CompoundFile.open(source.file, source.size)
    _require_package(file)
    database = Database.open(file)
    if database.has_table("ModuleSignature"):
        raise BadFileError("it is a merge module (.msm), a part of packages.", hint="Publish the package.")
    found = _properties(database.rows("Property"))
    name, version = products.title(found["ProductName"]), found["ProductVersion"].strip()
    if not name or not _VERSION.fullmatch(version):
        raise BadFileError(f"its product {name[:60]!r} has the version {version[:60]!r}, which is none.")
    signature = file.read("\x05DigitalSignature", SIGNATURE_BYTES)
    return InstallerFacts(
        package_name=products.program_id(name),
        title=name,
        version=version,
        release=version,
        kind="msi",
        selector=Selector(
            os_types=("windows",),
            os_version_minimum=_minimum(condition for condition, _ in database.rows("LaunchCondition")),
            architectures=_architectures(summary(file).get(_TEMPLATE, "")),
        ),
        signer_digest=pkcs7_signer_digest(signature) if signature else "",
        sortable_version=_four_parts(version),
    )


def _require_package(file: CompoundFile) -> None:
    document = UUID(bytes_le=file.class_id)
    if document != PACKAGE:
        what = OTHER_DOCUMENTS.get(document, "a compound file as old Office documents are")
        raise BadFileError(f"it is {what}, not a Windows Installer package.", hint="Publish a whole package (.msi).")


def _properties(rows: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return the properties wanted. One that is there twice could be read as either."""
    found: dict[str, str] = {}
    for name, value in rows:
        if name in found:
            raise BadFileError(f"it gives {name} twice.")
        if name in _WANTED:
            found[name] = value
    for name in _WANTED:
        if name not in found:
            raise BadFileError(f"it gives no {name}, so it is damaged.")
    return found


def _architectures(template: str) -> tuple[Architecture, ...]:
    """Return the architectures of a template such as "x64;1033"."""
    names = template.partition(";")[0].split(",")
    unknown = next((name for name in names if name.strip().lower() not in PLATFORMS), None)
    if unknown is not None:
        raise BadFileError(
            f"it is built for the platform {unknown[:60]!r}, which Lockstep does not know.",
            hint="Known are: Intel, x64, Arm and Arm64.",
        )
    return tuple(dict.fromkeys(PLATFORMS[name.strip().lower()] for name in names))


def _minimum(conditions: Iterable[str]) -> str:
    """Return the OS version the conditions ask for; all of them have to hold. 603 is 6.3, 1000 is 10.0."""
    numbers = [int(match[1]) for match in map(_MINIMUM.fullmatch, conditions) if match]
    return "{}.{}".format(*divmod(max(numbers), 100)) if numbers else ""


def _four_parts(version: str) -> str:
    numbers = [int(part) for part in version.split(".")]
    return ".".join(map(str, (*numbers, 0, 0, 0)[:4]))
