"""Uploads over a real socket: what is right is published, what is not is refused with its reason and leaves nothing."""

import asyncio
import errno
import hashlib
import logging
import os
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from hub import uploads
from hub.objects import Objects
from protocol import chunks, messages
from protocol.messages import Run
from tests.harness.fleets import until
from tests.harness.hubs import RunningHub, running_hub
from tests.harness.installers import make_installer
from tests.harness.raw import RawTerminal, raw_terminal
from tests.harness.uploads import PackedFile, Upload
from tests.hub.rooms import small_disk


@asynccontextmanager
async def publishing(tmp_path: Path, **settings: Any) -> AsyncIterator[tuple[RunningHub, RawTerminal]]:
    """A hub, and a terminal of an account that may publish."""
    async with running_hub(tmp_path, **settings) as hub:
        await hub.hub.accounts.add("ada", "correct horse battery", may_publish=True)
        async with raw_terminal(hub) as terminal:
            await terminal.enrol("ada", name="Builder")
            yield hub, terminal


def packed(folder: Path, size: int = 400_000, **fields: Any) -> PackedFile:
    return PackedFile(make_installer(folder, "deb", size=size, **fields))


def left_behind(hub: RunningHub) -> list[str]:
    """What lies in the hub's folder of uploads and, beside published objects, in that of objects."""
    partial = [str(path.relative_to(hub.folder)) for path in (hub.folder / "uploads").rglob("*")]
    return partial + hub.hub.objects.file_names()


async def listed(hub: RunningHub) -> list[str]:
    return [one.file_name for one in await hub.hub.catalogue.listing()]


# --- what is right ------------------------------------------------------------------------------------------------


async def test_a_terminal_publishes_a_file_which_is_then_in_the_catalogue_byte_for_byte(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    file = packed(tmp_path)
    async with publishing(tmp_path) as (hub, terminal):
        said = await Upload(terminal, file).run(title="Hello", channel="beta")
        assert isinstance(said, messages.Published)
        assert (said.program, said.title, said.version, said.installer_kind) == ("hello", "Hello", "1.0", "deb")
        assert (said.new, said.digest, said.fits) == (True, file.digest, "linux")
        assert file.digest in hub.hub.objects.digests()
        [row] = (await hub.hub.catalogue.program("hello")).releases
        assert row.channel == "beta"
        assert b"".join(hub.hub.objects.read_whole(file.digest)) == file.pack
        assert not [name for name in left_behind(hub) if "uploads" in name]
    [line] = [line for line in caplog.messages if "published" in line]
    assert "Builder" in line and "of ada" in line and file.digest.hex() in line and "hello 1.0" in line


async def test_a_sidecar_comes_with_the_file_and_says_what_it_does_for_the_operator(tmp_path: Path) -> None:
    async with publishing(tmp_path) as (_, terminal):
        said = await Upload(terminal, packed(tmp_path)).run(sidecar=b'program = "greeter"\narchitecture = "arm64"\n')
        assert isinstance(said, messages.Published)
        assert (said.program, said.fits) == ("greeter", "linux, arm64")


async def test_of_bytes_that_are_published_already_nothing_goes_up_and_another_program_is_a_conflict(
    tmp_path: Path,
) -> None:
    file = packed(tmp_path)
    async with publishing(tmp_path) as (hub, terminal):
        await hub.publish(tmp_path / file.name)
        again = Upload(terminal, file)
        said = await again.run()
        assert isinstance(said, messages.Published) and not said.new
        assert again.sent_bytes == 0
        refused = await Upload(terminal, file, "u-2").run(program="other")
        assert isinstance(refused, messages.Refused) and refused.reason == "conflict"
        assert await listed(hub) == [file.name]


async def test_what_came_before_the_connection_broke_is_not_sent_again(tmp_path: Path) -> None:
    file = packed(tmp_path, size=2_000_000)
    async with publishing(tmp_path) as (hub, terminal):
        first = Upload(terminal, file)
        await first.run(until=lambda sent: sent > 1_000_000)
        await until(lambda: _held_bytes(hub) > 600_000)
        terminal.socket.transport.abort()
        await until(lambda: not hub.hub.uploads._running)
        async with raw_terminal(hub, like=terminal) as back:
            await back.login(receives=False)
            second = Upload(back, file, "u-2")
            assert isinstance(await second.run(), messages.Published)
    assert second.sent_bytes <= file.manifest.stored_size - 600_000


def _held_bytes(hub: RunningHub) -> int:
    return sum(one.done_bytes for one in hub.hub.uploads._running.values())


async def test_two_terminals_of_two_accounts_upload_the_same_file_and_never_meet(tmp_path: Path) -> None:
    file = packed(tmp_path, size=1_000_000)
    async with publishing(tmp_path) as (hub, ada):
        await hub.hub.accounts.add("eve", "correct horse battery", may_publish=True)
        async with raw_terminal(hub) as eve:
            await eve.enrol("eve")
            said = await asyncio.gather(Upload(ada, file, "u-same").run(), Upload(eve, file, "u-same").run())
        assert sorted(one.new for one in said if isinstance(one, messages.Published)) == [False, True]
        assert await listed(hub) == [file.name]


async def test_deliveries_and_an_upload_share_a_socket_both_ways(tmp_path: Path) -> None:
    async with publishing(tmp_path) as (hub, asks):
        await hub.publish(make_installer(tmp_path, "deb", name="small", size=100_000))
        async with raw_terminal(hub) as terminal:
            await terminal.enrol("ada", name="Both")
        async with raw_terminal(hub, like=terminal) as both:
            await both.login()
            upload = Upload(both, packed(tmp_path, size=1_000_000))
            await upload.run(until=lambda sent: sent > 300_000)
            await asks.say(messages.Sync(id=1, request_key="k", program="small", targets=(both.terminal,)))
            offer = await both.hear(messages.Offer)
            await both.say(messages.Want(delivery=offer.delivery, runs=(Run(0, offer.chunks),)))
            assert (await both.hear(messages.Chunks)).object == offer.object
            await both.say(messages.Progress(delivery=offer.delivery, frames=1, done=1))
            await both.say(messages.Programs(id=9))
            assert (await both.hear(messages.ProgramsResult)).re == 9
            assert isinstance(await Upload(both, upload.file, "u-2").begin(), messages.Error), "the first one goes on"
            await both.say(messages.Withdraw(delivery="u-1"))
            assert isinstance(await Upload(both, upload.file, "u-3").run(), messages.Published)


# --- who may and when ---------------------------------------------------------------------------------------------


async def test_the_right_is_asked_for_at_the_beginning_and_once_more_at_the_end(tmp_path: Path) -> None:
    async with publishing(tmp_path) as (hub, terminal):
        await hub.hub.accounts.allow("ada", "publish", allowed=False)
        said = await Upload(terminal, packed(tmp_path)).run()
        assert isinstance(said, messages.Error)
        assert (said.code, said.re, left_behind(hub)) == ("not-allowed", 7, [])
        await hub.hub.accounts.allow("ada", "publish", allowed=True)
        upload = Upload(terminal, packed(tmp_path))
        assert isinstance(await upload.begin(), messages.PublishAccepted)
        await hub.hub.accounts.allow("ada", "publish", allowed=False)
        await terminal.say(*upload.file.pages())
        [run] = (await terminal.hear(messages.Want)).runs
        for index in range(run.count):
            await terminal.say(upload.file.frame(Run(index, 1)))
        assert (await terminal.hear(messages.Refused)).reason == "not-allowed"
        assert (await listed(hub), left_behind(hub)) == ([], [])


async def test_a_second_upload_of_a_terminal_waits_for_the_end_of_the_first(tmp_path: Path) -> None:
    async with publishing(tmp_path) as (hub, terminal):
        first, second = packed(tmp_path), packed(tmp_path, name="second")
        assert isinstance(await Upload(terminal, first).begin(), messages.PublishAccepted)
        said = await Upload(terminal, second, "u-2").begin()
        assert isinstance(said, messages.Error) and said.code == "busy"
        await terminal.say(messages.Withdraw(delivery="u-1"))
        assert isinstance(await Upload(terminal, second, "u-3").run(), messages.Published)
        assert await listed(hub) == [second.name]


async def test_an_account_has_so_many_uploads_at_once_and_the_same_file_once(tmp_path: Path) -> None:
    async with publishing(tmp_path) as (hub, _):
        stack = [raw_terminal(hub) for _ in range(uploads.UPLOADS_OF_ACCOUNT + 1)]
        terminals = [await one.__aenter__() for one in stack]
        files = [packed(tmp_path, name=f"file{number}", size=10_000) for number in range(len(terminals))]
        for number, terminal in enumerate(terminals):
            await terminal.enrol("ada", name=f"Builder {number}")
        said = [await Upload(terminals[0], files[0]).begin(), await Upload(terminals[1], files[0]).begin()]
        said += [await Upload(one, file).begin() for one, file in zip(terminals[1:], files[1:], strict=True)]
        codes = [one.code if isinstance(one, messages.Error) else "" for one in said]
        assert codes == ["", "busy", "", "", "", "busy"]
        for one in stack:
            await one.__aexit__(None, None, None)


async def test_an_upload_of_which_nothing_comes_is_given_up_and_what_came_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("protocol.limits.UPLOAD_IDLE_SECONDS", 0.3)
    async with publishing(tmp_path) as (hub, terminal):
        upload = Upload(terminal, packed(tmp_path, size=1_000_000))
        await upload.run(until=lambda sent: sent > 100_000)
        assert (await terminal.hear(messages.Refused)).reason == "no-progress"
        assert left_behind(hub) != []
        await terminal.say(upload.file.frame(Run(0, 1)))  # late: passed over
        again = Upload(terminal, upload.file, "u-2")
        assert isinstance(await again.run(), messages.Published)
        assert again.sent_bytes < upload.file.manifest.stored_size


# --- what is wrong ------------------------------------------------------------------------------------------------


def lies(file: PackedFile) -> dict[str, tuple[dict[str, Any], str]]:
    """Requests that do not fit the manifest that follows, and the reason each is refused for."""
    larger = structs.asdict(file.publish())
    return {
        "another digest": ({"object": bytes(32)}, "wrong-digest"),
        "another manifest": ({"manifest": bytes(32)}, "wrong-digest"),
        "larger than it is": ({"size": larger["size"] + 1}, "bad-transfer"),
        "fewer chunks": ({"chunks": file.manifest.count - 1}, "bad-transfer"),
    }


async def test_a_request_that_lies_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    async with publishing(tmp_path) as (hub, terminal):
        for lie, (changes, code) in lies(packed(tmp_path)).items():
            file = packed(tmp_path)
            file.digest = changes.get("object", file.digest)  # in the pages and frames too
            said = await Upload(terminal, file, lie).run(**changes)
            assert isinstance(said, messages.Refused), lie
            assert said.reason == code, lie
            assert (await listed(hub), left_behind(hub)) == ([], []), lie
        # Every chunk says it is as large as can be and stored in one byte: what the manifest promises cannot come.
        file.manifest = chunks.Manifest.of([chunks.Entry(hashlib.sha256(b"x").digest(), 262_144, 1)] * 100)
        file.pack = bytes(100)
        said = await Upload(terminal, file, "a bomb").run()
        assert isinstance(said, messages.Refused) and said.reason == "wrong-digest"
        assert (await listed(hub), left_behind(hub)) == ([], [])


def wrong_frames(file: PackedFile) -> dict[str, messages.Chunks]:
    right, later = file.frame(Run(0, 1)), file.frame(Run(1, 1))
    flipped = right.data[:-1] + bytes([right.data[-1] ^ 1])
    return {
        "out of order": later,
        "too long": structs.replace(right, data=right.data + b"x"),
        "too short": structs.replace(right, data=right.data[:-1]),
        "damaged": structs.replace(right, data=flipped),
        "more than was asked for": structs.replace(right, count=200_000),
    }


async def test_a_wrong_frame_ends_the_upload_and_nothing_else(tmp_path: Path) -> None:
    file = packed(tmp_path)
    async with publishing(tmp_path) as (hub, terminal):
        for name, frame in wrong_frames(file).items():
            await Upload(terminal, file, name).begin()
            await terminal.say(*file.pages())
            await terminal.hear(messages.Want)
            await terminal.say(frame)
            reason = (await terminal.hear(messages.Refused)).reason
            assert reason == ("wrong-digest" if name == "damaged" else "bad-transfer"), name
            assert left_behind(hub) == [], name
        await Upload(terminal, file, "early").begin()
        await terminal.say(file.frame(Run(0, 1)), *file.pages())  # the page comes late then: passed over
        assert (await terminal.hear(messages.Refused)).reason == "bad-transfer"
        assert isinstance(await Upload(terminal, file, "right").run(), messages.Published)


async def test_what_nobody_asked_for_ends_the_connection(tmp_path: Path) -> None:
    file = packed(tmp_path)
    publish = structs.asdict(file.publish())
    offer = {name: publish[name] for name in messages.ObjectMessage.__struct_fields__}
    installer = messages.InstallerOffer(
        program="hello", package_name="hello", version="1", installer_kind="deb", file_name="hello.deb"
    )
    wrong: dict[str, messages.Message] = {
        "page": file.pages()[0],
        "frame": file.frame(Run(0, 1)),
        "offer": messages.Offer(**offer, delivery="d-1", installer=installer),
    }
    async with publishing(tmp_path) as (hub, other):
        await Upload(other, file).begin()  # another's upload is as unknown as none
        for name, message in wrong.items():
            async with raw_terminal(hub) as terminal, asyncio.timeout(5):
                await terminal.enrol("ada", name="Wrong")
                await terminal.say(message)
                code, reason, _ = await terminal.closed()
            assert (code, reason) == (4001, "not-offered"), name
        await other.say(*file.pages())
        assert (await other.hear(messages.Want)).delivery == "u-1"


async def test_a_file_that_the_inspector_refuses_is_refused_in_its_words_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "broken.deb"
    path.write_bytes(b"!<arch>\n" + os.urandom(50_000))
    async with publishing(tmp_path) as (hub, terminal):
        said = await Upload(terminal, PackedFile(path)).run()
        assert isinstance(said, messages.Refused)
        assert (said.reason, "broken.deb" in said.detail) == ("bad-file", True)
        assert (await listed(hub), left_behind(hub)) == ([], [])


async def test_a_name_that_is_none_is_refused(tmp_path: Path) -> None:
    file = packed(tmp_path, size=1_000)
    async with publishing(tmp_path) as (hub, terminal):
        for name in ("../evil.deb", "..", "/etc/passwd", "a\nb.deb", "a\x00b.deb"):
            said = await Upload(terminal, file).run(file_name=name)
            assert isinstance(said, messages.Error) and said.code == "bad-name", name
            assert left_behind(hub) == []


# --- room ---------------------------------------------------------------------------------------------------------


async def test_without_room_among_the_objects_an_upload_is_refused_before_it_begins(tmp_path: Path) -> None:
    async with publishing(tmp_path, store_bytes=300_000) as (hub, terminal):
        said = await Upload(terminal, packed(tmp_path)).run()
        assert isinstance(said, messages.Error) and said.code == "store-full"
        assert left_behind(hub) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
async def test_a_disk_that_is_full_before_the_file_has_come_refuses_it_and_is_free_again(tmp_path: Path) -> None:
    file = packed(tmp_path, size=3_000_000)
    with small_disk(tmp_path / "hub", 12_000_000) as disk:
        async with publishing(tmp_path) as (hub, terminal):
            too_large = await Upload(terminal, packed(tmp_path, size=7_000_000, name="large")).run()
            assert isinstance(too_large, messages.Error) and too_large.code == "disk-full", "its pack would not fit"
            upload = Upload(terminal, file)
            await upload.run(until=lambda sent: sent > 200_000)
            filler = disk / "filler"
            with filler.open("wb", buffering=0) as stream, pytest.raises(OSError, match="No space"):
                while True:
                    stream.write(bytes(65_536))
            said = await upload.go_on()
            assert isinstance(said, messages.Refused) and said.reason == "disk-full"
            filler.unlink()
            assert left_behind(hub) == []
            assert isinstance(await Upload(terminal, file, "u-2").run(), messages.Published)


async def test_a_partial_file_nobody_goes_on_with_is_removed_after_a_day_of_hub_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with publishing(tmp_path) as (hub, terminal):
        await Upload(terminal, packed(tmp_path)).begin()
        await terminal.say(messages.Withdraw(delivery="u-1"))
        await until(lambda: not hub.hub.uploads._running)
        await hub.hub.uploads.reap()
        assert left_behind(hub) != []
        now = hub.hub.clock.now()
        monkeypatch.setattr(hub.hub.clock, "now", lambda: now + uploads.KEPT_PARTIAL_SECONDS + 1)
        await hub.hub.uploads.reap()
        assert left_behind(hub) == []


# --- ends at the wrong moment -------------------------------------------------------------------------------------


def _open_files(hub: RunningHub) -> list[str]:
    """The files of uploads that this process has open."""
    links = [os.path.realpath(link) for link in Path("/proc/self/fd").iterdir()]
    return [link for link in links if link.startswith(str((hub.folder / "uploads").resolve()))]


async def test_a_connection_that_ends_while_its_upload_begins_leaves_no_file_open_and_no_place_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opening, may_open = threading.Event(), threading.Event()
    check_room = Objects.check_room

    def slow(objects: Objects, name: str, size: int, digest: bytes = b"") -> None:
        opening.set()
        assert may_open.wait(5)
        check_room(objects, name, size, digest)

    async with publishing(tmp_path) as (hub, terminal):
        me = await hub.hub.accounts.find(terminal.terminal)
        assert me is not None
        monkeypatch.setattr(Objects, "check_room", slow)
        begins = asyncio.create_task(hub.hub.uploads.begin(me, packed(tmp_path).publish()))
        await until(opening.is_set)
        begins.cancel()
        await asyncio.wait([begins])
        may_open.set()
        await until(lambda: not hub.hub.uploads._running)
        assert _open_files(hub) == []


async def test_a_file_is_not_closed_while_a_thread_writes_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    writing, closes = threading.Event(), threading.Event()
    write, close = uploads.Upload.write, uploads.Upload.close

    def slow_write(upload: uploads.Upload, frame: messages.Chunks) -> None:
        writing.set()
        closes.wait(0.3)  # as long as it takes to see that nobody closes the file meanwhile
        write(upload, frame)
        order.append("written")

    def noted_close(upload: uploads.Upload, *, discard: bool, now: float) -> None:
        order.append("closed")
        closes.set()
        close(upload, discard=discard, now=now)

    monkeypatch.setattr(uploads.Upload, "write", slow_write)
    monkeypatch.setattr(uploads.Upload, "close", noted_close)
    async with publishing(tmp_path) as (hub, terminal):
        await Upload(terminal, packed(tmp_path)).run(until=lambda sent: sent > 0)
        await until(writing.is_set)
        terminal.socket.transport.abort()
        await until(lambda: not hub.hub.uploads._running)
    assert order == ["written", "closed"]


async def test_after_a_fault_of_the_hub_while_it_publishes_the_terminal_may_upload_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def faulty(*_: Any) -> None:
        raise RuntimeError("a fault")

    async with publishing(tmp_path) as (hub, terminal):
        with monkeypatch.context() as patch:
            patch.setattr(hub.hub.catalogue, "publish", faulty)
            said = await Upload(terminal, packed(tmp_path)).run()
            assert isinstance(said, messages.Refused) and said.reason == "internal"
        assert "internal error in an upload" in caplog.text
        assert isinstance(await Upload(terminal, packed(tmp_path), "u-2").run(), messages.Published)


async def test_a_disk_that_fails_at_the_end_of_an_upload_keeps_nothing_else_from_ending(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise OSError(errno.EIO, "Input/output error")

    async with publishing(tmp_path) as (hub, terminal):
        upload = Upload(terminal, packed(tmp_path, size=1_000_000))
        await upload.run(until=lambda sent: sent > 100_000)
        monkeypatch.setattr(os, "utime", fails)
        await hub.hub.uploads.end(next(iter(hub.hub.uploads._running.values())))
        assert not hub.hub.uploads._running
        assert _open_files(hub) == []
