"""Leaks between splits: what training has seen must not be judged on.

Three kinds, of studies in different splits: the same patient, the same pixels, and nearly the same picture, by a
perceptual hash (the signs of the lowest 16×16 frequencies of a discrete cosine transform; Zauner 2010). A picture that
was scaled, re-encoded or brightened keeps its hash but for a few bits.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import combinations

import numpy as np
import pandas as pd
from PIL import Image
from scipy.fft import dct

from csr.data.images import pixel_digest
from csr.data.records import SPLITS, Collection

SIDE = 64  # pixels that a picture is hashed at
FREQUENCIES = 16
WAVES = dct(np.eye(SIDE), norm="ortho", axis=0)[:FREQUENCIES]
NEAR = 12  # of 256 bits; unrelated pictures differ in about 128
BLOCK = 1024  # hashes compared at a time


def perceptual_hash(canvas: np.ndarray) -> np.ndarray:
    """C×S×S uint8 → 4 uint64, 256 bits."""
    grey = Image.fromarray(canvas.mean(0, dtype=np.float32)).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    low = np.round(WAVES @ np.asarray(grey, np.float64) @ WAVES.T, 6).ravel()  # a flat picture has no pattern but noise
    bits = low > np.sort(low[1:])[FREQUENCIES**2 // 2 - 1]  # the median without the first, the mean brightness
    return np.packbits(bits).view(np.uint64)


class Fingerprints:
    """What is remembered of every picture while a set is decoded: 64 bytes each."""

    def __init__(self) -> None:
        self.digests: list[bytes] = []
        self.hashes: list[np.ndarray] = []

    def add(self, canvas: np.ndarray) -> None:
        self.digests.append(bytes.fromhex(pixel_digest(canvas)))
        self.hashes.append(perceptual_hash(canvas))


def find_leaks(collection: Collection, prints: Fingerprints, near: int = NEAR) -> Iterator[str]:
    """A sentence for each leak, naming both studies.

    Args:
        collection: its studies are in the order of ``prints``.
        near: largest distance in bits of two hashes that counts as the same picture; -1 compares pixels only.
    """
    studies = collection.studies
    named = (studies["study_id"] + " (" + studies["split"] + ")").to_numpy()
    for patient, rows in _in_several_splits(studies, studies["patient_id"]):
        yield f"a patient is in several splits: {patient!r} with {_some(named[rows])}"
    same: set[tuple[int, int]] = set()
    for _, rows in _in_several_splits(studies, pd.Series(prints.digests, dtype=object)):
        same |= set(combinations(rows, 2))
        yield f"the same pixels are in several splits: {_some(named[rows])}"
    if near < 0:
        return
    hashes = np.array(prints.hashes, np.uint64).reshape(-1, FREQUENCIES**2 // 64)
    for first, second in combinations(SPLITS, 2):
        ours, theirs = collection.rows(first), collection.rows(second)
        for start in range(0, len(ours), BLOCK):
            block = ours[start : start + BLOCK]
            distance = np.zeros((len(block), len(theirs)), np.uint16)
            for word in range(hashes.shape[1]):
                distance += np.bitwise_count(hashes[block, word, None] ^ hashes[None, theirs, word])
            for i, j in np.argwhere(distance <= near):
                pair = block[i], theirs[j]
                if tuple(sorted(pair)) not in same:
                    apart = f"{distance[i, j]} of 256 bits differ"
                    yield f"nearly the same picture is in two splits: {_some(named[list(pair)])}; {apart}"


def _in_several_splits(studies: pd.DataFrame, key: pd.Series) -> Iterator[tuple[str | bytes, list[int]]]:
    """Each key that studies of several splits share, and their rows."""
    spread = studies["split"].groupby(key).transform("nunique") > 1
    for shared, rows in studies.index[spread].groupby(key[spread]).items():
        yield shared, list(rows)


def _some(names: Iterable[str], most: int = 4) -> str:
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
