"""What the tables of a prepared set must look like, checked before they are written; `csr.data.records` says it in
words.

A source's mistake, or that of code which changes tables after it, stops here instead of in a stage that reads them.
Mistakes of the people who made a data set are found earlier, in their own files: see `csr.data.problems`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from csr.data.records import CONCEPT_PREFIX, CORNERS, SPACING, SPLITS, TARGET_PREFIX, Collection
from csr.errors import DataError

if TYPE_CHECKING:
    import pandera.pandas as pa

ROUNDING = 1e-6  # of the image's side, by which a corner may lie outside
SHOWN = 20  # rows that a message lists for each thing that can be wrong; the others are counted


def check_schema(collection: Collection, side: int) -> None:
    """Refuses tables that are not as `csr.data.records` says.

    Args:
        collection: with boxes in pixels of the prepared images.
        side: of the prepared images.

    Raises:
        DataError: naming everything that is wrong, each with table, row, column and value.
    """
    violations = [
        *_violations("studies.parquet", studies_schema(collection), collection.studies),
        *_violations("boxes.parquet", boxes_schema(collection, side), collection.boxes),
    ]
    if violations:
        raise DataError("\n".join(violations))


def study_columns(collection: Collection) -> tuple[str, ...]:
    """The columns that the table of studies cannot do without."""
    predicted = ("label",) if collection.task == "multiclass" else _prefixed(TARGET_PREFIX, collection.classes)
    return ("study_id", "image", "split", "part", *predicted, *_prefixed(CONCEPT_PREFIX, collection.concepts))


def studies_schema(collection: Collection) -> pa.DataFrameSchema:
    """What the table of studies must look like; other columns than those of `csr.data.records` are free.

    Args:
        collection: whose task, classes and concepts the table is checked against.
    """
    import pandera.pandas as pa  # imported on use: reading a prepared set does without it

    named = pa.Check(_is_named, ignore_na=False, error="must be a text that is not empty")
    known = [
        pa.Check(pd.api.types.is_float_dtype, error="must hold floating-point numbers"),
        pa.Check.isin((0, 1), error="must be 1, 0 or empty"),
    ]
    checks = dict.fromkeys(study_columns(collection), known) | {
        "study_id": [named, pa.Check(lambda names: ~names.duplicated(), ignore_na=False, error="occurs twice")],
        "image": [named],
        "split": [_one_of(SPLITS)],
        "part": [named],
    }
    if collection.task == "multiclass":
        checks["label"] = [pa.Check.isin(collection.classes, error=f"must be one of {', '.join(collection.classes)}")]
    columns = {name: pa.Column(checks=own, nullable=True) for name, own in checks.items()}
    text = pa.Check(_is_text, ignore_na=False, error="must be a text")
    columns |= {name: pa.Column(checks=text, nullable=True, required=False) for name in ("patient_id", "site")}
    positive = [
        pa.Check(pd.api.types.is_float_dtype, error="must hold floating-point numbers"),
        pa.Check(lambda sizes: _numbers(sizes) > 0, error="must be a size in millimetres, greater than 0"),
    ]
    columns |= {name: pa.Column(checks=positive, nullable=True, required=False) for name in SPACING}
    taken = (CONCEPT_PREFIX, TARGET_PREFIX) if collection.task == "multilabel" else CONCEPT_PREFIX
    free = [name for name in collection.studies if name not in columns and not name.startswith(taken)]
    columns |= {name: pa.Column(nullable=True) for name in free}
    parts = pa.Check(
        _repeats_split, name="part", ignore_na=False, error="must be the split's name: only 'test' has parts"
    )
    classed = pa.Check(
        lambda studies: _is_classed(collection, studies),
        name="split",
        ignore_na=False,
        error="must be 'train', for the study has no class",
    )
    return pa.DataFrameSchema(columns, checks=[parts, classed], strict=True)


def boxes_schema(collection: Collection, side: int) -> pa.DataFrameSchema:
    """What the table of boxes must look like.

    Args:
        collection: whose studies and concepts the boxes may name.
        side: of the images that the boxes lie in.
    """
    import pandera.pandas as pa

    studies = set(collection.studies.get("study_id", ()))
    known_study = pa.Check.isin(studies, ignore_na=False, error="must be in the table of studies")
    numbers = [
        pa.Check(pd.api.types.is_numeric_dtype, error="must hold numbers"),
        pa.Check(lambda values: _numbers(values).notna(), ignore_na=False, error="must be a finite number"),
    ]
    least, most = -ROUNDING * side, side * (1 + ROUNDING)
    inside = {
        "min": pa.Check(lambda values: ~(_numbers(values) < least), error="must be at least 0"),
        "max": pa.Check(lambda values: ~(_numbers(values) > most), error=f"must be at most {side}, the image's side"),
    }
    masks = [
        pa.Check(pd.api.types.is_integer_dtype, error="must hold whole numbers"),
        pa.Check(lambda rows: ~(_numbers(rows) < -1), error="must be a row of masks.npy, or -1"),
        pa.Check(lambda rows: ~rows.duplicated() | (rows == -1), error="must not be the mask of another box"),
    ]
    columns = {
        "study_id": pa.Column(checks=known_study, nullable=True),
        "concept": pa.Column(checks=_one_of(collection.concepts), nullable=True),
        **{name: pa.Column(checks=[*numbers, inside[name[-3:]]], nullable=True) for name in CORNERS},
        "mask": pa.Column(checks=masks, nullable=True, required=False),
    }
    ordered = [
        pa.Check(_is_ordered, name=high, ignore_na=False, error=f"must be greater than {low}", low=low, high=high)
        for low, high in (("x_min", "x_max"), ("y_min", "y_max"))
    ]
    return pa.DataFrameSchema(columns, checks=ordered, strict=True)


def _one_of(names: Iterable[str]) -> pa.Check:
    import pandera.pandas as pa

    return pa.Check.isin(tuple(names), ignore_na=False, error=f"must be one of {', '.join(names)}")


def _prefixed(prefix: str, names: Iterable[str]) -> tuple[str, ...]:
    return tuple(prefix + name for name in names)


def _is_text(values: pd.Series) -> pd.Series:
    return values.map(lambda value: isinstance(value, str)).astype(bool)


def _is_named(values: pd.Series) -> pd.Series:
    return _is_text(values) & (values != "")


def _numbers(values: pd.Series) -> pd.Series:
    """NaN for what is no finite number, so that only one check speaks of it."""
    return pd.to_numeric(values, errors="coerce").replace([np.inf, -np.inf], np.nan)


def _repeats_split(studies: pd.DataFrame) -> pd.Series | bool:
    if not {"split", "part"} <= set(studies):
        return True  # the missing column is reported
    return (studies["part"] == studies["split"]) | (studies["split"] == "test")


def _is_classed(collection: Collection, studies: pd.DataFrame) -> pd.Series | bool:
    if collection.task == "concepts" or not set(study_columns(collection)) <= set(studies):
        return True
    return replace(collection, studies=studies).has_class() | (studies["split"] == "train")


def _is_ordered(boxes: pd.DataFrame, low: str, high: str) -> pd.Series | bool:
    if not {low, high} <= set(boxes):
        return True
    return ~(_numbers(boxes[high]) <= _numbers(boxes[low]))


def _violations(name: str, schema: pa.DataFrameSchema, table: pd.DataFrame) -> Iterator[str]:
    """Everything in a table that breaks its schema, a sentence each."""
    from pandera.errors import SchemaErrorReason, SchemaErrors

    table = table.reset_index(drop=True)
    try:
        schema.validate(table, lazy=True)
    except SchemaErrors as caught:
        for error in caught.schema_errors:
            match error.reason_code:
                case SchemaErrorReason.COLUMN_NOT_IN_DATAFRAME:
                    yield f"{name}: column {error.failure_cases!r} is missing"
                case SchemaErrorReason.COLUMN_NOT_IN_SCHEMA:
                    yield f"{name}: column {error.failure_cases!r} does not belong there"
                case _:
                    column = error.check.name if error.schema is schema else error.schema.name
                    yield from _failed(name, table, column, error.check.error, error.check_output)


def _failed(name: str, table: pd.DataFrame, column: str, sentence: str, passed: Any) -> Iterator[str]:
    """One sentence for each row that failed a check, or one for the whole column."""
    if not isinstance(passed, pd.Series):
        yield f"{name}: column {column!r} {sentence}, has type {table[column].dtype}"
        return
    rows = passed.index[~passed.to_numpy(bool)]  # not places: empty values may have been left out of the check
    for row in rows[:SHOWN]:
        study = f" (study {table['study_id'].iat[row]!r})" if "study_id" in table else ""
        value = table[column].iat[row]
        value = value.item() if isinstance(value, np.generic) else value
        yield f"{name} row {row + 1}{study}: {column} {sentence}, got {value!r}"
    if len(rows) > SHOWN:
        yield f"{name}: {column} {sentence}, in {len(rows) - SHOWN} more rows"
