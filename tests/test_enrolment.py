"""Enrolling over real sockets: four ways in, and every way in which somebody who should not be let in is not."""

import asyncio
import json
import sqlite3
import statistics
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any, Final

import pytest
from msgspec import structs

from hub.guesses import ACCOUNT_AT_ONCE, Guesses
from hub.pairings import TRIES, WAITING_PER_ADDRESS
from protocol import codec, keys, messages
from protocol.messages import Message
from tests.harness.hubs import PASSWORD, RunningHub, running_hub
from tests.harness.providers import AUDIENCE, serving_provider, token
from tests.harness.raw import DEVICE, RawTerminal, raw_terminal

HOUR: Final = 3_600.0


def enrolment(raw: RawTerminal, **proof: Any) -> messages.Enrol:
    """Return a right `enrol` for the challenge that came, with another proof than a password."""
    assert raw.challenge is not None
    sealing_key = raw.sealing_key.public
    signed = keys.enrol_bytes(
        terminal_nonce=raw.nonce, hub_nonce=raw.challenge.nonce, hub_key=raw.challenge.hub_key, account="",
        sealing_key=sealing_key, host=raw.host, port=raw.port,
    )  # fmt: skip
    return messages.Enrol(
        name="TV", device=DEVICE, device_key=raw.signing_key.public, sealing_key=sealing_key, host=raw.host,
        port=raw.port, signature=raw.signing_key.sign(signed), **proof,
    )  # fmt: skip


async def refused(raw: RawTerminal, said: Message | bytes) -> messages.Error:
    """Say something and return the error with which the hub closes."""
    await raw.send_bytes(said if isinstance(said, bytes) else codec.encode(said))
    async with asyncio.timeout(10.0):
        code, reason, heard = await raw.closed()
    assert code == 1008
    [error] = heard
    assert isinstance(error, messages.Error) and error.code == reason and error.re == 0
    return error


async def answer_to(hub: RunningHub, **proof: Any) -> messages.Error:
    """Return how the hub refuses a new device with this proof."""
    async with raw_terminal(hub) as raw:
        await raw.hello()
        if "password" in proof:
            return await refused(raw, raw.enrol_message(proof["account"], password=proof["password"]))
        return await refused(raw, enrolment(raw, **proof))


@asynccontextmanager
async def waiting(hub: RunningHub, *, like: RawTerminal | None = None) -> AsyncIterator[tuple[RawTerminal, str]]:
    """Have a device wait to be approved; return it and its code."""
    async with raw_terminal(hub, like=like) as raw:
        await raw.hello()
        await raw.say(enrolment(raw, pair=True))
        pairing = await raw.hear(messages.Pairing)
        assert 590.0 < pairing.seconds <= 600.0
        yield raw, pairing.code


@asynccontextmanager
async def logged_in(hub: RunningHub, account: str = "ada", name: str = "Laptop") -> AsyncIterator[RawTerminal]:
    """Enrol a device with its account's password and log it in."""
    async with raw_terminal(hub) as raw:
        await raw.enrol(account, name=name)
    async with raw_terminal(hub, like=raw) as again:
        await again.login(receives=False)
        yield again


async def ask(raw: RawTerminal, request: Message) -> Message:
    """Return the answer to a request, or the error."""
    await raw.say(request)
    while True:
        message = await raw.hear_any()
        if getattr(message, "re", 0) == getattr(request, "id", -1):
            return message


async def code_of(raw: RawTerminal, request: Message) -> str:
    answer = await ask(raw, request)
    return answer.code if isinstance(answer, messages.Error) else type(answer).__name__


def audited(hub: RunningHub) -> list[tuple[str, str, str, dict[str, Any]]]:
    with closing(sqlite3.connect(hub.folder / "hub.db")) as database:
        rows = database.execute("SELECT actor, action, subject, detail FROM audit ORDER BY sequence").fetchall()
    return [(actor, action, subject, json.loads(detail)) for actor, action, subject, detail in rows]


# --- pairing ------------------------------------------------------------------------------------------------------


async def test_a_device_that_shows_a_code_becomes_a_terminal_when_somebody_approves_it(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as hub:
        await hub.add_account("ada")
        async with logged_in(hub) as laptop, waiting(hub) as (tv, code):
            found = await ask(laptop, messages.PairingRequest(id=1, code=code))
            assert isinstance(found, messages.PairingResult)
            assert (found.name, found.device, found.device_key) == ("TV", DEVICE, tv.signing_key.public)
            assert found.address.startswith("127.0.0.1:") and 590.0 < found.seconds <= 600.0
            approve = messages.Approve(id=2, code=code, device_key=found.device_key)
            assert isinstance(await ask(laptop, approve), messages.Done)
            welcome = await tv.hear(messages.Welcome)
            assert (welcome.account, welcome.name) == ("ada", "TV")
            look_again = messages.PairingRequest(id=3, code=code)
            assert await code_of(laptop, look_again) == "unknown-pairing", "a code is good once"
            assert await code_of(laptop, structs.replace(approve, id=4)) == "Done", "said again after a break"
            deny = structs.replace(approve, id=5, accept=False)
            assert await code_of(laptop, deny) == "unknown-pairing"
        async with raw_terminal(hub, like=tv) as again:
            again.terminal = welcome.terminal
            assert (await again.login()).terminal == welcome.terminal
        told = [(actor, action, subject) for actor, action, subject, _ in audited(hub)]
        assert (welcome.terminal, "device.enrol", welcome.terminal) in told
        assert (laptop.terminal, "device.approve", welcome.terminal) in told


async def test_a_device_that_is_turned_away_is_told_so_and_is_no_terminal(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as hub:
        await hub.add_account("ada")
        async with logged_in(hub) as laptop, waiting(hub) as (tv, code):
            turn_away = messages.Approve(id=1, code=code, device_key=tv.signing_key.public, accept=False)
            assert isinstance(await ask(laptop, turn_away), messages.Done)
            code_number, reason, heard = await tv.closed()
            assert (code_number, reason) == (1008, "pairing-denied")
            assert [type(message) for message in heard] == [messages.Error]
        assert [row.terminals for row in await hub.hub.accounts.listing()] == [1]
        assert (laptop.terminal, "device.turn-away", "TV") in [row[:3] for row in audited(hub)]


async def test_a_device_that_was_approved_while_its_connection_was_broken_is_welcomed_when_it_comes_again(
    tmp_path: Path,
) -> None:
    async with running_hub(tmp_path) as hub:
        await hub.add_account("ada")
        async with logged_in(hub) as laptop:
            async with waiting(hub) as (tv, code):
                tv.socket.transport.abort()
            async with waiting(hub, like=tv) as (again, same):
                assert same == code
                again.socket.transport.abort()
            approve = messages.Approve(id=1, code=code, device_key=tv.signing_key.public)
            assert isinstance(await ask(laptop, approve), messages.Done)
        await hub.stop()
        await hub.start()  # what was approved is in the database, the code was in memory
        async with raw_terminal(hub, like=tv) as back:
            await back.hello()
            await back.say(enrolment(back, pair=True))
            assert (await back.hear(messages.Welcome)).account == "ada"
        assert [row.terminals for row in await hub.hub.accounts.listing()] == [2]


async def test_a_device_that_came_in_by_password_first_may_be_approved_later_and_is_the_same_terminal(
    tmp_path: Path,
) -> None:
    async with running_hub(tmp_path) as hub:
        await hub.add_account("ada")
        async with raw_terminal(hub) as tv:
            before = (await tv.enrol("ada")).terminal
        async with logged_in(hub) as laptop, waiting(hub, like=tv) as (again, code):
            again.socket.transport.abort()
            approve = messages.Approve(id=1, code=code, device_key=tv.signing_key.public)
            assert await code_of(laptop, approve) == "Done"
            async with raw_terminal(hub, like=tv) as back:
                await back.hello()
                await back.say(enrolment(back, pair=True))
                assert (await back.hear(messages.Welcome)).terminal == before


async def test_a_device_that_is_revoked_while_it_waits_is_told_so_and_not_the_one_who_approves(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as hub:
        await hub.add_account("ada")
        async with raw_terminal(hub) as tv:
            await tv.enrol("ada")
        async with logged_in(hub) as laptop, waiting(hub, like=tv) as (again, code):
            await hub.hub.revocation.revoke("ada", tv.terminal)
            approve = messages.Approve(id=1, code=code, device_key=tv.signing_key.public)
            assert await code_of(laptop, approve) == "unknown-pairing"
            assert (await again.closed())[:2] == (1008, "revoked")


async def test_another_device_key_than_the_one_that_was_looked_at_is_not_approved(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as hub:
        await hub.add_account("ada")
        async with logged_in(hub) as laptop, waiting(hub) as (_, code):
            other = messages.Approve(id=1, code=code, device_key=keys.SigningKey.generate().public)
            assert await code_of(laptop, other) == "unknown-pairing"


async def test_five_wrong_codes_end_the_tries_of_the_terminal_and_of_its_account(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as hub:
        await hub.add_account("ada")
        await hub.add_account("eve")
        async with (
            logged_in(hub) as laptop,
            logged_in(hub, name="Second") as second,
            logged_in(hub, "eve") as eve,
            waiting(hub) as (_, code),
        ):
            wrong = [messages.PairingRequest(id=number + 1, code="B" * 8) for number in range(TRIES)]
            assert [await code_of(laptop, one) for one in wrong] == ["unknown-pairing"] * TRIES
            right = messages.PairingRequest(id=90, code=code)
            assert await code_of(laptop, right) == "rate-limited"
            assert await code_of(second, right) == "rate-limited"
            assert await code_of(eve, right) == "PairingResult"


async def test_who_may_not_approve_neither_sees_nor_approves_a_device(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as hub:
        await hub.add_account("ada")
        async with logged_in(hub) as laptop, waiting(hub) as (tv, code):
            await hub.hub.accounts.allow("ada", "approve", allowed=False)
            assert await code_of(laptop, messages.PairingRequest(id=1, code=code)) == "not-allowed"
            approve = messages.Approve(id=2, code=code, device_key=tv.signing_key.public)
            assert await code_of(laptop, approve) == "not-allowed"
            await hub.hub.accounts.allow("ada", "approve", allowed=True)
            assert await code_of(laptop, structs.replace(approve, id=3)) == "Done"


async def test_who_lets_a_device_in_gives_it_no_right_that_they_have_not_themselves(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as hub:
        await hub.add_account("ada")
        async with logged_in(hub) as laptop, waiting(hub) as (tv, code):
            await hub.hub.revocation.allow_device("ada", "Laptop", "initiate", allowed=False)
            approve = messages.Approve(id=1, code=code, device_key=tv.signing_key.public)
            assert await code_of(laptop, approve) == "Done"
            let_in = (await tv.hear(messages.Welcome)).terminal
        assert (await hub.hub.accounts.standing(let_in)).rights == {"approve", "receive"}
        await hub.hub.revocation.allow_device("ada", "TV", "initiate", allowed=True)
        assert (await hub.hub.accounts.standing(let_in)).rights == {"approve", "initiate", "receive"}


async def test_a_device_of_one_account_is_not_moved_to_another_by_a_proof_of_that(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as hub:
        await hub.add_account("ada")
        await hub.add_account("eve")
        _, secret = await hub.hub.join_keys.add("eve", uses=5, seconds=60.0)
        async with raw_terminal(hub) as device:
            await device.enrol("ada")
        async with raw_terminal(hub, like=device) as raw:
            await raw.hello()
            assert (await refused(raw, enrolment(raw, join_key=secret))).code == "already-logged-in"
        assert [key.uses_left for key in await hub.hub.join_keys.listing()] == [5]
        async with logged_in(hub, "eve") as eve, waiting(hub, like=device) as (again, code):
            approve = messages.Approve(id=1, code=code, device_key=device.signing_key.public)
            assert await code_of(eve, approve) == "already-logged-in"
            assert (await again.closed())[1] == "already-logged-in"
        assert {row.name: row.terminals for row in await hub.hub.accounts.listing()} == {"ada": 1, "eve": 1}


async def test_two_accounts_that_approve_one_code_at_once_get_one_device_between_them(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as hub:
        await hub.add_account("ada")
        await hub.add_account("eve")
        async with logged_in(hub) as ada, logged_in(hub, "eve") as eve, waiting(hub) as (tv, code):
            approve = messages.Approve(id=1, code=code, device_key=tv.signing_key.public)
            answers = await asyncio.gather(code_of(ada, approve), code_of(eve, approve))
            assert sorted(answers) == ["Done", "unknown-pairing"]
        assert sum(row.terminals for row in await hub.hub.accounts.listing()) == 3


async def test_devices_that_wait_are_bounded_and_count_no_more_among_those_before_their_login(tmp_path: Path) -> None:
    async with running_hub(tmp_path, sockets_before_login=2) as hub:
        await hub.add_account("ada")
        async with waiting(hub), waiting(hub), waiting(hub), waiting(hub) as (last, code):
            assert WAITING_PER_ADDRESS == 4
            assert hub.server.reception.count == 0
            assert (await answer_to(hub, pair=True)).code == "busy"
            async with logged_in(hub) as laptop:  # there is room for others
                approve = messages.Approve(id=1, code=code, device_key=last.signing_key.public)
                assert await code_of(laptop, approve) == "Done"
            await last.hear(messages.Welcome)
        assert hub.server.reception.count == 0


async def test_the_page_of_a_code_says_what_to_do_and_repeats_nothing_of_the_request(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as hub:
        answer = await http(hub, "/pair/BCDFGHJK<script>")
        assert answer.startswith(b"HTTP/1.1 200 OK") and b"text/plain" in answer
        assert b"lockstep-terminal approve CODE" in answer
        assert b"BCDFGHJK" not in answer and b"script" not in answer
        assert (await http(hub, "/pairs")).startswith(b"HTTP/1.1 404")


async def http(hub: RunningHub, path: str) -> bytes:
    host, port = hub.url.removeprefix("ws://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode())
    async with asyncio.timeout(5.0):
        answer = await reader.read()
    writer.close()
    return answer


# --- join keys ----------------------------------------------------------------------------------------------------


async def test_a_join_key_enrols_a_fleet_at_once_and_no_device_more(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as hub:
        await hub.add_account("ada")
        _, secret = await hub.hub.join_keys.add("ada", uses=20, seconds=60.0, tags=("lab",))

        async def join() -> str:
            async with raw_terminal(hub) as raw:
                await raw.hello()
                await raw.say(enrolment(raw, join_key=secret))
                answer = await raw.hear_any()
                return answer.code if isinstance(answer, messages.Error) else type(answer).__name__

        answers = await asyncio.gather(*(join() for _ in range(30)))
        assert sorted(answers) == ["Welcome"] * 20 + ["not-authorised"] * 10
        assert [row.terminals for row in await hub.hub.accounts.listing()] == [20]
        async with logged_in(hub) as laptop:
            await laptop.say(messages.DevicesRequest(id=1))
            rows = (await laptop.hear(messages.Devices)).devices
            assert sum(row.tags == ("lab",) for row in rows) == 20


# --- tokens -------------------------------------------------------------------------------------------------------


async def test_a_token_of_the_provider_enrols_and_one_that_is_not_right_gets_the_one_answer(tmp_path: Path) -> None:
    async with (
        serving_provider() as server,
        running_hub(tmp_path, oidc_issuer=server.url, oidc_audience=AUDIENCE) as hub,
    ):
        await hub.add_account("ada")
        now = int(time.time())
        unlinked = await answer_to(hub, token=token(server, now=now))
        assert (unlinked.code, "no account is linked" in unlinked.hint) == ("not-authorised", True)
        await hub.hub.accounts.link("ada", f"{server.url} 1234")
        async with raw_terminal(hub) as raw:
            await raw.hello()
            await raw.say(enrolment(raw, token=token(server, now=now)))
            assert (await raw.hear(messages.Welcome)).account == "ada"
        wrong = [token(server, now=now - 600), token(server, now=now, aud="other"), b"junk", b"\xff" * 4_096]
        answers = [await answer_to(hub, token=one) for one in wrong]
        assert answers == [answers[0]] * 4 and answers[0].code == "not-authorised"
        assert [row[3]["how"] for row in audited(hub) if row[1] == "device.enrol"] == ["token"]


async def test_a_provider_that_is_down_keeps_nobody_from_logging_in(tmp_path: Path) -> None:
    async with running_hub(tmp_path, oidc_issuer="http://127.0.0.1:9", oidc_audience=AUDIENCE) as hub:
        await hub.add_account("ada")
        async with raw_terminal(hub) as raw:
            await raw.hello()
            head = b"eyJhbGciOiJSUzI1NiIsImtpZCI6InJzYSJ9"  # {"alg":"RS256","kid":"rsa"}
            assert (await refused(raw, enrolment(raw, token=head + b".e30.AAAA"))).code == "unavailable"
        async with logged_in(hub):
            pass


# --- replay, relay, reuse -----------------------------------------------------------------------------------------


async def test_what_was_recorded_of_an_enrolment_or_a_login_is_refused_on_another_connection(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as hub:
        await hub.add_account("ada")
        _, secret = await hub.hub.join_keys.add("ada", uses=5, seconds=60.0)
        async with raw_terminal(hub) as first:
            await first.hello()
            recorded = [first.enrol_message("ada"), enrolment(first, join_key=secret), enrolment(first, pair=True)]
            await first.say(recorded[0])
            first.terminal = (await first.hear(messages.Welcome)).terminal
        async with raw_terminal(hub, like=first) as second:
            await second.hello()
            login = second.login_message()
            await second.say(login)
            await second.hear(messages.Welcome)
        evaluations = hub.hub.passwords.evaluations
        for said, code in [(one, "not-authorised") for one in recorded] + [(login, "unknown-terminal")]:
            async with raw_terminal(hub) as thief:
                thief.nonce = first.nonce  # with the same nonce of the terminal the hub's own is another
                await thief.hello()
                assert (await refused(thief, codec.encode(said))).code == code
        assert hub.hub.passwords.evaluations == evaluations, "the password was right, and nobody looked at it"
        assert [key.uses_left for key in await hub.hub.join_keys.listing()] == [5]


async def test_each_connection_has_a_nonce_of_its_own(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as hub:
        seen = set()
        for _ in range(20):
            async with raw_terminal(hub) as raw:
                seen.add((await raw.hello()).nonce)
        assert len(seen) == 20


@pytest.mark.parametrize("way", ["password", "join_key", "pair", "login"])
async def test_what_a_device_says_to_one_hub_is_refused_when_that_hub_passes_it_on_to_another(
    way: str, tmp_path: Path
) -> None:
    async with running_hub(tmp_path / "evil") as evil, running_hub(tmp_path / "good") as good:
        for hub in (evil, good):
            await hub.add_account("ada")
        _, secret = await good.hub.join_keys.add("ada", uses=5, seconds=60.0)
        async with raw_terminal(good) as honest:
            await honest.enrol("ada")
        async with raw_terminal(good) as thief, raw_terminal(evil, like=honest) as victim:
            victim.nonce, victim.challenge = thief.nonce, await thief.hello()  # passed on as the good hub said it

            def said() -> Message:
                proofs: dict[str, Message] = {
                    "password": victim.enrol_message("ada"),
                    "join_key": enrolment(victim, join_key=secret),
                    "pair": enrolment(victim, pair=True),
                    "login": victim.login_message(),
                }
                return proofs[way]

            assert (await refused(thief, said())).code == "wrong-hub-name", "it names the hub that was dialled"
        async with raw_terminal(good) as thief:
            victim.challenge = await thief.hello()
            victim.nonce = thief.nonce
            renamed = structs.replace(said(), host=thief.host, port=thief.port)
            code = "unknown-terminal" if way == "login" else "not-authorised"
            assert (await refused(thief, renamed)).code == code, "and signs that name"


# --- guessing -----------------------------------------------------------------------------------------------------


def at(hub: RunningHub) -> list[float]:
    """Give the hub's guesses a clock that stands; return it, to be moved."""
    clock = [0.0]
    hub.hub.accounts._now = lambda: clock[0]
    return clock


async def test_two_hundred_devices_with_one_right_password_get_in_while_an_attacker_guesses(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as hub:
        await hub.add_account("ada")
        at(hub)
        before = hub.hub.passwords.evaluations
        async with logged_in(hub):  # somebody has been here within the last minute
            fleet = [enrol_one(hub, number) for number in range(200)]
            attack = [answer_to(hub, account="ada", password=f"guess {number}") for number in range(50)]
            answers = await bounded(interleaved(fleet, attack))
        welcomes = [answer for answer in answers if answer == "welcome"]
        refusals = [answer.code for answer in answers if isinstance(answer, messages.Error)]
        assert len(welcomes) == 200
        assert sorted(set(refusals)) == ["not-authorised", "rate-limited"]
        assert refusals.count("not-authorised") == ACCOUNT_AT_ONCE
        assert hub.hub.passwords.evaluations - before == 1 + ACCOUNT_AT_ONCE


async def enrol_one(hub: RunningHub, number: int) -> str:
    async with raw_terminal(hub) as raw:
        await raw.enrol("ada", name=f"Device {number}")
        return "welcome"


def interleaved(fleet: list[Any], attack: list[Any]) -> list[Any]:
    every = len(fleet) // len(attack)
    return [
        one for number, guess in enumerate(attack) for one in (guess, *fleet[number * every : (number + 1) * every])
    ]


async def bounded(work: Iterable[Any]) -> list[Any]:
    """Run it all, 16 at a time."""
    room = asyncio.Semaphore(16)

    async def run(one: Any) -> Any:
        async with room:
            return await one

    return await asyncio.gather(*(run(one) for one in work))


async def test_at_most_ten_guesses_are_evaluated_in_an_hour_and_nobody_is_told_which_was_right(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as hub:
        await hub.add_account("ada")
        async with raw_terminal(hub) as device:
            await device.enrol("ada")
        hub.hub.passwords._remembered.clear()
        clock, before, answers = at(hub), hub.hub.passwords.evaluations, []
        for minute in range(61):
            clock[0] = minute * 60.0
            answers += [await answer_to(hub, account="ada", password=f"guess {minute} {turn}") for turn in range(2)]
        assert hub.hub.passwords.evaluations - before == 10
        assert [error.code for error in answers].count("not-authorised") == 10
        limited = [error for error in answers if error.code == "rate-limited"]
        assert len(limited) == 112 and all("Try again in" in error.hint for error in limited)
        right = await answer_to(hub, account="ada", password=PASSWORD)
        assert right.code == "rate-limited", "the right one is not evaluated either"
        async with raw_terminal(hub, like=device) as again:
            await again.login()  # a device key needs no password
        clock[0] += HOUR
        async with raw_terminal(hub) as raw:
            await raw.enrol("ada")


async def test_an_unknown_account_and_a_wrong_password_get_the_same_answers_and_run_out_alike(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as hub:
        await hub.add_account("ada")
        at(hub)
        answers = {}
        for account in ("ada", "nobody"):
            answers[account] = [await answer_to(hub, account=account, password=f"guess {turn}") for turn in range(7)]
        assert answers["ada"] == answers["nobody"]
        codes = [error.code for error in answers["ada"]]
        assert codes == ["not-authorised"] * ACCOUNT_AT_ONCE + ["rate-limited"] * 2


async def test_an_unknown_account_takes_as_long_as_a_wrong_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Guesses, "take", lambda *_: 0.0)  # or there were too few to measure
    async with running_hub(tmp_path) as hub:
        await hub.add_account("ada")
        seconds: dict[str, list[float]] = {"ada": [], "nobody": []}
        for turn in range(15):
            for account, taken in seconds.items():
                began = time.perf_counter()
                await hub.hub.accounts.check_password(account, f"guess {turn}")
                taken.append(time.perf_counter() - began)
        medians = [statistics.median(taken) for taken in seconds.values()]
        assert 0.5 < medians[0] / medians[1] < 2.0


async def test_a_proof_that_nobody_signed_costs_no_evaluation(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as hub:
        await hub.add_account("ada")
        before = hub.hub.passwords.evaluations
        for _ in range(20):
            async with raw_terminal(hub) as raw:
                await raw.hello()
                forged = structs.replace(raw.enrol_message("ada"), signature=bytes(64))
                assert (await refused(raw, forged)).code == "not-authorised"
        assert hub.hub.passwords.evaluations == before


# --- who was let in once ------------------------------------------------------------------------------------------


async def test_a_revoked_device_and_one_of_a_disabled_account_enrol_no_more_in_any_way(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as hub:
        for account in ("ada", "eve"):
            await hub.add_account(account)
        _, secret = await hub.hub.join_keys.add("eve", uses=5, seconds=60.0)
        async with raw_terminal(hub) as device:
            await device.enrol("ada")
        await hub.hub.revocation.revoke("ada", device.terminal)
        for said in ("password", "join_key", "pair", "login"):
            async with raw_terminal(hub, like=device) as raw:
                await raw.hello()
                proofs: dict[str, Message] = {
                    "password": raw.enrol_message("ada"), "join_key": enrolment(raw, join_key=secret),
                    "pair": enrolment(raw, pair=True), "login": raw.login_message(),
                }  # fmt: skip
                assert (await refused(raw, proofs[said])).code == "revoked"
        assert [key.uses_left for key in await hub.hub.join_keys.listing()] == [5]
        await hub.hub.revocation.disable("eve")
        assert (await answer_to(hub, account="eve", password=PASSWORD)).code == "account-disabled"
        assert (await answer_to(hub, account="eve", password="wrong words")).code == "not-authorised"
        assert (await answer_to(hub, join_key=secret)).code == "account-disabled"


# --- what the log says of it ----------------------------------------------------------------------------------------


def told(caplog: pytest.LogCaptureFixture, words: str) -> list[str]:
    return [record.getMessage() for record in caplog.records if words in record.getMessage()]


async def test_each_proof_that_is_not_right_is_a_line_of_the_log_and_no_secret_is_in_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "lockstep.hub")
    async with (
        serving_provider() as server,
        running_hub(tmp_path, oidc_issuer=server.url, oidc_audience=AUDIENCE) as hub,
    ):
        await hub.add_account("ada")
        key, secret = await hub.hub.join_keys.add("ada", uses=1, seconds=60.0)
        await hub.hub.join_keys.revoke(key.join_key)
        now = int(time.time())
        for proof in (
            {"account": "ada", "password": "a wrong secret"},
            {"account": "hunter2 secret", "password": "ada"},
            {"join_key": secret},
            {"join_key": "lsk-secret"},
            {"token": token(server, exp=now + 300, sub="1234", nbf=None, iat=None)},
            {"token": token(server, exp=now + 300, aud="other", nbf=None, iat=None)},
        ):
            await answer_to(hub, **proof)
    lines = told(caplog, "may not enrol")
    assert [line.partition(" may not enrol by ")[2] for line in lines] == [
        "password: a wrong password for the account 'ada'",
        "password: a wrong password for an account that does not exist",
        f"join key: {key.join_key} is revoked",
        "join key: no such key",
        f"token: unknown subject '{server.url} 1234'",
        "token: a wrong or missing audience",
    ]
    assert all(line.startswith("127.0.0.1:") for line in lines)
    assert "secret" not in caplog.text and secret not in caplog.text


async def test_a_wrong_pairing_code_is_a_line_of_the_log_that_names_who_tried_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "lockstep.hub")
    async with running_hub(tmp_path) as hub:
        await hub.add_account("ada")
        async with logged_in(hub) as laptop:
            for number in range(TRIES + 1):
                await code_of(laptop, messages.PairingRequest(id=number + 1, code="BCDFGHJK"))
    lines = told(caplog, "gave a pairing code in vain")
    assert [line.rpartition(": ")[2] for line in lines] == ["unknown-pairing"] * TRIES + ["rate-limited"]
    assert all(line.startswith("Laptop (t-") and "of the account 'ada' at 127.0.0.1:" in line for line in lines)
    assert "BCDFGHJK" not in caplog.text


async def test_what_anybody_can_cause_fills_no_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO", "lockstep.hub")
    monkeypatch.setattr("hub.reception._LINES_PER_SECOND", 0)
    async with running_hub(tmp_path) as hub:
        await hub.add_account("ada")
        await answer_to(hub, account="ada", password="a wrong one")
        async with logged_in(hub) as laptop:
            await code_of(laptop, messages.PairingRequest(id=1, code="BCDFGHJK"))
    assert not [words for words in ("may not enrol", "in vain", "not-authorised") if told(caplog, words)]
