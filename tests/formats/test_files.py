"""Real, built and stand-in installers: read in the worker, and each fact compared with an independent reader."""

import shutil
from pathlib import Path

import pytest

from hub.inspection import inspect_safely
from hub.inspectors import inspect
from hub.inspectors.sidecar import SUFFIX
from protocol.errors import BadFileError
from tests.formats import built, ledger, standins
from tests.formats.conftest import Build
from tests.formats.readers import READERS, disagreements, said_of
from tests.formats.samples import Sample, all_samples

pytestmark = pytest.mark.formats

SAMPLES = all_samples()
READ = [sample for sample in SAMPLES if sample.format in READERS]
REFUSED = [sample for sample in SAMPLES if sample.format == "refused"]


def sample_name(sample: Sample) -> str:
    return f"{sample.package}-{sample.name}"


def recipes_of(recipes: list[built.Recipe], *, read: bool) -> list[built.Recipe]:
    return [recipe for recipe in recipes if (recipe.format in READERS) == read]


async def check(file: Path, kind: str, column: str) -> None:
    """Read `file` in the worker and here, and compare with what the independent reader says."""
    facts = (await inspect_safely(file)).facts
    assert facts.kind == kind
    said = said_of(file, facts)
    wrong = disagreements(said, facts)
    ledger.count(kind, column)
    ledger.count(kind, "facts compared", len(said))
    ledger.count(kind, "disagreements", len(wrong))
    assert wrong == []


@pytest.mark.parametrize("sample", READ, ids=sample_name)
async def test_a_real_file_is_read_as_an_independent_reader_reads_it(sample: Sample) -> None:
    if not sample.is_here():
        pytest.skip("make samples brings it")
    assert (await inspect_safely(sample.path)).facts == inspect(sample.path)
    await check(sample.path, sample.format, "real files")


@pytest.mark.parametrize("sample", REFUSED, ids=sample_name)
async def test_a_real_file_that_does_not_say_what_it_installs_is_refused_and_served_by_the_sidecar_shown(
    sample: Sample, tmp_path: Path
) -> None:
    if not sample.is_here():
        pytest.skip("make samples brings it")
    file = Path(shutil.copy(sample.path, tmp_path))
    with pytest.raises(BadFileError, match=r"it does not say|it is a source package") as caught:
        await inspect_safely(file)
    assert caught.value.code == "bad-file"
    if "does not say" in caught.value.message:
        file.with_name(file.name + SUFFIX).write_text(caught.value.hint.partition("\n")[2])
        await check(file, "exe", "real files")


@pytest.mark.parametrize("recipe", recipes_of(built.RECIPES, read=True), ids=lambda recipe: recipe.name)
async def test_a_file_built_by_the_formats_own_tool_is_read_as_an_independent_reader_reads_it(
    recipe: built.Recipe, build: Build
) -> None:
    await check(build(recipe), recipe.format, "built files")


@pytest.mark.parametrize("recipe", recipes_of(standins.RECIPES, read=True), ids=lambda recipe: recipe.name)
async def test_a_stand_in_made_by_hand_is_read_as_an_independent_reader_reads_it(
    recipe: built.Recipe, build: Build
) -> None:
    await check(build(recipe), recipe.format, "stand-ins")


@pytest.mark.parametrize("recipe", recipes_of(standins.ALL, read=False), ids=lambda recipe: recipe.name)
async def test_a_file_without_a_header_reader_is_recognised_and_served_by_the_sidecar_its_refusal_shows(
    recipe: built.Recipe, build: Build
) -> None:
    file = build(recipe)
    sidecar = file.with_name(file.name + SUFFIX)
    sidecar.unlink(missing_ok=True)
    with pytest.raises(BadFileError, match="whose header is not read here") as caught:
        await inspect_safely(file)
    sidecar.write_text(caught.value.hint.partition("\n")[2])
    assert (await inspect_safely(file)).facts.kind == recipe.format
    ledger.count(recipe.format, "built files" if recipe in built.RECIPES else "stand-ins")
