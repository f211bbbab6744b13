"""`lockstep-hub joinkey`, `key` and `account link`: how devices come to be terminals of this hub."""

import re
import time
from pathlib import Path
from typing import Any, Final

import click

from hub.commandline import ask_hub, data_option, json_option, show, table
from protocol.errors import UsageError

_SECONDS: Final = {"m": 60, "h": 3_600, "d": 86_400}


@click.group()
def joinkey() -> None:
    """Join keys: with one, devices enrol with nobody there."""


@joinkey.command("add")
@click.argument("account")
@click.option("--uses", default=1, show_default=True, help="How many devices it is good for.")
@click.option("--expires", default="24h", show_default=True, metavar="TIME", help="For how long: 30m, 24h, 7d.")
@click.option("--tag", "tags", multiple=True, metavar="TAG", help="Given to each device that enrols with it.")
@data_option
@json_option
def joinkey_add(
    account: str,
    uses: int,
    expires: str,
    tags: tuple[str, ...],
    data: str | None,
    config_file: Path | None,
    as_json: bool,
) -> None:
    """Make a join key of an account and show it, once: only its digest is kept."""
    arguments = {"account": account, "uses": uses, "seconds": _seconds(expires), "tags": tags}
    result = ask_hub(data, config_file, "joinkey add", arguments)
    show(result, as_json, lambda: _show_key(result))


@joinkey.command("list")
@data_option
@json_option
def joinkey_list(data: str | None, config_file: Path | None, as_json: bool) -> None:
    """List the join keys; their secrets are not kept."""
    rows = ask_hub(data, config_file, "joinkey list", {})
    lines = [
        (row["join_key"], row["account"], f"{row['uses_left']} of {row['uses']}", _state(row), " ".join(row["tags"]))
        for row in rows
    ]
    show(rows, as_json, lambda: table(("JOIN KEY", "ACCOUNT", "USES LEFT", "GOOD UNTIL", "TAGS"), lines))


@joinkey.command("revoke")
@click.argument("join_key")
@data_option
@json_option
def joinkey_revoke(join_key: str, data: str | None, config_file: Path | None, as_json: bool) -> None:
    """Have a join key make no further device; those it has made stay (see `device revoke`)."""
    result = ask_hub(data, config_file, "joinkey revoke", {"join_key": join_key})
    show(result, as_json, lambda: click.echo(f"Join key {join_key} makes no further device."))


@click.command()
@data_option
@json_option
def key(data: str | None, config_file: Path | None, as_json: bool) -> None:
    """Print the fingerprint of the hub's key, which `lockstep-terminal login --hub-key` holds a hub to."""
    result = ask_hub(data, config_file, "key", {})
    show(result, as_json, lambda: click.echo(result["fingerprint"]))


@click.command("link")
@click.argument("name")
@click.argument("subject", default="")
@click.option("--remove", is_flag=True, help="Link the account with nobody.")
@data_option
@json_option
def account_link(
    name: str, subject: str, remove: bool, data: str | None, config_file: Path | None, as_json: bool
) -> None:
    """Link an account with SUBJECT: whose token has that `sub` at the identity provider may enrol devices in it."""
    if remove == bool(subject):
        raise UsageError("Give a SUBJECT, or --remove.")
    result = ask_hub(data, config_file, "account link", {"name": name, "subject": subject})
    words = f"with {result['subject']}" if subject else "with nobody"
    show(result, as_json, lambda: click.echo(f"Account {name} is linked {words} now."))


def _seconds(text: str) -> int:
    """Return the seconds of 30m, 24h or 7d. Raises UsageError."""
    found = re.fullmatch(r"(\d{1,6})([mhd])", text)
    if found is None:
        raise UsageError(f"{text!r} is not a time.", hint="For example 30m, 24h or 7d.")
    return int(found[1]) * _SECONDS[found[2]]


def _show_key(result: dict[str, Any]) -> None:
    click.echo(result["secret"])
    uses = "1 device" if result["uses"] == 1 else f"{result['uses']} devices"
    click.echo(
        f"Join key {result['join_key']} of {result['account']}, good for {uses} until "
        f"{_local(result['expires_at'])}. It is shown this once.",
        err=True,
    )


def _state(row: dict[str, Any]) -> str:
    if row["revoked_at"]:
        return "revoked"
    return "expired" if row["expires_at"] <= time.time() else _local(row["expires_at"])


def _local(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(at))
