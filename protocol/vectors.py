"""Test vectors of `lockstep.v1` for people who write a terminal in another language.

`python -m protocol.vectors` prints them as JSON; `docs/protocol-vectors.json` is its output and `docs/protocol.md` says
how to read it. Every value follows from fixed seeds and formulas, so the output is the same each time. Only `main`
writes anything. The LZ4 blocks are those of LZ4 1.9.4: another version may give other blocks that are just as valid.
"""

import hashlib
import io
import json
import sys
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, Final

import msgspec

from protocol import chunks, codec, keys, limits, messages
from protocol.device import DeviceInfo
from protocol.errors import ProtocolError
from protocol.messages import InstallerOffer, Message, Offer, Run
from protocol.transfer import PageDue, Receiver, Sender

HUB = keys.SigningKey(bytes(range(32)))
DEVICE = keys.SigningKey(bytes(range(32, 64)))
SEALING = keys.SealingKey(bytes(range(64, 96)))
TERMINAL_NONCE: Final = bytes([0xA1]) * limits.NONCE_BYTES
PAIRING_CODE: Final = "KTWRBNHC"
HUB_NONCE: Final = bytes([0xB2]) * limits.NONCE_BYTES
ACCOUNT: Final = "alice"
TERMINAL: Final = "t-000000000001"
OTHER: Final = "t-000000000002"
HOST: Final = "hub.example"
PORT: Final = 443
LINES_BYTES: Final = 60_000
NOISE_BYTES: Final = 40_000
ALREADY_THERE: Final = 1  # the chunk the receiver of the example holds from an older file

PHONE = DeviceInfo(
    model="Pixel 8",
    model_code="shiba",
    form_factor="phone",
    os_type="android",
    os_version="14",
    api_level=34,
    architectures=("arm64", "armv7"),
    screen_inches=6.2,
    resolution=(1080, 2400),
    density_dpi=428,
    features=("camera",),
    installer_kinds=("apk",),
    free_bytes=64 * limits.GIB,
)


# --- keys ---------------------------------------------------------------------------------------------------------


def challenge_signed() -> bytes:
    """The bytes the hub signs in the example."""
    return keys.challenge_bytes(terminal_nonce=TERMINAL_NONCE, hub_nonce=HUB_NONCE, hub_key=HUB.public)


def enrol_signed() -> bytes:
    """The bytes the device signs to enrol in the example."""
    return keys.enrol_bytes(
        terminal_nonce=TERMINAL_NONCE,
        hub_nonce=HUB_NONCE,
        hub_key=HUB.public,
        account=ACCOUNT,
        sealing_key=SEALING.public,
        host=HOST,
        port=PORT,
    )


def login_signed() -> bytes:
    """The bytes the device signs to log in in the example."""
    return keys.login_bytes(
        terminal_nonce=TERMINAL_NONCE,
        hub_nonce=HUB_NONCE,
        hub_key=HUB.public,
        terminal=TERMINAL,
        host=HOST,
        port=PORT,
    )


def key_vectors() -> dict[str, Any]:
    """Seeds, public keys, and what is signed by whom."""
    signed = {
        "challenge": (HUB, challenge_signed()),
        "enrol": (DEVICE, enrol_signed()),
        "login": (DEVICE, login_signed()),
    }
    return {
        "hub_seed": HUB.seed.hex(),
        "hub_key": HUB.public.hex(),
        "device_seed": DEVICE.seed.hex(),
        "device_key": DEVICE.public.hex(),
        "sealing_seed": SEALING.seed.hex(),
        "sealing_key": SEALING.public.hex(),
        "terminal_nonce": TERMINAL_NONCE.hex(),
        "hub_nonce": HUB_NONCE.hex(),
        "account": ACCOUNT,
        "terminal": TERMINAL,
        "host": HOST,
        "port": PORT,
        **{
            name: {"signed_bytes": data.hex(), "signature": key.sign(data).hex()}
            for name, (key, data) in signed.items()
        },
    }


# --- the object ---------------------------------------------------------------------------------------------------


def object_bytes() -> bytes:
    """60,000 bytes of numbered lines, which compress, then 40,000 bytes of SHA-256 output, which does not."""
    lines = b"".join(b"line %06d of the example object\n" % number for number in range(LINES_BYTES // 32))
    noise = b"".join(
        hashlib.sha256(b"lockstep %d" % number).digest() for number in range(NOISE_BYTES // limits.DIGEST_BYTES)
    )
    return lines[:LINES_BYTES] + noise


def packed() -> tuple[chunks.Manifest, bytes]:
    """The example object's manifest and pack."""
    data = object_bytes()
    pairs = list(chunks.pack(io.BytesIO(data), chunks.chunking_for(len(data))))
    return chunks.Manifest.of(entry for entry, _ in pairs), b"".join(stored for _, stored in pairs)


def offer_of(manifest: chunks.Manifest) -> Offer:
    """The offer that brings the example object."""
    data = object_bytes()
    return Offer(
        delivery="d-000000000001",
        object=hashlib.sha256(data).digest(),
        size=manifest.size,
        chunks=manifest.count,
        stored_size=manifest.stored_size,
        pages=manifest.page_count,
        manifest=manifest.digest,
        chunking=chunks.chunking_for(len(data)),
        installer=InstallerOffer(
            program="weixin",
            package_name="com.tencent.mm",
            version="8.0.50",
            installer_kind="apk",
            file_name="weixin-8.0.50-arm64.apk",
        ),
    )


def transfer_messages() -> Iterator[tuple[str, Message]]:
    """One whole transfer of the example object, in order, as (direction, message)."""
    manifest, pack = packed()
    offer = offer_of(manifest)
    sender, receiver = Sender(manifest), Receiver(offer)
    yield "down", offer
    while isinstance(due := sender.next(0.0), PageDue):
        page = messages.ManifestPage(object=offer.object, page=due.page, entries=manifest.page(due.page))
        receiver.add_page(page)
        yield "down", page
    receiver.have(ALREADY_THERE)
    runs = receiver.next_want()
    yield "up", messages.Want(delivery=offer.delivery, runs=runs)
    sender.want(runs)
    while isinstance(run := sender.next(0.0), Run):
        start = manifest.stored_offsets[run.first]
        data = pack[start : start + sender.stored_bytes(run)]
        frame = messages.Chunks(object=offer.object, first=run.first, count=run.count, data=data)
        receiver.accept(frame)
        yield "down", frame
        yield "up", messages.Progress(delivery=offer.delivery, frames=receiver.frames, done=receiver.done_bytes)
        sender.acknowledge(receiver.frames, 0.0)
    assert receiver.complete
    yield "up", messages.Received(delivery=offer.delivery)


def object_vectors() -> dict[str, Any]:
    """The example object: formula, chunks, manifest, pack, and the whole transfer."""
    manifest, pack = packed()
    offsets = zip(pairwise(manifest.raw_offsets), pairwise(manifest.stored_offsets), strict=True)
    return {
        "formula": "ASCII lines b'line %06d of the example object\\n' for 0, 1, 2, ...: the first 60,000 bytes; "
        "then SHA-256(b'lockstep %d') for 0 to 1249, end to end: 40,000 bytes",
        "size": manifest.size,
        "sha256": offer_of(manifest).object.hex(),
        "chunks": [
            {"raw": raw, "stored": stored, "form": "raw" if raw[1] - raw[0] == stored[1] - stored[0] else "lz4"}
            for raw, stored in offsets
        ],
        "manifest": manifest.data.hex(),
        "manifest_sha256": manifest.digest.hex(),
        "pack": pack.hex(),
        "pack_sha256": hashlib.sha256(pack).hexdigest(),
        "already_there": [ALREADY_THERE],
        "transfer": [_transfer_step(manifest, direction, message) for direction, message in transfer_messages()],
    }


def _transfer_step(manifest: chunks.Manifest, direction: str, message: Message) -> dict[str, Any]:
    """One message of the transfer; a frame's data is told by its place in the pack, to keep the file small."""
    data = codec.encode(message)
    step = {"direction": direction, "kind": messages.kind_of(message)}
    if not isinstance(message, messages.Chunks):
        return step | {"hex": data.hex()}
    start = manifest.stored_offsets[message.first]
    return step | {
        "hex_before_data": data[: -len(message.data)].hex(),
        "data_is_pack": [start, start + len(message.data)],
        "sha256": hashlib.sha256(data).hexdigest(),
    }


def gear_vectors() -> dict[str, Any]:
    """How the gear table is made, and enough of it to see whether it was made right."""
    table = [
        int.from_bytes(hashlib.md5(bytes([value]) * 64, usedforsecurity=False).digest()[:8], "big")
        for value in range(256)
    ]
    return {
        "formula": "gear[v] = first 8 bytes, big-endian, of MD5(64 bytes that are all v), for v in 0 to 255",
        "first": f"{table[0]:016x}",
        "last": f"{table[-1]:016x}",
        "sha256_of_all_256_as_8_bytes_big_endian": hashlib.sha256(
            b"".join(value.to_bytes(8, "big") for value in table)
        ).hexdigest(),
    }


# --- messages -----------------------------------------------------------------------------------------------------


def opening_examples() -> list[tuple[str, Message]]:
    """One example of each message of the opening; the signatures are right."""
    return [
        ("up", messages.Hello(nonce=TERMINAL_NONCE, versions=("lockstep.v1",))),
        (
            "down",
            messages.Challenge(
                version="lockstep.v1",
                nonce=HUB_NONCE,
                hub_key=HUB.public,
                signature=HUB.sign(challenge_signed()),
            ),
        ),
        (
            "up",
            messages.Enrol(
                account=ACCOUNT,
                password="correct horse battery staple",  # noqa: S106 - an example
                name="Phone",
                device=PHONE,
                device_key=DEVICE.public,
                sealing_key=SEALING.public,
                host=HOST,
                port=PORT,
                signature=DEVICE.sign(enrol_signed()),
            ),
        ),
        (
            "up",
            messages.Login(
                terminal=TERMINAL,
                receives=True,
                device=PHONE,
                host=HOST,
                port=PORT,
                signature=DEVICE.sign(login_signed()),
            ),
        ),
        ("down", messages.Pairing(code=PAIRING_CODE, seconds=600.0)),
        (
            "down",
            messages.Welcome(
                terminal=TERMINAL,
                name="Phone",
                account=ACCOUNT,
                connection=7,
                message_bytes=limits.MESSAGE_BYTES,
                frame_bytes=limits.FRAME_BYTES,
            ),
        ),
    ]


def presence_examples() -> list[tuple[str, Message]]:
    """One example of each message about devices and what is on them."""
    row = messages.DeviceRow(
        terminal=OTHER,
        name="TV",
        online=True,
        device=DeviceInfo(model="BRAVIA 4K", form_factor="tv", os_type="android", architectures=("arm64",)),
        address="192.0.2.7",
        last_seen=1_700_000_000.5,
    )
    installed = messages.InstalledProgram(
        program="weixin",
        package_name="com.tencent.mm",
        version="8.0.49",
        installer_kind="apk",
        digest=bytes([0xC3]) * limits.DIGEST_BYTES,
    )
    return [
        ("down", messages.Devices(re=1, epoch="e-1", revision=12, page=0, pages=1, devices=(row,))),
        ("down", messages.DeviceChanges(epoch="e-1", since=12, revision=13, changed=(row,), gone=("t-000000000003",))),
        ("up", messages.DevicesRequest(id=1)),
        ("up", messages.DeviceUpdate(id=2, name="Alice's phone", device=PHONE)),
        (
            "up",
            messages.Inventory(programs=(installed,), installing=("d-000000000001",), bytes_per_second=500_000),
        ),
    ]


def _target_row(state: str, **fields: Any) -> messages.TargetRow:
    return messages.TargetRow(terminal=OTHER, name="TV", state=state, **fields)


def asking_examples() -> list[tuple[str, Message]]:
    """One example of each message with which programs are looked up and synced, and of their answers."""
    program = messages.ProgramRow(
        program="weixin", title="Weixin", newest="8.0.50", installer_kinds=("apk",), installed_on=(TERMINAL,)
    )
    planned = _target_row("queued", version="8.0.50", installer_kind="apk", file_name="weixin.apk", size=100_000)
    accepted = _target_row("queued", delivery="d-000000000001", version="8.0.50", size=100_000)
    running = _target_row("downloading", delivery="d-000000000001", size=100_000, done=65_536, sent=40_000)
    mismatch = messages.MismatchRow(field="os_type", wants="iOS", has="this device has Android")
    unmatched = _target_row("no_match", reason="no-installer", detail="Only iOS.", mismatches=(mismatch,))
    sync = messages.SyncRow(
        sync="s-000000000001",
        program="weixin",
        version="8.0.50",
        initiator=TERMINAL,
        initiator_name="Phone",
        created_at=1_700_000_000.0,
        ended_at=1_700_000_009.25,
        outcome="done",
        counts={"done": 1},
        size=100_000,
        sent=61_000,
    )
    return [
        ("up", messages.Programs(id=3, query="wei", after="video")),
        ("down", messages.ProgramsResult(re=3, programs=(program,), more=True)),
        ("up", messages.Plan(id=4, program="weixin", everyone=True)),
        ("down", messages.PlanResult(re=4, program="weixin", targets=(planned, unmatched))),
        ("up", messages.Sync(id=5, request_key="k-1", program="weixin", targets=(OTHER,), version="8.0.50")),
        ("down", messages.SyncAccepted(re=5, sync="s-000000000001", program="weixin", targets=(accepted,))),
        ("down", messages.SyncUpdate(sync="s-000000000001", targets=(running,))),
        ("down", messages.SyncDone(sync="s-000000000001", program="weixin", outcome="done", counts={"done": 1})),
        ("up", messages.Undo(id=9, request_key="k-2", sync="s-000000000001", targets=(OTHER,))),
        ("up", messages.SyncRequest(id=6, sync="s-000000000001")),
        ("down", messages.SyncResult(re=6, sync="s-000000000001", targets=(running,))),
        ("up", messages.Cancel(id=7, sync="s-000000000001")),
        ("down", messages.CancelResult(re=7, sync="s-000000000001", cancelled=1, too_late=0)),
        ("up", messages.History(id=8, before="s-000000000009")),
        ("down", messages.HistoryResult(re=8, syncs=(sync,))),
        ("down", messages.Done(re=2)),
    ]


def safety_examples() -> list[tuple[str, Message]]:
    """One example of each message about pairing, revoking, standing and posture; the signature is right."""
    manifest, _ = packed()
    offer = offer_of(manifest)
    report = messages.PostureReport(
        rules=offer.object,
        nonce=HUB_NONCE,
        engine="yara-x 1.23.0",
        began_at=1_700_000_000.5,
        seconds=2.5,
        programs=1,
        files=12,
        bytes=100_000,
        findings=(messages.FindingRow(program="weixin", file="lib/libx.so", rule="EICAR"),),
        findings_in_all=1,
    )
    encoded = codec.encode_report(report)
    signed = keys.posture_bytes(hub_key=HUB.public, terminal=TERMINAL, report=encoded)
    rules = messages.Rules(
        delivery="rules-000000000001",
        object=offer.object,
        size=offer.size,
        chunks=offer.chunks,
        stored_size=offer.stored_size,
        pages=offer.pages,
        manifest=offer.manifest,
        chunking=offer.chunking,
    )
    return [
        ("up", messages.PairingRequest(id=11, code=PAIRING_CODE)),
        (
            "down",
            messages.PairingResult(
                re=11, code=PAIRING_CODE, name="Phone", device=PHONE, device_key=DEVICE.public, seconds=540.0
            ),
        ),
        ("up", messages.Approve(id=12, code=PAIRING_CODE, device_key=DEVICE.public)),
        ("up", messages.Revoke(id=13, terminal=OTHER)),
        (
            "down",
            messages.Standing(
                may_receive=False,
                may_initiate=False,
                quarantined=True,
                reason="infected",
                detail="The rule EICAR found something in weixin.",
                hint="Remove it, then run `lockstep-terminal posture --now`.",
            ),
        ),
        ("down", rules),
        ("down", messages.PostureRequest(rules=offer.object, nonce=HUB_NONCE)),
        ("up", messages.Posture(report=encoded, signature=DEVICE.sign(signed))),
    ]


def transfer_examples() -> list[tuple[str, Message]]:
    """One example of each message of a transfer, a delivery's reports and errors. The frame is a tiny raw one."""
    manifest, _ = packed()
    offer = offer_of(manifest)
    return [
        ("down", offer),
        ("down", messages.ManifestPage(object=offer.object, page=0, entries=manifest.page(0))),
        ("up", messages.Want(delivery=offer.delivery, runs=(Run(0, 1), Run(2, manifest.count - 2)))),
        ("down", messages.Chunks(object=offer.object, first=3, count=1, data=b"stored bytes")),
        ("up", messages.Progress(delivery=offer.delivery, frames=1, done=65_536)),
        ("up", messages.Received(delivery=offer.delivery)),
        ("up", messages.Refused(delivery=offer.delivery, reason="no-space", detail="100000 bytes needed, 512 free.")),
        ("down", messages.Withdraw(delivery=offer.delivery)),
        *publish_examples(manifest, offer.object),
        ("up", messages.State(delivery=offer.delivery, state="done", version="8.0.50")),
        ("down", messages.Noted(of=offer.delivery, state="done")),
        (
            "down",
            messages.Error(
                code="unknown-program",
                message="There is no program weixim.",
                hint="Did you mean weixin?",
                near=("weixin",),
                re=5,
            ),
        ),
    ]


def publish_examples(manifest: chunks.Manifest, digest: bytes) -> list[tuple[str, Message]]:
    """One example of each message that only the way up has."""
    publish = messages.Publish(
        id=10,
        upload="u-000000000001",
        object=digest,
        size=manifest.size,
        chunks=manifest.count,
        stored_size=manifest.stored_size,
        pages=manifest.page_count,
        manifest=manifest.digest,
        chunking=chunks.chunking_for(manifest.size),
        file_name="weixin-8.0.50-arm64.apk",
        program="weixin",
        channel="beta",
        sidecar=b'feature = ["camera"]\n',
    )
    published = messages.Published(
        upload=publish.upload,
        program="weixin",
        title="Weixin",
        version="8.0.50",
        installer_kind="apk",
        digest=digest,
        new=True,
        fits="android, API 24+, arm64",
    )
    return [
        ("up", publish),
        ("down", messages.PublishAccepted(re=publish.id, upload=publish.upload)),
        ("down", published),
    ]


def local_examples() -> list[tuple[str, Message]]:
    """One example of each message between the processes of one device."""
    row = messages.InboxRow(
        delivery="d-000000000001",
        program="weixin",
        version="8.0.50",
        installer_kind="apk",
        file_name="weixin-8.0.50-arm64.apk",
        size=100_000,
        initiator="TV",
        since=1_700_000_000.5,
    )
    return [
        ("local", messages.Inbox(id=1)),
        ("local", messages.InboxResult(re=1, rows=(row,))),
        ("local", messages.Decide(id=2, delivery="d-000000000001", decision="later", seconds=3_600.0)),
        ("local", messages.PostureNow(id=3)),
    ]


def examples() -> list[tuple[str, Message]]:
    """One example of every message, as (direction, message)."""
    return [
        *opening_examples(),
        *presence_examples(),
        *asking_examples(),
        *safety_examples(),
        *transfer_examples(),
        *local_examples(),
    ]


def message_vectors() -> list[dict[str, Any]]:
    """Each example as JSON and as bytes."""
    return [
        {
            "kind": messages.kind_of(message),
            "direction": direction,
            "json": _json_form(msgspec.to_builtins(message, builtin_types=(bytes,))),
            "hex": codec.encode(message).hex(),
        }
        for direction, message in examples()
    ]


def _json_form(value: Any) -> Any:
    """Return `value` for JSON: binary becomes {"bytes": hex}."""
    if isinstance(value, bytes):
        return {"bytes": value.hex()}
    if isinstance(value, dict):
        return {name: _json_form(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json_form(item) for item in value]
    return value


def refused_vectors() -> list[dict[str, str]]:
    """Bytes that a reader has to refuse, each with the code this side refuses it with."""
    return [
        {"why": why, "hex": data, "code": _code_of(bytes.fromhex(data))}
        for why, data in (
            ("empty", ""),
            ("not a map", "93010203"),
            ("no kind", "81a2726501"),
            ("an unknown kind", "81a46b696e64a56f74686572"),
            ("a request id of 0", "82a46b696e64a4646f6e65a2726500"),
            ("an integer where text must be", "83a46b696e64a663616e63656ca2696401a473796e6307"),
            ("text where binary must be", "82a46b696e64a87265636569766564a66f626a656374a0"),
            ("a float where an integer must be", "82a46b696e64a4646f6e65a27265cb3ff0000000000000"),
            ("an integer key", "82a46b696e64a4646f6e650102"),
            ("bytes after the map", "82a46b696e64a4646f6e65a2726501c0"),
            ("nesting of 9 levels", "83a46b696e64a4646f6e65a2726501a17891919191919191" + "90"),
            ("an extension type", "83a46b696e64a4646f6e65a2726501a178d40100"),
            ("an array that says it has 2^32 - 1 items", "83a46b696e64a4646f6e65a2726501a178ddffffffff"),
        )
    ]


def _code_of(data: bytes) -> str:
    try:
        codec.decode(data)
    except ProtocolError as error:
        return error.code
    raise AssertionError(f"{data.hex()} was not refused")


# --- window -------------------------------------------------------------------------------------------------------


def window_trace() -> list[dict[str, Any]]:
    """A sender's window over 40 full frames: the link takes 0.3 s a frame at first, 1.5 s from the 26th on."""
    entry = chunks.Entry(bytes(limits.DIGEST_BYTES), limits.FRAME_BYTES, limits.FRAME_BYTES)
    sender = Sender(chunks.Manifest.of([entry] * 40))
    sender.next(0.0)
    sender.want((Run(0, 40),))
    trace: list[dict[str, Any]] = []
    now = 0.0
    while sender.frames_acknowledged < 40:
        while sender.next(now):
            pass
        now = round(now + (0.3 if sender.frames_acknowledged < 25 else 1.5), 1)
        sent = sender.frames_sent
        sender.acknowledge(sender.frames_acknowledged + 1, now)
        frames = sender.frames_acknowledged
        trace.append({"at": now, "frames_sent": sent, "frames_acknowledged": frames, "window_after": sender.window})
    return trace


def vectors() -> dict[str, Any]:
    """Return everything `docs/protocol-vectors.json` holds."""
    return {
        "about": "Test vectors of lockstep.v1 from `python -m protocol.vectors`; docs/protocol.md explains them.",
        "keys": key_vectors(),
        "messages": message_vectors(),
        "refused": refused_vectors(),
        "gear": gear_vectors(),
        "object": object_vectors(),
        "window": window_trace(),
    }


def text() -> str:
    """Return the JSON document, ASCII, ending in a newline."""
    return json.dumps(vectors(), indent=1) + "\n"


def main() -> None:
    """Print the document."""
    sys.stdout.write(text())


if __name__ == "__main__":
    main()
