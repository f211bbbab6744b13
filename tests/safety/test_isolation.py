"""Another account's things answer as things that never were: every kind of message, every field that names something.

Made from the schema: a message kind or field that is new fails here until it is said what it names. Two accounts are
full of life on one real hub; one of them names, in every field in turn, everything the other has. Each answer is held
against that for an id of the same form that nobody ever had: byte for byte, and by what the hub looked up for it.
"""

import asyncio
import contextlib
import re
import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Final, TypeAlias, TypeVar

import msgspec
import pytest
from msgspec import inspect, structs
from websockets.exceptions import ConnectionClosed

from hub import guesses, pairings
from hub.catalogue import PublishOptions
from hub.records import Published, new_id
from hub.store import QUERIES, Transaction
from protocol import codec, keys, limits, messages
from protocol.conversation import MAY_SAY, Side
from protocol.errors import ProtocolError
from protocol.messages import Message
from tests.harness.hubs import RunningHub, running_hub
from tests.harness.installers import make_installer
from tests.harness.raw import RawTerminal, raw_terminal
from tests.harness.uploads import PackedFile, Upload
from tests.safety import ledger

UP: Final = frozenset().union(*(kinds for (_, side), kinds in MAY_SAY.items() if side is Side.TERMINAL)) | set(
    messages.LOCAL_REQUESTS
)

# Strings and bytes that name nothing of anybody's, and why.
NAMES_NOTHING: Final = {
    "hello.*": "fresh for each connection, or the protocol's own words",
    "enrol.password": "a secret: who has the right one has the right",
    "enrol.token": "a secret, and the provider's",
    "*.host": "the hub itself",
    "*.signature": "made anew for each message",
    "*.device.*": "what a device says of itself",
    "inventory.programs[[]].package_name": "a system's name of a program",
    "*.version": "a version",
    "*.channel": "a channel, which is every account's",
    "*.chunking.algorithm": "the protocol's own word",
    "programs.query": "part of a name in the catalogue, which is every account's",
    "*.file_name": "the sender's own file",
    "publish.title": "the catalogue's, which is every account's",
    "publish.sidecar": "the sender's own file",
    "publish.manifest": "over what the sender sends",
    "manifest.entries": "an object's own bytes",
    "chunks.data": "an object's own bytes",
    "refused.reason": "a word",
    "refused.detail": "words",
    "state.state": "a word",
    "state.reason": "a word",
    "state.detail": "words",
    "noted.state": "a word",
    "offer.*": "a terminal offers nothing: the kind itself is refused, which its case here shows",
    "posture.report": "a PostureReport, whose fields follow",
    "posture_report.engine": "words",
    "posture_report.findings[[]].file": "a name on the device itself",
    "posture_report.findings[[]].rule": "words",
    "error.*": "words, which the hub passes over",
}

# What each kind is tried with: a right message of one's own, in which one field after the other is replaced.
Make: TypeAlias = Callable[["World"], Message]
MESSAGES: Final[dict[str, Make]] = {
    "enrol": lambda world: world.enrol,
    "login": lambda world: world.ada.login_message(receives=False),
    "device_info": lambda world: messages.DeviceUpdate(id=7, name="Adas PC"),
    "inventory": lambda world: messages.Inventory(
        programs=(world.installed(world.hello),), installing=(world.own_delivery,), asking=(world.own_delivery,)
    ),
    "programs": lambda world: messages.Programs(id=7, after="hello"),
    "plan": lambda world: messages.Plan(id=7, program="hello", targets=(world.own_other,)),
    "sync": lambda world: messages.Sync(id=7, request_key=new_key(), program="hello", targets=(world.own_other,)),
    "undo": lambda world: messages.Undo(id=7, request_key=new_key(), sync=world.own_sync, targets=(world.own_other,)),
    "sync_request": lambda world: messages.SyncRequest(id=7, sync=world.own_sync),
    "cancel": lambda world: messages.Cancel(id=7, sync=world.own_sync),
    "history": lambda world: messages.History(id=7, before=world.own_sync),
    "pairing_request": lambda world: messages.PairingRequest(id=7, code="BCDFGHJK"),
    "approve": lambda world: messages.Approve(id=7, code="BCDFGHJK", device_key=world.ada.signing_key.public),
    "revoke": lambda world: messages.Revoke(id=7, terminal=world.own_other),
    "posture": lambda world: messages.Posture(report=b"-", signature=bytes(64)),
    "posture_report": lambda world: messages.Posture(report=b"-", signature=bytes(64)),
    "manifest": lambda world: world.file.pages()[0],
    "want": lambda world: messages.Want(delivery=world.own_delivery, runs=(messages.Run(0, 1),)),
    "chunks": lambda world: world.file.frame(messages.Run(0, 1)),
    "progress": lambda world: messages.Progress(delivery=world.own_delivery, frames=1, done=1),
    "received": lambda world: messages.Received(delivery=world.own_delivery),
    "refused": lambda world: messages.Refused(delivery=world.own_delivery, reason="no-space"),
    "withdraw": lambda world: messages.Withdraw(delivery="u-own"),
    "publish": lambda world: world.file.publish("u-own"),
    "state": lambda world: messages.State(delivery=world.own_delivery, state="failed", reason="no-space"),
    "noted": lambda world: messages.Noted(of=world.own_sync),
    "decide": lambda world: messages.Decide(id=7, delivery=world.own_delivery, decision="accept"),
}
NOTHING_TO_NAME: Final = {"hello", "devices_request", "offer", "error", "inbox", "posture_now"}
# Beside a connection that does nothing else: one that receives a delivery of its own, one with an upload of its own,
# and one whose first inventory is still due, which alone is believed about what its people are asked.
RECEIVING: Final = frozenset({"want", "progress", "received", "refused", "state", "inventory"})
UPLOADING: Final = frozenset({"manifest", "chunks", "withdraw", "publish", "want"})
ARRIVING: Final = frozenset({"inventory"})
OPENING: Final = frozenset({"enrol", "login"})
UNASKED: Final = frozenset({"devices", "device_changes", "sync_update", "sync_done", "offer", "manifest"})
# What the hub looks up by itself meanwhile.
BESIDE: Final = frozenset({
    "overdue", "put_off_until_now", "keep_hub_clock", "changed_targets", "ended_not_noted", "count_states",
    "not_welcome", "installers_after", "audit_heads", "audit_page", "add_audit_head",
})  # fmt: skip


# --- the schema -----------------------------------------------------------------------------------------------------


def leaves(kind: inspect.Type, path: str) -> Iterator[str]:
    """Every string and bytes in a type, by its path."""
    match kind:
        case inspect.StrType() | inspect.BytesType():
            yield path
        case inspect.VarTupleType(item_type=item) | inspect.ListType(item_type=item):
            yield from leaves(item, f"{path}[]")
        case inspect.UnionType(types=types):
            for one in types:
                yield from leaves(one, path)
        case inspect.StructType(fields=fields):
            for field in fields:
                yield from leaves(field.type, f"{path}.{field.encode_name}")
        case inspect.TupleType(item_types=types):
            for one in types:
                yield from leaves(one, f"{path}[]")
        case inspect.DictType() | inspect.AnyType():
            raise AssertionError(f"{path}: this test does not know what is in a {kind}")


def schema() -> dict[str, list[str]]:
    """Every kind that may be said to a hub (and what is within a posture), with the paths in it that may name."""
    kinds = {messages.kind_of(message): message for message in UP} | {"posture_report": messages.PostureReport}
    return {
        kind: [path.removeprefix(f"{kind}.") for path in leaves(inspect.type_info(of), kind)]
        for kind, of in sorted(kinds.items())
    }


def named_by(kind: str, paths: list[str]) -> list[str]:
    """The paths that name something."""
    return [path for path in paths if not any(fnmatch(f"{kind}.{path}", pattern) for pattern in NAMES_NOTHING)]


def test_every_kind_that_may_be_said_to_a_hub_has_its_case_and_every_field_its_meaning() -> None:
    kinds = schema()
    assert sorted(MESSAGES.keys() | NOTHING_TO_NAME) == sorted(kinds)
    for kind in sorted(NOTHING_TO_NAME):
        assert named_by(kind, kinds[kind]) == [], f"{kind} names something: it needs a case"
    every_path = [f"{kind}.{path}" for kind, paths in kinds.items() for path in paths]
    stale = [pattern for pattern in NAMES_NOTHING if not any(fnmatch(path, pattern) for path in every_path)]
    assert stale == []
    tried = [path for kind in MESSAGES for path in named_by(kind, kinds[kind])]
    ledger.count("isolation", "kinds of message", len(kinds))
    ledger.count("isolation", "fields", len(every_path))
    assert len(tried) >= 36


def test_a_kind_without_a_case_is_noticed() -> None:
    class Peek(Message, tag="peek", frozen=True, kw_only=True):
        id: int
        terminals: tuple[messages.Identifier, ...] = ()

    path = next(leaves(inspect.type_info(Peek), "peek"))
    assert named_by("peek", [path.removeprefix("peek.")]) == ["terminals[]"]


# --- two accounts ---------------------------------------------------------------------------------------------------


class World:
    """The hub, Ada's things, and everything that Bob has."""

    def __init__(self, hub: RunningHub, file: PackedFile, hello: Published) -> None:
        self.hub = hub
        self.file: PackedFile = file
        self.hello: Published = hello
        self.ada: RawTerminal
        self.enrol: messages.Enrol
        self.own_other: str = ""
        self.own_sync: str = ""
        self.own_delivery: str = ""
        self.foreign: dict[str, str | bytes] = {}
        self.ada_account = self.bob_account = ""
        self.bobs: list[RawTerminal] = []
        self.looked_up: list[tuple[str, int]] = []

    def installed(self, published: Published, **changes: Any) -> messages.InstalledProgram:
        """What an inventory says of an installer."""
        program = messages.InstalledProgram(
            program=published.program, package_name="hello", version=published.version,
            installer_kind=published.kind, digest=bytes.fromhex(published.digest),
        )  # fmt: skip
        return structs.replace(program, **changes)

    async def bobs_state(self) -> dict[str, list[Any]]:
        """Every row that is of Bob's account, and who of it is there."""
        terminals = "(SELECT terminal_id FROM terminals WHERE account_id = :account)"
        syncs = "(SELECT sync_id FROM syncs WHERE account_id = :account)"
        rows = {
            "accounts": "SELECT * FROM accounts WHERE account_id = :account",
            "terminals": "SELECT * FROM terminals WHERE account_id = :account",
            "syncs": "SELECT * FROM syncs WHERE account_id = :account",
            "deliveries": f"SELECT * FROM deliveries WHERE sync_id IN {syncs} OR terminal_id IN {terminals}",
            "installed": f"SELECT * FROM installed WHERE terminal_id IN {terminals}",
            "postures": f"SELECT * FROM postures WHERE terminal_id IN {terminals}",
            "join_keys": "SELECT * FROM join_keys WHERE account_id = :account",
            "audit": f"SELECT * FROM audit WHERE actor IN {terminals}",
        }

        async def body(transaction: Transaction) -> dict[str, list[Any]]:
            execute = transaction._connection.execute_fetchall
            return {
                name: [tuple(row) for row in await execute(query, {"account": self.bob_account})]
                for name, query in rows.items()
            }

        state = await self.hub.hub.store.transaction(body)
        sockets = self.hub.server._services.sockets
        state["roster"] = list(self.hub.hub.presence.rosters[self.bob_account].rows())
        state["sockets"] = [
            number for number, one in sockets.items() if one.terminal and one.terminal.account_id == self.bob_account
        ]
        state["partial files"] = sorted(
            path.name for path in (self.hub.folder / "uploads").glob(f"{self.bob_account}*")
        )
        return state

    async def tidy_up(self) -> None:
        """Take back what a try has left of Ada's own: it would be found by the next one."""
        await alone(self.hub, len(self.bobs))

        async def body(transaction: Transaction) -> None:
            execute = transaction._connection.execute_fetchall
            mine = self.ada.terminal, self.own_other
            await execute("UPDATE syncs SET request_key = sync_id WHERE initiator = ?", (self.ada.terminal,))
            await execute("UPDATE terminals SET name = 'Adas PC' WHERE terminal_id = ?", mine[:1])
            await execute(
                "DELETE FROM terminals WHERE account_id = ? AND terminal_id NOT IN (?, ?)", (self.ada_account, *mine)
            )

        await self.hub.hub.store.transaction(body)
        presence = self.hub.hub.presence
        for row in presence.rosters[self.ada_account].rows():
            if row.terminal == self.ada.terminal:
                presence.rosters[self.ada_account].put(structs.replace(row, name="Adas PC"))
            elif row.terminal != self.own_other:
                presence.remove(self.ada_account, row.terminal)


def new_key() -> str:
    return secrets.token_hex(8)


def ghost_of(foreign: str | bytes) -> Any:
    """An id of the same form that nobody ever had."""
    if isinstance(foreign, bytes):
        return secrets.token_bytes(len(foreign))
    if re.fullmatch("[a-z]-[a-z2-9]{10}", foreign):
        return new_id(foreign[0])
    alphabet = pairings.ALPHABET if foreign.isupper() else "qxzjkvw"
    others = (secrets.choice(alphabet) if letter.isalpha() else letter for letter in foreign[1:])
    return foreign[0] + "".join(others)  # so that it comes in the same place where names are sorted


@asynccontextmanager
async def two_accounts(folder: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    for module, name in ((guesses, "ACCOUNT_AT_ONCE"), (guesses, "ADDRESS_AT_ONCE"), (pairings, "TRIES")):
        monkeypatch.setattr(module, name, 1_000_000)  # those limits have their own tests
    monkeypatch.setattr(limits, "PRESENCE_GRACE_SECONDS", 0.05)
    async with AsyncExitStack() as stack:
        hub = await stack.enter_async_context(running_hub(folder, scan_yara=False))
        hello = await hub.publish(make_installer(folder, "deb", "hello", size=5_000), program="hello")
        await hub.publish(make_installer(folder, "deb", "other", version="2.0", size=9_000), program="other")
        world = World(hub, PackedFile(make_installer(folder, "deb", "draft", size=60_000)), hello)
        for name in ("ada", "bob"):
            await hub.add_account(name)
            await hub.hub.accounts.allow(name, "publish", allowed=True)
        await live_as_bob(world, stack, folder)
        await live_as_ada(world)
        rows = Transaction.rows

        async def watched(self: Transaction, query: str, /, **parameters: object) -> list[Any]:
            found = await rows(self, query, **parameters)
            if query not in BESIDE:
                world.looked_up.append((query, len(found)))
            return found

        verifies = keys.verifies

        def watched_verifies(*parts: bytes) -> bool:
            world.looked_up.append(("a signature", 0))
            return verifies(*parts)

        monkeypatch.setattr(Transaction, "rows", watched)
        monkeypatch.setattr(keys, "verifies", watched_verifies)
        yield world


async def alone(hub: RunningHub, sockets: int) -> None:
    """Wait until the hub is done with every connection but so many."""
    async with asyncio.timeout(10):
        while len(hub.server._services.sockets) > sockets or hub.hub.store._waiting.qsize():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


async def enrolled(hub: RunningHub, account: str, name: str) -> RawTerminal:
    async with raw_terminal(hub) as raw:
        await raw.enrol(account, name=name)
        return raw


async def live_as_bob(world: World, stack: AsyncExitStack, folder: Path) -> None:
    """Bob has a device that is there and one that is not, syncs that have ended and that are open, half an upload."""
    hub = world.hub
    pc, laptop = await enrolled(hub, "bob", "Bobs PC"), await enrolled(hub, "bob", "Bobs Laptop")
    own_digest = secrets.token_bytes(32)
    async with raw_terminal(hub, like=laptop) as raw:  # it has been there once, so that it is meant by "all"
        await raw.login()
        await settled(raw)
    live = await stack.enter_async_context(raw_terminal(hub, like=pc))
    await live.login(inventory=False)
    own = world.installed(world.hello, program="bobs-own-program", digest=own_digest)
    await live.say(messages.Inventory(programs=(world.installed(world.hello), own)))
    asked = {}
    for number, target in enumerate((pc.terminal, laptop.terminal)):
        key = f"bobs-request-key-{number}"
        await live.say(messages.Sync(id=number + 1, request_key=key, program="hello", targets=(target,)))
        asked[key] = await live.hear(messages.SyncAccepted)
    await settled(live)
    draft = PackedFile(make_installer(folder, "deb", "bobs-draft", size=400_000))
    async with raw_terminal(hub, like=laptop) as raw:
        await raw.login(receives=False)
        await Upload(raw, draft, "bobs-upload").run(until=lambda sent: sent > 0)
        await settled(raw)
    ended, still_open = asked.values()
    world.bobs = [live]
    found = await hub.hub.accounts.find(pc.terminal)
    assert found is not None
    world.bob_account = found.account_id
    world.foreign = {
        "account": found.account_id,
        "account's name": "bob",
        "terminal that is there": pc.terminal,
        "terminal that is not": laptop.terminal,
        "device's name": "Bobs Laptop",
        "sync that has ended": ended.sync,
        "sync that is open": still_open.sync,
        "delivery that has ended": ended.targets[0].delivery,
        "delivery that is open": still_open.targets[0].delivery,
        "request key": "bobs-request-key-1",
        "upload": "bobs-upload",
        "program of his own": "bobs-own-program",
        "pairing code": await spent_pairing_code(world, live),
        "object half uploaded": draft.digest,
        "object only in an inventory": own_digest,
        "device key": pc.signing_key.public,
        "sealing key": pc.sealing_key.public,
        "run": secrets.token_bytes(16),
    }


async def spent_pairing_code(world: World, live: RawTerminal) -> str:
    """A code with which a device came to Bob's account, or one that nobody has where the hub knows no pairing."""
    with contextlib.suppress(ConnectionClosed, AttributeError, TypeError):
        async with raw_terminal(world.hub) as raw:
            challenge = await raw.hello()
            asked = structs.replace(raw.enrol_message(""), password="", pair=True, name="Bobs TV")
            await raw.say(signed_enrol(raw, challenge, asked))
            code = (await raw.hear(messages.Pairing)).code
            await live.say(messages.Approve(id=9, code=code, device_key=raw.signing_key.public))
            await live.hear(messages.Done)
            await raw.hear(messages.Welcome)
        await settled(live)
        return code
    raise AssertionError("nobody was paired")


async def live_as_ada(world: World) -> None:
    """Ada has one device she asks from, one that has everything, a sync that has ended, a delivery that is owed."""
    hub = world.hub
    world.ada, other = await enrolled(hub, "ada", "Adas PC"), await enrolled(hub, "ada", "Adas TV")
    world.own_other = other.terminal
    async with raw_terminal(hub, like=other) as raw:
        await raw.login(inventory=False)
        await raw.say(messages.Inventory(programs=(world.installed(world.hello),)))
        await settled(raw)
    async with raw_terminal(hub, like=world.ada) as raw:
        await raw.login()
        world.enrol = structs.replace(raw.enrol_message("ada", name="Adas PC"), device_key=ENROLS_WITH_ITS_OWN)
        for number, (program, target) in enumerate((("hello", other.terminal), ("other", raw.terminal))):
            await raw.say(messages.Sync(id=number + 1, request_key=new_key(), program=program, targets=(target,)))
            accepted = await raw.hear(messages.SyncAccepted)
            world.own_sync = world.own_sync or accepted.sync
        world.own_delivery = accepted.targets[0].delivery
    found = await hub.hub.accounts.find(world.ada.terminal)
    assert found is not None
    world.ada_account = found.account_id
    await alone(hub, len(world.bobs))
    async with asyncio.timeout(30):  # until those who left are shown as gone
        while hub.hub.presence._leaving:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


BARRIER: Final = messages.Programs(id=999_999, query="no such program at all")


async def settled(raw: RawTerminal) -> list[Message]:
    """Have the hub answer everything said before; return what it said meanwhile."""
    await raw.say(BARRIER)
    heard: list[Message] = []
    while True:
        message = await raw.hear_any()
        if isinstance(message, messages.ProgramsResult) and message.re == BARRIER.id:
            return heard
        heard.append(message)


StructT = TypeVar("StructT", bound=msgspec.Struct)


# --- one try --------------------------------------------------------------------------------------------------------


def put(value: StructT, path: str, new: Any) -> StructT:
    """A struct with another value at `path`; a list on the way gets one item."""
    name, _, rest = path.partition(".")
    field = name.removesuffix("[]")
    before = getattr(value, field)
    if not rest:
        return structs.replace(value, **{field: (new,) if name.endswith("[]") else new})
    if name.endswith("[]"):
        return structs.replace(value, **{field: (put(before[0], rest, new),)})
    return structs.replace(value, **{field: put(before, rest, new)})


def signed_enrol(raw: RawTerminal, challenge: messages.Challenge, enrol: messages.Enrol) -> messages.Enrol:
    signed = keys.enrol_bytes(
        terminal_nonce=raw.nonce, hub_nonce=challenge.nonce, hub_key=challenge.hub_key, account=enrol.account,
        sealing_key=enrol.sealing_key, host=enrol.host, port=enrol.port,
    )  # fmt: skip
    return structs.replace(enrol, signature=raw.signing_key.sign(signed))


def signed_login(raw: RawTerminal, challenge: messages.Challenge, login: messages.Login) -> messages.Login:
    signed = keys.login_bytes(
        terminal_nonce=raw.nonce, hub_nonce=challenge.nonce, hub_key=challenge.hub_key, terminal=login.terminal,
        host=login.host, port=login.port,
    )  # fmt: skip
    return structs.replace(login, signature=raw.signing_key.sign(signed))


def with_id(world: World, kind: str, path: str, tried: str | bytes) -> Message:
    """The message of a kind with `tried` in one of its fields."""
    if (kind, path) == ("enrol", "account"):
        return structs.replace(world.enrol, account=str(tried), password="not the right one")
    if kind == "enrol" and path in ("join_key", "token"):
        return put(structs.replace(world.enrol, account="", password=""), path, tried)
    if kind != "posture_report":
        return put(MESSAGES[kind](world), path, tried)
    report = messages.PostureReport(
        rules=bytes(32), nonce=bytes(32), engine="none", began_at=1.0, seconds=1.0, programs=1, files=1, bytes=1,
        findings=(messages.FindingRow(file="x", rule="x", program="hello"),),
    )  # fmt: skip
    data = msgspec.msgpack.encode(put(report, path, tried))
    challenge = world.ada.challenge
    assert challenge is not None
    signed = keys.posture_bytes(hub_key=challenge.hub_key, terminal=world.ada.terminal, report=data)
    return messages.Posture(report=data, signature=world.ada.signing_key.sign(signed))


async def say_in(world: World, context: str, message: Message) -> list[Message | tuple[int, str]]:
    """Say it on a fresh connection; return what the hub said, and how it closed where it did."""
    like = None if context == "opening" and isinstance(message, messages.Enrol) else world.ada
    async with raw_terminal(world.hub, like=like) as raw:
        await prepare(world, raw, context)
        world.looked_up.clear()
        heard: list[Message | tuple[int, str]] = []
        try:
            if context == "opening":
                heard.append(await open_with(raw, message))
                return heard
            await raw.say(message)
            heard += await settled(raw)
            if isinstance(message, messages.Publish):
                await raw.say(messages.Withdraw(delivery=message.upload))
                await settled(raw)
        except ConnectionClosed as closed:
            assert closed.rcvd is not None
            heard.append((closed.rcvd.code, closed.rcvd.reason))
        return heard


async def prepare(world: World, raw: RawTerminal, context: str) -> None:
    if context == "opening":
        await raw.hello()
        return
    await raw.login(receives=context in ("arriving", "receiving"), inventory=context != "arriving")
    if context == "receiving":
        offer = await raw.hear(messages.Offer)
        assert offer.delivery == world.own_delivery
        await raw.hear(messages.ManifestPage)
    if context == "uploading":
        await raw.say(world.file.publish("u-own"))
        await raw.hear(messages.PublishAccepted)
    await settled(raw)


async def open_with(raw: RawTerminal, message: Message) -> Message:
    assert raw.challenge is not None
    if isinstance(message, messages.Enrol):
        key = raw.signing_key.public if message.device_key == ENROLS_WITH_ITS_OWN else message.device_key
        message = signed_enrol(raw, raw.challenge, structs.replace(message, device_key=key))
    else:
        assert isinstance(message, messages.Login)
        message = signed_login(raw, raw.challenge, message)
    await raw.say(message)
    while True:
        heard = await raw.hear_any()
        if isinstance(heard, messages.Welcome):
            await settled(raw)
            return heard
        if isinstance(heard, messages.Error):
            return heard


ENROLS_WITH_ITS_OWN: Final = bytes(32)


class Answer(msgspec.Struct, frozen=True):
    """What came back, with the id, request numbers and fresh ids made alike; and what the hub looked up for it."""

    said: tuple[str, ...]
    looked_up: tuple[tuple[str, int], ...]
    data: bytes


def alike(value: Any, tried: str | bytes, known: frozenset[str]) -> Any:
    match value:
        case dict():
            return {
                name: 0 if name in ("re", "connection") else alike(one, tried, known) for name, one in value.items()
            }
        case list() | tuple():
            return [alike(one, tried, known) for one in value]
        case str():
            text = value.replace(tried, "<id>") if isinstance(tried, str) else value.replace(tried.hex(), "<id>")
            return re.sub("[a-z]-[2-9a-z]{10}", lambda found: found[0] if found[0] in known else "<new>", text)
        case bytes() if isinstance(tried, bytes):
            return value.replace(tried, b"<id>")
    return value


async def answer_to(world: World, context: str, message: Message, tried: str | bytes) -> Answer:
    heard = await say_in(world, context, message)
    known = frozenset(one for one in (world.ada.terminal, world.own_other, world.own_sync, world.own_delivery))
    said = []
    for one in heard:
        if isinstance(one, tuple):
            said.append(repr(alike(one, tried, known)))
        elif messages.kind_of(one) not in UNASKED:
            said.append(repr(alike(msgspec.to_builtins(one, builtin_types=(bytes,)), tried, known)))
    data = b"".join(codec.encode(one) for one in heard if not isinstance(one, tuple))
    # Who logs in is looked up whoever it is; what is done then takes the same time, which other tests measure.
    looked_up = tuple((query, 0 if context == "opening" else rows) for query, rows in world.looked_up)
    await world.tidy_up()
    return Answer(tuple(said), looked_up, data)


def contexts_of(kind: str) -> list[str]:
    if kind in OPENING:
        return ["opening"]
    more = {"receiving": RECEIVING, "uploading": UPLOADING, "arriving": ARRIVING}
    return ["idle", *(context for context, kinds in more.items() if kind in kinds)]


def pairs(world: World) -> Iterator[tuple[str, str, str, str]]:
    """Every context, kind and path that names, with every foreign id that fits the field."""
    for kind, paths in schema().items():
        if kind not in MESSAGES:
            continue
        for path in named_by(kind, paths):
            for context in contexts_of(kind):
                for what, foreign in world.foreign.items():
                    if fits(world, kind, path, foreign):
                        yield context, kind, path, what


def fits(world: World, kind: str, path: str, foreign: str | bytes) -> bool:
    """Whether the schema takes it there."""
    try:
        codec.decode(codec.encode(with_id(world, kind, path, foreign)))
        if kind == "posture_report":
            message = with_id(world, kind, path, foreign)
            assert isinstance(message, messages.Posture)
            msgspec.msgpack.decode(message.report, type=messages.PostureReport)
    except (msgspec.ValidationError, ProtocolError, TypeError):
        return False
    return True


def leaked(world: World, answer: Answer, tried: str | bytes) -> list[str]:
    """What of Bob's is in an answer, beside what was said to the hub."""
    found = []
    for what, foreign in world.foreign.items():
        if foreign == tried or what == "account's name":
            continue
        data = foreign.encode() if isinstance(foreign, str) else foreign
        if data in answer.data:
            found.append(what)
    return found


async def told_bob(world: World) -> list[str]:
    """What Bob's own device heard meanwhile that is not of his own things."""
    heard = [message for live in world.bobs for message in await settled(live)]
    adas = [one.encode() for one in (world.ada.terminal, world.own_other, world.own_sync, world.own_delivery, "Adas")]
    return [
        f"Bob's device is told {message}"
        for message in heard
        if messages.kind_of(message) not in UNASKED or any(one in codec.encode(message) for one in adas)
    ]


async def leaks_of(world: World, only: str = "*") -> tuple[int, list[str]]:
    """Try every pair of the fields `only` (a pattern of KIND.PATH); return how many that were, and what leaked."""
    leaks: list[str] = []
    tried = 0
    of_nobody: dict[tuple[str, ...], Answer] = {}
    warm: set[str] = set()
    before = await world.bobs_state()
    for context, kind, path, what in [pair for pair in pairs(world) if fnmatch(f"{pair[1]}.{pair[2]}", only)]:
        foreign = world.foreign[what]
        case = f"{context}: {kind}.{path}"
        form = case, str(foreign[:1]), str(len(foreign))
        if case not in warm:  # the first may still change something of one's own
            warm.add(case)
            await answer_to_ghost(world, context, kind, path, foreign)
        if form not in of_nobody:
            of_nobody[form] = await answer_to_ghost(world, context, kind, path, foreign)
        bobs, nobodys = await answer_to(world, context, with_id(world, kind, path, foreign), foreign), of_nobody[form]
        after = await world.bobs_state()
        tried += 1
        case += f" with Bob's {what}"
        if bobs.said != nobodys.said:
            leaks.append(f"{case} answers {bobs.said}, and {nobodys.said} for nobody's")
        if bobs.looked_up != nobodys.looked_up:
            leaks.append(f"{case} looks up {bobs.looked_up}, and {nobodys.looked_up} for nobody's")
        if changed := [name for name in before if before[name] != after[name]]:
            leaks.append(f"{case} changes Bob's {', '.join(changed)}")
        leaks += [f"{case} tells of Bob's {other}" for other in leaked(world, bobs, foreign)]
        before = after
    return tried, leaks + await told_bob(world)


async def answer_to_ghost(world: World, context: str, kind: str, path: str, like: str | bytes) -> Answer:
    ghost = ghost_of(like)
    return await answer_to(world, context, with_id(world, kind, path, ghost), ghost)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("kinds", ["[a-m]*", "[n-z]*"])
async def test_another_accounts_ids_answer_as_ids_that_never_were_and_change_nothing_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kinds: str
) -> None:
    async with two_accounts(tmp_path, monkeypatch) as world:
        tried, leaks = await leaks_of(world, kinds)
        ledger.count("isolation", "pairs tried", tried)
        ledger.count("isolation", "leaks", len(leaks))
        assert leaks == []
        assert tried > 200


# Fields, and the look-up that is made to forget whose it asks for.
LEAKY: Final = (
    ("sync_request.*", "sync_of_account", " AND account_id = :account_id", ""),
    ("cancel.*", "sync_of_account", " AND account_id = :account_id", ""),
    ("state.*", "delivery_of_terminal", " AND terminal_id = :terminal_id", ""),
    ("inventory.asking*", "delivery_of_terminal", " AND terminal_id = :terminal_id", ""),
    ("noted.*", "note_sync", " AND initiator = :initiator", ""),
    ("plan.*", "terminals_of_account", "t.account_id = :account_id", "1 = 1"),
)


async def test_a_look_up_that_forgets_the_account_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with two_accounts(tmp_path, monkeypatch) as world:
        for fields, query, sound, leaky in LEAKY:
            right = QUERIES[query]
            assert sound in right
            monkeypatch.setitem(QUERIES, query, right.replace(sound, leaky))
            _, leaks = await leaks_of(world, fields)
            monkeypatch.setitem(QUERIES, query, right)
            assert leaks, fields


# --- objects, claims and views --------------------------------------------------------------------------------------


async def heard_of_upload(world: World, file: PackedFile) -> tuple[int, list[dict[str, Any]]]:
    """Publish a file as Ada; return the bytes that went up and the last word, with what is the file's own left out."""
    async with raw_terminal(world.hub, like=world.ada) as raw:
        await raw.login(receives=False)
        upload = Upload(raw, file, "u-own")
        word = msgspec.to_builtins(await upload.run(), builtin_types=(bytes,))
    await alone(world.hub, len(world.bobs))
    return upload.sent_bytes, [{name: value for name, value in word.items() if name not in OF_THE_FILE}]


OF_THE_FILE: Final = ("digest", "program", "title", "version", "fits")


async def test_publishing_what_somebody_else_has_published_answers_as_what_one_has_published_oneself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with two_accounts(tmp_path, monkeypatch) as world:
        paths = {name: make_installer(tmp_path, "deb", name, size=30_000) for name in ("adas", "bobs", "nobodys")}
        (bob,) = world.bobs
        for name, actor in (("adas", world.ada.terminal), ("bobs", bob.terminal)):
            await world.hub.hub.catalogue.publish(paths[name], PublishOptions(), actor=actor)
        before = await world.bobs_state()
        answers = {name: await heard_of_upload(world, PackedFile(path)) for name, path in paths.items()}
        assert answers["bobs"] == answers["adas"]
        assert answers["nobodys"][0] > 0
        assert await world.bobs_state() == before


async def test_what_another_account_has_uploaded_in_part_saves_nobody_else_a_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with two_accounts(tmp_path, monkeypatch) as world:
        drafts = PackedFile(tmp_path / "bobs-draft_1.0_all.deb")
        assert drafts.digest == world.foreign["object half uploaded"]
        before = await world.bobs_state()
        sent, (word,) = await heard_of_upload(world, drafts)
        assert (sent, word["new"]) == (len(drafts.pack), True)
        assert await world.bobs_state() == before


@pytest.mark.parametrize(
    "what", ["object half uploaded", "object only in an inventory", "nobody's", "another program's"]
)
async def test_an_inventory_that_claims_an_object_brings_it_to_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    async with two_accounts(tmp_path, monkeypatch) as world:
        other = await world.hub.publish(make_installer(tmp_path, "deb", "third", size=7_000), program="third")
        claimed = world.foreign | {
            "nobody's": secrets.token_bytes(32),
            "another program's": bytes.fromhex(other.digest),
        }
        async with raw_terminal(world.hub, like=world.ada) as raw:
            await raw.login(inventory=False)
            has = world.installed(world.hello, program="other", version="0.1", digest=claimed[what])
            await raw.say(messages.Inventory(programs=(has,)))
            offer = await raw.hear(messages.Offer)
            done = messages.State(delivery=offer.delivery, state="done", version="2.0")
            await raw.say(messages.Inventory(programs=(structs.replace(has, digest=offer.object),)), done)
            await raw.hear(messages.Noted)
            await raw.say(messages.History(id=3))
            syncs = (await raw.hear(messages.HistoryResult)).syncs
            (sync,) = [one.sync for one in syncs if one.program == "other"]
            await raw.say(messages.Undo(id=4, request_key=new_key(), sync=sync))
            (target,) = (await raw.hear(messages.SyncAccepted)).targets
            assert (target.state, target.reason, target.digest) == ("no_match", "nothing-before", b"")
            await settled(raw)


async def test_nothing_that_is_shown_to_one_account_is_another_accounts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with two_accounts(tmp_path, monkeypatch) as world:
        asked: list[Message] = [
            messages.DevicesRequest(id=1),
            messages.Programs(id=2),
            messages.Programs(id=3, query="hello"),
            messages.History(id=4),
            messages.Plan(id=5, program="hello", everyone=True),
            messages.Plan(id=6, program="hell", everyone=True),
            messages.Plan(id=7, program="bobs-own-progra", everyone=True),
            messages.Plan(id=8, program="hello", targets=("Bobs Lapto",)),
            messages.Plan(id=9, program="hello", targets=(str(world.foreign["terminal that is not"])[:-1],)),
            messages.SyncRequest(id=10, sync=world.own_sync),
            messages.Undo(id=11, request_key=new_key(), sync=world.own_sync, targets=("Bobs PC",)),
        ]
        async with raw_terminal(world.hub, like=world.ada) as raw:
            await raw.login()
            await raw.say(*asked)
            heard = await settled(raw)
        data = b"".join(codec.encode(message) for message in heard)
        assert world.own_other.encode() in data  # which is how what is there would be found
        names = [one if isinstance(one, bytes) else one.encode() for one in world.foreign.values()]
        names = [one for one in names if len(one) > 3]
        assert [one for one in [*names, b"Bobs TV"] if one in data] == []
        programs = next(one for one in heard if isinstance(one, messages.ProgramsResult))
        assert {one for row in programs.programs for one in row.installed_on} <= {world.ada.terminal, world.own_other}


async def test_an_act_of_one_account_is_written_down_with_nothing_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with two_accounts(tmp_path, monkeypatch) as world:
        rows = await world.hub.hub.audit.page(0)
        adas = [row for row in rows if row.actor == world.ada.terminal]
        assert {row.action for row in adas} >= {"device.enrol", "sync.ask"}
        ids = [one for one in world.foreign.values() if isinstance(one, str) and re.fullmatch("[a-z]-.{10}", one)]
        assert [one for row in adas for one in ids if one in repr(row)] == []
