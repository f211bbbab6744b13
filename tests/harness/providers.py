"""An identity provider for tests: a real HTTP server on this machine, real keys, and tokens signed with them."""

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

from joserfc import jws
from joserfc.jwk import ECKey, OKPKey, RSAKey

from hub.oidc import _Registry

AUDIENCE: Final = "lockstep"
NOW: Final = 1_800_000_000
ALGORITHMS: Final = ("RS256", "ES256", "EdDSA", "Ed25519")
RSA: Final = RSAKey.generate_key(2048, {"kid": "rsa"}, private=True)
EC: Final = ECKey.generate_key("P-256", {"kid": "ec"}, private=True)
OKP: Final = OKPKey.generate_key("Ed25519", {"kid": "okp"}, private=True)
KEYS: Final = {"RS256": RSA, "ES256": EC, "EdDSA": OKP, "Ed25519": OKP}


class Server:
    """An identity provider that listens on this machine; `answer` is bytes, or None to say nothing at all."""

    def __init__(self) -> None:
        self.url = ""
        self.asked: list[str] = []
        self.status = "200 OK"
        self.headers = ""
        self.answer: bytes | None = None
        self.configuration: dict[str, Any] = {}
        self.silence = asyncio.Event()
        self.answering: set[asyncio.Task[None]] = set()

    def publish(self, *public: Any) -> None:
        """Have these keys, with their private parts left out, and what else is given as it is."""
        listed = [key if isinstance(key, dict) else key.as_dict(private=False) for key in public]
        self.answer = json.dumps({"keys": listed}).encode()

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request."""
        task = asyncio.current_task()
        assert task is not None
        self.answering.add(task)
        try:
            path = (await reader.readuntil(b"\r\n")).split()[1].decode()
            self.asked.append(path)
            body = json.dumps(self.configuration).encode() if path.startswith("/.well-known") else self.answer
            if body is None:
                await self.silence.wait()
                return
            head = f"HTTP/1.1 {self.status}\r\nContent-Length: {len(body)}\r\n{self.headers}Connection: close\r\n\r\n"
            writer.write(head.encode() + body)
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass  # the one who asked had enough
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


@asynccontextmanager
async def serving_provider(context: ssl.SSLContext | None = None) -> AsyncIterator[Server]:
    """Run a provider with one key of each kind until the block is left; with TLS where a context is given."""
    server = Server()
    listening = await asyncio.start_server(server.handle, "127.0.0.1", 0, ssl=context)
    scheme = "http" if context is None else "https"
    server.url = f"{scheme}://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    server.configuration = {"issuer": server.url, "jwks_uri": f"{server.url}/keys"}
    server.publish(RSA, EC, OKP)
    try:
        yield server
    finally:
        server.silence.set()
        listening.close()
        await listening.wait_closed()
        await asyncio.gather(*server.answering)


def token(
    server: Server,
    *,
    algorithm: str = "RS256",
    key: Any = None,
    header: dict[str, Any] | None = None,
    now: int = NOW,
    **claims: Any,
) -> bytes:
    """Return a right token, but for what is given; a claim that is None is left out."""
    key = key or KEYS[algorithm]
    all_claims = {"iss": server.url, "aud": AUDIENCE, "sub": "1234", "exp": now + 300, "iat": now} | claims
    said = {name: value for name, value in all_claims.items() if value is not None}
    return _signed({"alg": algorithm, "kid": key.kid} | (header or {}), json.dumps(said).encode(), key)


def _signed(header: dict[str, Any], payload: bytes, key: Any) -> bytes:
    said = {name: value for name, value in header.items() if value is not None}
    registry = _Registry(strict_check_header=False) if header["alg"] in ALGORITHMS else None
    return jws.serialize_compact(said, payload, key, algorithms=[header["alg"]], registry=registry).encode()
