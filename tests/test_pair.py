"""Hub session and terminal session face to face: no network, no clock, the real Sender and Receiver."""

import hashlib
import io
from collections import deque

import pytest
from msgspec import structs

from hub import session as hub_side
from hub.delivery import Delivery
from hub.objects import Pack
from hub.records import Owed, Terminal
from protocol import chunks, codec, keys, life, messages
from protocol.device import DeviceInfo
from protocol.errors import RefusedError
from protocol.messages import InstallerOffer, Message, Run, TargetRow
from protocol.transfer import Receiver
from terminal import session as terminal_side
from tests.terminal.scripted import thing

HUB_KEY = keys.SigningKey(b"h" * 32)
DEVICE_KEY = keys.SigningKey(b"d" * 32)
DEVICE = DeviceInfo(model="Test PC", os_type="linux")
INSTALLER = InstallerOffer(
    program="hello", package_name="hello", version="1.0", installer_kind="deb", file_name="h.deb"
)


class MemoryPack(Pack):
    """A pack that lies in memory."""

    def __init__(self, digest: bytes, content: bytes) -> None:
        packed = list(chunks.pack(io.BytesIO(content), chunks.chunking_for(len(content))))
        self.digest = digest
        self.manifest = chunks.Manifest.of(entry for entry, _ in packed)
        self.stored = b"".join(stored for _, stored in packed)

    def read(self, run: Run) -> bytes:
        offsets = self.manifest.stored_offsets
        return self.stored[offsets[run.first] : offsets[run.first + run.count]]


class Pair:
    """Both brains, every message through the codec, and performers that keep everything in memory."""

    def __init__(self, opening: terminal_side.Enrolling | terminal_side.LoggingIn, content: bytes = b"") -> None:
        self.hub = hub_side.Session(HUB_KEY, frozenset({"hub.example:443"}), 0.0)
        self.terminal = terminal_side.Session(opening, keys.new_nonce())
        self.known = Terminal(
            terminal_id="t-1", account_id="a-1", account_name="ada", name="PC", device_key=DEVICE_KEY.public,
            device=DEVICE, address="", connection=1, receives=False, last_seen_at=0.0,
        )  # fmt: skip
        self.content = content
        self.digest = hashlib.sha256(content).digest()
        self.state = life.State.QUEUED
        self.states: list[str] = []
        self.closed: hub_side.Close | None = None
        self.file = bytearray(len(content))
        self.installed: bytes | None = None
        self.answers: list[messages.State | None] = []  # of a person, to each next offer
        self.heard: list[Message] = []
        self._delivery: Delivery | None = None
        self._receiver: Receiver | None = None
        self._down: deque[bytes] = deque()

    def run(self) -> None:
        self._terminal(terminal_side.Connected())
        while self.closed is None:
            if not self._down and self._delivery is not None and (data := self._delivery.next_message(0.0)):
                self._down.append(data)
            if not self._down:
                return
            message = codec.decode(self._down.popleft())
            self.heard.append(message)
            self._terminal(terminal_side.Heard(message))

    def _hub(self, event: hub_side.Event) -> None:
        for action in self.hub.handle(event, 0.0):
            result = self._perform(action)
            if result is not None:
                self._hub(result)

    def _perform(self, action: hub_side.Action) -> hub_side.Event | None:
        match action:
            case hub_side.Send(message):
                self._down.append(codec.encode(message))
            case hub_side.Close():
                self.closed = action
            case hub_side.Enrol(request) if (request.account, request.password) != ("ada", "right"):
                return hub_side.Failed("not-authorised", "The account or the password is wrong.", "")
            case hub_side.Enrol() | hub_side.FindTerminal():
                return hub_side.TerminalFound(self.known)
            case hub_side.Admit(terminal, _, receives):
                return hub_side.Admitted(structs.replace(terminal, receives=receives))
            case _:
                return self._deliver(action)
        return None

    def _deliver(self, action: hub_side.Action) -> hub_side.Event | None:
        match action:
            case hub_side.SaveInventory():
                return hub_side.InventorySaved()
            case hub_side.Claim():
                return hub_side.Claimed(self._claim())
            case hub_side.StartTransfer(owed):
                self._delivery = Delivery(owed, MemoryPack(self.digest, self.content))
                self._down.append(codec.encode(self._delivery.offer()))
            case hub_side.FeedWant(want):
                assert self._delivery is not None
                self._delivery.want(want)
            case hub_side.FeedProgress(progress):
                assert self._delivery is not None
                self._delivery.progress(progress, 0.0)
            case hub_side.StopTransfer():
                self._delivery = None
            case hub_side.Report(state):
                return self._report(state)
        return None

    def _claim(self) -> Owed | None:
        if not self.content or self.state in life.FINAL:
            return None
        self.state = life.State.OFFERED
        row = TargetRow(terminal="t-1", name="PC", delivery="d-1", state="offered")
        return Owed(delivery="d-1", sync="s-1", initiator="t-2", digest=self.digest, installer=INSTALLER, row=row)

    def _report(self, said: messages.State) -> hub_side.Event:
        after = life.State(said.state)
        if after is not self.state:
            assert life.may_move(self.state, after, life.Mover.TERMINAL), (self.state, after)
            self.state = after
            self.states.append(said.state)
        return hub_side.Reported(said, "noted")

    def _terminal(self, event: terminal_side.Event) -> None:
        for action in self.terminal.handle(event, 0.0):
            self._do(action)

    def _do(self, action: terminal_side.Action) -> None:
        match action:
            case terminal_side.Say(message):
                self._hub(hub_side.Received(codec.decode(codec.encode(message))))
            case terminal_side.Consider(serial, _):
                self._terminal(terminal_side.Considered(serial, self.answers.pop(0) if self.answers else None))
            case terminal_side.Begin(_, offer):
                self._receiver = Receiver(offer)
            case terminal_side.AddPage(serial, page):
                assert self._receiver is not None
                self._terminal(terminal_side.PageAdded(serial, self._receiver.add_page(page)))
            case terminal_side.Prepare(serial):
                self._fetched(serial)
            case terminal_side.Write(serial, frame):
                assert self._receiver is not None
                offset, raw_chunks = self._receiver.accept(frame)
                raw = b"".join(raw_chunks)
                self.file[offset : offset + len(raw)] = raw
                self._fetched(serial)
            case terminal_side.Verify(serial):
                self._terminal(terminal_side.Verified(serial))
            case terminal_side.Install(_, offer):
                self.installed = bytes(self.file)
                done = messages.State(delivery=offer.delivery, state="done", version=offer.installer.version)
                self._terminal(terminal_side.InstallEnded(offer.delivery, done, None))

    def _fetched(self, serial: int) -> None:
        receiver = self._receiver
        assert receiver is not None
        self._terminal(
            terminal_side.Fetched(
                serial, receiver.frames, receiver.done_bytes, receiver.next_want(), complete=receiver.complete
            )
        )


def enrolling(password: str = "right") -> terminal_side.Enrolling:
    return terminal_side.Enrolling("ada", password, "PC", DEVICE, DEVICE_KEY, bytes(32), "hub.example", 443)


def logging_in(hub_key: bytes = HUB_KEY.public, key: keys.SigningKey = DEVICE_KEY) -> terminal_side.LoggingIn:
    return terminal_side.LoggingIn("t-1", hub_key, DEVICE, key, True, "hub.example", 443)


def test_a_device_enrols_with_the_right_password() -> None:
    pair = Pair(enrolling())
    pair.run()
    assert pair.terminal.open and pair.hub.is_open and pair.closed is None


def test_a_wrong_password_ends_the_connection_with_its_reason() -> None:
    pair = Pair(enrolling("wrong"))
    pair.run()
    assert pair.closed == hub_side.Close(1008, "not-authorised")
    assert not pair.terminal.open


def test_another_devices_key_does_not_log_in() -> None:
    pair = Pair(logging_in(key=keys.SigningKey(b"e" * 32)))
    pair.run()
    assert pair.closed == hub_side.Close(1008, "unknown-terminal")


def test_a_terminal_that_pinned_another_hub_key_says_nothing_of_itself() -> None:
    pair = Pair(logging_in(hub_key=b"k" * 32))
    with pytest.raises(RefusedError) as caught:
        pair.run()
    assert caught.value.code == "hub-key-changed"
    assert not pair.hub.is_open


@pytest.mark.parametrize("size", [1, 50_000, 3_000_000])
def test_a_delivery_goes_through_every_state_and_arrives_byte_for_byte(size: int) -> None:
    content = thing(size).content
    pair = Pair(logging_in(), content)
    pair.run()
    assert pair.installed == content
    assert pair.states == ["downloading", "verifying", "installing", "done"]
    noted = [message.state for message in pair.heard if isinstance(message, messages.Noted)]
    assert noted == ["verifying", "installing", "done"]
    assert pair.closed is None


@pytest.mark.parametrize(
    ("said", "states"),
    [
        (messages.State(delivery="d-1", state="asking"), ["asking"]),
        (messages.State(delivery="d-1", state="postponed", reason="quiet-hours", seconds=60), ["postponed"]),
        (messages.State(delivery="d-1", state="declined", reason="by-policy"), ["declined"]),
    ],
)
def test_a_device_that_does_not_take_an_offer_is_understood(said: messages.State, states: list[str]) -> None:
    pair = Pair(logging_in(), thing(50_000).content)
    pair.answers = [said]
    pair.run()
    assert (pair.states[:1], pair.installed, pair.closed) == (states, None, None)
