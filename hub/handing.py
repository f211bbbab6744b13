"""The rule set that terminals scan with: kept in the object folder, so that it goes to them as an installer does."""

import asyncio
import logging
import tempfile
import time
from pathlib import Path
from typing import Final

from hub.objects import Objects
from hub.policy import Policy
from hub.records import RulesObject, StoredObject
from hub.scanning import Scanning
from hub.store import Store, Transaction

log: Final = logging.getLogger("lockstep.hub")


class HandedRules:
    """The hub's own YARA rules as an object, where its policy asks for postures at all."""

    def __init__(self, store: Store, objects: Objects, scanning: Scanning, policy: Policy) -> None:
        self._store = store
        self._objects = objects
        self._scanning = scanning
        self._policy = policy
        self.current: RulesObject | None = None

    async def look(self) -> None:
        """Store the rules as they are now, if they are others than before or are no longer there.

        Raises UnavailableError where there are none that work, RefusedError for a full disk; those before stay.
        """
        yara = self._scanning.yara
        if self._policy.is_off or yara is None:
            return
        rules = await asyncio.to_thread(yara.rules)
        is_there = self._objects.is_there(rules.digest)  # what was damaged is set aside, and has to be stored again
        if is_there and self.current is not None and self.current.digest == rules.digest:
            return
        stored = await asyncio.to_thread(self._add, rules.source, rules.digest)

        async def body(transaction: Transaction) -> None:
            await transaction.rows(
                "add_object",
                digest=stored.digest,
                size=stored.size,
                stored_size=stored.stored_size,
                chunks=stored.chunks,
                now=time.time(),
            )

        await self._store.transaction(body)
        self.current = RulesObject(digest=rules.digest)
        log.info("terminals scan with %d rules, %s", rules.rules, rules.digest.hex())

    def _add(self, source: bytes, digest: bytes) -> StoredObject:
        with tempfile.TemporaryDirectory(prefix="lockstep-rules-") as folder:
            file = Path(folder) / "rules.yar"
            file.write_bytes(source)
            return self._objects.add(file, digest)
