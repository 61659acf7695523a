"""ProtoPNet (Chen et al. 2019, arXiv 1806.10574): an image is of a class because its patches look like prototypical
patches of that class.

Two 1×1 convolutions with a ReLU between and a sigmoid at the end make latent patches z in (0, 1)^128 of the features.
Ten prototypes a class, each one latent patch large (section 2.1):

    d_p = min over patches ‖z − p‖²        s_p = log( (d_p + 1) / (d_p + 1e-4) )        logits = W s, no bias

The paper's backbone is pretrained on ImageNet. Here it is that of the trained black box (shared backbone ``classes``;
`csr.baselines.protocol.ExperimentContext.build_backbone` says why).

Where prototypes start is ours: from latent patches of training images of their class that lie far apart
(`spread_patches`); the authors' programs draw them uniformly from the unit cube. There no patch is near, the similarity
is flat, and cluster, which is not, pulls all patches into one point before the classes have a say. The programs take
tens of thousands of steps, here there are hundreds. On frozen features of blood cells (validation split, one seed, 500
steps) macro F1 was 0.90 from the cube, 0.92 from patches and 0.89 by the authors' network and losses; on those of the
phantom's stage 1 (600 steps) 0.38, 0.71 in a training of one phase, and 0.44 by the authors' after 1200.

The phases, in the paper's order (section 2.2):

0. Warm-up, a tenth of the epochs: convolutions and prototypes alone, by the loss of 1, so that new convolutions do not
   spoil the backbone, as in the authors' programs.
1. Backbone, convolutions and prototypes by CE + 0.8 · cluster − 0.08 · separation, W fixed: at first at 1 for a
   prototype's own class and −0.5 for every other.
2. Push: maps are aligned (`csr.baselines.map_alignment`), then each prototype becomes the nearest latent patch of
   un-augmented training images of its own class.
3. W by CE + 1e-4 · Σ |weights to other classes|, everything else fixed, a convex problem on cached similarities.
4. Pruning (supplement): the six training images that come nearest to a prototype; fewer than three of its own class,
   and it goes. Then 3 again. Prototypes that all fail the rule all stay: the paper is silent.

1 to 3 come twice (`ROUNDS`), with half of the epochs each: the programs push every tenth of hundreds of epochs. AdamW,
its decay of prototypes, which the programs spare, and its schedule are the comparison's, anew in each round; the
backbone learns at a thirtieth of the others' rate (`BACKBONE_RATE`), unless it starts from random weights, when all
layers learn alike.

Pointing-game map: the similarity map of the prototype of the predicted class that contributes most, W_tp · s_p, to its
logit; of any prototype, should pruning have left that class none. The same map for every concept, since prototypes
belong to classes. Explanations: all prototypes left, as CSR's paper counts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.cluster import kmeans_plusplus
from torch import Tensor, nn

from csr.baselines.map_alignment import align_answers
from csr.baselines.protocol import WARM_START_EPOCHS, Answer, Entry, ExperimentContext, System, train_on_images
from csr.network.backbone import Backbone
from csr.network.rebuild import backbone_config, build_backbone
from csr.training.images import image_batches
from csr.training.runtime import device, seed_everything, seeds

WIDTH = 128
PER_CLASS = 10
EPSILON = 1e-4
CLUSTER_WEIGHT = 0.8
SEPARATION_WEIGHT = 0.08
SPARSITY_WEIGHT = 1e-4
OWN_CONNECTION = 1.0
OTHER_CONNECTION = -0.5
BACKBONE_RATE = 1 / 30  # of a pretrained backbone: 1e-4 against 3e-3 in the authors' programs
NEAREST = 6  # k of the pruning rule
OWN_NEAREST = 3  # r of the pruning rule
ROUNDS = 2
SEEDING_IMAGES = 64  # of a class, in which initial prototypes are looked for
TUNING_STEPS = 2000
TUNING_RATE = 1e-2


class ProtoPNet(System):
    """Backbone, latent patches, prototypes of classes, last layer.

    Args:
        classes: T.
        concepts: K, how often the map is repeated.
    """

    owners: Tensor

    def __init__(self, backbone: Backbone, classes: int, concepts: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.concepts = concepts
        self.prototypes = PER_CLASS * classes
        self.add_on = nn.Sequential(
            nn.Conv2d(backbone.width, WIDTH, 1), nn.ReLU(), nn.Conv2d(WIDTH, WIDTH, 1), nn.Sigmoid()
        )
        for layer in self.add_on:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                assert layer.bias is not None
                nn.init.zeros_(layer.bias)
        self.prototype_vectors = nn.Parameter(torch.rand(self.prototypes, WIDTH))
        self.register_buffer("owners", torch.arange(classes).repeat_interleave(PER_CLASS))  # P, each prototype's class
        self.last_layer = nn.Linear(self.prototypes, classes, bias=False)
        other = other_classes(self.owners, classes)
        self.last_layer.weight.data.copy_(torch.where(other, OTHER_CONNECTION, OWN_CONNECTION))
        self.last_layer.requires_grad_(False)

    @property
    def config(self) -> dict[str, Any]:
        return {
            "backbone": backbone_config(self.backbone),
            "classes": self.last_layer.out_features,
            "concepts": self.concepts,
            "prototypes": self.prototypes,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> ProtoPNet:
        system = cls(build_backbone(config["backbone"]), config["classes"], config["concepts"])
        system.keep(torch.arange(system.prototypes) < config["prototypes"])
        return system

    def encode(self, images: Tensor) -> Tensor:
        """uint8 B×C×S×S → latent patches z B×128×h×w."""
        return self.add_on(self.backbone(images))

    def distances(self, images: Tensor) -> Tensor:
        """uint8 B×C×S×S → squared distance of every patch to every prototype, float32 B×P×h×w."""
        return squared_distances(self.encode(images), self.prototype_vectors)

    def classify(self, nearest: Tensor) -> Tensor:
        """Smallest squared distances B×P → class logits B×T."""
        with torch.autocast(nearest.device.type, enabled=False):
            return self.last_layer(log_similarity(nearest))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 B×C×S×S → (smallest squared distances B×P, class logits B×T), both float32."""
        nearest = self.distances(images).amin((2, 3))
        return nearest, self.classify(nearest)

    def keep(self, kept: Tensor) -> None:
        """Drops the prototypes outside the mask ``kept`` (P) and their weights in the last layer."""
        self.prototype_vectors = nn.Parameter(self.prototype_vectors.data[kept])
        self.last_layer.weight = nn.Parameter(self.last_layer.weight.data[:, kept])
        self.owners = self.owners[kept]
        self.prototypes = self.last_layer.in_features = len(self.owners)

    def answer(self, images: Tensor) -> Answer:
        distances = self.distances(images)
        nearest = distances.amin((2, 3))
        logits = self.classify(nearest)
        predicted = logits.argmax(1)
        contributions = self.last_layer.weight[predicted] * log_similarity(nearest)
        own = self.owners == predicted[:, None]
        eligible = own | ~own.any(1, keepdim=True)
        best = contributions.masked_fill(~eligible, -torch.inf).argmax(1)
        maps = log_similarity(distances[torch.arange(len(images), device=images.device), best])
        repeated = maps[:, None].expand(-1, self.concepts, -1, -1)
        return Answer(logits.softmax(-1), None, repeated, logits.new_full((len(images),), self.prototypes))


def protopnet(context: ExperimentContext) -> ProtoPNet:
    """Trains, pushes, prunes and tunes the last layer."""
    seed_everything(seeds(context.config.seed, "weights"))
    system = ProtoPNet(context.build_backbone(), context.classes, context.concepts).to(device()).eval()
    labels_of = context.data.collection.truth()
    own_rows = [context.class_rows[labels_of[context.class_rows] == t] for t in range(context.classes)]
    system.prototype_vectors.data = torch.cat(
        [spread_patches(system.encode, PER_CLASS, rows, context) for rows in own_rows]
    )

    def terms(rows: np.ndarray, images: Tensor) -> dict[str, Tensor]:
        labels = context.class_labels(rows)
        nearest, logits = system(images)
        cluster, separation = cluster_and_separation(nearest, labels, system.owners)
        return {
            "class": F.cross_entropy(logits, labels),
            "cluster": CLUSTER_WEIGHT * cluster,
            "separation": -SEPARATION_WEIGHT * separation,
        }

    own_class = ~other_classes(system.owners, context.classes).T
    left = warm_up(context, "protopnet", system, system.backbone, terms)
    for number, part in enumerate(np.array_split(np.arange(left), ROUNDS), 1):
        rates = {"backbone.": BACKBONE_RATE} if context.shared_backbone else {}
        train_on_images(context, f"protopnet_round_{number}", system, terms, epochs=len(part), rates=rates)
        align_answers(system, system.backbone, context)
        pushed = nearest_patches(system.encode, system.prototype_vectors.data, own_class, context)
        system.prototype_vectors.data = pushed
        distances, labels = training_distances(system, context)
        tune_last_layer(system.last_layer, log_similarity(distances), labels, system.owners)
    kept = worth_keeping(distances, labels, system.owners)
    system.keep(kept)
    tune_last_layer(system.last_layer, log_similarity(distances[:, kept]), labels, system.owners)
    return system


def squared_distances(patches: Tensor, prototypes: Tensor) -> Tensor:
    """‖z − p‖² = ‖z‖² − 2 z·p + ‖p‖² of latent patches z B×D×h×w and prototypes p P×D → B×P×h×w.

    In float32 even under autocast: near a prototype it is the small difference of large numbers.
    """
    with torch.autocast(patches.device.type, enabled=False):
        z = patches.float()
        inner = F.conv2d(z, prototypes[:, :, None, None])
        squares = z.square().sum(1, keepdim=True) + prototypes.square().sum(1)[:, None, None]
        return (squares - 2 * inner).clamp_min(0)


def log_similarity(squared: Tensor) -> Tensor:
    """log((d + 1) / (d + 1e-4)) of squared distances d: about 9.2 at 0, falling to 0 (section 2.1)."""
    return torch.log((squared + 1) / (squared + EPSILON))


def cluster_and_separation(nearest: Tensor, labels: Tensor, owners: Tensor) -> tuple[Tensor, Tensor]:
    """How near the nearest own prototype is, and how near the nearest foreign one: means over images (section 2.2).

    Args:
        nearest: B×P smallest squared distances.
        labels: B classes of the images. owners: P classes of the prototypes.
    """
    own = owners == labels[:, None]
    cluster = nearest.masked_fill(~own, torch.inf).amin(1).mean()
    separation = nearest.masked_fill(own, torch.inf).amin(1).mean()
    return cluster, separation


def other_classes(owners: Tensor, classes: int) -> Tensor:
    """T×P mask of the last-layer weights that lead from a prototype to a class which is not its own."""
    return owners != torch.arange(classes, device=owners.device)[:, None]


def tune_last_layer(layer: nn.Linear, similarities: Tensor, labels: Tensor, owners: Tensor) -> None:
    """Minimises cross-entropy + 1e-4 · Σ |weights to other classes| over the layer, in place (section 2.2).

    Whole-batch Adam. The number of steps and the rate are ours: the minimum of separable data lies at infinity, and the
    authors' programs too stop after a fixed number.

    Args:
        similarities: N×P of the training images. labels: N. owners: P classes of the prototypes.
    """
    other = other_classes(owners, layer.out_features)
    layer.requires_grad_(True)
    optimiser = torch.optim.Adam(layer.parameters(), TUNING_RATE)
    for _ in range(TUNING_STEPS):
        optimiser.zero_grad()
        sparsity = (layer.weight * other).abs().sum()
        (F.cross_entropy(layer(similarities), labels) + SPARSITY_WEIGHT * sparsity).backward()
        optimiser.step()
    layer.requires_grad_(False)


def worth_keeping(distances: Tensor, labels: Tensor, owners: Tensor) -> Tensor:
    """The prototypes with enough of their own class among the images that come nearest (supplement): mask P.

    Args:
        distances: N×P smallest squared distances of the training images. labels: N. owners: P.
    """
    nearest = distances.topk(min(NEAREST, len(distances)), 0, largest=False).indices  # k×P
    kept = (labels[nearest] == owners).sum(0) >= OWN_NEAREST
    return kept if kept.any() else torch.ones_like(kept)


@torch.no_grad()
def training_distances(system: ProtoPNet, context: ExperimentContext) -> tuple[Tensor, Tensor]:
    """N×P smallest squared distances of the un-augmented training images whose class is known, and their classes N."""
    system.eval()
    rows = context.class_rows
    found = [system.distances(images).amin((2, 3)) for _, images in image_batches(context.data, rows, 64)]
    return torch.cat(found), context.class_labels(rows)


@torch.no_grad()
def spread_patches(
    encode: Callable[[Tensor], Tensor], count: int, rows: np.ndarray, context: ExperimentContext
) -> Tensor:
    """``count`` latent patches of un-augmented images that lie far from each other, to start prototypes from: P×D.

    The seeding of k-means++ (Arthur and Vassilvitskii 2007): each patch is drawn with a chance that grows with its
    squared distance from those already drawn.

    Args:
        encode: as for `nearest_patches`.
        rows: of the images; `SEEDING_IMAGES` of them, evenly spaced, are looked at.
    """
    chosen = np.unique(rows[np.linspace(0, len(rows) - 1, min(SEEDING_IMAGES, len(rows))).astype(int)])
    found = [encode(images).float() for _, images in image_batches(context.data, chosen, 64)]
    patches = torch.cat(found).movedim(1, -1).flatten(0, 2)
    random_state = int(seeds(context.config.seed, "prototypes").generate_state(1)[0])
    _, drawn = kmeans_plusplus(patches.cpu().numpy(), count, random_state=random_state)
    return patches[torch.from_numpy(drawn).to(patches.device)]


@torch.no_grad()
def nearest_patches(
    encode: Callable[[Tensor], Tensor], prototypes: Tensor, allowed: Tensor, context: ExperimentContext
) -> Tensor:
    """For each prototype the nearest latent patch of the un-augmented training images of its allowed classes: P×D.

    Args:
        encode: uint8 B×C×S×S → latent patches B×D×h×w, in evaluation mode, else batches would change the patches.
        prototypes: P×D. One whose allowed classes have no training image stays as it is.
        allowed: P×T mask.
    """
    found = prototypes.clone()
    smallest = prototypes.new_full((len(prototypes),), torch.inf)
    each = torch.arange(len(prototypes), device=prototypes.device)
    for rows, images in image_batches(context.data, context.class_rows, 64):
        patches = encode(images)
        distances, cells = squared_distances(patches, prototypes).flatten(2).min(2)  # B×P
        distances[~allowed[:, context.class_labels(rows)].T] = torch.inf
        distance, image = distances.min(0)  # P
        nearer = distance < smallest
        smallest = torch.where(nearer, distance, smallest)
        candidates = patches.flatten(2)[image, :, cells[image, each]]
        found = torch.where(nearer[:, None], candidates, found)
    return found


def warm_up(
    context: ExperimentContext,
    name: str,
    system: System,
    held: nn.Module,
    terms: Callable[[np.ndarray, Tensor], Mapping[str, Tensor]],
) -> int:
    """Trains all but the part ``held`` for a tenth of the epochs, at least one, and returns how many are left."""
    epochs = context.config.epochs
    spent = min(max(1, epochs // 10), epochs - 1)
    held.requires_grad_(False)
    train_on_images(context, f"{name}_warm_up", system, terms, epochs=spent)
    held.requires_grad_(True)
    return epochs - spent


SYSTEMS = {
    "protopnet": Entry(
        "ProtoPNet", ProtoPNet, protopnet, "classes", WARM_START_EPOCHS, one_class=True, start="black_box"
    )
}
