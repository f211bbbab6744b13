"""What the commands show: rows -> a table of words, and that -> aligned text for a pipe, a rich table, or a document.

Pure: no file, clock or terminal; the time now is an argument. Everything another device wrote (names, details) is made
printable here, so that no device can send escape codes to another one's screen. The larger parts of rich are imported
only when something is drawn with them.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct
from rich.cells import cell_len

from protocol.device import DeviceInfo, OsType
from protocol.life import FINAL, State
from protocol.messages import DeviceRow, InboxRow, ProgramRow, SyncRow, TargetRow
from terminal.targets import OFFLINE, Standing, standing_of

if TYPE_CHECKING:
    from rich.console import RenderableType

NOTHING: Final = "-"
NO_INSTALLER: Final = "no-installer"
COLUMN_GAP: Final = "  "
BAR_CELLS: Final = 24
BYTES_UNITS: Final = ("bytes", "kB", "MB", "GB")
OS_TITLES: Final[Mapping[OsType, str]] = {
    "android": "Android",
    "ios": "iOS",
    "linux": "Linux",
    "macos": "macOS",
    "windows": "Windows",
    "other": "other",
}
PLAN_WORDS: Final[Mapping[str, str]] = {
    State.QUEUED: "to be sent",
    State.SAME: "has it already",
    State.NO_MATCH: "nothing fits",
}
# Ages are told in the largest of these units that fits at least once: its seconds and its word.
AGE_UNITS: Final = ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s"))
STANDING_STYLES: Final[Mapping[Standing, str]] = {
    Standing.GOOD: "green",
    Standing.FAILED: "red",
    Standing.LATER: "yellow",
    Standing.UNDER_WAY: "cyan",
}


@dataclass(frozen=True, slots=True)
class Table:
    """Columns and rows of printable words. A cell may have several lines; `empty` is said when there are no rows."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    empty: str = "Nothing to show."


# --- words --------------------------------------------------------------------------------------------------------


def printable(text: str) -> str:
    """Return `text` on one line without control, escape and direction characters; a device name cannot draw."""
    return "".join(character if character.isprintable() else " " for character in text).strip()


def printable_lines(text: str) -> str:
    """Return `text` as `printable` does, but with its line breaks."""
    return "\n".join(printable(line) for line in text.split("\n")).strip()


def size_words(size_bytes: int) -> str:
    """Return a size in decimal units: "0 bytes", "12.3 MB"."""
    size, unit = float(size_bytes), BYTES_UNITS[0]
    for unit in BYTES_UNITS:
        if size < 1000 or unit == BYTES_UNITS[-1]:
            break
        size /= 1000
    return f"{size_bytes} bytes" if unit == BYTES_UNITS[0] else f"{size:.1f} {unit}"


def age_words(seconds: float) -> str:
    """Return how long ago something was: "3 min ago"; under a second, or in the future by a crooked clock, "now"."""
    for unit_seconds, unit in AGE_UNITS:
        if seconds >= unit_seconds:
            return f"{int(seconds // unit_seconds)} {unit} ago"
    return "now"


def duration_words(seconds: float) -> str:
    """Return how long something takes in its largest unit, rounded up: "2 h"; under a second "1 s"."""
    for unit_seconds, unit in AGE_UNITS:
        if seconds >= unit_seconds:
            return f"{math.ceil(seconds / unit_seconds)} {unit}"
    return "1 s"


def state_words(target: TargetRow) -> str:
    """Return where a target stands, in a few words: "downloading 45 %", "failed (no-space)", "queued (offline)"."""
    if target.state == State.DOWNLOADING and target.size:
        return f"{target.state} {100 * min(target.done, target.size) // target.size} %"
    reason = printable(target.reason)
    return f"{printable(target.state)} ({reason})" if reason else printable(target.state)


def counts_words(counts: Mapping[str, int]) -> str:
    """Return "2 done, 1 failed" for {"done": 2, "failed": 1}."""
    return ", ".join(f"{count} {printable(state)}" for state, count in counts.items() if count)


def summary(targets: Sequence[TargetRow]) -> str:
    """Return one sentence on all targets of a sync as they stand."""
    if not targets:
        return "There is no device to bring it to."
    noun = "target" if len(targets) == 1 else "targets"
    return f"{len(targets)} {noun}: {counts_words(Counter(target.state for target in targets))}."


def _why(target: TargetRow) -> str:
    """Return the hub's sentence, which names the fields in the way; `mismatches` has them for programs."""
    return printable(target.detail)


# --- tables -------------------------------------------------------------------------------------------------------


def devices_table(devices: Iterable[DeviceRow], *, this: str, now: datetime) -> Table:
    """Return the devices by name, tags and standing where there are any; `this` is the id of the one that asks."""
    rows = sorted(devices, key=lambda row: (row.name.casefold(), row.terminal))
    columns = ["NAME", "ID", "ONLINE", "MODEL", "KIND", "SYSTEM", "ARCHITECTURE", "SCREEN", "TAGS", "STANDING"]
    cells = [_device_cells(row, this, now) for row in rows]
    for column in ("TAGS", "STANDING"):  # most accounts need neither
        index = columns.index(column)
        if not any(row[index] for row in cells):
            del columns[index]
            cells = [row[:index] + row[index + 1 :] for row in cells]
    return Table(columns=tuple(columns), rows=tuple(cells), empty="The account has no devices.")


def _device_cells(row: DeviceRow, this: str, now: datetime) -> tuple[str, ...]:
    device = row.device
    seen = f"seen {age_words(now.timestamp() - row.last_seen)}" if row.last_seen else "no"
    return (
        printable(row.name) + (" (this device)" if row.terminal == this else ""),
        printable(row.terminal),
        "yes" if row.online else seen,
        printable(device.model),
        device.form_factor,
        system_words(device),
        ", ".join(device.architectures),
        _screen_words(device),
        ", ".join(printable(tag) for tag in row.tags),
        printable(row.standing),
    )


def system_words(device: DeviceInfo) -> str:
    """Return a device's operating system: "Android 12 (API 31)"."""
    level = f" (API {device.api_level})" if device.api_level else ""
    return f"{OS_TITLES[device.os_type]} {printable(device.os_version)}".rstrip() + level


def _screen_words(device: DeviceInfo) -> str:
    inches = f"{device.screen_inches:g} in" if device.screen_inches else ""
    pixels = "{} x {}".format(*device.resolution) if device.resolution else ""
    return ", ".join(words for words in (inches, pixels) if words)


def programs_table(programs: Iterable[ProgramRow], devices: Iterable[DeviceRow]) -> Table:
    """Return the programs; the terminals they are on are shown by name where `devices` knows them."""
    names = {device.terminal: device.name for device in devices}
    return Table(
        columns=("PROGRAM", "TITLE", "NEWEST", "INSTALLERS", "ON"),
        rows=tuple(
            (
                printable(row.program),
                printable(row.title),
                printable(row.newest) or "-",
                ", ".join(row.installer_kinds),
                ", ".join(printable(names.get(terminal, terminal)) for terminal in row.installed_on),
            )
            for row in programs
        ),
        empty="The catalogue has no such program.",
    )


def plan_table(targets: Sequence[TargetRow]) -> Table:
    """Return what a sync does: per target the installer it gets, why that one and what may go wrong, or why none."""
    may_fail = any(not forecast.stops for row in targets for forecast in row.forecasts)
    return Table(
        columns=("TARGET", "ID", "PLAN", "VERSION", "KIND", "FILE", "SIZE", "WHY", "BUT")[: 9 if may_fail else 8],
        rows=tuple(_plan_cells(row)[: 9 if may_fail else 8] for row in targets),
        empty="There is no device to bring it to.",
    )


def _plan_cells(row: TargetRow) -> tuple[str, ...]:
    return (
        printable(row.name),
        printable(row.terminal),
        _plan_words(row),
        printable(row.version),
        printable(row.installer_kind),
        printable(row.file_name),
        size_words(row.size) if row.size else "",
        _why(row),
        " ".join(printable(forecast.detail) for forecast in row.forecasts if not forecast.stops),
    )


def _plan_words(row: TargetRow) -> str:
    if row.reason == OFFLINE:
        return f"{PLAN_WORDS[State.QUEUED]} when it is online"
    if row.state == State.NO_MATCH and row.reason not in ("", NO_INSTALLER):
        return f"not sent ({printable(row.reason)})"
    return PLAN_WORDS.get(row.state, state_words(row))


def rejected_table(targets: Iterable[TargetRow], *, everything: bool) -> Table:
    """Return each field in the way: of the nearest installer where nothing fits, or of every one the hub tells of."""
    rows = []
    for target in targets:
        told = target.rejected if everything else target.rejected[: not target.digest]
        for rejected in told:
            name = printable(rejected.file_name) or printable(rejected.version)
            cells = (printable(target.name), printable(rejected.version), rejected.installer_kind, name)
            rows += [
                (*cells, printable(one.field).replace("_", " "), printable(one.wants), printable(one.has))
                for one in rejected.mismatches
            ]
    return Table(
        columns=("TARGET", "NOT", "KIND", "FILE", "FIELD", "WANTS", "HAS"),
        rows=tuple(rows),
        empty="No installer was rejected.",
    )


def targets_table(targets: Iterable[TargetRow]) -> Table:
    """Return the targets of a sync as they stand."""
    return Table(
        columns=("TARGET", "ID", "STATE", "VERSION", "SIZE", "SENT", "DETAIL"),
        rows=tuple(
            (
                printable(row.name),
                printable(row.terminal),
                state_words(row),
                printable(row.version),
                size_words(row.size) if row.size else "",
                size_words(row.sent),
                _why(row),
            )
            for row in targets
        ),
        empty="The sync has no targets.",
    )


def history_table(syncs: Iterable[SyncRow], *, now: datetime) -> Table:
    """Return the syncs in the order given; times are in the zone of `now`."""
    return Table(
        columns=("SYNC", "WHEN", "PROGRAM", "VERSION", "FROM", "OUTCOME", "TARGETS", "SENT"),
        rows=tuple(
            (
                printable(row.sync),
                datetime.fromtimestamp(row.created_at, now.tzinfo).strftime("%Y-%m-%d %H:%M"),
                printable(row.program),
                printable(row.version),
                printable(row.initiator_name or row.initiator),
                _outcome_words(row),
                counts_words(row.counts),
                size_words(row.sent),
            )
            for row in syncs
        ),
        empty="There have been no syncs.",
    )


def inbox_table(rows: Iterable[InboxRow], *, now: datetime) -> Table:
    """Return what waits for a person at this device."""
    return Table(
        columns=("DELIVERY", "PROGRAM", "VERSION", "FILE", "SIZE", "FROM", "SINCE", "STATE"),
        rows=tuple(
            (
                printable(row.delivery),
                printable(row.program),
                printable(row.version),
                printable(row.file_name),
                size_words(row.size),
                printable(row.initiator),
                age_words(now.timestamp() - row.since),
                f"postponed for {duration_words(row.seconds)}" if row.seconds else "asking",
            )
            for row in rows
        ),
        empty="Nothing waits for a decision.",
    )


def _outcome_words(row: SyncRow) -> str:
    words = printable(row.outcome) or "under way"
    return f"{words} (undoes {printable(row.undoes)})" if row.undoes else words


def facts_table(facts: Mapping[str, object]) -> Table:
    """Return named facts, one a row; unknown ones (None, empty) are shown as such."""
    return Table(
        columns=("FIELD", "VALUE"),
        rows=tuple((name.replace("_", " "), _fact_words(value)) for name, value in facts.items()),
    )


def _fact_words(value: object) -> str:
    if isinstance(value, (tuple, list)):
        return ", ".join(printable(str(item)) for item in value)
    return "" if value is None else printable(str(value))


# --- progress -----------------------------------------------------------------------------------------------------


def changed_lines(before: Mapping[str, TargetRow], targets: Iterable[TargetRow]) -> list[str]:
    """Return a line for each target that has come to another state since `before` (by terminal id)."""
    return [_target_line(row) for row in targets if _step(before.get(row.terminal)) != _step(row)]


def _step(row: TargetRow | None) -> tuple[str, str] | None:
    return None if row is None else (row.state, row.reason)


def _target_line(row: TargetRow) -> str:
    detail = _why(row) if row.state in FINAL else ""
    line = f"{printable(row.name)}: {state_words(row)}"
    return f"{line}: {detail}" if detail else line


def progress_view(targets: Sequence[TargetRow], *, rows: int) -> "RenderableType":
    """Return a rich table with a bar per target, those under way first, at most `rows` of them, and the summary."""
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table as RichTable
    from rich.text import Text

    grid = RichTable.grid(padding=(0, 2))
    ordered = sorted(targets, key=lambda row: standing_of(row) is not Standing.UNDER_WAY)
    for row in ordered[: max(rows, 1)]:
        completed = row.size if standing_of(row) is Standing.GOOD else row.done
        bar = ProgressBar(max(row.size, 1), completed, BAR_CELLS, complete_style="cyan", finished_style="green")
        state = Text(state_words(row), style=STANDING_STYLES[standing_of(row)])
        grid.add_row(Text(printable(row.name)), bar, state, Text(size_words(row.size) if row.size else ""))
    return Group(grid, Text(summary(targets)))


# --- forms --------------------------------------------------------------------------------------------------------


def plain_text(table: Table) -> str:
    """Return the table as aligned columns for a pipe: no tabs, no colours, no lines; one text line a row."""
    if not table.rows:
        return table.empty
    cells = [table.columns, *([cell or NOTHING for cell in row] for row in table.rows)]
    widths = [max(cell_len(cell) for cell in column) for column in zip(*cells, strict=True)]
    return "\n".join(_aligned(row, widths) for row in cells)


def _aligned(row: Sequence[str], widths: Sequence[int]) -> str:
    # Counted in cells, not characters: a Chinese character takes two.
    padded = [cell + " " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=True)]
    return COLUMN_GAP.join(padded).rstrip()


def rich_table(table: Table) -> "RenderableType":
    """Return the table for a screen; words are never read as markup, and ids are folded, never cut."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table as RichTable
    from rich.text import Text

    if not table.rows:
        return Text(table.empty)
    drawn = RichTable(box=SIMPLE_HEAD, pad_edge=False)
    for column in table.columns:
        drawn.add_column(column, overflow="fold")
    for row in table.rows:
        drawn.add_row(*(Text(cell) for cell in row))
    return drawn


def document(value: object) -> Any:
    """Return `value` as what JSON can say: structs with all their fields, defaults too; bytes as hex."""
    if isinstance(value, Struct):
        return {name: document(getattr(value, name)) for name in value.__struct_fields__}
    if isinstance(value, Mapping):
        return {str(key): document(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [document(item) for item in value]
    return value.hex() if isinstance(value, bytes) else value
