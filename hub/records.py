"""The hub's nouns: frozen values that pass between the store, the catalogue and the session."""

from msgspec import Struct

from protocol.device import InstallerKind
from protocol.matching import Selector


class InstallerFacts(Struct, frozen=True, kw_only=True):
    """What an installer's own header says.

    `package_name` is the name the header gives (the default program id); `version` is as written in the header;
    `release` is the version people know the program by (a deb's upstream version, otherwise the same);
    `package_version_code` orders builds of one version name (an APK's versionCode) and is 0 where there is none;
    `signer_digest` is the SHA-256 of the first signing certificate in hex, empty when unsigned.
    """

    package_name: str
    title: str
    version: str
    release: str
    kind: InstallerKind
    selector: Selector
    package_version_code: int = 0
    signer_digest: str = ""
