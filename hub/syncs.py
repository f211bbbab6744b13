"""Syncs: the database side of asking: plan, accept, undo, cancel and look up.

Everything is looked up by (account, id), so another account's id answers exactly as one that does not exist. Who
receives now comes in as a callable.
"""

import difflib
import re
import time
from collections.abc import Callable
from typing import Final

import msgspec
from msgspec import Struct, structs

from hub.audit import record
from hub.clock import HubClock
from hub.deliveries import Deliveries, Move, count_states, end_if_over, target_row
from hub.pokes import Pokes
from hub.records import Changes, Terminal, new_id
from hub.resolver import Resolver, read_choice
from hub.standing import REVOKED, Standings
from hub.store import Row, Store, Transaction
from hub.verdicts import WITHHELD
from protocol import life, limits
from protocol.device import InstallerKind
from protocol.errors import UnknownNameError, UsageError
from protocol.messages import (
    Plan,
    ProgramRow,
    Programs,
    Sync,
    SyncDone,
    SyncRow,
    TargetRow,
    Undo,
)

TARGETS_IN_AUDIT: Final = 16  # a row of the audit log names so many, and counts the rest
SYNCS_TOLD_AT_ONCE: Final = 8  # with the device list of 2,000 terminals that a login brings, under 64 messages


class Accepted(Struct, frozen=True):
    """A sync as committed: its id and its targets."""

    sync: str
    program: str
    targets: tuple[TargetRow, ...]


class Syncs:
    """The syncs of one hub. A delivery is given up `delivery_seconds` of hub time after it was asked for.

    `check_room` raises RefusedError when the disk has no room for what would have to be kept.
    """

    def __init__(
        self,
        store: Store,
        pokes: Pokes,
        deliveries: Deliveries,
        clock: HubClock,
        is_receiving: Callable[[str], bool],
        *,
        check_room: Callable[[], None],
        delivery_seconds: float,
        standings: Standings | None = None,
    ) -> None:
        self._standings = standings or Standings()
        self._store = store
        self._pokes = pokes
        self._deliveries = deliveries
        self._clock = clock
        self._is_receiving = is_receiving
        self._check_room = check_room
        self._delivery_seconds = delivery_seconds

    async def programs(self, terminal: Terminal, request: Programs) -> tuple[list[ProgramRow], bool]:
        """Return a page of programs and whether another follows."""

        async def body(transaction: Transaction) -> tuple[list[ProgramRow], bool]:
            found = await _programs(transaction, request)
            installed_on = await _installed_on(transaction, terminal, [row["program_id"] for row in found])
            page: list[ProgramRow] = []
            size = 0
            for row in found[: limits.ROWS_PER_PAGE]:
                program = _program_row(row, installed_on[row["program_id"]])
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

        Raises UnknownNameError for an unknown program or target, UsageError when there is no target, RefusedError when
        this terminal's requests do not count (`not-allowed`, `posture-failed`) or the hub's disk is nearly full.
        """

        async def body(transaction: Transaction) -> Accepted:
            await self._standings.check_initiates(transaction, terminal.terminal_id)
            if known := await _known(transaction, terminal, request.request_key):
                return known
            self._check_room()
            targets = await self._resolve(transaction, terminal, request)
            return await self._commit(transaction, terminal, request, request.program, targets)

        return self._accepted(terminal, await self._store.transaction(body))

    async def undo(self, terminal: Terminal, request: Undo) -> Accepted:
        """Commit a sync that brings back what targets of another had before it. The same request key is the same sync.

        Raises UnknownNameError for an unknown sync or target, UsageError when it has put nothing on any target,
        RefusedError as `accept` does.
        """

        async def body(transaction: Transaction) -> Accepted:
            await self._standings.check_initiates(transaction, terminal.terminal_id)
            if known := await _known(transaction, terminal, request.request_key):
                return known
            self._check_room()
            sync = await _sync_of(transaction, terminal, request.sync)
            rows = _to_undo(await transaction.rows("targets_of_sync", sync_id=request.sync), request)
            targets = [await self._undo_row(transaction, sync["program_id"], row) for row in rows]
            targets = await self._behind_what_installs(transaction, terminal, sync["program_id"], targets)
            return await self._commit(transaction, terminal, request, sync["program_id"], targets)

        return self._accepted(terminal, await self._store.transaction(body))

    def _accepted(self, terminal: Terminal, accepted: Accepted) -> Accepted:
        for target in accepted.targets:
            self._pokes.poke("owed", target.terminal)
        self._pokes.poke("asked", terminal.terminal_id)
        return accepted

    async def targets(self, terminal: Terminal, sync: str) -> tuple[TargetRow, ...]:
        """Return all targets of a sync of this account. Raises UnknownNameError."""

        async def body(transaction: Transaction) -> tuple[TargetRow, ...]:
            await _sync_of(transaction, terminal, sync)
            return tuple(map(target_row, await transaction.rows("targets_of_sync", sync_id=sync)))

        return await self._store.transaction(body)

    async def cancel(self, terminal: Terminal, sync: str) -> tuple[int, int]:
        """End what has not begun to install; return how many targets are cancelled now and for how many it is too late.

        Asking again changes nothing and answers the same. Raises UnknownNameError, and RefusedError as `accept` does.
        """

        async def body(transaction: Transaction) -> tuple[int, int]:
            await self._standings.check_initiates(transaction, terminal.terminal_id)
            of = await _sync_of(transaction, terminal, sync)
            ended = []
            for found in await transaction.rows("open_deliveries", sync_id=sync):
                if life.State(found["state"]) in life.CANCELLABLE:
                    move = Move(life.State.CANCELLED, "by-initiator", f"Cancelled by {terminal.name}.")
                    await self._deliveries.move(transaction, found, move)
                    self._pokes.poke("owed", found["terminal_id"])
                    ended.append(found["terminal_id"])
            if ended:
                detail = {"program": of["program_id"], **_told_targets(ended)}
                await record(transaction, terminal.terminal_id, "sync.cancel", sync, **detail)
            states = await count_states(transaction, sync)
            cancelled = states.pop(life.State.CANCELLED, 0)
            return cancelled, sum(states.values())

        return await self._store.transaction(body)

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
        choice = await read_choice(transaction, request.program, request.channel, request.version)
        targets = await self._targets(transaction, terminal, request)
        known = await transaction.rows(
            "installed_and_known", program_id=request.program, account_id=terminal.account_id
        )
        installed = {row["terminal_id"]: row for row in known}
        resolver = Resolver(choice, request.version, len(targets))
        rows = [
            resolver.row(target, installed.get(target["terminal_id"]), self._reason_to_wait(target["terminal_id"]))
            for target in targets
        ]
        return await self._behind_what_installs(transaction, terminal, request.program, rows)

    async def _behind_what_installs(
        self, transaction: Transaction, terminal: Terminal, program: str, rows: list[TargetRow]
    ) -> list[TargetRow]:
        """Queue what a target has already, but will not have any more once another installer of it has run there."""
        found = await transaction.rows("installing_of_program", program_id=program, account_id=terminal.account_id)
        installing = {row["terminal_id"]: row for row in found}

        def behind(row: TargetRow) -> TargetRow:
            other = installing.get(row.terminal)
            if row.state != life.State.SAME or other is None or other["digest"] == row.digest:
                return row
            detail = f"It has {row.version}, but {other['version']} is being installed there now; it follows that."
            reason = self._reason_to_wait(row.terminal)
            return structs.replace(row, state=life.State.QUEUED.value, reason=reason, detail=detail)

        return [behind(row) for row in rows]

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

    def _reason_to_wait(self, terminal: str) -> str:
        return "waiting" if self._is_receiving(terminal) else "offline"

    async def _undo_row(self, transaction: Transaction, program: str, row: Row) -> TargetRow:
        """Say what undoing does to one target of a sync: its version before is sent, or why not."""
        base = TargetRow(terminal=row["terminal_id"], name=row["name"], state=life.State.NO_MATCH.value)
        if row["revoked_at"] is not None:
            detail = "It was removed from the account."
            return structs.replace(base, state=life.State.DENIED.value, reason=REVOKED, detail=detail)
        if row["state"] != life.State.DONE:
            detail = f"That sync ended as {row['state']} here, so there is nothing to take back."
            return structs.replace(base, reason="nothing-to-undo", detail=detail)
        if row["before_digest"] is None:
            detail = f"It had no {program} before, and Lockstep takes no program away."
            return structs.replace(base, reason="nothing-before", detail=detail)
        installed = await transaction.row("installed_digest", terminal_id=row["terminal_id"], program_id=program)
        has = installed["digest"] if installed else None
        if has not in (row["digest"], row["before_digest"]):
            detail = f"It has {installed['version'] if installed else 'no version'} now, not what that sync brought."
            return structs.replace(base, reason="changed-since", detail=detail)
        before = await transaction.row("installer", digest=row["before_digest"])
        if before is None or before["program_id"] != program:  # an inventory says what it likes
            detail = f"What it had before is no {program} of this hub's catalogue."
            return structs.replace(base, reason="nothing-before", detail=detail)
        base = structs.replace(
            base,
            version=before["version"],
            installer_kind=before["kind"],
            file_name=before["file_name"],
            digest=before["digest"],
            size=before["size"],
        )
        if has == row["before_digest"]:
            return structs.replace(
                base, state=life.State.SAME.value, reason="installed", detail=f"It has {before['version']} already."
            )
        if before["verdict"] != "clean":
            detail = f"{program} {before['version']} is {before['verdict']}, so it is not sent: {before['finding']}"
            reason = "infected" if before["verdict"] in WITHHELD else "not-scanned"
            return structs.replace(base, reason=reason, detail=detail[: limits.TEXT_CHARACTERS])
        detail = f"Version {before['version']} comes back."
        reason = self._reason_to_wait(row["terminal_id"])
        return structs.replace(base, state=life.State.QUEUED.value, reason=reason, detail=detail)

    async def _commit(
        self, transaction: Transaction, terminal: Terminal, request: Sync | Undo, program: str, targets: list[TargetRow]
    ) -> Accepted:
        now = time.time()
        sync = new_id("s")
        await transaction.rows(
            "add_sync",
            sync_id=sync,
            account_id=terminal.account_id,
            initiator=terminal.terminal_id,
            request_key=request.request_key,
            program_id=program,
            version=request.version if isinstance(request, Sync) else "",
            undoes=request.sync if isinstance(request, Undo) else "",
            now=now,
        )
        committed = []
        for target in targets:
            await self._supersede(transaction, program, target)
            committed.append(await self._add_delivery(transaction, sync, target, now))
        await end_if_over(transaction, sync, now)
        detail = {"program": program, **_told_targets([target.terminal for target in committed])}
        if isinstance(request, Undo):
            await record(transaction, terminal.terminal_id, "sync.undo", sync, undoes=request.sync, **detail)
        else:
            await record(transaction, terminal.terminal_id, "sync.ask", sync, version=request.version, **detail)
        return Accepted(sync, program, tuple(committed))

    async def _supersede(self, transaction: Transaction, program: str, target: TargetRow) -> None:
        """End what this target is owed of another installer of the program.

        What has begun to install goes on, and the newer waits for it.
        """
        if target.state not in (life.State.QUEUED, life.State.SAME):
            return
        for row in await transaction.rows(
            "superseded_by", terminal_id=target.terminal, program_id=program, digest=target.digest
        ):
            detail = f"A newer request brings {target.version}."
            await self._deliveries.move(transaction, row, Move(life.State.SUPERSEDED, "newer-request", detail))

    async def _add_delivery(self, transaction: Transaction, sync: str, target: TargetRow, now: float) -> TargetRow:
        """Add a delivery; one whose object is on its way to this target already follows that one, and ends with it."""
        leader = None
        if target.state == life.State.QUEUED:
            leader = await transaction.row("leader", terminal_id=target.terminal, digest=target.digest)
        if leader is not None and leader["state"] == life.State.QUEUED and leader["retry_at"]:
            # It waits for another try, and somebody asks now: they may have made room, or published the file again.
            await self._deliveries.move(transaction, leader, Move(life.State.QUEUED, target.reason, target.detail))
        elif leader is not None:
            detail = leader["detail"] or "It is on its way there already, asked for by another sync."
            target = structs.replace(target, state=leader["state"], reason=leader["reason"], detail=detail)
        target = structs.replace(target, delivery=new_id("d"))
        revision = self._deliveries.next_revision()
        expires_at = self._clock.now() + self._delivery_seconds
        await transaction.rows(
            "add_delivery",
            delivery_id=target.delivery,
            sync_id=sync,
            terminal_id=target.terminal,
            position=revision,
            digest=target.digest or None,
            state=target.state,
            reason=target.reason,
            detail=target.detail,
            version=target.version,
            mismatches=msgspec.json.encode(target.mismatches),
            revision=revision,
            is_final=life.State(target.state) in life.FINAL,
            now=now,
            expires_at=expires_at,
            # What follows an installation may outlive its delivery as that one may.
            deadline_at=leader["deadline_at"] if leader and leader["state"] == life.State.INSTALLING else expires_at,
            follows=leader["delivery_id"] if leader else None,
            before_digest=leader["before_digest"] if leader else None,
        )
        return target


def _told_targets(terminals: list[str]) -> dict[str, object]:
    """Return what the audit log says of a sync's targets: how many, and the first few."""
    return {"targets": terminals[:TARGETS_IN_AUDIT], "targets_in_all": len(terminals)}


async def _programs(transaction: Transaction, request: Programs) -> list[Row]:
    """Return a page of programs and one row more where there is one."""
    count = limits.ROWS_PER_PAGE + 1
    if not request.query:
        return await transaction.rows("programs_page", after=request.after, count=count)
    text = re.sub("[!%_]", r"!\g<0>", request.query.casefold())
    return await transaction.rows("programs_search", pattern=f"%{text}%", after=request.after, count=count)


async def _installed_on(transaction: Transaction, terminal: Terminal, programs: list[str]) -> dict[str, list[str]]:
    """Return the terminals of this account that have each of these programs."""
    installed_on: dict[str, list[str]] = {program: [] for program in programs}
    wanted = msgspec.json.encode(programs).decode()
    for row in await transaction.rows("installed_of_programs", program_ids=wanted, account_id=terminal.account_id):
        installed_on[row["program_id"]].append(row["terminal_id"])
    return installed_on


def _program_row(row: Row, installed_on: list[str]) -> ProgramRow:
    return ProgramRow(
        program=row["program_id"],
        title=row["title"],
        newest=row["newest"] or "",
        installer_kinds=_kinds(row["kinds"]),
        installed_on=tuple(installed_on),
    )


async def _known(transaction: Transaction, terminal: Terminal, request_key: str) -> Accepted | None:
    """Return the sync that this request began when it came before."""
    known = await transaction.row("sync_by_request_key", initiator=terminal.terminal_id, request_key=request_key)
    if known is None:
        return None
    rows = await transaction.rows("targets_of_sync", sync_id=known["sync_id"])
    return Accepted(known["sync_id"], known["program_id"], tuple(map(target_row, rows)))


def _to_undo(rows: list[Row], request: Undo) -> list[Row]:
    """Return the targets of a sync that are to be undone: those named, or every one it put something on."""
    by_id = {row["terminal_id"]: row for row in rows}
    for missing in set(request.targets) - by_id.keys():
        raise UnknownNameError(
            f"Terminal {missing!r} was no target of sync {request.sync}.",
            near=tuple(difflib.get_close_matches(missing, by_id, n=3)),
            code="unknown-terminal",
        )
    if request.targets:
        return [by_id[terminal] for terminal in dict.fromkeys(request.targets)]
    done = [row for row in rows if row["state"] == life.State.DONE]
    if not done:
        raise UsageError(
            f"Sync {request.sync} has put nothing on any device.",
            hint="What has not begun to install can be ended with `lockstep-terminal cancel`.",
            code="nothing-to-undo",
        )
    return done


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
        undoes=row["undoes"],
    )


def _kinds(text: str | None) -> tuple[InstallerKind, ...]:
    return msgspec.convert(sorted((text or "").split(",")) if text else [], tuple[InstallerKind, ...])
