"""The account's device list as one connection knows it: whole lists in pages, changes in between, and gaps. Pure.

Revisions count up within one epoch (one run of the hub). A change that does not begin at the revision known here means
that something was missed; the whole list is then asked for again, once.
"""

from dataclasses import dataclass, field

from protocol import limits
from protocol.errors import ProtocolError
from protocol.messages import DeviceChanges, DeviceRow, Devices


@dataclass(slots=True)
class _Pages:
    """A whole list that is still coming."""

    next_page: int = 0
    rows: list[DeviceRow] = field(default_factory=list)


class DeviceList:
    """The devices of the account at `revision` of `epoch`; `epoch` is empty until the first whole list has come."""

    def __init__(self) -> None:
        self.epoch = ""
        self.revision = 0
        self._rows: dict[str, DeviceRow] = {}
        self._coming: dict[int, _Pages] = {}
        self._asked_again = False

    @property
    def rows(self) -> tuple[DeviceRow, ...]:
        """The devices, sorted by name."""
        return tuple(sorted(self._rows.values(), key=lambda row: (row.name, row.terminal)))

    def add_page(self, page: Devices) -> bool:
        """Take a page; return whether the whole list is now known. Raises ProtocolError for a page out of order."""
        pages = self._coming.setdefault(page.re, _Pages())
        if page.page != pages.next_page or page.page >= page.pages:
            raise ProtocolError(f"Page {page.page} of {page.pages} of the device list came out of order.")
        pages.next_page += 1
        pages.rows.extend(page.devices)
        if len(pages.rows) > limits.LIST_ITEMS or len(self._coming) > limits.REQUESTS_UNDER_WAY + 1:
            raise ProtocolError("The device list is longer than the protocol allows.", code="too-large")
        if pages.next_page < page.pages:
            return False
        del self._coming[page.re]
        return self._adopt(page.epoch, page.revision, pages.rows)

    def change(self, changes: DeviceChanges) -> bool:
        """Apply `changes`; return False when there is a gap, which leaves the list as it was."""
        if changes.epoch != self.epoch or changes.since > self.revision:
            return False
        if changes.revision <= self.revision:
            return True  # older than a list that was asked for meanwhile
        for row in changes.changed:
            self._rows[row.terminal] = row
        for terminal in changes.gone:
            self._rows.pop(terminal, None)
        self.revision = changes.revision
        return True

    def should_ask(self) -> bool:
        """Return True the first time after a gap; the next whole list makes it True again."""
        first, self._asked_again = not self._asked_again, True
        return first

    def _adopt(self, epoch: str, revision: int, rows: list[DeviceRow]) -> bool:
        self._asked_again = False
        if epoch == self.epoch and revision < self.revision:
            return False
        self.epoch, self.revision = epoch, revision
        self._rows = {row.terminal: row for row in rows}
        return True
