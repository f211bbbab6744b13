"""`make fuzz`: many executions of both fuzz targets, in two processes; ends with how many ran and what crashed.

    python -m tests.safety.fuzz [--executions 10000000] [--seed 1] [--keep fuzz]

The work is cut into parts that two libFuzzer processes take in turn, each part with a seed of its own and with the
corpus the parts before it have found, so that a run can be said again. An input that crashes, hangs for 10 s or makes
the process larger than 512 MiB is kept in `--keep` and looked at with `python -m tests.safety.fuzz_target TARGET FILE`.
"""

import argparse
import hashlib
import importlib
import random
import re
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Final

from msgspec import Struct

from tests.safety import fuzz_targets

# An opening takes about six times as long as a message, so the processes have about as much to do with each.
HANDSHAKES_IN_TEN: Final = 3
PART_EXECUTIONS: Final = 250_000
PROCESSES: Final = 2
HANG_SECONDS: Final = 10
MEMORY_MIB: Final = 512
LONGEST_BYTES: Final = {"codec": 16_384, "handshake": 1_024}


class Part(Struct, frozen=True):
    """So many executions of one target."""

    target: str
    executions: int
    seed: int


class Outcome(Struct, frozen=True):
    """What one part did: executions, crashing inputs kept, and the end of what libFuzzer wrote when there was one."""

    part: Part
    executions: int
    crashes: tuple[str, ...]
    story: str = ""


def parts_of(executions: int, seed: int) -> list[Part]:
    """Cut the work into parts, those of both targets in turn."""
    handshakes = executions * HANDSHAKES_IN_TEN // 10
    chance = random.Random(seed)
    parts = []
    for target, wanted in (("codec", executions - handshakes), ("handshake", handshakes)):
        sizes = [min(PART_EXECUTIONS, wanted - at) for at in range(0, wanted, PART_EXECUTIONS)]
        parts += [Part(target, size, chance.randrange(1, 2**31)) for size in sizes]
    return sorted(parts, key=lambda part: part.seed)


def write_seeds(target: str, folder: Path) -> None:
    """Write the corpus a target begins with."""
    folder.mkdir()
    for data in importlib.import_module(fuzz_targets.TARGETS[target]).seeds():
        (folder / hashlib.sha256(data).hexdigest()[:32]).write_bytes(data)


def run_part(part: Part, corpus: Path, keep: Path, *, planted: bool = False) -> Outcome:
    """Run one libFuzzer process to its end."""
    before = set(keep.glob(f"{part.target}-*"))
    ran = subprocess.run(
        [
            sys.executable, "-m", "tests.safety.fuzz_target", part.target, *(["--planted"] if planted else []),
            f"-runs={part.executions}", f"-seed={part.seed}", f"-max_len={LONGEST_BYTES[part.target]}",
            f"-timeout={HANG_SECONDS}", f"-rss_limit_mb={MEMORY_MIB}", "-print_final_stats=1", "-verbosity=0",
            f"-artifact_prefix={keep}/{part.target}-", str(corpus),
        ],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", check=False,
    )  # fmt: skip
    found = re.search(r"number_of_executed_units: (\d+)", ran.stdout)
    crashes = tuple(sorted(path.name for path in set(keep.glob(f"{part.target}-*")) - before))
    if ran.returncode and not crashes:
        crashes = (f"exit code {ran.returncode}",)
    story = ran.stdout[-4_000:] if crashes else ""
    return Outcome(part, int(found[1]) if found else 0, crashes, story)


def run(executions: int, seed: int, keep: Path) -> list[Outcome]:
    """Run all parts, two at a time."""
    keep.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(PROCESSES) as pool:
        corpora = {target: Path(scratch) / target for target in fuzz_targets.TARGETS}
        for target, corpus in corpora.items():
            write_seeds(target, corpus)
        running = [pool.submit(run_part, part, corpora[part.target], keep) for part in parts_of(executions, seed)]
        outcomes: list[Outcome] = []
        for done in as_completed(running):
            outcomes.append(done.result())
            ran, crashed = sum(one.executions for one in outcomes), sum(bool(one.crashes) for one in outcomes)
            print(f"  {ran:,} executions, {crashed} crashes", flush=True)
        return outcomes


def main() -> int:
    """Run and tell. Returns 1 when anything crashed."""
    parser = argparse.ArgumentParser(prog="python -m tests.safety.fuzz")
    parser.add_argument("--executions", type=int, default=10_000_000)
    parser.add_argument("--seed", type=int, default=random.randrange(1, 2**31))
    parser.add_argument("--keep", type=Path, default=Path("fuzz"))
    arguments = parser.parse_args()
    if reason := fuzz_targets.why_not():
        print(f"No fuzzing here: {reason}")
        return 0
    print(f"{arguments.executions:,} executions from seed {arguments.seed}", flush=True)
    began = time.monotonic()
    outcomes = run(arguments.executions, arguments.seed, arguments.keep)
    for target in fuzz_targets.TARGETS:
        of_target = [outcome for outcome in outcomes if outcome.part.target == target]
        ran, crashed = sum(one.executions for one in of_target), sum(len(one.crashes) for one in of_target)
        print(f"{target}: {ran:,} executions in {len(of_target)} parts, {crashed} crashes")
    crashed_parts = [outcome for outcome in outcomes if outcome.crashes]
    for outcome in crashed_parts:
        print(
            f"\n{outcome.part.target} with seed {outcome.part.seed}: {', '.join(outcome.crashes)} in {arguments.keep}"
        )
        print(outcome.story)
    total = sum(outcome.executions for outcome in outcomes)
    print(f"fuzz: {total:,} executions, {len(crashed_parts)} crashes, {time.monotonic() - began:.0f} s")
    return 1 if crashed_parts or total < arguments.executions else 0


if __name__ == "__main__":
    sys.exit(main())
