"""Windows app packages and bundles. The tools that make them run on Windows alone: all here are stand-ins, zip archives
around a manifest written by hand, with the zip64 records those tools leave. `openssl` makes the signatures.
"""

import hashlib
import shutil
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hub.inspectors import inspect, msix
from hub.matching import Selector
from hub.records import InstallerFacts
from protocol.errors import BadFileError
from tests.hub.inspectors.reading import Save, a_zip, refused, run
from tests.hub.inspectors.test_zips import as_zip64

FOUNDATION = "http://schemas.microsoft.com/appx/manifest/foundation/windows10"
BUNDLE = "http://schemas.microsoft.com/appx/2013/bundle"
DESKTOP = '<TargetDeviceFamily Name="Windows.Desktop" MinVersion="10.0.17763.0" MaxVersionTested="10.0.22000.1"/>'
UNIVERSAL = '<TargetDeviceFamily Name="Windows.Universal" MinVersion="10.0.10586.0" MaxVersionTested="10.0.22000.1"/>'
needs_openssl = pytest.mark.skipif(not shutil.which("openssl"), reason="openssl is not installed")


def a_manifest(
    name: str = "Example.Hello",
    version: str = "1.2.3.0",
    architecture: str = 'ProcessorArchitecture="x64"',
    title: str = "Hello 你好",
    families: str = DESKTOP,
    properties: str = "",
) -> bytes:
    return f"""<?xml version="1.0" encoding="utf-8"?>
<Package xmlns="{FOUNDATION}" xmlns:uap="{FOUNDATION}/uap" IgnorableNamespaces="uap">
  <Identity Name="{name}" Publisher="CN=Example, O=&quot;Ex, Ltd&quot;" Version="{version}" {architecture}/>
  <Properties>
    <DisplayName>{title}</DisplayName>
    <PublisherDisplayName>Example</PublisherDisplayName>
    <Logo>Assets\\Store Logo.png</Logo>{properties}
  </Properties>
  <Dependencies>{families}<PackageDependency Name="Other" MinVersion="9.9.9.9"/></Dependencies>
  <Applications><Application Id="App"><uap:VisualElements DisplayName="ms-resource:x"/></Application></Applications>
</Package>""".encode()


def a_package(manifest: bytes | None = None, members: dict[str, bytes] | None = None) -> bytes:
    """Return a stand-in package."""
    return as_zip64(a_zip({msix.MANIFEST: a_manifest() if manifest is None else manifest, **(members or {})}))


def a_bundle(packages: dict[str, bytes], listed: str = "", method: int = zipfile.ZIP_STORED) -> bytes:
    """Return a stand-in bundle of `packages`, all listed as apps unless `listed` says what is."""
    listed = listed or "".join(f'<Package Type="application" FileName="{name}"/>' for name in packages)
    listed += '<Package Type="resource" FileName="german.msix"/>'
    manifest = (
        f'<Bundle xmlns="{BUNDLE}" SchemaVersion="5.0"><Identity Name="Example.Hello" Publisher="CN=Example"'
        f' Version="2026.1.2.0"/><Packages>{listed}</Packages></Bundle>'
    )
    return as_zip64(a_zip({**packages, "german.msix": b"", msix.BUNDLE_MANIFEST: manifest.encode()}, method))


# --- packages -------------------------------------------------------------------------------------------------------
def test_a_stand_in_package_gives_its_facts(save: Save) -> None:
    assert inspect(save(a_package(members={"Assets/Store%20Logo.png": b""}))) == InstallerFacts(
        package_name="Example.Hello",
        title="Hello 你好",
        version="1.2.3.0",
        release="1.2.3.0",
        kind="msix",
        selector=Selector(os_types=("windows",), os_version_minimum="10.0.17763.0", architectures=("x86_64",)),
        icon="Assets/Store%20Logo.png",
    )


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_manifest_in_another_encoding_is_read_in_a_stand_in(encoding: str, save: Save) -> None:
    text = a_manifest().decode().replace('encoding="utf-8"', f'encoding="{encoding.removesuffix("-sig")}"')
    assert inspect(save(a_package(text.encode(encoding)))).title == "Hello 你好"


def test_of_a_logo_in_several_scales_the_largest_is_the_icon_of_a_stand_in(save: Save) -> None:
    manifest = a_manifest().replace(b"Store Logo", b"Logo")
    names = ("Assets/Logo.scale-100.png", "Assets/Logo.scale-400.png", "Assets/Logo.scale-400_altform-x.png")
    assert inspect(save(a_package(manifest, dict.fromkeys(names, b"")))).icon == names[1]
    assert inspect(save(a_package(manifest))).icon == ""


@pytest.mark.parametrize(
    ("attribute", "architectures"),
    [
        ("", ()),
        ('ProcessorArchitecture="neutral"', ()),
        ('ProcessorArchitecture="x86"', ("x86",)),
        ('ProcessorArchitecture="arm"', ("armv7",)),
        ('ProcessorArchitecture="ARM64"', ("arm64",)),
    ],
)
def test_the_processor_of_a_stand_in_gets_the_name_used_here(
    attribute: str, architectures: tuple[str, ...], save: Save
) -> None:
    path = save(a_package(a_manifest(architecture=attribute)))
    assert inspect(path).selector.architectures == architectures


@pytest.mark.parametrize(
    ("families", "minimum", "forms"),
    [
        (UNIVERSAL, "10.0.10586.0", ()),
        (DESKTOP + UNIVERSAL, "10.0.10586.0", ()),
        ('<TargetDeviceFamily Name="Platform.All" MinVersion="0.0.0.0"/>', "", ()),
        ('<TargetDeviceFamily Name="Windows.Mobile" MinVersion="10.0.0.0"/>', "10.0.0.0", ("phone",)),
        ('<TargetDeviceFamily Name="Windows.Xbox" MinVersion="10.0.0.0"/>' + DESKTOP, "10.0.0.0", ()),
        ('<TargetDeviceFamily Name="Apple.Ios.All" MinVersion="1.0.0.0"/>' + DESKTOP, "10.0.17763.0", ()),
        ('<TargetDeviceFamily Name="Windows.Desktop" MinVersion="soon"/>', "", ()),
    ],
)
def test_the_device_families_of_a_stand_in_say_which_windows_is_needed(
    families: str, minimum: str, forms: tuple[str, ...], save: Save
) -> None:
    selector = inspect(save(a_package(a_manifest(families=families)))).selector
    assert (selector.os_version_minimum, selector.form_factors) == (minimum, forms)


def test_a_stand_in_of_the_time_of_windows_8_is_read(save: Save) -> None:
    manifest = a_manifest(families="").replace(
        b"</Package>", b"<Prerequisites><OSMinVersion>6.2.1</OSMinVersion></Prerequisites></Package>"
    )
    assert inspect(save(a_package(manifest))).selector.os_version_minimum == "6.2.1"


def test_a_title_kept_as_a_resource_is_the_name_of_a_stand_in(save: Save) -> None:
    assert inspect(save(a_package(a_manifest(title="ms-resource:appName")))).title == "Example.Hello"


@pytest.mark.parametrize(
    ("manifest", "fault"),
    [
        (a_manifest(name="two words"), "two words"),
        (a_manifest(version="1.2"), "1.2"),
        (a_manifest(version="1.2.3.4.5"), "1.2.3.4.5"),
        (a_manifest(architecture='ProcessorArchitecture="itanium"'), "itanium"),
        (a_manifest(families='<TargetDeviceFamily Name="Linux.All"/>'), "Linux.All"),
        (a_manifest(properties="<ResourcePackage>true</ResourcePackage>"), "only resources"),
        (a_manifest(title="x" * 2000), "1024 characters"),
        (b"", "damaged"),
        (b"<Package>", "damaged"),
        (b"<Package/>", "gives the name ''"),
        (b"<Bundle/>", "no Package"),
        (b'<?xml version="1.0" encoding="shift_jis"?><Package/>', "damaged"),
        (b'<?xml version="1.0" encoding="no such"?><Package/>', "damaged"),
        (b'<!DOCTYPE Package [<!ENTITY a "aaaa">]><Package>&a;</Package>', "declares"),
        (b'<!DOCTYPE Package SYSTEM "file:///etc/passwd"><Package/>', "declares"),
        ('<!DOCTYPE Package [<!ENTITY a "aaaa">]><Package>&a;</Package>'.encode("utf-16"), "declares"),
    ],
)
def test_a_manifest_that_makes_no_sense_is_refused_in_words(manifest: bytes, fault: str, save: Save) -> None:
    assert fault in refused(save(a_package(manifest))).message


def test_a_manifest_larger_than_the_limit_is_refused(save: Save) -> None:
    large = a_manifest() + b" " * msix.MANIFEST_BYTES
    assert "claims" in refused(save(a_package(large))).message


def test_a_namespace_as_long_as_the_file_costs_no_more_than_its_length(save: Save) -> None:
    """A parser that writes the namespace before each name would write 6 GB here."""
    namespace, elements = "x" * 300_000, "".join(f"<a{number}/>" for number in range(20_000))
    manifest = a_manifest().decode().replace(FOUNDATION, namespace).replace("</Package>", f"{elements}</Package>")
    assert inspect(save(a_package(manifest.encode()))).package_name == "Example.Hello"


# --- bundles --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_stand_in_bundle_gives_what_its_apps_say_together(method: int, save: Save) -> None:
    packages = {
        "hello_x64.msix": a_package(),
        "hello_arm.msix": a_package(a_manifest(architecture='ProcessorArchitecture="arm"', families=UNIVERSAL)),
    }
    facts = inspect(save(a_bundle(packages, method=method)))
    assert (facts.package_name, facts.title, facts.version) == ("Example.Hello", "Hello 你好", "2026.1.2.0")
    assert facts.selector == Selector(
        os_types=("windows",), os_version_minimum="10.0.10586.0", architectures=("armv7", "x86_64")
    )


def test_a_stand_in_bundle_with_an_app_for_every_processor_fits_every_processor(save: Save) -> None:
    packages = {"hello.msix": a_package(), "any.msix": a_package(a_manifest(architecture=""))}
    assert inspect(save(a_bundle(packages))).selector.architectures == ()


def test_a_bundle_that_makes_no_sense_is_refused_in_words(save: Save) -> None:
    assert "lists 0 apps" in refused(save(a_bundle({}))).message
    many = {f"{number}.msix": a_package() for number in range(msix.BUNDLED_APPS + 1)}
    assert f"lists {msix.BUNDLED_APPS + 1} apps" in refused(save(a_bundle(many))).message
    flat = a_bundle({}, '<Package Type="application" FileName="elsewhere.msix"/>')
    assert "'elsewhere.msix' is not in the bundle" in refused(save(flat)).message
    assert "different apps" in refused(save(a_bundle({"a.msix": a_package(a_manifest(name="Other"))}))).message
    assert "a.msix inside it: " in refused(save(a_bundle({"a.msix": b"PK"}))).message


def test_a_bundle_that_lists_one_large_package_again_and_again_is_refused(save: Save) -> None:
    large = a_package(members={f"{number:x}": b"" for number in range(msix.BUNDLED_FILES // 3)})
    listed = '<Package Type="application" FileName="a.msix"/>' * msix.BUNDLED_APPS
    assert "files together" in refused(save(a_bundle({"a.msix": large}, listed))).message


# --- the signer -----------------------------------------------------------------------------------------------------
@needs_openssl
def test_openssl_names_the_certificate_a_stand_in_is_signed_with(tmp_path: Path, save: Save) -> None:
    key, certificate, signature = tmp_path / "key.pem", tmp_path / "certificate.pem", tmp_path / "signature.der"
    run(
        "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
        "-subj", "/CN=A test", "-keyout", key, "-out", certificate,
    )  # fmt: skip
    run(
        "openssl", "smime", "-sign", "-signer", certificate, "-inkey", key, "-outform", "DER",
        "-in", certificate, "-out", signature,
    )  # fmt: skip
    facts = inspect(save(a_package(members={msix.SIGNATURE: b"PKCX" + signature.read_bytes()})))
    told = run("openssl", "x509", "-in", certificate, "-noout", "-fingerprint", "-sha256")
    assert facts.signer_digest == told.rpartition("=")[2].strip().replace(":", "").lower()
    assert facts.signer_digest != hashlib.sha256(certificate.read_bytes()).hexdigest()  # it is of the DER, not the text


@pytest.mark.parametrize("signature", [b"", b"PKCX", b"PKCX0", b"PKCS\x30\x00"])
def test_a_damaged_signature_is_refused(signature: bytes, save: Save) -> None:
    refused(save(a_package(members={msix.SIGNATURE: signature})))


@settings(max_examples=150, deadline=None)
@given(changes=st.lists(st.tuples(st.integers(0, 1 << 12), st.integers(0, 255)), max_size=6))
def test_whatever_bytes_of_a_manifest_are_changed_it_is_facts_or_a_refusal(changes: list[tuple[int, int]]) -> None:
    data = bytearray(a_manifest())
    for at, value in changes:
        data[at % len(data)] = value
    try:
        root = msix._parse(bytes(data), "Package")
    except BadFileError as error:
        assert error.message.endswith(".")
    else:
        assert root.tag == "Package"
