"""Android packages for the tests of two inspectors, compiled by aapt2 from a manifest in text."""

import shutil
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.hub.inspectors.reading import run

FRAMEWORK = Path("/usr/share/android-framework-res/framework-res.apk")
needs_aapt2 = pytest.mark.skipif(
    not (shutil.which("aapt2") and FRAMEWORK.exists()), reason="aapt2 and android-framework-res are not installed"
)


def a_manifest(
    attributes: str = "",
    body: str = "",
    sdk: str = '<uses-sdk android:minSdkVersion="24"/>',
    package: str = "org.example.made",
) -> str:
    """Return the manifest of `package` in text."""
    return (
        f'<manifest xmlns:android="http://schemas.android.com/apk/res/android" package="{package}"'
        f" {attributes}>{sdk}{body}</manifest>"
    )


def link(
    folder: Path,
    manifest: str,
    members: Sequence[str] = (),
    resources: Path | None = None,
    options: Sequence[str] = (),
) -> Path:
    """Compile a manifest in text with aapt2, add empty members, and return the unsigned APK."""
    source, linked = folder / "AndroidManifest.xml", folder / "made.apk"
    source.write_text(manifest)
    run("aapt2", "link", "-I", FRAMEWORK, *options, "--manifest", source, "-o", linked, *filter(None, [resources]))
    with zipfile.ZipFile(linked, "a") as archive:
        for name in members:
            archive.writestr(name, b"")
    return linked
