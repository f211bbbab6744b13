"""Consent: may this device take what is offered? Its preferences, what a person decided, and quiet hours say so. Pure.

Times are Unix seconds of this device's clock, which may be stepped: what was put off ends early rather than late.
"""

from typing import Annotated, Final, Literal, TypeAlias

from msgspec import Meta, Struct, structs

from protocol import life, messages
from protocol.messages import Count, Identifier, InboxRow, Offer, Seconds
from protocol.quiet import quiet_hours

Wish: TypeAlias = Literal["ask", "auto", "never"]
Decision: TypeAlias = Literal["", "accept", "later"]

LATER_SECONDS: Final = life.HOUR
LONGEST_LATER_SECONDS: Final = life.DELIVERY_SECONDS
_AS_GOOD_AS_OVER_SECONDS: Final = 1.0  # hub and device do not count the same


class Preferences(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the owner of this device wants: the file `preferences.json`.

    `programs` is for single programs, by id. `quiet_hours` is "HH:MM-HH:MM" in local time, empty for none. The hub
    sends no faster than `bytes_per_second`; 0 for no limit. Programs are scanned no faster than
    `scan_bytes_per_second`; 0 for the usual pace.
    """

    consent: Wish = "auto"
    programs: Annotated[dict[Identifier, Wish], Meta(max_length=1_024)] = {}
    quiet_hours: str = ""
    bytes_per_second: Count = 0
    scan_bytes_per_second: Count = 0

    def wish_for(self, program: str) -> Wish:
        """Return what is wanted for the program with this id."""
        return self.programs.get(program, self.consent)


class InboxEntry(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One delivery a person is asked about or has decided on: one entry of the file `inbox.json`.

    `row` is what is shown; its `seconds` are those it was put off for at `decided_at`, by a person (`decision`) or by
    the quiet hours. `told` is the state the hub heard.
    """

    row: InboxRow
    decision: Decision = ""
    decided_at: Seconds = 0.0
    told: str = life.State.ASKING

    def seconds_left(self, now: float) -> float:
        """Return for how long it is put off still; 0 also when the clock was set back to before that was said."""
        if now < self.decided_at:
            return 0.0
        left = self.decided_at + self.row.seconds - now
        return left if left > _AS_GOOD_AS_OVER_SECONDS else 0.0

    def shown(self, now: float) -> InboxRow:
        """Return the row as it stands now."""
        return structs.replace(self.row, seconds=self.seconds_left(now))


def entry_of(offer: Offer, now: float) -> InboxEntry:
    """Return the entry of an offer that nobody has decided on."""
    installer = offer.installer
    row = InboxRow(
        delivery=offer.delivery,
        program=installer.program,
        version=installer.version,
        installer_kind=installer.installer_kind,
        file_name=installer.file_name,
        size=offer.size,
        initiator=offer.initiator,
        since=max(now, 0.0),
    )
    return InboxEntry(row=row)


def answer_to(
    offer: Offer, preferences: Preferences, entry: InboxEntry | None, *, now: float, minute_of_day: float
) -> messages.State | None:
    """Return what is said to an offer, or None when it is taken.

    `entry` is what the inbox holds of this delivery, `minute_of_day` is in local time. Raises UsageError for quiet
    hours that are none.
    """
    wish = preferences.wish_for(offer.installer.program)
    if wish == "never":
        detail = f"This device does not take {offer.installer.program} from others."[:1_000]
        return declined(offer.delivery, "by-policy", detail)
    if entry is not None and entry.decision == "accept":
        return None
    if entry is not None and entry.decision == "later" and (left := entry.seconds_left(now)):
        return postponed(offer.delivery, left, "by-person")
    if wish == "ask":
        return messages.State(delivery=offer.delivery, state=life.State.ASKING)
    hours = quiet_hours(preferences.quiet_hours)
    quiet_seconds = hours.seconds_left(minute_of_day) if hours else 0.0
    return postponed(offer.delivery, quiet_seconds, "quiet-hours") if quiet_seconds else None


def accepted(delivery: str) -> messages.State:
    """Return what tells the hub to offer a delivery again, because a person agreed."""
    return messages.State(delivery=delivery, state=life.State.QUEUED, reason="accepted")


def postponed(delivery: str, seconds: float, reason: str) -> messages.State:
    """Return what tells the hub to offer a delivery again when `seconds` have passed."""
    return messages.State(delivery=delivery, state=life.State.POSTPONED, reason=reason, seconds=seconds)


def declined(delivery: str, reason: str, detail: str = "") -> messages.State:
    """Return the report of a delivery this device does not want."""
    return messages.State(delivery=delivery, state=life.State.DECLINED, reason=reason, detail=detail)
