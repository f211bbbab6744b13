"""Sets of split APKs as bundletool writes them (.apks): the manifests of the APKs inside -> facts.

Such a file is a zip archive with a table of contents, `toc.pb`, and for every kind of device the APKs to install there:
a base and its splits (one for each ABI, density and language) below `splits/`, whole ones for Android before 5 below
`standalones/`, or a single `universal.apk`. The table only repeats what the APKs' manifests say, so those are read:
each APK where it lies in the set, never unpacked.

Density and language splits restrict nothing. A set that is not made for one device has a split for every density, and
a device without a split of its own takes the nearest one, whose pictures Android scales.

Sources: `ApkSetWriter` and `commands.proto` of bundletool for the layout; "About Android App Bundles" and the `split`
attribute of the Android developers' guide for the names of splits.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from msgspec.structs import replace

from hub.inspectors import apk
from hub.inspectors.source import Source
from hub.inspectors.zips import Archive
from hub.matching import Selector
from hub.records import InstallerFacts
from protocol.errors import BadFileError
from protocol.limits import MIB

TABLE_OF_CONTENTS: Final = "toc.pb"
APKS: Final = 1_024
PACKED_BYTES: Final = 64 * MIB  # of all APKs that are not merely stored in the set; bundletool stores every one
FILES: Final = 100_000  # in all APKs that are read together
MANIFESTS_BYTES: Final = 8 * MIB  # of all APKs that are read together
SPLITS_API_LEVEL: Final = 21  # the first Android that installs split APKs

# What is read is the first of these that the set holds.
_LAYOUTS: Final = (re.compile(r"splits/.+\.apk"), re.compile(r"standalones/.+\.apk"), re.compile(r"universal\.apk"))
_STANDALONE: Final = _LAYOUTS[1]
_CONFIGURATION = re.compile(r"(?:.+\.)?config\.(\w+)")
_ABI_SPLITS: Final = {abi.replace("-", "_"): abi for abi in (*apk.ABI_NAMES, "mips", "mips64")}


@dataclass(frozen=True, slots=True)
class _Apk:
    """One APK of the set: itself, its manifest, and the name of the split it is, empty for a base or a whole APK."""

    archive: Archive
    manifest: apk.Manifest
    split: str


def recognises(source: Source) -> bool:
    """Whether the file is a zip archive with a table of contents and APKs."""
    if not source.is_zip or TABLE_OF_CONTENTS not in source.archive.members:
        return False
    return any(layout.fullmatch(name) for name in source.archive.members for layout in _LAYOUTS)


def read_facts(source: Source) -> InstallerFacts:
    """Return what the base of the set says, with the architectures of all its APKs together.

    Raises BadFileError for a damaged set, for one without a base, and for one of several programs or
    builds.
    """
    members = source.archive.members
    parts = list(_apks(source.archive, _names(members)))
    bases = [part for part in parts if not part.split]
    if not bases:
        raise BadFileError(
            "it holds splits but not the base they belong to.",
            hint="Make the set again with `bundletool build-apks`.",
        )
    _require_one_build(parts)
    facts = apk.manifest_facts(bases[0].archive, bases[0].manifest)
    installs_whole = not any(map(_LAYOUTS[0].fullmatch, members)) or any(map(_STANDALONE.fullmatch, members))
    selector = _selector(facts.selector, bases, parts, 1 if installs_whole else SPLITS_API_LEVEL)
    return replace(facts, kind="apks", selector=selector, icon="")  # the icon is a file of an APK, not of the set


def _names(members: Iterable[str]) -> list[str]:
    found = ([name for name in members if layout.fullmatch(name)] for layout in _LAYOUTS)
    names = sorted(next(filter(None, found)))
    if len(names) > APKS:
        raise BadFileError(f"it holds {len(names)} APKs, and at most {APKS} are read.")
    return names


def _apks(archive: Archive, names: list[str]) -> Iterator[_Apk]:
    """Yield the APKs called `names`, within bounds that hold for all of them together."""
    files, manifests_bytes, packed_bytes = FILES, MANIFESTS_BYTES, PACKED_BYTES
    for name in names:
        try:
            inner = archive.nested(name, packed_bytes)
            manifest = apk.read_manifest(inner, min(manifests_bytes, apk.MANIFEST_BYTES))
        except BadFileError as error:
            raise BadFileError(f"{name} inside it: {error.message}", hint=error.hint) from error
        packed_bytes -= 0 if archive.is_stored(name) else archive.members[name].file_size
        files -= len(inner.members)
        manifests_bytes -= inner.members[apk.MANIFEST].file_size
        if files < 0:
            raise BadFileError(f"its APKs hold more than {FILES} files together.")
        yield _Apk(inner, manifest, str(manifest[0].get("split") or ""))


def _require_one_build(parts: list[_Apk]) -> None:
    builds = {(part.manifest[0].get("package"), apk.version_code(part.manifest)) for part in parts}
    if len(builds) > 1:
        listed = " and ".join(sorted(f"{package} {code}" for package, code in builds)[:2])
        raise BadFileError(f"its APKs are not of one build: {listed[:120]}.", hint="Make the set again.")


def _selector(selector: Selector, bases: list[_Apk], parts: list[_Apk], api_level_least: int) -> Selector:
    """Widen the first base's `selector` to what any of the bases installs on, with the ABIs of all parts."""
    levels = [apk.api_levels(base.manifest) for base in bases]
    maximums = [maximum for _, maximum in levels if maximum is not None]
    minimum = max(api_level_least, min(minimum or 1 for minimum, _ in levels))
    return replace(
        selector,
        api_level_minimum=minimum if minimum > 1 else None,
        api_level_maximum=max(maximums) if len(maximums) == len(levels) else None,
        architectures=apk.architectures(set().union(*map(_abis, parts))),
    )


def _abis(part: _Apk) -> set[str]:
    """Return the ABIs an APK serves: those of its libraries, and the one it is the split for."""
    configuration = _CONFIGURATION.fullmatch(part.split)
    named = _ABI_SPLITS.get(configuration[1]) if configuration else None
    return apk.abis(part.archive) | ({named} if named else set())
