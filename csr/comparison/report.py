"""The report of a comparison: every system beside CSR's robust preset, on every test part, over the seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from csr.comparison.published import PUBLISHED
from csr.comparison.runs import Runs
from csr.data.decisions import decide
from csr.data.html_report import Section, Table
from csr.data.records import Collection
from csr.errors import DataError
from csr.evaluation.bootstrap import Difference, holm, paired_bootstrap, paired_ratio_bootstrap
from csr.evaluation.calibration import (
    apply_temperature,
    expected_calibration_error,
    fit_temperature,
    probability_logits,
    risk_coverage,
)
from csr.evaluation.evaluate import RARE, rare_classes
from csr.evaluation.leakage import leakage
from csr.evaluation.pointing import inside
from csr.evaluation.predictions import Predictions
from csr.evaluation.thresholds import validation_f1, validation_thresholds

OURS = "csr_robust"
BELOW = 0.01  # of F1: a few hundred validation studies do not tell less apart
KEPT = 0.8  # coverage at which the abstain table is read
_SEVERAL = {"mean_average_precision": "mAP", "rare_f1": "F1, rare"}  # columns where a study can have several classes


def main_sections(collection: Collection, runs: Mapping[str, Runs], left_out: Sequence[str] = ()) -> list[Section]:
    """Accuracy and pointing on every test part, cost, calibration, leakage, and the paper's own numbers.

    A system that starts from another and ends clearly below it is no row of these tables: its training failed here, and
    what it would be compared with is that failure. Its figures are in a section of their own.

    Args:
        runs: by system; `OURS` must be among them.
        left_out: why systems are not among them: `csr.baselines.protocol.refusal`, or they have not been run.

    Raises:
        DataError: a system has other seeds than `OURS`, or was judged on other studies.
    """
    _check_paired(runs)
    parts = collection.test_parts()
    failed = below_start(collection, runs)
    shown = {name: each for name, each in runs.items() if name not in failed}
    return [
        *(_part_section(collection, shown, part) for part in parts),
        *([Section("Left out", tuple(f"{reason}." for reason in left_out))] if left_out else []),
        *_failed_section(runs, failed, parts),
        _cost_section(shown),
        _calibration_section(collection, shown, parts),
        _leakage_section(collection, shown, parts),
        published_section(),
    ]


def below_start(collection: Collection, runs: Mapping[str, Runs]) -> dict[str, tuple[list[float], list[float]]]:
    """Systems whose mean macro F1 on the validation split is below that of the system that they start from by more than
    `BELOW`: the F1 of each seed, and its start's."""
    found = {}
    for name, each in runs.items():
        if each.start is not None and each.start in runs:
            own, start = (_validation_f1(collection, one) for one in (each, runs[each.start]))
            if statistics.mean(own) < statistics.mean(start) - BELOW:
                found[name] = own, start
    return found


def _validation_f1(collection: Collection, runs: Runs) -> list[float]:
    return [validation_f1(collection.truth()[each.rows], each.probabilities) for each in runs.validation]


def _failed_section(
    runs: Mapping[str, Runs], failed: Mapping[str, tuple[list[float], list[float]]], parts: Sequence[str]
) -> list[Section]:
    if not failed:
        return []
    note = (
        "These systems start from another that has been trained, and end below it on the validation split by more than "
        f"{100 * BELOW:g} point of macro F1. They are in no table above."
    )
    rows = []
    for name, (own, start) in failed.items():
        each = runs[name]
        assert each.start is not None
        figures: list[str] = []
        for part in parts:
            judged = [report[part] for report in each.reports]
            figures.append(spread([one["macro_f1"] for one in judged]))
            figures.append(spread([one["pointing_game"]["pair"] for one in judged]))
        rows.append((each.title, spread(own), runs[each.start].title, spread(start), *figures))
    of_parts = (f"{name}, {part}" for part in parts for name in ("macro F1", "pointing, pair"))
    columns = ("system", "validation F1", "its start", "validation F1 of its start", *of_parts)
    return [Section("Below their own start", (note,), (Table("", columns, rows),))]


def published_section() -> Section:
    """The paper's tables."""
    columns = ("system", "TBX11K F1", "VinDr-CXR F1", "ISIC-2017 F1", "prototypes", "explanations", "pointing game")
    rows = [(row.system, *map(_printed, row[1:])) for row in PUBLISHED]
    note = (
        "As the CSR paper prints them, in percent; its data sets, backbone and budget are others, so columns compare "
        "within a table, not across."
    )
    return Section("What the paper reports", (note,), (Table("", columns, rows),))


def f1_difference(collection: Collection, ours: Runs, theirs: Runs, part: str) -> Difference:
    """Ours − theirs in macro F1 on one test part, patients resampled."""
    rows, chosen = _part_rows(collection, ours, part)
    own, other = (_decisions(collection, runs, chosen) for runs in (ours, theirs))
    truth, patients = collection.truth()[rows], collection.patients()[rows]
    return paired_bootstrap(truth, own, other, len(collection.classes), clusters=patients)


def _decisions(collection: Collection, runs: Runs, chosen: np.ndarray) -> np.ndarray:
    """What every seed says of the chosen test studies: S×n indices, or S×n×T where a study can have several classes."""
    several = collection.task == "multilabel"
    pairs = zip(runs.validation, runs.test, strict=True)
    said = [
        decide(test.probabilities[chosen], several, validation_thresholds(collection, validation))
        for validation, test in pairs
    ]
    return np.stack(said)


def pointing_difference(collection: Collection, ours: Runs, theirs: Runs, part: str) -> Difference | None:
    """Ours − theirs in the pointing game per pair, patients resampled; None if a system has no maps or no box is."""
    rows, chosen = _part_rows(collection, ours, part)
    boxes = collection.boxes_by_pair()
    if any(p.peaks is None for runs in (ours, theirs) for p in runs.test):
        return None
    pairs = [[k for k in range(len(collection.concepts)) if (int(row), k) in boxes] for row in rows]
    counts = np.array([len(own) for own in pairs], np.float64)
    if not counts.any():
        return None

    def hits(predictions: Predictions) -> list[float]:
        assert predictions.peaks is not None
        peaks = predictions.peaks[chosen]
        return [
            float(sum(inside(peaks[i, k], boxes[int(row), k]) for k in own))
            for i, (row, own) in enumerate(zip(rows, pairs, strict=True))
        ]

    own, other = (np.array([hits(p) for p in runs.test]) for runs in (ours, theirs))
    return paired_ratio_bootstrap(own, other, counts, clusters=collection.patients()[rows])


def _part_section(collection: Collection, runs: Mapping[str, Runs], part: str) -> Section:
    ours = runs[OURS]
    levels = ours.reports[0][part]["pointing_game"]
    seeds = ", ".join(str(report["seed"]) for report in ours.reports)
    note = f"{ours.reports[0][part]['studies']} studies, seeds {seeds}: mean ± standard deviation over the seeds."
    if levels["pairs"]:
        note += (
            f" Pointing game over {levels['pairs']} (image, concept) pairs, tolerance 0: "
            f"chance {levels['chance']:.3f}, the concept's mean position {levels['centre']:.3f}."
        )
    note += (
        f" Δ is {ours.title} minus the system, with a 95 % interval over "
        f"{resampled(collection, len(ours.reports), part)} "
        "(csr.evaluation.bootstrap); a star says that it is beyond 0 among all systems of the column (Holm, 5 %)."
    )
    more = _SEVERAL if collection.task == "multilabel" else {}
    if more:
        note += " " + _several_note(collection)
    columns = (
        "system",
        "macro F1",
        "Δ F1",
        "AUROC",
        *more.values(),
        "concept AUROC",
        "pointing, pair",
        "Δ pointing",
        "pointing, image",
        "prototypes",
        "explanations",
    )
    rivals = {name: each for name, each in runs.items() if name != OURS}
    f1 = intervals({name: f1_difference(collection, ours, each, part) for name, each in rivals.items()})
    pointing = intervals({name: pointing_difference(collection, ours, each, part) for name, each in rivals.items()})
    rows = []
    for name, each in runs.items():
        own = [report[part] for report in each.reports]
        rows.append(
            (
                each.title,
                spread([report["macro_f1"] for report in own]),
                f1.get(name, ""),
                spread([report["auroc"] for report in own]),
                *(spread([report[name] for report in own]) for name in more),
                spread([report["concept_auroc"] for report in own]),
                spread([report["pointing_game"]["pair"] for report in own]),
                pointing.get(name, ""),
                spread([report["pointing_game"]["image"] for report in own]),
                f"{statistics.mean(report['prototypes'] for report in each.reports):.0f}",
                f"{statistics.mean(report['explanations'] for report in each.reports):.1f}",
            )
        )
    return Section(f"Test part: {part}", (note,), (Table("", columns, rows),))


def _several_note(collection: Collection) -> str:
    """What the columns of `_SEVERAL` and the thresholds are."""
    rare = [collection.classes[t] for t in rare_classes(collection)]
    which = f"that is {', '.join(rare)}" if rare else "there is none"
    return (
        "A study can have several classes: each is decided at a threshold of its own, which every system alike chooses "
        "on the validation split (the whole percent with the largest F1). mAP is the mean average precision. A class "
        f"is rare if fewer than {RARE:.0%} of the training studies have it: {which}."
    )


def resampled(collection: Collection, seeds: int, part: str | None = None) -> str:
    """What an interval is over in a test part, or in all: seeds, and patients with all of their studies, which are
    dependent."""
    patients = collection.patients()[collection.rows("test", part)]
    several = len(set(patients)) < len(patients)
    units = f"the {len(set(patients))} patients (each with all their studies)" if several else "studies"
    return f"{units} and seeds" if seeds > 1 else f"{units} alone"


def _cost_section(runs: Mapping[str, Runs]) -> Section:
    base = next((each.latency for name, each in runs.items() if name == "black_box"), None)
    rows = []
    for each in runs.values():
        ratio = f"{each.latency / base:.2f}" if each.latency and base else "–"
        seconds = f"{1000 * each.latency:.1f}" if each.latency else "–"
        parameters = statistics.mean(report["parameters"] for report in each.reports)
        rows.append(
            (
                each.title,
                spread([report["seconds"] for report in each.reports], 0),
                f"{parameters:,.0f}",
                seconds,
                ratio,
            )
        )
    note = (
        "Training seconds include the shared backbone that a system rests on and the computing of its features; they "
        "are upper bounds where systems were trained beside each other. Latency is the median of one whole answer to "
        "one image, the systems measured in turns and in one memory format (channels last); the ratio is to the black "
        "box."
    )
    columns = ("system", "training, s", "parameters", "latency, ms", "ratio")
    return Section("Cost", (note,), (Table("", columns, rows),))


def _calibration_section(collection: Collection, runs: Mapping[str, Runs], parts: Sequence[str]) -> Section:
    note = (
        "Expected calibration error (15 bins) of the probabilities as a system gives them (CSR brings a temperature of "
        "its own, fitted on the validation split), and with one temperature fitted there for every system alike. AURC "
        "is the area under the risk-coverage curve of abstaining by confidence; the last column is the share of errors "
        f"among the {KEPT:.0%} of studies that a system is surest of."
    )
    if collection.task == "multilabel":
        note += (
            " ECE and temperature are of single classes; abstaining is of whole studies, whose answer is wrong if any "
            "class is."
        )
    columns = ("system", "ECE", "ECE, calibrated", "temperature", "AURC", f"error at {KEPT:.0%}")
    tables = []
    for part in parts:
        rows = []
        for each in runs.values():
            values = [
                _calibrate(collection, val, test, part) for val, test in zip(each.validation, each.test, strict=True)
            ]
            rows.append((each.title, *(spread(list(column)) for column in zip(*values, strict=True))))
        tables.append(Table(part, columns, rows))
    return Section("Calibration and abstaining", (note,), tuple(tables))


def _calibrate(collection: Collection, validation: Predictions, test: Predictions, part: str) -> tuple[float, ...]:
    truth, several = collection.truth(), collection.task == "multilabel"
    logits = probability_logits(validation.probabilities, several)
    temperature = fit_temperature(logits, truth[validation.rows])
    recalibrated = apply_temperature(validation.probabilities, temperature, several)
    thresholds = validation_thresholds(collection, replace(validation, probabilities=recalibrated))
    chosen = np.isin(test.rows, collection.rows("test", part))
    own, probabilities = truth[test.rows[chosen]], test.probabilities[chosen]
    calibrated = apply_temperature(probabilities, temperature, several)
    curve = risk_coverage(own, calibrated, thresholds)
    kept = int(np.searchsorted(curve.coverage, KEPT))
    return (
        expected_calibration_error(own, probabilities),
        expected_calibration_error(own, calibrated),
        temperature,
        curve.area,
        float(curve.risk[min(kept, len(curve.risk) - 1)]),
    )


def _leakage_section(collection: Collection, runs: Mapping[str, Runs], parts: Sequence[str]) -> Section:
    note = (
        "What the concept scores say about the class, and about each other, beyond what the true concept labels say "
        "(arXiv 2504.14094; 0: nothing). Only systems with concept scores."
    )
    rows = []
    for each in runs.values():
        if each.test[0].concepts is None:
            continue
        cells = []
        for part in parts:
            found = []
            for test in each.test:
                assert test.concepts is not None
                chosen = np.isin(test.rows, collection.rows("test", part))
                own = test.rows[chosen]
                found.append(leakage(test.concepts[chosen], collection.concept_labels()[own], collection.truth()[own]))
            cells += [spread([one.concepts_task for one in found]), spread([one.interconcept for one in found])]
        rows.append((each.title, *cells))
    columns = ("system", *(f"{name}, {part}" for part in parts for name in ("concepts-task", "interconcept")))
    return Section("Leakage", (note,), (Table("", columns, rows),))


def _check_paired(runs: Mapping[str, Runs]) -> None:
    """Refuses runs that cannot be compared seed by seed and study by study."""
    ours = runs[OURS]
    seeds, rows = [report["seed"] for report in ours.reports], ours.test[0].rows
    for each in runs.values():
        own = [report["seed"] for report in each.reports]
        if own != seeds:
            raise DataError(f"{each.title} has seeds {own}, {ours.title} {seeds}: run both with the same ones")
        if not all(np.array_equal(test.rows, rows) for test in each.test):
            raise DataError(f"{each.title} and {ours.title} were judged on different studies: run both again")


def _part_rows(collection: Collection, runs: Runs, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Rows of a part, and which of the predictions they are."""
    rows = runs.test[0].rows
    chosen = np.isin(rows, collection.rows("test", part))
    return rows[chosen], chosen


def spread(values: Sequence[float | None], digits: int = 3) -> str:
    """Mean ± standard deviation, or – if there is nothing."""
    known = [value for value in values if value is not None and value == value]
    if not known:
        return "–"
    deviation = f" ± {statistics.stdev(known):.{digits}f}" if len(known) > 1 else ""
    return f"{statistics.mean(known):.{digits}f}{deviation}"


def intervals(differences: Mapping[str, Difference | None]) -> dict[str, str]:
    """A column of them; a star is behind those that are significant among all of it."""
    adjusted = holm([float("nan") if each is None else each.p for each in differences.values()])
    pairs = zip(differences.items(), adjusted, strict=True)
    return {name: f"{interval(each)} *" if p < 0.05 else interval(each) for (name, each), p in pairs}


def interval(difference: Difference | None) -> str:
    """Mean and 95 % interval, or – if there is no difference to speak of; the mean alone where nothing tells how sure
    it is."""
    if difference is None:
        return "–"
    if math.isnan(difference.low):
        return f"{difference.mean:+.3f}"
    return f"{difference.mean:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}]"


def _printed(value: float | None) -> str:
    """A number as the paper prints it: percentages with one digit, counts with none."""
    return "–" if value is None else f"{value:.1f}" if isinstance(value, float) else str(value)
