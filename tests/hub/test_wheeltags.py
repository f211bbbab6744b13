"""Wheel tags: what pip says of this machine and of others, and the three values where something is not known."""

from typing import Any, Final

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from packaging import tags

from hub.wheeltags import PLACE_OF_ANY, wheel_place
from protocol.device import DeviceInfo

LINUX: Final = DeviceInfo(
    model="box", os_type="linux", architectures=("x86_64",), python_version="3.11", libc="glibc 2.36"
)
MAC: Final = DeviceInfo(
    model="Mac", os_type="macos", os_version="14.5", architectures=("arm64", "x86_64"), python_version="3.12"
)
WINDOWS: Final = DeviceInfo(
    model="Surface", os_type="windows", architectures=("arm64", "x86_64", "x86"), python_version="3.11"
)

# Device, changes to it, tag, whether it fits (None: not known); PEPs 425, 427, 513, 599, 600, 656.
TABLE: Final[list[tuple[DeviceInfo, dict[str, Any], str, bool | None]]] = [
    (LINUX, {}, "cp311-cp311-manylinux_2_17_x86_64.manylinux2014_x86_64", True),
    (LINUX, {}, "cp311-cp311-manylinux_2_36_x86_64", True),
    (LINUX, {}, "cp311-cp311-manylinux_2_37_x86_64", False),
    (LINUX, {"libc": "glibc 2.37"}, "cp311-cp311-manylinux_2_37_x86_64", True),
    (LINUX, {}, "cp311-cp311-manylinux1_x86_64", True),
    (LINUX, {}, "cp311-cp311-manylinux2010_x86_64", True),
    (LINUX, {"libc": "glibc 2.10"}, "cp311-cp311-manylinux2010_x86_64", False),
    (LINUX, {}, "cp311-cp311-linux_x86_64", True),
    (LINUX, {}, "cp311-cp311-manylinux_2_17_aarch64", False),
    (LINUX, {}, "cp311-cp311-musllinux_1_1_x86_64", False),
    (LINUX, {"libc": "musl 1.2"}, "cp311-cp311-musllinux_1_1_x86_64", True),
    (LINUX, {"libc": "musl 1.2"}, "cp311-cp311-musllinux_1_2_x86_64", True),
    (LINUX, {"libc": "musl 1.1"}, "cp311-cp311-musllinux_1_2_x86_64", False),
    (LINUX, {"libc": "musl 1.2"}, "cp311-cp311-manylinux_2_17_x86_64", False),
    (LINUX, {"libc": ""}, "cp311-cp311-manylinux_2_17_x86_64", None),
    (LINUX, {"libc": ""}, "cp311-cp311-musllinux_1_2_x86_64", None),
    (LINUX, {"libc": ""}, "cp311-cp311-linux_x86_64", True),
    (LINUX, {"libc": ""}, "cp311-cp311-win_amd64", False),
    (LINUX, {"libc": "bionic"}, "cp311-cp311-manylinux_2_17_x86_64", None),
    (LINUX, {"architectures": ("arm64",)}, "cp311-cp311-manylinux_2_17_aarch64", True),
    (LINUX, {"architectures": ("arm64",)}, "cp311-cp311-manylinux_2_5_aarch64", False),
    (LINUX, {"architectures": ("armv7",)}, "cp311-cp311-manylinux_2_31_armv7l", True),
    (LINUX, {"architectures": ("x86",)}, "cp311-cp311-manylinux1_i686", True),
    (LINUX, {"architectures": ("riscv64",)}, "cp311-cp311-manylinux_2_31_riscv64", True),
    (LINUX, {"architectures": ("x86_64", "x86")}, "cp311-cp311-manylinux1_i686", None),  # of which is its Python?
    (LINUX, {"architectures": ()}, "cp311-cp311-manylinux1_x86_64", False),
    (LINUX, {}, "cp312-cp312-manylinux_2_17_x86_64", False),
    (LINUX, {}, "cp310-cp310-manylinux_2_17_x86_64", False),
    (LINUX, {}, "cp38-abi3-manylinux_2_17_x86_64", True),
    (LINUX, {}, "cp312-abi3-manylinux_2_17_x86_64", False),
    (LINUX, {}, "cp311-none-any", True),
    (LINUX, {}, "py3-none-manylinux_2_17_x86_64", True),
    (LINUX, {}, "py39-none-any", True),
    (LINUX, {}, "py312-none-any", False),
    (LINUX, {}, "py2-none-any", False),
    (LINUX, {}, "py2.py3-none-any", True),
    (LINUX, {}, "pp310-pypy310_pp73-manylinux_2_17_x86_64", False),
    (LINUX, {"python_version": "3.7"}, "cp37-cp37m-manylinux1_x86_64", True),
    (LINUX, {"python_version": "3.13"}, "cp313-cp313t-manylinux_2_17_x86_64", False),
    (LINUX, {"python_version": ""}, "cp311-cp311-manylinux_2_17_x86_64", None),
    (LINUX, {"python_version": "2.7"}, "cp27-cp27mu-manylinux1_x86_64", None),
    (LINUX, {"python_version": ""}, "py3-none-any", True),
    (MAC, {}, "cp312-cp312-macosx_11_0_arm64", True),
    (MAC, {}, "cp312-cp312-macosx_10_9_universal2", True),
    (MAC, {}, "cp312-cp312-macosx_14_0_arm64", True),
    (MAC, {}, "cp312-cp312-macosx_15_0_arm64", False),
    (MAC, {}, "cp312-cp312-macosx_10_9_x86_64", None),  # under Rosetta, if its Python is
    (MAC, {"architectures": ("x86_64",)}, "cp312-cp312-macosx_10_9_x86_64", True),
    (MAC, {"architectures": ("x86_64",)}, "cp312-cp312-macosx_10_9_universal2", True),
    (MAC, {"architectures": ("x86_64",), "os_version": "10.8"}, "cp312-cp312-macosx_10_9_x86_64", False),
    (MAC, {"os_version": ""}, "cp312-cp312-macosx_15_0_arm64", None),
    (MAC, {}, "cp312-cp312-manylinux_2_17_x86_64", False),
    (WINDOWS, {}, "cp311-cp311-win_arm64", True),
    (WINDOWS, {}, "cp311-cp311-win_amd64", None),  # an x64 Python runs on arm64 too
    (WINDOWS, {}, "cp311-cp311-win32", None),
    (WINDOWS, {"architectures": ("x86_64",)}, "cp311-cp311-win_amd64", True),
    (WINDOWS, {"architectures": ("x86_64",)}, "cp311-cp311-win32", False),
    (WINDOWS, {"architectures": ("riscv64",)}, "cp311-cp311-win_amd64", False),
]


@pytest.mark.parametrize(("device", "changes", "tag", "fits"), TABLE)
def test_a_wheel_fits_as_the_platform_tags_say(
    device: DeviceInfo, changes: dict[str, Any], tag: str, fits: bool | None
) -> None:
    place = wheel_place(msgspec.structs.replace(device, **changes), (tag,))
    assert ("unknown" if fits is None else fits) == (place if place == "unknown" else place is not None)


def test_the_tags_of_this_machine_and_their_order_are_those_packaging_finds_for_itself() -> None:
    """`sys_tags` is what pip goes by. It asks this machine for what a device reports."""
    import platform
    import sys

    own = [tag for tag in tags.sys_tags() if "t-" not in str(tag)]
    if platform.libc_ver()[0] != "glibc" or platform.machine() != "x86_64" or sys.implementation.name != "cpython":
        pytest.skip("this test knows what to expect of CPython on glibc and x86_64 only")
    libc = f"glibc {platform.libc_ver()[1]}"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    device = msgspec.structs.replace(LINUX, libc=libc, python_version=version)
    places = [wheel_place(device, (str(tag),)) for tag in own]
    assert [str(tag) for tag, place in zip(own, places, strict=True) if not isinstance(place, int)] == []
    assert places == sorted(places, key=lambda place: (isinstance(place, str), place))


def test_the_more_specific_tag_comes_first() -> None:
    order = [
        "cp311-cp311-linux_x86_64",
        "cp311-cp311-manylinux_2_17_x86_64",
        "cp311-abi3-manylinux_2_17_x86_64",
        "cp311-none-manylinux_2_17_x86_64",
        "cp39-abi3-manylinux_2_17_x86_64",
        "py3-none-manylinux_2_17_x86_64",
        "cp311-none-any",
        "py311-none-any",
        "py3-none-any",
    ]
    places = [wheel_place(LINUX, (tag,)) for tag in order]
    assert places == sorted(places, key=lambda place: (isinstance(place, str), place))
    assert wheel_place(LINUX, (order[3], order[1], order[8])) == places[1]
    assert all(isinstance(place, int) and place < PLACE_OF_ANY for place in places)


@settings(max_examples=40)  # most need tables of their own, at some 10 ms each
@given(
    st.text(max_size=12) | st.sampled_from(["3.11", "3.99999", "3", "3.x"]),
    st.text(max_size=12) | st.sampled_from(["glibc 2.99999999", "glibc 9.1", "musl 9.9", "glibc", "musl x"]),
    st.sampled_from(["linux", "macos", "windows", "ios"]),
    st.text(max_size=8) | st.sampled_from(["99999.9", "11", "10.99"]),
    st.lists(
        st.text(max_size=16) | st.sampled_from(["a-b-c", "--", "py3-none-any." * 4, "-".join(["a" + ".a" * 70] * 3)]),
        max_size=3,
    ),
)
def test_nonsense_is_answered_and_nothing_is_refused_where_the_python_is_not_known(
    python: str, libc: str, os_type: Any, os_version: str, own: list[str]
) -> None:
    device = msgspec.structs.replace(LINUX, python_version=python, libc=libc, os_type=os_type, os_version=os_version)
    place = wheel_place(device, tuple(own))
    assert place is None or place == "unknown" or place >= 0
    if not python:
        assert place is not None
