"""Which devices a person means, how their targets stand, and the exit code that says so to a script.

Pure. A target is named by its terminal id, by its name, or by its name in other letter case, in this order; `all` means
every other device of the account, `tag:TAG` every other one with that tag, whatever any device calls itself.
`SYNC_EXIT_CODES` and `ERROR_EXIT_CODES` are the two tables every command ends by.
"""

import difflib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import Final

from protocol.errors import (
    ConflictError,
    LockstepError,
    NotLoggedInError,
    UnavailableError,
    UnknownNameError,
    UsageError,
)
from protocol.life import FINAL, GOOD, State
from protocol.messages import DeviceRow, TargetRow

EVERYONE: Final = "all"
TAG: Final = "tag:"
NEAR_NAMES: Final = 3
OFFLINE: Final = "offline"
ITS_TURN: Final = ("", "waiting", "accepted")  # reasons of a target that is queued for its turn alone


# --- names --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Choice:
    """The targets a person chose: terminal ids in the order given, each once, or everyone."""

    targets: tuple[str, ...] = ()
    everyone: bool = False


def choose_targets(given: Iterable[str], devices: Sequence[DeviceRow], this: str = "") -> Choice:
    """Return the devices that the `--to` values in `given` name; each may be a list parted by commas.

    A tag means every device that has it but `this`, the terminal that asks.

    Raises UsageError when nothing is named or a name fits several devices, UnknownNameError when it fits none.
    """
    names = [name for value in given for name in _names_in(value, devices)]
    if not names:
        raise UsageError("No target is named.", hint="Say --to NAME, or --to all for every other device.")
    if EVERYONE in names:
        return Choice(everyone=True)
    return Choice(targets=tuple(dict.fromkeys(found for name in names for found in _terminals(name, devices, this))))


def choose_device(given: str, devices: Sequence[DeviceRow]) -> DeviceRow:
    """Return the one device that `given` names. Raises as `choose_targets` does, UsageError for a tag."""
    if _is_tag(given):
        raise UsageError(f"{given!r} is a tag, not a device.", hint="Give the name or the id of the one you mean.")
    terminal = _terminal_named(given, devices)
    return next(device for device in devices if device.terminal == terminal)


def _names_in(value: str, devices: Sequence[DeviceRow]) -> list[str]:
    """Split at commas, unless a device has just this name, commas and all; no name stands for a tag."""
    names = [name.strip() for name in value.split(",") if name.strip()]
    if value in {device.name for device in devices} and not any(_is_tag(name) for name in names):
        return [value]
    return names


def _is_tag(name: str) -> bool:
    return name.casefold().startswith(TAG)


def _terminals(name: str, devices: Sequence[DeviceRow], this: str) -> list[str]:
    """Return the ids of the devices that `name` means, or its tag."""
    if not _is_tag(name):
        return [_terminal_named(name, devices)]
    tag = name[len(TAG) :].strip().casefold()
    tagged = [device for device in devices if tag in {one.casefold() for one in device.tags}]
    if not tagged:
        raise UnknownNameError(
            f"There is no device with the tag {name[len(TAG) :].strip()!r}.",
            near=_near_tags(tag, devices),
            hint="" if _near_tags(tag, devices) else "`lockstep-terminal devices` shows the tags.",
            code="unknown-device",
        )
    others = [device.terminal for device in tagged if device.terminal != this]
    if not others:
        raise UsageError(f"Only this device has the tag {name[len(TAG) :].strip()!r}.", hint="Name another target.")
    return others


def _near_tags(tag: str, devices: Sequence[DeviceRow]) -> tuple[str, ...]:
    known = {one.casefold(): one for device in devices for one in device.tags}
    return tuple(f"{TAG}{known[near]}" for near in difflib.get_close_matches(tag, known, n=NEAR_NAMES, cutoff=0.5))


def _terminal_named(name: str, devices: Sequence[DeviceRow]) -> str:
    """Return the id of the device that `name` means: the first of the three ways that finds any device decides."""
    folded = name.casefold()
    ways = (
        [device.terminal for device in devices if device.terminal == name],
        [device.terminal for device in devices if device.name == name],
        [device.terminal for device in devices if device.name.casefold() == folded],
    )
    found = next((way for way in ways if way), [])
    if not found:
        near = _near(name, devices)
        hint = "" if near else "`lockstep-terminal devices` lists them."
        raise UnknownNameError(f"There is no device {name!r}.", near=near, hint=hint, code="unknown-device")
    if len(found) > 1:
        raise UsageError(
            f"{len(found)} devices are called {name!r}: {', '.join(found)}.",
            hint="Give the id of the one you mean.",
            code="ambiguous-name",
        )
    return found[0]


def _near(name: str, devices: Sequence[DeviceRow]) -> tuple[str, ...]:
    known = {device.name.casefold(): device.name for device in devices}
    return tuple(known[close] for close in difflib.get_close_matches(name.casefold(), known, n=NEAR_NAMES, cutoff=0.5))


# --- standing and exit codes --------------------------------------------------------------------------------------


class Standing(Enum):
    """How one target of a sync stands, as far as an exit code cares."""

    GOOD = "good"
    FAILED = "failed"
    LATER = "later"
    UNDER_WAY = "under way"


class ExitCode(IntEnum):
    """What a command's exit code means."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    PARTLY = 3
    NOT_LOGGED_IN = 4
    UNKNOWN_NAME = 5
    UNAVAILABLE = 6
    WAITING = 7
    INTERRUPTED = 130


# Which standings the targets of a sync have between them -> how the command ends. Every combination is here: as long as
# something is under way, or nothing has succeeded while a target still may later, the answer is "waiting".
_G, _F, _L, _U = Standing.GOOD, Standing.FAILED, Standing.LATER, Standing.UNDER_WAY
SYNC_EXIT_CODES: Final[dict[frozenset[Standing], ExitCode]] = {
    frozenset(): ExitCode.DONE,  # no target: nothing was asked for
    frozenset({_G}): ExitCode.DONE,
    frozenset({_F}): ExitCode.FAILED,
    frozenset({_G, _F}): ExitCode.PARTLY,
    frozenset({_G, _L}): ExitCode.PARTLY,
    frozenset({_G, _F, _L}): ExitCode.PARTLY,
    frozenset({_L}): ExitCode.WAITING,
    frozenset({_F, _L}): ExitCode.WAITING,
    frozenset({_U}): ExitCode.WAITING,
    frozenset({_U, _G}): ExitCode.WAITING,
    frozenset({_U, _F}): ExitCode.WAITING,
    frozenset({_U, _L}): ExitCode.WAITING,
    frozenset({_U, _G, _F}): ExitCode.WAITING,
    frozenset({_U, _G, _L}): ExitCode.WAITING,
    frozenset({_U, _F, _L}): ExitCode.WAITING,
    frozenset({_U, _G, _F, _L}): ExitCode.WAITING,
}

# The first class an error belongs to decides; any other error is FAILED.
ERROR_EXIT_CODES: Final[tuple[tuple[type[LockstepError], ExitCode], ...]] = (
    (UnknownNameError, ExitCode.UNKNOWN_NAME),
    (ConflictError, ExitCode.FAILED),
    (UsageError, ExitCode.USAGE),
    (NotLoggedInError, ExitCode.NOT_LOGGED_IN),
    (UnavailableError, ExitCode.UNAVAILABLE),
)


def standing_of(target: TargetRow) -> Standing:
    """Return how `target` stands. A state this version does not know counts as under way."""
    if target.state in GOOD:
        return Standing.GOOD
    if target.state in FINAL:
        return Standing.FAILED
    return Standing.LATER if _is_for_later(target) else Standing.UNDER_WAY


def _is_for_later(target: TargetRow) -> bool:
    """Return whether it waits for a person, for quiet hours to end, for room, for another try, or to be online."""
    if target.state in (State.ASKING, State.POSTPONED) or target.reason == OFFLINE:
        return True  # offline also when it went while it was installing
    return target.state == State.QUEUED and target.reason not in ITS_TURN


def is_waited_for(targets: Iterable[TargetRow]) -> bool:
    """Return whether a target is under way; one that has ended or is for later does not hold up `sync`."""
    return any(standing_of(target) is Standing.UNDER_WAY for target in targets)


def has_ended(targets: Iterable[TargetRow]) -> bool:
    """Return whether every target has ended, well or not."""
    return all(standing_of(target) in (Standing.GOOD, Standing.FAILED) for target in targets)


def sync_exit_code(targets: Collection[TargetRow], *, waits: bool = True) -> ExitCode:
    """Return the exit code of a sync whose targets stand like this when the command stops looking.

    0 all done or the same already; 1 all failed (which is any other end); 3 some are done, others failed or are for
    later (offline, asking a person, postponed, another try); 7 something is still under way, or nothing is done and a
    target still may be later. Without `waits` a sync that has not ended is as good as was asked for: 0.
    """
    if not waits and not has_ended(targets):
        return ExitCode.DONE
    return SYNC_EXIT_CODES[frozenset(standing_of(target) for target in targets)]


def error_exit_code(error: LockstepError) -> ExitCode:
    """Return the exit code for `error`: 5 unknown name, 2 usage, 4 log in first, 6 unreachable, 1 any other.

    7 for a pairing that nobody has answered: the same command asks again.
    """
    if error.code == "pairing-expired":
        return ExitCode.WAITING
    return next((code for kind, code in ERROR_EXIT_CODES if isinstance(error, kind)), ExitCode.FAILED)
