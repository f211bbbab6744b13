"""`python -m tests.chaos.launch FAULT hub|terminal ARGUMENTS...`: start the product, as it is or broken on purpose.

"none" changes no rule of the product: a terminal only waits less before it dials again, or a run of a thousand kills
would be mostly waiting. Every other fault takes one promise away, so that the harness can show it sees the damage. The
names that are replaced are looked up first: when the product renames one, the control fails and does not pass empty.
"""

import asyncio
import itertools
import runpy
import sys
from collections.abc import Callable
from typing import Any, Final

from protocol import limits

RECONNECT_FIRST_SECONDS: Final = 0.1
RECONNECT_LARGEST_SECONDS: Final = 0.4
LATE_COMMIT_SECONDS: Final = 0.3
FLIP_EVERY_READS: Final = 3


def replace(owner: Any, name: str, value: Any) -> Any:
    """Put `value` in the place of an attribute that must be there, and return what was."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    return before


def hurry() -> None:
    """Let a terminal that lost its hub dial again soon."""
    replace(limits, "RECONNECT_FIRST_SECONDS", RECONNECT_FIRST_SECONDS)
    replace(limits, "RECONNECT_LARGEST_SECONDS", RECONNECT_LARGEST_SECONDS)


def nothing() -> None:
    """Break nothing."""


def acknowledge_before_commit() -> None:
    """Hand a transaction's result out before its commit, which comes late."""
    import aiosqlite

    from hub import store

    async def run(self: Any, transaction: Any) -> Callable[[], None]:
        result = await self.body(transaction)
        if not self.future.done():
            self.future.set_result(result)
        return nothing

    async def execute_fetchall(self: Any, sql: str, parameters: Any = None) -> Any:
        if sql == "COMMIT":
            await asyncio.sleep(LATE_COMMIT_SECONDS)
        return await execute(self, sql, parameters)

    replace(store._Work, "run", run)
    execute = replace(aiosqlite.Connection, "execute_fetchall", execute_fetchall)


def no_marker() -> None:
    """Keep nothing on the disk before an installation begins."""
    from terminal.state import StateFolder

    replace(StateFolder, "put_mark", lambda self, mark: None)


def flip_bits() -> None:
    """At the hub: flip one bit in every third run of chunks it reads for sending."""
    from hub.objects import Pack

    counter = itertools.count(1)

    def read(self: Any, run: Any) -> bytes:
        data = bytearray(whole(self, run))
        if next(counter) % FLIP_EVERY_READS == 0:
            data[len(data) // 2] ^= 1
        return bytes(data)

    whole = replace(Pack, "read", read)


def no_digest_check() -> None:
    """At the terminal: believe that chunks and the whole file are what they should be."""
    import lz4.block

    from protocol import chunks
    from terminal.downloads import Download

    def restore(stored: Any, entry: Any) -> bytes:
        if entry.stored_size == entry.raw_size:
            return bytes(stored)
        raw: bytes = lz4.block.decompress(stored, uncompressed_size=entry.raw_size)
        return raw

    replace(chunks, "restore", restore)
    replace(Download, "_measure", lambda self: (self.offer.size, self.offer.object))


FAULTS: Final[dict[str, Callable[[], None]]] = {
    "none": nothing,
    "acknowledge-before-commit": acknowledge_before_commit,
    "no-marker": no_marker,
    "flip-bits": flip_bits,
    "no-digest-check": no_digest_check,
}


def main() -> None:
    """Break what is asked for and become the product's own command."""
    fault, module, *arguments = sys.argv[1:]
    hurry()
    FAULTS[fault]()
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
