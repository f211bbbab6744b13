"""The audit log: who did what to what, written in the same transaction as the act and chained by hashes.

The hash of a row is SHA-256 over the hash of the row before it and the row's own fields, each with its length in four
bytes, big-endian, before it; the first row follows 32 zero bytes. So a row that was edited, deleted or put elsewhere
breaks the chain from there on.
"""

import hashlib
import json
import time
from typing import Final

from hub.store import Transaction

BEFORE_THE_FIRST: Final = bytes(32)
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
    parts = (before, *(part.encode() for part in (str(sequence), repr(at), actor, action, subject, detail)))
    return hashlib.sha256(b"".join(len(part).to_bytes(4, "big") + part for part in parts)).digest()
