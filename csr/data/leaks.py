"""Leaks between splits: what training has seen must not be judged on.

Three kinds, of studies in different splits: the same patient, the same pixels, and nearly the same picture, by a
perceptual hash (the signs of the lowest 16×16 frequencies of a discrete cosine transform; Zauner 2010). A picture that
was scaled, re-encoded or brightened keeps its hash but for a few bits.

Near hashes are not looked for among all pairs, whose number grows with the square of the studies': two hashes of 256
bits that differ in at most d of them are equal in at least one of d + 1 parts (Manber 1994; Norouzi et al. 2012), so
only hashes that share a part are compared.
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
BITS = FREQUENCIES**2
PAIRS = 1 << 20  # compared at a time
BLOCK = 4096  # hashes taken apart at a time, which stay in the processor's cache


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
    for _, rows in _in_several_splits(studies, pd.Series(prints.digests, dtype=object)):
        yield f"the same pixels are in several splits: {_some(named[rows])}"
    if near < 0:
        return
    hashes = np.array(prints.hashes, np.uint64).reshape(-1, BITS // 64)
    for first, second in combinations(SPLITS, 2):
        ours, theirs = collection.rows(first), collection.rows(second)
        for i, j, differing in near_pairs(hashes[ours], hashes[theirs], near):
            pair = [ours[i], theirs[j]]
            if prints.digests[pair[0]] != prints.digests[pair[1]]:  # else it was told above
                apart = f"{differing} of {BITS} bits differ"
                yield f"nearly the same picture is in two splits: {_some(named[pair])}; {apart}"


def near_pairs(ours: np.ndarray, theirs: np.ndarray, near: int) -> np.ndarray:
    """Pairs of hashes that differ in few bits.

    Time goes with the pairs that share a part of their bits, memory with those that are found.

    Args:
        ours, theirs: n×4 and m×4 uint64.
        near: largest distance in bits.

    Returns:
        One row a pair, ``i, j, distance``, ascending.
    """
    groups = max(near + 1, BITS // 32)  # so that a part fits into 32 bits
    shared = [_shared(*keys) for keys in zip(_parts(ours, groups), _parts(theirs, groups), strict=True)]
    if sum(int((end - start).sum()) for _, _, start, end in shared) >= len(ours) * len(theirs):
        start, end = np.zeros(len(ours), np.intp), np.full(len(ours), len(theirs))
        shared = [(np.arange(len(ours)), np.arange(len(theirs)), start, end)]
    found = [np.zeros((0, 3), np.int64)]
    for each in shared:
        found += _compared(ours, theirs, near, *each)
    return np.unique(np.concatenate(found), axis=0)


def _shared(ours: np.ndarray, theirs: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Which of n and m parts are equal: both in their order, and for each of ours where theirs begin and end. Both are
    sorted, or each look-up would go through memory at random."""
    (sorted_ours, own), (sorted_theirs, other) = _sorted(ours), _sorted(theirs)
    start, end = (np.searchsorted(sorted_theirs, sorted_ours, side) for side in ("left", "right"))
    some = end > start
    return own[some], other, start[some], end[some]


def _sorted(parts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """n uint32 in their order, and where each was. Part and place are sorted as one number: several times as quick as
    an argsort."""
    both = np.sort(parts.astype(np.uint64) << np.uint64(32) | np.arange(len(parts), dtype=np.uint64))
    return both >> np.uint64(32), (both & np.uint64(0xFFFFFFFF)).astype(np.intp)


def _parts(hashes: np.ndarray, groups: int) -> np.ndarray:
    """The parts of n×4 hashes, groups×n uint32. A part has bits of low and of high frequencies: those of neighbouring
    ones are alike in many pictures."""
    parts = np.zeros((groups, len(hashes), 4), np.uint8)
    for start in range(0, len(hashes), BLOCK):
        bits = np.unpackbits(np.ascontiguousarray(hashes[start : start + BLOCK]).view(np.uint8), axis=1)
        for group in range(groups):
            packed = np.packbits(bits[:, group::groups], axis=1)
            parts[group, start : start + BLOCK, : packed.shape[1]] = packed
    return parts.view(np.uint32)[..., 0]


def _compared(
    ours: np.ndarray,
    theirs: np.ndarray,
    near: int,
    own: np.ndarray,
    other: np.ndarray,
    start: np.ndarray,
    end: np.ndarray,
) -> Iterator[np.ndarray]:
    """``i, j, distance`` of the near ones among the pairs of ours[own[p]] with all theirs[other[start[p] : end[p]]]."""
    ends = np.cumsum(end - start)  # of each place's pairs, in a list of all
    first_words = ours[:, 0].copy(), theirs[:, 0].copy()
    for first in range(0, int(ends[-1]) if len(ends) else 0, PAIRS):
        pairs = np.arange(first, min(first + PAIRS, int(ends[-1])))
        place = np.searchsorted(ends, pairs, "right")
        i, j = own[place], other[end[place] - (ends[place] - pairs)]
        maybe = np.bitwise_count(first_words[0][i] ^ first_words[1][j]) <= near  # of unlike pictures next to none
        i, j = i[maybe], j[maybe]
        distance = np.bitwise_count(ours[i] ^ theirs[j]).sum(1, dtype=np.int64)
        close = distance <= near
        yield np.stack([i[close], j[close], distance[close]], 1)


def _in_several_splits(studies: pd.DataFrame, key: pd.Series) -> Iterator[tuple[str | bytes, list[int]]]:
    """Each key that studies of several splits share, and their rows."""
    spread = studies["split"].groupby(key, sort=False).transform("nunique") > 1
    for shared, rows in studies.index[spread].groupby(key[spread]).items():
        yield shared, list(rows)


def _some(names: Iterable[str], most: int = 4) -> str:
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
