"""Stage ``export``: the bundle, with measured parity, and its registration in MLflow as a new version of ``csr``."""

from __future__ import annotations

import json

import numpy as np

from csr.bundle.atlas import Atlas
from csr.bundle.format import read_atlas
from csr.bundle.writing import Provenance, write_bundle
from csr.data.prepared import PreparedSet
from csr.network.trained import TrainedCSR
from csr.training.features import FeatureCache
from pipelines.params import Params
from pipelines.registry import register
from pipelines.stage import ATLAS, BUNDLE, FEATURES, HEAD, PREPARED, REPORTS, run_stage
from pipelines.tracking import log_metrics, revision


def export(params: Params) -> None:
    """Writes ``build/bundle`` and registers it."""
    data = PreparedSet.open(PREPARED)
    metrics = json.loads((REPORTS / "metrics.json").read_text())
    bundle, gap = write_bundle(
        BUNDLE,
        data,
        FeatureCache.open(FEATURES),
        TrainedCSR.load(HEAD / "model.pt"),
        Atlas(read_atlas(ATLAS), np.load(ATLAS / "crops.npy")),
        params.export,
        Provenance(
            params.preset, data.digest(), revision(), {part: metrics[part] for part in data.collection.test_parts()}
        ),
    )
    log_metrics("export", {"parity": gap})
    version = register(bundle)
    print(f"export: registered as version {version} of 'csr', |Δlogit| {gap:.1e}")


if __name__ == "__main__":
    run_stage("export", export, last=True)
