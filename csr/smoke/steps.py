"""What the smoke run does: all of CSR and every rival once, on a small phantom.

As in the pipeline, each step starts from what the one before wrote, so its models come from checkpoints on the CPU.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from csr.baselines.protocol import Entry, ExperimentContext, SharedBackbone, TrainedBackbone
from csr.bundle.atlas import Atlas, build_atlas
from csr.bundle.format import Bundle
from csr.bundle.onnx_export import measure_parity, require_parity
from csr.bundle.runtime import GOLDEN_TOLERANCE
from csr.bundle.writing import ExportConfig, Provenance, write_bundle
from csr.comparison.csr_system import Recipe
from csr.comparison.shared_backbones import open_shared_backbone, train_shared_backbone
from csr.comparison.systems import SHARED_BACKBONES, systems
from csr.comparison.training import run_system
from csr.data.phantom import PhantomConfig, generate
from csr.data.prepared import PreparedSet
from csr.evaluation.evaluate import evaluate_predictions
from csr.interaction.answering import AnswerableCSR, AnswerConfig, answer_curves, findings_of, most_alike
from csr.interaction.corrections import Interaction, RegionBox, interaction_tensors
from csr.interaction.review import prune, retrain_head, review
from csr.network.checkpoint import Checkpoint
from csr.network.concept_model import ConceptModel, ConceptModelConfig
from csr.network.prototypes import prototype_model_checkpoint, prototype_model_from_checkpoint
from csr.network.rebuild import concept_model_checkpoint, concept_model_from_checkpoint
from csr.network.trained import TrainedCSR
from csr.smoke.table import Outcome, Table
from csr.training.callbacks import Item, SilentCallbacks
from csr.training.concepts import ConceptTrainingConfig, train_concepts
from csr.training.features import FeatureCache, compute_features
from csr.training.head import HeadConfig, train_head
from csr.training.prediction import predict
from csr.training.prototypes import PrototypeConfig, train_prototypes
from csr.training.runtime import device
from csr.training.temperature import calibrate_temperature

STAGE2 = PrototypeConfig(epochs=2)
STAGE3 = HeadConfig(epochs=5)
LETTER = Recipe(
    PrototypeConfig(per_concept=20, standardise=False, gamma=1000.0, absence=0.0, agreement=0.0, epochs=2),
    HeadConfig(clip=False, floor="zero", least_usage=0.0, epochs=5),
)
CURVES = AnswerConfig(("keys", "findings", "regions"), ("worthwhile",), (0.0,), budget=3, least_effect=0.0)
ENCODED = 64  # images at once
OURS = "csr_robust"  # which the stages are


@dataclass(frozen=True)
class Size:
    """How much is drawn and trained; ``test`` counts each half."""

    train: int
    val: int
    test: int
    side: int
    backbone: str
    epochs: int
    batch_size: int


FULL = Size(train=800, val=160, test=160, side=192, backbone="regnetx_002", epochs=3, batch_size=32)
SMALL = Size(train=60, val=24, test=24, side=64, backbone="test_convnext", epochs=2, batch_size=12)


class Clock(SilentCallbacks):
    """Takes the seconds of a loop's steps but its first, which may be a warm-up; of the last loop that ran."""

    seconds = float("nan")

    def track(self, items: Iterable[Item], total: int, description: str) -> Iterable[Item]:
        start = _now()
        for index, item in enumerate(items):
            if index == 1:
                start = _now()
            yield item
        self.seconds = _now() - start

    def rate(self, images: int) -> float | None:
        """Images a second, of those of the timed steps; None if there were no such steps."""
        return images / self.seconds if images > 0 else None


def _now() -> float:
    """The time once the GPU has done what it was told."""
    if device().type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


class Walk:
    """The steps, each of which leaves what later ones need.

    Args:
        size: how much.
        folder: an empty one to write to.
        processes: that draw the phantom.
    """

    data: PreparedSet
    cache: FeatureCache
    stage1: Checkpoint
    stage2: Checkpoint
    stage3: Checkpoint
    atlas: Atlas
    bundle: Bundle

    def __init__(self, size: Size, folder: Path, processes: int) -> None:
        self._size, self._folder, self._processes = size, folder, processes
        self._config = ConceptTrainingConfig(
            model=ConceptModelConfig(backbone=size.backbone), epochs=size.epochs, batch_size=size.batch_size
        )

    def run(self, table: Table) -> None:
        """All steps, a row each."""
        trained = ("stage 1, concepts", "features", "stage 2, prototypes", "stage 3, head")
        table.step("phantom", self.draw)
        for index, body in enumerate((self.train_concepts, self.encode, self.train_prototypes, self.train_head)):
            table.step(trained[index], body, ("phantom", *trained[:index]))
        for name, body in (
            ("prediction", self.predict),
            ("interaction curves", self.correct),
            ("refinement", self.refine),
            ("atlas", self.draw_atlas),
        ):
            table.step(name, body, trained)
        table.step("export", self.export, (*trained, "atlas"))
        table.step("parity", self.compare_with_bundle, ("export",))
        entries = systems({"robust": Recipe(STAGE2, STAGE3), "paper": LETTER}, encoder=False)
        backbones: dict[SharedBackbone | None, str] = {None: "phantom", "concepts_lse": "features"}
        for kind in dict.fromkeys(entry.shared_backbone for entry in entries.values()):
            if kind is not None and kind not in backbones:
                backbones[kind] = f"backbone {kind}"
                table.step(backbones[kind], partial(self.train_backbone, kind), ("phantom",))
        for name, entry in entries.items():
            if name != OURS:
                table.step(name, partial(self.train_system, entry), (backbones[entry.shared_backbone],))

    def draw(self) -> Outcome:
        size, path = self._size, self._folder / "prepared"
        config = PhantomConfig(train=size.train, val=size.val, test=size.test, contrast=2.0)
        generate(config, size.side, path, self._processes)
        self.data = PreparedSet.open(path)
        return Outcome(f"{len(self.data.images)} images of {size.side}²")

    def train_concepts(self) -> Outcome:
        clock = Clock()
        model = train_concepts(self.data, self._config, clock)
        self.stage1 = concept_model_checkpoint(model)
        batch_size = self._size.batch_size
        timed = (self._size.train // batch_size - 1) * batch_size
        return Outcome(f"concept AUROC {clock.history[-1]['val_auroc']:.3f}", clock.rate(timed))

    def encode(self) -> Outcome:
        clock, folder = Clock(), self._folder / "features"
        folder.mkdir()
        compute_features(self._concept_model(), self.data, folder, clock, ENCODED)
        self.cache = FeatureCache.open(folder)
        return Outcome("", clock.rate(len(self.data.images) - ENCODED))

    def train_prototypes(self) -> Outcome:
        clock = Clock()
        self.stage2 = prototype_model_checkpoint(train_prototypes(self.data.collection, self.cache, STAGE2, clock))
        return Outcome(f"{clock.history[-1]['alive']:.0%} of prototypes win a vector")

    def train_head(self) -> Outcome:
        collection, model = self.data.collection, prototype_model_from_checkpoint(self.stage2)
        reasoner = train_head(collection, self.cache, model, STAGE3, SilentCallbacks(), side=self.data.side)
        csr = TrainedCSR(self._concept_model(), model, reasoner, collection.concepts, collection.classes)
        calibrate_temperature(self.data, self.cache, csr)
        self.stage3 = csr.to_checkpoint()
        return Outcome(f"α {reasoner.alpha.min():.1f}–{reasoner.alpha.max():.1f}, τ {reasoner.temperature:.2f}")

    def predict(self) -> Outcome:
        said = predict(self.data, self.cache, self._csr())
        report = evaluate_predictions(self.data.collection, said, self.data.side)["iid"]
        return Outcome(f"macro F1 {report['macro_f1']:.3f}, pointing game {report['pointing_game']['pair']:.3f}")

    def correct(self) -> Outcome:
        rows = self.data.collection.rows("test")
        findings = findings_of(self.data, rows, most_alike(self.data, self.cache))
        model = AnswerableCSR(self.cache, self._csr(), rows, self.data.side)
        table, _ = answer_curves(model, self.data.collection, rows, findings, CURVES)
        last = table[(table["tool"] == "keys") & (table["trigger"] == "all") & (table["budget"] == CURVES.budget)]
        return Outcome(f"{last['fixed'].sum()} of {2 * self._size.test} answers mended, {last['broken'].sum()} broken")

    def refine(self) -> Outcome:
        masked = prune(self._csr(), review(self.data, self.cache, self._csr()))
        alive = retrain_head(self.data, self.cache, masked, STAGE3, SilentCallbacks()).reasoner.alive
        return Outcome(f"{alive.sum():.0f} of {alive.numel()} prototypes left")

    def draw_atlas(self) -> Outcome:
        self.atlas = build_atlas(self.data, self.cache, self._csr())
        return Outcome(f"{len(self.atlas.crops)} crops")

    def export(self) -> Outcome:
        origin = Provenance("robust", self.data.digest(), "smoke", {})
        config = ExportConfig(parity_images=16, samples=5)
        path = self._folder / "bundle"
        self.bundle, gap = write_bundle(path, self.data, self.cache, self._csr(), self.atlas, config, origin)
        return Outcome(f"|Δlogit| {gap:.1e} on the CPU")

    def compare_with_bundle(self) -> Outcome:
        """Torch where it computes here against ONNX Runtime on the CPU, in full float32."""
        rows = self.data.collection.rows("test")[:16]
        box = RegionBox(0, 0, self.data.side / 2, self.data.side / 2)
        about = self.bundle.manifest
        tensors = interaction_tensors(
            [Interaction((box,), rejected=(about.concepts[0],))] * len(rows),
            about.concepts,
            about.side,
            about.height,
            about.width,
        )
        images = torch.from_numpy(np.ascontiguousarray(self.data.images[rows]))
        with torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled, allow_tf32=False):
            gap = measure_parity(self._csr().to(device()), None, images, tensors, self.bundle.path)
        require_parity(gap, GOLDEN_TOLERANCE)
        return Outcome(f"|Δlogit| {gap:.1e} on {device()}")

    def train_backbone(self, kind: SharedBackbone) -> Outcome:
        folder = self._folder / kind
        folder.mkdir()
        train_shared_backbone(SHARED_BACKBONES[kind], self._context(), folder)
        return Outcome()

    def train_system(self, entry: Entry) -> Outcome:
        context = self._context()
        if entry.shared_backbone == "concepts_lse":
            context = replace(context, shared_backbone=TrainedBackbone(self._concept_model(), self.cache))
        elif entry.shared_backbone is not None:
            shared, _ = open_shared_backbone(self._folder / entry.shared_backbone)
            context = replace(context, shared_backbone=shared)
        _, result = run_system(entry, context)
        return Outcome(f"macro F1 {result.report['iid']['macro_f1']:.3f}")

    def _context(self) -> ExperimentContext:
        return ExperimentContext(self.data, self._config, SilentCallbacks())

    def _concept_model(self) -> ConceptModel:
        return concept_model_from_checkpoint(self.stage1)

    def _csr(self) -> TrainedCSR:
        return TrainedCSR.from_checkpoint(self.stage3)
