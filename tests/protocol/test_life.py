"""A delivery's life: final states never change, every state leads to an end, and reports arrive where they may."""

import pytest

from protocol import life
from protocol.life import Mover, State


@pytest.mark.parametrize("state", sorted(life.FINAL))
def test_a_final_state_never_changes(state: State) -> None:
    assert not any(life.may_move(state, after, mover) for after in State for mover in Mover)


def test_the_final_states_are_the_ones_the_design_names() -> None:
    assert {"done", "same", "no_match", "denied", "cancelled", "superseded", "failed"} == life.FINAL


@pytest.mark.parametrize("state", sorted(life.MOVES))
def test_every_other_state_leads_to_a_final_one_and_can_fail(state: State) -> None:
    assert any(after in life.FINAL for after in life.MOVES[state])
    assert State.FAILED in life.MOVES[state]
    assert state not in life.MOVES[state]


def test_every_state_can_be_reached() -> None:
    assert {State.QUEUED} | {after for moves in life.MOVES.values() for after in moves} == set(State)


def test_every_interrupted_delivery_waits_again() -> None:
    under_way = set(life.MOVES) - {State.QUEUED}
    assert all(life.may_move(state, State.QUEUED, Mover.HUB) for state in under_way)
    assert not any(life.may_move(state, State.QUEUED, Mover.TERMINAL) for state in under_way)


def test_only_what_does_not_install_yet_can_be_cancelled() -> None:
    assert set(life.MOVES) - {State.INSTALLING} == life.CANCELLABLE
    assert not life.may_move(State.INSTALLING, State.SUPERSEDED, Mover.HUB)


@pytest.mark.parametrize("report", [State.DONE, State.FAILED])
@pytest.mark.parametrize("met", [State.QUEUED, State.OFFERED, State.INSTALLING])
def test_a_report_kept_over_a_reconnect_ends_the_delivery_it_meets(met: State, report: State) -> None:
    assert life.may_move(met, report, Mover.TERMINAL)


def test_a_terminal_never_says_that_it_was_offered_something_or_is_done_with_a_download_it_did_not_verify() -> None:
    assert not life.may_move(State.QUEUED, State.OFFERED, Mover.TERMINAL)
    assert not life.may_move(State.DOWNLOADING, State.DONE, Mover.TERMINAL)
    assert not life.may_move(State.VERIFYING, State.DONE, Mover.TERMINAL)


@pytest.mark.parametrize("ending", [State.CANCELLED, State.SUPERSEDED, State.DENIED, State.SAME, State.NO_MATCH])
def test_only_the_hub_ends_a_delivery_without_the_terminal(ending: State) -> None:
    assert life.may_move(State.QUEUED, ending, Mover.HUB)
    assert not any(life.may_move(before, ending, Mover.TERMINAL) for before in State)


@pytest.mark.parametrize(
    ("counts", "outcome"),
    [
        ({"done": 2, "same": 1}, "done"),
        ({"done": 1, "failed": 1}, "partly"),
        ({"same": 1, "no_match": 4}, "partly"),
        ({"failed": 1, "cancelled": 2, "denied": 1}, "failed"),
        ({"done": 0, "failed": 1}, "failed"),
    ],
)
def test_the_outcome_follows_from_how_the_targets_ended(counts: dict[str, int], outcome: str) -> None:
    assert life.outcome_of(counts) == outcome
