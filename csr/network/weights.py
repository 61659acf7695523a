"""Files of backbone weights: PyTorch's or safetensors, however wrapped and prefixed, with their preprocessing.

A file counts as read only if it gives every tensor of the backbone. What else it holds is left aside: a classification
head and deeper levels without a word, anything else with a warning that names and counts it.

A network sees what it was trained on only if images are normalised as they were then, so ``mean`` and ``std`` come with
the weights: from the metadata of a safetensors file (JSON lists under these names, as `csr.network.pypi_weights` writes
them), else from what timm knows of the network. They are in units of 0..1 and so say any scaling: (x − 0.5) / 0.5 is
-1..1.
"""

from __future__ import annotations

import argparse
import importlib
import json
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from timm.models import adapt_input_conv
from torch import Tensor, nn

from csr.errors import ConfigError
from csr.network.timm_networks import original_names

_KEY = "concepts.model.checkpoint"
# what files keep a state dict under; the averaged weights and the teacher come before what they were made from
_WRAPPERS = (
    "state_dict_ema",
    "model_ema",
    "ema",
    "teacher",
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "weights",
    "network",
    "net",
    "backbone",
    "encoder",
    "student",
    "module",
)
_NAMED = 3  # tensors that a message names


@dataclass(frozen=True)
class Preprocessing:
    """How images are normalised: (x − mean) / std, x in 0..1.

    Args:
        mean, std: of each channel, or one number for all.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.mean or len(self.mean) != len(self.std) or not all(value > 0 for value in self.std):
            raise ValueError(
                "concepts.model.normalisation: mean and std must be as long as one another, and each std above 0, got "
                f"{list(self.mean)} and {list(self.std)}"
            )

    def of(self, channels: int) -> tuple[Tensor, Tensor]:
        """Mean and std for images of so many channels; a grey image is normalised by the average of three.

        Raises:
            ConfigError: numbers for another number of channels.
        """
        mean, std = torch.tensor(self.mean), torch.tensor(self.std)
        if len(mean) not in (1, channels) and channels != 1:
            raise ConfigError(
                f"concepts.model.normalisation: has numbers for {len(mean)} channels, but data.channels is {channels}"
            )
        return (
            (mean.mean(0, True), std.mean(0, True)) if channels == 1 else (mean.expand(channels), std.expand(channels))
        )


def load_weights(body: nn.Module, whole: Any, file: Path) -> Preprocessing | None:
    """Puts a file's weights into a backbone's body, converted to its number of image channels as timm does.

    Args:
        body: timm's feature network.
        whole: of which network (`csr.network.timm_networks.whole_network`).
        file: PyTorch's or safetensors.

    Returns:
        The preprocessing that the file states.

    Raises:
        ConfigError: not a file of weights, of another network, or not all of the body's tensors are in it.
    """
    tensors, notes = read_weights(file)
    name = whole.pretrained_cfg["architecture"]
    if notes.get("timm", name) != name:
        raise ConfigError(
            f"{_KEY}: {file} holds weights of {notes['timm']}, not of {name}: set concepts.model.backbone"
        )
    names = original_names(body, whole)
    wanted = {own: theirs for own, theirs in names.items() if not theirs.endswith("num_batches_tracked")}
    expected = whole.state_dict()
    tensors, aside = _named_as(names, expected, tensors)
    if any(theirs not in tensors or tensors[theirs].shape != expected[theirs].shape for theirs in wanted.values()):
        tensors = _converted(tensors, whole, file)
    missing = []
    for theirs in wanted.values():
        if theirs not in tensors:
            missing.append(theirs)
        elif (has := tuple(tensors[theirs].shape)) != (needs := tuple(expected[theirs].shape)):
            missing.append(f"{theirs} ({_shape(has)} instead of {_shape(needs)})")
    aside += [key for key in tensors if key not in expected]
    others = f"; {len(aside)} that {name} has not are left aside: {_listed(aside)}" if aside else ""
    if missing:
        raise ConfigError(
            f"{_KEY}: {file} lacks {len(missing)} of the {len(wanted)} tensors of {name}: {_listed(missing)}{others}"
        )
    body.load_state_dict(
        body.state_dict() | {own: tensors[theirs] for own, theirs in names.items() if theirs in tensors}
    )
    if aside:
        warnings.warn(f"{_KEY}: {file} has all {len(wanted)} tensors of {name}{others}", stacklevel=2)
    if "mean" not in notes:
        return None
    return Preprocessing(tuple(json.loads(notes["mean"])), tuple(json.loads(notes["std"])))


def read_weights(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """A file's tensors out of their wrappers, on the CPU, and its metadata, which only safetensors files have.

    Raises:
        ConfigError: there is no such file, or it holds something else.
    """
    if not file.is_file():
        raise ConfigError(f"{_KEY}: no file {str(file)!r}")
    try:
        with safe_open(file, "pt") as content:
            return load_file(file), content.metadata() or {}
    except SafetensorError:
        pass  # then it is PyTorch's or nothing
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # options of the run, beside the weights
            loaded = torch.load(file, map_location="cpu", weights_only=True)
    except Exception:  # of a file of something else its unpickler raises whatever it stumbles over
        raise ConfigError(
            f"{_KEY}: {file} is no file of plain weights; give a safetensors file, or what torch.save makes of a state "
            "dict"
        ) from None
    return _unwrapped(loaded, file), {}


def _unwrapped(loaded: Any, file: Path) -> dict[str, Tensor]:
    found = loaded
    while isinstance(found, Mapping):
        inner = next((found[key] for key in _WRAPPERS if isinstance(found.get(key), Mapping)), None)
        if inner is None:
            break
        found = inner
    named = found.items() if isinstance(found, Mapping) else ()
    tensors = {str(key): value for key, value in named if isinstance(value, Tensor)}
    if not tensors:
        held = f"the keys {_listed(list(loaded))}" if isinstance(loaded, Mapping) else type(loaded).__name__
        raise ConfigError(f"{_KEY}: {file} holds no tensors by name but {held}")
    return tensors


def _named_as(
    names: Mapping[str, str], expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors under the whole network's names, freed of the prefix under which most of these stand; and the names
    of tensors that do not stand under it."""
    aliases = {name: name for name in expected} | dict(names)
    prefixes = Counter[str]({"": 0})
    for key in tensors:
        parts = key.split(".")
        for at in range(len(parts)):
            if ".".join(parts[at:]) in aliases:
                prefixes["".join(part + "." for part in parts[:at])] += 1
    prefix = max(prefixes, key=lambda each: (prefixes[each], -len(each)))
    under = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    return {aliases.get(key, key): value for key, value in under.items()}, [
        key for key in tensors if not key.startswith(prefix)
    ]


def _converted(tensors: dict[str, Tensor], whole: Any, file: Path) -> dict[str, Tensor]:
    """As timm converts what is published for its network: names, position embeddings, and channels of the image."""
    cfg = whole.pretrained_cfg
    module = importlib.import_module(timm.models.model_entrypoint(cfg["architecture"]).__module__)
    if (convert := getattr(module, "checkpoint_filter_fn", None)) is not None:
        try:
            tensors = dict(convert(tensors, whole))
        except Exception as error:  # whatever a stranger's file makes of timm's rules for its own
            raise ConfigError(
                f"{_KEY}: {file}: timm cannot convert it for {cfg['architecture']} ({error}). Is it of another network?"
            ) from None
    first = cfg.get("first_conv") or ()
    for name in (first,) if isinstance(first, str) else first:
        weight, needed = tensors.get(f"{name}.weight"), whole.get_submodule(name).weight
        if weight is not None and weight.ndim == 4 and weight.shape[1] != needed.shape[1]:
            has = 3 if weight.shape[1] % 3 == 0 else 1
            tensors[f"{name}.weight"] = adapt_input_conv(4 - has, weight, base_chans=has)
    return tensors


def _listed(names: list[str]) -> str:
    return ", ".join(map(str, names[:_NAMED])) + (", …" if len(names) > _NAMED else "")


def _shape(sizes: tuple[int, ...]) -> str:
    return "×".join(map(str, sizes)) or "one number"
