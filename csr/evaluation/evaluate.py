"""How any system is judged: predictions on test rows → macro F1, AUROC, calibration, pointing game, part by part.

All of them end in `csr.evaluation.predictions.Predictions`, so one table holds them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from csr.data.records import Collection
from csr.evaluation.calibration import expected_calibration_error, risk_coverage
from csr.evaluation.metrics import decide, macro_auroc, macro_f1, mean_auroc
from csr.evaluation.pointing import Pointing, mean_box_centres, pointing_game
from csr.evaluation.predictions import Predictions

CLASS_METRICS = ("macro_f1", "auroc", "ece", "aurc")


def evaluate_predictions(collection: Collection, predictions: Predictions, side: int) -> dict[str, dict[str, Any]]:
    """The report, for each part that the predicted rows belong to.

    A part has ``studies, macro_f1, auroc, ece, aurc, concept_auroc`` and ``pointing_game``. ``ece`` is the expected
    calibration error of the class probabilities, ``aurc`` the area under the risk-coverage curve of abstaining by
    confidence (`csr.evaluation.calibration`); of both, less is better.
    ``pointing_game`` holds ``pair, image, chance, centre`` and ``pairs``; see `csr.evaluation.pointing.Pointing`.
    Numbers that a system or data set cannot have (no classes, no concepts, no maps, no boxes) are None.
    """
    return {part: _evaluate_part(collection, predictions, side, part)[0] for part in _parts(collection, predictions)}


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
    collection: Collection, predictions: Predictions, side: int, part: str
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
        **(_evaluate_classes(truth, probabilities) if collection.classes else dict.fromkeys(CLASS_METRICS)),
        "concept_auroc": concept_auroc,
        "pointing_game": {
            name: getattr(pointing, name) if pointing else None
            for name in ("pair", "image", "chance", "centre", "pairs")
        },
    }
    return rounded(report), pointing


def _evaluate_classes(truth: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    values = (
        macro_f1(truth, decide(probabilities, truth.ndim == 2), probabilities.shape[1]),
        macro_auroc(truth, probabilities),
        expected_calibration_error(truth, probabilities),
        risk_coverage(truth, probabilities).area,
    )
    return dict(zip(CLASS_METRICS, values, strict=True))


def rounded(value: Any) -> Any:
    """Floats to six digits and NaN to None, recursively, so that reports are stable and valid JSON."""
    if isinstance(value, Mapping):
        return {key: rounded(inner) for key, inner in value.items()}
    if isinstance(value, float):
        return None if np.isnan(value) else round(value, 6)
    return value
