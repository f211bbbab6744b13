"""The commands of the person at a device: on the files, and through a running agent that a scripted hub talks to."""

import asyncio
import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs
from websockets.exceptions import ConnectionClosed

from protocol import messages
from protocol.errors import ConflictError, ProtocolError, UnknownNameError, UsageError
from protocol.messages import AnyMessage, Decide, Inbox, InboxResult
from terminal import cli, inbox
from terminal.client import ask_here
from terminal.consent import Preferences
from terminal.deciding import rate_of, seconds_of
from terminal.localsocket import local_link
from terminal.state import Mark, StateFolder
from tests.terminal.scripted import Peer, hub, thing
from tests.terminal.test_connection import running
from tests.terminal.test_state import IDENTITY

OFFER = structs.replace(thing(5_000).offer(), initiator="Phone")
Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StateFolder:
    monkeypatch.setenv("LOCKSTEP_STATE", str(tmp_path / "state"))
    made = StateFolder(tmp_path / "state")
    made.save_identity(IDENTITY)
    return made


@pytest.fixture
def command(folder: StateFolder, capsys: pytest.CaptureFixture[str]) -> Command:
    def call(*arguments: str) -> tuple[int, str, str]:
        code = cli.run_command(arguments)
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return call


def asks(folder: StateFolder, *programs: str) -> None:
    """Let offers of these programs ask: deliveries d-1, d-2 ..."""
    folder.save_preferences(Preferences(consent="ask"))
    for number, program in enumerate(programs, start=1):
        installer = structs.replace(OFFER.installer, program=program)
        offer = structs.replace(OFFER, delivery=f"d-{number}", installer=installer)
        assert inbox.consider(folder, offer, lambda _kind, _sentence: None)


# --- on the files -----------------------------------------------------------------------------------------------------


def test_the_inbox_lists_what_asks_and_from_whom(folder: StateFolder, command: Command) -> None:
    assert command("inbox") == (0, "Nothing waits for a decision.\n", "")
    asks(folder, "hello")
    code, out, _ = command("inbox")
    header, row = out.splitlines()
    assert header.split() == ["DELIVERY", "PROGRAM", "VERSION", "FILE", "SIZE", "FROM", "SINCE", "STATE"]
    assert (code, row.split()[:3], "Phone" in row, row.endswith("asking")) == (0, ["d-1", "hello", "1.0"], True, True)
    [document] = json.loads(command("inbox", "--json")[1])["inbox"]
    assert (document["delivery"], document["initiator"], document["seconds"]) == ("d-1", "Phone", 0.0)


def test_decisions_without_an_agent_are_kept_for_the_next_connection(folder: StateFolder, command: Command) -> None:
    asks(folder, "hello", "video", "notes")
    assert command("accept", "d-1") == (0, "Accepted: d-1.\n", "")
    assert command("decline", "d-2") == (0, "Declined: d-2.\n", "")
    assert command("later", "d-3", "--for", "2h") == (0, "Put off: d-3.\n", "")
    assert [(one.row.delivery, one.decision) for one in folder.inbox()] == [("d-1", "accept"), ("d-3", "later")]
    assert [(one.delivery, one.state, one.reason) for one in folder.reports()] == [("d-2", "declined", "by-person")]
    assert "postponed for 2 h" in command("inbox")[1]


def test_all_means_the_whole_inbox(folder: StateFolder, command: Command) -> None:
    asks(folder, "hello", "video")
    document = json.loads(command("decline", "all", "--json")[1])
    assert document == {"decision": "decline", "deliveries": ["d-1", "d-2"], "too_late": []}
    assert command("accept", "all") == (0, "Nothing waits for a decision.\n", "")


def test_all_goes_on_where_one_is_too_late_and_says_so(folder: StateFolder, command: Command) -> None:
    asks(folder, "hello", "video")
    folder.put_mark(Mark(offer=OFFER, starts=1))  # an agent that was killed was installing it
    assert command("decline", "all") == (3, "Declined: d-2. Too late: d-1.\n", "")
    assert command("decline", "all")[:2] == (1, "Too late: d-1.\n")
    code, _, errors = command("decline", "d-1")
    assert (code, errors) == (1, "Error: It is too late: hello 1.0 is being installed.\n")


def test_a_delivery_that_does_not_wait_is_refused_with_the_near_ones(folder: StateFolder, command: Command) -> None:
    asks(folder, "hello")
    code, _, errors = command("accept", "d-9")
    assert (code, errors) == (5, "Error: No delivery 'd-9' waits for a decision. Did you mean d-1?\n")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30m", 1_800), ("2h", 7_200), ("1d", 86_400), ("1.5h", 5_400), ("90s", 90), ("30d", 2_592_000)],
)
def test_times_are_written_with_their_unit(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "2", "0h", "-1h", "tomorrow", "31d", "1e3h", "2 weeks"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        seconds_of(text)


@pytest.mark.parametrize(
    ("text", "rate"), [("500kB", 500_000), ("2MB", 2_000_000), ("1.5mb/s", 1_500_000), ("9000", 9_000), ("8 kB", 8_000)]
)
def test_rates_are_written_in_bytes(text: str, rate: int) -> None:
    assert rate_of(text) == rate


@pytest.mark.parametrize("text", ["", "0", "-5kB", "fast", "1TB", "kB", "0.1"])
def test_what_is_no_rate_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        rate_of(text)


def test_settings_are_changed_shown_and_taken_back(folder: StateFolder, command: Command) -> None:
    for arguments in (
        ("consent", "ask"),
        ("consent", "never", "--program", "games"),
        ("consent", "auto", "--program", "hello"),
        ("quiet-hours", "22:00-06:30"),
        ("bandwidth", "500kB"),
    ):
        assert command("settings", *arguments)[0] == 0
    wanted = Preferences(
        consent="ask",
        programs={"games": "never", "hello": "auto"},
        quiet_hours="22:00-06:30",
        bytes_per_second=500_000,
    )
    assert StateFolder(folder.path).preferences() == wanted
    shown = command("settings", "show")[1]
    for words in ("ask", "games: never, hello: auto", "22:00-06:30", "500.0 kB a second"):
        assert words in shown
    document = json.loads(command("settings", "consent", "default", "--program", "games", "--json")[1])
    assert document["settings"]["programs"] == {"hello": "auto"}
    command("settings", "quiet-hours", "off")
    command("settings", "bandwidth", "off")
    assert folder.preferences() == Preferences(consent="ask", programs={"hello": "auto"})


@pytest.mark.parametrize(
    "arguments",
    [
        ("consent", "perhaps"),
        ("consent", "default"),
        ("consent", "ask", "--program", "x" * 200),
        ("quiet-hours", "at night"),
        ("bandwidth", "fast"),
    ],
)
def test_wrong_settings_are_refused_and_change_nothing(
    folder: StateFolder, command: Command, arguments: tuple[str, ...]
) -> None:
    code, _, errors = command("settings", *arguments)
    assert code == 2
    assert errors.startswith("Error: ")
    assert folder.preferences() == Preferences()


# --- through a running agent ------------------------------------------------------------------------------------------


async def test_a_decision_is_told_by_the_running_agent_and_answered_when_the_hub_has_noted_it(
    folder: StateFolder,
) -> None:
    async def asks_and_hears(peer: Peer) -> None:
        await peer.open()
        await peer.hear(messages.Inventory)
        await peer.say(OFFER)
        assert (await peer.hear(messages.State)).state == "asking"
        heard.append(await peer.hear(messages.State))
        await peer.say(messages.Noted(of="d-1", state="queued"), OFFER)
        while not isinstance(message := await peer.hear_any(), (messages.Want, messages.Refused)):
            heard.append(message)
            await peer.say(thing(5_000).page())
        with suppress(ConnectionClosed):
            await peer.hear_any()

    heard: list[Any] = []
    folder.save_preferences(Preferences(consent="ask"))
    async with hub(asks_and_hears) as url, running(folder, url) as agent:
        await agent.until("asking")
        result = await ask_here(folder, Inbox(id=1))
        assert isinstance(result, InboxResult)
        assert [row.delivery for row in result.rows] == ["d-1"]
        await ask_here(folder, Decide(id=1, delivery="d-1", decision="accept"))
        assert heard[:1] == [messages.State(delivery="d-1", state="queued", reason="accepted")]
        with pytest.raises(UnknownNameError):
            await ask_here(folder, Decide(id=1, delivery="d-7", decision="accept"))


async def test_what_the_hub_wants_no_more_is_said_to_whoever_accepts_it(folder: StateFolder) -> None:
    async def withdraws(peer: Peer) -> None:
        await peer.open()
        await peer.hear(messages.Inventory)
        await peer.hear(messages.State)
        await peer.say(messages.Withdraw(delivery="d-1"))
        with suppress(ConnectionClosed):
            await peer.hear_any()

    asks(folder, "hello")
    async with hub(withdraws) as url, running(folder, url) as agent:
        await agent.until("connected")
        with pytest.raises(ConflictError, match="not wanted any more"):
            await ask_here(folder, Decide(id=1, delivery="d-1", decision="accept"))
        await agent.until("withdrawn")
        assert folder.inbox() == ()


async def test_accepting_what_is_offered_at_that_moment_or_comes_already_is_no_error(folder: StateFolder) -> None:
    async def offers(peer: Peer) -> None:
        await peer.open()
        await peer.hear(messages.Inventory)
        assert (await peer.hear(messages.State)).state == "queued"
        await peer.say(OFFER, messages.Withdraw(delivery="d-1"), OFFER)
        coming.set()
        with suppress(ConnectionClosed):
            heard.append(await peer.hear_any())

    heard: list[AnyMessage] = []
    coming = asyncio.Event()
    asks(folder, "hello")
    async with hub(offers) as url, running(folder, url) as agent:
        await agent.until("connected")
        await ask_here(folder, Decide(id=1, delivery="d-1", decision="accept"))
        await coming.wait()
        await agent.until("delivery", times=2)
        await ask_here(folder, Decide(id=1, delivery="d-1", decision="accept"))
    assert heard == [], "the hub would begin again"


async def test_a_new_bandwidth_is_said_by_the_running_agent_at_once(folder: StateFolder) -> None:
    async def listens(peer: Peer) -> None:
        await peer.open()
        heard.append(await peer.hear(messages.Inventory))
        heard.append(await peer.hear(messages.Inventory))
        told.set()
        with suppress(ConnectionClosed):
            await peer.hear_any()

    heard: list[messages.Inventory] = []
    told = asyncio.Event()
    async with hub(listens) as url, running(folder, url) as agent:
        await agent.until("connected")
        folder.save_preferences(Preferences(bytes_per_second=9_000))
        await ask_here(folder, Inbox(id=1))
        await asyncio.wait_for(told.wait(), 5)
    assert [one.bytes_per_second for one in heard] == [0, 9_000]


async def test_a_local_client_may_ask_and_decide_but_say_nothing_else(folder: StateFolder) -> None:
    async def listens(peer: Peer) -> None:
        await peer.open()
        with suppress(ConnectionClosed):
            while True:
                heard.append(await peer.hear_any())

    heard: list[Any] = []
    async with hub(listens) as url, running(folder, url) as agent:
        await agent.until("connected")
        async with local_link(folder) as link:
            await link.request(Inbox(id=1))
            link.say(messages.Inventory(programs=()))
            assert isinstance(await link.ended(), ProtocolError)
    assert {type(message) for message in heard} == {messages.Inventory}, "local requests do not reach the hub"
    assert len(heard) == 1


@pytest.mark.parametrize(
    "arguments", [("inbox",), ("accept", "all"), ("settings", "show"), ("settings", "consent", "ask")]
)
def test_a_folder_nobody_logged_in_from_decides_nothing(
    arguments: tuple[str, ...], tmp_path: Path, command: Command
) -> None:
    code, _, said = command(*arguments, "--state", str(tmp_path / "mistyped"))
    assert code == 4 and "not logged in" in said
    assert not (tmp_path / "mistyped" / "preferences.json").exists()


def test_a_rate_with_which_nothing_arrives_is_refused(command: Command) -> None:
    code, _, said = command("settings", "bandwidth", "1B")
    assert code == 2 and "nothing arrives" in said
