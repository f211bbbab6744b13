"""Device lists on the wire: the whole list in pages, or what changed, encoded once for all who need the same."""

from typing import Protocol

from hub.accounts import Accounts
from hub.presence import EPOCH, Presence, Roster
from hub.records import Terminal
from protocol import codec, limits, messages


class Listener(Protocol):
    """A socket that shows its account's devices up to `devices_revision`."""

    devices_revision: int

    @property
    def terminal(self) -> Terminal | None:
        """The terminal that is logged in."""

    def queue(self, data: bytes) -> None:
        """Queue a message."""


class DeviceLists:
    """The device lists of one hub. Encoded messages are kept until the next change of their account."""

    def __init__(self, presence: Presence) -> None:
        self._presence = presence
        self._told_revision: dict[str, int] = {}
        self._pages: dict[str, tuple[int, list[bytes]]] = {}
        self._changes: dict[tuple[str, int, int], list[bytes]] = {}

    async def load(self, account_id: str, accounts: Accounts) -> None:
        """Make sure the account's roster is in memory."""
        if account_id not in self._presence.rosters:
            rows = await accounts.device_rows(account_id)
            self._presence.rosters.setdefault(account_id, Roster(rows))

    def changed_accounts(self) -> set[str]:
        """Return the accounts whose list changed since the last call."""
        changed = {
            account_id
            for account_id, roster in self._presence.rosters.items()
            if roster.revision != self._told_revision.get(account_id)
        }
        for account_id in changed:
            self._told_revision[account_id] = self._presence.rosters[account_id].revision
        self._changes.clear()
        return changed

    def whole_list(self, listener: Listener, account_id: str, request: int) -> int:
        """Queue the whole list in pages; return the revision it shows."""
        roster = self._presence.rosters[account_id]
        if request:
            pages = self._encode_list(roster, request)
        else:
            revision, pages = self._pages.get(account_id, (0, []))
            if revision != roster.revision:
                pages = self._encode_list(roster, 0)
                self._pages[account_id] = (roster.revision, pages)
        for page in pages:
            listener.queue(page)
        return roster.revision

    def changes(self, listener: Listener) -> int:
        """Queue what changed since the revision the listener shows; return the revision it shows then."""
        assert listener.terminal is not None
        account_id = listener.terminal.account_id
        roster = self._presence.rosters[account_id]
        key = (account_id, listener.devices_revision, roster.revision)
        if key not in self._changes:
            self._changes[key] = self._encode_changes(roster, listener.devices_revision)
        for message in self._changes[key]:
            listener.queue(message)
        return roster.revision

    def _encode_list(self, roster: Roster, request: int) -> list[bytes]:
        rows = roster.rows()
        pages = codec.pages(rows)
        return [
            codec.encode(
                messages.Devices(
                    re=request,
                    epoch=EPOCH,
                    revision=roster.revision,
                    page=number,
                    pages=len(pages),
                    devices=page,
                )
            )
            for number, page in enumerate(pages)
        ]

    def _encode_changes(self, roster: Roster, since: int) -> list[bytes]:
        """Several messages where the rows do not fit one, each ending at the revision of its last row.

        Who has gone is told in the first: they never come back.
        """
        changed = roster.changes_since(since)
        gone = tuple(terminal for _, terminal in roster.gone_since(since))[: limits.LIST_ITEMS]
        encoded = []
        for page in codec.pages(row for _, row in changed):
            revision = roster.revision if len(page) == len(changed) else changed[len(page) - 1][0]
            del changed[: len(page)]
            told = messages.DeviceChanges(epoch=EPOCH, since=since, revision=revision, changed=page, gone=gone)
            encoded.append(codec.encode(told))
            since, gone = revision, ()
        return encoded
