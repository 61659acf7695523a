"""``make bench``: every suite of measurements in several runs; writes ``reports/bench``.

    make bench                                  (python -m tests.bench [--runs 3] [--only SUITE ...])

A suite is a program of its own, which alternates what it compares in rounds and writes medians; see
`tests.bench.results`. Runs of different suites alternate, too, so that a machine that is busier for a while is so for
all. For each suite a JSON file is written, which ``make bench-diff`` compares between commits, and a plot;
``README.md`` has the tables, with what is asked (``tests/bench/limits.yaml``) and whether it holds.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipelines.revision import revision
from tests.bench.report import draw, page
from tests.bench.results import combine, write

SUITES = {
    "serving": "tests.bench.serving",
    "training": "csr.bench",
    "ray_train": "tests.bench.ray_train",
    "growth": "tests.bench.growth",
}
OUT = Path("reports/bench")


def main() -> None:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=SUITES, default=list(SUITES))
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args()
    runs: dict[str, list[dict[str, Any]]] = {suite: [] for suite in given.only}
    with tempfile.TemporaryDirectory() as scratch:
        for number in range(given.runs):
            for suite in given.only:
                print(f"run {number + 1} of {given.runs}: {suite}", flush=True)
                runs[suite].append(run(suite, Path(scratch) / f"{suite}-{number}.json"))
    for suite, found in runs.items():
        rows = combine(found)
        header = found[-1]["header"] | {
            "runs": given.runs,
            "commit": revision(),
            "made": f"{datetime.now(UTC):%Y-%m-%d}",
        }
        write(header, rows, given.out / f"{suite}.json")
        draw(suite, rows, given.out / f"{suite}.png")
    (given.out / "README.md").write_text(page(given.out))


def run(suite: str, file: Path) -> dict[str, Any]:
    """One run of a suite in a process of its own; what it prints is shown.

    Raises:
        SystemExit: it failed.
    """
    ended = subprocess.run([sys.executable, "-m", SUITES[suite], "--out", str(file)], check=False)
    if ended.returncode:
        sys.exit(f"suite {suite} failed; nothing was written")
    return json.loads(file.read_text())


if __name__ == "__main__":
    main()
