"""Hubs and simulated devices for tests: real sockets, real SQLite, real files, in a few lines.

async with running_hub(tmp_path) as hub:
    await hub.add_account("alice")
    await hub.publish(make_installer(tmp_path, "deb", "hello"))
    async with devices(hub, "alice", 3, seed=1) as fleet:
        watch = await fleet.initiator.sync("hello", everyone=True)
        await ended(watch)
"""

from tests.harness.fleets import DeviceEvents, TestFleet, devices, ended, until
from tests.harness.hubs import PASSWORD, HubProcess, RunningHub, running_hub
from tests.harness.installers import make_installer
from tests.harness.proxy import SlowProxy
from tests.harness.raw import RawTerminal, raw_terminal

__all__ = [
    "PASSWORD",
    "DeviceEvents",
    "HubProcess",
    "RawTerminal",
    "RunningHub",
    "SlowProxy",
    "TestFleet",
    "devices",
    "ended",
    "make_installer",
    "raw_terminal",
    "running_hub",
    "until",
]
