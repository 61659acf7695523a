"""Stages of the comparison run side by side as soon as what they need is done."""

from __future__ import annotations

import pytest

from pipelines.comparison import fan_out


class OneByOne:
    """Ray, as far as `fan_out.run_stages` sees it: stages end in the order in which they were started."""

    def __init__(self, failing: str = "") -> None:
        self.failing, self.started, self.side_by_side = failing, [], []

    def start(self, name: str) -> str:
        self.started.append(name)
        return name

    def wait(self, running: list[str]) -> tuple[list[str], list[str]]:
        self.side_by_side.append(set(running))
        return running[:1], running[1:]

    def get(self, name: str) -> tuple[str, int, str]:
        return name, int(name == self.failing), "what went wrong"


GRAPH: dict[str, set[str]] = {
    **{name: set() for name in ("a_trials", "b_trials", "c_trials@x", "data")},
    "body": {"a_trials"},
    "system": {"body", "b_trials"},
    "other": {"data"},
    "report": {"system", "other"},
}


@pytest.mark.parametrize("at_once", [1, 2, 9])
def test_stages_run_side_by_side_after_what_they_need(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fan_out, "ray", cluster := OneByOne())
    assert fan_out.run_stages(GRAPH, set(GRAPH), cluster.start, at_once) == ([], [])
    assert sorted(cluster.started) == sorted(GRAPH)
    place = {name: cluster.started.index(name) for name in GRAPH}
    assert all(place[other] < place[name] for name, others in GRAPH.items() for other in others)
    most = max(sum(fan_out.TRIALS in name for name in each) for each in cluster.side_by_side)
    assert most == min(at_once, 3)
    assert any({"other", "body"} <= each for each in cluster.side_by_side), "none waits for a whole level"


def test_a_stage_that_fails_keeps_back_those_that_need_it_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fan_out, "ray", cluster := OneByOne(failing="body"))
    assert fan_out.run_stages(GRAPH, set(GRAPH), cluster.start, 2) == (["body"], ["report", "system"])
    assert sorted(cluster.started) == sorted(set(GRAPH) - {"report", "system"})


def test_stages_that_are_not_wanted_are_taken_to_be_done(monkeypatch: pytest.MonkeyPatch) -> None:
    """And between two that are they keep the order."""
    monkeypatch.setattr(fan_out, "ray", cluster := OneByOne())
    assert fan_out.run_stages(GRAPH, {"report", "a_trials"}, cluster.start, 1) == ([], [])
    assert cluster.started == ["a_trials", "report"]
