"""The sidecar `NAME.lockstep.toml`: what a person says of an installer beside it.

For a file whose header is read it narrows or adds; for one without a readable header it says everything. Flat TOML
(toml.io, v1.0.0), in the words of `lockstep-hub publish`:

    program = "notes"               the program id (default: the package name)
    title = "Notes"                 the name people know it by
    version = "2.1"
    kind = "pkg"                    needless: the file's content says it
    package = "org.example.notes"   the name the system knows it by
    channel = "beta"
    os = "macos 12"                 or "android 4.0.1", or several without versions: ["linux", "macos"]
    os_version = "12-14"            or "12-", or "-14"
    architecture = ["arm64", "amd64"]
    model, exclude_model, form_factor, feature, without_feature: a text or a list of texts
    resolution = "1280x720-3840x2160", screen_inches = "7-13", density = "160-480", api_level = "24-"

A bare OS version is a minimum within its major: 4.0.1 means 4.0.1 to 4.*. A bare API level is a minimum, any other bare
number the one value that fits.
"""

import difflib
import re
import tomllib
from collections.abc import Callable
from typing import Any, Final, Literal, get_args

import msgspec
from msgspec import Struct

from hub.matching import Selector
from hub.records import InstallerFacts
from protocol.device import ARCHITECTURE_NAMES, FORM_FACTORS, InstallerKind, OsType
from protocol.errors import BadFileError, ConflictError, UsageError
from protocol.limits import IDENTIFIER_CHARACTERS, NAME_CHARACTERS, TEXT_CHARACTERS
from protocol.limits import SIDECAR_BYTES as SIDECAR_BYTES

SUFFIX: Final = ".lockstep.toml"
VALUES: Final = 256  # in one list
DOTS: Final = 512  # a dotted key makes a table per dot, and `tomllib` walks them anew for each line

KINDS: Final[tuple[InstallerKind, ...]] = get_args(InstallerKind)
OS_TYPES: Final = tuple(name for name in get_args(OsType) if name != "other")

_OS: Final = re.compile(r"([A-Za-z]+)\s*([0-9][0-9.]*)?")
_OS_VERSION: Final = re.compile(r"[0-9]{1,9}(?:\.[0-9]{1,9}){0,5}")
_OS_VERSION_WANTED: Final = '"12" (12 within its major), "12-14", "12-" or "-14"'
_PIXELS: Final = re.compile(r"([0-9]{1,6})[x*×]([0-9]{1,6})")
_NUMBER: Final = re.compile(r"[0-9]{1,6}")
_DECIMAL: Final = re.compile(r"[0-9]{1,4}(?:\.[0-9]{1,4})?")
_LARGEST_PIXELS: Final = 100_000


class Sidecar(Struct, frozen=True, kw_only=True):
    """What a sidecar says; every field may be empty. `given` holds fields of `Selector`, as `PublishOptions` does."""

    program: str = ""
    title: str = ""
    version: str = ""
    kind: InstallerKind | Literal[""] = ""
    package: str = ""
    channel: str = ""
    given: dict[str, Any] = {}


def parse(content: bytes, name: str) -> Sidecar:
    """Return what the sidecar called `name` says. Raises BadFileError, whose message begins with that name."""
    try:
        return _sidecar(_values(content))
    except BadFileError as error:
        hint = error.hint or f"Mend {name}: the operator's guide says what each of its keys takes."
        raise BadFileError(f"{name}: {error.message}", hint=hint) from error


def given_of(values: dict[str, Any], called: Callable[[str], str]) -> dict[str, Any]:
    """Return the fields of `Selector` that values by key mean, each a text or a list of texts; other keys are not read.

    `called` makes of a key what the error calls it. Raises BadFileError for the first value that means nothing.
    """
    given: dict[str, Any] = {}
    for key, read in _SELECTORS.items():
        if key in values:
            _add(given, called(key), read(called(key), values[key]))
    if len(given.get("os_types", ())) > 1 and {"os_version_minimum", "os_version_maximum"} & set(given):
        raise BadFileError("an OS version is given for several systems.", hint="Publish one installer for each.")
    return given


def facts_of(sidecar: Sidecar, kind: InstallerKind | Literal[""], name: str) -> InstallerFacts:
    """Return the facts of the file `name`, which has no header that is read and is of `kind` ("" and "other": unknown).

    Raises BadFileError when the sidecar lacks what every installer has to say, ConflictError when it names another
    kind than the content does, UsageError for values in `given` that no selector takes.
    """
    kind = kind or "other"
    if sidecar.kind not in ("", kind):
        raise ConflictError(
            f"{name}{SUFFIX} says kind {sidecar.kind}, and by its content {name} is of kind {kind}.",
            hint="Leave kind out of the sidecar.",
        )
    package = sidecar.package or sidecar.program
    lacking = [key for key, value in (("program", package), ("version", sidecar.version)) if not value]
    lacking += [] if "os_types" in sidecar.given else ["os"]
    if lacking:
        raise BadFileError(
            f"{name}{SUFFIX} does not say {' and '.join(lacking)}, and {name} has no header that is read.",
            hint=f"Write, for instance:\n{example(name)}",
        )
    return InstallerFacts(
        package_name=package,
        title=sidecar.title or package,
        version=sidecar.version,
        release=sidecar.version,
        kind=kind,
        selector=_selector(sidecar, name),
    )


def _selector(sidecar: Sidecar, name: str) -> Selector:
    try:
        return msgspec.convert(sidecar.given, Selector)
    except msgspec.ValidationError as error:  # what `parse` made is right; options may have been laid over it
        raise UsageError(f"What was given for {name} is wrong: {error}.") from None


def check(sidecar: Sidecar, facts: InstallerFacts, name: str) -> None:
    """Compare kind, package and version with what the header of the file `name` says. Raises ConflictError."""
    for key, said, header in (
        ("kind", sidecar.kind, (facts.kind,)),
        ("package", sidecar.package, (facts.package_name,)),
        ("version", sidecar.version, (facts.version, facts.release)),
    ):
        if said and said not in header:
            raise ConflictError(
                f"{name}{SUFFIX} says {key} {said}, and {name} itself says {header[0]}.",
                hint=f"What the file says of itself stands; leave {key} out of the sidecar.",
            )


def example(file_name: str, os: str = "linux") -> str:
    """Return a small sidecar for `file_name`, complete and in TOML, three lines."""
    stem = re.sub(r"[^A-Za-z0-9._+-]+", "-", file_name).lstrip("._+-")
    program = re.split(r"[-_]v?[0-9]|\.", stem)[0].lower()[:NAME_CHARACTERS] or "my-program"
    version = re.search(r"[0-9]{1,9}(?:\.[0-9]{1,9}){1,3}", stem)
    return f'program = "{program}"\nversion = "{version[0] if version else "1.0"}"\nos = "{os}"'


def _values(content: bytes) -> dict[str, Any]:
    if len(content) > SIDECAR_BYTES:
        raise BadFileError(f"it has more than {SIDECAR_BYTES} bytes.", hint="A sidecar is a few lines of TOML.")
    if any(line.count(b".") > DOTS for line in content.splitlines()):
        raise BadFileError("a line of it has too many dots.", hint="A sidecar is a few lines of TOML.")
    try:
        return tomllib.loads(content.decode("utf-8-sig"))
    except RecursionError as error:
        raise BadFileError("its lists or tables are nested too deep.", hint="A sidecar is flat.") from error
    except ValueError as error:  # of the decoding, the grammar, and of a number with thousands of digits
        raise BadFileError(f"it is not TOML: {str(error)[:120]}.", hint='A line is: key = "value".') from error


def _sidecar(values: dict[str, Any]) -> Sidecar:
    for key in values:
        if key not in _TEXTS and key not in _SELECTORS:
            near = difflib.get_close_matches(key[:NAME_CHARACTERS], (*_TEXTS, *_SELECTORS), 1)
            hint = f"Did you mean {near[0]}?" if near else f"Known are: {', '.join((*_TEXTS, *_SELECTORS))}."
            raise BadFileError(f"it has the key {key[:NAME_CHARACTERS]!r}, which means nothing here.", hint=hint)
    texts = {key: _line(_called(key), values[key], _TEXTS[key]) for key in _TEXTS if key in values}
    if "kind" in texts:
        texts["kind"] = _one_of(_called("kind"), texts["kind"], {kind: kind for kind in KINDS})
    return msgspec.convert({**texts, "given": given_of(values, _called)}, Sidecar)


def _called(key: str) -> str:
    return f"its {key}"


def _add(given: dict[str, Any], called: str, fields: dict[str, Any]) -> None:
    """Add the fields of one key. A field is said once, or which of the two held would depend on their order."""
    if set(fields) & set(given):
        raise BadFileError(f"{called} says a second time what is said already.", hint="Say it once.")
    given |= fields


# --- values, each read to what the catalogue takes ------------------------------------------------------------------


def _line(called: str, value: object, characters: int, wanted: str = "") -> str:
    if not isinstance(value, str) or not value.strip() or len(value) > characters or not value.isprintable():
        quotes = "" if isinstance(value, str) else " in quotes"
        raise _wrong(called, value, wanted or f"one line of 1 to {characters} printable characters{quotes}")
    return value.strip()


def _lines(called: str, value: object) -> list[str]:
    values = value if isinstance(value, list) else [value]
    if not 1 <= len(values) <= VALUES:
        raise _wrong(called, value, f"a list of 1 to {VALUES} texts")
    return [_line(called, one, NAME_CHARACTERS) for one in values]


def _texts(field: str) -> Callable[[str, object], dict[str, Any]]:
    return lambda called, value: {field: _lines(called, value)}


def _names(field: str, known: dict[str, str]) -> Callable[[str, object], dict[str, Any]]:
    def read(called: str, value: object) -> dict[str, Any]:
        names = [_one_of(called, one, known) for one in _lines(called, value)]
        return {field: list(dict.fromkeys(names))}

    return read


def _one_of(called: str, text: str, known: dict[str, str]) -> str:
    if text.lower() not in known:
        raise _wrong(called, text, f"one of {', '.join(known)}", difflib.get_close_matches(text.lower(), known, 1))
    return known[text.lower()]


def _os(called: str, value: object) -> dict[str, Any]:
    """Read "ios 7", a system and its versions, or a list of systems."""
    fields: dict[str, Any] = {"os_types": []}
    for text in _lines(called, value):
        found = _OS.fullmatch(text)
        if found is None:
            raise _wrong(called, text, 'a system such as "android", or with its version "android 12"')
        fields["os_types"].append(_one_of(called, found[1], {name: name for name in OS_TYPES}))
        if found[2]:
            _add(fields, called, _os_version(called, found[2]))
    fields["os_types"] = list(dict.fromkeys(fields["os_types"]))
    return fields


def _os_version(called: str, value: object) -> dict[str, Any]:
    text = _line(called, value, NAME_CHARACTERS, _OS_VERSION_WANTED)
    low, separator, high = (part.strip() for part in text.partition("-"))
    ends = [end for end in (low, high.removesuffix(".*")) if end]
    if not ends or not all(_OS_VERSION.fullmatch(end) for end in ends):
        raise _wrong(called, value, _OS_VERSION_WANTED)
    if not separator:
        high = f"{low.partition('.')[0]}.*"
    return _bounds("os_version", low, high)


def _range(field: str, bound: Callable[[str], Any], wanted: str) -> Callable[[str, object], dict[str, Any]]:
    """Read a number, or a text with one or a range; a bare value is both ends, of an API level the lower."""

    def read(called: str, value: object) -> dict[str, Any]:
        number = isinstance(value, int | float) and not isinstance(value, bool) and value > 0
        text = _line(called, str(value) if number else value, NAME_CHARACTERS, wanted)
        low, separator, high = (part.strip() for part in text.partition("-"))
        if not separator and field != "api_level":
            high = low
        try:
            fields = _bounds(field, low and bound(low), high and bound(high))
        except ValueError:
            fields = {}
        if not fields:
            raise _wrong(called, value, wanted)
        return fields

    return read


def _bounds(field: str, low: Any, high: Any) -> dict[str, Any]:
    ends = ((f"{field}_minimum", low), (f"{field}_maximum", high))
    return {name: end for name, end in ends if end}


def _whole_number(text: str) -> int:
    return int(_matched(_NUMBER, text)[0]) or _refuse_nought()


def _decimal(text: str) -> float:
    number = float(_matched(_DECIMAL, text)[0])
    return number if 0 < number <= 1_000 else _refuse_nought()


def _pixels(text: str) -> list[int]:
    found = _matched(_PIXELS, text.replace(" ", "").lower())
    sides = [int(found[1]), int(found[2])]
    return sides if all(1 <= side <= _LARGEST_PIXELS for side in sides) else _refuse_nought()


def _matched(pattern: re.Pattern[str], text: str) -> re.Match[str]:
    found = pattern.fullmatch(text)
    if found is None:
        raise ValueError(text)
    return found


def _refuse_nought() -> Any:
    raise ValueError("out of range")


def _wrong(called: str, value: object, wanted: str, near: list[str] | None = None) -> BadFileError:
    if isinstance(value, dict | list):  # it may be nested thousands deep, which its text would follow
        shown = "a table" if isinstance(value, dict) else "a list"
    else:
        shown = repr(value)[:80] if isinstance(value, str) else str(value)[:80].lower()
    hint = f"Did you mean {near[0]}?" if near else ""
    return BadFileError(f"{called} is {shown}; wanted is {wanted}.", hint=hint)


# What is text, and how many characters it may have.
_TEXTS: Final[dict[str, int]] = {
    "program": IDENTIFIER_CHARACTERS,
    "title": TEXT_CHARACTERS,
    "version": NAME_CHARACTERS,
    "kind": NAME_CHARACTERS,
    "package": IDENTIFIER_CHARACTERS,
    "channel": NAME_CHARACTERS,
}
# What becomes fields of a selector, and how it is read.
_SELECTORS: Final[dict[str, Callable[[str, object], dict[str, Any]]]] = {
    "os": _os,
    "os_version": _os_version,
    "architecture": _names("architectures", dict(ARCHITECTURE_NAMES)),
    "model": _texts("models"),
    "exclude_model": _texts("models_excluded"),
    "form_factor": _names("form_factors", {name: name for name in FORM_FACTORS}),
    "resolution": _range("resolution", _pixels, 'pixels such as "1920x1080", or "1280x720-3840x2160"'),
    "screen_inches": _range("screen_inches", _decimal, 'a diagonal such as 10.1, or "7-13"'),
    "density": _range("density_dpi", _whole_number, 'dots per inch such as 320, or "160-480"'),
    "api_level": _range("api_level", _whole_number, 'an API level such as 24 (and newer), or "24-33"'),
    "feature": _texts("features_required"),
    "without_feature": _texts("features_forbidden"),
}
