"""Faults planted in the product, one at a time: the simulation is worth what it finds of them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from hub.deliveries import Deliveries
from hub.store import QUERIES
from protocol import life
from terminal import session
from terminal.session import Session
from tests.chaos.simulated.hub import HubWorld
from tests.chaos.simulated.terminal import Machine, MemoryFolder
from tests.chaos.simulated.world import Patch


def _install_unasked() -> list[Patch]:
    """The terminal installs at once, not when the hub has noted that it does."""
    real: Any = Session._verified

    def verified(self: Session, current: Any) -> list[session.Action]:
        before: list[session.Action] = real(self, current)
        self._installing[current.offer.delivery].begun = True
        return [*before, session.Install(current.serial, current.offer)]

    return [(Session, "_verified", verified)]


def _drop_reports() -> list[Patch]:
    """A report is said and not kept on the disk."""
    return [(MemoryFolder, "add_report", lambda _self, _report: None)]


def _change_what_ended() -> list[Patch]:
    """Reports are applied to deliveries that have ended."""
    anywhere = dict.fromkeys((life.State.DONE, life.State.FAILED, life.State.DECLINED), life.Mover.TERMINAL)
    moves = {state: {**anywhere, **life.MOVES.get(state, {})} for state in life.State}
    query = QUERIES["move_delivery"].replace("AND is_final = 0", "")
    return [(life, "MOVES", moves), (QUERIES, "move_delivery", query)]


def _mark_nothing() -> list[Patch]:
    """Nothing is put down before a runner starts."""
    return [(MemoryFolder, "put_mark", lambda _self, _mark: None)]


def _cancel_what_installs() -> list[Patch]:
    """What has begun to install is cancelled as well."""
    return [(life, "CANCELLABLE", life.CANCELLABLE | {life.State.INSTALLING})]


def _acknowledge_early() -> list[Patch]:
    """The hub answers before it has committed."""
    return [(HubWorld, "acknowledges_early", True)]


def _verify_nothing() -> list[Patch]:
    """The terminal does not read the whole file again before it installs it."""
    return [(Machine, "verifies", False)]


def _square_nothing() -> list[Patch]:
    """The hub does not compare what it thinks is installing with what the terminal says is."""

    async def square(*_given: object) -> None:
        return None

    return [(Deliveries, "_square_installing", square)]


def _leave_followers() -> list[Patch]:
    """A delivery that follows another does not go along with it."""

    async def take_along(*_given: object) -> None:
        return None

    return [(Deliveries, "_take_along", take_along)]


@dataclass(frozen=True, slots=True)
class Fault:
    """What is changed in the product, and words of the finding that gives it away."""

    patches: Callable[[], list[Patch]]
    found_as: str


FAULTS: Final[dict[str, Fault]] = {
    "the terminal installs without asking the hub": Fault(_install_unasked, "has installed it"),
    "a report is not kept": Fault(_drop_reports, "is installed again after it was reported"),
    "a report changes what has ended": Fault(_change_what_ended, "for good, and is"),
    "no mark before the runner": Fault(_mark_nothing, "is installed twice"),
    "what installs is cancelled": Fault(_cancel_what_installs, "has installed it"),
    "the hub acknowledges before it has committed": Fault(_acknowledge_early, "accepted and lost"),
    "the file is not verified": Fault(_verify_nothing, "from a wrong file"),
    "installing is not squared at a login": Fault(_square_nothing, "is there and does not"),
    "followers are left behind": Fault(_leave_followers, "it waits"),
}
