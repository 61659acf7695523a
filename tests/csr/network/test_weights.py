"""Files of pretrained weights: however wrapped they are read, and what is not all there is refused."""

from __future__ import annotations

import argparse
import json
import warnings
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from csr.errors import ConfigError
from csr.network.backbone import Backbone, BackboneConfig
from csr.network.concept_model import ConceptModel, ConceptModelConfig
from csr.network.rebuild import backbone_config, build_backbone
from csr.network.weights import Preprocessing

NAME = "test_resnet"


def network(name: str = NAME, channels: int = 3, seed: int = 5, **settings) -> torch.nn.Module:
    """A timm network whose every tensor, running statistics too, is random."""
    generator = torch.Generator().manual_seed(seed)
    made = timm.create_model(name, in_chans=channels, **settings).eval()
    for value in made.state_dict().values():
        if value.is_floating_point():
            value.copy_(torch.rand(value.shape, generator=generator) * 0.2 + (0.4 if value.ndim == 1 else -0.1))
    return made


def config(file: Path, name: str = NAME, **changes) -> BackboneConfig:
    return BackboneConfig(name, checkpoint=str(file), **({"stride": 8, "context": None} | changes))


def loaded(file: Path, channels: int = 3, **changes) -> dict[str, Tensor]:
    return Backbone(config(file, **changes), channels).body.state_dict()


def require_loaded(found: dict[str, Tensor], weights: dict[str, Tensor]) -> None:
    names = [name for name in found if not name.endswith("num_batches_tracked")]
    assert names
    for name in names:
        assert torch.equal(found[name], weights[name]), name


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return network().state_dict()


def wrapped(weights: dict[str, Tensor], kind: str):
    under = {f"{kind}{name}": value for name, value in weights.items()} if kind.endswith(".") else weights
    return {
        "ddp": {"state_dict": {f"module.{name}": value for name, value in weights.items()}, "epoch": 3},
        "dino": {
            "student": {"module.backbone." + name: 0 * value for name, value in weights.items()},
            "teacher": {"backbone." + name: value for name, value in weights.items()}
            | {"head.mlp.0.weight": torch.zeros(2)},
        },
        "nested": {"model_state": {"model": {f"encoder.{name}": value for name, value in weights.items()}}},
        "ema": {"state_dict": {name: 0 * value for name, value in weights.items()}, "state_dict_ema": weights},
        "options": {"model": weights, "args": argparse.Namespace(lr=0.1)},
    }.get(kind, under)


@pytest.mark.filterwarnings("ignore:concepts.model.checkpoint")
@pytest.mark.parametrize(
    "kind",
    [
        "",
        "module.",
        "backbone.",
        "model.",
        "encoder.",
        "module.encoder.base.",
        "ddp",
        "dino",
        "nested",
        "ema",
        "options",
    ],
)
def test_weights_are_found_in_any_wrapper_and_under_any_prefix(weights, tmp_path, kind):
    torch.save(wrapped(weights, kind), tmp_path / "weights.pth")
    require_loaded(loaded(tmp_path / "weights.pth"), weights)


def test_a_safetensors_file_is_read_whatever_it_is_called(weights, tmp_path):
    save_file(weights, tmp_path / "weights.bin")
    require_loaded(loaded(tmp_path / "weights.bin"), weights)


@pytest.mark.filterwarnings("ignore:concepts.model.checkpoint")
@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "regnetx_002"])
def test_stage_1_of_another_run_is_a_file_of_weights_too(tmp_path, name):
    torch.manual_seed(1)
    model = ConceptModel(ConceptModelConfig(name, stride=8, context=16, width=8), 1, 4)
    torch.save({"format": 1, "weights": model.state_dict()}, tmp_path / "stage1.pt")
    found = Backbone(BackboneConfig(name, checkpoint=str(tmp_path / "stage1.pt"), context=None), 1)
    shallow = {key: value for key, value in model.backbone.body.state_dict().items() if key in found.body.state_dict()}
    require_loaded(found.body.state_dict(), shallow)


@pytest.mark.parametrize("classes", [0, 7])
def test_another_head_is_ignored_without_a_word(tmp_path, classes):
    other = network(num_classes=classes).state_dict()
    torch.save(other, tmp_path / "weights.pth")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        require_loaded(loaded(tmp_path / "weights.pth"), other)


def test_what_is_left_aside_is_counted_and_named(weights, tmp_path):
    strange = {f"rest.{number}": torch.zeros(1) for number in range(5)}
    torch.save(weights | strange, tmp_path / "weights.pth")
    sentence = r"all \d+ tensors of test_resnet; 5 .* are left aside: rest\.0, rest\.1, rest\.2, …"
    with pytest.warns(UserWarning, match=sentence):
        loaded(tmp_path / "weights.pth")


@pytest.mark.parametrize(("given", "wanted"), [(3, 1), (1, 3), (3, 3), (1, 1)])
def test_image_channels_are_converted_such_that_a_grey_image_gives_the_same(tmp_path, given, wanted):
    """A grey image seen by summed filters is the same image seen thrice, and the other way round."""
    torch.manual_seed(0)
    source = timm.create_model(NAME, in_chans=given, features_only=True, out_indices=(2,)).eval()
    torch.save(timm.create_model(NAME, in_chans=given).state_dict() | source.state_dict(), tmp_path / "weights.pth")
    body = Backbone(config(tmp_path / "weights.pth"), wanted).body.eval()
    grey = torch.rand(1, 1, 64, 64)
    with torch.no_grad():
        expected = source(grey.expand(1, given, 64, 64))[0]
        torch.testing.assert_close(body(grey.expand(1, wanted, 64, 64))[0], expected, atol=1e-4, rtol=1e-4)


def test_position_embeddings_of_another_side_are_resampled(tmp_path):
    torch.save(network("test_vit", img_size=96).state_dict(), tmp_path / "weights.pth")
    backbone = Backbone(config(tmp_path / "weights.pth", "test_vit", stride=16), 3)
    assert backbone.body.model.pos_embed.shape == timm.create_model("test_vit").pos_embed.shape
    assert 0 < float(backbone.body.model.pos_embed.detach().std()) < 0.1 / 3**0.5  # smoother than what it was made of


# refusals


def test_an_unconverted_file_is_refused_with_the_count_and_the_first_that_are_missing(weights, tmp_path):
    torch.save({f"_net_{number}": value for number, value in enumerate(weights.values())}, tmp_path / "other.pth")
    sentence = (
        r"^concepts\.model\.checkpoint: .*other\.pth lacks (\d+) of the \1 tensors of test_resnet: conv1\.\S+, \S+, "
        r"\S+, …; \d+ that test_resnet has not are left aside: _net_0, _net_1, _net_2, …$"
    )
    with pytest.raises(ConfigError, match=sentence):
        loaded(tmp_path / "other.pth")


def test_one_missing_tensor_is_enough_and_so_is_one_of_another_shape(weights, tmp_path):
    torch.save({name: value for name, value in weights.items() if name != "layer1.0.conv1.weight"}, tmp_path / "a.pth")
    with pytest.raises(
        ConfigError, match=r"a\.pth lacks 1 of the \d+ tensors of test_resnet: layer1\.0\.conv1\.weight$"
    ):
        loaded(tmp_path / "a.pth")
    torch.save(weights | {"layer1.0.bn1.bias": torch.zeros(3)}, tmp_path / "b.pth")
    shape = weights["layer1.0.bn1.bias"].numel()
    with pytest.raises(ConfigError, match=rf"lacks 1 of .*: layer1\.0\.bn1\.bias \(3 instead of {shape}\)$"):
        loaded(tmp_path / "b.pth")


def test_deeper_levels_that_nobody_reads_may_be_missing(weights, tmp_path):
    torch.save({name: value for name, value in weights.items() if not name.startswith("layer4")}, tmp_path / "a.pth")
    require_loaded(loaded(tmp_path / "a.pth"), weights)


def test_a_file_that_says_whose_it_is_is_given_to_no_other(weights, tmp_path):
    save_file(weights, tmp_path / "a.safetensors", {"timm": "test_resnet_like"})
    with pytest.raises(
        ConfigError, match=r"holds weights of test_resnet_like, not of test_resnet: set concepts\.model"
    ):
        loaded(tmp_path / "a.safetensors")


@pytest.mark.parametrize("content", [b"", b"not weights", b"\x80\x04."])
def test_a_file_of_something_else_is_refused(tmp_path, content):
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(
        ConfigError, match=r"^concepts\.model\.checkpoint: .*a\.pth is no file of plain weights; give a"
    ):
        loaded(tmp_path / "a.pth")


@pytest.mark.parametrize(
    ("content", "words"),
    [({"epoch": 3, "loss": 0.5}, "the keys epoch, loss"), ([1, 2], "list"), ({}, "the keys ")],
)
def test_a_file_without_tensors_is_refused_with_what_it_holds(tmp_path, content, words):
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(ConfigError, match=rf"a\.pth holds no tensors by name but {words}"):
        loaded(tmp_path / "a.pth")


def test_pickled_objects_are_not_run(tmp_path):
    torch.save(network(), tmp_path / "a.pth")
    with pytest.raises(ConfigError, match="is no file of plain weights"):
        loaded(tmp_path / "a.pth")


def test_weights_of_the_hub_that_cannot_be_had_are_one_sentence(monkeypatch):
    def unreachable(*given, **named):
        raise huggingface_hub.errors.LocalEntryNotFoundError("An error happened while trying to locate the file.")

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", unreachable)
    with pytest.raises(
        ConfigError, match=r"concepts\.model\.pretrained: timm's weights of regnetx_002 cannot be had \(An"
    ):
        Backbone(BackboneConfig(pretrained=True), 1)
    with pytest.raises(ConfigError, match=r"efficientnet_lite1 cannot be had \(No pretrained weights exist"):
        Backbone(BackboneConfig("efficientnet_lite1", pretrained=True), 1)


def test_weights_of_the_hub_bring_their_preprocessing(monkeypatch):
    weights = network("regnetx_002").state_dict()
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", lambda *given, **named: dict(weights))
    backbone = Backbone(BackboneConfig("regnetx_002", pretrained=True), 3)
    require_loaded(backbone.body.state_dict(), weights)
    assert backbone.normalised
    np.testing.assert_allclose(backbone.mean, [0.485, 0.456, 0.406])
    np.testing.assert_allclose(backbone.std, [0.229, 0.224, 0.225])


def test_two_sources_of_weights_are_one_too_many(weights, tmp_path):
    torch.save(weights, tmp_path / "a.pth")
    with pytest.raises(
        ConfigError, match=r"concepts\.model\.checkpoint: set it to null, or concepts\.model\.pretrained"
    ):
        loaded(tmp_path / "a.pth", pretrained=True)


# preprocessing


def test_from_scratch_nothing_is_known_of_preprocessing():
    backbone = Backbone(BackboneConfig(NAME, context=None), 3)
    assert not backbone.normalised and backbone.mean.tolist() == [0, 0, 0] and backbone.std.tolist() == [1, 1, 1]


def test_preprocessing_is_the_files_else_timms_unless_told_otherwise(weights, tmp_path):
    torch.save(weights, tmp_path / "plain.pth")
    notes = {"mean": json.dumps([0.1, 0.2, 0.3]), "std": json.dumps([0.4, 0.5, 0.6])}
    save_file(weights, tmp_path / "own.safetensors", notes)
    known = timm.get_pretrained_cfg(NAME)
    own = Backbone(config(tmp_path / "own.safetensors"), 3)
    plain = Backbone(config(tmp_path / "plain.pth"), 3)
    assert own.normalised and plain.normalised
    np.testing.assert_allclose([*own.mean, *own.std], [0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    np.testing.assert_allclose([*plain.mean, *plain.std], [*known.mean, *known.std])
    told = Backbone(config(tmp_path / "own.safetensors", normalisation=Preprocessing((0.7,), (0.2,))), 3)
    assert told.normalised
    np.testing.assert_allclose([*told.mean, *told.std], [0.7, 0.7, 0.7, 0.2, 0.2, 0.2])
    assert not Backbone(config(tmp_path / "own.safetensors", normalisation="images"), 3).normalised
    grey = Backbone(config(tmp_path / "own.safetensors"), 1)
    np.testing.assert_allclose([*grey.mean, *grey.std], [0.2, 0.5])


def test_a_rebuilt_backbone_has_the_preprocessing_and_asks_for_no_file(weights, tmp_path):
    torch.save(weights, tmp_path / "a.pth")
    first = Backbone(config(tmp_path / "a.pth", normalisation=Preprocessing((0.7,), (0.2,))), 3)
    (tmp_path / "a.pth").unlink()
    again = build_backbone(json.loads(json.dumps(backbone_config(first))))
    again.load_state_dict(first.state_dict())
    assert torch.equal(again.mean, first.mean) and torch.equal(again.std, first.std)


def test_preprocessing_that_cannot_be_is_refused():
    for mean, std in (((), ()), ((0.5,), (0.5, 0.5)), ((0.5,), (0.0,))):
        with pytest.raises(ValueError, match=r"concepts\.model\.normalisation: mean and std"):
            Preprocessing(mean, std)
    with pytest.raises(ConfigError, match=r"has numbers for 2 channels, but data\.channels is 3"):
        Preprocessing((0.5, 0.5), (0.2, 0.2)).of(3)
