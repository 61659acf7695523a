"""The ``config.pbtxt`` of the models, built as protobuf messages so that they cannot be malformed.

The same tensors in two forms. ``onnxruntime`` is the native backend of NVIDIA's image: the encoder takes a GPU when
there is one. ``python`` runs the same graphs through ``python_model.py`` on the CPU, for servers without the native
backend. Shapes come from the bundle's manifest, so a server started with ``--disable-auto-complete-config`` guesses
nothing, and one that finds another shape in the graph refuses to load it.

The ensemble ``csr`` joins the two for clients that want one request. A Triton configuration belongs to a model, not to
a version, so an ensemble that had two versions would run both with the steps of the newer: a request for the older one
would mix bundles. Hence it has exactly one version, the newest of its models, and both steps name it. A request for
another version is refused (NOT_FOUND, or UNAVAILABLE where the server had it before), one for none gets the newest.
Who needs the version before asks its two models by number.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from tritonclient.grpc import model_config_pb2 as triton
from tritonclient.grpc.model_config_pb2 import ModelConfig

from csr.bundle.format import ENCODER_OUTPUTS, INTERACTION_INPUTS, REASONER_OUTPUTS, Manifest
from csr.bundle.runtime import tensor_shapes

Backend = Literal["onnxruntime", "python"]

ENCODER = "csr_encoder"
REASONER = "csr_reasoner"
ENSEMBLE = "csr"
MAX_BATCH = 32  # images a request; the reasoner's maps of 32 studies at 26×26 and 1400 prototypes are 121 MB
QUEUE_LIMIT = 256  # beyond it a request is refused at once (503) instead of waiting longer than its reader does
BUNDLE_KEY = "bundle_"
VERSIONS_LOADED = 2  # the champion and the one before: replicas that switch, or roll back, never meet a gap


def encoder_config(about: Manifest, backend: Backend, threads: int = 1, instances: int = 1) -> ModelConfig:
    """``image`` uint8 C×S×S → ``patches`` float32 D'×h×w and ``fit_scores`` R, each with a batch axis in front.

    Args:
        about: the bundle's manifest.
        backend: see the module's docstring.
        threads: ONNX Runtime's intra-op threads on a CPU.
        instances: how many run at once on a CPU, or on each GPU.
    """
    config = _config(ENCODER, backend, threads)
    _tensors(config.input, about, ["image"])
    _tensors(config.output, about, ENCODER_OUTPUTS)
    # No queue delay: an idle server encodes at once, a busy one batches what gathered meanwhile.
    config.dynamic_batching.default_queue_policy.max_queue_size = QUEUE_LIMIT
    if backend == "onnxruntime":
        # The backend reads this key, marked deprecated, last: without it EXHAUSTIVE overrides the value given under
        # execution_accelerators. 1 is HEURISTIC; exhaustive search costs seconds at each new batch size.
        config.parameters["cudnn_conv_algo_search"].string_value = "1"
    here = triton.ModelInstanceGroup.KIND_AUTO if backend == "onnxruntime" else triton.ModelInstanceGroup.KIND_CPU
    config.instance_group.add(count=instances, kind=here)
    _warm_up(config)
    return config


def reasoner_config(about: Manifest, backend: Backend, threads: int = 1, instances: int = 1) -> ModelConfig:
    """Patches and an interaction → every output of the reasoner.

    ``absent_weight`` is a scalar a study: B×1 in requests, since Triton knows no empty shape, and B in the graph.
    """
    config = _config(REASONER, backend, threads)
    _tensors(config.input, about, ["patches", *INTERACTION_INPUTS])
    config.input[-1].reshape.SetInParent()
    _tensors(config.output, about, REASONER_OUTPUTS)
    # Microseconds: neither worth a copy to a GPU nor worth waiting for others.
    config.instance_group.add(count=instances, kind=triton.ModelInstanceGroup.KIND_CPU)
    _warm_up(config)
    return config


def ensemble_config(about: Manifest, version: int, digest: str) -> ModelConfig:
    """An image and an interaction → ``fit_scores`` and every output of the reasoner, by this version of both models.

    Args:
        about: the bundle's manifest.
        version: of the encoder, the reasoner and the ensemble itself; see the module's docstring.
        digest: the bundle's.
    """
    config = ModelConfig(name=ENSEMBLE, platform="ensemble", max_batch_size=MAX_BATCH)
    config.version_policy.specific.versions.append(version)
    config.parameters[bundle_key(version)].string_value = digest
    _tensors(config.input, about, ["image", *INTERACTION_INPUTS])
    _tensors(config.output, about, ["fit_scores", *REASONER_OUTPUTS])
    steps = {ENCODER: (["image"], ENCODER_OUTPUTS), REASONER: (["patches", *INTERACTION_INPUTS], REASONER_OUTPUTS)}
    for model, (inputs, outputs) in steps.items():
        step = config.ensemble_scheduling.step.add(model_name=model, model_version=version)
        step.input_map.update({name: name for name in inputs})
        step.output_map.update({name: name for name in outputs})
    return config


def bundle_key(version: int) -> str:
    """The parameter in which a configuration names the bundle of a version by its digest."""
    return f"{BUNDLE_KEY}{version}"


def _tensors(listed: Any, about: Manifest, names: Sequence[str]) -> None:
    """Adds tensors to a configuration's inputs or outputs."""
    for name in names:
        kind = triton.TYPE_UINT8 if name == "image" else triton.TYPE_FP32
        listed.add(name=name, data_type=kind, dims=tensor_shapes(about)[name] or (1,))


def _warm_up(config: ModelConfig) -> None:
    """The first run allocates and, on a GPU, chooses algorithms: done with the golden case before the model says ready,
    not by a reader. The files lie in the model's folder ``warmup``, named like the inputs."""
    warmup = config.model_warmup.add(name="golden", batch_size=1)
    for each in config.input:
        given = triton.ModelWarmup.Input(data_type=each.data_type, dims=each.dims, input_data_file=each.name)
        warmup.inputs[each.name].CopyFrom(given)


def _config(name: str, backend: Backend, threads: int) -> ModelConfig:
    config = ModelConfig(name=name, backend=backend, max_batch_size=MAX_BATCH)
    config.default_model_filename = "model.onnx" if backend == "onnxruntime" else "model.py"
    config.version_policy.latest.num_versions = VERSIONS_LOADED
    config.parameters["intra_op_thread_count"].string_value = str(threads)
    return config
