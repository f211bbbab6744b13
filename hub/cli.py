"""`lockstep-hub`: arguments -> settings -> the hub, or a command to it.

Exit codes: 0 done, 1 refused or failed, 2 wrong usage, 130 Ctrl-C.
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
from collections.abc import Callable, Coroutine, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import click

from hub.accountcommands import account, device
from hub.asking import match
from hub.auditing import audit
from hub.commandline import ask_hub, data_option, json_option, run, show
from hub.configuring import config
from hub.inspecting import inspect
from hub.joining import account_link, joinkey, key
from hub.publishing import catalogue, publish
from hub.verdictcommands import verdicts
from protocol.errors import ConflictError, LockstepError, UsageError

_END_AFTER_FAILURE_SECONDS: Final = 10.0


class _Group(click.Group):
    """Shows whatever goes wrong as one sentence and what to do, never as a traceback; `--json` as one JSON document."""

    def main(self, *rest: Any, args: Sequence[str] | None = None, **extra: Any) -> Any:
        """Run the command line and end with its exit code."""
        arguments = sys.argv[1:] if args is None else list(args)
        extra |= {"args": arguments, "standalone_mode": False}
        try:
            code = _run_told(lambda: super(_Group, self).main(*rest, **extra), as_json="--json" in arguments)
        except OSError as error:  # of the output, where errors are told as well
            code = _give_output_up(error)
        sys.exit(code)


def _run_told(work: Callable[[], Any], *, as_json: bool) -> int:
    """Return the exit code of `work`, and tell what went wrong. Raises OSError where the output cannot be written."""
    try:
        return int(work() or 0)
    except LockstepError as error:
        _tell(error, as_json)
        return 2 if isinstance(error, UsageError) and not isinstance(error, ConflictError) else 1
    except click.ClickException as error:
        return _tell_click_error(error, as_json)
    except click.Abort:
        return 130
    except Exception as error:
        if isinstance(error, OSError) and _is_of_output(error):
            raise
        if os.environ.get("LOCKSTEP_DEBUG"):
            traceback.print_exc()
        words = f"Internal error: {type(error).__name__}: {error}."
        _tell(LockstepError(words, hint="LOCKSTEP_DEBUG=1 shows more."), as_json)
        return 1


def _tell(error: LockstepError, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"error": {"code": error.code, "message": error.message, "hint": error.hint}}))
    else:
        click.echo(f"Error: {error}", err=True)


def _tell_click_error(error: click.ClickException, as_json: bool) -> int:
    if as_json and not isinstance(error, click.exceptions.NoArgsIsHelpError):
        context = error.ctx if isinstance(error, click.UsageError) else None
        command = context.command_path if context else "lockstep-hub"
        _tell(UsageError(error.format_message(), hint=f"`{command} --help` says more."), as_json)
    else:
        error.show()
    return error.exit_code


def _is_of_output(error: OSError) -> bool:
    """Whether it came while something was printed. The error itself does not say, and a second try may succeed."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return frame.f_code is click.echo.__code__


def _give_output_up(error: OSError) -> int:
    """Say that nobody gets the output, and let go of the rest of it, which Python would write at its end."""
    with contextlib.suppress(OSError):  # the errors' own way may be closed too
        if not isinstance(error, BrokenPipeError):  # whoever read it, such as `head`, has gone
            click.echo(f"Error: The output could not be written: {error.strerror}.", err=True)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(version("lockstep"), prog_name="lockstep-hub")
def main() -> None:
    """Keep the applications on all of an account's devices in step: the hub."""


@main.command()
@click.option("--listen", metavar="HOST:PORT", help="Where to listen (default: 127.0.0.1:8765).")
@data_option
@click.option("--name", "names", multiple=True, metavar="HOST[:PORT]", help="A name terminals dial to reach this hub.")
@click.option("--insecure-lan", is_flag=True, default=None, help="Allow ws:// without TLS off this machine.")
@click.option("--tls-cert", help="Certificate chain (PEM); serves wss://.")
@click.option("--tls-key", help="Private key (PEM).")
def serve(config_file: Path | None, **flags: Any) -> None:
    """Run the hub until SIGTERM or SIGINT. At SIGHUP it reads its TLS files and scan rules again."""
    from hub.config import load_settings

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", datefmt="%Y-%m-%dT%H:%M:%S")
    _raise_file_limit()
    _collect_seldom()
    run(_serve(load_settings(config_file, flags)))


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
    from hub.reception import tls_context

    tls_context(settings)  # before anything is made: files of no use leave no new data folder behind
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    reload: list[Callable[[], None]] = []
    loop.add_signal_handler(signal.SIGHUP, _reload, reload)  # empty at first: a hub that starts reads everything anew
    async with open_hub(settings) as hub, serve_hub(hub) as server, serve_admin(hub):
        reload += hub.reload
        host, _ = settings.address
        scheme = "wss" if settings.encrypted else "ws"
        shown = f"[{host}]" if ":" in host else host
        note = "" if settings.encrypted else " (not encrypted)"
        click.echo(f"lockstep-hub listens on {scheme}://{shown}:{server.port}{note}, data in {settings.data_folder}")
        sys.stdout.flush()
        await _until_stopped(stop, hub.store.failed())
        click.echo("lockstep-hub is stopping; what is owed is kept.")


def _reload(reload: list[Callable[[], None]]) -> None:
    """Read again what may have changed while the hub runs; what cannot be used is told, and the old is kept."""
    for one in reload:
        try:
            one()
        except LockstepError as error:
            logging.getLogger("lockstep.hub").error("%s What there was before is kept.", error)


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


main.add_command(account)
main.add_command(device)
account.add_command(account_link)
main.add_command(joinkey)
main.add_command(key)
main.add_command(config)
main.add_command(publish)
main.add_command(verdicts)
main.add_command(inspect)
main.add_command(catalogue)
main.add_command(match)
main.add_command(audit)


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
@data_option
@json_option
def backup_write(file: Path, force: bool, data: str | None, config_file: Path | None, as_json: bool) -> None:
    """Write a backup (the word may be left out)."""
    arguments = {"file": str(file.absolute()), "force": force}
    result = ask_hub(data, config_file, "backup", arguments, _progress(as_json))
    _show_backup(result, as_json, f"Backup {file} is written")


@backup.command("verify")
@click.argument("file", type=click.Path(path_type=Path))
@json_option
def backup_verify(file: Path, as_json: bool) -> None:
    """Read a backup and check every byte of it; needs no hub."""
    from hub.backup import verify_backup

    _show_backup(verify_backup(file, _progress(as_json)), as_json, f"Backup {file} is whole")


@main.command()
@click.argument("file", type=click.Path(path_type=Path))
@data_option
@json_option
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
    show(row, as_json, lambda: click.echo(f"{words}: {row['objects']} objects, {row['bytes']} bytes."))
    for digest in row["missing"]:
        click.echo(f"Missing in it: object {digest}. Publish that file again.", err=True)
    if row["missing"]:
        sys.exit(1)


@main.command()
@data_option
@json_option
def check(data: str | None, config_file: Path | None, as_json: bool) -> None:
    """Read everything the hub has stored and say what is damaged (exit code 1), missing or superfluous."""
    report = ask_hub(data, config_file, "check", {}, _progress(as_json))
    show(report, as_json, lambda: _show_report(report))
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
