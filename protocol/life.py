"""The table of a delivery's life: states, who may move it, which moves are legal.

Used by the hub, which holds the truth, by the terminal, which reports, and by the documents. A final state never
changes.
"""

from enum import Flag, StrEnum, auto
from typing import Final


class State(StrEnum):
    """Where a delivery stands."""

    QUEUED = "queued"
    OFFERED = "offered"
    DOWNLOADING = "downloading"
    VERIFYING = "verifying"
    INSTALLING = "installing"
    DONE = "done"
    SAME = "same"
    NO_MATCH = "no_match"
    DENIED = "denied"
    CANCELLED = "cancelled"
    SUPERSEDED = "superseded"
    FAILED = "failed"


class Mover(Flag):
    """Who moves a delivery; a move may be open to both."""

    HUB = auto()
    TERMINAL = auto()


_HUB_ENDS: Final = {State.CANCELLED: Mover.HUB, State.SUPERSEDED: Mover.HUB, State.DENIED: Mover.HUB}

# From each state: the states it may move to, and who moves it there. `QUEUED` is where a delivery returns to when its
# terminal goes away; an interrupted `INSTALLING` is offered again only after the terminal has reported what it found.
# That report, good or bad, is kept on the terminal's disk: after a reconnect it meets the delivery `QUEUED`, or already
# `OFFERED` when the hub looked first. A terminal that has the installer already reports an offer done at once.
MOVES: Final[dict[State, dict[State, Mover]]] = {
    State.QUEUED: {
        State.OFFERED: Mover.HUB,
        State.SAME: Mover.HUB,
        State.NO_MATCH: Mover.HUB,
        State.FAILED: Mover.HUB | Mover.TERMINAL,
        State.DONE: Mover.TERMINAL,
        **_HUB_ENDS,
    },
    State.OFFERED: {
        State.DOWNLOADING: Mover.TERMINAL,
        State.VERIFYING: Mover.TERMINAL,
        State.DONE: Mover.TERMINAL,
        State.FAILED: Mover.TERMINAL,
        State.QUEUED: Mover.HUB,
        **_HUB_ENDS,
    },
    State.DOWNLOADING: {
        State.VERIFYING: Mover.TERMINAL,
        State.FAILED: Mover.TERMINAL,
        State.QUEUED: Mover.HUB,
        **_HUB_ENDS,
    },
    State.VERIFYING: {
        State.INSTALLING: Mover.TERMINAL,
        State.FAILED: Mover.TERMINAL,
        State.QUEUED: Mover.HUB,
        **_HUB_ENDS,
    },
    State.INSTALLING: {
        State.DONE: Mover.TERMINAL,
        State.FAILED: Mover.TERMINAL,
        State.QUEUED: Mover.HUB,
    },
}

FINAL: Final[frozenset[State]] = frozenset(set(State) - set(MOVES))
GOOD: Final[frozenset[State]] = frozenset({State.DONE, State.SAME})
CANCELLABLE: Final[frozenset[State]] = frozenset(state for state in MOVES if State.CANCELLED in MOVES[state])


def may_move(before: State, after: State, mover: Mover) -> bool:
    """Return whether `mover` may move a delivery from `before` to `after`."""
    return mover in MOVES.get(before, {}).get(after, Mover(0))


def outcome_of(counts: dict[str, int]) -> str:
    """Return how a sync ended whose targets ended in these states: "done", "failed" or "partly"."""
    good = sum(count for state, count in counts.items() if State(state) in GOOD)
    if good == sum(counts.values()):
        return "done"
    return "partly" if good else "failed"
