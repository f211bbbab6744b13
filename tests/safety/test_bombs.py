"""Message bombs against a real hub process: its memory stays, its loop goes on, and another terminal is served.

What is measured: how much larger the process is after a bomb than before it (VmRSS, proc(5); medians, after a round to
warm up), how long the loop's thread worked without coming round (`probed_hub.py`), and how long a second terminal waits
for an answer meanwhile. `BOMB_MESSAGES` is how many messages a flood has; `make test-safety` pours a million.
"""

import asyncio
import hashlib
import os
import socket
import statistics
import time
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from protocol import chunks, limits, messages
from protocol.errors import TransferError
from tests.harness.hubs import PASSWORD, HubProcess, running_hub
from tests.harness.raw import RawTerminal, raw_terminal
from tests.safety import bombs, ledger

GROWTH_BYTES = 8 * limits.MIB
STALL_SECONDS = 0.05
FLOOD_MESSAGES = int(os.environ.get("BOMB_MESSAGES", "5000"))
ROUNDS = 1 if FLOOD_MESSAGES < 1_000_000 else 5


class Range:
    """A hub process under watch, an attacker's account and a bystander's."""

    def __init__(self, hub: HubProcess, stalls: Path, attacker: RawTerminal, bystander: RawTerminal) -> None:
        self.hub = hub
        self.stalls = stalls
        self.attacker = attacker
        self.bystander = bystander
        self.waits: list[float] = []
        self._asked = 0

    async def pour(
        self, data: Iterator[bytes], *, logged_in: bool = True, reads: bool = True, seconds: float = bombs.POUR_SECONDS
    ) -> bombs.Poured:
        """Pour into a socket of its own while the bystander asks again and again."""
        async with raw_terminal(self.hub, like=self.attacker) as raw:
            if logged_in:
                await raw.login(receives=False)
            raw.socket.transport.pause_reading()
            own = socket.socket(fileno=os.dup(raw.socket.transport.get_extra_info("socket").fileno()))
            try:
                pouring = asyncio.create_task(asyncio.to_thread(bombs.pour, own, data, reads=reads, seconds=seconds))
                while not pouring.done():
                    await self.ask()
                return await pouring
            finally:
                own.close()
                raw.socket.transport.abort()

    async def ask(self) -> None:
        """The bystander asks for the history, and waits for the answer."""
        self._asked += 1
        began = time.monotonic()
        async with asyncio.timeout(30):
            await self.bystander.say(messages.History(id=self._asked))
            await self.bystander.hear(messages.HistoryResult)
        self.waits.append(time.monotonic() - began)

    async def growth(self, *poured: tuple[Iterator[bytes], bool], seconds: float = bombs.POUR_SECONDS) -> int:
        """How much larger the process is when these have been poured, each with whether it was logged in."""
        await self.ask()
        before = self.hub.memory_bytes()
        for data, logged_in in poured:
            assert (await self.pour(data, logged_in=logged_in, seconds=seconds)).has_ended, "the hub reads on"
        await self.ask()
        return self.hub.memory_bytes() - before

    def worst_stall(self, since: float) -> float:
        """The longest that the loop's thread worked without coming round."""
        lines = [line.split() for line in self.stalls.read_text().splitlines() if line.count(" ") == 1]
        return max((float(worked) for at, worked in lines if float(at) >= since), default=0.0)


@asynccontextmanager
async def under_watch(tmp_path: Path, how: str = "paced") -> AsyncIterator[Range]:
    """Start the hub process; both terminals have enrolled, the bystander is connected."""
    async with running_hub(tmp_path) as own:
        for name in ("eve", "ada"):
            await own.hub.accounts.add(name, PASSWORD, may_publish=True)
        async with raw_terminal(own) as attacker, raw_terminal(own) as enrolled:
            await attacker.enrol("eve")
            await enrolled.enrol("ada")
        port = own.server.port
    stalls = tmp_path / "stalls"
    stalls.touch()
    hub = HubProcess(own.folder, module=("tests.safety.probed_hub", str(stalls), how))
    hub._port = port  # what both signed when they enrolled
    async with hub, raw_terminal(hub, like=enrolled) as bystander:
        await bystander.login(receives=False)
        yield Range(hub, stalls, attacker, bystander)


def framed(data: bytes) -> Iterator[bytes]:
    """One message as a client sends it."""
    return iter((bombs.frame(data),))


async def test_no_message_however_wide_or_deep_or_lying_fills_the_memory_or_stalls_the_loop(tmp_path: Path) -> None:
    async with under_watch(tmp_path) as range_:
        for data in (
            *bombs.MESSAGES.values(),
            *bombs.MESSAGES.values(),
        ):  # to warm up: after two rounds it is as it stays
            await range_.growth((framed(data), True), (framed(data), False))
        grown: dict[str, list[int]] = {name: [] for name in bombs.MESSAGES}
        began, all_before = time.monotonic(), range_.hub.memory_bytes()
        for _ in range(ROUNDS):
            for name, data in bombs.MESSAGES.items():
                grown[name].append(await range_.growth((framed(data), True), (framed(data), False)))
        all_grown = range_.hub.memory_bytes() - all_before
        stall = range_.worst_stall(began)
    ledger.count("bombs", "bombs", len(bombs.MESSAGES) * 2)
    ledger.count("bombs", "messages", len(bombs.MESSAGES) * 2 * (ROUNDS + 2))
    note("messages", max(statistics.median(each) for each in grown.values()), stall, range_.waits)
    assert {name: each for name, each in grown.items() if statistics.median(each) >= GROWTH_BYTES} == {}
    assert all_grown < GROWTH_BYTES
    assert stall < STALL_SECONDS


@pytest.mark.parametrize("logged_in", [True, False], ids=["logged in", "before login"])
async def test_no_flood_fills_the_memory_or_stalls_the_loop(logged_in: bool, tmp_path: Path) -> None:
    grown: dict[str, int] = {}
    stalls: dict[str, float] = {}
    async with under_watch(tmp_path) as range_:
        for flood in bombs.FLOODS.values():  # to warm up
            await range_.growth((flood(2_000), logged_in))
        for name, flood in bombs.FLOODS.items():
            began = time.monotonic()
            grown[name] = await range_.growth((flood(FLOOD_MESSAGES), logged_in), seconds=FLOOD_SECONDS)
            stalls[name] = range_.worst_stall(began)
            ledger.count("bombs", "bombs")
            ledger.count("bombs", "messages", FLOOD_MESSAGES)
    note("floods", max(grown.values()), max(stalls.values()), range_.waits)
    assert {name: size for name, size in grown.items() if size >= GROWTH_BYTES} == {}
    assert {name: stall for name, stall in stalls.items() if stall >= STALL_SECONDS} == {}


FLOOD_SECONDS = 20.0 if FLOOD_MESSAGES < 1_000_000 else 180.0


async def test_answers_that_nobody_reads_do_not_pile_up(tmp_path: Path) -> None:
    async with under_watch(tmp_path) as range_:
        pings = bombs.pieces(bombs.frame(bytes(125), bombs.PING), 400_000)
        await range_.ask()
        before = range_.hub.memory_bytes()
        poured = await range_.pour(pings, reads=False)
        grown = range_.hub.memory_bytes() - before
    assert poured.was_cut
    assert grown < GROWTH_BYTES


async def test_the_control_a_hub_that_reads_as_the_library_does_fills_and_stalls(tmp_path: Path) -> None:
    async with under_watch(tmp_path, "unpaced") as range_:
        began, before = time.monotonic(), range_.hub.memory_bytes()
        await range_.pour(framed(bombs.MESSAGES["half a million empty lists"]))
        assert range_.worst_stall(began) > STALL_SECONDS
        began = time.monotonic()
        await range_.pour(bombs.FLOODS["pongs"](200_000))
        assert range_.worst_stall(began) > STALL_SECONDS
        await range_.pour(bombs.pieces(bombs.frame(bytes(125), bombs.PING), 400_000), reads=False, seconds=1.5)
        assert range_.hub.memory_bytes() - before > GROWTH_BYTES


def test_a_block_that_lies_about_its_size_costs_no_more_than_its_entry_says() -> None:
    bomb = bombs.LYING_BLOCK
    for raw_size in (limits.CHUNK_MINIMUM_BYTES, limits.FRAME_BYTES):
        entry = chunks.Entry(hashlib.sha256(b"").digest(), raw_size, len(bomb))
        tracemalloc.start()
        try:
            with pytest.raises(TransferError):
                chunks.restore(bomb, entry)
            assert tracemalloc.get_traced_memory()[1] < limits.MIB
        finally:
            tracemalloc.stop()


async def test_an_upload_of_blocks_that_lie_is_refused_and_fills_nothing(tmp_path: Path) -> None:
    async with under_watch(tmp_path) as range_, raw_terminal(range_.hub, like=range_.attacker) as raw:
        await raw.login(receives=False)
        await range_.ask()
        before = range_.hub.memory_bytes()
        async with asyncio.timeout(30):
            for number in range(8):
                assert (await upload_of(raw, number, bombs.LYING_BLOCK)).reason == "bad-transfer"
        await range_.ask()
        assert range_.hub.memory_bytes() - before < GROWTH_BYTES


async def upload_of(raw: RawTerminal, number: int, stored: bytes) -> messages.Refused:
    """Publish an object whose only chunk is `stored`, which its manifest says is 256 KiB unpacked."""
    stored = stored[:65_000]
    manifest = chunks.Manifest.of([chunks.Entry(hashlib.sha256(b"").digest(), limits.FRAME_BYTES, len(stored))])
    digest = hashlib.sha256(bytes([number])).digest()
    await raw.say(
        messages.Publish(
            id=number + 1, upload=f"u-{number}", file_name="a.deb", object=digest, size=manifest.size, chunks=1,
            stored_size=manifest.stored_size, pages=1, manifest=manifest.digest,
            chunking=chunks.chunking_for(manifest.size),
        )
    )  # fmt: skip
    await raw.hear(messages.PublishAccepted)
    await raw.say(messages.ManifestPage(object=digest, page=0, entries=manifest.data))
    await raw.hear(messages.Want)
    await raw.say(messages.Chunks(object=digest, first=0, count=1, data=stored))
    return await raw.hear(messages.Refused)


def note(what: str, grown: float, stall: float, waits: list[float]) -> None:
    ledger.note_worst(f"bombs, {what}: growth, MiB", grown / limits.MIB)
    ledger.note_worst(f"bombs, {what}: stall of the loop, ms", stall * 1_000)
    ledger.note_worst(f"bombs, {what}: median wait of a bystander, ms", statistics.median(waits) * 1_000)
    ledger.note_worst(f"bombs, {what}: longest wait of a bystander, ms", max(waits) * 1_000)
