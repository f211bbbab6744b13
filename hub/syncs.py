"""Syncs: the database side of asking: plan, accept, cancel and look up.

Everything is looked up by (account, id), so another account's id answers exactly as one that does not exist. Who
receives now comes in as a callable.
"""

import difflib
import time
from collections.abc import Callable
from typing import Any, Final

import msgspec
from msgspec import Struct, structs

from hub.catalogue import read_candidates
from hub.deliveries import Deliveries, count_states, end_if_over, target_row
from hub.pokes import Pokes
from hub.records import Changes, Terminal, new_id
from hub.resolver import Resolver
from hub.store import Row, Store, Transaction
from protocol import life, limits
from protocol.device import InstallerKind
from protocol.errors import UnknownNameError, UsageError
from protocol.matching import compare_versions
from protocol.messages import (
    Plan,
    ProgramRow,
    Programs,
    Sync,
    SyncDone,
    SyncRow,
    TargetRow,
)

SYNCS_TOLD_AT_ONCE: Final = 8  # with the device list of 2,000 terminals that a login brings, under 64 messages


class Accepted(Struct, frozen=True):
    """A sync as committed: its id and its targets."""

    sync: str
    program: str
    targets: tuple[TargetRow, ...]


class Syncs:
    """The syncs of one hub."""

    def __init__(self, store: Store, pokes: Pokes, deliveries: Deliveries, is_receiving: Callable[[str], bool]) -> None:
        self._store = store
        self._pokes = pokes
        self._deliveries = deliveries
        self._is_receiving = is_receiving

    async def programs(self, terminal: Terminal, request: Programs) -> tuple[list[ProgramRow], bool]:
        """Return a page of programs and whether another follows."""

        async def body(transaction: Transaction) -> tuple[list[ProgramRow], bool]:
            found = await transaction.rows(
                "programs_page",
                query=request.query.casefold(),
                after=request.after,
                count=limits.ROWS_PER_PAGE + 1,
            )
            page: list[ProgramRow] = []
            size = 0
            for row in found[: limits.ROWS_PER_PAGE]:
                program = await self._program_row(transaction, terminal, row)
                size += len(msgspec.msgpack.encode(program))
                if page and size > limits.FRAME_BYTES:
                    break
                page.append(program)
            return page, len(page) < len(found)

        return await self._store.transaction(body)

    async def plan(self, terminal: Terminal, request: Plan) -> tuple[TargetRow, ...]:
        """Say what a sync would do to each target. Raises UnknownNameError for an unknown program or target."""

        async def body(transaction: Transaction) -> tuple[TargetRow, ...]:
            return tuple(await self._resolve(transaction, terminal, request))

        return await self._store.transaction(body)

    async def accept(self, terminal: Terminal, request: Sync) -> Accepted:
        """Commit a sync and its deliveries, and poke the targets. The same request key is the same sync.

        Raises UnknownNameError for an unknown program or target, UsageError when there is no target.
        """
        superseded: set[str] = set()

        async def body(transaction: Transaction) -> Accepted:
            known = await transaction.row(
                "sync_by_request_key", initiator=terminal.terminal_id, request_key=request.request_key
            )
            if known is not None:
                rows = await transaction.rows("targets_of_sync", sync_id=known["sync_id"])
                return Accepted(known["sync_id"], known["program_id"], tuple(map(target_row, rows)))
            targets = await self._resolve(transaction, terminal, request)
            accepted = await self._commit(transaction, terminal, request, targets)
            superseded.update(await self._supersede(transaction, accepted))
            return accepted

        accepted = await self._store.transaction(body)
        for target in accepted.targets:
            self._pokes.poke("owed", target.terminal)
        for initiator in (terminal.terminal_id, *superseded):
            self._pokes.poke("asked", initiator)
        return accepted

    async def targets(self, terminal: Terminal, sync: str) -> tuple[TargetRow, ...]:
        """Return all targets of a sync of this account. Raises UnknownNameError."""

        async def body(transaction: Transaction) -> tuple[TargetRow, ...]:
            await _sync_of(transaction, terminal, sync)
            return tuple(map(target_row, await transaction.rows("targets_of_sync", sync_id=sync)))

        return await self._store.transaction(body)

    async def cancel(self, terminal: Terminal, sync: str) -> tuple[int, int]:
        """End what has not begun to install; return how many targets are cancelled now and for how many it is too late.

        Asking again changes nothing and answers the same.
        """

        async def body(transaction: Transaction) -> tuple[int, int, list[str], str]:
            row = await _sync_of(transaction, terminal, sync)
            stopped = [
                found
                for found in await transaction.rows("open_deliveries", sync_id=sync)
                if life.State(found["state"]) in life.CANCELLABLE
            ]
            for found in stopped:
                detail = f"Cancelled by {terminal.name}."
                await self._deliveries.move(transaction, found, life.State.CANCELLED, "by-initiator", detail)
            states = await count_states(transaction, sync)
            cancelled = states.pop(life.State.CANCELLED, 0)
            return cancelled, sum(states.values()), [found["terminal_id"] for found in stopped], row["initiator"]

        cancelled, too_late, terminals, initiator = await self._store.transaction(body)
        for target in terminals:
            self._pokes.poke("owed", target)
        self._pokes.poke("asked", initiator)
        return cancelled, too_late

    async def history(self, terminal: Terminal, before: str) -> tuple[list[SyncRow], bool]:
        """Return a page of the account's syncs, newest first, and whether another follows."""

        async def body(transaction: Transaction) -> tuple[list[SyncRow], bool]:
            before_at = (await _sync_of(transaction, terminal, before))["created_at"] if before else 1e300
            found = await transaction.rows(
                "history_page",
                account_id=terminal.account_id,
                before_at=before_at,
                before_id=before,
                count=limits.ROWS_PER_PAGE + 1,
            )
            page = found[: limits.ROWS_PER_PAGE]
            return [await _sync_row(transaction, row) for row in page], len(found) > limits.ROWS_PER_PAGE

        return await self._store.transaction(body)

    async def changes(self, terminal: str, since: int) -> Changes:
        """Return what changed after revision `since` in the syncs this terminal began and has not noted, oldest first.

        At most as much as fits a socket's queue: `SYNCS_TOLD_AT_ONCE` syncs, and as many ended ones.
        """

        async def body(transaction: Transaction) -> Changes:
            targets: dict[str, list[TargetRow]] = {}
            revision = since
            count = limits.TARGETS_PER_SYNC
            rows = await transaction.rows("changed_targets", initiator=terminal, since=since, count=count)
            for row in rows:
                if row["sync_id"] not in targets and len(targets) == SYNCS_TOLD_AT_ONCE:
                    break
                targets.setdefault(row["sync_id"], []).append(target_row(row))
                revision = row["revision"]
            ended = await transaction.rows("ended_not_noted", initiator=terminal, count=SYNCS_TOLD_AT_ONCE)
            more = len(rows) == count or (bool(rows) and rows[-1]["revision"] > revision)
            return Changes(targets, tuple([await _sync_done(transaction, row) for row in ended]), revision, more)

        return await self._store.transaction(body)

    async def note(self, terminal: str, sync: str) -> None:
        """The initiator knows how this sync ended."""

        async def body(transaction: Transaction) -> None:
            await transaction.rows("note_sync", sync_id=sync, initiator=terminal)

        await self._store.transaction(body)

    # --- inside a transaction -------------------------------------------------------------------------------------

    async def _resolve(self, transaction: Transaction, terminal: Terminal, request: Plan | Sync) -> list[TargetRow]:
        """Say for each target what it would get, or why nothing. `plan` and `sync` run this same code."""
        await _check_program(transaction, request.program)
        candidates = await read_candidates(transaction, request.program)
        if request.version and all(compare_versions(found.version, request.version) for found in candidates):
            have = sorted({found.version for found in candidates})[-8:]
            raise UnknownNameError(
                f"{request.program} has no release {request.version!r}.",
                hint=f"Releases: {', '.join(have)}.",
                code="unknown-version",
            )
        targets = await self._targets(transaction, terminal, request)
        files = {
            row["digest"]: row for row in await transaction.rows("installers_of_program", program_id=request.program)
        }
        installed = {
            row["terminal_id"]: row
            for row in await transaction.rows(
                "installed_of_program", program_id=request.program, account_id=terminal.account_id
            )
        }
        resolver = Resolver(candidates, files, request.version)
        return [
            resolver.row(target, installed.get(target["terminal_id"]), self._reason_to_wait(target))
            for target in targets
        ]

    async def _targets(self, transaction: Transaction, terminal: Terminal, request: Plan | Sync) -> list[Row]:
        rows = await transaction.rows("terminals_of_account", account_id=terminal.account_id)
        if request.everyone:
            chosen = [row for row in rows if row["receiver"] and row["terminal_id"] != terminal.terminal_id]
        else:
            by_id = {row["terminal_id"]: row for row in rows}
            wanted = dict.fromkeys(request.targets)
            for missing in wanted.keys() - by_id.keys():
                near = difflib.get_close_matches(missing, [*by_id, *(row["name"] for row in rows)], n=3)
                raise UnknownNameError(
                    f"This account has no terminal {missing!r}.", near=tuple(near), code="unknown-terminal"
                )
            chosen = [by_id[identifier] for identifier in wanted]
        if not chosen:
            raise UsageError("There is no target.", hint="Name devices, or log in another one.", code="no-target")
        return chosen

    def _reason_to_wait(self, target: Row) -> str:
        return "waiting" if self._is_receiving(target["terminal_id"]) else "offline"

    async def _commit(
        self, transaction: Transaction, terminal: Terminal, request: Sync, targets: list[TargetRow]
    ) -> Accepted:
        now = time.time()
        sync = new_id("s")
        await transaction.rows(
            "add_sync",
            sync_id=sync,
            account_id=terminal.account_id,
            initiator=terminal.terminal_id,
            request_key=request.request_key,
            program_id=request.program,
            version=request.version,
            now=now,
        )
        committed = [structs.replace(target, delivery=new_id("d")) for target in targets]
        await transaction.many("add_delivery", [self._delivery_columns(sync, target, now) for target in committed])
        await end_if_over(transaction, sync, now)
        return Accepted(sync, request.program, tuple(committed))

    async def _supersede(self, transaction: Transaction, accepted: Accepted) -> set[str]:
        """End what these targets are owed of another installer of the program; return who had asked for it.

        What has begun to install goes on, and the newer waits for it.
        """
        initiators: set[str] = set()
        for target in accepted.targets:
            if target.state != life.State.QUEUED:
                continue
            for row in await transaction.rows(
                "superseded_by", terminal_id=target.terminal, program_id=accepted.program, digest=target.digest
            ):
                detail = f"A newer request brings {target.version}."
                await self._deliveries.move(transaction, row, life.State.SUPERSEDED, "newer-request", detail)
                initiators.add(row["initiator"])
        return initiators

    def _delivery_columns(self, sync: str, target: TargetRow, now: float) -> dict[str, Any]:
        revision = self._deliveries.next_revision()
        return {
            "delivery_id": target.delivery,
            "sync_id": sync,
            "terminal_id": target.terminal,
            "position": revision,
            "digest": target.digest or None,
            "state": target.state,
            "reason": target.reason,
            "detail": target.detail,
            "version": target.version,
            "mismatches": msgspec.json.encode(target.mismatches),
            "revision": revision,
            "is_final": life.State(target.state) in life.FINAL,
            "now": now,
        }

    async def _program_row(self, transaction: Transaction, terminal: Terminal, row: Row) -> ProgramRow:
        installed = await transaction.rows(
            "installed_of_program", program_id=row["program_id"], account_id=terminal.account_id
        )
        return ProgramRow(
            program=row["program_id"],
            title=row["title"],
            newest=row["newest"] or "",
            installer_kinds=_kinds(row["kinds"]),
            installed_on=tuple(found["terminal_id"] for found in installed),
        )


async def _check_program(transaction: Transaction, program: str) -> None:
    if await transaction.row("program", program_id=program) is None:
        names = [row["program_id"] for row in await transaction.rows("program_ids")]
        near = tuple(difflib.get_close_matches(program, names, n=3))
        raise UnknownNameError(
            f"The catalogue has no program {program!r}.",
            near=near,
            hint=""
            if near
            else "See `lockstep-terminal programs`; the hub's owner adds one with `lockstep-hub publish`.",
            code="unknown-program",
        )


async def _sync_of(transaction: Transaction, terminal: Terminal, sync: str) -> Row:
    row = await transaction.row("sync_of_account", sync_id=sync, account_id=terminal.account_id)
    if row is None:
        raise UnknownNameError(
            f"This account has no sync {sync!r}.", hint="See `lockstep-terminal history`.", code="unknown-sync"
        )
    return row


async def _sync_done(transaction: Transaction, row: Row) -> SyncDone:
    return SyncDone(
        sync=row["sync_id"],
        program=row["program_id"],
        outcome=row["outcome"],
        counts=await count_states(transaction, row["sync_id"]),
    )


async def _sync_row(transaction: Transaction, row: Row) -> SyncRow:
    return SyncRow(
        sync=row["sync_id"],
        program=row["program_id"],
        version=row["version"],
        initiator=row["initiator"],
        initiator_name=row["initiator_name"],
        created_at=row["created_at"],
        ended_at=row["ended_at"] or 0.0,
        outcome=row["outcome"],
        counts=await count_states(transaction, row["sync_id"]),
        size=row["size"],
        sent=row["sent"],
    )


def _kinds(text: str | None) -> tuple[InstallerKind, ...]:
    return msgspec.convert(sorted((text or "").split(",")) if text else [], tuple[InstallerKind, ...])
