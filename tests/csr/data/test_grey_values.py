"""What the numbers of an image mean: the same picture, stored in every way that says so, is the same picture."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from csr.data.grey_values import DEPTHS, value_range
from csr.data.images import read_image
from csr.errors import ImageError
from tests.csr.data.test_images import dicom, encode, lut_sequence

PICTURE = np.clip(
    128 + 90 * np.sin(np.mgrid[0:96, 0:80][0] / 9) * np.cos(np.mgrid[0:96, 0:80][1] / 7)
    + np.random.default_rng(0).normal(0, 12, (96, 80)),
    0, 255,
).astype(np.uint8)  # fmt: skip
DEEP = PICTURE.astype(np.uint16) * 16  # 12 bits, 0…4080


def shades(data: bytes) -> np.ndarray:
    pixels = read_image(data, "scan").pixels[..., 0]
    return pixels / np.float32(255) if pixels.dtype == np.uint8 else pixels


def with_chunk(png: bytes, kind: bytes, body: bytes) -> bytes:
    """A PNG with one chunk more, behind its header."""
    chunk = struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    return png[:33] + chunk + png[33:]


def tiff(pixels: np.ndarray, **tags: int) -> bytes:
    about = ImageFileDirectory_v2()
    for tag, value in tags.items():
        about[int(tag[1:])] = value
    return encode(pixels, "TIFF", tiffinfo=about)


STORED = {
    "8-bit PNG": (encode(PICTURE), "8 bits"),
    "8-bit BMP": (encode(PICTURE, "BMP"), "8 bits"),
    "12 bits in a PNG of 16": (encode(DEEP), "12 bits are used"),
    "10 bits in a PNG of 16": (encode(PICTURE.astype(np.uint16) * 4), "10 bits are used"),
    "14 bits in a PNG of 16": (encode(PICTURE.astype(np.uint16) * 64), "14 bits are used"),
    "8 bits in a PNG of 16": (encode(PICTURE.astype(np.uint16)), "8 bits are used"),
    "16-bit PNG": (encode(PICTURE.astype(np.uint16) * 257), "16 bits"),
    "sBIT": (with_chunk(encode(DEEP), b"sBIT", b"\x0c"), "sBIT 12"),
    "sBIT, spread over 16 bits": (with_chunk(encode(PICTURE.astype(np.uint16) * 257), b"sBIT", b"\x0c"), "16 bits"),
    "12 bits in a TIFF of 16": (encode(DEEP, "TIFF"), "12 bits are used"),
    "MaxSampleValue": (tiff(DEEP, t281=4080), "MaxSampleValue 4080"),
    "floats in [0, 1]": (encode((PICTURE / 255).astype(np.float32), "TIFF"), "0 to 1"),
    "floats of 12 bits": (encode(DEEP.astype(np.float32), "TIFF"), "12 bits are used"),
    "32 bits": (encode(DEEP.astype(np.int32), "TIFF"), "12 bits are used"),
    "DICOM": (dicom(PICTURE), "BitsStored 8"),
    "DICOM, BitsStored 12": (dicom(DEEP, BitsStored=12), "BitsStored 12"),
    "DICOM, BitsStored 16": (dicom(DEEP), "12 bits are used"),
    "DICOM, window": (dicom(DEEP, BitsStored=12, WindowCenter=2048, WindowWidth=4096), "window"),
    "DICOM, windows": (dicom(DEEP, BitsStored=12, WindowCenter=[2048, 9], WindowWidth=[4096, 3]), "window"),
    "DICOM, window of no width": (dicom(DEEP, BitsStored=12, WindowCenter=7, WindowWidth=0), "BitsStored 12"),
    "DICOM, window too narrow": (dicom(DEEP, BitsStored=12, WindowCenter=7, WindowWidth=0.5), "BitsStored 12"),
    "DICOM, VOI LUT": (dicom(PICTURE, VOILUTSequence=lut_sequence(0, [16 * v for v in range(256)], 12)), "VOI LUT"),
    "DICOM, VOI LUT of 12 of 16 bits": (
        dicom(PICTURE, VOILUTSequence=lut_sequence(0, [16 * v for v in range(256)], 16)), "VOI LUT",
    ),
    "DICOM, MONOCHROME1": (dicom(4095 - DEEP, "MONOCHROME1", BitsStored=12), "BitsStored 12; inverted"),
    "DICOM, INVERSE": (dicom(255 - PICTURE, PresentationLUTShape="INVERSE"), "BitsStored 8; inverted"),
    "DICOM, MONOCHROME1 and INVERSE": (
        dicom(255 - PICTURE, "MONOCHROME1", PresentationLUTShape="INVERSE"), "BitsStored 8; inverted",
    ),
    "DICOM, IDENTITY": (dicom(PICTURE, PresentationLUTShape="IDENTITY"), "BitsStored 8"),
    "DICOM, rescaled": (
        dicom(DEEP, BitsStored=12, RescaleSlope=2, RescaleIntercept=-1000), "BitsStored 12",
    ),
    "DICOM, falling": (
        dicom(4095 - DEEP, BitsStored=12, RescaleSlope=-1, RescaleIntercept=4095), "BitsStored 12",
    ),
}  # fmt: skip


@pytest.mark.parametrize("how", STORED)
def test_one_picture_is_read_alike_however_it_is_stored_and_says_why(how: str) -> None:
    data, window = STORED[how]
    assert read_image(data).window == window
    np.testing.assert_allclose(shades(data), PICTURE / 255, atol=0.005)


@settings(deadline=None, max_examples=40)
@given(st.sampled_from([8, 10, 12, 14, 16]), st.integers(0, 2**32 - 1))
def test_any_depth_that_is_filled_is_found_in_a_file_of_16_bits(bits: int, seed: int) -> None:
    values = np.random.default_rng(seed).integers(0, 2**bits, (50, 60)).astype(np.uint16)
    np.testing.assert_allclose(shades(encode(values)), values / (2**bits - 1), atol=1e-6)


def test_a_hot_pixel_does_not_make_a_picture_dark() -> None:
    deep = DEEP.copy()
    deep[3, 4] = 65535
    found = shades(encode(deep))
    assert found[3, 4] == 1
    found[3, 4] = PICTURE[3, 4] / 255
    np.testing.assert_allclose(found, PICTURE / 255, atol=0.005)
    hot = PICTURE.astype(np.int32) + 100_000
    hot[3, 4] = 2**30
    assert read_image(encode(hot, "TIFF")).window.startswith("percentiles")
    found = shades(encode(hot, "TIFF"))
    assert found.std() > 0.15


def test_signed_values_that_fill_little_of_their_range_are_spread_over_it() -> None:
    hounsfield = (DEEP.astype(np.int32) // 2 - 1024).astype(np.int16)
    data = dicom(hounsfield, PixelRepresentation=1)
    assert read_image(data).window.startswith("percentiles")
    assert shades(data).min() == 0 and shades(data).max() == 1


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 2**31 - 1), st.integers(0, 2**31 - 1), st.sampled_from([None, 8, 12, 16, 32]))
def test_the_range_is_one_and_holds_most_of_the_values(spread: int, least: int, bits: int | None) -> None:
    values = least + np.linspace(0, spread, 400).astype(np.int64).reshape(20, 20)
    low, high, how = value_range(values, None if bits is None else (0.0, 2.0**bits - 1), "as stated")
    assert how
    assert low < high
    assert ((values >= low) & (values <= high)).mean() > 0.99
    if how == "as stated":
        assert (low, high) == (0, 2.0**bits - 1)  # type: ignore[operator]
    if how.endswith("are used"):
        assert high in {2**depth - 1 for depth in DEPTHS} and values.max() >= high / 2.1


def test_a_window_that_leaves_one_grey_is_refused_and_a_picture_of_one_grey_is_left_to_others() -> None:
    with pytest.raises(ImageError, match=r"scan: its window or LUT makes nearly all of its pixels one grey"):
        read_image(dicom(DEEP, BitsStored=12, WindowCenter=60000, WindowWidth=10), "scan")
    assert not shades(dicom(np.zeros((40, 40), np.uint16), WindowCenter=60000, WindowWidth=10)).any()


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_colours_whose_16_bits_would_be_cut_to_nothing_are_refused(kind: str) -> None:
    def colours(values: np.ndarray) -> bytes:
        if kind == "TIFF":
            height, width = values.shape
            entries = [
                (256, 4, 1, width), (257, 4, 1, height), (258, 3, 3, 150), (259, 3, 1, 1), (262, 3, 1, 2),
                (273, 4, 1, 156), (277, 3, 1, 3), (278, 4, 1, height), (279, 4, 1, 6 * values.size),
            ]  # fmt: skip
            body = b"".join(struct.pack("<HHII", *each) for each in entries)
            head = b"II*\0" + struct.pack("<IH", 8, len(entries)) + body + bytes(4)
            head = head.ljust(150, b"\0") + struct.pack("<3H", 16, 16, 16)
            return head + values.repeat(3).astype("<u2").tobytes()
        rows = values.repeat(3, axis=1).astype(">u2")
        lines = b"".join(b"\0" + row.tobytes() for row in rows)

        def chunk(name: bytes, body: bytes) -> bytes:
            return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

        about = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, 2, 0, 0, 0)
        parts = chunk(b"IHDR", about) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
        return b"\x89PNG\r\n\x1a\n" + parts

    np.testing.assert_allclose(shades(colours(PICTURE.astype(np.uint16) * 257)), PICTURE / 255, atol=0.005)
    with pytest.raises(ImageError, match="scan: uses only the lower bits of its 16 a channel"):
        read_image(colours(DEEP), "scan")


# formats


def test_webp_and_bmp_are_read_and_a_page_or_frame_of_several_by_its_number() -> None:
    colour = np.stack([PICTURE, PICTURE[::-1], 255 - PICTURE], axis=-1)
    lossless = encode(colour, "WEBP", lossless=True, exact=True)
    for data in (lossless, encode(colour, "BMP")):
        np.testing.assert_array_equal(read_image(data).pixels, colour)
    assert np.abs(read_image(encode(colour, "WEBP", quality=95)).pixels.astype(int) - colour).mean() < 15
    for kind, options in (("TIFF", {}), ("PNG", {}), ("WEBP", {"lossless": True})):
        buffer = io.BytesIO()
        first, second = Image.fromarray(PICTURE), Image.fromarray(255 - PICTURE)
        first.save(buffer, kind, save_all=True, append_images=[second], **options)
        assert np.abs(read_image(buffer.getvalue(), frame=2).pixels[..., 0].astype(int) - (255 - PICTURE)).max() <= 1
        with pytest.raises(ImageError, match="stack: has no page or frame of number 3"):
            read_image(buffer.getvalue(), "stack", frame=3)
    with pytest.raises(ImageError, match="scan: has no page or frame of number 2"):
        read_image(encode(PICTURE), "scan", frame=2)
    for number in (0, -1, 10**9):
        with pytest.raises(ImageError, match="frames are numbered from 1"):
            read_image(encode(PICTURE), frame=number)


def webp_header(kind: bytes, body: bytes) -> bytes:
    chunk = kind + struct.pack("<I", len(body)) + body
    return b"RIFF" + struct.pack("<I", 4 + len(chunk)) + b"WEBP" + chunk


@pytest.mark.parametrize(
    "data",
    [
        webp_header(b"VP8X", bytes(4) + (16382).to_bytes(3, "little") * 2),
        webp_header(b"VP8 ", b"\x30\x01\0\x9d\x01\x2a" + struct.pack("<HH", 16383, 16383) + bytes(20)),
        webp_header(b"VP8L", b"\x2f" + (16382 | 16382 << 14).to_bytes(4, "little") + bytes(20)),
    ],
    ids=["VP8X", "VP8", "VP8L"],
)
def test_a_large_webp_is_refused_before_room_is_made_for_it(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "open", lambda *given, **options: pytest.fail("was opened"))
    with pytest.raises(ImageError, match=r"large: 16383×16383 pixels is over the limit"):
        read_image(data, "large")
