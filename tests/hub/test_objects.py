"""Objects on disk: whole or not there, mended by publishing again, and never into the disk's reserve."""

import os
import random
import shutil
from pathlib import Path

import pytest

from hub.objects import Objects
from protocol import chunks
from protocol.errors import BadDataError, BadFileError, RefusedError
from protocol.messages import Run
from tests.hub.rooms import small_disk


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


def part_of(folder: Path, part: str) -> Path:
    return next(folder.rglob(f"*.{part}"))


def flip_bit(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    with path.open("r+b") as stream:  # the same file, as a disk would change it, not a new one
        stream.write(data)


def test_a_bit_flipped_anywhere_in_a_pack_is_found_set_aside_and_mended_by_publishing_again(tmp_path: Path) -> None:
    folder = tmp_path / "objects"
    source = file_of(tmp_path)
    objects = Objects(folder, reserve_bytes=0)
    digest = objects.add(source).digest
    chooser = random.Random(7)
    for _ in range(50):
        flip_bit(part_of(folder, "pack"), chooser.randrange(part_of(folder, "pack").stat().st_size * 8))
        with pytest.raises(BadDataError) as caught:
            contents(objects, digest)
        assert caught.value.code == "damaged-object"
        assert files_in(folder) == [".damaged", ".manifest"], "set aside, so that nobody opens it again"
        with pytest.raises(BadDataError):
            objects.open(digest)
        objects.add(source)
        assert contents(objects, digest) == source.read_bytes()
        assert files_in(folder) == [".manifest", ".pack"], "what was set aside is no longer needed"


def test_a_bit_that_flips_after_its_chunk_was_served_is_found_for_all_who_share_the_pack(tmp_path: Path) -> None:
    objects = Objects(tmp_path / "objects", reserve_bytes=0)
    pack = objects.open(objects.add(file_of(tmp_path)).digest)
    pack.read(Run(0, pack.manifest.count))
    flip_bit(part_of(tmp_path, "pack"), 8 * pack.manifest.stored_offsets[-1] - 3)
    with pytest.raises(BadDataError, match="changed since it was read"):
        pack.read(Run(0, pack.manifest.count))
    with pytest.raises(BadDataError):
        pack.read(Run(0, 1))  # the first chunk is sound, but what else is wrong with this disk?


def test_a_bit_flipped_anywhere_in_a_manifest_is_found_before_it_is_sent(tmp_path: Path) -> None:
    folder = tmp_path / "objects"
    source = file_of(tmp_path)
    objects = Objects(folder, reserve_bytes=0)
    digest = objects.add(source).digest
    for bit in range(0, part_of(folder, "manifest").stat().st_size * 8, 97):
        flip_bit(part_of(folder, "manifest"), bit)
        with pytest.raises(BadDataError, match="manifest"):
            objects.open(digest)
        objects.add(source)
    assert contents(objects, digest) == source.read_bytes()


def test_a_manifest_of_another_object_is_not_taken_for_this_ones(tmp_path: Path) -> None:
    folder = tmp_path / "objects"
    objects = Objects(folder, reserve_bytes=0)
    digest = objects.add(file_of(tmp_path)).digest
    path, data = part_of(folder, "manifest"), part_of(folder, "manifest").read_bytes()
    other = objects.add(file_of(tmp_path, 100)).digest
    (folder / other.hex()[:2] / f"{other.hex()}.manifest").write_bytes(data)
    with pytest.raises(BadDataError, match="manifest"):
        objects.open(other)
    assert objects.open(digest).manifest.data == data[:-32]
    assert path.exists()


def test_an_object_of_an_older_hub_without_a_seal_opens_and_is_sealed_when_it_was_read_whole(tmp_path: Path) -> None:
    folder = tmp_path / "objects"
    source = file_of(tmp_path)
    objects = Objects(folder, reserve_bytes=0)
    digest = objects.add(source).digest
    sealed = part_of(folder, "manifest").read_bytes()
    part_of(folder, "manifest").write_bytes(sealed[:-32])
    assert contents(objects, digest) == source.read_bytes()
    assert b"".join(objects.read_whole(digest)) == part_of(folder, "pack").read_bytes()
    assert part_of(folder, "manifest").read_bytes() == sealed


def test_a_pack_mended_while_its_damaged_file_was_still_open_is_not_set_aside(tmp_path: Path) -> None:
    folder = tmp_path / "objects"
    source = file_of(tmp_path)
    objects = Objects(folder, reserve_bytes=0)
    digest = objects.add(source).digest
    older = objects.open(digest)
    flip_bit(part_of(folder, "pack"), 5)
    objects.add(source)
    with pytest.raises(BadDataError):
        older.read(Run(0, 1))
    assert contents(objects, digest) == source.read_bytes()


def test_reading_whole_finds_chunks_that_fit_a_manifest_that_is_wrong(tmp_path: Path) -> None:
    folder = tmp_path / "objects"
    objects = Objects(folder, reserve_bytes=0)
    digest = objects.add(file_of(tmp_path)).digest
    other = Objects(tmp_path / "other", reserve_bytes=0)
    other.add(file_of(tmp_path, 600))
    for part, cut_bytes in (("pack", None), ("manifest", -32)):  # as an older hub would have written it, without a seal
        part_of(folder, part).write_bytes(part_of(tmp_path / "other", part).read_bytes()[:cut_bytes])
    with pytest.raises(BadDataError, match="as a whole"):
        list(objects.read_whole(digest))
    assert files_in(folder) == [".damaged", ".manifest"]


def test_a_store_that_has_its_fill_refuses_more(tmp_path: Path) -> None:
    objects = Objects(tmp_path / "objects", reserve_bytes=0, store_bytes=350_000)
    objects.add(file_of(tmp_path))
    with pytest.raises(RefusedError, match="they may") as caught:
        objects.add(file_of(tmp_path, 349_999))
    assert caught.value.code == "store-full"


def test_what_the_objects_take_is_right_after_adding_damage_mending_and_a_restart(tmp_path: Path) -> None:
    folder = tmp_path / "objects"
    source = file_of(tmp_path)

    def on_disk() -> int:
        return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())

    for run in (1, 2):  # what the second run finds there was left by the first
        objects = Objects(folder, reserve_bytes=0)
        assert objects.taken_bytes() == on_disk()
        digest = objects.add(source).digest
        assert objects.taken_bytes() == on_disk() > 0
        flip_bit(next(folder.rglob(f"{digest.hex()}.pack")), 100)
        with pytest.raises(BadDataError):
            list(objects.read_whole(digest))
        assert ".damaged" in files_in(folder)
        assert objects.taken_bytes() == on_disk()
        objects.add(source)
        assert ".damaged" not in files_in(folder)
        assert objects.taken_bytes() == on_disk()
        objects.add(file_of(tmp_path, 50_000 + run))
        assert objects.taken_bytes() == on_disk()


def test_the_folder_is_counted_once_and_not_again_at_each_publish(tmp_path: Path) -> None:
    objects = Objects(tmp_path / "objects", reserve_bytes=0, store_bytes=1_000_000)
    digest = objects.add(file_of(tmp_path)).digest
    (tmp_path / "objects" / digest.hex()[:2] / "put-here-by-hand").write_bytes(bytes(1_000_000))
    objects.add(file_of(tmp_path, 40_001))
    with pytest.raises(RefusedError, match="they may"):
        Objects(tmp_path / "objects", reserve_bytes=0, store_bytes=1_000_000).add(file_of(tmp_path, 40_002))


def test_a_file_that_is_not_the_one_that_was_inspected_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    objects = Objects(tmp_path / "objects", reserve_bytes=0)
    with pytest.raises(BadFileError, match="changed while it was read"):
        objects.add(file_of(tmp_path), bytes(32))
    assert files_in(tmp_path / "objects") == []


def test_rows_are_refused_only_when_less_is_free_than_is_kept_for_them(tmp_path: Path) -> None:
    Objects(tmp_path / "objects", reserve_bytes=0).check_room_for_rows()
    Objects(tmp_path / "objects", reserve_bytes=2 * shutil.disk_usage(tmp_path).free).check_room_for_rows()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_on_a_full_disk_rows_and_files_are_refused_in_words_and_nothing_half_is_left(tmp_path: Path) -> None:
    source = file_of(tmp_path, 2_000_000)
    source.write_bytes(os.urandom(2_000_000))
    with small_disk(tmp_path / "disk", 1_000_000) as disk:
        objects = Objects(disk / "objects", reserve_bytes=0)
        with pytest.raises(RefusedError, match="free of which") as caught:
            objects.add(source)
        with pytest.raises(RefusedError, match="kept for what it owes") as rows:
            Objects(disk / "objects", reserve_bytes=1_000_000_000).check_room_for_rows()
        small = file_of(tmp_path, 256)
        (disk / "filler").write_bytes(bytes(shutil.disk_usage(disk).free))
        with pytest.raises(RefusedError) as full:
            objects.add(small)
        assert {caught.value.code, rows.value.code, full.value.code} == {"disk-full"}
        assert files_in(disk / "objects") == []
