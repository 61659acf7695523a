"""The simulation agrees with queueing theory where that says anything; the plan's arithmetic is done by hand."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from csr.errors import ConfigError
from tests.bench import plan
from tests.bench.plan import Assumptions, Served, hours, interactions, read_served, replicas, storage
from tests.bench.queueing import System, simulate

REQUESTS = 120_000


def erlang_c(servers: int, offered: float) -> float:
    """The probability that all c servers are busy, for offered load a = λ·s (Erlang 1917)."""
    last = offered**servers / math.factorial(servers) * servers / (servers - offered)
    return last / (sum(offered**k / math.factorial(k) for k in range(servers)) + last)


@pytest.mark.parametrize(("cores", "busy"), [(1, 0.5), (1, 0.8), (4, 0.7), (16, 0.85)])
def test_mean_waiting_is_that_of_an_m_m_c_queue(cores: int, busy: float) -> None:
    service = 0.01
    rate = busy * cores / service
    expected = erlang_c(cores, busy * cores) * service / (cores * (1 - busy))
    found = [simulate(System(rate, 1, cores, service), REQUESTS // 2, seed) for seed in range(6)]
    waited = np.concatenate([each.waited_s for each in found])
    assert waited.mean() == pytest.approx(expected, rel=0.08)
    assert (waited > 0).mean() == pytest.approx(erlang_c(cores, busy * cores), abs=0.02)
    assert found[0].latency_s.mean() - found[0].waited_s.mean() == pytest.approx(service, rel=0.02)


@pytest.mark.parametrize("busy", [0.3, 0.6, 0.8])
def test_mean_waiting_is_that_of_an_m_d_1_queue(busy: float) -> None:
    """W = ρ·s / 2(1 − ρ) (Pollaczek–Khinchine)."""
    found = simulate(System(busy / 0.01, 1, 1, 0.01, service="constant"), REQUESTS)
    assert found.waited_s.mean() == pytest.approx(busy * 0.01 / (2 * (1 - busy)), rel=0.08)
    assert found.entries != found.entries, "there is no ledger"


def test_two_replicas_of_one_queue_each_wait_between_one_queue_and_none_shared() -> None:
    """The shorter of two queues: worse than one queue for both, better than queues drawn by chance."""
    found = simulate(System(160, 2, 1, 0.01), REQUESTS).waited_s.mean()
    shared, apart = erlang_c(2, 1.6) * 0.01 / (2 * 0.2), 0.8 * 0.01 / 0.2
    assert shared < found < apart


def test_a_ledger_that_is_always_writing_makes_each_wait_half_a_transaction_and_its_own() -> None:
    """Many arrive during a transaction of length F, at random: F/2 until it ends, then F. Groups of λ·F."""
    found = simulate(System(5000, 1, 64, 1e-6, commit_s=0.01, service="constant"), REQUESTS)
    assert found.latency_s.mean() == pytest.approx(0.015, rel=0.02)
    assert found.entries == pytest.approx(50, rel=0.03)
    assert found.commits == pytest.approx(100, rel=0.02)


def test_with_several_replicas_a_turn_comes_round_once_in_as_many_transactions() -> None:
    """R replicas: a group waits for the others' turns, so R·F/2 on average and then F; groups of λ·F."""
    found = simulate(System(5000, 4, 64, 1e-6, commit_s=0.01, service="constant"), REQUESTS)
    assert found.entries == pytest.approx(50, rel=0.05)
    assert found.latency_s.mean() == pytest.approx(4 * 0.01 / 2 + 0.01, rel=0.08)


def test_entries_that_take_their_time_lengthen_transactions_and_grouping_absorbs_the_rest() -> None:
    """A transaction of n = λ·T entries takes T = F + n·e, so T = F / (1 − λ·e)."""
    found = simulate(System(2000, 1, 64, 1e-6, commit_s=0.004, entry_s=0.00025, service="constant"), REQUESTS)
    assert found.entries == pytest.approx(2000 * 0.004 / (1 - 0.5), rel=0.06)


def test_every_request_is_answered_once_and_none_before_its_time() -> None:
    system = System(300, 3, 2, 0.008, commit_s=0.003, entry_s=0.0001)
    found = simulate(system, 5000, warm_up=0)
    assert len(found.latency_s) == 5000 and (found.waited_s >= 0).all()
    assert (found.latency_s > found.waited_s + 0.003).all()
    assert found.percentile(50) < found.percentile(99)


@pytest.mark.parametrize("system", [System(100, 1, 1, 0.01), System(100, 9, 1, 0.001, 0.001, 0.01)])
def test_more_than_can_be_done_is_refused(system: System) -> None:
    with pytest.raises(ValueError, match="too much to do"):
        simulate(system, 10)


REPORT = """`make bench-serving` on 2 cores (x86_64), clients on the same cores
| of that on the server, by its own clock | 2.92 ms | 5.1 × |
3200 interactions, all recorded: 1,271 a second; p50 114.0 ms
A replica after 1,000 interactions and each 2,000 more: 412, 413 MiB.
"""


def test_service_times_are_those_of_the_report(tmp_path: Path) -> None:
    (tmp_path / "serving.md").write_text(REPORT)
    served = read_served(tmp_path / "serving.md")
    assert served == Served(2, 1271.0, 2.92, 412.0)
    assert served.service_s == pytest.approx(2 / 1271)
    (tmp_path / "serving.md").write_text(REPORT.replace("all recorded", "all of them"))
    with pytest.raises(ConfigError, match=r"does not say rate.*--served rate="):
        read_served(tmp_path / "serving.md")


def test_storage_and_hours_by_hand() -> None:
    given = Assumptions(raw_mb=4.5, side=384, stride=8, width=192, concepts=14, per_concept=100, train_share=0.5)
    found = storage(given, 1_000_000)
    assert found["raw"] == pytest.approx(4500)
    assert found["prepared"] == pytest.approx(384 * 384 / 1e3)
    assert found["features"] == pytest.approx(48 * 48 * 192 * 2 / 1e3)
    assert found["stage-1 maps"] == pytest.approx(48 * 48 * 14 * 4 / 1e3)
    half = Assumptions(side=448, epochs=10, train_share=0.5, train_rate=400, infer_rate=800, decode_s=0.36)
    assert hours(half, 720_000) == {
        "decoding, core hours": pytest.approx(72),
        "stage 1, GPU hours": pytest.approx(10),
        "features, GPU hours": pytest.approx(1),
    }


def test_replicas_are_as_many_as_keep_cores_idle_enough() -> None:
    served = Served(2, 200.0, 3.0, 400.0)  # 10 ms of a core each
    assert replicas(Assumptions(busy=0.5), served, 1000) == 20
    found = interactions(Assumptions(busy=0.5), served, 1000, requests=4000)
    assert (found["replicas"], found["memory, GB"]) == (20, pytest.approx(20 * 400 / 1024))
    assert found["connections at most"] == 20 * Assumptions().connections
    assert np.isfinite(list(found.values())).all()


def test_the_command_prints_a_plan_and_takes_other_assumptions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan.interactions, "__defaults__", (2000,))
    (tmp_path / "serving.md").write_text(REPORT)
    plan.main(["--report", str(tmp_path / "serving.md"), "--set", "epochs=24", "--out", str(tmp_path / "plan.md")])
    text = capsys.readouterr().out
    assert "| `epochs` | 24 |" in text and "1,000,000 studies" in text
    assert (tmp_path / "plan.md").read_text() == text
    for wrong in (["--set", "epoch=3"], ["--set", "epochs=x"], ["--report", str(tmp_path / "none.md")]):
        with pytest.raises(SystemExit):
            plan.main(["--report", str(tmp_path / "serving.md"), *wrong])


def test_a_stores_transactions_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "_GROUP_ROUNDS", 3)
    commit_ms, entry_ms = plan.measure_store(f"sqlite:///{tmp_path}/store.db")
    assert commit_ms > 0 and entry_ms > 0
