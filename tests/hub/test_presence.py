"""Presence: the newest login wins, a short absence is not shown, and no change of the list is lost."""

from hypothesis import given
from hypothesis import strategies as st

from hub.presence import Presence, Roster
from protocol import limits
from protocol.messages import DeviceRow
from tests.hub.rooms import PC

GRACE = limits.PRESENCE_GRACE_SECONDS


def is_shown_online(here: Presence) -> bool:
    row = here.rosters["a"].row("t-1")
    return row is not None and row.online


def row(name: str = "t-1", *, online: bool = True) -> DeviceRow:
    return DeviceRow(terminal=name, name=name, online=online, device=PC)


def presence() -> Presence:
    made = Presence()
    made.rosters["a"] = Roster([row("t-1", online=False), row("t-2", online=False)])
    return made


def test_the_newest_login_wins_and_the_older_sockets_end_changes_nothing() -> None:
    here = presence()
    assert here.join("a", row(), 1) is None
    assert here.join("a", row(), 2) == 1
    assert not here.leave("a", "t-1", 1, now=0, last_seen=9)
    here.tick(GRACE)
    assert here.socket_of("t-1") == 2
    assert is_shown_online(here)


def test_a_terminal_is_shown_offline_only_after_the_grace() -> None:
    here = presence()
    here.join("a", row(), 1)
    assert here.leave("a", "t-1", 1, now=10, last_seen=1_700)
    here.tick(10 + GRACE - 0.01)
    assert is_shown_online(here)
    here.tick(10 + GRACE)
    gone = here.rosters["a"].row("t-1")
    assert gone is not None and not gone.online and gone.last_seen == 1_700


def test_a_reconnect_within_the_grace_is_no_change_of_the_list() -> None:
    here = presence()
    here.join("a", row(), 1)
    before = here.rosters["a"].revision
    here.leave("a", "t-1", 1, now=0, last_seen=1)
    here.join("a", row(), 2)
    here.tick(100)
    assert here.rosters["a"].revision == before
    assert is_shown_online(here)


def test_a_command_that_only_asks_takes_nothing_from_the_grace_and_does_not_prolong_it() -> None:
    here = presence()
    here.join("a", row(), 1)
    here.leave("a", "t-1", 1, now=0, last_seen=1)
    here.join("a", row(online=False), 2)
    assert is_shown_online(here)
    here.leave("a", "t-1", 2, now=GRACE - 1, last_seen=2)
    here.tick(GRACE)
    assert not is_shown_online(here)


def test_a_terminal_that_only_asks_is_never_shown_online() -> None:
    here = presence()
    here.join("a", row(online=False), 1)
    assert not is_shown_online(here)
    here.leave("a", "t-1", 1, now=0, last_seen=1)
    here.tick(GRACE)
    assert not is_shown_online(here)


@given(st.lists(st.tuples(st.sampled_from(["t-1", "t-2", "t-3"]), st.booleans(), st.booleans()), max_size=40))
def test_whoever_applies_the_changes_since_what_they_have_sees_the_list_as_it_is(
    steps: list[tuple[str, bool, bool]],
) -> None:
    """However a whole list and changes follow each other, and however rarely someone looks."""
    roster = Roster([])
    shown: dict[str, DeviceRow] = {}
    revision = roster.revision
    for name, online, looks in steps:
        roster.put(row(name, online=online))
        if looks:
            changes = roster.changes_since(revision)
            assert [at for at, _ in changes] == sorted(at for at, _ in changes)
            shown |= {changed.terminal: changed for _, changed in changes}
            revision = changes[-1][0] if changes else revision
            assert revision == roster.revision
            assert shown == {device.terminal: device for device in roster.rows()}


def test_one_that_has_gone_receives_no_more_although_it_is_still_shown_online() -> None:
    here = presence()
    here.join("a", row(), 1)
    assert here.is_receiving("t-1")
    here.leave("a", "t-1", 1, now=0.0, last_seen=0.0)
    assert is_shown_online(here)
    assert not here.is_receiving("t-1")
