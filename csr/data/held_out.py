"""Concepts that nobody has thought of yet: a data set without them, to study how a model takes one on later."""

from __future__ import annotations

from collections.abc import Collection as Names
from dataclasses import replace

from csr.data.records import CONCEPT_PREFIX, Collection
from csr.errors import ConfigError

FOLDS = 3


def concept_fold(concepts: tuple[str, ...], fold: int) -> tuple[str, ...]:
    """Every third name, from number ``fold`` (0, 1 or 2) on: each concept is in one fold, whatever it looks like."""
    return concepts[fold::FOLDS]


def without_concepts(collection: Collection, names: Names[str]) -> Collection:
    """The same studies and classes, with no trace of some concepts: their columns and their boxes are gone.

    Raises:
        ConfigError: there is no such concept, or none would be left.
    """
    if unknown := [name for name in names if name not in collection.concepts]:
        raise ConfigError(f"there is no concept {unknown[0]!r} to hold out, only {', '.join(collection.concepts)}")
    kept = tuple(name for name in collection.concepts if name not in names)
    if not kept:
        raise ConfigError(f"to hold out all of {', '.join(collection.concepts)} leaves nothing to learn")
    return replace(
        collection,
        concepts=kept,
        studies=collection.studies.drop(columns=[CONCEPT_PREFIX + name for name in names]),
        boxes=collection.boxes[~collection.boxes["concept"].isin(list(names))].reset_index(drop=True),
    )
