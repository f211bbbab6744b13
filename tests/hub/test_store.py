"""The store: group commit, bodies that never mix, and what a kill, a full disk or a strange file do to it."""

import asyncio
import os
import re
import shutil
import signal
import sqlite3
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from hub import store
from hub.store import Store, Transaction
from protocol.errors import UnavailableError
from tests.hub.rooms import small_disk


async def add(transaction: Transaction, name: str) -> None:
    await transaction.rows("add_account", account_id=f"a-{name}", name=name, password_hash="x", now=1.0)


async def names(store: Store) -> list[str]:
    async def body(transaction: Transaction) -> list[str]:
        return [row["name"] for row in await transaction.rows("accounts")]

    return await store.transaction(body)


@asynccontextmanager
async def opened(path: Path) -> AsyncIterator[Store]:
    store = await Store.open(path)
    try:
        yield store
    finally:
        await store.close()


async def test_a_body_that_fails_is_rolled_back_alone(tmp_path: Path) -> None:
    store = await Store.open(tmp_path / "hub.db")

    async def good(transaction: Transaction, name: str) -> str:
        await add(transaction, name)
        return name

    async def bad(transaction: Transaction) -> str:
        await add(transaction, "bad")
        raise ValueError("mine")

    results = await asyncio.gather(
        store.transaction(lambda t: good(t, "first")),
        store.transaction(bad),
        store.transaction(lambda t: good(t, "second")),
        return_exceptions=True,
    )
    assert [str(result) for result in results] == ["first", "mine", "second"]
    assert isinstance(results[1], ValueError)
    assert await names(store) == ["first", "second"]
    await store.close()


async def test_bodies_that_run_at_once_never_see_each_other_half_done(tmp_path: Path) -> None:
    store = await Store.open(tmp_path / "hub.db")

    async def two_steps(transaction: Transaction, number: int) -> int:
        before = len(await transaction.rows("accounts"))
        await add(transaction, f"{number}-one")
        await asyncio.sleep(0)
        await add(transaction, f"{number}-two")
        return before

    counts = await asyncio.gather(*(store.transaction(lambda t, n=n: two_steps(t, n)) for n in range(50)))  # type: ignore[misc]
    assert counts == [2 * number for number in range(50)]
    await store.close()


async def test_a_caller_that_goes_away_harms_no_other_body_of_its_commit(tmp_path: Path) -> None:
    store = await Store.open(tmp_path / "hub.db")
    gone = asyncio.create_task(store.transaction(lambda t: add(t, "gone")))
    stays = asyncio.create_task(store.transaction(lambda t: add(t, "stays")))
    await asyncio.sleep(0)
    gone.cancel()
    await stays
    assert "stays" in await names(store)
    await store.close()


async def test_a_newer_schema_is_refused_with_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "hub.db"
    await (await Store.open(path)).close()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(UnavailableError, match="schema 99") as caught:
        await Store.open(path)
    assert "newer" in caught.value.hint


async def test_a_file_that_is_no_database_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "hub.db"
    path.write_bytes(b"these are somebody's notes\n" * 100)
    before = path.read_bytes()
    with pytest.raises(UnavailableError, match="cannot be used"):
        await Store.open(path)
    assert path.read_bytes() == before


WRITER = """
import asyncio, resource, sys
from pathlib import Path
from hub.store import Store
from protocol.errors import UnavailableError

async def main(path, limit):
    store = await Store.open(Path(path))
    if limit:
        import signal
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    number = 0
    while True:
        name = f"{number}" + "x" * 500
        async def body(transaction):
            await transaction.rows("add_account", account_id=name, name=name, password_hash="x", now=1.0)
        try:
            await store.transaction(body)
        except UnavailableError as error:
            print("unavailable", error, flush=True)
            break
        print(number, flush=True)
        number += 1
    import os
    os._exit(0)

asyncio.run(main(sys.argv[1], int(sys.argv[2])))
"""


async def start_writer(path: Path, limit_bytes: int = 0) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-c", WRITER, str(path), str(limit_bytes), stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent.parent)},
    )  # fmt: skip


async def stored_numbers(path: Path) -> set[int]:
    store = await Store.open(path)
    found = {int(name.rstrip("x")) for name in await names(store)}
    await store.close()
    return found


async def test_a_database_that_cannot_be_opened_is_told_in_words(tmp_path: Path) -> None:
    (tmp_path / "hub.db").mkdir()
    with pytest.raises(UnavailableError, match="cannot be used: unable to open"):
        await Store.open(tmp_path / "hub.db")


async def test_a_kill_right_after_an_acknowledgement_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "hub.db"
    writer = await start_writer(path)
    assert writer.stdout is not None
    async with asyncio.timeout(30):
        for _ in range(25):
            acknowledged = int(await writer.stdout.readline())
        writer.send_signal(signal.SIGKILL)
        await writer.wait()
    assert await stored_numbers(path) >= set(range(acknowledged + 1))


async def test_a_write_that_fails_ends_the_store_and_nothing_unwritten_was_acknowledged(tmp_path: Path) -> None:
    path = tmp_path / "hub.db"
    writer = await start_writer(path, limit_bytes=300_000)  # past it write() fails with EFBIG: an I/O error to SQLite
    async with asyncio.timeout(30):
        output, _ = await writer.communicate()
    *acknowledged, last = output.decode().splitlines()
    assert last.startswith("unavailable The hub's disk could not keep what was written")
    assert acknowledged, "some went through before the write failed"
    assert await stored_numbers(path) == set(map(int, acknowledged))


async def test_once_the_disk_has_failed_nothing_is_acknowledged_any_more_even_if_a_retry_would_succeed(
    tmp_path: Path,
) -> None:
    store = await Store.open(tmp_path / "hub.db")
    await store.transaction(lambda t: add(t, "before"))
    await asyncio.to_thread(store.fail, "a pack: Input/output error")
    with pytest.raises(UnavailableError, match="a pack: Input/output error") as caught:
        await store.transaction(lambda t: add(t, "after"))
    assert caught.value.code == "disk-failed"
    async with asyncio.timeout(10):
        assert str(await store.failed()) == str(caught.value)
    await store.close()
    again = await Store.open(tmp_path / "hub.db")
    assert await names(again) == ["before"]
    await again.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
async def test_a_full_disk_refuses_what_waits_and_the_store_goes_on_when_there_is_room_again(tmp_path: Path) -> None:
    acknowledged: list[str] = []
    with small_disk(tmp_path / "disk", 1_000_000) as disk:
        async with opened(disk / "hub.db") as store:
            (disk / "filler").write_bytes(bytes(300_000))
            with pytest.raises(UnavailableError, match="disk is full") as caught:
                for number in range(1_000):
                    name = f"{number:03}" + "x" * 2_000
                    await store.transaction(lambda t, name=name: add(t, name))  # type: ignore[misc]
                    acknowledged.append(name)
            assert caught.value.code == "disk-full"
            (disk / "filler").unlink()
            await store.transaction(lambda t: add(t, "then"))
        async with opened(disk / "hub.db") as again:
            assert acknowledged and await names(again) == [*acknowledged, "then"]


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
@pytest.mark.parametrize("free_bytes", [0, 8_192])
async def test_a_store_that_opens_on_a_full_disk_says_that_it_is_full(tmp_path: Path, free_bytes: int) -> None:
    with small_disk(tmp_path / "disk", 3_145_728) as disk:
        async with opened(disk / "hub.db") as store:
            await store.transaction(lambda t: add(t, "before"))
        (disk / "filler").write_bytes(bytes(shutil.disk_usage(disk).free - free_bytes))
        with pytest.raises(UnavailableError, match="disk is full") as caught:
            await Store.open(disk / "hub.db")
        assert caught.value.code == "disk-full"
        (disk / "filler").unlink()
        async with opened(disk / "hub.db") as again:
            assert await names(again) == ["before"]


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
async def test_a_new_store_on_a_full_disk_says_that_it_is_full(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 131_072) as disk:
        (disk / "filler").write_bytes(bytes(shutil.disk_usage(disk).free - 49_152))
        with pytest.raises(UnavailableError, match="disk is full") as caught:
            await Store.open(disk / "hub.db")
        assert caught.value.code == "disk-full"


async def test_a_copy_is_whole_while_bodies_go_on_writing(tmp_path: Path) -> None:
    store = await Store.open(tmp_path / "hub.db")

    async def two(transaction: Transaction, number: int) -> None:
        await add(transaction, f"{number}-one")
        await asyncio.sleep(0)
        await add(transaction, f"{number}-two")

    writing = [asyncio.create_task(store.transaction(lambda t, n=n: two(t, n))) for n in range(300)]  # type: ignore[misc]
    await writing[0]
    await store.copy_to(tmp_path / "copy.db")
    await asyncio.gather(*writing)
    await store.close()
    copy = await Store.open(tmp_path / "copy.db")
    copied = await names(copy)
    await copy.close()
    assert {"0-one", "0-two"} <= set(copied)
    assert len([name for name in copied if name.endswith("-one")]) * 2 == len(copied), "no body is in it by half"


def whole_table_scans(sql: str) -> list[str]:
    """Steps of SQLite's plan that read a whole table of deliveries, which grows for ever, without an index."""
    database = sqlite3.connect(":memory:")
    try:
        database.executescript((Path(store.__file__).parent / "schema.sql").read_text())
        parameters = dict.fromkeys(re.findall(r":(\w+)", sql))
        steps = [row[3] for row in database.execute(f"EXPLAIN QUERY PLAN {sql.rstrip(';')}", parameters)]
    finally:
        database.close()
    return [step for step in steps if re.fullmatch(r"SCAN (deliveries|d)", step)]


@pytest.mark.parametrize("query", sorted(store.QUERIES))
def test_no_query_reads_every_delivery_there_ever_was(query: str) -> None:
    assert query == "last_revision" or whole_table_scans(store.QUERIES[query]) == []


def test_a_query_that_reads_every_delivery_is_noticed() -> None:
    assert whole_table_scans("UPDATE deliveries SET reason = :reason WHERE terminal_id = :terminal_id")


def shape(*scripts: Path) -> tuple[dict[str, list[tuple[object, ...]]], set[str]]:
    """The columns of each table, and the indexes, of a database made by these scripts."""
    database = sqlite3.connect(":memory:")
    for script in scripts:
        database.executescript(script.read_text())
    names = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    columns = {name: sorted(row[1:] for row in database.execute(f"PRAGMA table_info({name})")) for name in names}
    indexes = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'index'")}
    database.close()
    return columns, indexes


def test_a_database_that_was_upgraded_from_the_first_version_on_is_as_a_new_one() -> None:
    folder = Path(store.__file__).parent
    upgrades = sorted(folder.glob("upgrade_*.sql"))
    assert len(upgrades) >= 3
    assert shape(Path(__file__).parent / "schema_1.sql", *upgrades) == shape(folder / "schema.sql")
    assert shape(Path(__file__).parent / "schema_1.sql", *upgrades[:-1]) != shape(folder / "schema.sql")
