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


def reason_by_hand(reasoner, patches, importance, mask, absent_weight) -> dict[str, np.ndarray]:
    """One image: patches D'×h×w, importance h×w, mask K×M, absent_weight a number."""
    own = arrays_of(reasoner)
    alive, keep = own["alive"], own["alive"] * mask
    concepts, per_concept, width = own["prototypes"].shape
    classes = len(own["head.bias"])
    height, columns = patches.shape[1:]
    maps = np.zeros((concepts, per_concept, height, columns))
    for k, m, i, j in np.ndindex(maps.shape):
        weights = np.where(importance < 0, own["alpha"][k], importance)
        value = sum(own["prototypes"][k, m, d] * patches[d, i, j] for d in range(width))
        if reasoner.clip or (reasoner.floor == "zero" and (weights != 1).any()):
            value = max(value, 0.0)
        floor = own["absent_scores"][k, m] if reasoner.floor == "absent" else min(value, 0.0)
        maps[k, m, i, j] = min(value, floor) + weights[i, j] * max(value - floor, 0)
    scores, standard = np.zeros((concepts, per_concept)), np.zeros((concepts, per_concept))
    for k, m in np.ndindex(scores.shape):
        scores[k, m] = maps[k, m].max() if keep[k, m] else absent_weight * own["absent_scores"][k, m]
        standard[k, m] = (scores[k, m] - own["score_mean"][k, m]) / own["score_std"][k, m]
    contributions = np.zeros((concepts, classes))
    for k, m in np.ndindex(scores.shape):
        contributions[k] += own["head.weight"][:, k * per_concept + m] * standard[k, m]
    logits = own["head.bias"] + contributions.sum(0)
    grown = np.exp((logits - logits.max()) / own["temperature"])
    evidence = np.array([max(scores[k][alive[k] > 0]) for k in range(concepts)])
    return {
        "similarity_maps": maps,
        "concept_maps": np.stack([maps[k][alive[k] > 0].max(0) for k in range(concepts)]),
        "scores": scores,
        "concept_probabilities": 1 / (1 + np.exp(-(own["concept_scale"] * evidence + own["concept_shift"]))),
        "contributions": contributions,
        "logits": logits,
        "probabilities": grown / grown.sum(),
    }


def random_interaction(seed: int, batch: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng([seed, 9])
    importance = rng.choice([-1.0, 0.0, 0.2, 1.0], (batch, 3, 4))
    importance[0] = 1 if seed % 3 == 0 else importance[0]  # some images of a batch are left alone
    mask = np.repeat(rng.integers(0, 2, (batch, 3, 1)), 4, axis=2)
    return tuple(torch.tensor(value, dtype=torch.float32) for value in (importance, mask, rng.integers(0, 2, batch)))


@FLOORS
@CLIP
@CASES
@given(SEEDS)
def test_every_output_equals_the_formulas(clip, floor, seed):
    reasoner, patches = make_reasoner(seed, clip, floor=floor), make_patches(seed)
    importance, mask, weight = random_interaction(seed)
    answer = reason(reasoner, patches, importance, mask, weight)
    for b in range(2):
        tensors = (value[b].double().numpy() for value in (patches, importance, mask))
        for name, expected in reason_by_hand(reasoner, *tensors, float(weight[b])).items():
            np.testing.assert_allclose(answer[name][b], expected, atol=2e-4, rtol=2e-4, err_msg=name)


@CLIP
@CASES
@given(SEEDS)
def test_pruned_prototypes_score_their_absent_value_and_show_in_no_map(clip, seed):
    reasoner, patches = make_reasoner(seed, clip, pruned=4), make_patches(seed)
    answer = reason(reasoner, patches)
    ones = np.ones((3, 4))
    for b in range(2):
        expected = reason_by_hand(reasoner, patches[b].double().numpy(), ones, ones, 1.0)
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


def test_a_rejection_without_a_stated_substitute_is_not_ignored():
    reasoner, patches = make_reasoner(2, clip=True), make_patches(2)
    mask = torch.zeros(2, 3, 4)
    answer = reason(reasoner, patches, None, mask)
    np.testing.assert_allclose(answer["scores"], np.stack([reasoner.absent_scores.numpy()] * 2), atol=1e-6)


@FLOORS
@CLIP
@pytest.mark.parametrize("pruned", [0, 3])
@pytest.mark.parametrize("rejection", [0.0, 1.0])
@CASES
@given(SEEDS)
def test_no_box_and_nothing_rejected_changes_nothing(clip, pruned, floor, rejection, seed):
    reasoner, patches = make_reasoner(seed, clip, pruned=pruned, floor=floor), make_patches(seed)
    plain = reason(reasoner, patches)
    neutral = reason(reasoner, patches, torch.ones(2, 3, 4), torch.ones(2, 3, 4), torch.full((2,), rejection))
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
    for name in ("alive", "score_mean", "score_std", "absent_scores"):
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


def test_a_negative_box_over_everything_leaves_no_evidence():
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
def test_with_floor_absent_a_negative_box_over_everything_is_a_rejection_of_every_concept(clip, seed):
    """For concepts that score more than an image without them: a score below the absent one stays."""
    reasoner, patches = make_reasoner(seed, clip, floor="absent"), make_patches(seed)
    plain = reason(reasoner, patches)["scores"]
    expected = np.minimum(plain, reasoner.absent_scores.numpy())
    np.testing.assert_allclose(reason(reasoner, patches, torch.zeros(2, 3, 4))["scores"], expected, atol=1e-6)


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
def test_a_concept_whose_own_alpha_is_one_is_left_alone_by_positive_boxes(floor):
    reasoner, patches = make_reasoner(7, clip=False, floor=floor), make_patches(7)
    weights = torch.full((2, 3, 4), -1.0)
    weights[:, 1] = 1
    before, after = reason(reasoner, patches), reason(reasoner, patches, weights)
    assert reasoner.alpha[2] == 1
    np.testing.assert_array_equal(after["similarity_maps"][:, 2], before["similarity_maps"][:, 2])
    assert (after["similarity_maps"][:, 0] != before["similarity_maps"][:, 0]).any()


@CLIP
@pytest.mark.parametrize("rejection", ["zero", "absent"])
def test_rejecting_every_concept_leaves_the_logits_of_zero_or_absent_scores(clip, rejection):
    reasoner = make_reasoner(5, clip)
    own = arrays_of(reasoner)
    substitute = own["absent_scores"] if rejection == "absent" else np.zeros((3, 4))
    expected = own["head.bias"].copy()
    for k, m in np.ndindex(3, 4):
        z = (substitute[k, m] - own["score_mean"][k, m]) / own["score_std"][k, m]
        expected += own["head.weight"][:, k * 4 + m] * z
    weight = torch.full((2,), float(rejection == "absent"))
    answer = reason(reasoner, make_patches(5), torch.ones(2, 3, 4), torch.zeros(2, 3, 4), weight)
    np.testing.assert_allclose(answer["logits"], np.stack([expected] * 2), atol=1e-4)


def test_rejecting_one_concept_changes_no_other_concepts_contribution():
    reasoner, patches = make_reasoner(2, clip=True), make_patches(2)
    mask = torch.ones(2, 3, 4)
    mask[:, 1] = 0
    before, after = reason(reasoner, patches), reason(reasoner, patches, None, mask, torch.ones(2))
    for name in ("contributions", "scores", "concept_probabilities"):
        np.testing.assert_array_equal(after[name][:, [0, 2]], before[name][:, [0, 2]], err_msg=name)
        assert (after[name][:, 1] != before[name][:, 1]).any()
    np.testing.assert_array_equal(after["similarity_maps"], before["similarity_maps"])


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
