"""The ``config.pbtxt`` of the two models, built as protobuf messages so that they cannot be malformed.

The same tensors in two forms. ``onnxruntime`` is the native backend of NVIDIA's image: the encoder takes a GPU when
there is one. ``python`` runs the same graphs through ``python_model.py`` on the CPU, for servers without the native
backend. Shapes come from the bundle's manifest, so a server started with ``--disable-auto-complete-config`` guesses
nothing, and one that finds another shape in the graph refuses to load it.
"""

from __future__ import annotations

from typing import Literal

from tritonclient.grpc import model_config_pb2 as triton
from tritonclient.grpc.model_config_pb2 import ModelConfig

from csr.bundle import REASONER_OUTPUTS, Manifest

Backend = Literal["onnxruntime", "python"]

ENCODER = "csr_encoder"
REASONER = "csr_reasoner"
MAX_BATCH = 32  # images a request; the reasoner's maps of 32 studies at 26×26 and 1400 prototypes are 121 MB
QUEUE_LIMIT = 256  # beyond it a request is refused at once (503) instead of waiting longer than its reader does
VERSIONS_LOADED = 2  # the champion and the one before: replicas that switch, or roll back, never meet a gap


def encoder_config(about: Manifest, backend: Backend, threads: int = 1) -> ModelConfig:
    """``image`` uint8 C×S×S → ``patches`` float32 D'×h×w, each with a batch axis in front.

    Args:
        about: the bundle's manifest.
        backend: see the module's docstring.
        threads: ONNX Runtime's intra-op threads on a CPU.
    """
    config = _config(ENCODER, backend, threads)
    image = (about.channels, about.side, about.side)
    config.input.add(name="image", data_type=triton.TYPE_UINT8, dims=image)
    config.output.add(name="patches", data_type=triton.TYPE_FP32, dims=_patches(about))
    # No queue delay: an idle server encodes at once, a busy one batches what gathered meanwhile.
    config.dynamic_batching.default_queue_policy.max_queue_size = QUEUE_LIMIT
    if backend == "onnxruntime":
        # The backend reads this key, marked deprecated, last: without it EXHAUSTIVE overrides the value given under
        # execution_accelerators. 1 is HEURISTIC; exhaustive search costs seconds at each new batch size.
        config.parameters["cudnn_conv_algo_search"].string_value = "1"
    else:
        config.instance_group.add(count=1, kind=triton.ModelInstanceGroup.KIND_CPU)
    # The first run allocates and, on a GPU, chooses algorithms: done before the model says ready, not by a reader.
    warmup = config.model_warmup.add(name="zeros", batch_size=1)
    warmup.inputs["image"].CopyFrom(triton.ModelWarmup.Input(data_type=triton.TYPE_UINT8, dims=image, zero_data=True))
    return config


def reasoner_config(about: Manifest, backend: Backend, threads: int = 1) -> ModelConfig:
    """Patches and an interaction → every output of the reasoner.

    ``absent_weight`` is a scalar a study: B×1 in requests, since Triton knows no empty shape, and B in the graph.
    """
    config = _config(REASONER, backend, threads)
    maps = (about.height, about.width)
    prototypes = (len(about.concepts), about.per_concept)
    inputs = {"patches": _patches(about), "importance": maps, "prototype_mask": prototypes, "absent_weight": (1,)}
    for name, shape in inputs.items():
        config.input.add(name=name, data_type=triton.TYPE_FP32, dims=shape)
    config.input[-1].reshape.SetInParent()
    concepts, classes = len(about.concepts), len(about.classes)
    outputs = {
        "similarity_maps": prototypes + maps,
        "concept_maps": (concepts, *maps),
        "scores": prototypes,
        "concept_probabilities": (concepts,),
        "contributions": (concepts, classes),
        "logits": (classes,),
        "probabilities": (classes,),
    }
    for name in REASONER_OUTPUTS:
        config.output.add(name=name, data_type=triton.TYPE_FP32, dims=outputs[name])
    # Microseconds: neither worth a copy to a GPU nor worth waiting for others.
    config.instance_group.add(count=1, kind=triton.ModelInstanceGroup.KIND_CPU)
    return config


def _patches(about: Manifest) -> tuple[int, int, int]:
    return about.patch_width, about.height, about.width


def _config(name: str, backend: Backend, threads: int) -> ModelConfig:
    config = ModelConfig(name=name, backend=backend, max_batch_size=MAX_BATCH)
    config.default_model_filename = "model.onnx" if backend == "onnxruntime" else "model.py"
    config.version_policy.latest.num_versions = VERSIONS_LOADED
    config.parameters["intra_op_thread_count"].string_value = str(threads)
    return config
