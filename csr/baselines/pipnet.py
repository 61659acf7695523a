"""PIP-Net (Nauta et al. 2023, CVPR, "Patch-based intuitive prototypes"): a prototype is a channel of the backbone.

    p = softmax_d(f)                                             B×D×h×w     which prototype a patch is
    s_d = max_hw p_d                                             B×D         presence scores
    o_t = Σ_d ω_td · s_d,  ω ≥ 0 and sparse                      B×T
    logits = log(o² + 1)                                         (section 3.3; softmax of them is what is reported)

Two views of an image share every geometric change and differ in contrast and brightness, so that the patch at (h, w) is
the same in both. Over batches of them:

    alignment   A = −mean_{b,h,w} log Σ_d p'_d · p''_d           (eq. 1)
    tanh        T = −mean_d log tanh( Σ_b s_bd )                 (eq. 2), which keeps every prototype in use
    pretraining: λ_A · A + 5 · T, λ_A rising to 1;  training: 5 · A + 2 · T + 2 · CE

Each step of training takes 0.001 off every weight ω and sets negative ones to 0, as in the authors' code: weights that
the classes do not ask for vanish. Phases and their shares are the paper's (10 epochs of pretraining, 60 of training
whose first 3 train the head alone): a seventh of the epochs pretrains; then the head is trained alone, on fixed
scores, which costs no images; the rest trains everything. After that weights below 0.001, and those of prototypes that
fire on no training image, are set to 0, and maps are aligned (`csr.baselines.map_alignment`); classes are those of the
image in its place. At inference scores up to 0.1 count as 0.

Departures: the paper trains an ImageNet backbone at a hundredth of the head's rate, its early layers only from the
eleventh epoch on. Here the backbone is that of the trained black box, all of it trained at the shared rate throughout:
prototypes are its own channels, so that it alone can make patches decided, in a tenth of the paper's steps. The
authors' second view is also cropped anew by up to 8 pixels; here views differ in what the shared augmentation calls a
window, which has no sharpness, posterising or equalising. Batches are the shared ones, not 128 and 64 images, so the
tanh loss asks for every prototype in fewer of them. The head's rate has the shared schedule, not a cosine with
restarts, which can bring back a prototype whose weight fell to 0; λ_A rises by step, not by epoch; and evaluation takes
nothing off the weights, as the authors' program does by every batch that it tests. An epoch costs two passes an image.

Where a study can have several classes, CE is the BCE of `csr.baselines.classes`, and logits get a bias a class, which
is trained with the head: log(o² + 1) is never negative, so without one no class could be less probable than a half
(an open question at the authors' code, github.com/M-Nauta/PIPNet/issues/7). Prototypes then only ever speak for a
class, as they do in the paper.

Pointing-game map, the same for every concept: the softmax channel of the prototype that contributes most to the
most probable class. Explanations: prototypes with a weight above 0.001 that fire, that is, score above 0.1.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from csr.baselines.classes import class_probabilities
from csr.baselines.map_alignment import align_answers, moved_and_in_place
from csr.baselines.protocol import WARM_START_EPOCHS, Answer, Entry, ExperimentContext, System, train_on_images
from csr.network.backbone import Backbone
from csr.network.rebuild import backbone_config, build_backbone
from csr.training.augmentation import window
from csr.training.images import image_batches
from csr.training.loop import Task, fit
from csr.training.runtime import count_batches, device, seed_everything, seeds, send

PRETRAINING = 1 / 7  # of the epochs
HEAD_EPOCHS = 3
HEAD_RATE = 0.05  # not a factor: the weights start at 1 and lose SHRINKAGE a step, whatever the budget
SHRINKAGE = 1e-3
SPARED = frozenset({"head.weight"})  # of weight decay, which would take off as much as SHRINKAGE does
RELEVANT = 1e-3
FIRES = 0.1
PRETRAINING_TANH_WEIGHT = 5.0
ALIGNMENT_WEIGHT = 5.0
TANH_WEIGHT = 2.0
CLASS_WEIGHT = 2.0


class NonNegativeHead(nn.Module):
    """Linear layer whose weights count only where they are positive; without a bias where a study has one class."""

    def __init__(self, prototypes: int, classes: int, multilabel: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.normal(1.0, 0.1, (classes, prototypes)))
        self.bias = nn.Parameter(torch.zeros(classes)) if multilabel else None

    def forward(self, scores: Tensor) -> Tensor:
        """Scores B×D → log(o² + 1) B×T, and the bias."""
        with torch.autocast(scores.device.type, enabled=False):
            logits = torch.log1p(F.linear(scores, self.weight.relu()).square())
            return logits if self.bias is None else logits + self.bias

    @torch.no_grad()
    def shrink(self) -> None:
        """Takes a little off every weight."""
        self.weight.sub_(SHRINKAGE).clamp_(min=0)

    @torch.no_grad()
    def prune(self, fires: Tensor) -> None:
        """Sets weights to 0 that are too small to matter, and those of prototypes that never fire (D bool)."""
        self.weight.mul_((self.weight > RELEVANT) & fires)

    def relevant(self) -> Tensor:
        """D bool: the prototype matters to some class."""
        return (self.weight > RELEVANT).any(0)


class PIPNet(System):
    """Backbone and head; ``concepts`` is K of the answer's maps, ``multilabel``: a study can have several classes."""

    def __init__(self, backbone: Backbone, classes: int, concepts: int, multilabel: bool = False) -> None:
        super().__init__()
        self.backbone = backbone
        self.multilabel = multilabel
        self.head = NonNegativeHead(backbone.width, classes, multilabel)
        self.concepts = concepts

    @property
    def config(self) -> dict[str, Any]:
        return {
            "backbone": backbone_config(self.backbone),
            "classes": len(self.head.weight),
            "concepts": self.concepts,
            "multilabel": self.multilabel,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> PIPNet:
        return cls(build_backbone(config["backbone"]), config["classes"], config["concepts"], config["multilabel"])

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 B×C×S×S → (p B×D×h×w, scores B×D), float32."""
        patches = self.backbone(images).float().softmax(1)
        return patches, patches.amax((2, 3))

    def answer(self, images: Tensor) -> Answer:
        (patches, _), (_, scores) = moved_and_in_place(self, self.backbone, images)
        scores = scores.where(scores > FIRES, 0)
        logits = self.head(scores)
        strongest = (self.head.weight[logits.argmax(1)] * scores).argmax(1)
        own = patches[torch.arange(len(patches), device=patches.device), strongest]
        repeated = own[:, None].expand(-1, self.concepts, -1, -1)
        probabilities = class_probabilities(logits, self.multilabel)
        return Answer(probabilities, None, repeated, ((scores > 0) & self.head.relevant()).sum(1))


def alignment(first: Tensor, second: Tensor) -> Tensor:
    """A of the patches B×D×h×w of two views; each is pulled to the other held still. 0 for equal one-hot patches."""
    losses = [-torch.log((p * still.detach()).sum(1) + 1e-12).mean() for p, still in ((first, second), (second, first))]
    return (losses[0] + losses[1]) / 2


def tanh_loss(scores: Tensor) -> Tensor:
    """T of scores B×D: near 0 when every prototype is present somewhere in the batch."""
    return -torch.log(torch.tanh(scores.sum(0)) + 1e-8).mean()


def pipnet(context: ExperimentContext) -> PIPNet:
    """Pretrains prototypes, trains the head on them, then trains everything."""
    config, train = context.config, context.class_rows
    seed_everything(seeds(config.seed, "weights"))
    system = PIPNet(context.build_backbone(), context.classes, context.concepts, context.multilabel).to(device())
    pretraining = round(PRETRAINING * config.epochs)
    head_rates = {"head.": HEAD_RATE / config.learning_rate}
    moved = replace(config.augment, contrast=0.0, brightness=0.0)
    steps = pretraining * count_batches(len(train), config.batch_size)
    step = itertools.count(1)

    def two_views(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        views = torch.cat([window(images, config.augment), window(images, config.augment)])
        patches, scores = system(views)
        first, second = scores.chunk(2)
        return alignment(*patches.chunk(2)), (tanh_loss(first) + tanh_loss(second)) / 2, scores

    def pretraining_terms(rows: np.ndarray, images: Tensor) -> dict[str, Tensor]:
        aligned, spread, _ = two_views(images)
        return {"alignment": next(step) / steps * aligned, "tanh": PRETRAINING_TANH_WEIGHT * spread}

    def head_terms(rows: np.ndarray, scores: Tensor) -> dict[str, Tensor]:
        system.head.shrink()
        return {"class": CLASS_WEIGHT * context.class_loss(system.head(scores), rows)}

    def terms(rows: np.ndarray, images: Tensor) -> dict[str, Tensor]:
        aligned, spread, scores = two_views(images)
        return {
            "alignment": ALIGNMENT_WEIGHT * aligned,
            "tanh": TANH_WEIGHT * spread,
            **head_terms(np.concatenate([rows, rows]), scores),
        }

    train_on_images(
        context, "pipnet_pretraining", system, pretraining_terms, epochs=pretraining, augment=moved, validate=False
    )
    scores = train_scores(system, context)

    def frozen_terms(chosen: np.ndarray) -> dict[str, Tensor]:
        return head_terms(chosen, scores[send(torch.from_numpy(np.searchsorted(train, chosen)), scores.device)])

    task = Task("pipnet_head", system, train, frozen_terms, lambda _: {}, config.warmup, head_rates, "concepts")
    fit(replace(task, spared=SPARED), replace(config, epochs=HEAD_EPOCHS), context.callbacks)

    rest = config.epochs - pretraining
    train_on_images(context, "pipnet", system, terms, epochs=rest, augment=moved, rates=head_rates, spared=SPARED)
    system.head.prune((train_scores(system, context) > FIRES).any(0))
    system.prototypes = int(system.head.relevant().sum())
    align_answers(system, system.backbone, context)
    return system


@torch.no_grad()
def train_scores(system: PIPNet, context: ExperimentContext) -> Tensor:
    """Scores n×D of the unaugmented training images whose class is known."""
    system.eval()
    return torch.cat([system(images)[1] for _, images in image_batches(context.data, context.class_rows, 64)])


SYSTEMS = {"pipnet": Entry("PIP-Net", PIPNet, pipnet, "classes", WARM_START_EPOCHS, start="black_box")}
