"""The exported graphs compute what torch computes, for every batch size and interaction, and a gap is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnxruntime as ort
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax

from csr.bundle.atlas import Atlas
from csr.bundle.format import INTERACTION_INPUTS, PRUNING_OUTPUTS, REASONER_OUTPUTS, Bundle
from csr.bundle.onnx_export import export_graphs, measure_parity, require_parity
from csr.bundle.runtime import GOLDEN_TOLERANCE, BundleRunner
from csr.bundle.writing import ExportConfig, Provenance, write_bundle
from csr.data.prepared import PreparedSet
from csr.errors import BundleError, ConfigError
from csr.interaction.corrections import Interaction, RegionBox
from csr.interaction.naming_fit import fit_naming
from csr.network.concept_model import ConceptModel, ConceptModelConfig
from csr.network.guard import GuardedEncoder
from csr.network.prototypes import PrototypeModel
from csr.network.reasoner import DEFAULT_ALPHA, Floor
from csr.network.trained import TrainedCSR
from csr.training.features import FeatureCache
from tests.csr.synthetic import CLASSES, CONCEPTS, make_collection, make_guard, make_prepared, make_reasoner

NET = ConceptModelConfig("test_resnet", stride=8)


def make_csr(seed: int, floor: Floor = "zero", net: ConceptModelConfig = NET) -> TrainedCSR:
    """Random weights, pruned prototypes, and the letter of the paper's reasoner: the harder one to export."""
    torch.manual_seed(seed)
    concept_model = ConceptModel(net, 1, 3)
    concept_model.backbone.set_normalisation(torch.tensor([0.4]), torch.tensor([0.2]))
    concept_model.backbone.map_shift = (-2, 3)  # as training leaves it
    for module in concept_model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # statistics of a trained network are not 0 and 1
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    prototypes = PrototypeModel(concept_model.backbone.width, 3, 4, 5, 2)
    prototypes.projector.set_standardisation(
        torch.randn(concept_model.backbone.width), torch.rand(concept_model.backbone.width) + 0.5
    )
    reasoner = make_reasoner(seed, clip=False, pruned=2, floor=floor)
    return TrainedCSR(concept_model, prototypes, reasoner, CONCEPTS, CLASSES).eval()


def images_of(seed: int, batch: int, side: int = 32) -> torch.Tensor:
    return torch.tensor(np.random.default_rng(seed).integers(0, 256, (batch, 1, side, side), dtype=np.uint8))


@pytest.fixture(scope="module", params=["zero", "absent"])
def exported(tmp_path_factory, request) -> SimpleNamespace:
    folder, model = tmp_path_factory.mktemp("graphs"), make_csr(0, request.param)
    guard = make_guard(model, images_of(7, 4))
    export_graphs(model, guard, images_of(8, 2), folder)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    encoder, reasoner = (
        ort.InferenceSession(str(folder / name), options, providers=["CPUExecutionProvider"])
        for name in ("encoder.onnx", "reasoner.onnx")
    )
    return SimpleNamespace(model=model, guard=guard, folder=folder, encoder=encoder, reasoner=reasoner)


def interaction_of(seed: int, batch: int) -> dict[str, np.ndarray]:
    """Every second image is left alone: a batch mixes studies with and without an interaction."""
    rng = np.random.default_rng([seed, 5])
    importance = rng.choice([-1.0, 0.0, 0.2, 1.0], (batch, 4, 4))
    importance[::2] = 1
    answers = rng.integers(-1, 2, (batch, 3))
    answers[::2] = 0
    places = (answers == 1)[..., None, None] * rng.integers(0, 2, (batch, 3, 4, 4))
    values = (importance, answers, places, rng.integers(0, 2, batch))
    return {name: value.astype(np.float32) for name, value in zip(INTERACTION_INPUTS, values, strict=True)}


@pytest.mark.parametrize("batch", [1, 2, 3, 8, 33])
def test_both_graphs_take_any_batch_size_and_agree_with_torch(exported, batch):
    images, tensors = images_of(batch, batch), interaction_of(batch, batch)
    with torch.no_grad():
        patches, scores = GuardedEncoder(exported.model.encoder, exported.guard)(images)
        answer = exported.model.reasoner(patches, *(torch.tensor(value) for value in tensors.values()))
    own, own_scores = exported.encoder.run(None, {"image": images.numpy()})
    np.testing.assert_allclose(own, patches, atol=1e-4)
    np.testing.assert_allclose(own_scores, scores, atol=1e-3)
    for name, value in zip(REASONER_OUTPUTS, exported.reasoner.run(None, {"patches": own, **tensors}), strict=True):
        np.testing.assert_allclose(value, getattr(answer, name), atol=2e-3, rtol=1e-3, err_msg=name)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.integers(1, 5))
def test_the_reasoner_graph_agrees_with_torch_for_any_patches_and_interaction(exported, seed, batch):
    rng = np.random.default_rng(seed)
    patches = rng.standard_normal((batch, 5, 4, 4)).astype(np.float32)
    patches /= np.linalg.norm(patches, axis=1, keepdims=True)
    tensors = interaction_of(seed, batch)
    with torch.no_grad():
        answer = exported.model.reasoner(torch.tensor(patches), *(torch.tensor(value) for value in tensors.values()))
    for name, value in zip(REASONER_OUTPUTS, exported.reasoner.run(None, {"patches": patches, **tensors}), strict=True):
        np.testing.assert_allclose(value, getattr(answer, name), atol=1e-4, rtol=1e-4, err_msg=name)


def test_the_graphs_name_their_inputs_and_outputs_as_the_bundle_says(exported):
    assert [each.name for each in exported.encoder.get_inputs()] == ["image"]
    assert [each.name for each in exported.encoder.get_outputs()] == ["patches", "fit_scores"]
    assert [each.name for each in exported.reasoner.get_inputs()] == ["patches", *INTERACTION_INPUTS]
    assert tuple(each.name for each in exported.reasoner.get_outputs()) == REASONER_OUTPUTS
    assert exported.encoder.get_inputs()[0].type == "tensor(uint8)"


def test_the_graphs_are_self_contained(exported):
    names = sorted(path.name for path in exported.folder.iterdir())
    assert names == ["encoder.onnx", "pruning.onnx", "reasoner.onnx"]


def test_the_graph_of_pruning_is_the_reasoner_with_fewer_prototypes(exported):
    graph = ort.InferenceSession(str(exported.folder / "pruning.onnx"), providers=["CPUExecutionProvider"])
    reasoner = exported.model.reasoner
    patches = torch.nn.functional.normalize(torch.randn(7, 5, 4, 4), dim=1)
    held = reasoner.alive.clone()
    with torch.no_grad():
        scores = reasoner(patches).scores
        for seed in range(4):
            reasoner.alive.copy_(held * (torch.rand(held.shape, generator=torch.Generator().manual_seed(seed)) < 0.6))
            try:
                answer = reasoner(patches)
                standard = reasoner.standardise(answer.scores)
                feeds = {"scores": scores.numpy(), "alive": reasoner.alive.numpy().copy()}
            finally:
                reasoner.alive.copy_(held)
            found = graph.run(list(PRUNING_OUTPUTS), feeds)
            np.testing.assert_allclose(found[0], standard, atol=1e-4, rtol=1e-4)
            np.testing.assert_allclose(found[1], answer.probabilities, atol=1e-5)


def test_parity_of_an_exported_model_is_small_and_grows_with_the_gap_between_the_two(exported):
    images, tensors = images_of(0, 20), interaction_of(0, 20)
    assert measure_parity(exported.model, exported.guard, images, tensors, exported.folder) < 1e-3
    bias = exported.model.reasoner.head.bias
    with torch.no_grad():
        bias[1] += 0.5
        try:
            gap = measure_parity(exported.model, exported.guard, images, tensors, exported.folder)
        finally:
            bias[1] -= 0.5
    assert gap == pytest.approx(0.5, abs=1e-2)


@pytest.mark.parametrize(
    ("net", "side", "offset"),
    [
        (ConceptModelConfig("vit_tiny_patch16_224", stride=16, context=None), 96, None),
        (ConceptModelConfig("vit_small_patch14_reg4_dinov2", stride=14, context=None), 70, None),
        (NET, 64, (-9, 2)),
    ],
)
def test_tokens_of_any_side_and_cells_that_look_anywhere_are_exported_too(tmp_path, net, side, offset):
    model = make_csr(0, "absent", net)
    model.concept_model.backbone.cell_offset = offset or model.concept_model.backbone.cell_offset
    guard = make_guard(model, images_of(7, 4, side))
    export_graphs(model, guard, images_of(8, 2, side), tmp_path)
    cells = side // net.stride
    neutral = {"importance": np.ones((5, cells, cells)), "answers": np.zeros((5, 3)), "absent_weight": np.ones(5)}
    tensors = neutral | {"places": np.zeros((5, 3, cells, cells))}
    tensors = {name: tensors[name].astype(np.float32) for name in INTERACTION_INPUTS}
    assert measure_parity(model, guard, images_of(9, 5, side), tensors, tmp_path) < 1e-3


@pytest.mark.parametrize(("name", "said"), [("absent_scores", -1), ("present_scores", 1), ("present_scores", 0)])
def test_parity_looks_at_every_image_and_at_answers_and_places_too(exported, name, said):
    """A gap in absent or present scores shows only in an answer or, without one, in a place: here of the last of 20."""
    images = images_of(0, 20)
    tensors = {
        "importance": np.ones((20, 4, 4)),
        "answers": np.zeros((20, 3)),
        "places": np.zeros((20, 3, 4, 4)),
        "absent_weight": np.ones(20),
    }
    tensors = {name: value.astype(np.float32) for name, value in tensors.items()}
    tensors["answers"][19] = said
    tensors["places"][19] = said == 0
    reasoner = exported.model.reasoner
    alive, moved = reasoner.alive > 0, getattr(reasoner, name)
    before = measure_parity(exported.model, exported.guard, images, tensors, exported.folder)
    with torch.no_grad():
        moved[alive] += said or 1
        try:
            after = measure_parity(exported.model, exported.guard, images, tensors, exported.folder)
        finally:
            moved[alive] -= said or 1
    assert before < 1e-3 < 0.1 < after


@pytest.mark.parametrize("deaf", INTERACTION_INPUTS)
def test_parity_finds_a_graph_that_is_deaf_to_an_input(exported, tmp_path, monkeypatch, deaf):
    """As if the exported graph had lost it: the input arrives as if nothing had been said."""
    images, tensors = images_of(3, 20), interaction_of(3, 20)
    forward = exported.model.reasoner.forward

    def without(patches, *given):
        heard = dict(zip(INTERACTION_INPUTS, given, strict=True))
        neutral = torch.full_like(heard[deaf], deaf not in ("answers", "places"))
        return forward(patches, **(heard | {deaf: neutral}))

    assert measure_parity(exported.model, exported.guard, images, tensors, exported.folder) < 1e-3
    monkeypatch.setattr(exported.model.reasoner, "forward", without)
    assert measure_parity(exported.model, exported.guard, images, tensors, exported.folder) > 1e-2


def test_parity_that_is_no_number_anywhere_is_no_number(exported):
    """A maximum that passes over NaN would hide it."""
    images, tensors = images_of(0, 4), interaction_of(0, 4)
    bias = exported.model.reasoner.head.bias
    with torch.no_grad():
        held = bias.clone()
        bias[1] = float("nan")
        try:
            gap = measure_parity(exported.model, exported.guard, images, tensors, exported.folder)
        finally:
            bias.copy_(held)
    assert np.isnan(gap)


@pytest.mark.parametrize("gap", [2e-4, 1.0, float("nan"), float("inf")])
def test_a_gap_above_the_tolerance_is_refused(gap):
    with pytest.raises(BundleError, match="export"):
        require_parity(gap, 1e-4)
    require_parity(1e-4, 1e-4)


@pytest.mark.parametrize("alpha", [-0.1, 1.0, 1.1, float("nan")])
def test_an_alpha_with_which_a_focus_box_would_say_nothing_is_refused(alpha):
    with pytest.raises(ValueError, match=r"export\.alpha: alpha is .*, which is not from 0 to below 1"):
        ExportConfig(alpha=alpha)
    with pytest.raises(ValueError, match=r"export\.alpha: haze is .*, which is not from 0 to below 1"):
        ExportConfig(alpha={"round": 0.5, "haze": alpha})


@pytest.mark.parametrize("risk", [0.0, 1.0, -0.1, float("nan")])
def test_a_tolerated_risk_that_says_nothing_is_refused(risk):
    with pytest.raises(ValueError, match=r"export\.abstain_risk: .* is neither between 0 and 1 nor null"):
        ExportConfig(abstain_risk=risk)


def data_on_which_it_is_right(model: TrainedCSR, right: list[int], folder: Path) -> tuple[PreparedSet, np.ndarray]:
    """A set on whose validation studies the model is right in those places, the surest first, and wrong in all others.

    Returns:
        The set, and the model's confidences on these studies, descending.
    """
    data = make_prepared(folder, make_collection(12, 40, 9))
    rows = data.collection.rows("val")
    with torch.no_grad():
        probabilities = model(torch.from_numpy(data.images[rows])).probabilities.numpy()
    surest = probabilities.max(1).argsort()[::-1]
    label = (probabilities.argmax(1) + 1) % 3
    label[surest[right]] -= 1
    studies = data.collection.studies.copy()
    studies.loc[rows, "label"] = np.array(data.collection.classes)[label]
    return replace(data, collection=replace(data.collection, studies=studies)), probabilities.max(1)[surest]


def cache_of(data: PreparedSet, model: TrainedCSR) -> FeatureCache:
    """What stage ``features`` keeps of the model's backbone."""
    with torch.no_grad():
        features = model.concept_model.features(torch.from_numpy(np.ascontiguousarray(data.images[:])))
    return FeatureCache(features.numpy().astype(np.float16), np.zeros((len(features), 0), np.float32))


ORIGIN = Provenance("paper", "0", "test", {})
NO_ATLAS = Atlas([], np.zeros((0,)))


def test_a_bundle_carries_calibrated_probabilities_and_the_threshold_of_the_tolerated_risk(tmp_path):
    model = make_csr(1)
    data, confidence = data_on_which_it_is_right(model, list(range(20)), tmp_path / "prepared")
    config = ExportConfig(abstain_risk=0.2, tolerance=1e-2)
    bundle, _ = write_bundle(tmp_path / "bundle", data, cache_of(data, model), model, NO_ATLAS, config, ORIGIN)
    # 5 of 25 answers are wrong, and 6 of 26 would be too many.
    assert confidence[25] < bundle.manifest.abstain_below == confidence[24]

    runner = BundleRunner(bundle)
    answer = runner.reason(runner.encode(data.images[data.collection.rows("val")]), [Interaction()] * 40)
    temperature = float(model.reasoner.temperature)
    assert abs(temperature - 1) > 0.2
    np.testing.assert_allclose(answer["probabilities"], softmax(answer["logits"] / temperature, axis=1), atol=1e-6)
    np.testing.assert_allclose(np.sort(answer["probabilities"].max(1))[::-1], confidence, atol=1e-4)


def test_a_bundle_carries_each_concepts_alpha_or_the_default_and_its_focus_boxes_do_it(tmp_path):
    alpha = {"haze": 0.0, "round": 0.7}
    model = make_csr(1, "absent")
    data = make_prepared(tmp_path / "prepared", make_collection())
    config = ExportConfig(alpha=alpha, tolerance=1e-2, parity_images=2)
    bundle, _ = write_bundle(tmp_path / "bundle", data, cache_of(data, model), model, NO_ATLAS, config, ORIGIN)
    assert Bundle.open(bundle.path).manifest.alpha == alpha
    runner, box = BundleRunner(bundle), RegionBox(0, 0, 8, 8)
    patches = runner.encode(data.images[:4])
    own = runner.reason(patches, [Interaction((box,))] * 4)["scores"]
    for k, value in enumerate([0.7, DEFAULT_ALPHA, 0.0]):
        said = runner.reason(patches, [Interaction((box,), alpha=value)] * 4)["scores"]
        np.testing.assert_allclose(own[:, k], said[:, k], atol=1e-6)


def test_an_alpha_of_a_concept_that_there_is_none_of_is_refused(tmp_path):
    model, data = make_csr(1), make_prepared(tmp_path / "prepared", make_collection())
    config = ExportConfig(alpha={"round": 0.5, "goitre": 0.1})
    with pytest.raises(ConfigError, match=r"export\.alpha: there is no concept 'goitre', only round, streak, haze"):
        write_bundle(tmp_path / "bundle", data, cache_of(data, model), model, NO_ATLAS, config, ORIGIN)
    assert not (tmp_path / "bundle").exists()


def test_the_golden_case_holds_every_kind_of_box_and_answer(tmp_path, monkeypatch):
    """And a server that does not hear one of them does not pass it."""
    model, data = make_csr(1), make_prepared(tmp_path / "prepared", make_collection())
    config = ExportConfig(alpha=0.4, tolerance=1e-2, parity_images=4)
    bundle, _ = write_bundle(tmp_path / "bundle", data, cache_of(data, model), model, NO_ATLAS, config, ORIGIN)
    assert bundle.manifest.alpha == 0.4 and (model.reasoner.alpha == 0.4).all()
    golden = bundle.golden()
    assert set(golden) == {
        "image",
        *INTERACTION_INPUTS,
        *(f"expected_{name}" for name in ("fit_scores", *REASONER_OUTPUTS[1:])),
    }
    assert {-1.0, 0.0, 1.0} <= set(golden["importance"].ravel().tolist())
    assert set(golden["answers"].ravel().tolist()) == {-1, 1} and set(golden["absent_weight"].tolist()) == {0, 1}
    assert golden["places"].any((2, 3)).sum() == 2
    runner = BundleRunner(bundle)
    assert runner.golden_error() < GOLDEN_TOLERANCE
    for name in INTERACTION_INPUTS:
        neutral = np.full_like(golden[name], name not in ("answers", "places"))
        monkeypatch.setattr(Bundle, "golden", lambda self, changed={name: neutral}: golden | changed)
        assert runner.golden_error() > GOLDEN_TOLERANCE, name


def test_what_a_bundle_says_of_boxes_is_fitted_to_validation_boxes(tmp_path, monkeypatch):
    monkeypatch.setattr("csr.bundle.writing.export_graphs", lambda *_: None)
    monkeypatch.setattr("csr.bundle.writing.measure_parity", lambda *_: 0.0)
    model, data = make_csr(1), make_prepared(tmp_path / "prepared", make_collection())
    cache, config = cache_of(data, model), ExportConfig(least_effect=0.125)
    bundle, _ = write_bundle(tmp_path / "bundle", data, cache, model, NO_ATLAS, config, ORIGIN)
    fitted = fit_naming(data, cache, model)
    assert bundle.naming().to_json() == fitted.to_json()
    assert bundle.manifest.least_effect == 0.125
    assert "naming.json" in bundle.manifest.files
    boxes = data.collection.boxes
    none = replace(data, collection=replace(data.collection, boxes=boxes[boxes["study_id"] < "s040"]))  # training's
    bundle, _ = write_bundle(tmp_path / "bundle", none, cache, model, NO_ATLAS, config, ORIGIN)
    assert bundle.naming() is None


def test_a_risk_that_no_threshold_reaches_is_refused_with_the_least_that_one_does(tmp_path):
    model = make_csr(1)
    data, _ = data_on_which_it_is_right(model, [2], tmp_path / "prepared")
    message = r"export\.abstain_risk: 0\.05 is out of reach: on the 40 studies of split 'val' .* than 0\.667"
    with pytest.raises(ConfigError, match=message):
        write_bundle(
            tmp_path / "bundle", data, cache_of(data, model), model, NO_ATLAS, ExportConfig(abstain_risk=0.05), ORIGIN
        )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["prepared"]


def test_a_bundle_that_fails_parity_is_not_written_and_the_previous_one_stays(tmp_path, monkeypatch):
    data, model = make_prepared(tmp_path / "prepared", make_collection()), make_csr(1)
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "previous").write_text("kept")
    monkeypatch.setattr("csr.bundle.writing.export_graphs", lambda *_: None)
    monkeypatch.setattr("csr.bundle.writing.measure_parity", lambda *_: 0.01)
    origin = Provenance("paper", data.digest(), "test", {})
    with pytest.raises(BundleError, match="Δlogit"):
        write_bundle(tmp_path / "bundle", data, cache_of(data, model), model, NO_ATLAS, ExportConfig(), origin)
    assert [path.name for path in (tmp_path / "bundle").iterdir()] == ["previous"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "prepared"]
