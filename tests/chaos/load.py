"""A small load on a hub that may fail at any moment: each request is answered, refused in words, or silent.

What was acknowledged becomes a promise (`tests.chaos.powercut.Promised`); nothing else does.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

from websockets.exceptions import ConnectionClosed, WebSocketException

from protocol import life, messages
from protocol.errors import LockstepError
from terminal.client import Client, enrol, open_client
from terminal.state import Identity, StateFolder
from tests.chaos.powercut import Promised
from tests.harness.hubs import PASSWORD
from tests.harness.raw import DEVICE, RawTerminal, raw_terminal

T = TypeVar("T")
Ask = Callable[..., Awaitable[Any]]
SILENT_SECONDS: Final = 25.0


@dataclass
class Load:
    """One load: what was promised, and how the requests were answered ("answered", "refused", "silent")."""

    ask: Ask
    url: str
    folder: Path
    promised: Promised = field(default_factory=Promised)
    answers: Counter[str] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    async def run(self, name: str, files: tuple[Path, ...]) -> None:
        """Add an account, publish, enrol, ask for syncs, receive one; each step that fails ends what needs it."""
        added = await self._try("account add", self.ask("account add", name=name, password=PASSWORD))
        if added is not None:
            self.promised.accounts.add(name)
        programs = [program for file in files if (program := await self._publish(file))]
        folder = StateFolder(self.folder / name)
        identity = await self._try(
            "enrol", enrol(folder, self.url, account=name, password=PASSWORD, name="PC", device=DEVICE)
        )
        if identity is None:
            return
        self.promised.hub_keys.add(identity.hub_key)
        self.promised.terminals[identity.terminal] = 1
        await self._try("requests", self._requests(folder, identity, programs))
        await self._try("receiving", self._receive(identity))

    async def _try(self, what: str, work: Awaitable[T]) -> T | None:
        """Return what `work` brings, or None when it is refused in words; silence is a fault."""
        try:
            async with asyncio.timeout(SILENT_SECONDS):
                result = await work
        except LockstepError as error:
            self.answers["refused"] += 1
            self.refusals[f"{what}: {error.code}"] += 1
            if not error.message.strip():
                self.faults.append(f"{what} was refused without a word")
        except ConnectionClosed as closed:
            self.answers["refused"] += 1
            self.refusals[f"{what}: closed {closed.rcvd.code if closed.rcvd else 'without a word'}"] += 1
        except (WebSocketException, OSError) as error:
            self.answers["refused"] += 1
            self.refusals[f"{what}: {type(error).__name__}"] += 1
        except TimeoutError:
            self.answers["silent"] += 1
            self.faults.append(f"{what} was not answered within {SILENT_SECONDS:g} s")
        else:
            self.answers["answered"] += 1
            return result
        return None

    async def _publish(self, file: Path) -> str:
        row = await self._try("publish", self.ask("publish", file=str(file), options={}))
        if row is None:
            return ""
        self.promised.published.add(row["digest"])
        return str(row["program"])

    async def _requests(self, folder: StateFolder, identity: Identity, programs: list[str]) -> None:
        async with open_client(folder) as client:
            self.promised.terminals[identity.terminal] += 1
            for program in programs:
                await self._try("sync", self._sync(client, program, identity.terminal))
            await self._try("rename", client.rename("Renamed"))

    async def _sync(self, client: Client, program: str, target: str) -> None:
        watch = await client.sync(program, targets=(target,))
        self.promised.syncs[watch.sync] = target
        self.promised.deliveries[watch.sync] = {row.delivery for row in watch.targets.values()}

    async def _receive(self, identity: Identity) -> None:
        """Log in as the terminal and say of each delivery that is offered that it is done, until none comes."""
        async with raw_terminal(self) as raw:
            _become(raw, identity)
            async with asyncio.timeout(SILENT_SECONDS):
                await raw.login()
            self.promised.terminals[identity.terminal] += 1
            for _ in self.promised.deliveries:
                async with asyncio.timeout(SILENT_SECONDS):
                    offer = await raw.hear(messages.Offer)
                    version = offer.installer.version
                    await raw.say(messages.State(delivery=offer.delivery, state=life.State.DONE, version=version))
                    while (noted := await raw.hear(messages.Noted)).of != offer.delivery:
                        pass
                self.promised.noted.add(noted.of)


def _become(raw: RawTerminal, identity: Identity) -> None:
    from protocol.keys import SigningKey

    raw.terminal, raw.signing_key = identity.terminal, SigningKey(identity.device_seed)
