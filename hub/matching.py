"""Matching: device info + candidate installers -> the installer that fits best, or why none does.

Pure: no I/O, no clock. Four steps, in this order; `docs/matching.md` tells them to people:

1. Hard filter (`CHECKS`), three-valued: an unknown OS type or architecture is a no; any other unknown is allowed,
   ranked lower and reported.
2. Rank (`RULES`): the first difference between two fitting installers decides.
3. Forecast: what may go wrong with the chosen one, and what stops it.
4. Explain (`hub/explaining.py`): the rule that decided over the runner-up, and per rejected candidate each failing
   field, nearest first.

The runner-up is what would be chosen if the chosen one were not there.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from operator import itemgetter
from typing import Any, Final, Literal, TypeAlias

from msgspec import Struct

from hub import explaining
from hub.candidates import Candidate as Candidate  # these four are offered here too: most callers match as well
from hub.candidates import Forecast, Installed, Rejection
from hub.candidates import Mismatch as Mismatch
from hub.candidates import Selector as Selector
from hub.versions import UNIFIED, compare_of_kind, order_of_kind, version_key
from hub.versions import compare_versions as compare_versions
from hub.wheeltags import PLACE_OF_ANY, wheel_place
from protocol import limits
from protocol.device import Architecture, DeviceInfo, InstallerKind


class Match(Struct, frozen=True, kw_only=True):
    """What the resolver found for one device.

    `chosen` is None when nothing fits. `rule` names the rule that decided over `runner_up` ("only candidate" when there
    was none, empty when nothing fits); `unknown` lists the fields the chosen one asks about and the device does not
    report; `forecasts` say what may go wrong, those that stop it first; `rejections` are nearest first, at most as many
    as were asked for; `sentence` says the whole in plain words.
    """

    chosen: Candidate | None
    rule: str
    runner_up: Candidate | None = None
    unknown: tuple[str, ...]
    forecasts: tuple[Forecast, ...] = ()
    rejections: tuple[Rejection, ...]
    sentence: str


REJECTIONS_LISTED: Final = 20
ONLY_CANDIDATE: Final = "only candidate"
BITS_64: Final = frozenset[Architecture]({"x86_64", "arm64", "riscv64", "ppc64le", "s390x", "mips64"})
# Kinds whose order compares a number that is not the version people know; without it only the unified order can tell.
_CODED: Final[frozenset[InstallerKind]] = frozenset({"apk", "apks", "ipa"})
# Where the system does not take a program that is signed by another than the one that is there.
_SIGNED: Final[frozenset[InstallerKind]] = frozenset({"apk", "apks", "msix"})

# What one check finds: whether the field fits, or that it cannot be told.
Finding: TypeAlias = bool | Literal["unknown"]

_EXACT_MODEL: Final = limits.NAME_CHARACTERS + 1  # above what any glob can reach
_FIRST: Final = itemgetter(0)
_COMPLEMENT: Final = bytes(range(255, -1, -1))


@dataclass(frozen=True, slots=True)
class Judged:
    """A candidate after the hard filter: the fields in its way, and the fields nobody can tell about."""

    candidate: Candidate
    failing: tuple[str, ...]
    unknown: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Rule:
    """One step of the ranking. `ranks` gives what each of several compares by, one type per rule; the greater wins."""

    name: str
    ranks: Callable[[DeviceInfo, Sequence[Judged]], Sequence[Any]]


def match(
    device: DeviceInfo,
    candidates: tuple[Candidate, ...],
    *,
    version: str = "",
    installed: Installed | None = None,
    listed: int = REJECTIONS_LISTED,
) -> Match:
    """Choose the installer among `candidates` for `device`; `version` pins one release when given. Never raises.

    `installed` is what the device has of the program; only the forecasts depend on it, and on the free bytes. At most
    `listed` rejections are told.
    """
    judged = [_judge(device, candidate, version) for candidate in candidates]
    fitting = [one for one in judged if not one.failing]
    rejected = [one for one in judged if one.failing]
    nearest = _best(device, rejected, listed, (_NEAREST, *RULES))
    rejections = tuple(_rejection(device, one, version) for one in nearest)
    if not fitting:
        sentence = _sentence_for_none(device, rejected, nearest, version)
        return Match(chosen=None, rule="", unknown=(), rejections=rejections, sentence=sentence)
    chosen, runner_up, rule = _decide(device, fitting)
    second = runner_up.candidate if runner_up else None
    return Match(
        chosen=chosen.candidate,
        rule=rule,
        runner_up=second,
        unknown=chosen.unknown,
        forecasts=forecast(device, chosen.candidate, installed, pinned=bool(version)),
        rejections=rejections,
        sentence=explaining.sentence_for_chosen(device, chosen.candidate, second, rule, chosen.unknown),
    )


# --- hard filter --------------------------------------------------------------------------------------------------


def _judge(device: DeviceInfo, candidate: Candidate, version: str) -> Judged:
    failing = ["version"] if version and compare_versions(candidate.version, version) else []
    unknown: list[str] = []
    for field, check in CHECKS.items():
        finding = check(device, candidate)
        if finding == "unknown":
            unknown.append(field)
        elif not finding:
            failing.append(field)
    return Judged(candidate, tuple(failing), tuple(unknown))


def _check_os_type(device: DeviceInfo, candidate: Candidate) -> Finding:
    return device.os_type != "other" and device.os_type in candidate.selector.os_types


def _check_architecture(device: DeviceInfo, candidate: Candidate) -> Finding:
    wanted = candidate.selector.architectures
    return not wanted or any(architecture in wanted for architecture in device.architectures)


def _check_kind(device: DeviceInfo, candidate: Candidate) -> Finding:
    if not device.installer_kinds:
        return "unknown"
    return candidate.kind in device.installer_kinds


def _check_os_version(device: DeviceInfo, candidate: Candidate) -> Finding:
    low, high = candidate.selector.os_version_minimum, candidate.selector.os_version_maximum
    if not low and not high:
        return True
    minimum, maximum, has = _number_parts(low), _number_parts(high), _number_parts(device.os_version)
    if has is None or (low and minimum is None) or (high and maximum is None):
        return "unknown"
    compared = has
    if high.endswith(".*"):  # only as many parts count as the maximum has
        compared = _without_zeros(_numbers(device.os_version)[: len(_numbers(high))])
    return (minimum is None or minimum <= has) and (maximum is None or compared <= maximum)


def _check_api_level(device: DeviceInfo, candidate: Candidate) -> Finding:
    selector = candidate.selector
    return _within(device.api_level, selector.api_level_minimum, selector.api_level_maximum)


def _check_wheel_tags(device: DeviceInfo, candidate: Candidate) -> Finding:
    if not candidate.selector.wheel_tags:
        return True
    place = wheel_place(device, candidate.selector.wheel_tags)
    return "unknown" if place == "unknown" else place is not None


def _check_model(device: DeviceInfo, candidate: Candidate) -> Finding:
    selector = candidate.selector
    if selector.models and _model_specificity(device, selector.models) < 0:
        return False
    return not selector.models_excluded or _model_specificity(device, selector.models_excluded) < 0


def _check_form_factor(device: DeviceInfo, candidate: Candidate) -> Finding:
    wanted = candidate.selector.form_factors
    if not wanted or device.form_factor in wanted:
        return True
    return "unknown" if device.form_factor == "other" else False


def _check_screen_inches(device: DeviceInfo, candidate: Candidate) -> Finding:
    selector = candidate.selector
    return _within(device.screen_inches, selector.screen_inches_minimum, selector.screen_inches_maximum)


def _check_resolution(device: DeviceInfo, candidate: Candidate) -> Finding:
    low, high = candidate.selector.resolution_minimum, candidate.selector.resolution_maximum
    if not low and not high:
        return True
    if device.resolution is None:
        return "unknown"
    long, short = max(device.resolution), min(device.resolution)
    large_enough = low is None or (long >= max(low) and short >= min(low))
    return large_enough and (high is None or (long <= max(high) and short <= min(high)))


def _check_density_dpi(device: DeviceInfo, candidate: Candidate) -> Finding:
    selector = candidate.selector
    return _within(device.density_dpi, selector.density_dpi_minimum, selector.density_dpi_maximum)


def _check_features(device: DeviceInfo, candidate: Candidate) -> Finding:
    required, forbidden = candidate.selector.features_required, candidate.selector.features_forbidden
    if not required and not forbidden:
        return True
    if not device.features:
        return "unknown"
    has = set(device.features)
    return has.issuperset(required) and has.isdisjoint(forbidden)


# Field name in `Mismatch.field` and `Match.unknown` -> its check. "version", the pin, is checked before these.
CHECKS: Final[dict[str, Callable[[DeviceInfo, Candidate], Finding]]] = {
    "os_type": _check_os_type,
    "architecture": _check_architecture,
    "kind": _check_kind,
    "os_version": _check_os_version,
    "api_level": _check_api_level,
    "wheel_tags": _check_wheel_tags,
    "model": _check_model,
    "form_factor": _check_form_factor,
    "screen_inches": _check_screen_inches,
    "resolution": _check_resolution,
    "density_dpi": _check_density_dpi,
    "features": _check_features,
}


def _within(value: float | None, minimum: float | None, maximum: float | None) -> Finding:
    if minimum is None and maximum is None:
        return True
    if value is None:
        return "unknown"
    return (minimum is None or value >= minimum) and (maximum is None or value <= maximum)


def _number_parts(text: str) -> tuple[int, ...] | None:
    """Return the numbers of `text` without the zeros that end them, or None when it holds no number."""
    numbers = _numbers(text)
    return _without_zeros(numbers) if numbers else None


def _numbers(text: str) -> list[int]:
    return [int(digits) for digits in re.findall(r"[0-9]+", text)]


def _without_zeros(numbers: list[int]) -> tuple[int, ...]:
    length = len(numbers)
    while length and not numbers[length - 1]:
        length -= 1
    return tuple(numbers[:length])


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


def _each(key: Callable[[DeviceInfo, Judged], Any]) -> Callable[[DeviceInfo, Sequence[Judged]], Sequence[Any]]:
    """Make a rule's `ranks` of what one candidate compares by, whatever the others are."""
    return lambda device, judged: [key(device, one) for one in judged]


def _model_rank(device: DeviceInfo, judged: Judged) -> int:
    models = judged.candidate.selector.models
    return _model_specificity(device, models) if models else 0


def _exact_model_rank(device: DeviceInfo, judged: Judged) -> bool:
    return _model_rank(device, judged) == _EXACT_MODEL


def _version_ranks(_device: DeviceInfo, judged: Sequence[Judged]) -> list[int]:
    """Rank by a tournament, the newest highest: each order's newest meet, and the unified order says who wins.

    Then the next of the orders that won meet those that lost, and so on. Why not one order: see `hub/versions.py`.
    """
    orders: dict[str, dict[Any, list[int]]] = {}
    for place, one in enumerate(judged):
        order, key = _order(one.candidate)
        orders.setdefault(order, {}).setdefault(key, []).append(place)
    # Each order's builds, those of one version together, the newest last.
    queues = [[versions[key] for key in sorted(versions)] for versions in orders.values()]
    ranks = [0] * len(judged)
    rank = 0
    while queues:
        heads = [max(version_key(judged[place].candidate.version) for place in queue[-1]) for queue in queues]
        newest = max(heads)
        rank -= 1
        for queue, head in zip(queues, heads, strict=True):
            if head == newest:
                for place in queue.pop():
                    ranks[place] = rank
        queues = [queue for queue in queues if queue]
    return ranks


def _order(candidate: Candidate) -> tuple[str, Any]:
    if not candidate.sortable_version and candidate.kind in _CODED:
        return UNIFIED, version_key(candidate.version)
    return order_of_kind(candidate.kind, _sortable(candidate))


def _sortable(candidate: Candidate) -> str:
    return candidate.sortable_version or candidate.file_version or candidate.version


def _architecture_rank(device: DeviceInfo, judged: Judged) -> int:
    wanted = judged.candidate.selector.architectures
    places = [place for place, architecture in enumerate(device.architectures) if architecture in wanted]
    return -min(places, default=len(device.architectures))


def _kind_rank(device: DeviceInfo, judged: Judged) -> int:
    kind, kinds = judged.candidate.kind, device.installer_kinds
    return -kinds.index(kind) if kind in kinds else -len(kinds)


def _wheel_tag_rank(device: DeviceInfo, judged: Judged) -> int:
    """A wheel for any Python comes after every more specific one that surely fits, and before those that may not."""
    tags = judged.candidate.selector.wheel_tags
    place = wheel_place(device, tags) if tags else PLACE_OF_ANY
    return -place if isinstance(place, int) else -2 * PLACE_OF_ANY


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
    Rule("exact model named", _each(_exact_model_rank)),
    Rule(explaining.NEWEST, _version_ranks),
    Rule("more specific model", _each(_model_rank)),
    Rule("preferred architecture", _each(_architecture_rank)),
    Rule("preferred installer kind", _each(_kind_rank)),
    Rule("more specific wheel tag", _each(_wheel_tag_rank)),
    Rule("form factor named", _each(_form_factor_rank)),
    Rule("highest OS minimum that fits", _each(_os_minimum_rank)),
    Rule("screen", _each(_screen_rank)),
    Rule("fewer unknown fields", _each(_known_rank)),
    Rule("smaller file", _each(_size_rank)),
    Rule("digest", _each(_digest_rank)),
)


def _nearness(_device: DeviceInfo, judged: Judged) -> tuple[bool, bool, int]:
    """Of the version asked for before others, for the device's own system before others, then fewest fields."""
    return "version" not in judged.failing, "os_type" not in judged.failing, -len(judged.failing)


_NEAREST: Final = Rule("nearest", _each(_nearness))


def _decide(device: DeviceInfo, fitting: list[Judged]) -> tuple[Judged, Judged | None, str]:
    """Return the best of `fitting`, the best of the rest, and the rule that parts them."""
    (chosen,) = _best(device, fitting, 1, RULES)
    rest = [one for one in fitting if one is not chosen]
    if not rest:
        return chosen, None, ONLY_CANDIDATE
    (runner_up,) = _best(device, rest, 1, RULES)
    parted = (rule.name for rule in RULES if _parts(rule, device, chosen, runner_up))
    return chosen, runner_up, next(parted, RULES[-1].name)


def _parts(rule: Rule, device: DeviceInfo, left: Judged, right: Judged) -> bool:
    left_rank, right_rank = rule.ranks(device, (left, right))
    return bool(left_rank != right_rank)


def _best(device: DeviceInfo, judged: list[Judged], count: int, rules: tuple[Rule, ...]) -> list[Judged]:
    """Return the best `count` of `judged`, best first. A rule is only asked where the ones before it left a tie."""
    if len(judged) < 2 or not rules:
        return judged[:count]
    keyed = list(zip(rules[0].ranks(device, judged), judged, strict=True))
    keyed.sort(key=_FIRST, reverse=True)
    best: list[Judged] = []
    for _, tied in groupby(keyed, key=_FIRST):
        best += _best(device, [one for _, one in tied], count - len(best), rules[1:])
        if len(best) == count:
            break
    return best


# --- forecast -----------------------------------------------------------------------------------------------------


def forecast(
    device: DeviceInfo, chosen: Candidate, installed: Installed | None, *, pinned: bool
) -> tuple[Forecast, ...]:
    """Return what may go wrong with `chosen` on this device, what stops it first.

    A version that was asked for by name may go back, may go from 64 to 32 bits and may be signed by another: an Android
    key may have been rotated (APK signature scheme v3), which only the device can tell.
    """
    found = [] if installed is None else _forecast_replacing(device, chosen, installed, pinned)
    if device.free_bytes is not None and device.free_bytes < chosen.size:
        free, needs = explaining.megabytes(device.free_bytes), explaining.megabytes(chosen.size)
        found.append(Forecast(code="no-space", detail=f"It has {free} free, and the file alone takes {needs}."))
    if not device.installer_kinds:
        detail = f"It does not say which kinds it installs, so perhaps not {chosen.kind} files."
        found.append(Forecast(code="kind-unknown", detail=detail))
    return tuple(sorted(found, key=lambda one: not one.stops))


def _forecast_replacing(device: DeviceInfo, chosen: Candidate, installed: Installed, pinned: bool) -> list[Forecast]:
    found = []
    has, takes = installed.version, f"; say --version {chosen.version} to"
    if _is_signed_by_another(chosen, installed):
        detail = (
            f"It has {has}, signed by another than {chosen.version}, and may refuse that until {has} is removed there"
        )
        detail += "." if pinned else f"{takes} try."
        found.append(Forecast(code="signer", detail=detail, stops=not pinned))
    if _is_narrower(device, chosen, installed):
        words = explaining.listed(chosen.selector.architectures)
        detail = f"It has {has} with 64 bits, and {chosen.version} only comes with 32 ({words})"
        detail += "." if pinned else f"{takes} take it."
        found.append(Forecast(code="narrower", detail=detail, stops=not pinned))
    if _is_downgrade(chosen, installed):
        detail = f"It has {has}, newer than {chosen.file_version or chosen.version}"
        detail += "." if pinned else f"{takes} go back."
        found.append(Forecast(code="downgrade", detail=detail, stops=not pinned))
    return found


def _is_signed_by_another(chosen: Candidate, installed: Installed) -> bool:
    both = bool(chosen.signer_digest and installed.signer_digest)
    same_kind = {chosen.kind, installed.kind} <= _SIGNED
    return both and same_kind and chosen.signer_digest != installed.signer_digest


def _is_narrower(device: DeviceInfo, chosen: Candidate, installed: Installed) -> bool:
    """Whether a build that runs with 64 bits on this device would give way to one that does not."""
    wide = BITS_64.intersection(device.architectures)
    wanted = chosen.selector.architectures
    return bool(wanted) and bool(wide.intersection(installed.architectures)) and not wide.intersection(wanted)


def _is_downgrade(chosen: Candidate, installed: Installed) -> bool:
    """Compare as the kind does where both are of one and what it compares is known; else by the unified order."""
    if chosen.kind != installed.kind:
        return compare_versions(installed.release or installed.version, chosen.version) > 0
    if bool(installed.sortable_version) == bool(chosen.sortable_version) and (
        chosen.sortable_version or chosen.kind not in _CODED
    ):
        return compare_of_kind(chosen.kind, installed.sortable_version or installed.version, _sortable(chosen)) > 0
    return compare_versions(installed.version, chosen.file_version or chosen.version) > 0


# --- explain ------------------------------------------------------------------------------------------------------


def _rejection(device: DeviceInfo, judged: Judged, version: str) -> Rejection:
    mismatches = (
        explaining.version_mismatch(judged.candidate, version)
        if field == "version"
        else explaining.mismatch(field, device, judged.candidate)
        for field in judged.failing
    )
    return Rejection(candidate=judged.candidate, mismatches=tuple(mismatches))


def _sentence_for_none(device: DeviceInfo, rejected: list[Judged], nearest: list[Judged], version: str) -> str:
    if not nearest or "version" in nearest[0].failing:
        return explaining.sentence_for_unpublished([one.candidate for one in rejected], version)
    first = nearest[0]
    others = [one for one in rejected if _has_what_it_lacks(one, first)]
    other = _best(device, others, 1, (_FEWEST_BUT_VERSION, *RULES))
    hint = (other[0].candidate, other[0].failing) if other else None
    return explaining.sentence_for_none(device, (first.candidate, first.failing), hint)


def _has_what_it_lacks(other: Judged, nearest: Judged) -> bool:
    another_release = compare_versions(other.candidate.version, nearest.candidate.version) != 0
    return another_release and "os_type" not in other.failing and not set(other.failing) & set(nearest.failing)


_FEWEST_BUT_VERSION: Final = Rule(
    "fewest fields but the version", _each(lambda _device, judged: -len(set(judged.failing) - {"version"}))
)
