"""Transfer: a Sender and a Receiver face to face, with no network and simulated time."""

import hashlib
import io
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from protocol import chunks, limits, messages
from protocol.chunks import Entry, Manifest
from protocol.errors import ProtocolError, TransferError
from protocol.messages import Chunking, Chunks, InstallerOffer, ManifestPage, Offer, Run
from protocol.transfer import PageDue, Receiver, Sender

SMALL = Chunking(algorithm=chunks.ALGORITHM, minimum=64, average=256, maximum=1024)
INSTALLER = InstallerOffer(program="p", package_name="p", version="1", installer_kind="deb", file_name="p.deb")


class Thing:
    """An object at the hub: its bytes, manifest, pack and offer."""

    def __init__(self, data: bytes, chunking: Chunking = SMALL) -> None:
        pairs = list(chunks.pack(io.BytesIO(data), chunking))
        self.data = data
        self.manifest = Manifest.of(entry for entry, _ in pairs)
        self.pack = b"".join(stored for _, stored in pairs)
        self.digest = hashlib.sha256(data).digest()
        self.offer = Offer(
            delivery="d",
            object=self.digest,
            size=len(data),
            chunks=self.manifest.count,
            stored_size=len(self.pack),
            pages=self.manifest.page_count,
            manifest=self.manifest.digest,
            chunking=chunking,
            installer=INSTALLER,
        )

    def page(self, number: int) -> ManifestPage:
        return ManifestPage(object=self.digest, page=number, entries=self.manifest.page(number))

    def frame(self, first: int, count: int) -> Chunks:
        offsets = self.manifest.stored_offsets
        data = self.pack[offsets[first] : offsets[first + count]]
        return Chunks(object=self.digest, first=first, count=count, data=data)


LINES = b"".join(b"line %d of something long\n" % number for number in range(400))
THING = Thing(LINES + random.Random(5).randbytes(4_000))
COUNT = THING.manifest.count
LARGE = Thing(random.Random(6).randbytes(8 * limits.FRAME_BYTES), chunks.chunking_for(1))


def ready_receiver(thing: Thing = THING) -> Receiver:
    """A receiver that has the whole manifest."""
    receiver = Receiver(thing.offer)
    for number in range(thing.offer.pages):
        receiver.add_page(thing.page(number))
    return receiver


def ready_sender(manifest: Manifest = THING.manifest) -> Sender:
    """A sender that has sent the whole manifest."""
    sender = Sender(manifest)
    for number in range(manifest.page_count):
        assert sender.next(0.0) == PageDue(number)
    return sender


def transfer(thing: Thing, sender: Sender, receiver: Receiver, file: bytearray, frames_at_most: int = 10**9) -> int:
    """Let both talk until the object is there or so many frames have come; return how many frames were sent."""
    sent = 0
    while runs := receiver.next_want():
        sender.want(runs)
        while isinstance(run := sender.next(0.0), Run):
            assert sender.frames_sent - sender.frames_acknowledged <= sender.window
            sent += 1
            if sent > frames_at_most:
                return sent
            offset, raw_chunks = receiver.accept(thing.frame(run.first, run.count))
            raw = b"".join(raw_chunks)
            file[offset : offset + len(raw)] = raw
            sender.acknowledge(receiver.frames, 0.0)
    return sent


# --- face to face -------------------------------------------------------------------------------------------------


@given(st.sets(st.integers(0, COUNT - 1)))
@settings(deadline=None)
def test_whatever_the_receiver_has_already_it_gets_exactly_the_rest(have: set[int]) -> None:
    sender, receiver = ready_sender(), ready_receiver()
    offsets, file = THING.manifest.raw_offsets, bytearray(len(THING.data))
    for index in have:
        receiver.have(index)
        file[offsets[index] : offsets[index + 1]] = THING.data[offsets[index] : offsets[index + 1]]
    transfer(THING, sender, receiver, file)
    assert receiver.complete
    assert bytes(file) == THING.data
    assert receiver.done_bytes == len(THING.data)
    assert sender.stored_bytes_sent == sum(THING.manifest[index].stored_size for index in set(range(COUNT)) - have)


@pytest.mark.parametrize("frames_before", [0, 1, 3, 7])
def test_a_transfer_broken_off_and_resumed_sends_again_at_most_one_window(frames_before: int) -> None:
    first_sender, file = ready_sender(LARGE.manifest), bytearray(len(LARGE.data))
    first_receiver = ready_receiver(LARGE)
    transfer(LARGE, first_sender, first_receiver, file, frames_before)
    while first_sender.next(0.0):  # what else the window allows is on the way when the connection breaks
        pass
    second_sender, second_receiver = ready_sender(LARGE.manifest), ready_receiver(LARGE)
    offsets = LARGE.manifest.raw_offsets
    for index in range(LARGE.manifest.count):
        if hashlib.sha256(file[offsets[index] : offsets[index + 1]]).digest() == LARGE.manifest[index].digest:
            second_receiver.have(index)
    transfer(LARGE, second_sender, second_receiver, file)
    assert second_receiver.complete
    assert bytes(file) == LARGE.data
    sent_twice = first_sender.stored_bytes_sent + second_sender.stored_bytes_sent - LARGE.manifest.stored_size
    assert 0 < sent_twice <= first_sender.window * limits.FRAME_BYTES


def test_a_receiver_that_has_everything_wants_nothing_and_is_complete() -> None:
    receiver = ready_receiver()
    for index in range(COUNT):
        assert not receiver.complete
        receiver.have(index)
        receiver.have(index)
    assert receiver.complete
    assert receiver.done_bytes == len(THING.data)
    assert receiver.next_want() == ()


def test_more_runs_than_one_want_may_hold_come_in_several_wants() -> None:
    tiny = Thing(random.Random(7).randbytes(900_000))
    assert tiny.manifest.count > 2 * limits.WANT_RUNS
    sender, receiver = ready_sender(tiny.manifest), ready_receiver(tiny)
    for index in range(0, tiny.manifest.count, 2):
        receiver.have(index)
    wants = 0
    while runs := receiver.next_want():
        assert len(runs) <= limits.WANT_RUNS
        messages.Want(delivery="d-1", runs=runs)
        wants += 1
        sender.want(runs)
        while isinstance(run := sender.next(0.0), Run):
            receiver.accept(tiny.frame(run.first, run.count))
            sender.acknowledge(receiver.frames, 0.0)
    assert receiver.complete
    assert wants == -(-(tiny.manifest.count // 2) // limits.WANT_RUNS)


def test_frames_hold_as_much_as_fits_the_size_they_have_grown_to_and_never_more_than_the_limit() -> None:
    sender = ready_sender(LARGE.manifest)
    sender.want((Run(0, LARGE.manifest.count),))
    sizes, bounds = [], []
    while True:
        bound = sender.frame_bytes
        run = sender.next(0.0)
        if not isinstance(run, Run):
            break
        bounds.append(bound)
        sizes.append(sender.stored_bytes(run))
        sender.acknowledge(sender.frames_sent, 0.0)
    assert bounds[0] == limits.FRAME_FIRST_BYTES
    assert bounds == sorted(bounds)
    assert bounds[4] == limits.FRAME_BYTES
    pairs = list(zip(sizes, bounds, strict=True))
    assert all(bound - limits.CHUNK_MAXIMUM_BYTES < size <= bound for size, bound in pairs[:-1])
    assert sum(sizes) == LARGE.manifest.stored_size


def test_what_is_due_can_be_looked_at_and_is_counted_only_when_it_is_taken() -> None:
    sender = Sender(LARGE.manifest)
    assert sender.peek() == sender.peek() == PageDue(0) == sender.next(0.0)
    sender.want((Run(0, LARGE.manifest.count),))
    seen = sender.peek()
    assert (sender.frames_sent, sender.unacknowledged_since) == (0, None)
    assert sender.next(7.0) == seen
    assert (sender.frames_sent, sender.unacknowledged_since) == (1, 7.0)


def test_a_frame_is_cut_to_the_bytes_it_may_have_or_is_one_chunk() -> None:
    sender = ready_sender(LARGE.manifest)
    sender.want((Run(0, LARGE.manifest.count),))
    assert sender.next(0.0, 1) == Run(0, 1)
    run = sender.next(0.0, 40_000)
    assert isinstance(run, Run) and (run.count == 1 or sender.stored_bytes(run) <= 40_000)


# --- the sender refuses -------------------------------------------------------------------------------------------


def test_a_want_before_the_manifest_was_sent_is_refused() -> None:
    with pytest.raises(ProtocolError):
        Sender(THING.manifest).want((Run(0, 1),))


def test_a_want_before_the_last_one_was_served_is_refused() -> None:
    sender = ready_sender(LARGE.manifest)
    sender.want((Run(0, LARGE.manifest.count),))
    sender.next(0.0)
    with pytest.raises(ProtocolError):
        sender.want((Run(0, 1),))


@pytest.mark.parametrize(
    "runs",
    [
        (Run(COUNT, 1),),
        (Run(0, COUNT + 1),),
        (Run(COUNT - 1, 2),),
        (Run(2, 1), Run(0, 1)),
        (Run(0, 2), Run(1, 1)),
        (Run(3, 1), Run(3, 1)),
    ],
)
def test_runs_out_of_range_or_out_of_order_are_refused_and_nothing_is_sent(runs: tuple[Run, ...]) -> None:
    sender = ready_sender()
    with pytest.raises(ProtocolError) as caught:
        sender.want(runs)
    assert caught.value.code == "out-of-range"
    assert sender.next(0.0) is None


def test_acknowledging_more_than_was_sent_or_less_than_before_is_refused() -> None:
    sender = ready_sender(LARGE.manifest)
    sender.want((Run(0, LARGE.manifest.count),))
    sender.next(0.0)
    with pytest.raises(ProtocolError):
        sender.acknowledge(2, 0.0)
    sender.acknowledge(1, 0.0)
    sender.acknowledge(1, 0.0)
    with pytest.raises(ProtocolError):
        sender.acknowledge(0, 0.0)


# --- the receiver refuses -----------------------------------------------------------------------------------------


@given(st.integers(0, COUNT), st.integers(1, COUNT + 1))
def test_only_the_chunks_due_next_are_taken(first: int, count: int) -> None:
    receiver = ready_receiver()
    receiver.have(4)
    assert receiver.next_want()[0] == Run(0, 4)
    due = first == 0 and count <= 4
    frame = THING.frame(first, min(count, COUNT - first)) if first < COUNT else THING.frame(0, 1)
    frame = structs.replace(frame, first=first, count=count)
    if due:
        assert receiver.accept(frame)[0] == 0
        return
    with pytest.raises(TransferError):
        receiver.accept(frame)
    assert receiver.frames == 0


def test_a_frame_that_comes_twice_or_unasked_is_refused() -> None:
    receiver = ready_receiver()
    with pytest.raises(TransferError):
        receiver.accept(THING.frame(0, 1))
    receiver = ready_receiver()
    receiver.next_want()
    receiver.accept(THING.frame(0, 1))
    with pytest.raises(TransferError):
        receiver.accept(THING.frame(0, 1))
    assert receiver.done_bytes == THING.manifest[0].raw_size


@pytest.mark.parametrize("change", ["shorter", "longer", "flipped"])
def test_a_frame_with_wrong_bytes_is_refused_and_counts_for_nothing(change: str) -> None:
    receiver = ready_receiver()
    receiver.next_want()
    frame = THING.frame(0, 3)
    data = {"shorter": frame.data[:-1], "longer": frame.data + b"x", "flipped": frame.data[:-1] + b"\xff"}[change]
    assert data != frame.data
    with pytest.raises(TransferError):
        receiver.accept(structs.replace(frame, data=data))
    assert (receiver.frames, receiver.done_bytes) == (0, 0)


def test_a_manifest_that_is_not_the_one_offered_is_refused() -> None:
    receiver = Receiver(THING.offer)
    entries = THING.manifest.page(0)
    with pytest.raises(TransferError) as caught:
        receiver.add_page(ManifestPage(object=THING.digest, page=0, entries=entries[:-1] + b"\xff"))
    assert caught.value.code in {"wrong-digest", "bad-transfer"}


@pytest.mark.parametrize("field", ["chunks", "size", "stored_size"])
def test_an_offer_whose_totals_are_not_its_manifests_is_refused(field: str) -> None:
    receiver = Receiver(structs.replace(THING.offer, **{field: getattr(THING.offer, field) + 1}))
    with pytest.raises(TransferError):
        receiver.add_page(THING.page(0))


def test_an_offer_with_the_wrong_number_of_pages_is_refused() -> None:
    with pytest.raises(TransferError):
        Receiver(structs.replace(THING.offer, pages=2))


def manifest_of_pages(pages: int) -> Manifest:
    return Manifest.of([Entry(bytes(32), 1, 1)] * ((pages - 1) * limits.MANIFEST_PAGE_ENTRIES + 1))


@pytest.mark.parametrize("order", [(1,), (0, 0), (0, 2), (0, 1, 2, 3), (0, 1, 2, 0)])
def test_pages_out_of_order_twice_or_too_many_are_refused(order: tuple[int, ...]) -> None:
    manifest = manifest_of_pages(3)
    offer = structs.replace(
        THING.offer,
        chunks=manifest.count,
        pages=3,
        size=manifest.size,
        stored_size=manifest.stored_size,
        manifest=manifest.digest,
    )
    receiver = Receiver(offer)
    for number in order[:-1]:
        receiver.add_page(ManifestPage(object=THING.digest, page=number, entries=manifest.page(number)))
    with pytest.raises(TransferError):
        receiver.add_page(ManifestPage(object=THING.digest, page=order[-1], entries=manifest.page(order[-1])))


def test_nothing_is_wanted_or_complete_before_the_manifest_came() -> None:
    receiver = Receiver(THING.offer)
    assert receiver.next_want() == ()
    assert not receiver.complete
    with pytest.raises(TransferError):
        _ = receiver.manifest


# --- the window ---------------------------------------------------------------------------------------------------


def windows_over_a_link(seconds_per_frame: float, round_trip_seconds: float, frames: int = 120) -> list[int]:
    """The windows of a sender over a link that carries one frame after the other at a fixed rate."""
    full = Entry(bytes(32), limits.FRAME_BYTES, limits.FRAME_BYTES)
    sender = ready_sender(Manifest.of([full] * frames))
    sender.want((Run(0, frames),))
    now, link_free_at = 0.0, 0.0
    arrivals: list[float] = []
    windows = []
    while sender.frames_acknowledged < frames:
        while sender.next(now) is not None:
            assert sender.frames_sent - sender.frames_acknowledged <= sender.window
            link_free_at = max(now, link_free_at) + seconds_per_frame
            arrivals.append(link_free_at + round_trip_seconds)
        now = arrivals[sender.frames_acknowledged]
        sender.acknowledge(sender.frames_acknowledged + 1, now)
        windows.append(sender.window)
    return windows


def test_the_window_grows_to_its_largest_on_a_fast_link() -> None:
    windows = windows_over_a_link(0.01, 0.05)
    assert windows[:3] == [3, 4, 5]
    assert windows[-1] == max(windows) == limits.WINDOW_LARGEST_FRAMES


def test_the_window_stays_at_its_first_size_on_a_slow_link() -> None:
    assert set(windows_over_a_link(2.1, 0.05)[2:]) == {limits.WINDOW_FIRST_FRAMES}


@given(st.floats(0.001, 20.0), st.floats(0.0, 5.0))
@settings(max_examples=60, deadline=None)
def test_the_window_keeps_its_bounds_on_any_link(seconds_per_frame: float, round_trip_seconds: float) -> None:
    windows = windows_over_a_link(seconds_per_frame, round_trip_seconds, frames=60)
    assert min(windows) >= limits.WINDOW_FIRST_FRAMES
    assert max(windows) <= limits.WINDOW_LARGEST_FRAMES


def frames_over_a_link(
    bytes_per_second: float, round_trip_seconds: float, *, megabytes: int = 16
) -> tuple[list[float], float]:
    """What each frame took on the link, in seconds, and how long the link was used, as a share of all the time.

    The object has chunks of 4 KiB; the link carries one frame after the other, and an acknowledgement comes back a
    round trip after its frame.
    """
    small = Entry(bytes(32), 4 * limits.KIB, 4 * limits.KIB)
    count = megabytes * 256
    sender = ready_sender(Manifest.of([small] * count))
    sender.want((Run(0, count),))
    now, link_free_at, used = 0.0, 0.0, 0.0
    arrivals: list[float] = []
    link_seconds = []
    while sender.stored_bytes_sent < sender.manifest.stored_size or sender.unacknowledged_since is not None:
        while isinstance(run := sender.next(now), Run):
            link_seconds.append(sender.stored_bytes(run) / bytes_per_second)
            used += link_seconds[-1]
            link_free_at = max(now, link_free_at) + link_seconds[-1]
            arrivals.append(link_free_at + round_trip_seconds)
        now = arrivals[sender.frames_acknowledged]
        sender.acknowledge(sender.frames_acknowledged + 1, now)
    return link_seconds, used / now


@pytest.mark.parametrize("bytes_per_second", [20_000, 125_000, 400_000])
def test_frames_for_a_slow_link_take_it_at_most_a_quarter_of_a_second_and_fill_it(bytes_per_second: int) -> None:
    link_seconds, used = frames_over_a_link(bytes_per_second, 0.05, megabytes=4)
    first = limits.FRAME_FIRST_BYTES / bytes_per_second
    assert max(link_seconds) <= max(first, limits.FRAME_SECONDS)
    assert max(link_seconds[16:]) <= limits.FRAME_SECONDS
    assert used > 0.97


@pytest.mark.parametrize("round_trip_seconds", [0.0005, 0.02, 0.3])
def test_frames_for_a_fast_link_grow_to_the_largest_after_a_few(round_trip_seconds: float) -> None:
    link_seconds, _ = frames_over_a_link(125_000_000, round_trip_seconds, megabytes=64)
    largest = limits.FRAME_BYTES / 125_000_000
    assert largest in link_seconds[:16]
    assert link_seconds[16:].count(largest) > 0.8 * len(link_seconds[16:])


@given(st.floats(2_000, 1e9), st.floats(0.0, 3.0))
@settings(max_examples=40, deadline=None)
def test_the_size_of_frames_keeps_its_bounds_on_any_link(bytes_per_second: float, round_trip_seconds: float) -> None:
    link_seconds, _ = frames_over_a_link(bytes_per_second, round_trip_seconds, megabytes=1)
    sizes = [seconds * bytes_per_second for seconds in link_seconds]
    assert min(sizes[:-1]) >= limits.FRAME_SMALLEST_BYTES - 1
    assert max(sizes) <= limits.FRAME_BYTES + 1


def test_an_acknowledgement_exactly_at_the_limit_shrinks_and_one_just_below_grows() -> None:
    full = Entry(bytes(32), limits.FRAME_BYTES, limits.FRAME_BYTES)
    sender = ready_sender(Manifest.of([full] * 4))
    sender.want((Run(0, 4),))
    sender.next(0.0)
    sender.next(0.0)
    sender.acknowledge(1, limits.WINDOW_GROWS_BELOW_SECONDS - 0.001)
    assert sender.window == limits.WINDOW_FIRST_FRAMES + 1
    sender.acknowledge(2, limits.WINDOW_GROWS_BELOW_SECONDS)
    assert sender.window == limits.WINDOW_FIRST_FRAMES
