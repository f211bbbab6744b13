"""The files of a package by the package system's own list, where it lies among the files of others."""

import subprocess
from pathlib import Path
from typing import Final

from protocol.device import InstallerKind
from protocol.errors import UnavailableError
from terminal.installers.programs import ASK_SECONDS, ENVIRONMENT
from terminal.installers.tasks import check_package_name

# dpkg-query(1), rpm(8). What else an owner's command installs, nobody can list.
COMMANDS: Final[dict[str, tuple[str, ...]]] = {
    "deb": ("dpkg-query", "--listfiles"),
    "rpm": ("rpm", "--query", "--list"),
}


def listed_files(kind: InstallerKind, package_name: str, root: Path = Path("/")) -> tuple[Path, ...]:
    """Return the files and folders that the package system whose files begin at `root` lists for a package.

    Blocking. Raises UnavailableError when it does not say, BadFileError for a name that is none.
    """
    check_package_name(kind, package_name)
    if kind not in COMMANDS:
        return ()
    tool, *options = COMMANDS[kind]
    if kind == "deb":
        options.append(f"--admindir={root / 'var/lib/dpkg'}")
    return tuple(root / line.lstrip("/") for line in _ask([tool, *options, package_name]) if line.startswith("/"))


def _ask(command: list[str]) -> list[str]:
    try:
        asked = subprocess.run(
            command,
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=dict(ENVIRONMENT),
            timeout=ASK_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UnavailableError(f"{command[0]} cannot be asked for the files of {command[-1]}: {error}.") from None
    if asked.returncode:
        raise UnavailableError(f"{command[0]} does not know the files of {command[-1]}.")
    return asked.stdout.decode(errors="surrogateescape").splitlines()
