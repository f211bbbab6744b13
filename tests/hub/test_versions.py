"""The one order of versions: the documented examples, the laws of an order, PEP 440 and dpkg."""

import subprocess
from itertools import pairwise
from typing import TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.version import Version

from hub import versions
from hub.versions import compare_versions, version_sort_key

# Each row holds names of one version; the rows run from the oldest to the newest.
EXAMPLES = (
    ("1.0~~",),
    ("1.0~~rc1",),
    ("1.0~",),
    ("1.0~git5",),
    ("1.0.dev1", "1.0~dev1", "1.0-DEV1"),
    ("1.0a1.dev2",),
    ("1.0a1", "1.0alpha1", "1-Alpha.1", "1.0.0~a1"),
    ("1.0-beta", "1.0b", "1.0b0"),
    ("1.0-beta.2", "1.0b2"),
    ("1.0~rc1", "1.0rc1", "1.0c1", "1.0-pre1", "1.0 preview 1"),
    ("1.0rc1-1", "1.0rc1.post1"),
    ("1.0rc10",),
    ("1.0", "1", "v1.0.0", " V1.0 ", "0:1.0", "0!1.0", "1.0+", "01.00"),
    ("1.0+dfsg", "1.0.0+DFSG"),
    ("1.0+dfsg1",),
    ("1.0+1",),
    ("1.0.post1.dev1",),
    ("1.0-1", "1.0.post1", "1.0r1", "1.0-rev1", "1.0 (1)"),
    ("1.0 (123)",),
    ("1.0k",),
    ("1.0z",),
    ("1.0zz",),
    ("1.0é",),
    ("1.0.1",),
    ("1.0.1.1",),
    ("1.9",),
    ("1.10",),
    ("2024-01-15",),
    ("2024-02-01",),
    ("99999999999999999999",),
    ("1:0.1", "1!0.1", "v1!0.1"),
    ("10:0",),
)
FLAT = [(place, text) for place, names in enumerate(EXAMPLES) for text in names]

version_text = st.one_of(
    st.text(max_size=12),
    st.text(alphabet="0129.~-+:!_ avzrc(é²٣", max_size=10),
    st.lists(
        st.sampled_from(["0", "1", "10", ".", "~", "-", "+", "a", "beta", "rc", "dev", "post", "z", "zé", "1:"]),
        max_size=7,
    ).map("".join),
)
number = st.integers(0, 12)


@st.composite
def pep_440(draw: st.DrawFn) -> str:
    epoch = draw(st.sampled_from(["", "", "0!", "1!"]))
    release = ".".join(map(str, draw(st.lists(number, min_size=1, max_size=4))))
    before = draw(
        st.one_of(st.just(""), st.builds("{}{}".format, st.sampled_from(["a", ".b", "-rc", "alpha"]), number))
    )
    after = draw(
        st.one_of(st.just(""), st.builds("{}{}".format, st.sampled_from([".post", "-", "-r", ".rev"]), number))
    )
    development = draw(st.one_of(st.just(""), st.builds(".dev{}".format, number)))
    local = draw(st.one_of(st.just(""), st.builds("+{}.{}".format, st.sampled_from(["abc", "rc", "0", "7"]), number)))
    return epoch + release + before + after + development + local


Ordered = TypeVar("Ordered", int, str, Version)


def sign(left: Ordered, right: Ordered) -> int:
    return int(left > right) - int(left < right)


@pytest.mark.parametrize(("left_place", "left"), FLAT)
def test_every_pair_of_the_documented_table_is_in_its_order(left_place: int, left: str) -> None:
    for right_place, right in FLAT:
        assert compare_versions(left, right) == sign(left_place, right_place), (left, right)


def test_the_examples_of_the_docstring_hold() -> None:
    assert versions.__doc__ is not None
    line = versions.__doc__.split("\n\n")[-1]
    rows = [names.split(" = ") for names in line.split("<")]
    assert len(rows) > 10
    for older, newer in pairwise(rows):
        assert compare_versions(older[-1], newer[0]) == -1, (older, newer)
    for names in rows:
        assert all(compare_versions(name, names[0]) == 0 for name in names)


@given(version_text, version_text)
def test_swapping_two_versions_swaps_the_answer(left: str, right: str) -> None:
    assert compare_versions(left, right) == -compare_versions(right, left)


@given(version_text, version_text, version_text)
def test_the_order_is_transitive(first: str, second: str, third: str) -> None:
    if compare_versions(first, second) <= 0 and compare_versions(second, third) <= 0:
        assert compare_versions(first, third) <= 0


@given(version_text, version_text)
def test_sort_keys_compare_as_the_versions_do(left: str, right: str) -> None:
    assert sign(version_sort_key(left), version_sort_key(right)) == compare_versions(left, right)


@given(st.text(max_size=200))
def test_any_text_gets_a_short_key_of_digits_and_small_letters(text: str) -> None:
    key = version_sort_key(text)
    assert len(key) <= 16 * versions.VERSION_CHARACTERS
    assert set(key) <= set("0123456789abcdefghijklmnopqrstuvwxyz")


@given(pep_440(), pep_440())
def test_simple_pep_440_versions_compare_as_packaging_compares_them(left: str, right: str) -> None:
    assert compare_versions(left, right) == sign(Version(left), Version(right))


@pytest.mark.parametrize(
    ("older", "newer"),
    [
        ("1.9", "1.10"),
        ("1.0", "1.0.1"),
        ("1.0~rc1", "1.0"),
        ("1.0~beta2", "1.0~rc1"),
        ("1.0~~", "1.0~"),
        ("1.0~rc1~git1", "1.0~rc1"),
        ("9.9", "1:0.1"),
        ("1.0", "1.0+dfsg"),
        ("1.0+dfsg", "1.0.1"),
        ("1.0", "1.0k"),
        ("1.0k", "1.0.1"),
        ("1.0", "1.0-1"),
        ("1.0-1", "1.0.1"),
        ("2.36.9", "2.36.10"),
    ],
)
def test_plain_debian_versions_compare_as_dpkg_compares_them(older: str, newer: str) -> None:
    assert subprocess.run(["dpkg", "--compare-versions", older, "lt", newer], check=False, timeout=10).returncode == 0
    assert compare_versions(older, newer) == -1


def test_only_the_first_128_characters_are_read() -> None:
    longest = "1." * 63 + "10"
    assert len(longest) == versions.VERSION_CHARACTERS
    assert compare_versions(longest[:-1] + "1", longest) == 1
    assert compare_versions(longest, longest + "9") == 0
