"""Training, answering, judging and packing in a call each, against the stages and the exported graphs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import csr
from csr.data.phantom.generate import generate
from csr.evaluation.evaluate import evaluate_predictions
from csr.interaction.corrections import InteractionError
from csr.network.concept_model import ConceptModelConfig
from csr.training.callbacks import SilentCallbacks
from csr.training.concepts import ConceptTrainingConfig
from csr.training.head import HeadConfig
from csr.training.prediction import predict as predict_from_cache
from csr.training.prototypes import PrototypeConfig
from tests.conftest import TinyRun

PHANTOM = csr.PhantomConfig(train=80, val=60, test=60, contrast=2.0)
CONFIG = csr.TrainingConfig(
    ConceptTrainingConfig(model=ConceptModelConfig("regnetx_002"), epochs=1, precision="float32"),
    PrototypeConfig(per_concept=2, width=16, epochs=1),
    HeadConfig(epochs=2),
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> csr.PreparedSet:
    return csr.draw_phantom(tmp_path_factory.mktemp("phantom") / "prepared", PHANTOM, side=64)


@pytest.fixture(scope="module")
def trained(data: csr.PreparedSet) -> csr.TrainedCSR:
    return csr.train(data, CONFIG, SilentCallbacks())


def images(run: TinyRun, count: int) -> np.ndarray:
    return run.data.images[run.data.collection.rows("test")[:count]]  # type: ignore[attr-defined]


def test_the_phantom_is_the_one_that_is_drawn_for_the_pipeline(data: csr.PreparedSet, tmp_path: Path) -> None:
    generate(PHANTOM, 64, tmp_path / "prepared")
    assert csr.PreparedSet.open(tmp_path / "prepared").digest() == data.digest()


def test_all_stages_are_trained_as_told_and_report_to_whoever_asks(
    data: csr.PreparedSet, trained: csr.TrainedCSR, capsys: pytest.CaptureFixture[str]
) -> None:
    assert trained.concepts == data.collection.concepts and trained.classes == data.collection.classes
    assert trained.reasoner.alive.shape == (10, 2) and trained.prototype_model.prototypes.raw.shape[-1] == 16
    assert float(trained.reasoner.head.weight.detach().abs().sum()) > 0
    again = csr.train(data, CONFIG)
    for name, value in again.state_dict().items():
        assert torch.equal(value, trained.state_dict()[name]), name
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 1 + 1 + 2 and all(line.startswith("epoch ") for line in said)


def test_a_saved_model_says_the_same(trained: csr.TrainedCSR, data: csr.PreparedSet, tmp_path: Path) -> None:
    trained.save(tmp_path / "csr.pt")
    loaded = csr.TrainedCSR.load(tmp_path / "csr.pt")
    some = data.images[data.collection.rows("test")[:3]]
    # weights in another memory format are summed in another order
    torch.testing.assert_close(csr.predict(loaded, some).logits, csr.predict(trained, some).logits, rtol=0, atol=1e-5)


def test_without_an_interaction_the_answer_is_the_models_own(tiny_run: TinyRun) -> None:
    some = images(tiny_run, 3)
    with torch.no_grad():
        own = tiny_run.csr(torch.from_numpy(some))  # type: ignore[operator]
    for name, value in csr.predict(tiny_run.csr, some)._asdict().items():  # type: ignore[arg-type]
        assert torch.equal(value, getattr(own, name)), name


def test_interactions_do_what_they_do_in_the_exported_graphs(tiny_run: TinyRun) -> None:
    some = images(tiny_run, 3)
    concepts = tiny_run.data.collection.concepts  # type: ignore[attr-defined]
    interactions = [
        csr.Interaction((csr.RegionBox(5, 8, 30, 40),), rejected=concepts[:1]),
        csr.Interaction(
            (csr.RegionBox(0, 0, 20, 64, "ignore"), csr.RegionBox(30, 8, 50, 40, "finding", concepts[1])),
            confirmed=concepts[2:3],
            rejected=concepts[3:5],
            rejection="zero",
        ),
        csr.Interaction(),
    ]
    said = csr.predict(tiny_run.csr, some, interactions)  # type: ignore[arg-type]
    runner = csr.BundleRunner(tiny_run.bundle)  # type: ignore[arg-type]
    graphs = runner.reason(runner.encode(some), interactions)
    for name, value in graphs.items():
        np.testing.assert_allclose(getattr(said, name).numpy(), value, atol=1e-4, err_msg=name)
    plain = csr.predict(tiny_run.csr, some)  # type: ignore[arg-type]
    moved = (said.logits - plain.logits).abs().amax(1)
    assert moved[0] > 1e-3 and moved[1] > 1e-3 and moved[2] == 0


def test_interactions_that_do_not_fit_are_refused(tiny_run: TinyRun) -> None:
    with pytest.raises(ValueError, match="1 interactions for 2 images; give one each"):
        csr.predict(tiny_run.csr, images(tiny_run, 2), [csr.Interaction()])  # type: ignore[arg-type]
    with pytest.raises(InteractionError, match="unknown concept 'goitre'"):
        csr.predict(tiny_run.csr, images(tiny_run, 1), [csr.Interaction(rejected=("goitre",))])  # type: ignore[arg-type]


def test_the_report_is_the_pipelines_but_for_the_caches_rounding(tiny_run: TinyRun) -> None:
    found = csr.evaluate(tiny_run.csr, tiny_run.data)  # type: ignore[arg-type]
    predictions = predict_from_cache(tiny_run.data, tiny_run.cache, tiny_run.csr)  # type: ignore[arg-type]
    side = tiny_run.data.side  # type: ignore[attr-defined]
    expected = evaluate_predictions(tiny_run.data.collection, predictions, side)  # type: ignore[attr-defined]
    assert list(found) == list(expected) == ["iid", "shifted"]
    for part in found:
        assert found[part]["studies"] == 60
        for measure in ("macro_f1", "auroc", "concept_auroc", "ece"):
            assert found[part][measure] == pytest.approx(expected[part][measure], abs=0.02)


def test_a_bundle_runs_as_the_model_answers(trained: csr.TrainedCSR, data: csr.PreparedSet, tmp_path: Path) -> None:
    bundle = csr.export_bundle(trained, data, tmp_path / "bundle")
    assert bundle.manifest.preset == "custom" and bundle.manifest.data_digest == data.digest()
    assert bundle.manifest.metrics == csr.evaluate(trained, data)
    assert len(bundle.atlas()) == 10 * 2
    some = data.images[data.collection.rows("test")[:2]]
    runner = csr.BundleRunner(bundle)
    assert runner.golden_error() < 1e-3
    logits = runner.reason(runner.encode(some), [csr.Interaction()] * 2)["logits"]
    np.testing.assert_allclose(logits, csr.predict(trained, some).logits.numpy(), atol=1e-4)
