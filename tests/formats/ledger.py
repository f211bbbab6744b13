"""What was proved in this run, counted: the table `make test-formats` ends with.

The row "other" counts the damage done to the four kinds above it, which are recognised and not read.
"""

from collections import Counter
from typing import Final

FORMATS: Final = (
    "deb", "rpm", "wheel", "apk", "apks", "ipa", "msi", "msix", "exe", "aab", "appimage", "flatpak", "pkg", "other",
)  # fmt: skip
COLUMNS: Final = (
    "real files",
    "built files",
    "stand-ins",
    "facts compared",
    "disagreements",
    "fuzz cases",
    "in the worker",
)

_counts: Final[Counter[tuple[str, str]]] = Counter()
_worst: Final[dict[str, float]] = {}


def count(kind: str, column: str, number: int = 1) -> None:
    """Add to one cell of the table."""
    assert column in COLUMNS
    _counts[kind, column] += number


def note_worst(what: str, value: float) -> None:
    """Keep the largest `value` seen of what is measured, such as seconds of one file."""
    _worst[what] = max(value, _worst.get(what, 0.0))


def lines() -> list[str]:
    """The table and the worst values, empty when nothing was counted."""
    if not _counts:
        return []
    rows: list[tuple[str, ...]] = [("format", *COLUMNS)]
    rows += [(kind, *(str(_counts[kind, column]) for column in COLUMNS)) for kind in FORMATS]
    rows.append(("all", *(str(sum(_counts[kind, column] for kind in FORMATS)) for column in COLUMNS)))
    widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]))]
    table = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return table + [f"worst: {what} {value:.3f}" for what, value in sorted(_worst.items())]
