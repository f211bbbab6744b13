"""Transfer: the one mechanism that moves an object, pure on both ends.

`offer` -> manifest pages -> `want` (the runs still missing) -> frames -> `progress` per frame -> `received`. The Sender
decides which page or run may go now (the window); the Receiver knows what is missing and whether what comes is right.
Neither touches a file, a socket or a clock.

Window: `frames sent - frames acknowledged` stays under the window. It starts at 2 and grows by one with each
acknowledgement that comes within 2 s of its frame's sending; by Little's law that age is the data in flight divided by
the measured rate. An older acknowledgement shrinks it by one. So a slow link settles at about 2 s of data ahead of a
control message (acknowledgements come that much late, so it swings around that), and a fast one is filled.

Frames are cut for the link too: after one that took the link longer than 1 s they have at most half its size, after
one that took less than half of that at least twice its size. What a frame took runs from the acknowledgement before it,
or from its sending if that came later.
"""

from collections import deque
from collections.abc import Iterable
from typing import TypeAlias

from msgspec import Struct

from protocol import chunks, limits
from protocol.errors import ProtocolError, TransferError
from protocol.messages import Chunks, ManifestPage, ObjectMessage, Run


class PageDue(Struct, frozen=True):
    """The Sender wants manifest page `page` sent next."""

    page: int


Due: TypeAlias = PageDue | Run


class Sender:
    """Decides what of one object goes next. The caller sends it and reports acknowledgements."""

    def __init__(self, manifest: chunks.Manifest) -> None:
        self.manifest = manifest
        self.window = limits.WINDOW_FIRST_FRAMES
        self.frames_sent = 0
        self.frames_acknowledged = 0
        self.stored_bytes_sent = 0
        self.frame_bytes = limits.FRAME_FIRST_BYTES
        self._next_page = 0
        self._wanted: deque[Run] = deque()
        self._unacknowledged: deque[tuple[float, int]] = deque()  # when it was sent, how many bytes it has
        self._acknowledged_at = 0.0

    def want(self, runs: tuple[Run, ...]) -> None:
        """Queue the runs the receiver lacks. Raises ProtocolError for runs out of range, out of order or too early."""
        if self._next_page < self.manifest.page_count or self._wanted:
            raise ProtocolError("A want came before the manifest was sent or the last want was served.")
        end = 0
        for run in runs:
            if run.first < end or run.first + run.count > self.manifest.count:
                raise ProtocolError(
                    f"A want names chunks {run.first} to {run.first + run.count - 1}; "
                    f"the object has {self.manifest.count} and runs must ascend.",
                    code="out-of-range",
                )
            end = run.first + run.count
        self._wanted.extend(runs)

    @property
    def unacknowledged_since(self) -> float | None:
        """When the oldest frame that is not acknowledged was handed out, or None."""
        return self._unacknowledged[0][0] if self._unacknowledged else None

    def peek(self, largest_bytes: int = limits.FRAME_BYTES) -> Due | None:
        """Return what `next` would return now, and count nothing."""
        if self._next_page < self.manifest.page_count:
            return PageDue(self._next_page)
        if not self._wanted or self.frames_sent - self.frames_acknowledged >= self.window:
            return None
        return self._first_frame(min(self.frame_bytes, largest_bytes))

    def next(self, now: float, largest_bytes: int = limits.FRAME_BYTES) -> Due | None:
        """Return what may be sent now and count it as sent, or None while there is nothing or the window is full.

        A frame has at most `largest_bytes` of the pack, or one chunk.
        """
        due = self.peek(largest_bytes)
        if isinstance(due, PageDue):
            self._next_page += 1
        elif due is not None:
            self._take(due)
            self._unacknowledged.append((now, self.stored_bytes(due)))
        return due

    def stored_bytes(self, run: Run) -> int:
        """Return how many pack bytes a run has."""
        offsets = self.manifest.stored_offsets
        return offsets[run.first + run.count] - offsets[run.first]

    def acknowledge(self, frames: int, now: float) -> None:
        """The receiver has verified `frames` frames in all. Raises ProtocolError for more than were sent."""
        if not self.frames_acknowledged <= frames <= self.frames_sent:
            raise ProtocolError(f"Progress says {frames} frames; {self.frames_sent} were sent.")
        for _ in range(frames - self.frames_acknowledged):
            self._adapt(*self._unacknowledged.popleft(), now)
        self.frames_acknowledged = frames

    def _adapt(self, sent_at: float, size: int, now: float) -> None:
        """Fit the window and the size of frames to a link that has delivered a frame of `size` sent at `sent_at`."""
        step = 1 if now - sent_at < limits.WINDOW_GROWS_BELOW_SECONDS else -1
        self.window = min(max(self.window + step, limits.WINDOW_FIRST_FRAMES), limits.WINDOW_LARGEST_FRAMES)
        link_seconds = now - max(sent_at, self._acknowledged_at)
        if link_seconds > limits.FRAME_SECONDS:
            self.frame_bytes = max(min(self.frame_bytes, size // 2), limits.FRAME_SMALLEST_BYTES)
        elif link_seconds < limits.FRAME_SECONDS / 2:
            self.frame_bytes = min(max(self.frame_bytes, size * 2), limits.FRAME_BYTES)
        self._acknowledged_at = now

    def _first_frame(self, largest_bytes: int) -> Run:
        """The largest run from the front of what is wanted that fits one frame; one chunk always does."""
        wanted = self._wanted[0]
        offsets = self.manifest.stored_offsets
        room_ends_at = offsets[wanted.first] + largest_bytes
        count = 1
        while count < wanted.count and offsets[wanted.first + count + 1] <= room_ends_at:
            count += 1
        return Run(wanted.first, count)

    def _take(self, run: Run) -> None:
        wanted = self._wanted.popleft()
        if run.count < wanted.count:
            self._wanted.appendleft(Run(run.first + run.count, wanted.count - run.count))
        self.frames_sent += 1
        self.stored_bytes_sent += self.stored_bytes(run)


class Receiver:
    """Knows what of one offered object is missing, and checks each page and frame before it is used."""

    def __init__(self, offer: ObjectMessage) -> None:
        self.offer = offer
        self.frames = 0
        self.done_bytes = 0
        self._pages: list[bytes] = []
        self._manifest: chunks.Manifest | None = None
        self._missing: list[bool] = []
        self._expected: deque[Run] = deque()
        if offer.pages != -(-offer.chunks // limits.MANIFEST_PAGE_ENTRIES):
            raise TransferError(f"The offer says {offer.chunks} chunks in {offer.pages} manifest pages.")

    @property
    def manifest(self) -> chunks.Manifest:
        """The verified manifest. Raises TransferError before its last page has come."""
        if self._manifest is None:
            raise TransferError("The manifest has not come whole yet.")
        return self._manifest

    def add_page(self, page: ManifestPage) -> bool:
        """Take the next manifest page; return whether it was the last. Raises TransferError for a wrong one."""
        due = len(self._pages)
        if self._manifest is not None or page.page != due or due >= self.offer.pages:
            raise TransferError(f"Manifest page {page.page} of {self.offer.pages} came out of turn.")
        self._pages.append(page.entries)
        if len(self._pages) < self.offer.pages:
            return False
        self._manifest = self._checked_manifest(b"".join(self._pages))
        self._pages.clear()
        self._missing = [True] * self._manifest.count
        return True

    def have(self, index: int) -> None:
        """Chunk `index` is on disk already and has been verified there."""
        if self._missing[index]:
            self._missing[index] = False
            self.done_bytes += self.manifest[index].raw_size

    @property
    def complete(self) -> bool:
        """Whether every chunk is there."""
        # Not `any(self._missing)`: it is asked after every frame, and there may be 300,000 chunks of at least one byte.
        return self._manifest is not None and self.done_bytes == self._manifest.size

    def next_want(self) -> tuple[Run, ...]:
        """Return the next runs to ask for: nothing while a want is being served or when all is there."""
        if self._expected or self._manifest is None:
            return ()
        runs = _runs(self._missing)[: limits.WANT_RUNS]
        self._expected.extend(runs)
        return tuple(runs)

    def accept(self, frame: Chunks) -> tuple[int, list[bytes]]:
        """Check a frame; return the byte offset it belongs at and its raw chunks in order.

        Raises TransferError for chunks that were not asked for or come out of order, and for a wrong size or digest.
        """
        self._take_expected(frame.first, frame.count)
        manifest = self.manifest
        start = manifest.stored_offsets[frame.first]
        if len(frame.data) != manifest.stored_offsets[frame.first + frame.count] - start:
            raise TransferError(f"A frame of {frame.count} chunks has {len(frame.data)} bytes, not what they should.")
        view = memoryview(frame.data)
        raw_chunks = []
        for index in range(frame.first, frame.first + frame.count):
            stored = view[manifest.stored_offsets[index] - start : manifest.stored_offsets[index + 1] - start]
            raw_chunks.append(chunks.restore(stored, manifest[index]))
        for index in range(frame.first, frame.first + frame.count):
            self.have(index)
        self.frames += 1
        return manifest.raw_offsets[frame.first], raw_chunks

    def _take_expected(self, first: int, count: int) -> None:
        expected = self._expected.popleft() if self._expected else Run(0, 0)
        if first != expected.first or not 0 < count <= expected.count:
            raise TransferError(f"Chunks {first} to {first + count - 1} came and were not asked for now.")
        if count < expected.count:
            self._expected.appendleft(Run(first + count, expected.count - count))

    def _checked_manifest(self, data: bytes) -> chunks.Manifest:
        manifest = chunks.Manifest(data)
        if manifest.digest != self.offer.manifest:
            raise TransferError("The manifest does not have the digest the offer says.", code="wrong-digest")
        said = (self.offer.chunks, self.offer.size, self.offer.stored_size)
        has = (manifest.count, manifest.size, manifest.stored_size)
        if said != has:
            raise TransferError(f"The offer says (chunks, size, stored size) {said}, its manifest {has}.")
        return manifest


def _runs(flags: Iterable[bool]) -> list[Run]:
    """Return the runs of consecutive true flags."""
    runs: list[Run] = []
    for index, flag in enumerate(flags):
        if not flag:
            continue
        if runs and runs[-1].first + runs[-1].count == index:
            runs[-1] = Run(runs[-1].first, runs[-1].count + 1)
        else:
            runs.append(Run(index, 1))
    return runs
