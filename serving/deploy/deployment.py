"""The Ray Serve deployment: one replica is one process that serves what its configuration says.

Concurrency: a replica answers `ReplicaConfig.ongoing` requests at once on one event loop and computes in threads. Ray
queues a few more and answers 503 with Retry-After beyond that, so a burst costs waiting, never memory. Images that
arrive together are encoded as one batch; interactions never wait for one another. Replicas share nothing but the store,
so any of them can answer, and one that dies takes nothing with it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from ray import serve
from ray.serve.config import AutoscalingConfig, BackpressureConfig
from starlette.types import ASGIApp

from csr.bundle.format import Bundle
from csr.interaction.corrections import Interaction
from serving.deploy.config import BatchConfig, ReplicaConfig, ServerConfig
from serving.deploy.numbers import ClusterNumbers
from serving.deploy.service import Service, engine_maker
from serving.engines import Engine
from serving.interfaces.oip.guarded import GuardedServicer
from serving.interfaces.rest.app import create_server
from serving.telemetry import Telemetry
from serving.telemetry.logs import configure_logging
from serving.telemetry.metrics import FOLDER_VARIABLE, collect


class BatchingEngine:
    """An engine that encodes images which arrive together as one batch, by Ray Serve's own batching.

    Args:
        engine: that computes.
        config: of the batches.
        loop: on which batches gather; `run_encoder` is called from other threads.
        encoded: is told the size of each batch.
    """

    def __init__(
        self, engine: Engine, config: BatchConfig, loop: asyncio.AbstractEventLoop, encoded: Callable[[int], None]
    ) -> None:
        self._engine = engine
        self._loop = loop

        # A thread of its own: those of requests may all be waiting for this one.
        worker = ThreadPoolExecutor(1, "encode")

        @serve.batch(max_batch_size=config.images, batch_wait_timeout_s=config.wait_ms / 1000)
        async def encode(images: list[np.ndarray]) -> list[dict[str, np.ndarray]]:
            encoded(len(images))
            answer = await loop.run_in_executor(worker, engine.run_encoder, np.stack(images))
            return [{name: value[index : index + 1] for name, value in answer.items()} for index in range(len(images))]

        self._encode = encode
        self._worker = worker

    def encode(self, images: np.ndarray) -> np.ndarray:
        return self.run_encoder(images)["patches"]

    def run_encoder(self, images: np.ndarray, outputs: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """All outputs, whichever are asked for: those of a batch may be asked for by others."""
        if len(images) > 1:  # a batch already
            return self._engine.run_encoder(images, outputs)
        return asyncio.run_coroutine_threadsafe(self._encode(images[0]), self._loop).result()

    def reason(
        self, patches: np.ndarray, interactions: Sequence[Interaction], outputs: Sequence[str] | None = None
    ) -> dict[str, np.ndarray]:
        return self._engine.reason(patches, interactions, outputs)

    def run_reasoner(
        self, patches: np.ndarray, outputs: Sequence[str] | None = None, **tensors: np.ndarray
    ) -> dict[str, np.ndarray]:
        return self._engine.run_reasoner(patches, outputs, **tensors)

    def ready(self) -> None:
        self._engine.ready()

    def close(self) -> None:
        self._worker.shutdown(wait=False)
        self._engine.close()


def build(config: ServerConfig, numbers: Path, own_proxy: bool = False, on_cluster: bool = False) -> Any:
    """The Serve application, to be passed to ``serve.run``. Everything is opened in the replica.

    Args:
        config: of the server.
        own_proxy: see `serving.access.addresses.Addresses`.
        numbers: the folder in which replicas of one machine add up their metrics, see `serving.telemetry.metrics`.
        on_cluster: replicas may be on several machines, see `serving.app`.
    """

    @serve.ingress()
    class Replica(GuardedServicer):
        """What Ray starts, asks and stops; by HTTP, and by gRPC through the methods that it inherits."""

        async def __init__(self) -> None:  # type: ignore[misc]  # Ray awaits it
            loop = asyncio.get_running_loop()
            loop.set_default_executor(ThreadPoolExecutor(config.replicas.ongoing, "request"))
            configure_logging(config.telemetry.log_level)
            make = engine_maker(config.engine)
            self._everywhere: ClusterNumbers | None = None
            if on_cluster:
                config.check_secrets(make=False)
                numbers.mkdir(mode=0o700, exist_ok=True)
            telemetry = Telemetry.open(config.telemetry.traces, config.telemetry.sample_ratio)
            if on_cluster:
                own = partial(collect, telemetry.registry)
                self._everywhere = ClusterNumbers(own, serve.get_replica_context().app_name)
                telemetry = replace(telemetry, everywhere=self._everywhere.collect)

            def batching(bundle: Bundle, version: str) -> Engine:
                engine = make(bundle, version)
                return BatchingEngine(engine, config.encoder_batch, loop, telemetry.metrics.batch_encoded)

            self._service = service = await asyncio.to_thread(Service.open, config, telemetry, batching, own_proxy)
            super().__init__(service, service.authenticator, service.telemetry, service.addresses)

        def __serve_build_asgi_app__(self) -> ASGIApp:
            return create_server(self._service)

        async def __del__(self) -> None:
            if self._everywhere is not None:
                self._everywhere.close()
            await asyncio.to_thread(self._service.close)

    return serve.deployment(name="reader", **_options(config.replicas, numbers))(Replica).bind()


def _options(replicas: ReplicaConfig, numbers: Path) -> dict[str, Any]:
    count: dict[str, Any] = {"num_replicas": replicas.least}
    if replicas.most > replicas.least:
        count = {
            "autoscaling_config": AutoscalingConfig(
                min_replicas=replicas.least,
                max_replicas=replicas.most,
                target_ongoing_requests=replicas.target_ongoing,
            )
        }
    return count | {
        "ray_actor_options": {
            "num_cpus": replicas.cpus,
            "num_gpus": replicas.gpus,
            # Of replicas alone: Ray's own processes count too, and must not write there.
            "runtime_env": {"env_vars": {FOLDER_VARIABLE: str(numbers)}},
        },
        "max_ongoing_requests": replicas.ongoing,
        "max_queued_requests": replicas.queued,
        "backpressure_config": BackpressureConfig(retry_after_s=replicas.retry_after_s),
        "graceful_shutdown_timeout_s": replicas.drain_s,
    }
