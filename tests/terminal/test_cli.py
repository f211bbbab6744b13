"""The command line against a scripted hub: a real WebSocket that answers what a test tells it to."""

import asyncio
import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from protocol import codec, messages
from protocol.device import DeviceInfo
from protocol.keys import SigningKey, challenge_bytes, fingerprint, new_nonce
from protocol.messages import DeviceRow, Message, MismatchRow, ProgramRow, RejectedRow, SyncRow, TargetRow
from terminal import cli
from terminal.place import Place
from terminal.watching import left_to_the_hub

PASSWORD = "correct horse"
REPOSITORY = Path(cli.__file__).parents[1]

THIS = DeviceRow(terminal="t-1", name="Desk", online=False, device=DeviceInfo(model="Desk"))
TELEVISION = DeviceRow(terminal="t-2", name="TV", online=True, device=DeviceInfo(model="Set", form_factor="tv"))
CAR = DeviceRow(terminal="t-3", name="Car", online=False, device=DeviceInfo(model="Unit", form_factor="car"))


def target(row: DeviceRow, state: str, reason: str = "", **fields: Any) -> TargetRow:
    return TargetRow(terminal=row.terminal, name=row.name, state=state, reason=reason, **fields)


Answer = Callable[[Any], Sequence[Message]]


class ScriptedHub:
    """Logs every terminal in, answers requests from `answers` and keeps what it was asked."""

    def __init__(self) -> None:
        self.key = SigningKey.generate()
        self.answers: dict[type[Message], Answer] = {}
        self.asked: list[Message] = []
        self.login_refusal = ""
        self.says_first: tuple[Message, ...] = ()
        self.devices: tuple[DeviceRow, ...] = (THIS, TELEVISION, CAR)
        self.close_at_inventory: int | None = None
        self.close_after_answer = False
        self.url = ""

    async def handle(self, connection: ServerConnection) -> None:
        try:
            if await self._opening(connection):
                await self._conversation(connection)
        except ConnectionClosed:
            pass

    async def _opening(self, connection: ServerConnection) -> bool:
        hello = codec.decode(await connection.recv())
        assert isinstance(hello, messages.Hello)
        nonce = new_nonce()
        signed = challenge_bytes(terminal_nonce=hello.nonce, hub_nonce=nonce, hub_key=self.key.public)
        await self._send(
            connection,
            messages.Challenge(
                version="lockstep.v1", nonce=nonce, hub_key=self.key.public, signature=self.key.sign(signed)
            ),
        )
        proof = codec.decode(await connection.recv())
        self.asked.append(proof)
        if isinstance(proof, messages.Enrol) and not await self.lets_in(connection, proof):
            return False
        if isinstance(proof, messages.Login) and self.login_refusal:
            await self.refuse(connection, self.login_refusal, "This device is not let in.")
            return False
        name = proof.name if isinstance(proof, messages.Enrol) else THIS.name
        await self._send(
            connection,
            messages.Welcome(
                terminal=THIS.terminal,
                name=name,
                account="home",
                connection=1,
                message_bytes=524_288,
                frame_bytes=262_144,
            ),
        )
        return True

    async def lets_in(self, connection: ServerConnection, proof: messages.Enrol) -> bool:
        if proof.password != PASSWORD:
            await self.refuse(connection, "not-authorised", "Account or password is wrong.", "Try again.")
        return proof.password == PASSWORD

    async def refuse(self, connection: ServerConnection, code: str, message: str, hint: str = "") -> None:
        await self._send(connection, messages.Error(code=code, message=message, hint=hint))
        await connection.close(1008)

    async def _conversation(self, connection: ServerConnection) -> None:
        await self._send(connection, self._devices(0))
        for message in self.says_first:
            await self._send(connection, message)
        async for data in connection:
            request = codec.decode(data)
            self.asked.append(request)
            if isinstance(request, messages.Inventory) and self.close_at_inventory is not None:
                await connection.close(self.close_at_inventory)
            if isinstance(request, messages.DevicesRequest):
                await self._send(connection, self._devices(request.id))
            for answer in self.answers.get(type(request), lambda _: ())(request):
                await self._send(connection, answer)
                if self.close_after_answer:
                    await connection.close(1001)

    def _devices(self, re: int) -> messages.Devices:
        return messages.Devices(re=re, epoch="e", revision=1, page=0, pages=1, devices=self.devices)

    async def _send(self, connection: ServerConnection, message: Message) -> None:
        await connection.send(codec.encode(message))

    def accepts(self, *at_first: TargetRow, then: Sequence[TargetRow] = (), outcome: str = "") -> None:
        """Accept a sync whose targets stand as `at_first`, then report `then` one by one, then the end if any."""

        def answer(request: messages.Sync) -> Sequence[Message]:
            accepted = messages.SyncAccepted(re=request.id, sync="s-1", program=request.program, targets=at_first)
            updates = [messages.SyncUpdate(sync="s-1", targets=(row,)) for row in then]
            done = messages.SyncDone(sync="s-1", program=request.program, outcome=outcome, counts={})
            return [accepted, *updates, *([done] if outcome else [])]

        self.answers[messages.Sync] = answer

    def requests(self, kind: type[Message]) -> list[Any]:
        return [message for message in self.asked if type(message) is kind]


@contextmanager
def running(hub: ScriptedHub) -> Iterator[None]:
    """Serve `hub` on a free port from another thread; commands own the event loop of this one."""
    started: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []
    ready = threading.Event()

    async def serve_until_stopped() -> None:
        stop = asyncio.Event()
        async with serve(hub.handle, "127.0.0.1", 0, subprotocols=[Subprotocol("lockstep.v1")]) as server:
            hub.url = f"ws://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}"
            started.append((asyncio.get_running_loop(), stop))
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=asyncio.run, args=(serve_until_stopped(),))
    thread.start()
    assert ready.wait(10)
    loop, stop = started[0]
    try:
        yield
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)


@pytest.fixture
def hub() -> Iterator[ScriptedHub]:
    scripted = ScriptedHub()
    with running(scripted):
        yield scripted


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "state"
    monkeypatch.setenv("LOCKSTEP_STATE", str(folder))
    return folder


class Ended:
    """How a command ended: its exit code and what it printed."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def document(self) -> Any:
        return json.loads(self.out)


Command = Callable[..., Ended]


@pytest.fixture
def command(state: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    def call(*arguments: str, stdin: str = "") -> Ended:
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        code = cli.run_command(arguments)
        printed = capsys.readouterr()
        return Ended(code, printed.out, printed.err)

    return call


@pytest.fixture
def logged_in(hub: ScriptedHub, command: Command) -> Command:
    assert log_in(command, hub).code == 0
    hub.asked.clear()
    return command


def log_in(command: Command, hub: ScriptedHub, *more: str, password: str = PASSWORD) -> Ended:
    return command("login", hub.url, "--account", "home", "--password-stdin", *more, stdin=f"{password}\n")


# --- login --------------------------------------------------------------------------------------------------------


def test_login_prints_the_terminal_and_stores_no_password(hub: ScriptedHub, command: Command, state: Path) -> None:
    ended = log_in(command, hub, "--name", "Desk")
    assert (ended.code, ended.err) == (0, "")
    key = fingerprint(hub.key.public)
    assert ended.out == f"Logged in to {hub.url} as Desk, terminal t-1.\nThe hub's key is {key}.\n"
    files = [file for file in state.rglob("*") if file.is_file()]
    assert files
    assert not [file for file in files if PASSWORD.encode() in file.read_bytes()]


def test_login_calls_the_device_by_its_host_name_when_no_name_is_given(
    hub: ScriptedHub, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "h" * 70)
    log_in(command, hub)
    assert hub.requests(messages.Enrol)[0].name == "h" * 64


def test_login_as_json_is_one_document(hub: ScriptedHub, command: Command) -> None:
    document = log_in(command, hub, "--name", "Desk", "--json").document
    key = fingerprint(hub.key.public)
    assert document == {"terminal": "t-1", "name": "Desk", "account": "home", "url": hub.url, "hub_key": key}


def test_a_wrong_password_is_refused_with_one_line(hub: ScriptedHub, command: Command, state: Path) -> None:
    ended = log_in(command, hub, password="wrong")
    assert (ended.code, ended.out) == (1, "")
    assert ended.err == "Error: Account or password is wrong. Try again.\n"
    assert command("devices").code == 4


def test_without_a_screen_login_asks_for_password_stdin(hub: ScriptedHub, command: Command) -> None:
    ended = command("login", hub.url, "--account", "home")
    assert ended.code == 2
    assert "--password-stdin" in ended.err
    assert hub.asked == []


def test_a_password_that_is_not_unicode_is_refused_here(hub: ScriptedHub, command: Command) -> None:
    ended = log_in(command, hub, password="\udcff")
    assert (ended.code, hub.asked) == (2, [])
    assert "not Unicode" in ended.err


@pytest.mark.parametrize("password", ["", "x" * 1_025])
def test_an_empty_or_endless_password_is_refused_here(hub: ScriptedHub, command: Command, password: str) -> None:
    ended = log_in(command, hub, password=password)
    assert ended.code == 2
    assert "1 to 1024" in ended.err
    assert hub.asked == []


def test_a_device_that_is_logged_in_elsewhere_is_told_what_to_do(hub: ScriptedHub, logged_in: Command) -> None:
    ended = logged_in("login", hub.url, "--account", "other", "--password-stdin", stdin=f"{PASSWORD}\n")
    assert ended.code == 1
    assert "account home" in ended.err
    assert "--replace" in ended.err
    assert hub.asked == []


def test_replace_logs_in_elsewhere(hub: ScriptedHub, logged_in: Command) -> None:
    other = ScriptedHub()
    with running(other):
        assert log_in(logged_in, other, "--replace").code == 0
        assert logged_in("devices").code == 0
        assert len(other.requests(messages.Login)) == 1
    assert hub.asked == []


def test_the_same_login_again_is_harmless(hub: ScriptedHub, logged_in: Command) -> None:
    assert log_in(logged_in, hub).code == 0


def test_the_device_file_of_login_counts_from_then_on(hub: ScriptedHub, command: Command, tmp_path: Path) -> None:
    device_file = tmp_path / "tv.toml"
    device_file.write_text('model = "Set 9"\nform_factor = "tv"\n')
    assert log_in(command, hub, "--device", str(device_file)).code == 0
    device_file.unlink()
    assert command("devices").code == 0
    assert hub.requests(messages.Enrol)[0].device.model == "Set 9"
    assert hub.requests(messages.Login)[0].device.model == "Set 9"
    assert command("device", "show", "--json").document["device"]["form_factor"] == "tv"


def test_a_wrong_device_file_is_an_error_that_names_the_key(hub: ScriptedHub, command: Command, tmp_path: Path) -> None:
    device_file = tmp_path / "tv.toml"
    device_file.write_text('form_factr = "tv"\n')
    ended = log_in(command, hub, "--device", str(device_file))
    assert ended.code == 1
    assert "form_factr" in ended.err
    assert "Traceback" not in ended.err


def test_a_kind_nothing_here_installs_is_refused_at_login_as_run_would_and_no_password_is_sent(
    hub: ScriptedHub, command: Command, tmp_path: Path
) -> None:
    device_file = tmp_path / "desk.toml"
    device_file.write_text('model = "Desk"\ninstaller_kinds = ["deb", "exe"]\n')
    ended = log_in(command, hub, "--device", str(device_file))
    assert (ended.code, hub.asked) == (2, [])
    assert "This device is to install exe files, and Lockstep has no runner of its own for them." in ended.err
    device_file.write_text(f'{device_file.read_text()}[installers.exe]\ncommand = ["true"]\n')
    assert log_in(command, hub, "--device", str(device_file)).code == 0


def test_the_password_is_asked_for_on_a_screen_and_not_shown(hub: ScriptedHub, state: Path) -> None:
    ours, theirs = os.openpty()
    arguments = [sys.executable, "-m", "terminal", "login", hub.url, "--account", "home", "--name", "Desk"]
    with subprocess.Popen(
        arguments, cwd=REPOSITORY, stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    ) as process:
        assert process.stderr is not None
        assert process.stderr.read(len("Password: ")) == b"Password: "  # what is typed before is thrown away
        os.write(ours, f"{PASSWORD}\n".encode())
        out, err = process.communicate(timeout=30)
    os.close(ours)
    os.close(theirs)
    assert process.returncode == 0, err
    assert PASSWORD.encode() not in out + err
    assert b"terminal t-1" in out


# --- asking -------------------------------------------------------------------------------------------------------


def test_devices_are_plain_lines_in_a_pipe(logged_in: Command) -> None:
    ended = logged_in("devices")
    assert ended.code == 0
    names = [line.split("  ")[0] for line in ended.out.splitlines()]
    assert names == ["NAME", "Car", "Desk (this device)", "TV"]
    assert "\x1b" not in ended.out


def test_devices_as_json_say_which_one_is_this(logged_in: Command) -> None:
    document = logged_in("devices", "--json").document
    assert document["this_terminal"] == "t-1"
    assert [row["name"] for row in document["devices"]] == ["Desk", "TV", "Car"]
    assert document["devices"][1]["device"]["form_factor"] == "tv"


def test_programs_pass_the_query_on_and_name_the_devices(hub: ScriptedHub, logged_in: Command) -> None:
    row = ProgramRow(program="weixin", title="Weixin", newest="8.0", installed_on=("t-2",))
    hub.answers[messages.Programs] = lambda request: [messages.ProgramsResult(re=request.id, programs=(row,))]
    ended = logged_in("programs", "wei")
    assert ended.out.splitlines()[1].split() == ["weixin", "Weixin", "8.0", "-", "TV"]
    assert hub.requests(messages.Programs)[0].query == "wei"


def test_a_plan_goes_to_the_ids_of_the_names_given(hub: ScriptedHub, logged_in: Command) -> None:
    rows = (target(TELEVISION, "queued", version="8.0", detail="Only this fits."), target(CAR, "no_match"))
    hub.answers[messages.Plan] = lambda request: [
        messages.PlanResult(re=request.id, program=request.program, targets=rows)
    ]
    ended = logged_in("plan", "weixin", "--to", "tv,t-3", "--version", "8.0")
    assert ended.code == 0
    assert "Only this fits." in ended.out
    request = hub.requests(messages.Plan)[0]
    assert (request.program, request.targets, request.everyone, request.version) == (
        "weixin",
        ("t-2", "t-3"),
        False,
        "8.0",
    )


REJECTED = RejectedRow(
    version="8.0",
    installer_kind="apk",
    file_name="w.apk",
    mismatches=(MismatchRow(field="architecture", wants="arm64", has="this TV is armeabi-v7a"),),
)


def test_a_plan_shows_what_is_in_the_way_and_takes_a_channel(hub: ScriptedHub, logged_in: Command) -> None:
    fits = target(CAR, "queued", digest=b"x" * 32, rejected=(REJECTED,))
    rows = (target(TELEVISION, "no_match", rejected=(REJECTED,)), fits)
    hub.answers[messages.Plan] = lambda request: [
        messages.PlanResult(re=request.id, program=request.program, targets=rows)
    ]
    ended = logged_in("plan", "weixin", "--to", "all", "--channel", "beta")
    *_, header, row = ended.out.splitlines()
    assert header.split() == ["TARGET", "NOT", "KIND", "FILE", "FIELD", "WANTS", "HAS"]
    assert row.split(maxsplit=6) == ["TV", "8.0", "apk", "w.apk", "architecture", "arm64", "this TV is armeabi-v7a"]
    assert hub.requests(messages.Plan)[0].channel == "beta"
    assert logged_in("plan", "weixin", "--to", "all", "--all").out.splitlines()[-1].split()[:2] == ["Car", "8.0"]
    document = logged_in("plan", "weixin", "--to", "all", "--json").document
    assert document["targets"][1]["rejected"][0]["mismatches"][0]["wants"] == "arm64"


def test_an_unknown_device_ends_with_its_own_code_and_the_near_names(logged_in: Command) -> None:
    ended = logged_in("plan", "weixin", "--to", "carr")
    assert (ended.code, ended.out) == (5, "")
    assert ended.err == "Error: There is no device 'carr'. Did you mean Car?\n"


def test_an_unknown_program_ends_with_its_own_code(hub: ScriptedHub, logged_in: Command) -> None:
    hub.answers[messages.Plan] = lambda request: [
        messages.Error(re=request.id, code="unknown-program", message="There is no program 'x'.", near=("xy",))
    ]
    ended = logged_in("plan", "x", "--to", "all", "--json")
    assert ended.code == 5
    assert ended.document == {
        "error": {"code": "unknown-program", "message": "There is no program 'x'.", "hint": "Did you mean xy?"}
    }


def test_the_history_and_one_sync_of_it_can_be_seen(hub: ScriptedHub, logged_in: Command) -> None:
    row = SyncRow(sync="s-1", program="weixin", initiator="t-1", created_at=1.0, outcome="done", counts={"done": 1})
    hub.answers[messages.History] = lambda request: [messages.HistoryResult(re=request.id, syncs=(row,))]
    hub.answers[messages.SyncRequest] = lambda request: [
        messages.SyncResult(re=request.id, sync=request.sync, targets=(target(TELEVISION, "done"),))
    ]
    assert logged_in("history", "--json").document["syncs"][0]["counts"] == {"done": 1}
    assert logged_in("history", "s-1").out.splitlines()[1].split()[:3] == ["TV", "t-2", "done"]


@pytest.mark.parametrize(
    ("arguments", "targets"), [((), ()), (("--on", "TV"), ("t-2",)), (("--on", "TV,car"), ("t-2", "t-3"))]
)
def test_undo_is_a_sync_of_its_own_on_all_targets_or_some(
    hub: ScriptedHub, logged_in: Command, arguments: tuple[str, ...], targets: tuple[str, ...]
) -> None:
    hub.answers[messages.Undo] = lambda request: [
        messages.SyncAccepted(re=request.id, sync="s-2", program="weixin", targets=(target(TELEVISION, "done"),))
    ]
    ended = logged_in("undo", "s-1", *arguments, "--json")
    assert (ended.code, ended.document["sync"], ended.document["program"]) == (0, "s-2", "weixin")
    [request] = hub.requests(messages.Undo)
    assert (request.sync, request.targets) == ("s-1", targets)
    assert request.request_key


@pytest.mark.parametrize(("stands", "reason"), [("asking", ""), ("postponed", "quiet-hours"), ("queued", "no-space")])
def test_a_target_that_is_for_later_is_not_waited_for(
    hub: ScriptedHub, logged_in: Command, stands: str, reason: str
) -> None:
    hub.accepts(target(TELEVISION, "queued", "waiting"), then=[target(TELEVISION, stands, reason)])
    ended = logged_in("sync", "weixin", "--to", "TV")
    assert ended.code == 7
    assert f"1 target: 1 {stands}." in ended.out


def test_cancel_says_how_many_were_too_late(hub: ScriptedHub, logged_in: Command) -> None:
    hub.answers[messages.Cancel] = lambda request: [
        messages.CancelResult(re=request.id, sync=request.sync, cancelled=2, too_late=1)
    ]
    assert logged_in("cancel", "s-1").out.startswith("2 cancelled, 1 too late")
    assert logged_in("cancel", "s-1", "--json").document == {"sync": "s-1", "cancelled": 2, "too_late": 1}


def test_a_cancel_that_cancels_nothing_ends_with_exit_code_1(hub: ScriptedHub, logged_in: Command) -> None:
    hub.answers[messages.Cancel] = lambda request: [
        messages.CancelResult(re=request.id, sync=request.sync, cancelled=0, too_late=1)
    ]
    assert logged_in("cancel", "s-1").code == 1


def test_a_rename_is_known_here_too(hub: ScriptedHub, logged_in: Command) -> None:
    hub.answers[messages.DeviceUpdate] = lambda request: [messages.Done(re=request.id)]
    assert logged_in("device", "rename", "Study").code == 0
    assert hub.requests(messages.DeviceUpdate)[0].name == "Study"
    assert logged_in("device", "show", "--json").document["name"] == "Study"


def test_device_show_needs_no_login(command: Command, state: Path) -> None:
    document = command("device", "show", "--json").document
    assert document["terminal"] is None
    assert document["state_folder"] == str(state)
    assert document["device"]["os_type"]


# --- sync ---------------------------------------------------------------------------------------------------------


def test_a_sync_prints_a_line_per_step_and_ends_when_the_target_has(hub: ScriptedHub, logged_in: Command) -> None:
    steps = [target(TELEVISION, "downloading", size=100, done=50), target(TELEVISION, "done", size=100, done=100)]
    hub.accepts(target(TELEVISION, "queued"), then=steps, outcome="done")
    ended = logged_in("sync", "weixin", "--to", "TV")
    lines = ended.out.splitlines()
    assert ended.code == 0
    assert lines[0] == "Sync s-1 of weixin is accepted."
    assert lines[1].split() == ["TARGET", "ID", "PLAN", "VERSION", "KIND", "FILE", "SIZE", "WHY"]
    assert lines[2].split() == ["TV", "t-2", "to", "be", "sent", *"-----"]
    assert "TV: done" in lines
    assert lines[-1] == "1 target: 1 done."


def test_a_sync_as_json_is_one_document_at_the_end(hub: ScriptedHub, logged_in: Command) -> None:
    failed = target(TELEVISION, "failed", "no-space", detail="100 bytes are missing.")
    hub.accepts(target(TELEVISION, "queued"), then=[failed], outcome="failed")
    ended = logged_in("sync", "weixin", "--to", "TV", "--json")
    assert ended.code == 1
    document = ended.document
    assert document["targets"][0].pop("reason") == "no-space"
    del document["targets"]
    assert document == {"sync": "s-1", "program": "weixin", "ended": True, "outcome": "failed", "exit_code": 1}


@pytest.mark.parametrize(
    ("at_first", "code"),
    [
        ((target(TELEVISION, "same"),), 0),
        ((target(TELEVISION, "no_match"), target(CAR, "denied")), 1),
        ((target(TELEVISION, "same"), target(CAR, "queued", "offline")), 3),
        ((target(TELEVISION, "same"), target(CAR, "no_match")), 3),
        ((target(CAR, "queued", "offline"),), 7),
    ],
)
def test_a_sync_does_not_wait_for_targets_that_are_offline_or_have_ended(
    hub: ScriptedHub, logged_in: Command, at_first: tuple[TargetRow, ...], code: int
) -> None:
    hub.accepts(*at_first)
    assert logged_in("sync", "weixin", "--to", "all").code == code


def test_a_sync_stops_waiting_for_a_target_that_goes_offline(hub: ScriptedHub, logged_in: Command) -> None:
    hub.accepts(target(TELEVISION, "downloading"), then=[target(TELEVISION, "queued", "offline")])
    ended = logged_in("sync", "weixin", "--to", "TV")
    assert ended.code == 7
    assert "history s-1" in ended.out


def test_a_sync_says_that_it_still_waits_when_the_time_is_over(hub: ScriptedHub, logged_in: Command) -> None:
    hub.accepts(target(TELEVISION, "installing"))
    ended = logged_in("sync", "weixin", "--to", "TV", "--timeout", "0.05")
    assert ended.code == 7
    assert "history s-1" in ended.out


def test_no_wait_returns_once_the_sync_is_accepted(hub: ScriptedHub, logged_in: Command) -> None:
    hub.accepts(target(TELEVISION, "queued"))
    ended = logged_in("sync", "weixin", "--to", "TV", "--no-wait")
    assert ended.code == 0
    assert "1 target: 1 queued." in ended.out
    hub.accepts(target(TELEVISION, "no_match"))
    assert logged_in("sync", "weixin", "--to", "TV", "--no-wait").code == 1


def test_everyone_is_asked_for_as_everyone(hub: ScriptedHub, logged_in: Command) -> None:
    hub.accepts(target(TELEVISION, "same"))
    logged_in("sync", "weixin", "--to", "all", "--channel", "beta")
    request = hub.requests(messages.Sync)[0]
    assert (request.targets, request.everyone, request.channel) == ((), True, "beta")


def test_ctrl_c_leaves_the_sync_to_the_hub_and_says_so(hub: ScriptedHub, logged_in: Command) -> None:
    hub.accepts(target(TELEVISION, "installing"))
    with started("sync", "weixin", "--to", "TV", "--timeout", "60") as process:
        read_until(process, "TV: installing")
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "The sync goes on at the hub" in err
    assert "history s-1" in err
    assert "Traceback" not in err
    assert not hub.requests(messages.Cancel)


@pytest.mark.parametrize(("as_json", "document"), [(True, {"sync": "s-1", "exit_code": 130}), (False, {})])
def test_ctrl_c_gives_a_program_its_document(
    capsys: pytest.CaptureFixture[str], as_json: bool, document: dict[str, object]
) -> None:
    watch = SimpleNamespace(sync="s-1", program="weixin", targets={"t-2": target(TELEVISION, "installing")})
    place = Place(state=None, as_json=as_json)
    with pytest.raises(asyncio.CancelledError), left_to_the_hub(place, watch):  # type: ignore[arg-type]
        raise asyncio.CancelledError
    printed = json.loads(capsys.readouterr().out or "{}")
    assert {name: printed[name] for name in document} == document
    assert bool(printed) is as_json


def test_on_a_screen_a_sync_ends_with_a_table(hub: ScriptedHub, logged_in: Command) -> None:
    hub.accepts(target(TELEVISION, "queued"), then=[target(TELEVISION, "done", size=100)], outcome="done")
    ours, theirs = os.openpty()
    arguments = [sys.executable, "-m", "terminal", "sync", "weixin", "--to", "TV"]
    with subprocess.Popen(arguments, cwd=REPOSITORY, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        screen = read_screen(ours)
    assert process.returncode == 0, screen
    assert "─────" in screen
    assert "1 target: 1 done." in screen.splitlines()


def test_a_hub_that_goes_away_leaves_the_sync_running(hub: ScriptedHub, logged_in: Command) -> None:
    hub.accepts(target(TELEVISION, "installing"))
    hub.close_after_answer = True
    ended = logged_in("sync", "weixin", "--to", "TV")
    assert ended.code == 6
    assert "The sync goes on at the hub" in ended.err


# --- run ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_run_prints_what_happens_and_stops_cleanly(
    hub: ScriptedHub, logged_in: Command, number: signal.Signals
) -> None:
    with started("run") as process:
        read_until(process, "Connected")
        process.send_signal(number)
        _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (0, "")
    assert hub.requests(messages.Login)[0].receives


def test_other_commands_go_through_the_running_terminal(hub: ScriptedHub, logged_in: Command) -> None:
    hub.accepts(target(TELEVISION, "queued"), then=[target(TELEVISION, "done")], outcome="done")
    with started("run") as process:
        read_until(process, "Connected")
        assert logged_in("devices").code == 0
        assert logged_in("sync", "weixin", "--to", "TV").code == 0
        process.terminate()
        process.communicate(timeout=30)
    assert len(hub.requests(messages.Login)) == 1


def test_a_replaced_terminal_ends_and_says_why(hub: ScriptedHub, logged_in: Command) -> None:
    hub.close_at_inventory = 4000
    ended = logged_in("run")
    assert ended.code == 1
    assert ended.err.startswith("Error: ")
    assert "this terminal has logged in from somewhere else" in ended.err


def test_run_as_json_prints_one_document_a_line(hub: ScriptedHub, logged_in: Command) -> None:
    hub.close_at_inventory = 4000
    *events, error = (json.loads(line) for line in logged_in("run", "--json").out.splitlines())
    assert events
    assert all(set(event) == {"event", "message", "time"} for event in events)
    assert set(error) == {"error"}


# --- errors -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ("devices",),
        ("programs",),
        ("plan", "p", "--to", "all"),
        ("sync", "p", "--to", "all"),
        ("history",),
        ("cancel", "s-1"),
        ("run",),
        ("device", "rename", "x"),
    ],
)
def test_before_login_every_command_says_to_log_in(command: Command, arguments: tuple[str, ...]) -> None:
    ended = command(*arguments)
    assert (ended.code, ended.out) == (4, "")
    assert "lockstep-terminal login" in ended.err
    assert len(ended.err.splitlines()) == 1


def test_a_hub_that_is_not_there_has_its_own_code(command: Command) -> None:
    scripted = ScriptedHub()
    with running(scripted):
        assert log_in(command, scripted).code == 0
    ended = command("devices", "--json")
    assert (ended.code, ended.err) == (6, "")
    assert scripted.url in ended.document["error"]["message"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("sync", "weixin"),
        ("sync", "weixin", "--to", "TV", "--timeout", "-1"),
        ("login", "ws://127.0.0.1"),
        ("nonsense",),
        ("devices", "--nonsense"),
        ("cancel",),
    ],
)
def test_wrong_usage_is_one_line_or_one_document(command: Command, arguments: tuple[str, ...]) -> None:
    ended = command(*arguments)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith("Error: ")
    assert len(ended.err.splitlines()) == 1
    ended = command(*arguments, "--json")
    assert (ended.code, ended.err) == (2, "")
    assert ended.document["error"]["code"] == "usage"


def test_an_unencrypted_hub_elsewhere_is_refused(command: Command) -> None:
    ended = command("login", "ws://hub.example", "--account", "home", "--password-stdin", stdin="x\n")
    assert ended.code == 2
    assert "--insecure-lan" in ended.err


@pytest.mark.parametrize(("debug", "shows_where"), [("0", False), ("1", True)])
def test_an_unexpected_error_is_one_line_unless_debugging(
    command: Command, monkeypatch: pytest.MonkeyPatch, debug: str, shows_where: bool
) -> None:
    def fail(_folder: Path) -> None:
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr("terminal.detection.detect_device", fail)
    monkeypatch.setenv("LOCKSTEP_DEBUG", debug)
    ended = command("device", "show")
    assert ended.code == 1
    assert "internal error: ZeroDivisionError" in ended.err
    assert ("Traceback" in ended.err) is shows_where


def test_help_is_quick_because_nothing_is_loaded_for_it() -> None:
    script = """
import sys
from terminal.cli import run_command
code = run_command(["sync", "--help"])
heavy = {"msgspec", "websockets", "rich", "cryptography"} & set(sys.modules)
sys.exit(code or " ".join(heavy) or 0)
"""
    ended = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, timeout=30)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "--no-wait" in ended.stdout


def test_the_version_is_printed(command: Command) -> None:
    assert command("--version").out.startswith("lockstep-terminal ")


# --- what the tests above share -----------------------------------------------------------------------------------


def started(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-u", "-m", "terminal", *arguments],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def read_until(process: subprocess.Popen[str], text: str) -> None:
    """Read lines until one holds `text`; the test's own time limit ends a process that never prints it."""
    assert process.stdout is not None
    assert any(text in line for line in process.stdout), f"{text!r} was never printed"


def read_screen(terminal: int) -> str:
    """Return all that is printed on a pseudo-terminal until its last writer has gone (EIO on Linux), and close it."""
    printed = b""
    with contextlib.suppress(OSError):
        while data := os.read(terminal, 65_536):
            printed += data
    os.close(terminal)
    return printed.decode()
