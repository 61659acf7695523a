"""Stage ``forms_report``: what stage ``forms`` has found, as ``reports/forms.md`` and ``reports/forms.html``.

python -m pipelines.comparison.forms_report
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from csr.comparison.forms import RECIPES, forms_of
from csr.comparison.report import spread
from csr.data.html_report import Section, Table
from csr.data.prepared import PreparedSet
from csr.errors import DataError
from pipelines.comparison.forms import CLUSTERS, FOLDER
from pipelines.comparison.writing import write_report
from pipelines.params import Params
from pipelines.stage import PREPARED

Report = dict[str, Any]


def build(params: Params) -> tuple[str, list[Section]]:
    """The report's title and sections.

    Raises:
        DataError: the set has no forms, or a seed is missing.
    """
    data = PreparedSet.open(PREPARED)
    forms_of(data.collection)
    reports = []
    for seed in params.comparison.seeds:
        file = FOLDER / f"{seed}.json"
        if not file.is_file():
            raise DataError(f"{file}: missing; run python -m pipelines.comparison.forms concepts_lse {seed} first")
        reports.append(json.loads(file.read_text()))
    return "Two forms a concept", [
        _setting(params, data),
        _sorting(reports),
        _rare(reports),
        _by_concept(reports, data.collection.concepts),
    ]


def _setting(params: Params, data: PreparedSet) -> Section:
    collection, config = data.collection, params.concepts
    forms = forms_of(collection)
    counts = [
        f"{split} {len(collection.rows(split))} studies with {int((own == 0).sum())} findings of the first form and "
        f"{int((own == 1).sum())} of the second"
        for split in ("train", "val", "test")
        for own in (forms[collection.rows(split)],)
    ]
    text = (
        f"A phantom in which every concept has two forms, the second in {params.data.phantom.forms:.0%} of its studies "
        f"(csr.data.phantom.forms), in images of {data.side}² pixels: {'; '.join(counts)}. No label tells the form and "
        f"nothing was trained on it. Stage 1: {config.model.backbone} from random weights, {config.epochs} epochs, "
        f"seeds {', '.join(map(str, params.comparison.seeds))}; stages 2 and 3 by the robust recipe but for what a row "
        "says. Both test halves together, unless named. Nothing was chosen on them."
    )
    return Section("Setting", (text,))


def _sorting(reports: Sequence[Report]) -> Section:
    measures = ("purity", "coverage", "recall", "precision")
    rows = [
        (
            _title(reports, name),
            spread([each["recipes"][name]["alive"] for each in reports], 1),
            *_sorted_cells([each["recipes"][name]["sorting"] for each in reports], measures),
            spread([_mean(each["recipes"][name]["probe"]) for each in reports]),
        )
        for name in RECIPES
    ]
    for kind, title in (("raw", "k-means of the features"), ("projected", "k-means after the robust projector")):
        found = [each["clusters"][kind] for each in reports]
        probe = [_mean(each["probe"] if kind == "raw" else each["recipes"]["robust"]["probe"]) for each in reports]
        rows.append((f"{title}, {CLUSTERS} a concept", "–", *_sorted_cells(found, measures), spread(probe)))
    note = (
        "A finding is won by the live prototype of its concept that is nearest to its local concept vector. Prototypes "
        "are named by the form of most training findings that they win, and judged on test findings: purity is the "
        "share whose prototype has the name of their form, coverage the share of forms with a prototype of their own, "
        "recall the share of findings of the second form that go to prototypes of that form, precision the share of "
        "the second form among what these win. In brackets: the mean of 200 shuffles of the training findings' forms "
        "within each concept, and the 97.5 % percentile. Probe: mean AUROC of a logistic regression that is told the "
        "forms, on the same vectors after the projector (features: before it)."
    )
    columns = ("recipe", "live prototypes", "purity", "coverage", "recall", "precision", "probe")
    return Section("Do prototypes find the forms?", (note,), (Table("", columns, rows),))


def _rare(reports: Sequence[Report]) -> Section:
    rows = []
    parts = list(reports[0]["recipes"]["robust"]["parts"])
    for name in RECIPES:
        own = [each["recipes"][name] for each in reports]
        scores = [[each["parts"][part]["macro_f1"] for each in own] for part in parts]
        scores += [
            [each["by_form"][form][key] for each in own] for key in ("concept_auroc", "pointing") for form in (0, 1)
        ]
        rows.append((_title(reports, name), *map(spread, scores)))
    counts = reports[0]["recipes"]["robust"]["by_form"]
    note = (
        f"{counts[0]['findings']} findings of the first form, {counts[1]['findings']} of the second, each against the "
        "studies without the concept."
    )
    columns = (
        "recipe",
        *(f"F1, {part}" for part in parts),
        *(f"{name}, {form} form" for name in ("concept AUROC", "pointing") for form in ("first", "second")),
    )
    return Section("What the rare form costs", (note,), (Table("", columns, rows),))


def _by_concept(reports: Sequence[Report], concepts: Sequence[str]) -> Section:
    rows = []
    for k, concept in enumerate(concepts):
        own = [each["recipes"]["robust"] for each in reports]
        rows.append(
            (
                concept,
                spread([each["probe"][k] for each in reports]),
                spread([each["probe"][k] for each in own]),
                *(
                    spread([each["recipes"][name]["sorting"]["recall_by_concept"][k] for each in reports])
                    for name in ("robust", "hard_assignment", "auto")
                ),
                *(
                    spread([each["by_form"][form][f"{key}_by_concept"][k] for each in own])
                    for key in ("concept_auroc", "pointing")
                    for form in (0, 1)
                ),
            )
        )
    columns = (
        "concept",
        "probe, features",
        "probe, projected",
        *(f"recall, {name}" for name in ("robust", "γ = 1000", "M by rule")),
        *(f"{name}, {form} form" for name in ("AUROC", "pointing") for form in ("first", "second")),
    )
    return Section(
        "Concept by concept", ("The last four columns are the robust recipe's.",), (Table("", columns, rows),)
    )


def _title(reports: Sequence[Report], name: str) -> str:
    own = [each["recipes"][name] for each in reports]
    numbers = sorted({each["per_concept"] for each in own})
    return f"{own[0]['title']} (M = {', '.join(map(str, numbers))})" if name in ("robust", "auto") else own[0]["title"]


def _sorted_cells(found: Sequence[Report], measures: Sequence[str]) -> list[str]:
    return [
        f"{spread([each[name] for each in found])} ({spread([each[f'{name}_chance'] for each in found])}, "
        f"{spread([each[f'{name}_high'] for each in found])})"
        for name in measures
    ]


def _mean(values: Sequence[float | None]) -> float:
    return float(np.mean([value for value in values if value is not None]))


def main() -> None:
    """Writes the report."""
    write_report("forms_report", build, folder=FOLDER)


if __name__ == "__main__":
    main()
