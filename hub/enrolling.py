"""Enrolling: the four ways in which a device becomes a terminal. Its signature is right when it comes here."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from hub.accounts import ELSEWHERE, Accounts, allowed_name, check_key, find_account, free_account_name
from hub.audit import record
from hub.config import Settings
from hub.joinkeys import use
from hub.pairings import Decided, Pairing, Pairings, unknown_pairing
from hub.records import Terminal, new_id
from hub.standing import REVOKED, Standings
from hub.store import Store, Transaction
from protocol.errors import ConflictError, RefusedError, UnknownNameError
from protocol.messages import Approve, Enrol, PairingRequest, PairingResult

if TYPE_CHECKING:
    from hub.oidc import Identity, Provider

PAIRING: Final = "pairing"
# What the log says of these codes where the proof is a password.
_PASSWORD_REFUSALS: Final = {"not-authorised": "a wrong password", "rate-limited": "too many wrong passwords"}


class Enrolling:
    """Who may become a terminal of this hub. `now` gives seconds of one clock that only goes forward."""

    def __init__(
        self,
        store: Store,
        accounts: Accounts,
        standings: Standings,
        provider: "Provider | None" = None,
        *,
        create_accounts: bool = False,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.pairings = Pairings()
        self._store = store
        self._accounts = accounts
        self._standings = standings
        self._provider = provider
        self._create_accounts = create_accounts
        self._now = now

    async def enrol(self, request: Enrol, address: str, host: str, decided: Decided) -> Terminal | Pairing:
        """Make the device a terminal, or have it wait for somebody who approves it; then `decided` is told.

        `address` is where it comes from as people see it, `host` the same without the port. Raises RefusedError for
        whatever is wrong with its proof (`not-authorised`), the account or the device, UnavailableError when busy.
        """
        if request.pair:
            return await self._pair(request, address, host, decided)
        if request.join_key:
            return await self._store.transaction(lambda transaction: self._join(transaction, request, address))
        if request.token:
            return await self._enrol_by_token(request, address)
        return await self._enrol_by_password(request, address, host)

    async def look(self, me: Terminal, request: PairingRequest) -> PairingResult:
        """Return which device shows a code.

        Raises RefusedError without the right `approve`, and what `Pairings.find` raises.
        """
        await self._store.transaction(lambda transaction: self._check_approves(transaction, me))
        pairing = self.pairings.find(request.code, _askers(me), self._now())
        asks = pairing.request
        return PairingResult(
            re=request.id,
            code=pairing.code,
            name=allowed_name(asks.name) or "device",
            device=asks.device,
            device_key=asks.device_key,
            address=pairing.address,
            seconds=self.seconds_left(pairing),
        )

    async def approve(self, me: Terminal, request: Approve) -> None:
        """Make the device that shows the code a terminal of `me`'s account, or turn it away; then tell it.

        One that is let in already is so, when the answer to that was lost. Raises what `look` raises, and what is wrong
        with the device or the account.
        """
        is_in = await self._store.transaction(lambda transaction: self._has_let_in(transaction, me, request))
        try:
            pairing = self.pairings.find(request.code, _askers(me), self._now())
        except UnknownNameError:
            if is_in:
                return
            raise
        if pairing.request.device_key != request.device_key:  # another device shows it than the one that was looked at
            raise unknown_pairing()
        self.pairings.take(pairing)
        try:
            outcome = await self._store.transaction(
                lambda transaction: self._decide(transaction, me, pairing, accept=request.accept)
            )
        except BaseException as error:
            if isinstance(error, ConflictError) and error.code == ELSEWHERE:
                self.pairings.end(pairing, error.code)  # with this key it cannot be, whoever approves it
            else:
                self.pairings.put_back(pairing)
            raise
        self.pairings.end(pairing, outcome)
        if outcome == REVOKED:  # it is the device that has to hear that, and show the code of another key
            raise unknown_pairing()

    async def _decide(
        self, transaction: Transaction, me: Terminal, pairing: Pairing, *, accept: bool
    ) -> Terminal | str:
        await self._check_approves(transaction, me)
        asks = pairing.request
        if not accept:
            await record(
                transaction, me.terminal_id, "device.turn-away", allowed_name(asks.name), address=pairing.address
            )
            return "pairing-denied"
        if await transaction.row("revoked_key", device_key=asks.device_key) is not None:
            return REVOKED
        approver = await transaction.row("standing_of", terminal_id=me.terminal_id)
        assert approver is not None  # it has the right to
        terminal = await self._accounts.enrol_in(
            transaction,
            me.account_id,
            asks,
            pairing.address,
            how=PAIRING,
            by=me.terminal_id,
            rights=approver["terminal_rights"],  # or a key it makes itself would give it the others
        )
        await record(transaction, me.terminal_id, "device.approve", terminal.terminal_id, address=pairing.address)
        return terminal

    async def _has_let_in(self, transaction: Transaction, me: Terminal, request: Approve) -> bool:
        await self._check_approves(transaction, me)
        row = await transaction.row("terminal_by_key", account_id=me.account_id, device_key=request.device_key)
        return request.accept and row is not None and row["revoked_at"] is None

    async def _check_approves(self, transaction: Transaction, me: Terminal) -> None:
        await self._standings.check_right(transaction, me.terminal_id, "approve")

    def seconds_left(self, pairing: Pairing) -> float:
        """Return for how long a device that waits may be approved still."""
        return max(0.0, pairing.until - self._now())

    async def _enrol_by_password(self, request: Enrol, address: str, host: str) -> Terminal:
        try:
            return await self._enrol_by_right_password(request, address, host)
        except RefusedError as error:
            account = await self._store.transaction(lambda transaction: find_account(transaction, request.account))
            # What is no account may be the password, typed in the wrong place.
            name = f"the account {account['name']!r}" if account else "an account that does not exist"
            error.add_note(f"{_PASSWORD_REFUSALS.get(error.code, error.code)} for {name}")
            raise

    async def _enrol_by_right_password(self, request: Enrol, address: str, host: str) -> Terminal:
        wrong = RefusedError("The account or the password is wrong.", hint="Check both and try again.")
        stored = await self._store.transaction(lambda transaction: _password_hash(transaction, request.account))
        account_id = await self._accounts.check_password(request.account, request.password, host)
        if account_id is None:
            raise wrong

        async def body(transaction: Transaction) -> Terminal:
            if await _password_hash(transaction, request.account) != stored:  # changed while this one was evaluated
                raise wrong
            return await self._accounts.enrol_in(transaction, account_id, request, address)

        return await self._store.transaction(body)

    async def _pair(self, request: Enrol, address: str, host: str, decided: Decided) -> Terminal | Pairing:
        allowed_name(request.name)
        known = await self._store.transaction(lambda transaction: self._paired_before(transaction, request, address))
        return known or self.pairings.begin(request, address, host, decided, self._now())

    async def _paired_before(self, transaction: Transaction, request: Enrol, address: str) -> Terminal | None:
        """Return the terminal that this device was approved to be when its connection broke before it was told."""
        row = await transaction.row("paired_terminal", device_key=request.device_key)
        if row is None:
            await check_key(transaction, request.device_key)
            return None
        return await self._accounts.enrol_in(transaction, row["account_id"], request, address, how=PAIRING)

    async def _join(self, transaction: Transaction, request: Enrol, address: str) -> Terminal:
        used = await use(transaction, request.join_key, request.device_key)
        return await self._accounts.enrol_in(
            transaction, used.account_id, request, address, how="join-key", tags=used.tags, by=used.join_key
        )

    async def _enrol_by_token(self, request: Enrol, address: str) -> Terminal:
        if self._provider is None:
            error = RefusedError(
                "This token is not accepted here.", hint="This hub trusts no identity provider; enrol in another way."
            )
            error.add_note("this hub trusts no identity provider")
            raise error
        identity = await self._provider.verify(request.token)

        async def body(transaction: Transaction) -> Terminal:
            account_id = await self._account_of(transaction, identity)
            return await self._accounts.enrol_in(transaction, account_id, request, address, how="token")

        return await self._store.transaction(body)

    async def _account_of(self, transaction: Transaction, identity: "Identity") -> str:
        """Return whose account this is: never by a name, which whoever names people there could choose."""
        row = await transaction.row("account_by_subject", subject=identity.subject)
        if row is not None:
            return str(row["account_id"])
        if not self._create_accounts:
            error = RefusedError(
                "This token is not accepted here.",
                hint="It is right, but no account is linked with it: ask the hub's owner.",
            )
            error.add_note(f"unknown subject {identity.subject!r}")  # what `account link` is given
            raise error
        return await _add_account(transaction, identity)


def provider_of(settings: Settings) -> "Provider | None":
    """Return the identity provider a hub trusts, if any. Raises UsageError for a URL that is not https."""
    if not settings.oidc_issuer:
        return None
    from hub.oidc import Provider  # what it needs takes 0.2 s to import, and most hubs have no provider

    return Provider(
        settings.oidc_issuer,
        settings.oidc_audience,
        jwks_url=settings.oidc_jwks_url,
        name_claim=settings.oidc_name_claim,
    )


async def _add_account(transaction: Transaction, identity: "Identity") -> str:
    """Add an account that has no password, under a free name like the one the provider gives."""
    name, account_id = await free_account_name(transaction, identity.name), new_id("a")
    await transaction.row("add_account", account_id=account_id, name=name, password_hash="", now=time.time())
    await transaction.rows("link_account", name=name, subject=identity.subject)
    await record(transaction, "hub", "account.add", name)
    await record(transaction, "hub", "account.link", name, identity=identity.subject)
    return account_id


async def _password_hash(transaction: Transaction, account: str) -> str:
    row = await find_account(transaction, account)
    return str(row["password_hash"]) if row is not None else ""


def _askers(me: Terminal) -> tuple[str, str]:
    return me.terminal_id, me.account_id
