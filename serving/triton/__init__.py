"""A bundle as a Triton model repository: two models, ``csr_encoder`` and ``csr_reasoner``.

`repository` writes it (``python -m serving.triton``), `config` says what each model takes and gives, `python_model`
is the ``model.py`` of the Python backend. Asking a Triton server is not here: that is an engine's business.
"""

from serving.triton.config import ENCODER, MAX_BATCH, REASONER, Backend, encoder_config, reasoner_config
from serving.triton.repository import build_repository

__all__ = ["ENCODER", "MAX_BATCH", "REASONER", "Backend", "build_repository", "encoder_config", "reasoner_config"]
