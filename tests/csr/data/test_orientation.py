"""A picture that looks different in all eight orientations is shown upright from each; boxes find their way back."""

from __future__ import annotations

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from csr.data.images import Placement, fit, read_image
from csr.data.masks import place_mask
from csr.data.orientation import (
    CHEST,
    directions,
    display_turn,
    turn_boxes,
    turn_boxes_back,
    turn_image,
    turn_image_back,
)
from csr.errors import ImageError
from tests.csr.data.test_images import dicom

TURNS = range(1, 9)
UPRIGHT = np.zeros((60, 48), np.uint8)  # upright: a bright bar at the upper left, a grey one beside it, a foot
UPRIGHT[4:40, 6:12], UPRIGHT[4:14, 14:30], UPRIGHT[50:56, 30:44] = 250, 120, 200
BOX = np.array([[6.0, 4.0, 12.0, 40.0]])
# how a patient lies in an image that was stored so that a turn brings it to L\F
ORIENTATIONS = {1: "L\\F", 2: "R\\F", 3: "R\\H", 4: "L\\H", 5: "F\\L", 6: "F\\R", 7: "H\\R", 8: "H\\L"}
COSINES = {"L": (1, 0, 0), "R": (-1, 0, 0), "P": (0, 1, 0), "A": (0, -1, 0), "H": (0, 0, 1), "F": (0, 0, -1)}


def cosines(text: str) -> list[float]:
    return [float(value) for letter in text.split("\\") for value in COSINES[letter]]


@pytest.mark.parametrize("turn", TURNS)
def test_a_turn_does_what_exif_says(turn: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = turn
    stored = Image.fromarray(UPRIGHT)
    stored.info["exif"] = exif.tobytes()
    stored._exif = exif  # type: ignore[attr-defined]
    np.testing.assert_array_equal(turn_image(UPRIGHT, turn), np.asarray(ImageOps.exif_transpose(stored)))
    np.testing.assert_array_equal(turn_image_back(turn_image(UPRIGHT, turn), turn), UPRIGHT)


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(list(TURNS)), st.integers(2, 40), st.integers(2, 40), st.data())
def test_boxes_turn_as_pictures_do(turn: int, width: int, height: int, data: st.DataObject) -> None:
    x_min, y_min = data.draw(st.integers(0, width - 2)), data.draw(st.integers(0, height - 2))
    x_max, y_max = data.draw(st.integers(x_min + 1, width)), data.draw(st.integers(y_min + 1, height))
    image = np.zeros((height, width), bool)
    image[y_min:y_max, x_min:x_max] = True
    rows, columns = np.nonzero(turn_image(image, turn))
    seen = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    box = np.array([[x_min, y_min, x_max, y_max]], float)
    np.testing.assert_array_equal(turn_boxes(box, turn, width, height), [seen])
    np.testing.assert_array_equal(turn_boxes_back(np.array([seen]), turn, width, height), box)


@pytest.mark.parametrize("turn", TURNS)
@pytest.mark.parametrize("how", ["letters", "cosines", "both"])
def test_a_dicom_image_is_shown_upright_and_its_boxes_are_those_of_the_stored_image(turn: int, how: str) -> None:
    stored = np.ascontiguousarray(turn_image_back(UPRIGHT, turn))
    text, tags = ORIENTATIONS[turn], {}
    if how != "cosines":
        tags["PatientOrientation"] = text.split("\\")
    if how != "letters":
        tags["ImageOrientationPatient"] = cosines(text)
    image = read_image(dicom(stored, Modality="DX", **tags), "chest", CHEST)
    np.testing.assert_allclose(image.pixels[..., 0], stored / 255, atol=1e-6)
    canvas, placement = fit(image.pixels, 60, 1, image.turn)
    expected, upright = fit(UPRIGHT[..., None], 60, 1)
    np.testing.assert_array_equal(canvas, expected)
    height, width = stored.shape
    assert (placement.width, placement.height) == (width, height)
    assert placement == Placement.of(width, height, 60, turn)
    own = turn_boxes_back(BOX, turn, width, height)
    left, top, right, bottom = own[0].astype(int)
    assert (stored[top:bottom, left:right] == 250).all() and (stored == 250).sum() == (bottom - top) * (right - left)
    np.testing.assert_allclose(placement.to_canvas(own), upright.to_canvas(BOX))
    np.testing.assert_allclose(placement.to_image(placement.to_canvas(own)), own)
    np.testing.assert_array_equal(place_mask(stored == 250, placement, 60), place_mask(UPRIGHT == 250, upright, 60))


def header(**tags: object) -> pydicom.Dataset:
    made = pydicom.Dataset()
    for name, value in tags.items():
        setattr(made, name, value)
    return made


@pytest.mark.parametrize(
    ("tags", "display"),
    [
        ({}, CHEST),
        ({"PatientOrientation": None}, CHEST),
        ({"PatientOrientation": ["F", "R"]}, None),
        ({"PatientOrientation": ["L", "P"], "Modality": "CT"}, CHEST),
        ({"ImageOrientationPatient": [0.7, 0.7, 0, 0, 0, -1], "Modality": "MR"}, CHEST),
    ],
    ids=["says nothing", "empty", "no display", "cross section", "oblique section"],
)
def test_what_says_nothing_and_what_is_no_projection_stays_as_it_is_stored(
    tags: dict[str, object], display: str | None
) -> None:
    assert display_turn(header(**tags), display, "chest") == 1


@pytest.mark.parametrize(("flip", "rotation"), [("YES", 0), ("NO", 90), ("YES", 270)])
def test_patient_orientation_describes_the_pixels_after_the_detectors_turn(flip: str, rotation: int) -> None:
    detector = {"FieldOfViewHorizontalFlip": flip, "FieldOfViewRotation": rotation}
    for turn, text in ORIENTATIONS.items():
        assert display_turn(header(PatientOrientation=text.split("\\"), **detector), CHEST, "chest") == turn
    assert display_turn(header(**detector), CHEST, "chest") == 1


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        ({"PatientOrientation": ["A", "F"]}, r"shows the patient from another side \(A\\F\)"),
        ({"PatientOrientation": ["LA", "F"]}, "lies obliquely"),
        ({"PatientOrientation": ["LEFT", "FOOT"]}, "names no two directions"),
        ({"PatientOrientation": ["L"]}, "names no two directions"),
        ({"PatientOrientation": ["L", "R"]}, "cannot be parallel"),
        ({"PatientOrientation": ["L", "F"], "ImageOrientationPatient": cosines("R\\F")}, "contradicts itself"),
        ({"ImageOrientationPatient": [0.7, 0.7, 0, 0, 0, -1]}, "lies obliquely"),
        ({"ImageOrientationPatient": [1, 0, 0, 0, 0]}, "must be six numbers"),
        ({"PatientOrientation": ["L", "F"], "AnatomicalOrientationType": "QUADRUPED"}, "not of a human patient"),
    ],
)
def test_what_cannot_be_brought_there_is_refused_with_its_reason(tags: dict[str, object], reason: str) -> None:
    with pytest.raises(ImageError, match=f"chest: .*{reason}"):
        display_turn(header(**tags), CHEST, "chest")


@pytest.mark.parametrize("text", ["", "L", "L/F", "L\\R", "X\\F", "LF\\F", "L\\F\\A"])
def test_a_display_orientation_names_two_axes(text: str) -> None:
    with pytest.raises(ValueError, match="must be two of L, R, A, P, H and F"):
        directions(text)


@given(st.sampled_from([*ORIENTATIONS.values()]), st.sampled_from([*ORIENTATIONS.values()]))
def test_any_display_in_the_plane_can_be_reached(stored: str, display: str) -> None:
    turn = display_turn(header(PatientOrientation=stored.split("\\")), display, "chest")
    labels = np.array([[stored]])
    assert turn in TURNS and turn_image(labels, turn).shape == (1, 1)
    back = display_turn(header(PatientOrientation=display.split("\\")), stored, "chest")
    np.testing.assert_array_equal(turn_image(turn_image(UPRIGHT, turn), back), UPRIGHT)
