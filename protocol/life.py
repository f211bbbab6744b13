"""The table of a delivery's life: states, who may move it where, and by when it has to have moved on.

Used by the hub, which holds the truth, by the terminal, which reports, by the documents, whose diagram is drawn from
it, and by the tests. A final state never changes. Pure.

Deadlines have two keepers. What can last while nobody is connected is kept in hub time (seconds the hub has run, over
all its runs), and the reaper acts on it. A transfer lives only as long as its socket, so its session keeps those.
"""

from dataclasses import dataclass
from enum import Flag, StrEnum, auto
from typing import Final


class State(StrEnum):
    """Where a delivery stands."""

    QUEUED = "queued"
    OFFERED = "offered"
    ASKING = "asking"
    POSTPONED = "postponed"
    DOWNLOADING = "downloading"
    VERIFYING = "verifying"
    INSTALLING = "installing"
    DONE = "done"
    SAME = "same"
    NO_MATCH = "no_match"
    DENIED = "denied"
    DECLINED = "declined"
    CANCELLED = "cancelled"
    SUPERSEDED = "superseded"
    EXPIRED = "expired"
    FAILED = "failed"


class Mover(Flag):
    """Who moves a delivery; a move may be open to both."""

    HUB = auto()
    TERMINAL = auto()


class Keeper(StrEnum):
    """Who keeps the deadline of a state."""

    REAPER = "reaper"
    SESSION = "session"


@dataclass(frozen=True, slots=True)
class Deadline:
    """How long a delivery may stay in a state, in seconds, and what becomes of it then."""

    seconds: float
    keeper: Keeper
    then: State
    reason: str
    detail: str


HOUR: Final = 3_600.0
DAY: Final = 24 * HOUR

# A delivery as a whole is given up after so long, whatever it waits for; an installation that has begun is not.
DELIVERY_SECONDS: Final = 30 * DAY

_BOTH: Final = Mover.HUB | Mover.TERMINAL
_HUB_ENDS: Final = {
    State.CANCELLED: Mover.HUB,
    State.SUPERSEDED: Mover.HUB,
    State.DENIED: Mover.HUB,
    State.EXPIRED: Mover.HUB,
}

# From each state: the states it may move to, and who moves it there. `QUEUED` is where a delivery returns to when its
# terminal goes away, when a cause of failure may pass, and when a person has agreed. A terminal begins to install only
# when the hub has written `INSTALLING`, so what is not `INSTALLING` here can be ended here. A report, good or bad, is
# kept on the terminal's disk: after a reconnect it meets the delivery `QUEUED`, or already `OFFERED`. So does what a
# person decides while others of the inbox come.
MOVES: Final[dict[State, dict[State, Mover]]] = {
    State.QUEUED: {
        State.OFFERED: Mover.HUB,
        State.SAME: Mover.HUB,
        State.NO_MATCH: Mover.HUB,
        State.POSTPONED: Mover.TERMINAL,
        State.DONE: Mover.TERMINAL,
        State.DECLINED: Mover.TERMINAL,
        State.FAILED: _BOTH,
        **_HUB_ENDS,
    },
    State.OFFERED: {
        State.ASKING: Mover.TERMINAL,
        State.POSTPONED: Mover.TERMINAL,
        State.DOWNLOADING: Mover.TERMINAL,
        State.VERIFYING: Mover.TERMINAL,
        State.DONE: Mover.TERMINAL,
        State.DECLINED: Mover.TERMINAL,
        State.FAILED: Mover.TERMINAL,
        State.QUEUED: Mover.HUB,
        **_HUB_ENDS,
    },
    State.ASKING: {
        State.QUEUED: _BOTH,
        State.POSTPONED: Mover.TERMINAL,
        State.DECLINED: Mover.TERMINAL,
        **_HUB_ENDS,
    },
    State.POSTPONED: {
        State.QUEUED: _BOTH,
        State.POSTPONED: Mover.TERMINAL,
        State.DECLINED: Mover.TERMINAL,
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
        State.FAILED: _BOTH,
        State.QUEUED: Mover.HUB,
    },
}

DEADLINES: Final[dict[State, Deadline]] = {
    State.QUEUED: Deadline(
        DELIVERY_SECONDS, Keeper.REAPER, State.EXPIRED, "too-old", "It could not be delivered in all that time."
    ),
    State.OFFERED: Deadline(
        900, Keeper.SESSION, State.QUEUED, "no-answer", "The device did not say what it lacks of the file."
    ),
    State.ASKING: Deadline(
        7 * DAY, Keeper.REAPER, State.EXPIRED, "nobody-answered", "Nobody at the device accepted or declined it."
    ),
    State.POSTPONED: Deadline(
        DELIVERY_SECONDS, Keeper.REAPER, State.EXPIRED, "too-old", "It was put off for all that time."
    ),
    State.DOWNLOADING: Deadline(
        300, Keeper.SESSION, State.QUEUED, "no-progress", "The device took nothing more of the file."
    ),
    State.VERIFYING: Deadline(
        HOUR, Keeper.SESSION, State.QUEUED, "no-answer", "The device did not say whether the file is right."
    ),
    State.INSTALLING: Deadline(
        2 * DAY, Keeper.REAPER, State.FAILED, "outcome-unknown", "The device never said how the installation ended."
    ),
}

FINAL: Final[frozenset[State]] = frozenset(set(State) - set(MOVES))
GOOD: Final[frozenset[State]] = frozenset({State.DONE, State.SAME})
CANCELLABLE: Final[frozenset[State]] = frozenset(state for state in MOVES if State.CANCELLED in MOVES[state])

# --- another try --------------------------------------------------------------------------------------------------

TRIES: Final = 5
RETRY_SECONDS: Final = (30.0, 120.0, 600.0, HOUR)  # before the second try, the third ...

# Reasons of a failure that may pass by itself; any other is the same at the next try.
PASSING: Final[frozenset[str]] = frozenset(
    {"no-space", "disk", "busy", "runner-busy", "no-answer", "no-progress", "bad-transfer", "damaged-object"}
)


def seconds_to_next_try(reason: str, tries: int) -> float | None:
    """Return how long to wait after the `tries`-th try failed for `reason`, or None when it has failed for good."""
    if reason not in PASSING or tries >= TRIES:
        return None
    return RETRY_SECONDS[min(tries, len(RETRY_SECONDS)) - 1]


# --- questions ----------------------------------------------------------------------------------------------------


def may_move(before: State, after: State, mover: Mover) -> bool:
    """Return whether `mover` may move a delivery from `before` to `after`."""
    return mover in MOVES.get(before, {}).get(after, Mover(0))


def outcome_of(counts: dict[str, int]) -> str:
    """Return how a sync ended whose targets ended in these states: "done", "failed" or "partly"."""
    good = sum(count for state, count in counts.items() if State(state) in GOOD)
    if good == sum(counts.values()):
        return "done"
    return "partly" if good else "failed"


def diagram() -> str:
    """Return the table as a Mermaid state diagram: h marks a move of the hub, t one of the terminal."""
    letters = {Mover.HUB: "h", Mover.TERMINAL: "t", _BOTH: "h, t"}
    lines = ["stateDiagram-v2", f"    [*] --> {State.QUEUED}"]
    for before, moves in MOVES.items():
        lines += [f"    {before} --> {after}: {letters[mover]}" for after, mover in moves.items()]
    return "\n".join([*lines, *(f"    {state} --> [*]" for state in State if state in FINAL)])
