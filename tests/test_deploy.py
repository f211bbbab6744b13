"""docs/deploy.md is true: its nginx and Caddy configurations are taken out of it and run in front of a real hub.

Only what a test machine cannot have is put in its place: the name, the ports, the certificate. Through each proxy go a
login of the real command, a sync of 3 MiB to a device, and a connection that is idle for longer than the proxy waits.
"""

import asyncio
import contextlib
import hashlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tomllib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from hub.config import load_settings
from protocol import limits
from terminal.simulated import DEFAULT_MIX
from tests.harness.certificates import Certificate, make_certificate
from tests.harness.fleets import devices, ended, until
from tests.harness.hubs import PASSWORD, RunningHub, running_hub
from tests.harness.installers import make_installer
from tests.harness.raw import RawTerminal

DOCUMENT: Final = (Path(__file__).parent.parent / "docs" / "deploy.md").read_text(encoding="utf-8")
INSTALLER_BYTES: Final = 3 * limits.MIB
START_SECONDS: Final = 20.0
# So that idling longer than a proxy waits takes a test seconds: every time of the page is divided by this.
FASTER: Final = 40

Configure = Callable[[Path, Certificate, int, int], Sequence[str]]


def blocks(language: str) -> list[str]:
    """Return what stands between ```LANGUAGE and ``` in the page."""
    return re.findall(rf"^```{language}\n(.*?)^```", DOCUMENT, re.DOTALL | re.MULTILINE)


def put(text: str, places: dict[str, str]) -> str:
    """Replace each of these, which has to be there."""
    for place, value in places.items():
        assert place in text, f"docs/deploy.md has no {place!r} any more"
        text = text.replace(place, value)
    return text


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def tool(name: str) -> str:
    found = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")
    if found is None:
        pytest.skip(f"{name} is not installed; see tests/tools.sh")
    return found


# --- the proxies --------------------------------------------------------------------------------------------------


def nginx(folder: Path, certificate: Certificate, port: int, hub_port: int) -> Sequence[str]:
    """Write nginx's configuration; return the command that runs it."""
    [site] = blocks("nginx")
    site = put(
        site,
        {
            "    listen [::]:443 ssl;\n": "",
            "listen 443 ssl": f"listen 127.0.0.1:{port} ssl",
            "server_name hub.example": "server_name 127.0.0.1",
            "/etc/letsencrypt/live/hub.example/fullchain.pem": str(certificate.certificate),
            "/etc/letsencrypt/live/hub.example/privkey.pem": str(certificate.key),
            "http://127.0.0.1:8765": f"http://127.0.0.1:{hub_port}",
            "proxy_read_timeout 60s": f"proxy_read_timeout {60_000 // FASTER}ms",
            "proxy_send_timeout 60s": f"proxy_send_timeout {60_000 // FASTER}ms",
        },
    )
    stores = "".join(
        f"{name}_temp_path {folder}/{name};\n" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    file = folder / "nginx.conf"
    file.write_text(
        f"daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/nginx.log info;\n"
        f"events {{ worker_connections 256; }}\nhttp {{\naccess_log off;\n{stores}{site}}}\n"
    )
    return (tool("nginx"), "-e", f"{folder}/nginx.log", "-p", str(folder), "-c", str(file))


def caddy(folder: Path, certificate: Certificate, port: int, hub_port: int) -> Sequence[str]:
    """Write Caddy's configuration; return the command that runs it."""
    [site] = blocks("caddy")
    tls = f"https://127.0.0.1:{port} {{\n\tbind 127.0.0.1\n\ttls {certificate.certificate} {certificate.key}"
    site = put(site, {"hub.example {": tls, "127.0.0.1:8765": f"127.0.0.1:{hub_port}"})
    file = folder / "Caddyfile"
    file.write_text(f"{{\n\tadmin off\n\tauto_https off\n\tstorage file_system {folder}/caddy\n}}\n{site}")
    return (tool("caddy"), "run", "--adapter", "caddyfile", "--config", str(file))


PROXIES: Final[dict[str, Configure]] = {"nginx": nginx, "caddy": caddy}


@dataclass(frozen=True, slots=True)
class Deployment:
    """A hub behind a proxy: `url` is the proxy's, `folder` where everything lies."""

    hub: RunningHub
    folder: Path
    certificate: Certificate
    port: int

    @property
    def url(self) -> str:
        """Where devices dial."""
        return f"wss://127.0.0.1:{self.port}"

    async def dial(self) -> RawTerminal:
        """Open a WebSocket through the proxy."""
        opened = await connect(
            self.url, ssl=self.certificate.trusting(), subprotocols=[Subprotocol("lockstep.v1")], compression=None,
            max_size=limits.MESSAGE_BYTES, ping_interval=None, proxy=None,
        )  # fmt: skip
        return RawTerminal(opened, "127.0.0.1", self.port)


@asynccontextmanager
async def deployed(folder: Path, configure: Configure) -> AsyncIterator[Deployment]:
    """Run a hub with the settings of the page behind a proxy with the configuration of the page."""
    certificate, port = make_certificate(folder), free_port()
    told = tomllib.loads(blocks("toml")[1])
    assert told["names"] == ["hub.example:443"]
    async with running_hub(folder, names=(f"127.0.0.1:{port}",), trusted_proxies=tuple(told["trusted_proxies"])) as hub:
        await hub.add_account("ada")
        command = configure(folder, certificate, port, hub.server.port)
        with (folder / "proxy.log").open("wb") as log:
            process = await asyncio.create_subprocess_exec(*command, stdout=log, stderr=log, env=_environment(folder))
        try:
            await until(lambda: process.returncode is not None or _listens(port), within_seconds=START_SECONDS)
            assert process.returncode is None, (folder / "proxy.log").read_text()
            yield Deployment(hub, folder, certificate, port)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGTERM)
            await asyncio.wait_for(process.wait(), START_SECONDS)


def _environment(folder: Path) -> dict[str, str]:
    homes = dict.fromkeys(("HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME"), str(folder))
    return {"PATH": f"{os.environ['PATH']}:/usr/sbin", **homes}


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


@pytest.mark.parametrize("proxy", PROXIES)
async def test_a_login_and_a_sync_of_3_mib_go_through_the_proxy_of_the_page(
    proxy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with deployed(tmp_path, PROXIES[proxy]) as there:
        monkeypatch.setenv("SSL_CERT_FILE", str(there.certificate.certificate))
        file = make_installer(tmp_path, "deb", size=INSTALLER_BYTES)
        await there.hub.publish(file)
        await log_in(there)
        computers = [(name, DEFAULT_MIX[-1].device) for name in ("PC 1", "PC 2")]
        async with devices(there, "ada", computers, folder=tmp_path / "devices") as fleet:
            watch = await fleet.initiator.sync("hello", targets=(fleet.devices[1].terminal,))
            assert await ended(watch) == "done"
            assert fleet.digest("PC 2", "hello") == hashlib.sha256(file.read_bytes()).hexdigest()
            socket_there = there.hub.socket_of(fleet.devices[1].terminal)
            assert socket_there.address == "127.0.0.1", "the client's, as the proxy gave it: without its own port"


async def log_in(there: Deployment) -> None:
    """Log in with the real command."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "terminal", "login", there.url, "--account", "ada", "--password-stdin",
        "--name", "Laptop", "--state", str(there.folder / "laptop"), "--ca-file", str(there.certificate.certificate),
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    said, _ = await asyncio.wait_for(process.communicate(PASSWORD.encode() + b"\n"), START_SECONDS)
    assert process.returncode == 0, said.decode()
    assert b"Laptop" in said


@pytest.mark.parametrize("proxy", PROXIES)
async def test_an_idle_connection_outlives_the_time_the_proxy_waits(
    proxy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = limits.PING_EVERY_SECONDS / FASTER
    monkeypatch.setattr(limits, "PING_EVERY_SECONDS", every)
    monkeypatch.setattr(limits, "HEARD_WITHIN_SECONDS", every)  # the next ping is due no sooner than this
    async with deployed(tmp_path, PROXIES[proxy]) as there:
        idle = await there.dial()
        await idle.enrol("ada")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(idle.closed(), 2 * 60 / FASTER)
        await idle.socket.close()


async def test_a_connection_that_is_not_pinged_is_cut_by_the_proxy(tmp_path: Path) -> None:
    async with deployed(tmp_path, nginx) as there:
        idle = await there.dial()
        await idle.enrol("ada")
        async with asyncio.timeout(START_SECONDS):
            code, _, _ = await idle.closed()
        assert code == 1006


@pytest.mark.parametrize("proxy", PROXIES)
async def test_what_a_client_says_of_its_own_address_is_dropped_by_the_proxy(proxy: str, tmp_path: Path) -> None:
    async with deployed(tmp_path, PROXIES[proxy]) as there:
        liar = await connect(
            there.url, ssl=there.certificate.trusting(), subprotocols=[Subprotocol("lockstep.v1")], compression=None,
            additional_headers={"X-Forwarded-For": "203.0.113.9", "X-Forwarded-Proto": "http"}, proxy=None,
        )  # fmt: skip
        terminal = RawTerminal(liar, "127.0.0.1", there.port)
        await terminal.enrol("ada")
        assert there.hub.socket_of(terminal.terminal).address == "127.0.0.1"
        await liar.close()


async def test_a_web_page_is_refused_through_the_proxy_too(tmp_path: Path) -> None:
    async with deployed(tmp_path, nginx) as there:
        with pytest.raises(Exception, match="403"):
            await connect(
                there.url, ssl=there.certificate.trusting(), subprotocols=[Subprotocol("lockstep.v1")], proxy=None,
                additional_headers={"Origin": "https://evil.example"},
            )  # fmt: skip


async def test_a_hub_that_stops_closes_what_comes_through_the_proxy(tmp_path: Path) -> None:
    async with deployed(tmp_path, nginx) as there:
        terminal = await there.dial()
        await terminal.enrol("ada")
        ending = asyncio.create_task(terminal.closed())
        await there.hub.stop()
        code, _, _ = await asyncio.wait_for(ending, START_SECONDS)
        assert code == 1012
        with contextlib.suppress(ConnectionClosed):
            await terminal.socket.close()


# --- the rest of the page -----------------------------------------------------------------------------------------


def test_the_times_of_the_page_are_longer_than_a_quiet_device_needs() -> None:
    [site] = blocks("nginx")
    times = re.findall(r"proxy_(?:read|send)_timeout (\d+)s;", site)
    assert len(times) == 2
    assert min(map(int, times)) > limits.PING_EVERY_SECONDS + limits.HEARD_WITHIN_SECONDS
    assert "longer than 37 s" in DOCUMENT


@pytest.mark.parametrize("number", [0, 1])
def test_the_settings_of_the_page_are_settings(number: int, tmp_path: Path) -> None:
    file = tmp_path / "hub.toml"
    file.write_text(blocks("toml")[number])
    settings = load_settings(file, {}, {})
    assert settings.encrypted is (number == 0)
    assert bool(settings.trusted_proxies) is (number == 1)


def test_the_unit_of_the_page_is_one_systemd_takes(tmp_path: Path) -> None:
    command = tool("systemd-analyze")
    [unit] = blocks("ini")
    file = tmp_path / "lockstep-hub.service"
    file.write_text(put(unit, {"/opt/lockstep/.venv/bin/lockstep-hub": sys.executable}))
    verified = subprocess.run([command, "verify", str(file)], capture_output=True, text=True, check=False)
    assert (verified.returncode, verified.stdout + verified.stderr) == (0, "")
    file.write_text(file.read_text().replace("[Service]", "[Service]\nProtectEverything=yes"))
    noticed = subprocess.run([command, "verify", str(file)], capture_output=True, text=True, check=False)
    assert "ProtectEverything" in noticed.stderr


def test_the_hook_after_a_renewal_puts_both_files_in_place_and_reloads(tmp_path: Path) -> None:
    renewed, place, commands = tmp_path / "renewed", tmp_path / "etc", tmp_path / "bin"
    for folder in (renewed, place, commands):
        folder.mkdir()
    (renewed / "fullchain.pem").write_text("certificate")
    (renewed / "privkey.pem").write_text("key")
    (commands / "systemctl").write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/said\n')
    (commands / "systemctl").chmod(0o755)
    hook = tmp_path / "hook"
    hook.write_text(put(blocks("sh")[0], {"/etc/lockstep": str(place), " -g lockstep": ""}))
    environment = {"PATH": f"{commands}:{os.environ['PATH']}", "RENEWED_LINEAGE": str(renewed)}
    subprocess.run(["sh", str(hook)], env=environment, check=True)
    assert (place / "tls.crt").read_text() == "certificate"
    assert (place / "tls.key").read_text() == "key"
    assert (place / "tls.key").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "said").read_text() == "reload lockstep-hub\n"
