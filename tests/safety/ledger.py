"""What was proved in this run, counted: the lines `make test-safety` ends with."""

from collections import Counter
from typing import Final

# What is counted, in the order in which it is shown.
COLUMNS: Final = {
    "isolation": ("kinds of message", "fields", "pairs tried", "leaks"),
    "limits": ("limits", "cases"),
    "bombs": ("bombs", "messages"),
    "handshakes": ("drip-fed", "logins tried", "logins lost"),
    "fuzz": ("targets", "executions", "crashes"),
    "audit": ("tamperings", "found"),
}

_counts: Final[Counter[tuple[str, str]]] = Counter()
_worst: Final[dict[str, float]] = {}


def count(what: str, column: str, number: int = 1) -> None:
    """Add to one of the counts; a count of 0 is shown once its line has any other."""
    assert column in COLUMNS[what]
    _counts[what, column] += number


def note_worst(what: str, value: float) -> None:
    """Keep the largest `value` seen of what is measured, such as "stall of the loop, ms"."""
    _worst[what] = max(value, _worst.get(what, 0.0))


def lines() -> list[str]:
    """The counts and the worst values, empty when nothing was counted."""
    told = [
        f"{what}: " + ", ".join(f"{column} {_counts[what, column]:,}" for column in columns)
        for what, columns in COLUMNS.items()
        if any(_counts[what, column] for column in columns)
    ]
    return told + [f"worst: {what} {value:.3f}" for what, value in sorted(_worst.items())]
