"""Concept labels that are partly missing: how they are hidden, what losses see of them, and what is still learned."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from csr.data.missing import hide_concept_labels
from csr.data.prepared import PreparedSet
from csr.data.records import CORNERS, check_concept_labels
from csr.errors import ConfigError, DataError
from csr.evaluation.evaluate import evaluate_predictions
from csr.network.concept_model import ConceptModelConfig
from csr.network.trained import TrainedCSR
from csr.training.augmentation import AugmentConfig
from csr.training.callbacks import SilentCallbacks
from csr.training.concepts import ConceptTrainingConfig, train_concepts
from csr.training.features import FeatureCache, compute_features
from csr.training.head import HeadConfig, train_head
from csr.training.losses import masked_bce
from csr.training.prediction import predict
from csr.training.prototype_losses import absence, agreement, prototype_contrastive, soft_similarity
from csr.training.prototypes import PrototypeConfig, diagnose, positive_vectors, train_prototypes
from csr.training.selection import count_curve
from tests.csr.synthetic import SIDE, make_cache, make_collection, make_csr, with_labels, without_images

SHARES = pytest.mark.parametrize("share", [0.5, 0.9])
STAGE2 = PrototypeConfig(per_concept=3, width=8, blocks=1, epochs=8, batch_size=20, learning_rate=3e-3)
STAGE3 = HeadConfig(epochs=10, batch_size=20, learning_rate=0.05)


def train_labels(collection) -> np.ndarray:
    return collection.concept_labels()[collection.rows("train")]


# hiding


@SHARES
@pytest.mark.parametrize("seed", [0, 1])
def test_the_asked_share_of_training_labels_is_hidden_and_nothing_else_changes(share, seed):
    before = make_collection(200, 40, 40)
    labels = before.concept_labels()
    labels[::7, 1] = np.nan  # some were unknown already
    before = with_labels(before, labels)
    after = hide_concept_labels(before, share, seed)
    old, new = train_labels(before), train_labels(after)
    assert (~np.isnan(new)).sum() == (~np.isnan(old)).sum() - round(share * (~np.isnan(old)).sum())
    np.testing.assert_array_equal(new[~np.isnan(new)], old[~np.isnan(new)])
    others = before.studies["split"] != "train"
    pd.testing.assert_frame_equal(after.studies[others], before.studies[others])
    columns = [name for name in before.studies if not name.startswith("concept:")]
    pd.testing.assert_frame_equal(after.studies[columns], before.studies[columns])
    np.testing.assert_array_equal(before.concept_labels(), labels)


@SHARES
def test_labels_are_hidden_alike_whatever_they_say(share):
    before = make_collection(3000, 3, 3)
    hidden = np.isnan(train_labels(hide_concept_labels(before, share, 0)))
    labels = train_labels(before)
    for k in range(3):
        for value in (0, 1):
            assert hidden[labels[:, k] == value, k].mean() == pytest.approx(share, abs=0.05)


@pytest.mark.parametrize("share", [0.98, 1.0])
@pytest.mark.parametrize("seed", range(5))
def test_every_concept_keeps_one_study_that_shows_it_and_one_that_lacks_it(share, seed):
    after = hide_concept_labels(make_collection(), share, seed)
    check_concept_labels(after, "made-up")
    if share == 1.0:
        assert np.nansum(train_labels(after), 0).tolist() == [1, 1, 1]
        assert (train_labels(after) == 0).sum(0).tolist() == [1, 1, 1]


@SHARES
def test_boxes_of_hidden_labels_go_and_the_others_keep_their_place(share):
    before = make_collection()
    after = hide_concept_labels(before, share, 3)
    wanted = {
        pair: boxes for pair, boxes in before.boxes_by_pair().items() if not np.isnan(after.concept_labels()[pair])
    }
    kept = after.boxes_by_pair()
    assert kept.keys() == wanted.keys()
    for pair, boxes in wanted.items():
        np.testing.assert_array_equal(kept[pair], boxes)
    pd.testing.assert_frame_equal(after.boxes[CORNERS], before.boxes.loc[after.boxes.index, CORNERS])


def test_the_seed_decides_and_a_larger_share_hides_what_a_smaller_one_does():
    collection = make_collection()
    half, same, other, most = (
        np.isnan(train_labels(hide_concept_labels(collection, share, seed)))
        for share, seed in ((0.5, 0), (0.5, 0), (0.5, 1), (0.9, 0))
    )
    np.testing.assert_array_equal(half, same)
    assert (half != other).any()
    assert (half <= most).all()
    assert not np.isnan(hide_concept_labels(collection, 0, 0).concept_labels()).any()


@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan")])
def test_a_share_outside_0_to_1_is_refused(share):
    with pytest.raises(ConfigError, match=r"outside 0\.\.1"):
        hide_concept_labels(make_collection(), share, 0)


@pytest.mark.parametrize(("value", "word"), [(1, "positive"), (0, "negative")])
def test_a_concept_that_cannot_be_learned_is_named_by_hiding_and_by_stages_2_and_3(value, word):
    collection = make_collection()
    cache = make_cache(collection)
    model = train_prototypes(collection, cache, replace(STAGE2, epochs=1), SilentCallbacks())
    labels = collection.concept_labels()
    labels[:40, 2][labels[:40, 2] == value] = np.nan
    without = with_labels(collection, labels)
    for attempt in (
        lambda: hide_concept_labels(without, 0.5, 0),
        lambda: train_prototypes(without, cache, STAGE2, SilentCallbacks()),
        lambda: train_head(without, cache, model, STAGE3, SilentCallbacks()),
    ):
        with pytest.raises(DataError, match=rf"made-up: concept 'haze' has no {word} example in split 'train'"):
            attempt()


# losses


def hidden_labels(share: float, count: int = 40) -> torch.Tensor:
    collection = hide_concept_labels(make_collection(count, 3, 3), share, 0)
    return torch.from_numpy(train_labels(collection))


def random_maps(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """S n×3×2×4×4 and cam n×3×4×4."""
    generator = torch.Generator().manual_seed(seed)
    maps = torch.rand(count, 3, 2, 4, 4, generator=generator).requires_grad_()
    return maps, torch.randn(count, 3, 4, 4, generator=generator)


@SHARES
def test_unknown_entries_get_a_gradient_of_exactly_zero_from_every_masked_loss(share):
    labels = hidden_labels(share)
    unknown = labels.isnan()
    assert unknown.any() and not unknown.all()
    logits = torch.randn(labels.shape, generator=torch.Generator().manual_seed(1)).requires_grad_()
    masked_bce(logits, labels).backward()
    assert logits.grad is not None
    assert (logits.grad[unknown] == 0).all()
    assert (logits.grad[~unknown] != 0).all()
    maps, cam = random_maps(len(labels))
    scale, shift = torch.full((3,), 10.0), torch.full((3,), -5.0)
    for loss in (absence(maps, labels, scale, shift), agreement(maps, cam, labels)):
        (gradient,) = torch.autograd.grad(loss, maps)
        assert (gradient[unknown] == 0).all()
        assert (gradient[labels == 1].abs().flatten(1).sum(1) > 0).all()


@SHARES
def test_losses_with_hidden_labels_are_those_of_the_known_ones_alone(share):
    labels = hidden_labels(share)
    known, present = ~labels.isnan(), labels == 1
    logits = torch.randn(labels.shape, generator=torch.Generator().manual_seed(1))
    alone = F.binary_cross_entropy_with_logits(logits[known], labels[known])
    torch.testing.assert_close(masked_bce(logits, labels), alone)
    maps, cam = random_maps(len(labels))
    scale, shift = torch.tensor([5.0, 10, 20]), torch.tensor([-1.0, -2, -3])
    shifted = maps.amax((2, 3, 4)) * scale + shift
    alone = F.binary_cross_entropy_with_logits(shifted[known], labels[known])
    torch.testing.assert_close(absence(maps, labels, scale, shift), alone)
    one_by_one = [
        agreement(maps[i, k][None, None], cam[i, k][None, None], labels[i, k][None, None])
        for i, k in present.nonzero().tolist()
    ]
    torch.testing.assert_close(agreement(maps, cam, labels), torch.stack(one_by_one).mean())


@SHARES
def test_the_contrastive_loss_sees_the_vectors_of_known_present_concepts_alone(share):
    labels = hidden_labels(share)
    generator = torch.Generator().manual_seed(2)
    features, cam = torch.randn(40, 6, 4, 4, generator=generator), torch.randn(40, 3, 4, 4, generator=generator)
    prototypes = F.normalize(torch.randn(3, 2, 6, generator=generator), dim=-1)

    def loss(rows: slice, labels: torch.Tensor) -> torch.Tensor:
        vectors, concept = positive_vectors(features[rows], cam[rows], labels)
        return prototype_contrastive(soft_similarity(vectors, prototypes, 10.0)[0], concept)

    only = torch.eye(3)  # row k: concept k and no other
    one_by_one = [loss(slice(i, i + 1), only[k][None]) for i, k in (labels == 1).nonzero().tolist()]
    torch.testing.assert_close(loss(slice(None), labels), torch.stack(one_by_one).mean())


# training


def seen_concepts(collection, path: Path) -> PreparedSet:
    """Images on which each concept looks different, at a random place: a bright square, a dark one, stripes."""
    rng = np.random.default_rng(5)
    labels = collection.concept_labels()
    images = rng.integers(90, 130, (len(labels), 1, SIDE, SIDE), dtype=np.uint8)
    stripes = np.where(np.arange(10) % 4 < 2, 30, 220)[:, None].repeat(10, 1)
    boxes = []
    for row, own in enumerate(labels):
        for k in np.flatnonzero(own == 1):
            top, left = rng.integers(0, SIDE - 10, 2)
            images[row, 0, top : top + 10, left : left + 10] = (230, 10, stripes)[k]
            boxes.append((f"s{row:03d}", collection.concepts[k], left, top, left + 10, top + 10))
    table = pd.DataFrame(boxes, columns=list(collection.boxes)).astype(dict.fromkeys(CORNERS, float))
    return PreparedSet(replace(collection, boxes=table), images, path)


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    return seen_concepts(make_collection(200, 40, 90), tmp_path_factory.mktemp("seen"))


@pytest.fixture(scope="module")
def trained(seen, tmp_path_factory):
    """share → the report on the test split after stages 1 to 3 on labels of which that share is hidden."""
    known = {}

    def train(share: float) -> dict:
        if share not in known:
            collection = hide_concept_labels(seen.collection, share, 0)
            data = replace(seen, collection=collection)
            stage1 = ConceptTrainingConfig(
                model=ConceptModelConfig("test_resnet", stride=8),
                augment=AugmentConfig(0, 0, 0, 0, 0),
                epochs=6,
                batch_size=20,
                learning_rate=5e-3,
                precision="float32",
            )
            callbacks = SilentCallbacks()
            concept_model = train_concepts(data, stage1, callbacks)
            folder = tmp_path_factory.mktemp("features")
            compute_features(concept_model, data, folder, callbacks)
            cache = FeatureCache.open(folder)
            model = train_prototypes(collection, cache, STAGE2, callbacks)
            reasoner = train_head(collection, cache, model, STAGE3, callbacks)
            assert np.isfinite(list(reasoner.concept_scale)).all()
            csr = TrainedCSR(concept_model, model, reasoner, collection.concepts, collection.classes)
            known[share] = evaluate_predictions(collection, predict(data, cache, csr), data.side)["test"]
        return known[share]

    return train


def test_concepts_are_learned_from_half_of_the_labels_almost_as_well_and_from_a_tenth_well_above_chance(trained):
    full, half, tenth = (trained(share)["concept_auroc"] for share in (0.0, 0.5, 0.9))
    assert full > 0.95
    assert half > full - 0.03
    assert tenth > 0.85


@SHARES
def test_stages_2_and_3_learn_from_what_is_known(share):
    collection = make_collection(240, 60, 60)
    cache = make_cache(collection)
    partly = hide_concept_labels(collection, share, 0)
    reports = {}
    for name, used in (("full", collection), ("partly", partly)):
        model = train_prototypes(used, cache, STAGE2, SilentCallbacks())
        reasoner = train_head(used, cache, model, STAGE3, SilentCallbacks())
        csr = make_csr(model, reasoner, used)
        reports[name] = evaluate_predictions(used, predict(without_images(used), cache, csr), SIDE)["test"]
    assert reports["full"]["concept_auroc"] > 0.95
    assert reports["partly"]["concept_auroc"] > (0.93 if share == 0.5 else 0.8)


def test_one_known_study_either_way_is_enough_to_train_every_stage(seen):
    """Fewer vectors than prototypes, one absent score, a read-out fitted to two points."""
    collection = hide_concept_labels(seen.collection, 1.0, 0)
    cache = make_cache(make_collection(200, 40, 90))
    callbacks = SilentCallbacks()
    model = train_prototypes(collection, cache, replace(STAGE2, per_concept=12, reseed=True), callbacks)
    reasoner = train_head(collection, cache, model, STAGE3, callbacks)
    for module in (model, reasoner):
        assert all(torch.isfinite(value).all() for value in module.state_dict().values() if torch.is_tensor(value))
    assert all(np.isfinite(list(row.values())).all() for row in callbacks.history)
    assert count_curve(model, collection, cache).enough <= 12


def test_diagnostics_leave_out_a_concept_that_no_vector_shows(seen):
    collection = seen.collection
    cache = make_cache(make_collection(200, 40, 90))
    model = train_prototypes(collection, cache, replace(STAGE2, epochs=1), SilentCallbacks())
    labels = torch.from_numpy(collection.concept_labels()[:60])
    features, cam = cache.batch(np.arange(60), torch.device("cpu"))
    vectors, concept = positive_vectors(features, cam, labels)
    two = concept != 1
    partly = diagnose(model, vectors[two], concept[two])
    each = [diagnose(model, vectors[concept == k], concept[concept == k])["assignment_entropy"] for k in (0, 2)]
    assert partly["assignment_entropy"] == pytest.approx(np.mean(each))
    nothing = diagnose(model, vectors[:0], concept[:0])
    assert nothing["alive_count"] == 0
    assert all(np.isnan(nothing[name]) for name in ("assignment_entropy", "within", "between", "accuracy"))
