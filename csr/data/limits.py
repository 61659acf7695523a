"""What a file of pixels may cost, looked at before a decoder is let loose on it."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator

import numpy as np

from csr.errors import ImageError

MAX_PIXELS = 64_000_000
MAX_INFLATED = 8 * MAX_PIXELS  # bytes that a DICOM file of the deflated transfer syntax may unpack to
MAX_ITEMS = 20_000  # of sequences in a DICOM file; fragments of compressed pixels count, too
MAX_SCANS = 100  # of a JPEG; encoders make about ten
MAX_FRAME = 10_000  # pages of a TIFF are found one after the other
_ITEM_TAGS = (b"\xfe\xff\x00\xe0", b"\xff\xfe\xe0\x00")  # little endian, big endian (PS3.5 7.5)
_START_OF_SCAN = b"\xff\xda"


def check_size(width: int, height: int, name: str) -> None:
    """Refuses an image of more than `MAX_PIXELS` pixels."""
    if width * height > MAX_PIXELS:
        raise ImageError(f"{name}: {width}×{height} pixels is over the limit of {MAX_PIXELS:,}")


def check_finite(pixels: np.ndarray, name: str) -> None:
    """Refuses pixels that are no numbers."""
    if not np.isfinite(pixels).all():
        raise ImageError(f"{name}: has pixels that are not finite numbers")


def check_scans(data: bytes, name: str) -> None:
    """Refuses a progressive JPEG of very many scans: each goes over the whole image again."""
    if data.count(_START_OF_SCAN) > MAX_SCANS:
        raise ImageError(f"{name}: the JPEG file has more than {MAX_SCANS} scans, the limit")


def check_webp(data: bytes, name: str) -> None:
    """Refuses a WebP file by the size of its canvas and of each of its frames: libwebp makes room for them before
    Pillow says how large they are. (RFC 9649, 2.5 to 2.7)"""
    place, canvas = 12, b""
    for _ in range(64):  # chunks; those that hold a size come first
        kind, body = data[place : place + 4], data[place + 8 : place + 18]
        if kind == b"VP8X" and not canvas:
            canvas = body
            check_size(1 + int.from_bytes(body[4:7], "little"), 1 + int.from_bytes(body[7:10], "little"), name)
        elif kind == b"VP8 ":
            sides = int.from_bytes(body[6:8], "little"), int.from_bytes(body[8:10], "little")
            check_size(sides[0] & 0x3FFF, sides[1] & 0x3FFF, name)
        elif kind == b"VP8L":
            bits = int.from_bytes(body[1:5], "little")
            check_size(1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF), name)
        size = int.from_bytes(data[place + 4 : place + 8], "little")
        place += 8 + size + size % 2
        if place >= len(data):
            return


def check_structure(data: bytes, name: str) -> None:
    """Refuses a DICOM file that would fill the memory or take minutes to parse, before pydicom does.

    A deflated data set (PS3.5 A.5) may unpack to `MAX_INFLATED` bytes, and a data set may hold `MAX_ITEMS` items of
    sequences: pydicom makes objects of each, of 8 bytes in the file a microsecond and a kilobyte.
    """
    start = 144 + int.from_bytes(data[140:144], "little")  # the file meta information begins with its length (PS3.10)
    whole: Iterable[bytes] = (data,)
    if b"1.2.840.10008.1.2.1.99" in data[132:start]:
        whole = _inflated(data[start:], name)
    items = sum(part.count(tag) for part in whole for tag in _ITEM_TAGS)
    if items > MAX_ITEMS:
        raise ImageError(f"{name}: holds more than {MAX_ITEMS:,} items of sequences, the limit")


def _inflated(rest: bytes, name: str) -> Iterator[bytes]:
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    size = 0
    while rest:
        part = inflate.decompress(rest, 2**24)
        rest = inflate.unconsumed_tail
        size += len(part)
        if size > MAX_INFLATED:
            raise ImageError(f"{name}: unpacks to more than {MAX_INFLATED:,} bytes, the limit")
        yield part
