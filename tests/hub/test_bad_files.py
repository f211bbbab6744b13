"""Hostile and broken installers: a clear refusal or the right facts, and nothing half-published."""

import re
from pathlib import Path

import pytest

from hub.catalogue import PublishOptions
from hub.inspectors import inspect
from protocol.errors import BadFileError
from tests.formats.badfiles import QUICK, BadFile
from tests.harness.hubs import running_hub


def made(bad: BadFile, folder: Path) -> Path:
    path = folder / bad.file_name
    path.write_bytes(bad.make())
    return path


@pytest.mark.parametrize("name", QUICK)
def test_a_bad_file_is_refused_in_words_or_read_for_what_it_is(name: str, tmp_path: Path) -> None:
    bad = QUICK[name]
    path = made(bad, tmp_path)
    if bad.kind:
        assert inspect(path).kind == bad.kind
        return
    with pytest.raises(BadFileError) as caught:
        inspect(path)
    assert caught.value.code == "bad-file"
    assert re.search(bad.says, caught.value.message)


async def test_nothing_of_a_refused_file_is_left_in_the_hub(tmp_path: Path) -> None:
    async with running_hub(tmp_path / "hub") as running:
        for bad in list(QUICK.values())[:6]:
            with pytest.raises(BadFileError):
                await running.hub.catalogue.publish(made(bad, tmp_path), PublishOptions())
        assert await running.hub.catalogue.listing() == []
        assert list((running.hub.settings.data_folder / "objects").rglob("*.*")) == []
