"""Work on files: long work a step at a time in a thread, so that stopping waits for one; names put on the disk."""

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Final, TypeVar, cast

T = TypeVar("T")
_END: Final = object()


async def in_thread(steps: Iterator[T]) -> AsyncIterator[T]:
    """Yield what `steps` yields, each step run in a thread."""
    while (step := await asyncio.to_thread(next, steps, _END)) is not _END:
        yield cast(T, step)


def sync_folder(folder: Path) -> None:
    """Put the names in a folder on the disk; until then a power cut may undo them (fsync(2), notes)."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
