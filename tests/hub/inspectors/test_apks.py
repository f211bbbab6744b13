"""Sets of split APKs. The APKs inside are built by aapt2; the set around them is a stand-in, laid out as bundletool
does it, since bundletool is none of the tools installed for these tests.
"""

import zipfile
from pathlib import Path

import pytest

from hub.inspectors import apks, inspect
from hub.matching import Selector
from tests.hub.inspectors.android import a_manifest, link, needs_aapt2
from tests.hub.inspectors.reading import DEMO, Save, a_zip, refused

pytestmark = needs_aapt2

BASE_BODY = """
    <uses-feature android:name="android.hardware.camera"/>
    <application android:label="Split" android:hasCode="false" android:isSplitRequired="true"/>"""
Parts = dict[str, Path]


def base(
    folder: Path, sdk: str = 'android:minSdkVersion="19"', code: int = 12, libraries: tuple[str, ...] = ()
) -> Path:
    """Return the base APK of the split program."""
    attributes = f'android:versionCode="{code}" android:versionName="1.2.0"'
    return built(folder, a_manifest(attributes, BASE_BODY, f"<uses-sdk {sdk}/>"), libraries)


def split(folder: Path, name: str, libraries: tuple[str, ...] = ()) -> Path:
    """Return a configuration split; it repeats package and version code, and hardly more."""
    return built(folder, a_manifest(f'android:versionCode="12" split="{name}"', sdk=""), libraries)


def built(folder: Path, manifest: str, libraries: tuple[str, ...] = ()) -> Path:
    place = folder / f"apk{len(list(folder.iterdir()))}"
    place.mkdir()
    return link(place, manifest, libraries)


def a_set(path: Path, parts: Parts, method: int = zipfile.ZIP_STORED) -> Path:
    """Write a set of APKs and return its path; its table of contents is not read and is empty."""
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr(apks.TABLE_OF_CONTENTS, b"")
        for name, part in parts.items():
            archive.write(part, name)
    return path


def usual_parts(folder: Path) -> Parts:
    return {
        "splits/base-arm64_v8a.apk": split(folder, "config.arm64_v8a", ("lib/arm64-v8a/a.so",)),
        "splits/base-armeabi_v7a.apk": split(folder, "config.armeabi_v7a"),  # its name says it, whatever it holds
        "splits/base-de.apk": split(folder, "config.de"),
        "splits/base-master.apk": base(folder),
        "splits/base-xxhdpi.apk": split(folder, "config.xxhdpi"),
        "splits/camera-master.apk": split(folder, "camera"),
    }


def test_a_stand_in_set_gives_what_its_base_says_with_the_architectures_of_its_splits(tmp_path: Path) -> None:
    facts = inspect(a_set(tmp_path / "hello.apks", usual_parts(tmp_path)))
    assert (facts.kind, facts.package_name, facts.title) == ("apks", "org.example.made", "Split")
    assert (facts.version, facts.sortable_version, facts.package_version_code) == ("1.2.0", "12", 12)
    assert facts.selector == Selector(
        os_types=("android",),
        api_level_minimum=21,  # Android 5 is the first that installs splits, and there is nothing else in it
        architectures=("arm64", "armv7"),
        features_required=("android.hardware.camera",),
    )


def test_a_stand_in_set_whose_apks_are_packed_gives_the_same(tmp_path: Path) -> None:
    parts = usual_parts(tmp_path)
    packed = a_set(tmp_path / "packed.apks", parts, zipfile.ZIP_DEFLATED)
    assert inspect(packed) == inspect(a_set(tmp_path / "stored.apks", parts))


def test_a_stand_in_set_with_whole_apks_beside_the_splits_fits_android_before_5(tmp_path: Path) -> None:
    parts = {"splits/base-master.apk": base(tmp_path), "standalones/standalone-hdpi.apk": base(tmp_path)}
    assert inspect(a_set(tmp_path / "hello.apks", parts)).selector.api_level_minimum == 19


def test_a_stand_in_set_of_variants_installs_where_any_of_them_does(tmp_path: Path) -> None:
    parts = {
        "splits/base-master.apk": base(tmp_path, 'android:minSdkVersion="23" android:maxSdkVersion="25"'),
        "splits/base-master_2.apk": base(tmp_path, 'android:minSdkVersion="26" android:maxSdkVersion="30"'),
    }
    selector = inspect(a_set(tmp_path / "hello.apks", parts)).selector
    assert (selector.api_level_minimum, selector.api_level_maximum) == (23, 30)
    parts["splits/base-master_3.apk"] = base(tmp_path, 'android:minSdkVersion="31"')
    assert inspect(a_set(tmp_path / "hello.apks", parts)).selector.api_level_maximum is None


@pytest.mark.parametrize("name", ["universal.apk", "standalones/standalone-arm64_v8a_hdpi.apk"])
def test_a_stand_in_set_without_splits_is_read_from_its_whole_apks(name: str, tmp_path: Path) -> None:
    facts = inspect(a_set(tmp_path / "hello.apks", {name: base(tmp_path, libraries=("lib/arm64-v8a/a.so",))}))
    assert (facts.kind, facts.selector.api_level_minimum) == ("apks", 19)
    assert facts.selector.architectures == ("arm64",)


def test_a_stand_in_set_without_native_code_fits_every_architecture(tmp_path: Path) -> None:
    parts = {"splits/base-master.apk": base(tmp_path), "splits/base-hdpi.apk": split(tmp_path, "config.hdpi")}
    assert inspect(a_set(tmp_path / "hello.apks", parts)).selector.architectures == ()


def test_the_signer_of_a_stand_in_set_is_that_of_its_base(tmp_path: Path) -> None:
    apk = DEMO / "hello-lockstep-1.0.0.apk"
    assert inspect(a_set(tmp_path / "hello.apks", {"universal.apk": apk})).signer_digest == inspect(apk).signer_digest


def test_a_set_no_device_here_could_install_is_refused_in_words(tmp_path: Path) -> None:
    without_base = {"splits/base-de.apk": split(tmp_path, "config.de")}
    assert "not the base" in refused(a_set(tmp_path / "a.apks", without_base)).message
    two_builds = {"splits/base-master.apk": base(tmp_path), "splits/base-master_2.apk": base(tmp_path, code=13)}
    assert "made 12 and org.example.made 13" in refused(a_set(tmp_path / "b.apks", two_builds)).message
    strange = {"splits/base-master.apk": base(tmp_path), "splits/base-mips.apk": split(tmp_path, "config.mips")}
    assert "mips" in refused(a_set(tmp_path / "c.apks", strange)).message


def test_a_set_with_an_apk_that_is_damaged_or_not_there_says_which(save: Save) -> None:
    assert (
        "splits/base-master.apk inside it: "
        in refused(save(a_zip({apks.TABLE_OF_CONTENTS: b"", "splits/base-master.apk": b"PK\x03\x04"}))).message
    )
    assert "no installer" in refused(save(a_zip({apks.TABLE_OF_CONTENTS: b""}))).message


def test_a_set_of_more_apks_or_with_more_files_than_the_limits_is_refused(
    tmp_path: Path, save: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = {f"splits/{number}.apk": b"" for number in range(apks.APKS + 1)}
    assert f"at most {apks.APKS}" in refused(save(a_zip({apks.TABLE_OF_CONTENTS: b"", **many}))).message
    usual = a_set(tmp_path / "hello.apks", usual_parts(tmp_path))
    monkeypatch.setattr(apks, "FILES", 5)
    assert "more than 5 files" in refused(usual).message
    monkeypatch.undo()
    monkeypatch.setattr(apks, "MANIFESTS_BYTES", 2000)
    assert "AndroidManifest.xml claims" in refused(usual).message
    monkeypatch.undo()
    monkeypatch.setattr(apks, "PACKED_BYTES", 3000)
    assert inspect(usual).kind == "apks"
    packed = a_set(tmp_path / "packed.apks", usual_parts(tmp_path), zipfile.ZIP_DEFLATED)
    assert "claims" in refused(packed).message
