"""Uploads: installers that come up from terminals, each a partial file until it is whole, right and published.

    uploads/ACCOUNT-DIGEST/file                  the file, written in place, a frame at a time
    uploads/ACCOUNT-DIGEST/file.lockstep.toml    its sidecar, where it has one

There is no journal: what is there is read again and compared with the manifest, so nothing a crash leaves behind can
mislead. A partial file belongs to its account: what another account sends never meets it. One that nobody goes on with
is kept for a day of hub time, which is kept as the modification time of its folder: a step of the calendar changes
nothing, and what a killed hub left with a time of the calendar counts from the next start.

Work on files runs in threads of its own, at most two whole files at a time, so frames never wait for those for long.
"""

import asyncio
import contextlib
import hashlib
import logging
import os
import shutil
import threading
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, ParamSpec, TypeVar

from hub.accounts import Accounts
from hub.catalogue import Catalogue, PublishOptions
from hub.clock import HubClock
from hub.inspectors.sidecar import SUFFIX
from hub.objects import DISK_FULL, Objects
from hub.records import Published, Terminal
from hub.store import Transaction
from protocol import limits
from protocol.chunks import restore
from protocol.errors import BadDataError, LockstepError, RefusedError, TransferError, UnavailableError, UsageError
from protocol.messages import Chunks, ManifestPage, Publish, Run
from protocol.transfer import Receiver

log: Final = logging.getLogger("lockstep.hub")

UPLOADS_AT_ONCE: Final = 16
UPLOADS_OF_ACCOUNT: Final = 4
KEPT_PARTIAL_SECONDS: Final = 24 * 3_600.0
KEPT_PARTIAL_FILES: Final = 16
_WHOLE_FILES_AT_ONCE: Final = 2
_READ_BYTES: Final = limits.MIB
_WRITE_PIECES: Final = 1_024  # IOV_MAX of Linux

P = ParamSpec("P")
T = TypeVar("T")


class Upload:
    """One file on its way up. Its methods block: `Uploads` calls them in threads, one at a time by `turn`."""

    def __init__(self, request: Publish, terminal: Terminal, folder: Path) -> None:
        self.request = request
        self.terminal = terminal
        self.folder = folder
        self.file = folder / "file"
        self.task: asyncio.Task[None] | None = None  # what reads the whole file now
        self.is_publishing = False
        self.turn = threading.Lock()  # work goes on in its thread when the one who waited for it is gone
        self._receiver = Receiver(request)
        self._descriptor = -1
        self._is_abandoned = False

    @property
    def frames(self) -> int:
        """Frames written since it was accepted."""
        return self._receiver.frames

    @property
    def done_bytes(self) -> int:
        """Bytes of the file that are on disk and right."""
        return self._receiver.done_bytes

    @property
    def complete(self) -> bool:
        """Whether every chunk is there."""
        return self._receiver.complete

    def next_want(self) -> tuple[Run, ...]:
        """Return the runs to ask for now."""
        return self._receiver.next_want()

    def add_page(self, page: ManifestPage) -> bool:
        """Take the next manifest page; return whether it was the last. Raises TransferError for a wrong one."""
        return self._receiver.add_page(page)

    def open(self) -> None:
        """Put the file and its sidecar in place; what came of this object before goes on. Raises OSError."""
        self._check_wanted()
        self.folder.mkdir(mode=0o700, exist_ok=True)
        sidecar = self.file.with_name(self.file.name + SUFFIX)
        sidecar.unlink(missing_ok=True)
        if self.request.sidecar:
            sidecar.write_bytes(self.request.sidecar)
        self._descriptor = os.open(self.file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)

    def outstanding_bytes(self) -> int:
        """Return what the disk has to take for it still: the rest of the file, and its pack."""
        try:
            have = self.file.stat().st_blocks * 512
        except OSError:
            have = 0
        return max(self.request.size - have, 0) + self.request.size

    def prepare(self, objects: Objects) -> None:
        """Find the chunks that are here already; an object the hub has is taken from there. Raises TransferError."""
        self._check_wanted()
        if os.fstat(self._descriptor).st_size == 0 and objects.is_there(self.request.object):
            try:
                self._take_from_pack(objects)
            except BadDataError as error:  # it is damaged, and what comes mends it
                log.error("%s", error)
        self._find_chunks()

    def write(self, frame: Chunks) -> None:
        """Check a frame and write it. Raises TransferError for a wrong one, OSError."""
        offset, pieces = self._receiver.accept(frame)
        for start in range(0, len(pieces), _WRITE_PIECES):
            data = b"".join(pieces[start : start + _WRITE_PIECES])
            self._write_at(data, offset)
            offset += len(data)

    def verify(self) -> None:
        """Put the file on the disk and read all of it again. Raises TransferError (code `wrong-digest`), OSError."""
        self._check_wanted()
        os.fsync(self._descriptor)
        digest, size = hashlib.sha256(), 0
        while block := os.pread(self._descriptor, _READ_BYTES, size):
            self._check_wanted()
            digest.update(block)
            size += len(block)
        if (size, digest.digest()) != (self.request.size, self.request.object):
            raise TransferError(
                f"{self.request.file_name} has {size} bytes and not the SHA-256 that was said.", code="wrong-digest"
            )

    def abandon(self) -> None:
        """Make a `prepare` or `verify` that runs in a thread end soon."""
        self._is_abandoned = True

    def close(self, *, discard: bool, now: float) -> None:
        """Close the file, which is removed (`discard`) or kept as of `now`, hub time. Safe to repeat."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        if discard:
            shutil.rmtree(self.folder, ignore_errors=True)
        elif self.folder.exists():
            os.utime(self.folder, (now, now))

    def _find_chunks(self) -> None:
        manifest = self._receiver.manifest
        size = os.fstat(self._descriptor).st_size
        if size > manifest.size:
            os.ftruncate(self._descriptor, manifest.size)
        for index in range(manifest.count):
            if manifest.raw_offsets[index + 1] > size:
                return
            self._check_wanted()
            entry = manifest[index]
            raw = os.pread(self._descriptor, entry.raw_size, manifest.raw_offsets[index])
            if hashlib.sha256(raw).digest() == entry.digest:
                self._receiver.have(index)

    def _take_from_pack(self, objects: Objects) -> None:
        pack = objects.open(self.request.object)
        for index in range(pack.manifest.count):
            self._check_wanted()
            raw = restore(pack.read(Run(index, 1)), pack.manifest[index])
            self._write_at(raw, pack.manifest.raw_offsets[index])

    def _check_wanted(self) -> None:
        if self._is_abandoned:
            raise TransferError("The upload was given up.", code="abandoned")

    def _write_at(self, data: bytes, offset: int) -> None:
        while data:
            written = os.pwrite(self._descriptor, data, offset)
            data, offset = data[written:], offset + written


class Uploads:
    """The uploads of one hub. `reserve_bytes` of the disk stay free."""

    def __init__(
        self,
        folder: Path,
        *,
        objects: Objects,
        catalogue: Catalogue,
        accounts: Accounts,
        clock: HubClock,
        reserve_bytes: int,
    ) -> None:
        self._folder = folder
        self._objects = objects
        self._catalogue = catalogue
        self._accounts = accounts
        self._clock = clock
        self._reserve_bytes = reserve_bytes
        self._running: dict[Path, Upload] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._threads = ThreadPoolExecutor(2 * _WHOLE_FILES_AT_ONCE, "upload")
        self._whole_files = asyncio.Semaphore(_WHOLE_FILES_AT_ONCE)
        self._folder_lock = asyncio.Lock()  # held while a partial file is taken up or removed
        folder.mkdir(mode=0o700, exist_ok=True)

    # --- a terminal's upload --------------------------------------------------------------------------------------

    async def begin(self, me: Terminal, request: Publish) -> Upload:
        """Make room for what `me` wants to publish.

        Raises RefusedError (`not-allowed`, `too-large`, `disk-full`, `store-full`), UnavailableError (`busy`),
        UsageError (`bad-name`), TransferError.
        """
        await self._accounts.check_right(me.terminal_id, "publish")
        _check_file_name(request.file_name)
        upload = Upload(request, me, self._folder / f"{me.account_id}-{request.object.hex()}")
        self._check_turn(upload)
        self._running[upload.folder] = upload
        try:
            async with self._folder_lock:
                await self._one_at_a_time(upload, self._open, upload)
        except asyncio.CancelledError:
            upload.abandon()
            self._keep(asyncio.create_task(self._let_go(upload, discard=False), name="upload's end"))
            raise
        except BaseException:
            del self._running[upload.folder]
            raise
        return upload

    async def add_page(self, upload: Upload, page: ManifestPage) -> bool:
        """Take the next manifest page; return whether it was the last. Raises TransferError."""
        return await self._step(upload, upload.add_page, page)

    async def write(self, upload: Upload, frame: Chunks) -> None:
        """Check a frame and write it. Raises TransferError, and RefusedError when the disk is full."""
        await self._step(upload, upload.write, frame)

    async def prepare(self, upload: Upload) -> None:
        """Find out what of the file is here already. Takes long: `spawn` it. Raises as `write` does."""
        async with self._whole_files:
            await self._step(upload, upload.prepare, self._objects)

    async def publish(self, upload: Upload) -> Published:
        """Read the whole file again and publish it as an operator's publish does. Takes long: `spawn` it.

        Once the catalogue has it, it goes on whatever becomes of the connection. Raises what `Catalogue.publish` does,
        TransferError and RefusedError (`not-allowed`); nothing of the file is kept, unless it is worth another try.
        """
        me, request = upload.terminal, upload.request
        async with self._whole_files:
            await self._step(upload, upload.verify)
        upload.is_publishing = True
        try:
            options = PublishOptions(program=request.program, title=request.title, channel=request.channel)
            published = await self._catalogue.publish(
                upload.file, options, request.file_name, actor=me.terminal_id, check=self._may_publish(me)
            )
        except LockstepError as error:
            log.info(
                "%s (%s) of %s: %s was refused: %s: %r",  # what a file says may hold anything
                me.name, me.terminal_id, me.account_name, request.file_name, error.code, error.message,
            )  # fmt: skip
            await self._let_go(upload, discard=not isinstance(error, UnavailableError))
            raise
        except Exception:  # a fault of this program: the file must not count as under way for ever
            await self._let_go(upload, discard=True)
            raise
        log.info(
            "%s (%s) of %s %s %s %s: %s, %s",
            me.name, me.terminal_id, me.account_name, "published" if published.new else "published again",
            published.program, published.version, request.file_name, published.digest,
        )  # fmt: skip
        await self._let_go(upload, discard=True)
        return published

    def spawn(self, upload: Upload, work: Coroutine[Any, Any, None]) -> None:
        """Run what takes long beside everything else."""
        upload.task = self._keep(asyncio.create_task(work, name="upload"))

    async def end(self, upload: Upload) -> None:
        """Let go of an upload and keep what has come of it; what is being published goes on. Safe to repeat.

        Work on the whole file is not waited for: it has its place until it has noticed.
        """
        if upload.is_publishing or self._running.get(upload.folder) is not upload:
            return
        upload.abandon()
        if upload.task is None or upload.task.done():
            await self._let_go(upload, discard=False)
        else:
            self._keep(asyncio.create_task(self._let_go_after(upload, upload.task), name="upload's end"))

    # --- the whole folder -----------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Take over what the run before left. Hub time has been started."""
        for folder in self._folder.iterdir():
            if folder.stat().st_mtime > self._clock.now():
                os.utime(folder, (self._clock.now(), self._clock.now()))
        await self.reap()

    async def reap(self) -> None:
        """Remove partial files that nobody has gone on with for a day, and all but the newest few."""
        async with self._folder_lock:
            oldest = self._clock.now() - KEPT_PARTIAL_SECONDS
            for place, folder in enumerate(self._idle()):
                if place >= KEPT_PARTIAL_FILES or folder.stat().st_mtime < oldest:
                    await self._in_thread(shutil.rmtree, folder, ignore_errors=True)

    async def close(self) -> None:
        """Stop what runs; what has come stays for the next start."""
        for upload in self._running.values():
            upload.abandon()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _idle(self) -> list[Path]:
        """Return the folders nobody uploads to now, newest first."""
        idle = [folder for folder in self._folder.iterdir() if folder not in self._running]
        return sorted(idle, key=lambda folder: folder.stat().st_mtime, reverse=True)

    # --- checks ---------------------------------------------------------------------------------------------------

    def _may_publish(self, me: Terminal) -> Callable[[Transaction], Awaitable[None]]:
        return lambda transaction: self._accounts.standings.check_right(transaction, me.terminal_id, "publish")

    def _check_turn(self, upload: Upload) -> None:
        """Raise UnavailableError (`busy`) when this upload has to wait for another."""
        others = self._running.values()
        of_account = [one for one in others if one.terminal.account_id == upload.terminal.account_id]
        if upload.folder in self._running:
            why = f"{upload.request.file_name} is being uploaded already"
        elif any(one.terminal.terminal_id == upload.terminal.terminal_id for one in of_account):
            why = "this terminal uploads a file already"
        elif len(of_account) >= UPLOADS_OF_ACCOUNT or len(others) >= UPLOADS_AT_ONCE:
            why = f"{len(of_account)} uploads of this account and {len(others)} in all are under way"
        else:
            return
        raise UnavailableError(f"The hub takes no upload now: {why}.", hint="Try again later.", code="busy")

    def _open(self, upload: Upload) -> None:
        self._objects.check_room(upload.request.file_name, upload.request.size, upload.request.object)
        if self._free_bytes() < self._reserve_bytes:
            for folder in self._idle():
                if folder != upload.folder:
                    shutil.rmtree(folder, ignore_errors=True)
        free = self._free_bytes()
        if free < self._reserve_bytes:
            raise RefusedError(
                f"{upload.request.file_name} has {upload.request.size} bytes; with it the hub's disk would have "
                f"{max(free, 0)} bytes free, and {self._reserve_bytes} are kept.",
                hint="The hub's owner has to free some space.",
                code="disk-full",
            )
        upload.open()

    def _free_bytes(self) -> int:
        """What would be free on the disk if all that is under way had come and been stored."""
        outstanding = sum(upload.outstanding_bytes() for upload in tuple(self._running.values()))
        return shutil.disk_usage(self._folder).free - outstanding

    # --- steps ----------------------------------------------------------------------------------------------------

    async def _step(self, upload: Upload, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do one step in a thread; an upload it fails for is over, and what has come of it is removed."""
        try:
            return await self._one_at_a_time(upload, work, *args, **kwargs)
        except LockstepError as error:
            await self._let_go(upload, discard=error.code != "abandoned")
            raise

    async def _one_at_a_time(self, upload: Upload, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        def in_turn() -> T:
            with upload.turn:
                return work(*args, **kwargs)

        return await self._in_thread(in_turn)

    async def _in_thread(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._threads, lambda: work(*args, **kwargs))
        except OSError as error:
            if error.errno in DISK_FULL:
                raise RefusedError(
                    "The hub's disk is full.", hint="The hub's owner has to free some space.", code="disk-full"
                ) from None
            log.error("an upload could not be kept: %s", error)
            raise UnavailableError(
                f"The hub's disk could not keep the upload: {error.strerror}.", code="disk-failed"
            ) from None

    def _keep(self, task: asyncio.Task[None]) -> asyncio.Task[None]:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _let_go_after(self, upload: Upload, task: asyncio.Task[None]) -> None:
        await asyncio.wait([task])
        await self._let_go(upload, discard=False)

    async def _let_go(self, upload: Upload, *, discard: bool) -> None:
        """Let go of an upload whatever the disk says; what it could not do is in the log."""
        if self._running.get(upload.folder) is not upload:
            return
        try:
            with contextlib.suppress(LockstepError):
                await self._one_at_a_time(upload, upload.close, discard=discard, now=self._clock.now())
        finally:
            self._running.pop(upload.folder, None)


def _check_file_name(name: str) -> None:
    """Refuse what is no name of a file in one folder. Raises UsageError."""
    if "/" in name or name in (".", "..") or not name.isprintable():
        raise UsageError(
            f"{name[:80]!r} is no name for a file.", hint="Send the file's own, without folders.", code="bad-name"
        )
