"""The words of the resolver: what an installer wants, what a device has, and one sentence on the whole.

Pure. A device is called by what it is ("this TV"), and an Android's architectures by the names Android gives them.
"""

from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

from hub.candidates import Candidate, Mismatch
from hub.versions import compare_versions, version_key
from protocol.device import Architecture, DeviceInfo, FormFactor, OsType

NEWEST: Final = "newest version"

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
# developer.android.com/ndk/guides/abis
_ANDROID_ABIS: Final[dict[Architecture, str]] = {"arm64": "arm64-v8a", "armv7": "armeabi-v7a"}
_FIELD_WORDS: Final = {
    "os_version": "OS version",
    "api_level": "API level",
    "form_factor": "form factor",
    "screen_inches": "screen size",
    "density_dpi": "density",
    "kind": "installer kinds",
    "wheel_tags": "Python",
}
_THIS_DEVICE: Final = "this device"
_TAGS_NAMED: Final = 3


def this(device: DeviceInfo) -> str:
    """Return what people call a device like this: "this phone"."""
    if device.form_factor == "other":
        return _THIS_DEVICE
    return f"this {_FORM_TITLES[device.form_factor].removeprefix('a ')}"


# --- one field ----------------------------------------------------------------------------------------------------


def mismatch(field: str, device: DeviceInfo, candidate: Candidate) -> Mismatch:
    """Return in words how `candidate` does not fit `device` in this field of `WORDS`."""
    wants, has = WORDS[field]
    subject = _THIS_DEVICE if field == "form_factor" else this(device)  # "this phone is a phone" says nothing
    return Mismatch(field=field, wants=wants(device, candidate), has=f"{subject} {has(device, candidate)}")


def version_mismatch(candidate: Candidate, version: str) -> Mismatch:
    """Return in words that another version was asked for."""
    wants = f"a request for version {candidate.version}"
    return Mismatch(field="version", wants=wants, has=f"version {version} was asked for")


def _wants_os_type(_device: DeviceInfo, candidate: Candidate) -> str:
    return _alternatives([_OS_TITLES[os_type] for os_type in candidate.selector.os_types])


def _has_os_type(device: DeviceInfo, _candidate: Candidate) -> str:
    known = device.os_type != "other"
    return f"has {_OS_TITLES[device.os_type]}" if known else "does not report a known system"


def _wants_architecture(_device: DeviceInfo, candidate: Candidate) -> str:
    return _alternatives(candidate.selector.architectures) or "any architecture"


def _has_architecture(device: DeviceInfo, _candidate: Candidate) -> str:
    names = _ANDROID_ABIS if device.os_type == "android" else {}
    if not device.architectures:
        return "does not report its architecture"
    return f"is {listed([names.get(architecture, architecture) for architecture in device.architectures])}"


def _wants_kind(_device: DeviceInfo, candidate: Candidate) -> str:
    return f"a device that installs {candidate.kind} files"


def _has_kind(device: DeviceInfo, _candidate: Candidate) -> str:
    return f"installs {listed(device.installer_kinds)} files"


def _wants_os_version(device: DeviceInfo, candidate: Candidate) -> str:
    selector = candidate.selector
    titles = [_OS_TITLES[one] for one in selector.os_types if one == device.os_type] or [
        _wants_os_type(device, candidate)
    ]
    low, high = selector.os_version_minimum, selector.os_version_maximum.replace(".*", ".x")
    if high == f"{low}.x":
        return f"{titles[0]} {high}"
    return f"{titles[0]} {_range(low, high, 'newer', 'older')}"


def _has_os_version(device: DeviceInfo, _candidate: Candidate) -> str:
    return f"has {_OS_TITLES[device.os_type]} {device.os_version}"


def _wants_api_level(_device: DeviceInfo, candidate: Candidate) -> str:
    minimum, maximum = candidate.selector.api_level_minimum, candidate.selector.api_level_maximum
    levels = [level for level in (minimum, maximum) if level is not None]
    if not all(level in _ANDROID_VERSIONS for level in levels):
        return f"API {_range(minimum, maximum, 'newer', 'older')}"
    low, high = _ANDROID_VERSIONS.get(minimum or 0), _ANDROID_VERSIONS.get(maximum or 0)
    return f"Android {_range(low, high, 'newer', 'older')} (API {' to '.join(map(str, levels))})"


def _has_api_level(device: DeviceInfo, _candidate: Candidate) -> str:
    return f"has API {device.api_level}"


def _wants_model(_device: DeviceInfo, candidate: Candidate) -> str:
    selector = candidate.selector
    named = [f"model {_alternatives(selector.models)}"] * bool(selector.models)
    but = [f"any model but {listed(selector.models_excluded)}"] * bool(selector.models_excluded)
    return listed(named + but)


def _has_model(device: DeviceInfo, _candidate: Candidate) -> str:
    return f"is {device.model}" + (f" ({device.model_code})" if device.model_code else "")


def _wants_form_factor(_device: DeviceInfo, candidate: Candidate) -> str:
    return _alternatives([_FORM_TITLES[form] for form in candidate.selector.form_factors])


def _has_form_factor(device: DeviceInfo, _candidate: Candidate) -> str:
    return f"is {_FORM_TITLES[device.form_factor]}"


def _wants_screen_inches(_device: DeviceInfo, candidate: Candidate) -> str:
    selector = candidate.selector
    return f"a screen of {_range(selector.screen_inches_minimum, selector.screen_inches_maximum)} inches"


def _has_screen_inches(device: DeviceInfo, _candidate: Candidate) -> str:
    return f"has {device.screen_inches:g} inches"


def _wants_resolution(_device: DeviceInfo, candidate: Candidate) -> str:
    low, high = candidate.selector.resolution_minimum, candidate.selector.resolution_maximum
    return f"a resolution of {_range(low and _pixels(low), high and _pixels(high))} pixels"


def _has_resolution(device: DeviceInfo, _candidate: Candidate) -> str:
    return f"has {_pixels(device.resolution or (0, 0))}"


def _wants_density_dpi(_device: DeviceInfo, candidate: Candidate) -> str:
    selector = candidate.selector
    return f"a density of {_range(selector.density_dpi_minimum, selector.density_dpi_maximum)} dpi"


def _has_density_dpi(device: DeviceInfo, _candidate: Candidate) -> str:
    return f"has {device.density_dpi} dpi"


def _wants_features(device: DeviceInfo, candidate: Candidate) -> str:
    lacks, excess = _features(device, candidate)
    return f"a device {listed([f'with {listed(lacks)}'] * bool(lacks) + [f'without {listed(excess)}'] * bool(excess))}"


def _has_features(device: DeviceInfo, candidate: Candidate) -> str:
    lacks, excess = _features(device, candidate)
    return listed([f"lacks {listed(lacks)}"] * bool(lacks) + [f"has {listed(excess)}"] * bool(excess))


def _features(device: DeviceInfo, candidate: Candidate) -> tuple[list[str], list[str]]:
    lacks = [feature for feature in candidate.selector.features_required if feature not in device.features]
    return lacks, [feature for feature in candidate.selector.features_forbidden if feature in device.features]


def _wants_wheel_tags(_device: DeviceInfo, candidate: Candidate) -> str:
    tags = candidate.selector.wheel_tags
    more = [f"{len(tags) - _TAGS_NAMED} more"] * (len(tags) > _TAGS_NAMED)
    return f"a Python that takes {_alternatives([*tags[:_TAGS_NAMED], *more])}"


def _has_wheel_tags(device: DeviceInfo, _candidate: Candidate) -> str:
    words = [f"Python {device.python_version}", device.libc, listed(device.architectures)]
    return f"has {', '.join(word for word in words if word)}"


Words: TypeAlias = tuple[Callable[[DeviceInfo, Candidate], str], Callable[[DeviceInfo, Candidate], str]]
# Field -> what the installer wants, and what the device has or is.
WORDS: Final[dict[str, Words]] = {
    "os_type": (_wants_os_type, _has_os_type),
    "architecture": (_wants_architecture, _has_architecture),
    "kind": (_wants_kind, _has_kind),
    "os_version": (_wants_os_version, _has_os_version),
    "api_level": (_wants_api_level, _has_api_level),
    "wheel_tags": (_wants_wheel_tags, _has_wheel_tags),
    "model": (_wants_model, _has_model),
    "form_factor": (_wants_form_factor, _has_form_factor),
    "screen_inches": (_wants_screen_inches, _has_screen_inches),
    "resolution": (_wants_resolution, _has_resolution),
    "density_dpi": (_wants_density_dpi, _has_density_dpi),
    "features": (_wants_features, _has_features),
}


# --- the whole ----------------------------------------------------------------------------------------------------


def sentence_for_chosen(
    device: DeviceInfo, chosen: Candidate, runner_up: Candidate | None, rule: str, unknown: tuple[str, ...]
) -> str:
    """Say by which rule the chosen one came before the runner-up, and what could not be checked."""
    if runner_up is None:
        sentence = f"Of all installers only {label(chosen)} fits {this(device)}."
    else:
        words = told_apart(chosen, runner_up)
        if rule == NEWEST and compare_versions(chosen.version, runner_up.version) < 0:  # an epoch, or a version code
            words = _build(chosen), _build(runner_up)
        first, second = words
        sentence = f"{rule[:1].upper()}{rule[1:]}: {first} over {second}."
    if not unknown:
        return sentence
    fields = _alternatives(list(dict.fromkeys(_unreported(field, device) for field in unknown)))
    return f"{sentence} The device does not report its {fields}, so that could not be checked."


def _unreported(field: str, device: DeviceInfo) -> str:
    """Return what a device would have to report for this field to be checked."""
    if field != "wheel_tags" or not device.python_version:
        return _FIELD_WORDS.get(field, field)
    if device.os_type == "linux" and not device.libc:
        return "libc"
    if device.os_type == "macos" and not device.os_version:
        return _FIELD_WORDS["os_version"]
    return "Python's architecture"  # the wheel is for another one that the device runs


def sentence_for_unpublished(candidates: Sequence[Candidate], version: str) -> str:
    """Say that there is nothing to choose from: nothing at all, or nothing of the version asked for."""
    if not candidates:
        return "There is no installer: nothing is published for this program."
    newest = max((candidate.version for candidate in candidates), key=lambda text: (version_key(text), text))
    return f"Version {version} of this program is not published; the newest that is published is {newest}."


def sentence_for_none(
    device: DeviceInfo,
    nearest: tuple[Candidate, tuple[str, ...]],
    other: tuple[Candidate, tuple[str, ...]] | None,
) -> str:
    """Say what is in the way of the nearest installer, and which other release has what it lacks.

    Each is a candidate and its failing fields; "version", the pin, counts for nothing in a release that is a hint only.
    """
    candidate, fields = nearest
    words = [mismatch(field, device, candidate) for field in fields]
    subject = _THIS_DEVICE if "form_factor" in fields else this(device)
    has = listed([WORDS[field][1](device, candidate) for field in fields])
    sentence = f"Nearest: {candidate.version} for {listed([one.wants for one in words])}; {subject} {has}."
    return sentence if other is None else f"{sentence} {_other_release(device, fields, *other)}"


def _other_release(device: DeviceInfo, lacking: tuple[str, ...], other: Candidate, fields: tuple[str, ...]) -> str:
    in_the_way = [WORDS[field][0](device, other) for field in fields if field != "version"]
    sentence = f"{other.version} fits in that" if in_the_way else f"{other.version} fits"
    if "architecture" in lacking:
        own = [architecture for architecture in device.architectures if architecture in other.selector.architectures]
        sentence = f"{other.version} has {own[0]}" if own else f"{other.version} is for any architecture"
    return f"{sentence}, but is for {listed(in_the_way)}." if in_the_way else f"{sentence}."


def label(candidate: Candidate) -> str:
    """Return what tells one installer of a program from the others: "3.1 (apk, arm64)"."""
    architectures = listed(candidate.selector.architectures) or "any architecture"
    return f"{candidate.version} ({candidate.kind}, {architectures})"


def told_apart(one: Candidate, other: Candidate) -> tuple[str, str]:
    """Return words for two installers of a program that are not the same, by their labels if those are not."""
    ways: tuple[Callable[[Candidate], str], ...] = (label, _file_name, _build)
    for way in ways:
        if way(one) != way(other):
            return way(one), way(other)
    return _object(one), _object(other)


def _file_name(candidate: Candidate) -> str:
    return candidate.file_name or label(candidate)


def _build(candidate: Candidate) -> str:
    return f"{label(candidate)}, build {candidate.sortable_version or candidate.file_version}"


def _object(candidate: Candidate) -> str:
    return f"{label(candidate)} {candidate.digest.hex()[:12]}"


def megabytes(size: int) -> str:
    """Return a size in bytes as people say it."""
    return f"{size / 1e6:.1f} MB"


def listed(words: Sequence[str]) -> str:
    """Return "a, b and c"."""
    return ", ".join(words[:-1]) + (" and " if words[1:] else "") + "".join(words[-1:])


def _alternatives(words: Sequence[str]) -> str:
    return ", ".join(words[:-1]) + (" or " if words[1:] else "") + "".join(words[-1:])


def _range(low: str | float | None, high: str | float | None, more: str = "more", less: str = "less") -> str:
    """Return a range in words; at least one end is given."""
    ends = [f"{end:g}" if isinstance(end, float) else str(end) for end in (low, high) if end]
    if len(ends) == 2:
        return " to ".join(dict.fromkeys(ends))
    return f"{ends[0]} or {more if low else less}"


def _pixels(resolution: tuple[int, int]) -> str:
    return f"{max(resolution)} × {min(resolution)}"
