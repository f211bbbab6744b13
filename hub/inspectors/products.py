"""The product names Windows installers give: what a program id, a version and a title are made of.

A Windows installer has no short name that stays the same: an MSI's ProductCode is another in each version, its
UpgradeCode a GUID that nobody types, and a program's header has neither. What stays and can be typed is the product's
name without what changes from one installer to the next, its version and architecture: "Python 3.11.4 (64-bit)" is
`python`. Where that leaves nothing to type, the name is empty and a person has to say the program id.
"""

import re
import unicodedata
from typing import Final

from protocol.limits import NAME_CHARACTERS, TEXT_CHARACTERS

# What many different programs are called; as an id it would make one program of them all.
SHARED_NAMES: Final = frozenset({
    "application", "install", "installer", "microsoft-windows-operating-system", "setup"
})  # fmt: skip

_CHANGING: Final = re.compile(
    r"[(\[]?(?<![\w.])"
    r"(?:(?:version |v)?[0-9]+(?:\.[0-9]+)+|x64|x86(?:[-_]64)?|amd64|arm64|aarch64|win32|win64|(?:32|64)[- ]?bit)"
    r"(?![\w.])(?: edition)?[)\]]?"
)
_MARKS: Final = str.maketrans("", "", "®©™")
_UNTYPED: Final = re.compile(r"[^a-z0-9._+]+")
_VERSION: Final = re.compile(r"[0-9][0-9A-Za-z.+~_ -]*")
_COMMA: Final = re.compile(r"\s*,\s*")


def program_id(product_name: str) -> str:
    """Return a name made of `product_name` that can be typed and does not change with the version, "" for none.

    A name with letters beyond a to z and their accents gives none, since what would be left of it is another name; so
    does one that many programs share.
    """
    letters = unicodedata.normalize("NFKD", product_name.translate(_MARKS).casefold())
    plain = "".join(letter for letter in letters if not unicodedata.combining(letter))
    if any(letter.isalpha() and not letter.isascii() for letter in plain):
        return ""
    name = _UNTYPED.sub("-", _CHANGING.sub(" ", plain)).strip("-._")
    return name if name[:1].isalnum() and name not in SHARED_NAMES else ""


def version(text: str) -> str:
    """Return `text` as a version if it is one, "" otherwise; "1, 0, 0, 1", as old tools write it, is 1.0.0.1."""
    line = " ".join(_COMMA.sub(".", text).split())
    return line if len(line) <= NAME_CHARACTERS and _VERSION.fullmatch(line) else ""


def title(*texts: str) -> str:
    """Return the first of `texts` that is a title: one printable line of at most TEXT_CHARACTERS."""
    lines = ("".join(filter(str.isprintable, " ".join(text.split()))) for text in texts)
    return next((line for line in lines if line and len(line) <= TEXT_CHARACTERS), "")
