"""Installing: runs installers beside each other and keeps how each ended, whatever becomes of the connection.

A mark on the disk goes before the runner, the report is on the disk before the mark goes: so a crash in between is
noticed, and `settle` asks the system how it ended. A delivery is started `STARTS` times at most.

    mark (fsync) -> runner -> inventory -> report (fsync) -> no mark
"""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Final

from msgspec import structs

from protocol import life, messages
from protocol.device import InstallerKind
from protocol.errors import LockstepError
from protocol.messages import InstalledProgram, Offer
from terminal.downloads import set_aside_uninstalled
from terminal.installers import InstallResult, InstallTask, Runner
from terminal.session import InstallEnded, failure
from terminal.state import Mark, StateFolder, despite_full_disk

STARTS: Final = 3

OnEvent = Callable[[str, str], None]


class Installations:
    """All installations of one terminal, for as long as its process holds the state folder.

    `ended` is told of each end while a connection listens; `fail` of a fault that ends the process. Both may be set
    anew for each connection; `error` is a fault that came while there was none, or that has ended the last.
    """

    def __init__(self, folder: StateFolder, runners: Mapping[InstallerKind, Runner], on_event: OnEvent) -> None:
        self.ended: Callable[[InstallEnded], None] | None = None
        self.fail: Callable[[LockstepError], None] | None = None
        self.error: LockstepError | None = None
        self._folder = folder
        self._runners = runners
        self._on_event = on_event
        self._running: dict[str, Offer] = {}
        self._installing: set[asyncio.Task[None]] = set()
        self._settling: set[asyncio.Task[None]] = set()

    @property
    def offers(self) -> tuple[Offer, ...]:
        """What installs now, or may: also what a process before this one began and nobody has settled yet."""
        return tuple(self._running.values())

    def is_under_way(self, delivery: str) -> bool:
        """Return whether the delivery installs, or is about to."""
        return delivery in self._running

    def settle(self) -> None:
        """Begin to ask the system how each installation ended that a crash interrupted. Raises BadFileError.

        No connection may receive meanwhile: a file that came whole and whose installation was not begun is put where
        its next offer finds it.
        """
        self._folder.drop_old_marks()
        for mark in self._folder.marks():
            if mark.running and mark.offer.delivery not in self._running:
                self._begin(mark.offer, self._settle(mark), self._settling)
        kept = self._folder.kept_digests() | {offer.object for offer in self.offers}
        with contextlib.suppress(OSError):  # at worst it is fetched again
            set_aside_uninstalled(self._folder, {digest.hex() for digest in kept})

    def install(self, offer: Offer) -> None:
        """Begin to install `offer`, whose file is in place."""
        self._on_event("delivery", f"Installing {name_of(offer)}.")
        self._begin(offer, self._install(offer), self._installing)

    def take_error(self) -> LockstepError | None:
        """Return the fault that broke an installation off since the last call, if there was one."""
        error, self.error = self.error, None
        return error

    async def wait(self, seconds: float | None = None) -> bool:
        """Wait until nothing installs any more, or the time is over; return whether nothing does.

        Asking how an interrupted installation ended is given up: the next start asks again.
        """
        await _cancel(self._settling)
        if self._installing:
            await asyncio.wait(self._installing, timeout=seconds)
        return not self._installing

    async def cancel(self) -> None:
        """Stop everything now; the marks stay on the disk."""
        await _cancel(self._settling | self._installing)

    # --- one installation ---------------------------------------------------------------------------------------------

    async def _install(self, offer: Offer) -> None:
        kept = self._folder.mark(offer.delivery)
        if kept is not None and kept.running:  # how the last start ended could not be kept: it may not run again
            await self._settle(kept)
            return
        starts = kept.starts if kept else 0
        if starts >= STARTS:
            self._end(offer, _interrupted(offer, starts))
            return
        try:
            before = await self._version_before(offer)
            self._folder.put_mark(Mark(offer=offer, starts=starts + 1, before=before))
        except LockstepError as error:
            if error.code == "disk-failed":
                raise
            reason = "no-space" if error.code == "state-folder" else error.code
            result = InstallResult(ok=False, reason=reason, detail=str(error), installed_version="")
        else:
            result = await self._run(offer)
        if result.ok:
            self._succeeded(offer, result.installed_version)
        else:
            self._set_aside(offer)
            self._end(offer, failure(offer, result.reason, result.detail))

    async def _version_before(self, offer: Offer) -> str | None:
        """Return what the system has; the wanted version when nobody can say. Raises when its tool is busy.

        Whatever else a runner raises must not end the connection: before the mark is on the disk no start is counted,
        so the hub would offer the same again without end.
        """
        runner = self._runners.get(offer.installer.installer_kind)
        try:
            return await runner.installed_version(offer.installer.package_name) if runner else None
        except Exception as error:
            if isinstance(error, LockstepError) and error.code == "runner-busy":
                raise
            return offer.installer.version

    async def _run(self, offer: Offer) -> InstallResult:
        kind = offer.installer.installer_kind
        if kind not in self._runners:
            detail = f"This terminal has nothing that installs a {kind}."
            return InstallResult(ok=False, reason="no-runner", detail=detail, installed_version="")
        try:
            return await self._runners[kind].install(self._task(offer))
        except Exception as error:  # a runner promises a result; one that breaks its promise must not hang the delivery
            detail = _broke_off(offer, error)
            return InstallResult(ok=False, reason="runner-failed", detail=detail, installed_version="")

    def _task(self, offer: Offer) -> InstallTask:
        installer = offer.installer
        return InstallTask(
            delivery=offer.delivery,
            program=installer.program,
            package_name=installer.package_name,
            version=installer.version,
            kind=installer.installer_kind,
            file=self._file(offer),
            digest_hex=offer.object.hex(),
            facts={"file_name": installer.file_name},
        )

    # --- one that was interrupted -------------------------------------------------------------------------------------

    async def _settle(self, mark: Mark) -> None:
        """Report how an interrupted installation ended, by asking the system.

        The version is there and was not before: done. It surely is not: the hub may offer it again, a few times.
        Nobody can say: failed with `outcome-unknown`, for it must not run twice.
        """
        offer, wanted = mark.offer, mark.offer.installer.version
        if any((one.digest, one.version) == (offer.object, wanted) for one in self._folder.inventory()):
            self._succeeded(offer, wanted)  # it was kept already; only the report is lost
            return
        try:
            version = await self._ask(offer)
        except (LockstepError, OSError) as error:
            self._end(offer, failure(offer, "outcome-unknown", str(error)))
            return
        except Exception as error:  # as above: broken off, it would be asked again at each connection, without end
            self._end(offer, failure(offer, "outcome-unknown", _broke_off(offer, error)))
            return
        if version != wanted:
            self._did_not_happen(mark)
        elif mark.before == wanted:
            detail = f"It was interrupted, and version {wanted} was there before: nobody can say which file it is from."
            self._end(offer, failure(offer, "outcome-unknown", detail))
        else:
            self._succeeded(offer, wanted)

    async def _ask(self, offer: Offer) -> str | None:
        runner = self._runners.get(offer.installer.installer_kind)
        return await runner.installed_version(offer.installer.package_name) if runner else None

    def _did_not_happen(self, mark: Mark) -> None:
        if mark.starts >= STARTS:
            self._end(mark.offer, _interrupted(mark.offer, mark.starts))
            return
        self._set_aside(mark.offer)
        self._folder.put_mark(structs.replace(mark, running=False))
        self._end(mark.offer, None)

    # --- how it ended -------------------------------------------------------------------------------------------------

    def _succeeded(self, offer: Offer, version: str) -> None:
        program = InstalledProgram(
            program=offer.installer.program,
            package_name=offer.installer.package_name,
            version=version,
            installer_kind=offer.installer.installer_kind,
            digest=offer.object,
        )
        self._folder.record_installed(program)
        self._end(offer, messages.State(delivery=offer.delivery, state=life.State.DONE, version=version), program)

    def _end(self, offer: Offer, report: messages.State | None, program: InstalledProgram | None = None) -> None:
        """Keep the report, then forget the mark, then say so."""
        if report is not None:
            # Of a cause that can pass it is said all the same, or nobody would hear of a full disk.
            with despite_full_disk() if report.reason in life.PASSING else contextlib.nullcontext():
                self._folder.add_report(report)
            self._folder.drop_mark(offer.delivery)
        self._running.pop(offer.delivery, None)
        if report is not None:
            self._on_event("delivery", outcome_words(report))
        if self.ended is not None:
            self.ended(InstallEnded(offer.delivery, report, program))

    def _set_aside(self, offer: Offer) -> None:
        """Keep the file of a failed installation with the partial ones, which are few and go, for another try."""
        if offer.object not in self._folder.kept_digests():
            with contextlib.suppress(OSError):
                self._file(offer).replace(self._folder.downloads / offer.object.hex())

    def _file(self, offer: Offer) -> Path:
        return self._folder.installed / offer.object.hex()

    # --- tasks --------------------------------------------------------------------------------------------------------

    def _begin(self, offer: Offer, work: Coroutine[None, None, None], tasks: set[asyncio.Task[None]]) -> None:
        self._running[offer.delivery] = offer
        task = asyncio.create_task(work)
        tasks.add(task)
        task.add_done_callback(lambda ended: self._task_ended(ended, offer.delivery, tasks))

    def _task_ended(self, task: asyncio.Task[None], delivery: str, tasks: set[asyncio.Task[None]]) -> None:
        tasks.discard(task)
        self._running.pop(delivery, None)  # still there when it broke off: its mark is settled before the next login
        error = None if task.cancelled() else task.exception()
        if error is None:
            return
        if not isinstance(error, LockstepError):
            error = LockstepError(f"An installation broke off: {type(error).__name__}: {error}")
        self.error = error
        if self.fail is not None:
            self.fail(error)


async def _cancel(tasks: set[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)


def outcome_words(report: messages.State) -> str:
    """Return one sentence on how a delivery ended."""
    words = f"{report.reason}: {report.detail}" if report.reason else f"version {report.version}"
    return f"Delivery {report.delivery} is {report.state} ({words})."


def name_of(offer: Offer) -> str:
    """Return what an offer brings, in words."""
    return f"{offer.installer.program} {offer.installer.version}"


def _broke_off(offer: Offer, error: Exception) -> str:
    return f"The runner for {offer.installer.installer_kind} broke off: {type(error).__name__}: {error}"


def _interrupted(offer: Offer, starts: int) -> messages.State:
    detail = f"It was begun {starts} times and interrupted each time before it had ended."
    return failure(offer, "install-interrupted", detail)
