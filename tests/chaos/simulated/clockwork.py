"""Simulated time: what happens next, whose it is, coroutines driven by hand, and links that delay and break.

Everything is in one heap, ordered by time and then by when it was put there, and every choice comes from one seeded
random generator: the same seed is the same run. Times are seconds.
"""

import heapq
import random
from collections.abc import Callable, Coroutine, Generator
from time import gmtime, struct_time
from typing import Any, Final, TypeAlias

from protocol.messages import Message

Resume: TypeAlias = Callable[[Any], None]

LONGEST_HALF_OPEN_SECONDS: Final = 37.0  # what the two sides' liveness allows
MOST_EVENTS: Final = 40_000  # a run has a few hundred; this many mean that something goes round in circles


class Violation(BaseException):
    """A promise was not kept. Not an Exception: no handler of the product is to swallow it."""


class Crashed(BaseException):
    """`process` dies here. Not an Exception: no handler of the product is to see it."""

    def __init__(self, process: "Process") -> None:
        super().__init__(process.name)
        self.process = process


class Process:
    """What dies together: nothing of a dead process happens any more."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.alive = True


class Wait:
    """What a coroutine awaits: `begin` is given what resumes it."""

    def __init__(self, begin: Callable[[Resume], None]) -> None:
        self._begin = begin

    def __await__(self) -> Generator["Wait", Any, Any]:
        return (yield self)

    def begin(self, resume: Resume) -> None:
        """Arrange for `resume` to be called once, with what the coroutine gets."""
        self._begin(resume)


class Clockwork:
    """The heap of what will happen, the seeded chance and the trace of one run."""

    def __init__(self, seed: int, *, is_traced: bool = False) -> None:
        self.now = 0.0
        self.chance = random.Random(seed)
        self.lines: list[str] | None = [] if is_traced else None
        self._heap: list[tuple[float, int, Process, Callable[..., None], tuple[Any, ...]]] = []
        self._count = 0
        self.events = 0
        self.crashed: Callable[[Process], None] | None = None

    def after(self, seconds: float, process: Process, call: Callable[..., None], *arguments: Any) -> None:
        """Call `call` so many seconds from now, if `process` lives then."""
        self._count += 1
        heapq.heappush(self._heap, (self.now + seconds, self._count, process, call, arguments))

    def run(self, until: float = float("inf")) -> None:
        """Let happen what is due before `until`. Raises Violation."""
        heap = self._heap
        while heap and heap[0][0] < until:
            self.now, _, process, call, arguments = heapq.heappop(heap)
            if process.alive:
                self.step(process, call, *arguments)
        if until < float("inf"):
            self.now = until

    def step(self, process: Process, call: Callable[..., None], *arguments: Any) -> None:
        """Do one thing of `process` now; it may crash in it."""
        self.events += 1
        if self.events > MOST_EVENTS:
            raise Violation(f"more than {MOST_EVENTS} events: something goes round in circles")
        try:
            call(*arguments)
        except Crashed as crash:
            assert self.crashed is not None
            self.crashed(crash.process)

    def drive(self, process: Process, coroutine: Coroutine[Wait, Any, None]) -> None:
        """Run a coroutine of `process` to its end, as far as it goes now and further whenever its waits are over."""

        def go_on(value: Any) -> None:
            if not process.alive:
                return
            try:
                wait = coroutine.throw(value) if isinstance(value, Exception) else coroutine.send(value)
            except StopIteration:
                return
            wait.begin(go_on)

        go_on(None)

    def sleep(self, seconds: float, process: Process) -> Wait:
        """Return an awaitable that is over after so many seconds."""
        return Wait(lambda resume: self.after(seconds, process, resume, None))

    def say(self, who: str, what: object) -> None:
        """Add a line to the trace."""
        if self.lines is not None:
            self.lines.append(f"{self.now:14.3f}  {who:<10} {str(what)[:300]}")


class FakeTime:
    """Stands for the module `time` in the product. `steps` of the calendar are added to `time()` only."""

    def __init__(self) -> None:
        self.clockwork = Clockwork(0)
        self.steps = 0.0

    def time(self) -> float:
        """Return Unix seconds."""
        return 1_700_000_000.0 + self.clockwork.now + self.steps

    def monotonic(self) -> float:
        """Return seconds that are never stepped."""
        return self.clockwork.now

    def localtime(self) -> struct_time:
        """Return the calendar, in UTC."""
        return gmtime(self.time())


class Link:
    """One connection: two directions, each in order. `deliver(up, message)` and `ended(up)` tell the side it reaches.

    A cut loses the end of what is under way, in each direction as chance has it; each side learns of it later, up to
    37 s when its peer just fell silent.
    """

    def __init__(
        self, clockwork: Clockwork, delay_seconds: float, deliver: Callable[[bool, Message], None],
        ended: Callable[[bool], None],
    ) -> None:  # fmt: skip
        self._clockwork = clockwork
        self._delay_seconds = delay_seconds
        self._deliver = deliver
        self._ended = ended
        self._process = Process("link")
        self._last_at = {True: 0.0, False: 0.0}
        self._under_way = {True: 0, False: 0}
        self._may_arrive = {True: 1 << 30, False: 1 << 30}
        self.is_cut = False

    def send(self, up: bool, message: Message) -> None:
        """Put a message on its way; on a link that is cut it is lost."""
        if self.is_cut:
            return
        clockwork = self._clockwork
        at = max(self._last_at[up], clockwork.now + clockwork.chance.random() * self._delay_seconds)
        self._last_at[up] = at
        self._under_way[up] += 1
        clockwork.after(at - clockwork.now, self._process, self._arrive, up, message)

    def _arrive(self, up: bool, message: Message) -> None:
        self._under_way[up] -= 1
        if self._may_arrive[up] > 0:
            self._may_arrive[up] -= 1
            self._deliver(up, message)

    def cut(self, *, at_once: bool = False) -> None:
        """Break the link; `at_once` when a whole process died and its kernel says so."""
        if self.is_cut:
            return
        self.is_cut = True
        chance = self._clockwork.chance
        for up in (True, False):
            self._may_arrive[up] = chance.randint(0, self._under_way[up])
            silent = 0.0 if at_once or chance.random() < 0.7 else chance.random() * LONGEST_HALF_OPEN_SECONDS
            at = max(self._last_at[up], self._clockwork.now + silent)
            self._clockwork.after(at - self._clockwork.now, self._process, self._ended, up)

    def close(self) -> None:
        """End in good order: everything under way arrives, then each side learns that it is over."""
        if self.is_cut:
            return
        self.is_cut = True
        for up in (True, False):
            self._clockwork.after(max(self._last_at[up] - self._clockwork.now, 0.0), self._process, self._ended, up)
