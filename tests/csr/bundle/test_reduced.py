"""An encoder below float32 is written with what it changes, or refused with why."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from csr.bundle.atlas import Atlas
from csr.bundle.format import MANIFEST, Bundle
from csr.bundle.precision import calibration_digest
from csr.bundle.reduced import (
    GraphAnswers,
    ReducedLimits,
    compare_answers,
    graph_answers,
    reduce_encoder,
    require_limits,
    spread,
)
from csr.bundle.runtime import FIT_TOLERANCE, GOLDEN_TOLERANCE, BundleRunner, golden_gap
from csr.bundle.writing import ExportConfig, Provenance, write_bundle
from csr.errors import BundleError, DataError
from csr.interaction.corrections import Interaction
from tests.csr.synthetic import make_collection, without_images

PARITY = {
    "studies": 100,
    "agreement": 0.97,
    "macro_f1": {"float32": 0.8, "int8": 0.79},
    "pointing_game": {"float32": 0.9, "int8": 0.89},
    "probability": {"mean": 0.01, "p99": 0.1, "most": 0.4},
    "fit_changed": 0.01,
}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"agreement": 0.94}, "0.940 of them are decided alike, below agreement 0.95"),
        ({"agreement": float("nan")}, "decided alike"),
        ({"macro_f1": {"float32": 0.8, "int8": 0.77}}, "macro F1 is 0.77 and not 0.8, a loss above f1 0.02"),
        ({"pointing_game": {"float32": 0.9, "int8": 0.87}}, "pointing is 0.87 and not 0.9, a loss above pointing 0.02"),
        ({"pointing_game": {"float32": 0.9, "int8": None}}, "pointing is None"),
        ({"probability": {"mean": 0, "p99": 0.16, "most": 0.2}}, "moves by 0.160 or more, above probability 0.15"),
        ({"fit_changed": 0.04}, "thinks otherwise of 0.040 of them, above fit 0.03"),
    ],
)
def test_every_limit_refuses_by_its_name(wrong, message):
    with pytest.raises(BundleError, match=message) as caught:
        require_limits(PARITY | wrong, "int8", ReducedLimits())
    assert "export.precision: int8 changes too much on 100 validation studies" in str(caught.value)
    assert str(caught.value).count(";") == 1  # of one figure only, and what to do


@pytest.mark.parametrize(
    "fine",
    [
        {},
        {"macro_f1": {"float32": 0.5, "int8": 0.9}},  # a gain is none of its business
        {"pointing_game": {"float32": None, "int8": None}},  # no boxes
    ],
)
def test_what_is_within_the_limits_passes(fine):
    require_limits(PARITY | fine, "int8", ReducedLimits())


def test_a_limit_is_a_share():
    with pytest.raises(ValueError, match=r"export\.reduced_limits\.f1: 1\.5 is not between 0 and 1"):
        ReducedLimits(f1=1.5)
    with pytest.raises(ValueError, match=r"export\.calibration_images: 0"):
        ExportConfig(calibration_images=0)


def test_the_comparison_by_hand():
    """Two of four studies are decided otherwise, one concept moves, and one map points beside its box."""
    data = without_images(make_collection())
    collection = data.collection
    rows = collection.rows("val")[:4]
    truth, boxes = collection.truth()[rows], collection.boxes_by_pair()
    right = np.eye(len(collection.classes))[truth]
    peaks = np.zeros((4, len(collection.concepts), 2))
    pairs = [(i, k) for i, row in enumerate(rows) for k in range(peaks.shape[1]) if (row, k) in boxes]
    for i, k in pairs:
        left, top, right_edge, bottom = boxes[rows[i], k][0]
        peaks[i, k] = (left + right_edge) / 2, (top + bottom) / 2
    fits = np.array([True, True, True, False])
    before = GraphAnswers(right, np.full(peaks.shape[:2], 0.5), peaks, fits, {})
    turned = np.concatenate([np.roll(right[:2], 1, axis=1), right[2:]])
    moved, away = before.concepts.copy(), peaks.copy()
    moved[0, 0] = 0.9
    away[pairs[0]] = -5.0
    after = GraphAnswers(turned, moved, away, np.array([True, False, True, False]), {})
    found = compare_answers(data, rows, "int8", before, after, None)
    assert (found["studies"], found["agreement"], found["fit_changed"]) == (4, 0.5, 0.25)
    assert found["probability"]["most"] == pytest.approx(0.4)
    assert found["probability"]["mean"] == pytest.approx(0.4 / moved.size, abs=1e-6)
    assert found["pointing_game"]["float32"] == 1
    assert found["pointing_game"]["int8"] == pytest.approx(1 - 1 / len(pairs), abs=1e-6)
    assert found["macro_f1"]["int8"] < found["macro_f1"]["float32"]


def test_the_manifest_says_what_was_done_and_what_it_changes(reduced_bundle, tiny_run):
    bundle: Bundle = reduced_bundle
    about, record = bundle.manifest, bundle.manifest.encoder
    assert about.precision == record.precision == bundle.path.name
    assert record.parity["studies"] == len(tiny_run.data.collection.rows("val"))
    assert set(record.parity["macro_f1"]) == {"float32", record.precision}
    train = tiny_run.data.collection.rows("train")
    if record.precision == "int8":
        assert record.calibration_images == 24
        images = np.ascontiguousarray(tiny_run.data.images[spread(train, 24)])
        assert record.calibration_digest == calibration_digest(images)
    else:
        assert record.calibration_images is record.calibration_digest is None
    size, plain = ((each.path / "encoder.onnx").stat().st_size for each in (bundle, tiny_run.bundle))
    assert size < 0.7 * plain
    assert tiny_run.bundle.manifest.precision == "float32"
    assert "encoder" not in json.loads((tiny_run.bundle.path / MANIFEST).read_text())  # as before there were any


def test_the_recorded_parity_is_what_the_two_bundles_say(reduced_bundle, tiny_run):
    rows = tiny_run.data.collection.rows("val")
    said = [
        graph_answers(each.path / "encoder.onnx", each.path / "reasoner.onnx", tiny_run.data, rows)
        for each in (tiny_run.bundle, reduced_bundle)
    ]
    record = reduced_bundle.manifest.encoder
    found = compare_answers(tiny_run.data, rows, record.precision, *said, None)
    for key, value in record.parity.items():
        assert found[key] == pytest.approx(value, abs=1e-4), key


def test_the_golden_case_is_its_own_with_a_tolerance_of_its_own(reduced_bundle):
    runner, golden = BundleRunner(reduced_bundle), reduced_bundle.golden()
    assert runner.golden_error() < GOLDEN_TOLERANCE
    least = {"logits": GOLDEN_TOLERANCE, "concept_maps": GOLDEN_TOLERANCE, "fit_scores": FIT_TOLERANCE}
    answer = {name.removeprefix("expected_"): value for name, value in golden.items()}
    for name, floor in least.items():
        allowed = float(golden[f"tolerance_{name}"])
        assert np.float32(floor) <= allowed < 1
        for share, passes in ((0.9, True), (1.2, False)):
            altered = golden | {f"expected_{name}": golden[f"expected_{name}"] + share * allowed}
            assert (golden_gap(altered, answer) <= GOLDEN_TOLERANCE) is passes, (name, share)


def test_the_guard_and_the_reference_are_of_the_encoder_that_is_served(reduced_bundle, tiny_run):
    collection, runner = tiny_run.data.collection, BundleRunner(reduced_bundle)
    images = np.ascontiguousarray(tiny_run.data.images[collection.rows("val")])
    assert (runner.run_encoder(images)["fit_scores"] > 1).any(1).mean() <= 0.1
    rows = collection.rows("train")
    images = np.ascontiguousarray(tiny_run.data.images[rows])
    said = runner.reason(runner.encode(images), [Interaction()] * len(rows))["concept_probabilities"]
    for reference, column in zip(reduced_bundle.reference(), said.T, strict=True):
        counts = np.bincount(np.searchsorted(reference.edges, column), minlength=len(reference.shares))
        np.testing.assert_allclose(counts, np.array(reference.shares) * len(rows), atol=1)


def test_what_changes_too_much_is_refused_and_the_bundle_before_stays(tiny_run, tmp_path, monkeypatch):
    def copy_graphs(csr, guard, images, folder):  # the same model's, which take seconds to export
        for name in ("encoder.onnx", "reasoner.onnx", "pruning.onnx"):
            shutil.copyfile(tiny_run.bundle.path / name, folder / name)

    monkeypatch.setattr("csr.bundle.writing.export_graphs", copy_graphs)
    path = tmp_path / "bundle"
    path.mkdir()
    (path / "before").write_text("the last one")
    atlas = Atlas(tiny_run.bundle.atlas(), np.array(tiny_run.bundle.crops()))
    origin = Provenance("robust", tiny_run.data.digest(), "test", {})
    config = ExportConfig(
        precision="int8", calibration_images=2, parity_images=2, reduced_limits=ReducedLimits(probability=0.0)
    )
    with pytest.raises(BundleError, match=r"above probability 0\.0 .*No bundle is written; take float32"):
        write_bundle(path, tiny_run.data, tiny_run.cache, tiny_run.csr, atlas, config, origin)
    assert [each.name for each in path.iterdir()] == ["before"]
    assert not path.with_name("bundle.partial").exists()


def test_without_validation_studies_there_is_nothing_to_judge_by(tiny_run, tmp_path):
    collection = tiny_run.data.collection
    studies = collection.studies.assign(split=collection.studies["split"].replace("val", "train"))
    data = replace(tiny_run.data, collection=replace(collection, studies=studies))
    with pytest.raises(DataError, match="int8 is judged on split 'val', which has no study"):
        reduce_encoder(tmp_path, data, tiny_run.csr, "int8", 8, None, None, ReducedLimits())


@pytest.mark.parametrize("wrong", [7, {}, {"precision": "int8"}, {"precision": "int4"}, "int8"])
def test_a_record_that_is_none_is_refused(reduced_bundle, tmp_path, wrong):
    content = json.loads((reduced_bundle.path / MANIFEST).read_text())
    if isinstance(wrong, dict) and "precision" in wrong and wrong["precision"] == "int4":
        wrong = content["encoder"] | wrong
    (tmp_path / MANIFEST).write_text(json.dumps(content | {"encoder": wrong}))
    with pytest.raises(BundleError, match="key 'encoder' must be null or say precision"):
        Bundle.open(tmp_path)
