"""Traces by OpenTelemetry: a span for each request and each step of its answer, sent to a collector by OTLP over HTTP.

A client's ``traceparent`` (W3C Trace Context) is continued, its decision to sample included. Spans are sent by a thread
of their own and dropped when the collector does not keep up, so no request ever waits for it.

Attributes are routes, statuses, request ids and digest prefixes. Of an exception a span says its class alone: messages
may hold the name of an uploaded file, and so a patient's.

Nothing is global: who is given a `Tracing` traces, and one without an endpoint does nothing.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from urllib.parse import urlsplit

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import NoOpTracer, Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from csr.errors import ConfigError
from serving.telemetry.metrics import Step

EXPORT_TIMEOUT_S = 5
CLOSE_S = 2  # a server that must end does not wait longer for its collector
_TRACES = "/v1/traces"


class Tracing:
    """Opens spans. Thread-safe; a span's parent is the one that is open in the same context.

    Args:
        provider: makes them; None: there are none.
    """

    def __init__(self, provider: TracerProvider | None) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("csr.serving") if provider else NoOpTracer()
        self._propagator = TraceContextTextMapPropagator()

    @property
    def enabled(self) -> bool:
        """Whether spans are made at all."""
        return self._provider is not None

    @contextmanager
    def request(self, headers: Mapping[str, str], request_id: str) -> Iterator[Span]:
        """A request's span.

        Args:
            headers: ``traceparent`` and ``tracestate`` as far as the client sent them.
            request_id: ours or the client's.
        """
        parent = self._propagator.extract(headers, Context())
        with self._span("request", SpanKind.SERVER, parent) as span:
            span.set_attribute("csr.request_id", request_id)
            yield span

    def step_ended(self, step: Step, seconds: float) -> None:
        """A step's span within the request's: it ends now and took so long."""
        if self._provider:
            end = time.time_ns()
            self._tracer.start_span(step, start_time=end - round(seconds * 1e9)).end(end)

    def close(self) -> None:
        """Sends what is left, within `CLOSE_S`, and ends the thread."""
        if self._provider:
            self._provider.shutdown()

    @contextmanager
    def _span(self, name: str, kind: SpanKind, parent: Context | None = None) -> Iterator[Span]:
        with self._tracer.start_as_current_span(
            name, parent, kind, record_exception=False, set_status_on_exception=False
        ) as span:
            try:
                yield span
            except Exception as error:
                span.set_status(Status(StatusCode.ERROR, type(error).__name__))
                raise


class _Sender(BatchSpanProcessor):
    """Sends in a thread; at the end what is left, within `CLOSE_S`."""

    def __init__(self, exporter: OTLPSpanExporter) -> None:
        super().__init__(exporter)
        self._sends_by = exporter

    def shutdown(self) -> None:
        limit = threading.Timer(CLOSE_S, self._sends_by.shutdown)
        limit.start()
        super().shutdown()
        limit.cancel()


def end_request(span: Span, method: str, route: str, status: int) -> None:
    """What is known of a request only once it is answered."""
    span.update_name(f"{method} {route}")
    span.set_attributes(
        {"http.request.method": method, "http.route": route, "http.response.status_code": status},
    )
    if status >= 500:
        span.set_status(StatusCode.ERROR)


def configure_tracing(endpoint: str | None, service_name: str = "csr", sample_ratio: float = 1.0) -> Tracing:
    """Tracing that sends to a collector, or none.

    Args:
        endpoint: the collector's address, such as ``http://collector:4318``; ``/v1/traces`` is added unless it is
            there. None: nothing is traced. Headers and certificates come from OpenTelemetry's own variables.
        service_name: what the spans call this server.
        sample_ratio: the share in 0..1 of traces that are kept, where the client did not decide.

    Raises:
        ConfigError: the endpoint is no address of HTTP, or the ratio is none.
    """
    if not 0 <= sample_ratio <= 1:
        raise ConfigError(f"telemetry.sample_ratio: {sample_ratio} is not in 0..1")
    if endpoint is None:
        return Tracing(None)
    address = urlsplit(endpoint)
    if address.scheme not in ("http", "https") or not address.hostname:
        raise ConfigError("telemetry.endpoint: is not an address such as http://collector:4318")
    path = address.path.rstrip("/").removesuffix(_TRACES) + _TRACES
    exporter = OTLPSpanExporter(endpoint=address._replace(path=path).geturl(), timeout=EXPORT_TIMEOUT_S)
    provider = TracerProvider(
        sampler=ParentBased(TraceIdRatioBased(sample_ratio)),
        resource=Resource.create({SERVICE_NAME: service_name}),
        shutdown_on_exit=False,
    )
    provider.add_span_processor(_Sender(exporter))
    return Tracing(provider)
