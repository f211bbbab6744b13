"""Every message of `lockstep.v1` as a frozen typed struct, and the table kind -> class.

An instance that came through `codec.decode` is valid: every field has its type and keeps its limit. Unknown fields are
ignored, unknown kinds refused. Requests carry `id`, chosen by the one who asks; the answer repeats it as `re`.

Direction is the terminal's view: "up" goes to the hub, "down" comes from it. Identifiers are opaque strings. Times are
Unix seconds (UTC). Sizes are bytes. `docs/protocol.md` says the same in prose, and a test holds the two together.
"""

from typing import Annotated, Final, Literal, TypeAlias, get_args

from msgspec import Meta, Struct

from protocol import limits
from protocol.device import ByteCount, DeviceInfo, InstallerKind, Name

Identifier: TypeAlias = Annotated[str, Meta(min_length=1, max_length=limits.IDENTIFIER_CHARACTERS)]
OptionalIdentifier: TypeAlias = Annotated[str, Meta(max_length=limits.IDENTIFIER_CHARACTERS)]
Code: TypeAlias = Annotated[str, Meta(max_length=limits.NAME_CHARACTERS)]
Text: TypeAlias = Annotated[str, Meta(max_length=limits.TEXT_CHARACTERS)]
Version: TypeAlias = Annotated[str, Meta(max_length=limits.IDENTIFIER_CHARACTERS)]
Host: TypeAlias = Annotated[str, Meta(min_length=1, max_length=255)]
Port: TypeAlias = Annotated[int, Meta(ge=1, le=65_535)]
OptionalName: TypeAlias = Annotated[str, Meta(max_length=limits.NAME_CHARACTERS)]
Nonce: TypeAlias = Annotated[bytes, Meta(min_length=limits.NONCE_BYTES, max_length=limits.NONCE_BYTES)]
PublicKey: TypeAlias = Annotated[bytes, Meta(min_length=limits.KEY_BYTES, max_length=limits.KEY_BYTES)]
Signature: TypeAlias = Annotated[bytes, Meta(min_length=limits.SIGNATURE_BYTES, max_length=limits.SIGNATURE_BYTES)]
Digest: TypeAlias = Annotated[bytes, Meta(min_length=limits.DIGEST_BYTES, max_length=limits.DIGEST_BYTES)]
Count: TypeAlias = Annotated[int, Meta(ge=0, le=2**53)]
RequestId: TypeAlias = Annotated[int, Meta(ge=1, le=2**53)]
Seconds: TypeAlias = Annotated[float, Meta(ge=0, le=2**53)]
ChunkIndex: TypeAlias = Annotated[int, Meta(ge=0, lt=limits.MANIFEST_ENTRIES)]
PairingCode: TypeAlias = Annotated[
    str, Meta(min_length=limits.PAIRING_CODE_CHARACTERS, max_length=limits.PAIRING_CODE_CHARACTERS)
]
Tags: TypeAlias = Annotated[tuple[Name, ...], Meta(max_length=limits.TAGS_PER_TERMINAL)]
Features: TypeAlias = Annotated[tuple[Name, ...], Meta(max_length=32)]


class Message(Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="kind"):
    """Base of every message; the struct's tag is its `kind` on the wire."""


# --- opening ------------------------------------------------------------------------------------------------------


class Hello(Message, tag="hello", frozen=True, kw_only=True):
    """Up, first: the terminal's nonce, the protocol versions it speaks (best first) and its features."""

    nonce: Nonce
    versions: Annotated[tuple[Name, ...], Meta(min_length=1, max_length=8)]
    features: Features = ()


class Challenge(Message, tag="challenge", frozen=True, kw_only=True):
    """Down: the version chosen, the hub's nonce, its Ed25519 public key, and its signature (`keys.challenge_bytes`)."""

    version: Name
    nonce: Nonce
    hub_key: PublicKey
    features: Features = ()
    signature: Signature


class Enrol(Message, tag="enrol", frozen=True, kw_only=True):
    """Up: make this device a terminal of an account. `signature` is by `device_key` over `keys.enrol_bytes`.

    In one of four ways: the `account` and its `password`; a `join_key`; an identity provider's `token` (a JWT, RFC
    7519); or with `pair`, when somebody who is logged in approves the code that the hub answers with.
    """

    account: OptionalName = ""
    password: Text = ""
    join_key: Annotated[str, Meta(max_length=limits.JOIN_KEY_CHARACTERS)] = ""
    token: Annotated[bytes, Meta(max_length=limits.TOKEN_BYTES)] = b""
    pair: bool = False
    name: Name
    device: DeviceInfo
    device_key: PublicKey
    sealing_key: PublicKey
    host: Host
    port: Port
    signature: Signature


class Login(Message, tag="login", frozen=True, kw_only=True):
    """Up: come back as a terminal already enrolled. `signature` is by the device key over `keys.login_bytes`.

    `run` is random, the same for all logins of one process: a run that comes back after another tells of a copied key.
    """

    terminal: Identifier
    receives: bool
    device: DeviceInfo
    run: Annotated[bytes, Meta(max_length=limits.RUN_BYTES)] = b""
    host: Host
    port: Port
    signature: Signature


class Pairing(Message, tag="pairing", frozen=True, kw_only=True):
    """Down: show this code; whoever is logged in may approve it for `seconds`. Then `welcome` or `error` follows."""

    code: PairingCode
    seconds: Seconds


class Welcome(Message, tag="welcome", frozen=True, kw_only=True):
    """Down: logged in. `connection` counts this terminal's logins; limits are the ones the hub enforces, in bytes."""

    terminal: Identifier
    name: Name
    account: Name
    connection: Count
    message_bytes: Count
    frame_bytes: Count


# --- presence -----------------------------------------------------------------------------------------------------


class DeviceRow(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One terminal of the account as the others see it. `online` means connected and receiving.

    `standing` is empty when all is well, `quarantined` for one that may neither send nor receive, `cloned` for one
    whose key was seen in two places. `tags` are its owner's.
    """

    terminal: Identifier
    name: Name
    online: bool
    device: DeviceInfo
    address: Annotated[str, Meta(max_length=64)] = ""
    last_seen: Seconds = 0.0
    standing: Code = ""
    tags: Tags = ()


DeviceRows: TypeAlias = Annotated[tuple[DeviceRow, ...], Meta(max_length=limits.LIST_ITEMS)]


class Devices(Message, tag="devices", frozen=True, kw_only=True):
    """Down: a page of the whole list as of `revision`. Revisions count up within one `epoch` (one run of the hub)."""

    re: Count = 0
    epoch: Identifier
    revision: Count
    page: Count
    pages: Count
    devices: DeviceRows


class DeviceChanges(Message, tag="device_changes", frozen=True, kw_only=True):
    """Down: every device changed after `since` up to `revision`. A terminal that is not at `since` has a gap."""

    epoch: Identifier
    since: Count
    revision: Count
    changed: DeviceRows = ()
    gone: Annotated[tuple[Identifier, ...], Meta(max_length=limits.LIST_ITEMS)] = ()


class DevicesRequest(Message, tag="devices_request", frozen=True, kw_only=True):
    """Up: send the whole list again, after a gap or because someone asked."""

    id: RequestId


class DeviceUpdate(Message, tag="device_info", frozen=True, kw_only=True):
    """Up: this terminal's name or device info changed. Answered with `done`."""

    id: RequestId
    name: Name | None = None
    device: DeviceInfo | None = None


class InstalledProgram(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One program that is on a terminal, confirmed by asking its system. `digest` is of the installer it came from."""

    program: Identifier
    package_name: Identifier
    version: Version
    installer_kind: InstallerKind
    digest: Digest


class Inventory(Message, tag="inventory", frozen=True, kw_only=True):
    """Up: all programs on this terminal. A receiving terminal is served only after its first inventory.

    `installing`: deliveries it has asked to install, or installs, now. What the hub holds to be installing and is not
    named here was never run: the hub queues it again. `asking`, in the first of a connection: what waits for a person
    here; the hub withdraws what is not wanted any more. `bytes_per_second`: send no faster than this; 0 for no limit.
    """

    programs: Annotated[tuple[InstalledProgram, ...], Meta(max_length=limits.INVENTORY_PROGRAMS)]
    installing: Annotated[tuple[Identifier, ...], Meta(max_length=limits.INSTALLING_AT_ONCE)] = ()
    asking: Annotated[tuple[Identifier, ...], Meta(max_length=limits.INBOX_ROWS)] = ()
    bytes_per_second: Count = 0


# --- asking -------------------------------------------------------------------------------------------------------


class Programs(Message, tag="programs", frozen=True, kw_only=True):
    """Up: what could be synced. `query`: part of an id or title, case folded; `after`: last id of the page before."""

    id: RequestId
    query: Annotated[str, Meta(max_length=limits.NAME_CHARACTERS)] = ""
    after: OptionalIdentifier = ""


class ProgramRow(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One program: its newest release, the kinds of installer it has, and the terminals (ids) it is installed on."""

    program: Identifier
    title: Text
    newest: Version
    installer_kinds: tuple[InstallerKind, ...] = ()
    installed_on: Annotated[tuple[Identifier, ...], Meta(max_length=limits.LIST_ITEMS)] = ()


class ProgramsResult(Message, tag="programs_result", frozen=True, kw_only=True):
    """Down: a page of programs, sorted by id; `more` says that another page follows."""

    re: RequestId
    programs: Annotated[tuple[ProgramRow, ...], Meta(max_length=limits.ROWS_PER_PAGE)]
    more: bool = False


Targets: TypeAlias = Annotated[tuple[Identifier, ...], Meta(max_length=limits.TARGETS_PER_SYNC)]


class Plan(Message, tag="plan", frozen=True, kw_only=True):
    """Up: what would `sync` do? Same fields, same resolver, nothing is sent or kept.

    `channel` adds the releases of that channel to the stable ones; a `version` is found in any channel.
    """

    id: RequestId
    program: Identifier
    targets: Targets = ()
    everyone: bool = False
    version: Version = ""
    channel: Code = ""


class Sync(Message, tag="sync", frozen=True, kw_only=True):
    """Up: bring `program` to the targets (terminal ids), or to `everyone`: every receiving terminal but this one.

    `request_key` is chosen by the initiator: the same key again is the same sync, so a repeated request is harmless.
    """

    id: RequestId
    request_key: Identifier
    program: Identifier
    targets: Targets = ()
    everyone: bool = False
    version: Version = ""
    channel: Code = ""


class MismatchRow(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One field in the way of the nearest installer: what it wants, what the device has."""

    field: Name
    wants: Text
    has: Text


class RejectedRow(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One installer that does not fit the target, and every field in its way."""

    version: Version
    installer_kind: InstallerKind
    file_name: Annotated[str, Meta(max_length=255)]
    mismatches: Annotated[tuple[MismatchRow, ...], Meta(max_length=32)]


class ForecastRow(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What may go wrong with the installer chosen, as far as the hub can tell. One that `stops` is not sent."""

    code: Code
    detail: Text
    stops: bool = False


class TargetRow(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One target of a plan or a sync: where it stands and why.

    In a plan `delivery` is empty and `state` is what the delivery would begin (or end) as. `size` is the installer's,
    `done` how much of it the terminal has verified, `sent` the stored bytes that went over the socket; all in bytes.

    Only a plan and the answer to a sync say how the installer was chosen: `rule` decided over `runner_up`, `forecasts`
    say what may go wrong, `rejected` are those that do not fit, nearest first; `mismatches` are the nearest one's.
    """

    terminal: Identifier
    name: Name
    delivery: OptionalIdentifier = ""
    state: Code
    reason: Code = ""
    detail: Text = ""
    version: Version = ""
    installer_kind: Code = ""
    file_name: Annotated[str, Meta(max_length=255)] = ""
    digest: bytes = b""
    size: ByteCount = 0
    done: ByteCount = 0
    sent: ByteCount = 0
    mismatches: Annotated[tuple[MismatchRow, ...], Meta(max_length=32)] = ()
    rule: Text = ""
    runner_up: Text = ""
    forecasts: Annotated[tuple[ForecastRow, ...], Meta(max_length=8)] = ()
    rejected: Annotated[tuple[RejectedRow, ...], Meta(max_length=32)] = ()


TargetRows: TypeAlias = Annotated[tuple[TargetRow, ...], Meta(max_length=limits.TARGETS_PER_SYNC)]


class PlanResult(Message, tag="plan_result", frozen=True, kw_only=True):
    """Down: a page of what a sync would do, per target; `more` says that another page follows."""

    re: RequestId
    program: Identifier
    targets: TargetRows
    more: bool = False


class SyncAccepted(Message, tag="sync_accepted", frozen=True, kw_only=True):
    """Down: the sync is committed. A page of the plan per target, as committed."""

    re: RequestId
    sync: Identifier
    program: Identifier
    targets: TargetRows
    more: bool = False


class SyncUpdate(Message, tag="sync_update", frozen=True, kw_only=True):
    """Down: the targets of a sync that changed since the last update (at most 2/s per sync, latest value wins)."""

    sync: Identifier
    targets: TargetRows


class SyncDone(Message, tag="sync_done", frozen=True, kw_only=True):
    """Down: every target has ended. Sent again after each login until the initiator answers with `noted`."""

    sync: Identifier
    program: Identifier
    outcome: Code
    counts: Annotated[dict[Code, Count], Meta(max_length=limits.MAP_ITEMS)]


class Undo(Message, tag="undo", frozen=True, kw_only=True):
    """Up: bring back what the targets of `sync` had before it: a new sync, answered with `sync_accepted`.

    `targets` are terminal ids, none meaning all. The same `request_key` again is the same sync.
    """

    id: RequestId
    request_key: Identifier
    sync: Identifier
    targets: Targets = ()


class SyncRequest(Message, tag="sync_request", frozen=True, kw_only=True):
    """Up: all targets of one sync of this account as they stand now."""

    id: RequestId
    sync: Identifier


class SyncResult(Message, tag="sync_result", frozen=True, kw_only=True):
    """Down: a page of the targets of one sync."""

    re: RequestId
    sync: Identifier
    targets: TargetRows
    more: bool = False


class Cancel(Message, tag="cancel", frozen=True, kw_only=True):
    """Up: end what has not begun to install."""

    id: RequestId
    sync: Identifier


class CancelResult(Message, tag="cancel_result", frozen=True, kw_only=True):
    """Down: how many targets were cancelled and how many were too late."""

    re: RequestId
    sync: Identifier
    cancelled: Count
    too_late: Count


class History(Message, tag="history", frozen=True, kw_only=True):
    """Up: the account's syncs, newest first; `before` is the last sync of the page before."""

    id: RequestId
    before: OptionalIdentifier = ""


class SyncRow(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One sync in the history: who asked for what, when, how it ended, and how many targets are in which state.

    `undoes` is the sync that this one takes back, empty for any other.
    """

    sync: Identifier
    program: Identifier
    version: Version = ""
    initiator: Identifier
    initiator_name: Text = ""
    created_at: Seconds
    ended_at: Seconds = 0.0
    outcome: Code = ""
    counts: Annotated[dict[Code, Count], Meta(max_length=limits.MAP_ITEMS)]
    size: ByteCount = 0
    sent: ByteCount = 0
    undoes: OptionalIdentifier = ""


class HistoryResult(Message, tag="history_result", frozen=True, kw_only=True):
    """Down: a page of syncs."""

    re: RequestId
    syncs: Annotated[tuple[SyncRow, ...], Meta(max_length=limits.ROWS_PER_PAGE)]
    more: bool = False


class Done(Message, tag="done", frozen=True, kw_only=True):
    """Down: a request that has nothing else to say was carried out."""

    re: RequestId


# --- safety -------------------------------------------------------------------------------------------------------


class PairingRequest(Message, tag="pairing_request", frozen=True, kw_only=True):
    """Up: say which device shows this code."""

    id: RequestId
    code: PairingCode


class PairingResult(Message, tag="pairing_result", frozen=True, kw_only=True):
    """Down: the device that shows the code, so that a person can tell whether it is the one before them."""

    re: RequestId
    code: PairingCode
    name: Name
    device: DeviceInfo
    device_key: PublicKey
    address: Annotated[str, Meta(max_length=64)] = ""
    seconds: Seconds


class Approve(Message, tag="approve", frozen=True, kw_only=True):
    """Up: make the device with `device_key`, which shows `code`, a terminal of this account, or not. Done or error."""

    id: RequestId
    code: PairingCode
    device_key: PublicKey
    accept: bool = True


class Revoke(Message, tag="revoke", frozen=True, kw_only=True):
    """Up: this terminal of the account is not one any more: its key is dead, and what it is owed. Done or error."""

    id: RequestId
    terminal: Identifier


class Standing(Message, tag="standing", frozen=True, kw_only=True):
    """Down, after `welcome` where something is amiss and whenever it changes: what this terminal may do, and why."""

    may_receive: bool
    may_initiate: bool
    quarantined: bool = False
    reason: Code = ""
    detail: Text = ""
    hint: Text = ""


class PostureRequest(Message, tag="posture_request", frozen=True, kw_only=True):
    """Down: scan your programs with the rule set `rules`, and report with this `nonce`."""

    rules: Digest
    nonce: Nonce


class Posture(Message, tag="posture", frozen=True, kw_only=True):
    """Up: a PostureReport as msgpack. `signature` is by the device key over `keys.posture_bytes`."""

    report: Annotated[bytes, Meta(min_length=1, max_length=limits.POSTURE_BYTES)]
    signature: Signature


class FindingRow(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a rule has found: in which program, in which of its files, by which rule."""

    program: OptionalIdentifier = ""
    file: Text
    rule: Code


class PostureReport(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a terminal says of its own programs' files: rules, when (`began_at`), how long, how much, what was found.

    `skipped` files could not be read or were over the scan's limits; not `complete` when the budget ended it before its
    end. `findings_in_all` counts those beyond the rows as well.
    """

    rules: Digest
    nonce: Nonce
    engine: Text
    began_at: Seconds
    seconds: Seconds
    programs: Count
    files: Count
    bytes: Count
    skipped: Count = 0
    complete: bool = True
    findings: Annotated[tuple[FindingRow, ...], Meta(max_length=limits.POSTURE_FINDINGS)] = ()
    findings_in_all: Count = 0


# --- transfer -----------------------------------------------------------------------------------------------------


class Chunking(Struct, frozen=True, kw_only=True):
    """How the object was cut: algorithm and sizes in bytes. A receiver cuts older files with the same."""

    algorithm: Name
    minimum: Count
    average: Count
    maximum: Count


class InstallerOffer(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What an offered installer is, so that the terminal can install and later recognise it."""

    program: Identifier
    package_name: Identifier
    version: Version
    installer_kind: InstallerKind
    file_name: Annotated[str, Meta(max_length=255)]


class ObjectMessage(Message, frozen=True, kw_only=True):
    """What is said of an object before it comes: `object` is its SHA-256; `pages` manifest pages follow."""

    object: Digest
    size: Annotated[int, Meta(ge=1, le=limits.OBJECT_BYTES)]
    chunks: Annotated[int, Meta(ge=1, le=limits.MANIFEST_ENTRIES)]
    stored_size: Annotated[int, Meta(ge=1, le=limits.OBJECT_BYTES)]
    pages: Annotated[int, Meta(ge=1, le=limits.MANIFEST_ENTRIES // limits.MANIFEST_PAGE_ENTRIES + 1)]
    manifest: Digest
    chunking: Chunking


class Offer(ObjectMessage, tag="offer", frozen=True, kw_only=True):
    """Either: `delivery` brings `object` (SHA-256), `size` bytes in `chunks` chunks; `pages` manifest pages follow.

    `attempt` counts the tries, from 1. `initiator` names the device that asked, for the person who is to agree.
    """

    delivery: Identifier
    installer: InstallerOffer
    attempt: Count = 1
    initiator: Text = ""


class Rules(ObjectMessage, tag="rules", frozen=True, kw_only=True):
    """Down: the rule set to scan with. It comes as what an offer brings; who has it already says `received` at once."""

    delivery: Identifier


class Publish(ObjectMessage, tag="publish", frozen=True, kw_only=True):
    """Up: put an installer into the catalogue: the object comes as that of an offer does, the other way round.

    `upload` is chosen by the terminal and takes the place of the delivery in `want`, `progress`, `refused` and
    `withdraw`. `sidecar` is the text of the file's NAME.lockstep.toml, UTF-8.
    """

    id: RequestId
    upload: Identifier
    file_name: Annotated[str, Meta(min_length=1, max_length=255)]
    program: OptionalIdentifier = ""
    title: Text = ""
    channel: Code = ""
    sidecar: Annotated[bytes, Meta(max_length=limits.SIDECAR_BYTES)] = b""


class PublishAccepted(Message, tag="publish_accepted", frozen=True, kw_only=True):
    """Down: the upload may begin: the manifest goes up, then what the hub wants of the object."""

    re: RequestId
    upload: Identifier


class Published(Message, tag="published", frozen=True, kw_only=True):
    """Down: the upload is in the catalogue. `new` is false when these bytes were there before; `fits` is for people.

    Nobody gets what is of a `yanked` release or a `retired` program, or whose `verdict` is other than `clean`;
    `finding` says why that is.
    """

    upload: Identifier
    program: Identifier
    title: Text
    version: Version
    installer_kind: InstallerKind
    digest: Digest
    new: bool
    fits: Text
    yanked: bool = False
    retired: bool = False
    verdict: Code = "clean"
    finding: Text = ""


class ManifestPage(Message, tag="manifest", frozen=True, kw_only=True):
    """Either: page `page` (from 0) of the object's manifest; 40 bytes an entry."""

    object: Digest
    page: Count
    entries: Annotated[bytes, Meta(max_length=limits.MANIFEST_PAGE_ENTRIES * limits.MANIFEST_ENTRY_BYTES)]


class Run(Struct, frozen=True, array_like=True):
    """A run of consecutive chunks: the first index and how many."""

    first: ChunkIndex
    count: Annotated[int, Meta(ge=1, le=limits.MANIFEST_ENTRIES)]


class Want(Message, tag="want", frozen=True, kw_only=True):
    """Either: the receiver lacks these runs, ascending and disjoint. Another `want` may follow when they have come.

    What a receiver says names the delivery, not the object: the same object may have been offered before.
    """

    delivery: Identifier
    runs: Annotated[tuple[Run, ...], Meta(min_length=1, max_length=limits.WANT_RUNS)]


class Chunks(Message, tag="chunks", frozen=True, kw_only=True):
    """Either: one frame: `count` chunks from `first`, their stored bytes end to end as they lie in the pack."""

    object: Digest
    first: ChunkIndex
    count: Annotated[int, Meta(ge=1, le=limits.MANIFEST_ENTRIES)]
    data: Annotated[bytes, Meta(min_length=1, max_length=limits.FRAME_BYTES)]


class Progress(Message, tag="progress", frozen=True, kw_only=True):
    """Either: the receiver has verified and written `frames` frames since the offer, and holds `done` bytes in all."""

    delivery: Identifier
    frames: Count
    done: ByteCount


class Received(Message, tag="received", frozen=True, kw_only=True):
    """Either: the whole object was read again and its digest is right."""

    delivery: Identifier


class Refused(Message, tag="refused", frozen=True, kw_only=True):
    """Either: the receiver will not take the object, and why."""

    delivery: Identifier
    reason: Code
    detail: Text = ""


class Withdraw(Message, tag="withdraw", frozen=True, kw_only=True):
    """Either: the delivery is not wanted any more; what has been received may be kept, nothing more comes.

    Upwards it gives an upload up. Downwards it also answers a `state` that the delivery can no longer come to, above
    all `installing`.
    """

    delivery: Identifier


# --- delivery -----------------------------------------------------------------------------------------------------


class State(Message, tag="state", frozen=True, kw_only=True):
    """Up: where a delivery stands on the terminal. A final state is kept on its disk and sent again until `noted`.

    After `installing` nothing is installed before the hub has `noted` it. `seconds`: with `postponed`, for how long.
    `attempt`: with `failed`, that of the offer, so that a report that comes twice counts once; 0 is not checked.
    """

    delivery: Identifier
    state: Code
    reason: Code = ""
    detail: Text = ""
    version: Version = ""
    seconds: Seconds = 0.0
    attempt: Count = 0


class Noted(Message, tag="noted", frozen=True, kw_only=True):
    """Either: what the other reported of this delivery (upwards: this sync's end) is kept; it need not come again."""

    of: Identifier
    state: Code = ""


# --- on one device ------------------------------------------------------------------------------------------------
# Between the processes of one device, over the agent's local socket. A hub is never sent these.


class Inbox(Message, tag="inbox", frozen=True, kw_only=True):
    """Local: say what waits for a person at this device."""

    id: RequestId


class InboxRow(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One delivery a person is to decide on. `seconds` is how long it is put off still, 0 when it asks now."""

    delivery: Identifier
    program: Identifier
    version: Version
    installer_kind: InstallerKind
    file_name: Annotated[str, Meta(max_length=255)]
    size: ByteCount
    initiator: Text = ""
    since: Seconds = 0.0
    seconds: Seconds = 0.0


class InboxResult(Message, tag="inbox_result", frozen=True, kw_only=True):
    """Local: everything that waits for a person, oldest first."""

    re: RequestId
    rows: Annotated[tuple[InboxRow, ...], Meta(max_length=limits.INBOX_ROWS)]


class Decide(Message, tag="decide", frozen=True, kw_only=True):
    """Local: a person has decided: `accept`, `decline` or `later` (for `seconds`). Answered with `done`."""

    id: RequestId
    delivery: Identifier
    decision: Literal["accept", "decline", "later"]
    seconds: Seconds = 0.0


class PostureNow(Message, tag="posture_now", frozen=True, kw_only=True):
    """Local: scan the programs of this terminal now. Answered with `done` when that has been done."""

    id: RequestId


# --- any ----------------------------------------------------------------------------------------------------------


class Error(Message, tag="error", frozen=True, kw_only=True):
    """Either: something was refused. `re` names the request; 0 means the connection itself, which then closes."""

    code: Code
    message: Text
    hint: Text = ""
    near: Annotated[tuple[Text, ...], Meta(max_length=8)] = ()
    re: Count = 0


AnyMessage: TypeAlias = (
    Hello
    | Challenge
    | Enrol
    | Login
    | Pairing
    | Welcome
    | Devices
    | DeviceChanges
    | DevicesRequest
    | DeviceUpdate
    | Inventory
    | Programs
    | ProgramsResult
    | Plan
    | PlanResult
    | Sync
    | SyncAccepted
    | SyncUpdate
    | SyncDone
    | Undo
    | SyncRequest
    | SyncResult
    | Cancel
    | CancelResult
    | History
    | HistoryResult
    | Done
    | PairingRequest
    | PairingResult
    | Approve
    | Revoke
    | Standing
    | PostureRequest
    | Posture
    | Offer
    | Rules
    | ManifestPage
    | Want
    | Chunks
    | Progress
    | Received
    | Refused
    | Withdraw
    | Publish
    | PublishAccepted
    | Published
    | State
    | Noted
    | Inbox
    | InboxResult
    | Decide
    | PostureNow
    | Error
)

Request: TypeAlias = (
    DevicesRequest
    | DeviceUpdate
    | Programs
    | Plan
    | Sync
    | Undo
    | SyncRequest
    | Cancel
    | History
    | Publish
    | PairingRequest
    | Approve
    | Revoke
)
LocalRequest: TypeAlias = Inbox | Decide | PostureNow

CLASSES: Final[tuple[type[Message], ...]] = get_args(AnyMessage)
REQUESTS: Final[tuple[type[Message], ...]] = get_args(Request)
LOCAL_REQUESTS: Final[tuple[type[Message], ...]] = get_args(LocalRequest)


def kind_of(message: type[Message] | Message) -> str:
    """Return the `kind` a message has on the wire."""
    return str(message.__struct_config__.tag)


BY_KIND: Final[dict[str, type[Message]]] = {kind_of(message_class): message_class for message_class in CLASSES}
