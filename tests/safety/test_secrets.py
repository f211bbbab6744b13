"""No secret is where it does not belong: planted ones are searched for in everything a whole scenario leaves behind.

Real processes: a hub with TLS, logins by password, join key, pairing and token, right and wrong, an agent, a sync, the
operator's commands and their failures, with --json and LOCKSTEP_DEBUG. Searched are all output, every file of the data
folder and the state folders, and the command line and environment of every process, for each secret as it is, in
hexadecimal and in base64. The hub's key may be in hub.key alone, a device's in its own identity.json and keys.json.
"""

import base64
import contextlib
import json
import os
import re
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import pytest

from tests.harness.certificates import Certificate, make_certificate
from tests.harness.installers import make_installer

SECONDS: Final = 60.0
CAR: Final = Path(__file__).parents[2] / "hub" / "demo" / "devices" / "car.toml"
TOKEN: Final = ".".join(
    base64.urlsafe_b64encode(part).decode().rstrip("=")
    for part in (b'{"alg":"RS256","kid":"marker"}', b'{"sub":"marker-subject"}', secrets.token_bytes(64))
)


# --- searching ----------------------------------------------------------------------------------------------------


def forms(secret: bytes) -> dict[str, bytes]:
    """Return how a secret may be written down; base64 without its end, which depends on what follows."""
    encoded = base64.b64encode(secret).rstrip(b"=")
    readings = {"itself": secret, "hex": secret.hex().encode(), "HEX": secret.hex().upper().encode()}
    return readings | {"base64": encoded[:-1], "base64url": encoded[:-1].translate(bytes.maketrans(b"+/", b"-_"))}


def leaks(what: Mapping[str, bytes], planted: Mapping[str, bytes]) -> list[str]:
    """Return "SECRET (FORM) in PLACE" for each secret that is found in what was left behind."""
    return [
        f"{name} ({form}) in {place}"
        for place, content in what.items()
        for name, secret in planted.items()
        for form, written in forms(secret).items()
        if written in content
    ]


def files_below(folder: Path) -> dict[str, bytes]:
    """Return every file by its path, links and sockets left out."""
    return {
        str(path.relative_to(folder.parent)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.is_symlink() and "wheel-environment" not in path.parts
    }


# --- the scenario -------------------------------------------------------------------------------------------------


class Scenario:
    """What runs, and all that it said: `left` is by where it was found, `planted` the secrets by name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.left: dict[str, bytes] = {}
        self.planted: dict[str, bytes] = {}
        self.certificate: Certificate = make_certificate(folder)
        self.url = ""
        self._environment = os.environ | {"LOCKSTEP_DEBUG": "1", "LOCKSTEP_HUB_DISK_RESERVE_BYTES": "0"}
        self._count = 0
        pem = self.certificate.key.read_text().splitlines()
        self.planted |= {f"TLS key, line {number}": line.encode() for number, line in enumerate(pem[1:-1], 1)}

    def plant(self, name: str, secret: str = "") -> str:
        """Make a secret that is found again, or have this one searched for."""
        secret = secret or f"planted {name} {secrets.token_hex(12)}"
        self.planted[name] = secret.encode()
        return secret

    def start(self, module: str, *arguments: str) -> subprocess.Popen[bytes]:
        """Start a command; its command line and environment are looked at before it is told any secret."""
        process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=self._environment,
        )  # fmt: skip
        self.look_at(process, f"{module} {arguments[0]}")
        return process

    def look_at(self, process: subprocess.Popen[bytes], name: str) -> None:
        """Keep what anybody may read of a process."""
        self._count += 1
        for part in ("cmdline", "environ"):
            self.left[f"{part} of {name} {self._count}"] = Path(f"/proc/{process.pid}/{part}").read_bytes()

    def end(self, process: subprocess.Popen[bytes], name: str, said: str = "", *, searched: bool = True) -> str:
        """Tell a command its secret, wait for its end; return what it said."""
        output, _ = process.communicate(said.encode(), timeout=SECONDS)
        if searched:
            self._count += 1
            self.left[f"output of {name} {self._count}"] = output
        return output.decode()

    def run(self, module: str, *arguments: str, said: str = "", code: int = 0, searched: bool = True) -> str:
        """Run a command to its end, which has to be this exit code."""
        process = self.start(module, *arguments)
        output = self.end(process, f"{module} {arguments[0]}", said, searched=searched)
        assert process.returncode == code, (arguments, output)
        return output

    def operator(self, *arguments: str, said: str = "", code: int = 0, searched: bool = True) -> str:
        """Run a command of the operator's."""
        data = ("--data", str(self.folder / "hub"))
        return self.run("hub", *arguments, *data, said=said, code=code, searched=searched)

    def state(self, name: str) -> tuple[str, ...]:
        """The options that name a device's state folder."""
        return ("--state", str(self.folder / name))

    def login(self, name: str, *arguments: str, said: str = "", code: int = 0) -> str:
        """Log a device in."""
        ca = ("--ca-file", str(self.certificate.certificate))
        return self.run(
            "terminal", "login", self.url, *arguments, *self.state(name), "--name", name, *ca, said=said, code=code
        )

    @contextlib.contextmanager
    def serving(self) -> Iterator[None]:
        """Run the hub."""
        tls = ("--tls-cert", str(self.certificate.certificate), "--tls-key", str(self.certificate.key))
        hub = self.start("hub", "serve", "--data", str(self.folder / "hub"), "--listen", "127.0.0.1:0", *tls)
        try:
            assert hub.stdout is not None
            first = b""
            while not (found := re.search(rb"wss://127\.0\.0\.1:(\d+)", first)):
                first = hub.stdout.readline()
                assert first, "the hub did not start"
                self.left["first lines of the hub"] = self.left.get("first lines of the hub", b"") + first
            self.url = f"wss://127.0.0.1:{found[1].decode()}"
            yield
            self.look_at(hub, "the hub at its end")
        finally:
            hub.send_signal(signal.SIGTERM)
            self.end(hub, "the hub")

    @contextlib.contextmanager
    def agent(self, name: str) -> Iterator[None]:
        """Run a device's agent."""
        agent = self.start("terminal", "run", *self.state(name), "--json")
        try:
            assert agent.stdout is not None
            line = agent.stdout.readline()
            self.left[f"first line of the agent of {name}"] = line
            assert b"connected" in line, line
            yield
        finally:
            agent.send_signal(signal.SIGTERM)
            self.end(agent, f"the agent of {name}")


def by_password(scenario: Scenario) -> None:
    password, wrong = scenario.plant("password"), scenario.plant("wrong password")
    scenario.operator("account", "add", "ada", "--password-stdin", said=password + "\n")
    scenario.login("laptop", "--account", "ada", "--password-stdin", said=password + "\n")
    for more in ((), ("--json",)):
        scenario.login("nobody", "--account", "ada", "--password-stdin", *more, said=wrong + "\n", code=1)
        scenario.login("nobody", "--account", "bob", "--password-stdin", *more, said=password + "\n", code=1)
    scenario.operator("account", "add", "ada", "--password-stdin", "--json", said=password + "\n", code=1)


def by_join_key(scenario: Scenario) -> None:
    made = json.loads(scenario.operator("joinkey", "add", "ada", "--uses", "2", "--json", searched=False))
    join_key = scenario.plant("join key", next(value for value in made.values() if str(value).startswith("lsk-")))
    wrong = scenario.plant("wrong join key", "lsk-" + secrets.token_hex(16))
    file = scenario.folder / "join-key"
    file.write_text(join_key + "\n")
    scenario.login("box", "--join-key-file", str(file), "--device", str(CAR))
    scenario.login("tablet", "--join-key-stdin", "--json", said=join_key + "\n")
    scenario.login("nobody", "--join-key-stdin", "--json", said=wrong + "\n", code=1)
    scenario.login("nobody", "--token-stdin", "--json", said=scenario.plant("token", TOKEN) + "\n", code=1)
    scenario.operator("joinkey", "list", "--json")
    file.unlink()


def by_pairing(scenario: Scenario) -> None:
    ca = ("--ca-file", str(scenario.certificate.certificate))
    pairing = scenario.start("terminal", "login", scenario.url, "--pair", *scenario.state("tv"), "--name", "tv", *ca)
    assert pairing.stdout is not None
    shown = b""
    while not (found := re.search(rb"\b([B-Z]{4})-([B-Z]{4})\b", shown)):
        shown = pairing.stdout.readline()
        assert shown, "no code was shown"
    code = (found[1] + found[2]).decode()
    scenario.plant("pairing code", code)
    scenario.planted["pairing code as shown"] = found[0]
    approve = subprocess.run(
        [sys.executable, "-m", "terminal", "approve", code, "--yes", *scenario.state("laptop")],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=SECONDS, check=False,
    )  # fmt: skip
    assert approve.returncode == 0, approve.stdout.decode()
    scenario.end(pairing, "the device that is paired", searched=False)  # it shows the code: that is its job
    assert pairing.returncode == 0


def use(scenario: Scenario) -> None:
    scenario.operator("publish", str(make_installer(scenario.folder, "wheel", "hello", size=50_000)))
    with scenario.agent("box"):
        laptop = scenario.state("laptop")
        scenario.run("terminal", "devices", "--json", *laptop)
        scenario.run("terminal", "sync", "hello", "--to", "box", "--json", *laptop)
        scenario.run("terminal", "sync", "nothing", "--to", "box", "--json", *laptop, code=5)
        for command in (("account", "list"), ("device", "list"), ("audit",), ("check",), ("config", "show"), ("key",)):
            scenario.operator(*command, "--json")
        scenario.operator("account", "list", "--wrong-option", "--json", code=2)


def device_keys(scenario: Scenario) -> None:
    """Plant what the devices and the hub made for themselves."""
    scenario.planted["hub's key"] = (scenario.folder / "hub" / "hub.key").read_bytes()
    for name in ("laptop", "box", "tablet", "tv"):
        identity = json.loads((scenario.folder / name / "identity.json").read_bytes())
        for seed in ("device_seed", "sealing_seed"):
            scenario.planted[f"{seed} of {name}"] = base64.b64decode(identity[seed])


def is_its_place(leak: str) -> bool:
    """Whether this is where a key is kept."""
    name, _, place = leak.partition(" in ")
    if place == "hub/hub.key":
        return name.startswith("hub's key")
    owner, _, file = place.partition("/")
    return file in ("identity.json", "keys.json") and f"seed of {owner} " in name


@pytest.mark.slow
def test_no_secret_is_in_output_logs_files_command_lines_or_environments(tmp_path: Path) -> None:
    scenario = Scenario(tmp_path)
    scenario.operator("account", "add", "eve", "--password-stdin", said=scenario.plant("password without a hub") + "\n")
    with scenario.serving():
        by_password(scenario)
        by_join_key(scenario)
        by_pairing(scenario)
        use(scenario)
    device_keys(scenario)
    for folder in ("hub", "laptop", "box", "tablet", "tv", "nobody"):
        scenario.left |= files_below(tmp_path / folder)
    found = leaks(scenario.left, scenario.planted)
    assert [leak for leak in found if not is_its_place(leak)] == []
    assert len({leak.partition(" (")[0] for leak in found}) == 1 + 2 * 4, "each key was found where it is kept"
    assert len(scenario.planted) >= 6 + 2 + 9
    assert any(b'"ada"' in content for place, content in scenario.left.items() if place.startswith("output of hub"))


@pytest.mark.parametrize("form", ["itself", "hex", "HEX", "base64", "base64url"])
def test_a_secret_that_is_written_down_in_any_form_is_found(form: str, tmp_path: Path) -> None:
    secret = b"planted password " + secrets.token_bytes(32)
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "hub.log").write_bytes(b"before " + forms(secret)[form] + b" after")
    found = leaks(files_below(tmp_path / "deep"), {"password": secret})
    assert f"password ({form}) in deep/hub.log" in found
    assert not any(map(is_its_place, found))
    assert leaks(files_below(tmp_path / "deep"), {"password": b"planted password of another"}) == []


def test_a_key_in_another_devices_folder_is_not_in_its_place() -> None:
    assert is_its_place("device_seed of box (base64) in box/identity.json")
    assert not is_its_place("device_seed of box (base64) in laptop/identity.json")
    assert not is_its_place("hub's key (itself) in hub/hub.db")
    assert not is_its_place("password (itself) in hub/hub.key")
