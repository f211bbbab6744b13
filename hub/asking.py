"""`lockstep-hub match`: which installer of a program a device would get, and why, without that device.

The device is described by a file as `lockstep-terminal login --device` takes it (`protocol/devicefile.py`).
"""

import sys
from pathlib import Path
from typing import Any

import click

from hub.commandline import ask_hub, data_option, json_option, show, table


@click.command()
@click.argument("program")
@click.option("--device", "device_file", required=True, type=click.Path(path_type=Path), help="Device file (TOML).")
@click.option("--version", default="", metavar="V", help="This version (default: the newest).")
@click.option("--channel", default="", metavar="NAME", help="Take releases of this channel beside the stable ones.")
@data_option
@json_option
def match(
    program: str,
    device_file: Path,
    version: str,
    channel: str,
    data: str | None,
    config_file: Path | None,
    as_json: bool,
) -> None:
    """Say which installer of PROGRAM a device would get and why; exit code 1 where none fits."""
    arguments = {"program": program, "device": _device(device_file), "version": version, "channel": channel}
    found = ask_hub(data, config_file, "match", arguments)
    show(found, as_json, lambda: _show_match(found))
    if found["chosen"] is None:
        sys.exit(1)


def _device(path: Path) -> Any:
    import msgspec

    from protocol.device import DeviceInfo
    from protocol.devicefile import DEVICE_FILE_BYTES, parse_device_file
    from protocol.errors import BadFileError

    try:
        with path.open("rb") as file:
            data = file.read(DEVICE_FILE_BYTES + 1)
    except OSError as error:
        raise BadFileError(f"{path} cannot be read: {error.strerror}.") from None
    device, _ = parse_device_file(data, str(path), DeviceInfo(model="unnamed device"))
    return msgspec.to_builtins(device)


def _show_match(found: dict[str, Any]) -> None:
    chosen = found["chosen"]
    if chosen is not None:
        click.echo(f"{chosen['file_name']}: {chosen['version']} ({chosen['kind']}, {chosen['size']} bytes)")
    click.echo(found["sentence"])
    for forecast in found["forecasts"]:
        click.echo(f"But: {forecast['detail']}")
    rows = [
        (rejected["version"], rejected["kind"], rejected["file_name"], one["field"], one["wants"], one["has"])
        for rejected in found["rejected"]
        for one in rejected["mismatches"]
    ]
    if rows:
        click.echo()
        table(("NOT", "KIND", "FILE", "FIELD", "WANTS", "HAS"), rows)
