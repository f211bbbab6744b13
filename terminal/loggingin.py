"""`lockstep-terminal login` in its four ways, and `status`: who this device is, and what it may do.

A secret is never an argument: other users of a machine see those. With `--pair` a screen shows the code, its QR code
and the time that is left; a pipe gets plain lines. With `--json` the first document is the code and the last one how
it ended; a hub that was started anew meanwhile gives another code, which is a document between them.
"""

import asyncio
import contextlib
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from protocol import limits
from protocol.errors import ConflictError, UsageError
from terminal.place import (
    JOIN_KEY_VARIABLE,
    Place,
    common_options,
    local_device,
    print_json,
    read_join_key,
    read_password,
    read_secret,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from terminal.pairing import PairingShown
    from terminal.state import Identity, StateFolder

TICK_SECONDS: Final = 1.0
THE_WAYS: Final = "--account NAME, --pair, --join-key-stdin, --join-key-file FILE, --token-stdin, --token-file FILE"

_file = click.Path(path_type=Path, exists=True, dir_okay=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What `login` was asked for, an option a field."""

    url: str
    account: str | None
    password_stdin: bool
    pair: bool
    join_key_stdin: bool
    join_key_file: Path | None
    token_stdin: bool
    token_file: Path | None
    name: str | None
    hub_key: str
    device_file: Path | None
    insecure_lan: bool
    ca_file: Path | None
    replace: bool


@click.command()
@click.argument("url")
@click.option("--account", metavar="NAME", help="Join this account with its password.")
@click.option("--password-stdin", is_flag=True, help="Read the password from the first line of standard input.")
@click.option("--pair", is_flag=True, help="Show a code, and wait until somebody approves it on another device.")
@click.option("--join-key-stdin", is_flag=True, help="Read a join key from the first line of standard input.")
@click.option(
    "--join-key-file", type=_file, metavar="FILE", help=f"Read a join key from FILE.  [or env: {JOIN_KEY_VARIABLE}]"
)
@click.option("--token-stdin", is_flag=True, help="Read an identity provider's token from standard input.")
@click.option("--token-file", type=_file, metavar="FILE", help="Read an identity provider's token from FILE.")
@click.option("--name", metavar="NAME", help="What the other devices call this one.  [default: the host name]")
@click.option("--hub-key", default="", metavar="sha256:HEX", help="Log in only if the hub's key has this fingerprint.")
@click.option(
    "--device",
    "device_file",
    type=_file,
    metavar="FILE",
    help="TOML file that says what kind of device this is, where detection is wrong.",
)
@click.option("--insecure-lan", is_flag=True, help="Allow ws:// to a hub in the local network: nothing is encrypted.")
@click.option("--ca-file", type=_file, metavar="FILE", help="Certificates (PEM) to trust in place of the system's.")
@click.option(
    "--replace",
    is_flag=True,
    help="Log in anew, with new keys, though this device is logged in, was revoked, or the hub has another key.",
)
@common_options
def login(place: Place, /, **options: Any) -> int:
    """Make this device a terminal of an account at the hub at URL.

    In exactly one way: --account with its password, --pair, a join key, or a token. It is used once and not kept:
    afterwards this device proves itself with its own key.
    """
    from terminal.dialling import show_url
    from terminal.tables import printable

    wishes = Wishes(**options)
    proof = _Proof(wishes)
    folder = place.folder()
    _refuse_other_login(folder, wishes)
    identity = asyncio.run(_log_in(place, folder, wishes, proof))
    of_account = "" if wishes.account else f" of account {identity.account}"
    who = f"Logged in to {show_url(wishes.url)} as {identity.name}{of_account}, terminal {identity.terminal}."
    place.show(login_facts(identity), f"{printable(who)}\nThe hub's key is {identity.hub_fingerprint}.")
    return 0


async def _log_in(place: Place, folder: "StateFolder", wishes: Wishes, proof: "_Proof") -> "Identity":
    from terminal.enrolling import enrol
    from terminal.installers import build_runners

    device, settings = local_device(folder, wishes.device_file)
    build_runners(folder.path / "programs", device.installer_kinds, settings)  # what `run` would refuse is refused now
    described = wishes.device_file.read_bytes() if wishes.device_file else b""
    secrets = proof.read()
    async with contextlib.AsyncExitStack() as stack:
        waiting = await stack.enter_async_context(_shown(place)) if wishes.pair else None
        identity = await enrol(
            folder,
            wishes.url,
            **secrets,
            account=wishes.account or "",
            on_pairing=waiting.show if waiting else None,
            name=wishes.name or _host_name(),
            device=device,
            insecure_lan=wishes.insecure_lan,
            ca_file=wishes.ca_file,
            replace=wishes.replace,
            hub_fingerprint=parse_fingerprint(wishes.hub_key),
        )
    if wishes.device_file:
        folder.save_device_file(described)
    return identity


def login_facts(identity: "Identity | None") -> dict[str, str | None]:
    """Return who a terminal is, for people and programs; nothing secret."""
    facts: dict[str, str | None] = {
        field: getattr(identity, field, None) for field in ("terminal", "name", "account", "url")
    }
    return {**facts, "hub_key": identity.hub_fingerprint if identity else None}


def parse_fingerprint(given: str) -> str:
    """Return a key's fingerprint as `keys.fingerprint` writes it; empty for an empty one. Raises UsageError."""
    text = given.strip().lower()
    if text and not re.fullmatch(r"sha256:[0-9a-f]{64}", text):
        raise UsageError(
            f"{given[:80]!r} is no key's fingerprint.",
            hint="It is sha256: and 64 hexadecimal digits; `lockstep-hub key` prints it.",
        )
    return text


class _Proof:
    """Where the secret of a login comes from. Raises UsageError unless it is said in exactly one way."""

    def __init__(self, wishes: Wishes) -> None:
        ways = {
            "account": wishes.account is not None,
            "pair": wishes.pair,
            "join-key-stdin": wishes.join_key_stdin,
            "join-key-file": wishes.join_key_file is not None,
            "token-stdin": wishes.token_stdin,
            "token-file": wishes.token_file is not None,
        }
        given = [way for way, is_given in ways.items() if is_given]
        if not given and JOIN_KEY_VARIABLE in os.environ:
            given = [JOIN_KEY_VARIABLE]
        if len(given) != 1:
            said = " and ".join(f"--{way}" for way in given) or "None of them"
            raise UsageError(f"Say how to log in, in exactly one way; {said} was given.", hint=f"Ways: {THE_WAYS}.")
        if wishes.password_stdin and given != ["account"]:
            raise UsageError("--password-stdin goes with --account NAME, and nothing else.")
        self._way = given[0]
        self._wishes = wishes

    def read(self) -> dict[str, Any]:
        """Return the secret as the argument that `enrol` takes it by. Raises UsageError for none that can be."""
        wishes = self._wishes
        match self._way:
            case "account":
                return {"password": read_password(wishes.password_stdin)}
            case "pair":
                return {}
            case "token-stdin" | "token-file":
                return {"token": read_secret("token", wishes.token_file, limits.TOKEN_BYTES).encode()}
            case _:
                return {"join_key": read_join_key(wishes.join_key_stdin, wishes.join_key_file)}


def _refuse_other_login(folder: "StateFolder", wishes: Wishes) -> None:
    if wishes.replace or not folder.has_identity():
        return
    known = folder.identity()
    account = wishes.account or known.account
    if (known.url.rstrip("/"), known.account) != (wishes.url.rstrip("/"), account):
        raise ConflictError(
            f"This device is logged in to {known.url} as {known.name} of account {known.account}.",
            hint="Add --replace to log in elsewhere instead, or give another --state folder.",
            code="already-logged-in",
        )


def _host_name() -> str:
    import socket

    return socket.gethostname()[: limits.NAME_CHARACTERS] or "unnamed"


# --- a code that waits to be approved -------------------------------------------------------------------------------


class _Waiting:
    """Shows the code, and on a screen how long it holds."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._on_screen = sys.stdout.isatty() and not place.as_json
        self._code = ""
        self._until = 0.0

    def show(self, shown: "PairingShown") -> None:
        """Take the code as it is now; it is shown again when it is another one."""
        self._until = asyncio.get_running_loop().time() + shown.seconds
        if shown.code == self._code:
            return
        self._code = shown.code
        if self._place.as_json:
            document = {"code": shown.code, "url": shown.url, "seconds": shown.seconds, "device_key": shown.device_key}
            print_json(document)
        else:
            click.echo(_words(shown, self._on_screen))

    async def tick(self) -> None:
        """Keep the time that is left on the screen, until cancelled."""
        from terminal.pairing import time_words

        while True:
            if self._code and self._on_screen:
                left = time_words(self._until - asyncio.get_running_loop().time())
                click.echo(f"\r\x1b[KWaiting to be approved: {left} left. Ctrl-C gives up.", nl=False)
            await asyncio.sleep(TICK_SECONDS)

    def end(self) -> None:
        """Leave the line of the time."""
        if self._code and self._on_screen:
            click.echo("\r\x1b[K", nl=False)


@contextlib.asynccontextmanager
async def _shown(place: Place) -> "AsyncIterator[_Waiting]":
    waiting = _Waiting(place)
    ticking = asyncio.create_task(waiting.tick())
    try:
        yield waiting
    finally:
        ticking.cancel()
        waiting.end()


def _words(shown: "PairingShown", on_screen: bool) -> str:
    from terminal.pairing import code_words, qr_code
    from terminal.tables import duration_words

    return "\n".join(
        [
            f"To let this device in, run on one that is logged in: lockstep-terminal approve {code_words(shown.code)}",
            *(_drawn(qr_code(shown.url)) if on_screen else []),
            f"What to do is also said at {shown.url}",
            f"This device's key is {shown.device_key}.",
            f"The code holds for {duration_words(shown.seconds)}.",
        ]
    )


def _drawn(qr_code: str) -> list[str]:
    """Return the lines of a QR code in white on black, whatever the screen's colours; none where it has no blocks."""
    try:
        qr_code.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return []
    return [f"\x1b[97;40m{line}\x1b[0m" for line in qr_code.split("\n")]


# --- how this device stands -----------------------------------------------------------------------------------------


@click.command()
@common_options
def status(place: Place) -> int:
    """Show which terminal this device is, whether it runs, and what it may do. Needs no hub."""
    from terminal.connection import standing_words
    from terminal.tables import facts_table

    folder = place.folder()
    facts = login_facts(folder.identity())
    is_running = folder.is_locked()
    standing = folder.standing()
    words = standing_words(standing) if standing else "This device may send and receive."
    place.show(
        {**facts, "running": is_running, "standing": standing},
        facts_table({**facts, "running": "yes" if is_running else "no", "standing": words}),
    )
    return 0
