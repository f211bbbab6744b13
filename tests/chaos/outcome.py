"""What every part of the chaos run is told and answers with."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Options:
    """How much, from which seed, and the folder a part may use; it is kept when the part fails."""

    kills: int
    seed: int
    folder: Path


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a part ended: one line of figures for people, and what the last line of the whole run sums up.

    `kills` are SIGKILLs (or what the part does in their place), `mid_transfer` those that fell while an object flowed.
    `lost` counts what was accepted and did not end as promised, `doubled` installations that ran twice, `wrong` files
    that were not what was sent and words that were not true. A part that counts none of these leaves them at zero.
    """

    passed: bool
    line: str
    kills: int = 0
    mid_transfer: int = 0
    resumes: int = 0
    lost: int = 0
    doubled: int = 0
    wrong: int = 0
