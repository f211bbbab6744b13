"""The catalogue: programs -> releases -> installers. Publishes files and reads candidates for the resolver.

Publishing goes: inspect the header, merge what was given, cut and store the object, then the rows. The object is on
disk before its row exists, so a crash between the two leaves bytes that nothing names, never a row without bytes.
"""

import asyncio
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import Struct, structs

from hub.inspection import inspect_safely
from hub.inspectors.sidecar import Sidecar
from hub.matching import Candidate, Selector
from hub.objects import Objects
from hub.records import InstallerFacts, Published, StoredObject
from hub.store import Row, Store, Transaction
from hub.versions import version_sort_key
from protocol import limits
from protocol.errors import BadFileError, ConflictError, UsageError
from protocol.messages import InstallerOffer

# How the two ends of a range compare.
_RANGES: Final[dict[str, Callable[[Any], Any]]] = {
    "screen_inches": float,
    "density_dpi": int,
    "resolution": lambda pixels: (max(pixels), min(pixels)),
    "os_version": version_sort_key,
}
_PROGRAM_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")


class PublishOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a person says of an installer beyond its header. `given` holds fields of `Selector`."""

    program: str = ""
    title: str = ""
    given: dict[str, Any] = {}


class Catalogue:
    """The application database of one hub."""

    def __init__(self, store: Store, objects: Objects) -> None:
        self._store = store
        self._objects = objects

    async def publish(self, path: Path, options: PublishOptions) -> Published:
        """Publish one installer file.

        Raises BadFileError for a file that is damaged or of no known kind, ConflictError where what was given
        contradicts the header or what is published already, RefusedError where it is too large or the disk too full.
        """
        found = await inspect_safely(path)
        options = _with_sidecar(options, found.sidecar)
        facts = _merge(path.name, found.facts, options)
        program = options.program or facts.package_name
        _check_lengths(path.name, program, options.title or facts.title, facts)
        stored = await asyncio.to_thread(self._objects.add, path)

        async def body(transaction: Transaction) -> Published:
            new = await _add_rows(transaction, path.name, program, options.title, facts, stored)
            row = await transaction.row("catalogue_entry", digest=stored.digest)
            assert row is not None
            return structs.replace(_published(row), new=new)

        return await self._store.transaction(body)

    async def listing(self) -> list[Published]:
        """Every installer, by program and newest release first."""

        async def body(transaction: Transaction) -> list[Row]:
            return await transaction.rows("catalogue")

        return [_published(row) for row in await self._store.transaction(body)]


async def read_candidates(
    transaction: Transaction, program: str, channel: str = "", version: str = ""
) -> tuple[Candidate, ...]:
    """Return the installers of a program the resolver may choose from: nothing yanked, nothing of a retired program.

    They are those of the channel "stable" and of `channel`; where a `version` is pinned, those of every channel.
    """
    rows = await transaction.rows("candidates_of_program", program_id=program, channel=channel, version=version)
    return tuple(map(_candidate, rows))


def _candidate(row: Row) -> Candidate:
    facts = _facts(row)
    return Candidate(
        digest=row["digest"],
        version=row["version"],
        kind=row["kind"],
        size=row["size"],
        selector=facts.selector,
        file_version=row["file_version"],
        sortable_version=facts.sortable_version,
        signer_digest=facts.signer_digest,
        channel=row["channel"],
    )


def installer_offer(row: Row) -> InstallerOffer:
    """Return what a terminal is told of an installer, from a row with the installer's columns."""
    return InstallerOffer(
        program=row["program_id"],
        package_name=row["package_name"],
        version=row["file_version"],
        installer_kind=row["kind"],
        file_name=row["file_name"],
    )


def _facts(row: Row) -> InstallerFacts:
    return msgspec.json.decode(row["facts"], type=InstallerFacts)


def _published(row: Row) -> Published:
    facts = _facts(row)
    return Published(
        program=row["program_id"],
        title=row["title"],
        version=row["version"],
        kind=row["kind"],
        file_name=row["file_name"],
        size=row["size"],
        stored_size=row["stored_size"],
        digest=row["digest"].hex(),
        fits=describe_selector(facts.selector),
        facts=facts,
    )


def describe_selector(selector: Selector) -> str:
    """Say in a few words which devices an installer fits, leaving nothing out."""
    parts = ["/".join(selector.os_types)]
    parts += _between("API ", selector.api_level_minimum, selector.api_level_maximum)
    parts += _between("version ", selector.os_version_minimum, selector.os_version_maximum)
    lists = (selector.architectures, selector.form_factors, selector.models, selector.features_required)
    parts.extend("/".join(values) for values in lists if values)
    parts.extend(f"not {value}" for value in (*selector.models_excluded, *selector.features_forbidden))
    parts += _between("", selector.screen_inches_minimum, selector.screen_inches_maximum, " in")
    parts += _between("", _pixels(selector.resolution_minimum), _pixels(selector.resolution_maximum), " px")
    parts += _between("", selector.density_dpi_minimum, selector.density_dpi_maximum, " dpi")
    return ", ".join(parts)


def _between(before: str, minimum: object, maximum: object, after: str = "") -> list[str]:
    if not minimum and not maximum:
        return []
    if minimum == maximum:
        return [f"{before}{minimum}{after}"]
    words = f"{minimum}-{maximum}" if minimum and maximum else f"{minimum}+" if minimum else f"up to {maximum}"
    return [f"{before}{words}{after}"]


def _pixels(resolution: tuple[int, int] | None) -> str:
    return f"{resolution[0]}x{resolution[1]}" if resolution else ""


async def _add_rows(
    transaction: Transaction,
    file_name: str,
    program: str,
    title: str,
    facts: InstallerFacts,
    stored: StoredObject,
) -> bool:
    now = time.time()
    known = await transaction.row("installer", digest=stored.digest)
    if known is not None:
        _check_republish(file_name, program, facts, known)
        return False
    await transaction.rows("add_object", **structs.asdict(stored), now=now)
    await transaction.rows("add_program", program_id=program, title=title or facts.title, now=now)
    if title:
        await transaction.rows("retitle_program", program_id=program, title=title)
    await transaction.rows(
        "add_release",
        program_id=program,
        version=facts.release,
        version_key=version_sort_key(facts.release),
        now=now,
    )
    await transaction.rows(
        "add_installer",
        digest=stored.digest,
        program_id=program,
        version=facts.release,
        kind=facts.kind,
        package_name=facts.package_name,
        file_version=facts.version,
        file_name=file_name,
        facts=msgspec.json.encode(facts),
        size=stored.size,
        now=now,
    )
    return True


def _check_republish(file_name: str, program: str, facts: InstallerFacts, known: Row) -> None:
    if known["program_id"] != program:
        raise ConflictError(
            f"{file_name} is published already as program {known['program_id']!r}, not {program!r}.",
            hint="One file belongs to one program.",
        )
    if _facts(known).selector != facts.selector:
        raise ConflictError(
            f"{file_name} is published already for other devices.",
            hint="Publish it with the same facts, or not at all: one file has one selector.",
        )


def _with_sidecar(options: PublishOptions, sidecar: Sidecar) -> PublishOptions:
    """Add what the sidecar says; what was given on the command line comes first."""
    return structs.replace(
        options,
        program=options.program or sidecar.program,
        title=options.title or sidecar.title,
        given=sidecar.given | options.given,
    )


def _merge(file_name: str, facts: InstallerFacts, options: PublishOptions) -> InstallerFacts:
    """Add what was given to what the header says. Raises ConflictError where they contradict."""
    header = structs.asdict(facts.selector)
    defaults = structs.asdict(Selector(os_types=("other",)))
    try:
        given = structs.asdict(msgspec.convert({"os_types": list(facts.selector.os_types)} | options.given, Selector))
    except msgspec.ValidationError as error:
        what, _, where = str(error).partition(" - at `$.")
        raise UsageError(f"What was given for {file_name} is wrong: {where.rstrip('`')}: {what}.") from None
    _check_sense(file_name, given)
    for name in options.given:
        said, wanted = header[name], given[name]
        if said in (defaults[name], wanted):
            continue
        if isinstance(said, tuple) and name in ("os_types", "architectures") and set(wanted) <= set(said):
            continue  # narrower than the header, which is no contradiction
        raise ConflictError(
            f"{file_name} says {name.replace('_', ' ')} {_words(said)}, and {_words(wanted)} was given.",
            hint="What the file says of itself stands; leave the option out.",
        )
    return structs.replace(
        facts, selector=structs.replace(facts.selector, **{name: given[name] for name in options.given})
    )


def _check_sense(file_name: str, given: dict[str, Any]) -> None:
    """Refuse a range that ends before it begins and a model both named and excluded. Raises UsageError."""
    for name, key in _RANGES.items():
        low, high = given[f"{name}_minimum"], given[f"{name}_maximum"]
        if low and high and key(low) > key(high):
            raise UsageError(f"For {file_name} {name.replace('_', ' ')} {low} to {high} was given: nothing fits that.")
    if both := set(given["models"]) & set(given["models_excluded"]):
        raise UsageError(f"For {file_name} the model {both.pop()!r} was both named and excluded.")


def _check_lengths(file_name: str, program: str, title: str, facts: InstallerFacts) -> None:
    """Refuse what no message could carry or no one could type. Raises BadFileError and UsageError."""
    if not _PROGRAM_ID.fullmatch(program):
        raise UsageError(
            f"{program[:80]!r} is not a program id.",
            hint="Letters, digits and . _ + - make one, and it begins with a letter or a digit.",
        )
    longest = limits.IDENTIFIER_CHARACTERS
    for what, text, characters in (
        ("program id", program, longest),
        ("package name", facts.package_name, longest),
        ("version", facts.version, longest),
        ("title", title, limits.TEXT_CHARACTERS),
    ):
        if not text.strip() or len(text) > characters or not text.isprintable():
            raise BadFileError(
                f"{file_name} cannot be published: its {what} {text[:40]!r} has {len(text)} characters.",
                hint=f"1 to {characters} printable characters are allowed.",
            )


def _words(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
