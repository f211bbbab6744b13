"""The short form of `make chaos`: a few kills while objects flow, and controls that show the harness sees damage."""

import random
from pathlib import Path

import pytest

from tests.chaos.controls import CONTROLS, Control, try_control
from tests.chaos.kills import Kind, Tally, chaos, outcome_of, plan

SEED = 3
KINDS: list[Kind] = ["hub", "terminal", "both", "hub"]


async def test_nothing_accepted_is_lost_or_done_twice_by_a_few_kills(tmp_path: Path) -> None:
    tally = Tally(len(KINDS))
    world = await chaos(tmp_path / "world", SEED, KINDS, tally, devices=2, moments={"flowing": 1})
    outcome = outcome_of([world], tally)
    assert outcome.passed, f"seed {SEED}: {outcome.line}"
    assert outcome.resumes > 0


@pytest.mark.parametrize("control", [CONTROLS[1], CONTROLS[2]], ids=lambda control: control.name)
async def test_the_harness_sees_the_damage_of_a_broken_promise(control: Control, tmp_path: Path) -> None:
    right, figures = await try_control(control, tmp_path / "world", SEED)
    assert right, figures


def test_a_plan_has_the_kinds_in_the_shares_of_the_full_run() -> None:
    kinds = plan(1_700, random.Random(1))
    assert {kind: kinds.count(kind) for kind in kinds} == {"hub": 1_000, "terminal": 500, "both": 200}
    assert len(plan(50, random.Random(1))) == 50
