"""RPM packages: built by rpmbuild, signed by rpmsign, read by rpm too; hand-made where those tools would refuse."""

import base64
import hashlib
import io
import os
import re
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hub.inspectors import inspect, rpm
from hub.inspectors.source import Source
from hub.matching import Selector
from hub.records import InstallerFacts
from protocol.errors import BadFileError
from tests.hub.inspectors.reading import Save, refused, run

needs_rpm = pytest.mark.skipif(not shutil.which("rpmbuild"), reason="rpmbuild is not installed")
needs_rpmsign = pytest.mark.skipif(
    not (shutil.which("rpmbuild") and shutil.which("rpmsign") and shutil.which("gpg")),
    reason="rpmbuild, rpmsign and gpg are not installed",
)

SPEC = """
Name: {name}
{epoch}
Version: {version}
Release: {release}
Summary: {summary}
License: Apache-2.0
%description
For tests.
%install
mkdir -p %{{buildroot}}/usr/share/{name}
echo here > %{{buildroot}}/usr/share/{name}/here
%files
/usr/share/{name}
"""
Build = Callable[..., Path]


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Build a package with rpmbuild and return its path."""

    def made(
        name: str = "hello", version: str = "1.0", release: str = "1", *, target: str = "noarch", **more: str
    ) -> Path:
        folder = tmp_path_factory.mktemp("rpm")
        spec = folder / "made.spec"
        fields = {"epoch": "", "summary": "Made for tests"} | more
        spec.write_text(SPEC.format(name=name, version=version, release=release, **fields))
        what = "-bs" if target == "source" else "-bb"
        targets = [] if target == "source" else ["--target", target]
        run("rpmbuild", what, "--quiet", "--define", f"_topdir {folder}", *targets, spec)
        (path,) = folder.rglob("*.rpm")
        return path

    return made


@pytest.fixture(scope="module")
def whole(build: Build) -> bytes:
    """The bytes of one package as rpmbuild makes it."""
    return build(epoch="Epoch: 2").read_bytes()


def rpm_says(path: Path, form: str) -> str:
    """What rpm itself reads, in its own query format."""
    return run("rpm", "--query", "--package", "--nosignature", "--queryformat", form, path)


# --- what rpmbuild makes and rpm reads ------------------------------------------------------------------------------
@needs_rpm
def test_a_package_gives_its_facts(build: Build) -> None:
    facts = inspect(build("hello-lockstep", "1.5~rc1", "3.fc40", epoch="Epoch: 2", summary="Lockstep Hello, 你好"))
    assert facts == InstallerFacts(
        package_name="hello-lockstep",
        title="Lockstep Hello, 你好",
        version="2:1.5~rc1-3.fc40",
        release="1.5~rc1",
        kind="rpm",
        sortable_version="2:1.5~rc1-3.fc40",
        selector=Selector(os_types=("linux",)),
    )


@needs_rpm
@pytest.mark.parametrize(
    ("target", "architectures"),
    [
        *(("noarch", ()), ("x86_64", ("x86_64",)), ("i686", ("x86",)), ("aarch64", ("arm64",))),
        ("armv7hl", ("armv7",)),
    ],
)
def test_rpm_reads_the_same(target: str, architectures: tuple[str, ...], build: Build) -> None:
    path = build("made_1.x+y", "1^20240101", "2.el9", target=target, epoch="Epoch: 0" if target == "i686" else "")
    facts = inspect(path)
    said = rpm_says(path, "%{NAME}\n%{EVR}\n%{VERSION}\n%{SUMMARY}\n%{OS}\n%{ARCH}").split("\n")
    assert said == [facts.package_name, facts.version, facts.release, facts.title, *facts.selector.os_types, target]
    assert facts.selector.architectures == architectures


@needs_rpm
@pytest.mark.parametrize("target", ["armv6hl", "x86_64_v2", "noarch-freebsd"])
def test_a_package_for_what_is_not_served_is_refused_in_words(target: str, build: Build) -> None:
    assert target.removeprefix("noarch-") in refused(build(target=target)).message


@needs_rpm
def test_a_source_package_is_refused_with_the_way_out(build: Build) -> None:
    error = refused(build(target="source"))
    assert "source package" in error.message
    assert "rpmbuild --rebuild" in error.hint


@pytest.fixture(scope="module")
def keys() -> Iterator[dict[str, str]]:
    """The environment of a gpg with one key; its folder's name is short, since sockets lie in it."""
    with tempfile.TemporaryDirectory(prefix="gpg-") as folder:
        environment = os.environ | {"GNUPGHOME": folder}
        arguments = ("--batch", "--quiet", "--passphrase", "", "--quick-gen-key")
        run("gpg", *arguments, "a@example.org", "rsa1024", "sign", "never", environment=environment)
        yield environment
        run("gpgconf", "--kill", "all", environment=environment)


@needs_rpmsign
@pytest.mark.parametrize("how", ["--rpmv4", "--rpmv3"])
def test_the_signer_is_the_key_gpg_and_rpm_name(how: str, build: Build, keys: dict[str, str]) -> None:
    path = build()
    assert inspect(path).signer_digest == ""
    flags = [how] if how == "--rpmv3" else []
    defines = ("--define", "_gpg_name a@example.org", "--define", "__gpg /usr/bin/gpg")
    run("rpmsign", *defines, *flags, "--addsign", path, environment=keys)
    facts = inspect(path)
    listed = run("gpg", "--list-keys", "--with-colons", environment=keys)
    assert f"fpr:::::::::{facts.signer_digest.upper()}:" in listed
    assert f"Key ID {facts.signer_digest[-16:]}" in rpm_says(path, "%{RSAHEADER:pgpsig}")


# --- damage ---------------------------------------------------------------------------------------------------------
@needs_rpm
def test_a_package_cut_off_anywhere_or_with_more_behind_it_is_refused(whole: bytes) -> None:
    for length in (*range(0, len(whole), 13), *range(len(whole) - 40, len(whole))):
        with pytest.raises(BadFileError):
            rpm.read_facts(Source(io.BytesIO(whole[:length]), "cut.rpm"))
    with pytest.raises(BadFileError, match="were promised"):
        rpm.read_facts(Source(io.BytesIO(whole + b"\0"), "long.rpm"))


@needs_rpm
def test_no_bit_of_the_main_header_can_be_changed_unnoticed(whole: bytes) -> None:
    start = whole.index(b"\x8e\xad\xe8\x01", whole.index(b"\x8e\xad\xe8\x01") + 4)
    payload = re.search(rb"\x28\xb5\x2f\xfd|\xfd7zXZ|\x1f\x8b\x08", whole[start:])
    assert payload
    for at in range(start, start + payload.start(), 5):
        changed = bytearray(whole)
        changed[at] ^= 1 << at % 8
        with pytest.raises(BadFileError):
            rpm.read_facts(Source(io.BytesIO(bytes(changed)), "flipped.rpm"))


# --- headers that lie, hand-made ------------------------------------------------------------------------------------
Entry = tuple[int, int, bytes, int]  # tag, type, value, count
TEXT, NUMBER, BINARY = 6, 4, 7


def text(tag: int, value: str) -> Entry:
    return tag, TEXT, value.encode() + b"\0", 1


def header(*entries: Entry) -> bytes:
    index, store = b"", b""
    for tag, kind, value, count in entries:
        store += b"\0" * (-len(store) % 4)
        index += struct.pack(">IIII", tag, kind, len(store), count)
        store += value
    return b"\x8e\xad\xe8\x01" + bytes(4) + struct.pack(">II", len(entries), len(store)) + index + store


def lead(major: int = 3, kind: int = 0, signature_type: int = 5) -> bytes:
    return struct.pack(">4sBBHH66sHH16s", rpm.SIGNATURE, major, 0, kind, 1, b"made", 1, signature_type, b"")


def an_rpm(*main: Entry, signatures: tuple[Entry, ...] = (), begin: bytes = b"") -> bytes:
    first = header(*signatures)
    return (begin or lead()) + first + bytes(-len(first) % 8) + header(*main) + b"payload"


def entries(**changed: Entry | None) -> tuple[Entry, ...]:
    """The least a package has, with one or another changed or left out."""
    least: dict[str, Entry | None] = {
        "name": text(1000, "made"),
        "version": text(1001, "1.0"),
        "release": text(1002, "1"),
        "system": text(1021, "linux"),
        "architecture": text(1022, "x86_64"),
        "built_from": text(1044, "made-1.0-1.src.rpm"),
    }
    return tuple(entry for entry in (least | changed).values() if entry)


def test_a_package_with_the_least_there_can_be_is_read(save: Save) -> None:
    facts = inspect(save(an_rpm(*entries())))
    assert (facts.package_name, facts.title, facts.version, facts.signer_digest) == ("made", "made", "1.0-1", "")


@pytest.mark.parametrize(("named", "architecture"), [("ppc64le", "ppc64le"), ("s390x", "s390x"), ("athlon", "x86")])
def test_an_architecture_of_rpm_gets_the_name_used_here(named: str, architecture: str, save: Save) -> None:
    content = an_rpm(*entries(architecture=text(1022, named)))
    assert inspect(save(content)).selector.architectures == (architecture,)


def test_of_a_translated_summary_the_first_is_taken_and_a_long_one_is_cut(save: Save) -> None:
    summary = (1004, 9, b"In  English\n\0Auf Deutsch\0", 2)
    assert inspect(save(an_rpm(*entries(summary=summary)))).title == "In English"
    assert len(inspect(save(an_rpm(*entries(summary=text(1004, "x" * 4_000))))).title) == 1_024


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (an_rpm(*entries(name=None)), "lacks the tag 1000"),
        (an_rpm(*entries(name=text(1000, "two words"))), "two words"),
        (an_rpm(*entries(version=text(1001, "1-0"))), "1-0"),
        (an_rpm(*entries(release=text(1002, ""))), "version or release"),
        (an_rpm(*entries(name=(1000, NUMBER, bytes(4), 1))), "another type"),
        (an_rpm(*entries(epoch=text(1003, "2"))), "another type"),
        (an_rpm(*entries(again=text(1000, "other"))), "twice"),
        (an_rpm(*entries(built_from=None)), "source package"),
        (an_rpm(*entries(source=(1106, NUMBER, b"\0\0\0\1", 1))), "source package"),
        (an_rpm(*entries(), begin=lead(kind=1)), "source package"),
        (an_rpm(*entries(), begin=lead(major=2)), "format 2"),
        (an_rpm(*entries(), begin=lead(signature_type=1)), "signatures of type 1"),
        (an_rpm(*entries(summary=(1004, TEXT, b"x" * 5_000, 1))), "does not end"),
        (an_rpm(*entries(summary=(1004, TEXT, b"no end", 1))), "does not end"),
        (an_rpm(*entries(), signatures=((1000, NUMBER, bytes(4), 1),)), "0 bytes were promised"),
        (an_rpm(*entries(), signatures=(text(273, "00"),)), "SHA256"),
        (an_rpm(*entries(), signatures=(text(269, "00"),)), "SHA1"),
        (an_rpm(*entries(), signatures=((268, BINARY, b"x", 1 << 30),)), "signature claims"),
        (lead() + header()[:8] + struct.pack(">II", 1 << 31, 0), "more than is read"),
        (lead() + header()[:8] + struct.pack(">II", 0, 1 << 31), "more than is read"),
        (lead() + header()[:8] + struct.pack(">II", 60_000, 1 << 20), "cut off"),
        (lead() + bytes(16), "does not begin as one"),
    ],
)
def test_a_header_that_makes_no_sense_is_refused_in_words(content: bytes, fault: str, save: Save) -> None:
    assert fault in refused(save(content)).message


def test_the_size_and_digest_of_the_signature_header_are_those_of_the_file(save: Save) -> None:
    main = header(*entries())
    size = len(main) + len(b"payload")
    signatures = (
        (270, 5, size.to_bytes(8, "big"), 1),
        text(273, hashlib.sha256(main).hexdigest()),
        text(269, hashlib.sha1(main).hexdigest()),
    )
    assert inspect(save(an_rpm(*entries(), signatures=signatures))).package_name == "made"


FINGERPRINT = bytes(range(20))


def signature_packet(*, hashed: bytes = b"", unhashed: bytes = b"", version: int = 4, width: int = 2) -> bytes:
    body = bytes((version, 0, 1, 8)) + len(hashed).to_bytes(width, "big") + hashed
    body += len(unhashed).to_bytes(width, "big") + unhashed + b"the rest"
    return b"\x88" + bytes((len(body),)) + body


BY_FINGERPRINT = signature_packet(hashed=b"\x16\x21\x04" + FINGERPRINT)
BY_KEY_ID = signature_packet(hashed=b"\x05\x02" + bytes(4), unhashed=b"\x09\x10" + FINGERPRINT[-8:])
VERSION_3 = bytes((3, 5, 0)) + bytes(4) + FINGERPRINT[-8:] + b"the rest"


@pytest.mark.parametrize(
    ("entry", "signer"),
    [
        ((268, BINARY, BY_FINGERPRINT, len(BY_FINGERPRINT)), FINGERPRINT),
        ((1005, BINARY, BY_KEY_ID, len(BY_KEY_ID)), FINGERPRINT[-8:]),
        ((267, BINARY, b"\xc2" + BY_KEY_ID[1:], len(BY_KEY_ID)), FINGERPRINT[-8:]),
        ((1002, BINARY, b"\x89\0\x16" + VERSION_3, 25), FINGERPRINT[-8:]),
        ((278, 8, base64.b64encode(BY_FINGERPRINT) + b"\0", 1), FINGERPRINT),
    ],
)
def test_the_issuer_is_found_in_every_form_of_a_hand_made_signature(entry: Entry, signer: bytes, save: Save) -> None:
    assert inspect(save(an_rpm(*entries(), signatures=(entry,)))).signer_digest == signer.hex()


@pytest.mark.parametrize(
    "packet",
    [
        *(b"\x88", b"\x88\x00", b"\x10\x02", signature_packet(), signature_packet(hashed=b"\x09\x10"), b"\x8b\x01\x04"),
        *(signature_packet(version=5), signature_packet(hashed=b"\xff\xff\xff\xff\xff\x10"), BY_FINGERPRINT[:-30]),
        *(signature_packet(hashed=b"\x00" * 200), signature_packet(hashed=b"\x03\x10ab")),
    ],
)
def test_a_damaged_signature_is_refused(packet: bytes, save: Save) -> None:
    error = refused(save(an_rpm(*entries(), signatures=((268, BINARY, packet, len(packet)),))))
    assert "signature" in error.message
