"""Publishing from a terminal, hub and terminal together: directly, through an agent, over breaks and kills."""

import asyncio
import contextlib
import functools
import json
import tomllib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from hub.admin import ask
from hub.store import Transaction
from protocol import limits, messages
from protocol.device import DeviceInfo
from protocol.errors import BadFileError, ConflictError, LockstepError, RefusedError, UnavailableError
from terminal import cli
from terminal import client as client_module
from terminal.agent import run_agent
from terminal.client import Client, enrol, open_client
from terminal.link import Link
from terminal.localsocket import PARTS_WAITING, LocalSocket, local_link
from terminal.place import Place
from terminal.publishing import _publish
from terminal.state import StateFolder
from terminal.uploads import InstallerFile, UploadWatch, read_installer
from tests.harness.fleets import until
from tests.harness.hubs import PASSWORD, HubProcess, RunningHub, hub_settings, running_hub
from tests.harness.installers import make_installer
from tests.harness.raw import raw_terminal

BUILDER = DeviceInfo(model="Build server", os_type="linux", architectures=("x86_64",))


class CountedBytes:
    """Counts the pack bytes that go up over any link; at `stop_at` of them nothing more goes until `go_on` is set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sent = 0
        self.stop_at = 2**60
        self.stopped, self.go_on = asyncio.Event(), asyncio.Event()
        before = Link.stream

        async def stream(link: Link, message: messages.Message) -> None:
            if isinstance(message, messages.Chunks):
                if self.sent >= self.stop_at:
                    self.stopped.set()
                    await self.go_on.wait()
                self.sent += len(message.data)
            await before(link, message)

        monkeypatch.setattr(Link, "stream", stream)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> CountedBytes:
    return CountedBytes(monkeypatch)


@asynccontextmanager
async def builder(tmp_path: Path, *, may_publish: bool = True) -> AsyncIterator[tuple[RunningHub, StateFolder]]:
    """A hub, and the folder of a terminal that is enrolled there."""
    async with running_hub(tmp_path) as hub:
        await hub.hub.accounts.add("ada", PASSWORD, may_publish=may_publish)
        yield hub, await enrolled(hub.url, tmp_path / "builder")


async def enrolled(url: str, path: Path) -> StateFolder:
    folder = StateFolder(path)
    await enrol(folder, url, account="ada", password=PASSWORD, name=path.name, device=BUILDER)
    folder.save_device(BUILDER)
    return folder


@asynccontextmanager
async def agent_of(folder: StateFolder) -> AsyncIterator[None]:
    """An agent that runs, connected, in this process."""
    stop, connected = asyncio.Event(), asyncio.Event()

    def heard(kind: str, _sentence: str) -> None:
        if kind == "connected":
            connected.set()

    task = asyncio.create_task(run_agent(folder, BUILDER, {}, on_event=heard, stop=stop))
    try:
        await connected.wait()
        yield
    finally:
        stop.set()
        await task


async def published_by(client: Client, path: Path, **options: str) -> messages.Published:
    async with asyncio.timeout(60):
        return await client.publish(path, program=options.get("program", ""))


# --- the ordinary way ---------------------------------------------------------------------------------------------


async def test_a_program_publishes_with_a_sidecar_and_without_a_hub_is_told_so_at_once(tmp_path: Path) -> None:
    path = make_installer(tmp_path, "deb", size=300_000)
    path.with_name(f"{path.name}.lockstep.toml").write_text('title = "Greeter"\nmodel = "Build server"\n')
    told: list[tuple[int, int]] = []
    async with builder(tmp_path) as (hub, folder), open_client(folder) as client:
        published = await client.publish(path, program="greeter", tell=lambda done, size: told.append((done, size)))
        assert (published.program, published.title, published.new) == ("greeter", "Greeter", True)
        assert published.fits == "linux, Build server"
        assert [row.program for row in await client.programs()] == ["greeter"]
        assert not (await published_by(client, path, program="greeter")).new
        await hub.stop()
        with pytest.raises(UnavailableError):
            await published_by(client, path)
    assert told[0] == (0, path.stat().st_size) and told[-1] == (path.stat().st_size, path.stat().st_size)


async def test_through_an_agent_the_upload_goes_as_well_and_only_its_client_hears_of_it(
    tmp_path: Path, counted: CountedBytes
) -> None:
    path = make_installer(tmp_path, "deb", size=1_500_000)
    async with (
        builder(tmp_path) as (_, folder),
        agent_of(folder),
        open_client(folder) as client,
        open_client(folder) as bystander,
    ):
        heard: list[str] = []

        class Ear:
            def put(self, message: messages.AnyMessage) -> None:
                heard.append(messages.kind_of(message))

            def end(self, error: Exception) -> None:
                pass

        bystander._link.listen(Ear())
        published, devices = await asyncio.gather(published_by(client, path), bystander.devices())
        assert published.new and len(devices) == 1
        assert not set(heard) & {"want", "progress", "published", "refused"}
    assert counted.sent == 2 * (await read_installer(path)).manifest.stored_size  # to the agent, and on to the hub


async def test_the_command_publishes_several_files_and_says_which_were_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = make_installer(tmp_path, "deb"), tmp_path / "bad.deb"
    bad.write_bytes(b"nothing that installs")
    async with builder(tmp_path) as (hub, folder):
        assert await publish(folder, good, bad, "--channel", "beta", "--json") == 3
        output, errors = capsys.readouterr()
        [row, refused] = json.loads(output)["files"]
        assert (row["program"], row["new"], row["kind"]) == ("hello", True, "deb")
        assert refused["error"]["code"] == "bad-file" and "bad.deb" in errors
        assert await publish(folder, good, "--channel", "beta") == 0
        assert capsys.readouterr().out.startswith("was published before: hello 1.0 (deb, for linux) ")
        await hub.hub.catalogue.yank("hello", "1.0")
        assert await publish(folder, good) == 0
        assert "The release is yanked, so nobody gets it" in capsys.readouterr().out
        assert await publish(folder, tmp_path / "none.deb") == 1
        output, errors = capsys.readouterr()
        assert output == "" and "is not a file" in errors


async def test_the_sidecar_in_a_refusal_can_be_copied_and_the_file_is_named_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad, good = tmp_path / "bad.deb", make_installer(tmp_path, "deb")
    bad.write_bytes(b"nothing that installs")
    async with builder(tmp_path) as (_, folder):
        for files in ([bad], [bad, good]):
            await publish(folder, *files)
            said, *sample = capsys.readouterr().err.splitlines()
            assert tomllib.loads("\n".join(sample)) == {"program": "bad", "version": "1.0", "os": "linux"}
            assert said.count("bad.deb:") == 1


async def test_what_cannot_be_read_is_named_and_does_not_stop_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bad, good = tmp_path / "bad.deb", make_installer(tmp_path, "deb")
    bad.write_bytes(b"nothing that installs")
    bad.with_name("bad.deb.lockstep.toml").symlink_to("/proc/self/mem")  # nobody can read that at 0, root included
    monkeypatch.setattr("os.access", lambda path, _: Path(path).is_dir())  # for root it says yes to all
    async with builder(tmp_path) as (_, folder):
        assert await publish(folder, bad, good) == 3
        output, errors = capsys.readouterr()
    assert output.startswith("published hello 1.0")
    assert errors.startswith(f"Error: {bad}.lockstep.toml cannot be read: ")


async def test_a_publish_that_is_given_up_says_what_may_come_of_it_all_the_same(
    tmp_path: Path, counted: CountedBytes, capsys: pytest.CaptureFixture[str]
) -> None:
    path = make_installer(tmp_path, "deb", size=5_000)
    async with builder(tmp_path) as (_, folder):
        counted.stop_at = 0
        options = {"program": "", "title": "", "channel": ""}
        publishing = asyncio.create_task(_publish(Place(folder.path, as_json=False), (path,), options))
        await counted.stopped.wait()
        publishing.cancel()  # as asyncio.run does at Ctrl-C
        await asyncio.wait([publishing])
    assert publishing.cancelled()
    output, errors = capsys.readouterr()
    assert output == ""
    assert "given up" in errors and "publishes it all the same" in errors
    assert "`lockstep-terminal programs NAME`" in errors


async def publish(folder: StateFolder, *arguments: str | Path) -> int:
    """Run `lockstep-terminal publish`, which has a loop of its own, and return its exit code."""
    return await asyncio.to_thread(cli.run_command, ["publish", *map(str, arguments), "--state", str(folder.path)])


async def test_what_was_withdrawn_is_no_success_and_what_is_held_is_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = make_installer(tmp_path, "deb", size=5_000)
    async with builder(tmp_path) as (hub, folder):
        for verdict, code in (("not-scanned", 0), ("suspicious", 1), ("infected", 1), ("clean", 0)):

            async def settled(transaction: Transaction, verdict: str = verdict) -> None:
                for row in await transaction.rows("installers_after", after=b"", count=1):
                    await transaction.rows("set_verdict", digest=row["digest"], verdict=verdict, finding="why")

            assert await publish(folder, path) == 0
            await hub.hub.store.transaction(settled)
            capsys.readouterr()
            assert await publish(folder, path, "--json") == code
            assert json.loads(capsys.readouterr().out)["files"][0]["verdict"] == verdict
            await hub.hub.store.transaction(functools.partial(settled, verdict="clean"))


# --- refusals -----------------------------------------------------------------------------------------------------


async def test_refusals_reach_the_one_who_publishes_as_errors_with_their_codes(tmp_path: Path) -> None:
    path = make_installer(tmp_path, "deb", size=5_000)
    broken = tmp_path / "broken.deb"
    broken.write_bytes(path.read_bytes()[:2_000])
    async with (
        builder(tmp_path, may_publish=False) as (hub, folder),
        agent_of(folder),
        open_client(folder) as client,
    ):
        with pytest.raises(RefusedError) as caught:
            await published_by(client, path)
        assert caught.value.code == "not-allowed"
        await hub.hub.accounts.allow("ada", "publish", allowed=True)
        with pytest.raises(BadFileError, match=r"broken\.deb"):
            await published_by(client, broken)
        assert (await published_by(client, path)).new
        with pytest.raises(ConflictError):
            await published_by(client, path, program="other")


async def test_a_file_that_changes_while_it_is_sent_is_given_up_at_the_hub_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_installer(tmp_path, "deb", size=1_000_000)
    frame = InstallerFile.frame

    def changed_first(file: InstallerFile, run: messages.Run) -> messages.Chunks:
        if run.first:
            path.write_bytes(bytes(1_000_000))
        return frame(file, run)

    async with builder(tmp_path) as (hub, folder), open_client(folder) as client:
        with monkeypatch.context() as patched, pytest.raises(BadFileError, match="changed"):
            patched.setattr(InstallerFile, "frame", changed_first)
            await published_by(client, path)
        await until(lambda: not hub.hub.uploads._running)
        assert (await published_by(client, make_installer(tmp_path, "deb", version="2.0"))).new


@pytest.mark.parametrize("content", [b"", None])
async def test_what_is_no_file_is_refused_before_anything_is_asked(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "file.deb"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BadFileError):
        await read_installer(path)
    path.write_bytes(b"x")
    path.with_name("file.deb.lockstep.toml").write_bytes(bytes(limits.SIDECAR_BYTES + 1))
    with pytest.raises(BadFileError, match="65536"):
        await read_installer(path)


# --- breaks -------------------------------------------------------------------------------------------------------


async def test_a_hub_that_is_killed_in_the_middle_gets_only_what_is_missing_afterwards(
    tmp_path: Path, counted: CountedBytes
) -> None:
    path = make_installer(tmp_path, "deb", size=12_000_000)
    total = (await read_installer(path)).manifest.stored_size
    async with HubProcess(tmp_path / "hub") as hub:
        account = {"name": "ada", "password": PASSWORD, "may_publish": True}
        await ask(hub_settings(tmp_path / "hub"), "account add", account)
        folder = await enrolled(hub.url, tmp_path / "builder")
        async with open_client(folder) as client:
            counted.stop_at = total * 2 // 3
            publishing = asyncio.create_task(published_by(client, path))
            await counted.stopped.wait()
            await hub.kill()
            left, counted.sent, counted.stop_at = total - counted.sent, 0, 2**60
            counted.go_on.set()
            await hub.start()
            assert (await publishing).new
    at_most = left + limits.WINDOW_LARGEST_FRAMES * limits.FRAME_BYTES
    assert left <= counted.sent < at_most < total


async def test_an_agent_loses_its_hub_in_the_middle_and_the_upload_goes_on_when_it_is_back(
    tmp_path: Path, counted: CountedBytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "RESUME_EVERY_SECONDS", 0.05)
    monkeypatch.setattr(limits, "RECONNECT_FIRST_SECONDS", 0.05)
    path = make_installer(tmp_path, "deb", size=2_000_000)
    async with builder(tmp_path) as (hub, folder), agent_of(folder), open_client(folder) as client:
        counted.stop_at = 2_000_000
        publishing = asyncio.create_task(published_by(client, path))
        await counted.stopped.wait()
        hub.socket_of(folder.identity().terminal)._abort()
        counted.go_on.set()
        assert (await publishing).new


async def test_a_client_that_goes_away_gives_its_upload_up_and_the_next_one_goes_on(
    tmp_path: Path, counted: CountedBytes
) -> None:
    path = make_installer(tmp_path, "deb", size=2_000_000)
    file = await read_installer(path)
    async with builder(tmp_path) as (hub, folder), agent_of(folder):
        counted.stop_at = 2_000_000
        async with open_client(folder) as client:
            publishing = asyncio.create_task(published_by(client, path))
            await counted.stopped.wait()
            publishing.cancel()
            await asyncio.wait([publishing])
        counted.go_on.set()
        await until(lambda: not hub.hub.uploads._running)
        counted.sent, counted.stop_at = 0, 2**60
        async with open_client(folder) as client:
            assert (await published_by(client, path)).new
        assert counted.sent < 2 * file.manifest.stored_size


async def test_a_local_client_that_sends_what_nobody_asked_for_costs_only_its_own_upload(tmp_path: Path) -> None:
    file = await read_installer(make_installer(tmp_path, "deb", size=200_000))
    async with builder(tmp_path) as (hub, folder), agent_of(folder):
        number = hub.hub.presence.socket_of(folder.identity().terminal)
        async with local_link(folder) as link:
            request = file.request("", "", "")
            watch = UploadWatch(request.upload)
            link.listen(watch)
            await link.request(request)
            for _ in range(200):
                await link.stream(file.frame(messages.Run(0, 1)))
            await until(lambda: watch.last_word is not None)
            assert isinstance(watch.last_word, messages.Refused) and watch.last_word.reason == "bad-transfer"
        assert hub.hub.presence.socket_of(folder.identity().terminal) == number, "the agent was not cut off"


async def test_an_agent_whose_hub_takes_nothing_keeps_so_much_of_an_upload_and_no_more(tmp_path: Path) -> None:
    file = await read_installer(make_installer(tmp_path, "deb", size=5_000))
    request = file.request("", "", "")

    async def ask_nobody(_: messages.Message) -> list[messages.AnyMessage]:
        return [messages.PublishAccepted(re=1, upload=request.upload)]

    async def answer_nobody(_: messages.Message) -> messages.AnyMessage:
        raise AssertionError

    async def take_nothing(_: messages.Message) -> None:
        await asyncio.Event().wait()

    folder = StateFolder(tmp_path / "state")
    welcome = messages.Welcome(terminal="t", name="n", account="a", connection=1, message_bytes=1, frame_bytes=1)
    socket = LocalSocket(folder, lambda: welcome, ask_nobody, answer_nobody, take_nothing)
    async with socket.serve(), local_link(folder) as link:
        await link.request(request)
        with contextlib.suppress(LockstepError):
            for _ in range(PARTS_WAITING + 10):
                await link.stream(file.frame(messages.Run(0, 1)))
        async with asyncio.timeout(10):
            assert (await link.ended()).code == "protocol-violation"


async def test_an_upload_does_not_hold_others_up(tmp_path: Path) -> None:
    path = make_installer(tmp_path, "deb", size=3_000_000)
    slowest = 0.0
    async with builder(tmp_path) as (hub, folder), open_client(folder) as client, raw_terminal(hub) as other:
        await other.enrol("ada", name="Other")
        publishing = asyncio.create_task(published_by(client, path))
        loop = asyncio.get_running_loop()
        while not publishing.done():
            asked_at = loop.time()
            await other.say(messages.Programs(id=5))
            await other.hear(messages.ProgramsResult)
            slowest = max(slowest, loop.time() - asked_at)
        assert publishing.result().new
    assert slowest < 2.0
