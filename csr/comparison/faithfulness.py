"""Is what CSR shows what it looks at, and is what a CBM on the same stage 1 shows? See `csr.evaluation.faithfulness`.

Four measurements on test studies, drawn with a seed of their own:

- *concept*: a study's map of a concept that it shows with a box; the score is that concept's probability.
- *class*: a study's map of the most probable class, Σ_k max(c_k, 0) · map_k scaled to 0..1, where c_k is what concept k
  adds to the class's logit beyond what an absent one does; the score is the class's probability. Studies of which both
  systems say the same class, and another of the blurred image: else there is nothing to take away.
- *exemplars* (CSR alone, for a CBM has none): the crop of a training image that the page shows for a prototype, pasted
  at its own place into a study without the concept, beside a crop of the same place of a training image that lacks it.
- *pointed region*: the square around the largest value of a concept's map, wiped (blurred), beside a square of the same
  size off the box of the concept or, where that leaves no room, the one of a hundred that touches it least. Studies
  with one box of it, since of two findings one is left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from csr.baselines.cbm import CBM
from csr.baselines.classes import class_probabilities
from csr.bundle.atlas import CROP_CELLS, Atlas
from csr.data.prepared import PreparedSet
from csr.evaluation.faithfulness import (
    area,
    blurred,
    centre_ranks,
    map_ranks,
    pasted,
    random_ranks,
    removal_curves,
    square_around,
    wiped,
)
from csr.evaluation.peaks import map_peaks
from csr.network.concept_model import ConceptModel
from csr.network.reasoner import Reasoner
from csr.network.trained import TrainedCSR
from csr.training.runtime import device

NAMES = ("csr", "cbm")
ORDERS = ("csr", "cbm", "random", "centre")
_BATCH = 25
_TRIES = 100  # to place a square off a concept's boxes


@dataclass(frozen=True)
class FaithfulnessConfig:
    """How many studies.

    Args:
        studies: of each test part, for *concept* and for *class* each.
        pastes: of each test part, for each live prototype.
        wipes: of each test part, for each concept.
        seed: of the draws.
    """

    studies: int = 40
    pastes: int = 20
    wipes: int = 20
    seed: int = 0


class Look(NamedTuple):
    """What a system shows and says of B images."""

    maps: Tensor  # B×K×h×w
    concepts: Tensor  # B×K probabilities
    classes: Tensor  # B×T probabilities
    beyond: Tensor  # B×K×T, what each concept adds to the logits beyond an absent one


@dataclass(frozen=True)
class Systems:
    """CSR and a CBM on the same stage 1, so that an image's features are computed once."""

    stage1: ConceptModel
    csr: TrainedCSR
    cbm: CBM

    @torch.no_grad()
    def look(self, images: Tensor) -> dict[str, Look]:
        """uint8 B×C×S×S → by `NAMES`."""
        features = self.stage1.features(images.to(device()))
        said = self.csr.reasoner(self.csr.project(features))
        cam = self.cbm.concept_model.maps(features)
        logits = self.cbm.concept_model.pool(cam)
        beyond = (logits - self.cbm.low)[..., None] * self.cbm.head.weight.T
        classes = class_probabilities(self.cbm.classify(logits), self.cbm.multilabel)
        return {
            "csr": Look(
                said.concept_maps,
                said.concept_probabilities,
                said.probabilities,
                _beyond(self.csr.reasoner, said.scores),
            ),
            "cbm": Look(cam, logits.sigmoid(), classes, beyond),
        }


def _beyond(reasoner: Reasoner, scores: Tensor) -> Tensor:
    """Scores B×K×M → B×K×T, what they add to the logits beyond absent scores."""
    concepts, per_concept = reasoner.alive.shape
    weights = reasoner.head.weight.reshape(-1, concepts, per_concept)
    return torch.einsum("bkm,tkm->bkt", (scores - reasoner.absent_scores) / reasoner.score_std, weights)


def class_maps(look: Look, chosen: Tensor) -> Tensor:
    """B×h×w, the map of class ``chosen`` (B indices); see the module's docstring."""
    low, high = look.maps.amin((2, 3), keepdim=True), look.maps.amax((2, 3), keepdim=True)
    scaled = (look.maps - low) / (high - low).clamp_min(1e-6)
    weights = look.beyond[torch.arange(len(chosen)), :, chosen].clamp_min(0)
    return torch.einsum("bk,bkhw->bhw", weights, scaled)


def curve_areas(systems: Systems, data: PreparedSet, config: FaithfulnessConfig) -> pd.DataFrame:
    """Areas under deletion and insertion curves: ``part, kind`` (concept or class), ``target`` (its name), ``study``,
    ``way`` and, of the score of each system under each order, ``<system>_by_<order>``."""
    collection, rows = data.collection, []
    boxes, labels = collection.boxes_by_pair(), collection.concept_labels()
    for number, part in enumerate(collection.test_parts()):
        rng = np.random.default_rng([config.seed, number])
        test = rng.permutation(collection.rows("test", part))
        located = {
            row: [k for k in range(labels.shape[1]) if labels[row, k] == 1 and (row, k) in boxes] for row in test
        }
        shown = np.array([row for row in test if located[row]][: config.studies], np.int64)
        targets = np.array([rng.choice(located[row]) for row in shown], np.int64)
        rows += _areas(systems, data, shown, targets, "concept", part, rng)
        decided, agreed = _decided(systems, data, test, config.studies)
        rows += _areas(systems, data, decided, agreed, "class", part, rng)
    return pd.DataFrame(rows)


def _decided(systems: Systems, data: PreparedSet, test: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of which both systems say one class, and another of the blurred image; and the classes."""
    rows: list[int] = []
    classes: list[int] = []
    for start in range(0, len(test), _BATCH):
        chosen = test[start : start + _BATCH]
        images = _load(data, chosen)
        sharp, plain = (
            [look.classes.argmax(1).cpu().numpy() for look in systems.look(each).values()]
            for each in (images, blurred(images))
        )
        kept = (sharp[0] == sharp[1]) & (sharp[0] != plain[0]) & (sharp[1] != plain[1])
        rows += chosen[kept].tolist()
        classes += sharp[0][kept].tolist()
        if len(rows) >= most:
            break
    return np.array(rows[:most], np.int64), np.array(classes[:most], np.int64)


def _areas(
    systems: Systems,
    data: PreparedSet,
    rows: np.ndarray,
    targets: np.ndarray,
    kind: str,
    part: str,
    rng: np.random.Generator,
) -> list[dict[str, Any]]:
    """The lines of `curve_areas` for some studies and the index of a concept or class each."""
    collection, lines = data.collection, []
    names = collection.concepts if kind == "concept" else collection.classes
    for start in range(0, len(rows), _BATCH):
        chosen, target = rows[start : start + _BATCH], torch.from_numpy(targets[start : start + _BATCH]).to(device())
        images = _load(data, chosen)
        plain, each = blurred(images), torch.arange(len(chosen), device=device())

        def score(shown: Tensor, target: Tensor = target, each: Tensor = each) -> np.ndarray:
            looks = systems.look(shown)
            said = [looks[name].concepts if kind == "concept" else looks[name].classes for name in NAMES]
            return torch.stack([values[each, target] for values in said], 1).cpu().numpy()

        looks = systems.look(images)
        maps = {
            name: (looks[name].maps[each, target] if kind == "concept" else class_maps(looks[name], target))
            .cpu()
            .numpy()
            for name in NAMES
        }
        count, height, width = maps["csr"].shape
        ranks = {name: map_ranks(own) for name, own in maps.items()}
        ranks |= {"random": random_ranks(count, height, width, rng), "centre": centre_ranks(count, height, width)}
        ends = score(images), score(plain)
        for way in ("deletion", "insertion"):
            areas = {
                order: area(
                    np.moveaxis(removal_curves(images, plain, own, score, way == "insertion", ends=ends), 1, -1)
                )
                for order, own in ranks.items()
            }
            for position, row in enumerate(chosen):
                line: dict[str, Any] = {"part": part, "kind": kind, "target": names[int(target[position])]}
                line |= {"study": collection.studies["study_id"].iat[row], "way": way}
                for (index, name), order in product(enumerate(NAMES), ORDERS):
                    line[f"{name}_by_{order}"] = float(areas[order][position, index])
                lines.append(line)
    return lines


def exemplar_effects(systems: Systems, data: PreparedSet, atlas: Atlas, config: FaithfulnessConfig) -> pd.DataFrame:
    """What pasting an exemplar does: ``part, concept, prototype, study``, the concept's probability ``before``, with
    the ``exemplar`` and with a ``control`` crop, and the prototype's largest similarity there, ``similarity_…``."""
    collection, labels = data.collection, data.collection.concept_labels()
    train, lines, position = collection.rows("train"), [], 0
    for entry in atlas.entries:
        crops = atlas.crops[position : position + len(entry.sources)]
        position += len(entry.sources)
        if not entry.alive or not len(crops):
            continue
        k, size = collection.concepts.index(entry.concept), crops.shape[-1]
        rng = np.random.default_rng([config.seed, k, entry.index])
        without = train[labels[train, k] == 0]
        for part in collection.test_parts():
            test = collection.rows("test", part)
            lacking = rng.permutation(test[labels[test, k] == 0])[: config.pastes]
            turn = np.arange(len(lacking)) % len(crops)  # each of the exemplars that the page shows in turn
            corners = np.array([entry.sources[i].box[:2] for i in turn]).astype(int).reshape(-1, 2)
            images = _load(data, lacking)
            others = _load(data, rng.choice(without, len(lacking)))
            cut = torch.stack(
                [o[:, t : t + size, x : x + size] for o, (x, t) in zip(others, corners.tolist(), strict=True)]
            )
            shown = {
                "before": images,
                "exemplar": pasted(images, torch.from_numpy(np.ascontiguousarray(crops[turn])), corners),
                "control": pasted(images, cut, corners),
            }
            seen = {name: _similar_at(systems, each, k, entry.index, corners, size) for name, each in shown.items()}
            for i, row in enumerate(lacking):
                line: dict[str, Any] = {"part": part, "concept": entry.concept, "prototype": entry.index}
                line["study"] = collection.studies["study_id"].iat[row]
                for name, (probability, similarity) in seen.items():
                    line |= {name: float(probability[i]), f"similarity_{name}": float(similarity[i])}
                lines.append(line)
    return pd.DataFrame(lines)


@torch.no_grad()
def _similar_at(
    systems: Systems, images: Tensor, k: int, m: int, corners: np.ndarray, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """CSR's probability of concept k, and the largest similarity to its prototype m in squares at corners; B each."""
    csr, side = systems.csr, images.shape[-1]
    probabilities, similar = [], []
    for start in range(0, len(images), _BATCH):
        said = csr.reasoner(csr.project(systems.stage1.features(images[start : start + _BATCH].to(device()))))
        probabilities.append(said.concept_probabilities[:, k])
        maps = said.similarity_maps[:, k, m]
        middles = (torch.arange(maps.shape[-1], device=maps.device) + 0.5) * side / maps.shape[-1]
        place = torch.from_numpy(corners[start : start + _BATCH]).to(maps.device)
        across, down = ((middles[None] > c[:, None]) & (middles[None] < c[:, None] + size) for c in place.T)
        similar.append(maps.masked_fill(~(down[:, :, None] & across[:, None]), -2).flatten(1).amax(1))
    return torch.cat(probabilities).cpu().numpy(), torch.cat(similar).cpu().numpy()


def pointed_effects(systems: Systems, data: PreparedSet, config: FaithfulnessConfig) -> pd.DataFrame:
    """What wiping the pointed region does: ``part, concept, study, system``, the concept's probability ``before``,
    without the ``pointed`` region and without a ``control`` square."""
    collection, labels = data.collection, data.collection.concept_labels()
    boxes, lines = collection.boxes_by_pair(), []
    for (k, concept), part in product(enumerate(collection.concepts), collection.test_parts()):
        rng = np.random.default_rng([config.seed, k, 1])
        test = collection.rows("test", part)
        single = [row for row in test if labels[row, k] == 1 and len(boxes.get((int(row), k), ())) == 1]
        chosen = rng.permutation(np.array(single, np.int64))[: config.wipes]
        if not len(chosen):
            continue
        images = _load(data, chosen)
        looks, plain = _looks(systems, images), blurred(images)
        size = round(CROP_CELLS * data.side / looks["csr"].maps.shape[-1])
        off = np.array([_elsewhere(boxes[int(row), k][0], data.side, size, rng) for row in chosen])
        control = _looks(systems, wiped(images, plain, off, size))
        for name in NAMES:
            peaks = map_peaks(looks[name].maps[:, k], data.side)
            after = _looks(systems, wiped(images, plain, square_around(peaks, data.side, size), size))
            for i, row in enumerate(chosen):
                line: dict[str, Any] = {"part": part, "concept": concept, "system": name}
                line["study"] = collection.studies["study_id"].iat[row]
                for key, said in (("before", looks), ("pointed", after), ("control", control)):
                    line[key] = float(said[name].concepts[i, k])
                lines.append(line)
    return pd.DataFrame(lines)


def _looks(systems: Systems, images: Tensor) -> dict[str, Look]:
    pieces = [systems.look(part) for part in images.split(_BATCH)]
    return {name: Look(*(torch.cat(each) for each in zip(*(p[name] for p in pieces), strict=True))) for name in NAMES}


def _elsewhere(box: np.ndarray, side: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """The corner of a square that does not touch a box; of `_TRIES` places the one that touches it least."""
    corners = rng.integers(0, side - size + 1, (_TRIES, 2))
    shared = np.minimum(corners + size, box[2:]) - np.maximum(corners, box[:2])
    return corners[shared.clip(0).prod(1).argmin()]


def _load(data: PreparedSet, rows: Sequence[int] | np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(data.images[np.asarray(rows)]))
