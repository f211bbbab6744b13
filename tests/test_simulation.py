"""The simulation in its short form: some hundred seeds without a finding, and planted faults that are found."""

import pytest

from tests.chaos.simulated.world import live, simulated_product
from tests.chaos.simulation import first_seed_that_finds, simulate

RUNS = 300


def test_hundreds_of_seeds_keep_every_promise() -> None:
    result = simulate(1, RUNS)
    assert result.failed == []
    assert result.counts["installs"] > RUNS and result.counts["faults"] > RUNS, result.line


def test_one_seed_is_one_run(capsys: pytest.CaptureFixture[str]) -> None:
    traces = []
    with simulated_product() as database:
        for _ in range(2):
            live(7, database, is_traced=True)
            traces.append(capsys.readouterr().out)
    assert traces[0] == traces[1] and len(traces[0].splitlines()) > 50


# Which seed finds it first changes with every change to the product or the world: each may need all of its runs.
@pytest.mark.parametrize(
    ("fault", "runs"),
    [
        ("the terminal installs without asking the hub", 1_000),
        ("a report changes what has ended", 1_000),
        ("the hub acknowledges before it has committed", 300),
        ("no mark before the runner", 500),
    ],
)
def test_a_planted_fault_is_found(fault: str, runs: int) -> None:
    seed = first_seed_that_finds(fault, runs)
    assert seed is not None, f"no run of {runs} has found that {fault}"
