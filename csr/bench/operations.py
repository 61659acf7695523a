"""Shows what the stages spend their time on: the dearest operations of torch in each.

    python -m csr.bench.operations [--device auto|cpu|cuda] [--train 320] [--side 192] [--top 10]

Prints a table for each of stage 1, features, stage 2 and stage 3 on a phantom, one epoch each, after one that is not
counted: an operation's own share of the time, and how often it is called. What is left to 100 % is spent outside of
torch: reading images, drawing augmentations, Python. The profiler makes small operations slower than they are, so these
are shares and no speeds.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, get_args

from torch.profiler import ProfilerActivity, profile

from csr.bench.protocol import header, now
from csr.data.phantom import PhantomConfig, generate
from csr.data.prepared import PreparedSet
from csr.errors import CSRError
from csr.network.concept_model import ConceptModelConfig
from csr.training.callbacks import SilentCallbacks
from csr.training.concepts import ConceptTrainingConfig, train_concepts
from csr.training.features import FeatureCache, compute_features
from csr.training.head import HeadConfig, train_head
from csr.training.prototypes import PrototypeConfig, train_prototypes
from csr.training.runtime import DeviceChoice, device, tune_gpu, use_device

Made = TypeVar("Made")


@dataclass(frozen=True)
class Operation:
    """One of torch's operations within a stage.

    Args:
        name: torch's own, such as ``aten::convolution_backward``.
        share: of the stage's time, without that of the operations it calls.
        calls: how often.
    """

    name: str
    share: float
    calls: int


@dataclass(frozen=True)
class Profile:
    """A stage's time in seconds, and its operations, the dearest first."""

    stage: str
    seconds: float
    operations: tuple[Operation, ...]

    def table(self, top: int) -> str:
        """The dearest operations for people."""
        known = sum(each.share for each in self.operations)
        lines = [f"{self.stage}: {self.seconds:.2f} s, {known:.0%} of it in torch's operations"]
        lines += [f"  {each.share:>6.1%}  {each.name:<60} {each.calls:>7} ×" for each in self.operations[:top]]
        return "\n".join(lines)


def profiled(stage: str, body: Callable[[], Made]) -> tuple[Profile, Made]:
    """What something spends its time on the second time it is run, and what it made then."""
    body()
    on_gpu = device().type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    start = now()
    with profile(activities=activities) as profiler:
        made = body()
        seconds = now() - start
    own = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    found = [Operation(each.key, getattr(each, own) / 1e6 / seconds, each.count) for each in profiler.key_averages()]
    return Profile(stage, seconds, tuple(sorted(found, key=lambda each: -each.share))), made


def stages(data: PreparedSet, backbone: str, folder: Path) -> Iterator[Profile]:
    """Each stage's profile.

    Args:
        folder: an empty one, for features.
    """
    collection, callbacks = data.collection, SilentCallbacks()
    config = ConceptTrainingConfig(model=ConceptModelConfig(backbone), epochs=1)
    stage_1, model = profiled("stage 1", lambda: train_concepts(data, config, callbacks))
    yield stage_1
    features, _ = profiled("features", lambda: compute_features(model, data, folder, callbacks))
    yield features
    cache, small = FeatureCache.open(folder), PrototypeConfig(epochs=1)
    stage_2, prototypes = profiled("stage 2", lambda: train_prototypes(collection, cache, small, callbacks))
    yield stage_2
    head = HeadConfig(epochs=1)
    stage_3, _ = profiled("stage 3", lambda: train_head(collection, cache, prototypes, head, callbacks, side=data.side))
    yield stage_3


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m csr.bench.operations", description=__doc__.split("\n")[0])
    parser.add_argument("--device", choices=get_args(DeviceChoice), default="auto")
    parser.add_argument("--train", type=int, default=320, help="images to train on, default 320")
    parser.add_argument("--side", type=int, default=192, help="of the images, default 192")
    parser.add_argument("--backbone", default="regnetx_002", help="default regnetx_002")
    parser.add_argument("--top", type=int, default=10, help="operations of each stage, default 10")
    given = parser.parse_args(arguments)
    try:
        use_device(given.device)
        tune_gpu()
        print(", ".join(f"{name} {value}" for name, value in header().items()))
        with tempfile.TemporaryDirectory(prefix="csr-bench-") as scratch:
            phantom = PhantomConfig(train=given.train, val=max(given.train // 5, 24), test=24, contrast=2.0)
            generate(phantom, given.side, Path(scratch) / "prepared")
            (Path(scratch) / "features").mkdir()
            data = PreparedSet.open(Path(scratch) / "prepared")
            for each in stages(data, given.backbone, Path(scratch) / "features"):
                print(each.table(given.top), flush=True)
    except CSRError as error:
        sys.exit(f"operations: {error}")


if __name__ == "__main__":
    main()
