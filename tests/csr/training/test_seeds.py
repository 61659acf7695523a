"""Random numbers: what shares a seed shares nothing else."""

from __future__ import annotations

import itertools
import random

import numpy as np
import torch
from torch import nn

from csr.training.callbacks import SilentCallbacks
from csr.training.concepts import ConceptTrainingConfig
from csr.training.loop import Task, fit
from csr.training.runtime import seed_everything, seeds, torch_seed

PURPOSES = ("weights", "projector", "prototypes", "head", "concepts: steps", "concepts: draws", "concepts: order")


def test_no_two_of_seeds_purposes_epochs_and_processes_share_their_random_numbers() -> None:
    words = list(itertools.product((0, 1, 2, 1000, 2**40), PURPOSES, range(40), range(8)))
    assert len({torch_seed(seeds(*each)) for each in words}) == len(words)


def drawn() -> tuple[float, float, float]:
    return random.random(), np.random.random(), torch.rand(()).item()


def test_python_numpy_and_torch_are_seeded_alike_and_apart() -> None:
    seed_everything(seeds(0, "weights"))
    first = drawn()
    seed_everything(seeds(0, "weights"))
    assert drawn() == first
    for other in (seeds(1, "weights"), seeds(0, "head"), seeds(0, "weights", 1), seeds(0, "weights", 0, 1)):
        seed_everything(other)
        assert not set(drawn()) & set(first)
    assert len(set(first)) == 3


def seen(stage: str, epochs: int = 2) -> list[tuple[list[int], float, float]]:
    """The rows of each step, and a number each from torch's global generator and from that of all processes."""
    model, steps, draws = nn.Linear(1, 1), [], torch.Generator()

    def terms(rows):
        steps.append((rows.tolist(), torch.rand(()).item(), torch.rand((), generator=draws).item()))
        return {"own": model.weight.sum()}

    config = ConceptTrainingConfig(epochs=epochs, batch_size=10, seed=4)
    fit(Task(stage, model, np.arange(40), terms, lambda epoch: {}, draws=draws), config, SilentCallbacks())
    return steps


def test_epochs_and_phases_of_a_run_repeat_neither_their_order_nor_their_numbers() -> None:
    steps = seen("warm up") + seen("joint")
    assert len({str(rows) for rows, _, _ in steps}) == 16
    assert len({number for _, *numbers in steps for number in numbers}) == 32
    assert seen("joint") == steps[8:]
