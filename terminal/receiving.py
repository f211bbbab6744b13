"""Receiving: performs what the session decides about a delivery or a rule set, with files, threads, the installations.

Quick steps are done at once and their event is returned; `Prepare` and `Verify` run as tasks and feed their event in
later. Steps that read whole files run one at a time, so no two ever work on one file. An installation goes on when the
connection ends (`installing.py`).
"""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from pathlib import Path

from protocol import life
from protocol.errors import LockstepError, RefusedError, TransferError
from protocol.messages import ObjectMessage, Offer, Rules
from terminal import inbox, posture, session
from terminal.downloads import Download, tidy
from terminal.installing import Installations, OnEvent, name_of, outcome_words
from terminal.posture import Postures
from terminal.session import DeliveryAction, Event
from terminal.state import StateFolder, despite_full_disk

Feed = Callable[[Event], None]


class Receiving:
    """The hands of one connection's deliveries.

    `feed` takes the events of steps that end later; `fail` is told when one breaks off in a way nobody foresaw. Without
    `postures` nothing is scanned.
    """

    def __init__(
        self,
        folder: StateFolder,
        installations: Installations,
        feed: Feed,
        fail: Callable[[LockstepError], None],
        on_event: OnEvent,
        postures: Postures | None = None,
    ) -> None:
        self._folder = folder
        self._installations = installations
        self._feed = feed
        self._fail = fail
        self._on_event = on_event
        self._postures = postures
        self._downloads: dict[int, Download] = {}
        self._disk = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()

    def perform(self, action: DeliveryAction) -> Event | None:
        """Do `action` or begin it; return its event when it is done already.

        Raises RefusedError (`disk-failed`) and BadFileError.
        """
        match action:
            case session.Consider(serial, offer):
                return self._consider(serial, offer)
            case session.FindRules(serial, rules):
                return session.RulesFound(serial, posture.read_rules(self._folder, rules.object) is not None)
            case session.Scan(request):
                if self._postures is not None:
                    self._postures.ask(request)
            case session.Forget(delivery):
                with despite_full_disk():  # whoever decides on it is told that it is not wanted
                    inbox.forget(self._folder, delivery, self._on_event)
                self._folder.drop_mark(delivery)
            case session.KeepReport(report):
                with despite_full_disk():  # it is said all the same; unheard, the hub offers again
                    self._folder.add_report(report)
                self._on_event("delivery", outcome_words(report))
            case session.DropReport(delivery, state):
                with despite_full_disk():  # it is said once more then, and changes nothing
                    self._folder.drop_report(delivery, state)
                    if state == life.State.DONE:
                        inbox.forget(self._folder, delivery)
                self._tidy()
            case _:
                return self._step(action)
        return None

    def _consider(self, serial: int, offer: Offer) -> Event:
        try:
            return session.Considered(serial, inbox.consider(self._folder, offer, self._on_event))
        except RefusedError as error:
            if error.code != "state-folder":
                raise
            return session.StepFailed(serial, "no-space", error.message)

    def _step(self, action: DeliveryAction) -> Event | None:
        serial = getattr(action, "serial", 0)
        try:
            match action:
                case session.Begin(serial, offer):
                    self._downloads[serial] = self._begin(offer)
                case session.AddPage(serial, page):
                    return session.PageAdded(serial, self._downloads[serial].add_page(page))
                case session.Write(serial, frame):
                    self._downloads[serial].write(frame)
                    return _fetched(serial, self._downloads[serial])
                case session.Prepare(serial):
                    self._spawn(self._prepare(serial, self._downloads[serial]))
                case session.Verify(serial):
                    self._spawn(self._verify(serial, self._downloads[serial]))
                case session.Install(serial, offer):
                    del self._downloads[serial]
                    self._installations.install(offer)
                case session.Abandon(serial, discard):
                    self._abandon(serial, discard)
        except TransferError as error:
            return _failed(serial, error)
        return None

    def _begin(self, offer: Offer | Rules) -> Download:
        if isinstance(offer, Rules):
            return Download(offer, self._folder, place=self._folder.rules)
        self._on_event("delivery", f"Receiving {name_of(offer)}, {offer.size:,} bytes.")
        return Download(offer, self._folder)

    async def settle(self) -> None:
        """Let go of all files: wait for what works on them, which ends soon."""
        for serial in list(self._downloads):
            self._abandon(serial, discard=False)
        while self._tasks:
            await asyncio.wait(self._tasks)

    def cancel(self) -> None:
        """Stop everything now."""
        for task in self._tasks:
            task.cancel()

    async def _prepare(self, serial: int, download: Download) -> None:
        older = self._older_files(download.offer)
        async with self._disk:
            event = await _in_thread(serial, lambda: download.prepare(older))
        if serial in self._downloads:  # else it was abandoned meanwhile, and how it ended is no news
            self._feed(event or _fetched(serial, download))

    async def _verify(self, serial: int, download: Download) -> None:
        async with self._disk:
            event = await _in_thread(serial, lambda: self._verified(download))
        if serial not in self._downloads:
            return
        if event is None and isinstance(download.offer, Rules):
            del self._downloads[serial]  # nothing follows
            self._on_event("posture", f"A rule set of {download.offer.size:,} bytes has come.")
        self._feed(event or session.Verified(serial))

    def _verified(self, download: Download) -> None:
        download.verify()
        if isinstance(download.offer, Rules) and self._postures is not None:
            self._postures.settle(download.offer.object, download.abandoned)

    def _abandon(self, serial: int, discard: bool) -> None:
        download = self._downloads.pop(serial, None)
        if download is not None:
            download.abandon()
            self._spawn(self._close(download, discard))

    async def _close(self, download: Download, discard: bool) -> None:
        async with self._disk:  # a thread may still read the file
            download.close(discard=discard)

    def _older_files(self, offer: ObjectMessage) -> tuple[Path, ...]:
        """Return the files of this program that are kept: the installed one and the one before it; or rule sets."""
        if not isinstance(offer, Offer):
            return tuple(self._folder.rules.iterdir())
        programs = (*self._folder.inventory(), *self._folder.previous())
        digests = (one.digest for one in programs if one.program == offer.installer.program)
        return tuple(self._folder.installed / digest.hex() for digest in digests)

    def _tidy(self) -> None:
        kept = (*self._folder.previous(), *self._folder.inventory())  # dearest last
        offers = (*self._installations.offers, *(download.offer for download in self._downloads.values()))
        with contextlib.suppress(OSError):  # what cannot be deleted now is tried again after the next delivery
            tidy(self._folder, (one.digest.hex() for one in kept), {offer.object.hex() for offer in offers})

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._task_ended)

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._fail(LockstepError(f"A step of a delivery broke off: {type(error).__name__}: {error}"))


async def _in_thread(serial: int, step: Callable[[], None]) -> Event | None:
    """Run `step` in a thread to its end, whatever is cancelled meanwhile; return the event of a failure."""
    work = asyncio.get_running_loop().run_in_executor(None, step)
    try:
        await asyncio.shield(work)
    except TransferError as error:
        return _failed(serial, error)
    except asyncio.CancelledError:
        await asyncio.wait([work])
        work.exception()  # looked at: what comes of an abandoned step is no news
        raise
    return None


def _fetched(serial: int, download: Download) -> Event:
    return session.Fetched(serial, download.frames, download.done_bytes, download.next_want(), download.complete)


def _failed(serial: int, error: TransferError) -> Event:
    return session.StepFailed(serial, error.code, error.message)
