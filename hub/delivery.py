"""One running transfer: a Sender, a pack and what is due next. It never learns of sockets or sessions."""

from hub.objects import Pack
from hub.records import Owed
from protocol import codec
from protocol.chunks import chunking_for
from protocol.messages import Chunks, ManifestPage, Offer, Progress, TargetRow, Want
from protocol.transfer import PageDue, Sender


class Delivery:
    """An object on its way to one terminal. The writer pulls `next_message`; the session feeds the rest."""

    def __init__(self, owed: Owed, pack: Pack) -> None:
        self.owed = owed
        self._pack = pack
        self._sender = Sender(pack.manifest)
        self.done_bytes = 0

    @property
    def sent_bytes(self) -> int:
        """Stored bytes handed to the socket so far."""
        return self._sender.stored_bytes_sent

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
        due = self._sender.next(now)
        if due is None:
            return None
        if isinstance(due, PageDue):
            page = self._pack.manifest.page(due.page)
            return codec.encode(ManifestPage(object=self._pack.digest, page=due.page, entries=page))
        data = self._pack.read(due)
        return codec.encode(Chunks(object=self._pack.digest, first=due.first, count=due.count, data=data))

    def row(self, base: TargetRow) -> TargetRow:
        """Return the target's row with how far the transfer is."""
        return TargetRow(
            terminal=base.terminal,
            name=base.name,
            delivery=base.delivery,
            state="downloading",
            version=base.version,
            installer_kind=base.installer_kind,
            file_name=base.file_name,
            digest=base.digest,
            size=base.size,
            done=self.done_bytes,
            sent=self.sent_bytes,
        )
