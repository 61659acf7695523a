"""The report of `pipelines.reproduce`: our numbers of a set beside those that the paper prints, and what they cost."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from csr.comparison.published import PUBLISHED
from csr.comparison.report import spread
from csr.data.html_report import Section, Table
from csr.data.prepared import PreparedSet
from pipelines.params import Params

TITLES = {"paper": "CSR to the letter, ours", "robust": "CSR robust, ours"}  # presets, in the order in which they run
STAGES = ("concepts", "features", "prototypes", "head")


class PaperSet(NamedTuple):
    """A data set of the paper.

    Args:
        title: its name.
        f1: the field of `csr.comparison.published.Published` that holds its macro F1.
        get: what a person needs to have it here.
    """

    title: str
    f1: str
    get: str


SETS = {
    "tbx11k": PaperSet(
        "TBX11K",
        "tbx11k",
        "get TBX11K (Liu et al. 2020) from its authors' page, unpack it, lay your concepts.csv beside imgs, and name "
        "the folder that holds imgs, lists and annotations",
    ),
    "vindr_cxr": PaperSet(
        "VinDr-CXR",
        "vindr",
        "get VinDr-CXR 1.0.0 from PhysioNet (credentialed access) and name the folder that holds train, test and "
        "annotations",
    ),
    "isic2017": PaperSet(
        "ISIC 2017",
        "isic",
        "get the data and the ground truths of parts 2 and 3 of ISIC 2017 from the challenge's archive and name the "
        "folder that holds ISIC-2017_Training_Data and the others",
    ),
}


def report_sections(name: str, out: Path, data: PreparedSet, params: Params, points: Sequence[str]) -> list[Section]:
    """The report: setting, our numbers beside the paper's, pointing by concept, what was open, cost.

    Args:
        points: see `pipelines.reproduce.open_points`.
    """
    runs = {
        preset: [
            json.loads((out / f"{preset}-{seed}" / "metrics.json").read_text()) for seed in params.comparison.seeds
        ]
        for preset in TITLES
    }
    return [
        _setting(data, params),
        _beside_the_paper(SETS[name], data, runs),
        *_by_concept(runs),
        Section("What the paper leaves open, and what was set", tuple(points)),
        _cost(data, runs),
    ]


def _setting(data: PreparedSet, params: Params) -> Section:
    collection, stage1 = data.collection, params.concepts
    counts = ", ".join(f"{len(collection.rows(split))} {split}" for split in ("train", "val", "test"))
    weights = "pretrained" if stage1.model.pretrained or stage1.model.checkpoint else "from random weights"
    text = (
        f"{counts} studies of {data.side}² pixels, {len(collection.concepts)} concepts, {len(collection.classes)} "
        f"classes ({collection.task}). {stage1.model.backbone}, {weights}, stride {stage1.model.stride}; stage 1: "
        f"{stage1.epochs} epochs in batches of {stage1.batch_size}, AdamW with a peak of {stage1.learning_rate:g}. "
        f"Seeds {', '.join(map(str, params.comparison.seeds))}. Nothing was tuned on the test split."
    )
    return Section("Setting", (text, *data.notes()))


def _beside_the_paper(published: PaperSet, data: PreparedSet, runs: Mapping[str, list[dict[str, Any]]]) -> Section:
    """Percent throughout, since the paper prints percent."""

    def percent(values: Sequence[float | None]) -> str:
        return spread([None if value is None else 100 * value for value in values], 1)

    rows = []
    for preset, title in TITLES.items():
        for part in data.collection.test_parts():
            own = [run["parts"][part] for run in runs[preset]]
            game = [each["pointing_game"] for each in own]
            rows.append(
                (
                    title if len(data.collection.test_parts()) == 1 else f"{title}, {part}",
                    percent([each["macro_f1"] for each in own]),
                    *(percent([each[level] for each in game]) for level in ("pair", "image", "chance", "centre")),
                    percent([each["concept_auroc"] for each in own]),
                    f"{statistics.mean(run['prototypes'] for run in runs[preset]):.0f}",
                )
            )
    for row in PUBLISHED:
        f1 = getattr(row, published.f1)
        if f1 is not None:
            of_paper = published.f1 == "tbx11k"  # the only set of which it prints more than F1
            pointing, prototypes = (row.pointing, row.prototypes) if of_paper else (None, None)
            cells = ("–" if pointing is None else f"{pointing:.1f}", "–" if prototypes is None else str(prototypes))
            rows.append((f"{row.system}, paper", f"{f1:.1f}", cells[0], "–", "–", "–", "–", cells[1]))
    columns = (
        "system",
        "macro F1",
        "pointing, pair",
        "pointing, image",
        "chance",
        "centre",
        "concept AUROC",
        "prototypes",
    )
    note = (
        "Percent; ours: mean ± standard deviation over the seeds. The paper does not say how it counts the pointing "
        "game; its figure stands under pairs. Prototypes of ours are those that are alive."
    )
    return Section("Beside the paper", (note,), (Table("", columns, rows),))


def _by_concept(runs: Mapping[str, list[dict[str, Any]]]) -> list[Section]:
    hits: dict[tuple[str, str], dict[str, Any]] = {}
    for preset, own in runs.items():
        for run in own:
            for row in run["by_concept"]:
                found = hits.setdefault((row["part"], row["concept"]), {"levels": row, **{name: [] for name in TITLES}})
                found[preset].append(row["pointing_game"])
    if not hits:
        return []
    rows = [
        (
            concept,
            part,
            str(found["levels"]["pairs"]),
            f"{found['levels']['chance']:.3f}",
            f"{found['levels']['centre']:.3f}",
            *(spread(found[preset]) for preset in TITLES),
        )
        for (part, concept), found in hits.items()
    ]
    columns = ("concept", "part", "pairs", "chance", "centre", *TITLES.values())
    return [Section("Pointing by concept", (), (Table("", columns, rows),))]


def _cost(data: PreparedSet, runs: Mapping[str, list[dict[str, Any]]]) -> Section:
    """Seconds of each stage, and of 1,000 images: of one epoch where there are epochs."""
    train = len(data.collection.labelled_rows("train"))
    rows = []
    for preset, own in runs.items():
        for stage in STAGES:
            seconds = statistics.mean(run["cost"][stage]["seconds"] for run in own)
            epochs = own[0]["cost"][stage].get("epochs", 1)
            images = len(data.images) if stage == "features" else train
            each = f"{1000 * seconds / max(epochs, 1) / images:.1f}"
            rows.append((TITLES[preset], stage, f"{seconds:.0f}", str(epochs), each))
    columns = ("system", "stage", "seconds", "epochs", "seconds per 1,000 images and epoch")
    note = (
        "Mean over the seeds, on this machine, with what validation after each epoch costs. Features are computed "
        f"once, of all {len(data.images)} images; the others learn from {train}. Threads: {torch.get_num_threads()}, "
        f"cores: {len(os.sched_getaffinity(0))}, GPU: {'yes' if torch.cuda.is_available() else 'no'}."
    )
    return Section("Cost", (note,), (Table("", columns, rows),))
