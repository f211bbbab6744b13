"""The operator's commands about enrolling, performed: join keys, accounts and identities, the hub's fingerprint."""

from typing import Any, Final

import msgspec

from hub.app import Hub
from protocol.errors import UsageError
from protocol.keys import fingerprint

COMMANDS: Final = frozenset({"account link", "joinkey add", "joinkey list", "joinkey revoke", "key"})


async def perform(hub: Hub, command: str, arguments: dict[str, Any]) -> Any:
    """Carry out one command and return its result as JSON values. Raises LockstepError."""
    match command:
        case "joinkey add":
            key, secret = await hub.join_keys.add(
                arguments["account"],
                uses=msgspec.convert(arguments["uses"], int),
                seconds=msgspec.convert(arguments["seconds"], float),
                tags=msgspec.convert(arguments.get("tags", ()), tuple[str, ...]),
            )
            return msgspec.to_builtins(key) | {"secret": secret}
        case "joinkey list":
            return msgspec.to_builtins(await hub.join_keys.listing())
        case "joinkey revoke":
            await hub.join_keys.revoke(arguments["join_key"])
            return {"join_key": arguments["join_key"]}
        case "account link":
            subject = _subject(hub.settings.oidc_issuer, arguments["subject"])
            await hub.accounts.link(arguments["name"], subject)
            return {"account": arguments["name"], "subject": subject}
        case _:
            return {"fingerprint": fingerprint(hub.hub_key.public), "key": hub.hub_key.public.hex()}


def _subject(issuer: str, text: str) -> str:
    """Return the issuer, a blank and the token's `sub`; the issuer may be left out where the settings name one."""
    if " " in text or not text:
        return text
    if not issuer:
        raise UsageError(
            f"{text!r} is somebody at which identity provider?", hint='Set oidc_issuer, or give "ISSUER SUB" in quotes.'
        )
    return f"{issuer} {text}"
