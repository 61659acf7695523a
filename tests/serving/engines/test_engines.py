"""One suite for every engine, against what the bundle's runner computes; then what only a Triton server can do."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from csr.bundle.format import INTERACTION_INPUTS, REASONER_OUTPUTS, Bundle
from csr.bundle.runtime import BundleRunner, tensor_shapes
from csr.interaction.corrections import Interaction, InteractionError, RegionBox
from serving.engines import Engine, OrtEngine, TritonEngine
from serving.engines.triton import ENCODER, MAX_BATCH, REASONER, build_repository, client
from serving.errors import EngineUnavailableError, InvalidTensorError, NotReadyError
from tests.serving.engines.triton.server import TritonServer, triton_server

TOLERANCE = 1e-4
TENSORS = INTERACTION_INPUTS


@pytest.fixture(scope="module")
def server(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    folder = tmp_path_factory.mktemp("engines")
    build_repository(bundle, folder / "repository", 1, "python")
    with triton_server(folder / "repository", [ENCODER, REASONER], folder / "server.log") as running:
        yield running


@pytest.fixture(params=["ort", "triton", "triton with shared memory"])
def engine(request: pytest.FixtureRequest, bundle: Bundle) -> Iterator[Engine]:
    made: Engine
    if request.param == "ort":
        made = OrtEngine(bundle)
    else:
        address = request.getfixturevalue("server").grpc
        shared = request.param.endswith("memory")
        if shared:  # the tiny run's tensors are small: let every one of them take that way
            request.getfixturevalue("monkeypatch").setattr(client, "SHARED_FROM", 1)
        made = TritonEngine(bundle, address, 1, shared_memory=shared)
        assert made.shares_memory is shared
    yield made
    made.close()


@pytest.fixture(scope="module")
def runner(bundle: Bundle) -> BundleRunner:
    return BundleRunner(bundle)


def pictures(bundle: Bundle, count: int, seed: int = 0) -> np.ndarray:
    about = bundle.manifest
    shape = (count, about.channels, about.side, about.side)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def interactions(bundle: Bundle, count: int) -> list[Interaction]:
    """Boxes of each kind, answers, both replacements; neighbours differ."""
    concepts, side = bundle.manifest.concepts, bundle.manifest.side
    attend, ignore = RegionBox(2, 2, side / 2, side / 3), RegionBox(side / 2, side / 2, side, side, "ignore")
    finding = replace(attend, kind="finding", concept=concepts[2])
    pattern = [
        Interaction((attend, ignore), rejected=(concepts[0], concepts[-1])),
        Interaction((ignore, finding), rejected=(concepts[1],), rejection="zero"),
        Interaction((ignore,), confirmed=concepts[3:5], background="alpha"),
        Interaction((attend,), alpha=0.0),
        Interaction(),
    ]
    return [pattern[index % len(pattern)] for index in range(count)]


def test_the_golden_case_comes_out(engine: Engine, bundle: Bundle) -> None:
    golden = bundle.golden()
    answer = engine.run_reasoner(engine.encode(golden["image"]), **{name: golden[name] for name in TENSORS})
    for name in REASONER_OUTPUTS:
        if name != "similarity_maps":  # not kept in the golden case
            np.testing.assert_allclose(answer[name], golden[f"expected_{name}"], rtol=0, atol=TOLERANCE, err_msg=name)


@pytest.mark.parametrize("count", [1, 5, MAX_BATCH + 3])
def test_answers_are_the_runners_whatever_the_batch(
    engine: Engine, bundle: Bundle, runner: BundleRunner, count: int
) -> None:
    images, given = pictures(bundle, count), interactions(bundle, count)
    patches = engine.encode(images)
    np.testing.assert_allclose(patches, runner.encode(images), rtol=0, atol=TOLERANCE)
    answer, expected = engine.reason(patches, given), runner.reason(patches, given)
    assert tuple(answer) == REASONER_OUTPUTS
    for name in REASONER_OUTPUTS:
        assert answer[name].shape == (count, *tensor_shapes(bundle.manifest)[name])
        assert answer[name].dtype == np.float32
        np.testing.assert_allclose(answer[name], expected[name], rtol=0, atol=TOLERANCE, err_msg=name)
    untouched = runner.reason(patches, [Interaction()] * count)
    assert np.abs(untouched["logits"] - answer["logits"])[:3].max() > 10 * TOLERANCE  # or nothing was compared


def test_answers_are_the_callers_own(engine: Engine, bundle: Bundle) -> None:
    """Later calls leave them alone, and they can be written to."""
    first = engine.encode(pictures(bundle, 2))
    kept = first.copy()
    engine.encode(pictures(bundle, 2, seed=1))
    np.testing.assert_array_equal(first, kept)
    first += 1
    logits = engine.reason(kept, interactions(bundle, 2))["logits"]
    logits += 1


def test_images_may_be_a_view(engine: Engine, bundle: Bundle, runner: BundleRunner) -> None:
    images = pictures(bundle, 4)
    view = images[::2, :, :, ::-1]
    np.testing.assert_allclose(engine.encode(view), runner.encode(np.ascontiguousarray(view)), rtol=0, atol=TOLERANCE)


def test_outputs_can_be_chosen(engine: Engine, bundle: Bundle) -> None:
    patches, given = engine.encode(pictures(bundle, 2)), interactions(bundle, 2)
    everything = engine.reason(patches, given)
    some = engine.reason(patches, given, ["probabilities", "concept_maps", "probabilities"])
    assert tuple(some) == ("probabilities", "concept_maps")
    for name, array in some.items():
        np.testing.assert_allclose(array, everything[name], rtol=0, atol=TOLERANCE)


def test_sixteen_threads_get_their_own_answers(engine: Engine, bundle: Bundle, runner: BundleRunner) -> None:
    """Of different sizes, so that regions of shared memory change hands, and encoding and reasoning mixed."""
    rounds = 96
    asked = [(pictures(bundle, 1 + seed % 3, seed), interactions(bundle, 1 + seed % 3)) for seed in range(rounds)]
    expected = []
    for images, given in asked:
        patches = runner.encode(images)
        expected.append((patches, runner.reason(patches, given)))
    together = threading.Barrier(16)

    def ask(index: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        if index < 16:
            together.wait(30)
        images, given = asked[index]
        patches = engine.encode(images)
        return patches, engine.reason(patches, given)

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(ask, range(rounds), timeout=120))
    for (patches, outputs), (expected_patches, expected_outputs) in zip(answers, expected, strict=True):
        np.testing.assert_allclose(patches, expected_patches, rtol=0, atol=TOLERANCE)
        for name in REASONER_OUTPUTS:
            np.testing.assert_allclose(outputs[name], expected_outputs[name], rtol=0, atol=TOLERANCE, err_msg=name)
    distances = [np.abs(one[0][:1] - other[0][:1]).max() for one, other in pairwise(expected)]
    assert min(distances) > 10 * TOLERANCE  # or an answer to another's question would pass


def test_wrong_tensors_are_refused_and_the_next_call_answered(engine: Engine, bundle: Bundle) -> None:
    images = pictures(bundle, 2)
    about = bundle.manifest
    side = about.side
    with pytest.raises(InvalidTensorError, match=rf"image: shape is 2×{about.channels}×{side - 1}×{side}, expected 2×"):
        engine.encode(images[:, :, 1:])
    with pytest.raises(InvalidTensorError, match="image: is float32, expected uint8"):
        engine.encode(images.astype(np.float32))
    for empty in (images[:0], np.uint8(3)):
        with pytest.raises(InvalidTensorError, match="at least one study"):
            engine.encode(empty)  # type: ignore[arg-type]
    patches = engine.encode(images)
    with pytest.raises(InvalidTensorError, match="importance: shape is 3×"):
        engine.reason(patches, interactions(bundle, 3))
    with pytest.raises(InvalidTensorError, match="give one for each study"):
        engine.reason(patches, [])
    with pytest.raises(InvalidTensorError, match="outputs: 'heatmap' is not one; the reasoner gives similarity_maps"):
        engine.reason(patches, interactions(bundle, 2), ["heatmap"])
    with pytest.raises(InvalidTensorError, match="outputs: none is named"):
        engine.reason(patches, interactions(bundle, 2), [])
    with pytest.raises(InvalidTensorError, match="absent_weight: the reasoner takes exactly patches, importance"):
        engine.run_reasoner(patches, importance=patches, answers=patches)
    with pytest.raises(InteractionError, match="unknown concept"):
        engine.reason(patches, [Interaction(rejected=("spaceship",))] * 2)
    assert len(engine.encode(images)) == 2


def test_ready_until_closed_and_closing_twice_is_closing_once(engine: Engine, bundle: Bundle) -> None:
    engine.ready()
    patches = engine.encode(pictures(bundle, 1))
    engine.close()
    engine.close()
    with pytest.raises(NotReadyError, match="closed"):
        engine.ready()
    with pytest.raises(EngineUnavailableError, match="closed"):
        engine.encode(pictures(bundle, 1))
    with pytest.raises(EngineUnavailableError, match="closed"):
        engine.reason(patches, [Interaction()])


def test_closing_lets_calls_in_flight_end(engine: Engine, bundle: Bundle, runner: BundleRunner) -> None:
    """Each call gets its answer or the one clear refusal, nothing in between."""
    images = pictures(bundle, 2)
    expected = runner.encode(images)
    started = threading.Barrier(9)
    answers: list[np.ndarray] = []
    refused: list[str] = []

    def ask() -> None:
        started.wait(30)
        try:
            while True:
                answers.append(engine.encode(images))
        except EngineUnavailableError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    started.wait(30)
    while not answers:
        threading.Event().wait(0.01)
    engine.close()
    for thread in threads:
        thread.join(30)
    assert len(refused) == 8 and all("is closed" in each for each in refused)
    for answer in answers:
        np.testing.assert_allclose(answer, expected, rtol=0, atol=TOLERANCE)
