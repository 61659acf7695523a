"""The Open Inference Protocol (KServe V2): a bundle's tensors for programs that bring their own images and boxes.

`models` says what is served and computes it, `tensors` checks what clients send, `wire` is the form of HTTP bodies
with the binary tensor extension; `rest` and `grpc` are the two transports. What goes with Triton's own extensions
(shared memory, sequences, classification, a repository that clients change) is refused by name.
"""

from serving.interfaces.oip.models import (
    ENSEMBLE,
    BundleModels,
    InferenceModels,
    InferenceServer,
    ModelSpec,
    ServedBundle,
    ServedVersions,
    TensorEngine,
    TensorSpec,
    max_request_bytes,
    model_specs,
)

__all__ = [
    "ENSEMBLE",
    "BundleModels",
    "InferenceModels",
    "InferenceServer",
    "ModelSpec",
    "ServedBundle",
    "ServedVersions",
    "TensorEngine",
    "TensorSpec",
    "max_request_bytes",
    "model_specs",
]
