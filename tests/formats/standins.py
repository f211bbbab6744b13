"""Stand-ins, made by hand after the formats' descriptions where no tool of the format runs here.

A reader that passes on these has not met a vendor's file, and what is counted of them is counted apart. How near each
is to a real one is said at its recipe.
"""

import base64
import hashlib
import plistlib
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tests.formats.built import RECIPES as BUILT
from tests.formats.built import Recipe, run, scratch, write
from tests.formats.samples import all_samples

RECIPES: Final[list[Recipe]] = []


def standin(name: str, kind: str, *tools: str) -> Callable[[Callable[[Path], Path]], Callable[[Path], Path]]:
    """Register what makes the stand-in `name` of the format `kind`."""

    def register(make: Callable[[Path], Path]) -> Callable[[Path], Path]:
        RECIPES.append(Recipe(name=name, format=kind, tools=tools, make=make))
        return make

    return register


def zipped(target: Path, members: dict[str, bytes | str], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(target, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return target


# --- ipa ----------------------------------------------------------------------------------------------------------


def _sample(name: str) -> Path:
    return next(sample.path for sample in all_samples() if sample.name == name)


@standin("standin-of-a-real-app.ipa", "ipa", str(_sample("Detox-ios-xcuitest.tbz")))
def _real_app(folder: Path) -> Path:
    """An app as Xcode built it for the simulator, its platform changed to the device's, without what lies deeper."""
    application = "Products/Release-iphonesimulator/DetoxXCUITestRunner-Runner.app/"
    members: dict[str, bytes | str] = {}
    with tarfile.open(_sample("Detox-ios-xcuitest.tbz")) as archive:
        for info in archive:
            name = info.name.removeprefix("./")
            if name.startswith(application) and info.isfile() and "/" not in name.removeprefix(application):
                content = archive.extractfile(info)
                assert content is not None
                members["Payload/Runner.app/" + name.removeprefix(application)] = content.read()
    plist = plistlib.loads(bytes(members["Payload/Runner.app/Info.plist"]))  # type: ignore[arg-type]
    plist["CFBundleSupportedPlatforms"], plist["DTPlatformName"] = ["iPhoneOS"], "iphoneos"
    members["Payload/Runner.app/Info.plist"] = plistlib.dumps(plist, fmt=plistlib.FMT_BINARY)
    return zipped(folder / "standin-of-a-real-app.ipa", members)


PLIST: Final = """<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE plist PUBLIC "-//Apple//DTD PLIST 1.0//EN" "http://www.apple.com/DTDs/PropertyList-1.0.dtd">
<plist version="1.0"><dict>
<key>CFBundleIdentifier</key><string>org.example.built</string>
<key>CFBundleDisplayName</key><string>Bühne</string><key>CFBundleName</key><string>Built</string>
<key>CFBundleShortVersionString</key><string>2.1</string><key>CFBundleVersion</key><string>417</string>
<key>CFBundleExecutable</key><string>Built</string>
<key>CFBundleSupportedPlatforms</key><array><string>iPhoneOS</string></array>
<key>MinimumOSVersion</key><string>15.0</string>
<key>UIDeviceFamily</key><array><integer>1</integer><integer>2</integer></array>
<key>UIRequiredDeviceCapabilities</key><array><string>arm64</string><string>nfc</string></array>
</dict></plist>
"""


@standin("standin-xml-plist.ipa", "ipa")
def _xml_plist(folder: Path) -> Path:
    return zipped(folder / "standin-xml-plist.ipa", {"Payload/Built.app/Info.plist": PLIST})


@standin("standin-binary-plist.ipa", "ipa", "plistutil")
def _binary_plist(folder: Path) -> Path:
    """The same as plistutil packs it."""
    with scratch(folder) as work:
        source = write(work / "Info.plist", PLIST)
        run("plistutil", "-i", source, "-f", "bin", "-o", work / "binary")
        members: dict[str, bytes | str] = {"Payload/Built.app/Info.plist": (work / "binary").read_bytes()}
    return zipped(folder / "standin-binary-plist.ipa", members)


# --- msix ---------------------------------------------------------------------------------------------------------


def appx_manifest(architecture: str, name: str = "Example.Built") -> str:
    return (
        '<?xml version="1.0" encoding="utf-8"?><Package '
        'xmlns="http://schemas.microsoft.com/appx/manifest/foundation/windows10" '
        'xmlns:uap="http://schemas.microsoft.com/appx/manifest/uap/windows10">'
        f'<Identity Name="{name}" Publisher="CN=Tests" Version="1.2.3.0" ProcessorArchitecture="{architecture}"/>'
        "<Properties><DisplayName>Bühne</DisplayName><PublisherDisplayName>Tests</PublisherDisplayName>"
        r"<Logo>Assets\Logo.png</Logo></Properties>"
        '<Dependencies><TargetDeviceFamily Name="Windows.Desktop" MinVersion="10.0.17763.0" '
        'MaxVersionTested="10.0.22621.0"/></Dependencies>'
        '<Resources><Resource Language="en-us"/></Resources><Applications/></Package>'
    )


CONTENT_TYPES: Final = (
    '<?xml version="1.0" encoding="UTF-8"?><Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types">'
    '<Default Extension="png" ContentType="image/png"/>'
    '<Override PartName="/AppxManifest.xml" ContentType="application/vnd.ms-appx.manifest+xml"/>'
    '<Override PartName="/AppxBlockMap.xml" ContentType="application/vnd.ms-appx.blockmap+xml"/></Types>'
)


def _package(target: Path, architecture: str) -> Path:
    members: dict[str, bytes | str] = {
        "AppxManifest.xml": appx_manifest(architecture),
        "Assets/Logo.png": b"\x89PNG\r\n\x1a\n",
    }
    return zipped(target, members | {"AppxBlockMap.xml": _block_map(members), "[Content_Types].xml": CONTENT_TYPES})


def _block_map(members: dict[str, bytes | str]) -> str:
    """The digests of all files, each smaller than one block here."""
    lines = []
    for name, text in members.items():
        content = text.encode() if isinstance(text, str) else text
        digest = base64.b64encode(hashlib.sha256(content).digest()).decode()
        shown = name.replace("/", chr(92))
        lines.append(
            f'<File Name="{shown}" Size="{len(content)}" LfhSize="{30 + len(name)}"><Block Hash="{digest}"/></File>'
        )
    return (
        '<?xml version="1.0" encoding="UTF-8"?><BlockMap xmlns="http://schemas.microsoft.com/appx/2010/blockmap" '
        f'HashMethod="http://www.w3.org/2001/04/xmlenc#sha256">{"".join(lines)}</BlockMap>'
    )


for _architecture in ("x64", "arm64", "neutral"):
    standin(f"standin-{_architecture}.msix", "msix")(
        lambda folder, one=_architecture: _package(folder / f"standin-{one}.msix", one)  # type: ignore[misc]
    )


@standin("standin-signed.msix", "msix", "osslsigncode", "openssl")
def _signed_msix(folder: Path) -> Path:
    """A package made by hand and signed by osslsigncode, which knows the format."""
    unsigned, target = _package(folder / "unsigned.msix", "x64"), folder / "standin-signed.msix"
    with scratch(folder) as work:
        key, certificate = work / "key.pem", work / "certificate.pem"
        run(
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", certificate),
            *("-days", "30", "-subj", "/CN=Tests", "-addext", "extendedKeyUsage=codeSigning"),
        )
        run("osslsigncode", "sign", "-certs", certificate, "-key", key, "-in", unsigned, "-out", target)
    unsigned.unlink()
    return target


@standin("standin.msixbundle", "msix")
def _bundle(folder: Path) -> Path:
    packages = {f"Built_{one}.msix": _package(folder / f"{one}.msix", one).read_bytes() for one in ("x64", "arm64")}
    for one in ("x64", "arm64"):
        (folder / f"{one}.msix").unlink()
    listed = "".join(
        f'<Package Type="application" Version="1.2.3.0" Architecture="{name[6:-5]}" FileName="{name}"/>'
        for name in packages
    )
    manifest = (
        '<?xml version="1.0" encoding="UTF-8"?><Bundle xmlns="http://schemas.microsoft.com/appx/2013/bundle" '
        'SchemaVersion="5.0"><Identity Name="Example.Built" Publisher="CN=Tests" Version="2026.101.0.0"/>'
        f"<Packages>{listed}</Packages></Bundle>"
    )
    members: dict[str, bytes | str] = {**packages, "AppxMetadata/AppxBundleManifest.xml": manifest}
    return zipped(folder / "standin.msixbundle", members, zipfile.ZIP_STORED)


# --- apks ---------------------------------------------------------------------------------------------------------


@standin("standin-of-a-real-apk.apks", "apks", str(_sample("settings_apk-debug.apk")))
def _wrapped_apk(folder: Path) -> Path:
    """A vendor's APK in a set written by hand, with an empty table of contents."""
    apk = _sample("settings_apk-debug.apk").read_bytes()
    members: dict[str, bytes | str] = {"toc.pb": b"", "universal.apk": apk}
    return zipped(folder / "standin-of-a-real-apk.apks", members, zipfile.ZIP_STORED)


# --- what is recognised and served by a sidecar -------------------------------------------------------------------


@standin("standin.pkg", "pkg", "bsdtar")
def _pkg(folder: Path) -> Path:
    """An xar archive of a PackageInfo, by bsdtar; a real one holds a bill of materials and is signed."""
    with scratch(folder) as work:
        write(work / "PackageInfo", '<pkg-info identifier="org.example.built" version="1.0"/>')
        run("bsdtar", "--format=xar", "-cf", folder / "standin.pkg", "-C", work, "PackageInfo")
    return folder / "standin.pkg"


@standin("standin.AppImage", "appimage", "mksquashfs")
def _appimage(folder: Path) -> Path:
    """/bin/true with the mark of an AppImage and a squashfs behind; a real one has the AppImage runtime."""
    with scratch(folder) as work:
        write(work / "root" / "built.desktop", "[Desktop Entry]\nName=Built\n")
        run("mksquashfs", work / "root", work / "image", "-quiet", "-no-progress")
        program = bytearray(Path("/bin/true").read_bytes())
        program[8:11] = b"AI\x02"
        return write(folder / "standin.AppImage", bytes(program) + (work / "image").read_bytes())


ALL: Final = [*BUILT, *RECIPES]
