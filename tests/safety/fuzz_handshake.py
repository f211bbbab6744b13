"""Fuzzing the opening: a real conversation of both sessions with its messages changed, dropped, doubled and made up.

An input is a script: its first byte chooses how the terminal opens, each further one what is done to the next message
said; the bytes it needs follow it. An input that ends lets the rest through as it is, so an empty one is an opening
that must succeed. Whatever comes, the hub's session raises nothing, the terminal's only what its docstring says, and
nobody is let in whose signature does not hold. `fuzz_target.py` runs it, `make fuzz` many times.
"""

import functools
import hashlib
import json
import random
from collections import deque
from collections.abc import Callable
from typing import Any, Final

import msgpack
import msgspec

from hub import session as hub_side
from hub.records import StandingFound, Terminal
from protocol import codec, keys, limits, messages
from protocol.device import DeviceInfo
from protocol.errors import ProtocolError, RefusedError
from protocol.messages import Message
from terminal import session as terminal_side
from tests.safety.fuzz_codec import VALUES, VECTORS

HUB_KEY: Final = keys.SigningKey(b"h" * 32)
DEVICE_KEY: Final = keys.SigningKey(b"d" * 32)
OTHER_KEY: Final = keys.SigningKey(b"o" * 32)
HUB_NONCE: Final = b"\xb2" * 32
TERMINAL_NONCE: Final = b"\xa1" * 32
NAMES: Final = frozenset({"hub.example:443"})
DEVICE: Final = DeviceInfo(model="Test PC", os_type="linux")
KNOWN: Final = Terminal(
    terminal_id="t-1", account_id="a-1", account_name="ada", name="PC", device_key=DEVICE_KEY.public,
    device=DEVICE, address="", connection=1, receives=False, last_seen_at=0.0,
)  # fmt: skip
MESSAGES_SAID: Final = 40
BEFORE_LOGIN: Final = (messages.Challenge, messages.Pairing, messages.Error)


def prepare() -> None:
    """Remember signatures: they are most of an execution, and what they are depends on nothing but what is signed."""
    public = keys.SigningKey.public.fget  # type: ignore[attr-defined]
    setattr(keys.SigningKey, "public", property(functools.lru_cache(64)(public)))  # noqa: B010
    setattr(keys.SigningKey, "sign", functools.lru_cache(4_096)(keys.SigningKey.sign))  # noqa: B010
    setattr(keys, "verifies", functools.lru_cache(4_096)(keys.verifies))  # noqa: B010


class Script:
    """The input, read byte by byte; 0 once it has ended."""

    def __init__(self, data: bytes) -> None:
        self._bytes = deque(data)

    def next(self) -> int:
        """The next byte."""
        return self._bytes.popleft() if self._bytes else 0

    def take(self, count: int) -> bytes:
        """The next bytes, fewer at the end."""
        return bytes(self._bytes.popleft() for _ in range(min(count, len(self._bytes))))


def openings() -> list[terminal_side.Enrolling | terminal_side.LoggingIn]:
    """How a terminal may open: in each way that is right; with another's key or password; at a hub it does not know."""
    host, port = "hub.example", 443

    def enrols(account: str, password: str, **proof: Any) -> terminal_side.Enrolling:
        return terminal_side.Enrolling(account, password, "PC", DEVICE, DEVICE_KEY, bytes(32), host, port, **proof)

    def logs_in(hub_key: bytes, key: keys.SigningKey) -> terminal_side.LoggingIn:
        return terminal_side.LoggingIn("t-1", hub_key, DEVICE, key, True, host, port)

    return [
        enrols("ada", "right"),
        logs_in(HUB_KEY.public, DEVICE_KEY),
        enrols("", "", join_key="lsk-right"),
        enrols("", "", token=b"right"),
        enrols("", "", pair=True),
        logs_in(HUB_KEY.public, OTHER_KEY),
        logs_in(OTHER_KEY.public, DEVICE_KEY),
        enrols("ada", "wrong"),
        enrols("", "", pair=True, hub_fingerprint=keys.fingerprint(OTHER_KEY.public)),
    ]


OPENINGS: Final = openings()
GOES_THROUGH: Final = range(5)  # where nothing is changed


class Opening:
    """Both sessions, and what lies between them."""

    def __init__(self, data: bytes) -> None:
        self.script = Script(data)
        self.chosen = self.script.next() % len(OPENINGS)
        self.hub = hub_side.Session(HUB_KEY, NAMES, 0.0)
        self.hub._hub_nonce = HUB_NONCE
        self.terminal = terminal_side.Session(OPENINGS[self.chosen], TERMINAL_NONCE)
        self.now = 0.0
        self.to_hub: deque[bytes] = deque()
        self.to_terminal: deque[bytes] = deque()
        self.hub_closed = False
        self.terminal_ended = False
        self.changed = False
        self.waits_for_approval = False
        self.approved = False
        self.heard_by_hub: list[Message] = []

    def run(self) -> None:
        """Let them talk until nothing is said any more."""
        self.terminal_hears(terminal_side.Connected())
        for _ in range(MESSAGES_SAID):
            if self.to_hub:
                for data in self.altered(self.to_hub.popleft(), from_terminal=True):
                    self.hub_hears(data)
            elif self.to_terminal:
                for data in self.altered(self.to_terminal.popleft(), from_terminal=False):
                    self.terminal_hears_bytes(data)
            elif self.waits_for_approval:
                self.decide()
            else:
                break
        if not self.changed and self.chosen in GOES_THROUGH:
            assert self.hub.is_open and self.terminal.open and not self.hub_closed

    # --- what is done to a message --------------------------------------------------------------------------------

    def altered(self, data: bytes, *, from_terminal: bool) -> list[bytes]:
        """The bytes that arrive where `data` was sent."""
        act = self.script.next() % 24
        if act < 8:
            return [data]
        self.changed = True
        match act:
            case 8 | 9 | 10:
                return [self.with_field(data, sign_again=False)]
            case 11 | 12 | 13 | 14:
                return [self.with_field(data, sign_again=from_terminal)]
            case 15:
                return []
            case 16:
                return [data, data]
            case 17:
                return [self.with_bytes_flipped(data)]
            case 18:
                return [data[: self.script.next()]]
            case 19 | 20:
                return [EXAMPLES[self.script.next() % len(EXAMPLES)], data]
            case 21:
                self.time_passes(float(self.script.next()) / 8)
                return [data]
            case 22:
                return [self.script.take(self.script.next()), data]
            case _:
                self.hub_event(self.script.next())
                return [data]

    def with_field(self, data: bytes, *, sign_again: bool) -> bytes:
        """The message with one field replaced or left out, and, as a terminal that lies may do, signed after that."""
        fields = msgpack.unpackb(data)
        name = sorted(fields)[self.script.next() % len(fields)]
        which = self.script.next()
        if which == len(FIELD_VALUES):
            del fields[name]
        else:
            fields[name] = FIELD_VALUES[which % len(FIELD_VALUES)]
        if sign_again:
            self.sign(fields)
        try:
            changed: bytes = msgpack.packb(fields)
        except ValueError:  # a container in itself
            return data
        return changed

    def sign(self, fields: dict[str, Any]) -> None:
        """Sign what is said now, by this device's key, as far as it is still a proof."""
        try:
            proof = codec.decode(msgpack.packb(fields))
        except (ProtocolError, ValueError):
            return
        signed = self.signed_by(proof)
        if signed is not None:
            fields["signature"] = DEVICE_KEY.sign(signed)

    def signed_by(self, proof: Message) -> bytes | None:
        """What the signature of a proof is over, at a hub that has heard what this one has."""
        hello = next((one for one in self.heard_by_hub if isinstance(one, messages.Hello)), None)
        nonce = hello.nonce if hello else TERMINAL_NONCE
        common = {"terminal_nonce": nonce, "hub_nonce": HUB_NONCE, "hub_key": HUB_KEY.public}
        if isinstance(proof, messages.Login):
            return keys.login_bytes(**common, terminal=proof.terminal, host=proof.host, port=proof.port)
        if isinstance(proof, messages.Enrol):
            return keys.enrol_bytes(
                **common, account=proof.account, sealing_key=proof.sealing_key, host=proof.host, port=proof.port
            )
        return None

    def with_bytes_flipped(self, data: bytes) -> bytes:
        """Some bits of some bytes changed."""
        changed = bytearray(data)
        for _ in range(1 + self.script.next() % 4):
            changed[(self.script.next() << 8 | self.script.next()) % len(changed)] ^= self.script.next()
        return bytes(changed)

    def time_passes(self, seconds: float) -> None:
        """The clock goes on; the hub's session is told when its deadline has come."""
        self.now += seconds
        deadline = self.hub.deadline
        if deadline is not None and deadline <= self.now:
            self.hub_does(hub_side.Ticked())

    def hub_event(self, which: int) -> None:
        """Something else happens at the hub while the terminal opens."""
        events = (hub_side.Owing(), hub_side.Changed(), hub_side.Replaced(), hub_side.Stopping(), hub_side.Ticked())
        self.hub_does(events[which % len(events)])

    # --- the hub --------------------------------------------------------------------------------------------------

    def hub_hears(self, data: bytes) -> None:
        """As `TerminalSocket` reads: a message, or that it is none."""
        if self.hub_closed:
            return
        limit = limits.MESSAGE_BYTES if self.hub.is_open else limits.MESSAGE_BEFORE_LOGIN_BYTES
        try:
            message = codec.decode(data, limit_bytes=limit)
        except ProtocolError as error:
            self.hub_does(hub_side.Broken(error.code, error.message))
            return
        self.heard_by_hub.append(message)
        self.hub_does(hub_side.Received(message))

    def hub_does(self, event: hub_side.Event) -> None:
        """Handle one event and all that comes of it."""
        events = deque([event])
        while events:
            was_closed = self.hub_closed
            for action in self.hub.handle(events.popleft(), self.now):
                assert not was_closed, "after its Close a session does nothing"
                result = self.perform(action)
                if result is not None:
                    events.append(result)

    def perform(self, action: hub_side.Action) -> hub_side.Event | None:
        """What the hub's rooms would bring back, for one account with one terminal."""
        match action:
            case hub_side.Send(message):
                assert self.hub.is_open or isinstance(message, BEFORE_LOGIN), "a stranger is told nothing"
                self.to_terminal.append(codec.encode(message))
            case hub_side.Close():
                self.hub_closed = True
                assert self.hub.handle(hub_side.Ticked(), self.now + 1e9) == []
            case hub_side.FindTerminal(terminal):
                return hub_side.TerminalFound(KNOWN if terminal == KNOWN.terminal_id else None)
            case hub_side.Enrol(request):
                return self.enrol(request)
            case hub_side.Admit(terminal):
                self.check_let_in()
                return hub_side.Admitted(terminal)
            case hub_side.ReadStanding():
                standing = messages.Standing(may_receive=True, may_initiate=True)
                return hub_side.StandingRead(StandingFound(standing=standing))
            case hub_side.SaveInventory():
                return hub_side.InventorySaved()
            case hub_side.Claim():
                return hub_side.Claimed(None)
        return None

    def enrol(self, request: messages.Enrol) -> hub_side.Event:
        """As the hub's account rooms: a right proof of one kind, or a code to be approved."""
        self.check_signed(request)
        if request.pair:
            self.waits_for_approval = True
            return hub_side.PairingBegun("KTWRBNHC", limits.PAIRING_SECONDS)
        if not is_right(request):
            return hub_side.Failed("not-authorised", "The account or the password is wrong.", "")
        return hub_side.TerminalFound(msgspec.structs.replace(KNOWN, device_key=request.device_key))

    def decide(self) -> None:
        """Somebody approves the code, or turns the device away."""
        self.waits_for_approval = False
        outcomes: tuple[Terminal | str, ...] = (KNOWN, "pairing-denied", "pairing-expired", "replaced")
        chosen = self.script.next() % len(outcomes)
        self.changed |= chosen > 0
        self.approved = chosen == 0
        self.hub_does(hub_side.PairingDecided(outcomes[chosen]))

    def check_let_in(self) -> None:
        """Nobody gets so far whose proof, as the hub heard it, does not hold."""
        proof = next(one for one in reversed(self.heard_by_hub) if isinstance(one, PROOFS))
        assert isinstance(proof, PROOFS)
        self.check_signed(proof)
        if isinstance(proof, messages.Enrol):
            assert self.approved if proof.pair else is_right(proof)

    def check_signed(self, proof: messages.Enrol | messages.Login) -> None:
        """The proof is for this hub, and signed by the key that it is about."""
        signed = self.signed_by(proof)
        assert signed is not None and f"{proof.host.lower()}:{proof.port}" in NAMES
        key = proof.device_key if isinstance(proof, messages.Enrol) else KNOWN.device_key
        assert keys.verifies(key, proof.signature, signed), "somebody is let in whose signature does not hold"

    # --- the terminal ---------------------------------------------------------------------------------------------

    def terminal_hears_bytes(self, data: bytes) -> None:
        """As `Link` reads: what is no message ends the connection."""
        try:
            message = codec.decode(data)
        except ProtocolError:
            self.terminal_ended = True
            return
        self.terminal_hears(terminal_side.Heard(message))

    def terminal_hears(self, event: terminal_side.Event) -> None:
        """Handle one event; a hub that cannot prove what it is ends it."""
        if self.terminal_ended:
            return
        try:
            actions = self.terminal.handle(event, self.now)
        except (ProtocolError, RefusedError) as error:
            assert error.code and error.message
            self.terminal_ended = True
            return
        for action in actions:
            match action:
                case terminal_side.Say(message):
                    self.to_hub.append(codec.encode(message))
                case terminal_side.Welcomed(_, hub_key):
                    pinned = OPENINGS[self.chosen].hub_key
                    assert hub_key == (pinned or hub_key) and self.terminal.open
                    assert hub_key in (HUB_KEY.public, OTHER_KEY.public), "only these can sign"


PROOFS: Final = (messages.Enrol, messages.Login)


def is_right(request: messages.Enrol) -> bool:
    """Whether the one proof that an enrolment brings is right."""
    proofs = (request.account, request.password), request.join_key, request.token
    return proofs in ((("ada", "right"), "", b""), (("", ""), "lsk-right", b""), (("", ""), "", b"right"))


def examples() -> list[bytes]:
    """Every message of the test vectors."""
    vectors = json.loads(VECTORS.read_text(encoding="utf-8"))
    return [bytes.fromhex(one["hex"]) for one in (*vectors["messages"], *vectors["refused"])]


EXAMPLES: Final = examples()
FIELD_VALUES: Final[tuple[Any, ...]] = (
    "hello", "enrol", "login", "welcome", "error", "t-1", "t-2", "ada", "eve", "right", "HUB.example", "hub.example",
    443, 444, "lsk-right", b"right", "KTWRBNHC", HUB_NONCE, TERMINAL_NONCE,
    HUB_KEY.public, DEVICE_KEY.public, OTHER_KEY.public,
    b"\x01" + bytes(31), b"\xff" * 32, b"\xff" * 64, hashlib.sha256(b"").digest(), ["lockstep.v1"], ["lockstep.v2"],
    {"model": "PC", "os_type": "linux"}, *VALUES,
)  # fmt: skip
assert len(FIELD_VALUES) < 256


def feed(data: bytes) -> None:
    """Run one input."""
    Opening(data).run()


def seeds() -> list[bytes]:
    """Each opening untouched, each act on each of its first messages, and every example said at each step."""
    untouched = [bytes([number]) for number in range(len(OPENINGS))]
    acts = [
        bytes([opening, *([0] * step), act, 3, 5])
        for opening in range(len(OPENINGS)) for step in range(4) for act in range(8, 24)
    ]  # fmt: skip
    said = [bytes([1, *([0] * step), 19, number]) for step in (0, 2, 4) for number in range(len(EXAMPLES))]
    return untouched + acts + said


def mutate_with(mutate_bytes: Callable[[bytes, int], bytes]) -> Callable[[bytes, int, int], bytes]:
    """Return a mutator: half of the time the bytes of the script change, half of the time one act is put in."""

    def mutate(data: bytes, longest: int, seed: int) -> bytes:
        chance = random.Random(seed)
        if chance.random() < 0.5:
            return mutate_bytes(data, longest)
        at = chance.randrange(len(data) + 1)
        act = bytes([chance.randrange(24), chance.randrange(256), chance.randrange(256)])
        return (data[:at] + act + data[at:])[:longest]

    return mutate
