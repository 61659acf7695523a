"""A stochastic concept bottleneck model (SCBM; Vandenhirtz et al. 2024, NeurIPS, arXiv 2406.19272) on CSR's stage 1,
the shared backbone ``concepts_lse``.

ℓ = stage 1's concept logits, f̄ = its features averaged over space and standardised, c = true concepts, K of them:

    concept logits   η ~ N(μ, L Lᵀ), μ_k = a_k ℓ_k + b_k                                         (section 3.2)
    covariance       L lower triangular, a softplus on its diagonal: parameters (``global``), or these and a linear
                     layer on f̄ (``amortised``)
    concepts         c_k ~ Bernoulli(σ(η_k)), drawn for each of M samples of η
    classes          p(y) = 1/M Σ_m softmax(W c⁽ᵐ⁾ + w)_y

    loss             −log p(y) − log 1/M Σ_m Π_k p(c_k | η⁽ᵐ⁾) + λ Σ_{i≠j} |(L Lᵀ)⁻¹_ij| / K(K − 1)     (section 3.3)

in which c⁽ᵐ⁾ is hard forwards and relaxed backwards (straight-through Gumbel), at a temperature that falls from 1 to a
half. A reader who tells the concepts S sets them to the truth and moves the others, by what correlates (section 3.4):
η_S is put on the boundary of its marginal's 99 % confidence region, towards the truth, and the other logits follow
their normal distribution given that. M is 100, in use too, where the random numbers are drawn once and kept, so that an
answer is the same every time and an intervention changes nothing but what it says.

Covariance and λ are those of `TRIES` with the best mean macro F1 on ``val`` over 0 … `BUDGET` true answers about the
concept that the model is least sure of, the paper's policy. These are six tries, as every last layer gets; the paper
has λ = 1. Epochs and learning rate are IntCEM's.

Compared with the official code (github.com/mvandenhi/SCBM), which was read: losses, relaxation, temperature and
conditioning are the same. Differences: stage 1 is frozen, so that μ is its logits, rescaled, rather than a layer
trained with the rest (as in the post-hoc SCBM of the same group, arXiv 2510.08219, which keeps μ as it is and fits L
alone); the optimiser is every stage's, AdamW with a cosine. Where a reader told concepts, all of η_S moves by the same
amount: there the official code starts to search, study by study, for the point of the region under which the answers
are likeliest, which takes too long for simulated readers. Samples of the conditional distribution are those of the
unconditional one, corrected (Matheron's rule), rather than drawn anew. Concepts that nobody labelled are left out of
their loss, and where a study can have several classes p(y) is each class's own (`csr.baselines.classes`).

Pointing-game map of concept k: cam_k. Explanations: the K concepts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import chi2
from torch import Tensor, nn

from csr.baselines.cbm import concept_logits
from csr.baselines.classes import class_probabilities, validation_figure
from csr.baselines.last_layer import pooled_features
from csr.baselines.protocol import Answer, Entry, ExperimentContext, System, bottleneck_epochs
from csr.network.concept_model import ConceptModel
from csr.network.rebuild import build_concept_model, concept_model_config
from csr.training.callbacks import Callbacks
from csr.training.class_losses import class_loss
from csr.training.loop import Task, fit
from csr.training.runtime import device, seed_everything, seeds, send

Covariance = Literal["global", "amortised"]

SAMPLES = 100  # M
REGION = 0.99
LAST_TEMPERATURE = 0.5
BUDGET = 5  # answers of the curve that the choice on val goes by
TRIES: tuple[tuple[Covariance, float], ...] = tuple(
    (kind, weight) for kind in ("global", "amortised") for weight in (0.1, 1.0, 10.0)
)


@dataclass(frozen=True)
class SCBMConfig:
    """How the bottleneck is trained on cached logits and features; ``precision_weight`` is λ."""

    covariance: Covariance = "amortised"
    precision_weight: float = 1.0
    epochs: int = 20
    batch_size: int = 64
    learning_rate: float = 2e-3
    weight_decay: float = 1e-3
    seed: int = 0


@dataclass(frozen=True)
class Normal:
    """The concept logits of B studies: N(μ, L Lᵀ) with μ B×K and L B×K×K."""

    mean: Tensor
    factor: Tensor

    def draw(self, noise: Tensor) -> Tensor:
        """η B×M×K of standard normal numbers, M×K or B×M×K."""
        return self.mean[:, None] + noise @ self.factor.mT

    def given(self, draws: Tensor, truth: Tensor, told: Tensor, reach: Tensor) -> Tensor:
        """The same draws given what a reader told: η_S on the boundary of its confidence region, the others moved by
        Σ_{·S} Σ_SS⁻¹ (η_S told − η_S drawn). Where nothing was told they stay.

        Args:
            draws: η B×M×K.
            truth: B×K of 1 or 0; what is not told does not matter.
            told: B×K of 1 or 0, which concepts are S.
            reach: K + 1, the quantile of χ² with as many degrees of freedom.
        """
        told, factor = told.double(), self.factor.double()
        covariance = factor @ factor.mT
        # Σ_SS, and the identity where nothing was told, so that studies with different S are solved together
        own = told[:, :, None] * told[:, None] * covariance + torch.diag_embed(1 - told)
        towards = told * (2 * truth.double() - 1)
        length = (towards * torch.linalg.solve(own, towards)).sum(1).clamp_min(1e-12)
        step = (reach.double()[told.sum(1).long()] / length).sqrt()
        goal = self.mean.double() + step[:, None] * towards
        gap = told[:, None] * (goal[:, None] - draws.double())
        return draws + (torch.linalg.solve(own, gap.mT).mT @ covariance).float()


class Bottleneck(nn.Module):
    """All that is trained: the normal distribution of the concept logits, and the linear layer on concepts.

    Args:
        concepts, width, classes: K, D and T.
        covariance: see the module's docstring.
        multilabel: a study can have several classes.
    """

    mean: Tensor
    std: Tensor
    noise: Tensor
    uniform: Tensor
    reach: Tensor

    def __init__(self, concepts: int, width: int, classes: int, covariance: Covariance, multilabel: bool) -> None:
        super().__init__()
        self.multilabel = multilabel
        entries = concepts * (concepts + 1) // 2
        self.scale, self.shift = nn.Parameter(torch.ones(concepts)), nn.Parameter(torch.zeros(concepts))
        self.triangle = nn.Parameter(torch.zeros(entries))
        self.spread = nn.Linear(width, entries, bias=False) if covariance == "amortised" else None
        if self.spread is not None:
            nn.init.normal_(self.spread.weight, std=0.01 / math.sqrt(width))  # at first all studies have about one Σ
        self.head = nn.Linear(concepts, classes)
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("std", torch.ones(width))
        self.register_buffer("noise", torch.randn(SAMPLES, concepts))
        self.register_buffer("uniform", torch.rand(SAMPLES, concepts))
        quantiles = [0.0, *chi2.ppf(REGION, np.arange(1, concepts + 1))]
        self.register_buffer("reach", torch.tensor(quantiles, dtype=torch.float32))

    def normal(self, logits: Tensor, features: Tensor) -> Normal:
        """ℓ B×K and f̄ B×D, not standardised → the distribution of η."""
        count, concepts = logits.shape
        entries = self.triangle.expand(count, -1)
        if self.spread is not None:
            entries = entries + self.spread((features - self.mean) / self.std)
        factor = logits.new_zeros(count, concepts, concepts)
        rows, columns = torch.tril_indices(concepts, concepts, device=logits.device)
        factor[:, rows, columns] = torch.where(rows == columns, F.softplus(entries) + 1e-6, entries)
        return Normal(self.scale * logits + self.shift, factor)

    def classify(self, concepts: Tensor) -> Tensor:
        """c B×M×K → class logits B×T, those of the probabilities' mean over the samples."""
        each = self.head(concepts)
        if not self.multilabel:
            return _log_mean(each.log_softmax(-1))
        return _log_mean(F.logsigmoid(each)) - _log_mean(F.logsigmoid(-each))

    def answer(self, normal: Normal, truth: Tensor, told: Tensor) -> tuple[Tensor, Tensor]:
        """What is concluded once the concepts μ of B studies have been told: probabilities of the concepts B×K, and
        class logits B×T.

        Args:
            truth, told: see `Normal.given`.
        """
        draws = normal.given(normal.draw(self.noise), truth, told, self.reach)
        known = told[:, None] != 0
        likely = torch.where(known, truth[:, None].to(draws.dtype), draws.sigmoid())
        return likely.mean(1), self.classify((self.uniform < likely).to(draws.dtype))


def _log_mean(logs: Tensor) -> Tensor:
    """Logarithms B×M×T → B×T, that of the mean over M."""
    return logs.logsumexp(1) - math.log(logs.shape[1])


class SCBM(System):
    """Concept model, and the bottleneck on its logits and features.

    Args:
        concept_model: image → features, cam and concept logits.
        bottleneck: trained on what the concept model says.
    """

    def __init__(self, concept_model: ConceptModel, bottleneck: Bottleneck) -> None:
        super().__init__()
        self.concept_model = concept_model
        self.bottleneck = bottleneck

    @property
    def config(self) -> dict[str, Any]:
        return {
            "concept_model": concept_model_config(self.concept_model),
            "classes": self.bottleneck.head.out_features,
            "covariance": "global" if self.bottleneck.spread is None else "amortised",
            "multilabel": self.bottleneck.multilabel,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> SCBM:
        model = build_concept_model(config["concept_model"])
        sizes = model.to_maps.out_channels, model.backbone.width, config["classes"]
        return cls(model, Bottleneck(*sizes, config["covariance"], config["multilabel"]))

    def answer(self, images: Tensor) -> Answer:
        features = self.concept_model.features(images)
        maps = self.concept_model.maps(features)
        logits = self.concept_model.pool(maps)
        nobody = torch.zeros_like(logits)
        concepts, classes = self.bottleneck.answer(
            self.bottleneck.normal(logits, features.mean((2, 3))), nobody, nobody
        )
        probabilities = class_probabilities(classes, self.bottleneck.multilabel)
        return Answer(probabilities, concepts, maps, concepts.new_full((len(concepts),), concepts.shape[1]))


@dataclass(frozen=True)
class Studies:
    """Studies with what is needed to train on them or to ask about them, all on one device.

    Args:
        logits: ℓ n×K.
        features: f̄ n×D.
        truth: c n×K; 0 where it is unknown.
        known: n×K bool, which are known.
        classes: n indices, or n×T of 1, 0 or NaN where a study can have several.
    """

    logits: Tensor
    features: Tensor
    truth: Tensor
    known: Tensor
    classes: Tensor

    def __getitem__(self, chosen: Tensor) -> Studies:
        return Studies(*(part[chosen] for part in vars(self).values()))


def studies_of(context: ExperimentContext, split: str) -> Studies:
    """Those of a split that have a class, from the shared backbone's cache."""
    assert context.shared_backbone is not None
    rows = context.data.collection.class_rows(split)
    labels = context.concept_labels(rows)
    return Studies(
        concept_logits(context.shared_backbone, rows),
        torch.from_numpy(pooled_features(context.shared_backbone, rows)).to(device()),
        labels.nan_to_num(0),
        ~labels.isnan(),
        context.class_labels(rows),
    )


def scbm(context: ExperimentContext) -> SCBM:
    """Trains the bottleneck once a try and keeps the one that is best with answers on ``val``."""
    assert context.shared_backbone is not None
    train, val = studies_of(context, "train"), studies_of(context, "val")
    configs = [SCBMConfig(covariance, weight, seed=context.config.seed) for covariance, weight in TRIES]
    epochs = bottleneck_epochs(len(train.logits), configs[0].epochs, configs[0].batch_size)
    configs = [replace(config, epochs=epochs) for config in configs]
    tries = [train_bottleneck(train, val, context.classes, config, context.callbacks) for config in configs]
    best = max(tries, key=lambda bottleneck: np.mean(answered_f1(bottleneck, val, BUDGET)))
    return SCBM(context.shared_backbone.model, best).to(device()).eval()


def train_bottleneck(
    train: Studies, val: Studies, classes: int, config: SCBMConfig, callbacks: Callbacks
) -> Bottleneck:
    """Trains on concept logits and features and reports macro F1 on ``val`` without answers each epoch."""
    seed_everything(seeds(config.seed, "scbm: weights"))
    (count, width), concepts = train.features.shape, train.logits.shape[1]
    bottleneck = Bottleneck(concepts, width, classes, config.covariance, train.classes.ndim == 2)
    bottleneck = bottleneck.to(train.logits.device)
    bottleneck.mean.copy_(train.features.mean(0))
    bottleneck.std.copy_(train.features.std(0, correction=0).clamp_min(1e-4))
    temperature = 1.0

    def start_epoch(epoch: int) -> None:
        nonlocal temperature
        temperature = LAST_TEMPERATURE ** (epoch / config.epochs)

    def terms(rows: np.ndarray) -> dict[str, Tensor]:
        own = train[send(torch.from_numpy(rows), train.logits.device)]
        normal = bottleneck.normal(own.logits, own.features)
        draws = normal.draw(torch.randn(len(rows), SAMPLES, concepts, device=own.logits.device))
        return {
            "class": class_loss(bottleneck.classify(relaxed_concepts(draws, temperature)), own.classes),
            "concept": concept_loss(draws, own.truth, own.known),
            "precision": config.precision_weight * precision_loss(normal.factor),
        }

    def after_epoch(epoch: int) -> dict[str, float]:
        return {"val_macro_f1": answered_f1(bottleneck, val, 0)[0]}

    fit(Task("scbm", bottleneck, np.arange(count), terms, after_epoch, before_epoch=start_epoch), config, callbacks)
    return bottleneck


def relaxed_concepts(draws: Tensor, temperature: float) -> Tensor:
    """η → c of the same shape, 1 or 0 with chance σ(η), with the gradient of the relaxed Bernoulli distribution
    (Maddison et al. 2017, Jang et al. 2017; straight-through)."""
    uniform = torch.rand_like(draws).clamp(1e-6, 1 - 1e-6)
    soft = ((draws + uniform.logit()) / temperature).sigmoid()
    return (soft > 0.5).float() - soft.detach() + soft


def concept_loss(draws: Tensor, truth: Tensor, known: Tensor) -> Tensor:
    """−log 1/M Σ_m Π_k p(c_k | η⁽ᵐ⁾), mean over studies; unknown concepts are left out.

    Args:
        draws: η B×M×K.
        truth: B×K of 1 or 0.
        known: B×K bool.
    """
    target = truth[:, None].expand_as(draws)
    likelihood = -F.binary_cross_entropy_with_logits(draws, target, reduction="none") * known[:, None]
    return -_log_mean(likelihood.sum(2, keepdim=True)).mean()


def precision_loss(factor: Tensor) -> Tensor:
    """Mean absolute entry of (L Lᵀ)⁻¹ off the diagonal, mean over studies: a lasso on partial correlations."""
    concepts = factor.shape[-1]
    identity = torch.eye(concepts, device=factor.device, dtype=factor.dtype)
    inverse = torch.linalg.solve_triangular(factor, identity.expand_as(factor), upper=False)
    precision = (inverse.mT @ inverse).abs()
    beside = precision.sum((1, 2)) - precision.diagonal(dim1=1, dim2=2).sum(1)
    return beside.mean() / max(concepts * (concepts - 1), 1)


@torch.no_grad()
def answered_f1(bottleneck: Bottleneck, studies: Studies, budget: int) -> list[float]:
    """Macro F1 after 0 … budget true answers, each about the concept that is nearest even odds."""
    normal = bottleneck.normal(studies.logits, studies.features)
    told, found = torch.zeros_like(studies.truth), []
    for turn in range(budget + 1):
        likely, logits = bottleneck.answer(normal, studies.truth, told)
        found.append(validation_figure(studies.classes.cpu().numpy(), logits)[0])
        askable = studies.known & (told == 0)
        if turn < budget:
            doubt = torch.where(askable, -(likely - 0.5).abs(), -torch.inf)
            told = told + F.one_hot(doubt.argmax(1), told.shape[1]) * askable
    return found


SYSTEMS = {"scbm_shared": Entry("Stochastic CBM on CSR's stage 1", SCBM, scbm, "concepts_lse")}
