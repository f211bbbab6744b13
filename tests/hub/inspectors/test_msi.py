"""Windows Installer packages: built by wixl and msibuild, signed by osslsigncode, read by msiinfo too.

Where a package is made by hand, for the sizes and widths those tools do not write, msiinfo reads it as well.
"""

import html
import io
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Final
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hub.inspectors import compound, inspect, msi, msitables
from hub.inspectors.source import Source
from hub.matching import Selector
from hub.records import InstallerFacts
from protocol.errors import BadFileError
from tests.hub.inspectors.compounds import END, CompoundWriter, add_package
from tests.hub.inspectors.identities import identity
from tests.hub.inspectors.reading import Save, refused, run

needs_wixl = pytest.mark.skipif(not shutil.which("wixl"), reason="wixl is not installed")
needs_msitools = pytest.mark.skipif(not shutil.which("msiinfo"), reason="msitools are not installed")
needs_osslsigncode = pytest.mark.skipif(not shutil.which("osslsigncode"), reason="osslsigncode is not installed")

SOURCE: Final = """<?xml version="1.0" encoding="utf-8"?>
<Wix xmlns="http://schemas.microsoft.com/wix/2006/wi">
 <Product Id="*" Name="{name}" Version="{version}" Manufacturer="Lockstep" Language="1033"
   UpgradeCode="11111111-2222-3333-4444-555555555555">
  <Package InstallerVersion="200" Compressed="yes"/>
  {condition}
  <Media Id="1" Cabinet="a.cab" EmbedCab="yes"/>
  <Directory Id="TARGETDIR" Name="SourceDir"><Component Id="C" Guid="11111111-2222-3333-4444-555555555556">
   <File Id="f" Source="made.wxs" KeyPath="yes"/></Component></Directory>
  <Feature Id="F" Level="1"><ComponentRef Id="C"/></Feature>
 </Product>
</Wix>
"""
Build = Callable[..., Path]


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Build a package with wixl and return its path."""
    folder = tmp_path_factory.mktemp("msi")

    def made(
        name: str = "Hello Lockstep 1.2.3 (x64)", version: str = "1.2.3", condition: str = "", platform: str = "x64"
    ) -> Path:
        if condition:
            condition = f'<Condition Message="No.">{html.escape(condition)}</Condition>'
        source, path = folder / "made.wxs", folder / "made.msi"
        source.write_text(SOURCE.format(name=name, version=version, condition=condition), encoding="utf-8")
        run("wixl", "-a", platform, "-o", path, source)
        return path

    return made


@pytest.fixture(scope="module")
def whole(build: Build) -> bytes:
    """The bytes of one package as wixl makes it."""
    return build().read_bytes()


def a_package(version: int = 3, **how: object) -> bytes:
    """Return a package made by hand."""
    writer = CompoundWriter(version=version)
    add_package(writer, **how)  # type: ignore[arg-type]
    return writer.build()


def read(content: bytes) -> InstallerFacts:
    return msi.read_facts(Source(io.BytesIO(content), "made.msi"))


def table(path: Path, name: str = "Property") -> dict[str, str]:
    """What msiinfo reads of a table, behind its three lines of heading."""
    lines = run("msiinfo", "export", path, name).splitlines()[3:]
    return {key: value for key, _, value in (line.partition("\t") for line in lines)}


# --- what the tools make and msiinfo reads --------------------------------------------------------------------------
@needs_wixl
def test_a_package_gives_its_facts(build: Build) -> None:
    assert inspect(build(condition="Installed OR (VersionNT >= 603)")) == InstallerFacts(
        package_name="hello-lockstep",
        title="Hello Lockstep 1.2.3 (x64)",
        version="1.2.3",
        release="1.2.3",
        kind="msi",
        selector=Selector(os_types=("windows",), os_version_minimum="6.3", architectures=("x86_64",)),
        sortable_version="1.2.3.0",
    )


@needs_wixl
@needs_msitools
@pytest.mark.parametrize(("platform", "architecture"), [("x86", "x86"), ("x64", "x86_64")])
def test_msiinfo_reads_the_same(platform: str, architecture: str, build: Build) -> None:
    path = build(platform=platform, name="Grüße", condition="VersionNT >= 601")
    facts, properties = inspect(path), table(path)
    assert (facts.title, facts.version) == (properties["ProductName"], properties["ProductVersion"])
    assert table(path, "LaunchCondition") == {"VersionNT >= 601": "No."}
    assert facts.selector.os_version_minimum == "6.1"
    template = "Intel" if platform == "x86" else "x64"
    assert f"Template: {template};1033" in run("msiinfo", "suminfo", path)
    assert facts.selector.architectures == (architecture,)


@needs_wixl
@needs_msitools
@pytest.mark.parametrize(
    ("template", "architectures"),
    [("Arm64;1033", ("arm64",)), ("Arm;0", ("armv7",)), ("AMD64;1033", ("x86_64",)), (";1033,2046", ("x86",)),
     ("Intel,x64;0", ("x86", "x86_64"))],
)  # fmt: skip
def test_the_template_msibuild_writes_says_the_architecture(
    template: str, architectures: tuple[str, ...], build: Build
) -> None:
    path = build()
    run("msibuild", path, "-s", "name", "author", template, "{11111111-2222-3333-4444-555555555555}")
    assert f"Template: {template}" in run("msiinfo", "suminfo", path)
    assert inspect(path).selector.architectures == architectures


@needs_wixl
@needs_msitools
def test_a_platform_windows_has_no_more_is_refused_by_name(build: Build) -> None:
    path = build()
    run("msibuild", path, "-s", "name", "author", "Intel64;0", "{11111111-2222-3333-4444-555555555555}")
    assert "Intel64" in refused(path).message


@needs_wixl
@needs_osslsigncode
def test_the_signer_of_a_package_is_the_one_osslsigncode_verifies(build: Build, tmp_path: Path) -> None:
    one, path, out = identity("A publisher"), build(), tmp_path / "signed.msi"
    certificate, key = one.save(tmp_path)
    run("osslsigncode", "sign", "-certs", certificate, "-key", key, "-in", path, "-out", out)
    assert "Signature verification: ok" in run("osslsigncode", "verify", "-CAfile", certificate, "-in", out)
    assert inspect(out).signer_digest == one.digest
    assert inspect(path).signer_digest == ""


@needs_msitools
@pytest.mark.parametrize(
    ("version", "how"),
    [
        (3, {}),
        (4, {}),
        (3, {"wide": True}),
        (3, {"before": (b"x" * 70_000, b"y")}),
        (
            3,
            {
                "code_page": 65001,
                "encoding": "utf-8",
                "properties": {"ProductName": "微信 Setup", "ProductVersion": "1"},
            },
        ),
        (3, {"code_page": 936, "encoding": "gbk", "properties": {"ProductName": "微信 Setup", "ProductVersion": "1"}}),
    ],
    ids=["sectors of 512", "sectors of 4096", "wide references", "a long string", "UTF-8", "GBK"],
)
def test_msiinfo_reads_the_same_of_a_package_made_by_hand(version: int, how: dict[str, object], save: Save) -> None:
    path = save(a_package(version, **how))
    facts, properties = read(path.read_bytes()), table(path)
    assert (facts.title, facts.version) == (properties["ProductName"], properties["ProductVersion"])


@needs_msitools
def test_a_package_made_by_hand_whose_table_goes_on_beyond_the_header_is_read(save: Save) -> None:
    writer = CompoundWriter()
    writer.add("big.cab", bytes(8 << 20))  # 128 sectors of the FAT, and the header lists 109
    add_package(writer)
    path = save(writer.build())
    assert read(path.read_bytes()).title == table(path)["ProductName"] == "Hand-made"
    with pytest.raises(BadFileError, match="cut off"):
        read(path.read_bytes()[: 4 << 20])


def test_a_package_kept_in_a_folder_of_a_package_made_by_hand_is_not_read() -> None:
    writer = CompoundWriter()
    add_package(writer, {"ProductName": "Inner", "ProductVersion": "9"})
    writer.add_folder("inner")
    add_package(writer)
    assert read(writer.build()).title == "Hand-made"


# --- conditions and versions ----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("conditions", "minimum"),
    [
        (("VersionNT >= 603",), "6.3"),
        (("Installed OR (VersionNT >= 601)",), "6.1"),
        (("(VersionNT >= v1000) OR Installed", "VersionNT64 >= 603"), "10.0"),
        (("VersionNT64",), ""),
        (("VersionNT > 502",), ""),
        (("VersionNT >= 603 AND NOT MsiNTProductType = 2",), ""),
        (("NOT VersionNT >= 603",), ""),
    ],
)
def test_only_a_plain_condition_in_a_package_made_by_hand_is_a_minimum(
    conditions: tuple[str, ...], minimum: str
) -> None:
    assert read(a_package(conditions=conditions)).selector.os_version_minimum == minimum


@pytest.mark.parametrize(
    ("version", "sortable"), [("1", "1.0.0.0"), ("1.02", "1.2.0.0"), ("10.0.19041.685", "10.0.19041.685")]
)
def test_the_version_of_a_package_made_by_hand_sorts_by_four_numbers(version: str, sortable: str) -> None:
    facts = read(a_package(properties={"ProductName": "Made", "ProductVersion": version}))
    assert (facts.version, facts.sortable_version) == (version, sortable)


@pytest.mark.parametrize(
    ("properties", "fault"),
    [
        ({"ProductName": "Made"}, "no ProductVersion"),
        ({"ProductVersion": "1.0"}, "no ProductName"),
        ({"ProductName": "Made", "ProductVersion": "new"}, "'new'"),
        ({"ProductName": "Made", "ProductVersion": "1.2.3.4.5"}, "'1.2.3.4.5'"),
        ({"ProductName": " ", "ProductVersion": "1"}, "its product ''"),
        ({"ProductName": "Made", "ProductVersion": "1" * 5000}, "which is none"),
    ],
)
def test_properties_made_by_hand_that_make_no_sense_are_refused(
    properties: dict[str, str], fault: str, save: Save
) -> None:
    assert fault in refused(save(a_package(properties=properties))).message


# --- what is no package ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("document", "fault"),
    [
        ("000c1086-0000-0000-c000-000000000046", "patch (.msp)"),
        ("000c1082-0000-0000-c000-000000000046", "transform (.mst)"),
        ("00020906-0000-0000-c000-000000000046", "Office documents"),
    ],
)
def test_another_document_made_by_hand_in_a_compound_file_is_refused_in_words(
    document: str, fault: str, save: Save
) -> None:
    writer = CompoundWriter(UUID(document))
    add_package(writer)
    assert fault in refused(save(writer.build())).message


@needs_wixl
@needs_msitools
def test_a_merge_module_is_refused(build: Build, tmp_path: Path) -> None:
    path, rows = build(), tmp_path / "module.idt"
    heading = "ModuleID\tLanguage\tVersion\ns72\ti2\ts32\nModuleSignature\tModuleID\tLanguage\n"
    rows.write_text(f"{heading}made.1\t1033\t1.0\n")
    run("msibuild", path, "-i", rows)
    assert "merge module" in refused(path).message


# --- damage ---------------------------------------------------------------------------------------------------------
@needs_wixl
def test_a_package_cut_off_anywhere_is_refused(whole: bytes) -> None:
    for length in (*range(0, len(whole), 64), len(whole) - 1):
        with pytest.raises(BadFileError):
            read(whole[:length])


def test_an_empty_compound_file_made_by_hand_is_refused(save: Save) -> None:
    assert "no tables" in refused(save(CompoundWriter().build())).message


def header(content: bytes, at: int, form: str, value: int) -> bytes:
    changed = bytearray(content)
    struct.pack_into(form, changed, at, value)
    return bytes(changed)


@pytest.mark.parametrize(
    ("at", "form", "value"),
    [
        (26, "<H", 5),  # version
        (28, "<H", 0xFEFF),  # byte order
        (30, "<H", 31),  # bytes of a sector, as a power of two
        (32, "<H", 1),
        (44, "<I", 0xFFFF_FFFF),  # sectors of the FAT
        (44, "<I", 0),
        (48, "<I", 0x7FFF_FFFF),  # the directory's first sector
        (48, "<I", END),
        (56, "<I", 0),  # below which streams are small
        (60, "<I", 0x7FFF_FFFF),  # the first sector of the small streams' table
        (64, "<I", 0xFFFF_FFFF),  # its sectors
        (76, "<I", 0x7FFF_FFFF),  # the FAT's first sector
    ],
)
def test_a_header_patched_in_a_package_made_by_hand_is_refused(at: int, form: str, value: int, save: Save) -> None:
    refused(save(header(a_package(), at, form, value)))


def test_a_directory_patched_to_run_in_a_circle_is_refused(save: Save) -> None:
    content = a_package()
    directory = int.from_bytes(content[48:52], "little")
    fat = 512 * (1 + int.from_bytes(content[76:80], "little"))
    patched = header(content, fat + 4 * directory, "<I", directory)
    assert "runs in a circle" in refused(save(patched)).message


def test_a_tree_of_streams_patched_to_run_in_a_circle_ends() -> None:
    content = a_package()
    directory = 512 * (1 + int.from_bytes(content[48:52], "little"))
    for number in (1, 2):
        content = header(content, directory + 128 * number + 68, "<I", 1)  # the left neighbour
    assert read(content).title == "Hand-made"


@pytest.mark.parametrize(
    ("name", "limit"),
    [
        ("_StringPool", msitables.POOL_BYTES),
        ("_StringData", msitables.STRINGS_BYTES),
        ("Property", msitables.TABLE_BYTES),
    ],
)
def test_a_stream_larger_than_its_limit_in_a_package_made_by_hand_is_refused(name: str, limit: int, save: Save) -> None:
    content = a_package()
    packed = next(one for one in compound.CompoundFile.open(io.BytesIO(content), len(content)).streams
                  if msitables.plain_name(one) == f"!{name}")  # fmt: skip
    entry = content.index(packed.encode("utf-16-le"))
    assert str(limit) in refused(save(header(content, entry + 120, "<I", limit + 1))).message
    refused(save(header(content, entry + 120, "<I", limit)))


@settings(max_examples=200, deadline=None)
@given(changes=st.lists(st.tuples(st.integers(0, 1 << 14), st.integers(0, 255)), min_size=1, max_size=8))
def test_whatever_bytes_of_a_package_made_by_hand_are_changed_it_is_facts_or_a_refusal(
    changes: list[tuple[int, int]],
) -> None:
    content = bytearray(PACKAGE)
    for at, value in changes:
        content[at % len(content)] = value
    try:
        read(bytes(content))
    except BadFileError:
        return


PACKAGE: Final = a_package(conditions=("VersionNT >= 603",))
