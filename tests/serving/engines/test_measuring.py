"""Which settings are best is decided by rules that can be said, on figures that are measured in turn."""

from __future__ import annotations

import pytest

from csr.bundle.format import Bundle
from csr.errors import ConfigError
from serving.engines.measuring import ROUNDS, Figure, Setting, best_setting, measure_settings, thread_counts
from serving.engines.ort import OrtEngine


def figures(rows: list[tuple[int, int, float]]) -> list[Figure]:
    """Threads, images, images a second."""
    return [Figure(Setting("cpu", threads, images), images / rate, 0.0) for threads, images, rate in rows]


@pytest.mark.parametrize(
    ("rows", "best"),
    [
        ([(1, 1, 100.0), (1, 8, 100.0), (2, 1, 150.0), (2, 8, 200.0)], (2, 8)),  # the most images a second
        ([(1, 1, 100.0), (1, 8, 101.0), (1, 16, 103.0)], (1, 1)),  # all as good: the smallest batch waits least
        ([(1, 1, 100.0), (1, 8, 200.0), (2, 1, 150.0), (2, 8, 196.0)], (2, 8)),  # as good: the faster answer to one
        ([(1, 1, 100.0), (2, 1, 100.0), (4, 1, 100.0)], (1, 1)),  # threads that bring nothing
    ],
)
def test_the_best_setting(rows: list[tuple[int, int, float]], best: tuple[int, int]) -> None:
    found = best_setting(figures(rows))
    assert (found.threads, found.images) == best


@pytest.mark.parametrize(
    ("cores", "counts"), [(1, (1,)), (2, (1, 2)), (6, (1, 2, 4, 6)), (8, (1, 2, 4, 8)), (9, (1, 2, 4, 8, 9))]
)
def test_threads_that_are_tried(cores: int, counts: tuple[int, ...]) -> None:
    assert thread_counts(cores) == counts


def test_every_setting_is_measured_in_turn_and_a_slow_spell_is_left_out(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock of its own: an image takes 30 ms, of two threads 20, and in one round ten times as long."""
    now, seen = [0.0], []

    def encode(self: OrtEngine, images: object) -> None:
        threads = self._runner._encoder.get_session_options().intra_op_num_threads
        seen.append((threads, len(images)))  # type: ignore[arg-type]
        slow = 10 if 60 <= len(seen) < 70 else 1
        now[0] += slow * len(images) * (0.03 if threads == 1 else 0.02)  # type: ignore[arg-type]

    monkeypatch.setattr(OrtEngine, "encode", encode)
    settings = [Setting("cpu", threads, images) for threads in (1, 2) for images in (1, 4)]
    found = measure_settings(bundle, settings, 60.0, lambda: now[0])
    assert [each.setting for each in found] == settings
    assert [each.seconds for each in found] == pytest.approx([0.03, 0.12, 0.02, 0.08])
    assert [each.images_per_second for each in found] == pytest.approx([1 / 0.03, 1 / 0.03, 50, 50])
    assert now[0] < 62
    assert set(seen) == {(1, 1), (1, 4), (2, 1), (2, 4)}


def test_a_budget_that_is_too_short_is_refused_with_what_it_takes(bundle: Bundle) -> None:
    with pytest.raises(ConfigError, match=rf"--budget: 0\.001 seconds are too few; {ROUNDS} rounds of 1 settings take"):
        measure_settings(bundle, [Setting("cpu", 1, 1)], 0.001)
