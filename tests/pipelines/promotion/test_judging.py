"""What bundles say of studies: as torch says it, and of signed readings as the server answered them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from csr.bundle.runtime import BundleRunner
from csr.data.feedback import FeedbackBox
from csr.data.images import pixel_digest
from csr.errors import BundleError
from csr.interaction.corrections import Interaction, RegionBox
from pipelines.promotion.costs import costs_of
from pipelines.promotion.judging import answers_of, check_fits, readings_of, replayed, signed, studies_of
from pipelines.promotion.measures import MEASURES
from tests.conftest import TinyRun
from tests.csr.data.feedback.examples import reading, write

REVERTED = {"decision": "revert"}


@pytest.fixture(scope="module")
def runner(tiny_run: TinyRun) -> BundleRunner:
    return BundleRunner(tiny_run.bundle)  # type: ignore[arg-type]


def test_a_bundle_is_judged_as_torch_judges_it(tiny_run: Any, runner: BundleRunner) -> None:
    from csr.evaluation.evaluate import evaluate_predictions
    from csr.training.prediction import predict

    studies, answers = studies_of(tiny_run.data), answers_of(runner, tiny_run.data)
    predictions = predict(tiny_run.data, tiny_run.cache, tiny_run.csr)
    expected = evaluate_predictions(tiny_run.data.collection, predictions, tiny_run.data.side)
    for part, report in expected.items():
        own = np.where(studies.parts == part, 1.0, 0.0)[None]
        found = {name: float(measure.of(studies, answers)(own)[0]) for name, measure in MEASURES.items()}
        # the cache holds features in float16, the bundle computes them in float32
        assert found["macro_f1"] == pytest.approx(report["macro_f1"], abs=0.03)
        assert found["auroc"] == pytest.approx(report["auroc"], abs=0.02)
        assert found["calibration_error"] == pytest.approx(report["ece"], abs=0.03)
        assert found["pointing"] == pytest.approx(report["pointing_game"]["pair"], abs=0.03)


def test_one_right_answer_is_the_one_that_is_expected_to_tell_most(tiny_run: Any, runner: BundleRunner) -> None:
    from csr.interaction.answering import effects

    data = tiny_run.data
    row = data.collection.rows("test")[:1]
    answers = answers_of(runner, data)
    patches = runner.encode(np.ascontiguousarray(data.images[row]))
    plain = runner.reason(patches, [Interaction()])

    def ask(told: np.ndarray) -> np.ndarray:
        concepts = runner.bundle.manifest.concepts
        said = [
            Interaction(
                confirmed=tuple(name for name, value in zip(concepts, each, strict=True) if value > 0),
                rejected=tuple(name for name, value in zip(concepts, each, strict=True) if value < 0),
            )
            for each in told
        ]
        return runner.reason(np.repeat(patches, len(told), axis=0), said)["probabilities"]

    worth = effects(ask, np.zeros((1, len(data.collection.concepts))), plain["concept_probabilities"], False)
    asked = int(worth.argmax())
    told = np.zeros((1, len(data.collection.concepts)))
    told[0, asked] = 1 if data.collection.concept_labels()[row[0], asked] == 1 else -1
    assert answers.answered[0] == ask(told)[0].argmax()
    assert np.allclose(answers.probabilities[0], plain["probabilities"][0], atol=1e-5)


def test_readings_are_replayed_with_what_the_reader_told(tiny_run: Any, runner: BundleRunner, tmp_path: Path) -> None:
    about = tiny_run.bundle.manifest
    canvases = [np.ascontiguousarray(tiny_run.data.images[row]) for row in tiny_run.data.collection.rows("test")[:5]]
    said = {
        "confirmed": about.concepts[:1],
        "rejected": about.concepts[1:3],
        "boxes": (FeedbackBox("ignore", None, 0.0, 0.0, 20.0, 20.0),),
    }
    told = Interaction((RegionBox(0, 0, 20, 20, "ignore"),), about.concepts[:1], about.concepts[1:3])
    expected = runner.reason(runner.encode(np.stack(canvases[:2])), [told, Interaction()])["probabilities"]
    kept = [
        reading(pixel_digest(canvases[0]), 1, found=about.classes[1:2], classes=about.classes, **said),
        reading(
            pixel_digest(canvases[1]), 2, found=about.classes[:1], classes=about.classes, decision="revert", **said
        ),
    ]
    left_out = [
        reading(pixel_digest(canvases[2]), 3, found=("other",), classes=("other",)),
        reading(pixel_digest(canvases[3]), 4, found=about.classes[:1], classes=about.classes, confirmed=("unheard",)),
    ]
    feedback = write(tmp_path / "set", [*kept, *left_out], canvases)
    replayable = readings_of(feedback, tiny_run.bundle)
    assert sorted(each.study for each, _ in replayable) == sorted(each.study for each in kept)
    order = [kept.index(each) for each, _ in replayable]
    answers, studies = replayed(runner, feedback, replayable), signed(replayable, tiny_run.bundle)
    np.testing.assert_allclose(answers.probabilities, expected[order], atol=1e-5)
    assert studies.truth.tolist() == [[1, 0][index] for index in order]
    assert set(studies.parts) == {"readings"}


def test_a_bundle_of_another_task_is_refused(tiny_run: Any) -> None:
    other = replace(tiny_run.bundle, manifest=replace(tiny_run.bundle.manifest, classes=("a", "b")))
    with pytest.raises(BundleError, match="promote by hand"):
        check_fits(other, tiny_run.data)


def test_several_classes_at_once(multilabel_bundle: Any, tiny_run: Any) -> None:
    """A bundle of several classes is judged by the same measures."""
    collection = tiny_run.data.collection
    classes = multilabel_bundle.manifest.classes
    targets = {f"target:{name}": (collection.studies["label"] == name).astype(float) for name in classes}
    studies = collection.studies.drop(columns="label").assign(**targets)
    data = replace(tiny_run.data, collection=replace(collection, studies=studies, classes=classes, task="multilabel"))
    judged, answers = studies_of(data), answers_of(BundleRunner(multilabel_bundle), data)
    assert answers.decided.shape == answers.answered.shape == judged.truth.shape
    values = [measure.of(judged, answers)(np.ones((1, len(judged.parts)))) for measure in MEASURES.values()]
    assert np.isfinite(values).all()


def test_costs_are_measured_in_turns(tiny_run: Any, runner: BundleRunner) -> None:
    costs = costs_of(runner, BundleRunner(tiny_run.bundle), np.ascontiguousarray(tiny_run.data.images[0]), 0.05)
    ratio = costs["encode_ms"].ratio
    assert ratio is not None and 0.3 < ratio.low <= ratio.mean <= ratio.high < 3
    assert costs["bundle_mb"].ratio is not None and costs["bundle_mb"].ratio.mean == 1
    assert costs["bundle_mb"].candidate == pytest.approx(tiny_run.bundle.bytes / 1e6)
