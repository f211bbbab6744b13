"""What the simulated hub has to give: two programs in a few versions, a few small chunks each, some of them shared."""

import hashlib
import sqlite3
from typing import Final

import msgspec
from msgspec import Struct

from hub.matching import Selector
from hub.objects import Pack
from hub.records import RIGHTS, InstallerFacts
from hub.store import QUERIES
from hub.versions import version_sort_key
from protocol import chunks
from protocol.device import DeviceInfo
from protocol.messages import Run

NAMES: Final = frozenset({"hub.example:443"})
DEVICE: Final = DeviceInfo(model="Test PC", os_type="linux", installer_kinds=("deb",))
RELEASES: Final = {"editor": ("1.0", "2.0", "3.0"), "player": ("1.0", "2.0")}
INITIATOR: Final = "t-0"
TERMINALS: Final = ("t-1", "t-2", "t-3")


class Installer(Struct, frozen=True):
    """One installer of the catalogue, cut into its chunks."""

    program: str
    version: str
    digest: bytes
    raw: tuple[bytes, ...]
    manifest: chunks.Manifest

    @property
    def content(self) -> bytes:
        """The whole file."""
        return b"".join(self.raw)


def _installer(program: str, version: str) -> Installer:
    raw = tuple(f"{program} {version if number % 2 else ''} {number}".encode() * 2 for number in range(4))
    manifest = chunks.Manifest.of(chunks.Entry(hashlib.sha256(one).digest(), len(one), len(one)) for one in raw)
    return Installer(program, version, hashlib.sha256(b"".join(raw)).digest(), raw, manifest)


CATALOGUE: Final = {
    one.digest: one
    for one in (_installer(program, version) for program, versions in RELEASES.items() for version in versions)
}


class MemoryPack(Pack):
    """A pack that lies in memory."""

    def __init__(self, installer: Installer) -> None:
        self.digest = installer.digest
        self.manifest = installer.manifest
        self._content = installer.content

    def read(self, run: Run) -> bytes:
        """Return the stored bytes of a run."""
        offsets = self.manifest.stored_offsets
        return self._content[offsets[run.first] : offsets[run.first + run.count]]


def fill(connection: sqlite3.Connection) -> None:
    """Put the account, its terminals and the catalogue into an empty database."""

    def add(query: str, **parameters: object) -> None:
        connection.execute(QUERIES[query], {"now": 0.0, **parameters})

    add("add_account", account_id="a-1", name="ada", password_hash="")
    for terminal in (INITIATOR, *TERMINALS):
        add(
            "add_terminal", terminal_id=terminal, account_id="a-1", name=terminal, device_key=terminal.encode() * 11,
            sealing_key=b"", device=msgspec.json.encode(DEVICE), address="", rights=" ".join(RIGHTS),
        )  # fmt: skip
    for program in RELEASES:
        add("add_program", program_id=program, title=program)
    for one in CATALOGUE.values():
        facts = InstallerFacts(
            package_name=one.program, title=one.program, version=one.version, release=one.version, kind="deb",
            selector=Selector(os_types=("linux",)),
        )  # fmt: skip
        size = one.manifest.size
        add("add_object", digest=one.digest, size=size, stored_size=size, chunks=one.manifest.count)
        key = version_sort_key(one.version)
        add("add_release", program_id=one.program, version=one.version, version_key=key, channel="stable")
        add(
            "add_installer", digest=one.digest, program_id=one.program, version=one.version, kind="deb",
            package_name=one.program, file_version=one.version, file_name=f"{one.program}.deb",
            facts=msgspec.json.encode(facts), size=size, verdict="clean", finding="",
        )  # fmt: skip
