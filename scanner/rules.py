"""Rule sets: a folder of YARA rules becomes one text with a digest, which a hub scans by and hands to its terminals.

The files are put behind each other in the order of their names, each after a comment line that says which it is. So a
rule set is one YARA source that any implementation can compile, and equal folders have equal digests.
"""

import hashlib
import re
import threading
from pathlib import Path
from typing import Final

from msgspec import Struct

from protocol.errors import UsageError
from protocol.limits import RULES_BYTES
from scanner.yara import compile_counted

STARTER_SET: Final = Path(__file__).parent / "rules"
_SUFFIXES: Final = (".yar", ".yara")
_FILE_LINE: Final = "// file: "


class RuleSet(Struct, frozen=True, kw_only=True):
    """One rule set: its text, the SHA-256 of that, how many rules it has, and what `scanner.yara.scan` takes."""

    source: bytes
    digest: bytes
    rules: int
    compiled: bytes


def read_rules(folder: Path = STARTER_SET, gone: threading.Event | None = None) -> RuleSet:
    """Read and compile the rules in `folder`; ends soon once `gone` is set. Blocking.

    Raises UsageError for a folder that cannot be read, has no rules, more than `limits.RULES_BYTES`, or rules that are
    wrong (file and line are said); UnavailableError where the engine does not work here or `gone` is set.
    """
    source = _source(folder)
    try:
        compiled = compile_counted(source, gone)
    except UsageError as error:
        raise UsageError(
            f"{folder}: {_told_by_file(error.message, source)}", hint=error.hint, code=error.code
        ) from None
    if not compiled.rules:
        raise UsageError(f"{folder} has no rules in it.", hint="Put at least one rule there.", code="bad-rules")
    return RuleSet(
        source=source, digest=hashlib.sha256(source).digest(), rules=compiled.rules, compiled=compiled.content
    )


def _source(folder: Path) -> bytes:
    parts, total = [], 0
    try:
        files = sorted(file for file in folder.iterdir() if file.suffix in _SUFFIXES and file.is_file())
        for file in files:
            parts.append(f"{_FILE_LINE}{_shown(file.name)}\n".encode() + file.read_bytes().rstrip(b"\n") + b"\n")
            total += len(parts[-1])
            if total > RULES_BYTES:
                raise UsageError(
                    f"The rules in {folder} have more than {RULES_BYTES} bytes.", hint="Take fewer.", code="bad-rules"
                )
    except OSError as error:
        raise UsageError(f"The rules in {folder} cannot be read: {error.strerror}.", code="bad-rules") from None
    if not parts:
        hint = f"Rules are in files that end in {' or '.join(_SUFFIXES)}."
        raise UsageError(f"{folder} has no rules in it.", hint=hint, code="bad-rules")
    return b"".join(parts)


def _told_by_file(message: str, source: bytes) -> str:
    """Return what the compiler says with the lines as the files count them."""
    lines = source.decode(errors="replace").split("\n")

    def start_of(number: int) -> int:
        return max((at for at, line in enumerate(lines[:number]) if line.startswith(_FILE_LINE)), default=-1)

    def place(match: re.Match[str]) -> str:
        number, start = int(match[1]), start_of(int(match[1]))
        return f"{lines[start].removeprefix(_FILE_LINE)}:{number - start - 1}:" if start >= 0 else match[0]

    def in_gutter(match: re.Match[str]) -> str:
        number = int(match[1]) - start_of(int(match[1])) - 1
        return f"{number or '':>{len(match[1])}} |"  # 0 is the line that names the file

    return re.sub(r"^ *(\d+) +\|", in_gutter, re.sub(r"line:(\d+):", place, message), flags=re.MULTILINE)


def _shown(name: str) -> str:
    return "".join(one if one.isprintable() else "?" for one in name.encode(errors="replace").decode())
