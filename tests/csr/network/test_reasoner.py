"""The reasoner against a numpy oracle, and the properties a clinician relies on when correcting it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from csr.network.reasoner import Reasoner, Reasoning
from tests.csr.synthetic import make_patches, make_reasoner

SEEDS = st.integers(0, 10_000)
FLOORS = pytest.mark.parametrize("floor", ["zero", "absent"])
CLIP = pytest.mark.parametrize("clip", [True, False])
CASES = settings(deadline=None, max_examples=20)


def reason(reasoner: Reasoner, *tensors: torch.Tensor | None) -> dict[str, np.ndarray]:
    with torch.no_grad():
        return {name: value.numpy() for name, value in reasoner(*tensors)._asdict().items()}


def arrays_of(reasoner: Reasoner) -> dict[str, np.ndarray]:
    return {name: value.double().numpy() for name, value in reasoner.state_dict().items()}


def reason_by_hand(reasoner, patches, importance, answers, places, absent_weight) -> dict[str, np.ndarray]:
    """One image: patches D'×h×w, importance h×w, answers K, places K×h×w, absent_weight a number."""
    own = arrays_of(reasoner)
    alive = own["alive"] > 0
    absent, present = own["absent_scores"], own["present_scores"]
    concepts, per_concept, width = own["prototypes"].shape
    classes = len(own["head.bias"])
    height, columns = patches.shape[1:]
    maps = np.zeros((concepts, per_concept, height, columns))
    for k, m, i, j in np.ndindex(maps.shape):
        weights = np.where(importance < 0, own["alpha"][k], importance)
        value = sum(own["prototypes"][k, m, d] * patches[d, i, j] for d in range(width))
        if reasoner.clip or (reasoner.floor == "zero" and (weights != 1).any()):
            value = max(value, 0.0)
        floor = absent[k, m] if reasoner.floor == "absent" else min(value, 0.0)
        maps[k, m, i, j] = min(value, floor) + weights[i, j] * max(value - floor, 0)
    scores, standard = np.where(alive, maps.max((2, 3)), absent), np.zeros((concepts, per_concept))
    for k in range(concepts):
        evidence = max(scores[k, m] for m in range(per_concept) if alive[k, m])
        for m in range(per_concept):
            if answers[k] == 1 and evidence < own["present_evidence"][k] and alive[k, m]:
                scores[k, m] = max(scores[k, m], present[k, m])
            if answers[k] == -1 and absent_weight == 0:
                scores[k, m] = 0
            elif answers[k] == -1 and evidence > own["absent_evidence"][k]:
                scores[k, m] = min(scores[k, m], absent[k, m])
    for k, m, i, j in np.ndindex(maps.shape):
        if places[k].any():
            value = maps[k, m, i, j]
            shown = max(value, present[k, m], absent[k, m])
            maps[k, m, i, j] = shown if places[k, i, j] else min(value, absent[k, m])
    for k, m in np.ndindex(scores.shape):
        standard[k, m] = (scores[k, m] - own["score_mean"][k, m]) / own["score_std"][k, m]
    contributions = np.zeros((concepts, classes))
    for k, m in np.ndindex(scores.shape):
        contributions[k] += own["head.weight"][:, k * per_concept + m] * standard[k, m]
    logits = own["head.bias"] + contributions.sum(0)
    grown = np.exp((logits - logits.max()) / own["temperature"])
    evidence = np.array([max(scores[k][alive[k]]) for k in range(concepts)])
    return {
        "similarity_maps": maps,
        "concept_maps": np.stack([maps[k][alive[k]].max(0) for k in range(concepts)]),
        "scores": scores,
        "concept_probabilities": 1 / (1 + np.exp(-(own["concept_scale"] * evidence + own["concept_shift"]))),
        "contributions": contributions,
        "logits": logits,
        "probabilities": grown / grown.sum(),
    }


def random_interaction(seed: int, batch: int = 2) -> tuple[torch.Tensor, ...]:
    """Importance, answers, places and absent weights; places only of confirmed concepts, and not of each."""
    rng = np.random.default_rng([seed, 9])
    importance = rng.choice([-1.0, 0.0, 0.2, 1.0], (batch, 3, 4))
    importance[0] = 1 if seed % 3 == 0 else importance[0]  # some images of a batch are left alone
    answers = rng.integers(-1, 2, (batch, 3))
    located = (answers == 1) & (rng.random((batch, 3)) < 0.7)
    places = located[..., None, None] * rng.integers(0, 2, (batch, 3, 3, 4))
    values = (importance, answers, places, rng.integers(0, 2, batch))
    return tuple(torch.tensor(value, dtype=torch.float32) for value in values)


def answers_of(*values: float, batch: int = 2) -> torch.Tensor:
    """The same answers about the three concepts for every image."""
    return torch.tensor([values] * batch, dtype=torch.float32)


def evidence_of(reasoner: Reasoner, answer: dict[str, np.ndarray]) -> np.ndarray:
    """B×K, the largest score of a concept's live prototypes."""
    return np.where(reasoner.alive.numpy() > 0, answer["scores"], -np.inf).max(2)


@FLOORS
@CLIP
@pytest.mark.parametrize("pruned", [0, 4])
@CASES
@given(SEEDS)
def test_every_output_equals_the_formulas(clip, floor, pruned, seed):
    reasoner, patches = make_reasoner(seed, clip, pruned=pruned, floor=floor), make_patches(seed)
    interaction = random_interaction(seed)
    answer = reason(reasoner, patches, *interaction)
    for b in range(2):
        tensors = (value[b].double().numpy() for value in (patches, *interaction))
        for name, expected in reason_by_hand(reasoner, *tensors).items():
            np.testing.assert_allclose(answer[name][b], expected, atol=2e-4, rtol=2e-4, err_msg=name)


@CLIP
@CASES
@given(SEEDS)
def test_pruned_prototypes_score_their_absent_value_and_show_in_no_map(clip, seed):
    reasoner, patches = make_reasoner(seed, clip, pruned=4), make_patches(seed)
    answer = reason(reasoner, patches)
    for b in range(2):
        nothing = np.ones((3, 4)), np.zeros(3), np.zeros((3, 3, 4)), 1.0
        expected = reason_by_hand(reasoner, patches[b].double().numpy(), *nothing)
        for name in Reasoning._fields:
            np.testing.assert_allclose(answer[name][b], expected[name], atol=2e-4, rtol=2e-4, err_msg=name)


def test_what_a_pruned_prototype_scores_is_no_evidence_for_its_concept():
    reasoner, patches = make_reasoner(3, clip=True, pruned=4), make_patches(3)
    before = reason(reasoner, patches)
    with torch.no_grad():
        reasoner.absent_scores[reasoner.alive == 0] = 5.0
    after = reason(reasoner, patches)
    assert (after["scores"] == 5).sum() == 2 * 4
    np.testing.assert_array_equal(after["concept_probabilities"], before["concept_probabilities"])
    np.testing.assert_array_equal(after["concept_maps"], before["concept_maps"])


def test_a_rejection_without_a_stated_substitute_leaves_absent_scores_at_the_most():
    reasoner, patches = make_reasoner(2, clip=True), make_patches(2)
    reasoner.absent_evidence.zero_()
    plain, answer = reason(reasoner, patches), reason(reasoner, patches, None, answers_of(-1, -1, -1))
    np.testing.assert_array_equal(answer["scores"], np.minimum(plain["scores"], reasoner.absent_scores.numpy()))
    assert (answer["scores"] < plain["scores"]).mean() > 0.5


@FLOORS
@CLIP
@pytest.mark.parametrize("pruned", [0, 3])
@pytest.mark.parametrize("rejection", [0.0, 1.0])
@CASES
@given(SEEDS)
def test_no_box_and_no_answer_changes_nothing(clip, pruned, floor, rejection, seed):
    reasoner, patches = make_reasoner(seed, clip, pruned=pruned, floor=floor), make_patches(seed)
    plain = reason(reasoner, patches)
    nothing = torch.ones(2, 3, 4), torch.zeros(2, 3), torch.zeros(2, 3, 3, 4), torch.full((2,), rejection)
    neutral = reason(reasoner, patches, *nothing)
    for name, expected in plain.items():
        np.testing.assert_array_equal(neutral[name], expected, err_msg=name)


@CASES
@given(SEEDS)
def test_weighting_by_almost_one_is_clipping_alone(seed):
    """α = 1 is no weighting: what is left of an interaction is the clipping of negative similarities."""
    open_model, patches = make_reasoner(seed, clip=False), make_patches(seed)
    clipped = make_reasoner(seed, clip=True)
    almost = torch.full((2, 3, 4), 1 - 1e-7)
    expected = reason(clipped, patches)
    np.testing.assert_array_equal(expected["similarity_maps"], reason(open_model, patches)["similarity_maps"].clip(0))
    for name, value in reason(open_model, patches, almost).items():
        np.testing.assert_allclose(value, expected[name], atol=1e-4, err_msg=name)


@CLIP
@CASES
@given(SEEDS)
def test_permuting_a_concepts_prototypes_with_all_that_is_theirs_changes_no_answer(clip, seed):
    reasoner, patches = make_reasoner(seed, clip, pruned=2), make_patches(seed)
    rng = np.random.default_rng(seed)
    orders = torch.tensor(np.stack([rng.permutation(4) for _ in range(3)]))
    state = {name: value.clone() for name, value in reasoner.state_dict().items()}
    for name in ("alive", "score_mean", "score_std", "absent_scores", "present_scores"):
        state[name] = state[name].gather(1, orders)
    state["prototypes"] = torch.stack([state["prototypes"][k, orders[k]] for k in range(3)])
    weight = state["head.weight"].reshape(3, 3, 4)
    state["head.weight"] = torch.stack([weight[:, k, orders[k]] for k in range(3)], 1).reshape(3, 12)
    permuted = make_reasoner(seed, clip)
    permuted.load_state_dict(state)
    interaction = random_interaction(seed)
    before, after = reason(reasoner, patches, *interaction), reason(permuted, patches, *interaction)
    for k, order in enumerate(orders.numpy()):
        np.testing.assert_array_equal(after["scores"][:, k], before["scores"][:, k][:, order])
    for name in ("logits", "probabilities", "concept_probabilities", "concept_maps", "contributions"):
        np.testing.assert_allclose(after[name], before[name], atol=1e-4, err_msg=name)


@FLOORS
@CASES
@given(SEEDS, st.data())
def test_lowering_an_importance_weight_never_raises_a_score(floor, seed, data):
    reasoner, patches = make_reasoner(seed, clip=True, floor=floor), make_patches(seed, batch=1)
    rng = np.random.default_rng([seed, 3])
    weights = torch.tensor(rng.choice([0.2, 0.7, 1.0], (1, 3, 4)), dtype=torch.float32)
    lowered = weights.clone()
    cell = data.draw(st.integers(0, 2)), data.draw(st.integers(0, 3))
    lowered[0][cell] *= data.draw(st.floats(0, 1))
    before, after = reason(reasoner, patches, weights)["scores"], reason(reasoner, patches, lowered)["scores"]
    assert (after <= before).all()


@FLOORS
def test_without_clipping_lowering_a_weight_never_raises_a_score_once_there_is_an_interaction(floor):
    for seed in range(20):
        reasoner, patches = make_reasoner(seed, clip=False, floor=floor), make_patches(seed, batch=1)
        weights = torch.full((1, 3, 4), 0.5)
        lowered = weights.clone()
        lowered[0, 1] = 0
        assert (reason(reasoner, patches, lowered)["scores"] <= reason(reasoner, patches, weights)["scores"]).all()


def test_an_ignore_box_over_everything_leaves_no_evidence():
    reasoner = make_reasoner(0, clip=True)
    answer = reason(reasoner, make_patches(0), torch.zeros(2, 3, 4))
    assert not answer["similarity_maps"].any()
    assert not answer["scores"].any()


def test_with_floor_absent_a_first_box_never_raises_a_score_even_without_clipping():
    for seed in range(20):
        reasoner, patches = make_reasoner(seed, clip=False, floor="absent"), make_patches(seed, batch=1)
        weights = torch.ones(1, 3, 4)
        weights[0, 1] = 0.3
        assert (reason(reasoner, patches, weights)["scores"] <= reason(reasoner, patches)["scores"]).all()


@CLIP
@CASES
@given(SEEDS)
def test_with_floor_absent_an_ignore_box_over_everything_is_a_rejection_of_every_concept(clip, seed):
    """Of concepts that the model sees: what it does not see a rejection leaves alone."""
    reasoner, patches = make_reasoner(seed, clip, floor="absent"), make_patches(seed)
    reasoner.absent_evidence.fill_(-1.0)
    rejected = reason(reasoner, patches, None, answers_of(-1, -1, -1))["scores"]
    np.testing.assert_allclose(reason(reasoner, patches, torch.zeros(2, 3, 4))["scores"], rejected, atol=1e-6)


@FLOORS
@CASES
@given(SEEDS)
def test_cells_below_zero_weigh_each_concept_by_its_own_alpha(floor, seed):
    reasoner, patches = make_reasoner(seed, clip=True, floor=floor), make_patches(seed)
    weights = torch.full((2, 3, 4), -1.0)
    weights[:, 1, :2] = 1
    weights[:, 2, 3] = 0
    answer = reason(reasoner, patches, weights)
    for k, alpha in enumerate(reasoner.alpha):
        same = reason(reasoner, patches, torch.where(weights < 0, alpha, weights))
        for name in ("similarity_maps", "scores", "contributions", "concept_maps"):
            np.testing.assert_array_equal(answer[name][:, k], same[name][:, k], err_msg=name)


@FLOORS
def test_a_concept_whose_own_alpha_is_one_is_left_alone_by_focus_boxes(floor):
    reasoner, patches = make_reasoner(7, clip=False, floor=floor), make_patches(7)
    weights = torch.full((2, 3, 4), -1.0)
    weights[:, 1] = 1
    before, after = reason(reasoner, patches), reason(reasoner, patches, weights)
    assert reasoner.alpha[2] == 1
    np.testing.assert_array_equal(after["similarity_maps"][:, 2], before["similarity_maps"][:, 2])
    assert (after["similarity_maps"][:, 0] != before["similarity_maps"][:, 0]).any()


# answers


@CLIP
def test_rejecting_every_concept_as_in_the_paper_leaves_the_logits_of_zero_scores(clip):
    """Whatever the evidence: the letter of the paper asks for none."""
    reasoner = make_reasoner(5, clip, pruned=2)
    own = arrays_of(reasoner)
    standard = -own["score_mean"] / own["score_std"]
    expected = own["head.bias"] + own["head.weight"] @ standard.ravel()
    for evidence in (-1.0, 2.0):
        reasoner.absent_evidence.fill_(evidence)
        answer = reason(reasoner, make_patches(5), None, answers_of(-1, -1, -1), None, torch.zeros(2))
        assert not answer["scores"].any()
        np.testing.assert_allclose(answer["logits"], np.stack([expected] * 2), atol=1e-4)


def test_rejecting_every_concept_that_is_seen_leaves_the_logits_of_absent_scores():
    reasoner = make_reasoner(5, clip=True)
    reasoner.absent_scores.clamp_max_(0)  # clipped scores are above them
    reasoner.absent_evidence.zero_()
    own = arrays_of(reasoner)
    standard = (own["absent_scores"] - own["score_mean"]) / own["score_std"]
    expected = own["head.bias"] + own["head.weight"] @ standard.ravel()
    answer = reason(reasoner, make_patches(5), None, answers_of(-1, -1, -1), None, torch.ones(2))
    np.testing.assert_allclose(answer["logits"], np.stack([expected] * 2), atol=1e-4)


def test_confirming_a_concept_that_is_not_seen_lifts_it_to_a_typical_image_with_it():
    reasoner, patches = make_reasoner(2, clip=True), make_patches(2)
    reasoner.present_scores.clamp_min_(0.95)
    reasoner.present_evidence.fill_(1.0)
    answer = reason(reasoner, patches, None, answers_of(0, 1, 0))
    np.testing.assert_array_equal(answer["scores"][:, 1], np.stack([reasoner.present_scores[1].numpy()] * 2))


@FLOORS
@CLIP
@pytest.mark.parametrize("pruned", [0, 4])
@pytest.mark.parametrize("k", range(3))
@CASES
@given(SEEDS)
def test_confirming_never_lowers_a_score_and_rejecting_never_raises_one(clip, floor, pruned, k, seed):
    """Nor the concept's evidence, whatever else was said; and no other concept moves by it."""
    reasoner, patches = make_reasoner(seed, clip, pruned=pruned, floor=floor), make_patches(seed)
    importance, answers, _, _ = random_interaction(seed)
    answers[:, k] = 0
    others = [other for other in range(3) if other != k]
    before = reason(reasoner, patches, importance, answers, None, torch.ones(2))
    for said in (1, -1):
        answers[:, k] = said
        after = reason(reasoner, patches, importance, answers, None, torch.ones(2))
        assert (said * (after["scores"][:, k] - before["scores"][:, k]) >= 0).all()
        assert (said * (evidence_of(reasoner, after) - evidence_of(reasoner, before))[:, k] >= 0).all()
        assert (said * (after["concept_probabilities"] - before["concept_probabilities"])[:, k] >= 0).all()
        for name in ("scores", "contributions", "concept_probabilities"):
            np.testing.assert_array_equal(after[name][:, others], before[name][:, others], err_msg=name)
        for name in ("similarity_maps", "concept_maps"):
            np.testing.assert_array_equal(after[name], before[name], err_msg=name)


@FLOORS
@CLIP
@CASES
@given(SEEDS)
def test_saying_what_the_model_says_already_changes_nothing(clip, floor, seed):
    reasoner, patches = make_reasoner(seed, clip, pruned=3, floor=floor), make_patches(seed)
    importance = random_interaction(seed)[0]
    plain = reason(reasoner, patches, importance)
    evidence = evidence_of(reasoner, plain)
    said = np.where(evidence >= reasoner.present_evidence.numpy(), 1, 0)
    said = np.where((said == 0) & (evidence <= reasoner.absent_evidence.numpy()), -1, said)
    answer = reason(reasoner, patches, importance, torch.tensor(said, dtype=torch.float32), None, torch.ones(2))
    for name, expected in plain.items():
        np.testing.assert_array_equal(answer[name], expected, err_msg=name)


def test_at_the_typical_evidence_an_answer_changes_nothing_and_beyond_it_it_does():
    reasoner, patches = make_reasoner(11, clip=True), make_patches(11, batch=1)
    reasoner.present_scores.fill_(0.99)
    plain = reason(reasoner, patches)
    evidence = torch.tensor(evidence_of(reasoner, plain)[0])
    for said, buffer in ((1, reasoner.present_evidence), (-1, reasoner.absent_evidence)):
        answers = answers_of(said, said, said, batch=1)
        buffer.copy_(evidence)
        np.testing.assert_array_equal(reason(reasoner, patches, None, answers)["scores"], plain["scores"])
        buffer.copy_(evidence + said * 1e-4)
        assert (reason(reasoner, patches, None, answers)["scores"] != plain["scores"]).any(2).all()


@CASES
@given(SEEDS)
def test_a_pruned_prototype_has_no_say_even_if_its_concept_is_confirmed(seed):
    reasoner, patches = make_reasoner(seed, clip=True, pruned=4), make_patches(seed)
    reasoner.present_evidence.fill_(2.0)
    answer, pruned = reason(reasoner, patches, None, answers_of(1, 1, 1)), reasoner.alive.numpy() == 0
    np.testing.assert_array_equal(answer["scores"][:, pruned], reasoner.absent_scores[pruned].expand(2, -1))


# places


@FLOORS
@CLIP
@CASES
@given(SEEDS)
def test_a_finding_is_seen_inside_its_boxes_alone_and_moves_no_score(clip, floor, seed):
    reasoner, patches = make_reasoner(seed, clip, pruned=2, floor=floor), make_patches(seed)
    importance, answers, places, weight = random_interaction(seed)
    without = reason(reasoner, patches, importance, answers, None, weight)
    answer = reason(reasoner, patches, importance, answers, places, weight)
    for name in ("scores", "concept_probabilities", "contributions", "logits", "probabilities"):
        np.testing.assert_array_equal(answer[name], without[name], err_msg=name)
    absent, present = (own.numpy()[..., None] for own in (reasoner.absent_scores, reasoner.present_scores))
    for b, k in np.ndindex(2, 3):
        inside = places[b, k].numpy() > 0
        seen, plain = answer["similarity_maps"][b, k], without["similarity_maps"][b, k]
        if not inside.any():
            np.testing.assert_array_equal(seen, plain)
            continue
        assert (seen[:, inside] >= present[k]).all() and (seen[:, inside] >= plain[:, inside]).all()
        assert (seen[:, ~inside] <= absent[k]).all() and (seen[:, ~inside] <= plain[:, ~inside]).all()
        shown = answer["concept_maps"][b, k]
        assert shown[inside].max() == shown.max()  # whatever training images scored


def test_a_located_finding_is_pointed_at():
    reasoner, patches = make_reasoner(0, clip=True), make_patches(0)
    places = torch.zeros(2, 3, 3, 4)
    places[:, 1, 2, 3] = 1
    reasoner.present_scores[1] = 0.5
    answer = reason(reasoner, patches, None, answers_of(0, 1, 0), places)
    assert (answer["concept_maps"][:, 1].reshape(2, -1).argmax(1) == 11).all()


# sums


@CLIP
@CASES
@given(SEEDS)
def test_logits_are_the_bias_plus_the_contributions(clip, seed):
    reasoner = make_reasoner(seed, clip)
    answer = reason(reasoner, make_patches(seed), *random_interaction(seed))
    bias = reasoner.head.bias.detach().numpy()
    np.testing.assert_allclose(answer["logits"], bias + answer["contributions"].sum(1), atol=1e-4)
    np.testing.assert_allclose(answer["probabilities"].sum(-1), 1, atol=1e-5)


def test_standardisation_can_be_folded_into_plain_weights():
    reasoner, patches = make_reasoner(4, clip=True), make_patches(4)
    own = arrays_of(reasoner)
    weight = own["head.weight"] / own["score_std"].ravel()
    bias = own["head.bias"] - weight @ own["score_mean"].ravel()
    answer = reason(reasoner, patches)
    np.testing.assert_allclose(answer["logits"], answer["scores"].reshape(2, 12) @ weight.T + bias, atol=1e-4)


def test_an_image_is_answered_alike_alone_and_in_a_batch():
    reasoner, patches = make_reasoner(1, clip=False), make_patches(1, batch=4)
    interaction = random_interaction(3, batch=4)  # the first image has no box, the others have
    together = reason(reasoner, patches, *interaction)
    for b in range(4):
        alone = reason(reasoner, patches[b : b + 1], *(value[b : b + 1] for value in interaction))
        for name, value in alone.items():
            np.testing.assert_allclose(value[0], together[name][b], atol=1e-5, err_msg=name)
