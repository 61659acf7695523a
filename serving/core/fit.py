"""Whether an image is like those that the model was trained on, and what follows if it is not.

The pixels are judged once, by the encoder's graph. What a file said of itself is judged with them: a study that came as
several files, for example as PNG and as DICOM, has the reasons of all of them. DICOM headers are kept with the study;
that a file was in colour is known while the study is held in memory, and on record in the prediction.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np

from csr.bundle.profile import LIMIT, FileFacts, Reason, fit_score, pixel_reasons
from csr.data.images import Placement
from serving.errors import MisfitError
from serving.interfaces.schemas import Fits, MisfitReason
from serving.models.in_service import Model

MisfitAction = Literal["warn", "abstain", "refuse"]


def file_facts(files: Iterable[tuple[str | None, bool]]) -> tuple[FileFacts, ...]:
    """What files said of themselves, each thing once; a file without a header and without colour said nothing.

    Args:
        files: of each the allowed attributes of its header as JSON, if it had one, and whether it has colour; see
            `serving.store.studies.StoredStudy`.
    """
    found = dict.fromkeys(_facts(*each) for each in files)
    found.pop(FileFacts(), None)
    return tuple(found)


def judge(
    model: Model, scores: np.ndarray, facts: Sequence[FileFacts], placement: Placement, action: MisfitAction
) -> Fits:
    """What speaks against reading an image, and what follows.

    Args:
        model: whose training images it is compared with.
        scores: R, of the encoder's output ``fit_scores``.
        facts: of the files that it came as.
        placement: of the last of them.
    """
    said = [model.profile.file_reasons(each, placement.width, placement.height) for each in facts or (FileFacts(),)]
    reasons = list(dict.fromkeys([*(reason for own in said for reason in own), *pixel_reasons(scores)]))
    return _fits(scores, reasons, action)


def require_fit(fits: Fits, name: str = "the study") -> None:
    """Raises:
    MisfitError: it does not fit, and what does not fit is refused here.
    """
    if fits.action == "refuse":
        said = " ".join(each.message for each in fits.reasons)
        raise MisfitError(f"{name}: is unlike the images that the model was trained on. {said}")


def tensor_fits(scores: np.ndarray, action: MisfitAction) -> list[Fits]:
    """The same of images that came as tensors, of which no file says anything.

    Args:
        scores: N×R.
        action: what follows if one does not fit.
    """
    return [_fits(own, pixel_reasons(own), action) for own in scores]


def _fits(scores: np.ndarray, reasons: Sequence[Reason], action: MisfitAction) -> Fits:
    return Fits(
        score=fit_score(scores),
        limit=LIMIT,
        reasons=[MisfitReason(code=each.code, message=each.message) for each in reasons],
        action=action if reasons else "none",
    )


def _facts(source: str | None, coloured: bool) -> FileFacts:
    """The source's keys are the fields of `serving.dicom.deidentify.DicomSource`."""
    said = {} if source is None else json.loads(source)
    return FileFacts(
        modality=said.get("modality"),
        body_part=said.get("body_part"),
        view=said.get("view_position"),
        photometric=said.get("photometric_interpretation"),
        sop_class=said.get("sop_class_uid"),
        coloured=coloured,
    )
