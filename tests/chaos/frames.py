"""WebSocket frames read from recorded bytes (RFC 6455 section 5.2): the messages of a program's socket."""

from typing import Final

from protocol import codec
from protocol.errors import ProtocolError
from protocol.messages import AnyMessage

_HEAD_ENDS: Final = b"\r\n\r\n"
_BINARY: Final = 2


class FrameReader:
    """Reads one direction of one socket, from the HTTP head on."""

    def __init__(self) -> None:
        self._data = b""
        self._is_open = False

    def feed(self, data: bytes) -> list[AnyMessage]:
        """Take bytes; return the messages that are whole now."""
        self._data += data
        if not self._is_open:
            _, ends, rest = self._data.partition(_HEAD_ENDS)
            if not ends:
                return []
            self._is_open, self._data = True, rest
        found = []
        while (payload := self._next_frame()) is not None:
            try:
                found += [codec.decode(payload)] if payload else []
            except ProtocolError:
                raise ValueError("the record holds a frame that is no message: bytes of it are missing") from None
        return found

    def _next_frame(self) -> bytes | None:
        """Return the next frame's payload, b"" for a control frame, or None."""
        data = self._data
        if len(data) < 2:
            return None
        is_masked, length, start = data[1] & 0x80, data[1] & 0x7F, 2
        if length >= 126:
            start += 2 if length == 126 else 8
            length = int.from_bytes(data[2:start])
        mask = data[start : start + 4] if is_masked else b""
        start += len(mask)
        if len(data) < start + length:
            return None
        payload, self._data = data[start : start + length], data[start + length :]
        if data[0] & 0x0F != _BINARY:
            return b""
        return _unmasked(payload, mask) if mask else payload


def _unmasked(payload: bytes, mask: bytes) -> bytes:
    stream = (mask * (len(payload) // 4 + 1))[: len(payload)]
    return (int.from_bytes(payload) ^ int.from_bytes(stream)).to_bytes(len(payload))
