"""Curves of answers: simulated readers are asked about concepts, and what they say is judged by accuracy and macro F1.

The model asks whether a concept is there, the reader replies, and the next question knows the reply
(`csr.interaction.questions`). A reader knows what a radiologist can see, which findings are there and where, and never
the class. A concept whose label is unknown is not asked about. Readers differ in the tool that they reply with, and a
share e of their replies is wrong, in the way of the tool:

- ``keys``: yes or no, which confirms or rejects the concept. Wrong: the opposite.
- ``findings``: a finding box around a concept that is there; "no" by a key if it is not. Wrong: the box is named with
  the concept that looks most alike (`most_alike`). Where such a box lies changes what is shown and no class, so an
  error of place has no curve.
- ``questioned``: the same, but a reader whose name is doubted (`csr.interaction.naming`) looks again and names the box
  rightly.
- ``regions``: boxes without names, the paper's interactions. If the concept is there, focus boxes around every finding
  of the image, since what is left out would be weighed down; if not, an ignore box around the spot where the model sees
  it, unless that is one of the image's findings. Wrong: the boxes are moved by half their size.

Readers that differ in e alone draw the same random numbers, so the mistakes of the better are among those of the worse.
What a reply costs a reader is stated (`COSTS`), not measured.

``keys`` need nothing of CSR's own: whatever is `Answerable` can be asked, a concept bottleneck model too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import pandas as pd
import torch

from csr.data.decisions import decide, wants_help
from csr.data.prepared import PreparedSet
from csr.data.records import Collection
from csr.evaluation.metrics import correct, macro_f1
from csr.interaction.corrections import Interaction, RegionBox, interaction_tensors
from csr.interaction.naming import BoxNaming
from csr.interaction.placing import shifted
from csr.interaction.questions import expected_effects
from csr.network.reasoner import concept_evidence, concept_maps
from csr.network.trained import TrainedCSR
from csr.training.features import FeatureCache
from csr.training.head import class_logits
from csr.training.prototypes import all_positive_vectors
from csr.training.runtime import device

Tool = Literal["keys", "findings", "questioned", "regions"]
Policy = Literal["effect", "worthwhile", "random", "learned"]
Boxes = tuple[RegionBox, ...]

# seconds: to look and press a key; to draw a box and pick its name; to draw a box
COSTS = {"key": 4.0, "finding": 8.0, "region": 6.0}
SPOT = 1 / 6  # side of an ignore box as a share of the image's
_BATCH = 32  # small, so that a batch of similarity maps stays in the processor's cache


@dataclass(frozen=True)
class Findings:
    """What n studies show.

    Args:
        labels: n×K of 1, 0 or NaN.
        boxes: of each study, concept index → m×4 boxes in pixels of the side×side input.
        alike: K; the concept that each is mistaken for.
        side: of the square input, in pixels.
    """

    labels: np.ndarray
    boxes: Sequence[dict[int, np.ndarray]]
    alike: np.ndarray
    side: int

    def every_box(self, study: int) -> np.ndarray:
        """m×4, of all concepts."""
        return np.concatenate([*self.boxes[study].values(), np.zeros((0, 4))])


class Answerable(Protocol):
    """n studies and a model that takes answers about their K concepts."""

    likely: np.ndarray  # n×K, how likely the model thinks each concept without any answer

    def ask(self, answers: np.ndarray) -> np.ndarray:
        """n×K of 1 (confirmed), −1 (rejected) or 0 → n×T class probabilities."""


@runtime_checkable
class Inquisitive(Protocol):
    """A model that has learned what to ask."""

    def worth(self, answers: np.ndarray) -> np.ndarray:
        """n×K answers so far → n×K, how much each question is worth."""


class AnswerableCSR:
    """A trained CSR and some studies; takes boxes too.

    Args:
        cache: the backbone's features.
        csr: trained.
        rows: of the studies.
        side: of the square input, in pixels.
        zero: a rejected score becomes 0 (the paper), not the absent score.
        naming: doubts the names of finding boxes; None: nothing is doubted.
    """

    @torch.no_grad()
    def __init__(
        self,
        cache: FeatureCache,
        csr: TrainedCSR,
        rows: np.ndarray,
        side: int,
        zero: bool = False,
        naming: BoxNaming | None = None,
    ) -> None:
        csr = csr.to(device()).eval()
        self._reasoner, self._concepts, self._side, self._naming = csr.reasoner, csr.concepts, side, naming
        pieces = [csr.project(cache.batch(rows[start : start + 64], csr.place)[0]) for start in range(0, len(rows), 64)]
        self._patches = torch.cat(pieces)
        self._absent_weight = torch.full((len(rows),), float(not zero), device=csr.place)
        self._seen: dict[tuple[int, Boxes], torch.Tensor] = {}
        self._scores = torch.cat([csr.reasoner.scores(csr.reasoner.maps(part)) for part in self._patches.split(_BATCH)])
        evidence = concept_evidence(self._scores, csr.reasoner.alive)
        likely = torch.sigmoid(csr.reasoner.concept_scale * evidence + csr.reasoner.concept_shift)
        self.likely = likely.cpu().numpy()

    @torch.no_grad()
    def ask(self, answers: np.ndarray, boxes: Sequence[Boxes] | None = None) -> np.ndarray:
        """Class probabilities n×T after answers n×K and under each study's focus and ignore boxes."""
        scores = self._scores if boxes is None else self._under(boxes)
        told = torch.from_numpy(answers.astype(np.float32)).to(scores.device)
        logits = class_logits(self._reasoner, self._reasoner.answered(scores, told, self._absent_weight))
        return self._reasoner.probabilities(logits).cpu().numpy()

    def _under(self, boxes: Sequence[Boxes]) -> torch.Tensor:
        new = [(study, own) for study, own in enumerate(boxes) if own and (study, own) not in self._seen]
        for start in range(0, len(new), _BATCH):
            part = new[start : start + _BATCH]
            chosen = [study for study, _ in part]
            scores = self._reasoner.scores(self._maps(chosen, [own for _, own in part]))
            self._seen |= dict(zip(part, scores, strict=True))
        scores = self._scores.clone()
        for study, own in enumerate(boxes):
            if own:
                scores[study] = self._seen[study, own]
        return scores

    def _maps(self, chosen: Sequence[int], boxes: Sequence[Boxes]) -> torch.Tensor:
        """Similarity maps of the chosen studies under their boxes."""
        said = [Interaction(own) for own in boxes]
        height, width = self._patches.shape[2:]
        importance = interaction_tensors(said, self._concepts, self._side, height, width)["importance"]
        return self._reasoner.maps(self._patches[list(chosen)], torch.from_numpy(importance).to(self._patches.device))

    @torch.no_grad()
    def peak(self, study: int, concept: int, boxes: Boxes) -> np.ndarray:
        """Where a concept's map is largest under boxes: (x, y) in pixels, the centre of a cell."""
        maps = concept_maps(self._maps([study], [boxes]), self._reasoner.alive)[0, concept]
        height, width = maps.shape
        index = int(maps.argmax())
        return (np.array([index % width, index // width]) + 0.5) * self._side / np.array([width, height])

    @torch.no_grad()
    def doubts(self, study: int, box: np.ndarray, concept: int) -> bool:
        """Whether the name of a finding box is doubted."""
        if self._naming is None:
            return False
        maps = concept_maps(self._reasoner.maps(self._patches[[study]]), self._reasoner.alive)[0].cpu().numpy()
        return self._naming.doubts(concept, self._naming.probabilities(maps, _region(box), self._side))


@dataclass(frozen=True)
class Reader:
    """What kind of reader: see the module's docstring.

    Args:
        tool: what is replied with.
        policy: what is asked: ``effect``, the question with the largest expected effect; ``worthwhile``, the same as
            long as its effect is not below the bundle's limit; ``random``, any that is open; ``learned``, what an
            `Inquisitive` model has learned to ask.
        error: share of wrong replies, in [0, 1].
    """

    tool: Tool = "keys"
    policy: Policy = "effect"
    error: float = 0.0


@dataclass(frozen=True)
class AnswerConfig:
    """Which curves.

    Args:
        tools, policies, errors: every reader that these make; ``random`` and ``effect`` go with ``keys`` alone.
        budget: B, the most replies a study; the curves have B + 1 points.
        margin: of the trigger: ``uncertain`` readers only touch studies whose decision margin
            (`csr.data.decisions.decision_margin`) is below it at first.
        least_effect: the limit of ``worthwhile``, in bits.
        seed: of the readers.
    """

    tools: tuple[Tool, ...] = ("keys",)
    policies: tuple[Policy, ...] = ("effect", "worthwhile", "random")
    errors: tuple[float, ...] = (0.0, 0.1, 0.2, 0.3)
    budget: int = 5
    margin: float = 0.3
    least_effect: float = 0.1
    seed: int = 0

    def readers(self) -> list[Reader]:
        """Every kind."""
        return [
            Reader(tool, policy, error)
            for tool, policy, error in product(self.tools, self.policies, self.errors)
            if tool == "keys" or policy == "worthwhile"
        ]


def answer_curves(
    model: Answerable,
    collection: Collection,
    rows: np.ndarray,
    findings: Findings,
    config: AnswerConfig,
    thresholds: np.ndarray | None = None,
) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
    """Lets every kind of reader reply about every study.

    Args:
        model: whose studies are ``rows``.
        findings: of the rows; see `findings_of`.
        thresholds: T, the model's (`csr.evaluation.thresholds`), where a study can have several classes; None: a half.

    Returns:
        One row a part, kind of reader and number of replies: ``part, tool, policy, error, trigger`` (``all`` or
        ``uncertain``), ``budget`` (at most so many replies a study), ``macro_f1, accuracy``, ``fixed, broken`` (studies
        wrong before and right now, and the reverse), and of a study of the part, in the mean, ``replies`` given and
        ``seconds`` that they cost. And what was decided, by `decision_key`: (B+1)×n class indices, or ×T of 0 and 1.
    """
    truth, multilabel = collection.truth()[rows], collection.task == "multilabel"
    parts = collection.studies["part"].to_numpy()[rows]
    table: list[dict[str, Any]] = []
    decisions: dict[str, np.ndarray] = {}
    for reader in config.readers():
        probabilities, used, seconds = read(model, findings, reader, config, multilabel)
        uncertain = wants_help(probabilities[0], config.margin, multilabel, thresholds)
        decided = decide(probabilities, multilabel, thresholds)
        triggers = {"all": np.ones_like(uncertain), "uncertain": uncertain}
        for trigger, touched in triggers.items():
            helped = touched[:, None] if multilabel else touched
            decisions[decision_key(reader, trigger)] = np.where(helped, decided, decided[0])
        for (trigger, touched), part in product(triggers.items(), dict.fromkeys(parts)):
            own = parts == part
            predicted = decisions[decision_key(reader, trigger)][:, own]
            right = correct(truth[own], predicted)
            for budget in range(config.budget + 1):
                table.append(
                    {
                        "part": part,
                        "tool": reader.tool,
                        "policy": reader.policy,
                        "error": reader.error,
                        "trigger": trigger,
                        "budget": budget,
                        "macro_f1": macro_f1(truth[own], predicted[budget], len(collection.classes)),
                        "accuracy": float(right[budget].mean()),
                        "fixed": int((right[budget] & ~right[0]).sum()),
                        "broken": int((right[0] & ~right[budget]).sum()),
                        "replies": float((used[budget] * touched)[own].mean()),
                        "seconds": float((seconds[budget] * touched)[own].mean()),
                    }
                )
    return pd.DataFrame(table), decisions


def decision_key(reader: Reader, trigger: str) -> str:
    """The name under which `answer_curves` returns what was decided."""
    return f"{reader.tool}/{reader.policy}/{reader.error}/{trigger}"


def findings_of(data: PreparedSet, rows: np.ndarray, alike: np.ndarray) -> Findings:
    """What the studies of some rows show, by their labels and boxes.

    Args:
        alike: see `most_alike`.
    """
    boxes: list[dict[int, np.ndarray]] = [{} for _ in rows]
    place = {int(row): study for study, row in enumerate(rows)}
    for (row, k), found in data.collection.boxes_by_pair().items():
        if row in place:
            boxes[place[row]][k] = found
    return Findings(data.collection.concept_labels()[rows], boxes, alike, data.side)


def most_alike(data: PreparedSet, cache: FeatureCache) -> np.ndarray:
    """Of each concept the one that it is most easily taken for: K indices.

    That whose mean local concept vector over the training images, less the mean over all concepts, has the largest
    cosine with its own. It rests on stage 1 alone, so that all systems on one have readers who mistake the same.
    """
    labels = torch.from_numpy(data.collection.concept_labels())
    vectors, concept = all_positive_vectors(cache, labels, data.collection.rows("train"), device())
    means = torch.stack([vectors[concept == k].mean(0) for k in range(labels.shape[1])])
    unit = torch.nn.functional.normalize(means - means.mean(0), dim=1)
    likeness = unit @ unit.T
    return likeness.fill_diagonal_(-2).argmax(1).cpu().numpy()


def read(
    model: Answerable, findings: Findings, reader: Reader, config: AnswerConfig, multilabel: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Class probabilities (B+1)×n×T after 0..B replies, and by then, (B+1)×n each, how many replies were given and how
    many seconds they took."""
    count, concepts = findings.labels.shape
    rng = np.random.default_rng(config.seed)
    slips, order = rng.random((config.budget, count)), rng.random((count, concepts))
    state = _Reading(model, findings, reader, config.seed)
    probabilities = [state.probabilities()]
    used, seconds = [np.zeros(count, int)], [np.zeros(count)]
    for turn in range(config.budget):
        worth = np.where(state.open, _worth(state, order, multilabel), -np.inf)
        chosen = worth.argmax(1)
        best = worth[np.arange(count), chosen]
        asked = best >= config.least_effect if reader.policy == "worthwhile" else best > -np.inf
        cost = np.zeros(count)
        for study in np.flatnonzero(asked):
            cost[study] = state.reply(int(study), int(chosen[study]), bool(slips[turn, study] < reader.error))
        probabilities.append(state.probabilities())
        used.append(used[-1] + asked)
        seconds.append(seconds[-1] + cost)
    return np.stack(probabilities), np.stack(used), np.stack(seconds)


def _worth(state: _Reading, order: np.ndarray, multilabel: bool) -> np.ndarray:
    """n×K, how much each question is worth under the reader's policy."""
    policy = state.reader.policy
    if policy == "random":
        return order
    if policy == "learned":
        assert isinstance(state.model, Inquisitive)
        return state.model.worth(state.answers)
    return state.effects(multilabel)


def effects(
    ask: Callable[[np.ndarray], np.ndarray], answers: np.ndarray, likely: np.ndarray, multilabel: bool
) -> np.ndarray:
    """Expected effects n×K of a question about each concept; see `csr.interaction.questions`.

    Args:
        ask: n×K answers → n×T class probabilities.
        answers: n×K, what has been said.
        likely: n×K, how likely the model thinks each concept.
    """

    def after(said: int) -> np.ndarray:
        told = np.repeat(answers[None], answers.shape[1], axis=0)
        told[np.arange(len(told)), :, np.arange(len(told))] = said
        return np.stack([ask(each) for each in told], axis=1)

    return expected_effects(ask(answers), after(1), after(-1), likely, multilabel)


class _Reading:
    """n simulated readers of one kind before n studies, and what they have said."""

    def __init__(self, model: Answerable, findings: Findings, reader: Reader, seed: int) -> None:
        self.model, self.reader, self._findings, self._seed = model, reader, findings, seed
        self.answers = np.zeros(findings.labels.shape)
        self.open = ~np.isnan(findings.labels)  # what can still be asked
        self._boxes: list[Boxes] = [()] * len(findings.labels)

    def probabilities(self, answers: np.ndarray | None = None) -> np.ndarray:
        """n×T as the model has it now, or would with other answers."""
        told = self.answers if answers is None else answers
        return self.model.ask(told, self._boxes) if isinstance(self.model, AnswerableCSR) else self.model.ask(told)

    def effects(self, multilabel: bool) -> np.ndarray:
        """Expected effects n×K of a question about each concept."""
        return effects(self.probabilities, self.answers, self.model.likely, multilabel)

    def reply(self, study: int, concept: int, wrong: bool) -> float:
        """Says something about a concept of a study; returns the seconds that it took."""
        there = self._findings.labels[study, concept] == 1
        if self.reader.tool == "keys":
            return self._press(study, concept, there != wrong)
        if self.reader.tool == "regions":
            return self._outline(study, wrong) if there else self._ignore(study, concept, wrong)
        return self._name(study, concept, wrong) if there else self._press(study, concept, False)

    def _press(self, study: int, concept: int, yes: bool) -> float:
        self.answers[study, concept] = 1 if yes else -1
        self.open[study, concept] = False
        return COSTS["key"]

    def _name(self, study: int, concept: int, wrong: bool) -> float:
        other, cost = int(self._findings.alike[concept]), COSTS["finding"]
        named = other if wrong and self.open[study, other] else concept  # nobody contradicts what was said before
        boxes = self._findings.boxes[study].get(concept)
        if named != concept and self.reader.tool == "questioned" and boxes is not None:
            assert isinstance(self.model, AnswerableCSR)
            if self.model.doubts(study, boxes[0], named):
                named, cost = concept, cost + COSTS["key"]
        self._press(study, named, True)
        return cost

    def _outline(self, study: int, wrong: bool) -> float:
        boxes = self._findings.every_box(study)
        self.open[study, self._findings.labels[study] == 1] = False
        if wrong:
            rng = np.random.default_rng([self._seed, study])
            boxes = np.array([shifted(box, self._findings.side, rng) for box in boxes])
        self._boxes[study] += tuple(_region(box, "focus") for box in boxes)
        return COSTS["region"] * max(1, len(boxes))

    def _ignore(self, study: int, concept: int, wrong: bool) -> float:
        assert isinstance(self.model, AnswerableCSR)
        self.open[study, concept] = False
        side = self._findings.side
        peak = self.model.peak(study, concept, self._boxes[study])
        room = _distance(peak, self._findings.every_box(study))
        if not room:
            return COSTS["key"]  # looked, and left alone
        half = min(SPOT * side / 2, room)
        spot = np.clip(np.concatenate([peak - half, peak + half]), 0, side)
        if wrong:
            spot = shifted(spot, side, np.random.default_rng([self._seed, study, concept]))
        self._boxes[study] += (_region(spot, "ignore"),)
        return COSTS["region"]


def _distance(point: np.ndarray, boxes: np.ndarray) -> float:
    """Chebyshev distance from a point to the nearest of n×4 boxes: 0 inside or on an edge, ∞ without boxes."""
    if not len(boxes):
        return np.inf
    away = np.maximum(boxes[:, :2] - point, point - boxes[:, 2:]).max(1)
    return float(np.maximum(away, 0).min())


def _region(corners: np.ndarray, kind: Literal["focus", "ignore"] = "focus") -> RegionBox:
    x_min, y_min, x_max, y_max = (float(value) for value in corners)
    return RegionBox(x_min, y_min, x_max, y_max, kind)
