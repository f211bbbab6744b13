"""Commands of the person at this device: what asks to be installed, yes, no or later, and what to do unasked.

They need no hub: a running agent is told at once, and without one the decision is kept and said at the next connection.
"""

import asyncio
import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, Literal, TypeAlias, get_args

import click

from protocol.errors import ConflictError, UnknownNameError, UsageError
from terminal.place import Place, common_options

if TYPE_CHECKING:
    from protocol.messages import InboxRow
    from terminal.consent import Preferences
    from terminal.state import StateFolder

ALL: Final = "all"
OFF: Final = "off"
DEFAULT: Final = "default"
LATER_LONGEST_DAYS: Final = 30
DURATION_SECONDS: Final = {"s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0}
SLOWEST_BYTES_PER_SECOND: Final = 8_000  # a chunk of 64 KiB within half the time a send may take
RATE_BYTES: Final = {"": 1, "b": 1, "kb": 1_000, "mb": 1_000_000, "gb": 1_000_000_000}
DefaultWish: TypeAlias = Literal["ask", "auto", "never", "default"]


# --- the inbox ----------------------------------------------------------------------------------------------------


@click.command()
@common_options
def inbox(place: Place) -> int:
    """List what asks to be installed on this device."""
    from terminal.tables import inbox_table

    rows = asyncio.run(_rows(_folder(place)))
    place.show({"inbox": rows}, inbox_table(rows, now=datetime.now(UTC)))
    return 0


@click.command()
@click.argument("delivery", metavar="DELIVERY|all")
@common_options
def accept(place: Place, delivery: str) -> int:
    """Agree to DELIVERY: it is received and installed now, or as soon as the hub is there."""
    return asyncio.run(_decide(place, delivery, "accept"))


@click.command()
@click.argument("delivery", metavar="DELIVERY|all")
@common_options
def decline(place: Place, delivery: str) -> int:
    """Refuse DELIVERY: it is not installed, and whoever sent it sees that."""
    return asyncio.run(_decide(place, delivery, "decline"))


@click.command()
@click.argument("delivery", metavar="DELIVERY|all")
@click.option("--for", "duration", default="1h", show_default=True, metavar="TIME", help="30m, 2h, 1d; at most 30d.")
@common_options
def later(place: Place, delivery: str, duration: str) -> int:
    """Put DELIVERY off: it asks again when the time is over."""
    return asyncio.run(_decide(place, delivery, "later", seconds_of(duration)))


_WORDS: Final = {"accept": "Accepted", "decline": "Declined", "later": "Put off"}


def _folder(place: Place) -> "StateFolder":
    """Return the folder of a device that is logged in; a mistyped one decides nothing. Raises NotLoggedInError."""
    folder = place.folder()
    folder.identity()
    return folder


async def _rows(folder: "StateFolder") -> "tuple[InboxRow, ...]":
    from protocol.messages import Inbox, InboxResult
    from terminal.client import ask_here

    result = await ask_here(folder, Inbox(id=1))
    return result.rows if isinstance(result, InboxResult) else ()


async def _decide(
    place: Place, delivery: str, decision: Literal["accept", "decline", "later"], seconds: float = 0.0
) -> int:
    from protocol.messages import Decide
    from terminal.client import ask_here
    from terminal.tables import printable

    if not delivery:
        raise UsageError("No delivery is named.", hint="`lockstep-terminal inbox` lists them.")
    folder = _folder(place)
    chosen = [row.delivery for row in await _rows(folder)] if delivery == ALL else [delivery]
    decided, too_late = [], []
    for one in chosen:
        try:
            await ask_here(folder, Decide(id=1, delivery=one, decision=decision, seconds=seconds))
            decided.append(one)
        except (ConflictError, UnknownNameError):  # what changed meanwhile keeps nobody from deciding on the rest
            if delivery != ALL:
                raise
            too_late.append(one)
    outcomes = {_WORDS[decision]: decided, "Too late": too_late}
    words = " ".join(f"{word}: {', '.join(some)}." for word, some in outcomes.items() if some)
    answer = {"decision": decision, "deliveries": decided, "too_late": too_late}
    place.show(answer, printable(words) or "Nothing waits for a decision.")
    return decisions_exit_code(len(decided), len(too_late))


def decisions_exit_code(decided: int, too_late: int) -> int:
    """Return the exit code of `accept`, `decline` and `later` with these counts."""
    from terminal.targets import ExitCode

    if not too_late:
        return ExitCode.DONE
    return ExitCode.PARTLY if decided else ExitCode.FAILED


def seconds_of(duration: str) -> float:
    """Return how many seconds "30m", "2h" or "1d" are. Raises UsageError."""
    found = re.fullmatch(r"(\d{1,6}(?:\.\d{1,3})?)\s*([smhd])", duration.strip().lower())
    seconds = float(found[1]) * DURATION_SECONDS[found[2]] if found else 0.0
    if not 0 < seconds <= LATER_LONGEST_DAYS * DURATION_SECONDS["d"]:
        raise UsageError(
            f"{duration!r} is no time from now.", hint=f"For example 30m, 2h or 1d; at most {LATER_LONGEST_DAYS}d."
        )
    return seconds


# --- settings -----------------------------------------------------------------------------------------------------


@click.group()
def settings() -> None:
    """Show or change what this device takes from others, and when."""


@settings.command()
@common_options
def show(place: Place) -> int:
    """Show the settings."""
    _show(place, _folder(place).preferences())
    return 0


@settings.command()
@click.argument("wish", type=click.Choice(get_args(DefaultWish)))
@click.option("--program", metavar="PROGRAM", help="Only for this program; `default` takes that back.")
@common_options
def consent(place: Place, wish: DefaultWish, program: str | None) -> int:
    """Say whether what others send is installed: `auto`, `never`, or `ask` a person at this device first."""
    from msgspec import structs

    def change(kept: "Preferences") -> "Preferences":
        if program is None:
            if wish == "default":
                raise UsageError("`default` is for one program.", hint="Add --program, or say auto, ask or never.")
            return structs.replace(kept, consent=wish)
        programs = {name: other for name, other in kept.programs.items() if name != program}
        return structs.replace(kept, programs=programs if wish == "default" else {**programs, program: wish})

    return _change(place, change)


@settings.command("quiet-hours")
@click.argument("hours", metavar="HH:MM-HH:MM|off")
@common_options
def quiet_hours(place: Place, hours: str) -> int:
    """Begin nothing between these times of the local day, unless a person accepts it."""
    from msgspec import structs

    from protocol import quiet

    wanted = "" if hours == OFF else hours.strip()
    quiet.quiet_hours(wanted)
    return _change(place, lambda kept: structs.replace(kept, quiet_hours=wanted))


@settings.command()
@click.argument("rate", metavar="RATE|off")
@common_options
def bandwidth(place: Place, rate: str) -> int:
    """Receive at most RATE a second: 500kB, 2MB, or a number of bytes."""
    from msgspec import structs

    bytes_per_second = 0 if rate == OFF else rate_of(rate)
    return _change(place, lambda kept: structs.replace(kept, bytes_per_second=bytes_per_second))


@settings.command("scan-pace")
@click.argument("rate", metavar="RATE|default")
@common_options
def scan_pace(place: Place, rate: str) -> int:
    """Scan the programs here with at most RATE a second: 500kB, 2MB, or a number of bytes."""
    from msgspec import structs

    bytes_per_second = 0 if rate == DEFAULT else rate_of(rate)
    return _change(place, lambda kept: structs.replace(kept, scan_bytes_per_second=bytes_per_second))


def rate_of(rate: str) -> int:
    """Return how many bytes a second "500kB" or "2MB" are. Raises UsageError."""
    found = re.fullmatch(r"(\d{1,12}(?:\.\d{1,3})?)\s*([kmg]?b?)(?:/s)?", rate.strip().lower())
    unit = RATE_BYTES.get(found[2]) if found else None
    bytes_per_second = int(float(found[1]) * unit) if found and unit else 0
    if bytes_per_second < SLOWEST_BYTES_PER_SECOND:
        raise UsageError(
            f"{rate!r} is no rate, or less than {SLOWEST_BYTES_PER_SECOND} bytes a second, with which nothing arrives.",
            hint="For example 500kB, 2MB or off.",
        )
    return bytes_per_second


def _change(place: Place, change: "Callable[[Preferences], Preferences]") -> int:
    folder = _folder(place)
    changed = change(folder.preferences())
    check(changed)
    folder.save_preferences(changed)
    asyncio.run(_tell(folder))
    _show(place, changed)
    return 0


def check(preferences: "Preferences") -> None:
    """Raise UsageError for what the file could not hold: too many programs, or a name no program can have."""
    import msgspec

    from terminal.consent import Preferences

    try:
        msgspec.json.decode(msgspec.json.encode(preferences), type=Preferences)
    except (msgspec.MsgspecError, UnicodeEncodeError) as error:
        raise UsageError(f"These settings cannot be: {error}.", hint="Nothing was changed.") from None


async def _tell(folder: "StateFolder") -> None:
    """Have a running agent look at the settings again; without one the next start does."""
    if folder.is_locked():
        await _rows(folder)


def _show(place: Place, preferences: "Preferences") -> None:
    from terminal.tables import facts_table

    place.show({"settings": preferences}, facts_table(_facts(preferences)))


def _facts(preferences: "Preferences") -> dict[str, str | Sequence[str]]:
    from terminal.tables import size_words

    pace, scan_pace = preferences.bytes_per_second, preferences.scan_bytes_per_second
    return {
        "consent": preferences.consent,
        "programs": [f"{program}: {wish}" for program, wish in sorted(preferences.programs.items())],
        "quiet_hours": preferences.quiet_hours or OFF,
        "bandwidth": f"{size_words(pace)} a second" if pace else OFF,
        "scan_pace": f"{size_words(scan_pace)} a second" if scan_pace else DEFAULT,
    }
