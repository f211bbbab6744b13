"""Pairings: one code for one device, ten minutes, bounded, and few tries."""

from collections.abc import Callable
from typing import Any

import pytest

from hub.pairings import ALPHABET, TRIES, TRIES_SECONDS, WAITING, WAITING_PER_ADDRESS, Pairing, Pairings
from hub.records import Terminal
from protocol import keys, limits
from protocol.errors import LockstepError
from tests.hub.rooms import PC, enrol_message

ASKERS = ("t-1", "a-1")


def nobody(outcome: Terminal | str) -> None:
    """A socket that is there and does nothing."""


def begin(
    pairings: Pairings,
    *,
    key: keys.SigningKey | None = None,
    host: str = "192.0.2.1",
    decided: Callable[[Terminal | str], None] = nobody,
    now: float = 0.0,
) -> Pairing:
    return pairings.begin(enrol_message("TV", key=key), f"{host}:5", host, decided, now)


def refused(call: Callable[[], Any]) -> LockstepError:
    with pytest.raises(LockstepError) as caught:
        call()
    return caught.value


def test_a_code_has_eight_letters_none_of_which_is_a_vowel() -> None:
    code = begin(Pairings()).code
    assert len(code) == limits.PAIRING_CODE_CHARACTERS and set(code) <= set(ALPHABET)
    assert len(set(ALPHABET)) == 20 and not set(ALPHABET) & set("AEIOUY01")


def test_the_same_device_key_is_given_the_same_code_until_it_expires() -> None:
    pairings, key = Pairings(), keys.SigningKey.generate()
    first = begin(pairings, key=key)
    again = begin(pairings, key=key, now=100.0)
    assert (again.code, again.until) == (first.code, first.until)
    assert begin(pairings, key=key, now=limits.PAIRING_SECONDS).code != first.code


def test_a_code_is_found_until_its_ten_minutes_are_over_in_either_case() -> None:
    pairings = Pairings()
    pairing = begin(pairings)
    assert pairings.find(pairing.code.lower(), ASKERS, 599.9) == pairing
    assert refused(lambda: pairings.find(pairing.code, ASKERS, 600.0)).code == "unknown-pairing"


def test_who_waits_is_told_once_and_the_code_is_dead_then() -> None:
    told: list[Terminal | str] = []
    pairings = Pairings()
    pairing = begin(pairings, decided=told.append)
    pairings.take(pairing)
    assert refused(lambda: pairings.take(pairing)).code == "unknown-pairing", "somebody else decides on it"
    pairings.end(pairing, TERMINAL)
    assert told == [TERMINAL]
    assert refused(lambda: pairings.find(pairing.code, ASKERS, 0.0)).code == "unknown-pairing"


TERMINAL = Terminal(
    terminal_id="t-9", account_id="a-1", account_name="ada", name="TV", device_key=bytes(32), device=PC, address="",
    connection=0, last_seen_at=0.0,
)  # fmt: skip


def test_the_newest_socket_of_a_device_is_told_and_the_older_one_that_it_is_not_the_newest() -> None:
    old: list[Terminal | str] = []
    new: list[Terminal | str] = []
    pairings, key = Pairings(), keys.SigningKey.generate()
    first = begin(pairings, key=key, decided=old.append)
    second = begin(pairings, key=key, decided=new.append)
    pairings.leave(first)  # the older socket ends after the newer has come
    pairings.take(second)
    pairings.end(second, TERMINAL)
    assert (old, new) == (["replaced"], [TERMINAL])


def test_a_device_that_asks_again_while_it_is_decided_on_is_told_where_it_asked_last() -> None:
    new: list[Terminal | str] = []
    pairings, key = Pairings(), keys.SigningKey.generate()
    first = begin(pairings, key=key)
    pairings.take(first)
    second = begin(pairings, key=key, decided=new.append)
    pairings.end(first, TERMINAL)
    assert new == [TERMINAL]
    assert refused(lambda: pairings.find(second.code, ASKERS, 0.0)).code == "unknown-pairing"


def test_what_could_not_be_decided_is_put_back_unless_the_device_has_asked_again() -> None:
    pairings, key = Pairings(), keys.SigningKey.generate()
    first = begin(pairings, key=key)
    pairings.take(first)
    pairings.put_back(first)
    assert pairings.find(first.code, ASKERS, 0.0) == first
    pairings.take(first)
    second = begin(pairings, key=key)
    pairings.put_back(first)
    assert pairings.find(second.code, ASKERS, 0.0) == second
    assert refused(lambda: pairings.find(first.code, ASKERS, 0.0)).code == "unknown-pairing"


def test_a_device_that_goes_while_it_is_decided_on_makes_way_when_it_is_put_back() -> None:
    pairings = Pairings()
    gone = begin(pairings)
    pairings.take(gone)
    pairings.leave(gone)
    pairings.put_back(gone)
    assert pairings.find(gone.code, ASKERS, 0.0).code == gone.code
    for _ in range(WAITING_PER_ADDRESS):
        begin(pairings)


def test_one_address_has_four_devices_waiting_and_a_hub_sixty_four() -> None:
    pairings = Pairings()
    for _ in range(WAITING_PER_ADDRESS):
        begin(pairings)
    assert refused(lambda: begin(pairings)).code == "busy"
    for number in range(WAITING - WAITING_PER_ADDRESS):
        begin(pairings, host=f"10.0.0.{number}")
    assert refused(lambda: begin(pairings, host="10.0.1.1")).code == "busy"
    assert begin(pairings, host="10.0.1.1", now=limits.PAIRING_SECONDS)


def test_a_device_whose_socket_is_gone_keeps_its_code_and_makes_way_when_there_is_no_room() -> None:
    pairings, key = Pairings(), keys.SigningKey.generate()
    gone = begin(pairings, key=key)
    pairings.leave(gone)
    assert pairings.find(gone.code, ASKERS, 0.0).code == gone.code
    for _ in range(WAITING_PER_ADDRESS):
        begin(pairings)
    assert refused(lambda: pairings.find(gone.code, ASKERS, 0.0)).code == "unknown-pairing"
    assert refused(lambda: begin(pairings)).code == "busy"


def test_after_five_wrong_codes_even_the_right_one_is_refused_for_a_while() -> None:
    pairings = Pairings()
    pairing = begin(pairings)
    for _ in range(TRIES):
        assert refused(lambda: pairings.find("BBBBBBBB", ASKERS, 0.0)).code == "unknown-pairing"
    refusal = refused(lambda: pairings.find(pairing.code, ASKERS, 1.0))
    assert (refusal.code, refusal.hint) == ("rate-limited", "Try again in 10 minutes.")
    assert refused(lambda: pairings.find("BBBBBBBB", ("t-2", "a-1"), 1.0)).code == "rate-limited", "of the account"
    assert pairings.find(pairing.code, ("t-3", "a-2"), 1.0) == pairing, "others go on"
    again = begin(pairings, host="192.0.2.9", now=TRIES_SECONDS)
    assert pairings.find(again.code, ASKERS, TRIES_SECONDS) == again


def test_right_codes_are_no_tries() -> None:
    pairings = Pairings()
    pairing = begin(pairings)
    for _ in range(100):
        assert pairings.find(pairing.code, ASKERS, 0.0) == pairing
