"""Measure what the README promises and print it as Markdown tables: `python -m bench.figures [NAME ...]`.

NAMES: `fleet` (1,000 devices), `memory` (the hub while it sends), `slow` (a reader on 1 Mbit/s), `latency`. The hub is
a process of its own in each. Memory is VmRSS of proc(5), sampled every 20 ms; a peak is the largest sample.
"""

import asyncio
import contextlib
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from protocol import messages
from protocol.device import DeviceInfo, InstallerKind
from protocol.limits import MIB
from terminal.simulated import DEFAULT_MIX, make_devices
from tests.harness import HubProcess, TestFleet, devices, ended, make_installer, raw_terminal, running_hub
from tests.harness.raw import RawTerminal

SAMPLE_SECONDS: Final = 0.02
LINK_BYTES_PER_SECOND: Final = 125_000
LINK_SECONDS: Final = 180.0
LINK_BUFFER_BYTES: Final = 16 * 1024
RUNS: Final = 200
WARM_UP_RUNS: Final = 20
PC: Final = DeviceInfo(
    model="PC", form_factor="pc", os_type="linux", architectures=("x86_64",), installer_kinds=("deb",)
)


@asynccontextmanager
async def hub_with(
    size: int, kinds: Iterable[InstallerKind] = ("deb",), names: tuple[str, ...] = ()
) -> AsyncIterator[tuple[HubProcess, Path, str]]:
    """Run a hub that has published one program; yield it, a folder, and the digest of the last installer."""
    with tempfile.TemporaryDirectory(prefix="lockstep-figures-") as temporary:
        folder = Path(temporary)
        digest = ""
        async with running_hub(folder) as prepared:
            await prepared.add_account("bench")
            for kind in kinds:
                file = make_installer(folder, kind, size=size)
                digest = (await prepared.publish(file, program="hello")).digest
                file.unlink()
        async with HubProcess(folder / "hub", names=names) as hub:
            yield hub, folder, digest


class Peak:
    """The largest memory of a hub while a block runs."""

    def __init__(self, hub: HubProcess) -> None:
        self._hub = hub
        self.before = self.largest = self.after = hub.memory_bytes()

    async def __aenter__(self) -> "Peak":
        self._sampling = asyncio.create_task(self._sample())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._sampling.cancel()
        self.after = self._hub.memory_bytes()

    async def _sample(self) -> None:
        while True:
            self.largest = max(self.largest, self._hub.memory_bytes())
            await asyncio.sleep(SAMPLE_SECONDS)


def table(title: str, header: tuple[str, ...], rows: Iterable[tuple[object, ...]]) -> None:
    """Print a Markdown table."""
    print(f"\n### {title}\n\n| {' | '.join(header)} |\n|{'---|' * len(header)}", flush=True)
    for row in rows:
        print(f"| {' | '.join(map(str, row))} |", flush=True)


def mib(size: int) -> str:
    """Return bytes in MiB for a table."""
    return f"{size / MIB:.1f}"


# --- a thousand ---------------------------------------------------------------------------------------------------


async def fleet() -> None:
    """1,000 devices in one process enrol, log in, and get one sync."""
    made = make_devices([template for template in DEFAULT_MIX if template.device.installer_kinds], 1_000, seed=1)
    async with hub_with(64 * 1024, ("deb", "wheel", "apk")) as (hub, folder, _), Peak(hub) as peak:
        began = time.monotonic()
        async with devices(hub, "bench", made, folder=folder / "devices", connect=False) as thousand:
            enrolled = time.monotonic()
            await thousand.go_online()
            online = time.monotonic()
            online_bytes = hub.memory_bytes()
            watch = await thousand.initiator.sync("hello", everyone=True)
            outcome = await ended(watch)
            synced = time.monotonic()
            good = sum(row.state == "done" for row in watch.targets.values())
        rows = (
            ("enrol, s", f"{enrolled - began:.1f}"),
            ("log in, s", f"{online - enrolled:.1f}"),
            ("one sync to all, s", f"{synced - online:.1f}"),
            (f"delivered ({outcome})", good),
            ("hub before, MiB", mib(peak.before)),
            ("hub, all online, MiB", mib(online_bytes)),
            ("hub, peak, MiB", mib(peak.largest)),
            ("hub's processor time, s", f"{hub.cpu_seconds():.1f}"),
        )
    table("1,000 terminals, one hub", ("what", "measured"), rows)


# --- memory while sending -----------------------------------------------------------------------------------------


async def memory() -> None:
    """Show that the hub's memory depends neither on the object's size nor on the number of targets."""
    rows = [await _memory(size, targets) for size, targets in ((8, 1), (8, 8), (64, 1), (64, 8))]
    header = ("MiB", "targets", "hub before, MiB", "peak, MiB", "after, MiB", "seconds")
    table("An installer that cannot be compressed; targets are another process", header, rows)


async def _memory(size_mib: int, targets: int) -> tuple[object, ...]:
    async with hub_with(size_mib * MIB) as (hub, folder, _):
        made = [(f"PC {number}", PC) for number in range(targets + 1)]
        async with devices(hub, "bench", made, folder=folder / "devices") as group, Peak(hub) as peak:
            began = time.monotonic()
            assert await ended(await group.initiator.sync("hello", everyone=True)) == "done"
            seconds = time.monotonic() - began
    return size_mib, targets, mib(peak.before), mib(peak.largest), mib(peak.after), f"{seconds:.1f}"


# --- a slow link --------------------------------------------------------------------------------------------------


class SlowLink:
    """A proxy with small buffers that lets 1 Mbit/s through each way. `url` is where terminals dial."""

    def __init__(self) -> None:
        self.hub_port = 0
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.connections = 0
        self.url = ""

    async def __aenter__(self) -> "SlowLink":
        listening = _small(socket.socket())
        listening.bind(("127.0.0.1", 0))
        self._server = await asyncio.start_server(self._serve, sock=listening, limit=LINK_BUFFER_BYTES)
        self.url = f"ws://127.0.0.1:{listening.getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        dialling = _small(socket.socket())
        dialling.setblocking(False)
        await asyncio.get_running_loop().sock_connect(dialling, ("127.0.0.1", self.hub_port))
        hub_reader, hub_writer = await asyncio.open_connection(sock=dialling, limit=LINK_BUFFER_BYTES)
        for work in (_forward(reader, hub_writer), _forward(hub_reader, writer)):
            task = asyncio.create_task(work)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)


def _small(opened: socket.socket) -> socket.socket:
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, LINK_BUFFER_BYTES)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, LINK_BUFFER_BYTES)
    return opened


async def _forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.transport.set_write_buffer_limits(high=0)
    free_at = time.monotonic()
    with contextlib.suppress(OSError):
        while data := await reader.read(4096):
            free_at = max(free_at, time.monotonic()) + len(data) / LINK_BYTES_PER_SECOND
            await asyncio.sleep(free_at - time.monotonic())
            writer.write(data)
            await writer.drain()
    writer.close()


async def slow() -> None:
    """A terminal behind 1 Mbit/s receives 24 MB for three minutes; the connection has to hold."""
    async with SlowLink() as link, hub_with(24_000_000, names=(link.url.removeprefix("ws://"),)) as (hub, folder, _):
        link.hub_port = int(hub.url.rpartition(":")[2])
        made = [("Near", PC)]
        async with (
            devices(hub, "bench", made, folder=folder / "near") as near,
            devices(link, "bench", [("Far", PC)], folder=folder / "far") as far,
        ):
            target = far["Far"]
            began = time.monotonic()
            watch = await near.initiator.sync("hello", everyone=True)
            with contextlib.suppress(TimeoutError):
                await ended(watch, within_seconds=LINK_SECONDS)
            seconds = time.monotonic() - began
            rows = (
                ("seconds", f"{seconds:.0f}"),
                ("bytes received", f"{target.heard_bytes:,}"),
                ("bytes a second", f"{target.heard_bytes / seconds:,.0f}"),
                ("reconnects (0 wanted)", target.logins - 1),
                ("still online", target.online.is_set()),
            )
    table("A reading terminal on a link of 1 Mbit/s, an object of 24 MB", ("what", "measured"), rows)


# --- latency ------------------------------------------------------------------------------------------------------


async def latency() -> None:
    """Time from the dial to the device list, and from a sync request to the first frame at its target."""
    async with hub_with(1 * MIB) as (hub, folder, digest):
        made = [("Initiator", PC)]
        async with devices(hub, "bench", made, folder=folder / "devices") as group, raw_terminal(hub) as enrolling:
            await enrolling.enrol("bench", name="Target")
            to_list = await _measured(lambda: _login_to_list(hub, enrolling))
            to_frame = await _measured(lambda: _sync_to_frame(hub, group, enrolling, bytes.fromhex(digest)))
    rows = [
        (what, f"{statistics.median(times):.1f}", f"{sorted(times)[int(len(times) * 0.99)]:.1f}")
        for what, times in (("dial and login to device list", to_list), ("sync request to first frame", to_frame))
    ]
    table(f"Latency on loopback, {RUNS} runs", ("what", "median, ms", "p99, ms"), rows)


async def _measured(run: Callable[[], Awaitable[float]]) -> list[float]:
    return [await run() * 1_000 for _ in range(WARM_UP_RUNS + RUNS)][WARM_UP_RUNS:]


async def _login_to_list(hub: HubProcess, like: RawTerminal) -> float:
    began = time.perf_counter()
    async with raw_terminal(hub, like=like) as raw:
        await raw.login(receives=False)
        await raw.hear(messages.Devices)
        return time.perf_counter() - began


async def _sync_to_frame(hub: HubProcess, group: TestFleet, like: RawTerminal, digest: bytes) -> float:
    async with raw_terminal(hub, like=like) as raw:
        await raw.login()
        await raw.hear(messages.Devices)
        began = time.perf_counter()
        asking = asyncio.create_task(group.initiator.sync("hello", targets=(like.terminal,)))
        offer = await raw.hear(messages.Offer)
        await raw.hear(messages.ManifestPage)
        await raw.say(messages.Want(delivery=offer.delivery, runs=(messages.Run(0, offer.chunks),)))
        await raw.hear(messages.Chunks)
        seconds = time.perf_counter() - began
        await group.initiator.cancel((await asking).sync)
        await raw.hear(messages.Withdraw)
        return seconds


MEASUREMENTS: Final[dict[str, Callable[[], Awaitable[None]]]] = {
    "fleet": fleet,
    "memory": memory,
    "slow": slow,
    "latency": latency,
}


async def main(names: list[str]) -> int:
    """Run the measurements named, or all."""
    unknown = [name for name in names if name not in MEASUREMENTS]
    if unknown:
        print(f"There is no measurement {unknown[0]!r}; there are {', '.join(MEASUREMENTS)}.", file=sys.stderr)
        return 2
    for name in names or MEASUREMENTS:
        await MEASUREMENTS[name]()
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main(sys.argv[1:])))
