"""Concept bottleneck models: what each variant's linear layer sees, how it is fitted, and what an intervention does."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from csr.baselines import cbm, last_layer
from csr.baselines.cbm import CBM, concept_logits
from csr.baselines.classes import solve_elastic_net
from csr.baselines.last_layer import STRENGTHS, fit_last_layer
from csr.baselines.map_alignment import in_place
from csr.baselines.protocol import ExperimentContext, TrainedBackbone, predict
from csr.evaluation.metrics import macro_f1
from csr.network.concept_model import ConceptModel, ConceptModelConfig
from csr.training.augmentation import AugmentConfig
from csr.training.callbacks import SilentCallbacks
from csr.training.concepts import ConceptTrainingConfig
from csr.training.features import FeatureCache, compute_features
from tests.csr.synthetic import make_cache, make_collection, make_prepared, with_labels

NET = ConceptModelConfig("test_convnext", stride=8, context=16, width=16, pooling="lse", sharpness=3.0)
CONFIG = ConceptTrainingConfig(model=NET, epochs=2, batch_size=8, precision="float32")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Prepared images whose third concept is unknown in every fourth study."""
    collection = make_collection(train=60, val=30)
    labels = collection.concept_labels()
    labels[::4, 2] = np.nan
    return make_prepared(tmp_path_factory.mktemp("data") / "prepared", with_labels(collection, labels))


def make_model(pooling: str = "lse") -> ConceptModel:
    torch.manual_seed(0)
    return ConceptModel(ConceptModelConfig(**{**vars(NET), "pooling": pooling}), 1, 3).eval()


def make_context(data, shared: TrainedBackbone | None = None) -> ExperimentContext:
    return ExperimentContext(data, CONFIG, SilentCallbacks(), shared)


@pytest.fixture
def context(data) -> ExperimentContext:
    """Rests on made-up maps that show the concepts, positive where one is and negative elsewhere."""
    cache = make_cache(data.collection)
    return make_context(data, TrainedBackbone(make_model(), FeatureCache(cache.features, 1.5 * cache.cam - 4)))


@pytest.fixture
def fitted(monkeypatch) -> list[tuple[torch.Tensor, ...]]:
    """Inputs that `fit_last_layer` is given, instead of a fit."""
    calls = []

    def record(own, train_inputs, val_inputs, copies=1):
        calls.append((train_inputs, val_inputs))
        return torch.nn.Linear(3, 3)

    monkeypatch.setattr(cbm, "fit_last_layer", record)
    return calls


def lse(cam: np.ndarray, r: float = 3.0) -> np.ndarray:
    return np.log(np.exp(r * cam.astype(np.float64)).mean((-2, -1))) / r


def sigmoid(values: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-values))


# the solver


def problem(seed: int, classes: int = 3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Inputs n×4 of which the last carries nothing, classes that no line separates, and given logits."""
    rng = np.random.default_rng(seed)
    inputs = rng.standard_normal((60, 4))
    truth = (inputs[:, :3] @ rng.normal(0, 1.5, (3, classes)) + rng.gumbel(size=(60, classes))).argmax(1)
    truth[:classes] = np.arange(classes)
    return inputs, truth, rng.normal(0, 1, (60, classes))


@settings(deadline=None, max_examples=30)
@given(
    st.integers(0, 10_000), st.sampled_from([2, 3]), st.sampled_from([0.0, 0.5, 0.99]), st.sampled_from([1e-2, 0.3, 2])
)
def test_the_solution_fulfils_the_conditions_of_the_minimum(seed, classes, l1_ratio, strength):
    """The objective is convex, so its subgradient holds 0 at the minimum and nowhere else."""
    inputs, truth, logits = problem(seed, classes)
    weight, bias = solve_elastic_net(inputs, truth, logits, strength, l1_ratio)
    total = logits + inputs @ weight.T + bias
    probabilities = np.exp(total) / np.exp(total).sum(1, keepdims=True)
    error = (probabilities - np.eye(classes)[truth]) / len(inputs)
    scale = strength / (4 * classes)
    slope = error.T @ inputs + scale * (1 - l1_ratio) * weight
    np.testing.assert_allclose(error.sum(0), 0, atol=1e-5)
    used = weight != 0
    np.testing.assert_allclose((slope + scale * l1_ratio * np.sign(weight))[used], 0, atol=1e-5)
    assert (np.abs(slope[~used]) <= scale * l1_ratio + 1e-5).all()


def test_plain_l2_is_the_logistic_regression_of_scikit_learn():
    inputs, truth, logits = problem(0)
    weight, bias = solve_elastic_net(inputs, truth, np.zeros_like(logits), 0.5, 0.0)
    other = LogisticRegression(C=4 * 3 / (0.5 * 60), tol=1e-8, max_iter=1000).fit(inputs, truth)
    np.testing.assert_allclose(weight, other.coef_, atol=1e-4)
    np.testing.assert_allclose(bias - bias.mean(), other.intercept_ - other.intercept_.mean(), atol=1e-4)


def test_an_elastic_net_ends_with_exact_zeros_and_a_strong_one_with_nothing_else():
    inputs, truth, logits = problem(1)
    counts = [
        (solve_elastic_net(inputs, truth, np.zeros_like(logits), strength, 0.99)[0] != 0).sum()
        for strength in (1e-3, 1.0, 100.0)
    ]
    assert counts[0] > counts[1] > counts[2] == 0


# the last layer


def make_inputs(data, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs of train and val that carry the class with some noise, on different scales."""
    rng = np.random.default_rng(seed)
    onehot = np.eye(3)[data.collection.truth()]
    values = torch.tensor(onehot + 0.4 * rng.standard_normal(onehot.shape), dtype=torch.float32)
    return values[data.collection.rows("train")], values[data.collection.rows("val")]


@pytest.mark.parametrize("l1_ratio", [0.0, 0.99])
def test_the_layer_does_the_same_whatever_the_scale_of_its_inputs(data, l1_ratio):
    context, (train, val) = make_context(data), make_inputs(data)
    scale, shift = torch.tensor([10.0, 0.2, 3.0]), torch.tensor([5.0, -1.0, 0.0])
    plain = fit_last_layer(context, train, val, l1_ratio)
    other = fit_last_layer(context, train * scale + shift, val * scale + shift, l1_ratio)
    with torch.no_grad():
        expected = plain(val)
        np.testing.assert_allclose(other(val * scale + shift), expected, atol=1e-2)
    truth = data.collection.truth()[data.collection.rows("val")]
    assert macro_f1(truth, expected.argmax(1).numpy(), 3) > 0.8


def test_an_input_that_never_changes_does_no_harm(data):
    context, (train, val) = make_context(data), make_inputs(data)
    with torch.no_grad():
        train[:, 2], val[:, 2] = 0.3, 0.3
        logits = fit_last_layer(context, train, val)(val)
    assert logits.isfinite().all()


def test_the_strength_is_the_best_on_val_by_macro_f1(data, monkeypatch):
    """Inputs that are upside down on val: there only a layer that ignores them does no harm."""
    context, (train, val) = make_context(data), make_inputs(data)
    truth = data.collection.truth()
    rows = data.collection.rows("val")
    for inverted in (False, True):
        own = -val if inverted else val
        scores = {}
        for strength in STRENGTHS:
            with monkeypatch.context() as patch, torch.no_grad():
                patch.setattr(last_layer, "STRENGTHS", (strength,))
                logits = fit_last_layer(context, train, own, 0.99)(own)
            f1 = macro_f1(truth[rows], logits.argmax(1).numpy(), 3)
            scores[strength] = f1, -float(torch.nn.functional.cross_entropy(logits, torch.from_numpy(truth[rows])))
        with torch.no_grad():
            logits = fit_last_layer(context, train, own, 0.99)(own)
        chosen = macro_f1(truth[rows], logits.argmax(1).numpy(), 3)
        assert chosen == max(f1 for f1, _ in scores.values()) > min(f1 for f1, _ in scores.values())
        cross_entropy = float(torch.nn.functional.cross_entropy(logits, torch.from_numpy(truth[rows])))
        assert (chosen, -cross_entropy) == pytest.approx(max(scores.values()), abs=1e-5)


def test_of_equally_good_strengths_the_one_with_the_lower_cross_entropy_on_val_is_taken(data, monkeypatch):
    """Perfect inputs: all strengths decide alike and the weakest is the surest."""
    context = make_context(data)
    onehot = torch.eye(3)[torch.from_numpy(data.collection.truth())]
    train, val = onehot[data.collection.rows("train")], onehot[data.collection.rows("val")]
    norms = []
    for strengths in ((1.0, 1e-4), (1e-4, 1.0), (1.0,)):
        monkeypatch.setattr(last_layer, "STRENGTHS", strengths)
        norms.append(float(fit_last_layer(context, train, val).weight.detach().norm()))
    assert norms[0] == norms[1] > 2 * norms[2]


def test_a_layer_adds_to_the_logits_that_it_is_given(data):
    """What is given says class 1 too often, and the input tells nothing but that: the layer takes it back."""
    context = make_context(data)
    sizes = [len(data.collection.rows(split)) for split in ("train", "val")]
    bias = torch.tensor([0.0, 4.0, 0.0])
    inputs = [torch.linspace(-1, 1, size)[:, None] for size in sizes]
    layer = fit_last_layer(context, *inputs, given=(bias.expand(sizes[0], -1), bias.expand(sizes[1], -1)))
    with torch.no_grad():
        probabilities = (layer(inputs[0]) + bias).softmax(-1)
        np.testing.assert_allclose(probabilities.mean(0), 1 / 3, atol=1e-3)  # classes are equally frequent
        assert float(layer.bias[1] - layer.bias[0]) == pytest.approx(-4, abs=0.2)


def test_the_choice_on_val_counts_the_logits_that_are_given_there(data, monkeypatch):
    """Inputs that mislead in every fourth study of val, and given logits that never do: the layer should keep out."""
    context = make_context(data)
    onehot = torch.eye(3)[torch.from_numpy(data.collection.truth())]
    train, val = onehot[data.collection.rows("train")], onehot[data.collection.rows("val")]
    misleading = val.clone()
    misleading[::4] = val[::4].roll(1, 1)
    monkeypatch.setattr(last_layer, "STRENGTHS", (1e-4, 1e4))
    alone = fit_last_layer(context, train, misleading, 0.99)
    added = fit_last_layer(context, train, misleading, 0.99, given=(torch.zeros(len(train), 3), 2 * val))
    assert alone.weight.detach().any()
    assert not added.weight.detach().any()


# what the variants fit


@pytest.mark.parametrize("pooling", ["average", "lse"])
def test_concept_logits_are_the_pooled_cached_maps_of_the_rows(pooling):
    cam = np.random.default_rng(0).normal(0, 1, (600, 3, 2, 2)).astype(np.float32)
    shared = TrainedBackbone(make_model(pooling), FeatureCache(np.zeros((600, 1, 2, 2), np.float16), cam))
    rows = np.random.default_rng(1).permutation(600)[:530]
    expected = lse(cam[rows]) if pooling == "lse" else cam[rows].mean((2, 3))
    np.testing.assert_allclose(concept_logits(shared, rows), expected, atol=1e-5)


def test_sequential_sees_predicted_logits(context, fitted):
    system = cbm.sequential_cbm(context)
    logits = lse(context.shared_backbone.cache.cam)
    train, val = (context.data.collection.rows(split) for split in ("train", "val"))
    np.testing.assert_allclose(fitted[0][0], logits[train], atol=1e-4)
    np.testing.assert_allclose(fitted[0][1], logits[val], atol=1e-4)
    np.testing.assert_allclose(system.low, np.percentile(logits[train], 5, axis=0), atol=1e-4)
    np.testing.assert_allclose(system.high, np.percentile(logits[train], 95, axis=0), atol=1e-4)
    one = torch.tensor([[0.5, -2.0, 3.0]])
    assert torch.equal(system.classify(one), system.head(one))


def test_independent_learns_from_true_concepts_and_meets_probabilities(context, fitted):
    system = cbm.independent_cbm(context)
    probabilities = sigmoid(lse(context.shared_backbone.cache.cam))
    train, val = (context.data.collection.rows(split) for split in ("train", "val"))
    truth = context.data.collection.concept_labels()[train]
    unknown = np.isnan(truth)
    assert 0 < unknown.sum() < len(truth)
    np.testing.assert_array_equal(fitted[0][0][~unknown], truth[~unknown])
    np.testing.assert_allclose(fitted[0][0][unknown], probabilities[train][unknown], atol=1e-5)
    np.testing.assert_allclose(fitted[0][1], probabilities[val], atol=1e-5)
    one = torch.tensor([[0.5, -2.0, 3.0]])
    assert torch.equal(system.classify(one), system.head(one.sigmoid()))


def test_the_answered_one_learns_from_studies_that_readers_answered_and_meets_predicted_logits(context, fitted):
    system = cbm.answered_cbm(context)
    collection, logits = context.data.collection, lse(context.shared_backbone.cache.cam)
    train, val = (collection.rows(split) for split in ("train", "val"))
    truth = np.tile(collection.concept_labels()[train], (cbm.ANSWERED, 1))
    seen, own = fitted[0][0].numpy(), np.tile(logits[train], (cbm.ANSWERED, 1))
    answered = ~np.isclose(seen, own, atol=1e-4)
    told = np.where(truth == 1, system.high.numpy(), system.low.numpy())
    np.testing.assert_allclose(seen[answered], told[answered], atol=1e-4)
    assert not answered[np.isnan(truth)].any()  # nobody tells what nobody knows
    assert 0.35 < answered[~np.isnan(truth)].mean() < 0.65  # between none and all of a study's concepts
    copies = seen.reshape(cbm.ANSWERED, len(train), -1)
    assert not np.allclose(copies[0], copies[1])
    np.testing.assert_allclose(fitted[0][1], logits[val], atol=1e-4)


def test_joint_adds_the_weighted_sum_of_the_concepts_losses(data, monkeypatch):
    phases = []
    monkeypatch.setattr(cbm, "CONCEPT_WEIGHT", 0.3)

    def untrained(own, name, system, terms, rows):
        phases.append((name, system.eval(), terms))

    monkeypatch.setattr(cbm, "train_on_images", untrained)
    system = cbm.joint_cbm(make_context(data))
    ((name, trained, terms),) = phases
    assert (name, trained) == ("cbm_joint", system)
    assert system.concept_model.config.pooling == "average"
    train = data.collection.rows("train")
    rows = np.array([1, 2, 3, 5, 6])
    assert not np.isnan(data.collection.concept_labels()[rows]).any()
    images = torch.from_numpy(data.images[rows])
    with torch.no_grad():
        losses = terms(rows, images)
        maps, concepts, logits = system(images)
        with in_place(system.concept_model.backbone):
            of_train = system(torch.from_numpy(data.images[train]))[1].numpy()
    np.testing.assert_allclose(concepts, maps.mean((2, 3)), atol=1e-5)
    p, labels = sigmoid(concepts.double().numpy()), data.collection.concept_labels()[rows]
    bce = -(labels * np.log(p) + (1 - labels) * np.log(1 - p))
    assert float(losses["concept"]) == pytest.approx(0.3 * bce.sum(1).mean(), rel=1e-4)
    chosen = logits.log_softmax(-1)[np.arange(5), data.collection.truth()[rows]]
    assert float(losses["class"]) == pytest.approx(-float(chosen.mean()), rel=1e-4)
    assert torch.equal(logits, system.head(concepts))
    np.testing.assert_allclose(system.low, np.percentile(of_train, 5, axis=0), atol=1e-4)
    np.testing.assert_allclose(system.high, np.percentile(of_train, 95, axis=0), atol=1e-4)


# interventions


def test_an_intervention_sets_chosen_logits_to_a_low_or_high_one_of_training():
    system = CBM(make_model(), classes=2)
    values = torch.linspace(-1, 1, 101)[:, None] * torch.tensor([10.0, 1.0, 2.0])
    system.set_levels(values)  # 5 % from the ends: ∓0.9 of the range
    nan = float("nan")
    predicted = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    truth = torch.tensor([[1.0, 0.0, 1.0], [0.0, nan, 1.0]])
    chosen = torch.tensor([[True, True, False], [True, True, True]])
    expected = torch.tensor([[9.0, -0.9, 3.0], [-9.0, 5.0, 1.8]])
    np.testing.assert_allclose(system.intervene(predicted, truth, chosen), expected, atol=1e-5)
    assert torch.equal(system.intervene(predicted, truth, torch.zeros(2, 3, dtype=torch.bool)), predicted)


def test_an_intervention_on_the_independent_model_is_the_truth_itself():
    system = CBM(make_model(), classes=2, inputs="probabilities")
    truth = torch.tensor([[1.0, 0.0, 1.0]])
    told = system.intervene(torch.tensor([[-3.0, 3.0, 0.5]]), truth, torch.tensor([[True, True, False]]))
    expected = torch.tensor([[1.0, 0.0, 0.5]]) + torch.tensor([[0.0, 0.0, torch.tensor(0.5).sigmoid() - 0.5]])
    np.testing.assert_allclose(system.classify(told).detach(), system.head(expected).detach(), atol=1e-6)


@pytest.mark.parametrize("train", [cbm.sequential_cbm, cbm.answered_cbm, cbm.independent_cbm])
def test_telling_the_truth_about_misread_concepts_restores_the_classes(context, train):
    system, collection = train(context), context.data.collection
    test = collection.rows("test")
    truth, classes = torch.from_numpy(collection.concept_labels()[test]), collection.truth()[test]
    misread = concept_logits(context.shared_backbone, test).roll(1, 0)  # the logits of another study, of another class
    with torch.no_grad():
        told = system.intervene(misread, truth, torch.ones_like(truth, dtype=torch.bool))
        before, after = (system.classify(logits).argmax(1).numpy() for logits in (misread, told))
    assert macro_f1(classes, before, 3) < 0.3
    assert macro_f1(classes, after, 3) == 1


# whole systems


@pytest.mark.parametrize("train", [cbm.sequential_cbm, cbm.answered_cbm, cbm.independent_cbm])
def test_a_head_on_good_concepts_finds_the_classes(context, train):
    system = train(context)
    test = context.data.collection.rows("test")
    with torch.no_grad():
        predicted = system.classify(concept_logits(context.shared_backbone, test)).argmax(1).numpy()
    assert macro_f1(context.data.collection.truth()[test], predicted, 3) > 0.85
    assert not context.callbacks.history  # nothing is trained by epochs


def test_answers_to_images_are_those_from_the_cache(data, tmp_path):
    model = make_model()
    model.backbone.set_normalisation(torch.tensor([0.3]), torch.tensor([0.2]))
    compute_features(model, data, tmp_path, SilentCallbacks())
    cache = FeatureCache.open(tmp_path)
    system = cbm.sequential_cbm(make_context(data, TrainedBackbone(model, cache)))
    rows = data.collection.rows("test")
    with torch.no_grad():
        answer = system.answer(torch.from_numpy(data.images[rows]))
        logits = torch.from_numpy(lse(cache.cam[rows])).float()
        expected = system.head(logits).softmax(-1)
    np.testing.assert_allclose(answer.maps, cache.cam[rows], atol=1e-3)
    np.testing.assert_allclose(answer.concepts, logits, atol=1e-3)
    np.testing.assert_allclose(answer.probabilities, expected, atol=1e-3)
    assert answer.explanations.tolist() == [3] * len(rows)


def test_joint_trains_both_parts_and_reports_both_losses(data):
    still = AugmentConfig(rotate=0, shift=0, scale=0, brightness=0, contrast=0)
    context = ExperimentContext(data, replace(CONFIG, augment=still, epochs=10, learning_rate=6e-3), SilentCallbacks())
    system = cbm.joint_cbm(context)
    history = context.callbacks.history
    assert len(history) == 10
    assert set(history[0]) == {"epoch", "train_class", "train_concept", "val_macro_f1", "val_macro_auroc"}
    for term in ("train_class", "train_concept"):
        assert history[-1][term] < 0.7 * history[0][term]
    predictions = predict(system, data, data.collection.rows("test"))
    assert predictions.concepts.shape == (12, 3)
    assert predictions.peaks.shape == (12, 3, 2)
    assert (system.low < system.high).all()
