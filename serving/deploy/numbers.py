"""The numbers of a cluster's machines on one page, without a folder that they share.

Replicas of one machine add theirs up in a folder there (`serving.telemetry.metrics`). Each replica posts its machine's
numbers every few seconds to an actor that all of them find by its name; whichever replica is asked for ``/metrics``
answers with those of all machines, told apart by the label ``node``. A machine that has been silent for `SILENT_S` is
left out: its series end, as those of a server that Prometheus cannot reach, and no sum ever falls.

The actor lives as long as the replica that made it. The next one that finds it gone makes another, which is told of
every machine within `EVERY_S`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import ray
from prometheus_client import Metric
from ray.exceptions import GetTimeoutError, RayError

from serving.telemetry.metrics import NODE_LABEL, labelled

ACTOR = "csr-numbers"
EVERY_S = 2.0
SILENT_S = 20.0
_ANSWER_S = 3.0
_log = logging.getLogger(__name__)


class _Board:
    """What machines said last. An actor."""

    def __init__(self) -> None:
        self._said: dict[str, tuple[float, list[Metric]]] = {}

    def post(self, node: str, numbers: list[Metric]) -> None:
        self._said[node] = (time.monotonic(), numbers)

    def read(self) -> dict[str, list[Metric]]:
        oldest = time.monotonic() - SILENT_S
        return {node: numbers for node, (when, numbers) in self._said.items() if when >= oldest}


class ClusterNumbers:
    """Posts this machine's numbers, and reads those of all. Thread-safe.

    Args:
        own: collects this machine's numbers.
        application: whose replicas belong together.
    """

    def __init__(self, own: Callable[[], Iterable[Metric]], application: str) -> None:
        self._own, self._name = own, f"{ACTOR}-{application}"
        self._node = str(ray.get_runtime_context().get_node_id())[:12]
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep_posting, name="numbers", daemon=True)
        self._thread.start()

    def collect(self) -> list[Metric]:
        """All machines' numbers, each under its ``node``; this one's alone while the others' cannot be read."""
        numbers: Mapping[str, Iterable[Metric]] = {}
        try:
            numbers = ray.get(self._board().read.remote(), timeout=_ANSWER_S)
        except (RayError, GetTimeoutError) as error:
            _log.warning("the numbers of other machines cannot be read: %s", error)
        return labelled(NODE_LABEL, {**numbers, self._node: self._own()})

    def close(self) -> None:
        self._stop.set()
        self._thread.join(EVERY_S)

    def _keep_posting(self) -> None:
        while not self._stop.wait(EVERY_S):
            try:
                ray.get(self._board().post.remote(self._node, list(self._own())), timeout=_ANSWER_S)
            except (RayError, GetTimeoutError) as error:
                _log.debug("the numbers of this machine were not posted: %s", error)

    def _board(self) -> Any:
        return ray.remote(_Board).options(name=self._name, get_if_exists=True, num_cpus=0).remote()
