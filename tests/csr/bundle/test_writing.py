"""What a bundle says of its training images is what its own graphs say of them."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from csr.bundle.atlas import Atlas
from csr.bundle.runtime import FIT_TOLERANCE, GOLDEN_TOLERANCE, BundleRunner, golden_gap
from csr.bundle.writing import (
    REFERENCE_BINS,
    ExportConfig,
    Provenance,
    concept_references,
    write_bundle,
    write_samples,
)
from csr.data.phantom import PhantomConfig, generate
from csr.data.prepared import PreparedSet
from csr.interaction.corrections import Interaction

columns = st.lists(st.floats(0, 1, width=32), min_size=1, max_size=60)
tied = st.lists(st.sampled_from([0.0, 0.1, 0.10003, 0.5, 1.0]), min_size=1, max_size=60)


@given(st.one_of(columns, tied))
def test_bins_cover_all_images_and_none_is_empty(column):
    (reference,) = concept_references(["a"], np.array(column)[:, None])
    assert 1 <= len(reference.shares) == len(reference.edges) + 1 <= REFERENCE_BINS
    assert all(low < high for low, high in pairwise(reference.edges))
    assert min(reference.shares) > 0
    assert sum(reference.shares) == pytest.approx(1)
    inner = [-np.inf, *reference.edges, np.inf]
    rounded = np.round(np.array(column), 4)
    for share, (low, high) in zip(reference.shares, pairwise(inner), strict=True):
        assert share == pytest.approx(np.mean((rounded > low) & (rounded <= high)))


@given(st.lists(st.integers(0, 10_000), min_size=1, max_size=60), st.floats(-4e-5, 4e-5))
def test_rounding_moves_no_image_to_another_bin(steps, noise):
    exact = np.array(steps) / 10_000
    (reference,) = concept_references(["a"], exact[:, None])
    edges = np.array(reference.edges)
    assert (edges.searchsorted(exact + noise) == edges.searchsorted(exact)).all()


def test_distinct_values_are_cut_at_their_deciles():
    column = np.random.default_rng(0).permutation(np.arange(1000) / 1000)
    (reference,) = concept_references(["a"], column[:, None])
    np.testing.assert_allclose(reference.edges, np.arange(1, 10) / 10 - 0.0005, atol=1e-9)
    assert reference.shares == (0.1,) * 10


def test_a_value_that_many_images_share_gets_a_bin_of_its_own():
    column = np.concatenate([np.full(550, 0.02), np.linspace(0.1, 0.9, 450)])
    (reference,) = concept_references(["a"], column[:, None])
    assert reference.edges[0] == pytest.approx(0.06)
    assert reference.shares == (0.55, 0.05, 0.1, 0.1, 0.1, 0.1)  # five deciles are one edge


def test_a_concept_that_never_varies_has_one_bin():
    (reference,) = concept_references(["a"], np.full((20, 1), 0.3))
    assert (reference.edges, reference.shares) == ((), (1.0,))


def test_the_reference_is_what_the_exported_graphs_say_of_the_training_images(tiny_run):
    data, bundle = tiny_run.data, tiny_run.bundle
    rows = data.collection.rows("train")
    runner = BundleRunner(bundle)
    images = np.ascontiguousarray(data.images[rows])
    said = runner.reason(runner.encode(images), [Interaction()] * len(rows))["concept_probabilities"]
    references = bundle.reference()
    assert [reference.concept for reference in references] == list(bundle.manifest.concepts)
    for reference, column in zip(references, said.T, strict=True):
        counts = np.bincount(np.searchsorted(reference.edges, column), minlength=len(reference.shares))
        # features are cached in half precision: an image or two may lie on the other side of an edge
        np.testing.assert_allclose(counts, np.array(reference.shares) * len(rows), atol=2)
    assert max(len(reference.shares) for reference in references) == REFERENCE_BINS


def test_the_reference_is_small_and_the_same_at_every_export(tiny_run, tmp_path):
    origin = Provenance("robust", tiny_run.data.digest(), "test", {"iid": {"macro_f1": 0.5}})
    atlas = Atlas(tiny_run.bundle.atlas(), np.array(tiny_run.bundle.crops()))
    config = ExportConfig(parity_images=2)
    again, _ = write_bundle(tmp_path / "b", tiny_run.data, tiny_run.cache, tiny_run.csr, atlas, config, origin)
    first = (tiny_run.bundle.path / "reference.json").read_bytes()
    assert (again.path / "reference.json").read_bytes() == first
    assert len(first) < 1000 * len(again.manifest.concepts)
    assert "NaN" not in first.decode() and json.loads(first)


def test_a_header_that_nobody_knows_cannot_be_expected():
    assert ExportConfig(expects={"modality": ("CR", "DX")}).expects
    with pytest.raises(ValueError, match=r"export\.expects: 'modalty' is none of modality, body_part"):
        ExportConfig(expects={"modalty": ("CR",)})


def test_the_bundle_holds_the_profile_of_what_it_was_trained_on(tiny_run):
    """And the golden case the scores, which no server may compute otherwise."""
    profile, golden = tiny_run.bundle.profile(), tiny_run.bundle.golden()
    assert (profile.side, profile.body_part) == (tiny_run.data.side, ("CHEST",))
    scores = BundleRunner(tiny_run.bundle).run_encoder(golden["image"], ["fit_scores"])["fit_scores"]
    np.testing.assert_allclose(scores, golden["expected_fit_scores"], atol=FIT_TOLERANCE)
    altered = golden | {"expected_fit_scores": golden["expected_fit_scores"] + 0.1}
    answer = {name.removeprefix("expected_"): value for name, value in golden.items()}
    assert golden_gap(golden, answer) == 0
    assert golden_gap(altered, answer) > GOLDEN_TOLERANCE


@pytest.mark.parametrize("count", [3, 7, 100])
def test_samples_are_of_each_class_in_turn_and_none_twice(tmp_path, count):
    generate(PhantomConfig(train=60, val=60, test=40), 32, tmp_path / "prepared")
    data = PreparedSet.open(tmp_path / "prepared")
    write_samples(tmp_path / "samples", data, count)
    rows = json.loads((tmp_path / "samples/samples.json").read_text())
    left = data.collection.studies.iloc[data.collection.rows("test")]
    assert len(rows) == len({each["study_id"] for each in rows}) == min(count, len(left))
    assert [each["file"] for each in rows] == sorted(file.name for file in (tmp_path / "samples").glob("*.png"))
    waiting = left.groupby("label")["study_id"].apply(list).to_dict()
    for each in rows:  # no class is taken from while another, which was taken from less, has one left
        taken = {name: sum(row["diagnosis"] == name for row in rows[: rows.index(each)]) for name in waiting}
        assert all(taken[each["diagnosis"]] <= taken[name] or taken[name] == len(waiting[name]) for name in waiting)
