"""Stage 1: trains the concept model by multi-label BCE on concept labels (CSR, section 3.1)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from csr.data.prepared import PreparedSet
from csr.data.records import NO_CLASS, Collection
from csr.errors import ConfigError
from csr.evaluation.metrics import mean_auroc
from csr.network.checkpoint import read_checkpoint
from csr.network.concept_model import ConceptModel, ConceptModelConfig
from csr.network.rebuild import concept_model_config
from csr.training.alignment import align
from csr.training.augmentation import AugmentConfig, Draws, Findings, draw_moves, moved, window
from csr.training.batch_norm import shared_batch_norm
from csr.training.callbacks import Callbacks
from csr.training.few_labels import FewLabels, FewLabelsConfig, known_share, lengthened
from csr.training.fine_tuning import SCRATCH, fine_tuned
from csr.training.frozen_body import remembered
from csr.training.images import image_batches, read_images, send_images, set_normalisation
from csr.training.loop import Task, fit
from csr.training.losses import masked_bce, positive_weights
from csr.training.reader_boxes import ReaderBoxes, box_loss
from csr.training.reader_words import doubted_labels, label_counts
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
    world_size,
)
from csr.training.stopping import Keep, StoppingRule


@dataclass(frozen=True)
class ConceptTrainingConfig:
    """How stage 1 is trained; ``model`` says what is trained. The defaults are for training from scratch;
    `csr.training.fine_tuning.PRETRAINED` are those for pretrained weights, which ``params.yaml`` takes by itself.

    Args:
        batch_size: images a step, of all workers together: each takes an equal part.
        learning_rate: the peak of a one-cycle schedule that warms up during the first ``warmup`` share of steps.
        precision: that the network computes in while it trains, on validation images too, and where its features are
            cached; see `csr.training.runtime.number_format`.
        compile: let ``torch.compile`` make kernels for the training step first, which takes a minute; in one process,
            and not with ``freeze: all``. docs/gpus_and_clusters.md says what it gains.
        decay_norms: whether weight decay also pulls norms and biases towards 0, and what timm spares in the backbone,
            such as position embeddings.
        backbone_rate: factor on the learning rate of the backbone's pretrained weights.
        layer_decay: further factor for each layer between such a weight and the maps, in (0, 1]; None for none.
        freeze: epochs from the start in which the pretrained weights and running statistics stay as they are, or
            ``all``, in which case `csr.training.frozen_body` computes little twice. `csr.training.fine_tuning` says
            which weights the last three are about.
        start: a concept model (``build/concepts/model.pt``) of the same architecture and concepts, from whose weights
            training goes on, such as that of the model that readers corrected; None: from scratch, or from pretrained
            weights. It keeps its normalisation.
        box_weight: of what readers' boxes say of the maps of corrected studies (`csr.training.reader_boxes`), each
            term beside a known label; 0: stage 1 sees no box.
        feedback_weight: how many times a label that readers said counts, and what their boxes say; 0: not at all.
        doubt_readers: whether what readers said is left out for an epoch where the network, as it was before that
            epoch, makes it likelier wrong than right (`csr.training.reader_words`).
        few_labels: what is done where concept labels are unknown; see `csr.training.few_labels`.
        epochs: how many there are; with ``patience`` at most.
        patience: epochs without a rise of the validation figure (mean AUROC) after which the rate falls to 0 and the
            training ends; None: it takes its epochs. `csr.training.stopping` is this rule and says what ``least_rise``
            and ``anneal`` mean.
        keep: the weights of the ``last`` epoch, or of the one with the ``best`` validation figure.
        clip: largest norm of a step's gradients; None for no limit.
        accumulate: batches whose gradients make one step, where a batch of the wanted size does not fit into memory.
        positive_weight: ``balanced`` counts a present concept as often as it is rarer than absent
            (`csr.training.losses.positive_weights`).
        sampling: ``balanced`` draws studies so that every class comes as often, with replacement; those without a class
            keep their chance.
    """

    model: ConceptModelConfig = field(default_factory=ConceptModelConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    epochs: int = 12
    batch_size: int = 16
    learning_rate: float = SCRATCH.learning_rate
    weight_decay: float = 0.02
    warmup: float = SCRATCH.warmup
    decay_norms: bool = SCRATCH.decay_norms
    backbone_rate: float = SCRATCH.backbone_rate
    layer_decay: float | None = SCRATCH.layer_decay
    freeze: int | Literal["all"] = 0
    start: str | None = None
    box_weight: float = 1.0
    feedback_weight: float = 1.0
    doubt_readers: bool = True
    few_labels: FewLabelsConfig = field(default_factory=FewLabelsConfig)
    precision: Precision = "auto"
    compile: bool = False
    patience: int | None = None
    least_rise: float = 0.001
    anneal: float = 0.25
    keep: Keep = "last"
    clip: float | None = None
    accumulate: int = 1
    positive_weight: Literal["none", "balanced"] = "none"
    sampling: Literal["plain", "balanced"] = "plain"
    seed: int = 0

    @property
    def stopping(self) -> StoppingRule:
        """When the training ends."""
        return StoppingRule(self.patience, self.least_rise, self.anneal, self.keep)

    def __post_init__(self) -> None:
        if not self.backbone_rate > 0:
            raise ValueError(
                f"concepts.backbone_rate: must be above 0, got {self.backbone_rate}; concepts.freeze keeps weights as "
                "they are"
            )
        if self.layer_decay is not None and not 0 < self.layer_decay <= 1:
            raise ValueError(f"concepts.layer_decay: must be above 0 and at most 1, or null, got {self.layer_decay}")
        if self.freeze != "all" and self.freeze < 0:
            raise ValueError(f"concepts.freeze: must be a number of epochs or all, got {self.freeze}")
        if self.freeze and not (self.model.pretrained or self.model.checkpoint):
            raise ValueError(
                "concepts.freeze: there are no pretrained weights to keep; set concepts.model.pretrained or "
                "concepts.model.checkpoint, or this to 0"
            )
        for key in ("box_weight", "feedback_weight"):
            if not getattr(self, key) >= 0:
                raise ValueError(f"concepts.{key}: must be 0 or more, got {getattr(self, key)}")
        if self.start and (self.model.pretrained or self.model.checkpoint):
            raise ValueError(
                "concepts.start: these weights would replace those of concepts.model.pretrained or "
                "concepts.model.checkpoint; name only one of them"
            )
        for key, least in (("patience", 1), ("accumulate", 1)):
            value = getattr(self, key)
            if value is not None and value < least:
                raise ValueError(f"concepts.{key}: must be at least {least}, got {value}")
        if not self.least_rise >= 0:
            raise ValueError(f"concepts.least_rise: must be 0 or more, got {self.least_rise}")
        if not 0 < self.anneal <= 1:
            raise ValueError(f"concepts.anneal: must be above 0 and at most 1, got {self.anneal}")
        if self.compile and self.freeze == "all":
            raise ValueError(
                "concepts.compile: what a frozen body says is looked up; set it to false, or concepts.freeze to 0"
            )
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"concepts.clip: must be above 0, or null, got {self.clip}")


def train_concepts(data: PreparedSet, config: ConceptTrainingConfig, callbacks: Callbacks) -> ConceptModel:
    """Trains on split ``train`` and reports loss and mean concept AUROC on ``val`` each epoch, then aligns the maps.

    Batches are drawn from the studies that have any label; those without one count in the channels' statistics alone.

    The last epoch's weights are the result, so that nothing is selected on ``val``, unless ``config.keep`` says
    otherwise. Processes of a distributed run share
    every batch and learn what one would.

    Raises:
        ConfigError: a batch of fewer images than processes, several processes for a compiled model, or a model to
            start from that does not fit.
        DataError: the file to start from is no concept model.
        TrainingError: the loss became NaN or infinite, or ``val`` has no figure to stop by.
    """
    check_share(config.batch_size, world_size(), "concepts")
    if config.compile and world_size() > 1:
        raise ConfigError("concepts.compile: works in one process only; set it to false, or train.workers to 0 or 1")
    seed_everything(seeds(config.seed, "weights"))
    place = device()
    labels = torch.from_numpy(data.collection.concept_labels())
    train, val = data.collection.rows("train"), data.collection.rows("val")
    drawn = data.collection.labelled_rows("train")
    positive = positive_weights(labels[train]).to(place) if config.positive_weight == "balanced" else None
    findings = Findings(data.collection, data.side)
    model = ConceptModel(config.model, data.channels, len(data.collection.concepts))
    if config.start is None:
        set_normalisation(model.backbone, data)
    else:
        go_on_from(model, Path(config.start))
    model = model.to(place).to(memory_format=torch.channels_last)
    box_weight = config.box_weight * config.feedback_weight
    boxes = ReaderBoxes(data) if box_weight else None
    counts = label_counts(data.collection.said_labels(), config.feedback_weight)
    known, few = known_share(data.collection), None
    if known < 1 and config.few_labels.weight:
        few = FewLabels(model, data, config.few_labels, config.precision, positive, counts, labels).to(place)
    engine: Callable[[Tensor], tuple[Tensor, Tensor]] = distribute(model, partly=bool(config.freeze))
    if config.compile:
        engine = torch.compile(engine)
    generator = torch.Generator()

    def read(rows: np.ndarray) -> Tensor:
        return read_images(data, rows[own_part(len(rows))])

    def terms(rows: np.ndarray, images: Tensor) -> dict[str, Tensor]:
        if few is not None:
            few.follow()
        part = own_part(len(rows))
        own, draws = rows[part], Draws(len(rows), part, generator)
        moves = draw_moves(config.augment, findings, rows, draws)
        images = window(moved(send_images(images, place), config.augment, moves), config.augment, draws)
        with autocast(config.precision), shared_batch_norm():
            maps, logits = engine(images)
        counted = ~labels[rows].isnan() * (1 if counts is None else counts[rows])
        if few is not None:
            found = few.terms(logits, rows, part)
        else:
            times = None if counts is None else send(counts[own], place)
            loss = masked_bce(logits, send(labels[own], place), positive, times)
            found = {"loss": loss * share_of_mean(counted, part)}
        if boxes:
            inside, outside = boxes.cells(own, labels[own] == 1, moves, *maps.shape[2:])
            factor = box_weight * world_size() / max(float(counted.sum()), 1.0)
            found["box_loss"] = factor * box_loss(maps, send(inside, place), send(outside, place), config.model)
        return found

    given, said = labels.clone(), data.collection.said_labels()
    spoken = np.flatnonzero(said.any(1))
    weighed = config.doubt_readers and bool(len(spoken))

    def before_epoch(epoch: int) -> None:
        if few is not None:
            few.label(epoch)
        if weighed:
            model.eval()
            evidence, judged = (concept_logits(model, data, rows, config.precision) for rows in (spoken, val))
            model.train()
            doubted = np.zeros(said.shape, bool)
            doubted[spoken] = doubted_labels(
                given[spoken].numpy(), said[spoken], evidence.numpy(), given[val].numpy(), judged.numpy()
            )
            labels.copy_(given.masked_fill(torch.from_numpy(doubted), torch.nan))

    def after_epoch(epoch: int) -> dict[str, float]:
        doubts = {"doubted": float(labels.isnan()[said].double().mean())} if weighed else {}
        return validate(model, data, val, config.precision) | doubts

    task = Task(
        "concepts",
        model if few is None else few,
        drawn,
        terms,
        after_epoch,
        config.warmup,
        precision=config.precision,
        draws=generator,
        figure="val_auroc",
        stopping=config.stopping,
        clip=config.clip,
        accumulate=config.accumulate,
        chances=class_chances(data.collection, drawn) if config.sampling == "balanced" else None,
        before_epoch=before_epoch,
        read=read,
    )
    budget = replace(config, epochs=lengthened(config.epochs, known, config.few_labels))
    with remembered(task.model, config.freeze):
        fit(fine_tuned(task, config), budget, callbacks)
    align(model, data, labels.numpy())
    return model


def go_on_from(model: ConceptModel, file: Path) -> None:
    """Gives a model the weights, normalisation and map shift of a trained one.

    Raises:
        ConfigError: no such file, or the trained model is of another architecture or number of concepts.
        DataError: the file is no concept model.
    """
    try:
        content = read_checkpoint(file, "concept model")
    except FileNotFoundError:
        raise ConfigError(f"concepts.start: no file {str(file)!r}") from None
    found, wanted = content["config"], concept_model_config(model)
    if different := sorted(key for key in wanted["model"] if found["model"].get(key) != wanted["model"][key]):
        key = different[0]
        raise ConfigError(
            f"concepts.start: {file} has {key} {found['model'].get(key)!r}, concepts.model says "
            f"{wanted['model'][key]!r}; training goes on only with the same architecture"
        )
    for key, words in (("channels", "image channels"), ("concepts", "concepts")):
        if found[key] != wanted[key]:
            raise ConfigError(f"concepts.start: {file} has {found[key]} {words}, the data set has {wanted[key]}")
    model.load_state_dict(content["weights"])


def class_chances(collection: Collection, rows: np.ndarray) -> np.ndarray:
    """Chances of rows to be drawn with which every class comes as often; those without a class keep their own.

    Raises:
        ConfigError: the studies have no class each.
    """
    if collection.task != "multiclass":
        raise ConfigError(
            f"concepts.sampling: 'balanced' goes by the one class of each study, and {collection.name} has the task "
            f"{collection.task!r}; set it to plain, concepts.positive_weight weighs rare concepts up"
        )
    classes = collection.truth()[rows]
    known = classes != NO_CLASS
    counts = np.bincount(classes[known], minlength=1)
    weights = np.ones(len(rows))
    weights[known] = known.sum() / (counts > 0).sum() / counts[classes[known]]
    return weights / weights.sum()


@torch.no_grad()
def concept_logits(
    model: ConceptModel, data: PreparedSet, rows: np.ndarray, precision: Precision = "float32"
) -> Tensor:
    """n×K of given rows' images as they are, of which each process looks at its part."""
    own = []
    for _, images in image_batches(data, rows[own_part(len(rows))], 64):
        with autocast(precision):
            own.append(model(images)[1])
    return gather(torch.cat(own).cpu() if own else torch.zeros(0, len(data.collection.concepts)))


def validate(
    model: ConceptModel, data: PreparedSet, rows: np.ndarray, precision: Precision = "float32"
) -> dict[str, float]:
    """Loss and mean AUROC of the concept logits on given rows."""
    labels, logits = data.collection.concept_labels()[rows], concept_logits(model, data, rows, precision)
    return {
        "val_loss": float(masked_bce(logits, torch.from_numpy(labels))),
        "val_auroc": mean_auroc(labels, logits.numpy()),
    }
