from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import grpc
import numpy as np
import pytest
import uvicorn
from fastapi import FastAPI
from fastapi.testclient import TestClient

from csr.bundle.format import Bundle, Manifest
from csr.bundle.runtime import BundleRunner
from csr.interaction.corrections import Interaction, RegionBox
from serving.interfaces.oip import BundleModels, InferenceModels, InferenceServer, ServedVersions, TensorEngine
from serving.interfaces.oip.grpc import InferenceServicer, add_open_inference_to_server
from serving.interfaces.oip.rest import add_open_inference


@dataclass(frozen=True)
class Served:
    """A version that is served."""

    manifest: Manifest
    engine: TensorEngine
    digest: str = "of the bundle"


@dataclass(frozen=True)
class Server:
    """Serves the same models to every request, or fails in the same way at each."""

    models: InferenceModels | Exception

    def inference(self) -> InferenceModels:
        if isinstance(self.models, Exception):
            raise self.models
        return self.models

    def check_ready(self) -> None:
        self.inference()


@pytest.fixture(scope="session")
def runner(bundle: Bundle) -> BundleRunner:
    return BundleRunner(bundle)


@pytest.fixture(scope="session")
def models(bundle: Bundle, runner: BundleRunner) -> BundleModels:
    return BundleModels(ServedVersions({"1": Served(bundle.manifest, runner)}, "1"))


@pytest.fixture(scope="session")
def inputs(bundle: Bundle, tiny_run, runner: BundleRunner) -> dict[str, np.ndarray]:
    """Two studies, each with an interaction of its own, as the ensemble takes them."""
    concepts, side = bundle.manifest.concepts, bundle.manifest.side
    attend, ignore = RegionBox(2, 2, side / 2, side / 3), RegionBox(side / 2, side / 2, side - 1, side - 1, "ignore")
    given = [
        Interaction((attend, ignore), confirmed=(concepts[2],), rejected=(concepts[0],), alpha=0.2),
        Interaction((ignore,), rejected=(concepts[1],), rejection="zero"),
    ]
    tensors = runner.interaction_tensors(given)
    tensors["absent_weight"] = tensors["absent_weight"][:, None]
    return {"image": np.ascontiguousarray(tiny_run.data.images[:2]), **tensors}


@pytest.fixture(scope="session")
def reasoner_inputs(inputs: dict[str, np.ndarray], runner: BundleRunner) -> dict[str, np.ndarray]:
    return {"patches": runner.encode(inputs["image"])} | {k: v for k, v in inputs.items() if k != "image"}


@pytest.fixture(scope="session")
def expected(
    inputs: dict[str, np.ndarray], reasoner_inputs: dict[str, np.ndarray], runner: BundleRunner
) -> dict[str, np.ndarray]:
    """What the method says itself: every output of the encoder and of the reasoner."""
    tensors = reasoner_inputs | {"absent_weight": reasoner_inputs["absent_weight"][:, 0]}
    return runner.run_encoder(inputs["image"]) | runner.run_reasoner(**tensors)


@pytest.fixture
def client(models: BundleModels) -> Iterator[TestClient]:
    with TestClient(rest_app(Server(models)), raise_server_exceptions=False) as client:
        yield client


def rest_app(server: InferenceServer) -> FastAPI:
    app = FastAPI(docs_url=None, redoc_url=None)
    add_open_inference(app, server)
    return app


@contextmanager
def http_server(served: InferenceServer) -> Iterator[str]:
    """The routes under a real uvicorn; gives its address."""
    server = uvicorn.Server(uvicorn.Config(rest_app(served), port=0, log_level="warning", lifespan="off"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "uvicorn ended before it was ready"
            time.sleep(0.02)
        yield f"127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


@contextmanager
def grpc_server(served: InferenceServer) -> Iterator[str]:
    """The servicer under a real ``grpc.aio`` server; gives its address."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def start() -> tuple[grpc.aio.Server, int]:
        server = grpc.aio.server()
        add_open_inference_to_server(InferenceServicer(served), server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        return server, port

    try:
        server, port = asyncio.run_coroutine_threadsafe(start(), loop).result(30)
        yield f"127.0.0.1:{port}"
        asyncio.run_coroutine_threadsafe(server.stop(1), loop).result(30)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
