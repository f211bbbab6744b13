"""Independent readers of each format, and what they say in the words of our facts.

`READERS[kind](file)` asks the format's own tools, or another implementation where there is one. A fact no other reader
gives is not compared; where several answers are right the value is a function that says whether ours is one.
"""

import hashlib
import io
import json
import re
import subprocess
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from importlib.metadata import PathDistribution
from pathlib import Path
from typing import Any, Final
from xml.etree import ElementTree

import msgspec
from packaging.tags import parse_tag
from packaging.utils import parse_wheel_filename

from hub.records import InstallerFacts
from tests.formats.built import run

Said = Mapping[str, object]

DEBIAN_ARCHITECTURES: Final = {"amd64": "x86_64", "i386": "x86", "arm64": "arm64", "armhf": "armv7", "armel": "armv7"}
RPM_ARCHITECTURES: Final = {"x86_64": "x86_64", "i686": "x86", "aarch64": "arm64"}
ABIS: Final = {"arm64-v8a": "arm64", "armeabi-v7a": "armv7", "armeabi": "armv7", "x86": "x86", "x86_64": "x86_64"}
MACHINES: Final = {
    "Intel 386 or later, and compatibles": "x86",
    "AMD AMD64": "x86_64",
    "ARM64 little endian": "arm64",
    "Unknown (0xaa64)": "arm64",  # to an older exiftool
}


def ours(facts: InstallerFacts) -> dict[str, object]:
    """Our facts in one row, lists sorted."""
    row: dict[str, Any] = msgspec.structs.asdict(facts)
    row |= msgspec.structs.asdict(row.pop("selector"))
    row["wheel_tags"] = tuple(str(tag) for tags in facts.selector.wheel_tags for tag in parse_tag(tags))
    return {name: tuple(sorted(value)) if isinstance(value, tuple) else value for name, value in row.items()}


def said_of(file: Path, facts: InstallerFacts) -> Said:
    """What the independent reader of this kind says."""
    return READERS[facts.kind](file)


def disagreements(said: Said, facts: InstallerFacts) -> list[str]:
    """Every fact of ours that the independent reader gives otherwise, in words."""
    known = ours(facts)
    wrong = [name for name, value in said.items() if not _agrees(known[name], value)]
    return [f"{name}: we say {known[name]!r}, they say {said[name]!r}" for name in wrong]


def _agrees(known: object, value: object) -> bool:
    return bool(value(known)) if callable(value) else known == value


# --- deb: dpkg-deb ------------------------------------------------------------------------------------------------


def deb(file: Path) -> Said:
    fields = ("Package", "Version", "Architecture", "Description")
    package, version, architecture, description = (run("dpkg-deb", "-f", file, field) for field in fields)
    version, architecture = version.strip(), architecture.strip()
    upstream = re.sub(r"^\d+:", "", version)
    return {
        "package_name": package.strip(),
        "version": version,
        "sortable_version": version,
        "release": upstream.rpartition("-")[0] or upstream,
        "title": description.splitlines()[0].strip(),
        "architectures": () if architecture == "all" else (DEBIAN_ARCHITECTURES[architecture],),
        "os_types": ("linux",),
    }


# --- rpm ----------------------------------------------------------------------------------------------------------


def rpm(file: Path) -> Said:
    tags = ("NAME", "EVR", "VERSION", "ARCH", "OS", "SUMMARY")
    query = "".join(f"%{{{tag}}}\\n" for tag in tags) + "%|RSAHEADER?{%{RSAHEADER:pgpsig}}|"
    command = ["rpm", "-qp", "--nosignature", "--qf", query, str(file)]
    printed = subprocess.run(command, capture_output=True, timeout=60, check=True).stdout.decode(errors="replace")
    name, version, release, architecture, system, summary, signature = printed.split("\n")
    key = re.search(r"Key ID ([0-9a-f]+)", signature)
    said: dict[str, object] = {
        "package_name": name,
        "version": version,
        "sortable_version": version,
        "release": release,
        "architectures": () if architecture == "noarch" else (RPM_ARCHITECTURES[architecture],),
        "os_types": (system,),
    }
    if "\ufffd" not in summary:
        said["title"] = summary
    return (
        said if key is None else said | {"signer_digest": lambda signer: signer.endswith(key[1])}
    )  # our fingerprint ends with the key id


# --- apk: aapt and apksigner; apks: the same for each APK in it ----------------------------------------------------


def apk(file: Path) -> Said:
    badging = run("aapt", "dump", "badging", file)
    package = re.search(r"^package: name='([^']*)' versionCode='(\d*)' versionName='([^']*)'", badging, re.MULTILINE)
    assert package
    levels = {name: int(level) for name, level in re.findall(r"^(\w*[sS]dkVersion):'(\d+)'", badging, re.MULTILINE)}
    required = set(re.findall(r"^  uses-feature: name='([^']+)'", badging, re.MULTILINE))
    required -= set(re.findall(r"^  uses-implied-feature: name='([^']+)'", badging, re.MULTILINE))  # that no one wrote
    native = re.search(r"^native-code: (.*)$", badging, re.MULTILINE)
    label = re.search(r"^application: label='(.*?)' icon='(.*?)'", badging, re.MULTILINE)
    icons = re.findall(r"^application-icon-\d+:'([^']+)'", badging, re.MULTILINE)
    minimum = levels.get("sdkVersion", 1)
    return {
        "package_name": package[1],
        "sortable_version": package[2] or "0",
        "version": package[3] or package[2] or "0",
        "title": (label[1] if label else "") or package[1],
        "api_level_minimum": minimum if minimum > 1 else None,
        "api_level_target": levels.get("targetSdkVersion"),
        "api_level_maximum": levels.get("maxSdkVersion"),
        "architectures": tuple(sorted({ABIS[abi] for abi in re.findall(r"'([^']+)'", native[1])})) if native else (),
        "features_required": tuple(sorted(required)),
        "icon": (lambda icon: icon in icons) if icons else "",
        "signer_digest": apk_signer(file),
        "os_types": ("android",),
    }


def apk_signer(file: Path) -> str:
    """What apksigner finds, asked as the manifest's own Android, a new one and an old one: each reads other schemes."""
    for levels in ((), ("--min-sdk-version", "28"), ("--min-sdk-version", "21", "--max-sdk-version", "23")):
        command = ["apksigner", "verify", "--print-certs", *levels, str(file)]
        said = subprocess.run(command, capture_output=True, text=True, timeout=60).stdout
        if found := re.search(r"certificate SHA-256 digest: ([0-9a-f]{64})", said):
            return found[1]
    return ""


_SPLIT: Final = re.compile(r"-(?!master\b)(\w+)\.apk$")


def apks(file: Path) -> Said:
    """The base's facts, with the ABIs of all."""
    with zipfile.ZipFile(file) as archive, tempfile.TemporaryDirectory() as folder:
        names = [name for name in archive.namelist() if name.endswith(".apk") and not name.startswith("standalones/")]
        said = [apk(Path(archive.extract(name, folder))) for name in names if not _SPLIT.search(name)]
    native = {ABIS[found[1].replace("_v", "-v")] for found in map(_SPLIT.search, names) if found and "_v" in found[1]}
    native |= {found[1] for found in map(_SPLIT.search, names) if found and found[1] in ("x86", "x86_64")}
    first = dict(said[0])
    for unsaid in ("icon", "api_level_minimum"):
        first.pop(unsaid)
    return first | {"architectures": tuple(sorted(native)) or first["architectures"]}


# --- ipa: plistutil -----------------------------------------------------------------------------------------------


def ipa(file: Path) -> Said:
    with zipfile.ZipFile(file) as archive:
        name = next(name for name in archive.namelist() if re.fullmatch(r"Payload/[^/]+/Info.plist", name))
        content = archive.read(name)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "Info.plist").write_bytes(content)
        text = run("plistutil", "-i", Path(folder) / "Info.plist", "-f", "xml", "-o", "-")
    pairs = list(ElementTree.fromstring(text)[0])
    values = {key.text: value for key, value in zip(pairs[::2], pairs[1::2], strict=True)}

    def text_of(key: str) -> str:
        return (values[key].text or "") if key in values else ""

    parts = text_of("CFBundleShortVersionString").split(".")
    return {
        "package_name": text_of("CFBundleIdentifier"),
        "version": text_of("CFBundleShortVersionString"),
        "sortable_version": ".".join([*parts, *["0"] * (3 - len(parts)), text_of("CFBundleVersion")]),
        "title": text_of("CFBundleDisplayName") or text_of("CFBundleName"),
        "os_version_minimum": text_of("MinimumOSVersion"),
        "os_types": ("ios",),
    }


# --- msi: msiinfo and openssl -------------------------------------------------------------------------------------


def msi(file: Path) -> Said:
    rows = (line.split("\t") for line in run("msiinfo", "export", file, "Property").splitlines()[3:])
    properties = {row[0]: row[1].rstrip("\r") for row in rows if len(row) == 2}
    template = re.search(r"^Template: ([^;\n]*)", run("msiinfo", "suminfo", file), re.MULTILINE)
    numbers = properties["ProductVersion"].split(".")
    return {
        "title": properties["ProductName"],
        "version": properties["ProductVersion"],
        "sortable_version": ".".join((numbers + ["0"] * 4)[:4]),
        "architectures": ({"x64": "x86_64", "Intel": "x86", "": "x86"}[template[1] if template else ""],),
        "os_types": ("windows",),
        "signer_digest": authenticode_signer(file),
    }


def authenticode_signer(file: Path) -> str:
    """SHA-256 of the certificate whose serial number the signature names, "" for an unsigned file."""
    with tempfile.TemporaryDirectory() as folder:
        signature = Path(folder) / "signature.pem"
        command = ["osslsigncode", "extract-signature", "-pem", "-in", str(file), "-out", str(signature)]
        if subprocess.run(command, capture_output=True, timeout=60).returncode:
            return ""
        verified = subprocess.run(["osslsigncode", "verify", "-in", str(file)], capture_output=True, timeout=60)
        serial = re.search(rb"Signer's certificate:.*?Serial : ([0-9A-F]+)", verified.stdout, re.DOTALL)
        assert serial
        named = int(serial[1], 16)
        certificates = re.findall(
            r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----",
            run("openssl", "pkcs7", "-print_certs", "-in", signature),
            re.DOTALL,
        )
        for text in certificates:
            pem = Path(folder) / "one.pem"
            pem.write_text(text)
            if int(run("openssl", "x509", "-noout", "-serial", "-in", pem).partition("=")[2], 16) == named:
                der = subprocess.run(["openssl", "x509", "-outform", "DER", "-in", str(pem)], capture_output=True)
                return hashlib.sha256(der.stdout).hexdigest()
    return "no certificate has the signer's serial number"


# --- exe: exiftool, openssl ---------------------------------------------------------------------------------------


def exe(file: Path) -> Said:
    (found,) = json.loads(run("exiftool", "-json", "-api", "StructFormat=JSON", file), parse_float=str)
    said: dict[str, object] = {"os_types": ("windows",), "signer_digest": authenticode_signer(file)}
    subsystem = str(found["SubsystemVersion"])
    said["os_version_minimum"] = (
        subsystem if float(subsystem) > 4.0 else ""
    )  # each Windows since 1996 is newer than 4.0
    if not _is_dotnet(file):
        said["architectures"] = (MACHINES[found["MachineType"]],)
    if name := str(found.get("ProductName", "")).strip():
        said["title"] = name
    if version := str(found.get("ProductVersion", "")).strip():
        said["version"] = ".".join(part.strip() for part in version.split(","))
    numbers = found.get("ProductVersionNumber", "0.0.0.0")
    said["sortable_version"] = numbers if numbers != "0.0.0.0" else found.get("FileVersionNumber", "")
    return said


def _is_dotnet(file: Path) -> bool:
    """What 7z finds in a .NET program: its runtime header; there the machine is no constraint."""
    return "mscoree.dll" in file.read_bytes().decode("latin-1").lower()


# --- msix: 7z and ElementTree -------------------------------------------------------------------------------------


def msix(file: Path) -> Said:
    with zipfile.ZipFile(file) as archive:
        if "AppxManifest.xml" in archive.namelist():
            said = _package(archive.read("AppxManifest.xml"))
            signature = archive.read("AppxSignature.p7x") if "AppxSignature.p7x" in archive.namelist() else b""
            return said if not signature else said | {"signer_digest": _p7x_signer(signature)}
        bundle = ElementTree.fromstring(archive.read("AppxMetadata/AppxBundleManifest.xml"))
        apps = [archive.read(one.get("FileName", "")) for one in bundle.iter() if one.tag.endswith("}Package")]
        parts = [_package(zipfile.ZipFile(io.BytesIO(app)).read("AppxManifest.xml")) for app in apps]
    identity = next(one for one in bundle.iter() if one.tag.endswith("}Identity"))
    architectures = sorted({one for part in parts for one in part["architectures"]})  # type: ignore[attr-defined]
    return parts[0] | {"version": identity.get("Version"), "architectures": tuple(architectures)}


def _package(manifest: bytes) -> dict[str, object]:
    found = {one.tag.rpartition("}")[2]: one for one in ElementTree.fromstring(manifest).iter()}
    identity = found["Identity"]
    architecture = {"x64": ("x86_64",), "x86": ("x86",), "arm64": ("arm64",), "neutral": ()}
    return {
        "package_name": identity.get("Name"),
        "version": identity.get("Version"),
        "title": found["DisplayName"].text,
        "architectures": architecture[identity.get("ProcessorArchitecture", "neutral")],
        "os_version_minimum": found["TargetDeviceFamily"].get("MinVersion"),
        "os_types": ("windows",),
    }


def _p7x_signer(signature: bytes) -> str:
    with tempfile.TemporaryDirectory() as folder:
        der, pem = Path(folder) / "signature.der", Path(folder) / "one.pem"
        der.write_bytes(signature.removeprefix(b"PKCX"))
        pem.write_text(run("openssl", "pkcs7", "-inform", "DER", "-print_certs", "-in", der))
        out = subprocess.run(["openssl", "x509", "-outform", "DER", "-in", str(pem)], capture_output=True)
    return hashlib.sha256(out.stdout).hexdigest()


# --- wheel: importlib.metadata and packaging ----------------------------------------------------------------------


def wheel(file: Path) -> Said:
    with zipfile.ZipFile(file) as archive:
        folder = next(name.partition("/")[0] for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        distribution = PathDistribution(zipfile.Path(archive, f"{folder}/"))
        name, version = distribution.metadata["Name"], distribution.version
    named, _, _, tags = parse_wheel_filename(file.name)
    platforms = {tag.platform for tag in tags}
    systems = {"win": "windows", "macosx": "macos", "manylinux": "linux", "musllinux": "linux", "linux": "linux"}
    found = {system for platform in platforms for start, system in systems.items() if platform.startswith(start)}
    processors = {
        "amd64": "x86_64",
        "x86_64": "x86_64",
        "win32": "x86",
        "i686": "x86",
        "aarch64": "arm64",
        "arm64": "arm64",
        "riscv64": "riscv64",
    }
    built = {one for platform in platforms for end, one in processors.items() if platform.endswith(end)}
    built |= {"arm64", "x86_64"} if any(platform.endswith("universal2") for platform in platforms) else set()
    return {
        "package_name": named,
        "title": name,
        "version": version,
        "os_types": tuple(sorted(found or {"linux", "macos", "windows"})),
        "architectures": tuple(sorted(built)),
        "wheel_tags": tuple(sorted(map(str, tags))) if found else (),
    }


READERS: Final[dict[str, Callable[[Path], Said]]] = {
    "deb": deb,
    "rpm": rpm,
    "apk": apk,
    "apks": apks,
    "ipa": ipa,
    "msi": msi,
    "exe": exe,
    "msix": msix,
    "wheel": wheel,
}
