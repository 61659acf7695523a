"""Every file type that a clinic sends, the damaged ones, and the way onto the canvas and back."""

from __future__ import annotations

import io
import struct
import tempfile
import time
import zlib
from pathlib import Path

import gdcm
import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, TiffImagePlugin
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
    SecondaryCaptureImageStorage,
    generate_uid,
)

from csr.data import images
from csr.data.images import (
    Placement,
    _spread,
    check_content,
    fit,
    pixel_digest,
    pixel_spacing,
    to_png,
)
from csr.data.limits import MAX_ITEMS, MAX_PIXELS, MAX_SCANS
from csr.errors import ImageError

GREY = np.arange(6 * 8, dtype=np.uint8).reshape(6, 8) * 5
COLOUR = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
CASES = settings(deadline=None, max_examples=40)


def decode(data: bytes, name: str = "image") -> np.ndarray:
    """What `csr.data.images.decode` gives, always as floats in [0, 1]."""
    image = images.decode(data, name)
    return image / np.float32(255) if image.dtype == np.uint8 else image


def encode(image: Image.Image | np.ndarray, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(buffer, kind, **options)
    return buffer.getvalue()


def dicom(pixels: np.ndarray, photometric: str = "MONOCHROME2", **tags) -> bytes:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = FileDataset("x", {}, file_meta=meta, preamble=b"\0" * 128)
    bits = 8 * pixels.itemsize
    data.Rows, data.Columns, data.SamplesPerPixel = *pixels.shape[:2], 3 if pixels.ndim == 3 else 1
    data.BitsAllocated = data.BitsStored = bits
    data.HighBit, data.PixelRepresentation, data.PlanarConfiguration = bits - 1, 0, 0
    data.PhotometricInterpretation = photometric
    data.SOPClassUID, data.SOPInstanceUID = SecondaryCaptureImageStorage, meta.MediaStorageSOPInstanceUID
    for name, value in tags.items():
        setattr(data, name, value)
    data.PixelData = pixels.tobytes()
    buffer = io.BytesIO()
    data.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A valid PNG of that size whose pixels are missing: enough to tell its size from."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    about = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", about) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


# what is read


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_8_bit_grey_is_divided_by_255(kind):
    image = decode(encode(GREY, kind))
    np.testing.assert_allclose(image[..., 0], GREY / 255, atol=1e-7)
    assert image.shape == (6, 8, 1)
    assert image.dtype == np.float32


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_8_bit_colour_keeps_its_three_channels(kind):
    np.testing.assert_allclose(decode(encode(COLOUR, kind)), COLOUR / 255, atol=1e-7)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_is_divided_by_its_types_range_and_not_by_its_maximum(kind):
    deep = np.array([[0, 1, 257], [1000, 30000, 40000]], np.uint16)
    np.testing.assert_allclose(decode(encode(deep, kind))[..., 0], deep / 65535, atol=1e-7)


def test_16_bit_big_endian_tiff_reads_like_little_endian():
    deep = np.array([[0, 257], [30000, 65535]], np.uint16)
    swapped = Image.frombytes("I;16B", (2, 2), deep.astype(">u2").tobytes())
    np.testing.assert_allclose(decode(encode(swapped, "TIFF"))[..., 0], deep / 65535, atol=1e-7)


def test_bilevel_images_are_black_and_white():
    bits = Image.fromarray(np.array([[0, 255], [255, 0]], np.uint8)).convert("1")
    np.testing.assert_array_equal(decode(encode(bits))[..., 0], [[0, 1], [1, 0]])


def test_jpeg_is_read_within_its_loss():
    smooth = np.tile(np.linspace(0, 255, 32).astype(np.uint8), (16, 1))
    np.testing.assert_allclose(decode(encode(smooth, "JPEG", quality=95))[..., 0], smooth / 255, atol=0.03)


@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (1, lambda a: a),
        (2, lambda a: a[:, ::-1]),
        (3, lambda a: a[::-1, ::-1]),
        (4, lambda a: a[::-1]),
        (5, lambda a: a.T),
        (6, lambda a: np.rot90(a, -1)),
        (7, lambda a: a[::-1, ::-1].T),
        (8, lambda a: np.rot90(a, 1)),
    ],
)
def test_jpeg_is_turned_upright_by_its_exif_orientation(orientation, upright):
    stored = np.zeros((16, 32), np.uint8)
    stored[:8, :8], stored[:8, 24:] = 255, 128
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = decode(encode(stored, "JPEG", exif=exif, quality=95))
    np.testing.assert_allclose(image[..., 0], upright(stored) / 255, atol=0.05)


def test_transparency_is_laid_on_black():
    rgba = np.zeros((1, 3, 4), np.uint8)
    rgba[0, :, :3], rgba[0, :, 3] = (200, 100, 50), (0, 255, 128)
    image = decode(encode(rgba))
    np.testing.assert_allclose(image[0, 0], 0)
    np.testing.assert_allclose(image[0, 1], np.array([200, 100, 50]) / 255, atol=1e-6)
    np.testing.assert_allclose(image[0, 2], np.array([200, 100, 50]) / 255 * 128 / 255, atol=0.005)


def test_grey_with_alpha_is_laid_on_black_too():
    image = decode(encode(Image.fromarray(np.array([[[200, 0], [200, 255]]], np.uint8), "LA")))
    np.testing.assert_allclose(image[0, :, 0], [0, 200 / 255], atol=1e-6)


def test_palette_images_show_their_colours_and_their_transparent_entry_is_black():
    indices = Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8), "P")
    indices.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    np.testing.assert_array_equal(decode(encode(indices))[0], [[1, 0, 0], [0, 1, 0]])
    assert not decode(encode(indices, transparency=2))[1, 0].any()


def test_cmyk_becomes_colour():
    image = decode(encode(Image.new("CMYK", (4, 4), (0, 255, 255, 0)), "JPEG"))
    assert image.shape == (4, 4, 3)
    assert image[0, 0, 0] > 0.9
    assert image[0, 0, 1] < 0.1


def test_negative_and_large_values_of_float_tiff_stay_in_range():
    image = decode(encode(np.array([[-5, 0.5], [2, 4]], np.float32), "TIFF"))[..., 0]
    assert image.min() == 0
    assert image.max() == 1
    assert (np.diff(image.ravel()) > 0).all()


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.filterwarnings("ignore:invalid value")
def test_a_float_tiff_with_values_that_are_no_numbers_never_gives_pixels_that_are_none(value):
    damaged = encode(np.array([[value, 0.5], [1, 0]], np.float32), "TIFF")
    try:
        image = decode(damaged, "scan.tif")
    except ImageError as error:
        assert "scan.tif" in str(error)
    else:
        assert np.isfinite(image).all()


def test_dicom_is_scaled_to_its_range_and_monochrome1_inverted():
    deep = np.array([[100, 200], [300, 500]], np.uint16)
    np.testing.assert_allclose(decode(dicom(deep))[..., 0], [[0, 0.25], [0.5, 1]], atol=1e-3)
    np.testing.assert_allclose(decode(dicom(deep, "MONOCHROME1"))[..., 0], [[1, 0.75], [0.5, 0]], atol=1e-3)


def test_dicom_values_beyond_the_voi_window_saturate():
    deep = np.array([[0, 1000], [1500, 2000], [3000, 60000]], np.uint16)
    image = decode(dicom(deep, WindowCenter=1500, WindowWidth=1001))[..., 0]
    np.testing.assert_allclose(image, [[0, 0], [0.5, 1], [1, 1]], atol=0.01)


def test_dicom_with_several_frames_is_refused_by_its_name():
    with pytest.raises(ImageError, match=r"run\.dcm: has 3 frames; say which one"):
        decode(dicom(np.zeros((4, 4), np.uint16), NumberOfFrames=3), "run.dcm")


def recoded(data: bytes, syntax: int) -> bytes:
    """The same DICOM image in another transfer syntax."""
    with tempfile.TemporaryDirectory() as folder:
        plain, other = str(Path(folder) / "plain.dcm"), str(Path(folder) / "other.dcm")
        Path(plain).write_bytes(data)
        reader = gdcm.ImageReader()
        reader.SetFileName(plain)
        assert reader.Read()
        change = gdcm.ImageChangeTransferSyntax()
        change.SetTransferSyntax(gdcm.TransferSyntax(syntax))
        change.SetInput(reader.GetImage())
        assert change.Change()
        writer = gdcm.ImageWriter()
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        writer.SetFileName(other)
        assert writer.Write()
        return Path(other).read_bytes()


SYNTAXES = {
    "JPEG lossless": (gdcm.TransferSyntax.JPEGLosslessProcess14, JPEGLossless),
    "JPEG lossless, first order": (gdcm.TransferSyntax.JPEGLosslessProcess14_1, JPEGLosslessSV1),
    "JPEG-LS": (gdcm.TransferSyntax.JPEGLSLossless, JPEGLSLossless),
    "JPEG 2000 lossless": (gdcm.TransferSyntax.JPEG2000Lossless, JPEG2000Lossless),
    "RLE": (gdcm.TransferSyntax.RLELossless, RLELossless),
    "deflated": (gdcm.TransferSyntax.DeflatedExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian),
    "big endian": (gdcm.TransferSyntax.ExplicitVRBigEndian, ExplicitVRBigEndian),
    "implicit": (gdcm.TransferSyntax.ImplicitVRLittleEndian, ImplicitVRLittleEndian),
}


@pytest.mark.parametrize("name", SYNTAXES)
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_dicom_is_the_same_in_every_lossless_transfer_syntax(name, photometric):
    code, uid = SYNTAXES[name]
    deep = np.random.default_rng(0).integers(0, 4096, (33, 47), dtype=np.uint16)
    plain = dicom(deep, photometric, WindowCenter=2000, WindowWidth=3000)
    other = recoded(plain, code)
    assert pydicom.dcmread(io.BytesIO(other)).file_meta.TransferSyntaxUID == uid
    np.testing.assert_array_equal(decode(other), decode(plain))


def test_windowed_values_are_those_of_every_pixel_by_itself():
    deep = np.random.default_rng(0).integers(-32768, 32768, (60, 70), dtype=np.int16)
    deep[0, :2] = -32768, 32767
    tags = {"PixelRepresentation": 1, "RescaleSlope": 2, "RescaleIntercept": -100, "WindowCenter": 50}
    image = decode(dicom(deep, WindowWidth=20000, **tags))[..., 0]
    expected = (deep * 2.0 - 100 - 49.5) / 19999 + 0.5
    np.testing.assert_allclose(image, np.clip(expected, 0, 1), atol=1e-4)


def test_values_of_32_bits_are_scaled_too():
    deep = np.array([[0, 2**31], [2**30, 3 * 2**30]], np.uint32)
    np.testing.assert_allclose(decode(dicom(deep))[..., 0], deep / 2**32, atol=1e-6)


def test_an_empty_window_is_none():
    deep = np.array([[100, 200], [300, 500]], np.uint16)
    image = decode(dicom(deep, WindowCenter=None, WindowWidth=None))[..., 0]
    np.testing.assert_allclose(image, [[0, 0.25], [0.5, 1]], atol=1e-3)


def lut_sequence(first: int, values: list[int], bits: int) -> pydicom.Sequence:
    item = pydicom.Dataset()
    item.add_new("LUTDescriptor", "US", [len(values), first, bits])
    item.add_new("LUTData", "US", values)
    return pydicom.Sequence([item])


def test_a_voi_lut_maps_to_its_own_range_even_where_it_falls():
    deep = np.array([[10, 11], [12, 13]], np.uint16)
    image = decode(dicom(deep, VOILUTSequence=lut_sequence(10, [1000, 4095, 500, 0], 12)))[..., 0]
    np.testing.assert_allclose(image, np.array([[1000, 4095], [500, 0]]) / 4095, atol=1e-6)


def test_padding_is_black_and_takes_no_part_in_the_range():
    deep = np.array([[65535, 100], [200, 500], [65535, 300]], np.uint16)
    image = decode(dicom(deep, PixelPaddingValue=65535))[..., 0]
    np.testing.assert_allclose(image, [[0, 0], [0.25, 1], [0, 0.5]], atol=1e-3)
    image = decode(dicom(deep, "MONOCHROME1", PixelPaddingValue=65535))[..., 0]
    np.testing.assert_allclose(image, [[0, 1], [0.75, 0], [0, 0.5]], atol=1e-3)


def test_padding_can_be_a_range_and_the_whole_picture():
    deep = np.array([[0, 7, 100], [20, 60, 300]], np.uint16)
    image = decode(dicom(deep, PixelPaddingValue=20, PixelPaddingRangeLimit=0))[..., 0]
    np.testing.assert_allclose(image, [[0, 0, 40 / 240], [0, 0, 1]], atol=1e-6)
    assert not decode(dicom(np.full((4, 4), 9, np.uint16), PixelPaddingValue=9)).any()


def test_dicom_in_colour_keeps_its_colours():
    np.testing.assert_allclose(decode(dicom(COLOUR, "RGB")), COLOUR / 255, atol=1e-6)


def test_dicom_in_luma_and_chroma_becomes_red_green_and_blue():
    stored = np.asarray(Image.fromarray(COLOUR).convert("YCbCr"))
    np.testing.assert_allclose(decode(dicom(stored, "YBR_FULL")), COLOUR / 255, atol=0.02)


def test_dicom_with_a_palette_shows_its_colours():
    data = pydicom.dcmread(io.BytesIO(dicom(np.array([[0, 1], [2, 1]], np.uint8), "PALETTE COLOR")))
    for colour, values in {"Red": [255, 0, 0], "Green": [0, 255, 0], "Blue": [0, 0, 128]}.items():
        table = (np.array(values, np.uint16) * 257).tobytes()
        data.add_new(f"{colour}PaletteColorLookupTableDescriptor", "US", [3, 0, 16])
        data.add_new(f"{colour}PaletteColorLookupTableData", "OW", table)
    buffer = io.BytesIO()
    data.save_as(buffer)
    image = decode(buffer.getvalue())
    np.testing.assert_allclose(image, [[[1, 0, 0], [0, 1, 0]], [[0, 0, 128 / 255], [0, 1, 0]]], atol=1e-4)


# how large its pixels are


def test_spacing_is_that_on_the_patient_before_that_on_the_detector():
    pixels = np.zeros((4, 4), np.uint16)
    assert pixel_spacing(dicom(pixels)) is None
    assert pixel_spacing(encode(GREY)) is None
    assert pixel_spacing(dicom(pixels, NominalScannedPixelSpacing=[0.3, 0.4])) == (0.3, 0.4)
    both = dicom(pixels, ImagerPixelSpacing=[0.14, 0.15], PixelSpacing=[0.2, 0.25])
    assert pixel_spacing(both) == (0.2, 0.25)
    assert pixel_spacing(dicom(pixels, ImagerPixelSpacing=[0.14, 0.15], PixelSpacing=[0, 1])) == (0.14, 0.15)


@pytest.mark.parametrize("value", [[0, 0], [-1, 1], [1], None])
@pytest.mark.filterwarnings("ignore")
def test_a_spacing_that_cannot_be_is_not_known(value):
    assert pixel_spacing(dicom(np.zeros((4, 4), np.uint16), PixelSpacing=value)) is None


def test_a_damaged_header_has_no_spacing():
    assert pixel_spacing(b"\0" * 128 + b"DICM" + b"junk" * 9) is None


# what is refused


@pytest.mark.parametrize(
    ("kind", "options"), [("TIFF", {}), ("PNG", {}), ("PNG", {"default_image": True}), ("MPO", {})]
)
def test_a_file_of_several_images_is_refused_by_its_name(kind, options):
    buffer = io.BytesIO()
    first, second = Image.fromarray(GREY), Image.fromarray(255 - GREY)
    first.save(buffer, kind, save_all=True, append_images=[second], **options)
    with pytest.raises(ImageError, match=r"stack: has more than one page or frame; say which one is meant"):
        decode(buffer.getvalue(), "stack")


def test_an_animation_of_one_frame_is_an_image():
    buffer = io.BytesIO()
    Image.fromarray(GREY).save(buffer, "PNG", save_all=True)
    assert np.array_equal(images.decode(buffer.getvalue())[..., 0], GREY)


def test_the_pages_of_a_tiff_are_not_counted(monkeypatch):
    """A few bytes a page make a file of thousands, and to find how many takes time that grows with their square."""
    buffer = io.BytesIO()
    Image.fromarray(GREY).save(buffer, "TIFF")
    data = bytearray(buffer.getvalue())
    start = struct.unpack_from("<I", data, 4)[0]
    following = start + 2 + 12 * struct.unpack_from("<H", data, start)[0]
    for _ in range(3000):
        struct.pack_into("<I", data, following, len(data))
        following = len(data) + 2 + 2 * 12
        data += struct.pack("<H" + 2 * "HHII" + "I", 2, 256, 4, 1, 8, 257, 4, 1, 8, 0)
    read = []
    load = TiffImagePlugin.ImageFileDirectory_v2.load
    monkeypatch.setattr(TiffImagePlugin.ImageFileDirectory_v2, "load", lambda *given: read.append(load(*given)))
    with pytest.raises(ImageError, match="more than one page"):
        decode(bytes(data))
    assert len(read) <= 2


@pytest.mark.parametrize("tag", ["Rows", "Columns", "BitsAllocated", "PixelData"])
def test_a_dicom_file_without_an_image_is_refused(tag):
    data = pydicom.dcmread(io.BytesIO(dicom(np.zeros((4, 4), np.uint16))))
    delattr(data, tag)
    buffer = io.BytesIO()
    data.save_as(buffer)
    with pytest.raises(ImageError, match=rf"report\.dcm: the DICOM file holds no image \(it has no {tag}\)"):
        decode(buffer.getvalue(), "report.dcm")


def test_a_deflated_bomb_is_refused_before_it_is_unpacked(monkeypatch):
    monkeypatch.setattr("csr.data.limits.MAX_INFLATED", 10_000)
    monkeypatch.setattr("pydicom.dcmread", lambda *given: pytest.fail("was unpacked"))
    small, large = (np.zeros((side, side), np.uint16) for side in (8, 400))
    bomb = recoded(dicom(large), gdcm.TransferSyntax.DeflatedExplicitVRLittleEndian)
    assert len(bomb) < 10_000
    with pytest.raises(ImageError, match=r"bomb\.dcm: unpacks to more than 10,000 bytes"):
        decode(bomb, "bomb.dcm")
    monkeypatch.undo()
    monkeypatch.setattr("csr.data.limits.MAX_INFLATED", 10_000)
    decode(recoded(dicom(small), gdcm.TransferSyntax.DeflatedExplicitVRLittleEndian))


def every_kind() -> dict[str, bytes]:
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    kinds = {kind: encode(noise, kind) for kind in ("PNG", "JPEG", "TIFF")}
    return kinds | {"DICOM": dicom(np.zeros((40, 40), np.uint16))}


@pytest.mark.parametrize("share", [0.02, 0.3, 0.9])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "DICOM"])
@pytest.mark.filterwarnings("ignore")
def test_a_truncated_file_is_refused_by_its_name(kind, share):
    data = every_kind()[kind]
    with pytest.raises(ImageError, match="chest7"):
        decode(data[: int(len(data) * share)], "chest7")


@pytest.mark.parametrize("data", [b"", b"\0", b"not an image" * 50, b"\0" * 128 + b"DICM" + b"junk" * 9, b"%PDF-1.7"])
@pytest.mark.filterwarnings("ignore")
def test_bytes_that_are_no_image_are_refused_by_their_name(data):
    with pytest.raises(ImageError, match="chest7"):
        decode(data, "chest7")


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(["PNG", "JPEG", "TIFF", "DICOM"]), st.data())
@pytest.mark.filterwarnings("ignore")
def test_a_file_with_altered_bytes_is_decoded_or_refused_but_nothing_else(kind, data):
    altered = bytearray(every_kind()[kind])
    for _ in range(data.draw(st.integers(1, 4))):
        altered[data.draw(st.integers(0, min(400, len(altered) - 1)))] = data.draw(st.integers(0, 255))
    try:
        image = decode(bytes(altered), "chest7")
    except ImageError as error:
        assert "chest7" in str(error)
    else:
        assert image.ndim == 3
        assert image.shape[2] in (1, 3)
        assert 0 <= image.min() <= image.max() <= 1


@pytest.mark.parametrize("kind", ["GIF", "ICO", "PPM"])
def test_other_formats_that_pillow_knows_are_refused_by_their_name(kind):
    with pytest.raises(ImageError, match="chest7"):
        decode(encode(COLOUR, kind), "chest7")


@pytest.mark.parametrize("exif", [b"garbage", b"II*\0\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\xff\xff"])
@pytest.mark.filterwarnings("ignore")
def test_a_damaged_exif_block_is_no_reason_to_crash(exif):
    try:
        image = decode(encode(GREY, "PNG", exif=exif), "chest7")
    except ImageError as error:
        assert "chest7" in str(error)
    else:
        assert image.shape[:2] == (6, 8)


@pytest.mark.parametrize("size", [(MAX_PIXELS // 8000 + 1, 8000), (10_000, 10_000), (60_000, 60_000)])
def test_a_decompression_bomb_is_refused_before_it_is_unpacked(size):
    with pytest.raises(ImageError, match=r"bomb\.png.*limit"):
        decode(png_header(*size), "bomb.png")


def test_a_large_dicom_is_refused_by_the_same_limit(monkeypatch):
    monkeypatch.setattr("csr.data.limits.MAX_PIXELS", 15)
    with pytest.raises(ImageError, match=r"chest7.*limit"):
        decode(dicom(np.zeros((4, 4), np.uint16)), "chest7")


# onto the canvas


@pytest.mark.parametrize("side", [10, 37, 64])
@pytest.mark.parametrize("kind", [np.uint8, np.float32])
def test_a_large_picture_is_averaged_and_not_sampled(side, kind):
    """Against the mean over each canvas pixel's own area of a smooth picture."""
    rows, columns = np.mgrid[0:640, 0:640] / 640
    smooth = 0.5 + 0.3 * np.sin(5 * rows) * np.cos(4 * columns)
    noisy = smooth + 0.2 * (np.indices((640, 640)).sum(0) % 2 - 0.5)  # a fine pattern that sampling would alias
    image = (noisy * 255).astype(np.uint8) if kind is np.uint8 else noisy.astype(np.float32)
    canvas, _ = fit(image[..., None], side, 1)
    y, x = ((np.arange(side) + 0.5) / side)[:, None], (np.arange(side) + 0.5) / side
    expected = (0.5 + 0.3 * np.sin(5 * y) * np.cos(4 * x)) * 255
    assert np.abs(canvas[0] - expected).max() < 4


def test_a_picture_of_the_canvas_s_size_lies_on_it_as_it_is():
    """Every grey level, and as it would if it had been floats."""
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    canvas, _ = fit(levels, 16, 1)
    np.testing.assert_array_equal(canvas[0], levels[..., 0])
    np.testing.assert_array_equal(canvas, fit(levels / np.float32(255), 16, 1)[0])


def test_8_bits_fit_like_the_same_picture_in_floats():
    image = np.random.default_rng(0).integers(0, 256, (301, 257, 3), dtype=np.uint8)
    for side in (20, 100, 301, 500):
        stored, floats = fit(image, side, 3)[0], fit(image / np.float32(255), side, 3)[0]
        assert np.abs(stored.astype(int) - floats).max() <= 1


@CASES
@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 3]), st.sampled_from([1, 3]))
def test_an_image_of_any_shape_is_centred_on_the_canvas_with_its_aspect_and_black_margins(height, width, depth, out):
    canvas, placement = fit(np.ones((height, width, depth), np.float32), 24, out)
    assert canvas.shape == (out, 24, 24)
    assert canvas.dtype == np.uint8
    expected_h = max(1, round(height * 24 / max(height, width)))
    expected_w = max(1, round(width * 24 / max(height, width)))
    rows, columns = np.flatnonzero(canvas[0].any(1)), np.flatnonzero(canvas[0].any(0))
    assert (len(rows), len(columns)) == (expected_h, expected_w)
    assert (placement.left, placement.top) == (columns[0], rows[0])
    assert abs((24 - rows[-1] - 1) - rows[0]) <= 1
    assert abs((24 - columns[-1] - 1) - columns[0]) <= 1
    assert (canvas[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] == 255).all()


def test_colour_becomes_grey_by_luma_and_grey_is_repeated():
    colour = np.zeros((4, 4, 3), np.float32)
    colour[..., 1] = 1
    assert (fit(colour, 4, 1)[0] == round(0.587 * 255)).all()
    grey = fit(np.full((4, 4, 1), 0.5, np.float32), 4, 3)[0]
    assert (grey == grey[:1]).all()


def test_a_bright_square_lands_where_its_placement_says():
    image = np.zeros((60, 100, 1), np.float32)
    image[20:40, 50:80] = 1
    canvas, placement = fit(image, 50, 1)
    left, top, right, bottom = placement.to_canvas(np.array([[50, 20, 80, 40]]))[0]
    rows, columns = np.nonzero(canvas[0] > 127)
    assert (columns.min(), rows.min()) == pytest.approx((left, top), abs=1)
    assert (columns.max() + 1, rows.max() + 1) == pytest.approx((right, bottom), abs=1)


@CASES
@given(
    st.integers(1, 3000),
    st.integers(1, 3000),
    st.lists(st.tuples(*[st.floats(-50, 3000)] * 4), min_size=1, max_size=3),
)
def test_boxes_return_from_the_canvas_as_they_went(width, height, boxes):
    placement = Placement(width, height, 224 / max(width, height), 3, 17)
    back = placement.to_image(placement.to_canvas(np.array(boxes)))
    np.testing.assert_allclose(back, boxes, atol=1e-6)


@CASES
@given(st.integers(1, 60), st.integers(1, 60))
def test_the_whole_image_as_a_box_covers_its_place_on_the_canvas(height, width):
    canvas, placement = fit(np.ones((height, width, 1), np.float32), 32, 1)
    left, top, right, bottom = placement.to_canvas(np.array([[0, 0, width, height]]))[0]
    rows, columns = np.nonzero(canvas[0])
    assert (left, top) == (columns.min(), rows.min())
    assert (right, bottom) == pytest.approx((columns.max() + 1, rows.max() + 1), abs=1)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_canvas_written_as_png_comes_back_pixel_by_pixel(channels):
    canvas = np.random.default_rng(1).integers(0, 256, (channels, 16, 16), dtype=np.uint8)
    again, _ = fit(decode(to_png(canvas)), 16, channels)
    np.testing.assert_array_equal(again, canvas)


# the address of a study


def test_equal_pixels_have_equal_digests_whatever_the_file_or_the_memory_layout():
    canvas = np.random.default_rng(1).integers(0, 256, (1, 16, 16), dtype=np.uint8)
    digests = {pixel_digest(fit(decode(encode(canvas[0], kind)), 16, 1)[0]) for kind in ("PNG", "TIFF")}
    digests |= {pixel_digest(canvas), pixel_digest(np.asfortranarray(canvas)), pixel_digest(canvas[:, ::-1][:, ::-1])}
    assert len(digests) == 1


@CASES
@given(st.integers(0, 15), st.integers(0, 15), st.integers(1, 255))
def test_one_other_pixel_gives_another_digest(row, column, change):
    canvas = np.full((1, 16, 16), 7, np.uint8)
    other = canvas.copy()
    other[0, row, column] = (7 + change) % 256
    assert pixel_digest(other) != pixel_digest(canvas)


def test_the_same_bytes_in_another_shape_have_another_digest():
    canvas = np.zeros((1, 4, 9), np.uint8)
    assert pixel_digest(canvas) != pixel_digest(canvas.reshape(1, 6, 6))


# files that would hold a decoder for minutes


def chained_tiff(pages: int) -> bytes:
    """A TIFF whose directories are a chain of very many: the same small image each time."""
    buffer = io.BytesIO()
    Image.fromarray(np.full((8, 8), 7, np.uint8)).save(buffer, "TIFF")
    data = bytearray(buffer.getvalue())
    start = int.from_bytes(data[4:8], "little")
    entries = int.from_bytes(data[start : start + 2], "little")
    directory = bytes(data[start : start + 2 + 12 * entries])
    for _ in range(pages - 1):
        data += b"\0" * (len(data) % 2)
        link = start + len(directory)
        data[link : link + 4] = len(data).to_bytes(4, "little")
        start = len(data)
        data += directory + b"\0\0\0\0"
    return bytes(data)


@pytest.mark.timed
def test_a_chain_of_tiff_directories_is_not_counted_to_its_end():
    small, large = chained_tiff(3), chained_tiff(30_000)
    for data in (small, large):
        started = time.perf_counter()
        with pytest.raises(ImageError, match="more than one page"):
            decode(data, "chain.tif")
        assert time.perf_counter() - started < 1


def progressive(scans: int) -> bytes:
    """A progressive JPEG in which one scan is written again and again."""
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8)).save(
        buffer, "JPEG", progressive=True
    )
    data = buffer.getvalue()
    first = data.rindex(b"\xff\xda")
    return data[:first] + data[first:-2] * scans + data[-2:]


def test_a_jpeg_of_very_many_scans_is_refused_before_it_is_decoded():
    assert decode(progressive(3)).shape == (64, 64, 1)
    with pytest.raises(ImageError, match=rf"scans\.jpg: the JPEG file has more than {MAX_SCANS} scans, the limit"):
        decode(progressive(2_000), "scans.jpg")


@pytest.mark.timed
@pytest.mark.parametrize("deflated", [False, True])
def test_a_dicom_file_of_very_many_items_is_refused_before_it_is_parsed(deflated):
    item = b"\xfe\xff\x00\xe0\xff\xff\xff\xff\xfe\xff\x0d\xe0\x00\x00\x00\x00"
    sequence = b"\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff" + item * 300_000 + b"\xfe\xff\xdd\xe0\0\0\0\0"
    syntax = ("1.2.840.10008.1.2.1.99" if deflated else "1.2.840.10008.1.2.1").encode()
    syntax += b"\0" * (len(syntax) % 2)
    meta = b"\x02\x00\x10\x00UI" + len(syntax).to_bytes(2, "little") + syntax
    head = b"\0" * 128 + b"DICM\x02\x00\x00\x00UL\x04\x00" + len(meta).to_bytes(4, "little") + meta
    compressor = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    body = compressor.compress(sequence) + compressor.flush() if deflated else sequence
    started = time.perf_counter()
    with pytest.raises(ImageError, match=rf"items\.dcm: .*more than {MAX_ITEMS:,} items of sequences"):
        decode(head + body, "items.dcm")
    assert time.perf_counter() - started < 2


@pytest.mark.parametrize("make", ["png", "dicom"])
def test_memory_that_runs_out_is_no_damage_of_the_file(make, monkeypatch):
    """Whoever decodes within a limit must know."""
    data = encode(np.zeros((4, 4), np.uint8)) if make == "png" else dicom(np.zeros((4, 4), np.uint16))

    def exhausted(*args, **kwargs):
        raise MemoryError

    monkeypatch.setattr(Image.Image, "load", exhausted)
    monkeypatch.setattr("pydicom.dcmread", exhausted)
    with pytest.raises(MemoryError):
        decode(data)


# what the numbers of a file mean


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.float32])
def test_a_tiff_whose_white_is_zero_reads_like_one_whose_black_is(kind):
    """The tag is written into the file: Pillow would turn the pixels round while saving."""
    top = 1 if kind is np.float32 else np.iinfo(kind).max
    ramp = (np.arange(16).reshape(4, 4) / 15 * top).astype(kind)
    stored = encode(Image.fromarray(ramp), "TIFF")
    entry = struct.pack("<HHI", 262, 3, 1)
    assert stored.count(entry) == 1
    at = stored.index(entry) + len(entry)
    turned = stored[:at] + struct.pack("<H", 0) + stored[at + 2 :]
    np.testing.assert_allclose(decode(turned), 1 - decode(stored), atol=1e-6)


def test_dicom_pixels_that_are_no_image_of_its_rows_and_columns_are_refused():
    data = pydicom.dcmread(io.BytesIO(dicom(np.zeros((6, 4), np.uint16))))
    data.Rows = 2  # so that there are pixels for three images
    buffer = io.BytesIO()
    data.save_as(buffer)
    with pytest.raises(ImageError, match=r"x\.dcm: its pixel data is no image of 2 rows and 4 columns"):
        decode(buffer.getvalue(), "x.dcm")


def shown(pixels: np.ndarray) -> None:
    canvas, placement = fit(pixels[..., None], 64, 1)
    check_content(canvas, placement, "x.png")


@pytest.mark.parametrize(
    ("pixels", "reason"),
    [
        (np.zeros((100, 100), np.uint8), "shows nothing"),
        (np.full((100, 100), 255, np.uint8), "shows nothing"),
        (np.random.default_rng(0).integers(100, 103, (100, 100)).astype(np.uint8), "shows nothing"),
        (np.zeros((1, 1), np.uint8), "too few"),
        (np.random.default_rng(0).integers(0, 255, (15, 40)).astype(np.uint8), "15 pixels are too few"),
        (np.random.default_rng(0).integers(0, 255, (20, 300)).astype(np.uint8), "more than 10 times"),
    ],
)
def test_what_shows_nothing_is_refused(pixels, reason):
    with pytest.raises(ImageError, match=rf"x\.png: .*{reason}"):
        shown(pixels)


@CASES
@given(st.integers(0, 1000), st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 3, 256]))
def test_the_range_of_a_picture_is_that_between_two_percentiles(seed, height, width, shades):
    plane = np.random.default_rng(seed).integers(0, shades, (height, width)).astype(np.uint8)
    low, high = np.percentile(plane, (0.5, 99.5))
    assert _spread(plane) == pytest.approx(high - low, abs=1e-9)


def test_a_faint_picture_is_one():
    ramp = np.linspace(100, 110, 100).astype(np.uint8)
    shown(np.broadcast_to(ramp, (50, 100)).copy())
    spot = np.zeros((100, 100), np.uint8)
    spot[40:60, 40:60] = 200
    shown(spot)
