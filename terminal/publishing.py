"""`lockstep-terminal publish`: put installers into the hub's catalogue from this device, where its account may.

Each file is published or refused by itself. A break of the connection is waited for; Ctrl-C gives the upload up, and
what has come of it is kept at the hub for a day; one that had come whole may be published all the same.
"""

import asyncio
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from protocol.errors import LockstepError, NotLoggedInError, UnavailableError
from terminal.place import Place, common_options, connected_client, print_json

if TYPE_CHECKING:
    from protocol.messages import Published
    from terminal.client import Client


@click.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...", type=click.Path(path_type=Path, readable=False))
@click.option("--program", default="", metavar="ID", help="Program id.  [default: the package name in the file]")
@click.option("--title", default="", metavar="TITLE", help="What people know it by.  [default: the file's own]")
@click.option("--channel", default="", metavar="NAME", help="Channel of the release.  [default: stable]")
@common_options
def publish(place: Place, files: tuple[Path, ...], program: str, title: str, channel: str) -> int:
    """Put installer files into the hub's catalogue, where this device's account has the right.

    What FILE.lockstep.toml beside a FILE says of it goes with it. Only what the hub lacks of a file is sent.
    """
    return asyncio.run(_publish(place, files, {"program": program, "title": title, "channel": channel}))


async def _publish(place: Place, files: tuple[Path, ...], options: dict[str, str]) -> int:
    from terminal.tables import printable_lines
    from terminal.targets import ExitCode

    rows: list[dict[str, Any]] = []
    async with connected_client(place) as client:
        for file in files:
            try:
                with _said_when_given_up(place, file, options["program"], rows):
                    rows.append(_row(file, await _publish_one(place, client, file, options)))
            except LockstepError as error:
                is_over = isinstance(error, (NotLoggedInError, UnavailableError))  # for the others as well
                if len(files) == 1 or (is_over and not rows):
                    raise
                said = {"code": error.code, "message": error.message, "hint": error.hint}
                rows.append({"file": str(file), "error": said})
                click.echo(printable_lines(f"Error: {_naming(file, str(error))}"), err=True)
                if is_over:
                    break
    if place.as_json:
        place.show({"files": rows}, "")
    published = sum("error" not in row and row["verdict"] not in ("infected", "suspicious") for row in rows)
    if published == len(files):
        return ExitCode.DONE
    return ExitCode.PARTLY if published else ExitCode.FAILED


@contextmanager
def _said_when_given_up(place: Place, file: Path, program: str, rows: list[dict[str, Any]]) -> Iterator[None]:
    """Say what Ctrl-C may leave behind: the hub may have had the last byte already."""
    from terminal.tables import printable

    try:
        yield
    except asyncio.CancelledError:
        late = "If all of it had come before, the hub publishes it all the same"
        seen = f"`lockstep-terminal programs {program or 'NAME'}` shows whether it did"
        click.echo(printable(f"{file}: given up. {late}; {seen}."), err=True)
        if place.as_json:
            print_json({"files": rows})
        raise


def _naming(file: Path, words: str) -> str:
    """Return `words` so that they name the file once: as it was given, for several may have one name."""
    return words if words.startswith(str(file)) else f"{file}: {words.removeprefix(f'{file.name}: ')}"


async def _publish_one(place: Place, client: "Client", file: Path, options: dict[str, str]) -> "Published":
    from terminal.tables import printable

    def tell(done: int, size: int) -> None:
        if sys.stderr.isatty() and not place.as_json:
            click.echo(f"\r\x1b[K{printable(file.name)}: {done} of {size} bytes", nl=False, err=True)

    try:
        published = await client.publish(file, **options, tell=tell)
    finally:
        if sys.stderr.isatty() and not place.as_json:
            click.echo("\r\x1b[K", nl=False, err=True)
    verb = "published" if published.new else "was published before:"
    place.tell(
        printable(
            f"{verb} {published.program} {published.version} ({published.installer_kind}, for {published.fits}) "
            f"{published.digest.hex()[:12]}"
        )
    )
    if published.verdict != "clean":
        again = " It is tried again by itself." if published.verdict == "not-scanned" else ""
        why = printable(published.finding).rstrip(".")
        place.tell(f"The hub says that it is {published.verdict}, so nobody gets it: {why}.{again}")
    if published.yanked or published.retired:
        what = "program is retired" if published.retired else "release is yanked"
        place.tell(f"The {what}, so nobody gets it until the hub's owner restores it.")
    return published


def _row(file: Path, published: "Published") -> dict[str, Any]:
    return {
        "file": str(file),
        "program": published.program,
        "title": published.title,
        "version": published.version,
        "kind": published.installer_kind,
        "digest": published.digest.hex(),
        "fits": published.fits,
        "new": published.new,
        "yanked": published.yanked,
        "retired": published.retired,
        "verdict": published.verdict,
        "finding": published.finding,
    }
