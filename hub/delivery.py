"""One running transfer: a Sender, a pack and what is due next. It never learns of sockets or sessions.

What is transferred is an installer that a terminal is owed (Delivery), or the rule set it scans with (RulesTransfer).
"""

from typing import Any

from msgspec import structs

from hub.objects import Pack
from hub.records import Owed, RulesObject
from protocol import codec, limits
from protocol.chunks import chunking_for
from protocol.life import State
from protocol.messages import Chunks, ManifestPage, Message, Offer, Progress, Rules, TargetRow, Want
from protocol.transfer import PageDue, Sender


class Transfer:
    """An object on its way to one terminal. The writer pulls `next_message`; the session feeds the rest."""

    def __init__(self, name: str, pack: Pack) -> None:
        self.name = name
        self._pack = pack
        self._sender = Sender(pack.manifest)
        self._counted_bytes = 0
        self.is_broken = False
        self.done_bytes = 0
        self.sent_at = 0.0  # when the last page or frame was handed to the socket

    @property
    def sent_bytes(self) -> int:
        """Stored bytes handed to the socket so far."""
        return self._sender.stored_bytes_sent

    @property
    def uncounted_bytes(self) -> int:
        """Stored bytes sent since `take_sent_bytes` was last called."""
        return self.sent_bytes - self._counted_bytes

    def take_sent_bytes(self) -> int:
        """Return the stored bytes sent since the last call, so that each is counted once."""
        new = self.uncounted_bytes
        self._counted_bytes = self.sent_bytes
        return new

    def offer(self) -> Message:
        """The message that begins the transfer."""
        raise NotImplementedError

    def want(self, want: Want) -> None:
        """The terminal lacks these runs. Raises ProtocolError for a want that cannot be."""
        self._sender.want(want.runs)

    def progress(self, progress: Progress, now: float) -> None:
        """The terminal has verified this much. Raises ProtocolError for more than was sent."""
        self._sender.acknowledge(progress.frames, now)
        self.done_bytes = min(progress.done, self._pack.manifest.size)

    @property
    def unacknowledged_since(self) -> float | None:
        """When the oldest frame that is not acknowledged was sent, or None."""
        return self._sender.unacknowledged_since

    def next_bytes(self, largest_bytes: int = limits.FRAME_BYTES) -> int:
        """Return how many bytes of the object's pack or manifest may go now; 0 for none."""
        due = None if self.is_broken else self._sender.peek(largest_bytes)
        if isinstance(due, PageDue):
            return len(self._pack.manifest.page(due.page))
        return self._sender.stored_bytes(due) if due is not None else 0

    def next_message(self, now: float, largest_bytes: int = limits.FRAME_BYTES) -> bytes | None:
        """Return the bytes of the next manifest page or frame that may go now, or None.

        Raises BadDataError when the pack cannot be read.
        """
        due = None if self.is_broken else self._sender.next(now, largest_bytes)
        if due is None:
            return None
        self.sent_at = now
        if isinstance(due, PageDue):
            page = self._pack.manifest.page(due.page)
            return codec.encode(ManifestPage(object=self._pack.digest, page=due.page, entries=page))
        data = self._pack.read(due)
        return codec.encode(Chunks(object=self._pack.digest, first=due.first, count=due.count, data=data))

    def _told(self) -> dict[str, Any]:
        """Return what is said of any object before it comes."""
        manifest = self._pack.manifest
        return {
            "delivery": self.name,
            "object": self._pack.digest,
            "size": manifest.size,
            "chunks": manifest.count,
            "stored_size": manifest.stored_size,
            "pages": manifest.page_count,
            "manifest": manifest.digest,
            "chunking": chunking_for(manifest.size),
        }


class Delivery(Transfer):
    """An installer on its way to a terminal that is owed it."""

    def __init__(self, owed: Owed, pack: Pack) -> None:
        super().__init__(owed.delivery, pack)
        self.owed = owed

    def offer(self) -> Offer:
        """The message that begins the transfer."""
        return Offer(
            **self._told(),
            installer=self.owed.installer,
            attempt=self.owed.attempt,
            initiator=self.owed.initiator_name,
        )

    def row(self, base: TargetRow) -> TargetRow:
        """Return the target's row with how far the transfer is."""
        return structs.replace(
            base,
            state=State.DOWNLOADING.value,
            reason="",
            detail="",
            done=self.done_bytes,
            sent=base.sent + self.sent_bytes,
        )


class RulesTransfer(Transfer):
    """The rule set on its way to a terminal; no row of the database knows of it."""

    def __init__(self, name: str, rules: RulesObject, pack: Pack) -> None:
        super().__init__(name, pack)
        self.rules = rules

    def offer(self) -> Rules:
        """The message that begins the transfer."""
        return Rules(**self._told())
