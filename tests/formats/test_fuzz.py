"""Damaged installers of every format: nothing but BadFileError gets out, and nothing takes 2 s or 512 MiB.

CASES says how many mutations of each format are tried (4,000 if unset), SEED which. One in fifty is read in the worker
as well, under its real limits, and has to come out the same there.
"""

import asyncio
import contextlib
import io
import os
import random
import resource
import time
from collections.abc import Iterable
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hub.inspection import inspect_safely
from hub.inspectors import Inspected, read_installer
from protocol.errors import BadFileError
from tests.formats import ledger, standins
from tests.formats.conftest import Build
from tests.formats.mutations import mutate
from tests.formats.readers import READERS
from tests.formats.samples import all_samples

pytestmark = [pytest.mark.formats, pytest.mark.timeout(3600)]

CASES = int(os.environ.get("CASES", "4000"))
SEED = os.environ.get("SEED", "1")
IN_THE_WORKER = 50
LARGEST_BYTES = 4 << 20  # larger files say nothing more in their headers
SECONDS = 2.0
MEMORY_BYTES = 512 << 20
KINDS = (*READERS, "other")

Corpus = dict[str, bytes]


def corpus_of(kind: str, build: Build) -> Corpus:
    """Sound files of a kind by name: real ones that are here, built ones, stand-ins."""
    kinds = {"aab", "appimage", "flatpak", "pkg"} if kind == "other" else {kind}
    files = [sample.path for sample in all_samples() if sample.format in kinds and sample.is_here()]
    files += [build(recipe) for recipe in standins.ALL if recipe.format in kinds and not recipe.lacks()]
    found = {path.name: path.read_bytes() for path in files if path.stat().st_size <= LARGEST_BYTES}
    if not found:
        pytest.skip(f"there is no sound file of the kind {kind} to damage")
    return found


def outcome(name: str, content: bytes) -> Inspected | BadFileError:
    """What becomes of one file here; whatever else is raised is a fault, and so is one that takes too long."""
    begun = time.process_time()
    try:
        return read_installer(io.BytesIO(content), name)
    except BadFileError as error:
        return error
    finally:
        taken = time.process_time() - begun
        ledger.note_worst("processor seconds of one file", taken)
        assert taken < SECONDS


def shown(result: Inspected | BadFileError) -> object:
    return (result.code, result.message) if isinstance(result, BadFileError) else msgspec.to_builtins(result)


async def compare_in_the_worker(kind: str, folder: Path, cases: Iterable[tuple[str, bytes]]) -> None:
    """Read each in the worker, two at a time; it has to come to the same end as here."""

    async def one(name: str, content: bytes, index: int) -> None:
        file = folder / str(index)
        file.write_bytes(content)
        result: Inspected | BadFileError
        try:
            result = await inspect_safely(file, name)
        except BadFileError as error:
            result = error
        file.unlink()
        assert shown(result) == shown(outcome(name, content))
        ledger.count(kind, "in the worker")

    await asyncio.gather(*(one(name, content, index) for index, (name, content) in enumerate(cases)))


def forget_peak() -> None:
    """Have Linux measure the peak anew; elsewhere it is that of the whole run, which can only hide a rise."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int:
    status = Path("/proc/self/status")
    if status.exists():
        return int(status.read_text().partition("VmHWM:")[2].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@pytest.mark.parametrize("kind", KINDS)
async def test_whatever_is_damaged_only_a_refusal_gets_out_and_soon(kind: str, build: Build, tmp_path: Path) -> None:
    corpus, chance = corpus_of(kind, build), random.Random(f"{SEED} {kind}")
    names, contents = list(corpus), list(corpus.values())
    forget_peak()
    before, kept = peak_bytes(), []
    for number in range(CASES):
        name = names[number % len(names)]
        damaged = mutate(chance, corpus[name], contents)
        outcome(name, damaged)
        if number % IN_THE_WORKER == 0:
            kept.append((name, damaged))
    ledger.count(kind, "fuzz cases", CASES)
    ledger.note_worst("MiB of memory above the start", (peak_bytes() - before) / (1 << 20))
    assert peak_bytes() - before < MEMORY_BYTES
    await compare_in_the_worker(kind, tmp_path, kept)


def cuts(size: int, chance: random.Random) -> list[int]:
    """Every 64th byte of a small file; of a large one as many, all near its ends and the rest anywhere."""
    every = range(0, size, 64)
    if len(every) <= 1024:
        return list(every)
    return sorted({*every[:128], *every[-128:], *chance.sample(every, 256)})


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_cut_off_at_every_64th_byte_is_refused_or_gives_the_facts_of_the_whole(kind: str, build: Build) -> None:
    chance = random.Random(SEED)
    for name, content in corpus_of(kind, build).items():
        whole = shown(outcome(name, content))
        for size in cuts(len(content), chance):
            result = outcome(name, content[:size])
            assert isinstance(result, BadFileError) or shown(result) == whole, f"{name} cut off at {size}"
            ledger.count(kind, "fuzz cases")


@pytest.mark.parametrize("kind", KINDS)
def test_edits_that_hypothesis_thinks_up_are_refused_or_read(kind: str, build: Build) -> None:
    corpus = corpus_of(kind, build)
    edits = st.lists(st.tuples(st.integers(0, 1 << 16), st.binary(min_size=1, max_size=8)), min_size=1, max_size=6)

    @settings(max_examples=max(1, CASES // 8), deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(st.sampled_from(sorted(corpus)), edits, st.booleans())
    def edited(name: str, changes: list[tuple[int, bytes]], from_the_end: bool) -> None:
        content = bytearray(corpus[name])
        for place, put in changes:
            at = max(0, len(content) - 1 - place) if from_the_end else min(place, len(content))
            content[at : at + len(put)] = put
        outcome(name, bytes(content))
        ledger.count(kind, "fuzz cases")

    edited()
