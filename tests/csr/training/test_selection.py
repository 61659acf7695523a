"""The number of prototypes a concept: the curve, the one-standard-error rule, and what has no say in it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from csr.errors import ConfigError, DataError
from csr.training.callbacks import SilentCallbacks
from csr.training.prototypes import PrototypeConfig, build_prototype_model, train_prototypes
from csr.training.selection import PILOT, count_curve, explained, pilot, rank
from tests.csr.synthetic import make_cache, make_collection, with_labels

WIDTH = 12


def looks(*counts: int, spread: float = 0.1, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors n×D' around one axis a look, ``counts`` of each, concept by concept, and the axes' indices."""
    rng = np.random.default_rng(seed)
    owner = np.repeat(np.arange(len(counts)), counts)
    vectors = np.eye(WIDTH)[owner] + spread * rng.standard_normal((len(owner), WIDTH))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True), owner


def scene(seed: int = 0, concepts: int = 3, per_concept: int = 5, count: int = 40):
    """Random prototypes K×M×D' and random train and validation vectors with their concepts."""
    rng = np.random.default_rng(seed)

    def unit(*shape: int) -> np.ndarray:
        values = rng.standard_normal((*shape, WIDTH))
        return values / np.linalg.norm(values, axis=-1, keepdims=True)

    owners = (np.arange(count) % concepts, rng.permutation(np.arange(count) % concepts))
    return unit(concepts, per_concept), unit(count), owners[0], unit(count), owners[1]


# the ranking


@pytest.mark.parametrize("seed", range(5))
def test_each_next_prototype_is_the_one_that_adds_the_most_similarity(seed):
    similarity = np.random.default_rng(seed).uniform(-1, 1, (30, 6))
    order = rank(similarity).tolist()
    assert sorted(order) == list(range(6))
    for position in range(6):
        reached = [similarity[:, [*order[:position], m]].max(1).sum() for m in order[position:]]
        assert reached[0] == pytest.approx(max(reached))


def test_prototypes_that_add_nothing_come_last():
    vectors, _ = looks(30, 20, 10)
    dead = np.eye(WIDTH)[[7, 8]]
    prototypes = np.concatenate([dead, np.eye(WIDTH)[[2, 0, 1]]])
    assert rank(vectors @ prototypes.T).tolist()[:3] == [3, 4, 2]  # the most frequent look first


# the curve


@pytest.mark.parametrize("seed", range(3))
def test_the_curve_equals_the_loops(seed):
    prototypes, train, train_concept, val, val_concept = scene(seed)
    curve = explained(prototypes, train, train_concept, val, val_concept)
    for m in range(5):
        within, right, by_concept = [], [], [[], [], []]
        for vector, concept in zip(val, val_concept, strict=True):
            best = [max(vector @ prototypes[k, curve.order[k, j]] for j in range(m + 1)) for k in range(3)]
            full = max(vector @ prototypes[concept].T)
            within.append(best[concept])
            right.append(best[concept] > max(best[:concept] + best[concept + 1 :]))
            by_concept[concept].append((best[concept], full))
        assert curve.within[m] == pytest.approx(np.mean(within))
        assert curve.accuracy[m] == pytest.approx(np.mean(right))
        for k in range(3):
            kept, full = np.array(by_concept[k]).T
            error = full.std(ddof=1) / len(full) ** 0.5
            assert curve.shortfall[m, k] == pytest.approx((full.mean() - kept.mean()) / error)


def test_more_prototypes_never_explain_less_and_all_of_them_fall_short_of_nothing():
    curve = explained(*scene(3, per_concept=9))
    assert (np.diff(curve.within) >= 0).all()
    assert (np.diff(curve.shortfall, axis=0) <= 0).all()
    assert (curve.shortfall[-1] == 0).all()


def test_prototypes_are_ranked_on_training_vectors_alone():
    prototypes, train, train_concept, val, val_concept = scene(1)
    first = explained(prototypes, train, train_concept, val, val_concept)
    second = explained(prototypes, train, train_concept, -val, val_concept)
    np.testing.assert_array_equal(first.order, second.order)
    assert not np.allclose(first.within, second.within)


# the choice


@pytest.mark.parametrize("wanted", [1, 2, 3, 4])
def test_as_many_prototypes_are_chosen_as_the_concept_of_most_looks_has(wanted):
    vectors, look = looks(*[60] * wanted, 60)
    concept = (look == wanted).astype(int)  # the last look is a concept of its own
    prototypes = np.eye(WIDTH)[[[*range(wanted), *range(5, 10 - wanted)], [wanted, *range(6, 10)]]]
    half = np.arange(len(vectors)) % 2 == 0
    curve = explained(prototypes, vectors[half], concept[half], vectors[~half], concept[~half])
    assert curve.enough == wanted


def test_a_rare_concept_of_two_looks_is_not_outvoted_by_a_frequent_one_of_one():
    vectors, look = looks(3000, 10, 10)
    concept = (look > 0).astype(int)
    prototypes = np.eye(WIDTH)[[[0, 5, 6], [1, 2, 7]]]
    curve = explained(prototypes, vectors, concept, vectors, concept)
    error = 0.5 * np.std(vectors[:, 0]) / len(vectors) ** 0.5
    assert curve.within[1] - curve.within[0] > error  # what the frequent concept's vectors would forgive ...
    assert (curve.shortfall[0] > 1).tolist() == [False, True]  # ... and who it is that does not
    assert curve.enough == 2


def test_one_standard_error_is_where_the_choice_flips():
    vectors, look = looks(60, 30, 15, 8, 5, spread=0.3)
    curve = explained(np.eye(WIDTH)[None, :8], vectors, look * 0, vectors, look * 0)
    worst = curve.shortfall.max(1)
    assert (worst[curve.enough - 1 :] <= 1).all()
    assert (worst[: curve.enough - 1] > 1).all()
    assert 1 < curve.enough < 8


def test_vectors_without_spread_need_what_explains_them_exactly():
    vectors, look = looks(5, 5, spread=0.0)
    prototypes = np.eye(WIDTH)[[[3, 0, 1], [4, 5, 6]]]
    curve = explained(prototypes, vectors, look * 0, vectors[:5], look[:5])
    assert curve.shortfall[:, 0].tolist() in ([0, 0, 0], [np.inf, 0, 0])
    assert np.isnan(curve.shortfall[:, 1]).all()


@pytest.mark.parametrize("kept", [0, 1])
def test_a_concept_with_fewer_than_two_validation_vectors_has_no_say(kept):
    prototypes, train, train_concept, val, val_concept = scene(1)
    full = explained(prototypes, train, train_concept, val, val_concept)
    chosen = np.concatenate([np.flatnonzero(val_concept == 0)[:kept], np.flatnonzero(val_concept > 0)])
    curve = explained(prototypes, train, train_concept, val[chosen], val_concept[chosen])
    assert np.isnan(curve.shortfall[:, 0]).all()
    np.testing.assert_allclose(curve.shortfall[:, 1:], full.shortfall[:, 1:])


@pytest.mark.parametrize("count", [0, 1])
@pytest.mark.filterwarnings("error")
def test_without_any_concept_that_can_be_judged_a_number_must_be_given(count):
    prototypes, train, train_concept, val, val_concept = scene(1)
    curve = explained(prototypes, train, train_concept, val[:count], val_concept[:count])
    assert curve.within.shape == curve.accuracy.shape == (5,)
    with pytest.raises(DataError, match=r"prototypes\.per_concept.*'val'.*give a number"):
        _ = curve.enough


# with the models


CONFIG = PrototypeConfig(per_concept="auto", width=8, blocks=1, epochs=3, batch_size=10)


def test_auto_must_be_settled_before_there_is_a_model():
    with pytest.raises(ConfigError, match=r"prototypes\.per_concept: 'auto'"):
        build_prototype_model(CONFIG, 6, 3)
    assert pilot(CONFIG) == replace(CONFIG, per_concept=PILOT)


@pytest.mark.parametrize("count", [0, -3])
def test_a_concept_needs_a_prototype(count):
    with pytest.raises(ValueError, match=rf"prototypes\.per_concept.*{count}"):
        PrototypeConfig(per_concept=count)


def test_a_pilot_settles_the_number_and_its_curve_is_that_of_its_vectors():
    collection = make_collection(150, 60, 30)
    cache, config = make_cache(collection), replace(CONFIG, epochs=8, learning_rate=3e-3)
    model = train_prototypes(collection, cache, pilot(config), SilentCallbacks())
    curve = count_curve(model, collection, cache)
    assert curve.order.shape == (3, PILOT)
    assert 1 <= curve.enough < PILOT / 2  # one loud channel a concept, beside those of the other two
    settled = train_prototypes(collection, cache, replace(config, per_concept=curve.enough), SilentCallbacks())
    assert settled.prototypes.raw.shape == (3, curve.enough, 8)

    labels = collection.concept_labels()
    cells = cache.features.shape[-1] ** 2
    attention = torch.from_numpy(cache.cam).flatten(2).softmax(-1).numpy()
    vectors = np.einsum("nkc,ndc->nkd", attention, cache.features.astype(np.float32).reshape(len(labels), 6, cells))
    with torch.no_grad():
        projected = model.projector(torch.from_numpy(vectors)).numpy()
    unit = model.prototypes.unit().detach().numpy()
    own = [
        (projected[row, k] @ unit[k].T).max() for row in collection.rows("val") for k in range(3) if labels[row, k] == 1
    ]
    assert curve.within[-1] == pytest.approx(np.mean(own), abs=1e-4)


def test_a_curve_is_drawn_up_without_validation_vectors_too():
    collection = make_collection()
    labels = collection.concept_labels()
    labels[collection.rows("val")] = np.nan
    partly = with_labels(collection, labels)
    cache, callbacks = make_cache(collection), SilentCallbacks()
    model = train_prototypes(partly, cache, replace(CONFIG, per_concept=2), callbacks)
    assert np.isnan(callbacks.history[-1]["within"])
    assert np.isnan(callbacks.history[-1]["assignment_entropy"])
    assert np.isnan(count_curve(model, partly, cache).within).all()
