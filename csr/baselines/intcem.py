"""An intervention-aware concept embedding model (IntCEM; Espinosa Zarlenga et al. 2023, "Learning to receive help",
arXiv 2309.16928) on CSR's stage 1, the shared backbone ``concepts_lse``.

v_k = local concept vector of concept k (`csr.network.prototypes.local_concept_vectors`), standardised with training
statistics; p_k = σ(stage 1's concept logit); c_k = true concept; μ ∈ {0, 1}^K = the concepts that a reader has told:

    embeddings       [ĉ⁺_k, ĉ⁻_k] = LeakyReLU(W_k v_k + b_k), 16 numbers each
    mixing           q_k = μ_k c_k + (1 − μ_k) p_k
    bottleneck       ĉ_k = q_k ĉ⁺_k + (1 − q_k) ĉ⁻_k, class logits f(ĉ) = linear layer on [ĉ_1 … ĉ_K]
    policy           ψ(ĉ, μ): which concept to ask about next, an MLP; told ones are not asked again

A step of training draws μ⁰ by RandInt, each concept with chance 0.25, and T, how many more are told, evenly from
1 … ⌊h⌋; the horizon h = 2 · 1.005^step, at most 6. One after another is drawn from softmax ψ by the straight-through
Gumbel softmax, which gives μ¹ … μᵀ. The loss is

    imitation        λ · 1/T · Σ_t CE(ψ(ĉ, μᵗ⁻¹), argmax_k log f(ĉ with k told, too)_class), the greedy oracle
    class            ( CE(f, class) at μ⁰ + γᵀ · CE(f, class) at μᵀ ) / (1 + γᵀ), γ = 1.1

λ (the paper's grid) and the weight decay are those of `TRIES` with the best mean macro F1 on ``val`` over 0 … `BUDGET`
true answers, asked by ψ: the area under the curve of interventions. These are six tries, as every last layer gets. The
other constants are the paper's and its official code's, but for epochs and learning rate, settled on ``val`` of the
phantom, where twice the epochs or the rate change little.

Where this differs from the paper: stage 1 is frozen, so there is no concept loss, each concept's embeddings see its own
local vector rather than the whole image, and p is stage 1's own rather than a layer's on the embeddings; training has a
fixed length and no early stopping; the optimiser is every stage's, AdamW with a cosine. Where it differs from the
official code: RandInt draws for each study rather than once a batch; no further concepts are told between the class
loss at μ⁰ and the trajectory; T may reach the horizon; the policy cannot draw a concept twice, in training either; the
oracle goes by log-probabilities, not by logits. Concepts that nobody labelled are never told. Where a study can have
several classes, CE and log f are those of `csr.baselines.classes`; the paper has one class a study.

Pointing-game map of concept k: cam_k. Explanations: the K concepts.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from csr.baselines.cbm import concept_logits
from csr.baselines.classes import class_probabilities, validation_figure
from csr.baselines.protocol import Answer, Entry, ExperimentContext, System, TrainedBackbone, bottleneck_epochs
from csr.network.concept_model import ConceptModel
from csr.network.prototypes import local_concept_vectors
from csr.network.rebuild import build_concept_model, concept_model_config
from csr.training.callbacks import Callbacks
from csr.training.class_losses import class_loss
from csr.training.loop import Task, fit
from csr.training.runtime import count_batches, device, seed_everything, seeds, send

EMBEDDING = 16
POLICY_LAYERS = (128, 128, 64, 64)
RANDINT = 0.25
DISCOUNT = 1.1  # γ
FIRST_HORIZON, HORIZON_RATE, LAST_HORIZON = 2.0, 1.005, 6
BUDGET = 5  # answers of the curve that the choice on val goes by
TRIES = tuple((imitation, decay) for imitation in (0.1, 1.0, 5.0) for decay in (0.3, 3.0))  # λ and weight decay


@dataclass(frozen=True)
class IntCEMConfig:
    """How the bottleneck is trained on cached vectors; ``imitation`` is λ."""

    imitation: float = 1.0
    weight_decay: float = 0.3
    epochs: int = 20
    batch_size: int = 64
    learning_rate: float = 2e-3
    seed: int = 0


@dataclass(frozen=True)
class Embedded:
    """What is known of B studies before anybody is asked.

    Args:
        positive, negative: ĉ⁺ and ĉ⁻, B×K×E.
        likely: p, B×K.
    """

    positive: Tensor
    negative: Tensor
    likely: Tensor

    def mix(self, truth: Tensor, told: Tensor) -> Tensor:
        """ĉ B×K×E.

        Args:
            truth: c B×K, without NaN; what is not told does not matter.
            told: μ B×K of 1 or 0.
        """
        mixing = (told * truth + (1 - told) * self.likely)[..., None]
        return mixing * self.positive + (1 - mixing) * self.negative


class Bottleneck(nn.Module):
    """All that is trained: concept embeddings, the linear layer on them, and the policy ψ.

    Args:
        concepts, width, classes: K, D and T.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, concepts: int, width: int, classes: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(concepts, width))
        self.register_buffer("std", torch.ones(concepts, width))
        layers = [nn.Linear(width, 2 * EMBEDDING) for _ in range(concepts)]
        self.weight = nn.Parameter(torch.stack([layer.weight.detach().T for layer in layers]))  # K×D×2E
        self.bias = nn.Parameter(torch.stack([layer.bias.detach() for layer in layers]))
        self.head = nn.Linear(concepts * EMBEDDING, classes)
        sizes = (concepts * EMBEDDING + concepts, *POLICY_LAYERS)
        hidden: list[nn.Module] = []
        for inputs, outputs in pairwise(sizes):
            hidden += [nn.BatchNorm1d(inputs), nn.Linear(inputs, outputs), nn.LeakyReLU()]
        self.policy = nn.Sequential(*hidden, nn.BatchNorm1d(sizes[-1]), nn.Linear(sizes[-1], concepts))

    def embed(self, vectors: Tensor, likely: Tensor) -> Embedded:
        """Local concept vectors B×K×D and p B×K → embeddings."""
        standard = (vectors - self.mean) / self.std
        values = F.leaky_relu(torch.einsum("bkd,kde->bke", standard, self.weight) + self.bias)
        return Embedded(values[..., :EMBEDDING], values[..., EMBEDDING:], likely)

    def classify(self, mixed: Tensor) -> Tensor:
        """ĉ B×K×E → class logits B×T."""
        return self.head(mixed.flatten(1))

    def rank(self, mixed: Tensor, told: Tensor, askable: Tensor) -> Tensor:
        """ψ's logits B×K; least, but finite, for what is not askable (B×K bool)."""
        scores = self.policy(torch.cat([mixed.flatten(1), told], dim=1))
        return scores.masked_fill(~askable, torch.finfo(scores.dtype).min)


class IntCEM(System):
    """Concept model, and the bottleneck on its local concept vectors.

    Args:
        concept_model: image → cam and concept logits.
        bottleneck: trained on what the concept model says.
        multilabel: a study can have several classes.
    """

    def __init__(self, concept_model: ConceptModel, bottleneck: Bottleneck, multilabel: bool = False) -> None:
        super().__init__()
        self.multilabel = multilabel
        self.concept_model = concept_model
        self.bottleneck = bottleneck

    @property
    def config(self) -> dict[str, Any]:
        return {
            "concept_model": concept_model_config(self.concept_model),
            "classes": self.bottleneck.head.out_features,
            "multilabel": self.multilabel,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> IntCEM:
        model = build_concept_model(config["concept_model"])
        bottleneck = Bottleneck(model.to_maps.out_channels, model.backbone.width, config["classes"])
        return cls(model, bottleneck, config["multilabel"])

    def answer(self, images: Tensor) -> Answer:
        features = self.concept_model.features(images)
        maps = self.concept_model.maps(features)
        concepts = self.concept_model.pool(maps)
        embedded = self.bottleneck.embed(local_concept_vectors(features, maps), concepts.sigmoid())
        nobody = torch.zeros_like(concepts)
        logits = self.bottleneck.classify(embedded.mix(nobody, nobody))
        probabilities = class_probabilities(logits, self.multilabel)
        return Answer(probabilities, concepts, maps, concepts.new_full((len(concepts),), concepts.shape[1]))


@dataclass(frozen=True)
class Studies:
    """Studies with what is needed to train on them or to ask about them, all on one device.

    Args:
        vectors: v n×K×D, not standardised.
        likely: p n×K.
        truth: c n×K; 0 where it is unknown.
        known: n×K bool, which are known.
        classes: n indices, or n×T of 1, 0 or NaN where a study can have several.
    """

    vectors: Tensor
    likely: Tensor
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
        concept_vectors(context.shared_backbone, rows),
        concept_logits(context.shared_backbone, rows).sigmoid(),
        labels.nan_to_num(0),
        ~labels.isnan(),
        context.class_labels(rows),
    )


def concept_vectors(shared: TrainedBackbone, rows: np.ndarray) -> Tensor:
    """v n×K×D of rows, from the cached features and maps."""
    chunks = [rows[start : start + 256] for start in range(0, len(rows), 256)]
    return torch.cat([local_concept_vectors(*shared.cache.batch(chunk, device())) for chunk in chunks])


def intcem(context: ExperimentContext) -> IntCEM:
    """Trains the bottleneck once a try and keeps the one that is best with answers on ``val``."""
    assert context.shared_backbone is not None
    train, val = studies_of(context, "train"), studies_of(context, "val")
    configs = [IntCEMConfig(imitation, weight_decay, seed=context.config.seed) for imitation, weight_decay in TRIES]
    epochs = bottleneck_epochs(len(train.likely), configs[0].epochs, configs[0].batch_size)
    configs = [replace(config, epochs=epochs) for config in configs]
    tries = [train_bottleneck(train, val, context.classes, config, context.callbacks) for config in configs]
    best = max(tries, key=lambda bottleneck: np.mean(answered_f1(bottleneck, val, BUDGET)))
    return IntCEM(context.shared_backbone.model, best, context.multilabel).to(device()).eval()


def train_bottleneck(
    train: Studies, val: Studies, classes: int, config: IntCEMConfig, callbacks: Callbacks
) -> Bottleneck:
    """Trains on local concept vectors and reports macro F1 on ``val`` without answers each epoch."""
    seed_everything(seeds(config.seed, "intcem: weights"))
    count, concepts, width = train.vectors.shape
    bottleneck = Bottleneck(concepts, width, classes).to(train.vectors.device)
    bottleneck.mean.copy_(train.vectors.mean(0))
    bottleneck.std.copy_(train.vectors.std(0, correction=0).clamp_min(1e-4))
    draws, step = torch.Generator(), 0

    def start_epoch(epoch: int) -> None:
        nonlocal step
        step = epoch * count_batches(count, config.batch_size)

    def terms(rows: np.ndarray) -> dict[str, Tensor]:
        nonlocal step
        length = int(torch.randint(1, horizon(step, concepts) + 1, (), generator=draws))
        step += 1
        own = train[send(torch.from_numpy(rows), train.vectors.device)]
        class_loss, imitation = trajectory_losses(bottleneck, own, length)
        return {"class": class_loss, "imitation": config.imitation * imitation}

    def after_epoch(epoch: int) -> dict[str, float]:
        return {"val_macro_f1": answered_f1(bottleneck, val, 0)[0]}

    task = Task("intcem", bottleneck, np.arange(count), terms, after_epoch, before_epoch=start_epoch, draws=draws)
    fit(task, config, callbacks)
    return bottleneck


def horizon(step: int, concepts: int) -> int:
    """⌊h⌋: how many concepts at most are told in the trajectory of a step of training."""
    return min(int(FIRST_HORIZON * HORIZON_RATE ** min(step, 1000)), LAST_HORIZON, concepts)


def trajectory_losses(bottleneck: Bottleneck, studies: Studies, length: int) -> tuple[Tensor, Tensor]:
    """The class loss and the imitation loss, without λ, of a trajectory of T = ``length`` interventions.

    A study whose known concepts have all been told before the trajectory's end is told nothing more, and its policy has
    nothing to imitate.
    """
    embedded = bottleneck.embed(studies.vectors, studies.likely)
    told = ((torch.rand_like(studies.truth) < RANDINT) & studies.known).float()
    mixed = embedded.mix(studies.truth, told)
    before = class_loss(bottleneck.classify(mixed), studies.classes)
    imitation = torch.zeros_like(before)
    for _ in range(length):
        askable = studies.known & (told == 0)
        scores = bottleneck.rank(mixed, told, askable)
        target = oracle(bottleneck, embedded, studies, told).argmax(1)
        asking = askable.any(1).float()
        missed = F.cross_entropy(scores, target, reduction="none")
        imitation = imitation + (asking * missed).sum() / asking.sum().clamp_min(1) / length
        told = told + F.gumbel_softmax(scores, hard=True) * askable
        mixed = embedded.mix(studies.truth, told)
    after = class_loss(bottleneck.classify(mixed), studies.classes)
    weight = DISCOUNT**length
    return (before + weight * after) / (1 + weight), imitation


@torch.no_grad()
def oracle(bottleneck: Bottleneck, embedded: Embedded, studies: Studies, told: Tensor) -> Tensor:
    """log f(ĉ with k told, too) of the true class, B×K, from which the greedy oracle takes the best; −∞ for what is
    told already or unknown. Of several classes, the mean log-likelihood of those that are known.

    f is linear, so telling k adds W_k (c_k − p_k)(ĉ⁺_k − ĉ⁻_k) to the logits.
    """
    weight = bottleneck.head.weight.unflatten(1, (-1, EMBEDDING))  # T×K×E
    change = (studies.truth - embedded.likely)[..., None] * (embedded.positive - embedded.negative)
    logits = bottleneck.classify(embedded.mix(studies.truth, told))[:, None]
    logits = logits + torch.einsum("bke,tke->bkt", change, weight)
    own = studies.classes.repeat_interleave(logits.shape[1], dim=0)
    gained = -class_loss(logits.flatten(0, 1), own, "none").unflatten(0, logits.shape[:2])
    return gained.masked_fill(~studies.known | (told != 0), -torch.inf)


@torch.no_grad()
def answered_f1(bottleneck: Bottleneck, studies: Studies, budget: int) -> list[float]:
    """Macro F1 after 0 … budget true answers to the questions that the policy likes best."""
    embedded = bottleneck.embed(studies.vectors, studies.likely)
    told, found = torch.zeros_like(studies.likely), []
    for turn in range(budget + 1):
        mixed = embedded.mix(studies.truth, told)
        logits = bottleneck.classify(mixed)
        found.append(validation_figure(studies.classes.cpu().numpy(), logits)[0])
        askable = studies.known & (told == 0)
        if turn < budget:
            chosen = bottleneck.rank(mixed, told, askable).argmax(1)
            told = told + F.one_hot(chosen, told.shape[1]) * askable
    return found


SYSTEMS = {"intcem_shared": Entry("IntCEM on CSR's stage 1", IntCEM, intcem, "concepts_lse")}
