"""A delivery's life: final states never change, every state leads to an end, and reports arrive where they may."""

import pytest

from protocol import life
from protocol.life import Mover, State


@pytest.mark.parametrize("state", sorted(life.FINAL))
def test_a_final_state_never_changes(state: State) -> None:
    assert not any(life.may_move(state, after, mover) for after in State for mover in Mover)


def test_the_final_states_are_the_ones_the_design_names() -> None:
    good, bad = {"done", "same"}, {"no_match", "denied", "declined", "cancelled", "superseded", "expired", "failed"}
    assert good | bad == life.FINAL
    assert good == life.GOOD


@pytest.mark.parametrize("state", sorted(life.MOVES))
def test_every_other_state_can_end_badly_and_be_left_by_the_hub_alone(state: State) -> None:
    by_hub = {after for after, mover in life.MOVES[state].items() if Mover.HUB in mover}
    assert by_hub & (life.FINAL - life.GOOD)
    assert by_hub - {state}


@pytest.mark.parametrize("state", sorted(life.MOVES))
def test_every_state_that_is_not_final_has_a_deadline_whose_end_is_a_legal_move_of_the_hub(state: State) -> None:
    deadline = life.DEADLINES[state]
    assert 0 < deadline.seconds <= life.DELIVERY_SECONDS
    assert life.may_move(state, deadline.then, Mover.HUB)
    assert deadline.reason and deadline.detail.endswith(".")


def test_only_what_has_not_ended_has_a_deadline_and_what_may_outlast_a_connection_is_kept_by_the_reaper() -> None:
    assert set(life.DEADLINES) == set(life.MOVES)
    with_socket = {State.OFFERED, State.DOWNLOADING, State.VERIFYING}
    assert {state for state in life.DEADLINES if life.DEADLINES[state].keeper is life.Keeper.SESSION} == with_socket


def test_only_a_postponed_delivery_may_be_moved_to_where_it_is() -> None:
    assert [state for state in life.MOVES if state in life.MOVES[state]] == [State.POSTPONED]


def test_every_state_can_be_reached() -> None:
    assert {State.QUEUED} | {after for moves in life.MOVES.values() for after in moves} == set(State)


def test_every_interrupted_delivery_waits_again_and_a_person_can_have_one_offered_again() -> None:
    under_way = set(life.MOVES) - {State.QUEUED}
    assert all(life.may_move(state, State.QUEUED, Mover.HUB) for state in under_way)
    by_terminal = {state for state in under_way if life.may_move(state, State.QUEUED, Mover.TERMINAL)}
    assert by_terminal == {State.ASKING, State.POSTPONED}


def test_the_terminal_says_that_it_installs_only_after_it_has_verified() -> None:
    befores = {state for state in State if life.may_move(state, State.INSTALLING, Mover.TERMINAL)}
    assert befores == {State.VERIFYING}
    assert not any(life.may_move(state, State.INSTALLING, Mover.HUB) for state in State)


@pytest.mark.parametrize("met", [State.QUEUED, State.OFFERED, State.ASKING, State.POSTPONED])
def test_a_person_can_decline_or_put_off_whatever_does_not_come_yet(met: State) -> None:
    assert life.may_move(met, State.DECLINED, Mover.TERMINAL)
    assert life.may_move(met, State.POSTPONED, Mover.TERMINAL)


def test_a_cause_that_can_pass_is_tried_again_a_few_times_and_any_other_is_not() -> None:
    waits = [life.seconds_to_next_try("no-space", tries) for tries in range(1, life.TRIES + 1)]
    assert waits == [30.0, 120.0, 600.0, 3_600.0, None]
    assert life.seconds_to_next_try("maintainer-scripts", 1) is None


def test_the_diagram_has_every_state_and_every_move_once() -> None:
    lines = life.diagram().splitlines()
    assert len(lines) == len(set(lines)) == 2 + sum(map(len, life.MOVES.values())) + len(life.FINAL)
    assert "    installing --> failed: h, t" in lines
    assert "    expired --> [*]" in lines


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
