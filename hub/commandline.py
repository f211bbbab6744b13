"""What the commands of `lockstep-hub` share: their options, asking the hub, and showing what came back."""

import asyncio
import contextlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import click

# A file of several. Whether it can be read is found out when its turn comes, so that it is refused by itself.
FILE: Final = click.Path(path_type=Path, readable=False)

F = TypeVar("F", bound=Callable[..., Any])


def data_option(command: F) -> F:
    """Give a command `--data` and `--config`."""
    return click.option("--data", help="Data folder (default: lockstep-data, or LOCKSTEP_HUB_DATA).")(
        click.option("--config", "config_file", type=click.Path(path_type=Path), help="Settings file (TOML).")(command)
    )


def json_option(command: F) -> F:
    """Give a command `--json`."""
    return click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output.")(command)


def ask_hub(
    data: str | None,
    config_file: Path | None,
    command: str,
    arguments: dict[str, Any],
    tell: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> Any:
    """Have the hub of this data folder perform a command, running or not; return its result as JSON values."""
    from hub.admin import ask
    from hub.config import load_settings

    return run(ask(load_settings(config_file, {"data": data}), command, arguments, tell))


def run(work: Any) -> Any:
    """Run a coroutine to its end, on the faster event loop where that is installed."""
    with contextlib.suppress(ImportError):
        import uvloop

        return uvloop.run(work)
    return asyncio.run(work)


def show(result: Any, as_json: bool, show_people: Callable[[], object]) -> None:
    """Print the result as one JSON document, or as people read it."""
    if as_json:
        click.echo(json.dumps(result, indent=2))
    else:
        show_people()


def table(header: Sequence[object], rows: Sequence[Sequence[object]]) -> None:
    """Print rows below a header in columns as wide as they have to be."""
    lines = [[str(cell) for cell in line] for line in (header, *rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    for line in lines:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
