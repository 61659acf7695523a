"""IntCEM: embeddings, mixing, trajectories of interventions, and the policy that learns what to ask."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from csr.baselines import intcem
from csr.baselines.cbm import concept_logits
from csr.baselines.intcem import (
    EMBEDDING,
    Bottleneck,
    Embedded,
    IntCEM,
    IntCEMConfig,
    Studies,
    answered_f1,
    concept_vectors,
    horizon,
    oracle,
    train_bottleneck,
    trajectory_losses,
)
from csr.baselines.protocol import ExperimentContext, TrainedBackbone, predict
from csr.comparison.answerable_intcem import AnswerableIntCEM
from csr.errors import TrainingError
from csr.evaluation.metrics import macro_f1
from csr.interaction.answering import AnswerConfig, Findings, answer_curves
from csr.network.concept_model import ConceptModel, ConceptModelConfig
from csr.network.prototypes import local_concept_vectors
from csr.training.callbacks import SilentCallbacks
from csr.training.concepts import ConceptTrainingConfig
from csr.training.features import FeatureCache, compute_features
from tests.csr.synthetic import make_cache, make_collection, make_prepared, with_labels

NET = ConceptModelConfig("test_convnext", stride=8, context=16, width=16, pooling="lse", sharpness=3.0)
CASES = settings(deadline=None, max_examples=20)
SHORT = IntCEMConfig(epochs=8, batch_size=32, learning_rate=5e-3)


def make_studies(count: int = 30, concepts: int = 4, width: int = 5, classes: int = 3, seed: int = 0) -> Studies:
    """Made-up studies, some of whose concepts nobody labelled."""
    rng = torch.Generator().manual_seed(seed)
    known = torch.rand(count, concepts, generator=rng) < 0.8
    return Studies(
        torch.randn(count, concepts, width, generator=rng),
        torch.rand(count, concepts, generator=rng),
        (torch.rand(count, concepts, generator=rng) < 0.5).float() * known,
        known,
        torch.randint(0, classes, (count,), generator=rng),
    )


def make_bottleneck(concepts: int = 4, width: int = 5, classes: int = 3, seed: int = 0) -> Bottleneck:
    torch.manual_seed(seed)
    made = Bottleneck(concepts, width, classes).eval()
    made.mean.normal_()
    made.std.uniform_(0.5, 2)
    return made


def two_of_three(count: int, seed: int) -> Studies:
    """The first two of three concepts settle the class. Stage 1 sees the second hardly ever, the others always; the
    vectors show no more than that."""
    rng = torch.Generator().manual_seed(seed)
    truth = (torch.rand(count, 3, generator=rng) < 0.5).float()
    sure = torch.tensor([0.95, 0.55, 0.95])
    right = torch.rand(count, 3, generator=rng) < sure
    likely = torch.where(right == (truth == 1), sure, 1 - sure)
    vectors = torch.stack([likely, torch.ones_like(likely)], -1)
    classes = (truth[:, 0] + 2 * truth[:, 1]).long()
    return Studies(vectors, likely, truth, torch.ones(count, 3, dtype=torch.bool), classes)


@pytest.fixture(scope="module")
def trained() -> Bottleneck:
    return train_bottleneck(two_of_three(640, 0), two_of_three(100, 1), 4, SHORT, SilentCallbacks())


# the bottleneck


@CASES
@given(st.integers(0, 1000))
def test_embeddings_are_mixed_as_the_formula_says(seed):
    studies, bottleneck = make_studies(seed=seed), make_bottleneck(seed=seed)
    told = (torch.rand(studies.truth.shape) < 0.5).float()
    with torch.no_grad():
        embedded = bottleneck.embed(studies.vectors, studies.likely)
        mixed = embedded.mix(studies.truth, told)
        logits = bottleneck.classify(mixed)
    v = (studies.vectors.numpy() - bottleneck.mean.numpy()) / bottleneck.std.numpy()
    weight, bias = bottleneck.weight.detach().numpy(), bottleneck.bias.detach().numpy()
    p, c, mu = studies.likely.numpy(), studies.truth.numpy(), told.numpy()
    expected = np.empty(mixed.shape)
    for row in range(len(v)):
        for k in range(v.shape[1]):
            values = v[row, k] @ weight[k] + bias[k]
            values = np.where(values > 0, values, 0.01 * values)
            q = c[row, k] if mu[row, k] else p[row, k]
            expected[row, k] = q * values[:EMBEDDING] + (1 - q) * values[EMBEDDING:]
    np.testing.assert_allclose(mixed, expected, atol=1e-5)
    head = bottleneck.head
    flat = expected.reshape(len(v), -1)
    np.testing.assert_allclose(logits, flat @ head.weight.detach().numpy().T + head.bias.detach().numpy(), atol=1e-4)


def test_whoever_is_told_everything_has_the_positive_or_the_negative_embeddings():
    studies, bottleneck = make_studies(), make_bottleneck()
    embedded = bottleneck.embed(studies.vectors, studies.likely)
    mixed = embedded.mix(studies.truth, torch.ones_like(studies.truth))
    pure = torch.where(studies.truth[..., None] == 1, embedded.positive, embedded.negative)
    assert torch.equal(mixed, pure)


def test_a_concept_sees_its_own_local_vector_and_no_other():
    studies, bottleneck = make_studies(), make_bottleneck()
    other = studies.vectors.clone()
    other[:, 2] += 1
    before, after = (bottleneck.embed(vectors, studies.likely) for vectors in (studies.vectors, other))
    for first, second in ((before.positive, after.positive), (before.negative, after.negative)):
        same = torch.isclose(first, second).all(-1).all(0)
        assert same.tolist() == [True, True, False, True]


# the oracle and the trajectory


@CASES
@given(st.integers(0, 1000))
def test_the_oracle_tells_one_concept_after_another_and_looks_at_the_true_class(seed):
    studies, bottleneck = make_studies(seed=seed), make_bottleneck(seed=seed)
    told = ((torch.rand(studies.truth.shape) < 0.3) & studies.known).float()
    with torch.no_grad():
        embedded = bottleneck.embed(studies.vectors, studies.likely)
        found = oracle(bottleneck, embedded, studies, told)
        for k in range(4):
            more = told.clone()
            more[:, k] = 1
            logits = bottleneck.classify(embedded.mix(studies.truth, more))
            expected = logits.log_softmax(-1)[torch.arange(len(logits)), studies.classes]
            open_ = studies.known[:, k] & (told[:, k] == 0)
            np.testing.assert_allclose(found[open_, k], expected[open_], atol=1e-5)
            assert (found[~open_, k] == -torch.inf).all()


def test_the_horizon_grows_to_six_or_to_all_concepts():
    assert [horizon(step, 10) for step in (0, 81, 82, 139, 220, 221, 10**9)] == [2, 2, 3, 4, 5, 6, 6]
    assert [horizon(step, 3) for step in (0, 82, 10**6)] == [2, 3, 3]
    assert horizon(10**6, 1) == 1


class Recorded(Bottleneck):
    """Notes μ whenever it is asked what to ask, and what may be asked then."""

    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def rank(self, mixed, told, askable):
        self.seen.append((told.detach().clone(), askable.clone()))
        return super().rank(mixed, told, askable)


def test_a_trajectory_tells_a_new_known_concept_a_step_until_there_is_none():
    torch.manual_seed(0)
    studies, bottleneck = make_studies(200), Recorded(4, 5, 3)
    trajectory_losses(bottleneck, studies, 4)
    assert len(bottleneck.seen) == 4
    first = bottleneck.seen[0][0]
    assert float(first[studies.known].mean()) == pytest.approx(intcem.RANDINT, abs=0.05)
    for told, askable in bottleneck.seen:
        assert set(told.unique().tolist()) <= {0.0, 1.0}
        assert not told[~studies.known].any()
        assert torch.equal(askable, studies.known & (told == 0))
    for (told, askable), (after, _) in pairwise(bottleneck.seen):
        assert torch.equal((after - told).sum(1), askable.any(1).float())
        assert (after >= told).all()


@pytest.mark.parametrize("length", [1, 3])
def test_the_losses_are_the_discounted_ones_of_the_paper(length, monkeypatch):
    """With a policy of one mind the trajectory is known: it asks from the last concept to the first."""
    monkeypatch.setattr(intcem, "RANDINT", 0.0)
    studies, bottleneck = make_studies(), make_bottleneck()
    studies = replace(studies, known=torch.ones_like(studies.known))
    scores = 100.0 * torch.arange(4)
    monkeypatch.setattr(
        bottleneck,
        "rank",
        lambda mixed, told, askable: scores.expand(len(told), -1).masked_fill(~askable, torch.finfo().min),
    )
    with torch.no_grad():
        found, imitation = trajectory_losses(bottleneck, studies, length)
        embedded = bottleneck.embed(studies.vectors, studies.likely)
        losses, imitated = [], 0.0
        for step in range(length + 1):
            told = torch.zeros_like(studies.truth)
            told[:, 4 - step :] = 1
            logits = bottleneck.classify(embedded.mix(studies.truth, told)).double().numpy()
            log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
            losses.append(-log_p[np.arange(30), studies.classes.numpy()].mean())
            if step < length:
                target = oracle(bottleneck, embedded, studies, told).argmax(1)
                imitated += float((scores[3 - step] - scores[target]).mean()) / length  # CE of so sharp a softmax
    expected = (losses[0] + 1.1**length * losses[-1]) / (1 + 1.1**length)
    assert float(found) == pytest.approx(expected, rel=1e-4)
    assert float(imitation) == pytest.approx(imitated, rel=1e-4)


def test_studies_that_nobody_labelled_learn_their_class_and_imitate_nothing():
    studies = make_studies()
    unknown = replace(studies, known=torch.zeros_like(studies.known), truth=torch.zeros_like(studies.truth))
    found, imitation = trajectory_losses(make_bottleneck().train(), unknown, 3)
    assert float(imitation.detach()) == 0
    found.backward()
    assert found.isfinite()


# what it learns


def test_the_policy_asks_what_the_oracle_would(trained):
    test = two_of_three(300, 2)
    with torch.no_grad():
        embedded = trained.embed(test.vectors, test.likely)
        nobody = torch.zeros_like(test.truth)
        chosen = trained.rank(embedded.mix(nobody, nobody), nobody, test.known).argmax(1)
        best = oracle(trained, embedded, test, nobody).argmax(1)
    assert float((chosen == 1).float().mean()) > 0.9  # the one that settles the class and is hardly ever seen
    misread = (test.likely > 0.5) != (test.truth == 1)
    assert float((chosen == best)[misread[:, 1]].float().mean()) > 0.85


def test_training_with_interventions_makes_answers_worth_more(trained, monkeypatch):
    """Without them the embeddings only see stage 1's probabilities, and nobody teaches the policy."""
    val, test = two_of_three(100, 1), two_of_three(400, 2)

    def without(bottleneck, studies, length):
        embedded = bottleneck.embed(studies.vectors, studies.likely)
        nobody = torch.zeros_like(studies.truth)
        logits = bottleneck.classify(embedded.mix(nobody, nobody))
        return torch.nn.functional.cross_entropy(logits, studies.classes), logits.new_zeros(())

    monkeypatch.setattr(intcem, "trajectory_losses", without)
    plain = train_bottleneck(two_of_three(640, 0), val, 4, SHORT, SilentCallbacks())
    helped, alone = answered_f1(trained, test, 3), answered_f1(plain, test, 3)
    assert helped[0] > alone[0] - 0.05
    assert helped[1] > max(alone[1], helped[0]) + 0.1
    assert helped[3] > 0.97


def test_a_seed_gives_the_same_bottleneck_twice_and_another_seed_another():
    train, val = make_studies(64), make_studies(20, seed=1)
    config = IntCEMConfig(epochs=2, batch_size=16)
    one, two, other = (
        train_bottleneck(train, val, 3, each, SilentCallbacks()) for each in (config, config, replace(config, seed=1))
    )
    for name, value in one.state_dict().items():
        assert torch.equal(value, two.state_dict()[name]), name
    assert not torch.equal(one.weight, other.weight)


def test_a_loss_that_is_no_number_is_refused():
    train = make_studies(40)
    broken = replace(train, vectors=train.vectors / 0)
    with pytest.raises(TrainingError):
        train_bottleneck(broken, train, 3, IntCEMConfig(epochs=1), SilentCallbacks())


# the whole system


@pytest.fixture(scope="module")
def context(tmp_path_factory) -> ExperimentContext:
    """An untrained stage 1 with its cache, and images whose third concept is unknown in every fourth study."""
    folder = tmp_path_factory.mktemp("intcem")
    collection = make_collection(train=60, val=30)
    labels = collection.concept_labels()
    labels[::4, 2] = np.nan
    data = make_prepared(folder / "prepared", with_labels(collection, labels))
    torch.manual_seed(0)
    model = ConceptModel(NET, 1, 3).eval()
    (folder / "cache").mkdir()
    compute_features(model, data, folder / "cache", SilentCallbacks())
    shared = TrainedBackbone(model, FeatureCache.open(folder / "cache"))
    return ExperimentContext(data, ConceptTrainingConfig(model=NET), SilentCallbacks(), shared)


@pytest.fixture(scope="module")
def system(context) -> IntCEM:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(intcem, "TRIES", intcem.TRIES[:1])
        return intcem.intcem(context)


def test_vectors_are_those_of_the_cached_rows(context):
    rows = np.array([7, 3, 50])
    features, cam = context.shared_backbone.cache.batch(rows, torch.device("cpu"))
    attention = np.exp(cam.numpy().reshape(3, 3, -1))
    attention /= attention.sum(-1, keepdims=True)
    expected = np.einsum("bkc,bdc->bkd", attention, features.numpy().reshape(3, features.shape[1], -1))
    np.testing.assert_allclose(concept_vectors(context.shared_backbone, rows), expected, atol=1e-4)
    repeated = np.tile(rows, 200)  # more than one chunk
    assert concept_vectors(context.shared_backbone, repeated).shape == (600, *expected.shape[1:])


def test_the_stage_below_is_not_trained_and_its_maps_and_logits_are_the_answer(context, system):
    test = context.data.collection.rows("test")
    images = torch.from_numpy(context.data.images[test])
    shared = context.shared_backbone
    with torch.no_grad():
        answer = system.answer(images)
        maps, concepts = shared.model(images)
        vectors = local_concept_vectors(shared.model.features(images), maps)
        embedded = system.bottleneck.embed(vectors, concepts.sigmoid())
        nobody = torch.zeros_like(concepts)
        expected = system.bottleneck.classify(embedded.mix(nobody, nobody)).softmax(-1)
    torch.manual_seed(0)
    untouched = ConceptModel(NET, 1, 3).state_dict()
    for name, value in system.concept_model.state_dict().items():
        assert torch.equal(value, untouched[name]), name
    assert torch.equal(answer.maps, maps) and torch.equal(answer.concepts, concepts)
    np.testing.assert_allclose(answer.probabilities, expected, atol=1e-5)
    assert answer.explanations.tolist() == [3] * len(test)


def test_without_an_answer_the_cache_says_what_the_images_say(context, system):
    test = context.data.collection.rows("test")
    model = AnswerableIntCEM(system, context.shared_backbone, test)
    nobody = np.zeros((len(test), 3))
    expected = predict(system, context.data, test).probabilities
    np.testing.assert_allclose(model.ask(nobody), expected, atol=2e-2)  # cached features are float16
    np.testing.assert_allclose(model.likely, concept_logits(context.shared_backbone, test).sigmoid(), atol=1e-6)


def test_answers_set_what_the_embeddings_are_mixed_by(context, system):
    test = context.data.collection.rows("test")
    model = AnswerableIntCEM(system, context.shared_backbone, test)
    embedded: Embedded = model._embedded
    answers = np.tile([1, -1, 0], (len(test), 1))
    mixing = embedded.likely.clone()
    mixing[:, 0], mixing[:, 1] = 1, 0
    mixed = mixing[..., None] * embedded.positive + (1 - mixing[..., None]) * embedded.negative
    with torch.no_grad():
        expected = system.bottleneck.classify(mixed).softmax(-1)
    np.testing.assert_allclose(model.ask(answers), expected, atol=1e-6)
    worth = model.worth(answers)
    np.testing.assert_allclose(worth, np.tile([0, 0, 1], (len(test), 1)), atol=1e-6)
    open_ = model.worth(np.zeros_like(answers))
    assert (open_ > 0).all()
    np.testing.assert_allclose(open_.sum(1), 1, atol=1e-5)
    assert not model.worth(np.ones_like(answers)).any()


def test_readers_can_be_asked(context, system):
    collection = context.data.collection
    test = collection.rows("test")
    model = AnswerableIntCEM(system, context.shared_backbone, test)
    labels = collection.concept_labels()[test]
    findings = Findings(labels, [{} for _ in test], np.array([1, 2, 0]), 32)
    config = AnswerConfig(policies=("effect", "learned"), budget=2, errors=(0.0,))
    table, _ = answer_curves(model, collection, test, findings, config)
    assert set(table["policy"]) == {"effect", "learned"} and table["replies"].max() == 2
    predicted = model.ask(np.zeros((len(test), 3))).argmax(1)
    start = table[table["budget"] == 0]["macro_f1"]
    assert start.to_numpy() == pytest.approx(macro_f1(collection.truth()[test], predicted, 3))


def test_the_try_that_is_best_with_answers_on_val_is_kept(monkeypatch):
    """Areas are dictated; the third of four tries has the largest, and so has the fourth."""
    collection = make_collection()
    cache = make_cache(collection)
    torch.manual_seed(0)
    model = ConceptModel(NET, 1, 3)
    unread = type("Set", (), {"collection": collection})()
    own = ExperimentContext(unread, ConceptTrainingConfig(model=NET), SilentCallbacks(), TrainedBackbone(model, cache))
    tries = ((0.1, 0.1), (1.0, 0.1), (5.0, 0.1), (5.0, 0.2))
    monkeypatch.setattr(intcem, "TRIES", tries)
    made: list[tuple[IntCEMConfig, Bottleneck]] = []

    def untrained(train, val, classes, config, callbacks):
        assert (len(train.classes), len(val.classes)) == (40, 16)
        made.append((config, Bottleneck(3, cache.features.shape[1], classes)))
        return made[-1][1]

    areas = iter([[0.5, 0.6], [0.9, 0.1], [0.7, 0.8], [0.8, 0.7]])
    monkeypatch.setattr(intcem, "train_bottleneck", untrained)
    monkeypatch.setattr(intcem, "answered_f1", lambda bottleneck, studies, budget: next(areas))
    system = intcem.intcem(own)
    assert [(config.imitation, config.weight_decay) for config, _ in made] == list(tries)
    assert system.bottleneck is made[2][1]
