"""What is matched: a selector, a candidate, what a device has installed; and what comes out, each a frozen value.

An empty or None field of a selector means "any"; one of a candidate or an installed program means "not known".
"""

from typing import Annotated, TypeAlias

from msgspec import Meta, Struct

from protocol.device import Architecture, FormFactor, Inches, InstallerKind, Name, OsType, Pixels

Bound: TypeAlias = Annotated[str, Meta(max_length=64)]
WheelTag: TypeAlias = Annotated[str, Meta(min_length=1, max_length=255)]


class Selector(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Which devices an installer fits. Everything but `os_types` is optional; empty or None means "any".

    Bounds are inclusive. OS versions compare by their number parts, so a maximum of "12" excludes 12.1 and "12.0" is
    "12"; a maximum of "12.*" takes every version that begins with 12. Models are globs (`*` any characters, `?` one)
    tried on marketing name and model code, case and runs of spaces folded. Resolutions compare as (long side, short
    side), each on its own. A wheel fits where the device's Python takes one of `wheel_tags`.
    """

    os_types: Annotated[tuple[OsType, ...], Meta(min_length=1, max_length=8)]
    os_version_minimum: Bound = ""
    os_version_maximum: Bound = ""
    api_level_minimum: Annotated[int, Meta(ge=1)] | None = None
    api_level_maximum: Annotated[int, Meta(ge=1)] | None = None
    architectures: tuple[Architecture, ...] = ()
    models: tuple[Name, ...] = ()
    models_excluded: tuple[Name, ...] = ()
    form_factors: tuple[FormFactor, ...] = ()
    screen_inches_minimum: Inches | None = None
    screen_inches_maximum: Inches | None = None
    resolution_minimum: tuple[Pixels, Pixels] | None = None
    resolution_maximum: tuple[Pixels, Pixels] | None = None
    density_dpi_minimum: Annotated[int, Meta(ge=1)] | None = None
    density_dpi_maximum: Annotated[int, Meta(ge=1)] | None = None
    features_required: tuple[Name, ...] = ()
    features_forbidden: tuple[Name, ...] = ()
    wheel_tags: tuple[WheelTag, ...] = ()


class Candidate(Struct, frozen=True, kw_only=True):
    """One installer the resolver may choose. `digest` is the object's SHA-256; `size` is in bytes.

    `version` is the release's; `file_version` the header's own; `sortable_version` what the order of its kind compares
    (an APK's versionCode). `signer_digest` is the SHA-256 of the first signing certificate in hex, empty if unsigned.
    """

    digest: bytes
    version: str
    kind: InstallerKind
    size: int
    selector: Selector
    file_version: str = ""
    sortable_version: str = ""
    signer_digest: str = ""
    channel: str = "stable"
    file_name: str = ""


class Installed(Struct, frozen=True, kw_only=True):
    """What a device has of the program already: its own word, and what the catalogue knows of the same file.

    `version` is as the device reports it (the file's own); `release` and all below are empty where the catalogue does
    not know the file.
    """

    version: str
    kind: InstallerKind
    release: str = ""
    sortable_version: str = ""
    signer_digest: str = ""
    architectures: tuple[Architecture, ...] = ()


class Mismatch(Struct, frozen=True, kw_only=True):
    """One field of a selector that a device does not meet, in words: what the installer wants, what the device has."""

    field: str
    wants: str
    has: str


class Rejection(Struct, frozen=True, kw_only=True):
    """A candidate that does not fit, and every field in the way."""

    candidate: Candidate
    mismatches: tuple[Mismatch, ...]


class Forecast(Struct, frozen=True, kw_only=True):
    """What may go wrong with the installer chosen. One that `stops` is not sent; `detail` is one sentence on "it"."""

    code: str
    detail: str
    stops: bool = False
