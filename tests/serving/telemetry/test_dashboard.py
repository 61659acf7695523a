"""Dashboard, alerts and scrape configuration speak of the metrics that there are, and the dashboard of all of them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric

from serving.telemetry.drift import ALARM
from serving.telemetry.metrics import Metrics, Step

INFRA = Path(__file__).parents[3] / "infra"
SUFFIXES = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}
LABELS = {
    "csr_request_seconds": {"route", "method", "status"},
    "csr_refusals": {"code"},
    "csr_unauthorised": {"reason"},
    "csr_step_seconds": {"step"},
    "csr_feature_cache_lookups": {"outcome"},
    "csr_predictions": {"version", "top"},
    "csr_abstentions": {"version"},
    "csr_help_requests": {"version"},
    "csr_interactions": {"kind"},
    "csr_interaction_flips": {"kind"},
    "csr_concept_drift": {"concept"},
    "csr_misfit_reasons": {"reason"},
    "csr_model_info": {"role", "version", "digest"},
    "csr_dicom_seconds": {"operation"},
    "csr_dicom_failures": {"operation"},
}


def families() -> dict[str, Metric]:
    registry = CollectorRegistry()
    Metrics(registry)
    return {family.name: family for family in registry.collect()}


FAMILIES = families()
SERIES = {
    name + suffix: name for name, family in FAMILIES.items() for suffix in SUFFIXES[family.type]
}  # as PromQL names them


def panels() -> list[dict[str, Any]]:
    return [panel for panel in json.loads((INFRA / "grafana/csr.json").read_text())["panels"] if panel["type"] != "row"]


def dashboard() -> list[str]:
    return [target["expr"] for panel in panels() for target in panel["targets"]]


def rules() -> list[dict[str, Any]]:
    return [
        rule
        for group in yaml.safe_load((INFRA / "prometheus/alerts.yml").read_text())["groups"]
        for rule in group["rules"]
    ]


def alerts() -> list[str]:
    return [rule["expr"] for rule in rules()]


def used(expression: str) -> set[str]:
    return set(re.findall(r"\bcsr_\w+", expression))


def grouped(expression: str) -> Iterator[tuple[set[str], set[str]]]:
    """Labels of each ``by (…)`` and the series of the brackets that follow it."""
    for found in re.finditer(r"\bby \(([^)]*)\) (\((?:[^()]|\([^()]*\))*\))", expression):
        yield set(re.split(r",\s*", found[1])), used(found[2])


@pytest.mark.parametrize("expression", [*dashboard(), *alerts()])
def test_an_expression_names_metrics_labels_and_kinds_that_exist(expression: str) -> None:
    assert used(expression) and used(expression) <= set(SERIES)
    for name in used(expression):
        counted = FAMILIES[SERIES[name]].type != "gauge"
        selector = re.escape(name) + r"(?:\{[^}]*\})?"
        calls = re.findall(r"\b(?:rate|increase)\(" + selector + r"\[", expression)
        assert len(calls) == (len(re.findall(rf"\b{name}\b", expression)) if counted else 0), name
    for labels, names in grouped(expression):
        for name in names:
            own = LABELS.get(SERIES[name], set()) | ({"le"} if name.endswith("_bucket") else set())
            assert labels <= own | {"instance"}
    for name, selected in re.findall(r"\b(csr_\w+)\{([^}]*)\}", expression):
        assert set(re.findall(r"(\w+)=", selected)) <= LABELS[SERIES[name]]
    assert expression.count("(") == expression.count(")")


def test_the_labels_here_are_those_of_the_metrics() -> None:
    metrics = Metrics(CollectorRegistry())
    own = {held._name: set(held._labelnames) for held in vars(metrics).values() if hasattr(held, "_labelnames")}
    children = {name: {key for sample in family.samples for key in sample.labels} for name, family in FAMILIES.items()}
    for name in FAMILIES:
        assert (own.get(name, set()) | children[name]) - {"le"} == LABELS.get(name, set()), name


def test_the_dashboard_shows_every_metric() -> None:
    shown = {SERIES[name] for expression in dashboard() for name in used(expression)}
    assert shown == set(FAMILIES)


def test_panels_say_what_they_show_and_do_not_overlap() -> None:
    every = json.loads((INFRA / "grafana/csr.json").read_text())["panels"]
    assert len({panel["id"] for panel in every}) == len(every)
    cells: set[tuple[int, int]] = set()
    for panel in every:
        place = panel["gridPos"]
        own = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not own & cells and max(x for x, _ in own) < 24
        cells |= own
    for panel in panels():
        assert panel["title"] and panel["description"].endswith(".")
        assert panel["datasource"] == {"uid": "${datasource}", "type": "prometheus"}
        for target in panel["targets"]:
            named = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            assert named <= set().union(*(labels for labels, _ in grouped(target["expr"])))


def test_latency_is_shown_at_three_quantiles_by_route_and_by_step() -> None:
    for metric, by in (("csr_request_seconds", "route"), ("csr_step_seconds", "step")):
        asked = [expression for expression in dashboard() if f"{metric}_bucket" in expression]
        assert [re.findall(r"histogram_quantile\(([\d.]+)", expression) for expression in asked] == [
            ["0.5"],
            ["0.95"],
            ["0.99"],
        ]
        assert all(f"by (le, {by})" in expression for expression in asked)
    assert "encode" in get_args(Step)


def test_alerts_say_how_grave_they_are_and_what_to_do() -> None:
    names = [rule["alert"] for rule in rules()]
    assert names == [
        "CsrNotReady",
        "CsrErrors",
        "CsrSlow",
        "CsrConceptDrift",
        "CsrMisfits",
        "CsrFitDrift",
        "CsrLedgerFails",
    ]
    for rule in rules():
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert set(rule["annotations"]) == {"summary", "description"}
    for name in ("CsrConceptDrift", "CsrFitDrift"):
        assert rules()[names.index(name)]["expr"].endswith(f"> {ALARM}")


def test_prometheus_scrapes_the_metrics_and_reads_the_alerts() -> None:
    about = yaml.safe_load((INFRA / "prometheus/prometheus.yml").read_text())
    assert [(INFRA / "prometheus" / name).is_file() for name in about["rule_files"]] == [True]
    (job,) = about["scrape_configs"]
    assert (job["job_name"], job["metrics_path"]) == ("csr", "/metrics")
    assert any(f'up{{job="{job["job_name"]}"}}' in expression for expression in alerts())
