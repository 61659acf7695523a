"""What only an engine with a server behind it can do: lose it, find another in its place, share memory with it."""

from __future__ import annotations

import errno
import io
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from tritonclient.grpc import InferenceServerClient
from tritonclient.utils import InferenceServerException

from csr.bundle.format import Bundle
from csr.bundle.runtime import BundleRunner
from csr.data.digests import file_digest
from csr.errors import BundleError, ConfigError
from serving.engines import TritonEngine
from serving.engines.triton import ENCODER, ENSEMBLE, REASONER, build_repository, client, config, load_models
from serving.engines.triton.engine import _is_here
from serving.engines.triton.regions import PREFIX
from serving.errors import EngineUnavailableError, NotReadyError
from tests.serving.engines.test_engines import TOLERANCE, pictures
from tests.serving.engines.triton.server import TritonServer, triton_server

MODELS = [ENCODER, REASONER, ENSEMBLE]
TIMEOUT_S = 10.0
Engines = Callable[..., TritonEngine]


@pytest.fixture(scope="module")
def server(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    folder = tmp_path_factory.mktemp("triton_engine")
    build_repository(bundle, folder / "repository", 1, "python")
    with triton_server(folder / "repository", MODELS, folder / "server.log") as running:
        yield running


@pytest.fixture
def engines(bundle: Bundle, server: TritonServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engines]:
    """Makes engines of the module's server, with every tensor in shared memory unless it is switched off."""
    monkeypatch.setattr(client, "SHARED_FROM", 1)
    made: list[TritonEngine] = []

    def make(**changes: object) -> TritonEngine:
        known = {"bundle": bundle, "url": server.grpc, "version": 1, "timeout_s": TIMEOUT_S}
        made.append(TritonEngine(**(known | changes)))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for engine in made:
        engine.close()
    assert not regions()


def regions(process: int | None = None) -> list[str]:
    """What the engines of a process, of this one by default, hold of this machine's shared memory."""
    return [file.name for file in Path("/dev/shm").glob(f"{PREFIX}_{process or os.getpid()}_*")]


def regions_in(server: TritonServer) -> set[str]:
    """What the server has mapped of it."""
    with InferenceServerClient(server.grpc) as client:
        return set(client.get_system_shared_memory_status().regions)


def copy_with(bundle: Bundle, folder: Path, **golden: np.ndarray) -> Bundle:
    """A bundle with another golden case, consistent in itself."""
    shutil.copytree(bundle.path, folder)
    buffer = io.BytesIO()
    np.savez(buffer, **(bundle.golden() | golden))
    (folder / "golden.npz").write_bytes(buffer.getvalue())
    content = json.loads((folder / "manifest.json").read_text())
    content["files"]["golden.npz"] = file_digest(folder / "golden.npz")
    (folder / "manifest.json").write_text(json.dumps(content))
    return Bundle.open(folder)


def until_it_answers(engine: TritonEngine, images: np.ndarray, within: float = 30) -> np.ndarray:
    deadline = time.monotonic() + within
    while True:
        try:
            return engine.encode(images)
        except EngineUnavailableError:
            assert time.monotonic() < deadline, "the engine does not find its server again"
            time.sleep(0.05)


def until_connected(engine: TritonEngine, within: float = 30) -> None:
    """Waits until gRPC has found the server again, which it tries at growing intervals; asks it for no model."""
    deadline = time.monotonic() + within
    while True:
        try:
            if engine._client.api.is_server_live():
                return
        except InferenceServerException:
            assert time.monotonic() < deadline, "the connection does not come back"
        time.sleep(0.05)


def encode_from_sixteen_threads(engine: TritonEngine, bundle: Bundle) -> None:
    """So that the pool has several regions, of several sizes."""
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda index: engine.encode(pictures(bundle, 1 + index % 5)), range(64)))


# --- what a constructor refuses


def test_another_bundle_is_refused(bundle: Bundle, engines: Engines, tmp_path: Path) -> None:
    other = copy_with(bundle, tmp_path / "other", note=np.zeros(1))
    with pytest.raises(
        BundleError, match=rf"version 1 of csr_encoder is bundle {bundle.digest[:12]}, not {other.digest[:12]}"
    ):
        engines(bundle=other)


def test_a_version_that_is_not_there_is_named_with_what_to_do(engines: Engines) -> None:
    with pytest.raises(NotReadyError, match=r"csr_encoder has no version 7 that is ready.*--model-version 7 --load"):
        engines(version=7)


@pytest.mark.timed
def test_nothing_at_the_address_is_said_at_once(engines: Engines) -> None:
    start = time.monotonic()
    with pytest.raises(EngineUnavailableError, match=r"Triton at 127\.0\.0\.1:9 does not answer"):
        engines(url="127.0.0.1:9")
    assert time.monotonic() - start < TIMEOUT_S / 2


def test_a_server_that_computes_something_else_is_refused(
    bundle: Bundle, engines: Engines, server: TritonServer, tmp_path: Path
) -> None:
    """The golden case of version 2 expects other logits than its graphs give."""
    logits = bundle.golden()["expected_logits"] + 0.1
    odd = copy_with(bundle, tmp_path / "odd", expected_logits=logits)
    build_repository(odd, server.repository, 2, "python")
    load_models(server.grpc, 2)
    with pytest.raises(BundleError, match=r"golden case differs by 1\.00e-01 in a logit"):
        engines(bundle=odd, version=2)
    engines()  # version 1 is served beside it


# --- a server that goes and comes


@pytest.mark.timed
@pytest.mark.parametrize("shared_memory", [True, False])
def test_a_killed_server_is_said_at_once_and_found_again(
    bundle: Bundle, engines: Engines, server: TritonServer, shared_memory: bool
) -> None:
    engine, images = engines(shared_memory=shared_memory), pictures(bundle, 3)
    expected = BundleRunner(bundle).encode(images)
    engine.encode(images)
    server.kill()
    try:
        for _ in range(3):
            start = time.monotonic()
            with pytest.raises(EngineUnavailableError, match="does not answer"):
                engine.encode(images)
            assert time.monotonic() - start < TIMEOUT_S / 2
        with pytest.raises(NotReadyError, match="does not answer"):
            engine.ready()
    finally:
        server.start()
    np.testing.assert_allclose(until_it_answers(engine, images), expected, rtol=0, atol=TOLERANCE)
    engine.ready()


def test_a_server_killed_under_sixteen_threads_fails_them_all_in_time(
    bundle: Bundle, engines: Engines, server: TritonServer
) -> None:
    engine, images = engines(), pictures(bundle, 3)

    def until_it_fails(_: int) -> float:
        while True:
            start = time.monotonic()
            try:
                engine.encode(images)
            except EngineUnavailableError:
                return time.monotonic() - start

    with ThreadPoolExecutor(16) as pool:
        waits = pool.map(until_it_fails, range(16))
        time.sleep(0.3)
        server.kill()
        try:
            assert max(waits) < TIMEOUT_S + 0.5
        finally:
            server.start()
    until_it_answers(engine, images)


def test_a_server_started_anew_while_nobody_asked_is_verified_before_it_answers(
    bundle: Bundle, engines: Engines, server: TritonServer
) -> None:
    """The connection mends itself unseen; that the server has lost the shared memory gives it away."""
    engine, images = engines(), pictures(bundle, 3)
    before = engine.encode(images)
    with ExitStack() as lent:
        for _ in range(32):
            assert engine._client._regions is not None
            lent.enter_context(engine._client._regions.lend(1, TIMEOUT_S))
    assert len(regions()) >= 32
    server.kill()
    server.start()
    until_connected(engine)
    np.testing.assert_array_equal(engine.encode(images), before)
    assert engine._verified == engine._client.changes == 1  # one lost region says it of all
    assert len(regions_in(server)) == len(regions()) < 32  # the lost ones are gone here too


def test_a_server_that_comes_back_with_another_bundle_never_answers(
    bundle: Bundle, engines: Engines, server: TritonServer, tmp_path: Path
) -> None:
    engine, images = engines(), pictures(bundle, 1)
    other = copy_with(bundle, tmp_path / "other", note=np.zeros(1))
    build_repository(other, tmp_path / "repository", 1, "python")
    repository = server.repository
    server.kill()
    try:
        with pytest.raises(EngineUnavailableError):
            engine.encode(images)
        server.repository = tmp_path / "repository"
        server.start()
        deadline = time.monotonic() + 30
        while "does not answer" in (said := refusal(engine, images)) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert f"version 1 of csr_encoder is bundle {other.digest[:12]}" in said
        with pytest.raises(NotReadyError, match="is bundle"):
            engine.ready()
    finally:
        server.stop()
        server.repository = repository
        server.start()
    until_it_answers(engine, images)


def refusal(engine: TritonEngine, images: np.ndarray) -> str:
    with pytest.raises(EngineUnavailableError) as caught:
        engine.encode(images)
    return str(caught.value)


def test_a_model_that_is_unloaded_is_said_and_used_again_when_it_is_back(
    bundle: Bundle, engines: Engines, server: TritonServer
) -> None:
    engine, images = engines(), pictures(bundle, 1)
    with InferenceServerClient(server.grpc) as client:
        client.unload_model(ENCODER)
        with pytest.raises(EngineUnavailableError, match="does not have what was asked for"):
            engine.encode(images)
        with pytest.raises(NotReadyError, match="csr_encoder has no version 1 that is ready"):
            engine.ready()
        load_models(server.grpc, 1)
    engine.ready()
    assert len(engine.encode(images)) == 1


@pytest.mark.timed
def test_a_server_that_hangs_costs_no_thread_more_than_the_timeout(
    bundle: Bundle, engines: Engines, server: TritonServer
) -> None:
    engine, images = engines(timeout_s=1.0), pictures(bundle, 2)
    before = until_it_answers(engine, images)

    def wait(_: int) -> float:
        start = time.monotonic()
        with pytest.raises(EngineUnavailableError, match="in time"):
            engine.encode(images)
        return time.monotonic() - start

    server.pause()
    try:
        with ThreadPoolExecutor(16) as pool:
            waits = list(pool.map(wait, range(16)))
    finally:
        server.resume()
    assert min(waits) > 0.9 and max(waits) < 4  # one after the other they would wait 16
    np.testing.assert_array_equal(until_it_answers(engine, images), before)


def test_an_overloaded_server_is_called_that_and_not_verified_anew(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config, "QUEUE_LIMIT", 1)
    build_repository(bundle, tmp_path / "repository", 1, "python")
    with triton_server(tmp_path / "repository", MODELS, tmp_path / "log") as small:
        engine = TritonEngine(bundle, small.grpc, 1)
        images = pictures(bundle, 32)

        def ask(_: int) -> str:
            try:
                engine.encode(images)
            except EngineUnavailableError as error:
                return str(error)
            return "answered"

        with ThreadPoolExecutor(16) as pool:
            said = list(pool.map(ask, range(64)))
        engine.close()
    assert "answered" in said
    assert any("is overloaded" in each for each in said)
    assert all(each == "answered" or "is overloaded" in each for each in said)
    assert engine._client.changes == 0


# --- shared memory


@pytest.mark.parametrize(
    ("url", "here"),
    [
        ("127.0.0.1:8001", True),
        ("localhost:8001", True),
        ("[::1]:8001", True),
        ("127.3.2.1:8001", True),
        ("10.0.0.7:8001", False),
        ("triton:8001", False),
        ("[2001:db8::1]:8001", False),
    ],
)
def test_which_addresses_are_this_machines(url: str, here: bool) -> None:
    assert _is_here(url) is here


def test_auto_shares_memory_with_a_server_on_this_machine_and_false_does_not(engines: Engines) -> None:
    assert engines().shares_memory
    assert not engines(shared_memory=False).shares_memory
    assert len(regions()) > 0


def test_closing_leaves_nothing_here_nor_in_the_server(bundle: Bundle, engines: Engines, server: TritonServer) -> None:
    others = regions_in(server)
    engine = engines()
    encode_from_sixteen_threads(engine, bundle)
    held = set(regions())
    assert 1 < len(held) <= 17  # pooled: one for each thread at most, and the one of the first verification
    assert held == regions_in(server) - others
    engine.close()
    assert not regions()
    assert regions_in(server) == others


@pytest.mark.timed
def test_closing_does_not_wait_for_a_server_that_hangs(bundle: Bundle, engines: Engines, server: TritonServer) -> None:
    engine = engines()
    encode_from_sixteen_threads(engine, bundle)
    assert len(regions()) > 2
    server.pause()
    try:
        start = time.monotonic()
        engine.close()
        assert time.monotonic() - start < 4  # one call's time, not each region's
        assert not regions()
    finally:
        server.resume()


@pytest.mark.timed
def test_a_region_of_a_request_that_ran_out_of_time_is_never_lent_again(
    bundle: Bundle, engines: Engines, server: TritonServer
) -> None:
    engine, images = engines(timeout_s=0.5), pictures(bundle, 2)
    before = until_it_answers(engine, images)
    held = set(regions())
    server.pause()
    try:
        with pytest.raises(EngineUnavailableError, match="in time"):
            engine.encode(images)
        late = held - set(regions())
        assert len(late) == 1
    finally:
        server.resume()
    np.testing.assert_array_equal(until_it_answers(engine, images), before)
    assert not late & set(regions())
    engine.close()
    assert not late & regions_in(server)


def test_a_killed_process_leaves_no_shared_memory(bundle: Bundle, server: TritonServer) -> None:
    script = (
        "import sys\nfrom pathlib import Path\n"
        "from csr.bundle.format import Bundle\nfrom serving.engines import TritonEngine\n"
        "engine = TritonEngine(Bundle.open(Path(sys.argv[1])), sys.argv[2], 1, shared_memory=True)\n"
        "print('ready', flush=True)\nsys.stdin.read()"
    )
    command = [sys.executable, "-c", script, str(bundle.path), server.grpc]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        assert regions(process.pid)
        process.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 10
    while regions(process.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not regions(process.pid)


def test_a_server_that_cannot_map_this_machines_memory(
    bundle: Bundle, engines: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in another container: it looks for the region and finds none."""
    register = InferenceServerClient.register_system_shared_memory

    def elsewhere(self: InferenceServerClient, name: str, key: str, size: int, **options: object) -> None:
        register(self, name, f"{key}_elsewhere", size, **options)

    monkeypatch.setattr(InferenceServerClient, "register_system_shared_memory", elsewhere)
    with pytest.raises(ConfigError, match="shared memory is not possible"):
        engines(shared_memory=True)
    engine = engines(shared_memory="auto")
    assert not engine.shares_memory and not regions()
    assert len(engine.encode(pictures(bundle, 1))) == 1


def test_full_shared_memory_costs_time_but_no_answer(
    bundle: Bundle, engines: Engines, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    engine, images = engines(shared_memory=True), pictures(bundle, 30)  # larger than the region that is there already

    def full(descriptor: int, offset: int, size: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    held = regions()
    with caplog.at_level(logging.WARNING):
        answer = engine.encode(images)
    np.testing.assert_allclose(answer, BundleRunner(bundle).encode(images), rtol=0, atol=TOLERANCE)
    assert "goes without shared memory" in caplog.text and "No space left on device" in caplog.text
    assert regions() == held
