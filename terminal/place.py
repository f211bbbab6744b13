"""Place: where a command of `lockstep-terminal` runs, and how it answers.

Every command has `--state` and `--json`. An answer goes to standard output: a table on a screen, plain lines in a pipe,
one JSON document with `--json`. Libraries are imported when they are needed, so that `--help` is quick.
"""

import asyncio
import contextlib
import functools
import os
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Concatenate, Final, ParamSpec

import click

from protocol.errors import UsageError
from protocol.limits import JOIN_KEY_CHARACTERS

if TYPE_CHECKING:
    from protocol.device import DeviceInfo
    from terminal.client import Client
    from terminal.installers import RunnerSettings
    from terminal.state import StateFolder
    from terminal.tables import Table

P = ParamSpec("P")

PASSWORD_CHARACTERS: Final = 1_024
JOIN_KEY_VARIABLE: Final = "LOCKSTEP_JOIN_KEY"


@dataclass(frozen=True, slots=True)
class Place:
    """What every command is given: its state folder (None: the default one) and whether a program reads its answer."""

    state: Path | None
    as_json: bool

    def folder(self) -> "StateFolder":
        """Return the state folder, created when it is not there."""
        from terminal.state import StateFolder, default_state_path

        return StateFolder(self.state or default_state_path())

    def show(self, answer: Mapping[str, object], shown: "Table | str") -> None:
        """Print `answer` as JSON, or what is shown of it as words."""
        if self.as_json:
            print_json(answer)
        elif isinstance(shown, str):
            click.echo(shown)
        else:
            print_table(shown)

    def tell(self, sentence: str) -> None:
        """Print a sentence for people, beside the answer; a program does not see it."""
        if not self.as_json:
            click.echo(sentence)


def common_options(command: Callable[Concatenate[Place, P], int]) -> Callable[..., int]:
    """Give a command `--state` and `--json`; it gets them as its first argument, a Place."""

    @click.option(
        "--state",
        type=click.Path(path_type=Path, file_okay=False),
        envvar="LOCKSTEP_STATE",
        metavar="DIR",
        help="Folder this terminal keeps its state in.  [env: LOCKSTEP_STATE]",
    )
    @click.option("--json", "as_json", is_flag=True, help="Answer with JSON.")
    @functools.wraps(command)
    def placed(state: Path | None, as_json: bool, *args: P.args, **kwargs: P.kwargs) -> int:
        return command(Place(state, as_json), *args, **kwargs)

    return placed


def print_json(answer: Mapping[str, object]) -> None:
    """Print one JSON document on one line; structs become objects, bytes hex."""
    import json

    from terminal.tables import document

    click.echo(json.dumps(document(answer), ensure_ascii=False))


def print_table(table: "Table") -> None:
    """Print a table: drawn for a screen, plain lines for a pipe."""
    from terminal.tables import plain_text, rich_table

    if not sys.stdout.isatty():
        click.echo(plain_text(table))
        return
    from rich.console import Console

    Console().print(rich_table(table))


def local_device(
    folder: "StateFolder", device_file: Path | None = None
) -> "tuple[DeviceInfo, dict[str, RunnerSettings]]":
    """Return this device and its runners' settings: detected, and as its device file says otherwise."""
    from terminal.detection import detect_device, load_device

    detected = detect_device(folder.path)
    described = device_file or folder.device_file
    return load_device(described, detected) if described.exists() else (detected, {})


@asynccontextmanager
async def connected_client(place: Place) -> "AsyncIterator[Client]":
    """Speak to the hub as the terminal of `place`. Raises what `open_client` raises."""
    from terminal.client import open_client

    folder = place.folder()
    folder.identity()  # not logged in: say so before anything is detected
    async with open_client(folder, device=local_device(folder)[0]) as client:
        yield client


def read_password(from_stdin: bool) -> str:
    """Return the first line of standard input, or what a person answers. Raises UsageError where nobody can."""
    if from_stdin:
        password = sys.stdin.readline(PASSWORD_CHARACTERS + 2).rstrip("\r\n")
    elif sys.stdin.isatty():
        password = click.prompt("Password", hide_input=True, err=True)
    else:
        raise UsageError(
            "There is no screen to ask for the password on.",
            hint="Add --password-stdin and give it on standard input.",
        )
    if not 0 < len(password) <= PASSWORD_CHARACTERS:
        raise UsageError(f"The password has {len(password)} characters; it needs 1 to {PASSWORD_CHARACTERS}.")
    try:
        password.encode()
    except UnicodeEncodeError:
        raise UsageError("The password is not Unicode.", hint="Give it in UTF-8.") from None
    return password


def read_secret(what: str, file: Path | None, most_characters: int, *, given: str | None = None) -> str:
    """Return a secret without spaces: `given`, else the first line of `file`, else that of standard input.

    Raises UsageError, which never repeats it.
    """
    if given is None:
        try:
            with contextlib.ExitStack() as stack:
                lines = stack.enter_context(file.open(encoding="ascii", errors="replace")) if file else sys.stdin
                given = lines.readline(most_characters + 2)
        except OSError as error:
            raise UsageError(f"The {what} cannot be read from {file}: {error.strerror}.") from None
    secret = given.strip()
    if not 0 < len(secret) <= most_characters:
        raise UsageError(f"The {what} has {len(secret)} characters; it needs 1 to {most_characters}.")
    if not (secret.isascii() and secret.isprintable()) or " " in secret:
        raise UsageError(f"The {what} has characters that none has.", hint="Give it as it was shown, on one line.")
    return secret


def read_join_key(from_stdin: bool, file: Path | None) -> str:
    """Return a join key: from standard input, from `file`, else from the environment. Raises UsageError."""
    if from_stdin and file is not None:
        raise UsageError("Give the join key on standard input or in a file, not both.")
    given = None if from_stdin or file else os.environ.get(JOIN_KEY_VARIABLE, "")
    if given == "":
        raise UsageError(
            "Neither an account nor a join key was given.",
            hint=f"Add --account NAME, --join-key-stdin or --join-key-file FILE, or set {JOIN_KEY_VARIABLE}.",
        )
    return read_secret("join key", file, JOIN_KEY_CHARACTERS, given=given)


@contextmanager
def stopped_by_signals(stop: asyncio.Event) -> Iterator[None]:
    """Set `stop` when SIGTERM or SIGINT comes, in place of what they would do."""
    import signal

    loop = asyncio.get_running_loop()
    numbers = (signal.SIGINT, signal.SIGTERM)
    # Not loop.add_signal_handler, which Windows lacks. The loop wakes for a signal by itself.
    before = [signal.signal(number, lambda *_: loop.call_soon_threadsafe(stop.set)) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
