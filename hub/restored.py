"""Deliveries of a hub that was restored from a backup.

The backup shows deliveries as open that may have ended since, and the hub cannot know. So the first inventory of each
terminal decides: it has what was owed, and claiming ends the delivery as `same`; it has what it had when the backup was
made, and the delivery is owed still; it has something else, and a newer request has been there: the delivery is
superseded rather than taking the device back. `restored.json` holds what is not decided yet.
"""

from pathlib import Path
from typing import Any, Final

import msgspec

from hub.deliveries import Deliveries, Move
from hub.store import Transaction
from protocol import life
from protocol.messages import Inventory

_DETAIL: Final = "This device has changed since the hub's backup was made. Ask again if it is still wanted."


class RestoredDeliveries(Deliveries):
    """The deliveries of a restored hub; `record` is its `restored.json`, or a file that is not there."""

    def __init__(self, record: Path, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._record = record
        self._before: dict[str, dict[str, tuple[str, str]]] = {}
        if record.exists():
            self._before = msgspec.json.decode(record.read_bytes(), type=dict[str, dict[str, tuple[str, str]]])

    async def save_inventory(self, terminal: str, connection: int, inventory: Inventory, *, first: bool) -> None:
        """Replace what is known to be on a terminal, and decide on what the backup shows as owed to it."""
        await super().save_inventory(terminal, connection, inventory, first=first)
        if before := self._before.get(terminal):
            has = {program.program: program.digest.hex() for program in inventory.programs}
            await self._decide(terminal, connection, before, has)
            self._before.pop(terminal, None)
            self._keep()

    async def _decide(
        self, terminal: str, connection: int, before: dict[str, tuple[str, str]], has: dict[str, str]
    ) -> None:
        async def body(transaction: Transaction) -> None:
            for delivery, (program, had) in before.items():
                row = await transaction.row("delivery_of_terminal", delivery_id=delivery, terminal_id=terminal)
                now = has.get(program, "")
                if row is None or row["is_final"] or now in (had, row["digest"].hex()):
                    continue
                if life.may_move(life.State(row["state"]), life.State.SUPERSEDED, life.Mover.HUB):
                    move = Move(life.State.SUPERSEDED, "newer-request", _DETAIL, connection)
                    await self.move(transaction, row, move)

        await self._store.transaction(body)

    def _keep(self) -> None:
        """Keep what is not decided yet. Losing this write costs that it is decided again, which changes nothing."""
        if not self._before:
            self._record.unlink(missing_ok=True)
            return
        temporary = self._record.with_suffix(".new")
        temporary.write_bytes(msgspec.json.encode(self._before))
        temporary.replace(self._record)
