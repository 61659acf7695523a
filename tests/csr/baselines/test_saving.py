"""Every compared system comes back from its file as it was, pruned parts and all."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from csr.baselines import scbm as scbm_bottleneck
from csr.baselines.black_box import BlackBox
from csr.baselines.cbm import CBM
from csr.baselines.intcem import Bottleneck, IntCEM
from csr.baselines.pipnet import PIPNet
from csr.baselines.posthoc_cbm import PosthocCBM
from csr.baselines.protocol import System, load_system, save_system
from csr.baselines.protopnet import ProtoPNet
from csr.baselines.protopool import ProtoPool
from csr.baselines.prototree import ProtoTree
from csr.baselines.scbm import SCBM, Covariance
from csr.comparison.csr_system import CSRSystem, Recipe
from csr.comparison.systems import systems
from csr.errors import DataError
from csr.network.backbone import Backbone, BackboneConfig
from csr.network.concept_model import ConceptModel, ConceptModelConfig
from csr.network.prototypes import PrototypeModel
from csr.network.trained import TrainedCSR
from tests.csr.synthetic import CLASSES, CONCEPTS, make_reasoner


def backbone() -> Backbone:
    made = Backbone(BackboneConfig("test_resnet", stride=8, context=None), 1)
    made.map_shift = (1, -2)
    return made


def concept_model(maps: int = 3) -> ConceptModel:
    return ConceptModel(ConceptModelConfig("test_resnet", stride=8, context=None), 1, maps)


def csr() -> CSRSystem:
    stage1 = concept_model()
    stage2 = PrototypeModel(stage1.backbone.width, 3, 4, 5, 1)
    return CSRSystem(TrainedCSR(stage1, stage2, make_reasoner(0, clip=True, pruned=2), CONCEPTS, CLASSES))


def posthoc(residual: bool) -> PosthocCBM:
    body = backbone()
    extra = nn.Linear(body.width, 3) if residual else None
    return PosthocCBM(body, torch.randn(3, body.width), torch.randn(3), nn.Linear(3, 3), extra)


def intcem() -> IntCEM:
    stage1 = concept_model()
    bottleneck = Bottleneck(3, stage1.backbone.width, 3)
    bottleneck.mean.normal_()
    bottleneck.std.uniform_(0.5, 2)
    return IntCEM(stage1, bottleneck)


def scbm(covariance: Covariance) -> SCBM:
    stage1 = concept_model()
    bottleneck = scbm_bottleneck.Bottleneck(3, stage1.backbone.width, 3, covariance, False)
    bottleneck.mean.normal_()
    bottleneck.std.uniform_(0.5, 2)
    return SCBM(stage1, bottleneck)


def pruned_protopnet() -> ProtoPNet:
    system = ProtoPNet(backbone(), 3, 3)
    system.keep(torch.arange(system.prototypes) % 3 > 0)
    return system


def pruned_prototree() -> ProtoTree:
    system = ProtoTree(backbone(), 3, 3, depth=3)
    system.leaves[:, 0] = 1.0
    system.leaves[:3] = torch.eye(3) * 5
    system.prune()
    return system


def marked_pool() -> ProtoPool:
    system = ProtoPool(backbone(), 3, 3, pool=8, slots=2, depth=6)
    system.prototypes = 5
    return system


MAKERS: list[Callable[[], System]] = [
    csr,
    lambda: CBM(concept_model(), 3),
    lambda: CBM(concept_model(), 3, "probabilities"),
    intcem,
    lambda: scbm("amortised"),
    lambda: scbm("global"),
    lambda: BlackBox(concept_model(), 3),
    lambda: posthoc(False),
    lambda: posthoc(True),
    pruned_protopnet,
    marked_pool,
    pruned_prototree,
    lambda: PIPNet(backbone(), 3, 3),
]


@pytest.mark.parametrize("make", MAKERS)
def test_a_saved_system_answers_as_before(make, tmp_path):
    torch.manual_seed(0)
    system = make().eval()
    save_system(system, tmp_path / "system.pt")
    again = load_system(type(system), tmp_path / "system.pt")
    images = torch.randint(0, 256, (2, 1, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        before, after = system.answer(images), again.answer(images)
    for name in ("probabilities", "concepts", "maps", "explanations"):
        first, second = getattr(before, name), getattr(after, name)
        assert (first is None) == (second is None)
        assert first is None or torch.equal(first, second), name
    assert again.prototypes == system.prototypes
    assert not again.training


def test_every_compared_system_is_of_a_class_that_is_tried_here():
    assert {entry.kind for entry in systems({"robust": Recipe(), "paper": Recipe()}).values()} == {
        type(make()) for make in MAKERS
    }


def test_what_is_no_compared_system_is_refused(tmp_path):
    csr().csr.save(tmp_path / "csr.pt")
    with pytest.raises(DataError, match="holds a trained CSR, not a compared system"):
        load_system(CSRSystem, tmp_path / "csr.pt")
