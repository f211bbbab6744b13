"""Detection over made-up system folders, and device files good and bad."""

import platform
import sys
from pathlib import Path

import pytest
from packaging import tags

from protocol.device import DeviceInfo, OsType
from protocol.errors import BadFileError
from terminal.detection import architectures_run, detect_device, load_device, musl_libc
from terminal.installers import RunnerSettings

EDID_34_BY_19_CM = bytes.fromhex("00ffffffffffff00") + bytes(13) + bytes([34, 19]) + bytes(105)
LAPTOP: dict[str, str | bytes] = {
    "etc/os-release": 'PRETTY_NAME="Debian GNU/Linux 12"\n# a comment\nID=debian\nVERSION_ID="12"\n',
    "sys/class/dmi/id/product_name": "Carbon  X1\n",
    "sys/class/dmi/id/chassis_type": "10\n",
    "sys/class/drm/card0-eDP-1/status": "connected\n",
    "sys/class/drm/card0-eDP-1/modes": "1920x1080\n1280x720\n",
    "sys/class/drm/card0-eDP-1/edid": EDID_34_BY_19_CM,
}
DETECTED = DeviceInfo(model="Carbon X1", form_factor="pc", os_type="linux", installer_kinds=("deb",), free_bytes=7)


@pytest.fixture(autouse=True)
def on_linux(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.system", lambda: "Linux")


def detect(folder: Path, files: dict[str, str | bytes]) -> DeviceInfo:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return detect_device(folder, folder)


def test_a_laptop_reports_what_its_system_states(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    device = detect(tmp_path, dict(LAPTOP))
    assert (device.model, device.form_factor) == ("Carbon X1", "pc")
    assert (device.os_type, device.os_version, device.architectures) == ("linux", "12", ("arm64",))
    assert (device.resolution, device.screen_inches, device.density_dpi) == ((1920, 1080), 15.3, 144)
    assert device.features == ()
    assert device.free_bytes


def test_a_machine_that_states_nothing_is_unknown_but_for_its_host_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "box-7")
    monkeypatch.setattr("platform.machine", lambda: "pdp11")
    monkeypatch.setattr("shutil.which", lambda name: None)
    device = detect(tmp_path, {})
    assert (device.model, device.form_factor, device.os_version, device.architectures) == ("box-7", "other", "", ())
    assert (device.screen_inches, device.resolution, device.density_dpi, device.api_level) == (None, None, None, None)
    assert "deb" not in device.installer_kinds


@pytest.mark.parametrize("name", ["To Be Filled By O.E.M.", "Default string", "System Product Name", " "])
def test_a_product_name_its_maker_left_empty_is_no_model(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "box-7")
    assert detect(tmp_path, {"sys/class/dmi/id/product_name": name}).model == "box-7"


def test_a_board_without_dmi_gives_the_model_of_its_device_tree(tmp_path: Path) -> None:
    assert detect(tmp_path, {"proc/device-tree/model": "Raspberry Pi 5\0"}).model == "Raspberry Pi 5"


def test_a_model_name_too_long_for_the_wire_is_cut(tmp_path: Path) -> None:
    assert detect(tmp_path, {"sys/class/dmi/id/product_name": "x" * 500}).model == "x" * 64


@pytest.mark.parametrize(
    ("chassis", "form_factor"),
    [("3", "pc"), ("23", "pc"), ("30", "tablet"), ("1", "other"), ("11", "other"), ("?", "other")],
)
def test_the_form_factor_follows_the_chassis_only_where_it_is_definite(
    tmp_path: Path, chassis: str, form_factor: str
) -> None:
    assert detect(tmp_path, {"sys/class/dmi/id/chassis_type": chassis}).form_factor == form_factor


def test_the_built_in_screen_counts_and_a_disconnected_one_does_not(tmp_path: Path) -> None:
    others = {
        "sys/class/drm/card0-DP-1/status": "disconnected",
        "sys/class/drm/card0-DP-1/modes": "640x480",
        "sys/class/drm/card0-DP-2/status": "connected",
        "sys/class/drm/card0-DP-2/modes": "3840x2160",
    }
    assert detect(tmp_path, {**LAPTOP, **others}).resolution == (1920, 1080)


@pytest.mark.parametrize("edid", [b"", b"\0" * 128, EDID_34_BY_19_CM[:100], EDID_34_BY_19_CM[:21] + bytes(107)])
def test_a_screen_of_unknown_size_has_a_resolution_and_no_density(tmp_path: Path, edid: bytes) -> None:
    device = detect(tmp_path, {**LAPTOP, "sys/class/drm/card0-eDP-1/edid": edid})
    assert (device.resolution, device.screen_inches, device.density_dpi) == ((1920, 1080), None, None)


@pytest.mark.parametrize("modes", ["", "banana", "0x0", "1920x", "9999999x1", "²x²"])
def test_a_mode_that_is_none_leaves_the_screen_unknown(tmp_path: Path, modes: str) -> None:
    device = detect(tmp_path, {**LAPTOP, "sys/class/drm/card0-eDP-1/modes": modes})
    assert (device.resolution, device.screen_inches) == (None, None)


@pytest.mark.parametrize("text", ['VERSION_ID="12', "VERSION_ID", "\xff\xfe", "=12"])
def test_a_damaged_os_release_gives_no_version(tmp_path: Path, text: str) -> None:
    assert detect(tmp_path, {"etc/os-release": text}).os_version == ""


def test_free_bytes_are_those_of_a_folder_that_does_not_exist_yet(tmp_path: Path) -> None:
    assert detect_device(tmp_path / "not" / "yet", tmp_path).free_bytes


def test_this_very_machine_can_be_described() -> None:
    assert detect_device(Path("/")).model


def test_the_python_and_libc_of_this_very_machine_are_those_it_takes_wheels_with() -> None:
    device = detect_device(Path("/"))
    if sys.implementation.name != "cpython" or platform.libc_ver()[0] != "glibc":
        pytest.skip("this test knows CPython on glibc only")
    assert device.python_version == ".".join(platform.python_version_tuple()[:2])
    assert device.libc == " ".join(platform.libc_ver())
    own = {str(tag) for tag in tags.sys_tags()}
    assert f"cp{device.python_version.replace('.', '')}-none-linux_{platform.machine()}" in own


def test_a_python_for_another_machine_than_the_device_is_not_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    assert detect(tmp_path, {}).python_version == ""


@pytest.mark.parametrize(
    ("says", "libc"),
    [
        ("musl libc (x86_64)\\nVersion 1.2.3\\nDynamic Program Loader", "musl 1.2"),
        ("musl libc\\nVersion 1.1.24\\n", "musl 1.1"),
        ("other\\nVersion 1.1.24\\n", ""),
        ("musl libc\\n", ""),
    ],
)
def test_musl_is_known_by_what_a_stand_in_for_its_loader_says(tmp_path: Path, says: str, libc: str) -> None:
    loader = tmp_path / "lib" / "ld-musl-x86_64.so.1"
    loader.parent.mkdir()
    loader.write_text(f"#!/bin/sh\nprintf '{says}' >&2\nexit 1\n")
    loader.chmod(0o755)
    assert musl_libc(tmp_path) == libc
    loader.chmod(0o644)
    assert musl_libc(tmp_path) == ""


@pytest.mark.skipif(not list(Path("/lib").glob("ld-musl-*.so.1")), reason="there is no musl here")
def test_a_real_musl_says_its_version() -> None:
    assert musl_libc(Path("/")).startswith("musl 1.")


@pytest.mark.parametrize(
    ("os_type", "machine", "version", "runs"),
    [
        ("windows", "AMD64", "10.0.19045", ("x86_64", "x86")),
        ("windows", "ARM64", "10.0.22631", ("arm64", "x86_64", "x86")),
        ("windows", "ARM64", "10.0.19045", ("arm64", "x86")),
        ("windows", "ARM64", "", ("arm64", "x86")),
        ("windows", "x86", "10.0.19045", ("x86",)),
        ("macos", "arm64", "14.5", ("arm64",)),
        ("macos", "x86_64", "14.5", ("x86_64",)),
        ("linux", "x86_64", "", ("x86_64",)),
        ("linux", "pdp11", "", ()),
    ],
)
def test_a_system_runs_what_its_maker_says_beside_the_machines_own(
    tmp_path: Path, os_type: OsType, machine: str, version: str, runs: tuple[str, ...]
) -> None:
    """By their documents: neither Windows nor macOS has run this."""
    assert architectures_run(os_type, machine, version, tmp_path) == runs


def test_a_mac_on_arm64_runs_x86_64_where_rosetta_is(tmp_path: Path) -> None:
    rosetta = tmp_path / "Library/Apple/usr/share/rosetta/rosetta"
    rosetta.parent.mkdir(parents=True)
    rosetta.touch()
    assert architectures_run("macos", "arm64", "14.5", tmp_path) == ("arm64", "x86_64")


# --- the device file ----------------------------------------------------------------------------------------------


def load(folder: Path, text: str) -> tuple[DeviceInfo, dict[str, RunnerSettings]]:
    (folder / "device.toml").write_text(text)
    return load_device(folder / "device.toml", DETECTED)


def test_a_device_file_overrides_the_detected_device_field_by_field(tmp_path: Path) -> None:
    device, settings = load(tmp_path, 'form_factor = "tv"\nscreen_inches = 55\nresolution = [3840, 2160]\n')
    assert (device.model, device.os_type, device.installer_kinds) == ("Carbon X1", "linux", ("deb",))
    assert (device.form_factor, device.screen_inches, device.resolution) == ("tv", 55.0, (3840, 2160))
    assert settings == {}


def test_a_device_file_with_a_model_takes_nothing_detected_but_the_free_bytes(tmp_path: Path) -> None:
    device, _ = load(tmp_path, 'model = "Pixel 9"\nos_type = "android"\n')
    assert device == DeviceInfo(model="Pixel 9", os_type="android", free_bytes=7)


def test_a_device_file_with_a_model_may_give_its_own_free_bytes(tmp_path: Path) -> None:
    assert load(tmp_path, 'model = "Pixel 9"\nfree_bytes = 5\n')[0].free_bytes == 5


def test_the_installers_tables_become_runner_settings(tmp_path: Path) -> None:
    _, settings = load(tmp_path, '[installers.deb]\ncommand = ["put", "it"]\ntimeout_seconds = 5\n')
    assert settings == {"deb": RunnerSettings(command=["put", "it"], timeout_seconds=5.0)}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("modle = 'x'", ("modle", "Did you mean model")),
        ("form_factor = 'tvv'", ("form_factor", "Did you mean tv", "watch")),
        ("architectures = ['x86-64']", ("architectures", "x86_64")),
        ("screen_inches = 'big'", ("screen_inches", "float")),
        ("resolution = [1920]", ("resolution", "length 2")),
        ("model = ''", ("model", "length")),
        ("free_bytes = -1", ("free_bytes", ">= 0")),
        ("model = \nfree_bytes = 1", ("not valid TOML", "line 1")),
        ("installers = 3", ("installers", "not a table")),
        ("[installers.dep]\n", ("installers.dep", "Did you mean deb")),
        ("[installers]\ndeb = 3", ("installers.deb", "not a table")),
        ("[installers.deb]\ncomand = []", ("installers.deb.comand", "Did you mean", "command")),
        ("[installers.deb]\ncommand = 'x'", ("installers.deb.command", "array")),
        ("[installers.deb]\ntimeout_seconds = 0", ("installers.deb.timeout_seconds", "> 0")),
        ("[installers.apk]\n", ("installers.apk", "installer_kinds")),
        ("a = " + "[" * 5_000, ("not valid TOML",)),
        ("#" * 100_000, ("larger",)),
    ],
)
def test_a_wrong_device_file_is_refused_naming_file_key_and_what_is_allowed(
    tmp_path: Path, text: str, words: tuple[str, ...]
) -> None:
    with pytest.raises(BadFileError) as caught:
        load(tmp_path, text)
    for word in ("device.toml", *words):
        assert word in str(caught.value)


def test_a_device_file_that_is_not_there_or_not_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadFileError, match="cannot be read"):
        load_device(tmp_path / "none.toml", DETECTED)
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(BadFileError, match="not valid TOML"):
        load_device(tmp_path / "binary.toml", DETECTED)
