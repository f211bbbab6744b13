"""`lockstep-terminal`: arguments -> client or agent, tables, progress, exit code.

A command is a plain function that returns its exit code (`terminal/targets.py` has the table). What it needs is
imported when it runs, so that `--help` is quick. Answers go to standard output (`run --json` prints one document a
line), errors to standard error as one sentence and what to do; with `--json` the error is the document.

A command of another file is a click command with `@common_options` (`terminal/place.py`), added to `commands` here.
"""

import asyncio
import functools
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import click

from protocol.errors import BadFileError, LockstepError
from terminal import approving, deciding, loggingin, publishing
from terminal.place import (
    Place,
    common_options,
    connected_client,
    local_device,
    print_json,
    print_table,
    stopped_by_signals,
)
from terminal.posturing import posture
from terminal.simulator import simulate

if TYPE_CHECKING:
    from protocol.device import DeviceInfo, InstallerKind
    from protocol.messages import TargetRow
    from terminal.client import Client, SyncWatch
    from terminal.installers import Runner, RunnerSettings
    from terminal.state import StateFolder
    from terminal.targets import Choice

PROGRAM_NAME: Final = "lockstep-terminal"
DEBUG_VARIABLE: Final = "LOCKSTEP_DEBUG"


# --- commands -----------------------------------------------------------------------------------------------------


def _print_version(context: click.Context, _parameter: click.Parameter, asked: bool) -> None:
    from importlib.metadata import PackageNotFoundError, version

    if not asked:
        return
    try:
        number = version("lockstep")
    except PackageNotFoundError:
        number = "(not installed, run from its source)"
    click.echo(f"{PROGRAM_NAME} {number}")
    context.exit()


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
    epilog="Exit codes: 0 done, 1 failed, 2 wrong usage, 3 partly done, 4 log in first, 5 no such device, "
    "program, sync or delivery, 6 hub unreachable, 7 still waiting.",
)
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version, help="Print the version."
)
def commands() -> None:
    """Keep the applications on all your devices in step."""


@commands.command()
@common_options
def run(place: Place) -> int:
    """Keep this device connected and install what is sent to it, until stopped."""
    return asyncio.run(_run(place))


async def _run(place: Place) -> int:
    from terminal.agent import run_agent

    folder = place.folder()
    folder.identity()
    device, settings = local_device(folder)
    runners = _runners(folder, device, settings)
    stop = asyncio.Event()
    with stopped_by_signals(stop):
        end = await run_agent(folder, device, runners, on_event=functools.partial(_show_event, place), stop=stop)
    if end == "still-installing":
        _leave_running(place)
    return 0


def _runners(
    folder: "StateFolder", device: "DeviceInfo", settings: "Mapping[str, RunnerSettings]"
) -> "Mapping[InstallerKind, Runner]":
    from terminal.installers import build_runners

    return build_runners(folder.path / "programs", device.installer_kinds, settings)


def _leave_running(place: Place) -> None:
    """End at once: any other way out would kill the installer, which holds its lock until it has ended by itself."""
    _show_event(place, "still-installing", "An installation still runs; the next start finds out how it ends.")
    sys.stdout.flush()
    os._exit(0)


def _show_event(place: Place, kind: str, sentence: str) -> None:
    from terminal.tables import printable

    time = datetime.now(UTC).isoformat(timespec="milliseconds")
    place.show({"event": kind, "message": sentence, "time": time}, printable(sentence))


@commands.command()
@common_options
def devices(place: Place) -> int:
    """List the account's devices."""
    return asyncio.run(_devices(place))


async def _devices(place: Place) -> int:
    from terminal.tables import devices_table

    async with connected_client(place) as client:
        rows = await client.devices()
        this = client.identity.terminal
    place.show({"this_terminal": this, "devices": rows}, devices_table(rows, this=this, now=_now()))
    return 0


@commands.command()
@click.argument("query", default="")
@common_options
def programs(place: Place, query: str) -> int:
    """List the programs that can be sent; QUERY is part of an id or title."""
    return asyncio.run(_programs(place, query))


async def _programs(place: Place, query: str) -> int:
    from terminal.tables import programs_table

    async with connected_client(place) as client:
        rows = await client.programs(query)
        known = await client.devices()
    place.show({"programs": rows}, programs_table(rows, known))
    return 0


_to_option = click.option(
    "--to",
    multiple=True,
    required=True,
    metavar="NAME|ID|tag:TAG|all",
    help="A target, or several parted by commas; may be given again. all: every other that has ever received; "
    "tag:TAG: every other with that tag.",
)
_timeout_option = click.option(
    "--timeout",
    "timeout_seconds",
    type=click.FloatRange(min=0),
    default=600,
    show_default=True,
    metavar="SECONDS",
    help="Wait this long at most.",
)
_no_wait_option = click.option("--no-wait", is_flag=True, help="Return as soon as the hub has accepted the sync.")
_version_option = click.option("--version", default="", metavar="V", help="This version.  [default: the newest]")
_channel_option = click.option(
    "--channel", default="", metavar="NAME", help="Take releases of this channel, too.  [default: only stable ones]"
)


@commands.command()
@click.argument("program")
@_to_option
@_version_option
@_channel_option
@click.option(
    "--all", "everything", is_flag=True, help="Say of every installer that does not fit why, not the nearest."
)
@common_options
def plan(place: Place, program: str, to: tuple[str, ...], version: str, channel: str, everything: bool) -> int:
    """Say what `sync` would send to each target and why; send nothing."""
    return asyncio.run(_plan(place, program, to, version, channel, everything))


async def _plan(place: Place, program: str, to: tuple[str, ...], version: str, channel: str, everything: bool) -> int:
    async with connected_client(place) as client:
        choice = await _choice(client, to)
        rows = await client.plan(
            program, targets=choice.targets, everyone=choice.everyone, version=version, channel=channel
        )
    if place.as_json:
        print_json({"program": program, "targets": rows})
    else:
        _show_plan(rows, everything=everything)
    return 0


def _show_plan(rows: "Sequence[TargetRow]", *, everything: bool = False) -> None:
    """Print what each target gets, and below it what is in the way of the nearest installer where nothing fits."""
    from terminal.tables import plan_table, rejected_table

    print_table(plan_table(rows))
    rejected = rejected_table(rows, everything=everything)
    if rejected.rows or everything:
        click.echo()
        print_table(rejected)


async def _choice(client: "Client", to: tuple[str, ...]) -> "Choice":
    from terminal.targets import choose_targets

    return choose_targets(to, await client.devices(), client.identity.terminal)


@commands.command()
@click.argument("program")
@_to_option
@_version_option
@_channel_option
@_timeout_option
@_no_wait_option
@common_options
def sync(
    place: Place,
    program: str,
    to: tuple[str, ...],
    version: str,
    channel: str,
    timeout_seconds: float,
    no_wait: bool,
) -> int:
    """Bring PROGRAM to other devices, and wait until every one that is online has it.

    What `plan` shows is shown first. A device that is offline gets it when it comes back, one that asks a person when
    they agree; neither is waited for. Ctrl-C leaves the sync to the hub.
    """
    return asyncio.run(_sync(place, program, to, version, channel, None if no_wait else timeout_seconds))


async def _sync(
    place: Place, program: str, to: tuple[str, ...], version: str, channel: str, timeout_seconds: float | None
) -> int:
    async with connected_client(place) as client:
        choice = await _choice(client, to)
        watch = await client.sync(
            program, targets=choice.targets, everyone=choice.everyone, version=version, channel=channel
        )
        place.tell(_accepted_words(watch))
        if not place.as_json:
            _show_plan(watch.planned)
        return await _follow(place, watch, timeout_seconds)


def _accepted_words(watch: "SyncWatch") -> str:
    return f"Sync {watch.sync} of {watch.program} is accepted."


async def _follow(place: Place, watch: "SyncWatch", timeout_seconds: float | None) -> int:
    """Watch an accepted sync for that long (None: not at all), show how it stands then, and return the exit code."""
    from terminal.targets import sync_exit_code
    from terminal.watching import left_to_the_hub, show_sync, wait_for_targets

    if timeout_seconds is not None:
        with left_to_the_hub(place, watch):
            await wait_for_targets(place, watch, timeout_seconds)
    code = sync_exit_code(watch.targets.values(), waits=timeout_seconds is not None)
    show_sync(place, watch, code)
    return code


@commands.command()
@click.argument("sync_id", metavar="SYNC")
@click.option(
    "--on", multiple=True, metavar="NAME|ID", help="Only on this device; may be given again.  [default: all of SYNC]"
)
@_timeout_option
@_no_wait_option
@common_options
def undo(place: Place, sync_id: str, on: tuple[str, ...], timeout_seconds: float, no_wait: bool) -> int:
    """Bring back the version that was there before SYNC, and wait as `sync` does."""
    return asyncio.run(_undo(place, sync_id, on, None if no_wait else timeout_seconds))


async def _undo(place: Place, sync_id: str, on: tuple[str, ...], timeout_seconds: float | None) -> int:
    async with connected_client(place) as client:
        targets = (await _choice(client, on)).targets if on else ()  # `all` is every target of the sync
        watch = await client.undo(sync_id, targets=targets)
        place.tell(_accepted_words(watch))
        return await _follow(place, watch, timeout_seconds)


@commands.command()
@click.argument("sync_id", metavar="[SYNC]", default="")
@common_options
def history(place: Place, sync_id: str) -> int:
    """List the account's newest syncs, or the targets of one SYNC as they stand."""
    return asyncio.run(_targets(place, sync_id) if sync_id else _history(place))


async def _history(place: Place) -> int:
    from terminal.tables import history_table

    async with connected_client(place) as client:
        rows = await client.history()
    place.show({"syncs": rows}, history_table(rows, now=_now()))
    return 0


async def _targets(place: Place, sync_id: str) -> int:
    from terminal.tables import targets_table

    async with connected_client(place) as client:
        rows = await client.sync_result(sync_id)
    place.show({"sync": sync_id, "targets": rows}, targets_table(rows))
    return 0


@commands.command()
@click.argument("sync_id", metavar="SYNC")
@common_options
def cancel(place: Place, sync_id: str) -> int:
    """End what SYNC has not begun to install."""
    return asyncio.run(_cancel(place, sync_id))


async def _cancel(place: Place, sync_id: str) -> int:
    async with connected_client(place) as client:
        result = await client.cancel(sync_id)
    answer = {"sync": result.sync, "cancelled": result.cancelled, "too_late": result.too_late}
    place.show(answer, f"{result.cancelled} cancelled, {result.too_late} too late (installing or ended already).")
    return 0 if result.cancelled else 1


@commands.group()
def device() -> None:
    """Show or rename this device."""


@device.command()
@common_options
def show(place: Place) -> int:
    """Show what this device tells the others of itself."""
    from terminal.tables import document, facts_table

    folder = place.folder()
    identity = folder.identity() if folder.has_identity() else None
    facts = {**loggingin.login_facts(identity), "state_folder": str(folder.path)}
    info = local_device(folder)[0]
    place.show({**facts, "device": info}, facts_table({**facts, **document(info)}))
    return 0


@device.command()
@click.argument("name")
@common_options
def rename(place: Place, name: str) -> int:
    """Have the other devices call this one NAME."""
    return asyncio.run(_rename(place, name))


async def _rename(place: Place, name: str) -> int:
    async with connected_client(place) as client:
        await client.rename(name)
        terminal = client.identity.terminal
    place.show({"terminal": terminal, "name": name}, f"This device is now called {name}.")
    return 0


def _now() -> datetime:
    return datetime.now(UTC).astimezone()


for _command in (
    loggingin.login,
    loggingin.status,
    approving.approve,
    approving.revoke,
    deciding.inbox,
    deciding.accept,
    deciding.decline,
    deciding.later,
    deciding.settings,
    posture,
    publishing.publish,
    simulate,
):
    commands.add_command(_command)


# --- the border: exceptions -> one sentence and an exit code ------------------------------------------------------


def run_command(arguments: Sequence[str]) -> int:
    """Run one command line (without the program's name) and return its exit code; never raises."""
    as_json = "--json" in arguments
    try:
        code = commands.main(list(arguments), prog_name=PROGRAM_NAME, standalone_mode=False)
    except LockstepError as error:
        return _show_error(error, as_json)
    except click.ClickException as error:
        return _show_click_error(error, as_json)
    except (click.Abort, KeyboardInterrupt):
        return 130
    except Exception as error:
        return _show_internal_error(error, as_json)
    return int(code or 0)


def _show_error(error: LockstepError, as_json: bool) -> int:
    from terminal.targets import error_exit_code

    # What a hub says of a file holds a sample of several lines, to be copied; elsewhere names of others may be in it.
    _print_error(error.code, error.message, error.hint, as_json, has_lines=isinstance(error, BadFileError))
    return error_exit_code(error)


def _show_click_error(error: click.ClickException, as_json: bool) -> int:
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        click.echo(error.format_message(), err=True)
        return error.exit_code
    context = error.ctx if isinstance(error, click.UsageError) else None
    command = context.command_path if context else PROGRAM_NAME
    _print_error("usage", error.format_message(), f"`{command} --help` says more.", as_json)
    return error.exit_code


def _show_internal_error(error: Exception, as_json: bool) -> int:
    if os.environ.get(DEBUG_VARIABLE) == "1":
        traceback.print_exc()
    hint = f"Please report it; {DEBUG_VARIABLE}=1 shows where it happened."
    _print_error("internal", f"internal error: {type(error).__name__}: {error}", hint, as_json)
    return 1


def _print_error(code: str, message: str, hint: str, as_json: bool, *, has_lines: bool = False) -> None:
    from terminal.tables import printable, printable_lines

    if as_json:
        print_json({"error": {"code": code, "message": message, "hint": hint}})
    else:
        click.echo((printable_lines if has_lines else printable)(f"Error: {message} {hint}"), err=True)


def main() -> None:
    """Run the command line this process was started with."""
    import io

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name the screen's encoding lacks is no reason to fail
    sys.exit(run_command(sys.argv[1:]))
