"""The last layer of systems on a frozen backbone, fitted to convergence, with as many tries for each."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from csr.baselines.classes import solve_elastic_net, validation_figure
from csr.baselines.protocol import ExperimentContext, TrainedBackbone

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)  # λ of every last layer that is fitted to a frozen system


def pooled_features(shared: TrainedBackbone, rows: np.ndarray) -> np.ndarray:
    """f̄ n×D float32 of rows, from the cached features."""
    chunks = [rows[start : start + 256] for start in range(0, len(rows), 256)]
    return np.concatenate([shared.cache.features[chunk].astype(np.float32).mean((2, 3)) for chunk in chunks])


def fit_last_layer(
    context: ExperimentContext,
    train_inputs: Tensor,
    val_inputs: Tensor,
    l1_ratio: float = 0.0,
    given: tuple[Tensor, Tensor] | None = None,
    copies: int = 1,
) -> nn.Linear:
    """The linear layer of a frozen system: logistic regression with an elastic net, multinomial where a study has one
    class, else one a class (`csr.baselines.classes.solve_elastic_net`), over inputs that are standardised with training
    statistics, which are then folded into W and b, so that λ means the same whatever the inputs' scale. λ, one for all
    classes, is the one of `STRENGTHS` with the best `csr.baselines.classes.validation_figure`. Every last layer on a
    frozen system gets these six tries.

    Args:
        train_inputs, val_inputs: n×J, rows of the splits; of ``train``, those whose class is known.
        l1_ratio: α; 0 is plain L2.
        given: z n×T of the splits, logits that the layer adds to; none by default.
        copies: how many times ``train_inputs`` hold the rows, one after the other.
    """
    collection = context.data.collection
    classes, train, val = collection.truth(), np.tile(context.class_rows, copies), collection.rows("val")
    raw, val_raw = train_inputs.double().cpu(), val_inputs.double().cpu()
    mean, std = raw.mean(0), raw.std(0, correction=0)
    std = torch.where(std > 1e-8, std, torch.ones_like(std))  # an input that never changes
    train_given, val_given = given or (torch.zeros(len(part), context.classes) for part in (raw, val_raw))
    best, best_rank = None, (-np.inf, -np.inf)
    for strength in STRENGTHS:
        weight, bias = solve_elastic_net(
            ((raw - mean) / std).numpy(), classes[train], train_given.double().cpu().numpy(), strength, l1_ratio
        )
        layer = nn.Linear(raw.shape[1], context.classes)
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(weight) / std)
            layer.bias.copy_(torch.from_numpy(bias) - (torch.from_numpy(weight) / std) @ mean)
            logits = layer(val_raw.float()) + val_given.float().cpu()
        rank = validation_figure(classes[val], logits)
        if best is None or rank > best_rank:
            best, best_rank = layer, rank
    assert best is not None
    return best
