"""The hub's session as a value: events in, actions out; no socket, no store, no clock."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Final

import pytest
from msgspec import structs

from hub import session as brain
from hub.records import Changes, Owed, Terminal
from hub.session import Action, Close, Event, Send, Session
from protocol import keys, life, limits, messages
from protocol.device import DeviceInfo
from protocol.messages import InstallerOffer, Message, Run, TargetRow

HUB_KEY: Final = keys.SigningKey(b"h" * 32)
DEVICE_KEY: Final = keys.SigningKey(b"d" * 32)
DEVICE: Final = DeviceInfo(model="Test PC", os_type="linux")
NONCE: Final = b"t" * 32
NAMES: Final = frozenset({"hub.example:443"})
OBJECT: Final = b"o" * 32
OTHER_OBJECT: Final = b"x" * 32


def terminal(*, receives: bool = True, connection: int = 3) -> Terminal:
    return Terminal(
        terminal_id="t-1", account_id="a-1", account_name="ada", name="PC", device_key=DEVICE_KEY.public,
        device=DEVICE, address="192.0.2.1:5", connection=connection, receives=receives, last_seen_at=0.0,
    )  # fmt: skip


def owed(delivery: str = "d-1", digest: bytes = OBJECT) -> Owed:
    installer = InstallerOffer(
        program="hello", package_name="hello", version="1.0", installer_kind="deb", file_name="hello.deb"
    )
    row = TargetRow(terminal="t-1", name="PC", delivery=delivery, state="offered")
    return Owed(delivery=delivery, sync="s-1", initiator="t-2", digest=digest, installer=installer, row=row)


def hear(session: Session, *said: Message, now: float = 0.0) -> list[Action]:
    return [action for message in said for action in session.handle(brain.Received(message), now)]


def feed(session: Session, *events: Event, now: float = 0.0) -> list[Action]:
    return [action for event in events for action in session.handle(event, now)]


def said(actions: Sequence[Action]) -> list[Message]:
    return [action.message for action in actions if isinstance(action, Send)]


def challenged() -> tuple[Session, messages.Challenge]:
    session = Session(HUB_KEY, NAMES, 0.0)
    [challenge] = said(hear(session, messages.Hello(nonce=NONCE, versions=("lockstep.v1",))))
    assert isinstance(challenge, messages.Challenge)
    return session, challenge


def login(challenge: messages.Challenge, *, key: keys.SigningKey = DEVICE_KEY, **changes: Any) -> messages.Login:
    fields: dict[str, Any] = {"terminal": "t-1", "host": "hub.example", "port": 443} | changes
    hub_key = fields.pop("hub_key", challenge.hub_key)
    signed = keys.login_bytes(terminal_nonce=NONCE, hub_nonce=challenge.nonce, hub_key=hub_key, **fields)
    return messages.Login(receives=True, device=DEVICE, signature=key.sign(signed), **fields)


PASSWORD: Final = {"account": "ada", "password": "secret words"}


def enrolment(
    challenge: messages.Challenge,
    proof: dict[str, Any] = PASSWORD,
    *,
    key: keys.SigningKey = DEVICE_KEY,
    **changes: Any,
) -> messages.Enrol:
    fields: dict[str, Any] = {"sealing_key": bytes(32), "host": "hub.example", "port": 443} | changes
    hub_key = fields.pop("hub_key", challenge.hub_key)
    signed = keys.enrol_bytes(
        terminal_nonce=NONCE, hub_nonce=challenge.nonce, hub_key=hub_key, account=proof.get("account", ""), **fields
    )
    return messages.Enrol(
        name="PC", device=DEVICE, device_key=DEVICE_KEY.public, signature=key.sign(signed), **fields, **proof
    )


def opened(*, receives: bool = True) -> Session:
    session, challenge = challenged()
    hear(session, login(challenge))
    feed(session, brain.TerminalFound(terminal()), brain.Admitted(terminal(receives=receives)))
    assert session.is_open
    return session


def serving(delivery: Owed | None = None) -> Session:
    """A session in the middle of a delivery: offered, and its first want came."""
    session = opened()
    assert hear(session, messages.Inventory(programs=())) == [
        brain.SaveInventory(messages.Inventory(programs=()), first=True)
    ]
    assert feed(session, brain.InventorySaved()) == [brain.Claim()]
    first = delivery or owed()
    assert feed(session, brain.Claimed(first)) == [brain.StartTransfer(first)]
    return session


def report(state: str, delivery: str = "d-1", **fields: Any) -> messages.State:
    return messages.State(delivery=delivery, state=state, **fields)


# --- opening ------------------------------------------------------------------------------------------------------


def test_the_hub_proves_that_it_holds_its_key_before_the_terminal_says_who_it_is() -> None:
    _, challenge = challenged()
    signed = keys.challenge_bytes(terminal_nonce=NONCE, hub_nonce=challenge.nonce, hub_key=HUB_KEY.public)
    assert challenge.hub_key == HUB_KEY.public
    assert keys.verifies(challenge.hub_key, challenge.signature, signed)


def test_each_connection_has_its_own_nonce() -> None:
    assert challenged()[1].nonce != challenged()[1].nonce


def test_a_login_with_the_right_signature_is_admitted_and_welcomed_with_the_device_list() -> None:
    session, challenge = challenged()
    assert hear(session, login(challenge)) == [brain.FindTerminal("t-1")]
    assert feed(session, brain.TerminalFound(terminal())) == [brain.Admit(terminal(), DEVICE, receives=True)]
    welcome, devices = feed(session, brain.Admitted(terminal(connection=4)))[:2]
    assert isinstance(welcome, Send) and isinstance(welcome.message, messages.Welcome)
    assert (welcome.message.terminal, welcome.message.connection) == ("t-1", 4)
    assert devices == brain.SendDevices(0)


WAYS: Final[tuple[dict[str, Any], ...]] = (PASSWORD, {"join_key": "lsk-x"}, {"token": b"a.b.c"}, {"pair": True})


@pytest.mark.parametrize("proof", WAYS, ids=lambda proof: next(iter(proof)))
def test_an_enrolment_that_is_proved_in_one_of_four_ways_is_admitted_and_never_receives(proof: dict[str, Any]) -> None:
    session, challenge = challenged()
    said = enrolment(challenge, proof)
    assert hear(session, said) == [brain.Enrol(said)]
    assert feed(session, brain.TerminalFound(terminal())) == [brain.Admit(terminal(), DEVICE, receives=False)]


def test_an_enrolment_in_no_way_or_in_two_at_once_gets_close_1008_and_nothing_else() -> None:
    for proof in ({}, PASSWORD | {"pair": True}, {"join_key": "lsk-x", "token": b"a.b.c"}):
        session, challenge = challenged()
        assert hear(session, enrolment(challenge, proof)) == [Close(1008, "")]


def test_a_host_name_is_compared_without_case() -> None:
    session, challenge = challenged()
    assert hear(session, login(challenge, host="HUB.Example")) == [brain.FindTerminal("t-1")]


def refusal(actions: list[Action]) -> str:
    """The code of a refusal, which is one error and close 1008."""
    error, close = actions
    assert isinstance(error, Send) and isinstance(error.message, messages.Error)
    assert close == Close(1008, error.message.code)
    assert error.message.re == 0
    return error.message.code


def test_a_wrong_proof_is_refused_in_the_words_of_its_way() -> None:
    session, challenge = challenged()
    hear(session, enrolment(challenge))
    assert refusal(feed(session, brain.Failed("not-authorised", "Wrong.", "Check."))) == "not-authorised"


@pytest.mark.parametrize("proof", WAYS, ids=lambda proof: next(iter(proof)))
@pytest.mark.parametrize(
    "changes",
    [{"key": keys.SigningKey(b"e" * 32)}, {"hub_key": b"k" * 32}],
    ids=["another-key-signed", "signed-for-another-hub"],
)
def test_a_proof_is_not_even_looked_at_unless_the_device_key_has_signed(
    proof: dict[str, Any], changes: dict[str, Any]
) -> None:
    session, challenge = challenged()
    assert refusal(hear(session, enrolment(challenge, proof, **changes))) == "not-authorised"


def test_an_enrolment_that_was_recorded_is_refused_on_another_connection() -> None:
    _, first = challenged()
    session, second = challenged()
    assert refusal(hear(session, enrolment(first))) == "not-authorised"
    session, second = challenged()
    assert hear(session, enrolment(second)) == [brain.Enrol(enrolment(second))], "the same with its own nonce"


@pytest.mark.parametrize("changes", [{"host": "evil.example"}, {"port": 444}])
def test_an_enrolment_meant_for_another_hub_is_refused_before_its_proof_is_looked_at(changes: dict[str, Any]) -> None:
    session, challenge = challenged()
    assert refusal(hear(session, enrolment(challenge, **changes))) == "wrong-hub-name"


def test_an_account_that_is_full_is_refused_in_the_accounts_own_words() -> None:
    session, challenge = challenged()
    hear(session, enrolment(challenge))
    assert refusal(feed(session, brain.Failed("account-full", "Full.", "Ask."))) == "account-full"


def pairing(*, now: float = 1.0) -> Session:
    session, challenge = challenged()
    hear(session, enrolment(challenge, {"pair": True}))
    assert feed(session, brain.PairingBegun("BCDFGHJK", 600.0), now=now) == [
        Send(messages.Pairing(code="BCDFGHJK", seconds=600.0))
    ]
    return session


def test_a_device_that_waits_to_be_approved_has_ten_minutes_and_is_then_told_why_it_is_closed() -> None:
    session = pairing(now=1.0)
    assert session.deadline == 601.0
    assert feed(session, brain.Ticked(), now=600.9) == []
    assert refusal(feed(session, brain.Ticked(), now=601.0)) == "pairing-expired"


def test_a_device_that_was_approved_is_admitted_and_one_that_was_turned_away_is_told() -> None:
    session = pairing()
    assert feed(session, brain.PairingDecided(terminal()), now=300.0) == [
        brain.Admit(terminal(), DEVICE, receives=False)
    ]
    assert isinstance(said(feed(session, brain.Admitted(terminal())))[0], messages.Welcome)
    assert refusal(feed(pairing(), brain.PairingDecided("pairing-denied"))) == "pairing-denied"
    assert refusal(feed(pairing(), brain.PairingDecided("replaced"))) == "replaced"


@pytest.mark.parametrize(
    "message", [messages.Approve(id=1, code="BCDFGHJK", device_key=bytes(32)), messages.Noted(of="s")]
)
def test_a_device_that_waits_to_be_approved_may_say_nothing(message: Message) -> None:
    assert hear(pairing(), message) == [Close(1008, "")]


@pytest.mark.parametrize(
    ("state", "code"), [({"is_revoked": True}, "revoked"), ({"is_disabled": True}, "account-disabled")]
)
def test_who_was_revoked_or_disabled_hears_so_only_after_its_signature_was_right(
    state: dict[str, bool], code: str
) -> None:
    found = brain.TerminalFound(structs.replace(terminal(), **state))
    session, challenge = challenged()
    hear(session, login(challenge))
    assert refusal(feed(session, found)) == code
    forged, challenge = challenged()
    hear(forged, login(challenge, key=keys.SigningKey(b"e" * 32)))
    assert refusal(feed(forged, found)) == "unknown-terminal"


def test_the_run_of_a_login_is_passed_on_when_it_is_admitted() -> None:
    session, challenge = challenged()
    hear(session, structs.replace(login(challenge), run=b"r" * 16))
    assert feed(session, brain.TerminalFound(terminal())) == [
        brain.Admit(terminal(), DEVICE, receives=True, run=b"r" * 16)
    ]


def test_an_unknown_terminal_and_a_wrong_signature_get_the_same_answer() -> None:
    unknown, challenge = challenged()
    hear(unknown, login(challenge))
    forged, challenge = challenged()
    hear(forged, login(challenge, key=keys.SigningKey(b"e" * 32)))
    answers = [feed(unknown, brain.TerminalFound(None)), feed(forged, brain.TerminalFound(terminal()))]
    assert answers[0] == answers[1]
    assert refusal(answers[0]) == "unknown-terminal"


def test_captured_login_bytes_are_refused_on_another_connection() -> None:
    _, first = challenged()
    session, second = challenged()
    captured = login(first)
    hear(session, captured)
    assert refusal(feed(session, brain.TerminalFound(terminal()))) == "unknown-terminal"
    session, second = challenged()
    hear(session, login(second))
    assert isinstance(feed(session, brain.TerminalFound(terminal()))[0], brain.Admit), "the same with its own nonce"


def test_a_login_signed_for_another_hubs_key_is_refused() -> None:
    session, challenge = challenged()
    hear(session, login(challenge, hub_key=b"k" * 32))
    assert refusal(feed(session, brain.TerminalFound(terminal()))) == "unknown-terminal"


@pytest.mark.parametrize("changes", [{"host": "evil.example"}, {"port": 444}])
def test_a_login_meant_for_another_address_is_refused_before_anything_is_looked_up(changes: dict[str, Any]) -> None:
    session, challenge = challenged()
    assert refusal(hear(session, login(challenge, **changes))) == "wrong-hub-name"


def test_a_terminal_that_speaks_no_known_version_is_closed_with_nothing_said() -> None:
    session = Session(HUB_KEY, NAMES, 0.0)
    assert hear(session, messages.Hello(nonce=NONCE, versions=("lockstep.v9",))) == [Close(1008, "")]


EXAMPLES: Final[tuple[Message, ...]] = (
    messages.Challenge(version="v", nonce=bytes(32), hub_key=bytes(32), signature=bytes(64)),
    messages.DevicesRequest(id=1),
    messages.DeviceUpdate(id=1),
    messages.Inventory(programs=()),
    messages.Programs(id=1),
    messages.Plan(id=1, program="p"),
    messages.Sync(id=1, request_key="k", program="p"),
    messages.SyncRequest(id=1, sync="s"),
    messages.Cancel(id=1, sync="s"),
    messages.History(id=1),
    messages.Done(re=1),
    messages.Want(delivery="d-1", runs=(Run(0, 1),)),
    messages.Progress(delivery="d-1", frames=0, done=0),
    messages.Refused(delivery="d-1", reason="r"),
    messages.State(delivery="d", state="done"),
    messages.Noted(of="s"),
    messages.Error(code="c", message="m"),
)


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda message: type(message).__name__)
def test_anything_but_a_hello_at_first_and_a_proof_after_it_gets_close_1008_and_nothing_else(message: Message) -> None:
    assert hear(Session(HUB_KEY, NAMES, 0.0), message) == [Close(1008, "")]
    session, _ = challenged()
    assert hear(session, message) == [Close(1008, "")]


def test_bytes_that_are_no_message_get_close_1008_and_nothing_else_before_login() -> None:
    assert feed(Session(HUB_KEY, NAMES, 0.0), brain.Broken("bad-msgpack", "bad")) == [Close(1008, "")]


def test_a_proof_before_the_hello_gets_close_1008_and_nothing_else() -> None:
    _, challenge = challenged()
    assert hear(Session(HUB_KEY, NAMES, 0.0), login(challenge)) == [Close(1008, "")]


def test_who_has_not_logged_in_by_the_deadline_is_closed_and_the_deadline_is_then_gone() -> None:
    session, _ = challenged()
    deadline = session.deadline
    assert deadline == limits.OPENING_SECONDS + limits.LOGIN_SECONDS
    assert feed(session, brain.Ticked(), now=deadline - 0.1) == []
    assert feed(session, brain.Ticked(), now=deadline) == [Close(1008, "")]
    assert session.deadline is None, "or the server would spin until the socket is gone"


def test_after_a_close_nothing_more_is_done() -> None:
    session = opened()
    feed(session, brain.Stopping())
    assert hear(session, messages.History(id=1)) == []
    assert feed(session, brain.Owing(), brain.Changed(), brain.Replaced(), brain.Stopping()) == []


# --- open ---------------------------------------------------------------------------------------------------------


def violation(actions: list[Action]) -> str:
    error, close = actions
    assert isinstance(error, Send) and isinstance(error.message, messages.Error)
    assert close == Close(4001, error.message.code)
    return error.message.code


def test_bytes_that_are_no_message_get_their_error_and_close_4001_after_login() -> None:
    assert violation(feed(opened(), brain.Broken("bad-field", "A want message is wrong."))) == "bad-field"


@pytest.mark.parametrize("kind", [messages.Hello(nonce=NONCE, versions=("lockstep.v1",)), messages.Done(re=1)])
def test_what_may_not_be_said_any_more_gets_its_error_and_close_4001(kind: Message) -> None:
    assert violation(hear(opened(), kind)) == "wrong-order"


def test_an_object_that_was_never_offered_is_a_violation() -> None:
    for message in (
        messages.Want(delivery="d-other", runs=(Run(0, 1),)),
        messages.Progress(delivery="d-other", frames=1, done=1),
        messages.Received(delivery="d-other"),
        messages.Refused(delivery="d-other", reason="busy"),
        messages.Chunks(object=OBJECT, first=0, count=1, data=b"x"),
    ):
        assert violation(hear(serving(), message)) == "not-offered"


def test_a_newer_login_replaces_this_socket_with_4000() -> None:
    error, close = feed(opened(), brain.Replaced())
    assert isinstance(error, Send) and isinstance(close, Close) and close.code == 4000


def test_a_hub_that_stops_closes_with_1012_even_before_login() -> None:
    for session in (opened(), challenged()[0]):
        [close] = feed(session, brain.Stopping())
        assert isinstance(close, Close) and close.code == 1012


def test_a_database_that_does_not_answer_ends_an_open_socket_with_1013() -> None:
    error, close = feed(opened(), brain.Failed("unavailable", "Full.", ""))
    assert isinstance(error, Send) and close == Close(1013, "unavailable")


def test_requests_are_carried_out_and_their_answers_sent() -> None:
    session = opened()
    assert hear(session, messages.History(id=4)) == [brain.Answer(messages.History(id=4))]
    answer = messages.HistoryResult(re=4, syncs=())
    assert feed(session, brain.Answered((answer,))) == [Send(answer)]
    assert hear(session, messages.DevicesRequest(id=5)) == [brain.SendDevices(5)]


# --- delivering ---------------------------------------------------------------------------------------------------


def test_nothing_is_served_before_the_inventory() -> None:
    assert feed(opened(), brain.Owing()) == []


def test_a_connection_that_does_not_receive_is_not_served_even_after_an_inventory() -> None:
    session = opened(receives=False)
    hear(session, messages.Inventory(programs=()))
    assert feed(session, brain.InventorySaved(), brain.Owing()) == []


def test_a_delivery_goes_from_claim_to_done_and_on_to_the_next() -> None:
    session = serving()
    want = messages.Want(delivery="d-1", runs=(Run(0, 2),))
    assert hear(session, want) == [brain.FeedWant(want), brain.Report(report("downloading"))]
    assert feed(session, brain.Reported(report("downloading"), "noted")) == [], "that report is the hub's own"
    progress = messages.Progress(delivery="d-1", frames=1, done=10)
    assert hear(session, progress) == [brain.FeedProgress(progress)]
    assert hear(session, report("verifying")) == [brain.Report(report("verifying"))]
    noted = feed(session, brain.Reported(report("verifying"), "noted"))
    assert noted == [Send(messages.Noted(of="d-1", state="verifying"))]
    hear(session, report("installing"))
    begun = feed(session, brain.Reported(report("installing"), "noted"))
    assert begun == [Send(messages.Noted(of="d-1", state="installing")), brain.StopTransfer(), brain.Claim()]
    assert feed(session, brain.Claimed(owed("d-2"))) == [brain.StartTransfer(owed("d-2"))]
    hear(session, report("done"))
    ended = feed(session, brain.Reported(report("done"), "noted"))
    assert ended == [Send(messages.Noted(of="d-1", state="done")), brain.CheckLive(("d-2",))], "d-2 goes on"


def test_a_refused_object_stops_the_transfer_and_fails_the_delivery_with_the_terminals_reason() -> None:
    session = serving()
    failed = report("failed", reason="no-space", detail="512 bytes free.")
    refused = messages.Refused(delivery="d-1", reason="no-space", detail="512 bytes free.")
    assert hear(session, refused) == [brain.StopTransfer(), brain.Report(failed)]
    assert brain.Claim() in feed(session, brain.Reported(failed, "noted"))


def test_a_cancelled_delivery_is_withdrawn_and_the_next_is_looked_up() -> None:
    session = serving()
    assert feed(session, brain.Owing()) == [brain.CheckLive(("d-1",))]
    assert feed(session, brain.LiveChecked(("d-1",))) == [
        brain.StopTransfer(), Send(messages.Withdraw(delivery="d-1")), brain.Claim(),
    ]  # fmt: skip


def test_a_poke_while_a_delivery_goes_on_changes_nothing() -> None:
    session = serving()
    assert feed(session, brain.Owing(), brain.LiveChecked(())) == [brain.CheckLive(("d-1",))]


def test_nothing_is_installed_for_a_delivery_that_ended_meanwhile() -> None:
    session = serving()
    hear(session, report("installing"))
    assert feed(session, brain.Reported(report("installing"), "refused")) == [
        brain.StopTransfer(), Send(messages.Withdraw(delivery="d-1")), brain.Claim(),
    ]  # fmt: skip


def test_a_delivery_that_waits_for_a_person_frees_the_socket_for_the_next() -> None:
    session = serving()
    hear(session, report("asking"))
    actions = feed(session, brain.Reported(report("asking"), "noted"))
    assert actions == [Send(messages.Noted(of="d-1", state="asking")), brain.StopTransfer(), brain.CheckLive(("d-1",))]
    assert feed(session, brain.LiveChecked(())) == [brain.Claim()]
    assert feed(session, brain.Claimed(owed("d-2"))) == [brain.StartTransfer(owed("d-2"))]


def test_what_a_person_is_asked_about_is_withdrawn_when_it_is_no_longer_wanted() -> None:
    session = serving()
    hear(session, report("asking"))
    feed(session, brain.Reported(report("asking"), "noted"), brain.LiveChecked(()), brain.Claimed(None))
    assert feed(session, brain.Owing()) == [brain.CheckLive(("d-1",))]
    assert feed(session, brain.LiveChecked(("d-1",))) == [Send(messages.Withdraw(delivery="d-1")), brain.Claim()]
    feed(session, brain.Claimed(None))
    assert feed(session, brain.Owing()) == [brain.Claim()], "it is asked about no more"


def test_a_decision_that_crosses_with_the_offer_leaves_the_transfer_as_it_is() -> None:
    session = serving()
    hear(session, report("queued", reason="accepted"))
    assert feed(session, brain.Reported(report("queued", reason="accepted"), "refused")) == [
        Send(messages.Noted(of="d-1", state="queued"))
    ]
    want = messages.Want(delivery="d-1", runs=(Run(0, 2),))
    assert brain.FeedWant(want) in hear(session, want)


def test_what_a_terminal_asks_about_since_before_is_looked_up_once_it_is_back() -> None:
    session = opened()
    hear(session, messages.Inventory(programs=(), asking=("d-7", "d-8")))
    [look] = feed(session, brain.InventorySaved())
    assert isinstance(look, brain.CheckLive) and set(look.deliveries) == {"d-7", "d-8"}
    assert feed(session, brain.LiveChecked(("d-7",))) == [Send(messages.Withdraw(delivery="d-7")), brain.Claim()]


def test_a_decision_that_comes_too_late_is_answered_with_a_withdrawal_and_forgotten() -> None:
    session = serving()
    hear(session, report("asking"))
    feed(session, brain.Reported(report("asking"), "noted"), brain.LiveChecked(()), brain.Claimed(None))
    hear(session, report("queued"))
    withdrawn = feed(session, brain.Reported(report("queued"), "refused"))
    assert withdrawn == [Send(messages.Withdraw(delivery="d-1"))]
    assert feed(session, brain.Owing()) == [brain.Claim()], "nothing is held there any more"


def test_what_a_person_agreed_to_is_looked_up_again() -> None:
    session = serving()
    hear(session, report("asking"))
    feed(session, brain.Reported(report("asking"), "noted"), brain.LiveChecked(()), brain.Claimed(None))
    hear(session, report("queued", reason="accepted"))
    actions = feed(session, brain.Reported(report("queued", reason="accepted"), "noted"))
    assert actions == [Send(messages.Noted(of="d-1", state="queued")), brain.Claim()]


@pytest.mark.parametrize(
    ("state", "reason"), [("offered", "no-answer"), ("downloading", "no-progress"), ("verifying", "no-answer")]
)
def test_a_terminal_that_does_not_go_on_in_time_fails_this_try(state: str, reason: str) -> None:
    session = serving()
    feed(session, brain.ChangesRead(Changes({}, (), 0)))
    if state != "offered":
        hear(session, messages.Want(delivery="d-1", runs=(Run(0, 2),)), now=100.0)
    if state == "verifying":
        feed(session, brain.Reported(report("verifying"), "noted"), now=100.0)
    seconds = life.DEADLINES[life.State(state)].seconds
    began_at = 0.0 if state == "offered" else 100.0
    feed(session, brain.Ticked(), brain.ChangesRead(Changes({}, (), 0)), now=1.0)
    assert session.deadline == began_at + seconds
    assert not any(
        isinstance(action, brain.Report) for action in feed(session, brain.Ticked(), now=session.deadline - 1)
    )
    actions = feed(session, brain.Ticked(), now=session.deadline)
    assert actions[:2] == [brain.StopTransfer(), Send(messages.Withdraw(delivery="d-1"))]
    [failed] = [action.state for action in actions if isinstance(action, brain.Report)]
    assert (failed.state, failed.reason) == ("failed", reason)


def test_progress_sets_the_deadline_anew() -> None:
    session = serving()
    feed(session, brain.Ticked(), brain.ChangesRead(Changes({}, (), 0)), now=1.0)
    hear(session, messages.Want(delivery="d-1", runs=(Run(0, 2),)), now=10.0)
    hear(session, messages.Progress(delivery="d-1", frames=1, done=1), now=250.0)
    assert session.deadline == 250.0 + life.DEADLINES[life.State.DOWNLOADING].seconds


def test_what_the_hub_itself_sends_late_sets_the_deadline_anew() -> None:
    session = serving()
    hear(session, messages.Want(delivery="d-1", runs=(Run(0, 2),)), now=10.0)
    seconds = life.DEADLINES[life.State.DOWNLOADING].seconds
    held_back_until = 10.0 + seconds
    actions = feed(session, brain.Ticked(sent_at=held_back_until), now=held_back_until)
    assert not any(isinstance(action, brain.Report) for action in actions)
    actions = feed(session, brain.Ticked(sent_at=held_back_until), now=held_back_until + seconds)
    assert brain.StopTransfer() in actions


def test_a_poke_that_crosses_a_look_up_is_not_lost() -> None:
    session = opened()
    hear(session, messages.Inventory(programs=()))
    assert feed(session, brain.InventorySaved()) == [brain.Claim()]
    assert feed(session, brain.Owing()) == []
    assert feed(session, brain.Claimed(None)) == [brain.Claim()]
    assert feed(session, brain.Claimed(None)) == []


def test_what_crosses_the_end_of_its_delivery_is_passed_over() -> None:
    session = serving()
    feed(session, brain.Owing(), brain.LiveChecked(("d-1",)), brain.Claimed(owed("d-2", OTHER_OBJECT)))
    for message in (
        messages.Want(delivery="d-1", runs=(Run(0, 1),)),
        messages.Progress(delivery="d-1", frames=9, done=9),
        messages.Received(delivery="d-1"),
        messages.Refused(delivery="d-1", reason="no-space"),
    ):
        assert hear(session, message) == []


def test_a_late_report_of_an_older_delivery_does_not_end_the_one_under_way() -> None:
    session = serving(owed("d-2"))
    hear(session, report("failed", "d-1"))
    assert feed(session, brain.Reported(report("failed", "d-1"), "noted")) == [
        Send(messages.Noted(of="d-1", state="failed")), brain.CheckLive(("d-2",)),
    ]  # fmt: skip


def test_a_stale_report_is_not_noted_so_that_it_comes_again() -> None:
    session = serving()
    hear(session, report("done"))
    assert feed(session, brain.Reported(report("done"), "stale")) == []


def test_an_object_the_hub_cannot_read_is_withdrawn_and_fails() -> None:
    session = serving()
    assert feed(session, brain.TransferBroken("d-1", "damaged-object", "Truncated.")) == [
        brain.StopTransfer(),
        Send(messages.Withdraw(delivery="d-1")),
        brain.Report(report("failed", reason="damaged-object", detail="Truncated.")),
    ]
    assert feed(session, brain.TransferBroken("d-0", "damaged-object", "Truncated.")) == [], "that one has ended"


def test_an_object_that_cannot_even_be_opened_is_not_withdrawn_for_the_terminal_knows_nothing_of_it() -> None:
    session = serving()
    assert feed(session, brain.TransferBroken("d-1", "damaged-object", "It is gone.", offered=False)) == [
        brain.StopTransfer(),
        brain.Report(report("failed", reason="damaged-object", detail="It is gone.")),
    ]


def test_a_want_out_of_range_is_a_violation() -> None:
    session = serving()
    hear(session, messages.Want(delivery="d-1", runs=(Run(0, 9),)))
    assert violation(feed(session, brain.Broken("out-of-range", "The object has 3."))) == "out-of-range"


# --- telling an initiator -----------------------------------------------------------------------------------------


def changes(revision: int, *ended: str, more: bool = False) -> Changes:
    row = TargetRow(terminal="t-2", name="TV", delivery="d-9", state="queued")
    ends = tuple(messages.SyncDone(sync=sync, program="p", outcome="done", counts={}) for sync in ended)
    return Changes({"s-1": [row]}, ends, revision, more)


def test_an_initiator_is_told_at_most_twice_a_second_however_often_something_changes() -> None:
    session = opened()
    reads = []
    for step in range(1_000):
        now = step / 100
        feed(session, brain.Changed(), now=now)
        while session.deadline is not None and session.deadline <= now:
            for action in feed(session, brain.Ticked(), now=now):
                assert isinstance(action, brain.ReadChanges)
                reads.append(now)
                feed(session, brain.ChangesRead(changes(step)), now=now)
    assert 15 <= len(reads) <= 21
    assert all(second - first >= limits.SYNC_UPDATES_EVERY_SECONDS for first, second in pairwise(reads))


def test_each_reading_goes_on_where_the_last_ended_and_what_is_left_is_read_without_a_poke() -> None:
    session = opened()
    assert feed(session, brain.Ticked()) == [brain.ReadChanges(0)]
    feed(session, brain.ChangesRead(changes(40, more=True)))
    assert session.deadline == limits.SYNC_UPDATES_EVERY_SECONDS
    assert feed(session, brain.Ticked(), now=0.5) == [brain.ReadChanges(40)]
    feed(session, brain.ChangesRead(changes(41)), now=0.5)
    assert session.deadline is None


def test_the_end_of_a_sync_is_told_once_a_connection_and_noted_when_the_initiator_says_so() -> None:
    session = opened()
    first = said(feed(session, brain.ChangesRead(changes(1, "s-1"))))
    again = said(feed(session, brain.ChangesRead(changes(2, "s-1"))))
    assert [type(message) for message in first] == [messages.SyncUpdate, messages.SyncDone]
    assert [type(message) for message in again] == [messages.SyncUpdate]
    assert hear(session, messages.Noted(of="s-1")) == [brain.NoteSync("s-1")]
