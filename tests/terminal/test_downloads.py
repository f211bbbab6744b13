"""Downloads on real files: from nothing, after a break, after damage, without room, with lies."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec import structs

from protocol import life, messages
from protocol.errors import TransferError
from protocol.limits import GIB
from terminal import session
from terminal.downloads import KEPT_PARTIAL_FILES, Download, tidy
from terminal.state import StateFolder
from tests.terminal.scripted import Thing, thing, thing_of

THING = thing(700_000)


@pytest.fixture
def folder(tmp_path: Path) -> StateFolder:
    return StateFolder(tmp_path / "state")


def begin(folder: StateFolder, what: Thing = THING, offer: messages.Offer | None = None) -> Download:
    download = Download(offer or what.offer(), folder)
    assert download.add_page(what.page(digest=download.offer.object))
    return download


def fetch(download: Download, what: Thing = THING, *, runs: tuple[messages.Run, ...] | None = None) -> int:
    """Send what is wanted, run by run; return how many chunks went."""
    wanted = download.next_want() if runs is None else runs
    for run in wanted:
        for index in range(run.first, run.first + run.count):
            download.write(what.frame(messages.Run(index, 1), download.offer.object))
    return sum(run.count for run in wanted)


def test_an_object_that_comes_whole_is_put_in_place(folder: StateFolder) -> None:
    download = begin(folder)
    download.prepare()
    assert fetch(download) == THING.manifest.count
    assert download.complete
    download.verify()
    assert download.file.read_bytes() == THING.content
    assert not download.partial.exists()


def test_after_a_break_only_the_rest_is_wanted(folder: StateFolder) -> None:
    first = begin(folder)
    first.prepare()
    [everything] = first.next_want()
    fetch(first, runs=(messages.Run(0, 5),))
    first.close()
    again = begin(folder)
    again.prepare()
    assert again.done_bytes == THING.manifest.raw_offsets[5]
    assert fetch(again) == everything.count - 5
    again.verify()
    assert again.file.read_bytes() == THING.content


def test_a_damaged_chunk_of_a_partial_file_is_wanted_again(folder: StateFolder) -> None:
    download = begin(folder)
    content = bytearray(THING.content)
    content[THING.manifest.raw_offsets[3] + 7] ^= 1
    download.partial.write_bytes(bytes(content) + b"more than there should be")
    download.prepare()
    wanted = download.next_want()
    assert wanted == (messages.Run(3, 1),)
    fetch(download, runs=wanted)
    download.verify()
    assert download.file.read_bytes() == THING.content


def test_chunks_an_older_file_has_are_not_wanted(folder: StateFolder, tmp_path: Path) -> None:
    newer = thing_of(THING.content[:400_000] + b"a small change" + THING.content[400_000:])
    older = tmp_path / "older"
    older.write_bytes(THING.content)
    download = begin(folder, newer)
    download.prepare([older])
    assert 0 < fetch(download, newer) <= 4
    download.verify()
    assert download.file.read_bytes() == newer.content


def test_chunks_of_every_kept_older_file_are_used(folder: StateFolder, tmp_path: Path) -> None:
    halves = [thing(400_000, seed=seed).content for seed in (21, 22)]
    newer = thing_of(halves[0] + halves[1])
    files = [tmp_path / "installed", tmp_path / "before"]
    for file, content in zip(files, halves, strict=True):
        file.write_bytes(content)
    from_one, from_both = begin(folder, newer), begin(StateFolder(tmp_path / "other"), newer)
    from_one.prepare(files[:1])
    from_both.prepare(files)
    assert from_both.done_bytes > from_one.done_bytes + 300_000
    fetch(from_both, newer)
    from_both.verify()
    assert from_both.file.read_bytes() == newer.content


def test_an_older_file_that_cannot_be_read_costs_its_chunks_and_nothing_else(folder: StateFolder) -> None:
    download = begin(folder)
    download.prepare((Path("/proc/self/mem"),))  # a file whose first byte is an EIO
    assert fetch(download) == THING.manifest.count
    download.verify()


def test_a_partial_file_that_cannot_be_read_is_fetched_anew(
    folder: StateFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_descriptor: int, _size: int, _offset: int) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    first = begin(folder)
    first.prepare()
    fetch(first)
    first.close()
    with monkeypatch.context() as broken:
        broken.setattr(os, "pread", fails)
        with pytest.raises(TransferError) as caught:
            begin(folder).prepare()
    assert caught.value.code == "disk"
    again = begin(folder)
    again.prepare()
    assert fetch(again) == THING.manifest.count


def test_chunks_damaged_on_the_disk_before_the_file_is_verified_are_asked_for_again_and_only_they(
    folder: StateFolder,
) -> None:
    download = begin(folder)
    download.prepare()
    fetch(download)
    with download.partial.open("r+b") as file:
        file.seek(100_000)
        file.write(b"damaged")
    with pytest.raises(TransferError, match="damaged on the disk") as caught:
        download.verify()
    assert caught.value.code == "disk"
    assert "disk" in life.PASSING & session.KEEPS_PARTIAL, "it is offered again, and what is right of it is kept"
    download.close()
    again = begin(folder)
    again.prepare()
    assert fetch(again) in (1, 2)
    again.verify()
    assert again.file.read_bytes() == THING.content


def test_a_file_the_disk_failed_to_keep_is_not_trusted_again(
    folder: StateFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    download = begin(folder)
    download.prepare()
    fetch(download)
    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(TransferError) as caught:
        download.verify()
    assert caught.value.code == "disk"
    assert not download.partial.exists() and not download.file.exists()


def test_an_installer_that_was_verified_before_is_not_fetched_again(folder: StateFolder) -> None:
    download = begin(folder)
    download.file.write_bytes(THING.content)
    download.prepare()
    assert download.complete
    download.verify()
    assert download.file.read_bytes() == THING.content


def test_a_manifest_that_lies_about_the_object_ends_with_nothing_in_place(folder: StateFolder) -> None:
    download = begin(folder, offer=THING.offer(digest=b"\x01" * 32))
    download.prepare()
    fetch(download)
    with pytest.raises(TransferError) as caught:
        download.verify()
    assert caught.value.code == "wrong-digest"
    download.close(discard=True)
    assert list(folder.installed.iterdir()) == []
    assert list(folder.downloads.iterdir()) == []


def test_a_page_that_is_not_the_offered_manifest_is_refused(folder: StateFolder) -> None:
    download = Download(THING.offer(), folder)
    with pytest.raises(TransferError, match="manifest"):
        download.add_page(structs.replace(thing(700_000, seed=2).page(), object=THING.digest))


def _flip(frame: messages.Chunks) -> messages.Chunks:
    return structs.replace(frame, data=bytes([frame.data[0] ^ 1]) + frame.data[1:])


def _shorten(frame: messages.Chunks) -> messages.Chunks:
    return structs.replace(frame, data=frame.data[:-1])


def _beyond(frame: messages.Chunks) -> messages.Chunks:
    return structs.replace(frame, first=THING.manifest.count + 5)


@pytest.mark.parametrize("harm", [_flip, _shorten, _beyond])
def test_a_wrong_frame_is_refused_and_never_written(
    folder: StateFolder, harm: Callable[[messages.Chunks], messages.Chunks]
) -> None:
    download = begin(folder)
    download.prepare()
    download.next_want()
    with pytest.raises(TransferError):
        download.write(harm(THING.frame(messages.Run(0, 1))))
    assert download.partial.stat().st_size == 0
    download.close()


def test_an_offer_larger_than_the_free_space_is_refused_before_anything_is_written(folder: StateFolder) -> None:
    with pytest.raises(TransferError, match="do not fit") as caught:
        Download(THING.offer(), folder, reserve_bytes=1_000_000 * GIB)
    assert caught.value.code == "no-space"
    assert list(folder.downloads.iterdir()) == []


def test_what_is_there_already_counts_towards_the_space_needed(
    folder: StateFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = list(os.statvfs(folder.path))
    disk[1], disk[4] = 4_096, 100  # 400 KiB free; the disk's real figure changes while others write to it
    monkeypatch.setattr(os, "statvfs", lambda _path: os.statvfs_result(disk))
    with pytest.raises(TransferError):
        Download(THING.offer(), folder, reserve_bytes=0)
    (folder.downloads / THING.digest.hex()).write_bytes(THING.content[:500_000])
    Download(THING.offer(), folder, reserve_bytes=0)


def test_a_disk_that_fills_up_on_the_way_is_no_space_too(folder: StateFolder) -> None:
    download = begin(folder)
    download.prepare()
    download.next_want()
    full = os.open("/dev/full", os.O_RDWR)
    os.dup2(full, download._descriptor)  # the kernel's own full disk
    os.close(full)
    with pytest.raises(TransferError, match="disk is full") as caught:
        download.write(THING.frame(messages.Run(0, 1)))
    assert caught.value.code == "no-space"
    download.close()


def test_an_abandoned_download_stops_reading(folder: StateFolder) -> None:
    download = begin(folder)
    download.partial.write_bytes(THING.content)
    download.abandon()
    with pytest.raises(TransferError) as caught:
        download.prepare()
    assert caught.value.code == "abandoned"
    download.close()
    assert download.partial.exists()


def test_a_link_in_place_of_the_partial_file_is_not_followed(folder: StateFolder, tmp_path: Path) -> None:
    download = begin(folder)
    victim = tmp_path / "victim"
    victim.write_text("keep me")
    download.partial.symlink_to(victim)
    with pytest.raises(TransferError):
        download.prepare()
    assert victim.read_text() == "keep me"


def test_only_the_newest_installer_of_each_program_is_kept(folder: StateFolder) -> None:
    for name in ("aa", "bb", "cc"):
        (folder.installed / name).write_text(name)
    tidy(folder, ["bb", "cc"])
    assert sorted(file.name for file in folder.installed.iterdir()) == ["bb", "cc"]


def test_partial_files_are_few_and_the_newest_stay(folder: StateFolder) -> None:
    for age in range(KEPT_PARTIAL_FILES + 3):
        file = folder.downloads / f"{age:02}"
        file.touch()
        os.utime(file, (file.stat().st_mtime - age, file.stat().st_mtime - age))
    tidy(folder, [])
    assert sorted(file.name for file in folder.downloads.iterdir()) == [f"{n:02}" for n in range(KEPT_PARTIAL_FILES)]
