"""What boxes are good for, in figures: can the model name them, does it doubt wrong names, does it look there?"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from csr.data.prepared import PreparedSet
from csr.interaction.corrections import Interaction, RegionBox, interaction_tensors
from csr.interaction.naming import BoxNaming
from csr.interaction.naming_fit import labelled_boxes
from csr.network.reasoner import Reasoning
from csr.network.trained import TrainedCSR
from csr.training.features import FeatureCache

RANDOM_BOXES = 120
MOVED = 0.005  # of a class probability: half a point
_BATCH = 32


class _Classes(NamedTuple):
    probabilities: torch.Tensor  # n×T
    contributions: torch.Tensor  # n×K×T


def naming_figures(
    data: PreparedSet, cache: FeatureCache, csr: TrainedCSR, naming: BoxNaming, rows: np.ndarray, alike: np.ndarray
) -> dict[str, float]:
    """How well the boxes of some studies are named.

    Args:
        alike: K; the concept that each is mistaken for.

    Returns:
        ``boxes``, their number; ``top1, top3``, shares whose concept is the first, or among the first three;
        ``false_alarms``, share of right names that are doubted; ``caught_alike, caught_any``, shares of wrong names
        that are: the most alike concept's, and every other concept's.
    """
    features, concept = labelled_boxes(data, cache, csr, rows)
    likely = naming.by_features(features)
    rank = (likely > likely[np.arange(len(concept)), concept][:, None]).sum(1)
    doubted = np.array([[naming.doubts(k, own) for k in range(likely.shape[1])] for own in likely])
    right = np.zeros_like(doubted)
    right[np.arange(len(concept)), concept] = True
    return {
        "boxes": len(concept),
        "top1": float((rank < 1).mean()),
        "top3": float((rank < 3).mean()),
        "false_alarms": float(doubted[right].mean()),
        "caught_alike": float(doubted[np.arange(len(concept)), alike[concept]].mean()),
        "caught_any": float(doubted[~right].mean()),
    }


def focus_figures(
    data: PreparedSet, cache: FeatureCache, csr: TrainedCSR, rows: np.ndarray, seed: int
) -> dict[str, float]:
    """What focus boxes do to the classes of some studies.

    Returns:
        ``random_moved``, share of `RANDOM_BOXES` random boxes, on a study each, that move some class by `MOVED`. And of
        a reader who focuses on what is there, in studies with boxes: shares in which the study's own class falls and
        rises by `MOVED`, and the mean change of its probability; ``matters_lowered, matters_raised, matters_change``
        for the finding that adds most to that class, ``every_…`` for all of the study's findings.
    """
    rng = np.random.default_rng([seed, len(rows)])
    chosen = rng.permutation(rows)[:RANDOM_BOXES]
    drawn = []
    for _ in chosen:
        extent = rng.uniform(0.1, 0.4, 2) * data.side
        corner = rng.random(2) * (data.side - extent)
        drawn.append(np.array([[*corner, *(corner + extent)]]))
    before, after = (_reason(data, cache, csr, chosen, boxes) for boxes in (None, drawn))
    moved = (after.probabilities - before.probabilities).abs().amax(1) >= MOVED

    truth, boxes = data.collection.truth(), data.collection.boxes_by_pair()
    classes = np.eye(len(csr.classes))[truth] if truth.ndim == 1 else truth  # of several classes the first counts
    concepts = range(len(csr.concepts))
    located = np.array([row for row in rows if classes[row].any() and any((int(row), k) in boxes for k in concepts)])
    plain = _reason(data, cache, csr, located, None)
    own = torch.from_numpy(classes[located].argmax(1))
    focus: dict[str, list[np.ndarray]] = {"matters": [], "every": []}
    for index, row in enumerate(located):
        found = [k for k in concepts if (int(row), k) in boxes]
        best = max(found, key=lambda k: float(plain.contributions[index, k, own[index]]))
        focus["matters"].append(boxes[int(row), best])
        focus["every"].append(np.concatenate([boxes[int(row), k] for k in found]))
    figures = {"random_moved": float(moved.float().mean())}
    for name, where in focus.items():
        after = _reason(data, cache, csr, located, where)
        change = (after.probabilities - plain.probabilities)[torch.arange(len(located)), own]
        figures |= {
            f"{name}_lowered": float((change <= -MOVED).float().mean()),
            f"{name}_raised": float((change >= MOVED).float().mean()),
            f"{name}_change": float(change.mean()),
        }
    return figures


@torch.no_grad()
def _reason(
    data: PreparedSet, cache: FeatureCache, csr: TrainedCSR, rows: np.ndarray, boxes: list[np.ndarray] | None
) -> _Classes:
    """What the model says of rows, with each row's n×4 boxes to focus on if there are any."""
    parts: list[Reasoning] = []
    for start in range(0, len(rows), _BATCH):
        part = slice(start, start + _BATCH)
        patches = csr.project(cache.batch(rows[part], csr.place)[0])
        importance = None
        if boxes is not None:
            said = [Interaction(tuple(RegionBox(*box) for box in own.tolist())) for own in boxes[part]]
            tensors = interaction_tensors(said, csr.concepts, data.side, *patches.shape[2:])
            importance = torch.from_numpy(tensors["importance"]).to(csr.place)
        parts.append(csr.reasoner(patches, importance))
    return _Classes(*(torch.cat([getattr(each, name).cpu() for each in parts]) for name in _Classes._fields))
