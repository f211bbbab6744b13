"""Scanning again in the background: what no engine has scanned yet, and everything when an engine's rules change.

At the start, once a minute, and when woken (SIGHUP, `lockstep-hub verdicts rescan`) each engine is asked which rules it
has; what has no verdict of those is scanned, one installer after the other, with as long a rest after each as it took,
what nobody gets until then first. An engine that is down is asked again a minute later, and what it said before stands;
so is one object that cannot be read. A file at which an engine failed or took too long comes again an hour later. What
turns infected is withdrawn in the transaction that writes the verdict: its deliveries end, their sockets are poked.
"""

import asyncio
import functools
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Final

from hub.audit import record
from hub.deliveries import Deliveries
from hub.pokes import Pokes
from hub.scanning import Engine, EngineVerdict, Scanning
from hub.store import Row, Store, Transaction
from hub.verdicts import Change, keep_verdicts, settle
from protocol.errors import LockstepError

log: Final = logging.getLogger("lockstep.hub")

LOOK_EVERY_SECONDS: Final = 60.0
FAILED_AGAIN_SECONDS: Final = 3_600.0
_REST_LARGEST_SECONDS: Final = 2.0
_PAGE: Final = 200
_SCANNER: Final = "hub"  # who acts, in the audit log


class Rescans:
    """The background scans of one hub."""

    def __init__(self, store: Store, scanning: Scanning, deliveries: Deliveries, pokes: Pokes) -> None:
        self._store = store
        self._scanning = scanning
        self._deliveries = deliveries
        self._pokes = pokes
        self._woken = asyncio.Event()
        self._down: dict[str, str] = {}  # engine -> what was last said of it
        self._is_to_reload = False
        self.is_running = False

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Scan in the background while the block runs."""
        task = asyncio.create_task(self._run(), name="rescans")
        self.is_running = True
        try:
            yield
        finally:
            self.is_running = False
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def wake(self) -> None:
        """Look now."""
        self._woken.set()

    def reload(self) -> None:
        """Have the YARA rules read anew soon; when they changed everything is scanned again."""
        self._is_to_reload = True
        self.wake()

    async def again(self) -> int:
        """Have everything scanned again, by engines whose rules are the same too; return how many installers."""

        async def body(transaction: Transaction) -> int:
            await transaction.rows("scan_all_again")
            return sum(row["installers"] for row in await transaction.rows("count_verdicts"))

        count = await self._store.transaction(body)
        self.wake()
        return count

    async def look(self, *, resting: bool = True) -> int:
        """Scan what has no verdict of each engine's present rules; return how many scans that were.

        Ends early when rules are to be read anew.
        """
        order = [(engine, held) for held in (True, False) for engine in self._scanning.engines]
        return sum([await self._look_with(engine, held=held, resting=resting) for engine, held in order])

    async def engines(self) -> list[dict[str, str]]:
        """Return each engine with its rules, or with why it is down; JSON values."""
        said = []
        for engine in self._scanning.engines:
            try:
                said.append({"engine": engine.name, "rules": await self._scanning.rules_version(engine), "detail": ""})
            except LockstepError as error:
                said.append({"engine": engine.name, "rules": "", "detail": error.message})
        return said

    async def settle_all(self) -> None:
        """Bring every installer's verdict in line with the engines that are set up now."""
        after = b""
        while rows := await self._page("installers_after", after=after):
            await self._store.transaction(functools.partial(self._settle_these, rows))
            after = rows[-1]["digest"]

    # --- the loop -----------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        await self._say_what_is_held()
        is_settled = False
        while True:
            self._woken.clear()
            try:
                if not is_settled:
                    await self.settle_all()
                    is_settled = True
                if self._is_to_reload:
                    self._is_to_reload = False
                    await self._reload()
                await self.look()
            except LockstepError as error:
                log.error("scanning again was interrupted: %s", error)
            except Exception:
                log.exception("internal error of the background scan")
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_EVERY_SECONDS):
                    await self._woken.wait()

    async def _reload(self) -> None:
        if await self._scanning.reload():
            log.info("the scan rules have changed; everything is scanned again")
        else:
            log.info("the scan rules were asked to be read again: those in use have not changed")

    async def _say_what_is_held(self) -> None:
        if not self._scanning.engines:
            log.warning("nobody scans: scan_yara, scan_clamd and scan_command are all off")
            return

        async def body(transaction: Transaction) -> list[Row]:
            return await transaction.rows("count_verdicts")

        counts = {row["verdict"]: row["installers"] for row in await self._store.transaction(body)}
        if counts.get("not-scanned"):
            log.warning(
                "%d installers are not scanned: nobody gets them until they are clean. They are scanned now",
                counts["not-scanned"],
            )

    async def _look_with(self, engine: Engine, *, held: bool, resting: bool) -> int:
        """Scan what is `held` because it is not scanned, or else what is not."""
        if (rules := await self._rules_of(engine)) is None:
            return 0
        done, after, before = 0, b"", time.time() - FAILED_AGAIN_SECONDS
        to_scan = {"engine": engine.name, "rules": rules, "before": before, "held": held}
        while rows := await self._page("to_scan", after=after, **to_scan):
            for row in rows:
                if self._is_to_reload:
                    return done
                started = time.monotonic()
                said = await self._scanning.scan(row["digest"], row["file_name"], (engine,))
                if not all(one.rules for one in said) and await self._rules_of(engine) is None:
                    return done  # it went down meanwhile; otherwise it is the object that cannot be read
                await self._keep(row["digest"], said)
                done += 1
                if resting:
                    await asyncio.sleep(min(time.monotonic() - started, _REST_LARGEST_SECONDS))
            after = rows[-1]["digest"]
            log.info("%s has scanned %d installers again", engine.name, done)
        return done

    async def _rules_of(self, engine: Engine) -> str | None:
        """Return the version of an engine's rules, None where it is down; each change of that is logged once."""
        try:
            rules = await self._scanning.rules_version(engine)
        except LockstepError as error:
            if self._down.get(engine.name) != error.message:
                log.error("the scan engine is down, so nothing new is clean: %s", error.message)
                self._down[engine.name] = error.message
            return None
        if self._down.pop(engine.name, ""):
            log.info("the scan engine %s is there again", engine.name)
        return rules

    async def _page(self, query: str, **parameters: object) -> list[Row]:
        async def body(transaction: Transaction) -> list[Row]:
            return await transaction.rows(query, count=_PAGE, **parameters)

        return await self._store.transaction(body)

    # --- one installer ------------------------------------------------------------------------------------------------

    async def _keep(self, digest: bytes, said: list[EngineVerdict]) -> None:
        async def body(transaction: Transaction) -> Change | None:
            await keep_verdicts(transaction, digest, said)
            return await self._settle(transaction, digest)

        change = await self._store.transaction(body)
        if change is not None and change.before != change.after:
            level = logging.INFO if change.after == "clean" else logging.WARNING
            why = f": {change.finding}" if change.finding else ""
            log.log(level, "%s was %s and is %s%s", change.installer, change.before, change.after, why)

    async def _settle_these(self, rows: list[Row], transaction: Transaction) -> None:
        for row in rows:
            await self._settle(transaction, row["digest"])

    async def _settle(self, transaction: Transaction, digest: bytes) -> Change | None:
        """Write an installer's verdict, and in the same transaction all that follows from it."""
        installer = await transaction.row("installer", digest=digest)
        if installer is None:
            return None
        change = await settle(transaction, installer, self._scanning.names)
        if change.after == "not-scanned":
            await self._deliveries.hold_object(transaction, digest, change.finding)
        if change.before == change.after:
            return change
        detail = {"before": change.before, "after": change.after, "finding": change.finding}
        names = {"version": installer["version"], "file": installer["file_name"], "digest": digest.hex()}
        await record(transaction, _SCANNER, "verdict.change", installer["program_id"], **names, **detail)
        if change.is_withdrawn:
            await self._deliveries.deny_object(transaction, digest, "infected", change.finding)
        if change.after == "clean":
            await self._deliveries.free_object(transaction, digest)
        return change
