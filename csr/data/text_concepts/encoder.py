"""An image-text encoder that the user brings: how it is found, and what it must offer.

The interface is open_clip's, in which many others are published: a module with ``encode_image`` (B×3×H×W → B×E) and
``encode_text`` (tokens B×L → B×E), ``preprocess`` (a PIL image → 3×H×W) and ``tokenizer`` (texts → tokens B×L).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from csr.errors import ConfigError

Preprocess = Callable[[Image.Image], Tensor]
Tokenizer = Callable[[list[str]], Tensor]
_KEY = "data.text_concepts"


@dataclass(frozen=True)
class ImageTextEncoder:
    """A model and the preprocessing it was trained with; see the module's docstring."""

    model: Any  # an nn.Module with encode_image and encode_text, which `load_encoder` has seen to
    preprocess: Preprocess
    tokenizer: Tokenizer
    place: torch.device | None = None  # where the model is; None: the CPU

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """n texts → n×E of unit length, on the CPU.

        Raises:
            ConfigError: the tokenizer or the model does not return what the interface says.
        """
        tokens = self.tokenizer(list(texts))
        if not isinstance(tokens, Tensor):
            raise ConfigError(f"{_KEY}.factory: the tokenizer must return a tensor of tokens, got {type(tokens)}")
        return _unit(self.model.encode_text(tokens.to(self.place)), len(texts), "encode_text")

    @torch.no_grad()
    def embed_images(self, images: np.ndarray) -> Tensor:
        """B×C×S×S uint8 (C = 1 or 3) → B×E of unit length, on the CPU.

        Raises:
            ConfigError: preprocessing or the model does not return what the interface says.
        """
        pictures = [
            Image.fromarray(np.ascontiguousarray(image[0] if len(image) == 1 else np.moveaxis(image, 0, -1)))
            for image in images
        ]
        inputs = [self.preprocess(picture.convert("RGB")) for picture in pictures]
        if not isinstance(inputs[0], Tensor) or inputs[0].ndim != 3:
            got = tuple(inputs[0].shape) if isinstance(inputs[0], Tensor) else type(inputs[0])
            raise ConfigError(f"{_KEY}.factory: preprocess must turn an image into a 3×H×W tensor, got {got}")
        return _unit(self.model.encode_image(torch.stack(inputs).to(self.place)), len(images), "encode_image")


def _unit(embedding: Tensor, count: int, method: str) -> Tensor:
    if embedding.ndim != 2 or len(embedding) != count:
        shape = "×".join(map(str, embedding.shape))
        raise ConfigError(f"{_KEY}.factory: the model's {method} made {shape} of a batch of {count}, not {count}×E")
    if not bool(embedding.isfinite().all()):
        raise ConfigError(f"{_KEY}.factory: the model's {method} returns numbers that are not finite")
    return F.normalize(embedding.float(), dim=-1).cpu()


def load_encoder(
    factory: str, checkpoint: Path, options: Mapping[str, Any], place: torch.device | None = None
) -> ImageTextEncoder:
    """Calls ``factory(checkpoint, **options)``, which returns (model, preprocess, tokenizer).

    Args:
        factory: ``package.module:callable``; modules in the working folder are found as well.
        checkpoint: a local file or folder. Nothing is looked for anywhere else.
        options: keyword arguments of the factory.
        place: where it computes; None: on the CPU.

    Raises:
        ConfigError: the checkpoint is not there, the factory cannot be imported or fails, or what it returns is not of
            the form above.
    """
    if not checkpoint.exists():
        raise ConfigError(
            f"{_KEY}.checkpoint: no file or folder {str(checkpoint)!r}; weights are read from this machine only, "
            "so put them there first"
        )
    make = _import(factory)
    try:
        made = make(checkpoint, **options)
    except ConfigError:
        raise
    except Exception as error:  # whatever the user's code and the libraries under it raise
        reason = f"{type(error).__name__}: {shorten(str(error), 300, placeholder=' …')}"
        raise ConfigError(f"{_KEY}.factory: {factory} failed on {str(checkpoint)!r} ({reason})") from error
    if not isinstance(made, tuple) or len(made) != 3:
        raise ConfigError(f"{_KEY}.factory: {factory} must return (model, preprocess, tokenizer), got {type(made)}")
    model, preprocess, tokenizer = made
    if not isinstance(model, nn.Module) or not all(hasattr(model, name) for name in ("encode_image", "encode_text")):
        raise ConfigError(
            f"{_KEY}.factory: the model that {factory} returns must be a torch module with the methods encode_image "
            f"and encode_text, got {type(model)}"
        )
    return ImageTextEncoder(model.to(place or "cpu").eval(), preprocess, tokenizer, place)


def _import(factory: str) -> Callable[..., Any]:
    name, _, attribute = factory.partition(":")
    if not name or not attribute:
        raise ConfigError(f"{_KEY}.factory: must read package.module:callable, got {factory!r}")
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(
            f"{_KEY}.factory: the module {name!r} cannot be imported ({error}); "
            "install it, or put it into the folder that you run from"
        ) from error
    found = getattr(module, attribute, None)
    if not callable(found):
        raise ConfigError(f"{_KEY}.factory: the module {name!r} has nothing to call by the name {attribute!r}")
    return found


def open_clip_encoder(checkpoint: Path, model: str | None = None) -> tuple[nn.Module, Preprocess, Tokenizer]:
    """The factory for open_clip's own models, for whoever has installed ``open_clip_torch``.

    Args:
        checkpoint: a file of weights, or a folder with ``open_clip_config.json`` beside them. Only the folder tells
            how images were normalised; for a file, open_clip assumes what is usual for the architecture.
        model: open_clip's name of the architecture that a file's weights are of, such as ``ViT-B-32``.

    Raises:
        ConfigError: open_clip is not installed, or the architecture of a file is missing or would be fetched.
    """
    try:
        open_clip: Any = importlib.import_module("open_clip")
    except ImportError:
        raise ConfigError(f"{_KEY}.factory: open_clip is not installed; pip install open_clip_torch") from None
    place = checkpoint.resolve()  # an absolute path is never the name of weights that open_clip would download
    if place.is_dir():
        name, weights = f"local-dir:{place}", None
    elif model is None or ":" in model:
        raise ConfigError(
            f"{_KEY}.options.model: must name the architecture of {checkpoint.name} as open_clip does, such as "
            f"ViT-B-32, got {model!r}"
        )
    else:
        name, weights = model, str(place)
    with _hub_offline():
        made, preprocess = open_clip.create_model_from_pretrained(name, pretrained=weights)  # refuses to go without
        return made, preprocess, open_clip.get_tokenizer(name)


@contextmanager
def _hub_offline() -> Iterator[None]:
    """Keeps huggingface_hub, from which open_clip takes some tokenizers and text towers, to what is on this machine.

    Its variable ``HF_HUB_OFFLINE`` was read when timm imported it, so it is too late for the environment.
    """
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
