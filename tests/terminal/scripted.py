"""A scripted hub for the terminal's tests: objects, offers, and a hub that says what the test tells it to."""

import asyncio
import hashlib
import io
import random
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from websockets.asyncio.server import ServerConnection, serve
from websockets.typing import Subprotocol

from protocol import chunks, codec, keys, messages
from protocol.device import DeviceInfo
from protocol.messages import AnyMessage, Message
from protocol.transfer import PageDue, Sender
from terminal.installers import InstallResult, InstallTask

HUB_KEY = keys.SigningKey(b"h" * 32)
DEVICE_KEY = keys.SigningKey(b"d" * 32)
DEVICE = DeviceInfo(model="Test TV", os_type="linux")
WELCOME = messages.Welcome(
    terminal="t-1", name="TV", account="ada", connection=1, message_bytes=524_288, frame_bytes=262_144
)
Expected = TypeVar("Expected", bound=Message)


@dataclass(frozen=True, slots=True)
class Thing:
    """An installer as a hub holds it: its bytes, its manifest and its pack."""

    content: bytes
    manifest: chunks.Manifest
    pack: bytes

    @property
    def digest(self) -> bytes:
        return hashlib.sha256(self.content).digest()

    def offer(self, delivery: str = "d-1", version: str = "1.0", digest: bytes = b"") -> messages.Offer:
        return messages.Offer(
            delivery=delivery,
            object=digest or self.digest,
            size=self.manifest.size,
            chunks=self.manifest.count,
            stored_size=self.manifest.stored_size,
            pages=self.manifest.page_count,
            manifest=self.manifest.digest,
            chunking=chunks.chunking_for(self.manifest.size),
            installer=messages.InstallerOffer(
                program="hello",
                package_name="hello",
                version=version,
                installer_kind="deb",
                file_name="hello_1.0_all.deb",
            ),
        )

    def rules(self, delivery: str = "rules-1") -> messages.Rules:
        offer = self.offer()
        return messages.Rules(
            delivery=delivery,
            object=offer.object,
            size=offer.size,
            chunks=offer.chunks,
            stored_size=offer.stored_size,
            pages=offer.pages,
            manifest=offer.manifest,
            chunking=offer.chunking,
        )

    def page(self, index: int = 0, digest: bytes = b"") -> messages.ManifestPage:
        return messages.ManifestPage(object=digest or self.digest, page=index, entries=self.manifest.page(index))

    def frame(self, run: messages.Run, digest: bytes = b"") -> messages.Chunks:
        offsets = self.manifest.stored_offsets
        data = self.pack[offsets[run.first] : offsets[run.first + run.count]]
        return messages.Chunks(object=digest or self.digest, first=run.first, count=run.count, data=data)


def thing(size: int = 700_000, seed: int = 1) -> Thing:
    content = random.Random(seed).randbytes(size)
    return thing_of(content)


def thing_of(content: bytes) -> Thing:
    packed = list(chunks.pack(io.BytesIO(content), chunks.chunking_for(len(content))))
    return Thing(content, chunks.Manifest.of(entry for entry, _ in packed), b"".join(stored for _, stored in packed))


def challenge_for(hello: messages.Hello, key: keys.SigningKey = HUB_KEY) -> messages.Challenge:
    nonce = b"n" * 32
    signed = keys.challenge_bytes(terminal_nonce=hello.nonce, hub_nonce=nonce, hub_key=key.public)
    return messages.Challenge(version="lockstep.v1", nonce=nonce, hub_key=key.public, signature=key.sign(signed))


class NoteTaker:
    """A runner that writes down what it was asked to install and says what it is told to."""

    def __init__(self, *, ok: bool = True, version: str | None = None) -> None:
        self.installed: list[bytes] = []
        self.tasks: list[InstallTask] = []
        self._ok = ok
        self._version = version

    async def install(self, task: InstallTask) -> InstallResult:
        self.tasks.append(task)
        self.installed.append(task.file.read_bytes())
        reason = "installed" if self._ok else "maintainer-scripts"
        return InstallResult(ok=self._ok, reason=reason, detail="", installed_version=task.version if self._ok else "")

    async def installed_version(self, package_name: str) -> str | None:
        return self._version


class Peer:
    """The hub's end of one socket."""

    def __init__(self, socket: ServerConnection) -> None:
        self.socket = socket

    async def say(self, *said: Message) -> None:
        for message in said:
            await self.socket.send(codec.encode(message))

    async def hear(self, expected: type[Expected]) -> Expected:
        message = codec.decode(await self.socket.recv(decode=False))
        assert isinstance(message, expected), message
        return message

    async def hear_any(self) -> AnyMessage:
        return codec.decode(await self.socket.recv(decode=False))

    async def challenge(self, key: keys.SigningKey = HUB_KEY) -> None:
        await self.say(challenge_for(await self.hear(messages.Hello), key))

    async def open(self, connection: int = 1) -> messages.Enrol | messages.Login:
        await self.challenge()
        proof = await self.hear_any()
        assert isinstance(proof, (messages.Enrol, messages.Login))
        await self.say(
            messages.Welcome(
                terminal="t-1",
                name="TV",
                account="ada",
                connection=connection,
                message_bytes=524_288,
                frame_bytes=262_144,
            )
        )
        return proof

    async def send_object(self, what: Thing, offer: messages.Offer) -> list[AnyMessage]:
        """Serve a whole delivery; return what came that is no `want` and no `progress`, up to the final state."""
        sender = Sender(what.manifest)
        await self.say(offer)
        heard: list[AnyMessage] = []
        while not (heard and isinstance(heard[-1], messages.State) and heard[-1].state in ("done", "failed")):
            while (due := sender.next(0.0)) is not None:
                page = what.page(due.page) if isinstance(due, PageDue) else what.frame(due)
                await self.say(page)
            match await self.hear_any():
                case messages.Want(runs=runs):
                    sender.want(runs)
                case messages.Progress(frames=frames):
                    sender.acknowledge(frames, 0.0)
                case other:
                    heard.append(other)
                    if isinstance(other, messages.State) and other.state == "installing":
                        await self.say(messages.Noted(of=offer.delivery, state="installing"))
        return heard


def certificate_in(folder: Path) -> Path:
    """Write a certificate for localhost that signs itself, with its key, and return the file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    file = folder / "hub.pem"
    file.write_bytes(secret + certificate.public_bytes(pem))
    return file


@asynccontextmanager
async def hub(*scripts: Callable[[Peer], Awaitable[None]], certificate: Path | None = None) -> AsyncIterator[str]:
    """Run a hub that follows the scripts, one a connection, and yield its URL. A script that fails fails the test."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER) if certificate else None
    if context and certificate:
        context.load_cert_chain(certificate)
    waiting = list(scripts)
    failures: list[BaseException] = []

    async def follow(socket: ServerConnection) -> None:
        try:
            await waiting.pop(0)(Peer(socket))
        except (AssertionError, IndexError, TypeError) as error:
            failures.append(error)
            raise

    server = await serve(
        follow,
        "127.0.0.1",
        0,
        subprotocols=[Subprotocol("lockstep.v1")],
        compression=None,
        ping_interval=None,
        close_timeout=1,
        ssl=context,
    )
    port = next(iter(server.sockets)).getsockname()[1]
    try:
        async with asyncio.timeout(20):
            yield f"wss://localhost:{port}" if context else f"ws://127.0.0.1:{port}"
    finally:
        server.close()
        await server.wait_closed()
    assert not failures, failures
