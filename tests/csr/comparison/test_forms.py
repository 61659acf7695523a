"""What is measured of two forms a concept, on features that carry them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from csr.comparison.forms import (
    FORMS,
    Vectors,
    by_form,
    forms_of,
    probe_auroc,
    settle,
    sort_by_clusters,
    sort_by_prototypes,
    sorting_report,
    vectors_of,
)
from csr.data.records import Collection
from csr.errors import DataError
from csr.evaluation.evaluate import evaluate_predictions
from csr.network.prototypes import PrototypeModel
from csr.training.callbacks import SilentCallbacks
from csr.training.prediction import predict
from csr.training.prototypes import PrototypeConfig, usage
from tests.csr.synthetic import make_cache, make_collection, make_csr, make_reasoner, without_images


def with_forms(collection: Collection, share: float = 0.3, seed: int = 0) -> Collection:
    """Forms as the phantom writes them."""
    rng, labels = np.random.default_rng(seed), collection.concept_labels()
    for k, name in enumerate(collection.concepts):
        drawn = rng.random(len(labels)) < share
        collection.studies[f"form:{name}"] = np.where(labels[:, k] == 1, drawn, np.nan).astype(np.float32)
    return collection


@pytest.fixture
def collection() -> Collection:
    return with_forms(make_collection(train=200, val=20, test=100))


@pytest.fixture
def csr(collection):
    torch.manual_seed(0)
    return make_csr(PrototypeModel(6, 3, 4, 5, 1), make_reasoner(0, True, pruned=3), collection)


def test_a_set_without_forms_is_refused_by_the_name_of_the_column():
    with pytest.raises(DataError, match=r"made-up: its studies have no column 'form:round'; .*params/forms\.yaml"):
        forms_of(make_collection())


def test_findings_go_to_the_live_prototypes_that_usage_counts(collection, csr):
    data, cache = without_images(collection), make_cache(collection)
    vectors = vectors_of(csr, data, cache, "train")
    found = sort_by_prototypes(csr, vectors)
    shares = np.zeros((3, 4))
    np.add.at(shares, (found.concept, found.winner), 1)
    csr.prototype_model.prototypes.raw.data = csr.reasoner.prototypes.clone()
    expected = usage(
        csr.prototype_model, torch.tensor(vectors.raw), torch.tensor(vectors.concept), csr.reasoner.alive
    ).detach()
    np.testing.assert_allclose(shares / shares.sum(1, keepdims=True), expected)
    labels, rows = collection.concept_labels(), collection.rows("train")
    assert len(found.form) == (labels[rows] == 1).sum()
    assert found.form.sum() == (forms_of(collection)[rows] == 1).sum()


def test_where_all_findings_are_of_one_form_its_figures_are_those_of_the_evaluation(csr):
    collection = with_forms(make_collection(test=60), share=0.0)
    data, cache = without_images(collection), make_cache(collection)
    predictions = predict(data, cache, csr)
    first, second = by_form(data, predictions)
    expected = evaluate_predictions(collection, predictions, data.side)["test"]
    assert first["concept_auroc"] == pytest.approx(expected["concept_auroc"], abs=1e-6)
    assert first["pointing"] == pytest.approx(expected["pointing_game"]["pair"], abs=1e-6)
    assert np.mean(first["concept_auroc_by_concept"]) == pytest.approx(first["concept_auroc"])
    assert second["findings"] == 0 and np.isnan(second["concept_auroc"]) and np.isnan(second["pointing"])


def test_findings_of_a_form_are_judged_apart_from_those_of_the_other(collection, csr):
    data, cache = without_images(collection), make_cache(collection)
    found = by_form(data, predict(data, cache, csr))
    forms = forms_of(collection)[collection.rows("test")]
    assert [each["findings"] for each in found] == [(forms == form).sum() for form in range(FORMS)]
    whole = evaluate_predictions(collection, predict(data, cache, csr), data.side)["test"]["pointing_game"]["pair"]
    weights = [each["findings"] for each in found]  # here every finding has one box
    assert np.average([each["pointing"] for each in found], weights=weights) == pytest.approx(whole, abs=1e-6)


def vectors(seed: int, apart: float, n: int = 300) -> Vectors:
    """Findings whose forms lie ``apart`` in one of four directions."""
    rng = np.random.default_rng(seed)
    concept, form = rng.integers(3, size=n), (rng.random(n) < 0.3).astype(int)
    raw = rng.standard_normal((n, 4))
    raw[:, 1] += apart * form
    return Vectors(raw, raw[:, :1], concept, form)


def test_clusters_and_a_probe_find_forms_that_lie_apart_and_none_that_do_not():
    train, test = vectors(0, 12.0), vectors(1, 12.0)
    assert (probe_auroc(train.raw, test.raw, (train, test), 3) > 0.99).all()
    assert (np.abs(probe_auroc(train.projected, test.projected, (train, test), 3) - 0.5) < 0.2).all()
    found = sorting_report(*sort_by_clusters(train, test, 2, False, 0), 3, 2)
    assert found["recall"] > 0.95 and found["coverage"] == 1 and found["purity"] > found["purity_high"]
    blind = sorting_report(*sort_by_clusters(train, test, 2, True, 0), 3, 2)
    assert blind["purity"] == pytest.approx(blind["purity_chance"], abs=0.1)


def test_a_form_that_a_split_lacks_has_no_probe():
    train, test = vectors(0, 12.0), vectors(1, 12.0)
    only = Vectors(train.raw, train.projected, train.concept, np.zeros_like(train.form))
    assert np.isnan(probe_auroc(only.raw, test.raw, (only, test), 3)).all()


def test_auto_becomes_a_number_by_a_pilot(collection):
    config = PrototypeConfig(per_concept="auto", width=8, blocks=1, epochs=1, precision="float32")
    settled = settle(config, without_images(collection), make_cache(collection), SilentCallbacks())
    assert isinstance(settled.per_concept, int) and 1 <= settled.per_concept <= 16
    assert settle(settled, without_images(collection), make_cache(collection), SilentCallbacks()) == settled
