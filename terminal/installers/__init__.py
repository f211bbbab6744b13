"""Installers: one runner per installer kind, or the owner's own command.

`build_runners` gives a terminal its runners. Each takes an `InstallTask` and answers with an `InstallResult`; a runner
confirms by asking the system, never by an exit code alone. Nothing here knows of deliveries, sockets or the hub.
"""

from collections.abc import Mapping
from pathlib import Path

from protocol.device import InstallerKind
from protocol.errors import UsageError
from terminal.installers.apk import SimulatedRunner
from terminal.installers.command import CommandRunner
from terminal.installers.deb import DebRunner
from terminal.installers.tasks import InstallResult, InstallTask, KnowsFiles, Runner, RunnerSettings
from terminal.installers.wheel import WheelRunner

__all__ = ["InstallResult", "InstallTask", "KnowsFiles", "Runner", "RunnerSettings", "build_runners"]


def build_runners(
    folder: Path, kinds: tuple[InstallerKind, ...], settings: Mapping[str, RunnerSettings]
) -> dict[InstallerKind, Runner]:
    """Return one runner for each of `kinds`; `folder` is the terminal's private folder, created when first needed.

    Raises UsageError when the settings ask for what this terminal may not do (a deb into the system, not as root) or
    give a check command without a command.
    """
    return {kind: _build(folder.resolve(), kind, settings.get(kind, RunnerSettings())) for kind in kinds}


def _build(folder: Path, kind: InstallerKind, settings: RunnerSettings) -> Runner:
    if settings.command:
        return CommandRunner(folder, kind, settings)
    if settings.check_command:
        raise UsageError(
            f"installers.{kind} has a check_command, but no command it could check.",
            hint="Add a command, or remove check_command: the built-in runner asks the system itself.",
        )
    match kind:
        case "deb":
            return DebRunner(folder, settings)
        case "wheel":
            return WheelRunner(folder, settings)
        case "apk":
            return SimulatedRunner(folder, settings)
        case _:
            raise UsageError(
                f"This device is to install {kind} files, and Lockstep has no runner of its own for them.",
                hint=f"Give a command under [installers.{kind}], or take {kind!r} out of installer_kinds.",
            )
