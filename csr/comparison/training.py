"""How one compared system is trained and judged."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

from csr.baselines.protocol import Entry, ExperimentContext, System, predict, refusal
from csr.errors import DataError
from csr.evaluation.evaluate import evaluate_predictions
from csr.evaluation.predictions import Predictions
from csr.evaluation.thresholds import validation_thresholds


@dataclass(frozen=True)
class Result:
    """A trained system's answers and what it took.

    Args:
        about: ``prototypes, explanations`` (mean a test prediction), ``parameters, seconds``.
        validation, test: its predictions on the splits.
        report: of the test parts; see `csr.evaluation.evaluate.evaluate_predictions`.
    """

    about: dict[str, Any]
    validation: Predictions
    test: Predictions
    report: dict[str, dict[str, Any]]


def run_system(entry: Entry, context: ExperimentContext, shared_seconds: float = 0.0) -> tuple[System, Result]:
    """Trains one system and judges it, at thresholds chosen on split ``val`` where a study can have several classes.

    Args:
        shared_seconds: what the shared backbone and its features took; counted as part of the system's own time.

    Raises:
        DataError: the system is published for another task; see `csr.baselines.protocol.refusal`.
    """
    collection = context.data.collection
    if reason := refusal(entry, collection, context.text_scores is not None):
        raise DataError(f"{reason}: leave it out")
    start = time.perf_counter()
    system = entry.train(with_budget(entry, context))
    seconds = time.perf_counter() - start + shared_seconds
    validation = predict(system, context.data, collection.rows("val"))
    test = predict(system, context.data, collection.rows("test"))
    assert test.explanations is not None
    about = {
        "prototypes": system.prototypes,
        "explanations": float(test.explanations.mean()),
        "parameters": sum(parameter.numel() for parameter in system.parameters()),
        "seconds": seconds,
    }
    thresholds = validation_thresholds(collection, validation)
    report = evaluate_predictions(collection, test, context.data.side, thresholds)
    return system, Result(about, validation, test, report)


def with_budget(entry: Entry, context: ExperimentContext) -> ExperimentContext:
    """The context with the epochs that a system has: its share of the budget, or under a ``patience`` the whole cap."""
    config = context.config
    share = 1.0 if config.patience is not None else entry.epochs
    return replace(context, config=replace(config, epochs=max(2, round(share * config.epochs))))
