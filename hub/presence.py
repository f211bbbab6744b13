"""Presence: who is connected here, the newest login wins, and the account's device list with its revisions.

A dict in memory; the database holds what must last. Times are seconds of one monotonic clock, passed in. Each change of
a row takes the next revision of its account's roster, so what changed since any revision is a look-up, never a queue.
"""

import secrets
from collections.abc import Iterable
from typing import Final

from msgspec import Struct, structs

from protocol import limits
from protocol.messages import DeviceRow

EPOCH: Final = secrets.token_hex(8)  # one run of the hub: revisions of another run mean nothing


class Roster:
    """One account's device list."""

    def __init__(self, rows: Iterable[DeviceRow]) -> None:
        self._rows = {row.terminal: row for row in rows}
        self._changed_at: dict[str, int] = {}
        self._gone_at: dict[str, int] = {}
        self.revision = 1

    def rows(self) -> tuple[DeviceRow, ...]:
        """Every device, by name."""
        return tuple(sorted(self._rows.values(), key=lambda row: (row.name.casefold(), row.terminal)))

    def row(self, terminal: str) -> DeviceRow | None:
        """One device."""
        return self._rows.get(terminal)

    def put(self, row: DeviceRow) -> bool:
        """Add or change a device; return whether anything changed."""
        if self._rows.get(row.terminal) == row:
            return False
        self._rows[row.terminal] = row
        self.revision += 1
        self._gone_at.pop(row.terminal, None)
        self._changed_at[row.terminal] = self.revision
        return True

    def remove(self, terminal: str) -> None:
        """Take a device off the list. Which ones went is known for as long as the roster is: they come no more."""
        if self._rows.pop(terminal, None) is not None:
            self.revision += 1
            self._changed_at.pop(terminal, None)
            self._gone_at[terminal] = self.revision

    def changes_since(self, revision: int) -> list[tuple[int, DeviceRow]]:
        """Return (revision, row) of every device changed after `revision`, oldest change first."""
        changed = [(at, self._rows[terminal]) for terminal, at in self._changed_at.items() if at > revision]
        return sorted(changed, key=lambda item: item[0])

    def gone_since(self, revision: int) -> list[tuple[int, str]]:
        """Return (revision, terminal) of every device that went after `revision`, oldest first."""
        gone = [(at, terminal) for terminal, at in self._gone_at.items() if at > revision]
        return sorted(gone)


class _Leaving(Struct, frozen=True):
    account: str
    row: DeviceRow
    at: float


class Presence:
    """Who is connected, over all accounts. `socket` is a number the server gives each connection."""

    def __init__(self) -> None:
        self.rosters: dict[str, Roster] = {}
        self._sockets: dict[str, int] = {}
        self._receiving: set[str] = set()
        self._leaving: dict[str, _Leaving] = {}

    def join(self, account: str, row: DeviceRow, socket: int) -> int | None:
        """A terminal is there; return the older socket it replaces, if any. The account's roster must be loaded."""
        older = self._sockets.get(row.terminal)
        self._sockets[row.terminal] = socket
        if row.online:
            self._receiving.add(row.terminal)
        else:
            self._receiving.discard(row.terminal)
        leaving = self._leaving.pop(row.terminal, None)
        if leaving and leaving.row.online and not row.online:
            # A command without receiving comes between two runs of the agent: it takes nothing from the grace.
            self._leaving[row.terminal] = leaving
            row = structs.replace(row, online=True)
        self.rosters[account].put(row)
        return older

    def leave(self, account: str, terminal: str, socket: int, *, now: float, last_seen: float) -> bool:
        """A socket is gone; return whether it was the terminal's newest. Shown offline only after a grace."""
        if self._sockets.get(terminal) != socket:
            return False
        del self._sockets[terminal]
        self._receiving.discard(terminal)
        row = self.rosters[account].row(terminal)
        if row is not None and terminal not in self._leaving:
            gone = structs.replace(row, last_seen=last_seen)
            self._leaving[terminal] = _Leaving(account, gone, now + limits.PRESENCE_GRACE_SECONDS)
        return True

    def update(self, account: str, row: DeviceRow) -> None:
        """A terminal's name, device info or standing changed."""
        roster = self.rosters.get(account)
        current = roster.row(row.terminal) if roster is not None else None
        if roster is not None and current is not None:
            roster.put(structs.replace(row, online=current.online, address=current.address))

    def remove(self, account: str, terminal: str) -> None:
        """A terminal is not one of its account any more; its socket may be there still, and leaves as any other."""
        self._receiving.discard(terminal)
        self._leaving.pop(terminal, None)
        if account in self.rosters:
            self.rosters[account].remove(terminal)

    def tick(self, now: float) -> None:
        """Show those as offline whose grace has passed."""
        for terminal, leaving in list(self._leaving.items()):
            if leaving.at <= now:
                del self._leaving[terminal]
                current = self.rosters[leaving.account].row(terminal) or leaving.row
                self.rosters[leaving.account].put(
                    structs.replace(current, online=False, last_seen=leaving.row.last_seen)
                )

    def is_receiving(self, terminal: str) -> bool:
        """Whether this terminal receives here and now; the list goes on showing one as online for the grace."""
        return terminal in self._receiving

    def receiving(self) -> frozenset[str]:
        """Every terminal that receives here and now."""
        return frozenset(self._receiving)

    def socket_of(self, terminal: str) -> int | None:
        """The terminal's newest socket here."""
        return self._sockets.get(terminal)
