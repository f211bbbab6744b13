"""`lockstep-hub`: arguments -> settings -> the hub, or a command to it.

Exit codes: 0 done, 1 refused or failed, 2 wrong usage.
"""

import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Coroutine
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, TypeVar, get_args

import click

from protocol.device import Architecture, FormFactor, OsType
from protocol.errors import ConflictError, LockstepError, UsageError

_END_AFTER_FAILURE_SECONDS: Final = 10.0

F = TypeVar("F", bound=Callable[..., Any])


def _choice(values: Any) -> click.Choice[str]:
    return click.Choice(get_args(values), case_sensitive=False)


_SELECTOR_OPTIONS: Final = {
    "os_types": click.option("--os", "os_types", multiple=True, type=_choice(OsType), help="OS it is for."),
    "architectures": click.option(
        "--architecture", "architectures", multiple=True, type=_choice(Architecture), help="Architecture it is for."
    ),
    "models": click.option("--model", "models", multiple=True, help="Model it is for; * and ? allowed."),
    "models_excluded": click.option("--exclude-model", "models_excluded", multiple=True, help="Model it is not for."),
    "form_factors": click.option(
        "--form-factor", "form_factors", multiple=True, type=_choice(FormFactor), help="Form factor it is for."
    ),
    "features_required": click.option("--feature", "features_required", multiple=True, help="Feature it needs."),
    "resolution": click.option("--resolution", help="Pixels: 1920x1080, or a range 1280x720-3840x2160."),
    "screen_inches": click.option("--screen-inches", help="Diagonal: 10, or a range 7-13."),
    "density_dpi": click.option("--density", "density_dpi", help="Dots per inch: 320, or a range 160-480."),
    "os_version": click.option("--os-version", help="OS versions: 12-14, 12- or -14."),
}


class _Group(click.Group):
    """Shows a LockstepError as one sentence and what to do, never as a traceback."""

    def invoke(self, context: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(context)
        except LockstepError as error:
            _fail(error)
        except (click.exceptions.Exit, click.ClickException, click.Abort):
            raise
        except Exception as error:
            if os.environ.get("LOCKSTEP_DEBUG"):
                traceback.print_exc()
            _fail(
                LockstepError(f"Internal error: {type(error).__name__}: {error}.", hint="LOCKSTEP_DEBUG=1 shows more.")
            )


def _fail(error: LockstepError) -> None:
    context = click.get_current_context(silent=True)
    if context is not None and "--json" in sys.argv:
        click.echo(json.dumps({"error": {"code": error.code, "message": error.message, "hint": error.hint}}))
    else:
        click.echo(f"Error: {error}", err=True)
    sys.exit(2 if isinstance(error, UsageError) and not isinstance(error, ConflictError) else 1)


def _data_option(command: F) -> F:
    return click.option("--data", help="Data folder (default: lockstep-data, or LOCKSTEP_HUB_DATA).")(
        click.option("--config", "config_file", type=click.Path(path_type=Path), help="Settings file (TOML).")(command)
    )


def _json_option(command: F) -> F:
    return click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output.")(command)


def _selector_options(command: F) -> F:
    for option in reversed(_SELECTOR_OPTIONS.values()):
        command = option(command)
    return command


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(version("lockstep"), prog_name="lockstep-hub")
def main() -> None:
    """Keep the applications on all of an account's devices in step: the hub."""


@main.command()
@click.option("--listen", metavar="HOST:PORT", help="Where to listen (default: 127.0.0.1:8765).")
@_data_option
@click.option("--name", "names", multiple=True, metavar="HOST[:PORT]", help="A name terminals dial to reach this hub.")
@click.option("--insecure-lan", is_flag=True, default=None, help="Allow ws:// without TLS off this machine.")
@click.option("--tls-cert", help="Certificate chain (PEM); serves wss://.")
@click.option("--tls-key", help="Private key (PEM).")
def serve(config_file: Path | None, **flags: Any) -> None:
    """Run the hub until SIGTERM or SIGINT."""
    from hub.config import load_settings

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", datefmt="%Y-%m-%dT%H:%M:%S")
    _raise_file_limit()
    _collect_seldom()
    _run(_serve(load_settings(config_file, flags)))


def _raise_file_limit() -> None:
    """Allow this process as many open files as the system lets it: each terminal is one, and 1024 is usual."""
    with contextlib.suppress(ImportError, ValueError, OSError):  # Windows has no such limit
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _collect_seldom() -> None:
    """Have Python look for garbage cycles seldom: next to nothing here makes any, and a look held all up to 80 ms."""
    import gc

    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


async def _serve(settings: Any) -> None:
    from hub.admin import serve_admin
    from hub.app import open_hub, serve_hub

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with open_hub(settings) as hub, serve_hub(hub) as server, serve_admin(hub):
        host, _ = settings.address
        scheme = "wss" if settings.encrypted else "ws"
        shown = f"[{host}]" if ":" in host else host
        note = "" if settings.encrypted else " (not encrypted)"
        click.echo(f"lockstep-hub listens on {scheme}://{shown}:{server.port}{note}, data in {settings.data_folder}")
        sys.stdout.flush()
        await _until_stopped(stop, hub.store.failed())
        click.echo("lockstep-hub is stopping; what is owed is kept.")


async def _until_stopped(stop: asyncio.Event, disk_failure: Coroutine[Any, Any, LockstepError]) -> None:
    """Wait for a signal. Raises the error of a disk that has failed; the process then ends within 10 s, come what may.

    The good end is tried because it tells those who wait; a disk that is dying may hang any call.
    """
    failing = asyncio.create_task(disk_failure)
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait((failing, stopping), return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if failing.done():
        deadline = threading.Timer(_END_AFTER_FAILURE_SECONDS, os._exit, (1,))
        deadline.daemon = True
        deadline.start()
        raise failing.result()
    failing.cancel()


@main.group()
def account() -> None:
    """Accounts: one for each person or fleet."""


@account.command("add")
@click.argument("name")
@click.option("--password-stdin", is_flag=True, help="Read the password from standard input, one line.")
@_data_option
@_json_option
def account_add(name: str, password_stdin: bool, data: str | None, config_file: Path | None, as_json: bool) -> None:
    """Add an account."""
    result = _ask(data, config_file, "account add", {"name": name, "password": _read_password(password_stdin)})
    _show(result, as_json, lambda: click.echo(f"Account {result['account']} is there. Devices log in with it now."))


@account.command("list")
@_data_option
@_json_option
def account_list(data: str | None, config_file: Path | None, as_json: bool) -> None:
    """List the accounts."""
    rows = _ask(data, config_file, "account list", {})
    _show(rows, as_json, lambda: _table(("ACCOUNT", "TERMINALS"), [(row["name"], row["terminals"]) for row in rows]))


@main.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--program", default="", help="Program id (default: the package name in the file).")
@click.option("--title", default="", help="Title people know it by (default: the file's own).")
@_selector_options
@_data_option
@_json_option
def publish(
    files: tuple[Path, ...],
    program: str,
    title: str,
    data: str | None,
    config_file: Path | None,
    as_json: bool,
    **selector: Any,
) -> None:
    """Put installer files into the catalogue: .deb, .apk, .whl."""
    options = {"program": program, "title": title, "given": _given(selector)}
    results = []
    failed = False
    for file in files:
        try:
            arguments = {"file": str(file.absolute()), "options": options}
            results.append(_ask(data, config_file, "publish", arguments))
        except LockstepError as error:
            failed = True
            results.append({"file": str(file), "error": {"code": error.code, "message": error.message}})
            click.echo(f"Error: {error}", err=True)
            continue
        if not as_json:
            _show_published(results[-1])
    if as_json:
        click.echo(json.dumps(results, indent=2))
    if failed:
        sys.exit(1)


def _show_published(row: dict[str, Any]) -> None:
    verb = "published" if row["new"] else "was published before:"
    click.echo(
        f"{verb} {row['program']} {row['version']} ({row['kind']}, for {row['fits']}, "
        f"{row['size']} bytes, {row['stored_size']} to send) {row['digest'][:12]}"
    )


@main.command()
@_data_option
@_json_option
def catalogue(data: str | None, config_file: Path | None, as_json: bool) -> None:
    """List what is published."""
    rows = _ask(data, config_file, "catalogue", {})
    columns = ("program", "version", "kind", "fits", "size", "file_name")
    _show(
        rows,
        as_json,
        lambda: _table([name.upper() for name in columns], [[row[name] for name in columns] for row in rows]),
    )


class _BackupGroup(click.Group):
    """`backup FILE` is `backup write FILE`."""

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        """Put the command in that was left out."""
        if args and args[0] not in (*self.commands, "-h", "--help"):
            args = ["write", *args]
        return super().parse_args(context, args)


@main.group(cls=_BackupGroup, subcommand_metavar="FILE | verify FILE")
def backup() -> None:
    """Write the whole hub into FILE, while it runs or not; or verify such a file.

    The options of `backup FILE` are those of `backup write --help`: that word may be left out.
    """


@backup.command("write")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--force", is_flag=True, help="Replace FILE if it is there.")
@_data_option
@_json_option
def backup_write(file: Path, force: bool, data: str | None, config_file: Path | None, as_json: bool) -> None:
    """Write a backup (the word may be left out)."""
    arguments = {"file": str(file.absolute()), "force": force}
    result = _ask(data, config_file, "backup", arguments, _progress(as_json))
    _show_backup(result, as_json, f"Backup {file} is written")


@backup.command("verify")
@click.argument("file", type=click.Path(path_type=Path))
@_json_option
def backup_verify(file: Path, as_json: bool) -> None:
    """Read a backup and check every byte of it; needs no hub."""
    from hub.backup import verify_backup

    _show_backup(verify_backup(file, _progress(as_json)), as_json, f"Backup {file} is whole")


@main.command()
@click.argument("file", type=click.Path(path_type=Path))
@_data_option
@_json_option
def restore(file: Path, data: str | None, config_file: Path | None, as_json: bool) -> None:
    """Restore a backup into a new or empty data folder."""
    from hub.backup import restore_backup
    from hub.config import load_settings

    folder = load_settings(config_file, {"data": data}).data_folder
    _show_backup(restore_backup(file, folder, _progress(as_json)), as_json, f"{file} is restored in {folder}")


def _show_backup(result: Any, as_json: bool, words: str) -> None:
    """Show what was done; exit code 1 when objects are missing in it."""
    import msgspec

    _end_progress()
    row = msgspec.to_builtins(result)
    _show(row, as_json, lambda: click.echo(f"{words}: {row['objects']} objects, {row['bytes']} bytes."))
    for digest in row["missing"]:
        click.echo(f"Missing in it: object {digest}. Publish that file again.", err=True)
    if row["missing"]:
        sys.exit(1)


@main.command()
@_data_option
@_json_option
def check(data: str | None, config_file: Path | None, as_json: bool) -> None:
    """Read everything the hub has stored and say what is damaged (exit code 1), missing or superfluous."""
    report = _ask(data, config_file, "check", {}, _progress(as_json))
    _show(report, as_json, lambda: _show_report(report))
    if not report["sound"]:
        sys.exit(1)


def _show_report(report: dict[str, Any]) -> None:
    _end_progress()
    for finding in report["findings"]:
        click.echo(f"{finding['kind']}: {finding['name']}: {finding['detail']}")
    verdict = "everything owed is sound" if report["sound"] else "there is DAMAGE"
    click.echo(f"Checked the database and {report['objects']} objects, {report['bytes']} bytes: {verdict}.")


def _progress(as_json: bool) -> Callable[[str, int, int], None]:
    """Return what shows progress to a person on a screen, and nothing to a pipe."""

    def tell(what: str, done: int, total: int) -> None:
        if sys.stderr.isatty() and not as_json:
            click.echo(f"\r\x1b[K{what}: {done} of {total}", nl=False, err=True)

    return tell


def _end_progress() -> None:
    if sys.stderr.isatty():
        click.echo("\r\x1b[K", nl=False, err=True)


@main.command()
@click.option("--keep", is_flag=True, help="Leave it running, with the commands to try next.")
def demo(keep: bool) -> None:
    """Watch the whole product work: a hub, five devices, one program on all of them."""
    from hub.demo.run import run_demo

    sys.exit(run_demo(keep=keep))


def _ask(
    data: str | None,
    config_file: Path | None,
    command: str,
    arguments: dict[str, Any],
    tell: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> Any:
    from hub.admin import ask
    from hub.config import load_settings

    return _run(ask(load_settings(config_file, {"data": data}), command, arguments, tell))


def _run(work: Any) -> Any:
    with contextlib.suppress(ImportError):
        import uvloop

        return uvloop.run(work)
    return asyncio.run(work)


def _read_password(from_stdin: bool) -> str:
    if from_stdin:
        return sys.stdin.readline().rstrip("\r\n")
    if not sys.stdin.isatty():
        raise UsageError("There is no terminal to ask for the password on.", hint="Use --password-stdin.")
    password: str = click.prompt("Password", hide_input=True, confirmation_prompt=True)
    return password


def _given(selector: dict[str, Any]) -> dict[str, Any]:
    """Turn the options of `publish` into fields of a Selector. Raises UsageError for a range that is none."""
    given: dict[str, Any] = {}
    for name, value in selector.items():
        if value in (None, ()):
            continue
        if name in ("resolution", "screen_inches", "density_dpi", "os_version"):
            low, high = _range(name, value)
            bounds = ((f"{name}_minimum", low), (f"{name}_maximum", high))
            given |= {key: bound for key, bound in bounds if bound != ""}
        else:
            given[name] = list(value)
    return given


def _range(name: str, text: str) -> tuple[Any, Any]:
    low, separator, high = text.partition("-")
    if not separator:
        high = low
    try:
        return _bound(name, low), _bound(name, high)
    except ValueError:
        option = f"--{name.replace('_dpi', '').replace('_', '-')}"
        raise UsageError(f"{option} {text!r} is not a value or a range MINIMUM-MAXIMUM.") from None


def _bound(name: str, text: str) -> Any:
    if not text or name == "os_version":
        return text
    if name == "resolution":
        width, height = text.lower().split("x")
        return [int(width), int(height)]
    return float(text) if name == "screen_inches" else int(text)


def _show(result: Any, as_json: bool, show: Callable[[], object]) -> None:
    if as_json:
        click.echo(json.dumps(result, indent=2))
    else:
        show()


def _table(header: Any, rows: Any) -> None:
    lines = [[str(cell) for cell in line] for line in (header, *rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    for line in lines:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
