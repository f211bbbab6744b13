"""A copy of the hub's database in one file, as `Store.copy_to` makes it: checked, read, and made ready to be restored.

Nobody else has such a file open, so this connection of its own meets no other.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from protocol.errors import BadFileError

_FAULTS_SHOWN = 20


def faults_in(path: Path) -> list[str]:
    """Return what SQLite finds wrong with the file: its pages and indexes, and rows that name missing ones."""
    with _opened(path) as connection:
        faults = [row[0] for row in connection.execute(f"PRAGMA integrity_check({_FAULTS_SHOWN})") if row[0] != "ok"]
        for table, row, parent, _ in connection.execute("PRAGMA foreign_key_check").fetchmany(_FAULTS_SHOWN):
            faults.append(f"row {row} of {table} names a row of {parent} that is not there")
    return faults


def objects_in(path: Path) -> dict[bytes, int]:
    """Return the objects that rows name, with their stored sizes in bytes."""
    with _opened(path) as connection:
        return dict(connection.execute("SELECT digest, stored_size FROM objects ORDER BY digest"))


def forget_what_time_changes(path: Path) -> None:
    """Make a copy from the past ready to be the truth again.

    What terminals had installed then is forgotten: they say it anew when they log in, and until then nothing may be
    taken for installed. What they had of the programs they are owed is kept beside each open delivery.
    """
    with _opened(path) as connection, connection:
        connection.execute(
            "INSERT OR REPLACE INTO restored SELECT d.delivery_id, i.digest "
            "FROM deliveries d JOIN syncs s ON s.sync_id = d.sync_id "
            "LEFT JOIN installed i ON i.terminal_id = d.terminal_id AND i.program_id = s.program_id "
            "WHERE d.is_final = 0"
        )
        connection.execute("DELETE FROM installed")


@contextmanager
def _opened(path: Path) -> Iterator[sqlite3.Connection]:
    try:
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA synchronous=FULL")
            yield connection
    except sqlite3.Error as error:
        raise BadFileError(f"The database {path.name} cannot be read: {error}.") from None
