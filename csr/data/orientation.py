"""Eight ways to turn a picture, and which of them brings a DICOM image into the orientation that a network knows.

A turn is a number from 1 to 8, what EXIF's tag Orientation means by it (CIPA DC-008, 4.6.5): what must be done to the
stored image to see it upright.

DICOM says how a patient lies in the stored pixels by two directions, that of the rows and that of the columns: Patient
Orientation (PS3.3 C.7.6.1.1.1), letters of the patient's axes, or Image Orientation (Patient) (C.7.6.2.1.1), cosines.
``L\\F`` is the chest radiograph on a light box: the patient's left is at the picture's right, the feet are below.

Field of View Rotation and Horizontal Flip (C.8.11.4.1.1) say how the stored pixels were turned out of the detector's
own grid, and not how the patient lies in them. Patient Orientation describes the pixels after that, so an image must
not be turned by both, and where it is missing the two cannot take its place.

Not turned: cross sections, whose plane a display orientation of projections says nothing about, and files that do not
say how the patient lies.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from csr.errors import ImageError

if TYPE_CHECKING:
    import pydicom

AS_STORED = 1
CHEST = "L\\F"
SECTIONS = ("CT", "MR", "PT", "NM", "US", "IVUS", "OCT", "OPT")  # modalities that are no projections
TAGS = ("PatientOrientation", "ImageOrientationPatient", "Modality", "AnatomicalOrientationType")
_AXES = {"L": "RL", "R": "RL", "A": "AP", "P": "AP", "H": "HF", "F": "HF"}
_LETTERS = np.array([["R", "L"], ["A", "P"], ["F", "H"]])  # of the negative and positive x, y and z (C.7.6.2.1.1)
_STRAIGHT = 0.9  # cosine of the angle, about 25°, up to which an axis of the image is one of the patient's
# turn: (transposed, then mirrored left and right, then up and down)
_STEPS = {
    1: (False, False, False),
    2: (False, True, False),
    3: (False, True, True),
    4: (False, False, True),
    5: (True, False, False),
    6: (True, True, False),
    7: (True, True, True),
    8: (True, False, True),
}
_TURNS = {steps: turn for turn, steps in _STEPS.items()}


def is_turned(turn: int) -> bool:
    """Whether width and height change places."""
    return _STEPS[turn][0]


def turn_image(image: np.ndarray, turn: int) -> np.ndarray:
    """H×W×… as stored → upright; a view."""
    transposed, across, down = _STEPS[turn]
    image = image.swapaxes(0, 1) if transposed else image
    return image[:: -1 if down else 1, :: -1 if across else 1]


def turn_image_back(image: np.ndarray, turn: int) -> np.ndarray:
    """The inverse of `turn_image`."""
    transposed, across, down = _STEPS[turn]
    image = image[:: -1 if down else 1, :: -1 if across else 1]
    return image.swapaxes(0, 1) if transposed else image


def turn_boxes(boxes: np.ndarray, turn: int, width: int, height: int) -> np.ndarray:
    """…×4 boxes (x_min, y_min, x_max, y_max) in pixels of the stored image → in pixels of the upright one.

    Args:
        width, height: of the stored image.
    """
    transposed, across, down = _STEPS[turn]
    boxes = np.asarray(boxes, np.float64)
    if transposed:
        boxes, width, height = boxes[..., [1, 0, 3, 2]], height, width
    return _mirrored(boxes, across, down, width, height)


def turn_boxes_back(boxes: np.ndarray, turn: int, width: int, height: int) -> np.ndarray:
    """The inverse of `turn_boxes`; ``width`` and ``height`` are those of the stored image."""
    transposed, across, down = _STEPS[turn]
    sides = (height, width) if transposed else (width, height)
    boxes = _mirrored(np.asarray(boxes, np.float64), across, down, *sides)
    return boxes[..., [1, 0, 3, 2]] if transposed else boxes


def _mirrored(boxes: np.ndarray, across: bool, down: bool, width: int, height: int) -> np.ndarray:
    x_min, y_min, x_max, y_max = np.moveaxis(boxes, -1, 0)
    if across:
        x_min, x_max = width - x_max, width - x_min
    if down:
        y_min, y_max = height - y_max, height - y_min
    return np.stack([x_min, y_min, x_max, y_max], axis=-1)


def directions(text: str) -> tuple[str, str]:
    """The two directions that a display orientation such as ``L\\F`` names.

    Raises:
        ValueError: it does not name two axes of the body.
    """
    rows, _, columns = text.partition("\\")
    if not {rows, columns} <= set(_AXES) or _AXES[rows] == _AXES[columns]:
        raise ValueError(
            f"must be two of L, R, A, P, H and F with a backslash between them, such as {CHEST}: where the rows of a "
            f"displayed image point and where its columns do; got {text!r}"
        )
    return rows, columns


def display_turn(dataset: pydicom.Dataset, display: str | None, name: str) -> int:
    """What brings a DICOM image into a display orientation.

    Args:
        dataset: its header.
        display: see `directions`; None: images stay as they are stored.
        name: of the file, for messages.

    Raises:
        ImageError: it cannot be brought there: the patient lies obliquely, is seen from another side, or the header
            has unknown values or contradicts itself.
    """
    if display is None or dataset.get("Modality") in SECTIONS:
        return AS_STORED
    said = [text for text in (dataset.get("PatientOrientation") or ()) if text]
    cosines = dataset.get("ImageOrientationPatient") or ()
    if not said and not cosines:
        return AS_STORED
    text, wanted = "\\".join(map(str, said)), directions(display)
    if dataset.get("AnatomicalOrientationType", "BIPED") != "BIPED":
        raise ImageError(f"{name}: is not of a human patient (Anatomical Orientation Type (0010,2210))")
    found = _named(said, text, name) if said else _from_cosines(cosines, name)
    if said and cosines and found != (other := _from_cosines(cosines, name)):
        raise ImageError(
            f"{name}: contradicts itself: Patient Orientation (0020,0020) says {text}, and Image Orientation (Patient) "
            f"(0020,0037) says {other[0]}\\{other[1]}"
        )
    rows, columns = found
    transposed = _AXES[rows] == _AXES[wanted[1]]
    across, down = (columns, rows) if transposed else (rows, columns)
    if (_AXES[across], _AXES[down]) != (_AXES[wanted[0]], _AXES[wanted[1]]):
        raise ImageError(
            f"{name}: shows the patient from another side ({rows}\\{columns}) than this collection ({display}); "
            "data.display says how they lie, or null for images as they are stored"
        )
    return _TURNS[transposed, across != wanted[0], down != wanted[1]]


def _named(said: list[str], text: str, name: str) -> tuple[str, str]:
    if len(said) != 2 or not all(letter in _AXES for direction in said for letter in direction):
        raise ImageError(f"{name}: Patient Orientation (0020,0020) is {text!r}, which names no two directions")
    if any(len(direction) > 1 for direction in said):
        raise ImageError(f"{name}: the patient lies obliquely (Patient Orientation (0020,0020) is {text})")
    if _AXES[said[0]] == _AXES[said[1]]:
        raise ImageError(f"{name}: Patient Orientation (0020,0020) is {text}: rows and columns cannot be parallel")
    return said[0], said[1]


def _from_cosines(cosines: object, name: str) -> tuple[str, str]:
    vectors = np.array([float(value) for value in cosines], np.float64)  # type: ignore[attr-defined]
    if vectors.shape != (6,) or not np.isfinite(vectors).all():
        raise ImageError(f"{name}: Image Orientation (Patient) (0020,0037) must be six numbers")
    vectors = vectors.reshape(2, 3)
    axes = np.abs(vectors).argmax(axis=1)
    main = vectors[[0, 1], axes]
    if (np.abs(main) < _STRAIGHT).any() or axes[0] == axes[1]:
        raise ImageError(f"{name}: the patient lies obliquely (Image Orientation (Patient) (0020,0037))")
    rows, columns = _LETTERS[axes, (main > 0).astype(int)].tolist()
    return rows, columns
