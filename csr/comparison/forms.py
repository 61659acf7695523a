"""What prototypes have found of the forms that a concept has (`csr.data.phantom.forms`), and what a rare form costs.

Prototypes are judged by `csr.evaluation.purity`, on local concept vectors. Whether they could have found more is told
by two things that see the same vectors: a logistic regression that is told the forms (`probe_auroc`, before and after
the projector), and k-means, which is not, with as many clusters as prototypes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from sklearn.cluster import KMeans
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from csr.comparison.ablations import VARIANTS
from csr.data.phantom.plan import FORM_PREFIX
from csr.data.prepared import PreparedSet
from csr.data.records import Collection
from csr.errors import DataError
from csr.evaluation.metrics import mean_auroc
from csr.evaluation.pointing import mean_box_centres, pointing_game
from csr.evaluation.predictions import Predictions
from csr.evaluation.purity import Purity, SortedFindings, chance, purity
from csr.network.trained import TrainedCSR
from csr.training.features import FeatureCache
from csr.training.prototypes import PrototypeConfig, all_positive_vectors, train_prototypes
from csr.training.runtime import device
from csr.training.selection import count_curve, pilot

FORMS = 2
RECIPES = {  # title, keys of the robust recipe's stage 2 that differ
    name: (VARIANTS[name].title, dict(VARIANTS[name].prototypes))
    for name in ("one_prototype", "robust", "hard_assignment", "no_extra_terms", "reseed")
} | {"auto": ("M by the one-standard-error rule", {"per_concept": "auto"})}


def forms_of(collection: Collection) -> np.ndarray:
    """N×K: 0 or 1, the form of each study's findings of a concept, NaN where it has none.

    Raises:
        DataError: the set has no forms.
    """
    columns = [FORM_PREFIX + name for name in collection.concepts]
    if missing := [name for name in columns if name not in collection.studies]:
        raise DataError(
            f"{collection.name}: its studies have no column {missing[0]!r}; prepare the phantom of params/forms.yaml"
        )
    return collection.studies[columns].to_numpy(np.float32)


def settle(config: PrototypeConfig, data: PreparedSet, cache: FeatureCache, callbacks: Any) -> PrototypeConfig:
    """The configuration with a number of prototypes; ``auto`` trains a pilot."""
    if config.per_concept != "auto":
        return config
    model = train_prototypes(data.collection, cache, pilot(config), callbacks)
    return replace(config, per_concept=count_curve(model, data.collection, cache).enough)


@dataclass(frozen=True)
class Vectors:
    """Local concept vectors of the findings of some studies: ``raw`` n×D, ``projected`` n×D', and of which ``concept``
    and ``form`` (n each) they are."""

    raw: np.ndarray
    projected: np.ndarray
    concept: np.ndarray
    form: np.ndarray


@torch.no_grad()
def vectors_of(csr: TrainedCSR, data: PreparedSet, cache: FeatureCache, split: str) -> Vectors:
    """Those of a split's findings, in the order of studies and concepts."""
    rows, labels = data.collection.rows(split), data.collection.concept_labels()
    raw, concept = all_positive_vectors(cache, torch.from_numpy(labels), rows, device())
    projected = csr.to(device()).prototype_model.projector(raw)
    form = forms_of(data.collection)[rows][labels[rows] == 1]
    return Vectors(raw.cpu().numpy(), projected.cpu().numpy(), concept.cpu().numpy(), form.astype(np.int64))


def sort_by_prototypes(csr: TrainedCSR, vectors: Vectors) -> SortedFindings:
    """Findings with the live prototype of their concept that each is nearest to."""
    prototypes, alive = csr.reasoner.prototypes.cpu().numpy(), csr.reasoner.alive.cpu().numpy()
    inner = np.einsum("nd,nmd->nm", vectors.projected, prototypes[vectors.concept])
    winner = np.where(alive[vectors.concept] > 0, inner, -2.0).argmax(1)
    return SortedFindings(vectors.concept, winner, vectors.form)


def sort_by_clusters(
    train: Vectors, test: Vectors, clusters: int, projected: bool, seed: int
) -> tuple[SortedFindings, SortedFindings]:
    """Findings with the nearest centre of a k-means of their concept's training vectors."""
    winners = [np.zeros(len(each.concept), np.int64) for each in (train, test)]
    for k in np.unique(train.concept):
        own = [each.concept == k for each in (train, test)]
        values = [
            each.projected[mask] if projected else each.raw[mask] for each, mask in zip((train, test), own, strict=True)
        ]
        scaler = StandardScaler().fit(values[0])
        means = KMeans(min(clusters, len(values[0])), n_init=10, random_state=seed).fit(scaler.transform(values[0]))
        for winner, mask, value in zip(winners, own, values, strict=True):
            if mask.any():
                winner[mask] = means.predict(scaler.transform(value))
    first, second = (
        SortedFindings(each.concept, won, each.form) for each, won in zip((train, test), winners, strict=True)
    )
    return first, second


def probe_auroc(train: np.ndarray, test: np.ndarray, about: tuple[Vectors, Vectors], concepts: int) -> np.ndarray:
    """K: how well a logistic regression that is told the forms tells them apart in n×D vectors; NaN where a form is
    missing."""
    found = np.full(concepts, np.nan)
    for k in range(concepts):
        own, judged = about[0].concept == k, about[1].concept == k
        if len(np.unique(about[0].form[own])) == FORMS == len(np.unique(about[1].form[judged])):
            model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000))
            model.fit(train[own], about[0].form[own])
            found[k] = roc_auc_score(about[1].form[judged], model.decision_function(test[judged]))
    return found


def sorting_report(train: SortedFindings, test: SortedFindings, concepts: int, per_concept: int) -> dict[str, Any]:
    """Purity and what chance gets: the mean of shuffled forms and its 97.5 % percentile."""
    found = purity(train, test, concepts, per_concept, FORMS)
    shuffled = chance(train, test, concepts, per_concept, FORMS)
    report: dict[str, Any] = {}
    for name, value in _figures(found).items():
        drawn = np.array([_figures(each)[name] for each in shuffled])
        known = drawn[~np.isnan(drawn)]
        report[name] = value
        report[f"{name}_chance"] = float(known.mean()) if known.size else float("nan")
        report[f"{name}_high"] = float(np.percentile(known, 97.5)) if known.size else float("nan")
    report["recall_by_concept"] = found.recall_by_concept[:, 1].tolist()
    return report


def _figures(found: Purity) -> dict[str, float]:
    return {
        "purity": found.purity,
        "coverage": found.coverage,
        "recall": float(found.recall[1]),
        "precision": float(found.precision[1]),
    }


def by_form(data: PreparedSet, predictions: Predictions) -> list[dict[str, Any]]:
    """Concept AUROC and pointing game of the judged studies, for each form against the studies without the concept.

    Returns:
        A dictionary a form: ``findings``, ``concept_auroc``, ``pointing`` and the last two ``_by_concept``.
    """
    collection, rows = data.collection, predictions.rows
    forms, boxes = forms_of(collection), collection.boxes_by_pair()
    centres = mean_box_centres(boxes, collection.rows("train"), len(collection.concepts), data.side)
    assert predictions.concepts is not None and predictions.peaks is not None
    found = []
    for form in range(FORMS):
        labels = collection.concept_labels()[rows]
        labels[(labels == 1) & (forms[rows] != form)] = np.nan
        own = {pair: each for pair, each in boxes.items() if forms[pair] == form}
        game = pointing_game(predictions.peaks, own, rows, centres, data.side)
        each = [mean_auroc(labels[:, k : k + 1], predictions.concepts[:, k : k + 1]) for k in range(labels.shape[1])]
        found.append(
            {
                "findings": int((labels == 1).sum()),
                "concept_auroc": mean_auroc(labels, predictions.concepts),
                "pointing": game.pair,
                "concept_auroc_by_concept": each,
                "pointing_by_concept": game.by_concept.tolist(),
            }
        )
    return found
