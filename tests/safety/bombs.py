"""Bombs: bytes that are small to send and were meant to be large to take, and how they are poured into a socket."""

import itertools
import select
import socket
import time
from collections.abc import Callable, Iterator
from typing import Final

import lz4.block
import msgpack
from msgspec import Struct

from protocol import codec, limits, messages

CONTINUED, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
POUR_SECONDS: Final = 30.0


def frame(payload: bytes, opcode: int = BINARY, *, last: bool = True) -> bytes:
    """A WebSocket frame as a client sends it (RFC 6455 section 5.2), masked with zeros."""
    first = opcode | (0x80 if last else 0)
    size = len(payload)
    if size < 126:
        head = bytes([first, 0x80 | size])
    elif size < 65_536:
        head = bytes([first, 0x80 | 126]) + size.to_bytes(2, "big")
    else:
        head = bytes([first, 0x80 | 127]) + size.to_bytes(8, "big")
    return head + bytes(4) + payload


HEAD: Final[bytes] = b"\x83" + msgpack.packb("kind") + msgpack.packb("history") + msgpack.packb("id") + b"\x01\xa1x"


def filled(item: bytes, inner: int = limits.LIST_ITEMS) -> bytes:
    """A message whose unknown field has lists of lists of `item`, as many as fit 512 KiB."""
    one = b"\xdc" + inner.to_bytes(2, "big") + item * inner
    count = min((limits.MESSAGE_BYTES - len(HEAD) - 3) // len(one), limits.LIST_ITEMS)
    return HEAD + b"\xdc" + count.to_bytes(2, "big") + one * count


def never_closed(item: bytes) -> bytes:
    """Lists whose last item is the next list, so that none is whole before the innermost."""
    one = b"\xdc" + limits.LIST_ITEMS.to_bytes(2, "big") + item * (limits.LIST_ITEMS - 1)
    return one * (limits.MESSAGE_BYTES // len(one)) + b"\xc0"


def lying(head: bytes) -> bytes:
    """A field that says it has 2^32 - 1 items or bytes."""
    return HEAD + head + b"\xff\xff\xff\xff" + b"\xc0" * 1_000


WIDE: Final[dict[str, bytes]] = {
    "512 KiB of nils": b"\xc0" * limits.MESSAGE_BYTES,
    "half a million nils in lists": filled(b"\xc0"),
    "half a million empty lists": filled(b"\x90"),
    "half a million empty maps": filled(b"\x80"),
    "lists of one": filled(b"\x91\xc0"),
    "maps of one": filled(b"\x81\xa1a\xc0"),
    "short texts": filled(b"\xa2ab"),
    "short texts in lists never closed": never_closed(b"\xa2ab"),
    "empty lists in lists never closed": never_closed(b"\x90"),
    "floats": filled(b"\xcb" + b"\x01" * 8),
    "the largest texts": filled(b"\xda\x0f\xff" + b"x" * 4_095, inner=127),
}
DEEP: Final[dict[str, bytes]] = {
    "half a million lists deep": b"\x91" * limits.MESSAGE_BYTES,
    "maps in maps": b"\x81\xa1a" * (limits.MESSAGE_BYTES // 3),
    "nine levels": HEAD + b"\x91" * limits.NESTING_DEPTH + b"\xc0",
    "a thousand levels": HEAD + b"\x91" * 1_000 + b"\xc0",
}
LYING: Final[dict[str, bytes]] = {
    "array32": lying(b"\xdd"),
    "map32": lying(b"\xdf"),
    "str32": lying(b"\xdb"),
    "bin32": lying(b"\xc6"),
    "ext32": lying(b"\xc9"),
}
KEYS: Final[dict[str, bytes]] = {
    "one key 64 times": b"\xde\x00\x40" + (msgpack.packb("kind") + msgpack.packb("history")) * 64,
    "one key 65 times": b"\xde\x00\x41" + (msgpack.packb("kind") + msgpack.packb("history")) * 65,
    "a key 64 times in maps": filled(b"\xde\x00\x40" + b"\xa1k\xc0" * 64, inner=1_024),
}
MESSAGES: Final = WIDE | DEEP | LYING | KEYS
# The most work a message may make that is taken: what nobody knows in it is counted, and then thrown away.
MANY_MAPS: Final = b"\xdc\x10\x00" + b"\x81\xa1a\xc0" * 4_096
TAKEN: Final[bytes] = b"\x84" + msgpack.packb({"kind": "error", "code": "x", "message": ""})[1:] + b"\xa1x" + MANY_MAPS
LYING_BLOCK: Final[bytes] = lz4.block.compress(bytes(16 * limits.MIB), store_size=False)  # 66 KB

TINY: Final = frame(codec.encode(messages.Error(code="x", message="")))
UNKNOWN_FIELDS: Final = frame(
    msgpack.packb({"kind": "error", "code": "x", "message": "", **{f"f{number}": number for number in range(60)}})
)
FLOODS: Final[dict[str, Callable[[int], Iterator[bytes]]]] = {
    "tiny messages": lambda count: pieces(TINY, count),
    "unknown fields": lambda count: pieces(UNKNOWN_FIELDS, count // 60),
    "pings": lambda count: pieces(frame(b"", PING), count),
    "pongs": lambda count: pieces(frame(b"", PONG), count),
    "large pings": lambda count: pieces(frame(bytes(125), PING), count // 4),
    "a message in empty fragments": lambda count: pieces(
        frame(b"", CONTINUED, last=False), count, first=frame(b"", last=False)
    ),
    "empty messages": lambda count: pieces(frame(b""), count),
    "closes": lambda count: pieces(frame(b"", CLOSE), count),
    "four thousand maps, again and again": lambda count: pieces(frame(TAKEN), count // 1_000),
}


def pieces(one: bytes, count: int, first: bytes = b"") -> Iterator[bytes]:
    """`first`, then `count` times `one`, in pieces that make few system calls."""
    at_once = max(1, 65_536 // len(one))
    if rest := first + one * (count % at_once):
        yield rest
    piece = one * at_once
    for _ in range(count // at_once):
        yield piece


class Poured(Struct, frozen=True):
    """How pouring went: bytes sent, seconds, whether the hub cut it before all was sent, or ended at all."""

    sent_bytes: int
    seconds: float
    was_cut: bool
    has_ended: bool


def pour(own: socket.socket, data: Iterator[bytes], *, reads: bool, seconds: float = POUR_SECONDS) -> Poured:
    """Write `data` and a close as fast as they are taken, until the hub, which has then read it all, hangs up.

    It reads what comes unless told not to, and gives up after `seconds`.
    """
    began, sent = time.monotonic(), 0
    all_of_it = itertools.chain(data, [frame(b"", CLOSE)])
    piece = memoryview(next(all_of_it))
    was_cut = False
    while time.monotonic() - began < seconds and not was_cut:
        readable, writable, _ = select.select([own] if reads else [], [own] if piece else [], [], 0.2)
        try:
            was_cut = bool(readable) and not own.recv(1 << 20)
            if writable and not was_cut:
                done = own.send(piece)
                sent += done
                piece = piece[done:] or memoryview(next(all_of_it, b""))
        except BlockingIOError:
            continue
        except OSError:
            was_cut = True
    return Poured(sent, time.monotonic() - began, was_cut=was_cut and bool(piece), has_ended=was_cut)
