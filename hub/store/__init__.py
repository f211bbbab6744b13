"""The store: all SQL, behind one small class.

One connection, because one process with one writer needs no more and SQLite up to 3.51.2 has a WAL-reset race between
two. Every use of it is a body run inside a transaction: `await store.transaction(body)`. One task runs the bodies one
after the other, so no two ever interleave; what is waiting goes into one commit (group commit), and a body's result is
handed out only after the commit is on disk (`synchronous=FULL`). A body that raises is rolled back alone.

A full disk refuses what waits, and the hub goes on. An I/O error ends the store (`failed`): the kernel has dropped what
it could not write, a retry that succeeds proves nothing ("fsyncgate": Rebello et al., "Can Applications Recover from
fsync Failures?", USENIX ATC 2020), so nothing more is acknowledged. A checkpoint that fails in the background harms
nothing: the log is kept and the next one writes the same pages again (sqlite.org/wal.html).
"""

import asyncio
import os
import re
import sqlite3
from collections.abc import Awaitable, Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final, Generic, TypeAlias, TypeVar

import aiosqlite

from protocol.errors import UnavailableError

_HERE: Final = Path(__file__).parent
_SCHEMA_VERSION: Final = 4
_BODIES_IN_ONE_COMMIT: Final = 256
_BODIES_WAITING: Final = 4_096
_TRANSACTION_SECONDS: Final = 60.0
# What SQLite calls an I/O error, and yet only says that there is no room (sqlite.org/rescode.html).
_NO_ROOM: Final = frozenset({sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE})

Row: TypeAlias = sqlite3.Row
T = TypeVar("T")


def _load_queries(text: str) -> dict[str, str]:
    parts = re.split(r"^-- name: (\w+)$", text, flags=re.MULTILINE)
    return {name: sql.strip() for name, sql in zip(parts[1::2], parts[2::2], strict=True)}


QUERIES: Final = _load_queries((_HERE / "queries.sql").read_text())


class Transaction:
    """What a body works with: the named queries of `queries.sql`."""

    def __init__(self, connection: aiosqlite.Connection) -> None:
        self._connection = connection

    async def rows(self, query: str, /, **parameters: object) -> list[Row]:
        """Run a named query and return its rows."""
        return list(await self._connection.execute_fetchall(QUERIES[query], parameters))

    async def row(self, query: str, /, **parameters: object) -> Row | None:
        """Run a named query and return its first row, or None."""
        found = await self.rows(query, **parameters)
        return found[0] if found else None

    async def many(self, query: str, parameters: Iterable[Mapping[str, Any]]) -> None:
        """Run a named query once for each set of parameters."""
        cursor = await self._connection.executemany(QUERIES[query], parameters)
        await cursor.close()


Body: TypeAlias = Callable[[Transaction], Awaitable[T]]


class _Work(Generic[T]):
    """A body that waits for its turn, and where its result goes."""

    def __init__(self, body: Body[T]) -> None:
        self.body = body
        self.future: asyncio.Future[T] = asyncio.get_running_loop().create_future()

    async def run(self, transaction: Transaction) -> Callable[[], None]:
        """Run the body; return what to call once its commit is on disk."""
        result = await self.body(transaction)

        def hand_out() -> None:
            if not self.future.done():
                self.future.set_result(result)

        return hand_out

    def fail(self, error: BaseException) -> None:
        """Hand `error` to the one who waits."""
        if not self.future.done():
            self.future.set_exception(error)


class Store:
    """The database of one hub. Open it with `Store.open`, close it with `close`."""

    def __init__(self, connection: aiosqlite.Connection) -> None:
        self._connection = connection
        self._waiting: asyncio.Queue[_Work[Any]] = asyncio.Queue(_BODIES_WAITING)
        self._turn = asyncio.Lock()
        self._loop = asyncio.get_running_loop()
        self._has_failed = asyncio.Event()
        self._failure = ""
        self._worker = asyncio.create_task(self._work(), name="store")

    @classmethod
    async def open(cls, path: Path) -> "Store":
        """Open or create the database at `path`.

        Raises UnavailableError for a newer schema, an unreadable file or a full disk (code `disk-full`): SQLite needs
        room for the two files beside it.
        """
        try:
            sqlite3.connect(path).close()  # aiosqlite leaves its thread behind where this fails
            connection = await aiosqlite.connect(path, isolation_level=None)
        except sqlite3.Error as error:
            raise _cannot_use(path, error) from None
        try:
            connection.row_factory = sqlite3.Row
            for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
                await connection.execute_fetchall(f"PRAGMA {pragma}")
            await _migrate(connection, path)
        except sqlite3.DatabaseError as error:
            await connection.close()
            raise _cannot_use(path, error) from None
        except BaseException:
            await connection.close()
            raise
        return cls(connection)

    async def close(self) -> None:
        """Finish what is waiting and close the file."""
        await self._waiting.join()
        self._worker.cancel()
        await asyncio.gather(self._worker, return_exceptions=True)
        await self._connection.close()

    async def transaction(self, body: Body[T]) -> T:
        """Run `body` in a transaction and return its result once that is committed to disk.

        Raises what the body raises, and UnavailableError when the database does not answer within a minute, when the
        disk is full (code `disk-full`) or has failed (`disk-failed`).
        """
        self._check()
        work = _Work(body)
        try:
            async with asyncio.timeout(_TRANSACTION_SECONDS):
                await self._waiting.put(work)
                return await work.future
        except TimeoutError:
            raise UnavailableError("The hub's database did not answer within 60 s.", hint="Try again later.") from None

    async def copy_to(self, path: Path) -> None:
        """Write a consistent copy of the database to the new file `path`, durably; bodies wait meanwhile.

        Raises UnavailableError when it cannot be written.
        """
        self._check()
        try:
            target = sqlite3.connect(path, check_same_thread=False)
        except sqlite3.Error as error:
            raise _could_not_copy(path, error) from None
        try:
            target.execute("PRAGMA synchronous=OFF")  # it is worth nothing before it is whole
            async with self._turn:
                await self._connection.backup(target)
        except sqlite3.Error as error:
            raise _could_not_copy(path, error) from None
        finally:
            target.close()
        try:
            await asyncio.to_thread(_sync_file, path)
        except OSError as error:
            raise _could_not_copy(path, error) from None

    def fail(self, what: str) -> None:
        """The disk could not keep something: acknowledge nothing from now on. May be called from any thread."""
        self._failure = self._failure or what
        self._loop.call_soon_threadsafe(self._has_failed.set)

    async def failed(self) -> UnavailableError:
        """Wait until the disk fails; return what is to be said of it."""
        await self._has_failed.wait()
        return _disk_failed(self._failure)

    def _check(self) -> None:
        if self._failure:
            raise _disk_failed(self._failure)

    async def _work(self) -> None:
        while True:
            batch = [await self._waiting.get()]
            while len(batch) < _BODIES_IN_ONE_COMMIT and not self._waiting.empty():
                batch.append(self._waiting.get_nowait())
            try:
                self._check()
                async with self._turn:
                    await self._commit(batch)
            except Exception as error:
                # Rolled back as a whole (disk full, I/O error): nothing in it was acknowledged.
                told = self._translated(error)
                for work in batch:
                    work.fail(told if isinstance(told, UnavailableError) else _could_not_write(error))
            finally:
                for _ in batch:
                    self._waiting.task_done()

    async def _commit(self, batch: list[_Work[Any]]) -> None:
        execute = self._connection.execute_fetchall
        transaction = Transaction(self._connection)
        results: list[Callable[[], None]] = []
        await execute("BEGIN")
        try:
            for work in batch:
                await execute("SAVEPOINT body")
                try:
                    results.append(await work.run(transaction))
                except Exception as error:
                    if not self._connection.in_transaction:
                        raise  # SQLite has rolled back everything, as it does when the disk is full or fails
                    await execute("ROLLBACK TO body")
                    work.fail(self._translated(error))
                await execute("RELEASE body")
            await execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                await execute("ROLLBACK")
            raise
        self._check()
        for hand_out in results:
            hand_out()

    def _translated(self, error: Exception) -> Exception:
        """A full disk or a damaged file may show in the middle of a body; anything else a body raises is its own."""
        if not (isinstance(error, sqlite3.OperationalError) or type(error) is sqlite3.DatabaseError):
            return error
        code = getattr(error, "sqlite_errorcode", 0)
        if code in _NO_ROOM:
            return _disk_full()
        if code & 0xFF == sqlite3.SQLITE_IOERR:
            self.fail(f"its database: {error}")
            return _disk_failed(self._failure)
        return _could_not_write(error)


def _cannot_use(path: Path, error: sqlite3.Error) -> UnavailableError:
    if getattr(error, "sqlite_errorcode", 0) in _NO_ROOM:
        return _disk_full()
    return UnavailableError(f"The database {path} cannot be used: {error}.")


def _disk_full() -> UnavailableError:
    return UnavailableError(
        "The hub's disk is full: nothing was written.", hint="Its owner has to free some space.", code="disk-full"
    )


def _could_not_write(error: Exception) -> UnavailableError:
    return UnavailableError(f"The hub's database could not write: {error}.", hint="See to the hub's disk.")


def _could_not_copy(path: Path, error: Exception) -> UnavailableError:
    return UnavailableError(f"The hub's database could not be copied to {path}: {error}.", hint="See to the disk.")


def _disk_failed(what: str) -> UnavailableError:
    return UnavailableError(
        f"The hub's disk could not keep what was written ({what}), so the hub acknowledges nothing more and ends.",
        hint="See to the disk, then start the hub again: what it has acknowledged is there.",
        code="disk-failed",
    )


def _sync_file(path: Path) -> None:
    with path.open("rb") as stream:
        os.fsync(stream.fileno())


async def _migrate(connection: aiosqlite.Connection, path: Path) -> None:
    (row,) = await connection.execute_fetchall("PRAGMA user_version")
    version = row[0]
    if version > _SCHEMA_VERSION:
        raise UnavailableError(
            f"The database {path} has schema {version}; this hub knows up to {_SCHEMA_VERSION}.",
            hint="Use the newer lockstep-hub that wrote it.",
        )
    for script, after in _upgrades(version):
        await connection.executescript(f"BEGIN IMMEDIATE;\n{script}\nPRAGMA user_version = {after};\nCOMMIT;")


def _upgrades(version: int) -> list[tuple[str, int]]:
    """Return the scripts that bring a database of this version to the newest, and the version after each."""
    if version == 0:
        return [((_HERE / "schema.sql").read_text(), _SCHEMA_VERSION)]
    steps = range(version + 1, _SCHEMA_VERSION + 1)
    return [((_HERE / f"upgrade_{step}.sql").read_text(), step) for step in steps]
