"""What a comparison keeps of a trained system: its report and its predictions, a file each, for every seed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from csr.errors import DataError
from csr.evaluation.predictions import Predictions

_ARRAYS = ("rows", "probabilities", "concepts", "peaks", "explanations")


@dataclass(frozen=True)
class Runs:
    """All seeds of one system, in the order of the seeds.

    Args:
        title: name in tables.
        reports: one a seed: ``seed``, parts, ``prototypes, explanations, parameters, seconds``.
        validation, test: predictions, one a seed.
        latency: median seconds of one answer, if it was measured.
        start: name of the system that it starts from, if that is trained by itself.
    """

    title: str
    reports: Sequence[Mapping[str, Any]]
    validation: Sequence[Predictions]
    test: Sequence[Predictions]
    latency: float | None = None
    start: str | None = None


def read_runs(reports: Path, predictions: Path, name: str, seeds: list[int], start: str | None = None) -> Runs:
    """All seeds of one system from the files that a comparison wrote; ``start`` as in `Runs`."""
    contents = [json.loads((reports / f"{name}-{seed}.json").read_text()) for seed in seeds]
    files = [predictions / f"{name}-{seed}.npz" for seed in seeds]
    return Runs(
        title=contents[0]["title"],
        reports=contents,
        validation=[load_predictions(file, "validation") for file in files],
        test=[load_predictions(file, "test") for file in files],
        start=start,
    )


def save_predictions(file: Path, validation: Predictions, test: Predictions) -> None:
    """Writes the predictions of both splits as ``.npz``, for the report's bootstrap and calibration."""
    arrays = {}
    for split, predictions in (("validation", validation), ("test", test)):
        for name in _ARRAYS:
            value = getattr(predictions, name)
            if value is not None:
                arrays[f"{split}_{name}"] = value if name == "rows" else value.astype(np.float32)
    file.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(file, **arrays)


def load_predictions(file: Path, split: str) -> Predictions:
    """The predictions of ``validation`` or ``test`` that `save_predictions` wrote.

    Raises:
        DataError: it did not.
    """
    if not file.is_file():
        raise DataError(f"{file}: missing; a system's predictions are not committed with its report: run it here")
    with np.load(file) as arrays:
        return Predictions(*(arrays.get(f"{split}_{name}") for name in _ARRAYS))
