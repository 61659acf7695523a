"""Readings, reviews and pictures that tests put together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from csr.data.feedback import FeedbackBox, FeedbackSet, PrototypeReview, Reading, ReviewSource, write_feedback
from csr.data.images import pixel_digest
from tests.csr.synthetic import CLASSES, SIDE


def picture(seed: int, side: int = SIDE) -> np.ndarray:
    """1×side×side uint8."""
    return np.random.default_rng([seed, 99]).integers(0, 255, (1, side, side), dtype=np.uint8)


def reading(study: str, number: int = 1, reader: str = "reader-a", **said: Any) -> Reading:
    about = {"decision": "keep", "found": (), "classes": CLASSES, "confirmed": (), "rejected": (), "boxes": ()}
    return Reading(
        study=study, reader=reader, number=number, bundle="b" * 64, model="1", month="2026-11", **{**about, **said}
    )


def finding(concept: str, *corners: float) -> FeedbackBox:
    return FeedbackBox("finding", concept, *corners)


def review(concept: str, index: int, verdict: Any = "prune", number: int = 50, **sources: float) -> PrototypeReview:
    shown = tuple(ReviewSource(study, value) for study, value in (sources or {"s000": 0.5}).items())
    return PrototypeReview("b" * 64, concept, index, verdict, "artefact", ("reviewer-a",), number, "2026-11", shown)


def write(
    path: Path, readings: Sequence[Reading], canvases: Sequence[np.ndarray], reviews: Sequence[PrototypeReview] = ()
) -> FeedbackSet:
    of = {pixel_digest(canvas): canvas for canvas in canvases}
    last = max([0, *(each.number for each in (*readings, *reviews))])
    return write_feedback(path, readings, reviews, of.__getitem__, (last, "f" * 64), {})
