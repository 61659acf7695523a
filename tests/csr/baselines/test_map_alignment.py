"""Every rival whose maps are of prototypes is moved by what its own maps are beside, measured by class labels alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from csr.baselines import pipnet, protopnet, protopool, prototree
from csr.baselines.cbm import CBM
from csr.baselines.map_alignment import align_answers
from csr.baselines.pipnet import PIPNet
from csr.baselines.protocol import ExperimentContext, System, TrainedBackbone
from csr.baselines.protopnet import ProtoPNet
from csr.baselines.protopool import ProtoPool
from csr.baselines.prototree import ProtoTree
from csr.data.prepared import PreparedSet
from csr.data.records import Collection
from csr.network.backbone import Backbone, BackboneConfig
from csr.network.concept_model import ConceptModel, ConceptModelConfig
from csr.training import alignment
from csr.training.callbacks import SilentCallbacks
from tests.csr.baselines.test_protopnet import CONFIG, make_spots
from tests.csr.training.test_alignment import LABELS, SIDE, STRIDE, Squinting
from tests.csr.training.test_alignment import data as spots  # noqa: F401

OFF = (5, -6)


def squinting_backbone() -> Backbone:
    """One feature, near 1 where a cell sees the bright square and near 0 elsewhere."""
    backbone = Backbone(BackboneConfig("test_resnet", stride=STRIDE, context=None), channels=1)
    backbone.body, backbone.cell_offset, backbone.width = Squinting(OFF), (0,), 1
    return backbone


class Both(nn.Module):
    """A feature and its opposite, so that a softmax has something to choose from."""

    width = 2

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        feature = self.backbone(images)
        return torch.cat([feature, -feature], 1)

    @property
    def map_shift(self) -> tuple[int, int]:
        return self.backbone.map_shift

    @map_shift.setter
    def map_shift(self, shift: tuple[int, int]) -> None:
        self.backbone.map_shift = shift


def protopnet_at(backbone: Backbone) -> ProtoPNet:
    system = ProtoPNet(backbone, classes=1, concepts=2)
    system.add_on = nn.Identity()
    system.prototype_vectors = nn.Parameter(torch.linspace(1, 2, 10)[:, None])
    return system


def protopool_at(backbone: Backbone) -> ProtoPool:
    system = ProtoPool(backbone, classes=1, concepts=2, pool=3, slots=2, depth=1)
    system.add_on = nn.Identity()
    system.pool.data = torch.tensor([[1.0], [1.1], [1.2]])
    return system


def prototree_at(backbone: Backbone) -> ProtoTree:
    system = ProtoTree(backbone, classes=1, concepts=2, depth=1)
    system.add_on = nn.Identity()
    system.prototype_vectors = nn.Parameter(torch.tensor([[1.2]]))
    return system


def pipnet_at(backbone: Backbone) -> PIPNet:
    system = PIPNet(Both(backbone), classes=1, concepts=2)  # type: ignore[arg-type]
    system.head.weight.data = torch.tensor([[1.0, 0.0]])
    return system


MAKERS: list[Callable[[Backbone], System]] = [protopnet_at, protopool_at, prototree_at, pipnet_at]


def context_of(data: PreparedSet) -> ExperimentContext:
    return ExperimentContext(data, CONFIG, SilentCallbacks())


@pytest.mark.parametrize("make", MAKERS)
def test_the_shift_of_a_rivals_maps_is_what_was_planted(spots, make):  # noqa: F811
    backbone = squinting_backbone()
    backbone.map_shift = (9, 9)  # of the backbone that it started from
    system = make(backbone)
    data = without_concepts(spots)
    align_answers(system, backbone, context_of(data))
    assert backbone.map_shift == OFF
    assert not system.training

    images = torch.from_numpy(data.images)
    with torch.no_grad():
        peaks = system.answer(images).maps[:, 1].flatten(1).argmax(1).numpy()
    cells = np.stack([peaks // (SIDE // 8), peaks % (SIDE // 8)], 1) * STRIDE + STRIDE / 2
    bright = np.array([np.argwhere(image[0] > 150).mean(0) + 0.5 for image in data.images])  # y, x
    assert np.abs(cells - bright).max() <= STRIDE


def without_concepts(data: PreparedSet) -> PreparedSet:
    """The same images of one class, of which no concept is known and which have no boxes."""
    studies = data.collection.studies.assign(label="any", study_id=[f"s{row}" for row in range(len(LABELS))])
    studies["concept:spot"] = np.nan
    return PreparedSet(Collection("spots", ("spot",), ("any",), studies, data.collection.boxes), data.images, data.path)


def joint_cbm_at(backbone: Backbone) -> System:
    return CBM(ConceptModel(backbone.config, 1, 2), 3, joint=True)


def bare_pipnet_at(backbone: Backbone) -> System:
    return PIPNet(backbone, classes=3, concepts=2)


def bare_prototree_at(backbone: Backbone) -> System:
    system = ProtoTree(backbone, classes=3, concepts=2)
    system.leaves.copy_(torch.rand_like(system.leaves))
    return system


@pytest.mark.parametrize("make", [joint_cbm_at, bare_pipnet_at, bare_prototree_at])
def test_a_head_that_learned_from_images_in_their_place_answers_for_them_and_maps_are_moved(make):
    torch.manual_seed(0)
    system = make(Backbone(ConceptModelConfig("test_convnext", stride=8, context=None), channels=1)).eval()
    backbone = next(each for each in system.modules() if isinstance(each, Backbone))
    images = torch.randint(0, 255, (6, 1, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        before = system.answer(images)
        backbone.map_shift = (8, -8)
        after = system.answer(images)
    assert backbone.map_shift == (8, -8)
    torch.testing.assert_close(after.probabilities, before.probabilities)
    if before.concepts is not None:
        torch.testing.assert_close(after.concepts, before.concepts)
    torch.testing.assert_close(after.explanations, before.explanations)
    assert not torch.allclose(after.maps, before.maps)


def test_who_starts_from_a_black_box_sees_images_in_their_place(tmp_path):
    shared = ConceptModel(CONFIG.model, 1, 3)
    shared.backbone.map_shift = (4, 2)
    context = context_of(make_spots(tmp_path / "prepared"))
    backbone = replace(context, shared_backbone=TrainedBackbone(shared, None)).build_backbone()
    assert backbone.map_shift == (0, 0) and shared.backbone.map_shift == (4, 2)


@pytest.mark.parametrize("module", [protopnet, protopool, prototree, pipnet])
def test_training_ends_with_the_shift_that_is_measured_on_its_own_maps(tmp_path, monkeypatch, module):
    name = module.__name__.rpartition(".")[2]
    for each in (protopnet, module):
        monkeypatch.setattr(each, "train_on_images", lambda *phase, **others: None)
    monkeypatch.setattr(protopnet, "TUNING_STEPS", 1)
    monkeypatch.setattr(alignment, "measure_map_shift", lambda maps_of, data, labels: (3, -2))
    shared = ConceptModel(CONFIG.model, 1, 3)
    shared.backbone.map_shift = (1, 1)
    context = context_of(make_spots(tmp_path / "prepared"))
    system = module.SYSTEMS[name].train(replace(context, shared_backbone=TrainedBackbone(shared, None)))
    assert system.backbone.map_shift == (3, -2)
    assert shared.backbone.map_shift == (1, 1)
