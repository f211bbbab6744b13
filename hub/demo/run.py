"""The demonstration: a real hub and five devices as processes of their own, one program brought to all of them.

Everything goes through the command lines a user has. What a device says it installed is not believed: the file it holds
is hashed here, the version is asked of its own package system, and where this machine can run it, it is run.
"""

import contextlib
import hashlib
import json
import os
import platform
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from msgspec import Struct

HERE: Final = Path(__file__).parent
PROGRAM: Final = "hello-lockstep"
DEVICES: Final = ("phone", "tv", "tablet", "car", "pc")
INITIATOR: Final = DEVICES[0]
_START_SECONDS: Final = 20.0
_STOP_SECONDS: Final = 5.0

# Which of the demonstration's files each device has to end up with.
EXPECTED_FILE: Final = {
    "tv": "hello-lockstep-tv-1.0.0.apk",
    "tablet": "hello-lockstep-1.0.0.apk",
    "car": "hello_lockstep-1.0.0-py3-none-any.whl",
    "pc": "hello-lockstep_1.0.0-1_all.deb",
}


class DemoError(Exception):
    """Something is not as the demonstration promises."""


class Check(Struct, frozen=True):
    """What was found on one device."""

    device: str
    file: str
    sha256: str
    version: str
    says: str


def run_demo(*, keep: bool) -> int:
    """Run the demonstration; return its exit code: 0 when everything was found as it should be."""
    began = time.monotonic()
    for number in (signal.SIGTERM, signal.SIGHUP):  # ends what it started, as Ctrl-C does
        signal.signal(number, lambda received, _: sys.exit(128 + received))
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lockstep-demo-")))
        demo = Demo(folder, stack)
        try:
            demo.run()
        except DemoError as error:
            print(f"\nThe demonstration failed: {error}", file=sys.stderr)
            demo.show_logs()
            return 1
        print(f"\nAll as promised, in {time.monotonic() - began:.1f} s.")
        if keep:
            demo.wait()
        return 0


class Demo:
    """One run, in one folder; what it starts is stopped when `stack` is left."""

    def __init__(self, folder: Path, stack: contextlib.ExitStack) -> None:
        self._folder = folder
        self._stack = stack
        self._url = ""

    def run(self) -> None:
        """Do everything, step by step. Raises DemoError."""
        _check_machine()
        _step("Starting a hub, with an account and four installers of one small program")
        self._start_hub()
        _step("Logging in five devices: a phone, a TV, a tablet, a car unit and a PC")
        self._start_devices()
        _step(f"What the {INITIATOR} sees")
        self._show("devices")
        self._show("programs")
        self._show("plan", PROGRAM, "--to", "all")
        _step(f"Bringing {PROGRAM} from the {INITIATOR} to all others")
        self._show("sync", PROGRAM, "--to", "all")
        _step("Looking on each device itself")
        _print_checks([self._check(device) for device in EXPECTED_FILE])

    def wait(self) -> None:
        """Leave everything running until a key or a signal ends it."""
        state = self._state(INITIATOR)
        print("\nIt is still running. In another shell, for example:\n")
        for command in ("devices", f"sync {PROGRAM} --to tv", "history", "device show"):
            print(f"  lockstep-terminal {command} --state {state}")
        print(f"  lockstep-hub catalogue --data {self._folder / 'hub'}")
        print("\nCtrl-C ends it.")
        with contextlib.suppress(KeyboardInterrupt):
            signal.pause()

    def show_logs(self) -> None:
        """Print what the processes said, for the one who has to find out."""
        for log in sorted(self._folder.glob("*.log")):
            print(f"--- {log.name}\n{log.read_text()}", file=sys.stderr)

    # --- steps ----------------------------------------------------------------------------------------------------

    def _start_hub(self) -> None:
        data = str(self._folder / "hub")
        password = secrets.token_urlsafe(12)
        (self._folder / "password").write_text(password + "\n")
        self._start("hub", "hub", "serve", "--data", data, "--listen", "127.0.0.1:0")
        self._url = self._wait_for("hub", "listens on ").split()[0]
        self._call("hub", "account", "add", "demo", "--password-stdin", "--data", data, stdin=password)
        files = [str(path) for path in sorted((HERE / "installers").iterdir())]
        print(self._call("hub", "publish", "--program", PROGRAM, "--data", data, *files), end="")

    def _start_devices(self) -> None:
        password = (self._folder / "password").read_text()
        logins = [
            self._open(
                *("terminal", "login", self._url, "--account", "demo", "--password-stdin", "--name", device),
                *("--device", str(HERE / "devices" / f"{device}.toml"), "--state", str(self._state(device))),
                stdin=password,
            )
            for device in DEVICES
        ]
        for login in logins:
            print(_finish(login), end="")
        for device in DEVICES:
            self._start(device, "terminal", "run", "--state", str(self._state(device)))
        for device in DEVICES:
            self._wait_for(device, "Connected")

    def _show(self, command: str, *arguments: str) -> None:
        """Run a command of the initiator as a person would, straight onto this terminal."""
        print(f"\n$ lockstep-terminal {' '.join((command, *arguments))}", flush=True)
        code = subprocess.call([sys.executable, "-m", "terminal", command, *arguments, *self._at(INITIATOR)])
        if code != 0:
            raise DemoError(f"lockstep-terminal {command} ended with exit code {code}.")

    def _check(self, device: str) -> Check:
        name = EXPECTED_FILE[device]
        digest = check_held(self._state(device), device, name)
        version, says = _ask_package_system(device, self._state(device) / "programs")
        if not version.startswith("1.0.0"):
            raise DemoError(f"The {device}'s package system says version {version!r} instead of 1.0.0.")
        return Check(device, name, digest, version, says)

    # --- processes ------------------------------------------------------------------------------------------------

    def _state(self, device: str) -> Path:
        return self._folder / device

    def _at(self, device: str) -> tuple[str, str]:
        return "--state", str(self._state(device))

    def _open(self, module: str, *arguments: str, stdin: str = "") -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert process.stdin is not None
        process.stdin.write(stdin.rstrip("\n") + "\n")
        process.stdin.close()
        process.stdin = None
        return process

    def _call(self, module: str, *arguments: str, stdin: str = "") -> str:
        return _finish(self._open(module, *arguments, stdin=stdin))

    def _start(self, name: str, module: str, *arguments: str) -> None:
        """Start a process that runs until the end, its output in NAME.log."""
        with (self._folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )
        self._stack.callback(_stop, process)

    def _wait_for(self, name: str, words: str) -> str:
        """Wait until `words` are in a process's log; return the rest of that line."""
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline:
            for line in (self._folder / f"{name}.log").read_text().splitlines():
                if words in line:
                    return line.partition(words)[2]
            time.sleep(0.05)
        raise DemoError(f"The {name} did not say {words!r} within {_START_SECONDS:g} s.")


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file in hex."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def check_held(state: Path, device: str, name: str) -> str:
    """Return the SHA-256 of the published file `name`, which the device has to hold. Raises DemoError."""
    digest = sha256_of(HERE / "installers" / name)
    held = state / "installed" / digest
    if not held.is_file() or sha256_of(held) != digest:
        raise DemoError(f"The {device} does not hold {name} with SHA-256 {digest}.")
    return digest


def _step(words: str) -> None:
    print(f"\n== {words}", flush=True)


def _check_machine() -> None:
    if platform.system() != "Linux":
        raise DemoError(f"The demonstration was only tried on Linux; this is {platform.system()}.")


def _finish(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=_START_SECONDS)
    if process.returncode != 0:
        raise DemoError(f"{process.args!r} ended with exit code {process.returncode}: {output}")
    return output


def _stop(process: subprocess.Popen[Any]) -> None:
    process.terminate()
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _ask_package_system(device: str, programs: Path) -> tuple[str, str]:
    """Return the version the device's own package system gives, and what the program says when it is run."""
    if device == "pc":
        root = programs / "deb-root"
        query = ["dpkg-query", f"--admindir={root / 'var/lib/dpkg'}", "-W", "-f", "${Version}", PROGRAM]
        return _output(query), _output(["sh", str(root / "usr/bin" / PROGRAM)])
    if device == "car":
        binaries = programs / "wheel-environment" / "bin"
        asked = "import importlib.metadata as m; print(m.version('hello-lockstep'))"
        return _output([str(binaries / "python"), "-c", asked]), _output([str(binaries / PROGRAM)])
    packages = json.loads((programs / "apk-apps" / "packages.json").read_text())
    return str(packages["org.lockstep.hello"]["version"]), "(simulated: not run)"


def _output(command: list[str]) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=_START_SECONDS).stdout.strip()


def _print_checks(checks: list[Check]) -> None:
    rows: list[tuple[str, ...]] = [("DEVICE", "FILE", "SHA-256", "VERSION", "SAYS")]
    rows += [(check.device, check.file, check.sha256[:16], check.version, check.says) for check in checks]
    for line in _columns(rows):
        print(line)


def _columns(rows: list[tuple[str, ...]]) -> Iterator[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
