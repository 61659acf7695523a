"""``make bench``: every suite of measurements in several runs; writes ``reports/bench``.

    make bench                                  (python -m tests.bench [--runs 3] [--only SUITE ...])

A suite is a program of its own, which alternates what it compares in rounds and writes medians; see
`tests.bench.results`. Runs of different suites alternate, too, so that a machine that is busier for a while is so for
all. For each suite a JSON file is written, which ``make bench-diff`` compares between commits, and a plot;
``README.md`` has the tables, with what is asked (``tests/bench/limits.yaml``) and whether it holds. A suite that fails
leaves its files as they were, and does not stop the others.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
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
    with tempfile.TemporaryDirectory() as scratch:
        runs = run_all(given.only, given.runs, Path(scratch))
    for suite, found in runs.items():
        rows = combine(found)
        header = found[-1]["header"] | {
            "runs": given.runs,
            "commit": revision(),
            "made": f"{datetime.now(UTC):%Y-%m-%d}",
        }
        write(header, rows, given.out / f"{suite}.json")
        draw(suite, rows, given.out / f"{suite}.png")
    if runs:
        (given.out / "README.md").write_text(page(given.out))
    failed = [suite for suite in given.only if suite not in runs]
    if failed:
        sys.exit(f"failed, and left as it was: {', '.join(failed)}")


def run_all(suites: Sequence[str], count: int, scratch: Path) -> dict[str, list[dict[str, Any]]]:
    """The runs of every suite that did not fail, each in a process of its own; what they print is shown."""
    runs: dict[str, list[dict[str, Any]]] = {suite: [] for suite in suites}
    for number in range(count):
        for suite in list(runs):
            print(f"run {number + 1} of {count}: {suite}", flush=True)
            file = scratch / f"{suite}-{number}.json"
            ended = subprocess.run([sys.executable, "-m", SUITES[suite], "--out", str(file)], check=False)
            if ended.returncode:
                print(f"suite {suite} failed; it is not run again", file=sys.stderr, flush=True)
                del runs[suite]
            else:
                runs[suite].append(json.loads(file.read_text()))
    return runs


if __name__ == "__main__":
    main()
