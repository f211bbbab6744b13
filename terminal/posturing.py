"""`lockstep-terminal posture`: what the last scan of this device's programs has found, and a scan now.

A running agent scans and tells the hub; without one this process does, and the hub hears of it at the next connection.
"""

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING

import click

from terminal.place import Place, common_options, local_device

if TYPE_CHECKING:
    from protocol.device import InstallerKind
    from protocol.messages import Standing
    from terminal.installers import Runner
    from terminal.state import SavedPosture, StateFolder


@click.command()
@click.option("--now", is_flag=True, help="Scan the programs now, and tell the hub.")
@common_options
def posture(place: Place, now: bool) -> int:
    """Show what the last scan of the programs on this device has found, and what the hub makes of it.

    A hub that looks at postures sends the rules and asks. With --now the exit code is 1 when something was found.
    """
    from terminal.tables import facts_table
    from terminal.targets import ExitCode

    folder = place.folder()
    folder.identity()
    if now:
        asyncio.run(_scan(folder))
    saved, standing = folder.posture(), folder.standing()
    answer = {
        "posture": saved.report if saved else None,
        "told": saved.told if saved else False,
        "standing": standing,
    }
    place.show(answer, facts_table(_facts(saved, standing)))
    return ExitCode.FAILED if now and saved and saved.report.findings_in_all else ExitCode.DONE


async def _scan(folder: "StateFolder") -> None:
    from terminal.client import scan_here

    await scan_here(folder, lambda: _runners(folder))


def _runners(folder: "StateFolder") -> "Mapping[InstallerKind, Runner]":
    from terminal.installers import build_runners

    device, settings = local_device(folder)
    return build_runners(folder.path / "programs", device.installer_kinds, settings)


def _facts(saved: "SavedPosture | None", standing: "Standing | None") -> dict[str, object]:
    from terminal.connection import standing_words

    words = standing_words(standing) if standing else "This device may send and receive."
    return {**(_report_facts(saved) if saved else {"scanned": "never"}), "standing": words}


def _report_facts(saved: "SavedPosture") -> dict[str, object]:
    from datetime import UTC, datetime

    from terminal.tables import duration_words, size_words

    report = saved.report
    began_at = datetime.fromtimestamp(report.began_at, UTC).astimezone()
    rows = [f"{row.rule} in {row.file}{f' of {row.program}' if row.program else ''}" for row in report.findings]
    more = report.findings_in_all - len(rows)
    return {
        "scanned": f"{began_at:%Y-%m-%d %H:%M:%S}, for {duration_words(report.seconds)}",
        "rules": report.rules.hex(),
        "engine": report.engine,
        "programs": report.programs,
        "files": f"{report.files:,}, {size_words(report.bytes)}",
        "passed_over": f"{report.skipped:,}",
        "complete": "yes" if report.complete else "no: the budget ended it",
        "findings": [*rows, *([f"{more} more"] if more > 0 else [])] or "none",
        "told_the_hub": "yes" if saved.told else "no",
    }
