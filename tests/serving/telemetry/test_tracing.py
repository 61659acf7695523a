"""Spans as a collector receives them: whose child each is, what they say, and what they must not."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from csr.errors import ConfigError
from serving.telemetry.tracing import CLOSE_S, configure_tracing, end_request
from tests.serving.telemetry.collector import Collector, attributes, running_collector

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED, NOT_SAMPLED = f"00-{TRACE}-{PARENT}-01", f"00-{TRACE}-{PARENT}-00"


@pytest.fixture
def collector() -> Iterator[Collector]:
    with running_collector() as collector:
        yield collector


def test_a_request_and_its_steps_are_one_trace_that_continues_the_clients(collector: Collector) -> None:
    tracing = configure_tracing(collector.address, "reader")
    assert tracing.enabled
    with tracing.request({"traceparent": SAMPLED, "tracestate": "vendor=1"}, "req-1") as span:
        tracing.step_ended("decode", 0.25)
        tracing.step_ended("encode", 0.001)
        end_request(span, "POST", "/v1/studies", 201)
    tracing.close()
    assert set(collector.paths) == {"/v1/traces"} and set(collector.services) == {"reader"}
    request = collector.span("POST /v1/studies")
    assert request.kind == Span.SPAN_KIND_SERVER and request.status.code == Status.STATUS_CODE_UNSET
    assert (request.trace_id.hex(), request.parent_span_id.hex(), request.trace_state) == (TRACE, PARENT, "vendor=1")
    assert attributes(request) == {
        "csr.request_id": "req-1",
        "http.request.method": "POST",
        "http.route": "/v1/studies",
        "http.response.status_code": 201,
    }
    for name, seconds in (("decode", 0.25), ("encode", 0.001)):
        step = collector.span(name)
        assert (step.trace_id, step.parent_span_id) == (request.trace_id, request.span_id)
        assert (step.end_time_unix_nano - step.start_time_unix_nano) / 1e9 == pytest.approx(seconds)
        assert attributes(step) == {}
    assert len(collector.spans) == 3


def test_steps_in_threads_are_children_of_their_own_request(collector: Collector) -> None:
    tracing = configure_tracing(collector.address)

    def compute() -> None:
        tracing.step_ended("reason", 0.01)

    async def answer(number: int) -> None:
        with tracing.request({}, f"r{number}") as span:
            await asyncio.to_thread(compute)
            end_request(span, "GET", f"/{number}", 200)

    async def answer_all() -> None:
        await asyncio.gather(*(answer(number) for number in range(8)))

    asyncio.run(answer_all())
    tracing.close()
    requests = {span.span_id: span for span in collector.spans if span.name != "reason"}
    steps = [span for span in collector.spans if span.name == "reason"]
    assert len({span.trace_id for span in requests.values()}) == 8
    assert {step.parent_span_id for step in steps} == set(requests)
    assert all(step.trace_id == requests[step.parent_span_id].trace_id for step in steps)


def test_of_an_error_only_its_class_is_told(collector: Collector) -> None:
    tracing = configure_tracing(collector.address)
    with pytest.raises(ValueError), tracing.request({}, "r") as span:
        end_request(span, "POST", "/v1/studies", 500)
        raise ValueError("doe_john_1970.dcm: is empty")
    tracing.close()
    assert len(collector.spans) == 1
    for sent in collector.spans:
        assert (sent.status.code, sent.status.message) == (Status.STATUS_CODE_ERROR, "ValueError")
        assert not sent.events
        assert b"doe" not in sent.SerializeToString()


@pytest.mark.parametrize(("status", "code"), [(404, Status.STATUS_CODE_UNSET), (503, Status.STATUS_CODE_ERROR)])
def test_only_our_own_mistakes_make_a_request_an_error(collector: Collector, status: int, code: int) -> None:
    tracing = configure_tracing(collector.address)
    with tracing.request({}, "r") as span:
        end_request(span, "GET", "/x", status)
    tracing.close()
    assert collector.span("GET /x").status.code == code


@pytest.mark.parametrize(
    ("ratio", "parent", "kept"),
    [(1, None, 1), (0, None, 0), (0, SAMPLED, 1), (1, NOT_SAMPLED, 0), (1, "malformed", 1), (0, "00-0-0-01", 0)],
)
def test_the_client_decides_what_is_kept_and_else_the_ratio(
    collector: Collector, ratio: float, parent: str | None, kept: int
) -> None:
    tracing = configure_tracing(collector.address, sample_ratio=ratio)
    with tracing.request({"traceparent": parent} if parent else {}, "r") as span:
        end_request(span, "GET", "/x", 200)
    tracing.close()
    assert len(collector.spans) == kept


@pytest.mark.parametrize("path", ["", "/", "/v1/traces", "/v1/traces/"])
def test_an_address_may_name_the_path_or_not(collector: Collector, path: str) -> None:
    tracing = configure_tracing(collector.address + path)
    with tracing.request({}, "r"):
        pass
    tracing.close()
    assert collector.paths == ["/v1/traces"]


def test_without_an_endpoint_nothing_is_traced_and_errors_still_pass() -> None:
    tracing = configure_tracing(None)
    assert not tracing.enabled
    with tracing.request({"traceparent": SAMPLED}, "r") as span:
        assert not span.is_recording()
        tracing.step_ended("decode", 0.1)
        end_request(span, "GET", "/x", 200)
    with pytest.raises(KeyError), tracing.request({}, "r"):
        raise KeyError
    tracing.close()


@pytest.mark.timed
def test_a_collector_that_is_gone_delays_no_request_and_the_end_only_for_a_while() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: refused
        tracing = configure_tracing(f"http://127.0.0.1:{taken.getsockname()[1]}")
        began = time.monotonic()
        for number in range(600):
            with tracing.request({}, f"r{number}"):
                tracing.step_ended("reason", 0.001)
        assert time.monotonic() - began < 2
        ending = time.monotonic()
        tracing.close()
        assert time.monotonic() - ending < CLOSE_S + 2


@pytest.mark.parametrize("endpoint", ["collector:4318", "grpc://collector:4317", "http://", "", "/v1/traces"])
def test_an_endpoint_that_is_no_address_is_refused_and_not_repeated(endpoint: str) -> None:
    with pytest.raises(ConfigError, match=r"telemetry\.endpoint: is not an address such as http://collector:4318$"):
        configure_tracing(endpoint)


@pytest.mark.parametrize("ratio", [-0.1, 1.1, float("nan")])
def test_a_ratio_that_is_none_is_refused(ratio: float) -> None:
    with pytest.raises(ConfigError, match=r"telemetry\.sample_ratio"):
        configure_tracing(None, sample_ratio=ratio)
