"""Negative controls: the same harness with one promise of the product broken on purpose has to report the damage.

Broken is what `tests/chaos/launch.py` replaces in the started process; the product has no switch for it. A control that
reports nothing fails: then a run of kills that reports nothing would mean nothing either.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.chaos.kills import Kind, Moment, Tally, chaos
from tests.chaos.outcome import Options, Outcome
from tests.chaos.world import Faults, World

MOST_KILLS: Final = 12  # a control ends with the first damage seen


@dataclass(frozen=True, slots=True)
class Control:
    """What is broken, when is killed, and what must be counted then (`damage`), or must not be."""

    name: str
    faults: Faults
    damage: Callable[[World], int]
    word: str
    kinds: tuple[Kind, ...] = ()
    moments: tuple[tuple[Moment, int], ...] = (("any", 1),)
    must_be_damaged: bool = True


CONTROLS: Final = (
    Control(
        "acknowledge before commit",
        Faults(hub="acknowledge-before-commit"),
        lambda world: sum("UnknownNameError" in one for one in world.ledger.lost),  # accepted, and gone
        "lost",
        ("hub",) * MOST_KILLS,
        (("accepted", 1),),
    ),
    Control(
        "no marker before install",
        Faults(terminal="no-marker"),
        lambda world: len(world.doubled()),
        "doubled",
        ("terminal",) * MOST_KILLS,
        (("installing", 1),),
    ),
    Control(
        "no digest check",
        Faults(hub="flip-bits", terminal="no-digest-check"),
        lambda world: len(world.ledger.wrong),
        "wrong",
    ),
    Control(
        "bits flipped, digests checked",
        Faults(hub="flip-bits"),
        lambda world: len(world.ledger.wrong),
        "wrong",
        must_be_damaged=False,
    ),
)


async def try_control(control: Control, folder: Path, seed: int) -> tuple[bool, str]:
    """Run one control in `folder`; return whether it came out as it must, and its figures."""
    tally = Tally(len(control.kinds))
    world = await chaos(
        folder,
        seed,
        list(control.kinds),
        tally,
        devices=2,
        faults=control.faults,
        moments=dict(control.moments),
        enough=lambda world: control.damage(world) > 0,
    )
    damage = control.damage(world)
    return bool(damage) == control.must_be_damaged, (
        f"{control.name}: {control.word}={damage} of {len(world.ledger.accepted)} accepted, {tally.kills} kills"
    )


async def _all(options: Options) -> tuple[bool, str]:
    results = [
        await try_control(control, options.folder / control.name.replace(" ", "-"), options.seed)
        for control in CONTROLS
    ]
    return all(right for right, _ in results), "; ".join(figures for _, figures in results)


def run(options: Options) -> Outcome:
    """Run every control."""
    passed, line = asyncio.run(_all(options))
    return Outcome(passed=passed, line=line)
