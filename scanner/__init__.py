"""Scanning files for what has no business in them: rule sets, the engine, and the process with next to no rights.

Both sides use it: the hub on what is published, a terminal on its own programs. It imports `protocol` and nothing else.
"""

from typing import Final, Literal, TypeAlias

from msgspec import Struct

Severity: TypeAlias = Literal["infected", "suspicious"]

FINDINGS: Final = 64  # that are told of one scan
TERMINAL_LEVELS: Final = 2  # of archives that are opened
HUB_LEVELS: Final = TERMINAL_LEVELS + 1  # an installer around what a terminal finds unpacked: clean here is clean there
PLACES: Final = 4  # of one rule: one that does not count to whoever asked must leave room for those that do
TOO_MANY: Final = "too_many_findings"  # the rule under which it is told that there was no room for some


class Finding(Struct, frozen=True):
    """One rule that matched: its name, where (the file, or a path inside it), and how bad the rule says that is."""

    rule: str
    where: str
    severity: Severity = "infected"


class Scanned(Struct, frozen=True):
    """What one scan saw: findings, how many files (inside archives too) and bytes, and what it could not look into."""

    findings: tuple[Finding, ...]
    files: int
    bytes: int
    skipped: tuple[str, ...] = ()


class Compiled(Struct, frozen=True, kw_only=True):
    """What compiling rules came to: they as the engine keeps them and how many, or in words what is wrong with them."""

    content: bytes = b""
    rules: int = 0
    wrong: str = ""
