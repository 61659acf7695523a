"""What is measured of training.

- The loop of stage 1, as it is, against the floor: the same model, loss and optimiser on batches that are already where
  they are computed. What is lost between the two is the data path: reading, sending, augmenting, book-keeping.
- The seconds of every stage on a phantom, and what stages 2 and 3 take beside stage 1.
- Our ProtoPNet and PIP-Net beside stage 1: same backbone, images, batch, epochs.

Not covered: accuracy, which so short trainings do not have.
"""

from __future__ import annotations

import itertools
import resource
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from csr.baselines.protocol import Entry, ExperimentContext
from csr.bench.protocol import in_turns, now
from csr.bench.rows import Row, row
from csr.comparison.shared_backbones import open_shared_backbone, train_shared_backbone
from csr.comparison.systems import SHARED_BACKBONES, systems
from csr.comparison.training import with_budget
from csr.data.phantom import PhantomConfig, generate
from csr.data.prepared import PreparedSet
from csr.network.concept_model import ConceptModel, ConceptModelConfig
from csr.training.augmentation import Draws, Findings, draw_moves, moved, window
from csr.training.callbacks import Item, SilentCallbacks
from csr.training.concepts import ConceptTrainingConfig, train_concepts
from csr.training.features import FeatureCache, compute_features
from csr.training.head import HeadConfig, train_head
from csr.training.images import load_images, set_normalisation
from csr.training.losses import masked_bce
from csr.training.prototypes import PrototypeConfig, train_prototypes
from csr.training.runtime import Precision, autocast, device

WARM_UP = 3  # steps of each round that are not counted
PEERS = ("protopnet", "pipnet")


@dataclass(frozen=True)
class Size:
    """How much is measured. The defaults are those of the pipeline, on a phantom an eighth as large.

    Args:
        train, val, side: of the phantom.
        backbone, batch_size, precision: of everything that learns from images.
        steps: of stage 1's loop a round.
        epochs: of stage 1 where stages are timed. peer_epochs: of all systems where they are compared.
        rounds: how often each is measured.
    """

    train: int = 320
    val: int = 64
    side: int = 192
    backbone: str = "regnetx_002"
    batch_size: int = 16
    precision: Precision = "auto"
    steps: int = 12
    epochs: int = 12
    peer_epochs: int = 4
    rounds: int = 3


TINY = Size(
    train=64, val=32, side=64, backbone="test_convnext", batch_size=8, steps=3, epochs=1, peer_epochs=2, rounds=1
)


class _EnoughError(Exception):
    """Ends a training whose loop has been measured."""


class _Timed(SilentCallbacks):
    """Takes the seconds of a loop's steps after `WARM_UP`, and then ends the training."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps, self.seconds = steps, float("nan")

    def track(self, items: Iterable[Item], total: int, description: str) -> Iterable[Item]:
        if total < WARM_UP + self.steps:
            raise ValueError(f"an epoch has {total} steps, {WARM_UP + self.steps} are to be measured")
        items = iter(items)
        yield from itertools.islice(items, WARM_UP)
        start = now()
        yield from itertools.islice(items, self.steps)
        self.seconds = now() - start
        raise _EnoughError


@dataclass
class _Counted(SilentCallbacks):
    """Takes the seconds and images of every loop, by the name of what is trained."""

    seconds: dict[str, float] = field(default_factory=dict)
    images: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__()

    def track(self, items: Iterable[Item], total: int, description: str) -> Iterable[Item]:
        name, start = description.partition(" ")[0], now()
        for item in items:
            rows: Any = item
            self.images[name] = self.images.get(name, 0) + len(rows[0])  # of what is given, the rows come first
            yield item
        self.seconds[name] = self.seconds.get(name, 0.0) + now() - start


class Bench:
    """The measurements, on a phantom in a folder that is thrown away.

    Args:
        folder: an empty one.
        processes: that draw the phantom.
        say: takes a word on what is measured now.
    """

    def __init__(self, size: Size, folder: Path, processes: int, say: Callable[[str], None]) -> None:
        self._size, self._folder, self._say = size, folder, say
        least = size.batch_size * (WARM_UP + size.steps)
        phantom = PhantomConfig(train=max(size.train, least), val=size.val, test=24, contrast=2.0)
        say(f"drawing {phantom.train + phantom.val + phantom.test} images of {size.side}²")
        generate(phantom, size.side, folder / "prepared", processes)
        self._data = PreparedSet.open(folder / "prepared")
        self._config = ConceptTrainingConfig(
            model=ConceptModelConfig(size.backbone),
            epochs=size.epochs,
            batch_size=size.batch_size,
            precision=size.precision,
        )

    def run(self, parts: Iterable[str]) -> list[Row]:
        """The rows of some of `PARTS`, in their order."""
        chosen = set(parts)
        return [each for name, body in PARTS.items() if name in chosen for each in body(self)]

    def loop(self) -> list[Row]:
        """Images a second of stage 1's loop and of the floor."""
        self._say("stage 1's loop against tensors in memory")
        floor = self._floor()
        found = in_turns({"floor": floor, "loop": self._loop}, self._size.rounds)
        best = row("stage 1, tensors in memory", "images/s", "higher", found["floor"])
        return [best, row("stage 1, loop", "images/s", "higher", found["loop"], best)]

    def stages(self) -> list[Row]:
        """Seconds of each stage, and the most memory that the process, or the GPU, had by the end."""
        seconds: dict[str, list[float]] = {}
        for number in range(self._size.rounds):
            self._say(f"all stages, round {number + 1} of {self._size.rounds}")
            for name, taken in self._train_stages().items():
                seconds.setdefault(name, []).append(taken)
        first = row("stage 1", "s", "lower", seconds.pop("stage 1"))
        later = [sum(pair) for pair in zip(seconds["stage 2"], seconds["stage 3"], strict=True)]
        return [
            first,
            *(row(name, "s", "lower", each, first) for name, each in seconds.items()),
            row("stages 2 and 3", "s", "lower", later, first),
            row("peak memory of training", "MiB", "lower", [peak_memory()]),
        ]

    def peers(self) -> list[Row]:
        """Seconds and images a second of training each system, the backbone that peers start from apart."""
        entries = systems({}, encoder=False)
        context = self._context()
        seconds: dict[str, list[float]] = {}
        rates: dict[str, list[float]] = {}

        def measured(name: str, train: Callable[[ExperimentContext], Any], own: ExperimentContext) -> None:
            callbacks, start = _Counted(), now()
            train(replace(own, callbacks=callbacks))
            seconds.setdefault(name, []).append(now() - start)
            shown = [each for each in callbacks.images if not each.endswith("_head")]  # a head sees no images
            rate = sum(callbacks.images[each] for each in shown) / sum(callbacks.seconds[each] for each in shown)
            rates.setdefault(name, []).append(rate)

        for number in range(self._size.rounds):
            self._say(f"CSR, ProtoPNet and PIP-Net, round {number + 1} of {self._size.rounds}")
            measured("CSR stage 1", lambda own: train_concepts(own.data, own.config, own.callbacks), context)
            shared = self._fresh("classes")
            measured("their backbone", partial(self._train_shared, shared), context)
            for name in PEERS:
                entry: Entry = entries[name]
                backbone, _ = open_shared_backbone(shared)
                measured(entry.title, entry.train, with_budget(entry, replace(context, shared_backbone=backbone)))
        ours = row("CSR stage 1, seconds", "s", "lower", seconds.pop("CSR stage 1"))
        fast = row("CSR stage 1, images/s", "images/s", "higher", rates.pop("CSR stage 1"))
        return [
            ours,
            *(row(f"{name}, seconds", "s", "lower", each, ours) for name, each in seconds.items()),
            fast,
            *(row(f"{name}, images/s", "images/s", "higher", each, fast) for name, each in rates.items()),
        ]

    def _train_shared(self, folder: Path, context: ExperimentContext) -> None:
        train_shared_backbone(SHARED_BACKBONES["classes"], context, folder)

    def _loop(self) -> float:
        callbacks = _Timed(self._size.steps)
        with suppress(_EnoughError):
            train_concepts(self._data, self._config, callbacks)
        return self._size.steps * self._size.batch_size / callbacks.seconds

    def _floor(self) -> Callable[[], float]:
        """Makes one round of the floor: the same steps on batches that are augmented and in place beforehand."""
        size, config, data, place = self._size, self._config, self._data, device()
        rows = data.collection.rows("train")
        findings, labels = Findings(data.collection, data.side), torch.from_numpy(data.collection.concept_labels())
        batches = []
        for start in range(0, min(len(rows), 8 * size.batch_size), size.batch_size):
            own = rows[start : start + size.batch_size]
            draws = Draws(len(own))
            moves = draw_moves(config.augment, findings, own, draws)
            images = window(moved(load_images(data, own, place), config.augment, moves), config.augment, draws)
            batches.append((images, labels[own].to(place)))

        def measured() -> float:
            model = ConceptModel(config.model, data.channels, len(data.collection.concepts))
            set_normalisation(model.backbone, data)
            model = model.to(place).to(memory_format=torch.channels_last).train()
            optimiser = torch.optim.AdamW(model.parameters(), config.learning_rate, fused=True)
            given, start = itertools.cycle(batches), now()
            for step in range(WARM_UP + size.steps):
                if step == WARM_UP:
                    start = now()
                images, truth = next(given)
                optimiser.zero_grad(set_to_none=True)
                with autocast(config.precision):
                    _, logits = model(images)
                masked_bce(logits, truth).backward()
                optimiser.step()
            return size.steps * size.batch_size / (now() - start)

        return measured

    def _train_stages(self) -> dict[str, float]:
        collection, callbacks, times = self._data.collection, SilentCallbacks(), [now()]

        def lap() -> float:
            times.append(now())
            return times[-1] - times[-2]

        model = train_concepts(self._data, self._config, callbacks)
        seconds = {"stage 1": lap()}
        folder = self._fresh("features")
        compute_features(model, self._data, folder, callbacks, precision=self._config.precision)
        cache = FeatureCache.open(folder)
        seconds["features"] = lap()
        prototypes = train_prototypes(collection, cache, PrototypeConfig(precision=self._config.precision), callbacks)
        seconds["stage 2"] = lap()
        train_head(collection, cache, prototypes, HeadConfig(), callbacks, side=self._data.side)
        return seconds | {"stage 3": lap()}

    def _context(self) -> ExperimentContext:
        return ExperimentContext(self._data, replace(self._config, epochs=self._size.peer_epochs), SilentCallbacks())

    def _fresh(self, name: str) -> Path:
        """An empty folder."""
        folder = self._folder / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        return folder


PARTS: Mapping[str, Callable[[Bench], list[Row]]] = {
    "loop": Bench.loop,
    "stages": Bench.stages,
    "peers": Bench.peers,
}


def peak_memory() -> float:
    """MiB: the most that torch had allocated on the GPU, or that the process had in memory, until now."""
    if device().type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def bench(size: Size, parts: Iterable[str], processes: int, say: Callable[[str], None]) -> list[Row]:
    """Measures some of `PARTS` in a folder that is thrown away."""
    with tempfile.TemporaryDirectory(prefix="csr-bench-") as folder:
        return Bench(size, Path(folder), processes, say).run(parts)
