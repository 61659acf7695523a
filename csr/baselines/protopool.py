"""ProtoPool (Rymarczyk et al. 2022, arXiv 2112.02902): classes pick their prototypes from one shared pool.

    z = sigmoid(conv1×1(f))                                      B×D×h×w     patches
    g_p(z) = log( (‖z − p‖² + 1) / (‖z − p‖² + ε) )              B×P×h×w     similarity maps
    g_p = max_hw g_p(z) − mean_hw g_p(z)                         B×P         focal similarity (section 3.2)
    q_ck = Gumbel-softmax_p(θ_ck)                                T×K×P       which prototype fills slot k of class c
    s_ck = Σ_p q_ck(p) · g_p                                     B×T×K       slots
    logits = W · s,  W = 1 on a class's own slots and 0 on others': evidence only ever speaks for a class

    loss = CE + 0.8 · cluster − 0.08 · separation + orthogonality

Cluster and separation are ProtoPNet's (Chen et al. 2019, section 2.2): the squared distance of the image's nearest
patch to the nearest prototype that its class holds, and to the nearest that it does not. Orthogonality is the mean over
slots of the cosine similarities of q to the other slots of the class, so that no prototype fills two of them.

Phases: a tenth of the epochs trains everything but the backbone and W (warm-up), the rest everything but W, while the
assignment hardens; then every prototype is replaced by the nearest training patch of the classes that hold it (push);
then W alone is trained on fixed slots, which costs no images, with L1 on the weights from other classes' slots. From
the end of training on, a slot is its best prototype.

The authors' code is followed where the paper is silent: the hardening scales θ and leaves the Gumbel noise and the
softmax's temperature 0.5 alone, so that noise dies out; rows of cosines are averaged. The paper is followed where the
two differ: the code averages distances before taking the logarithm and measures orthogonality on θ. Cluster and
separation take the prototypes that fill a slot, the code the K that fill most of them: the same while slots differ.
Departures: the backbone is that of the trained black box; rates are those of the shared schedule, the backbone's lower
as in `csr.baselines.protopnet`, whose push and tuning of W are used, too; no mixup, since augmentation is shared. The
pool starts from patches of training images that lie far apart, not uniformly from the unit cube, for the reason that
`csr.baselines.protopnet` gives: on frozen features of blood cells (validation split, one seed, 500 steps) macro F1 was
0.76 from the cube, 0.92 from patches and 0.41 by the authors' network and losses. Maps are aligned before the push
(`csr.baselines.map_alignment`).

Pointing-game map, the same for every concept: the similarity map of the prototype that contributes most to the
predicted class's logit. Explanations, as many for every image: the distinct prototypes that fill a slot of any class,
since after tuning all of them feed every logit. Prototypes that fill none are pruned, that is, not counted.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from csr.baselines.map_alignment import align_answers
from csr.baselines.protocol import WARM_START_EPOCHS, Answer, Entry, ExperimentContext, System, train_on_images
from csr.baselines.protopnet import (
    BACKBONE_RATE,
    log_similarity,
    nearest_patches,
    other_classes,
    spread_patches,
    squared_distances,
    tune_last_layer,
    warm_up,
)
from csr.network.backbone import Backbone
from csr.network.rebuild import backbone_config, build_backbone
from csr.training.images import image_batches
from csr.training.runtime import count_batches, device, seed_everything, seeds

# CUB has one prototype a class and ten classes to share each; with five to ten classes that would be fewer prototypes
# than slots. Four times the slots leaves every class a choice and classes still few enough prototypes to meet.
POOL = 40
SLOTS = 10  # the paper's, on every data set
DEPTH = 128
CLUSTER_WEIGHT = 0.8
SEPARATION_WEIGHT = 0.08
TEMPERATURE = 0.5
SHARPEST = 1000.0
ANNEALING = 0.75  # share of training in which slots harden; the last quarter trains what will be pushed


class ProtoPool(System):
    """Backbone, add-on layer, pool, slots and last layer.

    Args:
        backbone: F.
        classes: T.
        concepts: how often the answer's map is repeated.
        pool: P, prototypes.
        slots: K, prototypes a class may hold.
        depth: D.
    """

    owners: Tensor

    def __init__(
        self, backbone: Backbone, classes: int, concepts: int, pool: int = POOL, slots: int = SLOTS, depth: int = DEPTH
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.concepts = concepts
        reduce = nn.Conv2d(backbone.width, depth, 1)
        nn.init.kaiming_normal_(reduce.weight, mode="fan_out", nonlinearity="relu")
        self.add_on = nn.Sequential(reduce, nn.Sigmoid())
        self.pool = nn.Parameter(torch.rand(pool, depth))
        self.choice = nn.Parameter(nn.init.xavier_normal_(torch.empty(classes, slots, pool)))
        self.register_buffer("owners", torch.arange(classes).repeat_interleave(slots))
        self.last_layer = nn.Linear(classes * slots, classes, bias=False)
        self.last_layer.weight.data.copy_(~other_classes(self.owners, classes))
        self.last_layer.requires_grad_(False)
        self.sharpness = 1.0

    @property
    def config(self) -> dict[str, Any]:
        return {
            "backbone": backbone_config(self.backbone),
            "classes": self.last_layer.out_features,
            "concepts": self.concepts,
            "pool": self.pool.shape[0],
            "slots": self.choice.shape[1],
            "depth": self.pool.shape[1],
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> ProtoPool:
        return cls(**config | {"backbone": build_backbone(config["backbone"])})

    def assignment(self) -> Tensor:
        """q T×K×P: drawn while training, one-hot afterwards."""
        if self.training:
            return F.gumbel_softmax(self.choice * self.sharpness, tau=TEMPERATURE)
        return F.one_hot(self.choice.argmax(-1), self.choice.shape[-1]).to(self.choice.dtype)

    def used(self) -> Tensor:
        """Indices of the prototypes that fill a slot."""
        return self.choice.argmax(-1).unique()

    def patches(self, images: Tensor) -> Tensor:
        """uint8 B×C×S×S → z B×D×h×w in 0..1, float32 whatever the precision: distances are small differences."""
        features = self.backbone(images)
        with torch.autocast(features.device.type, enabled=False):
            return self.add_on(features.float())

    def distances(self, images: Tensor) -> Tensor:
        """uint8 B×C×S×S → squared distances of patches to prototypes B×P×h×w."""
        return squared_distances(self.patches(images), self.pool)

    def slots(self, focal: Tensor, assignment: Tensor) -> Tensor:
        """Focal similarities B×P and q T×K×P → slots B×(T·K)."""
        with torch.autocast(focal.device.type, enabled=False):
            return F.linear(focal, assignment.flatten(0, 1))

    def logits(self, slots: Tensor) -> Tensor:
        """Slots B×(T·K) → B×T."""
        with torch.autocast(slots.device.type, enabled=False):
            return self.last_layer(slots)

    def answer(self, images: Tensor) -> Answer:
        distances = self.distances(images)
        focal, assignment = focal_similarity(distances), self.assignment()
        logits = self.logits(self.slots(focal, assignment))
        weight = self.last_layer.weight @ assignment.flatten(0, 1)  # T×P: a prototype's over all its slots
        predicted = logits.argmax(1)
        strongest = (weight[predicted] * focal).argmax(1)
        maps = log_similarity(distances[torch.arange(len(images), device=focal.device), strongest])
        repeated = maps[:, None].expand(-1, self.concepts, -1, -1)
        return Answer(logits.softmax(-1), None, repeated, logits.new_full((len(logits),), len(self.used())))


def focal_similarity(distances: Tensor) -> Tensor:
    """Squared distances B×P×h×w → B×P: how much the best patch stands out from the average one."""
    cells = log_similarity(distances).flatten(2)
    return cells.amax(-1) - cells.mean(-1)


def orthogonality(assignment: Tensor) -> Tensor:
    """q T×K×P → mean over the T·K slots of the sum of cosine similarities to the class's other slots; 0 if disjoint."""
    unit = F.normalize(assignment, dim=-1)
    cosines = unit @ unit.transpose(1, 2)
    return (cosines.sum((1, 2)) / cosines.shape[1]).mean() - 1


def cluster_and_separation(nearest: Tensor, held: Tensor) -> tuple[Tensor, Tensor]:
    """Distances to the nearest prototype that the image's class holds and to the nearest that it does not, averaged.

    Args:
        nearest: B×P, squared distance of the nearest patch to each prototype.
        held: B×P bool, whether the image's class holds the prototype.
    """
    beyond = torch.finfo(nearest.dtype).max
    own = nearest.masked_fill(~held, beyond).amin(1)
    other = nearest.masked_fill(held, beyond).amin(1)
    return own.mean(), other.mean()


def sharpness_at(progress: float) -> float:
    """Factor on θ after a share of the annealing: 1000·√share, but at least 1 (the authors' code)."""
    return min(SHARPEST, max(1.0, SHARPEST * progress**0.5))


def protopool(context: ExperimentContext) -> ProtoPool:
    """Trains everything but the last layer, pushes, tunes the last layer."""
    config, train = context.config, context.class_rows
    seed_everything(seeds(config.seed, "weights"))
    system = ProtoPool(context.build_backbone(), context.classes, context.concepts).to(device()).eval()
    system.pool.data = spread_patches(system.patches, POOL, train, context)
    annealing = ANNEALING * config.epochs * count_batches(len(train), config.batch_size)
    steps = itertools.count()

    def terms(rows: np.ndarray, images: Tensor) -> dict[str, Tensor]:
        system.sharpness = sharpness_at(next(steps) / annealing)
        labels, assignment = context.class_labels(rows), system.assignment()
        distances = system.distances(images)
        held = F.one_hot(assignment.argmax(-1), len(system.pool)).amax(1)[labels] > 0
        cluster, separation = cluster_and_separation(distances.amin((2, 3)), held)
        logits = system.logits(system.slots(focal_similarity(distances), assignment))
        return {
            "class": F.cross_entropy(logits, labels),
            "cluster": CLUSTER_WEIGHT * cluster,
            "separation": -SEPARATION_WEIGHT * separation,
            "orthogonality": orthogonality(assignment),
        }

    left = warm_up(context, "protopool", system, system.backbone, terms)
    rates = {"backbone.": BACKBONE_RATE} if context.shared_backbone else {}
    hardened = max(0, round(ANNEALING * config.epochs) - (config.epochs - left))
    train_on_images(context, "protopool_joint", system, terms, epochs=left, earliest=hardened, rates=rates)
    align_answers(system, system.backbone, context)
    assignment = system.assignment()
    system.pool.data = nearest_patches(system.patches, system.pool.data, assignment.amax(1).T > 0, context)
    with torch.no_grad():
        focal = [focal_similarity(system.distances(images)) for _, images in image_batches(context.data, train, 64)]
    slots = system.slots(torch.cat(focal), assignment)
    tune_last_layer(system.last_layer, slots, context.class_labels(train), system.owners)
    system.prototypes = len(system.used())
    return system


SYSTEMS = {
    "protopool": Entry(
        "ProtoPool", ProtoPool, protopool, "classes", WARM_START_EPOCHS, one_class=True, start="black_box"
    )
}
