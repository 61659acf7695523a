"""Stage ``features``: runs the frozen backbone over every image once."""

from __future__ import annotations

from csr.data.atomic_folder import atomic_folder
from csr.data.prepared import PreparedSet
from csr.network.checkpoint import read_checkpoint
from csr.network.rebuild import concept_model_from_checkpoint
from csr.training.features import compute_features
from csr.training.runtime import tune_gpu, use_device
from pipelines.params import Params
from pipelines.progress import ProgressBars
from pipelines.stage import CONCEPTS, FEATURES, PREPARED, run_stage


def features(params: Params) -> None:
    """Writes the feature cache to ``build/features``."""
    use_device(params.train.device)
    tune_gpu(params.train.tf32, params.train.autotune)
    model = concept_model_from_checkpoint(read_checkpoint(CONCEPTS / "model.pt", "concept model"))
    with atomic_folder(FEATURES) as folder:
        data, precision = PreparedSet.open(PREPARED), params.concepts.precision
        compute_features(model, data, folder, ProgressBars(), precision=precision)


if __name__ == "__main__":
    run_stage("features", features)
