"""Stage ``report``: one table of CSR and every baseline, ``reports/comparison.md``.

    python -m pipelines.comparison.report

CSR's row is the default pipeline's ``reports/metrics.json``; baselines come from ``reports/comparison/*.json`` with
mean and standard deviation over their seeds.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections import defaultdict
from typing import Any

from pipelines.stage import REPORTS

COLUMNS = (("macro F1", "macro_f1"), ("AUROC", "auroc"), ("pointing, pair", "pair"), ("pointing, image", "image"))


def main() -> None:
    """Writes the table and prints it."""
    files = sorted((REPORTS / "comparison").glob("*.json"))
    csr_file = REPORTS / "metrics.json"
    if not files or not csr_file.is_file():
        sys.exit("report: nothing to compare; run dvc repro and then dvc repro pipelines/comparison/dvc.yaml")
    csr = json.loads(csr_file.read_text())
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    groups[f"csr, {csr['preset']}"].append(csr)
    for file in files:
        content = json.loads(file.read_text())
        groups[content["system"]].append(content)
    parts = [name for name, value in csr.items() if isinstance(value, dict) and "macro_f1" in value]
    lines = ["# Comparison", ""]
    for part in parts:
        levels = csr[part]["pointing_game"]
        lines += [f"## {part} ({csr[part]['studies']} studies)", ""]
        if levels["pairs"]:
            lines += [f"Pointing game: chance {levels['chance']:.3f}, mean position {levels['centre']:.3f}.", ""]
        lines += [
            f"| system | seeds | {' | '.join(title for title, _ in COLUMNS)} |",
            "|---" * (2 + len(COLUMNS)) + "|",
        ]
        for system, runs in groups.items():
            cells = [_cell([_number(run[part], key) for run in runs]) for _, key in COLUMNS]
            lines.append(f"| {system} | {len(runs)} | {' | '.join(cells)} |")
        lines.append("")
    (REPORTS / "comparison.md").write_text("\n".join(lines))
    print("\n".join(lines))


def _number(report: dict[str, Any], key: str) -> float | None:
    return report[key] if key in report else report["pointing_game"][key]


def _cell(values: list[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    spread = f" ± {statistics.stdev(known):.3f}" if len(known) > 1 else ""
    return f"{statistics.mean(known):.3f}{spread}"


if __name__ == "__main__":
    main()
