"""Slow, frozen and half-open peers over real sockets: they are cut in bounded time and cost nobody else."""

import asyncio
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from protocol import limits, messages
from protocol.life import DEADLINES, State
from tests.chaos.storm import storm
from tests.harness.fleets import until
from tests.harness.hubs import PASSWORD, RunningHub, running_hub
from tests.harness.installers import make_installer
from tests.harness.proxy import SlowProxy
from tests.harness.raw import RawTerminal, raw_terminal

TERMINAL = """
import asyncio, sys
from tests.harness.raw import raw_terminal

class Hub:
    url = sys.argv[1]

async def main():
    async with raw_terminal(Hub()) as raw:
        welcome = await raw.enrol(sys.argv[2], password=sys.argv[3])
        print(welcome.terminal, flush=True)
        await raw.closed()

asyncio.run(main())
"""


async def begin_transfer(asks: RawTerminal, target: RawTerminal) -> messages.Offer:
    """Ask for a sync to one target; return once the target has wanted all of it. Nothing is acknowledged yet."""
    key = target.terminal
    await asks.say(messages.Sync(id=1, request_key=key, program="large", targets=(target.terminal,)))
    offer = await target.hear(messages.Offer)
    for _ in range(offer.pages):
        await target.hear(messages.ManifestPage)
    await target.say(messages.Want(delivery=offer.delivery, runs=(messages.Run(0, offer.chunks),)))
    return offer


async def take_frames(target: RawTerminal, offer: messages.Offer) -> None:
    """Take and acknowledge frames until the whole object is there."""
    chunks = frames = 0
    while chunks < offer.chunks:
        frame = await target.hear(messages.Chunks)
        chunks, frames = chunks + frame.count, frames + 1
        await target.say(messages.Progress(delivery=offer.delivery, frames=frames, done=0))


async def gone(hub: RunningHub, terminal: str, within_seconds: float) -> float:
    """Wait until the hub has no socket of this terminal; return the seconds."""
    began = time.monotonic()
    await until(lambda: hub.hub.presence.socket_of(terminal) is None, within_seconds=within_seconds)
    return time.monotonic() - began


async def prepared(hub: RunningHub, folder: Path, size: int) -> None:
    await hub.add_account("ada")
    await hub.publish(make_installer(folder, "deb", "large", size=size))


async def test_a_process_that_is_frozen_is_found_dead_when_it_does_not_answer_a_ping(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "PING_EVERY_SECONDS", 0.5)
    monkeypatch.setattr(limits, "HEARD_WITHIN_SECONDS", 0.4)
    async with running_hub(tmp_path) as hub:
        await hub.add_account("ada")
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", TERMINAL, hub.url, "ada", PASSWORD, stdout=asyncio.subprocess.PIPE
        )
        try:
            assert process.stdout is not None
            async with asyncio.timeout(20):
                terminal = (await process.stdout.readline()).decode().strip()
            number = hub.socket_of(terminal).number
            with pytest.raises(TimeoutError):  # it answers pings, so it stays
                await gone(hub, terminal, 1.5)
            assert hub.socket_of(terminal).number == number
            os.kill(process.pid, signal.SIGSTOP)
            assert await gone(hub, terminal, 10) < 4
        finally:
            process.kill()
            await process.communicate()


@pytest.mark.parametrize("how", ["frozen", "swallowed"])
async def test_a_terminal_that_lets_frames_lie_is_cut_and_another_is_served_meanwhile(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_hub(tmp_path) as plain:
        await prepared(plain, tmp_path, 20_000_000)
        async with raw_terminal(plain) as first, raw_terminal(plain) as other:
            await first.enrol("ada", name="Far")
            await other.enrol("ada", name="Near")
    async with SlowProxy() as proxy, running_hub(tmp_path, names=(proxy.name,)) as hub:
        proxy.target_port = hub.server.port
        async with (
            raw_terminal(hub, like=other) as asks,
            raw_terminal(proxy, like=first) as target,
        ):
            await asks.login()
            await target.login()
            await begin_transfer(asks, target)
            await target.hear(messages.Chunks)
            monkeypatch.setattr(limits, "SEND_SECONDS", 1.0)
            link = proxy.open_connections()[0]
            if how == "frozen":
                link.freeze()
            else:
                link.swallow()
            cut = asyncio.create_task(gone(hub, target.terminal, 20))
            async with asyncio.timeout(20):
                await take_frames(asks, await begin_transfer(asks, asks))
                assert 0.5 < await cut < 10
            link.cut()


async def test_a_slow_terminal_holds_little_of_the_room_and_is_not_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "FRAME_SECONDS", 0.25)
    async with running_hub(tmp_path) as plain:
        await prepared(plain, tmp_path, 3_000_000)
        async with raw_terminal(plain) as first, raw_terminal(plain) as other:
            await first.enrol("ada", name="Far")
            await other.enrol("ada", name="Near")
    async with (
        SlowProxy(down_bytes_per_second=125_000, buffer_bytes=4_096) as proxy,
        running_hub(tmp_path, names=(proxy.name,)) as hub,
    ):
        proxy.target_port = hub.server.port
        async with raw_terminal(hub, like=other) as asks, raw_terminal(proxy, like=first) as target:
            await asks.login(receives=False)
            await target.login()
            offer = await begin_transfer(asks, target)
            sizes = []
            for frames in range(1, 12):
                frame = await target.hear(messages.Chunks)
                sizes.append(len(frame.data))
                await target.say(messages.Progress(delivery=offer.delivery, frames=frames, done=0))
            assert max(sizes) <= limits.FRAME_FIRST_BYTES
            assert max(sizes[7:]) <= 2 * limits.FRAME_SECONDS * 125_000, "a link shared with tests is not exact"


async def test_more_transfers_than_may_run_at_once_wait_queued_and_come_in_turn(tmp_path: Path) -> None:
    async with running_hub(tmp_path, transfers_at_once=1) as hub:
        await prepared(hub, tmp_path, 300_000)
        async with raw_terminal(hub) as asks, raw_terminal(hub) as one, raw_terminal(hub) as two:
            await asks.enrol("ada", name="Asks")
            await one.enrol("ada", name="One")
            await two.enrol("ada", name="Two")
            async with raw_terminal(hub, like=one) as first, raw_terminal(hub, like=two) as second:
                await first.login()
                await second.login()
                offer = await begin_transfer(asks, first)
                await asks.say(messages.Sync(id=2, request_key="2", program="large", targets=(second.terminal,)))
                await asks.hear(messages.SyncAccepted)
                await until(lambda: hub.server._services.transfers.waiting == 1)
                await take_frames(first, offer)
                for state in ("verifying", "installing"):
                    await first.say(messages.State(delivery=offer.delivery, state=state))
                async with asyncio.timeout(10):
                    assert (await second.hear(messages.Offer)).installer.program == "large"


@pytest.mark.parametrize("whose", ["hub", "terminal", "asked"])
async def test_a_bandwidth_limit_holds_and_never_holds_an_answer_back(whose: str, tmp_path: Path) -> None:
    rate, size = 400_000, 700_000
    names = {"hub": "bandwidth_bytes_per_second", "terminal": "terminal_bandwidth_bytes_per_second"}
    async with running_hub(tmp_path, **({names[whose]: rate} if whose in names else {})) as hub:
        await prepared(hub, tmp_path, size)
        async with raw_terminal(hub) as asks, raw_terminal(hub) as enrolled:
            await asks.enrol("ada", name="Asks")
            await enrolled.enrol("ada", name="Target")
            async with raw_terminal(hub, like=enrolled) as target:
                await target.login(inventory=False)
                wish = rate if whose == "asked" else 0
                await target.say(messages.Inventory(programs=(), bytes_per_second=wish))
                offer = await begin_transfer(asks, target)
                began = time.monotonic()
                taking = asyncio.create_task(take_frames(target, offer))
                await asks.say(messages.History(id=9))
                await asks.hear(messages.HistoryResult)
                assert time.monotonic() - began < 1.0
                await taking
                seconds = time.monotonic() - began
    assert size / rate - 0.6 < seconds < 2 * size / rate + 2


@pytest.mark.parametrize("whose", ["bandwidth_bytes_per_second", "terminal_bandwidth_bytes_per_second"])
async def test_a_terminal_fails_no_try_because_the_hub_holds_frames_back(
    whose: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for state in (State.OFFERED, State.DOWNLOADING):
        monkeypatch.setitem(DEADLINES, state, replace(DEADLINES[state], seconds=0.1))
    async with running_hub(tmp_path, **{whose: 160_000}) as hub:  # its object takes more than a second
        await prepared(hub, tmp_path, 200_000)
        async with raw_terminal(hub) as target:
            await target.enrol("ada")
            async with raw_terminal(hub, like=target) as receives:
                await receives.login()
                async with asyncio.timeout(10):
                    offer = await begin_transfer(receives, receives)
                    await take_frames(receives, offer)
                await receives.say(messages.State(delivery=offer.delivery, state="verifying"))
                assert (await receives.hear(messages.Noted)).state == "verifying"


async def test_terminals_come_back_after_their_hub_was_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "RECONNECT_FIRST_SECONDS", 0.1)
    monkeypatch.setattr(limits, "RECONNECT_LARGEST_SECONDS", 1.0)
    result = await storm(tmp_path, accounts=4, each=10)
    assert not result.errors
    assert result.all_seconds < 40
