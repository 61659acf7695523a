"""``make bench-diff REV=…``: the benchmark's figures now, in ``reports/bench``, beside those of another commit.

    make bench-diff REV=main~3                  (python -m tests.bench.difference REV)

A change is called one where the runs' spreads do not overlap. Seconds of different machines are not comparable, so
there only ratios and exponents are shown.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.bench.report import TITLES, shown
from tests.bench.results import Combined, Spread, read

MACHINE = ("cores", "processor", "device")


def main() -> None:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="make bench-diff REV=…", description=__doc__)
    parser.add_argument("revision")
    parser.add_argument("--folder", type=Path, default=Path("reports/bench"))
    given = parser.parse_args()
    known = subprocess.run(
        ["git", "rev-parse", "--verify", "--quiet", f"{given.revision}^{{commit}}"], capture_output=True, check=False
    )
    if known.returncode:
        sys.exit(f"bench-diff: git knows no commit {given.revision!r}")
    for suite, title in TITLES.items():
        file = given.folder / f"{suite}.json"
        was = at(given.revision, file)
        if not file.is_file() or was is None:
            print(f"{title}: no {file} {'here' if was else f'at {given.revision}'}\n")
            continue
        print("\n".join([title, *difference(read(was), read(file.read_text())), ""]))


def at(revision: str, file: Path) -> str | None:
    """A file's text at a commit; None where it has none."""
    said = subprocess.run(
        ["git", "show", f"{revision}:./{file.as_posix()}"], capture_output=True, text=True, check=False
    )
    return None if said.returncode else said.stdout


Suite = tuple[Mapping[str, Any], Sequence[Combined]]


def difference(was: Suite, now: Suite) -> Iterator[str]:
    """A line for each figure of both, and for each row that only one of them has."""
    (header_was, rows_was), (header_now, rows_now) = was, now
    same = all(header_was.get(key) == header_now.get(key) for key in MACHINE)
    if not same:
        yield "  measured on different machines: only ratios and exponents are compared"
    earlier = {row.name: row for row in rows_was}
    for row in rows_now:
        before = earlier.pop(row.name, None)
        if before is None:
            yield f"  {row.name}: new"
            continue
        figures = {"ratio": (before.ratio, row.ratio), "exponent": (before.exponent, row.exponent)}
        if same:
            figures = {row.unit: (before.median, row.median)} | figures
        for name, (old, new) in figures.items():
            if old is not None and new is not None:
                yield f"  {row.name}, {name}: {shown(old)} → {shown(new)}, {verdict(old, new, better(row, name))}"
    for name in earlier:
        yield f"  {name}: gone"


def better(row: Combined, figure: str) -> str:
    """Which way a figure of the row is better; growth always by less."""
    return "lower" if figure == "exponent" else row.better


def verdict(old: Spread, new: Spread, way: str) -> str:
    """In words; ``way`` is ``higher`` or ``lower``, what is better."""
    if new.low <= old.high and old.low <= new.high:
        return "within the spread"
    rose = new.median > old.median
    return f"{new.median / old.median:.2f} ×, {'better' if rose == (way == 'higher') else 'WORSE'}"


if __name__ == "__main__":
    main()
