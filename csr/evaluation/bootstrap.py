"""How sure is a difference between two systems? Patients resampled, seeds counted.

Two things vary when a comparison is repeated: which patients are in the test set, and the seed a system was trained
with. Patients are resampled with replacement, the same for both systems and all seeds. A patient is drawn with all
their studies, since those are not independent (Davison and Hinkley 1997, section 3.8, the first strategy); where
patients are not known, or each has one study, that is a bootstrap over studies.

With one seed the interval is about the patients alone: the 95 % percentile interval (Efron and Tibshirani 1993, chapter
13; paired for macro F1 as in Koehn 2004, "Statistical Significance Tests for Machine Translation Evaluation").

With S > 1 seeds the measure is the mean over them, and its interval mean ± t · SE, with SE² = v + s²/S: v is the
variance of the mean over resamples of patients, s² the variance between seeds. t has the degrees of freedom of
Satterthwaite (1946, "An Approximate Distribution of Estimates of Variance Components"): two if three seeds are all that
varies, where t is 4.3. Resampling three seeds along with the patients would cover about 75 % there instead of 95. What
seeds and patients vary by together is in both terms, so the interval is a little too wide rather than too narrow.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import t as student_t

from csr.evaluation.weighted import auroc, macro_f1

# Draws computed at a time: bounds the memory to BLOCK × N weights.
BLOCK = 250

Measure = Callable[[np.ndarray], np.ndarray]  # b×N study weights → b×S values, one a resample and seed


@dataclass(frozen=True)
class Interval:
    """A measure on the studies as they are, mean over the seeds, and its 95 % interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference(Interval):
    """The interval of ours − theirs; that it excludes 0 is what one calls a significant difference.

    Args:
        p: chance of a difference at least as large, if there is none: two-sided, by the same distribution.
    """

    p: float = float("nan")


def holm(values: Sequence[float]) -> list[float]:
    """Values of p, adjusted for being several (Holm 1979): below 0.05, a difference is significant among all of them.
    One that is not a number stays so, and counts as none."""
    given = np.asarray(values, np.float64)
    known = np.flatnonzero(~np.isnan(given))
    order = known[np.argsort(given[known], kind="stable")]
    adjusted = given.copy()
    adjusted[order] = np.minimum(np.maximum.accumulate(given[order] * np.arange(len(order), 0, -1)), 1)
    return adjusted.tolist()


def bootstrap_interval(
    truth: np.ndarray,
    predicted: np.ndarray,
    classes: int,
    draws: int = 2000,
    seed: int = 0,
    clusters: np.ndarray | None = None,
) -> Interval:
    """The macro F1 of one system (`csr.evaluation.metrics.macro_f1`).

    Args:
        truth: N class indices, or N×T of 1, 0 or NaN where a study can have several classes.
        predicted: S×N class indices that the system predicts, one row a seed, or S×N×T of 1 or 0.
        classes: number of classes T.
        draws: number of bootstrap resamples.
        seed: of the resampling.
        clusters: N names, equal for studies of one patient (`csr.data.records.Collection.patients`), which are
            resampled together; None: every study is its own.

    Raises:
        ValueError: the shapes do not fit.
    """
    _check_shapes(truth, predicted)
    units = _units(clusters, len(truth))
    return _Sample.draw(lambda weights: macro_f1(truth, predicted, classes, weights), units, draws, seed).interval()


def paired_bootstrap(
    truth: np.ndarray,
    ours: np.ndarray,
    theirs: np.ndarray,
    classes: int,
    draws: int = 2000,
    seed: int = 0,
    clusters: np.ndarray | None = None,
) -> Difference:
    """The difference of two systems' macro F1 (`csr.evaluation.metrics.macro_f1`).

    Args:
        truth: N class indices, or N×T of 1, 0 or NaN where a study can have several classes.
        ours: S×N class indices that our system predicts, or S×N×T of 1 or 0; row s is the run with the s-th seed.
        theirs: the same of their system, trained with the same seeds in the same order.
        classes: number of classes T; one neither present nor predicted in a resample counts 0 there.
        draws: number of bootstrap resamples.
        seed: of the resampling.
        clusters: N names, equal for studies of one patient (`csr.data.records.Collection.patients`), which are
            resampled together; None: every study is its own.

    Raises:
        ValueError: the shapes do not fit.
    """
    _check_shapes(truth, ours, theirs)

    def gain(weights: np.ndarray) -> np.ndarray:
        return macro_f1(truth, ours, classes, weights) - macro_f1(truth, theirs, classes, weights)

    return _Sample.draw(gain, _units(clusters, len(truth)), draws, seed).difference()


def paired_mean_bootstrap(
    ours: np.ndarray, theirs: np.ndarray, draws: int = 2000, seed: int = 0, clusters: np.ndarray | None = None
) -> Difference:
    """The difference of two systems' means over studies, such as the pointing game counted per image.

    Args:
        ours: S×N values, NaN where a study has none (no concept with a box); such studies are left out.
        theirs: the same of their system, NaN at the same places.
        draws: number of bootstrap resamples.
        seed: of the resampling.
        clusters: N names, equal for studies of one patient (`csr.data.records.Collection.patients`), which are
            resampled together; None: every study is its own.

    Raises:
        ValueError: the shapes do not fit, or a study has a value in one run and none in another.
    """
    _check_shapes(ours[0], ours, theirs)
    known = ~np.isnan(ours)
    if not ((known == known[:1]).all() and np.array_equal(known, ~np.isnan(theirs))):
        raise ValueError("a study must have a value in every run of both systems or in none")
    return paired_ratio_bootstrap(np.nan_to_num(ours), np.nan_to_num(theirs), known[0], draws, seed, clusters)


def paired_ratio_bootstrap(
    ours_hits: np.ndarray,
    theirs_hits: np.ndarray,
    counts: np.ndarray,
    draws: int = 2000,
    seed: int = 0,
    clusters: np.ndarray | None = None,
) -> Difference:
    """The difference of two systems' ratios Σ hits / Σ counts, such as the pointing game counted per pair.

    Pairs of one image are not independent either; a study is resampled with all its pairs.

    Args:
        ours_hits: S×N hits of each study.
        theirs_hits: the same of their system.
        counts: N pairs of each study; studies without a pair are left out. If none is left, all numbers are NaN.
        draws: number of bootstrap resamples.
        seed: of the resampling.
        clusters: N names, equal for studies of one patient (`csr.data.records.Collection.patients`), which are
            resampled together; None: every study is its own.

    Raises:
        ValueError: the shapes do not fit.
    """
    _check_shapes(counts, ours_hits, theirs_hits)
    judged = counts > 0
    if not judged.any():
        return Difference(float("nan"), float("nan"), float("nan"))
    gains = np.asarray(ours_hits, np.float64)[:, judged] - np.asarray(theirs_hits, np.float64)[:, judged]
    sizes = counts[judged].astype(np.float64)
    units = _units(clusters, judged.size)[judged]
    return _Sample.draw(lambda w: (w @ gains.T) / (w @ sizes)[:, None], units, draws, seed).difference()


def paired_auroc_bootstrap(
    labels: np.ndarray,
    ours: np.ndarray,
    theirs: np.ndarray,
    draws: int = 2000,
    seed: int = 0,
    clusters: np.ndarray | None = None,
) -> Difference:
    """The difference of two systems' AUROC, each the mean over R runs, such as concepts and draws of examples.

    Runs are not resampled: the interval is about the studies alone.

    Args:
        labels: R×N of 1 and 0, both in every run.
        ours, theirs: R×N scores.
        draws: number of bootstrap resamples.
        seed: of the resampling.
        clusters: N names, see `paired_bootstrap`.

    Raises:
        ValueError: the shapes do not fit.
    """
    _check_shapes(labels[0], labels, ours, theirs)
    gain = _each(lambda weights: auroc(labels, ours, weights) - auroc(labels, theirs, weights))
    return _Sample.draw(gain, _units(clusters, labels.shape[1]), draws, seed).difference()


def auroc_ratio_bootstrap(
    labels: np.ndarray,
    ours: np.ndarray,
    theirs: np.ndarray,
    floor: float = 0.0,
    draws: int = 2000,
    seed: int = 0,
    clusters: np.ndarray | None = None,
) -> Interval:
    """(our mean AUROC − floor) / (their mean AUROC − floor); the other arguments as for `paired_auroc_bootstrap`.

    Args:
        labels, ours, theirs: R×N.
        floor: 0.5 counts what is above chance.
    """
    _check_shapes(labels[0], labels, ours, theirs)
    ratio = _each(lambda weights: (auroc(labels, ours, weights) - floor) / (auroc(labels, theirs, weights) - floor))
    return _Sample.draw(ratio, _units(clusters, labels.shape[1]), draws, seed).interval()


def crossed_difference(ours: np.ndarray, theirs: np.ndarray, *units: np.ndarray) -> Difference:
    """The difference of two systems' means over trials that are each of several units, such as a patient and a
    prototype: trials of one patient are not independent, nor are those of one prototype.

    The variance of the mean is the sum of those by each kind of unit, G/(G−1) · Σ over units (Σ of the unit's
    deviations)² / N² of G units (Cameron, Gelbach and Miller 2011, "Robust Inference with Multiway Clustering", without
    the term that they take off again: wider rather than narrower); t as for seeds.

    Args:
        ours, theirs: N trials.
        units: N names each, one array a kind of unit; at least two units of each kind.

    Raises:
        ValueError: the shapes do not fit.
    """
    if any(each.shape != ours.shape for each in (theirs, *units)) or ours.ndim != 1:
        raise ValueError(f"needs N values: shapes {[each.shape for each in (ours, theirs, *units)]}")
    gains = np.asarray(ours, np.float64) - np.asarray(theirs, np.float64)
    mean = float(gains.mean())
    parts, freedoms = [], []
    for names in units:
        unit_of, unique = pd.factorize(names)
        sums = np.bincount(unit_of, gains - mean, len(unique))
        count = len(unique)
        parts.append(float(count / (count - 1) * (sums**2).sum() / len(gains) ** 2) if count > 1 else float("nan"))
        freedoms.append(count - 1)
    return _student(mean, parts, freedoms)


def weighted_interval(
    measure: Callable[[np.ndarray], np.ndarray],
    studies: int,
    draws: int = 2000,
    seed: int = 0,
    clusters: np.ndarray | None = None,
    tail: float = 0.025,
) -> Interval:
    """Any measure of one trained system, or of two on the same studies: the interval is about the studies alone.

    Args:
        measure: b×N study weights → b values, as `csr.evaluation.weighted` has them.
        studies: N.
        clusters: N names, see `paired_bootstrap`.
        tail: chance that is left out at either end, each of which is a one-sided bound at 1 − tail.
    """
    return _Sample.draw(_each(measure), _units(clusters, studies), draws, seed).interval(tail)


def _each(measure: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    """A measure of b×N weights → b values as one of → b×1: of one seed."""
    return lambda weights: measure(weights)[:, None]


def _check_shapes(studies: np.ndarray, *systems: np.ndarray) -> None:
    shapes = {system.shape for system in systems}
    if len(shapes) > 1 or systems[0].ndim != studies.ndim + 1 or systems[0].shape[1:] != studies.shape:
        raise ValueError(f"each system needs one row a seed, one column a study: shapes {shapes} for {studies.shape}")


def _units(clusters: np.ndarray | None, studies: int) -> np.ndarray:
    """N names of what each study is resampled with."""
    if clusters is None:
        return np.arange(studies)
    if clusters.shape != (studies,):
        raise ValueError(f"needs one cluster a study: shape {clusters.shape} for {studies} studies")
    return clusters


@dataclass(frozen=True)
class _Sample:
    """What a measure is with each seed, and what it becomes, as a mean over the seeds, in each resample of patients; of
    these those alone in which it is defined, such as an AUROC where there are positives and negatives."""

    by_seed: np.ndarray
    resampled: np.ndarray
    patients: int

    @classmethod
    def draw(cls, measure: Measure, units: np.ndarray, draws: int, seed: int) -> _Sample:
        unit_of, names = pd.factorize(units)  # numbered as they appear: alone, a study keeps its own number
        rng = np.random.default_rng(seed)
        sizes = [min(BLOCK, draws - start) for start in range(0, draws, BLOCK)]
        means = [measure(_resampled(rng, size, len(names))[:, unit_of]).mean(1) for size in sizes]
        resampled = np.concatenate(means)
        return cls(measure(np.ones((1, len(units))))[0], resampled[~np.isnan(resampled)], len(names))

    def interval(self, tail: float = 0.025) -> Interval:
        found = self.difference(tail)
        return Interval(found.mean, found.low, found.high)

    def difference(self, tail: float = 0.025) -> Difference:
        if len(self.resampled) < 2:  # in no resample is it defined
            return _student(float(self.by_seed.mean()), (math.nan,), (0,), tail)
        if len(self.by_seed) == 1:
            low, high = np.quantile(self.resampled, [tail, 1 - tail])
            beyond = min((self.resampled <= 0).sum(), (self.resampled >= 0).sum())
            p = min(2 * float(beyond + 1) / (len(self.resampled) + 1), 1.0)
            return Difference(float(self.by_seed[0]), float(low), float(high), p)
        parts = float(self.resampled.var(ddof=1)), float(self.by_seed.var(ddof=1)) / len(self.by_seed)
        return _student(float(self.by_seed.mean()), parts, (self.patients - 1, len(self.by_seed) - 1), tail)


def _student(mean: float, parts: Sequence[float], freedoms: Sequence[int], tail: float = 0.025) -> Difference:
    """Student's interval of a mean: the mean itself where it never varies, NaN where nothing tells its variance.

    Args:
        parts: its variance by each source. freedoms: of each.
    """
    variance = sum(parts)
    if math.isnan(variance):
        return Difference(mean, variance, variance, variance)
    if variance == 0:
        return Difference(mean, mean, mean, float(mean == 0))
    known = sum(part**2 / max(freedom, 1) for part, freedom in zip(parts, freedoms, strict=True))
    error, freedom = variance**0.5, variance**2 / known
    margin = float(student_t.ppf(1 - tail, freedom)) * error
    return Difference(mean, mean - margin, mean + margin, 2 * float(student_t.sf(abs(mean) / error, freedom)))


def _resampled(rng: np.random.Generator, draws: int, size: int) -> np.ndarray:
    """draws×size: how often each of ``size`` units is in a resample with replacement; rows sum to ``size``."""
    chosen = rng.integers(size, size=(draws, size)) + size * np.arange(draws)[:, None]
    return np.bincount(chosen.ravel(), minlength=draws * size).reshape(draws, size).astype(np.float64)
