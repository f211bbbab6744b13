"""One terminal's socket: a reader, a session and a pulling writer; performs the session's actions.

The reader never waits for the writer, and nothing that performs an action does either: what is to be sent is queued in
the outbox (bounded: past it the socket is cut and what it is owed stays in the database), and the one writer of a
socket pulls from there: control messages first, then what changed in the device list, then the next frame.
"""

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Coroutine
from typing import Any, Final

from websockets.exceptions import ConnectionClosed

from hub import session as brain
from hub.accounts import Accounts
from hub.config import Settings
from hub.deliveries import Deliveries
from hub.delivery import Delivery, RulesTransfer, Transfer
from hub.devices import DeviceLists
from hub.enrolling import Enrolling
from hub.fairness import Bucket, FairRoom, SharedBandwidth
from hub.objects import Objects
from hub.pairings import Pairing
from hub.pokes import Pokes
from hub.postures import Postures
from hub.presence import Presence
from hub.reception import CLOSE_SECONDS, TerminalConnection
from hub.records import Owed, RulesObject, Terminal
from hub.requests import Requests
from hub.revocation import Revocation
from hub.standing import REVOKED
from hub.syncs import SYNCS_TOLD_AT_ONCE, Syncs
from hub.uploads import Upload, Uploads
from protocol import codec, limits, messages
from protocol.errors import BadDataError, LockstepError, ProtocolError, UnavailableError
from protocol.keys import SigningKey
from protocol.life import FINAL, State
from protocol.messages import Message, TargetRow

log: Final = logging.getLogger("lockstep.hub")

CLOSE_TOO_SLOW: Final = 4002
COUNT_SENT_EVERY_BYTES: Final = 8 * limits.MIB
LOGGED: Final = FINAL | {State.ASKING, State.POSTPONED}
# The close codes the library itself sends (RFC 6455 section 7.4.1).
_LIBRARY_CLOSES: Final = frozenset({1002, 1007, 1009})


class Services:
    """What the sockets of one hub share."""

    def __init__(
        self,
        *,
        settings: Settings,
        hub_key: SigningKey,
        accounts: Accounts,
        enrolling: Enrolling,
        objects: Objects,
        pokes: Pokes,
        presence: Presence,
        deliveries: Deliveries,
        syncs: Syncs,
        uploads: Uploads,
        revocation: Revocation,
        postures: Postures,
    ) -> None:
        self.settings = settings
        self.hub_key = hub_key
        self.accounts = accounts
        self.enrolling = enrolling
        self.deliveries = deliveries
        self.syncs = syncs
        self.uploads = uploads
        self.objects = objects
        self.pokes = pokes
        self.presence = presence
        self.revocation = revocation
        self.postures = postures
        self.requests = Requests(accounts, syncs, presence, revocation, enrolling)
        self.devices = DeviceLists(presence)
        self.sockets: dict[int, TerminalSocket] = {}
        self.frame_room = FairRoom(settings.bytes_in_flight)
        self.transfers = FairRoom(settings.transfers_at_once)
        rate = settings.bandwidth_bytes_per_second
        self.bandwidth = SharedBandwidth(rate) if rate else None
        self._progress: dict[str, dict[str, tuple[str, TargetRow]]] = {}

    def note_progress(self, delivery: Delivery) -> None:
        """Keep how far a transfer is, for its initiator; the latest value wins."""
        owed = delivery.owed
        changed = self._progress.setdefault(owed.initiator, {})
        if not changed:
            self.pokes.poke("asked", owed.initiator)
        changed[owed.delivery] = (owed.sync, delivery.row(owed.row))

    def forget_progress(self, owed: Owed) -> None:
        """A transfer is over: what was kept of it is old."""
        self._progress.get(owed.initiator, {}).pop(owed.delivery, None)

    def take_progress(self, initiator: str) -> list[tuple[str, TargetRow]]:
        """Return (sync, row) of transfers that got on since the last call; what is too much for one turn stays."""
        waiting = self._progress.get(initiator, {})
        syncs: set[str] = set()
        taken = []
        for delivery, (sync, row) in list(waiting.items()):
            if sync in syncs or len(syncs) < SYNCS_TOLD_AT_ONCE:
                syncs.add(sync)
                taken.append((sync, row))
                del waiting[delivery]
        if waiting:
            self.pokes.poke("asked", initiator)
        else:
            self._progress.pop(initiator, None)
        return taken


class _EndedError(Exception):
    """Ends the tasks of one socket together: a task group ends only by an exception."""


class TerminalSocket:
    """One live socket."""

    def __init__(self, services: Services, connection: TerminalConnection, number: int, names: frozenset[str]) -> None:
        self.number = number
        self.devices_revision = 0
        self._services = services
        self._connection = connection
        self._loop = asyncio.get_running_loop()
        self._session = brain.Session(services.hub_key, names, self._loop.time())
        self._inbox: asyncio.Queue[brain.Event] = asyncio.Queue()
        self._inbox_room = asyncio.Semaphore(limits.INBOUND_MESSAGES)
        self._told: set[type[brain.Event]] = set()
        self._outbox: deque[bytes] = deque()
        self._wake = asyncio.Event()
        self._devices_changed = False
        self._ping_due = False
        self._closing: brain.Close | None = None
        self._delivery: Transfer | None = None
        self._other_copy = ""
        self._upload: Upload | None = None
        self._pairing: Pairing | None = None
        self._bucket: Bucket | None = None
        self._largest_frame_bytes = limits.FRAME_BYTES
        self._again_at: float | None = None
        self.limit_bandwidth(0)
        self.host = connection.client_host
        self.address = connection.client_address

    @property
    def terminal(self) -> Terminal | None:
        """The terminal that is logged in here, or None before that."""
        return self._session.terminal

    def tell(
        self,
        event: brain.Owing
        | brain.Changed
        | brain.StandingChanged
        | brain.PairingDecided
        | brain.Replaced
        | brain.Stopping,
    ) -> None:
        """Pass the session an event from elsewhere; one that waits already is not queued twice."""
        if type(event) not in self._told:
            self._told.add(type(event))
            self._inbox.put_nowait(event)

    def devices_changed(self) -> None:
        """Send what changed in the device list when the writer is free."""
        self._devices_changed = True
        self._wake.set()

    def limit_bandwidth(self, bytes_per_second: int) -> None:
        """Send the terminal frames at no more than this rate (0: no limit); the hub's settings hold besides."""
        settings = self._services.settings
        own = [rate for rate in (bytes_per_second, settings.terminal_bandwidth_bytes_per_second) if rate]
        self._bucket = Bucket(min(own)) if own else None
        rates = [*own, settings.bandwidth_bytes_per_second or limits.OBJECT_BYTES]
        self._largest_frame_bytes = min(limits.FRAME_BYTES, int(min(rates) * limits.FRAME_SECONDS))

    async def run(self) -> None:
        """Serve the socket until it ends."""
        try:
            await self._work()
        except* _EndedError:
            pass
        except* ConnectionClosed as errors:
            self._log_library_close(errors)
        except* Exception as errors:
            log.exception("internal error on the socket of %s", self, exc_info=errors)
        finally:
            self._abort()
            self._leave_lines()
            await self._leave()

    async def _work(self) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for work in (self._read(), self._think(), self._write(), self._watch()):
                    group.create_task(work)
        except BaseExceptionGroup as errors:
            # The way here leads through a frame that holds the group itself (CPython 3.11, `taskgroups.__aexit__`): a
            # circle, in which all that this socket has would stay until somebody looks for such.
            raise errors.with_traceback(None) from None

    def __str__(self) -> str:
        return f"{self.terminal.name} ({self.terminal.terminal_id})" if self.terminal else self.address

    # --- the four tasks -------------------------------------------------------------------------------------------

    async def _read(self) -> None:
        while True:
            data = await self._connection.recv()
            await self._inbox_room.acquire()
            try:
                self._inbox.put_nowait(brain.Received(codec.decode(data, limit_items=limits.MESSAGE_TO_HUB_ITEMS)))
                self._connection.took_a_step()  # before the login nothing else may be said
            except ProtocolError as error:
                self._inbox.put_nowait(brain.Broken(error.code, error.message))
            if len(data) > limits.MESSAGE_BEFORE_LOGIN_BYTES:
                await asyncio.sleep(0)  # it took its time, and the next is often there already: let others run first

    async def _think(self) -> None:
        while True:
            event = await self._next_event()
            if isinstance(event, (brain.Received, brain.Broken)):
                self._inbox_room.release()
            self._told.discard(type(event))
            events: deque[brain.Event] = deque([event])
            while events:
                for action in self._session.handle(events.popleft(), self._loop.time()):
                    result = await self._perform_or_fail(action)
                    if result is not None:
                        events.append(result)

    async def _next_event(self) -> brain.Event:
        deadline = self._session.deadline
        try:
            async with asyncio.timeout_at(deadline):
                return await self._inbox.get()
        except TimeoutError:
            return brain.Ticked(self._sent_at)

    @property
    def _sent_at(self) -> float:
        """When the running transfer last sent something: now while this hub holds back what may go."""
        if self._delivery is None:
            return 0.0
        holds_back = self._delivery.next_bytes(self._largest_frame_bytes) > 0
        return self._loop.time() if holds_back else self._delivery.sent_at

    async def _write(self) -> None:
        while True:
            self._wake.clear()
            self._again_at = None
            if self._control_is_due:
                self._leave_lines()  # nobody waits for this socket while it sends something else
                await self._write_control()
            elif not await self._write_frame():
                await self._wait()

    @property
    def _control_is_due(self) -> bool:
        devices = self._devices_changed and self._session.is_open
        return self._ping_due or bool(self._outbox) or self._closing is not None or devices

    async def _write_control(self) -> None:
        if self._ping_due:
            self._ping_due = False
            await self._send_within(self._connection.ping())
        elif self._outbox:
            await self._send_within(self._connection.send(self._outbox.popleft()))
        elif self._closing is not None:
            await self._close(self._closing)
        else:
            self._devices_changed = False
            self.devices_revision = self._services.devices.changes(self)

    async def _write_frame(self) -> bool:
        """Send the next page or frame of the running transfer; return whether there was one and it might go."""
        delivery = self._delivery
        size = delivery.next_bytes(self._largest_frame_bytes) if delivery is not None else 0
        if delivery is None or not size:
            self._leave_lines()
            return False
        if not self._may_send(size):
            return False
        try:
            data = self._next_frame(delivery)
            if data is not None:
                self._count_bandwidth(len(data))
                await self._send_within(self._connection.send(data))
                await asyncio.sleep(0)  # a send that the kernel takes at once lets nobody else run
        finally:
            self._leave_lines()
        return data is not None

    def _may_send(self, size: int) -> bool:
        """Whether `size` bytes may go now; if not, the writer is woken, or `_again_at` says when to look again."""
        now, services, account = self._loop.time(), self._services, self._me.account_id
        ready_at: float | None = self._bucket.ready_at(now) if self._bucket is not None else now
        if ready_at == now and not services.frame_room.take(account, self, size, self._wake.set):
            return False
        if ready_at == now and services.bandwidth is not None:
            ready_at = services.bandwidth.ready_at(account, self, now, self._wake.set)
        self._again_at = None if ready_at == now else ready_at
        return ready_at == now

    def _count_bandwidth(self, size: int) -> None:
        now = self._loop.time()
        if self._bucket is not None:
            self._bucket.passed(now, size)
        if self._services.bandwidth is not None:
            self._services.bandwidth.passed(self._me.account_id, self, now, size)

    def _leave_lines(self) -> None:
        """Give back what this socket holds of what all share, and its turn."""
        if self.terminal is None:
            return
        self._services.frame_room.leave(self._me.account_id, self)
        if self._services.bandwidth is not None:
            self._services.bandwidth.leave(self._me.account_id, self)

    async def _wait(self) -> None:
        """Wait until there may be something to send. Ends the socket of a terminal that lets frames lie too long."""
        cut_at = self._cut_at()
        waits = [at for at in (self._again_at, cut_at) if at is not None]
        try:
            async with asyncio.timeout_at(min(waits, default=None)):
                await self._wake.wait()
        except TimeoutError:
            cut_at = self._cut_at()
            if cut_at is not None and cut_at <= self._loop.time():
                log.info("%s acknowledged no frame and was not heard of for %g s; cut", self, limits.SEND_SECONDS)
                raise _EndedError from None

    def _cut_at(self) -> float | None:
        """When a terminal that has frames to acknowledge and says nothing at all is given up."""
        since = self._delivery.unacknowledged_since if self._delivery is not None else None
        return None if since is None else max(since, self._connection.liveness.heard_at) + limits.SEND_SECONDS

    def _next_frame(self, delivery: Transfer) -> bytes | None:
        try:
            return delivery.next_message(self._loop.time(), self._largest_frame_bytes)
        except BadDataError as error:
            self._break_transfer(delivery, error)
            return None

    def _break_transfer(self, delivery: Transfer, error: BadDataError) -> None:
        log.error("%s", error)
        delivery.is_broken = True
        self._inbox.put_nowait(brain.TransferBroken(delivery.name, error.code, error.message))

    async def _send_within(self, sending: Any) -> None:
        try:
            async with asyncio.timeout(limits.SEND_SECONDS):
                await sending
        except TimeoutError:
            log.info("%s took nothing for %g s and was cut", self, limits.SEND_SECONDS)
            raise _EndedError from None
        except AttributeError:  # what `_abort` tells of, inside the library
            if not self._connection.transport.is_closing():
                raise
            raise _EndedError from None

    def _abort(self) -> None:
        """Drop the TCP connection, whatever is still to send.

        A transport of asyncio (CPython 3.11, `selector_events.py`) that was closed with bytes still to send, and has
        sent them since, has let go of its loop and fails here; then there is nothing left to drop.
        """
        with contextlib.suppress(AttributeError):
            self._connection.transport.abort()

    async def _close(self, close: brain.Close) -> None:
        await self._connection.close(close.code, close.reason)  # waits for the answer at most CLOSE_SECONDS
        raise _EndedError

    async def _watch(self) -> None:
        liveness = self._connection.liveness
        while True:
            await asyncio.sleep(max(0.0, liveness.deadline - self._loop.time()))
            due = liveness.due(self._loop.time())
            if due == "dead":
                log.info("%s was not heard of for %g s and was cut", self, limits.HEARD_WITHIN_SECONDS)
                raise _EndedError
            if due == "ping":
                self._ping_due = True
                self._wake.set()

    # --- performing actions ---------------------------------------------------------------------------------------

    async def _perform_or_fail(self, action: brain.Action) -> brain.Event | None:
        try:
            return await self._perform(action)
        except UnavailableError as error:  # a full disk: one line here, and the terminal comes again later
            log.error("%s: %s", self, error)
            return brain.Failed(error.code, error.message, error.hint)

    async def _perform(self, action: brain.Action) -> brain.Event | None:
        match action:
            case brain.Send(message):
                self.queue(codec.encode(message))
            case brain.Close():
                self._begin_to_close(action)
            case brain.FindTerminal() | brain.Enrol() | brain.Admit():
                self._connection.begin_work()
                try:
                    return await self._open(action)
                finally:
                    self._connection.end_work()
            case brain.TellRefusedRules(refused):
                log.warning("%s does not take the rules to scan with (%r): %r", self, refused.reason, refused.detail)
            case brain.SendDevices(request):
                assert self.terminal is not None
                self.devices_revision = self._services.devices.whole_list(self, self.terminal.account_id, request)
            case brain.ReadStanding() | brain.SavePosture():
                return await self._look_at_standing(action)
            case brain.Answer(request):
                return brain.Answered(await self._answer(request))
            case brain.ReadChanges(since):
                return await self._read_changes(since)
            case brain.NoteSync(sync):
                await self._services.syncs.note(self._me.terminal_id, sync)
            case brain.BeginUpload(request):
                return await self._begin_upload(request)
            case (
                brain.TakePage() | brain.TakeFrame() | brain.PrepareUpload() | brain.PublishUpload() | brain.EndUpload()
            ):
                return await self._go_on_with_upload(action)
            case _:
                return await self._deliver(action)
        return None

    def _begin_to_close(self, close: brain.Close) -> None:
        self._log_close(close)
        self._closing = close
        self._wake.set()
        if close.code == brain.CLOSE_REVOKED:  # even one that takes nothing more is soon gone
            self._loop.call_later(CLOSE_SECONDS, self._abort)

    def queue(self, data: bytes) -> None:
        """Queue a control message. A socket whose queue is full is too slow and is cut."""
        if self._closing is not None:
            return  # or a terminal that goes on asking would put its own end off, and fill the memory
        self._outbox.append(data)
        self._wake.set()
        if len(self._outbox) > limits.OUTBOUND_CONTROL_MESSAGES:
            self._outbox.clear()
            self._closing = brain.Close(CLOSE_TOO_SLOW, "too slow: more than 64 messages were waiting")
            self._log_close(self._closing)

    async def _open(self, action: brain.FindTerminal | brain.Enrol | brain.Admit) -> brain.Event:
        try:
            match action:
                case brain.FindTerminal(terminal):
                    return brain.TerminalFound(await self._services.accounts.find(terminal))
                case brain.Enrol(request):
                    return await self._enrol(request)
                case brain.Admit():
                    return brain.Admitted(await self._admit(action))
        except LockstepError as error:
            is_fault = isinstance(error, UnavailableError) and error.code != "busy"
            if isinstance(action, brain.Enrol) and not is_fault:  # anybody can have that as often as they like
                self._connection.tell(f"{self} may not enrol by {_way_of(action.request)}: {_why(error)}")
            elif isinstance(error, UnavailableError):
                log.error("%s: %s", self, error)
            return brain.Failed(error.code, error.message, error.hint)

    async def _enrol(self, request: messages.Enrol) -> brain.Event:
        outcome = await self._services.enrolling.enrol(
            request, self.address, self.host, lambda outcome: self.tell(brain.PairingDecided(outcome))
        )
        if isinstance(outcome, Terminal):
            return brain.TerminalFound(outcome)
        self._pairing = outcome
        self._connection.leave_doorway()  # it waits for a person now, with a bound of its own
        return brain.PairingBegun(outcome.code, self._services.enrolling.seconds_left(outcome))

    async def _admit(self, admit: brain.Admit) -> Terminal:
        services = self._services
        # The list is loaded first, so that nothing comes between counting and joining: two logins of one terminal join
        # in the order in which they were counted.
        await services.devices.load(admit.terminal.account_id, services.accounts)
        try:
            terminal = await services.accounts.count_login(
                admit.terminal.terminal_id, admit.device, self.address, receives=admit.receives
            )
        except asyncio.CancelledError:
            # The login counts all the same, so nothing the older socket says would: it must not linger.
            self._replace(services.presence.socket_of(admit.terminal.terminal_id))
            raise
        row = services.accounts.device_row(terminal, online=admit.receives)
        older = services.presence.join(terminal.account_id, row, self.number)
        self._replace(older)
        self._other_copy = services.revocation.clones.login(
            terminal.terminal_id, admit.run, self.host, replaced=older is not None, now=self._loop.time()
        )
        self._connection.leave_doorway()
        self._connection.has_logged_in = True
        self._connection.protocol.max_message_size = limits.MESSAGE_BYTES
        log.info(
            "%s (%s) of %s connected from %s%s",
            terminal.name, terminal.terminal_id, terminal.account_name, self.address,
            "" if admit.receives else ", not receiving",
        )  # fmt: skip
        return terminal

    def _replace(self, older: int | None) -> None:
        if older is not None and older in self._services.sockets:
            self._services.sockets[older].tell(brain.Replaced())

    async def _look_at_standing(self, action: brain.ReadStanding | brain.SavePosture) -> brain.Event:
        services, me = self._services, self._me
        if self._other_copy:
            other, self._other_copy = self._other_copy, ""
            await self._raise_clone_alarm(other)
        if isinstance(action, brain.SavePosture):
            await self._save_posture(action.posture, action.report)
        found = await services.accounts.standing(me.terminal_id)
        if found.ended == REVOKED:
            services.presence.remove(me.account_id, me.terminal_id)  # it may have joined after it was removed
        return brain.StandingRead(found)

    async def _raise_clone_alarm(self, other: str) -> None:
        me = self._me
        if await self._services.revocation.mark_cloned(me.terminal_id, self.host, other):
            log.warning(
                "the key of %s (%s) of %s is in two places: %s and %s. `lockstep-hub device revoke` ends it, "
                "`device clear` ends the alarm",
                me.name, me.terminal_id, me.account_name, other, self.host,
            )  # fmt: skip

    async def _save_posture(self, posture: messages.Posture, report: messages.PostureReport) -> None:
        services, me = self._services, self._me
        if action := await services.postures.save(me.terminal_id, me.connection, posture, report):
            await services.revocation.show(me.terminal_id)
            rules = ", ".join(sorted({repr(finding.rule) for finding in report.findings}))
            is_out = action == "posture.release"
            log.warning("%s is %s", self, "out of quarantine" if is_out else f"quarantined: {rules or 'not named'}")

    async def _answer(self, request: Message) -> tuple[Message, ...]:
        try:
            answer, renamed = await self._services.requests.answer(self._me, request)
        except LockstepError as error:
            if isinstance(request, (messages.PairingRequest, messages.Approve)):
                account = f"of the account {self._me.account_name!r} at {self.address}"
                self._connection.tell(f"{self} {account} gave a pairing code in vain: {error.code}")
            return (brain.error_message(error, getattr(request, "id", 0)),)
        if renamed is not None:
            self._session.terminal = renamed
        if isinstance(request, messages.Sync) and isinstance(answer[0], messages.SyncAccepted):
            log.info("%s asked for %s: sync %s", self, request.program, answer[0].sync)
        return answer

    async def _begin_upload(self, request: messages.Publish) -> brain.Event:
        try:
            self._upload = await self._services.uploads.begin(self._me, request)
        except LockstepError as error:
            return brain.UploadBegun(request, error)
        return brain.UploadBegun(request)

    async def _go_on_with_upload(self, action: brain.UploadAction) -> brain.Event | None:
        upload, uploads = self._upload, self._services.uploads
        assert upload is not None, "the session goes on only with what has begun"
        name = upload.request.upload
        try:
            match action:
                case brain.TakePage(page):
                    return brain.UploadPageTaken(name, await uploads.add_page(upload, page))
                case brain.TakeFrame(frame):
                    await uploads.write(upload, frame)
                    return _fetched(upload)
                case brain.PrepareUpload():
                    uploads.spawn(upload, self._bring(upload, self._prepare(upload)))
                case brain.PublishUpload():
                    uploads.spawn(upload, self._bring(upload, self._publish(upload)))
                case brain.EndUpload():
                    self._upload = None
                    await uploads.end(upload)
        except LockstepError as error:
            return brain.UploadFailed(name, error.code, str(error))
        return None

    async def _bring(self, upload: Upload, work: Coroutine[Any, Any, brain.Event]) -> None:
        """Have the session hear how work on a whole file ended."""
        try:
            self._inbox.put_nowait(await work)
        except LockstepError as error:
            self._inbox.put_nowait(brain.UploadFailed(upload.request.upload, error.code, str(error)))
        except Exception:
            log.exception("internal error in an upload of %s", self)
            await self._services.uploads.end(upload)
            self._inbox.put_nowait(brain.UploadFailed(upload.request.upload, "internal", "The hub has a fault."))

    async def _prepare(self, upload: Upload) -> brain.Event:
        await self._services.uploads.prepare(upload)
        return _fetched(upload)

    async def _publish(self, upload: Upload) -> brain.Event:
        published = await self._services.uploads.publish(upload)
        return brain.UploadPublished(
            messages.Published(
                upload=upload.request.upload,
                program=published.program,
                title=published.title,
                version=published.version,
                installer_kind=published.kind,
                digest=bytes.fromhex(published.digest),
                new=published.new,
                fits=published.fits[: limits.TEXT_CHARACTERS],
                yanked=published.yanked,
                retired=published.retired,
                verdict=published.verdict,
                finding=published.finding,
            )
        )

    async def _deliver(self, action: brain.Action) -> brain.Event | None:
        deliveries, me = self._services.deliveries, self._me
        match action:
            case brain.SaveInventory(inventory, first):
                await deliveries.save_inventory(me.terminal_id, me.connection, inventory, first=first)
                self.limit_bandwidth(inventory.bytes_per_second)
                return brain.InventorySaved()
            case brain.Claim():
                return brain.Claimed(await self._claim())
            case brain.CheckLive(held):
                return brain.LiveChecked(await deliveries.gone_of(held, me.terminal_id))
            case brain.Report(state):
                return brain.Reported(state, await self._report(state))
            case brain.StartTransfer(owed):
                return self._start_transfer(owed)
            case brain.StartRules(delivery, rules):
                return self._start_rules(delivery, rules)
            case brain.Hold(reason):
                await deliveries.hold(me.terminal_id, me.connection, reason)
            case brain.StopTransfer():
                await self._stop_transfer()
            case brain.FeedWant(want):
                return self._feed_want(want)
            case brain.FeedProgress(progress):
                return await self._feed_progress(progress)
        return None

    async def _claim(self) -> Owed | None:
        """Claim what is owed once the hub has room for one more transfer; until then it stays queued."""
        transfers, me = self._services.transfers, self._me
        if not transfers.take(me.account_id, self, 1, lambda: self.tell(brain.Owing())):
            return None
        owed = await self._services.deliveries.claim(me.terminal_id, me.connection)
        if owed is None:
            transfers.leave(me.account_id, self)
        return owed

    def _start_transfer(self, owed: Owed) -> brain.Event | None:
        try:
            self._delivery = Delivery(owed, self._services.objects.open(owed.digest))
        except LockstepError as error:
            log.error("%s", error)
            return brain.TransferBroken(owed.delivery, error.code, error.message, offered=False)
        self.queue(codec.encode(self._delivery.offer()))
        return None

    def _start_rules(self, delivery: str, rules: RulesObject) -> brain.Event:
        try:
            self._delivery = RulesTransfer(delivery, rules, self._services.objects.open(rules.digest))
        except LockstepError as error:
            log.error("%s", error)
            return brain.TransferBroken(delivery, error.code, error.message, offered=False)
        self.queue(codec.encode(self._delivery.offer()))
        return brain.RulesStarted(delivery)

    def _feed_want(self, want: messages.Want) -> brain.Event | None:
        if self._delivery is None:
            return None
        try:
            self._delivery.want(want)
        except ProtocolError as error:
            return brain.Broken(error.code, error.message)
        self._wake.set()
        return None

    async def _feed_progress(self, progress: messages.Progress) -> brain.Event | None:
        if self._delivery is None:
            return None
        try:
            self._delivery.progress(progress, self._loop.time())
        except ProtocolError as error:
            return brain.Broken(error.code, error.message)
        self._wake.set()
        if not isinstance(self._delivery, Delivery):
            return None
        self._services.note_progress(self._delivery)
        if self._delivery.uncounted_bytes >= COUNT_SENT_EVERY_BYTES:  # so that a hub that is killed has counted most
            await self._count_sent(self._delivery)
        return None

    async def _report(self, state: messages.State) -> str:
        sent = 0
        if isinstance(self._delivery, Delivery) and self._delivery.name == state.delivery:
            if state.state != State.DOWNLOADING:
                self._services.forget_progress(self._delivery.owed)
            if state.state in FINAL:
                sent = self._delivery.take_sent_bytes()
        me = self._me
        answer = await self._services.deliveries.report(me.terminal_id, me.connection, state, sent=sent)
        if answer == "noted" and state.state in LOGGED:
            reason = f" ({state.reason})" if state.reason else ""
            log.info("%s: delivery %s: %s%s", self, state.delivery, state.state, reason)
        return answer

    async def _stop_transfer(self) -> None:
        delivery, self._delivery = self._delivery, None
        self._services.transfers.leave(self._me.account_id, self)
        if isinstance(delivery, Delivery):
            self._services.forget_progress(delivery.owed)
            await self._count_sent(delivery)

    async def _count_sent(self, delivery: Delivery) -> None:
        if sent := delivery.take_sent_bytes():
            await self._services.deliveries.add_sent(delivery.name, sent)

    async def _read_changes(self, since: int) -> brain.Event:
        changes = await self._services.syncs.changes(self._me.terminal_id, since)
        told = {row.delivery for rows in changes.targets.values() for row in rows}
        for sync, row in self._services.take_progress(self._me.terminal_id):
            if row.delivery not in told:
                changes.targets.setdefault(sync, []).append(row)
        return brain.ChangesRead(changes)

    @property
    def _me(self) -> Terminal:
        assert self.terminal is not None, "only a terminal that is logged in gets here"
        return self.terminal

    async def _leave(self) -> None:
        services = self._services
        if self._pairing is not None:
            services.enrolling.pairings.leave(self._pairing)
        if self.terminal is None:
            return
        me = self._me
        # Presence first: it must not show a terminal as there for ever because the database could not write.
        newest = services.presence.leave(
            me.account_id, me.terminal_id, self.number, now=self._loop.time(), last_seen=time.time()
        )
        try:
            if self._upload is not None:
                await services.uploads.end(self._upload)
            await self._stop_transfer()
            await services.accounts.seen(me.terminal_id)
            if newest:
                await services.deliveries.terminal_left(me.terminal_id, me.connection)
        except UnavailableError as error:
            log.error("%s", error)  # the next start puts back what was under way
        log.info("%s disconnected", self)

    def _log_library_close(self, errors: BaseExceptionGroup[ConnectionClosed]) -> None:
        """Say it when the library itself ended the socket: a message too large, text that is not UTF-8, a bad frame."""
        for error in errors.exceptions:
            if isinstance(error, ConnectionClosed) and error.sent and error.sent.code in _LIBRARY_CLOSES:
                log.info("%s is closed: %d %s", self, error.sent.code, error.sent.reason)
                return

    def _log_close(self, close: brain.Close) -> None:
        if close.code == brain.CLOSE_STOPPING:
            return
        line = f"{self} is closed: {close.code} {close.reason or 'not a valid opening'}"
        if self.terminal is None:
            self._connection.tell(line)
        else:
            log.info("%s", line)


def _way_of(request: messages.Enrol) -> str:
    if request.pair:
        return "pairing"
    return "join key" if request.join_key else "token" if request.token else "password"


def _why(error: LockstepError) -> str:
    """Return what the log says of a refusal: the notes on it, which whoever is refused is not told, or its code."""
    return "; ".join(getattr(error, "__notes__", ())) or error.code


def _fetched(upload: Upload) -> brain.UploadFetched:
    return brain.UploadFetched(
        upload.request.upload, upload.frames, upload.done_bytes, upload.next_want(), complete=upload.complete
    )
