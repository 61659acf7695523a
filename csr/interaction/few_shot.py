"""A concept that the model has never heard of, taken on from a few boxed examples; stages 1 and 2 stay as they are.

A reader boxes the new concept in n training images and names a few that lack it. Its prototypes are then unit vectors
among the projected patches, as every other concept's are, found by what stage 2 asks of prototypes, with the projector
frozen (λ and δ as there):

    s(C) = max over cells in C and prototypes m of ⟨p_m, v'⟩
    ℓ = mean over boxes b and images i of softplus( λ( s(outside of i) + δ − s(b) ) )

The outside of an image are its cells outside the boxes: all of it, if it lacks the concept. So a prototype is not what
the boxes look like on average, but what tells them from everything else; in trials on validation studies (one concept
of the phantom) means or k-means centres of the boxed patches told little, for patches have much in common. It starts
from those centres.

The head is trained anew on all concepts, which takes seconds: the new scores are standardised, and what images with and
without the concept typically score is taken from the examples. Examples are few, so the new concept's *probability* is
that of their share among the labelled images, and no more than a score elsewhere.

Stage 1 has no map of such a concept. Where one is asked for (usage, atlas), it is the boxes (`box_attention`).

The paper has no such step. Prototypical networks (Snell et al. 2017) also make classes of few examples' embeddings,
but by their mean.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from sklearn.cluster import KMeans
from torch import Tensor

from csr.data.prepared import PreparedSet
from csr.data.records import BOX_COLUMNS, CONCEPT_PREFIX, Collection
from csr.errors import DataError
from csr.interaction.corrections import RegionBox, cells_inside
from csr.network.prototypes import PrototypeModel
from csr.network.trained import TrainedCSR
from csr.training.callbacks import Callbacks
from csr.training.features import FeatureCache
from csr.training.head import HeadConfig, train_head
from csr.training.runtime import device
from csr.training.temperature import calibrate_temperature

_OUTSIDE = 50.0  # of a map, by which cells outside the boxes are less: a softmax makes it nothing


@dataclass(frozen=True)
class Examples:
    """What a reader shows of a new concept.

    Args:
        concept: its name.
        boxes: row of a training image → n×4 boxes (x_min, y_min, x_max, y_max) around all that it shows of the concept,
            in pixels of the prepared images.
        absent: rows of training images that lack it.
    """

    concept: str
    boxes: Mapping[int, np.ndarray]
    absent: np.ndarray


@dataclass(frozen=True)
class FewShotConfig:
    """How prototypes are found; λ and δ are stage 2's, the rest worked in trials on validation studies.

    Args:
        scale, delta: λ and δ.
        steps, learning_rate: of Adam.
        seed: of k-means, which they start from.
    """

    scale: float = 20.0
    delta: float = 0.1
    steps: int = 150
    learning_rate: float = 0.02
    seed: int = 0


def add_concepts(
    csr: TrainedCSR,
    data: PreparedSet,
    cache: FeatureCache,
    examples: Sequence[Examples],
    head: HeadConfig,
    callbacks: Callbacks,
    config: FewShotConfig | None = None,
) -> tuple[TrainedCSR, PreparedSet, FeatureCache]:
    """A model that knows more concepts, those of the examples in their order behind its own.

    Args:
        csr: trained; shares stage 1 with the result, and is not changed.
        data: what it was trained on; the head is trained on its classes.
        cache: the backbone's features of every study.
        examples: of one concept each.
        head: how stage 3 is trained.
        config: None for the defaults.

    Returns:
        The model, and what `csr.bundle.atlas.build_atlas` and `csr.bundle.writing.write_bundle` take with it: the data
        with the examples' labels and boxes, and the features with `box_attention`.

    Raises:
        DataError: the examples do not fit; see `with_examples`.
        TrainingError: the head's loss became NaN or infinite.
    """
    known = data
    for each in examples:
        known = with_examples(known, each)
    csr = csr.to(device()).eval()
    config = config or FewShotConfig()
    found = [fit_prototypes(csr, cache, each, data.side, config) for each in examples]
    model, alive = _extended(csr.prototype_model, found), csr.reasoner.alive
    for own in found:
        alive = torch.cat([alive, (torch.arange(alive.shape[1], device=alive.device) < len(own)).float()[None]])
    attended = box_attention(known.collection, cache, known.side)
    reasoner = train_head(known.collection, attended, model, head, callbacks, alive=alive, side=known.side)
    reasoner.alpha[: len(csr.concepts)] = csr.reasoner.alpha
    added = TrainedCSR(csr.concept_model, model, reasoner, known.collection.concepts, csr.classes)
    calibrate_temperature(known, attended, added)
    return added.eval(), known, attended


def with_examples(data: PreparedSet, examples: Examples) -> PreparedSet:
    """The data with a column for the new concept, 1 and 0 for the examples and unknown elsewhere, and their boxes.

    Raises:
        DataError: the concept is known already; there is no boxed image or none that lacks it; a row is not of split
            ``train``, or is both; a box is empty or lies outside the image.
    """
    collection, name = data.collection, examples.concept
    if name in collection.concepts:
        raise DataError(f"concept {name!r}: this model knows it already; give the new one another name")
    if not examples.boxes or not len(examples.absent):
        what = "lacks it" if examples.boxes else "shows it, with a box"
        raise DataError(f"concept {name!r}: no example {what}; name at least one training study that does")
    study, train = collection.studies["study_id"], set(collection.rows("train").tolist())
    for row in (*examples.boxes, *examples.absent.tolist()):
        if row not in train:
            raise DataError(f"concept {name!r}: {study.iat[row]!r} is not of split 'train'; examples must be")
        if row in examples.boxes and row in examples.absent:
            raise DataError(f"concept {name!r}: {study.iat[row]!r} is said to show it and to lack it")
    for row, boxes in examples.boxes.items():
        for box in boxes.tolist():
            x_min, y_min, x_max, y_max = box
            if not (0 <= x_min < x_max <= data.side and 0 <= y_min < y_max <= data.side):
                raise DataError(
                    f"concept {name!r}: box {box} of {study.iat[row]!r} is empty or reaches out of the "
                    f"{data.side}×{data.side} image"
                )
    labels = np.full(len(study), np.nan, np.float32)
    labels[list(examples.boxes)], labels[examples.absent] = 1, 0
    drawn = pd.DataFrame(
        [(study.iat[row], name, *box) for row, boxes in examples.boxes.items() for box in boxes.tolist()],
        columns=list(BOX_COLUMNS),
    )
    if "mask" in collection.boxes:
        drawn["mask"] = -1
    extended = replace(
        collection,
        concepts=(*collection.concepts, name),
        studies=collection.studies.assign(**{CONCEPT_PREFIX + name: labels}),
        boxes=pd.concat([collection.boxes, drawn], ignore_index=True),
    )
    return replace(data, collection=extended)


def box_attention(collection: Collection, cache: FeatureCache, side: int) -> FeatureCache:
    """The features with a map for every concept: where stage 1 has none, one that is flat inside the concept's boxes.

    The local concept vector of a boxed image is then the mean of its features inside. The maps are held in memory.

    Args:
        collection: whose first concepts are those that stage 1 has maps of.
        side: of the square that its boxes are in pixels of.
    """
    count, mapped, height, width = cache.cam.shape
    more = len(collection.concepts) - mapped
    if more <= 0:
        return cache
    maps = np.zeros((count, more, height, width), np.float32)
    for (row, k), boxes in collection.boxes_by_pair().items():
        if k >= mapped:
            maps[row, k - mapped][~_cells(boxes, side, height, width).any(0)] = -_OUTSIDE
    return FeatureCache(cache.features, np.concatenate([cache.cam, maps], 1))


def fit_prototypes(
    csr: TrainedCSR, cache: FeatureCache, examples: Examples, side: int, config: FewShotConfig
) -> Tensor:
    """Prototypes of the new concept, m×D' unit vectors; see the module's docstring.

    m is the M of the others, or the number of boxes if that is less.
    """
    rows = np.array([*examples.boxes, *examples.absent.tolist()], np.int64)
    with torch.no_grad():
        patches = csr.project(cache.batch(rows, csr.place)[0])
    cells, image = example_cells(examples, side, *patches.shape[2:])
    boxed, owner = torch.from_numpy(cells).to(csr.place), torch.from_numpy(image).to(csr.place)
    free = outside_boxes(boxed, owner, len(rows))
    centres = [patches[i][:, own].mean(1) for i, own in zip(image.tolist(), boxed, strict=True)]
    start = _centres(torch.stack(centres), csr.reasoner.alive.shape[1], config.seed)
    raw = start.clone().requires_grad_(True)
    optimiser = torch.optim.Adam([raw], lr=config.learning_rate)
    for _ in range(config.steps):
        similar = torch.einsum("bdhw,md->bmhw", patches, F.normalize(raw, dim=1)).amax(1)
        loss = separation_loss(similar, boxed, owner, free, config)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return F.normalize(raw.detach(), dim=1)


def separation_loss(similar: Tensor, boxed: Tensor, owner: Tensor, free: Tensor, config: FewShotConfig) -> Tensor:
    """ℓ of the module's docstring.

    Args:
        similar: largest similarity of each cell to a prototype, images×h×w, in −1..1.
        boxed: cells of every box, n×h×w bool.
        owner: number of its image, n.
        free: cells outside the boxes, images×h×w bool.
    """
    within = similar[owner].masked_fill(~boxed, -2).flatten(1).amax(1)
    outside = similar.masked_fill(~free, -2).flatten(1).amax(1)
    return F.softplus(config.scale * (outside[None] + config.delta - within[:, None])).mean()


def example_cells(examples: Examples, side: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Of every box the map cells that it reaches, n×h×w bool, and the number of its image among the boxed ones, n."""
    cells = [_cells(boxes, side, height, width) for boxes in examples.boxes.values()]
    return np.concatenate(cells), np.repeat(np.arange(len(cells)), [len(own) for own in cells])


def outside_boxes(boxed: Tensor, owner: Tensor, images: int) -> Tensor:
    """The cells of every image that none of its boxes reaches, images×h×w bool; arguments as `example_cells` gives."""
    free = torch.ones(images, *boxed.shape[1:], dtype=torch.bool, device=boxed.device)
    for cells, i in zip(boxed, owner.tolist(), strict=True):
        free[i] &= ~cells
    return free


def _cells(boxes: np.ndarray, side: int, height: int, width: int) -> np.ndarray:
    return np.array([cells_inside(RegionBox(*box), side, height, width) for box in boxes.tolist()])


def _centres(vectors: Tensor, most: int, seed: int) -> Tensor:
    """At most so many unit vectors that n×D vectors lie around."""
    unit = F.normalize(vectors, dim=1)
    count = min(most, len(np.unique(unit.cpu().numpy(), axis=0)))
    found = KMeans(count, n_init=5, random_state=seed).fit(unit.cpu().numpy())
    return F.normalize(torch.from_numpy(found.cluster_centers_).to(unit), dim=1)


def _extended(model: PrototypeModel, found: Sequence[Tensor]) -> PrototypeModel:
    """Stage 2 with more concepts, of m ≤ M prototypes each; places that are left hold the first of them again."""
    concepts, per_concept, width = model.prototypes.raw.shape
    extended = PrototypeModel(**(model.config | {"concepts": concepts + len(found)})).to(model.prototypes.raw.device)
    extended.projector = copy.deepcopy(model.projector)
    own = [torch.cat([each, each[:1].expand(per_concept - len(each), width)]) for each in found]
    with torch.no_grad():
        extended.prototypes.raw.copy_(torch.cat([model.prototypes.raw, torch.stack(own)]))
    return extended.eval()
