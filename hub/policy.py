"""The hub's policy: from a terminal's rights and its last posture to what it may do now. Pure: time is an argument.

A posture is the terminal's own claim. For each of the two roles, target and initiator, the policy is `off`, `report`
(it is asked for and kept, and decides nothing) or `require`. Where either role requires one, a terminal that reports
findings is quarantined: it may neither receive nor initiate.
"""

from collections.abc import Set
from typing import Final, Literal, TypeAlias

from msgspec import Struct

from protocol.messages import Standing

Demand: TypeAlias = Literal["off", "report", "require"]
DAY_SECONDS: Final = 86_400.0

_SCAN_HINT: Final = "It scans its programs while `lockstep-terminal run` runs; `posture --now` scans at once."
_RIGHT_HINT: Final = "The hub's owner gives it with `lockstep-hub account allow` or `lockstep-hub device allow`."


class Policy(Struct, frozen=True, kw_only=True):
    """What a hub demands of its terminals; a report counts for `max_age_seconds`."""

    targets: Demand = "off"
    initiators: Demand = "off"
    max_age_seconds: float = 7 * DAY_SECONDS

    @property
    def is_off(self) -> bool:
        """Whether nobody is asked for a posture."""
        return self.targets == self.initiators == "off"

    @property
    def requires(self) -> bool:
        """Whether a report may decide anything."""
        return "require" in (self.targets, self.initiators)


class LastPosture(Struct, frozen=True, kw_only=True):
    """What a hub keeps of a terminal's newest report; `reported_at` is the hub's time when it came (Unix seconds)."""

    rules: bytes
    reported_at: float
    findings: int
    complete: bool


def standing_of(rights: Set[str], posture: LastPosture | None, policy: Policy, now: float) -> Standing:
    """Return what a terminal with these rights and this posture may do at `now`; the first reason is told."""
    if is_quarantined(posture, policy):
        assert posture is not None
        return Standing(
            may_receive=False,
            may_initiate=False,
            quarantined=True,
            reason="posture-failed",
            detail=f"{_count(posture.findings)} in the programs of this device, so it may neither send nor receive.",
            hint="`lockstep-terminal posture` shows the files; remove them, then `lockstep-terminal posture --now`.",
        )
    amiss = _amiss(posture, policy, now)
    receives = "receive" in rights and not (amiss and policy.targets == "require")
    initiates = "initiate" in rights and not (amiss and policy.initiators == "require")
    if receives and initiates:
        return Standing(may_receive=True, may_initiate=True)
    missing = [right for right in ("receive", "initiate") if right not in rights]
    by_posture = bool(amiss) and policy.requires
    return Standing(
        may_receive=receives,
        may_initiate=initiates,
        reason="posture-failed" if by_posture else "not-allowed",
        detail=f"{amiss} {_refused(receives, initiates)}" if by_posture else _lacks(missing),
        hint=_SCAN_HINT if by_posture else _RIGHT_HINT,
    )


def is_quarantined(posture: LastPosture | None, policy: Policy) -> bool:
    """Return whether findings keep a terminal apart. They do so however old they are: time mends nothing."""
    return policy.requires and posture is not None and posture.findings > 0


def is_due(posture: LastPosture | None, policy: Policy, rules: bytes, now: float) -> bool:
    """Return whether to ask for a report: well before the last one is too old, and when it can be bettered."""
    if policy.is_off:
        return False
    if posture is None or posture.rules != rules or posture.findings or not posture.complete:
        return True
    return _age_seconds(posture, now) >= policy.max_age_seconds / 2


def _amiss(posture: LastPosture | None, policy: Policy, now: float) -> str:
    """Return what keeps a report from counting, or nothing."""
    if posture is None:
        return "This device has not reported on its programs."
    if not posture.complete:
        return "This device's last report on its programs is not complete."
    if _age_seconds(posture, now) > policy.max_age_seconds:
        days = _age_seconds(posture, now) / DAY_SECONDS
        return f"This device's last report on its programs is {days:.1f} days old."
    return ""


def _age_seconds(posture: LastPosture, now: float) -> float:
    """Return how far away the report is: one from the future, after a step of the clock, is not new for ever."""
    return abs(now - posture.reported_at)


def _refused(receives: bool, initiates: bool) -> str:
    if receives:
        return "It may not ask for syncs."
    return "It receives nothing." if initiates else "It receives nothing and may not ask for syncs."


def _lacks(rights: list[str]) -> str:
    return f"This device, or its account, does not have the right {' or '.join(repr(right) for right in rights)}."


def _count(findings: int) -> str:
    return f"{findings} finding{'s' if findings != 1 else ''}"
