"""The inspectors against real installers, against other readers of the same formats, and against damage and malice.

The demonstration's installers are made by the formats' own tools; what those tools do not make (bombs, contradictions)
is built here by hand.
"""

import io
import logging
import os
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hub.inspectors import apk, deb, inspect, zips
from hub.records import InstallerFacts
from protocol.device import DeviceInfo
from protocol.errors import BadFileError
from protocol.limits import OBJECT_BYTES

DEMO = Path(__file__).parents[2] / "hub" / "demo"
DEB = DEMO / "installers" / "hello-lockstep_1.0.0-1_all.deb"
APK = DEMO / "installers" / "hello-lockstep-1.0.0.apk"
TV_APK = DEMO / "installers" / "hello-lockstep-tv-1.0.0.apk"
WHEEL = DEMO / "installers" / "hello_lockstep-1.0.0-py3-none-any.whl"
INSTALLERS = (DEB, APK, TV_APK, WHEEL)


def refused(path: Path, name: str = "") -> BadFileError:
    with pytest.raises(BadFileError) as caught:
        inspect(path, name)
    assert caught.value.message.startswith(f"{name or path.name}: ")
    assert caught.value.message.endswith(".")
    assert caught.value.hint
    return caught.value


# --- building files by hand -----------------------------------------------------------------------------------------
Save = Callable[[bytes], Path]


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """Write bytes to a file and return its path."""

    def write(content: bytes) -> Path:
        path = tmp_path / "installer"
        path.write_bytes(content)
        return path

    return write


def a_zip(members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


# --- the demonstration's installers ---------------------------------------------------------------------------------
def test_the_demonstration_stays_small() -> None:
    assert sum(path.stat().st_size for path in INSTALLERS) < 100_000


@pytest.mark.parametrize("device", ["phone", "tv", "tablet", "car", "pc"])
def test_each_demonstration_device_loads(device: str) -> None:
    with (DEMO / "devices" / f"{device}.toml").open("rb") as file:
        info = msgspec.convert(tomllib.load(file), DeviceInfo, strict=False)
    assert info.form_factor == device
    assert info.installer_kinds


@pytest.mark.parametrize("path", INSTALLERS, ids=lambda path: path.suffix)
def test_a_stored_copy_gives_the_same_facts_under_its_original_name(path: Path, save: Save) -> None:
    assert inspect(save(path.read_bytes()), path.name) == inspect(path)


def test_importing_the_inspectors_leaves_the_root_logger_as_it_was() -> None:
    program = "import logging, hub.inspectors; r = logging.getLogger(); print(r.level, len(r.handlers))"
    output = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=60, cwd=DEMO.parents[1]
    ).stdout
    assert output.split() == [str(logging.WARNING), "0"]


# --- files that are nothing of the kind -----------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"", "is empty"),
        (b"P", "no installer format"),
        (b"just text", "no installer format"),
        (b"\x7fELF" + bytes(100), "no installer format"),
        (a_zip({}), "no installer format"),
        (a_zip({"readme": b"x"}), "but no installer"),
        (a_zip({apk.MANIFEST: b"x", "a-1.dist-info/WHEEL": b"x"}), "at once"),
    ],
)
def test_a_file_of_an_unknown_format_is_refused_in_words(content: bytes, fault: str, save: Save) -> None:
    assert fault in refused(save(content)).message


def test_a_folder_a_pipe_and_a_missing_file_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "not a file" in refused(tmp_path).message
    assert "not a file" in refused(tmp_path / "pipe").message
    assert "No such file" in refused(tmp_path / "missing.deb").message
    refused(tmp_path / "a\0b")


def test_a_file_that_cannot_be_opened_is_refused(tmp_path: Path) -> None:
    assert "cannot be read" in refused(tmp_path / ("long" * 100 + ".deb")).message


@pytest.mark.parametrize("start", [deb.SIGNATURE, zips.LOCAL_SIGNATURE])
def test_a_file_larger_than_any_object_is_refused_unread(start: bytes, tmp_path: Path) -> None:
    path = tmp_path / "huge"
    with path.open("wb") as file:
        file.write(start)
        file.truncate(OBJECT_BYTES + 1)
    assert str(OBJECT_BYTES) in refused(path).message


def test_a_sparse_file_of_four_gibibytes_is_refused_without_being_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "huge.deb"
    with path.open("wb") as file:
        file.write(DEB.read_bytes())
        file.truncate(OBJECT_BYTES)
    assert "damaged" in refused(path).message


# --- damage ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("path", INSTALLERS, ids=["deb", "phone", "tv", "wheel"])
def test_a_file_cut_off_anywhere_is_refused(path: Path, tmp_path: Path) -> None:
    whole = path.read_bytes()
    cut = tmp_path / path.name
    for length in (*range(0, len(whole), 37), *range(len(whole) - 80, len(whole))):
        cut.write_bytes(whole[:length])
        refused(cut)


@pytest.mark.parametrize("path", INSTALLERS, ids=["deb", "phone", "tv", "wheel"])
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_bytes_are_changed_it_is_facts_or_a_refusal(path: Path, tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(path.read_bytes())
    places = st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255))
    for at, value in data.draw(st.lists(places, min_size=1, max_size=8)):
        content[at] = value
    _facts_or_refusal(tmp_path / path.name, bytes(content))


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(start=st.sampled_from([b"", deb.SIGNATURE, zips.LOCAL_SIGNATURE]), rest=st.binary(max_size=300))
def test_any_bytes_are_facts_or_a_refusal(tmp_path: Path, start: bytes, rest: bytes) -> None:
    _facts_or_refusal(tmp_path / "any", start + rest)


def _facts_or_refusal(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    try:
        facts = inspect(path)
    except BadFileError:
        return
    msgspec.convert(msgspec.to_builtins(facts), InstallerFacts, strict=False)  # what comes out, the wire can carry
