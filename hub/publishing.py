"""`lockstep-hub publish` and `catalogue`: files -> the catalogue, and the catalogue as people read it."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar, get_args

import click

from hub.commandline import ask_hub, data_option, json_option, show, table
from protocol.device import Architecture, FormFactor, OsType
from protocol.errors import LockstepError, UsageError

F = TypeVar("F", bound=Callable[..., Any])


def _choice(values: Any) -> click.Choice[str]:
    return click.Choice(get_args(values), case_sensitive=False)


_SELECTOR_OPTIONS: Final = {
    "os_types": click.option("--os", "os_types", multiple=True, type=_choice(OsType), help="OS it is for."),
    "architectures": click.option(
        "--architecture", "architectures", multiple=True, type=_choice(Architecture), help="Architecture it is for."
    ),
    "models": click.option("--model", "models", multiple=True, help="Model it is for; * and ? allowed."),
    "models_excluded": click.option("--exclude-model", "models_excluded", multiple=True, help="Model it is not for."),
    "form_factors": click.option(
        "--form-factor", "form_factors", multiple=True, type=_choice(FormFactor), help="Form factor it is for."
    ),
    "features_required": click.option("--feature", "features_required", multiple=True, help="Feature it needs."),
    "resolution": click.option("--resolution", help="Pixels: 1920x1080, or a range 1280x720-3840x2160."),
    "screen_inches": click.option("--screen-inches", help="Diagonal: 10, or a range 7-13."),
    "density_dpi": click.option("--density", "density_dpi", help="Dots per inch: 320, or a range 160-480."),
    "os_version": click.option("--os-version", help="OS versions: 12-14, 12- or -14."),
}


def _selector_options(command: F) -> F:
    for option in reversed(_SELECTOR_OPTIONS.values()):
        command = option(command)
    return command


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--program", default="", help="Program id (default: the package name in the file).")
@click.option("--title", default="", help="Title people know it by (default: the file's own).")
@_selector_options
@data_option
@json_option
def publish(
    files: tuple[Path, ...],
    program: str,
    title: str,
    data: str | None,
    config_file: Path | None,
    as_json: bool,
    **selector: Any,
) -> None:
    """Put installer files into the catalogue: .deb, .apk, .whl."""
    options = {"program": program, "title": title, "given": _given(selector)}
    results = []
    failed = False
    for file in files:
        try:
            arguments = {"file": str(file.absolute()), "options": options}
            results.append(ask_hub(data, config_file, "publish", arguments))
        except LockstepError as error:
            failed = True
            results.append({"file": str(file), "error": {"code": error.code, "message": error.message}})
            click.echo(f"Error: {error}", err=True)
            continue
        if not as_json:
            _show_published(results[-1])
    if as_json:
        click.echo(json.dumps(results, indent=2))
    if failed:
        sys.exit(1)


def _show_published(row: dict[str, Any]) -> None:
    verb = "published" if row["new"] else "was published before:"
    click.echo(
        f"{verb} {row['program']} {row['version']} ({row['kind']}, for {row['fits']}, "
        f"{row['size']} bytes, {row['stored_size']} to send) {row['digest'][:12]}"
    )


@click.command()
@data_option
@json_option
def catalogue(data: str | None, config_file: Path | None, as_json: bool) -> None:
    """List what is published."""
    rows = ask_hub(data, config_file, "catalogue", {})
    columns = ("program", "version", "kind", "fits", "size", "file_name")
    show(
        rows,
        as_json,
        lambda: table([name.upper() for name in columns], [[row[name] for name in columns] for row in rows]),
    )


def _given(selector: dict[str, Any]) -> dict[str, Any]:
    """Turn the options of `publish` into fields of a Selector. Raises UsageError for a range that is none."""
    given: dict[str, Any] = {}
    for name, value in selector.items():
        if value in (None, ()):
            continue
        if name in ("resolution", "screen_inches", "density_dpi", "os_version"):
            low, high = _range(name, value)
            bounds = ((f"{name}_minimum", low), (f"{name}_maximum", high))
            given |= {key: bound for key, bound in bounds if bound != ""}
        else:
            given[name] = list(value)
    return given


def _range(name: str, text: str) -> tuple[Any, Any]:
    low, separator, high = text.partition("-")
    if not separator:
        high = low
    try:
        return _bound(name, low), _bound(name, high)
    except ValueError:
        option = f"--{name.replace('_dpi', '').replace('_', '-')}"
        raise UsageError(f"{option} {text!r} is not a value or a range MINIMUM-MAXIMUM.") from None


def _bound(name: str, text: str) -> Any:
    if not text or name == "os_version":
        return text
    if name == "resolution":
        width, height = text.lower().split("x")
        return [int(width), int(height)]
    return float(text) if name == "screen_inches" else int(text)
