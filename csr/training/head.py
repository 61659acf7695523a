"""Stage 3: scores of the frozen model → one linear layer → classes (CSR, section 3.3).

Everything before the head is frozen, so each training image's scores are computed once. Scores lie in a narrow band;
they are standardised with training statistics, which the reasoner carries.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from csr.data.records import Collection, check_concept_labels
from csr.errors import ConfigError
from csr.evaluation.metrics import mean_auroc
from csr.evaluation.thresholds import validation_f1
from csr.network.prototypes import PrototypeModel
from csr.network.reasoner import Floor, Reasoner, concept_evidence
from csr.training.callbacks import Callbacks
from csr.training.class_losses import class_loss
from csr.training.features import FeatureCache
from csr.training.interventions import boxed_scores, draw_answers
from csr.training.loop import Task, fit
from csr.training.prototypes import all_positive_vectors, usage
from csr.training.reader_words import believed, label_counts
from csr.training.runtime import device, seed_everything, seeds, send

VIEWS = 4  # readers whose boxes a training image is seen under


@dataclass(frozen=True)
class HeadConfig:
    """Stage 3.

    Args:
        clip: clip negative similarities always, so that an interaction changes nothing but what it says (see
            `csr.network.reasoner`); the paper clips only under an interaction, if at all.
        floor: what an interaction may take away of a similarity: all of it (``zero``, the paper) or what lies beyond
            the absent score (``absent``); see `csr.network.reasoner`.
        least_usage: share of its concept's training vectors that a prototype must win (be nearest to) to be kept. One
            that explains none has no meaning to a reader, and its score is a free feature through which the head
            learns what is not the concept, such as a shortcut.
        concept_dropout: chance that a concept is replaced by its absent scores, a training image at a time; makes the
            head robust to rejected concepts.
        interventions: chance that a training image is answered by a simulated reader, so that the head learns what to
            make of answers (as IntCEM does, Espinosa Zarlenga et al. 2023): of an answered image each known concept
            is confirmed or rejected with a chance that is drawn anew for the image, uniformly from 0 to 1.
        reader_error: share of those answers that are wrong.
        boxes: chance that a training image is seen under the focus or ignore boxes of a simulated reader: where its
            findings say that they should be, moved by half their size, or elsewhere.
        feedback_weight: how many times a class that readers signed counts; 0: not at all.
        doubt_readers: whether concept labels that readers said are left out where stage 1 makes them likelier wrong
            than right (`csr.training.reader_words`). Classes never are.
        weight_decay: L2 on the head's weights.
    """

    clip: bool = True
    floor: Floor = "absent"
    least_usage: float = 0.01
    concept_dropout: float = 0.0
    interventions: float = 1.0
    reader_error: float = 0.0
    boxes: float = 0.0
    feedback_weight: float = 1.0
    doubt_readers: bool = True
    epochs: int = 30
    batch_size: int = 128
    learning_rate: float = 0.02
    weight_decay: float = 1e-3
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.feedback_weight >= 0:
            raise ValueError(f"head.feedback_weight: must be 0 or more, got {self.feedback_weight}")


def train_head(
    collection: Collection,
    cache: FeatureCache,
    model: PrototypeModel,
    config: HeadConfig,
    callbacks: Callbacks,
    alive: Tensor | None = None,
    side: int | None = None,
) -> Reasoner:
    """Builds the reasoner from stage 2's prototypes and trains its head on the studies of split ``train`` that have a
    class. The others' concepts count where a concept is summarised: absent and present scores, read-out, usage.

    Where the task is ``concepts`` no head is trained: the reasoner has no class, and one epoch is reported.

    Runs in one process whatever the cluster: the scores of all training images fit in memory and a run takes seconds.

    Args:
        alive: K×M, 0 where a prototype has been pruned, if any has.
        side: of the square that the collection's boxes are in pixels of; needed where ``config.boxes`` is not 0.

    Raises:
        ConfigError: ``config.boxes`` without ``side``.
        DataError: a concept that no training image is known to show, or to lack.
        TrainingError: the loss became NaN or infinite.
    """
    check_concept_labels(collection, collection.name)
    if config.doubt_readers:
        collection = believed(collection, cache)
    seed_everything(seeds(config.seed, "head"))
    place = device()
    model = model.to(place)
    truth = torch.from_numpy(collection.truth()).to(place)
    multilabel = collection.task != "multiclass"
    concept_labels = collection.concept_labels()
    labels = torch.from_numpy(concept_labels).to(place)
    train, val = collection.rows("train"), collection.rows("val")
    concepts, per_concept, width = model.prototypes.raw.shape
    reasoner = Reasoner(concepts, per_concept, width, len(collection.classes), config.clip, config.floor, multilabel)
    model, reasoner = model.to(place), reasoner.to(place)
    reasoner.prototypes.copy_(model.prototypes.unit().detach())
    train_scores = all_scores(reasoner, model, cache, train)
    val_scores = all_scores(reasoner, model, cache, val)
    learned = np.isin(train, collection.class_rows("train")) if collection.classes else np.ones(len(train), bool)
    _set_statistics(reasoner, train_scores, concept_labels[train], learned)
    if alive is not None:
        reasoner.alive.copy_(alive)
    reasoner.alive.copy_(_used(collection, cache, model, reasoner.alive, config.least_usage))
    if (
        not reasoner.alive.all()
    ):  # what is pruned scores as if absent: the first statistics know that, the second fit it
        train_scores, val_scores = reasoner.mask_pruned(train_scores), reasoner.mask_pruned(val_scores)
        _set_statistics(reasoner, train_scores, concept_labels[train], learned)
    torch.nn.init.zeros_(reasoner.head.weight)
    torch.nn.init.zeros_(reasoner.head.bias)
    if not collection.classes:
        evidence = concept_evidence(val_scores, reasoner.alive).cpu().numpy()
        callbacks.epoch(
            {"epoch": 0, "val_concept_auroc": mean_auroc(concept_labels[val], evidence)}, reasoner.state_dict
        )
        return reasoner
    views = None
    if config.boxes:
        if side is None:
            raise ConfigError("head.boxes: boxes are in pixels of a square whose side was not given")
        rng = np.random.default_rng(seeds(config.seed, "head"))
        views = reasoner.mask_pruned(boxed_scores(reasoner, model, cache, collection, train, side, VIEWS, rng))
    counts = label_counts(collection.said_classes(), config.feedback_weight)
    counts = None if counts is None else counts.to(place)
    position = torch.full((len(truth),), -1, device=place)
    position[train] = torch.arange(len(train), device=place)

    def terms(chosen: np.ndarray) -> dict[str, Tensor]:
        rows = send(torch.from_numpy(chosen), place)
        scores = train_scores[position[rows]]
        if views is not None:
            boxed = torch.rand(len(rows), device=place) < config.boxes
            drawn = views[position[rows], torch.randint(VIEWS, (len(rows),), device=place)]
            scores = torch.where(boxed[:, None, None], drawn, scores)
        scores = drop_concepts(reasoner, scores, config.concept_dropout)
        if config.interventions:
            answers = draw_answers(labels[rows], config.interventions, config.reader_error)
            scores = reasoner.answered(scores, answers)
        logits = class_logits(reasoner, scores)
        if counts is None:
            return {"loss": class_loss(logits, truth[rows])}
        each = counts[rows] * class_loss(logits, truth[rows], "none")
        return {"loss": each.sum() / counts[rows].sum().clamp_min(1e-9)}

    @torch.no_grad()
    def after_epoch(epoch: int) -> dict[str, float]:
        logits, own = class_logits(reasoner, val_scores), truth[val]
        f1 = validation_f1(own.cpu().numpy(), reasoner.probabilities(logits).cpu().numpy())
        return {"val_loss": float(class_loss(logits, own)), "val_macro_f1": f1}

    fit(Task("head", reasoner, train[learned], terms, after_epoch), config, callbacks)
    _silence_pruned(reasoner)
    return reasoner


def class_logits(reasoner: Reasoner, scores: Tensor) -> Tensor:
    """Scores n×K×M → class logits n×T."""
    return reasoner.head(reasoner.standardise(scores).flatten(1))


@torch.no_grad()
def all_scores(reasoner: Reasoner, model: PrototypeModel, cache: FeatureCache, rows: np.ndarray) -> Tensor:
    """s n×K×M of the given rows, without interaction."""
    place = device()
    pieces = []
    for start in range(0, len(rows), 64):
        features, _ = cache.batch(rows[start : start + 64], place)
        pieces.append(reasoner.scores(reasoner.maps(model.projector.project_maps(features))))
    return torch.cat(pieces)


def drop_concepts(reasoner: Reasoner, scores: Tensor, chance: float) -> Tensor:
    """Replaces whole concepts of B×K×M scores by their absent scores, each with the given chance."""
    if not chance:
        return scores
    drawn = torch.rand(scores.shape[:2], device=scores.device)
    return torch.where((drawn < chance)[..., None], reasoner.absent_scores, scores)


def _used(collection: Collection, cache: FeatureCache, model: PrototypeModel, alive: Tensor, least: float) -> Tensor:
    """``alive`` K×M without the prototypes that win less than a share of their concept's training vectors. A concept
    that would be left without any keeps what was alive."""
    labels = torch.from_numpy(collection.concept_labels())
    vectors, concept = all_positive_vectors(cache, labels, collection.rows("train"), device())
    kept = alive * (usage(model, vectors, concept, alive) >= least)
    return torch.where(kept.any(1, keepdim=True), kept, alive)


@torch.no_grad()
def _silence_pruned(reasoner: Reasoner) -> None:
    """Weights of pruned prototypes → 0, what they added → the bias. A constant is standardised to 0 but for rounding,
    which Adam's steps, being of one size, do not take for nothing."""
    pruned = reasoner.alive.flatten() == 0
    constant = reasoner.standardise(reasoner.absent_scores).flatten()[pruned]
    reasoner.head.bias.add_(reasoner.head.weight[:, pruned] @ constant)
    reasoner.head.weight[:, pruned] = 0


@torch.no_grad()
def _set_statistics(reasoner: Reasoner, scores: Tensor, labels: np.ndarray, learned: np.ndarray) -> None:
    """Score statistics of the training images that the head learns from (n bool), and of all of them absent and present
    scores and the concept read-out.

    The read-out is a logistic regression of each concept's label on its evidence (Platt 1999), so that its probability
    means the same under every preset.
    """
    seen = scores[torch.from_numpy(learned).to(scores.device)]
    reasoner.score_mean.copy_(seen.mean(0))
    reasoner.score_std.copy_(seen.std(0).clamp_min(1e-4))
    evidence = concept_evidence(scores, reasoner.alive).cpu().numpy()
    for k in range(labels.shape[1]):
        for label, typical, whole in (
            (0, reasoner.absent_scores, reasoner.absent_evidence),
            (1, reasoner.present_scores, reasoner.present_evidence),
        ):
            own = labels[:, k] == label
            typical[k] = scores[torch.from_numpy(own).to(scores.device), k].median(0).values
            whole[k] = float(np.median(evidence[own, k]))
        known = ~np.isnan(labels[:, k])
        fit = LogisticRegression(C=1e4, max_iter=1000).fit(evidence[known, k : k + 1], labels[known, k].astype(int))
        reasoner.concept_scale[k], reasoner.concept_shift[k] = float(fit.coef_[0, 0]), float(fit.intercept_[0])
