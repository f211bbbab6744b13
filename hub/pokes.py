"""Pokes: "look again, terminal T may be owed something".

A hint, never an order: safe to lose or repeat. In-process now; the seam where a bus comes in when there are several
hubs. Pokes of one topic that nobody has taken yet are one poke.
"""

import asyncio
from typing import Literal, TypeAlias

Concern: TypeAlias = Literal["owed", "asked", "standing"]
Topic: TypeAlias = tuple[Concern, str]


class Pokes:
    """The pokes of one hub process. A topic is a terminal and what concerns it: what it is owed, asked, or may do."""

    def __init__(self) -> None:
        self._topics: set[Topic] = set()
        self._there = asyncio.Event()

    def poke(self, concern: Concern, terminal: str) -> None:
        """Tell whoever serves `terminal` to look again."""
        self._topics.add((concern, terminal))
        self._there.set()

    async def take(self) -> set[Topic]:
        """Wait for pokes and return the topics poked since the last call."""
        await self._there.wait()
        self._there.clear()
        topics, self._topics = self._topics, set()
        return topics
