"""iOS packages, and the property lists they are read from. No vendor's IPA is to be had without an Apple account: all
here are stand-ins, put together by hand; `plistutil` reads the same property lists where it is installed.
"""

import hashlib
import plistlib
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hub.inspectors import inspect, plist
from hub.matching import Selector
from hub.records import InstallerFacts
from protocol.errors import BadFileError
from tests.hub.inspectors.reading import Save, a_zip, refused, run

FOLDER = "Payload/Hello.app"
INFO: dict[str, Any] = {
    "CFBundleIdentifier": "org.example.hello",
    "CFBundleName": "Hello",
    "CFBundleDisplayName": "Hello 你好",
    "CFBundleShortVersionString": "2.1",
    "CFBundleVersion": "57",
    "CFBundleExecutable": "Hello",
    "CFBundleSupportedPlatforms": ["iPhoneOS"],
    "MinimumOSVersion": "13.0",
    "UIDeviceFamily": [1, 2],
    "UIRequiredDeviceCapabilities": ["arm64", "nfc"],
    "CFBundleIcons": {"CFBundlePrimaryIcon": {"CFBundleIconFiles": ["AppIcon20x20", "AppIcon60x60"]}},
}
ARM, ARM64, X86_64 = 12, 0x0100000C, 0x01000007
CERTIFICATE = b"a certificate"
TREE_DEPTH = 2_000

needs_plistutil = pytest.mark.skipif(not shutil.which("plistutil"), reason="plistutil is not installed")


def an_ipa(changes: dict[str, Any] | None = None, members: dict[str, bytes] | None = None, xml: bool = False) -> bytes:
    """Return a stand-in IPA whose Info.plist has `changes`; None takes a key away."""
    info = {key: value for key, value in {**INFO, **(changes or {})}.items() if value is not None}
    form = plistlib.FMT_XML if xml else plistlib.FMT_BINARY
    return a_zip({f"{FOLDER}/Info.plist": plistlib.dumps(info, fmt=form), **(members or {})})


def a_program(*processors: int) -> bytes:
    """Return the head of a Mach-O file with code for `processors`, as mach-o/loader.h and mach-o/fat.h lay it out."""
    if len(processors) == 1:
        return struct.pack("<II", 0xFEEDFACF, processors[0]).ljust(8192, b"\0")
    parts = b"".join(struct.pack(">5I", processor, 0, 4096, 4096, 12) for processor in processors)
    return (struct.pack(">II", 0xCAFEBABE, len(processors)) + parts).ljust(8192, b"\0")


def selector_of(path: Path) -> Selector:
    return inspect(path).selector


@pytest.mark.parametrize("xml", [True, False], ids=["xml", "binary"])
def test_a_stand_in_ipa_gives_its_facts(xml: bool, save: Save) -> None:
    members = {f"{FOLDER}/AppIcon60x60@2x.png": b"", f"{FOLDER}/AppIcon20x20@2x.png": b""}
    assert inspect(save(an_ipa(members=members, xml=xml))) == InstallerFacts(
        package_name="org.example.hello",
        title="Hello 你好",
        version="2.1",
        release="2.1",
        kind="ipa",
        selector=Selector(
            os_types=("ios",),
            os_version_minimum="13.0",
            architectures=("arm64",),
            form_factors=("phone", "tablet"),
            features_required=("nfc",),
        ),
        sortable_version="2.1.0.57",
        icon=f"{FOLDER}/AppIcon60x60@2x.png",
    )


@needs_plistutil
@pytest.mark.parametrize("xml", [True, False], ids=["xml", "binary"])
def test_plistutil_reads_the_same_from_a_property_list(xml: bool, tmp_path: Path) -> None:
    path = tmp_path / "Info.plist"
    path.write_bytes(plistlib.dumps(INFO, fmt=plistlib.FMT_XML if xml else plistlib.FMT_BINARY))
    told = run("plistutil", "-i", path, "-f", "xml", "-o", "-")
    assert plistlib.loads(told.encode()) == plist.read_plist(path.read_bytes()) == INFO


# --- versions -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("short", "build", "version", "sortable"),
    [
        ("2.1", "57", "2.1", "2.1.0.57"),
        ("2", "1.5.9", "2", "2.0.0.1.5.9"),
        ("2.1.3", "2.1.3", "2.1.3", "2.1.3.2.1.3"),
        ("2.1-beta", "57", "2.1-beta", "57"),
        (None, "57", "57", "57"),
    ],
)
def test_builds_of_a_stand_in_are_ordered_by_short_version_and_then_build(
    short: str | None, build: str, version: str, sortable: str, save: Save
) -> None:
    facts = inspect(save(an_ipa({"CFBundleShortVersionString": short, "CFBundleVersion": build})))
    assert (facts.version, facts.release, facts.sortable_version) == (version, version, sortable)


# --- which devices --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("family", "forms"),
    [
        ([1], ("phone", "tablet")),
        ([2], ("tablet",)),
        (["1", "2"], ("phone", "tablet")),
        ([2, 7], ("tablet",)),
        (2, ("tablet",)),
    ],
)
def test_a_stand_in_for_the_phone_runs_on_the_tablet_too(family: object, forms: tuple[str, ...], save: Save) -> None:
    assert selector_of(save(an_ipa({"UIDeviceFamily": family}))).form_factors == forms


def test_a_stand_in_without_a_device_family_is_for_the_phone(save: Save) -> None:
    assert selector_of(save(an_ipa({"UIDeviceFamily": None}))).form_factors == ("phone", "tablet")


@pytest.mark.parametrize(
    ("capabilities", "program", "architectures"),
    [
        (["arm64"], b"", ("arm64",)),
        (["armv7"], b"", ("arm64", "armv7")),
        ([], b"", ()),
        ([], a_program(ARM64), ("arm64",)),
        ([], a_program(ARM, ARM64), ("arm64", "armv7")),
        (["armv7"], a_program(ARM64), ("arm64",)),
        (["arm64"], a_program(ARM, ARM64), ("arm64",)),
        ([], a_program(X86_64, ARM64), ("arm64",)),
        ([], b"#!/bin/sh", ()),
        ([], b"\xca\xfe\xba\xbe" + b"\xff" * 8188, ()),
    ],
)
def test_the_architectures_of_a_stand_in_are_those_of_its_executable_that_its_capabilities_allow(
    capabilities: list[str], program: bytes, architectures: tuple[str, ...], save: Save
) -> None:
    members = {f"{FOLDER}/Hello": program} if program else {}
    path = save(an_ipa({"UIRequiredDeviceCapabilities": capabilities}, members))
    assert selector_of(path).architectures == architectures


def test_capabilities_in_a_dictionary_of_a_stand_in_are_required_or_forbidden(save: Save) -> None:
    capabilities = {"telephony": True, "front-facing-camera": False, "armv7": True}
    selector = selector_of(save(an_ipa({"UIRequiredDeviceCapabilities": capabilities})))
    assert (selector.features_required, selector.features_forbidden) == (("telephony",), ("front-facing-camera",))


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"CFBundleSupportedPlatforms": ["iPhoneSimulator"]}, "simulator"),
        ({"CFBundleSupportedPlatforms": None, "DTPlatformName": "iphonesimulator"}, "simulator"),
        ({"CFBundleSupportedPlatforms": ["AppleTVOS"]}, "AppleTVOS"),
        ({"CFBundleSupportedPlatforms": ["WatchOS"]}, "WatchOS"),
        ({"UIDeviceFamily": [3]}, "device families [3]"),
        ({"UIRequiredDeviceCapabilities": ["f" * 65]}, "capabilities"),
        ({"UIRequiredDeviceCapabilities": [f"f{number}" for number in range(65)]}, "capabilities"),
        ({"CFBundleIdentifier": None}, "bundle identifier"),
        ({"CFBundleIdentifier": "two words"}, "two words"),
        ({"CFBundleIdentifier": ["a", "list"]}, "bundle identifier"),
        ({"CFBundleShortVersionString": None, "CFBundleVersion": None}, "no version"),
        ({"CFBundleVersion": "5" * 65}, "no version"),
        ({"CFBundleShortVersionString": "1" * 65}, "64 characters"),
    ],
)
def test_an_app_no_device_here_could_install_is_refused_in_words(
    changes: dict[str, Any], fault: str, save: Save
) -> None:
    assert fault in refused(save(an_ipa(changes))).message


def test_an_app_that_demands_64_bits_and_has_no_such_code_is_refused(save: Save) -> None:
    assert "no code for" in refused(save(an_ipa(members={f"{FOLDER}/Hello": a_program(ARM)}))).message


def test_two_apps_in_one_package_are_refused(save: Save) -> None:
    assert "more than one app" in refused(save(an_ipa(members={"Payload/B.app/Info.plist": b""}))).message


def test_a_stand_in_of_before_platforms_were_named_is_read(save: Save) -> None:
    assert selector_of(save(an_ipa({"CFBundleSupportedPlatforms": None}))).os_types == ("ios",)


@pytest.mark.parametrize("value", [7, True, ["x"], {"a": b"b"}, b"bytes", ""])
@pytest.mark.parametrize("key", sorted(set(INFO) - {"CFBundleIdentifier", "CFBundleVersion"}))
def test_a_value_of_another_type_is_ignored_or_refused(key: str, value: object, save: Save) -> None:
    try:
        assert inspect(save(an_ipa({key: value}))).package_name == "org.example.hello"
    except BadFileError as error:
        assert error.message.endswith(".")


# --- the signer -----------------------------------------------------------------------------------------------------
def test_the_signer_of_a_stand_in_is_the_first_certificate_of_its_profile(save: Save) -> None:
    profile = b"\x30\x82" + plistlib.dumps({"Name": "a", "DeveloperCertificates": [CERTIFICATE, b"b"]}) + b"\0signature"
    path = save(an_ipa(members={f"{FOLDER}/embedded.mobileprovision": profile}))
    assert inspect(path).signer_digest == hashlib.sha256(CERTIFICATE).hexdigest()


@pytest.mark.parametrize("profile", [b"", b"no list", b"<?xml", b"</plist><?xml", b"<?xml <</plist>"])
def test_a_damaged_profile_is_refused(profile: bytes, save: Save) -> None:
    assert "damaged" in refused(save(an_ipa(members={f"{FOLDER}/embedded.mobileprovision": profile}))).message


# --- property lists that nobody should have made --------------------------------------------------------------------
def why_refused(data: bytes) -> str:
    with pytest.raises(BadFileError) as caught:
        plist.read_plist(data)
    return caught.value.message


def binary(objects: list[bytes], offsets: list[int] | None = None, root: int = 0) -> bytes:
    """Return a binary property list of `objects`; references have two bytes, offsets four."""
    places = [8 + sum(map(len, objects[:index])) for index in range(len(objects))] if offsets is None else offsets
    body = b"bplist00" + b"".join(objects)
    table = b"".join(struct.pack(">I", place) for place in places)
    return body + table + struct.pack(">6xBBQQQ", 4, 2, len(places), root, len(body))


def test_entities_in_xml_are_refused() -> None:
    bomb = b'<!DOCTYPE plist [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><plist><dict><key>&b;</key><true/></dict></plist>'
    assert "declares" in why_refused(b'<?xml version="1.0"?>' + bomb)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_attributes_declared_for_every_element_are_refused_at_once(encoding: str) -> None:
    declared = "".join(f'<!ATTLIST true b{number} CDATA "y">' for number in range(10_000))  # a minute for each reader
    text = f"<!DOCTYPE plist [{declared}]><plist><dict><key>a</key><array>{'<true/>' * 30_000}</array></dict></plist>"
    assert "declares" in why_refused(f'<?xml version="1.0" encoding="{encoding}"?>{text}'.encode(encoding))


def test_many_objects_over_the_same_bytes_are_refused() -> None:
    text = b"\x5f\x12" + struct.pack(">I", 50_000) + b"a" * 50_000
    assert "over each other" in why_refused(binary([b"\xd0", text], [8] + [9] * 60_000))
    lists = b"\xaf\x12" + struct.pack(">I", 20_000) + bytes(40_000)
    assert "over each other" in why_refused(binary([b"\xd0", lists], [8] + [9] * 30_000))


@pytest.mark.parametrize("count", [plist.OBJECTS + 1, 1 << 40, (1 << 64) - 1])
def test_more_objects_than_the_limit_or_the_file_hold_are_refused(count: int) -> None:
    data = bytearray(binary([b"\xd0"]))
    struct.pack_into(">Q", data, len(data) - 24, count)
    assert "claims" in why_refused(bytes(data))


def test_a_list_that_holds_itself_and_one_that_is_very_deep_end() -> None:
    key = b"\x51k"
    assert plist.read_plist(binary([b"\xd1\0\1\0\2", key, b"\xa1\0\2"]))["k"]
    deep = [b"\xd1\0\1\0\2", key, *(b"\xa1" + struct.pack(">H", index + 3) for index in range(TREE_DEPTH)), b"\xa0"]
    assert "damaged" in why_refused(binary(deep))
    tower = b"<dict><key>k</key>" + b"<array>" * TREE_DEPTH + b"</array>" * TREE_DEPTH + b"</dict>"
    assert plist.read_plist(b'<?xml version="1.0"?><plist>' + tower + b"</plist>")["k"]


def test_a_property_list_larger_than_the_limit_or_of_no_dictionary_is_refused() -> None:
    assert "at most" in why_refused(bytes(plist.PLIST_BYTES + 1))
    assert "no dictionary" in why_refused(plistlib.dumps(["a"], fmt=plistlib.FMT_BINARY))
    assert "damaged" in why_refused(b"bplist00")


@settings(max_examples=200, deadline=None)
@given(
    changes=st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), max_size=6),
    length=st.integers(0, 1 << 10),
    xml=st.booleans(),
)
def test_whatever_bytes_of_a_property_list_are_changed_it_is_a_dictionary_or_a_refusal(
    changes: list[tuple[int, int]], length: int, xml: bool
) -> None:
    data = bytearray(plistlib.dumps(INFO, fmt=plistlib.FMT_XML if xml else plistlib.FMT_BINARY))
    for at, value in changes:
        data[at % len(data)] = value
    try:
        assert isinstance(plist.read_plist(bytes(data if length > 900 else data[:length])), dict)
    except BadFileError as error:
        assert error.message.endswith(".")
