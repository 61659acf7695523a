"""The Ray Serve deployment: one replica is one process that serves one bundle.

Concurrency: a replica answers `Limits.ongoing` requests at once on one event loop and computes in threads. Ray queues
a few more and answers 503 with Retry-After beyond that, so a burst costs waiting, never memory. Studies are held by
the replica that encoded them; there is one replica, because a second would not find them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve.config import BackpressureConfig

from serving.api import create_app
from serving.dataplane import CACHE_BYTES
from serving.provider import dataplane_provider


@dataclass(frozen=True)
class Limits:
    """What one replica takes on.

    Args:
        cache_bytes: budget of encoded studies in memory.
        ongoing: requests answered at once. queued: requests that may wait beside them.
    """

    cache_bytes: int = CACHE_BYTES
    ongoing: int = 32
    queued: int = 128


def build(bundle: Path, limits: Limits) -> Any:
    """The Serve application, to be passed to ``serve.run``. The bundle is opened in the replica."""

    def app() -> FastAPI:
        return create_app(dataplane_provider(bundle, limits.cache_bytes))

    deployment = serve.deployment(
        name="reader",
        num_replicas=1,
        ray_actor_options={"num_cpus": 1},
        max_ongoing_requests=limits.ongoing,
        max_queued_requests=limits.queued,
        backpressure_config=BackpressureConfig(retry_after_s=1),
        graceful_shutdown_timeout_s=5,
    )
    return deployment(serve.ingress(app)()).bind()
