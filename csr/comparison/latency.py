"""What an answer of each compared system takes."""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np
import torch

from csr.baselines.protocol import System


@torch.no_grad()
def answer_latency(members: Mapping[str, System], image: torch.Tensor, rounds: int = 15) -> dict[str, float]:
    """Median seconds of one answer to one image, for every system: measured in turns so that a disturbance of the
    machine hits all of them.

    All are measured in the memory format in which they are trained (channels last, into which the members are brought),
    since weights that come from a file have another, and the same network then answers at another speed.

    Args:
        image: 1×C×S×S.
    """
    times: dict[str, list[float]] = {name: [] for name in members}
    image = image.contiguous(memory_format=torch.channels_last)
    for system in members.values():
        system.to(memory_format=torch.channels_last).eval().answer(image)
    for _ in range(rounds):
        for name, system in members.items():
            start = time.perf_counter()
            system.answer(image)
            if image.is_cuda:
                torch.cuda.synchronize()
            times[name].append(time.perf_counter() - start)
    return {name: float(np.median(values)) for name, values in times.items()}
