"""Who may import what: one reading order, no I/O in the protocol, two sides that never meet, one door per library.

The three tables below are the design; reading the imports of every file with `ast` holds the code to them.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parent.parent
PACKAGES: Final = ("protocol", "scanner", "hub", "terminal")

# A file imports only what stands above it. A folder stands for its files, which have an order of their own.
ORDER: Final = (
    "protocol",
    "protocol.errors",
    "protocol.limits",
    "protocol.device",
    "protocol.devicefile",
    "protocol.keys",
    "protocol.messages",
    "protocol.codec",
    "protocol.chunks",
    "protocol.transfer",
    "protocol.conversation",
    "protocol.life",
    "protocol.quiet",
    "protocol.liveness",
    "protocol.vectors",
    "scanner",
    "scanner.rights",
    "scanner.child",
    "scanner.unpacking",
    "scanner.worker",
    "scanner.yara",
    "scanner.rules",
    "hub",
    "hub.versions",
    "hub.candidates",
    "hub.wheeltags",
    "hub.explaining",
    "hub.matching",
    "hub.records",
    "hub.proxies",
    "hub.policy",
    "hub.clones",
    "hub.config",
    "hub.store.copies",
    "hub.store",
    "hub.audit",
    "hub.standing",
    "hub.steps",
    "hub.guesses",
    "hub.passwords",
    "hub.accounts",
    "hub.pairings",
    "hub.joinkeys",
    "hub.oidc",
    "hub.enrolling",
    "hub.objects",
    "hub.scanning",
    "hub.verdicts",
    "hub.scrub",
    "hub.backup",
    "hub.inspectors.zips",
    "hub.inspectors.source",
    "hub.inspectors.sidecar",
    "hub.inspectors.names",
    "hub.inspectors.axml",
    "hub.inspectors.resources",
    "hub.inspectors.signer",
    "hub.inspectors.products",
    "hub.inspectors.portable",
    "hub.inspectors.versioninfo",
    "hub.inspectors.compound",
    "hub.inspectors.msitables",
    "hub.inspectors.apk",
    "hub.inspectors.deb",
    "hub.inspectors.rpm",
    "hub.inspectors.wheel",
    "hub.inspectors.apks",
    "hub.inspectors.plist",
    "hub.inspectors.ipa",
    "hub.inspectors.msi",
    "hub.inspectors.msix",
    "hub.inspectors.exe",
    "hub.inspectors",
    "hub.inspectors.worker",
    "hub.inspection",
    "hub.merging",
    "hub.catalogue",
    "hub.resolver",
    "hub.pokes",
    "hub.presence",
    "hub.clock",
    "hub.uploads",
    "hub.deliveries",
    "hub.revocation",
    "hub.postures",
    "hub.handing",
    "hub.rescans",
    "hub.syncs",
    "hub.session",
    "hub.devices",
    "hub.requests",
    "hub.fairness",
    "hub.delivery",
    "hub.doorway",
    "hub.paced",
    "hub.reception",
    "hub.terminalsocket",
    "hub.server",
    "hub.reaper",
    "hub.app",
    "hub.accountadmin",
    "hub.joinadmin",
    "hub.admin",
    "hub.demo",
    "hub.demo.run",
    "hub.commandline",
    "hub.configuring",
    "hub.accountcommands",
    "hub.watch",
    "hub.publishing",
    "hub.inspecting",
    "hub.asking",
    "hub.joining",
    "hub.auditing",
    "hub.verdictcommands",
    "hub.cli",
    "hub.__main__",
    "terminal",
    "terminal.devicelist",
    "terminal.session",
    "terminal.installers.tasks",
    "terminal.installers.programs",
    "terminal.installers.listing",
    "terminal.installers.debarchive",
    "terminal.installers.apk",
    "terminal.installers.command",
    "terminal.installers.deb",
    "terminal.installers.wheel",
    "terminal.installers",
    "terminal.consent",
    "terminal.state",
    "terminal.inbox",
    "terminal.downloads",
    "terminal.programfiles",
    "terminal.posture",
    "terminal.installing",
    "terminal.detection",
    "terminal.targets",
    "terminal.receiving",
    "terminal.link",
    "terminal.uploads",
    "terminal.dialling",
    "terminal.localsocket",
    "terminal.connection",
    "terminal.agent",
    "terminal.pairing",
    "terminal.enrolling",
    "terminal.client",
    "terminal.simulated",
    "terminal.tables",
    "terminal.place",
    "terminal.watching",
    "terminal.deciding",
    "terminal.posturing",
    "terminal.publishing",
    "terminal.simulator",
    "terminal.loggingin",
    "terminal.approving",
    "terminal.cli",
    "terminal.__main__",
)

# Which third-party library may be imported where; a folder allows all its files.
LIBRARIES: Final[dict[str, tuple[str, ...]]] = {
    "msgpack": ("protocol.codec",),
    "lz4": ("protocol.chunks",),
    "pyfastcdc": ("protocol.chunks",),
    "cryptography": ("protocol.keys",),
    "aiosqlite": ("hub.store",),
    "argon2": ("hub.passwords",),
    "httpx": ("hub.oidc",),
    "joserfc": ("hub.oidc",),
    "websockets": (
        "hub.terminalsocket", "hub.paced", "hub.reception", "hub.server",
        "terminal.link", "terminal.dialling", "terminal.localsocket", "terminal.connection",
        "terminal.client", "terminal.simulated",
    ),
    "click": (
        "hub.cli", "hub.verdictcommands", "hub.commandline", "hub.accountcommands", "hub.configuring",
        "hub.publishing", "hub.inspecting", "hub.asking", "hub.joining", "hub.auditing",
        "terminal.approving", "terminal.cli", "terminal.deciding", "terminal.loggingin", "terminal.place",
        "terminal.posturing", "terminal.publishing", "terminal.simulator", "terminal.watching",
    ),
    "segno": ("terminal.pairing",),
    "rich": ("terminal.tables", "terminal.place", "terminal.watching"),
    "zstandard": ("hub.inspectors.deb", "scanner.unpacking"),
    "yara_x": ("scanner.worker",),
    "packaging": ("hub.versions", "hub.wheeltags", "hub.inspectors", "terminal.installers"),
    "uvloop": ("hub.commandline", "terminal.cli"),
    "msgspec": PACKAGES,
}  # fmt: skip

# Modules that read or write something outside the process, or its clock.
INPUT_AND_OUTPUT: Final = frozenset({
    "asyncio", "builtins", "fcntl", "ftplib", "glob", "http", "logging", "mmap", "multiprocessing", "os", "pathlib",
    "pty", "select", "selectors", "shutil", "signal", "smtplib", "socket", "sqlite3", "ssl", "subprocess", "tempfile",
    "threading", "time", "urllib", "datetime",
})  # fmt: skip
MAY_PRINT: Final = ("protocol.vectors",)


# What is pure beside the protocol.
PURE: Final = {
    "hub.clones",
    "hub.policy",
    "hub.versions",
    "hub.candidates",
    "hub.wheeltags",
    "hub.explaining",
    "hub.matching",
}

# The brains, and what they may know of their own side: values.
BRAINS: Final = {"hub.session": {"hub.records"}, "terminal.session": {"terminal.devicelist"}}


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def modules() -> dict[str, str]:
    """Every module of the product and its text."""
    files = [file for package in PACKAGES for file in (ROOT / package).rglob("*.py") if "sources" not in file.parts]
    return {module_of(file): file.read_text() for file in files}


def imports_of(text: str, known: frozenset[str]) -> Iterator[str]:
    """Every module that a file imports, wherever the import stands; `from a import b` is `a.b` where that is one."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, "imports are absolute"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in known else node.module


def misplaced(module: str, text: str, known: frozenset[str]) -> list[str]:
    """Imports of this product's own modules that do not stand above `module`."""
    own = [name for name in imports_of(text, known) if name.partition(".")[0] in PACKAGES]
    return [name for name in own if ORDER.index(name) >= ORDER.index(module)]


def crossing(module: str, text: str, known: frozenset[str]) -> list[str]:
    """Imports by which the hub or the terminal, or the protocol, reaches into a side that is not its own."""
    own = module.partition(".")[0]
    allowed = {own, "protocol"} | ({"scanner"} if own != "protocol" else set())
    tops = {name.partition(".")[0] for name in imports_of(text, known)}
    return sorted(tops & set(PACKAGES) - allowed)


def foreign(module: str, text: str, known: frozenset[str]) -> list[str]:
    """Third-party libraries that this module may not import."""
    tops = {name.partition(".")[0] for name in imports_of(text, known)} - set(PACKAGES) - sys.stdlib_module_names
    return sorted(top for top in tops if not is_allowed(top, module))


def is_allowed(library: str, module: str) -> bool:
    return any(module == place or module.startswith(f"{place}.") for place in LIBRARIES.get(library, ()))


def impurities(module: str, text: str, known: frozenset[str]) -> list[str]:
    """What does I/O or reads a clock in a module of the protocol."""
    tops = {name.partition(".")[0] for name in imports_of(text, known)}
    called = {
        node.func.id
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    found = (tops & INPUT_AND_OUTPUT) | (called & {"open", "print", "input"})
    if "sys" in tops and module not in MAY_PRINT:
        found.add("sys")
    return sorted(found)


def known_of_own_side(module: str, text: str) -> set[str]:
    return {name for name in imports_of(text, KNOWN) if name.partition(".")[0] == module.partition(".")[0]}


MODULES: Final = modules()
KNOWN: Final = frozenset(MODULES)


def test_every_module_has_its_place_in_the_order_and_none_is_listed_that_is_not_there() -> None:
    assert sorted(KNOWN - set(ORDER)) == []
    assert sorted(set(ORDER) - KNOWN) == []


@pytest.mark.parametrize("module", sorted(KNOWN))
def test_a_module_imports_only_what_stands_above_it(module: str) -> None:
    assert misplaced(module, MODULES[module], KNOWN) == []


@pytest.mark.parametrize("module", sorted(KNOWN))
def test_hub_and_terminal_never_import_each_other_and_the_protocol_neither(module: str) -> None:
    assert crossing(module, MODULES[module], KNOWN) == []


@pytest.mark.parametrize("module", sorted(KNOWN))
def test_each_library_is_imported_only_behind_its_one_door(module: str) -> None:
    assert foreign(module, MODULES[module], KNOWN) == []


@pytest.mark.parametrize("module", sorted(PURE | {name for name in KNOWN if name.startswith("protocol")}))
def test_the_protocol_and_the_resolver_do_no_input_or_output_and_read_no_clock(module: str) -> None:
    assert impurities(module, MODULES[module], KNOWN) == []


@pytest.mark.parametrize("module", sorted(BRAINS))
def test_a_brain_does_no_input_or_output_and_knows_only_values(module: str) -> None:
    assert impurities(module, MODULES[module], KNOWN) == []
    assert known_of_own_side(module, MODULES[module]) == BRAINS[module]


def test_every_library_of_the_table_is_imported_somewhere() -> None:
    used = {name.partition(".")[0] for text in MODULES.values() for name in imports_of(text, KNOWN)}
    assert sorted(set(LIBRARIES) - used) == []


# --- the checks themselves fail when they should --------------------------------------------------------------------


def test_an_import_from_below_is_found_even_inside_a_function() -> None:
    assert misplaced("hub.store", "def f():\n    from hub.server import HubServer", KNOWN) == ["hub.server"]
    assert misplaced("protocol.errors", "import protocol.limits", KNOWN) == ["protocol.limits"]
    assert misplaced("protocol.limits", "from protocol import errors, codec", KNOWN) == ["protocol.codec"]


def test_a_module_that_imports_itself_or_closes_a_cycle_is_found() -> None:
    assert misplaced("hub.store", "import hub.store", KNOWN) == ["hub.store"]


def test_a_crossing_between_the_sides_is_found() -> None:
    assert crossing("hub.server", "from terminal.session import Session", KNOWN) == ["terminal"]
    assert crossing("protocol.keys", "import hub", KNOWN) == ["hub"]


def test_a_brain_that_knows_of_the_store_is_found() -> None:
    assert known_of_own_side("hub.session", "from hub.syncs import Syncs\nimport protocol.keys") == {"hub.syncs"}


def test_a_library_behind_the_wrong_door_is_found() -> None:
    assert foreign("hub.session", "import websockets.asyncio.server", KNOWN) == ["websockets"]
    assert foreign("hub.storekeeper", "import aiosqlite", KNOWN) == ["aiosqlite"]
    assert foreign("hub.store", "import aiosqlite, requests", KNOWN) == ["requests"]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("import os", ["os"]),
        ("from time import monotonic", ["time"]),
        ("open('x')", ["open"]),
        ("import sys", ["sys"]),
        ("def f():\n    import socket", ["socket"]),
    ],
)
def test_input_and_output_in_the_protocol_is_found(text: str, found: list[str]) -> None:
    assert impurities("protocol.codec", text, KNOWN) == found
