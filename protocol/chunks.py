"""Chunks: cutting an object by its content, digests, LZ4, manifests and packs.

An object is cut with FastCDC (Xia et al., "The Design of Fast Content-Defined Chunking for Data Deduplication Based
Storage Systems", IEEE TPDS 2020; normalised chunking level 1, the gear table and masks of pyfastcdc 0.3.1). Each chunk
is compressed as one LZ4 block (lz4/doc/lz4_Block_format.md, no size prefix) and kept raw where that does not make it
smaller: stored size equal to raw size means raw. The stored chunks, end to end, are the pack.

A manifest is 40 bytes a chunk: 32 bytes SHA-256 of the raw chunk, 4 bytes raw size, 4 bytes stored size, big-endian.
"""

import hashlib
import struct
from collections.abc import Iterable, Iterator
from itertools import accumulate
from typing import BinaryIO, Final

import lz4.block
from msgspec import Struct
from pyfastcdc import FastCDC

from protocol import limits
from protocol.errors import TransferError
from protocol.messages import Chunking

ALGORITHM: Final = "fastcdc-nc1"
_ENTRY: Final = struct.Struct(">32sII")
assert _ENTRY.size == limits.MANIFEST_ENTRY_BYTES


def chunking_for(size: int) -> Chunking:
    """Return how an object of `size` bytes is cut: small chunks up to 128 MiB, then doubling, at most twice."""
    doublings = 0
    while doublings < limits.CHUNK_SIZE_DOUBLINGS and size > limits.SMALL_OBJECT_BYTES << doublings:
        doublings += 1
    return Chunking(
        algorithm=ALGORITHM,
        minimum=limits.CHUNK_MINIMUM_BYTES << doublings,
        average=limits.CHUNK_AVERAGE_BYTES << doublings,
        maximum=limits.CHUNK_MAXIMUM_BYTES << doublings,
    )


def cut(stream: BinaryIO, chunking: Chunking) -> Iterator[bytes]:
    """Yield the chunks of `stream` in order. Raises TransferError for an algorithm or sizes this side cannot cut by."""
    if chunking.algorithm != ALGORITHM:
        raise TransferError(f"Unknown chunking algorithm {chunking.algorithm!r}; this side knows {ALGORITHM!r}.")
    sizes = (chunking.minimum, chunking.average, chunking.maximum)
    if chunking.maximum > limits.FRAME_BYTES:
        raise TransferError(f"Chunk sizes {sizes} are wrong: one chunk must fit a frame of {limits.FRAME_BYTES} bytes.")
    try:
        cutter = FastCDC(chunking.average, min_size=chunking.minimum, max_size=chunking.maximum)
    except ValueError as error:  # an offer's sizes are the peer's word
        raise TransferError(f"Chunk sizes {sizes} are wrong: {error}.") from None
    for chunk in cutter.cut_stream(stream):
        yield bytes(chunk.data)


def compress(raw: bytes) -> bytes:
    """Return the stored form of a chunk: an LZ4 block, or the chunk itself where that is not smaller."""
    block: bytes = lz4.block.compress(raw, store_size=False)
    return block if len(block) < len(raw) else raw


class Entry(Struct, frozen=True):
    """One chunk of a manifest: SHA-256 of the raw bytes, raw and stored size in bytes."""

    digest: bytes
    raw_size: int
    stored_size: int


def restore(stored: bytes | memoryview, entry: Entry) -> bytes:
    """Return the raw chunk of its stored form, checked against its manifest entry. Raises TransferError."""
    if len(stored) != entry.stored_size:
        raise TransferError(f"A chunk has {len(stored)} stored bytes, its manifest says {entry.stored_size}.")
    if entry.stored_size == entry.raw_size:
        raw = bytes(stored)
    else:
        try:
            raw = lz4.block.decompress(stored, uncompressed_size=entry.raw_size)
        except (lz4.block.LZ4BlockError, ValueError) as error:
            raise TransferError(f"A chunk is not a valid LZ4 block: {error}.") from None
    if len(raw) != entry.raw_size or hashlib.sha256(raw).digest() != entry.digest:
        raise TransferError("A chunk does not have the digest its manifest says.", code="wrong-digest")
    return raw


class Manifest:
    """The chunks of one object, in order. Raises TransferError where sizes are impossible.

    `size` and `stored_size` are the bytes of the whole object and of its pack; `raw_offsets` and `stored_offsets` have
    one more element than there are chunks, the last being the total.
    """

    def __init__(self, data: bytes) -> None:
        if not data or len(data) % limits.MANIFEST_ENTRY_BYTES:
            raise TransferError(f"A manifest of {len(data)} bytes is not a whole number of 40-byte entries.")
        self.data = data
        self.count = len(data) // limits.MANIFEST_ENTRY_BYTES
        if self.count > limits.MANIFEST_ENTRIES:
            raise TransferError(f"A manifest of {self.count} chunks is over the limit of {limits.MANIFEST_ENTRIES}.")
        raw_sizes: list[int] = []
        stored_sizes: list[int] = []
        for _, raw_size, stored_size in _ENTRY.iter_unpack(data):
            if not 0 < stored_size <= raw_size <= limits.FRAME_BYTES:
                raise TransferError(f"A manifest entry has impossible sizes: {raw_size} raw, {stored_size} stored.")
            raw_sizes.append(raw_size)
            stored_sizes.append(stored_size)
        self.raw_offsets = list(accumulate(raw_sizes, initial=0))
        self.stored_offsets = list(accumulate(stored_sizes, initial=0))

    @classmethod
    def of(cls, entries: Iterable[Entry]) -> "Manifest":
        """Build a manifest from its entries."""
        return cls(b"".join(_ENTRY.pack(entry.digest, entry.raw_size, entry.stored_size) for entry in entries))

    def __getitem__(self, index: int) -> Entry:
        return Entry(*_ENTRY.unpack_from(self.data, index * limits.MANIFEST_ENTRY_BYTES))

    @property
    def size(self) -> int:
        """Bytes of the whole object."""
        return self.raw_offsets[-1]

    @property
    def stored_size(self) -> int:
        """Bytes of the pack."""
        return self.stored_offsets[-1]

    @property
    def digest(self) -> bytes:
        """SHA-256 of the manifest's bytes."""
        return hashlib.sha256(self.data).digest()

    @property
    def page_count(self) -> int:
        """How many pages the manifest is sent in."""
        return -(-self.count // limits.MANIFEST_PAGE_ENTRIES)

    def page(self, index: int) -> bytes:
        """Return page `index`, the last one shorter."""
        page_bytes = limits.MANIFEST_PAGE_ENTRIES * limits.MANIFEST_ENTRY_BYTES
        return self.data[index * page_bytes : (index + 1) * page_bytes]


def pack_chunk(raw: bytes) -> tuple[Entry, bytes]:
    """Return a chunk's manifest entry and its stored bytes."""
    stored = compress(raw)
    return Entry(hashlib.sha256(raw).digest(), len(raw), len(stored)), stored


def pack(stream: BinaryIO, chunking: Chunking) -> Iterator[tuple[Entry, bytes]]:
    """Cut `stream` and yield each chunk's manifest entry and its stored bytes, in order."""
    return map(pack_chunk, cut(stream, chunking))
