"""What the numbers of an image mean: which of them is black and which is white.

Decided once, for training and serving alike. In this order:

1. what is stored in at most 8 bits is shown as it is;
2. a file that says what its values are is believed where they bear it out (DICOM's window or LUT is applied before,
   see `csr.data.dicom`): significant bits (PNG's sBIT, DICOM's Bits Stored, TIFF's tags), if the values fill at least
   half of that range, or else the whole of the container's;
3. values from 0 that fill at least half of 8, 10, 12, 14 or 16 bits are of so many bits: 12-bit values in a file of 16;
4. where nothing says anything, black and white are two percentiles, so that one hot pixel does not make a picture dark.

Percentiles stand for the least and greatest value throughout.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from csr.data.limits import check_finite
from csr.errors import ImageError

DEPTHS = (8, 10, 12, 14, 16)  # bits that detectors and converters use
ROBUST = (0.1, 99.9)  # percentiles; a marker of lead fills more of a radiograph than the rest
LEAST_RANGE = 4  # grey levels of 255 that a picture must have
_SAMPLE = 2**14  # pixels that are looked at to find percentiles
_TABLE = 2**16  # grey values up to which they are looked up instead of computed pixel by pixel
_BAND = 64  # rows

Range = tuple[float, float, str]  # black, white, how that was decided


def full_range(bits: int, signed: bool = False) -> tuple[float, float]:
    """The least and the greatest number of so many bits."""
    return (-(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1) if signed else (0.0, 2.0**bits - 1)


def value_range(values: np.ndarray, stated: tuple[float, float] | None, how: str) -> Range:
    """What is black and what is white among values of more than 8 bits; see the module's docstring.

    Args:
        values: any shape; at least one.
        stated: the least and the greatest value that the file says it can hold, None where it says nothing.
        how: what says so.
    """
    least, most = (float(value) for value in np.percentile(sample(values), ROBUST))
    if stated is not None:
        low, high = stated
        within = low <= least and most <= high  # a file that its own values contradict is not believed
        if within and most - (0 if low == 0 else least) >= (high - low) / 2:
            return low, high, how
    if least >= 0 and most > 1:
        bits = next((bits for bits in DEPTHS if most < 2**bits), None)
        if bits is not None and most >= 2 ** (bits - 1):
            return *full_range(bits), f"{bits} bits are used"
    if least >= 0 and most <= 1 and values.dtype.kind == "f":
        return 0.0, 1.0, "0 to 1"
    return least, most, f"percentiles {ROBUST[0]} and {ROBUST[1]}"


def sample(values: np.ndarray) -> np.ndarray:
    """About `_SAMPLE` of the values, evenly spread over rows and columns; all of a small image."""
    if values.ndim == 1:
        return values[:: max(1, len(values) // _SAMPLE)]
    if values.shape[0] * values.shape[1] <= _SAMPLE:
        return values
    step = int(np.sqrt(values.shape[0] * values.shape[1] / _SAMPLE))
    return values[::step, ::step]


def scaled(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """As float32 in [0, 1]; what lies outside the range is black or white."""
    tones = np.subtract(values, low, dtype=np.float32)
    np.divide(tones, max(high - low, 1e-6), out=tones)
    return np.clip(tones, 0, 1, out=tones)


def each_once(values: np.ndarray, tones: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """What a function of single values makes of H×W of them, float32; of integers each is computed but once."""
    low, high = values.min(), values.max()
    if values.dtype.kind not in "iu" or int(high) - int(low) >= _TABLE:
        return tones(values)
    table = tones(np.arange(int(low), int(high) + 1).astype(values.dtype))
    image = np.empty(values.shape, np.float32)
    for top in range(0, len(values), _BAND):  # a few rows at a time stay in the processor's cache
        rows = slice(top, top + _BAND)
        np.take(table, np.subtract(values[rows], int(low), dtype=np.intp), out=image[rows], mode="clip")
    return image


def grey_image(
    values: np.ndarray, bits: int | None, how: str, name: str, white_is_zero: bool = False
) -> tuple[np.ndarray, str]:
    """H×W or H×W×3 values of a file other than DICOM → float32 in [0, 1], and how their range was decided.

    Args:
        bits: that the file says are significant, None where it says nothing.
        how: what says so.
        name: of the file, for messages.

    Raises:
        ImageError: pixels are no numbers.
    """
    if values.dtype.kind == "f":
        check_finite(values, name)
    low, high, how = value_range(values, None if bits is None else full_range(bits), how)
    tones = scaled(values, low, high)
    return (np.subtract(1, tones, out=tones), f"{how}; inverted") if white_is_zero else (tones, how)


def _spread(values: np.ndarray) -> float:
    low, high = np.percentile(sample(values), (0.5, 99.5))
    return float(high - low)


def check_window(tones: np.ndarray, stored: np.ndarray, name: str) -> None:
    """Refuses an image of which a window or LUT leaves nothing to see.

    Args:
        tones: in [0, 1], after it.
        stored: the same pixels before it.

    Raises:
        ImageError: pixels that differ have become one grey.
    """
    if _spread(tones) < LEAST_RANGE / 255 and _spread(stored) > 0:
        raise ImageError(f"{name}: its window or LUT makes nearly all of its pixels one grey; correct or remove it")
