"""`lockstep-hub verdicts`: what the scans say of all that is published, and who has what something was found in."""

import time
from pathlib import Path
from typing import Any

import click

from hub.commandline import ask_hub, data_option, json_option, show, table


@click.group(invoke_without_command=True)
@click.option("--infected", is_flag=True, help="Only what something was found in.")
@data_option
@json_option
@click.pass_context
def verdicts(context: click.Context, infected: bool, data: str | None, config_file: Path | None, as_json: bool) -> None:
    """Show what the scan engines say of every installer, and which devices have what is infected."""
    if context.invoked_subcommand is not None:
        given = {name: value for name, value in context.params.items() if value and name != "infected"}
        context.default_map = dict.fromkeys(verdicts.commands, given)
        return
    found: dict[str, Any] = {"engines": [], "installers": []}
    after = ""
    is_last = False
    while not is_last:
        page = ask_hub(data, config_file, "verdicts", {"after": after, "infected": infected})
        found = {"engines": page["engines"], "installers": found["installers"] + page["installers"]}
        is_last = not page["installers"]
        after = "" if is_last else page["installers"][-1]["digest"]
    show(found, as_json, lambda: _show(found, infected))


def _show(found: dict[str, Any], infected: bool) -> None:
    if not found["engines"]:
        click.echo("Nobody scans: every engine is off, so everything counts as clean.")
    for engine in found["engines"]:
        click.echo(f"{engine['engine']}: {engine['rules'] or 'DOWN: ' + engine['detail']}")
    for one in found["installers"]:
        if one["verdict"] != "clean":
            _show_withheld(one)
    clean = [one for one in found["installers"] if one["verdict"] == "clean"]
    if clean:
        rows = [(one["program"], one["version"], one["file_name"], "clean", _when(one)) for one in clean]
        table(("PROGRAM", "VERSION", "FILE_NAME", "VERDICT", "SCANNED"), rows)
    elif infected and not found["installers"]:
        click.echo("Nothing was found in what is published.")


def _show_withheld(one: dict[str, Any]) -> None:
    click.echo(f"{one['verdict'].upper()}: {one['program']} {one['version']} ({one['file_name']}): {one['finding']}")
    for terminal in one["terminals"]:
        click.echo(f"  {terminal['name']} of {terminal['account']} ({terminal['terminal']}) has it")


def _when(one: dict[str, Any]) -> str:
    times = [engine["at"] for engine in one["engines"]]
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(min(times))) if times else "-"


@verdicts.command("rescan")
@data_option
@json_option
def verdicts_rescan(data: str | None, config_file: Path | None, as_json: bool) -> None:
    """Have everything scanned again; a running hub does it in the background."""
    result = ask_hub(data, config_file, "verdicts rescan", {})
    words = "were scanned again" if result["done"] else "are scanned again in the background"
    show(result, as_json, lambda: click.echo(f"{result['installers']} installers {words}; `verdicts` says what came."))
