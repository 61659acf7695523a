"""What is to be learned from a data set's labels: which are concepts, which are classes, and of what kind.

Sources yield every label that their publisher gives. `choose_task` then keeps what the user asks for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd

from csr.data.raw import RawSet
from csr.data.records import CONCEPT_PREFIX, TARGET_PREFIX, Collection, Task
from csr.errors import ConfigError, DataError


@dataclass(frozen=True)
class TaskChoice:
    """What the user asks for; None keeps what the data set offers.

    Args:
        task: see `csr.data.records.Collection`. ``multilabel`` makes each of ``targets`` a question of its own.
        concepts: labels that are concepts; by default all findings that are not targets.
        targets: labels that are classes of a multi-label task; by default those that the publisher means so. A finding
            that is named here is no concept any more.
        merge: new class → the classes that it takes the place of. Of several classes at once, the new one is present
            where any of them is, absent where all are, else unknown.
    """

    task: Task | None = None
    concepts: tuple[str, ...] | None = None
    targets: tuple[str, ...] | None = None
    merge: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def choose_task(raw: RawSet, choice: TaskChoice) -> RawSet:
    """The data set with the task, classes and concepts that the user asks for.

    Raises:
        ConfigError: a name that the data set does not have, or a choice that contradicts itself.
        DataError: the data set has nothing that such a task could learn.
    """
    collection = _merged(raw.collection, choice.merge)
    task = choice.task or ("multilabel" if choice.targets else collection.task)
    if collection.task == "concepts" and choice.task != "concepts" and not choice.targets:
        reason = raw.no_classes or "it has no classes; add a column 'label', or columns 'target:<name>'"
        raise DataError(f"{raw.folder}: {reason}, or set data.task: concepts to learn concepts only")
    if choice.targets is not None and task != "multilabel":
        raise ConfigError(f"data.targets: only data.task: multilabel has targets, not {task}")
    if task == "multiclass" and collection.task != "multiclass":
        raise DataError(f"{raw.folder}: data.task is multiclass, but its studies can have several classes")
    labels = _labels(collection)
    classes = collection.classes if task == "multiclass" else _targets(collection, choice, task, labels)
    concepts = _chosen(choice.concepts, labels, "data.concepts")
    if concepts is None:
        concepts = tuple(name for name in collection.concepts if name not in classes)
    if both := [name for name in concepts if name in classes]:
        raise ConfigError(f"data.concepts: {both[0]!r} is a class too, so it would tell the answer; name it once")
    if not concepts:
        raise ConfigError("data.concepts: no concept is left; CSR needs at least one")
    columns = {CONCEPT_PREFIX + name: labels[name] for name in concepts}
    if task != "multiclass":
        columns = {TARGET_PREFIX + name: labels[name] for name in classes} | columns
    dropped = [name for name in collection.studies if name.startswith((CONCEPT_PREFIX, TARGET_PREFIX))]
    if task != "multiclass" and "label" in collection.studies:
        dropped.append("label")
    studies = pd.concat([collection.studies.drop(columns=dropped), pd.DataFrame(columns)], axis=1)
    boxes = collection.boxes[collection.boxes["concept"].isin(concepts)].reset_index(drop=True)
    chosen = replace(collection, task=task, classes=classes, concepts=concepts, studies=studies, boxes=boxes)
    return replace(raw, collection=chosen)


def _targets(
    collection: Collection, choice: TaskChoice, task: Task, labels: Mapping[str, pd.Series]
) -> tuple[str, ...]:
    if task == "concepts":
        return ()
    named = _chosen(choice.targets, labels, "data.targets")
    if named == () or (named is None and collection.task != "multilabel"):
        raise ConfigError(f"data.targets: name the labels that are targets; {collection.name!r} has {_listed(labels)}")
    return collection.classes if named is None else named


def _chosen(names: tuple[str, ...] | None, labels: Mapping[str, pd.Series], key: str) -> tuple[str, ...] | None:
    if names is None:
        return None
    if unknown := [name for name in names if name not in labels]:
        raise ConfigError(f"{key}: the data set has no label {unknown[0]!r}; it has {_listed(labels)}")
    if len(set(names)) < len(names):
        raise ConfigError(f"{key}: {max(names, key=names.count)!r} is named twice")
    return names


def _labels(collection: Collection) -> dict[str, pd.Series]:
    """Every label of the data set as a column of 1, 0 and NaN."""
    studies = collection.studies
    found = {name: studies[CONCEPT_PREFIX + name] for name in collection.concepts}
    for name, values in zip(collection.classes, collection.class_indicators().T, strict=True):
        found[name] = pd.Series(values, index=studies.index)
    return found


def _merged(collection: Collection, merge: Mapping[str, tuple[str, ...]]) -> Collection:
    new_name: dict[str, str] = {}
    for new, old in merge.items():
        for name in old:
            if name not in collection.classes:
                raise ConfigError(f"data.merge.{new}: no class {name!r}; there are {_listed(collection.classes)}")
            if name in new_name:
                raise ConfigError(f"data.merge: {name!r} is merged twice")
            new_name[name] = new
    for new in merge:
        if new in collection.classes and new_name.get(new) != new:
            raise ConfigError(f"data.merge.{new}: a class of this name is there already; list it too, or name another")
    if not new_name:
        return collection
    classes = tuple(dict.fromkeys(new_name.get(name, name) for name in collection.classes))
    studies = collection.studies
    if collection.task == "multiclass":
        studies = studies.assign(label=studies["label"].replace(new_name))
    else:
        for new, old in merge.items():
            values = studies[[TARGET_PREFIX + name for name in old]].to_numpy(np.float32)
            any_present, all_absent = (values == 1).any(1), (values == 0).all(1)
            merged = np.where(any_present, 1, np.where(all_absent, 0, np.nan)).astype(np.float32)
            studies = studies.drop(columns=[TARGET_PREFIX + name for name in old]).assign(
                **{TARGET_PREFIX + new: merged}
            )
    return replace(collection, classes=classes, studies=studies)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)
