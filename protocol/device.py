"""DeviceInfo: what a terminal reports of itself, and the vocabulary its fields use.

Sizes: screen diagonal in inches, resolution in pixels as (width, height) in the orientation the device reports, density
in dots per inch, free space in bytes. A field that is not known is None or empty, never a guess: the resolver treats
"unknown" as a third value.
"""

from typing import Annotated, Final, Literal, TypeAlias

from msgspec import Meta, Struct

from protocol import limits

FormFactor: TypeAlias = Literal["phone", "tablet", "tv", "car", "pc", "watch", "other"]
OsType: TypeAlias = Literal["android", "ios", "linux", "macos", "windows", "other"]
Architecture: TypeAlias = Literal["x86_64", "x86", "arm64", "armv7", "riscv64", "ppc64le", "s390x", "mips64"]
# The kinds whose header the hub reads come first; of the others, from `aab` on, a sidecar file says what they are.
InstallerKind: TypeAlias = Literal[
    "deb", "rpm", "wheel", "apk", "apks", "ipa", "msi", "msix", "exe", "aab", "appimage", "flatpak", "pkg", "other"
]  # fmt: skip

Name: TypeAlias = Annotated[str, Meta(min_length=1, max_length=limits.NAME_CHARACTERS)]
ShortText: TypeAlias = Annotated[str, Meta(max_length=limits.NAME_CHARACTERS)]
Pixels: TypeAlias = Annotated[int, Meta(ge=1, le=100_000)]
Inches: TypeAlias = Annotated[float, Meta(gt=0, le=1_000)]
ByteCount: TypeAlias = Annotated[int, Meta(ge=0, le=2**60)]

FORM_FACTORS: Final[tuple[FormFactor, ...]] = ("phone", "tablet", "tv", "car", "pc", "watch", "other")

# The names other systems give to the same architecture (Debian, Android ABI, `platform.machine()`, wheel tags).
ARCHITECTURE_NAMES: Final[dict[str, Architecture]] = {
    "x86_64": "x86_64",
    "amd64": "x86_64",
    "x86": "x86",
    "i386": "x86",
    "i486": "x86",
    "i586": "x86",
    "i686": "x86",
    "arm64": "arm64",
    "aarch64": "arm64",
    "arm64-v8a": "arm64",
    "armv7": "armv7",
    "armv7l": "armv7",
    "armhf": "armv7",
    "armeabi-v7a": "armv7",
    "riscv64": "riscv64",
    "ppc64le": "ppc64le",
    "ppc64el": "ppc64le",
    "s390x": "s390x",
    "mips64": "mips64",
    "mips64el": "mips64",
}


class DeviceInfo(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What one terminal reports of itself. `architectures` and `installer_kinds` name the preferred one first.

    `python_version` ("3.11") is of the Python that takes wheels, `libc` ("glibc 2.36", "musl 1.2") of a Linux system:
    with them the hub tells which wheels fit.
    """

    model: Name
    model_code: ShortText = ""
    form_factor: FormFactor = "other"
    os_type: OsType = "other"
    os_version: ShortText = ""
    api_level: Annotated[int, Meta(ge=1, le=10_000)] | None = None
    architectures: Annotated[tuple[Architecture, ...], Meta(max_length=8)] = ()
    screen_inches: Inches | None = None
    resolution: tuple[Pixels, Pixels] | None = None
    density_dpi: Annotated[int, Meta(ge=1, le=10_000)] | None = None
    features: Annotated[tuple[Name, ...], Meta(max_length=16)] = ()
    installer_kinds: Annotated[tuple[InstallerKind, ...], Meta(max_length=16)] = ()
    python_version: ShortText = ""
    libc: ShortText = ""
    free_bytes: ByteCount | None = None
