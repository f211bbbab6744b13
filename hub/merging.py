"""Merging: what an installer's header, the sidecar beside it and the command line say -> one entry for the catalogue.

The header stands: what people say may narrow it or add to it, and is refused where it contradicts. The command line
beats the sidecar. Nothing here reads a file or the database.
"""

import math
import re
from collections.abc import Callable
from typing import Any, Final

import msgspec
from msgspec import Struct, structs

from hub.inspectors import Inspected, names
from hub.inspectors.sidecar import SUFFIX, Sidecar, facts_of
from hub.matching import Selector
from hub.records import InstallerFacts
from protocol import limits
from protocol.errors import BadFileError, ConflictError, UsageError

PROGRAM_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
CHANNEL: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
STABLE: Final = "stable"

# Kinds of which the sidecar says everything.
_WITHOUT_HEADER: Final = frozenset(known.kind for known in names.KNOWN)
# What of a list that the header gives may be given as well: fewer of those, or more of these.
_FEWER: Final = frozenset({"os_types", "architectures", "form_factors", "models"})
_MORE: Final = frozenset({"models_excluded", "features_required", "features_forbidden"})


class PublishOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a person says of an installer beyond its header. `given` holds fields of `Selector`.

    With `correct` it replaces what is known of a file that is published already.
    """

    program: str = ""
    title: str = ""
    channel: str = ""
    given: dict[str, Any] = {}
    correct: bool = False


class Entry(Struct, frozen=True, kw_only=True):
    """An installer on its way into the catalogue; `program`, `title` and `channel` are empty where nobody gave one.

    `given` says whether a person said anything of the devices it fits, `corrects` whether it replaces what is known.
    """

    file_name: str
    facts: InstallerFacts
    program: str
    title: str
    channel: str
    given: bool
    corrects: bool = False


def merge(file_name: str, found: Inspected, options: PublishOptions) -> Entry:
    """Return the entry for a file of which this was found.

    Raises ConflictError where what was given contradicts the header, UsageError where it makes no sense, BadFileError
    where something is missing or no message could carry it.
    """
    sidecar, facts = found.sidecar, found.facts
    given = _over(sidecar.given, options.given)
    if facts.kind in _WITHOUT_HEADER:
        facts = facts_of(structs.replace(sidecar, given=given), facts.kind, file_name)
    else:
        facts = structs.replace(facts, selector=_narrowed(file_name, facts.selector, given))
    _check_selector(file_name, facts.selector)
    _check_names(file_name, sidecar, options)
    entry = Entry(
        file_name=file_name,
        facts=facts,
        program=options.program or sidecar.program,
        title=options.title or sidecar.title,
        channel=options.channel or sidecar.channel,
        given=bool(given),
        corrects=options.correct,
    )
    _check_texts(entry)
    return entry


def _check_names(file_name: str, sidecar: Sidecar, options: PublishOptions) -> None:
    """Refuse a program id or channel that is none, by the sidecar's name where that says it.

    Raises UsageError, and BadFileError for the sidecar.
    """
    for check, given, said in (
        (check_program_id, options.program, sidecar.program),
        (check_channel, options.channel, sidecar.channel),
    ):
        if given:
            check(given)
        elif said:
            try:
                check(said)
            except UsageError as error:
                hint = f"{error.hint} Mend {file_name}{SUFFIX}."
                raise BadFileError(f"{file_name}{SUFFIX}: {error.message}", hint=hint) from None


def _over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Lay what one says over what another says; a range is one thing, so half of one hides the whole below it."""
    hidden = {_range_of(name) for name in above if _range_of(name)}
    return {name: value for name, value in below.items() if _range_of(name) not in hidden} | above


def _range_of(field: str) -> str:
    name = field.removesuffix("_minimum").removesuffix("_maximum")
    return name if name != field else ""


def _narrowed(file_name: str, header: Selector, given: dict[str, Any]) -> Selector:
    """Lay what was given over what the header says. Raises ConflictError where they contradict, and UsageError."""
    try:
        wanted = msgspec.convert({"os_types": list(header.os_types)} | given, Selector)
    except msgspec.ValidationError as error:
        what, _, where = str(error).partition(" - at `$.")
        raise UsageError(f"What was given for {file_name} is wrong: {where.rstrip('`')}: {what}.") from None
    changes = {}
    for name in given:
        said, added = getattr(header, name), getattr(wanted, name)
        if said in (None, "", ()) or _is_narrower(name, said, added):
            changes[name] = added
        elif name in _MORE:
            changes[name] = tuple(dict.fromkeys((*said, *added)))
        else:
            raise ConflictError(
                f"{file_name} says {name.replace('_', ' ')} {_words(said)}, and {_words(added)} was given.",
                hint="What the file says of itself stands; leave the option out.",
            )
    return structs.replace(header, **changes)


def _is_narrower(name: str, said: Any, wanted: Any) -> bool:
    if name in _FEWER:
        return set(wanted) <= set(said)
    if key := _RANGES.get(_range_of(name)):
        return bool(key(wanted) >= key(said) if name.endswith("_minimum") else key(wanted) <= key(said))
    return bool(said == wanted)


def _os_version_key(text: str) -> tuple[float, ...]:
    """Return what orders OS versions, as matching does: by their numbers; "12.*" comes after all that begin with 12."""
    numbers = [float(digits) for digits in re.findall("[0-9]+", text)]
    if text.endswith(".*"):
        return (*numbers, math.inf)
    while numbers and not numbers[-1]:
        numbers.pop()
    return tuple(numbers)


# How the two ends of a range compare.
_RANGES: Final[dict[str, Callable[[Any], Any]]] = {
    "screen_inches": float,
    "density_dpi": int,
    "api_level": int,
    "resolution": lambda pixels: (max(pixels), min(pixels)),
    "os_version": _os_version_key,
}


def _check_selector(file_name: str, selector: Selector) -> None:
    """Refuse a range that ends before it begins, and a model or feature both asked for and not. Raises UsageError."""
    for name, key in _RANGES.items():
        low, high = getattr(selector, f"{name}_minimum"), getattr(selector, f"{name}_maximum")
        if low and high and key(low) > key(high):
            raise UsageError(f"For {file_name} {name.replace('_', ' ')} {low} to {high} was given: nothing fits that.")
    if both := set(selector.models) & set(selector.models_excluded):
        raise UsageError(f"For {file_name} the model {both.pop()!r} was both named and excluded.")
    if both := set(selector.features_required) & set(selector.features_forbidden):
        raise UsageError(f"For {file_name} the feature {both.pop()!r} was both required and forbidden.")


def check_program_id(program: str) -> None:
    """Refuse what no one could type. Raises UsageError."""
    if not PROGRAM_ID.fullmatch(program):
        raise UsageError(
            f"{program[:80]!r} is not a program id.",
            hint="Letters, digits and . _ + - make one, and it begins with a letter or a digit.",
        )


def check_channel(channel: str) -> None:
    """Refuse what is no channel's name. Raises UsageError."""
    if not CHANNEL.fullmatch(channel):
        raise UsageError(
            f"{channel[:80]!r} is not a channel.",
            hint='"stable" and "beta" are two; lower-case letters, digits and . _ - make one, 64 at most.',
        )


def check_file_name(file_name: str) -> None:
    """Refuse a name of several lines, or one that would steer a terminal it is shown on. Raises UsageError."""
    if not file_name.strip() or not file_name.isprintable():
        raise UsageError(f"{file_name[:80]!r} is not one printable line.", hint="Rename the file.", code="bad-name")


def _check_texts(entry: Entry) -> None:
    """Refuse what no message could carry or no one could type. Raises BadFileError and UsageError."""
    program = entry.program or entry.facts.package_name
    check_program_id(program)
    longest = limits.IDENTIFIER_CHARACTERS
    for what, text, characters in (
        ("program id", program, longest),
        ("package name", entry.facts.package_name, longest),
        ("version", entry.facts.version, longest),
        ("title", entry.title or entry.facts.title, limits.TEXT_CHARACTERS),
    ):
        if not text.strip() or len(text) > characters or not text.isprintable():
            raise BadFileError(
                f"{entry.file_name} cannot be published: its {what} {text[:40]!r} has {len(text)} characters.",
                hint=f"1 to {characters} printable characters are allowed.",
            )


def _words(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
