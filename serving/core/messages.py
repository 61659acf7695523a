"""What `serving.core.decoding` and its workers send each other: JSON and data as one message, since each that is sent
wakes a process up."""

from __future__ import annotations

import struct

_LENGTH = struct.Struct(">I")  # of the JSON, before it


def packed(about: bytes, data: bytes = b"") -> bytes:
    """JSON and data → a message."""
    return b"".join((_LENGTH.pack(len(about)), about, data))


def unpacked(message: bytes) -> tuple[bytes, bytes]:
    """The inverse of `packed`."""
    (length,) = _LENGTH.unpack_from(message)
    start = _LENGTH.size
    return message[start : start + length], message[start + length :]
