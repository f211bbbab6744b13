"""Zip archives that lie: in their sizes, in their names, in what lies where. Each is made by hand from a sound one."""

import io
import shutil
import struct
import zipfile
from pathlib import Path

import pytest

from hub.inspectors import apk, zips
from protocol.errors import BadFileError
from tests.hub.inspectors.reading import DEMO, Save, a_zip, refused

APK = DEMO / "hello-lockstep-1.0.0.apk"
ENTRY, END = b"PK\x01\x02", b"PK\x05\x06"
ENTRY_SIZES_AT, ENTRY_OFFSET_AT = 20, 42


def opened(content: bytes) -> zips.Archive:
    return zips.Archive.open(io.BytesIO(content), len(content))


def why_refused(content: bytes, name: str = "") -> str:
    """Return why an archive cannot be listed, or its member `name` not be read."""
    with pytest.raises(BadFileError) as caught:
        opened(content).read(name, 1 << 20)
    return caught.value.message


def patched(content: bytes, signature: bytes, offset: int, form: str, value: int) -> bytes:
    """Overwrite a field `offset` bytes into the last record that begins with `signature`."""
    changed = bytearray(content)
    struct.pack_into(form, changed, content.rindex(signature) + offset, value)
    return bytes(changed)


def as_zip64(content: bytes, offset: int | None = None) -> bytes:
    """Return an archive whose end record leaves every number to a zip64 one, as the tools for MSIX write it."""
    at = content.rindex(END)
    *_, total, length, start, _ = struct.unpack_from("<4s4H2LH", content, at)
    numbers = (0, 0, total, total, length, start if offset is None else offset)
    record = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, *numbers)
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, at, 1)
    return content[:at] + record + locator + struct.pack("<4s4H2LH", END, *[0xFFFF] * 4, *[0xFFFFFFFF] * 2, 0)


def renamed(content: bytes, old: bytes, new: bytes) -> bytes:
    assert len(old) == len(new)
    return content.replace(old, new)


# --- sizes ----------------------------------------------------------------------------------------------------------
def test_a_manifest_that_declares_more_than_the_limit_is_refused(save: Save) -> None:
    bomb = a_zip({apk.MANIFEST: bytes(apk.MANIFEST_BYTES + 1)})
    assert "claims" in refused(save(bomb)).message


def test_a_manifest_that_declares_ten_gigabytes_is_refused(save: Save) -> None:
    whole = a_zip({apk.MANIFEST: b"x"})
    at = whole.rindex(ENTRY) + 46 + len(apk.MANIFEST)
    extra = struct.pack("<HHQ", 1, 8, 10 << 30)
    huge = patched(patched(whole, ENTRY, 24, "<L", 0xFFFFFFFF), ENTRY, 30, "<H", len(extra))
    huge = huge[:at] + extra + huge[at:]
    huge = patched(huge, END, 12, "<L", 46 + len(apk.MANIFEST) + len(extra))
    assert f"claims {10 << 30} bytes" in refused(save(huge)).message


def test_a_manifest_that_unpacks_to_more_than_it_declares_is_refused(save: Save) -> None:
    bomb = a_zip({apk.MANIFEST: bytes(2 * apk.MANIFEST_BYTES)})
    assert "unpacks to more than" in refused(save(patched(bomb, ENTRY, 24, "<L", 100))).message
    short = a_zip({apk.MANIFEST: bytes(1000)})
    assert "does not match" in refused(save(patched(short, ENTRY, 24, "<L", 100))).message


def test_a_member_whose_checksum_differs_is_refused() -> None:
    assert "does not match" in why_refused(patched(a_zip({"a": b"abc"}), ENTRY, 16, "<L", 1), "a")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_member_packed_by_a_method_installers_do_not_use_is_refused(method: int, save: Save) -> None:
    assert "only deflate" in refused(save(a_zip({apk.MANIFEST: b"x"}, method))).message


def test_an_encrypted_member_is_refused() -> None:
    assert "encrypted" in why_refused(patched(a_zip({"a": b"x"}), ENTRY, 8, "<H", 1), "a")


def test_a_member_whose_packed_bytes_make_no_sense_is_refused() -> None:
    content = bytearray(a_zip({"a": b"x" * 100}))
    content[31] = 0xFF  # the first byte behind the local header and the name of one letter
    assert "cannot be unpacked" in why_refused(bytes(content), "a")


def test_the_start_of_a_member_costs_no_more_than_the_start() -> None:
    archive = opened(a_zip({"a": bytes(10_000_000), "b": b"short"}))
    assert archive.read_start("a", 1000) == bytes(1000)
    assert archive.read_start("b", 1000) == b"short"


# --- the directory --------------------------------------------------------------------------------------------------
@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
def test_a_zip_archive_that_names_one_file_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "twice.apk"
    shutil.copy(APK, path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(apk.MANIFEST, b"another")
    assert "twice" in refused(path).message


def test_two_files_over_the_same_bytes_are_refused() -> None:
    whole = a_zip({"a": b"x" * 10, "b": b"y" * 10})
    assert "over each other" in why_refused(patched(whole, ENTRY, ENTRY_OFFSET_AT, "<L", 0))
    longer = patched(a_zip({"b": b"y" * 10}), ENTRY, ENTRY_SIZES_AT, "<L", 1000)
    assert "over each other" in why_refused(longer)


def test_a_zip_directory_with_more_entries_than_the_limit_is_refused(save: Save) -> None:
    entry = struct.pack("<4s6H3L5H2L", ENTRY, *[0] * 6, *[0] * 3, 1, *[0] * 4, 0, 0) + b"x"
    directory = entry * (zips.DIRECTORY_ENTRIES + 1)
    end = struct.pack("<4s4H2LH", END, 0, 0, 1, 1, len(directory), 4, 0)
    assert "more than 65535" in refused(save(zips.LOCAL_SIGNATURE + directory + end)).message


def test_a_zip_directory_larger_than_the_limit_is_refused_unread(save: Save) -> None:
    length = zips.DIRECTORY_BYTES + 1
    end = struct.pack("<4s4H2LH", END, 0, 0, 1, 1, length, 4, 0)
    assert f"{length} bytes" in refused(save(zips.LOCAL_SIGNATURE + bytes(length) + end)).message


def test_an_end_record_that_counts_other_files_than_there_are_is_refused() -> None:
    whole = a_zip({"a": b"", "b": b""})
    assert "promises 3" in why_refused(patched(patched(whole, END, 8, "<H", 3), END, 10, "<H", 3))
    assert "split" in why_refused(patched(whole, END, 8, "<H", 1))
    assert "split" in why_refused(patched(whole, END, 4, "<H", 1))


def test_bytes_behind_the_end_record_or_before_the_archive_are_refused() -> None:
    whole = a_zip({"a": b""})
    assert "does not end" in why_refused(whole + b"more")
    assert "not where" in why_refused(b"before" + whole)


def test_a_file_with_another_name_in_its_own_header_is_refused() -> None:
    whole = a_zip({"aaaa": b"x", "bbbb": b"y"})
    at = whole.index(b"aaaa")
    assert "another name" in why_refused(whole[:at] + b"cccc" + whole[at + 4 :], "aaaa")


# --- zip64 ----------------------------------------------------------------------------------------------------------
def test_a_zip64_end_record_is_read() -> None:
    archive = opened(as_zip64(a_zip({"a": b"one", "b": b"two"})))
    assert archive.is_zip64
    assert (archive.read("a", 10), archive.read("b", 10)) == (b"one", b"two")


def test_what_python_writes_as_zip64_is_read() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive, archive.open("a", "w", force_zip64=True) as member:
        member.write(b"content")
    assert opened(buffer.getvalue()).read("a", 10) == b"content"


def test_a_zip64_end_record_that_contradicts_the_other_or_lies_elsewhere_is_refused() -> None:
    whole = as_zip64(a_zip({"a": b"x"}))
    assert "contradict" in why_refused(patched(whole, END, 10, "<H", 7))
    assert "not where" in why_refused(as_zip64(a_zip({"a": b"x"}), offset=3))
    assert "locator" in why_refused(patched(whole, b"PK\x06\x07", 8, "<Q", 1 << 40))
    assert "locator" in why_refused(patched(whole, b"PK\x06\x06", 4, "<Q", 45))


# --- names ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "name", ["../evil", "lib/../../x", "lib/..", "/etc/cron", "C:/run.me", "c:run.me", "a\\b.exe", "..", "x\0.png"]
)
@pytest.mark.parametrize(
    "member", [apk.MANIFEST, "AppxManifest.xml", "Payload/A.app/Info.plist", "a-1.dist-info/WHEEL"]
)
def test_a_path_that_leads_out_of_the_folder_it_is_unpacked_to_is_refused(name: str, member: str, save: Save) -> None:
    placeholder = "q" * len(name)
    content = renamed(a_zip({member: b"", placeholder: b""}), placeholder.encode(), name.encode())
    error = refused(save(content))
    assert "lead out" in error.message
    assert "relative paths" in error.hint


@pytest.mark.parametrize("name", ["a..b", "..a/b", "a/b../c", "dir/", "Grüße/你好.png", "ab:c", "a b+(1)", ".hidden"])
def test_an_unusual_name_that_stays_inside_is_read(name: str) -> None:
    assert list(opened(a_zip({name: b""})).members) == [name]


def test_a_name_that_is_no_text_is_refused() -> None:
    assert "no text" in why_refused(renamed(a_zip({"é": b""}), "é".encode(), b"\xff\xfe"))


# --- archives inside ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_an_archive_inside_an_archive_is_read_stored_or_packed(method: int) -> None:
    inner = a_zip({"a": b"one", "b": b"two"})
    nested = opened(a_zip({"first": b"x" * 50, "inner.zip": inner, "last": b"y" * 50}, method)).nested(
        "inner.zip", 1000
    )
    assert {name: nested.read(name, 10) for name in nested.members} == {"a": b"one", "b": b"two"}


def test_a_packed_archive_inside_larger_than_the_limit_is_refused_and_a_stored_one_cannot_reach_outside() -> None:
    inner = a_zip({"a": b"one"})
    with pytest.raises(BadFileError, match="claims"):
        opened(a_zip({"inner.zip": inner})).nested("inner.zip", 10)
    reaching = patched(inner, ENTRY, ENTRY_OFFSET_AT, "<L", 1 << 20)
    with pytest.raises(BadFileError, match="over each other"):
        opened(a_zip({"inner.zip": reaching}, zipfile.ZIP_STORED)).nested("inner.zip", 10)
