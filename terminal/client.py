"""Client: what a program on this device may ask of its account's hub. The public API of a terminal.

Through whichever process on this device has the connection, else over a connection of its own that installs nothing and
serves the others meanwhile. Every call has a deadline of 30 s. Errors are those of `protocol/errors.py`:
UnavailableError means try again.
"""

import asyncio
import contextlib
import functools
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final, TypeVar

from msgspec import structs
from websockets.exceptions import WebSocketException

from protocol import codec, life, messages
from protocol.device import DeviceInfo, InstallerKind
from protocol.errors import LockstepError, ProtocolError, RefusedError, UsageError
from protocol.messages import (
    AnyMessage,
    CancelResult,
    DeviceRow,
    LocalRequest,
    Message,
    PairingResult,
    PostureNow,
    ProgramRow,
    Publish,
    PublishAccepted,
    Published,
    Request,
    Standing,
    SyncRow,
    TargetRow,
)
from terminal.agent import back_off
from terminal.connection import address_of, connected, login_of
from terminal.enrolling import check_name
from terminal.enrolling import enrol as enrol  # a part of the public API of a terminal
from terminal.inbox import answer_alone
from terminal.installers import Runner
from terminal.link import Link
from terminal.localsocket import LocalSocket, local_link
from terminal.posture import BUDGET, Postures
from terminal.state import Identity, StateFolder
from terminal.uploads import InstallerFile, Tell, UploadWatch, is_passing, read_installer, send, tell_nobody

AGENT_SECONDS: Final = 5.0
_AGENT_RETRY_SECONDS: Final = 0.1
_EARLY_MESSAGES: Final = 64
_JOINS: Final = 3
RESUME_SECONDS: Final = 120.0
SCAN_SECONDS: Final = 2 * BUDGET.seconds + 120.0  # one may be under way
STANDING_SECONDS: Final = 3.0
RESUME_EVERY_SECONDS: Final = 5.0

Answer = TypeVar("Answer", bound=Message)


@asynccontextmanager
async def open_client(folder: StateFolder, *, device: DeviceInfo | None = None) -> AsyncIterator["Client"]:
    """Speak to the hub as the terminal of `folder`. `device` is what to report; None: what was reported last.

    Raises NotLoggedInError before the first login, UnavailableError when the hub is away, RefusedError (`in-use`) when
    another process holds the folder and does not serve others.
    """
    identity = folder.identity()
    async with AsyncExitStack() as stack:
        way = Way(folder, identity, device, stack)
        yield Client(folder, identity, await way.open(), way)


class Way:
    """How this process reaches the hub: through another on this device (`is_local`), or over its own connection."""

    def __init__(self, folder: StateFolder, identity: Identity, device: DeviceInfo | None, stack: AsyncExitStack):
        self.is_local = True
        self._folder = folder
        self._identity = identity
        self._device = device
        self._stack = stack
        self._dialled = AsyncExitStack()  # the last connection of its own

    async def open(self) -> Link:
        """Return a link that works, the one before having ended. Raises what `open_client` does."""
        if self.is_local:
            link = await _joined(self._folder, self._stack)
            if link is not None:
                return link
            self.is_local = False  # the folder's lock is held from now on
            await self._stack.enter_async_context(self._dialled)
        await self._dialled.aclose()
        return await self._dialled.enter_async_context(_hub_link(self._folder, self._identity, self._device))


class Client:
    """An account's devices, programs and syncs, as seen from this terminal. Use `open_client`."""

    def __init__(self, folder: StateFolder, identity: Identity, link: Link, way: Way | None = None) -> None:
        self.identity = identity
        self._folder = folder
        self._link = link
        self._way = way  # None: this link and no other

    async def devices(self) -> tuple[DeviceRow, ...]:
        """Return all devices of the account, this one too."""
        pages = await self._ask(messages.DevicesRequest(id=1), messages.Devices)
        return tuple(row for page in pages for row in page.devices)

    async def programs(self, query: str = "") -> tuple[ProgramRow, ...]:
        """Return the programs whose id or title has `query` in it, sorted by id."""
        rows: list[ProgramRow] = []
        more = True
        while more:
            after = rows[-1].program if rows else ""
            pages = await self._ask(messages.Programs(id=1, query=query, after=after), messages.ProgramsResult)
            rows.extend(pages[-1].programs)
            more = pages[-1].more and bool(pages[-1].programs)
        return tuple(rows)

    async def plan(
        self,
        program: str,
        *,
        targets: tuple[str, ...] = (),
        everyone: bool = False,
        version: str = "",
        channel: str = "",
    ) -> tuple[TargetRow, ...]:
        """Return what `sync` with the same arguments would do per target; nothing is sent. `targets` are terminal ids.

        Releases of `channel` are taken beside the stable ones; a `version` is found in any.
        Raises UnknownNameError for a program, terminal or version that does not exist.
        """
        request = messages.Plan(
            id=1, program=program, targets=targets, everyone=everyone, version=version, channel=channel
        )
        pages = await self._ask(request, messages.PlanResult)
        return tuple(row for page in pages for row in page.targets)

    async def sync(
        self,
        program: str,
        *,
        targets: tuple[str, ...] = (),
        everyone: bool = False,
        version: str = "",
        channel: str = "",
        request_key: str = "",
    ) -> "SyncWatch":
        """Bring `program` to the targets and return how that goes. The same `request_key` again is the same sync.

        Raises UnknownNameError for a program, terminal or version that does not exist.
        """
        request = messages.Sync(
            id=1,
            request_key=request_key or secrets.token_hex(16),
            program=program,
            targets=targets,
            everyone=everyone,
            version=version,
            channel=channel,
        )
        return await self._watched(request, program)

    async def undo(self, sync: str, *, targets: tuple[str, ...] = (), request_key: str = "") -> "SyncWatch":
        """Bring back what the targets had before `sync`, all of them if none is named; it is a new sync.

        Raises UnknownNameError for a sync or a terminal that does not exist.
        """
        request = messages.Undo(id=1, request_key=request_key or secrets.token_hex(16), sync=sync, targets=targets)
        return await self._watched(request, "")

    async def _watched(self, request: messages.Sync | messages.Undo, program: str) -> "SyncWatch":
        watch = SyncWatch(program, self.sync_result, self._leave, self._resume)
        self._link.listen(watch)
        try:
            pages = await self._ask(request, messages.SyncAccepted)
        except BaseException:
            self._leave(watch)
            raise
        watch.accepted(pages)
        return watch

    async def sync_result(self, sync: str) -> tuple[TargetRow, ...]:
        """Return all targets of a sync as they stand now. Raises UnknownNameError."""
        pages = await self._ask(messages.SyncRequest(id=1, sync=sync), messages.SyncResult)
        return tuple(row for page in pages for row in page.targets)

    async def history(self, limit: int = 50) -> tuple[SyncRow, ...]:
        """Return the account's last `limit` syncs, newest first."""
        rows: list[SyncRow] = []
        more = True
        while more and len(rows) < limit:
            before = rows[-1].sync if rows else ""
            pages = await self._ask(messages.History(id=1, before=before), messages.HistoryResult)
            rows.extend(pages[-1].syncs)
            more = pages[-1].more and bool(pages[-1].syncs)
        return tuple(rows[:limit])

    async def cancel(self, sync: str) -> CancelResult:
        """End what of a sync has not begun to install. Raises UnknownNameError."""
        return (await self._ask(messages.Cancel(id=1, sync=sync), CancelResult))[-1]

    async def publish(
        self, path: Path, *, program: str = "", title: str = "", channel: str = "", tell: Tell = tell_nobody
    ) -> Published:
        """Put the installer at `path` into the hub's catalogue, with the sidecar beside it; `tell` hears (done, size).

        Once it has begun, a break of the connection is waited for and only what is missing goes up after it; it is
        given up when nothing has moved for two minutes. Raises RefusedError (`not-allowed`, `too-large`, `disk-full`,
        `store-full`), BadFileError, ConflictError or UsageError as an operator's publish does, UnavailableError.
        """
        file = await read_installer(path)
        loop = asyncio.get_running_loop()
        moved_at, most_bytes = float("-inf"), -1

        def moved(done: int, size: int) -> None:
            nonlocal moved_at, most_bytes
            if done > most_bytes:
                moved_at, most_bytes = loop.time(), done
            tell(done, size)

        delays = back_off()
        while True:
            try:
                await self._rejoin(dials=True)
                return await self._upload(file, file.request(program, title, channel), moved)
            except LockstepError as error:
                is_stuck = self._way is None and self._link.error is not None
                if is_stuck or not is_passing(error) or loop.time() - moved_at > RESUME_SECONDS:
                    raise
            await asyncio.sleep(min(next(delays), RESUME_EVERY_SECONDS))

    async def _upload(self, file: InstallerFile, request: Publish, tell: Tell) -> Published:
        _check(request)
        link, watch = self._link, UploadWatch(request.upload)
        link.listen(watch)
        try:
            [answer] = await link.request(request)  # not `_ask`: what follows has to come over the same link
            if not isinstance(answer, PublishAccepted):
                raise ProtocolError("The hub answered a publish with something else.")
            tell(0, file.manifest.size)
            return await send(link, file, watch, tell)
        except BaseException:
            if watch.last_word is None and link.error is None:
                link.tell(messages.Withdraw(delivery=request.upload))
            raise
        finally:
            link.leave(watch)

    async def pairing(self, code: str) -> PairingResult:
        """Return the device that shows `code`. Raises UnknownNameError when none does, RefusedError (`not-allowed`)."""
        return (await self._ask(messages.PairingRequest(id=1, code=code), PairingResult))[-1]

    async def approve(self, asks: PairingResult, *, accept: bool = True) -> None:
        """Make the device that asks a terminal of this account, or turn it away. Raises as `pairing` does."""
        request = messages.Approve(id=1, code=asks.code, device_key=asks.device_key, accept=accept)
        await self._ask(request, messages.Done)

    async def revoke(self, terminal: str) -> None:
        """End `terminal` as a terminal of the account. Raises UnknownNameError, RefusedError (`not-allowed`)."""
        await self._ask(messages.Revoke(id=1, terminal=terminal), messages.Done)

    async def rename(self, name: str) -> None:
        """Give this terminal another name. Raises ConflictError when another device of the account has it."""
        check_name(name, "name")
        await self._ask(messages.DeviceUpdate(id=1, name=name), messages.Done)
        self.identity = structs.replace(self.identity, name=name)
        self._folder.save_identity(self.identity)

    async def update_device(self, device: DeviceInfo) -> None:
        """Report other device info for this terminal."""
        await self._ask(messages.DeviceUpdate(id=1, device=device), messages.Done)
        self._folder.save_device(device)

    async def _ask(self, request: Request, answer: type[Answer]) -> list[Answer]:
        _check(request)
        pages = await self._pages(request)
        right: list[Answer] = [page for page in pages if isinstance(page, answer)]
        if len(right) != len(pages):
            raise ProtocolError(f"The hub answered a {messages.kind_of(request)} with something else.")
        return right

    async def _pages(self, request: Request) -> list[AnyMessage]:
        """Send `request`; again when the process that had the connection ended meanwhile: each is safe to repeat."""
        for _ in range(_JOINS):
            try:
                return await self._link.request(request)
            except LockstepError:
                if self._link.error is None:
                    raise
            await self._rejoin()
        return await self._link.request(request)

    async def _rejoin(self, *, dials: bool = False) -> None:
        """Speak through another process, or be the one that has the connection.

        A link of its own is made again only where `dials` says so; else why it ended is raised.
        """
        if self._link.error is None:
            return
        if self._way is None or not (self._way.is_local or dials):
            raise self._link.error
        self._link = await self._way.open()

    async def _resume(self, watch: "SyncWatch") -> None:
        await self._rejoin()
        self._link.listen(watch)
        watch.resumed(await self.sync_result(watch.sync))

    def _leave(self, watch: "SyncWatch") -> None:
        self._link.leave(watch)


class SyncWatch:
    """One sync as it goes: `targets` by terminal id, kept current; `outcome` once it has `ended`.

    `planned` are the targets as they were accepted, with the rule that chose each installer and what may go wrong.
    Latest value wins, so a slow reader of `changes` costs nothing.
    """

    def __init__(
        self,
        program: str,
        result: Callable[[str], Awaitable[tuple[TargetRow, ...]]],
        leave: Callable[["SyncWatch"], None],
        resume: Callable[["SyncWatch"], Awaitable[None]],
    ) -> None:
        self.sync = ""
        self.program = program
        self.planned: tuple[TargetRow, ...] = ()
        self.targets: dict[str, TargetRow] = {}
        self.ended = False
        self.outcome = ""
        self._result = result
        self._leave = leave
        self._resume = resume
        self._has_rows = False  # until then what comes unasked waits: it is newer than the rows that were asked for
        self._early: list[AnyMessage] = []
        self._error: LockstepError | None = None
        self._changed = asyncio.Event()

    def accepted(self, pages: list[messages.SyncAccepted]) -> None:
        """Take the answer to the request, then what has come since."""
        self.sync, self.program = pages[0].sync, pages[0].program
        self.planned = tuple(row for page in pages for row in page.targets)
        self._begin(self.planned)

    def put(self, message: AnyMessage) -> None:
        """Take an unasked message of the link."""
        if not isinstance(message, (messages.SyncUpdate, messages.SyncDone)):
            return
        if not self._has_rows:
            self._early = [*self._early, message][-_EARLY_MESSAGES:]
        elif message.sync == self.sync:
            self._apply(message)

    def resumed(self, rows: tuple[TargetRow, ...]) -> None:
        """Take how all targets stand on another link; `sync_done` may have gone to the one before."""
        self._begin(rows)
        if all(row.state in life.FINAL for row in rows):
            self.ended, self.outcome = True, life.outcome_of(Counter(row.state for row in rows))

    def end(self, error: LockstepError) -> None:
        """The link has ended."""
        self._error = error
        self._changed.set()

    async def changes(self) -> AsyncIterator[None]:
        """Yield at once and then after each change, for the last time when the sync has ended.

        Raises UnavailableError when the connection is lost first; the sync itself goes on at the hub.
        """
        try:
            while True:
                self._changed.clear()
                ended = self.ended
                if ended:
                    await self._complete()
                yield
                if ended:
                    return
                if self._error is None:
                    await self._changed.wait()
                if self._error is not None and not self.ended:
                    self._error, self._has_rows = None, False
                    await self._resume(self)
        finally:
            self._leave(self)

    def _apply(self, message: messages.SyncUpdate | messages.SyncDone) -> None:
        if isinstance(message, messages.SyncUpdate):
            self._take(message.targets)
        else:
            self.ended, self.outcome = True, message.outcome
        self._changed.set()

    def _begin(self, rows: Iterable[TargetRow]) -> None:
        """Take all rows as they stood when asked for, then what has come since."""
        self._take(rows)
        self._has_rows = True
        early, self._early = self._early, []
        for message in early:
            self.put(message)

    def _take(self, rows: Iterable[TargetRow]) -> None:
        self.targets.update({row.terminal: row for row in rows})

    async def _complete(self) -> None:
        """Fetch the last states: updates on the way to this one may have been merged or missed."""
        if all(row.state in life.FINAL for row in self.targets.values()):
            return
        with contextlib.suppress(LockstepError):
            self._take(await self._result(self.sync))


def _check(asked: Message) -> None:
    """Raise UsageError for what no message can say: the hub would only hang up."""
    try:
        codec.decode(codec.encode(asked))
    except ProtocolError as error:
        raise UsageError(error.message, hint="Mend what was asked for; nothing was sent.") from None
    except UnicodeEncodeError:
        raise UsageError(
            "A text is not Unicode, so it cannot be sent.", hint="Mend what was asked for; nothing was sent."
        ) from None


async def _joined(folder: StateFolder, stack: AsyncExitStack) -> Link | None:
    """Return a link to the process that acts as this terminal, or take the lock; one that only begins is waited for."""
    give_up_at = asyncio.get_running_loop().time() + AGENT_SECONDS
    while True:
        try:
            stack.enter_context(folder.lock())
        except RefusedError:
            with contextlib.suppress(OSError, WebSocketException):
                return await stack.enter_async_context(local_link(folder))
            if asyncio.get_running_loop().time() >= give_up_at:
                raise
            await asyncio.sleep(_AGENT_RETRY_SECONDS)
        else:
            return None


async def ask_here(folder: StateFolder, request: LocalRequest) -> AnyMessage:
    """Answer a local request: by the process that acts as this terminal, else here, on its files.

    Raises UnknownNameError, ConflictError (`too-late`, `withdrawn`) and RefusedError (`in-use`, `state-folder`).
    """
    async with AsyncExitStack() as stack:
        link = await _joined(folder, stack)
        if link is None:
            return await answer_alone(folder, request)
        return (await link.request(request))[-1]


async def scan_here(folder: StateFolder, runners: Callable[[], Mapping[InstallerKind, Runner]]) -> None:
    """Scan this terminal's programs now: by the agent, which tells the hub, else here, where it uses `runners`.

    Waits a moment for what the hub makes of it, where that may change. Raises RefusedError (`not-scanned`) without a
    rule set, and UnavailableError when the engine does not work.
    """
    async with AsyncExitStack() as stack:
        link = await _joined(folder, stack)
        if link is None:
            postures = Postures(folder, runners(), lambda _kind, _sentence: None)
            try:
                await postures.scan_now()
            finally:
                await postures.stop()
            return
        heard = _HeardStanding()
        link.listen(heard)
        await link.request(PostureNow(id=1), within_seconds=SCAN_SECONDS)
        posture = folder.posture()
        if folder.standing() is not None or (posture is not None and posture.report.findings):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STANDING_SECONDS):
                    await heard.event.wait()


class _HeardStanding:
    """A listener that waits for the hub to say what this terminal may do."""

    def __init__(self) -> None:
        self.event = asyncio.Event()

    def put(self, message: AnyMessage) -> None:
        """Take a message."""
        if isinstance(message, Standing):
            self.event.set()

    def end(self, _error: LockstepError) -> None:
        """The agent is gone."""
        self.event.set()


@asynccontextmanager
async def _hub_link(folder: StateFolder, identity: Identity, device: DeviceInfo | None) -> AsyncIterator[Link]:
    reported = device or folder.device()
    if reported is None:
        raise UsageError("It is not known what device this is.", hint="Log in again.")
    address = address_of(identity)
    async with connected(address, login_of(identity, address, reported, receives=False), folder) as connection:
        if device is not None and device != folder.device():
            folder.save_device(device)
        link, welcome = connection.link, connection.welcome
        local = LocalSocket(folder, lambda: welcome, link.request, functools.partial(answer_alone, folder), link.stream)
        link.listen(local)
        async with local.serve():
            yield link
