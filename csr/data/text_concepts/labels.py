"""From an image-text encoder to concept labels: directions, scores, calibration, and which labels are written.

    direction_k = unit( mean of unit(text of k) − mean of unit(negative text of k) )         K×E
    score_nk    = ⟨unit(image_n), direction_k⟩                                               N×K

A score says nothing by itself: cosines of images and texts lie in a narrow band whose place differs by concept. So each
concept is calibrated, into the evidence of a score (a log-likelihood ratio, linear in it) and the prior log-odds. By
training labels that people gave, evidence is a logistic regression of them on the score at even odds (Platt 1999).
Without such labels, scores are taken to be a mixture of two normal distributions of one variance, weighted by the
prevalence that the user states; scores that do not fall apart in two are no evidence.

A label is written only where the evidence alone and the evidence with the prior both reach the confidence asked for. By
the posterior alone an encoder that sees nothing would label every image of a rare concept absent, and be right mostly.

Not covered: where a concept is (filled labels have no boxes), and negation, which such encoders follow badly: judge
negative texts by the AUROC on known labels.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import brentq
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from torch import Tensor

from csr.data.records import CONCEPT_PREFIX, FILLED_PREFIX, Collection
from csr.data.shards import Images
from csr.data.text_concepts.encoder import ImageTextEncoder
from csr.errors import ConfigError, DataError

MIN_KNOWN = 10  # known labels of each kind that a calibration can rest on
SEPARATION = 2.0  # Ashman, Bird & Zepf 1994: below it, two normal distributions make one hump
_KEY = "data.text_concepts"


@dataclass(frozen=True)
class TextConcept:
    """What the encoder is told about one concept.

    Args:
        phrases: what stands in the templates; without any, the concept's name, underscores as spaces.
        prevalence: share of training studies that show the concept. Needed where people labelled fewer than
            `MIN_KNOWN` present or absent; elsewhere it replaces the share among those labels.
    """

    phrases: tuple[str, ...] = ()
    prevalence: float | None = None

    def __post_init__(self) -> None:
        if self.prevalence is not None and not 0 < self.prevalence < 1:
            raise ValueError(f"prevalence must lie between 0 and 1, is {self.prevalence}")


@dataclass(frozen=True)
class TextConceptConfig:
    """Which labels an image-text encoder fills, and how.

    Args:
        factory: ``package.module:callable`` that makes the encoder; see `csr.data.text_concepts.encoder.load_encoder`.
        checkpoint: the local file or folder that it is given.
        concepts: the concepts that are filled, each a column of the table, which may be empty. Others are left alone.
        options: further keyword arguments of the factory.
        templates: texts in which ``{}`` stands for a phrase; all combinations are averaged.
        negative_templates: texts of images without the concept, with or without ``{}``; their mean is subtracted.
        confidence: probability of being right that a label needs, at even odds and at the concept's prevalence.
        batch_size: images that are embedded at once.
    """

    factory: str
    checkpoint: str
    concepts: dict[str, TextConcept]
    options: dict[str, Any] = field(default_factory=dict)
    templates: tuple[str, ...] = ("{}",)
    negative_templates: tuple[str, ...] = ()
    confidence: float = 0.9
    batch_size: int = 64

    def __post_init__(self) -> None:
        if not self.concepts:
            raise ValueError(f"{_KEY}.concepts: names no concept; name one, or set {_KEY} to null")
        if not self.templates or not all("{}" in template for template in self.templates):
            raise ValueError(f"{_KEY}.templates: each must hold {{}}, where the phrase goes, got {self.templates}")
        if not 0.5 < self.confidence < 1:
            raise ValueError(f"{_KEY}.confidence: must lie between 0.5 and 1, is {self.confidence}")
        if self.batch_size < 1:
            raise ValueError(f"{_KEY}.batch_size: must be at least 1, is {self.batch_size}")


def concept_directions(encoder: ImageTextEncoder, config: TextConceptConfig, known: Sequence[str]) -> Tensor:
    """K×E unit directions of the configured concepts, in their order.

    Args:
        known: the data set's concepts.

    Raises:
        ConfigError: a concept that the data set lacks, or whose texts cancel each other out.
    """
    directions = []
    for name, concept in config.concepts.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0)[0]
            raise ConfigError(
                f"{_KEY}.concepts: the table has no column '{CONCEPT_PREFIX}{name}'; add it (it may be empty), "
                f"or did you mean {near!r}?"
            )
        phrases = concept.phrases or (name.replace("_", " "),)
        direction = _mean_text(encoder, config.templates, phrases)
        if config.negative_templates:
            direction = direction - _mean_text(encoder, config.negative_templates, phrases)
        if direction.norm() < 1e-4:
            raise ConfigError(
                f"{_KEY}.concepts.{name}: its texts average to nothing: the encoder does not tell them from the "
                "negative ones; change its phrases or the templates"
            )
        directions.append(F.normalize(direction, dim=0))
    return torch.stack(directions)


def _mean_text(encoder: ImageTextEncoder, templates: Sequence[str], phrases: Sequence[str]) -> Tensor:
    texts = sorted({template.replace("{}", phrase) for template in templates for phrase in phrases})
    return encoder.embed_texts(texts).mean(0)


def concept_scores(
    encoder: ImageTextEncoder,
    images: Images,
    rows: np.ndarray,
    directions: Tensor,
    batch_size: int = 64,
    progress: Callable[[Iterable, int], Iterable] = lambda items, total: items,
) -> np.ndarray:
    """n×K cosines of images and concept directions.

    Args:
        images: N×C×S×S uint8, prepared.
        rows: the n rows that are scored.
        directions: K×E, as `concept_directions` gives them.
        progress: wraps the iterator of ``total`` batches.

    Raises:
        ConfigError: images and texts are not embedded in one space.
    """
    scores = []
    starts = range(0, len(rows), batch_size)
    for start in progress(starts, len(starts)):
        embedded = encoder.embed_images(images[rows[start : start + batch_size]])
        if embedded.shape[1] != directions.shape[1]:
            raise ConfigError(
                f"{_KEY}.factory: the model makes {embedded.shape[1]} numbers of an image and {directions.shape[1]} of "
                "a text; it must embed both in one space"
            )
        scores.append(embedded @ directions.T)
    return torch.cat(scores).numpy().astype(np.float64)


@dataclass(frozen=True)
class Calibration:
    """What a score means for one concept: evidence = ``slope`` · score + ``intercept``, in nats."""

    slope: float
    intercept: float
    prevalence: float

    def labels(self, scores: np.ndarray, confidence: float) -> np.ndarray:
        """n scores → n float32 of 1, 0, or NaN where evidence, or evidence and prior, do not reach the confidence."""
        evidence = self.slope * scores + self.intercept
        odds = evidence + logit(self.prevalence)
        present = np.minimum(evidence, odds) >= logit(confidence)
        absent = np.maximum(evidence, odds) <= -logit(confidence)
        return np.where(present, 1, np.where(absent, 0, np.nan)).astype(np.float32)


def calibrate(name: str, scores: np.ndarray, labels: np.ndarray, prevalence: float | None) -> Calibration:
    """Calibrates one concept on training studies; see the module's docstring.

    Args:
        name: the concept's, for messages.
        scores: n.
        labels: n known labels, 1 or 0, and NaN where unknown.
        prevalence: see `TextConcept`.

    Raises:
        DataError: too few labels and no prevalence, scores that do not differ, or labels that contradict them.
    """
    centre, spread = float(scores.mean()), float(scores.std())
    if spread < 1e-6:
        raise DataError(f"{_KEY}.concepts.{name}: the encoder gives every training image the same score")
    standard = (scores - centre) / spread
    present, absent = int((labels == 1).sum()), int((labels == 0).sum())
    if min(present, absent) >= MIN_KNOWN:
        known = ~np.isnan(labels)
        fit = LogisticRegression(class_weight="balanced").fit(standard[known, None], labels[known].astype(int))
        slope, intercept = float(fit.coef_[0, 0]), float(fit.intercept_[0])
        if slope <= 0:
            raise DataError(
                f"{_KEY}.concepts.{name}: the encoder's scores are no higher where the {present + absent} training "
                "labels say present; change its phrases or the templates, or leave the concept out"
            )
        prevalence = present / (present + absent) if prevalence is None else prevalence
    elif prevalence is None:
        raise DataError(
            f"{_KEY}.concepts.{name}: {present} training studies are labelled present and {absent} absent; calibrating "
            f"the encoder takes {MIN_KNOWN} of each: label more, or state the concept's prevalence"
        )
    else:
        slope, intercept = _mixture(standard, prevalence)
    return Calibration(slope / spread, intercept - slope * centre / spread, prevalence)


def _mixture(scores: np.ndarray, prevalence: float) -> tuple[float, float]:
    """Slope and intercept of the log ratio of two normal densities of one variance, by EM; 0 and 0 if they are not two.

    Scores have variance 1. The intercept is the one at which the mean probability is the prevalence, so that scores
    that are not quite normal cannot make a concept more common than the user says. The two densities count as two when
    their means are `SEPARATION` standard deviations apart.
    """
    reach = np.abs(scores).max()
    weight = (scores > np.quantile(scores, 1 - prevalence)).astype(np.float64)
    slope = 0.0
    for _ in range(1000):
        high, low = np.average(scores, weights=weight), np.average(scores, weights=1 - weight)
        variance = np.mean(weight * (scores - high) ** 2 + (1 - weight) * (scores - low) ** 2)
        variance = max(variance, 1e-3)  # two exact values would make the slope infinite
        if high - low < SEPARATION / 2 * np.sqrt(variance):
            break  # one hump: the means would go on to meet, ever more slowly
        before, slope = slope, float((high - low) / variance)
        intercept = float(
            brentq(_surplus, -slope * reach - 20, slope * reach + 20, args=(slope * scores, prevalence), xtol=1e-6)
        )
        if abs(slope - before) < 1e-6 * slope:
            break
        weight = expit(slope * scores + intercept + logit(prevalence))
    return (slope, intercept) if high - low >= SEPARATION * np.sqrt(variance) else (0.0, 0.0)


def _surplus(intercept: float, evidence: np.ndarray, prevalence: float) -> float:
    return float(expit(evidence + intercept + logit(prevalence)).mean()) - prevalence


@dataclass(frozen=True)
class FilledConcept:
    """What was done for one concept.

    Args:
        known: training studies that people had labelled.
        auroc: of the scores on those; None unless both kinds were there.
        present, absent, unknown: what the others became.
    """

    name: str
    known: int
    auroc: float | None
    present: int
    absent: int
    unknown: int


def fill_labels(
    collection: Collection, scores: np.ndarray, config: TextConceptConfig
) -> tuple[Collection, list[FilledConcept]]:
    """Writes labels where training studies have none; known labels stay.

    Validation and test studies stay as they are: what is judged is judged by people's labels, not by the encoder's.
    A column ``filled:<name>`` of bool says which labels are the encoder's.

    Args:
        scores: n×K of the n rows of split ``train`` and the K configured concepts, in order.

    Raises:
        DataError: a concept that cannot be calibrated, or of which no training study is present, or none absent.
    """
    rows = collection.rows("train")
    studies, report = collection.studies.copy(), []
    for (name, concept), score in zip(config.concepts.items(), scores.T, strict=True):
        column = studies[CONCEPT_PREFIX + name].to_numpy(np.float32, copy=True)
        labels = column[rows]
        unknown = np.isnan(labels)
        both = len(np.unique(labels[~unknown])) == 2
        auroc = float(roc_auc_score(labels[~unknown], score[~unknown])) if both else None
        guesses = calibrate(name, score, labels, concept.prevalence).labels(score, config.confidence)
        column[rows] = np.where(unknown, guesses, labels)
        for wanted, word in ((1, "present"), (0, "absent")):
            if not (column[rows] == wanted).any():
                raise DataError(
                    f"{_KEY}.concepts.{name}: nobody labelled a training study {word} and the encoder is sure of none; "
                    f"label some, change its phrases or the templates, or lower {_KEY}.confidence"
                )
        filled = np.zeros(len(column), bool)
        filled[rows] = unknown & ~np.isnan(guesses)
        studies[CONCEPT_PREFIX + name], studies[FILLED_PREFIX + name] = column, filled
        written = guesses[unknown]
        report.append(
            FilledConcept(
                name,
                known=int((~unknown).sum()),
                auroc=auroc,
                present=int((written == 1).sum()),
                absent=int((written == 0).sum()),
                unknown=int(np.isnan(written).sum()),
            )
        )
    return replace(collection, studies=studies), report
