"""Keys: what is signed cannot be read two ways, and every part of it counts."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import keys, limits

NONCES = {"terminal_nonce": b"t" * 32, "hub_nonce": b"h" * 32, "hub_key": b"k" * 32}
LOGIN = {**NONCES, "terminal": "t-1", "host": "hub.example", "port": 443}
ENROL = {**NONCES, "account": "alice", "sealing_key": b"s" * 32, "host": "hub.example", "port": 443}


def changed(value: Any) -> Any:
    return value + 1 if isinstance(value, int) else value[:-1] + (b"?" if isinstance(value, bytes) else "?")


@pytest.mark.parametrize("part", LOGIN)
def test_a_login_signature_counts_for_one_value_of_each_part_only(part: str) -> None:
    key = keys.SigningKey.generate()
    signature = key.sign(keys.login_bytes(**LOGIN))  # type: ignore[arg-type]
    other = keys.login_bytes(**LOGIN | {part: changed(LOGIN[part])})  # type: ignore[arg-type]
    assert keys.verifies(key.public, signature, keys.login_bytes(**LOGIN))  # type: ignore[arg-type]
    assert not keys.verifies(key.public, signature, other)


@pytest.mark.parametrize("part", ENROL)
def test_an_enrol_signature_counts_for_one_value_of_each_part_only(part: str) -> None:
    key = keys.SigningKey.generate()
    signature = key.sign(keys.enrol_bytes(**ENROL))  # type: ignore[arg-type]
    other = keys.enrol_bytes(**ENROL | {part: changed(ENROL[part])})  # type: ignore[arg-type]
    assert not keys.verifies(key.public, signature, other)


@pytest.mark.parametrize("part", NONCES)
def test_a_challenge_signature_counts_for_one_value_of_each_part_only(part: str) -> None:
    key = keys.SigningKey.generate()
    signature = key.sign(keys.challenge_bytes(**NONCES))
    assert not keys.verifies(key.public, signature, keys.challenge_bytes(**NONCES | {part: changed(NONCES[part])}))


@given(st.text(max_size=8), st.text(max_size=8), st.text(max_size=8), st.text(max_size=8))
def test_moving_characters_between_neighbouring_parts_changes_what_is_signed(
    terminal: str, host: str, other_terminal: str, other_host: str
) -> None:
    signed = keys.login_bytes(**NONCES, terminal=terminal, host=host, port=1)
    other = keys.login_bytes(**NONCES, terminal=other_terminal, host=other_host, port=1)
    assert (signed == other) == ((terminal, host) == (other_terminal, other_host))


def test_a_signature_for_one_purpose_does_not_serve_another() -> None:
    signed = {keys.challenge_bytes(**NONCES), keys.login_bytes(**LOGIN), keys.enrol_bytes(**ENROL)}  # type: ignore[arg-type]
    assert len({data[4:24] for data in signed}) == 3


@given(st.binary(max_size=80), st.binary(max_size=80))
def test_keys_and_signatures_of_any_bytes_are_false_and_raise_nothing(public_key: bytes, signature: bytes) -> None:
    assert not keys.verifies(public_key, signature, b"data")


def test_keys_and_nonces_have_their_sizes_and_differ() -> None:
    signing, sealing = keys.SigningKey.generate(), keys.SealingKey.generate()
    assert len(signing.public) == len(sealing.public) == limits.KEY_BYTES
    assert len(signing.sign(b"")) == limits.SIGNATURE_BYTES
    assert len(keys.new_nonce()) == limits.NONCE_BYTES
    assert keys.new_nonce() != keys.new_nonce()
    assert keys.SigningKey.generate() != signing


def test_a_private_key_does_not_show_itself() -> None:
    signing, sealing = keys.SigningKey(b"x" * 32), keys.SealingKey(b"x" * 32)
    assert "x" * 4 not in f"{signing} {signing!r} {sealing} {sealing!r}"
