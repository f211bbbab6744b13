"""Android packages: the demonstration's and what aapt2 builds, aapt as the independent reader, and hand-made damage."""

import base64
import io
import re
import shutil
import struct
import zipfile
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hub.inspectors import apk, axml, inspect, resources, zips
from hub.matching import Selector
from hub.records import InstallerFacts
from protocol.errors import BadFileError
from tests.hub.inspectors.android import FRAMEWORK, a_manifest, link, needs_aapt2
from tests.hub.inspectors.reading import DEMO, Save, a_zip, refused, run

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
APK = DEMO / "hello-lockstep-1.0.0.apk"
TV_APK = DEMO / "hello-lockstep-tv-1.0.0.apk"

SPLITS_REQUIRED = '<meta-data android:name="com.android.vending.splits.required" android:value="true"/>'
needs_aapt = pytest.mark.skipif(not shutil.which("aapt"), reason="aapt is not installed")


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
        sortable_version="1",
        icon="res/drawable/hello.xml",
    )


def test_the_apk_for_televisions_differs_only_in_what_it_asks_of_a_device() -> None:
    selector = Selector(
        os_types=("android",),
        api_level_minimum=24,
        form_factors=("tv",),
        features_required=("android.software.leanback",),
    )
    assert inspect(TV_APK) == msgspec.structs.replace(inspect(APK), selector=selector)


# --- what aapt reads of the same files ---
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


@needs_aapt2
def test_an_apk_that_constrains_everything_gives_every_constraint(tmp_path: Path) -> None:
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
    facts = inspect(link(tmp_path, a_manifest(attributes, body, sdk), libraries))
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
def test_a_title_and_a_version_kept_as_resources_are_read_in_the_default_language(tmp_path: Path) -> None:
    for folder, title in (("values", "Grüße, 你好"), ("values-de", "Another")):
        (tmp_path / "res" / folder).mkdir(parents=True)
        strings = f'<string name="title">{title}</string>'
        if folder == "values":
            strings += '<string name="alias">@string/title</string><string name="version">3.1</string>'
        (tmp_path / "res" / folder / "strings.xml").write_text(f"<resources>{strings}</resources>")
    run("aapt2", "compile", "--dir", tmp_path / "res", "-o", tmp_path / "resources.zip")
    body = '<application android:label="@string/alias" android:hasCode="false"/>'
    manifest = a_manifest('android:versionName="@string/version" android:versionCode="5"', body)
    facts = inspect(link(tmp_path, manifest, resources=tmp_path / "resources.zip"))
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
def test_only_screens_too_small_are_excluded(screens: str, inches: float | None, tmp_path: Path) -> None:
    assert inspect(link(tmp_path, a_manifest(body=screens))).selector.screen_inches_minimum == inches


def with_icon(folder: Path, adaptive: bool, option: str) -> Path:
    """Return an APK whose icon is kept in two densities, and as a drawing for newer systems where it is `adaptive`."""
    strings = "".join(f'<string name="s{number}">{number}</string>' for number in range(40))
    files = {
        "values/strings.xml": b'<resources><string name="s39">The one title</string></resources>',
        "values-de/strings.xml": f"<resources>{strings}</resources>".encode(),  # so that the default's are sparse
        "mipmap-mdpi/icon.png": PNG,
        "mipmap-xhdpi/icon.png": PNG,
    }
    if adaptive:
        files["mipmap-anydpi-v26/icon.xml"] = b"<adaptive-icon/>"
    for name, content in files.items():
        (folder / "res" / name).parent.mkdir(parents=True)
        (folder / "res" / name).write_bytes(content)
    run("aapt2", "compile", "--dir", folder / "res", "-o", folder / "resources.zip")
    body = '<application android:icon="@mipmap/icon" android:label="@string/s39" android:hasCode="false"/>'
    manifest = a_manifest(body=body, sdk='<uses-sdk android:minSdkVersion="26"/>')
    return link(folder, manifest, (), folder / "resources.zip", (option,))


@needs_aapt2
@pytest.mark.parametrize("adaptive", [True, False])
@pytest.mark.parametrize("option", ["--no-auto-version", "--enable-sparse-encoding"])
def test_the_icon_is_the_densest_picture(option: str, adaptive: bool, tmp_path: Path) -> None:
    path = with_icon(tmp_path, adaptive, option)
    facts = inspect(path)
    assert (facts.icon, facts.title) == ("res/mipmap-xhdpi-v4/icon.png", "The one title")
    with zipfile.ZipFile(path) as archive:
        assert facts.icon in archive.namelist()
    if shutil.which("aapt") and not adaptive:  # with a drawing for every density, aapt names no picture at all
        assert f"application-icon-320:'{facts.icon}'" in run("aapt", "dump", "badging", path)


def test_an_apk_that_is_a_zip64_archive_is_refused_since_android_takes_none(save: Save) -> None:
    whole = APK.read_bytes()
    at = whole.rindex(b"PK\x05\x06")
    _, _, _, _, total, length, offset, _ = struct.unpack_from("<4s4H2LH", whole, at)
    record = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, total, total, length, offset)
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, at, 1)
    assert "zip64" in refused(save(whole[:at] + record + locator + whole[at:])).message


@needs_aapt2
def test_an_apk_without_a_version_name_goes_by_its_version_code(tmp_path: Path) -> None:
    facts = inspect(link(tmp_path, a_manifest('android:versionCode="42" android:versionCodeMajor="1"')))
    assert (facts.version, facts.release, facts.package_version_code) == ("42", "42", (1 << 32) + 42)
    assert facts.sortable_version == str((1 << 32) + 42)


@needs_aapt2
@pytest.mark.parametrize(
    ("manifest", "libraries", "fault"),
    [
        (a_manifest('split="config.de"'), (), "split"),
        (a_manifest('android:isSplitRequired="true"'), (), "split"),
        (a_manifest(body='<application android:isSplitRequired="true"/>'), (), "split"),
        (a_manifest(body=f"<application>{SPLITS_REQUIRED}</application>"), (), "split"),
        (a_manifest(sdk='<uses-sdk android:minSdkVersion="Tiramisu"/>'), (), "Tiramisu"),
        (a_manifest(), ("lib/mips/a.so",), "mips"),
        (a_manifest(body=f'<uses-feature android:name="{"f" * 65}"/>'), (), "features"),
    ],
)
def test_an_apk_no_device_here_could_install_is_refused_in_words(
    manifest: str, libraries: tuple[str, ...], fault: str, tmp_path: Path
) -> None:
    assert fault in refused(link(tmp_path, manifest, libraries)).message


@needs_aapt2
def test_the_resources_of_android_itself_whose_package_is_one_word_are_no_program() -> None:
    assert "two words or more" in refused(FRAMEWORK).message


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


# --- damage ---
def test_a_resource_table_of_more_parts_than_the_limit_and_one_out_of_order_hold_nothing() -> None:
    def table(parts: bytes) -> resources.Table:
        content = a_zip({resources.TABLE: struct.pack("<HHII", 2, 12, 12 + len(parts), 1) + parts})
        return resources.Table.of(zips.Archive.open(io.BytesIO(content), len(content)))

    pool = struct.pack("<HHIIIIIIIBB2s", 1, 28, 36, 1, 0, 1 << 8, 32, 0, 0, 1, 1, b"x\0")
    sizes = struct.pack("<BBHIII", 1, 0, 0, 1, 20 + 28 + 4, 28)  # one entry, behind a configuration of 28 bytes
    entry = struct.pack("<24xIHHIHBBI", 0, 8, 0, 0, 8, 0, 3, 0)  # at 0: the text 0
    of_a_type = struct.pack("<HHI", 0x0201, 48, 8 + len(sizes) + len(entry)) + sizes + entry
    empty = struct.pack("<HHI", 0x0999, 8, 8)

    def package(parts: bytes) -> bytes:
        return struct.pack("<HHII", 0x0200, 12, 12 + len(parts), 0x7F) + parts

    assert table(pool + package(of_a_type)).text(0x7F010000) == "x"
    assert table(pool + of_a_type + package(b"")).text(0x7F010000) == ""
    assert table(pool + package(empty * resources.CHUNKS + of_a_type)).text(0x7F010000) == ""


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), min_size=1, max_size=6))
def test_whatever_bytes_of_a_manifest_are_changed_it_is_facts_or_a_refusal(
    tmp_path: Path, changes: list[tuple[int, int]]
) -> None:
    with zipfile.ZipFile(APK) as archive:
        manifest = bytearray(archive.read(apk.MANIFEST))
    for at, value in changes:
        manifest[at % len(manifest)] = value
    path = tmp_path / APK.name
    path.write_bytes(a_zip({apk.MANIFEST: bytes(manifest)}, zipfile.ZIP_STORED))
    try:
        facts = inspect(path)
    except BadFileError:
        return
    msgspec.convert(msgspec.to_builtins(facts), InstallerFacts, strict=False)  # what comes out, the wire can carry


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
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
        table_of = resources.Table.of(zips.Archive.open(io.BytesIO(content), len(content)))
        texts = [table_of.text(resource_id), *table_of.files(resource_id)]
        assert all(len(text) <= axml.STRING_BYTES for text in texts)
