"""Can the probabilities be believed? Calibration error, temperature scaling, and abstaining from doubtful studies.

A study's *confidence* is its largest class probability; what it is confident of is the class of that probability (the
first of several equal ones). Where a study can have several classes (truth N×T, `csr.data.records.Collection.truth`),
each is decided on its own. The calibration error and the temperature are of single probabilities, whatever is decided
by them: the error asks how often the likelier of a class and its absence is right, with confidence max(p, 1 − p).
Abstaining is of a whole study, whose confidence is that of its least certain decision
(`csr.data.decisions.study_confidence`) and whose answer is wrong if any decision is. What is unknown (NaN) counts
nowhere.

Guo et al. 2017, "On Calibration of Modern Neural Networks" (arXiv 1706.04599) for the calibration error and temperature
scaling; Geifman and El-Yaniv 2017 (arXiv 1705.08500) and Geifman et al. 2019 (arXiv 1805.08206) for selective
classification and the area under the risk-coverage curve.

Temperatures and thresholds are chosen on validation studies and judged on test studies: this module does not split.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import expit, log_softmax, logit, softmax

from csr.data.decisions import HALF, decide, study_confidence
from csr.evaluation.metrics import correct

TEMPERATURES = (0.05, 20.0)


def expected_calibration_error(truth: np.ndarray, probabilities: np.ndarray, bins: int = 15) -> float:
    """ECE of Guo et al. 2017, equation 3: Σ_b |B_b|/N · |accuracy(B_b) − mean confidence(B_b)|, in [0, 1].

    Args:
        truth: N class indices, or N×T of 1, 0 or NaN.
        probabilities: N×T.
        bins: number of equal-width bins (b/bins, (b+1)/bins] of the confidence; an empty bin adds nothing.
    """
    confidence, right = single_decisions(truth, probabilities)
    index = bin_of(confidence, bins)
    # |B_b| · (accuracy − mean confidence) is the bin's sum of (correct − confidence).
    gaps = np.bincount(index, weights=right - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(confidence))


def bin_of(confidence: np.ndarray, bins: int) -> np.ndarray:
    """The number, from 0, of the bin (b/bins, (b+1)/bins] that each confidence lies in."""
    return np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], confidence)


def fit_temperature(logits: np.ndarray, truth: np.ndarray) -> float:
    """The temperature τ that minimises the mean of −log softmax(logits/τ)[truth] (Guo et al. 2017, section 4.2), or of
    the binary cross-entropy of sigmoid(logits/τ) where a study can have several classes.

    The objective is convex in 1/τ, so it has one minimum in log τ too. Where every study is classified rightly it falls
    for ever as τ → 0; τ is therefore sought between 0.05 and 20 (`TEMPERATURES`), and of temperatures that are equal to
    twelve digits the one nearest 1 is taken.

    Args:
        logits: N×T logits or log probabilities, which differ by what softmax takes away; −inf is allowed. With a truth
            of N×T, logits.
        truth: N class indices, or N×T of 1, 0 or NaN.
    """
    if truth.ndim == 2:  # the cross-entropy of two classes with logits z and 0 is the binary one of z
        known = ~np.isnan(truth)
        pairs = np.stack([np.asarray(logits)[known], np.zeros(known.sum())], axis=1)
        return fit_temperature(pairs, np.where(truth[known] == 1, 0, 1))
    rows = np.arange(len(truth))
    # A true class of probability 0 would cost infinitely much at every temperature, and there would be no minimum.
    floor = np.log(np.finfo(np.float64).tiny)
    centred = np.asarray(logits, np.float64) - logits.max(1, keepdims=True)
    centred = np.maximum(centred, floor)

    def cost(log_temperature: float) -> float:
        likelihood = log_softmax(centred / np.exp(log_temperature), axis=1)[rows, truth].mean()
        # Saturated probabilities make the likelihood flat; the last term keeps the search from ending anywhere there.
        return -float(likelihood) + 1e-12 * log_temperature**2

    low, high = np.log(TEMPERATURES)
    return float(np.exp(minimize_scalar(cost, bounds=(low, high), method="bounded", options={"xatol": 1e-6}).x))


def probability_logits(probabilities: np.ndarray, multilabel: bool) -> np.ndarray:
    """Logits N×T that give back the probabilities, for `fit_temperature`: log p, or log p − log(1 − p) where a study
    can have several classes. Probabilities of 0 and 1 count as 1e-12 from there."""
    p = np.asarray(probabilities).clip(1e-12)
    return np.log(p) - np.log((1 - np.asarray(probabilities, np.float64)).clip(1e-12)) if multilabel else np.log(p)


def apply_temperature(probabilities: np.ndarray, temperature: float, multilabel: bool = False) -> np.ndarray:
    """N×T softmax(log p / temperature), or sigmoid(logit p / temperature) where a study can have several classes:
    sharper below 1, flatter above; the order within a row (a column) and zeros stay."""
    if multilabel:
        return expit(logit(np.asarray(probabilities, np.float64)) / temperature)
    with np.errstate(divide="ignore"):
        logits = np.log(np.asarray(probabilities, np.float64))
    return softmax(logits / temperature, axis=1)


@dataclass(frozen=True)
class RiskCoverage:
    """The risk-coverage curve: one point for each distinct confidence, most confident first.

    Args:
        threshold: n confidences, descending; the point keeps the studies of at least this confidence.
        coverage: n shares of studies kept, ascending to 1.
        risk: n error rates among the studies kept; the last is the error rate without abstaining.
    """

    threshold: np.ndarray
    coverage: np.ndarray
    risk: np.ndarray

    @property
    def area(self) -> float:
        """AURC: the risk averaged over the coverages 1/N … 1 (Geifman et al. 2019), tied studies at their step's end.

        Lower is better; a confidence that orders nothing gives the error rate.
        """
        return float((self.risk * np.diff(self.coverage, prepend=0.0)).sum())


def risk_coverage(truth: np.ndarray, probabilities: np.ndarray, thresholds: np.ndarray | None = None) -> RiskCoverage:
    """What abstaining from the least confident studies buys.

    Studies of equal confidence are kept or left out together, so the curve does not depend on the order of the rows.

    Args:
        truth: N class indices, or N×T of 1, 0 or NaN.
        probabilities: N×T.
        thresholds: T, see `csr.data.decisions.decide`.
    """
    confidence = study_confidence(probabilities, truth.ndim == 2, thresholds)
    right = _right(truth, probabilities, thresholds)
    distinct, index, tied = np.unique(confidence, return_inverse=True, return_counts=True)
    kept = np.cumsum(tied[::-1])
    errors = np.cumsum(np.bincount(index, weights=1.0 - right)[::-1])
    return RiskCoverage(threshold=distinct[::-1], coverage=kept / len(confidence), risk=errors / kept)


def abstain_threshold(
    truth: np.ndarray, probabilities: np.ndarray, risk: float, thresholds: np.ndarray | None = None
) -> float:
    """The confidence below which to abstain so that at most a share ``risk`` of the answers given is wrong.

    It is the smallest confidence seen in these (validation) studies at which that holds, hence the one that keeps most;
    answer where confidence ≥ threshold. Infinity if no threshold suffices: then abstain from everything. The risk is
    the observed one: nothing is guaranteed about other studies, least of all where few are kept.

    Args:
        truth: N class indices, or N×T of 1, 0 or NaN.
        probabilities: N×T.
        risk: tolerated error rate among the studies kept, in [0, 1].
    """
    curve = risk_coverage(truth, probabilities, thresholds)
    # The risk need not fall with coverage, so every point is looked at, not only the first that exceeds the risk.
    enough = curve.risk <= risk
    return float(curve.threshold[enough].min()) if enough.any() else float("inf")


def _right(truth: np.ndarray, probabilities: np.ndarray, thresholds: np.ndarray | None = None) -> np.ndarray:
    """N floats: 1 where the answer is right."""
    return correct(truth, decide(probabilities, truth.ndim == 2, thresholds)).astype(np.float64)


def single_decisions(truth: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The confidence of every single guess at the likelier, and 1 where it is right: of studies with one class, one a
    study, else one for each class that is known, study by study."""
    if truth.ndim == 1:
        return study_confidence(probabilities, False), _right(truth, probabilities)
    known = ~np.isnan(truth)
    sure = np.asarray(probabilities, np.float64)[known]
    return np.maximum(sure, 1 - sure), ((sure >= HALF) == truth[known]).astype(np.float64)
