"""Pairings: the devices that show a code and wait for somebody to approve them. Pure, in memory, bounded.

A code has 8 letters out of 20 (no vowels, so that it spells nothing): 25 thousand million of them, 64 at most in use,
each for ten minutes, and few tries. Times are seconds of one clock, passed in.
"""

import secrets
from collections.abc import Callable
from typing import Final

from msgspec import Struct, structs

from hub.guesses import in_words, network_of
from hub.records import Terminal
from protocol import limits
from protocol.errors import RefusedError, UnavailableError, UnknownNameError
from protocol.messages import Enrol

ALPHABET: Final = "BCDFGHJKLMNPQRSTVWXZ"
WAITING: Final = 64
WAITING_PER_ADDRESS: Final = 4
TRIES: Final = 5
TRIES_SECONDS: Final = 600.0

Decided = Callable[[Terminal | str], None]


class Pairing(Struct, frozen=True, kw_only=True):
    """A device that waits. `decided` is told the terminal it has become, or the code of why not; None: it has gone."""

    code: str
    request: Enrol
    address: str
    place: str
    until: float
    decided: Decided | None


class Pairings:
    """Every device that waits at this hub."""

    def __init__(self) -> None:
        self._waiting: dict[str, Pairing] = {}
        self._deciding: dict[str, Pairing] = {}  # taken out
        self._tries: dict[str, list[float]] = {}

    def begin(self, request: Enrol, address: str, host: str, decided: Decided, now: float) -> Pairing:
        """Have a device wait; the same device key is given the code it has. Raises UnavailableError (`busy`)."""
        self._forget(now)
        before = self._of_key(request.device_key)
        if before is None:
            place = network_of(host)
            self._make_room(place)
            code, until = self._new_code(), now + limits.PAIRING_SECONDS
        else:
            code, place, until = before.code, before.place, before.until
            _tell(before, "replaced")
        pairing = Pairing(code=code, request=request, address=address, place=place, until=until, decided=decided)
        self._waiting[code] = pairing
        return pairing

    def leave(self, pairing: Pairing) -> None:
        """Its socket is gone. The code is good still, for the device may come again; it makes way for others."""
        for held in (self._waiting, self._deciding):
            if held.get(pairing.code) is pairing:
                held[pairing.code] = structs.replace(pairing, decided=None)

    def find(self, code: str, askers: tuple[str, ...], now: float) -> Pairing:
        """Return the device that shows `code`; a wrong code counts as a try of each of `askers`.

        Raises UnknownNameError (`unknown-pairing`), RefusedError (`rate-limited`) after too many tries.
        """
        self._forget(now)
        wait = max(self._wait(asker, now) for asker in askers)
        if wait > 0.0:
            raise RefusedError(
                "Too many wrong codes were given.", hint=f"Try again in {in_words(wait)}.", code="rate-limited"
            )
        pairing = self._waiting.get(code.upper())
        if pairing is None:
            for asker in askers:
                self._tries.setdefault(asker, []).append(now)
            raise unknown_pairing()
        return pairing

    def take(self, pairing: Pairing) -> None:
        """Take a device out to decide on it, so that nobody else does. Raises UnknownNameError when somebody has."""
        taken = self._waiting.pop(pairing.code, None)
        if taken is None:
            raise unknown_pairing()
        self._deciding[pairing.code] = taken

    def put_back(self, pairing: Pairing) -> None:
        """Nothing was decided."""
        taken = self._deciding.pop(pairing.code)
        if self._of_key(taken.request.device_key) is None:
            self._waiting[taken.code] = taken

    def end(self, pairing: Pairing, outcome: Terminal | str) -> None:
        """Tell the device that was taken out what was decided; also where it has asked again meanwhile."""
        self._deciding.pop(pairing.code, None)
        again = self._of_key(pairing.request.device_key)
        if again is not None:
            del self._waiting[again.code]
            _tell(again, outcome)
        _tell(pairing, outcome)

    def _of_key(self, device_key: bytes) -> Pairing | None:
        return next((one for one in self._waiting.values() if one.request.device_key == device_key), None)

    def _make_room(self, place: str) -> None:
        """Let the oldest go that nobody waits for, where there is no room. Raises UnavailableError when all wait."""
        self._make_room_in([one for one in self._waiting.values() if one.place == place], WAITING_PER_ADDRESS)
        self._make_room_in(list(self._waiting.values()), WAITING)

    def _make_room_in(self, held: list[Pairing], limit: int) -> None:
        if len(held) < limit:
            return
        gone = next((one for one in held if one.decided is None), None)
        if gone is None:
            raise UnavailableError(
                f"{len(held)} devices wait to be approved, which is the limit.",
                hint="Try again when they have been, in ten minutes at the latest.",
                code="busy",
            )
        del self._waiting[gone.code]

    def _new_code(self) -> str:
        while True:
            code = "".join(secrets.choice(ALPHABET) for _ in range(limits.PAIRING_CODE_CHARACTERS))
            if code not in self._waiting:
                return code

    def _wait(self, asker: str, now: float) -> float:
        tries = self._tries.get(asker, [])
        return tries[-TRIES] + TRIES_SECONDS - now if len(tries) >= TRIES else 0.0

    def _forget(self, now: float) -> None:
        self._waiting = {code: one for code, one in self._waiting.items() if one.until > now}
        recent = {asker: [at for at in tries if at + TRIES_SECONDS > now] for asker, tries in self._tries.items()}
        self._tries = {asker: tries for asker, tries in recent.items() if tries}


def _tell(pairing: Pairing, outcome: Terminal | str) -> None:
    if pairing.decided is not None:
        pairing.decided(outcome)


def unknown_pairing() -> UnknownNameError:
    """Return the error for a code that no device shows."""
    return UnknownNameError(
        "No device shows this code, or not any more.",
        hint="Type the code that it shows now; each is good for ten minutes.",
        code="unknown-pairing",
    )
