"""The three stages on made-up data: they learn, they resume exactly, they stop when the loss is no number."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
import torch

from csr.errors import DataError, TrainingError
from csr.network.checkpoint import read_checkpoint, write_checkpoint
from csr.network.concept_model import ConceptModel, ConceptModelConfig
from csr.network.prototypes import prototype_model_checkpoint, prototype_model_from_checkpoint
from csr.network.rebuild import concept_model_checkpoint, concept_model_from_checkpoint
from csr.network.trained import TrainedCSR
from csr.training import runtime
from csr.training.augmentation import AugmentConfig, augment
from csr.training.callbacks import SilentCallbacks
from csr.training.concepts import ConceptTrainingConfig, train_concepts
from csr.training.features import FeatureCache, compute_features
from csr.training.head import HeadConfig, all_scores, drop_concepts, train_head
from csr.training.losses import masked_bce
from csr.training.prototypes import (
    PrototypeConfig,
    PrototypeModel,
    PrototypeObjective,
    build_prototype_model,
    diagnose,
    positive_vectors,
    train_prototypes,
    usage,
)
from csr.training.runtime import seeds
from tests.csr.synthetic import make_cache, make_collection, make_prepared, make_reasoner, with_labels

NET = ConceptModelConfig("test_resnet", stride=8)
STAGE1 = ConceptTrainingConfig(model=NET, epochs=3, batch_size=8, precision="float32")
STAGE2 = PrototypeConfig(per_concept=3, width=8, blocks=1, epochs=4, batch_size=10)
STAGE3 = HeadConfig(epochs=4, batch_size=10, least_usage=0.0, concept_dropout=0.3, interventions=0.5)
HARSH = 1e30  # a learning rate that no run survives


class Interruption(Exception):
    """Stands for a machine that is taken away."""


class Recorder(SilentCallbacks):
    """Keeps checkpoints as a file would, and may be cut off in the middle of an epoch."""

    def __init__(self, checkpoint: bytes | None = None, cut_in_epoch: int | None = None) -> None:
        super().__init__()
        self.checkpoint, self.cut_in_epoch = checkpoint, cut_in_epoch
        self.seen = 0

    def resume(self):
        return None if self.checkpoint is None else torch.load(io.BytesIO(self.checkpoint), weights_only=True)

    def epoch(self, metrics, state):
        super().epoch(metrics, state)
        buffer = io.BytesIO()
        torch.save(state(), buffer)
        self.checkpoint = buffer.getvalue()
        self.seen += 1

    def track(self, items, total, description):
        for position, item in enumerate(items):
            if self.seen == self.cut_in_epoch and position == total // 2:
                raise Interruption
            yield item


@pytest.fixture(scope="module")
def collection():
    return make_collection()


@pytest.fixture(scope="module")
def cache(collection):
    return make_cache(collection)


@pytest.fixture(scope="module")
def data(collection, tmp_path_factory):
    return make_prepared(tmp_path_factory.mktemp("data") / "prepared", collection)


@pytest.fixture(scope="module")
def prototypes(collection, cache) -> PrototypeModel:
    return train_prototypes(collection, cache, STAGE2, SilentCallbacks())


@pytest.fixture
def run(collection, cache, data, prototypes):
    """stage name → a function of (callbacks, changes to the stage's configuration) that trains it."""

    def start(stage: str, callbacks, **changes):
        if stage == "concepts":
            return train_concepts(data, replace(STAGE1, **changes), callbacks)
        if stage == "prototypes":
            return train_prototypes(collection, cache, replace(STAGE2, **changes), callbacks)
        return train_head(collection, cache, prototypes, replace(STAGE3, **changes), callbacks)

    return start


STAGES = pytest.mark.parametrize("stage", ["concepts", "prototypes", "head"])


def weights(model) -> dict[str, np.ndarray]:
    return {name: value.numpy().copy() for name, value in model.state_dict().items()}


def assert_same(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        np.testing.assert_allclose(second[name], value, atol=1e-6, rtol=1e-5, err_msg=name)


# what holds for every stage


@pytest.mark.parametrize(
    ("stage", "changes"),
    [
        ("concepts", {}),
        ("prototypes", {}),
        ("head", {}),
        ("concepts", {"precision": "float16"}),
        ("prototypes", {"precision": "float16"}),
        (
            "concepts",
            {"patience": 1, "epochs": 6, "keep": "best", "accumulate": 2, "clip": 0.1, "sampling": "balanced"},
        ),
    ],
)
def test_a_run_cut_off_in_its_second_epoch_resumes_to_the_weights_of_an_uninterrupted_one(run, stage, changes):
    whole = Recorder()
    expected = weights(run(stage, whole, **changes))
    cut = Recorder(cut_in_epoch=1)
    with pytest.raises(Interruption):
        run(stage, cut, **changes)
    torch.manual_seed(987)  # another process has other random numbers
    np.random.seed(987)
    rest = Recorder(cut.checkpoint)
    assert_same(expected, weights(run(stage, rest, **changes)))
    assert [row["epoch"] for row in rest.history] == [row["epoch"] for row in whole.history][1:]
    for resumed, original in zip(rest.history, whole.history[1:], strict=True):
        assert resumed == pytest.approx(original, rel=1e-4, abs=1e-5, nan_ok=True)


@STAGES
def test_a_finished_run_that_is_resumed_trains_no_further(run, stage):
    whole = Recorder()
    expected = weights(run(stage, whole))
    again = Recorder(whole.checkpoint)
    model = run(stage, again)
    assert_same(expected, weights(model))
    assert again.history == []
    assert not model.training


@STAGES
def test_the_seed_decides_the_weights(run, stage):
    first = weights(run(stage, SilentCallbacks(), epochs=1))
    torch.manual_seed(5)
    assert_same(first, weights(run(stage, SilentCallbacks(), epochs=1)))
    other = weights(run(stage, SilentCallbacks(), epochs=1, seed=1))
    assert any(not np.allclose(first[name], other[name], atol=1e-4) for name in first)


@STAGES
@pytest.mark.filterwarnings("ignore")
def test_a_loss_that_is_no_number_ends_the_run_by_naming_the_stage_and_its_learning_rate(run, stage):
    callbacks = SilentCallbacks()
    with pytest.raises(TrainingError, match=rf"the loss.*{stage}\.learning_rate"):
        run(stage, callbacks, learning_rate=HARSH, epochs=6)
    assert all(np.isfinite(row.get("train_loss", 0.0)) for row in callbacks.history)


@STAGES
def test_each_epoch_is_reported_once_and_the_model_comes_back_in_evaluation_mode(run, stage):
    callbacks = SilentCallbacks()
    model = run(stage, callbacks)
    assert [row["epoch"] for row in callbacks.history] == list(range(len(callbacks.history)))
    assert not model.training
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_nan_and_infinite_losses_are_refused_with_stage_and_epoch(value):
    with pytest.raises(TrainingError, match=r"epoch 3.*head"):
        runtime.check_finite(torch.tensor(value), "head", 3)
    runtime.check_finite(torch.tensor(1e30), "head", 3)


@pytest.mark.parametrize("epochs", [1, 2, 4])
@pytest.mark.parametrize("warmup", [0.1, 0.25, 0.5])
def test_a_very_short_run_has_a_schedule_too(data, epochs, warmup):
    config = replace(STAGE1, epochs=epochs, batch_size=40, warmup=warmup)  # one step an epoch
    callbacks = SilentCallbacks()
    train_concepts(data, config, callbacks)
    assert len(callbacks.history) == epochs


# unknown labels


def test_an_image_without_known_labels_adds_nothing_to_any_gradient_of_stage_2(cache, collection):
    torch.manual_seed(0)
    model = PrototypeObjective(build_prototype_model(STAGE2, 6, 3), STAGE2)
    labels = torch.from_numpy(collection.concept_labels())

    def gradients(rows: list[int], hidden: list[int]) -> list[torch.Tensor]:
        model.zero_grad()
        own = labels.clone()
        own[hidden] = float("nan")
        features, cam = cache.batch(np.array(rows), torch.device("cpu"))
        sum(model(features, cam, own[rows]).values()).backward()
        return [parameter.grad.clone() for parameter in model.parameters()]

    alone, accompanied, shown = gradients([1, 2, 4], []), gradients([1, 2, 4, 5], [5]), gradients([1, 2, 4, 5], [])
    for first, second in zip(alone, accompanied, strict=True):
        torch.testing.assert_close(first, second, atol=1e-5, rtol=1e-4)
    assert any(not torch.allclose(a, b, atol=1e-3) for a, b in zip(alone, shown, strict=True))


def test_an_unknown_label_of_one_concept_stops_the_gradient_into_its_map_and_into_no_other():
    torch.manual_seed(0)
    model = ConceptModel(NET, 1, 3).eval()
    images = torch.randint(0, 255, (4, 1, 32, 32), dtype=torch.uint8)
    labels = torch.tensor([[1.0, 0, 1]] * 4)
    labels[:, 1] = float("nan")
    masked_bce(model(images)[1], labels).backward()
    per_concept = model.to_maps.weight.grad.abs().sum((1, 2, 3))
    assert per_concept[1] == 0
    assert (per_concept[[0, 2]] > 0).all()


@STAGES
def test_training_with_many_unknown_labels_stays_finite(tmp_path, collection, cache, stage):
    labels = collection.concept_labels()
    labels[np.random.default_rng(0).random(labels.shape) < 0.4] = np.nan
    partly = with_labels(collection, labels)
    if stage == "concepts":
        model = train_concepts(make_prepared(tmp_path / "set", partly), replace(STAGE1, epochs=1), SilentCallbacks())
    else:
        model = train_prototypes(partly, cache, STAGE2, SilentCallbacks())
    if stage == "head":
        model = train_head(partly, cache, model, STAGE3, SilentCallbacks())
    assert all(np.isfinite(value).all() for value in weights(model).values())


@pytest.mark.parametrize("margin", ["numerator", "plus", "minus"])
def test_a_batch_in_which_no_concept_is_present_does_not_end_the_run(collection, cache, margin):
    labels = collection.concept_labels()
    labels[3:40] = 0  # three images with findings, and batches of two: most batches have none
    config = replace(STAGE2, batch_size=2, epochs=1, margin=margin)
    callbacks = SilentCallbacks()
    train_prototypes(with_labels(collection, labels), cache, config, callbacks)
    assert np.isfinite(callbacks.history[0]["train_contrastive"])


# stage 1


def test_stage_1_learns_a_concept_that_can_be_seen(data):
    callbacks = SilentCallbacks()
    train_concepts(data, replace(STAGE1, epochs=8, augment=AugmentConfig(0, 0, 0, 0, 0)), callbacks)
    losses = [row["train_loss"] for row in callbacks.history]
    assert losses[-1] < 0.7 * losses[0]


def test_images_are_standardised_with_the_statistics_of_the_training_split_alone(data):
    model = train_concepts(data, replace(STAGE1, epochs=1), SilentCallbacks())
    train = data.images[data.collection.rows("train")].astype(np.float64) / 255
    assert float(model.backbone.mean) == pytest.approx(train.mean(), abs=1e-5)
    assert float(model.backbone.std) == pytest.approx(train.std(), abs=1e-5)


def test_augmentation_of_no_width_changes_no_pixel_by_more_than_rounding():
    images = torch.randint(0, 256, (3, 1, 16, 16), dtype=torch.uint8)
    moved = augment(images, AugmentConfig(0, 0, 0, 0, 0))
    assert (moved.int() - images.int()).abs().max() <= 1


def test_augmentation_is_drawn_image_by_image_from_the_seed():
    images = torch.randint(0, 256, (1, 1, 16, 16), dtype=torch.uint8).repeat(4, 1, 1, 1)
    torch.manual_seed(0)
    first = augment(images, AugmentConfig())
    torch.manual_seed(0)
    assert torch.equal(first, augment(images, AugmentConfig()))
    assert not torch.equal(first[0], first[1])
    assert first.dtype == torch.uint8
    assert first.shape == images.shape


def test_shift_moves_by_at_most_its_share_of_the_side():
    images = torch.zeros(64, 1, 40, 40, dtype=torch.uint8)
    images[:, :, 20, 20] = 255
    torch.manual_seed(0)
    moved = augment(images, AugmentConfig(0, 0.1, 0, 0, 0))
    peaks = np.array([np.unravel_index(one[0].numpy().argmax(), (40, 40)) for one in moved])
    far = np.abs(peaks - 20).max(0)
    assert (far <= 4).all()
    assert (far >= 3).all()


def test_flip_mirrors_left_and_right_in_about_half_of_the_images_and_never_by_default():
    images = torch.zeros(200, 1, 16, 16, dtype=torch.uint8)
    images[..., :8] = 200
    torch.manual_seed(0)
    mirrored = (augment(images, AugmentConfig(0, 0, 0, 0, 0, flip=True))[:, 0, 8, 12] > 100).float().mean()
    assert 0.35 < mirrored < 0.65
    assert not (augment(images, AugmentConfig(0, 0, 0, 0, 0))[:, 0, 8, 12] > 100).any()


# the feature cache


def test_the_cache_holds_what_the_frozen_model_computes(data, tmp_path):
    torch.manual_seed(0)
    model = ConceptModel(NET, 1, 3).eval()
    compute_features(model, data, tmp_path, SilentCallbacks(), batch_size=16)
    cache = FeatureCache.open(tmp_path)
    assert cache.features.dtype == np.float16
    assert cache.features.shape == (68, model.backbone.width, 4, 4)
    rows = np.array([0, 17, 67])
    with torch.no_grad():
        features = model.features(torch.from_numpy(data.images[rows]))
        maps = model.maps(features)
    own_features, own_maps = cache.batch(rows, torch.device("cpu"))
    np.testing.assert_allclose(own_features, features, rtol=2e-3, atol=1e-3)
    np.testing.assert_allclose(own_maps, maps, atol=1e-4)


def test_a_missing_cache_is_named_with_the_stage_that_makes_it(tmp_path):
    with pytest.raises(DataError, match=r"features\.npy.*features"):
        FeatureCache.open(tmp_path)


# stage 2


def test_positive_vectors_are_those_of_present_concepts_in_order(cache, collection):
    labels = collection.concept_labels()
    labels[0, 1] = np.nan
    rows = np.arange(10)
    features, cam = cache.batch(rows, torch.device("cpu"))
    vectors, concept = positive_vectors(features, cam, torch.from_numpy(labels[rows]))
    expected, owners = [], []
    for row in rows:
        for k in range(3):
            if labels[row, k] == 1:
                attention = np.exp(cam[row, k].double().numpy())
                attention /= attention.sum()
                expected.append((attention * features[row].double().numpy()).sum((1, 2)))
                owners.append(k)
    np.testing.assert_allclose(vectors, np.stack(expected), atol=1e-4)
    assert concept.tolist() == owners


def test_stages_2_and_3_learn_what_can_be_learned():
    collection = make_collection(150, 60, 30)
    cache = make_cache(collection)
    second, third = SilentCallbacks(), SilentCallbacks()
    model = train_prototypes(collection, cache, replace(STAGE2, epochs=8, learning_rate=3e-3, reseed=False), second)
    for term in ("train_absence", "train_agreement"):
        assert second.history[-1][term] < 0.8 * second.history[0][term]
    assert second.history[-1]["accuracy"] > 0.9
    train_head(collection, cache, model, replace(STAGE3, epochs=10, learning_rate=0.05, concept_dropout=0.0), third)
    assert third.history[-1]["train_loss"] < 0.5 * third.history[0]["train_loss"]
    assert third.history[-1]["val_macro_f1"] > 0.85


def test_the_letter_of_the_paper_trains_by_the_contrastive_term_alone(collection, cache):
    callbacks = SilentCallbacks()
    config = replace(STAGE2, absence=0.0, agreement=0.0)
    train_prototypes(collection, cache, config, callbacks)
    assert [key for key in callbacks.history[0] if key.startswith("train_")] == ["train_contrastive"]
    objective = PrototypeObjective(build_prototype_model(config, 6, 3), config)
    assert not objective.scale.requires_grad and not objective.shift.requires_grad  # the absence term alone uses them


def test_features_are_standardised_over_training_patches_only_when_asked(collection, cache):
    rows = collection.rows("train")
    patches = cache.features[rows].astype(np.float64).transpose(0, 2, 3, 1).reshape(-1, 6)
    standard = train_prototypes(collection, cache, replace(STAGE2, epochs=1), SilentCallbacks()).projector
    np.testing.assert_allclose(standard.mean, patches.mean(0), atol=1e-4)
    np.testing.assert_allclose(standard.std, patches.std(0), rtol=1e-4)
    plain = train_prototypes(collection, cache, replace(STAGE2, epochs=1, standardise=False), SilentCallbacks())
    assert not plain.projector.mean.any()
    assert (plain.projector.std == 1).all()


def test_diagnosis_of_prototypes_equals_the_loops(prototypes, collection, cache):
    rows = collection.rows("val")
    features, cam = cache.batch(rows, torch.device("cpu"))
    vectors, concept = positive_vectors(features, cam, torch.from_numpy(collection.concept_labels()[rows]))
    with torch.no_grad():
        projected = prototypes.projector(vectors).double().numpy()
        unit = prototypes.prototypes.unit().double().numpy()
    inner = np.einsum("nd,kmd->nkm", projected, unit)
    winners, within, between, right = [set() for _ in range(3)], [], [], []
    counts = np.zeros((3, 3))
    for n, own in enumerate(concept.tolist()):
        winners[own].add(int(inner[n, own].argmax()))
        counts[own, inner[n, own].argmax()] += 1
        within.append(inner[n, own].max())
        between.append(max(inner[n, k].max() for k in range(3) if k != own))
        right.append(within[-1] > between[-1])
    shares = [own[own > 0] / own.sum() for own in counts]
    entropy = np.mean([-(share * np.log(share)).sum() / np.log(3) for share in shares])
    result = diagnose(prototypes, vectors, concept)
    assert result["alive_count"] == sum(map(len, winners))
    assert result["alive"] == pytest.approx(sum(map(len, winners)) / 9)
    assert result["assignment_entropy"] == pytest.approx(entropy)
    assert result["within"] == pytest.approx(np.mean(within), abs=1e-5)
    assert result["between"] == pytest.approx(np.mean(between), abs=1e-5)
    assert result["accuracy"] == pytest.approx(np.mean(right))


def test_usage_is_the_share_of_its_concepts_vectors_that_a_living_prototype_wins(prototypes, collection, cache):
    rows = collection.rows("train")
    features, cam = cache.batch(rows, torch.device("cpu"))
    vectors, concept = positive_vectors(features, cam, torch.from_numpy(collection.concept_labels()[rows]))
    inner = np.einsum(
        "nd,kmd->nkm",
        prototypes.projector(vectors).detach().double().numpy(),
        prototypes.prototypes.unit().detach().double().numpy(),
    )
    for pruned in (None, 1):
        alive, won = torch.ones(3, 3), np.zeros((3, 3))
        for n, own in enumerate(concept.tolist()):
            ranked = np.argsort(-inner[n, own])
            won[own, next(m for m in ranked if m != pruned)] += 1
        if pruned is not None:
            alive[:, pruned] = 0
        np.testing.assert_allclose(usage(prototypes, vectors, concept, alive), won / won.sum(1, keepdims=True))
    assert not usage(prototypes, vectors[:0], concept[:0], torch.ones(3, 3)).any()
    assert not usage(prototypes, vectors, concept, torch.zeros(3, 3)).any()


def test_reseeding_revives_dead_prototypes_and_stops_before_the_last_two_epochs(collection, cache):
    crowded = replace(STAGE2, per_concept=12, learning_rate=0.0)  # nothing but reseeding moves a prototype
    rows = collection.rows("train")
    features, cam = cache.batch(rows, torch.device("cpu"))
    vectors = positive_vectors(features, cam, torch.from_numpy(collection.concept_labels()[rows]))
    alive, history = {}, {}
    for reseed in (True, False):
        callbacks = SilentCallbacks()
        model = train_prototypes(collection, cache, replace(crowded, reseed=reseed), callbacks)
        alive[reseed], history[reseed] = diagnose(model, *vectors)["alive_count"], callbacks.history
    assert alive[True] > alive[False]
    assert history[True][0]["reseeded"] > 0
    assert [row["reseeded"] for row in history[True]][-2:] == [0, 0]
    assert all(row["reseeded"] == 0 for row in history[False])


# stage 3


@pytest.fixture(scope="module")
def reasoner(collection, cache, prototypes):
    return train_head(collection, cache, prototypes, replace(STAGE3, epochs=40), SilentCallbacks())


@pytest.fixture(scope="module")
def scores(collection, cache, prototypes, reasoner):
    """s n×K×M of the training rows, by hand."""
    rows = collection.rows("train")
    with torch.no_grad():
        patches = prototypes.projector.project_maps(cache.batch(rows, torch.device("cpu"))[0]).double().numpy()
        unit = prototypes.prototypes.unit().double().numpy()
    return np.einsum("kmd,ndhw->nkmhw", unit, patches).clip(0).max((3, 4))


def test_nothing_before_the_head_moves_while_it_trains(collection, cache, prototypes):
    before = weights(prototypes)
    reasoner = train_head(collection, cache, prototypes, STAGE3, SilentCallbacks())
    assert_same(before, weights(prototypes))
    np.testing.assert_allclose(reasoner.prototypes, prototypes.prototypes.unit().detach(), atol=1e-6)


def test_scores_of_many_rows_are_maxima_of_the_clipped_similarity_maps(reasoner, collection, cache, prototypes, scores):
    own = all_scores(reasoner, prototypes, cache, collection.rows("train"))
    np.testing.assert_allclose(own, scores, atol=1e-5)


def test_scores_are_standardised_with_training_statistics(reasoner, scores):
    np.testing.assert_allclose(reasoner.score_mean, scores.mean(0), atol=1e-5)
    np.testing.assert_allclose(reasoner.score_std, scores.std(0, ddof=1), atol=1e-5)


@pytest.mark.parametrize("unknown", [False, True])
def test_absent_and_present_scores_are_the_medians_over_training_images_known_to_lack_or_show_the_concept(
    unknown, collection, cache, prototypes, scores
):
    labels = collection.concept_labels()
    if unknown:
        labels[::3, 2] = np.nan
    reasoner = train_head(with_labels(collection, labels), cache, prototypes, STAGE3, SilentCallbacks())
    for k in range(3):
        for label, typical, whole in (
            (0, reasoner.absent_scores, reasoner.absent_evidence),
            (1, reasoner.present_scores, reasoner.present_evidence),
        ):
            own = np.sort(scores[labels[:40, k] == label, k], axis=0)
            np.testing.assert_allclose(typical[k], own[(len(own) - 1) // 2], atol=1e-5)
            evidence = np.median(scores[labels[:40, k] == label, k].max(1))
            np.testing.assert_allclose(whole[k], evidence, atol=1e-5)


def test_the_concept_read_out_is_calibrated_on_training_images(reasoner, collection, scores):
    """At the optimum of a logistic regression, predicted and true positives agree, also weighted by the evidence."""
    labels, evidence = collection.concept_labels()[:40].astype(np.float64), scores.max(2)
    logits = evidence * reasoner.concept_scale.double().numpy() + reasoner.concept_shift.double().numpy()
    residual = 1 / (1 + np.exp(-logits)) - labels
    np.testing.assert_allclose(residual.mean(0), 0, atol=2e-3)
    np.testing.assert_allclose((residual * evidence).mean(0), 0, atol=2e-3)
    assert (reasoner.concept_scale > 0).all()


def test_unused_prototypes_are_pruned_and_the_head_gives_them_no_weight(collection, cache):
    crowded = train_prototypes(collection, cache, replace(STAGE2, per_concept=12), SilentCallbacks())
    rows = collection.rows("train")
    features, cam = cache.batch(rows, torch.device("cpu"))
    vectors, concept = positive_vectors(features, cam, torch.from_numpy(collection.concept_labels()[rows]))
    shares = usage(crowded, vectors, concept, torch.ones(3, 12))
    pruning = train_head(collection, cache, crowded, replace(STAGE3, least_usage=0.1), SilentCallbacks())
    assert torch.equal(pruning.alive > 0, shares >= 0.1)
    assert 0 < pruning.alive.sum() < 36
    weights = pruning.head.weight.view(-1, 3, 12)
    assert (weights[:, pruning.alive == 0] == 0).all()
    assert (weights[:, pruning.alive > 0] != 0).all()
    keeping = train_head(collection, cache, crowded, STAGE3, SilentCallbacks())
    assert keeping.alive.all()
    # nothing is asked that no prototype can give
    assert train_head(collection, cache, crowded, replace(STAGE3, least_usage=1.1), SilentCallbacks()).alive.all()


def test_what_a_reviewer_pruned_stays_pruned_and_its_vectors_count_for_those_that_are_left(
    collection, cache, prototypes
):
    alive = torch.ones(3, 3)
    alive[:, 0] = 0
    reasoner = train_head(
        collection, cache, prototypes, replace(STAGE3, least_usage=1e-9), SilentCallbacks(), alive=alive
    )
    assert not reasoner.alive[:, 0].any()
    rows = collection.rows("train")
    features, cam = cache.batch(rows, torch.device("cpu"))
    vectors, concept = positive_vectors(features, cam, torch.from_numpy(collection.concept_labels()[rows]))
    assert torch.equal(reasoner.alive > 0, usage(prototypes, vectors, concept, alive) > 0)


def test_the_typical_evidence_is_that_of_the_prototypes_that_are_left(collection, cache, prototypes, scores):
    """And a pruned one scores alike whether the concept is there or not."""
    alive = torch.ones(3, 3)
    alive[:, 0] = 0
    reasoner = train_head(collection, cache, prototypes, STAGE3, SilentCallbacks(), alive=alive)
    assert torch.equal(reasoner.present_scores[:, 0], reasoner.absent_scores[:, 0])
    labels = collection.concept_labels()[:40]
    for k in range(3):
        for label, whole in ((0, reasoner.absent_evidence), (1, reasoner.present_evidence)):
            evidence = np.median(scores[labels[:, k] == label, k, 1:].max(1))
            np.testing.assert_allclose(whole[k], evidence, atol=1e-5)


def test_dropped_concepts_score_their_absent_values_whole_concepts_at_a_time():
    reasoner = make_reasoner(0, clip=True)
    scores = torch.full((4000, 3, 4), 9.0)
    torch.manual_seed(0)
    dropped = drop_concepts(reasoner, scores, 0.25)
    gone = (dropped != 9).all(-1)
    assert torch.equal(gone, (dropped != 9).any(-1))
    assert torch.equal(dropped[gone], reasoner.absent_scores.expand(4000, -1, -1)[gone])
    np.testing.assert_allclose(gone.float().mean(0), 0.25, atol=0.03)
    assert torch.equal(drop_concepts(reasoner, scores, 0.0), scores)
    assert (drop_concepts(reasoner, scores, 1.0) == reasoner.absent_scores).all()


# batches and checkpoints


def test_batches_are_a_new_permutation_each_epoch_of_whole_batches():
    rows = np.arange(100, 123)
    first = list(runtime.batches(rows, 5, seeds(0, "order")))
    assert [len(batch) for batch in first] == [5] * 4
    drawn = np.concatenate(first)
    assert len(set(drawn)) == 20
    assert set(drawn) <= set(rows)
    again, second = (np.concatenate(list(runtime.batches(rows, 5, seeds(0, "order", epoch)))) for epoch in (0, 1))
    np.testing.assert_array_equal(drawn, again)
    assert not np.array_equal(drawn, second)


def test_fewer_rows_than_a_batch_make_one_batch():
    (only,) = runtime.batches(np.arange(3), 8, seeds(0, "order"))
    np.testing.assert_array_equal(only, np.arange(3))


def test_processes_of_a_distributed_run_are_given_the_same_whole_batches(monkeypatch):
    """Which they share, so that the batch size does not depend on their number."""
    alone = list(runtime.batches(np.arange(31), 5, seeds(0, "order")))
    monkeypatch.setattr(runtime, "world_size", lambda: 3)
    for rank in range(3):
        monkeypatch.setattr(runtime, "rank", lambda rank=rank: rank)
        assert runtime.count_batches(31, 5) == 6
        for batch, expected in zip(runtime.batches(np.arange(31), 5, seeds(0, "order")), alone, strict=True):
            np.testing.assert_array_equal(batch, expected)


def reloaded(content, folder):
    write_checkpoint(content, folder / "model.pt")
    return read_checkpoint(folder / "model.pt", content["kind"])


def test_every_stages_checkpoint_rebuilds_the_same_model_from_plain_types(prototypes, reasoner, data, cache, tmp_path):
    torch.manual_seed(0)
    model = ConceptModel(NET, 1, 3).eval()
    images = torch.from_numpy(data.images[[0, 1]])
    again = concept_model_from_checkpoint(reloaded(concept_model_checkpoint(model), tmp_path))
    features, _ = cache.batch(np.arange(4), torch.device("cpu"))
    other = prototype_model_from_checkpoint(reloaded(prototype_model_checkpoint(prototypes), tmp_path))
    csr = TrainedCSR(model, prototypes, reasoner, data.collection.concepts, data.collection.classes).eval()
    csr.save(tmp_path / "csr.pt")
    whole = TrainedCSR.load(tmp_path / "csr.pt")
    with torch.no_grad():
        assert torch.equal(again(images)[1], model(images)[1])
        patches = prototypes.projector.project_maps(features)
        assert torch.equal(other.projector.project_maps(features), patches)
        assert torch.equal(whole.reasoner(patches).logits, reasoner(patches).logits)
    assert whole.reasoner.config == reasoner.config
    assert (whole.concepts, whole.classes) == (csr.concepts, csr.classes)
    assert other.config == prototypes.config
    assert again.config == model.config


def test_a_rebuilt_concept_model_asks_for_no_pretrained_weights():
    model = ConceptModel(NET, 1, 3)
    model.config = replace(NET, pretrained=True, checkpoint="gone.pth")
    again = concept_model_from_checkpoint(concept_model_checkpoint(model))
    assert not again.config.pretrained and again.config.checkpoint is None
