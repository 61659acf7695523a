"""The Open Inference Protocol over the models in service, every answer on record.

Whoever brings tensors gets predictions as a reader does, so these are in the ledger too before they leave: the digests
of what came in and of what is concluded from it, image by image, since a request may hold any number of studies and
none of ours.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from time import perf_counter

import numpy as np

from csr.data.images import pixel_digest
from serving.access.authenticator import asking
from serving.core.fit import MisfitAction, require_fit, tensor_fits
from serving.interfaces.oip import BundleModels, ModelSpec, ServedVersions
from serving.store.entries import Entry
from serving.store.ledger import Ledger
from serving.telemetry import Telemetry

_MAPS = frozenset({"patches", "similarity_maps", "concept_maps"})  # large, and decided by the rest


class AuditedInference:
    """Implements `serving.interfaces.oip.InferenceModels`. Thread-safe.

    Args:
        served: what answers. It is held, so a roll-out meanwhile closes no engine that is in use.
        ledger: where answers go.
        telemetry: is told how images fit.
        action: what follows if one is unlike those that the model was trained on. ``warn`` and ``abstain`` are the
            same here: whoever asks for tensors asks for ``fit_scores`` among them.
    """

    def __init__(self, served: ServedVersions, ledger: Ledger, telemetry: Telemetry, action: MisfitAction) -> None:
        self._served = served
        self._ledger = ledger
        self._telemetry = telemetry
        self._action: MisfitAction = action
        self._inner = BundleModels(served)

    def spec(self, name: str, version: str | None = None) -> ModelSpec:
        return self._inner.spec(name, version)

    def infer(
        self, name: str, version: str | None, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]
    ) -> tuple[str, dict[str, np.ndarray]]:
        started = perf_counter()
        asked = list(dict.fromkeys([*outputs, "fit_scores"])) if "image" in inputs else outputs
        answered, values = self._inner.infer(name, version, inputs, asked)
        fits = tensor_fits(values["fit_scores"], self._action) if "image" in inputs else []
        for each in fits:
            self._telemetry.metrics.judged(each)
        for row, each in enumerate(fits):
            require_fit(each, f"image[{row}]")
        body = {
            "version": answered,
            "request": {"model": name, "inputs": {key: _digests(key, value) for key, value in inputs.items()}},
            "before": None,
            "after": {key: _digests(key, value) for key, value in values.items() if key not in _MAPS},
            "fits": [{"score": each.score, "reasons": [reason.code for reason in each.reasons]} for each in fits],
            "latency_ms": round((perf_counter() - started) * 1000, 3),
        }
        self._ledger.append([Entry("inference", asking.get(), self._served.bundles[answered].digest, body)])
        return answered, {output: values[output] for output in outputs}


def _digests(name: str, tensor: np.ndarray) -> list[str]:
    """Of each row; an image's is the one that studies are addressed by."""
    if name == "image":
        return [pixel_digest(row) for row in tensor]
    return [hashlib.sha256(np.ascontiguousarray(row).tobytes()).hexdigest() for row in tensor]
