"""`python -m tests.chaos.bitflips`: flip one random bit in each of many stored chunks, and ask a hub for them.

Each flip is asked for over a real socket, by a terminal that compares what comes with what was stored before anything
of the product looks at it. Half of the bits flip before the hub opens the pack, half while it has it open. A bit that
is noticed has to end the transfer, and set the pack aside and name it in the log; publishing the file again mends it.
A few bits of a compressed chunk change nothing of what it unpacks to: those are no damage, and another bit is chosen.
"""

import asyncio
import logging
import os
import random
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from protocol import messages
from protocol.chunks import Manifest, restore
from protocol.errors import TransferError
from protocol.messages import Run
from tests.chaos.alone import FULL_KILLS, run_alone
from tests.chaos.outcome import Options, Outcome
from tests.harness.hubs import RunningHub, running_hub
from tests.harness.installers import make_installer
from tests.harness.raw import RawTerminal, raw_terminal

FLIPS: Final = 1_000
CHUNKS_ASKED: Final = 8
WAIT_SECONDS: Final = 20.0


@dataclass(frozen=True, slots=True)
class Stored:
    """A published object: its file, and its pack as it was stored."""

    program: str
    file: Path
    pack: Path
    data: bytes
    manifest: Manifest

    def stored(self, first: int, count: int) -> bytes:
        """Return the right stored bytes of a run."""
        offsets = self.manifest.stored_offsets
        return self.data[offsets[first] : offsets[first + count]]


async def publish(hub: RunningHub, folder: Path, number: int) -> Stored:
    """Publish an installer of about 25 chunks: random bytes, or every fourth time text, which is stored compressed."""
    is_text = number % 4 == 3
    program = f"app{number}"
    file = make_installer(
        folder,
        "deb",
        program,
        size=1_500_000 if is_text else 400_000,
        seed=number,
        content="text" if is_text else "random",
    )
    digest = bytes.fromhex((await hub.publish(file)).digest)
    pack = hub.folder / "objects" / digest.hex()[:2] / f"{digest.hex()}.pack"
    return Stored(program, file, pack, pack.read_bytes(), hub.hub.objects.open(digest).manifest)


@dataclass(frozen=True, slots=True)
class Flip:
    """One bit of one stored chunk."""

    chunk: int
    byte: int
    mask: int

    @classmethod
    def of(cls, stored: Stored, chunk: int, chance: random.Random) -> "Flip":
        """Choose a bit of `chunk` whose change damages it."""
        offsets, entry = stored.manifest.stored_offsets, stored.manifest[chunk]
        while True:
            byte, mask = chance.randrange(offsets[chunk], offsets[chunk + 1]), 1 << chance.randrange(8)
            changed = bytearray(stored.stored(chunk, 1))
            changed[byte - offsets[chunk]] ^= mask
            try:
                restore(bytes(changed), entry)
            except TransferError:
                return cls(chunk, byte, mask)

    def change(self, stored: Stored) -> None:
        """Flip it in the file itself."""
        _put(stored.pack, self.byte, bytes([stored.data[self.byte] ^ self.mask]))


def _put(file: Path, offset: int, data: bytes) -> None:
    descriptor = os.open(file, os.O_WRONLY)
    os.pwrite(descriptor, data, offset)
    os.close(descriptor)


class Asker:
    """A terminal that asks for programs and takes frames without believing them."""

    def __init__(self, raw: RawTerminal) -> None:
        self._raw = raw
        self._number = 0

    async def fetch(self, stored: Stored, flip: Flip, *, is_open: bool) -> bytes | None:
        """Ask for a run of chunks with the flipped one in it; return the bytes of that one if it came.

        The bit flips while the hub has the pack open (`is_open`) or before it looks at it.
        """
        raw = self._raw
        if not is_open:
            flip.change(stored)
        self._number += 1
        await raw.say(
            messages.Sync(
                id=self._number, request_key=f"k{self._number}", program=stored.program, targets=(raw.terminal,)
            )
        )
        sync = (await raw.hear(messages.SyncAccepted)).sync
        offer = await raw.hear(messages.Offer)
        for _ in range(offer.pages):
            await raw.hear(messages.ManifestPage)
        if is_open:
            flip.change(stored)
        first = max(0, flip.chunk - flip.byte % CHUNKS_ASKED)
        count = min(CHUNKS_ASKED, stored.manifest.count - first)
        await raw.say(messages.Want(delivery=offer.delivery, runs=(Run(first, count),)))
        came = await self._take(stored, offer.delivery, flip, first, count)
        await raw.say(messages.Cancel(id=self._number, sync=sync))  # or the next one would join it and wait
        await raw.hear(messages.CancelResult)
        return came

    async def _take(self, stored: Stored, delivery: str, flip: Flip, first: int, count: int) -> bytes | None:
        came: bytes | None = None
        frames, next_chunk = 0, first
        while next_chunk < first + count:
            message = await self._raw.hear_any()
            if isinstance(message, messages.Withdraw) and message.delivery == delivery:
                return came
            if isinstance(message, messages.Chunks):
                frames, next_chunk = frames + 1, message.first + message.count
                if message.first <= flip.chunk < next_chunk:
                    offsets = stored.manifest.stored_offsets
                    start = offsets[flip.chunk] - offsets[message.first]
                    came = message.data[start : start + offsets[flip.chunk + 1] - offsets[flip.chunk]]
                elif message.data != stored.stored(message.first, message.count):
                    raise AssertionError(f"other chunks of {stored.program} came wrong")
                await self._raw.say(messages.Progress(delivery=delivery, frames=frames, done=0))
        await self._raw.say(messages.State(delivery=delivery, state="failed", reason="runner-failed"))
        return came


@contextmanager
def _log() -> Iterator[list[str]]:
    """Give what the hub logs as errors."""
    lines: list[str] = []
    handler = logging.Handler(logging.ERROR)
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("lockstep.hub")
    logger.addHandler(handler)
    before, logger.propagate = logger.propagate, False
    try:
        yield lines
    finally:
        logger.removeHandler(handler)
        logger.propagate = before


async def flip_bits(folder: Path, *, seed: int, flips: int) -> tuple[Counter[str], list[str]]:
    """Flip `flips` bits, each in another chunk; return the counts and what was wrong."""
    chance = random.Random(seed)
    counts: Counter[str] = Counter()
    wrong: list[str] = []
    async with running_hub(folder) as hub, raw_terminal(hub) as first:
        await hub.add_account("ada")
        await first.enrol("ada")
        async with raw_terminal(hub, like=first) as raw:
            await raw.login()
            asker = Asker(raw)
            number = 0
            with _log() as lines:
                while counts["flips"] < flips:
                    stored = await publish(hub, folder, number)
                    number += 1
                    for chunk in range(min(stored.manifest.count, flips - counts["flips"])):
                        lines.clear()
                        flip = Flip.of(stored, chunk, chance)
                        async with asyncio.timeout(WAIT_SECONDS):
                            came = await asker.fetch(stored, flip, is_open=counts["flips"] % 2 == 1)
                        counts["flips"] += 1
                        wrong += await _judge(hub, stored, flip, came, lines, counts)
    return counts, wrong


async def _judge(
    hub: RunningHub, stored: Stored, flip: Flip, came: bytes | None, lines: list[str], counts: Counter[str]
) -> list[str]:
    """Count how a flip ended, and mend the pack as an operator would."""
    where = f"{stored.program}, chunk {flip.chunk}, byte {flip.byte}, mask {flip.mask:#x}"
    if came is not None:
        _put(stored.pack, flip.byte, stored.data[flip.byte : flip.byte + 1])
        if came == stored.stored(flip.chunk, 1):
            return [f"{where}: the right bytes came of a wrong pack"]
        counts["served"] += 1
        return [f"{where}: wrong bytes were served"]
    counts["detected"] += 1
    aside = stored.pack.with_name(f"{stored.pack.name}.damaged")
    is_named = any(stored.pack.stem in line for line in lines)
    wrong = [] if aside.exists() and not stored.pack.exists() else [f"{where}: the pack was not set aside"]
    wrong += [] if is_named else [f"{where}: the log does not name it: {lines}"]
    await hub.publish(stored.file)
    if stored.pack.read_bytes() != stored.data:
        wrong.append(f"{where}: publishing again did not mend it")
    return wrong


def run(options: Options) -> Outcome:
    """Flip a bit in each of 1,000 chunks, or as many as the size of the run asks for."""
    flips = max(50, FLIPS * options.kills // FULL_KILLS)
    counts, wrong = asyncio.run(flip_bits(options.folder, seed=options.seed, flips=flips))
    for sentence in wrong:
        print(f"  {sentence}", flush=True)
    line = f"flips={counts['flips']} detected={counts['detected']} served={counts['served']} wrong={len(wrong)}"
    return Outcome(passed=not wrong, line=line, wrong=len(wrong))


if __name__ == "__main__":
    sys.exit(run_alone(run, __doc__))
