"""Prints the result table of the last ``dvc repro``: accuracy, pointing, and what each stage cost.

python -m pipelines.table
"""

from __future__ import annotations

import json
import sys

from mlflow.entities import Run

from pipelines.runs.inheritance import STAGE
from pipelines.runs.kinds import KIND
from pipelines.stage import OUTPUTS, REPORTS
from pipelines.tracking import connect, experiment_id


def main() -> None:
    """Prints to standard output."""
    file = REPORTS / "metrics.json"
    if not file.is_file():
        sys.exit(f"table: {file} is missing; run dvc repro first")
    metrics = json.loads(file.read_text())
    print(f"\npreset {metrics['preset']}")
    print(f"{'test part':<10} {'studies':>8} {'macro F1':>9} {'AUROC':>7} | pointing: pair  image  chance  centre")
    for part, numbers in metrics.items():
        if isinstance(numbers, dict) and "macro_f1" in numbers:
            pointing = numbers["pointing_game"]
            cells = [_cell(pointing[name]) for name in ("pair", "image", "chance", "centre")]
            scores = f"{_cell(numbers['macro_f1']):>9} {_cell(numbers['auroc']):>7}"
            print(f"{part:<10} {numbers['studies']:>8} {scores} | {'':>8} {'  '.join(f'{cell:>5}' for cell in cells)}")
    run = _last_run()
    if run is not None:
        costs = [
            (name, run.data.metrics.get(f"{name}.seconds"), run.data.metrics.get(f"{name}.peak_rss_mb"))
            for name in OUTPUTS
        ]
        ran = [(name, seconds, peak) for name, seconds, peak in costs if seconds is not None and peak is not None]
        print("\n" + "  ".join(f"{name} {seconds:.0f} s" for name, seconds, _ in ran))
        if ran:
            total, peak = sum(cost[1] for cost in ran), max(cost[2] for cost in ran)
            print(f"stages together {total:.0f} s, peak memory {peak / 1024:.1f} GB\n")


def _cell(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _last_run() -> Run | None:
    """The newest finished pass of the default pipeline."""
    client = connect()
    wanted = f"tags.`{KIND}` = 'pass' AND tags.`{STAGE}` = 'export'"
    runs = client.search_runs([experiment_id(client)], wanted, max_results=1)
    return runs[0] if runs else None


if __name__ == "__main__":
    main()
