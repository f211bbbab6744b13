"""Conversation: the table of who may say what in which phase, blind to role; both sides run it.

Each side feeds it every message it sends and receives, in order; what the table does not hold raises ProtocolError.
What follows from a message within a phase (which answer, which frame) is the sessions' and the transfer's business.
"""

from enum import Enum
from typing import Final

from protocol import messages
from protocol.errors import ProtocolError
from protocol.messages import Message


class Side(Enum):
    """Who speaks."""

    TERMINAL = "terminal"
    HUB = "hub"


class Phase(Enum):
    """How far the conversation is; the name says what is due next."""

    HELLO = "hello"
    CHALLENGE = "challenge"
    PROOF = "proof"
    WELCOME = "welcome"
    OPEN = "open"


_EITHER: Final[frozenset[type[Message]]] = frozenset(
    {
        messages.Offer,
        messages.ManifestPage,
        messages.Want,
        messages.Chunks,
        messages.Progress,
        messages.Received,
        messages.Refused,
        messages.Withdraw,
        messages.Noted,
        messages.Error,
    }
)

MAY_SAY: Final[dict[tuple[Phase, Side], frozenset[type[Message]]]] = {
    (Phase.HELLO, Side.TERMINAL): frozenset({messages.Hello}),
    (Phase.CHALLENGE, Side.HUB): frozenset({messages.Challenge, messages.Error}),
    (Phase.PROOF, Side.TERMINAL): frozenset({messages.Enrol, messages.Login}),
    (Phase.PROOF, Side.HUB): frozenset({messages.Error}),
    (Phase.WELCOME, Side.HUB): frozenset({messages.Pairing, messages.Welcome, messages.Error}),
    (Phase.OPEN, Side.TERMINAL): _EITHER
    | set(messages.REQUESTS)
    | {messages.Inventory, messages.State, messages.Posture},
    (Phase.OPEN, Side.HUB): _EITHER
    | {
        messages.Devices,
        messages.DeviceChanges,
        messages.ProgramsResult,
        messages.PlanResult,
        messages.SyncAccepted,
        messages.SyncUpdate,
        messages.SyncDone,
        messages.SyncResult,
        messages.CancelResult,
        messages.HistoryResult,
        messages.Done,
        messages.PublishAccepted,
        messages.Published,
        messages.PairingResult,
        messages.Standing,
        messages.PostureRequest,
        messages.Rules,
    },
}

_LEADS_TO: Final[dict[type[Message], Phase]] = {
    messages.Hello: Phase.CHALLENGE,
    messages.Challenge: Phase.PROOF,
    messages.Enrol: Phase.WELCOME,
    messages.Login: Phase.WELCOME,
    messages.Welcome: Phase.OPEN,
}


class Conversation:
    """One connection's phase."""

    def __init__(self) -> None:
        self.phase = Phase.HELLO

    def said(self, side: Side, message: Message) -> None:
        """Record that `side` said `message`. Raises ProtocolError when it may not say it now."""
        if type(message) not in MAY_SAY.get((self.phase, side), frozenset()):
            raise ProtocolError(
                f"The {side.value} may not say {messages.kind_of(message)!r} while {self.phase.value!r} is due.",
                code="wrong-order",
            )
        self.phase = _LEADS_TO.get(type(message), self.phase)
