"""Agent: keeps a terminal connected and receiving, and lets other commands on this device speak through it."""

import asyncio
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from msgspec import structs

from protocol import limits, messages
from protocol.device import DeviceInfo, InstallerKind
from protocol.errors import BadFileError, LockstepError, RefusedError, UnavailableError, UsageError
from protocol.messages import AnyMessage, LocalRequest, Message, PostureNow, Request
from terminal.connection import Connection, address_of, connected, login_of
from terminal.dialling import show_url
from terminal.inbox import answer_alone
from terminal.installers import Runner
from terminal.installing import Installations, OnEvent
from terminal.localsocket import LocalSocket
from terminal.posture import Postures
from terminal.state import StateFolder, despite_full_disk

STEADY_SECONDS: Final = 60.0
LOOK_AGAIN_SECONDS: Final = 1.0
EARLY_DIAL_SECONDS: Final = 1.0  # at least so long between two dials that requests bring forward
INSTALLATION_SECONDS: Final = 10.0  # what runs is waited for so long when the agent is stopped


async def run_agent(
    folder: StateFolder,
    device: DeviceInfo,
    runners: Mapping[InstallerKind, Runner],
    *,
    on_event: OnEvent,
    stop: asyncio.Event,
    insecure_lan: bool = False,
    ca_file: Path | None = None,
) -> str:
    """Be the terminal of `folder` until `stop` is set; return "stopped", or "still-installing".

    An installation that runs then is waited for, 10 s at most; one that still runs is the caller's to leave running
    (end the process at once: the next start finds out how it ended) or to cancel with its task.

    `on_event(kind, sentence)` tells what happens; kinds are "connected", "reconnecting", "delivery", "asking",
    "withdrawn", "standing", "posture" and "damaged". A lost connection is made again; while the account is disabled it
    is tried once a minute or so. Raises, when what installs has ended, RefusedError when the hub will not have this
    terminal (`replaced`, `revoked`, `hub-key-changed`, ...), its disk has failed or another process holds the folder,
    NotLoggedInError before the first login, UsageError and BadFileError.
    """
    with folder.lock():
        for file in folder.set_aside_damaged():
            on_event("damaged", f"{file.stem} was damaged: it is now {file}, and this device goes on without it.")
        agent = Agent(folder, device, runners, on_event)
        agent.use(insecure_lan=insecure_lan, ca_file=ca_file)
        async with agent.local.serve():
            try:
                await agent.keep_connected(stop)
            except LockstepError as error:
                if await agent.outlast(error, stop):
                    raise
            finally:
                await agent.postures.stop()
                all_ended = await agent.installations.wait(INSTALLATION_SECONDS)
    return "stopped" if all_ended else "still-installing"


class Agent:
    """The terminal's one live connection, and the local clients that share it."""

    def __init__(
        self,
        folder: StateFolder,
        device: DeviceInfo,
        runners: Mapping[InstallerKind, Runner],
        on_event: OnEvent,
    ) -> None:
        self._folder = folder
        self._device = device
        self._on_event = on_event
        self._identity = folder.identity()
        self.installations = Installations(folder, runners, on_event)
        self.postures = Postures(folder, runners, on_event)
        self._connection: Connection | None = None  # while requests can be passed on
        self._why_away: LockstepError = UnavailableError("This terminal is not connected to its hub yet.")
        self._tried = asyncio.Event()  # how a dial ended is known; pulsed when it failed
        self._asking = 0  # requests that wait for that
        self._back_off: asyncio.Timeout | None = None  # while it may be cut short
        self._early_at = float("-inf")  # when the last dial was due that a request brought forward
        self._pace = folder.preferences().bytes_per_second
        self.local = LocalSocket(folder, self._welcome, self._ask, self._answer, self._stream)

    def use(self, *, insecure_lan: bool, ca_file: Path | None) -> None:
        """Dial as these say, where they say more than the login did."""
        self._identity = structs.replace(
            self._identity,
            insecure_lan=insecure_lan or self._identity.insecure_lan,
            ca_file=str(ca_file) if ca_file else self._identity.ca_file,
        )

    # --- the hub ------------------------------------------------------------------------------------------------------

    async def keep_connected(self, stop: asyncio.Event) -> None:
        """Stay connected until `stop`; back off between tries. Raises what trying again cannot mend."""
        try:
            await self._keep_connected(stop)
        finally:
            self._tried.set()  # nobody dials any more

    async def _keep_connected(self, stop: asyncio.Event) -> None:
        loop = asyncio.get_running_loop()
        delays = back_off()
        while not stop.is_set():
            began_at = loop.time()
            self.installations.settle()
            error = await self._connect_once(stop)
            error = self.installations.take_error() or error
            if error is None:
                return
            if not _may_pass(error):
                raise error
            if loop.time() - began_at > STEADY_SECONDS:
                delays = back_off()
            await self._wait(wait_seconds(error, delays), error, stop)

    async def outlast(self, error: LockstepError, stop: asyncio.Event) -> bool:
        """Wait, before the process ends with `error`, for what installs: ending would kill it. Return whether it has.

        Each runner has its deadline; `stop` ends the wait too.
        """
        if not await self.installations.wait(LOOK_AGAIN_SECONDS):
            self._on_event("delivery", f"{error.message} This ends when what installs has ended.")
        while not (ended := await self.installations.wait(LOOK_AGAIN_SECONDS)) and not stop.is_set():
            pass
        return ended

    async def _connect_once(self, stop: asyncio.Event) -> LockstepError | None:
        """Hold a connection until it ends; return why, or None when `stop` ended it."""
        work = asyncio.create_task(self._hold(stop))
        stopped = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait((work, stopped), return_when=asyncio.FIRST_COMPLETED)
            if stop.is_set() and self._connection is None:
                work.cancel()
            await asyncio.wait((work,))
            return None if work.cancelled() else work.result()
        finally:
            for task in (work, stopped):
                task.cancel()
            await asyncio.wait((work, stopped))

    async def _hold(self, stop: asyncio.Event) -> LockstepError | None:
        try:
            address = address_of(self._identity)
            opening = login_of(self._identity, address, self._device, receives=True)
            async with connected(
                address,
                opening,
                self._folder,
                installations=self.installations,
                on_event=self._on_event,
                postures=self.postures,
            ) as connection:
                self._connection = connection
                self._tried.set()
                await self._until_ended(connection, stop)
                self._connection = None
                self._tried.clear()
                return None if stop.is_set() else connection.link.error
        except LockstepError as error:
            self._why_away = error
            self._tried.set()
            self._tried.clear()
            return error
        finally:
            self._connection = None

    async def _until_ended(self, connection: Connection, stop: asyncio.Event) -> None:
        connection.link.listen(self.local)
        self._remember(connection.welcome)
        self._on_event(
            "connected",
            f"Connected to {show_url(self._identity.url)} as {self._identity.name} ({self._identity.terminal}).",
        )
        waits = (asyncio.create_task(connection.link.ended()), asyncio.create_task(stop.wait()))
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waits:
                task.cancel()

    def _remember(self, welcome: messages.Welcome) -> None:
        self._identity = structs.replace(self._identity, name=welcome.name)
        renamed = structs.replace(self._folder.identity(), name=welcome.name)
        with despite_full_disk():  # both are copies, and without a connection nobody would hear of the full disk
            if renamed != self._folder.identity():
                self._folder.save_identity(renamed)
            if self._device != self._folder.device():
                self._folder.save_device(self._device)

    async def _wait(self, delay_seconds: float, error: LockstepError, stop: asyncio.Event) -> None:
        """Wait that long, or until a request brings the next dial forward; not when the hub said how long to wait."""
        self._why_away = error
        self._on_event("reconnecting", f"{error.message} Trying again in {delay_seconds:.1f} s.")
        is_told_when = isinstance(error, UnavailableError) and error.retry_after_seconds > 0
        if is_told_when:
            self._tried.set()  # requests fail at once
        try:
            async with asyncio.timeout(delay_seconds) as waiting:
                self._back_off = None if is_told_when else waiting
                if self._asking:
                    self._dial_soon()
                await stop.wait()
        except TimeoutError:
            pass
        finally:
            self._back_off = None
            self._tried.clear()

    def _dial_soon(self) -> None:
        """Bring the next dial forward to now, or to a second after the last one that was."""
        early_at = max(asyncio.get_running_loop().time(), self._early_at + EARLY_DIAL_SECONDS)
        due_at = self._back_off.when() if self._back_off is not None else None
        if self._back_off is not None and due_at is not None and early_at < due_at:
            self._back_off.reschedule(early_at)
            self._early_at = early_at

    async def _dialled(self) -> None:
        """Wait for how the dial under way ends, or the next one, which is brought forward: somebody asks."""
        self._asking += 1
        try:
            self._dial_soon()
            async with asyncio.timeout(EARLY_DIAL_SECONDS + limits.OPENING_SECONDS + limits.LOGIN_SECONDS):
                await self._tried.wait()
        except TimeoutError:
            pass
        finally:
            self._asking -= 1

    # --- local clients ------------------------------------------------------------------------------------------------

    def _welcome(self) -> messages.Welcome:
        return messages.Welcome(
            terminal=self._identity.terminal,
            name=self._identity.name,
            account=self._identity.account,
            connection=self._connection.welcome.connection if self._connection else 0,
            message_bytes=limits.MESSAGE_BYTES,
            frame_bytes=limits.FRAME_BYTES,
        )

    async def _answer(self, request: LocalRequest) -> AnyMessage:
        self._look_again()
        if isinstance(request, PostureNow):
            await self.postures.scan_now()
            return messages.Done(re=request.id)
        if self._connection is not None:
            return await self._connection.answer(request)
        return await answer_alone(self._folder, request, self.installations.is_under_way)

    def _look_again(self) -> None:
        """Act on preferences that were changed meanwhile; most are read when there is an offer."""
        pace = self._folder.preferences().bytes_per_second
        if self._connection is not None and pace != self._pace:
            self._connection.set_pace(pace)
        self._pace = pace

    async def _ask(self, request: Request) -> list[AnyMessage]:
        if self._connection is None:
            await self._dialled()
        if self._connection is None:
            raise self._why_not()
        return await self._connection.link.request(request)

    def _why_not(self) -> LockstepError:
        """Return why a request cannot be passed on: the hub's own refusal, or that it is away."""
        why = self._why_away
        if isinstance(why, RefusedError):  # a new one, or each who raises it would lengthen its traceback
            return type(why)(why.message, hint=why.hint, code=why.code)
        return UnavailableError(f"The hub is away: {why.message}")

    async def _stream(self, message: Message) -> None:
        if self._connection is None:
            raise self._why_not()
        await self._connection.link.stream(message)


def _may_pass(error: LockstepError) -> bool:
    """Return whether trying again may mend `error`; a full disk and a fault at the hub do not end an agent.

    Nor does an account that is disabled: its terminals are not at hand when it is enabled again.
    """
    passes = error.code in ("state-folder", "account-disabled", "rate-limited")
    return passes or not isinstance(error, (RefusedError, UsageError, BadFileError))


def back_off() -> Iterator[float]:
    """Yield how long to wait before each next try, in seconds: full jitter under a bound that doubles from 1 to 60."""
    bound_seconds = limits.RECONNECT_FIRST_SECONDS
    while True:
        yield random.uniform(0.0, bound_seconds)  # noqa: S311 - only spreads the load
        bound_seconds = min(bound_seconds * 2, limits.RECONNECT_LARGEST_SECONDS)


def wait_seconds(error: LockstepError, delays: Iterator[float]) -> float:
    """Return how long to wait after `error`; `delays` is the `back_off` of this run of failures.

    A hub that stops tells all its terminals at one moment, so they spread their return; one that is too busy for
    another login says how long to wait at least.
    """
    if error.code == "restarting":
        return random.uniform(0.0, limits.RESTART_SPREAD_SECONDS)  # noqa: S311 - only spreads the load
    if error.code == "account-disabled":
        return random.uniform(0.5, 1.0) * limits.RECONNECT_LARGEST_SECONDS  # noqa: S311 - only spreads the load
    least_seconds = error.retry_after_seconds if isinstance(error, UnavailableError) else 0.0
    return least_seconds + next(delays)
