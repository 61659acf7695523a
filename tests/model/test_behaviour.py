"""What a reader may rely on, asked of a trained and exported bundle through the runner that serves it."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax

from csr.bundle.format import MANIFEST, REASONER_OUTPUTS, Bundle
from csr.bundle.runtime import GOLDEN_TOLERANCE, BundleRunner
from csr.bundle.writing import ExportConfig
from csr.data.images import decode, fit
from csr.errors import BundleError
from csr.interaction.corrections import Interaction, InteractionError, RegionBox, importance_map, place_maps

CASES = settings(deadline=None, max_examples=40)
NOTHING = Interaction()
SIDE, CELLS = 64, 8


@pytest.fixture(scope="session")
def runner(tiny_run) -> BundleRunner:
    return BundleRunner(tiny_run.bundle)


@pytest.fixture(scope="session")
def patches(tiny_run, runner) -> np.ndarray:
    rows = tiny_run.data.collection.rows("test")[:6]
    encoded = runner.encode(np.ascontiguousarray(tiny_run.data.images[rows]))
    assert encoded.shape[2:] == (CELLS, CELLS)
    return encoded


def ask(runner: BundleRunner, patches: np.ndarray, interaction: Interaction = NOTHING) -> dict[str, np.ndarray]:
    return runner.reason(patches, [interaction] * len(patches))


def boxes(kind: st.SearchStrategy[str]) -> st.SearchStrategy[RegionBox]:
    corner, length = st.floats(0, 60), st.floats(0.5, 64)
    return st.builds(lambda x, y, w, h, kind: RegionBox(x, y, x + w, y + h, kind), corner, corner, length, length, kind)


def findings(concept: st.SearchStrategy[str]) -> st.SearchStrategy[RegionBox]:
    return st.builds(lambda box, name: replace(box, concept=name), boxes(st.just("finding")), concept)


@st.composite
def interactions(draw: st.DrawFn) -> Interaction:
    """Any that does not contradict itself: a finding that was ignored whole is left out."""
    named = draw(st.permutations(["nodule", "mass", "effusion", "cavity"]))
    there, absent = named[: draw(st.integers(0, 2))], named[2 : 2 + draw(st.integers(0, 2))]
    drawn = draw(st.lists(boxes(st.sampled_from(["focus", "ignore"])), max_size=3))
    for box in draw(st.lists(findings(st.sampled_from(there)), max_size=2)) if there else ():
        try:
            place_maps(Interaction((*drawn, box)), there, SIDE, CELLS, CELLS)
        except InteractionError:
            continue
        drawn.append(box)
    return Interaction(
        tuple(drawn),
        confirmed=tuple(there[:1]),
        rejected=tuple(absent),
        alpha=draw(st.none() | st.floats(0, 1)),
        rejection=draw(st.sampled_from(["zero", "absent"])),
        background=draw(st.sampled_from(["keep", "alpha"])),
    )


# the bundle is what was trained


def test_its_probabilities_are_the_logits_at_the_temperature_that_was_chosen_on_validation_studies(
    tiny_run, runner, patches
):
    answer, temperature = ask(runner, patches), float(tiny_run.csr.reasoner.temperature)
    assert abs(temperature - 1) > 0.02
    np.testing.assert_allclose(answer["probabilities"], softmax(answer["logits"] / temperature, axis=1), atol=1e-6)


def test_a_real_bundle_was_measured_on_real_images_and_opens_again(tiny_run):
    assert 0 <= tiny_run.parity <= ExportConfig().tolerance
    manifest = Bundle.open(tiny_run.folder / "bundle").manifest
    assert manifest.concepts == tiny_run.data.collection.concepts
    assert manifest.classes == tiny_run.data.collection.classes
    assert manifest.data_digest == tiny_run.data.digest()
    assert (manifest.channels, manifest.side) == (1, 64)
    assert (manifest.height, manifest.width) == tiny_run.cache.features.shape[2:]
    assert (manifest.per_concept, manifest.patch_width) == tiny_run.csr.reasoner.prototypes.shape[1:]


def test_a_real_bundles_samples_are_test_images_with_their_labels_and_boxes(tiny_run):
    studies = tiny_run.data.collection.studies
    samples = tiny_run.bundle.samples()
    assert {sample["diagnosis"] for sample in samples} == set(tiny_run.data.collection.classes)
    assert len({sample["study_id"] for sample in samples}) == len(samples)
    for sample in samples:
        row = int(np.flatnonzero(studies["study_id"] == sample["study_id"])[0])
        assert studies["split"].iat[row] == "test"
        assert studies["label"].iat[row] == sample["diagnosis"]
        canvas, _ = fit(decode((tiny_run.bundle.path / "samples" / sample["file"]).read_bytes()), 64, 1)
        np.testing.assert_array_equal(canvas, tiny_run.data.images[row])
        boxed = {box[0] for box in sample["boxes"]}
        assert boxed == set(sample["concepts"])
        for concept in boxed:
            own = [box[1:] for box in sample["boxes"] if box[0] == concept]
            np.testing.assert_allclose(own, tiny_run.data.collection.boxes_of(row, concept))


def test_the_golden_case_is_met(runner):
    assert runner.golden_error() < GOLDEN_TOLERANCE


def test_the_golden_case_fails_when_the_answer_is_another(tiny_run, monkeypatch):
    golden = tiny_run.bundle.golden()
    golden["expected_logits"] = golden["expected_logits"] + 0.1
    monkeypatch.setattr(Bundle, "golden", lambda self: golden)
    assert BundleRunner(tiny_run.bundle).golden_error() == pytest.approx(0.1, abs=0.01)


def test_the_runner_answers_as_the_trained_model_does(tiny_run, runner):
    images = np.ascontiguousarray(tiny_run.data.images[tiny_run.data.collection.rows("test")[:8]])
    with torch.no_grad():
        expected = tiny_run.csr(torch.from_numpy(images))
    answer = ask(runner, runner.encode(images))
    assert tuple(answer) == REASONER_OUTPUTS
    for name in ("logits", "probabilities", "concept_probabilities"):
        np.testing.assert_allclose(answer[name], getattr(expected, name), atol=1e-3, err_msg=name)


def test_the_atlas_speaks_of_every_prototype_of_the_bundle(tiny_run):
    about, entries = tiny_run.bundle.manifest, tiny_run.bundle.atlas()
    assert len(entries) == len(about.concepts) * about.per_concept
    assert len(tiny_run.bundle.crops()) == sum(len(entry.sources) for entry in entries)
    assert sum(entry.reliance for entry in entries) == pytest.approx(1, abs=1e-4)
    assert set(entries[0].weights) == set(about.classes)
    trained = set(tiny_run.data.collection.studies.query("split == 'train'")["study_id"])
    assert {source.study_id for entry in entries for source in entry.sources} <= trained


def test_every_file_of_a_real_bundle_is_guarded(tiny_run, tmp_path):
    path = tmp_path / "bundle"
    shutil.copytree(tiny_run.bundle.path, path)
    files = [file for file in path.rglob("*") if file.is_file() and file.name != MANIFEST]
    assert len(files) > 6
    for file in files:
        content = file.read_bytes()
        middle = len(content) // 2
        file.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
        with pytest.raises(BundleError, match=file.name):
            Bundle.open(path)
        file.write_bytes(content)
    assert Bundle.open(path).digest == tiny_run.bundle.digest


# without an interaction


def test_probabilities_are_probabilities_and_logits_the_bias_plus_contributions(tiny_run, runner, patches):
    answer = ask(runner, patches)
    np.testing.assert_allclose(answer["probabilities"].sum(1), 1, atol=1e-5)
    assert ((answer["concept_probabilities"] >= 0) & (answer["concept_probabilities"] <= 1)).all()
    bias = tiny_run.csr.reasoner.head.bias.detach().numpy()
    np.testing.assert_allclose(answer["logits"], bias + answer["contributions"].sum(1), atol=1e-3)
    alive = tiny_run.csr.reasoner.alive.numpy() > 0
    assert alive.any(1).all() and not alive.all()
    maps = answer["similarity_maps"]
    scores = np.where(alive, maps.max((3, 4)), tiny_run.csr.reasoner.absent_scores.numpy())
    np.testing.assert_allclose(answer["scores"], scores, atol=1e-6)
    live = np.where(alive[None, :, :, None, None], maps, -1)
    np.testing.assert_allclose(answer["concept_maps"], live.max(2), atol=1e-6)


def test_similarities_are_cosines(runner, patches):
    maps = ask(runner, patches)["similarity_maps"]
    assert maps.min() >= -1 - 1e-5
    assert maps.max() <= 1 + 1e-5
    np.testing.assert_allclose(np.linalg.norm(patches, axis=1), 1, atol=1e-4)


@pytest.mark.parametrize("rejection", ["zero", "absent"])
@pytest.mark.parametrize("background", ["keep", "alpha"])
@pytest.mark.parametrize("alpha", [0.0, 0.2, 1.0])
def test_no_box_and_no_answer_is_the_plain_answer(runner, patches, rejection, background, alpha):
    expected = ask(runner, patches)
    answer = ask(runner, patches, Interaction(rejection=rejection, background=background, alpha=alpha))
    for name, value in expected.items():
        np.testing.assert_array_equal(answer[name], value, err_msg=name)


def test_encoding_does_not_depend_on_the_company_in_the_batch(tiny_run, runner, patches):
    rows = tiny_run.data.collection.rows("test")[:6]
    for position, row in enumerate(rows):
        alone = runner.encode(np.ascontiguousarray(tiny_run.data.images[row : row + 1]))
        np.testing.assert_allclose(alone[0], patches[position], atol=1e-5)


# with one


@CASES
@given(st.lists(interactions(), min_size=6, max_size=6))
def test_a_study_is_answered_alike_alone_and_among_other_readers_interactions(runner, patches, said):
    together = runner.reason(patches, said)
    for position, interaction in enumerate(said):
        alone = runner.reason(patches[position : position + 1], [interaction])
        for name in ("logits", "scores", "concept_probabilities"):
            np.testing.assert_allclose(alone[name][0], together[name][position], atol=1e-4, err_msg=name)


@CASES
@given(interactions())
def test_an_interaction_may_be_undone_and_repeated(runner, patches, interaction):
    plain, first = ask(runner, patches), ask(runner, patches, interaction)
    again, back = ask(runner, patches, interaction), ask(runner, patches)
    for name in REASONER_OUTPUTS:
        np.testing.assert_array_equal(first[name], again[name], err_msg=name)
        np.testing.assert_array_equal(plain[name], back[name], err_msg=name)


@CASES
@given(boxes(st.just("focus")), boxes(st.just("ignore")))
def test_importance_weighs_what_the_plain_maps_hold_beyond_the_absent_scores(tiny_run, runner, patches, focus, ignore):
    interaction = Interaction((focus, ignore), alpha=0.3)
    about = tiny_run.bundle.manifest
    weights = importance_map(interaction, about.side, about.height, about.width)
    plain = ask(runner, patches)["similarity_maps"]
    absent = tiny_run.csr.reasoner.absent_scores.numpy()[:, :, None, None]
    expected = np.minimum(plain, absent) + weights * (plain - absent).clip(0)
    np.testing.assert_allclose(ask(runner, patches, interaction)["similarity_maps"], expected, atol=1e-6)


@CASES
@given(st.lists(boxes(st.sampled_from(["focus", "ignore"])), max_size=2), boxes(st.just("ignore")))
def test_one_more_ignore_box_never_raises_a_score(runner, patches, drawn, more):
    before = ask(runner, patches, Interaction(tuple(drawn)))["scores"]
    after = ask(runner, patches, Interaction((*drawn, more)))["scores"]
    assert (after <= before + 1e-6).all()


@CASES
@given(st.lists(boxes(st.just("focus")), min_size=1, max_size=3), st.floats(0, 1), st.floats(0, 1))
def test_a_smaller_alpha_never_raises_a_score(runner, patches, drawn, one, other):
    low, high = sorted((one, other))
    smaller = ask(runner, patches, Interaction(tuple(drawn), alpha=low))["scores"]
    larger = ask(runner, patches, Interaction(tuple(drawn), alpha=high))["scores"]
    assert (smaller <= larger + 1e-6).all()


def test_a_focus_box_on_the_peak_keeps_the_score_and_one_elsewhere_lowers_it(tiny_run, runner, patches):
    about = tiny_run.bundle.manifest
    cell = about.side / about.width
    plain = ask(runner, patches)
    b, k, m = np.unravel_index(plain["scores"].argmax(), plain["scores"].shape)
    row, column = np.unravel_index(plain["similarity_maps"][b, k, m].argmax(), (about.height, about.width))

    def score(row: int, column: int) -> float:
        box = RegionBox(column * cell, row * cell, (column + 1) * cell, (row + 1) * cell)
        return float(ask(runner, patches, Interaction((box,), alpha=0.1))["scores"][b, k, m])

    assert score(row, column) == pytest.approx(plain["scores"][b, k, m])
    assert score((row + 2) % about.height, (column + 2) % about.width) < plain["scores"][b, k, m]


def test_an_ignore_box_over_the_image_leaves_every_concept_at_most_its_absent_score(tiny_run, runner, patches):
    answer = ask(runner, patches, Interaction((RegionBox(0, 0, 64, 64, "ignore"),)))
    expected = np.minimum(ask(runner, patches)["scores"], tiny_run.csr.reasoner.absent_scores.numpy())
    np.testing.assert_allclose(answer["scores"], expected, atol=1e-5)


@CASES
@given(st.lists(boxes(st.sampled_from(["focus", "ignore"])), max_size=3))
def test_without_an_alpha_the_one_of_the_bundle_is_meant(tiny_run, runner, patches, drawn):
    alpha = tiny_run.bundle.manifest.alpha
    assert alpha == 0.2
    own, said = (ask(runner, patches, Interaction(tuple(drawn), alpha=value)) for value in (None, alpha))
    np.testing.assert_allclose(own["scores"], said["scores"], atol=1e-6)


def test_focus_boxes_do_something(runner, patches):
    """α below 1 always acts: most boxes spread over the image move some class of a study, by however little here."""
    plain, moved = ask(runner, patches)["probabilities"], []
    for x, y in np.ndindex(4, 4):
        box = RegionBox(x * 16, y * 16, x * 16 + 16, y * 16 + 16)
        moved.append(np.abs(ask(runner, patches, Interaction((box,)))["probabilities"] - plain).max(1) > 1e-5)
    assert np.mean(moved) > 0.5


# answers


def evidence_of(tiny_run, scores: np.ndarray) -> np.ndarray:
    return np.where(tiny_run.csr.reasoner.alive.numpy() > 0, scores, -1).max(2)


@pytest.mark.parametrize("key", ["confirmed", "rejected"])
def test_an_answer_moves_its_concept_its_own_way_and_no_other(tiny_run, runner, patches, key):
    """And nothing at all where the model says so already."""
    concepts, reasoner = tiny_run.bundle.manifest.concepts, tiny_run.csr.reasoner
    plain, way = ask(runner, patches), 1 if key == "confirmed" else -1
    evidence = evidence_of(tiny_run, plain["scores"])
    heard = {
        "confirmed": evidence >= reasoner.present_evidence.numpy(),
        "rejected": evidence <= reasoner.absent_evidence.numpy(),
    }[key]
    assert heard.any() and not heard.all()
    changed = np.zeros_like(heard)
    for k, name in enumerate(concepts):
        answer = ask(runner, patches, Interaction(**{key: (name,)}))
        others = [index for index in range(len(concepts)) if index != k]
        for output in ("contributions", "scores", "concept_probabilities"):
            np.testing.assert_array_equal(answer[output][:, others], plain[output][:, others])
        assert (way * (answer["scores"][:, k] - plain["scores"][:, k]) >= 0).all()
        changed[:, k] = (answer["contributions"][:, k] != plain["contributions"][:, k]).any(1)
        np.testing.assert_array_equal(answer["logits"][heard[:, k]], plain["logits"][heard[:, k]])
        np.testing.assert_array_equal(answer["similarity_maps"], plain["similarity_maps"])
    assert changed[~heard].mean() > 0.9


@CASES
@given(interactions(), st.sampled_from(["consolidation", "reticulation"]))
def test_whatever_was_said_before_confirming_never_lowers_evidence_and_rejecting_never_raises_it(
    tiny_run, runner, patches, said, name
):
    k = tiny_run.bundle.manifest.concepts.index(name)
    said = replace(said, rejection="absent")
    before = ask(runner, patches, said)
    for way, more in (
        (1, replace(said, confirmed=(*said.confirmed, name))),
        (-1, replace(said, rejected=(*said.rejected, name))),
    ):
        after = ask(runner, patches, more)
        assert (way * (after["scores"][:, k] - before["scores"][:, k]) >= 0).all()
        evidence = [evidence_of(tiny_run, answer["scores"])[:, k] for answer in (before, after)]
        assert (way * (evidence[1] - evidence[0]) >= 0).all()


@CASES
@given(interactions())
def test_the_logits_are_the_bias_plus_the_contributions_whatever_is_said(tiny_run, runner, patches, said):
    answer = ask(runner, patches, said)
    bias = tiny_run.csr.reasoner.head.bias.detach().numpy()
    np.testing.assert_allclose(answer["logits"], bias + answer["contributions"].sum(1), atol=1e-3)


def test_a_finding_box_is_a_confirmation_that_is_seen_in_its_place(tiny_run, runner, patches):
    about = tiny_run.bundle.manifest
    cell = about.side / about.width
    for k, name in enumerate(about.concepts):
        row, column = k % about.height, (3 * k) % about.width
        box = RegionBox(column * cell, row * cell, (column + 1) * cell, (row + 1) * cell, "finding", name)
        located = ask(runner, patches, Interaction((box,)))
        confirmed = ask(runner, patches, Interaction(confirmed=(name,)))
        for output in ("scores", "contributions", "logits", "concept_probabilities"):
            np.testing.assert_array_equal(located[output], confirmed[output], err_msg=output)
        maps = located["concept_maps"][:, k]
        assert (maps[:, row, column] == maps.max((1, 2))).all()
        others = [index for index in range(len(about.concepts)) if index != k]
        np.testing.assert_array_equal(located["concept_maps"][:, others], confirmed["concept_maps"][:, others])


def test_rejecting_everything_as_in_the_paper_gives_every_study_the_logits_worked_out_by_hand(
    tiny_run, runner, patches
):
    reasoner = tiny_run.csr.reasoner
    standard = -reasoner.score_mean.numpy() / reasoner.score_std.numpy()
    expected = reasoner.head.bias.detach().numpy() + reasoner.head.weight.detach().numpy() @ standard.ravel()
    everything = Interaction(rejected=tiny_run.bundle.manifest.concepts, rejection="zero")
    answer = ask(runner, patches, everything)
    np.testing.assert_allclose(answer["logits"], np.tile(expected, (len(patches), 1)), atol=1e-3)


def test_rejecting_everything_leaves_no_more_than_a_typical_image_without_it(tiny_run, runner, patches):
    plain = ask(runner, patches)["scores"]
    answer = ask(runner, patches, Interaction(rejected=tiny_run.bundle.manifest.concepts))["scores"]
    reasoner = tiny_run.csr.reasoner
    seen = evidence_of(tiny_run, plain) > reasoner.absent_evidence.numpy()
    absent = np.minimum(plain, reasoner.absent_scores.numpy())
    np.testing.assert_allclose(answer, np.where(seen[..., None], absent, plain), atol=1e-6)


def test_an_absent_score_is_likelier_than_zero(tiny_run, runner):
    """Why ``absent`` is offered: zero lies further from the scores that the head was trained on."""
    reasoner = tiny_run.csr.reasoner
    absent, zero = (
        ((value - reasoner.score_mean) / reasoner.score_std).abs().mean()
        for value in (reasoner.absent_scores, torch.zeros_like(reasoner.absent_scores))
    )
    assert absent < zero


# refused


def test_what_cannot_be_applied_is_refused_by_its_name(runner, patches):
    with pytest.raises(InteractionError, match=r"boxes\[0\]"):
        ask(runner, patches, Interaction((RegionBox(70, 70, 90, 90),)))
    for key in ("confirmed", "rejected"):
        with pytest.raises(InteractionError, match="unheard-of"):
            ask(runner, patches, replace(NOTHING, **{key: ("unheard-of",)}))
    pair = (RegionBox(20, 20, 40, 40, "finding", "mass"), RegionBox(0, 0, 64, 64, "ignore"))
    with pytest.raises(InteractionError, match=r"boxes\[0\].*'mass'.*boxes\[1\]"):
        ask(runner, patches, Interaction(pair))


def test_many_threads_get_the_answers_that_one_gets(runner, patches, tiny_run):
    names = tiny_run.bundle.manifest.concepts
    said = [Interaction(rejected=(name,)) for name in names] * 2 + [
        Interaction(confirmed=(name,)) for name in names
    ] * 2
    expected = [ask(runner, patches, each)["logits"] for each in said]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda each: ask(runner, patches, each)["logits"], said))
    for own, value in zip(answers, expected, strict=True):
        np.testing.assert_array_equal(own, value)
