"""What a resolve costs depends on the program's own installers, not on how many others there are.

Costs are counted in steps of SQLite's virtual machine (sqlite3_progress_handler), not in seconds: they are the same on
every machine and at every load. A query that lost its index takes seven times as many here.
"""

import contextlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from bench.catalogue import devices, fill, program_name, steps
from hub.app import Hub
from hub.catalogue import PublishOptions
from hub.records import Terminal
from hub.store import QUERIES
from protocol.errors import UnknownNameError
from protocol.messages import Plan, Programs, Sync
from tests.harness.installers import make_installer
from tests.hub.rooms import add_account, add_terminal, open_rooms

pytestmark = pytest.mark.asyncio(loop_scope="module")  # one pair of catalogues serves all

SMALL, LARGE = 3_000, 20_000
MOST_TIMES_AS_MANY = 1.5
TABLES = ("installers", "releases", "programs", "aliases", "objects")


class Catalogue:
    """A hub with so many installers, and a device that asks."""

    def __init__(self, hub: Hub, asks: Terminal) -> None:
        self.hub = hub
        self.asks = asks

    async def steps(self, act: Callable[["Catalogue"], Awaitable[object]]) -> int:
        """Return the steps SQLite takes for what `act` does."""

        async def acted() -> None:
            with contextlib.suppress(UnknownNameError):
                await act(self)

        return await steps(self.hub, acted)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def catalogues(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[list[Catalogue]]:
    async with AsyncExitStack() as stack:
        made = []
        for size in (SMALL, LARGE):
            hub = await stack.enter_async_context(open_rooms(tmp_path_factory.mktemp(f"of-{size}")))
            await fill(hub, size)
            account = await add_account(hub)
            for number, device in enumerate(devices()):
                await add_terminal(hub, account, f"D{number}", device=device)
            made.append(Catalogue(hub, await add_terminal(hub, account, "Asks")))
        yield made


PROGRAM = program_name(SMALL // 20)


def plan(program: str) -> Callable[[Catalogue], Awaitable[object]]:
    return lambda one: one.hub.syncs.plan(
        one.asks, Plan(id=1, program=program, targets=(one.asks.terminal_id,), channel="beta")
    )


ACTS: dict[str, Callable[[Catalogue], Awaitable[object]]] = {
    "a plan for one device": plan(PROGRAM),
    "a plan for a version": lambda one: one.hub.syncs.plan(
        one.asks, Plan(id=1, program=PROGRAM, targets=(one.asks.terminal_id,), version="99")
    ),
    "a sync to all": lambda one: one.hub.syncs.accept(
        one.asks, Sync(id=1, request_key="k", program=PROGRAM, everyone=True)
    ),
    "a mistyped program": plan(PROGRAM[:3] + PROGRAM[4:]),
    "a page of programs": lambda one: one.hub.syncs.programs(one.asks, Programs(id=1)),
    "a program shown": lambda one: one.hub.catalogue.program(PROGRAM),
    "a release yanked": lambda one: one.hub.catalogue.yank(PROGRAM, "99"),
}


@pytest.mark.parametrize("act", ACTS.values(), ids=ACTS)
async def test_the_cost_does_not_grow_with_the_catalogue(
    act: Callable[[Catalogue], Awaitable[object]], catalogues: list[Catalogue]
) -> None:
    small, large = [await one.steps(act) for one in catalogues]
    assert 0 < large <= MOST_TIMES_AS_MANY * small


async def test_a_publish_costs_the_same_in_a_large_catalogue(catalogues: list[Catalogue], tmp_path: Path) -> None:
    file = make_installer(tmp_path, "deb", "unheard-of", size=2_000)
    small, large = [
        await one.steps(lambda catalogue: catalogue.hub.catalogue.publish(file, PublishOptions(program="unheard")))
        for one in catalogues
    ]
    assert 0 < large <= MOST_TIMES_AS_MANY * small


async def test_steps_that_grow_with_the_catalogue_are_noticed(catalogues: list[Catalogue]) -> None:
    small, large = [
        await one.steps(lambda catalogue: catalogue.hub.store._connection.execute_fetchall(
            "SELECT COUNT(*) FROM installers NOT INDEXED WHERE program_id = 'x'"
        ))
        for one in catalogues
    ]  # fmt: skip
    assert large > 6 * small


async def plan_of(hub: Hub, query: str) -> list[str]:
    """How SQLite means to go about a query, a line a step."""
    sql = QUERIES[query]
    parameters: dict[str, Any] = dict.fromkeys(re.findall(r":(\w+)", sql), "x")
    rows = await hub.store._connection.execute_fetchall(f"EXPLAIN QUERY PLAN {sql}", parameters)
    return [row["detail"] for row in rows]


async def test_no_query_of_the_catalogue_goes_through_a_whole_table_but_the_search(catalogues: list[Catalogue]) -> None:
    hub = catalogues[0].hub
    asked = [name for name, query in QUERIES.items() if re.search(rf"\b({'|'.join(TABLES)})\b", query)]
    scans = {
        (name, step)
        for name in asked
        for step in await plan_of(hub, name)
        if re.match(rf"SCAN ({'|'.join(TABLES)}|i|r|p|o|k)\b", step)
    }
    assert len(asked) > 20
    assert scans == {
        ("programs_search", "SCAN programs"),
        ("programs_search", "SCAN p"),  # of the page that it found
        ("catalogue_page", "SCAN p"),  # likewise
        ("count_verdicts", "SCAN installers"),  # once at the start, and at `verdicts rescan`
    }
