"""Whether the studies served now look, concept by concept, like the images that the model was trained on.

    PSI_k = Σ_i (a_i − e_i) · ln(a_i / e_i)

over the bins i of the training images' concept probabilities (`csr.bundle.format.ConceptReference`), with e_i their
share of
the training images and a_i their share of the last studies: the population stability index (Siddiqi, *Credit Risk
Scorecards*, 2006), which is Jeffreys' divergence of the two. By his rule of thumb a concept below 0.1 is stable and one
above 0.25 has changed.

It needs no labels, its bins do not care how a probability is scaled, and a bin costs one count. Where nothing has
changed, N·PSI is about χ² with B − 1 degrees of freedom for N studies, B bins and many more training images (Yurdakul
and Naranjo, *Statistical properties of the population stability index*, Journal of Risk Model Validation 14(4), 2020):
of 100 studies and ten bins, one concept in 300 passes 0.25 by chance, of 200 one in ten million. Hence `LEAST`.

Empty bins would make it infinite, so a_i is (n_i + ½) / (N + B/2), the mean of the posterior under Jeffreys' prior.

What it cannot see: a change that leaves the concepts' probabilities as they were, and the reason of one that does not.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np

from csr.bundle.format import ConceptReference

WINDOW = 1000
LEAST = 200
ALARM = 0.25


class ConceptDrift:
    """The drift of the last studies. Thread-safe; a study costs O(K) time, the window N·K bytes.

    Args:
        references: of K concepts, `csr.bundle.format.Bundle.reference`.
        window: N, how many studies count, the last ones. least: how many there must be for a value.
    """

    def __init__(self, references: Sequence[ConceptReference], window: int = WINDOW, least: int = LEAST) -> None:
        if not 1 <= least <= window:
            raise ValueError(f"least: {least} is not in 1..{window}, the window")
        self.concepts = tuple(reference.concept for reference in references)
        self._least = least
        bins = max(len(reference.shares) for reference in references)
        self._edges = np.full((len(references), bins - 1), np.inf)  # no probability is above the edges that fill up
        self._shares = np.full((len(references), bins), np.nan)
        for k, reference in enumerate(references):
            self._edges[k, : len(reference.edges)] = reference.edges
            self._shares[k, : len(reference.shares)] = reference.shares
        self._concept = np.arange(len(references))
        self._recent = np.zeros((window, len(references)), np.uint8)  # each study's bins; a ring
        self._counts = np.zeros((len(references), bins), np.int64)
        self._added = 0
        self._lock = threading.Lock()

    @property
    def studies(self) -> int:
        """How many studies are in the window."""
        return min(self._added, len(self._recent))

    def add(self, probabilities: np.ndarray) -> None:
        """Counts a study by its K concept probabilities without interaction; the oldest leaves a full window.

        Raises:
            ValueError: these are not K finite numbers.
        """
        if probabilities.shape != self._concept.shape or not np.isfinite(probabilities).all():
            raise ValueError(f"probabilities: expected {len(self._concept)} finite numbers, got {probabilities}")
        bins = (probabilities[:, None] > self._edges).sum(1)
        with self._lock:
            place = self._added % len(self._recent)
            if self._added >= len(self._recent):
                self._counts[self._concept, self._recent[place]] -= 1
            self._recent[place] = bins
            self._counts[self._concept, bins] += 1
            self._added += 1

    def values(self) -> dict[str, float | None]:
        """Each concept's index; None while there are too few studies, or if no training image differed in it."""
        with self._lock:
            studies, counts = self.studies, self._counts.copy()
        if studies < self._least:
            return dict.fromkeys(self.concepts)
        bins = np.isfinite(self._shares).sum(1)
        actual = (counts + 0.5) / (studies + 0.5 * bins[:, None])
        index = np.nansum((actual - self._shares) * np.log(actual / self._shares), axis=1)
        return {
            name: float(value) if several else None
            for name, value, several in zip(self.concepts, index, bins > 1, strict=True)
        }
