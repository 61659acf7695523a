"""Stage ``atlas``: what each prototype looks like, how often it wins and how much the head relies on it."""

from __future__ import annotations

from csr.bundle.atlas import build_atlas
from csr.bundle.format import write_atlas
from csr.data.atomic_folder import atomic_folder
from csr.data.prepared import PreparedSet
from csr.network.trained import TrainedCSR
from csr.training.features import FeatureCache
from csr.training.located import attended_cache
from csr.training.runtime import use_device
from pipelines.params import Params
from pipelines.stage import ATLAS, FEATURES, HEAD, PREPARED, run_stage
from pipelines.tracking import log_metrics


def atlas(params: Params) -> None:
    """Writes ``build/atlas``: ``atlas.json`` and ``crops.npy``."""
    use_device(params.train.device)
    data, cache = PreparedSet.open(PREPARED), FeatureCache.open(FEATURES)
    cache = attended_cache(data, cache, params.prototypes.located, params.prototypes.reader_boxes)
    built = build_atlas(data, cache, TrainedCSR.load(HEAD / "model.pt"))
    with atomic_folder(ATLAS) as folder:
        write_atlas(folder, built.entries, built.crops)
    used = sum(entry.usage > 0 for entry in built.entries)
    log_metrics("atlas", {"entries": len(built.entries), "used": used})


if __name__ == "__main__":
    run_stage("atlas", atlas)
