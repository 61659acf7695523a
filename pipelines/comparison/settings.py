"""The settings that a system's trials chose, for the stages that train it; see `pipelines.comparison.trials`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from csr.baselines.protocol import ExperimentContext
from pipelines.comparison.common import TRIALS_FOLDER

_OF_MODEL = ("stride", "context")


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
