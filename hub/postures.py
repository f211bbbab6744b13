"""Postures: what terminals say of their own programs, kept as they signed it. A posture is the device's own claim."""

import time
from collections.abc import Iterable

from hub.audit import record
from hub.standing import Standings
from hub.store import Store, Transaction
from protocol.messages import Posture, PostureReport


class Postures:
    """The newest report of each terminal of one hub. Findings of the rules in `ignored` do not count at this hub."""

    def __init__(self, store: Store, standings: Standings, ignored: Iterable[str] = ()) -> None:
        self._store = store
        self._standings = standings
        self._ignored = frozenset(ignored)

    async def save(self, terminal: str, connection: int, posture: Posture, report: PostureReport) -> str:
        """Keep a report whose signature and nonce are right; return the act that follows, as the audit log names it.

        "posture.quarantine" or "posture.release", or "" where the terminal stays as it was. Nothing changes where its
        socket is not the newest, or the terminal is revoked. A report that is not complete takes no finding back.
        """
        found, now = self._count(report), time.time()

        async def body(transaction: Transaction) -> str:
            if await transaction.row("is_current", terminal_id=terminal, connection=connection) is None:
                return ""
            row = await transaction.row("posture", terminal_id=terminal)
            before = row["findings"] if row is not None else 0
            findings = found if report.complete else max(found, before)
            await transaction.rows(
                "save_posture",
                terminal_id=terminal,
                rules=report.rules,
                now=now,
                findings=findings,
                complete=report.complete,
                report=posture.report,
                signature=posture.signature,
            )
            was, is_now = self._standings.is_quarantined(before), self._standings.is_quarantined(findings)
            if was == is_now:
                return ""
            action = "posture.quarantine" if is_now else "posture.release"
            rules = sorted({finding.rule for finding in report.findings} - self._ignored)
            await record(transaction, "hub", action, terminal, findings=findings, rules=rules)
            return action

        return await self._store.transaction(body)

    def _count(self, report: PostureReport) -> int:
        """Return how many findings count; those beyond the rows of a report do."""
        ignored = sum(finding.rule in self._ignored for finding in report.findings)
        return max(report.findings_in_all, len(report.findings)) - ignored
