"""Stage ``export``: the bundle, with measured parity. Stage ``register`` makes it known to MLflow's registry."""

from __future__ import annotations

import json

import numpy as np

from csr.bundle.atlas import Atlas
from csr.bundle.format import read_atlas
from csr.bundle.writing import Provenance, write_bundle
from csr.data.prepared import PreparedSet
from csr.network.trained import TrainedCSR
from csr.training.features import FeatureCache
from pipelines.digests import path_digest
from pipelines.params import Params
from pipelines.revision import revision
from pipelines.stage import ATLAS, BUNDLE, FEATURES, HEAD, PREPARED, REPORTS, run_stage
from pipelines.tracking import BUNDLE_DIGEST, log_metrics, log_tag


def export(params: Params) -> None:
    """Writes ``build/bundle``."""
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
            params.preset,
            path_digest(PREPARED),
            revision(),
            {part: metrics[part] for part in data.collection.test_parts()},
        ),
    )
    log_metrics("export", {"parity": gap})
    log_tag(BUNDLE_DIGEST, bundle.digest)
    print(f"export: |Δlogit| {gap:.1e}")


if __name__ == "__main__":
    run_stage("export", export, last=True)
