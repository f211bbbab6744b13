"""Enrolling: make this device a terminal of an account in one of four ways, and keep who it is.

By the account's password, by a join key, by an identity provider's token, or by pairing: the device shows a code and
waits until somebody who is logged in approves it. All four end in keys of the device, made before they are first used.
"""

import asyncio
from collections.abc import Callable
from dataclasses import replace as changed
from pathlib import Path
from typing import Final

from protocol import keys, limits, messages
from protocol.device import DeviceInfo
from protocol.errors import LockstepError, RefusedError, UnavailableError, UsageError
from terminal.agent import back_off
from terminal.connection import OnPairing, connected
from terminal.dialling import Address, HubSocket, parse_address
from terminal.pairing import PairingShown, page_url
from terminal.session import Enrolling, ShowPairing
from terminal.state import Identity, Seeds, StateFolder

REDIAL_EVERY_SECONDS: Final = 5.0  # at most, while somebody is on the way to approve this device
PAIRING_LONGEST_SECONDS: Final = 3_600.0  # however many codes a hub that is started again and again gives


async def enrol(
    folder: StateFolder,
    url: str,
    *,
    name: str,
    device: DeviceInfo,
    account: str = "",
    password: str = "",
    join_key: str = "",
    token: bytes = b"",
    on_pairing: Callable[[PairingShown], None] | None = None,
    insecure_lan: bool = False,
    ca_file: Path | None = None,
    replace: bool = False,
    hub_fingerprint: str = "",
    socket_class: type[HubSocket] = HubSocket,
) -> Identity:
    """Make this device a terminal at the hub at `url`, and keep who it is in `folder`.

    By `account` and `password`, `join_key`, `token`, or, with `on_pairing`, by a code that it is called with: once at
    first and again after each break of the connection, when the code may be another.

    The same device gives the same terminal again. A hub it enrolled at before has to be the same still, before it is
    told anything, and the device keeps its keys; `replace` says that neither need be so. A `hub_fingerprint` has to be
    that of the hub's key in any case.

    Raises UsageError for a bad URL, RefusedError for a wrong proof (`not-authorised`), another hub (`hub-key-changed`),
    a code nobody approved (`pairing-denied`, `pairing-expired`), keys that are dead (`revoked`) or a folder in use,
    UnavailableError when the hub cannot be reached.
    """
    address = parse_address(url, insecure_lan=insecure_lan, ca_file=ca_file)
    check_name(name, "name")
    if account or password:
        check_name(account, "name of an account")
    with folder.lock():
        seeds = _seeds(folder, account, replace)
        opening = Enrolling(
            account=account,
            password=password,
            join_key=join_key,
            token=token,
            pair=on_pairing is not None,
            name=name,
            device=device,
            signing_key=keys.SigningKey(seeds.device_seed),
            sealing_key=keys.SealingKey(seeds.sealing_seed).public,
            host=address.host,
            port=address.port,
            hub_key=folder.identity().hub_key if folder.has_identity() and not replace else b"",
            hub_fingerprint=hub_fingerprint,
        )
        welcome, hub_key = await _admitted(address, opening, folder, socket_class, on_pairing)
        identity = Identity(
            url=url,
            account=welcome.account,
            terminal=welcome.terminal,
            name=welcome.name,
            hub_key=hub_key,
            device_seed=seeds.device_seed,
            sealing_seed=seeds.sealing_seed,
            insecure_lan=insecure_lan,
            ca_file=str(ca_file.absolute()) if ca_file else "",
        )
        _keep(folder, identity, device)
        return identity


def check_name(name: str, what: str) -> None:
    """Raise UsageError unless `name` can be one; `what` it is comes first in the sentence."""
    if not name.strip() or len(name) > limits.NAME_CHARACTERS:
        raise UsageError(
            f"A {what} has 1 to {limits.NAME_CHARACTERS} characters, not all spaces; {name[:80]!r} is none."
        )
    if name != name.encode(errors="replace").decode():
        raise UsageError(f"The {what} {name!r} is not Unicode.", hint="Give another one.")


def _seeds(folder: StateFolder, account: str, replace: bool) -> Seeds:
    """Return the keys of the terminal this device is, as far as it is to stay one, else those it is to be one with."""
    if folder.has_identity() and not replace:
        known = folder.identity()
        if account in ("", known.account):
            return Seeds(account=known.account, device_seed=known.device_seed, sealing_seed=known.sealing_seed)
    return folder.seeds(account, renew=replace)


async def _admitted(
    address: Address,
    opening: Enrolling,
    folder: StateFolder,
    socket_class: type[HubSocket],
    on_pairing: Callable[[PairingShown], None] | None,
) -> tuple[messages.Welcome, bytes]:
    try:
        if on_pairing is None:
            return await _welcomed(address, opening, folder, socket_class)
        return await _paired(address, opening, folder, socket_class, on_pairing)
    except LockstepError as error:
        if error.code in ("revoked", "already-logged-in"):
            folder.drop_seeds()  # no enrolment with them can be
        raise


async def _welcomed(
    address: Address,
    opening: Enrolling,
    folder: StateFolder,
    socket_class: type[HubSocket],
    on_pairing: OnPairing | None = None,
) -> tuple[messages.Welcome, bytes]:
    """Enrol over one connection; return the hub's welcome and its key."""
    show = on_pairing or (lambda _shown: None)
    async with connected(address, opening, folder, on_pairing=show, socket_class=socket_class) as connection:
        return connection.welcome, connection.hub_key


async def _paired(
    address: Address,
    opening: Enrolling,
    folder: StateFolder,
    socket_class: type[HubSocket],
    on_pairing: Callable[[PairingShown], None],
) -> tuple[messages.Welcome, bytes]:
    """Enrol by a code, over as many connections as it takes while the code holds; all are to the same hub."""
    loop = asyncio.get_running_loop()
    give_up_at, last_at = float("-inf"), loop.time() + PAIRING_LONGEST_SECONDS
    held_to = opening

    def show(shown: ShowPairing) -> None:
        nonlocal give_up_at, held_to
        seconds = min(shown.pairing.seconds, limits.PAIRING_SECONDS)
        give_up_at = min(loop.time() + seconds, last_at)
        held_to = changed(opening, hub_key=shown.hub_key)
        code, key = shown.pairing.code, opening.signing_key.public
        on_pairing(PairingShown(code, page_url(address.url, code), seconds, keys.fingerprint(key)))

    delays = back_off()
    while True:
        try:
            return await _welcomed(address, held_to, folder, socket_class, show)
        except UnavailableError:
            if held_to is opening:  # it has shown no code yet
                raise
        if loop.time() >= give_up_at:
            raise RefusedError(
                "Nobody approved this device in time.",
                hint="The same command again shows a code again.",
                code="pairing-expired",
            )
        await asyncio.sleep(min(next(delays), REDIAL_EVERY_SECONDS))


def _keep(folder: StateFolder, identity: Identity, device: DeviceInfo) -> None:
    before = folder.identity() if folder.has_identity() else None
    if before is not None and (before.terminal, before.hub_key) != (identity.terminal, identity.hub_key):
        folder.clear_reports()
        folder.save_inbox(())
    folder.save_device(device)
    folder.save_identity(identity)
