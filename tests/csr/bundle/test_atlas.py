"""The atlas against loops over training images: sources, usage, reliance and crops."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from csr.bundle.atlas import SOURCES, build_atlas
from csr.training.callbacks import SilentCallbacks
from csr.training.head import HeadConfig, train_head
from csr.training.prototypes import PrototypeConfig, train_prototypes
from tests.csr.synthetic import CLASSES, CONCEPTS, make_cache, make_collection, make_csr, make_prepared, with_labels

M = 4


def make_parts(folder, cells: int = 8):
    collection = make_collection(train=300, val=16, test=12)  # more than one chunk of rows
    labels = collection.concept_labels()
    labels[::7, 2] = np.nan
    data = make_prepared(folder / f"prepared{cells}", with_labels(collection, labels))
    cache = make_cache(data.collection, cells=cells)
    model = train_prototypes(data.collection, cache, PrototypeConfig(M, 8, 1, epochs=1), SilentCallbacks())
    reasoner = train_head(data.collection, cache, model, HeadConfig(epochs=3, least_usage=0.0), SilentCallbacks())
    return data, cache, make_csr(model, reasoner, data.collection)


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return make_parts(tmp_path_factory.mktemp("atlas"))


@pytest.fixture(scope="module")
def atlas(parts):
    return build_atlas(*parts)


@pytest.fixture(scope="module")
def inner(parts):
    """concept → [(training row, inner products with the concept's M prototypes)], by hand."""
    data, cache, csr = parts
    model = csr.prototype_model
    labels = data.collection.concept_labels()
    with torch.no_grad():
        unit = model.prototypes.unit().double().numpy()
    found: dict[int, list[tuple[int, np.ndarray]]] = {k: [] for k in range(3)}
    for row in data.collection.rows("train"):
        for k in np.flatnonzero(labels[row] == 1):
            attention = np.exp(cache.cam[row, k].astype(np.float64))
            attention /= attention.sum()
            vector = (attention * cache.features[row].astype(np.float64)).sum((1, 2))
            with torch.no_grad():
                projected = model.projector(torch.tensor(vector, dtype=torch.float32)).double().numpy()
            found[int(k)].append((int(row), unit[k] @ projected))
    return found


def test_entries_come_concept_by_concept_and_prototype_by_prototype(atlas):
    assert [(entry.concept, entry.index) for entry in atlas.entries] == [(k, m) for k in CONCEPTS for m in range(M)]
    assert [len(entry.sources) for entry in atlas.entries] == [SOURCES] * (len(CONCEPTS) * M)
    assert len(atlas.crops) == SOURCES * len(atlas.entries)
    assert atlas.crops.dtype == np.uint8


def test_the_sources_are_the_training_images_with_the_largest_inner_products(atlas, inner, parts):
    studies = parts[0].collection.studies
    for position, entry in enumerate(atlas.entries):
        own = {row: values[entry.index] for row, values in inner[position // M]}
        best = sorted(own.values(), reverse=True)[:SOURCES]
        assert [source.similarity for source in entry.sources] == pytest.approx(best, abs=1e-4)
        rows = [int(np.flatnonzero(studies["study_id"] == source.study_id)[0]) for source in entry.sources]
        assert len(set(rows)) == SOURCES
        assert [own[row] for row in rows] == pytest.approx(best, abs=1e-4)


def test_sources_are_training_images_that_show_the_concept(atlas, parts):
    studies = parts[0].collection.studies.set_index("study_id")
    for entry in atlas.entries:
        for source in entry.sources:
            assert studies.loc[source.study_id, "split"] == "train"
            assert studies.loc[source.study_id, f"concept:{entry.concept}"] == 1


def test_a_concept_that_few_training_images_show_has_as_many_sources(tmp_path):
    collection = make_collection(train=40, val=16, test=12)
    labels = collection.concept_labels()
    train = collection.rows("train")
    labels[train, 1] = 0
    labels[train[:2], 1] = 1
    data = make_prepared(tmp_path / "prepared", with_labels(collection, labels))
    cache = make_cache(data.collection, cells=8)
    model = train_prototypes(data.collection, cache, PrototypeConfig(M, 8, 1, epochs=1), SilentCallbacks())
    reasoner = train_head(data.collection, cache, model, HeadConfig(epochs=1, least_usage=0.0), SilentCallbacks())
    atlas = build_atlas(data, cache, make_csr(model, reasoner, data.collection))
    shown = [len(entry.sources) for entry in atlas.entries]
    assert shown == [SOURCES] * M + [2] * M + [SOURCES] * M
    assert len(atlas.crops) == sum(shown)


def test_usage_is_the_share_of_the_concepts_vectors_that_the_prototype_wins(atlas, inner):
    for k in range(3):
        wins = np.zeros(M)
        for _, values in inner[k]:
            wins[values.argmax()] += 1
        own = [entry.usage for entry in atlas.entries[k * M : (k + 1) * M]]
        np.testing.assert_allclose(own, wins / wins.sum(), atol=1.5 / len(inner[k]))
        assert sum(own) == pytest.approx(1)


def test_live_prototypes_share_the_usage_of_pruned_ones(parts, inner):
    data, cache, csr = parts
    alive, before = csr.reasoner.alive, csr.reasoner.alive.clone()
    busiest = {k: int(np.bincount([v.argmax() for _, v in inner[k]], minlength=M).argmax()) for k in range(3)}
    alive[1, busiest[1]] = 0  # its vectors are won by others
    alive[2] = 0  # nobody is left to win any
    try:
        entries = build_atlas(data, cache, csr).entries
    finally:
        alive.copy_(before)
    used = np.array([entry.usage for entry in entries]).reshape(3, M)
    assert used.sum(1) == pytest.approx([1, 1, 0])
    assert used[1, busiest[1]] == 0
    live = [m for m in range(M) if m != busiest[1]]
    wins = np.bincount([live[values[live].argmax()] for _, values in inner[1]], minlength=M)
    np.testing.assert_allclose(used[1], wins / wins.sum(), atol=1.5 / len(inner[1]))


def test_reliance_is_the_share_of_mean_absolute_contributions(atlas, parts):
    data, cache, csr = parts
    reasoner = csr.reasoner
    rows = data.collection.rows("train")
    with torch.no_grad():
        answer = reasoner(csr.project(cache.batch(rows, torch.device("cpu"))[0]))
    scores = answer.scores.double().numpy()
    standard = (scores - reasoner.score_mean.numpy()) / reasoner.score_std.numpy()
    weight = reasoner.head.weight.detach().double().numpy()
    strength = np.zeros(3 * M)
    for index in range(3 * M):
        k, m = divmod(index, M)
        strength[index] = np.mean([abs(weight[t, index] * z) for t in range(3) for z in standard[:, k, m]])
    np.testing.assert_allclose([entry.reliance for entry in atlas.entries], strength / strength.sum(), atol=1e-5)


def test_weights_are_the_heads_own_by_class_name(atlas, parts):
    weight = parts[2].reasoner.head.weight.detach().numpy()
    for index, entry in enumerate(atlas.entries):
        assert entry.weights == pytest.approx(dict(zip(CLASSES, weight[:, index], strict=True)))


def test_a_crop_is_cut_from_its_source_around_the_most_similar_cell(atlas, parts):
    data, cache, csr = parts
    model = csr.prototype_model
    studies = data.collection.studies
    cell = data.side / cache.features.shape[-1]
    shown = [(index, source) for index, entry in enumerate(atlas.entries) for source in entry.sources]
    for (index, source), crop in zip(shown, atlas.crops, strict=True):
        row = int(np.flatnonzero(studies["study_id"] == source.study_id)[0])
        left, top, right, bottom = map(int, source.box)
        np.testing.assert_array_equal(crop, data.images[row][:, top:bottom, left:right])
        with torch.no_grad():
            patches = model.projector.project_maps(cache.batch(np.array([row]), torch.device("cpu"))[0])
            similar = np.einsum("d,dhw->hw", model.prototypes.unit()[index // M, index % M].numpy(), patches[0].numpy())
        at_row, at_column = np.unravel_index(similar.clip(0).argmax(), similar.shape)
        assert left <= at_column * cell
        assert (at_column + 1) * cell <= right
        assert top <= at_row * cell
        assert (at_row + 1) * cell <= bottom
        assert 0 <= left < right <= data.side
        assert 0 <= top < bottom <= data.side


def test_pruned_prototypes_stay_in_the_atlas_marked_as_such(parts):
    data, cache, csr = parts
    reasoner = csr.reasoner
    reasoner.alive[1, 2] = 0
    try:
        entries = build_atlas(data, cache, csr).entries
    finally:
        reasoner.alive[1, 2] = 1
    assert [entry.alive for entry in entries].count(False) == 1
    assert not next(entry for entry in entries if (entry.concept, entry.index) == ("streak", 2)).alive


def test_maps_of_fewer_cells_than_a_crop_is_wide_have_crops_too(tmp_path):
    data, cache, csr = make_parts(tmp_path, cells=2)
    atlas = build_atlas(data, cache, csr)
    assert all(0 <= edge <= data.side for entry in atlas.entries for source in entry.sources for edge in source.box)
