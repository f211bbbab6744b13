"""A hub without sockets, threads or files: its own sessions, deliveries, syncs, reaper and SQL on a simulated clock.

What is written anew here is only what waits: the store, which commits in batches a little later, and the socket, whose
reader, thinker and writer are those of `hub/terminalsocket.py` without asyncio. The database is SQLite in memory, and
the whole run is one outer transaction of it that is rolled back at the end.
"""

import sqlite3
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar, cast

import hub.store
from hub import session as brain
from hub.accounts import Accounts
from hub.clock import HubClock
from hub.deliveries import Deliveries
from hub.delivery import Delivery
from hub.pokes import Concern, Pokes, Topic
from hub.presence import Presence, Roster
from hub.reaper import KEEP_CLOCK_EVERY_LOOKS, LOOK_EVERY_SECONDS, Reaper
from hub.records import Owed, Terminal
from hub.requests import Requests
from hub.store import QUERIES, Body, Row, Store, Transaction
from hub.syncs import Syncs
from protocol import codec, life, limits, messages
from protocol.errors import LockstepError, ProtocolError, TransferError
from protocol.keys import SigningKey
from protocol.messages import Message
from tests.chaos.simulated.catalogue import CATALOGUE, NAMES, MemoryPack, fill
from tests.chaos.simulated.clockwork import Clockwork, Crashed, Link, Process, Violation, Wait

T = TypeVar("T")

HUB_KEY: Final = SigningKey(b"h" * 32)
LONGEST_COMMIT_SECONDS: Final = 0.2
LONGEST_SEND_SECONDS: Final = 0.3


class MemoryTransaction(Transaction):
    """The named queries on a connection that never waits."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._database = connection

    async def rows(self, query: str, /, **parameters: object) -> list[Row]:
        """Run a named query and return its rows."""
        return self._database.execute(QUERIES[query], parameters).fetchall()

    async def row(self, query: str, /, **parameters: object) -> Row | None:
        """Run a named query and return its first row, or None."""
        return cast(Row | None, self._database.execute(QUERIES[query], parameters).fetchone())

    async def many(self, query: str, parameters: Iterable[Mapping[str, Any]]) -> None:
        """Run a named query once for each set of parameters."""
        self._database.executemany(QUERIES[query], parameters)


class Database:
    """What survives a crash of the hub: one SQLite database for all runs, emptied by `reset`."""

    def __init__(self) -> None:
        self.connection = sqlite3.connect(":memory:", isolation_level=None, cached_statements=256)
        self.connection.row_factory = sqlite3.Row
        self.connection.execute("PRAGMA foreign_keys=ON")
        self.connection.executescript((Path(hub.store.__file__).parent / "schema.sql").read_text())
        fill(self.connection)
        self.connection.execute("BEGIN")
        self.connection.execute("SAVEPOINT run")
        self.transaction = MemoryTransaction(self.connection)
        self._is_open = False

    def reset(self) -> None:
        """Forget the run."""
        self._is_open = False
        self.connection.execute("ROLLBACK TO run")

    def begin(self) -> None:
        """From here on nothing is kept until `keep`; only the planted fault of answering early needs that."""
        if not self._is_open:
            self._is_open = True
            self.connection.execute("SAVEPOINT early")

    def keep(self) -> None:
        """Keep what was begun."""
        if self._is_open:
            self._is_open = False
            self.connection.execute("RELEASE early")

    def lose(self) -> None:
        """Lose what was begun."""
        if self._is_open:
            self._is_open = False
            self.connection.execute("ROLLBACK TO early")
            self.connection.execute("RELEASE early")

    def rows(self, sql: str, *parameters: object) -> list[Row]:
        """Look from outside."""
        return self.connection.execute(sql, parameters).fetchall()


class MemoryStore(Store):
    """Runs the bodies that wait in one commit, a moment later."""

    def __init__(self, world: "HubWorld", process: Process) -> None:
        self._world = world
        self._process = process
        self._bodies: list[tuple[Body[Any], Callable[[Any], None]]] = []

    async def transaction(self, body: Body[T]) -> T:
        """Run `body`; the result comes after the commit."""
        return cast(T, await Wait(lambda resume: self._enqueue(body, resume)))

    def _enqueue(self, body: Body[Any], resume: Callable[[Any], None]) -> None:
        if not self._bodies:
            clockwork = self._world.clockwork
            clockwork.after(clockwork.chance.random() ** 3 * LONGEST_COMMIT_SECONDS, self._process, self._commit_all)
        self._bodies.append((body, resume))
        if self._world.acknowledges_early:
            self._world.database.begin()
            self._world.clockwork.after(0.0, self._process, self._answer_early, len(self._bodies) - 1)

    def _answer_early(self, place: int) -> None:
        """The planted fault: hand the result out though nothing is kept yet."""
        if place < len(self._bodies):
            body, resume = self._bodies[place]
            self._bodies[place] = (_do_nothing, _tell_nobody)
            resume(self._run(body))

    def _commit_all(self) -> None:
        """Commit what waits. A crash comes before it, when all is lost, or after it, when nobody hears of it."""
        world = self._world
        bodies, self._bodies = self._bodies, []
        if world.crash_at == "before":
            raise Crashed(self._process)
        connection = world.database.connection
        changes = connection.total_changes
        results = [(self._run(body), resume) for body, resume in bodies]
        world.database.keep()
        if connection.total_changes != changes or world.acknowledges_early:
            world.committed()
        if world.crash_at == "after":
            raise Crashed(self._process)
        for result, resume in results:
            resume(result)

    def _run(self, body: Body[Any]) -> Any:
        database = self._world.database
        changes = database.connection.total_changes
        try:
            return finish(body(database.transaction))
        except LockstepError as error:
            assert database.connection.total_changes == changes, "there would be something to roll back"
            return error


async def _do_nothing(_transaction: Transaction) -> None:
    """Run already."""


def _tell_nobody(_result: Any) -> None:
    """Told already."""


def finish(work: Awaitable[T]) -> T:
    """Run a coroutine that never really waits."""
    try:
        work.__await__().send(None)
    except StopIteration as end:
        return cast(T, end.value)
    raise AssertionError("a body waited for something")


class SimulatedPokes(Pokes):
    """Pokes that are passed on in a moment."""

    def __init__(self, flush: Callable[[], None]) -> None:
        self.topics: dict[Topic, None] = {}
        self._flush = flush

    def poke(self, concern: Concern, terminal: str) -> None:
        """Tell whoever serves `terminal` to look again."""
        if not self.topics:
            self._flush()
        self.topics[concern, terminal] = None


class HubWorld:
    """The hub's machine: the database, and the process that runs on it, if one does."""

    acknowledges_early = False

    def __init__(self, clockwork: Clockwork, database: Database, committed: Callable[[], None]) -> None:
        self.clockwork = clockwork
        self.database = database
        self.committed = committed
        self.crash_at = ""
        self.may_damage = False
        self.process: HubProcess | None = None

    def start(self) -> None:
        """Start the hub."""
        self.process = HubProcess(self)

    def crash(self) -> None:
        """Kill it: what was not committed is gone, and hub time since it was last kept."""
        hub_process = self.process
        assert hub_process is not None
        self.crash_at = ""
        self.process = None
        hub_process.process.alive = False
        self.database.lose()
        if hub_process.is_up:
            lost = self.clockwork.chance.random() * KEEP_CLOCK_EVERY_LOOKS * LOOK_EVERY_SECONDS
            kept = min(hub_process.clock.now() - lost, hub_process.clock.now())
            self.database.connection.execute(QUERIES["keep_hub_clock"], {"seconds": kept})
        for socket in list(hub_process.sockets.values()):
            socket.process.alive = False
            socket.link.cut(at_once=True)

    def hub_now(self) -> float:
        """Hub time, or 0 while it does not run."""
        return self.process.clock.now() if self.process is not None and self.process.is_up else 0.0


class HubProcess:
    """One run of the hub."""

    def __init__(self, world: HubWorld) -> None:
        clockwork = world.clockwork
        self.world = world
        self.process = Process("hub")
        self.clock = HubClock()
        self.pokes = SimulatedPokes(self._flush_pokes)
        self.presence = Presence()
        self.presence.rosters["a-1"] = Roster(())
        self.store = MemoryStore(world, self.process)
        self.accounts = Accounts(self.store, cast(Any, None), terminals_per_account=100)
        receiving = self.presence.is_receiving
        self.deliveries = Deliveries(self.store, self.pokes, self.clock, receiving)
        self.syncs = Syncs(
            self.store,
            self.pokes,
            self.deliveries,
            self.clock,
            receiving,
            delivery_seconds=life.DELIVERY_SECONDS,
            check_room=lambda: None,
        )
        self.requests = Requests(self.accounts, self.syncs, self.presence, cast(Any, None), cast(Any, None))
        self.reaper = Reaper(self.deliveries, self.pokes, self.presence)
        self.sockets: dict[int, HubSocket] = {}
        self.is_up = False
        self._next_number = 0
        self._looks_at = float("inf")
        clockwork.drive(self.process, self._start())

    async def _start(self) -> None:
        await self.deliveries.start()
        self.is_up = True
        self.plan_look()

    def accept(self, link: Link) -> "HubSocket":
        """A terminal has dialled."""
        self._next_number += 1
        socket = HubSocket(self, link, self._next_number)
        self.sockets[self._next_number] = socket
        return socket

    def plan_look(self) -> None:
        """Have the reaper look within a second of the next deadline; the looks that would find nothing are left out."""
        (found,) = self.world.database.rows(
            "SELECT MIN(deadline_at) AS due, (SELECT MIN(retry_at) FROM deliveries WHERE is_final = 0 AND retry_at > 0)"
            " AS again FROM deliveries WHERE is_final = 0"
        )
        due = min((at for at in found if at is not None), default=None)
        if due is None:
            return
        clockwork = self.world.clockwork
        at = clockwork.now + max(due - self.clock.now(), 0.0)
        if at < self._looks_at:
            self._looks_at = at + clockwork.chance.random() * LOOK_EVERY_SECONDS
            clockwork.after(self._looks_at - clockwork.now, self.process, self._look, self._looks_at)

    def _look(self, at: float) -> None:
        if at == self._looks_at:
            self._looks_at = float("inf")
            self.world.clockwork.drive(self.process, self._look_now())

    async def _look_now(self) -> None:
        await self.reaper.look()
        self.plan_look()

    def _flush_pokes(self) -> None:
        clockwork = self.world.clockwork
        clockwork.after(clockwork.chance.random() * 0.01, self.process, self._pass_pokes_on)

    def _pass_pokes_on(self) -> None:
        topics, self.pokes.topics = self.pokes.topics, {}
        for concern, terminal in topics:
            number = self.presence.socket_of(terminal)
            socket = self.sockets.get(number) if number is not None else None
            if socket is not None:
                socket.tell(brain.Owing() if concern == "owed" else brain.Changed())


class HubSocket:
    """One live socket, as `hub.terminalsocket.TerminalSocket` has it."""

    def __init__(self, hub_process: HubProcess, link: Link, number: int) -> None:
        self.hub = hub_process
        self.link = link
        self.number = number
        self.process = Process(f"hub/{number}")
        self.clockwork = hub_process.world.clockwork
        self.session = brain.Session(HUB_KEY, NAMES, self.clockwork.now)
        self._inbox: deque[brain.Event] = deque()
        self._told: set[type[brain.Event]] = set()
        self._outbox: deque[Message] = deque()
        self._is_thinking = False
        self._is_admitting = ""
        self._is_sending = False
        self._closing: brain.Close | None = None
        self._delivery: Delivery | None = None
        self._plan_tick()

    # --- what comes in ------------------------------------------------------------------------------------------------

    def heard(self, message: Message) -> None:
        """The terminal said `message`."""
        self._put(brain.Received(message))

    def tell(self, event: brain.Event) -> None:
        """Pass an event from elsewhere, once."""
        if type(event) not in self._told:
            self._told.add(type(event))
            self._put(event)

    def ended(self) -> None:
        """The connection is over: the tasks of the socket are cancelled where they stand, then it takes its leave."""
        if not self.process.alive:
            return
        self.process.alive = False
        del self.hub.sockets[self.number]
        if self._is_admitting:
            self._replace(self.hub.presence.socket_of(self._is_admitting))
        self.clockwork.drive(self.hub.process, self._leave())

    def _put(self, event: brain.Event) -> None:
        if not self.process.alive:
            return
        self._inbox.append(event)
        if not self._is_thinking:
            self._is_thinking = True
            self.clockwork.drive(self.process, self._think())

    # --- thinking -----------------------------------------------------------------------------------------------------

    async def _think(self) -> None:
        while self._inbox:
            event = self._inbox.popleft()
            self._told.discard(type(event))
            events = deque([event])
            while events:
                self.clockwork.say(self.process.name, events[0])
                for action in self.session.handle(events.popleft(), self.clockwork.now):
                    brought = await self._perform(action)
                    if brought is not None:
                        events.append(brought)
        self._is_thinking = False
        self._plan_tick()

    def _plan_tick(self) -> None:
        due = self.session.deadline
        if due is not None:
            self.clockwork.after(max(due - self.clockwork.now, 0.0), self.process, self._tick, due)

    def _tick(self, due: float) -> None:
        if self.session.deadline == due and not self._is_thinking:
            self._put(brain.Ticked())

    async def _perform(self, action: brain.Action) -> brain.Event | None:
        match action:
            case brain.Send(message):
                self._queue(message)
            case brain.Close():
                self._close(action)
            case brain.FindTerminal(terminal):
                return brain.TerminalFound(await self.hub.accounts.find(terminal))
            case brain.Admit():
                return brain.Admitted(await self._admit(action))
            case brain.SendDevices():
                pass
            case brain.Answer(request):
                return brain.Answered(await self._answer(request))
            case brain.ReadChanges(since):
                return brain.ChangesRead(await self.hub.syncs.changes(self._me.terminal_id, since))
            case brain.NoteSync(sync):
                await self.hub.syncs.note(self._me.terminal_id, sync)
            case _:
                return await self._deliver(action)
        return None

    async def _admit(self, admit: brain.Admit) -> Terminal:
        presence = self.hub.presence
        self._is_admitting = admit.terminal.terminal_id
        terminal = await self.hub.accounts.count_login(
            admit.terminal.terminal_id, admit.device, "", receives=admit.receives
        )
        self._is_admitting = ""
        self._replace(presence.join("a-1", self.hub.accounts.device_row(terminal, online=admit.receives), self.number))
        return terminal

    def _replace(self, older: int | None) -> None:
        if older is not None and older in self.hub.sockets:
            self.hub.sockets[older].tell(brain.Replaced())

    async def _answer(self, request: Message) -> tuple[Message, ...]:
        try:
            answer, _ = await self.hub.requests.answer(self._me, request)
        except LockstepError as error:
            return (messages.Error(code=error.code, message=error.message, re=getattr(request, "id", 0)),)
        return answer

    async def _deliver(self, action: brain.Action) -> brain.Event | None:
        deliveries, me = self.hub.deliveries, self._me
        match action:
            case brain.SaveInventory(inventory, first):
                await deliveries.save_inventory(me.terminal_id, me.connection, inventory, first=first)
                return brain.InventorySaved()
            case brain.Claim():
                return brain.Claimed(await deliveries.claim(me.terminal_id, me.connection))
            case brain.CheckLive(held):
                return brain.LiveChecked(await deliveries.gone_of(held, me.terminal_id))
            case brain.Report(state):
                return brain.Reported(state, await self._report(state))
            case brain.StartTransfer(owed):
                return self._start_transfer(owed)
            case brain.StopTransfer():
                await self._stop_transfer()
            case brain.FeedWant(want):
                self._feed(lambda delivery: delivery.want(want))
            case brain.FeedProgress(progress):
                self._feed(lambda delivery: delivery.progress(progress, self.clockwork.now))
        return None

    def _start_transfer(self, owed: Owed) -> brain.Event | None:
        world = self.hub.world
        if world.may_damage and world.clockwork.chance.random() < 0.1:
            return brain.TransferBroken(owed.delivery, "damaged-object", "A pack was damaged.")
        self._delivery = Delivery(owed, MemoryPack(CATALOGUE[owed.digest]))
        self._queue(self._delivery.offer())
        return None

    def _feed(self, feed: Callable[[Delivery], None]) -> None:
        if self._delivery is None:
            return
        try:
            feed(self._delivery)
        except (ProtocolError, TransferError) as error:
            raise Violation(f"the transfer does not go by the rules: {error}") from error
        self._write()

    async def _report(self, state: messages.State) -> str:
        me = self._me
        return await self.hub.deliveries.report(me.terminal_id, me.connection, state)

    async def _stop_transfer(self) -> None:
        delivery, self._delivery = self._delivery, None
        if delivery is not None and (sent := delivery.take_sent_bytes()):
            await self.hub.deliveries.add_sent(delivery.owed.delivery, sent)

    async def _leave(self) -> None:
        if self.session.terminal is None:
            return
        me = self._me
        newest = self.hub.presence.leave(
            "a-1", me.terminal_id, self.number, now=self.clockwork.now, last_seen=self.clockwork.now
        )
        await self._stop_transfer()
        if newest:
            await self.hub.deliveries.terminal_left(me.terminal_id, me.connection)

    @property
    def _me(self) -> Terminal:
        assert self.session.terminal is not None
        return self.session.terminal

    # --- what goes out ------------------------------------------------------------------------------------------------

    def _queue(self, message: Message) -> None:
        if self._closing is not None:
            return
        self._outbox.append(message)
        if len(self._outbox) > limits.OUTBOUND_CONTROL_MESSAGES:
            self._outbox.clear()
            self._close(brain.Close(4002, "too slow"))
        self._write()

    def _close(self, close: brain.Close) -> None:
        if close.code in (brain.CLOSE_VIOLATION, brain.CLOSE_REFUSED) and self.session.is_open:
            raise Violation(f"the hub hung up on {self._me.terminal_id}: {close.code} {close.reason}")
        self._closing = close
        self._write()

    def _write(self) -> None:
        """Begin to send the next message, if the one before is out: what controls first, then a page or a frame."""
        if self._is_sending:
            return
        if self._outbox:
            message = self._outbox.popleft()
        elif self._closing is not None:
            self.link.close()
            return
        else:
            data = self._delivery.next_message(self.clockwork.now) if self._delivery is not None else None
            if data is None:
                return
            message = codec.decode(data)
        self._is_sending = True
        self.clockwork.say(self.process.name, message)
        self.link.send(False, message)
        self.clockwork.after(self.clockwork.chance.random() ** 4 * LONGEST_SEND_SECONDS, self.process, self._written)

    def _written(self) -> None:
        self._is_sending = False
        self._write()
