"""Connection: one logged-in connection to a hub. Feeds the session and performs the actions it returns.

Everything runs on one event loop: messages, ends of steps and requests are fed to the session as they come, and its
actions are performed before the next is taken. Only the socket's writer and steps that read whole files wait.
"""

import asyncio
import secrets
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, TypeAlias

from websockets.exceptions import ConnectionClosed

from protocol import keys, limits, messages
from protocol.device import DeviceInfo
from protocol.errors import ConflictError, LockstepError, UnavailableError
from protocol.liveness import Liveness
from protocol.messages import AnyMessage, Done, Inbox, LocalRequest, Message, PostureNow
from terminal import inbox, session
from terminal.dialling import Address, HubSocket, dial, parse_address
from terminal.installing import Installations, OnEvent
from terminal.link import Link, error_of
from terminal.posture import Postures
from terminal.receiving import Receiving
from terminal.session import Action, Enrolling, Event, LoggingIn, Session, ShowPairing
from terminal.state import Identity, StateFolder, despite_full_disk

DECISION_SECONDS: Final = 5.0
RUN: Final = secrets.token_bytes(limits.RUN_BYTES)  # one process, one run: only a copied key is in two at once


def _say_nothing(_kind: str, _sentence: str) -> None:
    """Nobody listens to events."""


OnPairing: TypeAlias = Callable[[ShowPairing], None]


def _pass_over(_shown: ShowPairing) -> None:
    """Nobody shows pairing codes."""


class Connection:
    """A connection to the hub at `address`. Use `connected`, which also opens and closes it.

    `link` carries requests and unasked messages; `welcome` and `hub_key` are what the opening brought.
    """

    welcome: messages.Welcome
    hub_key: bytes

    def __init__(
        self,
        socket: HubSocket,
        address: Address,
        opening: Enrolling | LoggingIn,
        folder: StateFolder,
        installations: Installations,
        on_event: OnEvent,
        on_pairing: OnPairing = _pass_over,
        postures: Postures | None = None,
    ) -> None:
        self.link = Link(socket, f"the hub at {address.url}", heard=self._heard, ask=self._ask)
        self.link.message_bytes = limits.MESSAGE_BEFORE_LOGIN_BYTES
        self.receiving = Receiving(folder, installations, self._feed_later, self.link.fail, on_event, postures)
        self._session = Session(
            opening,
            keys.new_nonce(),
            inventory=folder.inventory(),
            reports=folder.reports(),
            installing=installations.offers,
            decided=inbox.decided_unheard(folder.inbox()),
            asking=tuple(entry.row.delivery for entry in folder.inbox()),
            bytes_per_second=folder.preferences().bytes_per_second,
        )
        installations.ended = self._feed_later
        installations.fail = self.link.fail
        if installations.error is not None:  # it came while nobody listened
            self.link.fail(installations.error)
        self._installations = installations
        self._postures = postures
        if postures is not None:
            postures.listen(lambda posture: self._feed_later(session.Scanned(posture)))
        self._socket = socket
        self._folder = folder
        self._on_event = on_event
        self._on_pairing = on_pairing
        self._logs_in = isinstance(opening, LoggingIn)
        self._welcomed = asyncio.Event()
        self._opening: asyncio.Timeout | None = None  # while the login is waited for
        self._answers: dict[tuple[str, str], asyncio.Future[bool]] = {}  # by delivery and what was said of it
        self._background: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Log in within 5 s, or while a pairing code may be approved. Raises why that did not happen."""
        self._feed(session.Connected())
        self._spawn(self.link.run())
        self._spawn(self._keep_alive())
        ended = asyncio.create_task(self.link.ended())
        welcomed = asyncio.create_task(self._welcomed.wait())
        tasks = (ended, welcomed)
        try:
            async with asyncio.timeout(limits.LOGIN_SECONDS) as self._opening:
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        except TimeoutError:
            pass  # what has not happened is looked at below
        finally:
            self._opening = None
            for task in tasks:
                task.cancel()
        if self.link.error is not None:
            raise self.link.error
        if not self._welcomed.is_set():
            raise UnavailableError(f"The hub did not finish the login within {limits.LOGIN_SECONDS:g} s.")

    async def close(self) -> None:
        """Close in good order and wait for what works on files; what installs goes on."""
        self._installations.ended = self._installations.fail = None
        if self._postures is not None:
            self._postures.listen(None)
        try:
            await self.link.close()
            await self.receiving.settle()
        except asyncio.CancelledError:
            self.receiving.cancel()
            raise
        finally:
            for task in self._background:
                task.cancel()
            self._keep_devices()
            self._keep_refusal()

    async def answer(self, request: LocalRequest) -> AnyMessage:
        """Answer a request of this device: keep what a person decided and tell the hub. Raises as `inbox.decide`.

        Raises ConflictError (`withdrawn`) too when the hub wants the delivery no more. An answer of the hub that takes
        long is not waited for: it is acted on when it comes.
        """
        if isinstance(request, Inbox | PostureNow):
            return await inbox.answer_alone(self._folder, request)
        said = inbox.decide(self._folder, request, self._session.is_under_way)
        if said is None:
            return Done(re=request.id)
        if not await self._is_wanted(said) and request.decision != "decline":
            raise ConflictError(f"Delivery {request.delivery} is not wanted any more.", code="withdrawn")
        return Done(re=request.id)

    async def _is_wanted(self, said: messages.State) -> bool:
        """Tell the hub what a person decided, until it has noted it; return False when it wants it no more instead."""
        answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._answers[said.delivery, said.state] = answer
        self._feed_later(session.Decided(said))
        try:
            return await asyncio.wait_for(answer, DECISION_SECONDS)
        except TimeoutError:
            return True
        finally:
            self._answers.pop((said.delivery, said.state), None)

    def _answer_decision(self, message: AnyMessage) -> None:
        match message:
            case messages.Noted(of=delivery, state=state):
                answer = self._answers.get((delivery, state))
            case messages.Withdraw(delivery=delivery):
                answer = next((one for (decided, _), one in self._answers.items() if decided == delivery), None)
            case _:
                return
        if answer is not None and not answer.done():  # what is only to be offered once more is still in the inbox
            answer.set_result(isinstance(message, messages.Noted) or inbox.holds(self._folder, delivery))

    def set_pace(self, bytes_per_second: int) -> None:
        """Have the hub send no faster than this; 0 for no limit."""
        self._feed_later(session.PaceSet(bytes_per_second))

    def _heard(self, message: AnyMessage) -> None:
        self._feed(session.Heard(message))
        self._answer_decision(message)

    def _ask(self, message: Message) -> None:
        self._feed(session.Ask(message))

    def _feed_later(self, event: Event) -> None:
        """Feed what a task brings: there is no reader above it that an error could go to."""
        try:
            self._feed(event)
        except LockstepError as error:
            self.link.fail(error)

    def _feed(self, event: Event) -> None:
        """Handle `event`, and at once the events its actions bring."""
        events = deque([event])
        now = asyncio.get_running_loop().time()
        while events:
            for action in self._session.handle(events.popleft(), now):
                brought = self._perform(action)
                if brought is not None:
                    events.append(brought)

    def _perform(self, action: Action) -> Event | None:
        match action:
            case session.Say(message):
                self.link.say(message)
            case session.Welcomed(welcome, hub_key):
                self._open_up(welcome, hub_key)
            case session.ShowPairing():
                self._wait_for_approval(action)
            case session.KeepStanding(standing):
                self._keep_standing(standing)
            case session.HubRefused(error):
                raise error_of(error)
            case session.Deliver(message):
                self.link.deliver(message)
            case session.KeepDevices():
                self._keep_devices()
            case session.AskDevices():
                self._spawn(self._ask_devices())
            case _:
                return self.receiving.perform(action)
        return None

    def _open_up(self, welcome: messages.Welcome, hub_key: bytes) -> None:
        self.welcome, self.hub_key = welcome, hub_key
        self.link.message_bytes = limits.MESSAGE_BYTES
        with despite_full_disk():
            self._folder.save_standing(None)  # what is amiss still is said next
        self._welcomed.set()

    def _wait_for_approval(self, shown: ShowPairing) -> None:
        """The hub ends the wait, or else this does a little later."""
        seconds = min(shown.pairing.seconds, limits.PAIRING_SECONDS) + limits.LOGIN_SECONDS
        if self._opening is not None and not self._opening.expired():
            self._opening.reschedule(asyncio.get_running_loop().time() + seconds)
        self._on_pairing(shown)

    def _keep_standing(self, standing: messages.Standing) -> None:
        with despite_full_disk():  # the hub says it again at the next login
            self._folder.save_standing(standing)
        self._on_event("standing", standing_words(standing))

    def _keep_refusal(self) -> None:
        """Keep why the hub will not have this terminal: `status` tells it without the hub."""
        error = self.link.error
        if self._logs_in and error is not None and error.code in ("revoked", "account-disabled"):
            detail, hint = error.message[: limits.TEXT_CHARACTERS], error.hint[: limits.TEXT_CHARACTERS]
            refused = messages.Standing(
                may_receive=False, may_initiate=False, reason=error.code, detail=detail, hint=hint
            )
            with despite_full_disk():
                self._folder.save_standing(refused)

    async def _ask_devices(self) -> None:
        try:
            await self.link.request(messages.DevicesRequest(id=1))
        except LockstepError as error:  # without the list every later change would be a gap again
            self.link.fail(error)

    def _keep_devices(self) -> None:
        """Changes since the last whole list go to the disk once, not four times a second."""
        devices = self._session.devices
        if devices.epoch:
            with despite_full_disk():  # it is a copy, and no reason to part from the hub
                self._folder.save_devices(devices.epoch, devices.revision, devices.rows)

    async def _keep_alive(self) -> None:
        loop = asyncio.get_running_loop()
        liveness = Liveness(loop.time())
        heard_at = self._socket.heard_at
        while self.link.error is None:
            await asyncio.sleep(max(liveness.deadline - loop.time(), 0.0))
            if self._socket.heard_at > heard_at:
                heard_at = self._socket.heard_at
                liveness.heard(heard_at)
            await self._attend(liveness.due(loop.time()))

    async def _attend(self, due: str | None) -> None:
        if due == "dead":
            self.link.fail(UnavailableError("Nothing was heard from the hub any more; the connection was cut."))
        elif due == "ping":
            try:
                async with asyncio.timeout(limits.HEARD_WITHIN_SECONDS):
                    await self._socket.ping()
            except (TimeoutError, ConnectionClosed):
                return  # the next look, or the reader, says why

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)


@asynccontextmanager
async def connected(
    address: Address,
    opening: Enrolling | LoggingIn,
    folder: StateFolder,
    *,
    installations: Installations | None = None,
    on_event: OnEvent = _say_nothing,
    on_pairing: OnPairing = _pass_over,
    postures: Postures | None = None,
    socket_class: type[HubSocket] = HubSocket,
) -> AsyncIterator[Connection]:
    """Dial, log in and hold a connection; leave to close it. The caller holds the folder's lock.

    `installations` are needed when the opening receives; they and `postures` go on when the connection ends. Raises
    UnavailableError (try again), RefusedError (do not) and ProtocolError.
    """
    socket = await dial(address, socket_class)
    try:
        installations = installations or Installations(folder, {}, on_event)
        connection = Connection(socket, address, opening, folder, installations, on_event, on_pairing, postures)
    except LockstepError:  # a damaged file
        socket.transport.abort()
        raise
    try:
        await connection.open()
        yield connection
    except asyncio.CancelledError:
        connection.receiving.cancel()
        raise
    finally:
        await connection.close()


def address_of(identity: Identity) -> Address:
    """Return where the hub of `identity` is. Raises UsageError when its certificate file is gone."""
    return parse_address(
        identity.url, insecure_lan=identity.insecure_lan, ca_file=Path(identity.ca_file) if identity.ca_file else None
    )


def login_of(
    identity: Identity, address: Address, device: DeviceInfo, *, receives: bool, run: bytes = RUN
) -> LoggingIn:
    """Return how the terminal `identity` logs in; `run` is of this process, the same for all its logins."""
    return LoggingIn(
        terminal=identity.terminal,
        hub_key=identity.hub_key,
        device=device,
        signing_key=keys.SigningKey(identity.device_seed),
        receives=receives,
        host=address.host,
        port=address.port,
        run=run,
    )


def standing_words(standing: messages.Standing) -> str:
    """Return what a terminal may do as sentences for the person at it."""
    if standing.quarantined:
        what = "This device is in quarantine: it may neither send nor receive."
    elif standing.may_receive and standing.may_initiate:
        what = "This device may send and receive."
    else:
        left = [word for word, may in (("send", standing.may_initiate), ("receive", standing.may_receive)) if not may]
        what = f"This device may not {' or '.join(left)}."
    return " ".join(words for words in (what, standing.detail, standing.hint) if words)
