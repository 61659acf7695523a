"""A new concept from a few boxed examples: CSR's prototypes against what else one could do with the same examples.

Some concepts are held out of stages 1 and 2, with their boxes (`csr.data.held_out`). Then, from n boxed training images
and as many that lack the concept, each of these finds it in test studies; stage 1 is the same and frozen for all:

- *CSR*: `csr.interaction.few_shot`.
- *linear map, same loss*: CSR's loss and start, on the features instead of projected patches, with one direction.
- *linear probe*: logistic regression of cells, those in boxes against all others of the examples, the two weighing
  alike; the largest cell counts.
- *CBM column*: what stage 1 itself would learn from the labels, without boxes: logit = pool(w·f) + b with its own
  pooling, by binary cross-entropy.

Features are standardised per channel for the last three. No setting was chosen on a held-out concept: CSR's loss and
steps come from trials on validation studies with one concept (cavity) that stage 1 had learned, λ is stage 2's, the
probe's strength is in the middle of those that did best there, and the column's decay is fixed.

*Full supervision* is a model that had all labels of the concept in all stages from the start: CSR's, and for classes
also the CBM's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from csr.baselines.cbm import concept_logits
from csr.baselines.classes import class_probabilities
from csr.baselines.last_layer import fit_last_layer
from csr.baselines.protocol import ExperimentContext, TrainedBackbone
from csr.data.decisions import decide
from csr.data.records import Collection
from csr.evaluation.metrics import macro_f1, mean_auroc
from csr.evaluation.peaks import map_peaks
from csr.evaluation.pointing import inside
from csr.evaluation.predictions import Predictions
from csr.evaluation.thresholds import validation_thresholds
from csr.interaction.few_shot import (
    Examples,
    FewShotConfig,
    add_concepts,
    example_cells,
    fit_prototypes,
    outside_boxes,
    separation_loss,
)
from csr.network.concept_model import ConceptModelConfig, pool_maps
from csr.network.trained import TrainedCSR
from csr.training.head import HeadConfig
from csr.training.prediction import predict
from csr.training.prototypes import feature_statistics
from csr.training.runtime import device

SYSTEMS = {
    "csr": "CSR, prototypes from examples",
    "same_loss": "linear map, same loss",
    "probe": "linear probe",
    "column": "CBM column, no boxes",
}
PROBE_STRENGTH = 0.1  # C of scikit-learn
COLUMN_DECAY = 1e-2  # L2 on w
_STEPS = 200
_BATCH = 64


@dataclass(frozen=True)
class FewShotTrials:
    """What is tried.

    Args:
        counts: n, boxed images; as many images that lack the concept.
        draws: how often they are drawn.
        seed: of the draws.
    """

    counts: tuple[int, ...] = (5, 10, 20)
    draws: int = 3
    seed: int = 0


def draw_examples(collection: Collection, concept: str, count: int, draw: int, seed: int) -> Examples:
    """So many boxed training images of a concept and as many that lack it, at random; see `enough_examples`."""
    k, boxes = collection.concepts.index(concept), collection.boxes_by_pair()
    rng = np.random.default_rng([seed, k, draw])
    shown, lacking = (rng.permutation(rows)[:count] for rows in _possible_examples(collection, concept))
    return Examples(concept, {int(row): boxes[int(row), k] for row in shown}, lacking)


def enough_examples(collection: Collection, concept: str, count: int) -> bool:
    """Whether there are so many training images with and without the concept to draw from."""
    return all(len(rows) >= count for rows in _possible_examples(collection, concept))


def _possible_examples(collection: Collection, concept: str) -> tuple[np.ndarray, np.ndarray]:
    """Training rows with the concept and a box of it, and those without the concept."""
    k, train = collection.concepts.index(concept), collection.rows("train")
    labels, boxes = collection.concept_labels()[train, k], collection.boxes_by_pair()
    boxed = np.array([(int(row), k) in boxes for row in train], bool)
    return train[(labels == 1) & boxed], train[labels == 0]


@dataclass(frozen=True)
class Direction:
    """A linear map of standardised features: score = pool(w·f), w of D numbers."""

    weight: Tensor
    pooling: ConceptModelConfig | None = None  # None: the largest cell


class Frozen:
    """Stage 1's features, standardised per channel as stage 2 standardises them."""

    def __init__(self, shared: TrainedBackbone, train: np.ndarray) -> None:
        self.shared = shared
        mean, std = feature_statistics(shared.cache, train)
        self._mean, self._std = mean.to(device()), std.clamp_min(0.01 * float(std.median())).to(device())

    def features(self, rows: np.ndarray) -> Tensor:
        """n×D×h×w."""
        raw = self.shared.cache.batch(rows, device())[0]
        return (raw - self._mean[:, None, None]) / self._std[:, None, None]


def linear_probe(frozen: Frozen, examples: Examples, side: int, strength: float = PROBE_STRENGTH) -> Direction:
    """See the module's docstring."""
    features, free, boxed, owner = _example_features(frozen, examples, side)
    positive = torch.cat([features[i][:, cells].T for i, cells in zip(owner.tolist(), boxed, strict=True)])
    negative = torch.cat([own[:, mask].T for own, mask in zip(features, free, strict=True)])
    cells = torch.cat([positive, negative]).cpu().numpy()
    labels = np.repeat([1, 0], [len(positive), len(negative)])
    fitted = LogisticRegression(C=strength, max_iter=300, class_weight="balanced").fit(cells, labels)
    return Direction(torch.from_numpy(fitted.coef_[0]).float().to(device()))


def same_loss(frozen: Frozen, examples: Examples, side: int, config: FewShotConfig) -> Direction:
    """See the module's docstring. w is a unit vector and so are the features of a cell, as in CSR."""
    features, free, boxed, owner = _example_features(frozen, examples, side)
    features = F.normalize(features, dim=1)
    start = torch.stack([features[i][:, cells].mean(1) for i, cells in zip(owner.tolist(), boxed, strict=True)]).mean(0)
    raw = F.normalize(start, dim=0).requires_grad_(True)
    optimiser = torch.optim.Adam([raw], lr=config.learning_rate)
    for _ in range(config.steps):
        similar = torch.einsum("bdhw,d->bhw", features, F.normalize(raw, dim=0))
        loss = separation_loss(similar, boxed, owner, free, config)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return Direction(F.normalize(raw.detach(), dim=0))


def cbm_column(frozen: Frozen, examples: Examples, decay: float = COLUMN_DECAY) -> Direction:
    """See the module's docstring."""
    rows = np.array([*examples.boxes, *examples.absent.tolist()], np.int64)
    features, pooling = frozen.features(rows), frozen.shared.model.config
    labels = torch.zeros(len(rows), device=device())
    labels[: len(examples.boxes)] = 1
    weight = torch.zeros(features.shape[1], device=device(), requires_grad=True)
    bias = torch.zeros((), device=device(), requires_grad=True)
    optimiser = torch.optim.Adam([weight, bias], lr=0.02)
    for _ in range(_STEPS):
        logits = pool_maps(torch.einsum("bdhw,d->bhw", features, weight), pooling) + bias
        loss = F.binary_cross_entropy_with_logits(logits, labels) + decay * weight.square().sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return Direction(weight.detach(), pooling)


def _example_features(frozen: Frozen, examples: Examples, side: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Features R×D×h×w, the cells outside boxes R×h×w, of every box its cells n×h×w and the number of its image n."""
    features = frozen.features(np.array([*examples.boxes, *examples.absent.tolist()], np.int64))
    inside_boxes, owner = example_cells(examples, side, *features.shape[2:])
    boxed, image = torch.from_numpy(inside_boxes).to(device()), torch.from_numpy(owner).to(device())
    free = outside_boxes(boxed, image, len(features))
    return features, free, boxed, image


@dataclass(frozen=True)
class Found:
    """What one way says about a concept in N studies.

    Args:
        scores: N.
        peaks: N×2 (x, y) in pixels where it points, NaN where nobody asked.
    """

    scores: np.ndarray
    peaks: np.ndarray


class _Gathered:
    """Scores and peaks of J ways, batch by batch; peaks where ``wanted`` J×N says so."""

    def __init__(self, wanted: np.ndarray, side: int) -> None:
        self._wanted, self._side, self._at = wanted, side, 0
        self.scores = np.zeros(wanted.shape, np.float32)
        self.peaks = np.full((*wanted.shape, 2), np.nan)

    def add(self, maps: Tensor, scores: Tensor) -> None:
        """Maps B×J×h×w and scores B×J of the next B studies."""
        own = slice(self._at, self._at + len(maps))
        self.scores[:, own] = scores.T.cpu().numpy()
        for j, wanted in enumerate(self._wanted[:, own]):
            if wanted.any():
                self.peaks[j, own][wanted] = map_peaks(maps[torch.from_numpy(wanted), j], self._side)
        self._at += len(maps)

    def found(self) -> list[Found]:
        """One a way."""
        return [Found(scores, peaks) for scores, peaks in zip(self.scores, self.peaks, strict=True)]


@torch.no_grad()
def seen_by_directions(
    frozen: Frozen, directions: Sequence[Direction], rows: np.ndarray, wanted: np.ndarray, side: int, unit: bool
) -> list[Found]:
    """What J directions say about N rows, in one pass.

    Args:
        wanted: J×N bool, where peaks are needed.
        unit: take a cell's features as a unit vector.
    """
    stacked = torch.stack([each.weight for each in directions])
    gathered = _Gathered(wanted, side)
    for start in range(0, len(rows), _BATCH):
        features = frozen.features(rows[start : start + _BATCH])
        maps = torch.einsum("bdhw,jd->bjhw", F.normalize(features, dim=1) if unit else features, stacked)
        pooled = [
            maps[:, j].flatten(1).amax(1) if each.pooling is None else pool_maps(maps[:, j], each.pooling)
            for j, each in enumerate(directions)
        ]
        gathered.add(maps, torch.stack(pooled, 1))
    return gathered.found()


@torch.no_grad()
def seen_by_prototypes(
    shared: TrainedBackbone,
    csr: TrainedCSR,
    prototypes: Sequence[Tensor],
    rows: np.ndarray,
    wanted: np.ndarray,
    side: int,
) -> list[Found]:
    """The same of J sets of m×D' prototypes."""
    gathered = _Gathered(wanted, side)
    for start in range(0, len(rows), _BATCH):
        patches = csr.project(shared.cache.batch(rows[start : start + _BATCH], csr.place)[0])
        maps = torch.stack([torch.einsum("bdhw,md->bmhw", patches, own).amax(1) for own in prototypes], 1)
        gathered.add(maps, maps.flatten(2).amax(2).clamp_min(0))
    return gathered.found()


def concept_figures(
    collection: Collection, concept: str, found: Found, rows: np.ndarray
) -> dict[str, dict[str, float]]:
    """By part of the rows: ``auroc``, and ``pointing``, the share of pairs with a box whose peak lies in one."""
    k, boxes = collection.concepts.index(concept), collection.boxes_by_pair()
    labels, parts = collection.concept_labels()[rows, k], collection.studies["part"].to_numpy()[rows]
    figures = {}
    for part in dict.fromkeys(parts):
        own = parts == part
        hits = [
            inside(found.peaks[i], boxes[int(rows[i]), k]) for i in np.flatnonzero(own) if (int(rows[i]), k) in boxes
        ]
        auroc = mean_auroc(labels[own, None], found.scores[own, None])
        figures[str(part)] = {"auroc": auroc, "pointing": float(np.mean(hits)) if hits else float("nan")}
    return figures


def find_concepts(
    context: ExperimentContext,
    csr: TrainedCSR,
    whole: Collection,
    names: Sequence[str],
    trials: FewShotTrials,
    rows: np.ndarray,
) -> dict[tuple[str, str, int, int], Found]:
    """What every way finds of every held-out concept in given rows, by (system, concept, n, draw); without the n of
    which a concept has not `enough_examples`.

    Args:
        context: without the held-out concepts, with the stage 1 that knows none of them.
        csr: stages 2 and 3 on it.
        whole: with them.
    """
    assert context.shared_backbone is not None
    shared, side, config = context.shared_backbone, context.data.side, FewShotConfig()
    csr, frozen = csr.to(device()).eval(), Frozen(shared, whole.rows("train"))
    counts = [(name, n) for name in names for n in trials.counts if enough_examples(whole, name, n)]
    keys = [(name, n, draw) for name, n in counts for draw in range(trials.draws)]
    if not keys:
        return {}
    drawn = [draw_examples(whole, name, n, draw, trials.seed) for name, n, draw in keys]
    boxes, judged = whole.boxes_by_pair(), (whole.studies["split"] != "train").to_numpy()[rows]
    has_box = {name: np.array([(int(row), whole.concepts.index(name)) in boxes for row in rows]) for name in names}
    wanted = np.stack([has_box[name] & judged for name, _, _ in keys])
    prototypes = [fit_prototypes(csr, shared.cache, each, side, config) for each in drawn]
    unit = [same_loss(frozen, each, side, config) for each in drawn]
    plain = [linear_probe(frozen, each, side) for each in drawn] + [cbm_column(frozen, each) for each in drawn]
    both = seen_by_directions(frozen, plain, rows, np.concatenate([wanted, wanted]), side, unit=False)
    found = {
        "csr": seen_by_prototypes(shared, csr, prototypes, rows, wanted, side),
        "same_loss": seen_by_directions(frozen, unit, rows, wanted, side, unit=True),
        "probe": both[: len(keys)],
        "column": both[len(keys) :],
    }
    return {(system, *key): each for system, own in found.items() for key, each in zip(keys, own, strict=True)}


def class_figures(
    context: ExperimentContext,
    csr: TrainedCSR,
    whole: Collection,
    names: Sequence[str],
    trials: FewShotTrials,
    found: Mapping[tuple[str, str, int, int], Found],
    head: HeadConfig,
) -> list[dict[str, Any]]:
    """Macro F1 of heads that know the held-out concepts too, all of them at once: ``system, n, draw`` and the parts.

    ``n`` 0: without them; others only where every concept has `enough_examples`. CSR's head is trained anew by
    `add_concepts`; the others' scores join stage 1's own concept logits as inputs of a CBM's linear layer.

    Args:
        found: of all rows of the collection.
    """
    assert context.shared_backbone is not None
    data, shared = context.data, context.shared_backbone
    lines = [{"system": "csr", "n": 0, "draw": 0, **_csr_f1(context, csr)}]
    logits = concept_logits(shared, np.arange(len(whole.studies)))
    lines.append({"system": "column", "n": 0, "draw": 0, **_bottleneck_f1(context, logits)})
    for n in trials.counts:
        if not all(enough_examples(whole, name, n) for name in names):
            continue
        for draw in range(trials.draws):
            drawn = [draw_examples(whole, name, n, draw, trials.seed) for name in names]
            added, known, cache = add_concepts(csr, data, shared.cache, drawn, head, context.callbacks)
            wider = replace(context, data=known, shared_backbone=replace(shared, cache=cache))
            lines.append({"system": "csr", "n": n, "draw": draw, **_csr_f1(wider, added)})
            for system in ("same_loss", "probe", "column"):
                columns = torch.from_numpy(np.stack([found[system, name, n, draw].scores for name in names], 1))
                inputs = torch.cat([logits, columns.to(logits)], 1)
                lines.append({"system": system, "n": n, "draw": draw, **_bottleneck_f1(context, inputs)})
    return lines


def _csr_f1(context: ExperimentContext, csr: TrainedCSR) -> dict[str, float]:
    assert context.shared_backbone is not None
    cache = context.shared_backbone.cache
    validation, test = (predict(context.data, cache, csr, split) for split in ("val", "test"))
    return _f1(context.data.collection, validation, test)


def _bottleneck_f1(context: ExperimentContext, inputs: Tensor) -> dict[str, float]:
    """Of a linear layer on inputs N×J of all rows."""
    collection = context.data.collection
    layer = fit_last_layer(context, inputs[context.class_rows], inputs[collection.rows("val")])

    def said(split: str) -> Predictions:
        rows = collection.rows(split)
        with torch.no_grad():
            probabilities = class_probabilities(layer(inputs[rows].float().cpu()), context.multilabel)
        return Predictions(rows, probabilities.numpy(), None, None)

    return _f1(collection, said("val"), said("test"))


def _f1(collection: Collection, validation: Predictions, test: Predictions) -> dict[str, float]:
    """Of the test parts, at thresholds by the validation split where a study can have several classes."""
    thresholds = validation_thresholds(collection, validation)
    predicted = decide(test.probabilities, collection.task == "multilabel", thresholds)
    truth, parts = collection.truth()[test.rows], collection.studies["part"].to_numpy()[test.rows]
    return {
        str(part): macro_f1(truth[parts == part], predicted[parts == part], len(collection.classes))
        for part in dict.fromkeys(parts)
    }
