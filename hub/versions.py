"""The orders of versions: the one each format defines for itself, and one unified order over all of them.

`compare_of_kind` compares two builds of one installer kind as that kind's own package system does:

- deb: Debian policy 5.6.12, as `dpkg --compare-versions`. rpm: EVR by rpmvercmp of rpm 4.18, with `~` and `^`.
- apk, apks: versionCode, an integer. wheel: PEP 440 (through `packaging`).
- msi, msix, exe: up to four numbers parted by dots, as in VERSIONINFO. ipa: the dotted integers of CFBundleVersion.
- Any other kind: Semantic Versioning 2.0, section 11.

A text that is not of its kind's form ("beta" for an apk) is of the unified order. `order_of_kind` says which order a
text belongs to and what it compares by there; within one order comparing is total. Between two orders only the unified
one can tell, and over a mixture that makes no order: A before B by one, B before C by another, C before A. So the
newest of many is found by a tournament (`hub/matching.py`): each order's newest, then the newest of those by the
unified order of their release names. Neither step looks at the order in which candidates come, so the result does not
depend on it.

The unified order is also what a list of releases is sorted by. Its sources: deb-version(7) for `~` and epochs, PEP 440
for pre-, post- and development releases. Where the two disagree the rule that people expect of a release name wins;
these are the rules, and the examples below are tested:

- Case, surrounding space and a leading `v` do not matter. Only the first 128 characters are read; nothing is refused.
- An epoch `N:` or `N!` comes first, build metadata after `+` last.
- Digits are numbers; zeros that end a run of numbers are dropped, so `1.0` is `1.0.0` (dpkg would tell them apart).
- At one place the order is: `~`, dev, a/alpha, b/beta, c/rc/pre/preview, the end, post/rev/r, other words by letter,
  numbers. `~` before one of the pre-release words adds nothing, so a deb's `1.0~rc1` is a wheel's `1.0rc1`.
- A number behind a hyphen, a space or a bracket is a post-release, as in PEP 440 (`1.0-1`) and Debian; semver's numeric
  pre-releases (`1.0.0-1` before `1.0.0`) are therefore not followed.

    1.0~git5 < 1.0.dev1 < 1.0a1 < 1.0-beta < 1.0-beta.2 < 1.0~rc1 = 1.0rc1 < 1.0 = v1.0.0 < 1.0+dfsg
    < 1.0-1 = 1.0.post1 < 1.0k < 1.0.1 < 1.9 < 1.10 < 2024-01-15 < 1:0.1
"""

import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, Final, TypeAlias

from packaging.version import InvalidVersion, Version

from protocol.device import InstallerKind

VERSION_CHARACTERS: Final = 128
UNIFIED: Final = "unified"

# (rank, number, word): the rank says what the part is, and only parts of one rank compare further.
Part: TypeAlias = tuple[int, int, str]
VersionKey: TypeAlias = tuple[int, tuple[Part, ...], tuple[Part, ...]]

_TILDE, _DEVELOPMENT, _ALPHA, _BETA, _CANDIDATE, _END, _POST, _WORD, _NUMBER = range(9)
_KNOWN_WORDS: Final = {
    "dev": _DEVELOPMENT,
    "a": _ALPHA,
    "alpha": _ALPHA,
    "b": _BETA,
    "beta": _BETA,
    "c": _CANDIDATE,
    "rc": _CANDIDATE,
    "pre": _CANDIDATE,
    "preview": _CANDIDATE,
    "post": _POST,
    "rev": _POST,
    "r": _POST,
}
_END_PART: Final[Part] = (_END, 0, "")
_POST_PART: Final[Part] = (_POST, 0, "")

_WHOLE: Final = re.compile(r"(?:v(?=[0-9]))?(?:([0-9]+)[:!])?([^+]*)\+?(.*)", re.DOTALL)
_PART: Final = re.compile(r"(?P<step>[-\s(\[]*)(?P<number>[0-9]+)|(?P<word>[^\W\d_]+)|(?P<tilde>~)")


# What one order makes of a text: a value that compares with the others of this order, or None if it is not of its form.
Key: TypeAlias = Callable[[str], Any]


def compare_of_kind(kind: InstallerKind, left: str, right: str) -> int:
    """Return -1, 0 or 1 as `left` is older than, as new as or newer than `right` for this kind. Never raises.

    Both are what the kind's order compares: `sortable_version`, or the file's own version where that is empty.
    """
    (left_order, left_key), (right_order, right_key) = order_of_kind(kind, left), order_of_kind(kind, right)
    if left_order != right_order:
        return compare_versions(left, right)
    return int(left_key > right_key) - int(left_key < right_key)


@lru_cache(maxsize=16_384)
def order_of_kind(kind: InstallerKind, text: str) -> tuple[str, Any]:
    """Return the name of the order that `text` belongs to, and what it compares by within that order."""
    text = text[:VERSION_CHARACTERS].strip()
    name, key = _ORDERS.get(kind, _SEMVER_ORDER)
    value = key(text)
    return (UNIFIED, version_key(text)) if value is None else (name, value)


def compare_versions(left: str, right: str) -> int:
    """Compare by the unified order: -1, 0 or 1 as `left` is older, as new or newer than `right`. Never raises."""
    left_key, right_key = version_key(left), version_key(right)
    return (left_key > right_key) - (left_key < right_key)


def version_key(text: str) -> VersionKey:
    """Return the value that orders `text`: epoch, parts of the version, parts of its build metadata."""
    whole = _WHOLE.match(text[:VERSION_CHARACTERS].strip().lower())
    assert whole is not None, "every part of the pattern may be empty"
    epoch, release, build = whole.groups()
    return int(epoch or 0), _release_parts(release), _build_parts(build)


def version_sort_key(text: str) -> str:
    """Return a string whose plain comparison gives the order of `compare_versions`; for an ORDER BY.

    It holds only digits and lower-case ASCII letters, so byte order and the usual collations agree on it. It is about
    20 characters long for ordinary versions and at most 2 KiB for any.
    """
    epoch, release, build = version_key(text)
    return _number_text(epoch) + "".join(_part_text(part) for part in (*release, *build))


def _release_parts(text: str) -> tuple[Part, ...]:
    parts: list[Part] = []
    for found in _PART.finditer(text):
        follows_number = bool(parts) and parts[-1][0] == _NUMBER
        if found["number"]:
            if found["step"] and follows_number:
                _drop_zeros(parts)
                parts.append(_POST_PART)
            parts.append((_NUMBER, int(found["number"]), ""))
            continue
        if follows_number:
            _drop_zeros(parts)
        part = _word_part(found["word"]) if found["word"] else (_TILDE, 0, "")
        if parts and parts[-1][0] == _TILDE and _DEVELOPMENT <= part[0] <= _CANDIDATE:
            parts.pop()
        parts.append(part)
    _drop_zeros(parts)
    return (*parts, _END_PART)


def _drop_zeros(parts: list[Part]) -> None:
    while parts and parts[-1] == (_NUMBER, 0, ""):
        parts.pop()


def _word_part(word: str) -> Part:
    rank = _KNOWN_WORDS.get(word, _WORD)
    return rank, 0, word if rank == _WORD else ""


def _build_parts(text: str) -> tuple[Part, ...]:
    """Return the parts of build metadata, where no word has a meaning and `1.0` is not `1`, as in PEP 440."""
    parts: list[Part] = []
    for found in _PART.finditer(text):
        if found["number"]:
            parts.append((_NUMBER, int(found["number"]), ""))
        else:
            parts.append((_WORD, 0, found["word"]) if found["word"] else (_TILDE, 0, ""))
    return (*parts, _END_PART)


def _part_text(part: Part) -> str:
    rank, number, word = part
    if rank == _NUMBER:
        return f"{rank}{_number_text(number)}"
    if rank == _WORD:
        return f"{rank}{''.join(map(_letter_text, word))}0"
    return str(rank)


def _number_text(number: int) -> str:
    """Return `number` behind the count of its digits, so that the longer number compares greater."""
    digits = str(number)
    return f"{len(digits):03}{digits}"


def _letter_text(letter: str) -> str:
    """Return `letter` as itself, or behind a z in hexadecimal; no letter's text begins another's."""
    if letter == "z":
        return "z0"
    return letter if "a" <= letter < "z" else f"z1{ord(letter):06x}"


# --- the orders of the kinds --------------------------------------------------------------------------------------

_DIGITS: Final = re.compile(r"[0-9]+")
_DEBIAN_STEP: Final = re.compile(r"([^0-9]*)([0-9]*)")
_RPM_SEGMENT: Final = re.compile(r"([0-9]+)|([A-Za-z]+)|([~^])")
_WINDOWS: Final = re.compile(r"[0-9]+(?:\.[0-9]+){0,3}")
_APPLE: Final = re.compile(r"[0-9]+(?:\.[0-9]+)*")
# semver.org, "Is there a suggested regular expression (RegEx) to check a SemVer string?"
_SEMVER: Final = re.compile(
    r"(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)"
    r"(?:-((?:0|[1-9][0-9]*|[0-9]*[a-zA-Z-][0-9a-zA-Z-]*)(?:\.(?:0|[1-9][0-9]*|[0-9]*[a-zA-Z-][0-9a-zA-Z-]*))*))?"
    r"(?:\+[0-9a-zA-Z-]+(?:\.[0-9a-zA-Z-]+)*)?"
)
_DEBIAN_END: Final = ((0,), 0)
# rpmvercmp: `~` is older than the end, `^` newer; any word is newer than these, any number newer than any word.
_RPM_TILDE, _RPM_END, _RPM_CARET, _RPM_WORD, _RPM_NUMBER = range(5)


def _debian_key(text: str) -> Any:
    """Debian policy 5.6.12: epoch, upstream version, revision; an absent revision is "0"."""
    epoch, rest = _epoch(text)
    upstream, separator, revision = rest.rpartition("-")
    if not separator:
        upstream, revision = rest, ""
    return epoch, _debian_part(upstream), _debian_part(revision)


def _debian_part(text: str) -> tuple[tuple[tuple[int, ...], int], ...]:
    """Return pairs of what is no digit and the number behind it; an end follows, which only `~` sorts before."""
    pairs = [((*map(_debian_weight, step[1]), 0), int(step[2] or 0)) for step in _DEBIAN_STEP.finditer(text) if step[0]]
    while pairs and pairs[-1] == _DEBIAN_END:
        pairs.pop()
    return (*pairs, _DEBIAN_END)


def _debian_weight(character: str) -> int:
    """`~` before the end of the part (0), letters before all else."""
    if character == "~":
        return -1
    return ord(character) if character.isascii() and character.isalpha() else ord(character) + 0x110000


def _rpm_key(text: str) -> Any:
    epoch, rest = _epoch(text)
    version, separator, release = rest.rpartition("-")
    if not separator:
        version, release = rest, ""
    return epoch, _rpm_part(version), _rpm_part(release)


def _rpm_part(text: str) -> tuple[Part, ...]:
    """Return the segments of `text` as rpmvercmp (rpm 4.18, rpmio/rpmvercmp.c) cuts them; all else only parts them."""
    parts: list[Part] = []
    for number, word, sign in _RPM_SEGMENT.findall(text):
        if number:
            parts.append((_RPM_NUMBER, int(number), ""))
        elif word:
            parts.append((_RPM_WORD, 0, word))
        else:
            parts.append((_RPM_TILDE if sign == "~" else _RPM_CARET, 0, ""))
    return (*parts, (_RPM_END, 0, ""))


def _epoch(text: str) -> tuple[int, str]:
    epoch, separator, rest = text.partition(":")
    return (int(epoch), rest) if separator and _DIGITS.fullmatch(epoch) else (0, text)


def _version_code_key(text: str) -> int | None:
    return int(text) if _DIGITS.fullmatch(text) else None


def _pep_440_key(text: str) -> Version | None:
    try:
        return Version(text)
    except InvalidVersion:
        return None


def _windows_key(text: str) -> tuple[int, ...] | None:
    """VERSIONINFO, ProductVersion and the Version of an MSIX: four numbers; those left out are 0."""
    if not _WINDOWS.fullmatch(text):
        return None
    numbers = [int(number) for number in text.split(".")]
    return (*numbers, *[0] * (4 - len(numbers)))


def _apple_key(text: str) -> tuple[int, ...] | None:
    """CFBundleVersion: integers parted by dots; those left out are 0, so zeros at the end say nothing."""
    if not _APPLE.fullmatch(text):
        return None
    numbers = [int(number) for number in text.split(".")]
    while numbers and not numbers[-1]:
        numbers.pop()
    return tuple(numbers)


def _semver_key(text: str) -> Any:
    """Semantic Versioning 2.0, section 11: the three numbers, a pre-release before none; build metadata is nothing."""
    found = _SEMVER.fullmatch(text)
    if found is None:
        return None
    numbers = (int(found[1]), int(found[2]), int(found[3]))
    if found[4] is None:
        return (*numbers, 1, ())
    # A number is before a word, and of two that begin alike the shorter is first.
    words = tuple((0, int(word), "") if word.isdigit() else (1, 0, word) for word in found[4].split("."))
    return (*numbers, 0, words)


_SEMVER_ORDER: Final[tuple[str, Key]] = ("Semantic Versioning", _semver_key)
_ORDERS: Final[Mapping[InstallerKind, tuple[str, Key]]] = {
    "deb": ("Debian", _debian_key),
    "rpm": ("RPM", _rpm_key),
    "apk": ("versionCode", _version_code_key),
    "apks": ("versionCode", _version_code_key),
    "wheel": ("PEP 440", _pep_440_key),
    "msi": ("Windows", _windows_key),
    "msix": ("Windows", _windows_key),
    "exe": ("Windows", _windows_key),
    "ipa": ("CFBundleVersion", _apple_key),
}
