"""The admin socket: private, the same answers as in process, and garbage harms nobody."""

import asyncio
import json
import signal
import stat
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from hub.admin import SOCKET_NAME, ask, is_running, serve_admin
from hub.app import Hub, open_hub
from hub.config import Settings
from hub.inspection import inspect_safely
from hub.inspectors import Inspected
from protocol.errors import LockstepError, RefusedError
from tests.harness.installers import make_installer
from tests.hub.rooms import PASSWORD, open_rooms
from tests.hub.test_cli import ROOT


@asynccontextmanager
async def served(tmp_path: Path) -> AsyncIterator[tuple[Hub, Path]]:
    async with open_rooms(tmp_path) as hub, serve_admin(hub):
        yield hub, hub.settings.data_folder / SOCKET_NAME


async def say(path: Path, data: bytes) -> bytes:
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(data)
    writer.write_eof()
    async with asyncio.timeout(10):
        answer = await reader.read()
    writer.close()
    return answer


async def test_only_the_owner_may_use_the_socket_and_it_is_gone_afterwards(tmp_path: Path) -> None:
    async with served(tmp_path) as (_, path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not path.exists()


def as_json(value: Any) -> Any:
    """What came over the socket has been JSON already: tuples are lists there."""
    return json.loads(json.dumps(value))


GARBAGE = [b"", b"\n", b"\xff\xfe\n", b"[1]\n", b"7\n", b"{}\n", b'{"command": 7}\n', b'{"command": "dance"}\n',
           b'{"command": "publish", "file": 7}\n', b'{"command": "account add", "name": 7, "password": []}\n',
           b'{"command": "publish", "file": "x", "options": {"nonsense": 1}}\n', b"[" * 100_000 + b"\n",
           b"x" * 5_000_000]  # fmt: skip


@pytest.mark.parametrize("garbage", GARBAGE, ids=lambda garbage: repr(garbage[:30]))
async def test_garbage_gets_a_usage_error_and_the_next_command_is_served(
    garbage: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with served(tmp_path) as (_, path):
        try:
            assert json.loads(await say(path, garbage))["error"]["code"] in ("usage", "bad-file")
        except (BrokenPipeError, ConnectionResetError):
            assert len(garbage) > 4_000_000, "only what is far too long is cut off"
        assert json.loads(await say(path, b'{"command": "catalogue"}\n')) == {"result": []}
    assert caplog.records == []


async def test_a_command_gives_the_same_through_a_running_hub_and_in_process(tmp_path: Path) -> None:
    settings = Settings(data=str(tmp_path / "hub"), disk_reserve_bytes=0)
    file = {"file": str(make_installer(tmp_path, "deb"))}
    account = {"name": "ada", "password": PASSWORD}
    async with served(tmp_path):
        first = await ask(settings, "publish", file)
        assert await ask(settings, "account add", account) == {"account": "ada"}
        through_hub = await ask(settings, "catalogue", {})
        with pytest.raises(LockstepError) as running:
            await ask(settings, "account add", account)
    assert as_json(await ask(settings, "publish", file)) == first | {"new": False}
    assert as_json(await ask(settings, "catalogue", {})) == through_hub
    with pytest.raises(LockstepError) as in_process:
        await ask(settings, "account add", account)
    assert str(running.value) == str(in_process.value)


async def test_of_two_who_open_the_folder_only_one_gets_it(tmp_path: Path) -> None:
    async with open_rooms(tmp_path) as hub:
        with pytest.raises(RefusedError) as caught:
            async with open_hub(hub.settings):
                pass
        assert caught.value.code == "in-use"


async def test_a_folder_with_a_very_long_name_has_an_admin_socket_too(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 120)
    deep.mkdir()
    settings = Settings(data=str(deep / "hub"), disk_reserve_bytes=0)
    async with open_rooms(deep) as hub, serve_admin(hub):
        assert await ask(settings, "catalogue", {}) == []


async def test_after_ctrl_c_the_running_hub_goes_on_with_the_file_and_the_command_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached, go_on = asyncio.Event(), asyncio.Event()

    async def held(path: Path, name: str) -> Inspected:
        reached.set()
        await go_on.wait()
        return await inspect_safely(path, name)

    monkeypatch.setattr("hub.catalogue.inspect_safely", held)
    files = [str(make_installer(tmp_path, "deb", version=version)) for version in ("1.0", "2.0")]
    async with served(tmp_path) as (hub, _):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "hub", "publish", *files, "--json", "--data", str(hub.settings.data_folder),
            cwd=ROOT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        async with asyncio.timeout(20):
            await reached.wait()
            process.send_signal(signal.SIGINT)
            output, errors = await process.communicate()
        assert (process.returncode, json.loads(output)) == (130, [])
        assert errors.decode().splitlines() == [
            "hello_1.0_all.deb is not waited for any more; the hub goes on with it, and `lockstep-hub catalogue` shows "
            "what came of it. Not begun: hello_2.0_all.deb."
        ]
        assert await hub.catalogue.listing() == []
        go_on.set()
        async with asyncio.timeout(20):
            while not await hub.catalogue.listing():
                pass
    assert not await is_running(hub.settings)
