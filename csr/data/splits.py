"""Splits that a publisher left to the user: whole patients, stratified by everything that is labelled, seeded.

Iterative stratification (Sechidis, Tsoumakas and Vlahavas 2011, "On the Stratification of Multi-Label Data"), with
patients in the place of studies: the rarest label is dealt out first, each patient to the split that lacks most of it.

A study without a class can be learned from, but not judged on, so its patient goes to ``train``; shares are of the
others.

A set too small to spare a split is judged fold by fold: the same patients are dealt to n folds of equal size instead,
one is the test split, the next the validation split, the others train. Folds are stratified by which labels are known
and by whether anything is located too, since in small sets experts outline few studies.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass

import numpy as np
import pandas as pd

from csr.data.records import CONCEPT_PREFIX, SPLITS, TARGET_PREFIX


@dataclass(frozen=True)
class SplitShares:
    """How studies without a split are divided.

    Args:
        validation, test: shares of the studies whose patients have a class; the rest is for training.
        seed: of the draw.
        folds: how many folds there are instead of shares; None for none.
        fold: from 0, the one that is the test split; the next one, or the first after the last, is the validation
            split. A split whose share is 0 gets none: without a test split this fold is the validation split.

    Raises:
        ValueError: too few folds to train on one, or no such fold.
    """

    validation: float = 0.15
    test: float = 0.2
    seed: int = 0
    folds: int | None = None
    fold: int = 0

    def __post_init__(self) -> None:
        least = 1 + len(self.judged)
        if self.folds is not None and self.folds < least:
            raise ValueError(f"data.folds: at least {least}, so that one is left to train on, got {self.folds}")
        if self.folds is None and self.fold:
            raise ValueError("data.fold: there are no folds; set data.folds to their number, or this to 0")
        if self.folds is not None and not 0 <= self.fold < self.folds:
            raise ValueError(
                f"data.fold: a number from 0 to {self.folds - 1} (data.folds: {self.folds}), got {self.fold}"
            )

    @property
    def judged(self) -> tuple[str, ...]:
        """The splits that are made beside ``train``."""
        return tuple(name for name, share in (("test", self.test), ("val", self.validation)) if share)


def complete_split(studies: pd.DataFrame, shares: SplitShares, located: Container[str] = ()) -> pd.Series:
    """``split`` with its empty values filled. A patient with a given split keeps it for the other studies too.

    Args:
        studies: ``split, patient_id`` and what is known of ``label``, ``target:<name>`` and ``concept:<name>``.
        located: ``study_id`` of the studies that have a box or mask; folds are stratified by it.
    """
    split = studies["split"].copy()
    given = studies[split != ""].groupby("patient_id")["split"].first().to_dict()
    split = split.where(split != "", studies["patient_id"].map(lambda patient: given.get(patient, "")))
    free = studies[split == ""]
    to_train = studies["patient_id"].isin(free.loc[_without_class(free), "patient_id"])
    split = split.where((split != "") | ~to_train, "train")
    free = studies[split == ""]
    if free.empty:
        return split
    labels = _label_counts(free)
    if shares.folds is not None:
        labels = pd.concat([labels, _knowledge_counts(free, located)], axis=1)
    counts = labels.groupby(free["patient_id"], sort=True).sum()
    rng = np.random.default_rng(shares.seed)
    if shares.folds is None:
        wanted = np.array([1 - shares.validation - shares.test, shares.validation, shares.test])
        names = np.array(SPLITS)
    else:
        wanted, names = np.full(shares.folds, 1 / shares.folds), _names_of_folds(shares)
    assigned = _stratify(counts.to_numpy(np.float64), wanted, rng)
    of_patient = pd.Series(names[assigned], index=counts.index)
    return split.where(split != "", studies["patient_id"].map(of_patient))


def _names_of_folds(shares: SplitShares) -> np.ndarray:
    """The split that each fold is."""
    assert shares.folds is not None
    names = np.full(shares.folds, "train", object)
    for place, name in enumerate(shares.judged):
        names[(shares.fold + place) % shares.folds] = name
    return names


def _without_class(studies: pd.DataFrame) -> pd.Series:
    if "label" in studies:
        return studies["label"].isna()
    targets = [name for name in studies if name.startswith(TARGET_PREFIX)]
    return studies[targets].isna().all(axis=1) & bool(targets)


def _label_counts(studies: pd.DataFrame) -> pd.DataFrame:
    """1 for each study, then 1 for each label that it has."""
    columns: dict[str, pd.Series] = {"": pd.Series(1, index=studies.index)}
    if "label" in studies:
        columns |= {f"label:{name}": studies["label"] == name for name in sorted(studies["label"].dropna().unique())}
    for name in studies:
        if name.startswith((TARGET_PREFIX, CONCEPT_PREFIX)):
            columns[name] = studies[name] == 1
    return pd.DataFrame(columns).astype(int)


def _knowledge_counts(studies: pd.DataFrame, located: Container[str]) -> pd.DataFrame:
    """1 for each concept that is known of a study, whatever it is, and 1 for anything located."""
    columns = {f"known:{name}": studies[name].notna() for name in studies if name.startswith(CONCEPT_PREFIX)}
    if "study_id" in studies:
        columns["located"] = studies["study_id"].map(lambda study: study in located)
    return pd.DataFrame(columns, index=studies.index).astype(int)


def _stratify(counts: np.ndarray, shares: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Assigns n patients to splits.

    Args:
        counts: n×(1+L): a patient's studies, and how many of them have each label.
        shares: of the splits, summing to 1; one with share 0 gets nobody.
    """
    open_splits = np.flatnonzero(shares > 0)
    lacking = np.outer(shares, counts.sum(0))  # what each split still lacks
    assigned = np.full(len(counts), -1)
    order = rng.permutation(len(counts))
    while (free := order[assigned[order] < 0]).size:
        remaining = counts[free, 1:].sum(0)
        labelled = np.flatnonzero(remaining)
        label = labelled[remaining[labelled].argmin()] + 1 if labelled.size else 0
        for patient in free[counts[free, label] > 0]:
            need = lacking[open_splits]
            best = open_splits[np.lexsort((-need[:, 0], -need[:, label]))[0]]  # ties: where most studies are lacking
            assigned[patient] = best
            lacking[best] -= counts[patient]
    return assigned
