"""Standing: what a terminal may do now, read in the transaction that acts on it."""

import time
from collections.abc import Callable
from typing import Final

from hub.policy import LastPosture, Policy, is_due, standing_of
from hub.records import ENDED, Right, RulesObject, StandingFound
from hub.store import Row, Transaction
from protocol.errors import NotLoggedInError, RefusedError
from protocol.messages import Standing

REVOKED: Final = "revoked"
DISABLED: Final = "account-disabled"
_NOTHING: Final = Standing(may_receive=False, may_initiate=False)


class Standings:
    """The standing of a hub's terminals, by its policy; `rules` gives the rule set they are to scan with, if any."""

    def __init__(self, policy: Policy | None = None, rules: Callable[[], RulesObject | None] = lambda: None) -> None:
        self.policy = policy or Policy()
        self._rules = rules

    async def of(self, transaction: Transaction, terminal: str) -> StandingFound:
        """Return what a terminal may do: nothing where it is revoked, unknown, or of a disabled account."""
        row = await transaction.row("standing_of", terminal_id=terminal)
        if row is None or row["revoked_at"] is not None:
            return StandingFound(standing=_NOTHING, ended=REVOKED)
        if row["disabled_at"] is not None:
            return StandingFound(standing=_NOTHING, ended=DISABLED)
        now = time.time()
        rights = frozenset(row["account_rights"].split()) & frozenset(row["terminal_rights"].split())
        posture, rules = _posture(row), self._rules()
        due = rules is not None and is_due(posture, self.policy, rules.digest, now)
        standing = standing_of(rights, posture, self.policy, now)
        return StandingFound(standing=standing, rights=rights, scan=rules if due else None)

    async def check_initiates(self, transaction: Transaction, terminal: str) -> None:
        """Raise RefusedError where what this terminal asks for does not count: it is checked before its request is."""
        found = await self.of(transaction, terminal)
        if found.ended:
            raise gone(found.ended)
        standing = found.standing
        if not standing.may_initiate:
            raise RefusedError(standing.detail, hint=standing.hint, code=standing.reason)

    async def check_right(self, transaction: Transaction, terminal: str, right: Right) -> None:
        """Raise RefusedError where a terminal does not have a right, or is quarantined."""
        found = await self.of(transaction, terminal)
        if found.ended:
            raise gone(found.ended)
        if right not in found.rights:
            raise RefusedError(
                f"This device may not {right}: it, or its account, does not have the right to.",
                hint="The hub's owner gives it with `lockstep-hub account allow` or `lockstep-hub device allow`.",
                code="not-allowed",
            )
        if found.standing.quarantined:
            raise RefusedError(found.standing.detail, hint=found.standing.hint, code=found.standing.reason)

    def is_quarantined(self, findings: int) -> bool:
        """Return whether so many findings of its last report keep a terminal apart."""
        return self.policy.requires and findings > 0

    async def due(self, transaction: Transaction) -> list[str]:
        """Return the terminals that are to be asked for a report, or whose report is getting too old."""
        rules = self._rules()
        if self.policy.is_off or rules is None:
            return []
        half = self.policy.max_age_seconds / 2
        rows = await transaction.rows("postures_due", rules=rules.digest, before=time.time() - half)
        return [row["terminal_id"] for row in rows]


def gone(code: str) -> RefusedError:
    """Return the error that tells a terminal that it is revoked, or that its account is disabled."""
    text, hint = ENDED[code]
    return (RefusedError if code == DISABLED else NotLoggedInError)(text, hint=hint, code=code)


def _posture(row: Row) -> LastPosture | None:
    if row["reported_at"] is None:
        return None
    return LastPosture(
        rules=row["rules"],
        reported_at=row["reported_at"],
        findings=row["findings"],
        complete=bool(row["complete"]),
    )
