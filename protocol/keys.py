"""Signing, verifying and the exact bytes that are signed.

Ed25519 (RFC 8032) identifies a hub and a device; X25519 (RFC 7748) is the key that data for a device is sealed to.
What is signed is a context string followed by its parts, each with its length in four bytes, big-endian, before it, so
that no two different lists of parts give the same bytes.
"""

import hashlib
import secrets
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from msgspec import Struct

from protocol import limits

CHALLENGE_CONTEXT: Final = b"lockstep.v1 challenge"
ENROL_CONTEXT: Final = b"lockstep.v1 enrol"
LOGIN_CONTEXT: Final = b"lockstep.v1 login"
POSTURE_CONTEXT: Final = b"lockstep.v1 posture"
AUDIT_CONTEXT: Final = b"lockstep audit head"


def new_nonce() -> bytes:
    """Return 32 fresh random bytes."""
    return secrets.token_bytes(limits.NONCE_BYTES)


class SigningKey(Struct, frozen=True):
    """An Ed25519 private key as its 32 seed bytes. Never sent, never logged."""

    seed: bytes

    @classmethod
    def generate(cls) -> "SigningKey":
        """Return a new random key."""
        return cls(Ed25519PrivateKey.generate().private_bytes_raw())

    @property
    def public(self) -> bytes:
        """The 32 bytes of the public key."""
        return Ed25519PrivateKey.from_private_bytes(self.seed).public_key().public_bytes_raw()

    def sign(self, data: bytes) -> bytes:
        """Return the 64-byte signature over `data`."""
        return Ed25519PrivateKey.from_private_bytes(self.seed).sign(data)

    def __repr__(self) -> str:
        return "SigningKey(...)"


class SealingKey(Struct, frozen=True):
    """An X25519 private key as its 32 bytes. Never sent, never logged."""

    seed: bytes

    @classmethod
    def generate(cls) -> "SealingKey":
        """Return a new random key."""
        return cls(X25519PrivateKey.generate().private_bytes_raw())

    @property
    def public(self) -> bytes:
        """The 32 bytes of the public key."""
        return X25519PrivateKey.from_private_bytes(self.seed).public_key().public_bytes_raw()

    def __repr__(self) -> str:
        return "SealingKey(...)"


def verifies(public_key: bytes, signature: bytes, data: bytes) -> bool:
    """Return whether `signature` over `data` is by the holder of the 32-byte `public_key`."""
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, data)
    except (InvalidSignature, ValueError):
        return False
    return True


def challenge_bytes(*, terminal_nonce: bytes, hub_nonce: bytes, hub_key: bytes) -> bytes:
    """What the hub signs: that it holds `hub_key`, for this pair of nonces only."""
    return _join(CHALLENGE_CONTEXT, terminal_nonce, hub_nonce, hub_key)


def enrol_bytes(
    *, terminal_nonce: bytes, hub_nonce: bytes, hub_key: bytes, account: str, sealing_key: bytes, host: str, port: int
) -> bytes:
    """What a device signs to enrol: both nonces, the hub and account it means, its sealing key, the name it dialled."""
    return _join(
        ENROL_CONTEXT,
        terminal_nonce,
        hub_nonce,
        hub_key,
        account.encode(),
        sealing_key,
        host.encode(),
        str(port).encode(),
    )


def login_bytes(
    *, terminal_nonce: bytes, hub_nonce: bytes, hub_key: bytes, terminal: str, host: str, port: int
) -> bytes:
    """What a terminal signs to log in: both nonces, the hub key it pinned, its id, the name and port it dialled."""
    return _join(
        LOGIN_CONTEXT, terminal_nonce, hub_nonce, hub_key, terminal.encode(), host.encode(), str(port).encode()
    )


def posture_bytes(*, hub_key: bytes, terminal: str, report: bytes) -> bytes:
    """What a terminal signs of its posture: the hub it is for, who it is, the report with the hub's nonce in it."""
    return _join(POSTURE_CONTEXT, hub_key, terminal.encode(), report)


def audit_head_bytes(*, sequence: int, digest: bytes, at: float) -> bytes:
    """What the hub signs of its audit log: the last row's number and hash, and when."""
    return _join(AUDIT_CONTEXT, str(sequence).encode(), digest, repr(at).encode())


def fingerprint(public_key: bytes) -> str:
    """Return how people compare a public key: "sha256:" and its SHA-256 in hex."""
    return f"sha256:{hashlib.sha256(public_key).hexdigest()}"


def _join(*parts: bytes) -> bytes:
    return b"".join(len(part).to_bytes(4, "big") + part for part in parts)
