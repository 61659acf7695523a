"""What taking prototypes out of a bundle's atlas does to its validation studies, and what each of them does there.

The figures are those that the pipeline finds on these studies once the prototypes are pruned
(`csr.interaction.review.prune`), to the last digit: macro F1 and the pointing game of `csr.evaluation`, on what
``pruning.onnx`` says of the stored scores. Torch-free.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnxruntime as ort

from csr.bundle.format import PRUNING_OUTPUTS, Bundle
from csr.bundle.validation import ValidationSet
from csr.data.decisions import decide
from csr.errors import CSRError
from csr.evaluation.upsampling import Upsampler

DECIDES = 8  # studies that are named of each prototype
_AT_ONCE = 64  # maps that are enlarged at once


class PruningError(CSRError):
    """A set of prototypes that cannot be pruned."""


@dataclass(frozen=True)
class Figures:
    """``pointing``: hits over all pairs of a study and a concept that have a box; None if none has."""

    macro_f1: float
    pointing: float | None


@dataclass(frozen=True)
class ClassEffect:
    """A class's F1."""

    name: str
    f1_before: float
    f1_after: float


@dataclass(frozen=True)
class ConceptEffect:
    """A concept's pointing game; None where no study has a box of it."""

    name: str
    pointing_before: float | None
    pointing_after: float | None


@dataclass(frozen=True)
class Effect:
    """What pruning does. ``changed``: studies of which something else is said."""

    studies: int
    before: Figures
    after: Figures
    changed: int
    classes: list[ClassEffect]
    concepts: list[ConceptEffect]


@dataclass(frozen=True)
class Similar:
    """Another prototype, and the cosine between the two."""

    concept: str
    index: int
    cosine: float


@dataclass(frozen=True)
class Decides:
    """A study that a prototype speaks for.

    Args:
        study_id: which.
        cls: the class that the model says it has; of several, the most probable one.
        contribution: W_t,km · standardised score, what the prototype adds to that class's logit.
        share: of the sum of all prototypes' absolute contributions to it.
        right: whether the study has that class; None if that is not known.
    """

    study_id: str
    cls: str
    contribution: float
    share: float
    right: bool | None


@dataclass(frozen=True)
class _Judged:
    said: np.ndarray  # N, or N×T
    f1: np.ndarray  # T
    pointing: float | None
    by_concept: np.ndarray  # K
    peaks: np.ndarray  # N×K×2


class Pruning:
    """Answers for one bundle of format 8; None of its data is read before somebody asks, but the file is. Thread-safe.

    Args:
        bundle: verified.
    """

    def __init__(self, bundle: Bundle) -> None:
        self._about = bundle.manifest
        self._content = (bundle.path / "validation.npz").read_bytes()
        self._graph = (bundle.path / "pruning.onnx").read_bytes()
        shape = (len(self._about.concepts), self._about.per_concept)
        entries = bundle.atlas()
        self._alive = np.array([entry.alive for entry in entries]).reshape(shape)
        self._weights = np.array([[entry.weights[name] for name in self._about.classes] for entry in entries])

    @cached_property
    def validation(self) -> ValidationSet:
        """The studies."""
        return ValidationSet.read(self._content)

    def preview(self, pruned: Iterable[tuple[str, int]]) -> Effect:
        """What pruning (concept, index) of these prototypes does.

        Raises:
            PruningError: there is no such prototype, or a concept would be left without any.
        """
        alive = self._alive.copy()
        for concept, index in pruned:
            k = self._place(concept, index)
            alive[k, index] = False
        if (empty := self._alive.any(1) & ~alive.any(1)).any():
            name = self._about.concepts[int(empty.argmax())]
            raise PruningError(f"{name} would be left without a prototype; keep one of it")
        before = self._before
        after = self._judge(alive, before.peaks)
        different = before.said != after.said
        return Effect(
            studies=len(self.validation),
            before=_figures(before),
            after=_figures(after),
            changed=int(different.any(1).sum() if different.ndim == 2 else different.sum()),
            classes=[
                ClassEffect(name, round(float(was), 6), round(float(now), 6))
                for name, was, now in zip(self._about.classes, before.f1, after.f1, strict=True)
            ],
            concepts=[
                ConceptEffect(name, _rounded(was), _rounded(now))
                for name, was, now in zip(self._about.concepts, before.by_concept, after.by_concept, strict=True)
            ],
        )

    def places(self, concept: str, index: int) -> np.ndarray:
        """h×w: on how many validation studies that show the concept its map is largest in each cell; on none
        once it is pruned."""
        k = self._place(concept, index)
        shows = (self.validation.labels[:, k] == 1) & self._alive[k, index]
        found = self.validation.peaks[shows, k, index]
        size = (self._about.height, self._about.width)
        return np.bincount(found, minlength=size[0] * size[1]).reshape(size)

    def similar(self, concept: str, index: int) -> list[Similar]:
        """The most similar other prototypes, the most similar first."""
        per_concept = self._about.per_concept
        place = self._place(concept, index) * per_concept + index
        return [
            Similar(self._about.concepts[other // per_concept], other % per_concept, round(cosine, 6))
            for other, cosine in zip(
                self.validation.similar[place].tolist(), self.validation.cosines[place].tolist(), strict=True
            )
            if other >= 0
        ]

    def decides(self, concept: str, index: int) -> list[Decides]:
        """The validation studies to whose predicted class it contributes most, and anything at all."""
        k = self._place(concept, index)
        if not self._alive[k, index]:
            return []
        top, all_contributions = self._contributions
        own = all_contributions[:, k * self._about.per_concept + index]
        share = own / np.maximum(np.abs(all_contributions).sum(1), 1e-12)
        return [
            Decides(
                study_id=str(self.validation.study_ids[i]),
                cls=self._about.classes[top[i]],
                contribution=round(float(own[i]), 6),
                share=round(float(share[i]), 6),
                right=self._right(i, top[i]),
            )
            for i in np.argsort(-own, kind="stable")[:DECIDES].tolist()
            if own[i] > 0
        ]

    def _place(self, concept: str, index: int) -> int:
        if concept not in self._about.concepts or not 0 <= index < self._about.per_concept:
            raise PruningError(f"there is no prototype {index} of {concept!r}")
        return self._about.concepts.index(concept)

    def _right(self, study: int, cls: int) -> bool | None:
        truth = self.validation.truth[study]
        if np.ndim(truth) == 0:
            return bool(truth == cls)
        return None if np.isnan(truth[cls]) else bool(truth[cls] == 1)

    @cached_property
    def _session(self) -> ort.InferenceSession:
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        return ort.InferenceSession(self._graph, options, providers=["CPUExecutionProvider"])

    @cached_property
    def _before(self) -> _Judged:
        return self._judge(self._alive, None)

    @cached_property
    def _boxes(self) -> dict[tuple[int, int], np.ndarray]:
        return self.validation.boxes_by_pair()

    @cached_property
    def _contributions(self) -> tuple[np.ndarray, np.ndarray]:
        """N, the class that is most probable; N×K·M, what each prototype adds to its logit."""
        standard, probabilities = self._run(self._alive)
        top = probabilities.argmax(1)
        return top, standard.reshape(len(standard), -1) * self._weights[:, top].T

    def _run(self, alive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        feeds = {"scores": self.validation.scores, "alive": alive.astype(np.float32)}
        standard, probabilities = self._session.run(list(PRUNING_OUTPUTS), feeds)
        return standard, probabilities

    def _judge(self, alive: np.ndarray, before: np.ndarray | None) -> _Judged:
        # Imported here: scikit-learn and pandas are large, and a server of which nobody asks this does without.
        from csr.evaluation.metrics import f1_by_class
        from csr.evaluation.pointing import pointing_game

        given, several = self._about.thresholds, self._about.task == "multilabel"
        said = decide(self._run(alive)[1], several, None if given is None else np.array(given))
        f1 = f1_by_class(self.validation.truth, said, len(self._about.classes))
        concepts = len(self._about.concepts)
        peaks = self._peaks(alive, before)
        if not len(self.validation.pairs):
            return _Judged(said, f1, None, np.full(concepts, np.nan), peaks)
        rows, nowhere = np.arange(len(self.validation)), np.zeros((concepts, 2))
        pointing = pointing_game(peaks, self._boxes, rows, nowhere, self._about.side)
        return _Judged(said, f1, pointing.pair, pointing.by_concept, peaks)

    def _peaks(self, alive: np.ndarray, before: np.ndarray | None) -> np.ndarray:
        """N×K×2 (x, y), where the concepts' maps are largest, of the pairs that have boxes.

        Args:
            before: the same without pruning, which holds for concepts that lose no prototype.
        """
        upsampler = Upsampler(self._about.height, self._about.width, self._about.side)
        study, concept = self.validation.pairs.T
        if before is None:
            peaks, pairs = np.zeros((len(self.validation), len(self._about.concepts), 2)), np.arange(len(study))
        else:
            peaks, pairs = before.copy(), np.flatnonzero((alive != self._alive).any(1)[concept])
        for start in range(0, len(pairs), _AT_ONCE):
            part = pairs[start : start + _AT_ONCE]
            live = alive[concept[part]][:, :, None, None]
            # the same as csr.network.reasoner.concept_maps
            maps = np.where(live, self.validation.maps[part], np.float32(-1)).max(1)
            peaks[study[part], concept[part]] = upsampler.peaks(maps)
        return peaks


def _figures(judged: _Judged) -> Figures:
    return Figures(round(float(np.mean(judged.f1)), 6), None if judged.pointing is None else _rounded(judged.pointing))


def _rounded(value: float) -> float | None:
    return None if np.isnan(value) else round(float(value), 6)
