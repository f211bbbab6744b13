"""Fuzzing the codec: whatever bytes come, `decode` and its kin return what is valid or raise what they say.

The first byte of an input chooses what is fed with the rest: a message, one before login, a posture report, a stored
chunk, a manifest, or the steps of a transfer towards a Receiver. `fuzz_target.py` runs it, `make fuzz` many times.
"""

import hashlib
import json
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgpack

from protocol import chunks, codec, limits, messages
from protocol.errors import ProtocolError, TransferError
from protocol.transfer import PageDue, Receiver, Sender

VECTORS: Final = Path(__file__).parents[2] / "docs" / "protocol-vectors.json"
MODULES: Final = ("protocol.codec", "protocol.chunks", "protocol.transfer", "protocol.messages")
REPORT: Final = messages.PostureReport(
    rules=bytes(32), nonce=bytes(32), engine="yara-x", began_at=1.0, seconds=2.0, programs=3, files=4, bytes=5,
    findings=(messages.FindingRow(program="hello", file="a", rule="EICAR"),), findings_in_all=1,
)  # fmt: skip
PACKED: Final = [
    chunks.pack_chunk(bytes([number]) * 100 + hashlib.sha256(bytes([number])).digest()) for number in range(5)
]
MANIFEST: Final = chunks.Manifest.of(entry for entry, _ in PACKED)
OBJECT: Final = bytes(32)
OFFER: Final = messages.Rules(
    object=OBJECT, size=MANIFEST.size, chunks=MANIFEST.count, stored_size=MANIFEST.stored_size, pages=1,
    manifest=MANIFEST.digest, chunking=chunks.chunking_for(MANIFEST.size), delivery="rules-1",
)  # fmt: skip
PAGE: Final = messages.ManifestPage(object=OBJECT, page=0, entries=MANIFEST.data)
FRAMES: Final = tuple(
    messages.Chunks(object=OBJECT, first=index, count=1, data=stored) for index, (_, stored) in enumerate(PACKED)
)
STEPS: Final = (
    PAGE,
    *FRAMES,
    messages.Chunks(object=OBJECT, first=0, count=5, data=b"".join(one for _, one in PACKED)),
)
ENTRY: Final = struct.Struct(">32sII")


def prepare() -> None:
    """Nothing has to be made ready before this is run many times."""


# --- what is fed --------------------------------------------------------------------------------------------------


def feed_message(data: bytes) -> None:
    """A message that is taken can be said again, and is the same then."""
    message = codec.decode(data)
    # The texts of both, since a NaN would not be equal to itself.
    assert repr(codec.decode(codec.encode(message))) == repr(message)


def feed_early(data: bytes) -> None:
    """Before login nothing longer than its limit is looked at."""
    codec.decode(data, limit_bytes=limits.MESSAGE_BEFORE_LOGIN_BYTES)
    assert len(data) <= limits.MESSAGE_BEFORE_LOGIN_BYTES


def feed_report(data: bytes) -> None:
    """A posture report that is taken can be written again."""
    report = codec.decode_report(data)
    assert repr(codec.decode_report(codec.encode_report(report))) == repr(report)


def feed_chunk(data: bytes) -> None:
    """A chunk is what its manifest entry says: the first bytes are the entry, the rest is what was stored."""
    entry = chunks.Manifest(data[: limits.MANIFEST_ENTRY_BYTES])[0]
    raw = chunks.restore(data[limits.MANIFEST_ENTRY_BYTES :], entry)
    assert (len(raw), hashlib.sha256(raw).digest()) == (entry.raw_size, entry.digest)


def feed_manifest(data: bytes) -> None:
    """A manifest that is taken has right sums, and a Sender serves all of it, each chunk once and in frames."""
    manifest = chunks.Manifest(data)
    assert manifest.size == sum(manifest[index].raw_size for index in range(manifest.count))
    assert b"".join(manifest.page(page) for page in range(manifest.page_count)) == data
    sender, served = Sender(manifest), 0
    while isinstance(sender.peek(), PageDue):
        sender.next(0.0)
    sender.want((messages.Run(0, manifest.count),))
    while isinstance(due := sender.next(0.0), messages.Run):
        assert due.first == served and 0 < sender.stored_bytes(due) <= limits.FRAME_BYTES
        served += due.count
        sender.acknowledge(sender.frames_sent, 0.0)
    assert served == manifest.count


def feed_transfer(data: bytes) -> None:
    """Pages and frames in any order, each a byte that names a real one or a length and a message's bytes."""
    receiver = Receiver(OFFER)
    at = 0
    while at < len(data):
        step, at = data[at], at + 1
        if step < len(STEPS):
            message: messages.AnyMessage | messages.Message = STEPS[step]
        else:
            message, at = codec.decode(data[at : at + step]), at + step
        if isinstance(message, messages.ManifestPage):
            receiver.add_page(message)
        elif isinstance(message, messages.Chunks):
            receiver.accept(message)
        receiver.next_want()
        assert receiver.done_bytes <= OFFER.size
        assert receiver.complete == (receiver.done_bytes == OFFER.size)


FEEDS: Final[tuple[Callable[[bytes], None], ...]] = (
    feed_message, feed_message, feed_message, feed_early, feed_report, feed_chunk, feed_manifest, feed_transfer,
)  # fmt: skip


def feed(data: bytes) -> None:
    """Run one input. Anything but the two errors bad bytes may raise is a crash."""
    try:
        FEEDS[data[0] % len(FEEDS) if data else 0](data[1:])
    except (ProtocolError, TransferError) as error:
        assert error.code and error.message, "an error says what is wrong"
        assert len(error.message) < 4_096, "an error does not repeat what was sent"


# --- where it begins ----------------------------------------------------------------------------------------------


def seeds() -> list[bytes]:
    """Every message of the test vectors, good and refused, and one right input of each other feed."""
    vectors = json.loads(VECTORS.read_text(encoding="utf-8"))
    said = [bytes.fromhex(one["hex"]) for one in (*vectors["messages"], *vectors["refused"])]
    chunk = [ENTRY.pack(entry.digest, entry.raw_size, entry.stored_size) + stored for entry, stored in PACKED]
    transfers = [
        bytes(range(6)),
        bytes([0, 6]),
        b"\0" + bytes([len(codec.encode(FRAMES[0]))]) + codec.encode(FRAMES[0]),
    ]
    others = {4: [codec.encode_report(REPORT)], 5: chunk, 6: [MANIFEST.data, chunk[0][:40] * 3], 7: transfers}
    return [b"\0" + data for data in said] + [
        bytes([number]) + data for number, inputs in others.items() for data in inputs
    ]


# --- how an input is changed --------------------------------------------------------------------------------------

VALUES: Final[tuple[Any, ...]] = (
    None, True, 0, 1, -1, 255, 2**31, 2**32 - 1, 2**53, 2**53 + 1, 2**63, 2**64 - 1, 0.5, -1.0, float("nan"),
    float("inf"), "", "x", "\0", "é" * 64, "x" * 65, "x" * 129, "x" * 1_025, "x" * 4_097, "state", "offer", "hello",
    b"", b"x", bytes(16), bytes(32), bytes(64), bytes(4_097), [], [[]], [0], [0, 1], [[0, 1], [2, 1]], ["x"] * 17,
    [None] * 5_000, {}, {"x": 1}, {"kind": "hello"}, {"": {"": {"": {"": {"": {"": {"": {"": {}}}}}}}}},
    msgpack.ExtType(1, b"x"), msgpack.Timestamp(1),
)  # fmt: skip


def mutate_with(mutate_bytes: Callable[[bytes, int], bytes]) -> Callable[[bytes, int, int], bytes]:
    """Return a mutator: half of the time it changes bytes, half of the time a field of the message in the input."""

    def mutate(data: bytes, longest: int, seed: int) -> bytes:
        chance = random.Random(seed)
        if len(data) > 1 and chance.random() < 0.5:
            changed = changed_field(data[1:], chance)
            if changed is not None and len(changed) < longest:
                return data[:1] + changed
        return mutate_bytes(data, longest)

    return mutate


def changed_field(data: bytes, chance: random.Random) -> bytes | None:
    """Return the message with one field, however deep, replaced, dropped or added; None where there is no message."""
    try:
        fields = msgpack.unpackb(data, raw=False, strict_map_key=False)
        place = fields
        while isinstance(place, dict | list) and place:
            key = chance.choice(list(place) if isinstance(place, dict) else range(len(place)))
            if not isinstance(place[key], dict | list) or chance.random() < 0.5:
                change(place, key, chance)
                break
            place = place[key]
        changed: bytes = msgpack.packb(fields)
    except (ValueError, TypeError, OverflowError, RecursionError):
        return None
    return changed


def change(place: Any, key: Any, chance: random.Random) -> None:
    """Replace, drop or add one entry of a map or a list."""
    how = chance.random()
    if how < 0.7:
        place[key] = chance.choice(VALUES)
    elif how < 0.85:
        del place[key]
    elif isinstance(place, dict):
        place[chance.choice(("kind", "id", "re", "x"))] = chance.choice(VALUES)
    else:
        place.append(chance.choice(VALUES))
