"""The report's sections on how the systems learned: learning curves, and the trials of their settings."""

from __future__ import annotations

import io
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from csr.comparison.past_trials import PAST_TRIALS
from csr.comparison.report import spread
from csr.data.html_report import Section, Table
from csr.training.concepts import ConceptTrainingConfig

TITLES = {
    "classes": "black box (shared backbone)",
    "concepts_lse": "CSR's stage 1 (shared backbone)",
    "concepts_average": "stage 1, average pooling (shared backbone)",
    "concepts_coarse": "stage 1, stride 16 (shared backbone)",
}
OURS = "concepts_lse"
FIGURES = {"val_macro_auroc": "class AUROC", "val_auroc": "concept AUROC"}
ENDS = {"fixed": "fixed length", "risen": "stopped rising", "cap": "cap"}

Curves = Mapping[str, list[list[dict[str, Any]]]]  # system → seeds → phases


def read_curves(folder: Path, seeds: Sequence[int]) -> dict[str, list[list[dict[str, Any]]]]:
    """Curves of the systems that have them for every seed, shared backbones first."""
    names = {file.stem.rpartition("-")[0] for file in (folder / "curves").glob("*.json")}
    found = {}
    for name in [*(each for each in TITLES if each in names), *sorted(names - set(TITLES))]:
        files = [folder / "curves" / f"{name}-{seed}.json" for seed in seeds]
        if all(file.is_file() for file in files):
            found[name] = [json.loads(file.read_text())["phases"] for file in files]
    return found


def curves_section(curves: Curves, titles: Mapping[str, str], config: ConceptTrainingConfig) -> list[Section]:
    """How every phase learned; nothing if no curve was kept."""
    if not curves:
        return []
    if config.patience is None:
        rule = f"All systems were trained for a fixed length: {config.epochs} epochs, or their share of them."
    else:
        rule = (
            "One rule for all: after a warm-up the rate stays at its peak until the validation figure has not risen by "
            f"{config.least_rise:g} over {config.patience} epochs, or as many as a system's trials chose, then falls "
            f"to 0 over {config.anneal:.0%} of the epochs so far; {config.epochs} epochs are the cap of a system."
        )
    note = (
        f"{rule} Weights of the {config.keep} epoch are kept. The figure is the class macro AUROC on the validation "
        "split, or the mean concept AUROC where concepts are learned. Images seen are augmented training images, "
        "without those that a shared backbone saw; PIP-Net looks at each twice. Mean ± standard deviation over seeds."
    )
    rows = []
    for name, seeds in curves.items():
        for phases in zip(*seeds, strict=True):
            images = [float(phase["images"][-1]) for phase in phases]
            rows.append(
                (
                    titles.get(name, name),
                    phases[0]["phase"],
                    FIGURES.get(phases[0]["figure"], phases[0]["figure"]),
                    spread([phase["values"][0] for phase in phases]),
                    spread([max(phase["values"]) for phase in phases]),
                    spread([phase["values"][phase["kept"] - 1] for phase in phases]),
                    f"{statistics.mean(images):,.0f}",
                    ", ".join(str(len(phase["values"])) for phase in phases),
                    ", ".join(ENDS[phase["ended"]] for phase in phases),
                )
            )
    columns = ("system", "phase", "figure", "first epoch", "best", "kept", "images seen", "epochs, by seed", "ended by")
    return [Section("Learning curves", (note,), (Table("", columns, rows),), (_plot(curves, titles),))]


def _plot(curves: Curves, titles: Mapping[str, str]) -> str:
    """The figure against images seen, a panel a system, a line a seed; phases follow each other."""
    columns = 3
    count = -(-len(curves) // columns)
    figure, axes = plt.subplots(count, columns, figsize=(11, 2.3 * count), squeeze=False, layout="constrained")
    for axis in axes.flat[len(curves) :]:
        axis.set_visible(False)
    for axis, (name, seeds) in zip(axes.flat, curves.items(), strict=False):
        for number, phases in enumerate(seeds):
            before = 0
            for phase in phases:
                values = [float("nan") if value is None else value for value in phase["values"]]
                seen = [(before + images) / 1000 for images in phase["images"]]
                axis.plot(seen, values, color=f"C{number}", linewidth=1)
                if phase["fall"]:
                    axis.plot(seen[phase["fall"] - 1], values[phase["fall"] - 1], "v", color=f"C{number}", markersize=4)
                before += phase["images"][-1]
        axis.set_title(titles.get(name, name), fontsize=8)
        axis.tick_params(labelsize=7)
        axis.grid(alpha=0.3)
        axis.set_xlabel("thousand images", fontsize=7)
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    plt.close(figure)
    return text.getvalue()[text.getvalue().index("<svg") :]


def trials_section(folder: Path, titles: Mapping[str, str], least_rise: float) -> list[Section]:
    """How many settings each system was given and which was chosen, and what was tried for ours before.

    Args:
        least_rise: by which a trial must be above the default to be chosen.
    """
    files = sorted((folder / "trials").glob("*.json"))
    past = sum(trial.trials for trial in PAST_TRIALS)
    rows = []
    for content in (json.loads(file.read_text()) for file in files):
        name, trials = content["system"], content["trials"]
        beyond = f" + {past}" if name == OURS else ""
        if not trials:
            rows.append((titles.get(name, name), f"0{beyond}", "–", "–", "as the others"))
            continue
        chosen = trials[content["chosen"]]
        settings = ", ".join(f"{key} {value}" for key, value in chosen["settings"].items()) or "the default"
        figures = [_figure(trial["figure"]) for trial in (trials[0], chosen)]
        rows.append((titles.get(name, name), f"{len(trials)}{beyond}", *figures, settings))
    note = (
        "Settings that each system was given, all over the same kinds of knobs (learning rate, weight decay, warm-up, "
        "length; stride and pooling where they are its own to choose), with the same random draws, judged on the "
        "validation split alone, with one seed, by processes that have no test study. Trial 0 is the default, which "
        f"stays unless another is above it by more than {least_rise:g}. Systems on a frozen backbone have that "
        "backbone's trials and the six tries of their last layer; those that start from the black box have its trials "
        "and their own."
    )
    ours = (
        f"For CSR's recipe {past} settings are known to have been tried before, by hand and over the months; what was "
        "tried before the first recipe has no record, so this is a lower bound. A rival had the trials of its row."
    )
    columns = ("system", "trials", "figure of the default", "figure of the chosen", "chosen setting")
    before = [(each.what, each.settings, str(each.trials), each.judged, each.where) for each in PAST_TRIALS]
    tables = [Table("Past trials of CSR", ("ingredient", "settings", "trials", "judged on", "where"), before, ours)]
    return [Section("Trials", (note,), (*([Table("", columns, rows)] if rows else []), *tables))]


def _figure(value: float | None) -> str:
    return "failed" if value is None else f"{value:.3f}"
