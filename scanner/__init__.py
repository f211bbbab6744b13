"""Scanning files for what has no business in them: rule sets, the engine, and the process with next to no rights.

Both sides use it: the hub on what is published, a terminal on its own programs. It imports `protocol` and nothing else.
"""

from typing import Literal, TypeAlias

from msgspec import Struct

Severity: TypeAlias = Literal["infected", "suspicious"]


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
