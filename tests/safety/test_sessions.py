"""Both sessions under any message and any event at any time: no exception but the ones they say, and nothing grows.

Two state machines (hypothesis) play the server and the connection: they say any message there is, answer what the
session asks for in any way it may be answered, let time pass, and have everything else happen that happens beside it.
"""

import math
import os
from collections import deque
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from msgspec import structs

from hub import session as hub_side
from hub.records import Changes, Owed, RulesObject, StandingFound
from protocol import codec, keys, life, limits, messages, vectors
from protocol.errors import ProtocolError, RefusedError, UnavailableError
from protocol.messages import Message
from terminal import session as terminal_side
from tests.protocol.test_codec import any_message
from tests.safety.fuzz_handshake import DEVICE_KEY, HUB_KEY, HUB_NONCE, KNOWN, NAMES, OPENINGS, TERMINAL_NONCE

EXAMPLES = int(os.environ.get("SESSION_EXAMPLES", "25"))
STEPS = 40
VECTORS = [message for _, message in vectors.examples()]
NAMES_OF_DELIVERIES = ("d-1", "d-2", "d-3", "rules-1", "u-1")
OBJECTS = (bytes(32), b"\1" * 32)
SPECIMEN = {messages.kind_of(message): message for message in VECTORS}
OFFER = SPECIMEN["offer"]
RULES = SPECIMEN["rules"]
assert isinstance(OFFER, messages.Offer) and isinstance(RULES, messages.Rules)


def likely(message: Message, name: str, digest: bytes) -> Message:
    """A message that speaks of one of a few deliveries and objects, so that it meets what is under way."""
    changes: dict[str, Any] = {}
    for field in message.__struct_fields__:
        if field in ("delivery", "upload", "of"):
            changes[field] = name
        elif field == "object":
            changes[field] = digest
    return structs.replace(message, **changes)


def said() -> st.SearchStrategy[Message]:
    """Any message at all, or one of the test vectors about what is under way."""
    about = st.builds(likely, st.sampled_from(VECTORS), st.sampled_from(NAMES_OF_DELIVERIES), st.sampled_from(OBJECTS))
    states = st.builds(
        messages.State, delivery=st.sampled_from(NAMES_OF_DELIVERIES), state=st.sampled_from([*life.State, "dancing"])
    )
    return st.one_of(about, about, states, any_message())


def size_of(session: object) -> int:
    """How much a session holds in its own containers."""
    held = [value for value in vars(session).values() if isinstance(value, (dict, list, set, tuple, deque))]
    return sum(len(container) for container in held)


class HubMachine(RuleBasedStateMachine):
    """The server's part."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.session = hub_side.Session(HUB_KEY, NAMES, 0.0)
        self.session._hub_nonce = HUB_NONCE
        self.closed = False
        self.given = 0  # claims and pages that brought something, each of which may be remembered
        self.later: list[hub_side.Event] = []
        self.chosen: Any = None

    # --- what happens ---------------------------------------------------------------------------------------------

    @rule(data=st.data(), receives=st.booleans())
    @precondition(lambda self: not self.session.is_open and not self.closed)
    def logs_in(self, data: st.DataObject, receives: bool) -> None:
        """A right opening, as far as the session is ready for it."""
        opening = structs_of(OPENINGS[1], receives)
        terminal = terminal_side.Session(opening, TERMINAL_NONCE)
        [hello] = terminal.handle(terminal_side.Connected(), self.now)
        self.chosen = data
        assert isinstance(hello, terminal_side.Say)
        self.happens(hub_side.Received(hello.message))
        if self.session._terminal_nonce == TERMINAL_NONCE and not self.closed:
            signed = keys.challenge_bytes(terminal_nonce=TERMINAL_NONCE, hub_nonce=HUB_NONCE, hub_key=HUB_KEY.public)
            challenge = messages.Challenge(
                version="lockstep.v1", nonce=HUB_NONCE, hub_key=HUB_KEY.public, signature=HUB_KEY.sign(signed)
            )
            for action in terminal.handle(terminal_side.Heard(challenge), self.now):
                assert isinstance(action, terminal_side.Say)
                self.happens(hub_side.Received(action.message))

    @rule(data=st.data(), message=said())
    def says(self, data: st.DataObject, message: Message) -> None:
        """The terminal says anything."""
        self.chosen = data
        self.happens(hub_side.Received(message))

    @rule(data=st.data())
    def says_nonsense(self, data: st.DataObject) -> None:
        """What it says is no message."""
        self.chosen = data
        if data.draw(st.integers(0, 9)) == 0:  # it ends the session, so not too often
            self.happens(hub_side.Broken("bad-msgpack", "x" * data.draw(st.integers(0, 3_000))))

    @rule(data=st.data(), seconds=st.floats(0, 10_000))
    def time_passes(self, data: st.DataObject, seconds: float) -> None:
        """The clock goes on; the session is told at its deadlines, and none comes for ever."""
        self.chosen = data
        ends_at = self.now + seconds
        for _ in range(200):
            deadline = self.session.deadline
            if deadline is None or deadline > ends_at:
                self.now = ends_at
                return
            self.now = max(self.now, deadline)
            self.happens(hub_side.Ticked(data.draw(st.sampled_from([0.0, self.now]))))
            later = self.session.deadline
            assert later is None or later > self.now or later != deadline, "it would be told for ever"
            if later is not None and later - self.now < 1.0:
                self.now = min(ends_at, self.now + 1.0)

    @rule(data=st.data(), event=st.sampled_from([hub_side.Owing(), hub_side.Changed(), hub_side.StandingChanged()]))
    def is_poked(self, data: st.DataObject, event: hub_side.Event) -> None:
        """Something changed."""
        self.chosen = data
        self.happens(event)

    @rule(data=st.data())
    @precondition(lambda self: bool(self.later))
    def what_takes_long_is_done(self, data: st.DataObject) -> None:
        """Work on a whole file, or a person's decision, comes to its end; of what has ended meanwhile too."""
        self.chosen = data
        self.happens(self.later.pop(data.draw(st.integers(0, len(self.later) - 1))))

    @rule(data=st.data())
    def a_pack_is_damaged(self, data: st.DataObject) -> None:
        """What is to be sent cannot be read."""
        self.chosen = data
        if self.session._current:
            self.happens(hub_side.TransferBroken(self.session._current, "damaged-object", "It is damaged."))

    @rule(data=st.data(), event=st.sampled_from([hub_side.Replaced(), hub_side.Stopping()]))
    def it_has_to_end(self, data: st.DataObject, event: hub_side.Event) -> None:
        """A newer login, or the hub stops; not at every turn, or little would be tried."""
        self.chosen = data
        if data.draw(st.integers(0, 9)) == 0:
            self.happens(event)

    # --- what the session asks for --------------------------------------------------------------------------------

    def happens(self, event: hub_side.Event) -> None:
        """Handle an event and all that comes of it, as the server does."""
        events = deque([event])
        for _ in range(100):
            if not events:
                return
            was_closed = self.closed
            actions = self.session.handle(events.popleft(), self.now)
            assert not (was_closed and actions), "after its Close a session does nothing"
            for action in actions:
                if isinstance(action, hub_side.Close):
                    self.closed = True
                result = self.answer(action)
                if result is not None:
                    events.append(result)
        raise AssertionError("the session asks for ever")

    def pick(self, *choices: Any) -> Any:
        """One way in which it may turn out."""
        return self.chosen.draw(st.sampled_from(choices))

    def answer(self, action: hub_side.Action) -> hub_side.Event | None:
        """Answer an action in one of the ways it may be answered."""
        match action:
            case hub_side.Send(message):
                assert len(codec.encode(message)) <= limits.MESSAGE_BYTES
            case hub_side.FindTerminal(terminal):
                found = KNOWN if terminal == KNOWN.terminal_id else None
                return hub_side.TerminalFound(self.pick(found, found, structs.replace(KNOWN, is_revoked=True)))
            case hub_side.Enrol():
                refused = hub_side.Failed("not-authorised", "The account or the password is wrong.", "")
                pairing = hub_side.PairingBegun("KTWRBNHC", 600.0)
                result: hub_side.Event = self.pick(hub_side.TerminalFound(KNOWN), refused, pairing)
                if result is pairing:
                    self.later.append(hub_side.PairingDecided(self.pick(KNOWN, "pairing-denied", "replaced")))
                return result
            case hub_side.Admit(terminal, _, receives):
                return hub_side.Admitted(structs.replace(terminal, receives=receives))
            case hub_side.ReadStanding():
                return hub_side.StandingRead(self.standing())
            case hub_side.Answer(request):
                return hub_side.Answered((messages.Done(re=getattr(request, "id", 1)),))
            case _:
                return self.deliver(action)
        return None

    def standing(self) -> StandingFound:
        standing = messages.Standing(may_receive=self.pick(True, False), may_initiate=True)
        ended = self.pick("", "", "", "", "revoked")
        return StandingFound(standing=standing, ended=ended, scan=self.pick(None, RulesObject(digest=OBJECTS[0])))

    def deliver(self, action: hub_side.Action) -> hub_side.Event | None:
        match action:
            case hub_side.SaveInventory():
                unavailable = hub_side.Failed("unavailable", "The disk is full.", "")
                return self.pick(*[hub_side.InventorySaved()] * 9, unavailable)  # type: ignore[no-any-return]
            case hub_side.Claim():
                return hub_side.Claimed(self.owed())
            case hub_side.StartRules(delivery):
                return self.pick(  # type: ignore[no-any-return]
                    hub_side.RulesStarted(delivery),
                    hub_side.TransferBroken(delivery, "damaged-object", "x", offered=False),
                )
            case hub_side.StartTransfer(owed):
                broken = hub_side.TransferBroken(owed.delivery, "damaged-object", "It is damaged.", offered=False)
                return self.pick(None, None, None, broken)  # type: ignore[no-any-return]
            case hub_side.CheckLive(held):
                return hub_side.LiveChecked(tuple(one for one in held if self.pick(True, False)))
            case hub_side.Report(state):
                is_ours = state.delivery.startswith("d-")
                return hub_side.Reported(state, self.pick("noted", "refused", "stale") if is_ours else "refused")
            case hub_side.FeedWant() | hub_side.FeedProgress():
                return self.pick(None, None, hub_side.Broken("out-of-range", "x"))  # type: ignore[no-any-return]
            case hub_side.ReadChanges():
                return hub_side.ChangesRead(Changes(targets={}, ended=(), revision=1, more=self.pick(False, True)))
            case _:
                return self.upload(action)

    def owed(self) -> Owed | None:
        if self.pick(True, False):
            return None
        self.given += 1
        row = messages.TargetRow(terminal="t-1", name="PC", delivery="d-1", state="offered")
        assert isinstance(OFFER, messages.Offer)
        return Owed(
            delivery=self.pick("d-1", "d-2"), sync="s-1", initiator="t-2", digest=OBJECTS[0],
            installer=OFFER.installer, row=row,
        )  # fmt: skip

    def upload(self, action: hub_side.Action) -> hub_side.Event | None:
        match action:
            case hub_side.BeginUpload(request):
                error = UnavailableError("The hub takes no upload now.", code="busy")
                return hub_side.UploadBegun(request, self.pick(None, None, error))
            case hub_side.TakePage():
                name = self.session._upload.upload if self.session._upload else ""
                failed = hub_side.UploadFailed(name, "bad-transfer", "It is wrong.")
                return self.pick(hub_side.UploadPageTaken(name, self.pick(True, False)), failed)  # type: ignore[no-any-return]
            case hub_side.TakeFrame():
                return self.fetched()
            case hub_side.PrepareUpload():
                self.later.append(self.fetched())
            case hub_side.PublishUpload():
                published = SPECIMEN["published"]
                assert isinstance(published, messages.Published)
                self.later.append(hub_side.UploadPublished(structs.replace(published, upload="u-1")))
        return None

    def fetched(self) -> hub_side.Event:
        name = self.session._upload.upload if self.session._upload else "u-1"
        want = self.pick((), (messages.Run(0, 1),))
        fetched = hub_side.UploadFetched(name, self.pick(0, 1), 1, want, complete=self.pick(False, False, True))
        return self.pick(fetched, hub_side.UploadFailed(name, "bad-transfer", "x" * 5_000))  # type: ignore[no-any-return]

    # --- what always holds ----------------------------------------------------------------------------------------

    @invariant()
    def it_stays_small(self) -> None:
        """What it remembers is bounded by what it was given, not by what was said to it."""
        assert len(self.session._asking) <= limits.INBOX_ROWS + self.given + len(NAMES_OF_DELIVERIES)
        assert size_of(self.session) <= 2 * (limits.INBOX_ROWS + self.given) + 64

    @invariant()
    def its_deadline_is_sane(self) -> None:
        """After its end there is none; before that it is a time."""
        deadline = self.session.deadline
        assert not (self.closed and deadline is not None)
        assert deadline is None or math.isfinite(deadline)

    @invariant()
    def nobody_is_open_unknown(self) -> None:
        """Open means that a terminal was admitted."""
        assert not self.session.is_open or self.session.terminal is not None


def structs_of(opening: Any, receives: bool) -> terminal_side.LoggingIn:
    """The login of a terminal that receives, or only asks."""
    return terminal_side.LoggingIn("t-1", HUB_KEY.public, opening.device, DEVICE_KEY, receives, "hub.example", 443)


class TerminalMachine(RuleBasedStateMachine):
    """The connection's part, and a hub that says what it likes."""

    def __init__(self) -> None:
        super().__init__()
        self.session = terminal_side.Session(structs_of(OPENINGS[1], receives=True), TERMINAL_NONCE)
        self.ended = False
        self.waiting: list[terminal_side.Action] = []  # steps that have begun and not ended
        self.installing: list[terminal_side.Install] = []
        self.decided = 0
        self.happens(terminal_side.Connected())

    def happens(self, event: terminal_side.Event) -> None:
        """Handle one event; the two errors it may raise end the connection."""
        if self.ended:
            return
        try:
            actions = self.session.handle(event, 0.0)
        except (ProtocolError, RefusedError) as error:
            assert error.code and error.message
            self.ended = True
            return
        for action in actions:
            if isinstance(action, terminal_side.Say):
                assert len(codec.encode(action.message)) <= limits.MESSAGE_BYTES
            elif isinstance(action, terminal_side.Install):
                self.installing.append(action)
            elif hasattr(action, "serial"):
                self.waiting.append(action)
            elif isinstance(action, terminal_side.HubRefused):
                self.ended = True

    @rule(standing=st.booleans())
    @precondition(lambda self: not self.session.open)
    def is_let_in(self, standing: bool) -> None:
        """The hub proves its key and welcomes."""
        signed = keys.challenge_bytes(terminal_nonce=TERMINAL_NONCE, hub_nonce=HUB_NONCE, hub_key=HUB_KEY.public)
        challenge = messages.Challenge(
            version="lockstep.v1", nonce=HUB_NONCE, hub_key=HUB_KEY.public, signature=HUB_KEY.sign(signed)
        )
        self.happens(terminal_side.Heard(challenge))
        welcome = SPECIMEN["welcome"]
        assert isinstance(welcome, messages.Welcome)
        self.happens(terminal_side.Heard(welcome))

    @rule(message=said())
    def hears(self, message: Message) -> None:
        """The hub says anything."""
        self.happens(terminal_side.Heard(message))  # type: ignore[arg-type]

    @rule(
        name=st.sampled_from(NAMES_OF_DELIVERIES), program=st.sampled_from(["a", "b"]), digest=st.sampled_from(OBJECTS)
    )
    @precondition(lambda self: self.session.open)
    def is_offered(self, name: str, program: str, digest: bytes) -> None:
        """The hub offers something."""
        assert isinstance(OFFER, messages.Offer)
        installer = structs.replace(OFFER.installer, program=program)
        offer = structs.replace(OFFER, delivery=name, installer=installer, object=digest)
        self.happens(terminal_side.Heard(offer))

    @rule(name=st.sampled_from(NAMES_OF_DELIVERIES), state=st.sampled_from(list(life.State)))
    @precondition(lambda self: self.session.open)
    def is_noted(self, name: str, state: life.State) -> None:
        """The hub notes what was reported, or what was not."""
        self.happens(terminal_side.Heard(messages.Noted(of=name, state=state)))

    @rule(message=said())
    def asks(self, message: Message) -> None:
        """Somebody here asks for something."""
        if isinstance(message, messages.REQUESTS) and self.session.open:
            self.happens(terminal_side.Ask(message))

    @rule(name=st.sampled_from(NAMES_OF_DELIVERIES), state=st.sampled_from(["queued", "postponed", "declined"]))
    def decides(self, name: str, state: str) -> None:
        """A person decides; not on what comes already."""
        if not self.session.is_under_way(name):
            self.decided += 1
            self.happens(terminal_side.Decided(messages.State(delivery=name, state=state)))

    @rule(rate=st.integers(0, 2**40))
    def sets_the_pace(self, rate: int) -> None:
        """The settings change."""
        self.happens(terminal_side.PaceSet(rate))

    @rule(data=st.data())
    @precondition(lambda self: bool(self.waiting))
    def a_step_ends(self, data: st.DataObject) -> None:
        """A step ends well or badly, in time or long after its offer was replaced."""
        action = self.waiting.pop(data.draw(st.integers(0, len(self.waiting) - 1)))
        for event in self.ends_of(action, data):
            self.happens(event)

    def ends_of(self, action: Any, data: st.DataObject) -> list[terminal_side.Event]:
        if data.draw(st.integers(0, 4)) == 0:
            reason = data.draw(st.sampled_from(["no-space", "wrong-digest", "x" * 100]))
            return [terminal_side.StepFailed(action.serial, reason, "é\udc80" * data.draw(st.integers(0, 2_000)))]
        match action:
            case terminal_side.Consider(serial, offer):
                state = data.draw(st.sampled_from(["", "", "asking", "postponed", "declined"]))
                said = messages.State(delivery=offer.delivery, state=state) if state else None
                return [terminal_side.Considered(serial, said)]
            case terminal_side.FindRules(serial):
                return [terminal_side.RulesFound(serial, data.draw(st.booleans()))]
            case terminal_side.AddPage(serial):
                return [terminal_side.PageAdded(serial, data.draw(st.booleans()))]
            case terminal_side.Prepare(serial) | terminal_side.Write(serial):
                want = data.draw(st.sampled_from([(), (messages.Run(0, 1),)]))
                return [terminal_side.Fetched(serial, data.draw(st.integers(0, 2)), 1, want, data.draw(st.booleans()))]
            case terminal_side.Verify(serial):
                return [terminal_side.Verified(serial)]
        return []

    @rule(data=st.data())
    @precondition(lambda self: bool(self.installing))
    def an_installation_ends(self, data: st.DataObject) -> None:
        """With a report, or surely not done."""
        offer = self.installing.pop(0).offer
        report = messages.State(delivery=offer.delivery, state=data.draw(st.sampled_from(["done", "failed"])))
        self.happens(terminal_side.InstallEnded(offer.delivery, data.draw(st.sampled_from([report, None])), None))

    @rule()
    def a_scan_ends(self) -> None:
        """A report is ready."""
        posture = SPECIMEN["posture"]
        assert isinstance(posture, messages.Posture)
        self.happens(terminal_side.Scanned(posture))

    @invariant()
    def it_stays_small(self) -> None:
        """It holds one offer, sixteen installations, and what it has to tell of them."""
        assert len(self.session._installing) <= limits.INSTALLING_AT_ONCE
        assert len(self.session._to_tell) <= terminal_side.TOLD_KEPT + limits.INSTALLING_AT_ONCE + self.decided
        assert len(self.session._told) <= terminal_side.TOLD_AT_ONCE
        assert size_of(self.session) <= 1_000


STEADY = settings(
    max_examples=EXAMPLES, stateful_step_count=STEPS, deadline=None, derandomize=True,
    suppress_health_check=list(HealthCheck), database=None,
)  # fmt: skip


@pytest.mark.parametrize("machine", [HubMachine, TerminalMachine], ids=["hub", "terminal"])
def test_whatever_is_said_and_happens_a_session_keeps_its_promises(machine: type[RuleBasedStateMachine]) -> None:
    run_state_machine_as_test(machine, settings=STEADY)


def test_a_connection_that_only_asks_fills_no_memory_with_inventories() -> None:
    machine = HubMachine()
    machine.chosen = Always()
    machine.logs_in(machine.chosen, receives=False)
    assert machine.session.is_open
    for number in range(100):
        asking = tuple(f"d-{number}-{one}" for one in range(limits.INBOX_ROWS))
        machine.happens(hub_side.Received(messages.Inventory(programs=(), asking=asking)))
        machine.it_stays_small()


class Always:
    """In place of hypothesis: everything turns out the first way."""

    def draw(self, strategy: st.SearchStrategy[Any]) -> Any:
        return strategy.elements[0]  # type: ignore[attr-defined]
