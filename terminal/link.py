"""Link: requests, their answers, and unasked messages over one WebSocket; to the hub as well as to the local agent.

Two loops: the reader never waits for the writer, and the one writer takes from a bounded queue. Whoever stops reading
is cut: by the deadline around each send, or when the queue is full.
"""

import asyncio
import contextlib
import os
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Protocol

from msgspec import structs
from websockets.asyncio.connection import Connection as Socket
from websockets.exceptions import ConnectionClosed

from protocol import codec, limits, messages
from protocol.errors import (
    BadFileError,
    ConflictError,
    LockstepError,
    NotLoggedInError,
    ProtocolError,
    RefusedError,
    TransferError,
    UnavailableError,
    UnknownNameError,
    UsageError,
)
from protocol.messages import AnyMessage, LocalRequest, Message, Request

REQUEST_SECONDS: Final = 30.0
CLOSE_SECONDS: Final = 2.0
ANSWER_PAGES: Final = 256
_UNIX_PATH_BYTES: Final = 100  # sun_path holds 104 to 108, unix(7)

# Error codes of the hub -> class here; what is not listed is an UnknownNameError (`unknown-...`) or a LockstepError.
ERRORS: Final[dict[str, type[LockstepError]]] = {
    "not-logged-in": NotLoggedInError,
    "unknown-terminal": NotLoggedInError,
    "revoked": NotLoggedInError,
    "not-authorised": RefusedError,
    "not-allowed": RefusedError,
    "replaced": RefusedError,
    "denied": RefusedError,
    "posture-failed": RefusedError,
    "account-disabled": RefusedError,
    "pairing-denied": RefusedError,
    "pairing-expired": RefusedError,
    "infected": RefusedError,
    "in-use": RefusedError,
    "wrong-password": RefusedError,
    "wrong-hub-name": RefusedError,
    "bad-signature": RefusedError,
    "too-large": RefusedError,
    "disk-full": RefusedError,
    "store-full": RefusedError,
    "bad-file": BadFileError,
    "inspection-failed": BadFileError,
    "already-logged-in": ConflictError,
    "account-full": RefusedError,
    "equal-selector": ConflictError,
    "alias-taken": ConflictError,
    "retired": ConflictError,
    "bad-name": UsageError,
    "bad-transfer": TransferError,
    "wrong-digest": TransferError,
    "state-folder": RefusedError,
    "disk-failed": UnavailableError,  # the hub ends and is started again: no reason for a terminal to end too
    "rate-limited": RefusedError,
    "unavailable": UnavailableError,
    "busy": UnavailableError,
    "too-slow": UnavailableError,
    "stopping": UnavailableError,
    "timeout": UnavailableError,
    "usage": UsageError,
    "conflict": ConflictError,
    "withdrawn": ConflictError,
    "too-late": ConflictError,
    "name-taken": ConflictError,
    "no-installer": UsageError,
    "no-target": UsageError,
    "protocol-violation": ProtocolError,
    "wrong-order": ProtocolError,
    "unknown-kind": ProtocolError,
    "bad-field": ProtocolError,
    "bad-msgpack": ProtocolError,
}

# Close codes -> class, error code, and why: RFC 6455 section 7.4.1, and 4000 to 4003 of `lockstep.v1`.
CLOSES: Final[dict[int, tuple[type[LockstepError], str, str]]] = {
    1008: (RefusedError, "not-authorised", "it refuses this terminal"),
    1009: (ProtocolError, "too-large", "a message was over its limit"),
    1012: (UnavailableError, "restarting", "it is stopping"),
    1013: (UnavailableError, "busy", "it is busy"),
    4000: (RefusedError, "replaced", "this terminal has logged in from somewhere else"),
    4001: (ProtocolError, "protocol-violation", "a message broke the protocol"),
    4002: (UnavailableError, "too-slow", "this terminal read too slowly"),
    4003: (NotLoggedInError, "revoked", "this terminal was revoked"),
}

# What to do next, where the hub or its close code does not say.
HINTS: Final[dict[str, str]] = {
    "replaced": "Stop the other one, or give it a state folder of its own.",
    "revoked": "If this device is to come back, `lockstep-terminal login URL ... --replace` enrols it with new keys.",
    "account-disabled": "Ask whoever runs the hub to enable it (`lockstep-hub account enable NAME`).",
}


def error_of(error: messages.Error) -> LockstepError:
    """Return the exception that stands for the hub's `error`, with its code, message and hint."""
    default = UnknownNameError if error.code.startswith("unknown-") else LockstepError
    error_class = ERRORS.get(error.code, default)
    if error.code == "unknown-terminal" and error.re:
        error_class = UnknownNameError  # a target, not the one who asks
    hint = error.hint or HINTS.get(error.code, "")
    if error_class is UnknownNameError:
        return UnknownNameError(error.message, near=error.near, hint=hint, code=error.code)
    return error_class(error.message, hint=hint, code=error.code)


def closing_error(closed: ConnectionClosed, peer: str) -> LockstepError:
    """Return why the connection to `peer` ended, in words."""
    frame = closed.rcvd
    if frame is None:
        return UnavailableError(f"The connection to {peer} was lost.")
    error_class, code, why = CLOSES.get(frame.code, (UnavailableError, "unavailable", "it is stopping"))
    if frame.code == 4003 and frame.reason == "account-disabled":  # the same for all terminals of the account
        error_class, code, why = RefusedError, frame.reason, "the account is disabled"
    reason = f" ({frame.reason})" if frame.reason and frame.reason != code else ""
    return error_class(f"{_begin(peer)} closed the connection: {why}{reason}.", hint=HINTS.get(code, ""), code=code)


class Listener(Protocol):
    """Takes the unasked messages of a link as they come; `put` returns at once, so the reader never waits."""

    def put(self, message: AnyMessage) -> None:
        """Take a message; later values replace earlier ones, or a bounded queue takes it."""

    def end(self, error: LockstepError) -> None:
        """No more messages come, because of `error`."""


class _Pending:
    """A request that waits for its answer."""

    def __init__(self) -> None:
        self.pages: list[AnyMessage] = []
        self.answered: asyncio.Future[list[AnyMessage]] = asyncio.get_running_loop().create_future()


class Link:
    """One WebSocket. `heard` gets each message (default: `deliver`); `ask` sends a request (default: `say`)."""

    def __init__(
        self,
        socket: Socket,
        peer: str,
        *,
        heard: Callable[[AnyMessage], None] | None = None,
        ask: Callable[[Message], None] | None = None,
    ) -> None:
        self.error: LockstepError | None = None
        self._listeners: set[Listener] = set()
        self.message_bytes = limits.MESSAGE_BYTES
        self._socket = socket
        self._peer = peer
        self._heard = heard or self.deliver
        self._ask = ask or self.say
        self._outbound: deque[Message] = deque()
        self._outbound_changed = asyncio.Event()
        self._drained = asyncio.Event()
        self._drained.set()
        self._pending: dict[int, _Pending] = {}
        self._room = asyncio.Semaphore(limits.REQUESTS_UNDER_WAY)
        self._last_id = 0
        self._ended: asyncio.Future[LockstepError] = asyncio.get_running_loop().create_future()

    def say(self, message: Message) -> None:
        """Queue `message`; the peer is cut off when it does not take what is queued."""
        if self.error is not None:
            return
        if len(self._outbound) >= limits.OUTBOUND_CONTROL_MESSAGES:
            self.fail(UnavailableError(f"{_begin(self._peer)} does not take what is sent to it.", code="too-slow"))
            return
        self._outbound.append(message)
        self._drained.clear()
        self._outbound_changed.set()

    async def stream(self, message: Message) -> None:
        """Send a part of an upload once nothing else waits, and return when the socket has taken it.

        So frames wait for what is said, and fill no queue. Raises why the connection ended.
        """
        await self._nothing_waits()
        self._ask(message)
        await self._nothing_waits()

    def tell(self, message: Message) -> None:
        """Say what nobody answers."""
        self._ask(message)

    async def _nothing_waits(self) -> None:
        while not self._drained.is_set():  # another may have been first
            await self._drained.wait()
        if self.error is not None:
            raise self.error

    async def request(
        self, request: Request | LocalRequest, *, within_seconds: float = REQUEST_SECONDS
    ) -> list[AnyMessage]:
        """Send `request` under a new id and return all pages of its answer.

        Raises UnavailableError when none comes in time, or the error the answer stands for.
        """
        try:
            async with asyncio.timeout(within_seconds), self._room:
                return await self._request(request)
        except TimeoutError:
            raise UnavailableError(
                f"{_begin(self._peer)} did not answer within {within_seconds:g} s.", code="timeout"
            ) from None

    def listen(self, listener: Listener) -> None:
        """Give `listener` the unasked messages from now on, until `leave` or the end of the connection."""
        if self.error is not None:
            listener.end(self.error)
        else:
            self._listeners.add(listener)

    def leave(self, listener: Listener) -> None:
        """Give `listener` no more messages."""
        self._listeners.discard(listener)

    def deliver(self, message: AnyMessage) -> None:
        """Hand an answer to the request it answers, and anything else to all listeners."""
        number = getattr(message, "re", 0)
        if number:
            self._answer(number, message)
            return
        for listener in tuple(self._listeners):
            listener.put(message)

    def fail(self, error: LockstepError) -> None:
        """End the connection because of `error`, at once; everyone who waits gets it. The first reason holds."""
        self._finish(error)
        self._abort()

    def _finish(self, error: LockstepError) -> None:
        if self.error is not None:
            return
        self.error = error
        self._ended.set_result(error)
        self._drained.set()
        for pending in self._pending.values():
            if not pending.answered.done():
                pending.answered.set_exception(error)
        for listener in self._listeners:
            listener.end(error)
        self._listeners.clear()

    async def ended(self) -> LockstepError:
        """Wait until the connection has ended and return why."""
        return await asyncio.shield(self._ended)

    async def run(self) -> None:
        """Read and write until the connection ends; `error` says why."""
        writer = asyncio.create_task(self._write())
        writer.add_done_callback(self._writer_ended)
        try:
            await self._read()
        except LockstepError as error:
            self._finish(error)
            await self._hang_up(error)
        finally:
            if self.error is None:
                self.fail(LockstepError(f"The connection to {self._peer} broke off."))
            writer.cancel()
            await asyncio.wait([writer])

    async def close(self) -> None:
        """Send what is queued, then close in good order, waiting at most 2 s for each."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._drained.wait()
        self._finish(UnavailableError(f"The connection to {self._peer} is closed.", code="closed"))
        await self._socket.close()  # websockets bounds this with its close_timeout

    async def _request(self, request: Request | LocalRequest) -> list[AnyMessage]:
        if self.error is not None:
            raise self.error
        self._last_id += 1
        number = self._last_id
        pending = self._pending[number] = _Pending()
        try:
            self._ask(structs.replace(request, id=number))
            return await pending.answered
        finally:
            del self._pending[number]
            if not pending.answered.cancel() and not pending.answered.cancelled():
                pending.answered.exception()  # seen, or nobody waits any more

    def _answer(self, number: int, message: AnyMessage) -> None:
        pending = self._pending.get(number)
        if pending is None or pending.answered.done():
            return  # nobody waits for it any more
        if isinstance(message, messages.Error):
            pending.answered.set_exception(error_of(message))
            return
        pending.pages.append(message)
        if _is_last(message):
            pending.answered.set_result(pending.pages)
        elif len(pending.pages) >= ANSWER_PAGES:
            pending.answered.set_exception(ProtocolError("An answer has more pages than any can have."))

    async def _read(self) -> None:
        try:
            async for data in self._socket:
                if self.error is not None:
                    return  # closed: what still lies in the buffer has nobody to act on it
                self._heard(codec.decode(data, limit_bytes=self.message_bytes))
            raise UnavailableError(f"{_begin(self._peer)} closed the connection: it is stopping.")
        except ConnectionClosed as closed:
            raise closing_error(closed, self._peer) from None

    async def _write(self) -> None:
        while True:
            while self._outbound:
                await self._send(self._outbound[0])
                self._outbound.popleft()
            self._drained.set()
            self._outbound_changed.clear()
            await self._outbound_changed.wait()

    def _writer_ended(self, writer: asyncio.Task[None]) -> None:
        error = None if writer.cancelled() else writer.exception()
        if error is not None:  # a fault of this program: nobody may wait for what will never be sent
            self.fail(LockstepError(f"A message could not be sent: {type(error).__name__}: {error}"))

    async def _send(self, message: Message) -> None:
        try:
            async with asyncio.timeout(limits.SEND_SECONDS):
                await self._socket.send(codec.encode(message))
        except TimeoutError:
            self.fail(
                UnavailableError(f"{_begin(self._peer)} took nothing for {limits.SEND_SECONDS:g} s.", code="too-slow")
            )
        except ConnectionClosed:
            await asyncio.Event().wait()  # the reader knows why and ends this task

    async def _hang_up(self, error: LockstepError) -> None:
        if isinstance(error, ProtocolError):
            await self._socket.close(4001, error.code)
        elif isinstance(error, RefusedError):
            await self._socket.close(1008, error.code)
        else:
            self._abort()

    def _abort(self) -> None:
        """Drop the TCP connection.

        A transport of asyncio (CPython 3.11, `selector_events.py`) that was closed with bytes still to send, and has
        sent them since, has let go of its loop and fails here; then there is nothing left to drop.
        """
        with contextlib.suppress(AttributeError):
            self._socket.transport.abort()


@contextmanager
def unix_path(path: Path) -> Iterator[str]:
    """Yield a name short enough for a Unix socket at `path`. Raises UsageError where there is no way to have one."""
    if len(os.fsencode(path)) <= _UNIX_PATH_BYTES:
        yield str(path)
        return
    if not Path("/proc/self/fd").is_dir():
        raise UsageError(
            f"The path {path} is too long for a local socket ({_UNIX_PATH_BYTES} bytes at most).",
            hint="Use a state folder with a shorter name.",
        )
    descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}/{path.name}"
    finally:
        os.close(descriptor)


def _begin(name: str) -> str:
    """Return `name` as it begins a sentence."""
    return name[:1].upper() + name[1:]


def _is_last(message: AnyMessage) -> bool:
    if isinstance(message, messages.Devices):
        return message.page + 1 >= message.pages
    if isinstance(message, (messages.ProgramsResult, messages.HistoryResult)):
        return True  # each page of these is asked for: `after`, `before`
    return not getattr(message, "more", False)
