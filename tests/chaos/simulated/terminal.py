"""A terminal without sockets, threads or files: its own session, installations, consent and inbox on a simulated disk.

What survives a crash is the `Machine`: the state folder, the files, and the system with what is installed in it. Each
write of the state folder is a moment at which the process may die, before it or after it. Bytes of a partial file that
were not synced may be gone afterwards; a runner that ran may have finished, have been killed, or still run.
"""

from collections import deque
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Final, TypeVar

from msgspec import Struct

from protocol import keys, life, limits, messages
from protocol.errors import LockstepError, TransferError, UnavailableError
from protocol.keys import SigningKey
from protocol.messages import AnyMessage, InstalledProgram, Message, Offer
from protocol.transfer import Receiver
from terminal import consent, inbox, session
from terminal.installers import InstallResult, InstallTask
from terminal.installing import Installations
from terminal.session import DeliveryAction, Event, LoggingIn, Session
from terminal.state import Mark, StateFolder
from tests.chaos.simulated.catalogue import CATALOGUE, DEVICE
from tests.chaos.simulated.clockwork import Clockwork, Crashed, Link, Process, Violation
from tests.chaos.simulated.hub import HUB_KEY

Value = TypeVar("Value")

LOCK_SECONDS: Final = 600.0
LONGEST_STEP_SECONDS: Final = 0.5
BY_PACKAGE: Final = {(one.program, one.version): one for one in CATALOGUE.values()}


class MemoryFolder(StateFolder):
    """A state folder in memory; every write is whole and on the disk, or not there at all."""

    def __init__(self, may_crash: Callable[[], None]) -> None:
        self.path = Path("/simulated")
        self._values: dict[str, Any] = {}
        self._may_crash = may_crash

    def marks(self) -> tuple[Mark, ...]:
        """Return the marks by age."""
        return tuple(value for value in self._values.values() if isinstance(value, Mark))

    def drop_mark(self, delivery: str) -> None:
        """Forget the mark of a delivery."""
        name = self._mark_name(delivery)
        if name in self._values:
            self._may_crash()
            del self._values[name]
            self._may_crash()

    def _read(self, name: str, kind: type[Value]) -> Value | None:
        return self._values.get(name)

    def _write(self, name: str, value: object) -> None:
        self._may_crash()
        self._values.pop(name, None)
        self._values[name] = value
        self._may_crash()


class Disk:
    """The files. A partial one is its chunks by index, with which of them are not synced yet."""

    def __init__(self) -> None:
        self.files: dict[bytes, bytes] = {}
        self.partial: dict[bytes, dict[int, bytes]] = {}
        self.unsynced: set[tuple[bytes, int]] = set()

    def crash(self, clockwork: Clockwork) -> None:
        """Lose what was not synced, or not."""
        for digest, index in sorted(self.unsynced):
            if clockwork.chance.random() < 0.5:
                self.partial.get(digest, {}).pop(index, None)
        self.unsynced.clear()


class Running(Struct):
    """An installation on the system: what it puts in place and when, and when it is over."""

    delivery: str
    digest: bytes
    puts_at: float
    ends_at: float
    is_good: bool


class System:
    """What is installed, by program, and the one package manager, which works on one thing at a time.

    `had` says since when (0 for always) and until when each digest was in place, as far as it is known.
    """

    def __init__(self) -> None:
        self.installed: dict[str, bytes] = {}
        self.gone_at: dict[bytes, float] = {}
        self.put_by: dict[str, int] = {}
        self.running: Running | None = None

    def settle(self, now: float) -> None:
        """Let happen what has happened by now."""
        running = self.running
        if running is None:
            return
        if running.is_good and running.puts_at <= now:
            self._put(running)
            running.is_good = False
        if running.ends_at <= now:
            self.running = None

    def _put(self, running: Running) -> None:
        program = CATALOGUE[running.digest].program
        before = self.installed.get(program)
        if before is not None and before != running.digest:
            self.gone_at[before] = running.puts_at
        self.installed[program] = running.digest
        self.put_by[running.delivery] = self.put_by.get(running.delivery, 0) + 1

    def had_since(self, digest: bytes, since: float) -> bool:
        """Return whether it was in place at some time since then."""
        return digest in self.installed.values() or self.gone_at.get(digest, -1.0) >= since


class SimulatedRunner:
    """Installs on the `System` of a machine; the package manager's lock outlives a killed terminal."""

    def __init__(self, machine: "Machine", process: Process) -> None:
        self._machine = machine
        self._process = process

    async def installed_version(self, package_name: str) -> str | None:
        """Return what the system has, once nothing is being installed."""
        await self._lock()
        system = self._machine.system
        digest = system.installed.get(package_name)
        return CATALOGUE[digest].version if digest is not None else None

    async def install(self, task: InstallTask) -> InstallResult:
        """Install one installer."""
        machine, system, clockwork = self._machine, self._machine.system, self._machine.clockwork
        digest = bytes.fromhex(task.digest_hex)
        try:
            await self._lock()
        except UnavailableError as error:
            return InstallResult(False, error.code, str(error), "")
        machine.promises.starts(machine, task.delivery, digest)
        chance = clockwork.chance
        seconds = chance.choice((0.1, 0.5, 0.5, 3.0, 60.0, 500.0)) * chance.random()
        if machine.may_hang and chance.random() < 0.1:
            seconds = chance.random() * 3 * life.DAY
        is_good = not (machine.may_fail and chance.random() < 0.3)
        reason = "" if is_good else chance.choice(("runner-failed", "no-space", "bad-file"))
        now = clockwork.now
        running = Running(task.delivery, digest, now + seconds * chance.random(), now + seconds, is_good)
        system.running = running
        clockwork.say(machine.terminal, f"runs {task.delivery} for {seconds:.1f} s, {reason or 'good'}")
        await clockwork.sleep(seconds, self._process)
        system.settle(clockwork.now)
        return InstallResult(is_good, reason or "installed", "", task.version if is_good else "")

    async def _lock(self) -> None:
        clockwork, system = self._machine.clockwork, self._machine.system
        until = clockwork.now + LOCK_SECONDS
        while True:
            system.settle(clockwork.now)
            if system.running is None:
                return
            if clockwork.now >= until:
                raise UnavailableError("Another installation still runs.", code="runner-busy")
            await clockwork.sleep(min(system.running.ends_at, until) - clockwork.now, self._process)


class SimulatedInstallations(Installations):
    """The terminal's installations, driven by the clockwork."""

    def __init__(self, machine: "Machine", process: Process) -> None:
        super().__init__(machine.folder, {"deb": SimulatedRunner(machine, process)}, machine.told)
        self._machine = machine
        self._process = process

    def _begin(self, offer: Offer, work: Coroutine[Any, Any, None], tasks: Any) -> None:
        self._running[offer.delivery] = offer
        self._machine.clockwork.drive(self._process, self._track(offer, work))

    async def _track(self, offer: Offer, work: Coroutine[Any, Any, None]) -> None:
        await work
        self._running.pop(offer.delivery, None)

    def _end(self, offer: Offer, report: messages.State | None, program: InstalledProgram | None = None) -> None:
        super()._end(offer, report, program)
        if report is not None:
            self._machine.promises.completed(self._machine, report)

    def _set_aside(self, offer: Offer) -> None:
        disk, folder = self._machine.disk, self._machine.folder
        kept = {one.digest for one in (*folder.inventory(), *folder.previous())}
        if offer.object not in kept and offer.object in disk.files:
            self._machine.to_partial(offer.object)


class Download:
    """One offer's file, as `terminal.downloads` has it, on the simulated disk."""

    def __init__(self, machine: "Machine", offer: Offer) -> None:
        if machine.may_fail and machine.clockwork.chance.random() < 0.1:
            raise TransferError("The disk is full.", code="no-space")
        self.offer = offer
        self.receiver = Receiver(offer)
        self._machine = machine
        self._installer = CATALOGUE[offer.object]

    def prepare(self) -> None:
        """Find what is there already, in this file and in older ones of the program."""
        disk, digest = self._machine.disk, self.offer.object
        if digest in disk.files and digest not in disk.partial:
            self._machine.to_partial(digest)
        partial = disk.partial.setdefault(digest, {})
        older = {chunk for other in self._machine.older(self.offer) for chunk in other}
        for index, raw in enumerate(self._installer.raw):
            if partial.get(index) == raw:
                self.receiver.have(index)
            elif raw in older:
                self._write(index, raw)
                self.receiver.have(index)

    def write(self, frame: messages.Chunks) -> None:
        """Check a frame and write it."""
        _, pieces = self.receiver.accept(frame)
        for index, raw in enumerate(pieces, start=frame.first):
            self._write(index, raw)

    def verify(self) -> None:
        """Read the whole file and put it in place."""
        disk, digest = self._machine.disk, self.offer.object
        partial = disk.partial.get(digest, {})
        if self._machine.verifies and any(partial.get(index) != raw for index, raw in enumerate(self._installer.raw)):
            raise TransferError("Chunks were damaged on the disk.", code="disk")
        disk.partial.pop(digest, None)
        disk.unsynced = {pair for pair in disk.unsynced if pair[0] != digest}
        disk.files[digest] = b"".join(partial[index] for index in sorted(partial))

    def fetched(self, serial: int) -> Event:
        """Return how far it is."""
        receiver = self.receiver
        return session.Fetched(serial, receiver.frames, receiver.done_bytes, receiver.next_want(), receiver.complete)

    def _write(self, index: int, raw: bytes) -> None:
        disk = self._machine.disk
        disk.partial.setdefault(self.offer.object, {})[index] = raw
        disk.unsynced.add((self.offer.object, index))


class Promises:
    """Who is told of what an installation does; the world looks whether it may."""

    def starts(self, machine: "Machine", delivery: str, digest: bytes) -> None:
        """A runner starts."""

    def completed(self, machine: "Machine", report: messages.State) -> None:
        """An installation has ended and its terminal has kept how."""

    def delivered(self, machine: "Machine", message: AnyMessage) -> None:
        """Someone at this terminal is told something of what was asked there."""


class Machine:
    """One device: what survives, and the process that runs on it, if one does. `dial` gives a link to the hub."""

    verifies = True

    def __init__(
        self, terminal: str, clockwork: Clockwork, promises: Promises, dial: Callable[["Connection"], bool],
        *, receives: bool,
    ) -> None:  # fmt: skip
        self.terminal = terminal
        self.clockwork = clockwork
        self.promises = promises
        self.dial = dial
        self.receives = receives
        self.folder = MemoryFolder(self._maybe_crash)
        self.disk = Disk()
        self.system = System()
        self.may_fail = self.may_hang = False
        self.crashes_after_writes = -1
        self.asked: dict[int, Message] = {}
        self.process: TerminalProcess | None = None

    def start(self) -> None:
        """Start the agent."""
        if self.process is None:
            self.process = TerminalProcess(self)
            self.process.connect()

    def crash(self) -> None:
        """Kill the agent, or the power goes."""
        agent, self.process = self.process, None
        self.crashes_after_writes = -1
        if agent is None:
            return
        agent.process.alive = False
        if agent.connection is not None:
            agent.connection.process.alive = False
            agent.connection.link.cut(at_once=True)
        self.disk.crash(self.clockwork)
        self.system.settle(self.clockwork.now)
        if self.system.running is not None and self.clockwork.chance.random() < 0.5:
            self.system.running = None

    def told(self, _kind: str, sentence: str) -> None:
        """The terminal says something to people."""
        self.clockwork.say(self.terminal, sentence)

    def to_partial(self, digest: bytes) -> None:
        """Move a whole file back among the partial ones."""
        content = self.disk.files.pop(digest)
        raw = CATALOGUE[digest].raw
        starts = [sum(map(len, raw[:index])) for index in range(len(raw))]
        self.disk.partial[digest] = {
            index: content[start : start + len(raw[index])] for index, start in enumerate(starts)
        }

    def older(self, offer: Offer) -> list[tuple[bytes, ...]]:
        """Return the chunks of the program's files that are kept."""
        programs = (*self.folder.inventory(), *self.folder.previous())
        digests = [one.digest for one in programs if one.program == offer.installer.program]
        return [CATALOGUE[digest].raw for digest in digests if digest in self.disk.files]

    def _maybe_crash(self) -> None:
        if self.crashes_after_writes > 0:
            self.crashes_after_writes -= 1
        elif self.crashes_after_writes == 0 and self.process is not None:
            raise Crashed(self.process.process)


class TerminalProcess:
    """One run of the agent."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.process = Process(machine.terminal)
        self.installations = SimulatedInstallations(machine, self.process)
        self.connection: Connection | None = None

    def connect(self) -> None:
        """Dial, or try again a little later."""
        if self.machine.receives:
            self.installations.settle()
        connection = Connection(self)
        if self.machine.dial(connection):
            self.connection = connection
            connection.open()
        else:
            self.connect_later()

    def connect_later(self) -> None:
        """Back off."""
        clockwork = self.machine.clockwork
        seconds = clockwork.chance.random() ** 2 * limits.RECONNECT_LARGEST_SECONDS
        clockwork.after(seconds, self.process, self.connect)

    def decide(self, decision: messages.Decide) -> None:
        """A person decides."""
        connection = self.connection
        try:
            said = inbox.decide(self.machine.folder, decision, connection.is_under_way if connection else _no)
        except LockstepError:
            return  # too late
        if connection is not None and said is not None:
            connection.feed(session.Decided(said))


class Connection:
    """One connection of the agent: feeds its session, performs its actions, as connection.py and receiving.py do."""

    link: Link

    def __init__(self, agent: TerminalProcess) -> None:
        machine = agent.machine
        self.agent = agent
        self.machine = machine
        self.process = Process(machine.terminal)
        folder = machine.folder
        opening = LoggingIn(
            machine.terminal, HUB_KEY.public, DEVICE, SigningKey(machine.terminal.encode() * 11),
            machine.receives, "hub.example", 443,
        )  # fmt: skip
        self.session = Session(
            opening,
            keys.new_nonce(),
            inventory=folder.inventory(),
            reports=folder.reports(),
            installing=agent.installations.offers,
            decided=inbox.decided_unheard(folder.inbox()),
            asking=tuple(entry.row.delivery for entry in folder.inbox()),
        )
        if machine.receives:
            agent.installations.ended = self.feed
        self.is_welcomed = False
        self._downloads: dict[int, Download] = {}

    def open(self) -> None:
        """The link is there: log in within 5 s."""
        self.feed(session.Connected())
        self.machine.clockwork.after(limits.LOGIN_SECONDS, self.process, self._give_up_login)

    def _give_up_login(self) -> None:
        if not self.is_welcomed:
            self.link.close()
            self.ended()

    def heard(self, message: AnyMessage) -> None:
        """The hub said something."""
        if self.process.alive:
            self.feed(session.Heard(message))

    def ended(self) -> None:
        """The connection is over."""
        if not self.process.alive:
            return
        self.process.alive = False
        self.agent.installations.ended = None
        self.agent.connection = None
        self.agent.connect_later()

    def is_under_way(self, delivery: str) -> bool:
        """Return whether it comes or installs now."""
        return self.session.is_under_way(delivery)

    def ask(self, number: int, request: Message) -> None:
        """Send a request, if it may be sent now."""
        if self.is_welcomed:
            self.feed(session.Ask(request))

    def feed(self, event: Event) -> None:
        """Handle `event`, and at once the events its actions bring."""
        events = deque([event])
        clockwork = self.machine.clockwork
        while events:
            clockwork.say(self.machine.terminal, events[0])
            for action in self.session.handle(events.popleft(), clockwork.now):
                brought = self._perform(action)
                if brought is not None:
                    events.append(brought)

    def _perform(self, action: session.Action) -> Event | None:
        match action:
            case session.Say(message):
                self.link.send(True, message)
            case session.Welcomed():
                self.is_welcomed = True
                for number, request in self.machine.asked.items():
                    self.machine.clockwork.after(0.0, self.process, self.ask, number, request)
            case session.HubRefused(error):
                if error.code != "replaced":
                    raise Violation(f"the hub refuses {self.machine.terminal}: {error}")
                self.link.close()
                self.ended()
            case session.Deliver(message):
                self.machine.promises.delivered(self.machine, message)
            case session.KeepDevices() | session.AskDevices() | session.KeepStanding() | session.ShowPairing():
                pass
            case _:
                return self._receive(action)
        return None

    # --- a delivery ---------------------------------------------------------------------------------------------------

    def _receive(self, action: DeliveryAction) -> Event | None:
        folder = self.machine.folder
        match action:
            case session.Consider(serial, offer):
                return session.Considered(serial, inbox.consider(folder, offer, self.machine.told))
            case session.Forget(delivery):
                inbox.forget(folder, delivery, self.machine.told)
                folder.drop_mark(delivery)
            case session.KeepReport(report):
                folder.add_report(report)
            case session.DropReport(delivery, state):
                folder.drop_report(delivery, state)
                if state == life.State.DONE:
                    inbox.forget(folder, delivery)
                self._tidy()
            case _:
                return self._step(action)
        return None

    def _step(self, action: DeliveryAction) -> Event | None:
        serial = getattr(action, "serial", 0)
        try:
            match action:
                case session.Begin(serial, Offer() as offer):
                    self._downloads[serial] = Download(self.machine, offer)
                case session.AddPage(serial, page):
                    return session.PageAdded(serial, self._downloads[serial].receiver.add_page(page))
                case session.Write(serial, frame):
                    self._downloads[serial].write(frame)
                    return self._downloads[serial].fetched(serial)
                case session.Prepare(serial):
                    self._later(self._prepare, serial)
                case session.Verify(serial):
                    self._later(self._verify, serial)
                case session.Install(serial, offer):
                    del self._downloads[serial]
                    self.agent.installations.install(offer)
                case session.Abandon(serial, discard):
                    download = self._downloads.pop(serial, None)
                    if download is not None and discard:
                        self.machine.disk.partial.pop(download.offer.object, None)
        except TransferError as error:
            return session.StepFailed(serial, error.code, error.message)
        return None

    def _later(self, step: Callable[[int], None], serial: int) -> None:
        clockwork = self.machine.clockwork
        clockwork.after(clockwork.chance.random() * LONGEST_STEP_SECONDS, self.process, step, serial)

    def _prepare(self, serial: int) -> None:
        if serial in self._downloads:
            self._downloads[serial].prepare()
            self.feed(self._downloads[serial].fetched(serial))

    def _verify(self, serial: int) -> None:
        if serial not in self._downloads:
            return
        try:
            self._downloads[serial].verify()
        except TransferError as error:
            self.feed(session.StepFailed(serial, error.code, error.message))
        else:
            self.feed(session.Verified(serial))

    def _tidy(self) -> None:
        folder, disk = self.machine.folder, self.machine.disk
        kept = {one.digest for one in (*folder.previous(), *folder.inventory())}
        kept |= {offer.object for offer in self.agent.installations.offers}
        kept |= {download.offer.object for download in self._downloads.values()}
        for digest in disk.files.keys() - kept:
            del disk.files[digest]


def _no(_delivery: str) -> bool:
    return False


def preferences(clockwork: Clockwork) -> consent.Preferences:
    """Return what some owner wants."""
    wishes: tuple[consent.Wish, ...] = ("auto", "auto", "auto", "ask", "ask", "never")
    chance = clockwork.chance
    programs = {"player": chance.choice(wishes)} if chance.random() < 0.3 else {}
    return consent.Preferences(consent=chance.choice(wishes), programs=programs)
