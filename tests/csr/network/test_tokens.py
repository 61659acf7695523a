"""Networks of tokens as backbones: their last block, at any side that their patch divides."""

from __future__ import annotations

import pytest
import timm
import torch

from csr.errors import ConfigError
from csr.network.backbone import Backbone, BackboneConfig
from csr.network.concept_model import ConceptModel, ConceptModelConfig
from csr.training.fine_tuning import hold

# with a class token, with one and registers, with an attention pool, with rotary positions and registers
NETWORKS = ("test_vit", "test_vit2", "test_vit3", "test_vit4")


def make_backbone(name: str, stride: int = 16) -> Backbone:
    torch.manual_seed(3)
    return Backbone(BackboneConfig(name, stride=stride, context=None), 1).eval()


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("side", [96, 160, 208])
def test_features_are_the_spatial_tokens_that_the_network_concludes_from(name, side):
    backbone = make_backbone(name)
    images = torch.randint(0, 255, (2, 1, side, side), dtype=torch.uint8)
    whole = timm.create_model(name, in_chans=1, dynamic_img_size=True).eval()
    whole.load_state_dict(backbone.body.model.state_dict(), strict=False)
    with torch.no_grad():
        tokens = whole.forward_features(backbone.normalise(images))[:, whole.num_prefix_tokens :]
        found = backbone(images)
    cells = side // 16
    assert found.shape == (2, backbone.width, cells, cells)
    torch.testing.assert_close(found, tokens.transpose(1, 2).reshape(found.shape), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_cell_looks_at_its_patch(name):
    backbone = make_backbone(name)
    assert backbone.cell_offset == (0,)
    plain = torch.randint(0, 255, (1, 1, 96, 96), dtype=torch.uint8)
    dotted = plain.clone()
    dotted[..., 32:48, 64:80] = 255
    with torch.no_grad():
        change = (backbone(dotted) - backbone(plain)).square().sum((0, 1))
    assert divmod(int(change.argmax()), 6) == (2, 4)


def test_nothing_behind_the_last_block_is_kept():
    for name in NETWORKS:
        names = {key.split(".")[1] for key in make_backbone(name).body.state_dict()}
        assert not {"head", "attn_pool", "fc_norm"} & names and "blocks" in names


def test_a_side_that_the_patch_does_not_divide_is_refused():
    with pytest.raises(ConfigError, match=r"data\.side: 100×100 is not a multiple of the deepest stride 16$"):
        make_backbone("test_vit")(torch.zeros(1, 1, 100, 100, dtype=torch.uint8))


def test_a_patch_of_14_is_a_stride_like_any_other():
    backbone = make_backbone("eva02_tiny_patch14_224", 14)
    assert backbone(torch.zeros(1, 1, 98, 98, dtype=torch.uint8)).shape == (1, 192, 7, 7)
    with pytest.raises(ConfigError, match=r"is its patch of 14 pixels, got 16; set it to 14 and .*context to null"):
        make_backbone("eva02_tiny_patch14_224")


def test_a_network_of_one_side_says_so():
    backbone = make_backbone("mixer_s32_224", 32)
    assert backbone(torch.zeros(1, 1, 224, 224, dtype=torch.uint8)).shape == (1, 512, 7, 7)
    with pytest.raises(ConfigError, match=r"data\.side: mixer_s32_224 takes images of 224×224 only, got 192×192"):
        backbone(torch.zeros(1, 1, 192, 192, dtype=torch.uint8))


def test_levels_whose_channels_come_last_are_turned():
    backbone = make_backbone("swin_tiny_patch4_window7_224", 8)
    assert backbone(torch.zeros(1, 1, 96, 96, dtype=torch.uint8)).shape == (1, backbone.width, 12, 12)


def test_weights_of_tokens_can_be_held_and_learn_everywhere():
    model = ConceptModel(ConceptModelConfig("test_vit", stride=16, context=None), 1, 2).train()
    hold(model, True)
    assert {name for name, value in model.named_parameters() if value.requires_grad} == {"to_maps.weight"}
    hold(model, False)
    model(torch.randint(0, 255, (2, 1, 96, 96), dtype=torch.uint8))[1].sum().backward()
    assert all(value.grad is not None for value in model.parameters())
