"""Gives adapters their data plane, or the reason why there is none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from csr.errors import BundleError
from serving.dataplane import CACHE_BYTES, DataPlane
from serving.errors import NotReadyError


def dataplane_provider(bundle: Path, cache_bytes: int = CACHE_BYTES) -> Callable[[], DataPlane]:
    """Opens a bundle once. If that fails the server still lives, and says at every request why it is not ready."""
    try:
        plane = DataPlane.open(bundle, cache_bytes)
    except BundleError as error:
        reason = str(error)

        def refuse() -> DataPlane:
            raise NotReadyError(reason)

        return refuse
    return lambda: plane
