"""Revocation and rights: what the hub's owner, or a terminal with the right, changes in who may do what.

Each act is one transaction with its row in the audit log. From its commit on a key that is revoked is dead, nothing
that is asked on the connections there are counts any more, and what the terminals were owed, or a revoked one had asked
for, has ended. After it those that are connected are told to look at their standing, by which their sockets close.
"""

import time
from typing import Final

from msgspec import Struct

from hub.accounts import Accounts, find_account, free_name, terminal_of
from hub.audit import OPERATOR, record
from hub.clones import Clones
from hub.deliveries import Deliveries
from hub.pokes import Pokes
from hub.presence import Presence
from hub.records import RIGHTS, Right, Terminal
from hub.standing import DISABLED, REVOKED, Standings
from hub.store import Row, Store, Transaction
from protocol import limits
from protocol.errors import UnknownNameError

_REVOKED_DETAIL: Final = "It was removed from the account."
_ASKER_REVOKED_DETAIL: Final = "The device that asked for it was removed from the account."
_DISABLED_DETAIL: Final = "Its account was disabled."


class DeviceEntry(Struct, frozen=True, kw_only=True):
    """One device as the hub's owner sees it; `standing` is empty where all is well. Times are Unix seconds.

    `posture_at` is when its last report on its own programs came, 0 where none has.
    """

    account: str
    terminal: str
    name: str
    standing: str
    rights: tuple[str, ...]
    tags: tuple[str, ...]
    address: str
    enrolled_by: str
    created_at: float
    last_seen_at: float
    revoked_at: float = 0.0
    cloned_at: float = 0.0
    posture_at: float = 0.0
    posture_findings: int = 0
    posture_complete: bool = False


class Revocation:
    """Who may do what at one hub, changed while it runs or not."""

    def __init__(
        self,
        store: Store,
        pokes: Pokes,
        presence: Presence,
        accounts: Accounts,
        deliveries: Deliveries,
        standings: Standings,
    ) -> None:
        self.clones = Clones()
        self._store = store
        self._pokes = pokes
        self._presence = presence
        self._accounts = accounts
        self._deliveries = deliveries
        self._standings = standings

    # --- one device -----------------------------------------------------------------------------------------------

    async def revoke_by(self, me: Terminal, terminal: str) -> None:
        """Revoke a terminal of the account of `me`; asked again, when an answer was lost, it is done already.

        Raises RefusedError where `me` may not, UnknownNameError where its account has no such terminal.
        """

        async def body(transaction: Transaction) -> None:
            await self._standings.check_right(transaction, me.terminal_id, "approve")
            row = await transaction.row("terminal_to_revoke", terminal_id=terminal, account_id=me.account_id)
            if row is None:
                raise UnknownNameError(f"This account has no terminal {terminal!r}.", code="unknown-terminal")
            if row["revoked_at"] is None:
                await self._revoke(transaction, row, me.terminal_id)

        await self._store.transaction(body)
        self._is_gone(me.account_id, terminal)

    async def revoke(self, account: str, device: str) -> tuple[Terminal, int]:
        """Revoke a device, by its name or id; return what it was and how many deliveries to it or from it have ended.

        Raises UnknownNameError.
        """

        async def body(transaction: Transaction) -> tuple[Terminal, int]:
            row = await _device(transaction, account, device)
            return terminal_of(row), await self._revoke(transaction, row, OPERATOR)

        terminal, denied = await self._store.transaction(body)
        self._is_gone(terminal.account_id, terminal.terminal_id)
        return terminal, denied

    async def allow_device(self, account: str, device: str, right: Right, *, allowed: bool) -> Terminal:
        """Give a device a right, or take it back. Raises UnknownNameError."""

        async def body(transaction: Transaction) -> Terminal:
            row = await _device(transaction, account, device)
            held = set(row["rights"].split()) - {right} | ({right} if allowed else set())
            rights = " ".join(one for one in RIGHTS if one in held)
            if rights != row["rights"]:
                await transaction.rows("set_terminal_rights", terminal_id=row["terminal_id"], rights=rights)
                action = "device.allow" if allowed else "device.deny"
                await record(transaction, OPERATOR, action, row["terminal_id"], name=row["name"], right=right)
            return terminal_of(row)

        terminal = await self._store.transaction(body)
        self._pokes.poke("standing", terminal.terminal_id)
        return terminal

    async def mark_cloned(self, terminal: str, address: str, other: str) -> bool:
        """Keep that a key was seen in two places; return whether that is news. The addresses are of the last logins."""

        async def body(transaction: Transaction) -> bool:
            marked = await transaction.row("mark_cloned", terminal_id=terminal, now=time.time())
            if marked is not None:
                await record(transaction, "hub", "device.cloned", terminal, addresses=[other, address])
            return marked is not None

        is_news = await self._store.transaction(body)
        await self.show(terminal)
        return is_news

    async def clear(self, account: str, device: str) -> bool:
        """End a device's clone alarm; return whether there was one. Raises UnknownNameError."""

        async def body(transaction: Transaction) -> tuple[str, bool]:
            row = await _device(transaction, account, device)
            cleared = await transaction.row("clear_cloned", terminal_id=row["terminal_id"])
            if cleared is not None:
                await record(transaction, OPERATOR, "device.clear", row["terminal_id"], name=row["name"])
            return row["terminal_id"], cleared is not None

        terminal, cleared = await self._store.transaction(body)
        self.clones.forget(terminal)
        await self.show(terminal)
        return cleared

    async def show(self, terminal: str) -> None:
        """Have the device list show a terminal as it stands now."""
        found = await self._accounts.find(terminal)
        if found is not None and not found.is_revoked:
            self._presence.update(found.account_id, self._accounts.device_row(found, online=False))

    async def listing(self, account: str) -> list[DeviceEntry]:
        """Return every device of an account, or of all where none is named. Raises UnknownNameError."""

        async def body(transaction: Transaction) -> list[DeviceEntry]:
            named = (await _account(transaction, account))["name"] if account else ""
            return [self._entry(row) for row in await transaction.rows("devices", account=named)]

        return await self._store.transaction(body)

    def _entry(self, row: Row) -> DeviceEntry:
        terminal = terminal_of(row)
        held = frozenset(row["rights"].split()) & frozenset(row["account_rights"].split())
        ended = REVOKED if terminal.is_revoked else "disabled" if terminal.is_disabled else ""
        return DeviceEntry(
            account=terminal.account_name,
            terminal=terminal.terminal_id,
            name=terminal.name,
            standing=ended or self._accounts.device_row(terminal, online=False).standing,
            rights=() if ended else tuple(right for right in RIGHTS if right in held),
            tags=terminal.tags,
            address=terminal.address,
            enrolled_by=row["enrolled_by"],
            created_at=row["created_at"],
            last_seen_at=terminal.last_seen_at,
            revoked_at=row["revoked_at"] or 0.0,
            cloned_at=terminal.cloned_at,
            posture_at=row["posture_at"] or 0.0,
            posture_findings=terminal.posture_findings,
            posture_complete=bool(row["posture_complete"]),
        )

    # --- a whole account ------------------------------------------------------------------------------------------

    async def disable(self, name: str) -> int:
        """Close an account's devices out; return how many deliveries to them have ended. Raises UnknownNameError."""

        async def body(transaction: Transaction) -> tuple[list[Row], int]:
            account = await _account(transaction, name)
            rows = await transaction.rows("terminals_of_account", account_id=account["account_id"])
            if account["disabled_at"] is not None:
                return rows, 0
            await transaction.rows("disable_account", account_id=account["account_id"], now=time.time())
            denied = 0
            for row in rows:
                denied += await self._deliveries.deny_terminal(
                    transaction, row["terminal_id"], DISABLED, _DISABLED_DETAIL
                )
            await record(
                transaction, OPERATOR, "account.disable", account["name"], devices=len(rows), deliveries=denied
            )
            return rows, denied

        rows, denied = await self._store.transaction(body)
        self._poke(rows)
        return denied

    async def enable(self, name: str) -> None:
        """Let the devices of an account in again. Raises UnknownNameError."""

        async def body(transaction: Transaction) -> None:
            account = await _account(transaction, name)
            if account["disabled_at"] is not None:
                await transaction.rows("disable_account", account_id=account["account_id"], now=None)
                await record(transaction, OPERATOR, "account.enable", account["name"])

        await self._store.transaction(body)

    async def set_password(self, name: str, password: str, *, keep_devices: bool = False) -> int:
        """Change an account's password and revoke its devices, unless they are kept; return how many were.

        Raises UsageError for a bad password, UnknownNameError.
        """
        password_hash = await self._accounts.hash_password(password)

        async def body(transaction: Transaction) -> list[Row]:
            account = await _account(transaction, name)
            await transaction.rows("set_password", account_id=account["account_id"], password_hash=password_hash)
            rows = await transaction.rows("terminals_of_account", account_id=account["account_id"])
            revoked = [] if keep_devices else rows
            for row in revoked:
                await self._revoke(transaction, row, OPERATOR)
            await record(transaction, OPERATOR, "account.password", account["name"], devices_revoked=len(revoked))
            return revoked

        revoked = await self._store.transaction(body)
        for row in revoked:
            self._is_gone(row["account_id"], row["terminal_id"])
        return len(revoked)

    async def allow_account(self, name: str, right: Right, *, allowed: bool) -> None:
        """Give the terminals of an account a right, or take it back. Raises UnknownNameError."""
        await self._accounts.allow(name, right, allowed=allowed)

        async def body(transaction: Transaction) -> list[Row]:
            account = await _account(transaction, name)
            return await transaction.rows("terminals_of_account", account_id=account["account_id"])

        self._poke(await self._store.transaction(body))

    # --- while the hub runs ---------------------------------------------------------------------------------------

    async def look(self) -> None:
        """Tell those who are connected and are not to be, should they not have heard of it."""

        async def body(transaction: Transaction) -> list[Row]:
            return await transaction.rows("not_welcome")

        for row in await self._store.transaction(body):
            if self._presence.socket_of(row["terminal_id"]) is not None:
                self._pokes.poke("standing", row["terminal_id"])

    async def look_at_postures(self) -> None:
        """Have those who are connected asked for a report where one is due."""
        for terminal in await self._store.transaction(self._standings.due):
            if self._presence.is_receiving(terminal):
                self._pokes.poke("standing", terminal)

    # --- inside a transaction -------------------------------------------------------------------------------------

    async def _revoke(self, transaction: Transaction, row: Row, actor: str) -> int:
        """End a terminal: its key, its connection, what it is owed and what it asked for; its name is free.

        Return how many deliveries have ended.
        """
        terminal = row["terminal_id"]
        suffix = f" (revoked {terminal})"
        wanted = row["name"][: limits.NAME_CHARACTERS - len(suffix)] + suffix
        name = await free_name(transaction, row["account_id"], terminal, wanted)
        await transaction.rows("revoke_terminal", terminal_id=terminal, name=name, now=time.time())
        denied = await self._deliveries.deny_terminal(transaction, terminal, REVOKED, _REVOKED_DETAIL)
        denied += await self._deliveries.deny_asked_by(transaction, terminal, REVOKED, _ASKER_REVOKED_DETAIL)
        await record(transaction, actor, "device.revoke", terminal, name=row["name"], deliveries=denied)
        return denied

    # --- after the commit -----------------------------------------------------------------------------------------

    def _is_gone(self, account_id: str, terminal: str) -> None:
        self._presence.remove(account_id, terminal)
        self._pokes.poke("standing", terminal)

    def _poke(self, rows: list[Row]) -> None:
        for row in rows:
            self._pokes.poke("standing", row["terminal_id"])


async def _account(transaction: Transaction, name: str) -> Row:
    row = await find_account(transaction, name)
    if row is None:
        raise UnknownNameError(
            f"There is no account {name!r}.", hint="`lockstep-hub account list` lists them.", code="unknown-account"
        )
    return row


async def _device(transaction: Transaction, account: str, device: str) -> Row:
    named = (await _account(transaction, account))["name"]
    row = await transaction.row("device_of_account", account=named, device=device)
    if row is None:
        raise UnknownNameError(
            f"Account {account!r} has no device {device!r}.",
            hint=f"`lockstep-hub device list {account}` lists them; one that was revoked stays so.",
            code="unknown-terminal",
        )
    return row
