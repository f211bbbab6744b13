"""Matching: device info + candidate installers -> the installer that fits best, or why none does.

Pure: no I/O, no clock. Three steps, in this order:

1. Hard filter (`CHECKS`), three-valued: an unknown OS type or architecture is a no; any other unknown is allowed,
   ranked lower and reported.
2. Rank (`RULES`): the first difference between two fitting installers decides.
3. Explain: the rule that decided over the runner-up, and per rejected candidate each failing field, nearest first.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from operator import itemgetter
from typing import Annotated, Any, Final, Literal, TypeAlias

from msgspec import Meta, Struct

from hub.versions import compare_versions as compare_versions  # offered here too: most callers match as well
from hub.versions import version_key
from hub.versions import version_sort_key as version_sort_key
from protocol import limits
from protocol.device import Architecture, DeviceInfo, FormFactor, Inches, InstallerKind, Name, OsType, Pixels

Bound: TypeAlias = Annotated[str, Meta(max_length=64)]
WheelTag: TypeAlias = Annotated[str, Meta(min_length=1, max_length=255)]


class Selector(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Which devices an installer fits. Everything but `os_types` is optional; empty or None means "any".

    Bounds are inclusive. OS versions compare by their number parts, so a maximum of "12" excludes 12.1 and "12.0" is
    "12". Models are globs (`*` any characters, `?` one) tried on marketing name and model code, case and runs of spaces
    folded. Resolutions compare as (long side, short side), each on its own.
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
    there was none, empty when nothing fits); `unknown` lists the fields the chosen one asks about and the device does
    not report; `rejections` are nearest first, at most `REJECTIONS_LISTED`; `sentence` says the whole in plain words.
    """

    chosen: Candidate | None
    rule: str
    unknown: tuple[str, ...]
    rejections: tuple[Rejection, ...]
    sentence: str


REJECTIONS_LISTED: Final = 20
ONLY_CANDIDATE: Final = "only candidate"

# What one check finds: None fits, "unknown" cannot be told, a pair says what the installer wants and the device has.
Finding: TypeAlias = tuple[str, str] | Literal["unknown"] | None

_OS_TITLES: Final[dict[OsType, str]] = {
    "android": "Android",
    "ios": "iOS",
    "linux": "Linux",
    "macos": "macOS",
    "windows": "Windows",
    "other": "another system",
}
_FORM_TITLES: Final[dict[FormFactor, str]] = {
    "phone": "a phone",
    "tablet": "a tablet",
    "tv": "a TV",
    "car": "a car head unit",
    "pc": "a PC",
    "watch": "a watch",
    "other": "another kind of device",
}
# developer.android.com/tools/releases/platforms
# fmt: off
_ANDROID_VERSIONS: Final = {
    16: "4.1", 17: "4.2", 18: "4.3", 19: "4.4", 20: "4.4W", 21: "5.0", 22: "5.1", 23: "6", 24: "7.0", 25: "7.1",
    26: "8.0", 27: "8.1", 28: "9", 29: "10", 30: "11", 31: "12", 32: "12L", 33: "13", 34: "14", 35: "15", 36: "16",
}
# fmt: on
_EXACT_MODEL: Final = limits.NAME_CHARACTERS + 1  # above what any glob can reach
_FIRST: Final = itemgetter(0)
_COMPLEMENT: Final = bytes(range(255, -1, -1))
_FIELD_WORDS: Final = {
    "os_version": "OS version",
    "api_level": "API level",
    "form_factor": "form factor",
    "screen_inches": "screen size",
    "density_dpi": "density",
    "kind": "installer kinds",
}


@dataclass(frozen=True, slots=True)
class Judged:
    """A candidate after the hard filter: the fields in its way, and the fields nobody can tell about."""

    candidate: Candidate
    mismatches: tuple[Mismatch, ...]
    unknown: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Rule:
    """One step of the ranking. `key` gives what two candidates compare by, one type per rule; the greater wins."""

    name: str
    key: Callable[[DeviceInfo, Judged], Any]


def match(device: DeviceInfo, candidates: tuple[Candidate, ...], *, version: str = "") -> Match:
    """Choose the installer among `candidates` for `device`; `version` pins one release when given. Never raises."""
    judged = [_judge(device, candidate, version) for candidate in candidates]
    fitting = [one for one in judged if not one.mismatches]
    rejected = [one for one in judged if one.mismatches]
    nearest = _best(device, rejected, REJECTIONS_LISTED, (_NEAREST, *RULES))
    rejections = tuple(Rejection(candidate=one.candidate, mismatches=one.mismatches) for one in nearest)
    if not fitting:
        sentence = _sentence_for_none(rejected, nearest, version)
        return Match(chosen=None, rule="", unknown=(), rejections=rejections, sentence=sentence)
    chosen, runner_up, rule = _decide(device, fitting)
    sentence = _sentence_for_chosen(chosen, runner_up, rule)
    return Match(chosen=chosen.candidate, rule=rule, unknown=chosen.unknown, rejections=rejections, sentence=sentence)


# --- hard filter --------------------------------------------------------------------------------------------------


def _judge(device: DeviceInfo, candidate: Candidate, version: str) -> Judged:
    mismatches: list[Mismatch] = []
    unknown: list[str] = []
    if version and compare_versions(candidate.version, version):
        wants, has = f"a request for version {candidate.version}", f"version {version} was asked for"
        mismatches.append(Mismatch(field="version", wants=wants, has=has))
    for field, check in CHECKS.items():
        finding = check(device, candidate)
        if finding == "unknown":
            unknown.append(field)
        elif finding:
            mismatches.append(Mismatch(field=field, wants=finding[0], has=finding[1]))
    return Judged(candidate, tuple(mismatches), tuple(unknown))


def _check_os_type(device: DeviceInfo, candidate: Candidate) -> Finding:
    os_types = candidate.selector.os_types
    if device.os_type != "other" and device.os_type in os_types:
        return None
    wants = _alternatives([_OS_TITLES[os_type] for os_type in os_types])
    if device.os_type == "other":
        return wants, "this device does not report a known system"
    return wants, f"this device has {_OS_TITLES[device.os_type]}"


def _check_architecture(device: DeviceInfo, candidate: Candidate) -> Finding:
    wanted = candidate.selector.architectures
    if not wanted or any(architecture in wanted for architecture in device.architectures):
        return None
    if not device.architectures:
        return _alternatives(wanted), "this device does not report its architecture"
    return _alternatives(wanted), f"this device has {_list(device.architectures)}"


def _check_kind(device: DeviceInfo, candidate: Candidate) -> Finding:
    if not device.installer_kinds:
        return "unknown"
    if candidate.kind in device.installer_kinds:
        return None
    return (
        f"a device that installs {candidate.kind} files",
        f"this device installs {_list(device.installer_kinds)} files",
    )


def _check_os_version(device: DeviceInfo, candidate: Candidate) -> Finding:
    selector = candidate.selector
    low, high = selector.os_version_minimum, selector.os_version_maximum
    if not low and not high:
        return None
    minimum, maximum, has = _number_parts(low), _number_parts(high), _number_parts(device.os_version)
    if has is None or (low and minimum is None) or (high and maximum is None):
        return "unknown"
    if (minimum is None or minimum <= has) and (maximum is None or has <= maximum):
        return None
    wants = f"{_alternatives([_OS_TITLES[one] for one in selector.os_types])} {_range(low, high, 'newer', 'older')}"
    return wants, f"this device has {_OS_TITLES[device.os_type]} {device.os_version}"


def _check_api_level(device: DeviceInfo, candidate: Candidate) -> Finding:
    minimum, maximum = candidate.selector.api_level_minimum, candidate.selector.api_level_maximum
    finding = _within(device.api_level, minimum, maximum)
    if finding != "outside":
        return finding
    return _api_words(minimum, maximum), f"this device has API {device.api_level}"


def _check_model(device: DeviceInfo, candidate: Candidate) -> Finding:
    selector = candidate.selector
    has = f"this device is {device.model}" + (f" ({device.model_code})" if device.model_code else "")
    if selector.models and _model_specificity(device, selector.models) < 0:
        return f"model {_alternatives(selector.models)}", has
    if selector.models_excluded and _model_specificity(device, selector.models_excluded) >= 0:
        return f"any model but {_list(selector.models_excluded)}", has
    return None


def _check_form_factor(device: DeviceInfo, candidate: Candidate) -> Finding:
    wanted = candidate.selector.form_factors
    if not wanted or device.form_factor in wanted:
        return None
    if device.form_factor == "other":
        return "unknown"
    return _alternatives([_FORM_TITLES[form] for form in wanted]), f"this device is {_FORM_TITLES[device.form_factor]}"


def _check_screen_inches(device: DeviceInfo, candidate: Candidate) -> Finding:
    minimum, maximum = candidate.selector.screen_inches_minimum, candidate.selector.screen_inches_maximum
    finding = _within(device.screen_inches, minimum, maximum)
    if finding != "outside":
        return finding
    return f"a screen of {_range(minimum, maximum)} inches", f"this device has {device.screen_inches:g} inches"


def _check_resolution(device: DeviceInfo, candidate: Candidate) -> Finding:
    low, high = candidate.selector.resolution_minimum, candidate.selector.resolution_maximum
    if not low and not high:
        return None
    if device.resolution is None:
        return "unknown"
    long, short = _long_short(device.resolution)
    too_small = low is not None and (long < max(low) or short < min(low))
    too_large = high is not None and (long > max(high) or short > min(high))
    if too_small or too_large:
        wants = _range(low and _pixels(low), high and _pixels(high))
        return f"a resolution of {wants} pixels", f"this device has {_pixels(device.resolution)}"
    return None


def _check_density_dpi(device: DeviceInfo, candidate: Candidate) -> Finding:
    minimum, maximum = candidate.selector.density_dpi_minimum, candidate.selector.density_dpi_maximum
    finding = _within(device.density_dpi, minimum, maximum)
    if finding != "outside":
        return finding
    return f"a density of {_range(minimum, maximum)} dpi", f"this device has {device.density_dpi} dpi"


def _check_features(device: DeviceInfo, candidate: Candidate) -> Finding:
    required, forbidden = candidate.selector.features_required, candidate.selector.features_forbidden
    if not required and not forbidden:
        return None
    if not device.features:
        return "unknown"
    lacks = [feature for feature in required if feature not in device.features]
    excess = [feature for feature in forbidden if feature in device.features]
    if not lacks and not excess:
        return None
    wants = [f"with {_list(lacks)}"] * bool(lacks) + [f"without {_list(excess)}"] * bool(excess)
    has = [f"lacks {_list(lacks)}"] * bool(lacks) + [f"has {_list(excess)}"] * bool(excess)
    return f"a device {_list(wants)}", f"this device {_list(has)}"


# Field name in `Mismatch.field` and `Match.unknown` -> its check. "version", the pin, is checked before these.
CHECKS: Final[dict[str, Callable[[DeviceInfo, Candidate], Finding]]] = {
    "os_type": _check_os_type,
    "architecture": _check_architecture,
    "kind": _check_kind,
    "os_version": _check_os_version,
    "api_level": _check_api_level,
    "model": _check_model,
    "form_factor": _check_form_factor,
    "screen_inches": _check_screen_inches,
    "resolution": _check_resolution,
    "density_dpi": _check_density_dpi,
    "features": _check_features,
}


def _within(value: float | None, minimum: float | None, maximum: float | None) -> Literal["unknown", "outside"] | None:
    if minimum is None and maximum is None:
        return None
    if value is None:
        return "unknown"
    if (minimum is not None and value < minimum) or (maximum is not None and value > maximum):
        return "outside"
    return None


def _number_parts(text: str) -> tuple[int, ...] | None:
    """Return the numbers of `text` without the zeros that end them, or None when it holds no number."""
    numbers = [int(digits) for digits in re.findall(r"[0-9]+", text)]
    if not numbers:
        return None
    while numbers and not numbers[-1]:
        numbers.pop()
    return tuple(numbers)


def _long_short(resolution: tuple[int, int]) -> tuple[int, int]:
    return max(resolution), min(resolution)


def _model_specificity(device: DeviceInfo, globs: tuple[str, ...]) -> int:
    """Return how closely the best of `globs` names the device's model: -1 not at all, `_EXACT_MODEL` in full."""
    return _specificity(device.model, device.model_code, globs)


@lru_cache(maxsize=4_096)  # check and rules ask the same, and so does every device of one model
def _specificity(model: str, model_code: str, globs: tuple[str, ...]) -> int:
    names = [_folded(name) for name in (model, model_code) if name]
    return max((_glob_specificity(names, _folded(glob)) for glob in globs), default=-1)


def _glob_specificity(names: list[str], glob: str) -> int:
    if not any(_glob_matches(name, glob) for name in names):
        return -1
    wildcards = glob.count("*") + glob.count("?")
    return len(glob) - wildcards if wildcards else _EXACT_MODEL


def _folded(text: str) -> str:
    return " ".join(text.casefold().split())


def _glob_matches(name: str, glob: str) -> bool:
    """Return whether `glob` matches all of `name`.

    Not `fnmatch`: compiling a thousand globs costs more than the rest of a match, and brackets occur in model names.
    After a mismatch only the last `*` need give way, so the time is at most the product of both lengths.
    """
    at, place, star, star_at = 0, 0, -1, 0
    while at < len(name):
        if place < len(glob) and glob[place] == "*":
            star, star_at, place = place, at, place + 1
        elif place < len(glob) and glob[place] in ("?", name[at]):
            at, place = at + 1, place + 1
        elif star >= 0:
            star_at += 1
            at, place = star_at, star + 1
        else:
            return False
    return not glob[place:].strip("*")


# --- rank ---------------------------------------------------------------------------------------------------------


def _model_rank(device: DeviceInfo, judged: Judged) -> int:
    models = judged.candidate.selector.models
    return _model_specificity(device, models) if models else 0


def _exact_model_rank(device: DeviceInfo, judged: Judged) -> bool:
    return _model_rank(device, judged) == _EXACT_MODEL


def _version_rank(_device: DeviceInfo, judged: Judged) -> Any:
    return version_key(judged.candidate.version)


def _architecture_rank(device: DeviceInfo, judged: Judged) -> int:
    wanted = judged.candidate.selector.architectures
    places = [place for place, architecture in enumerate(device.architectures) if architecture in wanted]
    return -min(places, default=len(device.architectures))


def _kind_rank(device: DeviceInfo, judged: Judged) -> int:
    kind, kinds = judged.candidate.kind, device.installer_kinds
    return -kinds.index(kind) if kind in kinds else -len(kinds)


def _form_factor_rank(device: DeviceInfo, judged: Judged) -> bool:
    return device.form_factor in judged.candidate.selector.form_factors


def _os_minimum_rank(_device: DeviceInfo, judged: Judged) -> tuple[tuple[int, ...], int]:
    """A minimum that nobody can tell the device meets earns nothing."""
    selector = judged.candidate.selector
    os_version = () if "os_version" in judged.unknown else _number_parts(selector.os_version_minimum) or ()
    api_level = 0 if "api_level" in judged.unknown else selector.api_level_minimum or 0
    return os_version, api_level


def _screen_rank(device: DeviceInfo, judged: Judged) -> tuple[bool, float]:
    selector = judged.candidate.selector
    ranges = {
        "screen_inches": (selector.screen_inches_minimum, selector.screen_inches_maximum),
        "resolution": (selector.resolution_minimum, selector.resolution_maximum),
        "density_dpi": (selector.density_dpi_minimum, selector.density_dpi_maximum),
    }
    inside = any(field not in judged.unknown for field, bounds in ranges.items() if any(bounds))
    stated = [bound for bound in (selector.density_dpi_minimum, selector.density_dpi_maximum) if bound]
    if not stated or device.density_dpi is None:
        return inside, float("-inf")
    return inside, -abs(device.density_dpi - sum(stated) / len(stated))


def _known_rank(_device: DeviceInfo, judged: Judged) -> int:
    return -len(judged.unknown)


def _size_rank(_device: DeviceInfo, judged: Judged) -> int:
    return -judged.candidate.size


def _digest_rank(_device: DeviceInfo, judged: Judged) -> tuple[bytes, str]:
    """The smaller digest: no merit, only an order that does not depend on who was published first.

    The text parts two selectors of one object.
    """
    return judged.candidate.digest.translate(_COMPLEMENT), repr(judged.candidate)


RULES: Final = (
    Rule("exact model named", _exact_model_rank),
    Rule("newest version", _version_rank),
    Rule("more specific model", _model_rank),
    Rule("preferred architecture", _architecture_rank),
    Rule("preferred installer kind", _kind_rank),
    Rule("form factor named", _form_factor_rank),
    Rule("highest OS minimum that fits", _os_minimum_rank),
    Rule("screen", _screen_rank),
    Rule("fewer unknown fields", _known_rank),
    Rule("smaller file", _size_rank),
    Rule("digest", _digest_rank),
)


_NEAREST: Final = Rule("fewest fields in the way", lambda _device, judged: -len(judged.mismatches))


def _decide(device: DeviceInfo, fitting: list[Judged]) -> tuple[Judged, Judged | None, str]:
    """Return the best of `fitting`, the runner-up, and the rule that parted them."""
    if len(fitting) == 1:
        return fitting[0], None, ONLY_CANDIDATE
    chosen, runner_up = _best(device, fitting, 2, RULES)
    parted = (rule.name for rule in RULES if rule.key(device, chosen) != rule.key(device, runner_up))
    return chosen, runner_up, next(parted, RULES[-1].name)


def _best(device: DeviceInfo, judged: list[Judged], count: int, rules: tuple[Rule, ...]) -> list[Judged]:
    """Return the best `count` of `judged`, best first. A rule is only asked where the ones before it left a tie."""
    if len(judged) < 2 or not rules:
        return judged[:count]
    keyed = [(rules[0].key(device, one), one) for one in judged]
    keyed.sort(key=_FIRST, reverse=True)
    best: list[Judged] = []
    for _, tied in groupby(keyed, key=_FIRST):
        best += _best(device, [one for _, one in tied], count - len(best), rules[1:])
        if len(best) == count:
            break
    return best


# --- words --------------------------------------------------------------------------------------------------------


def _sentence_for_chosen(chosen: Judged, runner_up: Judged | None, rule: str) -> str:
    label = _label(chosen.candidate)
    if runner_up is None:
        sentence = f"Of all installers only {label} fits this device."
    else:
        sentence = f"Best for this device is {label}; over {_label(runner_up.candidate)} it was decided by: {rule}."
    if not chosen.unknown:
        return sentence
    fields = _alternatives([_FIELD_WORDS.get(field, field) for field in chosen.unknown])
    return f"{sentence} The device does not report its {fields}, so that could not be checked."


def _sentence_for_none(rejected: list[Judged], nearest: list[Judged], version: str) -> str:
    if not rejected:
        return "There is no installer: nothing is published for this program."
    if all(one.mismatches[0].field == "version" for one in rejected):
        newest = max((one.candidate.version for one in rejected), key=lambda text: (version_key(text), text))
        return f"Version {version} of this program is not published; the newest that is published is {newest}."
    why = ", and ".join(f"wants {mismatch.wants}, but {mismatch.has}" for mismatch in nearest[0].mismatches)
    label = _label(nearest[0].candidate)
    if len(rejected) == 1:
        return f"The only installer does not fit this device: {label} {why}."
    return f"None of the {len(rejected)} installers fits this device; the nearest, {label}, {why}."


def _label(candidate: Candidate) -> str:
    architectures = _list(candidate.selector.architectures) or "any architecture"
    return f"version {candidate.version} ({candidate.kind}, {architectures})"


def _api_words(minimum: int | None, maximum: int | None) -> str:
    levels = [level for level in (minimum, maximum) if level is not None]
    if not all(level in _ANDROID_VERSIONS for level in levels):
        return f"API {_range(minimum, maximum, 'newer', 'older')}"
    low, high = _ANDROID_VERSIONS.get(minimum or 0), _ANDROID_VERSIONS.get(maximum or 0)
    return f"Android {_range(low, high, 'newer', 'older')} (API {' to '.join(map(str, levels))})"


def _range(low: str | float | None, high: str | float | None, more: str = "more", less: str = "less") -> str:
    """Return a range in words; at least one end is given."""
    ends = [f"{end:g}" if isinstance(end, float) else str(end) for end in (low, high) if end]
    if len(ends) == 2:
        return " to ".join(ends)
    return f"{ends[0]} or {more if low else less}"


def _pixels(resolution: tuple[int, int]) -> str:
    long, short = _long_short(resolution)
    return f"{long} × {short}"


def _list(words: Sequence[str]) -> str:
    return ", ".join(words[:-1]) + (" and " if words[1:] else "") + "".join(words[-1:])


def _alternatives(words: Sequence[str]) -> str:
    return ", ".join(words[:-1]) + (" or " if words[1:] else "") + "".join(words[-1:])
