"""The catalogue: programs -> releases -> installers. Publishes files and reads candidates for the resolver.

Publishing goes: read the header in a process of its own, merge what was given, ask the rows whether it may go in, cut
and store the object, scan what was stored, then the rows with the verdicts. The object is on disk before its row
exists, so a crash between the two leaves bytes that nothing names, never a row without bytes. What is refused leaves
nothing.

A release is yanked and a program retired with a mark: the resolver passes them over, what runs already keeps theirs.
"""

import asyncio
import difflib
import hashlib
import io
import string
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any, Final, cast

import msgspec
from msgspec import structs

from hub.audit import OPERATOR, record
from hub.inspection import inspect_safely
from hub.inspectors import open_installer, told_of
from hub.inspectors.sidecar import SUFFIX
from hub.matching import Candidate, Selector
from hub.merging import STABLE, Entry, check_channel, check_file_name, merge
from hub.merging import PublishOptions as PublishOptions  # offered here too: whoever publishes needs both
from hub.objects import Objects
from hub.records import Alias, InstallerFacts, Program, Published, Release, StoredObject
from hub.scanning import EngineVerdict, Scanning, worst
from hub.store import Row, Store, Transaction
from hub.verdicts import WITHHELD, keep_verdicts
from hub.versions import compare_versions, version_sort_key
from protocol import limits
from protocol.device import OsType
from protocol.errors import ConflictError, RefusedError, UnknownNameError, UsageError
from protocol.messages import InstallerOffer

PROGRAMS_PER_PAGE: Final = 200
_NEAR_CHARACTERS: Final = f"{string.ascii_lowercase}{string.digits}.-_+"
_NEAR_LENGTH: Final = 40  # of a longer name only its neighbours are looked at


async def may_always(transaction: Transaction) -> None:
    """The hub's owner may."""


class Catalogue:
    """The application database of one hub."""

    def __init__(self, store: Store, objects: Objects, scanning: Scanning) -> None:
        self._store = store
        self._objects = objects
        self._scanning = scanning
        self._scanned: Counter[bytes] = Counter()  # how many publishes have an object scanned now
        self._placing = asyncio.Lock()  # one after the other, or a refused one's bytes would stay

    async def publish(
        self,
        path: Path,
        options: PublishOptions,
        name: str = "",
        *,
        actor: str = OPERATOR,
        check: Callable[[Transaction], Awaitable[None]] = may_always,
    ) -> Published:
        """Publish one installer file, with what the sidecar beside it says; `name` is its own where `path` is a copy.

        `actor` is who does it: the operator, or the id of a terminal. `check` raises RefusedError where that may not be
        done; it is asked before the file is looked at, and where the rows are written. Raises BadFileError for a file
        that is damaged or of no known kind, ConflictError where what was given contradicts the header or what is
        published already, RefusedError where it is too large, the disk too full, or a scan found something
        (`infected`). What an engine could not scan is published as `not-scanned`: nobody gets it until it is clean.
        """
        name = name or path.name
        check_file_name(name)
        if name.endswith(SUFFIX):
            raise UsageError(f"{name} is a sidecar.", hint="Publish the file that it stands beside.")
        await self._store.transaction(check)
        # Before the file is looked at, so that what is stored, which is held against it, is what was looked at.
        digest = await asyncio.to_thread(_digest, path, name)
        entry = merge(name, await inspect_safely(path, name), options)

        async def place(transaction: Transaction) -> None:
            await _place(transaction, entry, digest)

        async def add(transaction: Transaction) -> Published:
            await check(transaction)
            done = await _keep_rows(transaction, entry, stored, worst(said, self._scanning.names))
            if done == "new":
                await keep_verdicts(transaction, digest, said)
            row = await transaction.row("catalogue_entry", digest=stored.digest)
            assert row is not None
            if done:
                action = "catalogue.publish" if done == "new" else "catalogue.correct"
                detail = {"version": row["version"], "file": name, "digest": stored.digest.hex()}
                await record(transaction, actor, action, row["program_id"], **detail)
            return structs.replace(_published(row), new=done == "new", corrected=done == "corrected")

        async with self._placing:
            await self._store.transaction(place)  # before anything is stored, and once more with the rows
            stored = await self._add_object(path, digest)
            self._scanned[digest] += 1
        try:
            said = await self._scan_new(digest, name)
            async with self._placing:
                await self._refuse_withheld(digest, entry, said, actor)
                return await self._store.transaction(add)
        finally:
            self._scanned -= Counter((digest,))  # which also forgets what is at 0
            await asyncio.shield(self._drop_unnamed(digest))  # whatever came of it, also when whoever asked has gone

    async def _add_object(self, path: Path, digest: bytes) -> StoredObject:
        """Store a file, holding `_placing`. The thread goes on when whoever asked has gone: its object is removed."""
        adding = asyncio.create_task(asyncio.to_thread(self._objects.add, path, digest))
        try:
            return await asyncio.shield(adding)
        except asyncio.CancelledError:
            await asyncio.gather(adding, return_exceptions=True)
            await self._remove_unnamed(digest)
            raise

    async def _scan_new(self, digest: bytes, name: str) -> list[EngineVerdict]:
        """Have a stored object scanned, unless it is in the catalogue: then its verdict stands there."""
        is_known = await self._has_row("installer", digest)
        return [] if is_known else await self._scanning.scan(digest, name)

    async def _has_row(self, query: str, digest: bytes) -> bool:
        async def body(transaction: Transaction) -> bool:
            return await transaction.row(query, digest=digest) is not None

        return await self._store.transaction(body)

    async def _drop_unnamed(self, digest: bytes) -> None:
        """Remove an object if nothing names it, unless somebody else is publishing the same bytes now."""
        async with self._placing:
            await self._remove_unnamed(digest)

    async def _remove_unnamed(self, digest: bytes) -> None:
        if not self._scanned[digest] and not await self._has_row("object", digest):
            await asyncio.to_thread(self._objects.remove, digest)

    async def _refuse_withheld(self, digest: bytes, entry: Entry, said: list[EngineVerdict], actor: str) -> None:
        """Raise RefusedError for an object in which something was found, and write that down."""
        verdict, finding = worst(said, [one.engine for one in said])
        if verdict not in WITHHELD:
            return

        async def note(transaction: Transaction) -> None:
            detail = {"file": entry.file_name, "digest": digest.hex(), "verdict": verdict, "finding": finding}
            await record(transaction, actor, "catalogue.refuse", entry.program or entry.facts.package_name, **detail)

        await self._store.transaction(note)
        raise RefusedError(
            f"{entry.file_name} is {verdict} and was not published: {finding[: limits.TEXT_CHARACTERS // 2]}.",
            hint="If you are sure that it is right, the hub's owner can ignore that rule (scan_ignore).",
            code="infected",
        )

    async def listing(self, after: str = "") -> list[Published]:
        """Every installer of the next programs after the program `after`, by program and newest release first.

        They are those of `PROGRAMS_PER_PAGE` programs; the last one's is the next `after`, and nothing is the end.
        """

        async def body(transaction: Transaction) -> list[Row]:
            return await transaction.rows("catalogue_page", after=after, count=PROGRAMS_PER_PAGE)

        return [_published(row) for row in await self._store.transaction(body)]

    async def program(self, program: str) -> Program:
        """Return all there is of a program, newest release first. Raises UnknownNameError."""

        async def body(transaction: Transaction) -> Program:
            row = await _program(transaction, program)
            installers = [_published(one) for one in await transaction.rows("catalogue_of_program", program_id=program)]
            releases = await transaction.rows("releases_of_program", program_id=program)
            aliases = await transaction.rows("aliases_of_program", program_id=program)
            return Program(
                program=program,
                title=row["title"],
                retired=bool(row["retired"]),
                aliases=tuple(Alias(os=alias["os_type"], package=alias["package_name"]) for alias in aliases),
                releases=tuple(_release(row, installers) for row in releases),
            )

        return await self._store.transaction(body)

    async def yank(self, program: str, version: str) -> dict[str, Any]:
        """Have a release chosen no more; what is under way keeps it. Raises UnknownNameError."""
        return await self._mark_release("catalogue.yank", program, version, yanked=1)

    async def restore(self, program: str, version: str = "") -> dict[str, Any]:
        """Take back a yank, or without a version that the program was retired. Raises UnknownNameError."""
        if version:
            return await self._mark_release("catalogue.restore", program, version, yanked=0)
        return await self._mark_program("catalogue.restore", program, retired=0)

    async def retire(self, program: str) -> dict[str, Any]:
        """Have a program listed and sent no more; what is under way keeps it. Raises UnknownNameError."""
        return await self._mark_program("catalogue.retire", program, retired=1)

    async def move(self, program: str, version: str, channel: str) -> dict[str, Any]:
        """Move a release to another channel. Raises UnknownNameError and UsageError."""
        check_channel(channel)
        return await self._mark_release("catalogue.channel", program, version, channel=channel)

    async def alias(
        self, program: str, package: str, os_types: tuple[OsType, ...], *, remove: bool = False
    ) -> dict[str, Any]:
        """Say that a package name means this program on these systems, or no longer.

        Raises UnknownNameError for an unknown program, and where there is no such alias to remove; ConflictError where
        the name means another program.
        """
        if not package.strip() or not package.isprintable() or len(package) > limits.IDENTIFIER_CHARACTERS:
            raise UsageError(f"{package[:80]!r} is not a package name.")

        async def body(transaction: Transaction) -> dict[str, Any]:
            await _program(transaction, program)
            known = await _aliases(transaction, package, os_types)
            _check_aliases(package, program, known)
            for os_type in os_types:
                if remove and os_type not in known:
                    raise UnknownNameError(f"{package} on {os_type} is no alias of {program}.")
                query = "remove_alias" if remove else "add_alias"
                await transaction.rows(query, os_type=os_type, package_name=package, program_id=program)
            changed = remove or len(known) < len(set(os_types))
            if changed:
                detail = {"package": package, "os": sorted(set(os_types)), "removed": remove}
                await record(transaction, OPERATOR, "catalogue.alias", program, **detail)
            return {"program": program, "package": package, "os": list(os_types), "changed": changed}

        return await self._store.transaction(body)

    async def _mark_release(self, action: str, program: str, version: str, **marks: object) -> dict[str, Any]:
        async def body(transaction: Transaction) -> dict[str, Any]:
            await _program(transaction, program)
            before = await _release_row(transaction, program, version)
            marked = {"yanked": before["yanked"], "channel": before["channel"]} | marks
            changed = any(before[name] != value for name, value in marks.items())
            await transaction.rows("mark_release", program_id=program, version=before["version"], **marked)
            marked["yanked"] = bool(marked["yanked"])
            if changed:
                await record(transaction, OPERATOR, action, program, version=before["version"], **marked)
            return {"program": program, "version": before["version"], **marked, "changed": changed}

        return await self._store.transaction(body)

    async def _mark_program(self, action: str, program: str, *, retired: int) -> dict[str, Any]:
        async def body(transaction: Transaction) -> dict[str, Any]:
            before = await _program(transaction, program)
            await transaction.rows("mark_program", program_id=program, retired=retired)
            changed = before["retired"] != retired
            if changed:
                await record(transaction, OPERATOR, action, program)
            return {"program": program, "retired": bool(retired), "changed": changed}

        return await self._store.transaction(body)


def _digest(path: Path, name: str) -> bytes:
    with told_of(name), open_installer(path) as file:
        return hashlib.file_digest(cast(io.BufferedReader, file), "sha256").digest()


async def read_candidates(
    transaction: Transaction, program: str, channel: str = "", version: str = ""
) -> tuple[Candidate, ...]:
    """Return the installers the resolver may choose from: clean ones, nothing yanked, nothing of a retired program.

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
        file_name=row["file_name"],
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
        channel=row["channel"],
        yanked=bool(row["yanked"]),
        retired=bool(row["retired"]),
        verdict=row["verdict"],
        finding=row["finding"],
    )


def _release(row: Row, installers: list[Published]) -> Release:
    return Release(
        version=row["version"],
        channel=row["channel"],
        yanked=bool(row["yanked"]),
        installers=tuple(one for one in installers if one.version == row["version"]),
    )


def describe_selector(selector: Selector) -> str:
    """Say in a few words which devices an installer fits, leaving nothing out."""
    parts = ["/".join(selector.os_types)]
    parts += _between("API ", selector.api_level_minimum, selector.api_level_maximum)
    parts += _between("version ", *_os_versions(selector))
    lists: tuple[tuple[str, ...], ...] = (
        selector.architectures, selector.wheel_tags, selector.form_factors, selector.models, selector.features_required,
    )  # fmt: skip
    parts.extend("/".join(values) for values in lists if values)
    parts.extend(f"not {value}" for value in (*selector.models_excluded, *selector.features_forbidden))
    parts += _between("", selector.screen_inches_minimum, selector.screen_inches_maximum, " in")
    parts += _between("", _pixels(selector.resolution_minimum), _pixels(selector.resolution_maximum), " px")
    parts += _between("", selector.density_dpi_minimum, selector.density_dpi_maximum, " dpi")
    return ", ".join(parts)


def _os_versions(selector: Selector) -> tuple[str, str]:
    """Return both ends; "7.*" alone says that a bare 7 was given."""
    low, high = selector.os_version_minimum, selector.os_version_maximum
    return (high, high) if high == f"{low}.*" else (low, high)


def _between(before: str, minimum: object, maximum: object, after: str = "") -> list[str]:
    if not minimum and not maximum:
        return []
    if minimum == maximum:
        return [f"{before}{minimum}{after}"]
    words = f"{minimum}-{maximum}" if minimum and maximum else f"{minimum}+" if minimum else f"up to {maximum}"
    return [f"{before}{words}{after}"]


def _pixels(resolution: tuple[int, int] | None) -> str:
    return f"{resolution[0]}x{resolution[1]}" if resolution else ""


# --- inside a transaction: names ----------------------------------------------------------------------------------


async def near_programs(transaction: Transaction, program: str, *, retired: bool = False) -> tuple[str, ...]:
    """Return up to three programs whose names are close to `program`; `retired` ones only where they are asked for.

    Looked up by name, so the cost does not grow with the catalogue: the names one slip away, and the neighbours.
    """
    slips = _slips(program[:_NEAR_LENGTH].lower()) if len(program) <= _NEAR_LENGTH else set()
    slips_json = msgspec.json.encode(sorted(slips)).decode()
    found = await transaction.rows("programs_near", program=program, slips=slips_json, retired=retired)
    return tuple(difflib.get_close_matches(program, [row["program_id"] for row in found], n=3))


def _slips(word: str) -> set[str]:
    """Return what differs from `word` by a letter too few, too many or wrong, or by two that changed places."""
    parts = [(word[:at], word[at:]) for at in range(len(word) + 1)]
    fewer = {before + after[1:] for before, after in parts if after}
    swapped = {before + after[1] + after[0] + after[2:] for before, after in parts if len(after) > 1}
    wrong = {before + letter + after[1:] for before, after in parts if after for letter in _NEAR_CHARACTERS}
    more = {before + letter + after for before, after in parts for letter in _NEAR_CHARACTERS}
    return {word} | fewer | swapped | wrong | more


async def _program(transaction: Transaction, program: str) -> Row:
    row = await transaction.row("program", program_id=program)
    if row is None:
        near = await near_programs(transaction, program, retired=True)
        raise UnknownNameError(
            f"The catalogue has no program {program!r}.",
            near=near,
            hint="" if near else "See `lockstep-hub catalogue`.",
            code="unknown-program",
        )
    return row


async def _release_row(transaction: Transaction, program: str, version: str) -> Row:
    """Return the release written so, or else the one that is as new. Raises UnknownNameError."""
    releases = await transaction.rows("releases_of_program", program_id=program)
    exact = [row for row in releases if row["version"] == version]
    found = exact or [row for row in releases if compare_versions(row["version"], version) == 0]
    if len(found) == 1:
        return found[0]
    near = difflib.get_close_matches(version, [row["version"] for row in found or releases], n=3, cutoff=0.5)
    have = ", ".join(row["version"] for row in releases[:8])
    raise UnknownNameError(
        f"{program} has no release {version!r}." if not found else f"{program} has several releases like {version!r}.",
        near=tuple(near),
        hint="" if near else f"Releases: {have}.",
        code="unknown-version",
    )


async def _aliases(transaction: Transaction, package: str, os_types: Iterable[str]) -> dict[str, str]:
    """Return the program that a package name means on each of these systems, where it means one."""
    rows = await transaction.rows("aliases_of_package", package_name=package)
    known = {row["os_type"]: row["program_id"] for row in rows}
    return {os_type: known[os_type] for os_type in os_types if os_type in known}


def _check_aliases(package: str, program: str, known: dict[str, str]) -> None:
    for os_type, other in known.items():
        if other != program:
            raise ConflictError(
                f"On {os_type} the package name {package!r} means program {other!r}, not {program!r}.",
                hint=f"If that is wrong: `lockstep-hub catalogue alias {other} {package} --os {os_type} --remove`.",
                code="alias-taken",
            )


# --- inside a transaction: publishing -----------------------------------------------------------------------------


async def _place(transaction: Transaction, entry: Entry, digest: bytes) -> tuple[str, Row | None]:
    """Return the program an entry belongs to, and its installer's row where the same bytes are published already.

    Raises ConflictError where it must not go in.
    """
    known = await transaction.row("installer", digest=digest)
    if known is not None:
        _check_again(entry, known)
    program = known["program_id"] if known is not None else await _program_of(transaction, entry)
    release = await transaction.row("release", program_id=program, version=entry.facts.release)
    if release is not None and entry.channel not in ("", release["channel"]):
        version = release["version"]
        raise ConflictError(
            f"{program} {version} is in the channel {release['channel']}, not {entry.channel}.",
            hint=f"`lockstep-hub catalogue channel {program} {version} {entry.channel}` moves the release.",
        )
    if known is None:
        await _check_new(transaction, entry, program)
    elif entry.corrects:
        package = entry.facts.package_name
        _check_aliases(package, program, await _aliases(transaction, package, _added_systems(entry.facts, known)))
        await _check_equal(transaction, entry, program, digest)
    return program, known


async def _program_of(transaction: Transaction, entry: Entry) -> str:
    """Return the program given, or else the one its package name means, or else that name."""
    package, os_types = entry.facts.package_name, entry.facts.selector.os_types
    known = await _aliases(transaction, package, os_types)
    program = entry.program or next(iter(known.values()), package)
    _check_aliases(package, program, known)
    return program


def _check_again(entry: Entry, known: Row) -> None:
    if entry.program not in ("", known["program_id"]):
        raise ConflictError(
            f"{entry.file_name} is published already as program {known['program_id']!r}, not {entry.program!r}.",
            hint="One file belongs to one program.",
        )
    if entry.corrects and entry.facts.release != known["version"]:
        raise ConflictError(
            f"{entry.file_name} is published already as release {known['version']}, not {entry.facts.release}.",
            hint="One file belongs to one release.",
        )
    if entry.given and not entry.corrects and _devices(_facts(known).selector) != _devices(entry.facts.selector):
        raise ConflictError(
            f"{entry.file_name} is published already for other devices.",
            hint="`lockstep-hub publish --correct` with the same file and options replaces what is known of it.",
        )


def _added_systems(facts: InstallerFacts, known: Row) -> tuple[OsType, ...]:
    """Return the systems on which a correction brings a package name; a name that is there already is left alone."""
    before = _facts(known)
    if facts.package_name != before.package_name:
        return facts.selector.os_types
    return tuple(os_type for os_type in facts.selector.os_types if os_type not in before.selector.os_types)


async def _check_new(transaction: Transaction, entry: Entry, program: str) -> None:
    """Refuse what a retired program would get, and what no device could tell from an installer that is there."""
    row = await transaction.row("program", program_id=program)
    if row is not None and row["retired"]:
        raise ConflictError(
            f"The program {program} is retired: {entry.file_name} is not published.",
            hint=f"`lockstep-hub catalogue restore {program}` brings it back.",
            code="retired",
        )
    await _check_equal(transaction, entry, program)


async def _check_equal(transaction: Transaction, entry: Entry, program: str, digest: bytes = b"") -> None:
    """Refuse an entry that no device could tell from an installer of its release other than that of `digest`."""
    same = _identity(entry.facts)
    release = entry.facts.release
    for other in await transaction.rows("installers_of_release", program_id=program, version=release):
        if other["digest"] != digest and _identity(_facts(other)) == same:
            raise ConflictError(
                f"{program} {release} has {other['file_name']} for the very devices {entry.file_name} is for.",
                hint="Say which devices each is for, or give it a version of its own.",
                code="equal-selector",
            )


def _identity(facts: InstallerFacts) -> tuple[object, ...]:
    """What parts two installers of a release: kind, build and devices."""
    return facts.kind, facts.sortable_version or facts.version, _devices(facts.selector)


def _devices(selector: Selector) -> dict[str, object]:
    """What a selector says, in whatever order it names things."""
    fields = structs.asdict(selector).items()
    return {name: frozenset(value) if name in _SETS else value for name, value in fields}


_SETS: Final = frozenset(name for name in Selector.__struct_fields__ if not name.endswith(("_minimum", "_maximum")))


async def _keep_rows(transaction: Transaction, entry: Entry, stored: StoredObject, verdict: tuple[str, str]) -> str:
    """Add an installer or correct the one that is there; return "new", "corrected" or, where nothing changed, ""."""
    program, known = await _place(transaction, entry, stored.digest)
    if known is None:
        await _add_rows(transaction, entry, stored, program, verdict)
        return "new"
    return "corrected" if entry.corrects and await _correct_rows(transaction, entry, known) else ""


async def _correct_rows(transaction: Transaction, entry: Entry, known: Row) -> bool:
    """Replace what is known of an installer; return whether that differs. Deliveries have the digest and go on."""
    facts, program = entry.facts, known["program_id"]
    title = (await _program(transaction, program))["title"]
    if entry.title:
        await transaction.rows("retitle_program", program_id=program, title=entry.title)
    await transaction.rows(
        "correct_installer",
        digest=known["digest"],
        kind=facts.kind,
        package_name=facts.package_name,
        file_version=facts.version,
        facts=msgspec.json.encode(facts),
    )
    await _add_aliases(transaction, facts.package_name, _added_systems(facts, known), program)
    return facts != _facts(known) or entry.title not in ("", title)


async def _add_aliases(transaction: Transaction, package: str, os_types: Iterable[OsType], program: str) -> None:
    """Have the next version of this package belong to the program too, whoever publishes it."""
    for os_type in os_types:
        await transaction.rows("add_alias", os_type=os_type, package_name=package, program_id=program)


def _epoch(facts: InstallerFacts) -> str:
    """Return a package's epoch with its colon: people do not say it of a release, and yet it decides which is newer."""
    epoch, colon, _ = facts.version.partition(":")
    return epoch + colon if colon and facts.kind in ("deb", "rpm") else ""


async def _add_rows(
    transaction: Transaction, entry: Entry, stored: StoredObject, program: str, verdict: tuple[str, str]
) -> None:
    now, facts = time.time(), entry.facts
    await transaction.rows("add_object", **structs.asdict(stored), now=now)
    await transaction.rows("add_program", program_id=program, title=entry.title or facts.title, now=now)
    if entry.title:
        await transaction.rows("retitle_program", program_id=program, title=entry.title)
    await transaction.rows(
        "add_release",
        program_id=program,
        version=facts.release,
        version_key=version_sort_key(_epoch(facts) + facts.release),
        channel=entry.channel or STABLE,
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
        file_name=entry.file_name,
        facts=msgspec.json.encode(facts),
        size=stored.size,
        now=now,
        verdict=verdict[0],
        finding=verdict[1][: limits.TEXT_CHARACTERS],
    )
    await _add_aliases(transaction, facts.package_name, facts.selector.os_types, program)
