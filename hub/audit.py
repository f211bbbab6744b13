"""The audit log: who did what to what, written in the same transaction as the act and chained by hashes.

The hash of a row is SHA-256 over the hash of the row before it and the row's own fields, each with its length in four
bytes, big-endian, before it; the first row follows 32 zero bytes. So a row that was edited, deleted or put elsewhere
breaks the chain from there on. The chain has no key: whoever may write the database can write the whole log anew. That
is what heads are for: the last row's number and hash, signed by the hub. The hub signs one at its start, once a day and
at a good stop, and keeps it beside the log and in its own log lines; the one that counts is kept elsewhere, out of
reach of whoever rewrites both.

Guesses, refused logins and refused requests are no rows, only log lines: strangers would fill the disk with them.
"""

import asyncio
import base64
import binascii
import hashlib
import json
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Final, Literal, NamedTuple

from msgspec import Struct

from hub.store import Row, Store, Transaction
from protocol import keys
from protocol.errors import BadDataError, LockstepError, UsageError
from protocol.keys import SigningKey

log: Final = logging.getLogger("lockstep.hub")

BEFORE_THE_FIRST: Final = bytes(32)
ROWS_PER_PAGE: Final = 500
SIGN_EVERY_SECONDS: Final = 86_400.0
LOOK_FOR_THE_FIRST_SECONDS: Final = 30.0  # an empty log has nothing to sign; its first row is not left for a day
_SIGN_AT_STOP_SECONDS: Final = 10.0
_HEAD_WORD: Final = "lockstep-audit-head"
_BEFORE_ALL_ROWS: Final = -(2**63)  # SQLite's least row number: what was put before row 1 is seen too
OPERATOR: Final = "operator"  # whoever may open the data folder


async def record(transaction: Transaction, actor: str, action: str, subject: str, **detail: object) -> None:
    """Write that `actor` did `action` to `subject`; `detail` has JSON values and no secrets.

    `actor` is a terminal's id, OPERATOR, or "hub" for what the hub does by itself. `action` is two words parted by a
    dot, such as "device.revoke".
    """
    last = await transaction.row("last_audit")
    sequence, before = (last["sequence"] + 1, last["hash"]) if last else (1, BEFORE_THE_FIRST)
    at = time.time()
    text = json.dumps(detail, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    await transaction.rows(
        "add_audit",
        sequence=sequence,
        at=at,
        actor=actor,
        action=action,
        subject=subject,
        detail=text,
        hash=row_hash(before, sequence, at, actor, action, subject, text),
    )


def row_hash(before: bytes, sequence: int, at: float, actor: str, action: str, subject: str, detail: str) -> bytes:
    """Return the hash of a row that follows one with the hash `before`."""
    texts = (actor.encode(), action.encode(), subject.encode(), detail.encode())
    return _hash(before, sequence, at, *texts)


def _hash(before: bytes, sequence: int, at: object, *texts: bytes) -> bytes:
    parts = (before, str(sequence).encode(), repr(at).encode(), *texts)
    return hashlib.sha256(b"".join(len(part).to_bytes(4, "big") + part for part in parts)).digest()


# --- heads ----------------------------------------------------------------------------------------------------------


class Head(Struct, frozen=True, kw_only=True):
    """The last row of the log at `at` (Unix seconds), signed by the hub with the key of this `fingerprint`."""

    sequence: int
    digest: bytes
    at: float
    fingerprint: str
    signature: bytes

    def line(self) -> str:
        """Return the head as the one line that is kept elsewhere."""
        signature = base64.b64encode(self.signature).decode()
        return f"{_HEAD_WORD} {self.sequence} {self.digest.hex()} {self.at!r} {self.fingerprint} {signature}"

    def is_signed_by(self, hub_key: bytes) -> bool:
        """Whether the holder of this public key has signed it."""
        signed = keys.audit_head_bytes(sequence=self.sequence, digest=self.digest, at=self.at)
        return keys.verifies(hub_key, self.signature, signed)


def read_head(line: str) -> Head:
    """Return the head that `Head.line` wrote. Raises UsageError."""
    try:
        word, sequence, digest, at, fingerprint, signature = line.split()
        if word != _HEAD_WORD:
            raise ValueError(word)
        return Head(
            sequence=int(sequence),
            digest=bytes.fromhex(digest),
            at=float(at),
            fingerprint=fingerprint,
            signature=base64.b64decode(signature, validate=True),
        )
    except (ValueError, binascii.Error):
        raise UsageError(
            f"{line[:80]!r} is no head of an audit log.",
            hint="Give the whole line that `lockstep-hub audit --head` printed, in quotes.",
        ) from None


# --- verifying ------------------------------------------------------------------------------------------------------

FaultKind = Literal["changed", "missing", "inserted", "head", "cut-off", "rewritten"]


class Fault(Struct, frozen=True):
    """The first thing that is wrong with the log: what kind, at which row, in words."""

    kind: FaultKind
    sequence: int
    detail: str


class Verified(Struct, frozen=True):
    """What was read of the log, and the first thing wrong with it; `last` is the hash of the last row, in hex."""

    rows: int
    heads: int
    last: str
    fault: Fault | None = None

    @property
    def is_whole(self) -> bool:
        """Whether nothing is wrong."""
        return self.fault is None


class _Anchor(NamedTuple):
    """A row's hash as a signed head has it. `kept` is the one kept elsewhere, the others are the hub's own."""

    digest: bytes
    kept: bool


class Chain:
    """A log that is read row by row from its first, held against heads. Pure: rows in, the first fault out."""

    def __init__(self, hub_key: bytes, heads: Sequence[Head], kept: Head | None = None) -> None:
        self.rows = 0  # the number of the last row that is right
        self.last = BEFORE_THE_FIRST
        unsigned = {head.sequence: head for head in heads if not head.is_signed_by(hub_key)}
        self.fault = next((_unsigned(head) for head in unsigned.values()), None)
        signed = (head for head in heads if head.sequence not in unsigned)
        self._anchors = {head.sequence: _Anchor(head.digest, kept=False) for head in signed}
        if kept is not None:
            self._anchors[kept.sequence] = _Anchor(kept.digest, kept=True)

    def read(self, page: Sequence[Row]) -> None:
        """Take the next rows, of the query `audit_page`, in their order."""
        for row in page:
            if self.fault is not None and self.fault.kind != "head":
                return
            self._take(row)

    def end(self) -> Fault | None:
        """Say what is wrong with the log now that there are no more rows; the first row counts before any head."""
        if (self.fault is None or self.fault.kind == "head") and self.rows < max(self._anchors, default=0):
            anchor = max(self._anchors)
            kept = "the head given" if self._anchors[anchor].kept else "a head the hub has signed"
            return _cut_off(self.rows, anchor, kept)
        return self.fault

    def _take(self, row: Row) -> None:
        sequence, expected = row["sequence"], self.rows + 1
        if sequence != expected:
            self.fault = _out_of_order(sequence, expected)
            return
        texts = (row["actor"], row["action"], row["subject"], row["detail"])
        if _hash(self.last, sequence, row["at"], *texts) != row["hash"]:
            detail = f"Row {sequence} was edited, put in or put elsewhere, or the row before it was."
            self.fault = Fault("changed", sequence, detail)
            return
        anchor = self._anchors.get(sequence)
        if anchor is not None and anchor.digest != row["hash"]:
            self.fault = _rewritten(sequence, anchor)
            return
        self.rows, self.last = sequence, row["hash"]


def _cut_off(rows: int, anchor: int, whose: str) -> Fault:
    gone = f"The log ends with row {rows}, and {whose} has row {anchor}: what came after row {rows} is gone."
    return Fault("cut-off", rows + 1, gone)


def _out_of_order(sequence: int, expected: int) -> Fault:
    if sequence < expected:
        return Fault("inserted", sequence, f"Row {sequence} was put in: the first row of a log is 1.")
    gone = f"Row {expected} is" if sequence == expected + 1 else f"Rows {expected} to {sequence - 1} are"
    return Fault("missing", expected, f"{gone} missing: after row {expected - 1} comes row {sequence}.")


def _rewritten(sequence: int, anchor: _Anchor) -> Fault:
    whose = "in the head given" if anchor.kept else "in a head the hub has signed"
    return Fault(
        "rewritten", sequence, f"Row {sequence} is not the one {whose}: the log was rewritten at or before this row."
    )


def _unsigned(head: Head) -> Fault:
    return Fault("head", head.sequence, f"The head of row {head.sequence} is not signed by this hub's key.")


# --- the log of one hub ---------------------------------------------------------------------------------------------


class AuditRow(Struct, frozen=True, kw_only=True):
    """One row as people and programs see it; `at` in Unix seconds."""

    sequence: int
    at: float
    actor: str
    action: str
    subject: str
    detail: dict[str, Any]


class AuditLog:
    """The reading side of one hub's audit log."""

    def __init__(self, store: Store, hub_key: SigningKey) -> None:
        self._store = store
        self._hub_key = hub_key
        self._public_key = hub_key.public

    async def page(self, after: int) -> list[AuditRow]:
        """Return the next rows after a sequence, none at the end."""
        return [_shown(row) for row in await self._page(after)]

    async def head(self) -> Head:
        """Sign the log as it is now and return its head; an empty log has row 0. Nothing is kept."""

        async def body(transaction: Transaction) -> Row | None:
            return await transaction.row("last_audit")

        last = await self._store.transaction(body)
        return self._signed(*((last["sequence"], last["hash"]) if last else (0, BEFORE_THE_FIRST)))

    async def verify(self, kept: Head | None = None, tell: Callable[[str, int, int], None] | None = None) -> Verified:
        """Read the whole log, a page at a time, and hold it against every head there is.

        `kept` is a head that was kept elsewhere. Raises BadDataError where this hub's key has not signed it as it is.
        """
        if kept is not None and not kept.is_signed_by(self._public_key):
            raise BadDataError(
                f"The head given is not signed by this hub's key {keys.fingerprint(self._public_key)}.",
                hint="It was changed, is of another hub, or this hub's key is not the one it had.",
                code="wrong-head",
            )
        heads, last = await self._heads()
        chain = await asyncio.to_thread(Chain, self._public_key, heads, kept)  # ten years' heads take half a second
        await self._read(chain, _BEFORE_ALL_ROWS, lambda: tell and tell("rows", chain.rows, last))
        return Verified(chain.rows, len(heads), chain.last.hex(), chain.end())

    async def _read(self, chain: Chain, after: int, tell: Callable[[], object]) -> None:
        while page := await self._page(after):
            await asyncio.to_thread(chain.read, page)
            after = page[-1]["sequence"]
            tell()

    async def keep_head(self) -> Head | None:
        """Sign the log's head, keep it and say it in the log; return None where the last one kept is still the head.

        What came since the last head is read first, and a log that is broken there gets no new one.
        """
        heads, last = await self._heads()
        chain = Chain(self._public_key, heads[-1:])
        if heads:
            chain.rows, chain.last = heads[-1].sequence, heads[-1].digest
        signed = chain.rows
        await self._read(chain, signed, lambda: None)  # rows that came since `last` was asked for are read as well
        fault = chain.end() or (_cut_off(last, signed, "a head the hub has signed") if last < signed else None)
        if fault is not None:
            log.error("the audit log is BROKEN: %s", fault.detail)
            return None
        head = self._signed(chain.rows, chain.last)

        async def body(transaction: Transaction) -> Row | None:
            return await transaction.row(
                "add_audit_head", sequence=head.sequence, hash=head.digest, at=head.at, signature=head.signature
            )

        if not head.sequence or await self._store.transaction(body) is None:
            return None
        log.info("%s", head.line())
        return head

    @asynccontextmanager
    async def signing_daily(self) -> AsyncIterator[None]:
        """Sign the head at the start, once a day while the block runs, and when it ends well.

        The first row ever is signed within a minute. A day is 24 hours the hub has run: the calendar may be set, and
        what comes to pass while no hub runs is signed at the next start.
        """
        task = asyncio.create_task(self._sign_daily(), name="audit heads")
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        with suppress(TimeoutError):  # the next start signs it
            async with asyncio.timeout(_SIGN_AT_STOP_SECONDS):
                await self._sign()

    async def _sign_daily(self) -> None:
        while True:
            has_rows = await self._sign()
            await asyncio.sleep(SIGN_EVERY_SECONDS if has_rows else LOOK_FOR_THE_FIRST_SECONDS)

    async def _sign(self) -> bool:
        """Keep a head, if anything came since the last; return False where the log was empty."""
        try:
            _, last = await self._heads()
            await self.keep_head()
            return last > 0
        except LockstepError as error:  # a full disk: the next day may have room
            log.error("the head of the audit log could not be kept: %s", error)
        except Exception:
            log.exception("internal error at the head of the audit log")
        return True

    def _signed(self, sequence: int, digest: bytes) -> Head:
        at = time.time()
        signature = self._hub_key.sign(keys.audit_head_bytes(sequence=sequence, digest=digest, at=at))
        fingerprint = keys.fingerprint(self._public_key)
        return Head(sequence=sequence, digest=digest, at=at, fingerprint=fingerprint, signature=signature)

    async def _page(self, after: int) -> list[Row]:
        async def body(transaction: Transaction) -> list[Row]:
            return await transaction.rows("audit_page", after=after, count=ROWS_PER_PAGE)

        return await self._store.transaction(body)

    async def _heads(self) -> tuple[list[Head], int]:
        """Return the heads kept, oldest first, and the number of the last row."""

        async def body(transaction: Transaction) -> tuple[list[Row], Row | None]:
            return await transaction.rows("audit_heads"), await transaction.row("last_audit")

        rows, last = await self._store.transaction(body)
        fingerprint = keys.fingerprint(self._public_key)
        heads = [
            Head(
                sequence=row["sequence"],
                digest=row["hash"],
                at=row["at"],
                fingerprint=fingerprint,
                signature=row["signature"],
            )
            for row in rows
        ]
        return heads, last["sequence"] if last else 0


def _shown(row: Row) -> AuditRow:
    """Return a row for people; one that somebody has edited is shown as far as it can be read."""
    actor, action, subject, detail = (row[name].decode(errors="replace") for name in _TEXTS)
    try:
        told = json.loads(detail)
    except (ValueError, RecursionError):
        told = None
    return AuditRow(
        sequence=row["sequence"],
        at=row["at"] if isinstance(row["at"], float) and 0.0 <= row["at"] < _YEAR_5138 else 0.0,
        actor=actor,
        action=action,
        subject=subject,
        detail=told if isinstance(told, dict) else {"damaged": detail},
    )


_TEXTS: Final = ("actor", "action", "subject", "detail")
_YEAR_5138: Final = 1e11  # what no calendar has would be no time at all to whoever shows it
