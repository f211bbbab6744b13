"""Frozen settings of a hub: defaults < file < environment < flags.

The file is TOML with the fields of `Settings` as keys; the environment uses LOCKSTEP_HUB_ and the field's name in
capitals. `docs/operations.md` lists every setting, and a test holds the two together.
"""

import difflib
import ipaddress
import os
import re
import shlex
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, cast

import msgspec
from msgspec import Meta, Struct, inspect

from hub.policy import Demand, Policy
from hub.proxies import TrustedProxies
from protocol import life, limits
from protocol.errors import UsageError
from protocol.quiet import quiet_hours

ENVIRONMENT_PREFIX: Final = "LOCKSTEP_HUB_"
DEFAULT_PORT: Final = 8765


class Settings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that can be set. Sizes are bytes, times seconds."""

    data: str = "lockstep-data"
    listen: str = f"127.0.0.1:{DEFAULT_PORT}"
    names: tuple[str, ...] = ()
    insecure_lan: bool = False
    tls_cert: str = ""
    tls_key: str = ""
    trusted_proxies: tuple[str, ...] = ()
    oidc_issuer: str = ""
    oidc_audience: str = ""
    oidc_jwks_url: str = ""
    oidc_create_accounts: bool = False
    oidc_name_claim: str = "preferred_username"
    disk_reserve_bytes: Annotated[int, Meta(ge=0)] = limits.GIB
    store_bytes: Annotated[int, Meta(ge=0)] = 100 * limits.GIB
    terminals_per_account: Annotated[int, Meta(ge=1, le=limits.TARGETS_PER_SYNC)] = 2_000
    sockets_before_login: Annotated[int, Meta(ge=1)] = 256
    delivery_seconds: Annotated[int, Meta(ge=1, le=int(life.DELIVERY_SECONDS) * 12)] = int(life.DELIVERY_SECONDS)
    quiet_hours: str = ""
    bytes_in_flight: Annotated[int, Meta(ge=limits.FRAME_BYTES)] = 64 * limits.MIB
    transfers_at_once: Annotated[int, Meta(ge=1)] = 1_000
    bandwidth_bytes_per_second: Annotated[int, Meta(ge=0)] = 0
    terminal_bandwidth_bytes_per_second: Annotated[int, Meta(ge=0)] = 0
    scan_yara: bool = True
    scan_rules: str = ""
    scan_clamd: str = ""
    scan_command: str = ""
    scan_seconds: Annotated[int, Meta(ge=1, le=600)] = 60
    scan_ignore: tuple[str, ...] = ()
    posture_targets: Demand = "off"
    posture_initiators: Demand = "off"
    posture_max_age_seconds: Annotated[int, Meta(ge=7_200)] = 604_800

    @property
    def data_folder(self) -> Path:
        """The folder that holds everything of this hub."""
        return Path(self.data)

    @property
    def address(self) -> tuple[str, int]:
        """Host and port to listen on. Raises UsageError."""
        return split_address(self.listen)

    @property
    def policy(self) -> Policy:
        """What is demanded of the terminals' postures."""
        return Policy(
            targets=self.posture_targets,
            initiators=self.posture_initiators,
            max_age_seconds=self.posture_max_age_seconds,
        )

    @property
    def encrypted(self) -> bool:
        """Whether the hub serves wss://."""
        return bool(self.tls_cert)


def split_address(text: str) -> tuple[str, int]:
    """Return ("HOST", PORT) of "HOST:PORT", "[IPV6]:PORT" or ":PORT" (every address). Raises UsageError."""
    host, separator, port = text.rpartition(":")
    if not separator or not port.isdecimal() or not 0 <= int(port) <= 65_535:
        raise UsageError(f"{text!r} is not HOST:PORT.", hint=f"For example 127.0.0.1:{DEFAULT_PORT}.")
    # ":PORT" means every address, as in other servers.
    return host.strip("[]") or "0.0.0.0", int(port)  # noqa: S104


def is_loopback(host: str) -> bool:
    """Return whether `host` never leaves this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


_IN_ADDRESS: Final = re.compile(r"(\b[a-z][a-z0-9+.-]*://)[^/\s]*@", re.IGNORECASE)
# In the environment the items of these are parted by commas.
_LISTS: Final = frozenset(name for name in Settings.__struct_fields__ if isinstance(getattr(Settings(), name), tuple))


def load_settings(file: Path | None, flags: Mapping[str, Any], environment: Mapping[str, str] = os.environ) -> Settings:
    """Merge the file, the environment and the flags that are not None. Raises UsageError naming what is wrong."""
    return load_with_sources(file, flags, environment)[0]


def load_with_sources(
    file: Path | None, flags: Mapping[str, Any], environment: Mapping[str, str] = os.environ
) -> tuple[Settings, dict[str, str]]:
    """Return the settings as `load_settings` does, and by name where each came from that is not the default."""
    merged = _read_file(file) if file else {}
    sources = dict.fromkeys(merged, str(file))
    for variable, text in environment.items():
        if variable.startswith(ENVIRONMENT_PREFIX) and text:
            name = variable.removeprefix(ENVIRONMENT_PREFIX).lower()
            merged[name] = text.split(",") if name in _LISTS else text
            sources[name] = variable
    given = {name: value for name, value in flags.items() if value not in (None, ())}
    merged.update(given)
    sources |= {name: "--" + name.removesuffix("s" if name in _LISTS else "").replace("_", "-") for name in given}
    _check_names(merged)
    try:
        settings = msgspec.convert(merged, Settings, strict=False)
    except msgspec.ValidationError as error:
        where = str(error).partition(" - at `$.")[2].rstrip("`")
        name = where.partition("[")[0]
        raise UsageError(f"The setting {name} is wrong: it is not {_wanted(name)}.") from None
    _check(settings)
    return settings, sources


def _wanted(name: str) -> str:
    """Return in words what a setting may be."""
    fields = cast(inspect.StructType, inspect.type_info(Settings)).fields
    kind = next(field.type for field in fields if field.name == name)
    match kind:
        case inspect.LiteralType(values=values):
            return " or ".join(sorted(str(value) for value in values))
        case inspect.BoolType():
            return "true or false"
        case inspect.IntType(ge=least, le=most):
            bounds = [f"{word} {bound}" for word, bound in (("from", least), ("to", most)) if bound is not None]
            return " ".join(["a whole number", *bounds])
        case inspect.VarTupleType():
            return 'a list of texts, such as ["a", "b"]'
        case _:
            return "a text, which is in quotes in the file"


def shown(value: Any) -> Any:
    """Return a setting's value as it may be shown: a user and a password in an address are left out."""
    if isinstance(value, tuple):
        return [shown(item) for item in value]
    return _IN_ADDRESS.sub(r"\1...@", value) if isinstance(value, str) else value


def _read_file(file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as stream:
            return tomllib.load(stream)
    except OSError as error:
        raise UsageError(f"The settings file {file} cannot be read: {error.strerror}.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"The settings file {file} is not valid TOML: {error}.") from None


def _check_names(merged: Mapping[str, Any]) -> None:
    fields = Settings.__struct_fields__
    for name in merged:
        if name not in fields:
            near = difflib.get_close_matches(name, fields, n=2)
            hint = f"Did you mean {' or '.join(near)}?" if near else f"Settings are: {', '.join(fields)}."
            raise UsageError(f"There is no setting {name!r}.", hint=hint)


def _check_scan(settings: Settings) -> None:
    port = settings.scan_clamd.rpartition(":")[2]
    is_address = port.isdecimal() and 0 < int(port) <= 65_535 and ":" in settings.scan_clamd
    if settings.scan_clamd and not settings.scan_clamd.startswith("unix:/") and not is_address:
        raise UsageError(
            f"The setting scan_clamd is wrong: {settings.scan_clamd!r} is no address.",
            hint="For example unix:/run/clamav/clamd.ctl or 127.0.0.1:3310.",
        )
    try:
        words = shlex.split(settings.scan_command)
    except ValueError:
        words = []
    if settings.scan_command and not words:
        raise UsageError(
            f"The setting scan_command is wrong: {settings.scan_command!r} is no command line.",
            hint='For example "/usr/local/bin/check {file}".',
        )
    if words and "/" in words[0] and not words[0].startswith("/"):  # it runs in another folder than the hub
        raise UsageError(
            f"The setting scan_command is wrong: {words[0]!r} is no absolute path.",
            hint="Give its whole path, or only a name that PATH has.",
        )


def _check_postures(settings: Settings) -> None:
    if not settings.policy.is_off and not settings.scan_yara:
        raise UsageError(
            "posture_targets and posture_initiators need scan_yara: terminals scan with the hub's YARA rules.",
            hint="Set scan_yara to true, or both to off.",
        )


def _check(settings: Settings) -> None:
    quiet_hours(settings.quiet_hours)
    _check_scan(settings)
    _check_postures(settings)
    proxies = TrustedProxies(settings.trusted_proxies)
    host, _ = settings.address
    if bool(settings.oidc_issuer) != bool(settings.oidc_audience):
        raise UsageError(
            "An identity provider needs both oidc_issuer and oidc_audience.",
            hint="The audience is what its tokens name this hub by: without it, a token for anything else would do.",
        )
    if bool(settings.tls_cert) != bool(settings.tls_key):
        raise UsageError("TLS needs both a certificate and a key.", hint="Give --tls-cert and --tls-key.")
    if not (settings.encrypted or settings.insecure_lan or is_loopback(host) or proxies):
        raise UsageError(
            f"Listening on {host} without TLS would send passwords and programs unencrypted.",
            hint="Give --tls-cert and --tls-key, set trusted_proxies behind a proxy that has them, or say "
            "--insecure-lan where the network is yours.",
        )
