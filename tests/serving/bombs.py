"""Files that are small to send and dear to read, made of a number of whatever it is that makes them so.

Each maker takes the number and returns the file's bytes. With a small number most are odd but honest files.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEGBaseline8Bit, RLELossless

from tests.serving.dicom.files import dataset, written

Bomb = Callable[[int], bytes]
_GREY = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 48), np.uint8))


def _encoded(kind: str, image: Image.Image = _GREY, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


# TIFF: a header, then directories of 12-byte entries, each with the place of the next.


def _tiff(entries: list[tuple[int, int, int, int]], rest: bytes = b"", after: int = 0) -> bytes:
    """One directory of (tag, type, count, value); ``rest`` begins behind it."""
    body = b"".join(struct.pack("<HHII", *each) for each in sorted(entries))
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + body + struct.pack("<I", after) + rest


def _plain(width: int, height: int, compression: int, data_at: int, size: int) -> list[tuple[int, int, int, int]]:
    return [
        (256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, compression), (262, 3, 1, 1),
        (273, 4, 1, data_at), (277, 3, 1, 1), (278, 4, 1, height), (279, 4, 1, size),
    ]  # fmt: skip


def tiff_directories(number: int) -> bytes:
    """So many pages, one behind the other, all of the same picture."""
    size, first = 2 + 9 * 12 + 4, 8
    data_at = first + number * size
    pages = [
        struct.pack("<H", 9)
        + b"".join(struct.pack("<HHII", *each) for each in _plain(48, 64, 1, data_at, 48 * 64))
        + struct.pack("<I", first + (page + 1) * size if page + 1 < number else 0)
        for page in range(number)
    ]
    return b"II*\0" + struct.pack("<I", first) + b"".join(pages) + _GREY.tobytes()


def tiff_circle(number: int) -> bytes:
    """A directory that is its own successor, with so many entries more."""
    extra = [(40_000 + each % 20_000, 4, 1, each) for each in range(min(number, 20_000))]
    entries = _plain(48, 64, 1, 0, 48 * 64) + extra
    data_at = 8 + 2 + 12 * len(entries) + 4
    return _tiff([*_plain(48, 64, 1, data_at, 48 * 64), *extra], _GREY.tobytes(), after=8)


def tiff_strips(number: int) -> bytes:
    """An image of so many rows, each a strip of its own, all at the same place."""
    entries = 9
    start = 8 + 2 + 12 * entries + 4
    rows = max(number, 16)
    table = struct.pack("<I", start + 8 * rows) * rows + struct.pack("<I", 48) * rows
    described = [
        (256, 4, 1, 48), (257, 4, 1, rows), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1),
        (273, 4, rows, start), (277, 3, 1, 1), (278, 4, 1, 1), (279, 4, rows, start + 4 * rows),
    ]  # fmt: skip
    return _tiff(described, table + bytes(range(48)))


def tiff_counts(number: int) -> bytes:
    """Entries that claim so many thousand values which are not there."""
    claims = [(700, 1, number * 1000, 8), (40_001, 12, number * 1000, 8)]
    return _tiff([*_plain(48, 64, 1, 8 + 2 + 11 * 12 + 4, 48 * 64), *claims], _GREY.tobytes())


def tiff_deflated(number: int) -> bytes:
    """Nothing but zeros, so many thousand rows of it, in one strip."""
    height = min(max(number, 1), 60) * 1000
    packed = zlib.compress(bytes(1000 * height), 9)
    return _tiff(_plain(1000, height, 8, 8 + 2 + 9 * 12 + 4, len(packed)), packed)


# JPEG: segments that begin with FF and a letter.


def jpeg_scans(number: int) -> bytes:
    """A progressive image whose scans come again and again."""
    data = _encoded("JPEG", progressive=True)
    first = data.index(b"\xff\xda")
    return data[:first] + data[first:-2] * number + data[-2:]


def jpeg_large_scans(number: int) -> bytes:
    """The same of an image of 60 million pixels, of which nothing is there."""
    data = bytearray(_encoded("JPEG", Image.new("L", (16, 16)), progressive=True))
    frame = data.index(b"\xff\xc2")
    data[frame + 5 : frame + 9] = struct.pack(">HH", 7_500, 8_000)
    first = data.index(b"\xff\xda")
    return bytes(data[:first] + data[first:-2] * number + data[-2:])


def jpeg_segments(number: int) -> bytes:
    """So many comments and tables before the picture."""
    data = _encoded("JPEG")
    tables = data[(place := data.index(b"\xff\xdb")) : place + 2 + int.from_bytes(data[place + 2 : place + 4], "big")]
    return data[:2] + (b"\xff\xfe\0\4ab" + tables) * number + data[2:]


def jpeg_pictures(number: int) -> bytes:
    """So many pictures in one file, as cameras store them (MPF)."""
    return _encoded("MPO", save_all=True, append_images=[_GREY] * min(number, 500)) if number > 1 else _encoded("JPEG")


# PNG: chunks of a length, a name, content and a checksum.


def _chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def _with_chunks(chunks: bytes) -> bytes:
    data = _encoded("PNG")
    return data[:33] + chunks + data[33:]  # behind the header's chunk


def png_texts(number: int) -> bytes:
    """So many comments, each of a megabyte once it is unpacked."""
    return _with_chunks(_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(1_000_000), 9)) * number)


def png_chunks(number: int) -> bytes:
    """So many chunks that nobody knows."""
    return _with_chunks(_chunk(b"abCd", b"") * number)


def png_profile(number: int) -> bytes:
    """A colour profile of so many thousand bytes, of nothing."""
    return _with_chunks(_chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(number * 1000), 9)))


def png_frames(number: int) -> bytes:
    """An animation of so many frames."""
    frames = [Image.new("L", (48, 64), each % 256) for each in range(min(number, 2000))]
    return _encoded("PNG", save_all=True, append_images=frames)


def png_interlaced(number: int) -> bytes:
    """So many thousand rows of one value, seven times over."""
    rows = min(max(number, 1), 60) * 1000
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", 1000, rows, 8, 0, 0, 0, 1))
    packed = zlib.compress(bytes(1001 * rows * 2), 9)
    return b"\x89PNG\r\n\x1a\n" + header + _chunk(b"IDAT", packed) + _chunk(b"IEND", b"")


# DICOM: elements of group, number, kind, length and value; sequences hold items, which hold elements.

_ITEM, _SEQUENCE_END, _ITEM_END = (struct.pack("<HH", 0xFFFE, each) for each in (0xE000, 0xE0DD, 0xE00D))
_OPEN, _NONE = b"\xff\xff\xff\xff", b"\0\0\0\0"
_PATIENT = struct.pack("<HH", 0x0010, 0x0010)  # the patient's name, the first element of its group
_SEQUENCE = struct.pack("<HH", 0x0008, 0x1140) + b"SQ\0\0" + _OPEN  # Referenced Image Sequence


def _inserted(content: bytes) -> bytes:
    """A radiograph with more in it, between two of its groups."""
    data = written(dataset())
    place = data.index(_PATIENT)
    return data[:place] + content + data[place:]


def _with_items(items: bytes) -> bytes:
    return _inserted(_SEQUENCE + items + _SEQUENCE_END + _NONE)


def dicom_items(number: int) -> bytes:
    """A sequence of so many items, all empty and of undefined length."""
    return _with_items((_ITEM + _OPEN + _ITEM_END + _NONE) * number)


def dicom_short_items(number: int) -> bytes:
    """The same, each of length 0."""
    return _with_items((_ITEM + _NONE) * number)


def dicom_depth(number: int) -> bytes:
    """Items in items, so deep."""
    opened = (_SEQUENCE + _ITEM + _OPEN) * number
    closed = (_ITEM_END + _NONE + _SEQUENCE_END + _NONE) * number
    return _inserted(opened + closed)


def dicom_elements(number: int) -> bytes:
    """So many private elements of two bytes."""
    places = ((0x0009 + 2 * (each // 0x8000), each % 0x8000) for each in range(min(number, 3 * 0x8000)))
    elements = b"".join(struct.pack("<HH2sH2s", *place, b"SH", 2, b"ab") for place in places)
    return _inserted(elements)


def dicom_values(number: int) -> bytes:
    """One attribute of so many numbers."""
    text = b"1\\" * number + b"1 "
    made = struct.pack("<HH", 0x0018, 0x1164) + b"UN\0\0" + struct.pack("<I", len(text)) + text
    data = written(dataset(ImagerPixelSpacing=None))
    place = data.index(struct.pack("<HH", 0x0018, 0x5101))  # View Position comes next
    return data[:place] + made + data[place:]


def dicom_fragments(number: int) -> bytes:
    """Compressed pixels in so many empty fragments."""
    made = dataset(PixelData=None, BitsAllocated=8, BitsStored=8, HighBit=7)
    made.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    pixels = struct.pack("<HH", 0x7FE0, 0x0010) + b"OB\0\0" + _OPEN + _ITEM + _NONE + (_ITEM + _NONE) * number
    return written(made) + pixels + _SEQUENCE_END + _NONE


def dicom_run_lengths(number: int) -> bytes:
    """So many thousand rows in run-length code, of one run each."""
    rows = min(max(number, 1), 60) * 1000
    made = dataset(PixelData=None, BitsAllocated=8, BitsStored=8, HighBit=7, Rows=rows, Columns=1000)
    made.file_meta.TransferSyntaxUID = RLELossless
    code = struct.pack("<16I", 1, 64, *[0] * 14) + (b"\x81\x07" * 7 + b"\x99\x07") * rows
    code += b"\0" * (len(code) % 2)
    pixels = struct.pack("<HH", 0x7FE0, 0x0010) + b"OB\0\0" + _OPEN + _ITEM + _NONE
    return written(made) + pixels + _ITEM + struct.pack("<I", len(code)) + code + _SEQUENCE_END + _NONE


def dicom_deflated(number: int) -> bytes:
    """A deflated data set with so many megabytes of nothing in one attribute."""
    made = dataset()
    data = written(made)
    start, place = 144 + int.from_bytes(data[140:144], "little"), data.index(_PATIENT)
    megabyte = bytes(1_000_000)
    element = struct.pack("<HH", 0x0009, 0x0010) + b"UN\0\0" + struct.pack("<I", number * len(megabyte))
    packer = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    parts = [data[start:place], element, *[megabyte] * number, data[place:]]
    packed = b"".join(packer.compress(part) for part in parts) + packer.flush()
    made.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    head = written(made)
    return head[: 144 + int.from_bytes(head[140:144], "little")] + packed


def webp_frames(number: int) -> bytes:
    """An animation of so many frames."""
    return _encoded("WEBP", save_all=True, append_images=[_GREY.rotate(1)] * number, minimize_size=False)


def webp_large(number: int) -> bytes:
    """One colour, so many hundred pixels a side."""
    side = 100 * min(max(number, 1), 40)
    return _encoded("WEBP", Image.new("RGB", (side, side), (9, 90, 200)), lossless=True, method=0)


def bmp_large(number: int) -> bytes:
    """A header that promises so many hundred pixels a side, in run lengths, and one end of the picture."""
    side = 100 * number
    about = struct.pack("<IiiHHIIiiII", 40, side, side, 1, 8, 1, 2, 0, 0, 256, 0)
    palette = b"".join(bytes((each, each, each, 0)) for each in range(256))
    start = 14 + len(about) + len(palette)
    return b"BM" + struct.pack("<IHHI", start + 2, 0, 0, start) + about + palette + b"\0\1"


# By name: the maker, and a number that makes it as dear as an upload of some megabytes can be.
BOMBS: dict[str, tuple[Bomb, int]] = {
    "TIFF, pages": (tiff_directories, 60_000),
    "TIFF, a circle of pages": (tiff_circle, 20_000),
    "TIFF, strips": (tiff_strips, 1_000_000),
    "TIFF, counts of values": (tiff_counts, 4_000_000),
    "TIFF, deflated": (tiff_deflated, 60),
    "JPEG, scans": (jpeg_scans, 10_000),
    "JPEG, scans of a large image": (jpeg_large_scans, 2_000),
    "JPEG, segments": (jpeg_segments, 100_000),
    "JPEG, pictures": (jpeg_pictures, 500),
    "PNG, texts": (png_texts, 5_000),
    "PNG, chunks": (png_chunks, 1_000_000),
    "PNG, profile": (png_profile, 1_000_000),
    "PNG, frames": (png_frames, 2_000),
    "PNG, interlaced": (png_interlaced, 60),
    "WebP, frames": (webp_frames, 300),
    "WebP, large": (webp_large, 40),
    "BMP, large": (bmp_large, 80),
    "DICOM, items": (dicom_items, 2_000_000),
    "DICOM, items of length 0": (dicom_short_items, 2_000_000),
    "DICOM, depth": (dicom_depth, 19_000),
    "DICOM, elements": (dicom_elements, 98_000),
    "DICOM, values": (dicom_values, 8_000_000),
    "DICOM, fragments": (dicom_fragments, 2_000_000),
    "DICOM, run lengths": (dicom_run_lengths, 60),
    "DICOM, deflated": (dicom_deflated, 2_000),
}
