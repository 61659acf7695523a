"""Labels hidden on purpose, to study how training copes with labels that are partly missing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from csr.data.records import CONCEPT_PREFIX, TARGET_PREFIX, Collection, check_concept_labels
from csr.errors import ConfigError


def hide_concept_labels(collection: Collection, share: float, seed: int) -> Collection:
    """Hides known concept labels of split ``train`` completely at random (MCAR; Rubin 1976).

    Every concept keeps one study that shows it and one that lacks it, drawn at random, so that it can still be learned.
    Boxes of hidden labels go too: who did not judge a finding did not outline it. Splits ``val`` and ``test``
    stay as they are, to judge on. With the same seed, what a smaller share hides a larger one hides too.

    Args:
        share: of the known labels that are hidden, in [0, 1]; as many as the kept ones allow.
        seed: of the draw.

    Returns:
        A new collection whose hidden labels are NaN; the given one is unchanged.

    Raises:
        ConfigError: the share is outside [0, 1].
        DataError: a concept is known to be present, or to be absent, in no study of split ``train``.
    """
    _check_share(share, "concept labels")
    check_concept_labels(collection, collection.name)
    rng = np.random.default_rng([seed, 3])  # 0, 1 and 2 are the phantom's: its labels must not tell what is hidden
    rows, labels = collection.rows("train"), collection.concept_labels()
    known = ~np.isnan(labels[rows])
    free = known.copy()
    for k, own in enumerate(labels[rows].T):
        for value in (1, 0):
            free[rng.choice(np.flatnonzero(own == value)), k] = False
    candidates = rng.permutation(np.argwhere(free))
    hidden = np.zeros(labels.shape, bool)
    positions, concepts = candidates[: round(share * known.sum())].T
    hidden[rows[positions], concepts] = True

    studies, keep = collection.studies.copy(), np.ones(len(collection.boxes), bool)
    for k, name in enumerate(collection.concepts):
        column = CONCEPT_PREFIX + name
        studies[column] = studies[column].where(~hidden[:, k])
        without = set(studies["study_id"][hidden[:, k]])
        keep &= ~((collection.boxes["concept"] == name) & collection.boxes["study_id"].isin(without)).to_numpy()
    return replace(collection, studies=studies, boxes=collection.boxes[keep])


def hide_class_labels(collection: Collection, share: float, seed: int) -> Collection:
    """Hides what class studies of split ``train`` have, completely at random; concepts and boxes stay.

    One study of each class keeps it, drawn at random. Splits ``val`` and ``test`` stay as they are, to judge on. With
    the same seed, what a smaller share hides a larger one hides too.

    Args:
        share: of the training studies with a class that lose it, in [0, 1]; as many as the kept ones allow.
        seed: of the draw.

    Returns:
        A new collection; the given one is unchanged.

    Raises:
        ConfigError: the share is outside [0, 1].
    """
    _check_share(share, "classes")
    rng = np.random.default_rng([seed, 4])
    rows = collection.class_rows("train")
    has = collection.class_indicators()[rows] == 1
    kept = {rng.choice(rows[own]) for own in has.T if own.any()}
    candidates = rng.permutation([row for row in rows if row not in kept])
    hidden = np.isin(np.arange(len(collection.studies)), candidates[: round(share * len(rows))])
    studies = collection.studies
    names = ["label"] if collection.task == "multiclass" else [TARGET_PREFIX + name for name in collection.classes]
    return replace(collection, studies=studies.assign(**{name: studies[name].mask(hidden) for name in names}))


def _check_share(share: float, what: str) -> None:
    if not 0 <= share <= 1:
        raise ConfigError(f"share of {what} to hide: {share} is outside 0..1")
