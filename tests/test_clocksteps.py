"""Clocks that jump by 400 days change nothing but what a clock shows. The short form of `tests.chaos.clocksteps`."""

from pathlib import Path

import pytest

from tests.chaos.clocksteps import DAY, library, step_clocks


@pytest.mark.skipif(library() is None, reason="libfaketime is not installed")
async def test_clocks_that_jump_expire_nothing_and_hang_no_timer(tmp_path: Path) -> None:
    world = await step_clocks(tmp_path, [("both", 400 * DAY), ("hub", -400 * DAY)], looks_dead=0, restarts=0)
    assert world.wrong == []
    assert (world.counts["steps"], world.counts["hung"], world.counts["expired"]) == (2, 0, 0)
    assert world.counts["waiting looked up"] == 2
