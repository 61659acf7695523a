"""Fits the input guard and the input profile of `csr.bundle.profile` to the images of splits ``train`` and ``val``.

The limit is calibrated on images that the distances were not fitted to: the images are divided into folds, a patient's
all into one, and each fold is scored by the others' means and covariances. Two shares of good images are then brought
down to `FLAGGED`: that of all of them, which many images make exact, and that of split ``val``, whose images the
network was not trained on either; the limit is the larger of the two. Every part of the score gets a scale of its own
first, on which 1 image in 200 is above 1, so that none of them sets the limit alone.

No image that is wrong is shown to it, so nothing is assumed of what wrong images look like.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from sklearn.covariance import LedoitWolf
from sklearn.model_selection import GroupKFold
from torch import Tensor

from csr.bundle.profile import GREY_EDGES, LIMIT, PARTS, InputProfile, Part, stated_headers
from csr.data.headers import collection_headers, table_headers
from csr.data.prepared import PreparedSet
from csr.network.guard import Descriptions, Distance, InputGuard
from csr.network.trained import TrainedCSR

FLAGGED = 0.01  # share of good images above the limit
_PART_FLAGGED = 0.005  # the same of one part, before the parts are put together
_FOLDS = 5
_BATCH = 64
_MOST = 3000  # images of a split: more change a limit by less than it is known
_SCORE_BINS = 10
_SAMPLE = 500  # images that the descriptive part of the profile looks at
_LEAST_SPREAD = 1e-6  # of a description in which all images are alike
_LEAST_SCALE = 1e-3  # of ∛d², where all images are
_ASPECT_SLACK = 1.05


def fit_guard(
    data: PreparedSet,
    csr: TrainedCSR,
    stated: Mapping[str, Sequence[str]] | None = None,
    depths: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None,
) -> tuple[InputGuard, InputProfile]:
    """The guard of a trained CSR's encoder, on the CPU, and what there is to say of the images.

    Args:
        data: its images of splits ``train`` and ``val`` are what fits; at most `_MOST` of each are looked at.
        csr: trained, on the CPU.
        stated: terms that headers must be among, by name of `csr.bundle.profile.HEADERS`; what is not named is taken
            from the table of studies, or from what is known of the collection.
        depths: what computes the features where it is not ``csr``: see `csr.network.trained.Encoder.depths`.
    """
    collection, describe = data.collection, Descriptions(data.side)
    rows = np.sort(np.concatenate([_spread(collection.rows("train")), _spread(collection.rows("val"))]))
    in_val = np.isin(rows, collection.rows("val"))
    described = _described(data, depths or csr.encoder.eval().depths, describe, rows)
    patients = collection.patients()[rows]
    if len(np.unique(patients)) < 2:  # of one patient alone images are left out, which is the most that can be done
        patients = rows
    unseen: dict[Part, np.ndarray] = {part: np.zeros(len(rows)) for part in PARTS}
    for seen, left_out in GroupKFold(min(_FOLDS, len(np.unique(patients)))).split(rows, groups=patients):
        for part, values in described.items():
            unseen[part][left_out] = _fitted(part, values[seen])(torch.from_numpy(values[left_out])).numpy()
    calibration, scores = calibrated(unseen, in_val)
    distances = {part: _fitted(part, described[part], *calibration[part]) for part in PARTS}
    return InputGuard(describe, distances), _profile(data, rows, scores, in_val, stated or {})


def _spread(rows: np.ndarray) -> np.ndarray:
    """At most `_MOST` of some rows, evenly spaced."""
    return rows[np.unique(np.linspace(0, len(rows) - 1, min(len(rows), _MOST)).round().astype(int))]


def _fitted(part: Part, described: np.ndarray, shift: float = 0.0, scale: float = 1.0) -> Distance:
    """The distance of one part, without a calibration or with one."""
    distance = fitted_direction(described) if part == "handedness" else fitted_distance(described)
    distance.shift.fill_(shift)
    distance.scale.fill_(scale)
    return distance


def fitted_distance(described: np.ndarray) -> Distance:
    """Mahalanobis, with mean and Ledoit–Wolf's covariance of N×dim descriptions."""
    centre, size, axes, spread = _axes(described)
    return _distance(centre, (axes / np.sqrt(size)).T / spread)


def fitted_direction(described: np.ndarray) -> Distance:
    """The same along w = Σ⁻¹μ only, in which N×dim descriptions and their negatives are furthest apart."""
    centre, size, axes, spread = _axes(described)
    whitened = axes.T @ (centre / spread) / np.sqrt(size)
    length = np.linalg.norm(whitened)
    unit = whitened / length if length > 0 else np.eye(len(centre))[0]
    return _distance(centre, (unit / np.sqrt(size) @ axes.T / spread)[None])


def _axes(described: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Mean; eigenvalues and eigenvectors of the shrunk covariance in units of each dimension's spread; and that."""
    values = described.astype(np.float64)
    spread = values.std(0).clip(_LEAST_SPREAD)  # the shrinkage is towards a sphere
    size, axes = np.linalg.eigh(LedoitWolf().fit(values / spread).covariance_)
    return values.mean(0), size.clip(_LEAST_SPREAD), axes, spread


def _distance(centre: np.ndarray, whiten: np.ndarray) -> Distance:
    distance = Distance(len(centre), len(whiten))
    distance.centre.copy_(torch.from_numpy(centre))
    distance.whiten.copy_(torch.from_numpy(whiten))
    return distance


def calibrated(
    unseen: Mapping[Part, np.ndarray], in_val: np.ndarray
) -> tuple[dict[Part, tuple[float, float]], np.ndarray]:
    """Shift and scale of each part, such that a score of `LIMIT` is the limit, and the scores N×R that follow.

    Args:
        unseen: ∛d² by part, of N good images that their distance was not fitted to.
        in_val: N, which of them are of split ``val``.
    """
    middle = {part: float(np.median(values)) for part, values in unseen.items()}
    scale = {part: max(_upper(values, _PART_FLAGGED) - middle[part], _LEAST_SCALE) for part, values in unseen.items()}
    each = np.stack([(unseen[part] - middle[part]) / scale[part] for part in PARTS], 1)
    largest = each.max(1)
    limit = max(_upper(each_set, FLAGGED) for each_set in (largest, largest[in_val]) if len(each_set)) / LIMIT
    return {part: (middle[part], scale[part] * limit) for part in PARTS}, each / limit


def _upper(values: np.ndarray, above: float) -> float:
    """The least of the values that at most a share ``above`` of them exceeds."""
    return float(np.sort(values)[-1 - math.floor(above * len(values) + 1e-9)])


@torch.no_grad()
def _described(
    data: PreparedSet, depths: Callable[[Tensor], tuple[Tensor, Tensor]], describe: Descriptions, rows: np.ndarray
) -> dict[Part, np.ndarray]:
    """N×dim float32 descriptions of the rows' images by part."""
    pieces: dict[Part, list[np.ndarray]] = {part: [] for part in PARTS}
    for start in range(0, len(rows), _BATCH):
        images = torch.from_numpy(np.ascontiguousarray(data.images[rows[start : start + _BATCH]]))
        for part, values in describe(images, *depths(images)).items():
            pieces[part].append(values.numpy())
    return {part: np.concatenate(values) for part, values in pieces.items()}


def _profile(
    data: PreparedSet, rows: np.ndarray, scores: np.ndarray, in_val: np.ndarray, stated: Mapping[str, Sequence[str]]
) -> InputProfile:
    """Args:
    scores: N×R of the rows' images, by guards that had not seen them. in_val: which are of split ``val``.
    """
    over, largest = scores[in_val if in_val.any() else slice(None)] > LIMIT, scores.max(1)
    edges = np.unique(np.quantile(largest, np.arange(1, _SCORE_BINS) / _SCORE_BINS, method="inverted_cdf"))
    edges = edges[edges < largest.max()]  # so that no bin is empty
    spread = np.bincount(edges.searchsorted(largest), minlength=len(edges) + 1) / len(largest)
    sample = data.images[rows[:: max(1, len(rows) // _SAMPLE)]]
    mean = sample.astype(np.float32).mean(1)
    inner = slice(1, -1)
    around = mean[:, 2:, inner] + mean[:, :-2, inner] + mean[:, inner, 2:] + mean[:, inner, :-2]
    detail = np.abs(4 * mean[:, inner, inner] - around)
    counts, _ = np.histogram(sample, bins=[0, *(np.array(GREY_EDGES) * 255), 256])
    wide = np.array([_aspect(data.images[row]) for row in rows])
    headers = {**table_headers(data.collection.studies.iloc[rows]), **stated}
    return InputProfile(
        images=len(rows),
        **stated_headers(collection_headers(data.collection.name) | headers),
        side=data.side,
        channels=data.channels,
        aspect=(float(wide.min() / _ASPECT_SLACK), float(wide.max() * _ASPECT_SLACK)),
        grey_levels=tuple((counts / counts.sum()).round(4).tolist()),
        detail=tuple(np.quantile(detail.mean((1, 2)), (0.25, 0.5, 0.75)).round(3).tolist()),
        score_edges=tuple(edges.tolist()),
        score_shares=tuple(spread.tolist()),
        flagged=float(over.any(1).mean()),
        part_flagged=dict(zip(PARTS, over.mean(0).tolist(), strict=True)),
    )


def _aspect(image: np.ndarray) -> float:
    """Width / height of the picture on a C×S×S canvas, from the empty margins on both sides of it.

    A picture that is black at its edges is taken for a narrower one: the range of all of them grows by that.
    """
    shown = image.any(axis=0)
    return _extent(np.any(shown, axis=0)) / _extent(np.any(shown, axis=1))


def _extent(shown: np.ndarray) -> int:
    """Cells between two margins of the same width, the widest that are empty on both sides."""
    if not shown.any():
        return len(shown)
    margin = min(int(shown.argmax()), int(shown[::-1].argmax()))
    return len(shown) - 2 * margin
