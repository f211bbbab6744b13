"""Long work on files, a step at a time in a thread: the loop stays free, and stopping waits for one step only."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Final, TypeVar, cast

T = TypeVar("T")
_END: Final = object()


async def in_thread(steps: Iterator[T]) -> AsyncIterator[T]:
    """Yield what `steps` yields, each step run in a thread."""
    while (step := await asyncio.to_thread(next, steps, _END)) is not _END:
        yield cast(T, step)
