"""`lockstep-hub account` and `lockstep-hub device`: who may use this hub, with what right, and who may no longer."""

import sys
import time
from pathlib import Path
from typing import Any, Final

import click

from hub.commandline import ask_hub, data_option, json_option, show, table
from protocol.errors import UsageError

_RIGHTS: Final = click.Choice(["approve", "initiate", "publish", "receive"])
_PASSWORD_OPTION: Final = click.option(
    "--password-stdin", is_flag=True, help="Read the password from standard input, one line."
)


@click.group()
def account() -> None:
    """Accounts: one for each person or fleet."""


@account.command("add")
@click.argument("name")
@_PASSWORD_OPTION
@click.option("--may-publish", is_flag=True, help="Its devices may publish installers.")
@data_option
@json_option
def account_add(
    name: str, password_stdin: bool, may_publish: bool, data: str | None, config_file: Path | None, as_json: bool
) -> None:
    """Add an account."""
    arguments = {"name": name, "password": _read_password(password_stdin), "may_publish": may_publish}
    result = ask_hub(data, config_file, "account add", arguments)
    show(result, as_json, lambda: click.echo(f"Account {result['account']} is there. Devices log in with it now."))


@account.command("allow")
@click.argument("name")
@click.argument("right", type=_RIGHTS)
@data_option
@json_option
def account_allow(name: str, right: str, data: str | None, config_file: Path | None, as_json: bool) -> None:
    """Give the devices of an account a right."""
    result = ask_hub(data, config_file, "account right", {"name": name, "right": right, "allowed": True})
    show(result, as_json, lambda: click.echo(f"Devices of {name} may {right} now."))


@account.command("deny")
@click.argument("name")
@click.argument("right", type=_RIGHTS)
@data_option
@json_option
def account_deny(name: str, right: str, data: str | None, config_file: Path | None, as_json: bool) -> None:
    """Take a right back from the devices of an account; from now on it counts no more."""
    result = ask_hub(data, config_file, "account right", {"name": name, "right": right, "allowed": False})
    show(result, as_json, lambda: click.echo(f"Devices of {name} may not {right} any more."))


@account.command("disable")
@click.argument("name")
@data_option
@json_option
def account_disable(name: str, data: str | None, config_file: Path | None, as_json: bool) -> None:
    """Close every device of an account out, until it is enabled again."""
    result = ask_hub(data, config_file, "account disable", {"name": name})
    ended = (
        "1 delivery to its devices has"
        if result["denied"] == 1
        else f"{result['denied']} deliveries to its devices have"
    )
    words = f"Account {name} is disabled. {ended} ended."
    show(result, as_json, lambda: click.echo(words))


@account.command("enable")
@click.argument("name")
@data_option
@json_option
def account_enable(name: str, data: str | None, config_file: Path | None, as_json: bool) -> None:
    """Let the devices of a disabled account in again, with the keys they have."""
    result = ask_hub(data, config_file, "account enable", {"name": name})
    show(result, as_json, lambda: click.echo(f"Account {name} is enabled. Its devices come back by themselves."))


@account.command("password")
@click.argument("name")
@_PASSWORD_OPTION
@click.option("--keep-devices", is_flag=True, help="Leave its devices logged in; otherwise they are revoked.")
@data_option
@json_option
def account_password(
    name: str, password_stdin: bool, keep_devices: bool, data: str | None, config_file: Path | None, as_json: bool
) -> None:
    """Change an account's password, and revoke its devices."""
    arguments = {"name": name, "password": _read_password(password_stdin), "keep_devices": keep_devices}
    result = ask_hub(data, config_file, "account password", arguments)
    kept = "Its devices stay." if keep_devices else _revoked_words(result["revoked"])
    show(result, as_json, lambda: click.echo(f"The password of {name} is changed. {kept}"))


@account.command("list")
@data_option
@json_option
def account_list(data: str | None, config_file: Path | None, as_json: bool) -> None:
    """List the accounts."""
    rows = ask_hub(data, config_file, "account list", {})
    lines = [(row["name"], row["terminals"], _rights_words(row)) for row in rows]
    show(rows, as_json, lambda: table(("ACCOUNT", "TERMINALS", "MAY"), lines))


def _rights_words(row: dict[str, Any]) -> str:
    return "disabled" if row["disabled_at"] else " ".join(row["rights"]) or "-"


@click.group()
def device() -> None:
    """Devices of an account: their rights, and which are no longer its own. DEVICE is a name or an id."""


@device.command("list")
@click.argument("account", default="")
@data_option
@json_option
def device_list(account: str, data: str | None, config_file: Path | None, as_json: bool) -> None:
    """List the devices of ACCOUNT, or of all accounts."""
    rows = ask_hub(data, config_file, "device list", {"account": account})
    lines = [
        (row["account"], row["name"], row["terminal"], row["standing"] or "good", _posture_words(row),
         " ".join(row["rights"]) or "-", _moment(row["last_seen_at"]), row["address"], " ".join(row["tags"]))
        for row in rows
    ]  # fmt: skip
    header = ("ACCOUNT", "DEVICE", "ID", "STANDING", "POSTURE", "MAY", "LAST SEEN", "ADDRESS", "TAGS")
    show(rows, as_json, lambda: table(header, lines))


def _revoked_words(count: int) -> str:
    if count == 1:
        return "1 device is revoked and has to log in anew."
    return f"{count} devices are revoked and have to log in anew."


def _posture_words(row: dict[str, Any]) -> str:
    """Say what the device last said of its own programs."""
    if not row["posture_at"]:
        return "-"
    if row["posture_findings"]:
        return f"{row['posture_findings']} finding{'s' if row['posture_findings'] != 1 else ''}"
    return "clean" if row["posture_complete"] else "incomplete"


def _moment(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(at))


@device.command("revoke")
@click.argument("account")
@click.argument("device")
@data_option
@json_option
def device_revoke(account: str, device: str, data: str | None, config_file: Path | None, as_json: bool) -> None:
    """Remove a device from its account: its key is dead for ever, and what it is owed has ended."""
    result = ask_hub(data, config_file, "device revoke", {"account": account, "device": device})
    words = f"{device} ({result['terminal']}) is revoked. {result['denied']} deliveries to it have ended."
    show(result, as_json, lambda: click.echo(words))


@device.command("allow")
@click.argument("account")
@click.argument("device")
@click.argument("right", type=_RIGHTS)
@data_option
@json_option
def device_allow(
    account: str, device: str, right: str, data: str | None, config_file: Path | None, as_json: bool
) -> None:
    """Give a device back a right that was taken from it. It counts where its account has it too."""
    arguments = {"account": account, "device": device, "right": right, "allowed": True}
    result = ask_hub(data, config_file, "device right", arguments)
    show(result, as_json, lambda: click.echo(f"{device} may {right} where its account may."))


@device.command("deny")
@click.argument("account")
@click.argument("device")
@click.argument("right", type=_RIGHTS)
@data_option
@json_option
def device_deny(
    account: str, device: str, right: str, data: str | None, config_file: Path | None, as_json: bool
) -> None:
    """Take a right from one device; from now on it counts no more."""
    arguments = {"account": account, "device": device, "right": right, "allowed": False}
    result = ask_hub(data, config_file, "device right", arguments)
    show(result, as_json, lambda: click.echo(f"{device} may not {right} any more."))


@device.command("clear")
@click.argument("account")
@click.argument("device")
@data_option
@json_option
def device_clear(account: str, device: str, data: str | None, config_file: Path | None, as_json: bool) -> None:
    """End the alarm of a device whose key was seen in two places, after you have looked into it."""
    result = ask_hub(data, config_file, "device clear", {"account": account, "device": device})
    words = f"The alarm of {device} is over." if result["cleared"] else f"There is no alarm of {device}."
    show(result, as_json, lambda: click.echo(words))


def _read_password(from_stdin: bool) -> str:
    if from_stdin:
        return sys.stdin.readline().rstrip("\r\n")
    if not sys.stdin.isatty():
        raise UsageError("There is no terminal to ask for the password on.", hint="Use --password-stdin.")
    password: str = click.prompt("Password", hide_input=True, confirmation_prompt=True)
    return password
