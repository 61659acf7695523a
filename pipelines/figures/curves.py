"""What a training stage reports each epoch, as a table and a figure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from pipelines.figures.saving import save


def write_curves(stage: str, history: Sequence[dict[str, float]], folder: Path) -> None:
    """Writes ``<stage>.csv`` (for ``dvc plots``) and ``<stage>.png`` (every curve), and logs the figure."""
    folder.mkdir(parents=True, exist_ok=True)
    table = pd.DataFrame(history).round(6)
    table["epoch"] = table["epoch"].astype(int)
    table.to_csv(folder / f"{stage}.csv", index=False)
    names = [name for name in table if name != "epoch"]
    columns = min(4, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(3.2 * columns, 2.4 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.set_visible(False)
    for axis, name in zip(axes.flat, names, strict=False):
        axis.set_visible(True)
        axis.plot(table["epoch"] + 1, table[name], marker="." if len(table) < 20 else None)
        axis.set(title=name.replace("_", " "), xlabel="epoch")
        axis.grid(alpha=0.3)
    save(figure, folder / f"{stage}.png")
