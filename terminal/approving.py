"""`lockstep-terminal approve` and `revoke`: let a device into the account, or turn one out of it.

A person is asked between two connections: however long they look, nothing waits for them.
"""

import asyncio
import sys
from typing import TYPE_CHECKING

import click

from protocol.errors import UsageError
from terminal.place import Place, common_options, connected_client

if TYPE_CHECKING:
    from protocol.messages import DeviceRow, PairingResult


@click.command()
@click.argument("code", metavar="CODE|URL")
@click.option("--yes", is_flag=True, help="Let it in without asking.")
@click.option("--no", is_flag=True, help="Turn it away without asking.")
@common_options
def approve(place: Place, code: str, yes: bool, no: bool) -> int:
    """Show which device waits with CODE, and make it a terminal of this account if you say so.

    Look whether the key that it shows is the one shown here: then it is the device before you, and no other.
    """
    from terminal.pairing import parse_code
    from terminal.tables import printable

    if yes and no:
        raise UsageError("--yes and --no together say nothing.", hint="Give one of them.")
    account, asks = asyncio.run(_look(place, parse_code(code)))
    if not place.as_json or not (yes or no):  # nobody is asked about what they have not seen
        click.echo(_asking_words(asks), err=place.as_json)
    accept = yes or (not no and _agreed(f"Make it a device of account {account}?"))
    asyncio.run(_answer(place, asks, accept))
    did = f"now a device of account {account}" if accept else "turned away"
    place.show({**_facts(asks), "account": account, "approved": accept}, f"{printable(asks.name)} is {did}.")
    return 0


async def _look(place: Place, code: str) -> "tuple[str, PairingResult]":
    async with connected_client(place) as client:
        return client.identity.account, await client.pairing(code)


async def _answer(place: Place, asks: "PairingResult", accept: bool) -> None:
    async with connected_client(place) as client:
        await client.approve(asks, accept=accept)


def _facts(asks: "PairingResult") -> dict[str, object]:
    from protocol.keys import fingerprint

    key = fingerprint(asks.device_key)
    return {"code": asks.code, "name": asks.name, "device": asks.device, "address": asks.address, "device_key": key}


def _asking_words(asks: "PairingResult") -> str:
    from protocol.keys import fingerprint
    from terminal.tables import facts_table, plain_text, system_words

    facts = {
        "name": asks.name,
        "model": asks.device.model,
        "kind": asks.device.form_factor,
        "system": system_words(asks.device),
        "address": asks.address,
        "key": fingerprint(asks.device_key),
    }
    return plain_text(facts_table(facts))


def _agreed(question: str) -> bool:
    """Ask the person at the screen. Raises UsageError where there is nobody to ask."""
    if not sys.stdin.isatty():
        raise UsageError("There is no screen to ask on.", hint="Add --yes, or see --help.")
    return click.confirm(question, err=True)


@click.command()
@click.argument("device", metavar="NAME|ID")
@click.option("--yes", is_flag=True, help="Do not ask.")
@common_options
def revoke(place: Place, device: str, yes: bool) -> int:
    """Turn DEVICE out of the account: its key is dead for ever, and it is sent nothing more.

    What is installed on it stays there. It may come back with `login --replace`, as a new device.
    """
    from terminal.tables import printable

    this, row = asyncio.run(_named(place, device))
    named = f"{printable(row.name)} ({row.terminal})"
    itself = " It is this device itself." if row.terminal == this else ""
    if not yes and not _agreed(f"Revoke {named}, {printable(row.device.model)}?{itself}"):
        place.show({"terminal": row.terminal, "name": row.name, "revoked": False}, f"{named} stays.")
        return 1
    asyncio.run(_revoke(place, row.terminal))
    place.show({"terminal": row.terminal, "name": row.name, "revoked": True}, f"{named} is revoked.")
    return 0


async def _named(place: Place, given: str) -> "tuple[str, DeviceRow]":
    from terminal.targets import choose_device

    async with connected_client(place) as client:
        return client.identity.terminal, choose_device(given, await client.devices())


async def _revoke(place: Place, terminal: str) -> None:
    async with connected_client(place) as client:
        await client.revoke(terminal)
