"""Tells a running Triton server (EXPLICIT mode) to take up what was built, or to let go of it.

Order matters. Loading: first the two models, then the ensemble that names their newest version. The versions already
loaded answer all the while; the one before the previous goes. Unloading: the other way round.
"""

from __future__ import annotations

from serving.engines.triton.config import ENCODER, ENSEMBLE, REASONER, VERSIONS_LOADED
from serving.engines.triton.connection import connect, translated
from serving.errors import NotReadyError

LOAD_S = 120.0  # reading, warming up, on a GPU initialising it


def load_models(url: str, version: int, timeout_s: float = LOAD_S) -> None:
    """Loads the encoder, the reasoner and the ensemble, and checks that the version answers.

    Args:
        url: ``host:port`` of the server's gRPC endpoint.
        version: that must be ready afterwards.
        timeout_s: for each model.

    Raises:
        EngineUnavailableError: the server is gone or slower than that.
        ServingError: it could not load a model; what it says.
        NotReadyError: the version is not among the newest that are kept loaded.
    """
    client = connect(url)
    try:
        for model in (ENCODER, REASONER, ENSEMBLE):
            with translated(url):
                client.load_model(model, client_timeout=timeout_s)
                wanted = "" if model == ENSEMBLE else str(version)  # the ensemble has the newest only
                there = client.is_model_ready(model, wanted, client_timeout=timeout_s)
            if not there:
                raise NotReadyError(
                    f"Triton at {url}: version {version} of {model} is not ready; it serves this repository's "
                    f"{VERSIONS_LOADED} newest versions, so give the bundle a higher number"
                )
    finally:
        client.close()


def unload_models(url: str, timeout_s: float = LOAD_S) -> None:
    """Unloads all versions of the ensemble, the reasoner and the encoder; one that is not loaded is no error.

    Raises:
        EngineUnavailableError, ServingError: see `load_models`.
    """
    client = connect(url)
    try:
        for model in (ENSEMBLE, REASONER, ENCODER):
            with translated(url):
                client.unload_model(model, client_timeout=timeout_s)
    finally:
        client.close()
