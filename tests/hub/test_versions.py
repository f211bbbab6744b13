"""The unified order of versions and that of each installer kind: documented examples, laws, vendors' tables.

dpkg, rpm and packaging say the same of generated versions. `RPM_TABLE` is tests/rpmvercmp.at of rpm 4.18.
"""

import random
import shutil
import subprocess
from itertools import pairwise
from typing import Final, TypeVar, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from packaging.version import Version

from hub import versions
from hub.versions import UNIFIED, compare_of_kind, compare_versions, order_of_kind, version_sort_key
from protocol.device import InstallerKind

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


# --- the orders of the kinds --------------------------------------------------------------------------------------

# Per kind rows of one version each, from the oldest to the newest, out of the vendors' own documents.
ROWS_OF_KIND: Final[dict[InstallerKind, tuple[tuple[str, ...], ...]]] = {
    # Debian policy 5.6.12: "~~, ~~a, ~, the empty part, a"; letters before others; an absent revision is 0; an epoch
    # mends a mistake of the past.
    "deb": (
        ("1.0~~",),
        ("1.0~~a",),
        ("1.0~",),
        ("1.0~beta1~svn1245",),
        ("1.0~beta1",),
        ("1.0", "1.0-0", "0:1.0", "1.00-00", "1.0-"),
        ("1.0-1~bpo12+1",),
        ("1.0-1",),
        ("1.0-1+b1",),
        ("1.0-1.1",),
        ("1.0-10",),
        ("1.0a",),
        ("1.0z",),
        ("1.0+dfsg-1",),
        ("1.0.0",),
        ("1.0.1",),
        ("1.2.3-1-1",),
        ("1.10",),
        ("1:0.1",),
        ("10:0",),
    ),
    # fedoraproject.org/wiki/Package_Versioning and rpm-version(7).
    "rpm": (
        ("1.0~beta-1",),
        ("1.0~rc1-1",),
        ("1.0",),
        ("1.0-1.fc40", "1_0-01.fc40", "0:1.0-1.fc40"),
        ("1.0-2.fc40",),
        ("1.0-2.40",),
        ("1.0-10",),
        ("1.0^20240101git1-1",),
        ("1.0^20240201git2-1",),
        ("1.0a-1",),
        ("1.0.1-1",),
        ("1.9-1",),
        ("1.10-1",),
        ("2:0.1-1",),
    ),
    # developer.android.com/studio/publish/versioning: a positive integer; the greater is the newer.
    "apk": (("1",), ("9", "09"), ("10",), ("2100000000",)),
    "apks": (("99",), ("100",)),
    # PEP 440, "Summary of permitted suffixes and relative ordering", and what normalises to the same.
    "wheel": (
        ("1.dev0",),
        ("1.0.dev456",),
        ("1.0a1",),
        ("1.0a2.dev456",),
        ("1.0a12.dev456",),
        ("1.0a12", "1.0-alpha.12"),
        ("1.0b1.dev456",),
        ("1.0b2",),
        ("1.0b2.post345.dev456",),
        ("1.0b2.post345",),
        ("1.0rc1.dev456",),
        ("1.0rc1", "1.0-c1"),
        ("1.0", "1", "v1.0.0"),
        ("1.0+abc.5",),
        ("1.0+abc.7",),
        ("1.0+5",),
        ("1.0.post456.dev34",),
        ("1.0.post456", "1.0-456"),
        ("1.0.15",),
        ("1.1.dev1",),
        ("2!0.1",),
    ),
    # VERSIONINFO: four 16-bit numbers; Windows Installer and the Store compare numbers, never text.
    "msi": (("1.2", "1.2.0", "1.2.0.0"), ("1.2.0.1",), ("1.2.9",), ("1.2.10",), ("1.10",), ("10.0.19041.1",)),
    "msix": (("1.0.0.0",), ("1.0.0.9",), ("1.0.0.10",)),
    "exe": (("6.1.7601.24545",), ("10.0.17763.1",), ("10.0.17763.10",)),
    # CFBundleVersion: "10.14.1"; integers left out are 0.
    "ipa": (("1", "1.0", "1.0.0"), ("1.0.1",), ("1.9",), ("1.10",), ("10.14.1",)),
    # semver.org, item 11 and its examples.
    "other": (
        ("1.0.0-alpha",),
        ("1.0.0-alpha.1",),
        ("1.0.0-alpha.beta",),
        ("1.0.0-beta",),
        ("1.0.0-beta.2",),
        ("1.0.0-beta.11",),
        ("1.0.0-rc.1",),
        ("1.0.0", "1.0.0+20130313144700", "1.0.0+exp.sha.5114f85"),
        ("2.0.0-1",),
        ("2.0.0-0a",),
        ("2.0.0",),
        ("2.1.0",),
        ("2.1.1",),
        ("2.10.0",),
    ),
}
KIND_ROWS: Final = [
    (kind, place, text) for kind, rows in ROWS_OF_KIND.items() for place, row in enumerate(rows) for text in row
]

# tests/rpmvercmp.at of rpm 4.18: left, right, and what rpm.vercmp answers.
RPM_TABLE: Final = """
1.0 1.0 0; 1.0 2.0 -1; 2.0 1.0 1; 2.0.1 2.0.1 0; 2.0 2.0.1 -1; 2.0.1 2.0 1; 2.0.1a 2.0.1a 0; 2.0.1a 2.0.1 1;
2.0.1 2.0.1a -1; 5.5p1 5.5p1 0; 5.5p1 5.5p2 -1; 5.5p2 5.5p1 1; 5.5p10 5.5p10 0; 5.5p1 5.5p10 -1; 5.5p10 5.5p1 1;
10xyz 10.1xyz -1; 10.1xyz 10xyz 1; xyz10 xyz10 0; xyz10 xyz10.1 -1; xyz10.1 xyz10 1; xyz.4 xyz.4 0; xyz.4 8 -1;
8 xyz.4 1; xyz.4 2 -1; 2 xyz.4 1; 5.5p2 5.6p1 -1; 5.6p1 5.5p2 1; 5.6p1 6.5p1 -1; 6.5p1 5.6p1 1; 6.0.rc1 6.0 1;
6.0 6.0.rc1 -1; 10b2 10a1 1; 10a2 10b2 -1; 1.0aa 1.0aa 0; 1.0a 1.0aa -1; 1.0aa 1.0a 1; 10.0001 10.0001 0;
10.0001 10.1 0; 10.1 10.0001 0; 10.0001 10.0039 -1; 10.0039 10.0001 1; 4.999.9 5.0 -1; 5.0 4.999.9 1;
20101121 20101121 0; 20101121 20101122 -1; 20101122 20101121 1; 2_0 2_0 0; 2.0 2_0 0; 2_0 2.0 0; a a 0; a+ a+ 0;
a+ a_ 0; a_ a+ 0; +a +a 0; +a _a 0; _a +a 0; +_ +_ 0; _+ +_ 0; _+ _+ 0; + _ 0; _ + 0; 1.0~rc1 1.0~rc1 0;
1.0~rc1 1.0 -1; 1.0 1.0~rc1 1; 1.0~rc1 1.0~rc2 -1; 1.0~rc2 1.0~rc1 1; 1.0~rc1~git123 1.0~rc1~git123 0;
1.0~rc1~git123 1.0~rc1 -1; 1.0~rc1 1.0~rc1~git123 1; 1.0^ 1.0^ 0; 1.0^ 1.0 1; 1.0 1.0^ -1; 1.0^git1 1.0^git1 0;
1.0^git1 1.0 1; 1.0 1.0^git1 -1; 1.0^git1 1.0^git2 -1; 1.0^git2 1.0^git1 1; 1.0^git1 1.01 -1; 1.01 1.0^git1 1;
1.0^20160101 1.0^20160101 0; 1.0^20160101 1.0.1 -1; 1.0.1 1.0^20160101 1; 1.0^20160101^git1 1.0^20160101^git1 0;
1.0^20160102 1.0^20160101^git1 1; 1.0^20160101^git1 1.0^20160102 -1; 1.0~rc1^git1 1.0~rc1^git1 0;
1.0~rc1^git1 1.0~rc1 1; 1.0~rc1 1.0~rc1^git1 -1; 1.0^git1~pre 1.0^git1~pre 0; 1.0^git1 1.0^git1~pre 1;
1.0^git1~pre 1.0^git1 -1; 1b.fc17 1b.fc17 0; 1b.fc17 1.fc17 -1; 1.fc17 1b.fc17 1; 1g.fc17 1g.fc17 0; 1g.fc17 1.fc17 1;
1.fc17 1g.fc17 -1; 1.1.α 1.1.α 0; 1.1.α 1.1.β 0; 1.1.β 1.1.α 0; 1.1.αα 1.1.α 0; 1.1.α 1.1.ββ 0; 1.1.ββ 1.1.αα 0
"""
RPM_PAIRS: Final = [(left, right, int(sign_)) for left, right, sign_ in (row.split() for row in RPM_TABLE.split(";"))]
KINDS: Final[tuple[InstallerKind, ...]] = get_args(InstallerKind)

kind_text = st.one_of(
    version_text,
    st.text(alphabet="0129.~-+:^_aZ", max_size=9),
    st.lists(st.sampled_from(["0", "1", "01", "10", ".", ".", "~", "^", "-", "+", "a", "rc", "2:"]), max_size=8).map(
        "".join
    ),
    st.builds("{}.{}.{}{}".format, number, number, number, st.sampled_from(["", "-1", "-a", "-a.1", "+b", ".4"])),
)


@pytest.mark.parametrize(("kind", "left_place", "left"), KIND_ROWS)
def test_every_pair_of_a_vendors_table_is_in_its_order(kind: InstallerKind, left_place: int, left: str) -> None:
    for right_place, row in enumerate(ROWS_OF_KIND[kind]):
        for right in row:
            assert compare_of_kind(kind, left, right) == sign(left_place, right_place), (kind, left, right)


def test_each_row_of_a_vendors_table_is_of_the_order_of_its_kind_and_not_of_the_unified_one() -> None:
    assert [text for kind, _, text in KIND_ROWS if order_of_kind(kind, text)[0] == UNIFIED] == []


@pytest.mark.parametrize(("left", "right", "answer"), RPM_PAIRS)
def test_rpms_own_table_of_its_comparer_holds(left: str, right: str, answer: int) -> None:
    assert compare_of_kind("rpm", left, right) == answer


@given(st.sampled_from(KINDS), kind_text, kind_text, kind_text)
def test_within_the_order_of_a_kind_comparing_is_total(
    kind: InstallerKind, first: str, second: str, third: str
) -> None:
    assert compare_of_kind(kind, first, first) == 0
    assert compare_of_kind(kind, first, second) == -compare_of_kind(kind, second, first)
    if len({order_of_kind(kind, text)[0] for text in (first, second, third)}) == 1:
        oldest, middle, newest = sorted((first, second, third), key=lambda text: order_of_kind(kind, text)[1])
        assert compare_of_kind(kind, oldest, middle) <= 0
        assert compare_of_kind(kind, middle, newest) <= 0
        assert compare_of_kind(kind, oldest, newest) <= 0


@given(st.sampled_from(KINDS), st.text(max_size=300), st.text(max_size=300))
def test_no_text_is_refused_by_any_order(kind: InstallerKind, left: str, right: str) -> None:
    assert compare_of_kind(kind, left, right) in (-1, 0, 1)


@settings(max_examples=50)
@given(pep_440(), pep_440())
def test_wheels_compare_as_packaging_compares_them(left: str, right: str) -> None:
    assert compare_of_kind("wheel", left, right) == sign(Version(left), Version(right))


@pytest.mark.parametrize(
    ("kind", "left", "right", "answer"),
    [
        ("apk", "beta", "rc1", -1),
        ("msi", "1.2.3.4.5", "1.2.3.4.10", -1),
        ("ipa", "1.0b2", "1.0", -1),
        ("wheel", "2024-01-15", "banana", 1),
        ("flatpak", "1.9", "1.10", -1),
        ("appimage", "1.0-1", "1.0.0", 1),
        ("apk", "310", "3.1", 1),
    ],
)
def test_a_text_that_is_not_of_its_kinds_form_is_compared_by_the_unified_order(
    kind: InstallerKind, left: str, right: str, answer: int
) -> None:
    assert compare_of_kind(kind, left, right) == compare_versions(left, right) == answer


def generated(alphabet: list[str], count: int) -> list[tuple[str, str]]:
    """Pairs of versions a package system takes, the same on every run; the second often differs in one piece."""
    source = random.Random(4)
    pairs = []
    for _ in range(count):
        pieces = source.choices(alphabet, k=source.randint(1, 5))
        others = [piece if source.random() < 0.7 else source.choice(alphabet) for piece in pieces]
        left, right = "1" + "".join(pieces), "1" + "".join(others[: source.randint(1, 5)])
        pairs.append((left, right))
    return pairs


DEBIAN_PIECES: Final = ["0", "1", "09", "10", ".", "~", "+", "a", "Z", "rc", "-1"]


def test_dpkg_says_the_same_of_generated_versions() -> None:
    words = {-1: "lt", 0: "eq", 1: "gt"}
    script = 'while read a op b; do dpkg --compare-versions "$a" "$op" "$b" || echo "$a $op $b"; done'
    lines = [
        f"{left} {words[compare_of_kind('deb', left, right)]} {right}" for left, right in generated(DEBIAN_PIECES, 120)
    ]
    asked = subprocess.run(
        ["sh", "-c", script], input="\n".join(lines) + "\n", capture_output=True, text=True, timeout=60
    )
    assert (asked.stdout, asked.stderr) == ("", "")
    assert len({line.split()[1] for line in lines}) == 3


@pytest.mark.skipif(not shutil.which("rpm"), reason="there is no rpm to ask")
def test_rpm_says_the_same_of_generated_versions() -> None:
    pairs = generated(["0", "1", "09", "10", ".", "~", "^", "+", "a", "Z", "git"], 400)
    calls = "".join(f"print(rpm.vercmp('{left}', '{right}') .. ' ')" for left, right in pairs)
    asked = subprocess.run(
        ["rpm", "--eval", f"%{{lua: {calls}}}"], capture_output=True, text=True, timeout=60, check=True
    )
    answers = [int(word) for word in asked.stdout.split()]
    assert answers == [compare_of_kind("rpm", left, right) for left, right in pairs]
