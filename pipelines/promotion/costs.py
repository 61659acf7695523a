"""What two bundles cost: time and space, measured side by side in one run."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from csr.bundle.runtime import BundleRunner
from csr.evaluation.bootstrap import Interval
from pipelines.promotion.verdicts import Cost

ROUNDS = 60
_WARM_UP = 5
_MEGABYTE = 1e6


def costs_of(
    candidate: BundleRunner, champion: BundleRunner | None, image: np.ndarray, error: float
) -> dict[str, Cost]:
    """Times to encode one image, and sizes; the ratio of the times is that of two medians of turns.

    Args:
        image: C×S×S uint8.
        error: of each end of the ratio's interval.
    """
    runners = [candidate] if champion is None else [candidate, champion]
    times = _in_turns(runners, image[None])
    medians = np.median(times, axis=1) * 1e3
    sizes = [runner.bundle.bytes / _MEGABYTE for runner in runners]
    if champion is None:
        return {"encode_ms": Cost(float(medians[0]), None, None), "bundle_mb": Cost(sizes[0], None, None)}
    size = sizes[0] / sizes[1]
    return {
        "encode_ms": Cost(float(medians[0]), float(medians[1]), _ratio_of_medians(times, error)),
        "bundle_mb": Cost(sizes[0], sizes[1], Interval(size, size, size)),
    }


def _in_turns(runners: Sequence[BundleRunner], images: np.ndarray) -> np.ndarray:
    """Seconds, one row a runner: they take turns, so that what else the machine does slows all alike."""
    times = np.zeros((len(runners), ROUNDS + _WARM_UP))
    for turn in range(times.shape[1]):
        for index, runner in enumerate(runners):
            start = time.perf_counter()
            runner.encode(images)
            times[index, turn] = time.perf_counter() - start
    return times[:, _WARM_UP:]


def _ratio_of_medians(times: np.ndarray, error: float, draws: int = 2000) -> Interval:
    turns = np.random.default_rng(0).integers(times.shape[1], size=(draws, times.shape[1]))
    ratios = np.median(times[0][turns], axis=1) / np.median(times[1][turns], axis=1)
    low, high = np.quantile(ratios, [error, 1 - error])
    return Interval(float(np.median(times[0]) / np.median(times[1])), float(low), float(high))
