"""The signing certificate of an installer: read, NOT verified.

The digest says which certificate the file *claims*; a device checks the signature itself when it installs. It serves to
forecast "another signer than the installed one", never to trust a file. Only the first signer is read. Two kinds of
signature are known here: the signing block of an APK, and PKCS#7 as APKs of old, Windows programs, Windows Installer
packages and Windows app packages carry it.

Sources: "APK Signature Scheme v2" and "v3" of the Android Open Source Project; RFC 5652 section 5 (SignedData);
RFC 5280 section 4.1 (Certificate); X.690 section 8.1 (tags and lengths).
"""

import hashlib
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from hub.inspectors.zips import Archive
from protocol.errors import BadFileError
from protocol.limits import MIB

SIGNING_BLOCK_BYTES: Final = 4 * MIB
SIGNATURE_FILE_BYTES: Final = 1 * MIB
SIGNATURE_ELEMENTS: Final = 64  # in one place of a PKCS#7 signature; chains have five certificates at most

_MAGIC: Final = b"APK Sig Block 42"
_FOOTER = struct.Struct("<Q16s")  # size of the block without its first field, magic
_PAIR = struct.Struct("<QI")  # size of what follows the first field, id
_SCHEMES: Final = (0xF05368C0, 0x7109871A)  # v3 before v2; a v3.1 block never comes without a v3 one
_SIGNATURE_FILE = re.compile(r"META-INF/[^/]{1,200}\.(?:RSA|DSA|EC)", re.IGNORECASE)
_INTEGER: Final = 0x02
_SEQUENCE: Final = 0x30
_SET: Final = 0x31
_CONTEXT_0: Final = 0xA0


def signer_digest(archive: Archive) -> str:
    """Return the SHA-256 in hex of the first signer's certificate, "" for an unsigned file. Raises BadFileError."""
    try:
        certificate = _from_block(archive)
    except struct.error as error:
        raise BadFileError("its signature is damaged.") from error
    if certificate:
        return hashlib.sha256(certificate).hexdigest()
    return _from_signature_file(archive)


def pkcs7_signer_digest(data: bytes) -> str:
    """Return the SHA-256 in hex of the certificate of the first signer of a PKCS#7 SignedData in DER.

    The certificates may lie there in any order, so the signer's is found by issuer and serial number. "" when nobody
    signed, when the signer's certificate is not among them, and when the signer is named by a key identifier, which
    neither `jarsigner` nor Authenticode do. Bytes after the message are ignored, since Windows pads it. Raises
    BadFileError for bytes that are no such message.
    """
    message = _children(data, _element(data, 0, len(data)))
    signed_data = next(_children(data, _of_tag(message, _CONTEXT_0)), None)
    parts = list(_children(data, signed_data)) if signed_data else []
    wanted = next((_signer(data, part) for part in parts[3:] if part.tag == _SET), None)
    certificates = next((part for part in parts if part.tag == _CONTEXT_0), None)
    if not wanted or not certificates:
        return ""
    for certificate in _children(data, certificates):
        if certificate.tag == _SEQUENCE and _issuer_and_serial(data, certificate) == wanted:
            return hashlib.sha256(data[certificate.start : certificate.end]).hexdigest()
    return ""


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


def _from_signature_file(archive: Archive) -> str:
    names = sorted(name for name in archive.members if _SIGNATURE_FILE.fullmatch(name))
    return pkcs7_signer_digest(archive.read(names[0], SIGNATURE_FILE_BYTES)) if names else ""


# --- PKCS#7 ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Element:
    """One DER element by its places in the data: where its tag stands, where its content begins, where it ends."""

    tag: int
    start: int
    content: int
    end: int


def _signer(data: bytes, signer_infos: _Element) -> tuple[bytes, bytes] | None:
    """Return issuer and serial number of the first SignerInfo: (version, IssuerAndSerialNumber or [0] key, ...)."""
    first = next(_children(data, signer_infos), None)
    name = list(_children(data, first))[1:2] if first else []
    if not name or name[0].tag != _SEQUENCE:
        return None
    issuer, serial = _of_tag(_children(data, name[0]), _SEQUENCE), _of_tag(_children(data, name[0]), _INTEGER)
    return data[issuer.start : issuer.end], data[serial.start : serial.end]


def _issuer_and_serial(data: bytes, certificate: _Element) -> tuple[bytes, bytes]:
    """Certificate -> TBSCertificate: ([0] version, serial number, signature algorithm, issuer, ...)."""
    fields = list(_children(data, _of_tag(_children(data, certificate), _SEQUENCE)))
    serial = _of_tag(iter(fields), _INTEGER)
    issuer = [field for field in fields if field.tag == _SEQUENCE][1:2]
    if not issuer:
        raise BadFileError("its signature is damaged: a certificate has no issuer.")
    return data[issuer[0].start : issuer[0].end], data[serial.start : serial.end]


def _of_tag(elements: Iterator[_Element], tag: int) -> _Element:
    found = next((element for element in elements if element.tag == tag), None)
    if found is None:
        raise BadFileError("its signature is damaged: a part is missing.")
    return found


def _children(data: bytes, parent: _Element) -> Iterator[_Element]:
    at = parent.content
    for _ in range(SIGNATURE_ELEMENTS):
        if at == parent.end:
            return
        child = _element(data, at, parent.end)
        yield child
        at = child.end
    raise BadFileError(f"its signature lists more than {SIGNATURE_ELEMENTS} things in one place.")


def _element(data: bytes, at: int, limit: int) -> _Element:
    """Return the element at `at`, which has to end by `limit`. DER has definite lengths only."""
    header = data[at : min(at + 6, limit)]
    if len(header) < 2:
        raise BadFileError("its signature is cut off.")
    length, content = header[1], at + 2
    if length >= 0x80:
        width = length - 0x80
        if not 1 <= width <= min(4, len(header) - 2):
            raise BadFileError("its signature is damaged: a length makes no sense.")
        length, content = int.from_bytes(header[2 : 2 + width], "big"), content + width
    if content + length > limit:
        raise BadFileError("its signature is cut off.")
    return _Element(header[0], at, content, content + length)
