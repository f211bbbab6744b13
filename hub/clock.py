"""Hub time: the seconds this hub has run, over all its runs. Every deadline that outlives a run counts by it.

It never jumps: while the hub runs it is the monotonic clock, what is kept on disk goes on from where it was, and the
time the hub was down does not count. A step of the machine's calendar does nothing to it.
"""

import time


class HubClock:
    """Hub time of one run; `start` with what the last run kept."""

    def __init__(self) -> None:
        self._began_at = time.monotonic()

    def start(self, kept_seconds: float) -> None:
        """Go on from `kept_seconds`."""
        self._began_at = time.monotonic() - kept_seconds

    def now(self) -> float:
        """Return hub time in seconds."""
        return time.monotonic() - self._began_at
