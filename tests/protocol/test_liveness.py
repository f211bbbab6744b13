"""Liveness: a dead peer is found in time, and any byte heard keeps a live one."""

from hypothesis import given
from hypothesis import strategies as st

from protocol import limits
from protocol.liveness import Liveness

FOUND_WITHIN_SECONDS = 37.0


def seconds_until_dead(liveness: Liveness, now: float) -> float:
    """Follow the deadlines with nothing heard; return when the peer was called dead."""
    for _ in range(10):
        now = max(now, liveness.deadline)
        if liveness.due(now) == "dead":
            return now
    raise AssertionError("never found dead")


def test_a_dead_idle_peer_is_pinged_once_and_found_within_37_seconds() -> None:
    liveness = Liveness(100.0)
    assert liveness.due(100.0 + limits.PING_EVERY_SECONDS - 0.001) is None
    assert liveness.due(100.0 + limits.PING_EVERY_SECONDS) == "ping"
    assert liveness.due(100.0 + limits.PING_EVERY_SECONDS + 0.001) is None
    assert seconds_until_dead(liveness, 100.0) <= 100.0 + FOUND_WITHIN_SECONDS


@given(st.lists(st.floats(0.001, limits.PING_EVERY_SECONDS - 0.001), max_size=30))
def test_a_peer_heard_often_enough_is_never_pinged_and_is_found_once_it_falls_silent(gaps: list[float]) -> None:
    now = 0.0
    liveness = Liveness(now)
    for gap in gaps:
        now += gap
        assert liveness.due(now) is None
        liveness.heard(now)
    assert seconds_until_dead(liveness, now) - now <= FOUND_WITHIN_SECONDS


def test_any_byte_heard_after_a_ping_stops_the_answer_clock() -> None:
    liveness = Liveness(0.0)
    assert liveness.due(25.0) == "ping"
    liveness.heard(34.9)
    assert liveness.due(35.0) is None
    assert liveness.deadline == 34.9 + limits.PING_EVERY_SECONDS


def test_one_byte_each_time_just_before_the_end_keeps_a_slow_peer_for_ever() -> None:
    liveness, now = Liveness(0.0), 0.0
    for _ in range(100):
        assert liveness.due(now + limits.PING_EVERY_SECONDS) == "ping"
        now += limits.PING_EVERY_SECONDS + limits.HEARD_WITHIN_SECONDS - 0.5
        assert liveness.due(now) is None
        liveness.heard(now)


def test_the_answer_clock_starts_when_the_ping_is_asked_for_however_late_that_is() -> None:
    liveness = Liveness(0.0)
    assert liveness.due(60.0) == "ping"
    assert liveness.due(60.0) is None
    assert liveness.due(60.0 + limits.HEARD_WITHIN_SECONDS) == "dead"
