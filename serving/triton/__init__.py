"""A bundle as a Triton model repository: the models ``csr_encoder`` and ``csr_reasoner`` and the ensemble ``csr``.

`repository` writes it (``python -m serving.triton``), `config` says what each model takes and gives, `python_model`
is the ``model.py`` of the Python backend, `control` tells a running server to load it, over a `connection`. Asking the
models is not here: that is an engine's business (`serving.engines.triton`).
"""

from serving.triton.config import (
    ENCODER,
    ENSEMBLE,
    MAX_BATCH,
    REASONER,
    Backend,
    encoder_config,
    ensemble_config,
    reasoner_config,
)
from serving.triton.control import load_models, unload_models
from serving.triton.repository import build_repository

__all__ = [
    "ENCODER",
    "ENSEMBLE",
    "MAX_BATCH",
    "REASONER",
    "Backend",
    "build_repository",
    "encoder_config",
    "ensemble_config",
    "load_models",
    "reasoner_config",
    "unload_models",
]
