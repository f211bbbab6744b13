"""What this machine can say of itself, and the device file by which an owner says more.

Detection reports only what the system states. What is not stated stays unknown (None, empty, form factor "other"):
the resolver treats "unknown" as a third value, and a guess would be worse. Linux is read from files, all below `root`;
macOS and Windows give what Python's `platform` knows, and what else their makers say runs on such a machine.

The device file (`protocol/devicefile.py`) may have `[installers.KIND]` tables (see RunnerSettings). It overrides the
detected device field by field, unless it names a `model`: then it describes another device, a simulated phone for one.
"""

import importlib.util
import math
import os
import platform
import re
import shlex
import shutil
import socket
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path
from typing import Final, get_args, get_type_hints

from protocol import limits
from protocol.device import ARCHITECTURE_NAMES, Architecture, DeviceInfo, FormFactor, InstallerKind, OsType
from protocol.devicefile import DEVICE_FILE_BYTES, INSTALLERS, check_keys, checked_value, parse_device_file, refuse
from protocol.errors import BadFileError
from terminal.installers import RunnerSettings

SMALL_FILE_BYTES: Final = 64 * limits.KIB
CENTIMETRES_PER_INCH: Final = 2.54
EDID_HEADER: Final = bytes.fromhex("00ffffffffffff00")
EDID_SIZE_OFFSET: Final = 21  # VESA E-EDID 1.4, 3.6.2: width and height in cm, 0 where not known
OS_TYPES: Final[Mapping[str, OsType]] = {"Linux": "linux", "Darwin": "macos", "Windows": "windows"}
WINDOWS_11_BUILD: Final = 22_000
ROSETTA: Final = "Library/Apple/usr/share/rosetta/rosetta"
LOADER_SECONDS: Final = 2.0
BUILT_IN_PANELS: Final = ("eDP", "LVDS", "DSI")

# SMBIOS 3.7, 7.4.1, the types that are definite. Hand held (11), docking station (12) and the like are not.
CHASSIS_PC: Final = frozenset({3, 4, 5, 6, 7, 8, 9, 10, 13, 14, 15, 16, 17, 23, 24, 28, 31, 32, 35, 36})
CHASSIS_TABLET: Final = frozenset({30})

# What makers leave in the product name when they forget to fill it in.
NO_PRODUCT_NAMES: Final = frozenset(
    {"", "to be filled by o.e.m.", "system product name", "default string", "not specified", "none", "o.e.m."}
)


def detect_device(folder: Path, root: Path = Path("/")) -> DeviceInfo:
    """Return what this machine says of itself; `free_bytes` is that of `folder`'s disk. Tests give another `root`."""
    os_type = OS_TYPES.get(platform.system(), "other")
    if os_type == "linux":
        return _detect_linux(folder, root)
    os_version = _short(platform.mac_ver()[0] if os_type == "macos" else platform.version())
    architectures = architectures_run(os_type, platform.machine(), os_version, root)
    return DeviceInfo(
        model=_short(platform.node()) or "unnamed device",
        os_type=os_type,
        os_version=os_version,
        architectures=architectures,
        installer_kinds=_installer_kinds(),
        python_version=_python_version(architectures),
        free_bytes=free_bytes(folder),
    )


def _detect_linux(folder: Path, root: Path) -> DeviceInfo:
    resolution, inches = _screen(root)
    density = round(math.hypot(*resolution) / inches) if resolution and inches else None
    architectures = architectures_run("linux", platform.machine(), "", root)
    return DeviceInfo(
        model=_model(root),
        form_factor=_form_factor(root),
        os_type="linux",
        os_version=_short(_os_release(root).get("VERSION_ID", "")),
        architectures=architectures,
        screen_inches=inches,
        resolution=resolution,
        density_dpi=density or None,
        installer_kinds=_installer_kinds(),
        python_version=_python_version(architectures),
        libc=_libc(root),
        free_bytes=free_bytes(folder),
    )


def free_bytes(folder: Path) -> int | None:
    """Return the bytes free on the disk of `folder`, which need not exist yet; None where that cannot be read."""
    for existing in (folder, *folder.absolute().parents):
        if existing.exists():
            return shutil.disk_usage(existing).free
    return None


def architectures_run(os_type: OsType, machine: str, os_version: str, root: Path) -> tuple[Architecture, ...]:
    """Return what a machine of this name runs, its own first, then what its system runs of others beside it.

    A 64-bit Windows runs x86, one on arm64 from Windows 11 on x86_64 too (learn.microsoft.com, "How emulation works on
    Arm"); macOS on arm64 runs x86_64 where Rosetta is installed. On Linux nothing beside its own is taken for granted.
    """
    own = ARCHITECTURE_NAMES.get(machine.lower())
    if own is None:
        return ()
    if os_type == "windows" and own == "arm64":
        build = int((re.findall(r"[0-9]+", os_version) + ["0"] * 3)[2])
        return ("arm64", "x86_64", "x86") if build >= WINDOWS_11_BUILD else ("arm64", "x86")
    if os_type == "windows" and own == "x86_64":
        return ("x86_64", "x86")
    if os_type == "macos" and own == "arm64" and (root / ROSETTA).exists():
        return ("arm64", "x86_64")
    return (own,)


def _python_version(architectures: tuple[Architecture, ...]) -> str:
    """Return "3.11" of a CPython built for the first of the architectures; another takes other wheels than they say."""
    machine = sysconfig.get_platform().rpartition("-")[2]
    is_own = machine == "universal2" or ARCHITECTURE_NAMES.get(machine) in architectures[:1]
    has_all_bits = sys.maxsize > 2**32 or architectures[:1] in (("x86",), ("armv7",))  # not a 32-bit one beside
    is_usual = sys.implementation.name == "cpython" and not sysconfig.get_config_var("Py_GIL_DISABLED")
    if not (is_own and has_all_bits and is_usual and architectures):
        return ""
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def _libc(root: Path) -> str:
    """Return "glibc 2.36" where this process runs on glibc, "musl 1.2" where musl is the system's."""
    try:
        name = os.confstr("CS_GNU_LIBC_VERSION") or ""  # confstr(3); musl does not know it
    except (ValueError, OSError):
        name = ""
    found = re.fullmatch(r"glibc ([0-9]+\.[0-9]+).*", name)
    return f"glibc {found[1]}" if found else musl_libc(root)


def musl_libc(root: Path) -> str:
    """Return "musl 1.2" as musl's loader says of itself when it is run without a program (PEP 656), "" without one."""
    for loader in sorted((root / "lib").glob("ld-musl-*.so.1")):
        try:
            said = subprocess.run(
                [loader], stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, timeout=LOADER_SECONDS, check=False
            ).stderr
        except (OSError, subprocess.TimeoutExpired):
            continue
        found = re.search(rb"^Version ([0-9]+\.[0-9]+)", said, re.MULTILINE)
        if said.startswith(b"musl") and found:
            return f"musl {found[1].decode()}"
    return ""


def _installer_kinds() -> tuple[InstallerKind, ...]:
    deb: tuple[InstallerKind, ...] = ("deb",) if shutil.which("dpkg") else ()
    wheel: tuple[InstallerKind, ...] = ("wheel",) if importlib.util.find_spec("pip") else ()
    return deb + wheel


def _model(root: Path) -> str:
    for name in ("sys/class/dmi/id/product_name", "proc/device-tree/model"):
        text = _short(_text(root / name))
        if text.lower() not in NO_PRODUCT_NAMES:
            return text
    return _short(socket.gethostname()) or "unnamed device"


def _form_factor(root: Path) -> FormFactor:
    text = _text(root / "sys/class/dmi/id/chassis_type")
    chassis = int(text) if text.isascii() and text.isdigit() else 0
    if chassis in CHASSIS_TABLET:
        return "tablet"
    return "pc" if chassis in CHASSIS_PC else "other"


def _os_release(root: Path) -> dict[str, str]:
    """Read os-release(5): shell assignments, of which only plain ones are allowed."""
    text = _text(root / "etc/os-release") or _text(root / "usr/lib/os-release")
    values = {}
    for line in text.splitlines():
        name, is_assignment, value = line.partition("=")
        if is_assignment and not line.startswith("#"):
            values[name.strip()] = _unquoted(value)
    return values


def _unquoted(value: str) -> str:
    try:
        return "".join(shlex.split(value))
    except ValueError:
        return ""


def _screen(root: Path) -> tuple[tuple[int, int] | None, float | None]:
    """Return resolution and diagonal in inches of the connected screen, the built-in one if there are several."""
    connectors = [path.parent for path in (root / "sys/class/drm").glob("card*-*/status") if _text(path) == "connected"]
    for connector in sorted(connectors, key=_built_in_first):
        resolution = _first_mode(_text(connector / "modes"))
        if resolution:
            return resolution, _edid_inches(_bytes(connector / "edid"))
    return None, None


def _built_in_first(connector: Path) -> tuple[bool, str]:
    kind = connector.name.partition("-")[2]
    return not kind.startswith(BUILT_IN_PANELS), connector.name


def _first_mode(modes: str) -> tuple[int, int] | None:
    """Return the first of the modes, which the kernel lists with the preferred one first: `1920x1080`, `1920x1080i`."""
    width, _, height = modes.partition("\n")[0].strip().rstrip("i").partition("x")
    if not (width.isascii() and width.isdigit() and height.isascii() and height.isdigit()):
        return None
    pixels = int(width), int(height)
    return pixels if all(1 <= count <= 100_000 for count in pixels) else None


def _edid_inches(edid: bytes) -> float | None:
    if len(edid) < 128 or not edid.startswith(EDID_HEADER):
        return None
    width, height = edid[EDID_SIZE_OFFSET], edid[EDID_SIZE_OFFSET + 1]
    # One of them 0 is an aspect ratio; both 0 a projector or a screen whose size is not known.
    return round(math.hypot(width, height) / CENTIMETRES_PER_INCH, 1) if width and height else None


def _text(path: Path) -> str:
    return _bytes(path).decode(errors="replace").replace("\0", "").strip()


def _bytes(path: Path) -> bytes:
    """Return a small file, or nothing when it is not there or not ours to read: then the fact is unknown."""
    try:
        with path.open("rb") as file:
            return file.read(SMALL_FILE_BYTES)
    except OSError:
        return b""


def _short(text: str) -> str:
    return " ".join(text.split())[: limits.NAME_CHARACTERS].strip()


# --- the device file ----------------------------------------------------------------------------------------------


def load_device(path: Path, detected: DeviceInfo) -> tuple[DeviceInfo, dict[str, RunnerSettings]]:
    """Return the device `path` describes, and its runners' settings by installer kind.

    A file with a `model` starts from nothing (but the detected free bytes), any other from `detected`. Raises
    BadFileError that names the file, the key and what is allowed.
    """
    device, installers = parse_device_file(_device_file(path), str(path), detected)
    return device, _runner_settings(str(path), installers, device)


def _device_file(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(DEVICE_FILE_BYTES + 1)
    except OSError as error:
        raise BadFileError(
            f"{path} cannot be read: {error.strerror}.", hint="Check the path and its permissions."
        ) from error


def _runner_settings(where: str, installers: object, device: DeviceInfo) -> dict[str, RunnerSettings]:
    if not isinstance(installers, dict):
        refuse(where, INSTALLERS, "is not a table", "Write [installers.deb] and the settings below it.")
    check_keys(where, f"{INSTALLERS}.", installers, get_args(InstallerKind))
    hints = get_type_hints(RunnerSettings, include_extras=True)
    settings = {}
    for kind, table in installers.items():
        name = f"{INSTALLERS}.{kind}"
        if not isinstance(table, dict):
            refuse(where, name, "is not a table", f"Write [{name}] and the settings below it.")
        if kind not in device.installer_kinds:
            kinds = ", ".join(device.installer_kinds) or "none"
            hint = f'Add "{kind}" to installer_kinds at the top of the file, or remove the table.'
            refuse(where, name, f"is set, but this device installs other kinds ({kinds})", hint)
        check_keys(where, f"{name}.", table, tuple(hints))
        values = {key: checked_value(where, f"{name}.{key}", value, hints[key]) for key, value in table.items()}
        settings[kind] = RunnerSettings(**values)
    return settings
