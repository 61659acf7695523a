"""What readers said: how much it counts in each stage, and which of it is doubted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from csr.data.records import Collection
from csr.network.concept_model import ConceptModelConfig
from csr.network.prototypes import prototype_model_checkpoint
from csr.network.rebuild import concept_model_checkpoint
from csr.training.augmentation import AugmentConfig
from csr.training.callbacks import SilentCallbacks
from csr.training.concepts import ConceptTrainingConfig, train_concepts
from csr.training.features import FeatureCache
from csr.training.head import HeadConfig, train_head
from csr.training.losses import masked_bce
from csr.training.prototype_losses import absence, agreement, prototype_contrastive
from csr.training.prototypes import PrototypeConfig, build_prototype_model, train_prototypes
from csr.training.reader_words import MOST, believed, doubted_labels, doubted_words, label_counts
from tests.csr.synthetic import CONCEPTS, corrected, make_cache, make_collection, make_prepared

STAGE1 = ConceptTrainingConfig(
    ConceptModelConfig("test_resnet", stride=8, context=16, width=16),
    AugmentConfig(),
    epochs=2,
    batch_size=8,
    precision="float32",
)
STAGE2 = PrototypeConfig(per_concept=3, width=8, blocks=1, epochs=2, precision="float32")


def repeated(rng: np.random.Generator, shape: tuple[int, ...]) -> torch.Tensor:
    return torch.from_numpy(rng.integers(0, 4, shape).astype(np.float32))


def test_a_count_is_as_many_copies_in_every_loss() -> None:
    rng = np.random.default_rng(0)
    labels = torch.from_numpy(rng.choice([0.0, 1.0, np.nan], (5, 3)).astype(np.float32))
    counts, logits = repeated(rng, (5, 3)), torch.randn(5, 3)
    maps, cam = torch.randn(5, 3, 2, 4, 4), torch.randn(5, 3, 4, 4)
    scale, shift = torch.tensor([3.0]), torch.tensor([-1.0])
    pairs = [(n, k) for n in range(5) for k in range(3) for _ in range(int(counts[n, k]))]
    n, k = (torch.tensor(each) for each in zip(*pairs, strict=True))
    copied = labels[n, k][:, None]
    expected = masked_bce(logits[n, k][:, None], copied)
    torch.testing.assert_close(masked_bce(logits, labels, counts=counts), expected)
    expected = absence(maps[n, k][:, None], copied, scale, shift)
    torch.testing.assert_close(absence(maps, labels, scale, shift, counts), expected)
    expected = agreement(maps[n, k][:, None], cam[n, k][:, None], copied)
    torch.testing.assert_close(agreement(maps, cam, labels, counts=counts), expected)
    similarity, concept, times = torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 1, 2]), repeated(rng, (6,))
    many = torch.arange(6).repeat_interleave(times.long())
    for margin in ("minus", "plus", "numerator"):
        expected = prototype_contrastive(similarity[many], concept[many], margin=margin)
        torch.testing.assert_close(prototype_contrastive(similarity, concept, margin=margin, counts=times), expected)


def test_counts_are_none_where_they_change_nothing() -> None:
    said = np.array([[True, False]])
    assert label_counts(said, 1.0) is None and label_counts(np.zeros((2, 2), bool), 3.0) is None
    assert label_counts(said, 0.5).tolist() == [[0.5, 1.0]]  # type: ignore[union-attr]


def weights_of(collection: Collection, path: Path, **keys: float) -> list[dict[str, torch.Tensor]]:
    """What all three stages learn."""
    data, cache = make_prepared(path, collection), make_cache(make_collection())
    callbacks = SilentCallbacks()
    stage1 = train_concepts(data, replace(STAGE1, **keys), callbacks)
    stage2 = train_prototypes(collection, cache, replace(STAGE2, **keys), callbacks)
    head = train_head(collection, cache, stage2, HeadConfig(epochs=2, **keys), callbacks)  # type: ignore[arg-type]
    return [
        concept_model_checkpoint(stage1)["weights"],
        prototype_model_checkpoint(stage2)["weights"],
        head.state_dict(),
    ]


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def test_without_feedback_no_key_changes_a_bit_of_any_stage(tmp_path: Path) -> None:
    collection = make_collection()
    plain = weights_of(collection, tmp_path / "a")
    other = weights_of(collection, tmp_path / "b", feedback_weight=5.0, doubt_readers=False)
    assert [same(*each) for each in zip(plain, other, strict=True)] == [True] * 3


def test_with_feedback_each_stage_heeds_its_weight(tmp_path: Path) -> None:
    said = corrected(make_collection())
    one = weights_of(said, tmp_path / "a", doubt_readers=False)
    plain = weights_of(make_collection(), tmp_path / "b", doubt_readers=False)
    more = weights_of(said, tmp_path / "c", doubt_readers=False, feedback_weight=4.0)
    assert [same(*each) for each in zip(one, plain, strict=True)] == [True] * 3, "who said a right label is no matter"
    assert [same(*each) for each in zip(one, more, strict=True)] == [False] * 3


def test_a_class_of_weight_0_is_not_learned() -> None:
    collection, cache = make_collection(), make_cache(make_collection())
    model = build_prototype_model(STAGE2, cache.features.shape[1], len(CONCEPTS))
    said = corrected(collection, 40)
    head = train_head(said, cache, model, HeadConfig(epochs=2, feedback_weight=0.0), SilentCallbacks())
    assert not head.head.weight.any()


def test_the_share_of_wrong_words_is_found_without_knowing_the_truth() -> None:
    """Words about things that a second opinion knows with calibrated probabilities."""
    rng = np.random.default_rng(1)
    sure = rng.beta(0.4, 0.4, 20_000)  # often near 0 or 1
    there = rng.random(len(sure)) < sure
    for error in (0.02, 0.1, 0.3):
        wrong = rng.random(len(sure)) < error
        said = there != wrong
        doubted, found = doubted_words(np.where(said, sure, 1 - sure).clip(1e-6, 1 - 1e-6))
        assert found == pytest.approx(error, abs=0.02)
        assert wrong[doubted].mean() > 0.5, "most that are doubted are wrong"
        assert wrong[~doubted].mean() < 0.85 * error, "and what is left is better than all was"


def test_nobody_is_doubted_by_a_network_that_knows_nothing() -> None:
    rng = np.random.default_rng(2)
    judged, rare = (rng.random((400, 2)) < 0.1).astype(np.float32), np.ones((60, 2), np.float32)
    nothing = np.zeros((60, 2)), np.zeros((400, 2))
    assert not doubted_labels(rare, np.ones((60, 2), bool), nothing[0], judged, nothing[1]).any()
    doubted, error = doubted_words(np.full(50, 0.5))
    assert not doubted.any() and error < MOST


def test_several_things_that_could_have_been_said_make_each_less_likely() -> None:
    agreeing = np.array([0.05, 0.5, 0.95] * 40)
    assert doubted_words(agreeing, 4)[0].sum() <= doubted_words(agreeing, 1)[0].sum()


def evident(collection: Collection) -> FeatureCache:
    """Features whose maps say what is true."""
    cache = make_cache(collection)
    return FeatureCache(
        cache.features, (cache.cam + 8 * collection.concept_labels()[..., None, None]).astype(np.float32)
    )


def test_what_is_doubted_is_unknown_and_no_readers_word_any_more() -> None:
    truth = make_collection(train=80, val=200)
    said = corrected(truth, studies=30, wrong=6)
    found = believed(said, evident(truth))
    rows = truth.rows("train")
    assert np.isnan(found.concept_labels()[rows[:6]]).all() and not found.said_labels()[rows[:6]].any()
    np.testing.assert_array_equal(found.concept_labels()[rows[6:]], truth.concept_labels()[rows[6:]])
    np.testing.assert_array_equal(found.said_classes(), said.said_classes())
    assert believed(truth, evident(truth)) is truth


def test_the_only_examples_of_a_concept_are_kept() -> None:
    truth = make_collection(train=80)
    said = corrected(truth, studies=80, wrong=80)
    found = believed(said, evident(truth)).concept_labels()[truth.rows("train")]
    for value in (0, 1):
        assert (found == value).any(0).all()


def test_stage_1_tells_how_much_it_doubts_and_forgets_its_doubts_each_epoch(tmp_path: Path) -> None:
    data = make_prepared(tmp_path, corrected(make_collection(), 20, wrong=6))
    callbacks = SilentCallbacks()
    train_concepts(data, replace(STAGE1, epochs=3, learning_rate=3e-3), callbacks)
    shares = [epoch["doubted"] for epoch in callbacks.history]
    assert len(shares) == 3 and all(0 <= share < 1 for share in shares)
    plain = SilentCallbacks()
    train_concepts(data, replace(STAGE1, doubt_readers=False), plain)
    assert all("doubted" not in epoch for epoch in plain.history)


@pytest.mark.parametrize(("section", "config"), [("prototypes", PrototypeConfig), ("head", HeadConfig)])
def test_a_negative_weight_is_refused(section: str, config: type) -> None:
    with pytest.raises(ValueError, match=rf"{section}\.feedback_weight: must be 0 or more"):
        config(feedback_weight=-0.1)
