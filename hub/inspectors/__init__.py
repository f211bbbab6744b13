"""Inspectors: an installer file -> the facts its own header gives.

One file per format, each with the same two functions: `recognises`, by the file's first bytes and its members, never by
its name, and `read_facts`. This one asks them all, takes the sidecar where there is no header to read, and is the
border at which every foreign exception becomes a BadFileError. Nothing here runs, unpacks to disk or verifies an
installer, and no file is read whole: only directories and manifests, each with a bound.
"""

import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final, Protocol

import msgspec
from msgspec import Struct, structs

from hub.inspectors import apk, apks, deb, exe, ipa, msi, msix, names, rpm, sidecar, wheel
from hub.inspectors.sidecar import Sidecar
from hub.inspectors.source import Source
from hub.records import InstallerFacts
from protocol.errors import BadFileError, LockstepError
from protocol.limits import IDENTIFIER_CHARACTERS, KIB, NAME_CHARACTERS, OBJECT_BYTES, TEXT_CHARACTERS

__all__ = ["INSPECTION_FAILED", "Inspected", "check_facts", "inspect", "open_installer", "read_installer", "told_of"]


class Format(Protocol):
    """What the file of one format offers. Both raise BadFileError, and whatever a damaged file makes a reader raise."""

    def recognises(self, source: Source) -> bool:
        """Whether the file is of this format."""

    def read_facts(self, source: Source) -> InstallerFacts:
        """Return the facts its header gives."""


class Inspected(Struct, frozen=True, kw_only=True):
    """What is known of an installer: the facts of its header, or of its sidecar where it has none; and the sidecar."""

    facts: InstallerFacts
    sidecar: Sidecar = Sidecar()


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
FACTS_BYTES: Final = 128 * KIB  # as JSON
DAMAGED_HINT: Final = "Get the file again from where it was built and compare its SHA-256."
INSPECTION_FAILED: Final = "inspection-failed"

_SIGNER: Final = re.compile(r"(?:[0-9a-f]{16}|[0-9a-f]{40}|[0-9a-f]{64})?")  # of an RPM a key id or fingerprint


def inspect(path: Path, name: str = "") -> InstallerFacts:
    """Return the facts the header of the installer at `path` gives, read in this process.

    `name` is the file's original name where `path` is a stored copy; only a wheel needs it. Raises BadFileError, and
    nothing else, for a file that is missing, not a file, empty, unreadable, damaged, cut off or of an unknown format.
    """
    shown = name or path.name or str(path)
    with told_of(shown), open_installer(path) as file:
        return read_installer(file, shown).facts


def open_installer(path: Path) -> BinaryIO:
    """Open a plain file for reading. Raises BadFileError for anything else: a pipe could block for ever."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise BadFileError("it is not a file.", hint="Give the path of one installer file.")
    return os.fdopen(descriptor, "rb")


def read_installer(file: BinaryIO, name: str, beside: bytes | None = None) -> Inspected:
    """Return what is known of the open installer called `name`; `beside` is the content of its sidecar.

    Raises BadFileError for one that cannot be read, and ConflictError where its sidecar contradicts it.
    """
    with told_of(name):
        said = Sidecar() if beside is None else sidecar.parse(beside, name + sidecar.SUFFIX)
        source = _source(file, name)
        found = [words for words, one in FORMATS.items() if one.recognises(source)]
        if len(found) > 1:
            raise BadFileError(f"it is {' and '.join(found)} at once.", hint="Publish a file that is one thing.")
        if not found and beside is None:
            raise names.refusal(source)
        if found:
            facts = _completed(FORMATS[found[0]].read_facts(source), said, name)
        else:
            facts = sidecar.facts_of(said, names.kind_of(source), name)
        check_facts(facts)
        sidecar.check(said, facts, name)
        return Inspected(facts=facts, sidecar=said)


def _completed(facts: InstallerFacts, said: Sidecar, name: str) -> InstallerFacts:
    """Fill in from the sidecar what a header may leave empty, as a Windows program does; make the title one line."""
    package, version = facts.package_name or said.package or said.program, facts.version or said.version
    program_line, version_line, _ = sidecar.example(name).splitlines()
    lacking = {"what it is called": program_line} if not package else {}
    lacking |= {"which version it is": version_line} if not version else {}
    if lacking:
        lines = "\n".join(lacking.values())
        raise BadFileError(
            f"it does not say {' and '.join(lacking)}.",
            hint=f"Say it in a file {name}{sidecar.SUFFIX} beside it, for instance:\n{lines}",
        )
    return structs.replace(
        facts,
        package_name=package,
        title=_title(facts.title) or package,
        version=version,
        release=facts.release or version,
    )


def _title(text: str) -> str:
    """Return `text` as one printable line: a narrow space or a mark in a title is no reason to refuse a file."""
    return "".join(filter(str.isprintable, " ".join(text.split())))


@contextmanager
def told_of(name: str) -> Iterator[None]:
    """Turn whatever goes wrong within into a BadFileError that begins with the file's name; a UsageError stays."""
    try:
        yield
    except BadFileError as error:
        message = error.message if error.message.startswith(name) else f"{name}: {error.message}"
        raise BadFileError(message, hint=error.hint or DAMAGED_HINT, code=error.code) from error
    except LockstepError:
        raise
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise BadFileError(f"{name}: it cannot be read ({reason}).", hint="Check the path and its rights.") from error
    except MemoryError as error:
        raise BadFileError(
            f"{name}: reading it takes more memory than is allowed.", hint=DAMAGED_HINT, code=INSPECTION_FAILED
        ) from error
    except Exception as error:
        raise BadFileError(f"{name}: it is damaged ({type(error).__name__}).", hint=DAMAGED_HINT) from error


def check_facts(facts: InstallerFacts) -> InstallerFacts:
    """Return `facts`, or raise BadFileError where no message could carry them: a header may be sound and absurd."""
    for what, text, characters in (
        ("package name", facts.package_name, IDENTIFIER_CHARACTERS),
        ("version", facts.version, NAME_CHARACTERS),
        ("version", facts.release, NAME_CHARACTERS),
        ("version", facts.sortable_version, NAME_CHARACTERS),
        ("title", facts.title, TEXT_CHARACTERS),
        ("icon", facts.icon, TEXT_CHARACTERS),
    ):
        if len(text) > characters or not text.isprintable():
            raise BadFileError(
                f"its {what} {text[:60]!r} is no line of at most {characters} characters.",
                hint=f"Build it again with a shorter {what} of printable characters.",
            )
    if not facts.package_name or not facts.version or not _SIGNER.fullmatch(facts.signer_digest):
        raise BadFileError("it does not say what it is called, or which version it is.")
    try:
        encoded = msgspec.json.encode(facts)
        msgspec.json.decode(encoded, type=InstallerFacts)
    except msgspec.ValidationError as error:
        raise BadFileError(f"what it says fits no device: {str(error)[:200]}.") from error
    if len(encoded) > FACTS_BYTES:
        raise BadFileError(f"what it says takes {len(encoded)} bytes, and at most {FACTS_BYTES} are kept.")
    return facts


def _source(file: BinaryIO, name: str) -> Source:
    source = Source(file, name)
    if source.size == 0:
        raise BadFileError("it is empty.")
    if source.size > OBJECT_BYTES:
        raise BadFileError(
            f"it has {source.size} bytes, and at most {OBJECT_BYTES} are taken.", hint="Build a smaller installer."
        )
    return source
