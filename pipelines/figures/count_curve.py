"""How many prototypes a concept needs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from csr.training.selection import CountCurve
from pipelines.figures.saving import save


def write_count_curve(curve: CountCurve, concepts: Sequence[str], folder: Path) -> None:
    """Writes ``per_concept.csv`` and ``.png``: what 1, 2, … prototypes a concept explain, and logs the figure.

    The table has ``per_concept`` (M), ``within`` and ``accuracy``, the ``shortfall`` of the concept that is worst off,
    and ``shortfall:<concept>`` for each; see `csr.training.selection`. M is enough where ``shortfall`` is at most 1.
    """
    folder.mkdir(parents=True, exist_ok=True)
    table = pd.DataFrame({"within": curve.within, "accuracy": curve.accuracy})
    by_concept = pd.DataFrame(curve.shortfall, columns=[f"shortfall:{name}" for name in concepts])
    table["shortfall"] = by_concept.max(axis=1)
    table.index = pd.RangeIndex(1, len(table) + 1, name="per_concept")
    by_concept.index = table.index
    table.join(by_concept).round(6).to_csv(folder / "per_concept.csv")
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    axes = figure.subplots(1, 2)
    for name in ("within", "accuracy"):
        axes[0].plot(table.index, table[name], marker=".", label=name)
    axes[0].set(title="validation vectors explained", xlabel="prototypes a concept", ylim=(0, 1))
    for name in concepts:
        axes[1].plot(table.index, by_concept[f"shortfall:{name}"], marker=".", label=name.replace("_", " "))
    axes[1].axhline(1, color="black", linestyle="--", linewidth=1)
    axes[1].set(title="shortfall (enough: at most 1)", xlabel="prototypes a concept", ylabel="standard errors")
    for axis in axes:
        axis.legend(fontsize=6)
        axis.grid(alpha=0.3)
    save(figure, folder / "per_concept.png")
