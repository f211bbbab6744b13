"""Uploads by hand: a file as a terminal that publishes it packs it, and the way up message by message."""

import hashlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

from msgspec import structs

from protocol import chunks, messages
from protocol.messages import Chunks, Message, Published, Refused, Run
from protocol.transfer import PageDue, Sender
from tests.harness.raw import RawTerminal

LastWord = Published | Refused | messages.Error


class PackedFile:
    """A file's manifest, its pack, and the frames and pages cut from them."""

    def __init__(self, path: Path) -> None:
        content = path.read_bytes()
        self.name = path.name
        self.digest = hashlib.sha256(content).digest()
        packed = list(chunks.pack(io.BytesIO(content), chunks.chunking_for(len(content))))
        self.manifest = chunks.Manifest.of(entry for entry, _ in packed)
        self.pack = b"".join(stored for _, stored in packed)

    def publish(self, upload: str = "u-1", **changes: Any) -> messages.Publish:
        """Return the request, with these fields changed."""
        manifest = self.manifest
        request = messages.Publish(
            id=7, upload=upload, object=self.digest, size=manifest.size, chunks=manifest.count,
            stored_size=manifest.stored_size, pages=manifest.page_count, manifest=manifest.digest,
            chunking=chunks.chunking_for(manifest.size), file_name=self.name,
        )  # fmt: skip
        return structs.replace(request, **changes)

    def pages(self) -> tuple[messages.ManifestPage, ...]:
        """Return the whole manifest."""
        count = self.manifest.page_count
        return tuple(
            messages.ManifestPage(object=self.digest, page=page, entries=self.manifest.page(page))
            for page in range(count)
        )

    def frame(self, run: Run) -> Chunks:
        """Return the frame that carries a run."""
        offsets = self.manifest.stored_offsets
        data = self.pack[offsets[run.first] : offsets[run.first + run.count]]
        return Chunks(object=self.digest, first=run.first, count=run.count, data=data)


class Upload:
    """One upload by hand, with the real Sender; `sent_bytes` counts what of the pack went up."""

    def __init__(self, terminal: RawTerminal, file: PackedFile, upload: str = "u-1") -> None:
        self.terminal = terminal
        self.file = file
        self.upload = upload
        self.sent_bytes = 0
        self._sender = Sender(file.manifest)

    async def begin(self, **changes: Any) -> Message:
        """Ask; return the answer."""
        await self.terminal.say(self.file.publish(self.upload, **changes))
        while True:
            heard = await self.terminal.hear_any()
            if isinstance(heard, (messages.PublishAccepted, messages.Error)):
                return heard

    async def run(self, until: Callable[[int], bool] = lambda sent: False, **changes: Any) -> LastWord:
        """Publish from the request to the last word, or (`until` is true of the bytes sent) break off with `busy`."""
        answer = await self.begin(**changes)
        return answer if isinstance(answer, messages.Error) else await self.go_on(until)

    async def go_on(self, until: Callable[[int], bool] = lambda sent: False) -> LastWord:
        """Go on as `run` does with what has begun."""
        while True:
            while (due := self._sender.next(0.0)) is not None:
                if isinstance(due, PageDue):
                    await self.terminal.say(self.file.pages()[due.page])
                    continue
                frame = self.file.frame(due)
                self.sent_bytes += len(frame.data)
                await self.terminal.say(frame)
                if until(self.sent_bytes):
                    return messages.Error(code="busy", message="broken off")
            heard = await self.terminal.hear_any()
            if isinstance(heard, (Published, Refused, messages.Error)):
                return heard
            if isinstance(heard, messages.Want):
                self._sender.want(heard.runs)
            elif isinstance(heard, messages.Progress):
                self._sender.acknowledge(heard.frames, 0.0)
