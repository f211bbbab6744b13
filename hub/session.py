"""The brain for one terminal's socket. Pure: events in, actions out, time as an argument.

`handle(event, now)` returns the actions the server is to perform, in order; what an action brings back returns as an
event. The session holds no socket, store or callback, so two sessions can be tested face to face without a network.

Opening: hello -> challenge -> enrol or login -> (look-ups) -> admit -> welcome. Then three things run side by side:
requests are answered one by one; a receiving terminal that has sent its inventory is served what it is owed, one
transfer at a time; and an initiator is told what changed in its syncs, at most twice a second. Beside these a terminal
may upload one installer: publish -> BeginUpload -> TakePage, once a page -> PrepareUpload -> want -> TakeFrame, once a
frame -> PublishUpload -> published. Reading whole files takes long, so what PrepareUpload and PublishUpload bring back
comes later; what comes of an upload that has ended is passed over.

What a terminal may do is read after its welcome and whenever something of it changes (ReadStanding): it is told, or its
socket closed. A receiving one whose posture is due is sent the rule set first, as a transfer that no delivery stands
behind, and then asked for its report.

A transfer is over when its delivery installs, waits for a person, or ends: then the next is claimed. Until then it has
the deadlines of `protocol.life`, which every sign of progress sets anew, and all that the hub sends of it: missing one
counts as a failed try of the terminal, however slow the hub is.
"""

from collections import deque
from enum import Enum
from typing import Final, TypeAlias

from msgspec import Struct

from hub.records import ENDED, Changes, Owed, RulesObject, StandingFound, Terminal
from protocol import codec, keys, life, limits, messages
from protocol.conversation import Conversation, Phase, Side
from protocol.device import DeviceInfo
from protocol.errors import LockstepError, ProtocolError, UnavailableError
from protocol.keys import SigningKey
from protocol.messages import Message

VERSION: Final = "lockstep.v1"

_DECISIONS: Final = frozenset({life.State.QUEUED, life.State.ASKING, life.State.POSTPONED})

CLOSE_STOPPING: Final = 1012
CLOSE_REFUSED: Final = 1008
CLOSE_BUSY: Final = 1013
CLOSE_REPLACED: Final = 4000
CLOSE_VIOLATION: Final = 4001
CLOSE_REVOKED: Final = 4003

# A terminal that was asked for a report and has not sent a good one is asked again after so long.
_SCAN_AGAIN_SECONDS: Final = 3_600.0


# --- events: what happened ----------------------------------------------------------------------------------------


class Received(Struct, frozen=True):
    """The terminal said something."""

    message: Message


class Broken(Struct, frozen=True):
    """What the terminal sent is not a message."""

    code: str
    text: str


class PairingBegun(Struct, frozen=True):
    """The device waits for somebody to approve this code, for so many seconds."""

    code: str
    seconds: float


class PairingDecided(Struct, frozen=True):
    """The terminal that the device has become, or the code of why it has not."""

    outcome: Terminal | str


class TerminalFound(Struct, frozen=True):
    """The terminal that has enrolled or wants to log in, or None when there is no such one."""

    terminal: Terminal | None


class Failed(Struct, frozen=True):
    """An action could not be performed: refused while opening, or the database does not answer."""

    code: str
    text: str
    hint: str


class Admitted(Struct, frozen=True):
    """The login is counted; this socket is the terminal's newest."""

    terminal: Terminal


class Answered(Struct, frozen=True):
    """The messages that answer a request."""

    answer: tuple[Message, ...]


class InventorySaved(Struct, frozen=True):
    """The inventory is stored."""


class StandingRead(Struct, frozen=True):
    """What the terminal may do now."""

    found: StandingFound


class RulesStarted(Struct, frozen=True):
    """The rule set was offered."""

    delivery: str


class Claimed(Struct, frozen=True):
    """What the terminal is owed next, or None."""

    owed: Owed | None


class TransferBroken(Struct, frozen=True):
    """The hub cannot read what it is to send; `offered` says whether the terminal has heard of it."""

    delivery: str
    code: str
    text: str
    offered: bool = True


class LiveChecked(Struct, frozen=True):
    """Which of the deliveries that were asked about are no longer wanted."""

    gone: tuple[str, ...]


class Reported(Struct, frozen=True):
    """A report was written ("noted"), refused or is stale."""

    state: messages.State
    answer: str


class ChangesRead(Struct, frozen=True):
    """What changed in the syncs of this initiator."""

    changes: Changes


class UploadBegun(Struct, frozen=True):
    """An upload may come, or `error` says why not."""

    request: messages.Publish
    error: LockstepError | None = None


class UploadPageTaken(Struct, frozen=True):
    """A manifest page of an upload was right; `last` says that the manifest is whole."""

    upload: str
    last: bool


class UploadFetched(Struct, frozen=True):
    """Prepared or wrote: `frames` written since it began, `done` bytes held, `want` the runs to ask for now."""

    upload: str
    frames: int
    done: int
    want: tuple[messages.Run, ...]
    complete: bool


class UploadPublished(Struct, frozen=True):
    """The upload is in the catalogue."""

    published: messages.Published


class UploadFailed(Struct, frozen=True):
    """The upload is refused: it is not what was said of it, or not wanted; nothing of it is kept."""

    upload: str
    code: str
    text: str


UploadEvent: TypeAlias = UploadBegun | UploadPageTaken | UploadFetched | UploadPublished | UploadFailed


class Owing(Struct, frozen=True):
    """Look again: the terminal may be owed something."""


class StandingChanged(Struct, frozen=True):
    """What the terminal may do may have changed: read it again."""


class Changed(Struct, frozen=True):
    """Something changed in a sync that this terminal began."""


class Replaced(Struct, frozen=True):
    """A newer login of this terminal has come."""


class Stopping(Struct, frozen=True):
    """The hub is stopping."""


class Ticked(Struct, frozen=True):
    """The session's deadline has come.

    `sent_at`: when the running transfer last sent something; now while the hub itself holds back what may go.
    """

    sent_at: float = 0.0


Event: TypeAlias = (
    Received
    | Broken
    | PairingBegun
    | PairingDecided
    | TerminalFound
    | Failed
    | Admitted
    | StandingRead
    | StandingChanged
    | RulesStarted
    | Answered
    | InventorySaved
    | Claimed
    | TransferBroken
    | LiveChecked
    | Reported
    | ChangesRead
    | UploadEvent
    | Owing
    | Changed
    | Replaced
    | Stopping
    | Ticked
)


# --- actions: what to do ------------------------------------------------------------------------------------------


class Send(Struct, frozen=True):
    """Queue a message for the terminal."""

    message: Message


class Close(Struct, frozen=True):
    """Close the socket; nothing after it is performed."""

    code: int
    reason: str


class FindTerminal(Struct, frozen=True):
    """Look a terminal up; returns TerminalFound."""

    terminal: str


class Enrol(Struct, frozen=True):
    """Check the proof and make the device a terminal, or find it; returns TerminalFound, PairingBegun or Failed."""

    request: messages.Enrol


class Admit(Struct, frozen=True):
    """Count the login and join presence; returns Admitted."""

    terminal: Terminal
    device: DeviceInfo
    receives: bool
    run: bytes = b""


class ReadStanding(Struct, frozen=True):
    """What may the terminal do now, and is a report due? Returns StandingRead."""


class SavePosture(Struct, frozen=True):
    """Keep a report whose signature and nonce are right; returns StandingRead."""

    posture: messages.Posture
    report: messages.PostureReport


class Hold(Struct, frozen=True):
    """Put back what was under way: the terminal may not receive any more, for this reason."""

    reason: str


class StartRules(Struct, frozen=True):
    """Offer the rule set and send it as the terminal wants it; returns RulesStarted or TransferBroken."""

    delivery: str
    rules: RulesObject


class SendDevices(Struct, frozen=True):
    """Send the whole device list; `re` is the request it answers, 0 for none."""

    re: int


class Answer(Struct, frozen=True):
    """Carry a request out; returns Answered."""

    request: Message


class SaveInventory(Struct, frozen=True):
    """Store the inventory, the `first` of this connection or a later one; returns InventorySaved."""

    inventory: messages.Inventory
    first: bool


class Claim(Struct, frozen=True):
    """Claim what the terminal is owed; returns Claimed."""


class CheckLive(Struct, frozen=True):
    """Which of these deliveries are still wanted? Returns LiveChecked."""

    deliveries: tuple[str, ...]


class StartTransfer(Struct, frozen=True):
    """Offer the object and send it as the terminal wants it."""

    owed: Owed


class FeedWant(Struct, frozen=True):
    """Pass a want to the running transfer."""

    want: messages.Want


class FeedProgress(Struct, frozen=True):
    """Pass an acknowledgement to the running transfer."""

    progress: messages.Progress


class TellRefusedRules(Struct, frozen=True):
    """Say in the log why the terminal does not take the rules it is to scan with."""

    refused: messages.Refused


class StopTransfer(Struct, frozen=True):
    """Send nothing more of the running transfer."""


class Report(Struct, frozen=True):
    """Write where a delivery stands; returns Reported."""

    state: messages.State


class ReadChanges(Struct, frozen=True):
    """Read what changed in this initiator's syncs since a revision; returns ChangesRead."""

    since: int


class NoteSync(Struct, frozen=True):
    """The initiator knows how a sync ended."""

    sync: str


class BeginUpload(Struct, frozen=True):
    """May this terminal publish, and is there room? Returns UploadBegun."""

    request: messages.Publish


class TakePage(Struct, frozen=True):
    """Check a manifest page of the upload; returns UploadPageTaken or UploadFailed."""

    page: messages.ManifestPage


class PrepareUpload(Struct, frozen=True):
    """Find out what of the upload is on disk already; brings UploadFetched or UploadFailed later."""


class TakeFrame(Struct, frozen=True):
    """Check a frame of the upload and write it; returns UploadFetched or UploadFailed."""

    frame: messages.Chunks


class PublishUpload(Struct, frozen=True):
    """Read the whole file again and publish it; brings UploadPublished or UploadFailed later."""


class EndUpload(Struct, frozen=True):
    """Let go of the upload; what has come of it is kept for another try."""


UploadAction: TypeAlias = BeginUpload | TakePage | PrepareUpload | TakeFrame | PublishUpload | EndUpload

Action: TypeAlias = (
    Send
    | Close
    | FindTerminal
    | Enrol
    | Admit
    | ReadStanding
    | SavePosture
    | Hold
    | StartRules
    | SendDevices
    | Answer
    | SaveInventory
    | Claim
    | CheckLive
    | StartTransfer
    | FeedWant
    | FeedProgress
    | TellRefusedRules
    | StopTransfer
    | Report
    | ReadChanges
    | NoteSync
    | UploadAction
)


class _Step(Enum):
    """What is due next of an upload."""

    BEGINNING = "beginning"
    PAGES = "pages"
    PREPARING = "preparing"
    FETCHING = "fetching"
    PUBLISHING = "publishing"


class _Upload(Struct):
    """The upload that comes; `idle_at` is when it is given up unless something of it comes."""

    upload: str
    object: bytes
    step: _Step = _Step.BEGINNING
    idle_at: float = 0.0


# To a device that waited to be approved: what came of it, and what to do.
_PAIRING_ENDS: Final[dict[str, tuple[str, str]]] = {
    "already-logged-in": ("This device is logged in to another account.", "Add --replace to log in with new keys."),
    "pairing-denied": ("This device was turned away.", "Ask whoever looks after the account."),
    "pairing-expired": ("Nobody approved this device in time.", "Run `lockstep-terminal login` again for a new code."),
    "replaced": ("This device waits on a newer connection.", ""),
    "revoked": ENDED["revoked"],
}

_FROM_TERMINAL: Final = frozenset({_Step.PAGES, _Step.FETCHING})  # when it is the terminal that has to do something
_UPLOADS_REMEMBERED: Final = 16


class Session:
    """One socket's state. `names` are the "host:port" a terminal may have dialled to mean this hub."""

    def __init__(self, hub_key: SigningKey, names: frozenset[str], now: float) -> None:
        self.terminal: Terminal | None = None
        self._hub_key = hub_key
        self._names = names
        self._conversation = Conversation()
        self._login_by = now + limits.OPENING_SECONDS + limits.LOGIN_SECONDS
        self._terminal_nonce = b""
        self._hub_nonce = keys.new_nonce()
        self._proof: messages.Enrol | messages.Login | None = None
        self._is_pairing = False
        self._inventory_is_in = False
        self._current = ""  # the delivery that is being transferred
        self._standing = messages.Standing(may_receive=True, may_initiate=True)  # as the terminal knows it
        self._scan: RulesObject | None = None  # a report is due
        self._rules: RulesObject | None = None  # what `_current` is, where it is no delivery
        self._rules_sent = 0
        self._scan_asked = b""  # the rule set it was last asked to scan with, and when it may be asked again
        self._scan_again_at = 0.0
        self._posture_nonce = b""
        self._overdue: life.Deadline | None = None
        self._overdue_at = 0.0
        self._asking: set[str] = set()
        self._busy_looking = False
        self._look_once_more = False
        self._offered: set[str] = set()
        self._changes_due = False
        self._changes_after = now
        self._revision = 0
        self._ends_told: set[str] = set()
        self._upload: _Upload | None = None
        # The objects of the last uploads accepted here: what still comes of one that has ended is no violation.
        self._uploaded: deque[bytes] = deque(maxlen=_UPLOADS_REMEMBERED)
        self._closed = False

    @property
    def is_open(self) -> bool:
        """Whether the terminal is logged in and welcomed."""
        return self._conversation.phase is Phase.OPEN

    @property
    def deadline(self) -> float | None:
        """When to send `Ticked`, or None while nothing waits for time."""
        if self._closed:
            return None  # a deadline that has passed would be asked for again and again until the socket is gone
        if not self.is_open:
            return self._login_by
        due = [self._changes_after] if self._changes_due else []
        due += [self._overdue_at] if self._overdue else []
        due += [self._upload.idle_at] if self._upload and self._upload.step in _FROM_TERMINAL else []
        return min(due, default=None)

    def handle(self, event: Event, now: float) -> list[Action]:
        """Take one event; return what is to be done, in order. After `Close` nothing more is done."""
        if self._closed:
            return []
        try:
            actions = self._dispatch(event, now)
        except ProtocolError as error:
            actions = self._violation(error)
        self._closed = any(isinstance(action, Close) for action in actions)
        return actions

    def _dispatch(self, event: Event, now: float) -> list[Action]:
        match event:
            case Received(message):
                self._conversation.said(Side.TERMINAL, message)
                return self._received(message, now)
            case Broken(code, text):
                raise ProtocolError(text, code=code)
            case PairingBegun() | PairingDecided() | TerminalFound() | Failed() | Admitted():
                return self._opening(event, now)
            case Answered(answer):
                return [self._send(message) for message in answer]
            case InventorySaved():
                self._inventory_is_in = self.terminal is not None and self.terminal.receives
                return self._look_again()
            case StandingRead(found):
                return self._stands(found, now)
            case Claimed() | RulesStarted() | TransferBroken() | LiveChecked() | Reported():
                return self._deliver(event, now)
            case UploadBegun() | UploadPageTaken() | UploadFetched() | UploadPublished() | UploadFailed():
                return self._upload_went_on(event, now)
            case _:
                return self._told(event, now)

    def _told(
        self, event: Owing | Changed | StandingChanged | ChangesRead | Ticked | Replaced | Stopping, now: float
    ) -> list[Action]:
        match event:
            case Owing():
                return self._look_again()
            case StandingChanged():
                return [ReadStanding()] if self.is_open else []  # it is read after the welcome in any case
            case Changed():
                self._changes_due = self.is_open
                return []
            case ChangesRead(changes):
                return self._tell_changes(changes, now)
            case Ticked(sent_at):
                return self._tick(sent_at, now)
            case Replaced():
                return [self._error("replaced", "This terminal has logged in on a newer connection."), _replaced()]
            case Stopping():
                return [Close(CLOSE_STOPPING, "the hub is stopping")]

    # --- opening --------------------------------------------------------------------------------------------------

    def _challenge(self, hello: messages.Hello) -> list[Action]:
        if VERSION not in hello.versions:
            raise ProtocolError(f"The terminal speaks {', '.join(hello.versions)}; this hub speaks {VERSION}.")
        self._terminal_nonce = hello.nonce
        hub_key = self._hub_key.public
        signed = keys.challenge_bytes(terminal_nonce=hello.nonce, hub_nonce=self._hub_nonce, hub_key=hub_key)
        challenge = messages.Challenge(
            version=VERSION, nonce=self._hub_nonce, hub_key=hub_key, signature=self._hub_key.sign(signed)
        )
        return [self._send(challenge)]

    def _prove(self, proof: messages.Enrol | messages.Login) -> list[Action]:
        self._proof = proof
        if f"{proof.host.lower()}:{proof.port}" not in self._names:
            return self._refuse(
                f"This hub does not answer to {proof.host}:{proof.port}.",
                "Log in with an address the hub has, or add it to the hub's `names`.",
                code="wrong-hub-name",
            )
        return self._enrol(proof) if isinstance(proof, messages.Enrol) else [FindTerminal(proof.terminal)]

    def _opening(
        self, event: PairingBegun | PairingDecided | TerminalFound | Failed | Admitted, now: float
    ) -> list[Action]:
        match event:
            case PairingBegun(code, seconds):
                self._is_pairing, self._login_by = True, now + seconds
                return [self._send(messages.Pairing(code=code, seconds=seconds))]
            case PairingDecided(outcome):
                return self._decided(outcome, now)
            case TerminalFound(terminal):
                return self._admit(terminal)
            case Failed(code, text, hint) if self.is_open:
                return [self._error(code, text, hint), Close(CLOSE_BUSY, code)]
            case Failed(code, text, hint):
                return self._refuse(text, hint, code=code)
            case Admitted(terminal):
                return self._welcome(terminal)

    def _decided(self, outcome: Terminal | str, now: float) -> list[Action]:
        if isinstance(outcome, str):
            return self._refuse(*_PAIRING_ENDS[outcome], code=outcome)
        self._is_pairing, self._login_by = False, now + limits.LOGIN_SECONDS
        return self._admit(outcome)

    def _enrol(self, proof: messages.Enrol) -> list[Action]:
        """Have the proof checked once the signature is right: junk that nobody signed costs no Argon2."""
        ways = (bool(proof.account or proof.password), bool(proof.join_key), bool(proof.token), proof.pair)
        if sum(ways) != 1:
            raise ProtocolError("A device enrols in exactly one of four ways.")
        signed = keys.enrol_bytes(
            terminal_nonce=self._terminal_nonce,
            hub_nonce=self._hub_nonce,
            hub_key=self._hub_key.public,
            account=proof.account,
            sealing_key=proof.sealing_key,
            host=proof.host,
            port=proof.port,
        )
        if not keys.verifies(proof.device_key, proof.signature, signed):
            return self._refuse("The enrolment is not signed by the device key it names.", "")
        return [Enrol(proof)]

    def _admit(self, terminal: Terminal | None) -> list[Action]:
        proof = self._proof
        if isinstance(proof, messages.Enrol):
            assert terminal is not None
            return [Admit(terminal, proof.device, receives=False)]
        assert isinstance(proof, messages.Login)
        signed = keys.login_bytes(
            terminal_nonce=self._terminal_nonce,
            hub_nonce=self._hub_nonce,
            hub_key=self._hub_key.public,
            terminal=proof.terminal,
            host=proof.host,
            port=proof.port,
        )
        # One answer for "no such terminal" and "not its key", and the same work: the difference is nobody's business.
        device_key = terminal.device_key if terminal is not None else self._hub_key.public
        is_its_key = keys.verifies(device_key, proof.signature, signed)
        if terminal is None or not is_its_key:
            return self._refuse(
                "This hub does not know this terminal.", "Run `lockstep-terminal login` again.", code="unknown-terminal"
            )
        ended = "revoked" if terminal.is_revoked else "account-disabled" if terminal.is_disabled else ""
        if ended:
            return self._refuse(*ENDED[ended], code=ended)
        return [Admit(terminal, proof.device, receives=proof.receives, run=proof.run)]

    def _too_late(self) -> list[Action]:
        if self._is_pairing:
            return self._refuse(*_PAIRING_ENDS["pairing-expired"], code="pairing-expired")
        return [Close(CLOSE_REFUSED, "")]

    def _welcome(self, terminal: Terminal) -> list[Action]:
        self.terminal = terminal
        self._changes_due = True
        welcome = messages.Welcome(
            terminal=terminal.terminal_id,
            name=terminal.name,
            account=terminal.account_name,
            connection=terminal.connection,
            message_bytes=limits.MESSAGE_BYTES,
            frame_bytes=limits.FRAME_BYTES,
        )
        return [self._send(welcome), SendDevices(0), ReadStanding()]

    # --- open -----------------------------------------------------------------------------------------------------

    def _received(self, message: Message, now: float) -> list[Action]:
        match message:
            case messages.Hello():
                return self._challenge(message)
            case messages.Enrol() | messages.Login():
                return self._prove(message)
            case messages.DevicesRequest(id=request):
                return [SendDevices(request)]
            case messages.Inventory():
                return self._inventory(message)
            case messages.State():
                return [Report(message)]
            case messages.Posture():
                return self._posture(message)
            case messages.Noted(of=sync):
                self._changes_due = True  # there may be more ends to tell than go at once
                return [NoteSync(sync)]
            case messages.Want() | messages.Progress() | messages.Received() | messages.Refused():
                return self._transfer(message, now)
            case messages.Publish() | messages.ManifestPage() | messages.Chunks() | messages.Withdraw():
                return self._upload_said(message, now)
            case messages.Offer():
                raise ProtocolError("A terminal offers nothing; it publishes.", code="not-offered")
            case messages.Error():
                return []  # the terminal's complaint is in its own log; there is nothing to do here
            case _:
                return [Answer(message)]

    def _inventory(self, inventory: messages.Inventory) -> list[Action]:
        if not self._inventory_is_in:
            self._asking = set(inventory.asking)  # what ended while it was away is withdrawn at the first look
        return [SaveInventory(inventory, first=not self._inventory_is_in)]

    def _transfer(
        self, message: messages.Want | messages.Progress | messages.Received | messages.Refused, now: float
    ) -> list[Action]:
        delivery = message.delivery
        if delivery not in self._offered:
            raise ProtocolError(f"Delivery {delivery!r} was not offered on this connection.", code="not-offered")
        if not self._is_current(delivery):
            return []  # crossed with the end of its delivery
        match message:
            case messages.Want():
                self._set_deadline(life.State.DOWNLOADING, now)
                downloading = Report(messages.State(delivery=delivery, state=life.State.DOWNLOADING))
                return [FeedWant(message)] if self._rules else [FeedWant(message), downloading]
            case messages.Progress():
                self._set_deadline(life.State.DOWNLOADING, now)
                return [FeedProgress(message)]
            case messages.Received() if self._rules:
                return self._rules_ended(self._rules, there=True)
            case messages.Refused() if self._rules:
                return [TellRefusedRules(message), *self._rules_ended(self._rules, there=False)]
            case messages.Refused():
                return [StopTransfer(), Report(_failed(delivery, message.reason, message.detail))]
            case messages.Received():
                return []  # the state report that follows says it for the delivery

    def _deliver(
        self, event: Claimed | RulesStarted | TransferBroken | LiveChecked | Reported, now: float
    ) -> list[Action]:
        match event:
            case Claimed(owed):
                self._busy_looking = False
                if owed is None:
                    return self._look_again() if self._look_once_more else []
                self._current = owed.delivery
                self._asking.discard(owed.delivery)
                self._offered.add(owed.delivery)
                self._set_deadline(life.State.OFFERED, now)
                return [StartTransfer(owed)]
            case RulesStarted():
                self._set_deadline(life.State.OFFERED, now)
                return []
            case TransferBroken(delivery, code, text, offered):
                return self._give_up(delivery, code, text, offered=offered)
            case LiveChecked(gone):
                return self._live_checked(gone)
            case Reported(state, answer):
                return self._reported(state, answer, now)

    def _give_up(self, delivery: str, reason: str, detail: str, *, offered: bool = True) -> list[Action]:
        """End the try that is under way from this side.

        What was not offered is not withdrawn: the terminal would forget what a person there has agreed to.
        """
        if not self._is_current(delivery):
            return []  # it has ended meanwhile
        self._overdue = None
        withdraw = [self._send(messages.Withdraw(delivery=delivery))] if offered else []
        if self._rules:
            return [*withdraw, *self._rules_ended(self._rules, there=False)]
        return [StopTransfer(), *withdraw, Report(_failed(delivery, reason, detail))]

    def _live_checked(self, gone: tuple[str, ...]) -> list[Action]:
        self._busy_looking = False
        self._asking.difference_update(gone)
        actions: list[Action] = [self._send(messages.Withdraw(delivery=delivery)) for delivery in gone]
        if self._current in gone:
            actions.insert(0, StopTransfer())
            self._end_transfer()
        if not self._current:
            return [*actions, *self._claim()]
        return [*actions, *self._look_again()] if self._look_once_more else actions

    def _reported(self, state: messages.State, answer: str, now: float) -> list[Action]:
        if answer == "stale":
            return []
        delivery, after = state.delivery, state.state
        if answer == "refused" and after in _DECISIONS and self._is_current(delivery):
            # It crossed with the offer, which the terminal answers by what was decided; this need not come again.
            return [self._send(messages.Noted(of=delivery, state=after))]
        if answer == "refused" and after not in life.FINAL:
            # It is not wanted any more, or not known to have come that far: nothing is installed for it.
            self._asking.discard(delivery)
            withdraw = self._send(messages.Withdraw(delivery=delivery))
            return [StopTransfer(), withdraw, *self._next()] if self._is_current(delivery) else [withdraw]
        if after == life.State.DOWNLOADING:  # that one is the hub's own
            return []
        actions: list[Action] = [self._send(messages.Noted(of=delivery, state=after))]
        return [*actions, *self._went_on(delivery, after, now)]

    def _went_on(self, delivery: str, after: str, now: float) -> list[Action]:
        """Do what follows from a report that was noted: go on with this transfer, or with the next."""
        waits = after in (life.State.ASKING, life.State.POSTPONED)
        if waits:
            self._asking.add(delivery)
        else:
            self._asking.discard(delivery)
        if self._is_current(delivery):
            if after == life.State.VERIFYING:
                self._set_deadline(life.State.VERIFYING, now)
                return []
            return [StopTransfer(), *self._next()]
        return [] if waits else self._look_again()

    def _is_current(self, delivery: str) -> bool:
        return self._current == delivery

    def _set_deadline(self, state: life.State, now: float) -> None:
        self._overdue = life.DEADLINES[state]
        self._overdue_at = now + self._overdue.seconds

    def _end_transfer(self) -> None:
        self._current = ""
        self._rules = None
        self._overdue = None

    def _next(self) -> list[Action]:
        self._end_transfer()
        return self._look_again()

    def _look_again(self) -> list[Action]:
        """Look up what is owed, and whether what the terminal holds is still wanted; one look at a time."""
        if not (self.is_open and self._inventory_is_in):
            return []
        if self._busy_looking:
            self._look_once_more = True
            return []
        held = ((self._current,) if self._current and not self._rules else ()) + tuple(self._asking)
        if not held:
            return [] if self._current else self._claim()
        self._busy_looking = True
        self._look_once_more = False
        return [CheckLive(held)]

    def _claim(self) -> list[Action]:
        if self._scan is not None:
            return self._send_rules(self._scan)
        self._busy_looking = True
        self._look_once_more = False
        return [Claim()]

    # --- standing and posture -------------------------------------------------------------------------------------

    def _stands(self, found: StandingFound, now: float) -> list[Action]:
        """Tell the terminal what it may do if that has changed; see whether it is to scan."""
        if found.ended:
            text, hint = ENDED[found.ended]
            return [self._error(found.ended, text, hint), Close(CLOSE_REVOKED, found.ended)]
        if found.scan is not None and (found.scan.digest != self._scan_asked or now >= self._scan_again_at):
            self._scan = found.scan
            self._scan_asked = found.scan.digest
            self._scan_again_at = now + _SCAN_AGAIN_SECONDS
        told: list[Action] = [self._send(found.standing)] if found.standing != self._standing else []
        self._standing = found.standing
        if self._current and not self._rules and not found.standing.may_receive:
            told += [StopTransfer(), self._send(messages.Withdraw(delivery=self._current)), Hold(found.standing.reason)]
            self._end_transfer()
        return [*told, *self._look_again()]

    def _send_rules(self, rules: RulesObject) -> list[Action]:
        self._scan = None
        self._rules = rules
        self._rules_sent += 1
        self._current = f"rules-{self._rules_sent}"
        self._offered.add(self._current)
        return [StartRules(self._current, rules)]

    def _rules_ended(self, rules: RulesObject, *, there: bool) -> list[Action]:
        """Ask for a report if the terminal has the rule set; then it is the deliveries' turn."""
        actions: list[Action] = [StopTransfer()]
        if there:
            self._posture_nonce = keys.new_nonce()
            actions.append(self._send(messages.PostureRequest(rules=rules.digest, nonce=self._posture_nonce)))
        return [*actions, *self._next()]

    def _posture(self, posture: messages.Posture) -> list[Action]:
        """Check a report. One that answers an older request, or none, changes nothing.

        The same request may be answered again: whoever has mended what was found need not wait to be asked.
        """
        assert self.terminal is not None
        signed = keys.posture_bytes(
            hub_key=self._hub_key.public, terminal=self.terminal.terminal_id, report=posture.report
        )
        if not keys.verifies(self.terminal.device_key, posture.signature, signed):
            raise ProtocolError("The posture is not signed by this terminal, for this hub.", code="not-authorised")
        report = codec.decode_report(posture.report)
        asked = bool(self._posture_nonce) and report.nonce == self._posture_nonce and report.rules == self._scan_asked
        return [SavePosture(posture, report)] if asked else []

    # --- an upload ------------------------------------------------------------------------------------------------

    def _upload_said(
        self, message: messages.Publish | messages.ManifestPage | messages.Chunks | messages.Withdraw, now: float
    ) -> list[Action]:
        match message:
            case messages.Publish():
                return self._publish(message)
            case messages.Withdraw(delivery=upload):
                return self._given_up(upload)
            case _:
                return self._object_came(message, now)

    def _publish(self, request: messages.Publish) -> list[Action]:
        if self._upload is not None:
            busy = UnavailableError("This terminal uploads a file already.", hint="One after the other.", code="busy")
            return [self._answer_error(request.id, busy)]
        self._upload = _Upload(request.upload, request.object)
        return [BeginUpload(request)]

    def _object_came(self, message: messages.ManifestPage | messages.Chunks, now: float) -> list[Action]:
        if message.object not in self._uploaded:
            raise ProtocolError("This hub has asked for no such object.", code="not-offered")
        upload = self._upload
        if upload is None or upload.object != message.object or upload.step not in _FROM_TERMINAL:
            return []  # crossed with the end of its upload
        upload.idle_at = now + limits.UPLOAD_IDLE_SECONDS
        if isinstance(message, messages.ManifestPage) == (upload.step is _Step.PAGES):
            return [TakePage(message) if isinstance(message, messages.ManifestPage) else TakeFrame(message)]
        what = f"A {messages.kind_of(message)} came while {upload.step.value} was due."
        return self._refuse_upload(upload.upload, "bad-transfer", what)

    def _given_up(self, upload: str) -> list[Action]:
        if self._upload is None or self._upload.upload != upload or self._upload.step is _Step.PUBLISHING:
            return []  # it was refused, has ended, or cannot be stopped any more
        self._upload = None
        return [EndUpload()]

    def _upload_went_on(self, event: UploadEvent, now: float) -> list[Action]:
        upload = self._upload
        match event:
            case UploadBegun(request, error):
                return self._upload_begun(request, error, now)
            case UploadPublished(published):
                return self._end_upload(published.upload, published)
            case UploadFailed(failed, code, text):
                return self._refuse_upload(failed, code, text)
            case _ if upload is None or event.upload != upload.upload:
                return []
            case UploadPageTaken(last=last):
                upload.step = _Step.PREPARING if last else _Step.PAGES
                return [PrepareUpload()] if last else []
            case UploadFetched():
                return self._upload_fetched(upload, event, now)

    def _upload_begun(self, request: messages.Publish, error: LockstepError | None, now: float) -> list[Action]:
        assert self._upload is not None
        if error is not None:
            self._upload = None
            return [self._answer_error(request.id, error)]
        self._uploaded.append(request.object)
        self._upload.step = _Step.PAGES
        self._upload.idle_at = now + limits.UPLOAD_IDLE_SECONDS
        return [self._send(messages.PublishAccepted(re=request.id, upload=request.upload))]

    def _upload_fetched(self, upload: _Upload, fetched: UploadFetched, now: float) -> list[Action]:
        told: list[Action] = []
        if fetched.frames:
            told.append(self._send(messages.Progress(delivery=upload.upload, frames=fetched.frames, done=fetched.done)))
        if fetched.complete:
            upload.step = _Step.PUBLISHING
            return [*told, PublishUpload()]
        upload.step = _Step.FETCHING
        upload.idle_at = now + limits.UPLOAD_IDLE_SECONDS
        if fetched.want:
            told.append(self._send(messages.Want(delivery=upload.upload, runs=fetched.want)))
        return told

    def _refuse_upload(self, upload: str, code: str, text: str) -> list[Action]:
        refused = messages.Refused(delivery=upload, reason=code, detail=text[: limits.TEXT_CHARACTERS])
        return self._end_upload(upload, refused)

    def _end_upload(self, upload: str, last_word: messages.Published | messages.Refused) -> list[Action]:
        if self._upload is None or self._upload.upload != upload:
            return []
        self._upload = None
        return [EndUpload(), self._send(last_word)]

    # --- telling an initiator -------------------------------------------------------------------------------------

    def _tick(self, sent_at: float, now: float) -> list[Action]:
        if not self.is_open:
            return self._too_late() if now >= self._login_by else []
        if self._overdue and self._current and now >= self._overdue_at:
            # A terminal cannot go on with what the hub has not sent: limits and others' turns are not its fault.
            self._overdue_at = max(self._overdue_at, sent_at + self._overdue.seconds)
            if now >= self._overdue_at:
                return self._give_up(self._current, self._overdue.reason, self._overdue.detail)
        if self._upload and self._upload.step in _FROM_TERMINAL and now >= self._upload.idle_at:
            return self._refuse_upload(self._upload.upload, "no-progress", "Nothing more of it came for too long.")
        if self._changes_due and now >= self._changes_after:
            self._changes_due = False
            self._changes_after = now + limits.SYNC_UPDATES_EVERY_SECONDS
            return [ReadChanges(self._revision)]
        return []

    def _tell_changes(self, changes: Changes, now: float) -> list[Action]:
        self._revision = max(self._revision, changes.revision)
        self._changes_due |= changes.more
        self._changes_after = now + limits.SYNC_UPDATES_EVERY_SECONDS
        told: list[Action] = [
            self._send(messages.SyncUpdate(sync=sync, targets=page))
            for sync, rows in changes.targets.items()
            for page in codec.pages(rows)
        ]
        for ended in changes.ended:
            if ended.sync not in self._ends_told:
                self._ends_told.add(ended.sync)
                told.append(self._send(ended))
        return told

    # --- words ----------------------------------------------------------------------------------------------------

    def _send(self, message: Message) -> Send:
        self._conversation.said(Side.HUB, message)
        return Send(message)

    def _error(self, code: str, text: str, hint: str = "") -> Send:
        return Send(messages.Error(code=code, message=text[: limits.TEXT_CHARACTERS], hint=hint))

    def _answer_error(self, request: int, error: LockstepError) -> Send:
        return self._send(error_message(error, request))

    def _refuse(self, text: str, hint: str, code: str = "not-authorised") -> list[Action]:
        return [self._error(code, text, hint), Close(CLOSE_REFUSED, code)]

    def _violation(self, error: LockstepError) -> list[Action]:
        if not self.is_open:
            return [Close(CLOSE_REFUSED, "")]  # a stranger learns nothing
        return [self._error(error.code, error.message, error.hint), Close(CLOSE_VIOLATION, error.code)]


def error_message(error: LockstepError, request: int) -> messages.Error:
    """Return `error` as the answer to a request."""
    return messages.Error(
        code=error.code,
        message=error.message[: limits.TEXT_CHARACTERS],
        hint=error.hint[: limits.TEXT_CHARACTERS],
        near=tuple(name[: limits.TEXT_CHARACTERS] for name in getattr(error, "near", ())),
        re=request,
    )


def _failed(delivery: str, reason: str, detail: str) -> messages.State:
    return messages.State(delivery=delivery, state=life.State.FAILED, reason=reason, detail=detail)


def _replaced() -> Close:
    return Close(CLOSE_REPLACED, "replaced by a newer connection of this terminal")
