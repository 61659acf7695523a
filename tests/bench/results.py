"""What a benchmark writes, what several runs of it come to, and how two commits compare.

A suite is a module with ``--out FILE.json``; its file holds ``{"header": {…}, "rows": […]}``, the rows as
`csr.bench.rows.Row` gives them. Runs of one suite are brought together by `combine`: the median of the runs' medians,
and the lowest and highest of them.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from csr.bench.rows import Row


@dataclass(frozen=True)
class Grown(Row):
    """A growth measurement; its rounds are those of the largest size.

    Args:
        sizes, values: at these sizes, these medians.
        exponent: of the power law fitted to them. exponent_se: its standard error.
    """

    sizes: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    exponent: float = 0.0
    exponent_se: float = 0.0


@dataclass(frozen=True)
class Spread:
    """Of several runs' figures: the median, the lowest and the highest."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))


@dataclass(frozen=True)
class Combined:
    """One quantity over several runs; ``sizes`` and ``values`` are the last run's."""

    name: str
    unit: str
    better: str
    median: Spread
    ratio_to: str | None
    ratio: Spread | None
    exponent: Spread | None
    sizes: list[float] | None
    values: list[float] | None


def save(rows: Sequence[Row], file: Path, **about: Any) -> None:
    """Writes one run."""
    content = {
        "header": machine() | about,
        "rows": [row.to_json() for row in rows],
    }
    file.write_text(json.dumps(content, indent=1) + "\n")


def machine() -> dict[str, Any]:
    """What figures depend on beside the code."""
    return {"cores": os.cpu_count(), "processor": _processor(), "python": platform.python_version()}


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


def combine(runs: Sequence[Mapping[str, Any]]) -> list[Combined]:
    """Several runs of one suite, as `save` wrote them. Every run must hold the same rows.

    Raises:
        ValueError: they hold other rows.
    """
    names = [[row["name"] for row in run["rows"]] for run in runs]
    if any(each != names[0] for each in names):
        raise ValueError(f"runs of one suite with different rows: {names}")

    def over(rows: Sequence[Mapping[str, Any]], key: str) -> Spread | None:
        return None if rows[0].get(key) is None else Spread.of([row[key] for row in rows])

    found = []
    for rows in zip(*(run["rows"] for run in runs), strict=True):
        median = over(rows, "median")
        assert median is not None
        last = rows[-1]
        found.append(
            Combined(
                last["name"],
                last["unit"],
                last["better"],
                median,
                last.get("ratio_to"),
                over(rows, "ratio"),
                over(rows, "exponent"),
                last.get("sizes"),
                last.get("values"),
            )
        )
    return found


def read(text: str) -> tuple[dict[str, Any], list[Combined]]:
    """A file of ``reports/bench``: its header and rows."""
    content = json.loads(text)
    spread = ("median", "ratio", "exponent")
    rows = [
        Combined(**{key: Spread(**value) if key in spread and value else value for key, value in row.items()})
        for row in content["rows"]
    ]
    return content["header"], rows


def write(header: Mapping[str, Any], rows: Sequence[Combined], file: Path) -> None:
    """Writes what `read` reads."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"header": dict(header), "rows": [asdict(row) for row in rows]}, indent=1) + "\n")
