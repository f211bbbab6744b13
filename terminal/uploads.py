"""Uploads: an installer file on its way up to the hub, packed as it goes: nothing of it is kept twice.

The file is read once to know its manifest; each frame is then cut and compressed again from the file itself, and what
does not give the same chunk any more is noticed. Which page or frame may go is the Sender's business, as at the hub.
"""

import asyncio
import hashlib
import secrets
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, TypeAlias

from protocol import chunks, limits, messages
from protocol.errors import BadFileError, LockstepError, RefusedError, UnavailableError
from protocol.messages import AnyMessage, Chunks, ManifestPage, Progress, Publish, Published, Refused, Run, Want
from protocol.transfer import PageDue, Sender
from terminal.link import Link, error_of

SIDECAR_SUFFIX: Final = ".lockstep.toml"
SILENCE_SECONDS: Final = 600.0  # the hub may read 4 GiB several times before it says anything
Tell: TypeAlias = Callable[[int, int], object]


def tell_nobody(_done: int, _size: int) -> None:
    """Nobody watches."""


class InstallerFile:
    """A file that is to go up: its digest, its manifest, its sidecar's text. Use `read_installer`."""

    def __init__(self, path: Path, digest: bytes, manifest: chunks.Manifest, sidecar: bytes) -> None:
        self.path = path
        self.digest = digest
        self.manifest = manifest
        self.sidecar = sidecar

    def request(self, program: str, title: str, channel: str) -> Publish:
        """Return what is asked of the hub, under a new upload id."""
        manifest = self.manifest
        return Publish(
            id=1,
            upload=secrets.token_hex(16),
            object=self.digest,
            size=manifest.size,
            chunks=manifest.count,
            stored_size=manifest.stored_size,
            pages=manifest.page_count,
            manifest=manifest.digest,
            chunking=chunks.chunking_for(manifest.size),
            file_name=self.path.name,
            program=program,
            title=title,
            channel=channel,
            sidecar=self.sidecar,
        )

    def page(self, number: int) -> ManifestPage:
        """Return a page of the manifest."""
        return ManifestPage(object=self.digest, page=number, entries=self.manifest.page(number))

    def frame(self, run: Run) -> Chunks:
        """Return the frame that carries a run. Blocking. Raises BadFileError when the file is another by now."""
        try:
            with self.path.open("rb") as stream:
                stream.seek(self.manifest.raw_offsets[run.first])
                data = b"".join(self._stored(stream.read(entry.raw_size), entry) for entry in self._entries(run))
        except OSError as error:
            raise _unreadable(self.path, error) from None
        return Chunks(object=self.digest, first=run.first, count=run.count, data=data)

    def _entries(self, run: Run) -> Iterator[chunks.Entry]:
        return (self.manifest[index] for index in range(run.first, run.first + run.count))

    def _stored(self, raw: bytes, expected: chunks.Entry) -> bytes:
        entry, stored = chunks.pack_chunk(raw)
        if entry != expected:
            raise BadFileError(f"{self.path} was changed while it was sent.", hint="Publish it again.")
        return stored


async def read_installer(path: Path) -> InstallerFile:
    """Read a file that is to be published. Raises BadFileError and RefusedError (`too-large`)."""
    stop = threading.Event()
    try:
        return await asyncio.to_thread(_read_installer, path, stop)
    finally:
        stop.set()  # cancelled: the thread ends soon, or the process could not


def _read_installer(path: Path, stop: threading.Event) -> InstallerFile:
    try:
        size = path.stat().st_size if path.is_file() else -1
        _check_size(path, size)
        sidecar = _read_sidecar(path.with_name(path.name + SIDECAR_SUFFIX))
        whole, entries = hashlib.sha256(), []
        with path.open("rb") as stream:
            for raw in chunks.cut(stream, chunks.chunking_for(size)):
                if stop.is_set():
                    raise UnavailableError("Reading was given up.", code="abandoned")
                whole.update(raw)
                entries.append(chunks.pack_chunk(raw)[0])
    except OSError as error:
        raise _unreadable(path, error) from None
    manifest = chunks.Manifest.of(entries)
    if manifest.size != size:
        raise BadFileError(f"{path} was changed while it was read.", hint="Publish it again.")
    return InstallerFile(path, whole.digest(), manifest, sidecar)


def _check_size(path: Path, size: int) -> None:
    if size < 0:
        raise BadFileError(f"{path} is not a file.", hint="Give the path of one installer file.")
    if size == 0:
        raise BadFileError(f"{path} is empty.")
    if size > limits.OBJECT_BYTES:
        raise RefusedError(f"{path} has {size} bytes; the limit is {limits.OBJECT_BYTES}.", code="too-large")


def _read_sidecar(path: Path) -> bytes:
    if not path.is_file():
        return b""
    try:
        with path.open("rb") as stream:
            text = stream.read(limits.SIDECAR_BYTES + 1)
    except OSError as error:
        raise _unreadable(path, error) from None
    if len(text) > limits.SIDECAR_BYTES:
        raise BadFileError(f"{path} has more than {limits.SIDECAR_BYTES} bytes.")
    return text


def _unreadable(path: Path, error: OSError) -> BadFileError:
    return BadFileError(f"{path} cannot be read: {error.strerror}.", hint="Check the path and its rights.")


class UploadWatch:
    """What the hub says of one upload: the last want and progress, and the last word. A link's listener."""

    def __init__(self, upload: str) -> None:
        self.upload = upload
        self.last_word: Published | Refused | None = None
        self._want: Want | None = None
        self._progress: Progress | None = None
        self._error: LockstepError | None = None
        self._changed = asyncio.Event()

    def put(self, message: AnyMessage) -> None:
        """Take an unasked message of the link."""
        match message:
            case Want(delivery=self.upload):
                self._want = message
            case Progress(delivery=self.upload):
                self._progress = message
            case Refused(delivery=self.upload) | Published(upload=self.upload):
                self.last_word = message
            case _:
                return
        self._changed.set()

    def end(self, error: LockstepError) -> None:
        """The link has ended."""
        self._error = error
        self._changed.set()

    def feed(self, sender: Sender, now: float) -> int:
        """Pass on what came since the last call; return the bytes the hub holds, 0 when that is not new.

        Raises ProtocolError for what cannot be, and the error a refusal or the end of the link stands for.
        """
        self._changed.clear()
        want, self._want = self._want, None
        progress, self._progress = self._progress, None
        if progress is not None:
            sender.acknowledge(progress.frames, now)
        if want is not None:
            sender.want(want.runs)
        if isinstance(self.last_word, Refused):
            raise error_of(messages.Error(code=self.last_word.reason, message=self.last_word.detail))
        if self._error is not None and self.last_word is None:
            raise self._error
        return progress.done if progress else 0

    async def changed(self) -> None:
        """Wait until something came. Raises UnavailableError when nothing does."""
        try:
            async with asyncio.timeout(SILENCE_SECONDS):
                await self._changed.wait()
        except TimeoutError:
            raise UnavailableError(
                f"The hub said nothing of the upload for {SILENCE_SECONDS:g} s.", code="timeout"
            ) from None


async def send(link: Link, file: InstallerFile, watch: UploadWatch, tell: Tell) -> Published:
    """Send what the hub wants of a file until its last word; `tell` hears how far it is. Raises as `feed` does."""
    loop = asyncio.get_running_loop()
    sender = Sender(file.manifest)
    while True:
        if done := watch.feed(sender, loop.time()):
            tell(done, file.manifest.size)
        if isinstance(watch.last_word, Published):
            return watch.last_word
        due = sender.next(loop.time())
        if due is None:
            await watch.changed()
        elif isinstance(due, PageDue):
            await link.stream(file.page(due.page))
        else:
            await link.stream(await asyncio.to_thread(file.frame, due))


def is_passing(error: LockstepError) -> bool:
    """Return whether an upload that had begun may go on after this."""
    return isinstance(error, UnavailableError) or error.code == "no-progress"
