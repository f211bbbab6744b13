"""Presence: the newest login wins, a short absence is not shown, and no change of the list is lost."""

from hypothesis import given
from hypothesis import strategies as st

from hub.devices import DeviceLists
from hub.presence import Presence, Roster
from hub.records import Terminal
from protocol import codec, limits, messages
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


def test_one_that_is_removed_is_off_the_list_for_good_whatever_was_pending_of_it() -> None:
    here = presence()
    here.join("a", row(), 1)
    here.leave("a", "t-1", 1, now=0, last_seen=1)
    here.remove("a", "t-1")
    here.update("a", row())
    here.tick(10 * GRACE)
    assert here.rosters["a"].row("t-1") is None
    assert [terminal for _, terminal in here.rosters["a"].gone_since(0)] == ["t-1"]


def test_the_socket_of_one_that_is_removed_leaves_as_any_other() -> None:
    here = presence()
    here.join("a", row(), 1)
    here.remove("a", "t-1")
    assert not here.is_receiving("t-1")
    assert here.socket_of("t-1") == 1
    assert here.leave("a", "t-1", 1, now=0, last_seen=1)
    here.tick(10 * GRACE)
    assert here.rosters["a"].row("t-1") is None


def test_what_nobody_has_a_list_of_is_removed_and_updated_in_silence() -> None:
    here = Presence()
    here.remove("nobody", "t-1")
    here.update("nobody", row())
    assert here.rosters == {}


class Reader:
    """A listener that applies what it is sent, and notices a gap."""

    def __init__(self, revision: int) -> None:
        self.devices_revision = revision
        self.terminal = Terminal(
            terminal_id="t-9", account_id="a", account_name="a", name="R", device_key=bytes(32), device=row().device,
            address="", connection=1, last_seen_at=0.0,
        )  # fmt: skip
        self.shown: dict[str, DeviceRow] = {}

    def queue(self, data: bytes) -> None:
        changes = codec.decode(data)
        assert isinstance(changes, messages.DeviceChanges)
        assert changes.since == self.devices_revision, "a gap"
        self.devices_revision = changes.revision
        for gone in changes.gone:
            self.shown.pop(gone, None)
        self.shown |= {changed.terminal: changed for changed in changes.changed}


@given(st.lists(st.tuples(st.sampled_from(["t-1", "t-2", "t-3"]), st.booleans(), st.booleans()), max_size=40))
def test_whoever_reads_the_messages_sees_who_came_and_who_has_gone(steps: list[tuple[str, bool, bool]]) -> None:
    here = Presence()
    here.rosters["a"] = Roster([])
    lists, reader = DeviceLists(here), Reader(here.rosters["a"].revision)
    for name, stays, looks in steps:
        if stays:
            here.rosters["a"].put(row(name))
        else:
            here.remove("a", name)
        lists.changed_accounts()
        if looks:
            assert lists.changes(reader) == reader.devices_revision == here.rosters["a"].revision
            assert reader.shown == {device.terminal: device for device in here.rosters["a"].rows()}
