"""Parameters as flat names, for MLflow and for telling trainings apart."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dataclasses as ``section.key`` → value."""
    if not is_dataclass(value):
        return {prefix: value}
    flat: dict[str, Any] = {}
    for each in fields(value):
        flat |= flatten(getattr(value, each.name), f"{prefix}.{each.name}" if prefix else each.name)
    return flat
