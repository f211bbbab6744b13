"""The inspectors against real installers, against other readers of the same formats, and against damage and malice.

The demonstration's installers are made by the formats' own tools; what those tools do not make (bombs, contradictions)
is built here by hand.
"""

import io
import logging
import os
import re
import shutil
import struct
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hub.inspectors import apk, axml, deb, inspect, resources, zips
from hub.matching import Selector
from hub.records import InstallerFacts
from protocol.device import DeviceInfo
from protocol.errors import BadFileError
from protocol.limits import OBJECT_BYTES

DEMO = Path(__file__).parents[2] / "hub" / "demo"
DEB = DEMO / "installers" / "hello-lockstep_1.0.0-1_all.deb"
APK = DEMO / "installers" / "hello-lockstep-1.0.0.apk"
TV_APK = DEMO / "installers" / "hello-lockstep-tv-1.0.0.apk"
WHEEL = DEMO / "installers" / "hello_lockstep-1.0.0-py3-none-any.whl"
INSTALLERS = (DEB, APK, TV_APK, WHEEL)
FRAMEWORK = Path("/usr/share/android-framework-res/framework-res.apk")

needs_aapt = pytest.mark.skipif(not shutil.which("aapt"), reason="aapt is not installed")
needs_aapt2 = pytest.mark.skipif(
    not (shutil.which("aapt2") and FRAMEWORK.exists()), reason="aapt2 and android-framework-res are not installed"
)


def run(*command: str | Path) -> str:
    return subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True, timeout=60).stdout


def refused(path: Path, name: str = "") -> BadFileError:
    with pytest.raises(BadFileError) as caught:
        inspect(path, name)
    assert caught.value.message.startswith(f"{name or path.name}: ")
    assert caught.value.message.endswith(".")
    assert caught.value.hint
    return caught.value


# --- building files by hand -----------------------------------------------------------------------------------------
Save = Callable[[bytes], Path]


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """Write bytes to a file and return its path."""

    def write(content: bytes) -> Path:
        path = tmp_path / "installer"
        path.write_bytes(content)
        return path

    return write


def a_zip(members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def a_manifest(attributes: str = "", body: str = "", sdk: str = '<uses-sdk android:minSdkVersion="24"/>') -> str:
    return (
        '<manifest xmlns:android="http://schemas.android.com/apk/res/android" package="org.example.made"'
        f" {attributes}>{sdk}{body}</manifest>"
    )


@pytest.fixture
def link(tmp_path: Path) -> Callable[..., Path]:
    """Compile a manifest in text with aapt2, add members, and return the unsigned APK."""

    def build(manifest: str, members: tuple[str, ...] = (), resources: Path | None = None) -> Path:
        source, linked = tmp_path / "AndroidManifest.xml", tmp_path / "made.apk"
        source.write_text(manifest)
        run("aapt2", "link", "-I", FRAMEWORK, "--manifest", source, "-o", linked, *filter(None, [resources]))
        with zipfile.ZipFile(linked, "a") as archive:
            for name in members:
                archive.writestr(name, b"")
        return linked

    return build


# --- the demonstration's installers ---------------------------------------------------------------------------------
def test_the_demonstration_apk_gives_its_facts() -> None:
    facts = inspect(APK)
    assert re.fullmatch("[0-9a-f]{64}", facts.signer_digest)
    assert facts == InstallerFacts(
        package_name="org.lockstep.hello",
        title="Lockstep Hello",
        version="1.0.0",
        release="1.0.0",
        kind="apk",
        api_level_target=34,
        package_version_code=1,
        signer_digest=facts.signer_digest,
        selector=Selector(
            os_types=("android",), api_level_minimum=24, features_required=("android.hardware.touchscreen",)
        ),
    )


def test_the_apk_for_televisions_differs_only_in_what_it_asks_of_a_device() -> None:
    selector = Selector(
        os_types=("android",),
        api_level_minimum=24,
        form_factors=("tv",),
        features_required=("android.software.leanback",),
    )
    assert inspect(TV_APK) == msgspec.structs.replace(inspect(APK), selector=selector)


def test_the_demonstration_stays_small() -> None:
    assert sum(path.stat().st_size for path in INSTALLERS) < 100_000


@pytest.mark.parametrize("device", ["phone", "tv", "tablet", "car", "pc"])
def test_each_demonstration_device_loads(device: str) -> None:
    with (DEMO / "devices" / f"{device}.toml").open("rb") as file:
        info = msgspec.convert(tomllib.load(file), DeviceInfo, strict=False)
    assert info.form_factor == device
    assert info.installer_kinds


@pytest.mark.parametrize("path", INSTALLERS, ids=lambda path: path.suffix)
def test_a_stored_copy_gives_the_same_facts_under_its_original_name(path: Path, save: Save) -> None:
    assert inspect(save(path.read_bytes()), path.name) == inspect(path)


# --- other readers of the same files --------------------------------------------------------------------------------
@needs_aapt
@pytest.mark.parametrize("path", [APK, TV_APK], ids=["phone", "tv"])
def test_aapt_reads_the_same_from_the_apk(path: Path) -> None:
    facts, badging = inspect(path), run("aapt", "dump", "badging", path)
    assert f"name='{facts.package_name}' versionCode='1' versionName='{facts.version}'" in badging
    assert f"application-label:'{facts.title}'" in badging
    assert f"sdkVersion:'{facts.selector.api_level_minimum}'" in badging
    assert f"targetSdkVersion:'{facts.api_level_target}'" in badging
    features = re.findall(r"^ *uses-feature: name='([^']+)'", badging, re.MULTILINE)
    assert set(facts.selector.features_required) == set(features) - {"android.hardware.faketouch"}


# --- apk ------------------------------------------------------------------------------------------------------------
@needs_aapt2
def test_an_apk_that_constrains_everything_gives_every_constraint(link: Callable[..., Path]) -> None:
    body = """
        <supports-screens android:smallScreens="false" android:requiresSmallestWidthDp="600"/>
        <compatible-screens>
          <screen android:screenSize="large" android:screenDensity="hdpi"/>
          <screen android:screenSize="xlarge" android:screenDensity="480"/>
        </compatible-screens>
        <uses-feature android:name="android.hardware.type.watch"/>
        <uses-feature android:name="android.hardware.type.automotive" android:required="true"/>
        <uses-feature android:name="android.software.leanback" android:required="false"/>
        <uses-feature android:glEsVersion="0x00020000"/>
        <application android:label="微信 and a rather long title" android:hasCode="false"/>"""
    sdk = '<uses-sdk android:minSdkVersion="26" android:maxSdkVersion="33"/>'
    attributes = 'android:versionCode="7" android:versionName="2.5-β"'
    libraries = ("lib/arm64-v8a/a.so", "lib/armeabi-v7a/a.so", "lib/armeabi/a.so", "lib/mips/a.so", "lib/x86/readme")
    facts = inspect(link(a_manifest(attributes, body, sdk), libraries))
    assert (facts.package_name, facts.version, facts.package_version_code) == ("org.example.made", "2.5-β", 7)
    assert facts.title == "微信 and a rather long title"
    assert facts.signer_digest == ""
    assert facts.selector == Selector(
        os_types=("android",),
        api_level_minimum=26,
        api_level_maximum=33,
        architectures=("arm64", "armv7"),
        form_factors=("car", "watch"),
        screen_inches_minimum=6.2,
        density_dpi_minimum=240,
        density_dpi_maximum=480,
        features_required=("android.hardware.type.automotive", "android.hardware.type.watch"),
    )


@needs_aapt2
def test_a_title_and_a_version_kept_as_resources_are_read_in_the_default_language(
    link: Callable[..., Path], tmp_path: Path
) -> None:
    for folder, title in (("values", "Grüße, 你好"), ("values-de", "Another")):
        (tmp_path / "res" / folder).mkdir(parents=True)
        strings = f'<string name="title">{title}</string>'
        if folder == "values":
            strings += '<string name="alias">@string/title</string><string name="version">3.1</string>'
        (tmp_path / "res" / folder / "strings.xml").write_text(f"<resources>{strings}</resources>")
    run("aapt2", "compile", "--dir", tmp_path / "res", "-o", tmp_path / "resources.zip")
    body = '<application android:label="@string/alias" android:hasCode="false"/>'
    manifest = a_manifest('android:versionName="@string/version" android:versionCode="5"', body)
    facts = inspect(link(manifest, resources=tmp_path / "resources.zip"))
    assert (facts.title, facts.version, facts.package_version_code) == ("Grüße, 你好", "3.1", 5)


@needs_aapt2
@pytest.mark.parametrize(
    ("screens", "inches"),
    [
        ("", None),
        ('<supports-screens android:largeScreens="false" android:xlargeScreens="false"/>', None),
        ('<supports-screens android:smallScreens="false"/>', 3.5),
        ('<supports-screens android:smallScreens="false" android:normalScreens="false"/>', 5.0),
        (
            '<supports-screens android:smallScreens="false" android:normalScreens="false" android:largeScreens="false"'
            ' android:xlargeScreens="false"/>',
            None,
        ),
    ],
)
def test_only_screens_too_small_are_excluded(screens: str, inches: float | None, link: Callable[..., Path]) -> None:
    assert inspect(link(a_manifest(body=screens))).selector.screen_inches_minimum == inches


@needs_aapt2
def test_an_apk_without_a_version_name_goes_by_its_version_code(link: Callable[..., Path]) -> None:
    facts = inspect(link(a_manifest('android:versionCode="42" android:versionCodeMajor="1"')))
    assert (facts.version, facts.release, facts.package_version_code) == ("42", "42", (1 << 32) + 42)


@needs_aapt2
@pytest.mark.parametrize(
    ("manifest", "libraries", "fault"),
    [
        (a_manifest('split="config.de"'), (), "split"),
        (a_manifest('android:isSplitRequired="true"'), (), "split"),
        (a_manifest(sdk='<uses-sdk android:minSdkVersion="Tiramisu"/>'), (), "Tiramisu"),
        (a_manifest(), ("lib/mips/a.so",), "mips"),
        (a_manifest(body=f'<uses-feature android:name="{"f" * 65}"/>'), (), "features"),
    ],
)
def test_an_apk_no_device_here_could_install_is_refused_in_words(
    manifest: str, libraries: tuple[str, ...], fault: str, link: Callable[..., Path]
) -> None:
    assert fault in refused(link(manifest, libraries)).message


@pytest.mark.parametrize("content", [b"", b"<manifest/>", b"\x03\x00\x08\x00\x08\x00\x00\x00", bytes(64)])
def test_a_manifest_that_is_not_binary_xml_is_refused(content: bytes, save: Save) -> None:
    assert "AndroidManifest.xml" in refused(save(a_zip({apk.MANIFEST: content}))).message


def test_a_manifest_may_not_hold_a_second_string_table_nor_more_elements_than_the_limit() -> None:
    pool = struct.pack("<HHIIIIIIIB3s", 1, 28, 36, 1, 0, 1 << 8, 32, 0, 0, 0, b"\0\0\0")
    start = struct.pack("<HHIIIIIHHHHHH", 0x0102, 16, 36, 0, 0, 0, 0, 20, 20, 0, 0, 0, 0)
    end = struct.pack("<HHIIIII", 0x0103, 16, 24, 0, 0, 0, 0)[:24]

    def document(*chunks: bytes) -> bytes:
        body = b"".join(chunks)
        return struct.pack("<HHI", 3, 8, 8 + len(body)) + body

    assert [element.depth for element in axml.elements(document(pool, start, start, end, end))] == [1, 2]
    with pytest.raises(BadFileError, match="two string tables"):
        list(axml.elements(document(pool, pool, start, end)))
    with pytest.raises(BadFileError, match="more than"):
        list(axml.elements(document(pool, *[start, end] * (axml.ELEMENTS + 1))))


def test_importing_the_inspectors_leaves_the_root_logger_as_it_was() -> None:
    program = "import logging, hub.inspectors; r = logging.getLogger(); print(r.level, len(r.handlers))"
    output = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=60, cwd=DEMO.parents[1]
    ).stdout
    assert output.split() == [str(logging.WARNING), "0"]


# --- zip archives that lie ------------------------------------------------------------------------------------------
def patched(content: bytes, signature: bytes, offset: int, form: str, value: int) -> bytes:
    """Overwrite a field `offset` bytes into the last record that begins with `signature`."""
    changed = bytearray(content)
    struct.pack_into(form, changed, content.rindex(signature) + offset, value)
    return bytes(changed)


def test_a_manifest_that_declares_more_than_the_limit_is_refused(save: Save) -> None:
    bomb = a_zip({apk.MANIFEST: bytes(apk.MANIFEST_BYTES + 1)})
    assert "claims" in refused(save(bomb)).message


def test_a_manifest_that_unpacks_to_more_than_it_declares_is_refused(save: Save) -> None:
    bomb = a_zip({apk.MANIFEST: bytes(64 * apk.MANIFEST_BYTES)})
    assert "unpacks to more than" in refused(save(patched(bomb, b"PK\x01\x02", 24, "<L", 100))).message
    short = a_zip({apk.MANIFEST: bytes(1000)})
    assert "does not match" in refused(save(patched(short, b"PK\x01\x02", 24, "<L", 100))).message


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_member_packed_by_a_method_installers_do_not_use_is_refused(method: int, save: Save) -> None:
    assert "only deflate" in refused(save(a_zip({apk.MANIFEST: b"x"}, method))).message


@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
def test_a_zip_archive_that_names_one_file_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "twice.apk"
    shutil.copy(APK, path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(apk.MANIFEST, b"another")
    assert "twice" in refused(path).message


def test_a_zip_directory_with_more_entries_than_the_limit_is_refused(save: Save) -> None:
    entry = struct.pack("<4s6H3L5H2L", b"PK\x01\x02", *[0] * 6, *[0] * 3, 1, *[0] * 4, 0, 0) + b"x"
    directory = entry * (zips.DIRECTORY_ENTRIES + 1)
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 1, 1, len(directory), 4, 0)
    assert "more than 65535" in refused(save(zips.LOCAL_SIGNATURE + directory + end)).message


def test_a_zip_directory_larger_than_the_limit_is_refused_unread(save: Save) -> None:
    length = zips.DIRECTORY_BYTES + 1
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 1, 1, length, 4, 0)
    assert f"{length} bytes" in refused(save(zips.LOCAL_SIGNATURE + bytes(length) + end)).message


def test_a_zip64_archive_is_refused(save: Save) -> None:
    whole = a_zip({apk.MANIFEST: b"x"})
    at = whole.rindex(b"PK\x05\x06")
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 1, 1, at, 0, 0)
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, at, 1)
    assert "zip64" in refused(save(whole[:at] + locator + end)).message


# --- files that are nothing of the kind -----------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"", "is empty"),
        (b"P", "no installer format"),
        (b"just text", "no installer format"),
        (b"\x7fELF" + bytes(100), "no installer format"),
        (a_zip({}), "no installer format"),
        (a_zip({"readme": b"x"}), "but no installer"),
        (a_zip({apk.MANIFEST: b"x", "a-1.dist-info/WHEEL": b"x"}), "at once"),
    ],
)
def test_a_file_of_an_unknown_format_is_refused_in_words(content: bytes, fault: str, save: Save) -> None:
    assert fault in refused(save(content)).message


def test_a_folder_a_pipe_and_a_missing_file_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "not a file" in refused(tmp_path).message
    assert "not a file" in refused(tmp_path / "pipe").message
    assert "No such file" in refused(tmp_path / "missing.deb").message
    refused(tmp_path / "a\0b")


def test_a_file_that_cannot_be_opened_is_refused(tmp_path: Path) -> None:
    assert "cannot be read" in refused(tmp_path / ("long" * 100 + ".deb")).message


@pytest.mark.parametrize("start", [deb.SIGNATURE, zips.LOCAL_SIGNATURE])
def test_a_file_larger_than_any_object_is_refused_unread(start: bytes, tmp_path: Path) -> None:
    path = tmp_path / "huge"
    with path.open("wb") as file:
        file.write(start)
        file.truncate(OBJECT_BYTES + 1)
    assert str(OBJECT_BYTES) in refused(path).message


def test_a_sparse_file_of_four_gibibytes_is_refused_without_being_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "huge.deb"
    with path.open("wb") as file:
        file.write(DEB.read_bytes())
        file.truncate(OBJECT_BYTES)
    assert "damaged" in refused(path).message


# --- damage ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("path", INSTALLERS, ids=["deb", "phone", "tv", "wheel"])
def test_a_file_cut_off_anywhere_is_refused(path: Path, tmp_path: Path) -> None:
    whole = path.read_bytes()
    cut = tmp_path / path.name
    for length in (*range(0, len(whole), 37), *range(len(whole) - 80, len(whole))):
        cut.write_bytes(whole[:length])
        refused(cut)


@pytest.mark.parametrize("path", INSTALLERS, ids=["deb", "phone", "tv", "wheel"])
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_bytes_are_changed_it_is_facts_or_a_refusal(path: Path, tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(path.read_bytes())
    places = st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255))
    for at, value in data.draw(st.lists(places, min_size=1, max_size=8)):
        content[at] = value
    _facts_or_refusal(tmp_path / path.name, bytes(content))


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), min_size=1, max_size=6))
def test_whatever_bytes_of_the_manifest_are_changed_it_is_facts_or_a_refusal(
    tmp_path: Path, changes: list[tuple[int, int]]
) -> None:
    with zipfile.ZipFile(APK) as archive:
        manifest = bytearray(archive.read(apk.MANIFEST))
    for at, value in changes:
        manifest[at % len(manifest)] = value
    _facts_or_refusal(tmp_path / APK.name, a_zip({apk.MANIFEST: bytes(manifest)}, zipfile.ZIP_STORED))


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(start=st.sampled_from([b"", deb.SIGNATURE, zips.LOCAL_SIGNATURE]), rest=st.binary(max_size=300))
def test_any_bytes_are_facts_or_a_refusal(tmp_path: Path, start: bytes, rest: bytes) -> None:
    _facts_or_refusal(tmp_path / "any", start + rest)


@needs_aapt2
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), min_size=1, max_size=6))
def test_whatever_bytes_of_the_resource_table_are_changed_it_is_a_text_or_none(
    tmp_path: Path, changes: list[tuple[int, int]]
) -> None:
    with zipfile.ZipFile(APK) as archive:
        table = bytearray(archive.read(resources.TABLE))
    for at, value in changes:
        table[at % len(table)] = value
    content = a_zip({resources.TABLE: bytes(table)}, zipfile.ZIP_STORED)
    for resource_id in (0x7F010000, 0x7F020000):
        text = resources.text(zips.Archive.open(io.BytesIO(content), len(content)), resource_id)
        assert len(text) <= axml.STRING_BYTES


def _facts_or_refusal(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    try:
        facts = inspect(path)
    except BadFileError:
        return
    msgspec.convert(msgspec.to_builtins(facts), InstallerFacts, strict=False)  # what comes out, the wire can carry
