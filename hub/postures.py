"""Postures: what terminals say of their own programs, kept as they signed it. A posture is the device's own claim."""

import time

from hub.audit import record
from hub.policy import LastPosture, is_quarantined
from hub.standing import Standings
from hub.store import Store, Transaction
from protocol.messages import Posture, PostureReport


class Postures:
    """The newest report of each terminal of one hub."""

    def __init__(self, store: Store, standings: Standings) -> None:
        self._store = store
        self._standings = standings

    async def save(self, terminal: str, connection: int, posture: Posture, report: PostureReport) -> bool:
        """Keep a report whose signature and nonce are right; return whether the terminal's quarantine began or ended.

        Nothing changes where its socket is not the newest, or the terminal is revoked.
        """
        findings = max(report.findings_in_all, len(report.findings))
        now = time.time()
        newest = LastPosture(rules=report.rules, reported_at=now, findings=findings, complete=report.complete)

        async def body(transaction: Transaction) -> bool:
            if await transaction.row("is_current", terminal_id=terminal, connection=connection) is None:
                return False
            before = await transaction.row("posture", terminal_id=terminal)
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
            was = before is not None and self._standings.is_quarantined(before["findings"])
            if was == is_quarantined(newest, self._standings.policy):
                return False
            rules = sorted({finding.rule for finding in report.findings})
            action = "posture.release" if was else "posture.quarantine"
            await record(transaction, "hub", action, terminal, findings=findings, rules=rules)
            return True

        return await self._store.transaction(body)
