"""The inbox: what waits for a person at this device, and what people decided. Performed on the state folder's files.

A decision is on the disk before anything is said of it. What is decided while there is no connection is acted on when
the hub offers again; only of what it was told to put off it has to hear.
"""

import difflib
import time
from collections.abc import Callable
from datetime import datetime
from typing import Final

from msgspec import structs

from protocol import life, limits, messages
from protocol.errors import ConflictError, LockstepError, RefusedError, UnknownNameError
from protocol.messages import AnyMessage, Decide, Done, Inbox, InboxResult, InboxRow, LocalRequest, Offer, PostureNow
from terminal import consent
from terminal.consent import InboxEntry
from terminal.state import StateFolder

OnEvent = Callable[[str, str], None]

NEAR_NAMES: Final = 3


def _say_nothing(_kind: str, _sentence: str) -> None:
    """Nobody listens to events."""


# --- what the hub offers and withdraws ----------------------------------------------------------------------------


def consider(folder: StateFolder, offer: Offer, on_event: OnEvent) -> messages.State | None:
    """Return what is said to an offer, None when it is taken. Whoever is to be asked finds it in the inbox then.

    Raises BadFileError and RefusedError (`state-folder`).
    """
    now = time.time()
    entries = folder.inbox()
    entry = next((one for one in entries if one.row.delivery == offer.delivery), None)
    clock = datetime.now().astimezone()
    said = consent.answer_to(
        offer, folder.preferences(), entry, now=now, minute_of_day=clock.hour * 60 + clock.minute + clock.second / 60
    )
    if said is None or said.state == life.State.DECLINED:
        if entry is not None and (said is not None or entry.decision != "accept"):
            forget(folder, offer.delivery)  # the preferences, or the end of the quiet hours, have decided
        return said
    if said.reason == "quiet-hours":
        said = until_the_time_of_day(said, now)
    if said.state == life.State.ASKING:
        _announce(offer, on_event)
    folder.save_inbox(_with(entries, _entry_after(entry or consent.entry_of(offer, now), said, now)))
    return said


def until_the_time_of_day(said: messages.State, now: float) -> messages.State:
    """Mend for how long the quiet hours last where summer time begins or ends before them."""
    here, there = (time.localtime(at).tm_gmtoff for at in (now, now + said.seconds))
    return structs.replace(said, seconds=max(said.seconds - (there - here), 1.0))


def _entry_after(entry: InboxEntry, said: messages.State, now: float) -> InboxEntry:
    """Return `entry` as it stands once `said` is said: what a person has put off stays as it was decided."""
    if entry.decision == "later" and said.state == life.State.POSTPONED:
        return structs.replace(entry, told=said.state)
    row = structs.replace(entry.row, seconds=said.seconds)
    return structs.replace(entry, row=row, decision="", decided_at=max(now, 0.0), told=said.state)


def _announce(offer: Offer, on_event: OnEvent) -> None:
    installer = offer.installer
    sender = f" from {offer.initiator}" if offer.initiator else ""
    on_event(
        "asking",
        f"{installer.program} {installer.version}{sender} asks to be installed: "
        f"`lockstep-terminal accept {offer.delivery}`, `decline` or `later`.",
    )


def _with(entries: tuple[InboxEntry, ...], entry: InboxEntry) -> tuple[InboxEntry, ...]:
    """Put `entry` in place of one of its delivery or program. Past the bound the oldest goes: it is offered again.

    What was accepted and never came goes with time. What a person can see stays: the calendar may have been stepped.
    """
    row = entry.row
    others = (one for one in entries if row.delivery != one.row.delivery and row.program != one.row.program)
    youngest = time.time() - life.DELIVERY_SECONDS
    kept = (one for one in others if one.decision != "accept" or one.row.since >= youngest)
    return (*kept, entry)[-limits.INBOX_ROWS :]


def forget(folder: StateFolder, delivery: str, on_event: OnEvent = _say_nothing) -> None:
    """Take a delivery out of the inbox: it is not wanted any more, or done."""
    entries = folder.inbox()
    gone = [one for one in entries if one.row.delivery == delivery]
    if gone:
        folder.save_inbox(tuple(one for one in entries if one.row.delivery != delivery))
        on_event("withdrawn", f"{gone[0].row.program} {gone[0].row.version} is not wanted here any more ({delivery}).")


# --- what a person asks and decides -------------------------------------------------------------------------------


def holds(folder: StateFolder, delivery: str) -> bool:
    """Return whether a delivery waits for a person, or for what a person decided on it."""
    return any(entry.row.delivery == delivery for entry in folder.inbox())


def rows(folder: StateFolder) -> tuple[InboxRow, ...]:
    """Return what waits for a person, oldest first."""
    now = time.time()
    return tuple(entry.shown(now) for entry in folder.inbox() if entry.decision != "accept")


def decided_unheard(entries: tuple[InboxEntry, ...]) -> tuple[messages.State, ...]:
    """Return what the hub has to hear after a login: it was told to put these off, for too long perhaps, or no more."""
    now = time.time()
    unheard = []
    for one in entries:
        if one.decision == "accept" and one.told == life.State.POSTPONED:
            unheard.append(consent.accepted(one.row.delivery))
        elif one.decision == "later" and (left := one.seconds_left(now)):
            unheard.append(consent.postponed(one.row.delivery, left, "by-person"))
    return tuple(unheard)


def nothing_is_under_way(_delivery: str) -> bool:
    """There is no connection, so nothing comes."""
    return False


async def answer_alone(
    folder: StateFolder, request: LocalRequest, is_under_way: Callable[[str], bool] = nothing_is_under_way
) -> AnyMessage:
    """Return the answer to a local request where there is no connection that takes offers. Raises as `decide`."""
    if isinstance(request, Inbox):
        return InboxResult(re=request.id, rows=rows(folder))
    if isinstance(request, PostureNow):
        raise RefusedError(
            "Another command of this terminal is at work.", hint="Try again when it has ended.", code="in-use"
        )
    decide(folder, request, is_under_way)
    return Done(re=request.id)


def decide(folder: StateFolder, decide: Decide, is_under_way: Callable[[str], bool]) -> messages.State | None:
    """Keep a person's decision and return what the hub is to be told, which for `decline` is a report, kept too.

    None for accepting what is on its way: the hub knows, and would begin again.

    Raises UnknownNameError for a delivery that does not wait, ConflictError for one that it is too late to put off.
    """
    entries = folder.inbox()
    entry = next((one for one in entries if one.row.delivery == decide.delivery), None)
    if entry is None:
        raise _unknown(decide.delivery, entries)
    stage = _stage(folder, decide.delivery, is_under_way)
    if stage and decide.decision != "accept":
        raise ConflictError(f"It is too late: {entry.row.program} {entry.row.version} is {stage}.", code="too-late")
    if decide.decision == "decline":
        report = consent.declined(decide.delivery, "by-person")
        folder.add_report(report)
        forget(folder, decide.delivery)
        return report
    said = _keep(folder, entries, entry, decide)
    return None if stage else said


def _stage(folder: StateFolder, delivery: str, is_under_way: Callable[[str], bool]) -> str:
    """Return how far a delivery has come, empty for one that waits. The files know what outlived its connection."""
    if any((report.delivery, report.state) == (delivery, life.State.DONE) for report in folder.reports()):
        return "installed"
    mark = folder.mark(delivery)
    if mark is not None and mark.running:
        return "being installed"
    return "being received" if is_under_way(delivery) else ""


def _keep(folder: StateFolder, entries: tuple[InboxEntry, ...], entry: InboxEntry, decide: Decide) -> messages.State:
    accepts = decide.decision == "accept"
    seconds = 0.0 if accepts else min(decide.seconds or consent.LATER_SECONDS, consent.LONGEST_LATER_SECONDS)
    said = consent.accepted(decide.delivery) if accepts else consent.postponed(decide.delivery, seconds, "by-person")
    kept = structs.replace(
        entry,
        row=structs.replace(entry.row, seconds=seconds),
        decision="accept" if accepts else "later",
        decided_at=max(time.time(), 0.0),
        told=entry.told if accepts else said.state,
    )
    folder.save_inbox(tuple(kept if one is entry else one for one in entries))
    return said


def _unknown(delivery: str, entries: tuple[InboxEntry, ...]) -> LockstepError:
    known = [one.row.delivery for one in entries if one.decision != "accept"]
    near = tuple(difflib.get_close_matches(delivery, known, n=NEAR_NAMES, cutoff=0.5))
    return UnknownNameError(
        f"No delivery {delivery!r} waits for a decision.",
        near=near,
        hint="" if near else "`lockstep-terminal inbox` lists what waits.",
        code="unknown-delivery",
    )
