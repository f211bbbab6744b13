"""Signers: of what cryptography, openssl and apksigner sign; the signer is the certificate they were given."""

import hashlib
import re
import shutil
from pathlib import Path
from typing import Final

import pytest
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, pkcs7
from hypothesis import given, settings
from hypothesis import strategies as st

from hub.inspectors import inspect, signer
from hub.inspectors.signer import pkcs7_signer_digest
from protocol.errors import BadFileError
from tests.hub.inspectors.identities import Identity, identity
from tests.hub.inspectors.reading import DEMO, run

APK: Final = DEMO / "hello-lockstep-1.0.0.apk"

needs_apksigner = pytest.mark.skipif(
    not (shutil.which("apksigner") and shutil.which("keytool")), reason="apksigner and keytool are not installed"
)
needs_openssl = pytest.mark.skipif(not shutil.which("openssl"), reason="openssl is not installed")


ROOT: Final = identity("A root")
LEAF: Final = identity("A signer", ROOT)
SIBLING: Final = identity("Another of the same root", ROOT)


def signed(*chain: Identity, options: tuple[pkcs7.PKCS7Options, ...] = ()) -> bytes:
    """Return a message LEAF signed, with the certificates of `chain` in it too."""
    builder = pkcs7.PKCS7SignatureBuilder().set_data(b"content").add_signer(LEAF.certificate, LEAF.key, SHA256())
    for one in chain:
        builder = builder.add_certificate(one.certificate)
    return builder.sign(Encoding.DER, [pkcs7.PKCS7Options.Binary, *options])


SIGNED: Final = signed(ROOT)


def reordered(message: bytes, first: Identity) -> bytes:
    """Return `message` with the certificate of `first` before the others; all lengths stay what they were."""
    certificates = [one.public_bytes(Encoding.DER) for one in pkcs7.load_der_pkcs7_certificates(message)]
    whole = b"".join(certificates)
    assert message.count(whole) == 1
    own = first.certificate.public_bytes(Encoding.DER)
    return message.replace(whole, own + b"".join(one for one in certificates if one != own))


# --- PKCS#7 ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("first", [ROOT, LEAF, SIBLING], ids=["root", "signer", "sibling"])
def test_the_signer_is_found_wherever_in_the_chain_its_certificate_lies(first: Identity) -> None:
    message = reordered(signed(ROOT, SIBLING), first)
    places = {message.index(one.certificate.public_bytes(Encoding.DER)): one for one in (ROOT, LEAF, SIBLING)}
    assert places[min(places)] == first
    assert pkcs7_signer_digest(message) == LEAF.digest


def test_of_two_signers_the_first_counts() -> None:
    both = pkcs7.PKCS7SignatureBuilder().set_data(b"content")
    for one in (SIBLING, LEAF):
        both = both.add_signer(one.certificate, one.key, SHA256())
    message = both.sign(Encoding.DER, [pkcs7.PKCS7Options.Binary])
    infos = message[message.rindex(SIBLING.certificate.public_bytes(Encoding.DER)) :]
    numbers = {one.digest: one.certificate.serial_number for one in (SIBLING, LEAF)}
    serials = {name: infos.rfind(number.to_bytes(-(-number.bit_length() // 8))) for name, number in numbers.items()}
    assert pkcs7_signer_digest(message) == min(serials, key=lambda digest: serials[digest])


def test_certificates_that_nobody_signed_with_give_no_signer() -> None:
    assert pkcs7_signer_digest(pkcs7.serialize_certificates([LEAF.certificate], Encoding.DER)) == ""


def test_a_message_without_its_signers_certificate_gives_no_signer() -> None:
    assert pkcs7_signer_digest(signed(options=(pkcs7.PKCS7Options.NoCerts,))) == ""


@needs_openssl
@pytest.mark.parametrize(("how", "digest"), [([], LEAF.digest), (["-keyid"], "")], ids=["serial", "key"])
def test_what_openssl_signs_gives_the_signer_unless_it_is_named_by_its_key(
    how: list[str], digest: str, tmp_path: Path
) -> None:
    certificate, key = LEAF.save(tmp_path)
    (tmp_path / "content").write_bytes(b"content")
    run(
        "openssl", "cms", "-sign", "-binary", "-in", tmp_path / "content", "-signer", certificate, "-inkey", key,
        "-outform", "DER", "-out", tmp_path / "message", *how,
    )  # fmt: skip
    assert pkcs7_signer_digest((tmp_path / "message").read_bytes()) == digest


def test_bytes_behind_the_message_are_ignored_as_windows_pads_it() -> None:
    assert pkcs7_signer_digest(signed(ROOT) + bytes(7)) == LEAF.digest


def test_a_message_cut_off_anywhere_is_refused() -> None:
    message = signed(ROOT)
    for length in range(len(message)):
        with pytest.raises(BadFileError, match="signature"):
            pkcs7_signer_digest(message[:length])


def test_a_length_without_an_end_is_refused() -> None:
    with pytest.raises(BadFileError, match="length"):
        pkcs7_signer_digest(b"\x30\x80" + signed(ROOT)[4:] + bytes(2))


def test_more_elements_in_one_place_than_the_limit_are_refused() -> None:
    def wrapped(tag: int, content: bytes) -> bytes:
        return bytes((tag, 0x82)) + len(content).to_bytes(2) + content

    def message(elements: int) -> bytes:
        return wrapped(0x30, wrapped(0xA0, wrapped(0x30, b"\x05\0" * elements)))

    assert pkcs7_signer_digest(message(signer.SIGNATURE_ELEMENTS - 1)) == ""
    with pytest.raises(BadFileError, match=str(signer.SIGNATURE_ELEMENTS)):
        pkcs7_signer_digest(message(signer.SIGNATURE_ELEMENTS))


@settings(max_examples=200, deadline=None)
@given(changes=st.lists(st.tuples(st.integers(0, 1 << 12), st.integers(0, 255)), min_size=1, max_size=6))
def test_whatever_bytes_of_a_message_are_changed_it_is_a_digest_none_or_a_refusal(
    changes: list[tuple[int, int]],
) -> None:
    message = bytearray(SIGNED)
    for at, value in changes:
        message[at % len(message)] = value
    try:
        digest = pkcs7_signer_digest(bytes(message))
    except BadFileError:
        return
    assert re.fullmatch("(?:[0-9a-f]{64})?", digest)


# --- APKs -----------------------------------------------------------------------------------------------------------
@needs_apksigner
def test_apksigner_names_the_same_certificate() -> None:
    assert f"SHA-256 digest: {inspect(APK).signer_digest}" in run("apksigner", "verify", "--print-certs", APK)


@needs_apksigner
@pytest.mark.parametrize("scheme", ["v1", "v2", "v3"])
def test_the_signer_is_read_from_every_signature_scheme(scheme: str, tmp_path: Path) -> None:
    certificate, _ = LEAF.save(tmp_path)
    private, out = tmp_path / "key.der", tmp_path / "signed.apk"
    private.write_bytes(LEAF.key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()))
    enabled = [f"--{each}-signing-enabled={str(each == scheme).lower()}" for each in ("v1", "v2", "v3")]
    run(
        "apksigner", "sign", "--key", private, "--cert", certificate, "--min-sdk-version", "23", *enabled,
        "--v4-signing-enabled=false", "--out", out, APK,
    )  # fmt: skip
    assert inspect(out).signer_digest == hashlib.sha256(LEAF.certificate.public_bytes(Encoding.DER)).hexdigest()
