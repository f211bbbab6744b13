"""What a terminal hears of its standing, or that it is one no more: told, kept, and acted on by the agent."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import pytest
from msgspec import structs
from websockets.exceptions import ConnectionClosed

from protocol import limits, messages
from protocol.errors import LockstepError, NotLoggedInError, ProtocolError, RefusedError
from terminal import session
from terminal.client import open_client
from terminal.connection import standing_words
from terminal.posture import words_of
from terminal.session import LoggingIn, Session
from terminal.state import StateFolder
from terminal.targets import ExitCode, error_exit_code
from tests.terminal.scripted import DEVICE, DEVICE_KEY, HUB_KEY, Peer, challenge_for, hub
from tests.terminal.test_connection import hang_up, identity_at, running

QUARANTINED = messages.Standing(
    may_receive=False,
    may_initiate=False,
    quarantined=True,
    reason="infected",
    detail="EICAR is in weixin.",
    hint="Remove it.",
)
ASKS = messages.PairingResult(re=1, code="BCDFGHJK", name="Set", device=DEVICE, device_key=b"k" * 32, seconds=500.0)
WELL = messages.Standing(may_receive=True, may_initiate=True)


@pytest.fixture
def folder(tmp_path: Path) -> StateFolder:
    return StateFolder(tmp_path / "state")


async def test_a_standing_is_told_and_kept_as_it_changes(folder: StateFolder) -> None:
    may_change = asyncio.Event()

    async def judges(peer: Peer) -> None:
        await peer.open()
        await peer.say(QUARANTINED)
        await may_change.wait()
        await peer.say(WELL)
        await hang_up(peer)

    async with hub(judges) as url, running(folder, url) as agent:
        await agent.until("standing")
        assert folder.standing() == QUARANTINED
        may_change.set()
        await agent.until("standing", times=2)
        assert folder.standing() == WELL
    assert [sentence for kind, sentence in agent.told if kind == "standing"] == [
        "This device is in quarantine: it may neither send nor receive. EICAR is in weixin. Remove it.",
        "This device may send and receive.",
    ]


async def test_a_standing_of_before_is_over_when_the_hub_does_not_repeat_it(folder: StateFolder) -> None:
    folder.save_standing(QUARANTINED)

    async def welcomes(peer: Peer) -> None:
        await peer.open()
        await hang_up(peer)

    async with hub(welcomes) as url, running(folder, url) as agent:
        await agent.until("connected")
        assert folder.standing() is None


@pytest.mark.parametrize(
    ("may_receive", "may_initiate", "words"),
    [(False, True, "receive"), (True, False, "send"), (False, False, "send or receive")],
)
def test_what_a_terminal_may_not_do_is_said(may_receive: bool, may_initiate: bool, words: str) -> None:
    standing = messages.Standing(may_receive=may_receive, may_initiate=may_initiate, detail="Its report is old.")
    assert standing_words(standing) == f"This device may not {words}. Its report is old."


def test_one_file_one_program_and_one_finding_are_said_in_the_singular() -> None:
    report = messages.PostureReport(
        rules=bytes(32), nonce=bytes(32), engine="test", began_at=1.0, seconds=1.0, programs=1, files=1, bytes=1,
        findings_in_all=1,
    )  # fmt: skip
    assert words_of(report) == "Scanned 1 file of 1 program: 1 finding."
    more = structs.replace(report, programs=2, files=2_000, findings_in_all=3)
    assert words_of(more) == "Scanned 2,000 files of 2 programs: 3 findings."


# --- a terminal no more ---------------------------------------------------------------------------------------------


async def refuses_login(peer: Peer, code: str) -> None:
    await peer.challenge()
    await peer.hear(messages.Login)
    await peer.say(messages.Error(code=code, message="This device is not let in."))
    await peer.socket.close(1008, code)


async def closes(peer: Peer, code: str) -> None:
    await peer.open()
    await peer.hear(messages.Inventory)
    await peer.socket.close(4003, code)


@pytest.mark.parametrize("ends", [refuses_login, closes])
async def test_an_agent_that_is_revoked_stops_with_the_story_and_keeps_its_state(
    folder: StateFolder, ends: Callable[[Peer, str], Awaitable[None]]
) -> None:
    async def revokes(peer: Peer) -> None:
        await ends(peer, "revoked")

    async with hub(revokes) as url, running(folder, url) as agent:
        with pytest.raises(NotLoggedInError, match="--replace") as caught:
            await asyncio.wait_for(asyncio.shield(agent.task), 10)
    assert caught.value.code == "revoked"
    assert folder.identity() == identity_at(url)
    standing = folder.standing()
    assert standing is not None
    assert (standing.reason, standing.detail) == ("revoked", caught.value.message)


async def test_an_agent_whose_account_is_disabled_comes_back_when_it_is_enabled(
    folder: StateFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("protocol.limits.RECONNECT_LARGEST_SECONDS", 0.05)
    reasons: list[str] = []

    async def closes_it(peer: Peer) -> None:
        await closes(peer, "account-disabled")

    async def refuses_it(peer: Peer) -> None:
        reasons.append(getattr(folder.standing(), "reason", ""))
        await refuses_login(peer, "account-disabled")

    async def welcomes(peer: Peer) -> None:
        reasons.append(getattr(folder.standing(), "reason", ""))
        await peer.open()
        await hang_up(peer)

    async with hub(closes_it, refuses_it, welcomes) as url, running(folder, url) as agent:
        await agent.until("connected", times=2)
    assert reasons == ["account-disabled"] * 2
    assert folder.standing() is None


async def test_a_request_while_the_account_is_disabled_is_refused_as_the_hub_said_and_not_away(
    folder: StateFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("protocol.limits.RECONNECT_LARGEST_SECONDS", 3600.0)

    async def refuses_it(peer: Peer) -> None:
        await refuses_login(peer, "account-disabled")

    async with hub(refuses_it, refuses_it, refuses_it) as url, running(folder, url) as agent:
        await agent.until("reconnecting")
        async with open_client(folder) as client, asyncio.timeout(10):
            for _ in range(2):
                with pytest.raises(RefusedError, match="This device is not let in") as caught:
                    await client.devices()
                assert caught.value.code == "account-disabled"
                assert "away" not in str(caught.value) and "enable" in caught.value.hint
                assert error_exit_code(caught.value) is ExitCode.FAILED
        assert not agent.task.done(), "the agent goes on"


# --- one run, one process -------------------------------------------------------------------------------------------


async def test_all_logins_of_one_process_carry_the_same_run(
    folder: StateFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("terminal.agent.back_off", lambda: iter([0.01] * 9))
    runs: list[bytes] = []

    async def notes(peer: Peer) -> None:
        login = await peer.open()
        assert isinstance(login, messages.Login)
        runs.append(login.run)
        await peer.socket.close(1001)

    async with hub(notes, notes, notes) as url, running(folder, url) as agent:
        with suppress(LockstepError):
            await agent.until("connected", times=2)
    assert len(runs[0]) == limits.RUN_BYTES
    assert set(runs) == {runs[0]}


# --- what is asked through an agent ---------------------------------------------------------------------------------


async def test_a_device_is_approved_and_another_revoked_through_the_agent(folder: StateFolder) -> None:
    asked: list[messages.Message] = []

    async def answers(peer: Peer) -> None:
        await peer.open()
        with suppress(ConnectionClosed):
            while True:
                request = await peer.hear_any()
                asked.append(request)
                if isinstance(request, messages.PairingRequest):
                    await peer.say(structs.replace(ASKS, re=request.id))
                elif isinstance(request, (messages.Approve, messages.Revoke)):
                    await peer.say(messages.Done(re=request.id))

    async with hub(answers) as url, running(folder, url) as agent:
        await agent.until("connected")
        async with open_client(folder) as client:
            await client.approve(await client.pairing("BCDFGHJK"), accept=False)
            await client.revoke("t-2")
    assert [type(one) for one in asked[-3:]] == [messages.PairingRequest, messages.Approve, messages.Revoke]
    approved = asked[-2]
    assert isinstance(approved, messages.Approve)
    assert (approved.code, approved.device_key, approved.accept) == ("BCDFGHJK", b"k" * 32, False)


def test_a_code_nobody_asked_for_breaks_the_protocol() -> None:
    brain = Session(LoggingIn("t-1", HUB_KEY.public, DEVICE, DEVICE_KEY, True, "hub.example", 80), b"n" * 32)
    [said] = brain.handle(session.Connected(), 0.0)
    assert isinstance(said, session.Say) and isinstance(said.message, messages.Hello)
    brain.handle(session.Heard(challenge_for(said.message)), 0.0)
    with pytest.raises(ProtocolError, match="nobody asked for"):
        brain.handle(session.Heard(messages.Pairing(code="BCDFGHJK", seconds=600.0)), 0.0)
