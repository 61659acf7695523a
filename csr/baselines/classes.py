"""What class logits mean to every compared system: the one place that knows whether a study has one class or several.

Where a study has one class, the probabilities are a softmax, the loss is the cross-entropy and the most probable class
is what a system says. Where it can have several, each class is a question of its own: a sigmoid, the binary
cross-entropy over the classes that are known of a study, and a threshold a class (`csr.evaluation.thresholds`). The
form of what is true tells which: n class indices, or n×T of 1, 0 or NaN (`csr.data.records.Collection.truth`).
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.special import expit, log_softmax
from torch import Tensor

from csr.data.records import NO_CLASS
from csr.evaluation.thresholds import validation_f1
from csr.training.class_losses import class_loss


def class_probabilities(logits: Tensor, multilabel: bool) -> Tensor:
    """…×T → …×T."""
    return logits.sigmoid() if multilabel else logits.softmax(-1)


def known_class_loss(logits: Tensor, truth: Tensor) -> Tensor:
    """`csr.training.class_losses.class_loss`, its mean over those of B studies of which a class is known; 0 if none is.

    Args:
        logits: B×T.
        truth: B indices, `NO_CLASS` where it is not known, or B×T of 1, 0 or NaN.
    """
    known = truth != NO_CLASS if truth.ndim == 1 else ~truth.isnan().all(1)
    each = class_loss(logits, truth, reduction="none")
    return (each * known).sum() / known.sum().clamp_min(1)  # what is known stays on the device


def validation_figure(truth: np.ndarray, logits: Tensor) -> tuple[float, float]:
    """What the settings of a system are chosen by on split ``val``: macro F1
    (`csr.evaluation.thresholds.validation_f1`) and, of equally good ones, the smaller loss. Greater is better.

    Args:
        truth: n indices, or n×T of 1, 0 or NaN.
        logits: n×T.
    """
    probabilities = class_probabilities(logits.double(), truth.ndim == 2).cpu().numpy()
    return validation_f1(truth, probabilities), -float(class_loss(logits, torch.from_numpy(truth).to(logits.device)))


def solve_elastic_net(
    inputs: np.ndarray, truth: np.ndarray, given: np.ndarray, strength: float, l1_ratio: float
) -> tuple[np.ndarray, np.ndarray]:
    """W T×J and b T that minimise, for inputs x n×J, given logits z n×T and one λ,

        mean CE(z + Wx + b, class) + λ/(J·T) · ( α ‖W‖₁ + (1 − α)/2 · ‖W‖² )

    Where studies can have several classes, these are T logistic regressions, each on the studies that it is known of:

        mean BCE(z_t + w_t x + b_t, class t) + λ/J · ( α ‖w_t‖₁ + (1 − α)/2 · ‖w_t‖² )

    W = P − N with P, N ≥ 0, so that the L1 term is linear and L-BFGS-B (Byrd et al. 1995) ends with exact zeros.
    scikit-learn's SAGA takes no given logits, and in trials stopped after 14 or after 1900 passes, by chance.

    Args:
        truth: n indices, or n×T of 1, 0 or NaN.
        strength, l1_ratio: λ and α.
    """
    if truth.ndim == 1:
        return _minimise(inputs, truth, given, strength, l1_ratio)
    known = ~np.isnan(truth)
    parts = [
        _minimise(inputs[known[:, t]], truth[known[:, t], t : t + 1], given[known[:, t], t : t + 1], strength, l1_ratio)
        for t in range(truth.shape[1])
    ]
    return np.concatenate([weight for weight, _ in parts]), np.concatenate([bias for _, bias in parts])


def _minimise(
    inputs: np.ndarray, truth: np.ndarray, given: np.ndarray, strength: float, l1_ratio: float
) -> tuple[np.ndarray, np.ndarray]:
    """See `solve_elastic_net`; ``truth`` is n indices, or n×1 of 1 and 0."""
    count, width = given.shape[1], inputs.shape[1]
    size, scale = count * width, strength / (count * width)

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        positive, negative, bias = flat[:size], flat[size : 2 * size], flat[2 * size :]
        weight = (positive - negative).reshape(count, width)
        loss, error = _loss(given + inputs @ weight.T + bias, truth)
        error /= len(inputs)
        slope = (error.T @ inputs + scale * (1 - l1_ratio) * weight).ravel()
        penalty = l1_ratio * flat[: 2 * size].sum() + (1 - l1_ratio) / 2 * np.square(weight).sum()
        gradient = np.concatenate([slope + scale * l1_ratio, -slope + scale * l1_ratio, error.sum(0)])
        return loss + scale * penalty, gradient

    bounds = [(0, None)] * (2 * size) + [(None, None)] * count
    options = {"maxiter": 20_000, "maxfun": 20_000, "ftol": 0, "gtol": 1e-7}  # to the end, whatever λ is
    start = np.zeros(2 * size + count)
    flat = minimize(objective, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options).x
    return (flat[:size] - flat[size : 2 * size]).reshape(count, width), flat[2 * size :]


def _loss(logits: np.ndarray, truth: np.ndarray) -> tuple[float, np.ndarray]:
    """The mean loss of n studies and, n times its slope, p − truth n×T."""
    if truth.ndim == 2:
        return float((np.logaddexp(0, logits) - truth * logits).mean()), expit(logits) - truth
    own = np.arange(len(logits)), truth
    log_probabilities = log_softmax(logits, axis=1)
    error = np.exp(log_probabilities)
    error[own] -= 1
    return -log_probabilities[own].mean(), error
