"""Publishing: what goes in, what is refused, and that a refusal changes nothing."""

import asyncio
import hashlib
from pathlib import Path
from typing import Any

import pytest

from hub.app import Hub
from hub.catalogue import PublishOptions, describe_selector
from hub.matching import Selector
from protocol import limits
from protocol.device import InstallerKind
from protocol.errors import BadFileError, ConflictError, UsageError
from tests.harness.installers import make_installer
from tests.hub.rooms import open_rooms


async def contents(hub: Hub) -> tuple[object, dict[str, str]]:
    """The catalogue, and every file of the object folder with its digest."""
    folder = hub.settings.data_folder / "objects"
    files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}
    return await hub.catalogue.listing(), files


def options(program: str = "", **given: Any) -> PublishOptions:
    return PublishOptions(program=program, given=given)


@pytest.mark.parametrize(("kind", "program"), [("deb", "hello"), ("wheel", "hello"), ("apk", "org.example.hello")])
async def test_each_kind_of_installer_is_published_under_its_own_name(
    kind: InstallerKind, program: str, tmp_path: Path
) -> None:
    async with open_rooms(tmp_path) as hub:
        path = make_installer(tmp_path, kind)
        published = await hub.catalogue.publish(path, options())
        assert (published.program, published.version, published.kind, published.new) == (program, "1.0", kind, True)
        assert published.digest == hashlib.sha256(path.read_bytes()).hexdigest()
        [row] = await hub.catalogue.listing()
        assert (row.program, row.size, row.file_name) == (program, path.stat().st_size, path.name)


async def test_the_same_bytes_twice_are_published_once_even_at_the_same_time(tmp_path: Path) -> None:
    async with open_rooms(tmp_path) as hub:
        path = make_installer(tmp_path, "deb")
        both = await asyncio.gather(*(hub.catalogue.publish(path, options()) for _ in range(2)))
        assert sorted(published.new for published in both) == [False, True]
        assert len(await hub.catalogue.listing()) == 1


async def test_a_damaged_file_changes_neither_the_database_nor_the_object_folder(tmp_path: Path) -> None:
    async with open_rooms(tmp_path) as hub:
        await hub.catalogue.publish(make_installer(tmp_path, "deb"), options())
        before = await contents(hub)
        for kind in ("deb", "wheel", "apk"):
            sound = make_installer(tmp_path, kind, "other").read_bytes()
            for damaged in (sound[: len(sound) // 2], b"", b"\0" * 1_000):
                path = tmp_path / "damaged"
                path.write_bytes(damaged)
                with pytest.raises(BadFileError, match="damaged"):
                    await hub.catalogue.publish(path, options())
        assert await contents(hub) == before


async def test_what_contradicts_the_header_or_an_earlier_publish_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    async with open_rooms(tmp_path) as hub:
        path = make_installer(tmp_path, "deb", architecture="arm64")
        with pytest.raises(ConflictError, match="arm64"):
            await hub.catalogue.publish(path, options(architectures=["x86_64"]))
        assert await contents(hub) == ([], {})
        await hub.catalogue.publish(path, options())
        before = await contents(hub)
        with pytest.raises(ConflictError, match="'hello', not 'else'"):
            await hub.catalogue.publish(path, options("else"))
        with pytest.raises(ConflictError, match="other devices"):
            await hub.catalogue.publish(path, options(form_factors=["car"]))
        assert await contents(hub) == before


async def test_what_no_message_could_carry_is_refused_before_anything_is_stored(tmp_path: Path) -> None:
    async with open_rooms(tmp_path) as hub:
        installer = make_installer(tmp_path, "deb", size=100)
        for given in (
            PublishOptions(program="p" * (limits.IDENTIFIER_CHARACTERS + 1)),
            PublishOptions(title="t" * (limits.TEXT_CHARACTERS + 1)),
        ):
            with pytest.raises(BadFileError, match="cannot be published"):
                await hub.catalogue.publish(installer, given)
        assert await hub.catalogue.listing() == []
        assert (await hub.catalogue.publish(installer, PublishOptions(program="p" * 128, title="t" * 1024))).new


@pytest.mark.parametrize(
    "given",
    [
        {"screen_inches_minimum": 13.0, "screen_inches_maximum": 7.0},
        {"screen_inches_minimum": 0.0},
        {"density_dpi_minimum": 480, "density_dpi_maximum": 160},
        {"resolution_minimum": [3840, 2160], "resolution_maximum": [10, 10]},
        {"os_version_minimum": "14", "os_version_maximum": "12"},
        {"models": ["Think*"], "models_excluded": ["Think*"]},
        {"form_factors": ["fone"]},
    ],
)
async def test_what_no_device_could_meet_is_refused(given: dict[str, Any], tmp_path: Path) -> None:
    async with open_rooms(tmp_path) as hub:
        with pytest.raises(UsageError):
            await hub.catalogue.publish(make_installer(tmp_path, "deb"), options(**given))
        assert await hub.catalogue.listing() == []


@pytest.mark.parametrize("program", ["we/../ird", "two\nlines", " ", "-begins-with-a-dash"])
async def test_a_program_id_is_one_that_can_be_typed(program: str, tmp_path: Path) -> None:
    async with open_rooms(tmp_path) as hub:
        with pytest.raises(UsageError, match="not a program id"):
            await hub.catalogue.publish(make_installer(tmp_path, "deb"), options(program))


def test_the_words_for_who_an_installer_fits_leave_nothing_out() -> None:
    everything = Selector(
        os_types=("linux",), os_version_minimum="11", os_version_maximum="13", api_level_maximum=34,
        architectures=("arm64",), models=("Pi*",), models_excluded=("Pi 1",), form_factors=("car",),
        screen_inches_minimum=7, screen_inches_maximum=13, resolution_minimum=(1280, 720),
        density_dpi_maximum=320, features_required=("gps",), features_forbidden=("rotary",),
    )  # fmt: skip
    assert describe_selector(everything) == (
        "linux, API up to 34, version 11-13, arm64, car, Pi*, gps, not Pi 1, not rotary, 7-13 in, 1280x720+ px, "
        "up to 320 dpi"
    )
