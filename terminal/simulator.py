"""`lockstep-terminal simulate`: many devices of one account in one process, and how they stand, once a second.

On a screen one line is kept current; in a pipe a line is printed whenever something changed; with `--json` the summary
is the one document. The devices themselves are in `simulated.py`.
"""

import asyncio
import contextlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from protocol.errors import UsageError
from terminal.place import Place, read_join_key, read_password, stopped_by_signals

if TYPE_CHECKING:
    from terminal.simulated import Fleet, SimulatedPosture, Tally

LARGEST_COUNT: Final = 2_000  # terminals an account may have
FILES_FOR_EACH: Final = 4  # socket, lock, download, and a file being copied
FILES_BESIDE: Final = 256
EVERY_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class Wishes:
    """What `simulate` was asked for."""

    url: str
    account: str
    password: str = field(repr=False)
    join_key: str = field(repr=False)
    count: int
    seed: int
    mix: Path | None
    folder: Path
    insecure_lan: bool
    ca_file: Path | None
    cut_every_seconds: float
    seconds: float | None
    posture: "SimulatedPosture"


_file = click.Path(path_type=Path, exists=True, dir_okay=False)


@click.command()
@click.option("--hub", "url", required=True, metavar="URL", help="The hub.")
@click.option("--account", metavar="NAME", help="The account the devices join with its password.")
@click.option("--join-key-stdin", is_flag=True, help="They join by the join key on the first line of standard input.")
@click.option("--join-key-file", type=_file, metavar="FILE", help="They join by the join key in FILE.")
@click.option("--count", type=click.IntRange(1, LARGEST_COUNT), default=5, show_default=True, help="How many devices.")
@click.option("--seed", default=1, show_default=True, help="The same seed gives the same devices.")
@click.option("--mix", type=_file, metavar="FILE", help="TOML file that says which devices.  [default: a usual mix]")
@click.option("--password-stdin", is_flag=True, help="Read the password from the first line of standard input.")
@click.option(
    "--state",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Folder for all their state, to go on with next time.  [default: one that is removed at the end]",
)
@click.option("--insecure-lan", is_flag=True, help="Allow ws:// to a hub in the local network: nothing is encrypted.")
@click.option("--ca-file", type=_file, metavar="FILE", help="Certificates (PEM) to trust for wss://.")
@click.option(
    "--drop-every",
    type=click.FloatRange(min=0, min_open=True),
    default=None,
    metavar="SECONDS",
    help="Cut each connection at random, after this long on average.",
)
@click.option(
    "--duration", type=click.FloatRange(min=0), metavar="SECONDS", help="End after this long.  [default: when stopped]"
)
@click.option(
    "--posture",
    type=click.Choice(["clean", "finding", "never"]),
    default="clean",
    show_default=True,
    help="What the scans a hub asks for end with.",
)
@click.option("--json", "as_json", is_flag=True, help="Answer with JSON.")
def simulate(
    url: str,
    account: str | None,
    join_key_stdin: bool,
    join_key_file: Path | None,
    count: int,
    seed: int,
    mix: Path | None,
    password_stdin: bool,
    state: Path | None,
    insecure_lan: bool,
    ca_file: Path | None,
    drop_every: float | None,
    duration: float | None,
    posture: "SimulatedPosture",
    as_json: bool,
) -> int:
    """Be many devices: enrol them, keep them connected, receive what is sent and install it into folders.

    They join by --account and its password, or by a join key that may be used COUNT times (--join-key-stdin,
    --join-key-file, or LOCKSTEP_JOIN_KEY). Ends with Ctrl-C or after --duration, with exit code 0 if nothing failed.
    """
    join_key = "" if account else read_join_key(join_key_stdin, join_key_file)
    if account and (join_key_stdin or join_key_file):
        raise UsageError("Give --account NAME or a join key, not both.")
    with _folder(state) as folder:
        wishes = Wishes(
            url=url,
            account=account or "",
            password=read_password(password_stdin) if account else "",
            join_key=join_key,
            count=count,
            seed=seed,
            mix=mix,
            folder=folder,
            insecure_lan=insecure_lan,
            ca_file=ca_file,
            cut_every_seconds=drop_every or 0.0,
            seconds=duration,
            posture=posture,
        )
        return asyncio.run(_simulate(wishes, Place(state, as_json)))


@contextmanager
def _folder(state: Path | None) -> Iterator[Path]:
    if state is not None:
        yield state
        return
    import tempfile

    with tempfile.TemporaryDirectory(prefix="lockstep-simulated-") as temporary:
        yield Path(temporary)


async def _simulate(wishes: Wishes, place: Place) -> int:
    from terminal.simulated import DEFAULT_MIX, load_mix, make_devices, make_fleet
    from terminal.tables import printable
    from terminal.targets import ExitCode

    _raise_file_limit(wishes.count)
    mix = load_mix(wishes.mix) if wishes.mix else DEFAULT_MIX
    made = make_devices(mix, wishes.count, wishes.seed)
    fleet = make_fleet(
        made,
        wishes.folder,
        wishes.url,
        wishes.account,
        seed=wishes.seed,
        cut_every_seconds=wishes.cut_every_seconds,
        posture=wishes.posture,
    )
    stop = asyncio.Event()
    with stopped_by_signals(stop):
        tally = await _until_stopped(fleet, wishes, place, stop)
    errors = sorted({f"{device.name}: {device.error}" for device in fleet.devices if device.error})
    for error in errors:
        click.echo(printable(error), err=True)
    place.show({**_document(tally), "errors": errors}, _line(tally))
    return ExitCode.FAILED if tally.failed or tally.refused else ExitCode.DONE


async def _until_stopped(fleet: "Fleet", wishes: Wishes, place: Place, stop: asyncio.Event) -> "Tally":
    """Run the fleet and show how it stands until `stop` or the duration's end; return how it stood then.

    Raises what an enrolment raises that cannot be.
    """
    showing = asyncio.create_task(_show(fleet, place))
    living = asyncio.create_task(_live(fleet, wishes))
    stopped = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait((living, stopped), timeout=wishes.seconds, return_when=asyncio.FIRST_COMPLETED)
        if living.done():
            living.result()
        return fleet.tally()
    finally:
        for task in (living, stopped, showing):
            task.cancel()
        await asyncio.wait((living, stopped, showing))
        await fleet.disconnect()


async def _live(fleet: "Fleet", wishes: Wishes) -> None:
    """Enrol, connect and stay, until cancelled."""
    await fleet.enrol(
        wishes.password, join_key=wishes.join_key, insecure_lan=wishes.insecure_lan, ca_file=wishes.ca_file
    )
    fleet.connect(insecure_lan=wishes.insecure_lan, ca_file=wishes.ca_file)
    await asyncio.Event().wait()


async def _show(fleet: "Fleet", place: Place) -> None:
    if place.as_json:
        return
    on_screen = sys.stdout.isatty()
    shown = ""
    try:
        while True:
            line = _line(fleet.tally())
            if line != shown:
                click.echo(f"\r\x1b[K{line}" if on_screen else line, nl=not on_screen)
                shown = line
            await asyncio.sleep(EVERY_SECONDS)
    finally:
        if on_screen:
            click.echo()


def _line(tally: "Tally") -> str:
    refused = f", {tally.refused} refused" if tally.refused else ""
    return (
        f"{tally.devices} devices: {tally.enrolled} enrolled, {tally.online} online, {tally.delivered} delivered, "
        f"{tally.failed} failed{refused}, {tally.heard_bytes:,} bytes received"
    )


def _document(tally: "Tally") -> dict[str, object]:
    import msgspec

    return dict(msgspec.structs.asdict(tally))


def _raise_file_limit(count: int) -> None:
    """Allow this process the files `count` devices need. Raises UsageError when the system does not."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    needed = count * FILES_FOR_EACH + FILES_BESIDE
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise UsageError(
            f"{count} devices need {needed} open files, and this system allows {hard}.",
            hint=f"Raise the limit (`ulimit -n`), or simulate at most {(hard - FILES_BESIDE) // FILES_FOR_EACH}.",
        )
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
