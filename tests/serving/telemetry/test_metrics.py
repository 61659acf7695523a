"""Each method moves its own numbers and no others, in one process and over several."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from csr.errors import ConfigError
from csr.interaction.corrections import Interaction, RegionBox
from serving.errors import UnknownStudyError
from serving.interfaces.schemas import Fits, MisfitReason
from serving.telemetry.metrics import (
    FOLDER_VARIABLE,
    Metrics,
    collect,
    forget_process,
    labelled,
    page,
    prepare_folder,
    render,
)
from tests.serving.telemetry.samples import Samples, parse, read, value

BOX = (RegionBox(0, 0, 8, 8),)
Change = dict[tuple[str, tuple[tuple[str, str], ...]], float]


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def metrics(registry: CollectorRegistry) -> Metrics:
    return Metrics(registry)


def changed(before: Samples, after: Samples) -> Change:
    """What moved, without the buckets."""
    moved = {key: after[key] - before.get(key, 0.0) for key in after if not key[0].endswith("_bucket")}
    return {key: by for key, by in moved.items() if by}


def one(name: str, by: float = 1, **labels: str) -> Change:
    return {(name, tuple(sorted(labels.items()))): by}


def timed(name: str, seconds: float, **labels: str) -> Change:
    return one(f"{name}_count", **labels) | one(f"{name}_sum", seconds, **labels)


def fits(score: float, *codes: Any) -> Fits:
    reasons = [MisfitReason(code=code, message=code) for code in codes]
    return Fits(score=score, limit=1.0, reasons=reasons, action="warn" if codes else "none")


MODEL = {"role": "champion", "version": "7", "digest": "a" * 12}
CALLS: list[tuple[Callable[[Metrics], None], Change]] = [
    (lambda m: m.request_began(), one("csr_requests_in_progress")),
    (
        lambda m: m.request_ended("/v1/x", "GET", 200, 0.5),
        timed("csr_request_seconds", 0.5, route="/v1/x", method="GET", status="200")
        | one("csr_requests_in_progress", -1),
    ),
    (lambda m: m.refused(UnknownStudyError("x")), one("csr_refusals_total", code="unknown_study")),
    (lambda m: m.rate_limited(), one("csr_rate_limited_total")),
    (lambda m: m.unauthorised("forbidden"), one("csr_unauthorised_total", reason="forbidden")),
    (lambda m: m.step("encode", 0.25), timed("csr_step_seconds", 0.25, step="encode")),
    (lambda m: m.batch_encoded(3), timed("csr_encoder_batch_images", 3)),
    (lambda m: m.cache_lookup(True), one("csr_feature_cache_lookups_total", outcome="hit")),
    (lambda m: m.cache_lookup(False), one("csr_feature_cache_lookups_total", outcome="miss")),
    (lambda m: m.cache_size(2, 700), one("csr_feature_cache_entries", 2) | one("csr_feature_cache_bytes", 700)),
    (lambda m: m.predicted("7", "x", False, False), one("csr_predictions_total", version="7", top="x")),
    (
        lambda m: m.predicted("7", "x", True, True),
        one("csr_predictions_total", version="7", top="x")
        | one("csr_abstentions_total", version="7")
        | one("csr_help_requests_total", version="7"),
    ),
    (lambda m: m.interacted(Interaction(), False), one("csr_interactions_total", kind="none")),
    (lambda m: m.interacted(Interaction(BOX), False), one("csr_interactions_total", kind="boxes")),
    (lambda m: m.interacted(Interaction(rejected=("a",)), False), one("csr_interactions_total", kind="answers")),
    (
        lambda m: m.interacted(Interaction(BOX, confirmed=("a",)), True),
        one("csr_interactions_total", kind="both") | one("csr_interaction_flips_total", kind="both"),
    ),
    (lambda m: m.concept_drift({"a": 0.3}), one("csr_concept_drift", 0.3, concept="a")),
    (lambda m: m.judged(fits(0.5)), one("csr_fit_score_count")),  # scores can be negative: Prometheus keeps no sum
    (
        lambda m: m.judged(fits(4.0, "layout")),
        one("csr_fit_score_count") | one("csr_misfits_total") | one("csr_misfit_reasons_total", reason="layout"),
    ),
    (lambda m: m.fit_drift(0.3), one("csr_fit_drift", 0.3)),
    (lambda m: m.ledger_appended(0.125), timed("csr_ledger_append_seconds", 0.125)),
    (lambda m: m.ledger_failed(), one("csr_ledger_failures_total")),
    (lambda m: m.ready(True), one("csr_ready")),
    (lambda m: m.model_served("champion", "7", "a" * 64), one("csr_model_info", **MODEL)),
    (lambda m: m.rolled_out(), one("csr_rollouts_total")),
    (lambda m: m.rollout_refused(), one("csr_rollout_refusals_total")),
    (lambda m: m.challenger_compared(True), one("csr_challenger_comparisons_total")),
    (
        lambda m: m.challenger_compared(False),
        one("csr_challenger_comparisons_total") | one("csr_challenger_disagreements_total"),
    ),
    (lambda m: m.challenger_dropped(), one("csr_challenger_dropped_total")),
    (lambda m: m.dicom("store", 0.5), timed("csr_dicom_seconds", 0.5, operation="store")),
    (lambda m: m.dicom_failed("search"), one("csr_dicom_failures_total", operation="search")),
]


@pytest.mark.parametrize(("call", "expected"), CALLS)
def test_a_call_moves_its_numbers_and_no_others(
    registry: CollectorRegistry, metrics: Metrics, call: Callable[[Metrics], None], expected: Change
) -> None:
    before = read(registry)
    call(metrics)
    assert changed(before, read(registry)) == pytest.approx(expected)


def test_nothing_of_the_library_leaks_out(metrics: Metrics) -> None:
    assert all(name.startswith("_") for name in vars(metrics))
    tried = {call.__code__.co_names[0] for call, _ in CALLS} | {"model_withdrawn"}
    assert {name for name in dir(metrics) if not name.startswith("_")} == tried


@pytest.mark.parametrize(
    "call",
    [
        lambda m: m.step("Doe^John", 1.0),
        lambda m: m.unauthorised("Doe^John"),
        lambda m: m.dicom("Doe^John", 1.0),
        lambda m: m.dicom_failed("Doe^John"),
    ],
)
def test_a_label_of_no_set_is_an_error_and_no_series(
    registry: CollectorRegistry, metrics: Metrics, call: Callable[[Metrics], None]
) -> None:
    with pytest.raises(KeyError):
        call(metrics)
    assert "Doe" not in render(registry)[0].decode()


def test_buckets_resolve_a_tenth_of_a_millisecond_to_ten_seconds(registry: CollectorRegistry, metrics: Metrics) -> None:
    metrics.step("reason", 0.00008)
    metrics.step("reason", 9.0)
    samples = read(registry)
    bounds = [
        (float(dict(labels)["le"]), count)
        for (name, labels), count in samples.items()
        if name == "csr_step_seconds_bucket" and ("step", "reason") in labels
    ]
    assert [bound for bound, _ in bounds] == sorted(bound for bound, _ in bounds)
    assert bounds[0] == (1e-4, 1) and bounds[-2:] == [(10.0, 2), (math.inf, 2)]
    assert max(high / low for (low, _), (high, _) in pairwise(bounds[:-1])) <= 2.5


def test_a_model_that_is_replaced_is_no_longer_served(registry: CollectorRegistry, metrics: Metrics) -> None:
    metrics.model_served("champion", "7", "a" * 64)
    metrics.model_served("challenger", "8", "b" * 64)
    metrics.model_served("champion", "8", "b" * 64)
    metrics.model_withdrawn("challenger")
    served = {labels: at for (name, labels), at in read(registry).items() if name == "csr_model_info"}
    assert {(dict(labels)["role"], dict(labels)["version"]): at for labels, at in served.items()} == {
        ("champion", "7"): 0,
        ("challenger", "8"): 0,
        ("champion", "8"): 1,
    }


def test_drift_without_a_value_is_no_number(registry: CollectorRegistry, metrics: Metrics) -> None:
    metrics.concept_drift({"a": 0.3, "b": None})
    metrics.concept_drift({"a": None})
    samples = read(registry)
    assert math.isnan(value(samples, "csr_concept_drift", concept="a"))
    assert math.isnan(value(samples, "csr_concept_drift", concept="b"))


def test_a_folder_that_comes_too_late_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    with pytest.raises(ConfigError, match=f"{FOLDER_VARIABLE}: was changed after"):
        Metrics(CollectorRegistry())


WRITER = """
import os, sys
from prometheus_client import CollectorRegistry
from csr.interaction.corrections import Interaction
from serving.telemetry.metrics import Metrics
share = int(sys.argv[1])
metrics = Metrics(CollectorRegistry())
for _ in range(share):
    metrics.request_began()
    metrics.request_ended("/v1/x", "GET", 200, 0.25)
    metrics.step("encode", 0.0002)
metrics.request_began()
metrics.cache_size(share, share * 100)
metrics.concept_drift({"a": 0.1 * share, "b": None if share == 1 else 0.5})
metrics.ready(share > 1)
metrics.model_served("champion", str(share), "c" * 64)
metrics.interacted(Interaction(), flipped=True)
print(os.getpid(), flush=True)
sys.stdin.read()
"""
READER = "import sys; from serving.telemetry.metrics import render; sys.stdout.buffer.write(render()[0])"


def aggregated(folder: Path) -> Samples:
    environment = os.environ | {FOLDER_VARIABLE: str(folder)}
    done = subprocess.run([sys.executable, "-c", READER], env=environment, capture_output=True, check=True)
    return parse(done.stdout.decode())


def test_two_processes_are_one_page_and_a_dead_one_leaves_its_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "metrics"
    prepare_folder(folder)
    environment = os.environ | {FOLDER_VARIABLE: str(folder)}
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(share)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for share in (1, 2)
    ]
    try:
        pids = []
        for writer in writers:
            assert writer.stdout is not None
            pids.append(int(writer.stdout.readline()))
        samples = aggregated(folder)
        assert value(samples, "csr_request_seconds_count", route="/v1/x", method="GET", status="200") == 3
        assert value(samples, "csr_request_seconds_sum", route="/v1/x", method="GET", status="200") == 0.75
        assert value(samples, "csr_step_seconds_bucket", step="encode", le="0.0001") == 0
        assert value(samples, "csr_step_seconds_bucket", step="encode", le="0.00025") == 3
        assert value(samples, "csr_requests_in_progress") == 2
        assert value(samples, "csr_feature_cache_bytes") == 300
        assert value(samples, "csr_interaction_flips_total", kind="none") == 2
        assert value(samples, "csr_ready") == 0  # one of them is not
        for version in ("1", "2"):
            assert value(samples, "csr_model_info", role="champion", version=version, digest="c" * 12) == 1
        first, second = (str(pid) for pid in pids)
        assert value(samples, "csr_concept_drift", concept="a", pid=first) == 0.1
        assert value(samples, "csr_concept_drift", concept="b", pid=second) == 0.5
        assert math.isnan(value(samples, "csr_concept_drift", concept="b", pid=first))
    finally:
        for writer in writers:
            writer.communicate("")

    monkeypatch.setenv(FOLDER_VARIABLE, str(folder))
    forget_process(pids[0])
    samples = aggregated(folder)
    assert value(samples, "csr_request_seconds_count", route="/v1/x", method="GET", status="200") == 3
    assert value(samples, "csr_requests_in_progress") == 1
    assert value(samples, "csr_feature_cache_bytes") == 200
    assert value(samples, "csr_ready") == 1
    assert not [labels for name, labels in samples if name == "csr_concept_drift" and ("pid", first) in labels]
    prepare_folder(folder)
    assert aggregated(folder) == {}


def test_the_numbers_of_several_nodes_are_one_page_that_tells_them_apart() -> None:
    registries = {"a1": CollectorRegistry(), "b2": CollectorRegistry()}
    for turns, registry in enumerate(registries.values(), 1):
        metrics = Metrics(registry)
        metrics.ready(turns == 1)
        for _ in range(turns):
            metrics.step("encode", 0.2 * turns)
    text = page(labelled("node", {node: collect(registry) for node, registry in registries.items()}))[0].decode()
    assert text.count("# TYPE csr_step_seconds histogram") == 1
    expected = {
        (name, tuple(sorted([*labels, ("node", node)]))): number
        for node, registry in registries.items()
        for (name, labels), number in read(registry).items()
        if not math.isnan(number)
    }
    assert {key: number for key, number in parse(text).items() if not math.isnan(number)} == expected
    assert 'csr_ready{node="a1"} 1.0\ncsr_ready{node="b2"} 0.0\n' in text


def test_the_folder_is_its_owners_alone(tmp_path: Path) -> None:
    prepare_folder(tmp_path / "metrics")
    assert (tmp_path / "metrics").stat().st_mode & 0o777 == 0o700


def test_without_a_folder_a_dead_process_leaves_nothing_to_take_out(metrics: Metrics) -> None:
    forget_process(1)
