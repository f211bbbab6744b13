"""The clone alarm: one key in two places is noticed, a device that roams, sleeps or restarts is not taken for two."""

from hypothesis import given
from hypothesis import strategies as st

from hub.clones import TERMINALS_REMEMBERED, WINDOW_SECONDS, Clones


def alarms(*logins: tuple[bytes, str, bool], every_seconds: float = 10.0) -> list[str]:
    clones = Clones()
    return [
        clones.login("t-1", run, host, replaced=replaced, now=number * every_seconds)
        for number, (run, host, replaced) in enumerate(logins)
    ]


def test_a_run_that_was_replaced_and_comes_back_is_a_second_copy() -> None:
    assert alarms((b"1", "home", False), (b"2", "away", True), (b"1", "home", True)) == ["", "", "away"]
    assert alarms((b"1", "home", False), (b"2", "home", True), (b"1", "home", False)) == ["", "", "home"]


def test_copies_that_something_starts_again_and_again_show_by_their_addresses() -> None:
    assert alarms((b"1", "home", False), (b"2", "away", True), (b"3", "home", True)) == ["", "", "away"]


def test_a_copy_that_hides_its_run_shows_all_the_same() -> None:
    assert alarms((b"1", "home", False), (b"", "away", True), (b"1", "home", True)) == ["", "", "away"]


def test_a_device_that_roams_with_one_run_is_one() -> None:
    hosts = ["home", "office", "home", "train", "office", "home"]
    assert not any(alarms(*((b"1", host, True) for host in hosts)))


def test_a_device_that_restarts_where_its_socket_was_gone_is_one() -> None:
    runs = [(bytes([number]), host, False) for number, host in enumerate(["home", "office", "home", "office"])]
    assert not any(alarms(*runs))


def test_a_command_between_two_connections_of_the_agent_is_no_copy() -> None:
    assert not any(alarms((b"1", "home", False), (b"2", "home", False), (b"1", "home", False)))


def test_a_service_that_is_restarted_in_one_place_is_one() -> None:
    assert not any(alarms(*((bytes([number]), "home", True) for number in range(20))))


def test_older_terminals_that_tell_no_run_raise_nothing() -> None:
    assert not any(alarms(*((b"", host, True) for host in ["home", "away"] * 5)))


def test_what_lies_more_than_an_hour_apart_is_forgotten() -> None:
    copies = ((b"1", "home", False), (b"2", "away", True), (b"1", "home", True))
    assert not any(alarms(*copies, every_seconds=WINDOW_SECONDS))


def test_it_remembers_so_many_terminals_and_no_more() -> None:
    clones = Clones()
    for number in range(TERMINALS_REMEMBERED + 50):
        clones.login(f"t-{number}", b"1", "home", replaced=False, now=0.0)
    assert len(clones._logins) == TERMINALS_REMEMBERED


@given(st.lists(st.tuples(st.just(b"1"), st.sampled_from(["a", "b", "c"]), st.booleans()), max_size=30))
def test_one_run_alone_never_raises_an_alarm(logins: list[tuple[bytes, str, bool]]) -> None:
    assert not any(alarms(*logins))
