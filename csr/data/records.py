"""Studies and boxes: the tables that every source yields, and the checks they pass before anything is written.

``studies``: one row an image; ``study_id, image, split, part, patient_id, site`` and a float column ``concept:<name>``
per concept holding 1 (present), 0 (absent) or NaN (unknown). ``part`` names the test half a row belongs to (``test``
unless the data set has several) and repeats ``split`` elsewhere. What is to be predicted depends on the task:
``label``, a class's name, or a column ``target:<name>`` per class, valued like a concept's. A study of split ``train``
may have no class (``label`` empty, or no target known): its concepts train stages 1 and 2, and no head sees it. Where
it is known of any image, ``pixel_height_mm, pixel_width_mm``: how large the pixels are, in the images that the tables
come with. Of images that were read from files, the columns `STORED`: what the files were like, and ``window``: how
black and white were decided (`csr.data.grey_values`). Where a file can hold several, ``frame``: which of them, from 1.
Where feedback joined (`csr.data.feedback.joining`), bool columns ``said:<concept>`` and ``said_class``: whether the
label, or the class, is what readers said.
``boxes``: ``study_id, concept, x_min, y_min, x_max, y_max``; pixel edges, so a box covers x_max − x_min columns. Where
findings are outlined by pixel too, an integer column ``mask``: the number of a box's mask, −1 if it has none.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pandas as pd

from csr.errors import DataError

SPLITS = ("train", "val", "test")
CONCEPT_PREFIX = "concept:"
TARGET_PREFIX = "target:"
FILLED_PREFIX = "filled:"  # bool columns: the concept label is an image-text encoder's (`csr.data.text_concepts`)
SAID_PREFIX = "said:"  # bool columns: the concept label is what readers said (`csr.data.feedback.joining`)
SAID_CLASS = "said_class"  # the same of what is to be predicted
BOX_COLUMNS = ("study_id", "concept", "x_min", "y_min", "x_max", "y_max")
CORNERS = list(BOX_COLUMNS[2:])
SPACING = ("pixel_height_mm", "pixel_width_mm")
STORED = ("image_width", "image_height", "image_format", "image_bits")
NO_CLASS = -1  # in the place of a class's index, where it is not known

Task = Literal["multiclass", "multilabel", "concepts"]


@dataclass(frozen=True)
class Collection:
    """A data set's tables.

    Args:
        name: the data set's name.
        concepts: K concept names, in the order of every K-sized axis in this project.
        classes: T class names, in the order of every T-sized axis; none if the task is ``concepts``.
        studies: see the module's docstring.
        boxes: see the module's docstring; coordinates refer to the images that the tables come with.
        task: ``multiclass``, one class a study; ``multilabel``, any number of them; ``concepts``, nothing but concepts.
        display: how patients lie in the images, such as ``L\\F`` (`csr.data.orientation`), into which DICOM images of
            projections were brought; None: images are as their files store them.
    """

    name: str
    concepts: tuple[str, ...]
    classes: tuple[str, ...]
    studies: pd.DataFrame
    boxes: pd.DataFrame
    task: Task = "multiclass"
    display: str | None = None

    def concept_labels(self) -> np.ndarray:
        """N×K float32 of 1, 0 or NaN."""
        return self.studies[[CONCEPT_PREFIX + name for name in self.concepts]].to_numpy(np.float32, copy=True)

    def judged_labels(self) -> np.ndarray:
        """N×K, as `concept_labels`, but NaN where an image-text encoder gave the label and no person."""
        labels = self.concept_labels()
        for k, name in enumerate(self.concepts):
            if FILLED_PREFIX + name in self.studies:
                labels[self.studies[FILLED_PREFIX + name].to_numpy(bool), k] = np.nan
        return labels

    def said_labels(self) -> np.ndarray:
        """N×K bool: the concept label is what readers said of the study."""
        columns = [SAID_PREFIX + name for name in self.concepts]
        if columns[0] not in self.studies:
            return np.zeros((len(self.studies), len(columns)), bool)
        return self.studies[columns].to_numpy(bool, copy=True)

    def said_classes(self) -> np.ndarray:
        """N bool: what is to be predicted is, as far as it is known, what readers signed."""
        if SAID_CLASS not in self.studies:
            return np.zeros(len(self.studies), bool)
        return self.studies[SAID_CLASS].to_numpy(bool, copy=True)

    def truth(self) -> np.ndarray:
        """What is to be predicted, in scikit-learn's two forms: N int64 indices into ``classes``, `NO_CLASS` where it
        is not known, if a study has one class, else N×T float32 of 1, 0 or NaN."""
        if self.task == "multiclass":
            return pd.Index(self.classes, dtype=object).get_indexer(self.studies["label"]).astype(np.int64)  # −1: none
        return self.studies[[TARGET_PREFIX + name for name in self.classes]].to_numpy(np.float32, copy=True)

    def class_indicators(self) -> np.ndarray:
        """N×T float32, 1 where a study has the class, 0 where not, NaN where unknown; whatever the task."""
        truth = self.truth()
        if self.task != "multiclass":
            return truth
        known = (truth != NO_CLASS)[:, None]
        return np.where(known, truth[:, None] == np.arange(len(self.classes)), np.nan).astype(np.float32)

    def has_class(self) -> np.ndarray:
        """N bool: something is known of what is to be predicted; never where the task is ``concepts``."""
        truth = self.truth()
        return truth != NO_CLASS if self.task == "multiclass" else ~np.isnan(truth).all(1)

    def patients(self) -> np.ndarray:
        """N names, equal for studies of one patient; a study whose patient is not known counts as one of its own."""
        names = "study " + self.studies["study_id"].astype(object)
        if "patient_id" in self.studies:
            known = self.studies["patient_id"].astype(object)
            names = ("patient " + known).where(known.notna() & (known != ""), names)
        return names.to_numpy()

    def diagnosis(self, row: int) -> str:
        """The names of a study's classes, for people."""
        if self.classes and not self.has_class()[row]:
            return "class unknown"
        if self.task == "multiclass":
            return str(self.studies["label"].iat[row])
        known = self.studies[[TARGET_PREFIX + name for name in self.classes]].iloc[row]
        return ", ".join(name for name, value in zip(self.classes, known, strict=True) if value == 1) or "none"

    def rows(self, split: str, part: str | None = None) -> np.ndarray:
        """Row numbers of a split, or of one part of it, ascending."""
        chosen = self.studies["split"] == split
        if part is not None:
            chosen &= self.studies["part"] == part
        return np.flatnonzero(chosen)

    def class_rows(self, split: str) -> np.ndarray:
        """Row numbers of a split's studies that have a class: what heads are trained and judged on."""
        return self.rows(split)[self.has_class()[self.rows(split)]]

    def labelled_rows(self, split: str) -> np.ndarray:
        """Row numbers of a split's studies that have any label, a class or a concept: what batches are drawn from."""
        labelled = self.has_class() | ~np.isnan(self.concept_labels()).all(1)
        return self.rows(split)[labelled[self.rows(split)]]

    def test_parts(self) -> tuple[str, ...]:
        """Names of the test parts in the order in which they appear."""
        return tuple(self.studies.loc[self.studies["split"] == "test", "part"].unique())

    def boxes_of(self, row: int, concept: str) -> np.ndarray:
        """n×4 boxes (x_min, y_min, x_max, y_max) of one study and concept; n may be 0."""
        study = self.studies["study_id"].iat[row]
        chosen = (self.boxes["study_id"] == study) & (self.boxes["concept"] == concept)
        return self.boxes.loc[chosen, CORNERS].to_numpy(np.float64)

    def boxes_by_pair(self) -> dict[tuple[int, int], np.ndarray]:
        """All boxes as (row, concept index) → n×4 array; pairs without a box are absent."""
        row_of = {study: row for row, study in enumerate(self.studies["study_id"])}
        index_of = {name: k for k, name in enumerate(self.concepts)}
        groups = self.boxes.groupby(["study_id", "concept"], sort=False)[CORNERS]
        return {(row_of[study], index_of[concept]): group.to_numpy(np.float64) for (study, concept), group in groups}


def all_for_test(collection: Collection) -> Collection:
    """The collection with every study in split ``test``; those that were in another are of the part ``test``."""
    studies = collection.studies
    part = studies["part"].where(studies["split"] == "test", "test")
    return replace(collection, studies=studies.assign(split="test", part=part))


def validation_errors(
    collection: Collection, pending: Container[str] = (), splits: Sequence[str] = SPLITS
) -> Iterator[str]:
    """Why a data set cannot be trained or judged on, a sentence each: a split without a study, a class absent from a
    split (or, where studies can have several, with no study that lacks it), or a concept that is known to be present,
    or to be absent, in no study of ``train``.

    Args:
        pending: concepts that get labels later, and need no example yet.
        splits: that the set must have; without ``train`` no concept needs an example.
    """
    indicators = collection.class_indicators()
    for split in splits:
        own = indicators[collection.rows(split)]
        if not len(own):
            yield f"no study is in split {split!r}; give some rows that split, or leave it empty"
            continue
        if missing := _without(collection, (own == 1).any(0)):
            yield f"{missing} no study in split {split!r}; move some there, or remove or merge the class"
        if collection.task == "multilabel" and (missing := _without(collection, (own == 0).any(0))):
            yield f"{missing} no study without it in split {split!r}; move some there, or remove the class"
    if "train" in splits:
        yield from _concept_flaws(collection, pending)


def check_collection(collection: Collection, source: str, pending: Container[str] = ()) -> None:
    """Refuses a data set that has `validation_errors`.

    Args:
        source: the file to name in messages.

    Raises:
        DataError: naming all of them.
    """
    _refuse(source, validation_errors(collection, pending))


def check_concept_labels(collection: Collection, source: str) -> None:
    """Refuses concepts that cannot be learned; arguments as for `check_collection`.

    Raises:
        DataError: a concept that is known to be present, or to be absent, in no study of split ``train``.
    """
    _refuse(source, _concept_flaws(collection))


def _without(collection: Collection, has: np.ndarray) -> str:
    """The subject of a sentence about the classes that do not have something; empty if all have it."""
    names = [repr(name) for name, there in zip(collection.classes, has, strict=True) if not there]
    if not names:
        return ""
    return f"class {names[0]} has" if len(names) == 1 else f"classes {', '.join(names)} have"


def _refuse(source: str, reasons: Iterable[str]) -> None:
    if lines := [f"{source}: {reason}" for reason in reasons]:
        raise DataError("\n".join(lines))


def _concept_flaws(collection: Collection, pending: Container[str] = ()) -> Iterator[str]:
    train = collection.studies[collection.studies["split"] == "train"]
    for name in collection.concepts:
        if name in pending:
            continue
        values = train[CONCEPT_PREFIX + name]
        lacking = [word for wanted, word in ((1, "positive"), (0, "negative")) if not (values == wanted).any()]
        if lacking:
            yield (
                f"concept {name!r} has no {' and no '.join(lacking)} example in split 'train'; "
                "label some, or remove its column"
            )
