"""Stage ``evaluate``: judges the model on every test part; writes ``reports/metrics.json``, plots and a montage."""

from __future__ import annotations

import json
from itertools import chain, zip_longest

import numpy as np
import pandas as pd
import torch

from csr.data.prepared import PreparedSet
from csr.evaluation.calibration import risk_coverage
from csr.evaluation.evaluate import evaluate_predictions, pointing_by_concept, rounded
from csr.evaluation.predictions import Predictions
from csr.network.trained import TrainedCSR
from csr.training.features import FeatureCache
from csr.training.prediction import predict
from csr.training.runtime import device, use_device
from csr.training.thresholds import own_thresholds
from pipelines.figures.evaluation import write_confusion, write_montage, write_operating_points, write_risk_coverage
from pipelines.params import Params
from pipelines.stage import FEATURES, HEAD, PREPARED, REPORTS, run_stage
from pipelines.tracking import log_file, log_metrics


def evaluate(params: Params) -> None:
    """Writes everything that ``dvc metrics`` and ``dvc plots`` show."""
    use_device(params.train.device)
    data, cache = PreparedSet.open(PREPARED), FeatureCache.open(FEATURES)
    csr = TrainedCSR.load(HEAD / "model.pt")
    predictions, thresholds = predict(data, cache, csr), own_thresholds(data, cache, csr)
    report = evaluate_predictions(data.collection, predictions, data.side, thresholds)

    plots = REPORTS / "plots"
    plots.mkdir(parents=True, exist_ok=True)
    _write_predictions(data, predictions, thresholds)
    by_concept = pointing_by_concept(data.collection, predictions, data.side)
    columns = ["part", "concept", "pairs", "pointing_game", "chance", "centre"]
    pd.DataFrame(by_concept, columns=columns).to_csv(plots / "pointing.csv", index=False)
    _draw_montage(data, cache, csr, predictions, params.evaluate.montage)

    diagnostics = pd.read_csv(REPORTS / "curves" / "prototypes.csv").iloc[-1]
    names = ("alive", "alive_count", "assignment_entropy", "within", "between", "accuracy")
    stage2 = {name: float(diagnostics[name]) for name in names}
    metrics = {"preset": params.preset, **report, "prototypes": rounded(stage2)}
    if thresholds is not None:
        metrics["thresholds"] = dict(zip(data.collection.classes, thresholds.tolist(), strict=True))
    (REPORTS / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    for part, numbers in report.items():
        pointing = numbers["pointing_game"]
        flat = {name: value for name, value in numbers.items() if isinstance(value, float)}
        flat |= {f"pointing_{name}": value for name, value in pointing.items() if value is not None}
        log_metrics(part, flat)
    log_file(REPORTS / "metrics.json", "reports")


def _write_predictions(data: PreparedSet, predictions: Predictions, thresholds: np.ndarray | None) -> None:
    if data.collection.task == "concepts":
        return
    truth = data.collection.truth()[predictions.rows]
    part = data.collection.studies["part"].to_numpy()[predictions.rows]
    classes, plots = data.collection.classes, REPORTS / "plots"
    curves = {}
    for name in data.collection.test_parts():
        own = part == name
        if thresholds is None:
            write_confusion(truth[own], predictions.probabilities[own], classes, plots, name)
        else:
            write_operating_points(truth[own], predictions.probabilities[own], thresholds, classes, plots, name)
        curves[name] = risk_coverage(truth[own], predictions.probabilities[own], thresholds)
    write_risk_coverage(curves, REPORTS / "plots")


@torch.no_grad()
def _draw_montage(
    data: PreparedSet,
    cache: FeatureCache,
    csr: TrainedCSR,
    predictions: Predictions,
    count: int,
) -> None:
    """Draws the first test studies of each class (of each concept where there is none) in turn: neither the best nor
    the worst are picked."""
    collection = data.collection
    kinds = collection.class_indicators() if collection.classes else collection.concept_labels()
    chosen = _first_of_each(kinds[predictions.rows] == 1, count)
    rows = predictions.rows[chosen]
    csr = csr.to(device())
    features, _ = cache.batch(rows, csr.place)
    maps = csr.reasoner(csr.project(features)).concept_maps.cpu().numpy()
    assert predictions.concepts is not None
    write_montage(
        data,
        rows.tolist(),
        predictions.probabilities[chosen],
        predictions.concepts[chosen],
        maps,
        REPORTS / "montage.png",
    )


def _first_of_each(has: np.ndarray, count: int) -> np.ndarray:
    """Positions of up to ``count`` of N×T studies: the first of every kind, then the second of every kind, and so on;
    each study once."""
    kinds = [np.flatnonzero(own).tolist() for own in has.T]
    turns = chain.from_iterable(zip_longest(*kinds))
    return np.array(list(dict.fromkeys(row for row in turns if row is not None))[:count], int)


if __name__ == "__main__":
    run_stage("evaluate", evaluate)
