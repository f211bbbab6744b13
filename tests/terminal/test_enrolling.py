"""Enrolling in four ways against a scripted hub: what is sent and to whom, what is shown, what is kept."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from protocol import keys, messages
from protocol.errors import (
    ConflictError,
    LockstepError,
    NotLoggedInError,
    ProtocolError,
    RefusedError,
    UnavailableError,
)
from terminal.client import enrol
from terminal.pairing import PairingShown
from terminal.state import Identity, StateFolder
from tests.terminal.scripted import DEVICE, HUB_KEY, WELCOME, Peer, hub

CODE = "BCDFGHJK"
OTHER_KEY = keys.SigningKey(b"o" * 32)
WAYS: list[dict[str, Any]] = [
    {"account": "ada", "password": "secret"},
    {"join_key": "lsk-1"},
    {"token": b"e30.e30.c2ln"},
    {"on_pairing": lambda _shown: None},
]


@pytest.fixture
def folder(tmp_path: Path) -> StateFolder:
    return StateFolder(tmp_path / "state")


async def enrolled(folder: StateFolder, url: str, **given: Any) -> Identity:
    return await enrol(folder, url, name="TV", device=DEVICE, **given)


class Desk:
    """The hub's scripts, with what they heard."""

    def __init__(self) -> None:
        self.heard: list[messages.Enrol] = []

    async def hear(self, peer: Peer, key: keys.SigningKey = HUB_KEY) -> None:
        await peer.challenge(key)
        self.heard.append(await peer.hear(messages.Enrol))

    async def welcomes(self, peer: Peer) -> None:
        await self.hear(peer)
        await peer.say(WELCOME)

    async def shows(self, peer: Peer, code: str = CODE, seconds: float = 600.0) -> None:
        await self.hear(peer)
        await peer.say(messages.Pairing(code=code, seconds=seconds))

    async def approves(self, peer: Peer) -> None:
        await self.shows(peer)
        await peer.say(WELCOME)

    async def breaks_off(self, peer: Peer) -> None:
        await self.shows(peer)
        peer.socket.transport.abort()

    async def shows_another_and_welcomes(self, peer: Peer) -> None:
        await self.shows(peer, "KJHGFDCB")
        await peer.say(WELCOME)

    def refuses(self, code: str) -> Any:
        async def refuse(peer: Peer) -> None:
            await self.shows(peer)
            await peer.say(messages.Error(code=code, message="It is refused.", hint=""))
            await peer.socket.close(1008, code)

        return refuse


async def hang_up_on_another(peer: Peer) -> None:
    """Another hub answers, and is told nothing."""
    await peer.challenge(OTHER_KEY)
    await peer.socket.wait_closed()
    assert peer.socket.close_code == 1008


# --- four ways ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
async def test_each_way_carries_its_own_proof_alone_and_is_signed(folder: StateFolder, way: dict[str, Any]) -> None:
    desk = Desk()
    async with hub(desk.welcomes) as url:
        identity = await enrolled(folder, url, **way)
    [proof] = desk.heard
    given = {"account": "", "password": "", "join_key": "", "token": b"", "pair": "on_pairing" in way}
    expected = given | {field: value for field, value in way.items() if field != "on_pairing"}
    assert {field: getattr(proof, field) for field in given} == expected
    assert proof.device_key == keys.SigningKey(identity.device_seed).public
    assert (identity.account, identity.terminal, identity.hub_key) == ("ada", "t-1", HUB_KEY.public)
    assert folder.identity() == identity


@pytest.mark.parametrize("way", WAYS)
async def test_no_secret_is_kept_or_shown_by_the_terminal(folder: StateFolder, way: dict[str, Any]) -> None:
    async with hub(Desk().welcomes) as url:
        await enrolled(folder, url, **way)
    kept = b"".join(file.read_bytes() for file in folder.path.rglob("*") if file.is_file())
    for secret in ("secret", "lsk-1", "c2ln"):
        assert secret.encode() not in kept


@pytest.mark.parametrize("way", WAYS)
async def test_the_same_device_has_the_same_keys_whichever_way_it_comes_again(
    folder: StateFolder, way: dict[str, Any]
) -> None:
    desk = Desk()
    async with hub(desk.welcomes, desk.welcomes) as url:
        await enrolled(folder, url, join_key="lsk-2")
        await enrolled(folder, url, **way)
    assert desk.heard[0].device_key == desk.heard[1].device_key


# --- the right hub --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
async def test_a_hub_that_is_another_one_by_now_is_told_nothing(folder: StateFolder, way: dict[str, Any]) -> None:
    desk = Desk()
    async with hub(desk.welcomes, hang_up_on_another) as url:
        await enrolled(folder, url, account="ada", password="secret")
        with pytest.raises(RefusedError, match=r"its key has changed.*--replace") as caught:
            await enrolled(folder, url, **way)
    assert caught.value.code == "hub-key-changed"


@pytest.mark.parametrize("way", WAYS)
async def test_a_hub_without_the_fingerprint_given_is_told_nothing(folder: StateFolder, way: dict[str, Any]) -> None:
    expected = keys.fingerprint(HUB_KEY.public)
    async with hub(hang_up_on_another) as url:
        with pytest.raises(RefusedError, match=f"{keys.fingerprint(OTHER_KEY.public)}, not {expected}") as caught:
            await enrolled(folder, url, hub_fingerprint=expected, **way)
    assert caught.value.code == "hub-key-changed"
    assert not folder.has_identity()


async def test_a_hub_with_the_fingerprint_given_is_logged_in_to(folder: StateFolder) -> None:
    async with hub(Desk().welcomes) as url:
        identity = await enrolled(folder, url, join_key="lsk-1", hub_fingerprint=keys.fingerprint(HUB_KEY.public))
    assert identity.hub_fingerprint == keys.fingerprint(HUB_KEY.public)


async def test_a_fingerprint_holds_although_the_login_is_to_be_replaced(folder: StateFolder) -> None:
    async with hub(Desk().welcomes, hang_up_on_another) as url:
        await enrolled(folder, url, join_key="lsk-1")
        with pytest.raises(RefusedError, match="has the key"):
            await enrolled(
                folder, url, join_key="lsk-2", replace=True, hub_fingerprint=keys.fingerprint(HUB_KEY.public)
            )


# --- new keys -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
async def test_replacing_a_login_makes_new_keys(folder: StateFolder, way: dict[str, Any]) -> None:
    desk = Desk()
    async with hub(desk.welcomes, desk.welcomes) as url:
        await enrolled(folder, url, **way)
        await enrolled(folder, url, replace=True, **way)
    first, second = desk.heard
    assert first.device_key != second.device_key
    assert first.sealing_key != second.sealing_key


async def test_replacing_that_was_interrupted_goes_on_with_the_keys_it_had_made(folder: StateFolder) -> None:
    desk = Desk()

    async def drops(peer: Peer) -> None:
        await desk.hear(peer)
        peer.socket.transport.abort()

    async with hub(desk.welcomes, drops, desk.welcomes) as url:
        await enrolled(folder, url, join_key="lsk-1")
        with pytest.raises(UnavailableError):
            await enrolled(folder, url, join_key="lsk-2", replace=True)
        assert keys.SigningKey(folder.identity().device_seed).public == desk.heard[0].device_key
        await enrolled(folder, url, join_key="lsk-2", replace=True)
    assert desk.heard[1].device_key == desk.heard[2].device_key


@pytest.mark.parametrize(("code", "error"), [("revoked", NotLoggedInError), ("already-logged-in", ConflictError)])
async def test_keys_the_hub_has_otherwise_before_they_were_kept_are_not_used_again(
    folder: StateFolder, code: str, error: type[LockstepError]
) -> None:
    desk = Desk()

    async def refuses(peer: Peer) -> None:
        await desk.hear(peer)
        await peer.say(messages.Error(code=code, message="It is refused."))
        await peer.socket.close(1008, code)

    async with hub(refuses, desk.welcomes) as url:
        with pytest.raises(error):
            await enrolled(folder, url, join_key="lsk-1")
        await enrolled(folder, url, join_key="lsk-1")
    assert desk.heard[0].device_key != desk.heard[1].device_key


# --- pairing --------------------------------------------------------------------------------------------------------


async def test_a_pairing_shows_the_code_the_page_and_the_key_and_ends_in_an_identity(folder: StateFolder) -> None:
    desk = Desk()
    shown: list[PairingShown] = []
    async with hub(desk.approves) as url:
        identity = await enrolled(folder, url, on_pairing=shown.append)
    page = f"http://{url.removeprefix('ws://')}/pair/{CODE}"
    assert shown == [PairingShown(CODE, page, 600.0, keys.fingerprint(desk.heard[0].device_key))]
    assert folder.identity() == identity


async def test_a_pairing_outlives_a_break_of_its_connection(folder: StateFolder) -> None:
    desk = Desk()
    shown: list[PairingShown] = []
    async with hub(desk.breaks_off, desk.approves) as url:
        await enrolled(folder, url, on_pairing=shown.append)
    assert [one.code for one in shown] == [CODE, CODE]
    assert desk.heard[0].device_key == desk.heard[1].device_key


async def test_a_hub_that_says_one_code_after_the_other_breaks_the_protocol(folder: StateFolder) -> None:
    desk = Desk()

    async def goes_on(peer: Peer) -> None:
        await desk.shows(peer)
        await peer.say(messages.Pairing(code="KJHGFDCB", seconds=600.0))
        await peer.socket.wait_closed()
        assert peer.socket.close_code == 4001

    async with hub(goes_on) as url:
        with pytest.raises(ProtocolError):
            await enrolled(folder, url, on_pairing=lambda _shown: None)


async def test_a_code_that_could_draw_on_the_screen_breaks_the_protocol(folder: StateFolder) -> None:
    async def draws(peer: Peer) -> None:
        await Desk().shows(peer, "\x1b[2JABCD")

    shown: list[PairingShown] = []
    async with hub(draws) as url:
        with pytest.raises(ProtocolError):
            await enrolled(folder, url, on_pairing=shown.append)
    assert shown == []


async def test_a_hub_that_has_forgotten_the_pairing_gives_another_code(folder: StateFolder) -> None:
    desk = Desk()
    shown: list[PairingShown] = []
    async with hub(desk.breaks_off, desk.shows_another_and_welcomes) as url:
        await enrolled(folder, url, on_pairing=shown.append)
    assert [one.code for one in shown] == [CODE, "KJHGFDCB"]


async def test_another_hub_in_the_middle_of_a_pairing_is_told_nothing(folder: StateFolder) -> None:
    async with hub(Desk().breaks_off, hang_up_on_another) as url:
        with pytest.raises(RefusedError) as caught:
            await enrolled(folder, url, on_pairing=lambda _shown: None)
    assert caught.value.code == "hub-key-changed"


async def test_a_pairing_that_was_given_up_goes_on_with_the_same_keys(folder: StateFolder) -> None:
    desk = Desk()
    shown = asyncio.Event()

    async def waits(peer: Peer) -> None:
        await desk.shows(peer)
        await peer.socket.wait_closed()

    async with hub(waits, desk.approves) as url:
        given_up = asyncio.create_task(enrolled(folder, url, on_pairing=lambda _shown: shown.set()))
        await shown.wait()
        given_up.cancel()
        await asyncio.wait([given_up])
        await enrolled(folder, url, on_pairing=lambda _shown: None)
    assert desk.heard[0].device_key == desk.heard[1].device_key


@pytest.mark.parametrize("code", ["pairing-denied", "pairing-expired"])
async def test_a_pairing_that_is_not_approved_ends_with_its_reason_and_logs_nobody_in(
    folder: StateFolder, code: str
) -> None:
    async with hub(Desk().refuses(code)) as url:
        with pytest.raises(RefusedError, match="It is refused") as caught:
            await enrolled(folder, url, on_pairing=lambda _shown: None)
    assert caught.value.code == code
    assert not folder.has_identity()


async def test_a_hub_that_stays_away_ends_the_pairing_when_the_code_is_over(folder: StateFolder) -> None:
    async def shows_briefly(peer: Peer) -> None:
        await Desk().shows(peer, seconds=0.0)
        peer.socket.transport.abort()

    async with hub(shows_briefly) as url:
        with pytest.raises(RefusedError, match="Nobody approved") as caught:
            await enrolled(folder, url, on_pairing=lambda _shown: None)
    assert caught.value.code == "pairing-expired"


async def test_a_hub_that_shows_one_code_after_the_other_is_not_waited_for_for_ever(
    folder: StateFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("terminal.enrolling.PAIRING_LONGEST_SECONDS", 0.5)
    monkeypatch.setattr("terminal.enrolling.REDIAL_EVERY_SECONDS", 0.05)

    async with hub(*[Desk().breaks_off] * 100) as url:
        with pytest.raises(RefusedError, match="Nobody approved"):
            async with asyncio.timeout(10.0):
                await enrolled(folder, url, on_pairing=lambda _shown: None)


async def test_a_hub_that_cannot_be_reached_is_said_at_once_before_any_code(folder: StateFolder) -> None:
    async with hub() as url:
        pass
    with pytest.raises(UnavailableError, match="cannot be reached"):
        await enrolled(folder, url, on_pairing=lambda _shown: None)


async def test_a_wait_longer_than_a_login_may_take_is_no_failure(
    folder: StateFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("protocol.limits.LOGIN_SECONDS", 0.2)
    desk = Desk()

    async def approves_late(peer: Peer) -> None:
        await desk.shows(peer)
        await asyncio.sleep(0.5)  # what is tested is that time passes
        await peer.say(WELCOME)

    async with hub(approves_late) as url:
        assert (await enrolled(folder, url, on_pairing=lambda _shown: None)).terminal == "t-1"


async def test_an_identity_of_before_has_no_standing_or_reports_left_over(folder: StateFolder) -> None:
    desk = Desk()

    async def welcomes_anew(peer: Peer) -> None:
        await desk.hear(peer)
        await peer.say(structs.replace(WELCOME, terminal="t-2"))

    async with hub(desk.welcomes, welcomes_anew) as url:
        await enrolled(folder, url, join_key="lsk-1")
        folder.save_standing(messages.Standing(may_receive=False, may_initiate=False, reason="revoked"))
        folder.add_report(messages.State(delivery="d-1", state="done"))
        await enrolled(folder, url, join_key="lsk-2", replace=True)
    assert (folder.standing(), folder.reports()) == (None, ())
