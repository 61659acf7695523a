"""Feedback joins a prepared set: corrected studies become studies of split ``train``, with what readers said known.

- A study that the set does not have is added. Its concepts are known where readers came to a label and unknown
  elsewhere, which partial labels are for (`csr.training.few_labels`). Its class is known where they came to one, if
  signed classes are to be learned: of several classes each where they did.
- A study of split ``train`` keeps its labels, but where readers came to one theirs stands; so do their finding boxes,
  in place of the set's for that concept, and none stays of a concept that they say is absent.
- A study of split ``val`` or ``test``, by the digest of its pixels, or that is nearly one of their pictures
  (`csr.data.leaks`), is left out: what is judged on must not be learned from.

Nothing else changes: validation and test studies, with their order, are as they were.

Not covered: patients. A corrected study has none, so one whose patient is in ``val`` or ``test`` with another picture
is learned from.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from csr.data.feedback.consensus import agreed_boxes
from csr.data.feedback.folder import FeedbackSet
from csr.data.feedback.rows import FeedbackBox, Label
from csr.data.images import pixel_digest
from csr.data.leaks import NEAR, Fingerprints, perceptual_hash
from csr.data.prepared import READER_BOX_COLUMNS, PreparedSet, PreparedWriter
from csr.data.records import (
    BOX_COLUMNS,
    CONCEPT_PREFIX,
    CORNERS,
    FILLED_PREFIX,
    SAID_CLASS,
    SAID_PREFIX,
    TARGET_PREFIX,
    Collection,
    check_collection,
)
from csr.data.schema import check_schema
from csr.data.sources.merging import merge_overlapping
from csr.errors import DataError

MERGE_IOU = 0.4  # of two readers' boxes of one finding that are one; what `csr.data.sources.vindr_cxr` takes, too
PREFIX = "feedback-"  # of added studies' ids, before their digest
SHAPE, JUDGED, NEARLY, NOTHING = (
    "are of another size than data.side and data.channels",
    "are in the validation or test split",
    "are nearly a picture of the validation or test split",
    "have nothing that is known of what is learned here",
)


@dataclass
class Joined:
    """What became of a feedback set.

    Args:
        added: studies that the set did not have.
        relabelled: studies of split ``train`` of which readers said something.
        changed: of their concept and class labels those that were known, and are the opposite now.
        left_out: studies, by why.
    """

    added: int = 0
    relabelled: int = 0
    changed: int = 0
    left_out: Counter[str] = field(default_factory=Counter)

    @property
    def note(self) -> str:
        """A sentence for people, without what was left out: a set that teaches the same prepares the same."""
        learned = f"{self.added} studies that readers corrected were added, {self.relabelled} of split train corrected"
        return f"feedback: {learned}; {self.changed} labels are the opposite of what the data set says"


def join_feedback(
    data: PreparedSet, feedback: FeedbackSet, path: Path, classes: bool = True, near_bits: int = NEAR
) -> tuple[Collection, Joined]:
    """Writes the set with what readers said to ``path``, which may be the set's own folder.

    Args:
        classes: whether signed classes are learned.
        near_bits: see `csr.data.leaks.find_leaks`.

    Raises:
        DataError: all corrected studies are of another size than the set's images, or the tables that come of it cannot
            be learned from.
    """
    joining = _Joining(data, classes, near_bits)
    readings, labels = feedback.readings_by_study(), feedback.labels_by_study()
    for study, own in readings.items():
        joining.take(study, feedback.canvas(study), labels[study], agreed_boxes(own, labels[study]))
    joined = joining.joined
    if readings and joined.left_out[SHAPE] == len(readings):
        shape = "×".join(map(str, data.images.shape[1:]))
        raise DataError(
            f"{feedback.path}: none of its studies has the size {shape} of data.side and data.channels; train with "
            "those of the model that was served, or set data.feedback to null"
        )
    collection = joining.collection()
    check_collection(collection, f"{data.collection.name} with {feedback.path}")
    check_schema(collection, data.side)
    with PreparedWriter(path, len(collection.studies), data.channels, data.side) as writer:
        for row, canvas in enumerate(chain(data.images, joining.canvases)):
            writer.write_image(row, canvas)
        if (data.path / "masks.npy").exists():
            writer.write_masks(np.load(data.path / "masks.npy"))
        writer.write_tables(collection)
        writer.write_reader_boxes(joining.reader_boxes())
        writer.write_skipped(data.skipped())
        writer.write_notes([*data.notes(), joined.note])
    return collection, joined


class _Joining:
    """Tables as they grow."""

    def __init__(self, data: PreparedSet, classes: bool, near_bits: int) -> None:
        self.joined = Joined()
        self.canvases: list[np.ndarray] = []
        self._base = data.collection
        self._shape, self._classes, self._near = data.images.shape[1:], classes, near_bits
        prints = Fingerprints()
        for row in chain(self._base.rows("val").tolist(), self._base.rows("test").tolist()):
            prints.add(data.images[row])
        self._row = {pixel_digest(data.images[row]): row for row in self._base.rows("train").tolist()}
        self._judged = {digest.hex() for digest in prints.digests}
        self._hashes = np.array(prints.hashes) if near_bits >= 0 else None
        self._said: list[tuple[str, list[str]]] = []  # study and the columns that readers filled
        self._studies = self._base.studies.copy()
        self._new: list[dict[str, Any]] = []
        self._replaced: set[tuple[str, str]] = set()  # of study and concept, the set's boxes
        self._boxes: list[tuple[str, FeedbackBox]] = []

    def take(self, study: str, canvas: np.ndarray, labels: Sequence[Label], boxes: Sequence[FeedbackBox]) -> None:
        """Takes in one study, or counts why not."""
        values = self._values(labels)
        why = self._refused(study, canvas, values)
        if why:
            self.joined.left_out[why] += 1
            return
        name = self._relabel(self._row[study], values) if study in self._row else self._add(study, canvas, values)
        self._said.append((name, list(values)))
        for box in boxes:
            if box.concept is None or box.concept in self._base.concepts:
                self._boxes.append((name, box))
        self._replaced |= {(name, box.concept) for box in boxes if box.concept is not None}
        self._replaced |= {
            (name, column.removeprefix(CONCEPT_PREFIX))
            for column, value in values.items()
            if column.startswith(CONCEPT_PREFIX) and value == 0
        }

    def collection(self) -> Collection:
        """The tables with all that was taken in."""
        base, studies = self._base, self._studies
        if self._new:
            new = pd.DataFrame(self._new).reindex(columns=list(studies))
            for column in studies:
                if column.startswith(FILLED_PREFIX):
                    new[column] = False
                elif column in ("patient_id", "site"):
                    new[column] = ""
            studies = pd.concat([studies, new.astype(_types(studies, new))], ignore_index=True)
        studies = self._with_what_was_said(studies)
        keys = zip(base.boxes["study_id"], base.boxes["concept"], strict=True)
        kept = base.boxes[[key not in self._replaced for key in keys]]
        drawn = self.reader_boxes()
        found = drawn.loc[drawn["kind"] == "finding", list(BOX_COLUMNS)]
        if "mask" in kept:
            found = found.assign(mask=-1)
        boxes = pd.concat([kept, found], ignore_index=True) if len(found) else kept.reset_index(drop=True)
        return replace(base, studies=studies, boxes=boxes)

    def _with_what_was_said(self, studies: pd.DataFrame) -> pd.DataFrame:
        """The table with the bool columns that tell readers' words from the set's labels, if there is any word."""
        if not self._said:
            return studies
        row_of = {study: row for row, study in enumerate(studies["study_id"])}
        names = [SAID_PREFIX + name for name in self._base.concepts] + [SAID_CLASS] * bool(self._base.classes)
        said = pd.DataFrame(False, index=studies.index, columns=names)
        for study, filled in self._said:
            for column in filled:
                of_concept = column.startswith(CONCEPT_PREFIX)
                name = SAID_PREFIX + column.removeprefix(CONCEPT_PREFIX) if of_concept else SAID_CLASS
                said.loc[row_of[study], name] = True
        return pd.concat([studies, said], axis=1)

    def reader_boxes(self) -> pd.DataFrame:
        """What readers drew, see `csr.data.prepared.PreparedSet.reader_boxes`; finding boxes that overlap are one."""
        rows = [{"study_id": name, **asdict(box)} for name, box in self._boxes]
        drawn = pd.DataFrame(rows, columns=list(READER_BOX_COLUMNS))
        drawn[CORNERS] = drawn[CORNERS].astype(np.float64).clip(0, self._shape[-1])
        finding = drawn["kind"] == "finding"
        return pd.concat([merge_overlapping(drawn[finding].reset_index(drop=True), MERGE_IOU), drawn[~finding]])

    def _values(self, labels: Sequence[Label]) -> dict[str, Any]:
        """What is known, by columns of the table of studies."""
        base = self._base
        known = {(label.kind, label.name): float(label.present) for label in labels if label.present is not None}
        values: dict[str, Any] = {
            CONCEPT_PREFIX + name: known["concept", name] for name in base.concepts if ("concept", name) in known
        }
        if not self._classes:
            return values
        signed = {name: value for (kind, name), value in known.items() if kind == "class"}
        if base.task == "multilabel":
            return values | {TARGET_PREFIX + name: signed[name] for name in base.classes if name in signed}
        found = [name for name, value in signed.items() if value]
        if base.task == "multiclass" and len(found) == 1 and found[0] in base.classes:
            values["label"] = found[0]
        return values

    def _refused(self, study: str, canvas: np.ndarray, values: dict[str, Any]) -> str | None:
        if canvas.shape != self._shape:
            return SHAPE
        if study in self._judged:
            return JUDGED
        if study not in self._row and self._nearly_judged(canvas):
            return NEARLY
        return None if values else NOTHING

    def _nearly_judged(self, canvas: np.ndarray) -> bool:
        if self._hashes is None:
            return False
        return bool(np.bitwise_count(self._hashes ^ perceptual_hash(canvas)).sum(1).min() <= self._near)

    def _relabel(self, row: int, values: dict[str, Any]) -> str:
        self.joined.relabelled += 1
        for column, value in values.items():
            before = self._studies[column].iat[row]
            self.joined.changed += int(pd.notna(before) and before != value)
            self._studies.loc[row, column] = value
            filled = FILLED_PREFIX + column.removeprefix(CONCEPT_PREFIX)
            if column.startswith(CONCEPT_PREFIX) and filled in self._studies:
                self._studies.loc[row, filled] = False
        return str(self._studies["study_id"].iat[row])

    def _add(self, study: str, canvas: np.ndarray, values: dict[str, Any]) -> str:
        self.joined.added += 1
        name = PREFIX + study
        about = {"study_id": name, "image": f"feedback/images/{study}.png", "split": "train", "part": "train"}
        self._new.append(about | values)
        self.canvases.append(canvas)
        return name


def _types(studies: pd.DataFrame, new: pd.DataFrame) -> dict[str, Any]:
    """The types of the set's columns, but where a value is missing that they cannot miss."""
    return {
        name: kind
        for name, kind in studies.dtypes.items()
        if not (new[name].isna().any() and (pd.api.types.is_integer_dtype(kind) or pd.api.types.is_bool_dtype(kind)))
    }
