"""Standing: what a terminal may do now, read in the transaction that acts on it."""

import time
from collections.abc import Callable
from typing import Final

from hub.policy import LastPosture, Policy, is_due, standing_of
from hub.records import RulesObject, StandingFound
from hub.store import Row, Transaction
from protocol.errors import LockstepError, NotLoggedInError, RefusedError
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
        return StandingFound(standing=standing_of(rights, posture, self.policy, now), scan=rules if due else None)

    async def check_initiates(self, transaction: Transaction, terminal: str) -> None:
        """Raise RefusedError where what this terminal asks for does not count: it is checked before its request is."""
        found = await self.of(transaction, terminal)
        if found.ended:
            raise gone(found.ended)
        standing = found.standing
        if not standing.may_initiate:
            raise RefusedError(standing.detail, hint=standing.hint, code=standing.reason)

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


def gone(code: str) -> LockstepError:
    """Return the error that tells a terminal that it is revoked, or that its account is disabled."""
    if code == DISABLED:
        return RefusedError(
            "This account is disabled.", hint="The hub's owner enables it; this device then comes back.", code=code
        )
    return NotLoggedInError(
        "This device was removed from its account.",
        hint="If that was not meant, log in anew with `lockstep-terminal login --replace`.",
        code=code,
    )


def _posture(row: Row) -> LastPosture | None:
    if row["reported_at"] is None:
        return None
    return LastPosture(
        rules=row["rules"],
        reported_at=row["reported_at"],
        findings=row["findings"],
        complete=bool(row["complete"]),
    )
