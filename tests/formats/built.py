"""Installers built by their formats' own tools: one recipe each, into a folder of its own.

Where no such tool runs here the recipes are in `standins.py`, and what they make is called a stand-in.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec

from tests.formats.samples import all_samples

FRAMEWORK: Final = Path("/usr/share/android-framework-res/framework-res.apk")
TOOL_SECONDS: Final = 120
PASSWORD: Final = "throwaway"  # of a key made for one test run


class Recipe(msgspec.Struct, frozen=True, kw_only=True):
    """How one file comes to be: `make` writes it into a folder and returns its path; `tools` have to be there."""

    name: str
    format: str
    tools: tuple[str, ...]
    make: Callable[[Path], Path]

    def lacks(self) -> list[str]:
        """The tools that are not installed."""
        return [tool for tool in self.tools if not (Path(tool).exists() if "/" in tool else shutil.which(tool))]


RECIPES: Final[list[Recipe]] = []


def recipe(name: str, kind: str, *tools: str) -> Callable[[Callable[[Path], Path]], Callable[[Path], Path]]:
    """Register what makes the file `name` of the format `kind`."""

    def register(make: Callable[[Path], Path]) -> Callable[[Path], Path]:
        RECIPES.append(Recipe(name=name, format=kind, tools=tools, make=make))
        return make

    return register


def run(*command: str | Path, folder: Path | None = None, environment: dict[str, str] | None = None) -> str:
    """Run a tool to its good end and return what it prints; `environment` is added to this process's."""
    done = subprocess.run(
        list(map(str, command)),
        cwd=folder,
        env=os.environ | (environment or {}),
        capture_output=True,
        text=True,
        timeout=TOOL_SECONDS,
    )
    assert done.returncode == 0, f"{command[0]}: {done.stdout[-500:]}{done.stderr[-1500:]}"
    return done.stdout


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@contextmanager
def scratch(folder: Path) -> Iterator[Path]:
    """A folder for what a tool needs on its way, gone afterwards."""
    work = folder / "work"
    work.mkdir()
    yield work
    shutil.rmtree(work)


# --- deb: dpkg-deb ------------------------------------------------------------------------------------------------

DEBS: Final = {  # file -> (version, architecture, packing, further control lines)
    "plain": ("1.0", "all", "xz", ""),
    "gzip": ("1.2.3-4", "amd64", "gzip", "Depends: libc6\n"),
    "unpacked": ("2:1.0~rc1-1ubuntu2", "arm64", "none", "Multi-Arch: foreign\n"),
    "zstd": ("20260101+ds-1", "armhf", "zstd", "Section: misc\nPriority: optional\nInstalled-Size: 10\n"),
    "long": ("1:0.9-0.1", "i386", "xz", "Recommends: " + ", ".join(f"package-{n}" for n in range(2000)) + "\n"),
}


def _deb(name: str) -> Callable[[Path], Path]:
    version, architecture, packing, more = DEBS[name]

    def make(folder: Path) -> Path:
        with scratch(folder) as work:
            write(work / "usr" / "share" / "doc" / name / "readme", "hello\n" * 50)
            write(
                work / "DEBIAN" / "control",
                f"Package: built-{name}\nVersion: {version}\nArchitecture: {architecture}\n{more}"
                "Maintainer: Ünïcode Person <person@example.org>\n"
                f"Description: the {name} package, ünïcode and all\n Its long text.\n .\n The end.\n",
            )
            target = folder / f"built-{name}.deb"
            run("dpkg-deb", "--root-owner-group", f"-Z{packing}", "--uniform-compression", "--build", work, target)
        return target

    return make


for _name in DEBS:
    recipe(f"built-{_name}.deb", "deb", "dpkg-deb")(_deb(_name))


# --- rpm: rpmbuild ------------------------------------------------------------------------------------------------

RPMS: Final = {  # file -> (version, release, architecture, epoch, payload, further lines)
    "noarch": ("1.0", "1", "noarch", "", "w6.xzdio", ""),
    "epoch": ("3.4.5", "6.fc40", "x86_64", "2", "w9.gzdio", "Recommends: other\n"),
    "tilde": ("2.0~beta1", "0.1", "aarch64", "", "w3.zstdio", ""),
    "caret": ("1.0^git20260101", "1", "i686", "", "w6.bzdio", "Obsoletes: older < 1\nProvides: newer = 1\n"),
}


def _rpm(name: str) -> Callable[[Path], Path]:
    version, release, architecture, epoch, payload, more = RPMS[name]

    def make(folder: Path) -> Path:
        with scratch(folder) as work:
            spec = write(
                work / "a.spec",
                f"Name: built-{name}\nVersion: {version}\nRelease: {release}\n"
                f"{f'Epoch: {epoch}' if epoch else '# no epoch'}\nSummary: The {name} package, ünïcode and all\n"
                f"License: none\n{more}{'BuildArch: noarch' if architecture == 'noarch' else ''}\n"
                "%description\nLong text.\n%install\nmkdir -p %{buildroot}/opt\n"
                "echo hello > %{buildroot}/opt/file\n%files\n/opt/file\n",
            )
            options = (
                "--target",
                architecture,
                "--define",
                f"_topdir {work}",
                "--define",
                f"_binary_payload {payload}",
            )
            run("rpmbuild", "-bb", *options, spec)
            built = next((work / "RPMS").rglob("*.rpm"))
            return built.rename(folder / built.name)

    return make


for _name in RPMS:
    recipe(f"built-{_name}.rpm", "rpm", "rpmbuild")(_rpm(_name))


@recipe("built-signed.rpm", "rpm", "rpmbuild", "rpmsign", "gpg")
def _signed_rpm(folder: Path) -> Path:
    unsigned = _rpm("epoch")(folder)
    keys = folder / "keys"
    keys.mkdir(mode=0o700)
    gpg = ("gpg", "--homedir", keys, "--batch", "--pinentry-mode", "loopback", "--passphrase", "")
    run(*gpg, "--quick-generate-key", "Lockstep tests <tests@example.org>", "rsa2048", "sign", "never")
    macros = ("_gpg_name Lockstep tests", f"_gpg_path {keys}", f"__gpg {shutil.which('gpg')}")
    defined = [part for macro in macros for part in ("--define", macro)]
    run("rpmsign", *defined, "--addsign", unsigned, environment={"GNUPGHOME": str(keys), "GPG_TTY": ""})
    subprocess.run(["gpgconf", "--homedir", str(keys), "--kill", "all"], timeout=TOOL_SECONDS, check=False)
    shutil.rmtree(keys)
    return unsigned.rename(folder / "built-signed.rpm")


# --- apk: aapt2, zipalign, apksigner ------------------------------------------------------------------------------

CYCLIC: Final = "cyclic-label"  # aapt cannot read it, so it is no proof but bad input
ANDROID: Final = 'xmlns:android="http://schemas.android.com/apk/res/android"'
MANIFESTS: Final = {
    "plain": '<uses-sdk android:minSdkVersion="21"/><application android:label="Plain"/>',
    "screens": (
        '<uses-sdk android:minSdkVersion="24" android:targetSdkVersion="34" android:maxSdkVersion="35"/>'
        '<supports-screens android:smallScreens="false" android:largeScreens="true"'
        ' android:requiresSmallestWidthDp="600"/>'
        '<uses-feature android:name="android.hardware.camera"/>'
        '<uses-feature android:name="android.hardware.nfc" android:required="false"/>'
        '<uses-permission android:name="android.permission.INTERNET"/>'
        '<application android:label="@string/title" android:icon="@drawable/icon">'
        '<activity android:name=".Main" android:exported="true"/></application>'
    ),
    "tv": (
        '<uses-sdk android:minSdkVersion="26"/>'
        '<uses-feature android:name="android.software.leanback"/>'
        '<uses-feature android:name="android.hardware.touchscreen" android:required="false"/>'
        '<application android:label="@string/alias"/>'
    ),
    CYCLIC: '<uses-sdk android:minSdkVersion="21"/><application android:label="@string/one"/>',
}
STRINGS: Final = (
    '<resources><string name="title">Bühne</string><string name="alias">@string/title</string>'
    '<string name="one">@string/two</string><string name="two">@string/one</string></resources>'
)
ICON: Final = '<shape xmlns:android="http://schemas.android.com/apk/res/android" android:shape="oval"/>'
NATIVE: Final = {"screens": ("arm64-v8a", "armeabi-v7a", "x86_64"), "tv": ("armeabi-v7a",)}


def linked_apk(name: str, work: Path, *options: str) -> Path:
    """An APK as aapt2 links it, with the native libraries of `name` but without a signature."""
    write(work / "res" / "values" / "strings.xml", STRINGS)
    write(work / "res" / "drawable" / "icon.xml", ICON)
    manifest = write(
        work / "AndroidManifest.xml",
        f'<manifest {ANDROID} package="org.example.{name.replace("-", "_")}" android:versionCode="1{len(name)}" '
        f'android:versionName="1.{len(name)}-ü">{MANIFESTS[name]}</manifest>',
    )
    run("aapt2", "compile", "--dir", work / "res", "-o", work / "resources.zip")
    target = work / "linked.apk"
    run("aapt2", "link", "-I", FRAMEWORK, "--manifest", manifest, *options, "-o", target, work / "resources.zip")
    for abi in NATIVE.get(name, ()):
        library = write(work / "lib" / abi / "libx.so", b"\x7fELF" + b"\0" * 60)
        run("zip", "-q", target, library.relative_to(work), folder=work)
    return target


def unsigned_apk(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        with scratch(folder) as work:
            return linked_apk(name, work).rename(folder / f"built-{name}.apk")

    return make


APK_TOOLS: Final = ("aapt2", "zip", str(FRAMEWORK))
for _name in MANIFESTS:
    if _name != CYCLIC:
        recipe(f"built-{_name}.apk", "apk", *APK_TOOLS)(unsigned_apk(_name))


def signed_apk(folder: Path, versions: str) -> Path:
    """An APK signed by the schemes named in `versions`, such as "23"."""
    with scratch(folder) as work:
        apk, key = linked_apk("screens", work), work / "key.p12"
        run(
            *("keytool", "-genkeypair", "-keystore", key, "-storetype", "PKCS12", "-storepass", PASSWORD),
            *("-alias", "key", "-keyalg", "EC", "-validity", "10000", "-dname", f"CN=Tests {versions}"),
        )
        run("zipalign", "-f", "4", apk, work / "aligned.apk")
        chosen = [f"--v{number}-signing-enabled={str(str(number) in versions).lower()}" for number in (1, 2, 3, 4)]
        target = folder / f"built-signed-v{versions}.apk"
        least = "21" if "1" in versions else "24" if "2" in versions else "28"
        options = ["--ks", str(key), "--ks-pass", f"pass:{PASSWORD}", "--min-sdk-version", least, *chosen]
        run("apksigner", "sign", *options, "--out", target, work / "aligned.apk")
    return target


for _versions in ("1", "2", "3", "123"):
    recipe(f"built-signed-v{_versions}.apk", "apk", *APK_TOOLS, "apksigner", "keytool")(
        lambda folder, versions=_versions: signed_apk(folder, versions)  # type: ignore[misc]
    )


# --- aab and apks: bundletool -------------------------------------------------------------------------------------


def _bundletool() -> Path:
    return next(sample.path for sample in all_samples() if sample.name == "bundletool.jar")


def _bundle(work: Path, target: Path) -> Path:
    """An Android App Bundle from an APK with resources as protobuf."""
    module = work / "module"
    run("unzip", "-q", linked_apk("screens", work, "--proto-format", "--auto-add-overlay"), "-d", module)
    (module / "manifest").mkdir()
    (module / "AndroidManifest.xml").rename(module / "manifest" / "AndroidManifest.xml")
    write(module / "dex" / "classes.dex", b"dex\n035\0" + b"\0" * 104)
    run("zip", "-q", "-r", work / "base.zip", ".", folder=module)
    run("java", "-jar", _bundletool(), "build-bundle", f"--modules={work / 'base.zip'}", f"--output={target}")
    return target


@recipe("built.aab", "aab", "java", "aapt2", "zip", "unzip", str(FRAMEWORK), str(_bundletool()))
def _aab(folder: Path) -> Path:
    with scratch(folder) as work:
        return _bundle(work, folder / "built.aab")


@recipe("built.apks", "apks", "java", "aapt2", "zip", "unzip", "keytool", str(FRAMEWORK), str(_bundletool()))
def _apks(folder: Path) -> Path:
    with scratch(folder) as work:
        bundle, target = _bundle(work, work / "a.aab"), folder / "built.apks"
        key = work / "key.p12"
        run(
            *("keytool", "-genkeypair", "-keystore", key, "-storetype", "PKCS12", "-storepass", PASSWORD),
            *("-alias", "key", "-keyalg", "RSA", "-validity", "10000", "-dname", "CN=Tests apks"),
        )
        run(
            *("java", "-jar", _bundletool(), "build-apks", f"--bundle={bundle}", f"--output={target}"),
            *(f"--aapt2={shutil.which('aapt2')}", f"--ks={key}", f"--ks-pass=pass:{PASSWORD}", "--ks-key-alias=key"),
        )
    return target


# --- msi: wixl ----------------------------------------------------------------------------------------------------

MSIS: Final = {  # file -> (architecture, product name, version)
    "x64": ("x64", "Built Tool", "1.2.3"),
    "x86": ("x86", "Bühne 2.0 (32-bit)", "2.0.1.7"),
}


def _msi(name: str) -> Callable[[Path], Path]:
    architecture, product, version = MSIS[name]

    def make(folder: Path) -> Path:
        target = folder / f"built-{name}.msi"
        with scratch(folder) as work:
            write(work / "readme.txt", "hello\n")
            source = write(
                work / "a.wxs",
                '<?xml version="1.0" encoding="utf-8"?><Wix xmlns="http://schemas.microsoft.com/wix/2006/wi">'
                f'<Product Name="{product}" Id="*" UpgradeCode="8C16AFA6-0000-4E4D-9F6C-9C6F2B1B3A01" Language="1033" '
                f'Codepage="1252" Version="{version}" Manufacturer="Tests">'
                '<Package InstallerVersion="200" Compressed="yes" Comments="tests"/>'
                '<Media Id="1" Cabinet="a.cab" EmbedCab="yes"/><Directory Id="TARGETDIR" Name="SourceDir">'
                '<Component Id="C" Guid="8C16AFA6-0001-4E4D-9F6C-9C6F2B1B3A01">'
                '<File Id="F" Source="readme.txt"/></Component></Directory>'
                '<Feature Id="All" Level="1"><ComponentRef Id="C"/></Feature></Product></Wix>',
            )
            run("wixl", "-a", architecture, "-o", target, source.name, folder=work)
        return target

    return make


for _name in MSIS:
    recipe(f"built-{_name}.msi", "msi", "wixl")(_msi(_name))


@recipe("built-signed.msi", "msi", "wixl", "osslsigncode", "openssl")
def _signed_msi(folder: Path) -> Path:
    return _signed(_msi("x64")(folder), folder)


# --- exe: makensis ------------------------------------------------------------------------------------------------


@recipe("built.exe", "exe", "makensis")
def _exe(folder: Path) -> Path:
    target = folder / "built.exe"
    with scratch(folder) as work:
        script = write(
            work / "a.nsi",
            f'Unicode true\nName "Built Setup"\nOutFile "{target}"\nInstallDir "$TEMP"\nRequestExecutionLevel user\n'
            'VIProductVersion "4.5.6.7"\nVIAddVersionKey "ProductName" "Built Setup"\n'
            'VIAddVersionKey "ProductVersion" "4.5.6-beta"\nVIAddVersionKey "FileVersion" "4.5.6.7"\n'
            'VIAddVersionKey "FileDescription" "Bühne"\nVIAddVersionKey "LegalCopyright" "none"\n'
            "Section\nSectionEnd\n",
        )
        run("makensis", "-INPUTCHARSET", "UTF8", "-V1", script)
    return target


@recipe("built-signed.exe", "exe", "makensis", "osslsigncode", "openssl")
def _signed_exe(folder: Path) -> Path:
    return _signed(_exe(folder), folder)


@recipe("built-with-zip-behind.exe", "exe", "makensis", "zip")
def _self_extracting(folder: Path) -> Path:
    """A zip appended to a program, as self-extracting archives are."""
    program = _exe(folder)
    write(folder / "readme.txt", "hello\n")
    run("zip", "-q", folder / "a.zip", "readme.txt", folder=folder)
    target = write(folder / "built-with-zip-behind.exe", program.read_bytes() + (folder / "a.zip").read_bytes())
    for other in (program, folder / "a.zip", folder / "readme.txt"):
        other.unlink()
    return target


def _signed(file: Path, folder: Path) -> Path:
    target = folder / f"{file.stem.split('-')[0]}-signed{file.suffix}"
    with scratch(folder) as work:
        key, certificate = work / "key.pem", work / "certificate.pem"
        run(
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", certificate),
            *("-days", "30", "-subj", "/CN=Tests", "-addext", "extendedKeyUsage=codeSigning"),
        )
        run("osslsigncode", "sign", "-certs", certificate, "-key", key, "-in", file, "-out", target)
    file.unlink()
    return target


# --- wheel: pip and hatchling -------------------------------------------------------------------------------------


def _wheel(name: str, version: str, folder: Path) -> Path:
    with scratch(folder) as work:
        write(work / "built" / "__init__.py", "")
        write(
            work / "pyproject.toml",
            '[build-system]\nrequires = ["hatchling"]\nbuild-backend = "hatchling.build"\n'
            f'[project]\nname = "{name}"\nversion = "{version}"\ndescription = "Ünïcode"\nrequires-python = ">=3.9"\n'
            '[tool.hatch.build.targets.wheel]\npackages = ["built"]\n',
        )
        pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "wheel")
        run(*pip, "--no-deps", "--no-build-isolation", "--wheel-dir", folder, work)
    return next(folder.glob("*.whl"))


recipe("built.whl", "wheel")(lambda folder: _wheel("Built.Wheel", "1.0rc1", folder))
recipe("built-epoch.whl", "wheel")(lambda folder: _wheel("built_epoch", "1!2.0.post3+local.1", folder))


# --- flatpak, AppImage: recognised, and served by a sidecar -------------------------------------------------------


@recipe("built.flatpak", "flatpak", "flatpak")
def _flatpak(folder: Path) -> Path:
    target = folder / "built.flatpak"
    with scratch(folder) as work:
        write(work / "app" / "files" / "bin" / "hello", "#!/bin/sh\necho hello\n")
        write(
            work / "app" / "metadata", "[Application]\nname=org.example.Built\nruntime=org.example.Platform/x86_64/1\n"
        )
        write(work / "app" / "export" / "readme", "hello\n")
        home = {"HOME": str(work), "XDG_DATA_HOME": str(work / "data"), "XDG_CACHE_HOME": str(work / "cache")}
        run("flatpak", "build-export", work / "repository", work / "app", environment=home)
        run("flatpak", "build-bundle", work / "repository", target, "org.example.Built", environment=home)
    return target
