"""Stage ``interaction_report``: what readers' replies, boxes and reviews do: ``<folder>_interaction.md`` and ``.html``.

    python -m pipelines.comparison.interaction_report

Apart from the comparison's own report, since it needs CSR and the bottlenecks on its stage 1 alone.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd

from csr.comparison.report import interval, resampled, spread
from csr.data.html_report import Section, Table
from csr.data.prepared import PreparedSet
from csr.data.records import Collection
from csr.errors import DataError
from csr.evaluation.bootstrap import paired_bootstrap
from csr.interaction.answering import COSTS, Reader, decision_key
from pipelines.comparison.common import DECISIONS_FOLDER
from pipelines.comparison.writing import write_report
from pipelines.params import Params
from pipelines.stage import PREPARED

matplotlib.use("Agg")
from matplotlib import pyplot as plt

SYSTEMS = {
    "csr_robust": "CSR",
    "csr_paper": "CSR to the letter",
    "cbm_shared": "CBM on CSR's stage 1",
    "cbm_answered": "CBM on CSR's stage 1, trained with answers",
    "scbm_shared": "Stochastic CBM on CSR's stage 1",
    "intcem_shared": "IntCEM on CSR's stage 1",
}
OURS = "csr_robust"
BUDGETS = (0, 1, 2, 3, 5)
BOXES = {
    "boxes": ("boxes named", "{:.0f}"),
    "top1": ("first guess right", "{:.3f}"),
    "top3": ("right among three", "{:.3f}"),
    "false_alarms": ("right names doubted", "{:.3f}"),
    "caught_alike": ("wrong names doubted, most alike", "{:.3f}"),
    "caught_any": ("wrong names doubted, any", "{:.3f}"),
    "random_moved": ("random focus boxes that move a class by half a point", "{:.3f}"),
    "matters_raised": ("focus on the finding that matters: right class up by half a point", "{:.3f}"),
    "matters_lowered": ("… down by half a point", "{:.3f}"),
    "matters_change": ("… mean change of its probability", "{:+.3f}"),
    "every_raised": ("focus on every finding: right class up by half a point", "{:.3f}"),
    "every_lowered": ("… down by half a point", "{:.3f}"),
    "every_change": ("… mean change of its probability", "{:+.3f}"),
}

REFINEMENTS = {
    "before": "before",
    "masked": "pruned",
    "retrained": "pruned, head retrained",
    "relearned": "relearned from drawn findings",
}


def build(params: Params) -> tuple[str, list[Section]]:
    """The report's title and sections.

    Raises:
        DataError: there are neither replies about CSR nor reviews of its atlas for every seed, or the decisions that
            went with the replies are missing.
    """
    folder, seeds = params.comparison.folder, list(params.comparison.seeds)
    collection = PreparedSet.open(PREPARED).collection
    curves = {name: _files(folder / "answers", name, seeds, "csv") for name in SYSTEMS}
    tables = {
        name: pd.concat(map(pd.read_csv, files))
        for name, files in curves.items()
        if all(file.is_file() for file in files)
    }
    sections = [_setting_section(collection, seeds)]
    if OURS in tables:
        others = [name for name in tables if name != OURS]
        sections += [
            _curves_section(tables),
            _tools_section(tables[OURS]),
            *_paired_section(collection, others, seeds),
            *_boxes_section(folder, seeds),
        ]
    sections += _refinement_section(folder, seeds)
    if len(sections) == 1:
        raise DataError(
            f"{folder}: holds nothing of readers or reviews; run python -m pipelines.comparison.fan_out first"
        )
    return f"Interaction on {collection.name}", sections


def _files(folder: Path, name: str, seeds: list[int], ending: str) -> list[Path]:
    return [folder / f"{name}-{seed}.{ending}" for seed in seeds]


def _setting_section(collection: Collection, seeds: list[int]) -> Section:
    counts = ", ".join(f"{len(collection.rows(split))} {split}" for split in ("train", "val"))
    parts = ", ".join(f"{len(collection.rows('test', part))} {part}" for part in collection.test_parts())
    text = (
        f"Studies: {counts}; for test {parts}. Seeds {', '.join(map(str, seeds))}, mean ± standard deviation. Readers "
        "and reviewers are simulated: they know the concept labels and boxes, and never the class."
    )
    return Section("Setting", (text,))


def _curves_section(tables: dict[str, pd.DataFrame]) -> Section:
    parts = list(dict.fromkeys(part for table in tables.values() for part in table["part"]))
    shown, figures = [], []
    for part in parts:
        for trigger in ("uncertain", "all"):
            rows = []
            for name, table in tables.items():
                own = table[(table["part"] == part) & (table["trigger"] == trigger) & (table["tool"] == "keys")]
                for (policy, error), group in own.groupby(["policy", "error"], sort=False):
                    rows.append((SYSTEMS[name], str(policy), f"{float(error):.0%}", *_curve_cells(group)))
            shown.append(Table(f"{part}, {trigger} studies", ("system", "question", "wrong", *_CURVE_COLUMNS), rows))
        figures.append(_seconds_figure(tables, part))
    notes = (
        "The model asks whether a concept is there, and a reader confirms or rejects it by a key; a share of the "
        "answers is wrong (csr/interaction/answering.py). F1 after at most so many answers a study. 'Effect' asks the "
        "question whose answer is expected to tell most about the classes, 'worthwhile' the same as long as it is "
        "expected to tell as much as the bundle demands (what is shipped), 'random' any, 'learned' what the model has "
        "learned to ask. 'Uncertain' studies are those whose two best classes lie within 0.3.",
        f"Seconds are stated, not measured: {COSTS['key']:g} to look and press a key, {COSTS['finding']:g} for a box "
        f"with a name, {COSTS['region']:g} for a box.",
    )
    return Section("Questions and answers", notes, tuple(shown), tuple(figures))


_CURVE_COLUMNS = (*(f"F1, {n}" for n in BUDGETS), "gain of one", "least gain", "s a study for one")


def _curve_cells(group: pd.DataFrame) -> tuple[str, ...]:
    """F1 at some budgets; of the gains over no reply, in points, that of one and the least mean of any budget."""
    curve = group.pivot_table(index="seed", columns="budget", values="macro_f1")
    gains = 100 * curve.sub(curve[0], axis=0).drop(columns=0)
    seconds = group[group["budget"] == 1]["seconds"].mean()
    figures = [spread(curve[budget].tolist()) for budget in BUDGETS]
    deviation = f" ± {gains[1].std():.1f}" if len(gains) > 1 else ""
    return (*figures, f"{gains[1].mean():+.1f}{deviation}", f"{gains.mean().min():+.1f}", f"{seconds:.1f}")


def _tools_section(table: pd.DataFrame) -> Section:
    shown = []
    for part in dict.fromkeys(table["part"]):
        for trigger in ("uncertain", "all"):
            own = table[(table["part"] == part) & (table["trigger"] == trigger) & (table["policy"] == "worthwhile")]
            rows = [
                (str(tool), f"{float(error):.0%}", *_curve_cells(group))
                for (tool, error), group in own.groupby(["tool", "error"], sort=False)
            ]
            shown.append(Table(f"{part}, {trigger} studies", ("tool", "wrong", *_CURVE_COLUMNS), rows))
    note = (
        "CSR with other tools than keys. Findings: a box that names a concept; wrong ones bear the name of the concept "
        "that looks most alike. Questioned: the same, and the reader looks again when the model doubts the name. "
        "Regions: focus and ignore boxes without names; wrong ones are moved by half their size."
    )
    return Section("Boxes in place of keys", (note,), tuple(shown))


def _paired_section(collection: Collection, others: list[str], seeds: list[int]) -> list[Section]:
    files = {name: _files(DECISIONS_FOLDER, name, seeds, "npz") for name in (OURS, *others)}
    if not others:
        return []
    if absent := [str(file) for own in files.values() for file in own if not file.is_file()]:
        raise DataError(
            f"{absent[0]}: missing; decisions are not committed with the curves: run the stage answers here"
        )
    decisions = {name: [np.load(file) for file in own] for name, own in files.items()}
    rows = collection.rows("test")
    truth, patients = collection.truth()[rows], collection.patients()[rows]
    part_of = collection.studies["part"].to_numpy()[rows]
    shown = []
    for trigger in ("uncertain", "all"):
        key = decision_key(Reader(), trigger)
        lines = []
        for name in others:
            for part in collection.test_parts():
                chosen = part_of == part
                cells = []
                for budget in (0, 1, 5):
                    ours, theirs = (
                        np.stack([each[key][budget][chosen] for each in decisions[n]]) for n in (OURS, name)
                    )
                    difference = paired_bootstrap(
                        truth[chosen], ours, theirs, len(collection.classes), clusters=patients[chosen]
                    )
                    cells.append(interval(difference))
                lines.append((SYSTEMS[name], part, *cells))
        shown.append(Table(f"{trigger} studies", ("system", "part", "no answer", "one", "five"), lines))
    note = (
        "CSR minus the system in macro F1, both with the answers of a reader who never errs to the questions that each "
        f"finds most telling; 95 % intervals over {resampled(collection, len(seeds))}."
    )
    return [Section("With the same reader", (note,), tuple(shown))]


def _boxes_section(folder: Path, seeds: list[int]) -> list[Section]:
    files = _files(folder / "boxes", OURS, seeds, "json")
    if not all(file.is_file() for file in files):
        return []
    contents = [json.loads(file.read_text()) for file in files]
    parts = list(contents[0])
    rows = []
    for key, (title, form) in BOXES.items():
        cells = []
        for part in parts:
            values = [content[part][key] for content in contents if key in content[part]]
            shown = [form.format(np.mean(values))] if values else ["–"]
            if len(values) > 1:
                shown.append(form.format(np.std(values, ddof=1)).removeprefix("+"))
            cells.append(" ± ".join(shown))
        rows.append((title, *cells))
    note = (
        "What CSR makes of boxes: names that it offers for a box, doubts in a given name, and what focus boxes change."
    )
    return [Section("Boxes", (note,), (Table("", ("", *parts), rows),))]


def _refinement_section(folder: Path, seeds: list[int]) -> list[Section]:
    rows: list[tuple[str, ...]] = []
    parts: list[str] = []
    drawn: list[str] = []
    for name in ("csr_robust", "csr_paper"):
        files = _files(folder / "refinement", name, seeds, "json")
        if not all(file.is_file() for file in files):
            continue
        contents = [json.loads(file.read_text()) for file in files]
        drawn.append(f"{name.removeprefix('csr_')} {np.mean([content['drawn'] for content in contents]):.0f}")
        for kind, title in REFINEMENTS.items():
            if not any(kind in content for content in contents):
                continue
            # a seed of which nothing rests on something else has nothing to learn anew
            own = [content.get(kind, content["retrained"]) for content in contents]
            parts = [part for part, value in own[0].items() if isinstance(value, dict)]
            cells = [spread([one["prototypes"] for one in own], 0)]
            for part in parts:
                cells += [
                    spread([one[part]["macro_f1"] for one in own]),
                    spread([one[part]["pointing_game"]["pair"] for one in own]),
                ]
            rows.append((f"{name.removeprefix('csr_')}, {title}", *cells))
    if not rows:
        return []
    columns = ("preset", "prototypes", *(f"{name}, {part}" for part in parts for name in ("F1", "pointing")))
    note = (
        "A simulated reviewer looks at ten crops of each prototype and prunes it if fewer than half show its concept "
        "(csr/interaction/review.py), not knowing that there is a shortcut. Relearned: where a concept rests on "
        "something else, she draws the finding in the images of the crops that she saw, and stages 2 and 3 are trained "
        f"anew (images drawn in, mean over the seeds: {', '.join(drawn)}). The paper, by pruning: pointing game 60.9 → "
        "79.5 at −0.4 F1 on TBX11K."
    )
    return [Section("Atlas refinement", (note,), (Table("", columns, rows),))]


def _seconds_figure(tables: dict[str, pd.DataFrame], part: str) -> str:
    """F1 against a reader's seconds, on all studies: every system by keys, and CSR by every tool."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.4), sharey=True, layout="constrained")
    for name, table in tables.items():
        own = table[(table["tool"] == "keys") & (table["policy"] == "effect")]
        _draw(axes[0], own, part, SYSTEMS[name])
    for tool in dict.fromkeys(tables[OURS]["tool"]):
        own = tables[OURS][(tables[OURS]["tool"] == tool) & (tables[OURS]["policy"] == "worthwhile")]
        _draw(axes[1], own, part, str(tool))
    for axis, title in zip(axes, ("answers by a key", "CSR, by tool"), strict=True):
        axis.set(title=f"{title}, {part}", xlabel="seconds a study")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    axes[0].set_ylabel("macro F1")
    return _svg(figure)


def _draw(axis: Any, table: pd.DataFrame, part: str, label: str) -> None:
    """A line for the reader who never errs, a dotted one for the reader who errs in one reply of five."""
    own = table[(table["part"] == part) & (table["trigger"] == "all")]
    colour = None
    for error, style in ((0.0, "-"), (0.2, ":")):
        curve = own[own["error"] == error].groupby("budget")[["seconds", "macro_f1"]].mean()
        (line,) = axis.plot(curve["seconds"], curve["macro_f1"], style, marker=".", color=colour)
        colour = line.get_color()
        line.set_label(label if error == 0 else f"{label}, 20% wrong")


def _svg(figure: Any) -> str:
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    plt.close(figure)
    return text.getvalue()[text.getvalue().index("<svg") :]


def main() -> None:
    """Writes the report and prints its Markdown."""
    write_report("interaction_report", build, "_interaction")


if __name__ == "__main__":
    main()
