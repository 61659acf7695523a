"""What is not wrong with a data set, but makes what is learned from it worth less than it seems.

`csr.data.problems` refuses; this warns, and so does `csr.data.confounders`, of what else predicts the class. Each check
is a generator of sentences over a prepared set, and needs no more than its tables and one pass over its pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import pandas as pd

from csr.data.leaks import Fingerprints
from csr.data.prepared import PreparedSet
from csr.data.records import CORNERS, Collection

FEW = {"train": 20, "val": 5, "test": 10}  # studies with a concept, below which it is not learned or judged reliably
SHIFT = 4.0  # standard errors between two splits' shares of a label
SHIFT_RATIO = 1.5
TELLS = 0.98  # correlation of a concept with a class, from which on the one is the other
FLAT = 1.0  # standard deviation of a picture's grey values, of 255
BOXED = 0.9  # share of boxes that lie wholly in the same place


def quality_warnings(data: PreparedSet) -> list[str]:
    """Every warning about a prepared set, a sentence each; none for a set without blemish."""
    checks: tuple[Callable[[PreparedSet], Iterator[str]], ...] = (
        _few_examples,
        _shifted_shares,
        _telling_concepts,
        _concepts_without_boxes,
        _boxes_that_say_nothing,
        _pictures,
    )
    return [sentence for check in checks for sentence in check(data)]


def _few_examples(data: PreparedSet) -> Iterator[str]:
    labels = data.collection.concept_labels()
    for split, least in FEW.items():
        own = labels[data.collection.rows(split)]
        counts = {name: int((own[:, k] == 1).sum()) for k, name in enumerate(data.collection.concepts)}
        few = [f"{name} ({count})" for name, count in counts.items() if count < least]
        if few:
            yield f"split {split!r} has fewer than {least} studies with {_some(few)}: too few to learn or judge by"


def _shifted_shares(data: PreparedSet) -> Iterator[str]:
    """Labels whose share differs between training and the other splits by more than chance."""
    for split in ("val", "test"):
        shifted = []
        for name, values in _labels(data.collection).items():
            ours, theirs = (values[data.collection.rows(each)] for each in ("train", split))
            ours, theirs = ours[~np.isnan(ours)], theirs[~np.isnan(theirs)]
            if not (len(ours) and len(theirs)):
                continue
            shares = ours.mean(), theirs.mean()
            pooled = np.concatenate([ours, theirs]).mean()
            error = np.sqrt(pooled * (1 - pooled) * (1 / len(ours) + 1 / len(theirs)))
            if abs(shares[0] - shares[1]) > SHIFT * error and max(shares) > SHIFT_RATIO * min(shares):
                shifted.append(f"{name} ({shares[0]:.0%} and {shares[1]:.0%})")
        if shifted:
            yield f"the shares of studies with a label differ between 'train' and {split!r}: {_some(shifted)}"


def _telling_concepts(data: PreparedSet) -> Iterator[str]:
    """Concepts that are a class by another name: to predict them is to predict the class, and explains nothing."""
    collection, train = data.collection, data.collection.rows("train")
    concepts, classes = collection.concept_labels()[train], collection.class_indicators()[train]
    for k, concept in enumerate(collection.concepts):
        for t, name in enumerate(collection.classes):
            known = ~np.isnan(concepts[:, k]) & ~np.isnan(classes[:, t])
            one, other = concepts[known, k], classes[known, t]
            varied = len(np.unique(one)) > 1 and len(np.unique(other)) > 1
            if varied and abs(np.corrcoef(one, other)[0, 1]) > TELLS:
                yield f"concept {concept!r} says the same as class {name!r}: it explains nothing"


def _concepts_without_boxes(data: PreparedSet) -> Iterator[str]:
    boxed: dict[str, set[str]] = {split: set() for split in ("val", "test")}
    split_of = data.collection.studies.set_index("study_id")["split"]
    for study, concept in data.collection.boxes[["study_id", "concept"]].itertuples(index=False):
        boxed.get(split_of[study], set()).add(concept)
    for split, names in boxed.items():
        if without := [name for name in data.collection.concepts if name not in names]:
            use = "pointing is not judged" if split == "test" else "no box is ever guessed to be theirs"
            yield f"split {split!r} has no box of {_some(without)}: for these {use}"


def _boxes_that_say_nothing(data: PreparedSet) -> Iterator[str]:
    """Concepts whose boxes cover nearly everything, or are all the same."""
    boxes, side = data.collection.boxes, data.side
    for name in data.collection.concepts:
        corners = boxes.loc[boxes["concept"] == name, CORNERS].to_numpy(np.float64)
        if len(corners) < FEW["train"]:
            continue
        share = np.median((corners[:, 2] - corners[:, 0]) * (corners[:, 3] - corners[:, 1])) / side**2
        if share > BOXED:
            yield f"boxes of {name!r} cover {share:.0%} of the picture: to point into them is no feat"
        elif len(np.unique(corners.round(), axis=0)) == 1:
            yield f"all {len(corners)} boxes of {name!r} are the same: they were not drawn on the findings"


def _pictures(data: PreparedSet) -> Iterator[str]:
    """Pictures that show nothing, and pictures that are there twice."""
    studies, prints, flat = data.collection.studies, Fingerprints(), []
    for row in range(len(studies)):
        canvas = np.asarray(data.images[row])
        prints.add(canvas)
        if canvas.std() < FLAT:
            flat.append(studies["study_id"].iat[row])
    if flat:
        yield f"{len(flat)} pictures show nothing but one grey: {_some(flat)}"
    groups = studies["study_id"].groupby(pd.Series(prints.digests, index=studies.index), sort=False)
    twice = [_some(names) for _, names in groups if len(names) > 1]
    if twice:
        yield f"{len(twice)} pictures are there more than once: {'; '.join(twice[:4])}"


def _labels(collection: Collection) -> dict[str, np.ndarray]:
    """Every class and concept as a column of 1, 0 and NaN."""
    concepts = dict(zip(collection.concepts, collection.concept_labels().T, strict=True))
    return dict(zip(collection.classes, collection.class_indicators().T, strict=True)) | concepts


def _some(names: Iterable[str], most: int = 6) -> str:
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
