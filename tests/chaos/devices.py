"""A device under chaos: a terminal's process behind its own slow link, and an installer that writes down what it does.

The owner's command of its device file appends a line to a log (synced) when it begins, puts the file in place in one
step and appends another; the check command prints the version that is in place. So what happened can be told without
asking Lockstep.
"""

import hashlib
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from terminal.state import StateFolder
from tests.harness import SlowProxy
from tests.harness.terminals import TerminalProcess

# begun or placed, delivery, version to install, version found in place ("none"), pid, time
_INSTALL: Final = """set -eu
place=$1
there=$(readlink "$place/current" || echo none)
say() {
    echo "$1 $LOCKSTEP_DELIVERY $LOCKSTEP_VERSION $there $$ $(date +%s.%N)" >>"$place/log"
    sync -d "$place/log"
}
say begun
cp "$LOCKSTEP_FILE" "$place/new.$$"
sync -d "$place/new.$$"
mv -f "$place/new.$$" "$place/$LOCKSTEP_VERSION"
ln -s "$LOCKSTEP_VERSION" "$place/link.$$"
mv -fT "$place/link.$$" "$place/current"
say placed
[ "$there" = "$LOCKSTEP_VERSION" ] || rm -f "$place/$there"
sleep "$2"
"""
_CHECK: Final = """readlink "$1/current" || exit 1
"""

MOST_CUT_BYTES: Final = 64 * 1024
LEAST_FLOW_BYTES: Final = 64 * 1024  # less than this may be the chatter of a login and a manifest


@dataclass(frozen=True, slots=True)
class Installer:
    """A version that was published; sizes in bytes, `stored_size` as it travels."""

    version: str
    digest: str
    stored_size: int


@dataclass(frozen=True, slots=True)
class Run:
    """One line of an installer's log."""

    step: str
    delivery: str
    version: str
    found: str


class Place:
    """Where one device's installer puts things, and its log."""

    def __init__(self, folder: Path, *, pause_seconds: float) -> None:
        self.folder = folder
        self._pause_seconds = pause_seconds
        folder.mkdir()
        (folder / "install.sh").write_text(_INSTALL)
        (folder / "check.sh").write_text(_CHECK)

    @property
    def device_file(self) -> str:
        """The device file (TOML) of a terminal that installs here."""
        command = ["/bin/sh", str(self.folder / "install.sh"), str(self.folder), str(self._pause_seconds)]
        check = ["/bin/sh", str(self.folder / "check.sh"), str(self.folder)]
        return (
            'installer_kinds = ["deb"]\n\n[installers.deb]\n'
            f"command = {command}\ncheck_command = {check}\ntimeout_seconds = 60.0\n"
        )

    def digest(self) -> str:
        """Return the SHA-256 in hex of what is in place, "" when nothing is."""
        try:
            return hashlib.sha256((self.folder / "current").read_bytes()).hexdigest()
        except FileNotFoundError:
            return ""

    def runs(self) -> list[Run]:
        """Return the lines of the log; one that a kill cut short is left out."""
        return [Run(*words[:4]) for line in self._lines() if len(words := line.split()) == 6]

    def doubled(self) -> list[Run]:
        """Return the runs that began although what they install was in place already."""
        return [run for run in self.runs() if run.step == "begun" and run.found == run.version]

    def log_bytes(self) -> int:
        """How long the log is."""
        try:
            return (self.folder / "log").stat().st_size
        except FileNotFoundError:
            return 0

    def _lines(self) -> list[str]:
        try:
            return (self.folder / "log").read_text().splitlines()
        except FileNotFoundError:
            return []


@dataclass(slots=True)
class Job:
    """One sync to one device: what flows, and what its link had carried before."""

    installer: Installer
    carried_before_bytes: int
    connections_before: int
    open_before_bytes: dict[int, int]  # what those that were open had carried, by their place in the proxy's list
    sync: str = ""


class Device:
    """A terminal's process, its link, its installer, and the sync it is getting now."""

    def __init__(self, folder: Path, name: str, *, rate: float, pause_seconds: float, fault: str) -> None:
        self.name = name
        self.state = StateFolder(folder / name)
        self.place = Place(folder / f"{name}.place", pause_seconds=pause_seconds)
        self.proxy = SlowProxy(down_bytes_per_second=rate)
        self.process = TerminalProcess(self.state.path, module=("tests.chaos.launch", fault, "terminal"))
        self.terminal = ""
        self.job: Job | None = None
        self.has_tail = False  # frames of an object that was cancelled or overtaken may flow on into the next sync

    def begin(self, installer: Installer) -> Job:
        """Remember what the link had carried when this sync was asked for."""
        connections = self.proxy.connections
        before = {place: one.down.carried_bytes for place, one in enumerate(connections) if one.is_open}
        self.job = Job(
            installer=installer,
            carried_before_bytes=self.proxy.down_bytes,
            connections_before=min(before, default=len(connections)),
            open_before_bytes=before,
        )
        return self.job

    def go_silent(self) -> None:
        """Let the hub hear neither words nor an end of the connections there are, as when the power fails."""
        for connection in self.proxy.open_connections():
            connection.freeze()

    def end_silence(self) -> None:
        """Let what went silent end, if it has not."""
        for connection in self.proxy.open_connections():
            connection.thaw()

    def damage(self, chance: random.Random) -> bool:
        """Flip a bit of the partial file while no process has it, or cut its end off; return whether there was one."""
        partial = [file for file in self.state.downloads.iterdir() if file.stat().st_size > 0]
        if not partial:
            return False
        newest = max(partial, key=lambda file: file.stat().st_mtime)
        size_bytes = newest.stat().st_size
        with newest.open("r+b") as file:
            if chance.random() < 0.5:
                file.truncate(max(0, size_bytes - chance.randint(1, MOST_CUT_BYTES)))
            else:
                place = chance.randrange(size_bytes)
                file.seek(place)
                byte = file.read(1)[0]
                file.seek(place)
                file.write(bytes([byte ^ 1 << chance.randrange(8)]))
        return True

    def carried_bytes(self) -> int:
        """What has come over the link since the sync was asked for."""
        return self.proxy.down_bytes - self.job.carried_before_bytes if self.job else 0

    def left_bytes(self) -> int:
        """What is still to come of the object, if nothing came twice."""
        return self.job.installer.stored_size - self.carried_bytes() if self.job else 0

    def flows(self) -> list[int]:
        """Bytes of each connection since the sync was asked for on which more than chatter came: the object flowed."""
        if self.job is None:
            return []
        places = range(self.job.connections_before, len(self.proxy.connections))
        return [count for place in places if (count := self._carried_over(place)) > LEAST_FLOW_BYTES]

    def _carried_over(self, place: int) -> int:
        """Return what one connection has carried since the sync was asked for."""
        before_bytes = self.job.open_before_bytes.get(place, 0) if self.job else 0
        return self.proxy.connections[place].down.carried_bytes - before_bytes

    def is_mid_transfer(self) -> bool:
        """Whether the object flows to the device over a connection that is open, and cannot be whole there yet."""
        if self.job is None or self.left_bytes() <= 0:
            return False
        newest = len(self.proxy.connections) - 1
        return newest >= 0 and self.proxy.connections[newest].is_open and self._carried_over(newest) > LEAST_FLOW_BYTES
