"""What a server says of itself: metrics, traces, logs, and how far studies have drifted from the training data."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Metric

from serving.telemetry.metrics import Metrics, forget_dead_processes, page, render
from serving.telemetry.tracing import Tracing, configure_tracing


@dataclass(frozen=True)
class Telemetry:
    """Who counts and who traces in this process."""

    metrics: Metrics
    tracing: Tracing
    registry: CollectorRegistry
    everywhere: Callable[[], Iterable[Metric]] | None = None  # collects the numbers of all nodes, if there are others

    @classmethod
    def open(cls, endpoint: str | None = None, sample_ratio: float = 1.0) -> Telemetry:
        """Args:
            endpoint, sample_ratio: see `serving.telemetry.tracing.configure_tracing`.

        Raises:
            ConfigError: the endpoint is no address of HTTP.
        """
        forget_dead_processes()
        registry = CollectorRegistry()
        tracing = configure_tracing(endpoint, sample_ratio=sample_ratio)
        return cls(Metrics(registry), tracing, registry)

    def page(self) -> tuple[bytes, str]:
        """What Prometheus reads, and its content type."""
        return render(self.registry) if self.everywhere is None else page(self.everywhere())
