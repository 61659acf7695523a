"""How fast ONNX Runtime encodes on this machine, by threads and batch, and which settings are best for one replica.

The protocol: an engine for each device and number of threads, all there at once; a warm-up of every setting; then
rounds in which every setting is measured once, forwards and backwards in turn, so that a machine that grows slower is
so for all of them. Before each measurement one image wakes the engine's threads. A measurement is the median call of
at least `_VISIT` seconds, a figure the median of all rounds.

Not measured is what shares the processor in service: decoding of uploads, reasoning, other replicas.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import count
from statistics import median
from time import perf_counter
from typing import Literal

import numpy as np

from csr.bundle.format import Bundle
from csr.errors import ConfigError
from serving.engines.ort import OrtEngine

Device = Literal["cpu", "cuda"]
BATCHES = (1, 2, 4, 8, 16, 32)
ROUNDS = 5  # at least
_MOST_ROUNDS = 50
_VISIT = 0.05  # seconds
_AS_GOOD = 0.95  # share of the best throughput that counts as the best: less is noise


@dataclass(frozen=True)
class Setting:
    """What an engine can be told: ``device``, intra-op ``threads``, and how many ``images`` a batch has."""

    device: Device
    threads: int
    images: int


@dataclass(frozen=True)
class Figure:
    """What was measured of a setting.

    Args:
        setting: it.
        seconds: that a batch takes, the median of the rounds.
        spread: half the distance between the quartiles of the rounds, as a share of the median.
    """

    setting: Setting
    seconds: float
    spread: float

    @property
    def images_per_second(self) -> float:
        return self.setting.images / self.seconds


def thread_counts(cores: int) -> tuple[int, ...]:
    """1, 2, 4, … and all of the cores."""
    powers = (1 << power for power in range(cores.bit_length()))
    return tuple(sorted({*powers, cores}))


def measure_settings(
    bundle: Bundle, settings: Sequence[Setting], budget: float, clock: Callable[[], float] = perf_counter
) -> list[Figure]:
    """Measures the encoder under each setting.

    Args:
        bundle: a verified bundle.
        settings: in the order in which they are told of.
        budget: seconds to use, at most, for the rounds.
        clock: seconds.

    Raises:
        BundleError: the golden case does not come out here, or a device cannot be used.
        ConfigError: the budget is too short for `ROUNDS` rounds.
    """
    engines = {
        (device, threads): OrtEngine(bundle, threads, device)
        for device, threads in dict.fromkeys((each.device, each.threads) for each in settings)
    }
    golden = bundle.golden()["image"]
    images = np.resize(golden, (max(each.images for each in settings), *golden.shape[1:]))

    def once(setting: Setting) -> float:
        start = clock()
        engines[setting.device, setting.threads].encode(images[: setting.images])
        return clock() - start

    for each in settings:
        once(each)
    seconds = {each: max(once(each), 1e-6) for each in settings}
    calls = {each: 1 + int(_VISIT / seconds[each]) for each in settings}
    needed = ROUNDS * sum(seconds[each] * calls[each] for each in settings)
    if needed > budget:
        raise ConfigError(
            f"--budget: {budget:g} seconds are too few; {ROUNDS} rounds of {len(settings)} settings take about "
            f"{needed:.0f} on this machine"
        )
    rounds: dict[Setting, list[float]] = {each: [] for each in settings}
    start = clock()
    for number in count(1):
        for each in settings if number % 2 else reversed(settings):
            once(Setting(each.device, each.threads, 1))
            rounds[each].append(median(once(each) for _ in range(calls[each])))
        used = clock() - start
        if number >= _MOST_ROUNDS or (number >= ROUNDS and used * (number + 1) / number > budget):
            break
    return [_figure(each, values) for each, values in rounds.items()]


def _figure(setting: Setting, seconds: Sequence[float]) -> Figure:
    low, middle, high = np.quantile(seconds, (0.25, 0.5, 0.75))
    return Figure(setting, float(middle), float((high - low) / 2 / middle))


def best_setting(figures: Iterable[Figure]) -> Setting:
    """Of the settings whose throughput is next to the best, the one whose engine answers a lone image soonest; of equal
    ones that with fewer threads, and then with the smaller batch: what waits for a batch waits the shorter."""
    known = list(figures)
    most = max(each.images_per_second for each in known)
    alone = {(each.setting.device, each.setting.threads): each.seconds for each in known if each.setting.images == 1}
    good = [each.setting for each in known if each.images_per_second >= _AS_GOOD * most]
    return min(good, key=lambda each: (alone[each.device, each.threads], each.threads, each.images))
