"""Debian packages: built by dpkg-deb in every packing and read by it too, and hand-made where dpkg-deb would refuse."""

import gzip
import io
import lzma
import shutil
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from hub.inspectors import deb, inspect
from hub.inspectors.source import Source
from hub.matching import Selector
from hub.records import InstallerFacts
from protocol.errors import BadFileError
from tests.hub.inspectors.reading import DEMO, Save, refused, run

DEB = DEMO / "hello-lockstep_1.0.0-1_all.deb"
needs_dpkg = pytest.mark.skipif(not shutil.which("dpkg-deb"), reason="dpkg-deb is not installed")


def ar(*members: tuple[str, bytes]) -> bytes:
    def member(name: str, body: bytes) -> bytes:
        header = f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(body):<10}`\n".encode()
        return header + body + b"\n" * (len(body) % 2)

    return deb.SIGNATURE + b"".join(member(name, body) for name, body in members)


def control_tar(text: str, *names: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("./"))
        for name in names or ("./control",):
            info = tarfile.TarInfo(name)
            info.size = len(text.encode())
            archive.addfile(info, io.BytesIO(text.encode()))
    return buffer.getvalue()


def a_deb(text: str, suffix: str = "", pack: Callable[[bytes], bytes] = bytes) -> bytes:
    control = pack(control_tar(text))
    return ar(("debian-binary", b"2.0\n"), (f"control.tar{suffix}", control), ("data.tar", b"\0" * 1024))


def control(package: str = "hello", version: str = "1.0", architecture: str = "all", more: str = "") -> str:
    return f"Package: {package}\nVersion: {version}\nArchitecture: {architecture}\n{more}"


def zstd(content: bytes, **parameters: int) -> bytes:
    """Pack as dpkg-deb does: streaming, so that no size is declared."""
    settings = zstandard.ZstdCompressionParameters(**parameters)
    stream = zstandard.ZstdCompressor(compression_params=settings).compressobj()
    return stream.compress(content) + stream.flush()


def xz(content: bytes) -> bytes:
    return lzma.compress(content, preset=0)


# --- what dpkg-deb makes and reads ----------------------------------------------------------------------------------
def test_the_demonstration_deb_gives_its_facts() -> None:
    assert inspect(DEB) == InstallerFacts(
        package_name="hello-lockstep",
        title="Lockstep Hello",
        version="1.0.0-1",
        release="1.0.0",
        kind="deb",
        sortable_version="1.0.0-1",
        selector=Selector(os_types=("linux",)),
    )


@needs_dpkg
def test_dpkg_reads_the_same_from_the_deb() -> None:
    facts = inspect(DEB)
    fields = [facts.package_name, facts.version, "all"]
    assert run("dpkg-deb", "--show", "--showformat=${Package}\n${Version}\n${Architecture}", DEB).split() == fields


@needs_dpkg
@pytest.mark.parametrize(
    ("packing", "member"), [("gzip", ".gz"), ("xz", ".xz"), ("zstd", ".zst"), ("zstd -z22", ".zst"), ("none", "")]
)
def test_every_packing_dpkg_offers_is_read_as_dpkg_reads_it(packing: str, member: str, tmp_path: Path) -> None:
    (tmp_path / "tree" / "DEBIAN").mkdir(parents=True)
    (tmp_path / "tree" / "DEBIAN" / "control").write_text(
        control("made", "2:1.5~rc1-3", "arm64", "Maintainer: A <a@example.org>\nDescription: Made\n here\n")
    )
    path = tmp_path / "made.deb"
    how, *level = packing.split()
    run("dpkg-deb", "--root-owner-group", "--uniform-compression", f"-Z{how}", *level, "-b", tmp_path / "tree", path)
    assert f"control.tar{member} ".encode() in path.read_bytes()
    facts = inspect(path)
    shown = run("dpkg-deb", "--field", path, "Package", "Version", "Architecture", "Description").splitlines()
    assert shown == ["Package: made", f"Version: {facts.version}", "Architecture: arm64", "Description: Made", " here"]
    assert (facts.version, facts.release, facts.title) == ("2:1.5~rc1-3", "1.5~rc1", "Made")
    assert facts.sortable_version == facts.version
    assert facts.selector == Selector(os_types=("linux",), architectures=("arm64",))


# --- fields, hand-made ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("version", "release"),
    [("1.0", "1.0"), ("1:1.0-1", "1.0"), ("1.0-rc1-2", "1.0-rc1"), ("0~20240101+git.1-1~bpo12", "0~20240101+git.1")],
)
def test_the_release_of_a_deb_is_its_upstream_version(version: str, release: str, save: Save) -> None:
    facts = inspect(save(a_deb(control(version=version))))
    assert (facts.version, facts.release) == (version, release)


@pytest.mark.parametrize(
    ("debian", "architectures"),
    [
        *(("all", ()), ("amd64", ("x86_64",)), ("armhf", ("armv7",)), ("i386", ("x86",))),
        *(("arm64", ("arm64",)), ("ppc64el", ("ppc64le",))),
    ],
)
def test_a_debian_architecture_gets_the_name_used_here(debian: str, architectures: tuple[str, ...], save: Save) -> None:
    assert inspect(save(a_deb(control(architecture=debian)))).selector.architectures == architectures


@pytest.mark.parametrize(
    ("debian", "fault"),
    [
        *(
            ("any", "for sources"),
            ("linux-any", "for sources"),
            ("any-amd64", "for sources"),
            ("source", "for sources"),
        ),
        *(("musl-linux-armhf", "musl"), ("m68k", "m68k"), ("x86_64", "x86_64"), ("hurd-i386", "hurd-i386")),
        ("amd64 arm64", "amd64 arm64"),
    ],
)
def test_an_architecture_that_no_device_has_is_refused_with_those_known(debian: str, fault: str, save: Save) -> None:
    error = refused(save(a_deb(control(architecture=debian))))
    assert fault in error.message
    assert "all, amd64" in error.hint


def test_a_deb_without_a_description_is_titled_by_its_package(save: Save) -> None:
    assert inspect(save(a_deb(control()))).title == "hello"


def test_a_description_with_narrow_spaces_and_marks_is_a_title_without_them(save: Save) -> None:
    text = control(
        more="Description: MagicPoint\u200a\u2014\u200aan\tX11\u00a0tool\u200b\u202f\n"
    )  # such as Debian has
    assert inspect(save(a_deb(text))).title == "MagicPoint \u2014 an X11 tool"


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (control(package="UPPER"), "UPPER"),
        (control(version="1.0 beta"), "1.0 beta"),
        (control(version="1-" * 400_000 + "!"), "64 characters"),
        (control(version="1" * 65), "64 characters"),
        (control(package="a" * 129), "128 characters"),
        (control(more="Package: twice\n"), "Package: twice"),
        ("Package: hello\n", "no Version"),
        ("no colon here\n", "no colon here"),
        ("", "no Package"),
    ],
)
def test_a_control_file_that_makes_no_sense_is_refused_in_words(text: str, fault: str, save: Save) -> None:
    assert fault in refused(save(a_deb(text))).message


# --- archives that lie, hand-made -----------------------------------------------------------------------------------
def test_members_that_deb_5_lets_stand_between_are_passed_over(save: Save) -> None:
    content = ar(
        *(("debian-binary", b"2.0\nmore\n"), ("_note", b"odd"), ("control.tar/", control_tar(control()))),
        *(("_other", b""), ("data.tar.zst", b"x")),
    )
    assert inspect(save(content)).package_name == "hello"


@pytest.mark.parametrize("second", ["./control", "control", ".//control", "././control"])
def test_a_control_archive_with_two_control_files_is_refused(second: str, save: Save) -> None:
    tar = control_tar(control(), "./control", second)
    content = ar(("debian-binary", b"2.0\n"), ("control.tar", tar), ("data.tar", b""))
    assert "2 control files" in refused(save(content)).message


@pytest.mark.parametrize(
    ("suffix", "pack"),
    [(".gz", gzip.compress), (".xz", xz), (".zst", zstd), (".zst", zstandard.ZstdCompressor().compress)],
)
def test_a_deb_whose_control_archive_is_a_bomb_is_refused(
    suffix: str, pack: Callable[[bytes], bytes], save: Save
) -> None:
    bomb = pack(bytes(deb.CONTROL_UNPACKED_BYTES + 1))
    content = ar(("debian-binary", b"2.0\n"), (f"control.tar{suffix}", bomb), ("data.tar", b""))
    assert "unpacks to more than" in refused(save(content)).message


def test_a_zstd_bomb_is_given_up_a_step_after_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = zstd(bytes(256 << 20))
    largest = 0

    def whole(content: bytes, ended: bool, rest: bytes) -> bytes:
        nonlocal largest
        largest = len(content)
        raise BadFileError("too large.")

    monkeypatch.setattr(deb, "_whole", whole)
    begun = time.process_time()
    with pytest.raises(BadFileError):
        deb.UNPACKERS[".zst"](bomb)
    assert deb.CONTROL_UNPACKED_BYTES < largest <= deb.CONTROL_UNPACKED_BYTES + (8 << 20)
    assert time.process_time() - begun < 1


def test_a_zstd_window_larger_than_the_memory_allowed_is_refused(save: Save) -> None:
    fits = zstd(control_tar(control()), window_log=27)
    too_large = zstd(control_tar(control()), window_log=28)
    assert zstandard.get_frame_parameters(fits).window_size == deb.DECOMPRESSOR_MEMORY_BYTES
    assert inspect(save(a_deb(control(), ".zst", lambda _: fits))).package_name == "hello"
    assert "cannot be unpacked" in refused(save(a_deb(control(), ".zst", lambda _: too_large))).message


@pytest.mark.parametrize(("suffix", "pack"), [(".gz", gzip.compress), (".xz", lzma.compress), (".zst", zstd)])
def test_a_packed_control_archive_cut_off_anywhere_is_refused(suffix: str, pack: Callable[[bytes], bytes]) -> None:
    packed = pack(control_tar(control()))
    for length in range(0, len(packed), 7):
        cut = a_deb(control(), suffix, lambda _, length=length: packed[:length])  # type: ignore[misc]
        with pytest.raises(BadFileError):
            deb.read_facts(Source(io.BytesIO(cut), "cut.deb"))


@pytest.mark.parametrize(("suffix", "pack"), [(".gz", gzip.compress), (".xz", lzma.compress), (".zst", zstd)])
def test_a_second_stream_behind_the_first_is_refused_since_tools_differ_in_reading_it(
    suffix: str, pack: Callable[[bytes], bytes], save: Save
) -> None:
    twice = a_deb(control(), suffix, lambda tar: pack(tar) + pack(control_tar(control("other"))))
    assert "goes on behind its end" in refused(save(twice)).message
    padded = a_deb(control(), suffix, lambda tar: pack(tar) + bytes(8))
    assert inspect(save(padded)).package_name == "hello"


def test_a_control_file_larger_than_the_limit_is_refused(save: Save) -> None:
    text = control(more="Description: " + "x" * deb.CONTROL_FILE_BYTES)
    assert "control file claims" in refused(save(a_deb(text))).message


@pytest.mark.parametrize(
    "content",
    [
        ar(),
        ar(("debian-binary", b"2.0\n")),
        ar(("debian-binary", b"2.0\n"), ("control.tar", control_tar(control()))),
        ar(("debian-binary", b"2.0\n"), ("data.tar", b"")),
        ar(("debian-binary", b"1.0\n"), ("control.tar", control_tar(control())), ("data.tar", b"")),
        ar(("control.tar", control_tar(control())), ("debian-binary", b"2.0\n"), ("data.tar", b"")),
        ar(("debian-binary", b"2.0\n"), ("control.tar", control_tar(control(), "other")), ("data.tar", b"")),
        ar(("debian-binary", b"2.0\n"), ("control.tar.bz2", b""), ("data.tar", b"")),
        ar(("debian-binary", b"2.0\n"), ("control.tar.zst", b"no zstd"), ("data.tar", b"")),
        ar(("debian-binary", b"2.0\n"), *[("_extra", b"")] * deb.MEMBERS),
    ],
)
def test_an_ar_archive_that_is_no_whole_debian_package_is_refused(content: bytes, save: Save) -> None:
    refused(save(content))
