"""From nothing to a trained CSR in two calls, in one process and without a pipeline: the phantom, and the three stages.

Not here: resuming, several workers, prototypes whose number is found by a pilot (`csr.training.selection`), and runs on
record; that is what the pipeline adds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from csr.data.phantom.generate import generate
from csr.data.phantom.plan import PhantomConfig
from csr.data.prepared import PreparedSet
from csr.network.trained import TrainedCSR
from csr.training.callbacks import Callbacks, PrintedCallbacks
from csr.training.concepts import ConceptTrainingConfig, train_concepts
from csr.training.features import FeatureCache, compute_features
from csr.training.head import HeadConfig, train_head
from csr.training.located import attended_cache
from csr.training.prototypes import PrototypeConfig, train_prototypes
from csr.training.temperature import calibrate_temperature


@dataclass(frozen=True)
class TrainingConfig:
    """The configuration of all three stages."""

    concepts: ConceptTrainingConfig = field(default_factory=ConceptTrainingConfig)
    prototypes: PrototypeConfig = field(default_factory=PrototypeConfig)
    head: HeadConfig = field(default_factory=HeadConfig)


def draw_phantom(folder: Path, config: PhantomConfig | None = None, side: int = 192, workers: int = 1) -> PreparedSet:
    """Draws the phantom (`csr.data.phantom`) into a folder, in place of what is there, and opens it.

    Args:
        folder: a prepared set, see `csr.data.prepared`.
        config: size and difficulty; None for the benchmark's.
        side: of the images, in pixels.
        workers: processes; more than one only from a script whose own work stands under ``if __name__ == "__main__"``.

    Raises:
        DataError: a split that is too small to hold every class, or a concept nobody has.
    """
    generate(config or PhantomConfig(), side, folder, workers)
    return PreparedSet.open(folder)


def train(data: PreparedSet, config: TrainingConfig | None = None, callbacks: Callbacks | None = None) -> TrainedCSR:
    """Trains the three stages on split ``train`` and calibrates the result on split ``val``.

    The backbone's features of all images lie in a temporary folder meanwhile: 0.2 MB each by the defaults.

    Args:
        data: what to learn from.
        config: None for the defaults.
        callbacks: told of every epoch of every stage; None prints a line each.

    Raises:
        ConfigError: the configuration does not fit; ``prototypes.per_concept`` is ``auto``.
        DataError: a concept that no training image is known to show, or to lack.
        TrainingError: a loss became NaN or infinite.
    """
    config, callbacks = config or TrainingConfig(), callbacks or PrintedCallbacks()
    collection = data.collection
    concept_model = train_concepts(data, config.concepts, callbacks)
    with TemporaryDirectory(prefix="csr-features-") as folder:
        compute_features(concept_model, data, Path(folder), callbacks, precision=config.concepts.precision)
        cache = FeatureCache.open(Path(folder))
        cache = attended_cache(data, cache, config.prototypes.located, config.prototypes.reader_boxes)
        prototype_model = train_prototypes(collection, cache, config.prototypes, callbacks)
        reasoner = train_head(collection, cache, prototype_model, config.head, callbacks, side=data.side)
        csr = TrainedCSR(concept_model, prototype_model, reasoner, collection.concepts, collection.classes)
        calibrate_temperature(data, cache, csr)
    return csr.eval()
