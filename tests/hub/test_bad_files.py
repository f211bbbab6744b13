"""Hostile and broken installers: a clear refusal or the right facts, and nothing half-published."""

import io
import random
import re
import time
from pathlib import Path

import pytest

from hub.catalogue import PublishOptions
from hub.inspectors import inspect, read_installer
from protocol.errors import BadFileError
from tests.formats.badfiles import APK, DEB, MSIX, PLIST_IPA, QUICK, WHEEL, BadFile, a_zip, pe_with_resource
from tests.formats.mutations import mutate
from tests.harness.hubs import running_hub

SOUND = {path.name: path.read_bytes() for path in (APK, DEB, WHEEL)}
SOUND |= {"a.msix": a_zip(MSIX), "a.ipa": PLIST_IPA, "a.exe": pe_with_resource(512)}


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


@pytest.mark.parametrize("name", SOUND)
def test_damage_of_any_kind_is_the_facts_or_a_refusal_and_takes_no_time(name: str) -> None:
    chance, contents = random.Random(name), list(SOUND.values())
    refused = 0
    for _ in range(60):
        begun = time.process_time()
        try:
            read_installer(io.BytesIO(mutate(chance, SOUND[name], contents)), name)
        except BadFileError:
            refused += 1
        assert time.process_time() - begun < 2.0
    assert refused > 0


async def test_nothing_of_a_refused_file_is_left_in_the_hub(tmp_path: Path) -> None:
    async with running_hub(tmp_path / "hub") as running:
        for bad in list(QUICK.values())[:6]:
            with pytest.raises(BadFileError):
                await running.hub.catalogue.publish(made(bad, tmp_path), PublishOptions())
        assert await running.hub.catalogue.listing() == []
        assert list((running.hub.settings.data_folder / "objects").rglob("*.*")) == []
