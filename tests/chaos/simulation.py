"""Seeded simulation: the product's own sessions, rules and SQL in one thread, on a clock, disk and links that are not.

`tests/chaos/simulated/` is the world. One seed is one run: syncs, repeats, cancels and undos of one initiator on one to
three terminals, people who accept, decline and put off; links that delay and break, hubs and terminals that die between
any two writes, files that are damaged, calendars that are stepped, seconds to weeks that pass. Looked at all along:

- a final state never changes, and nothing that is not final is without a deadline;
- no installer runs for what has ended at the hub, twice for one delivery, again after its end was kept, for what is
  known to be there, or from a wrong file; what is `done` was really there;
- nobody breaks the protocol, no transfer hangs.

Then the faults stop, and once time has passed: all that was accepted has ended and its initiator was told; nothing was
installed that was cancelled; followers ended as their leader; hub, terminal and system agree on what is installed;
nothing is left over in the hub's memory or on a terminal's disk.

Every choice comes from the seed, so `python -m tests.chaos.simulation --seed N --runs 1 --trace` repeats a run. Not
covered: asyncio's own scheduling, real sockets and disks (the other parts of the chaos run), the fair sharing of room.
"""

import argparse
import sys
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from typing import Final

from tests.chaos.outcome import Options, Outcome
from tests.chaos.simulated.clockwork import Violation
from tests.chaos.simulated.faults import FAULTS
from tests.chaos.simulated.world import changed, live, simulated_product

FULL_RUNS: Final = 100_000
FULL_KILLS: Final = 1_700  # of `make chaos`; the runs scale to it
CONTROL_RUNS: Final = 4_000  # within so many a planted fault must have been found
MOST_FINDINGS: Final = 10


@dataclass(slots=True)
class Result:
    """What some runs did: how many there were in how long, what happened in them, and which seeds failed."""

    runs: int = 0
    seconds: float = 0.0
    counts: Counter[str] = field(default_factory=Counter)
    failed: list[int] = field(default_factory=list)

    @property
    def line(self) -> str:
        """One line of figures."""
        happened = " ".join(f"{name}={count}" for name, count in self.counts.items())
        rate = self.runs / self.seconds if self.seconds else 0.0
        return f"runs={self.runs} per_second={rate:.0f} {happened} violations={len(self.failed)}"


def simulate(seed: int, runs: int, *, is_traced: bool = False) -> Result:
    """Live through the runs of the seeds from `seed` on, until ten have failed; say which and why."""
    result = Result()
    began_at = time.process_time()
    with simulated_product() as database:
        for one in range(seed, seed + runs):
            result.runs += 1
            try:
                result.counts.update(live(one, database, is_traced=is_traced).counts)
            except (Violation, Exception) as error:  # a broken promise, or the product itself broke off
                result.failed.append(one)
                _tell(one, error)
                if len(result.failed) >= MOST_FINDINGS:
                    break
    result.seconds = time.process_time() - began_at
    return result


def _tell(seed: int, error: BaseException) -> None:
    words = "".join(traceback.format_exception_only(error)).strip()
    print(f"simulation: seed {seed}: {words}")
    print(f"  again, with its trace: python -m tests.chaos.simulation --seed {seed} --runs 1 --trace", flush=True)


def first_seed_that_finds(fault: str, runs: int, seed: int = 0) -> int | None:
    """Return the first seed from `seed` on whose run finds a planted fault, in the words that fit it, or None."""
    planted = FAULTS[fault]
    with simulated_product() as database, changed(planted.patches()):
        for one in range(seed, seed + runs):
            try:
                live(one, database)
            except Violation as violation:
                if planted.found_as in str(violation):
                    return one
    return None


def run(options: Options) -> Outcome:
    """Plant each fault and find it; then run without one."""
    missed = 0
    for fault in FAULTS:
        found = first_seed_that_finds(fault, CONTROL_RUNS)
        missed += found is None
        print(f"  planted: {fault}: {'NOT FOUND' if found is None else f'found by seed {found}'}", flush=True)
    result = simulate(options.seed, max(1, FULL_RUNS * options.kills // FULL_KILLS))
    line = f"{result.line} planted={len(FAULTS)} missed={missed}"
    return Outcome(passed=not (missed or result.failed), line=line, wrong=len(result.failed))


def main(arguments: list[str]) -> int:
    """Run some seeds, as many as are named, and return the exit code."""
    parser = argparse.ArgumentParser(description="Run seeds of the simulation.")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--runs", type=int, default=1_000)
    parser.add_argument("--trace", action="store_true", help="print what happens")
    given = parser.parse_args(arguments)
    result = simulate(given.seed, given.runs, is_traced=given.trace)
    print(f"simulation: seeds {given.seed} to {given.seed + result.runs - 1}: {result.line}")
    return 1 if result.failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
