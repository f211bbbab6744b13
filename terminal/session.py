"""The brain of a terminal's connection: pure, `handle(event, now) -> list[Action]`. No socket, file, callback or clock.

What an action brings back returns as an event. The opening, unsent reports and the inventory after `welcome`, the
device list, and deliveries are decided here; a delivery's steps follow each other in this order:

    offer -> Consider -> Begin -> AddPage, once a page -> Prepare -> want -> Write, once a frame -> Verify
          -> state `installing` -> the hub has noted it -> Install -> report

One delivery comes at a time; meanwhile others install, each of another program. Nothing installs that the hub has not
noted: until then it may withdraw it. An installation outlives its connection, so its report is on the disk before the
session hears of it. Each offer taken gets a number (`serial`); what comes back of an older one is ignored. Bytes of
frames pass through in `Write` and are not kept.

A rule set (`rules`) comes by the same steps, without anybody's consent or any `state`, and ends with `received`. Of
what comes the newest counts: an offer or a rule set takes the place of the other, whose partial file is kept.

What has to be told until the hub has noted it (final reports, a person's decisions) is said in portions, oldest first.

Errors raised: ProtocolError for a message that breaks `lockstep.v1`, RefusedError for a hub that cannot prove to be the
one this terminal enrolled at.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final, TypeAlias

from msgspec import Struct

from protocol import keys, life, limits, messages
from protocol.conversation import Conversation, Phase, Side
from protocol.device import DeviceInfo
from protocol.errors import ProtocolError, RefusedError
from protocol.messages import AnyMessage, DeviceRow, InstalledProgram, Message, Offer, Rules, Run
from terminal.devicelist import DeviceList

VERSION: Final = "lockstep.v1"
KEEPS_PARTIAL: Final = frozenset({"no-space", "disk"})  # failures that say nothing against what has come
TOLD_AT_ONCE: Final = limits.OUTBOUND_CONTROL_MESSAGES // 2  # said and not noted yet
TOLD_KEPT: Final = 512  # with so much to tell no new offer is taken

# --- how a connection opens -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Enrolling:
    """A device becomes a terminal of an account. `host` and `port` are those of the URL as dialled.

    In one of four ways, as `Enrol` says. `hub_key` is the key of the hub it enrolled at before, empty where there is
    none to hold this hub to; `hub_fingerprint` is what a person expects of its key, empty where they said nothing.
    """

    account: str
    password: str = field(repr=False)
    name: str
    device: DeviceInfo
    signing_key: keys.SigningKey
    sealing_key: bytes
    host: str
    port: int
    hub_key: bytes = b""
    hub_fingerprint: str = ""
    join_key: str = field(default="", repr=False)
    token: bytes = field(default=b"", repr=False)
    pair: bool = False


@dataclass(frozen=True, slots=True)
class LoggingIn:
    """A terminal comes back. `hub_key` is the hub's key as pinned at enrolment; `run` is as in `Login`."""

    terminal: str
    hub_key: bytes
    device: DeviceInfo
    signing_key: keys.SigningKey
    receives: bool
    host: str
    port: int
    run: bytes = b""


# --- events -----------------------------------------------------------------------------------------------------------


class Connected(Struct, frozen=True):
    """The socket is open."""


class Heard(Struct, frozen=True):
    """The hub said `message`."""

    message: AnyMessage


class Ask(Struct, frozen=True):
    """Someone on this terminal wants `message` sent: a request with its id, or a part of an upload."""

    message: Message


class Considered(Struct, frozen=True):
    """An offer may be taken (`said` is None), or what is to be said of it instead: asking, postponed or declined."""

    serial: int
    said: messages.State | None


class Decided(Struct, frozen=True):
    """A person has decided on a delivery; the hub is to be told `said` until it has noted it."""

    said: messages.State


class PaceSet(Struct, frozen=True):
    """The hub is to send no faster than this; 0 for no limit."""

    bytes_per_second: int


class RulesFound(Struct, frozen=True):
    """Whether the rule set that is to come is on the disk already, and right."""

    serial: int
    there: bool


class Scanned(Struct, frozen=True):
    """The programs here were scanned, as the hub had asked."""

    posture: messages.Posture


class PageAdded(Struct, frozen=True):
    """A manifest page was right; `last` says that the manifest is whole."""

    serial: int
    last: bool


class Fetched(Struct, frozen=True):
    """Prepared or wrote: `frames` written since the offer, `done` bytes held, `want` the runs to ask for now."""

    serial: int
    frames: int
    done: int
    want: tuple[Run, ...]
    complete: bool


class Verified(Struct, frozen=True):
    """The whole file was read again, is right and is where the runner finds it."""

    serial: int


class InstallEnded(Struct, frozen=True):
    """An installation has ended; `report` and `program`, what the system has then, are kept on the disk already.

    Without a report it surely did not happen: the hub is to offer it again.
    """

    delivery: str
    report: messages.State | None
    program: InstalledProgram | None


class StepFailed(Struct, frozen=True):
    """A step before installing could not be done."""

    serial: int
    reason: str
    detail: str


StepEnd: TypeAlias = Considered | RulesFound | PageAdded | Fetched | Verified | StepFailed
Event: TypeAlias = Connected | Heard | Ask | Decided | PaceSet | Scanned | InstallEnded | StepEnd

# --- actions ----------------------------------------------------------------------------------------------------------


class Say(Struct, frozen=True):
    """Send `message` to the hub."""

    message: Message


class Welcomed(Struct, frozen=True):
    """Logged in; `hub_key` is the key the hub has proved to hold."""

    welcome: messages.Welcome
    hub_key: bytes


class ShowPairing(Struct, frozen=True):
    """Show the code of `pairing` and wait; `hub_key` is the key the hub has proved to hold."""

    pairing: messages.Pairing
    hub_key: bytes


class KeepStanding(Struct, frozen=True):
    """What this terminal may do now, and why; at `Welcomed` all is well until this says otherwise."""

    standing: messages.Standing


class HubRefused(Struct, frozen=True):
    """The hub ends the connection and says why."""

    error: messages.Error


class Deliver(Struct, frozen=True):
    """Hand `message` to whoever asked for it, or, unasked, to whoever listens."""

    message: AnyMessage


class KeepDevices(Struct, frozen=True):
    """The whole device list is known as of `revision`."""

    epoch: str
    revision: int
    rows: tuple[DeviceRow, ...]


class AskDevices(Struct, frozen=True):
    """There is a gap in the device list: request the whole of it."""


class Consider(Struct, frozen=True):
    """Find out whether this device agrees to `offer`; a person who is to be asked finds it in the inbox then."""

    serial: int
    offer: Offer


class FindRules(Struct, frozen=True):
    """Find out whether this rule set is on the disk already."""

    serial: int
    rules: Rules


class Begin(Struct, frozen=True):
    """Make room for what `offer` brings."""

    serial: int
    offer: Offer | Rules


class AddPage(Struct, frozen=True):
    """Check a manifest page."""

    serial: int
    page: messages.ManifestPage


class Prepare(Struct, frozen=True):
    """Find out what of the object is on disk already."""

    serial: int


class Write(Struct, frozen=True):
    """Check a frame and write it."""

    serial: int
    frame: messages.Chunks


class Verify(Struct, frozen=True):
    """Read the whole file again."""

    serial: int


class Install(Struct, frozen=True):
    """Run the installer of the offer, ask the system what it has then, and keep the report."""

    serial: int
    offer: Offer


class Abandon(Struct, frozen=True):
    """Stop working on an offer; `discard` its partial file when its content was wrong."""

    serial: int
    discard: bool


class Scan(Struct, frozen=True):
    """Scan the programs here with a rule set that has come, and report; the newest of these counts."""

    request: messages.PostureRequest


class KeepReport(Struct, frozen=True):
    """Keep a final report on disk until the hub has noted it."""

    report: messages.State


class DropReport(Struct, frozen=True):
    """The hub has noted a report."""

    delivery: str
    state: str


class Forget(Struct, frozen=True):
    """The hub does not want the delivery any more: nobody need be asked, nothing of it be remembered."""

    delivery: str


DeliveryAction: TypeAlias = (
    Consider
    | FindRules
    | Begin
    | AddPage
    | Prepare
    | Write
    | Verify
    | Install
    | Abandon
    | Scan
    | KeepReport
    | DropReport
    | Forget
)
Action: TypeAlias = (
    Say | Welcomed | ShowPairing | KeepStanding | HubRefused | Deliver | KeepDevices | AskDevices | DeliveryAction
)

# --- the session ------------------------------------------------------------------------------------------------------


class _Step(Enum):
    CONSIDERING = "considering"
    PAGES = "pages"
    PREPARING = "preparing"
    FETCHING = "fetching"
    VERIFYING = "verifying"


@dataclass(slots=True)
class _Current:
    """What comes: a delivery or a rule set."""

    serial: int
    offer: Offer | Rules
    step: _Step = _Step.CONSIDERING


@dataclass(slots=True)
class _Installation:
    """A delivery from the moment `installing` was said until its report is; `begun` once the hub has noted it."""

    serial: int
    offer: Offer
    begun: bool


class Session:
    """One connection's brain. `nonce` is 32 fresh random bytes; the rest is what is on disk.

    `installing` are the offers that install since before this connection; `decided` is what a person decided while
    there was none and the hub will not ask for by itself; `asking` is what is in the inbox. `bytes_per_second`: how
    fast the hub may send, 0 for any.
    """

    def __init__(
        self,
        opening: Enrolling | LoggingIn,
        nonce: bytes,
        *,
        inventory: tuple[InstalledProgram, ...] = (),
        reports: tuple[messages.State, ...] = (),
        installing: tuple[Offer, ...] = (),
        decided: tuple[messages.State, ...] = (),
        asking: tuple[str, ...] = (),
        bytes_per_second: int = 0,
    ) -> None:
        self.devices = DeviceList()
        self._opening = opening
        self._nonce = nonce
        self._hub_key = b""
        self._has_code = False
        self._inventory = {program.program: program for program in inventory}
        begun = {offer.delivery for offer in installing}
        decided = tuple(said for said in decided if said.delivery not in begun)  # acted on: it installs
        self._to_tell = {said.delivery: said for said in (*decided, *reports)}
        self._told: set[str] = set()  # those of `_to_tell` that were said
        self._installing = {offer.delivery: _Installation(0, offer, begun=True) for offer in installing}
        self._inventory_said = False
        self._asking = asking
        self._bytes_per_second = bytes_per_second
        self._receives = isinstance(opening, LoggingIn) and opening.receives
        self._conversation = Conversation()
        self._current: _Current | None = None
        self._serial = 0

    @property
    def open(self) -> bool:
        """Whether requests may be sent."""
        return self._conversation.phase is Phase.OPEN

    def is_under_way(self, delivery: str) -> bool:
        """Return whether the delivery comes or installs now, so that it is too late to decline it."""
        comes = self._current is not None and self._current.offer.delivery == delivery
        return comes or delivery in self._installing

    def handle(self, event: Event, now: float) -> list[Action]:
        """Return what `event` asks to be done, in order. Raises ProtocolError and RefusedError; then hang up."""
        match event:
            case Connected():
                return [self._say(messages.Hello(nonce=self._nonce, versions=(VERSION,)))]
            case Heard(message):
                self._conversation.said(Side.HUB, message)
                hear: Callable[[Session, Any], list[Action]] = _HEAR.get(type(message), Session._deliver)
                return hear(self, message)
            case Ask(message):
                return [self._say(message)]
            case Decided(said):
                return self._tell(said)
            case PaceSet(bytes_per_second):
                self._bytes_per_second = bytes_per_second
                return [self._say_inventory()] if self._inventory_said else []
            case Scanned(posture):
                return [self._say(posture)] if self.open else []
            case InstallEnded():
                return self._install_ended(event)
            case _:
                return self._step_ended(event)

    def _say(self, message: Message) -> Say:
        self._conversation.said(Side.TERMINAL, message)
        return Say(message)

    def _deliver(self, message: AnyMessage) -> list[Action]:
        return [Deliver(message)]

    # --- opening ------------------------------------------------------------------------------------------------------

    def _challenged(self, challenge: messages.Challenge) -> list[Action]:
        if challenge.version != VERSION:
            raise ProtocolError(f"The hub chose version {challenge.version!r}; this terminal offered {VERSION!r}.")
        self._check_hub(challenge)
        self._hub_key = challenge.hub_key
        return [self._say(self._proof(challenge.nonce))]

    def _check_hub(self, challenge: messages.Challenge) -> None:
        opening = self._opening
        if isinstance(opening, Enrolling) and opening.hub_fingerprint:
            self._check_fingerprint(opening, challenge.hub_key)
        if opening.hub_key and challenge.hub_key != opening.hub_key:
            raise RefusedError(
                f"The hub at {opening.host}:{opening.port} is not the one this terminal knows: its key has changed.",
                hint="If the hub was set up anew, log in again with --replace; if not, do not: "
                "someone may be answering in its place.",
                code="hub-key-changed",
            )
        signed = keys.challenge_bytes(terminal_nonce=self._nonce, hub_nonce=challenge.nonce, hub_key=challenge.hub_key)
        if not keys.verifies(challenge.hub_key, challenge.signature, signed):
            raise RefusedError(
                f"The hub at {opening.host}:{opening.port} could not prove that it holds its key.",
                hint="Something between this terminal and the hub answers in its place; check the address.",
                code="bad-hub-signature",
            )

    @staticmethod
    def _check_fingerprint(opening: Enrolling, hub_key: bytes) -> None:
        found = keys.fingerprint(hub_key)
        if found != opening.hub_fingerprint:
            raise RefusedError(
                f"The hub at {opening.host}:{opening.port} has the key {found}, not {opening.hub_fingerprint}.",
                hint="`lockstep-hub key` prints it on the hub's own machine. If it says what was given here, someone "
                "answers in the hub's place.",
                code="hub-key-changed",
            )

    def _proof(self, hub_nonce: bytes) -> Message:
        opening = self._opening
        if isinstance(opening, Enrolling):
            return self._enrol(opening, hub_nonce)
        signed = keys.login_bytes(
            terminal_nonce=self._nonce,
            hub_nonce=hub_nonce,
            hub_key=opening.hub_key,
            terminal=opening.terminal,
            host=opening.host,
            port=opening.port,
        )
        return messages.Login(
            terminal=opening.terminal,
            receives=opening.receives,
            device=opening.device,
            run=opening.run,
            host=opening.host,
            port=opening.port,
            signature=opening.signing_key.sign(signed),
        )

    def _enrol(self, opening: Enrolling, hub_nonce: bytes) -> messages.Enrol:
        signed = keys.enrol_bytes(
            terminal_nonce=self._nonce,
            hub_nonce=hub_nonce,
            hub_key=self._hub_key,
            account=opening.account,
            sealing_key=opening.sealing_key,
            host=opening.host,
            port=opening.port,
        )
        return messages.Enrol(
            account=opening.account,
            password=opening.password,
            join_key=opening.join_key,
            token=opening.token,
            pair=opening.pair,
            name=opening.name,
            device=opening.device,
            device_key=opening.signing_key.public,
            sealing_key=opening.sealing_key,
            host=opening.host,
            port=opening.port,
            signature=opening.signing_key.sign(signed),
        )

    def _welcomed(self, welcome: messages.Welcome) -> list[Action]:
        actions: list[Action] = [Welcomed(welcome, self._hub_key)]
        return actions + self._say_told()

    def _pairing_shown(self, pairing: messages.Pairing) -> list[Action]:
        asked = isinstance(self._opening, Enrolling) and self._opening.pair
        if not asked or self._has_code:  # each code may be waited for as long again
            raise ProtocolError("The hub said a pairing code that nobody asked for.", code="wrong-order")
        if not (pairing.code.isascii() and pairing.code.isalpha()):  # it is drawn on a screen
            raise ProtocolError("The hub said a pairing code that is not made of letters.", code="bad-field")
        self._has_code = True
        return [ShowPairing(pairing, self._hub_key)]

    def _stands(self, standing: messages.Standing) -> list[Action]:
        return [KeepStanding(standing), Deliver(standing)]

    def _refused(self, error: messages.Error) -> list[Action]:
        return [Deliver(error)] if error.re else [HubRefused(error)]

    # --- presence and syncs -------------------------------------------------------------------------------------------

    def _devices_came(self, page: messages.Devices) -> list[Action]:
        whole = self.devices.add_page(page)
        kept = [KeepDevices(self.devices.epoch, self.devices.revision, self.devices.rows)] if whole else []
        return [*kept, Deliver(page)]

    def _devices_changed(self, changes: messages.DeviceChanges) -> list[Action]:
        if self.devices.change(changes):
            return [Deliver(changes)]
        return [AskDevices()] if self.devices.should_ask() else []

    def _sync_done(self, done: messages.SyncDone) -> list[Action]:
        return [self._say(messages.Noted(of=done.sync)), Deliver(done)]

    # --- what is told until it is noted -------------------------------------------------------------------------------

    def _tell(self, said: messages.State) -> list[Action]:
        self._to_tell.pop(said.delivery, None)
        self._to_tell[said.delivery] = said
        self._told.discard(said.delivery)
        return self._say_told()

    def _say_told(self) -> list[Action]:
        """Say what is to be told and not said yet, as far as it may be; after all of it, once, the inventory."""
        if not self.open or not self._receives:
            return []
        actions: list[Action] = []
        for delivery, said in self._to_tell.items():
            if len(self._told) >= TOLD_AT_ONCE:
                return actions
            if delivery not in self._told:
                self._told.add(delivery)
                if said.state in life.FINAL:
                    self._installing.pop(delivery, None)
                actions.append(self._say(said))
        if not self._inventory_said:
            self._inventory_said = True
            actions.append(self._say_inventory())
            self._asking = ()
        return actions

    def _noted(self, noted: messages.Noted) -> list[Action]:
        actions: list[Action] = []
        if noted.state in life.FINAL:
            actions.append(DropReport(noted.of, noted.state))
        said = self._to_tell.get(noted.of)
        if said is not None and said.state == noted.state:
            self._is_told(noted.of)
            actions += self._say_told()
        return actions + self._permitted(noted)

    def _is_told(self, delivery: str) -> None:
        self._to_tell.pop(delivery, None)
        self._told.discard(delivery)

    # --- an offer -----------------------------------------------------------------------------------------------------

    def _offered(self, offer: Offer) -> list[Action]:
        if not self._receives:
            return [self._refusal(offer, "not-receiving", "This connection only asks; it installs nothing.")]
        told = self._to_tell.get(offer.delivery)
        if told is not None and told.state in life.FINAL:
            return []  # how it ended is on its way
        dropped = self._stop_current() + self._stop_waiting(offer.delivery)
        if detail := self._why_busy(offer):
            return [*dropped, self._refusal(offer, "busy", detail)]
        if self._is_installed(offer):
            done = messages.State(delivery=offer.delivery, state=life.State.DONE, version=offer.installer.version)
            return [*dropped, *self._report(done)]
        self._serial += 1
        self._current = _Current(self._serial, offer)
        return [*dropped, Consider(self._serial, offer)]

    def _rules_came(self, rules: Rules) -> list[Action]:
        if not self._receives:
            return [self._refusal(rules, "not-receiving", "This connection only asks; it scans nothing.")]
        dropped = self._stop_current()
        if rules.size > limits.RULES_BYTES:
            detail = f"A rule set of {rules.size} bytes is too large; {limits.RULES_BYTES} are allowed."
            return [*dropped, self._refusal(rules, "too-large", detail)]
        self._serial += 1
        self._current = _Current(self._serial, rules)
        return [*dropped, FindRules(self._serial, rules)]

    def _posture_asked(self, request: messages.PostureRequest) -> list[Action]:
        return [Scan(request)] if self._receives else []

    def _why_busy(self, offer: Offer) -> str:
        program = offer.installer.program
        for one in self._installing.values():
            if one.offer.installer.program == program or one.offer.object == offer.object:  # its file is being read
                return f"{one.offer.installer.program} is being installed."
        if len(self._installing) >= limits.INSTALLING_AT_ONCE:
            return f"{len(self._installing)} programs are being installed."
        if len(self._to_tell) >= TOLD_KEPT:
            return f"{len(self._to_tell)} reports of this device have not been noted yet."
        return ""

    def _is_installed(self, offer: Offer) -> bool:
        have = self._inventory.get(offer.installer.program)
        return have is not None and (have.digest, have.version) == (offer.object, offer.installer.version)

    def _stop_current(self) -> list[Action]:
        current, self._current = self._current, None
        return [Abandon(current.serial, discard=False)] if current else []

    def _stop_waiting(self, delivery: str) -> list[Action]:
        """Let go of a delivery that waits for the hub to note that it installs; one that installs goes on."""
        installation = self._installing.get(delivery)
        if installation is None or installation.begun:
            return []
        del self._installing[delivery]
        return [Abandon(installation.serial, discard=False)]

    def _withdrawn(self, withdraw: messages.Withdraw) -> list[Action]:
        delivery = withdraw.delivery
        stopped = self._stop_waiting(delivery)
        if self._current is not None and self._current.offer.delivery == delivery:
            stopped += self._stop_current()
        actions = [*stopped, *self._decision_answered(delivery)]
        if stopped or delivery in self._installing:
            return actions  # it may be offered again, and what a person decided holds; or too late: its report follows
        return [*actions, Forget(delivery)]

    def _decision_answered(self, delivery: str) -> list[Action]:
        """Say no longer what a person decided on a delivery: the hub has heard it, and answered with a withdraw."""
        said = self._to_tell.get(delivery)
        if said is None or said.state in (life.State.DONE, life.State.FAILED):
            return []
        self._is_told(delivery)
        dropped: list[Action] = [DropReport(delivery, said.state)] if said.state in life.FINAL else []
        return dropped + self._say_told()

    # --- its steps ----------------------------------------------------------------------------------------------------

    def _page_came(self, page: messages.ManifestPage) -> list[Action]:
        current = self._current
        if current is None or current.offer.object != page.object or current.step is not _Step.PAGES:
            return []
        return [AddPage(current.serial, page)]

    def _frame_came(self, frame: messages.Chunks) -> list[Action]:
        current = self._current
        if current is None or current.offer.object != frame.object or current.step is not _Step.FETCHING:
            return []  # of an offer that was replaced or withdrawn
        return [Write(current.serial, frame)]

    def _step_ended(self, event: StepEnd) -> list[Action]:
        current = self._current
        if current is None or event.serial != current.serial:
            return []
        match event:
            case Considered(_, said):
                return self._considered(current, said)
            case RulesFound(there=there):
                return self._verified(current) if there else self._considered(current, None)
            case PageAdded(last=last):
                return self._page_added(current, last)
            case Fetched():
                return self._fetched(current, event)
            case Verified():
                return self._verified(current)
            case StepFailed(_, reason, detail):
                return self._step_failed(current, reason, detail)

    def _considered(self, current: _Current, said: messages.State | None) -> list[Action]:
        if said is None:
            current.step = _Step.PAGES
            return [Begin(current.serial, current.offer)]
        self._current = None
        return self._report(said) if said.state in life.FINAL else [self._say(said)]

    def _page_added(self, current: _Current, last: bool) -> list[Action]:
        if not last:
            return []
        current.step = _Step.PREPARING
        return [Prepare(current.serial)]

    def _fetched(self, current: _Current, fetched: Fetched) -> list[Action]:
        actions: list[Action] = []
        if fetched.frames:
            actions.append(
                self._say(messages.Progress(delivery=current.offer.delivery, frames=fetched.frames, done=fetched.done))
            )
        if fetched.complete:
            current.step = _Step.VERIFYING
            if isinstance(current.offer, Offer):
                actions.append(self._say_state(current.offer, life.State.VERIFYING))
            return [*actions, Verify(current.serial)]
        current.step = _Step.FETCHING
        if fetched.want:
            actions.append(self._say(messages.Want(delivery=current.offer.delivery, runs=fetched.want)))
        return actions

    def _verified(self, current: _Current) -> list[Action]:
        self._current = None
        received = self._say(messages.Received(delivery=current.offer.delivery))
        if isinstance(current.offer, Rules):
            return [received]
        self._installing[current.offer.delivery] = _Installation(current.serial, current.offer, begun=False)
        return [received, self._say_state(current.offer, life.State.INSTALLING)]

    def _permitted(self, noted: messages.Noted) -> list[Action]:
        installation = self._installing.get(noted.of)
        if installation is None or installation.begun or noted.state != life.State.INSTALLING:
            return []
        installation.begun = True
        return [Install(installation.serial, installation.offer)]

    def _install_ended(self, ended: InstallEnded) -> list[Action]:
        if ended.program is not None:
            self._inventory[ended.program.program] = ended.program
        if ended.report is None:
            self._installing.pop(ended.delivery, None)
        inventory: list[Action] = [self._say_inventory()] if self._inventory_said else []
        return inventory + (self._tell(ended.report) if ended.report else [])

    def _step_failed(self, current: _Current, reason: str, detail: str) -> list[Action]:
        self._current = None
        actions: list[Action] = [
            Abandon(current.serial, discard=reason not in KEEPS_PARTIAL),
            self._refusal(current.offer, reason, detail),
        ]
        if isinstance(current.offer, Offer):
            actions += self._report(failure(current.offer, reason, detail))
        return actions

    def _say_inventory(self) -> Say:
        programs = tuple(self._inventory[name] for name in sorted(self._inventory))
        return self._say(
            messages.Inventory(
                programs=programs[: limits.INVENTORY_PROGRAMS],
                installing=tuple(self._installing)[: limits.INSTALLING_AT_ONCE],
                asking=self._asking,
                bytes_per_second=self._bytes_per_second,
            )
        )

    def _say_state(self, offer: Offer, state: life.State) -> Say:
        return self._say(messages.State(delivery=offer.delivery, state=state))

    def _report(self, report: messages.State) -> list[Action]:
        return [KeepReport(report), *self._tell(report)]

    def _refusal(self, offer: Offer | Rules, reason: str, detail: str) -> Say:
        return self._say(messages.Refused(delivery=offer.delivery, reason=reason[:64], detail=_bounded(detail)))


def failure(offer: Offer, reason: str, detail: str) -> messages.State:
    """Return the report of a delivery that failed, cut to what a message may hold."""
    return messages.State(
        delivery=offer.delivery,
        state=life.State.FAILED,
        reason=reason[: limits.NAME_CHARACTERS],
        detail=_bounded(detail),
        attempt=offer.attempt,
    )


def _bounded(text: str) -> str:
    """Return `text` as a message can hold it: not too long, and without the half characters of odd file names."""
    text = text.encode(errors="backslashreplace").decode()
    return text if len(text) <= limits.TEXT_CHARACTERS else text[: limits.TEXT_CHARACTERS - 1] + "…"


# What the hub may say and who hears it; every other message goes to whoever asked or listens.
_HEAR: Final[dict[type[Message], Callable[[Session, Any], list[Action]]]] = {
    messages.Challenge: Session._challenged,
    messages.Welcome: Session._welcomed,
    messages.Pairing: Session._pairing_shown,
    messages.Standing: Session._stands,
    messages.Error: Session._refused,
    messages.Devices: Session._devices_came,
    messages.DeviceChanges: Session._devices_changed,
    messages.SyncDone: Session._sync_done,
    messages.Noted: Session._noted,
    messages.Offer: Session._offered,
    messages.Rules: Session._rules_came,
    messages.PostureRequest: Session._posture_asked,
    messages.ManifestPage: Session._page_came,
    messages.Chunks: Session._frame_came,
    messages.Withdraw: Session._withdrawn,
}
