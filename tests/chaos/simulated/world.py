"""One simulated run: a hub, its terminals, an initiator, people, faults, and what is looked at all the time.

The seed chooses how many terminals there are, how fast things follow each other, which faults there are and when. Then
all faults stop, and everything has to come to its end: at once where people agree, by its deadline where nobody does.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Final, Literal, TypeAlias

import hub.accounts
import hub.clock
import hub.deliveries
import hub.syncs
import terminal.inbox
from protocol import keys, life, messages
from protocol.messages import AnyMessage, Message
from terminal import inbox
from terminal.consent import Preferences
from tests.chaos.simulated import terminal as terminals
from tests.chaos.simulated.catalogue import CATALOGUE, INITIATOR, RELEASES, TERMINALS
from tests.chaos.simulated.clockwork import Clockwork, FakeTime, Link, Process, Violation
from tests.chaos.simulated.hub import Database, HubSocket, HubWorld
from tests.chaos.simulated.terminal import Connection, Machine, Promises

PACES_SECONDS: Final = (0.05, 0.3, 1.0, 5.0, 60.0, 3_600.0, 86_400.0)
DELAYS_SECONDS: Final = (0.01, 0.1, 1.0)
REACTS_TO: Final = 0.06  # the share of all moves
LOSES_REPORTS: Final = 0.3  # the share of reports just after which the connection breaks
REACTS_WITHIN_SECONDS: Final = 0.5
CLOCK_STEPS_DAYS: Final = (-400.0, -1 / 24, 1 / 24, 10.0, 400.0)
FEWEST_STEPS: Final = 4
MOST_STEPS: Final = 16
SETTLED_WITHIN_SECONDS: Final = 5 * life.DAY  # everybody agrees: an installation that hangs has 2 days, then retries
EVERYTHING_ENDS_WITHIN_SECONDS: Final = 80 * life.DAY
Patch: TypeAlias = tuple[Any, str, Any]  # whose attribute or item, its name, its new value
Decision: TypeAlias = Literal["accept", "decline", "later"]
Step: TypeAlias = Literal[
    "sync", "repeat", "cancel", "undo", "cut", "hub", "terminal", "hub_at_commit", "terminal_at_write", "decide",
    "damage", "clock", "wish", "pause",
]  # fmt: skip
REACTIONS: Final[tuple[Step, ...]] = (
    "cancel", "cancel", "cut", "cut", "terminal", "hub", "damage", "damage", "sync",
)  # fmt: skip
WEIGHTS: Final[dict[Step, int]] = {
    "sync": 10, "repeat": 2, "cancel": 4, "undo": 3, "cut": 5, "hub": 2, "terminal": 3, "hub_at_commit": 3,
    "terminal_at_write": 3, "decide": 4, "damage": 2, "clock": 1, "wish": 1, "pause": 2,
}  # fmt: skip
QUIET: Final[frozenset[Step]] = frozenset({"sync", "repeat", "cancel", "undo", "decide", "wish", "pause"})


class World(Promises):
    """One run. `Violation` says what was not kept."""

    def __init__(self, clockwork: Clockwork, database: Database) -> None:
        chance = clockwork.chance
        self.clockwork = clockwork
        self.database = database
        self.process = Process("world")
        self.hub = HubWorld(clockwork, database, self._committed)
        self.pace_seconds = chance.choice(PACES_SECONDS)
        self.delay_seconds = chance.choice(DELAYS_SECONDS)
        targets = TERMINALS[: chance.choice((1, 1, 2, 3))]
        self.machines = {
            name: Machine(name, clockwork, self, self._dial, receives=name != INITIATOR)
            for name in (INITIATOR, *targets)
        }
        self.counts = {"faults": 0, "installs": 0, "syncs": 0, "deliveries": 0}
        self._links: list[tuple[str, Link]] = []
        self._requests = 0
        self._asked_before: dict[str, Message] = {}
        self._keys: dict[str, str] = {}
        self._accepted: dict[str, str] = {}
        self._told: set[str] = set()
        self._states: dict[str, str] = {}
        self._reports: dict[str, messages.State] = {}
        self._revision = 0
        self._faults_stopped = False
        clockwork.crashed = self._crashed

    # --- the run ------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Live through it. Raises Violation."""
        chance, clockwork = self.clockwork.chance, self.clockwork
        self.hub.start()
        for machine in self.machines.values():
            machine.folder.save_preferences(terminals.preferences(clockwork) if machine.receives else Preferences())
            machine.may_fail = chance.random() < 0.5
            machine.may_hang = chance.random() < 0.1
            machine.start()
        self.hub.may_damage = chance.random() < 0.1
        clockwork.run(2.0)
        kinds = [kind for kind in WEIGHTS if kind == "sync" or chance.random() < 0.7]
        weights = [WEIGHTS[kind] for kind in kinds]
        for kind in chance.choices(kinds, weights, k=chance.randint(FEWEST_STEPS, MOST_STEPS)):
            self.counts["faults"] += kind not in QUIET
            clockwork.say("world", kind)
            clockwork.step(self.process, getattr(self, f"_{kind}"))
            clockwork.run(clockwork.now + chance.expovariate(1.0) * self.pace_seconds)
        self._stop_faults()
        self._come_to_an_end(everybody_agrees=chance.random() < 0.5)
        self._look_at_the_end()

    def _stop_faults(self) -> None:
        self.clockwork.say("world", "all faults stop")
        self._faults_stopped = True
        self.hub.crash_at = ""
        self.hub.may_damage = False
        if self.hub.process is None:
            self.hub.start()
        for machine in self.machines.values():
            machine.crashes_after_writes = -1
            machine.may_fail = False
            machine.start()

    def _come_to_an_end(self, *, everybody_agrees: bool) -> None:
        clockwork = self.clockwork
        if everybody_agrees:
            until = clockwork.now + SETTLED_WITHIN_SECONDS
            while clockwork.now < until:
                for machine in self.machines.values():
                    machine.folder.save_preferences(Preferences())
                    for row in inbox.rows(machine.folder):
                        self._decide_on(machine, row.delivery, "accept")
                clockwork.run(clockwork.now + life.DAY / 2)
            if still := self.database.rows("SELECT delivery_id, state, reason FROM deliveries WHERE is_final = 0"):
                raise Violation(f"everybody agrees and nothing fails, and it waits: {[tuple(row) for row in still]}")
        clockwork.run(clockwork.now + EVERYTHING_ENDS_WITHIN_SECONDS)

    def _crashed(self, process: Process) -> None:
        """A process died in the middle of something."""
        self.clockwork.say("world", f"{process.name} has crashed")
        if process.name == "hub":
            self._hub()
        else:
            self._crash(self.machines[process.name])

    # --- what happens -------------------------------------------------------------------------------------------------

    def _sync(self) -> None:
        chance = self.clockwork.chance
        program = chance.choice(tuple(RELEASES))
        version = chance.choice(("", *RELEASES[program]))
        targets = tuple(name for name in self.machines if name != INITIATOR and chance.random() < 0.7)
        self._requests += 1
        request = messages.Sync(
            id=self._requests, request_key=f"k-{self._requests}", program=program, version=version, targets=targets,
            everyone=not targets,
        )  # fmt: skip
        self._ask(request)

    def _repeat(self) -> None:
        if self._asked_before:
            request = self._asked_before[self.clockwork.chance.choice(tuple(self._asked_before))]
            self._requests += 1
            self._ask(type(request)(**{**_fields(request), "id": self._requests}))

    def _cancel(self) -> None:
        if self._accepted:
            self._requests += 1
            self._ask(messages.Cancel(id=self._requests, sync=self._any_sync()))

    def _undo(self) -> None:
        if self._accepted:
            self._requests += 1
            self._ask(
                messages.Undo(id=self._requests, request_key=f"k-{self._requests}", sync=self._any_sync(), targets=())
            )

    def _may_react(self, sync: str) -> None:
        chance = self.clockwork.chance
        if not self._faults_stopped and chance.random() < REACTS_TO:
            self.clockwork.after(chance.random() ** 2 * REACTS_WITHIN_SECONDS, self.process, self._react, sync)

    def _react(self, sync: str) -> None:
        """Do something just when a delivery has moved: that is when it may matter."""
        if self._faults_stopped:
            return
        kind = self.clockwork.chance.choice(REACTIONS)
        self.clockwork.say("world", f"{kind}, just now")
        if kind == "cancel":
            self._requests += 1
            self._ask(messages.Cancel(id=self._requests, sync=sync))
        else:
            getattr(self, f"_{kind}")()

    def _any_sync(self) -> str:
        known = tuple(self._accepted)
        return self.clockwork.chance.choice(known[-4:])

    def _ask(self, request: Message) -> None:
        machine = self.machines[INITIATOR]
        number: int = getattr(request, "id")  # noqa: B009
        machine.asked[number] = request
        if key := getattr(request, "request_key", ""):
            self._asked_before[key] = request
        if machine.process is not None and machine.process.connection is not None:
            machine.process.connection.ask(number, request)

    def _cut(self) -> None:
        self._links = [pair for pair in self._links if not pair[1].is_cut]
        if self._links:
            self.clockwork.chance.choice(self._links)[1].cut()

    def _hub(self) -> None:
        if self.hub.process is not None:
            self.hub.crash()
            self.clockwork.after(self.clockwork.chance.random() ** 2 * 60, self.process, self._start_hub)

    def _start_hub(self) -> None:
        if self.hub.process is None:
            self.hub.start()

    def _terminal(self) -> None:
        self._crash(self._any_machine())

    def _crash(self, machine: Machine) -> None:
        machine.crash()
        self.clockwork.after(self.clockwork.chance.random() ** 2 * 60, self.process, machine.start)

    def _hub_at_commit(self) -> None:
        self.hub.crash_at = self.clockwork.chance.choice(("before", "after"))

    def _terminal_at_write(self) -> None:
        self._any_machine().crashes_after_writes = self.clockwork.chance.randint(0, 12)

    def _decide(self) -> None:
        machine = self._any_machine()
        rows = inbox.rows(machine.folder)
        if rows:
            chance = self.clockwork.chance
            decisions: tuple[Decision, ...] = ("accept", "accept", "decline", "later")
            self._decide_on(machine, chance.choice(rows).delivery, chance.choice(decisions))

    def _decide_on(self, machine: Machine, delivery: str, decision: Decision) -> None:
        if machine.process is not None:
            seconds = self.clockwork.chance.choice((10.0, 3_600.0, 86_400.0))
            said = messages.Decide(id=1, delivery=delivery, decision=decision, seconds=seconds)
            self.clockwork.step(machine.process.process, machine.process.decide, said)

    def _damage(self) -> None:
        partial = self._any_machine().disk.partial
        for chunks in list(partial.values())[:1]:
            for index in list(chunks)[:1]:
                chunks[index] = b"x" * len(chunks[index])

    def _clock(self) -> None:
        TIME.steps += self.clockwork.chance.choice(CLOCK_STEPS_DAYS) * life.DAY

    def _wish(self) -> None:
        machine = self._any_machine()
        machine.folder.save_preferences(terminals.preferences(self.clockwork))

    def _pause(self) -> None:
        self.clockwork.run(self.clockwork.now + self.clockwork.chance.choice((10.0, 1_000.0, life.DAY, 8 * life.DAY)))

    def _any_machine(self) -> Machine:
        return self.clockwork.chance.choice([machine for machine in self.machines.values() if machine.receives])

    def _dial(self, connection: Connection) -> bool:
        hub_process = self.hub.process
        if hub_process is None or not hub_process.is_up:
            return False
        ends: dict[bool, Callable[[Any], None]] = {}
        over: dict[bool, Callable[[], None]] = {}
        link = Link(self.clockwork, self.delay_seconds, lambda up, message: ends[up](message), lambda up: over[up]())
        connection.link = link
        socket: HubSocket = hub_process.accept(link)
        ends.update({True: socket.heard, False: connection.heard})
        over.update({True: socket.ended, False: connection.ended})
        self._links.append((connection.machine.terminal, link))
        return True

    # --- what is looked at --------------------------------------------------------------------------------------------

    def _committed(self) -> None:
        """After each commit: a final state stays, nothing waits without a deadline, what is done is done."""
        rows = self.database.rows("SELECT * FROM deliveries WHERE revision > ?", self._revision)
        for row in rows:
            self._revision = max(self._revision, row["revision"])
            before, after = self._states.get(row["delivery_id"], ""), row["state"]
            if before == after:
                continue
            if before and life.State(before) in life.FINAL:
                raise Violation(f"{row['delivery_id']} was {before} for good, and is {after}")
            self._states[row["delivery_id"]] = after
            self.clockwork.say("database", (row["delivery_id"], after, row["reason"], row["detail"]))
            if bool(row["is_final"]) != (life.State(after) in life.FINAL):
                raise Violation(f"{row['delivery_id']} is {after} and is_final says {row['is_final']}")
            if not row["is_final"] and not 0 < row["deadline_at"] <= row["expires_at"] + 2 * life.DAY:
                raise Violation(f"{row['delivery_id']} is {after} with the deadline {row['deadline_at']}")
            self._may_react(row["sync_id"])
            if after == life.State.DONE:
                self._look_at_done(row)
            self._look_for_hangs(row)
        if rows and self.hub.process is not None and self.hub.process.is_up:
            self.hub.process.plan_look()

    def _look_for_hangs(self, row: Any) -> None:
        """Deadlines are there for what never happens here: a device that is there and says nothing."""
        if row["reason"] in ("no-answer", "no-progress"):
            raise Violation(f"a transfer hangs: {row['delivery_id']} has {row['reason']}")
        may_hang = any(machine.may_hang for machine in self.machines.values())
        if row["detail"] == life.DEADLINES[life.State.INSTALLING].detail and not may_hang:
            raise Violation(f"{row['delivery_id']} is thought to install, and its device is there and does not")

    def _look_at_done(self, row: Any) -> None:
        machine = self.machines[row["terminal_id"]]
        machine.system.settle(self.clockwork.now)
        if not machine.system.had_since(row["digest"], row["created_at"] - TIME.steps - 1_700_000_000.0):
            raise Violation(f"{row['delivery_id']} is done, and {machine.terminal} never had it")

    def starts(self, machine: Machine, delivery: str, digest: bytes) -> None:
        """Look whether a runner may start: it is wanted, did not run before, and has the right file."""
        self.counts["installs"] += 1
        state = self._states[delivery]
        if life.State(state) in life.FINAL:
            raise Violation(f"{delivery} is installed though it was {state} before")
        report = self._reports.get(delivery)
        (row,) = self.database.rows("SELECT tries FROM deliveries WHERE delivery_id = ?", delivery)
        if report is not None and (report.reason not in life.PASSING or row["tries"] < report.attempt):
            raise Violation(f"{delivery} is installed again after it was reported {report.state} {report.reason}")
        if machine.system.put_by.get(delivery):
            raise Violation(f"{delivery} is installed twice")
        if any(one.digest == digest for one in machine.folder.inventory()):
            raise Violation(f"{delivery} is installed though {machine.terminal} knows that it has it")
        if machine.disk.files.get(digest) != CATALOGUE[digest].content:
            raise Violation(f"{delivery} is installed from a wrong file")

    def completed(self, machine: Machine, report: messages.State) -> None:
        """Remember what a terminal has kept."""
        self._reports[report.delivery] = report
        if not self._faults_stopped and self.clockwork.chance.random() < LOSES_REPORTS:
            self.clockwork.after(0.0, self.process, self._lose_report, machine)

    def _lose_report(self, machine: Machine) -> None:
        """Have what has just been said of the report lost on its way."""
        self.clockwork.say("world", f"{machine.terminal} loses its connection, just now")
        for name, link in self._links:
            if name == machine.terminal:
                link.cut()

    def delivered(self, machine: Machine, message: AnyMessage) -> None:
        """Take what the initiator is told."""
        if isinstance(message, messages.SyncDone):
            self._told.add(message.sync)
        request = machine.asked.pop(getattr(message, "re", 0), None)
        if isinstance(message, messages.SyncAccepted) and isinstance(request, messages.Sync | messages.Undo):
            known = self._keys.setdefault(request.request_key, message.sync)
            if known != message.sync:
                raise Violation(f"one request began two syncs, {known} and {message.sync}")
            self._accepted[message.sync] = request.request_key

    def _look_at_the_end(self) -> None:
        database = self.database
        if still := database.rows("SELECT delivery_id, state, reason FROM deliveries WHERE is_final = 0"):
            raise Violation(f"it never ends: {[tuple(row) for row in still]}")
        syncs = {row["sync_id"]: row for row in database.rows("SELECT * FROM syncs")}
        self.counts["syncs"] += len(syncs)
        self.counts["deliveries"] += len(self._states)
        if lost := self._accepted.keys() - syncs.keys():
            raise Violation(f"accepted and lost: {sorted(lost)}")
        for sync, row in syncs.items():
            if row["ended_at"] is None or not row["outcome"]:
                raise Violation(f"{sync} has no end")
            if sync not in self._told or not row["noted"]:
                raise Violation(f"the initiator was not told of the end of {sync}")
        self._look_at_followers()
        for machine in self.machines.values():
            self._look_at_machine(machine)
        self._look_at_memory()

    def _look_at_followers(self) -> None:
        for row in self.database.rows(
            "SELECT f.delivery_id, f.state, l.state AS ended FROM deliveries f JOIN deliveries l"
            " ON l.delivery_id = f.follows WHERE f.state <> l.state"
        ):
            if life.State(row["state"]) not in (life.State.CANCELLED, life.State.EXPIRED, life.State.SUPERSEDED):
                raise Violation(f"{row['delivery_id']} ended {row['state']}, its leader {row['ended']}")

    def _look_at_machine(self, machine: Machine) -> None:
        if not machine.receives:
            return
        folder, name = machine.folder, machine.terminal
        if folder.reports() or machine.asked:
            raise Violation(f"{name} has reports that were not noted: {folder.reports()}")
        if left := [mark for mark in folder.marks() if mark.running]:
            raise Violation(f"{name} has marks of what it thinks is running: {left}")
        has = {one.program: one.digest for one in folder.inventory()}
        rows = self.database.rows("SELECT program_id, digest FROM installed WHERE terminal_id = ?", name)
        if {row["program_id"]: row["digest"] for row in rows} != has:
            raise Violation(f"the hub and {name} do not agree on what it has")
        for row in self.database.rows("SELECT delivery_id, state FROM deliveries WHERE terminal_id = ?", name):
            if row["delivery_id"] in machine.system.put_by and row["state"] not in ("done", "failed"):
                raise Violation(f"{row['delivery_id']} is {row['state']}, and {name} has installed it")
        unknown = any(report.reason == "outcome-unknown" for report in self._reports.values())
        if not unknown and has != machine.system.installed:
            raise Violation(f"{name} does not know what its system has")

    def _look_at_memory(self) -> None:
        hub_process = self.hub.process
        assert hub_process is not None
        if len(hub_process.sockets) > len(self.machines) or hub_process.pokes.topics:
            raise Violation(f"the hub holds {len(hub_process.sockets)} sockets and {hub_process.pokes.topics}")


def _fields(message: Message) -> dict[str, Any]:
    return {name: getattr(message, name) for name in message.__struct_fields__}


# --- the product on simulated time ------------------------------------------------------------------------------------

TIME: Final = FakeTime()
_MISSING: Final = object()


class _Calendar:
    """Stands for `datetime` in the inbox."""

    @staticmethod
    def now() -> datetime:
        return datetime.fromtimestamp(TIME.time(), UTC)


class _Identifiers:
    """Ids in the order in which they are made."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, prefix: str) -> str:
        self.count += 1
        return f"{prefix}-{self.count:04}"


def _patches() -> list[Patch]:
    """Return what of the product is not to be real: time, chance, and signatures, which cost most of a run."""
    return [
        *((module, "time", TIME) for module in (hub.accounts, hub.clock, hub.deliveries, hub.syncs, terminal.inbox)),
        (terminal.inbox, "datetime", _Calendar),
        (hub.syncs, "new_id", IDENTIFIERS),
        (keys, "new_nonce", lambda: bytes(32)),
        (keys, "verifies", lambda _key, _signature, _data: True),
        (keys.SigningKey, "sign", lambda _self, _data: bytes(64)),
        (keys.SigningKey, "public", property(lambda self: self.seed[:32])),
    ]


IDENTIFIERS: Final = _Identifiers()


@contextmanager
def changed(patches: list[Patch]) -> Iterator[None]:
    """Have attributes, or the items of a dict, changed while the block runs; one that is inherited is put back so."""
    before = [(owner, name, _names(owner).get(name, _MISSING)) for owner, name, _ in patches]
    for owner, name, value in patches:
        _set(owner, name, value)
    try:
        yield
    finally:
        for owner, name, value in before:
            _set(owner, name, value)


def _names(owner: Any) -> Any:
    return owner if isinstance(owner, dict) else vars(owner)


def _set(owner: Any, name: str, value: Any) -> None:
    if isinstance(owner, dict):
        owner[name] = value
    elif value is _MISSING:
        delattr(owner, name)
    else:
        setattr(owner, name, value)


@contextmanager
def simulated_product() -> Iterator[Database]:
    """Put the product on simulated time while the block runs; yield the database all runs use."""
    with changed(_patches()):
        yield Database()


def live(seed: int, database: Database, *, is_traced: bool = False) -> World:
    """Live through the run of one seed. Raises Violation; the trace is printed."""
    clockwork = Clockwork(seed, is_traced=is_traced)
    TIME.clockwork, TIME.steps, IDENTIFIERS.count = clockwork, 0.0, 0
    database.reset()
    world = World(clockwork, database)
    try:
        world.run()
    finally:
        for line in clockwork.lines or ():
            print(line)
    return world
