"""How pretrained weights are trained on: slower, the slower the nearer to the image, not at all for some epochs; and
what weight decay spares. The rules are timm's (``timm.optim``), for networks that hold a
`csr.network.backbone.Backbone`.

Pretrained is only the backbone's body, which is timm's; what merges its levels and reads its maps is new, learns at the
whole rate from the first epoch on, and counts as the one layer above the body:

    rate of a body parameter = learning_rate · backbone_rate · layer_decay^(layers above it)

as in BEiT (Bao et al. 2021, arXiv 2106.08254, appendix). Which layer a parameter is of is what timm says of the whole
network, of which the body is a part under other names.
"""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from timm.models import group_parameters
from timm.optim import param_groups_weight_decay
from torch import nn

from csr.errors import ConfigError
from csr.network.backbone import Backbone
from csr.network.timm_networks import original_names, whole_network
from csr.training.loop import Task


@dataclass(frozen=True)
class Tuning:
    """The keys of ``concepts`` that want other values with pretrained weights; those that are null take these.

    Args:
        learning_rate, warmup, decay_norms, backbone_rate, layer_decay: see
            `csr.training.concepts.ConceptTrainingConfig`.
    """

    learning_rate: float
    warmup: float
    decay_norms: bool
    backbone_rate: float
    layer_decay: float | None


# docs/pretrained.md has the trials that the second line rests on
SCRATCH = Tuning(learning_rate=4e-3, warmup=0.15, decay_norms=True, backbone_rate=1.0, layer_decay=None)
PRETRAINED = Tuning(learning_rate=4e-3, warmup=0.15, decay_norms=False, backbone_rate=0.25, layer_decay=None)


class FineTuningConfig(Protocol):
    """See `csr.training.concepts.ConceptTrainingConfig`."""

    @property
    def decay_norms(self) -> bool: ...
    @property
    def backbone_rate(self) -> float: ...
    @property
    def layer_decay(self) -> float | None: ...
    @property
    def freeze(self) -> int | Literal["all"]: ...


def fine_tuned(task: Task, config: FineTuningConfig) -> Task:
    """The task, with its model's backbone trained as the configuration says. The task's own rates come first, and what
    it spares of weight decay stays spared.

    Raises:
        ConfigError: a layer decay for a backbone whose layers timm does not tell apart.
    """

    def before_epoch(epoch: int) -> None:
        task.before_epoch(epoch)
        if config.freeze:
            hold(task.model, config.freeze == "all" or epoch < config.freeze)

    return replace(
        task,
        rates={**task.rates, **learning_rates(task.model, config)},
        spared=task.spared if config.decay_norms else task.spared | spared_of_decay(task.model),
        before_epoch=before_epoch,
    )


def learning_rates(model: nn.Module, config: FineTuningConfig) -> dict[str, float]:
    """Names of the model's pretrained parameters → factors on the learning rate; see the module's docstring.

    Raises:
        ConfigError: a layer decay for a backbone whose layers timm does not tell apart.
    """
    rates: dict[str, float] = {}
    for prefix, backbone in _backbones(model).items():
        names = [name for name, _ in backbone.body.named_parameters()]
        if config.layer_decay is None:
            rates |= {prefix + name: config.backbone_rate for name in names}
            continue
        layers = _layers(backbone, names)
        above = 1 + max(layers.values())
        rates |= {prefix + name: config.backbone_rate * config.layer_decay ** (above - layers[name]) for name in names}
    return rates


def spared_of_decay(model: nn.Module) -> frozenset[str]:
    """Names of the parameters that weight decay leaves alone: norms and biases, and what timm's network names, such as
    position embeddings."""
    groups = param_groups_weight_decay(model, 1.0)
    plain = {id(parameter) for group in groups if not group["weight_decay"] for parameter in group["params"]}
    names = {name for name, parameter in model.named_parameters() if id(parameter) in plain}
    for prefix, backbone in _backbones(model).items():
        whole = whole_network(backbone.config.backbone, backbone.mean.numel())
        patterns = whole.no_weight_decay() if hasattr(whole, "no_weight_decay") else ()
        for name, original in original_names(backbone.body, whole).items():
            if any(fnmatch.fnmatch(original, pattern) for pattern in patterns):
                names.add(prefix + name)
    return frozenset(names)


def hold(model: nn.Module, held: bool) -> None:
    """Keeps the weights and running statistics of the model's backbone as they are, or lets go of the weights.

    Call it after ``model.train()``, which lets go of the statistics.
    """
    for backbone in _backbones(model).values():
        backbone.body.requires_grad_(not held)
        if held:
            backbone.body.eval()


def _backbones(model: nn.Module) -> dict[str, Backbone]:
    """Prefix of a body's parameter names → its backbone."""
    return {f"{name}.body.": module for name, module in model.named_modules() if isinstance(module, Backbone)}


def _layers(backbone: Backbone, names: list[str]) -> dict[str, int]:
    """The body's parameters → how many layers lie between them and the image."""
    whole = whole_network(backbone.config.backbone, backbone.mean.numel())
    originals = original_names(backbone.body, whole)
    if not hasattr(whole, "group_matcher") or any(name not in originals for name in names):
        raise ConfigError(
            f"concepts.layer_decay: timm does not tell of which layers the parameters of {backbone.config.backbone} "
            "are; set it to null: concepts.backbone_rate slows the whole backbone"
        )
    layers = group_parameters(whole, whole.group_matcher(coarse=False), reverse=True)
    return {name: layers[originals[name]] for name in names}
