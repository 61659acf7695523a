"""Stage ``system``: trains one baseline with one seed and writes its report.

    python -m pipelines.comparison.system SYSTEM SEED

Training is timed alone; it runs in this process, one system at a time, so that the times compare.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import replace

import mlflow

from csr.baselines import BASELINES
from csr.datasets.prepared import PreparedSet
from csr.errors import CSRError
from csr.evaluation import judge, rounded
from pipelines.params import flatten, load_params
from pipelines.stage import PREPARED, REPORTS
from pipelines.tracking import connect, log_metrics, revision
from pipelines.training import CHECKPOINTS, LocalReporter

FOLDER = REPORTS / "comparison"


def run(system: str, seed: int) -> None:
    """Trains, judges, and writes ``reports/comparison/<system>-<seed>.json`` and an MLflow run."""
    params = load_params()
    data = PreparedSet.open(PREPARED)
    config = replace(params.concepts, seed=seed)
    connect()
    with mlflow.start_run(run_name=f"{system}-{seed}", tags={"system": system, "git.revision": revision()}):
        mlflow.log_params({"system": system, **flatten(config)})
        start = time.perf_counter()
        reporter = LocalReporter(system, CHECKPOINTS / f"comparison-{system}-{seed}")
        outcome = BASELINES[system](data, config, reporter)
        seconds = time.perf_counter() - start
        report = judge(data.collection, outcome.predictions, data.side)
        for part, numbers in report.items():
            pointing = {f"pointing_{name}": value for name, value in numbers.pop("pointing_game").items()}
            log_metrics(part, {name: value for name, value in (numbers | pointing).items() if value is not None})
            numbers["pointing_game"] = {name.removeprefix("pointing_"): value for name, value in pointing.items()}
        log_metrics("train", {"seconds": seconds})
    FOLDER.mkdir(parents=True, exist_ok=True)
    about = {"system": system, "seed": seed, "parameters": outcome.parameters, "explanations": outcome.explanations}
    (FOLDER / f"{system}-{seed}.json").write_text(json.dumps(rounded({**about, **report}), indent=2) + "\n")
    reporter.forget()


def main() -> None:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.comparison.system")
    parser.add_argument("system", choices=sorted(BASELINES))
    parser.add_argument("seed", type=int)
    given = parser.parse_args()
    try:
        run(given.system, given.seed)
    except CSRError as error:
        sys.exit(f"{given.system}: {error}")


if __name__ == "__main__":
    main()
