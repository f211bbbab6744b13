"""Liveness: is the other side still there? Pure; the caller reads the clock and tells of every byte heard.

"Any byte heard" counts, not only a pong: on a slow link a pong waits behind the data (RFC 6455 section 5.5.2 allows
that), and a peer in the middle of a frame is alive.
"""

from typing import Literal

from protocol import limits


class Liveness:
    """Says when to ping and when the peer is dead. Times are seconds of one monotonic clock."""

    def __init__(self, now: float) -> None:
        self._heard_at = now
        self._pinged_at: float | None = None

    @property
    def heard_at(self) -> float:
        """When something was heard last."""
        return self._heard_at

    def heard(self, now: float) -> None:
        """Some bytes arrived."""
        self._heard_at = now
        self._pinged_at = None

    @property
    def deadline(self) -> float:
        """When to call `due` next."""
        if self._pinged_at is None:
            return self._heard_at + limits.PING_EVERY_SECONDS
        return self._pinged_at + limits.HEARD_WITHIN_SECONDS

    def due(self, now: float) -> Literal["ping", "dead"] | None:
        """Return what the time asks for. After "ping" the answer clock runs."""
        if now < self.deadline:
            return None
        if self._pinged_at is not None:
            return "dead"
        self._pinged_at = now
        return "ping"
