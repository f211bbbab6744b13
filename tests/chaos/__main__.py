"""`python -m tests.chaos [PART...] --kills N --seed N`: run the parts, all or the named, and sum them up.

Exit code 0 when every part passed. A failing run says its seed and keeps its folder.
"""

import argparse
import importlib
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Final

from tests.chaos.outcome import Options, Outcome

# name -> the module with its `run`; imported when it is its turn, so that one part never needs another's libraries
PARTS: Final[dict[str, str]] = {
    "controls": "tests.chaos.controls",
    "simulation": "tests.chaos.simulation",
    "kills": "tests.chaos.kills",
    "powercut": "tests.chaos.powercut",
    "diskfull": "tests.chaos.diskfull",
    "bitflips": "tests.chaos.bitflips",
    "clocksteps": "tests.chaos.clocksteps",
    "slow": "tests.chaos.slow",
    "storm": "tests.chaos.storm",
    "soak": "tests.chaos.soak",
}


def main(arguments: list[str]) -> int:
    """Run the parts and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)} (default: all)")
    parser.add_argument("--kills", type=int, default=1_700, help="how many kills (default: 1,700; parts scale to it)")
    parser.add_argument("--seed", type=int, default=None, help="default: a new one, which is printed")
    given = parser.parse_args(arguments)
    if unknown := set(given.parts) - set(PARTS):
        parser.error(f"no part is called {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))  # so that what was started is stopped
    seed = random.SystemRandom().randrange(1_000_000) if given.seed is None else given.seed
    folder = Path(tempfile.mkdtemp(prefix="lockstep-chaos-"))
    print(f"chaos: seed {seed}, {given.kills} kills, in {folder}", flush=True)
    outcomes = [_run(name, Options(given.kills, seed, folder / name)) for name in given.parts or PARTS]
    passed = all(outcome.passed for outcome in outcomes)
    if passed:
        shutil.rmtree(folder)
    else:
        print(f"chaos: FAILED with seed {seed}; everything is kept in {folder}")
    print(_summary(outcomes), flush=True)
    return 0 if passed else 1


def _run(name: str, options: Options) -> Outcome:
    options.folder.mkdir()
    began_at = time.monotonic()
    try:
        outcome: Outcome = importlib.import_module(PARTS[name]).run(options)
    except Exception:
        traceback.print_exc()
        outcome = Outcome(passed=False, line="broke off")
    word = "passed" if outcome.passed else "FAILED"
    print(f"{name}: {word} in {time.monotonic() - began_at:.0f} s (seed {options.seed}): {outcome.line}", flush=True)
    return outcome


def _summary(outcomes: list[Outcome]) -> str:
    kills = sum(one.kills for one in outcomes)
    mid_transfer = sum(one.mid_transfer for one in outcomes)
    share = f"{mid_transfer / kills:.0%}" if kills else "-"
    return (
        f"chaos: kills={kills} mid_transfer={share} resumes={sum(one.resumes for one in outcomes)} "
        f"lost={sum(one.lost for one in outcomes)} doubled={sum(one.doubled for one in outcomes)} "
        f"wrong={sum(one.wrong for one in outcomes)}"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
