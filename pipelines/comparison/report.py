"""Stage ``report``: everything the comparison found, as ``<folder>.md`` and ``<folder>.html``.

python -m pipelines.comparison.report
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from csr.baselines.protocol import WARM_START_EPOCHS, Entry, load_system, refusal
from csr.comparison.concept_pointing import concept_pointing_section
from csr.comparison.latency import answer_latency
from csr.comparison.report import OURS, main_sections, spread
from csr.comparison.runs import Runs, read_runs
from csr.comparison.systems import systems
from csr.data.html_report import Section, Table
from csr.data.prepared import PreparedSet
from csr.errors import DataError
from csr.training.images import load_images
from csr.training.runtime import device, use_device
from pipelines.comparison import missing_labels
from pipelines.comparison.common import PREDICTIONS_FOLDER, SYSTEMS_FOLDER
from pipelines.comparison.learning import TITLES, curves_section, read_curves, trials_section
from pipelines.comparison.recipes import recipes
from pipelines.comparison.settings import check_settings
from pipelines.comparison.writing import write_report
from pipelines.params import Params
from pipelines.stage import PREPARED


def build(params: Params) -> tuple[str, list[Section]]:
    """The report's title and sections.

    Raises:
        DataError: no system has run, or one with other settings than its trials chose.
    """
    use_device(params.train.device)
    folder, seeds = params.comparison.folder, list(params.comparison.seeds)
    data = PreparedSet.open(PREPARED)
    entries = systems(recipes())
    encoder = params.data.text_concepts is not None
    refusals = {n: reason for n, entry in entries.items() if (reason := refusal(entry, data.collection, encoder))}
    runs, missing = _runs(folder, seeds, data, {name: entry for name, entry in entries.items() if name not in refusals})
    if OURS not in runs:
        raise DataError(f"{folder}: holds no run of {OURS}; run dvc repro pipelines/comparison/dvc.yaml first")
    check_settings(folder, (report for each in runs.values() for report in each.reports))
    titles = TITLES | {name: each.title for name, each in runs.items()}
    sections = [
        _setting_section(params, data),
        *main_sections(data.collection, runs, [*refusals.values(), *missing]),
        *concept_pointing_section(data.collection, runs, data.side),
        *curves_section(read_curves(folder, seeds), titles, params.concepts),
        *trials_section(folder, titles, params.concepts.least_rise),
        *_ablation_section(folder, seeds),
        *_missing_labels_section(folder, seeds, runs, data.collection.test_parts()),
        Section("Interaction", (f"What readers' answers, boxes and reviews do is in {folder}_interaction.md.",)),
    ]
    return f"Comparison on {data.collection.name}", sections


def _runs(
    folder: Path, seeds: list[int], data: PreparedSet, entries: Mapping[str, Entry]
) -> tuple[dict[str, Runs], list[str]]:
    """Systems that have run with every seed, with the latency of the first seed's; and of the others why they are
    missing."""
    found, members, missing = {}, {}, []
    for name, entry in entries.items():
        absent = [str(seed) for seed in seeds if not (folder / f"{name}-{seed}.json").is_file()]
        if absent:
            missing.append(f"{entry.title} has not been run with seed {', '.join(absent)}")
        else:
            found[name] = read_runs(folder, PREDICTIONS_FOLDER, name, seeds, entry.start)
            members[name] = load_system(entry.kind, SYSTEMS_FOLDER / f"{name}-{seeds[0]}.pt").to(device())
    image = load_images(data, data.collection.rows("test")[:1], device())
    latency = answer_latency(members, image)
    return {name: replace(each, latency=latency[name]) for name, each in found.items()}, missing


def _setting_section(params: Params, data: PreparedSet) -> Section:
    collection, config = data.collection, params.concepts
    counts = ", ".join(f"{len(collection.rows(split))} {split}" for split in ("train", "val", "test"))
    stride = f"stride {config.model.stride}" + (f" with context {config.model.context}" if config.model.context else "")
    length = (
        f"{config.epochs} epochs of training images"
        if config.patience is None
        else f"at most {config.epochs} epochs of training images (Learning curves says when they end)"
    )
    further = f" for {WARM_START_EPOCHS:g} times as many epochs" if config.patience is None else ", by the same rule"
    seeds = ", ".join(map(str, params.comparison.seeds))
    text = (
        f"{counts} studies of {data.side}² pixels, {len(collection.concepts)} concepts, {len(collection.classes)} "
        f"classes{_fold(params)}. Every system: {config.model.backbone} at {stride}, {_weights(params)}, {length} in "
        f"batches of {config.batch_size * config.accumulate}, AdamW with a peak of {config.learning_rate:g}, the same "
        f"augmentation, and seeds {seeds}, unless trials chose otherwise. "
        "Last layers are fitted on frozen scores in addition. Prototype systems start from the trained black box and "
        f"train on{further}. Nothing was tuned on a test split but what Trials says."
    )
    if params.prototypes.located:
        text += (
            " The prototypes of CSR's robust recipe learn from inside the boxes of training images "
            "(prototypes.located); stage 1, the paper's recipe and all rivals learn from labels of whole images."
        )
    return Section("Setting", (text,))


def _fold(params: Params) -> str:
    data = params.data
    return "" if data.folds is None else f"; fold {data.fold} of {data.folds} is the test split, the next is val"


def _weights(params: Params) -> str:
    """Where the backbone's weights come from, and whether they learn."""
    model, freeze = params.concepts.model, params.concepts.freeze
    if not (model.pretrained or model.checkpoint):
        return "from random weights"
    source = Path(model.checkpoint).name if model.checkpoint else "timm"
    held = ", which stay as they are" if freeze == "all" else f", frozen for {freeze} epochs" if freeze else ""
    return f"with pretrained weights ({source}){held}"


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


def _missing_labels_section(
    folder: Path, seeds: list[int], runs: dict[str, Runs], parts: Sequence[str]
) -> list[Section]:
    files = {
        level: [folder / "missing_labels" / f"{level}-{seed}.json" for seed in seeds] for level in missing_labels.LEVELS
    }
    names = [name for name in missing_labels.SYSTEMS if name in runs]
    found = {
        level: [json.loads(file.read_text()) for file in own]
        for level, own in files.items()
        if all(file.is_file() for file in own)
    }
    if not found:
        return []
    rows = []
    for name in names:
        levels = {"0%": runs[name].reports} | {
            missing_labels.LEVELS[level].title: [one[name] for one in own] for level, own in found.items()
        }
        for title, reports in levels.items():
            cells = []
            for part in parts:
                own = [report[part] for report in reports]
                cells += [
                    spread([one["macro_f1"] for one in own]),
                    spread([one["concept_auroc"] for one in own]),
                    spread([one["pointing_game"]["pair"] for one in own]),
                ]
            rows.append((runs[name].title, title, *cells))
    columns = (
        "system",
        "hidden",
        *(f"{name}, {part}" for part in parts for name in ("F1", "concept AUROC", "pointing")),
    )
    note = (
        "Every stage trained from the start on concept labels of which a share is hidden at random, with what "
        "csr.training.few_labels makes of it. Class labels stay, and so do the concept labels of the validation split. "
        "An encoder is a simulated image-text encoder that fills the labels it is sure of."
    )
    return [Section("Missing concept labels", (note,), (Table("", columns, rows),))]


def main() -> None:
    """Writes the report and prints its Markdown."""
    write_report("report", build)


if __name__ == "__main__":
    main()
