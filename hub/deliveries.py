"""Deliveries: the database side of delivering: claim what a terminal is owed, write what it reports.

Every claim and report counts only on the terminal's newest connection; every move is one of `protocol.life`, takes the
next revision, and ends its sync when it was the last.
"""

import time

import msgspec

from hub.catalogue import installer_offer
from hub.pokes import Pokes
from hub.records import Owed
from hub.store import Row, Store, Transaction
from protocol import life
from protocol.life import Mover
from protocol.messages import Inventory, MismatchRow, State, TargetRow


class Deliveries:
    """The deliveries of one hub."""

    def __init__(self, store: Store, pokes: Pokes) -> None:
        self._store = store
        self._pokes = pokes
        self._revision = 0

    async def start(self) -> None:
        """Read where the revisions stand, and put back what was under way when the hub last ended."""

        async def body(transaction: Transaction) -> None:
            last = await transaction.row("last_revision")
            assert last is not None
            self._revision = last["revision"]
            for row in await transaction.rows("under_way_anywhere"):
                await self._put_back(transaction, row["terminal_id"], 0)
            await transaction.rows("nobody_is_here", revision=self.next_revision(), now=time.time())

        await self._store.transaction(body)

    async def claim(self, terminal: str, connection: int) -> Owed | None:
        """Claim the oldest delivery this terminal is owed, if its socket is still the newest.

        What its inventory already has ends as `same` (or `done`, if it was being installed) without a byte sent.
        """
        initiators: set[str] = set()

        async def body(transaction: Transaction) -> Owed | None:
            if not await _is_current(transaction, terminal, connection):
                return None
            while row := await transaction.row("owed", terminal_id=terminal):
                initiators.add(row["initiator"])
                installed = await transaction.row(
                    "installed_digest", terminal_id=terminal, program_id=row["program_id"]
                )
                if installed is None or installed["digest"] != row["digest"]:
                    return await self._offer(transaction, row, connection)
                await self._end_as_installed(transaction, row, connection)
            return None

        owed = await self._store.transaction(body)
        for initiator in initiators:
            self._pokes.poke("asked", initiator)
        return owed

    async def is_live(self, delivery: str, terminal: str) -> bool:
        """Return whether a delivery under way is still wanted."""

        async def body(transaction: Transaction) -> bool:
            row = await transaction.row("delivery_of_terminal", delivery_id=delivery, terminal_id=terminal)
            return row is not None and not row["is_final"]

        return await self._store.transaction(body)

    async def report(self, terminal: str, connection: int, report: State, *, sent: int = 0) -> str:
        """Write what a terminal reports of a delivery; return "noted", "refused" or "stale".

        "stale": its socket was replaced; nothing changed, and the report comes again on the new one. "refused": there
        is no such delivery of this terminal, or the move is not legal; nothing changed, and it need not come again.
        """

        async def body(transaction: Transaction) -> tuple[str, str]:
            if not await _is_current(transaction, terminal, connection):
                return "stale", ""
            row = await transaction.row("delivery_of_terminal", delivery_id=report.delivery, terminal_id=terminal)
            if row is None:
                return "refused", ""
            try:
                after = life.State(report.state)
            except ValueError:
                return "refused", ""
            if not life.may_move(life.State(row["state"]), after, Mover.TERMINAL):
                repeated = row["state"] == report.state
                return ("noted" if repeated else "refused"), ""
            await self.move(transaction, row, after, report.reason, report.detail, connection=connection, sent=sent)
            return "noted", row["initiator"]

        answer, initiator = await self._store.transaction(body)
        if initiator:
            self._pokes.poke("asked", initiator)
        return answer

    async def save_inventory(self, terminal: str, connection: int, inventory: Inventory) -> None:
        """Replace what is known to be on a terminal."""

        async def body(transaction: Transaction) -> set[str]:
            if not await _is_current(transaction, terminal, connection):
                return set()
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
            return await self._came_or_went(transaction, terminal, here=True)

        for initiator in await self._store.transaction(body):
            self._pokes.poke("asked", initiator)

    async def add_sent(self, delivery: str, sent: int) -> None:
        """Count stored bytes that went over a socket, however the delivery goes on."""

        async def body(transaction: Transaction) -> None:
            await transaction.rows("add_sent", delivery_id=delivery, sent=sent, revision=self.next_revision())

        await self._store.transaction(body)

    async def terminal_left(self, terminal: str, connection: int) -> None:
        """Put back what was under way on a socket that is gone, unless the terminal is back already."""

        async def body(transaction: Transaction) -> set[str]:
            if not await _is_current(transaction, terminal, connection):
                return set()
            await self._put_back(transaction, terminal, connection)
            return await self._came_or_went(transaction, terminal, here=False)

        for initiator in await self._store.transaction(body):
            self._pokes.poke("asked", initiator)

    # --- inside a transaction ---------------------------------------------------------------------------------------

    async def _offer(self, transaction: Transaction, row: Row, connection: int) -> Owed:
        for state in (life.State.QUEUED, life.State.OFFERED):
            if life.may_move(life.State(row["state"]), state, Mover.HUB) or state is life.State.OFFERED:
                await self.move(transaction, row, state, "", "", connection=connection)
        return Owed(
            delivery=row["delivery_id"],
            sync=row["sync_id"],
            initiator=row["initiator"],
            digest=row["digest"],
            installer=installer_offer(row),
            row=target_row(row),
        )

    async def _end_as_installed(self, transaction: Transaction, row: Row, connection: int) -> None:
        was_installing = row["state"] == life.State.INSTALLING
        if row["state"] not in (life.State.QUEUED, life.State.INSTALLING):
            await self.move(transaction, row, life.State.QUEUED, "", "", connection=connection)
        state = life.State.DONE if was_installing else life.State.SAME
        detail = "Its inventory has it." if was_installing else f"It has {row['version']} already."
        await self.move(transaction, row, state, "installed", detail, connection=connection)

    async def _came_or_went(self, transaction: Transaction, terminal: str, *, here: bool) -> set[str]:
        """Give what is queued or being installed there its reason; return who waits for it.

        An installation goes on without its socket, so its state stays; that nothing is heard of it is its reason.
        """
        queued, installing = ("waiting", "") if here else ("offline", "offline")
        for state, reason in ((life.State.QUEUED, queued), (life.State.INSTALLING, installing)):
            await transaction.rows(
                "give_reason",
                terminal_id=terminal,
                state=state.value,
                reason=reason,
                revision=self.next_revision(),
                now=time.time(),
            )
        return {row["initiator"] for row in await transaction.rows("initiators_waiting_for", terminal_id=terminal)}

    async def _put_back(self, transaction: Transaction, terminal: str, connection: int) -> None:
        for row in await transaction.rows("under_way_on", terminal_id=terminal):
            await self.move(transaction, row, life.State.QUEUED, "offline", "", connection=connection)

    async def move(
        self,
        transaction: Transaction,
        row: Row,
        state: life.State,
        reason: str,
        detail: str,
        *,
        connection: int = 0,
        sent: int = 0,
    ) -> None:
        """Move a delivery and end its sync if that was the last. A final state never changes, whoever asks."""
        now = time.time()
        moved = await transaction.row(
            "move_delivery",
            delivery_id=row["delivery_id"],
            state=state.value,
            reason=reason,
            detail=detail,
            is_final=state in life.FINAL,
            connection=connection,
            revision=self.next_revision(),
            sent=sent,
            now=now,
        )
        if moved is not None and state in life.FINAL:
            await end_if_over(transaction, moved["sync_id"], now)

    def next_revision(self) -> int:
        """Return a revision newer than any, for a delivery that is added or changed."""
        self._revision += 1
        return self._revision


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
