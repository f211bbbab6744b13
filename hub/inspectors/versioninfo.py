"""The version resource of a Windows program: the numbers and texts that Explorer shows as its details.

Blocks within blocks, each with its length in bytes, a key in UTF-16, a value and more blocks, all on four-byte
boundaries. Four levels are read, and every block has to end within its parent. Source: "VS_VERSIONINFO",
"VS_FIXEDFILEINFO", "StringFileInfo", "StringTable" and "String" of Microsoft's documentation.
"""

import codecs
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from protocol.errors import BadFileError

TEXTS: Final = 256
TEXT_BYTES: Final = 4096

FourParts: TypeAlias = tuple[int, int, int, int]
NOUGHT: Final[FourParts] = (0, 0, 0, 0)

_HEAD = struct.Struct("<3H")  # bytes of the block, bytes (or words) of its value, is the value text
_FIXED = struct.Struct("<2I8H")  # signature, -, file version, product version: per two parts the second comes first
_FIXED_SIGNATURE: Final = 0xFEEF04BD
_CODEC: Final = codecs.lookup("utf-16-le")  # at once: a codec is a file, and later none can be opened


@dataclass(frozen=True, slots=True)
class VersionInfo:
    """What a version resource says; `texts` are by the key Microsoft gives them, such as "ProductName"."""

    product_version: FourParts = NOUGHT
    file_version: FourParts = NOUGHT
    texts: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Block:
    key: str
    value: int  # where it begins
    value_length: int
    end: int


def parse(resource: bytes) -> VersionInfo:
    """Return what a version resource says, of its texts those of the first language. Raises BadFileError."""
    root = _block(resource, 0, len(resource))
    product, file = _fixed(resource, root)
    for child in _blocks(resource, _aligned(root.value + root.value_length), root.end):
        if child.key == "StringFileInfo":
            tables = _blocks(resource, child.value, child.end)
            table = next(tables, None)
            return VersionInfo(product, file, _texts(resource, table) if table else {})
    return VersionInfo(product, file)


def _fixed(resource: bytes, root: _Block) -> tuple[FourParts, FourParts]:
    """Return product and file version as numbers."""
    if root.value_length < _FIXED.size or root.value + _FIXED.size > root.end:
        return NOUGHT, NOUGHT
    signature, _, b, a, d, c, f, e, h, g = _FIXED.unpack_from(resource, root.value)
    return ((e, f, g, h), (a, b, c, d)) if signature == _FIXED_SIGNATURE else (NOUGHT, NOUGHT)


def _texts(resource: bytes, table: _Block) -> dict[str, str]:
    """Return the texts of one language. A value ends at its NUL: tools disagree on what its length counts."""
    texts: dict[str, str] = {}
    for block in _blocks(resource, table.value, table.end):
        raw = resource[block.value : min(block.end, block.value + TEXT_BYTES)]
        texts.setdefault(block.key, _CODEC.decode(raw, "replace")[0].partition("\0")[0].strip())
    return texts


def _blocks(resource: bytes, at: int, end: int) -> Iterator[_Block]:
    for _ in range(TEXTS):
        if at + _HEAD.size > end or resource[at : at + 2] == b"\0\0":  # the rest is padding
            return
        block = _block(resource, at, end)
        yield block
        at = _aligned(block.end)
    raise BadFileError(f"its version resource has more than {TEXTS} texts.")


def _block(resource: bytes, at: int, limit: int) -> _Block:
    if at + _HEAD.size > limit:
        raise BadFileError("its version resource is cut off.")
    length, value_length, _ = _HEAD.unpack_from(resource, at)
    end = at + length
    if length < _HEAD.size or end > limit:
        raise BadFileError("its version resource is damaged.")
    key, nul, _ = _CODEC.decode(resource[at + _HEAD.size : end], "replace")[0].partition("\0")
    if not nul:
        raise BadFileError("its version resource is damaged.")
    return _Block(key, _aligned(at + _HEAD.size + len(_CODEC.encode(key)[0]) + 2), value_length, end)


def _aligned(at: int) -> int:
    return -(-at // 4) * 4
