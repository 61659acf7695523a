"""The settings that a system's trials chose, for the stages that train it; see `pipelines.comparison.trials`.

What was trained says with which, and the report refuses to be made of what was trained with others: stages that are
run one by one, not by DVC, may come before the trials whose choice they should have had.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from csr.baselines.protocol import ExperimentContext
from csr.errors import DataError
from pipelines.comparison.common import TRIALS_FOLDER

_OF_MODEL = ("stride", "context")
_FILE = "settings.json"  # within a shared backbone's folder


def chosen_settings(name: str) -> dict[str, Any]:
    """What the trials of a system or shared backbone chose; nothing if it had none."""
    file = TRIALS_FOLDER / f"{name}.json"
    return json.loads(file.read_text()) if file.is_file() else {}


def with_settings(context: ExperimentContext, settings: Mapping[str, Any]) -> ExperimentContext:
    """The context with settings in place of its own: keys of ``concepts`` and ``concepts.model``, and ``pooling``."""
    model = {key: value for key, value in settings.items() if key in _OF_MODEL}
    other = {key: value for key, value in settings.items() if key not in (*_OF_MODEL, "pooling")}
    config = replace(context.config, model=replace(context.config.model, **model), **other)
    return replace(context, config=config, pooling=settings.get("pooling", context.pooling))


def write_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    """Keeps with a shared backbone what it was trained with."""
    (folder / _FILE).write_text(json.dumps(dict(settings), indent=2) + "\n")


def read_settings(folder: Path) -> dict[str, Any]:
    """What `write_settings` wrote.

    Raises:
        DataError: it did not.
    """
    try:
        found: dict[str, Any] = json.loads((folder / _FILE).read_text())
    except FileNotFoundError as error:
        raise DataError(f"{error.filename}: missing; train this shared backbone again") from None
    return found


def check_settings(folder: Path, reports: Iterable[Mapping[str, Any]]) -> None:
    """Compares what systems and the shared backbones they rest on were trained with and what the trials chose.

    Args:
        folder: of the comparison, with its ``trials``.
        reports: as `pipelines.comparison.system` writes them. One without ``settings`` was trained with the default.

    Raises:
        DataError: they differ.
    """
    for report in reports:
        resting = report.get("shared_backbone")
        used = {report["system"]: report.get("settings", {})}
        used |= {resting["kind"]: resting["settings"]} if resting else {}
        for name, settings in used.items():
            file = folder / "trials" / f"{name}.json"
            if not file.is_file():
                continue
            trials = json.loads(file.read_text())
            chosen = trials["trials"][trials["chosen"]]["settings"] if trials["trials"] else {}
            if settings != chosen:
                raise DataError(
                    f"{report['system']}, seed {report['seed']}: {name} was trained with {_said(settings)}, its trials "
                    f"({file}) chose {_said(chosen)}; train it again: dvc repro pipelines/comparison/dvc.yaml"
                )


def _said(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in settings.items()) or "the default"
