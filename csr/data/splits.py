"""Splits that a publisher left to the user: whole patients, stratified by everything that is labelled, seeded.

Iterative stratification (Sechidis, Tsoumakas and Vlahavas 2011, "On the Stratification of Multi-Label Data"), with
patients in the place of studies: the rarest label is dealt out first, each patient to the split that lacks most of it.

A study without a class can be learned from, but not judged on, so its patient goes to ``train``; shares are of the
others.
"""

from __future__ import annotations

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
    """

    validation: float = 0.15
    test: float = 0.2
    seed: int = 0


def complete_split(studies: pd.DataFrame, shares: SplitShares) -> pd.Series:
    """``split`` with its empty values filled. A patient with a given split keeps it for the other studies too.

    Args:
        studies: ``split, patient_id`` and what is known of ``label``, ``target:<name>`` and ``concept:<name>``.
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
    counts = _label_counts(free).groupby(free["patient_id"], sort=True).sum()
    wanted = np.array([1 - shares.validation - shares.test, shares.validation, shares.test])
    assigned = _stratify(counts.to_numpy(np.float64), wanted, np.random.default_rng(shares.seed))
    of_patient = pd.Series(np.array(SPLITS)[assigned], index=counts.index)
    return split.where(split != "", studies["patient_id"].map(of_patient))


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
