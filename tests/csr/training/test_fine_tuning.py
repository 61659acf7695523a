"""Pretrained weights: which learn how fast, which decay, and which stay."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from torch import nn

from csr.errors import ConfigError
from csr.network.concept_model import ConceptModel, ConceptModelConfig
from csr.network.rebuild import concept_model_checkpoint
from csr.training.callbacks import SilentCallbacks
from csr.training.concepts import ConceptTrainingConfig, train_concepts
from csr.training.fine_tuning import fine_tuned, hold, learning_rates, spared_of_decay
from csr.training.loop import Task, fit
from tests.csr.synthetic import make_collection, make_prepared

NET = ConceptModelConfig("test_resnet", stride=8, context=16, width=16)
CONFIG = ConceptTrainingConfig(model=NET, epochs=3, batch_size=8, precision="float32")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_prepared(tmp_path_factory.mktemp("data") / "prepared", make_collection())


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory) -> ConceptTrainingConfig:
    """A configuration whose backbone's weights come from a file."""
    file = tmp_path_factory.mktemp("weights") / "body.pth"
    torch.manual_seed(7)
    weights = timm.create_model("test_resnet", num_classes=0, in_chans=1).state_dict()
    for name, value in weights.items():
        if name.endswith("running_var"):
            value.mul_(1.5)
    torch.save(weights, file)
    return replace(CONFIG, model=replace(NET, checkpoint=str(file)))


# rates


@pytest.mark.parametrize("backbone", ["test_resnet", "test_convnext", "test_efficientnet", "regnetx_002", "test_vit"])
def test_layers_learn_the_slower_the_nearer_they_are_to_the_image(backbone):
    """timm rewrites, joins or wraps the names of a network whose features it extracts; none may be missed."""
    vit = backbone == "test_vit"
    net = ConceptModelConfig(backbone, stride=16 if vit else 8, context=None if vit else 16, width=16)
    model = ConceptModel(net, 1, 2)
    rates = learning_rates(model, replace(CONFIG, backbone_rate=0.5, layer_decay=0.8))
    body = {name: value for name, value in model.named_parameters() if name.startswith("backbone.body.")}
    assert rates.keys() == body.keys()
    in_order = [rates[name] for name in body]
    assert max(in_order) == pytest.approx(0.5 * 0.8)  # the top layer has one above it: what is new
    assert in_order[0] == min(in_order) < 0.5 * 0.8
    levels = np.log(np.array(sorted(set(in_order))) / 0.5) / np.log(0.8)
    np.testing.assert_allclose(levels, np.arange(len(levels), 0, -1), atol=1e-9)


def test_layers_are_timms_own():
    rates = learning_rates(ConceptModel(NET, 1, 2), replace(CONFIG, layer_decay=0.5))
    found = {}
    for name, rate in rates.items():
        found.setdefault(rate, set()).add(name.removeprefix("backbone.body.").rpartition(".")[0].split(".")[0])
    assert found == {0.5: {"layer3"}, 0.25: {"layer2"}, 0.125: {"layer1"}, 0.0625: {"conv1", "bn1"}}


def test_a_backbone_whose_layers_timm_does_not_tell_apart_is_refused_by_naming_the_key():
    model = ConceptModel(NET, 1, 2)
    model.backbone.body.added = nn.Linear(1, 1)
    with pytest.raises(ConfigError, match=r"concepts\.layer_decay: timm does not tell .* test_resnet are"):
        learning_rates(model, replace(CONFIG, layer_decay=0.5))
    assert set(learning_rates(model, replace(CONFIG, backbone_rate=0.1)).values()) == {0.1}


def moved(config: ConceptTrainingConfig, rates: dict[str, float] | None = None) -> dict[str, float]:
    """How far one step of AdamW against a constant gradient moves each parameter of a concept model of ones."""
    model = ConceptModel(NET, 1, 2)
    for parameter in model.parameters():
        nn.init.ones_(parameter)

    def terms(rows):
        return {"sum": torch.stack([parameter.sum() for parameter in model.parameters()]).sum()}

    task = Task("one", model, np.arange(8), terms, lambda epoch: {}, rates=rates or {})
    fit(fine_tuned(task, config), replace(config, epochs=1), SilentCallbacks())
    return {name: float(1 - parameter.detach().double().mean()) for name, parameter in model.named_parameters()}


def test_the_backbone_lags_by_its_factor_and_what_is_new_does_not():
    found = moved(replace(CONFIG, backbone_rate=0.1, learning_rate=0.01, weight_decay=0.0))
    for name, far in found.items():
        assert far == pytest.approx(0.001 if ".body." in name else 0.01, rel=1e-3)
    assert {name.split(".")[1] for name in found if ".body." not in name} == {"fine", "deep", "merge", "weight"}


def test_a_tasks_own_rates_come_first():
    found = moved(replace(CONFIG, backbone_rate=0.1, learning_rate=0.01, weight_decay=0.0), {"backbone.body.bn1": 0.5})
    assert found["backbone.body.bn1.weight"] == pytest.approx(0.005, rel=1e-3)
    assert found["backbone.body.layer1.0.conv1.weight"] == pytest.approx(0.001, rel=1e-3)


# weight decay


@pytest.mark.parametrize("decay_norms", [True, False])
def test_weight_decay_spares_norms_and_biases_if_told_so(decay_norms):
    config = replace(CONFIG, learning_rate=0.01, weight_decay=5.0, decay_norms=decay_norms)
    found, shapes = moved(config), {name: value.ndim for name, value in ConceptModel(NET, 1, 2).named_parameters()}
    for name, far in found.items():
        decays = decay_norms or shapes[name] > 1
        assert far == pytest.approx(0.01 + 0.05 * decays, rel=1e-3), name


def test_what_timm_names_is_spared_too():
    model = ConceptModel(ConceptModelConfig("test_vit", stride=16, context=None), 1, 2)
    spared = spared_of_decay(model)
    assert {"backbone.body.model.pos_embed", "backbone.body.model.cls_token"} <= spared
    assert "backbone.body.model.blocks.0.attn.qkv.weight" not in spared
    assert "backbone.body.model.blocks.0.attn.qkv.bias" in spared


# freezing


class Watcher(SilentCallbacks):
    """Keeps the model's state after each epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.states: list[dict[str, torch.Tensor]] = []

    def epoch(self, metrics, state):
        super().epoch(metrics, state)
        self.states.append({name: value.clone() for name, value in state()["model"].items()})


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor], part: str) -> set[bool]:
    """Whether weights and running statistics of a part differ."""
    names = [name for name in before if name.startswith(part) and not name.endswith(("tracked", "extra_state"))]
    assert names
    return {not torch.equal(before[name], after[name]) for name in names}


@pytest.mark.parametrize(("freeze", "free_from"), [(0, 0), (2, 2), ("all", 3), (3, 3)])
def test_frozen_weights_and_statistics_stay_for_so_many_epochs_while_what_is_new_learns(
    data, pretrained, freeze, free_from
):
    callbacks = Watcher()
    train_concepts(data, replace(pretrained, freeze=freeze), callbacks)
    given = torch.load(pretrained.model.checkpoint)
    start = {f"backbone.body.{name}": value for name, value in given.items()}
    states = [{name: value for name, value in state.items() if name in start} for state in callbacks.states]
    start = {name: value for name, value in start.items() if name in states[0]}
    for epoch, (before, after) in enumerate(zip([start, *states[:-1]], states, strict=True)):
        assert changed(before, after, "backbone.body.") == {epoch >= free_from}, epoch
    assert changed(callbacks.states[0], callbacks.states[1], "backbone.merge.") == {True}
    assert changed(callbacks.states[0], callbacks.states[1], "to_maps.") == {True}


def test_a_run_that_is_cut_off_while_frozen_thaws_on_time(data, pretrained):
    config, whole, first = replace(pretrained, freeze=2), Watcher(), Kept()
    train_concepts(data, config, whole)
    with pytest.raises(KeyboardInterrupt):
        train_concepts(data, config, first)
    rest = Watcher()
    rest.resume = lambda: first.state  # type: ignore[method-assign]
    train_concepts(data, config, rest)
    assert len(rest.states) == 2
    for name, value in whole.states[-1].items():
        torch.testing.assert_close(rest.states[-1][name], value, msg=name)


class Kept(SilentCallbacks):
    """Stops after the first epoch, whose state it keeps."""

    def epoch(self, metrics, state):
        self.state = state()
        raise KeyboardInterrupt


def test_a_thawed_model_may_learn_everywhere(pretrained):
    model = ConceptModel(pretrained.model, 1, 2).train()
    hold(model, True)
    frozen = {name for name, value in model.named_parameters() if not value.requires_grad}
    assert frozen == {name for name, _ in model.named_parameters() if name.startswith("backbone.body.")}
    assert not model.backbone.body.training and model.backbone.merge.training
    model.train()
    hold(model, False)
    assert all(value.requires_grad for value in model.parameters()) and model.backbone.body.training


# the configuration


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"backbone_rate": 0.0}, r"concepts\.backbone_rate: must be above 0, got 0\.0; concepts\.freeze"),
        ({"layer_decay": 1.5}, r"concepts\.layer_decay: must be above 0 and at most 1, or null, got 1\.5"),
        ({"layer_decay": 0.0}, r"concepts\.layer_decay: must be above 0"),
        ({"freeze": -1}, r"concepts\.freeze: must be a number of epochs or all, got -1"),
        ({"freeze": 2}, r"concepts\.freeze: there are no pretrained weights to keep; set concepts\.model\.pretrained"),
        ({"freeze": "all"}, r"concepts\.freeze: there are no pretrained weights"),
    ],
)
def test_what_cannot_be_is_refused_by_naming_the_key(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        replace(CONFIG, **changes)


def test_a_checkpoint_of_a_fine_tuned_model_is_like_any_other(data, pretrained):
    config = replace(pretrained, epochs=1, freeze="all", decay_norms=False, layer_decay=0.7)
    model = train_concepts(data, config, SilentCallbacks())
    state = concept_model_checkpoint(model)
    plain = concept_model_checkpoint(ConceptModel(NET, 1, 3))
    assert state["weights"].keys() == plain["weights"].keys()
    assert not any(value.requires_grad for value in state["weights"].values())
