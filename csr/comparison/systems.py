"""Which systems are compared, what each rests on, and how one is trained and judged."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from csr.baselines.black_box import BlackBox, black_box
from csr.baselines.cbm import CBM, independent_cbm, joint_cbm, sequential_cbm
from csr.baselines.pipnet import PIPNet, pipnet
from csr.baselines.posthoc_cbm import PosthocCBM, hybrid_posthoc_cbm, posthoc_cbm
from csr.baselines.protocol import ExperimentContext, SharedBackbone, System, predict
from csr.baselines.protopnet import ProtoPNet, protopnet
from csr.baselines.protopool import ProtoPool, protopool
from csr.baselines.prototree import ProtoTree, prototree
from csr.comparison.csr_system import CSRSystem, Recipe, train_csr
from csr.evaluation.evaluate import Predictions, evaluate_predictions

# Prototype systems start from the trained black box and train on for half as many epochs: one and a half times what
# every other system gets.
WARM_START_EPOCHS = 0.5


@dataclass(frozen=True)
class Entry:
    """One compared system.

    Args:
        title: name in tables.
        kind: its class.
        train: trains it.
        shared_backbone: what it rests on or starts from; None: it trains all of itself.
        epochs: its own epochs of images as a share of the configured ones; the shared backbone has had all of those.
    """

    title: str
    kind: type[System]
    train: Callable[[ExperimentContext], System]
    shared_backbone: SharedBackbone | None = None
    epochs: float = 1.0


def systems(recipes: Mapping[str, Recipe]) -> dict[str, Entry]:
    """All compared systems, by name. ``recipes`` holds stages 2 and 3 of the presets ``robust`` and ``paper``."""
    return {
        "csr_robust": Entry("CSR, robust", CSRSystem, partial(train_csr, recipe=recipes["robust"]), "concepts_lse"),
        "csr_paper": Entry(
            "CSR, to the letter", CSRSystem, partial(train_csr, recipe=recipes["paper"]), "concepts_average"
        ),
        "cbm_joint": Entry("CBM, joint", CBM, joint_cbm),
        "cbm_sequential": Entry("CBM, sequential", CBM, sequential_cbm, "concepts_average"),
        "cbm_independent": Entry("CBM, independent", CBM, independent_cbm, "concepts_average"),
        "cbm_shared": Entry("CBM on CSR's stage 1", CBM, sequential_cbm, "concepts_lse"),
        "posthoc_cbm": Entry("Post-hoc CBM", PosthocCBM, posthoc_cbm, "classes"),
        "posthoc_cbm_hybrid": Entry("Post-hoc CBM, hybrid", PosthocCBM, hybrid_posthoc_cbm, "classes"),
        "protopnet": Entry("ProtoPNet", ProtoPNet, protopnet, "classes", WARM_START_EPOCHS),
        "protopool": Entry("ProtoPool", ProtoPool, protopool, "classes", WARM_START_EPOCHS),
        "prototree": Entry("ProtoTree", ProtoTree, prototree, "classes", WARM_START_EPOCHS),
        "pipnet": Entry("PIP-Net", PIPNet, pipnet, "classes", WARM_START_EPOCHS),
        "black_box": Entry("Black box, Grad-CAM", BlackBox, black_box, "classes"),
    }


@dataclass(frozen=True)
class Result:
    """A trained system's answers and what it took.

    Args:
        about: ``prototypes, explanations`` (mean a test prediction), ``parameters, seconds``.
        validation, test: its predictions on the splits.
        report: of the test parts; see `csr.evaluation.evaluate.evaluate_predictions`.
    """

    about: dict[str, Any]
    validation: Predictions
    test: Predictions
    report: dict[str, dict[str, Any]]


def run_system(entry: Entry, context: ExperimentContext, shared_seconds: float = 0.0) -> tuple[System, Result]:
    """Trains one system and judges it.

    Args:
        shared_seconds: what the shared backbone and its features took; counted as part of the system's own time.
    """
    collection, config = context.data.collection, context.config
    own = replace(context, config=replace(config, epochs=max(2, round(entry.epochs * config.epochs))))
    start = time.perf_counter()
    system = entry.train(own)
    seconds = time.perf_counter() - start + shared_seconds
    validation = predict(system, context.data, collection.rows("val"))
    test = predict(system, context.data, collection.rows("test"))
    assert test.explanations is not None
    about = {
        "prototypes": system.prototypes,
        "explanations": float(test.explanations.mean()),
        "parameters": sum(parameter.numel() for parameter in system.parameters()),
        "seconds": seconds,
    }
    return system, Result(about, validation, test, evaluate_predictions(collection, test, context.data.side))


@torch.no_grad()
def encode_latency(members: Mapping[str, System], image: torch.Tensor, rounds: int = 15) -> dict[str, float]:
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
