"""Every measure that a gate can name, as a function of study weights, so that one bootstrap serves them all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from csr.evaluation import weighted
from csr.evaluation.metrics import correct
from pipelines.promotion.judging import Answers, Studies

Weighted = Callable[[np.ndarray], np.ndarray]  # b×n study weights → b values


@dataclass(frozen=True)
class Measure:
    """One measure.

    Args:
        title: for people.
        better: whether more or less of it is better.
        of: what is true of some studies and what a bundle says of them → the measure.
    """

    title: str
    better: Literal["more", "less"]
    of: Callable[[Studies, Answers], Weighted]


def _macro_f1(studies: Studies, answers: Answers) -> Weighted:
    return _f1(studies, answers.decided)


def _f1(studies: Studies, decided: np.ndarray) -> Weighted:
    return lambda weights: weighted.macro_f1(studies.truth, decided[None], len(studies.classes), weights)[:, 0]


def _answer_gain(studies: Studies, answers: Answers) -> Weighted:
    after, before = _f1(studies, answers.answered), _f1(studies, answers.decided)
    return lambda weights: after(weights) - before(weights)


def _auroc(studies: Studies, answers: Answers) -> Weighted:
    truth = studies.truth
    labels = np.eye(len(studies.classes))[truth] if truth.ndim == 1 else truth
    return lambda weights: weighted.macro_auroc(labels, answers.probabilities, weights)


def _calibration_error(studies: Studies, answers: Answers) -> Weighted:
    return lambda weights: weighted.calibration_error(studies.truth, answers.probabilities, weights)


def _pointing(studies: Studies, answers: Answers) -> Weighted:
    return lambda weights: weighted.ratio(answers.hits, studies.pairs, weights)


def _accuracy(studies: Studies, answers: Answers) -> Weighted:
    return _share(correct(studies.truth, answers.decided))


def _unlike(studies: Studies, answers: Answers) -> Weighted:
    return _share(answers.unlike)


def _share(those: np.ndarray) -> Weighted:
    return lambda weights: weighted.ratio(those.astype(np.float64), np.ones(len(those)), weights)


MEASURES: Mapping[str, Measure] = {
    "macro_f1": Measure("macro F1", "more", _macro_f1),
    "auroc": Measure("AUROC", "more", _auroc),
    "calibration_error": Measure("calibration error", "less", _calibration_error),
    "pointing": Measure("pointing game, pair", "more", _pointing),
    "answer_gain": Measure("gain of macro F1 by one right answer", "more", _answer_gain),
    "accuracy": Measure("accuracy", "more", _accuracy),
    "unlike": Measure("share of images unlike the training images", "less", _unlike),
}


def class_f1(index: int) -> Measure:
    """The F1 of one class."""

    def of(studies: Studies, answers: Answers) -> Weighted:
        count = len(studies.classes)
        return lambda weights: weighted.class_f1(studies.truth, answers.decided[None], count, weights)[0, :, index]

    return Measure("F1", "more", of)


def chosen(studies: Studies, rows: np.ndarray) -> Studies:
    """Some of the studies."""
    return replace(
        studies, **{name: getattr(studies, name)[rows] for name in ("truth", "parts", "sites", "patients", "pairs")}
    )


def answers_on(answers: Answers, rows: np.ndarray) -> Answers:
    """What was said of some of the studies."""
    return Answers(*(getattr(answers, name)[rows] for name in Answers.__dataclass_fields__))
