"""The sidecar, and the files it serves: made by their own tools where these are there, otherwise stand-ins by hand."""

import gzip
import io
import os
import shutil
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hub.inspectors import inspect, names, read_installer, sidecar
from hub.inspectors.sidecar import SIDECAR_BYTES, Sidecar, facts_of, parse
from hub.inspectors.source import Source
from hub.matching import Selector
from hub.records import InstallerFacts
from protocol.errors import BadFileError, ConflictError, UsageError
from protocol.limits import MIB
from tests.hub.inspectors.reading import DEMO, a_zip, refused, run

DEB = DEMO / "hello-lockstep_1.0.0-1_all.deb"
WHOLE = """
# Everything a sidecar can say.
program = "weixin"
title = "WeChat 微信"
version = "6.0"
kind = "IPA"
package = "com.tencent.xin"
channel = "beta"
os = "iOS 7"
architecture = ["aarch64", "armv7", "arm64"]
model = "iPhone 5S"
exclude_model = ["iPhone 3*", "iPad*"]
form_factor = "Phone"
resolution = "640x1136"
screen_inches = "4-5.5"
density = 326
api_level = "3-"
feature = ["camera"]
without_feature = "stylus"
"""


def said(text: str) -> Sidecar:
    return parse(text.encode(), "notes.run.lockstep.toml")


def fields(text: str) -> dict[str, Any]:
    return said(text).given


def wrong(content: str | bytes) -> BadFileError:
    with pytest.raises(BadFileError) as caught:
        parse(content.encode() if isinstance(content, str) else content, "notes.run.lockstep.toml")
    assert caught.value.message.startswith("notes.run.lockstep.toml: ")
    assert caught.value.message.endswith(".")
    assert len(caught.value.message) < 400
    return caught.value


# --- what it says ---------------------------------------------------------------------------------------------------
def test_a_sidecar_may_say_everything_of_a_file() -> None:
    assert said(WHOLE) == Sidecar(
        program="weixin",
        title="WeChat 微信",
        version="6.0",
        kind="ipa",
        package="com.tencent.xin",
        channel="beta",
        given={
            "os_types": ["ios"],
            "os_version_minimum": "7",
            "os_version_maximum": "7.*",
            "architectures": ["arm64", "armv7"],
            "models": ["iPhone 5S"],
            "models_excluded": ["iPhone 3*", "iPad*"],
            "form_factors": ["phone"],
            "resolution_minimum": [640, 1136],
            "resolution_maximum": [640, 1136],
            "screen_inches_minimum": 4.0,
            "screen_inches_maximum": 5.5,
            "density_dpi_minimum": 326,
            "density_dpi_maximum": 326,
            "api_level_minimum": 3,
            "features_required": ["camera"],
            "features_forbidden": ["stylus"],
        },
    )


def test_an_empty_sidecar_says_nothing() -> None:
    assert parse(b"\xef\xbb\xbf# only a comment, with a byte order mark\r\n", "x") == Sidecar()


@pytest.mark.parametrize(
    ("line", "low", "high"),
    [
        ('os = "ios 7"', "7", "7.*"),
        ('os = "IOS7"', "7", "7.*"),
        ('os = "android 4.0.1"', "4.0.1", "4.*"),
        ('os = ["macos 10.15"]', "10.15", "10.*"),
        ('os_version = "12"', "12", "12.*"),
        ('os_version = "12-14"', "12", "14"),
        ('os_version = "12 - 14.*"', "12", "14.*"),
        ('os_version = "12-"', "12", None),
        ('os_version = "-14"', None, "14"),
    ],
)
def test_a_bare_os_version_is_a_minimum_within_its_major(line: str, low: str | None, high: str | None) -> None:
    given = fields(line)
    assert (given.get("os_version_minimum"), given.get("os_version_maximum")) == (low, high)


def test_several_systems_are_a_list_without_versions() -> None:
    assert fields('os = ["linux", "macOS", "Linux"]') == {"os_types": ["linux", "macos"]}
    assert "several systems" in wrong('os = ["linux", "ios 7"]').message
    assert "several systems" in wrong('os = ["linux", "ios"]\nos_version = "7-"').message


@pytest.mark.parametrize(
    ("line", "given"),
    [
        ("density = 320", {"density_dpi_minimum": 320, "density_dpi_maximum": 320}),
        ('density = "160-480"', {"density_dpi_minimum": 160, "density_dpi_maximum": 480}),
        ('density = "-480"', {"density_dpi_maximum": 480}),
        ("api_level = 24", {"api_level_minimum": 24}),
        ('api_level = "24-33"', {"api_level_minimum": 24, "api_level_maximum": 33}),
        ("screen_inches = 10.1", {"screen_inches_minimum": 10.1, "screen_inches_maximum": 10.1}),
        ('screen_inches = "5"', {"screen_inches_minimum": 5.0, "screen_inches_maximum": 5.0}),
        ('resolution = "800*480"', {"resolution_minimum": [800, 480], "resolution_maximum": [800, 480]}),
        ('resolution = "1280 x 720-"', {"resolution_minimum": [1280, 720]}),
        ('architecture = "amd64"', {"architectures": ["x86_64"]}),
    ],
)
def test_a_number_or_a_range_becomes_fields_of_the_selector(line: str, given: dict[str, Any]) -> None:
    assert fields(line) == given


# --- what it may not say --------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("line", "key", "near"),
    [
        ('progam = "x"', "progam", "program"),
        ('arch = "arm64"', "arch", "architecture"),
        ('models = "x"', "models", "model"),
        ("density_dpi = 320", "density_dpi", "density"),
        ('zebra = "x"', "zebra", "program, title"),
        ("[made]\nx = 1", "made", "model"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_right_one(line: str, key: str, near: str) -> None:
    error = wrong(line)
    assert f"the key {key!r}" in error.message
    assert near in error.hint


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("version = 1.0", "its version is 1.0;"),
        ("channel = true", "its channel is true;"),
        ('title = ""', "its title is '';"),
        ('title = "two\\nlines"', "its title is 'two\\nlines';"),
        ('program = ["a"]', "its program is a list;"),
        ('os = {name = "ios"}', "its os is a table;"),
        ("model = []", "its model is a list;"),
        ("model = [5]", "its model is 5;"),
        ("model = [[]]", "its model is a list;"),
        ('density = "high"', "its density is 'high';"),
        ('density = "1-2-3"', "its density is '1-2-3';"),
        ("density = 0", "its density is 0;"),
        ("density = -160", "its density is -160;"),
        ('density = "-"', "its density is '-';"),
        ("density = nan", "its density is nan;"),
        ("density = 160.5", "its density is 160.5;"),
        ("screen_inches = 0.0", "its screen_inches is 0.0;"),
        ("screen_inches = 2000", "its screen_inches is 2000;"),
        ('resolution = "640"', "its resolution is '640';"),
        ('resolution = "0x480"', "its resolution is '0x480';"),
        ('resolution = "640x480x2"', "its resolution is '640x480x2';"),
        ("os_version = 12", "its os_version is 12;"),
        ('os_version = "-"', "its os_version is '-';"),
        ('os_version = "12.x"', "its os_version is '12.x';"),
        ('os_version = "1..2"', "its os_version is '1..2';"),
        ('os = "7"', "its os is '7';"),
        ('os = "other"', "its os is 'other';"),
        ("version = 1979-05-27", "its version is 1979-05-27;"),
    ],
)
def test_a_value_of_the_wrong_type_is_said_with_its_key(line: str, shown: str) -> None:
    assert shown in wrong(line).message


def test_a_word_that_is_none_of_those_known_is_refused_with_the_nearest() -> None:
    assert "linux" in wrong('os = "lunux"').hint
    assert "arm64" in wrong('architecture = ["arm65"]').hint
    assert "flatpak" in wrong('kind = "flatpack"').hint
    assert "tablet" in wrong('form_factor = "tablett"').hint


def test_what_is_said_twice_is_refused() -> None:
    assert "second time" in wrong('os = "ios 7"\nos_version = "8-"').message
    assert "not TOML" in wrong('os = "ios"\nos = "linux"').message


@pytest.mark.parametrize(
    "content",
    [
        b"os = ",
        b"\xff\xfe",
        b"x = " + b"[" * 30_000,
        b"x = " + b"{a=" * 10_000,
        b"density = 1" + b"0" * 60_000,
        b"x = 0x" + b"f" * 60_000,
        b"a" + b".a" * 30_000 + b" = 1",
        b"\n".join(b"a" + b".a" * 500 + b".b%d = 1" % number for number in range(60)),
        b"\n".join(b"[a" + b".a" * 500 + b".b%d]" % number for number in range(60)),
        b"model = [" + b'"a",' * 16_000 + b"]",
        b"[[a]]\n" * 10_000,
        b"k" * 60_000 + b" = 1",
        b"\n" * (SIDECAR_BYTES + 1),
    ],
)
def test_a_hostile_sidecar_is_refused_at_once(content: bytes) -> None:
    begun = time.process_time()
    wrong(content)
    assert time.process_time() - begun < 2


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.characters()), min_size=1, max_size=6))
def test_whatever_characters_are_changed_it_is_a_sidecar_or_a_refusal(changes: list[tuple[int, str]]) -> None:
    text = list(WHOLE)
    for at, character in changes:
        text[at] = character
    try:
        found = parse("".join(text).encode("utf-8", "surrogatepass"), "changed")
        facts_of(found, found.kind, "changed")
    except BadFileError:
        pass


# --- facts ----------------------------------------------------------------------------------------------------------
def test_a_file_without_a_header_has_the_facts_of_its_sidecar() -> None:
    assert facts_of(
        said('program = "notes"\nversion = "2.1"\nos = "macos 12"\n'), "pkg", "notes.pkg"
    ) == InstallerFacts(
        package_name="notes",
        title="notes",
        version="2.1",
        release="2.1",
        kind="pkg",
        selector=Selector(os_types=("macos",), os_version_minimum="12", os_version_maximum="12.*"),
    )


def test_a_kind_that_is_not_known_is_other() -> None:
    assert facts_of(said('package = "a.b"\nversion = "1"\nos = "linux"'), "", "setup.run").kind == "other"


def test_a_sidecar_that_says_too_little_is_refused_with_what_is_lacking() -> None:
    with pytest.raises(BadFileError) as caught:
        facts_of(said('title = "Notes"'), "pkg", "notes.pkg")
    assert "does not say program and version and os" in caught.value.message
    assert 'program = "notes"' in caught.value.hint


def test_a_kind_the_content_contradicts_is_refused() -> None:
    with pytest.raises(ConflictError, match="is of kind pkg"):
        facts_of(said('kind = "apk"\nprogram = "a"\nversion = "1"\nos = "macos"'), "pkg", "notes.pkg")


def test_values_laid_over_a_sidecar_that_no_selector_takes_are_refused() -> None:
    with pytest.raises(UsageError, match="is wrong"):
        facts_of(Sidecar(program="a", version="1", given={"os_types": ["beos"]}), "pkg", "a.pkg")


@pytest.mark.parametrize(("key", "value"), [("kind", "rpm"), ("package", "other"), ("version", "2.0")])
def test_what_contradicts_a_header_is_refused(key: str, value: str) -> None:
    with DEB.open("rb") as file, pytest.raises(ConflictError, match=f"says {key} {value}"):
        read_installer(file, DEB.name, f'{key} = "{value}"'.encode())


def test_what_agrees_with_a_header_stands() -> None:
    with DEB.open("rb") as file:
        found = read_installer(file, DEB.name, b'kind = "deb"\nversion = "1.0.0"\npackage = "hello-lockstep"\n')
    assert found.facts == inspect(DEB)


# --- files that are recognised without a header reader --------------------------------------------------------------
def shown(path: Path) -> str:
    """The kind of a file, after its refusal has shown a sidecar that would serve it."""
    error = refused(path)
    assert f"in a file {path.name}.lockstep.toml beside it" in error.hint
    example = error.hint.partition(":\n")[2].encode()
    with path.open("rb") as file:
        facts = read_installer(file, path.name, example).facts
        assert facts.kind == (names.kind_of(Source(file, path.name)) or "other")
    return facts.kind


@pytest.mark.formats
@pytest.mark.skipif(not shutil.which("flatpak"), reason="flatpak is not installed")
def test_a_bundle_that_flatpak_builds_is_recognised(tmp_path: Path) -> None:
    application = tmp_path / "application"
    (application / "files").mkdir(parents=True)
    (application / "export").mkdir()
    (application / "metadata").write_text(
        "[Application]\nname=org.example.Made\nruntime=org.example.Platform/x86_64/1\n"
    )
    path = tmp_path / "made-1.2.flatpak"
    environment = os.environ | {"HOME": str(tmp_path)}
    run("flatpak", "build-export", "--disable-sandbox", tmp_path / "repository", application, environment=environment)
    run("flatpak", "build-bundle", tmp_path / "repository", path, "org.example.Made", environment=environment)
    assert shown(path) == "flatpak"


@pytest.mark.formats
@pytest.mark.skipif(not shutil.which("bsdtar"), reason="bsdtar is not installed")
def test_a_xar_archive_that_bsdtar_builds_is_recognised_as_a_macos_package(tmp_path: Path) -> None:
    (tmp_path / "PackageInfo").write_text('<pkg-info identifier="org.example.made" version="1.0"/>')
    run("bsdtar", "--format=xar", "-cf", tmp_path / "made.pkg", "-C", tmp_path, "PackageInfo")
    assert shown(tmp_path / "made.pkg") == "pkg"


@pytest.mark.formats
@pytest.mark.skipif(not shutil.which("mksquashfs"), reason="mksquashfs is not installed")
def test_an_image_that_mksquashfs_builds_is_recognised(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    run("mksquashfs", tmp_path / "tree", tmp_path / "made.snap", "-quiet", "-no-progress")
    assert "SquashFS" in refused(tmp_path / "made.snap").message
    assert shown(tmp_path / "made.snap") == "other"


def test_tar_archives_plain_and_packed_are_recognised(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("made/"))
    plain, packed = tmp_path / "made-2.0.tar", tmp_path / "made-2.0.tar.gz"
    plain.write_bytes(buffer.getvalue())
    packed.write_bytes(gzip.compress(buffer.getvalue()))
    assert "tar archive" in refused(plain).message
    assert "packed archive" in refused(packed).message
    assert [shown(plain), shown(packed)] == ["other", "other"]


@pytest.mark.parametrize(
    ("name", "content", "kind", "words"),
    [
        ("made.aab", a_zip({"BundleConfig.pb": b"", "base/manifest/AndroidManifest.xml": b""}), "aab", "App Bundle"),
        ("made.xapk", a_zip({"manifest.json": b"{}", "org.example.apk": b""}), "other", "XAPK"),
        ("Made-1.0.AppImage", b"\x7fELF\x02\x01\x01\0AI\x02" + bytes(100), "appimage", "AppImage"),
        ("made.dmg", bytes(600) + b"koly" + bytes(508), "other", "disk image"),
        ("made.jar", a_zip({"META-INF/MANIFEST.MF": b""}), "other", "zip archive but no installer"),
        ("made.run", b"#!/bin/sh\n", "other", "no installer format"),
        ("made.bin", b"\x7fELF\x02\x01\x01" + bytes(100), "other", "no installer format"),
    ],
)
def test_a_hand_made_stand_in_is_recognised_and_its_refusal_shows_a_sidecar_that_serves_it(
    name: str, content: bytes, kind: str, words: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert words in refused(path).message
    assert shown(path) == kind


@pytest.mark.parametrize("line", ["version = 1.0", 'architecture = "z80"', 'os_version = "x"', "title = 7"])
def test_what_is_wrong_in_a_sidecar_is_mended_there_and_not_in_the_installer(line: str) -> None:
    with DEB.open("rb") as file, pytest.raises(BadFileError) as caught:
        read_installer(file, "notes.deb", line.encode())
    assert caught.value.message.startswith("notes.deb.lockstep.toml: its ")
    assert caught.value.hint.startswith("Mend notes.deb.lockstep.toml")


@settings(max_examples=100, deadline=None)
@given(st.text(min_size=1, max_size=255))
def test_the_sidecar_shown_for_any_file_name_is_one(name: str) -> None:
    found = parse(sidecar.example(name, "android").encode(), "x")
    assert facts_of(found, "", "x").selector == Selector(os_types=("android",))


def test_the_sidecar_shown_takes_name_and_version_from_the_file_name() -> None:
    assert (
        sidecar.example("Notes Pro-3.1.4-x86_64.AppImage") == 'program = "notes-pro"\nversion = "3.1.4"\nos = "linux"'
    )


def test_a_large_file_that_is_nothing_known_costs_no_reading_of_it(tmp_path: Path) -> None:
    path = tmp_path / "made.img"
    with path.open("wb") as file:
        file.truncate(3_000 * MIB)
    begun = time.process_time()
    assert "no installer format" in refused(path).message
    assert time.process_time() - begun < 1
