"""Watching a sync: bars on a screen, lines in a pipe, nothing for a program, until no target is waited for.

Whatever ends the watching early, the sync goes on at the hub, and the person is told so.
"""

import asyncio
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final, TypeAlias

import click

from protocol.errors import LockstepError
from protocol.life import outcome_of
from protocol.messages import TargetRow
from terminal.client import SyncWatch
from terminal.place import Place, print_json, print_table
from terminal.tables import changed_lines, progress_view, summary, targets_table
from terminal.targets import ExitCode, has_ended, is_waited_for

Show: TypeAlias = Callable[[Sequence[TargetRow]], None]

LINES_BESIDE_PROGRESS: Final = 3
SEE_LATER: Final = "`lockstep-terminal history {}`"


@contextmanager
def left_to_the_hub(place: Place, watch: SyncWatch) -> Iterator[None]:
    """Say that the sync goes on and where to look, when Ctrl-C or any LockstepError ends the watching early."""
    goes_on = f"The sync goes on at the hub; see it with {SEE_LATER.format(watch.sync)}."
    try:
        yield
    except asyncio.CancelledError:  # Ctrl-C: asyncio.run cancels, then raises KeyboardInterrupt
        click.echo(f"No longer watching. {goes_on}", err=True)
        if place.as_json:
            show_sync(place, watch, ExitCode.INTERRUPTED)
        raise
    except LockstepError as error:
        error.hint = f"{error.hint} {goes_on}".strip()
        raise


async def wait_for_targets(place: Place, watch: SyncWatch, timeout_seconds: float) -> None:
    """Show each change until no target is waited for, or the time is over."""
    with _progress(place) as show:
        try:
            async with asyncio.timeout(timeout_seconds):
                async for _ in watch.changes():
                    show(tuple(watch.targets.values()))
                    if not is_waited_for(watch.targets.values()):
                        return
        except TimeoutError:
            return


@contextmanager
def _progress(place: Place) -> Iterator[Show]:
    """Give a callable that shows targets as they are now: nothing with JSON, bars on a screen, lines in a pipe."""
    if place.as_json:
        yield lambda _: None
    elif sys.stdout.isatty():
        with _bars() as show:
            yield show
    else:
        yield _Lines().show


@contextmanager
def _bars() -> Iterator[Show]:
    from rich.live import Live

    with Live(refresh_per_second=4, transient=True) as live:
        rows = live.console.height - LINES_BESIDE_PROGRESS
        yield lambda targets: live.update(progress_view(targets, rows=rows))


class _Lines:
    """Prints one line per target whenever it has come to another state."""

    def __init__(self) -> None:
        self._before: dict[str, TargetRow] = {}

    def show(self, targets: Sequence[TargetRow]) -> None:
        for line in changed_lines(self._before, targets):
            click.echo(line)
        self._before = {row.terminal: row for row in targets}


def show_sync(place: Place, watch: SyncWatch, code: int) -> None:
    """Show all targets as they stand; `code` is the exit code the command ends with."""
    from terminal.targets import has_ended

    rows = tuple(watch.targets.values())
    if place.as_json:
        # By the targets, not by the hub's `sync_done`, which may come a moment after the last of them.
        end = {"ended": has_ended(rows), "outcome": _outcome(rows), "exit_code": int(code)}
        print_json({"sync": watch.sync, "program": watch.program, **end, "targets": rows})
        return
    print_table(targets_table(rows))
    click.echo(summary(rows))
    if not has_ended(rows):
        click.echo(f"See it later with {SEE_LATER.format(watch.sync)}.")


def _outcome(targets: Sequence[TargetRow]) -> str:
    return outcome_of(Counter(row.state for row in targets)) if has_ended(targets) else ""
