"""Looking into a deb before dpkg touches it: what it would run, and where it would write.

A private root must stay private. dpkg follows symbolic links of the paths it unpacks to, so a package that ships the
link `opt/x -> /etc` and then `opt/x/passwd` would write to the host. And what lies in dpkg's own database is run by
dpkg later. Both are refused here, before the first byte is unpacked.

The archives are read as dpkg reads them: ustar headers with the GNU extensions for long names, no pax (tar.c of dpkg);
each header is 512 bytes, so memory stays bounded whatever the file claims. dpkg-deb does the decompressing. Where a
reader might understand a header in another way than dpkg does, the check could be led past; see `_header`.
"""

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from email.parser import HeaderParser
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Final

from protocol.errors import BadFileError, RefusedError

BLOCK_BYTES: Final = 512
LONG_NAME_BYTES: Final = 4 * 1024
CONTROL_FILE_BYTES: Final = 1024 * 1024
MEMBERS: Final = 200_000
SKIP_BYTES: Final = 1024 * 1024
MAINTAINER_SCRIPTS: Final = frozenset({"preinst", "postinst", "prerm", "postrm", "config"})
ORDINARY_TYPES: Final = frozenset(
    {tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.DIRTYPE}
)


@dataclass(frozen=True, slots=True)
class ControlFacts:
    """What the control archive says: maintainer scripts, whether it depends on anything, its configuration files."""

    scripts: tuple[str, ...]
    depends: str
    configuration_files: tuple[str, ...]


def read_control(stream: BinaryIO) -> ControlFacts:
    """Read a control archive (uncompressed tar). Raises BadFileError when it is not one."""
    scripts: set[str] = set()
    texts: dict[str, str] = {}
    for member in members(stream):
        name = str(PurePosixPath(member.name))
        if name in MAINTAINER_SCRIPTS:
            scripts.add(name)
        if name in ("control", "conffiles"):
            texts[name] = _read(stream, member.size, CONTROL_FILE_BYTES).decode(errors="replace")
            _skip(stream, -member.size % BLOCK_BYTES)
        else:
            _skip_contents(stream, member)
    control = HeaderParser().parsestr(texts.get("control", ""))
    depends = ", ".join(filter(None, (control.get("Pre-Depends"), control.get("Depends"))))
    lines = (line.strip().removeprefix("remove-on-upgrade ") for line in texts.get("conffiles", "").splitlines())
    return ControlFacts(tuple(sorted(scripts)), depends, tuple(filter(None, lines)))


def check_paths(stream: BinaryIO, root: Path, free_bytes: int, configuration_files: tuple[str, ...] = ()) -> None:
    """Read a file archive (uncompressed tar) and check that unpacking it into `root` stays inside.

    Of any other file only its folder counts, since dpkg replaces the file; but of configuration files it follows links.
    Raises RefusedError: `unsafe-path` for a path that leaves `root`, lies in dpkg's database or is a device, `no-space`
    when the files need more than `free_bytes`; BadFileError when the archive is damaged.
    """
    links: set[PurePosixPath] = set()
    parents = {inside(name) for name in configuration_files}
    needed_bytes = 0
    for member in members(stream):
        if member.type not in ORDINARY_TYPES:
            raise _unsafe(member.name, "is a device or another special file")
        path = inside(member.name)
        if member.type == tarfile.SYMTYPE:
            links.add(path)
        if member.type == tarfile.LNKTYPE:
            parents.add(inside(member.linkname).parent)
        parents.add(path.parent)
        needed_bytes += member.size
        _skip_contents(stream, member)
    _check_parents(parents, links, root)
    if needed_bytes > free_bytes:
        raise RefusedError(
            f"The package unpacks to {needed_bytes:,} bytes and {free_bytes:,} are free.",
            hint="Make space and try again.",
            code="no-space",
        )


def _check_parents(parents: set[PurePosixPath], links: set[PurePosixPath], root: Path) -> None:
    """Check that nothing in `parents` leads out of `root` or into dpkg's database, by its links or those there."""
    database = root / "var/lib/dpkg"
    for parent in parents:
        if links and not links.isdisjoint((parent, *parent.parents)):
            raise _unsafe(str(parent), "is a symbolic link of the same package")
        real = (root / parent).resolve()
        if not real.is_relative_to(root):
            raise _unsafe(str(parent), f"leads to {real}, outside the private root")
        if real.is_relative_to(database):
            raise _unsafe(str(parent), "belongs to dpkg itself")


def inside(name: str) -> PurePosixPath:
    """Return the path `name` relative to the root it is unpacked to; RefusedError `unsafe-path` if it climbs."""
    path = PurePosixPath(name.lstrip("/"))
    if ".." in path.parts or "\0" in name:
        raise _unsafe(name, "climbs out of its folder")
    return path


def members(stream: BinaryIO) -> Iterator[tarfile.TarInfo]:
    """Yield the header of each member; the caller consumes the contents and their padding before the next."""
    long_names: dict[bytes, str] = {}
    for _ in range(MEMBERS):
        block = _read(stream, BLOCK_BYTES, BLOCK_BYTES)
        if not block.strip(b"\0"):
            return
        member = _header(block)
        if member.type in (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK):
            text = _read(stream, member.size, LONG_NAME_BYTES).rstrip(b"\0")
            _skip(stream, -member.size % BLOCK_BYTES)
            long_names[member.type] = text.decode("utf-8", "surrogateescape")
            continue
        member.name = long_names.pop(tarfile.GNUTYPE_LONGNAME, member.name)
        member.linkname = long_names.pop(tarfile.GNUTYPE_LONGLINK, member.linkname)
        yield member
    raise BadFileError(f"The package holds more than {MEMBERS:,} files.", hint="Split it into several packages.")


def _header(block: bytes) -> tarfile.TarInfo:
    try:
        member = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (tarfile.TarError, ValueError) as error:
        raise _damaged(f"a header of its archive is not valid ({error})") from error
    if block[257:263] != b"ustar\0":
        # dpkg uses the prefix field of ustar headers alone; tarfile puts whatever lies there before any name.
        member.name = block[:100].partition(b"\0")[0].decode("utf-8", "surrogateescape")
    if member.size < 0:
        raise _damaged("a member has a negative size")
    return member


def _skip_contents(stream: BinaryIO, member: tarfile.TarInfo) -> None:
    if member.isreg():
        _skip(stream, member.size + -member.size % BLOCK_BYTES)


def _skip(stream: BinaryIO, count: int) -> None:
    while count:
        data = stream.read(min(count, SKIP_BYTES))
        if not data:
            raise _damaged("its archive ends too soon")
        count -= len(data)


def _read(stream: BinaryIO, count: int, largest: int) -> bytes:
    if count > largest:
        raise _damaged(f"a member has {count:,} bytes where at most {largest:,} are allowed")
    data = stream.read(count)
    if len(data) < count:
        raise _damaged("its archive ends too soon")
    return data


def _damaged(what: str) -> BadFileError:
    return BadFileError(f"The package is damaged: {what}.", hint="Build it again with dpkg-deb and publish that.")


def _unsafe(name: str, why: str) -> RefusedError:
    return RefusedError(
        f"The package wants to write to {name[:200]!r}, which {why}.",
        hint="Use an owner's command if this package must go into the system.",
        code="unsafe-path",
    )
