"""`python -m tests.safety.probed_hub FILE HOW serve ...`: a hub whose loop is watched; its stalls are lines of FILE.

Each line is when it was seen (s, CLOCK_MONOTONIC) and how long the loop's thread worked since the loop last came round
(s, processor time, so that a busy machine is not taken for a stall). HOW is "paced", or "unpaced" for the control: a
hub that reads as the library does, counts no items and lets a stranger say what it wants.
"""

import asyncio
import sys
import time
from pathlib import Path

from websockets.asyncio.server import ServerConnection

from hub.cli import main
from hub.paced import PacedConnection
from hub.server import HubServer
from protocol import limits

EVERY_SECONDS = 0.002
SHOWN_SECONDS = 0.003


async def watch(file: Path) -> None:
    """Write down each time the loop took long to come round."""
    with file.open("a", buffering=1) as lines:
        worked = time.thread_time()
        while True:
            await asyncio.sleep(EVERY_SECONDS)
            now = time.thread_time()
            if now - worked > SHOWN_SECONDS:
                lines.write(f"{time.monotonic()} {now - worked}\n")
            worked = time.thread_time()


def probe(file: Path) -> None:
    """Have every hub of this process watched."""
    start = HubServer.start
    tasks: list[asyncio.Task[None]] = []

    async def start_watched(self: HubServer) -> None:
        await start(self)
        tasks.append(asyncio.create_task(watch(file)))

    HubServer.start = start_watched  # type: ignore[method-assign]


def unpace() -> None:
    """Take away what this hub has against floods."""
    for name in ("connection_made", "data_received", "eof_received", "connection_lost"):
        setattr(PacedConnection, name, getattr(ServerConnection, name))
    vars(limits)["MESSAGE_TO_HUB_ITEMS"] = 2**62


if __name__ == "__main__":
    probe(Path(sys.argv.pop(1)))
    if sys.argv.pop(1) == "unpaced":
        unpace()
    main()
