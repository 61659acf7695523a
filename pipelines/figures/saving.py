"""Writes a figure and keeps it with the MLflow run."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from pipelines.tracking import log_file


def save(figure: Figure, file: Path) -> None:
    """Writes a PNG that holds no version of the library that drew it, and logs it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=80, metadata={"Software": None})
    log_file(file, "figures")
