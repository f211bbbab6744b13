"""A WebSocket that takes what it hears in slices, so that no peer holds up the others or fills the memory.

The library parses all that one read has brought before anybody else runs: 256 KiB may be 40,000 of the smallest
frames, which took a third of a second, and all of them are queued. It answers each ping at once, into a buffer without
a bound where the peer reads nothing. So here a read is fed to it slice by slice while its queue has room, a moment at
a time, and the transport reads no more meanwhile; and who lets answers pile up, or says too much before it has logged
in, is cut.
"""

import asyncio
import logging
from collections import deque
from typing import Any, Final

from websockets.asyncio.server import ServerConnection
from websockets.protocol import State

from protocol import limits

log: Final = logging.getLogger("lockstep.hub")

SLICE_BYTES: Final = 1_024
SLICES_SECONDS: Final = 0.002  # how long slices are fed before others run
# Beside the one message a socket has under way: answers to pings, and the close.
UNREAD_ANSWERS_BYTES: Final = limits.MESSAGE_BYTES + 64 * limits.KIB


class PacedConnection(ServerConnection):
    """A websockets connection for one peer among many. `has_logged_in` lifts the limit on what a stranger may say."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.has_logged_in = False
        self._heard_bytes = 0
        self._waiting: deque[bytes] = deque()
        self._feeding: asyncio.Handle | None = None
        self._is_paused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The transport is there: the library's queue pauses the slices, and these the transport."""
        super().connection_made(transport)
        self.recv_messages.pause = lambda: None  # `_feed` looks after every slice
        self.recv_messages.resume = self._go_on

    def data_received(self, data: bytes) -> None:
        """Take bytes from the transport."""
        self._waiting.extend(data[at : at + SLICE_BYTES] for at in range(0, len(data), SLICE_BYTES))
        if self._feeding is None:
            self._feed()

    def eof_received(self) -> None:
        """The peer says nothing more; what it said and nobody has looked at yet counts as not said."""
        self._waiting.clear()
        super().eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        """The transport is closed."""
        self._waiting.clear()
        super().connection_lost(exc)
        self.recv_messages.resume = lambda: (
            None
        )  # or it would lead back here, and stay until somebody looks for circles

    def _go_on(self) -> None:
        """The library's queue has room again."""
        if self._feeding is None:
            self._feeding = self.loop.call_soon(self._feed)

    def _feed(self) -> None:
        self._feeding = None
        ends_at = self.loop.time() + SLICES_SECONDS
        while self._waiting and not self.recv_messages.paused:
            piece = self._waiting.popleft()
            self._heard_bytes += len(piece)
            super().data_received(piece)
            if self.protocol.state is not State.OPEN:
                continue  # the handshake has a limit of its own; after the close nothing is looked at
            if not self.has_logged_in and self._heard_bytes > limits.HEARD_BEFORE_LOGIN_BYTES:
                self._cut(f"said more than {limits.HEARD_BEFORE_LOGIN_BYTES} bytes before its login")
            elif self.transport.get_write_buffer_size() > UNREAD_ANSWERS_BYTES:
                self._cut("asks for answers and does not read them")
            elif self._waiting and self.loop.time() >= ends_at:
                self._go_on()
                break
        self._pause(bool(self._waiting) or self.recv_messages.paused)

    def _pause(self, is_paused: bool) -> None:
        if is_paused == self._is_paused or self.transport.is_closing():
            return
        self._is_paused = is_paused
        if is_paused:
            self.transport.pause_reading()
        else:
            self.transport.resume_reading()

    def _cut(self, why: str) -> None:
        peer = self.remote_address
        log.info("%s %s; cut", f"{peer[0]}:{peer[1]}" if peer else "?", why)
        self._waiting.clear()
        self.transport.abort()
