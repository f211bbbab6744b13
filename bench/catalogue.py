"""A catalogue of any size, and what it costs to resolve in it: `python -m bench.catalogue [SIZE ...]`.

SIZE counts installers (default: 1000, 100000 and 1000000), ten for each program, over releases, kinds and
architectures. Rows are written through the hub's own queries, without packs: the resolver opens none. Everything runs
in one process, without sockets: what is timed is the hub's own work, from the call to its answer after the commit.
"""

import argparse
import asyncio
import hashlib
import json
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from bench.figures import table
from hub.app import Hub
from hub.candidates import Selector
from hub.catalogue import PublishOptions
from hub.inspection import inspect_safely
from hub.records import InstallerFacts, Terminal
from hub.store import Transaction
from hub.versions import version_sort_key
from protocol.device import Architecture, DeviceInfo, InstallerKind, OsType
from protocol.errors import UnknownNameError
from protocol.limits import MIB
from protocol.messages import Plan, Programs, Sync
from tests.harness.installers import make_installer
from tests.hub.rooms import add_account, add_terminal, open_rooms

SIZES: Final = (1_000, 100_000, 1_000_000)
INSTALLERS_PER_PROGRAM: Final = 10
PROGRAMS_AT_ONCE: Final = 1_000  # written in one transaction
TARGETS: Final = 1_000
RESOLVES: Final = 1_000
SYNCS: Final = 20
PUBLISHED: Final = 50
OTHER_RUNS: Final = 50

_FIRST_WORDS: Final = (
    "chat",
    "city",
    "clock",
    "farm",
    "mail",
    "maps",
    "music",
    "news",
    "photo",
    "radio",
    "space",
    "word",
)
_SECOND_WORDS: Final = ("book", "box", "hub", "kit", "lab", "list", "pad", "player", "reader", "scan", "studio", "view")


# --- the generator ------------------------------------------------------------------------------------------------


class Made(NamedTuple):
    """One installer of a shape: which release it is of, counted from the newest, its kind, and whom it fits."""

    release: int
    kind: InstallerKind
    selector: Selector


def _fits(os_type: OsType, *architectures: Architecture, **more: Any) -> Selector:
    return Selector(os_types=(os_type,), architectures=architectures, **more)


def _releases(count: int, *files: tuple[InstallerKind, Selector]) -> tuple[Made, ...]:
    """Return the same files in so many releases."""
    return tuple(Made(release, kind, selector) for release in range(count) for kind, selector in files)


_TV: Final = {"form_factors": ("tv",), "features_required": ("android.software.leanback",)}
_ANDROID: Final = (
    Made(0, "apk", _fits("android", "arm64", **_TV)),
    *_releases(
        3,
        ("apk", _fits("android", "arm64", api_level_minimum=24)),
        ("apk", _fits("android", "armv7", api_level_minimum=24)),
        ("apk", _fits("android", "x86_64", api_level_minimum=24)),
    ),
)
_LINUX: Final = _releases(5, ("deb", _fits("linux", "x86_64")), ("deb", _fits("linux", "arm64")))
_DESKTOP: Final = _releases(
    2,
    ("msi", _fits("windows", "x86_64", os_version_minimum="10")),
    ("exe", _fits("windows", "arm64", os_version_minimum="11")),
    ("pkg", _fits("macos", "arm64", "x86_64", os_version_minimum="12")),
    ("deb", _fits("linux", "x86_64")),
    ("rpm", _fits("linux", "arm64")),
)
_EVERYWHERE: Final = _releases(
    2,
    ("apk", _fits("android", "arm64", api_level_minimum=24, screen_inches_minimum=4.0)),
    ("ipa", _fits("ios", "arm64", os_version_minimum="15")),
    ("deb", _fits("linux", "x86_64")),
    ("msix", _fits("windows", "x86_64", os_version_minimum="10")),
    ("apk", _fits("android", "armv7", density_dpi_minimum=213, **_TV)),
)
_ANY_PYTHON: Final = Selector(os_types=("linux", "macos", "windows"), wheel_tags=("py3-none-any",))
_WHEEL: Final = _releases(INSTALLERS_PER_PROGRAM, ("wheel", _ANY_PYTHON))
SHAPES: Final = (_ANDROID, _LINUX, _DESKTOP, _EVERYWHERE, _WHEEL)


def program_name(number: int) -> str:
    """Return the id of a program: two words and a number, so that neighbours in the alphabet are strangers."""
    rest, place = divmod(number, len(_FIRST_WORDS))
    first, second = _FIRST_WORDS[place], _SECOND_WORDS[rest % len(_SECOND_WORDS)]
    return f"{first}-{second}-{number}"


@lru_cache(maxsize=10_000)
def _version(number: int, release: int) -> tuple[str, str]:
    """Return a release's version and what orders it."""
    version = f"{number % 7 + 1}.{9 - release}.{number % 4}"
    return version, version_sort_key(version)


def _rows(numbers: range) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of these programs by the query that writes them, in the order they have to be written."""
    rows: dict[str, list[dict[str, Any]]] = {
        name: [] for name in ("add_program", "add_alias", "add_release", "add_object", "add_installer")
    }
    for number in numbers:
        program, shape = program_name(number), SHAPES[number % len(SHAPES)]
        rows["add_program"].append({"program_id": program, "title": program.title(), "now": 0.0})
        for os_type in sorted({os_type for made in shape for os_type in made.selector.os_types}):
            alias = {"os_type": os_type, "package_name": _package(program, os_type), "program_id": program}
            rows["add_alias"].append(alias)
        for release in sorted({made.release for made in shape}):
            version, key = _version(number % 1_000, release)
            channel = "beta" if release == 0 and number % 10 == 0 else "stable"
            rows["add_release"].append(
                {"program_id": program, "version": version, "version_key": key, "channel": channel, "now": 0.0}
            )
        for place, made in enumerate(shape):
            _add_installer(rows, number, place, made)
    return rows


def _package(program: str, os_type: str) -> str:
    return f"org.example.{program.replace('-', '.')}" if os_type in ("android", "ios") else program


def _add_installer(rows: dict[str, list[dict[str, Any]]], number: int, place: int, made: Made) -> None:
    program, (version, _) = program_name(number), _version(number % 1_000, made.release)
    digest = hashlib.sha256(f"{program} {place}".encode()).digest()
    size = 100_000 + int.from_bytes(digest[:4]) % (100 * MIB)
    facts = InstallerFacts(
        package_name=_package(program, made.selector.os_types[0]),
        title=program.title(),
        version=version,
        release=version,
        kind=made.kind,
        selector=made.selector,
        signer_digest=hashlib.sha256(program.encode()).hexdigest() if made.kind == "apk" else "",
        sortable_version=str(1_000 - made.release) if made.kind == "apk" else "",
    )
    rows["add_object"].append(
        {"digest": digest, "size": size, "stored_size": size * 9 // 10, "chunks": size // 65_536 + 1, "now": 0.0}
    )
    rows["add_installer"].append(
        {
            "digest": digest,
            "program_id": program,
            "version": version,
            "kind": made.kind,
            "package_name": facts.package_name,
            "file_version": version,
            "file_name": f"{program}-{version}-{place}.{made.kind}",
            "facts": msgspec.json.encode(facts),
            "size": size,
            "now": 0.0,
            "verdict": "clean",
            "finding": "",
        }
    )


async def fill(hub: Hub, installers: int) -> None:
    """Write a catalogue of so many installers into a hub's database."""
    programs = installers // INSTALLERS_PER_PROGRAM
    for first in range(0, programs, PROGRAMS_AT_ONCE):
        rows = _rows(range(first, min(first + PROGRAMS_AT_ONCE, programs)))
        await hub.store.transaction(partial(_write, rows))


async def _write(rows: dict[str, list[dict[str, Any]]], transaction: Transaction) -> None:
    for query, parameters in rows.items():
        await transaction.many(query, parameters)


# --- twenty kinds of device ---------------------------------------------------------------------------------------


_ANDROID_DEVICES: Final = (
    ("phone", 6.2, ("arm64", "armv7"), 34),
    ("phone", 6.1, ("arm64",), 33),
    ("phone", 5.5, ("armv7",), 28),
    ("phone", 4.0, ("armv7",), 23),
    ("tablet", 11.0, ("arm64",), 33),
    ("tablet", 8.0, ("x86_64",), 30),
    ("tv", 55.0, ("armv7",), 31),
    ("tv", 43.0, ("arm64", "armv7"), 34),
    ("watch", 1.4, ("armv7",), 30),
)
_OTHER_DEVICES: Final = (
    ("linux", "12", "x86_64", ("deb", "wheel")),
    ("linux", "12", "arm64", ("deb", "wheel")),
    ("linux", "9", "x86_64", ("rpm",)),
    ("linux", "12", "riscv64", ("deb",)),
    ("linux", "12", "arm64", ("wheel",)),
    ("windows", "11", "x86_64", ("msi", "exe", "msix")),
    ("windows", "10", "x86_64", ("msi", "exe")),
    ("windows", "11", "arm64", ("exe", "msi")),
    ("macos", "14", "arm64", ("pkg", "wheel")),
    ("macos", "11", "x86_64", ("pkg",)),
    ("ios", "17", "arm64", ("ipa",)),
)


def devices() -> Iterator[DeviceInfo]:
    """Yield the twenty kinds of device that ask."""
    for form, inches, architectures, api_level in _ANDROID_DEVICES:
        device = {
            "model": f"{form} {inches}", "form_factor": form, "os_type": "android", "os_version": "13",
            "api_level": api_level, "architectures": architectures, "screen_inches": inches,
            "resolution": (1080, 2400), "density_dpi": 320, "installer_kinds": ("apk",), "free_bytes": 2**36,
            "features": ("android.software.leanback" if form == "tv" else "android.hardware.touchscreen",),
        }  # fmt: skip
        yield msgspec.convert(device, DeviceInfo)
    for os_type, version, architecture, kinds in _OTHER_DEVICES:
        device = {
            "model": f"{os_type} {architecture}", "form_factor": "phone" if os_type == "ios" else "pc",
            "os_type": os_type, "os_version": version, "architectures": (architecture,), "installer_kinds": kinds,
            "python_version": "3.11", "libc": "glibc 2.36" if os_type == "linux" else "", "free_bytes": 2**40,
        }  # fmt: skip
        yield msgspec.convert(device, DeviceInfo)


# --- what is measured ---------------------------------------------------------------------------------------------


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """What one size gave. Times are milliseconds, the median and the 99th percentile; sizes are bytes.

    `resolve_processor_ms` and `resolve_steps` (of SQLite's virtual machine) say what one resolve costs whatever else
    the machine does.
    """

    installers: int
    programs: int
    fill_seconds: float
    database_bytes: int
    resolve_ms: tuple[float, float]
    resolve_processor_ms: float
    resolve_steps: int
    resolve_missing_ms: tuple[float, float]
    plan_many_ms: tuple[float, float]
    sync_many_ms: tuple[float, float]
    programs_page_ms: tuple[float, float]
    programs_search_ms: tuple[float, float]
    show_ms: tuple[float, float]
    publish_ms: tuple[float, float]
    inspect_ms: tuple[float, float]
    publishes_per_second: float


async def timed(runs: int, act: Callable[[int], Awaitable[object]]) -> tuple[float, float]:
    """Return the median and the 99th percentile of so many runs, in milliseconds, after a tenth as many to warm up."""
    times = []
    for run in range(-(runs // 10), runs):
        began = time.perf_counter()
        await act(run)
        if run >= 0:
            times.append((time.perf_counter() - began) * 1_000)
    return round(statistics.median(times), 3), round(sorted(times)[int(len(times) * 0.99)], 3)


async def processor_time(runs: int, act: Callable[[int], Awaitable[object]]) -> float:
    """Return the processor time of a run in milliseconds, of all threads and on average."""
    began = time.process_time()
    for run in range(runs):
        await act(run)
    return round((time.process_time() - began) * 1_000 / runs, 3)


async def steps(hub: Hub, act: Callable[[], Awaitable[object]]) -> int:
    """Return the steps SQLite's virtual machine takes while `act` runs (sqlite3_progress_handler)."""
    taken = 0

    def count() -> int:
        nonlocal taken
        taken += 1
        return 0

    connection = hub.store._connection
    await connection.set_progress_handler(count, 1)
    try:
        await act()
    finally:
        await connection.set_progress_handler(None, 0)  # type: ignore[arg-type]
    return taken


@asynccontextmanager
async def filled(folder: Path, installers: int) -> AsyncIterator[tuple[Hub, float, int]]:
    """Open a hub with a catalogue of this size; yield it, the seconds that took, and its database's bytes."""
    began = time.perf_counter()
    async with open_rooms(folder) as hub:
        await fill(hub, installers)
    seconds = time.perf_counter() - began
    size = (folder / "hub" / "hub.db").stat().st_size
    async with open_rooms(folder) as hub:
        yield hub, seconds, size


async def measure(folder: Path, installers: int) -> Figures:
    """Measure a catalogue of so many installers in an empty folder."""
    chance, programs = random.Random(installers), installers // INSTALLERS_PER_PROGRAM
    async with filled(folder, installers) as (hub, seconds, size):
        one = await add_terminal(hub, await add_account(hub, "one"), "PC")
        many = await _add_many(hub)

        def any_program(_run: int = 0) -> str:
            return program_name(chance.randrange(programs))

        return Figures(
            installers=installers,
            programs=programs,
            fill_seconds=round(seconds, 1),
            database_bytes=size,
            resolve_ms=await timed(RESOLVES, lambda _: _plan(hub, one, any_program())),
            resolve_processor_ms=await processor_time(RESOLVES, lambda _: _plan(hub, one, any_program())),
            resolve_steps=await steps(hub, lambda: _plan(hub, one, program_name(programs // 2))),
            resolve_missing_ms=await timed(OTHER_RUNS, lambda run: _plan_missing(hub, one, any_program(), run)),
            plan_many_ms=await timed(SYNCS, lambda _: hub.syncs.plan(many, _all(Plan, any_program()))),
            sync_many_ms=await timed(
                SYNCS, lambda run: hub.syncs.accept(many, _all(Sync, any_program(), request_key=f"k{run}"))
            ),
            programs_page_ms=await timed(
                OTHER_RUNS, lambda _: hub.syncs.programs(one, Programs(id=1, after=any_program()))
            ),
            programs_search_ms=await timed(
                OTHER_RUNS, lambda _: hub.syncs.programs(one, Programs(id=1, query=any_program()))
            ),
            show_ms=await timed(OTHER_RUNS, lambda _: hub.catalogue.program(any_program())),
            **await _publishing(hub, folder),
        )


async def _add_many(hub: Hub) -> Terminal:
    """Add an account of `TARGETS` terminals of twenty kinds, and one more that asks."""
    account, kinds = await add_account(hub, "many"), list(devices())
    for number in range(TARGETS):
        await add_terminal(hub, account, f"D{number}", device=kinds[number % len(kinds)])
    return await add_terminal(hub, account, "Asks", receives=False)


async def _plan(hub: Hub, terminal: Terminal, program: str) -> None:
    await hub.syncs.plan(terminal, Plan(id=1, program=program, targets=(terminal.terminal_id,)))


async def _plan_missing(hub: Hub, terminal: Terminal, program: str, run: int) -> None:
    """Ask for a name with a letter too few; the answer has the near names."""
    at = run % (len(program) - 4) + 1
    try:
        await _plan(hub, terminal, program[:at] + program[at + 1 :])
    except UnknownNameError:
        return


def _all(request: type[Any], program: str, **fields: Any) -> Any:
    return request(id=1, program=program, everyone=True, **fields)


async def _publishing(hub: Hub, folder: Path) -> dict[str, Any]:
    """Publish small real Debian packages, one after the other; and only read their headers, to compare."""
    count = PUBLISHED + PUBLISHED // 10
    files = [make_installer(folder, "deb", f"published-{number}", size=20_000, seed=number) for number in range(count)]
    began = time.perf_counter()
    publish = await timed(PUBLISHED, lambda run: hub.catalogue.publish(files[run], PublishOptions()))
    seconds = time.perf_counter() - began
    return {
        "publish_ms": publish,
        "inspect_ms": await timed(PUBLISHED, lambda run: inspect_safely(files[run])),
        "publishes_per_second": round(count / seconds, 1),
    }


# --- what is shown ------------------------------------------------------------------------------------------------

ROWS: Final[dict[str, Callable[[Figures], str]]] = {
    "programs": lambda one: f"{one.programs:,}",
    "database, MiB": lambda one: f"{one.database_bytes / MIB:,.1f}",
    "written in, s": lambda one: f"{one.fill_seconds:.1f}",
    "resolve for one device, ms": lambda one: _pair(one.resolve_ms),
    "processor time of that, ms": lambda one: f"{one.resolve_processor_ms:.2f}",
    "steps of SQLite for that": lambda one: f"{one.resolve_steps:,}",
    f"resolve for {TARGETS:,} devices of 20 kinds (a plan), ms": lambda one: _pair(one.plan_many_ms),
    "the same committed (a sync), ms": lambda one: _pair(one.sync_many_ms),
    "a mistyped program, with its near names, ms": lambda one: _pair(one.resolve_missing_ms),
    "a page of 200 programs, ms": lambda one: _pair(one.programs_page_ms),
    "programs searched by a text, ms": lambda one: _pair(one.programs_search_ms),
    "one program whole, ms": lambda one: _pair(one.show_ms),
    "publish a .deb of 20 kB, ms": lambda one: _pair(one.publish_ms),
    "of which reading its header in the worker, ms": lambda one: _pair(one.inspect_ms),
    "published a second, one after the other": lambda one: f"{one.publishes_per_second:.1f}",
}


def _pair(times: tuple[float, float]) -> str:
    return " / ".join(f"{milliseconds:.2f}" if milliseconds < 10 else f"{milliseconds:.0f}" for milliseconds in times)


def main(arguments: list[str]) -> int:
    """Measure the sizes named, or all; print a table, or JSON."""
    parser = argparse.ArgumentParser(prog="python -m bench.catalogue", description=__doc__.splitlines()[0])
    parser.add_argument("sizes", nargs="*", type=int, default=SIZES, metavar="SIZE", help="installers")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    wanted = parser.parse_args(arguments)
    figures = []
    for size in wanted.sizes:
        folder = Path(tempfile.mkdtemp(prefix="lockstep-catalogue-"))
        try:
            figures.append(asyncio.run(measure(folder, size)))
        finally:
            shutil.rmtree(folder)
        print(f"{size:,} installers are measured.", file=sys.stderr, flush=True)
    if wanted.json:
        wanted.json.write_text(json.dumps(msgspec.to_builtins(figures), indent=2) + "\n")
    header = ("installers", *(f"{one.installers:,}" for one in figures))
    table("Catalogues, median / 99th percentile", header, [(name, *map(show, figures)) for name, show in ROWS.items()])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
