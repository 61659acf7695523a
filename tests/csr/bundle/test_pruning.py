"""What a bundle says of pruning is what the pipeline finds on the real reasoner once it was pruned."""

from __future__ import annotations

import copy
from dataclasses import replace
from itertools import product

import numpy as np
import pandas as pd
import pytest
import torch

from csr.bundle.format import Bundle
from csr.bundle.pruning import Pruning, PruningError
from csr.bundle.validation import SIMILAR, ValidationSet
from csr.bundle.validation_fit import fit_validation, similar_prototypes
from csr.data.prepared import PreparedSet
from csr.evaluation.evaluate import evaluate_predictions, pointing_by_concept
from csr.evaluation.metrics import f1_by_class, macro_f1
from csr.interaction.review import prune
from csr.network.trained import TrainedCSR
from csr.training.prediction import predict


@pytest.fixture(scope="module")
def pruning(tiny_run):
    return Pruning(tiny_run.bundle)


def pruned_csr(csr: TrainedCSR, names: list[tuple[str, int]]) -> TrainedCSR:
    verdicts = [
        {"prune": (concept, index) in names}
        for concept, index in product(csr.concepts, range(csr.reasoner.alive.shape[1]))
    ]
    return prune(csr, pd.DataFrame(verdicts))


def random_sets(bundle: Bundle) -> list[list[tuple[str, int]]]:
    """None, one, and some of which every concept keeps a live one."""
    random = np.random.default_rng(0)
    about, entries = bundle.manifest, bundle.atlas()
    sets: list[list[tuple[str, int]]] = [[], [(about.concepts[0], 1)]]
    for share in (0.2, 0.5, 1.0):
        live = {
            each: [entry.index for entry in entries if entry.concept == each and entry.alive] for each in about.concepts
        }
        kept = {(concept, int(random.choice(indices))) for concept, indices in live.items()}
        named = [(entry.concept, entry.index) for entry in entries]
        sets.append([each for each in named if each not in kept and random.random() < share])
    return sets


@pytest.mark.parametrize("which", range(5))
def test_the_preview_is_what_the_pipeline_finds(tiny_run, pruning, which):
    data, csr = tiny_run.data, tiny_run.csr
    names = random_sets(tiny_run.bundle)[which]
    plain, after = (predict(data, tiny_run.cache, each, "val") for each in (csr, pruned_csr(csr, names)))
    effect = pruning.preview(names)
    assert effect.studies == len(data.collection.rows("val"))
    for figures, predictions in ((effect.before, plain), (effect.after, after)):
        report = evaluate_predictions(data.collection, predictions, data.side)["val"]
        assert figures.macro_f1 == report["macro_f1"]
        assert figures.pointing == report["pointing_game"]["pair"]
    assert effect.changed == (plain.probabilities.argmax(1) != after.probabilities.argmax(1)).sum()
    by_concept = {
        row["concept"]: row["pointing_game"] for row in pointing_by_concept(data.collection, after, data.side)
    }
    assert {each.name: each.pointing_after for each in effect.concepts} == {
        name: by_concept.get(name) for name in csr.concepts
    }
    truth = data.collection.truth()[after.rows]
    for t, each in enumerate(effect.classes):
        said = after.probabilities.argmax(1)
        hits = ((said == t) & (truth == t)).sum()
        wanted = 2 * hits / max(1, (said == t).sum() + (truth == t).sum())
        assert each.f1_after == pytest.approx(wanted, abs=1e-6)
    if not names:
        assert effect.before == effect.after and effect.changed == 0


def test_where_studies_have_several_classes_each_is_decided_at_its_threshold(tiny_run, multilabel_bundle):
    pruning = Pruning(multilabel_bundle)
    about = multilabel_bundle.manifest
    validation = pruning.validation
    assert validation.truth.shape == (len(validation), len(about.classes))
    names = random_sets(multilabel_bundle)[3]
    effect = pruning.preview(names)
    alive = np.ones((len(about.concepts), about.per_concept), np.float32)
    for concept, index in names:
        alive[about.concepts.index(concept), index] = 0
    probabilities = pruning._run(alive > 0)[1]
    said = (probabilities >= np.array(about.thresholds)).astype(int)
    assert effect.after.macro_f1 == pytest.approx(macro_f1(validation.truth, said, len(about.classes)), abs=1e-6)


def test_a_concept_is_never_left_without_a_prototype(tiny_run, pruning):
    concept = tiny_run.csr.concepts[2]
    every = [(concept, index) for index in range(tiny_run.bundle.manifest.per_concept)]
    with pytest.raises(PruningError, match=f"{concept} would be left without a prototype"):
        pruning.preview(every)
    for wrong in ((concept, 3), (concept, -1), ("ship", 0)):
        with pytest.raises(PruningError, match="there is no prototype"):
            pruning.preview([wrong])


def test_what_was_pruned_before_stays_pruned(tiny_run):
    """The maps of a dead prototype are nowhere in the bundle, and to prune it again changes nothing."""
    names = [(tiny_run.csr.concepts[0], 0), (tiny_run.csr.concepts[3], 2)]
    csr = pruned_csr(tiny_run.csr, names)
    validation = fit_validation(tiny_run.data, tiny_run.cache, csr)
    own = validation.pairs[:, 1] == 0
    assert own.any() and not validation.maps[own, 0].any()
    np.testing.assert_array_equal(
        validation.scores[:, 0, 0], np.full(len(validation), csr.reasoner.absent_scores[0, 0])
    )


def test_places_count_the_studies_that_show_the_concept(tiny_run, pruning):
    data, csr = tiny_run.data, tiny_run.csr
    rows = data.collection.rows("val")
    with torch.no_grad():
        features, _ = tiny_run.cache.batch(rows, csr.place)
        maps = csr.reasoner(csr.project(features)).similarity_maps.numpy()
    for k, concept in enumerate(csr.concepts):
        shows = (data.collection.concept_labels()[rows, k] == 1) & bool(csr.reasoner.alive[k, 1] > 0)
        places = pruning.places(concept, 1)
        assert places.shape == maps.shape[-2:] and places.sum() == shows.sum()
        expected = np.zeros(places.shape, int)
        for i in np.flatnonzero(shows):
            expected[np.unravel_index(maps[i, k, 1].argmax(), places.shape)] += 1
        np.testing.assert_array_equal(places, expected)


def test_neighbours_are_those_of_largest_cosine(tiny_run, pruning):
    csr = tiny_run.csr
    flat = csr.reasoner.prototypes.flatten(0, 1).double()
    unit = flat / flat.norm(dim=1, keepdim=True)
    for place in (0, 7, len(flat) - 1):
        cosines = (unit @ unit[place]).numpy()
        cosines[place] = -2
        found = pruning.similar(csr.concepts[place // 3], place % 3)
        assert [each.cosine for each in found] == pytest.approx(sorted(cosines, reverse=True)[:SIMILAR], abs=1e-5)
        assert all((each.concept, each.index) != (csr.concepts[place // 3], place % 3) for each in found)


def test_few_prototypes_have_fewer_neighbours():
    similar, cosines = similar_prototypes(np.eye(3, dtype=np.float32))
    assert (similar >= 0).sum(1).tolist() == [2, 2, 2] and similar.shape == cosines.shape == (3, SIMILAR)
    assert similar_prototypes(np.ones((1, 4), np.float32))[0].tolist() == [[-1] * SIMILAR]


def test_decides_names_the_studies_that_a_prototype_speaks_for(tiny_run, pruning):
    data, csr = tiny_run.data, tiny_run.csr
    rows = data.collection.rows("val")
    truth, reasoner = data.collection.truth()[rows], csr.reasoner
    with torch.no_grad():
        features, _ = tiny_run.cache.batch(rows, csr.place)
        said = reasoner(csr.project(features))
        standard = reasoner.standardise(said.scores).flatten(1)
        top = said.logits.argmax(1)
        adds = (standard * reasoner.head.weight[top]).numpy()
    names = data.collection.studies["study_id"].to_numpy()[rows]
    found = pruning.decides(csr.concepts[1], 2)
    best = np.argsort(-adds[:, 5], kind="stable")
    assert [each.study_id for each in found] == [names[i] for i in best[: len(found)]]
    assert 0 < len(found) <= 8 and all(each.contribution > 0 for each in found)
    for each, i in zip(found, best, strict=False):
        assert each.contribution == pytest.approx(adds[i, 5], abs=1e-4)
        assert each.share == pytest.approx(adds[i, 5] / np.abs(adds[i]).sum(), abs=1e-4)
        assert each.cls == csr.classes[top[i]] and each.right == (truth[i] == top[i])


def test_fewer_studies_are_kept_where_their_maps_take_too_much(tiny_run):
    whole = fit_validation(tiny_run.data, tiny_run.cache, tiny_run.csr)
    half = fit_validation(tiny_run.data, tiny_run.cache, tiny_run.csr, map_bytes=whole.maps.nbytes // 2)
    assert 0 < half.maps.nbytes <= whole.maps.nbytes // 2 and len(half) < len(whole)
    assert set(half.study_ids) < set(whole.study_ids)
    few = fit_validation(tiny_run.data, tiny_run.cache, tiny_run.csr, studies=10)
    assert len(few) == 10 and few.study_ids[[0, -1]].tolist() == whole.study_ids[[0, -1]].tolist()


def test_without_boxes_there_is_no_pointing_game(tiny_run):
    collection = tiny_run.data.collection
    data = replace(tiny_run.data, collection=replace(collection, boxes=collection.boxes.iloc[:0]))
    assert isinstance(data, PreparedSet)
    validation = fit_validation(data, tiny_run.cache, tiny_run.csr)
    assert len(validation.pairs) == len(validation.maps) == len(validation.boxes) == 0
    pruning = Pruning(tiny_run.bundle)
    pruning.validation = validation  # type: ignore[misc]  # a cached property
    effect = pruning.preview([])
    assert effect.before.pointing is None and effect.concepts[0].pointing_after is None
    assert effect.before.macro_f1 > 0


def test_what_was_written_is_read_again(tiny_run, tmp_path):
    written = fit_validation(tiny_run.data, tiny_run.cache, tiny_run.csr)
    written.write(tmp_path / "validation.npz")
    read = ValidationSet.read((tmp_path / "validation.npz").read_bytes())
    for name, value in vars(written).items():
        np.testing.assert_array_equal(getattr(read, name), value)
    boxes, rows = tiny_run.data.collection.boxes_by_pair(), tiny_run.data.collection.rows("val")
    assert len(written.boxes_by_pair()) == sum((int(row), k) in boxes for row in rows for k in range(10))
    for (study, concept), own in read.boxes_by_pair().items():
        np.testing.assert_array_equal(own, boxes[int(rows[study]), concept])


def test_a_bundle_of_an_earlier_format_has_none(tiny_run):
    about = replace(tiny_run.bundle.manifest, format=7)
    old = Bundle(tiny_run.bundle.path, about)
    assert old.validation() is None and old.crop_maps() is None
    assert tiny_run.bundle.validation() is not None


def test_the_maps_over_the_crops_are_those_of_their_sources(tiny_run):
    from csr.evaluation.upsampling import Upsampler

    bundle, csr, data = tiny_run.bundle, copy.deepcopy(tiny_run.csr), tiny_run.data
    maps, crops, entries = bundle.crop_maps(), bundle.crops(), bundle.atlas()
    assert maps is not None and maps.shape == (len(crops), *crops.shape[-2:])
    entry = entries[4]
    number = sum(len(each.sources) for each in entries[:4])
    row = data.collection.studies["study_id"].tolist().index(entry.sources[0].study_id)
    with torch.no_grad():
        features, _ = tiny_run.cache.batch(np.array([row]), csr.place)
        similar = csr.reasoner.maps(csr.project(features))[0, 4 // 3, 4 % 3].numpy()
    left, top, right, bottom = (int(corner) for corner in entry.sources[0].box)
    wanted = Upsampler(*similar.shape, data.side).enlarge(similar)[top:bottom, left:right]
    np.testing.assert_allclose(maps[number] / 255, wanted.clip(0, 1), atol=0.5 / 255 + 1e-6)


def test_f1_by_class_is_what_macro_f1_averages():
    random = np.random.default_rng(1)
    truth, said = random.integers(4, size=50), random.integers(3, size=50)
    assert f1_by_class(truth, said, 5).mean() == pytest.approx(macro_f1(truth, said, 5))
    assert f1_by_class(truth, said, 5)[4] == 0
