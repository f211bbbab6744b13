"""Verdict rows: what each engine last said of each installer, and what all of them together mean for it.

Everything here runs inside a transaction. `installers.verdict` is always `scanning.worst` over the rows of the engines
that are set up, and is written with them.
"""

import time
from collections.abc import Iterable, Sequence
from typing import Any, Final

import msgspec
from msgspec import Struct, structs

from hub.scanning import EngineVerdict, Verdict, worst
from hub.store import Row, Transaction
from protocol import limits

WITHHELD: Final = ("infected", "suspicious")
_INSTALLERS_PER_PAGE: Final = 200


class Change(Struct, frozen=True):
    """What became of the verdict of `installer` (its program, version and file name), and why it is that now."""

    before: Verdict
    after: Verdict
    finding: str
    installer: str

    @property
    def is_withdrawn(self) -> bool:
        """Whether it is from now on an installer that something was found in."""
        return self.after in WITHHELD and self.before not in WITHHELD


async def keep_verdicts(transaction: Transaction, digest: bytes, said: Sequence[EngineVerdict]) -> None:
    """Write what engines said of an object."""
    for one in said:
        await transaction.rows(
            "keep_verdict",
            digest=digest,
            engine=one.engine,
            verdict=one.verdict,
            rules=one.rules,
            findings=msgspec.json.encode(one.findings).decode(),
            detail=one.detail,
            now=time.time(),
        )


async def settle(transaction: Transaction, installer: Row, engines: Iterable[str]) -> Change:
    """Write an installer's verdict anew from its rows; return what changed."""
    rows = await transaction.rows("verdicts_of", digest=installer["digest"])
    verdict, finding = worst(map(engine_verdict, rows), engines)
    finding = finding[: limits.TEXT_CHARACTERS]
    if (verdict, finding) != (installer["verdict"], installer["finding"]):
        await transaction.rows("set_verdict", digest=installer["digest"], verdict=verdict, finding=finding)
    name = f"{installer['program_id']} {installer['version']} ({installer['file_name']})"
    return Change(installer["verdict"], verdict, finding, name)


def engine_verdict(row: Row) -> EngineVerdict:
    """Return a row of `verdicts` as a value."""
    return EngineVerdict(
        engine=row["engine"],
        verdict=row["verdict"],
        rules=row["rules"],
        findings=msgspec.json.decode(row["findings"], type=tuple[str, ...]),
        detail=row["detail"],
    )


async def verdicts_page(transaction: Transaction, after: bytes, *, withheld: bool) -> list[dict[str, Any]]:
    """Return the next installers after a digest, with what each engine said and the terminals that have them.

    With `withheld` only those something was found in. JSON values; nothing is the end.
    """
    query = "withheld_after" if withheld else "installers_after"
    installers = await transaction.rows(query, after=after, count=_INSTALLERS_PER_PAGE)
    return [await _shown(transaction, row) for row in installers]


async def _shown(transaction: Transaction, row: Row) -> dict[str, Any]:
    rows = await transaction.rows("verdicts_of", digest=row["digest"])
    engines = [
        structs.asdict(engine_verdict(one)) | {"findings": list(engine_verdict(one).findings), "at": one["scanned_at"]}
        for one in rows
    ]
    have = await transaction.rows("terminals_with", program_id=row["program_id"], digest=row["digest"])
    return {
        "digest": row["digest"].hex(),
        "program": row["program_id"],
        "version": row["version"],
        "file_name": row["file_name"],
        "verdict": row["verdict"],
        "finding": row["finding"],
        "engines": engines,
        "terminals": [{"account": one["account"], "name": one["name"], "terminal": one["terminal_id"]} for one in have],
    }
