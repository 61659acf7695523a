"""The models: what they say they take agrees with Triton's configuration, and versions come and go."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tritonclient.grpc.model_config_pb2 import DataType, ModelConfig

from csr.bundle.format import REASONER_OUTPUTS, Bundle
from csr.bundle.runtime import BundleRunner
from serving.engines.triton import ENCODER, MAX_BATCH, REASONER, encoder_config, reasoner_config
from serving.errors import InvalidInferenceError, UnknownModelError
from serving.interfaces.oip import ENSEMBLE, BundleModels, ServedVersions, TensorSpec, max_request_bytes, model_specs
from tests.serving.interfaces.oip.conftest import Served


def said_by(config: ModelConfig) -> list[list[TensorSpec]]:
    types = {"TYPE_UINT8": "UINT8", "TYPE_FP32": "FP32"}
    return [
        [TensorSpec(each.name, types[DataType.Name(each.data_type)], (-1, *each.dims)) for each in listed]
        for listed in (config.input, config.output)
    ]


@pytest.mark.parametrize("configured", [encoder_config, reasoner_config])
def test_a_model_takes_and_gives_what_triton_is_configured_for(bundle: Bundle, configured):
    config = configured(bundle.manifest, "onnxruntime")
    spec = model_specs(bundle.manifest)[config.name]
    assert [list(spec.inputs), list(spec.outputs)] == said_by(config)


def test_the_ensemble_takes_the_image_instead_of_patches(bundle: Bundle):
    specs = model_specs(bundle.manifest)
    encoder, reasoner, ensemble = specs[ENCODER], specs[REASONER], specs[ENSEMBLE]
    assert encoder.outputs == (reasoner.inputs[0], ensemble.outputs[0])
    assert ensemble.inputs == encoder.inputs + reasoner.inputs[1:]
    assert ensemble.outputs[1:] == reasoner.outputs


def test_the_longest_request_is_a_full_batch_in_binary_form(bundle: Bundle):
    about = replace(bundle.manifest, channels=1, side=192, height=24, width=24, patch_width=128, per_concept=5)
    interaction = (1 + len(about.concepts)) * 24 * 24 + len(about.concepts) + 1
    assert max_request_bytes(about) == MAX_BATCH * 4 * (128 * 24 * 24 + interaction) + (1 << 20)
    colour = replace(about, channels=3, side=512)
    assert max_request_bytes(colour) == MAX_BATCH * (3 * 512 * 512 + 4 * interaction) + (1 << 20)


class Doubled:
    """An engine whose patches are another's, doubled."""

    def __init__(self, engine: BundleRunner) -> None:
        self._engine = engine

    def run_encoder(self, images: np.ndarray) -> dict[str, np.ndarray]:
        encoded = self._engine.run_encoder(images)
        return encoded | {"patches": 2 * encoded["patches"]}

    def run_reasoner(self, patches: np.ndarray, **tensors: np.ndarray) -> dict[str, np.ndarray]:
        return self._engine.run_reasoner(patches, **tensors)


def test_each_version_answers_for_itself_and_the_default_to_whoever_names_none(
    bundle: Bundle, runner: BundleRunner, inputs: dict[str, np.ndarray]
):
    old, new = Served(bundle.manifest, runner), Served(bundle.manifest, Doubled(runner))
    models = BundleModels(ServedVersions({"6": old, "7": new}, "7"))
    assert models.spec(ENCODER).version == "7"
    assert models.spec(ENCODER, "6").versions == ("6", "7")

    image = {"image": inputs["image"]}
    version, answered = models.infer(ENCODER, None, image, ["patches"])
    assert version == "7"
    first = models.infer(ENCODER, "6", image, ["patches"])[1]
    np.testing.assert_array_equal(answered["patches"], 2 * first["patches"])
    with pytest.raises(UnknownModelError, match="version '5': is not served; served are 6, 7"):
        models.infer(ENCODER, "5", image, ["patches"])


def test_only_the_outputs_asked_for_are_given(models: BundleModels, inputs: dict[str, np.ndarray]):
    assert list(models.infer(ENSEMBLE, "1", inputs, ["scores", "logits"])[1]) == ["scores", "logits"]
    assert list(models.infer(ENSEMBLE, None, inputs, REASONER_OUTPUTS)[1]) == list(REASONER_OUTPUTS)


def test_numbers_so_large_that_the_answer_overflows_are_refused(
    models: BundleModels, reasoner_inputs: dict[str, np.ndarray]
):
    huge = reasoner_inputs | {"patches": np.full_like(reasoner_inputs["patches"], 3e38)}
    with pytest.raises(InvalidInferenceError, match="logits: is not finite; the inputs are too large"):
        models.infer(REASONER, None, huge, ["logits"])


def test_an_unknown_model_is_named_with_those_that_are_known(models: BundleModels):
    with pytest.raises(UnknownModelError, match="model 'x': is unknown; this server has csr, csr_encoder, csr_rea"):
        models.spec("x")
