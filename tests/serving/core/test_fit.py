"""Images unlike the training images, from the upload to the answer, the ledger, the metrics and the documents."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import sqlalchemy as sa
from PIL import Image

from csr.bundle.format import Bundle
from csr.bundle.profile import PARTS
from serving.access.authenticator import asking
from serving.commands.reading import _prediction
from serving.core.dataplane import DataPlane
from serving.deploy.config import parse_config
from serving.deploy.service import Service
from serving.engines.triton.config import ENCODER, ENSEMBLE
from serving.errors import AlteredStudyError, MisfitError
from serving.interfaces.schemas import Prediction
from serving.interfaces.schemas.dicom import DocumentRequest
from serving.store.schema import study_source
from serving.store.worklist import WorklistQuery
from tests.serving.conftest import CALLER, CountingEngine, add, client_of, interact, make_service, png
from tests.serving.dicom.files import dataset, written
from tests.serving.dicom.test_report import groups

CT = Path(str(files("pydicom"))) / "data/test_files/CT_small.dcm"
CHINA = Path(str(files("sklearn"))) / "datasets/images/china.jpg"


@pytest.fixture(scope="module")
def grey(bundle: Bundle) -> np.ndarray:
    """A good test study's pixels."""
    return np.asarray(Image.open(bundle.path / "samples" / "00.png"))


def radiograph(grey: np.ndarray, **attributes: Any) -> bytes:
    """The pixels as a DICOM file, whose header says what is given."""
    known = {"Rows": grey.shape[0], "Columns": grey.shape[1], "BitsAllocated": 8, "BitsStored": 8, "HighBit": 7}
    return written(dataset(PixelData=grey.tobytes(), **known, **attributes))


def codes(prediction: Prediction) -> list[str]:
    return [each.code for each in prediction.fits.reasons]


def value_of(service: Service, name: str, **labels: str) -> float:
    return service.telemetry.registry.get_sample_value(name, labels)


@pytest.fixture
def acting(bundle: Bundle, tmp_path: Path) -> Iterator[Any]:
    """Services that act on what does not fit as they are told."""
    opened: list[Service] = []

    def make(action: str, folder: str = "state") -> Service:
        opened.append(make_service(bundle.path, tmp_path / folder, input_guard={"action": action}))
        return opened[-1]

    yield make
    for each in opened:
        each.close()


def test_a_good_study_fits(plane: DataPlane, sample: bytes):
    fits = add(plane, sample).prediction.fits
    assert (fits.reasons, fits.action, fits.limit) == ([], "none", 1.0)
    assert fits.score <= 1


@pytest.mark.parametrize("change", ["inverted", "turned", "upside down", "dark"])
def test_pictures_that_were_changed_do_not(plane: DataPlane, grey: np.ndarray, change: str):
    changed = {
        "inverted": 255 - grey,
        "turned": np.ascontiguousarray(np.rot90(grey)),
        "upside down": np.ascontiguousarray(grey[::-1]),
        "dark": grey // 16 + 1,
    }[change]
    prediction = add(plane, png(changed)).prediction
    assert prediction.abstains and prediction.fits.score > 1
    assert set(codes(prediction)) <= set(PARTS) and codes(prediction)


def test_a_ct_slice_and_a_photograph_do_not(plane: DataPlane):
    slice_, photograph = (add(plane, path.read_bytes()).prediction for path in (CT, CHINA))
    assert slice_.abstains and "modality" in codes(slice_) and slice_.fits.score > 1
    assert photograph.abstains and "colour" in codes(photograph) and photograph.fits.score > 1


@pytest.mark.parametrize(
    "attributes, expected",
    [
        ({}, []),
        ({"BodyPartExamined": "HAND"}, ["body_part"]),
        ({"Modality": "CT"}, ["modality"]),
        ({"ViewPosition": "LL"}, ["view"]),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}, ["secondary_capture"]),
    ],
)
def test_a_header_that_contradicts_the_training_images_is_a_reason(
    plane: DataPlane, grey: np.ndarray, attributes: dict[str, Any], expected: list[str]
):
    prediction = add(plane, radiograph(grey, **attributes)).prediction
    assert codes(prediction) == expected
    assert prediction.abstains is bool(expected)
    assert prediction.fits.score <= 1, "the pixels are those of a good study"


def test_what_one_file_said_holds_for_its_pixels_also_after_others(plane: DataPlane, grey: np.ndarray):
    """A hand that is sent again as PNG is still a hand; an interaction does not make it a chest."""
    plain = add(plane, png(grey))
    assert not plain.prediction.abstains
    hand = add(plane, radiograph(grey, BodyPartExamined="HAND"))
    assert hand.digest == plain.digest and codes(hand.prediction) == ["body_part"]
    again = add(plane, png(grey))
    assert codes(again.prediction) == ["body_part"] and again.prediction.abstains
    after = interact(plane, plain.digest, confirmed=[plain.prediction.concepts[0].name]).after
    assert codes(after) == ["body_part"] and after.abstains
    (row,) = (each for each in plane.store.ledger.entries("prediction") if each["number"] == hand.record.number)
    assert row["body"]["after"]["fits"] == {"score": hand.prediction.fits.score, "reasons": ["body_part"]}
    assert row["body"]["after"]["abstains"] is True


def test_a_replica_that_has_not_seen_the_file_knows_what_its_header_said(acting: Any, grey: np.ndarray):
    first, second = acting("abstain"), acting("abstain")
    hand = add(first.plane, radiograph(grey, BodyPartExamined="HAND"))
    said = second.plane.predict(hand.digest, CALLER).prediction
    assert said.fits == hand.prediction.fits and said.abstains
    third = acting("abstain")
    assert add(third.plane, png(grey)).prediction.fits == hand.prediction.fits


@pytest.mark.parametrize("put", ["no JSON", "[]"])
def test_a_header_that_was_altered_in_the_store_is_not_answered_from(acting: Any, grey: np.ndarray, put: str):
    hand = add(acting("abstain").plane, radiograph(grey, BodyPartExamined="HAND"))
    plane = acting("abstain").plane
    with plane.store.database.write() as connection:
        connection.execute(sa.update(study_source).values(source=put))
    with pytest.raises(AlteredStudyError, match="a DICOM source cannot be read"):
        plane.predict(hand.digest, CALLER)


def test_the_worklist_shows_the_last_word(service: Service, grey: np.ndarray):
    add(service.plane, png(grey))
    assert [item.abstains for item in service.readings.worklist(WorklistQuery(), "key:a", False).items] == [False]
    add(service.plane, radiograph(grey, Modality="CT"))
    assert [item.abstains for item in service.readings.worklist(WorklistQuery(), "key:a", False).items] == [True]


def test_a_server_that_warns_says_so_and_does_not_abstain(acting: Any, grey: np.ndarray):
    prediction = add(acting("warn").plane, png(255 - grey)).prediction
    assert prediction.fits.action == "warn" and codes(prediction) and not prediction.abstains


def test_a_server_that_refuses_keeps_nothing(acting: Any, grey: np.ndarray, sample: bytes):
    service = acting("refuse")
    with client_of(service) as client:
        refused = client.post("/v1/studies", files={"file": ("mine.png", png(255 - grey))})
        assert refused.status_code == 422 and refused.json()["error"]["code"] == "does_not_fit"
        message = refused.json()["error"]["message"]
        assert message.startswith("mine.png: is unlike the images that the model was trained on. ")
        both = [("files", ("a.png", sample)), ("files", ("b.png", png(255 - grey)))]
        assert client.post("/v1/studies/batch", files=both).status_code == 422
        assert client.get("/v1/worklist").json()["items"] == []
        assert client.post("/v1/studies", files={"file": ("good.png", sample)}).status_code == 201
    assert value_of(service, "csr_misfits_total") == 2


def test_a_study_that_was_taken_before_is_refused_too(acting: Any, grey: np.ndarray):
    taken = add(acting("warn").plane, png(255 - grey))
    plane = acting("refuse").plane
    for _ in range(2):  # from the store, and from memory
        with pytest.raises(MisfitError, match="the study: is unlike"):
            plane.predict(taken.digest, CALLER)
        with pytest.raises(MisfitError):
            interact(plane, taken.digest)


def test_an_unknown_action_is_refused():
    from csr.errors import ConfigError

    with pytest.raises(ConfigError, match=r"input_guard\.action"):
        parse_config({"model": {"bundle": "b"}, "input_guard": {"action": "ignore"}})


def test_the_pixels_are_encoded_once_whatever_files_say(plane: DataPlane, engine: CountingEngine, grey: np.ndarray):
    for attributes in ({}, {"Modality": "CT"}, {"BodyPartExamined": "HAND"}):
        add(plane, radiograph(grey, **attributes))
    assert engine.encoded == 1


def test_prometheus_counts_them_by_reason(service: Service, grey: np.ndarray):
    add(service.plane, png(grey))
    add(service.plane, radiograph(grey, Modality="CT"))
    assert value_of(service, "csr_misfits_total") == 1
    assert value_of(service, "csr_fit_score_count") == 2
    assert value_of(service, "csr_misfit_reasons_total", reason="modality") == 1
    assert value_of(service, "csr_misfit_reasons_total", reason="layout") == 0


def test_studies_that_drift_away_raise_the_index(service: Service, bundle: Bundle):
    """Studies of the same spread as good ones do not."""
    drift, profile = service.models.champion.fit_drift, service.models.champion.profile
    edges = [profile.score_edges[0] - 1, *profile.score_edges]
    good = np.repeat(edges, np.round(np.array(profile.score_shares) * 400).astype(int)) + 1e-6
    for score in good:
        drift.add(np.array([score]))
    assert drift.values()["fit score"] < 0.02
    for score in np.linspace(0.8, 0.99, 300):
        drift.add(np.array([score]))
    assert drift.values()["fit score"] > 0.25


def test_the_command_prints_it_before_any_number(plane: DataPlane, grey: np.ndarray):
    lines = _prediction(add(plane, radiograph(grey, BodyPartExamined="HAND")).prediction).splitlines()
    assert lines[0].strip().startswith("unlike the images that the model was trained on (score")
    assert lines[1].strip() == "The file says body part HAND; the training images were CHEST. [body_part]"
    assert "abstains" in lines[2]


def test_the_report_keeps_it(service: Service, grey: np.ndarray):
    hand = add(service.plane, radiograph(grey, BodyPartExamined="HAND"))
    report = pydicom.dcmread(io.BytesIO(service.documents.report(hand.digest, DocumentRequest(), CALLER)))
    whole = groups(report)["assessment"]
    assert whole["Image is like the training images"] == ["No"]
    assert whole["Reason against reading the image"] == ["Another body part than the training images"]
    assert whole["Unlikeness to training images, limit 1"] == pytest.approx([hand.prediction.fits.score])
    assert whole["Model abstains"] == ["Yes"]


def tensors(bundle: Bundle, images: np.ndarray) -> dict[str, np.ndarray]:
    golden = bundle.golden()
    given = {name: golden[name][:1].repeat(len(images), 0) for name in ("importance", "answers", "places")}
    return {"image": images, **given, "absent_weight": np.ones((len(images), 1), np.float32)}


def test_tensors_get_scores_and_leave_them_in_the_ledger(service: Service, bundle: Bundle, grey: np.ndarray):
    """Whether the client asks for them or not, and as a reader gets them."""
    asking.set(CALLER)
    images = np.stack([grey[None], 255 - grey[None]])
    inference = service.inference()
    shape = (-1, len(PARTS))
    assert [each.shape for each in inference.spec(ENSEMBLE).outputs if each.name == "fit_scores"] == [shape]
    _, answered = inference.infer(ENCODER, None, {"image": images}, ["fit_scores"])
    assert list(answered) == ["fit_scores"]
    assert (answered["fit_scores"].max(1) > 1).tolist() == [False, True]
    np.testing.assert_allclose(
        answered["fit_scores"][1].max(), add(service.plane, png(255 - grey)).prediction.fits.score, atol=0.02
    )
    _, answered = inference.infer(ENSEMBLE, None, tensors(bundle, images), ["probabilities"])
    assert list(answered) == ["probabilities"]
    *_, last = service.store.ledger.entries("inference")
    assert [bool(each["reasons"]) for each in last["body"]["fits"]] == [False, True]


def test_tensors_of_what_does_not_fit_are_refused_where_files_are(acting: Any, grey: np.ndarray):
    asking.set(CALLER)
    inference = acting("refuse").inference()
    assert inference.infer(ENCODER, None, {"image": grey[None, None]}, ["patches"])
    with pytest.raises(MisfitError, match=r"image\[0\]: is unlike"):
        inference.infer(ENCODER, None, {"image": 255 - grey[None, None]}, ["patches"])


def test_answers_tell_it_over_http(client: Any, grey: np.ndarray):
    answer = client.post("/v1/studies", files={"file": ("a.dcm", radiograph(grey, BodyPartExamined="HAND"))}).json()
    fits = answer["prediction"]["fits"]
    assert fits["action"] == "abstain" and [each["code"] for each in fits["reasons"]] == ["body_part"]
    assert json.dumps(fits["score"]) != "null"
