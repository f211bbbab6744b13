"""`lockstep-hub publish` and `catalogue`: files -> the catalogue, and the catalogue as people read it."""

import asyncio
import contextlib
import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar, get_args

import click

from hub.commandline import FILE, ask_hub, data_option, json_option, run, show, table
from protocol.device import FORM_FACTORS, OsType
from protocol.errors import BadFileError, LockstepError, UsageError

if TYPE_CHECKING:
    from hub.watch import WatchedFolder

_LOOK_SECONDS: Final = 1.0
# Refusals that are not the file's: tried again by themselves.
_MAY_PASS: Final = frozenset({"unavailable", "disk-full", "store-full", "disk-failed", "in-use"})

_OS_TYPES: Final = click.Choice(get_args(OsType), case_sensitive=False)

F = TypeVar("F", bound=Callable[..., Any])


# Named as the keys of a sidecar, which reads what they are given.
_SELECTOR_OPTIONS: Final = (
    click.option("--os", multiple=True, help='OS it is for; with its version: "android 12".'),
    click.option("--architecture", multiple=True, help="Architecture it is for, by any usual name."),
    click.option("--model", multiple=True, help="Model it is for; * and ? allowed."),
    click.option("--exclude-model", multiple=True, help="Model it is not for."),
    click.option("--form-factor", multiple=True, help=f"Form factor it is for: {', '.join(FORM_FACTORS)}."),
    click.option("--feature", multiple=True, help="Feature it needs."),
    click.option("--without-feature", multiple=True, help="Feature of devices it is not for."),
    click.option("--resolution", help="Pixels: 1920x1080, or a range 1280x720-3840x2160."),
    click.option("--screen-inches", help="Diagonal: 10, or a range 7-13."),
    click.option("--density", help="Dots per inch: 320, or a range 160-480."),
    click.option("--os-version", help="OS versions: 12-14, 12-, -14, or 12 for every 12.x."),
    click.option("--api-level", help="Android API levels: 24-33, 24- or 24 for 24 and newer."),
)


def _selector_options(command: F) -> F:
    for option in reversed(_SELECTOR_OPTIONS):
        command = option(command)
    return command


@click.command()
@click.argument("files", nargs=-1, type=FILE)
@click.option("--watch", "folder", type=click.Path(path_type=Path), help="Publish what is in DIR and what comes there.")
@click.option("--program", default="", help="Program id (default: what the file's package name means).")
@click.option("--title", default="", help="Title people know it by (default: the file's own).")
@click.option("--channel", default="", help="Channel of a new release (default: stable).")
@click.option("--correct", is_flag=True, help="Of files published already, replace what is known of them.")
@_selector_options
@data_option
@json_option
def publish(
    files: tuple[Path, ...],
    folder: Path | None,
    program: str,
    title: str,
    channel: str,
    correct: bool,
    data: str | None,
    config_file: Path | None,
    as_json: bool,
    **selector: Any,
) -> None:
    """Put installer files into the catalogue.

    What a file does not say of itself is given here, or in a file NAME.lockstep.toml beside it.
    """
    if bool(files) == bool(folder):
        raise UsageError("Name the files to publish, or a folder with --watch.")
    options = {"program": program, "title": title, "channel": channel, "given": _given(selector), "correct": correct}
    if folder:
        _watch(folder, options, data, config_file, as_json)
        return
    results, is_interrupted = [], False
    for file in files:
        try:
            arguments = {"file": str(file.absolute()), "options": options}
            results.append(ask_hub(data, config_file, "publish", arguments))
        except LockstepError as error:
            results.append(_refusal(file, error))
            click.echo(f"Error: {error}", err=True)
            continue
        except KeyboardInterrupt:
            is_interrupted = True
            _say_what_goes_on(files[len(results) :], data, config_file)
            break
        if not as_json:
            _show_published(results[-1])
    if as_json:
        click.echo(json.dumps(results, indent=2))
    if is_interrupted:
        sys.exit(130)
    if any("error" in result or result["verdict"] in ("infected", "suspicious") for result in results):
        sys.exit(1)


def _say_what_goes_on(files: tuple[Path, ...], data: str | None, config_file: Path | None) -> None:
    """Say what becomes of the first of these files, at which Ctrl-C came, and of the others."""
    from hub.admin import is_running
    from hub.config import load_settings

    file, *others = (path.name for path in files)
    if run(is_running(load_settings(config_file, {"data": data}))):
        words = f"{file} is not waited for any more; the hub goes on with it"
    else:
        words = f"{file} was interrupted"
    words += ", and `lockstep-hub catalogue` shows what came of it."
    click.echo(words + (f" Not begun: {', '.join(others)}." if others else ""), err=True)


def _refusal(file: Path, error: LockstepError) -> dict[str, Any]:
    return {"file": str(file), "error": {"code": error.code, "message": error.message, "hint": error.hint}}


def _show_published(row: dict[str, Any]) -> None:
    verb = "published" if row["new"] else "corrected" if row["corrected"] else "was published before:"
    click.echo(
        f"{verb} {row['program']} {_version_words(row)} ({row['kind']}, for {row['fits']}, "
        f"{row['size']} bytes, {row['stored_size']} to send) {row['digest'][:12]}"
    )
    if row["verdict"] == "not-scanned":
        why = row["finding"].rstrip(".")
        click.echo(f"It is not scanned, so nobody gets it yet: {why}. It is tried again by itself.")
    elif row["verdict"] != "clean":
        click.echo(f"It is {row['verdict']}, so nobody gets it: {row['finding']}.")
    if row["retired"]:
        click.echo(f"The program is retired: `lockstep-hub catalogue restore {row['program']}` brings it back.")
    elif row["yanked"]:
        undone = f"`lockstep-hub catalogue restore {row['program']} {row['version']}` takes that back"
        click.echo(f"The release is yanked, so nobody gets it: {undone}.")


def _version_words(row: dict[str, Any]) -> str:
    """Return a release's version with what is out of the ordinary about it."""
    marks = [row["channel"]] * (row["channel"] != "stable") + ["yanked"] * row["yanked"]
    marks += ["retired"] * row.get("retired", False)
    verdict = row.get("verdict", "clean")
    marks += [verdict] * (verdict != "clean")
    return f"{row['version']} ({', '.join(marks)})" if marks else str(row["version"])


# --- a watched folder ---------------------------------------------------------------------------------------------


def _watch(folder: Path, options: dict[str, Any], data: str | None, config_file: Path | None, as_json: bool) -> None:
    from hub.config import load_settings

    if not folder.is_dir():
        raise UsageError(f"{folder} is no folder.", hint="Name the folder to watch.")
    folder = folder.absolute()
    if not as_json:
        click.echo(f"Publishing what is in {folder} and what comes there; Ctrl-C ends it.")
    run(_publish_until_stopped(folder, options, load_settings(config_file, {"data": data}), as_json))


async def _publish_until_stopped(folder: Path, options: dict[str, Any], settings: Any, as_json: bool) -> None:
    """Publish files as they come until SIGINT or SIGTERM; the one that is being published then is finished."""
    from hub.watch import WatchedFolder

    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    watched, lost = WatchedFolder(folder), ""
    while not stop.is_set():
        try:
            ready, why = await asyncio.to_thread(watched.look), ""
        except OSError as error:
            ready, why = [], f"{folder} cannot be read: {error.strerror}. It is tried again."
        if why not in ("", lost):
            click.echo(f"Error: {why}", err=True)
        lost = why
        for path in ready:
            if not stop.is_set():
                await _publish_watched(watched, path, options, settings, as_json)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LOOK_SECONDS):
                await stop.wait()


async def _publish_watched(
    watched: "WatchedFolder", path: Path, options: dict[str, Any], settings: Any, as_json: bool
) -> None:
    """Publish one file, running hub or not, and say how it went; a refusal that may pass is tried again."""
    from hub.admin import ask

    try:
        row = await ask(settings, "publish", {"file": str(path), "options": options})
    except LockstepError as error:
        if error.code not in _MAY_PASS or watched.try_again(path, error.code):
            if as_json:
                click.echo(json.dumps(_refusal(path, error)))
            else:
                click.echo(f"Error: {error}", err=True)
    else:
        if as_json:
            click.echo(json.dumps(row))
        else:
            _show_published(row)
    sys.stdout.flush()


# --- the catalogue ------------------------------------------------------------------------------------------------


@click.group(invoke_without_command=True)
@data_option
@json_option
@click.pass_context
def catalogue(context: click.Context, data: str | None, config_file: Path | None, as_json: bool) -> None:
    """List what is published; or look at and change one program."""
    if context.invoked_subcommand is not None:
        given = {name: value for name, value in context.params.items() if value}
        context.default_map = dict.fromkeys(catalogue.commands, given)
        return
    rows: list[dict[str, Any]] = []
    while page := ask_hub(data, config_file, "catalogue", {"after": rows[-1]["program"] if rows else ""}):
        rows += page
    columns = ("program", "version", "kind", "fits", "size", "file_name")
    cells = [[_version_words(row) if name == "version" else row[name] for name in columns] for row in rows]
    show(rows, as_json, lambda: table([name.upper() for name in columns], cells))


@catalogue.command("show")
@click.argument("program")
@data_option
@json_option
def catalogue_show(program: str, data: str | None, config_file: Path | None, as_json: bool) -> None:
    """Show a program: its releases, newest first, and what each has for which platform."""
    found = ask_hub(data, config_file, "catalogue show", {"program": program})
    show(found, as_json, lambda: _show_program(found))


def _show_program(found: dict[str, Any]) -> None:
    retired = f" (retired: `lockstep-hub catalogue restore {found['program']}` brings it back)" * found["retired"]
    click.echo(f"{found['program']}: {found['title']}{retired}")
    others = [alias for alias in found["aliases"] if alias["package"] != found["program"]]
    if others:
        click.echo("known as " + ", ".join(f"{alias['package']} on {alias['os']}" for alias in others))
    installers = [one for release in found["releases"] for one in release["installers"]]
    platforms = sorted({platform for one in installers for platform in _platforms(one)})
    rows = [
        [_version_words(release), *(_cell(release["installers"], platform) for platform in platforms)]
        for release in found["releases"]
    ]
    table(["RELEASE", *platforms], rows)


def _platforms(installer: dict[str, Any]) -> list[str]:
    """Return the columns an installer stands in: each of its systems, with the architectures it is built for."""
    selector = installer["facts"]["selector"]
    architectures = "/".join(selector.get("architectures", ()))
    return [f"{os_type} {architectures}".strip() for os_type in selector["os_types"]]


def _cell(installers: list[dict[str, Any]], platform: str) -> str:
    """Return what a release has for a platform: kinds and sizes, or file names where it has several."""
    found = [one for one in installers if platform in _platforms(one)]
    name = "kind" if len(found) == 1 else "file_name"
    return ", ".join(f"{one[name]} {_size_words(one['size'])}" for one in found) or "-"


def _size_words(size: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"


@catalogue.command("yank")
@click.argument("program")
@click.argument("version")
@data_option
@json_option
def catalogue_yank(program: str, version: str, data: str | None, config_file: Path | None, as_json: bool) -> None:
    """Take a release back: it is chosen no more; deliveries that are under way keep it."""
    result = ask_hub(data, config_file, "catalogue yank", {"program": program, "version": version})
    words = f"{program} {result['version']} is yanked" + _unless_changed(result)
    show(result, as_json, lambda: click.echo(words))


@catalogue.command("restore")
@click.argument("program")
@click.argument("version", default="")
@data_option
@json_option
def catalogue_restore(program: str, version: str, data: str | None, config_file: Path | None, as_json: bool) -> None:
    """Take back that a release was yanked, or that a program was retired."""
    result = ask_hub(data, config_file, "catalogue restore", {"program": program, "version": version})
    words = f"{program} {result.get('version', '')}".strip() + " is on offer" + _unless_changed(result)
    show(result, as_json, lambda: click.echo(words))


@catalogue.command("retire")
@click.argument("program")
@data_option
@json_option
def catalogue_retire(program: str, data: str | None, config_file: Path | None, as_json: bool) -> None:
    """Take a whole program off the list: it is sent no more; deliveries that are under way keep it."""
    result = ask_hub(data, config_file, "catalogue retire", {"program": program})
    show(result, as_json, lambda: click.echo(f"{program} is retired" + _unless_changed(result)))


@catalogue.command("channel")
@click.argument("program")
@click.argument("version")
@click.argument("channel")
@data_option
@json_option
def catalogue_channel(
    program: str, version: str, channel: str, data: str | None, config_file: Path | None, as_json: bool
) -> None:
    """Move a release to another channel; "stable" is what everyone gets."""
    arguments = {"program": program, "version": version, "channel": channel}
    result = ask_hub(data, config_file, "catalogue channel", arguments)
    words = f"{program} {result['version']} is in the channel {channel}" + _unless_changed(result)
    show(result, as_json, lambda: click.echo(words))


@catalogue.command("alias")
@click.argument("program")
@click.argument("package")
@click.option("--os", "os_types", multiple=True, required=True, type=_OS_TYPES, help="System that calls it so.")
@click.option("--remove", is_flag=True, help="It is called so no longer.")
@data_option
@json_option
def catalogue_alias(
    program: str,
    package: str,
    os_types: tuple[str, ...],
    remove: bool,
    data: str | None,
    config_file: Path | None,
    as_json: bool,
) -> None:
    """Say which program a package name means on a system: files of that package go there."""
    arguments = {"program": program, "package": package, "os_types": os_types, "remove": remove}
    result = ask_hub(data, config_file, "catalogue alias", arguments)
    means = f"no longer means {program}" if remove else f"means {program}"
    words = f"{package} {means} on {', '.join(os_types)}" + _unless_changed(result)
    show(result, as_json, lambda: click.echo(words))


def _unless_changed(result: dict[str, Any]) -> str:
    return "." if result["changed"] else " already."


# --- options ------------------------------------------------------------------------------------------------------


def _given(selector: dict[str, Any]) -> dict[str, Any]:
    """Turn the options of `publish` into fields of a Selector. Raises UsageError for a value that means nothing."""
    from hub.inspectors.sidecar import given_of

    values = {key: list(value) if isinstance(value, tuple) else value for key, value in selector.items()}
    said = {key: value for key, value in values.items() if value not in (None, [])}
    try:
        return given_of(said, lambda key: f"--{key.replace('_', '-')}")
    except BadFileError as error:
        raise UsageError(error.message, hint=error.hint) from None
