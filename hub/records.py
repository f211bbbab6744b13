"""The hub's nouns: frozen values that pass between the store, the catalogue and the session."""

import re
import secrets
from typing import Final, Literal, TypeAlias, get_args

from msgspec import Struct

from hub.matching import Selector
from protocol.device import DeviceInfo, InstallerKind
from protocol.messages import InstallerOffer, Standing, SyncDone, TargetRow

Right: TypeAlias = Literal["approve", "initiate", "publish", "receive"]
RIGHTS: Final[tuple[str, ...]] = get_args(Right)  # in the order in which they are kept
_IDENTIFIER_ALPHABET: Final = "23456789abcdefghjkmnpqrstuvwxyz"  # nothing that looks like something else
IDENTIFIER: Final = re.compile(f"[a-z]-[{_IDENTIFIER_ALPHABET}]{{10}}")


class InstallerFacts(Struct, frozen=True, kw_only=True):
    """What an installer's own header says.

    `package_name` is the name the header gives (the default program id), for Windows made of the product's name, and
    `version` is as written in the header; readers leave empty what the header does not say, and the sidecar adds it;
    `release` is the version people know the program by (a deb's upstream version, otherwise the same);
    `package_version_code` orders builds of one version name (an APK's versionCode) and is 0 where there is none;
    `sortable_version` is what the order of its kind compares (`hub/versions.py`), empty where that is `version`;
    `api_level_target` is the API level an APK was built against; `signer_digest` is the SHA-256 of the first signing
    certificate in hex, of an RPM the fingerprint or id of its OpenPGP key, empty when unsigned; `icon` is the name of
    the icon's file in the installer, empty when there is none or it costs too much to find.
    """

    package_name: str
    title: str
    version: str
    release: str
    kind: InstallerKind
    selector: Selector
    api_level_target: int | None = None
    package_version_code: int = 0
    signer_digest: str = ""
    sortable_version: str = ""
    icon: str = ""


class Terminal(Struct, frozen=True, kw_only=True):
    """One device of an account as the hub knows it.

    `connection` counts its logins, and `receives` says whether this one is there to receive; times are Unix seconds.
    One that is revoked, or whose account is disabled, is known still and logs in no more.
    """

    terminal_id: str
    account_id: str
    account_name: str
    name: str
    device_key: bytes
    device: DeviceInfo
    address: str
    connection: int
    last_seen_at: float
    receives: bool = False
    tags: tuple[str, ...] = ()
    is_revoked: bool = False
    is_disabled: bool = False
    cloned_at: float = 0.0
    posture_findings: int = 0


class RulesObject(Struct, frozen=True, kw_only=True):
    """The rule set that terminals scan with: an object in the object folder, by its digest."""

    digest: bytes


# To a terminal that is to leave: the code, what it means, and what to do.
ENDED: Final[dict[str, tuple[str, str]]] = {
    "revoked": (
        "This device was removed from its account.",
        "If that was not meant, log in anew with `lockstep-terminal login --replace`.",
    ),
    "account-disabled": ("This account is disabled.", "Its devices come back once the hub's owner has enabled it."),
}


class StandingFound(Struct, frozen=True, kw_only=True):
    """What a terminal may do now. `ended` is "revoked" or "account-disabled" for one that is to leave, else empty.

    `scan` is the rule set to ask for a report with, or None while its last one will do.
    """

    standing: Standing
    rights: frozenset[str] = frozenset()
    ended: str = ""
    scan: RulesObject | None = None


class StoredObject(Struct, frozen=True, kw_only=True):
    """An object in the hub's object folder; sizes in bytes."""

    digest: bytes
    size: int
    stored_size: int
    chunks: int


class Published(Struct, frozen=True, kw_only=True):
    """An installer in the catalogue; `fits` is for people.

    `new` is False unless this publish has brought it, `corrected` unless this one has changed what is known of it.

    Of a release that is `yanked` and a program that is `retired` nothing is chosen, and nothing whose `verdict` is
    other than "clean" (`finding` says why).
    """

    program: str
    title: str
    version: str
    kind: InstallerKind
    file_name: str
    size: int
    stored_size: int
    digest: str
    fits: str
    facts: InstallerFacts
    channel: str = "stable"
    yanked: bool = False
    retired: bool = False
    new: bool = False
    corrected: bool = False
    verdict: str = "clean"
    finding: str = ""


class Alias(Struct, frozen=True, kw_only=True):
    """The name by which an operating system knows a program."""

    os: str
    package: str


class Release(Struct, frozen=True, kw_only=True):
    """One version of a program, and its installers."""

    version: str
    channel: str
    yanked: bool
    installers: tuple[Published, ...]


class Program(Struct, frozen=True, kw_only=True):
    """A program with all its releases, newest first."""

    program: str
    title: str
    retired: bool
    aliases: tuple[Alias, ...]
    releases: tuple[Release, ...]


class Owed(Struct, frozen=True, kw_only=True):
    """A delivery claimed for a terminal: what it is owed, ready to be offered."""

    delivery: str
    sync: str
    initiator: str
    digest: bytes
    installer: InstallerOffer
    row: TargetRow
    initiator_name: str = ""
    attempt: int = 1


class Changes(Struct, frozen=True):
    """What changed for an initiator: rows by sync, ended syncs not noted yet, up to which revision, is there more."""

    targets: dict[str, list[TargetRow]]
    ended: tuple[SyncDone, ...]
    revision: int
    more: bool = False


def new_id(prefix: str) -> str:
    """Return a fresh identifier such as "t-4k7m2q9x3d": ten characters of 5 random bits each, easy to read aloud."""
    return f"{prefix}-" + "".join(secrets.choice(_IDENTIFIER_ALPHABET) for _ in range(10))
