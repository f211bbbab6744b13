"""Fairness: room and bandwidth that many share, handed on in turn. Pure: no clock, no loop, no socket.

Room is handed out to accounts in turn, and within an account to its holders in turn. One account may hold at most about
as much as is free (a dynamic threshold: Choudhury and Hahne, IEEE/ACM Transactions on Networking 6(2), 1998): alone it
has half of all, and however many of its terminals are slow, another account finds room.
"""

from collections import Counter
from collections.abc import Callable, Hashable

from msgspec import Struct


class _Share(Struct, frozen=True):
    account: str
    size: int


class _Wish(Struct, frozen=True):
    size: int
    wake: Callable[[], None]


class FairRoom:
    """So much room, in any unit. A holder (a socket) has one share at a time; who finds none waits in line."""

    def __init__(self, size: int) -> None:
        self._size = size
        self.free = size
        self._shares: dict[Hashable, _Share] = {}
        self._held_by: Counter[str] = Counter()
        self._lines: dict[str, dict[Hashable, _Wish]] = {}
        self._turn = 0
        self._turns: dict[str, int] = {}  # when an account was served last, counted in turns

    @property
    def waiting(self) -> int:
        """How many holders wait."""
        return sum(len(line) for line in self._lines.values())

    def take(self, account: str, holder: Hashable, size: int, wake: Callable[[], None]) -> bool:
        """Give `holder` room for `size` and return True, or put it in line: `wake` is called when it has its room.

        A holder that asks again keeps its place, and its room if that is large enough.
        """
        size = min(size, self._size)
        share = self._shares.get(holder)
        if share is not None and share.size >= size:
            return True
        if share is not None:
            self.leave(account, holder)
        self._lines.setdefault(account, {})[holder] = _Wish(size, wake)
        served = self._hand_out()
        mine = served.pop(holder, None)
        for wish in served.values():
            wish.wake()
        return mine is not None

    def leave(self, account: str, holder: Hashable) -> None:
        """Take back what `holder` has, and its place in line; whose turn it is then is woken."""
        line = self._lines.get(account, {})
        if line.pop(holder, None) is not None and not line:
            del self._lines[account]
        share = self._shares.pop(holder, None)
        if share is not None:
            self.free += share.size
            self._held_by[account] -= share.size
            if not self._held_by[account]:
                del self._held_by[account]
        for wish in self._hand_out().values():
            wish.wake()

    def _hand_out(self) -> dict[Hashable, _Wish]:
        """Serve those in line as far as the room goes; return who was served."""
        served: dict[Hashable, _Wish] = {}
        while self._lines and (account := self._next_account()) is not None:
            line = self._lines[account]
            holder = next(iter(line))
            served[holder] = self._serve(account, holder, line.pop(holder))
            if not line:
                del self._lines[account]
        return served

    def _next_account(self) -> str | None:
        """The account that was served longest ago, has not its share, and finds room."""
        for account in sorted(self._lines, key=lambda one: self._turns.get(one, 0)):
            wish = next(iter(self._lines[account].values()))
            held = self._held_by[account]
            if held + wish.size <= self.free:
                return account
            if not held:
                return None  # it holds nothing and is next: nobody passes it
        return None

    def _serve(self, account: str, holder: Hashable, wish: _Wish) -> _Wish:
        self.free -= wish.size
        self._held_by[account] += wish.size
        self._shares[holder] = _Share(account, wish.size)
        self._turn += 1
        self._turns[account] = self._turn
        return wish


class Bucket:
    """A bandwidth limit: in any `t` seconds at most `rate * (t + burst_seconds)` bytes and one message pass.

    A message may pass when the bucket is not overdrawn, whatever its size (a virtual scheduling algorithm as in ITU-T
    I.371); times are seconds of one monotonic clock.
    """

    BURST_SECONDS = 0.25

    def __init__(self, bytes_per_second: int) -> None:
        self.bytes_per_second = bytes_per_second
        self._ready_at = float("-inf")

    def ready_at(self, now: float) -> float:
        """When the next message may pass: `now` or later."""
        return max(now, self._ready_at)

    def passed(self, now: float, size: int) -> None:
        """A message of `size` bytes passes now."""
        self._ready_at = max(self._ready_at, now - self.BURST_SECONDS) + size / self.bytes_per_second


class SharedBandwidth:
    """One Bucket that many use, an account after the other. Whoever has the turn waits for the bucket."""

    def __init__(self, bytes_per_second: int) -> None:
        self._turn = FairRoom(1)
        self.bucket = Bucket(bytes_per_second)

    def ready_at(self, account: str, holder: Hashable, now: float, wake: Callable[[], None]) -> float | None:
        """When `holder` may send, or None while it is another's turn: `wake` is called when it has come."""
        if not self._turn.take(account, holder, 1, wake):
            return None
        return self.bucket.ready_at(now)

    def passed(self, account: str, holder: Hashable, now: float, size: int) -> None:
        """`holder` sends `size` bytes now; the turn goes to the next."""
        self.bucket.passed(now, size)
        self.leave(account, holder)

    def leave(self, account: str, holder: Hashable) -> None:
        """`holder` does not send now after all."""
        self._turn.leave(account, holder)
