"""Stage ``claims_report``: what CSR can do that a CBM on the same stage 1 cannot: ``<folder>_claims.md`` and ``.html``.

    python -m pipelines.comparison.claims_report

It takes the seeds and folds that have been run, and says which.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from csr.comparison.few_shot import SYSTEMS
from csr.comparison.report import interval, spread
from csr.data.held_out import FOLDS
from csr.data.html_report import Section, Table
from csr.data.prepared import PreparedSet
from csr.data.records import Collection
from csr.errors import DataError
from csr.evaluation.bootstrap import (
    Interval,
    auroc_ratio_bootstrap,
    crossed_difference,
    paired_auroc_bootstrap,
    paired_mean_bootstrap,
)
from pipelines.comparison.common import BUILD
from pipelines.comparison.writing import write_report
from pipelines.params import Params
from pipelines.stage import PREPARED

RIVAL = "cbm_shared"
OURS = "csr"
FULL = "full"
CHANGED = 0.1  # of a probability, from which a rise or a fall counts
PROTOTYPE = ["concept", "prototype", "seed"]  # what tells one from another
TITLES = {"csr": "CSR", "cbm": "CBM on CSR's stage 1"}


def build(params: Params) -> tuple[str, list[Section]]:
    """The report's title and sections.

    Raises:
        DataError: there is nothing to report.
    """
    folder, seeds = params.comparison.folder, list(params.comparison.seeds)
    collection = PreparedSet.open(PREPARED).collection
    sections = [*_few_shot_sections(folder, collection, seeds), *_faithfulness_sections(folder, collection, seeds)]
    if not sections:
        raise DataError(f"{folder}: holds neither few_shot nor faithfulness; run these stages first")
    return f"What prototypes are for, on {collection.name}", sections


def _few_shot_sections(folder: Path, collection: Collection, seeds: list[int]) -> list[Section]:
    pairs = [(fold, seed) for seed in seeds for fold in range(FOLDS)]
    files = {(fold, seed): folder / "few_shot" / f"{fold}-{seed}.json" for fold, seed in pairs}
    reports = {key: json.loads(file.read_text()) for key, file in files.items() if file.is_file()}
    if not reports:
        return []
    lines = [line | {"seed": seed} for (_, seed), report in reports.items() for line in report["concepts"]]
    table = pd.DataFrame(lines)
    scores = {(fold, seed): BUILD / "few_shot" / f"{fold}-{seed}.npz" for fold, seed in reports}
    parts = collection.test_parts()
    names = list(dict.fromkeys(table["concept"]))
    counts = sorted(int(n) for n in table["n"].dropna().unique())
    shown = [_recognition(table, part, names, counts) for part in parts]
    if all(file.is_file() for file in scores.values()):
        shown += [_few_shot_intervals(collection, list(scores.values()), part, counts) for part in parts]
    shown += [_pointing(table, part, counts) for part in parts]
    runs = ", ".join(f"fold {fold} with seed {seed}" for fold, seed in reports)
    notes = (
        "Concepts are held out of CSR's stages 1 and 2 with their boxes, a fold (every third concept) at a time, and "
        "added from n boxed training images and as many that lack them (csr/comparison/few_shot.py says how each way "
        f"does it); three draws of examples each. Run: {runs}. No setting was chosen on "
        "a held-out concept. Full supervision: CSR's default recipe with all labels of the concept in every stage "
        f"({_positives(collection, names)} labelled positives a concept).",
    )
    sections = [Section("A new concept from a few boxes", notes, tuple(shown))]
    return [*sections, _class_section(reports, parts)]


def _positives(collection: Collection, names: Sequence[str]) -> str:
    labels = collection.concept_labels()[collection.rows("train")]
    counts = [int((labels[:, collection.concepts.index(name)] == 1).sum()) for name in names]
    return f"{min(counts)} to {max(counts)}"


def _recognition(table: pd.DataFrame, part: str, names: Sequence[str], counts: Sequence[int]) -> Table:
    rows = []
    for system, title in SYSTEMS.items():
        for n in counts:
            own = table[(table["system"] == system) & (table["n"] == n)]
            by_name = [spread([line[part]["auroc"] for line in _of(own, name)]) for name in names]
            rows.append((title, str(n), *by_name, _mean(own, part, "auroc")))
    full = table[table["system"] == FULL]
    by_name = [spread([line[part]["auroc"] for line in _of(full, name)]) for name in names]
    rows.append(("full supervision", "all", *by_name, _mean(full, part, "auroc")))
    note = "AUROC of the concept, mean ± standard deviation over draws and seeds."
    return Table(f"{part}: does it see the concept?", ("", "n", *names, "mean"), rows, note)


def _pointing(table: pd.DataFrame, part: str, counts: Sequence[int]) -> Table:
    rows = []
    for system, title in SYSTEMS.items():
        own = table[table["system"] == system]
        rows.append((title, *(_mean(own[own["n"] == n], part, "pointing") for n in counts)))
    rows.append(("full supervision", *([_mean(table[table["system"] == FULL], part, "pointing")] * len(counts))))
    note = "Share of (image, concept) pairs with a box whose peak lies in one; mean over concepts, draws and seeds."
    return Table(f"{part}: does it point at it?", ("", *(f"n = {n}" for n in counts)), rows, note)


def _of(table: pd.DataFrame, concept: str) -> list[dict[str, Any]]:
    return table[table["concept"] == concept].to_dict("records")


def _mean(table: pd.DataFrame, part: str, key: str) -> str:
    known = [line[part][key] for line in table.to_dict("records") if line[part][key] is not None]
    return f"{np.mean(known):.3f}" if known else "–"


def _few_shot_intervals(collection: Collection, files: Sequence[Path], part: str, counts: Sequence[int]) -> Table:
    """Ratios to full supervision and differences to the other ways, with intervals over patients."""
    test = collection.rows("test")
    own = collection.studies["part"].to_numpy()[test] == part
    patients, labels = collection.patients()[test][own], collection.concept_labels()[test][own]
    contents = [dict(np.load(file)) for file in files]
    rows = []
    for n in counts:
        runs = [(content, *tried) for content in contents for tried in _tried(content, n)]
        truth = np.stack([labels[:, collection.concepts.index(name)] for _, name, _ in runs])
        found = {
            system: np.stack([content[f"{system}/{name}/{n}/{draw}"][own] for content, name, draw in runs])
            for system in SYSTEMS
        }
        full = np.stack([content[f"{FULL}/{name}"][own] for content, name, _ in runs])
        ratios = [
            _printed(auroc_ratio_bootstrap(truth, found[OURS], full, floor, clusters=patients)) for floor in (0.0, 0.5)
        ]
        others = [
            interval(paired_auroc_bootstrap(truth, found[OURS], found[system], clusters=patients))
            for system in SYSTEMS
            if system != OURS
        ]
        rows.append((str(n), *ratios, *others))
    columns = ("n", "of full AUROC", "of full AUROC − 0.5", *(f"CSR − {SYSTEMS[s]}" for s in SYSTEMS if s != OURS))
    note = (
        "CSR's mean AUROC as a share of full supervision's, as it is and above chance, and its difference to the other "
        "ways; 95 % intervals of a paired bootstrap over patients."
    )
    return Table(f"{part}: how much of full supervision", columns, rows, note)


def _tried(content: Mapping[str, np.ndarray], n: int) -> list[tuple[str, str]]:
    """Concepts and draws that a file has scores of with n examples; a concept's name may hold a slash."""
    own = [key.removeprefix(f"{OURS}/").rsplit("/", 2) for key in content if key.startswith(f"{OURS}/")]
    return [(name, draw) for name, count, draw in own if count == str(n)]


def _printed(value: Interval) -> str:
    return f"{value.mean:.3f} [{value.low:.3f}, {value.high:.3f}]"


def _class_section(reports: dict[tuple[int, int], dict[str, Any]], parts: Sequence[str]) -> Section:
    rows = []
    for (fold, seed), report in reports.items():
        table = pd.DataFrame(report["classes"])
        for (system, n), own in table.groupby(["system", "n"], sort=False):
            title = f"{SYSTEMS[str(system)]}, n = {n}" if n else f"{'CSR' if system == OURS else 'CBM'}, without them"
            rows.append((f"fold {fold}, seed {seed}", title, *(spread(own[part].tolist()) for part in parts)))
        rows.append(
            (f"fold {fold}, seed {seed}", "CSR, full supervision", *(f"{report['full'][p]:.3f}" for p in parts))
        )
    note = (
        "Macro F1 of the classes once all concepts of a fold are added at once and the head is trained anew; of linear "
        "ways, a CBM's head on stage 1's own logits and theirs. Mean ± standard deviation over draws of examples."
    )
    return Section("What new concepts are worth to the classes", (note,), (Table("", ("", "", *parts), rows),))


def _faithfulness_sections(folder: Path, collection: Collection, seeds: list[int]) -> list[Section]:
    kinds = ("curves", "exemplars", "pointed")
    files = {kind: [folder / "faithfulness" / f"{kind}-{RIVAL}-{seed}.csv" for seed in seeds] for kind in kinds}
    there = [i for i in range(len(seeds)) if all(files[kind][i].is_file() for kind in kinds)]
    if not there:
        return []
    tables = {kind: pd.concat([pd.read_csv(files[kind][i]) for i in there]) for kind in kinds}
    patients = dict(zip(collection.studies["study_id"], collection.patients(), strict=True))
    for table in tables.values():
        table["patient"] = table["study"].map(patients)
    run = f"Seeds: {', '.join(str(seeds[i]) for i in there)}."
    return [
        _curve_section(tables["curves"], run),
        _exemplar_section(tables["exemplars"], run),
        _pointed_section(tables["pointed"], run),
    ]


def _difference(ours: pd.Series, theirs: pd.Series, patients: pd.Series) -> str:
    difference = paired_mean_bootstrap(ours.to_numpy()[None], theirs.to_numpy()[None], clusters=patients.to_numpy())
    return interval(difference)


def _curve_section(table: pd.DataFrame, run: str) -> Section:
    shown = []
    for kind, title in (("concept", "a concept's map, for its probability"), ("class", "the class's map, for its own")):
        rows = []
        for (part, way), own in table[table["kind"] == kind].groupby(["part", "way"], sort=False):
            sign = -1 if way == "deletion" else 1
            gains = {}
            for name in TITLES:
                mapped, blind = own[f"{name}_by_{name}"], own[f"{name}_by_random"]
                gains[name] = sign * (mapped - blind)
                rows.append(
                    (
                        str(part),
                        str(way),
                        TITLES[name],
                        f"{mapped.mean():.3f}",
                        f"{blind.mean():.3f}",
                        f"{own[f'{name}_by_centre'].mean():.3f}",
                        _difference(sign * mapped, sign * blind, own["patient"]),
                        "" if name == OURS else _difference(gains[OURS], gains[name], own["patient"]),
                    )
                )
        count = table[table["kind"] == kind].groupby("part", sort=False)["study"].nunique()
        note = f"Studies: {', '.join(f'{number} {part}' for part, number in count.items())}."
        columns = (
            "part",
            "",
            "system",
            "by its map",
            "random order",
            "centre first",
            "gain over random",
            "CSR's − its",
        )
        shown.append(Table(title.capitalize(), columns, rows, note))
    notes = (
        "Area under the curve of a probability as cells are blurred (deletion: less is better) or sharpened again "
        "(insertion: more is better) in the order of a map (Petsiuk et al. 2018); σ of the blur is a twelfth of the "
        "side. Both systems look at the same stage 1; each is judged by its own probability. A gain is positive where "
        "the map beats a random order; 95 % intervals of a paired bootstrap over patients. "
        f"{run} The black box's Grad-CAM is not in it.",
    )
    return Section("Deletion and insertion", notes, tuple(shown))


def _exemplar_section(table: pd.DataFrame, run: str) -> Section:
    rows = []
    groups = [(str(name), own) for name, own in table.groupby("concept", sort=False)] + [("all", table)]
    for concept, own in groups:
        rose = {key: (own[key] - own["before"] >= CHANGED).astype(float) for key in ("exemplar", "control")}
        units = own["patient"].to_numpy(), own.groupby(PROTOTYPE, sort=False).ngroup().to_numpy()
        similar = {key: own[f"similarity_{key}"] - own["similarity_before"] for key in ("exemplar", "control")}
        rows.append(
            (
                concept,
                str(len(own)),
                *(f"{own[key].mean():.2f}" for key in ("before", "exemplar", "control")),
                *(f"{rose[key].mean():.2f}" for key in ("exemplar", "control")),
                interval(crossed_difference(rose["exemplar"].to_numpy(), rose["control"].to_numpy(), *units)),
                *(f"{(similar[key] > 0).mean():.2f}" for key in ("exemplar", "control")),
            )
        )
    prototypes = len(table[PROTOTYPE].drop_duplicates())
    columns = (
        "concept",
        "pastes",
        "p before",
        "exemplar",
        "control",
        "rises, exemplar",
        "rises, control",
        "difference",
        "similarity rises, exemplar",
        "… control",
    )
    note = (
        "The crop that the page shows for a prototype, pasted at its own place into test studies of both parts without "
        "the concept; control: a crop of the same place of a training image that lacks it. p is CSR's probability of "
        f"the concept, 'rises' means by {CHANGED} or more, similarity is the prototype's largest inside the crop. 95 % "
        f"intervals over patients and prototypes ({prototypes} of them; a concept with one has none). A CBM has no "
        f"exemplars. {run}"
    )
    return Section("Exemplars pasted", (note,), (Table("", columns, rows),))


def _pointed_section(table: pd.DataFrame, run: str) -> Section:
    wide = table.pivot_table(
        index=["seed", "part", "concept", "study", "patient"], columns="system", values=["before", "pointed", "control"]
    ).reset_index()
    rows = []
    order = list(dict.fromkeys(table["concept"]))
    for concept in (*order, "all"):
        own = wide if concept == "all" else wide[wide["concept"] == concept]
        cells = []
        fell = {}
        for name in TITLES:
            fell[name] = (own["before", name] - own["pointed", name] >= CHANGED).astype(float)
            control = (own["before", name] - own["control", name] >= CHANGED).astype(float)
            cells += [
                f"{own['before', name].mean():.2f} → {own['pointed', name].mean():.2f}",
                f"{fell[name].mean():.2f}",
                f"{control.mean():.2f}",
            ]
        rows.append((concept, str(len(own)), *cells, _difference(fell["csr"], fell["cbm"], own["patient"])))
    columns = ["concept", "studies"]
    for title in ("CSR", "CBM"):
        columns += [f"{title}: p", f"{title}: falls", f"{title}: control falls"]
    note = (
        "The square of three cells around a map's peak blurred, in test studies of both parts with one box of the "
        "concept; control: a square of the same size off the box, or touching it least. 'Falls' means by "
        f"{CHANGED} or more. Difference: CSR's share of falls minus the CBM's, 95 % interval of a paired bootstrap "
        f"over patients. {run}"
    )
    return Section("The pointed region wiped", (note,), (Table("", (*columns, "difference"), rows),))


def main() -> None:
    """Writes the report and prints its Markdown."""
    write_report("claims_report", build, "_claims")


if __name__ == "__main__":
    main()
