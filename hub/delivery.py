"""One running transfer: a Sender, a pack and what is due next. It never learns of sockets or sessions."""

import asyncio

from msgspec import structs

from hub.objects import Pack
from hub.records import Owed
from protocol import codec
from protocol.chunks import chunking_for
from protocol.life import State
from protocol.messages import Chunks, ManifestPage, Offer, Progress, TargetRow, Want
from protocol.transfer import PageDue, Sender


class FrameRoom:
    """How many frames all sockets together may have in memory on their way; who finds no room is woken in turn.

    Nobody blocks here: a writer that finds none goes on with its control messages and pings. Only writers that have
    nothing else to do wait, and one that wakes says so with `leave`, so that a turn it cannot use goes to the next.
    """

    def __init__(self, frames: int) -> None:
        self._free = frames
        self._waiting: dict[asyncio.Event, None] = {}

    def take(self, wake: asyncio.Event) -> bool:
        """Take room for a frame and return True, or have `wake` set when there may be some."""
        if self._free == 0:
            self._waiting[wake] = None
            return False
        self._free -= 1
        return True

    def give_back(self) -> None:
        """A frame is on its way."""
        self._free += 1
        self._wake_next()

    def leave(self, wake: asyncio.Event) -> None:
        """Whoever waits with `wake` has woken."""
        self._waiting.pop(wake, None)
        self._wake_next()

    def _wake_next(self) -> None:
        if self._free and self._waiting:
            wake = next(iter(self._waiting))
            del self._waiting[wake]
            wake.set()


class Delivery:
    """An object on its way to one terminal. The writer pulls `next_message`; the session feeds the rest."""

    def __init__(self, owed: Owed, pack: Pack) -> None:
        self.owed = owed
        self._pack = pack
        self._sender = Sender(pack.manifest)
        self._counted_bytes = 0
        self.is_broken = False
        self.done_bytes = 0

    @property
    def sent_bytes(self) -> int:
        """Stored bytes handed to the socket so far."""
        return self._sender.stored_bytes_sent

    def take_sent_bytes(self) -> int:
        """Return the stored bytes sent since the last call, so that each is counted once."""
        new = self.sent_bytes - self._counted_bytes
        self._counted_bytes = self.sent_bytes
        return new

    def offer(self) -> Offer:
        """The message that begins the transfer."""
        manifest = self._pack.manifest
        return Offer(
            delivery=self.owed.delivery,
            object=self._pack.digest,
            size=manifest.size,
            chunks=manifest.count,
            stored_size=manifest.stored_size,
            pages=manifest.page_count,
            manifest=manifest.digest,
            chunking=chunking_for(manifest.size),
            installer=self.owed.installer,
        )

    def want(self, want: Want) -> None:
        """The terminal lacks these runs. Raises ProtocolError for a want that cannot be."""
        self._sender.want(want.runs)

    def progress(self, progress: Progress, now: float) -> None:
        """The terminal has verified this much. Raises ProtocolError for more than was sent."""
        self._sender.acknowledge(progress.frames, now)
        self.done_bytes = min(progress.done, self._pack.manifest.size)

    def next_message(self, now: float) -> bytes | None:
        """Return the bytes of the next manifest page or frame that may go now, or None."""
        due = None if self.is_broken else self._sender.next(now)
        if due is None:
            return None
        if isinstance(due, PageDue):
            page = self._pack.manifest.page(due.page)
            return codec.encode(ManifestPage(object=self._pack.digest, page=due.page, entries=page))
        data = self._pack.read(due)
        return codec.encode(Chunks(object=self._pack.digest, first=due.first, count=due.count, data=data))

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
