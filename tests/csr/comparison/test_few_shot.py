"""Concepts held out and found again, on features in which they are plain to see."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from csr.baselines.protocol import ExperimentContext, TrainedBackbone
from csr.comparison.few_shot import (
    SYSTEMS,
    FewShotTrials,
    class_figures,
    concept_figures,
    draw_examples,
    enough_examples,
    find_concepts,
)
from csr.data.held_out import without_concepts
from csr.data.records import Collection
from csr.network.concept_model import ConceptModelConfig
from csr.training.callbacks import SilentCallbacks
from csr.training.concepts import ConceptTrainingConfig
from csr.training.features import FeatureCache
from csr.training.head import HeadConfig, train_head
from csr.training.prototypes import PrototypeConfig, train_prototypes
from tests.csr.baselines.test_several_classes import with_targets
from tests.csr.synthetic import make_collection, make_csr, without_images

WHOLE = make_collection(train=120, val=30, test=60)
TRIALS = FewShotTrials(counts=(6, 1000), draws=2)  # nobody has a thousand
HEAD = HeadConfig(epochs=3)


def loud_in_the_boxes() -> np.ndarray:
    """Features N×6×4×4, one channel loud in the cells where a concept's box is."""
    rng = np.random.default_rng(5)
    features = 0.3 * rng.standard_normal((len(WHOLE.studies), 6, 4, 4))
    features[:, -1] += 3
    for row, k in WHOLE.boxes_by_pair():
        features[row, k, :2, k] += 6
    return features.astype(np.float16)


@pytest.fixture(scope="module", params=["one class a study", "several"])
def trained(request: pytest.FixtureRequest) -> tuple[ExperimentContext, object, Collection]:
    """Stages 2 and 3 without ``haze``, and the collection with it."""
    whole = WHOLE if request.param == "one class a study" else with_targets(WHOLE)
    partial, features = without_concepts(whole, ("haze",)), loud_in_the_boxes()
    cache = FeatureCache(features, features[:, :2].astype(np.float32))
    callbacks = SilentCallbacks()
    model = train_prototypes(partial, cache, PrototypeConfig(per_concept=2, width=8, epochs=3), callbacks)
    csr = make_csr(model, train_head(partial, cache, model, HEAD, callbacks), partial)
    shared = TrainedBackbone(SimpleNamespace(config=ConceptModelConfig(pooling="lse")), cache)  # type: ignore[arg-type]
    return ExperimentContext(without_images(partial), ConceptTrainingConfig(), callbacks, shared), csr, whole


def test_every_way_finds_what_is_plain_to_see_and_classes_gain(trained: tuple) -> None:
    context, csr, whole = trained
    every, test = np.arange(len(whole.studies)), whole.rows("test")
    found = find_concepts(context, csr, whole, ("haze",), TRIALS, every)
    assert set(found) == {(system, "haze", 6, draw) for system in SYSTEMS for draw in range(2)}
    for (system, name, _, _), each in found.items():
        own = replace(each, scores=each.scores[test], peaks=each.peaks[test])
        figures = concept_figures(whole, name, own, test)["test"]
        assert figures["auroc"] > 0.95, system
        assert figures["pointing"] > 0.7, system  # chance: 0.06
        assert np.isnan(each.peaks[whole.rows("train")]).all()
    lines = class_figures(context, csr, whole, ("haze",), TRIALS, found, HEAD)
    assert [(line["system"], line["n"]) for line in lines[:2]] == [("csr", 0), ("column", 0)]
    assert len(lines) == 2 + 2 * len(SYSTEMS)
    assert all(0 <= line["test"] <= 1 for line in lines)


def test_examples_are_drawn_alike_for_the_same_seed_and_a_larger_draw_holds_the_smaller() -> None:
    few, more = (draw_examples(WHOLE, "haze", n, 0, 0) for n in (4, 8))
    assert list(few.boxes) == list(more.boxes)[:4]
    np.testing.assert_array_equal(few.absent, more.absent[:4])
    labels = WHOLE.concept_labels()[:, 2]
    assert (labels[list(more.boxes)] == 1).all() and (labels[more.absent] == 0).all()
    assert set(more.boxes) <= set(WHOLE.rows("train").tolist())
    assert list(draw_examples(WHOLE, "haze", 4, 1, 0).boxes) != list(few.boxes)


def test_there_are_enough_examples_if_there_are_so_many_with_a_box_and_so_many_without() -> None:
    k, train, boxes = WHOLE.concepts.index("haze"), WHOLE.rows("train"), WHOLE.boxes_by_pair()
    labels = WHOLE.concept_labels()[:, k]
    boxed = [row for row in train if labels[row] == 1 and (int(row), k) in boxes]
    least = min(len(boxed), int((labels[train] == 0).sum()))
    assert enough_examples(WHOLE, "haze", least) and not enough_examples(WHOLE, "haze", least + 1)
