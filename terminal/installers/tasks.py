"""What every runner shares: the task it is given, the result it gives back, its settings and the rules for names.

A runner never raises for a file that cannot be installed: it answers with an `InstallResult` whose `reason` is a stable
code. Inside, a step that cannot go on raises a `LockstepError` whose code is that reason; `settle` turns it into words.
"""

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Protocol, runtime_checkable

from msgspec import Meta, Struct

from protocol.device import InstallerKind
from protocol.errors import BadFileError, LockstepError, UnavailableError

DETAIL_CHARACTERS: Final = 1_000
PACKAGE_NAME_BYTES: Final = 255  # a runner may name a folder by it

# Debian Policy 5.6.7; the core metadata specification's `Name`; Android's application id. No rule, the one for every
# other kind included, lets a name start with "-" (an option to the tool) or "." or hold "/" (a path).
PACKAGE_NAME_RULES: Final[dict[InstallerKind, re.Pattern[str]]] = {
    "deb": re.compile(r"[a-z0-9][a-z0-9+.-]+"),
    "wheel": re.compile(r"[A-Za-z0-9]|[A-Za-z0-9][A-Za-z0-9._-]*[A-Za-z0-9]"),
    "apk": re.compile(r"[A-Za-z][A-Za-z0-9_]*(\.[A-Za-z][A-Za-z0-9_]*)+"),
}
# Names of RPMs, bundles and MSIX identities, and what a sidecar calls a file without a header, which may have spaces.
ANY_PACKAGE_NAME: Final = re.compile(r"\w[^/\\]*")


@dataclass(frozen=True, slots=True)
class InstallTask:
    """One installer to put on this device.

    `file` is the verified installer on disk (its name may be its digest), `version` is as in the file's header, and
    `facts` are the catalogue's further facts; `file_name` among them is the name the file was published under.
    """

    delivery: str
    program: str
    package_name: str
    version: str
    kind: InstallerKind
    file: Path
    digest_hex: str
    facts: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class InstallResult:
    """How an installation ended.

    `reason` is a stable code: `installed`, `runner-failed`, `runner-timeout`, `runner-busy`, `maintainer-scripts`,
    `unsafe-path`, `no-space`, `bad-package-name`, `bad-file`, `not-confirmed`, `outcome-unknown`, `dpkg-missing`,
    `pip-missing` or `no-runner`. `detail` is for people, at most 1,000 characters. `installed_version` is what the
    system says afterwards; it is empty when that is nothing or nobody could be asked.
    """

    ok: bool
    reason: str
    detail: str
    installed_version: str


class Runner(Protocol):
    """Installs one kind of installer on this device."""

    async def install(self, task: InstallTask) -> InstallResult:
        """Install `task` and confirm it by asking the system. Cancelling it kills every child program it started."""

    async def installed_version(self, package_name: str) -> str | None:
        """Return the version the system has, or None when it surely has none.

        Waits for an installation that is still running, even one an earlier process of this terminal started. Raises
        UnavailableError (code `outcome-unknown`) when the system cannot be asked, BadFileError for a malformed name.
        """


@runtime_checkable
class KnowsFiles(Protocol):
    """A runner that can say where the files of what it has installed lie."""

    @property
    def private_root(self) -> Path | None:
        """The folder that holds its programs and nothing else, or None when they lie among the system's files."""

    def files_of(self, package_name: str) -> tuple[Path, ...]:
        """Return the files of a package, as far as its own list knows them; folders may be among them.

        Blocking. Raises LockstepError and OSError when nobody can say.
        """


class RunnerSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The table `[installers.KIND]` of a device file.

    `root` is the folder to install into (relative: in the terminal's private folder), empty for the usual one there;
    `"/"` means the system, for debs alone. `command` replaces the runner by the owner's own program and arguments;
    `check_command` prints the installed version. `timeout_seconds` bounds each child program.
    """

    root: str = ""
    command: list[str] = []
    check_command: list[str] = []
    timeout_seconds: Annotated[float, Meta(gt=0, le=86_400)] = 600.0


def check_package_name(kind: InstallerKind, package_name: str) -> None:
    """Raise BadFileError (code `bad-package-name`) unless `package_name` keeps the rule of its format."""
    keeps_rule = PACKAGE_NAME_RULES.get(kind, ANY_PACKAGE_NAME).fullmatch(package_name) and package_name.isprintable()
    if not keeps_rule or len(package_name.encode()) > PACKAGE_NAME_BYTES:
        raise BadFileError(
            f"{package_name[:80]!r} is not a package name a {kind} may have.",
            hint="Publish an installer whose header names the package by its format's rule.",
            code="bad-package-name",
        )


def bounded(text: str) -> str:
    """Return `text` cut in its middle to 1,000 characters: the start says what, the end holds the tool's last words."""
    if len(text) <= DETAIL_CHARACTERS:
        return text
    head = 200
    return f"{text[:head]} … {text[-(DETAIL_CHARACTERS - head - 3) :]}"


def failed(reason: str, detail: str) -> InstallResult:
    """Return the result of an installation that did not happen."""
    return InstallResult(ok=False, reason=reason, detail=bounded(detail), installed_version="")


async def settle(work: Awaitable[InstallResult]) -> InstallResult:
    """Await `work` and turn what its steps raise into a result."""
    try:
        return await work
    except LockstepError as error:
        return failed(error.code, str(error))
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        return failed("runner-failed", f"The installation could not use{where}: {error.strerror or error}.")


async def confirm(task: InstallTask, ask: Callable[[str], Awaitable[str | None]], note: str = "") -> InstallResult:
    """Ask the system what it has now and compare it with what was to be installed. `note` is added for people."""
    try:
        version = await ask(task.package_name)
    except UnavailableError as error:
        return failed("outcome-unknown", f"The installer ended well, but the system could not be asked. {error}")
    if version != task.version:
        has = f"version {version}" if version else "no such package"
        detail = f"The installer of {task.package_name} {task.version} ended well, yet the system has {has}."
        return InstallResult(ok=False, reason="not-confirmed", detail=bounded(detail), installed_version=version or "")
    detail = f"{task.package_name} {version} is installed{'; ' if note else ''}{note}."
    return InstallResult(ok=True, reason="installed", detail=bounded(detail), installed_version=version)
