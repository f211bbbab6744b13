"""`lockstep-hub match`: a device file against a real catalogue, with no such device, through the admin commands."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from hub.app import Hub
from hub.cli import main
from tests.hub.rooms import open_rooms, publish

PHONE = 'model = "Pixel 8"\nform_factor = "phone"\nos_type = "android"\narchitectures = ["arm64"]\n'


async def filled(folder: Path) -> None:
    async with open_rooms(folder) as hub:
        await fill(hub, folder)


async def fill(hub: Hub, folder: Path) -> None:
    await publish(hub, folder, "1.0", kind="apk")
    await publish(hub, folder, "2.0", kind="apk")
    await publish(hub, folder, "3.0", kind="deb")
    await hub.catalogue.move("hello", "2.0", "beta")


@pytest.fixture
async def ask(tmp_path: Path) -> Any:
    await filled(tmp_path)

    def call(device: str, *arguments: str, program: str = "hello") -> Result:
        (tmp_path / "device.toml").write_text(device)
        names = ["match", program, "--device", str(tmp_path / "device.toml"), "--data", str(tmp_path / "hub")]
        return CliRunner().invoke(main, [*names, *arguments])

    return call


async def in_a_thread(call: Any, *arguments: Any, **named: Any) -> Result:
    import asyncio

    result: Result = await asyncio.to_thread(call, *arguments, **named)
    return result


async def test_the_choice_is_told_with_its_file_and_what_was_not_chosen(ask: Any) -> None:
    result = await in_a_thread(ask, PHONE)
    lines = result.stdout.splitlines()
    assert (result.exit_code, lines[0].partition(":")[0]) == (0, "hello-1.0.apk")
    assert lines[1].startswith("Of all installers only 1.0 (apk, any architecture) fits this phone.")
    assert "But: It does not say which kinds it installs, so perhaps not apk files." in lines
    assert lines[-2].split() == ["NOT", "KIND", "FILE", "FIELD", "WANTS", "HAS"]
    assert lines[-1].split()[:4] == ["3.0", "deb", "hello_3.0_all.deb", "os_type"]


async def test_a_channel_and_a_version_are_passed_on(ask: Any) -> None:
    for more in (("--channel", "beta"), ("--version", "2.0")):
        result = await in_a_thread(ask, PHONE, "--json", *more)
        told = json.loads(result.stdout)
        assert (told["chosen"]["version"], told["chosen"]["channel"]) == ("2.0", "beta")
    assert [one["version"] for one in told["rejected"]] == ["1.0", "3.0"]
    assert len(told["chosen"]["digest"]) == 64


async def test_where_nothing_fits_the_nearest_is_told_and_the_exit_code_is_1(ask: Any) -> None:
    result = await in_a_thread(ask, 'os_type = "windows"\n')
    assert result.exit_code == 1
    assert result.stdout.splitlines()[0] == "Nearest: 3.0 for Linux; this device has Windows."


@pytest.mark.parametrize(
    ("device", "program", "words"),
    [
        ("form = 1", "hello", "the key form is not known"),
        ("model = 1", "hello", "the key model has a value that is not allowed"),
        ("model", "hello", "is not valid TOML"),
        (PHONE, "helo", "Did you mean hello?"),
    ],
)
async def test_what_is_wrong_is_said_in_words(ask: Any, device: str, program: str, words: str) -> None:
    result = await in_a_thread(ask, device, program=program)
    assert result.exit_code != 0
    assert words in result.stderr


async def test_a_running_hub_answers_the_same_through_its_socket(tmp_path: Path) -> None:
    from hub.admin import ask, serve_admin
    from hub.config import Settings

    async with open_rooms(tmp_path) as hub, serve_admin(hub):
        await fill(hub, tmp_path)
        arguments = {"program": "hello", "device": {"model": "M", "os_type": "android"}, "version": "", "channel": ""}
        told = await ask(Settings(data=str(tmp_path / "hub")), "match", arguments)
    assert told["chosen"]["file_name"] == "hello-1.0.apk"
    assert told["unknown"] == ["kind", "api_level"]
