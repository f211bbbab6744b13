"""The reaper: acts on deadlines that outlive a connection, so that nothing waits for ever.

Once a second it has the overdue moved and what was put off queued; every ten seconds it keeps hub time on disk, which a
killed hub therefore lives again at most that long, and has uploads removed that nobody goes on with; and when quiet
hours end it has everybody looked after. Every few seconds those who are to leave and have not heard of it are told,
every minute those who are to report on their programs.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from hub.deliveries import Deliveries
from hub.handing import HandedRules
from hub.pokes import Pokes
from hub.presence import Presence
from hub.revocation import Revocation
from hub.uploads import Uploads
from protocol.errors import LockstepError

LOOK_EVERY_SECONDS: Final = 1.0
KEEP_CLOCK_EVERY_LOOKS: Final = 10
LOOK_FOR_REVOKED_EVERY_LOOKS: Final = 3
LOOK_AT_POSTURES_EVERY_LOOKS: Final = 60

log: Final = logging.getLogger("lockstep.hub")


class Reaper:
    """The reaper of one hub."""

    def __init__(
        self,
        deliveries: Deliveries,
        pokes: Pokes,
        presence: Presence,
        uploads: Uploads | None = None,
        revocation: Revocation | None = None,
        handed_rules: HandedRules | None = None,
    ) -> None:
        self._handed_rules = handed_rules
        self._revocation = revocation
        self._deliveries = deliveries
        self._pokes = pokes
        self._presence = presence
        self._uploads = uploads
        self._was_quiet = False

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Look every second while the block runs; hub time is kept once more at its end."""
        work = asyncio.create_task(self._run(), name="reaper")
        try:
            yield
        finally:
            work.cancel()
            await asyncio.wait([work])
            with contextlib.suppress(LockstepError):  # a database that cannot write has been told of already
                await self._deliveries.keep_clock()

    async def _run(self) -> None:
        looks = 0
        while True:
            looks += 1
            try:
                await self.look()
                if looks % KEEP_CLOCK_EVERY_LOOKS == 0:
                    await self._deliveries.keep_clock()
                    if self._uploads is not None:
                        await self._uploads.reap()
                await self._look_at_standings(looks)
            except LockstepError as error:
                log.error("%s", error)  # a full disk: the next look may have room
            except Exception:
                log.exception("internal error of the reaper")  # it goes on: without it what is overdue hangs for ever
            await asyncio.sleep(LOOK_EVERY_SECONDS)

    async def _look_at_standings(self, looks: int) -> None:
        if self._revocation is None:
            return
        if looks % LOOK_FOR_REVOKED_EVERY_LOOKS == 0:
            await self._revocation.look()
        if self._handed_rules is not None and looks % LOOK_AT_POSTURES_EVERY_LOOKS == 1:  # at the first one, too
            await self._handed_rules.look()
            await self._revocation.look_at_postures()

    async def look(self) -> None:
        """Act on every deadline that has passed."""
        while await self._deliveries.reap():
            pass
        is_quiet = self._deliveries.quiet_seconds() > 0
        if self._was_quiet and not is_quiet:
            for terminal in self._presence.receiving():
                self._pokes.poke("owed", terminal)
        self._was_quiet = is_quiet
