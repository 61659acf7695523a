"""What readers' corrections are worth: simulated readers correct new studies, the model learns from them, and is judged
on studies that nobody corrected.

The deployed model meets studies of another site: new ones, drawn as the ``shifted`` test studies are, with a seed of
their own, so none is a test study. Readers correct those that the model is least sure of (the margin between its two
likeliest classes). One reader a study goes through all concepts: a finding that she sees is boxed and named, one that
she does not see rejected; where the model sees a concept that she rejects, an ignore box marks the spot; last she
signs a class. A share e of what she says is wrong, each word by itself:

- a concept: the opposite; a finding that is not there gets a box of such a finding's size, somewhere off the findings;
- an ignore box: moved to where it covers a finding, if the study has any;
- the class: another one.

Readers that differ in e alone draw the same random numbers, so the mistakes of the better are among those of the worse.
Not covered: readers who differ, or who answer a part of the questions only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from csr.data.feedback import FeedbackBox, FeedbackSet, Reading, write_feedback
from csr.data.images import pixel_digest
from csr.data.phantom import PhantomConfig, generate
from csr.data.prepared import PreparedSet
from csr.evaluation.pointing import inside
from csr.interaction.placing import elsewhere
from csr.network.trained import TrainedCSR
from csr.training.images import image_batches

POOL = 400  # new studies that the deployed model meets
SPOT = 1 / 8  # side of an ignore box, as a share of the image's
NOBODY = "0" * 64  # the bundle's digest: simulated readers have none


@dataclass(frozen=True)
class Arm:
    """One way to train on.

    Args:
        title: for people.
        studies: that readers corrected; 0: training goes on without any.
        error: e, share of what they said that is wrong.
        keys: of ``concepts``, ``prototypes``, ``head`` that differ from the parameters.
        classes: whether signed classes are learned.
    """

    title: str
    studies: int = 0
    error: float = 0.0
    keys: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    classes: bool = True


_NO_BOXES: Mapping[str, Mapping[str, Any]] = {"concepts": {"box_weight": 0.0}, "prototypes": {"reader_boxes": False}}
_ALL_BELIEVED: Mapping[str, Mapping[str, Any]] = {
    stage: {"doubt_readers": False} for stage in ("concepts", "prototypes", "head")
}
ARMS = {
    "none": Arm("no feedback"),
    "right_50": Arm("50 studies, none wrong", 50),
    "wrong30_50": Arm("50 studies, 30 % wrong", 50, 0.3),
    "right_200": Arm("200 studies, none wrong", 200),
    "wrong10_200": Arm("200 studies, 10 % wrong", 200, 0.1),
    "wrong30_200": Arm("200 studies, 30 % wrong", 200, 0.3),
    "no_box_in_stage_1": Arm("none wrong, no box in stage 1", 200, keys={"concepts": {"box_weight": 0.0}}),
    "no_box": Arm("none wrong, no box in any stage", 200, keys=_NO_BOXES),
    "concepts_only": Arm("none wrong, no box and no signed class", 200, keys=_NO_BOXES, classes=False),
    "wrong30_no_class": Arm("30 % wrong, no signed class", 200, 0.3, classes=False),
    "wrong30_all_believed": Arm("30 % wrong, no word doubted", 200, 0.3, keys=_ALL_BELIEVED),
}
MAIN = ("none", "right_50", "wrong30_50", "right_200", "wrong10_200", "wrong30_200")  # the others are ablations


def new_studies(config: PhantomConfig, side: int, seed: int, path: Path) -> tuple[PreparedSet, np.ndarray]:
    """Studies of another site and their rows: `POOL` of the distribution of ``shifted``, none of them of the prepared
    set. Written to ``path``.

    Args:
        config, side: of the prepared set.
        seed: of these studies.
    """
    other = replace(config, train=100, val=50, test=POOL, seed=config.seed + 1000 + seed)
    generate(other, side, path)
    data = PreparedSet.open(path)
    return data, data.collection.rows("test", "shifted")


@dataclass(frozen=True)
class Said:
    """What a model says of n studies: ``predicted`` n indices of classes, ``margin`` n between the two likeliest,
    ``present`` n×K bool and ``peaks`` n×K×2 (x, y), where its concept maps peak, in pixels."""

    predicted: np.ndarray
    margin: np.ndarray
    present: np.ndarray
    peaks: np.ndarray


@torch.no_grad()
def what_it_says(csr: TrainedCSR, data: PreparedSet, rows: np.ndarray) -> Said:
    """Asks a model about studies."""
    predicted, margins, present, peaks = [], [], [], []
    for _, images in image_batches(data, rows, 64):
        said = csr(images)
        best = said.probabilities.topk(2, 1).values
        width = said.concept_maps.shape[-1]
        cell = said.concept_maps.flatten(2).argmax(-1)
        predicted.append(said.probabilities.argmax(1))
        margins.append(best[:, 0] - best[:, 1])
        present.append(said.concept_probabilities > 0.5)
        peaks.append((torch.stack([cell % width, cell // width], -1) + 0.5) * (data.side / width))
    return Said(*(torch.cat(each).cpu().numpy() for each in (predicted, margins, present, peaks)))


def least_sure(said: Said, count: int) -> np.ndarray:
    """Which of n studies are corrected: indices, ascending."""
    return np.sort(np.argsort(said.margin, kind="stable")[:count])


def correct(data: PreparedSet, rows: np.ndarray, said: Said, count: int, error: float, seed: int) -> list[Reading]:
    """The readings of the ``count`` studies, of the given rows, that the model is least sure of.

    Args:
        said: of all rows.
        error: e.
        seed: of the readers.
    """
    boxes = data.collection.boxes_by_pair()
    typical = {k: np.concatenate([each for (_, other), each in boxes.items() if other == k]) for _, k in boxes}
    return [
        _reading(data, boxes, typical, int(rows[index]), said.present[index], said.peaks[index], error, number, seed)
        for number, index in enumerate(least_sure(said, count), 1)
    ]


def _reading(
    data: PreparedSet,
    boxes: Mapping[tuple[int, int], np.ndarray],
    typical: Mapping[int, np.ndarray],
    row: int,
    shown: np.ndarray,
    peaks: np.ndarray,
    error: float,
    number: int,
    seed: int,
) -> Reading:
    collection, side, rng = data.collection, data.side, np.random.default_rng([seed, row])
    own = [boxes[row, k] for k in range(len(shown)) if (row, k) in boxes]
    findings = np.concatenate([*own, np.zeros((0, 4))])
    drawn: list[FeedbackBox] = []
    confirmed, rejected = [], []
    slips, misplaced = rng.random(len(shown)) < error, rng.random(len(shown)) < error
    targets = rng.integers(max(len(findings), 1), size=len(shown))  # what a misplaced ignore box covers
    for k, (name, label) in enumerate(zip(collection.concepts, collection.concept_labels()[row], strict=True)):
        example = typical[k][rng.integers(len(typical[k]))]
        off = elsewhere(example, findings, side, rng)
        if (label == 1) != slips[k]:
            found = boxes.get((row, k), np.zeros((0, 4))) if label == 1 else off[None]
            drawn += [FeedbackBox("finding", name, *map(float, box)) for box in found]
            confirmed += [name] * (not len(found))
            continue
        rejected.append(name)
        if not shown[k]:
            continue
        middle = peaks[k]
        if misplaced[k] and len(findings):
            middle = findings[targets[k]].reshape(2, 2).mean(0)
        elif inside(middle, findings):
            continue  # the spot shows another finding, which is not to be ignored
        low, high = np.clip([middle - SPOT * side / 2, middle + SPOT * side / 2], 0, side).tolist()
        drawn.append(FeedbackBox("ignore", None, *low, *high))
    truth, classes = str(collection.studies["label"].iat[row]), collection.classes
    others = [each for each in classes if each != truth]
    other = others[rng.integers(len(others))]
    signed = other if rng.random() < error else truth
    return Reading(
        pixel_digest(data.images[row]), "reader", "keep", (signed,), classes, tuple(confirmed), tuple(rejected),
        tuple(drawn), number, NOBODY, "1", "2026-01",
    )  # fmt: skip


def write_set(data: PreparedSet, rows: np.ndarray, readings: list[Reading], path: Path) -> FeedbackSet:
    """The readings as a feedback set, as ``csr feedback export`` writes it."""
    canvas = {pixel_digest(data.images[row]): data.images[row] for row in rows.tolist()}
    return write_feedback(path, readings, [], canvas.__getitem__, (len(readings), "0" * 64), {})
