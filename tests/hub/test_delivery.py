"""The room for frames: bounded over all sockets, handed on in turn, never lost."""

import asyncio

from hub.delivery import FrameRoom


def test_no_more_frames_than_there_is_room_for() -> None:
    room = FrameRoom(2)
    wake = asyncio.Event()
    assert room.take(wake)
    assert room.take(wake)
    assert not room.take(wake)
    assert not wake.is_set()


def test_who_waits_longest_is_woken_when_a_frame_is_on_its_way() -> None:
    room = FrameRoom(1)
    holder, first, second = asyncio.Event(), asyncio.Event(), asyncio.Event()
    assert room.take(holder)
    assert not room.take(first)
    assert not room.take(second)
    room.give_back()
    assert first.is_set()
    assert not second.is_set()


def test_a_turn_that_is_not_used_goes_to_the_next() -> None:
    room = FrameRoom(1)
    holder, first, second = asyncio.Event(), asyncio.Event(), asyncio.Event()
    assert room.take(holder)
    assert not room.take(first)
    assert not room.take(second)
    room.give_back()
    room.leave(first)  # it has woken, and has a control message to send first
    assert second.is_set()
    assert room.take(second)


def test_one_that_wakes_for_another_reason_loses_its_place_and_takes_no_room() -> None:
    room = FrameRoom(1)
    holder, first, second = asyncio.Event(), asyncio.Event(), asyncio.Event()
    assert room.take(holder)
    assert not room.take(first)
    assert not room.take(second)
    room.leave(first)
    assert not second.is_set(), "there is no room yet"
    room.give_back()
    assert second.is_set()
