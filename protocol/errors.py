"""The error tree both sides share.

Every error carries a stable `code` for programs, a `message` that says what is wrong with the values, and a `hint` that
says what to do next. Errors carry strings and numbers only, never frames, connections or other live objects.

    LockstepError
    ├── UsageError             the caller asked for something that cannot be: mend the call
    │   ├── UnknownNameError   no such device, program or sync; carries the near names
    │   └── ConflictError      what was given contradicts what is known
    ├── BadDataError           bytes from a file or a peer are not what they claim to be
    │   ├── BadFileError       an installer or a file on disk is damaged, unknown or contradicts itself
    │   ├── ProtocolError      a message breaks `lockstep.v1`; the connection is closed
    │   └── TransferError      a chunk, manifest or object does not verify
    ├── RefusedError           understood and refused: rights, policy, limits
    │   └── NotLoggedInError   the terminal has to log in first
    └── UnavailableError       the network or the other side is not there: try again
"""

from typing import ClassVar


class LockstepError(Exception):
    """Root of every error Lockstep raises on purpose.

    `code` is one of the codes listed in `docs/protocol.md`; `message` is one sentence for people; `hint` says what
    to do next and may be empty.
    """

    default_code: ClassVar[str] = "internal"

    def __init__(self, message: str, *, hint: str = "", code: str = "") -> None:
        super().__init__(message)
        self.code = code or self.default_code
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".rstrip()


class UsageError(LockstepError):
    """The caller asked for something that cannot be."""

    default_code = "usage"


class UnknownNameError(UsageError):
    """There is no such device, program or sync; `near` holds the closest names that do exist."""

    default_code = "unknown-name"

    def __init__(self, message: str, *, near: tuple[str, ...] = (), hint: str = "", code: str = "") -> None:
        if near and not hint:
            hint = f"Did you mean {' or '.join(near)}?"
        super().__init__(message, hint=hint, code=code)
        self.near = near


class ConflictError(UsageError):
    """What was given contradicts what is known already."""

    default_code = "conflict"


class BadDataError(LockstepError):
    """Bytes from a file or a peer are not what they claim to be."""

    default_code = "bad-data"


class BadFileError(BadDataError):
    """A file is damaged, truncated, of an unknown format or contradicts itself."""

    default_code = "bad-file"


class ProtocolError(BadDataError):
    """A message breaks `lockstep.v1`. The connection it came on is closed."""

    default_code = "protocol-violation"


class TransferError(BadDataError):
    """A chunk, a manifest or a whole object does not verify."""

    default_code = "bad-transfer"


class RefusedError(LockstepError):
    """Understood and refused: rights, policy or a limit."""

    default_code = "not-authorised"


class NotLoggedInError(RefusedError):
    """The terminal has no identity at this hub yet, or no longer."""

    default_code = "not-logged-in"


class UnavailableError(LockstepError):
    """The network or the other side is not there now; trying again may help, after `retry_after_seconds` at least."""

    default_code = "unavailable"

    def __init__(self, message: str, *, hint: str = "", code: str = "", retry_after_seconds: float = 0.0) -> None:
        super().__init__(message, hint=hint, code=code)
        self.retry_after_seconds = retry_after_seconds
