"""What a frozen body makes of an image is computed once and remembered.

Most of what an image costs is the body's. Where its weights are frozen for good (``concepts.freeze: all``) it makes the
same of the same picture in every epoch: of validation images always, of training images where augmentation leaves few
pictures of each, as mirroring alone does. So small sets can be learned at full resolution without a GPU. Pictures are
known by their pixels, so nothing else need know of this, and what is learned is the same but for rounding.

On a GPU a body is faster than the look-up, so there everything is computed anew.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from csr.network.backbone import Backbone

LIMIT = 4 * 2**30  # bytes that are remembered; what comes later is computed anew each time


@contextmanager
def remembered(model: nn.Module, freeze: int | Literal["all"]) -> Iterator[None]:
    """Lets the model's backbones remember, until the block is left, if ``freeze`` is ``all``.

    Raises nothing of its own; the caller freezes the bodies (`csr.training.fine_tuning.hold`).
    """
    bodies = [module.body for module in model.modules() if isinstance(module, Backbone)] if freeze == "all" else []
    for body in bodies:
        body.forward = _Memory(body)
    try:
        yield
    finally:
        for body in bodies:
            del body.forward  # the class's own again


class _Memory:
    """In the place of a body's ``forward``: B×C×H×W → its levels, those of known pictures from memory."""

    def __init__(self, body: Any) -> None:
        self._body, self._compute = body, body.forward
        self._levels: dict[bytes, list[Tensor]] = {}
        self._bytes = 0

    def __call__(self, images: Tensor) -> list[Tensor]:
        frozen = not self._body.training and not any(each.requires_grad for each in self._body.parameters())
        if not frozen or images.requires_grad or images.device.type != "cpu":
            return self._compute(images)
        keys = [hashlib.blake2b(image.contiguous().numpy().data, digest_size=16).digest() for image in images]
        new = {key: index for index, key in enumerate(keys) if key not in self._levels}
        found: dict[bytes, list[Tensor]] = {}
        if new:
            levels = self._compute(images[list(new.values())])
            found = {key: [level[index] for level in levels] for index, key in enumerate(new)}
        self._remember(found)
        chosen = [found.get(key) or self._levels[key] for key in keys]
        return [torch.stack(level).contiguous(memory_format=torch.channels_last) for level in zip(*chosen, strict=True)]

    def _remember(self, found: dict[bytes, list[Tensor]]) -> None:
        for key, levels in found.items():
            size = sum(level.numel() * level.element_size() for level in levels)
            if self._bytes + size <= LIMIT:
                self._levels[key] = [level.clone() for level in levels]
                self._bytes += size
