"""A few seconds of fuzzing, and that it finds a fault that is planted. `make fuzz` runs ten million."""

import os
from pathlib import Path

import pytest

from tests.safety import fuzz, fuzz_targets, ledger

CODEC_EXECUTIONS = int(os.environ.get("FUZZ_EXECUTIONS", "20000"))
EXECUTIONS = {"codec": CODEC_EXECUTIONS, "handshake": CODEC_EXECUTIONS * 3 // 10}

pytestmark = pytest.mark.skipif(bool(fuzz_targets.why_not()), reason=fuzz_targets.why_not() or "it can")


@pytest.mark.parametrize("target", fuzz_targets.TARGETS)
def test_no_input_crashes(target: str, tmp_path: Path) -> None:
    fuzz.write_seeds(target, tmp_path / "corpus")
    outcome = fuzz.run_part(fuzz.Part(target, EXECUTIONS[target], 1), tmp_path / "corpus", tmp_path)
    ledger.count("fuzz", "targets")
    ledger.count("fuzz", "executions", outcome.executions)
    ledger.count("fuzz", "crashes", len(outcome.crashes))
    assert not outcome.crashes, outcome.story
    assert outcome.executions >= EXECUTIONS[target]


def test_a_planted_fault_is_found_and_its_input_is_kept(tmp_path: Path) -> None:
    fuzz.write_seeds("codec", tmp_path / "corpus")
    outcome = fuzz.run_part(fuzz.Part("codec", 50_000, 1), tmp_path / "corpus", tmp_path, planted=True)
    assert "a planted fault" in outcome.story
    [name] = outcome.crashes
    assert (tmp_path / name).read_bytes()[1:3] == b"\x82\xa4"


def test_the_parts_of_a_run_are_all_of_it_and_follow_from_the_seed() -> None:
    parts = fuzz.parts_of(1_234_567, 5)
    assert sum(part.executions for part in parts) == 1_234_567
    assert {part.target for part in parts} == set(fuzz_targets.TARGETS)
    assert parts == fuzz.parts_of(1_234_567, 5) != fuzz.parts_of(1_234_567, 6)
