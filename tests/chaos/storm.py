"""Storm: thousands of terminals come back after their hub was killed. `python -m tests.chaos.storm --seed N`.

Light terminals (tests.chaos.light) of several accounts, in one process, with the agent's own back-off, at most 512 of
them dialling or logging in at one moment; the hub is a process of its own, killed with SIGKILL and started again at
once. Counted: seconds from the kill until 99 % and 100 % are logged in again, how the tries ended, and errors: what is
neither a lost or refused connection, a 503, nor a login that took too long.
"""

import argparse
import asyncio
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.chaos.light import LightTerminal, allow_files, prepare, settled, share_online
from tests.chaos.outcome import Options, Outcome
from tests.harness.hubs import HubProcess

WITHIN_SECONDS: Final = 240.0
FIRST_AT_ONCE: Final = 128
# More than a hub lets in before their login. All at once would measure how many handshakes one process begins in 5 s.
DIALLING_AT_ONCE: Final = 512


@dataclass(frozen=True, slots=True)
class Result:
    """What was measured: seconds since the kill, tries by how they ended, errors, the hub's memory and time."""

    terminals: int
    restart_seconds: float
    most_seconds: float
    all_seconds: float
    tries: Counter[str]
    errors: tuple[str, ...]
    peak_bytes: int
    cpu_seconds: float

    def __str__(self) -> str:
        return (
            f"{self.terminals} terminals, hub listening again after {self.restart_seconds:.1f} s, 99 % back after "
            f"{self.most_seconds:.1f} s, all after {self.all_seconds:.1f} s, tries {dict(self.tries)}, "
            f"errors={len(self.errors)}, hub: peak {self.peak_bytes / 2**20:.0f} MiB, {self.cpu_seconds:.1f} s of "
            f"processor time"
        )


async def storm(folder: Path, accounts: int, each: int) -> Result:
    """Connect them all, kill the hub, start it again, and wait until they are all back."""
    terminals = [one for account in await prepare(folder, accounts, each, {}) for one in account]
    allow_files(len(terminals))
    gate = asyncio.Semaphore(FIRST_AT_ONCE)
    async with HubProcess(folder / "hub") as hub:
        first = [asyncio.create_task(one.stay(hub.url, gate=gate)) for one in terminals]
        try:
            await share_online(terminals, len(terminals), WITHIN_SECONDS)
            return await _killed(hub, terminals, gate)
        finally:
            await settled(first)


async def _killed(hub: HubProcess, terminals: list[LightTerminal], gate: asyncio.Semaphore) -> Result:
    for _ in range(DIALLING_AT_ONCE - FIRST_AT_ONCE):
        gate.release()
    for one in terminals:
        one.tries.clear()
    began = time.monotonic()
    await hub.kill()
    while any(one.online.is_set() for one in terminals):  # noqa: ASYNC110 - of thousands, any
        await asyncio.sleep(0.01)
    await hub.start()
    restart_seconds = time.monotonic() - began
    await share_online(terminals, -(-len(terminals) * 99 // 100), WITHIN_SECONDS)
    most_seconds = time.monotonic() - began
    await share_online(terminals, len(terminals), WITHIN_SECONDS)
    tries = sum((one.tries for one in terminals), Counter())
    errors = tuple(error for one in terminals for error in one.errors)
    return Result(
        len(terminals), restart_seconds, most_seconds, time.monotonic() - began, tries, errors,
        hub.largest_memory_bytes(), hub.cpu_seconds(),
    )  # fmt: skip


def run(options: Options) -> Outcome:
    """Run it as a part of the chaos run: 5,000 terminals, fewer when fewer kills are asked for."""
    each = max(4, min(100, options.kills // 17))
    result = asyncio.run(storm(options.folder, 50, each))
    return Outcome(passed=not result.errors, line=str(result), kills=1, lost=len(result.errors))


def main(arguments: list[str]) -> int:
    """Print what was measured; 1 when there was an error or somebody did not come back."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.storm")
    parser.add_argument("--seed", type=int, default=1, help="named in the output; this part draws nothing from it")
    parser.add_argument("--accounts", type=int, default=50)
    parser.add_argument("--each", type=int, default=100, help="terminals of an account")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="lockstep-storm-") as folder:
        result = asyncio.run(storm(Path(folder), given.accounts, given.each))
    print(f"storm: seed {given.seed}: {result}")
    for error in result.errors[:10]:
        print(error)
    return 1 if result.errors else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
