"""Names of targets and exit codes."""

from itertools import chain, combinations

import pytest

from protocol import errors
from protocol.device import DeviceInfo
from protocol.life import FINAL, GOOD, State
from protocol.messages import DeviceRow, TargetRow
from terminal.targets import (
    Choice,
    Standing,
    choose_device,
    choose_targets,
    error_exit_code,
    is_waited_for,
    standing_of,
)
from terminal.targets import sync_exit_code as exit_code

DONE = TargetRow(terminal="t-1", name="Phone", state="done")
SAME = TargetRow(terminal="t-2", name="Tablet", state="same")
FAILED = TargetRow(terminal="t-3", name="TV", state="failed", reason="no-space")
OFFLINE = TargetRow(terminal="t-4", name="Car", state="queued", reason="offline")
QUEUED = TargetRow(terminal="t-5", name="Watch", state="queued", reason="waiting")
DOWNLOADING = TargetRow(terminal="t-6", name="Laptop", state="downloading")


def device(terminal: str, name: str) -> DeviceRow:
    return DeviceRow(terminal=terminal, name=name, online=True, device=DeviceInfo(model="M"))


DEVICES = (
    device("t-1", "Phone"),
    device("t-2", "TV"),
    device("t-3", "tv"),
    device("t-4", "Kitchen"),
    device("t-5", "KITCHEN"),
    device("t-6", "Car, red"),
    device("t-7", "t-1"),
    device("t-8", "Twin"),
    device("t-9", "Twin"),
)


def chosen(*given: str) -> tuple[str, ...]:
    return choose_targets(given, DEVICES).targets


# --- names --------------------------------------------------------------------------------------------------------


def test_an_id_wins_over_a_device_that_is_called_like_it() -> None:
    assert chosen("t-1") == ("t-1",)


def test_the_exact_name_wins_over_one_in_other_letter_case() -> None:
    assert chosen("TV") == ("t-2",)
    assert chosen("tv") == ("t-3",)


def test_letter_case_does_not_matter_where_it_is_not_needed() -> None:
    assert chosen("PHONE") == ("t-1",)


def test_a_list_parted_by_commas_and_several_options_name_each_target_once_in_order() -> None:
    assert chosen("tv, Phone", "t-3", "t-4,") == ("t-3", "t-1", "t-4")


def test_a_name_that_contains_a_comma_is_found_whole() -> None:
    assert chosen("Car, red") == ("t-6",)


def test_all_is_everyone_whatever_stands_beside_it() -> None:
    assert choose_targets(("phone,all",), DEVICES) == Choice(everyone=True)


@pytest.mark.parametrize("name", ["Twin", "twin"])
def test_a_name_of_two_devices_is_refused_with_the_ids_of_both(name: str) -> None:
    with pytest.raises(errors.UsageError, match="t-8, t-9") as caught:
        chosen(name)
    assert caught.value.code == "ambiguous-name"


def test_other_letter_case_of_two_names_is_ambiguous() -> None:
    with pytest.raises(errors.UsageError, match="t-4, t-5"):
        chosen("kitchen")


def test_an_unknown_name_is_refused_with_the_near_names() -> None:
    with pytest.raises(errors.UnknownNameError) as caught:
        chosen("phon")
    assert caught.value.near == ("Phone",)
    assert caught.value.hint == "Did you mean Phone?"


def test_an_unknown_name_that_is_near_to_nothing_says_how_to_list_the_devices() -> None:
    with pytest.raises(errors.UnknownNameError, match="lockstep-terminal devices"):
        chosen("xylophone quartet")


@pytest.mark.parametrize("given", [(), ("",), (" , ",)])
def test_no_name_at_all_is_refused(given: tuple[str, ...]) -> None:
    with pytest.raises(errors.UsageError, match="No target"):
        choose_targets(given, DEVICES)


# --- standing and exit codes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", list(State))
def test_every_state_of_a_delivery_has_its_standing(state: State) -> None:
    standing = standing_of(TargetRow(terminal="t", name="T", state=state))
    if state in GOOD:
        assert standing is Standing.GOOD
    elif state in (State.ASKING, State.POSTPONED):
        assert standing is Standing.LATER
    else:
        assert standing is (Standing.FAILED if state in FINAL else Standing.UNDER_WAY)


def test_a_target_that_is_offline_is_for_later_whether_it_was_queued_or_went_while_installing() -> None:
    assert standing_of(OFFLINE) is Standing.LATER
    assert standing_of(TargetRow(terminal="t", name="T", state="installing", reason="offline")) is Standing.LATER
    assert standing_of(QUEUED) is Standing.UNDER_WAY
    assert standing_of(TargetRow(terminal="t", name="T", state="failed", reason="offline")) is Standing.FAILED


def test_a_state_of_a_newer_hub_is_under_way() -> None:
    assert standing_of(TargetRow(terminal="t", name="T", state="scanning")) is Standing.UNDER_WAY


@pytest.mark.parametrize(
    ("state", "reason", "standing"),
    [
        ("asking", "", Standing.LATER),
        ("postponed", "quiet-hours", Standing.LATER),
        ("queued", "no-space", Standing.LATER),
        ("queued", "quiet-hours", Standing.LATER),
        ("queued", "waiting", Standing.UNDER_WAY),
        ("queued", "accepted", Standing.UNDER_WAY),
        ("queued", "", Standing.UNDER_WAY),
        ("downloading", "", Standing.UNDER_WAY),
        ("expired", "too-old", Standing.FAILED),
        ("declined", "by-person", Standing.FAILED),
    ],
)
def test_what_waits_for_a_person_for_room_or_for_another_try_is_for_later(
    state: str, reason: str, standing: Standing
) -> None:
    assert standing_of(TargetRow(terminal="t", name="T", state=state, reason=reason)) is standing


def test_targets_for_later_and_ended_ones_are_not_waited_for() -> None:
    assert not is_waited_for((DONE, SAME, FAILED, OFFLINE))
    assert is_waited_for((DONE, QUEUED))
    assert not is_waited_for(())


BY_STANDING = {
    Standing.GOOD: DONE,
    Standing.FAILED: FAILED,
    Standing.LATER: OFFLINE,
    Standing.UNDER_WAY: DOWNLOADING,
}
COMBINATIONS = list(chain.from_iterable(combinations(Standing, count) for count in range(5)))


@pytest.mark.parametrize("standings", COMBINATIONS)
def test_every_combination_of_targets_has_its_exit_code(standings: tuple[Standing, ...]) -> None:
    """The rules in words, one after the other; the table must say the same."""
    has = set(standings)
    if Standing.UNDER_WAY in has:
        expected = 7
    elif Standing.GOOD in has:
        expected = 3 if len(has) > 1 else 0
    elif Standing.LATER in has:
        expected = 7
    else:
        expected = 1 if has else 0
    assert exit_code([BY_STANDING[standing] for standing in standings]) == expected


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        ((DONE, SAME), 0),
        ((DONE, QUEUED), 0),
        ((OFFLINE,), 0),
        ((FAILED, OFFLINE), 0),
        ((DONE, FAILED), 3),
        ((FAILED, FAILED), 1),
    ],
)
def test_who_does_not_wait_fails_only_when_every_target_has_ended(
    targets: tuple[TargetRow, ...], expected: int
) -> None:
    assert exit_code(targets, waits=False) == expected


def all_errors(root: type[errors.LockstepError]) -> list[type[errors.LockstepError]]:
    return [root, *chain.from_iterable(all_errors(child) for child in root.__subclasses__())]


def test_every_error_has_its_exit_code() -> None:
    special = {"UsageError": 2, "ConflictError": 1, "UnknownNameError": 5, "NotLoggedInError": 4, "UnavailableError": 6}
    own = [kind for kind in all_errors(errors.LockstepError) if kind.__module__ == errors.__name__]
    assert {kind.__name__: error_exit_code(kind("x")) for kind in own} == {
        kind.__name__: special.get(kind.__name__, 1) for kind in own
    }


# --- tags -----------------------------------------------------------------------------------------------------------


def tagged(terminal: str, name: str, *tags: str) -> DeviceRow:
    return DeviceRow(terminal=terminal, name=name, online=True, device=DeviceInfo(model="Any"), tags=tags)


def test_a_tag_means_every_other_device_that_has_it_each_once() -> None:
    devices = (tagged("t-1", "A", "Hall"), tagged("t-2", "B", "hall", "wall"), tagged("t-3", "C", "wall"))
    assert choose_targets(("tag:hall,tag:WALL",), devices, "t-1").targets == ("t-2", "t-3")
    assert choose_targets(("tag:hall", "C"), devices).targets == ("t-1", "t-2", "t-3")


@pytest.mark.parametrize("given", ["tag:hall", "TAG:hall", "tag:hall,tag:hall", "C,tag:hall"])
def test_no_device_takes_the_place_of_a_tag_by_its_name(given: str) -> None:
    devices = (tagged("t-1", given), tagged("t-2", "B", "hall"), tagged("t-3", "C", "hall"))
    assert set(choose_targets((given,), devices).targets) == {"t-2", "t-3"}
    with pytest.raises(errors.UsageError, match="is a tag, not a device"):
        choose_device("tag:hall", devices)
    assert choose_device("t-1", devices).name == given


def test_a_tag_that_no_other_device_has_is_an_error() -> None:
    devices = (tagged("t-1", "A", "hall"), tagged("t-2", "B"))
    with pytest.raises(errors.UnknownNameError, match=r"Did you mean tag:hall\?"):
        choose_targets(("tag:hal",), devices)
    with pytest.raises(errors.UsageError, match="Only this device has the tag"):
        choose_targets(("tag:hall",), devices, "t-1")
