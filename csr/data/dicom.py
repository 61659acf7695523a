"""A DICOM file's bytes → its pixels with white as 1, and what brings them into the display orientation.

Grey values go through the transforms of PS3.3 C.11 in their order: modality LUT or rescale, VOI LUT or window, and
inversion. Photometric Interpretation MONOCHROME1 and Presentation LUT Shape INVERSE are two ways to say that the least
value is white, and where both are said (the DX image IOD wants that, PS3.3 C.8.11.3), it is still said once.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable

import numpy as np
import pydicom
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi, apply_windowing, pixel_array
from pydicom.uid import ExplicitVRBigEndian, JPEGExtended12Bit

from csr.data.grey_values import DEPTHS, Range, check_window, each_once, full_range, sample, scaled, value_range
from csr.data.limits import check_finite, check_size, check_structure
from csr.data.orientation import display_turn
from csr.errors import ImageError, cause_of

_NEEDED = ("Rows", "Columns", "BitsAllocated", "PixelData")  # no parametric maps of FloatPixelData
_BY_FRAME = ("PixelValueTransformationSequence", "FrameVOILUTSequence", "PlaneOrientationSequence")
_PALETTES = ("Red", "Green", "Blue")


def read_dicom(data: bytes, name: str, display: str | None, frame: int | None) -> tuple[np.ndarray, str, int]:
    """Decodes one image.

    Args:
        data: the file's bytes.
        name: of the file, for messages.
        display: see `csr.data.orientation.display_turn`.
        frame: of a file of several, from 1; None for one that has but one.

    Returns:
        H×W×C float32 in [0, 1] as stored, C = 1 or 3; how black and white were decided; what brings it upright.

    Raises:
        ImageError: see `csr.data.images.read_image`.
    """
    try:
        check_structure(data, name)
        dataset = pydicom.dcmread(io.BytesIO(data))
        if missing := [tag for tag in _NEEDED if tag not in dataset]:
            raise ImageError(f"{name}: the DICOM file holds no image (it has no {missing[0]})")
        number = _frame(dataset, name, frame)
        check_size(int(dataset.Columns), int(dataset.Rows), name)
        turn = display_turn(dataset, display, name)
        pixels = _stored(dataset, number)  # YBR has become RGB
        if pixels.shape not in ((size := (dataset.Rows, dataset.Columns)), (*size, 3)):
            raise ImageError(f"{name}: its pixel data is no image of {size[0]} rows and {size[1]} columns")
        if dataset.PhotometricInterpretation == "PALETTE COLOR":
            return _palette(pixels, dataset), "palette", turn
        if pixels.ndim == 3:
            low, high, how = _stored_range(pixels, dataset)
            return scaled(pixels, low, high), how, turn
        grey, how = _grey(pixels, dataset, name)
        return grey[..., None], how, turn
    except (ImageError, MemoryError):
        raise
    except Exception as error:  # pydicom and its decoders raise many types for damaged or partial files
        raise ImageError(f"{name}: the DICOM file cannot be decoded ({cause_of(error)})") from None


def dicom_spacing(data: bytes) -> tuple[float, float] | None:
    """Millimetres between the rows and between the columns of a DICOM image; None where it does not say so.

    On the patient where that is known (Pixel Spacing), else on the detector (Imager Pixel Spacing, which magnification
    makes larger than life) or the film (Nominal Scanned Pixel Spacing).
    """
    sources = ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing")
    try:
        dataset = pydicom.dcmread(io.BytesIO(data), stop_before_pixels=True, specific_tags=list(sources))
        for source in sources:
            spacing = dataset.get(source)
            if spacing is not None and len(spacing) == 2 and all(0 < value < np.inf for value in map(float, spacing)):
                return float(spacing[0]), float(spacing[1])
    except Exception:  # a spacing that cannot be read is not known; `read_dicom` speaks of damaged files
        return None
    return None


def _frame(dataset: pydicom.Dataset, name: str, frame: int | None) -> int:
    """The frame's number from 0; what enhanced images say of it alone is brought to where others say it."""
    frames = int(dataset.get("NumberOfFrames", 1) or 1)
    if frame is None and frames > 1:
        raise ImageError(f"{name}: has {frames} frames; say which one is meant by its number, from 1")
    if frame is not None and frames == 1:
        raise ImageError(f"{name}: has but one frame, so none can be chosen; leave its number out")
    number = (frame or 1) - 1
    if not 0 <= number < frames:
        raise ImageError(f"{name}: has {frames} frames, and none of number {frame}")
    own = dataset.get("PerFrameFunctionalGroupsSequence") or []
    for groups in (dataset.get("SharedFunctionalGroupsSequence") or [])[:1], own[number : number + 1]:
        for sequence in _BY_FRAME:
            if groups and groups[0].get(sequence):
                dataset.update(groups[0][sequence].value[0])
    return number


def _stored(dataset: pydicom.Dataset, number: int) -> np.ndarray:
    if dataset.file_meta.TransferSyntaxUID == JPEGExtended12Bit and int(dataset.BitsStored) > 8:
        from csr.data.extended_jpeg import extended_pixels  # imported on use: few files need it

        return extended_pixels(dataset, number)
    several = int(dataset.get("NumberOfFrames", 1) or 1) > 1
    return pixel_array(dataset, index=number if several else None)


def _palette(pixels: np.ndarray, dataset: pydicom.Dataset) -> np.ndarray:
    """Indices → colours. Tables are words (OW), which the big-endian transfer syntax swaps and pydicom leaves so."""
    if dataset.file_meta.TransferSyntaxUID == ExplicitVRBigEndian:
        for colour in _PALETTES:  # those of segments it does swap
            element = dataset.get_item(f"{colour}PaletteColorLookupTableData")
            if element is not None and element.VR == "OW":
                words = np.frombuffer(element.value, ">u2").astype("<u2")
                setattr(dataset, f"{colour}PaletteColorLookupTableData", words.tobytes())
    colours = apply_color_lut(pixels, dataset)[..., : len(_PALETTES)]
    top = np.iinfo(colours.dtype).max
    if top > 255 and max(_most(dataset.get(f"{name}PaletteColorLookupTableData")) for name in _PALETTES) <= 255:
        top = 255  # tables of 8-bit colours in 16-bit words
    return scaled(colours, 0, top)


def _most(table: object) -> int:
    """The greatest entry of a table of 16-bit words; what is no such table has any."""
    return int(np.frombuffer(table, "<u2").max()) if isinstance(table, bytes) and len(table) % 2 == 0 else 2**16


def _grey(pixels: np.ndarray, dataset: pydicom.Dataset, name: str) -> tuple[np.ndarray, str]:
    """Stored H×W values → float32 in [0, 1], white is 1, and how black and white were decided."""
    padding = _padding(pixels, dataset)
    shown = pixels if padding is None else pixels[~padding]
    if not shown.size:
        return np.zeros(pixels.shape, np.float32), "padding"
    tones, how = _tones(dataset, shown, name)
    image = each_once(pixels, tones)
    check_window(image if padding is None else image[~padding], shown, name)
    if padding is not None:
        image[padding] = 0
    return image, how


def _padding(pixels: np.ndarray, dataset: pydicom.Dataset) -> np.ndarray | None:
    """Which pixels are no part of the picture (PS3.3 C.7.5.1.1.2)."""
    if dataset.get("PixelPaddingValue") is None:
        return None
    first = int(dataset.PixelPaddingValue)
    last = int(dataset.get("PixelPaddingRangeLimit", first))
    return (pixels >= min(first, last)) & (pixels <= max(first, last))


def _tones(dataset: pydicom.Dataset, shown: np.ndarray, name: str) -> tuple[Callable[[np.ndarray], np.ndarray], str]:
    """What makes float32 in [0, 1] of stored values, and how it decides what is black and white.

    A VOI LUT comes before a window, the first of several is taken, and black and white are the ends of the range that
    it maps to (PS3.3 C.11.2.1). Without either, or with a window of no width, see `csr.data.grey_values`.
    """
    voi: Callable[[np.ndarray], np.ndarray] = lambda values: values  # noqa: E731
    if luts := dataset.get("VOILUTSequence"):
        bits = _lut_bits(luts[0])
        low, high, how = *full_range(bits), "VOI LUT"
        voi = lambda values: apply_voi(values, dataset)  # noqa: E731
    elif _has_window(dataset):
        low, high = _modality_range(dataset)
        how = "window"
        voi = lambda values: apply_windowing(values, dataset)  # noqa: E731
    else:
        low, high, how = _stored_range(shown, dataset)
    inverted = dataset.PhotometricInterpretation == "MONOCHROME1" or dataset.get("PresentationLUTShape") == "INVERSE"

    def tones(values: np.ndarray) -> np.ndarray:
        values = np.asarray(voi(apply_modality_lut(values, dataset)), np.float32)
        check_finite(values, name)
        shades = scaled(values, low, high)
        return np.subtract(1, shades, out=shades) if inverted else shades

    return tones, f"{how}; inverted" if inverted else how


def _has_window(dataset: pydicom.Dataset) -> bool:
    """Whether there is a window, and one that its function can use (PS3.3 C.11.2.1.2 and C.11.2.1.3)."""
    pair = dataset.get("WindowCenter"), dataset.get("WindowWidth")
    centre, width = (float(each[0] if isinstance(each, pydicom.multival.MultiValue) else each) if each not in (None, "")
                     else math.nan for each in pair)  # fmt: skip
    least = 1 if dataset.get("VOILUTFunction", "LINEAR") == "LINEAR" else 1e-12
    return math.isfinite(centre) and math.isfinite(width) and width >= least


def _stored_range(values: np.ndarray, dataset: pydicom.Dataset) -> Range:
    """Of stored values that no VOI transform is given for, after the modality transform."""
    luts = dataset.get("ModalityLUTSequence")
    bits = int(luts[0].LUTDescriptor[2]) if luts else int(dataset.BitsStored)
    low, high = _modality_range(dataset)
    if bits <= 8:
        return low, high, f"BitsStored {bits}"
    if values.ndim == 3:
        return value_range(values, (low, high), f"BitsStored {bits}")
    return value_range(apply_modality_lut(sample(values), dataset), (low, high), f"BitsStored {bits}")


def _modality_range(dataset: pydicom.Dataset) -> tuple[float, float]:
    """The least and the greatest value that the modality transform can give."""
    if luts := dataset.get("ModalityLUTSequence"):
        return full_range(int(luts[0].LUTDescriptor[2]))
    low, high = full_range(int(dataset.BitsStored), bool(dataset.get("PixelRepresentation", 0)))
    slope, intercept = float(dataset.get("RescaleSlope", 1)), float(dataset.get("RescaleIntercept", 0))
    return min(low * slope, high * slope) + intercept, max(low * slope, high * slope) + intercept


def _lut_bits(lut: pydicom.Dataset) -> int:
    """Of a LUT's entries: as it says, or fewer, if they use fewer."""
    stated, entries = int(lut.LUTDescriptor[2]), lut.LUTData
    values = np.frombuffer(entries, "<u2") if isinstance(entries, bytes) else np.asarray(entries)
    return next((bits for bits in DEPTHS if bits < stated and values.max() < 2**bits), stated)
