"""Gates applied: non-inferiority with a margin, on the same studies, with a bootstrap interval.

A candidate passes a gate only if the data speak for it: the one-sided bound of its value, or of its difference from the
champion's, lies on the good side of the limit or the margin. A candidate that is truly worse by the margin then passes
with a chance of at most `Gates.error`, whatever the other gates say; that all must pass makes this no larger (an
intersection-union test, Berger 1982). The price is power: with few studies even a good candidate may not be able to
show it, and stays outside. A bare difference would promote every second candidate that is as much worse as the margin.

Differences are paired: both bundles answer the same studies, and a resample of patients is the same for both.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from csr.errors import ConfigError
from csr.evaluation.bootstrap import Interval, weighted_interval
from pipelines.promotion.gates import COSTS, EVERY, GATES_FILE, READINGS, Gate, Gates
from pipelines.promotion.judging import Answers, Studies
from pipelines.promotion.measures import MEASURES, Measure, Weighted, answers_on, chosen, class_f1

GOLDEN = "golden case"


@dataclass(frozen=True)
class Judged:
    """Some studies, and what both bundles say of them; ``champion`` is None before the first promotion."""

    studies: Studies
    candidate: Answers
    champion: Answers | None


@dataclass(frozen=True)
class Cost:
    """A cost of both bundles: the candidate's, the champion's, and the interval of their ratio."""

    candidate: float
    champion: float | None
    ratio: Interval | None


@dataclass(frozen=True)
class Verdict:
    """What a gate says.

    Args:
        measure: its title.
        where: the part, class or site.
        better: whether more or less is better; empty for what is not compared so.
        candidate: its value, with the interval that the error rate asks for.
        champion: its value.
        difference: candidate − champion, or candidate / champion of costs.
        limit, margin: the gate's.
        passed: whether it holds.
        reason: a sentence if it does not hold, or had nothing to judge.
    """

    measure: str
    where: str
    better: str
    candidate: Interval | None
    champion: float | None
    difference: Interval | None
    limit: float | None
    margin: float | None
    passed: bool
    reason: str = ""


def apply_gates(
    gates: Gates, judged: Judged, readings: Judged | None, costs: Mapping[str, Cost], golden: float
) -> list[Verdict]:
    """Every gate on every part, class and site that it names.

    Args:
        judged: on the judging set.
        readings: on signed readings; None if there are none.
        costs: by the names of `COSTS`.
        golden: the golden case's error on this machine.

    Raises:
        ConfigError: a gate names a part that the judging set does not have.
    """
    verdicts = [_golden(golden, gates.golden_tolerance)]
    for gate in gates.gates:
        if gate.measure in COSTS:
            verdicts.append(_cost(gate, costs[gate.measure]))
        elif gate.part == READINGS and readings is None:
            reason = "nobody has signed a reading that could be replayed"
            verdicts.append(
                Verdict(MEASURES[gate.measure].title, READINGS, "", None, None, None, None, None, True, reason)
            )
        else:
            own = readings if gate.part == READINGS and readings else judged
            verdicts += [_verdict(gates, gate, own, *group) for group in _groups(gate, own.studies)]
    return verdicts


def _groups(gate: Gate, studies: Studies) -> Iterator[tuple[str, Measure, np.ndarray]]:
    """Name, measure and rows of all that a gate judges by itself."""
    names = list(dict.fromkeys(studies.parts.tolist()))
    if gate.part not in (EVERY, *names):
        raise ConfigError(f"{GATES_FILE}: part {gate.part!r} is none of {', '.join(names)}")
    for part in names if gate.part == EVERY else [gate.part]:
        rows = np.flatnonzero(studies.parts == part)
        if gate.by == "class":
            yield from _classes(gate, studies, part, rows)
        elif gate.by == "site":
            yield from _sites(gate, studies, part, rows)
        else:
            yield part, MEASURES[gate.measure], rows


def _classes(gate: Gate, studies: Studies, part: str, rows: np.ndarray) -> Iterator[tuple[str, Measure, np.ndarray]]:
    truth = studies.truth[rows]
    for index, name in enumerate(studies.classes):
        present = truth == index if truth.ndim == 1 else truth[:, index] == 1
        if present.sum() >= gate.least:
            yield f"{name}, {part}", class_f1(index), rows


def _sites(gate: Gate, studies: Studies, part: str, rows: np.ndarray) -> Iterator[tuple[str, Measure, np.ndarray]]:
    for site in sorted(set(studies.sites[rows].tolist()) - {""}):
        own = rows[studies.sites[rows] == site]
        if len(own) >= gate.least:
            yield f"site {site}, {part}", MEASURES[gate.measure], own


def _verdict(gates: Gates, gate: Gate, judged: Judged, where: str, measure: Measure, rows: np.ndarray) -> Verdict:
    studies = chosen(judged.studies, rows)
    own = measure.of(studies, answers_on(judged.candidate, rows))
    candidate = _interval(gates, studies, own)
    champion, difference = None, None
    if judged.champion is not None:
        other = measure.of(studies, answers_on(judged.champion, rows))
        champion = float(other(np.ones((1, len(rows))))[0])
        difference = _interval(gates, studies, lambda weights: own(weights) - other(weights))
    sign = 1 if measure.better == "more" else -1
    reasons = []
    if gate.limit is not None and not sign * _worst(candidate, sign) >= sign * gate.limit:
        reasons.append(f"the worst that the data allow, {_worst(candidate, sign):.3f}, is beyond the limit")
    if gate.margin is not None and difference is not None and not sign * _worst(difference, sign) >= -gate.margin:
        reasons.append(f"the data allow it to be {-sign * _worst(difference, sign):.3f} worse than the champion")
    return Verdict(
        measure.title, where, measure.better, candidate, champion, difference, gate.limit, gate.margin,
        not reasons, "; ".join(reasons),
    )  # fmt: skip


def _interval(gates: Gates, studies: Studies, measure: Weighted) -> Interval:
    return weighted_interval(measure, len(studies.parts), gates.draws, clusters=studies.patients, tail=gates.error)


def _worst(interval: Interval, sign: int) -> float:
    return interval.low if sign > 0 else interval.high


def _cost(gate: Gate, cost: Cost) -> Verdict:
    title = {"encode_ms": "time to encode an image, ms", "bundle_mb": "size of the bundle, MB"}[gate.measure]
    reasons = []
    if gate.limit is not None and not cost.candidate <= gate.limit:
        reasons.append("above the limit")
    if gate.margin is not None and cost.ratio is not None and not cost.ratio.high <= gate.margin:
        reasons.append(f"the data allow it to be {cost.ratio.high:.2f} times the champion's")
    value = Interval(cost.candidate, cost.candidate, cost.candidate)
    return Verdict(
        title, "bundle", "less", value, cost.champion, cost.ratio, gate.limit, gate.margin, not reasons,
        "; ".join(reasons),
    )  # fmt: skip


def _golden(error: float, tolerance: float) -> Verdict:
    passed = error <= tolerance
    value = Interval(error, error, error)
    reason = "" if passed else "this machine does not compute what the export computed"
    return Verdict(GOLDEN, "bundle", "less", value, None, None, tolerance, None, passed, reason)
