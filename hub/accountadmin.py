"""The operator's commands about accounts and devices, as `hub/admin.py` performs them."""

from typing import Any, Final

import msgspec

from hub.app import Hub
from hub.records import Right

COMMANDS: Final = frozenset({
    "account add", "account list", "account right", "account disable", "account enable", "account password",
    "device list", "device revoke", "device right", "device clear",
})  # fmt: skip


async def perform(hub: Hub, command: str, arguments: dict[str, Any]) -> Any:
    """Carry out one command and return its result as JSON values. Raises LockstepError."""
    if command.startswith("device "):
        return await _device(hub, command, arguments)
    match command:
        case "account list":
            return msgspec.to_builtins(await hub.accounts.listing())
        case "account add":
            name, may_publish = arguments["name"], arguments.get("may_publish") is True
            await hub.accounts.add(name, arguments["password"], may_publish=may_publish)
            return {"account": name}
        case _:
            return await _change_account(hub, command, arguments["name"], arguments)


async def _change_account(hub: Hub, command: str, name: str, arguments: dict[str, Any]) -> Any:
    match command:
        case "account right":
            right, allowed = msgspec.convert(arguments["right"], Right), arguments["allowed"] is True
            await hub.revocation.allow_account(name, right, allowed=allowed)
            return {"account": name, "right": right, "allowed": allowed}
        case "account disable":
            return {"account": name, "denied": await hub.revocation.disable(name)}
        case "account enable":
            await hub.revocation.enable(name)
            return {"account": name}
        case _:
            keep_devices = arguments.get("keep_devices") is True
            revoked = await hub.revocation.set_password(name, arguments["password"], keep_devices=keep_devices)
            return {"account": name, "revoked": revoked}


async def _device(hub: Hub, command: str, arguments: dict[str, Any]) -> Any:
    account = arguments["account"]
    if command == "device list":
        return msgspec.to_builtins(await hub.revocation.listing(account))
    device = arguments["device"]
    match command:
        case "device revoke":
            terminal, denied = await hub.revocation.revoke(account, device)
            return {"account": account, "terminal": terminal.terminal_id, "name": terminal.name, "denied": denied}
        case "device right":
            right, allowed = msgspec.convert(arguments["right"], Right), arguments["allowed"] is True
            terminal = await hub.revocation.allow_device(account, device, right, allowed=allowed)
            return {"account": account, "terminal": terminal.terminal_id, "right": right, "allowed": allowed}
        case _:
            return {"account": account, "cleared": await hub.revocation.clear(account, device)}
