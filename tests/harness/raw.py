"""A terminal that speaks by hand: any message, or any bytes, at any time."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TypeVar

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from protocol import codec, keys, limits, messages
from protocol.device import DeviceInfo
from protocol.messages import AnyMessage, Message
from tests.harness.fleets import HasUrl
from tests.harness.hubs import PASSWORD

Expected = TypeVar("Expected", bound=Message)
DEVICE = DeviceInfo(
    model="Raw PC", form_factor="pc", os_type="linux", os_version="12", architectures=("x86_64",),
    installer_kinds=("deb", "wheel"),
)  # fmt: skip


class RawTerminal:
    """One raw WebSocket. `socket` is the library's own; `signing_key` and `terminal` may be set to those of another."""

    def __init__(self, socket: ClientConnection, host: str, port: int) -> None:
        self.socket = socket
        self.host = host
        self.port = port
        self.signing_key = keys.SigningKey.generate()
        self.sealing_key = keys.SealingKey.generate()
        self.terminal = ""
        self.nonce = keys.new_nonce()
        self.challenge: messages.Challenge | None = None

    async def say(self, *said: Message) -> None:
        """Send messages."""
        for message in said:
            await self.socket.send(codec.encode(message))

    async def send_bytes(self, data: bytes | str) -> None:
        """Send anything; text goes as a text message."""
        await self.socket.send(data)

    async def hear_any(self) -> AnyMessage:
        """Receive the next message. Raises websockets' ConnectionClosed."""
        return codec.decode(await self.socket.recv())

    async def hear(self, expected: type[Expected]) -> Expected:
        """Receive up to the next message of this class; what comes before it is passed over."""
        while True:
            message: object = await self.hear_any()
            if isinstance(message, expected):
                return message

    async def closed(self) -> tuple[int, str, list[AnyMessage]]:
        """Wait for the hub to close; return the code, the reason, and what it said before."""
        heard: list[AnyMessage] = []
        try:
            while True:
                heard.append(await self.hear_any())
        except ConnectionClosed as closed:
            frame = closed.rcvd
            return (frame.code, frame.reason, heard) if frame else (1006, "", heard)

    async def hello(self) -> messages.Challenge:
        """Begin; return the hub's challenge, its signature verified."""
        await self.say(messages.Hello(nonce=self.nonce, versions=("lockstep.v1",)))
        challenge = await self.hear(messages.Challenge)
        signed = keys.challenge_bytes(terminal_nonce=self.nonce, hub_nonce=challenge.nonce, hub_key=challenge.hub_key)
        assert keys.verifies(challenge.hub_key, challenge.signature, signed)
        self.challenge = challenge
        return challenge

    def enrol_message(
        self, account: str, *, password: str = PASSWORD, name: str = "Raw", device: DeviceInfo = DEVICE
    ) -> messages.Enrol:
        """Return a right `enrol` for the challenge that came."""
        assert self.challenge is not None
        sealing_key = self.sealing_key.public
        signed = keys.enrol_bytes(
            terminal_nonce=self.nonce, hub_nonce=self.challenge.nonce, hub_key=self.challenge.hub_key,
            account=account, sealing_key=sealing_key, host=self.host, port=self.port,
        )  # fmt: skip
        return messages.Enrol(
            account=account, password=password, name=name, device=device, device_key=self.signing_key.public,
            sealing_key=sealing_key, host=self.host, port=self.port, signature=self.signing_key.sign(signed),
        )  # fmt: skip

    def login_message(self, *, receives: bool = True, device: DeviceInfo = DEVICE) -> messages.Login:
        """Return a right `login` for the challenge that came."""
        assert self.challenge is not None
        signed = keys.login_bytes(
            terminal_nonce=self.nonce, hub_nonce=self.challenge.nonce, hub_key=self.challenge.hub_key,
            terminal=self.terminal, host=self.host, port=self.port,
        )  # fmt: skip
        return messages.Login(
            terminal=self.terminal, receives=receives, device=device, host=self.host, port=self.port,
            signature=self.signing_key.sign(signed),
        )  # fmt: skip

    async def enrol(self, account: str, *, password: str = PASSWORD, name: str = "Raw") -> messages.Welcome:
        """Say hello and enrol; the device list that follows the welcome is yet to be heard."""
        await self.hello()
        await self.say(self.enrol_message(account, password=password, name=name))
        welcome = await self.hear(messages.Welcome)
        self.terminal = welcome.terminal
        return welcome

    async def login(self, *, receives: bool = True, inventory: bool = True) -> messages.Welcome:
        """Say hello and log in as `terminal`; a receiving one sends an empty inventory, unless told not to."""
        await self.hello()
        await self.say(self.login_message(receives=receives))
        welcome = await self.hear(messages.Welcome)
        if receives and inventory:
            await self.say(messages.Inventory(programs=()))
        return welcome


@asynccontextmanager
async def raw_terminal(hub: HasUrl, *, like: RawTerminal | None = None) -> AsyncIterator[RawTerminal]:
    """Open a WebSocket to `hub`; nothing is said yet. `like` gives keys and terminal id, to log in as it."""
    host, _, port = hub.url.removeprefix("ws://").rpartition(":")
    async with connect(
        hub.url, subprotocols=[Subprotocol("lockstep.v1")], compression=None, max_size=limits.MESSAGE_BYTES,
        ping_interval=None, proxy=None, close_timeout=2,
    ) as socket:  # fmt: skip
        raw = RawTerminal(socket, host, int(port))
        if like is not None:
            raw.signing_key, raw.sealing_key, raw.terminal = like.signing_key, like.sealing_key, like.terminal
        yield raw
