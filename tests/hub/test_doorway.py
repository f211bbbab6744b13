"""The doorway: room is bounded, fair among addresses, and never taken from whom the hub itself keeps waiting."""

import random

from hypothesis import given
from hypothesis import strategies as st

from hub.doorway import PATIENCE_SECONDS, Arrival, Doorway, share_name

LET_IN = Arrival(is_let_in=True)
TURNED_AWAY = Arrival(is_let_in=False)


def full(room: int, addresses: list[str], at: float = 0.0) -> Doorway:
    doorway = Doorway(room)
    for number in range(room):
        assert doorway.arrive(number, addresses[number % len(addresses)], at + number * 0.001) == LET_IN
    return doorway


def test_whoever_comes_is_let_in_while_there_is_room() -> None:
    assert full(3, ["a"]).count == 3


def test_when_it_is_full_the_fullest_address_gives_up_the_one_that_has_waited_longest() -> None:
    doorway = full(6, ["greedy", "greedy", "b"])
    assert doorway.arrive(9, "c", 0.01) == Arrival(is_let_in=True, makes_way=0)
    assert doorway.count == 6


def test_an_address_that_holds_most_makes_way_for_nobody_else_but_comes_again() -> None:
    assert full(6, ["greedy", "greedy", "b"]).arrive(9, "greedy", 0.01) == TURNED_AWAY


def test_who_has_kept_the_hub_waiting_for_too_long_makes_way_for_its_own_address_too() -> None:
    doorway = full(6, ["greedy"])
    assert doorway.arrive(9, "greedy", PATIENCE_SECONDS) == Arrival(is_let_in=True, makes_way=0)
    assert doorway.arrive(10, "greedy", PATIENCE_SECONDS) == TURNED_AWAY, "the next has waited 1 ms less"


def test_who_is_slow_makes_way_before_a_fuller_address_whose_connections_are_not() -> None:
    doorway = full(6, ["greedy", "greedy", "b"])
    for number in (0, 1, 3, 4):
        doorway.took_a_step(number, 1.0)
    assert doorway.arrive(9, "c", 1.1) == Arrival(is_let_in=True, makes_way=2)


def test_where_all_hold_the_same_whoever_is_let_in_has_time_for_each_step() -> None:
    doorway = full(4, ["a", "b", "c", "d"])
    assert doorway.arrive(9, "e", PATIENCE_SECONDS - 0.001) == TURNED_AWAY
    doorway.took_a_step(0, 0.2)
    assert doorway.arrive(9, "e", PATIENCE_SECONDS + 0.001) == Arrival(is_let_in=True, makes_way=1)


def test_whom_the_hub_keeps_waiting_makes_way_for_nobody_until_it_has_answered() -> None:
    doorway = full(2, ["a"])
    doorway.begin_work(0)
    doorway.begin_work(1)
    assert doorway.arrive(9, "b", 100.0) == TURNED_AWAY
    doorway.took_a_step(1, 100.0)
    assert doorway.arrive(9, "a", 100.0) == TURNED_AWAY, "its clock begins anew with the answer"
    assert doorway.arrive(9, "a", 100.001 + PATIENCE_SECONDS) == Arrival(is_let_in=True, makes_way=1)


def test_leaving_makes_room_and_leaving_twice_changes_nothing() -> None:
    doorway = full(2, ["a"])
    doorway.leave(0)
    doorway.leave(0)
    doorway.leave(77)
    assert doorway.count == 1
    assert doorway.arrive(9, "a", 0.0) == LET_IN
    assert doorway.arrive(10, "a", 0.0) == TURNED_AWAY


def test_of_ipv6_a_whole_network_counts_as_one_address() -> None:
    assert (
        share_name("2001:db8:1:2::1") == share_name("2001:db8:1:2:ffff:ffff:ffff:ffff") != share_name("2001:db8:1:3::1")
    )
    assert share_name("::ffff:192.0.2.7") == share_name("192.0.2.7") == "192.0.2.7"
    assert share_name("fe80::1%eth0") == "fe80::/64"
    assert share_name("?") == "?"


@given(seed=st.integers(0, 2**32), room=st.integers(1, 8))
def test_the_room_is_never_exceeded_and_only_who_is_in_it_makes_way(seed: int, room: int) -> None:
    chance = random.Random(seed)
    doorway, inside, working, now = Doorway(room), set[int](), set[int](), 0.0
    for number in range(120):
        now += chance.random() / 2
        arrival = doorway.arrive(number, chance.choice("abcd"), now)
        if arrival.makes_way is not None:
            assert arrival.makes_way in inside - working
            inside.remove(arrival.makes_way)
        inside |= {number} if arrival.is_let_in else set()
        assert arrival.is_let_in or len(inside) == room
        for one in chance.sample(sorted(inside), min(2, len(inside))):
            match chance.choice(("begin", "end", "leave")):
                case "begin":
                    doorway.begin_work(one)
                    working.add(one)
                case "end":
                    doorway.took_a_step(one, now)
                    working.discard(one)
                case _:
                    doorway.leave(one)
                    inside.discard(one)
                    working.discard(one)
        assert doorway.count == len(inside) <= room
