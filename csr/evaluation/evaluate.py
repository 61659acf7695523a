"""How any system is judged: predictions on test rows → macro F1, AUROC, calibration, pointing game, part by part.

All of them end in `csr.evaluation.predictions.Predictions`, so one table holds them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from csr.data.decisions import decide
from csr.data.records import Collection
from csr.evaluation.calibration import expected_calibration_error, risk_coverage
from csr.evaluation.metrics import class_f1, macro_auroc, macro_f1, mean_auroc, mean_average_precision
from csr.evaluation.pointing import Pointing, mean_box_centres, pointing_game
from csr.evaluation.predictions import Predictions

CLASS_METRICS = ("macro_f1", "auroc", "ece", "aurc")
RARE = 0.05  # a class is rare if fewer of the training studies that are known in this have it


def evaluate_predictions(
    collection: Collection, predictions: Predictions, side: int, thresholds: np.ndarray | None = None
) -> dict[str, dict[str, Any]]:
    """The report, for each part that the predicted rows belong to.

    A part has ``studies, macro_f1, auroc, ece, aurc, concept_auroc`` and ``pointing_game``. ``ece`` is the expected
    calibration error of the class probabilities, ``aurc`` the area under the risk-coverage curve of abstaining by
    confidence (`csr.evaluation.calibration`); of both, less is better.
    ``pointing_game`` holds ``pair, image, chance, centre`` and ``pairs``; see `csr.evaluation.pointing.Pointing`.
    Where a study can have several classes, a part has ``mean_average_precision`` and ``rare_f1``, too, the mean F1 of
    the `rare_classes`. Numbers that a system or data set cannot have (no classes, no concepts, no maps, no boxes) are
    None.

    Args:
        side: of the square images, in pixels.
        thresholds: T, from which on a class is there, where a study can have several: chosen on split ``val``
            (`csr.evaluation.thresholds`); None: a half.
    """
    return {
        part: _evaluate_part(collection, predictions, side, part, thresholds)[0]
        for part in _parts(collection, predictions)
    }


def rare_classes(collection: Collection) -> list[int]:
    """Indices of the classes whose share of the training studies is below `RARE`, unknown ones left out."""
    train = collection.class_indicators()[collection.rows("train")]
    known = (~np.isnan(train)).sum(0)
    share = np.divide((train == 1).sum(0), known, out=np.zeros(len(known)), where=known > 0)
    return np.flatnonzero(share < RARE).tolist()


def pointing_by_concept(collection: Collection, predictions: Predictions, side: int) -> list[dict[str, Any]]:
    """One row a test part and concept: ``part, concept, pairs, pointing_game, chance, centre``; without concepts that
    have no box."""
    rows = []
    for part in _parts(collection, predictions):
        _, pointing = _evaluate_part(collection, predictions, side, part)
        if pointing is not None:
            for k in np.flatnonzero(pointing.pairs_by_concept):
                levels = {
                    "pointing_game": pointing.by_concept[k],
                    "chance": pointing.chance_by_concept[k],
                    "centre": pointing.centre_by_concept[k],
                }
                about = {"part": part, "concept": collection.concepts[k], "pairs": int(pointing.pairs_by_concept[k])}
                rows.append(about | {name: round(float(value), 6) for name, value in levels.items()})
    return rows


def _parts(collection: Collection, predictions: Predictions) -> list[str]:
    """Names of the parts of the predicted rows, in the order in which they appear."""
    return list(dict.fromkeys(collection.studies["part"].iloc[predictions.rows]))


def _evaluate_part(
    collection: Collection, predictions: Predictions, side: int, part: str, thresholds: np.ndarray | None = None
) -> tuple[dict[str, Any], Pointing | None]:
    chosen = collection.studies["part"].to_numpy()[predictions.rows] == part
    rows = predictions.rows[chosen]
    truth = collection.truth()[rows]
    probabilities = predictions.probabilities[chosen]
    pointing = None
    if predictions.peaks is not None:
        boxes = collection.boxes_by_pair()
        centres = mean_box_centres(boxes, collection.rows("train"), len(collection.concepts), side)
        pointing = pointing_game(predictions.peaks[chosen], boxes, rows, centres, side)
    concept_auroc = None
    if predictions.concepts is not None:
        concept_auroc = mean_auroc(collection.concept_labels()[rows], predictions.concepts[chosen])
    report = {
        "studies": len(rows),
        **_evaluate_classes(collection, truth, probabilities, thresholds),
        "concept_auroc": concept_auroc,
        "pointing_game": {
            name: getattr(pointing, name) if pointing else None
            for name in ("pair", "image", "chance", "centre", "pairs")
        },
    }
    return rounded(report), pointing


def _evaluate_classes(
    collection: Collection, truth: np.ndarray, probabilities: np.ndarray, thresholds: np.ndarray | None
) -> dict[str, float | None]:
    if not collection.classes:
        return dict.fromkeys(CLASS_METRICS)
    several = collection.task == "multilabel"
    said = decide(probabilities, several, thresholds)
    values = (
        macro_f1(truth, said, probabilities.shape[1]),
        macro_auroc(truth, probabilities),
        expected_calibration_error(truth, probabilities),
        risk_coverage(truth, probabilities, thresholds).area,
    )
    report: dict[str, float | None] = dict(zip(CLASS_METRICS, values, strict=True))
    if several:
        rare = rare_classes(collection)
        report["mean_average_precision"] = mean_average_precision(truth, probabilities)
        report["rare_f1"] = float(class_f1(truth[:, rare], said[:, rare]).mean()) if rare else None
    return report


def rounded(value: Any) -> Any:
    """Floats to six digits and NaN to None, recursively, so that reports are stable and valid JSON."""
    if isinstance(value, Mapping):
        return {key: rounded(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [rounded(inner) for inner in value]
    if isinstance(value, float):
        return None if np.isnan(value) else round(value, 6)
    return value
