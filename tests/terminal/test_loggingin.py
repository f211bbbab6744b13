"""login, approve, revoke and status as a person and a program see them, against a scripted hub."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs
from websockets.asyncio.server import ServerConnection

from protocol import codec, messages
from protocol.device import DeviceInfo
from protocol.keys import fingerprint
from terminal.pairing import page_url, parse_code, time_words
from terminal.place import JOIN_KEY_VARIABLE
from terminal.state import StateFolder
from tests.terminal.test_cli import (
    CAR,
    PASSWORD,
    REPOSITORY,
    TELEVISION,
    THIS,
    Command,
    ScriptedHub,
    command,
    log_in,
    running,
    state,
    target,
)

__all__ = ["command", "state"]  # fixtures

CODE = "BCDFGHJK"
JOIN_KEY = "lsk-0123456789abcdef0123456789abcdef"
TOKEN = "e30.e30.c2ln"
ASKING_KEY = b"\x07" * 32
SET = DeviceInfo(model="Set 9", form_factor="tv", os_type="android", os_version="12", api_level=31)
ASKS = messages.PairingResult(
    re=1, code=CODE, name="TV\x1b[2J", device=SET, device_key=ASKING_KEY, address="192.0.2.7", seconds=500.0
)


class Desk(ScriptedHub):
    """A hub that lets devices in by join key, token or code too, and knows of one that waits with CODE."""

    def __init__(self) -> None:
        super().__init__()
        self.pairing_ends = ""  # the code it is refused with, "never" or empty for well
        self.answers[messages.PairingRequest] = lambda request: [
            structs.replace(ASKS, re=request.id)
            if request.code == CODE
            else messages.Error(re=request.id, code="unknown-pairing", message="No device shows this code.")
        ]
        self.answers[messages.Approve] = self.answers[messages.Revoke] = lambda request: [messages.Done(re=request.id)]

    async def lets_in(self, connection: ServerConnection, proof: messages.Enrol) -> bool:
        if not proof.pair:
            if proof.password == PASSWORD or proof.join_key == JOIN_KEY or proof.token == TOKEN.encode():
                return True
            await self.refuse(connection, "not-authorised", "That is wrong.")
            return False
        await connection.send(codec.encode(messages.Pairing(code=CODE, seconds=600.0)))
        if self.pairing_ends == "never":
            await connection.wait_closed()
        elif self.pairing_ends:
            await self.refuse(connection, self.pairing_ends, "Not this one.")
        return not self.pairing_ends


@pytest.fixture
def hub() -> Iterator[Desk]:
    desk = Desk()
    with running(desk):
        yield desk


@pytest.fixture
def logged_in(hub: Desk, command: Command) -> Command:
    assert log_in(command, hub, "--name", "Desk").code == 0
    hub.asked.clear()
    return command


# --- login ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "stdin", "field", "value"),
    [
        (("--join-key-stdin",), f"{JOIN_KEY}\n", "join_key", JOIN_KEY),
        (("--join-key-file", "FILE"), JOIN_KEY, "join_key", JOIN_KEY),
        (("--token-stdin",), f"{TOKEN}\n", "token", TOKEN.encode()),
        (("--token-file", "FILE"), f"{TOKEN}\n\n", "token", TOKEN.encode()),
    ],
)
def test_a_secret_comes_from_standard_input_or_a_file(
    hub: Desk, command: Command, tmp_path: Path, options: tuple[str, ...], stdin: str, field: str, value: Any
) -> None:
    file = tmp_path / "secret"
    file.write_text(stdin)
    given = [str(file) if option == "FILE" else option for option in options]
    ended = command("login", hub.url, *given, "--name", "TV", stdin=stdin)
    assert (ended.code, ended.err) == (0, "")
    [proof] = hub.requests(messages.Enrol)
    assert getattr(proof, field) == value
    assert ended.out == (
        f"Logged in to {hub.url} as TV of account home, terminal t-1.\n"
        f"The hub's key is {fingerprint(hub.key.public)}.\n"
    )


def test_a_join_key_comes_from_the_environment_where_nothing_else_is_said(
    hub: Desk, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(JOIN_KEY_VARIABLE, JOIN_KEY)
    assert command("login", hub.url).code == 0
    assert log_in(command, hub).code == 0
    assert [proof.join_key for proof in hub.requests(messages.Enrol)] == [JOIN_KEY, ""]


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--account", "home", "--pair"),
        ("--pair", "--join-key-stdin"),
        ("--join-key-stdin", "--token-stdin"),
        ("--pair", "--password-stdin"),
    ],
)
def test_login_is_in_exactly_one_way(hub: Desk, command: Command, options: tuple[str, ...]) -> None:
    ended = command("login", hub.url, *options, stdin="x\n")
    assert ended.code == 2
    assert "exactly one way" in ended.err or "--password-stdin goes with" in ended.err
    assert hub.asked == []


@pytest.mark.parametrize("secret", ["", "x" * 129, "two words", "k\u00e9y"])
def test_what_cannot_be_a_join_key_is_refused_here_and_not_repeated(hub: Desk, command: Command, secret: str) -> None:
    ended = command("login", hub.url, "--join-key-stdin", stdin=f"{secret}\n")
    assert (ended.code, hub.asked) == (2, [])
    assert "The join key has" in ended.err
    assert not secret or secret not in ended.err


def test_a_wrong_join_key_is_refused_in_one_line_that_does_not_repeat_it(hub: Desk, command: Command) -> None:
    ended = command("login", hub.url, "--join-key-stdin", stdin="lsk-wrong\n")
    assert (ended.code, ended.out, ended.err) == (1, "", "Error: That is wrong.\n")


def test_a_login_elsewhere_is_noticed_without_an_account_too(hub: Desk, logged_in: Command) -> None:
    ended = logged_in("login", "ws://127.0.0.1:1", "--pair")
    assert (ended.code, hub.asked) == (1, [])
    assert "--replace" in ended.err


def test_a_hub_is_held_to_the_fingerprint_given(hub: Desk, command: Command) -> None:
    key = fingerprint(hub.key.public)
    other = f"sha256:{'0' * 64}"
    ended = command("login", hub.url, "--join-key-stdin", "--hub-key", other, stdin=f"{JOIN_KEY}\n")
    assert (ended.code, hub.asked) == (1, [])
    assert f"has the key {key}, not {other}" in ended.err
    ended = command("login", hub.url, "--join-key-stdin", "--hub-key", f"sha256:{key[7:].upper()}", stdin=JOIN_KEY)
    assert ended.code == 0


def test_what_is_no_fingerprint_is_refused_here(hub: Desk, command: Command) -> None:
    ended = command("login", hub.url, "--join-key-stdin", "--hub-key", "sha256:12", stdin=f"{JOIN_KEY}\n")
    assert (ended.code, hub.asked) == (2, [])
    assert "`lockstep-hub key`" in ended.err


# --- login --pair ---------------------------------------------------------------------------------------------------


def test_a_pairing_in_a_pipe_is_plain_lines_without_a_qr_code(hub: Desk, command: Command, state: Path) -> None:
    ended = command("login", hub.url, "--pair", "--name", "TV")
    assert (ended.code, ended.err) == (0, "")
    [proof] = hub.requests(messages.Enrol)
    assert ended.out.splitlines() == [
        "To let this device in, run on one that is logged in: lockstep-terminal approve BCDF-GHJK",
        f"What to do is also said at http://{hub.url.removeprefix('ws://')}/pair/{CODE}",
        f"This device's key is {fingerprint(proof.device_key)}.",
        "The code holds for 10 min.",
        f"Logged in to {hub.url} as TV of account home, terminal t-1.",
        f"The hub's key is {fingerprint(hub.key.public)}.",
    ]


def test_a_pairing_as_json_is_the_code_and_then_the_outcome(hub: Desk, command: Command) -> None:
    code, outcome = map(json.loads, command("login", hub.url, "--pair", "--json").out.splitlines())
    assert (code["code"], code["seconds"]) == (CODE, 600.0)
    assert code["url"].endswith(f"/pair/{CODE}")
    assert (outcome["terminal"], outcome["hub_key"]) == ("t-1", fingerprint(hub.key.public))


@pytest.mark.parametrize(("ends", "code"), [("pairing-denied", 1), ("pairing-expired", 7)])
def test_a_pairing_that_ends_otherwise_says_so_in_words_and_by_its_exit_code(
    hub: Desk, command: Command, ends: str, code: int
) -> None:
    hub.pairing_ends = ends
    ended = command("login", hub.url, "--pair", "--json")
    assert ended.code == code
    assert json.loads(ended.out.splitlines()[-1])["error"]["code"] == ends
    ended = command("login", hub.url, "--pair")
    assert (ended.code, ended.err.strip()) == (code, "Error: Not this one.")


def pairing_process(hub: Desk, state: Path, **given: Any) -> "subprocess.Popen[bytes]":
    arguments = [sys.executable, "-m", "terminal", "login", hub.url, "--pair", "--name", "TV", "--state", str(state)]
    return subprocess.Popen(arguments, cwd=REPOSITORY, stderr=subprocess.PIPE, start_new_session=True, **given)


def read_until(descriptor: int, wanted: str) -> str:
    read = b""
    while wanted.encode() not in read:
        read += os.read(descriptor, 4096)
    return read.decode()


def test_a_screen_gets_a_qr_code_and_the_time_that_is_left_and_ctrl_c_ends_it(hub: Desk, state: Path) -> None:
    hub.pairing_ends = "never"
    ours, theirs = os.openpty()
    with pairing_process(hub, state, stdout=theirs) as process:
        shown = read_until(ours, "left.")
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    os.close(ours)
    os.close(theirs)
    assert process.returncode == 130, err
    assert err.strip() == b""
    drawn = re.findall("^\x1b\\[97;40m([█▀▄ ]+)\x1b\\[0m\r$", shown, re.MULTILINE)
    assert len(drawn) * 2 >= len(drawn[0]) >= 25, "a square of half blocks, light on dark whatever the screen's colours"
    assert re.search(r"Waiting to be approved: (10:00|9:5\d) left", shown)
    assert not StateFolder(state).has_identity()


# --- approve --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", ["BCDF-GHJK", "bcdfghjk", "https://hub.example:8765/pair/BCDFGHJK", "bcdf ghjk"])
def test_approve_takes_a_code_as_people_type_it_or_the_page(hub: Desk, logged_in: Command, given: str) -> None:
    ended = logged_in("approve", given, "--yes")
    assert (ended.code, ended.err) == (0, "")
    [approved] = hub.requests(messages.Approve)
    assert (approved.code, approved.device_key, approved.accept) == (CODE, ASKING_KEY, True)
    assert ended.out.splitlines()[-1] == "TV [2J is now a device of account home."


def test_approve_shows_what_asks(logged_in: Command) -> None:
    shown = logged_in("approve", CODE, "--yes").out
    assert "\x1b" not in shown
    facts = [re.split(" {2,}", line, maxsplit=1) for line in shown.splitlines()[1:-1]]
    assert dict(facts) == {
        "name": "TV [2J",
        "model": "Set 9",
        "kind": "tv",
        "system": "Android 12 (API 31)",
        "address": "192.0.2.7",
        "key": fingerprint(ASKING_KEY),
    }


def test_a_device_is_turned_away(hub: Desk, logged_in: Command) -> None:
    document = logged_in("approve", CODE, "--no", "--json").document
    assert (document["approved"], document["device_key"]) == (False, fingerprint(ASKING_KEY))
    assert [approved.accept for approved in hub.requests(messages.Approve)] == [False]


def test_without_a_screen_nobody_is_let_in_unasked(hub: Desk, logged_in: Command) -> None:
    ended = logged_in("approve", CODE)
    assert (ended.code, hub.requests(messages.Approve)) == (2, [])
    assert "--yes" in ended.err


def test_a_code_nobody_shows_is_an_unknown_name(hub: Desk, logged_in: Command) -> None:
    ended = logged_in("approve", "KJHG-FDCB", "--yes")
    assert (ended.code, ended.err.strip()) == (5, "Error: No device shows this code.")


@pytest.mark.parametrize("given", ["", "BCDF-GHJ", "BCDF-GHJKL", "BCDF-GHJ1", "ws://hub.example", "ÄBCDFGHJ"])
def test_what_is_no_code_is_refused_here(hub: Desk, logged_in: Command, given: str) -> None:
    ended = logged_in("approve", given, "--yes")
    assert (ended.code, hub.asked) == (2, [])


@pytest.mark.parametrize(("answer", "accept", "options"), [("y", True, ()), ("n", False, ()), ("y", True, ("--json",))])
def test_a_person_at_a_screen_is_shown_what_asks_and_asked(
    hub: Desk, logged_in: Command, state: Path, answer: str, accept: bool, options: tuple[str, ...]
) -> None:
    ours, theirs = os.openpty()
    arguments = [sys.executable, "-m", "terminal", "approve", CODE, "--state", str(state), *options]
    with subprocess.Popen(
        arguments, cwd=REPOSITORY, stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    ) as process:
        os.write(ours, f"{answer}\n".encode())
        out, err = process.communicate(timeout=30)
    os.close(ours)
    os.close(theirs)
    assert process.returncode == 0, err
    assert b"Make it a device of account home?" in err
    assert fingerprint(ASKING_KEY).encode() in (err if options else out)
    assert [approved.accept for approved in hub.requests(messages.Approve)] == [accept]


# --- revoke, status, tags -------------------------------------------------------------------------------------------


def test_a_device_is_revoked_by_its_name(hub: Desk, logged_in: Command) -> None:
    ended = logged_in("revoke", "tv", "--yes")
    assert (ended.code, ended.out) == (0, "TV (t-2) is revoked.\n")
    assert [request.terminal for request in hub.requests(messages.Revoke)] == ["t-2"]


def test_no_device_is_revoked_unasked_or_by_a_name_that_is_nearly_right(hub: Desk, logged_in: Command) -> None:
    assert logged_in("revoke", "TV").code == 2
    ended = logged_in("revoke", "TVX", "--yes")
    assert ended.code == 5
    assert "Did you mean TV?" in ended.err
    assert hub.requests(messages.Revoke) == []


def test_status_shows_who_this_is_without_a_hub(hub: Desk, logged_in: Command, state: Path) -> None:
    document = logged_in("status", "--json").document
    assert document == {
        "terminal": "t-1", "name": "Desk", "account": "home", "url": hub.url,
        "hub_key": fingerprint(hub.key.public), "running": False, "standing": None,
    }  # fmt: skip
    assert hub.asked == []
    assert "This device may send and receive." in logged_in("status").out


def test_status_before_a_login_says_to_log_in(command: Command) -> None:
    assert command("status").code == 4


def test_a_standing_is_kept_and_shown_until_the_hub_has_nothing_to_say_any_more(hub: Desk, logged_in: Command) -> None:
    hub.says_first = (
        messages.Standing(
            may_receive=False, may_initiate=False, quarantined=True, reason="infected", detail="EICAR is in weixin.",
            hint="Remove it.",
        ),
    )  # fmt: skip
    logged_in("devices")
    shown = logged_in("status").out
    assert "quarantine" in shown and "EICAR is in weixin. Remove it." in shown
    assert logged_in("status", "--json").document["standing"]["reason"] == "infected"
    hub.says_first = ()
    logged_in("devices")
    assert logged_in("status", "--json").document["standing"] is None


@pytest.mark.parametrize(("code", "exit_code"), [("revoked", 4), ("account-disabled", 1)])
def test_why_a_hub_has_this_device_no_more_is_kept(hub: Desk, logged_in: Command, code: str, exit_code: int) -> None:
    hub.login_refusal = code
    ended = logged_in("devices")
    assert ended.code == exit_code
    assert ("--replace" in ended.err) == (code == "revoked")
    standing = logged_in("status", "--json").document["standing"]
    assert (standing["reason"], standing["may_receive"], standing["may_initiate"]) == (code, False, False)


def test_run_ends_when_this_device_is_revoked_and_keeps_who_it_was(hub: Desk, logged_in: Command, state: Path) -> None:
    hub.close_at_inventory = 4003
    ended = logged_in("run")
    assert ended.code == 4
    assert "was revoked" in ended.err and "--replace" in ended.err
    assert StateFolder(state).identity().terminal == "t-1"


def test_devices_show_tags_and_standing_where_there_are_any(hub: Desk, logged_in: Command) -> None:
    assert logged_in("devices").out.splitlines()[0].split()[-1] == "SCREEN"
    hub.devices = (THIS, structs.replace(TELEVISION, tags=("kitchen", "wall"), standing="quarantined"), CAR)
    shown = logged_in("devices").out.splitlines()
    assert shown[0].split()[-2:] == ["TAGS", "STANDING"]
    assert shown[-1].endswith("kitchen, wall  quarantined")


def test_a_plan_goes_to_every_other_device_with_the_tag(hub: Desk, logged_in: Command) -> None:
    hub.devices = (*(structs.replace(row, tags=("Kitchen",)) for row in (THIS, TELEVISION)), CAR)
    hub.answers[messages.Plan] = lambda request: [
        messages.PlanResult(re=request.id, program=request.program, targets=(target(TELEVISION, "queued"),))
    ]
    assert logged_in("plan", "weixin", "--to", "tag:kitchen").code == 0
    assert hub.requests(messages.Plan)[0].targets == ("t-2",)
    ended = logged_in("plan", "weixin", "--to", "tag:kichen")
    assert ended.code == 5
    assert "Did you mean tag:Kitchen?" in ended.err


# --- words ----------------------------------------------------------------------------------------------------------


def test_the_page_is_on_the_hub_as_it_was_dialled() -> None:
    assert page_url("ws://[::1]:8765/", CODE) == f"http://[::1]:8765/pair/{CODE}"
    assert page_url("wss://hub.example", CODE) == f"https://hub.example/pair/{CODE}"
    assert parse_code(page_url("wss://hub.example", CODE)) == CODE


def test_the_time_left_is_in_minutes_and_seconds() -> None:
    assert [time_words(seconds) for seconds in (600, 59.9, 0, -3)] == ["10:00", "0:59", "0:00", "0:00"]
