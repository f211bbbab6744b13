"""`lockstep-hub match`: a device file against a real catalogue, with no such device, through the admin commands."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import pytest
from click.testing import CliRunner, Result

from hub.admin import ask as ask_admin
from hub.admin import serve_admin
from hub.app import Hub
from hub.cli import main
from hub.config import Settings
from tests.hub.rooms import open_rooms, publish

Ask: TypeAlias = Callable[..., Result]

PHONE = 'model = "Pixel 8"\nform_factor = "phone"\nos_type = "android"\narchitectures = ["arm64"]\n'


async def fill(hub: Hub, folder: Path) -> None:
    await publish(hub, folder, "1.0", kind="apk")
    await publish(hub, folder, "2.0", kind="apk")
    await publish(hub, folder, "3.0", kind="deb")
    await hub.catalogue.move("hello", "2.0", "beta")


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hub's data folder for all tests here: none of them changes it."""
    folder = tmp_path_factory.mktemp("asking")

    async def body() -> None:
        async with open_rooms(folder) as hub:
            await fill(hub, folder)

    asyncio.run(body())
    return folder / "hub"


@pytest.fixture
def ask(tmp_path: Path, filled: Path) -> Ask:
    def call(device: str, *arguments: str, program: str = "hello") -> Result:
        (tmp_path / "device.toml").write_text(device)
        names = ["match", program, "--device", str(tmp_path / "device.toml"), "--data", str(filled)]
        return CliRunner().invoke(main, [*names, *arguments])

    return call


def test_the_choice_is_told_with_its_file_and_what_was_not_chosen(ask: Ask) -> None:
    result = ask(PHONE)
    lines = result.stdout.splitlines()
    assert (result.exit_code, lines[0].partition(":")[0]) == (0, "hello-1.0.apk")
    assert lines[1].startswith("Of all installers only 1.0 (apk, any architecture) fits this phone.")
    assert "But: It does not say which kinds it installs, so perhaps not apk files." in lines
    assert lines[-2].split() == ["NOT", "KIND", "FILE", "FIELD", "WANTS", "HAS"]
    assert lines[-1].split()[:4] == ["3.0", "deb", "hello_3.0_all.deb", "os_type"]


def test_a_channel_and_a_version_are_passed_on(ask: Ask) -> None:
    for more in (("--channel", "beta"), ("--version", "2.0")):
        result = ask(PHONE, "--json", *more)
        told = json.loads(result.stdout)
        assert (told["chosen"]["version"], told["chosen"]["channel"]) == ("2.0", "beta")
    assert [one["version"] for one in told["rejected"]] == ["1.0", "3.0"]
    assert len(told["chosen"]["digest"]) == 64


def test_where_nothing_fits_the_nearest_is_told_and_the_exit_code_is_1(ask: Ask) -> None:
    result = ask('os_type = "windows"\n')
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
def test_what_is_wrong_is_said_in_words(ask: Ask, device: str, program: str, words: str) -> None:
    result = ask(device, program=program)
    assert result.exit_code != 0
    assert words in result.stderr


async def test_a_running_hub_answers_the_same_through_its_socket(filled: Path) -> None:
    async with open_rooms(filled.parent) as hub, serve_admin(hub):
        arguments = {"program": "hello", "device": {"model": "M", "os_type": "android"}, "version": "", "channel": ""}
        told = await ask_admin(Settings(data=str(filled)), "match", arguments)
    assert told["chosen"]["file_name"] == "hello-1.0.apk"
    assert told["unknown"] == ["kind", "api_level"]
