"""CSR, Concept-based Similarity Reasoning (Huy et al., CVPR 2025, arXiv 2503.06873), and what it is compared with.

Ten lines, from nothing to a corrected prediction and a bundle that a server runs:

    from pathlib import Path
    import csr

    data = csr.draw_phantom(Path("phantom"))  # the benchmark: 4,000 images; csr.PhantomConfig makes others
    model = csr.train(data)  # three stages, minutes on two cores; csr.TrainingConfig says how
    print(csr.evaluate(model, data))  # both test parts: macro F1, AUROC, calibration, pointing game
    images = data.images[data.collection.rows("test")[:1]]
    before = csr.predict(model, images)  # concept maps and probabilities, contributions, class probabilities
    after = csr.predict(model, images, [csr.Interaction((csr.RegionBox(30, 50, 90, 120),), rejected=("nodule",))])
    model.save(Path("csr.pt"))  # csr.TrainedCSR.load reads it
    runner = csr.BundleRunner(csr.export_bundle(model, data, Path("bundle")))  # ONNX; also csr serve --bundle bundle

A concept that it was not trained on takes a few boxed examples: `csr.add_concept(model, data, csr.Examples(…))`.
Data of one's own takes the phantom's place: `csr.data.prepared.PreparedSet.open` opens what the pipeline has prepared.

The names here are those that these lines take; everything else is in the rooms, from `csr.data` and `csr.network` to
`csr.comparison`. A name is imported when it is first used: the server uses rooms that need no torch, and does without.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from csr.bundle.runtime import BundleRunner
    from csr.data.phantom.plan import PhantomConfig
    from csr.data.prepared import PreparedSet
    from csr.interaction.corrections import Interaction, RegionBox
    from csr.interaction.few_shot import Examples
    from csr.network.trained import TrainedCSR
    from csr.workflow.training import TrainingConfig, draw_phantom, train
    from csr.workflow.use import add_concept, evaluate, export_bundle, predict

_HOMES = {
    "BundleRunner": "csr.bundle.runtime",
    "Examples": "csr.interaction.few_shot",
    "Interaction": "csr.interaction.corrections",
    "PhantomConfig": "csr.data.phantom.plan",
    "PreparedSet": "csr.data.prepared",
    "RegionBox": "csr.interaction.corrections",
    "TrainedCSR": "csr.network.trained",
    "TrainingConfig": "csr.workflow.training",
    "add_concept": "csr.workflow.use",
    "draw_phantom": "csr.workflow.training",
    "evaluate": "csr.workflow.use",
    "export_bundle": "csr.workflow.use",
    "predict": "csr.workflow.use",
    "train": "csr.workflow.training",
}

__all__ = [
    "BundleRunner",
    "Examples",
    "Interaction",
    "PhantomConfig",
    "PreparedSet",
    "RegionBox",
    "TrainedCSR",
    "TrainingConfig",
    "add_concept",
    "draw_phantom",
    "evaluate",
    "export_bundle",
    "predict",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'csr' has no attribute {name!r}")
    globals()[name] = value = getattr(import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
