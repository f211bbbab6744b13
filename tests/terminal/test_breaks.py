"""What goes wrong around a connection: crashes, full disks, late messages, words too long. Nothing of it may stay."""

import asyncio
import errno
import gc
import logging
import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed

from protocol import limits, messages
from protocol.errors import LockstepError, RefusedError, TransferError, UnavailableError, UsageError
from protocol.messages import AnyMessage
from terminal import agent as agent_module
from terminal import session, state
from terminal.agent import run_agent
from terminal.client import enrol, open_client
from terminal.connection import Connection, address_of, connected, login_of
from terminal.consent import Preferences
from terminal.downloads import Download
from terminal.installing import Installations
from terminal.receiving import Receiving
from terminal.state import Mark, StateFolder
from terminal.targets import error_exit_code
from tests.terminal.scripted import DEVICE, NoteTaker, Peer, hub
from tests.terminal.test_connection import THING, hang_up, identity_at, receiving, running


@pytest.fixture(autouse=True)
def _quiet() -> None:
    logging.getLogger("websockets").setLevel(logging.CRITICAL)


@pytest.fixture
def folder(tmp_path: Path) -> StateFolder:
    return StateFolder(tmp_path / "state")


class Cannot(NoteTaker):
    """A runner whose system cannot be asked."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self._error = error

    async def installed_version(self, package_name: str) -> str | None:
        raise self._error


def nothing_installs(folder: StateFolder) -> Installations:
    return Installations(folder, {}, lambda _kind, _sentence: None)


async def settled(folder: StateFolder, runner: NoteTaker) -> list[session.InstallEnded]:
    """Ask how what was interrupted ended; return what a connection would have heard of it."""
    news: list[session.InstallEnded] = []
    installations = Installations(folder, {"deb": runner}, lambda _kind, _sentence: None)
    installations.ended = news.append
    installations.settle()
    for task in tuple(installations._settling):
        await task
    return news


# --- after a crash ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error", [UnavailableError("The check command said: " + "no " * 5_000), OSError(13, "Permission denied")]
)
async def test_a_system_that_cannot_be_asked_leaves_a_report_that_can_be_read_again(
    folder: StateFolder, error: Exception
) -> None:
    folder.put_mark(Mark(offer=THING.offer(), starts=1))
    await settled(folder, Cannot(error))
    (report,) = folder.reports()
    assert (report.delivery, report.state, report.reason) == ("d-1", "failed", "outcome-unknown")
    assert 0 < len(report.detail) <= limits.TEXT_CHARACTERS
    assert folder.marks() == ()


async def test_a_reason_with_half_characters_of_a_file_name_can_be_kept(folder: StateFolder) -> None:
    report = session.failure(THING.offer(), "unsafe-path", "it leads to /etc/\udcff")
    folder.add_report(report)
    assert folder.reports() == (report,)


async def test_an_agent_can_be_stopped_while_it_waits_for_an_installer_that_outlived_a_crash(
    folder: StateFolder,
) -> None:
    class Waits(NoteTaker):
        async def installed_version(self, package_name: str) -> str | None:
            asked.set()
            await asyncio.Event().wait()
            return None

    asked, stop = asyncio.Event(), asyncio.Event()
    folder.save_identity(identity_at("ws://127.0.0.1:1"))
    folder.put_mark(Mark(offer=THING.offer(), starts=1))
    work = run_agent(folder, DEVICE, {"deb": Waits()}, on_event=lambda _kind, _sentence: None, stop=stop)
    agent = asyncio.create_task(work)
    await asyncio.wait_for(asked.wait(), 5)
    stop.set()
    assert await asyncio.wait_for(agent, 5) == "stopped"
    assert folder.marks() == (Mark(offer=THING.offer(), starts=1),), "it is asked again at the next start"


async def test_a_terminal_with_many_unsent_reports_gets_in_and_says_them(folder: StateFolder) -> None:
    for number in range(limits.OUTBOUND_CONTROL_MESSAGES + 10):
        folder.add_report(messages.State(delivery=f"d-{number}", state="done"))
    heard: list[str] = []

    async def listens(peer: Peer) -> None:
        await peer.open()
        for _ in kept:
            said = await peer.hear(messages.State)
            heard.append(said.delivery)
            await peer.say(messages.Noted(of=said.delivery, state=said.state))
        await peer.hear(messages.Inventory)

    kept = [report.delivery for report in folder.reports()]
    async with hub(listens) as url, receiving(folder, url) as connection:
        error = await connection.link.ended()
    assert error.code != "too-slow"
    assert heard == kept


# --- stopping in the middle -------------------------------------------------------------------------------------------


async def test_a_step_that_is_stopped_leaves_no_exception_that_nobody_looks_at(
    folder: StateFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reads(self: Download, older: Iterable[Path] = ()) -> None:
        loop.call_soon_threadsafe(begun.set)
        while not self.abandoned.is_set():
            pass
        raise TransferError("The download was abandoned.", code="abandoned")

    loop, begun = asyncio.get_running_loop(), asyncio.Event()
    unseen: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _loop, context: unseen.append(context))
    monkeypatch.setattr(Download, "prepare", reads)
    hands = Receiving(folder, nothing_installs(folder), unseen.append, unseen.append, lambda _kind, _sentence: None)  # type: ignore[arg-type]
    hands.perform(session.Begin(1, THING.offer()))
    hands.perform(session.Prepare(1))
    await begun.wait()
    hands.cancel()
    await hands.settle()
    gc.collect()
    assert unseen == []


async def test_what_comes_after_the_end_is_not_acted_on(folder: StateFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[AnyMessage] = []
    closed = asyncio.Event()
    real = Connection._heard

    def note(self: Connection, message: AnyMessage) -> None:
        heard.append(message)
        real(self, message)

    async def speaks_late(peer: Peer) -> None:
        await peer.open()
        await peer.hear(messages.Inventory)
        peer.socket.transport.pause_reading()  # it has not seen the closing yet
        await closed.wait()
        with suppress(ConnectionClosed):
            await peer.say(THING.offer())
        peer.socket.transport.resume_reading()
        await hang_up(peer)

    monkeypatch.setattr(Connection, "_heard", note)
    async with hub(speaks_late) as url, receiving(folder, url) as connection:
        closing = asyncio.create_task(connection.link.close())
        await connection.link.ended()
        closed.set()
        await closing
    assert [type(message) for message in heard] == [messages.Challenge, messages.Welcome]


# --- disks ------------------------------------------------------------------------------------------------------------


async def test_the_file_of_a_failed_installation_is_kept_only_like_a_partial_one(folder: StateFolder) -> None:
    async def delivers(peer: Peer) -> None:
        await peer.open()
        await peer.hear(messages.Inventory)
        await peer.send_object(THING, THING.offer())

    async with hub(delivers) as url, receiving(folder, url, NoteTaker(ok=False)) as connection:
        await connection.link.ended()
    assert list(folder.installed.iterdir()) == [], "else every failure would fill the disk a little more"
    assert [file.name for file in folder.downloads.iterdir()] == [THING.digest.hex()], "the next try fetches nothing"


def test_a_download_folder_that_is_gone_fails_the_offer(folder: StateFolder) -> None:
    shutil.rmtree(folder.downloads)
    with pytest.raises(TransferError, match="cannot be used") as caught:
        Download(THING.offer(), folder)
    assert caught.value.code == "disk"


async def test_a_full_disk_does_not_part_an_agent_from_its_hub(
    folder: StateFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_path: Path, _data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    async def offers(peer: Peer) -> None:
        monkeypatch.setattr("terminal.state._replace", full)
        await peer.open()  # what device this is cannot be kept
        await peer.hear(messages.Inventory)
        await peer.say(THING.offer(), THING.page())
        await peer.hear(messages.Want)
        await hang_up(peer)

    async with hub(offers) as url, running(folder, url) as agent:
        await agent.until("delivery")
    assert folder.device() is None
    assert "reconnecting" not in [kind for kind, _ in agent.told]


async def test_a_fault_at_the_hub_does_not_end_an_agent(folder: StateFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fails(peer: Peer) -> None:
        await peer.challenge()
        await peer.hear(messages.Login)
        await peer.say(messages.Error(code="internal", message="Something is wrong here."))
        await hang_up(peer)

    async def welcomes(peer: Peer) -> None:
        await peer.open()
        welcomed.set()
        await hang_up(peer)

    welcomed = asyncio.Event()
    monkeypatch.setattr(agent_module, "back_off", lambda: iter([0.01, 0.01]))
    async with hub(fails, welcomes) as url, running(folder, url) as agent:
        await agent.until("reconnecting")
        await asyncio.wait_for(welcomed.wait(), 5)


async def test_a_full_disk_that_cannot_keep_what_asks_is_said_and_does_not_end_the_connection(
    folder: StateFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_path: Path, _data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    async def asks(peer: Peer) -> None:
        await peer.open()
        assert await peer.hear(messages.State) == done
        await peer.hear(messages.Inventory)
        await peer.say(messages.Noted(of="d-0", state="done"), THING.offer())
        heard.extend([await peer.hear(messages.Refused), await peer.hear(messages.State)])

    heard: list[Any] = []
    done = messages.State(delivery="d-0", state="done", version="1.0")
    folder.add_report(done)
    folder.save_preferences(Preferences(consent="ask"))
    monkeypatch.setattr("terminal.state._replace", full)
    async with hub(asks) as url, receiving(folder, url) as connection:
        await connection.link.ended()
    assert [message.reason for message in heard] == ["no-space", "no-space"]
    assert folder.reports() == (done,), "said once more at the next login, which changes nothing"


async def test_an_agent_with_a_damaged_inbox_sets_it_aside_says_so_and_starts(folder: StateFolder) -> None:
    async def welcomes(peer: Peer) -> None:
        await peer.open()
        await hang_up(peer)

    (folder.path / "inbox.json").write_bytes(b"[{")
    async with hub(welcomes) as url, running(folder, url) as agent:
        await agent.until("connected")
    assert agent.told[0][0] == "damaged"
    assert "inbox.json.damaged" in agent.told[0][1]


async def test_a_fault_that_came_while_there_was_no_connection_ends_the_next_before_its_login(
    folder: StateFolder,
) -> None:
    async def hears_nothing(peer: Peer) -> None:
        with suppress(ConnectionClosed):
            heard.append(await peer.hear_any())

    heard: list[AnyMessage] = []
    installations = nothing_installs(folder)
    installations.error = RefusedError("The disk failed.", code="disk-failed")
    async with hub(hears_nothing) as url:
        address = address_of(identity_at(url))
        login = login_of(identity_at(url), address, DEVICE, receives=True)
        with pytest.raises(RefusedError, match="The disk failed"):
            async with connected(address, login, folder, installations=installations):
                pass
    assert heard == []


async def test_an_agent_the_hub_refuses_does_not_kill_what_installs(
    folder: StateFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Slow(NoteTaker):
        async def install(self, task: Any) -> Any:
            begun.set()
            await goes_on.wait()
            return await super().install(task)

    async def replaces(peer: Peer) -> None:
        await peer.open()
        await peer.hear(messages.Inventory)
        with suppress(ConnectionClosed):
            sending = asyncio.create_task(peer.send_object(THING, THING.offer()))
            await begun.wait()
            await peer.socket.close(4000)
            await sending

    begun, goes_on = asyncio.Event(), asyncio.Event()
    monkeypatch.setattr(agent_module, "INSTALLATION_SECONDS", 0.01)
    monkeypatch.setattr(agent_module, "LOOK_AGAIN_SECONDS", 0.01)
    async with hub(replaces) as url, running(folder, url, Slow()) as agent:
        await asyncio.wait_for(begun.wait(), 10)
        await agent.until("delivery", times=3)
        assert "This ends when what installs has ended" in agent.told[-1][1]
        goes_on.set()
        with pytest.raises(RefusedError, match="logged in from somewhere else"):
            await asyncio.wait_for(asyncio.shield(agent.task), 10)
    assert [report.state for report in folder.reports()] == ["done"]


async def test_a_disk_that_fails_to_keep_a_report_ends_the_agent_before_the_hub_hears_of_it(
    folder: StateFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(path: Path, _data: bytes) -> None:
        if path.name == "reports.json":
            raise OSError(errno.EIO, "Input/output error")
        real(path, _data)

    async def delivers(peer: Peer) -> None:
        await peer.open()
        await peer.hear(messages.Inventory)
        with suppress(ConnectionClosed):
            heard.extend(await peer.send_object(THING, THING.offer()))

    heard: list[AnyMessage] = []
    real = state._replace
    monkeypatch.setattr("terminal.state._replace", fails)
    async with hub(delivers) as url, running(folder, url) as agent:
        with pytest.raises(RefusedError, match="The disk failed to keep") as caught:
            await asyncio.wait_for(asyncio.shield(agent.task), 10)
    assert (caught.value.code, error_exit_code(caught.value)) == ("disk-failed", 1)
    assert heard == [], "send_object returns when it hears a final state"
    assert [mark.offer for mark in folder.marks()] == [THING.offer()], "the next start asks how it ended"


# --- what no message can say ------------------------------------------------------------------------------------------


async def test_what_no_message_can_say_is_refused_here_and_harms_no_connection(folder: StateFolder) -> None:
    async def never_asked(peer: Peer) -> None:
        await peer.open()
        with pytest.raises(ConnectionClosed):
            await peer.hear_any()

    async with hub(never_asked) as url:
        folder.save_identity(identity_at(url))
        async with open_client(folder, device=DEVICE) as client:
            for asked in (client.programs("n" * 65), client.plan("p" * 129), client.plan(""), client.plan("\udcff")):
                with pytest.raises(UsageError):
                    await asked


@pytest.mark.parametrize(("account", "name"), [("ada", "n" * 65), ("a" * 65, "TV"), ("ada", " "), ("ada", "\udcff")])
async def test_names_that_cannot_be_are_refused_before_dialling(folder: StateFolder, account: str, name: str) -> None:
    with pytest.raises(UsageError):
        await enrol(folder, "ws://127.0.0.1:1", account=account, password="p", name=name, device=DEVICE)


async def test_a_server_that_hangs_up_on_tls_is_unavailable_with_a_reason(folder: StateFolder) -> None:
    async def hangs_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.close()

    async with await asyncio.start_server(hangs_up, "127.0.0.1", 0) as server:
        url = f"wss://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        with pytest.raises(LockstepError, match=r"cannot be reached: [^.]"):
            async with receiving(folder, url):
                pytest.fail("connected")


# --- whoever has the connection may end first -------------------------------------------------------------------------


async def test_a_command_that_was_served_by_another_goes_on_when_that_one_ends(folder: StateFolder) -> None:
    def target(state: str) -> messages.TargetRow:
        return messages.TargetRow(terminal="t-2", name="PC", state=state)

    async def accepts(peer: Peer) -> None:
        await peer.open()
        request = await peer.hear(messages.Sync)
        queued = messages.SyncAccepted(re=request.id, sync="s-1", program="hello", targets=(target("queued"),))
        await peer.say(queued)
        await hang_up(peer)

    async def goes_on(peer: Peer) -> None:
        await peer.open()
        request = await peer.hear(messages.SyncRequest)
        under_way = messages.SyncResult(re=request.id, sync="s-1", targets=(target("downloading"),))
        await peer.say(under_way, messages.SyncUpdate(sync="s-1", targets=(target("done"),)))
        await peer.say(messages.SyncDone(sync="s-1", program="hello", outcome="done", counts={"done": 1}))
        await hang_up(peer)

    async with hub(accepts, goes_on) as url:
        folder.save_identity(identity_at(url))
        first = open_client(folder, device=DEVICE)
        await first.__aenter__()
        async with open_client(folder, device=DEVICE) as second:
            watch = await second.sync("hello", targets=("t-2",))
            await first.__aexit__(None, None, None)
            async for _ in watch.changes():
                pass
            assert (watch.ended, watch.outcome, watch.targets["t-2"].state) == (True, "done", "done")
