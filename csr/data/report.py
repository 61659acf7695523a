"""What a person should know of a prepared data set before training on it, as one page."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from html import escape

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw

from csr.data.confounders import LIMIT, Predictor, confounder_summary, confounder_warnings, confounders
from csr.data.html_report import Section, Table
from csr.data.prepared import PreparedSet
from csr.data.problems import Group, Problem, grouped
from csr.data.quality import quality_warnings
from csr.data.records import CORNERS, SPACING, SPLITS

SHOWN = 12  # images of the montage
MAGNIFIED = 192  # pixels that they are shown at


def data_sections(data: PreparedSet, stride: int, skipped: pd.DataFrame, notes: Sequence[str] = ()) -> list[Section]:
    """Warnings, counts, co-occurrence, what else predicts the class, box sizes against the map's cells, what was left
    out, and examples.

    Args:
        stride: pixels of a prepared image that one cell of the maps covers.
        skipped: ``where, reason, kind``; see `csr.data.problems.Problem`.
        notes: of the source, shown with the warnings.
    """
    found = confounders(data)
    return [
        *_warnings([*notes, *quality_warnings(data), *confounder_warnings(found)]),
        _counts(data),
        _concepts(data),
        _together(data),
        *_confounders(found),
        _boxes(data, stride),
        *_skipped(skipped),
        _examples(data),
    ]


def _warnings(found: Sequence[str]) -> list[Section]:
    return [Section("Warnings", tuple(f"{text[0].upper()}{text[1:]}." for text in found))] if found else []


def _counts(data: PreparedSet) -> Section:
    studies = data.collection.studies
    rows = []
    for name, has in zip(data.collection.classes, data.collection.class_indicators().T, strict=True):
        own = studies[has == 1]["split"]
        rows.append((name, *(f"{int((own == split).sum()):,}" for split in SPLITS), f"{len(own):,}"))
    unknown = studies["split"][~data.collection.has_class()] if data.collection.classes else studies["split"].iloc[:0]
    if len(unknown):
        counts = (f"{int((unknown == split).sum()):,}" for split in SPLITS)
        rows.append(("class unknown", *counts, f"{len(unknown):,}"))
    rows.append(("all", *(f"{len(data.collection.rows(split)):,}" for split in SPLITS), f"{len(studies):,}"))
    note = f"{len(studies):,} images of {data.side}² pixels and {data.channels} channel(s)"
    if "patient_id" in studies:
        note += f", {studies['patient_id'].nunique():,} patients"
    if data.collection.task == "multilabel":
        note += "; a study can have several classes, or none"
    if len(unknown):
        note += "; those whose class is unknown train the concepts, not the head"
    return Section("Studies", (note + ".",), (Table("", ("class", *SPLITS, "all"), rows),))


def _concepts(data: PreparedSet) -> Section:
    labels = data.collection.concept_labels()
    boxes = data.collection.boxes["concept"].value_counts()
    rows = []
    for k, name in enumerate(data.collection.concepts):
        cells = []
        for split in SPLITS:
            own = labels[data.collection.rows(split), k]
            cells.append(f"{(own == 1).sum():,} / {(own == 0).sum():,} / {np.isnan(own).sum():,}")
        rows.append((name, *cells, f"{int(boxes.get(name, 0)):,}"))
    columns = ("concept", *(f"{split}: present / absent / unknown" for split in SPLITS), "boxes")
    return Section("Concepts", (), (Table("", columns, rows),))


def _together(data: PreparedSet) -> Section:
    """How often concepts are present together, and with each class."""
    collection = data.collection
    shown = np.nan_to_num(collection.concept_labels()) == 1
    of_class = collection.class_indicators() == 1
    with_class = [
        (name, *(f"{_share(shown[of_class[:, t], k]):.0%}" for t in range(len(collection.classes))))
        for k, name in enumerate(collection.concepts)
    ]
    with_concept = [
        (name, *("" if k == j else f"{_share(shown[shown[:, k], j]):.0%}" for j in range(len(collection.concepts))))
        for k, name in enumerate(collection.concepts)
    ]
    note = "Shares of all studies; an unknown label counts as not present."
    tables = [
        Table("Of the studies of a class, how many show a concept", ("concept", *collection.classes), with_class),
        Table("Of the studies with a concept (row), how many show another", ("", *collection.concepts), with_concept),
    ]
    return Section("Co-occurrence", (note,), tuple(tables if collection.classes else tables[1:]))


def _confounders(found: Sequence[Predictor]) -> list[Section]:
    if not found:
        return []
    note = (
        "How well what is known of a study beside its findings predicts its classes and concepts, in training studies "
        "of patients that the classifier has not seen (csr.data.confounders). A row names the label that is predicted "
        f"best, with an interval at 95 %: all of it above {LIMIT} is a warning, around 0.5 there is nothing to tell."
    )
    summary = confounder_summary(found)
    columns = ("what is known", "predicts", "AUROC", "from", "to", "others above the limit")
    tables = []
    for kind in dict.fromkeys(each.kind for each in found):
        rows = [
            (
                each.name,
                each.label,
                *(f"{value:.2f}" for value in (each.auroc, each.low, each.high)),
                str(each.others) if each.others else "",
            )
            for each in found
            if each.kind == kind
        ]
        tables.append(Table({"class": "Classes", "concept": "Concepts"}[kind], columns, rows))
    return [Section("What else predicts the class", (f"{summary[0].upper()}{summary[1:]}.", note), tuple(tables))]


def _share(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else 0.0


def _boxes(data: PreparedSet, stride: int) -> Section:
    boxes, studies = data.collection.boxes, data.collection.studies.set_index("study_id")
    measured = set(SPACING) <= set(studies)
    rows: list[tuple[str, ...]] = []
    coarse = []
    for name in data.collection.concepts:
        corners = boxes.loc[boxes["concept"] == name, CORNERS].to_numpy(np.float64)
        if not len(corners):
            rows.append((name, "0", *("–",) * (3 + measured)))
            continue
        sides = np.sqrt((corners[:, 2] - corners[:, 0]) * (corners[:, 3] - corners[:, 1]))
        small = float((sides < stride).mean())
        median = float(np.median(sides))
        row = [name, f"{len(sides):,}", f"{median:.0f}", f"{median / stride:.1f}", f"{small:.0%}"]
        if measured:
            pixel = studies.loc[boxes.loc[boxes["concept"] == name, "study_id"], list(SPACING)].to_numpy(np.float64)
            millimetres = sides * np.sqrt(pixel.prod(1))
            known = millimetres[~np.isnan(millimetres)]
            row.append(f"{np.median(known):.0f}" if len(known) else "–")
        rows.append(tuple(row))
        if small > 0.5:
            coarse.append(name)
    note = (
        f"A cell of the maps covers {stride}×{stride} pixels of the prepared image. A box's side is √(width · height)."
    )
    paragraphs = [note]
    if coarse:
        paragraphs.append(
            f"Warning: most boxes of {', '.join(coarse)} are smaller than a cell, so a map cannot point at them. "
            "Prepare larger images (data.side) or take a smaller stride (concepts.model.stride)."
        )
    columns: tuple[str, ...] = ("concept", "boxes", "median side, pixels", "in cells", "smaller than a cell")
    if measured:
        columns = (*columns, "median side, mm")
    return Section("Boxes", tuple(paragraphs), (Table("", columns, rows),))


def _skipped(skipped: pd.DataFrame) -> list[Section]:
    if skipped.empty:
        return []
    problems = [Problem(row.where, row.reason, kind=row.kind) for row in skipped.itertuples()]
    rows: list[tuple[str, ...]] = []
    for each in grouped(problems):
        if isinstance(each, Group):
            rows.append((each.where, f"{each.count:,} {each.unit}", each.reason, each.first))
        else:
            rows.append((each.where, "", each.reason, ""))
    table = Table("", ("where", "how many", "reason", "first"), rows)
    return [Section("Left out", (f"{len(skipped):,} rows or studies; skipped.csv lists each.",), (table,))]


def _examples(data: PreparedSet) -> Section:
    """The first training studies of each class (of each concept where there is none), with their boxes."""
    collection = data.collection
    kinds = collection.class_indicators() if collection.classes else collection.concept_labels()
    train, each = collection.rows("train"), math.ceil(SHOWN / kinds.shape[1])
    rows = dict.fromkeys(row for has in kinds.T for row in train[has[train] == 1][:each].tolist())
    boxes = collection.boxes_by_pair()
    figures = []
    for row in rows:
        own = {name: boxes[row, k] for k, name in enumerate(collection.concepts) if (row, k) in boxes}
        study = collection.studies["study_id"].iat[row]
        title = f"{study}, {collection.diagnosis(row)}: {', '.join(own) or 'no box'}"
        figures.append(_picture(data.images[row], np.concatenate([np.zeros((0, 4)), *own.values()]), title))
    of = "class" if collection.classes else "concept"
    return Section("Examples", (f"The first training studies of each {of}, with all boxes.",), (), tuple(figures))


def _picture(canvas: np.ndarray, boxes: np.ndarray, title: str) -> str:
    scale = MAGNIFIED / canvas.shape[1]
    pixels = canvas[0] if len(canvas) == 1 else np.moveaxis(canvas, 0, -1)
    image = Image.fromarray(np.ascontiguousarray(pixels)).convert("RGB").resize((MAGNIFIED, MAGNIFIED))
    draw = ImageDraw.Draw(image)
    for box in boxes * scale:
        draw.rectangle(tuple(box), outline=(255, 196, 0))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    data = base64.b64encode(buffer.getvalue()).decode()
    return (
        f'<img src="data:image/jpeg;base64,{data}" alt="{escape(title)}" title="{escape(title)}" width="{MAGNIFIED}">'
    )
