"""Objects on disk: whole or not there, mended by publishing again, and never into the disk's reserve."""

import os
import shutil
from pathlib import Path

import pytest

from hub.objects import Objects
from protocol import chunks
from protocol.errors import BadDataError, BadFileError, RefusedError
from protocol.messages import Run


def file_of(folder: Path, size: int = 300_000) -> Path:
    path = folder / "installer"
    path.write_bytes(bytes(range(256)) * (size // 256) + os.urandom(size % 256))
    return path


def files_in(folder: Path) -> list[str]:
    return sorted(path.suffix or path.name for path in folder.rglob("*") if path.is_file())


def contents(objects: Objects, digest: bytes) -> bytes:
    pack = objects.open(digest)
    entries = [(pack.manifest[index], pack.read(Run(index, 1))) for index in range(pack.manifest.count)]
    return b"".join(chunks.restore(stored, entry) for entry, stored in entries)


def test_what_was_stored_comes_back_chunk_by_chunk_and_is_stored_once(tmp_path: Path) -> None:
    objects = Objects(tmp_path / "objects", reserve_bytes=0)
    source = file_of(tmp_path)
    stored = objects.add(source)
    assert objects.add(source) == stored
    assert contents(objects, stored.digest) == source.read_bytes()
    assert files_in(tmp_path / "objects") == [".manifest", ".pack"]


def test_all_who_send_an_object_share_one_open_pack(tmp_path: Path) -> None:
    objects = Objects(tmp_path / "objects", reserve_bytes=0)
    digest = objects.add(file_of(tmp_path)).digest
    pack = objects.open(digest)
    assert objects.open(digest) is pack


def test_a_crash_between_pack_and_manifest_leaves_no_object_and_publishing_again_mends_it(tmp_path: Path) -> None:
    folder = tmp_path / "objects"
    source = file_of(tmp_path)
    digest = Objects(folder, reserve_bytes=0).add(source).digest
    next(folder.rglob("*.manifest")).unlink()
    (folder / ".incoming-left").write_bytes(b"half")
    objects = Objects(folder, reserve_bytes=0)
    assert files_in(folder) == [".pack"], "what was only begun is gone at the next start"
    with pytest.raises(BadDataError, match="cannot be read"):
        objects.open(digest)
    objects.add(source)
    assert contents(objects, digest) == source.read_bytes()


@pytest.mark.parametrize("part", ["pack", "manifest"])
def test_a_truncated_file_is_found_when_it_is_opened_and_publishing_again_mends_it(part: str, tmp_path: Path) -> None:
    folder = tmp_path / "objects"
    source = file_of(tmp_path)
    objects = Objects(folder, reserve_bytes=0)
    digest = objects.add(source).digest
    os.truncate(next(folder.rglob(f"*.{part}")), 50)
    with pytest.raises(BadDataError) as caught:
        objects.open(digest)
    assert caught.value.code == "damaged-object"
    objects.add(source)
    assert contents(objects, digest) == source.read_bytes()


def test_a_pack_that_is_truncated_while_it_is_open_is_damaged_data_not_short_data(tmp_path: Path) -> None:
    objects = Objects(tmp_path / "objects", reserve_bytes=0)
    pack = objects.open(objects.add(file_of(tmp_path)).digest)
    os.truncate(next((tmp_path / "objects").rglob("*.pack")), 0)
    with pytest.raises(BadDataError, match="truncated"):
        pack.read(Run(0, 1))


def test_a_file_that_would_use_the_disks_reserve_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    source = file_of(tmp_path)
    free = shutil.disk_usage(tmp_path).free
    objects = Objects(tmp_path / "objects", reserve_bytes=2 * free)
    with pytest.raises(RefusedError, match="are kept") as caught:
        objects.add(source)
    assert caught.value.code == "disk-full"
    assert files_in(tmp_path / "objects") == []


def test_an_empty_and_a_missing_file_are_refused_in_words(tmp_path: Path) -> None:
    objects = Objects(tmp_path / "objects", reserve_bytes=0)
    (tmp_path / "empty").touch()
    with pytest.raises(BadFileError, match="is empty"):
        objects.add(tmp_path / "empty")
    with pytest.raises(BadFileError, match="No such file"):
        objects.add(tmp_path / "missing")
