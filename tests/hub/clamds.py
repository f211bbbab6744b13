"""The real clamd for tests: its own configuration, one local signature, a unix socket and a port of its own."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from tests.scanner.patterns import EICAR

_CLAMD: Final = shutil.which("clamd", path=f"{os.environ['PATH']}:/usr/sbin")
NEEDED: Final = pytest.mark.skipif(_CLAMD is None, reason="needs clamd (sh tests/tools.sh)")
SIGNATURE: Final = "Lockstep.Test.Eicar"
STREAM_BYTES: Final = 1 << 20
_START_SECONDS: Final = 30.0


class Clamd:
    """A clamd that can be started and stopped; `unix` and `tcp` are its addresses as the hub takes them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self.socket = folder / "clamd.sock"
        self.unix = f"unix:{self.socket}"
        self.tcp = f"127.0.0.1:{_free_port()}"
        (folder / "db").mkdir()
        self.sign(f"{SIGNATURE}:0:*:{EICAR.hex()}")
        (folder / "clamd.conf").write_text(
            f"Foreground yes\nDatabaseDirectory {folder}/db\nLocalSocket {self.socket}\nTCPAddr 127.0.0.1\n"
            f"TCPSocket {self.tcp.rpartition(':')[2]}\nStreamMaxLength {STREAM_BYTES}\nAlertExceedsMax yes\n"
            "MaxFileSize 600K\n"
        )

    def sign(self, *signatures: str) -> None:
        """Have it start with these signatures."""
        (self._folder / "db" / "local.ndb").write_text("".join(f"{one}\n" for one in signatures))

    def start(self) -> None:
        """Start it and wait until it listens on both."""
        assert _CLAMD is not None
        command = [_CLAMD, "--config-file", str(self._folder / "clamd.conf")]
        log = (self._folder / "clamd.log").open("wb")
        with log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        deadline = time.monotonic() + _START_SECONDS
        while not self._listens():
            assert self._process.poll() is None, (self._folder / "clamd.log").read_text()
            assert time.monotonic() < deadline, "clamd did not start"
            time.sleep(0.02)

    def stop(self) -> None:
        """Kill it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        self.socket.unlink(missing_ok=True)

    def _listens(self) -> bool:
        host, _, port = self.tcp.rpartition(":")
        try:
            with socket.socket(socket.AF_UNIX) as unix, socket.create_connection((host, int(port))):
                unix.connect(str(self.socket))
        except OSError:
            return False
        return True


@contextmanager
def running_clamd(folder: Path) -> Iterator[Clamd]:
    """Run a clamd until the block is left."""
    folder.mkdir()
    clamd = Clamd(folder)
    clamd.start()
    try:
        yield clamd
    finally:
        clamd.stop()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
