"""Room handed on in turn and never lost; a bandwidth limit that holds over any stretch of time."""

import random
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hub.fairness import Bucket, FairRoom, SharedBandwidth


class Calls:
    """Who was woken, in order."""

    def __init__(self) -> None:
        self.woken: list[str] = []

    def of(self, name: str) -> Callable[[], None]:
        return lambda: self.woken.append(name)


def take(room: FairRoom, calls: Calls, holder: str, size: int = 1) -> bool:
    """A holder's account is the first letter of its name."""
    return room.take(holder[0], holder, size, calls.of(holder))


def test_one_account_holds_at_most_about_what_is_free_and_others_find_room() -> None:
    room, calls = FairRoom(100), Calls()
    got = [take(room, calls, f"a{number}") for number in range(300)]
    assert sum(got) == 50
    assert take(room, calls, "b1", 30), "three hundred of another account have not taken all"
    assert calls.woken == []


def test_who_finds_no_room_is_woken_in_turn_account_by_account() -> None:
    room, calls = FairRoom(1), Calls()
    assert take(room, calls, "a0")
    assert [take(room, calls, name) for name in ("a1", "a2", "b1", "c1", "b2")] == [False] * 5
    order = ["a0"]
    while room.waiting:
        room.leave(order[-1][0], order[-1])
        order.append(calls.woken[-1])
        assert take(room, calls, order[-1]), "who was woken has its room"
    assert order == ["a0", "b1", "c1", "a1", "b2", "a2"]


def test_a_turn_that_is_not_used_goes_to_the_next() -> None:
    room, calls = FairRoom(1), Calls()
    assert take(room, calls, "a0")
    assert not take(room, calls, "a1")
    assert not take(room, calls, "b1")
    room.leave("a", "a0")
    assert calls.woken == ["b1"]
    room.leave("b", "b1")  # it has woken, and has a control message to send first
    assert calls.woken == ["b1", "a1"]


def test_asking_again_keeps_the_place_in_line() -> None:
    room, calls = FairRoom(1), Calls()
    assert take(room, calls, "a0")
    for name in ("a1", "a2", "a1"):
        assert not take(room, calls, name)
    room.leave("a", "a0")
    assert calls.woken == ["a1"]


def test_a_large_wish_is_not_passed_by_small_ones_for_ever() -> None:
    room, calls = FairRoom(10), Calls()
    assert take(room, calls, "a1", 4)
    assert take(room, calls, "b1", 3)
    assert not take(room, calls, "c1", 10)
    assert not take(room, calls, "d1", 1), "there would be room, but it came later"
    room.leave("a", "a1")
    assert calls.woken == []
    room.leave("b", "b1")
    assert calls.woken == ["c1"]


def test_a_wish_larger_than_all_the_room_gets_all_of_it() -> None:
    room, calls = FairRoom(10), Calls()
    assert take(room, calls, "a1", 99)
    room.leave("a", "a1")
    assert room.free == 10


@given(st.integers(0, 2**32), st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_whatever_comes_and_goes_no_room_is_lost_or_given_twice_and_everyone_is_served(seed: int, size: int) -> None:
    chance, room, calls = random.Random(seed), FairRoom(size), Calls()
    holding: dict[str, int] = {}
    wanting: dict[str, int] = {}

    def note_woken() -> None:
        for name in calls.woken:
            holding[name] = wanting.pop(name)
        calls.woken.clear()

    for _ in range(300):
        name = f"{chance.choice('abc')}{chance.randrange(6)}"
        if name in holding or (name in wanting and chance.random() < 0.3):
            holding.pop(name, None)
            wanting.pop(name, None)
            room.leave(name[0], name)
        elif name not in wanting:
            wanting[name] = min(chance.randint(1, 8), size)
            if take(room, calls, name, wanting[name]):
                holding[name] = wanting.pop(name)
        note_woken()
        assert sum(holding.values()) + room.free == size
        assert room.free >= 0
        assert room.waiting == len(wanting)
        assert holding or not wanting, "with nobody holding anything, somebody must be served"
    while holding:
        name = min(holding)
        del holding[name]
        room.leave(name[0], name)
        note_woken()
    assert not wanting
    assert room.free == size


@given(
    st.integers(1_000, 10**9),
    st.lists(st.tuples(st.floats(0, 3), st.integers(1, 300_000)), min_size=1, max_size=60),
)
def test_a_bucket_lets_no_more_pass_than_its_rate_and_one_burst_and_one_message(
    rate: int, tries: list[tuple[float, int]]
) -> None:
    bucket, now = Bucket(rate), 100.0
    passed: list[tuple[float, int]] = []
    for pause, size in tries:
        now = bucket.ready_at(now + pause)
        bucket.passed(now, size)
        passed.append((now, size))
    for first in range(len(passed)):
        sent = 0
        for at, size in passed[first:]:
            assert sent <= rate * (at - passed[first][0] + Bucket.BURST_SECONDS) * 1.0001 + 1
            sent += size


@given(st.integers(1_000, 10**7), st.lists(st.integers(1, 300_000), min_size=20, max_size=60))
def test_a_bucket_that_always_has_something_to_pass_uses_its_whole_rate(rate: int, sizes: list[int]) -> None:
    bucket, now = Bucket(rate), 5.0
    for size in sizes:
        now = bucket.ready_at(now)
        bucket.passed(now, size)
    assert bucket.ready_at(now) - 5.0 <= sum(sizes) / rate + 1e-6


@pytest.mark.parametrize("sockets", [{"a": 1, "b": 1}, {"a": 30, "b": 1}, {"a": 5, "b": 3, "c": 1}])
def test_shared_bandwidth_is_shared_evenly_among_accounts_however_many_sockets_they_have(
    sockets: dict[str, int],
) -> None:
    shared, calls = SharedBandwidth(100_000), Calls()
    names = [f"{account}{number}" for account, count in sockets.items() for number in range(count)]
    sent: Counter[str] = Counter()
    ready = {name: shared.ready_at(name[0], name, 0.0, calls.of(name)) for name in names}
    for _ in range(600):
        [name] = [name for name, at in ready.items() if at is not None]
        now = ready[name]
        assert now is not None
        calls.woken.clear()
        shared.passed(name[0], name, now, 1_000)
        sent[name] += 1
        ready[name] = shared.ready_at(name[0], name, now, calls.of(name))
        for woken in calls.woken:
            ready[woken] = shared.ready_at(woken[0], woken, now, calls.of(woken))
    by_account = Counter({account: sum(sent[name] for name in names if name[0] == account) for account in sockets})
    assert max(by_account.values()) - min(by_account.values()) <= 1
    for account, count in sockets.items():
        of_account = [sent[f"{account}{number}"] for number in range(count)]
        assert max(of_account) - min(of_account) <= 1
