"""The device file: TOML by which an owner says what a device is, where it is simulated or detection is wrong.

DeviceInfo's fields at the top level, and `[installers.KIND]` tables that are a terminal's own. A file with a `model`
describes another device, and nothing of what was detected leaks into it but the free bytes; any other overrides what
was detected field by field.

Errors name the file, the key and what is allowed.
"""

import difflib
import tomllib
from collections.abc import Iterable
from typing import Any, Final, Literal, NoReturn, get_args, get_origin, get_type_hints

import msgspec

from protocol import limits
from protocol.device import DeviceInfo
from protocol.errors import BadFileError

DEVICE_FILE_BYTES: Final = 64 * limits.KIB
INSTALLERS: Final = "installers"


def parse_device_file(data: bytes, where: str, detected: DeviceInfo) -> tuple[DeviceInfo, object]:
    """Return the device that the bytes of the file `where` describe, and its `installers` as they stand there.

    Raises BadFileError.
    """
    table = _toml(data, where)
    installers = table.pop(INSTALLERS, {})
    hints = get_type_hints(DeviceInfo, include_extras=True)
    check_keys(where, "", table, (*hints, INSTALLERS))
    values = {key: checked_value(where, key, value, hints[key]) for key, value in table.items()}
    if "model" in values:
        return DeviceInfo(**{"free_bytes": detected.free_bytes, **values}), installers
    return msgspec.structs.replace(detected, **values), installers


def _toml(data: bytes, where: str) -> dict[str, Any]:
    if len(data) > DEVICE_FILE_BYTES:
        raise BadFileError(f"{where} is larger than {DEVICE_FILE_BYTES:,} bytes.", hint="Is it a device file?")
    try:
        return tomllib.loads(data.decode())
    except (ValueError, RecursionError) as error:  # both TOMLDecodeError and UnicodeDecodeError are ValueErrors
        raise BadFileError(f"{where} is not valid TOML: {error}.", hint="Mend that line.") from error


def check_keys(where: str, prefix: str, table: Iterable[str], allowed: tuple[str, ...]) -> None:
    """Refuse a key that is not among those allowed. Raises BadFileError."""
    for key in table:
        if key not in allowed:
            refuse(where, prefix + key, "is not known", _nearest(key, allowed))


def checked_value(where: str, key: str, value: object, wanted: Any) -> Any:
    """Return the value of a key as the type `wanted`. Raises BadFileError."""
    try:
        return msgspec.convert(value, wanted)
    except msgspec.ValidationError as error:
        choices = _choices(wanted)
        hint = _nearest(str(value), choices) if choices else "See the device file in the documentation."
        return refuse(where, key, f"has a value that is not allowed ({error})", hint)


def refuse(where: str, key: str, what: str, hint: str) -> NoReturn:
    """Raise BadFileError about one key."""
    raise BadFileError(f"{where}: the key {key} {what}.", hint=hint)


def _choices(wanted: Any) -> tuple[str, ...]:
    """Return the words a type allows, looking into what it is made of: `tuple[Literal["a", "b"], ...]` gives a, b."""
    if get_origin(wanted) is Literal:
        return get_args(wanted)
    return tuple(word for part in get_args(wanted) for word in _choices(part))


def _nearest(given: str, allowed: tuple[str, ...]) -> str:
    near = difflib.get_close_matches(given, allowed, n=2)
    meant = f"Did you mean {' or '.join(near)}? " if near else ""
    return f"{meant}Allowed are: {', '.join(allowed)}."
