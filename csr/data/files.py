"""Tables as people write them: CSV with commas or semicolons, UTF-8 with or without a byte-order mark, or Parquet."""

from __future__ import annotations

import io
from pathlib import Path

import pandas as pd

from csr.errors import DataError

DELIMITERS = ",;\t"


def read_rows(file: Path, required: tuple[str, ...] = ()) -> pd.DataFrame:
    """Reads a table as text, every value stripped; an empty cell is "".

    Args:
        file: ``.parquet``, or a CSV file whose delimiter is taken from its header.
        required: columns that must be there.

    Returns:
        The table and a column ``where``, the file and row of each (row 2 is the first below a CSV file's header; rows
        of a Parquet file count from 1).

    Raises:
        DataError: the file is missing, not such a table, or lacks a column.
    """
    try:
        table = _read_parquet(file) if file.suffix == ".parquet" else _read_csv(file)
    except FileNotFoundError:
        raise DataError(f"{file}: missing; see 'Your own data' in the README for the layout") from None
    table.columns = [str(name).strip() for name in table.columns]
    if twice := table.columns[table.columns.duplicated()].tolist():
        raise DataError(f"{file}: column {twice[0]!r} occurs twice; rename or remove one")
    for column in required:
        if column not in table:
            raise DataError(f"{file}: column {column!r} is missing; it has {', '.join(table.columns)}")
    table = table.apply(lambda column: column.str.strip())
    first = 1 if file.suffix == ".parquet" else 2
    table["where"] = [f"{file} row {row}" for row in range(first, first + len(table))]
    return table


def _read_csv(file: Path) -> pd.DataFrame:
    data = file.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise DataError(f"{file} line {line}: is not UTF-8; save the file as UTF-8") from None
    header = text.partition("\n")[0]
    try:
        return pd.read_csv(
            io.StringIO(text), sep=max(DELIMITERS, key=header.count), dtype=str, keep_default_na=False
        ).fillna("")  # of rows that are too short
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise DataError(f"{file}: is not a table with a header ({' '.join(str(error).split())})") from None


def _read_parquet(file: Path) -> pd.DataFrame:
    try:
        table = pd.read_parquet(file)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:  # pyarrow's errors derive from these
        raise DataError(f"{file}: is not a Parquet file ({' '.join(str(error).split())})") from None
    return table.astype(object).where(table.notna(), "").astype(str)
