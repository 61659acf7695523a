"""Stage ``features``: runs the frozen backbone over every image once."""

from __future__ import annotations

import torch

from csr.data.atomic_folder import atomic_folder
from csr.data.prepared import PreparedSet
from csr.training.concepts import from_checkpoint
from csr.training.features import compute_features
from csr.training.runtime import use_device
from pipelines.params import Params
from pipelines.stage import CONCEPTS, FEATURES, PREPARED, run_stage
from pipelines.training import CHECKPOINTS, LocalCallbacks


def features(params: Params) -> None:
    """Writes the feature cache to ``build/features``."""
    use_device(params.train.device)
    model = from_checkpoint(torch.load(CONCEPTS / "model.pt", weights_only=True))
    with atomic_folder(FEATURES) as folder:
        compute_features(model, PreparedSet.open(PREPARED), folder, LocalCallbacks("features", CHECKPOINTS))


if __name__ == "__main__":
    run_stage("features", features)
