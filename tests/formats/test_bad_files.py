"""Hostile and broken installers, the large ones too, read in the worker under its limits."""

import re
import time
from pathlib import Path

import pytest

from hub.inspection import inspect_safely
from hub.inspectors import inspect
from protocol.errors import BadFileError
from tests.formats import ledger
from tests.formats.badfiles import LARGE, QUICK
from tests.formats.built import APK_TOOLS, CYCLIC, Recipe, run, unsigned_apk
from tests.formats.conftest import Build

pytestmark = pytest.mark.formats

ALL = QUICK | LARGE


@pytest.mark.parametrize("name", ALL)
async def test_a_bad_file_is_refused_in_words_or_read_for_what_it_is_within_the_limits(
    name: str, tmp_path: Path
) -> None:
    bad = ALL[name]
    path = tmp_path / bad.file_name
    path.write_bytes(bad.make())
    begun = time.perf_counter()
    try:
        found = await inspect_safely(path)
    except BadFileError as error:
        assert error.code == "bad-file"
        assert bad.says, error.message
        assert re.search(bad.says, error.message)
    else:
        assert found.facts.kind == bad.kind
    ledger.note_worst("seconds of one bad file, with the start of its reader", time.perf_counter() - begun)


async def test_a_label_that_refers_to_itself_in_a_circle_is_no_title_and_no_hang(build: Build) -> None:
    """aapt2 links it, aapt cannot read it, Android shows the package's name."""
    file = build(Recipe(name="cyclic.apk", format="apk", tools=APK_TOOLS, make=unsigned_apk(CYCLIC)))
    with pytest.raises(AssertionError, match="aapt"):
        run("aapt", "dump", "badging", file)
    facts = (await inspect_safely(file)).facts
    assert facts == inspect(file)
    assert facts.title == facts.package_name == "org.example.cyclic_label"
