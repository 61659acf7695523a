"""Retrains and, if the gates hold, promotes: what CI calls on a schedule or when new data arrives.

    python -m pipelines.retrain

Runs ``dvc repro``, judges the new bundle and the registered champion on the same test set, writes
``reports/promotion.md`` and moves the alias ``champion`` only when every gate of ``infra/promotion.yaml`` holds.
Exit status: 0 promoted, or nothing to promote; 3 rejected by the gates; 1 an error.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Literal

from mlflow.tracking import MlflowClient

from csr.bundle.format import Bundle
from csr.data.prepared import PreparedSet
from csr.errors import CSRError
from pipelines.champion import champion, promote
from pipelines.promotion import Verdict, apply_gates, judge_bundle, load_gates
from pipelines.registry import fetch, register
from pipelines.stage import BUNDLE, PREPARED, REPORTS, cores
from pipelines.tracking import connect

REJECTED = 3
Outcome = Literal["promoted", "rejected", "unchanged"]


def retrain() -> Outcome:
    """Reproduces the pipeline and decides; see the module's docstring.

    Raises:
        CSRError: the pipeline failed, or the bundles cannot be compared.
    """
    gates = load_gates()
    if subprocess.run([sys.executable, "-m", "dvc", "repro"], check=False).returncode:
        raise CSRError("dvc repro failed; its own message above says why. The champion stays as it was")
    client = connect()
    candidate = Bundle.open(BUNDLE)
    version, current = register(candidate), champion(client)
    if version == current:
        _write_report(f"Version {version} is the champion already; nothing to do.", [])
        return "unchanged"
    data = PreparedSet.open(PREPARED)
    report, golden = judge_bundle(candidate, data, cores())
    rival = _judge_champion(client, current, data) if current else None
    verdicts = apply_gates(gates, report, rival, golden)
    failed = [verdict for verdict in verdicts if not verdict.passed]
    name = f"version {current}" if current else "no champion yet"
    if failed:
        _write_report(f"Version {version} was **rejected** against {name}: {len(failed)} gate(s) failed.", verdicts)
        return "rejected"
    promote(client, version, f"retrain: all {len(verdicts)} gates hold")
    _write_report(f"Version {version} was **promoted** over {name}: all gates hold.", verdicts)
    return "promoted"


def _judge_champion(client: MlflowClient, version: str, data: PreparedSet) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        report, _ = judge_bundle(fetch(version, Path(folder)), data, cores())
    return report


def _write_report(sentence: str, verdicts: list[Verdict]) -> None:
    lines = ["# Promotion", "", sentence, ""]
    if verdicts:
        lines += ["| metric | part | candidate | champion | gate |", "|---|---|---|---|---|"]
    for verdict in verdicts:
        values = ["–" if value is None else f"{value:.4f}" for value in (verdict.candidate, verdict.champion)]
        mark = "holds" if verdict.passed else f"**fails**: {verdict.reason}"
        lines.append(f"| {verdict.metric} | {verdict.part} | {values[0]} | {values[1]} | {mark} |")
    REPORTS.mkdir(exist_ok=True)
    (REPORTS / "promotion.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def main() -> None:
    """The command line; see the module's docstring."""
    try:
        outcome = retrain()
    except CSRError as error:
        sys.exit(f"retrain: {error}")
    sys.exit(REJECTED if outcome == "rejected" else 0)


if __name__ == "__main__":
    main()
