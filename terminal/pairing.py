"""Pairing, as people see it: the code in words, the page's address and its QR code, and what a person types. Pure."""

import io
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from protocol.errors import UsageError
from protocol.limits import PAIRING_CODE_CHARACTERS

PAGE: Final = "/pair/"
GROUP_CHARACTERS: Final = 4
QR_BORDER_MODULES: Final = 2  # readers want a margin, and four on each side are more than a screen has to spare


@dataclass(frozen=True, slots=True)
class PairingShown:
    """What a device shows so that somebody lets it in: the code, the page, how long it holds, its key's fingerprint."""

    code: str
    url: str
    seconds: float
    device_key: str


def code_words(code: str) -> str:
    """Return a code as people read and type it: "BCDF-GHJK"."""
    return f"{code[:GROUP_CHARACTERS]}-{code[GROUP_CHARACTERS:]}"


def page_url(dialled: str, code: str) -> str:
    """Return the address of the pairing page of the hub at `dialled`, a ws:// or wss:// URL."""
    parts = urlsplit(dialled)
    return f"{'https' if parts.scheme == 'wss' else 'http'}://{parts.netloc}{PAGE}{code}"


def parse_code(given: str) -> str:
    """Return the code in what a person gave: in any case, with or without dashes and spaces, or the page's address.

    Raises UsageError when there is none in it.
    """
    text = given.partition(PAGE)[2].partition("?")[0].partition("#")[0] if PAGE in given else given
    code = "".join(character for character in text if character not in " -/").upper()
    if len(code) != PAIRING_CODE_CHARACTERS or not (code.isascii() and code.isalpha()):
        raise UsageError(
            f"{given[:80]!r} is no pairing code.",
            hint=f"Give the {PAIRING_CODE_CHARACTERS} letters that the device shows, such as BCDF-GHJK, or its URL.",
        )
    return code


def qr_code(url: str) -> str:
    """Return `url` as a QR code (ISO/IEC 18004) in half blocks: two modules to a character, drawn light on dark."""
    import segno

    drawn = io.StringIO()
    segno.make(url, micro=False).terminal(drawn, border=QR_BORDER_MODULES, compact=True)
    return drawn.getvalue().rstrip("\n")


def time_words(seconds: float) -> str:
    """Return how long is left: "9:41"."""
    whole = max(int(seconds), 0)
    return f"{whole // 60}:{whole % 60:02}"
