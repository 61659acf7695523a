"""Simulated clinicians: who corrects the model, one interaction at a time, from a study's boxes and concept labels.

A clinician sees the study's truth (which findings are there, and where) and the model's present answer, and never the
study's class: what a clinician knows is what a radiologist can see. Every interaction costs 1. A perfect clinician has
these:

- *reject* a concept that the model asserts (probability > 0.5) though it is absent;
- a *focus box* on a present finding that the model misses: the concept's map peaks off all of the finding's boxes.
  A focus box tells the model that the rest matters less, so a clinician who has drawn one goes on and outlines every
  other present finding too, missed or not. A finding's boxes are drawn one by one;
- a *ignore box* on a false spot: the map of an asserted concept peaks off the true boxes of every concept. It is a
  square around the peak, cut back so that it touches no true box.

A peak is *off* a box when it lies more than half a map cell outside it: nearer, the cell itself touches the finding.

Mode ``spatial`` has the boxes, ``concept`` the rejections, ``both`` all three. A concept whose label is unknown is left
alone, and so is a present concept that has no box.

Which goes first? Order ``uncertainty``: the model hesitates between its two likeliest classes, so the concept on which
that decision rests most, argmax_k |c_k,top1 − c_k,top2| with c the contributions to the logits, is looked at first
(the "contribution to concept-to-target prediction" order of Shin et al. 2023 with the margin in place of the logit);
among equals a rejection comes before a box. Where a study can have several classes it hesitates over the least certain
one, and |c_k| for that class decides. Order ``random``: any of the interactions, all alike.

A clinician errs in a share e of the interactions, and then does the opposite: rejects a present concept, one that the
model asserts if there is one, or, in a study without a finding, confirms the false one, which changes nothing; draws
the focus box, in its size, away from the finding; draws the ignore box on a true finding, or, in a study without
a box, away from the spot. Clinicians that differ in e alone draw the same random numbers, so the mistakes of the better
are among those of the worse as long as both see the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np

from csr.interaction.corrections import Interaction, RegionBox

Mode = Literal["spatial", "concept", "both"]
Order = Literal["uncertainty", "random"]
Kind = Literal["reject", "focus", "ignore"]

ASSERTED = 0.5
_TRIES = 20  # places to draw for a misplaced box; the one that covers least of the finding is taken


@dataclass(frozen=True)
class ClinicianConfig:
    """What kind of clinician.

    Args:
        mode, order: see the module's docstring.
        error: share of interactions that are wrong, in [0, 1].
        spot: side of an ignore box as a share of the image's.
        seed: together with a study's row number it settles every random draw.
        multilabel: a study can have several classes.
    """

    mode: Mode = "both"
    order: Order = "uncertainty"
    error: float = 0.0
    spot: float = 1 / 6
    seed: int = 0
    multilabel: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.error <= 1:
            raise ValueError(f"error: {self.error} is outside 0..1")


@dataclass(frozen=True)
class Truth:
    """What is in a study.

    Args:
        labels: K of 1, 0 or NaN.
        boxes: concept index → n×4 boxes in pixels of the square input; concepts without a box are not in it.
    """

    labels: np.ndarray
    boxes: dict[int, np.ndarray] = field(default_factory=dict)


class Answer(NamedTuple):
    """What the model says about a study at present."""

    probabilities: np.ndarray  # T
    concept_probabilities: np.ndarray  # K
    contributions: np.ndarray  # K×T
    peaks: np.ndarray  # K×2, (x, y) in pixels of the square input


@dataclass(frozen=True)
class Action:
    """One interaction. ``box`` is None for rejections; a confirmation is a wrong ``reject`` without a concept."""

    kind: Kind
    concept: int | None
    box: RegionBox | None
    wrong: bool


class Clinician:
    """One clinician before one study; remembers what is drawn and rejected.

    Args:
        config: what kind of clinician.
        truth: what is in the study.
        row: the study's row number, for the random draws.
        side: the square input's side in pixels.
        cell: a map cell's side in pixels.
    """

    def __init__(self, config: ClinicianConfig, truth: Truth, row: int, side: int, cell: float) -> None:
        self._config, self._truth, self._side, self._slack = config, truth, side, cell / 2
        self._rng = np.random.default_rng([config.seed, row])
        self._all_boxes = np.concatenate([*truth.boxes.values(), np.zeros((0, 4))])
        self._drawn: dict[int, int] = {}
        self._boxes: list[RegionBox] = []
        self._rejected: list[int] = []

    def _stake(self, answer: Answer) -> np.ndarray:
        """K: how much of the decision that the model hesitates over rests on each concept."""
        if self._config.multilabel:
            return np.abs(answer.contributions[:, np.abs(answer.probabilities - 0.5).argmin()])
        top = np.argsort(-answer.probabilities, kind="stable")[:2]
        return np.abs(answer.contributions[:, top[0]] - answer.contributions[:, top[-1]])

    def act(self, answer: Answer) -> Action | None:
        """The next interaction, or None when there is nothing that this clinician would correct."""
        choices = self._choices(answer)
        if not choices:
            return None
        slip, pick, place = self._rng.random(), self._rng.random(), int(self._rng.integers(2**32))
        stake = self._stake(answer)
        if self._config.order == "uncertainty":
            kind, concept = max(choices, key=lambda choice: stake[choice[1]])  # the first among equals
        else:
            kind, concept = choices[int(pick * len(choices))]
        wrong = bool(slip < self._config.error)
        action = self._do(kind, concept, wrong, answer, stake, np.random.default_rng(place))
        if kind == "focus":
            self._drawn[concept] = self._drawn.get(concept, 0) + 1
        if action.box is not None:
            self._boxes.append(action.box)
        if action.kind == "reject" and action.concept is not None:
            self._rejected.append(action.concept)
        return action

    def interaction(
        self, concepts: Sequence[str], rejection: Literal["zero", "absent"], alpha: float | None
    ) -> Interaction:
        """All that was done so far, as the model takes it."""
        rejected = tuple(concepts[k] for k in self._rejected)
        return Interaction(tuple(self._boxes), rejected=rejected, alpha=alpha, rejection=rejection)

    def _choices(self, answer: Answer) -> list[tuple[Kind, int]]:
        """The correct interactions that are left, rejections first, then by concept."""
        mode, labels = self._config.mode, self._truth.labels
        open_to = [k for k in range(len(labels)) if k not in self._rejected]
        asserted = {k for k in open_to if answer.concept_probabilities[k] > ASSERTED}
        choices: list[tuple[Kind, int]] = []
        if mode != "spatial":
            choices += [("reject", k) for k in open_to if k in asserted and labels[k] == 0]
        if mode != "concept":
            choices += [("focus", k) for k in open_to if labels[k] == 1 and self._wants_box(k, answer)]
            choices += [("ignore", k) for k in open_to if k in asserted and self._is_off(answer.peaks[k])]
        return choices

    def _wants_box(self, k: int, answer: Answer) -> bool:
        boxes = self._truth.boxes.get(k, np.zeros((0, 4)))
        missed = bool(self._drawn) or _distance(answer.peaks[k], boxes) > self._slack
        return self._drawn.get(k, 0) < len(boxes) and missed

    def _is_off(self, peak: np.ndarray) -> bool:
        return _distance(peak, self._all_boxes) > self._slack

    def _spot(self, peak: np.ndarray) -> np.ndarray:
        """The ignore box (x_min, y_min, x_max, y_max) around a peak that is off all findings."""
        half = min(self._config.spot * self._side / 2, _distance(peak, self._all_boxes))
        return np.clip(np.concatenate([peak - half, peak + half]), 0, self._side)

    def _do(
        self, kind: Kind, k: int, wrong: bool, answer: Answer, stake: np.ndarray, rng: np.random.Generator
    ) -> Action:
        if kind == "reject":
            return Action(kind, self._victim(answer, stake) if wrong else k, None, wrong)
        if kind == "focus":
            own = self._truth.boxes[k]
            box = own[self._drawn.get(k, 0)]
            return Action(kind, k, _region(_misplaced(box, own, self._side, rng) if wrong else box, kind), wrong)
        spot = self._spot(answer.peaks[k])
        if wrong and len(self._all_boxes):
            spot = self._all_boxes[rng.integers(len(self._all_boxes))]
        elif wrong:
            spot = _misplaced(spot, spot[None], self._side, rng)
        return Action(kind, k, _region(spot, kind), wrong)

    def _victim(self, answer: Answer, stake: np.ndarray) -> int | None:
        """The present concept that a mistaken rejection hits: an asserted one first, then the one most at stake."""
        present = [k for k, label in enumerate(self._truth.labels) if label == 1 and k not in self._rejected]
        weight = {k: (answer.concept_probabilities[k] > ASSERTED, stake[k]) for k in present}
        return max(present, key=lambda k: weight[k], default=None)


def _distance(point: np.ndarray, boxes: np.ndarray) -> float:
    """Chebyshev distance from a point to the nearest of n×4 boxes: 0 inside or on an edge, ∞ without boxes."""
    if not len(boxes):
        return np.inf
    away = np.maximum(boxes[:, :2] - point, point - boxes[:, 2:]).max(1)
    return float(np.maximum(away, 0).min())


def _misplaced(box: np.ndarray, others: np.ndarray, side: int, rng: np.random.Generator) -> np.ndarray:
    """The box, in its size, at the place inside the image that covers least of ``others``, of a few drawn at random."""
    extent = box[2:] - box[:2]
    corners = rng.random((_TRIES, 2)) * np.maximum(side - extent, 0)
    places = np.concatenate([corners, corners + extent], 1)
    low = np.maximum(places[:, None, :2], others[None, :, :2])
    high = np.minimum(places[:, None, 2:], others[None, :, 2:])
    covered = np.maximum(high - low, 0).prod(-1).sum(1)
    return places[covered.argmin()]


def _region(corners: np.ndarray, kind: Literal["focus", "ignore"]) -> RegionBox:
    x_min, y_min, x_max, y_max = (float(value) for value in corners)
    return RegionBox(x_min, y_min, x_max, y_max, kind)
