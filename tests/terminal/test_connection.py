"""Connections, the client and the agent over real sockets, against a hub that follows a script."""

import asyncio
import functools
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs
from websockets.asyncio.client import unix_connect
from websockets.asyncio.server import serve
from websockets.exceptions import ConnectionClosed

from protocol import codec, keys, limits, messages
from protocol.errors import (
    LockstepError,
    NotLoggedInError,
    ProtocolError,
    RefusedError,
    UnavailableError,
    UnknownNameError,
    UsageError,
)
from protocol.messages import InstalledProgram, TargetRow
from terminal import agent as agent_module
from terminal import inbox, session
from terminal.agent import back_off, run_agent, wait_seconds
from terminal.client import enrol, open_client
from terminal.connection import Connection, address_of, connected, login_of
from terminal.consent import Preferences
from terminal.dialling import dial, parse_address, show_url
from terminal.installing import Installations
from terminal.link import error_of, unix_path
from terminal.receiving import Receiving
from terminal.state import Identity, Mark, StateFolder
from tests.terminal.scripted import DEVICE, DEVICE_KEY, HUB_KEY, NoteTaker, Peer, certificate_in, hub, thing

THING = thing(700_000)
HELLO = InstalledProgram(
    program="hello", package_name="hello", version="1.0", installer_kind="deb", digest=THING.digest
)
Script = Callable[[Peer], Awaitable[None]]


@pytest.fixture(autouse=True)
def _quiet() -> None:
    logging.getLogger("websockets").setLevel(logging.CRITICAL)  # a peer that breaks off is what many tests are about


@pytest.fixture
def folder(tmp_path: Path) -> StateFolder:
    return StateFolder(tmp_path / "state")


def identity_at(url: str) -> Identity:
    return Identity(
        url=url,
        account="ada",
        terminal="t-1",
        name="TV",
        hub_key=HUB_KEY.public,
        device_seed=DEVICE_KEY.seed,
        sealing_seed=b"s" * 32,
    )


@asynccontextmanager
async def receiving(folder: StateFolder, url: str, runner: NoteTaker | None = None) -> AsyncIterator[Connection]:
    identity = identity_at(url)
    address = address_of(identity)
    login = login_of(identity, address, DEVICE, receives=True)
    installations = Installations(folder, {"deb": runner or NoteTaker()}, lambda _kind, _sentence: None)
    installations.settle()
    async with connected(address, login, folder, installations=installations) as connection:
        yield connection
    await installations.wait()


async def hang_up(peer: Peer) -> None:
    with suppress(ConnectionClosed):
        while True:
            await peer.hear_any()


# --- addresses and dialling -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "host", "port"),
    [
        ("ws://localhost", "localhost", 80),
        ("ws://127.0.0.1:8765/", "127.0.0.1", 8765),
        ("ws://[::1]:9", "::1", 9),
        ("wss://Hub.Example", "hub.example", 443),
    ],
)
def test_an_address_is_the_host_in_lower_case_and_the_port(url: str, host: str, port: int) -> None:
    address = parse_address(url)
    assert (address.host, address.port) == (host, port)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "hub.example",
        "http://hub.example",
        "ws://",
        "ws://localhost:99999",
        "ws://localhost:0",
        "ws://localhost/x",
        "ws://a@localhost",
        "wss://a..b",
        f"wss://{'a' * 64}.example",
    ],
)
def test_what_is_no_hubs_address_is_refused_in_one_sentence(url: str) -> None:
    with pytest.raises(UsageError, match="is not a hub's address") as caught:
        parse_address(url)
    assert caught.value.message.count(". ") == 0


def test_the_network_is_not_crossed_in_the_clear_unless_that_is_allowed() -> None:
    with pytest.raises(UsageError, match="--insecure-lan"):
        parse_address("ws://192.168.1.5:8765")
    assert parse_address("ws://192.168.1.5:8765", insecure_lan=True).host == "192.168.1.5"


def test_a_url_in_the_clear_over_the_network_is_shown_as_not_encrypted() -> None:
    assert show_url("ws://192.168.1.5:8765") == "ws://192.168.1.5:8765 (not encrypted)"
    assert show_url("ws://127.0.0.1:8765") == "ws://127.0.0.1:8765"
    assert show_url("wss://hub.example:8765") == "wss://hub.example:8765"


def test_a_certificate_file_that_is_not_there_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be used"):
        parse_address("wss://hub.example", ca_file=tmp_path / "none.pem")


async def test_a_hub_that_is_not_running_is_unavailable_and_named(folder: StateFolder) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"ws://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(UnavailableError, match=f"{url} cannot be reached: the connection was refused"):
        async with receiving(folder, url):
            pytest.fail("connected")


@pytest.mark.parametrize("options", [{"subprotocols": None}, {"process_request": lambda c, _: c.respond(200, "hello")}])
async def test_a_server_that_is_no_hub_is_said_to_be_none(folder: StateFolder, options: dict[str, Any]) -> None:
    async with serve(lambda one: one.wait_closed(), "127.0.0.1", 0, **options) as server:
        url = f"ws://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}"
        with pytest.raises(UnavailableError, match="is not a Lockstep hub"):
            async with receiving(folder, url):
                pytest.fail("connected")


async def test_tls_towards_a_server_without_it_is_unavailable(folder: StateFolder) -> None:
    async with hub() as url:
        with pytest.raises(UnavailableError, match="cannot be reached"):
            async with receiving(folder, url.replace("ws://", "wss://")):
                pytest.fail("connected")


async def test_a_certificate_nobody_vouches_for_is_refused_unless_its_file_is_named(
    folder: StateFolder, tmp_path: Path
) -> None:
    certificate = certificate_in(tmp_path)
    join = functools.partial(enrol, folder, account="ada", password="secret", name="TV", device=DEVICE)

    async def enrols(peer: Peer) -> None:
        await peer.open()
        await hang_up(peer)

    async with hub(enrols, enrols, certificate=certificate) as url:
        with pytest.raises(UnavailableError, match="--ca-file") as caught:
            await join(url)
        assert caught.value.code == "untrusted-certificate"
        await join(url, ca_file=certificate)
        async with open_client(folder) as client:
            assert client.identity.ca_file == str(certificate)


# --- enrolling and logging in -----------------------------------------------------------------------------------------


async def test_enrolling_keeps_who_this_is_and_repeats_with_the_same_keys(folder: StateFolder) -> None:
    proofs: list[messages.Enrol] = []

    async def enrols(peer: Peer) -> None:
        proof = await peer.open()
        assert isinstance(proof, messages.Enrol)
        proofs.append(proof)
        await hang_up(peer)

    async with hub(enrols, enrols) as url:
        for _ in range(2):
            await enrol(folder, url, account="ada", password="secret", name="TV", device=DEVICE)
        identity = folder.identity()
    assert (identity.url, identity.terminal, identity.hub_key) == (url, "t-1", HUB_KEY.public)
    assert proofs[0].device_key == proofs[1].device_key == keys.SigningKey(identity.device_seed).public
    assert proofs[0].port == int(url.rpartition(":")[2])
    assert not folder.is_locked()


@pytest.mark.parametrize("is_another", [False, True])
async def test_what_is_to_be_said_is_kept_for_the_same_hub_at_another_address_and_not_for_another_hub(
    folder: StateFolder, is_another: bool
) -> None:
    async def enrols(peer: Peer) -> None:
        assert isinstance(await peer.open(), messages.Enrol)
        await hang_up(peer)

    before = identity_at("ws://127.0.0.1:1")
    folder.save_identity(structs.replace(before, hub_key=b"o" * 32) if is_another else before)
    report = messages.State(delivery="d-1", state="done", version="1.0")
    folder.add_report(report)
    folder.save_preferences(Preferences(consent="ask"))
    assert inbox.consider(folder, THING.offer("d-2"), lambda _kind, _sentence: None)
    async with hub(enrols) as url:
        await enrol(folder, url, account="ada", password="secret", name="TV", device=DEVICE, replace=True)
    assert (folder.reports(), len(folder.inbox())) == (((), 0) if is_another else ((report,), 1))


async def test_a_wrong_password_is_refused_in_the_hubs_words(folder: StateFolder) -> None:
    async def refuses(peer: Peer) -> None:
        await peer.challenge()
        await peer.hear(messages.Enrol)
        await peer.say(messages.Error(code="not-authorised", message="Wrong password.", hint="Try another."))
        await peer.socket.close(1008, "not-authorised")

    async with hub(refuses) as url:
        with pytest.raises(RefusedError, match=r"Wrong password\. Try another\."):
            await enrol(folder, url, account="ada", password="wrong", name="TV", device=DEVICE)
    assert not folder.has_identity()


async def test_a_hub_with_another_key_is_not_told_the_password_again_unless_it_may_be_another(
    folder: StateFolder,
) -> None:
    heard: list[object] = []

    async def imposter(peer: Peer) -> None:
        await peer.challenge(keys.SigningKey(b"x" * 32))
        with suppress(ConnectionClosed):
            heard.append(await peer.hear_any())

    async with hub(imposter, imposter) as url:
        folder.save_identity(identity_at(url))
        with pytest.raises(RefusedError, match="--replace") as caught:
            await enrol(folder, url, account="ada", password="secret", name="TV", device=DEVICE)
        assert caught.value.code == "hub-key-changed"
        assert heard == []
        with pytest.raises(UnavailableError):
            await enrol(folder, url, account="ada", password="secret", name="TV", device=DEVICE, replace=True)
        assert [type(message) for message in heard] == [messages.Enrol]


async def test_a_hub_whose_key_changed_hears_no_proof(folder: StateFolder) -> None:
    heard: list[object] = []

    async def imposter(peer: Peer) -> None:
        await peer.challenge(keys.SigningKey(b"x" * 32))
        with suppress(ConnectionClosed):
            heard.append(await peer.hear_any())

    async with hub(imposter) as url:
        with pytest.raises(RefusedError) as caught:
            async with receiving(folder, url):
                pytest.fail("logged in")
    assert caught.value.code == "hub-key-changed"
    assert heard == []


async def test_a_hub_that_never_answers_is_given_up(folder: StateFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("protocol.limits.LOGIN_SECONDS", 0.05)
    async with hub(hang_up) as url:
        with pytest.raises(UnavailableError, match="did not finish the login"):
            async with receiving(folder, url):
                pytest.fail("logged in")


@pytest.mark.parametrize(
    ("noise", "code"), [("text", "text-message"), (b"\xc1", "bad-msgpack"), (b"x" * 8_193, "too-large")]
)
async def test_a_peer_that_talks_nonsense_breaks_the_protocol(
    folder: StateFolder, noise: str | bytes, code: str
) -> None:
    async def babbles(peer: Peer) -> None:
        await peer.socket.send(noise)
        await hang_up(peer)

    async with hub(babbles) as url:
        with pytest.raises(ProtocolError) as caught:
            async with receiving(folder, url):
                pytest.fail("logged in")
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("close_code", "error_class", "code"),
    [
        (1001, UnavailableError, "unavailable"),
        (1012, UnavailableError, "restarting"),
        (1013, UnavailableError, "busy"),
        (4000, RefusedError, "replaced"),
        (4001, ProtocolError, "protocol-violation"),
        (4002, UnavailableError, "too-slow"),
        (4003, NotLoggedInError, "revoked"),
    ],
)
async def test_each_close_code_has_its_meaning(
    folder: StateFolder, close_code: int, error_class: type[LockstepError], code: str
) -> None:
    async def closes(peer: Peer) -> None:
        await peer.open()
        await peer.socket.close(close_code)

    async with hub(closes) as url, receiving(folder, url) as connection:
        error = await connection.link.ended()
    assert (type(error), error.code) == (error_class, code)


# --- deliveries -------------------------------------------------------------------------------------------------------


async def test_a_delivery_is_received_installed_reported_and_kept_until_noted(folder: StateFolder) -> None:
    runner = NoteTaker()
    heard: list[Any] = []
    kept: list[tuple[messages.State, ...]] = []

    async def delivers(peer: Peer) -> None:
        await peer.open()
        assert await peer.hear(messages.Inventory) == messages.Inventory(programs=())
        heard.extend(await peer.send_object(THING, THING.offer()))
        kept.append(folder.reports())
        await peer.say(messages.Noted(of="d-1", state="done"))

    async with hub(delivers) as url, receiving(folder, url, runner) as connection:
        await connection.link.ended()
    done = messages.State(delivery="d-1", state="done", version="1.0")
    assert heard == [
        messages.State(delivery="d-1", state="verifying"),
        messages.Received(delivery="d-1"),
        messages.State(delivery="d-1", state="installing"),
        messages.Inventory(programs=(HELLO,), installing=("d-1",)),
        done,
    ]
    assert runner.installed == [THING.content]
    assert runner.tasks[0].facts == {"file_name": "hello_1.0_all.deb"}
    assert (kept, folder.reports(), folder.inventory()) == ([(done,)], (), (HELLO,))
    assert folder.marks() == ()


async def test_a_report_comes_again_on_the_next_login_until_it_is_noted(folder: StateFolder) -> None:
    done = messages.State(delivery="d-1", state="done", version="1.0")
    folder.add_report(done)

    async def forgets(peer: Peer) -> None:
        await peer.open()
        assert await peer.hear(messages.State) == done
        await peer.hear(messages.Inventory)

    async def notes(peer: Peer) -> None:
        await forgets(peer)
        await peer.say(messages.Noted(of="d-1", state="done"))

    async with hub(forgets, notes) as url:
        for reports in ((done,), ()):
            async with receiving(folder, url) as connection:
                await connection.link.ended()
            assert folder.reports() == reports


async def test_a_broken_transfer_goes_on_where_it_stopped(folder: StateFolder) -> None:
    wants: list[tuple[messages.Run, ...]] = []

    async def breaks_off(peer: Peer) -> None:
        await peer.open()
        await peer.hear(messages.Inventory)
        await peer.say(THING.offer(), THING.page())
        wants.append((await peer.hear(messages.Want)).runs)
        await peer.say(THING.frame(messages.Run(0, 6)))
        await peer.hear(messages.Progress)
        peer.socket.transport.abort()

    async def goes_on(peer: Peer) -> None:
        await peer.open()
        await peer.hear(messages.Inventory)
        await peer.say(THING.offer(), THING.page())
        want = await peer.hear(messages.Want)
        wants.append(want.runs)

    async with hub(breaks_off, goes_on) as url:
        for _ in range(2):
            async with receiving(folder, url) as connection:
                await connection.link.ended()
    count = THING.manifest.count
    assert wants == [(messages.Run(0, count),), (messages.Run(6, count - 6),)]


async def _lying_manifest(peer: Peer) -> None:
    other = thing(700_000, seed=2)
    await peer.say(THING.offer(), structs.replace(other.page(), object=THING.digest))


async def _truncated_offer(peer: Peer) -> None:
    await peer.say(structs.replace(THING.offer(), chunks=THING.manifest.count + 5_000))


async def _wrong_digest(peer: Peer) -> None:
    digest = b"\x01" * 32
    await peer.say(THING.offer(digest=digest), THING.page(digest=digest))
    for run in (await peer.hear(messages.Want)).runs:
        for index in range(run.first, run.first + run.count):
            await peer.say(THING.frame(messages.Run(index, 1), digest))


async def _out_of_range(peer: Peer) -> None:
    await peer.say(THING.offer(), THING.page())
    await peer.hear(messages.Want)
    await peer.say(structs.replace(THING.frame(messages.Run(0, 1)), first=THING.manifest.count))


async def _damaged_chunk(peer: Peer) -> None:
    await peer.say(THING.offer(), THING.page())
    await peer.hear(messages.Want)
    frame = THING.frame(messages.Run(0, 1))
    await peer.say(structs.replace(frame, data=frame.data[:-1] + bytes([frame.data[-1] ^ 1])))


async def _too_large(peer: Peer) -> None:
    await peer.say(THING.offer())


@pytest.mark.parametrize(
    ("lie", "reason"),
    [
        (_lying_manifest, "wrong-digest"),
        (_truncated_offer, "bad-transfer"),
        (_wrong_digest, "wrong-digest"),
        (_out_of_range, "bad-transfer"),
        (_damaged_chunk, "wrong-digest"),
        (_too_large, "no-space"),
    ],
)
async def test_a_lie_is_refused_and_reported_and_nothing_is_installed(
    folder: StateFolder, lie: Script, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if reason == "no-space":
        monkeypatch.setattr(
            "terminal.downloads.Download.__init__.__kwdefaults__", {"place": None, "reserve_bytes": 2**60}
        )
    ends: list[Any] = []

    async def lies(peer: Peer) -> None:
        await peer.open()
        await peer.hear(messages.Inventory)
        await lie(peer)
        while not ends or not isinstance(ends[-1], messages.State) or ends[-1].state != "failed":
            ends.append(await peer.hear_any())

    runner = NoteTaker()
    async with hub(lies) as url, receiving(folder, url, runner) as connection:
        await connection.link.ended()
    refused, failed = ends[-2:]
    assert isinstance(refused, messages.Refused)
    assert (refused.reason, failed.reason) == (reason, reason)
    assert folder.reports() == (failed,)
    assert (runner.tasks, list(folder.installed.iterdir()), list(folder.downloads.iterdir())) == ([], [], [])


async def test_an_installation_outlives_its_connection_and_is_reported_on_the_next(folder: StateFolder) -> None:
    class Slow(NoteTaker):
        async def install(self, task: Any) -> Any:
            begun.set()
            await broken.wait()
            return await super().install(task)

    begun, broken = asyncio.Event(), asyncio.Event()

    async def breaks_off(peer: Peer) -> None:
        await peer.open()
        await peer.hear(messages.Inventory)
        with suppress(ConnectionClosed):
            await peer_installs(peer)
        peer.socket.transport.abort()

    async def peer_installs(peer: Peer) -> None:
        await peer.say(THING.offer(), THING.page())
        for run in (await peer.hear(messages.Want)).runs:
            for index in range(run.first, run.first + run.count):
                await peer.say(THING.frame(messages.Run(index, 1)))
        while True:
            message = await peer.hear_any()
            if isinstance(message, messages.State) and message.state == "installing":
                await peer.say(messages.Noted(of="d-1", state="installing"))
                await begun.wait()
                return

    async with hub(breaks_off) as url, receiving(folder, url, Slow()) as connection:
        await connection.link.ended()
        assert [mark.offer for mark in folder.marks()] == [THING.offer()]
        broken.set()
    assert folder.reports() == (messages.State(delivery="d-1", state="done", version="1.0"),)
    assert folder.inventory() == (HELLO,)


async def test_a_peer_that_stays_silent_is_pinged_and_then_dropped(
    folder: StateFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def goes_deaf(peer: Peer) -> None:
        await peer.open()
        peer.socket.transport.pause_reading()
        await asyncio.wait_for(over.wait(), 5)
        peer.socket.transport.abort()

    over = asyncio.Event()
    monkeypatch.setattr("protocol.limits.PING_EVERY_SECONDS", 0.05)
    monkeypatch.setattr("protocol.limits.HEARD_WITHIN_SECONDS", 0.05)
    async with hub(goes_deaf) as url, receiving(folder, url) as connection:
        error = await connection.link.ended()
        over.set()
    assert "Nothing was heard" in error.message


async def test_what_is_abandoned_in_the_middle_of_a_step_is_no_news(folder: StateFolder) -> None:
    news: list[Any] = []
    nothing_installs = Installations(folder, {}, lambda _kind, _sentence: None)
    hands = Receiving(folder, nothing_installs, news.append, news.append, lambda _kind, _sentence: None)
    hands.perform(session.Begin(1, THING.offer()))
    assert hands.perform(session.AddPage(1, THING.page())) == session.PageAdded(1, last=True)
    (folder.downloads / THING.digest.hex()).write_bytes(THING.content)
    hands.perform(session.Prepare(1))
    await hands.settle()
    assert news == []
    assert (folder.downloads / THING.digest.hex()).read_bytes() == THING.content


async def test_a_runner_that_breaks_its_promise_fails_the_delivery_and_hangs_nothing(folder: StateFolder) -> None:
    class Broken(NoteTaker):
        async def install(self, task: Any) -> Any:
            raise RuntimeError("no result")

    ends: list[Any] = []

    async def delivers(peer: Peer) -> None:
        await peer.open()
        await peer.hear(messages.Inventory)
        ends.extend(await peer.send_object(THING, THING.offer()))

    async with hub(delivers) as url, receiving(folder, url, Broken()) as connection:
        await connection.link.ended()
    assert (ends[-1].state, ends[-1].reason) == ("failed", "runner-failed")
    assert "no result" in ends[-1].detail


async def test_a_peer_that_takes_nothing_is_cut_off_when_the_queue_is_full(folder: StateFolder) -> None:
    async def opens(peer: Peer) -> None:
        await peer.open()
        await hang_up(peer)

    async with hub(opens) as url, receiving(folder, url) as connection:
        for _ in range(limits.OUTBOUND_CONTROL_MESSAGES + 1):
            connection.link.say(messages.Noted(of="s-1"))
        error = await connection.link.ended()
    assert error.code == "too-slow"


# --- the client -------------------------------------------------------------------------------------------------------


def target(state: str, **fields: Any) -> TargetRow:
    return TargetRow(terminal="t-2", name="Car", state=state, **fields)


async def _answer_everything(peer: Peer) -> None:
    """A hub with one other device, two pages of programs and a sync that goes well."""
    rows = (messages.DeviceRow(terminal="t-2", name="Car", online=True, device=DEVICE),)
    with suppress(ConnectionClosed):
        while True:
            match await peer.hear_any():
                case messages.DevicesRequest(id=number):
                    for page in range(2):
                        await peer.say(
                            messages.Devices(re=number, epoch="e", revision=1, page=page, pages=2, devices=rows)
                        )
                case messages.Programs(id=number, after=after):
                    row = messages.ProgramRow(program="b" if after else "a", title="A program", newest="1")
                    await peer.say(messages.ProgramsResult(re=number, programs=(row,), more=not after))
                case messages.Plan(id=number, program="nope"):
                    await peer.say(
                        messages.Error(re=number, code="unknown-program", message="No program.", near=("hello",))
                    )
                case messages.Plan(id=number, program=program):
                    first = messages.PlanResult(re=number, program=program, targets=(target("queued"),), more=True)
                    await peer.say(first, structs.replace(first, targets=(), more=False))
                case messages.Sync(id=number, program=program):
                    await peer.say(
                        messages.SyncAccepted(re=number, sync="s-1", program=program, targets=(target("queued"),)),
                        messages.SyncUpdate(sync="s-other", targets=(target("failed"),)),
                        messages.SyncUpdate(sync="s-1", targets=(target("downloading", done=5),)),
                        messages.SyncDone(sync="s-1", program=program, outcome="done", counts={"done": 1}),
                    )
                    assert await peer.hear(messages.Noted) == messages.Noted(of="s-1")
                case messages.SyncRequest(id=number, sync=sync):
                    await peer.say(messages.SyncResult(re=number, sync=sync, targets=(target("done"),)))
                case messages.History(id=number):
                    await peer.say(messages.HistoryResult(re=number, syncs=()))
                case messages.Cancel(id=number, sync=sync):
                    await peer.say(messages.CancelResult(re=number, sync=sync, cancelled=1, too_late=0))
                case messages.DeviceUpdate(id=number):
                    await peer.say(messages.Done(re=number))
                case other:
                    assert isinstance(other, messages.Inventory), other


async def answers(peer: Peer) -> None:
    await peer.open()
    await _answer_everything(peer)


async def _ask_everything(folder: StateFolder) -> None:
    async with open_client(folder) as client:
        assert [row.name for row in await client.devices()] == ["Car", "Car"]
        assert [row.program for row in await client.programs()] == ["a", "b"]
        assert await client.plan("hello", everyone=True) == (target("queued"),)
        with pytest.raises(UnknownNameError, match=r"Did you mean hello\?"):
            await client.plan("nope")
        watch = await client.sync("hello", everyone=True)
        async for _ in watch.changes():
            assert watch.targets.keys() == {"t-2"}
        assert (watch.ended, watch.outcome, watch.targets["t-2"].state) == (True, "done", "done")
        assert await client.history() == ()
        assert (await client.cancel("s-1")).cancelled == 1
        await client.rename("Big TV")
    assert folder.identity().name == "Big TV"


async def test_a_client_with_its_own_connection_asks_and_watches(folder: StateFolder) -> None:
    async with hub(answers) as url:
        folder.save_identity(identity_at(url))
        folder.save_device(DEVICE)
        await _ask_everything(folder)
    assert not folder.is_locked()


async def test_a_lost_connection_fails_the_request_that_waits(folder: StateFolder) -> None:
    async def breaks_off(peer: Peer) -> None:
        await peer.open()
        await peer.hear(messages.DevicesRequest)
        peer.socket.transport.abort()

    async with hub(breaks_off) as url:
        folder.save_identity(identity_at(url))
        with pytest.raises(UnavailableError, match="was lost"):
            async with open_client(folder, device=DEVICE) as client:
                await client.devices()


async def test_a_request_without_an_answer_has_a_deadline(folder: StateFolder) -> None:
    async def silent(peer: Peer) -> None:
        await peer.open()
        await hang_up(peer)

    async with hub(silent) as url, receiving(folder, url) as connection:
        with pytest.raises(UnavailableError, match=r"did not answer within 0\.05 s"):
            await connection.link.request(messages.DevicesRequest(id=1), within_seconds=0.05)


async def test_before_the_first_login_a_client_says_what_to_run(folder: StateFolder) -> None:
    with pytest.raises(NotLoggedInError, match="lockstep-terminal login"):
        async with open_client(folder):
            pytest.fail("opened")


def test_the_hubs_error_codes_become_the_matching_errors() -> None:
    def kind(code: str, re: int = 1) -> type[LockstepError]:
        return type(error_of(messages.Error(code=code, message="x", re=re)))

    assert kind("unknown-program") is UnknownNameError
    assert (kind("unknown-terminal", 0), kind("unknown-terminal", 1)) == (NotLoggedInError, UnknownNameError)
    assert (kind("not-authorised"), kind("busy"), kind("something-new")) == (
        RefusedError,
        UnavailableError,
        LockstepError,
    )


# --- the agent --------------------------------------------------------------------------------------------------------


class Running:
    """An agent under way, and what it has told."""

    def __init__(self, folder: StateFolder, runner: NoteTaker | None = None) -> None:
        self.told: list[tuple[str, str]] = []
        self.stop = asyncio.Event()
        self._news = asyncio.Event()
        self.task = asyncio.create_task(
            run_agent(folder, DEVICE, {"deb": runner or NoteTaker()}, on_event=self._tell, stop=self.stop)
        )

    def _tell(self, kind: str, sentence: str) -> None:
        self.told.append((kind, sentence))
        self._news.set()

    async def until(self, kind: str, times: int = 1) -> None:
        async with asyncio.timeout(10):
            while [one for one, _ in self.told].count(kind) < times:
                assert not self.task.done(), self.task
                self._news.clear()
                await self._news.wait()


@asynccontextmanager
async def running(folder: StateFolder, url: str, runner: NoteTaker | None = None) -> AsyncIterator[Running]:
    folder.save_identity(identity_at(url))
    agent = Running(folder, runner)
    try:
        yield agent
    finally:
        agent.stop.set()
        with suppress(LockstepError):
            assert await asyncio.wait_for(agent.task, 10) in ("stopped", "still-installing")


async def test_other_commands_speak_through_the_running_agent(folder: StateFolder) -> None:
    async with hub(answers) as url, running(folder, url) as agent:
        await agent.until("connected")
        assert folder.agent_socket.stat().st_mode & 0o777 == 0o600
        await _ask_everything(folder)
        assert agent.told[0] == ("connected", f"Connected to {url} as TV (t-1).")
    assert not folder.agent_socket.exists()
    assert not folder.is_locked()


async def test_a_command_without_an_agent_serves_the_others_while_it_lives(folder: StateFolder) -> None:
    async with hub(answers) as url:
        folder.save_identity(identity_at(url))
        folder.save_device(DEVICE)
        async with open_client(folder) as first:
            assert folder.agent_socket.stat().st_mode & 0o777 == 0o600
            async with open_client(folder) as second:
                assert await second.devices() == await first.devices()
        assert not folder.agent_socket.exists()


async def test_the_agent_says_welcome_and_refuses_what_is_no_request(folder: StateFolder) -> None:
    async with hub(answers) as url, running(folder, url) as agent:
        await agent.until("connected")
        with unix_path(folder.agent_socket) as path:
            local = await unix_connect(path, compression=None)
        welcome = codec.decode(await local.recv(decode=False))
        assert isinstance(welcome, messages.Welcome)
        assert (welcome.terminal, welcome.account) == ("t-1", "ada")
        await local.send(codec.encode(messages.Inventory(programs=())))
        with pytest.raises(ConnectionClosed) as caught:
            await local.recv()
        assert caught.value.rcvd is not None
        assert caught.value.rcvd.code == 4001


async def test_a_long_state_folder_has_a_local_socket_too(tmp_path: Path) -> None:
    folder = StateFolder(tmp_path / ("long" * 30))
    async with hub(answers) as url, running(folder, url) as agent:
        await agent.until("connected")
        async with open_client(folder) as client:
            assert await client.devices()


async def leaves(peer: Peer) -> None:
    await peer.open()
    await peer.hear(messages.Inventory)
    await peer.socket.close(1001)


async def hangs_up_at_once(peer: Peer) -> None:
    await peer.hear(messages.Hello)
    await peer.socket.close(1001)


async def test_a_lost_hub_is_dialled_again(folder: StateFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_module, "back_off", lambda: iter([0.05, 0.01, 0.01]))
    async with hub(leaves, answers) as url, running(folder, url) as agent:
        await agent.until("connected", times=2)
        async with open_client(folder) as client:
            assert await client.devices()


async def test_requests_have_a_lost_hub_dialled_at_once_in_place_of_the_back_off(
    folder: StateFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent_module, "back_off", lambda: iter([3600.0] * 9))
    async with hub(leaves, answers) as url, running(folder, url) as agent:
        await agent.until("reconnecting")
        async with open_client(folder) as client, asyncio.timeout(10):
            assert all(await asyncio.gather(*(client.devices() for _ in range(5))))
        assert [kind for kind, _ in agent.told] == ["connected", "reconnecting", "connected"], "one dial for all"


async def test_a_request_while_the_hub_stays_away_fails_after_one_dial_and_so_once_a_second_at_most(
    folder: StateFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = asyncio.get_running_loop()
    dialled_at: list[float] = []

    async def notes(peer: Peer) -> None:
        dialled_at.append(loop.time())
        await hangs_up_at_once(peer)

    monkeypatch.setattr(agent_module, "back_off", lambda: iter([3600.0] * 9))
    async with hub(leaves, notes, notes) as url, running(folder, url) as agent:
        await agent.until("reconnecting")
        async with open_client(folder) as client, asyncio.timeout(20):
            for _ in range(2):
                with pytest.raises(UnavailableError, match=r"The hub is away: .* closed the connection"):
                    await client.devices()
    assert len(dialled_at) == 2
    assert dialled_at[1] - dialled_at[0] > agent_module.EARLY_DIAL_SECONDS * 0.9


async def test_a_hub_that_says_how_long_to_wait_is_not_dialled_earlier(
    folder: StateFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def busy(*_: Any) -> Any:
        raise UnavailableError("The hub is busy.", code="busy", retry_after_seconds=3600.0)

    monkeypatch.setattr("terminal.connection.dial", busy)
    async with running(folder, "ws://127.0.0.1:9") as agent:
        await agent.until("reconnecting")
        async with open_client(folder) as client, asyncio.timeout(10):
            with pytest.raises(UnavailableError, match="The hub is away: The hub is busy"):
                await client.devices()
    assert len(agent.told) == 1


async def test_an_agent_that_was_replaced_ends_and_says_why(folder: StateFolder) -> None:
    async def replaces(peer: Peer) -> None:
        await peer.open()
        await peer.socket.close(4000)

    async with hub(replaces) as url, running(folder, url) as agent:
        with pytest.raises(RefusedError, match="logged in from somewhere else") as caught:
            await asyncio.wait_for(asyncio.shield(agent.task), 10)
        assert caught.value.code == "replaced"


async def test_an_agent_the_hub_does_not_know_is_not_retried(folder: StateFolder) -> None:
    async def refuses(peer: Peer) -> None:
        await peer.challenge()
        await peer.hear(messages.Login)
        await peer.say(messages.Error(code="unknown-terminal", message="This hub does not know this terminal."))
        await peer.socket.close(1008)

    async with hub(refuses) as url, running(folder, url) as agent:
        with pytest.raises(NotLoggedInError, match="does not know"):
            await asyncio.wait_for(asyncio.shield(agent.task), 10)


async def test_an_agent_that_is_stopped_waits_a_while_for_an_installation_and_leaves_its_mark(
    folder: StateFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Endless(NoteTaker):
        async def install(self, task: Any) -> Any:
            begun.set()
            await asyncio.Event().wait()

    begun = asyncio.Event()

    async def delivers(peer: Peer) -> None:
        await peer.open()
        await peer.hear(messages.Inventory)
        with suppress(ConnectionClosed):
            await peer.send_object(THING, THING.offer())

    monkeypatch.setattr(agent_module, "INSTALLATION_SECONDS", 0.05)
    async with hub(delivers) as url:
        async with running(folder, url, Endless()) as agent:
            await asyncio.wait_for(begun.wait(), 10)
            agent.stop.set()
            assert await asyncio.wait_for(agent.task, 5) == "still-installing"
        assert [mark.offer for mark in folder.marks()] == [THING.offer()]
        assert folder.reports() == ()


async def test_an_installation_that_ends_soon_is_waited_for_when_an_agent_is_stopped(folder: StateFolder) -> None:
    class Slow(NoteTaker):
        async def install(self, task: Any) -> Any:
            begun.set()
            await goes_on.wait()
            return await super().install(task)

    begun, goes_on = asyncio.Event(), asyncio.Event()

    async def delivers(peer: Peer) -> None:
        await peer.open()
        await peer.hear(messages.Inventory)
        with suppress(ConnectionClosed):
            await peer.send_object(THING, THING.offer())

    async with hub(delivers) as url, running(folder, url, Slow()) as agent:
        await asyncio.wait_for(begun.wait(), 10)
        agent.stop.set()
        await asyncio.wait((agent.task,), timeout=0.05)
        goes_on.set()
        assert await asyncio.wait_for(agent.task, 5) == "stopped"
    assert [report.state for report in folder.reports()] == ["done"]
    assert folder.marks() == ()


@pytest.mark.parametrize(("version", "states"), [("1.0", ["done"]), ("0.9", []), (None, [])])
async def test_after_a_crash_the_system_is_asked_how_the_installation_ended(
    folder: StateFolder, version: str | None, states: list[str]
) -> None:
    said: list[Any] = []

    async def listens(peer: Peer) -> None:
        await peer.open()
        while not (said and isinstance(said[-1], messages.Inventory) and not said[-1].installing):
            said.append(await peer.hear_any())
            if isinstance(said[-1], messages.State):
                break
        settled.set()
        await hang_up(peer)

    settled = asyncio.Event()
    folder.put_mark(Mark(offer=THING.offer(), starts=1))
    async with hub(listens) as url, running(folder, url, NoteTaker(version=version)):
        await asyncio.wait_for(settled.wait(), 10)
    assert [one.state for one in said if isinstance(one, messages.State)] == states
    assert bool(folder.inventory()) is bool(states)
    assert [(mark.starts, mark.running) for mark in folder.marks()] == ([] if states else [(1, False)])


@pytest.mark.parametrize(
    ("error", "least", "most"),
    [
        (UnavailableError("x", code="restarting"), 0.0, limits.RESTART_SPREAD_SECONDS),
        (UnavailableError("x", code="busy", retry_after_seconds=4.0), 4.5, 4.5),
        (UnavailableError("x"), 0.5, 0.5),
        (LockstepError("x"), 0.5, 0.5),
    ],
)
def test_the_wait_before_the_next_try_suits_why_the_last_one_failed(
    error: LockstepError, least: float, most: float
) -> None:
    waits = [wait_seconds(error, iter([0.5])) for _ in range(500)]
    assert least <= min(waits) <= max(waits) <= most
    if most > least:
        assert max(waits) - min(waits) > 0.9 * (most - least), "else they would all come at once"


@pytest.mark.parametrize(("said", "seconds"), [("3", 3.0), ("9999", 60.0), ("soon", 0.0), ("", 0.0), ("-5", 0.0)])
async def test_a_hub_that_is_busy_says_how_long_to_wait_and_is_believed_for_a_minute_at_most(
    folder: StateFolder, said: str, seconds: float
) -> None:
    async def busy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        head = f"HTTP/1.1 503 Service Unavailable\r\nRetry-After: {said}\r\nContent-Length: 0\r\n\r\n"
        writer.write(head.encode())
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(busy, "127.0.0.1", 0)
    async with server:
        with pytest.raises(UnavailableError) as caught:
            await dial(parse_address(f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}"))
    assert (caught.value.code, caught.value.retry_after_seconds) == ("busy", seconds)


def test_back_off_grows_to_a_minute_and_is_never_the_same_for_all() -> None:
    delays = back_off()
    many = [next(delays) for _ in range(200)]
    assert many[0] <= 1.0
    assert all(0 <= delay <= 60 for delay in many)
    assert max(many[7:]) > 30 > min(many[7:])
    assert len(set(many)) == 200


async def test_an_agent_stops_soon_while_an_installation_outlives_its_lost_hub(
    folder: StateFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Endless(NoteTaker):
        async def install(self, task: Any) -> Any:
            begun.set()
            await asyncio.Event().wait()

    begun = asyncio.Event()

    async def delivers_and_dies(peer: Peer) -> None:
        await peer.open()
        await peer.hear(messages.Inventory)
        sending = asyncio.create_task(peer.send_object(THING, THING.offer()))
        await begun.wait()
        peer.socket.transport.abort()
        await asyncio.wait((sending,))
        assert isinstance(sending.exception(), ConnectionClosed)

    async with hub(delivers_and_dies, *[hangs_up_at_once] * 3) as url, running(folder, url, Endless()) as agent:
        await asyncio.wait_for(begun.wait(), 10)
        async with open_client(folder) as client:
            with pytest.raises(UnavailableError):
                await client.devices()
        monkeypatch.setattr(agent_module, "INSTALLATION_SECONDS", 0.05)
        agent.stop.set()
        assert await asyncio.wait_for(agent.task, 5) == "still-installing"
    assert [mark.offer for mark in folder.marks()] == [THING.offer()]
