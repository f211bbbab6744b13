"""Tokens of an identity provider: a real HTTP server with real keys, and every way in which a token can be wrong."""

import asyncio
import hmac
import json
import logging
import ssl
import subprocess
import sys
from base64 import urlsafe_b64encode
from pathlib import Path
from typing import Any, Final

import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives import serialization
from joserfc.errors import SecurityWarning
from joserfc.jwk import OctKey, RSAKey

from hub import oidc
from hub.cli import main
from hub.config import Settings
from hub.enrolling import Enrolling
from hub.oidc import Provider
from hub.records import Terminal
from hub.standing import Standings
from protocol import keys, limits, messages
from protocol.errors import ConflictError, LockstepError, UsageError
from tests.harness.certificates import make_certificate
from tests.harness.providers import ALGORITHMS, AUDIENCE, EC, NOW, OKP, RSA, Server, serving_provider, token
from tests.hub.rooms import PASSWORD, PC, add_account, open_rooms

OTHER: Final = RSAKey.generate_key(2048, {"kid": "rsa"}, private=True)


class Clock:
    """What a provider takes for the time."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def provider(server: Server, clock: Clock | None = None, **given: Any) -> Provider:
    return Provider(server.url, AUDIENCE, now=lambda: float(NOW), clock=clock or Clock(), **given)


async def refusal(verifier: Provider, said: bytes) -> LockstepError:
    with pytest.raises(LockstepError) as caught:
        await verifier.verify(said)
    return caught.value


# --- what is right ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_a_token_signed_with_a_key_of_the_provider_says_who_it_is(algorithm: str) -> None:
    async with serving_provider() as server:
        identity = await provider(server).verify(token(server, algorithm=algorithm, preferred_username="ada"))
        assert identity == oidc.Identity(f"{server.url} 1234", "ada")
        assert server.asked == ["/.well-known/openid-configuration", "/keys"]


async def test_a_key_set_that_is_named_is_fetched_without_asking_where_it_is() -> None:
    async with serving_provider() as server:
        await provider(server, jwks_url=f"{server.url}/elsewhere").verify(token(server))
        assert server.asked == ["/elsewhere"]


async def test_a_hundred_tokens_cost_the_provider_one_request() -> None:
    async with serving_provider() as server:
        verifier = provider(server)
        await asyncio.gather(*(verifier.verify(token(server)) for _ in range(100)))
        assert server.asked.count("/keys") == 1


async def test_one_audience_of_several_is_enough_and_another_claim_may_give_the_name() -> None:
    async with serving_provider() as server:
        verifier = provider(server, name_claim="email")
        said = token(server, aud=["other", AUDIENCE], email="ada@example.org", preferred_username="x")
        assert (await verifier.verify(said)).name == "ada@example.org"
        assert (await verifier.verify(token(server, email=7))).name == ""


async def test_a_minute_of_difference_between_the_clocks_is_allowed() -> None:
    async with serving_provider() as server:
        verifier = provider(server)
        await verifier.verify(token(server, exp=NOW - 59))
        await verifier.verify(token(server, nbf=NOW + 59, iat=NOW + 59))


async def test_a_token_without_a_key_id_is_right_where_only_one_key_could_have_signed_it() -> None:
    async with serving_provider() as server:
        verifier = provider(server)
        await verifier.verify(token(server, header={"kid": None}))
        server.publish(RSA, RSAKey.generate_key(2048, {"kid": "second"}))
        assert (await refusal(provider(server), token(server, header={"kid": None}))).code == "not-authorised"


# --- what is wrong with a token -----------------------------------------------------------------------------------

WRONG_CLAIMS: Final[tuple[dict[str, Any], ...]] = (
    {"exp": NOW - 61}, {"exp": None}, {"exp": "soon"}, {"exp": True}, {"nbf": NOW + 61}, {"iat": NOW + 61},
    {"iss": "https://evil.example"}, {"iss": None}, {"iss": 7}, {"aud": "other"}, {"aud": None}, {"aud": []},
    {"aud": ["other"]}, {"aud": {}}, {"sub": None}, {"sub": ""}, {"sub": 7}, {"sub": "a\nb"}, {"sub": "x" * 256},
)  # fmt: skip


@pytest.mark.parametrize("claims", WRONG_CLAIMS, ids=str)
async def test_a_token_with_a_wrong_claim_is_refused(claims: dict[str, Any]) -> None:
    async with serving_provider() as server:
        assert (await refusal(provider(server), token(server, **claims))).code == "not-authorised"


def public_pem(key: Any) -> bytes:
    return bytes(
        key.public_key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )


def encoded(value: bytes) -> bytes:
    return urlsafe_b64encode(value).rstrip(b"=")


def hmac_token(server: Server, secret: bytes, kid: str) -> bytes:
    """Return a token as an attacker makes it, who has the public key and no library that refuses."""
    claims = {"iss": server.url, "aud": AUDIENCE, "sub": "1234", "exp": NOW + 300}
    parts = [encoded(json.dumps(part).encode()) for part in ({"alg": "HS256", "kid": kid}, claims)]
    return b".".join((*parts, encoded(hmac.digest(secret, b".".join(parts), "sha256"))))


async def test_a_token_that_is_not_signed_is_refused() -> None:
    async with serving_provider() as server:
        head, payload, signature = token(server).split(b".")
        none = encoded(b'{"alg":"none","kid":"rsa"}')
        verifier = provider(server)
        for said in (
            b".".join((none, payload, b"")),
            b".".join((none, payload, signature)),
            head + b"." + payload + b".",
        ):
            assert (await refusal(verifier, said)).code == "not-authorised"


@pytest.mark.parametrize("kid", ["rsa", "ec", "okp"])
async def test_a_public_key_taken_for_a_secret_signs_nothing(kid: str) -> None:
    async with serving_provider() as server:
        key: Any = {"rsa": RSA, "ec": EC, "okp": OKP}[kid]
        jwk = json.dumps(key.as_dict(private=False)).encode()
        for secret in (public_pem(key), public_pem(key).strip(), jwk):
            assert (await refusal(provider(server), hmac_token(server, secret, kid))).code == "not-authorised"


async def test_a_symmetric_key_in_the_providers_set_is_not_used() -> None:
    async with serving_provider() as server:
        secret = OctKey.import_key(b"s" * 32, {"kid": "secret"})
        server.publish(RSA, secret.as_dict(private=True))
        assert (await refusal(provider(server), hmac_token(server, b"s" * 32, "secret"))).code == "not-authorised"


async def test_a_token_that_another_key_has_signed_is_refused_though_it_brings_that_key_along() -> None:
    async with serving_provider() as server:
        bring = {"jwk": OTHER.as_dict(private=False), "jku": f"{server.url}/evil", "x5u": f"{server.url}/evil"}
        for header in ({}, bring):
            assert (await refusal(provider(server), token(server, key=OTHER, header=header))).code == "not-authorised"
        assert "/evil" not in server.asked


async def test_a_key_signs_with_its_own_algorithm_only() -> None:
    async with serving_provider() as server:
        with pytest.warns(SecurityWarning):
            weak = RSAKey.generate_key(1024, {"kid": "weak"})
        server.publish(
            RSA.as_dict(private=False) | {"alg": "RS512"}, EC.as_dict(private=False) | {"use": "enc"}, weak, OKP
        )
        verifier = provider(server)
        for said in (token(server), token(server, algorithm="ES256"), token(server, key=weak)):
            assert (await refusal(verifier, said)).code == "not-authorised"
        await verifier.verify(token(server, algorithm="EdDSA"))


@pytest.mark.parametrize(
    "said",
    [b"", b".", b"..", b"...", b"a.b.c", b"a.b.c.d.e", b"\xff" * 100, b"." * 4_096, b"e30.e30.", b"W10.W10.W10",
     b"bnVsbA.bnVsbA.bnVsbA", b"A" * 4_096],
    ids=lambda said: repr(said[:12]),
)  # fmt: skip
async def test_bytes_that_are_no_token_are_refused_and_cost_the_provider_nothing(said: bytes) -> None:
    async with serving_provider() as server:
        assert (await refusal(provider(server), said)).code == "not-authorised"
        assert server.asked == []


async def test_headers_of_odd_types_and_what_is_not_understood_but_critical_are_refused() -> None:
    async with serving_provider() as server:
        verifier = provider(server)
        for header in ({"kid": 7}, {"kid": ["rsa"]}, {"kid": {"a": 1}}):
            with pytest.raises(LockstepError):
                await verifier.verify(unsigned(server, header))
        assert (await refusal(verifier, unsigned(server, {"crit": ["exp"], "exp": 1}))).code == "not-authorised"
        assert (await refusal(verifier, unsigned(server, {"alg": ["RS256"]}))).code == "not-authorised"


def unsigned(server: Server, header: dict[str, Any]) -> bytes:
    """Return a token with this header over a signature that was right for another."""
    _, payload, signature = token(server).split(b".")
    return b".".join((encoded(json.dumps({"alg": "RS256", "kid": "rsa"} | header).encode()), payload, signature))


async def test_every_refusal_is_the_same_whatever_is_wrong() -> None:
    async with serving_provider() as server:
        verifier = provider(server)
        wrong = (token(server, exp=NOW - 99), token(server, key=OTHER), token(server, aud="x"), b"junk")
        answers = {(error.code, str(error)) for error in [await refusal(verifier, said) for said in wrong]}
        assert len(answers) == 1


# --- the provider's keys ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"aud": "other"}, "a wrong or missing audience"),
        ({"iss": None}, "a wrong or missing issuer"),
        ({"exp": NOW - 3_600}, "expired"),
        ({"key": OTHER}, "a forged signature"),
        ({"header": {"kid": "unheard"}}, "signed with an unknown key"),
    ],
)
async def test_what_is_wrong_is_noted_for_the_hubs_log_alone(given: dict[str, Any], why: str) -> None:
    async with serving_provider() as server:
        error = await refusal(provider(server), token(server, **given))
        assert (error.__notes__, why in str(error)) == ([why], False)


async def test_a_rotated_key_is_fetched_when_the_first_token_names_it() -> None:
    async with serving_provider() as server:
        clock = Clock()
        verifier = provider(server, clock)
        await verifier.verify(token(server))
        new = RSAKey.generate_key(2048, {"kid": "new"})
        server.publish(new)
        clock.now = 61.0
        await verifier.verify(token(server, key=new))
        assert (await refusal(verifier, token(server))).code == "not-authorised", "the old one is gone"


async def test_a_flood_of_unknown_key_ids_asks_the_provider_once_a_minute() -> None:
    async with serving_provider() as server:
        clock = Clock()
        verifier = provider(server, clock)
        await verifier.verify(token(server))
        for second in range(180):
            clock.now = float(second)
            said = token(server, header={"kid": f"unknown{second}"})
            assert (await refusal(verifier, said)).code == "not-authorised"
            await verifier.verify(token(server))  # those that are known go on
        assert server.asked.count("/keys") == 3


async def test_while_the_provider_is_down_its_keys_are_good_for_a_day() -> None:
    clock = Clock()
    async with serving_provider() as server:
        verifier = provider(server, clock)
        await verifier.verify(token(server))
    clock.now = 86_399.0
    await verifier.verify(token(server))
    clock.now = 86_400.0 + 61.0
    assert (await refusal(verifier, token(server))).code == "unavailable"


async def test_a_provider_that_was_never_there_is_unavailable_and_asked_again_after_a_minute() -> None:
    clock = Clock()
    async with serving_provider() as server:
        server.status = "500 Internal Server Error"
        verifier = provider(server, clock)
        assert (await refusal(verifier, token(server))).code == "unavailable"
        server.status = "200 OK"
        assert (await refusal(verifier, token(server))).code == "unavailable"
        clock.now = 60.0
        await verifier.verify(token(server))


def huge() -> bytes:
    return json.dumps({"keys": [RSA.as_dict(private=False)], "more": "x" * oidc.FETCH_BYTES}).encode()


@pytest.mark.parametrize(
    "answer",
    [huge(), b"", b"[]", b"{}", b'{"keys": {}}', b'{"keys": [1, null, {}]}', b'{"keys": [', b"[" * 100_000,
     b'{"keys": [{"kty": "RSA", "kid": "rsa", "n": "!", "e": 7}]}'],
    ids=["huge", "empty", "list", "no-keys", "map", "junk", "cut", "deep", "bad-key"],
)  # fmt: skip
async def test_a_key_set_that_is_huge_or_is_none_is_passed_over_and_said_so(
    answer: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    async with serving_provider() as server:
        clock = Clock()
        verifier = provider(server, clock)
        server.answer = answer
        assert (await refusal(verifier, token(server))).code == "unavailable"
        assert "cannot be had" in caplog.text
        server.publish(RSA)
        clock.now = 60.0
        await verifier.verify(token(server))


async def test_a_key_set_that_does_not_come_is_waited_for_no_longer_than_it_may_be(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(oidc, "FETCH_SECONDS", 0.2)
    async with serving_provider() as server:
        server.answer = None
        verifier = provider(server)
        async with asyncio.timeout(5.0):
            assert (await refusal(verifier, token(server))).code == "unavailable"


async def test_a_provider_is_believed_only_with_a_certificate_that_this_system_trusts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate = make_certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate.certificate, certificate.key)
    async with serving_provider(context) as server:
        assert (await refusal(provider(server), token(server))).code == "unavailable"
        assert server.asked == []
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate.certificate))  # of OpenSSL: where the system keeps them
        await provider(server).verify(token(server))


async def test_a_redirect_is_not_followed() -> None:
    async with serving_provider() as evil, serving_provider() as server:
        evil.publish(OTHER)
        server.status, server.headers = "302 Found", f"Location: {evil.url}/keys\r\n"
        assert (await refusal(provider(server), token(server, key=OTHER))).code == "unavailable"
        assert evil.asked == []


@pytest.mark.parametrize(
    "configuration",
    [{"issuer": "https://evil.example"}, {"jwks_uri": "http://evil.example/keys"}, {"jwks_uri": 7}],
    ids=str,
)
async def test_a_configuration_of_another_issuer_or_with_keys_in_the_clear_is_passed_over(
    configuration: dict[str, Any],
) -> None:
    async with serving_provider() as server:
        server.configuration |= configuration
        assert (await refusal(provider(server), token(server))).code == "unavailable"
        assert server.asked == ["/.well-known/openid-configuration"]


@pytest.mark.parametrize(
    "url", ["http://id.example", "ftp://id.example", "id.example", "https://", "http://10.0.0.1", ""]
)
def test_a_provider_in_the_clear_is_refused_at_the_start(url: str) -> None:
    with pytest.raises(UsageError):
        Provider(url, AUDIENCE)
    Provider("http://localhost:1", AUDIENCE)
    Provider("http://[::1]:1", AUDIENCE)


# --- whose account it is ------------------------------------------------------------------------------------------


def token_message(said: bytes, key: keys.SigningKey | None = None) -> messages.Enrol:
    return messages.Enrol(
        token=said, name="PC", device=PC, device_key=(key or keys.SigningKey.generate()).public,
        sealing_key=bytes(32), host="hub", port=1, signature=bytes(64),
    )  # fmt: skip


async def enrol(enrolling: Enrolling, said: bytes) -> Terminal:
    outcome = await enrolling.enrol(token_message(said), "192.0.2.1:5", "192.0.2.1", lambda outcome: None)
    assert isinstance(outcome, Terminal)
    return outcome


async def test_a_token_enrols_in_the_account_it_is_linked_with_and_never_in_one_by_its_name(tmp_path: Path) -> None:
    async with open_rooms(tmp_path) as hub, serving_provider() as server:
        await add_account(hub, "ada")
        work = await add_account(hub, "work")
        enrolling = Enrolling(hub.store, hub.accounts, Standings(), provider(server))
        said = token(server, preferred_username="ada")
        with pytest.raises(LockstepError) as caught:
            await enrol(enrolling, said)
        assert caught.value.code == "not-authorised"
        await hub.accounts.link("work", f"{server.url} 1234")
        assert (await enrol(enrolling, said)).account_id == work
        with pytest.raises(ConflictError):
            await hub.accounts.link("ada", f"{server.url} 1234")
        await hub.accounts.link("work", "")
        with pytest.raises(LockstepError):
            await enrol(enrolling, said)


async def test_where_accounts_are_created_a_newcomer_has_one_of_a_free_name_that_no_password_opens(
    tmp_path: Path,
) -> None:
    async with open_rooms(tmp_path) as hub, serving_provider() as server:
        await add_account(hub, "ada")
        enrolling = Enrolling(hub.store, hub.accounts, Standings(), provider(server), create_accounts=True)
        first = await enrol(enrolling, token(server, preferred_username="ada"))
        again = await enrol(enrolling, token(server, preferred_username="renamed"))
        other = await enrol(enrolling, token(server, sub="5678", preferred_username=" a\x00b " + "x" * 99))
        nameless = await enrol(enrolling, token(server, sub="9"))
        assert [one.account_name for one in (first, again)] == ["ada-2"] * 2
        assert other.account_name == ("a b " + "x" * 99)[: limits.NAME_CHARACTERS]
        assert nameless.account_name == "account"
        for password in ("", PASSWORD, "x"):
            assert await hub.accounts.check_password("ada-2", password) is None
        assert {row.name: row.rights for row in await hub.accounts.listing()}["ada-2"] == (
            "approve", "initiate", "receive",
        )  # fmt: skip


async def test_a_hub_that_trusts_no_provider_refuses_every_token(tmp_path: Path) -> None:
    async with open_rooms(tmp_path) as hub:
        with pytest.raises(LockstepError) as caught:
            await enrol(hub.enrolling, b"a.b.c")
        assert caught.value.code == "not-authorised"


@pytest.mark.parametrize("url", ["https://ada:s3cret@id.example", "https://s3cret@id.example/keys"])
def test_a_password_in_a_providers_url_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(UsageError, match="user or a password") as caught:
        Provider("https://id.example", AUDIENCE, jwks_url=url)
    assert "s3cret" not in str(caught.value)


def test_a_provider_needs_an_audience_as_well() -> None:
    from hub.config import load_settings

    with pytest.raises(UsageError, match="oidc_audience"):
        load_settings(None, {"oidc_issuer": "https://id.example"}, {})
    assert Settings().oidc_issuer == ""


def test_what_talks_to_a_provider_is_imported_only_where_there_is_one() -> None:
    look = "import sys, hub.app; print([name for name in ('httpx', 'joserfc', 'hub.oidc') if name in sys.modules])"
    said = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True)
    assert said.stdout == "[]\n"


def test_the_operator_links_an_account(tmp_path: Path) -> None:
    def hub(*arguments: str) -> Any:
        environment = {"LOCKSTEP_HUB_OIDC_ISSUER": "https://id.example", "LOCKSTEP_HUB_OIDC_AUDIENCE": AUDIENCE}
        return CliRunner().invoke(
            main, [*arguments, "--data", str(tmp_path / "hub")], input=f"{PASSWORD}\n", env=environment
        )

    hub("account", "add", "ada", "--password-stdin")
    assert json.loads(hub("account", "link", "ada", "1234", "--json").stdout)["subject"] == "https://id.example 1234"
    assert json.loads(hub("account", "list", "--json").stdout)[0]["subject"] == "https://id.example 1234"
    assert "https://other.example 5" in hub("account", "link", "ada", "https://other.example 5").stdout
    assert hub("account", "link", "ada").exit_code == 2
    assert hub("account", "link", "nobody", "1").exit_code == 2
    assert "with nobody" in hub("account", "link", "ada", "--remove").stdout
