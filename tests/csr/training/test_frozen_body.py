"""A frozen body remembers pictures: less is computed, the same is learned, nothing is left behind."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch

from csr.network.concept_model import ConceptModel, ConceptModelConfig
from csr.training import concepts, frozen_body
from csr.training.augmentation import AugmentConfig
from csr.training.callbacks import SilentCallbacks
from csr.training.concepts import ConceptTrainingConfig, train_concepts
from csr.training.fine_tuning import hold
from csr.training.frozen_body import remembered
from tests.csr.synthetic import make_collection, make_prepared

NET = ConceptModelConfig("test_resnet", stride=8, context=16, width=16)
MIRRORED = AugmentConfig(rotate=0, shift=0, scale=0, brightness=0, contrast=0, flip=True)


@pytest.fixture
def model() -> ConceptModel:
    torch.manual_seed(0)
    made = ConceptModel(NET, 1, 3).eval()
    hold(made, True)
    return made


@pytest.fixture
def computed(model: ConceptModel) -> list[int]:
    """How many images the body computes at a time."""
    counts: list[int] = []
    first = next(iter(model.backbone.body.children()))
    first.register_forward_pre_hook(lambda module, given: counts.append(len(given[0])))
    return counts


def pictures(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (count, 1, 64, 64), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def test_known_pictures_are_not_computed_again_and_look_the_same(model: ConceptModel, computed: list[int]) -> None:
    images, others = pictures(6), pictures(2, seed=1)
    plain = model.features(images)
    del computed[:]
    with remembered(model, "all"):
        torch.testing.assert_close(model.features(images[:4]), plain[:4])
        mixed = torch.cat([images[2:], others])  # two known, two of them new, two others
        torch.testing.assert_close(model.features(mixed)[:4], plain[2:])
        assert computed == [4, 4]
        model.features(mixed.flip(0))
        assert computed == [4, 4]
    assert "forward" not in vars(model.backbone.body)


def test_what_learns_and_what_is_differentiated_is_computed(model: ConceptModel, computed: list[int]) -> None:
    images = pictures(3)
    with remembered(model, "all"):
        model.features(images)
        pixels = images.float().requires_grad_(True)
        model.features(pixels).sum().backward()
        assert pixels.grad is not None and pixels.grad.abs().sum() > 0
        hold(model, False)
        model.features(images)
        hold(model, True)
        model.backbone.body.train()
        model.features(images)
    assert computed == [3, 3, 3, 3]
    with remembered(model, 2):
        assert "forward" not in vars(model.backbone.body)


def test_no_more_is_remembered_than_there_is_room_for(
    model: ConceptModel, computed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    images = pictures(4)
    made: list[list[torch.Tensor]] = []
    hook = model.backbone.body.register_forward_hook(lambda module, given, levels: made.append(levels))
    model.features(images)
    hook.remove()
    size = sum(level[0].numel() * 4 for level in made[0])
    del computed[:]
    monkeypatch.setattr(frozen_body, "LIMIT", 3 * size)
    with remembered(model, "all"):
        model.features(images)
        model.features(images)
    assert computed == [4, 1]


@pytest.mark.parametrize("hidden", [0.0, 0.5])
def test_stage_1_learns_the_same_and_computes_each_picture_once(
    tmp_path, monkeypatch: pytest.MonkeyPatch, model: ConceptModel, hidden: float
) -> None:
    collection = make_collection()
    rows = np.flatnonzero(np.random.default_rng(0).random(len(collection.studies)) < hidden)
    collection.studies.loc[rows, f"concept:{collection.concepts[0]}"] = np.nan
    data = make_prepared(tmp_path / "prepared", collection)
    torch.manual_seed(7)
    torch.save(timm.create_model("test_resnet", num_classes=0, in_chans=1).state_dict(), tmp_path / "body.pth")
    net = replace(NET, checkpoint=str(tmp_path / "body.pth"))
    config = ConceptTrainingConfig(
        net, MIRRORED, epochs=3, batch_size=8, learning_rate=0.01, freeze="all", precision="float32"
    )
    computed, body = Counter[str](), type(model.backbone.body)
    compute = body.forward

    def counted(self, images: torch.Tensor) -> list[torch.Tensor]:
        computed[phase] += len(images)
        return compute(self, images)

    monkeypatch.setattr(body, "forward", counted)
    phase = "remembered"
    after = train_concepts(data, config, SilentCallbacks()).state_dict()
    with monkeypatch.context() as patch:
        patch.setattr(concepts, "remembered", lambda model, freeze: remembered(model, 0))
        phase = "plain"
        plain = train_concepts(data, config, SilentCallbacks()).state_dict()
    for name, value in plain.items():
        torch.testing.assert_close(after[name], value, rtol=1e-3, atol=1e-4, msg=name)
    # Of three epochs: training images as they are and mirrored, validation images, and the teacher's looks.
    train, val, epochs = 40, 16, 3
    looked = epochs * (train + val) + (epochs - 1) * train * (hidden > 0)
    once = 2 * train + val + train * (hidden > 0)
    assert computed["remembered"] <= computed["plain"] - looked + once
