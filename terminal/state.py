"""What a terminal keeps on disk: its identity, what it has installed, reports not noted yet, inbox, preferences, marks.

One folder (0700), one small JSON file (0600) for each; one for each installation in the folder `installing`. Every
write goes to a temporary file in the same folder, is flushed to the disk and put in place in one step, so a file is
always either the old or the new one. One process at a time may act as the terminal; it holds a lock (flock) on the file
`lock`.
"""

import contextlib
import errno
import fcntl
import hashlib
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, TypeVar

import msgspec
from msgspec import Struct

from protocol.device import DeviceInfo
from protocol.errors import BadFileError, NotLoggedInError, RefusedError, UsageError
from protocol.keys import SealingKey, SigningKey, fingerprint
from protocol.life import DELIVERY_SECONDS
from protocol.messages import DeviceRow, InstalledProgram, Offer, PostureReport, Standing, State
from terminal.consent import InboxEntry, Preferences

FILE_BYTES: Final = 16 * 1024 * 1024
_LOCK_TRIES: Final = 5
_LOCK_RETRY_SECONDS: Final = 0.01

Value = TypeVar("Value")


class Identity(Struct, frozen=True, kw_only=True):
    """Who this terminal is and at which hub. Seeds are private keys: never sent, never logged.

    `hub_key` is the hub's public key, pinned at enrolment. `insecure_lan` and `ca_file` are how the hub was dialled.
    """

    url: str
    account: str
    terminal: str
    name: str
    hub_key: bytes
    device_seed: bytes
    sealing_seed: bytes
    insecure_lan: bool = False
    ca_file: str = ""

    @property
    def hub_fingerprint(self) -> str:
        """What people compare the hub's key by."""
        return fingerprint(self.hub_key)

    def __repr__(self) -> str:
        return f"Identity({self.terminal!r} at {self.url!r})"


class Seeds(Struct, frozen=True, kw_only=True):
    """A device's private keys, kept from before they are first used.

    `account` is the one they are for, empty where the hub is to say which it is.
    """

    account: str
    device_seed: bytes
    sealing_seed: bytes

    def __repr__(self) -> str:
        return f"Seeds({self.account!r})"


class SavedDevices(Struct, frozen=True, kw_only=True):
    """The account's device list as last seen."""

    epoch: str
    revision: int
    rows: tuple[DeviceRow, ...]


class Mark(Struct, frozen=True, kw_only=True):
    """An installation that was begun: put down before its runner starts, gone when its outcome is kept.

    `starts` counts how often its runner was started, `before` is the version the system had before the last start (the
    wanted one when nobody could say). `running` is false once it is known that the last start did not install it.
    """

    offer: Offer
    starts: int
    before: str | None = None
    running: bool = True


class SavedPosture(Struct, frozen=True, kw_only=True):
    """The last report on this terminal's programs, and whether it was said to the hub."""

    report: PostureReport
    told: bool


class StateFolder:
    """The folder of one terminal; created when it is not there. Raises UsageError when it cannot be used."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        needed = (self.path, self.downloads, self.installed, self.rules, self._marks)
        missing = [folder for folder in needed if not folder.is_dir()]
        try:
            for folder in missing:
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            for parent in {folder.parent for folder in missing}:
                flush_folder(parent)  # or a power cut may undo the folder with all that is synced in it
        except OSError as error:
            raise UsageError(
                f"The state folder {self.path} cannot be created: {error.strerror}.",
                hint="Name another one with LOCKSTEP_STATE.",
            ) from None

    @property
    def device_file(self) -> Path:
        """A copy of the device file given at login."""
        return self.path / "device.toml"

    @property
    def agent_socket(self) -> Path:
        """Where the running agent listens."""
        return self.path / "agent.socket"

    @property
    def downloads(self) -> Path:
        """Partial files, each named by the digest of the whole in hex."""
        return self.path / "downloads"

    @property
    def installed(self) -> Path:
        """Verified installers, each named by its digest in hex."""
        return self.path / "installed"

    @property
    def rules(self) -> Path:
        """Rule sets of the hub's, each named by its digest in hex: the one in use, and one that has just come."""
        return self.path / "rules"

    @property
    def _marks(self) -> Path:
        """Marks, each named by the SHA-256 of its delivery's id, which may hold any character."""
        return self.path / "installing"

    def save_device_file(self, data: bytes) -> None:
        """Keep a copy of the device file given at login, where `run` and every other command read it."""
        try:
            _replace(self.device_file, data)
        except OSError as error:
            raise _unwritable(self.device_file, error) from None

    # --- who this is --------------------------------------------------------------------------------------------------

    def identity(self) -> Identity:
        """Return who this terminal is. Raises NotLoggedInError before the first login, BadFileError."""
        identity = self._read("identity.json", Identity)
        if identity is None:
            raise NotLoggedInError(
                "This device is not logged in to a hub.",
                hint="Run `lockstep-terminal login URL --account NAME` first.",
            )
        return identity

    def has_identity(self) -> bool:
        """Return whether this terminal has logged in before."""
        return (self.path / "identity.json").exists()

    def save_identity(self, identity: Identity) -> None:
        """Keep who this terminal is."""
        self._write("identity.json", identity)

    def device(self) -> DeviceInfo | None:
        """Return the device info last reported, or None. Raises BadFileError."""
        return self._read("device.json", DeviceInfo)

    def save_device(self, device: DeviceInfo) -> None:
        """Keep the device info this terminal reports."""
        self._write("device.json", device)

    def seeds(self, account: str = "", *, renew: bool = False) -> Seeds:
        """Return this device's keys for `account`, made and kept when there are none; `renew`: not those in use.

        An enrolment that was interrupted is repeated with the same keys and so gives the same terminal, or shows the
        same pairing code. Raises BadFileError.
        """
        kept = self._read("keys.json", Seeds)
        in_use = self.identity().device_seed if renew and self.has_identity() else b""
        if kept is not None and kept.account == account and kept.device_seed != in_use:
            return kept
        made = Seeds(account=account, device_seed=SigningKey.generate().seed, sealing_seed=SealingKey.generate().seed)
        self._write("keys.json", made)
        return made

    def drop_seeds(self) -> None:
        """Forget the keys of an enrolment that cannot be: the next one makes others."""
        self._remove("keys.json")

    def standing(self) -> Standing | None:
        """Return what the hub last said this terminal may do; None: all is well. Raises BadFileError."""
        return self._read("standing.json", Standing)

    def save_standing(self, standing: Standing | None) -> None:
        """Keep what this terminal may do."""
        if standing is None:
            self._remove("standing.json")
        else:
            self._write("standing.json", standing)

    def posture(self) -> SavedPosture | None:
        """Return the last report on this terminal's programs. Raises BadFileError."""
        return self._read("posture.json", SavedPosture)

    def save_posture(self, posture: SavedPosture) -> None:
        """Keep a report."""
        self._write("posture.json", posture)

    # --- the lock -----------------------------------------------------------------------------------------------------

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Be the one process that acts as this terminal. Raises RefusedError (code `in-use`) when another is."""
        descriptor = self._open_lock()
        try:
            # `is_locked` of another process holds it for a moment.
            if not any(_take(descriptor, fcntl.LOCK_EX, attempt) for attempt in range(_LOCK_TRIES)):
                raise RefusedError(
                    f"Another process already acts as this terminal (state folder {self.path}).",
                    hint="Stop it, or use another state folder with LOCKSTEP_STATE.",
                    code="in-use",
                )
            self._remove_temporary_files()
            yield
        finally:
            os.close(descriptor)

    def is_locked(self) -> bool:
        """Return whether a process acts as this terminal now."""
        descriptor = self._open_lock()
        try:
            return not _take(descriptor, fcntl.LOCK_SH, 0)
        finally:
            os.close(descriptor)

    def _open_lock(self) -> int:
        try:
            return os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise _unwritable(self.path / "lock", error) from None

    # --- what is installed, what is to be reported --------------------------------------------------------------------

    def inventory(self) -> tuple[InstalledProgram, ...]:
        """Return the programs Lockstep installed here. Raises BadFileError."""
        return self._read("inventory.json", tuple[InstalledProgram, ...]) or ()

    def previous(self) -> tuple[InstalledProgram, ...]:
        """Return what Lockstep installed here before that, one of each program at most. Raises BadFileError."""
        return self._read("previous.json", tuple[InstalledProgram, ...]) or ()

    def kept_digests(self) -> set[bytes]:
        """Return the digests of the installers to keep: what is installed and what was before. Raises BadFileError."""
        return {one.digest for one in (*self.inventory(), *self.previous())}

    def record_installed(self, program: InstalledProgram) -> None:
        """Keep that `program` is installed, in place of an older record of it, which becomes the one before."""
        found, others = _parted(self.inventory(), program.program)
        if found is not None and found.digest != program.digest:
            self._write("previous.json", (*_parted(self.previous(), program.program)[1], found))
        self._write("inventory.json", (*others, program))

    def forget_installed(self, program: str) -> None:
        """Keep that the program with this id is no longer installed."""
        self._write("inventory.json", _parted(self.inventory(), program)[1])

    def reports(self) -> tuple[State, ...]:
        """Return the reports the hub has not noted, oldest first. Raises BadFileError."""
        return self._read("reports.json", tuple[State, ...]) or ()

    def add_report(self, report: State) -> None:
        """Keep a report until it is noted, in place of an older one of its delivery."""
        others = tuple(one for one in self.reports() if one.delivery != report.delivery)
        self._write("reports.json", (*others, report))

    def drop_report(self, delivery: str, state: str) -> None:
        """Forget a report that was noted."""
        before = self.reports()
        after = tuple(one for one in before if (one.delivery, one.state) != (delivery, state))
        if after != before:
            self._write("reports.json", after)

    def clear_reports(self) -> None:
        """Forget all reports: they are for another hub or terminal."""
        self._write("reports.json", ())

    # --- installations that were begun --------------------------------------------------------------------------------

    def marks(self) -> tuple[Mark, ...]:
        """Return the installations whose outcome is not kept yet, by age. Raises BadFileError."""
        self._move_old_mark()
        return tuple(mark for mark, _ in self._mark_files())

    def drop_old_marks(self) -> None:
        """Forget installations that did not happen and were not offered again for as long as a delivery lives."""
        for mark, file in self._mark_files():
            if not mark.running and file.stat().st_mtime < time.time() - DELIVERY_SECONDS:
                self.drop_mark(mark.offer.delivery)

    def mark(self, delivery: str) -> Mark | None:
        """Return the mark of a delivery, if it has one. Raises BadFileError."""
        return self._read(self._mark_name(delivery), Mark)

    def put_mark(self, mark: Mark) -> None:
        """Keep `mark`, in place of an older one of its delivery."""
        self._write(self._mark_name(mark.offer.delivery), mark)

    def drop_mark(self, delivery: str) -> None:
        """Forget the mark of a delivery: its outcome is kept."""
        self._remove(self._mark_name(delivery))

    def _mark_files(self) -> list[tuple[Mark, Path]]:
        files = sorted(self._marks.glob("*.json"), key=lambda file: file.stat().st_mtime_ns)
        found = ((self._read(f"{self._marks.name}/{file.name}", Mark), file) for file in files)
        return [(mark, file) for mark, file in found if mark is not None]

    def _mark_name(self, delivery: str) -> str:
        return f"{self._marks.name}/{hashlib.sha256(delivery.encode()).hexdigest()[:32]}.json"

    def _move_old_mark(self) -> None:
        """Take over the one mark that version 0.1.0 kept, in a file of its own."""
        offer = self._read("installing.json", Offer)
        if offer is not None:
            if self.mark(offer.delivery) is None:
                self.put_mark(Mark(offer=offer, starts=1))
            (self.path / "installing.json").unlink()

    # --- what people want ---------------------------------------------------------------------------------------------

    def preferences(self) -> Preferences:
        """Return what the owner wants; the defaults before anything was said. Raises BadFileError."""
        return self._read("preferences.json", Preferences) or Preferences()

    def save_preferences(self, preferences: Preferences) -> None:
        """Keep what the owner wants."""
        self._write("preferences.json", preferences)

    def inbox(self) -> tuple[InboxEntry, ...]:
        """Return the deliveries a person is asked about or has decided on, oldest first. Raises BadFileError."""
        return self._read("inbox.json", tuple[InboxEntry, ...]) or ()

    def save_inbox(self, entries: tuple[InboxEntry, ...]) -> None:
        """Keep the inbox."""
        self._write("inbox.json", entries)

    # --- devices ------------------------------------------------------------------------------------------------------

    def save_devices(self, epoch: str, revision: int, rows: tuple[DeviceRow, ...]) -> None:
        """Keep the account's device list as last seen."""
        self._write("devices.json", SavedDevices(epoch=epoch, revision=revision, rows=rows))

    def devices(self) -> SavedDevices | None:
        """Return the account's device list as last seen, or None. Raises BadFileError."""
        return self._read("devices.json", SavedDevices)

    # --- files --------------------------------------------------------------------------------------------------------

    def set_aside_damaged(self) -> tuple[Path, ...]:
        """Rename damaged files that this device can do without to `NAME.damaged`; return where they are now.

        The hub tells again what they held: what waits for a person, the device list; the rest costs bytes or an undo.
        A person has to see to the others: without them something would be installed twice, or unasked.
        """
        aside = []
        for name, kind in _CAN_DO_WITHOUT.items():
            try:
                self._read(name, kind)
            except BadFileError:
                aside.append((self.path / name).replace(self.path / f"{name}.damaged"))
        return tuple(aside)

    def _read(self, name: str, kind: type[Value]) -> Value | None:
        path = self.path / name
        try:
            if path.stat().st_size > FILE_BYTES:
                raise BadFileError(f"{path} is larger than any such file can be.", hint=_damaged_hint(name))
            return msgspec.json.decode(path.read_bytes(), type=kind)
        except FileNotFoundError:
            return None
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise BadFileError(f"{path} is damaged: {error}.", hint=_damaged_hint(name)) from None
        except OSError as error:
            raise BadFileError(f"{path} cannot be read: {error.strerror}.", hint=_damaged_hint(name)) from None

    def _write(self, name: str, value: object) -> None:
        path = self.path / name
        try:
            _replace(path, msgspec.json.format(msgspec.json.encode(value), indent=1))
        except OSError as error:
            raise _unwritable(path, error) from None

    def _remove(self, name: str) -> None:
        path = self.path / name
        try:
            path.unlink()
            flush_folder(path.parent)
        except FileNotFoundError:
            return
        except OSError as error:
            raise _unwritable(path, error) from None

    def _remove_temporary_files(self) -> None:
        """Remove what writers that were killed left behind; the caller holds the lock.

        The preferences are written without it, so one of their temporary files may be in use.
        """
        for folder in (self.path, self._marks):
            for file in folder.glob(".*.json.*"):
                if not file.name.startswith(".preferences."):
                    with contextlib.suppress(OSError):
                        file.unlink()


_CAN_DO_WITHOUT: Final[dict[str, type]] = {
    "inbox.json": tuple[InboxEntry, ...],
    "previous.json": tuple[InstalledProgram, ...],
    "devices.json": SavedDevices,
    "device.json": DeviceInfo,
    "standing.json": Standing,
    "posture.json": SavedPosture,
}


def _parted(
    programs: tuple[InstalledProgram, ...], program: str
) -> tuple[InstalledProgram | None, tuple[InstalledProgram, ...]]:
    """Return the one with the id `program`, and the others."""
    found = next((one for one in programs if one.program == program), None)
    return found, tuple(one for one in programs if one.program != program)


def _unwritable(path: Path, error: OSError) -> RefusedError:
    if error.errno == errno.EIO:
        return RefusedError(
            f"The disk failed to keep {path}: {error.strerror}.",
            hint="What was to be kept may be lost; check the disk before this device is started again.",
            code="disk-failed",
        )
    return RefusedError(
        f"{path} cannot be written: {error.strerror}.",
        hint="Make room on the disk, or check who owns the folder.",
        code="state-folder",
    )


def _damaged_hint(name: str) -> str:
    if name == "standing.json":
        return "Remove it: the hub tells this device again when it connects. A start of `run` sets it aside by itself."
    if name == "posture.json":
        return "Remove it: the next scan writes it again. A start of `run` sets it aside by itself."
    if name in _CAN_DO_WITHOUT:
        return "Remove it: this device goes on without. A start of `run` sets it aside by itself."
    return "Restore the file from a copy, or move it away and log in again."


def default_state_path() -> Path:
    """Return where a terminal keeps its state: `LOCKSTEP_STATE`, or what the operating system sets aside for it.

    XDG Base Directory Specification 0.8 (`XDG_STATE_HOME`); Application Support on macOS, `LOCALAPPDATA` on Windows.
    """
    if given := os.environ.get("LOCKSTEP_STATE"):
        return Path(given)
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "lockstep"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "lockstep"
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "lockstep"


@contextmanager
def despite_full_disk() -> Iterator[None]:
    """Go on where something could not be written for want of room; what a disk failed to keep is raised still."""
    try:
        yield
    except RefusedError as error:
        if error.code != "state-folder":
            raise


def flush_folder(path: Path) -> None:
    """Put the names in the folder `path` on the disk; until then a crash may undo a rename (fsync(2), notes)."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _replace(path: Path, data: bytes) -> None:
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mode 0600
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(temporary).unlink()
        raise
    flush_folder(path.parent)


def _take(descriptor: int, kind: int, attempt: int) -> bool:
    if attempt:
        time.sleep(_LOCK_RETRY_SECONDS)
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
