"""A bundle as a Triton repository: its form without a server, and its answers from a real one."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import onnxruntime as ort
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import DataType, ModelConfig
from tritonclient.utils import InferenceServerException, np_to_triton_dtype, triton_to_np_dtype

from csr.bundle import REASONER_OUTPUTS, Bundle
from csr.errors import BundleError, ConfigError
from csr.interaction import Interaction, RegionBox
from csr.runtime import BundleRunner
from serving.triton import ENCODER, MAX_BATCH, REASONER, build_repository
from serving.triton.__main__ import main
from tests.serving.triton_server import TritonServer, triton_server

TOLERANCE = 1e-4
MODELS = {ENCODER: "encoder.onnx", REASONER: "reasoner.onnx"}
BACKENDS = ("onnxruntime", "python")


def read_config(repository: Path, model: str) -> ModelConfig:
    return text_format.Parse((repository / model / "config.pbtxt").read_text(), ModelConfig())


def another_bundle(bundle: Bundle, path: Path, **changes: object) -> Bundle:
    """A copy whose manifest says something else, and which so has another digest."""
    shutil.copytree(bundle.path, path)
    content = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(content | changes))
    return Bundle.open(path)


def tree(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


# --- without a server


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("model", MODELS)
def test_config_says_what_the_graph_takes_and_gives(tiny_run, tmp_path: Path, backend: str, model: str):
    """What the native backend checks when it loads a model: names, types, and shapes behind the batch axis."""
    build_repository(tiny_run.bundle, tmp_path / "repository", 1, backend)
    config = read_config(tmp_path / "repository", model)
    graph = ort.InferenceSession(str(tmp_path / "repository" / model / "1" / "model.onnx"))

    assert (config.name, config.backend) == (model, backend)
    assert config.max_batch_size == MAX_BATCH
    assert config.HasField("dynamic_batching") == (model == ENCODER)
    types = {"tensor(float)": "TYPE_FP32", "tensor(uint8)": "TYPE_UINT8"}
    for listed, known in ((config.input, graph.get_inputs()), (config.output, graph.get_outputs())):
        shapes = {each.name: each.reshape.shape if each.HasField("reshape") else each.dims for each in listed}
        assert {name: list(shape) for name, shape in shapes.items()} == {each.name: each.shape[1:] for each in known}
        found = {each.name: DataType.Name(each.data_type) for each in listed}
        assert found == {each.name: types[each.type] for each in known}
    assert config.parameters["bundle_1"].string_value == tiny_run.bundle.digest


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_repository_holds_what_its_backend_needs_and_no_more(tiny_run, tmp_path: Path, backend: str):
    build_repository(tiny_run.bundle, tmp_path / "repository", 3, backend)
    files = {f"{model}/{name}" for model in MODELS for name in ("config.pbtxt", "3/model.onnx")}
    if backend == "python":
        files |= {f"{model}/3/model.py" for model in MODELS}
    assert set(tree(tmp_path / "repository")) == files
    for model, graph in MODELS.items():
        written = (tmp_path / "repository" / model / "3" / "model.onnx").read_bytes()
        assert written == (tiny_run.bundle.path / graph).read_bytes()


@pytest.mark.parametrize("graph", MODELS.values())
def test_a_graph_altered_after_opening_is_refused_before_anything_is_written(tiny_run, tmp_path: Path, graph: str):
    bundle = another_bundle(tiny_run.bundle, tmp_path / "bundle")
    with (bundle.path / graph).open("ab") as stream:
        stream.write(b"\0")
    with pytest.raises(BundleError, match=rf"{graph}: digest differs"):
        build_repository(bundle, tmp_path / "repository", 1, "onnxruntime")
    assert not (tmp_path / "repository").exists()


def test_other_versions_stay_and_the_same_again_changes_nothing(tiny_run, tmp_path: Path):
    repository = tmp_path / "repository"
    second = another_bundle(tiny_run.bundle, tmp_path / "second", code_revision="second")
    build_repository(tiny_run.bundle, repository, 1, "python")
    first_files = tree(repository / ENCODER / "1")
    build_repository(second, repository, 2, "python")
    assert tree(repository / ENCODER / "1") == first_files
    parameters = read_config(repository, REASONER).parameters
    assert parameters["bundle_1"].string_value == tiny_run.bundle.digest
    assert parameters["bundle_2"].string_value == second.digest
    before = tree(repository)
    build_repository(tiny_run.bundle, repository, 1, "python")
    assert tree(repository) == before


def test_refusals_leave_the_repository_as_it_was(tiny_run, tmp_path: Path):
    repository = tmp_path / "repository"
    build_repository(tiny_run.bundle, repository, 1, "python")
    before = tree(repository)
    other = another_bundle(tiny_run.bundle, tmp_path / "other", code_revision="other")
    wider = replace(other, manifest=replace(other.manifest, per_concept=other.manifest.per_concept + 1))
    with pytest.raises(ConfigError, match="taken by bundle"):
        build_repository(other, repository, 1, "python")
    with pytest.raises(ConfigError, match="other shapes, options or backend"):
        build_repository(wider, repository, 2, "python")
    with pytest.raises(ConfigError, match="other shapes, options or backend"):
        build_repository(other, repository, 2, "onnxruntime")
    with pytest.raises(ConfigError, match="count from 1"):
        build_repository(other, repository, 0, "python")
    assert tree(repository) == before


def test_a_failure_at_the_second_model_takes_back_the_first(tiny_run, tmp_path: Path):
    repository = tmp_path / "repository"
    repository.mkdir()
    (repository / REASONER).write_text("a file where the folder must be")
    with pytest.raises(OSError):
        build_repository(tiny_run.bundle, repository, 1, "python")
    assert set(tree(repository)) == {REASONER}


def test_the_rest_of_a_build_that_was_cut_off_is_replaced(tiny_run, tmp_path: Path):
    repository = tmp_path / "repository"
    for folder in (repository / ENCODER / "1", repository / ".partial" / REASONER / "1"):
        folder.mkdir(parents=True)
        (folder / "model.onnx").write_bytes(b"half")
    build_repository(tiny_run.bundle, repository, 1, "onnxruntime")
    assert not (repository / ".partial").exists()
    expected = (tiny_run.bundle.path / "encoder.onnx").read_bytes()
    assert (repository / ENCODER / "1" / "model.onnx").read_bytes() == expected


def test_an_unreadable_config_is_named(tiny_run, tmp_path: Path):
    build_repository(tiny_run.bundle, tmp_path / "repository", 1, "python")
    (tmp_path / "repository" / ENCODER / "config.pbtxt").write_text("max_batch_size: many")
    with pytest.raises(ConfigError, match=r"config\.pbtxt: cannot be read"):
        build_repository(tiny_run.bundle, tmp_path / "repository", 2, "python")


def test_command_line_builds(tiny_run, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    main(["--bundle", str(tiny_run.bundle.path), "--repository", str(tmp_path / "repository"), "--model-version", "7"])
    assert (tmp_path / "repository" / REASONER / "7" / "model.onnx").is_file()
    assert f"version 7 is bundle {tiny_run.bundle.digest[:12]}" in capsys.readouterr().out


def test_command_line_says_one_sentence_and_ends_with_1(tmp_path: Path):
    with pytest.raises(SystemExit) as end:
        main(["--bundle", str(tmp_path / "nothing"), "--repository", str(tmp_path / "repository")])
    assert "is not a bundle" in str(end.value.code)  # a string as exit code: printed to stderr, and the status is 1
    assert not (tmp_path / "repository").exists()


# --- with a real server


@pytest.fixture(scope="module")
def repository(tiny_run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("triton") / "repository"
    build_repository(tiny_run.bundle, path, 1, "python")
    return path


@pytest.fixture(scope="module")
def server(repository: Path) -> Iterator[TritonServer]:
    with triton_server(repository, list(MODELS), repository.with_name("server.log")) as address:
        yield address


@pytest.fixture(scope="module")
def runner(tiny_run) -> BundleRunner:
    return BundleRunner(tiny_run.bundle)


class Asker:
    """Both protocols behind one call: arrays in, arrays out."""

    def __init__(self, protocol: ModuleType, url: str) -> None:
        self._protocol = protocol
        self.client = protocol.InferenceServerClient(url)

    def inputs(self, arrays: dict[str, np.ndarray]) -> list:
        tensors = []
        for name, array in arrays.items():
            tensors.append(self._protocol.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype)))
            tensors[-1].set_data_from_numpy(array)
        return tensors

    def __call__(self, model: str, arrays: dict[str, np.ndarray], version: str = "1") -> dict[str, np.ndarray]:
        metadata = self.client.get_model_metadata(model, version)
        outputs = metadata["outputs"] if isinstance(metadata, dict) else [{"name": e.name} for e in metadata.outputs]
        answer = self.client.infer(model, self.inputs(arrays), version)
        return {each["name"]: answer.as_numpy(each["name"]) for each in outputs}


@pytest.fixture(scope="module", params=["http", "grpc"])
def ask(request: pytest.FixtureRequest, server: TritonServer) -> Iterator[Asker]:
    asker = Asker(*{"http": (triton_http, server.http), "grpc": (triton_grpc, server.grpc)}[request.param])
    yield asker
    asker.client.close()


def interactions(tiny_run, count: int) -> list[Interaction]:
    """Boxes of both kinds, rejections, both replacements; each study another."""
    concepts, side = tiny_run.bundle.manifest.concepts, tiny_run.bundle.manifest.side
    attend = RegionBox(2, 2, side / 2, side / 3)
    ignore = RegionBox(side / 2, side / 2, side - 1, side - 1, "negative")
    pattern = [
        Interaction(boxes=(attend, ignore), rejected=(concepts[0], concepts[-1])),
        Interaction(boxes=(ignore,), rejection="zero", rejected=(concepts[1],), background="alpha"),
        Interaction(boxes=(attend,), alpha=0.0),
    ]
    return [pattern[index % len(pattern)] for index in range(count)]


@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("touched", [False, True], ids=["untouched", "interaction"])
def test_server_answers_what_the_runner_does(tiny_run, runner: BundleRunner, ask: Asker, count: int, touched: bool):
    images = np.ascontiguousarray(tiny_run.data.images[:count])
    given = interactions(tiny_run, count) if touched else [Interaction()] * count
    expected_patches = runner.encode(images)
    expected = runner.reason(expected_patches, given)

    encoded = ask(ENCODER, {"image": images})
    tensors = runner.interaction_tensors(given)
    tensors["absent_weight"] = tensors["absent_weight"][:, None]
    answer = ask(REASONER, {"patches": encoded["patches"], **tensors})

    np.testing.assert_allclose(encoded["patches"], expected_patches, rtol=0, atol=TOLERANCE)
    assert set(answer) == set(REASONER_OUTPUTS)
    for name in REASONER_OUTPUTS:
        assert answer[name].shape == expected[name].shape, name
        np.testing.assert_allclose(answer[name], expected[name], rtol=0, atol=TOLERANCE, err_msg=name)
    if touched:
        untouched = runner.reason(expected_patches, [Interaction()] * count)
        assert np.abs(untouched["logits"] - answer["logits"]).max(1).min() > 10 * TOLERANCE  # or nothing was compared


def test_metadata_names_types_and_free_batch(tiny_run, server: TritonServer):
    client = triton_http.InferenceServerClient(server.http)
    about = client.get_model_metadata(ENCODER, "1")
    size = tiny_run.bundle.manifest
    assert about["inputs"] == [
        {"name": "image", "datatype": "UINT8", "shape": [-1, size.channels, size.side, size.side]}
    ]
    assert triton_to_np_dtype(about["outputs"][0]["datatype"]) is np.float32
    parameters = client.get_model_config(REASONER, "1")["parameters"]
    assert parameters["bundle_1"]["string_value"] == tiny_run.bundle.digest


def test_one_output_can_be_asked_for_alone(tiny_run, runner: BundleRunner, server: TritonServer):
    ask = Asker(triton_grpc, server.grpc)
    golden = tiny_run.bundle.golden()
    patches = runner.encode(golden["image"])
    tensors = {name: golden[name] for name in ("importance", "prototype_mask", "absent_weight")}
    tensors["absent_weight"] = tensors["absent_weight"][:, None]
    wanted = [triton_grpc.InferRequestedOutput("logits")]
    answer = ask.client.infer(REASONER, ask.inputs({"patches": patches, **tensors}), outputs=wanted)
    np.testing.assert_allclose(answer.as_numpy("logits"), golden["expected_logits"], rtol=0, atol=TOLERANCE)
    assert answer.as_numpy("similarity_maps") is None


def wait_for_count(ask: Asker, inferences: int):
    """The encoder's statistics once they count so many images: they lag a little behind the answers."""
    for _ in range(100):
        statistics = ask.client.get_inference_statistics(ENCODER, "1").model_stats[0]
        if statistics.inference_count >= inferences:
            break
        time.sleep(0.05)
    assert statistics.inference_count == inferences
    return statistics


def test_requests_that_arrive_together_are_batched_and_get_their_own_answers(
    tiny_run, runner: BundleRunner, server: TritonServer
):
    ask = Asker(triton_grpc, server.grpc)
    images = np.ascontiguousarray(tiny_run.data.images[:48])
    parts = [
        part for start in range(0, 48, 3) for part in np.split(images[start : start + 3], [1])
    ]  # of one and of two
    before = ask.client.get_inference_statistics(ENCODER, "1").model_stats[0]
    with ThreadPoolExecutor(len(parts)) as pool:
        answers = list(pool.map(lambda part: ask.client.infer(ENCODER, ask.inputs({"image": part}), "1"), parts))
    after = wait_for_count(ask, before.inference_count + len(images))
    for part, answer in zip(parts, answers, strict=True):
        np.testing.assert_allclose(answer.as_numpy("patches"), runner.encode(part), rtol=0, atol=TOLERANCE)
    assert after.execution_count - before.execution_count < len(parts)


def test_a_wrong_request_is_refused_and_the_next_one_answered(tiny_run, ask: Asker):
    images = np.ascontiguousarray(tiny_run.data.images[:1])
    with pytest.raises(InferenceServerException, match="unexpected shape"):
        ask(ENCODER, {"image": images[:, :, 1:]})
    with pytest.raises(InferenceServerException, match="batch-size must be <="):
        ask(ENCODER, {"image": np.repeat(images, MAX_BATCH + 1, axis=0)})
    assert len(ask(ENCODER, {"image": images})["patches"]) == 1


def test_a_new_version_joins_a_running_server_and_the_old_one_stays(tiny_run, repository: Path, server: TritonServer):
    """Last: it leaves the server with two versions. Both answer, so a rollback is only a matter of asking for 1."""
    build_repository(tiny_run.bundle, repository, 2, "python")
    ask = Asker(triton_http, server.http)
    for model in MODELS:
        ask.client.load_model(model)
    images = np.ascontiguousarray(tiny_run.data.images[:2])
    first, second = (ask(ENCODER, {"image": images}, version)["patches"] for version in ("1", "2"))
    np.testing.assert_array_equal(first, second)
