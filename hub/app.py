"""Composition root: build the hub's rooms, start and stop them, in order.

The data folder holds everything: `hub.lock` (held while anything uses the folder), `hub.key` (the hub's Ed25519 seed),
`hub.db`, `objects/`, `uploads/` (what is on its way up from terminals), and `admin.sock` while a hub runs.
"""

import fcntl
import os
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from hub.accounts import Accounts
from hub.audit import AuditLog
from hub.backup import DATABASE_NAME, KEY_NAME
from hub.catalogue import Catalogue
from hub.clock import HubClock
from hub.config import Settings
from hub.deliveries import Deliveries
from hub.enrolling import Enrolling, provider_of
from hub.handing import HandedRules
from hub.joinkeys import JoinKeys
from hub.objects import Objects
from hub.passwords import Passwords
from hub.pokes import Pokes
from hub.postures import Postures
from hub.presence import Presence
from hub.reaper import Reaper
from hub.rescans import Rescans
from hub.revocation import Revocation
from hub.scanning import ClamdEngine, CommandEngine, Engine, Scanning, YaraEngine
from hub.scrub import scrubbing_weekly
from hub.server import HubServer
from hub.standing import Standings
from hub.steps import sync_folder
from hub.store import Store
from hub.syncs import Syncs
from hub.terminalsocket import Services
from hub.uploads import Uploads
from protocol import limits
from protocol.errors import BadFileError, RefusedError, UnavailableError
from protocol.keys import SigningKey
from protocol.quiet import quiet_hours
from scanner.rules import STARTER_SET


class Hub:
    """The rooms of one open data folder."""

    def __init__(self, settings: Settings, store: Store, hub_key: SigningKey) -> None:
        self.settings = settings
        self.reload: list[Callable[[], None]] = []  # called at SIGHUP; each raises LockstepError and keeps what it had
        self.store = store
        self.hub_key = hub_key
        self.audit = AuditLog(store, hub_key)
        self.pokes = Pokes()
        self.presence = Presence()
        self.passwords = Passwords()
        self.objects = Objects(
            settings.data_folder / "objects",
            reserve_bytes=_reserve_bytes(settings),
            store_bytes=settings.store_bytes,
            on_disk_failure=store.fail,
        )
        self.scanning = Scanning(self.objects, scan_engines(settings), seconds=settings.scan_seconds)
        self.catalogue = Catalogue(store, self.objects, self.scanning)
        self.handed_rules = HandedRules(store, self.objects, self.scanning, settings.policy)
        self.standings = Standings(settings.policy, lambda: self.handed_rules.current)
        self.accounts = Accounts(
            store,
            self.passwords,
            terminals_per_account=settings.terminals_per_account,
            standings=self.standings,
        )
        self.join_keys = JoinKeys(store)
        self.enrolling = Enrolling(
            store,
            self.accounts,
            self.standings,
            provider_of(settings),
            create_accounts=settings.oidc_create_accounts,
        )
        self.clock = HubClock()
        is_receiving = self.presence.is_receiving
        self.deliveries = Deliveries(
            store,
            self.pokes,
            self.clock,
            is_receiving,
            quiet=quiet_hours(settings.quiet_hours),
            standings=self.standings,
        )
        self.revocation = Revocation(store, self.pokes, self.presence, self.accounts, self.deliveries, self.standings)
        self.postures = Postures(store, self.standings, settings.scan_ignore)
        self.rescans = Rescans(store, self.scanning, self.deliveries, self.pokes)
        self.uploads = Uploads(
            settings.data_folder / "uploads",
            objects=self.objects,
            catalogue=self.catalogue,
            accounts=self.accounts,
            clock=self.clock,
            reserve_bytes=_reserve_bytes(settings),
        )
        self.syncs = Syncs(
            store,
            self.pokes,
            self.deliveries,
            self.clock,
            is_receiving,
            check_room=self.objects.check_room_for_rows,
            delivery_seconds=settings.delivery_seconds,
            standings=self.standings,
        )


def scan_engines(settings: Settings) -> tuple[Engine, ...]:
    """Return the engines that are set up."""
    engines: list[Engine] = []
    if settings.scan_yara:
        folder = Path(settings.scan_rules) if settings.scan_rules else STARTER_SET
        engines.append(YaraEngine(folder, settings.scan_ignore))
    if settings.scan_clamd:
        engines.append(ClamdEngine(settings.scan_clamd, settings.scan_ignore))
    if settings.scan_command:
        engines.append(CommandEngine(settings.scan_command, settings.scan_ignore))
    return tuple(engines)


@asynccontextmanager
async def open_hub(settings: Settings) -> AsyncIterator[Hub]:
    """Open the data folder, holding its lock. Raises RefusedError when another process has it."""
    with _lock(settings.data_folder):
        database = settings.data_folder / DATABASE_NAME
        database.touch(mode=0o600)  # SQLite gives the files beside it the same mode
        hub_key = _load_key(settings.data_folder / KEY_NAME)
        store = await Store.open(database)
        try:
            hub = Hub(settings, store, hub_key)
            sync_folder(settings.data_folder)  # what was named in it just now; after a power cut it has to be there
            try:
                yield hub
            finally:
                hub.passwords.close()
                hub.scanning.close()
        finally:
            await store.close()  # or its thread would keep a process alive that could not start


@asynccontextmanager
async def serve_hub(hub: Hub) -> AsyncIterator[HubServer]:
    """Serve terminals on the hub's address until the block is left."""
    await hub.deliveries.start()
    await hub.uploads.start()
    services = Services(
        settings=hub.settings,
        hub_key=hub.hub_key,
        accounts=hub.accounts,
        enrolling=hub.enrolling,
        objects=hub.objects,
        pokes=hub.pokes,
        presence=hub.presence,
        deliveries=hub.deliveries,
        syncs=hub.syncs,
        uploads=hub.uploads,
        revocation=hub.revocation,
        postures=hub.postures,
    )
    server = HubServer(services)
    await server.start()
    hub.reload += (server.reception.reload, hub.rescans.reload)
    reaper = Reaper(hub.deliveries, hub.pokes, hub.presence, hub.uploads, hub.revocation, hub.handed_rules)
    async with hub.audit.signing_daily():  # outermost: at its end it signs what the others have still written
        try:
            scrubbing = scrubbing_weekly(hub.store, hub.objects, hub.settings.data_folder, hub.audit)
            async with reaper.running(), scrubbing, hub.rescans.running():
                yield server
        finally:
            await server.stop()
            await hub.uploads.close()


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    try:
        _make_folder(folder)
        descriptor = os.open(folder / "hub.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise UnavailableError(f"The data folder {folder} cannot be used: {error.strerror}.") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise RefusedError(
            f"The data folder {folder} is in use by another process.",
            hint="One process at a time; a running hub takes commands itself.",
            code="in-use",
        ) from None
    try:
        yield
    finally:
        os.close(descriptor)


def _make_folder(folder: Path) -> None:
    """Create a folder and those above it that are not there, and put their names on the disk."""
    missing = [one for one in (folder, *folder.parents) if not one.exists()]
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for one in missing:
        sync_folder(one.parent)


def _reserve_bytes(settings: Settings) -> int:
    """Return what is kept free: as set; the default gives way to 5 % of a disk that is smaller than 20 GiB."""
    if settings.disk_reserve_bytes != Settings().disk_reserve_bytes:
        return settings.disk_reserve_bytes
    return min(settings.disk_reserve_bytes, shutil.disk_usage(settings.data_folder).total // 20)


def _load_key(path: Path) -> SigningKey:
    """Return the hub's key, made at the first start."""
    try:
        if not path.exists():
            _write_key(path, SigningKey.generate())
        seed = path.read_bytes()
    except OSError as error:
        raise UnavailableError(f"The hub's key {path} cannot be used: {error.strerror}.") from None
    if len(seed) != limits.KEY_BYTES:
        raise BadFileError(
            f"The hub's key {path} has {len(seed)} bytes instead of {limits.KEY_BYTES}.",
            hint="Bring the file back from a backup: every terminal has pinned this key.",
        )
    return SigningKey(seed)


def _write_key(path: Path, key: SigningKey) -> None:
    temporary = path.with_suffix(".new")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, "wb") as stream:  # noqa: PTH123
        stream.write(key.seed)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)
