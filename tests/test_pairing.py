"""Pairing and the other ways in, end to end: real hubs, real terminals, and the commands people type."""

import asyncio
import json
import sys
import time
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from protocol import keys, messages
from protocol.device import DeviceInfo
from protocol.errors import LockstepError, NotLoggedInError, RefusedError, UnknownNameError
from terminal.agent import run_agent
from terminal.client import enrol, open_client
from terminal.pairing import PairingShown
from terminal.simulated import DEFAULT_MIX, make_devices, make_fleet
from terminal.state import Identity, StateFolder
from terminal.targets import ExitCode, error_exit_code
from tests.harness.hubs import PASSWORD, HubProcess, RunningHub, running_hub
from tests.harness.providers import AUDIENCE, serving_provider, token

PHONE = DeviceInfo(model="Phone 8", form_factor="phone", os_type="android", os_version="14")
SET = DeviceInfo(model="Set 9", form_factor="tv", os_type="android", os_version="12")
WAIT_SECONDS = 20.0


class Television:
    """A device that asks to be paired; `codes` are those it has shown."""

    def __init__(self, url: str, folder: Path, name: str = "TV", **given: Any) -> None:
        self.folder = StateFolder(folder)
        self.codes: list[PairingShown] = []
        self._shown = asyncio.Event()
        work = enrol(self.folder, url, name=name, device=SET, on_pairing=self._show, **given)
        self.task: asyncio.Task[Identity] = asyncio.create_task(work)

    def _show(self, shown: PairingShown) -> None:
        self.codes.append(shown)
        self._shown.set()

    async def code(self, number: int = 1) -> str:
        """Return the code it shows when it has shown so many."""
        async with asyncio.timeout(WAIT_SECONDS):
            while len(self.codes) < number:
                self._shown.clear()
                waiting = asyncio.create_task(self._shown.wait())
                await asyncio.wait((waiting, self.task), return_when=asyncio.FIRST_COMPLETED)
                waiting.cancel()
                assert not self.task.done(), self.task
        return self.codes[number - 1].code

    async def outcome(self) -> Identity:
        return await asyncio.wait_for(self.task, WAIT_SECONDS)

    async def refusal(self) -> LockstepError:
        with pytest.raises(LockstepError) as caught:
            await self.outcome()
        return caught.value

    async def give_up(self) -> None:
        self.task.cancel()
        await asyncio.wait((self.task,))


@asynccontextmanager
async def room(tmp_path: Path, **settings: Any) -> AsyncIterator[tuple[RunningHub, StateFolder]]:
    """A hub with the account ada, and ada's phone."""
    async with running_hub(tmp_path, **settings) as hub:
        await hub.add_account("ada")
        phone = StateFolder(tmp_path / "phone")
        await enrol(phone, hub.url, account="ada", password=PASSWORD, name="Phone", device=PHONE)
        yield hub, phone


async def approve(phone: StateFolder, code: str, *, accept: bool = True) -> messages.PairingResult:
    async with open_client(phone) as client:
        asks = await client.pairing(code)
        await client.approve(asks, accept=accept)
        return asks


# --- a code that is approved ----------------------------------------------------------------------------------------


async def test_a_television_is_let_in_by_a_phone(tmp_path: Path) -> None:
    async with room(tmp_path) as (hub, phone):
        television = Television(hub.url, tmp_path / "tv")
        asks = await approve(phone, await television.code())
        identity = await television.outcome()
        assert (asks.name, asks.device, asks.address.split(":")[0]) == ("TV", SET, "127.0.0.1")
        assert keys.fingerprint(asks.device_key) == television.codes[0].device_key
        assert 590 < asks.seconds <= 600
        assert (identity.account, identity.name) == ("ada", "TV")
        assert identity.hub_fingerprint == phone.identity().hub_fingerprint
        async with open_client(television.folder) as client:
            assert {row.name for row in await client.devices()} == {"Phone", "TV"}


async def test_the_page_a_device_shows_says_what_to_do_and_never_the_code(tmp_path: Path) -> None:
    async with room(tmp_path) as (hub, _phone):
        television = Television(hub.url, tmp_path / "tv")
        code = await television.code()
        page = await asyncio.to_thread(read_page, television.codes[0].url)
        assert "lockstep-terminal approve" in page
        assert code not in page.upper().replace("-", "")
        await television.give_up()


def read_page(url: str) -> str:
    with urllib.request.urlopen(url, timeout=WAIT_SECONDS) as answer:
        assert answer.headers.get_content_type() == "text/plain"
        return str(answer.read().decode())


async def test_a_code_is_approved_once(tmp_path: Path) -> None:
    async with room(tmp_path) as (hub, phone):
        television = Television(hub.url, tmp_path / "tv")
        code = await television.code()
        await approve(phone, code)
        await television.outcome()
        with pytest.raises(UnknownNameError) as caught:
            await approve(phone, code)
        assert caught.value.code == "unknown-pairing"


async def test_two_televisions_wait_at_once_and_each_gets_its_own_answer(tmp_path: Path) -> None:
    async with room(tmp_path) as (hub, phone):
        one, other = Television(hub.url, tmp_path / "one", "One"), Television(hub.url, tmp_path / "other", "Other")
        codes = [await one.code(), await other.code()]
        assert len(set(codes)) == 2
        assert (await approve(phone, codes[1], accept=False)).name == "Other"
        assert (await approve(phone, codes[0])).name == "One"
        assert (await one.outcome()).name == "One"
        assert (await other.refusal()).code == "pairing-denied"


async def test_a_code_is_approved_through_the_agent_of_the_phone(tmp_path: Path) -> None:
    async with room(tmp_path) as (hub, phone):
        stop, connected = asyncio.Event(), asyncio.Event()

        def hear(kind: str, _sentence: str) -> None:
            if kind == "connected":
                connected.set()

        agent = asyncio.create_task(run_agent(phone, PHONE, {}, on_event=hear, stop=stop))
        await asyncio.wait_for(connected.wait(), WAIT_SECONDS)
        television = Television(hub.url, tmp_path / "tv")
        await approve(phone, await television.code())
        assert (await television.outcome()).account == "ada"
        stop.set()
        await asyncio.wait_for(agent, WAIT_SECONDS)


# --- a code that is not ---------------------------------------------------------------------------------------------


async def test_a_device_that_was_turned_away_shows_another_code_the_next_time(tmp_path: Path) -> None:
    async with room(tmp_path) as (hub, phone):
        television = Television(hub.url, tmp_path / "tv")
        code = await television.code()
        await approve(phone, code, accept=False)
        assert (await television.refusal()).code == "pairing-denied"
        assert not television.folder.has_identity()
        again = Television(hub.url, tmp_path / "tv")
        assert await again.code() != code
        await again.give_up()


async def test_a_code_that_nobody_approves_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with room(tmp_path) as (hub, phone):
        monkeypatch.setattr("protocol.limits.PAIRING_SECONDS", 0.3)
        television = Television(hub.url, tmp_path / "tv")
        code = await television.code()
        error = await television.refusal()
        assert (type(error), error.code) == (RefusedError, "pairing-expired")
        with pytest.raises(UnknownNameError):
            await approve(phone, code)


async def test_wrong_codes_are_few(tmp_path: Path) -> None:
    async with room(tmp_path) as (hub, phone):
        television = Television(hub.url, tmp_path / "tv")
        code = await television.code()
        async with open_client(phone) as client:
            for _ in range(5):
                with pytest.raises(UnknownNameError):
                    await client.pairing("BBBBBBBB")
            with pytest.raises(RefusedError) as caught:
                await client.pairing(code)
        assert caught.value.code == "rate-limited"
        assert error_exit_code(caught.value) is ExitCode.FAILED, "the hub has answered"
        await television.give_up()


async def test_what_was_looked_at_is_approved_and_nothing_else(tmp_path: Path) -> None:
    async with room(tmp_path) as (hub, phone):
        television = Television(hub.url, tmp_path / "tv")
        async with open_client(phone) as client:
            asks = await client.pairing(await television.code())
            other = messages.PairingResult(
                re=1, code=asks.code, name=asks.name, device=SET, device_key=b"o" * 32, seconds=1.0
            )
            with pytest.raises(UnknownNameError):
                await client.approve(other)
        assert not television.task.done()
        await television.give_up()


# --- breaks ---------------------------------------------------------------------------------------------------------


async def test_a_hub_that_is_started_anew_in_the_middle_gives_another_code_that_counts(tmp_path: Path) -> None:
    async with room(tmp_path) as (hub, phone):
        television = Television(hub.url, tmp_path / "tv")
        before = await television.code()
        await hub.stop()
        await hub.start()
        after = await television.code(2)
        assert after != before
        await approve(phone, after)
        assert (await television.outcome()).name == "TV"


async def test_a_login_that_is_started_again_shows_the_same_code(tmp_path: Path) -> None:
    async with room(tmp_path) as (hub, phone):
        television = Television(hub.url, tmp_path / "tv")
        code = await television.code()
        await television.give_up()
        again = Television(hub.url, tmp_path / "tv")
        assert await again.code() == code
        await approve(phone, code)
        assert (await again.outcome()).name == "TV"


async def test_a_device_that_was_approved_while_it_was_away_is_let_in_at_once(tmp_path: Path) -> None:
    async with room(tmp_path) as (hub, phone):
        television = Television(hub.url, tmp_path / "tv")
        code = await television.code()
        await television.give_up()
        await approve(phone, code)
        again = Television(hub.url, tmp_path / "tv")
        assert (await again.outcome()).name == "TV"
        assert again.codes == []


# --- out again ------------------------------------------------------------------------------------------------------


async def test_a_device_that_is_revoked_stops_and_comes_back_only_with_new_keys(tmp_path: Path) -> None:
    async with room(tmp_path) as (hub, phone):
        television = Television(hub.url, tmp_path / "tv")
        await approve(phone, await television.code())
        before = await television.outcome()
        connected = asyncio.Event()
        work = run_agent(television.folder, SET, {}, on_event=lambda *_: connected.set(), stop=asyncio.Event())
        agent = asyncio.create_task(work)
        await asyncio.wait_for(connected.wait(), WAIT_SECONDS)
        async with open_client(phone) as client:
            await client.revoke(before.terminal)
            with pytest.raises(NotLoggedInError) as caught:
                await asyncio.wait_for(agent, 5)
            assert [row.name for row in await client.devices()] == ["Phone"]
        assert caught.value.code == "revoked"
        standing = television.folder.standing()
        assert standing is not None and standing.reason == "revoked"
        assert (await Television(hub.url, tmp_path / "tv").refusal()).code == "revoked"
        anew = Television(hub.url, tmp_path / "tv", replace=True)
        await approve(phone, await anew.code())
        after = await anew.outcome()
        assert after.terminal != before.terminal
        assert after.device_seed != before.device_seed
        assert after.name == "TV"
        assert television.folder.standing() is None


async def test_a_device_without_the_right_may_not_approve_or_revoke(tmp_path: Path) -> None:
    async with room(tmp_path) as (hub, phone):
        await hub.hub.revocation.allow_device("ada", "Phone", "approve", allowed=False)
        television = Television(hub.url, tmp_path / "tv")
        code = await television.code()
        async with open_client(phone) as client:
            for ask in (client.pairing(code), client.revoke(client.identity.terminal)):
                with pytest.raises(RefusedError) as caught:
                    await ask
                assert caught.value.code == "not-allowed"
        await television.give_up()


# --- join keys and tokens -------------------------------------------------------------------------------------------


async def test_a_join_key_lets_in_so_many_devices_and_no_more_and_files_them_under_its_tags(tmp_path: Path) -> None:
    async with room(tmp_path) as (hub, phone):
        _, secret = await hub.hub.join_keys.add("ada", uses=2, seconds=60.0, tags=("wall",))

        async def join(name: str) -> Identity:
            return await enrol(StateFolder(tmp_path / name), hub.url, join_key=secret, name=name, device=SET)

        one, _ = await join("One"), await join("Two")
        with pytest.raises(RefusedError) as caught:
            await join("Three")
        assert caught.value.code == "not-authorised"
        assert await join("One") == one, "the same device uses none of it"
        async with open_client(phone) as client:
            rows = {row.name: row.tags for row in await client.devices()}
        assert rows == {"Phone": (), "One": ("wall",), "Two": ("wall",)}
        kept = [file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()]
        assert not [data for data in kept if secret.encode() in data]


async def test_a_simulated_fleet_joins_by_a_key(tmp_path: Path) -> None:
    async with room(tmp_path) as (hub, phone):
        _, secret = await hub.hub.join_keys.add("ada", uses=3, seconds=60.0, tags=("fleet",))
        fleet = make_fleet(make_devices(DEFAULT_MIX, 3, 1), tmp_path / "fleet", hub.url, "")
        await fleet.enrol("", join_key=secret)
        fleet.connect()
        try:
            await asyncio.wait_for(fleet.all_online(), WAIT_SECONDS)
            async with open_client(phone) as client:
                tagged = [row for row in await client.devices() if row.tags == ("fleet",)]
        finally:
            await fleet.disconnect()
        assert len(tagged) == 3


async def test_a_token_lets_a_device_into_the_account_it_is_linked_with(tmp_path: Path) -> None:
    async with serving_provider() as provider:
        async with room(tmp_path, oidc_issuer=provider.url, oidc_audience=AUDIENCE) as (hub, _phone):
            said, place = token(provider, now=int(time.time())), StateFolder(tmp_path / "tv")
            with pytest.raises(RefusedError) as caught:
                await enrol(place, hub.url, token=said, name="TV", device=SET)
            assert caught.value.code == "not-authorised"
            await hub.hub.accounts.link("ada", f"{provider.url} 1234")
            identity = await enrol(place, hub.url, token=said, name="TV", device=SET)
            async with open_client(place) as client:
                assert {row.name for row in await client.devices()} == {"Phone", "TV"}
        assert identity.account == "ada"


# --- the commands ---------------------------------------------------------------------------------------------------


def documents(text: str) -> list[Any]:
    """Return the JSON documents in what a command printed, whether each is on one line or on several."""
    found = []
    while (text := text.lstrip()).startswith("{"):
        document, end = json.JSONDecoder().raw_decode(text)
        found.append(document)
        text = text[end:]
    return found


async def command(*arguments: str, stdin: str = "") -> tuple[int, list[Any]]:
    """Run `python -m ARGUMENTS`; return its exit code and the JSON documents it printed."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", *arguments,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await asyncio.wait_for(process.communicate(stdin.encode()), 60)
    assert process.returncode is not None
    assert b"Traceback" not in err, err
    return process.returncode, documents(out.decode())


@asynccontextmanager
async def house(tmp_path: Path) -> AsyncIterator[tuple[HubProcess, str]]:
    """A hub in a process of its own with the account ada, and the state folder of ada's phone."""
    data, phone, password = str(tmp_path / "hub"), str(tmp_path / "phone"), f"{PASSWORD}\n"
    async with HubProcess(Path(data)) as hub:
        add = ("hub", "account", "add", "ada", "--password-stdin", "--data", data)
        assert (await command(*add, stdin=password))[0] == 0
        login = ("terminal", "login", hub.url, "--account", "ada", "--password-stdin", "--name", "Phone")
        assert (await command(*login, "--state", phone, stdin=password))[0] == 0
        yield hub, phone


async def test_the_commands_pair_a_device_and_revoke_it(tmp_path: Path) -> None:
    async with house(tmp_path) as (hub, phone):
        place = ("--state", str(tmp_path / "tv"), "--json")
        waiting = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "terminal", "login", hub.url, "--pair", "--name", "TV", *place,
            stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert waiting.stdout is not None
        shown = json.loads(await asyncio.wait_for(waiting.stdout.readline(), WAIT_SECONDS))
        code, [approved] = await command("terminal", "approve", shown["url"], "--yes", "--state", phone, "--json")
        assert (code, approved["name"], approved["device_key"]) == (0, "TV", shown["device_key"])
        outcome = json.loads(await asyncio.wait_for(waiting.stdout.readline(), WAIT_SECONDS))
        assert (await waiting.wait(), outcome["name"], outcome["account"]) == (0, "TV", "ada")
        code, [revoked] = await command("terminal", "revoke", "TV", "--yes", "--state", phone, "--json")
        assert (code, revoked["terminal"]) == (0, outcome["terminal"])
        assert (await command("terminal", "devices", *place))[0] == 4
        _, [status] = await command("terminal", "status", *place)
        assert status["standing"]["reason"] == "revoked"
