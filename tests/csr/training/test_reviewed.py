"""Prototypes that reviewers pruned are found again: under their number, or by the studies that they stood for."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from csr.bundle.atlas import _nearest
from csr.data.feedback import PrototypeReview
from csr.network.concept_model import ConceptModel, ConceptModelConfig
from csr.network.prototypes import PrototypeModel, local_concept_vectors, prototype_model_checkpoint
from csr.network.rebuild import concept_model_checkpoint
from csr.network.trained import TrainedCSR
from csr.training.callbacks import SilentCallbacks
from csr.training.head import HeadConfig, train_head
from csr.training.prototypes import PrototypeConfig, train_prototypes
from csr.training.reviewed import GONE, KEPT, LAST, UNLIKE, reviewed
from pipelines import head
from tests.csr.data.feedback.examples import review
from tests.csr.synthetic import CONCEPTS, SIDE, make_cache, make_collection, make_prepared, without_images

COLLECTION = make_collection()
CACHE = make_cache(COLLECTION)
CONFIG = PrototypeConfig(per_concept=3, width=8, epochs=2, precision="float32", batch_size=16)


@pytest.fixture(scope="module")
def model() -> PrototypeModel:
    return train_prototypes(COLLECTION, CACHE, CONFIG, SilentCallbacks())


@torch.no_grad()
def seen(model: PrototypeModel, concept: str, index: int, verdict: str = "prune", number: int = 1) -> PrototypeReview:
    """A review of a prototype by what the atlas says of it."""
    k = CONCEPTS.index(concept)
    rows, similar = _nearest(without_images(COLLECTION), CACHE, model, COLLECTION.rows("train"))
    names = COLLECTION.studies["study_id"].iloc[rows[k, index]]
    return review(concept, index, verdict, number, **dict(zip(names, similar[k, index].tolist(), strict=True)))


def pruned(model: PrototypeModel, *reviews: PrototypeReview) -> set[tuple[str, int]]:
    alive = reviewed(COLLECTION, CACHE, model, reviews).alive
    return {(CONCEPTS[k], m) for k, m in (alive == 0).nonzero().tolist()}


def test_where_nothing_changed_a_prototype_is_found_under_its_number(model: PrototypeModel) -> None:
    for concept in CONCEPTS:
        for index in range(3):
            assert pruned(model, seen(model, concept, index)) == {(concept, index)}
            assert pruned(model, seen(model, concept, index, "keep")) == set()


@torch.no_grad()
def winners(model: PrototypeModel, k: int) -> dict[str, int]:
    """The nearest prototype of each training study that shows concept k."""
    rows = COLLECTION.rows("train")
    rows = rows[COLLECTION.concept_labels()[rows, k] == 1]
    vectors = local_concept_vectors(*CACHE.batch(rows, torch.device("cpu")))[:, k]
    nearest = (model.projector(vectors) @ model.prototypes.unit()[k].T).argmax(1).tolist()
    return dict(zip(COLLECTION.studies["study_id"].iloc[rows], nearest, strict=True))


def test_learned_anew_it_is_what_most_of_its_studies_are_nearest_to(model: PrototypeModel) -> None:
    other = PrototypeModel(**model.config)
    other.load_state_dict(model.state_dict())
    other.prototypes.raw.data = model.prototypes.raw.data[:, [2, 0, 1]]
    other.eval()
    for k, concept in enumerate(CONCEPTS):
        won = winners(other, k)
        for index in range(3):
            said = seen(model, concept, index)
            ((best, count),) = Counter(won[each.study_id] for each in said.sources).most_common(1)
            expected = {(concept, best)} if 2 * count > len(said.sources) else set()
            assert pruned(other, said) == expected


def test_what_was_also_kept_stays_and_so_does_a_concepts_last(model: PrototypeModel) -> None:
    both = reviewed(
        COLLECTION, CACHE, model, [seen(model, "round", 0), seen(model, "round", 0, "keep", 2), seen(model, "haze", 1)]
    )
    assert both.not_pruned == {KEPT: 1}
    assert [tuple(pair) for pair in (both.alive == 0).nonzero().tolist()] == [(2, 1)]
    every = reviewed(COLLECTION, CACHE, model, [seen(model, "round", index) for index in range(3)])
    assert every.not_pruned == {LAST: 3} and bool(every.alive.all())


def test_reviews_of_what_is_not_there_prune_nothing_and_are_counted(model: PrototypeModel) -> None:
    test = COLLECTION.studies["study_id"].iat[int(COLLECTION.rows("test")[0])]
    found = reviewed(
        COLLECTION, CACHE, model, [review("wart", 0), review("round", 0, **{test: 0.5}), review("round", 0, nobody=0.5)]
    )
    assert found.not_pruned == {GONE: 3} and bool(found.alive.all())
    won = winners(model, 1)
    first = next(iter(won))
    second = next(name for name in won if won[name] != won[first])
    torn = reviewed(COLLECTION, CACHE, model, [review("streak", 0, **{first: 9.0, second: 9.0})])
    assert torn.not_pruned == {UNLIKE: 1} and bool(torn.alive.all())


def test_the_head_gives_a_pruned_prototype_no_weight(model: PrototypeModel) -> None:
    alive = reviewed(COLLECTION, CACHE, model, [seen(model, "streak", 2)]).alive
    config = HeadConfig(epochs=2, least_usage=0.0)
    reasoner = train_head(COLLECTION, CACHE, model, config, SilentCallbacks(), alive=alive, side=SIDE)
    weight = reasoner.head.weight.reshape(-1, *alive.shape)
    assert reasoner.alive[1, 2] == 0 and int(reasoner.alive.sum()) == 8
    torch.testing.assert_close(weight[:, 1, 2], torch.zeros(3))
    assert np.abs(weight[:, 1, 1].detach().numpy()).sum() > 0


def test_the_stage_leaves_out_what_reviewers_pruned(model: PrototypeModel, tmp_path: Path) -> None:
    make_prepared(tmp_path / "prepared", COLLECTION)
    (tmp_path / "features").mkdir()
    np.save(tmp_path / "features" / "features.npy", CACHE.features)
    np.save(tmp_path / "features" / "cam.npy", CACHE.cam)
    concepts = concept_model_checkpoint(ConceptModel(ConceptModelConfig("test_resnet", stride=8), 1, 3))
    stages = head.Stages(concepts, prototype_model_checkpoint(model), reviews=(seen(model, "streak", 2),))
    folders = tmp_path / "prepared", tmp_path / "features"
    state = head.fit(*folders, stages, HeadConfig(epochs=1, least_usage=0.0), SilentCallbacks())
    alive = TrainedCSR.from_checkpoint(state).reasoner.alive
    assert [tuple(pair) for pair in (alive == 0).nonzero().tolist()] == [(1, 2)]
