"""Triton: a bundle as a model repository (``csr_encoder``, ``csr_reasoner`` and the ensemble ``csr``), and the engine
that asks a server for them.

`repository` writes it (``python -m serving.engines.triton``), `config` says what each model takes and gives,
`python_model` is the ``model.py`` of the Python backend, `control` tells a running server to load it, over a
`connection`. `engine` asks the models; `client` and `regions` are its transport.
"""

from serving.engines.triton.config import (
    ENCODER,
    ENSEMBLE,
    MAX_BATCH,
    REASONER,
    Backend,
    encoder_config,
    ensemble_config,
    reasoner_config,
)
from serving.engines.triton.control import load_models, unload_models
from serving.engines.triton.repository import build_repository

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
