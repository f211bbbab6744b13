"""The signing certificate of an APK: read, NOT verified.

The digest says which certificate the file *claims*; a device checks the signature itself when it installs. It serves to
forecast "another signer than the installed one", never to trust a file. Only the first signer is read, and of a v1
signature the first certificate listed, which the usual tools make the signer's.

Sources: "APK Signature Scheme v2" and "v3" of the Android Open Source Project; RFC 5652 section 5.1 (SignedData).
"""

import hashlib
import re
import struct
from typing import Final

from hub.inspectors.zips import Archive
from protocol.errors import BadFileError
from protocol.limits import MIB

SIGNING_BLOCK_BYTES: Final = 4 * MIB
SIGNATURE_FILE_BYTES: Final = 1 * MIB

_MAGIC: Final = b"APK Sig Block 42"
_FOOTER = struct.Struct("<Q16s")  # size of the block without its first field, magic
_PAIR = struct.Struct("<QI")  # size of what follows the first field, id
_SCHEMES: Final = (0xF05368C0, 0x7109871A)  # v3 before v2; a v3.1 block never comes without a v3 one
_SIGNATURE_FILE = re.compile(r"META-INF/[^/]{1,200}\.(?:RSA|DSA|EC)", re.IGNORECASE)
_CONTEXT_0: Final = 0xA0


def signer_digest(archive: Archive) -> str:
    """Return the SHA-256 in hex of the first signer's certificate, "" for an unsigned file. Raises BadFileError."""
    try:
        certificate = _from_block(archive) or _from_signature_file(archive)
    except (struct.error, IndexError) as error:
        raise BadFileError("its signature is damaged.") from error
    return hashlib.sha256(certificate).hexdigest() if certificate else ""


def _from_block(archive: Archive) -> bytes:
    """Find the signing block, which lies directly before the central directory."""
    footer_at = archive.directory_offset - _FOOTER.size
    if footer_at < 0:
        return b""
    archive.file.seek(footer_at)
    size, magic = _FOOTER.unpack(archive.file.read(_FOOTER.size))
    if magic != _MAGIC:
        return b""
    if not _FOOTER.size <= size <= min(SIGNING_BLOCK_BYTES, archive.directory_offset):
        raise BadFileError(f"its signing block claims {size} bytes.")
    archive.file.seek(archive.directory_offset - size)
    schemes = _pairs(archive.file.read(size - _FOOTER.size))
    return next((_certificate(schemes[scheme]) for scheme in _SCHEMES if scheme in schemes), b"")


def _pairs(block: bytes) -> dict[int, bytes]:
    pairs, at = {}, 0
    while at < len(block):
        size, scheme = _PAIR.unpack_from(block, at)
        if not 4 <= size <= len(block) - at - 8:
            raise BadFileError("its signing block is damaged.")
        pairs[scheme] = block[at + _PAIR.size : at + 8 + size]
        at += 8 + size
    return pairs


def _certificate(value: bytes) -> bytes:
    """Signers -> first signer -> signed data -> (digests, certificates) -> first certificate."""
    signed_data, _ = _prefixed(_prefixed(_prefixed(value, 0)[0], 0)[0], 0)
    _, after_digests = _prefixed(signed_data, 0)
    certificates, _ = _prefixed(signed_data, after_digests)
    return _prefixed(certificates, 0)[0]


def _prefixed(data: bytes, at: int) -> tuple[bytes, int]:
    """Return the bytes after the four-byte length at `at`, and where they end."""
    (length,) = struct.unpack_from("<I", data, at)
    end = at + 4 + length
    if end > len(data):
        raise BadFileError("its signing block is damaged.")
    return data[at + 4 : end], end


def _from_signature_file(archive: Archive) -> bytes:
    names = sorted(name for name in archive.members if _SIGNATURE_FILE.fullmatch(name))
    return _first_certificate(archive.read(names[0], SIGNATURE_FILE_BYTES)) if names else b""


def _first_certificate(message: bytes) -> bytes:
    """ContentInfo -> [0] -> SignedData -> the [0] after version, digest algorithms and content -> first element."""
    content_info = _body(message, 0)[1]
    signed_data = _body(_body(content_info, _body(content_info, 0)[2])[1], 0)[1]
    at = 0
    while at < len(signed_data):
        tag, body, end = _body(signed_data, at)
        if tag == _CONTEXT_0:
            return body[: _body(body, 0)[2]]
        at = end
    return b""


def _body(data: bytes, at: int) -> tuple[int, bytes, int]:
    """Return tag, body and end of the DER element at `at`."""
    tag, length, start = data[at], data[at + 1], at + 2
    if length & 0x80:
        width = length & 0x7F
        length, start = int.from_bytes(data[start : start + width], "big"), start + width
    if start + length > len(data):
        raise BadFileError("its signature file is damaged.")
    return tag, data[start : start + length], start + length
