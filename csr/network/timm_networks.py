"""What a backbone takes from timm: the whole network that its weights belong to, and the part that gives features.

timm's own feature extraction serves networks whose levels grow coarser. Of networks of equal levels, which vision
transformers are, it would give the last three blocks before the final norm; `TokenFeatures` gives what the network
itself concludes from: the spatial tokens of the last block, normalised, without class token, registers or an attention
pool. Networks of tokens take any image side that their patch divides where timm can resample their position embedding.
"""

from __future__ import annotations

import inspect
from typing import Any

import timm
import torch
from torch import Tensor, nn

from csr.errors import ConfigError

# arguments of timm's networks that free them of the side they were made for
_ANY_SIDE = {"dynamic_img_size": True, "strict_img_size": False}


def whole_network(name: str, channels: int) -> Any:  # a timm network, untyped
    """timm's network of that name with its classification head, without memory for its weights.

    Raises:
        ConfigError: timm does not know the name.
    """
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            return timm.create_model(name, in_chans=channels)
    except RuntimeError as error:
        raise ConfigError(f"concepts.model.backbone: {error}") from None


def network_settings(whole: nn.Module) -> dict[str, Any]:
    """Arguments with which timm makes that network for images of any side; none if it has no such."""
    known = {name for kind in type(whole).__mro__ for name in inspect.signature(kind).parameters}
    return {name: value for name, value in _ANY_SIDE.items() if name in known}


def level_settings(whole: nn.Module) -> dict[str, Any]:
    """Arguments with which timm gives levels of that network as B×D×h×w."""
    return {"feature_cls": "getter"} if getattr(whole, "output_fmt", "NCHW") != "NCHW" else {}


def is_made_of_tokens(whole: Any) -> bool:
    """Whether all blocks look at the same cells, so that the last one is the level to take."""
    reductions = [level["reduction"] for level in whole.feature_info] if isinstance(whole.feature_info, list) else []
    return len(reductions) > 1 and len(set(reductions)) == 1 and hasattr(whole, "forward_intermediates")


class TokenFeatures(nn.Module):
    """The spatial tokens of the last block, after the final norm, as the one level of a feature network.

    Args:
        network: a timm network of tokens; what lies behind its final norm is taken off.
    """

    def __init__(self, network: Any) -> None:
        super().__init__()
        if hasattr(network, "prune_intermediate_layers"):
            network.prune_intermediate_layers(1, prune_norm=False, prune_head=True)
        self.model = network
        self.pretrained_cfg = network.pretrained_cfg
        self.width = int(network.feature_info[-1]["num_chs"])

    def forward(self, images: Tensor) -> list[Tensor]:
        """B×C×H×W → [B×D×h×w]."""
        found: list[Tensor] = self.model.forward_intermediates(
            images, indices=1, norm=True, output_fmt="NCHW", intermediates_only=True
        )
        return found


def original_names(body: nn.Module, whole: nn.Module) -> dict[str, str]:
    """The parameters and buffers of a body → their names in the whole network.

    timm's feature extractors (``timm.models._features``) keep a network's names, or join their first two parts, or hold
    the network as ``model`` or ``body``.
    """
    originals: dict[str, str] = {}
    for name in whole.state_dict():
        first, _, rest = name.partition(".")
        originals |= {name: name, f"{first}_{rest}": name, f"model.{name}": name, f"body.{name}": name}
    return {name: originals[name] for name in body.state_dict() if name in originals}
