"""Quiet hours: a part of the local day, which may run over midnight."""

import pytest

from protocol.errors import UsageError
from protocol.quiet import QuietHours, quiet_hours

NIGHT = QuietHours(22 * 60, 6 * 60 + 30)
NOON = QuietHours(12 * 60, 13 * 60)


@pytest.mark.parametrize(
    ("hours", "minute_of_day", "seconds"),
    [
        (NIGHT, 22 * 60, 8.5 * 3600),
        (NIGHT, 23 * 60 + 59, 6.5 * 3600 + 60),
        (NIGHT, 0, 6.5 * 3600),
        (NIGHT, 6 * 60 + 29.5, 30),
        (NIGHT, 6 * 60 + 30, 0),
        (NIGHT, 21 * 60 + 59, 0),
        (NOON, 12 * 60, 3600),
        (NOON, 12 * 60 + 59.75, 15),
        (NOON, 13 * 60, 0),
        (NOON, 11 * 60 + 59, 0),
    ],
)
def test_how_long_it_is_quiet_still(hours: QuietHours, minute_of_day: float, seconds: float) -> None:
    assert hours.seconds_left(minute_of_day) == seconds


@pytest.mark.parametrize(
    ("text", "hours"),
    [
        ("22:00-06:30", NIGHT),
        (" 22:00-6:30 ", NIGHT),
        ("12:00-13:00", NOON),
        ("00:00-23:59", QuietHours(0, 1439)),
        ("", None),
    ],
)
def test_quiet_hours_are_written_as_two_times_of_the_day(text: str, hours: QuietHours | None) -> None:
    assert quiet_hours(text) == hours


@pytest.mark.parametrize("text", ["22-6", "24:00-06:00", "22:60-06:00", "22:00", "22:00-06:00-07:00", "nights", "-"])
def test_what_is_no_time_of_day_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(UsageError, match="22:00-06:30"):
        quiet_hours(text)


def test_quiet_hours_of_no_length_are_refused() -> None:
    with pytest.raises(UsageError, match="begin when they end"):
        quiet_hours("08:00-08:00")
