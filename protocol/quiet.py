"""Quiet hours: the time of day in which nothing new is begun, on a hub or on a terminal. Pure."""

import re

from msgspec import Struct

from protocol.errors import UsageError

DAY_MINUTES = 24 * 60


class QuietHours(Struct, frozen=True):
    """From one minute of the local day up to another, which may lie on the next day."""

    begins: int
    ends: int

    def seconds_left(self, minute_of_day: float) -> float:
        """Return how many seconds of quiet are left at this minute of the local day, 0 when it is not quiet."""
        since_begin = (minute_of_day - self.begins) % DAY_MINUTES
        length = (self.ends - self.begins) % DAY_MINUTES
        return max(length - since_begin, 0.0) * 60


def quiet_hours(text: str) -> QuietHours | None:
    """Return the quiet hours that "HH:MM-HH:MM" says, None for an empty text. Raises UsageError."""
    if not text:
        return None
    found = re.fullmatch(r"([01]?\d|2[0-3]):([0-5]\d)-([01]?\d|2[0-3]):([0-5]\d)", text.strip())
    if not found:
        raise UsageError(f"{text!r} are no quiet hours.", hint="Write HH:MM-HH:MM, for example 22:00-06:30.")
    begin_hour, begin_minute, end_hour, end_minute = map(int, found.groups())
    hours = QuietHours(begin_hour * 60 + begin_minute, end_hour * 60 + end_minute)
    if hours.begins == hours.ends:
        raise UsageError(f"The quiet hours {text!r} begin when they end.", hint="Leave them out to have none.")
    return hours
