"""The command line of the audit log: `lockstep-hub audit` shows it, signs its head and verifies it.

Every answer of the hub is one page, so a log of any length is read in bounded memory, with the hub running or not.
"""

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import click

from hub.commandline import ask_hub, data_option, json_option, run, show
from protocol.errors import UsageError

_FOLLOW_SECONDS: Final = 1.0
_SHOW: Final = "show"  # what --head means without a head


@click.command()
@click.option("--since", type=click.IntRange(min=0), default=0, metavar="SEQ", help="Only rows after this one.")
@click.option("--follow", is_flag=True, help="Go on with what comes, until Ctrl-C.")
@click.option("--verify", is_flag=True, help="Read the whole log and say what is wrong with it (exit code 1).")
@click.option(
    "--head",
    is_flag=False,
    flag_value=_SHOW,
    metavar="[HEAD]",
    help="Sign the head and print it, one line to keep elsewhere; with --verify: hold the log against such a line.",
)
@data_option
@json_option
def audit(
    since: int, follow: bool, verify: bool, head: str | None, data: str | None, config_file: Path | None, as_json: bool
) -> None:
    """Show who did what to what, oldest first; or verify it.

    With --json the rows are one document; with --follow one row a line.
    """
    if (verify or head) and (follow or since):
        raise UsageError("--since and --follow show rows: they go neither with --verify nor with --head.")
    if verify:
        _verify(data, config_file, "" if head in (None, _SHOW) else str(head), as_json)
    elif head is not None:
        if head != _SHOW:
            raise UsageError("A head that was kept is held against the log with --verify.")
        signed = ask_hub(data, config_file, "audit head", {})
        show(signed, as_json, lambda: click.echo(signed["line"]))
    elif follow:
        _follow(data, config_file, since, as_json)
    else:
        _show_rows(_rows(data, config_file, since), as_json)


def _verify(data: str | None, config_file: Path | None, head: str, as_json: bool) -> None:
    result = ask_hub(data, config_file, "audit verify", {"head": head})
    show(result, as_json, lambda: click.echo(_verdict(result, head)))
    if not result["whole"]:
        sys.exit(1)


def _verdict(result: dict[str, Any], head: str) -> str:
    if not result["whole"]:
        return f"The audit log is BROKEN ({result['fault']['kind']}): {result['fault']['detail']}"
    heads = f"{result['heads']} signed heads" + (" and the one given" if head else "")
    return f"The audit log is whole: {result['rows']} rows, {heads}."


def _rows(data: str | None, config_file: Path | None, since: int) -> Iterator[dict[str, Any]]:
    while page := ask_hub(data, config_file, "audit", {"after": since}):
        yield from page
        since = page[-1]["sequence"]


def _show_rows(rows: Iterator[dict[str, Any]], as_json: bool) -> None:
    if not as_json:
        for row in rows:
            click.echo(_line(row))
        return
    before = "["
    for row in rows:
        click.echo(before + json.dumps(row), nl=False)
        before = ",\n "
    click.echo("[]" if before == "[" else "]")


def _follow(data: str | None, config_file: Path | None, since: int, as_json: bool) -> None:
    """Show what is there, then what comes; only a running hub is asked, for a look would hold the folder's lock."""
    from hub.admin import is_running
    from hub.config import load_settings

    settings = load_settings(config_file, {"data": data})
    is_first = True
    while True:
        if is_first or run(is_running(settings)):
            for row in _rows(data, config_file, since):
                click.echo(json.dumps(row) if as_json else _line(row))
                since = row["sequence"]
            sys.stdout.flush()
        is_first = False
        time.sleep(_FOLLOW_SECONDS)


def _line(row: dict[str, Any]) -> str:
    at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(row["at"]))
    detail = " ".join(f"{name}={json.dumps(value)}" for name, value in row["detail"].items())
    line = f"{row['sequence']:>6}  {at}  {row['actor']:<14}  {row['action']:<18}  {row['subject']}  {detail}"
    return "".join(character if character.isprintable() else "?" for character in line).rstrip()
