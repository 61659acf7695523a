"""Stage 2: trains the projector and the prototypes on cached features (CSR, section 3.2).

To the letter, the loss sees only local concept vectors of (image, concept) pairs whose label is 1. The terms beyond the
paper, each with a weight that is 0 in the ``paper`` preset, also show P the patches:
`csr.training.prototype_losses.absence` (images that lack the concept) and `csr.training.prototype_losses.agreement`
(where the concept is).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from csr.data.records import Collection, check_concept_labels
from csr.errors import ConfigError
from csr.network.prototypes import PrototypeModel, local_concept_vectors
from csr.training.callbacks import Callbacks
from csr.training.features import FeatureCache
from csr.training.loop import Task, fit
from csr.training.prototype_losses import (
    Margin,
    absence,
    agreement,
    present_pairs,
    prototype_contrastive,
    soft_similarity,
)
from csr.training.reader_words import believed, label_counts
from csr.training.runtime import (
    Precision,
    autocast,
    check_share,
    device,
    distribute,
    gather,
    own_part,
    seed_everything,
    seeds,
    send,
    share_of_mean,
    torch_seed,
    world_size,
)
from csr.training.soft_labels import with_pseudo_labels


@dataclass(frozen=True)
class PrototypeConfig:
    """Stage 2.

    Args:
        per_concept: M, prototypes a concept; ``auto`` is settled by a pilot (`csr.training.selection`) before training.
        width: D', length of projected vectors.
        blocks: residual blocks of the projector.
        standardise: standardise features per channel before the projector.
        gamma, scale, delta: γ, λ and δ of the contrastive loss; margin: the sign of δ.
        absence, agreement: weights of the two terms beyond the paper.
        temperature: of the agreement term.
        batch_size: images a step, of all workers together: each takes an equal part.
        precision: of the projector while it trains; prototypes and losses are float32, since γ magnifies any rounding.
        located: learn from inside the boxes of training images that have any (`csr.training.located`), instead of from
            where stage 1 looks. Whoever runs the stages gives them `csr.training.located.attended_cache`.
        reader_boxes: in studies that readers corrected, learn from where their boxes say (`csr.training.located`).
        feedback_weight: how many times a concept label that readers said counts; 0: not at all.
        doubt_readers: whether concept labels that readers said are left out where stage 1 makes them likelier wrong
            than right (`csr.training.reader_words`).
        reseed: after each epoch but the last two, move prototypes that win no training vector onto the vectors that
            their concept's prototypes fit worst. More stay alive, but the vectors that fit worst are often the ones
            whose attention is misplaced: on the phantom it cost pointing and accuracy, so no preset uses it.
        confidence: how sure `csr.training.soft_labels` must be of an unknown concept label of a training image for it
            to count as known; 1, as in the ``paper`` preset: unknown labels are left out.
    """

    per_concept: int | Literal["auto"] = 5
    width: int = 128
    blocks: int = 3
    standardise: bool = True
    gamma: float = 10.0
    scale: float = 20.0
    delta: float = 0.1
    margin: Margin = "minus"
    absence: float = 3.0
    agreement: float = 1.0
    temperature: float = 20.0
    located: bool = False
    reader_boxes: bool = True
    feedback_weight: float = 1.0
    doubt_readers: bool = True
    reseed: bool = False
    epochs: int = 4
    batch_size: int = 64
    learning_rate: float = 2e-3
    weight_decay: float = 1e-4
    confidence: float = 0.9
    precision: Precision = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0.5 < self.confidence <= 1:
            raise ValueError(f"prototypes.confidence: must be above 0.5 and at most 1, got {self.confidence}")
        if not self.feedback_weight >= 0:
            raise ValueError(f"prototypes.feedback_weight: must be 0 or more, got {self.feedback_weight}")
        if self.per_concept != "auto" and self.per_concept < 1:
            raise ValueError(f"prototypes.per_concept: needs at least one prototype a concept, got {self.per_concept}")


def build_prototype_model(config: PrototypeConfig, features: int, concepts: int) -> PrototypeModel:
    """An untrained projector and prototypes for D features and K concepts.

    Raises:
        ConfigError: the number of prototypes is not settled yet.
    """
    if config.per_concept == "auto":
        raise ConfigError("prototypes.per_concept: 'auto' must be settled first (csr.training.selection)")
    return PrototypeModel(features, concepts, config.per_concept, config.width, config.blocks)


class PrototypeObjective(nn.Module):
    """What stage 2 minimises. Its concept read-out (scale and shift) serves the absence term alone."""

    def __init__(self, model: PrototypeModel, config: PrototypeConfig) -> None:
        super().__init__()
        self.model = model
        self.config = config
        concepts = len(model.prototypes.raw)
        learned = bool(config.absence or config.agreement)
        self.scale = nn.Parameter(torch.full((concepts,), 10.0), requires_grad=learned)
        self.shift = nn.Parameter(torch.full((concepts,), -5.0), requires_grad=learned)

    def forward(
        self,
        features: Tensor,
        cam: Tensor,
        labels: Tensor,
        counts: Tensor | None = None,
        present: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The loss terms of one batch; f B×D×h×w, cam B×K×h×w, labels B×K of 1, 0 or NaN, how many times each counts,
        B×K (None: once), and their `csr.training.prototype_losses.present_pairs` (None: looked up)."""
        config, model, unit = self.config, self.model, self.model.prototypes.unit()
        present = present_pairs(labels) if present is None else present
        vectors, concept = positive_vectors(features, cam, labels, present)
        with autocast(config.precision):
            projected = model.projector(vectors).float()
        similarity, _ = soft_similarity(projected, unit, config.gamma)
        own = None if counts is None else counts[present[0], present[1]]
        contrastive = prototype_contrastive(similarity, concept, config.scale, config.delta, config.margin, own)
        terms = {"contrastive": contrastive}
        if config.absence or config.agreement:
            with autocast(config.precision):
                patches = model.projector.project_maps(features).float()
            maps = model.prototypes.similarity_maps(patches)
            terms["absence"] = config.absence * absence(maps, labels, self.scale, self.shift, counts)
            terms["agreement"] = config.agreement * agreement(maps, cam, labels, config.temperature, counts, present)
        return terms


def positive_vectors(
    features: Tensor, cam: Tensor, labels: Tensor, present: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Local concept vectors of present concepts: n×D and their concept indices n.

    Args:
        present: `csr.training.prototype_losses.present_pairs` of the labels; None: they are looked up.
    """
    image, concept = present_pairs(labels) if present is None else present
    return local_concept_vectors(features, cam)[image, concept], concept


def train_prototypes(
    collection: Collection, cache: FeatureCache, config: PrototypeConfig, callbacks: Callbacks
) -> PrototypeModel:
    """Trains on split ``train`` and reports, on ``val``, the loss and the diagnostics of `diagnose` each epoch.

    Batches are drawn from the studies that have any label; those without one count in the features' statistics alone.

    Processes of a distributed run share every batch and learn what one would.

    Raises:
        ConfigError: a batch of fewer images than processes.
        DataError: a concept that no training image is known to show, or to lack.
        TrainingError: the loss became NaN or infinite.
    """
    check_concept_labels(collection, collection.name)
    if config.doubt_readers:
        collection = believed(collection, cache)
    check_share(config.batch_size, world_size(), "prototypes")
    seed_everything(seeds(config.seed, "projector"))
    place = device()
    labels = torch.from_numpy(with_pseudo_labels(collection, cache, config.confidence))
    counts = label_counts(collection.said_labels(), config.feedback_weight)
    train, val = collection.rows("train"), collection.rows("val")
    model = build_prototype_model(config, cache.features.shape[1], len(collection.concepts))
    if config.standardise:
        model.projector.set_standardisation(*feature_statistics(cache, train))
    model = model.to(place)
    vectors, concept = all_positive_vectors(cache, labels, train, place)
    _seed_prototypes(model, vectors, concept, config.seed)
    objective = PrototypeObjective(model, config).to(place)
    engine = distribute(objective)

    def read(rows: np.ndarray) -> tuple[Tensor, Tensor]:
        return cache.read(rows[own_part(len(rows))])

    def terms(rows: np.ndarray, cached: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        part, whole = own_part(len(rows)), labels[rows]
        times = None if counts is None else counts[rows]
        own = None if times is None else send(times[part], place)
        present = send(present_pairs(whole[part]), place)  # while the labels are on the CPU: their number is known
        terms = engine(*cache.sent(cached, place), send(whole[part], place), own, present)
        counted = 1 if times is None else times
        known, shown = share_of_mean(~whole.isnan() * counted, part), share_of_mean((whole == 1) * counted, part)
        return {name: value * (known if name == "absence" else shown) for name, value in terms.items()}

    def after_epoch(epoch: int) -> dict[str, float]:
        reseeded = _reseed(model, vectors, concept) if config.reseed and epoch < config.epochs - 2 else 0
        own = all_positive_vectors(cache, labels, val[own_part(len(val))], place)
        return {"reseeded": reseeded, **diagnose(model, *map(gather, own))}

    rows = collection.labelled_rows("train")
    task = Task("prototypes", objective, rows, terms, after_epoch, precision=config.precision, read=read)
    fit(task, config, callbacks)
    return model


def feature_statistics(cache: FeatureCache, rows: np.ndarray) -> tuple[Tensor, Tensor]:
    """Per-channel mean and standard deviation of patches, over evenly spaced rows, fewer than 1000."""
    sample = np.asarray(cache.features[rows[:: max(1, len(rows) // 500)]], np.float32)
    return torch.from_numpy(sample.mean((0, 2, 3))), torch.from_numpy(sample.std((0, 2, 3)))


def all_positive_vectors(
    cache: FeatureCache, labels: Tensor, rows: np.ndarray, place: torch.device
) -> tuple[Tensor, Tensor]:
    """`positive_vectors` of many rows; labels N×K of the whole collection."""
    pieces = []
    for start in range(0, max(len(rows), 1), 256):
        chosen = rows[start : start + 256]
        known = labels[chosen]
        present = send(present_pairs(known), place)
        pieces.append(positive_vectors(*cache.batch(chosen, place), known, present))
    return torch.cat([piece[0] for piece in pieces]), torch.cat([piece[1] for piece in pieces])


@torch.no_grad()
def _seed_prototypes(model: PrototypeModel, vectors: Tensor, concept: Tensor, seed: int) -> None:
    """Starts each concept's prototypes on projected vectors of its own (the paper leaves initialisation open)."""
    generator = torch.Generator().manual_seed(torch_seed(seeds(seed, "prototypes")))
    projected = model.projector(vectors)
    for k in range(model.prototypes.raw.shape[0]):
        own = projected[concept == k]
        picks = torch.randint(len(own), (len(model.prototypes.raw[k]),), generator=generator)
        noise = torch.randn(model.prototypes.raw[k].shape, generator=generator).to(own.device)
        model.prototypes.raw[k] = F.normalize(own[picks] + 0.05 * noise, dim=-1)


@torch.no_grad()
def _reseed(model: PrototypeModel, vectors: Tensor, concept: Tensor) -> int:
    """Moves each dead prototype onto the own-concept vector that is fitted worst. Returns how many moved."""
    projected, unit, moved = model.projector(vectors), model.prototypes.unit(), 0
    for k in range(unit.shape[0]):
        own = projected[concept == k]
        best, winner = (own @ unit[k].T).max(-1)
        dead = [m for m in range(unit.shape[1]) if m not in set(winner.tolist())]
        worst = best.argsort()[: len(dead)].tolist()
        for m, index in zip(dead, worst, strict=False):
            model.prototypes.raw[k, m] = own[index]
            moved += 1
    return moved


@torch.no_grad()
def usage(model: PrototypeModel, vectors: Tensor, concept: Tensor, alive: Tensor) -> Tensor:
    """K×M, the share of a concept's local concept vectors (n×D, of concepts n) that each of its prototypes wins: is
    nearest to of those that are alive (K×M, not 0). The live ones of a concept sum to 1, pruned ones have 0, and all of
    them where a concept has no vector."""
    return _shares_won(_similarities(model, vectors).where(alive > 0, -2.0), concept) * (alive > 0)


@torch.no_grad()
def diagnose(model: PrototypeModel, vectors: Tensor, concept: Tensor) -> dict[str, float]:
    """What tells whether prototypes can be trusted, on local concept vectors n×D of concepts n.

    Returns:
        alive: share of prototypes that win (are nearest to) at least one vector of their concept.
        alive_count: their number.
        assignment_entropy: mean, over concepts that have a vector, of the entropy of the winners' distribution, over
            log M: 1 is even.
        within: mean similarity of a vector to its nearest prototype of its own concept.
        between: mean similarity to the nearest prototype of the nearest other concept.
        accuracy: share of vectors whose nearest prototype is of their own concept.
        The last three and the entropy are NaN without any vector.
    """
    inner = _similarities(model, vectors)
    shares = _shares_won(inner, concept)
    entropies = torch.special.entr(shares).sum(1)[shares.any(1)] / max(np.log(shares.shape[1]), 1e-9)
    best = inner.amax(-1)
    own = best.gather(1, concept[:, None])[:, 0]
    others = best.scatter(1, concept[:, None], -2.0).amax(1)
    return {
        "alive": float((shares > 0).double().mean()),
        "alive_count": float((shares > 0).sum()),
        "assignment_entropy": float(entropies.mean()),
        "within": float(own.mean()),
        "between": float(others.mean()),
        "accuracy": float((own > others).double().mean()),
    }


def _similarities(model: PrototypeModel, vectors: Tensor) -> Tensor:
    """⟨p_km, P(v)⟩ n×K×M of local concept vectors n×D."""
    return torch.einsum("nd,kmd->nkm", model.projector(vectors), model.prototypes.unit())


def _shares_won(inner: Tensor, concept: Tensor) -> Tensor:
    """K×M, float64: of each concept's own rows of ``inner`` n×K×M, the share in which each prototype is the largest."""
    concepts, per_concept = inner.shape[1:]
    winner = inner[torch.arange(len(concept), device=concept.device), concept].argmax(-1)
    won = torch.bincount(concept * per_concept + winner, minlength=concepts * per_concept)
    won = won.view(concepts, per_concept).double()
    return won / won.sum(1, keepdim=True).clamp_min(1)
