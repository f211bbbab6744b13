"""One part of the chaos run by itself: `python -m tests.chaos.PART --seed N --kills N`."""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tests.chaos.outcome import Options, Outcome

FULL_KILLS: Final = 1_700  # what `make chaos` runs with when it is not told; parts scale to it


def run_alone(part: Callable[[Options], Outcome], about: str | None) -> int:
    """Run one part, print its figures and return the exit code."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kills", type=int, default=FULL_KILLS, help="the size of the run it is a part of")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        outcome = part(Options(arguments.kills, arguments.seed, Path(folder)))
    print(f"{'passed' if outcome.passed else 'FAILED'} (seed {arguments.seed}): {outcome.line}", flush=True)
    return 0 if outcome.passed else 1
