"""Message <-> bytes: one msgpack map with a `kind`, every field checked (msgpack specification, 2013 revision).

Sizes are bounded before anything is built: the WebSocket bounds the message, `unpackb` bounds each container, `_Count`
the items in the whole message as its containers are built, `_check_nesting` their depth, and `msgspec.convert` checks
every field's type and limit.
"""

import re
from collections.abc import Iterable
from typing import Any, Final, TypeVar

import msgpack
import msgspec

from protocol import limits
from protocol.errors import ProtocolError
from protocol.messages import BY_KIND, AnyMessage, Message, PostureReport

Row = TypeVar("Row", bound=msgspec.Struct)
Container = TypeVar("Container", dict[Any, Any], list[Any])

ITEMS_IN_ONE_MESSAGE: Final = 16 * limits.LIST_ITEMS  # half a million empty lists would take 120 ms and 30 MiB
_REPEATED_VALUE: Final = re.compile(r"(Invalid enum value) ['\"].*['\"]", re.DOTALL)


def encode(message: Message) -> bytes:
    """Return the bytes of `message`, at most `limits.MESSAGE_BYTES` long."""
    data: bytes = msgpack.packb(msgspec.to_builtins(message, builtin_types=(bytes,)))
    assert len(data) <= limits.MESSAGE_BYTES, f"{type(message).__name__} of {len(data)} bytes"
    return data


def decode(
    data: bytes | str, *, limit_bytes: int = limits.MESSAGE_BYTES, limit_items: int = ITEMS_IN_ONE_MESSAGE
) -> AnyMessage:
    """Return the message in `data`. Raises ProtocolError with what is wrong; the text never repeats the data itself."""
    if isinstance(data, str):
        raise ProtocolError("A text message arrived; lockstep.v1 uses binary messages only.", code="text-message")
    if len(data) > limit_bytes:
        raise ProtocolError(f"A message of {len(data)} bytes is over the limit of {limit_bytes}.", code="too-large")
    fields = _unpack(data, limit_items)
    if not isinstance(fields.get("kind"), str):
        raise ProtocolError("A message has no kind.", code="bad-msgpack")
    message_class = BY_KIND.get(fields["kind"])
    if message_class is None:
        raise ProtocolError(f"Unknown message kind {str(fields.get('kind'))[:40]!r}.", code="unknown-kind")
    try:
        # With bytes as a built-in type a text never passes for binary; msgspec would read it as base64 otherwise.
        message: AnyMessage = msgspec.convert(fields, message_class, builtin_types=(bytes,))  # type: ignore[assignment]
    except (msgspec.ValidationError, RecursionError) as error:
        why = _REPEATED_VALUE.sub(r"\1", str(error))
        raise ProtocolError(f"A {fields['kind']} message is wrong: {why}.", code="bad-field") from None
    return message


def encode_report(report: PostureReport) -> bytes:
    """Return the bytes of a terminal's report, which it signs."""
    data: bytes = msgpack.packb(msgspec.to_builtins(report, builtin_types=(bytes,)))
    return data


def decode_report(data: bytes) -> PostureReport:
    """Return the report in `data`. Raises ProtocolError as `decode` does."""
    try:
        return msgspec.convert(_unpack(data), PostureReport, builtin_types=(bytes,))
    except (msgspec.ValidationError, RecursionError) as error:
        raise ProtocolError(f"A posture report is wrong: {error}.", code="bad-field") from None


def pages(rows: Iterable[Row], page_bytes: int = limits.FRAME_BYTES) -> list[tuple[Row, ...]]:
    """Split rows into pages of at most `page_bytes` of encoded rows (one row always fits); always at least one page."""
    split: list[list[Row]] = [[]]
    used = 0
    for row in rows:
        size = len(msgspec.msgpack.encode(row))
        if split[-1] and used + size > page_bytes:
            split.append([])
            used = 0
        split[-1].append(row)
        used += size
    return [tuple(page) for page in split]


class _Count:
    """Counts what is built of a message: each list and map, and each value in one."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._items = 0

    def add(self, container: Container) -> Container:
        """Count a container that is whole. Raises ProtocolError when the message has too many items."""
        self._items += 1 + len(container)
        if self._items > self._limit:
            raise ProtocolError(f"A message has more than {self._limit} items.", code="too-large")
        return container


def _unpack(data: bytes, limit_items: int = ITEMS_IN_ONE_MESSAGE) -> dict[str, Any]:
    count = _Count(limit_items)
    try:
        value = msgpack.unpackb(
            data,
            raw=False,
            strict_map_key=True,
            max_str_len=limits.STRING_BYTES,
            max_bin_len=limits.FRAME_BYTES,
            max_array_len=limits.LIST_ITEMS,
            max_map_len=limits.MAP_ITEMS,
            max_ext_len=0,
            object_hook=count.add,
            list_hook=count.add,
        )
    except (ValueError, RecursionError) as error:  # msgpack's errors, all of them ValueErrors
        raise ProtocolError(f"A message is not well-formed msgpack: {str(error)[:120]}", code="bad-msgpack") from None
    if not isinstance(value, dict):
        raise ProtocolError("A message is not a msgpack map.", code="bad-msgpack")
    _check_nesting(value)
    return value


def _check_nesting(value: Any) -> None:
    """Refuse a message that is deeper than any real one, level by level, without recursion."""
    level: list[Any] = [value]
    for _ in range(limits.NESTING_DEPTH):
        level = [child for one in level for child in _children(one) if isinstance(child, (dict, list))]
        if not level:
            return
    raise ProtocolError(f"A message is nested deeper than {limits.NESTING_DEPTH} levels.", code="bad-msgpack")


def _children(container: Any) -> Iterable[Any]:
    return container.values() if isinstance(container, dict) else container
