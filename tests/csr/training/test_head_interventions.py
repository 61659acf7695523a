"""A head that met a simulated reader while it was trained: what the reader says, and what the head makes of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from csr.data.records import BOX_COLUMNS, Collection
from csr.network.prototypes import PrototypeModel
from csr.network.reasoner import Reasoner
from csr.training.callbacks import SilentCallbacks
from csr.training.features import FeatureCache
from csr.training.head import HeadConfig, all_scores, class_logits, draw_answers, train_head

# the reader


def labels_of(studies: int = 8000) -> torch.Tensor:
    return torch.tensor(np.random.default_rng(0).choice([0.0, 1.0, np.nan], (studies, 4)), dtype=torch.float32)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("error", [0.0, 0.2, 1.0])
def test_a_reader_answers_about_a_share_of_the_images_and_is_wrong_in_a_share_of_the_answers(share, error):
    torch.manual_seed(0)
    labels = labels_of()
    answers = draw_answers(labels, share, error)
    known, asked = ~labels.isnan(), answers != 0
    assert set(answers.unique().tolist()) <= {-1.0, 0.0, 1.0}
    assert not asked[~known].any()
    assert float(asked[known].float().mean()) == pytest.approx(share / 2, abs=0.02)
    if share:
        wrong = (answers * (2 * labels - 1))[asked] == -1
        assert float(wrong.float().mean()) == pytest.approx(error, abs=0.03)


def test_some_images_are_answered_whole_and_some_hardly_at_all():
    """The chance is drawn anew for each image: the head meets one answer as it meets many."""
    torch.manual_seed(0)
    counts = (draw_answers(torch.ones(6000, 4), 1.0, 0.0) != 0).sum(1)
    np.testing.assert_allclose(torch.bincount(counts, minlength=5) / 6000, 0.2, atol=0.03)  # uniform over 0..4


def test_the_same_seed_draws_the_same_answers():
    drawn = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        drawn.append(draw_answers(labels_of(50), 0.5, 0.1))
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


# the head


def leaky(train: int = 400, test: int = 200) -> tuple[Collection, FeatureCache, PrototypeModel]:
    """Images whose class is concept a, which the model sees badly.

    What it takes for concept b tells the class of every training image, whether b is there or not: a shortcut, which
    leads astray on the test images. Nothing but an answer about a tells the class there.
    """
    rng = np.random.default_rng(0)
    total = train + test
    a, b = np.arange(total) % 2, rng.integers(0, 2, total)
    split = np.repeat(["train", "val", "test"], [train - 40, 40, test])
    told = np.where(split == "test", 1 - a, a)
    seen = np.stack([0.4 + 0.15 * a + rng.normal(0, 0.12, total), 0.3 + 0.3 * told + 0.02 * b], 1).clip(0.02, 0.95)
    features = np.zeros((total, 3, 2, 2))
    features[:, 2] = 1
    for k in range(2):
        features[:, :, k, k] = 0
        features[:, k, k, k], features[:, 2, k, k] = seen[:, k], np.sqrt(1 - seen[:, k] ** 2)
    table = pd.DataFrame({"study_id": [f"s{row}" for row in range(total)], "split": split, "part": split})
    table["label"], table["concept:a"], table["concept:b"] = (
        np.array(["no", "yes"])[a],
        a.astype(float),
        b.astype(float),
    )
    collection = Collection("leaky", ("a", "b"), ("no", "yes"), table, pd.DataFrame(columns=list(BOX_COLUMNS)))
    model = PrototypeModel(features=3, concepts=2, per_concept=1, width=3, blocks=0).eval()
    with torch.no_grad():
        model.projector.inlet.weight.copy_(torch.eye(3))
        model.projector.inlet.bias.zero_()
        model.prototypes.raw.copy_(torch.eye(3)[:2, None])
    return collection, FeatureCache(features.astype(np.float16), np.zeros((total, 2, 2, 2), np.float32)), model


STAGE3 = HeadConfig(epochs=20, batch_size=60, least_usage=0.0, interventions=0.0, reader_error=0.0)


def trained(config: HeadConfig) -> Reasoner:
    return train_head(*leaky(), config, SilentCallbacks())


@torch.no_grad()
def accuracy(reasoner: Reasoner, told: tuple[int, ...], split: str) -> float:
    """Once the truth about some concepts was told."""
    collection, cache, model = leaky()
    rows = collection.rows(split)
    labels = torch.from_numpy(collection.concept_labels()[rows])
    answers = torch.zeros_like(labels)
    answers[:, list(told)] = 2 * labels[:, list(told)] - 1
    scores = reasoner.answered(all_scores(reasoner, model, cache, rows), answers)
    return float((class_logits(reasoner, scores).argmax(1).numpy() == collection.truth()[rows]).mean())


def test_a_head_that_met_answers_makes_more_of_them():
    plain, met = trained(STAGE3), trained(replace(STAGE3, interventions=1.0))
    assert (
        accuracy(plain, (), "val") == 1 and accuracy(met, (), "val") > 0.9
    )  # where the shortcut holds, both are right
    assert accuracy(plain, (), "test") == accuracy(plain, (0,), "test") < 0.1  # and the answer cannot change its mind
    assert accuracy(met, (0,), "test") > 0.5
    assert accuracy(met, (0, 1), "test") > accuracy(plain, (0, 1), "test") + 0.1
    assert accuracy(met, (0, 1), "val") > accuracy(plain, (0, 1), "val") + 0.1


def test_a_reader_who_errs_more_is_believed_less():
    readers = ((1.0, 0.0), (1.0, 0.4), (0.0, 0.0))  # the last says nothing
    heads = (trained(replace(STAGE3, interventions=share, reader_error=error)) for share, error in readers)
    first, second, third = (head.head.weight[1, 0] - head.head.weight[0, 0] for head in heads)
    assert first > 1.2 * second and second > third > 0


def test_without_interventions_the_readers_error_says_nothing():
    first, second = (trained(replace(STAGE3, epochs=2, reader_error=error)) for error in (0.0, 0.9))
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


def test_statistics_and_prototypes_do_not_depend_on_the_reader():
    first, second = (trained(replace(STAGE3, epochs=2, interventions=share)) for share in (0.0, 1.0))
    moved = {name for name, value in first.state_dict().items() if not torch.equal(value, second.state_dict()[name])}
    assert moved == {"head.weight", "head.bias"}
