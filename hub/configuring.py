"""`lockstep-hub config show`: every setting, its value and where that came from; no secret is a setting."""

from pathlib import Path

import click

from hub.commandline import data_option, json_option, show, table


@click.group()
def config() -> None:
    """Settings: what `serve` would use."""


@config.command("show")
@data_option
@json_option
def config_show(data: str | None, config_file: Path | None, as_json: bool) -> None:
    """Show every setting and where it came from, as `serve` with the same options and environment would have it."""
    from hub.config import load_with_sources, shown

    settings, sources = load_with_sources(config_file, {"data": data})
    rows = [
        {"setting": name, "value": shown(getattr(settings, name)), "from": sources.get(name, "default")}
        for name in settings.__struct_fields__
    ]
    lines = [(row["setting"], _words(row["value"]), row["from"]) for row in rows]
    show(rows, as_json, lambda: table(("SETTING", "VALUE", "FROM"), lines))


def _words(value: object) -> str:
    """Return a value as it would be written in the environment."""
    if isinstance(value, list):
        return ",".join(map(str, value)) or "-"
    return str(value).lower() if isinstance(value, bool) else str(value) or "-"
