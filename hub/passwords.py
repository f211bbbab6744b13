"""Passwords: Argon2id (RFC 9106) off the event loop, a bounded number at once.

A fleet that enrols hundreds of devices with one password costs one evaluation a minute, not hundreds: a password that
was right is remembered for that long under a keyed digest that only this process can compute.
"""

import asyncio
import hashlib
import secrets
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from argon2 import PasswordHasher
from argon2.exceptions import VerificationError
from argon2.low_level import Type

from protocol.errors import UnavailableError

_WAITING_EVALUATIONS: Final = 64
_REMEMBERED_SECONDS: Final = 60.0
_REMEMBERED_ENTRIES: Final = 256


class Passwords:
    """Hashes and checks the passwords of one hub."""

    def __init__(self) -> None:
        # OWASP's second choice of parameters: 19 MiB, two passes, one lane; about 26 ms a try.
        self._hasher = PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1, type=Type.ID)
        self._threads = ThreadPoolExecutor(max_workers=1, thread_name_prefix="passwords")
        self.evaluations = 0  # how many this process has done
        self._waiting = 0
        self._key = secrets.token_bytes(32)
        self._remembered: dict[bytes, float] = {}
        # Checked in place of a hash when there is no such account, so that both answers take the same time.
        self._nobody = self._hasher.hash(secrets.token_hex())

    async def hash(self, password: str) -> str:
        """Return the hash to store for `password`."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._hasher.hash, password)

    def remembers(self, stored: str | None, password: str) -> bool:
        """Return whether this was right within the last minute; being asked again keeps it another one."""
        digest = self._digest(stored, password)
        remembered = self._remembered.get(digest, 0.0) > time.monotonic()
        if remembered:
            self._remember(digest)
        return remembered

    async def check(self, stored: str | None, password: str) -> bool:
        """Evaluate `password` and return whether it is right; nobody (None, "") takes the same work.

        Raises UnavailableError when too many checks are waiting already.
        """
        if self._waiting >= _WAITING_EVALUATIONS:
            raise UnavailableError("The hub is checking too many passwords at once.", hint="Try again in a moment.")
        self._waiting += 1
        try:
            right = await asyncio.get_running_loop().run_in_executor(
                self._threads, self._verify, stored or self._nobody, password
            )
        finally:
            self._waiting -= 1
            self.evaluations += 1
        if right and stored:
            self._remember(self._digest(stored, password))
        return right and bool(stored)

    def close(self) -> None:
        """Stop the thread."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _verify(self, stored: str, password: str) -> bool:
        try:
            return self._hasher.verify(stored, password)
        except VerificationError:
            return False

    def _digest(self, stored: str | None, password: str) -> bytes:
        return hashlib.blake2b(f"{stored}\0{password}".encode(), key=self._key, digest_size=32).digest()

    def _remember(self, digest: bytes) -> None:
        if digest not in self._remembered and len(self._remembered) >= _REMEMBERED_ENTRIES:
            self._remembered.clear()
        self._remembered[digest] = time.monotonic() + _REMEMBERED_SECONDS
