"""Simulated devices: many terminals in one process, with the client's own code from the socket to the installed file.

A simulated device differs from a real one in four things: what it says of itself is made up from a seed, an installer
of any kind is "installed" by copying it into a folder, what a scan finds is made up too, and there is no local socket
and no thread of its own. Where there are many, only the first keeps the account's device list: a thousand lists of a
thousand rows have no reader.
"""

import asyncio
import contextlib
import random
import threading
import time
import tomllib
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeAlias

import msgspec
from msgspec import Meta, Struct, structs
from websockets.typing import Data

from protocol import life, messages
from protocol.device import DeviceInfo, InstallerKind
from protocol.errors import (
    BadDataError,
    BadFileError,
    LockstepError,
    RefusedError,
    UnavailableError,
    UsageError,
)
from protocol.messages import AnyMessage, DeviceRow, FindingRow, LocalRequest
from terminal.agent import INSTALLATION_SECONDS, back_off, wait_seconds
from terminal.client import Client, enrol
from terminal.connection import Connection, login_of
from terminal.dialling import Address, HubSocket, dial, parse_address
from terminal.inbox import answer_alone
from terminal.installers import Runner, RunnerSettings
from terminal.installers.apk import SimulatedRunner
from terminal.installing import Installations
from terminal.link import Listener
from terminal.posture import Looked, Postures, StoppedError
from terminal.programfiles import Places
from terminal.state import StateFolder

KEEP_LISTS_UP_TO: Final = 32  # devices in one fleet
OPENING_AT_ONCE: Final = 64  # a quarter of what a hub lets in before their login
ENROL_TRIES: Final = 12
MIX_FILE_BYTES: Final = 1024 * 1024
NEVER_AGAIN_SECONDS: Final = 0.25
SIMULATED_FINDING: Final = "apps/simulated"
SimulatedPosture: TypeAlias = Literal["clean", "finding", "never"]


# --- what devices there are ---------------------------------------------------------------------------------------


class Template(Struct, frozen=True, kw_only=True):
    """Devices of one sort: how many among others (`weight`), what they are called, what they say of themselves."""

    name: Annotated[str, Meta(min_length=1, max_length=48)]
    weight: Annotated[float, Meta(ge=0, le=1e6)] = 1.0
    device: DeviceInfo


def _android(name: str, weight: float, device: DeviceInfo) -> Template:
    features = () if device.form_factor == "tv" else ("android.hardware.touchscreen",)
    complete = structs.replace(device, os_type="android", installer_kinds=("apk",), features=features)
    return Template(name=name, weight=weight, device=complete)


def _linux(name: str, weight: float, device: DeviceInfo) -> Template:
    return Template(name=name, weight=weight, device=structs.replace(device, os_type="linux"))


DEFAULT_MIX: Final = (
    _android(
        "Phone",
        22,
        DeviceInfo(
            model="Pixel 8", model_code="GKWS6", form_factor="phone", os_version="14", api_level=34,
            architectures=("arm64",), screen_inches=6.2, resolution=(1080, 2400), density_dpi=420,
            free_bytes=48_000_000_000,
        ),
    ),
    _android(
        "Phone",
        18,
        DeviceInfo(
            model="Galaxy S22", model_code="SM-S901B", form_factor="phone", os_version="13", api_level=33,
            architectures=("arm64", "armv7"), screen_inches=6.1, resolution=(1080, 2340), density_dpi=425,
            free_bytes=31_000_000_000,
        ),
    ),
    _android(
        "Phone",
        8,
        DeviceInfo(
            model="moto e6", model_code="XT2005", form_factor="phone", os_version="9", api_level=28,
            architectures=("armv7",), screen_inches=5.5, resolution=(720, 1440), density_dpi=293,
            free_bytes=2_500_000_000,
        ),
    ),
    Template(
        name="Phone",
        weight=7,
        device=DeviceInfo(
            model="iPhone 15", model_code="iPhone15,4", form_factor="phone", os_type="ios", os_version="17.5",
            architectures=("arm64",), screen_inches=6.1, resolution=(1179, 2556), density_dpi=460,
        ),
    ),
    _android(
        "Tablet",
        12,
        DeviceInfo(
            model="Galaxy Tab S9", model_code="SM-X710", form_factor="tablet", os_version="13", api_level=33,
            architectures=("arm64", "armv7"), screen_inches=11.0, resolution=(2560, 1600), density_dpi=340,
            free_bytes=90_000_000_000,
        ),
    ),
    _android(
        "TV",
        8,
        DeviceInfo(
            model="BRAVIA XR-55A80J", model_code="BRAVIA VU31", form_factor="tv", os_version="12", api_level=31,
            architectures=("armv7",), screen_inches=54.6, resolution=(3840, 2160), density_dpi=640,
            free_bytes=6_000_000_000,
        ),
    ),
    _android(
        "TV",
        5,
        DeviceInfo(
            model="Chromecast HD", model_code="boreal", form_factor="tv", os_version="12", api_level=31,
            architectures=("armv7",), resolution=(1920, 1080), density_dpi=320, free_bytes=3_000_000_000,
        ),
    ),
    _linux(
        "Car",
        8,
        DeviceInfo(
            model="Raspberry Pi 4 Model B", model_code="BCM2711", form_factor="car", os_version="12",
            architectures=("arm64",), screen_inches=10.1, resolution=(1280, 800), density_dpi=149,
            installer_kinds=("wheel",), python_version="3.11", libc="glibc 2.36", free_bytes=12_000_000_000,
        ),
    ),
    _linux(
        "PC",
        8,
        DeviceInfo(
            model="ThinkPad X1 Carbon Gen 11", model_code="21HM", form_factor="pc", os_version="12",
            architectures=("x86_64", "x86"), screen_inches=14.0, resolution=(1920, 1200), density_dpi=162,
            installer_kinds=("deb", "wheel"), python_version="3.11", libc="glibc 2.36", free_bytes=200_000_000_000,
        ),
    ),
    _linux(
        "PC",
        4,
        DeviceInfo(
            model="OptiPlex 7010", form_factor="pc", os_version="24.04", architectures=("x86_64",),
            screen_inches=23.8, resolution=(1920, 1080), density_dpi=93, installer_kinds=("deb",),
            free_bytes=410_000_000_000,
        ),
    ),
)  # fmt: skip


def make_devices(mix: Sequence[Template], count: int, seed: int) -> list[tuple[str, DeviceInfo]]:
    """Return `count` (name, device) pairs drawn from `mix`; the same arguments give the same devices.

    The first devices are one of each template, so that a small fleet is a mixed one too.
    """
    chance = random.Random(seed)  # noqa: S311 - repeatable is what is wanted
    each = [template for template in mix if template.weight]
    drawn = each + chance.choices(mix, weights=[template.weight for template in mix], k=max(count - len(each), 0))
    numbers: Counter[str] = Counter()
    made = []
    for template in drawn[:count]:
        numbers[template.name] += 1
        free_bytes = template.device.free_bytes
        varied = int(free_bytes * chance.uniform(0.25, 1.0)) if free_bytes else free_bytes
        made.append((f"{template.name} {numbers[template.name]}", structs.replace(template.device, free_bytes=varied)))
    return made


def load_mix(path: Path) -> tuple[Template, ...]:
    """Read a mix: TOML, one `[[devices]]` table a template with `name`, `weight` and the fields of a device file.

    Raises BadFileError naming the file and what is wrong.
    """
    tables = _tables(path)
    known = {"name", "weight", *DeviceInfo.__struct_fields__}
    templates = []
    for number, table in enumerate(tables, start=1):
        unknown = sorted(set(table) - known)
        if unknown:
            raise BadFileError(
                f"{path}: devices table {number} has the unknown key {unknown[0]!r}.",
                hint=f"Known are: {', '.join(sorted(known))}.",
            )
        device = {key: value for key, value in table.items() if key not in ("name", "weight")}
        own = {key: value for key, value in table.items() if key in ("name", "weight")}
        try:
            templates.append(msgspec.convert({**own, "device": device}, Template))
        except msgspec.ValidationError as error:
            raise BadFileError(
                f"{path}: devices table {number} is wrong: {error}.", hint="A name and a model are needed."
            ) from None
    if not any(template.weight for template in templates):
        raise BadFileError(f"{path} describes no device.", hint="Give at least one a weight above 0.")
    return tuple(templates)


def _tables(path: Path) -> list[dict[str, Any]]:
    try:
        with path.open("rb") as file:
            content = tomllib.loads(file.read(MIX_FILE_BYTES).decode())
    except OSError as error:
        raise BadFileError(f"{path} cannot be read: {error.strerror}.") from None
    except (ValueError, RecursionError) as error:  # TOMLDecodeError and UnicodeDecodeError are ValueErrors
        raise BadFileError(f"{path} is not valid TOML: {error}.") from None
    tables = content.get("devices")
    if set(content) != {"devices"} or not isinstance(tables, list) or not all(isinstance(one, dict) for one in tables):
        raise BadFileError(f"{path} is not a list of devices.", hint="Write [[devices]] tables, and nothing else.")
    return tables


# --- one device ---------------------------------------------------------------------------------------------------


class SimulatedFolder(StateFolder):
    """A state folder that keeps no device list and counts the reports of its terminal by state."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.reported: Counter[str] = Counter()

    def add_report(self, report: messages.State) -> None:
        """Keep a report until it is noted."""
        super().add_report(report)
        self.reported[report.state] += 1

    def save_devices(self, epoch: str, revision: int, rows: tuple[DeviceRow, ...]) -> None:
        """Keep nothing: nobody lists devices from here while the terminal is away."""


class SimulatedSocket(HubSocket):
    """A socket that counts what it hears, and passes over device lists nobody asked for before they are decoded."""

    heard_bytes = 0
    keeps_devices = False

    def data_received(self, data: bytes) -> None:
        """Count."""
        self.heard_bytes += len(data)
        super().data_received(data)

    async def __aiter__(self) -> AsyncIterator[Data]:
        """Yield the messages."""
        async for data in super().__aiter__():
            if self.keeps_devices or not _is_unasked_list(data):
                yield data


def _is_unasked_list(data: Data) -> bool:
    """Return whether a message is a device list or a change of one; an answer has `re` next to its kind."""
    kind, follows = data[6:14], data[14:17]
    return data[1:6] == b"\xa4kind" and (kind == b"\xaedevice_" or (kind == b"\xa7devices" and follows != b"\xa2re"))


class SimulatedDevice:
    """One terminal. `client` asks over its one connection; `online` is set while there is one.

    `listeners` get what comes unasked, from the first message of each connection that begins later.
    `cut_every_seconds` (0: never) is the mean time after which the connection is cut, by `chance`. `posture` is what
    its next scan is to end with.
    """

    def __init__(
        self,
        name: str,
        device: DeviceInfo,
        path: Path,
        *,
        chance: random.Random,
        cut_every_seconds: float = 0.0,
        keeps_devices: bool = True,
        posture: SimulatedPosture = "clean",
    ) -> None:
        self.name = name
        self.device = device
        self.folder = SimulatedFolder(path)
        self.connection: Connection | None = None
        self.online = asyncio.Event()
        self.logins = 0
        self.error: LockstepError | None = None
        self.keeps_devices = keeps_devices
        self.listeners: list[Listener] = []
        self._chance = chance
        self.cut_every_seconds = cut_every_seconds
        self._socket: SimulatedSocket | None = None
        self._heard_bytes = 0
        settings = RunnerSettings(root="apps")
        self.runners: Mapping[InstallerKind, Runner] = {
            kind: SimulatedRunner(path.absolute(), settings, kind) for kind in device.installer_kinds
        }
        self.installations = Installations(self.folder, self.runners, _say_nothing)
        self.posture: SimulatedPosture = posture
        self.postures = SimulatedPostures(self)

    @property
    def terminal(self) -> str:
        """Its terminal id. Raises NotLoggedInError before it is enrolled."""
        return self.folder.identity().terminal

    @property
    def client(self) -> Client:
        """What may be asked over the connection it has now. Raises UnavailableError while it has none."""
        if self.connection is None:
            raise UnavailableError(f"{self.name} is offline.")
        return Client(self.folder, self.folder.identity(), self.connection.link)

    @property
    def heard_bytes(self) -> int:
        """All bytes that came over its sockets."""
        return self._heard_bytes + (self._socket.heard_bytes if self._socket else 0)

    async def answer(self, request: LocalRequest) -> AnyMessage:
        """Answer as the person at this device: what waits, and what they decide. Raises as `Connection.answer`."""
        if self.connection is not None:
            return await self.connection.answer(request)
        return await answer_alone(self.folder, request, self.installations.is_under_way)

    def installed_file(self, package_name: str) -> Path | None:
        """Return the file that is installed as `package_name`, or None."""
        found = sorted((self.folder.path / "apps" / package_name).glob("base.*"))
        return found[0] if found else None

    async def enrol(
        self,
        url: str,
        account: str,
        password: str,
        *,
        join_key: str = "",
        insecure_lan: bool = False,
        ca_file: Path | None = None,
    ) -> None:
        """Make it a terminal, unless its folder says that it is one there already. Raises as `client.enrol`.

        Of `account` by its password, or, where that is empty, of the account of `join_key`.
        """
        if self.folder.has_identity():
            identity = self.folder.identity()
            if identity.url == url and account in ("", identity.account):
                return
        await enrol(
            self.folder, url, account=account, password=password, join_key=join_key, name=self.name,
            device=self.device, insecure_lan=insecure_lan, ca_file=ca_file, socket_class=SimulatedSocket,
        )  # fmt: skip

    async def keep_connected(self, address: Address, gate: asyncio.Semaphore) -> None:
        """Stay connected until cancelled; back off between tries. Ends early, with `error`, when the hub refuses it.

        `gate` bounds how many devices log in at once.
        """
        try:
            with self.folder.lock():
                try:
                    await self._keep_connected(address, gate)
                finally:
                    await self.postures.stop()
                    if not await self.installations.wait(INSTALLATION_SECONDS):
                        await self.installations.cancel()
        except LockstepError as error:
            self.error = error

    async def _keep_connected(self, address: Address, gate: asyncio.Semaphore) -> None:
        delays = back_off()
        while True:
            logins = self.logins
            self.installations.settle()
            error = await self._connect_once(address, gate)
            if not isinstance(error, (UnavailableError, BadDataError)) or isinstance(error, BadFileError):
                raise error
            if self.logins > logins:
                delays = back_off()
            await asyncio.sleep(wait_seconds(error, delays))

    async def _connect_once(self, address: Address, gate: asyncio.Semaphore) -> LockstepError:
        try:
            async with self._connected(address, gate) as connection:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._cut_after_seconds()):
                        return await connection.link.ended()
                connection.link.fail(UnavailableError("The simulation cut the connection."))
                return await connection.link.ended()
        except LockstepError as error:
            return error

    @asynccontextmanager
    async def _connected(self, address: Address, gate: asyncio.Semaphore) -> AsyncIterator[Connection]:
        async with gate:
            connection = await self._dial(address)
            try:
                await connection.open()
            except BaseException:
                await self._close(connection)
                raise
        self.connection = connection
        self.logins += 1
        self.online.set()
        try:
            yield connection
        finally:
            self.online.clear()
            self.connection = None
            await self._close(connection)

    async def _dial(self, address: Address) -> Connection:
        self._socket = await dial(address, SimulatedSocket)
        self._socket.keeps_devices = self.keeps_devices
        opening = login_of(self.folder.identity(), address, self.device, receives=True)
        connection = Connection(
            self._socket, address, opening, self.folder, self.installations, _say_nothing, postures=self.postures
        )
        for listener in self.listeners:
            connection.link.listen(listener)
        return connection

    async def _close(self, connection: Connection) -> None:
        await connection.close()
        self._heard_bytes, self._socket = self.heard_bytes, None

    def _cut_after_seconds(self) -> float | None:
        return self._chance.expovariate(1 / self.cut_every_seconds) if self.cut_every_seconds else None


class SimulatedPostures(Postures):
    """Scans that read nothing and end as their device says."""

    def __init__(self, device: SimulatedDevice) -> None:
        super().__init__(device.folder, device.runners, _say_nothing)
        self._device = device

    def settle(self, rules: bytes, gone: threading.Event) -> None:
        """Take a rule set without compiling it."""

    async def look(self, rules: bytes, places: Places, gone: threading.Event) -> Looked:
        """Say what was found; a scan that is never to end waits until that is changed or nobody wants it any more."""
        while self._device.posture == "never":
            await asyncio.sleep(NEVER_AGAIN_SECONDS)
            if gone.is_set():
                raise StoppedError
        found = self._device.posture == "finding"
        rows = (FindingRow(file=SIMULATED_FINDING, rule="simulated"),) if found else ()
        count = len(places.programs)
        return Looked(
            rules=rules, began_at=time.time(), programs=count, files=count, findings=rows, findings_in_all=len(rows)
        )


def _say_nothing(_kind: str, _sentence: str) -> None:
    """Events of a simulated device are counted, not told."""


# --- many ---------------------------------------------------------------------------------------------------------


class Tally(Struct, frozen=True, kw_only=True):
    """How a fleet stands. `delivered` and `failed` count deliveries since its start, `refused` devices not let in."""

    devices: int
    enrolled: int
    online: int
    delivered: int
    failed: int
    refused: int
    heard_bytes: int


class Fleet:
    """Simulated devices of one account at one hub."""

    def __init__(self, devices: Sequence[SimulatedDevice], url: str, account: str) -> None:
        self.devices = devices
        self.url = url
        self.account = account
        self.enrolled = 0
        self._gate = asyncio.Semaphore(OPENING_AT_ONCE)
        self._running: dict[str, asyncio.Task[None]] = {}

    async def enrol(
        self, password: str, *, join_key: str = "", insecure_lan: bool = False, ca_file: Path | None = None
    ) -> None:
        """Enrol every device, the first alone: what is wrong for one is wrong for all. Raises as `client.enrol`."""

        async def one(device: SimulatedDevice, tries: int) -> None:
            async with self._gate:
                try:
                    await device.enrol(
                        self.url, self.account, password, join_key=join_key, insecure_lan=insecure_lan, ca_file=ca_file
                    )
                except UnavailableError:
                    if tries <= 1:
                        raise
                else:
                    self.enrolled += 1
                    return
            await asyncio.sleep(next(delays[device.name]))
            await one(device, tries - 1)

        delays = {device.name: back_off() for device in self.devices}
        for device in self.devices[:1]:
            await one(device, 1)
        try:
            async with asyncio.TaskGroup() as group:
                for device in self.devices[1:]:
                    group.create_task(one(device, ENROL_TRIES))
        except* LockstepError as errors:
            raise _first(errors) from None

    def connect(self, *devices: SimulatedDevice, insecure_lan: bool = False, ca_file: Path | None = None) -> None:
        """Have the devices (default: all) connect, and stay so until `disconnect`."""
        address = parse_address(self.url, insecure_lan=insecure_lan, ca_file=ca_file)
        for device in devices or self.devices:
            if device.name not in self._running:
                work = device.keep_connected(address, self._gate)
                self._running[device.name] = asyncio.create_task(work, name=device.name)

    async def disconnect(self, *devices: SimulatedDevice) -> None:
        """Have the devices (default: all) close their connections and stay away."""
        tasks = [self._running.pop(one.name) for one in devices or self.devices if one.name in self._running]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def all_online(self, devices: Iterable[SimulatedDevice] = ()) -> None:
        """Wait until the devices (default: all) are online. Raises RefusedError when one is not let in."""
        for device in devices or self.devices:
            running = self._running[device.name]
            waiting = asyncio.create_task(device.online.wait())
            await asyncio.wait((running, waiting), return_when=asyncio.FIRST_COMPLETED)
            if not waiting.done():
                waiting.cancel()
                raise device.error or RefusedError(f"{device.name} is not connected.")

    def tally(self) -> Tally:
        """Return how the fleet stands now."""
        reported = [device.folder.reported for device in self.devices]
        return Tally(
            devices=len(self.devices),
            enrolled=self.enrolled,
            online=sum(device.online.is_set() for device in self.devices),
            delivered=sum(counts[life.State.DONE] for counts in reported),
            failed=sum(counts[life.State.FAILED] for counts in reported),
            refused=sum(device.error is not None for device in self.devices),
            heard_bytes=sum(device.heard_bytes for device in self.devices),
        )


def make_fleet(
    made: Sequence[tuple[str, DeviceInfo]],
    folder: Path,
    url: str,
    account: str,
    *,
    seed: int = 0,
    cut_every_seconds: float = 0.0,
    posture: SimulatedPosture = "clean",
) -> Fleet:
    """Return a fleet of these devices, each with a state folder of its own below `folder`. Nothing is connected yet.

    Raises UsageError when two devices have one name.
    """
    if len({name for name, _ in made}) != len(made):
        raise UsageError("Two simulated devices have one name.", hint="Give each its own.")
    devices = [
        SimulatedDevice(
            name,
            device,
            folder / f"device-{number:04}",
            chance=random.Random(f"{seed}/{number}"),  # noqa: S311 - repeatable is what is wanted
            cut_every_seconds=cut_every_seconds,
            keeps_devices=number == 1 or len(made) <= KEEP_LISTS_UP_TO,
            posture=posture,
        )
        for number, (name, device) in enumerate(made, start=1)
    ]
    return Fleet(devices, url, account)


def _first(errors: BaseExceptionGroup[LockstepError]) -> LockstepError:
    error = errors.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error
