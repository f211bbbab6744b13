"""Windows programs (.exe): the headers of a PE file and its version resource -> facts.

The headers say architecture and system, the version resource what people see of a program. The program id is made of
the product's name (see `products`); without one it is empty, for the name of a file is no fact about it, and so is the
version of a program that gives none: a person has to say them. Of three version numbers in the headers only the
subsystem's restricts anything: the loader refuses a program whose subsystem is newer than Windows itself, whereas
linkers fill the system's version with what they like.

What lies behind the last section is a setup's own affair; of a setup made by NSIS it has to be there whole.

Sources: "PE Format" and "/SUBSYSTEM (Specify Subsystem)" of Microsoft's documentation; ECMA-335 II.25.3.3 and
`corhdr.h` for what a .NET program runs on; `Source/exehead/fileform.h` of NSIS. The signer's digest is read, not
verified (see `signer`).
"""

import struct
from pathlib import PurePath
from typing import Final

from hub.inspectors import products, versioninfo
from hub.inspectors.portable import RUNTIME, Program
from hub.inspectors.signer import pkcs7_signer_digest
from hub.inspectors.source import Source
from hub.inspectors.versioninfo import NOUGHT, VersionInfo
from hub.matching import Selector
from hub.records import InstallerFacts
from protocol.device import Architecture
from protocol.errors import BadFileError

SIGNATURE: Final = b"MZ"

MACHINES: Final[dict[int, Architecture]] = {0x14C: "x86", 0x1C4: "armv7", 0x8664: "x86_64", 0xAA64: "arm64"}
WINDOW_PROGRAM: Final = 2
CONSOLE_PROGRAM: Final = 3
OTHER_SUBSYSTEMS: Final[dict[int, str]] = {
    1: "a driver or another part of Windows itself",
    7: "a program for the POSIX subsystem",
    9: "a program for Windows CE",
    10: "an EFI program, which runs before any system",
    11: "an EFI driver",
    12: "an EFI driver",
    13: "an EFI ROM",
    14: "a program for the Xbox",
    16: "a part of the Windows boot loader",
}
# Every Windows since 1996 is newer, so an older subsystem asks for nothing.
FIRST_SUBSYSTEM: Final = (4, 0)

_VERSION_RESOURCE: Final = 16
_EXECUTABLE, _SYSTEM_FILE, _LIBRARY = 0x0002, 0x1000, 0x2000
_RUNTIME_HEADER = struct.Struct("<16xI")  # flags
_SETUP_HEADER = struct.Struct("<4x16s4xI")  # signature, bytes from here to the end of its data
_SETUP_SIGNATURE: Final = b"\xef\xbe\xad\xdeNullsoftInst"
_SETUP_BLOCK_BYTES: Final = 512
_ONLY_INTERMEDIATE, _REQUIRES_32_BIT, _PREFERS_32_BIT = 0x1, 0x2, 0x20000


def recognises(source: Source) -> bool:
    """Whether the file begins as programs for DOS and Windows do."""
    return source.start.startswith(SIGNATURE)


def read_facts(source: Source) -> InstallerFacts:
    """Return what the headers and the version resource of a Windows program say.

    `version` and `release` are the product version in its maker's words, `sortable_version` its four numbers. Raises
    BadFileError for a damaged or cut off file, a library, a driver, and a program for anything but Windows.
    """
    program = Program.open(source.file, source.size)
    _require_program(program)
    _require_whole_setup(program)
    resource = program.resource(_VERSION_RESOURCE)
    info = versioninfo.parse(resource) if resource else VersionInfo()
    name = products.title(info.texts.get("ProductName", ""))
    version, sortable = _versions(info)
    signature = program.signature()
    return InstallerFacts(
        package_name=products.program_id(name),
        title=products.title(name, info.texts.get("FileDescription", ""), PurePath(source.name).stem),
        version=version,
        release=version,
        kind="exe",
        selector=_selector(program),
        signer_digest=pkcs7_signer_digest(signature) if signature else "",
        sortable_version=sortable,
    )


def _require_program(program: Program) -> None:
    """Refuse what is a PE file and yet nothing that can be started."""
    what = OTHER_SUBSYSTEMS.get(program.subsystem, f"a program for the unknown subsystem {program.subsystem}")
    if program.subsystem in (WINDOW_PROGRAM, CONSOLE_PROGRAM):
        what = ""
    if program.flags & _SYSTEM_FILE:
        what = "a driver"
    elif program.flags & _LIBRARY and program.subsystem in (WINDOW_PROGRAM, CONSOLE_PROGRAM):
        what = "a library (DLL)"
    if not what and not program.flags & _EXECUTABLE:
        what = "a program its linker could not finish"
    if what:
        raise BadFileError(
            f"it is {what}, not a program that installs or runs.",
            hint="Publish the program or the setup it belongs to.",
        )


def _require_whole_setup(program: Program) -> None:
    """Refuse a setup made by NSIS whose data, in the first block behind the program, is cut off."""
    start = -(-program.end // _SETUP_BLOCK_BYTES) * _SETUP_BLOCK_BYTES
    program.file.seek(start)
    header = program.file.read(_SETUP_HEADER.size)
    if len(header) == _SETUP_HEADER.size:
        signature, length = _SETUP_HEADER.unpack(header)
        if signature == _SETUP_SIGNATURE and start + length > program.size:
            raise BadFileError(f"it is cut off: it should have {start + length} bytes and has {program.size}.")


def _selector(program: Program) -> Selector:
    wanted = program.subsystem_version
    return Selector(
        os_types=("windows",),
        os_version_minimum=".".join(map(str, wanted)) if wanted > FIRST_SUBSYSTEM else "",
        architectures=_architectures(program),
    )


def _architectures(program: Program) -> tuple[Architecture, ...]:
    if _runs_anywhere(program):
        return ()
    if program.machine not in MACHINES:
        raise BadFileError(
            f"it is built for the machine 0x{program.machine:x}, which Lockstep does not know.",
            hint=f"Known are: {', '.join(sorted(MACHINES.values()))}.",
        )
    return (MACHINES[program.machine],)


def _runs_anywhere(program: Program) -> bool:
    """Whether it is a .NET program of intermediate code only ("Any CPU"): it says x86 and runs on every machine."""
    address, length = program.directory(RUNTIME)
    if not length or program.is_wide:
        return False
    (flags,) = _RUNTIME_HEADER.unpack(program.read(address, _RUNTIME_HEADER.size))
    only_32_bit = flags & (_REQUIRES_32_BIT | _PREFERS_32_BIT) == _REQUIRES_32_BIT
    return bool(flags & _ONLY_INTERMEDIATE) and not only_32_bit


def _versions(info: VersionInfo) -> tuple[str, str]:
    """Return the version for people and the one that sorts, "" for what the program does not say."""
    numbers = info.product_version if info.product_version != NOUGHT else info.file_version
    sortable = ".".join(map(str, numbers)) if numbers != NOUGHT else ""
    texts = (products.version(info.texts.get(key, "")) for key in ("ProductVersion", "FileVersion"))
    return next((text for text in texts if text), sortable), sortable
