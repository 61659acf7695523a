"""What the evaluation draws: confusion, operating points, abstaining, and the montage of predictions with maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from csr.data.decisions import decide
from csr.data.prepared import PreparedSet
from csr.evaluation.calibration import RiskCoverage
from csr.evaluation.metrics import class_f1, mean_auroc
from csr.evaluation.peaks import map_peaks
from pipelines.figures.saving import save


def write_confusion(
    truth: np.ndarray, probabilities: np.ndarray, classes: Sequence[str], folder: Path, part: str
) -> None:
    """Writes ``confusion_<part>.csv`` (``true, predicted``, a row a study) and ``.png``, shares of each true class.

    Args:
        truth: N indices. probabilities: N×T.
    """
    predicted, names = probabilities.argmax(1), np.array(classes)
    table = pd.DataFrame({"true": names[truth], "predicted": names[predicted]})
    table.to_csv(folder / f"confusion_{part}.csv", index=False)
    counts = np.zeros((len(classes), len(classes)))
    np.add.at(counts, (truth, predicted), 1)
    shares = counts / counts.sum(1, keepdims=True).clip(1)
    figure = Figure(figsize=(5, 4.4), layout="constrained")
    axis = figure.subplots()
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.ndindex(shares.shape):
        colour = "white" if shares[row, column] > 0.5 else "black"
        axis.text(column, row, f"{shares[row, column]:.2f}", ha="center", va="center", color=colour)
    axis.set_xticks(range(len(classes)), classes, rotation=30, ha="right")
    axis.set_yticks(range(len(classes)), classes)
    axis.set(xlabel="predicted", ylabel="true")
    save(figure, folder / f"confusion_{part}.png")


def write_operating_points(
    truth: np.ndarray,
    probabilities: np.ndarray,
    thresholds: np.ndarray,
    classes: Sequence[str],
    folder: Path,
    part: str,
) -> None:
    """Writes ``classes_<part>.csv`` and ``.png`` where a study can have several classes: ``class, positives, threshold,
    f1, sensitivity, specificity, auroc`` at each class's threshold.

    Args:
        truth: N×T of 1, 0 or NaN. probabilities: N×T.
        thresholds: T; see `csr.evaluation.thresholds`.
    """
    said = decide(probabilities, True, thresholds)
    rows = []
    for name, own, threshold, chosen, score in zip(classes, truth.T, thresholds, said.T, probabilities.T, strict=True):
        yes, no = own == 1, own == 0
        f1 = class_f1(own[:, None], chosen[:, None])[0]
        sensitivity, specificity = (chosen[yes].mean() if yes.any() else np.nan), 1 - chosen[no].mean()
        rows.append(
            (name, yes.sum(), threshold, f1, sensitivity, specificity, mean_auroc(own[:, None], score[:, None]))
        )
    columns = ["class", "positives", "threshold", "f1", "sensitivity", "specificity", "auroc"]
    table = pd.DataFrame(rows, columns=columns).round(6)
    table.to_csv(folder / f"classes_{part}.csv", index=False)
    figure = Figure(figsize=(6, 1.2 + 0.5 * len(classes)), layout="constrained")
    axis = figure.subplots()
    places = np.arange(len(classes))
    for shift, measure in enumerate(("f1", "sensitivity", "specificity", "auroc")):
        axis.barh(places + 0.2 * shift, table[measure], height=0.18, label=measure)
    axis.set_yticks(
        places + 0.3, [f"{name} ({count})" for name, count in zip(classes, table["positives"], strict=True)]
    )
    axis.set(xlim=(0, 1), title=f"{part}, at each class's threshold (number of positives)")
    axis.invert_yaxis()
    axis.legend(fontsize=7, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.08))
    save(figure, folder / f"classes_{part}.png")


def write_risk_coverage(curves: Mapping[str, RiskCoverage], folder: Path) -> None:
    """Writes ``risk_coverage.csv`` and ``.png``: what abstaining buys on each test part, and logs the figure.

    The table has ``part, coverage, risk, threshold``: of the part's studies a share ``coverage`` has a confidence of at
    least ``threshold``, and a share ``risk`` of these is classified wrongly.
    """
    folder.mkdir(parents=True, exist_ok=True)
    figure = Figure(figsize=(5, 4), layout="constrained")
    axis = figure.subplots()
    tables = []
    for part, curve in curves.items():
        columns = {"coverage": curve.coverage, "risk": curve.risk, "threshold": curve.threshold}
        tables.append(pd.DataFrame({"part": part, **columns}))
        axis.plot(curve.coverage, curve.risk, drawstyle="steps-post", label=f"{part}, AURC {curve.area:.3f}")
    pd.concat(tables).round(6).to_csv(folder / "risk_coverage.csv", index=False)
    axis.set(xlabel="coverage (share of studies answered)", ylabel="risk (share of answers wrong)", xlim=(0, 1))
    axis.set_ylim(bottom=0)
    axis.legend()
    axis.grid(alpha=0.3)
    save(figure, folder / "risk_coverage.png")


def write_montage(
    data: PreparedSet,
    rows: Sequence[int],
    probabilities: np.ndarray,
    concepts: np.ndarray,
    maps: np.ndarray,
    file: Path,
) -> None:
    """Draws one line a study: the image with all its boxes, then the maps of its (up to three) likeliest concepts.

    Args:
        rows: n studies of the collection.
        probabilities: n×T; the most probable class is named. concepts: n×K probabilities. maps: n×K×h×w similarity
            maps.
        file: the PNG to write.
    """
    shown = min(3, concepts.shape[1])
    size = (2.75 * (1 + shown), 2.9 * len(rows))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(rows), 1 + shown, squeeze=False)
    studies = data.collection.studies
    for line, row in zip(range(len(rows)), rows, strict=True):
        first = axes[line][0]
        _show(first, data, row)
        found = [name for name in data.collection.concepts if len(data.collection.boxes_of(row, name))]
        for name in found:
            _draw_boxes(first, data.collection.boxes_of(row, name), "#4fc3f7", name)
        if data.collection.classes:
            top = int(probabilities[line].argmax())
            predicted = f"{data.collection.classes[top]} {probabilities[line, top]:.2f}"
            first.set_title(f"true {data.collection.diagnosis(row)}\npredicted {predicted}", fontsize=9)
        for axis, k in zip(axes[line][1:], np.argsort(-concepts[line])[:shown], strict=True):
            name = data.collection.concepts[k]
            _show(axis, data, row)
            side = data.side
            heat = _enlarge(maps[line, k], side)
            axis.imshow(heat, cmap="inferno", alpha=0.8 * heat, extent=(0, side, side, 0), vmin=0, vmax=1)
            _draw_boxes(axis, data.collection.boxes_of(row, name), "#4fc3f7", "")
            x, y = map_peaks(maps[line, k], side)
            axis.plot(x, y, marker="+", color="white", markersize=11, markeredgewidth=1.6)
            present = {1.0: "present", 0.0: "absent"}.get(float(studies[f"concept:{name}"].iat[row]), "unknown")
            axis.set_title(f"{name.replace('_', ' ')} {concepts[line, k]:.2f}\n({present})", fontsize=9)
    save(figure, file)


def _show(axis: Axes, data: PreparedSet, row: int) -> None:
    image = np.asarray(data.images[row])
    axis.imshow(
        image[0] if len(image) == 1 else np.moveaxis(image, 0, -1),
        cmap="gray",
        vmin=0,
        vmax=255,
        extent=(0, data.side, data.side, 0),
    )
    axis.set_axis_off()


def _enlarge(similarity: np.ndarray, side: int) -> np.ndarray:
    """A map h×w in the image's size, smooth, clipped to [0, 1]."""
    resized = Image.fromarray(similarity.astype(np.float32)).resize((side, side), Image.Resampling.BICUBIC)
    return np.clip(np.asarray(resized), 0, 1)


def _draw_boxes(axis: Axes, boxes: np.ndarray, colour: str, label: str) -> None:
    for x_min, y_min, x_max, y_max in boxes:
        axis.add_patch(
            Rectangle((x_min, y_min), x_max - x_min, y_max - y_min, fill=False, edgecolor=colour, linewidth=1.2)
        )
    if label and len(boxes):
        axis.text(boxes[0][0] + 2, boxes[0][1] + 9, label.replace("_", " "), color=colour, fontsize=6)
