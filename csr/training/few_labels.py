"""Stage 1 where concept labels are partly unknown: every unknown one gets a soft label, made anew each epoch.

The loss of known labels alone leaves log-sum-exp pooling on its plateau when few are known: the output is the
concepts' base rates and hardly any gradient reaches the cells that show something (docs/comparison.md holds the
curves). Two things tell more about a study than its known concept labels: its classes, and what the network itself has
learned of its image. A soft label is the probability of a logistic regression, one a concept, fitted to the known
labels of the training studies:

    q_nk = P(concept k in study n | classes of n, ℓ'_nk)
    loss = ( Σ_known BCE(ℓ_nk, y_nk) + weight · Σ_unknown BCE(ℓ_nk, q_nk) ) / ( #known + weight · #unknown )

Known labels count as many times as there are: a mean of their own would make a few of them as loud as all others, and
their noise is what keeps the network on its plateau.

ℓ' is the logit that a teacher gives the image as it is. The teacher is the moving average of the weights that are
trained (mean teacher; Tarvainen & Valpola 2017, arXiv 1703.01780, section 2); what learns from it sees the image
augmented (Sohn et al. 2020, arXiv 2001.07685, section 2.1). There only guesses above a confidence count; here the
regression says how much a logit, or a class, is worth, so that a teacher that knows nothing yet is not listened to and
needs no warm-up, and an unsure guess is an unsure label.

Not covered: labels that are hidden for what they say (the known ones must be a fair sample), and where a finding is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from csr.data.prepared import PreparedSet
from csr.data.records import Collection
from csr.network.concept_model import ConceptModel
from csr.training.images import image_batches
from csr.training.runtime import Precision, autocast, gather, own_part, send, world_size
from csr.training.soft_labels import fitted_labels, soft_labels


@dataclass(frozen=True)
class FewLabelsConfig:
    """What is done about unknown concept labels of training studies; nothing at all where every label is known.

    Args:
        weight: of a soft label beside a known one; 0, as in the ``paper`` preset: unknown labels are left out.
        classes: whether a study's classes tell of its concepts.
        decay: of the teacher's moving average, a step of training.
        longest: how many times as long the schedule may become: it has ``epochs`` divided by the share of labels that
            are known, as many images with a known label as a fully labelled set would show, up to this factor.
    """

    weight: float = 1.0
    classes: bool = True
    decay: float = 0.99
    longest: float = 1.0

    def __post_init__(self) -> None:
        if self.weight < 0:
            raise ValueError(f"concepts.few_labels.weight: must be at least 0, got {self.weight}")
        if not 0 <= self.decay < 1:
            raise ValueError(f"concepts.few_labels.decay: must be at least 0 and below 1, got {self.decay}")
        if self.longest < 1:
            raise ValueError(f"concepts.few_labels.longest: must be at least 1, got {self.longest}")


def known_share(collection: Collection) -> float:
    """Share of concept labels that are known, of the studies that are trained on: those that have any label."""
    return float((~np.isnan(collection.concept_labels()[collection.labelled_rows("train")])).mean())


def lengthened(epochs: int, known: float, config: FewLabelsConfig) -> int:
    """Epochs of the schedule where a share of the labels is known; see ``longest``."""
    return round(epochs * min(1 / max(known, 1e-9), config.longest))


class FewLabels(nn.Module):
    """The teacher and its soft labels, beside the model that is trained; its state is all that a checkpoint needs.

    Args:
        model: what is trained.
        data: of which concept labels of training studies are unknown. Studies without any label stay out of it, as out
            of every batch.
        positive: K, how many times a present concept counts; None: once.
        counts: N×K, how many times a label of the collection counts; None: once.
        labels: the collection's, N×K, where someone else says from epoch to epoch which are unknown.
    """

    def __init__(
        self,
        model: ConceptModel,
        data: PreparedSet,
        config: FewLabelsConfig,
        precision: Precision,
        positive: Tensor | None = None,
        counts: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.student = model
        self.teacher = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(config.decay), use_buffers=True)
        self.teacher.requires_grad_(False)
        self._data = data
        self._config = config
        self._precision = precision
        self._positive = positive
        self._counts = counts
        self._rows = data.collection.labelled_rows("train")
        self._labels = torch.from_numpy(data.collection.concept_labels()) if labels is None else labels
        self._fitted = fitted_labels(data.collection, self._rows)
        self._indicators = data.collection.class_indicators()[self._rows] if config.classes else None
        self._soft = torch.full_like(self._labels, torch.nan)

    def follow(self) -> None:
        """Moves the teacher towards the model; once a step."""
        self.teacher.update_parameters(self.student)

    def label(self, epoch: int) -> None:
        """Makes the soft labels of an epoch: by the classes alone in the first, with the teacher's logits later.

        Processes of a distributed run look at a part of the images each and come to the same labels.
        """
        found = soft_labels(self._fitted, self._indicators, self._teacher_logits() if epoch else None)
        self._soft[torch.from_numpy(self._rows)] = torch.from_numpy(found)

    def terms(self, logits: Tensor, rows: np.ndarray, part: slice) -> dict[str, Tensor]:
        """The loss of a batch in two terms, one of its known and one of its soft labels, as the module's docstring has
        it, such that the average over processes is the batch's.

        Args:
            logits: B'×K of a process's part of the batch.
            rows: B rows of the batch.
        """
        labels = self._labels[rows]
        known = ~labels.isnan()
        targets = torch.where(known, labels, self._soft[rows])
        weights = torch.where(known, 1.0, self._config.weight) * ~targets.isnan()
        if self._counts is not None:
            weights = weights * self._counts[rows]
        share = weights[part] * (world_size() / weights.sum().clamp_min(1e-9))
        losses = F.binary_cross_entropy_with_logits(
            logits.float(),
            send(targets[part].nan_to_num(0), logits.device),
            reduction="none",
            pos_weight=self._positive,
        )
        losses = losses * send(share, logits.device)
        own = send(known[part], logits.device)
        return {"loss": (losses * own).sum(), "soft_loss": (losses * ~own).sum()}

    @torch.no_grad()
    def _teacher_logits(self) -> np.ndarray:
        """n×K of the training images as they are."""
        self.teacher.eval()
        pieces = []
        for _, images in image_batches(self._data, self._rows[own_part(len(self._rows))], 64):
            with autocast(self._precision):
                pieces.append(self.teacher(images)[1])
        return gather(torch.cat(pieces).cpu() if pieces else torch.zeros(0, self._labels.shape[1])).numpy()
