"""No silent wrong reading: a picture reads alike however it is stored, and what is asked of it finds its place."""

from __future__ import annotations

import io

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from csr.data.orientation import turn_boxes_back, turn_image, turn_image_back
from serving.core.dataplane import DataPlane
from serving.deploy.service import Service
from serving.errors import FrameError, ServingError
from serving.interfaces.schemas import Box, ImageSize, InteractionRequest, StudyAnswer
from serving.store.studies import load_study
from tests.csr.data.test_dicom import REAL
from tests.csr.data.test_orientation import ORIENTATIONS
from tests.serving.conftest import CALLER, add, client_of, png
from tests.serving.dicom.files import dataset, written

WITHIN = 0.02


@pytest.fixture(scope="module")
def radiograph(sample: bytes) -> np.ndarray:
    """A test image of the bundle, taller than wide and larger than the network's input: 150×120."""
    image = Image.open(io.BytesIO(sample)).convert("L")
    return np.asarray(image.resize((120, 150), Image.Resampling.BICUBIC))


def as_dicom(pixels: np.ndarray, **tags: object) -> bytes:
    bits = 8 * pixels.itemsize
    about = {"Rows": pixels.shape[0], "Columns": pixels.shape[1], "PixelData": pixels.tobytes()}
    return written(dataset(**{**about, "BitsAllocated": bits, "BitsStored": bits, "HighBit": bits - 1, **tags}))


def probabilities(study: StudyAnswer) -> np.ndarray:
    said = study.prediction
    return np.array([each.probability for each in (*said.classes, *said.concepts)])


STORED = {
    "12 bits in a PNG of 16": lambda pixels: png(pixels.astype(np.uint16) * 16),
    "16-bit PNG": lambda pixels: png(pixels.astype(np.uint16) * 257),
    "DICOM": lambda pixels: as_dicom(pixels),
    "DICOM of 12 bits": lambda pixels: as_dicom(pixels.astype(np.uint16) * 16, BitsStored=12, HighBit=11),
    "DICOM of 12 bits that says 16": lambda pixels: as_dicom(pixels.astype(np.uint16) * 16),
    "INVERSE": lambda pixels: as_dicom(255 - pixels, PresentationLUTShape="INVERSE"),
    "MONOCHROME1": lambda pixels: as_dicom(255 - pixels, PhotometricInterpretation="MONOCHROME1"),
    "both": lambda pixels: as_dicom(
        255 - pixels, PhotometricInterpretation="MONOCHROME1", PresentationLUTShape="INVERSE"
    ),
    "window of no width": lambda pixels: as_dicom(pixels, WindowCenter=128, WindowWidth=0),
    **{
        f"stored as {text}": lambda pixels, turn=turn, text=text: as_dicom(
            np.ascontiguousarray(turn_image_back(pixels, turn)), PatientOrientation=text.split("\\")
        )
        for turn, text in ORIENTATIONS.items()
    },
}


@pytest.mark.parametrize("how", STORED)
def test_the_same_picture_reads_like_the_original(plane: DataPlane, radiograph: np.ndarray, how: str) -> None:
    original = probabilities(add(plane, png(radiograph)))
    np.testing.assert_allclose(probabilities(add(plane, STORED[how](radiograph))), original, atol=WITHIN)


@pytest.mark.parametrize("turn", ORIENTATIONS)
def test_everything_that_is_said_of_a_turned_image_is_in_its_stored_pixels(
    plane: DataPlane, service: Service, radiograph: np.ndarray, turn: int
) -> None:
    upright = add(plane, as_dicom(radiograph))
    box = np.array([[20.0, 30.0, 70.0, 90.0]])
    drawn = InteractionRequest(boxes=[Box(x_min=20, y_min=30, x_max=70, y_max=90)], image=upright.image)
    expected = plane.interact(upright.digest, drawn, CALLER)
    concept = expected.after.concepts[0].name
    overlay = np.asarray(Image.open(io.BytesIO(plane.overlay(upright.digest, concept, drawn, timing(service)))))

    stored = np.ascontiguousarray(turn_image_back(radiograph, turn))
    height, width = stored.shape
    study = add(plane, as_dicom(stored, PatientOrientation=ORIENTATIONS[turn].split("\\")))
    assert study.digest == upright.digest
    assert study.image == ImageSize(width=width, height=height, turn=turn)
    corners = turn_boxes_back(box, turn, width, height)[0].tolist()
    again = InteractionRequest(boxes=[Box(**dict(zip(BOX, corners, strict=True)))], image=study.image)
    answer = plane.interact(study.digest, again, CALLER)
    assert answer.after.classes == expected.after.classes
    for one, other in zip(answer.after.concepts, expected.after.concepts, strict=True):
        assert one.peak is not None and other.peak is not None
        point = np.array([[other.peak.x, other.peak.y] * 2])
        np.testing.assert_allclose(
            [one.peak.x, one.peak.y], turn_boxes_back(point, turn, width, height)[0, :2], atol=1e-6
        )
    shown = np.asarray(Image.open(io.BytesIO(plane.image(study.digest, timing(service)))))
    assert shown.shape[0] / shown.shape[1] == pytest.approx(height / width, abs=0.03)
    own = np.asarray(Image.open(io.BytesIO(plane.overlay(study.digest, concept, again, timing(service)))))
    np.testing.assert_array_equal(turn_image(own, turn), overlay)
    np.testing.assert_allclose(turn_image(shown, turn).mean(), np.asarray(Image.fromarray(radiograph)).mean(), atol=3)
    assert load_study(plane.store.database, study.digest).placement.turn == turn, "another replica knows"
    if turn != 1:
        with pytest.raises(FrameError, match="upload yours again"):
            plane.interact(study.digest, drawn, CALLER)


BOX = ("x_min", "y_min", "x_max", "y_max")


def timing(service: Service) -> object:
    from serving.core.timing import Timing

    return Timing(service.telemetry)


@pytest.mark.parametrize("orientation", [["A", "F"], ["LA", "F"], ["L", "R"], ["X", "F"]])
def test_a_radiograph_that_cannot_be_brought_upright_is_refused(
    service: Service, radiograph: np.ndarray, orientation: list[str]
) -> None:
    data = as_dicom(radiograph, PatientOrientation=orientation)
    answer = client_of(service).post("/v1/studies", files={"file": ("chest.dcm", data)})
    assert answer.status_code in (415, 422)
    assert "chest.dcm" in answer.text


def test_a_frame_of_several_is_asked_for_by_its_number(
    service: Service, plane: DataPlane, radiograph: np.ndarray
) -> None:
    client, pages = client_of(service), io.BytesIO()
    first, second = Image.fromarray(255 - radiograph), Image.fromarray(radiograph)
    first.save(pages, "TIFF", save_all=True, append_images=[second])

    def post(query: str) -> object:
        return client.post(f"/v1/studies{query}", files={"file": ("pages.tif", pages.getvalue())})

    assert post("?frame=2").json()["digest"] == add(plane, png(radiograph)).digest  # type: ignore[attr-defined]
    for query in ("", "?frame=3", "?frame=0", "?frame=x"):
        assert 400 <= post(query).status_code < 500, query  # type: ignore[attr-defined]


@pytest.mark.parametrize("part", range(4))
def test_no_real_file_is_a_fault_of_the_servers(service: Service, part: int) -> None:
    client: TestClient = client_of(service)
    for file in REAL[part::4]:
        if file.stat().st_size < 4_000_000:
            answer = client.post("/v1/studies", files={"file": (file.name, file.read_bytes())})
            assert answer.status_code == 201 or 400 <= answer.status_code < 500, (file.name, answer.text)


def test_what_a_real_file_is_refused_for_is_said(plane: DataPlane) -> None:
    for file in REAL:
        if file.name in ("MR_truncated.dcm", "JPEG2000-embedded-sequence-delimiter.dcm", "badVR.dcm"):
            with pytest.raises(ServingError) as refused:
                add(plane, file.read_bytes(), file.name)
            assert not str(refused.value).rstrip(" )(").endswith(":")
