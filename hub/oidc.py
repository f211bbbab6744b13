"""Tokens of an identity provider (OpenID Connect Core 1.0, RFC 7519): which are right, and whose they are.

The provider's public keys are fetched, bounded in size and time, when a token needs one that is not here: at most once
a minute, whoever asks. While the provider is down they are good for a day. The algorithms are named here, so that
neither `none` nor a public key taken for a secret (HS256) is ever tried.
"""

import asyncio
import ipaddress
import json
import logging
import ssl
import time
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import urlsplit

import httpx
from joserfc import jws
from joserfc.errors import BadSignatureError, ExpiredTokenError, JoseError
from joserfc.jwk import ECKey, OKPKey, RSAKey
from joserfc.jws import JWSRegistry
from joserfc.jwt import JWTClaimsRegistry, decode
from msgspec import Struct

from protocol.errors import RefusedError, UnavailableError, UsageError

log: Final = logging.getLogger("lockstep.hub")

FETCH_SECONDS: Final = 5.0
FETCH_BYTES: Final = 256 * 1024
REFETCH_SECONDS: Final = 60.0
FRESH_SECONDS: Final = 3_600.0
KEPT_SECONDS: Final = 86_400.0
LEEWAY_SECONDS: Final = 60
_KEYS_LARGEST: Final = 100
_RSA_MODULUS_CHARACTERS: Final = range(342, 1_367)  # base64 of 2048 bits (RFC 7518, section 3.3) to 8192
_SUBJECT_CHARACTERS: Final = 255  # OpenID Connect Core 1.0, section 2
_HEADERS: Final = {"Accept": "application/json", "Accept-Encoding": "identity"}  # nothing that grows when unpacked
_WELL_KNOWN: Final = "/.well-known/openid-configuration"

# What the log calls the claims (RFC 7519, section 4.1).
_CLAIMS: Final = {
    "aud": "audience", "iss": "issuer", "sub": "subject", "exp": "expiry", "nbf": "start", "iat": "time of issue",
}  # fmt: skip

Key = RSAKey | ECKey | OKPKey
_KEY_CLASSES: Final[dict[str, tuple[type[RSAKey] | type[ECKey] | type[OKPKey], str]]] = {
    "RS256": (RSAKey, ""),
    "ES256": (ECKey, "P-256"),
    "EdDSA": (OKPKey, "Ed25519"),
    "Ed25519": (OKPKey, "Ed25519"),
}


class Identity(Struct, frozen=True):
    """Who a token is of: the issuer, a blank, its `sub`; and the name the provider gives them, "" for none."""

    subject: str
    name: str


class _Registry(JWSRegistry):
    """The algorithms above and no other. What RFC 9864 calls Ed25519 now, providers go on calling EdDSA."""

    def get_alg(self, name: str) -> Any:
        """Return an algorithm. Raises ValueError for one that is not allowed."""
        if name not in _KEY_CLASSES:
            raise ValueError(name)
        return self.algorithms[name]


class Provider:
    """One identity provider. `now` gives Unix seconds, by which tokens expire; `clock` counts the age of its keys."""

    def __init__(
        self,
        issuer: str,
        audience: str,
        *,
        jwks_url: str = "",
        name_claim: str = "preferred_username",
        now: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Raises UsageError for an issuer or a URL that is not https (http only on this machine)."""
        self.issuer = issuer
        self._audience = audience
        self._jwks_url = jwks_url
        self._name_claim = name_claim
        self._now = now
        self._clock = clock
        self._keys: dict[str, Key] = {}
        self._fetched_at: float | None = None
        self._tried_at: float | None = None
        self._turn = asyncio.Lock()
        _check_url(issuer)
        if jwks_url:
            _check_url(jwks_url)

    async def verify(self, token: bytes) -> Identity:
        """Return who the token is of.

        Raises RefusedError, the same whatever is wrong with the token; UnavailableError where the provider's keys
        cannot be had and none are here.
        """
        try:
            header = jws.extract_compact(token, registry=_REGISTRY).headers()
            if header.get("alg") not in _KEY_CLASSES:
                raise _refused("an algorithm that is not allowed")
            key = await self._key(header.get("kid"), str(header["alg"]))
            claims = decode(token, key, algorithms=list(_KEY_CLASSES), registry=_REGISTRY).claims
            return self._identity(claims)
        except (JoseError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise _refused(_why_not(error)) from None

    def _identity(self, claims: dict[str, Any]) -> Identity:
        JWTClaimsRegistry(
            now=lambda: int(self._now()),
            leeway=LEEWAY_SECONDS,
            iss={"essential": True, "value": self.issuer},
            aud={"essential": True, "value": self._audience},
            exp={"essential": True},
            sub={"essential": True},
        ).validate(claims)
        subject, name = claims["sub"], claims.get(self._name_claim)
        if not isinstance(subject, str) or not 1 <= len(subject) <= _SUBJECT_CHARACTERS or not subject.isprintable():
            raise ValueError("sub")
        return Identity(f"{self.issuer} {subject}", name if isinstance(name, str) else "")

    async def _key(self, kid: object, algorithm: str) -> Key:
        """Return the key that a token names, after fetching them anew where it is not here. Raises RefusedError."""
        if self._find(kid, algorithm) is None or self._age() >= FRESH_SECONDS:
            async with self._turn:
                if self._find(kid, algorithm) is None or self._age() >= FRESH_SECONDS:
                    await self._refresh()
        if self._age() >= KEPT_SECONDS:
            raise UnavailableError(
                f"The identity provider {self.issuer} cannot be asked for its keys.", hint="Try again later."
            )
        key = self._find(kid, algorithm)
        if key is None:
            raise _refused("signed with an unknown key")
        return key

    def _find(self, kid: object, algorithm: str) -> Key | None:
        """Return the key of this id; without an id, the only one that fits the algorithm."""
        fitting = {name: key for name, key in self._keys.items() if _fits(key, algorithm)}
        if kid is None:
            return next(iter(fitting.values())) if len(fitting) == 1 else None
        return fitting.get(kid) if isinstance(kid, str) else None

    def _age(self) -> float:
        return float("inf") if self._fetched_at is None else self._clock() - self._fetched_at

    async def _refresh(self) -> None:
        """Fetch the keys unless that was tried within the last minute; what goes wrong leaves those that are here."""
        now = self._clock()
        if self._tried_at is not None and now - self._tried_at < REFETCH_SECONDS:
            return
        self._tried_at = now
        try:
            async with asyncio.timeout(FETCH_SECONDS):
                self._keys = await self._fetch_keys()
            self._fetched_at = now
        except (
            httpx.HTTPError,
            httpx.InvalidURL,
            TimeoutError,
            ValueError,
            UsageError,
            OSError,
            RecursionError,
        ) as error:
            log.warning("the keys of the identity provider %s cannot be had: %s", self.issuer, error or type(error))

    async def _fetch_keys(self) -> dict[str, Key]:
        trusted = ssl.create_default_context()  # the system's certificates, so that a company's own authority counts
        async with httpx.AsyncClient(
            verify=trusted, timeout=FETCH_SECONDS, follow_redirects=False, trust_env=False
        ) as client:
            url = self._jwks_url or await self._discover(client)
            return _keys_of(await _fetch(client, url))

    async def _discover(self, client: httpx.AsyncClient) -> str:
        """Return where the keys are (OpenID Connect Discovery 1.0, section 4)."""
        found = await _fetch(client, self.issuer.rstrip("/") + _WELL_KNOWN)
        if found.get("issuer") != self.issuer or not isinstance(found.get("jwks_uri"), str):
            raise ValueError("its configuration is of another issuer, or names no keys")
        _check_url(found["jwks_uri"])
        return str(found["jwks_uri"])


async def _fetch(client: httpx.AsyncClient, url: str) -> dict[str, Any]:
    """Return a JSON object. Raises ValueError for an answer that is none, too large or a redirect; httpx's errors."""
    async with client.stream("GET", url, headers=_HEADERS) as response:
        if response.status_code != httpx.codes.OK:
            raise ValueError(f"{url} answers {response.status_code}")
        data = bytearray()
        async for part in response.aiter_raw(16 * 1024):
            data += part
            if len(data) > FETCH_BYTES:
                raise ValueError(f"{url} has more than {FETCH_BYTES} bytes")
    value = json.loads(data)
    if not isinstance(value, dict):
        raise ValueError(f"{url} is not a JSON object")
    return value


def _keys_of(found: dict[str, Any]) -> dict[str, Key]:
    """Return the public keys of a JWK set (RFC 7517) that may sign tokens here, by id; others are left out."""
    listed = found.get("keys")
    if not isinstance(listed, list):
        raise ValueError("there is no list of keys")
    keys: dict[str, Key] = {}
    for number, entry in enumerate(listed[:_KEYS_LARGEST]):
        key = _import(entry)
        if key is not None:
            kid = entry.get("kid")
            keys[kid if isinstance(kid, str) else f"key without an id {number}"] = key
    if not keys:
        raise ValueError("there is no key of use in it")
    return keys


def _import(entry: Any) -> Key | None:
    classes: dict[str, type[RSAKey] | type[ECKey] | type[OKPKey]] = {"RSA": RSAKey, "EC": ECKey, "OKP": OKPKey}
    if not isinstance(entry, dict) or entry.get("use", "sig") != "sig":
        return None
    try:
        if entry["kty"] == "RSA" and len(entry["n"]) not in _RSA_MODULUS_CHARACTERS:
            return None  # the library only warns of a small one
        key = classes[entry["kty"]].import_key(entry)
        return key if any(_fits(key, algorithm) for algorithm in _KEY_CLASSES) else None
    except (JoseError, ValueError, TypeError, KeyError, AttributeError):
        return None


def _fits(key: Key, algorithm: str) -> bool:
    key_class, curve = _KEY_CLASSES[algorithm]
    if not isinstance(key, key_class) or (key.alg or algorithm) not in _names_of(algorithm):
        return False
    return isinstance(key, RSAKey) or key.curve_name == curve


def _names_of(algorithm: str) -> tuple[str, ...]:
    return ("EdDSA", "Ed25519") if algorithm in ("EdDSA", "Ed25519") else (algorithm,)


def _check_url(url: str) -> None:
    """Raise UsageError for a URL by which somebody on the way could put keys of their own in."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        loopback = host == "localhost" or (host != "" and _is_loopback_address(host))
    except ValueError:
        raise UsageError(f"{url!r} is not a URL.") from None
    if parts.username is not None or parts.password is not None:
        raise UsageError(  # it would be in logs; a set of public keys needs none
            "The identity provider's URL has a user or a password in it.", hint="Give it without."
        )
    if not host or not (parts.scheme == "https" or (parts.scheme == "http" and loopback)):
        raise UsageError(
            f"The identity provider's URL {url!r} is not https://.", hint="http:// is for this machine only."
        )


def _is_loopback_address(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _why_not(error: Exception) -> str:
    """Return what is wrong with a token, in words of this file: nothing of the token is repeated."""
    if isinstance(error, BadSignatureError):
        return "a forged signature"
    if isinstance(error, ExpiredTokenError):
        return "expired"
    claim = getattr(error, "claim", None)
    return f"a wrong or missing {_CLAIMS[claim]}" if claim in _CLAIMS else "not a token of this provider"


def _refused(why: str) -> RefusedError:
    """Return the one error for every token that is not right; `why` is a note on it, for the hub's log alone."""
    error = RefusedError(
        "This token is not accepted here.", hint="Get a fresh one from the identity provider this hub trusts."
    )
    error.add_note(why)
    return error


_REGISTRY: Final = _Registry(algorithms=list(_KEY_CLASSES), strict_check_header=False)
