"""Whether a candidate may replace the champion: both bundles judged on the same test set, against gates from a file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from csr.bundle.format import Bundle
from csr.bundle.runtime import BundleRunner
from csr.data.prepared import PreparedSet
from csr.errors import BundleError, ConfigError
from csr.evaluation.evaluate import evaluate_predictions
from csr.evaluation.peaks import map_peaks
from csr.evaluation.predictions import Predictions
from csr.interaction.corrections import Interaction

GATES_FILE = Path("infra/promotion.yaml")


class Gate(BaseModel):
    """One condition; see the comments in ``infra/promotion.yaml``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    metric: str
    part: str = "*"
    minimum: float | None = None
    max_drop: float | None = None


class Gates(BaseModel):
    """The whole file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    gates: list[Gate]
    golden_tolerance: float = 1e-3


@dataclass(frozen=True)
class Verdict:
    """One gate's outcome on one test part."""

    metric: str
    part: str
    candidate: float | None
    champion: float | None
    passed: bool
    reason: str


def load_gates(file: Path = GATES_FILE) -> Gates:
    """Raises:
    ConfigError: the file is missing or not of the documented form.
    """
    try:
        return Gates.model_validate(yaml.safe_load(file.read_text()))
    except FileNotFoundError:
        raise ConfigError(f"{file}: missing; promotion needs gates") from None
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"{file}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def judge_bundle(bundle: Bundle, data: PreparedSet, threads: int = 1) -> tuple[dict[str, dict[str, Any]], float]:
    """Judges an exported bundle on the prepared test split, through ONNX Runtime as serving runs it.

    Returns:
        The report of `csr.evaluation.evaluate.evaluate_predictions` at the bundle's own thresholds, and the golden
        case's error on this machine.

    Raises:
        BundleError: the bundle's task or input is not the data set's.
    """
    about, collection = bundle.manifest, data.collection
    for name, own, wanted in (
        ("task", about.task, collection.task),
        ("classes", about.classes, collection.classes),
        ("concepts", about.concepts, collection.concepts),
        ("input", (about.channels, about.side), (data.channels, data.side)),
    ):
        if own != wanted:
            raise BundleError(
                f"{bundle.path}: its {name} {own} are not the data set's {wanted}, so the two cannot be compared; "
                "promote it by hand if the task was changed on purpose (python -m pipelines.registry promote)"
            )
    runner = BundleRunner(bundle, threads)
    rows = collection.rows("test")
    probabilities, concepts, peaks = [], [], []
    for start in range(0, len(rows), 16):
        images = np.ascontiguousarray(data.images[rows[start : start + 16]])
        answer = runner.reason(runner.encode(images), [Interaction()] * len(images))
        probabilities.append(answer["probabilities"])
        concepts.append(answer["concept_probabilities"])
        peaks.append(map_peaks(answer["concept_maps"], data.side))
    predictions = Predictions(rows, np.concatenate(probabilities), np.concatenate(concepts), np.concatenate(peaks))
    thresholds = None if about.thresholds is None else np.array(about.thresholds)
    return evaluate_predictions(collection, predictions, data.side, thresholds), runner.golden_error()


def apply_gates(
    gates: Gates, candidate: dict[str, dict[str, Any]], champion: dict[str, dict[str, Any]] | None, golden: float
) -> list[Verdict]:
    """Every gate on every part it names; a number that is missing fails its gate.

    Raises:
        ConfigError: a gate names a test part that the report does not have.
    """
    verdicts = [_golden_verdict(golden, gates.golden_tolerance)]
    for gate in gates.gates:
        if gate.part != "*" and gate.part not in candidate:
            raise ConfigError(f"{GATES_FILE}: part {gate.part!r} is none of {', '.join(candidate)}")
        for part in candidate if gate.part == "*" else (gate.part,):
            own = _lookup(candidate[part], gate.metric)
            other = _lookup(champion[part], gate.metric) if champion else None
            verdicts.append(_check(gate, part, own, other))
    return verdicts


def _check(gate: Gate, part: str, own: float | None, other: float | None) -> Verdict:
    passed, reason = True, "holds"
    if own is None:
        passed, reason = False, "the candidate has no such number"
    elif gate.minimum is not None and own < gate.minimum:
        passed, reason = False, f"below the minimum {gate.minimum}"
    elif gate.max_drop is not None and other is not None and own < other - gate.max_drop:
        passed, reason = False, f"falls more than {gate.max_drop} below the champion"
    return Verdict(gate.metric, part, own, other, passed, reason)


def _golden_verdict(golden: float, tolerance: float) -> Verdict:
    passed = golden <= tolerance
    return Verdict("golden_case", "-", golden, None, passed, "holds" if passed else f"above the tolerance {tolerance}")


def _lookup(report: dict[str, Any], metric: str) -> float | None:
    value: Any = report
    for name in metric.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value
