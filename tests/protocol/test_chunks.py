"""Chunks: any bytes come back whole, cuts are those of the document, and what does not verify is refused."""

import hashlib
import io
import random
import struct

import lz4.block
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol import chunks, limits
from protocol.chunks import Entry, Manifest
from protocol.errors import TransferError
from protocol.messages import Chunking

SMALL = Chunking(algorithm=chunks.ALGORITHM, minimum=64, average=256, maximum=1024)
MASKS = {8: 0x1800035300, 7: 0x18035100, 9: 0x19000353000}  # twice and half of the average of SMALL are 9 and 7
GEAR = [
    int.from_bytes(hashlib.md5(bytes([value]) * 64, usedforsecurity=False).digest()[:8], "big") for value in range(256)
]


def document_cut(data: bytes, chunking: Chunking, mask_s: int, mask_l: int) -> int:
    """The length of the first chunk, as docs/protocol.md tells it."""
    n, centre = len(data), chunking.average
    if n <= chunking.minimum:
        return n
    if n > chunking.maximum:
        n = chunking.maximum
    elif n < centre:
        centre = n
    value = 0
    for position in range(chunking.minimum // 2 * 2, n // 2 * 2, 2):
        mask = mask_s if position < centre // 2 * 2 else mask_l
        value = ((value << 2) + (GEAR[data[position]] << 1)) % 2**64
        if not value & (mask << 1):
            return position
        value = (value + GEAR[data[position + 1]]) % 2**64
        if not value & mask:
            return position + 1
    return n


def document_sizes(data: bytes, chunking: Chunking, mask_s: int, mask_l: int) -> list[int]:
    sizes = []
    while data:
        sizes.append(document_cut(data, chunking, mask_s, mask_l))
        data = data[sizes[-1] :]
    return sizes


def sizes_of(data: bytes, chunking: Chunking) -> list[int]:
    return [len(chunk) for chunk in chunks.cut(io.BytesIO(data), chunking)]


def entry_of(raw: bytes) -> tuple[Entry, bytes]:
    stored = chunks.compress(raw)
    return Entry(hashlib.sha256(raw).digest(), len(raw), len(stored)), stored


COMPRESSIBLE = b"the same words again and again " * 40
NOISE = random.Random(1).randbytes(2_000)


# --- cutting ------------------------------------------------------------------------------------------------------


@given(st.integers(0, 6_000), st.integers(0, 2**32), st.booleans())
@settings(max_examples=150, deadline=None)
def test_cuts_are_those_the_document_describes(size: int, seed: int, few_values: bool) -> None:
    generator = random.Random(seed)
    data = bytes(generator.choices(b"ab", k=size)) if few_values else generator.randbytes(size)
    assert sizes_of(data, SMALL) == document_sizes(data, SMALL, MASKS[9], MASKS[7])


@pytest.mark.parametrize(
    ("size", "mask_s", "mask_l"),
    [
        (limits.SMALL_OBJECT_BYTES, 0x0000D90F03530000, 0x0000D90303530000),
        (limits.SMALL_OBJECT_BYTES + 1, 0x0000D90303537000, 0x0000D90313530000),
        (limits.SMALL_OBJECT_BYTES * 2 + 1, 0x0000D90703537000, 0x0000D90F03530000),
        (limits.OBJECT_BYTES, 0x0000D90703537000, 0x0000D90F03530000),
    ],
)
def test_the_masks_of_the_document_are_those_of_each_object_size(size: int, mask_s: int, mask_l: int) -> None:
    chunking = chunks.chunking_for(size)
    data = random.Random(2).randbytes(400_000)
    assert sizes_of(data, chunking) == document_sizes(data, chunking, mask_s, mask_l)


@given(st.binary(max_size=5_000))
@settings(deadline=None)
def test_any_bytes_are_packed_and_restored(data: bytes) -> None:
    pairs = list(chunks.pack(io.BytesIO(data), SMALL))
    assert b"".join(chunks.restore(stored, entry) for entry, stored in pairs) == data
    for entry, _ in pairs[:-1]:
        assert SMALL.minimum <= entry.raw_size <= SMALL.maximum


def test_cutting_twice_gives_the_same_and_a_change_early_leaves_later_cuts_alone() -> None:
    data = random.Random(3).randbytes(60_000)
    first = list(chunks.cut(io.BytesIO(data), SMALL))
    assert first == list(chunks.cut(io.BytesIO(data), SMALL))
    later = list(chunks.cut(io.BytesIO(b"new words at the beginning" + data), SMALL))
    assert len(set(first) & set(later)) > len(first) * 0.95


class Dribble(io.BytesIO):
    """A stream that gives a few bytes at a time."""

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        return super().readinto(memoryview(buffer)[:7])


def test_how_a_stream_is_read_does_not_move_the_cuts() -> None:
    data = random.Random(4).randbytes(20_000)
    assert [len(chunk) for chunk in chunks.cut(Dribble(data), SMALL)] == sizes_of(data, SMALL)


def test_chunk_sizes_double_with_the_object_at_most_twice() -> None:
    small = limits.SMALL_OBJECT_BYTES
    averages = [chunks.chunking_for(size).average for size in (1, small, small + 1, small * 2, small * 2 + 1, 2**40)]
    assert [average // limits.CHUNK_AVERAGE_BYTES for average in averages] == [1, 1, 2, 2, 4, 4]


@pytest.mark.parametrize(
    ("algorithm", "minimum", "average", "maximum"),
    [
        ("rabin", 64, 256, 1024),
        (chunks.ALGORITHM, 0, 0, 0),
        (chunks.ALGORITHM, 63, 256, 1024),
        (chunks.ALGORITHM, 512, 256, 1024),
        (chunks.ALGORITHM, 64, 2048, 1024),
        (chunks.ALGORITHM, 64, 256, limits.FRAME_BYTES + 1),
        (chunks.ALGORITHM, 2**53, 2**53, 2**53),
    ],
)
def test_a_peers_impossible_chunking_is_refused(algorithm: str, minimum: int, average: int, maximum: int) -> None:
    chunking = Chunking(algorithm=algorithm, minimum=minimum, average=average, maximum=maximum)
    with pytest.raises(TransferError):
        list(chunks.cut(io.BytesIO(NOISE), chunking))


# --- chunks -------------------------------------------------------------------------------------------------------


def test_what_does_not_get_smaller_is_kept_raw() -> None:
    assert chunks.compress(NOISE) == NOISE
    assert len(chunks.compress(COMPRESSIBLE)) < len(COMPRESSIBLE)


@pytest.mark.parametrize("raw", [COMPRESSIBLE, NOISE], ids=["compressed", "raw"])
def test_a_chunk_with_any_one_thing_wrong_is_refused(raw: bytes) -> None:
    entry, stored = entry_of(raw)
    assert chunks.restore(stored, entry) == raw
    damaged = bytes([stored[0] ^ 1]) + stored[1:]
    wrong = [
        (stored[:-1], entry),
        (stored + b"x", entry),
        (b"", entry),
        (damaged, entry),
        (stored, Entry(bytes(32), entry.raw_size, entry.stored_size)),
        (stored, Entry(entry.digest, entry.raw_size + 1, entry.stored_size)),
        (stored, Entry(entry.digest, entry.raw_size - 1, entry.stored_size)),
    ]
    for data, said in wrong:
        with pytest.raises(TransferError):
            chunks.restore(data, said)


def test_a_right_chunk_of_other_content_has_the_wrong_digest() -> None:
    entry, _ = entry_of(NOISE)
    with pytest.raises(TransferError) as caught:
        chunks.restore(bytes(reversed(NOISE)), entry)
    assert caught.value.code == "wrong-digest"


@given(st.binary(min_size=1, max_size=300), st.integers(1, limits.FRAME_BYTES))
@settings(max_examples=200, deadline=None)
def test_any_bytes_as_a_block_raise_nothing_but_transfer_errors(block: bytes, raw_size: int) -> None:
    with pytest.raises(TransferError):
        chunks.restore(block, Entry(bytes(32), raw_size, len(block)))


def test_a_block_that_unpacks_to_more_than_its_manifest_says_is_refused() -> None:
    bomb = lz4.block.compress(bytes(10_000_000), store_size=False)[:60_000]
    with pytest.raises(TransferError):
        chunks.restore(bomb, Entry(bytes(32), 65_536, len(bomb)))


# --- manifests ----------------------------------------------------------------------------------------------------


def raw_entry(raw_size: int, stored_size: int) -> bytes:
    return struct.pack(">32sII", bytes(32), raw_size, stored_size)


@pytest.mark.parametrize(
    ("raw_size", "stored_size"),
    [(0, 0), (10, 0), (0, 10), (10, 11), (limits.FRAME_BYTES + 1, 1), (2**32 - 1, 2**32 - 1)],
)
def test_a_manifest_with_impossible_sizes_is_refused(raw_size: int, stored_size: int) -> None:
    with pytest.raises(TransferError):
        Manifest(raw_entry(10, 5) + raw_entry(raw_size, stored_size))


def test_a_manifest_with_the_largest_chunk_is_taken() -> None:
    assert Manifest(raw_entry(limits.FRAME_BYTES, limits.FRAME_BYTES)).size == limits.FRAME_BYTES


@pytest.mark.parametrize("length", [0, 1, 39, 41, 79])
def test_a_manifest_that_is_not_whole_entries_is_refused(length: int) -> None:
    with pytest.raises(TransferError):
        Manifest((raw_entry(1, 1) * 2)[:length])


def test_a_manifest_is_taken_at_its_limit_and_refused_past_it() -> None:
    data = raw_entry(1, 1) * limits.MANIFEST_ENTRIES
    assert Manifest(data).count == limits.MANIFEST_ENTRIES
    with pytest.raises(TransferError):
        Manifest(data + raw_entry(1, 1))


@pytest.mark.parametrize("count", [1, 4_095, 4_096, 4_097, 8_192])
def test_the_pages_of_a_manifest_join_to_it(count: int) -> None:
    manifest = Manifest(b"".join(raw_entry(index % 100 + 1, 1) for index in range(count)))
    pages = [manifest.page(index) for index in range(manifest.page_count)]
    assert b"".join(pages) == manifest.data
    assert all(pages)
    assert {len(page) for page in pages[:-1]} <= {limits.MANIFEST_PAGE_ENTRIES * limits.MANIFEST_ENTRY_BYTES}


@given(st.lists(st.tuples(st.integers(1, 1_000), st.integers(0, 999)), min_size=1, max_size=30))
def test_a_manifest_keeps_its_entries_and_their_places(sizes: list[tuple[int, int]]) -> None:
    entries = [Entry(bytes(32), raw, max(1, raw - less)) for raw, less in sizes]
    manifest = Manifest.of(entries)
    assert [manifest[index] for index in range(manifest.count)] == entries
    assert manifest.size == sum(entry.raw_size for entry in entries)
    assert manifest.stored_offsets[1] == entries[0].stored_size
    assert manifest.stored_size == sum(entry.stored_size for entry in entries)
