"""Receiving: performs what the session decides about a delivery, with files, threads and runners.

Quick steps are done at once and their event is returned; `Prepare`, `Verify` and `Install` run as tasks and feed their
event in later. Steps that read whole files run one at a time, so no two ever work on one file. A crash during an
installation leaves a mark on the disk; `settle_interrupted` asks the system how it ended before the hub offers again.
"""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path

from protocol import life, messages
from protocol.device import InstallerKind
from protocol.errors import LockstepError, TransferError
from protocol.messages import InstalledProgram, Offer
from terminal import session
from terminal.downloads import Download, tidy
from terminal.installers import InstallResult, InstallTask, Runner
from terminal.session import DeliveryAction, Event
from terminal.state import StateFolder

Feed = Callable[[Event], None]
OnEvent = Callable[[str, str], None]


class Receiving:
    """The hands of one connection's deliveries.

    `feed` takes the events of steps that end later; `fail` is told when one breaks off in a way nobody foresaw.
    """

    def __init__(
        self,
        folder: StateFolder,
        runners: Mapping[InstallerKind, Runner],
        feed: Feed,
        fail: Callable[[LockstepError], None],
        on_event: OnEvent,
    ) -> None:
        self._folder = folder
        self._runners = runners
        self._feed = feed
        self._fail = fail
        self._on_event = on_event
        self._downloads: dict[int, Download] = {}
        self._disk = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()

    def perform(self, action: DeliveryAction) -> Event | None:
        """Do `action` or begin it; return its event when it is done already. Raises RefusedError (`state-folder`)."""
        match action:
            case session.Record(program):
                self._folder.record_installed(program)
                return None
            case session.KeepReport(report):
                self._keep(report)
                return None
            case session.DropReport(delivery, state):
                self._folder.drop_report(delivery, state)
                return None
            case _:
                return self._step(action)

    def _step(self, action: DeliveryAction) -> Event | None:
        serial = getattr(action, "serial", 0)
        try:
            match action:
                case session.Begin(serial, offer):
                    self._on_event("delivery", f"Receiving {_name(offer)}, {offer.size:,} bytes.")
                    self._downloads[serial] = Download(offer, self._folder)
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
                    self._spawn(self._install(serial, offer))
                case session.Abandon(serial, discard):
                    self._abandon(serial, discard)
        except TransferError as error:
            return _failed(serial, error)
        return None

    async def settle(self) -> None:
        """Wait for what runs: an installation to its end, files only as long as it takes to let go of them."""
        for serial in list(self._downloads):
            self._abandon(serial, discard=False)
        while self._tasks:
            await asyncio.wait(self._tasks)

    def cancel(self) -> None:
        """Stop everything now, also an installation; its mark stays on the disk."""
        for task in self._tasks:
            task.cancel()

    async def _prepare(self, serial: int, download: Download) -> None:
        older = self._older_file(download.offer)
        async with self._disk:
            event = await _in_thread(serial, lambda: download.prepare(older))
        if serial in self._downloads:  # else it was abandoned meanwhile, and how it ended is no news
            self._feed(event or _fetched(serial, download))

    async def _verify(self, serial: int, download: Download) -> None:
        async with self._disk:
            event = await _in_thread(serial, download.verify)
        if serial in self._downloads:
            self._feed(event or session.Verified(serial))

    async def _install(self, serial: int, offer: Offer) -> None:
        download = self._downloads.pop(serial, None)
        if download is None:
            return  # the connection was closed before it began; the file stays for the next offer
        self._on_event("delivery", f"Installing {_name(offer)}.")
        try:
            self._folder.mark_installing(offer)
            result = await self._run(offer)
        except LockstepError as error:
            result = InstallResult(ok=False, reason=error.code, detail=str(error), installed_version="")
        if not result.ok:
            self._set_aside(download)
        self._feed(session.InstallEnded(serial, result.ok, result.reason, result.detail, result.installed_version))

    async def _run(self, offer: Offer) -> InstallResult:
        kind = offer.installer.installer_kind
        if kind not in self._runners:
            detail = f"This terminal has nothing that installs a {kind}."
            return InstallResult(ok=False, reason="no-runner", detail=detail, installed_version="")
        try:
            return await self._runners[kind].install(self._task(offer))
        except Exception as error:  # a runner promises a result; one that breaks its promise must not hang the delivery
            detail = f"The runner for {kind} broke off: {type(error).__name__}: {error}"
            return InstallResult(ok=False, reason="runner-failed", detail=detail, installed_version="")

    def _task(self, offer: Offer) -> InstallTask:
        installer = offer.installer
        return InstallTask(
            delivery=offer.delivery,
            program=installer.program,
            package_name=installer.package_name,
            version=installer.version,
            kind=installer.installer_kind,
            file=self._folder.installed / offer.object.hex(),
            digest_hex=offer.object.hex(),
            facts={"file_name": installer.file_name},
        )

    def _keep(self, report: messages.State) -> None:
        self._folder.add_report(report)
        self._folder.clear_installing()
        self._tidy()
        words = f"{report.reason}: {report.detail}" if report.reason else f"version {report.version}"
        self._on_event("delivery", f"Delivery {report.delivery} is {report.state} ({words}).")

    def _abandon(self, serial: int, discard: bool) -> None:
        download = self._downloads.pop(serial, None)
        if download is not None:
            download.abandon()
            self._spawn(self._close(download, discard))

    async def _close(self, download: Download, discard: bool) -> None:
        async with self._disk:  # a thread may still read the file
            download.close(discard=discard)

    def _older_file(self, offer: Offer) -> Path | None:
        programs = (one for one in self._folder.inventory() if one.program == offer.installer.program)
        return next((self._folder.installed / one.digest.hex() for one in programs), None)

    def _set_aside(self, download: Download) -> None:
        """Keep the file of a failed installation with the partial ones, which are few and go, for another try."""
        if all(one.digest != download.offer.object for one in self._folder.inventory()):
            with contextlib.suppress(OSError):
                download.file.replace(download.partial)

    def _tidy(self) -> None:
        with contextlib.suppress(OSError):  # what cannot be deleted now is tried again after the next delivery
            tidy(self._folder, (one.digest.hex() for one in self._folder.inventory()))

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._task_ended)

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._fail(LockstepError(f"A step of a delivery broke off: {type(error).__name__}: {error}"))


async def settle_interrupted(folder: StateFolder, runners: Mapping[InstallerKind, Runner]) -> None:
    """Report how an installation ended that a crash interrupted, by asking the system.

    The version is there: done. It surely is not: nothing is reported, the hub offers it again. Nobody can be asked:
    failed with `outcome-unknown`. Raises BadFileError for a damaged mark.
    """
    offer = folder.installing()
    if offer is None:
        return
    installer = offer.installer
    try:
        runner = runners.get(installer.installer_kind)
        version = await runner.installed_version(installer.package_name) if runner else None
    except (LockstepError, OSError) as error:
        folder.add_report(session.failure(offer, "outcome-unknown", str(error)))
    else:
        if version == installer.version:
            folder.record_installed(_program(offer))
            folder.add_report(messages.State(delivery=offer.delivery, state=life.State.DONE, version=version))
    folder.clear_installing()


def _program(offer: Offer) -> InstalledProgram:
    installer = offer.installer
    return InstalledProgram(
        program=installer.program,
        package_name=installer.package_name,
        version=installer.version,
        installer_kind=installer.installer_kind,
        digest=offer.object,
    )


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


def _name(offer: Offer) -> str:
    return f"{offer.installer.program} {offer.installer.version}"
