"""What one row of each table of a feedback set is: typed, with the Parquet schema that is written and demanded."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeVar

import pyarrow as pa

BoxKind = Literal["focus", "ignore", "finding"]
_DIGEST = re.compile(r"[0-9a-f]{64}")
_MONTH = re.compile(r"\d{4}-(0[1-9]|1[0-2])")


@dataclass(frozen=True)
class FeedbackBox:
    """A reader's box in pixels of the study's canvas, as the network saw it; see `csr.interaction.corrections`.

    Args:
        kind: of box.
        concept: that a ``finding`` box shows; None for the others.
        x_min, y_min, x_max, y_max: pixel edges.
    """

    kind: BoxKind
    concept: str | None
    x_min: float
    y_min: float
    x_max: float
    y_max: float

    def __post_init__(self) -> None:
        corners = (self.x_min, self.y_min, self.x_max, self.y_max)
        _require(self.kind in ("focus", "ignore", "finding"), f"boxes: {self.kind!r} is no kind of box")
        _require((self.kind == "finding") == bool(self.concept), "boxes: a finding box names its concept, others none")
        _require(all(math.isfinite(each) for each in corners), "boxes: coordinates must be finite numbers")
        _require(self.x_min < self.x_max and self.y_min < self.y_max, f"boxes: {corners} is empty or inverted")


@dataclass(frozen=True)
class Reading:
    """The last reading of one study that one reader signed.

    Args:
        study: digest of the canvas's pixels, which names its image too.
        reader: a pseudonym, the same in every set of one ledger.
        decision: ``keep``: the corrections stand; ``revert``: they are on record, and say nothing of the study.
        found: the classes that the reader signed.
        classes: all classes of the model, of which the others were signed as not found.
        confirmed, rejected: concepts that were said to be there, or not, without a place.
        boxes: what was drawn.
        number: of the ledger's entry.
        bundle, model: digest of the bundle under which it was signed, and its version in the registry.
        month: in which it was signed, UTC, as ``2026-11``.
    """

    study: str
    reader: str
    decision: Literal["keep", "revert"]
    found: tuple[str, ...]
    classes: tuple[str, ...]
    confirmed: tuple[str, ...]
    rejected: tuple[str, ...]
    boxes: tuple[FeedbackBox, ...]
    number: int
    bundle: str
    model: str
    month: str

    def __post_init__(self) -> None:
        _require(bool(_DIGEST.fullmatch(self.study)), f"study: {self.study!r} is no digest")
        _require(self.decision in ("keep", "revert"), f"decision: {self.decision!r} is neither 'keep' nor 'revert'")
        _require(bool(_MONTH.fullmatch(self.month)), f"month: {self.month!r} is no month")
        _require(set(self.found) <= set(self.classes), "found: names what is none of the classes")
        _require(not self.present & set(self.rejected), "rejected: names what the same reader confirmed")

    @property
    def present(self) -> set[str]:
        """Concepts that are confirmed, with a place or without."""
        return {*self.confirmed, *(box.concept for box in self.boxes if box.concept is not None)}


@dataclass(frozen=True)
class Label:
    """What a study's readers come to on one concept or class; see `csr.data.feedback.consensus`.

    Args:
        study: digest.
        kind, name: of what.
        present: whether the study has it; None where as many readers say yes as no.
        yes, no: readers who say so.
    """

    study: str
    kind: Literal["concept", "class"]
    name: str
    present: bool | None
    yes: int
    no: int


@dataclass(frozen=True)
class ReviewSource:
    """A training study by which a reviewed prototype is known, with their similarity; see
    `csr.bundle.format.AtlasSource`."""

    study_id: str
    similarity: float


@dataclass(frozen=True)
class PrototypeReview:
    """What reviewers agreed on of one prototype.

    Args:
        bundle, concept, index: which prototype of which bundle.
        verdict: ``prune`` takes it out of the next training.
        reason: the last reviewer's, of a closed list.
        reviewers: pseudonyms of those who say so.
        number: of the ledger's last entry about it.
        month: of that entry.
        sources: what the prototype looked like, by which the next training finds it again.
    """

    bundle: str
    concept: str
    index: int
    verdict: Literal["keep", "prune"]
    reason: str
    reviewers: tuple[str, ...]
    number: int
    month: str
    sources: tuple[ReviewSource, ...]

    def __post_init__(self) -> None:
        _require(self.verdict in ("keep", "prune"), f"verdict: {self.verdict!r} is neither 'keep' nor 'prune'")
        _require(bool(self.sources), f"sources: prototype {self.index} of {self.concept!r} has none")


def _table(*fields: tuple[str, pa.DataType], optional: Iterable[str] = ()) -> pa.Schema:
    return pa.schema([pa.field(name, kind, nullable=name in optional) for name, kind in fields])


_CORNERS = [pa.field(name, pa.float64(), nullable=False) for name in ("x_min", "y_min", "x_max", "y_max")]
_BOX = pa.struct([pa.field("kind", pa.string(), nullable=False), pa.field("concept", pa.string()), *_CORNERS])
_SOURCE = pa.struct(
    [pa.field("study_id", pa.string(), nullable=False), pa.field("similarity", pa.float64(), nullable=False)]
)
_NAMES = pa.list_(pa.field("element", pa.string(), nullable=False))

READINGS = _table(
    ("study", pa.string()),
    ("reader", pa.string()),
    ("decision", pa.string()),
    ("found", _NAMES),
    ("classes", _NAMES),
    ("confirmed", _NAMES),
    ("rejected", _NAMES),
    ("boxes", pa.list_(pa.field("element", _BOX, nullable=False))),
    ("number", pa.int64()),
    ("bundle", pa.string()),
    ("model", pa.string()),
    ("month", pa.string()),
)
LABELS = _table(
    ("study", pa.string()),
    ("kind", pa.string()),
    ("name", pa.string()),
    ("present", pa.bool_()),
    ("yes", pa.int64()),
    ("no", pa.int64()),
    optional=["present"],
)
REVIEWS = _table(
    ("bundle", pa.string()),
    ("concept", pa.string()),
    ("index", pa.int64()),
    ("verdict", pa.string()),
    ("reason", pa.string()),
    ("reviewers", _NAMES),
    ("number", pa.int64()),
    ("month", pa.string()),
    ("sources", pa.list_(pa.field("element", _SOURCE, nullable=False))),
)
Row = TypeVar("Row", Reading, Label, PrototypeReview)
_INNER: dict[str, Any] = {"boxes": FeedbackBox, "sources": ReviewSource}


def to_table(rows: Sequence[Any], schema: pa.Schema) -> pa.Table:
    """Rows of one kind as a table."""
    return pa.Table.from_pylist([asdict(row) for row in rows], schema=schema)


def from_table(table: pa.Table, kind: type[Row]) -> list[Row]:
    """The inverse of `to_table`.

    Raises:
        ValueError: a row is none; one sentence.
    """
    rows = []
    for number, values in enumerate(table.to_pylist(), start=1):
        try:
            rows.append(kind(**{name: _typed(name, value) for name, value in values.items()}))
        except ValueError as error:
            raise ValueError(f"row {number}: {error}") from None
    return rows


def _typed(name: str, value: Any) -> Any:
    if name in _INNER:
        return tuple(_INNER[name](**each) for each in value)
    return tuple(value) if isinstance(value, list) else value


def _require(holds: bool, sentence: str) -> None:
    if not holds:
        raise ValueError(sentence)
