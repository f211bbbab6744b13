"""Accounts and their terminals: the database side of enrolling and logging in."""

import asyncio
import time
import unicodedata
from collections.abc import Callable, Iterator
from weakref import WeakValueDictionary

import msgspec
from msgspec import Struct, structs

from hub.audit import OPERATOR, record
from hub.guesses import Guesses, in_words
from hub.passwords import Passwords
from hub.records import IDENTIFIER, RIGHTS, Right, StandingFound, Terminal, new_id
from hub.standing import DISABLED, REVOKED, Standings, gone
from hub.store import Row, Store, Transaction
from protocol import limits
from protocol.device import DeviceInfo
from protocol.errors import ConflictError, RefusedError, UnavailableError, UnknownNameError, UsageError
from protocol.messages import DeviceRow, Enrol

PASSWORD_CHARACTERS_MINIMUM = 8
ELSEWHERE = "already-logged-in"


class AccountRow(Struct, frozen=True):
    """One account as an operator sees it."""

    name: str
    terminals: int
    created_at: float
    rights: tuple[Right, ...]
    disabled_at: float = 0.0
    subject: str = ""


class Accounts:
    """The accounts of one hub."""

    def __init__(
        self,
        store: Store,
        passwords: Passwords,
        *,
        terminals_per_account: int,
        standings: Standings | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self.standings = standings or Standings()
        self._passwords = passwords
        self._terminals_per_account = terminals_per_account
        self._now = now
        self._guesses = Guesses()
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def add(self, name: str, password: str, *, may_publish: bool = False) -> None:
        """Add an account; its terminals `may_publish` or not.

        The name is kept composed (Unicode NFC), or one that looks the same would be another account. Raises UsageError
        for a bad name or password, ConflictError when it is there already.
        """
        name = unicodedata.normalize("NFC", name)
        if not 1 <= len(name) <= limits.NAME_CHARACTERS or not name.isprintable() or name != name.strip():
            raise UsageError(f"{name!r} is not an account name: 1 to {limits.NAME_CHARACTERS} printable characters.")
        password_hash = await self.hash_password(password)

        async def body(transaction: Transaction) -> bool:
            if await find_account(transaction, name) is not None:
                return False
            added = await transaction.row(
                "add_account", account_id=new_id("a"), name=name, password_hash=password_hash, now=time.time()
            )
            if added is not None:
                rights = " ".join(right for right in RIGHTS if may_publish or right != "publish")
                await transaction.rows("set_account_rights", name=name, rights=rights)
                await record(transaction, OPERATOR, "account.add", name, rights=rights)
            return added is not None

        if not await self._store.transaction(body):
            raise ConflictError(f"There is an account {name!r} already.", hint="Choose another name.")

    async def hash_password(self, password: str) -> str:
        """Return what is kept of a password. Raises UsageError for one that is too short or too long."""
        if not PASSWORD_CHARACTERS_MINIMUM <= len(password) <= limits.TEXT_CHARACTERS:
            raise UsageError(f"A password has at least {PASSWORD_CHARACTERS_MINIMUM} characters.")
        return await self._passwords.hash(password)

    async def listing(self) -> list[AccountRow]:
        """Every account, by name."""

        async def body(transaction: Transaction) -> list[AccountRow]:
            rows = await transaction.rows("accounts")
            return [
                AccountRow(
                    name=row["name"],
                    terminals=row["terminals"],
                    created_at=row["created_at"],
                    rights=tuple(row["rights"].split()),
                    disabled_at=row["disabled_at"] or 0.0,
                    subject=row["subject"] or "",
                )
                for row in rows
            ]

        return await self._store.transaction(body)

    async def allow(self, name: str, right: Right, *, allowed: bool) -> None:
        """Give the terminals of an account a right, or take it back. Raises UnknownNameError."""

        async def body(transaction: Transaction) -> bool:
            account = await find_account(transaction, name)
            if account is None:
                return False
            held = set(account["rights"].split()) - {right} | ({right} if allowed else set())
            rights = " ".join(one for one in RIGHTS if one in held)
            await transaction.rows("set_account_rights", name=account["name"], rights=rights)
            if rights != account["rights"]:
                action = "account.allow" if allowed else "account.deny"
                await record(transaction, OPERATOR, action, account["name"], right=right)
            return True

        if not await self._store.transaction(body):
            raise unknown_account(name)

    async def link(self, name: str, subject: str) -> None:
        """Link an account with who it is at the identity provider: the issuer, a blank, the `sub`; "": with nobody.

        Raises UnknownNameError, ConflictError where another account is linked with that already.
        """

        async def body(transaction: Transaction) -> bool:
            account = await find_account(transaction, name)
            other = await transaction.row("account_by_subject", subject=subject)
            if other is not None and (account is None or other["account_id"] != account["account_id"]):
                raise ConflictError(
                    f"{subject} is linked with the account {other['name']!r} already.", code="subject-taken"
                )
            if account is None:
                return False
            await transaction.rows("link_account", name=account["name"], subject=subject or None)
            await record(transaction, OPERATOR, "account.link", account["name"], identity=subject)
            return True

        if not await self._store.transaction(body):
            raise unknown_account(name)

    async def check_right(self, terminal: str, right: Right) -> None:
        """Raise RefusedError where a terminal may not do this now; see `Standings.check_right`."""
        await self._store.transaction(lambda transaction: self.standings.check_right(transaction, terminal, right))

    async def check_password(self, name: str, password: str, host: str = "") -> str | None:
        """Return the account's id if the password is right, else None, after the same work either way.

        Raises RefusedError (`rate-limited`) where too much has been guessed of this account or from this `host`,
        UnavailableError where too many passwords wait to be evaluated.
        """
        name = unicodedata.normalize("NFC", name)  # the guesses of one account are counted by it
        account = await self._store.transaction(lambda transaction: find_account(transaction, name))
        stored = account["password_hash"] if account else None
        if not self._passwords.remembers(stored, password) and not await self._guess(name, stored, password, host):
            return None
        return str(account["account_id"]) if account else None

    async def _guess(self, name: str, stored: str | None, password: str, host: str) -> bool:
        """Evaluate a password, one at a time for each account: the others with the same right one then cost nothing."""
        async with self._turns.setdefault(name, asyncio.Lock()):
            if self._passwords.remembers(stored, password):
                return True
            wait = self._guesses.take(name, host, self._now())
            if wait > 0.0:
                raise RefusedError(
                    "Too many wrong passwords were given.",
                    hint=f"Try again in {in_words(wait)}. Devices that are logged in already go on.",
                    code="rate-limited",
                )
            return await self._evaluate(name, stored, password, host)

    async def _evaluate(self, name: str, stored: str | None, password: str, host: str) -> bool:
        try:
            right = await self._passwords.check(stored, password)
        except UnavailableError:  # nothing was evaluated
            self._guesses.give_back(name, host, self._now())
            raise
        if right:
            self._guesses.give_back(name, host, self._now())
        return right

    async def find(self, terminal: str) -> Terminal | None:
        """Return a terminal by its id."""

        async def body(transaction: Transaction) -> Terminal | None:
            row = await transaction.row("terminal", terminal_id=terminal)
            return terminal_of(row) if row else None

        return await self._store.transaction(body)

    async def enrol(self, account_id: str, request: Enrol, address: str) -> Terminal:
        """Make a device a terminal of the account, in a transaction of its own; see `enrol_in`."""
        return await self._store.transaction(
            lambda transaction: self.enrol_in(transaction, account_id, request, address)
        )

    async def enrol_in(
        self,
        transaction: Transaction,
        account_id: str,
        request: Enrol,
        address: str,
        *,
        how: str = "password",
        tags: tuple[str, ...] = (),
        by: str = "",
        rights: str = " ".join(RIGHTS),
    ) -> Terminal:
        """Make a device a terminal of the account, with these `rights`; the same device key again is the same terminal.

        That keeps its tags and rights. A name that another device has gets a number behind it. `how` it enrolled, and
        `by` which join key or approving terminal, goes into the audit log. Raises RefusedError when the account is full
        or disabled, the error of `gone` for a device key that was revoked, ConflictError for one of another account.
        """
        known = await transaction.row("terminal_by_key", account_id=account_id, device_key=request.device_key)
        await check_may_enrol(transaction, account_id, request.device_key)
        identifier = known["terminal_id"] if known else new_id("t")
        columns = {
            "terminal_id": identifier,
            "name": await free_name(transaction, account_id, identifier, allowed_name(request.name)),
            "sealing_key": request.sealing_key,
            "device": msgspec.json.encode(request.device),
            "address": address,
            "now": time.time(),
        }
        if known is None:
            await _check_nowhere_else(transaction, request.device_key)
            await self._check_room(transaction, account_id)
            columns |= {"account_id": account_id, "device_key": request.device_key, "rights": rights}
            await transaction.rows("add_terminal", **columns)
        else:
            await transaction.rows("enrol_again", **columns)
        kept = known["tags"] if known else msgspec.json.encode(tags).decode()
        await transaction.rows("mark_enrolled", terminal_id=identifier, how=how, tags=kept)
        terminal = await _read_terminal(transaction, identifier)
        detail = {"account": terminal.account_name, "name": terminal.name, "how": how, "again": known is not None}
        await record(transaction, identifier, "device.enrol", identifier, **detail | ({"by": by} if by else {}))
        return terminal

    async def count_login(self, terminal: str, device: DeviceInfo, address: str, *, receives: bool) -> Terminal:
        """Count a login and keep what the terminal says of itself; return it with its new connection number.

        Raises RefusedError (`revoked`, `account-disabled`) where that has come about since it was looked up.
        """

        async def body(transaction: Transaction) -> Terminal:
            counted = await transaction.row(
                "count_login",
                terminal_id=terminal,
                receives=receives,
                device=msgspec.json.encode(device),
                address=address,
                now=time.time(),
            )
            if counted is None:
                raise gone((await self.standings.of(transaction, terminal)).ended)
            return structs.replace(await _read_terminal(transaction, terminal), receives=receives)

        return await self._store.transaction(body)

    async def standing(self, terminal: str) -> StandingFound:
        """Return what a terminal may do now."""
        return await self._store.transaction(lambda transaction: self.standings.of(transaction, terminal))

    async def update(self, terminal: Terminal, name: str | None, device: DeviceInfo | None) -> Terminal:
        """Change a terminal's name or device info.

        Raises ConflictError for a name another device has, RefusedError for a terminal that is revoked or disabled.
        """

        async def body(transaction: Transaction) -> Terminal:
            if ended := (await self.standings.of(transaction, terminal.terminal_id)).ended:
                raise gone(ended)
            wanted = terminal.name if name is None else allowed_name(name)
            if not wanted:
                raise UsageError("A name has at least one printable character.", code="bad-name")
            if await _is_taken(transaction, terminal.account_id, terminal.terminal_id, wanted):
                raise ConflictError(f"Another device of this account is called {wanted!r}.", code="name-taken")
            await transaction.rows(
                "update_terminal",
                terminal_id=terminal.terminal_id,
                name=wanted,
                device=msgspec.json.encode(device or terminal.device),
            )
            return await _read_terminal(transaction, terminal.terminal_id)

        return await self._store.transaction(body)

    async def seen(self, terminal: str) -> None:
        """Keep that a terminal was there until now."""

        async def body(transaction: Transaction) -> None:
            await transaction.rows("seen", terminal_id=terminal, now=time.time())

        await self._store.transaction(body)

    async def device_rows(self, account_id: str) -> list[DeviceRow]:
        """Every terminal of an account as the device list shows it, all offline."""

        async def body(transaction: Transaction) -> list[DeviceRow]:
            rows = await transaction.rows("terminals_of_account", account_id=account_id)
            return [self.device_row(terminal_of(row), online=False) for row in rows]

        return await self._store.transaction(body)

    def device_row(self, terminal: Terminal, *, online: bool) -> DeviceRow:
        """Return a terminal as the device list shows it."""
        quarantined = self.standings.is_quarantined(terminal.posture_findings)
        return DeviceRow(
            terminal=terminal.terminal_id,
            name=terminal.name,
            online=online,
            device=terminal.device,
            address=terminal.address,
            last_seen=terminal.last_seen_at,
            standing="quarantined" if quarantined else "cloned" if terminal.cloned_at else "",
            tags=terminal.tags,
        )

    async def _check_room(self, transaction: Transaction, account_id: str) -> None:
        row = await transaction.row("count_terminals", account_id=account_id)
        if row is not None and row["terminals"] >= self._terminals_per_account:
            raise RefusedError(
                f"This account has {row['terminals']} terminals, which is the limit.",
                hint="The hub's owner can raise terminals_per_account.",
                code="account-full",
            )


async def check_may_enrol(transaction: Transaction, account_id: str, device_key: bytes) -> None:
    """Raise the error of `gone` for a device key that was revoked, in whichever account, or a disabled account."""
    await check_key(transaction, device_key)
    account = await transaction.row("account_by_id", account_id=account_id)
    if account is None or account["disabled_at"] is not None:
        raise gone(DISABLED)


async def check_key(transaction: Transaction, device_key: bytes) -> None:
    """Raise the error of `gone` for a device key that was revoked, in whichever account: it is dead for ever."""
    if await transaction.row("revoked_key", device_key=device_key) is not None:
        raise gone(REVOKED)


async def _check_nowhere_else(transaction: Transaction, device_key: bytes) -> None:
    """Raise ConflictError for a device that is logged in: a proof of another account must not move it there unseen."""
    if await transaction.row("live_key", device_key=device_key) is not None:
        raise ConflictError(
            "The device is logged in to another account of this hub.",
            hint="`lockstep-terminal login --replace` on it takes new keys, and logs in as another device.",
            code=ELSEWHERE,
        )


async def find_account(transaction: Transaction, name: str) -> Row | None:
    """Return the account of this name, however its accents are composed (Unicode Standard Annex 15).

    A hub of before kept names as they were given, so the decomposed form is looked for as well.
    """
    for form in dict.fromkeys((unicodedata.normalize("NFC", name), name, unicodedata.normalize("NFD", name))):
        row = await transaction.row("account_by_name", name=form)
        if row is not None:
            return row
    return None


async def free_account_name(transaction: Transaction, wanted: str) -> str:
    """Return `wanted` as one printable line, with a number behind it where another account is called that."""
    composed = unicodedata.normalize("NFC", wanted)
    line = "".join(character if character.isprintable() else " " for character in composed).strip()
    for name in _names(line[: limits.NAME_CHARACTERS].strip() or "account"):
        if await find_account(transaction, name) is None:
            return name
    raise ConflictError(f"Every name like {line!r} is taken.", code="name-taken")


def unknown_account(name: str) -> UnknownNameError:
    """Return the error for an account that is not there."""
    return UnknownNameError(
        f"There is no account {name!r}.", hint="`lockstep-hub account list` lists them.", code="unknown-account"
    )


async def _read_terminal(transaction: Transaction, terminal: str) -> Terminal:
    """Read a terminal that is known to be there."""
    row = await transaction.row("terminal", terminal_id=terminal)
    assert row is not None
    return terminal_of(row)


def terminal_of(row: Row) -> Terminal:
    """Return a terminal from its row, joined with its account."""
    return Terminal(
        terminal_id=row["terminal_id"],
        account_id=row["account_id"],
        account_name=row["account_name"],
        name=row["name"],
        device_key=row["device_key"],
        device=msgspec.json.decode(row["device"], type=DeviceInfo),
        address=row["address"],
        connection=row["connection"],
        last_seen_at=row["last_seen_at"],
        tags=tuple(msgspec.json.decode(row["tags"], type=list[str])),
        is_revoked=row["revoked_at"] is not None,
        is_disabled=row["disabled_at"] is not None,
        cloned_at=row["cloned_at"] or 0.0,
        posture_findings=row["posture_findings"] or 0,
    )


async def _is_taken(transaction: Transaction, account_id: str, terminal: str, name: str) -> bool:
    row = await transaction.row("name_is_taken", account_id=account_id, terminal_id=terminal, name=name)
    return row is not None


async def free_name(transaction: Transaction, account_id: str, terminal: str, wanted: str) -> str:
    """Return `wanted`, with a number behind it where another device of the account is called that."""
    for name in _names(wanted or "device"):
        if not await _is_taken(transaction, account_id, terminal, name):
            return name
    raise ConflictError(f"Every name like {wanted!r} is taken.", code="name-taken")


def allowed_name(name: str) -> str:
    """Return `name` as one printable line, for logs and tables. Raises UsageError for what means something else."""
    line = "".join(character if character.isprintable() else " " for character in name).strip()
    folded = line.casefold()
    if folded == "all" or folded.startswith("tag:") or IDENTIFIER.fullmatch(line):
        raise UsageError(f"A device cannot be called {line!r}: that is how others are meant.", code="bad-name")
    return line


def _names(wanted: str) -> Iterator[str]:
    yield wanted
    for number in range(2, 10_000):
        suffix = f"-{number}"
        yield wanted[: limits.NAME_CHARACTERS - len(suffix)] + suffix
