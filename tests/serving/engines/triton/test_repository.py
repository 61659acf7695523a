"""A bundle as a Triton repository: its form without a server, and its answers from a real one."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import DataType, ModelConfig
from tritonclient.utils import InferenceServerException, np_to_triton_dtype, triton_to_np_dtype

from csr.bundle.format import INTERACTION_INPUTS, REASONER_OUTPUTS, Bundle
from csr.bundle.runtime import FIT_TOLERANCE, BundleRunner
from csr.data.digests import file_digest
from csr.errors import BundleError, ConfigError
from csr.interaction.corrections import Interaction, RegionBox
from serving.engines.triton import ENCODER, ENSEMBLE, MAX_BATCH, REASONER, build_repository, load_models
from serving.engines.triton.__main__ import main
from tests.bench.servers import family
from tests.serving.engines.triton.server import TritonError, TritonServer, triton_server

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
    files |= {"csr/config.pbtxt", "csr/3/bundle", "csr_encoder/warmup/image"}
    files |= {f"csr_reasoner/warmup/{name}" for name in ("patches", *INTERACTION_INPUTS)}
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


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_warm_up_is_the_golden_case_in_the_shapes_of_the_config(tiny_run, tmp_path: Path, backend: str):
    build_repository(tiny_run.bundle, tmp_path / "repository", 1, backend)
    golden = tiny_run.bundle.golden()
    golden["patches"] = BundleRunner(tiny_run.bundle).encode(golden["image"])
    for model in MODELS:
        config = read_config(tmp_path / "repository", model)
        (warmup,) = config.model_warmup
        assert warmup.batch_size == 1
        assert {name: list(each.dims) for name, each in warmup.inputs.items()} == {
            each.name: list(each.dims) for each in config.input
        }
        for name, each in warmup.inputs.items():
            assert DataType.Name(each.data_type) == ("TYPE_UINT8" if name == "image" else "TYPE_FP32")
            content = (tmp_path / "repository" / model / "warmup" / each.input_data_file).read_bytes()
            kind = np.uint8 if name == "image" else np.float32
            values = np.frombuffer(content, kind).reshape(golden[name][:1].shape)
            np.testing.assert_allclose(values, golden[name][:1], rtol=0, atol=1e-6)


def test_the_ensemble_names_the_newest_version_of_both_models_whatever_the_order(tiny_run, tmp_path: Path):
    repository = tmp_path / "repository"
    bundles = {2: tiny_run.bundle, 1: another_bundle(tiny_run.bundle, tmp_path / "first", code_revision="first")}
    bundles[3] = another_bundle(tiny_run.bundle, tmp_path / "third", code_revision="third")
    for version, newest in ((2, 2), (1, 2), (3, 3)):
        build_repository(bundles[version], repository, version, "python")
        config = read_config(repository, ENSEMBLE)
        assert config.platform == "ensemble"
        assert list(config.version_policy.specific.versions) == [newest]
        steps = [(step.model_name, step.model_version) for step in config.ensemble_scheduling.step]
        assert steps == [(ENCODER, newest), (REASONER, newest)]
        known = {key: each.string_value for key, each in config.parameters.items()}
        assert known == {f"bundle_{newest}": bundles[newest].digest}
        assert (repository / ENSEMBLE / str(newest) / "bundle").read_text().strip() == bundles[newest].digest


def test_the_ensemble_takes_and_gives_what_its_steps_do(tiny_run, tmp_path: Path):
    build_repository(tiny_run.bundle, tmp_path / "repository", 1, "onnxruntime")
    ensemble, encoder, reasoner = (read_config(tmp_path / "repository", name) for name in (ENSEMBLE, *MODELS))

    def tensors(listed) -> dict[str, tuple]:
        return {each.name: (each.data_type, tuple(each.dims)) for each in listed}

    inside = tensors(encoder.output)
    assert tensors(ensemble.input) == {
        **tensors(encoder.input),
        **{name: each for name, each in tensors(reasoner.input).items() if name not in inside},
    }
    fits = {"fit_scores": tensors(encoder.output)["fit_scores"]}
    assert tensors(ensemble.output) == tensors(reasoner.output) | fits
    assert ensemble.max_batch_size == encoder.max_batch_size == reasoner.max_batch_size
    for step, model in zip(ensemble.ensemble_scheduling.step, (encoder, reasoner), strict=True):
        assert set(step.input_map) == set(tensors(model.input))
        assert set(step.output_map) == set(tensors(model.output))


def test_a_lost_ensemble_is_built_again(tiny_run, tmp_path: Path):
    repository = tmp_path / "repository"
    build_repository(tiny_run.bundle, repository, 1, "python")
    before = tree(repository)
    shutil.rmtree(repository / ENSEMBLE)
    build_repository(tiny_run.bundle, repository, 1, "python")
    assert tree(repository) == before


def test_a_failure_at_the_last_configuration_restores_the_others(
    tiny_run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    repository = tmp_path / "repository"
    build_repository(tiny_run.bundle, repository, 1, "python")
    before = tree(repository)
    replace_file = Path.replace

    def fail_at_the_ensemble(self: Path, target: Path) -> Path:
        if target == repository / ENSEMBLE / "config.pbtxt":
            raise OSError("the disk is full")
        return replace_file(self, target)

    monkeypatch.setattr(Path, "replace", fail_at_the_ensemble)
    with pytest.raises(OSError, match="the disk is full"):
        build_repository(another_bundle(tiny_run.bundle, tmp_path / "b", code_revision="b"), repository, 2, "python")
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
    with pytest.raises(ConfigError, match="other shapes, options or backend"):
        build_repository(other, repository, 2, "python", instances=2)
    for wrong in ({"version": 0}, {"threads": 0}, {"instances": 0}):
        with pytest.raises(ConfigError, match="count from 1"):
            build_repository(other, repository, **{"version": 2, "backend": "python", **wrong})
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
    with triton_server(repository, [*MODELS, ENSEMBLE], repository.with_name("server.log")) as running:
        yield running


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
    ignore = RegionBox(side / 2, side / 2, side - 1, side - 1, "ignore")
    pattern = [
        Interaction(boxes=(attend, ignore), rejected=(concepts[0], concepts[-1])),
        Interaction(boxes=(ignore,), rejection="zero", rejected=(concepts[1],), background="alpha"),
        Interaction(boxes=(replace(attend, kind="finding", concept=concepts[2]),), confirmed=(concepts[3],)),
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
    expected_fits = runner.run_encoder(images, ["fit_scores"])["fit_scores"]
    np.testing.assert_allclose(encoded["fit_scores"], expected_fits, rtol=0, atol=FIT_TOLERANCE)
    assert set(answer) == set(REASONER_OUTPUTS)
    for name in REASONER_OUTPUTS:
        assert answer[name].shape == expected[name].shape, name
        np.testing.assert_allclose(answer[name], expected[name], rtol=0, atol=TOLERANCE, err_msg=name)
    if touched:
        untouched = runner.reason(expected_patches, [Interaction()] * count)
        assert np.abs(untouched["logits"] - answer["logits"]).max(1).min() > 10 * TOLERANCE  # or nothing was compared


@pytest.mark.parametrize("count", [1, 5])
def test_the_ensemble_answers_an_image_and_an_interaction_in_one_request(
    tiny_run, runner: BundleRunner, ask: Asker, count: int
):
    images = np.ascontiguousarray(tiny_run.data.images[:count])
    given = interactions(tiny_run, count)
    tensors = runner.interaction_tensors(given)
    tensors["absent_weight"] = tensors["absent_weight"][:, None]
    answer = ask(ENSEMBLE, {"image": images, **tensors})
    expected = runner.reason(runner.encode(images), given)
    assert set(answer) == {"fit_scores", *REASONER_OUTPUTS}
    expected_fits = runner.run_encoder(images, ["fit_scores"])["fit_scores"]
    np.testing.assert_allclose(answer["fit_scores"], expected_fits, rtol=0, atol=FIT_TOLERANCE)
    for name in REASONER_OUTPUTS:
        np.testing.assert_allclose(answer[name], expected[name], rtol=0, atol=TOLERANCE, err_msg=name)


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
    tensors = {name: golden[name] for name in INTERACTION_INPUTS}
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


def test_several_instances_run_at_once_and_answer_as_one_does(tiny_run, runner: BundleRunner, tmp_path: Path):
    build_repository(tiny_run.bundle, tmp_path / "repository", 1, "python", instances=2)
    images = np.ascontiguousarray(tiny_run.data.images[:32])
    with triton_server(tmp_path / "repository", [*MODELS, ENSEMBLE], tmp_path / "log") as several:
        stubs = [title for _, title in family(several.pid) if b"triton_python_backend_stub" in title]
        assert len(stubs) == 2 * len(MODELS)
        ask = Asker(triton_grpc, several.grpc)
        with ThreadPoolExecutor(8) as pool:
            parts = np.split(images, 16)
            answers = list(pool.map(lambda part: ask(ENCODER, {"image": part})["patches"], parts))
    np.testing.assert_allclose(np.concatenate(answers), runner.encode(images), rtol=0, atol=TOLERANCE)


def test_a_wrong_request_is_refused_and_the_next_one_answered(tiny_run, ask: Asker):
    images = np.ascontiguousarray(tiny_run.data.images[:1])
    with pytest.raises(InferenceServerException, match="unexpected shape"):
        ask(ENCODER, {"image": images[:, :, 1:]})
    with pytest.raises(InferenceServerException, match="batch-size must be <="):
        ask(ENCODER, {"image": np.repeat(images, MAX_BATCH + 1, axis=0)})
    assert len(ask(ENCODER, {"image": images})["patches"]) == 1


def tripled_logits(bundle: Bundle, path: Path) -> Bundle:
    """A bundle whose reasoner gives three times the logits, so that an answer tells which bundle it is from."""
    shutil.copytree(bundle.path, path)
    model = onnx.load(path / "reasoner.onnx")
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = ["logits_before" if name == "logits" else name for name in names]
    model.graph.initializer.append(onnx.helper.make_tensor("three", onnx.TensorProto.FLOAT, [1], [3.0]))
    model.graph.node.append(onnx.helper.make_node("Mul", ["logits_before", "three"], ["logits"]))
    onnx.save(model, path / "reasoner.onnx")
    content = json.loads((path / "manifest.json").read_text())
    content["files"]["reasoner.onnx"] = file_digest(path / "reasoner.onnx")
    (path / "manifest.json").write_text(json.dumps(content))
    return Bundle.open(path)


def test_a_new_version_joins_a_running_server_and_versions_never_mix(
    tiny_run, tmp_path: Path, repository: Path, server: TritonServer, capsys: pytest.CaptureFixture[str]
):
    """The models keep both, so a rollback is only a matter of asking for 1; the ensemble has the newest alone."""
    second = tripled_logits(tiny_run.bundle, tmp_path / "second")
    images = np.ascontiguousarray(tiny_run.data.images[:2])
    tensors = BundleRunner(tiny_run.bundle).interaction_tensors(interactions(tiny_run, 2))
    tensors["absent_weight"] = tensors["absent_weight"][:, None]
    ask = Asker(triton_grpc, server.grpc)
    before = ask(ENSEMBLE, {"image": images, **tensors})["logits"]

    build_repository(second, repository, 2, "python")
    np.testing.assert_array_equal(ask(ENSEMBLE, {"image": images, **tensors})["logits"], before)  # not told yet
    arguments = ["--bundle", str(second.path), "--repository", str(repository), "--backend", "python"]
    main([*arguments, "--model-version", "2", "--load", server.grpc])
    assert f"{server.grpc}: version 2 is ready" in capsys.readouterr().out

    patches = {version: ask(ENCODER, {"image": images}, version)["patches"] for version in ("1", "2")}
    np.testing.assert_array_equal(patches["1"], patches["2"])
    for version, factor in (("1", 1), ("2", 3)):
        answer = ask(REASONER, {"patches": patches[version], **tensors}, version)
        np.testing.assert_allclose(answer["logits"], factor * before, rtol=1e-4, atol=TOLERANCE)
    for version in ("2", ""):
        answer = ask(ENSEMBLE, {"image": images, **tensors}, version)
        np.testing.assert_allclose(answer["logits"], 3 * before, rtol=1e-4, atol=TOLERANCE)
    for version, status in (("1", "UNAVAILABLE"), ("3", "NOT_FOUND")):  # it had the one, never the other
        with pytest.raises(InferenceServerException, match=f"unknown model: 'csr' version {version}") as refused:
            ask.client.infer(ENSEMBLE, ask.inputs({"image": images, **tensors}), version)
        assert refused.value.status() == f"StatusCode.{status}"


def test_the_ensemble_answers_all_the_while_a_new_version_is_loaded(
    tiny_run, repository: Path, server: TritonServer, tmp_path: Path
):
    """And each answer is one bundle's whole: with the logits of the old version or of the new one."""
    images = np.ascontiguousarray(tiny_run.data.images[:1])
    tensors = BundleRunner(tiny_run.bundle).interaction_tensors(interactions(tiny_run, 1))
    tensors["absent_weight"] = tensors["absent_weight"][:, None]
    ask = Asker(triton_grpc, server.grpc)
    stop = threading.Event()
    logits: list[np.ndarray] = []

    def keep_asking() -> None:
        while not stop.is_set():
            wanted = [triton_grpc.InferRequestedOutput("logits")]
            inputs = ask.inputs({"image": images, **tensors})
            logits.append(ask.client.infer(ENSEMBLE, inputs, outputs=wanted).as_numpy("logits"))

    newest = max(int(each.name) for each in (repository / ENCODER).iterdir() if each.name.isdigit())
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(keep_asking)
        try:
            build_repository(tiny_run.bundle, repository, newest + 1, "python")
            load_models(server.grpc, newest + 1)
            later = len(logits) + 5
            while len(logits) < later and not asking.done():
                time.sleep(0.01)
        finally:
            stop.set()
        asking.result()
    plain = ask(ENSEMBLE, {"image": images, **tensors}, str(newest + 1))["logits"]
    np.testing.assert_allclose(logits[-1], plain, rtol=0, atol=TOLERANCE)
    for each in logits:
        assert min(np.abs(each - factor * plain).max() for factor in (1, 3)) < 1e-3


def test_a_version_older_than_those_kept_is_not_ready_and_the_command_says_so(
    tiny_run, repository: Path, server: TritonServer
):
    versions = sorted(int(each.name) for each in (repository / ENCODER).iterdir() if each.name.isdigit())
    for version in range(versions[-1] + 2, versions[-1] + 4):
        build_repository(tiny_run.bundle, repository, version, "python")
    arguments = ["--bundle", str(tiny_run.bundle.path), "--repository", str(repository), "--backend", "python"]
    with pytest.raises(SystemExit) as end:
        main([*arguments, "--model-version", str(versions[-1] + 1), "--load", server.grpc])
    assert "is not ready; it serves this repository's 2 newest versions" in str(end.value.code)
    load_models(server.grpc, versions[-1] + 3)


def test_the_server_warms_up_with_the_files(tiny_run, tmp_path: Path):
    """It refuses a model whose warm-up it cannot read, so one that it has loaded has run it."""
    build_repository(tiny_run.bundle, tmp_path / "repository", 1, "python")
    file = tmp_path / "repository" / REASONER / "warmup" / "patches"
    file.write_bytes(file.read_bytes()[:-4])
    with (
        pytest.raises(TritonError, match="patches"),
        triton_server(tmp_path / "repository", list(MODELS), tmp_path / "log"),
    ):
        pass


def test_the_command_unloads_and_a_server_that_is_gone_is_said(
    tiny_run, server: TritonServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """Last: it leaves the server empty."""
    main(["--unload", server.grpc])
    assert "unloaded" in capsys.readouterr().out
    with triton_grpc.InferenceServerClient(server.grpc) as client:
        assert not any(client.is_model_ready(model) for model in (ENCODER, REASONER, ENSEMBLE))
    with pytest.raises(SystemExit) as end:
        main(["--unload", "127.0.0.1:9"])
    assert "Triton at 127.0.0.1:9 does not answer" in str(end.value.code)
