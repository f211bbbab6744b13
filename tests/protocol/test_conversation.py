"""The conversation: the whole table, entry by entry, against what docs/protocol.md says in words."""

import re
from pathlib import Path

import pytest

from protocol import messages, vectors
from protocol.conversation import MAY_SAY, Conversation, Phase, Side
from protocol.errors import ProtocolError
from protocol.messages import Message

DOCUMENT = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text(encoding="utf-8")
EXAMPLES = {messages.kind_of(message): message for _, message in vectors.examples()}
# What both sides say, in order, to bring a conversation to each phase.
WAY_TO = {
    Phase.HELLO: (),
    Phase.CHALLENGE: ("hello",),
    Phase.PROOF: ("hello", "challenge"),
    Phase.WELCOME: ("hello", "challenge", "login"),
    Phase.OPEN: ("hello", "challenge", "login", "welcome"),
}
EITHER = {"offer", "manifest", "want", "chunks", "progress", "received", "refused", "withdraw", "noted", "error"}
UP = {"devices_request", "device_info", "inventory", "programs", "plan", "sync", "undo", "sync_request", "cancel"}
LOCAL = {"inbox", "inbox_result", "decide", "posture_now"}  # between the processes of one device
DOWN = {"devices", "device_changes", "programs_result", "plan_result", "sync_accepted", "sync_update", "sync_done"}
LEGAL = {
    (Phase.HELLO, Side.TERMINAL): {"hello"},
    (Phase.CHALLENGE, Side.HUB): {"challenge", "error"},
    (Phase.PROOF, Side.TERMINAL): {"enrol", "login"},
    (Phase.PROOF, Side.HUB): {"error"},
    (Phase.WELCOME, Side.HUB): {"pairing", "welcome", "error"},
    (Phase.OPEN, Side.TERMINAL): EITHER
    | UP
    | {"history", "state", "publish", "pairing_request", "approve", "revoke", "posture"},
    (Phase.OPEN, Side.HUB): EITHER
    | DOWN
    | {"sync_result", "cancel_result", "history_result", "done", "publish_accepted", "published"}
    | {"pairing_result", "standing", "posture_request", "rules"},
}


def conversation_in(phase: Phase) -> Conversation:
    conversation = Conversation()
    for kind in WAY_TO[phase]:
        side = Side.HUB if kind in {"challenge", "welcome"} else Side.TERMINAL
        conversation.said(side, EXAMPLES[kind])
    assert conversation.phase is phase
    return conversation


@pytest.mark.parametrize("phase", Phase)
@pytest.mark.parametrize("side", Side)
@pytest.mark.parametrize("kind", sorted(EXAMPLES))
def test_exactly_what_the_table_holds_may_be_said(phase: Phase, side: Side, kind: str) -> None:
    conversation = conversation_in(phase)
    if kind in LEGAL.get((phase, side), set()):
        conversation.said(side, EXAMPLES[kind])
        return
    with pytest.raises(ProtocolError) as caught:
        conversation.said(side, EXAMPLES[kind])
    assert caught.value.code == "wrong-order"
    assert conversation.phase is phase, "what may not be said changes nothing"


@pytest.mark.parametrize("proof", ["enrol", "login"])
def test_either_proof_leads_to_the_welcome_and_nothing_leads_on_from_an_open_conversation(proof: str) -> None:
    conversation = conversation_in(Phase.PROOF)
    conversation.said(Side.TERMINAL, EXAMPLES[proof])
    assert conversation.phase is Phase.WELCOME
    for (phase, side), kinds in LEGAL.items():
        if phase is Phase.OPEN:
            for kind in kinds:
                conversation = conversation_in(Phase.OPEN)
                conversation.said(side, EXAMPLES[kind])
                assert conversation.phase is Phase.OPEN


def test_every_message_but_the_local_ones_may_be_said_by_someone_at_some_time() -> None:
    sayable: set[type[Message]] = set().union(*MAY_SAY.values())
    assert {messages.kind_of(one) for one in set(messages.CLASSES) - sayable} == LOCAL
    assert {messages.kind_of(one) for one in messages.LOCAL_REQUESTS} < LOCAL


@pytest.mark.parametrize("phase", Phase)
def test_the_document_holds_the_same_table(phase: Phase) -> None:
    table = DOCUMENT.partition("## Conversation")[2]
    row = re.search(rf"^\| {phase.value} \| (.*?) \| (.*?) \|", table, re.MULTILINE)
    assert row
    for side, cell in ((Side.TERMINAL, row[1]), (Side.HUB, row[2])):
        said = {messages.kind_of(one) for one in MAY_SAY.get((phase, side), frozenset())}
        assert set(re.findall(r"`(\w+)`", cell)) == said
