"""Deliveries: the database side of delivering: claim what a terminal is owed, write its reports, end what is overdue.

Every claim and report counts only on the terminal's newest connection; every move is one of `protocol.life`, takes the
next revision, tells its initiator, and ends its sync when it was the last. A delivery that follows another (the same
object for the same target from another sync) makes each move with it.
"""

import time
from collections.abc import Callable
from typing import Final

import msgspec
from msgspec import Struct

from hub.catalogue import installer_offer
from hub.clock import HubClock
from hub.pokes import Pokes
from hub.records import Owed
from hub.standing import Standings
from hub.store import Row, Store, Transaction
from protocol import life, limits
from protocol.life import Mover
from protocol.messages import Inventory, MismatchRow, State, TargetRow
from protocol.quiet import QuietHours

ROWS_AT_ONCE: Final = 200  # how many overdue deliveries are moved in one transaction
POSTPONED_LEAST_SECONDS: Final = 1.0

# When one of these ends a delivery, those that follow it are wanted still, and the first of them takes its place.
_ENDS_ALONE: Final = frozenset({life.State.CANCELLED, life.State.EXPIRED, life.State.DENIED})


_HELD: Final = "not-scanned"  # the reason of what waits for its installer to be clean

# Reasons why a terminal is sent nothing, whatever it is owed.
_MAY_NOT_RECEIVE: Final = frozenset({"posture-failed", "not-allowed"})

# These have no deadline but the whole delivery's, which a hub may set to other than `life.DELIVERY_SECONDS`.
_WAITS_AS_LONG_AS_WANTED: Final = frozenset({life.State.QUEUED, life.State.POSTPONED})


class Move(Struct, frozen=True):
    """Where a delivery is moved, why, and what else is written with it.

    `retry_seconds`: it is not claimed before they have passed. `sent` are stored bytes to count, `tried` failed tries.
    """

    state: life.State
    reason: str = ""
    detail: str = ""
    connection: int = 0
    sent: int = 0
    tried: int = 0
    retry_seconds: float = 0.0


class Deliveries:
    """The deliveries of one hub. `is_receiving` says whether a terminal is connected to receive."""

    def __init__(
        self,
        store: Store,
        pokes: Pokes,
        clock: HubClock,
        is_receiving: Callable[[str], bool],
        *,
        quiet: QuietHours | None = None,
        standings: Standings | None = None,
    ) -> None:
        self._standings = standings or Standings()
        self._store = store
        self._pokes = pokes
        self._clock = clock
        self._is_receiving = is_receiving
        self._quiet = quiet
        self._revision = 0

    async def start(self) -> None:
        """Read where the revisions and hub time stand, and put back what was under way when the hub last ended."""

        async def body(transaction: Transaction) -> None:
            last = await transaction.row("last_revision")
            kept = await transaction.row("hub_clock")
            assert last is not None and kept is not None
            self._revision = last["revision"]
            self._clock.start(kept["seconds"])
            for row in await transaction.rows("under_way_anywhere"):
                await self._put_back(transaction, row["terminal_id"], 0)
            changed = await transaction.rows("nobody_is_here", revision=self._revision, now=time.time())
            self._revision += len(changed)

        await self._store.transaction(body)

    async def claim(self, terminal: str, connection: int) -> Owed | None:
        """Claim the oldest delivery this terminal is owed and that may go now, if its socket is still the newest.

        What its inventory already has ends as `same` without a byte sent. In quiet hours nothing else is claimed, and
        what a terminal may not receive stays queued with the reason why.
        """

        async def body(transaction: Transaction) -> Owed | None:
            if not await _is_current(transaction, terminal, connection):
                return None
            standing = (await self._standings.of(transaction, terminal)).standing
            if not standing.may_receive:
                await self._give_reason(transaction, terminal, life.State.QUEUED, standing.reason)
                return None
            while row := await transaction.row("owed", terminal_id=terminal, hub_now=self._clock.now()):
                installed = await transaction.row(
                    "installed_digest", terminal_id=terminal, program_id=row["program_id"]
                )
                if installed is not None and installed["digest"] == row["digest"]:
                    await self._end_as_installed(transaction, row, connection)
                elif self.quiet_seconds():
                    await self._give_reason(transaction, terminal, life.State.QUEUED, "quiet-hours")
                    return None
                else:
                    if row["reason"] in _MAY_NOT_RECEIVE:  # it may again, and the rest waits for its turn only
                        await self._give_reason(transaction, terminal, life.State.QUEUED, "waiting")
                    return await self._offer(transaction, row, connection, installed)
            return None

        return await self._store.transaction(body)

    async def gone_of(self, deliveries: tuple[str, ...], terminal: str) -> tuple[str, ...]:
        """Return those of a terminal's deliveries that have ended, or never were."""

        async def body(transaction: Transaction) -> tuple[str, ...]:
            gone = []
            for delivery in deliveries:
                row = await transaction.row("delivery_of_terminal", delivery_id=delivery, terminal_id=terminal)
                if row is None or row["is_final"]:
                    gone.append(delivery)
            return tuple(gone)

        return await self._store.transaction(body)

    async def report(self, terminal: str, connection: int, report: State, *, sent: int = 0) -> str:
        """Write what a terminal reports of a delivery; return "noted", "refused" or "stale".

        "stale": its socket was replaced; nothing changed, and the report comes again on the new one. "refused": there
        is no such delivery of this terminal, the move is not legal, or it is to install and the terminal may not
        receive any more; nothing changed, and it need not come again. A
        failure that may pass is noted, and the delivery queued for another try.
        """

        async def body(transaction: Transaction) -> str:
            if not await _is_current(transaction, terminal, connection):
                return "stale"
            row = await transaction.row("delivery_of_terminal", delivery_id=report.delivery, terminal_id=terminal)
            after = _state_of(report)
            if row is None or after is None:
                return "refused"
            if after is life.State.FAILED and report.attempt not in (0, row["tries"] + 1):
                return "refused"  # it came before, and was counted
            if after is life.State.INSTALLING and not await self._may_receive(transaction, terminal):
                return "refused"
            if not life.may_move(life.State(row["state"]), after, Mover.TERMINAL):
                return "noted" if row["state"] == report.state else "refused"
            await self.move(transaction, row, _reported_move(row, report, connection, sent))
            return "noted"

        return await self._store.transaction(body)

    async def save_inventory(self, terminal: str, connection: int, inventory: Inventory, *, first: bool) -> None:
        """Replace what is known to be on a terminal, and square with it what was being installed there.

        With the `first` inventory of a connection, what a person there was to decide on is queued to be offered again:
        the decision may have been made meanwhile.
        """

        async def body(transaction: Transaction) -> None:
            if not await _is_current(transaction, terminal, connection):
                return
            await transaction.rows("forget_installed", terminal_id=terminal)
            await transaction.many(
                "add_installed",
                [
                    {
                        "terminal_id": terminal,
                        "program_id": program.program,
                        "version": program.version,
                        "kind": program.installer_kind,
                        "digest": program.digest,
                    }
                    for program in inventory.programs
                ],
            )
            await self._square_installing(transaction, terminal, connection, inventory)
            await self._square_restored(transaction, terminal, connection, inventory)
            if first:
                for row in await transaction.rows("open_on", terminal_id=terminal, state=life.State.ASKING.value):
                    await self.move(transaction, row, Move(life.State.QUEUED, "waiting", connection=connection))
                await self._came_or_went(transaction, terminal, here=True)

        await self._store.transaction(body)

    async def add_sent(self, delivery: str, sent: int) -> None:
        """Count stored bytes that went over a socket, however the delivery goes on."""

        async def body(transaction: Transaction) -> None:
            await transaction.rows("add_sent", delivery_id=delivery, sent=sent, revision=self.next_revision())

        await self._store.transaction(body)

    async def terminal_left(self, terminal: str, connection: int) -> None:
        """Put back what was under way on a socket that is gone, unless the terminal is back already."""

        async def body(transaction: Transaction) -> None:
            if await _is_current(transaction, terminal, connection):
                await self._put_back(transaction, terminal, connection)
                await self._came_or_went(transaction, terminal, here=False)

        await self._store.transaction(body)

    async def hold(self, terminal: str, connection: int, reason: str) -> None:
        """Put back what is under way to a terminal that may not receive any more, for when it may again."""

        async def body(transaction: Transaction) -> None:
            if await _is_current(transaction, terminal, connection):
                await self._put_back(transaction, terminal, connection)
                await self._give_reason(transaction, terminal, life.State.QUEUED, reason)

        await self._store.transaction(body)

    async def reap(self) -> bool:
        """Move what is overdue and queue what was put off until now; return whether there may be more of it.

        A few at a time, so that nobody waits long for the database.
        """

        async def body(transaction: Transaction) -> bool:
            now = self._clock.now()
            overdue = await transaction.rows("overdue", hub_now=now, count=ROWS_AT_ONCE)
            for row in overdue:
                deadline = _deadline_of(row, now)
                await self.move(transaction, row, Move(deadline.then, deadline.reason, deadline.detail))
                self._pokes.poke("owed", row["terminal_id"])
            due = await transaction.rows("put_off_until_now", hub_now=now, count=ROWS_AT_ONCE)
            for row in due:
                await self._try_again(transaction, row)
            return ROWS_AT_ONCE in (len(overdue), len(due))

        return await self._store.transaction(body)

    async def keep_clock(self) -> None:
        """Keep hub time on disk."""

        async def body(transaction: Transaction) -> None:
            await transaction.rows("keep_hub_clock", seconds=self._clock.now())

        await self._store.transaction(body)

    def quiet_seconds(self) -> float:
        """Return how long the hub's quiet hours last still, 0 outside them. They go by the calendar of this machine."""
        here = time.localtime()
        return self._quiet.seconds_left(here.tm_hour * 60 + here.tm_min + here.tm_sec / 60) if self._quiet else 0.0

    # --- inside a transaction ---------------------------------------------------------------------------------------

    async def deny_terminal(self, transaction: Transaction, terminal: str, reason: str, detail: str) -> int:
        """End everything a terminal is owed and has not begun to install; return how many deliveries that were."""
        return await self._deny(transaction, "open_of_terminal", reason, detail, terminal_id=terminal)

    async def deny_asked_by(self, transaction: Transaction, terminal: str, reason: str, detail: str) -> int:
        """End everything a terminal has asked for that has not begun to install; return how many that were."""
        return await self._deny(transaction, "open_asked_by", reason, detail, initiator=terminal)

    async def deny_object(self, transaction: Transaction, digest: bytes, reason: str, detail: str) -> int:
        """End every delivery of an object that has not begun to install; return how many that were."""
        return await self._deny(transaction, "open_of_object", reason, detail, digest=digest)

    async def hold_object(self, transaction: Transaction, digest: bytes, detail: str) -> None:
        """Say of what is queued of an object that nobody gets it until it is clean."""
        for row in await self._queued_of(transaction, digest):
            if row["reason"] != _HELD and not row["retry_at"]:
                await self.move(transaction, row, Move(life.State.QUEUED, _HELD, detail))

    async def free_object(self, transaction: Transaction, digest: bytes) -> None:
        """Let what is owed of an object go: it is clean."""
        for row in await self._queued_of(transaction, digest):
            if row["reason"] == _HELD:
                await self.move(transaction, row, self._queued_anew(row))
            self._pokes.poke("owed", row["terminal_id"])

    async def _queued_of(self, transaction: Transaction, digest: bytes) -> list[Row]:
        """Return what is queued of an object, without those that follow another: they are moved with it."""
        rows = await transaction.rows("open_of_object", digest=digest)
        return [row for row in rows if row["state"] == life.State.QUEUED and row["follows"] is None]

    async def _deny(self, transaction: Transaction, query: str, reason: str, detail: str, **which: object) -> int:
        rows = await transaction.rows(query, **which)
        for row in sorted(rows, key=lambda row: row["follows"] is None):  # followers first, or they would take over
            await self.move(transaction, row, Move(life.State.DENIED, reason, detail))
            self._pokes.poke("owed", row["terminal_id"])
        return len(rows)

    async def _may_receive(self, transaction: Transaction, terminal: str) -> bool:
        return (await self._standings.of(transaction, terminal)).standing.may_receive

    async def _offer(self, transaction: Transaction, row: Row, connection: int, installed: Row | None) -> Owed:
        if row["state"] != life.State.QUEUED:  # left by an older connection
            await self.move(transaction, row, Move(life.State.QUEUED, connection=connection))
        await self.move(transaction, row, Move(life.State.OFFERED, connection=connection))
        if installed is not None:
            await transaction.rows("had_before", delivery_id=row["delivery_id"], digest=installed["digest"])
        return Owed(
            delivery=row["delivery_id"],
            sync=row["sync_id"],
            initiator=row["initiator"],
            initiator_name=row["initiator_name"],
            digest=row["digest"],
            installer=installer_offer(row),
            row=target_row(row),
            attempt=row["tries"] + 1,
        )

    async def _end_as_installed(self, transaction: Transaction, row: Row, connection: int) -> None:
        if row["state"] != life.State.QUEUED:
            await self.move(transaction, row, Move(life.State.QUEUED, connection=connection))
        detail = f"It has {row['version']} already."
        await self.move(transaction, row, Move(life.State.SAME, "installed", detail, connection))

    async def _square_installing(
        self, transaction: Transaction, terminal: str, connection: int, inventory: Inventory
    ) -> None:
        """What is installing here and not there has ended: its inventory has it, or its runner was never started."""
        has = {program.digest for program in inventory.programs}
        for row in await transaction.rows("open_on", terminal_id=terminal, state=life.State.INSTALLING.value):
            if row["delivery_id"] in inventory.installing:
                continue
            if row["digest"] in has:
                move = Move(life.State.DONE, "installed", "Its inventory has it.", connection)
            else:
                move = Move(life.State.QUEUED, "waiting", "It was not installed; it is sent again.", connection)
            await self.move(transaction, row, move)

    async def _square_restored(
        self, transaction: Transaction, terminal: str, connection: int, inventory: Inventory
    ) -> None:
        """Decide on what a restored backup shows as owed to this terminal, and may have ended since it was made.

        It has what was owed: claiming ends it as `same`. It has what it had then: it is owed still. It has something
        else: a newer request has been there, and the device is not taken back.
        """
        has = {program.program: program.digest for program in inventory.programs}
        for row in await transaction.rows("restored_of", terminal_id=terminal):
            await transaction.rows("forget_restored", delivery_id=row["delivery_id"])
            is_as_expected = has.get(row["program_id"]) in (row["had_digest"], row["digest"])
            if not is_as_expected and life.may_move(life.State(row["state"]), life.State.SUPERSEDED, Mover.HUB):
                detail = "This device has changed since the hub's backup was made. Ask again if it is still wanted."
                await self.move(transaction, row, Move(life.State.SUPERSEDED, "newer-request", detail, connection))

    async def _came_or_went(self, transaction: Transaction, terminal: str, *, here: bool) -> None:
        """Give what is queued or being installed there its reason.

        An installation goes on without its socket, so its state stays; that nothing is heard of it is its reason.
        """
        queued, installing = ("waiting", "") if here else ("offline", "offline")
        await self._give_reason(transaction, terminal, life.State.QUEUED, queued)
        await self._give_reason(transaction, terminal, life.State.INSTALLING, installing)

    async def _give_reason(self, transaction: Transaction, terminal: str, state: life.State, reason: str) -> None:
        changed = await transaction.rows(
            "give_reason",
            terminal_id=terminal,
            state=state.value,
            reason=reason,
            revision=self._revision,
            now=time.time(),
        )
        self._revision += len(changed)  # each has its own: an initiator may be told of some now, of the rest later
        for row in changed:
            self._pokes.poke("asked", row["initiator"])

    async def _put_back(self, transaction: Transaction, terminal: str, connection: int) -> None:
        for row in await transaction.rows("under_way_on", terminal_id=terminal):
            await self.move(transaction, row, Move(life.State.QUEUED, "offline", connection=connection))

    async def _try_again(self, transaction: Transaction, row: Row) -> None:
        if row["follows"] is not None or row["state"] not in (life.State.QUEUED, life.State.POSTPONED):
            await transaction.rows("may_be_claimed", delivery_id=row["delivery_id"])
            return
        await self.move(transaction, row, self._queued_anew(row))
        self._pokes.poke("owed", row["terminal_id"])

    def _queued_anew(self, row: Row) -> Move:
        return Move(life.State.QUEUED, "waiting" if self._is_receiving(row["terminal_id"]) else "offline")

    async def move(self, transaction: Transaction, row: Row, move: Move) -> None:
        """Move a delivery, and those that follow it. A final state never changes, whoever asks.

        `row` is the whole delivery. Pokes may go before the commit: whoever looks does so in a later transaction.
        """
        await self._write(transaction, row, move)
        await self._take_along(transaction, row, move)
        if row["state"] == life.State.INSTALLING and move.state is life.State.QUEUED:
            await self._give_way(transaction, row)

    async def _give_way(self, transaction: Transaction, row: Row) -> None:
        """End what comes back from installing where a newer request waited for it: nothing older comes after that."""
        newer = await transaction.row(
            "newer_request",
            terminal_id=row["terminal_id"],
            position=row["position"],
            digest=row["digest"],
            sync_id=row["sync_id"],
        )
        if newer is not None:
            detail = f"A newer request brings {newer['version']}."
            await self.move(transaction, row, Move(life.State.SUPERSEDED, "newer-request", detail))

    async def _take_along(self, transaction: Transaction, row: Row, move: Move) -> None:
        followers = await transaction.rows("followers", delivery_id=row["delivery_id"])
        if followers and move.state in _ENDS_ALONE:
            first = followers[0]
            await transaction.rows("follow", delivery_id=row["delivery_id"], leader=first["delivery_id"])
            await transaction.rows("lead", delivery_id=first["delivery_id"])
            followers = [first, *followers[1:]]
            move = self._queued_anew(row)
            self._pokes.poke("owed", row["terminal_id"])
        for follower in followers:
            await self._write(transaction, follower, msgspec.structs.replace(move, sent=0))

    async def _write(self, transaction: Transaction, row: Row, move: Move) -> None:
        now, hub_now = time.time(), self._clock.now()
        moved = await transaction.row(
            "move_delivery",
            delivery_id=row["delivery_id"],
            state=move.state.value,
            reason=move.reason,
            detail=move.detail,
            is_final=move.state in life.FINAL,
            connection=move.connection,
            revision=self.next_revision(),
            sent=move.sent,
            tried=move.tried,
            deadline_at=_deadline_at(move.state, row["expires_at"], hub_now),
            retry_at=hub_now + move.retry_seconds if move.retry_seconds else 0,
            now=now,
        )
        if moved is None:
            return
        self._pokes.poke("asked", moved["initiator"])
        if move.state in life.FINAL:
            await end_if_over(transaction, moved["sync_id"], now)

    def next_revision(self) -> int:
        """Return a revision newer than any, for a delivery that is added or changed."""
        self._revision += 1
        return self._revision


def _state_of(report: State) -> life.State | None:
    try:
        return life.State(report.state)
    except ValueError:
        return None


def _reported_move(row: Row, report: State, connection: int, sent: int) -> Move:
    """Return what a legal report makes of a delivery: another try where the cause of a failure may pass."""
    after = life.State(report.state)
    move = Move(after, report.reason, report.detail, connection, sent)
    if after is life.State.POSTPONED:
        seconds = min(max(report.seconds, POSTPONED_LEAST_SECONDS), life.DELIVERY_SECONDS)
        return msgspec.structs.replace(move, retry_seconds=seconds)
    if after is life.State.QUEUED:
        return msgspec.structs.replace(move, reason="waiting")  # a person has agreed; it is offered again
    if after is not life.State.FAILED:
        return move
    tries = row["tries"] + 1
    seconds_to_wait = life.seconds_to_next_try(report.reason, tries)
    if seconds_to_wait is None:
        return msgspec.structs.replace(move, tried=1)
    again = f"Try {tries + 1} of {life.TRIES} follows in {seconds_to_wait:g} s."
    return msgspec.structs.replace(
        move,
        state=life.State.QUEUED,
        detail=f"{report.detail[: limits.TEXT_CHARACTERS - len(again) - 1]} {again}",
        tried=1,
        retry_seconds=seconds_to_wait,
    )


def _deadline_at(state: life.State, expires_at: float, hub_now: float) -> float:
    """Return by when (hub time) the delivery must have left `state`; only an installation may outlive the delivery."""
    deadline = life.DEADLINES.get(state)
    if deadline is None or deadline.keeper is life.Keeper.SESSION or state in _WAITS_AS_LONG_AS_WANTED:
        return expires_at
    if state is life.State.INSTALLING:
        return hub_now + deadline.seconds
    return min(expires_at, hub_now + deadline.seconds)


def _deadline_of(row: Row, hub_now: float) -> life.Deadline:
    """Return the deadline that an overdue delivery has missed: that of the whole delivery, or of its state."""
    state = life.State(row["state"])
    whole = row["expires_at"] <= hub_now and state is not life.State.INSTALLING
    return life.DEADLINES[life.State.QUEUED if whole else state]


def target_row(row: Row) -> TargetRow:
    """Return a target as the wire has it, from a delivery joined with its terminal and installer."""
    state = row["state"]
    return TargetRow(
        terminal=row["terminal_id"],
        name=row["name"],
        delivery=row["delivery_id"],
        state=state,
        reason=row["reason"],
        detail=row["detail"],
        version=row["version"],
        installer_kind=row["kind"] or "",
        file_name=row["file_name"] or "",
        digest=row["digest"] or b"",
        size=row["size"] or 0,
        done=row["size"] or 0 if state in ("verifying", "installing", "done") else 0,
        sent=row["sent"],
        mismatches=msgspec.json.decode(row["mismatches"], type=tuple[MismatchRow, ...]),
    )


async def _is_current(transaction: Transaction, terminal: str, connection: int) -> bool:
    return await transaction.row("is_current", terminal_id=terminal, connection=connection) is not None


async def count_states(transaction: Transaction, sync: str) -> dict[str, int]:
    """Return how many deliveries of a sync are in which state."""
    return {row["state"]: row["deliveries"] for row in await transaction.rows("count_states", sync_id=sync)}


async def end_if_over(transaction: Transaction, sync: str, now: float) -> None:
    """Write how a sync ended once none of its deliveries is open."""
    still_open = await transaction.row("count_open", sync_id=sync)
    if still_open is not None and still_open["open"] == 0:
        outcome = life.outcome_of(await count_states(transaction, sync))
        await transaction.rows("end_sync", sync_id=sync, outcome=outcome, now=now)
