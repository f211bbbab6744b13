"""Join keys: with one, devices enrol unattended. A secret that is shown once and kept as its SHA-256.

A key has 160 random bits, so a look-up by its digest needs no slow hash and no limit on guesses.
"""

import hashlib
import secrets
import time
from typing import Final

import msgspec
from msgspec import Struct, structs

from hub.accounts import find_account, unknown_account
from hub.audit import OPERATOR, record
from hub.records import new_id
from hub.store import Row, Store, Transaction
from protocol import limits
from protocol.errors import RefusedError, UnknownNameError, UsageError

PREFIX: Final = "lsk-"
USES_LARGEST: Final = 100_000
SECONDS_LARGEST: Final = 366 * 86_400
_ALPHABET: Final = "23456789abcdefghijkmnpqrstuvwxyz"  # 5 bits a character
_SECRET_CHARACTERS: Final = 32


class JoinKey(Struct, frozen=True, kw_only=True):
    """One join key as an operator sees it; times are Unix seconds, 0.0 for never."""

    join_key: str
    account: str
    uses: int
    uses_left: int
    expires_at: float
    created_at: float
    tags: tuple[str, ...] = ()
    revoked_at: float = 0.0


class Used(Struct, frozen=True):
    """What a key that was used gives: whose device it makes, and its tags."""

    join_key: str
    account_id: str
    tags: tuple[str, ...]


class JoinKeys:
    """The join keys of one hub."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def add(self, account: str, *, uses: int, seconds: float, tags: tuple[str, ...] = ()) -> tuple[JoinKey, str]:
        """Make a key for so many devices and so long; return it and its secret, which is nowhere else.

        Raises UsageError for numbers or tags that cannot be, UnknownNameError for an account that is not there.
        """
        _check(uses, seconds, tags)
        secret = PREFIX + "".join(secrets.choice(_ALPHABET) for _ in range(_SECRET_CHARACTERS))
        identifier, now = new_id("k"), time.time()
        key = JoinKey(
            join_key=identifier, account=account, uses=uses, uses_left=uses, expires_at=now + seconds, created_at=now,
            tags=tuple(dict.fromkeys(tags)),
        )  # fmt: skip

        async def body(transaction: Transaction) -> str:
            row = await find_account(transaction, account)
            if row is None:
                return ""
            await transaction.rows(
                "add_join_key",
                join_key_id=identifier,
                account_id=row["account_id"],
                digest=digest_of(secret),
                tags=msgspec.json.encode(key.tags).decode(),
                uses=uses,
                expires_at=key.expires_at,
                now=now,
            )
            detail = {"account": row["name"], "uses": uses, "expires_at": key.expires_at, "tags": list(key.tags)}
            await record(transaction, OPERATOR, "joinkey.add", identifier, **detail)
            return str(row["name"])

        name = await self._store.transaction(body)
        if not name:
            raise unknown_account(account)
        return structs.replace(key, account=name), secret

    async def listing(self) -> list[JoinKey]:
        """Every key, oldest first."""

        async def body(transaction: Transaction) -> list[JoinKey]:
            return [_join_key(row) for row in await transaction.rows("join_keys")]

        return await self._store.transaction(body)

    async def revoke(self, identifier: str) -> None:
        """Have a key make no further device; those it has made go on. Raises UnknownNameError."""

        async def body(transaction: Transaction) -> bool:
            row = await transaction.row("revoke_join_key", join_key_id=identifier, now=time.time())
            if row is not None:
                await record(transaction, OPERATOR, "joinkey.revoke", identifier)
            return row is not None

        if not await self._store.transaction(body):
            raise UnknownNameError(
                f"There is no join key {identifier!r}.",
                hint="`lockstep-hub joinkey list` lists them by their ids; the secret is not kept.",
                code="unknown-join-key",
            )


async def use(transaction: Transaction, secret: str, device_key: bytes) -> Used:
    """Count a use, in the transaction that enrols the device; one that is the account's already costs none.

    Raises RefusedError, the same for a key that never was, has expired, was revoked or is used up.
    """
    row = await transaction.row("join_key_by_digest", digest=digest_of(secret))
    if row is None or row["revoked_at"] is not None or row["expires_at"] <= time.time():
        raise _refused(_why_not(row))
    known = await transaction.row("terminal_by_key", account_id=row["account_id"], device_key=device_key)
    if known is None and await transaction.row("use_join_key", join_key_id=row["join_key_id"]) is None:
        raise _refused(f"{row['join_key_id']} is used up")
    return Used(row["join_key_id"], row["account_id"], tuple(msgspec.json.decode(row["tags"], type=list[str])))


def digest_of(secret: str) -> bytes:
    """Return what is kept of a key."""
    return hashlib.sha256(secret.encode()).digest()


def _why_not(row: Row | None) -> str:
    if row is None:
        return "no such key"
    return f"{row['join_key_id']} {'is revoked' if row['revoked_at'] is not None else 'has expired'}"


def _refused(why: str) -> RefusedError:
    """Return the one error for every key that is not good; `why` is a note on it, for the hub's log alone."""
    error = RefusedError(
        "This join key is not valid.", hint="It may have expired or be used up: ask whoever gave it for another."
    )
    error.add_note(why)
    return error


def _check(uses: int, seconds: float, tags: tuple[str, ...]) -> None:
    if not 1 <= uses <= USES_LARGEST:
        raise UsageError(f"A join key is good for 1 to {USES_LARGEST} devices, not {uses}.")
    if not 0 < seconds <= SECONDS_LARGEST:
        raise UsageError(f"A join key is good for at most {SECONDS_LARGEST // 86_400} days.")
    if len(tags) > limits.TAGS_PER_TERMINAL:
        raise UsageError(f"A device has at most {limits.TAGS_PER_TERMINAL} tags.")
    for tag in tags:
        if not 1 <= len(tag) <= limits.NAME_CHARACTERS or not tag.isprintable() or tag != tag.strip():
            raise UsageError(f"{tag!r} is not a tag: 1 to {limits.NAME_CHARACTERS} printable characters.")


def _join_key(row: Row) -> JoinKey:
    return JoinKey(
        join_key=row["join_key_id"],
        account=row["account_name"],
        uses=row["uses"],
        uses_left=row["uses_left"],
        expires_at=row["expires_at"],
        created_at=row["created_at"],
        tags=tuple(msgspec.json.decode(row["tags"], type=list[str])),
        revoked_at=row["revoked_at"] or 0.0,
    )
