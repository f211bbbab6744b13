"""Inspectors: an installer file -> the facts its own header gives.

One file per format, each with the same two functions: `recognises`, by the file's first bytes and its members, never by
its name, and `read_facts`. This one asks them all and is the border at which every foreign exception becomes a
BadFileError. Nothing here runs, unpacks to disk or verifies an installer, and no file is read whole: only directories
and manifests, each with a bound.
"""

import stat
from pathlib import Path
from typing import BinaryIO, Final, Protocol

from hub.inspectors import apk, apks, deb, exe, ipa, msi, msix, rpm, wheel
from hub.inspectors.source import Source
from hub.records import InstallerFacts
from protocol.errors import BadFileError
from protocol.limits import IDENTIFIER_CHARACTERS, NAME_CHARACTERS, OBJECT_BYTES, TEXT_CHARACTERS

__all__ = ["inspect"]


class Format(Protocol):
    """What the file of one format offers. Both raise BadFileError, and whatever a damaged file makes a reader raise."""

    def recognises(self, source: Source) -> bool:
        """Whether the file is of this format."""

    def read_facts(self, source: Source) -> InstallerFacts:
        """Return the facts its header gives."""


FORMATS: Final[dict[str, Format]] = {
    "a Debian package": deb,
    "an RPM package": rpm,
    "a wheel": wheel,
    "an Android package": apk,
    "a set of split APKs": apks,
    "an iOS package": ipa,
    "a Windows Installer package": msi,
    "a Windows app package": msix,
    "a Windows program": exe,
}
DAMAGED_HINT: Final = "Get the file again from where it was built and compare its SHA-256."
UNKNOWN_HINT: Final = "Lockstep reads Debian packages (.deb), Android packages (.apk) and Python wheels (.whl)."


def inspect(path: Path, name: str = "") -> InstallerFacts:
    """Return the facts the header of the installer at `path` gives.

    `name` is the file's original name where `path` is a stored copy; only a wheel needs it. Raises BadFileError, and
    nothing else, for a file that is missing, not a file, empty, unreadable, damaged, cut off or of an unknown format.
    """
    shown = name or path.name or str(path)
    try:
        with _open(path) as file:
            return _checked(_read_facts(file, shown))
    except BadFileError as error:
        raise BadFileError(f"{shown}: {error.message}", hint=error.hint or DAMAGED_HINT) from error
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise BadFileError(f"{shown}: it cannot be read ({reason}).", hint="Check the path and its rights.") from error
    except Exception as error:
        raise BadFileError(f"{shown}: it is damaged ({type(error).__name__}).", hint=DAMAGED_HINT) from error


def _open(path: Path) -> BinaryIO:
    """Open a plain file; anything else could block for ever, as a pipe does."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise BadFileError("it is not a file.", hint="Give the path of one installer file.")
    return path.open("rb")


def _read_facts(file: BinaryIO, file_name: str) -> InstallerFacts:
    source = Source(file, file_name)
    if source.size == 0:
        raise BadFileError("it is empty.")
    if source.size > OBJECT_BYTES:
        raise BadFileError(
            f"it has {source.size} bytes, and at most {OBJECT_BYTES} are taken.", hint="Build a smaller installer."
        )
    found = [name for name, one in FORMATS.items() if one.recognises(source)]
    if len(found) > 1:
        raise BadFileError(f"it is {_list(found)} at once.", hint="Publish a file that is one thing.")
    if not found:
        fault = "it is a zip archive but no installer." if source.is_zip else "it is of no installer format known here."
        raise BadFileError(fault, hint=UNKNOWN_HINT)
    return FORMATS[found[0]].read_facts(source)


def _list(words: list[str]) -> str:
    return " and ".join(words)


def _checked(facts: InstallerFacts) -> InstallerFacts:
    """Refuse what the wire could not carry: a header may be sound and still absurd."""
    if len(facts.package_name) > IDENTIFIER_CHARACTERS:
        raise BadFileError(f"its package name has more than {IDENTIFIER_CHARACTERS} characters.")
    if len(facts.version) > NAME_CHARACTERS or not facts.version.isprintable():
        raise BadFileError(f"its version {facts.version[:60]!r} is no line of at most {NAME_CHARACTERS} characters.")
    if len(facts.title) > TEXT_CHARACTERS or not facts.title.isprintable():
        raise BadFileError(f"its title {facts.title[:60]!r} is no line of at most {TEXT_CHARACTERS} characters.")
    return facts
