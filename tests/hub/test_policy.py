"""The policy as a table: rights and posture in, what a terminal may do out."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hub.policy import DAY_SECONDS, Demand, LastPosture, Policy, is_due, is_quarantined, standing_of

NOW = 1_800_000_000.0
RULES = b"r" * 32
ALL = frozenset({"approve", "initiate", "publish", "receive"})
DEMANDS: tuple[Demand, ...] = ("off", "report", "require")


def posture(*, days: float = 0.0, findings: int = 0, complete: bool = True, rules: bytes = RULES) -> LastPosture:
    return LastPosture(rules=rules, reported_at=NOW - days * DAY_SECONDS, findings=findings, complete=complete)


POSTURES: dict[str, LastPosture | None] = {
    "fresh": posture(days=1),
    "stale": posture(days=8),
    "none": None,
    "incomplete": posture(complete=False),
    "findings": posture(findings=2),
    "from the future": posture(days=-8),
}
WRONG = POSTURES.keys() - {"fresh", "findings"}


@pytest.mark.parametrize("initiators", DEMANDS)
@pytest.mark.parametrize("targets", DEMANDS)
@pytest.mark.parametrize("name", POSTURES)
def test_each_role_is_refused_by_its_own_demand_and_findings_take_both(
    name: str, targets: Demand, initiators: Demand
) -> None:
    standing = standing_of(ALL, POSTURES[name], Policy(targets=targets, initiators=initiators), NOW)
    requires = "require" in (targets, initiators)
    quarantined = name == "findings" and requires
    assert standing.quarantined == quarantined
    assert standing.may_receive == (not quarantined and not (name in WRONG and targets == "require"))
    assert standing.may_initiate == (not quarantined and not (name in WRONG and initiators == "require"))
    all_is_well = standing.may_receive and standing.may_initiate
    assert (standing.reason, bool(standing.detail), bool(standing.hint)) == (
        ("", False, False) if all_is_well else ("posture-failed", True, True)
    )


@pytest.mark.parametrize(
    ("rights", "receives", "initiates", "named"),
    [
        (ALL, True, True, ""),
        (ALL - {"receive"}, False, True, "'receive'"),
        (ALL - {"initiate"}, True, False, "'initiate'"),
        (frozenset(), False, False, "'receive' or 'initiate'"),
    ],
)
def test_a_right_that_is_missing_is_named_and_takes_its_own_role_only(
    rights: frozenset[str], receives: bool, initiates: bool, named: str
) -> None:
    standing = standing_of(rights, None, Policy(), NOW)
    assert (standing.may_receive, standing.may_initiate, standing.quarantined) == (receives, initiates, False)
    assert standing.reason == ("not-allowed" if named else "")
    assert named in standing.detail


def test_a_report_counts_for_exactly_as_long_as_it_may() -> None:
    policy = Policy(targets="require", max_age_seconds=DAY_SECONDS)
    assert standing_of(ALL, posture(days=1), policy, NOW).may_receive
    assert not standing_of(ALL, posture(days=1), policy, NOW + 1).may_receive


def test_findings_keep_a_terminal_apart_however_old_they_are() -> None:
    assert is_quarantined(posture(days=400, findings=1), Policy(initiators="require"))


def test_a_report_by_older_rules_counts_until_it_is_too_old() -> None:
    policy = Policy(targets="require")
    older = posture(rules=b"o" * 32)
    assert standing_of(ALL, older, policy, NOW).may_receive
    assert is_due(older, policy, RULES, NOW)


@pytest.mark.parametrize(
    ("last", "due"),
    [
        (None, True),
        (posture(), False),
        (posture(days=3.4), False),
        (posture(days=3.5), True),
        (posture(findings=1), True),
        (posture(complete=False), True),
        (posture(rules=b"o" * 32), True),
        (posture(days=-30), True),
    ],
)
def test_a_report_is_asked_for_at_half_its_age_and_where_it_can_be_bettered(
    last: LastPosture | None, due: bool
) -> None:
    assert is_due(last, Policy(targets="report"), RULES, NOW) is due
    assert not is_due(last, Policy(), RULES, NOW)


@given(
    rights=st.frozensets(st.sampled_from(sorted(ALL))),
    last=st.none()
    | st.builds(
        LastPosture,
        rules=st.just(RULES),
        reported_at=st.floats(0, 2 * NOW),
        findings=st.integers(0, 5),
        complete=st.booleans(),
    ),
    policy=st.builds(Policy, targets=st.sampled_from(DEMANDS), initiators=st.sampled_from(DEMANDS)),
    now=st.floats(0, 2 * NOW),
)
def test_nothing_is_gained_without_the_right_and_whatever_is_refused_is_explained(
    rights: frozenset[str], last: LastPosture | None, policy: Policy, now: float
) -> None:
    standing = standing_of(rights, last, policy, now)
    assert standing.may_receive <= ("receive" in rights)
    assert standing.may_initiate <= ("initiate" in rights)
    assert not (standing.quarantined and (standing.may_receive or standing.may_initiate))
    refused = not (standing.may_receive and standing.may_initiate)
    assert bool(standing.reason) == bool(standing.detail) == bool(standing.hint) == refused
    if not policy.requires:
        assert standing.may_receive == ("receive" in rights)
        assert standing.may_initiate == ("initiate" in rights)


def test_who_is_in_quarantine_is_told_to_look_first_and_then_to_scan() -> None:
    hint = standing_of(ALL, posture(findings=1), Policy(targets="require"), NOW).hint
    assert 0 <= hint.find("`lockstep-terminal posture` ") < hint.find("`lockstep-terminal posture --now`")
