"""One order over the version strings of every installer kind: deb upstream versions, PEP 440, Android versionName.

Sources: deb-version(7) for `~` and epochs, PEP 440 for pre-, post- and development releases. Where the two disagree the
rule that people expect of a release name wins; these are the rules, and the examples below are tested:

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
from typing import Final, TypeAlias

VERSION_CHARACTERS: Final = 128

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


def compare_versions(left: str, right: str) -> int:
    """Return -1, 0 or 1 as `left` is older than, as new as or newer than `right`. Never raises."""
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
