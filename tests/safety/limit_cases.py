"""What is tried at each limit, just past it and ten times past it: one function a limit, which does the real thing.

Each takes how much is tried and raises what the product raises for too much. Times are passed in.
"""

import io
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgpack
import msgspec
from msgspec import Struct

from hub import guesses, pairings, session
from hub.doorway import Doorway
from hub.fairness import FairRoom
from hub.objects import Objects
from hub.presence import Presence, Roster
from protocol import chunks, codec, keys, limits, messages, vectors
from protocol.errors import LockstepError, RefusedError, UnavailableError
from protocol.liveness import Liveness
from protocol.transfer import Receiver, Sender
from scanner import unpacking
from terminal.devicelist import DeviceList
from tests.hub.rooms import PC, enrol_message


class Case(Struct, frozen=True):
    """`attempt(limit)` goes through, `attempt(past)` and ten times that are refused with `code`.

    `step` is how much more than the limit "just past" is.
    """

    limit: float
    attempt: Callable[[Any], object]
    code: str
    step: float = 1


# --- messages -----------------------------------------------------------------------------------------------------

EXAMPLES: Final = {messages.kind_of(message): message for _, message in vectors.examples()}


def decode_with(kind: str, **changes: Any) -> object:
    """Decode the example of a kind with these fields changed."""
    return codec.decode(msgpack.packb(fields_of(kind) | changes))


def fields_of(kind: str) -> dict[str, Any]:
    """The example of a kind as it is packed."""
    fields: dict[str, Any] = msgspec.to_builtins(EXAMPLES[kind], builtin_types=(bytes,))
    return fields


def field(kind: str, name: str, limit: int, value: Callable[[int], Any], code: str = "bad-field") -> Case:
    """A limit on one field of a message. What is ten times past it may be refused by a limit on any field."""
    return Case(limit, lambda size: decode_with(kind, **{name: value(size)}), code)


def unknown(limit: int, value: Callable[[int], Any], code: str) -> Case:
    """A limit that holds in a field nobody knows, too."""
    return Case(limit, lambda size: decode_with("history", unknown=value(size)), code)


def message_of(size: int) -> bytes:
    """A message of so many bytes, all of it in fields nobody knows."""
    empty = len(msgpack.packb({"kind": "history", "id": 1}))
    data: bytes = msgpack.packb("kind") + msgpack.packb("history") + msgpack.packb("id") + b"\x01"
    number = 0
    left = size - empty
    while left > 0:
        take = min(left, 200_000 if left > 300_000 or left <= 200_000 else 100_000)
        head = msgpack.packb(f"f{number:03}")
        body = take - len(head) - 5
        data += head + b"\xc6" + body.to_bytes(4, "big") + bytes(body)
        left -= take
        number += 1
    return b"\xde" + (2 + number).to_bytes(2, "big") + data if number > 13 else bytes([0x82 + number]) + data


def nested(depth: int) -> Any:
    """Lists in each other, the message's own map counted."""
    value: Any = 0
    for _ in range(depth - 1):
        value = [value]
    return value


def items(count: int) -> Any:
    """Lists with so many items in all: the message counts 1 and its fields, each list 1 and what it holds."""
    left, lists = count - 1 - len(fields_of("history")) - 2, []
    while left > 0:
        held = min(left - 2, limits.LIST_ITEMS)
        lists.append([0] * held)
        left -= held + 2
    return lists


def digests(count: int) -> bytes:
    """So many manifest entries."""
    return struct.pack(">32sII", bytes(32), 1, 1) * count


def text(size: int) -> str:
    return "x" * size


REPORT: Final = messages.PostureReport(
    rules=bytes(32), nonce=bytes(32), engine="e", began_at=1.0, seconds=1.0, programs=1, files=1, bytes=1
)
ROW: Final = fields_of("history_result")["syncs"][0]
PROGRAM: Final = {
    "program": "p", "package_name": "p", "version": "1", "installer_kind": "deb", "digest": bytes(32),
}  # fmt: skip
DEVICE_ROW: Final = {"terminal": "t-1", "name": "PC", "online": True, "device": {"model": "PC", "os_type": "linux"}}
OFFER: Final = fields_of("offer")


def posture_report(findings: int) -> object:
    row = messages.FindingRow(file="f", rule="r")
    return codec.decode_report(codec.encode_report(msgspec.structs.replace(REPORT, findings=(row,) * findings)))


def devices_in_pages(count: int) -> object:
    """A device list of so many rows, in pages."""
    row = messages.DeviceRow(terminal="t", name="n", online=True, device=PC)
    devices = DeviceList()
    page_count = -(-count // 1_000)
    for page in range(page_count):
        rows = (row,) * min(1_000, count - page * 1_000)
        devices.add_page(messages.Devices(epoch="e", revision=1, page=page, pages=page_count, devices=rows))
    return None


MESSAGES: Final[dict[str, Case]] = {
    "MESSAGE_BYTES": Case(limits.MESSAGE_BYTES, lambda size: codec.decode(message_of(size)), "too-large"),
    "MESSAGE_BEFORE_LOGIN_BYTES": Case(
        limits.MESSAGE_BEFORE_LOGIN_BYTES,
        lambda size: codec.decode(message_of(size), limit_bytes=limits.MESSAGE_BEFORE_LOGIN_BYTES), "too-large",
    ),
    "STRING_BYTES": unknown(limits.STRING_BYTES, text, "bad-msgpack"),
    "LIST_ITEMS": unknown(limits.LIST_ITEMS, lambda count: [0] * count, "bad-msgpack"),
    "MAP_ITEMS": unknown(limits.MAP_ITEMS, lambda count: {str(key): 0 for key in range(count)}, "bad-msgpack"),
    "NESTING_DEPTH": unknown(limits.NESTING_DEPTH, nested, "bad-msgpack"),
    "ITEMS_IN_ONE_MESSAGE": unknown(codec.ITEMS_IN_ONE_MESSAGE, items, "too-large"),
    "MESSAGE_TO_HUB_ITEMS": Case(
        limits.MESSAGE_TO_HUB_ITEMS,
        lambda count: codec.decode(
            msgpack.packb(fields_of("history") | {"unknown": items(count)}), limit_items=limits.MESSAGE_TO_HUB_ITEMS
        ),
        "too-large",
    ),
    "IDENTIFIER_CHARACTERS": field("cancel", "sync", limits.IDENTIFIER_CHARACTERS, text),
    "NAME_CHARACTERS": field("enrol", "name", limits.NAME_CHARACTERS, text),
    "TEXT_CHARACTERS": field("enrol", "password", limits.TEXT_CHARACTERS, text),
    "TARGETS_PER_SYNC": field("sync", "targets", limits.TARGETS_PER_SYNC, lambda count: ["t"] * count),
    "ROWS_PER_PAGE": field("history_result", "syncs", limits.ROWS_PER_PAGE, lambda count: [ROW] * count),
    "INVENTORY_PROGRAMS": field("inventory", "programs", limits.INVENTORY_PROGRAMS, lambda count: [PROGRAM] * count),
    "INSTALLING_AT_ONCE": field("inventory", "installing", limits.INSTALLING_AT_ONCE, lambda count: ["d"] * count),
    "INBOX_ROWS": field("inventory", "asking", limits.INBOX_ROWS, lambda count: ["d"] * count),
    "TAGS_PER_TERMINAL": field(
        "devices", "devices", limits.TAGS_PER_TERMINAL, lambda count: [DEVICE_ROW | {"tags": ["t"] * count}]
    ),
    "JOIN_KEY_CHARACTERS": field("enrol", "join_key", limits.JOIN_KEY_CHARACTERS, text),
    "TOKEN_BYTES": field("enrol", "token", limits.TOKEN_BYTES, bytes),
    "OBJECT_BYTES": field("offer", "size", limits.OBJECT_BYTES, int),
    "SIDECAR_BYTES": field("publish", "sidecar", limits.SIDECAR_BYTES, bytes),
    "FRAME_BYTES": field("chunks", "data", limits.FRAME_BYTES, bytes, "bad-msgpack"),
    "WANT_RUNS": field("want", "runs", limits.WANT_RUNS, lambda count: [[0, 1]] * count),
    "MANIFEST_PAGE_ENTRIES": field("manifest", "entries", limits.MANIFEST_PAGE_ENTRIES, digests),
    "MANIFEST_ENTRIES": Case(limits.MANIFEST_ENTRIES, lambda count: chunks.Manifest(digests(count)), "bad-transfer"),
    "POSTURE_BYTES": field("posture", "report", limits.POSTURE_BYTES, bytes),
    "POSTURE_FINDINGS": Case(limits.POSTURE_FINDINGS, posture_report, "bad-field"),
    "PAIRING_CODE_CHARACTERS": field("pairing_request", "code", limits.PAIRING_CODE_CHARACTERS, text),
    "NONCE_BYTES": field("hello", "nonce", limits.NONCE_BYTES, bytes),
    "KEY_BYTES": field("enrol", "device_key", limits.KEY_BYTES, bytes),
    "SIGNATURE_BYTES": field("enrol", "signature", limits.SIGNATURE_BYTES, bytes),
    "DIGEST_BYTES": field("publish", "object", limits.DIGEST_BYTES, bytes),
    "RUN_BYTES": field("login", "run", limits.RUN_BYTES, bytes),
    "devices of one list": Case(limits.LIST_ITEMS, devices_in_pages, "too-large"),
}  # fmt: skip


# --- objects, chunks, transfers -----------------------------------------------------------------------------------


def cut_with(maximum: int) -> object:
    """Cut by the sizes of an offer."""
    chunking = messages.Chunking(algorithm=chunks.ALGORITHM, minimum=4_096, average=16_384, maximum=maximum)
    return list(chunks.cut(io.BytesIO(b"x" * 100), chunking))


def entry_of(raw_size: int) -> object:
    return chunks.Manifest(struct.pack(">32sII", bytes(32), raw_size, 1))


def frames_unacknowledged(count: int) -> object:
    """Have so many frames on their way at the window's largest."""
    sender = Sender(chunks.Manifest(struct.pack(">32sII", bytes(32), limits.FRAME_BYTES, limits.FRAME_BYTES) * 1_000))
    sender.next(0.0)
    sender.want((messages.Run(0, 1_000),))
    for acknowledged in range(1, 100):  # a fast link: the window is as large as it gets
        sender.next(0.0)
        sender.acknowledge(acknowledged, 0.0)
    for _ in range(count):
        if sender.next(0.0) is None:
            raise RefusedError("The window is full.", code="window")
    return None


def stored_in_all(size: int) -> object:
    """Ask for room for so many bytes where the store may take 1 MiB."""
    with tempfile.TemporaryDirectory() as folder:
        Objects(Path(folder), reserve_bytes=0, store_bytes=limits.MIB).check_room("a.deb", size)
    return None


def offer_in_pages(pages: int) -> object:
    """An offer with so many chunks as fill pages, said to be in one."""
    count = pages * limits.MANIFEST_PAGE_ENTRIES
    return Receiver(msgspec.convert(OFFER | {"chunks": count, "pages": 1}, messages.Offer, builtin_types=(bytes,)))


def ar_of(members: int) -> object:
    """Look into an ar archive of so many members."""
    member = f"{'a':<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{0:<10}`\n".encode()
    inside = list(unpacking.files_inside(io.BytesIO(b"!<arch>\n" + member * members), 1))
    if any(isinstance(part, unpacking.Unseen) and "more than" in part.why for part in inside):
        raise RefusedError("The rest of it is not looked at, and that is said.", code="unseen")
    return None


TRANSFERS: Final[dict[str, Case]] = {
    "members of an ar archive that is scanned": Case(unpacking.AR_MEMBERS, ar_of, "unseen"),
    "CHUNK_MAXIMUM_BYTES": Case(limits.FRAME_BYTES, cut_with, "bad-transfer"),
    "bytes of one chunk": Case(limits.FRAME_BYTES, entry_of, "bad-transfer"),
    "WINDOW_LARGEST_FRAMES": Case(limits.WINDOW_LARGEST_FRAMES, frames_unacknowledged, "window"),
    "store_bytes": Case(limits.MIB, stored_in_all, "store-full"),
    "pages of an offer": Case(1, offer_in_pages, "bad-transfer"),
}


# --- time ---------------------------------------------------------------------------------------------------------


def late(code: str) -> RefusedError:
    return RefusedError("It is over.", code=code)


def hub_session() -> session.Session:
    return session.Session(keys.SigningKey(bytes(32)), frozenset({"hub:1"}), 0.0)


def stays_silent(seconds: float) -> object:
    """A stranger that says nothing for so long."""
    if any(isinstance(action, session.Close) for action in hub_session().handle(session.Ticked(), seconds)):
        raise late("closed")
    return None


def unheard(seconds: float) -> object:
    """A peer that is pinged when it should be and says nothing for so long after."""
    liveness = Liveness(0.0)
    assert liveness.due(limits.PING_EVERY_SECONDS) == "ping"
    if liveness.due(limits.PING_EVERY_SECONDS + seconds) == "dead":
        raise late("dead")
    return None


def idle(seconds: float) -> object:
    if Liveness(0.0).due(seconds) == "ping":
        raise late("pinged")
    return None


def away(seconds: float) -> object:
    """A terminal that is away for so long is shown offline."""
    presence = Presence()
    row = messages.DeviceRow(terminal="t-1", name="PC", online=True, device=PC)
    presence.rosters["a-1"] = Roster([row])
    presence.join("a-1", row, 1)
    presence.leave("a-1", "t-1", 1, now=0.0, last_seen=0.0)
    presence.tick(seconds)
    shown = presence.rosters["a-1"].row("t-1")
    assert shown is not None
    if not shown.online:
        raise late("offline")
    return None


def pairing_waits(seconds: float) -> object:
    """Ask for a code so long after it was shown."""
    waiting = pairings.Pairings()
    shown = waiting.begin(enrol_message(), "192.0.2.1:5", "192.0.2.1", lambda _: None, 0.0)
    return waiting.find(shown.code, ("t-1",), seconds)


def before(limit: float) -> float:
    """Just before a deadline, which itself is past."""
    return limit - 0.001


TIMES: Final[dict[str, Case]] = {
    "OPENING_SECONDS": Case(before(limits.OPENING_SECONDS + limits.LOGIN_SECONDS), stays_silent, "closed", 0.001),
    "LOGIN_SECONDS": Case(before(limits.OPENING_SECONDS + limits.LOGIN_SECONDS), stays_silent, "closed", 0.001),
    "PING_EVERY_SECONDS": Case(before(limits.PING_EVERY_SECONDS), idle, "pinged", 0.001),
    "HEARD_WITHIN_SECONDS": Case(before(limits.HEARD_WITHIN_SECONDS), unheard, "dead", 0.001),
    "PRESENCE_GRACE_SECONDS": Case(before(limits.PRESENCE_GRACE_SECONDS), away, "offline", 0.001),
    "PAIRING_SECONDS": Case(before(limits.PAIRING_SECONDS), pairing_waits, "unknown-pairing", 0.001),
}


# --- counts -------------------------------------------------------------------------------------------------------


def guess(count: int, *, name: Callable[[int], str], host: Callable[[int], str]) -> object:
    """So many guesses at once; raises when one is not evaluated."""
    bucket = guesses.Guesses()
    for number in range(count):
        if bucket.take(name(number), host(number), 0.0):
            raise RefusedError("Too many.", code="rate-limited")
    return None


def guess_for_an_hour(count: int) -> object:
    """So many guesses for one account in an hour, from addresses of their own."""
    bucket, done = guesses.Guesses(), 0
    for second in range(3_600):
        while done < count and not bucket.take("ada", f"192.0.{done // 250}.{done % 250}", float(second)):
            done += 1
    if done < count:
        raise RefusedError("Too many.", code="rate-limited")
    return None


def wait_to_be_approved(count: int, *, host: Callable[[int], str]) -> object:
    waiting = pairings.Pairings()
    for number in range(count):
        waiting.begin(enrol_message(), "x", host(number), lambda _: None, 0.0)
    return None


def wrong_codes(count: int) -> object:
    """So many wrong codes, and then the right one."""
    waiting = pairings.Pairings()
    shown = waiting.begin(enrol_message(), "x", "192.0.2.1", lambda _: None, 0.0)
    for _ in range(count):
        try:
            waiting.find("BBBBBBBB", ("t-1",), 1.0)
        except LockstepError as error:
            if error.code == "rate-limited":
                raise
    return waiting.find(shown.code, ("t-1",), 2.0)


def before_login(count: int) -> object:
    """So many sockets of one address in a room for 256."""
    doorway = Doorway(256)
    for number in range(count):
        arrival = doorway.arrive(number, "192.0.2.1", 0.0)
        if not arrival.is_let_in or arrival.makes_way is not None:
            raise UnavailableError("Full.", code="busy")
    assert doorway.count <= 256
    return None


def room_taken(count: int, *, room: int, each: int) -> object:
    """So many holders, each of an account of its own, in a room of this size."""
    fair = FairRoom(room)
    for number in range(count):
        if not fair.take(f"a-{number}", number, each, lambda: None):
            raise UnavailableError("It waits in line.", code="busy")
    assert fair.free >= 0
    return None


def of_one_address(number: int) -> str:
    return "192.0.2.1"


def of_many_addresses(number: int) -> str:
    return f"10.0.{number // 250}.{number % 250}"


COUNTS: Final[dict[str, Case]] = {
    "guesses of an account at once": Case(
        guesses.ACCOUNT_AT_ONCE,
        lambda count: guess(count, name=lambda _: "ada", host=of_many_addresses),
        "rate-limited",
    ),
    "guesses of an address at once": Case(
        guesses.ADDRESS_AT_ONCE, lambda count: guess(count, name=str, host=of_one_address), "rate-limited"
    ),
    "guesses of an account in an hour": Case(9, guess_for_an_hour, "rate-limited"),
    "pairings of an address": Case(
        pairings.WAITING_PER_ADDRESS, lambda count: wait_to_be_approved(count, host=of_one_address), "busy"
    ),
    "pairings of a hub": Case(
        pairings.WAITING, lambda count: wait_to_be_approved(count, host=of_many_addresses), "busy"
    ),
    "wrong pairing codes": Case(pairings.TRIES - 1, wrong_codes, "rate-limited"),
    "sockets_before_login": Case(256, before_login, "busy"),
    "transfers_at_once": Case(1_000, lambda count: room_taken(count, room=1_000, each=1), "busy"),
    "bytes_in_flight": Case(
        256, lambda count: room_taken(count, room=64 * limits.MIB, each=limits.FRAME_BYTES), "busy"
    ),
}  # fmt: skip

CASES: Final = MESSAGES | TRANSFERS | TIMES | COUNTS
