"""Do a concept's prototypes find the looks that it has? Purity and coverage, against shuffled looks.

A finding here is a concept that is present in a study; it has one of several forms, which training is not told
(`csr.data.phantom.forms`), and is won by the prototype of its concept that it is nearest to. A prototype stands for the
form that most of the *training* findings have that it wins (ties: the earlier form). *Test* findings judge it:

    purity    the share of findings whose prototype stands for their form (purity of a clustering, Manning, Raghavan &
              Schütze 2008, section 16.3, with names that are given on other findings)
    coverage  the share of (concept, form) pairs for which some prototype stands, of those with a training finding
    recall    the share of a form's findings that are won by prototypes which stand for it
    precision the share of a form, among the findings that are won by prototypes which stand for it

One prototype a concept has the purity of the most frequent form, covers that alone, and recalls no other. Chance is
what the same winners get where the training findings' forms are shuffled within each concept.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

NO_FORM = -1  # of a prototype that wins no training finding


@dataclass(frozen=True)
class SortedFindings:
    """n findings: the ``concept`` of each (0…K−1), the prototype that is its ``winner`` (0…M−1) and its ``form``
    (0…F−1); all n integers."""

    concept: np.ndarray
    winner: np.ndarray
    form: np.ndarray


@dataclass(frozen=True)
class Purity:
    """See the module's docstring. NaN where there is nothing to count.

    Args:
        purity, coverage: of all findings and concepts.
        by_concept: K, the purity of each.
        recall, precision: F, of each form over all concepts.
        recall_by_concept: K×F.
    """

    purity: float
    coverage: float
    by_concept: np.ndarray
    recall: np.ndarray
    precision: np.ndarray
    recall_by_concept: np.ndarray


def stands_for(train: SortedFindings, concepts: int, per_concept: int, forms: int) -> np.ndarray:
    """K×M: the form that each prototype stands for, `NO_FORM` where it wins no training finding."""
    won = np.zeros((concepts, per_concept, forms), np.int64)
    np.add.at(won, (train.concept, train.winner, train.form), 1)
    return np.where(won.any(-1), won.argmax(-1), NO_FORM)


def purity(train: SortedFindings, test: SortedFindings, concepts: int, per_concept: int, forms: int) -> Purity:
    """Names K×M prototypes by training findings and judges them by test findings, of F forms."""
    names = stands_for(train, concepts, per_concept, forms)
    said = names[test.concept, test.winner]
    right = said == test.form
    there = np.zeros((concepts, forms), bool)
    there[train.concept, train.form] = True
    covered = (names[..., None] == np.arange(forms)).any(1)
    recalled = np.full((concepts, forms), np.nan)
    for k in range(concepts):
        for form in range(forms):
            recalled[k, form] = _mean(right[(test.concept == k) & (test.form == form)])
    return Purity(
        purity=_mean(right),
        coverage=_mean(covered[there]),
        by_concept=np.array([_mean(right[test.concept == k]) for k in range(concepts)]),
        recall=np.array([_mean(right[test.form == form]) for form in range(forms)]),
        precision=np.array([_mean(right[said == form]) for form in range(forms)]),
        recall_by_concept=recalled,
    )


def chance(
    train: SortedFindings,
    test: SortedFindings,
    concepts: int,
    per_concept: int,
    forms: int,
    draws: int = 200,
    seed: int = 0,
) -> list[Purity]:
    """`purity` with the training findings' forms shuffled within each concept, ``draws`` times."""
    rng, drawn = np.random.default_rng(seed), []
    for _ in range(draws):
        form = train.form.copy()
        for k in range(concepts):
            own = np.flatnonzero(train.concept == k)
            form[own] = rng.permutation(form[own])
        drawn.append(purity(SortedFindings(train.concept, train.winner, form), test, concepts, per_concept, forms))
    return drawn


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else float("nan")
