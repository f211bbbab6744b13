"""The hub's rooms without sockets, for tests: an open data folder, accounts, terminals and published programs."""

import asyncio
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Literal

from hub.app import Hub, open_hub
from hub.catalogue import PublishOptions
from hub.config import Settings
from hub.records import Published, Terminal
from protocol import keys, messages
from protocol.device import DeviceInfo
from protocol.messages import InstalledProgram, Inventory
from tests.harness.installers import make_installer

PASSWORD = "correct horse battery"
PC = DeviceInfo(
    model="Test PC", form_factor="pc", os_type="linux", os_version="12", architectures=("x86_64",),
    installer_kinds=("deb", "wheel"),
)  # fmt: skip
PHONE = DeviceInfo(
    model="Pixel 8", form_factor="phone", os_type="android", os_version="14", api_level=34, architectures=("arm64",),
    installer_kinds=("apk",),
)  # fmt: skip


@asynccontextmanager
async def open_rooms(folder: Path, **settings: Any) -> AsyncIterator[Hub]:
    """Open a hub's data folder; no socket listens."""
    values: dict[str, Any] = {"data": str(folder / "hub"), "disk_reserve_bytes": 0}
    async with open_hub(Settings(**values | settings)) as hub:
        await hub.deliveries.start()
        yield hub


async def add_account(hub: Hub, name: str = "ada") -> str:
    """Add an account and return its id."""
    await hub.accounts.add(name, PASSWORD)
    account = await hub.accounts.check_password(name, PASSWORD)
    assert account is not None
    return account


def enrol_message(
    name: str = "PC", *, device: DeviceInfo = PC, account: str = "ada", key: keys.SigningKey | None = None
) -> messages.Enrol:
    """Return an enrolment as the accounts take it; its signature is nobody's."""
    return messages.Enrol(
        account=account, password=PASSWORD, name=name, device=device,
        device_key=(key or keys.SigningKey.generate()).public, sealing_key=bytes(32), host="hub", port=1,
        signature=bytes(64),
    )  # fmt: skip


async def add_terminal(
    hub: Hub, account_id: str, name: str = "PC", *, device: DeviceInfo = PC, receives: bool = True
) -> Terminal:
    """Enrol a device and count one login of it."""
    terminal = await hub.accounts.enrol(account_id, enrol_message(name, device=device), "192.0.2.1:5")
    return await hub.accounts.count_login(terminal.terminal_id, device, "192.0.2.1:5", receives=receives)


async def publish(
    hub: Hub,
    folder: Path,
    version: str = "1.0",
    *,
    kind: Literal["deb", "apk", "wheel"] = "deb",
    program: str = "hello",
) -> Published:
    """Make and publish a small installer of a program."""
    path = await asyncio.to_thread(make_installer, folder, kind, name=program, version=version, size=5_000)
    return await hub.catalogue.publish(path, PublishOptions(program=program))


async def say_inventory(
    hub: Hub, terminal: Terminal, *has: Published, installing: tuple[str, ...] = (), first: bool = True
) -> None:
    """Say what a terminal has, as it does after each login."""
    programs = tuple(program for one in has for program in inventory_of(one).programs)
    inventory = Inventory(programs=programs, installing=installing)
    await hub.deliveries.save_inventory(terminal.terminal_id, terminal.connection, inventory, first=first)


def inventory_of(published: Published) -> Inventory:
    """Return the inventory of a terminal that has this installer and nothing else."""
    program = InstalledProgram(
        program=published.program, package_name="hello", version=published.version, installer_kind=published.kind,
        digest=bytes.fromhex(published.digest),
    )  # fmt: skip
    return Inventory(programs=(program,))


@contextmanager
def small_disk(folder: Path, size_bytes: int) -> Iterator[Path]:
    """Mount a file system in memory of this size on `folder`; needs root."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)
