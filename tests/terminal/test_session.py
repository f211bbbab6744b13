"""The terminal's session against a hub that is only a list of messages: no socket, no file, no clock."""

from collections.abc import Sequence
from typing import TypeVar

import pytest
from msgspec import structs

from protocol import keys, limits, messages
from protocol.errors import ProtocolError, RefusedError
from protocol.messages import InstalledProgram, Message
from terminal import session
from terminal.session import Action, Enrolling, Event, LoggingIn, Session
from tests.terminal.scripted import DEVICE, DEVICE_KEY, HUB_KEY, WELCOME, challenge_for, thing

NONCE = b"t" * 32
THING = thing(200_000)
HELLO = InstalledProgram(
    program="hello", package_name="hello", version="1.0", installer_kind="deb", digest=THING.digest
)
DONE_REPORT = messages.State(delivery="d-1", state="done", version="1.0")
DONE = session.InstallEnded("d-1", DONE_REPORT, HELLO)
Kind = TypeVar("Kind", bound=Action)


def login(*, receives: bool = True) -> LoggingIn:
    return LoggingIn("t-1", HUB_KEY.public, DEVICE, DEVICE_KEY, receives, "hub.example", 8765)


def hear(brain: Session, *said: Message) -> list[Action]:
    return [action for message in said for action in brain.handle(session.Heard(message), 0.0)]  # type: ignore[arg-type]


def feed(brain: Session, event: Event) -> list[Action]:
    return brain.handle(event, 0.0)


def says(actions: Sequence[Action]) -> list[Message]:
    return [action.message for action in actions if isinstance(action, session.Say)]


def only(kind: type[Kind], actions: Sequence[Action]) -> Kind:
    [found] = [action for action in actions if isinstance(action, kind)]
    return found


def opened(
    *,
    receives: bool = True,
    inventory: tuple[InstalledProgram, ...] = (),
    reports: tuple[messages.State, ...] = (),
    installing: tuple[messages.Offer, ...] = (),
    decided: tuple[messages.State, ...] = (),
) -> tuple[Session, list[Action]]:
    brain = Session(
        login(receives=receives),
        NONCE,
        inventory=inventory,
        reports=reports,
        installing=installing,
        decided=decided,
    )
    [hello] = says(feed(brain, session.Connected()))
    assert isinstance(hello, messages.Hello)
    hear(brain, challenge_for(hello))
    return brain, hear(brain, WELCOME)


def fetching() -> tuple[Session, int]:
    """A session that has asked for all chunks of its first offer."""
    brain, _ = opened()
    consider = only(session.Consider, hear(brain, THING.offer()))
    begin = only(session.Begin, feed(brain, session.Considered(consider.serial, None)))
    only(session.AddPage, hear(brain, THING.page()))
    only(session.Prepare, feed(brain, session.PageAdded(begin.serial, last=True)))
    runs = (messages.Run(0, THING.manifest.count),)
    actions = feed(brain, session.Fetched(begin.serial, 0, 0, runs, complete=False))
    assert says(actions) == [messages.Want(delivery="d-1", runs=runs)]
    return brain, begin.serial


def installing() -> tuple[Session, int]:
    brain, serial = fetching()
    feed(brain, session.Fetched(serial, 1, 200_000, (), complete=True))
    feed(brain, session.Verified(serial))
    only(session.Install, hear(brain, messages.Noted(of="d-1", state="installing")))
    return brain, serial


def waiting() -> tuple[Session, int]:
    """A session that has said `installing` and was not answered yet."""
    brain, serial = fetching()
    feed(brain, session.Fetched(serial, 1, 200_000, (), complete=True))
    feed(brain, session.Verified(serial))
    return brain, serial


def offer_of(program: str, delivery: str) -> messages.Offer:
    offer = THING.offer(delivery, digest=program.encode().ljust(32))
    return structs.replace(offer, installer=structs.replace(offer.installer, program=program))


def devices(revision: int, *names: str, page: int = 0, pages: int = 1, re: int = 0) -> messages.Devices:
    rows = tuple(row(name) for name in names)
    return messages.Devices(re=re, epoch="e1", revision=revision, page=page, pages=pages, devices=rows)


def row(name: str) -> messages.DeviceRow:
    return messages.DeviceRow(terminal=f"t-{name}", name=name, online=True, device=DEVICE)


# --- opening ----------------------------------------------------------------------------------------------------------


def test_a_login_is_signed_over_both_nonces_the_pinned_key_and_the_name_that_was_dialled() -> None:
    brain = Session(login(), NONCE)
    [hello] = says(feed(brain, session.Connected()))
    assert isinstance(hello, messages.Hello)
    [proof] = says(hear(brain, challenge_for(hello)))
    assert isinstance(proof, messages.Login)
    signed = keys.login_bytes(
        terminal_nonce=NONCE,
        hub_nonce=b"n" * 32,
        hub_key=HUB_KEY.public,
        terminal="t-1",
        host="hub.example",
        port=8765,
    )
    assert keys.verifies(DEVICE_KEY.public, proof.signature, signed)


def test_an_enrolment_brings_the_password_and_both_keys_and_returns_the_hubs_key() -> None:
    opening = Enrolling("ada", "secret", "TV", DEVICE, DEVICE_KEY, b"s" * 32, "hub.example", 80)
    brain = Session(opening, NONCE)
    [hello] = says(feed(brain, session.Connected()))
    assert isinstance(hello, messages.Hello)
    [proof] = says(hear(brain, challenge_for(hello)))
    assert isinstance(proof, messages.Enrol)
    signed = keys.enrol_bytes(
        terminal_nonce=NONCE,
        hub_nonce=b"n" * 32,
        hub_key=HUB_KEY.public,
        account="ada",
        sealing_key=b"s" * 32,
        host="hub.example",
        port=80,
    )
    assert keys.verifies(proof.device_key, proof.signature, signed)
    welcomed = hear(brain, WELCOME)
    assert welcomed == [session.Welcomed(WELCOME, HUB_KEY.public)], "an enrolling socket receives nothing"


def test_a_hub_with_another_key_than_the_pinned_one_is_refused_and_told_nothing() -> None:
    brain = Session(login(), NONCE)
    [hello] = says(feed(brain, session.Connected()))
    assert isinstance(hello, messages.Hello)
    with pytest.raises(RefusedError, match="its key has changed") as caught:
        hear(brain, challenge_for(hello, keys.SigningKey(b"x" * 32)))
    assert caught.value.code == "hub-key-changed"


def test_a_hub_that_only_repeats_the_pinned_key_cannot_prove_that_it_holds_it() -> None:
    brain = Session(login(), NONCE)
    feed(brain, session.Connected())
    other = messages.Hello(nonce=b"o" * 32, versions=("lockstep.v1",))
    with pytest.raises(RefusedError, match="could not prove") as caught:
        hear(brain, challenge_for(other))  # signed for another terminal's nonce
    assert caught.value.code == "bad-hub-signature"


def test_a_message_before_its_time_breaks_the_protocol() -> None:
    brain = Session(login(), NONCE)
    feed(brain, session.Connected())
    with pytest.raises(ProtocolError, match="welcome"):
        hear(brain, WELCOME)


def test_an_error_that_names_no_request_ends_the_connection_with_its_reason() -> None:
    brain, _ = opened()
    error = messages.Error(code="busy", message="Too many.")
    assert hear(brain, error) == [session.HubRefused(error)]


# --- after the welcome ------------------------------------------------------------------------------------------------


def test_a_receiving_terminal_says_its_unsent_reports_in_order_and_then_its_inventory() -> None:
    reports = tuple(messages.State(delivery=f"d-{n}", state="done", version="1") for n in (2, 1))
    _, actions = opened(inventory=(HELLO,), reports=reports)
    assert says(actions) == [*reports, messages.Inventory(programs=(HELLO,))]


def test_a_report_stays_on_disk_until_the_hub_has_noted_it() -> None:
    brain, actions = opened(reports=(messages.State(delivery="d-1", state="done"),))
    assert not [action for action in actions if isinstance(action, session.DropReport)]
    assert hear(brain, messages.Noted(of="d-1", state="done")) == [session.DropReport("d-1", "done")]


def test_a_terminal_that_only_asks_says_nothing_and_takes_no_offer() -> None:
    brain, actions = opened(receives=False)
    assert says(actions) == []
    [refused] = says(hear(brain, THING.offer()))
    assert isinstance(refused, messages.Refused)
    assert refused.reason == "not-receiving"


def test_the_end_of_a_sync_is_noted_and_handed_on() -> None:
    brain, _ = opened()
    done = messages.SyncDone(sync="s-1", program="hello", outcome="done", counts={"done": 1})
    assert hear(brain, done) == [session.Say(messages.Noted(of="s-1")), session.Deliver(done)]


def test_a_request_before_the_welcome_is_refused() -> None:
    brain = Session(login(), NONCE)
    feed(brain, session.Connected())
    with pytest.raises(ProtocolError):
        feed(brain, session.Ask(messages.DevicesRequest(id=1)))


# --- devices ----------------------------------------------------------------------------------------------------------


def test_the_device_list_comes_in_pages_and_changes_follow_it() -> None:
    brain, _ = opened()
    assert not [one for one in hear(brain, devices(4, "car", pages=2)) if isinstance(one, session.KeepDevices)]
    kept = only(session.KeepDevices, hear(brain, devices(4, "tv", page=1, pages=2)))
    assert (kept.revision, [one.name for one in kept.rows]) == (4, ["car", "tv"])
    hear(brain, messages.DeviceChanges(epoch="e1", since=4, revision=6, changed=(row("pc"),), gone=("t-car",)))
    assert [one.name for one in brain.devices.rows] == ["pc", "tv"]


@pytest.mark.parametrize(("epoch", "since"), [("e1", 5), ("e2", 4)])
def test_a_gap_in_the_changes_asks_for_the_whole_list_once(epoch: str, since: int) -> None:
    brain, _ = opened()
    hear(brain, devices(4, "tv"))
    missed = messages.DeviceChanges(epoch=epoch, since=since, revision=9, changed=(row("pc"),))
    assert hear(brain, missed, missed) == [session.AskDevices()]
    assert [one.name for one in brain.devices.rows] == ["tv"]
    hear(brain, devices(9, "pc", "tv", re=1))
    assert [one.name for one in brain.devices.rows] == ["pc", "tv"]


def test_a_page_out_of_order_breaks_the_protocol() -> None:
    brain, _ = opened()
    with pytest.raises(ProtocolError, match="out of order"):
        hear(brain, devices(4, "tv", page=1, pages=2))


# --- a delivery -------------------------------------------------------------------------------------------------------


def test_a_delivery_runs_from_the_offer_to_the_report() -> None:
    brain, serial = fetching()
    frame = THING.frame(messages.Run(0, 2))
    assert hear(brain, frame) == [session.Write(serial, frame)]
    wrote = feed(brain, session.Fetched(serial, 1, 200_000, (), complete=True))
    assert wrote == [
        session.Say(messages.Progress(delivery="d-1", frames=1, done=200_000)),
        session.Say(messages.State(delivery="d-1", state="verifying")),
        session.Verify(serial),
    ]
    assert feed(brain, session.Verified(serial)) == [
        session.Say(messages.Received(delivery="d-1")),
        session.Say(messages.State(delivery="d-1", state="installing")),
    ]
    assert hear(brain, messages.Noted(of="d-1", state="verifying")) == []
    permitted = hear(brain, messages.Noted(of="d-1", state="installing"))
    assert permitted == [session.Install(serial, THING.offer())]
    assert feed(brain, DONE) == [
        session.Say(messages.Inventory(programs=(HELLO,), installing=("d-1",))),
        session.Say(DONE_REPORT),
    ]
    assert hear(brain, messages.Noted(of="d-1", state="done")) == [session.DropReport("d-1", "done")]


def test_permission_that_comes_twice_installs_once() -> None:
    brain, _ = installing()
    assert hear(brain, messages.Noted(of="d-1", state="installing")) == []


def test_a_failed_installation_leaves_the_inventory_as_it_was() -> None:
    brain, _ = installing()
    report = messages.State(delivery="d-1", state="failed", reason="maintainer-scripts", detail="postinst ended with 1")
    assert says(feed(brain, session.InstallEnded("d-1", report, None))) == [
        messages.Inventory(programs=(), installing=("d-1",)),
        report,
    ]


def test_what_is_withdrawn_before_the_hub_has_noted_that_it_installs_is_not_installed() -> None:
    brain, serial = waiting()
    assert hear(brain, messages.Withdraw(delivery="d-1")) == [session.Abandon(serial, discard=False)]
    assert hear(brain, messages.Noted(of="d-1", state="installing")) == []
    assert says(feed(brain, session.PaceSet(1))) == [messages.Inventory(programs=(), bytes_per_second=1)]


def test_the_inventory_names_what_it_asked_to_install_until_its_report_is_said() -> None:
    brain, _ = waiting()
    [named] = says(feed(brain, session.PaceSet(5)))
    hear(brain, messages.Noted(of="d-1", state="installing"))
    [still] = says(feed(brain, session.PaceSet(5)))
    assert named == still == messages.Inventory(programs=(), installing=("d-1",), bytes_per_second=5)
    feed(brain, DONE)
    [after] = says(feed(brain, session.PaceSet(0)))
    assert after == messages.Inventory(programs=(HELLO,))


def test_what_installs_since_the_connection_before_is_named_and_its_report_said() -> None:
    brain, actions = opened(installing=(THING.offer(),))
    assert says(actions) == [messages.Inventory(programs=(), installing=("d-1",))]
    assert says(feed(brain, DONE)) == [messages.Inventory(programs=(HELLO,), installing=("d-1",)), DONE_REPORT]


def test_what_was_decided_on_something_that_installs_by_now_is_said_no_more_and_it_stays_named() -> None:
    accepted = messages.State(delivery="d-1", state="queued", reason="accepted")
    _, actions = opened(installing=(THING.offer(),), decided=(accepted,))
    assert says(actions) == [messages.Inventory(programs=(), installing=("d-1",))]


def test_an_installation_that_ends_before_the_welcome_is_reported_after_it() -> None:
    brain = Session(login(), NONCE, installing=(THING.offer(),))
    [hello] = says(feed(brain, session.Connected()))
    assert isinstance(hello, messages.Hello)
    assert feed(brain, DONE) == []
    hear(brain, challenge_for(hello))
    assert says(hear(brain, WELCOME)) == [DONE_REPORT, messages.Inventory(programs=(HELLO,))]


def test_what_was_interrupted_and_did_not_happen_is_named_no_longer() -> None:
    brain, _ = opened(installing=(THING.offer(),))
    assert says(feed(brain, session.InstallEnded("d-1", None, None))) == [messages.Inventory(programs=())]


def test_a_step_that_fails_is_refused_and_reported_and_its_file_thrown_away() -> None:
    brain, serial = fetching()
    actions = feed(brain, session.StepFailed(serial, "wrong-digest", "A chunk is wrong."))
    report = messages.State(
        delivery="d-1", state="failed", reason="wrong-digest", detail="A chunk is wrong.", attempt=1
    )
    assert actions == [
        session.Abandon(serial, discard=True),
        session.Say(messages.Refused(delivery="d-1", reason="wrong-digest", detail="A chunk is wrong.")),
        session.KeepReport(report),
        session.Say(report),
    ]
    assert hear(brain, THING.frame(messages.Run(0, 2))) == [], "frames of an object no longer current are ignored"


def test_without_room_the_partial_file_is_kept_for_another_try() -> None:
    brain, serial = fetching()
    abandoned = only(session.Abandon, feed(brain, session.StepFailed(serial, "no-space", "Full.")))
    assert not abandoned.discard


def test_a_new_offer_replaces_one_that_is_not_installing_yet() -> None:
    brain, serial = fetching()
    actions = hear(brain, THING.offer("d-2"))
    assert actions == [session.Abandon(serial, discard=False), session.Consider(serial + 1, THING.offer("d-2"))]
    assert feed(brain, session.Fetched(serial, 1, 5, (), complete=True)) == [], "late news of the replaced one"


def test_an_offer_for_the_program_that_installs_is_refused_as_busy() -> None:
    brain, _ = installing()
    [refused] = says(hear(brain, thing(1_000, seed=9).offer("d-2")))
    assert isinstance(refused, messages.Refused)
    assert refused.reason == "busy"
    assert feed(brain, DONE), "the first goes on"


def test_a_file_that_is_being_installed_is_not_received_again_for_another_program() -> None:
    brain, _ = installing()
    offer = THING.offer("d-2")
    other = structs.replace(offer, installer=structs.replace(offer.installer, program="other"))
    [refused] = says(hear(brain, other))
    assert isinstance(refused, messages.Refused)
    assert (refused.reason, refused.detail) == ("busy", "hello is being installed.")


def test_while_one_installs_another_program_comes_and_installs_beside_it() -> None:
    brain, serial = installing()
    other = offer_of("other", "d-2")
    assert hear(brain, other) == [session.Consider(serial + 1, other)]
    feed(brain, session.Considered(serial + 1, None))
    assert feed(brain, DONE), "the first ends meanwhile"
    feed(brain, session.PageAdded(serial + 1, last=True))
    feed(brain, session.Fetched(serial + 1, 1, 200_000, (), complete=True))
    feed(brain, session.Verified(serial + 1))
    assert hear(brain, messages.Noted(of="d-2", state="installing")) == [session.Install(serial + 1, other)]


def test_no_more_than_sixteen_install_at_once() -> None:
    brain, _ = opened(installing=tuple(offer_of(f"p-{n}", f"d-{n}") for n in range(limits.INSTALLING_AT_ONCE)))
    [refused] = says(hear(brain, offer_of("other", "d-x")))
    assert isinstance(refused, messages.Refused)
    assert refused.reason == "busy"


def test_a_withdrawn_delivery_stops_and_reports_nothing() -> None:
    brain, serial = fetching()
    assert hear(brain, messages.Withdraw(delivery="d-9")) == [session.Forget("d-9")]
    assert hear(brain, messages.Withdraw(delivery="d-1")) == [session.Abandon(serial, discard=False)]
    assert hear(brain, THING.offer()) == [session.Consider(serial + 1, THING.offer())], "it may come again"


def test_an_installation_under_way_cannot_be_withdrawn() -> None:
    brain, _ = installing()
    assert hear(brain, messages.Withdraw(delivery="d-1")) == []
    assert says(feed(brain, DONE))


def test_what_is_installed_already_is_reported_done_at_once() -> None:
    brain, _ = opened(inventory=(HELLO,))
    actions = hear(brain, THING.offer("d-7"))
    done = messages.State(delivery="d-7", state="done", version="1.0")
    assert actions == [session.KeepReport(done), session.Say(done)]


# --- what is told until it is noted -----------------------------------------------------------------------------------


def test_many_reports_are_said_in_portions_as_they_are_noted_and_the_inventory_last() -> None:
    reports = tuple(messages.State(delivery=f"d-{n}", state="done", version="1") for n in range(100))
    brain, actions = opened(reports=reports)
    heard = says(actions)
    assert tuple(heard) == reports[: session.TOLD_AT_ONCE]
    for number in range(100):
        heard += says(hear(brain, messages.Noted(of=f"d-{number}", state="done")))
    assert heard == [*reports, messages.Inventory(programs=())]


def test_with_too_much_to_tell_no_offer_is_taken_until_some_is_noted() -> None:
    reports = tuple(messages.State(delivery=f"r-{n}", state="done") for n in range(session.TOLD_KEPT))
    brain, _ = opened(reports=reports)
    [refused] = says(hear(brain, THING.offer()))
    assert isinstance(refused, messages.Refused)
    assert refused.reason == "busy"
    hear(brain, messages.Noted(of="r-0", state="done"))
    assert only(session.Consider, hear(brain, THING.offer()))


def test_an_offer_of_what_was_reported_and_not_noted_yet_waits_for_the_note() -> None:
    report = messages.State(delivery="d-1", state="failed", reason="no-space")
    brain, _ = opened(reports=(report,))
    assert hear(brain, THING.offer()) == []
    hear(brain, messages.Noted(of="d-1", state="failed"))
    assert only(session.Consider, hear(brain, THING.offer()))


# --- consent ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "said",
    [
        messages.State(delivery="d-1", state="asking"),
        messages.State(delivery="d-1", state="postponed", reason="quiet-hours", seconds=60),
    ],
)
def test_an_offer_that_has_to_wait_for_a_person_is_answered_and_its_pages_passed_over(said: messages.State) -> None:
    brain, _ = opened()
    consider = only(session.Consider, hear(brain, THING.offer()))
    assert feed(brain, session.Considered(consider.serial, said)) == [session.Say(said)]
    assert hear(brain, THING.page()) == []
    assert hear(brain, THING.offer("d-2")) == [session.Consider(consider.serial + 1, THING.offer("d-2"))]


def test_an_offer_this_device_never_takes_is_declined_by_a_report_that_is_kept() -> None:
    brain, _ = opened()
    consider = only(session.Consider, hear(brain, THING.offer()))
    report = messages.State(delivery="d-1", state="declined", reason="by-policy")
    assert feed(brain, session.Considered(consider.serial, report)) == [
        session.KeepReport(report),
        session.Say(report),
    ]
    assert hear(brain, messages.Noted(of="d-1", state="declined")) == [session.DropReport("d-1", "declined")]


def test_a_decision_is_told_until_it_is_noted() -> None:
    brain, _ = opened()
    accepted = messages.State(delivery="d-1", state="queued", reason="accepted")
    assert feed(brain, session.Decided(accepted)) == [session.Say(accepted)]
    assert hear(brain, messages.Noted(of="d-1", state="queued")) == []
    assert only(session.Consider, hear(brain, THING.offer()))


def test_a_decision_on_what_is_not_wanted_any_more_is_answered_by_a_withdraw() -> None:
    brain, _ = opened()
    feed(brain, session.Decided(messages.State(delivery="d-1", state="queued", reason="accepted")))
    assert hear(brain, messages.Withdraw(delivery="d-1")) == [session.Forget("d-1")]
    report = messages.State(delivery="d-2", state="declined", reason="by-person")
    feed(brain, session.Decided(report))
    assert hear(brain, messages.Withdraw(delivery="d-2")) == [
        session.DropReport("d-2", "declined"),
        session.Forget("d-2"),
    ]


def test_a_withdraw_that_crosses_a_decision_answers_it_and_leaves_it_in_the_inbox() -> None:
    brain, _ = fetching()
    feed(brain, session.Decided(messages.State(delivery="d-1", state="queued", reason="accepted")))
    assert hear(brain, messages.Withdraw(delivery="d-1")) == [session.Abandon(1, discard=False)]
    assert (brain._to_tell, brain._told) == ({}, set())


def test_accepting_everything_at_once_is_told_in_portions() -> None:
    brain, _ = opened()
    heard: list[Message] = []
    said = [messages.State(delivery=f"d-{n}", state="queued", reason="accepted") for n in range(limits.INBOX_ROWS)]
    for one in said:
        heard += says(feed(brain, session.Decided(one)))
    assert len(heard) == session.TOLD_AT_ONCE
    for one in said:
        heard += says(hear(brain, messages.Noted(of=one.delivery, state="queued")))
    assert heard == said


def test_what_was_decided_while_there_was_no_connection_is_said_before_the_inventory() -> None:
    accepted = messages.State(delivery="d-1", state="queued", reason="accepted")
    _, actions = opened(decided=(accepted,))
    assert says(actions) == [accepted, messages.Inventory(programs=())]


def test_it_is_too_late_to_decline_what_comes_or_installs() -> None:
    brain, _ = fetching()
    assert (brain.is_under_way("d-1"), brain.is_under_way("d-2")) == (True, False)
    brain, _ = installing()
    assert brain.is_under_way("d-1")


# --- rule sets and postures -------------------------------------------------------------------------------------------

RULES = thing(3_000, seed=9)


def rules_beginning(brain: Session) -> int:
    """Have a rule set offered that is not there; return its serial number."""
    found = only(session.FindRules, hear(brain, RULES.rules()))
    return only(session.Begin, feed(brain, session.RulesFound(found.serial, there=False))).serial


def test_a_rule_set_comes_by_the_steps_of_a_delivery_without_consent_or_state_and_ends_with_received() -> None:
    brain, _ = opened()
    serial = rules_beginning(brain)
    only(session.AddPage, hear(brain, RULES.page()))
    only(session.Prepare, feed(brain, session.PageAdded(serial, last=True)))
    runs = (messages.Run(0, RULES.manifest.count),)
    said = says(feed(brain, session.Fetched(serial, 0, 0, runs, complete=False)))
    assert said == [messages.Want(delivery="rules-1", runs=runs)]
    only(session.Write, hear(brain, RULES.frame(runs[0])))
    actions = feed(brain, session.Fetched(serial, 1, 3_000, (), complete=True))
    assert says(actions) == [messages.Progress(delivery="rules-1", frames=1, done=3_000)]
    only(session.Verify, actions)
    assert says(feed(brain, session.Verified(serial))) == [messages.Received(delivery="rules-1")]


def test_a_rule_set_that_is_there_already_is_received_at_once() -> None:
    brain, _ = opened()
    found = only(session.FindRules, hear(brain, RULES.rules()))
    actions = feed(brain, session.RulesFound(found.serial, there=True))
    assert actions == [session.Say(messages.Received(delivery="rules-1"))]
    assert hear(brain, RULES.page()) == [], "its pages, which the hub had sent already, are passed over"


def test_a_rule_set_that_is_too_large_is_refused_before_any_of_it_comes() -> None:
    brain, _ = opened()
    largest = structs.replace(RULES.rules(), size=limits.RULES_BYTES)
    only(session.FindRules, hear(brain, largest))
    [refused] = says(hear(brain, structs.replace(RULES.rules(), size=limits.RULES_BYTES + 1)))
    assert isinstance(refused, messages.Refused)
    assert (refused.delivery, refused.reason) == ("rules-1", "too-large")
    assert hear(brain, RULES.page()) == []


def test_a_rule_set_without_room_is_refused_and_nothing_is_reported() -> None:
    brain, _ = opened()
    serial = rules_beginning(brain)
    actions = feed(brain, session.StepFailed(serial, "no-space", "3000 bytes do not fit."))
    assert actions == [
        session.Abandon(serial, discard=False),
        session.Say(messages.Refused(delivery="rules-1", reason="no-space", detail="3000 bytes do not fit.")),
    ]


def test_a_rule_set_takes_the_place_of_a_delivery_that_comes_and_a_delivery_that_of_a_rule_set() -> None:
    brain, serial = fetching()
    actions = hear(brain, RULES.rules())
    assert session.Abandon(serial, discard=False) in actions, "what has come of it is kept"
    assert hear(brain, THING.frame(messages.Run(0, 1))) == [], "its frames are passed over"
    rules = only(session.FindRules, actions)
    feed(brain, session.RulesFound(rules.serial, there=False))
    again = hear(brain, THING.offer())
    assert session.Abandon(rules.serial, discard=False) in again
    only(session.Consider, again)
    assert hear(brain, RULES.page()) == []


def test_a_rule_set_comes_while_something_installs() -> None:
    brain, _ = installing()
    rules_beginning(brain)
    assert isinstance(feed(brain, DONE)[0], session.Say), "and its report is said meanwhile"
    only(session.AddPage, hear(brain, RULES.page()))


def test_a_rule_set_that_is_withdrawn_is_stopped() -> None:
    brain, _ = opened()
    serial = rules_beginning(brain)
    assert hear(brain, messages.Withdraw(delivery="rules-1")) == [session.Abandon(serial, discard=False)]
    assert hear(brain, RULES.page()) == []


def test_a_connection_that_only_asks_takes_no_rule_set_and_scans_nothing() -> None:
    brain, _ = opened(receives=False)
    [refused] = says(hear(brain, RULES.rules()))
    assert isinstance(refused, messages.Refused)
    assert refused.reason == "not-receiving"
    assert hear(brain, messages.PostureRequest(rules=RULES.digest, nonce=b"p" * 32)) == []


def test_a_posture_request_has_the_programs_scanned_and_what_was_found_is_said() -> None:
    brain, _ = opened()
    request = messages.PostureRequest(rules=RULES.digest, nonce=b"p" * 32)
    assert hear(brain, request) == [session.Scan(request)]
    posture = messages.Posture(report=b"r", signature=b"s" * 64)
    assert feed(brain, session.Scanned(posture)) == [session.Say(posture)]
