"""Windows programs: built by GNU ld, windres and makensis, signed by osslsigncode, read by pefile too.

The launchers that pip ships with are real programs of another vendor. What none of those tools makes (programs for
.NET, damage) is patched into what they made, and the test's name says so.
"""

import importlib.util
import io
import shutil
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pefile
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hub.inspectors import exe, inspect, portable, products
from hub.inspectors.source import Source
from hub.matching import Selector
from hub.records import InstallerFacts
from protocol.errors import BadFileError
from tests.hub.inspectors.identities import identity
from tests.hub.inspectors.reading import Save, refused, run

PREFIX: Final = "x86_64-w64-mingw32"
needs_binutils = pytest.mark.skipif(not shutil.which(f"{PREFIX}-windres"), reason="binutils-mingw-w64 is not installed")
needs_nsis = pytest.mark.skipif(not shutil.which("makensis"), reason="makensis is not installed")
needs_osslsigncode = pytest.mark.skipif(not shutil.which("osslsigncode"), reason="osslsigncode is not installed")

Build = Callable[..., Path]
TEXTS: Final = {"ProductName": "Hello Lockstep", "ProductVersion": "5.6 beta", "FileVersion": "1.2.3.4"}


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Link a program with a version resource and return its path."""
    folder = tmp_path_factory.mktemp("exe")
    (folder / "start.s").write_text(".globl start\nstart:\n ret\n")
    run(f"{PREFIX}-as", folder / "start.s", "-o", folder / "start.o")

    def made(
        texts: dict[str, str] | None = TEXTS, product: str = "5,6,7,8", subsystem: str = "console", *more: str
    ) -> Path:
        resources = []
        if texts is not None:
            resources = [folder / "version.o"]
            (folder / "version.rc").write_text(version_resource(texts, product), encoding="utf-8")
            run(
                f"{PREFIX}-windres", "--use-temp-file", "--preprocessor=cat", "--codepage=65001",
                "-i", folder / "version.rc", "-O", "coff", "-o", resources[0],
            )  # fmt: skip
        path = folder / "made.exe"
        run(f"{PREFIX}-ld", "--subsystem", subsystem, *more, "-e", "start", folder / "start.o", *resources, "-o", path)
        return path

    return made


def version_resource(texts: dict[str, str], product: str) -> str:
    values = "".join(f'VALUE "{name}", "{text}"\n' for name, text in texts.items())
    return (
        f"1 VERSIONINFO\nFILEVERSION 1,2,3,4\nPRODUCTVERSION {product}\nBEGIN\n"
        f'BLOCK "StringFileInfo"\nBEGIN\nBLOCK "040904B0"\nBEGIN\n{values}END\nEND\nEND\n'
    )


@pytest.fixture(scope="module")
def whole(build: Build) -> bytes:
    """The bytes of one program as ld links it."""
    return build().read_bytes()


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A setup program as makensis makes it."""
    folder = tmp_path_factory.mktemp("nsis")
    keys = "".join(f'VIAddVersionKey "{name}" "{text}"\n' for name, text in {**TEXTS, "FileDescription": "x"}.items())
    (folder / "setup.nsi").write_text(
        f'Unicode true\nOutFile "setup.exe"\nName "Hello"\nVIProductVersion 5.6.7.8\n{keys}Section\nSectionEnd\n'
    )
    run("makensis", "-V2", folder / "setup.nsi")
    return folder / "setup.exe"


def launchers() -> list[Path]:
    """The launchers that pip makes console commands of: real programs, for three machines."""
    found = importlib.util.find_spec("pip._vendor.distlib")
    assert found is not None and found.origin is not None
    return sorted(Path(found.origin).parent.glob("*.exe"))


def peer(path: Path) -> dict[str, object]:
    """What pefile reads of a program."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = pefile.PE(path, fast_load=True)
        program.parse_data_directories([pefile.DIRECTORY_ENTRY["IMAGE_DIRECTORY_ENTRY_RESOURCE"]])
    tables = [
        table for one in getattr(program, "FileInfo", []) for info in one for table in getattr(info, "StringTable", [])
    ]
    texts = {key.decode(): value.decode() for table in tables[:1] for key, value in table.entries.items()}
    fixed = getattr(program, "VS_FIXEDFILEINFO", [None])[0]
    parts = (fixed.ProductVersionMS, fixed.ProductVersionLS) if fixed else ()
    header = program.OPTIONAL_HEADER
    result = {
        "machine": program.FILE_HEADER.Machine,
        "subsystem": (header.MajorSubsystemVersion, header.MinorSubsystemVersion),
        "name": texts.get("ProductName", ""),
        "version": texts.get("ProductVersion", ""),
        "numbers": ".".join(f"{part >> 16}.{part & 0xFFFF}" for part in parts),
    }
    program.close()
    return result


def read(content: bytes) -> InstallerFacts:
    return exe.read_facts(Source(io.BytesIO(content), "made.exe"))


def patched(content: bytes, at: int, form: str, *values: int) -> bytes:
    changed = bytearray(content)
    struct.pack_into(form, changed, at, *values)
    return bytes(changed)


def header(content: bytes) -> int:
    """Where the PE header begins; the optional header is 24 bytes further."""
    return int.from_bytes(content[0x3C:0x40], "little")


# --- what the tools make and pefile reads ---------------------------------------------------------------------------
@needs_binutils
def test_a_program_gives_its_facts(build: Build) -> None:
    assert inspect(build()) == InstallerFacts(
        package_name="hello-lockstep",
        title="Hello Lockstep",
        version="5.6 beta",
        release="5.6 beta",
        kind="exe",
        selector=Selector(os_types=("windows",), os_version_minimum="5.2", architectures=("x86_64",)),
        sortable_version="5.6.7.8",
    )


@needs_binutils
@pytest.mark.parametrize(("subsystem", "minimum"), [("4.0", ""), ("6.1", "6.1"), ("10.0", "10.0")])
def test_the_version_of_the_subsystem_is_the_oldest_windows_that_starts_it(
    subsystem: str, minimum: str, build: Build
) -> None:
    path = build(TEXTS, "1,0,0,0", f"windows:{subsystem}")
    assert inspect(path).selector.os_version_minimum == minimum
    assert ".".join(map(str, peer(path)["subsystem"])) == subsystem  # type: ignore[call-overload]


@needs_nsis
def test_a_setup_of_makensis_gives_the_facts_pefile_reads(setup: Path) -> None:
    facts, other = inspect(setup), peer(setup)
    assert (facts.title, facts.version, facts.sortable_version) == (other["name"], other["version"], other["numbers"])
    assert (facts.package_name, facts.version) == ("hello-lockstep", "5.6 beta")
    assert (facts.selector.architectures, other["machine"]) == (("x86",), 0x14C)


@pytest.mark.parametrize("path", launchers(), ids=lambda path: path.name)
def test_a_real_launcher_gives_the_facts_pefile_reads(path: Path) -> None:
    facts, other = inspect(path), peer(path)
    assert (facts.title, facts.version, facts.sortable_version) == (other["name"], other["version"], other["numbers"])
    assert facts.selector == Selector(
        os_types=("windows",),
        os_version_minimum="{}.{}".format(*other["subsystem"]),  # type: ignore[misc]
        architectures=(exe.MACHINES[other["machine"]],),  # type: ignore[index]
    )
    assert facts.package_name == "simple-launcher"


def test_the_real_launchers_are_there_for_three_machines() -> None:
    assert {peer(path)["machine"] for path in launchers()} == {0x14C, 0x8664, 0xAA64}


@needs_nsis
@needs_osslsigncode
def test_the_signer_of_a_program_is_the_one_osslsigncode_verifies(setup: Path, tmp_path: Path) -> None:
    one, out = identity("A publisher"), tmp_path / "signed.exe"
    certificate, key = one.save(tmp_path)
    run("osslsigncode", "sign", "-certs", certificate, "-key", key, "-in", setup, "-out", out)
    assert "Signature verification: ok" in run("osslsigncode", "verify", "-CAfile", certificate, "-in", out)
    assert inspect(out).signer_digest == one.digest
    assert inspect(setup).signer_digest == ""


# --- names and versions ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "program"),
    [
        ("7-Zip", "7-zip"),
        ("7-Zip 21.07 (x64 edition)", "7-zip"),
        ("Python 3.11.4 (64-bit)", "python"),
        ("Notepad++ 8.5.2 (x64)", "notepad++"),
        ("Paint.NET v4.2.1", "paint.net"),
        ("Visual Studio 2022", "visual-studio-2022"),
        ("Mozilla Firefox ESR (x86 de)", "mozilla-firefox-esr-de"),
        ("Café Größe®", "cafe-grosse"),
        ("Something x86_64", "something"),
        ("微信", ""),
        ("QQ音乐", ""),
        ("Microsoft® Windows® Operating System", ""),
        ("Setup (x64)", ""),
        ("1.0", ""),
        ("", ""),
    ],
)
def test_a_program_id_is_the_products_name_without_what_changes(name: str, program: str) -> None:
    assert products.program_id(name) == program


@needs_binutils
@pytest.mark.parametrize(
    ("texts", "product", "version", "sortable"),
    [
        ({"ProductVersion": "2.0.1+eef37460ae"}, "2,0,1,0", "2.0.1+eef37460ae", "2.0.1.0"),
        ({"ProductVersion": "1, 2, 0, 4 "}, "1,2,0,4", "1.2.0.4", "1.2.0.4"),
        (
            {"ProductVersion": "10.0.19041.685 (WinBuild.160101.0800)"},
            "10,0,19041,685",
            "10.0.19041.685",
            "10.0.19041.685",
        ),
        ({"ProductVersion": "latest", "FileVersion": "3.1"}, "3,1,0,0", "3.1", "3.1.0.0"),
        ({"FileVersion": "3.1"}, "0,0,0,0", "3.1", "1.2.3.4"),
        ({}, "4,0,0,1", "4.0.0.1", "4.0.0.1"),
        ({"ProductVersion": "1." * 33 + "0"}, "1,0,0,0", "1.0.0.0", "1.0.0.0"),
    ],
)
def test_the_version_is_its_makers_words_where_they_are_one_and_its_numbers_otherwise(
    texts: dict[str, str], product: str, version: str, sortable: str, build: Build
) -> None:
    facts = inspect(build({"ProductName": "Made", **texts}, product))
    assert (facts.version, facts.release, facts.sortable_version) == (version, version, sortable)


@needs_binutils
def test_a_program_without_a_version_resource_is_refused_with_the_sidecar_that_serves_it(build: Build) -> None:
    error = refused(build(None))
    assert "what it is called and which version" in error.message
    assert "made.exe.lockstep.toml" in error.hint


@needs_binutils
def test_a_name_that_cannot_be_typed_is_a_title_and_no_program_id(build: Build) -> None:
    facts = read(build({"ProductName": "微信"}).read_bytes())
    assert (facts.package_name, facts.title) == ("", "微信")


# --- machines, and what is no program -------------------------------------------------------------------------------
@needs_binutils
@pytest.mark.parametrize(
    ("subsystem", "more", "fault"),
    [
        ("console", ("-shared",), "a library (DLL)"),
        ("native", (), "a driver"),
        ("wince", (), "Windows CE"),
        ("posix", (), "POSIX"),
        ("xbox", (), "Xbox"),
        ("10", (), "an EFI program"),
        ("11", (), "an EFI driver"),
        ("200", (), "unknown subsystem 200"),
    ],
)
def test_what_ld_links_for_something_else_than_windows_is_refused_in_words(
    subsystem: str, more: tuple[str, ...], fault: str, build: Build
) -> None:
    assert fault in refused(build(None, "", subsystem, *more)).message


@needs_binutils
def test_a_program_patched_to_another_machine_is_refused_by_its_number(whole: bytes, save: Save) -> None:
    assert "0x200" in refused(save(patched(whole, header(whole) + 4, "<H", 0x200))).message


@needs_binutils
@pytest.mark.parametrize("flag", [exe._SYSTEM_FILE, 0])
def test_a_program_patched_to_be_a_driver_or_unfinished_is_refused(flag: int, whole: bytes, save: Save) -> None:
    assert "not a program" in refused(save(patched(whole, header(whole) + 22, "<H", flag))).message


@needs_nsis
@pytest.mark.parametrize(
    ("flags", "architectures"),
    [(0x1, ()), (0x20003, ()), (0x9, ()), (0x3, ("x86",)), (0x0, ("x86",)), (0x10, ("x86",))],
)
def test_a_program_patched_to_be_of_net_runs_anywhere_unless_it_needs_32_bits(
    flags: int, architectures: tuple[str, ...], setup: Path
) -> None:
    content = setup.read_bytes()
    section = pefile.PE(data=content, fast_load=True).sections[0]
    directory = header(content) + 24 + 96 + 8 * portable.RUNTIME
    content = patched(content, directory, "<2I", section.VirtualAddress, 72)
    assert read(patched(content, section.PointerToRawData + 16, "<I", flags)).selector.architectures == architectures


@pytest.mark.parametrize("content", [b"MZ", b"MZ" + bytes(62), b"MZ" + bytes(58) + b"\x40\0\0\0NE" + bytes(99)])
def test_a_program_for_dos_or_16_bit_windows_is_refused(content: bytes, save: Save) -> None:
    refused(save(content))


@needs_binutils
def test_an_archive_appended_to_a_program_changes_no_fact(whole: bytes) -> None:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as packed:
        packed.writestr("AndroidManifest.xml", b"x")
    assert read(whole + archive.getvalue()) == read(whole)


# --- damage ---------------------------------------------------------------------------------------------------------
@needs_binutils
def test_a_program_cut_off_within_its_sections_is_refused(whole: bytes) -> None:
    program = pefile.PE(data=whole, fast_load=True)
    end = max(section.PointerToRawData + section.SizeOfRawData for section in program.sections)
    assert read(whole[:end]) == read(whole)
    for length in (*range(0, end, 16), end - 1):
        with pytest.raises(BadFileError):
            read(whole[:length])


@needs_nsis
def test_a_setup_of_makensis_cut_off_behind_the_program_is_refused(setup: Path) -> None:
    content = setup.read_bytes()
    header_end = content.index(b"NullsoftInst") + 20
    assert header_end < len(content) - 1
    for length in (*range(header_end, len(content), 64), len(content) - 1):
        with pytest.raises(BadFileError, match=f"should have {len(content)} bytes and has {length}"):
            read(content[:length])


@needs_binutils
@pytest.mark.parametrize(
    ("at", "form", "value"),
    [
        (6, "<H", portable.SECTIONS + 1),
        (20, "<H", 64),
        (24, "<H", 0x107),
        (24 + 112 + 8 * portable.RESOURCES, "<I", 0x7FFF_FFFF),
        (24 + 112 + 8 * portable.SECURITY + 4, "<I", 0x7FFF_FFFF),
        (24 + 112 + 8 * portable.SECURITY + 4, "<I", 64),
    ],
)
def test_a_header_patched_to_make_no_sense_is_refused(at: int, form: str, value: int, whole: bytes, save: Save) -> None:
    refused(save(patched(whole, header(whole) + at, form, value)))


def resources(content: bytes) -> int:
    """Where the resource tree begins in the file."""
    program = pefile.PE(data=content, fast_load=True)
    offset: int = program.get_offset_from_rva(program.OPTIONAL_HEADER.DATA_DIRECTORY[portable.RESOURCES].VirtualAddress)
    return offset


@needs_binutils
@pytest.mark.parametrize(
    ("at", "value"),
    [
        (14, portable.RESOURCE_ENTRIES + 1),  # the number of types
        (14, portable.RESOURCE_ENTRIES - 9),
        (20, 0x8000_0000),  # where the type leads: back to the root, for ever
        (20, 0x48),  # a leaf where a directory has to be
        (20, 0xFFFF_FFFF),
        (0x48, 0x7FFF_FFFF),  # where the resource lies
        (0x4C, portable.RESOURCE_BYTES + 1),
    ],
)
def test_resources_patched_to_lead_astray_are_refused(at: int, value: int, whole: bytes, save: Save) -> None:
    form = "<H" if at == 14 else "<I"
    refused(save(patched(whole, resources(whole) + at, form, value)))


@settings(max_examples=150, deadline=None)
@given(changes=st.lists(st.tuples(st.integers(0, 1 << 13), st.integers(0, 255)), min_size=1, max_size=8))
def test_whatever_bytes_of_a_program_are_changed_it_is_facts_or_a_refusal(
    changes: list[tuple[int, int]],
) -> None:
    content = bytearray(launchers()[0].read_bytes())
    for at, value in changes:
        content[at % len(content)] = value
    try:
        read(bytes(content))
    except BadFileError:
        return
