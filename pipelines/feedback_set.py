"""Which feedback set is meant: what is in ``data/feedback`` when there is one."""

from __future__ import annotations

from pathlib import Path

from csr.data.feedback.folder import MANIFEST
from csr.errors import ConfigError
from pipelines.params import AUTO, FEEDBACK, DataParams


def learned_from(data: DataParams) -> Path | None:
    """The feedback set that is learned from: what ``data.feedback`` names, or with ``auto`` `the_only_one`."""
    if data.feedback == AUTO:
        return the_only_one()
    return None if data.feedback is None else Path(data.feedback)


def the_only_one() -> Path | None:
    """The set in ``data/feedback``; None if there is none.

    Raises:
        ConfigError: there are several.
    """
    found = sorted(file.parent for file in Path(FEEDBACK).rglob(MANIFEST))
    if len(found) > 1:
        raise ConfigError(
            f"{FEEDBACK}: holds several feedback sets, {', '.join(map(str, found))}; name the one that is meant in "
            "data.feedback, or keep the others elsewhere"
        )
    return found[0] if found else None
