"""`python -m tests.chaos.weak_hub LEVEL serve ...`: the hub with SQLite's `synchronous=LEVEL` in place of FULL.

The control of the power cuts: with NORMAL what was acknowledged can be lost, with OFF the file can be damaged too, and
a harness that does not see it sees nothing.
"""

import sys
from typing import Any

import aiosqlite

from hub.cli import main


def _weaken(level: str) -> None:
    execute = aiosqlite.Connection.execute_fetchall

    def weaker(self: aiosqlite.Connection, sql: str, *arguments: Any) -> Any:
        return execute(self, sql.replace("synchronous=FULL", f"synchronous={level}"), *arguments)

    aiosqlite.Connection.execute_fetchall = weaker  # type: ignore[method-assign]


if __name__ == "__main__":
    _weaken(sys.argv.pop(1))
    main()
