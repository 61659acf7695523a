"""The features that stages 2 and 3 learn from, without those of the test split."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from csr.data.atomic_folder import atomic_folder
from csr.data.prepared import PreparedSet
from csr.training.features import FeatureCache
from pipelines.digests import path_digest
from pipelines.tuning import TRIALS_DATA, copied_once

_ROWS = 256  # copied at a time


def features_without_test(prepared: Path, model: Path, features: Path) -> Path:
    """A copy of the feature cache for the copy of the set that `pipelines.tuning.without_test` makes; made once for a
    set and the concept model whose features they are."""
    data, cache = PreparedSet.open(prepared), FeatureCache.open(features)
    kept = np.flatnonzero((data.collection.studies["split"] != "test").to_numpy())
    folder = TRIALS_DATA / f"{path_digest(prepared)[:16]}-features-{path_digest(model)[:16]}"
    with copied_once():
        if not folder.is_dir():
            with atomic_folder(folder) as draft:
                _copy(cache.features, kept, draft / "features.npy")
                _copy(cache.cam, kept, draft / "cam.npy")
    return folder


def _copy(values: np.ndarray, rows: np.ndarray, file: Path) -> None:
    written = np.lib.format.open_memmap(file, "w+", values.dtype, (len(rows), *values.shape[1:]))
    for start in range(0, len(rows), _ROWS):
        written[start : start + _ROWS] = values[rows[start : start + _ROWS]]
    written.flush()
