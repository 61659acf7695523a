"""Stage ``report``: everything the comparison found, as ``<folder>.md`` and ``<folder>.html``.

python -m pipelines.comparison.report
"""

from __future__ import annotations

import io
import json
import sys
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd

from csr.baselines.protocol import WARM_START_EPOCHS, load_system
from csr.comparison.latency import encode_latency
from csr.comparison.report import OURS, main_sections, spread
from csr.comparison.runs import Runs, read_runs
from csr.comparison.systems import systems
from csr.data.html_report import Section, Table, to_html, to_markdown
from csr.data.prepared import PreparedSet
from csr.errors import CSRError, DataError
from csr.interaction.answering import ANSWER_S
from csr.training.images import load_images
from csr.training.runtime import device, use_device
from pipelines.comparison import missing_labels
from pipelines.comparison.common import PREDICTIONS_FOLDER, SYSTEMS_FOLDER, load_comparison
from pipelines.comparison.recipes import recipes
from pipelines.params import Params
from pipelines.stage import PREPARED

matplotlib.use("Agg")
from matplotlib import pyplot as plt

MODES = {"spatial": "boxes", "concept": "rejected concepts", "both": "both"}
ANSWERERS = {
    "csr_robust": "CSR",
    "csr_paper": "CSR to the letter",
    "cbm_shared": "CBM on CSR's stage 1",
    "intcem_shared": "IntCEM on CSR's stage 1",
}
# what a rejected score becomes, as far as it is shown; the paper knows zero only
REJECTIONS = {"csr_robust": ("none", "absent", "zero"), "csr_paper": ("none", "zero")}


def build(params: Params) -> tuple[str, list[Section]]:
    """The report's title and sections.

    Raises:
        DataError: no system has run.
    """
    use_device(params.train.device)
    folder, seeds = params.comparison.folder, list(params.comparison.seeds)
    data = PreparedSet.open(PREPARED)
    runs = _runs(folder, seeds, data)
    if OURS not in runs:
        raise DataError(f"{folder}: holds no run of {OURS}; run dvc repro pipelines/comparison/dvc.yaml first")
    sections = [
        _setting_section(params, data),
        *main_sections(data.collection, runs),
        *_ablation_section(folder, seeds),
        *_missing_labels_section(folder, seeds, runs),
        *_answer_section(folder, seeds),
        *_interaction_section(folder, seeds),
        *_refinement_section(folder, seeds),
    ]
    return f"Comparison on {data.collection.name}", sections


def _runs(folder: Path, seeds: list[int], data: PreparedSet) -> dict[str, Runs]:
    """Systems that have run with every seed, with the latency of the first seed's."""
    found, members = {}, {}
    for name, entry in systems(recipes()).items():
        if all((folder / f"{name}-{seed}.json").is_file() for seed in seeds):
            found[name] = read_runs(folder, PREDICTIONS_FOLDER, name, seeds)
            members[name] = load_system(entry.kind, SYSTEMS_FOLDER / f"{name}-{seeds[0]}.pt").to(device())
    image = load_images(data, data.collection.rows("test")[:1], device())
    latency = encode_latency(members, image)
    return {name: replace(each, latency=latency[name]) for name, each in found.items()}


def _setting_section(params: Params, data: PreparedSet) -> Section:
    collection, config = data.collection, params.concepts
    counts = ", ".join(f"{len(collection.rows(split))} {split}" for split in ("train", "val", "test"))
    stride = f"stride {config.model.stride}" + (f" with context {config.model.context}" if config.model.context else "")
    text = (
        f"{counts} studies of {data.side}² pixels, {len(collection.concepts)} concepts, {len(collection.classes)} "
        f"classes. Every system: {config.model.backbone} at {stride}, from scratch unless params.yaml says otherwise, "
        f"{config.epochs} epochs of training images in batches of {config.batch_size}, AdamW with a one-cycle peak of "
        f"{config.learning_rate:g}, the same augmentation, and seeds {', '.join(map(str, params.comparison.seeds))}. "
        "Last layers are fitted on frozen scores in addition. Prototype systems start from the trained black box and "
        f"train on for {WARM_START_EPOCHS:g} times as many epochs. Nothing was tuned on a test split."
    )
    return Section("Setting", (text,))


def _ablation_section(folder: Path, seeds: list[int]) -> list[Section]:
    reports: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for file in sorted((folder / "ablation").glob("*.json")):
        content = json.loads(file.read_text())
        if content["seed"] in seeds:
            reports[content["variant"]].append(content)
    if "robust" not in reports:
        return []
    base = reports.pop("robust")
    parts = [name for name, value in base[0].items() if isinstance(value, dict)]
    rows = []
    for each in (base, *reports.values()):
        cells = []
        for part in parts:
            cells += [
                spread([one[part]["macro_f1"] for one in each]),
                spread([one[part]["pointing_game"]["pair"] for one in each]),
            ]
        rows.append((each[0]["title"], str(len(each)), *cells))
    columns = ("variant", "seeds", *(f"{name}, {part}" for part in parts for name in ("F1", "pointing")))
    note = "Each ingredient of the robust preset taken out alone. The preset was settled on the validation split (val)."
    return [Section("Ablation", (note,), (Table("", columns, rows),))]


def _missing_labels_section(folder: Path, seeds: list[int], runs: dict[str, Runs]) -> list[Section]:
    files = {
        hidden: [folder / "missing_labels" / f"{hidden}-{seed}.json" for seed in seeds]
        for hidden in missing_labels.HIDDEN
    }
    names = [name for name in missing_labels.SYSTEMS if name in runs]
    if not all(file.is_file() for own in files.values() for file in own):
        return []
    found = {hidden: [json.loads(file.read_text()) for file in own] for hidden, own in files.items()}
    parts = [part for part, value in runs[OURS].reports[0].items() if isinstance(value, dict)]
    rows = []
    for name in names:
        levels = {"0": runs[name].reports} | {hidden: [one[name] for one in own] for hidden, own in found.items()}
        for hidden, reports in levels.items():
            cells = []
            for part in parts:
                own = [report[part] for report in reports]
                cells += [
                    spread([one["macro_f1"] for one in own]),
                    spread([one["concept_auroc"] for one in own]),
                    spread([one["pointing_game"]["pair"] for one in own]),
                ]
            rows.append((runs[name].title, f"{hidden}%", *cells))
    columns = (
        "system",
        "hidden",
        *(f"{name}, {part}" for part in parts for name in ("F1", "concept AUROC", "pointing")),
    )
    note = (
        "Every stage trained from the start on concept labels of which a share is hidden at random; losses leave "
        "unknown labels out. Class labels stay, and so do the concept labels of the validation split."
    )
    return [Section("Missing concept labels", (note,), (Table("", columns, rows),))]


def _answer_section(folder: Path, seeds: list[int]) -> list[Section]:
    tables: dict[str, pd.DataFrame] = {}
    for name in ANSWERERS:
        files = [folder / "answers" / f"{name}-{seed}.csv" for seed in seeds]
        if all(file.is_file() for file in files):
            tables[name] = pd.concat([pd.read_csv(file, keep_default_na=False) for file in files])
    if not tables:
        return []
    parts = list(dict.fromkeys(part for table in tables.values() for part in table["part"]))
    shown = [_answer_table(tables, part, trigger) for part in parts for trigger in ("uncertain", "all")]
    note = (
        "The model asks whether a concept is there, the question first whose answer is expected to tell most about the "
        "classes, and a simulated reader says yes or no by the concept labels; a share of the answers is wrong. "
        "'Uncertain' studies are those whose two best classes lie within 0.3. An answer costs a reader "
        f"{ANSWER_S:g} seconds here. 'Random' asks any question."
    )
    return [Section("Questions and answers", (note,), tuple(shown))]


def _answer_table(tables: dict[str, pd.DataFrame], part: str, trigger: str) -> Table:
    rows, budgets = [], (0, 1, 2, 3, 5)
    for name, table in tables.items():
        own = table[(table["part"] == part) & (table["trigger"] == trigger)]
        for (policy, error), group in own.groupby(["policy", "error"], sort=False):
            curve = group.pivot_table(index="seed", columns="budget", values="macro_f1")
            seconds = group[group["budget"] == 1]["seconds"].mean()
            gain = (curve[1] - curve[0]).tolist()
            figures = [spread(curve[budget].tolist()) for budget in budgets]
            rows.append((ANSWERERS[name], str(policy), f"{float(error):.0%}", *figures, spread(gain), f"{seconds:.1f}"))
    columns = ("system", "question", "wrong", *(f"F1, {n}" for n in budgets), "gain of one", "s a study for one")
    return Table(f"{part}, {trigger} studies", columns, rows)


def _interaction_section(folder: Path, seeds: list[int]) -> list[Section]:
    tables, figures = [], []
    for name, rejections in REJECTIONS.items():
        files = [folder / "interventions" / f"{name}-{seed}.csv" for seed in seeds]
        if not all(file.is_file() for file in files):
            continue
        table = pd.concat([pd.read_csv(file, keep_default_na=False) for file in files])
        table = table[table["rejection"].isin(rejections)]
        preset = name.removeprefix("csr_")
        tables.append(_perfect_reader_table(table, preset))
        for part in table["part"].unique():
            own = table[table["part"] == part]
            tables.append(_intervention_table(own, f"{preset}, {part}"))
            figures.append(_intervention_figure(own, f"{preset}, {part}"))
    if not tables:
        return []
    note = (
        "Simulated readers correct CSR: they draw boxes (look here, ignore that) and reject concepts by the true boxes "
        "and concept labels; they never know the class. A share of their actions is wrong. F1 after at most 0, 1, 2 "
        "and more interactions a study, the most uncertain first; 'uncertain' studies are those whose two best classes "
        "lie within 0.3 (the paper's trigger). Zero and absent are what a rejected score becomes. α outside focus "
        "boxes is 0.2."
    )
    return [Section("Interaction", (note,), tuple(tables), tuple(figures))]


def _perfect_reader_table(table: pd.DataFrame, preset: str) -> Table:
    """What readers who never err change, at the budget where it is least and at the end."""
    rows = []
    perfect = table[table["error"] == 0]
    for (part, mode, rejection, trigger, order), group in perfect.groupby(
        ["part", "mode", "rejection", "trigger", "order"], sort=False
    ):
        curves = group.pivot_table(index="seed", columns="budget", values="macro_f1")
        change = curves.sub(curves[0], axis=0).drop(columns=0)
        worst = change.mean().idxmin()
        rows.append(
            (
                str(part),
                _kind(mode, rejection),
                str(trigger),
                str(order),
                f"{change.mean()[worst]:+.4f}",
                str(worst),
                f"{change.min().min():+.4f}",
                f"{change.mean().iloc[-1]:+.4f}",
            )
        )
    columns = (
        "part",
        "interaction",
        "studies",
        "order",
        "least Δ F1",
        "at budget",
        "least of a seed",
        "Δ F1 at the end",
    )
    return Table(f"{preset}: readers who never err", columns, rows)


def _intervention_table(table: pd.DataFrame, title: str) -> Table:
    rows, last = [], table["budget"].max()
    own = table[table["order"] == "uncertainty"]
    for (mode, rejection, trigger, error), group in own.groupby(["mode", "rejection", "trigger", "error"], sort=False):
        curve = group.pivot_table(index="seed", columns="budget", values="macro_f1")
        end = group[group["budget"] == last]
        rows.append(
            (
                _kind(mode, rejection),
                str(trigger),
                f"{float(error):.0%}",
                *(spread(curve[budget].tolist()) for budget in (0, 1, 2, last)),
                spread(end["accuracy"].tolist()),
                f"{end['interactions'].mean():.1f}",
                f"{end['fixed'].mean():.0f} / {end['broken'].mean():.0f}",
            )
        )
    columns = ("interaction", "studies", "wrong", "F1, 0", "1", "2", str(last), "accuracy", "used", "fixed / broken")
    return Table(title, columns, rows)


def _kind(mode: object, rejection: object) -> str:
    return MODES[str(mode)] + ("" if rejection == "none" else f", {rejection}")


def _intervention_figure(table: pd.DataFrame, title: str) -> str:
    modes = list(MODES)
    figure, axes = plt.subplots(1, len(modes), figsize=(4 * len(modes) + 2, 3), sharey=True, layout="constrained")
    better = "absent" if (table["rejection"] == "absent").any() else "zero"
    shown = table[(table["trigger"] == "all") & table["rejection"].isin(["none", better])]
    for axis, mode in zip(axes, modes, strict=True):
        for colour, (error, group) in enumerate(shown[shown["mode"] == mode].groupby("error")):
            for order, style in (("uncertainty", "-"), ("random", ":")):
                curve = group[group["order"] == order].groupby("budget")["macro_f1"].mean()
                if len(curve):
                    axis.plot(curve.index, curve, style, color=f"C{colour}", label=f"{error:.0%} wrong, {order}")
        axis.set(title=MODES[mode], xlabel="interactions a study")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel(f"macro F1, {title}")
    figure.legend(*axes[-1].get_legend_handles_labels(), loc="outside right upper", fontsize=7)
    return _svg(figure)


def _refinement_section(folder: Path, seeds: list[int]) -> list[Section]:
    rows = []
    for name in ("csr_robust", "csr_paper"):
        files = [folder / "refinement" / f"{name}-{seed}.json" for seed in seeds]
        if not all(file.is_file() for file in files):
            continue
        contents = [json.loads(file.read_text()) for file in files]
        for kind, title in (("before", "before"), ("masked", "pruned"), ("retrained", "pruned, head retrained")):
            own = [content[kind] for content in contents]
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
        "(csr/interaction/review.py), not knowing that there is a shortcut. The paper: pointing game 60.9 → "
        "79.5 at −0.4 F1 on TBX11K."
    )
    return [Section("Atlas refinement", (note,), (Table("", columns, rows),))]


def _svg(figure: Any) -> str:
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    plt.close(figure)
    return text.getvalue()[text.getvalue().index("<svg") :]


def main() -> None:
    """Writes the report and prints its Markdown."""
    try:
        params = load_comparison()
        title, sections = build(params)
    except CSRError as error:
        sys.exit(f"report: {error}")
    for ending, text in (("md", to_markdown(title, sections)), ("html", to_html(title, sections))):
        Path(f"{params.comparison.folder}.{ending}").write_text(text)
    print(to_markdown(title, sections))


if __name__ == "__main__":
    main()
