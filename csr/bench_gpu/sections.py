"""The parts of the measurement; each has seconds of its own, and says what it left out when they were over."""

from __future__ import annotations

import gc
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from csr.bench.protocol import now
from csr.bench.rows import Row, row
from csr.bench.training import WARM_UP, Bench, Size, peak_memory
from csr.bench_gpu.floors import Rates, count_step, measure_rates, seconds_of
from csr.data.phantom import PhantomConfig, generate
from csr.data.records import BOX_COLUMNS, Collection
from csr.errors import CSRError
from csr.network.concept_model import ConceptModel, ConceptModelConfig
from csr.network.prototypes import similarity_maps
from csr.training.callbacks import SilentCallbacks
from csr.training.features import FeatureCache
from csr.training.head import HeadConfig, train_head
from csr.training.losses import masked_bce
from csr.training.prototypes import PrototypeConfig, train_prototypes
from csr.training.runtime import Precision, autocast, device, number_format

CHANNELS = 1
CLASSES = 6


@dataclass(frozen=True)
class GPUSize:
    """What is measured.

    Args:
        networks: backbone, stride, context of each.
        sides, batch_size, steps, rounds: of stage 1, each network at each side.
        loop: of the loop against tensors in memory.
        images, concepts, per_concept, width, cells: of stages 2 and 3.
        matrix, numbers: by which the device's rates are measured.
        phantom, phantom_side: of the phantom, where the time allows so many.
        precision: of everything that learns from images.
        seconds: all of it may take.
    """

    networks: tuple[tuple[str, int, int | None], ...] = (
        ("convnext_tiny", 8, 16),
        ("resnet50", 8, 16),
        ("vit_small_patch16_224", 16, None),
    )
    sides: tuple[int, ...] = (224, 384, 512)
    batch_size: int = 64
    steps: int = 10
    rounds: int = 3
    loop: Size = field(default_factory=lambda: Size(side=384, backbone="convnext_tiny", batch_size=64, steps=10))
    images: int = 15_000
    concepts: int = 14
    per_concept: int = 100
    width: int = 128
    cells: int = 24
    matrix: int = 8192
    numbers: int = 2**28
    phantom: int = 20_000
    phantom_side: int = 512
    precision: Precision = "auto"
    seconds: float = 450.0


TINY = GPUSize(
    networks=(("test_convnext", 8, 16), ("test_vit", 16, None)),
    sides=(64,),
    batch_size=4,
    steps=2,
    rounds=1,
    loop=Size(train=40, val=24, side=64, backbone="test_convnext", batch_size=8, steps=2, rounds=1),
    images=96,
    concepts=3,
    per_concept=4,
    width=8,
    cells=4,
    matrix=128,
    numbers=2**16,
    phantom=60,
    phantom_side=64,
)

# share of all seconds after which each part must have ended, and of which what a part leaves over is the next one's
ENDS = {"stage 1": 0.45, "loop": 0.58, "stages 2 and 3": 0.76, "similarity maps": 0.78, "phantom": 1.0}


class GPUBench:
    """The measurements.

    Attributes:
        rows: what was measured.
        left_out: what was not, and why.
    """

    def __init__(self, size: GPUSize, processes: int, say: Callable[[str], None]) -> None:
        self._size, self._processes, self._say = size, processes, say
        self._start, self._end = time.monotonic(), 0.0
        self._place, self._kind = device(), number_format(size.precision)
        self.rows: list[Row] = []
        self.left_out: list[dict[str, str]] = []

    def run(self) -> None:
        """All parts. What fails, or has no time left, is left out with its reason."""
        rates = measure_rates(self._place, self._kind, self._size.matrix, self._size.numbers)
        self._add(row(f"product of matrices, {self._kind}", "TFLOP/s", "higher", [rates.flops / 1e12]))
        self._add(row("copy", "GB/s", "higher", [rates.bytes / 1e9]))
        parts: dict[str, Callable[[], None]] = {
            "stage 1": lambda: self._stage_1(rates),
            "loop": self._loop,
            "stages 2 and 3": self._later_stages,
            "similarity maps": lambda: self._similarity_maps(rates),
            "phantom": self._phantom,
        }
        for name, body in parts.items():
            self._end = self._start + ENDS[name] * self._size.seconds
            with self._told(name):
                body()

    def _stage_1(self, rates: Rates) -> None:
        """Images a second of the bare step, by network and side, as a share of the floor; and the most memory."""
        for side in self._size.sides:
            for backbone, stride, context in self._size.networks:
                name = f"{backbone} at {side}²"
                with self._told(name):
                    config = ConceptModelConfig(backbone, stride=stride, context=context)
                    self._network(name, config, side, rates)

    def _network(self, name: str, config: ConceptModelConfig, side: int, rates: Rates) -> None:
        size = self._size
        self._free()
        model = ConceptModel(config, CHANNELS, size.concepts)
        model = model.to(self._place).to(memory_format=torch.channels_last).train()
        optimiser = torch.optim.AdamW(model.parameters(), fused=True)
        images = torch.randint(0, 256, (size.batch_size, CHANNELS, side, side), dtype=torch.uint8, device=self._place)
        images = images.contiguous(memory_format=torch.channels_last)
        labels = (torch.rand(size.batch_size, size.concepts, device=self._place) < 0.5).float()

        def step() -> None:
            optimiser.zero_grad(set_to_none=True)
            with autocast(size.precision):
                _, logits = model(images)
            masked_bce(logits, labels).backward()
            optimiser.step()

        flops, moved = count_step(model, step)
        best = row(f"{name}, floor", "images/s", "higher", [size.batch_size / rates.seconds(flops, moved)])
        found = [size.batch_size / seconds_of(step, size.steps) for _ in range(size.rounds)]
        self._add(best)
        self._add(row(f"{name}, stage 1", "images/s", "higher", found, best))
        self._add(row(f"{name}, peak memory", "MiB", "lower", [peak_memory()]))

    def _loop(self) -> None:
        """Stage 1's loop against tensors in memory, as `csr.bench` measures it."""
        self._free()
        with tempfile.TemporaryDirectory(prefix="csr-bench-") as folder:
            size = replace(self._size.loop, precision=self._size.precision)
            for each in Bench(size, Path(folder), self._processes, self._say).loop():
                self._add(each)

    def _later_stages(self) -> None:
        """Seconds of an epoch of stages 2 and 3 with what comes before and after it, on features that mean nothing."""
        self._free()
        size = self._size
        collection = made_up_collection(size.images, size.concepts)
        config = PrototypeConfig(per_concept=size.per_concept, width=size.width, epochs=1, precision=size.precision)
        with tempfile.TemporaryDirectory(prefix="csr-bench-") as folder:
            cache = made_up_features(Path(folder), size)
            about, start = f"{size.images} images, {size.concepts * size.per_concept} prototypes", now()
            model = train_prototypes(collection, cache, config, SilentCallbacks())
            self._add(row(f"stage 2, one epoch, {about}", "s", "lower", [now() - start]))
            self._check_time()
            start = now()
            train_head(collection, cache, model, HeadConfig(epochs=1, least_usage=0.0), SilentCallbacks())
            self._add(row(f"stage 3, one epoch, {about}", "s", "lower", [now() - start]))
        self._add(row(f"stages 2 and 3, peak memory, {about}", "MiB", "lower", [peak_memory()]))

    @torch.no_grad()
    def _similarity_maps(self, rates: Rates) -> None:
        """The kernel that compares patches with prototypes, against reading the one and writing the maps once."""
        self._free()
        size = self._size
        patches = torch.randn(64, size.width, size.cells, size.cells, device=self._place)
        prototypes = torch.randn(size.concepts, size.per_concept, size.width, device=self._place)
        maps = similarity_maps(patches, prototypes)
        moved = 4 * (patches.numel() + prototypes.numel() + maps.numel())
        best = row("similarity maps, floor", "maps/s", "higher", [maps[..., 0, 0].numel() / (moved / rates.bytes)])
        found = [
            maps[..., 0, 0].numel() / seconds_of(lambda: similarity_maps(patches, prototypes), 10 * size.steps)
            for _ in range(size.rounds)
        ]
        self._add(best)
        self._add(row("similarity maps", "maps/s", "higher", found, best))

    def _phantom(self) -> None:
        """Stage 1's loop on a large phantom: as many images as are drawn in half of the time that is left."""
        self._free()
        size = self._size
        trial, others = max(48, 2 * self._processes), 72  # others: of the splits that nobody trains on
        with tempfile.TemporaryDirectory(prefix="csr-bench-") as folder:
            start = time.monotonic()
            generate(
                PhantomConfig(train=trial, val=24, test=24), size.phantom_side, Path(folder) / "trial", self._processes
            )
            rate = (trial + others) / (time.monotonic() - start)
        count = min(size.phantom, int(rate * (self._end - time.monotonic()) / 2))
        own = replace(size.loop, side=size.phantom_side, train=count, val=24, precision=size.precision)
        if count < own.batch_size * (WARM_UP + own.steps):
            raise _OutOfTimeError(f"{rate:.0f} images a second are drawn here, so there would be {max(count, 0)}")
        if count < size.phantom:
            reason = f"{rate:.0f} images a second are drawn here: {count} in the time that was left"
            self.left_out.append({"name": f"phantom of {size.phantom} images", "reason": reason})
        with tempfile.TemporaryDirectory(prefix="csr-bench-") as folder:
            title = f"phantom of {count} images of {own.side}²"
            for each in Bench(own, Path(folder), self._processes, self._say).loop():
                against = f"{title}: {each.ratio_to}" if each.ratio_to else None
                self._add(replace(each, name=f"{title}: {each.name}", ratio_to=against))

    def _add(self, each: Row) -> None:
        self.rows.append(each)

    def _free(self) -> None:
        """Counts the peak of memory anew, without what earlier parts left."""
        self._check_time()
        gc.collect()
        if self._place.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def _check_time(self) -> None:
        if time.monotonic() > self._end:
            raise _OutOfTimeError("its time was up before it began")

    @contextmanager
    def _told(self, name: str) -> Iterator[None]:
        """Goes on after what could not be measured, and notes why."""
        self._say(f"{time.monotonic() - self._start:4.0f} s  {name}")
        try:
            yield
        except (_OutOfTimeError, torch.OutOfMemoryError, CSRError, RuntimeError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            self.left_out.append({"name": name, "reason": reason})


class _OutOfTimeError(Exception):
    """A part has no seconds left."""


def made_up_collection(count: int, concepts: int) -> Collection:
    """Studies with random labels, four fifths of them for training."""
    rng = np.random.default_rng(0)
    split = np.array(["train", "train", "train", "train", "val"])[np.arange(count) % 5]
    ids, classes = [f"{number:06d}" for number in range(count)], [f"class {number}" for number in range(CLASSES)]
    table = {"study_id": ids, "image": ids, "split": split, "part": split, "patient_id": ids, "site": "made up"}
    table["label"] = np.array(classes)[rng.integers(0, CLASSES, count)]
    names = [f"concept {number}" for number in range(concepts)]
    labels = {f"concept:{name}": (rng.random(count) < 0.3).astype(np.float32) for name in names}
    boxes = pd.DataFrame(columns=list(BOX_COLUMNS))
    return Collection("made up", tuple(names), tuple(classes), pd.DataFrame(table | labels), boxes)


def made_up_features(folder: Path, size: GPUSize) -> FeatureCache:
    """Random features of that many images; each block of them is another's, times a number."""
    rng, block = np.random.default_rng(0), 256
    shapes = {"features.npy": (128, np.float16), "cam.npy": (size.concepts, np.float32)}
    for name, (channels, kind) in shapes.items():
        shape = (size.images, channels, size.cells, size.cells)
        written = np.lib.format.open_memmap(folder / name, "w+", kind, shape)
        first = rng.standard_normal((block, *shape[1:]), np.float32)
        for start in range(0, size.images, block):
            part = written[start : start + block]
            part[...] = first[: len(part)] * np.float32(rng.uniform(0.5, 1.5))
        written.flush()
    return FeatureCache.open(folder)
