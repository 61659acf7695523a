"""Real DICOM files, and those that decoders do not read alike."""

from __future__ import annotations

import hashlib
import io
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.uid import ExplicitVRBigEndian

from csr.data.dicom import _stored
from csr.data.images import read_image
from csr.data.orientation import CHEST
from csr.errors import ImageError
from tests.csr.data.test_images import dicom

FOLDERS = [Path(pydicom.__file__).parent / "data/test_files"]
if (more := find_spec("data_store")) is not None:  # of the package pydicom-data, where it is installed
    FOLDERS += [Path(folder) / "data" for folder in more.submodule_search_locations or ()]
REAL = sorted(file for folder in FOLDERS for file in folder.glob("*.dcm"))


@pytest.mark.parametrize("file", REAL, ids=lambda file: file.name)
@pytest.mark.filterwarnings("ignore")
def test_real_files_are_read_or_refused_with_their_cause(file: Path) -> None:
    for frame in (None, 2):
        try:
            image = read_image(file.read_bytes(), file.name, CHEST, frame)
        except ImageError as error:
            message = str(error)
            assert message.startswith(f"{file.name}: ")
            assert "\n" not in message and not message.endswith((":", ": ", "()"))
        else:
            assert image.pixels.ndim == 3 and image.window
            assert 0 <= image.pixels.min() <= image.pixels.max() <= 1
            assert image.pixels.max() > 0.2, "nearly black"


# of the pixels that imagecodecs 2026.3.6 (libjpeg-turbo) decodes, little endian
LOSSY = {
    "JPEG-lossy.dcm": (0, 264, 14.369991302490234),
    "JPGExtended.dcm": (0, 264, 14.369991302490234),
}
LOSSY_DIGEST = "d30242775a414c01d616447854ebe3f2b20259822894bcd6891f879bcdcbf313"


@pytest.mark.parametrize("name", LOSSY)
def test_jpeg_extended_of_12_bits_is_decoded_as_libjpeg_turbo_does(name: str) -> None:
    dataset = pydicom.dcmread(str(get_testdata_file(name, download=False)))
    pixels = _stored(dataset, 0)
    assert pixels.shape == (1024, 256)
    assert (pixels.min(), pixels.max(), pixels.mean()) == LOSSY[name]
    assert hashlib.sha256(pixels.astype("<u2").tobytes()).hexdigest() == LOSSY_DIGEST


@pytest.mark.parametrize("damage", ["cut", "altered"])
@pytest.mark.filterwarnings("ignore")
def test_a_damaged_jpeg_extended_is_refused_or_read_but_nothing_else(damage: str) -> None:
    dataset = pydicom.dcmread(str(get_testdata_file("JPGExtended.dcm", download=False)))
    data = bytearray(dataset.PixelData)
    if damage == "cut":
        data = data[: len(data) // 2 & ~1]
    else:
        data[60:200] = bytes(140)
    dataset.PixelData = bytes(data)
    buffer = io.BytesIO()
    dataset.save_as(buffer)
    with pytest.raises(ImageError, match="lossy"):
        read_image(buffer.getvalue(), "lossy")


def palette(big: bool, scale: int) -> bytes:
    """Indices 0 to 3 and their colours; entries of 8 bits times a scale in words of 16."""
    data = pydicom.dcmread(io.BytesIO(dicom(np.array([[0, 1], [2, 3]], np.uint8), "PALETTE COLOR")))
    order = ">u2" if big else "<u2"
    for colour, values in {"Red": [255, 0, 0, 9], "Green": [0, 255, 0, 90], "Blue": [0, 0, 128, 200]}.items():
        data.add_new(f"{colour}PaletteColorLookupTableDescriptor", "US", [4, 0, 16])
        data.add_new(f"{colour}PaletteColorLookupTableData", "OW", (np.array(values) * scale).astype(order).tobytes())
    if big:
        data.PixelData = np.frombuffer(data.PixelData, "<u2").astype(">u2").tobytes()  # words, too
        data.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, data, enforce_file_format=True)
    return buffer.getvalue()


@pytest.mark.parametrize("big", [False, True], ids=["little", "big"])
@pytest.mark.parametrize("scale", [257, 1])
def test_palettes_of_either_byte_order_and_depth_show_their_colours(big: bool, scale: int) -> None:
    expected = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 128], [9, 90, 200]]]) / 255
    np.testing.assert_allclose(read_image(palette(big, scale)).pixels, expected, atol=1e-4)


def test_a_frame_is_read_by_its_number_with_what_is_said_of_it_alone() -> None:
    frames = np.random.default_rng(0).integers(0, 4096, (3, 20, 30)).astype(np.uint16)
    data = dicom(frames[0], NumberOfFrames=3, BitsStored=12)
    dataset = pydicom.dcmread(io.BytesIO(data))
    dataset.PixelData = frames.tobytes()
    groups = []
    for number in range(3):
        window = pydicom.Dataset()
        window.WindowCenter, window.WindowWidth = 1000 * (number + 1), 500
        group = pydicom.Dataset()
        group.FrameVOILUTSequence = [window]
        groups.append(group)
    dataset.PerFrameFunctionalGroupsSequence = groups
    buffer = io.BytesIO()
    dataset.save_as(buffer)
    for number in range(3):
        image = read_image(buffer.getvalue(), frame=number + 1)
        expected = np.clip((frames[number] - (1000.0 * (number + 1) - 0.5)) / 499 + 0.5, 0, 1)
        np.testing.assert_allclose(image.pixels[..., 0], expected, atol=1e-3)
        assert image.window == "window"
    for frame, reason in ((None, "has 3 frames; say which one"), (4, "has 3 frames, and none of number 4")):
        with pytest.raises(ImageError, match=f"run: {reason}"):
            read_image(buffer.getvalue(), "run", frame=frame)
