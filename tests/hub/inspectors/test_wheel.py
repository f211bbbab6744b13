"""Wheels: made by hand with the tags of real ones, as a wheel is a zip archive; `packaging` reads the same names."""

import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from packaging.tags import parse_tag
from packaging.utils import parse_wheel_filename

from hub.inspectors import inspect, wheel
from hub.matching import Selector
from hub.records import InstallerFacts
from tests.hub.inspectors.reading import DEMO, Save, a_zip, refused

WHEEL = DEMO / "hello_lockstep-1.0.0-py3-none-any.whl"
PURE_TAG = "py3-none-any"
EVERYWHERE = Selector(os_types=("linux", "macos", "windows"))


def a_wheel(
    tags: Sequence[str], metadata: bytes = b"Metadata-Version: 2.1\nName: Hello.Wheel\nVersion: 1.0\n"
) -> bytes:
    wheel_file = "Wheel-Version: 1.0\n" + "".join(f"Tag: {tag}\n" for tag in tags)
    folder = "hello_wheel-1.0.dist-info"
    return a_zip({f"{folder}/METADATA": metadata, f"{folder}/WHEEL": wheel_file.encode()})


def test_the_demonstration_wheel_gives_its_facts() -> None:
    assert inspect(WHEEL) == InstallerFacts(
        package_name="hello-lockstep",
        title="hello-lockstep",
        version="1.0.0",
        release="1.0.0",
        kind="wheel",
        sortable_version="1.0.0",
        selector=EVERYWHERE,
    )


def test_packaging_reads_the_same_from_the_name_of_the_demonstration_wheel() -> None:
    facts = inspect(WHEEL)
    name, version, _, tags = parse_wheel_filename(WHEEL.name)
    assert (facts.package_name, facts.version, tags) == (name, str(version), parse_tag(PURE_TAG))


@pytest.mark.parametrize(
    ("tag", "selector"),
    [
        (
            "cp311-cp311-manylinux_2_17_x86_64.manylinux2014_x86_64",
            Selector(os_types=("linux",), architectures=("x86_64",)),
        ),
        ("cp311-abi3-musllinux_1_2_aarch64", Selector(os_types=("linux",), architectures=("arm64",))),
        ("py3-none-linux_armv7l", Selector(os_types=("linux",), architectures=("armv7",))),
        ("cp312-cp312-win_amd64", Selector(os_types=("windows",), architectures=("x86_64",))),
        ("cp312-cp312-win32", Selector(os_types=("windows",), architectures=("x86",))),
        (
            "cp312-cp312-macosx_10_12_x86_64.macosx_11_0_arm64",
            Selector(os_types=("macos",), os_version_minimum="10.12", architectures=("arm64", "x86_64")),
        ),
        (
            "cp312-cp312-macosx_11_0_universal2",
            Selector(os_types=("macos",), os_version_minimum="11.0", architectures=("arm64", "x86_64")),
        ),
        ("py310.py311-none-any", EVERYWHERE),
    ],
)
def test_the_tags_of_a_wheel_say_which_systems_it_fits(tag: str, selector: Selector, save: Save) -> None:
    file_name = f"hello_wheel-1.0-{tag}.whl"
    facts = inspect(save(a_wheel([tag])), file_name)
    assert (facts.package_name, facts.title) == ("hello-wheel", "Hello.Wheel")
    assert facts.selector.wheel_tags == (tag,)
    assert frozenset().union(*map(parse_tag, facts.selector.wheel_tags)) == parse_wheel_filename(file_name)[3]
    for field in ("os_types", "os_version_minimum", "architectures"):
        assert getattr(facts.selector, field) == getattr(selector, field), field


@pytest.mark.parametrize("tag", [PURE_TAG, "py2.py3-none-any"])
def test_a_wheel_for_any_python_3_anywhere_needs_no_tags(tag: str, save: Save) -> None:
    assert inspect(save(a_wheel([tag])), f"hello_wheel-1.0-{tag}.whl").selector == EVERYWHERE


def test_the_tags_of_a_wheel_with_a_build_number_are_those_behind_it(save: Save) -> None:
    facts = inspect(save(a_wheel(["CP312-cp312-win32"])), "hello_wheel-1.0-2-CP312-cp312-win32.whl")
    assert facts.selector.wheel_tags == ("cp312-cp312-win32",)


def test_what_is_compared_is_the_version_in_the_form_of_pep_440(save: Save) -> None:
    metadata = b"Metadata-Version: 2.1\nName: Hello.Wheel\nVersion: v1.0-RC1\n"
    facts = inspect(save(a_wheel([PURE_TAG], metadata)), f"hello_wheel-1.0rc1-{PURE_TAG}.whl")
    assert (facts.version, facts.sortable_version) == ("v1.0-RC1", "1.0rc1")


@pytest.mark.parametrize(
    ("named", "inside", "fault"),
    [
        (PURE_TAG, ["cp311-cp311-win_amd64"], "not the tags in its WHEEL file"),
        (PURE_TAG, [PURE_TAG, "py2-none-any"], "not the tags in its WHEEL file"),
        (PURE_TAG, [], "lists no tags"),
        (PURE_TAG, ["nonsense"], "lists no tags"),
        (PURE_TAG, ["py3--any"], "lists no tags"),
        (PURE_TAG, ["-".join([".".join("a" * 5000)] * 3)], "more than"),
        ("-".join([".".join("a" * 40)] * 3), [PURE_TAG], "too long"),
        ("py2-none-any", ["py2-none-any"], "py2"),
        ("py3-none-emscripten_3_1_58_wasm32", ["py3-none-emscripten_3_1_58_wasm32"], "wasm32"),
        ("py3-none-linux_armv6l", ["py3-none-linux_armv6l"], "armv6l"),
        ("py3-none-win_amd64.macosx_11_0_arm64", ["py3-none-win_amd64.macosx_11_0_arm64"], "several systems"),
    ],
)
def test_a_wheel_whose_tags_do_not_hold_is_refused_in_words(
    named: str, inside: list[str], fault: str, save: Save
) -> None:
    assert fault in refused(save(a_wheel(inside)), f"hello_wheel-1.0-{named}.whl").message


@pytest.mark.parametrize("name", ["", "hello.zip", "other-1.0-py3-none-any.whl", "hello_wheel-2.0-py3-none-any.whl"])
def test_a_wheel_under_another_name_is_refused_with_the_way_out(name: str, save: Save) -> None:
    assert "name" in refused(save(a_wheel([PURE_TAG])), name).hint


@pytest.mark.parametrize(
    "metadata",
    [
        b"",
        b"Name: hello_wheel\n",
        b"Name: hello_wheel\nVersion: 1.0\nVersion: 1.0\n",
        b"Name: hello_wheel\nVersion: one\n",
        b"Name: \xff\nVersion: 1.0\n",
        b"Name: hello_wheel\nVersion: " + b"1" * 10_000 + b"\n",
    ],
)
def test_a_wheel_without_one_name_and_version_is_refused(metadata: bytes, save: Save) -> None:
    refused(save(a_wheel([PURE_TAG], metadata)), "hello_wheel-1.0-py3-none-any.whl")


def test_metadata_of_nothing_but_headers_is_read_to_its_end(save: Save) -> None:
    headers = b"".join(b"h%d: x\n" % number for number in range(50_000))
    metadata = b"Name: hello_wheel\nVersion: 1.0\n" + headers
    assert inspect(save(a_wheel([PURE_TAG], metadata)), "hello_wheel-1.0-py3-none-any.whl").version == "1.0"


def test_metadata_that_is_a_bomb_is_refused(save: Save) -> None:
    bomb = a_wheel([PURE_TAG], bytes(wheel.METADATA_BYTES + 1))
    assert "claims" in refused(save(bomb), WHEEL.name).message


def test_a_wheel_with_two_folders_of_metadata_is_refused(tmp_path: Path) -> None:
    path = tmp_path / WHEEL.name
    path.write_bytes(WHEEL.read_bytes())
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("other-1.0.dist-info/WHEEL", "Tag: py3-none-any\n")
    assert "more than one" in refused(path).message
