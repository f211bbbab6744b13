"""Matching: device info + candidate installers -> the installer that fits best, or why none does.

Pure: no I/O, no clock. Three steps, in this order:

1. Hard filter, three-valued: an unknown OS type or architecture is a no; any other unknown is allowed, ranked lower and
   reported.
2. Rank: the first difference between two fitting installers decides (see `RULES`).
3. Explain: the rule that decided over the runner-up, or per rejected candidate each failing field, nearest first.
"""

from typing import Annotated, TypeAlias

from msgspec import Meta, Struct

from protocol.device import Architecture, DeviceInfo, FormFactor, Inches, InstallerKind, Name, OsType, Pixels

Bound: TypeAlias = Annotated[str, Meta(max_length=64)]


class Selector(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Which devices an installer fits. Everything but `os_types` is optional; empty or None means "any"."""

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


class Candidate(Struct, frozen=True, kw_only=True):
    """One installer the resolver may choose. `digest` is the object's SHA-256; `size` is in bytes."""

    digest: bytes
    version: str
    kind: InstallerKind
    size: int
    selector: Selector


class Mismatch(Struct, frozen=True, kw_only=True):
    """One field of a selector that a device does not meet, in words: what the installer wants, what the device has."""

    field: str
    wants: str
    has: str


class Rejection(Struct, frozen=True, kw_only=True):
    """A candidate that does not fit, and every field in the way."""

    candidate: Candidate
    mismatches: tuple[Mismatch, ...]


class Match(Struct, frozen=True, kw_only=True):
    """What the resolver found for one device.

    `chosen` is None when nothing fits. `rule` names the rule that decided over the runner-up ("only candidate" when
    there was none); `unknown` lists the selector fields the device does not report; `rejections` are nearest first;
    `sentence` says the whole in plain words.
    """

    chosen: Candidate | None
    rule: str
    unknown: tuple[str, ...]
    rejections: tuple[Rejection, ...]
    sentence: str


def compare_versions(left: str, right: str) -> int:
    """Return -1, 0 or 1 as `left` is older than, as new as or newer than `right`."""
    raise NotImplementedError


def match(device: DeviceInfo, candidates: tuple[Candidate, ...], *, version: str = "") -> Match:
    """Choose the installer among `candidates` for `device`; `version` pins one release when given."""
    raise NotImplementedError
