"""`lockstep-hub inspect`: what a file says of itself and its sidecar of it, without a hub."""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import click
import msgspec
from msgspec import Struct

from hub.commandline import FILE, json_option, run
from hub.matching import Selector
from hub.records import InstallerFacts
from protocol.errors import LockstepError


class Report(Struct, frozen=True, kw_only=True):
    """One file as `publish` would take it; `size` in bytes, `sha256` in hex."""

    file: str
    program: str
    title: str
    channel: str
    facts: InstallerFacts
    size: int
    sha256: str


@click.command()
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=FILE)
@json_option
def inspect(files: tuple[Path, ...], as_json: bool) -> None:
    """Show what installer files say of themselves; needs no hub (exit code 1 if one is refused)."""
    results: list[dict[str, Any]] = []
    for file in files:
        try:
            report = run(_report(file))
        except LockstepError as error:
            shown = {"code": error.code, "message": error.message, "hint": error.hint}
            results.append({"file": str(file), "error": shown})
            click.echo(f"Error: {error}", err=True)
            continue
        results.append(msgspec.to_builtins(report))
        if not as_json:
            _show(report)
    if as_json:
        click.echo(json.dumps(results, indent=2))
    if any("error" in result for result in results):
        sys.exit(1)


async def _report(file: Path) -> Report:
    from hub.inspection import inspect_safely
    from hub.merging import PublishOptions, check_file_name, merge

    check_file_name(file.name)
    entry = merge(file.name, await inspect_safely(file), PublishOptions())
    with file.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    return Report(
        file=str(file),
        program=entry.program or entry.facts.package_name,
        title=entry.title or entry.facts.title,
        channel=entry.channel or "stable",
        facts=entry.facts,
        size=file.stat().st_size,
        sha256=digest,
    )


def _show(report: Report) -> None:
    click.echo(report.file)
    for name, value in _lines(report):
        click.echo(f"  {name:<17} {value}")


def _lines(report: Report) -> list[tuple[str, str]]:
    facts = report.facts
    package = [("package", facts.package_name)] if facts.package_name != report.program else []
    return [
        ("program id", report.program),
        *package,
        ("title", report.title),
        ("version", facts.version),
        ("sortable version", facts.sortable_version or facts.version),
        ("release", f"{facts.release} ({report.channel})"),
        ("kind", facts.kind),
        *_devices(facts.selector),
        ("signer", facts.signer_digest or "none"),
        ("icon", facts.icon or "none"),
        ("size", f"{report.size} bytes"),
        ("SHA-256", report.sha256),
    ]


def _devices(selector: Selector) -> list[tuple[str, str]]:
    """Which devices it fits; a screen, models and form factors only where it asks for them."""
    lines = [
        ("OS", ", ".join(selector.os_types)),
        ("OS range", _os_range(selector) or "any"),
        ("architectures", ", ".join(selector.architectures) or "any"),
        ("screen", _screen(selector)),
        ("density", _between(selector.density_dpi_minimum, selector.density_dpi_maximum, " dpi")),
        ("form factors", ", ".join(selector.form_factors)),
        ("models", ", ".join(selector.models)),
        ("not for models", ", ".join(selector.models_excluded)),
        ("features", ", ".join(selector.features_required) or "none"),
        ("without features", ", ".join(selector.features_forbidden)),
        ("wheel tags", ", ".join(selector.wheel_tags)),
    ]
    return [(name, value) for name, value in lines if value]


def _os_range(selector: Selector) -> str:
    level = _between(selector.api_level_minimum, selector.api_level_maximum)
    version = _between(selector.os_version_minimum, selector.os_version_maximum)
    return ", ".join(part for part in (version, level and f"API level {level}") if part)


def _screen(selector: Selector) -> str:
    inches = _between(selector.screen_inches_minimum, selector.screen_inches_maximum, " in")
    smallest, largest = selector.resolution_minimum, selector.resolution_maximum
    pixels = _between(smallest and "x".join(map(str, smallest)), largest and "x".join(map(str, largest)), " px")
    return ", ".join(part for part in (inches, pixels) if part)


def _between(low: object, high: object, unit: str = "") -> str:
    if not low and not high:
        return ""
    if low == high:
        return f"{low}{unit}"
    return f"{low} to {high}{unit}" if low and high else f"{low}{unit} or more" if low else f"up to {high}{unit}"
