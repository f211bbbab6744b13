"""What this machine can say of itself, and the device file by which an owner says more.

Detection reports only what the system states. What is not stated stays unknown (None, empty, form factor "other"):
the resolver treats "unknown" as a third value, and a guess would be worse. Linux is read from files, all below `root`;
macOS and Windows give what Python's `platform` knows.

A device file is TOML: DeviceInfo's fields at the top level and `[installers.KIND]` tables (see RunnerSettings). It
overrides the detected device field by field, unless it names a `model`: then it describes another device, a simulated
phone for one, and nothing detected leaks into it but the free bytes.
"""

import difflib
import importlib.util
import math
import platform
import shlex
import shutil
import socket
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final, Literal, NoReturn, get_args, get_origin, get_type_hints

import msgspec

from protocol import limits
from protocol.device import ARCHITECTURE_NAMES, Architecture, DeviceInfo, FormFactor, InstallerKind, OsType
from protocol.errors import BadFileError
from terminal.installers import RunnerSettings

SMALL_FILE_BYTES: Final = 64 * limits.KIB
CENTIMETRES_PER_INCH: Final = 2.54
EDID_HEADER: Final = bytes.fromhex("00ffffffffffff00")
EDID_SIZE_OFFSET: Final = 21  # VESA E-EDID 1.4, 3.6.2: width and height in cm, 0 where not known
INSTALLERS: Final = "installers"
OS_TYPES: Final[Mapping[str, OsType]] = {"Linux": "linux", "Darwin": "macos", "Windows": "windows"}
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
    return DeviceInfo(
        model=_short(platform.node()) or "unnamed device",
        os_type=os_type,
        os_version=_short(platform.mac_ver()[0] if os_type == "macos" else platform.version()),
        architectures=_architectures(),
        installer_kinds=_installer_kinds(),
        free_bytes=free_bytes(folder),
    )


def _detect_linux(folder: Path, root: Path) -> DeviceInfo:
    resolution, inches = _screen(root)
    density = round(math.hypot(*resolution) / inches) if resolution and inches else None
    return DeviceInfo(
        model=_model(root),
        form_factor=_form_factor(root),
        os_type="linux",
        os_version=_short(_os_release(root).get("VERSION_ID", "")),
        architectures=_architectures(),
        screen_inches=inches,
        resolution=resolution,
        density_dpi=density or None,
        installer_kinds=_installer_kinds(),
        free_bytes=free_bytes(folder),
    )


def free_bytes(folder: Path) -> int | None:
    """Return the bytes free on the disk of `folder`, which need not exist yet; None where that cannot be read."""
    for existing in (folder, *folder.absolute().parents):
        if existing.exists():
            return shutil.disk_usage(existing).free
    return None


def _architectures() -> tuple[Architecture, ...]:
    architecture = ARCHITECTURE_NAMES.get(platform.machine().lower())
    return (architecture,) if architecture else ()


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
    table = _toml(path)
    installers = table.pop(INSTALLERS, {})
    hints = get_type_hints(DeviceInfo, include_extras=True)
    _check_keys(path, "", table, (*hints, INSTALLERS))
    values = {key: _value(path, key, value, hints[key]) for key, value in table.items()}
    if "model" in values:
        device = DeviceInfo(**{"free_bytes": detected.free_bytes, **values})
    else:
        device = msgspec.structs.replace(detected, **values)
    return device, _runner_settings(path, installers, device)


def _runner_settings(path: Path, installers: object, device: DeviceInfo) -> dict[str, RunnerSettings]:
    if not isinstance(installers, dict):
        _bad(path, INSTALLERS, "is not a table", "Write [installers.deb] and the settings below it.")
    _check_keys(path, f"{INSTALLERS}.", installers, get_args(InstallerKind))
    hints = get_type_hints(RunnerSettings, include_extras=True)
    settings = {}
    for kind, table in installers.items():
        name = f"{INSTALLERS}.{kind}"
        if not isinstance(table, dict):
            _bad(path, name, "is not a table", f"Write [{name}] and the settings below it.")
        if kind not in device.installer_kinds:
            kinds = ", ".join(device.installer_kinds) or "none"
            hint = f'Add "{kind}" to installer_kinds at the top of the file, or remove the table.'
            _bad(path, name, f"is set, but this device installs other kinds ({kinds})", hint)
        _check_keys(path, f"{name}.", table, tuple(hints))
        values = {key: _value(path, f"{name}.{key}", value, hints[key]) for key, value in table.items()}
        settings[kind] = RunnerSettings(**values)
    return settings


def _toml(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            data = file.read(SMALL_FILE_BYTES + 1)
        if len(data) > SMALL_FILE_BYTES:
            raise BadFileError(f"{path} is larger than {SMALL_FILE_BYTES:,} bytes.", hint="Is it a device file?")
        return tomllib.loads(data.decode())
    except OSError as error:
        raise BadFileError(
            f"{path} cannot be read: {error.strerror}.", hint="Check the path and its permissions."
        ) from error
    except (ValueError, RecursionError) as error:  # both TOMLDecodeError and UnicodeDecodeError are ValueErrors
        raise BadFileError(f"{path} is not valid TOML: {error}.", hint="Mend that line.") from error


def _check_keys(path: Path, prefix: str, table: Iterable[str], allowed: tuple[str, ...]) -> None:
    for key in table:
        if key not in allowed:
            _bad(path, prefix + key, "is not known", _nearest(key, allowed))


def _value(path: Path, key: str, value: object, wanted: Any) -> Any:
    try:
        return msgspec.convert(value, wanted)
    except msgspec.ValidationError as error:
        choices = _choices(wanted)
        hint = _nearest(str(value), choices) if choices else "See the device file in the documentation."
        return _bad(path, key, f"has a value that is not allowed ({error})", hint)


def _choices(wanted: Any) -> tuple[str, ...]:
    """Return the words a type allows, looking into what it is made of: `tuple[Literal["a", "b"], ...]` gives a, b."""
    if get_origin(wanted) is Literal:
        return get_args(wanted)
    return tuple(word for part in get_args(wanted) for word in _choices(part))


def _nearest(given: str, allowed: tuple[str, ...]) -> str:
    near = difflib.get_close_matches(given, allowed, n=2)
    meant = f"Did you mean {' or '.join(near)}? " if near else ""
    return f"{meant}Allowed are: {', '.join(allowed)}."


def _bad(path: Path, key: str, what: str, hint: str) -> NoReturn:
    raise BadFileError(f"{path}: the key {key} {what}.", hint=hint)
