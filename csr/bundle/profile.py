"""The input profile: what the training images were, and what speaks against reading another image. Torch-free.

Two kinds of reasons. Those of the *pixels* are scores of the encoder's graph, one a part (`csr.network.guard`), above
`LIMIT` where an image is more unlike the training images than 1 % of good validation images are. Those of the *file*
are what it says of itself: a DICOM header that names another modality, part of the body or view than the training
images had, and colour where they had none. A header is compared with what is known only: a profile that does not state
the modality contradicts none, and a file that says nothing contradicts nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

import numpy as np

from csr.data.headers import HEADER_COLUMNS

Part = Literal["texture", "content", "layout", "handedness", "grey_levels", "detail"]
PARTS: tuple[Part, ...] = get_args(Part)  # in the order of the encoder's output ``fit_scores``
HEADERS = HEADER_COLUMNS
GREY_EDGES = tuple(step / 16 for step in range(1, 16))  # of the histogram, in 0..1
LIMIT = 1.0
_COLOUR = 0.06  # difference between channels that is no rounding of a JPEG file
_COLOURED = 0.01  # share of the pixels
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"  # and its multi-frame kin, numbered below it (PS3.4 B.5)
_MONOCHROME = ("MONOCHROME1", "MONOCHROME2")  # one picture, stored in two ways
ReasonCode = Literal[
    "texture",
    "content",
    "layout",
    "handedness",
    "grey_levels",
    "detail",
    "modality",
    "body_part",
    "view",
    "photometric",
    "secondary_capture",
    "colour",
    "aspect",
]

_SAID: dict[Part, str] = {
    "texture": "Its texture, as the network sees it, is unlike that of the training images.",
    "content": "What the network finds in it is unlike what it found in the training images.",
    "layout": "It is laid out unlike the training images: turned, mirrored, cropped, inverted, or of something else.",
    "handedness": "It looks mirrored: what lies left in the training images lies right in it.",
    "grey_levels": "Its grey values are spread unlike those of the training images: inverted, too bright or too dark, "
    "or read with the wrong window or bit depth.",
    "detail": "It is sharper, smoother or noisier than the training images.",
}
_WORDS = {"modality": "modality", "body_part": "body part", "view": "view", "photometric": "photometric interpretation"}


@dataclass(frozen=True)
class Reason:
    """Why an image does not fit: a code for programs and a sentence for people."""

    code: ReasonCode
    message: str


@dataclass(frozen=True)
class FileFacts:
    """What a file says of itself, beside its pixels; None: nothing.

    Args:
        modality, body_part, view, photometric: DICOM's terms.
        sop_class: the DICOM storage class's UID.
        coloured: whether the picture has colour, whatever the network is shown of it.
    """

    modality: str | None = None
    body_part: str | None = None
    view: str | None = None
    photometric: str | None = None
    sop_class: str | None = None
    coloured: bool = False


@dataclass(frozen=True)
class InputProfile:
    """What the training images were.

    Args:
        images: how many this is about: those of splits ``train`` and ``val``.
        modality, body_part, view, photometric: the terms that a header must be among; none: that is not known.
        side, channels: of the images as the network sees them.
        aspect: least and largest width / height.
        grey_levels: shares of pixels in 16 bins from black to white, of the mean image.
        detail: quartiles of the mean |Laplacian| of an image, in grey levels of 255.
        score_edges, score_shares: how the score of good images was spread, by guards that had not seen them; see
            `csr.bundle.format.ConceptReference`.
        flagged: share of good validation images above the limit, by guards that had not seen them.
        part_flagged: the same by part.
    """

    images: int
    modality: tuple[str, ...]
    body_part: tuple[str, ...]
    view: tuple[str, ...]
    photometric: tuple[str, ...]
    side: int
    channels: int
    aspect: tuple[float, float]
    grey_levels: tuple[float, ...]
    detail: tuple[float, ...]
    score_edges: tuple[float, ...]
    score_shares: tuple[float, ...]
    flagged: float
    part_flagged: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """Plain types from which `from_json` makes the same."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> InputProfile:
        """The inverse of `to_json`.

        Raises:
            KeyError: a part is missing.
        """
        values = {each.name: content[each.name] for each in fields(cls)}
        known: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
        }
        return cls(**known)

    def file_reasons(self, facts: FileFacts, width: int, height: int) -> list[Reason]:
        """What a file says that contradicts the profile.

        Args:
            facts: of the file.
            width, height: of its picture, in pixels.
        """
        found = [reason for name in HEADERS if (reason := self._header_reason(name, getattr(facts, name)))]
        if self.modality and f"{facts.sop_class}.".startswith(f"{_SECONDARY_CAPTURE}."):
            said = "The file is a secondary capture: a screenshot or a scan, not an acquisition."
            found.append(Reason("secondary_capture", said))
        grey_only = self.photometric and not set(self.photometric) - set(_MONOCHROME)
        if facts.coloured and grey_only and not any(reason.code == "photometric" for reason in found):
            found.append(Reason("colour", "The picture is in colour; the training images were grey."))
        least, most = self.aspect
        if not least <= width / height <= most:
            said = (
                f"It is {width / height:.2f} times as wide as high; the training images were {least:.2f} to {most:.2f}."
            )
            found.append(Reason("aspect", said))
        return found

    def _header_reason(self, name: Any, said: str | None) -> Reason | None:
        expected: tuple[str, ...] = getattr(self, name)
        same = _MONOCHROME if name == "photometric" and set(expected) & set(_MONOCHROME) else ()
        if said is None or not expected or said in expected or said in same:
            return None
        return Reason(
            name, f"The file says {_WORDS[name]} {said}; the training images were {' or '.join(sorted(expected))}."
        )


def pixel_reasons(scores: np.ndarray) -> list[Reason]:
    """The parts whose score is above `LIMIT`, the highest first.

    A picture is called mirrored only where that is what is most unlike: of one that is unlike altogether, as something
    else is, left and right mean nothing.

    Args:
        scores: R, in the order of `PARTS`.
    """
    order = [PARTS[index] for index in np.argsort(-scores, kind="stable") if not scores[index] <= LIMIT]
    return [Reason(part, _SAID[part]) for part in order if part != "handedness" or part == order[0]]


def fit_score(scores: np.ndarray) -> float:
    """One score of all R parts: the largest."""
    return float(np.max(scores))


def is_coloured(image: np.ndarray) -> bool:
    """Whether a picture has colour: a hundredth of its pixels differ visibly between channels.

    Args:
        image: H×W×C, uint8 or floats in [0, 1], as `csr.data.images.decode` gives it.
    """
    if image.shape[2] == 1:
        return False
    unit = 255 if image.dtype == np.uint8 else 1
    difference = image.max(2).astype(np.float32) - image.min(2)
    return bool((difference > _COLOUR * unit).mean() > _COLOURED)


def stated_headers(stated: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
    """Every one of `HEADERS` with the terms that are stated, in order and once."""
    return {name: tuple(sorted(set(stated.get(name, ())))) for name in HEADERS}
